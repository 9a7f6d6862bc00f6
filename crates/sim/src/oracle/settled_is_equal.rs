//! **Verified means equal: when a replica settles an epoch, no other replica of the partition has
//! anything of that epoch or an earlier one that it lacks, or lacks anything of them that it has.**
//!
//! Lacking means: neither the record nor something newer is there, nor was it dead and has been collected.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mds_types::{Epoch, PartitionId, Record};

use super::Broken;

const INVARIANT: &str = "what is settled is equal on all replicas";

/// What one replica holds of a partition.
pub(crate) struct Held {
    pub(crate) node: usize,
    pub(crate) records: Vec<Record>,
    /// How far it has settled.
    pub(crate) settled: Epoch,
}

/// `first` has just settled the partition up to `epoch`; `is_dead` says whether a record may be collected.
pub(crate) fn check(
    partition: PartitionId,
    epoch: Epoch,
    first: &Held,
    others: &[Held],
    is_dead: impl Fn(&Record) -> bool,
) -> Option<Broken> {
    let by_key = |held: &Held| -> BTreeMap<Bytes, Record> {
        let records = held.records.iter().cloned();
        records.map(|record| (record.key.clone(), record)).collect()
    };
    let mine = by_key(first);
    for other in others {
        let theirs = by_key(other);
        let keys: BTreeSet<&Bytes> = mine.keys().chain(theirs.keys()).collect();
        for key in keys {
            let (one, two) = (mine.get(key), theirs.get(key));
            let lacks = lacks(one, two, epoch, other.settled, &is_dead)
                || lacks(two, one, epoch, first.settled, &is_dead);
            if lacks {
                let stamp = |record: &Record| (record.version, record.epoch);
                let (a, b) = (first.node + 1, other.node + 1);
                let detail = format!(
                    "node {a} has settled epoch {epoch} of partition {partition}, and holds {key:?} at {:?}; \
                     node {b} holds {:?}",
                    one.map(stamp),
                    two.map(stamp)
                );
                return Some((INVARIANT, detail));
            }
        }
    }
    None
}

/// Whether `there` lacks what is held here of the settled epochs.
fn lacks(
    here: Option<&Record>,
    there: Option<&Record>,
    epoch: Epoch,
    settled_there: Epoch,
    is_dead: impl Fn(&Record) -> bool,
) -> bool {
    let Some(here) = here.filter(|record| record.epoch <= epoch) else {
        return false;
    };
    match there {
        Some(there) => there.version < here.version,
        None => !(is_dead(here) && settled_there >= here.epoch),
    }
}

#[cfg(test)]
mod tests {
    use mds_types::Body;

    use super::super::tests_support::record;
    use super::*;

    #[test]
    fn whoever_lacks_something_is_seen() {
        let held = |node, records: &[Record], settled| Held {
            node,
            records: records.to_vec(),
            settled: Epoch(settled),
        };
        let dead = Record {
            body: Body::Tombstone,
            ..record(1, 5)
        };
        let later = Record {
            epoch: Epoch(9),
            ..record(1, 7)
        };
        let broken = |one: &[Record], two: &[Record], settled| {
            let is_dead = |record: &Record| record.value().is_none();
            let (one, two) = (held(0, one, 1), held(1, two, settled));
            check(PartitionId(0), Epoch(1), &one, &[two], is_dead).is_some()
        };
        assert!(!broken(&[record(1, 5)], &[record(1, 5)], 0));
        assert!(broken(&[record(1, 5)], &[record(1, 4)], 0));
        assert!(broken(&[record(1, 4)], &[record(1, 5)], 0));
        assert!(broken(&[record(1, 5)], &[], 1), "alive");
        assert!(broken(&[], &[record(1, 5)], 1));
        assert!(!broken(std::slice::from_ref(&dead), &[], 1), "collected");
        assert!(
            broken(std::slice::from_ref(&dead), &[], 0),
            "it cannot have been collected"
        );
        assert!(!broken(&[], &[dead], 0));
        assert!(
            !broken(&[record(1, 5)], std::slice::from_ref(&later), 0),
            "superseded"
        );
        assert!(!broken(&[later], &[], 0), "of a later epoch");
    }
}
