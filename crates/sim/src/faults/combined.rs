//! Faults that come together, because each alone meets a database that is prepared for it: the leader's
//! death at the worst moment, a crash in the recovery from a crash, a disk that fails once and then
//! loses its power, two bad disks at once.

use super::{Action, MILLISECOND_NS, SECOND_NS, Schedule};
use crate::random::Random;

/// One large fault in so many is one of these.
const ONE_IN: u64 = 4;

/// Draws one of them, or none.
pub(super) fn draw(random: &mut Random, nodes: usize, at_ns: u64) -> Option<Schedule> {
    if random.below(ONE_IN) > 0 {
        return None;
    }
    let schedule = match random.below(4) {
        0 => vec![(at_ns, draw_leader_loss(random))],
        1 => draw_flaps(random, nodes, at_ns),
        2 => draw_dying_disk(random, nodes, at_ns),
        _ => draw_bad_batch(random, nodes, at_ns),
    };
    Some(schedule)
}

/// The leader is back before the others look for another one, or after.
fn draw_leader_loss(random: &mut Random) -> Action {
    let down_ns_max = match random.below(2) {
        0 => 300 * MILLISECOND_NS,
        _ => 3 * SECOND_NS,
    };
    let down_ns = random.between(10 * MILLISECOND_NS, down_ns_max);
    Action::LeaderLoss { down_ns }
}

/// Power that comes and goes: it fails again when the node has only just started, or not even that, or when it
/// has just begun to serve, so that a recovery meets what the one before it has left.
fn draw_flaps(random: &mut Random, nodes: usize, from_ns: u64) -> Schedule {
    let node = random.index(nodes);
    let mut at_ns = from_ns;
    let flaps = 0..random.between(3, 6);
    flaps
        .map(|_| {
            at_ns += random.between(10 * MILLISECOND_NS, 600 * MILLISECOND_NS);
            let down_ns = random.between(5 * MILLISECOND_NS, 50 * MILLISECOND_NS);
            let action = match random.below(4) {
                0 => Action::Kill { node, down_ns },
                _ => Action::PowerLossInDisk {
                    node,
                    operations: random.below(20),
                    down_ns,
                },
            };
            (at_ns, action)
        })
        .collect()
}

/// A disk fails once, and the power a little later, and again. After a failed sync: what the start in between read back,
/// or whoever tried the sync once more, was never on the disk. After an append that failed half-way: what was
/// written behind the torn end has to be found.
fn draw_dying_disk(random: &mut Random, nodes: usize, at_ns: u64) -> Schedule {
    let node = random.index(nodes);
    let soon = random.below(10);
    let down_ns = random.between(5 * MILLISECOND_NS, 50 * MILLISECOND_NS);
    let failure = match random.below(2) {
        0 => Action::SyncError {
            node,
            syncs: soon,
            down_ns,
        },
        _ => Action::WriteError {
            node,
            appends: soon,
            down_ns,
        },
    };
    let mut schedule = vec![(at_ns, failure)];
    let mut later_ns = at_ns;
    for _ in 0..random.between(1, 4) {
        later_ns += random.between(150 * MILLISECOND_NS, 700 * MILLISECOND_NS);
        schedule.push((later_ns, Action::PowerLoss { node, down_ns }));
    }
    schedule
}

/// Two disks cannot be read at the same time: a quorum of the replicas does not know what it holds.
fn draw_bad_batch(random: &mut Random, nodes: usize, at_ns: u64) -> Schedule {
    let first = random.index(nodes);
    let for_ns = random.between(100 * MILLISECOND_NS, 2 * SECOND_NS);
    let two = [first, (first + 1 + random.index(nodes - 1)) % nodes];
    two.map(|node| (at_ns, Action::ReadError { node, for_ns }))
        .to_vec()
}
