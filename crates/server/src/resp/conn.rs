//! One client connection: its input, its reply slots, and what it has chosen for itself.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mds_node::api::{Now, Op, RequestOptions};
use mds_types::Version;
use xxhash_rust::xxh3::xxh3_64;

use super::codec::Parser;
use super::commands::Action;
use super::reply::{Protocol, Reply};

/// Commands of one connection whose replies are not all written: no further command is parsed, and
/// the shell is asked to read no more, until some are.
pub const PIPELINE_MAX: usize = 1024;
/// Reply bytes that a client has not taken: its connection is closed beyond this. A client that asks
/// for more than it reads cannot be served.
pub const OUTPUT_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Reply bytes that a client has not taken: nothing more is read from it, and no further command of it
/// is started, beyond this.
pub const OUTPUT_BYTES_PAUSE: usize = 1024 * 1024;

/// Keys in flight are counted by hash, in this many counters; two keys that share one merely wait
/// for each other.
const BUCKETS: usize = 128;

/// What a client has chosen for its requests, by `MDS.CONSISTENCY`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Consistency {
    pub(super) read_quorum: Option<u8>,
    pub(super) write_quorum: Option<u8>,
    pub(super) timeout_ms: Option<u32>,
    /// Whether reads must see what the connection has seen, though that may take more replicas than it chose.
    pub(super) session: bool,
}

impl Default for Consistency {
    fn default() -> Consistency {
        Consistency {
            read_quorum: None,
            write_quorum: None,
            timeout_ms: None,
            session: true,
        }
    }
}

/// How a request touches its key, for the order within a pipeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    /// Must not run beside a write of the same key.
    Read,
    /// Must not run beside a read of the same key. Two writes may: their stamps grow in the order in
    /// which they are submitted.
    Write,
    /// Both: a deletion reads before it writes, so its stamp comes later than its turn.
    ReadWrite,
}

/// The requests of a connection that are in flight, by key.
///
/// Redis runs the commands of a pipeline one after the other. Here they run together, which no
/// client can tell as long as no two touch the same key with one of them writing.
#[derive(Debug)]
pub(super) struct Hazards {
    reads: [u32; BUCKETS],
    writes: [u32; BUCKETS],
    /// Commands in flight that have keys.
    running: usize,
    /// A command that walks over all keys is in flight.
    exclusive: bool,
}

impl Hazards {
    fn new() -> Hazards {
        Hazards {
            reads: [0; BUCKETS],
            writes: [0; BUCKETS],
            running: 0,
            exclusive: false,
        }
    }

    fn bucket(key: &[u8]) -> usize {
        xxh3_64(key) as usize % BUCKETS
    }

    fn allows(&self, key: &[u8], access: Access) -> bool {
        let bucket = Hazards::bucket(key);
        let (reads, writes) = (self.reads[bucket], self.writes[bucket]);
        match access {
            Access::Read => writes == 0,
            Access::Write => reads == 0,
            Access::ReadWrite => reads == 0 && writes == 0,
        }
    }

    /// Whether a command over these keys may start now.
    pub(super) fn allows_all(&self, keys: &[Bytes], access: Access) -> bool {
        self.running == 0 || !self.exclusive && keys.iter().all(|key| self.allows(key, access))
    }

    /// Whether a command over all keys may start now.
    pub(super) fn allows_everything(&self) -> bool {
        self.running == 0
    }

    pub(super) fn enter(&mut self, keys: &[Bytes], access: Access) {
        self.running += 1;
        for key in keys {
            let bucket = Hazards::bucket(key);
            self.reads[bucket] += u32::from(access != Access::Write);
            self.writes[bucket] += u32::from(access != Access::Read);
        }
    }

    pub(super) fn leave(&mut self, keys: &[Bytes], access: Access) {
        self.running -= 1;
        for key in keys {
            let bucket = Hazards::bucket(key);
            self.reads[bucket] -= u32::from(access != Access::Write);
            self.writes[bucket] -= u32::from(access != Access::Read);
        }
    }

    pub(super) fn enter_everything(&mut self) {
        self.running += 1;
        self.exclusive = true;
    }

    pub(super) fn leave_everything(&mut self) {
        self.running -= 1;
        self.exclusive = false;
    }
}

/// The place of one reply, in the order of the commands.
#[derive(Debug)]
struct Slot {
    protocol: Protocol,
    state: SlotState,
}

#[derive(Debug)]
enum SlotState {
    Waiting,
    Ready(Answer),
}

/// What goes into a slot.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Answer {
    /// The reply as it is.
    Reply(Reply),
    /// The reply to a write, and how many replicas are known to hold it.
    Written(Reply, u8),
    /// `WAIT`: how many replicas beyond the first hold the write before it.
    AckedReplicas,
}

/// One client connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) id: u64,
    pub(super) peer: String,
    pub(super) input: BytesMut,
    pub(super) parser: Parser,
    /// A command that waits for others in flight. Nothing is parsed meanwhile.
    pub(super) stalled: Option<Action>,
    pub(super) hazards: Box<Hazards>,
    pub(super) protocol: Protocol,
    pub(super) consistency: Consistency,
    pub(super) name: Bytes,
    pub(super) library: Bytes,
    pub(super) library_version: Bytes,
    pub(super) last_command: &'static str,
    pub(super) opened: Option<Now>,
    pub(super) active: Now,
    /// Says goodbye: no more commands; to be closed when all replies are out.
    pub(super) ending: bool,
    /// Too much output was waiting: what was left of it is dropped, to be closed at once.
    overflowed: bool,
    pub(super) dirty: bool,
    /// Bytes the shell has taken and the client has not.
    pub(super) backlog: usize,
    output: BytesMut,
    slots: VecDeque<Slot>,
    /// Number of the first slot.
    first: u64,
    seen: Option<Version>,
    /// Replicas that held the connection's last write when it was answered.
    last_acked: u8,
}

impl Conn {
    pub(super) fn new(id: u64, peer: String) -> Conn {
        Conn {
            id,
            peer,
            input: BytesMut::new(),
            parser: Parser::default(),
            stalled: None,
            hazards: Box::new(Hazards::new()),
            protocol: Protocol::default(),
            consistency: Consistency::default(),
            name: Bytes::new(),
            library: Bytes::new(),
            library_version: Bytes::new(),
            last_command: "NULL",
            opened: None,
            active: Now::default(),
            ending: false,
            overflowed: false,
            dirty: false,
            backlog: 0,
            output: BytesMut::new(),
            slots: VecDeque::new(),
            first: 0,
            seen: None,
            last_acked: 0,
        }
    }

    /// What `RESET` undoes.
    pub(super) fn reset(&mut self) {
        self.protocol = Protocol::default();
        self.consistency = Consistency::default();
        self.name = Bytes::new();
    }

    /// The options of this request, submitted now.
    pub(super) fn options(&self, op: &Op) -> RequestOptions {
        // A write always comes after what its client has seen.
        let carries_token =
            self.consistency.session || matches!(op, Op::Put { .. } | Op::Delete { .. });
        RequestOptions {
            read_quorum: self.consistency.read_quorum,
            write_quorum: self.consistency.write_quorum,
            timeout_ms: self.consistency.timeout_ms,
            seen: self.seen.filter(|_| carries_token),
            ..RequestOptions::default()
        }
    }

    /// Remembers the greatest version that this client has had to do with.
    pub(super) fn saw(&mut self, version: Option<Version>) {
        self.seen = self.seen.max(version);
    }

    /// Seconds since the first command and since the last.
    pub(super) fn age_and_idle(&self, now: Now) -> (u64, u64) {
        let since =
            |then: Now| Duration::from_nanos(now.mono_ns.saturating_sub(then.mono_ns)).as_secs();
        (since(self.opened.unwrap_or(now)), since(self.active))
    }

    /// Takes the next place in the order of replies.
    pub(super) fn reserve_slot(&mut self) -> u64 {
        self.slots.push_back(Slot {
            protocol: self.protocol,
            state: SlotState::Waiting,
        });
        self.first + self.slots.len() as u64 - 1
    }

    /// A reply that is known at once: written if nothing is before it, else kept in its place.
    pub(super) fn answer_now(&mut self, answer: Answer) {
        if self.slots.is_empty() {
            self.write(answer, self.protocol);
        } else {
            self.slots.push_back(Slot {
                protocol: self.protocol,
                state: SlotState::Ready(answer),
            });
        }
    }

    /// The reply of a slot has come: writes all that are now in order.
    pub(super) fn answer(&mut self, slot: u64, answer: Answer) {
        let index = slot.wrapping_sub(self.first) as usize;
        let Some(place) = self.slots.get_mut(index) else {
            return;
        };
        place.state = SlotState::Ready(answer);
        while let Some(Slot {
            state: SlotState::Ready(_),
            ..
        }) = self.slots.front()
        {
            let Some(slot) = self.slots.pop_front() else {
                return;
            };
            self.first += 1;
            if let SlotState::Ready(answer) = slot.state {
                self.write(answer, slot.protocol);
            }
        }
    }

    fn write(&mut self, answer: Answer, protocol: Protocol) {
        if self.overflowed {
            return;
        }
        match answer {
            Answer::Reply(reply) => reply.encode(protocol, &mut self.output),
            Answer::Written(reply, acked) => {
                self.last_acked = acked;
                reply.encode(protocol, &mut self.output);
            }
            Answer::AckedReplicas => {
                let beyond_first = self.last_acked.saturating_sub(1);
                Reply::Integer(i64::from(beyond_first)).encode(protocol, &mut self.output);
            }
        }
        if self.output.len() + self.backlog > OUTPUT_BYTES_MAX {
            tracing::warn!(
                client = %self.peer,
                bytes = self.output.len() + self.backlog,
                "closing a client that does not read its replies"
            );
            self.ending = true;
            self.overflowed = true;
            self.input = BytesMut::new();
            self.stalled = None;
            self.output = BytesMut::new();
            self.slots.clear();
        }
    }

    /// Whether as many commands are in flight as are allowed.
    pub(super) fn is_full(&self) -> bool {
        self.slots.len() >= PIPELINE_MAX
    }

    /// Whether so much output waits for the client that nothing further is started for it.
    pub(super) fn is_output_high(&self) -> bool {
        self.output.len() + self.backlog > OUTPUT_BYTES_PAUSE
    }

    /// Whether no more should be read from this client now. A stalled command pauses only while what it
    /// waits for is running: else nothing but the shell's next word would start it.
    pub(super) fn is_paused(&self) -> bool {
        self.ending
            || self.is_full()
            || self.is_output_high()
            || (self.stalled.is_some() && !self.hazards.allows_everything())
    }

    /// Whether the connection is to be closed once its output is written.
    pub(super) fn wants_close(&self) -> bool {
        self.ending && self.slots.is_empty()
    }

    /// Whether the connection is to be closed now, whatever has not been written.
    pub(super) fn must_close_now(&self) -> bool {
        self.overflowed
    }

    pub(super) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    pub(super) fn take_output(&mut self) -> Option<BytesMut> {
        (!self.output.is_empty()).then(|| self.output.split())
    }

    /// Bytes held for this connection.
    pub(super) fn buffered_bytes(&self) -> usize {
        self.input.len() + self.output.len()
    }
}
