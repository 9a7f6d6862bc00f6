//! A record vanishes from an engine without a trace, and the scrub has to find it.
//!
//! Reads of a quorum that includes the replica that lost it may answer "absent": below the watermark, absence is
//! information, and no database can know better before it has looked. So the loss comes when the clients rest, after all other faults,
//! and has to be made good before all keys are read again.
//!
//! **What a disk lost is found and brought back**, within a bound of time. And the other way round: **on sound disks a
//! scrub finds nothing** to bring back, to rebuild or to report, whatever else goes on. That is what its proof says.

use bytes::Bytes;
use mds_node::core::ScrubStats;
use mds_storage::engine::Engine;
use mds_storage::keys::ENGINE_KEY_PREFIX_BYTES;
use mds_types::{Kind, Record};

use crate::faults::SECOND_NS;
use crate::node::{Origin, Process};
use crate::world::World;

/// Nodes of the simulator scrub all they hold this often, milliseconds.
pub(crate) const SCRUB_INTERVAL_MS: u64 = 1_500;

/// A loss has to be made good within this, nanoseconds: a pass that has just gone by, and some that meet replicas
/// whose watermarks move.
const FOUND_NS_MAX: u64 = 60 * SECOND_NS;

/// Records that are tried, before none is lost.
const TRIES_MAX: u64 = 64;

const FOUND: &str = "what a disk lost is found and brought back";

const SOUND: &str = "a scrub of sound disks finds nothing";

/// A record that has vanished, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Loss {
    pub(crate) node: usize,
    pub(crate) key: Bytes,
}

/// Loses a record, if there is one that two others hold, and waits until it is there again.
pub(crate) fn lose_and_find(world: &mut World) {
    let Some(loss) = lose(world) else { return };
    let (node, key) = (loss.node, loss.key.clone());
    world.env.counts.count("record lost under the hood");
    world
        .env
        .line(|| format!("the engine of node {} has lost {key:?}", node + 1));
    world.env.lost_record = Some(loss);
    let until_ns = world.env.now_ns + FOUND_NS_MAX;
    let is_found = world.run(until_ns, |world| holds(world, node, &key).is_some());
    world.env.lost_record = None;
    if !world.env.violations.is_empty() {
        return;
    }
    if !is_found {
        let stats = world.machines[node].process.as_ref().map(Process::scrubbed);
        let detail = format!("node {} still lacks {key:?}: {stats:?}", node + 1);
        return world.env.violated(FOUND, detail);
    }
    // The store has it; the node hears of that a little later.
    world.run(world.env.now_ns + SECOND_NS, |_| false);
    let stats = world.machines[node].process.as_ref().map(Process::scrubbed);
    let is_below = stats.is_some_and(|stats| stats.rebuilt > 0);
    world.env.reached.count(match is_below {
        true => "settled record rebuilt",
        false => "lost record restored",
    });
}

fn holds(world: &World, node: usize, key: &[u8]) -> Option<Record> {
    world.machines[node].process.as_ref()?.record(key)
}

fn lose(world: &mut World) -> Option<Loss> {
    let nodes = world.machines.len() as u64;
    for _ in 0..TRIES_MAX {
        let node = world.env.some_ns(0, nodes - 1) as usize;
        let draw = world.env.some_ns(0, u64::MAX - 1);
        let machine = &world.machines[node];
        if machine.origin != Origin::Itself || machine.process.is_none() {
            continue;
        }
        let engine = machine.engine().clone();
        let Ok(page) = engine.scan(&[], &[0xff; 64], usize::MAX, usize::MAX) else {
            continue;
        };
        if page.pairs.is_empty() {
            continue;
        }
        let (place, value) = page.pairs[draw as usize % page.pairs.len()].clone();
        let key = place.slice(ENGINE_KEY_PREFIX_BYTES..);
        if !may_be_lost(world, node, &key) {
            continue;
        }
        let remove = |value| {
            let item = [(place.clone(), value)];
            engine.ingest(&mut item.into_iter()).is_ok()
        };
        if remove(None) && holds(world, node, &key).is_none() {
            return Some(Loss { node, key });
        }
        // A table above the engine has it, or the engine had something older.
        remove(Some(value));
    }
    None
}

/// Whether a record is alive, will be so for long, and all replicas of it run and hold that very one.
fn may_be_lost(world: &World, node: usize, key: &Bytes) -> bool {
    let Some(process) = world.machines[node].process.as_ref() else {
        return false;
    };
    let Some(record) = process.record(key) else {
        return false;
    };
    let is_alive = record.kind() != Kind::Tombstone && record.expires_at_ms.is_none();
    let holders = process.holders(key);
    let mut others = holders.iter().map(|holder| {
        let mut processes = world.processes();
        processes.find(|process| process.node_id() == *holder)
    });
    let is_whole =
        |process: &Process| process.is_whole(key) && process.record(key).as_ref() == Some(&record);
    is_alive && holders.len() >= 3 && others.all(|process| process.is_some_and(is_whole))
}

/// What a node's scrubs have found that they must not have found.
pub(crate) fn check(
    node: usize,
    stats: &ScrubStats,
    is_loss_planted: bool,
) -> Option<(&'static str, String)> {
    let brought_back = stats.restored + stats.rebuilt;
    let found = stats.hashes_rebuilt + stats.unfound + stats.unmatched + stats.damaged;
    let is_sound = found == 0 && brought_back <= u64::from(is_loss_planted);
    (!is_sound).then(|| (SOUND, format!("node {}: {stats:?}", node + 1)))
}
