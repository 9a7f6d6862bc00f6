//! **Closed epochs are settled within a bound, when all replicas of the ring are there and none of them has lost its
//! disk.**
//!
//! Safety alone would be content with replicas that compare themselves for ever. If one of them holds a row that
//! another cannot come to have, as when superseded versions leave no rows (trap T13), nothing is ever settled
//! again, nothing collected, and no index dropped.

use mds_types::{Epoch, PartitionId};

/// The sentence.
pub(crate) const INVARIANT: &str = "closed epochs are settled in time";

/// How far a replica has settled a partition.
pub(crate) type Settled = (usize, PartitionId, Epoch);

/// The first replica that has not settled a partition up to `goal`, in words.
pub(crate) fn behind(goal: Epoch, replicas: impl IntoIterator<Item = Settled>) -> Option<String> {
    let mut replicas = replicas.into_iter();
    let (node, partition, settled) = replicas.find(|(_, _, settled)| *settled < goal)?;
    Some(format!(
        "node {} has settled partition {partition} up to epoch {settled}; epoch {goal} was closed everywhere long ago",
        node + 1
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_stays_behind_is_seen() {
        let replicas = [(0, PartitionId(0), Epoch(5)), (1, PartitionId(0), Epoch(4))];
        assert_eq!(behind(Epoch(4), replicas), None);
        assert!(behind(Epoch(5), replicas).unwrap().contains("node 2"));
    }
}
