//! What a batch of runs has to have been through to count: a fault that never happened has tested
//! nothing, and a state that was never reached was not examined.

use crate::faults::Counts;
use crate::run::Report;

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
const RING_STATES: [&str; 8] = [
    "ring changed",
    "stage passed",
    "node joined",
    "node left",
    "node replaced",
    "n changed",
    "partition streamed",
    "change aborted",
];

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

    /// What should have been reached and never was. `is_steady`: the ring did not change in any run.
    pub fn missing(&self, is_steady: bool) -> Vec<&'static str> {
        let faults = FAULTS.map(|name| (name, &self.faults));
        let states = STATES.map(|name| (name, &self.reached));
        let rings = RING_STATES.map(|name| (name, &self.reached));
        let rings = rings.into_iter().filter(|_| !is_steady);
        let all = faults.into_iter().chain(states).chain(rings);
        all.filter(|(name, counts)| counts.0.get(name).copied().unwrap_or(0) == 0)
            .map(|(name, _)| name)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_happened_is_missing() {
        let mut coverage = Coverage::default();
        let steady = FAULTS.len() + STATES.len();
        assert_eq!(coverage.missing(true).len(), steady);
        assert_eq!(coverage.missing(false).len(), steady + RING_STATES.len());
        coverage.faults.add("disk full", 3);
        coverage.reached.add("leader elected", 0);
        let missing = coverage.missing(true);
        assert!(!missing.contains(&"disk full"));
        assert!(
            missing.contains(&"leader elected"),
            "counted, never reached"
        );
    }
}
