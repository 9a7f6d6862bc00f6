//! What may go wrong in a run: rates of small faults, and a schedule of large ones.
//!
//! Small faults (a lost datagram, a late message) are drawn by the network as they come, at the
//! rates of a [`FaultConfig`]. Large ones (a power loss, a partition) stand in a schedule, a plain
//! list of times and [`Action`]s: drawn from the seed, or written by hand. Every fault that really
//! happened is counted under its name, so that a run can say what it has been through.

mod combined;
mod draw;

use std::collections::BTreeMap;

use crate::random::Random;
use crate::rings::RingAct;

pub use draw::draw_schedule;

/// A second of simulated time, nanoseconds.
pub const SECOND_NS: u64 = 1_000_000_000;

/// A millisecond of simulated time, nanoseconds.
pub const MILLISECOND_NS: u64 = 1_000_000;

/// Rates of small faults, in parts per million of what they happen to, and bounds of delays.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FaultConfig {
    /// A packet takes at least this long, microseconds.
    pub delay_us_min: u64,
    /// And at most this long, unless it is late, microseconds.
    pub delay_us_max: u64,
    /// Packets that are late.
    pub late_ppm: u32,
    /// How late, milliseconds.
    pub late_ms_max: u64,
    /// Datagrams and messages that are very late: long after all that they belonged to is over.
    pub very_late_ppm: u32,
    /// How late, milliseconds.
    pub very_late_ms_max: u64,
    /// Gossip datagrams that are lost.
    pub datagram_drop_ppm: u32,
    /// Gossip datagrams that arrive twice.
    pub datagram_duplicate_ppm: u32,
    /// Control messages that are lost.
    pub message_drop_ppm: u32,
    /// Control messages that arrive twice.
    pub message_duplicate_ppm: u32,
    /// Writes to a stream after which it is reset, what was written arriving in part.
    pub stream_reset_ppm: u32,
    /// Pieces that one write to a stream may arrive in.
    pub stream_pieces_max: u64,
    /// A sync of a disk takes at least this long, microseconds.
    pub sync_us_min: u64,
    /// And at most this long, unless it is slow, microseconds.
    pub sync_us_max: u64,
    /// Syncs that are slow.
    pub slow_sync_ppm: u32,
    /// How slow, milliseconds.
    pub slow_sync_ms_max: u64,
    /// Operations of clients on one and the same key.
    pub hot_key_ppm: u32,
    /// Values that are larger than a segment of the log.
    pub huge_value_ppm: u32,
    /// How large, bytes.
    pub huge_value_bytes_max: u64,
}

impl FaultConfig {
    /// A good network and good disks.
    pub fn none() -> FaultConfig {
        FaultConfig {
            delay_us_min: 50,
            delay_us_max: 400,
            late_ppm: 0,
            late_ms_max: 0,
            very_late_ppm: 0,
            very_late_ms_max: 0,
            datagram_drop_ppm: 0,
            datagram_duplicate_ppm: 0,
            message_drop_ppm: 0,
            message_duplicate_ppm: 0,
            stream_reset_ppm: 0,
            stream_pieces_max: 1,
            sync_us_min: 100,
            sync_us_max: 2_000,
            slow_sync_ppm: 0,
            slow_sync_ms_max: 0,
            hot_key_ppm: 0,
            huge_value_ppm: 0,
            huge_value_bytes_max: 0,
        }
    }

    /// Bad ones, each kind of badness at a rate drawn from nothing to its worst.
    pub fn draw(random: &mut Random) -> FaultConfig {
        let mut rate = |worst_ppm: u64| random.below(worst_ppm + 1) as u32;
        FaultConfig {
            late_ppm: rate(20_000),
            datagram_drop_ppm: rate(100_000),
            datagram_duplicate_ppm: rate(50_000),
            message_drop_ppm: rate(50_000),
            message_duplicate_ppm: rate(50_000),
            stream_reset_ppm: rate(2_000),
            slow_sync_ppm: rate(20_000),
            late_ms_max: 1 + random.below(500),
            very_late_ppm: random.below(2_001) as u32,
            very_late_ms_max: 1 + random.below(60_000),
            hot_key_ppm: random.below(500_001) as u32,
            huge_value_ppm: random.below(20_001) as u32,
            huge_value_bytes_max: 30_000 + random.below(100_000),
            delay_us_max: 400 + random.below(5_000),
            stream_pieces_max: 1 + random.below(4),
            sync_us_max: 2_000 + random.below(10_000),
            slow_sync_ms_max: 1 + random.below(300),
            ..FaultConfig::none()
        }
    }
}

/// A large fault. Nodes are named by their number, from 0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// The machine loses its power: what was not synced may be gone, connections just fall silent.
    PowerLoss {
        /// Which node.
        node: usize,
        /// It is started again after this long, nanoseconds.
        down_ns: u64,
    },
    /// The process dies. Its machine goes on: nothing written is lost, connections are reset.
    Kill {
        /// Which node.
        node: usize,
        /// It is started again after this long, nanoseconds.
        down_ns: u64,
    },
    /// Whoever leads Raft when it next sends entries loses its power before they are on its own disk.
    LeaderLoss {
        /// It is started again after this long, nanoseconds.
        down_ns: u64,
    },
    /// Power is lost in the middle of a coming operation of the disk, in whatever wants it.
    PowerLossInDisk {
        /// Which node.
        node: usize,
        /// After so many further operations that change the disk.
        operations: u64,
        /// It is started again after this long, nanoseconds.
        down_ns: u64,
    },
    /// Nothing gets through between these, in this direction.
    Cut {
        /// The name it is counted under.
        name: &'static str,
        /// What is cut.
        traffic: Traffic,
        /// Ordered pairs: from, to.
        pairs: Vec<(usize, usize)>,
        /// For so long, nanoseconds.
        for_ns: u64,
    },
    /// What goes between these, in this direction, takes longer.
    SlowLink {
        /// From, to.
        pair: (usize, usize),
        /// By so much, nanoseconds.
        by_ns: u64,
        /// For so long, nanoseconds.
        for_ns: u64,
    },
    /// All data connections between two nodes are reset.
    ResetStreams {
        /// One.
        one: usize,
        /// The other.
        other: usize,
    },
    /// The process stands still, as under SIGSTOP: the kernel goes on taking what comes.
    Pause {
        /// Which node.
        node: usize,
        /// For so long, nanoseconds.
        for_ns: u64,
    },
    /// The disk has room for a little more only, and after a while for everything again.
    DiskFull {
        /// Which node.
        node: usize,
        /// Room that is left, bytes.
        room_bytes: u64,
        /// For so long, nanoseconds.
        for_ns: u64,
    },
    /// A coming sync of the disk fails, and may lose what it was to make durable.
    SyncError {
        /// Which node.
        node: usize,
        /// After so many further syncs.
        syncs: u64,
        /// The node, which has to stop then, is started again after this long, nanoseconds.
        down_ns: u64,
    },
    /// A coming append to a file fails, having written a part.
    WriteError {
        /// Which node.
        node: usize,
        /// After so many further appends.
        appends: u64,
        /// The node, which has to stop then, is started again after this long, nanoseconds.
        down_ns: u64,
    },
    /// Reads of the disk, and some of the engine, fail.
    ReadError {
        /// Which node.
        node: usize,
        /// For so long, nanoseconds.
        for_ns: u64,
    },
    /// The node is killed, and a bit of one of its files has changed when it is started again: of a
    /// state file, of a log, of a run file, of hints. It must refuse to start and name the file, or be
    /// none the worse for it; `node::damage` says what is due to which file. Then the bit is put right.
    BitRot {
        /// Which node.
        node: usize,
        /// Chooses the file and the byte.
        draw: u64,
        /// It is started again after this long, nanoseconds.
        down_ns: u64,
    },
    /// Every sync of the disk takes longer.
    SlowDisk {
        /// Which node.
        node: usize,
        /// By so much, nanoseconds.
        by_ns: u64,
        /// For so long, nanoseconds.
        for_ns: u64,
    },
    /// The directory is gone and the node is started on an empty one: it must come back as a new
    /// member, which waits, and never say of a key that it is absent.
    Wipe {
        /// Which node.
        node: usize,
        /// It is started again after this long, nanoseconds.
        down_ns: u64,
    },
    /// The directory is copied aside while the node runs, as a careless backup does.
    CopyDirectory {
        /// Which node.
        node: usize,
    },
    /// The copy takes the directory's place, after the node was started from the original again. The
    /// cluster must refuse it; it is wiped then.
    RestoreCopy {
        /// Which node.
        node: usize,
        /// It is started again after this long, nanoseconds.
        down_ns: u64,
    },
    /// A node stops reading what another sends it on data connections, and its kernel's buffers stay
    /// full: the sender is left with what it cannot get rid of.
    SlowConsumer {
        /// The sender, and who does not read.
        pair: (usize, usize),
        /// For so long, nanoseconds.
        for_ns: u64,
    },
    /// The node is killed and comes back under another peer address, as a container on another machine
    /// with the same volume. The others must find it again.
    Move {
        /// Which node.
        node: usize,
        /// It is started again after this long, nanoseconds.
        down_ns: u64,
    },
    /// The copy of the directory is started on a machine of its own, under another peer address, while
    /// the original runs. The cluster must refuse the copy, however often it is started, and the
    /// original must go on.
    StartClone {
        /// Which node's copy.
        node: usize,
        /// It is started again and again for so long, nanoseconds.
        for_ns: u64,
    },
    /// The wall clock jumps, and is put right after a while.
    ClockJump {
        /// Which node.
        node: usize,
        /// By so much, microseconds; negative: back.
        by_us: i64,
        /// For so long, nanoseconds.
        for_ns: u64,
    },
    /// The wall clock stands still.
    ClockFreeze {
        /// Which node.
        node: usize,
        /// For so long, nanoseconds.
        for_ns: u64,
    },
    /// Not a fault, but as hard: the administrator changes the ring.
    Ring(RingAct),
    /// All clients lose patience: short timeouts, many retries, no pauses.
    RetryStorm {
        /// For so long, nanoseconds.
        for_ns: u64,
    },
}

/// What a cut concerns.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Traffic {
    /// Gossip: who lives.
    Gossip,
    /// Control messages: Raft, and what follows from it.
    Control,
    /// Data connections.
    Data,
    /// All of these.
    Everything,
}

/// Large faults, by the simulated time at which they happen, counted from the first.
pub type Schedule = Vec<(u64, Action)>;

/// How often something happened, by name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts(pub BTreeMap<&'static str, u64>);

impl Counts {
    /// Adds to the count of a name.
    pub fn add(&mut self, name: &'static str, times: u64) {
        *self.0.entry(name).or_default() += times;
    }

    pub(crate) fn count(&mut self, name: &'static str) {
        self.add(name, 1);
    }
}
