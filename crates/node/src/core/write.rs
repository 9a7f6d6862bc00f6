//! Coordinating writes.
//!
//! A write is stamped, sent to every replica that can be reached, and answered when W of them have made
//! it durable. The operation then stays until the last replica has answered or failed, because those
//! that failed get a hint.
//!
//! **How a write may end, and what the client may conclude**
//!
//! | answer | when | then |
//! |---|---|---|
//! | written | W replicas acknowledged | it is durable on them |
//! | unavailable, overloaded | too few replicas could be asked, or all of them refused before they began | nothing was done anywhere |
//! | unknown | something was sent, and W acknowledgements can no longer come in time | it may or may not become visible, at any time from now on |
//!
//! **Law.** After a partial write, nothing here stamps the value anew and sends it again: readers could
//! see it, then another, then it again. A client that retries with the version it was told, or through
//! the same coordinator with its request id, repeats the *same* write, which is harmless.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use mds_protocol::quorum::{Outcome as Quorum, Shortfall, WriteQuorum, check_quorum};
use mds_types::mutation::{Mutation, is_on};
use mds_types::{Body, HlcError, NodeId, Record, TopologyVersion, Version};

use super::replica::ReplicaRequest;
use super::{Core, OpKind, Pending, Replicas};
use crate::api::{Now, Op, Outcome, Request, RequestError, RequestOptions, Stamp, Tag};
use crate::wire::{Message, Purpose, Put, Status};

/// Request ids remembered, so that a retry through this node is the same write. The oldest go first.
const REQUEST_IDS_MAX: usize = 64 * 1024;

/// Writes that wait for the clock's mark, at most; further ones are refused as overloaded.
const AWAITING_MARK_MAX: usize = 4 * 1024;

/// A write in flight.
pub(super) struct WriteOp {
    tag: Tag,
    kind: OpKind,
    record: Record,
    pub(super) replicas: Replicas,
    quorum: WriteQuorum,
    /// A replica may hold the write although it has not acknowledged it.
    may_be_applied: bool,
    pub(super) is_answered: bool,
    /// A replica refused it because its epoch is closed there.
    is_closed: bool,
    /// What the client named it.
    request_id: Option<u128>,
    /// The version of the rings that it goes by.
    pub(super) ring: TopologyVersion,
    started_ns: u64,
}

/// Writes by the names that clients gave them.
#[derive(Debug, Default)]
pub(super) struct RequestIds {
    writes: BTreeMap<u128, Remembered>,
    order: VecDeque<u128>,
}

/// What a retry has to be equal to, and what it is stamped with.
#[derive(Clone, Copy, Debug)]
struct Remembered {
    stamp: Stamp,
    expires_at_ms: Option<u64>,
    /// Of what is written: a name that comes back with something else is a mistake, not a retry.
    fingerprint: u64,
}

impl RequestIds {
    fn insert(&mut self, id: u128, write: Remembered) {
        if self.writes.insert(id, write).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > REQUEST_IDS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.writes.remove(&oldest);
        }
    }
}

/// A quorum that cannot be met, in numbers.
pub(super) fn unavailable(short: Shortfall) -> RequestError {
    RequestError::Unavailable {
        needed: short.needed,
        got: short.got,
        of: short.of,
    }
}

/// What a client hears whose write was stamped in an epoch that is closed at the replicas.
const EPOCH_CLOSED: &str = "this node is behind: the epoch that it stamped the write in is closed already. \
     Nothing was done: send it again";

/// What a write says, in one number.
fn fingerprint(key: &[u8], value: Option<&Bytes>, expires_at_ms: Option<u64>) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(&[u8::from(value.is_some())]);
    hash.update(&expires_at_ms.unwrap_or(0).to_le_bytes());
    hash.update(&(key.len() as u64).to_le_bytes());
    hash.update(key);
    hash.update(value.map_or(&[], |value| &value[..]));
    hash.digest()
}

/// The binary form of a record, made at most once for all the replicas it goes to.
pub(super) struct Encoded<'a> {
    record: &'a Record,
    bytes: Option<Bytes>,
}

impl<'a> Encoded<'a> {
    pub(super) fn new(record: &'a Record) -> Encoded<'a> {
        Encoded {
            record,
            bytes: None,
        }
    }

    fn bytes(&mut self) -> Bytes {
        let record = self.record;
        let encode = || {
            let mut bytes = Vec::with_capacity(record.encoded_len());
            record.encode(&mut bytes);
            Bytes::from(bytes)
        };
        self.bytes.get_or_insert_with(encode).clone()
    }
}

impl Core {
    /// Begins a write; its answer comes through [`Core::take_done`], also when it is refused.
    pub(super) fn begin_write(&mut self, now: Now, request: Request, tag: Tag, deadline_ns: u64) {
        let (key, value, expires_at_ms) = match &request.op {
            Op::Put {
                key,
                value,
                expires_at_ms,
            } => (key, Some(value), *expires_at_ms),
            Op::Delete { key } => (key, None, None),
            Op::Get { .. } | Op::Scan { .. } | Op::Count { .. } => return,
        };
        let kind = if value.is_some() {
            OpKind::Put
        } else {
            OpKind::Delete
        };
        let admitted = self.admit_write(now, key, value, &request.options);
        let stamped = admitted.and_then(|(replicas, quorum)| {
            let stamp = self.stamp(now, &request, expires_at_ms)?;
            Ok((replicas, quorum, stamp))
        });
        match stamped {
            Ok((replicas, quorum, Some((stamp, expires_at_ms)))) => {
                let body = value.map_or(Body::Tombstone, |value| Body::Value(value.clone()));
                let record = Record {
                    key: key.clone(),
                    version: stamp.version,
                    epoch: stamp.epoch,
                    expires_at_ms,
                    body,
                };
                let op = WriteOp {
                    tag,
                    kind,
                    record,
                    replicas,
                    quorum,
                    may_be_applied: false,
                    is_answered: false,
                    is_closed: false,
                    request_id: request.options.request_id,
                    ring: self.rings.version(),
                    started_ns: now.mono_ns,
                };
                self.send_write(now, op, deadline_ns);
            }
            Ok((_, _, None)) if self.awaiting_mark.len() < AWAITING_MARK_MAX => {
                self.awaiting_mark.push((request, tag, deadline_ns));
            }
            Ok((_, _, None)) => {
                let error = RequestError::Overloaded("the clock's mark is not durable yet");
                self.finish_kind(now, now.mono_ns, kind, tag, Err(error));
            }
            Err(error) => self.finish_kind(now, now.mono_ns, kind, tag, Err(error)),
        }
    }

    /// Everything that can refuse a write before it has a stamp.
    fn admit_write(
        &mut self,
        now: Now,
        key: &Bytes,
        value: Option<&Bytes>,
        options: &RequestOptions,
    ) -> Result<(Replicas, WriteQuorum), RequestError> {
        self.check_key(key)?;
        let value_bytes = value.map_or(0, Bytes::len);
        if value_bytes > self.config.value_bytes_max {
            let (bytes, limit) = (value_bytes, self.config.value_bytes_max);
            return Err(RequestError::TooLarge {
                what: "value",
                bytes,
                limit,
            });
        }
        self.coordinating()?;
        let config = self.rings.config();
        let needed = options.write_quorum.unwrap_or(config.write_quorum);
        check_quorum("w", needed, config.replicas)
            .map_err(|error| RequestError::BadRequest(error.to_string()))?;
        if self.pending_bytes + value_bytes > self.config.pending_bytes_max {
            return Err(RequestError::Overloaded("too many bytes in flight"));
        }
        if let Some(seen) = options.seen {
            self.observe_client(now, seen)?;
        }
        let replicas = self.rings.write_replicas(self.partition_of(key));
        let usable = replicas
            .nodes()
            .iter()
            .filter(|&&node| self.is_usable(node));
        let asked = match is_on(Mutation::DeadLeaveQuorum) {
            true => Some(needed.min(usable.count().max(1) as u8)),
            false => options.write_quorum,
        };
        let quorum = self.rings.write_quorum(&replicas, asked);
        let mut reached = quorum.clone();
        for (index, &node) in replicas.nodes().iter().enumerate() {
            if !self.is_usable(node) {
                reached.fail(index);
            }
        }
        if let Some(short) = reached.hopeless() {
            return Err(unavailable(short));
        }
        Ok((replicas, quorum))
    }

    /// The version of a write: the one it had before, if this is a retry, else a new stamp. `None` while
    /// the clock's mark is being made durable.
    fn stamp(
        &mut self,
        now: Now,
        request: &Request,
        expires_at_ms: Option<u64>,
    ) -> Result<Option<(Stamp, Option<u64>)>, RequestError> {
        let options = &request.options;
        let (key, value) = match &request.op {
            Op::Put { key, value, .. } => (key, Some(value)),
            Op::Delete { key } | Op::Get { key } => (key, None),
            Op::Scan { .. } | Op::Count { .. } => return Ok(None),
        };
        if let Some(mut stamp) = options.stamp.filter(|_| !is_on(Mutation::RetryRestamped)) {
            self.observe_client(now, stamp.version)?;
            if is_on(Mutation::RetryOtherEpoch) {
                stamp.epoch = self.epoch();
            }
            if stamp.epoch > self.epoch() {
                let epoch = stamp.epoch;
                return Err(RequestError::NotReady(format!(
                    "this node has not heard of epoch {epoch} of the retry token yet"
                )));
            }
            if stamp.version.hlc <= self.view.floors.floor(stamp.epoch) {
                let error =
                    "this retry token was never given out: its version is older than its epoch";
                return Err(RequestError::BadRequest(error.to_owned()));
            }
            if stamp.content != fingerprint(key, value, expires_at_ms) {
                let error = "this retry token belongs to another write: send the very same one";
                return Err(RequestError::BadRequest(error.to_owned()));
            }
            return Ok(Some((stamp, expires_at_ms)));
        }
        let known = options
            .request_id
            .and_then(|id| self.request_ids.writes.get(&id));
        if let Some(before) = known {
            if before.fingerprint != fingerprint(key, value, None) {
                let error = "this idempotency key was used for another write: choose a new one";
                return Err(RequestError::BadRequest(error.to_owned()));
            }
            return Ok(Some((before.stamp, before.expires_at_ms)));
        }
        // Versions of an epoch lie above its floor; else what is collected could not be told from what is
        // still to come.
        let floor = self.view.floors.floor(self.epoch());
        if !is_on(Mutation::FloorIgnored)
            && let Err(error) = self.clock.observe(now.wall_us, floor)
        {
            self.stats.clock_skew_refusals += 1;
            return Err(RequestError::NotReady(format!(
                "this node's clock is behind the others': {error}"
            )));
        }
        if !self.mark_in_flight
            && let Some(mark) = self.clock.reserve(now.wall_us)
        {
            self.batch.mark = Some(mark);
            self.mark_in_flight = true;
        }
        match self.clock.now(now.wall_us) {
            Ok(hlc) => {
                let stamp = Stamp {
                    version: Version {
                        hlc,
                        node: self.view.me,
                    },
                    epoch: self.epoch(),
                    content: fingerprint(key, value, expires_at_ms),
                };
                if let Some(id) = options.request_id {
                    let fingerprint = fingerprint(key, value, None);
                    self.request_ids.insert(
                        id,
                        Remembered {
                            stamp,
                            expires_at_ms,
                            fingerprint,
                        },
                    );
                }
                Ok(Some((stamp, expires_at_ms)))
            }
            Err(HlcError::MarkExhausted) => Ok(None),
            Err(error @ HlcError::TooFarAhead { .. }) => {
                self.stats.clock_skew_refusals += 1;
                Err(RequestError::NotReady(format!(
                    "this node's clock went back: {error}"
                )))
            }
        }
    }

    /// Takes note of a version that a client sent: what it writes from now on comes later.
    ///
    /// Clients are believed half as far into the future as peers are: a token at the very edge would
    /// leave this node's next stamps no room at replicas whose clocks are a little behind.
    pub(super) fn observe_client(&mut self, now: Now, seen: Version) -> Result<(), RequestError> {
        let ahead_us = seen.hlc.physical_us().saturating_sub(now.wall_us);
        let max_us = self.config.clock_skew_us_max / 2;
        let believed = match ahead_us > max_us {
            true => Err(HlcError::TooFarAhead { ahead_us, max_us }),
            false => self.clock.observe(now.wall_us, seen.hlc),
        };
        believed.map_err(|error| {
            self.stats.clock_skew_refusals += 1;
            RequestError::BadRequest(format!("version token refused: {error}"))
        })
    }

    fn send_write(&mut self, now: Now, op: WriteOp, deadline_ns: u64) {
        let (record, replicas) = (op.record.clone(), op.replicas);
        self.pending_bytes += record.encoded_len();
        let id = self.pending.insert(Pending::Write(op));
        self.deadlines.insert(deadline_ns, id);
        let timeout_ms = (deadline_ns.saturating_sub(now.mono_ns) / 1_000_000) as u32;
        let mut encoded = Encoded::new(&record);
        for (index, &node) in replicas.nodes().iter().enumerate() {
            let sent = self.is_usable(node)
                && self.send_put(node, id, &mut encoded, Purpose::Write, timeout_ms);
            if !sent && let Some(Pending::Write(op)) = self.pending.get_mut(id) {
                if is_on(Mutation::HintCounts) {
                    self.batch.hints.push((node, record.clone()));
                    op.quorum.ack(index);
                }
                op.quorum.fail(index);
            }
        }
        self.settle_write(now, id);
    }

    /// Hands a record to a replica. False if it could not be handed over: nothing was sent.
    pub(super) fn send_put(
        &mut self,
        to: NodeId,
        id: u64,
        record: &mut Encoded<'_>,
        purpose: Purpose,
        timeout_ms: u32,
    ) -> bool {
        if to == self.view.me {
            let record = record.record.clone();
            self.local_requests
                .push_back((id, ReplicaRequest::Put { record, purpose }));
            return true;
        }
        let topology = self.rings.version().0;
        let record = record.bytes();
        let put = Put {
            id,
            topology,
            timeout_ms,
            purpose: purpose as i32,
            record,
        };
        self.links.send(to, &Message::Put(put)).is_ok()
    }

    /// A replica's answer.
    pub(super) fn on_write_reply(&mut self, now: Now, id: u64, from: NodeId, status: Status) {
        let Some(Pending::Write(op)) = self.pending.get_mut(id) else {
            return;
        };
        let Some(index) = op.replicas.index_of(from) else {
            return;
        };
        if status == Status::Ok {
            op.quorum.ack(index);
            self.settle_write(now, id);
        } else {
            op.is_closed |= status == Status::EpochClosed;
            self.on_write_failed(now, id, index, status.is_definite_refusal());
        }
    }

    /// A replica did not do it, or (unless `is_definite`) perhaps did without saying so.
    pub(super) fn on_write_failed(&mut self, now: Now, id: u64, index: usize, is_definite: bool) {
        let Some(Pending::Write(op)) = self.pending.get_mut(id) else {
            return;
        };
        if !op.quorum.outstanding().contains(index) {
            return;
        }
        op.may_be_applied |= !is_definite;
        op.quorum.fail(index);
        self.settle_write(now, id);
    }

    pub(super) fn on_write_deadline(&mut self, now: Now, id: u64) {
        let Some(Pending::Write(op)) = self.pending.get_mut(id) else {
            return;
        };
        for index in op.quorum.outstanding().iter() {
            op.may_be_applied = true;
            op.quorum.fail(index);
        }
        self.settle_write(now, id);
    }

    /// Answers the client as soon as the quorum is decided; ends the operation when all is known.
    fn settle_write(&mut self, now: Now, id: u64) {
        let Some(Pending::Write(op)) = self.pending.get_mut(id) else {
            return;
        };
        let is_over = op.quorum.outstanding().is_empty();
        let verdict = match op.quorum.outcome() {
            Quorum::Pending => None,
            Quorum::Met => Some(Ok(Outcome::Written {
                version: op.record.version,
                acked: op.quorum.acked_count(),
            })),
            // While somebody may still acknowledge, the write may be applied there.
            Quorum::Impossible { .. } => {
                let short = op.quorum.shortfall();
                let (needed, got, of) = (short.needed, short.got, short.of);
                let is_undone = op.quorum.acked_count() == 0
                    && (!op.may_be_applied || is_on(Mutation::ClaimsUndone));
                if is_undone && is_over && op.is_closed {
                    // A repetition under the same name must not get the same stamp again.
                    if let Some(id) = op.request_id {
                        self.request_ids.writes.remove(&id);
                    }
                    Some(Err(RequestError::NotReady(EPOCH_CLOSED.to_owned())))
                } else if is_undone && is_over {
                    Some(Err(RequestError::Unavailable { needed, got: 0, of }))
                } else if is_undone {
                    // All that is left to wait for are answers that decide "undone" or "unknown".
                    None
                } else {
                    let stamp = Stamp {
                        version: op.record.version,
                        epoch: op.record.epoch,
                        content: fingerprint(
                            &op.record.key,
                            op.record.value(),
                            op.record.expires_at_ms,
                        ),
                    };
                    Some(Err(RequestError::Unknown {
                        needed,
                        got,
                        of,
                        stamp,
                    }))
                }
            }
        };
        let answer = match verdict {
            Some(verdict) if !op.is_answered => {
                op.is_answered = true;
                Some((op.tag, op.kind, op.started_ns, verdict))
            }
            _ => None,
        };
        if let Some((tag, kind, started_ns, verdict)) = answer {
            self.finish_kind(now, started_ns, kind, tag, verdict);
        }
        if is_over {
            self.end_write(id);
        }
    }

    /// The last answer is in: whoever missed the write gets a hint, if anybody has it.
    fn end_write(&mut self, id: u64) {
        let Some(Pending::Write(op)) = self.pending.remove(id) else {
            return;
        };
        self.pending_bytes = self.pending_bytes.saturating_sub(op.record.encoded_len());
        if op.quorum.acked_count() == 0 && !op.may_be_applied {
            return;
        }
        for index in op.quorum.unacked().iter() {
            if let Some(node) = op.replicas.node(index) {
                self.keep_hint(node, &op.record);
            }
        }
    }

    /// Makes room by ending the oldest write that its client has heard of: a replica that takes its time
    /// gets a hint instead. False if the oldest operation is still waited for.
    pub(super) fn end_oldest_answered_write(&mut self, now: Now) -> bool {
        let Some(id) = self.deadlines.front() else {
            return false;
        };
        match self.pending.get_mut(id) {
            Some(Pending::Write(op)) if op.is_answered => {
                self.deadlines.pop_front();
                self.on_write_deadline(now, id);
                true
            }
            Some(_) => false,
            None => {
                self.deadlines.pop_front();
                true
            }
        }
    }
}
