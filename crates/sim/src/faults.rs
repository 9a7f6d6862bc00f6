//! What may go wrong in a run: rates of small faults, and a schedule of large ones.
//!
//! Small faults (a lost datagram, a late message) are drawn by the network as they come, at the
//! rates of a [`FaultConfig`]. Large ones (a power loss, a partition) stand in a schedule, a plain
//! list of times and [`Action`]s: drawn from the seed, or written by hand. Every fault that really
//! happened is counted under its name, so that a run can say what it has been through.

mod combined;

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
    /// The node is killed, and a byte of one of its small state files has changed when it is started
    /// again. It must refuse to start and name the file. Then the byte is put right.
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

/// Losing a directory for good is drawn in one of so many runs.
const LOSS_ONE_IN: u64 = 4;

/// A clock that jumps ahead stays this close to time, microseconds: nodes refuse tokens 2.5 s ahead
/// of them, other clocks are wrong besides, and marks lead.
const JUMP_AHEAD_US_MAX: u64 = 1_000_000;

/// A clock may go back by as much as it likes, microseconds: a day.
const JUMP_BACK_US_MAX: u64 = 86_400_000_000;

/// Draws a schedule that lasts this long.
pub fn draw_schedule(random: &mut Random, nodes: usize, lasts_ns: u64) -> Schedule {
    let mut schedule = Schedule::new();
    let mut at_ns = 0;
    loop {
        at_ns += random.between(200 * MILLISECOND_NS, 2_500 * MILLISECOND_NS);
        if at_ns >= lasts_ns {
            break;
        }
        if let Some(combined) = combined::draw(random, nodes, at_ns) {
            schedule.extend(combined);
        } else if random.below(12) == 0 {
            schedule.extend(draw_swizzle(random, nodes, at_ns));
        } else {
            schedule.push((at_ns, draw_action(random, nodes)));
        }
    }
    // One disk at most: with two lost, writes acknowledged with W = 2 may be gone, and rightly.
    if random.below(LOSS_ONE_IN) == 0 {
        schedule.extend(draw_loss(random, nodes, lasts_ns));
    }
    schedule.sort_by_key(|&(at_ns, _)| at_ns);
    schedule
}

/// FoundationDB's *swizzle-clog*: some nodes are cut off one after another, and come back in another
/// order.
fn draw_swizzle(random: &mut Random, nodes: usize, from_ns: u64) -> Schedule {
    let mut at_ns = from_ns;
    let first = random.index(nodes);
    let count = random.between(2, nodes as u64) as usize;
    let swizzled = (0..count).map(|index| (first + index) % nodes);
    swizzled
        .map(|node| {
            at_ns += random.between(10 * MILLISECOND_NS, 300 * MILLISECOND_NS);
            let for_ns = random.between(300 * MILLISECOND_NS, 3 * SECOND_NS);
            let pairs = around(node, nodes);
            (
                at_ns,
                cut("network swizzled", Traffic::Everything, pairs, for_ns),
            )
        })
        .collect()
}

/// The loss of one directory: by itself, or by an old copy in its place.
fn draw_loss(random: &mut Random, nodes: usize, lasts_ns: u64) -> Schedule {
    let node = random.index(nodes);
    let down_ns = random.between(50 * MILLISECOND_NS, 3 * SECOND_NS);
    let at_ns = random.between(lasts_ns / 2, lasts_ns - 1);
    if random.below(2) == 0 {
        return vec![(at_ns, Action::Wipe { node, down_ns })];
    }
    // It has to start and be known to have started between the two.
    let down = 50 * MILLISECOND_NS;
    vec![
        (lasts_ns / 8, Action::CopyDirectory { node }),
        (
            lasts_ns / 4,
            Action::Kill {
                node,
                down_ns: down,
            },
        ),
        (at_ns, Action::RestoreCopy { node, down_ns }),
    ]
}

fn cut(name: &'static str, traffic: Traffic, pairs: Vec<(usize, usize)>, for_ns: u64) -> Action {
    Action::Cut {
        name,
        traffic,
        pairs,
        for_ns,
    }
}

/// All links of a node, both ways.
fn around(node: usize, nodes: usize) -> Vec<(usize, usize)> {
    let others = (0..nodes).filter(|&other| other != node);
    others
        .flat_map(|other| [(node, other), (other, node)])
        .collect()
}

fn draw_action(random: &mut Random, nodes: usize) -> Action {
    let node = random.index(nodes);
    let down_ns = random.between(50 * MILLISECOND_NS, 3 * SECOND_NS);
    let for_ns = random.between(100 * MILLISECOND_NS, 4 * SECOND_NS);
    match random.below(24) {
        0 | 1 => Action::PowerLoss { node, down_ns },
        2 | 3 => Action::Kill { node, down_ns },
        4..=6 => Action::PowerLossInDisk {
            node,
            operations: random.below(60),
            down_ns,
        },
        7 | 8 => Action::Pause { node, for_ns },
        9..=15 => draw_network(random, node, nodes, for_ns),
        16..=20 => draw_disk(random, node, for_ns, down_ns),
        21 => Action::RetryStorm { for_ns },
        _ => draw_clock(random, node, for_ns),
    }
}

fn draw_network(random: &mut Random, node: usize, nodes: usize, for_ns: u64) -> Action {
    let other = (node + 1 + random.index(nodes - 1)) % nodes;
    match random.below(7) {
        0 => {
            let pairs = around(node, nodes);
            cut("node cut off", Traffic::Everything, pairs, for_ns)
        }
        1 => cut(
            "one-way cut",
            Traffic::Everything,
            vec![(node, other)],
            for_ns,
        ),
        // Both still reach all others: a bridge, reachability is not transitive.
        2 => {
            let pairs = vec![(node, other), (other, node)];
            cut("bridge left", Traffic::Everything, pairs, for_ns)
        }
        3 => {
            let pairs = around(node, nodes);
            cut("gossip cut, data flows", Traffic::Gossip, pairs, for_ns)
        }
        4 => {
            let pairs = around(node, nodes);
            cut("data cut, gossip flows", Traffic::Data, pairs, for_ns)
        }
        5 => Action::SlowLink {
            pair: (node, other),
            by_ns: random.between(20 * MILLISECOND_NS, 800 * MILLISECOND_NS),
            for_ns,
        },
        _ => Action::ResetStreams { one: node, other },
    }
}

fn draw_disk(random: &mut Random, node: usize, for_ns: u64, down_ns: u64) -> Action {
    match random.below(6) {
        0 => Action::DiskFull {
            node,
            room_bytes: random.below(20_000),
            for_ns,
        },
        1 => Action::SyncError {
            node,
            syncs: random.below(20),
            down_ns,
        },
        2 => Action::WriteError {
            node,
            appends: random.below(30),
            down_ns,
        },
        3 => Action::ReadError { node, for_ns },
        4 => Action::BitRot {
            node,
            draw: random.bits(),
            down_ns,
        },
        _ => Action::SlowDisk {
            node,
            by_ns: random.between(20 * MILLISECOND_NS, 500 * MILLISECOND_NS),
            for_ns,
        },
    }
}

fn draw_clock(random: &mut Random, node: usize, for_ns: u64) -> Action {
    match random.below(3) {
        0 => Action::ClockFreeze { node, for_ns },
        1 => Action::ClockJump {
            node,
            by_us: random.below(JUMP_AHEAD_US_MAX) as i64,
            for_ns,
        },
        _ => {
            // As often by milliseconds as by hours.
            let most_us = JUMP_BACK_US_MAX >> random.below(25);
            Action::ClockJump {
                node,
                by_us: -(random.below(most_us) as i64),
                for_ns,
            }
        }
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
