//! What a batch of runs has to have been through to count: a fault that never happened has tested
//! nothing, and a state that was never reached was not examined.

use crate::faults::Counts;
use crate::rings::RingConfig;
use crate::run::{Report, Settings};

/// Faults that every batch of [`SEEDS_MIN`] seeds has.
const FAULTS: [&str; 56] = [
    "address changed",
    "bit rot",
    "bit rot cut off",
    "bit rot in Raft's log",
    "bit rot in a run file",
    "bit rot in a state file",
    "bit rot in hints",
    "bit rot in hints survived",
    "bit rot in the data log",
    "bit rot refused",
    "bit rot without harm",
    "bridge left",
    "clock frozen",
    "clock jumped ahead",
    "clock jumped back",
    "clone refused",
    "clone started",
    "data cut, gossip flows",
    "directory wiped",
    "disk full",
    "gossip cut, data flows",
    "hot key",
    "huge value",
    "late packet",
    "leader's power lost before its sync",
    "network swizzled",
    "node cut off",
    "node stopped by its disk",
    "old copy restored",
    "one-way cut",
    "packet cut off",
    "packet doubled",
    "packet lost",
    "power lost",
    "power lost inside the disk",
    "power lost while starting",
    "process killed",
    "process paused",
    "read error",
    "record lost under the hood",
    "restored copy refused",
    "retry storm",
    "slow consumer",
    "slow disk",
    "slow link",
    "slow sync",
    "start refused by the disk",
    "stream reset",
    "stream reset in the middle",
    "stream sent again after a silence",
    "sync error planned",
    "very late packet",
    "wiped node waits",
    "write error planned",
    "write repeated as another",
    "power lost during birth",
];

/// States of the nodes that every such batch reaches.
const STATES: [&str; 31] = [
    "all that was closed is settled",
    "leader elected",
    "epoch closed",
    "epoch learnt",
    "epoch settled",
    "tombstone collected",
    "read hedged",
    "read found a difference",
    "record repaired",
    "hint stored",
    "hint delivered",
    "request refused by a replica",
    "record superseded",
    "segment flushed",
    "write refused for want of room",
    "token refused by a wrong clock",
    "more nodes than replicas",
    "write ended unknown",
    "writer waited for a full socket",
    "value expires within the run",
    "page read",
    "partition walked through",
    "partition counted",
    "history of registers",
    "history linearizable",
    "history not linearizable",
    "key written no more",
    "scrub ended",
    "settled page compared",
    "settled record rebuilt",
    "lost record restored",
];

/// States that every such batch reaches in which the ring changes.
const RING_STATES: [&str; 7] = [
    "ring changed",
    "stage passed",
    "node joined",
    "node left",
    "n changed",
    "partition streamed",
    "change aborted",
];

/// States that every such batch reaches in which the leader may look after the ring by itself.
const AUTO_STATES: [&str; 4] = [
    "leader looks after the ring",
    "node joined by itself",
    "node removed for being away",
    "node replaced by itself",
];

/// States that every such batch reaches in which an administrator may have to.
const OPERATOR_STATES: [&str; 1] = ["node replaced"];

/// Batches of fewer seeds are not asked for all of it.
pub const SEEDS_MIN: u64 = 200;

/// What a batch has been through, all runs together.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// Faults that happened.
    pub faults: Counts,
    /// What the nodes came to do.
    pub reached: Counts,
}

impl Coverage {
    /// Adds a run.
    pub fn add(&mut self, report: &Report) {
        for (all, one) in [
            (&mut self.faults, &report.faults),
            (&mut self.reached, &report.reached),
        ] {
            for (name, times) in &one.0 {
                all.add(name, *times);
            }
        }
    }

    /// What should have been reached and never was, by runs of these settings.
    pub fn missing(&self, settings: &Settings) -> Vec<&'static str> {
        let is_steady = settings.rings == Some(RingConfig::none());
        let (may_be_auto, may_be_operator) = match settings.is_auto {
            _ if is_steady => (false, false),
            None => (true, true),
            Some(is_auto) => (is_auto, !is_auto),
        };
        let wanted: [(&[&'static str], &Counts, bool); 5] = [
            (&FAULTS, &self.faults, true),
            (&STATES, &self.reached, true),
            (&RING_STATES, &self.reached, !is_steady),
            (&AUTO_STATES, &self.reached, may_be_auto),
            (&OPERATOR_STATES, &self.reached, may_be_operator),
        ];
        let wanted = wanted
            .into_iter()
            .filter(|(_, _, is_asked_for)| *is_asked_for);
        wanted
            .flat_map(|(names, counts, _)| {
                let never = |name: &&'static str| counts.0.get(*name).copied().unwrap_or(0) == 0;
                names.iter().copied().filter(never)
            })
            .collect()
    }
}
