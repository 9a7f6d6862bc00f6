//! Draws schedules of large faults.

use super::{Action, MILLISECOND_NS, SECOND_NS, Schedule, Traffic, combined};
use crate::random::Random;

/// Losing a directory for good, or a copy of it that is started, is drawn in one of so many runs.
const LOSS_ONE_IN: u64 = 3;

/// A node changes its address in one of so many runs. One node at most: who knows none of the others'
/// addresses any more, and is known to none of them, has to be told.
const MOVE_ONE_IN: u64 = 4;

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
    if random.below(MOVE_ONE_IN) == 0 {
        let node = random.index(nodes);
        for _ in 0..random.between(1, 2) {
            let down_ns = random.between(50 * MILLISECOND_NS, 3 * SECOND_NS);
            let at_ns = random.below(lasts_ns);
            schedule.push((at_ns, Action::Move { node, down_ns }));
        }
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

/// The loss of one directory: by itself, or by an old copy in its place; or an old copy beside it.
fn draw_loss(random: &mut Random, nodes: usize, lasts_ns: u64) -> Schedule {
    let node = random.index(nodes);
    let down_ns = random.between(50 * MILLISECOND_NS, 3 * SECOND_NS);
    let at_ns = random.between(lasts_ns / 2, lasts_ns - 1);
    let copy = match random.below(3) {
        0 => return vec![(at_ns, Action::Wipe { node, down_ns })],
        1 => Action::RestoreCopy { node, down_ns },
        _ => Action::StartClone {
            node,
            for_ns: random.between(SECOND_NS, 6 * SECOND_NS),
        },
    };
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
        (at_ns, copy),
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
    match random.below(26) {
        0 | 1 => Action::PowerLoss { node, down_ns },
        2 | 3 => Action::Kill { node, down_ns },
        4..=6 => Action::PowerLossInDisk {
            node,
            operations: random.below(60),
            down_ns,
        },
        7 | 8 => Action::Pause { node, for_ns },
        9..=16 => draw_network(random, node, nodes, for_ns),
        17..=22 => draw_disk(random, node, for_ns, down_ns),
        23 => Action::RetryStorm { for_ns },
        _ => draw_clock(random, node, for_ns),
    }
}

fn draw_network(random: &mut Random, node: usize, nodes: usize, for_ns: u64) -> Action {
    let other = (node + 1 + random.index(nodes - 1)) % nodes;
    match random.below(8) {
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
        6 => Action::SlowConsumer {
            pair: (node, other),
            for_ns,
        },
        _ => Action::ResetStreams { one: node, other },
    }
}

fn draw_disk(random: &mut Random, node: usize, for_ns: u64, down_ns: u64) -> Action {
    match random.below(7) {
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
        4 | 5 => Action::BitRot {
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
