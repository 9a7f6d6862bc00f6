//! What may go wrong in a run: rates of small faults, and a schedule of large ones.
//!
//! Small faults (a lost datagram, a late message) are drawn by the network as they come, at the
//! rates of a [`FaultConfig`]. Large ones (a power loss, a partition) stand in a schedule, a plain
//! list of times and [`Action`]s: drawn from the seed, or written by hand. Every fault that really
//! happened is counted under its name, so that a run can say what it has been through.

use std::collections::BTreeMap;

use crate::random::Random;

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
}

impl FaultConfig {
    /// A good network and good disks.
    pub fn none() -> FaultConfig {
        FaultConfig {
            delay_us_min: 50,
            delay_us_max: 400,
            late_ppm: 0,
            late_ms_max: 0,
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
        /// Ordered pairs: from, to.
        pairs: Vec<(usize, usize)>,
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
}

/// Large faults, by the simulated time at which they happen, counted from the first.
pub type Schedule = Vec<(u64, Action)>;

/// Draws a schedule that lasts this long.
pub fn draw_schedule(random: &mut Random, nodes: usize, lasts_ns: u64) -> Schedule {
    let mut schedule = Schedule::new();
    let mut at_ns = 0;
    loop {
        at_ns += random.between(200 * MILLISECOND_NS, 2_500 * MILLISECOND_NS);
        if at_ns >= lasts_ns {
            return schedule;
        }
        schedule.push((at_ns, draw_action(random, nodes)));
    }
}

fn draw_action(random: &mut Random, nodes: usize) -> Action {
    let node = random.index(nodes);
    let other = (node + 1 + random.index(nodes - 1)) % nodes;
    let down_ns = random.between(50 * MILLISECOND_NS, 3 * SECOND_NS);
    let for_ns = random.between(100 * MILLISECOND_NS, 4 * SECOND_NS);
    match random.below(10) {
        0 | 1 => Action::PowerLoss { node, down_ns },
        2 | 3 => Action::Kill { node, down_ns },
        4 | 5 => {
            let operations = random.below(60);
            Action::PowerLossInDisk {
                node,
                operations,
                down_ns,
            }
        }
        6 => {
            let others = (0..nodes).filter(|&other| other != node);
            let pairs = others
                .flat_map(|other| [(node, other), (other, node)])
                .collect();
            Action::Cut { pairs, for_ns }
        }
        7 => {
            let mut pairs = vec![(node, other)];
            if random.below(2) == 0 {
                pairs.push((other, node));
            }
            Action::Cut { pairs, for_ns }
        }
        8 => Action::ResetStreams { one: node, other },
        _ => Action::Pause { node, for_ns },
    }
}

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
