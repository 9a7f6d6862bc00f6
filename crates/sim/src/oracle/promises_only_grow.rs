//! **What a replica has promised of epochs is never taken back, over crashes too: what it has closed and acknowledged only
//! grows, and so do `collected <= settled` of each partition, until the partition is removed; and two replicas that
//! have settled a partition up to the same epoch have settled the same sets.**
//!
//! The last is what the chain of roots is for: it is a hash over all that was settled.

use std::collections::BTreeMap;

use mds_storage::store::{Ledger, PartitionState};
use mds_types::{Epoch, PartitionId};

use super::Broken;

const INVARIANT: &str = "what a replica has promised of epochs only grows";

const EQUAL_CHAINS: &str = "who has settled the same epochs has settled the same sets";

/// What a replica has promised of one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Marks {
    settled: Epoch,
    collected: Epoch,
    chain: u128,
}

/// What replicas have promised last, and the chains that they have shown.
#[derive(Default)]
pub(super) struct PromisesOnlyGrow {
    closed: BTreeMap<usize, (Epoch, u64)>,
    marks: BTreeMap<(usize, PartitionId), Marks>,
    chains: BTreeMap<(PartitionId, Epoch), (usize, u128)>,
}

impl PromisesOnlyGrow {
    /// What a replica's ledger says.
    pub(super) fn promised(&mut self, node: usize, ledger: &Ledger) -> Option<Broken> {
        let now = (ledger.closed, ledger.acked.0);
        let before = self.closed.insert(node, now).unwrap_or_default();
        if now.0 < before.0 || now.1 < before.1 {
            let detail = format!("node {}: {now:?} after {before:?}", node + 1);
            return Some((INVARIANT, detail));
        }
        let partitions = ledger.partitions();
        let mut broken = partitions.filter_map(|(partition, entry)| {
            let marks = Marks {
                settled: entry.settled,
                collected: entry.collected,
                chain: entry.chain,
            };
            let is_held = entry.state == PartitionState::Held;
            self.shown((node, partition), is_held.then_some(marks))
        });
        broken.next()
    }

    /// What it says of one partition; nothing if the partition is not held.
    fn shown(&mut self, place: (usize, PartitionId), marks: Option<Marks>) -> Option<Broken> {
        let Some(marks) = marks else {
            self.marks.remove(&place);
            return None;
        };
        let before = self.marks.insert(place, marks);
        if before == Some(marks) {
            return None;
        }
        let (node, partition) = place;
        let has_fallen = before.is_some_and(|before| {
            marks.settled < before.settled || marks.collected < before.collected
        });
        if has_fallen || marks.collected > marks.settled {
            let detail = format!(
                "node {}, partition {partition}: {marks:?} after {before:?}",
                node + 1
            );
            return Some((INVARIANT, detail));
        }
        let set = (partition, marks.settled);
        let (by, first) = *self.chains.entry(set).or_insert((node, marks.chain));
        (first != marks.chain).then(|| {
            let detail = format!(
                "epoch {} of partition {partition}: nodes {} and {} have settled different sets up to there",
                marks.settled,
                by + 1,
                node + 1
            );
            (EQUAL_CHAINS, detail)
        })
    }

    /// A replica's disk is lost.
    pub(super) fn forget(&mut self, node: usize) {
        self.closed.remove(&node);
        self.marks.retain(|(at, _), _| *at != node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId(0);

    fn marks(settled: u64, collected: u64, chain: u128) -> Option<Marks> {
        Some(Marks {
            settled: Epoch(settled),
            collected: Epoch(collected),
            chain,
        })
    }

    #[test]
    fn a_promise_that_is_taken_back_is_seen() {
        let mut watch = PromisesOnlyGrow::default();
        let mut ledger = Ledger::new(1);
        ledger.closed = Epoch(4);
        assert_eq!(watch.promised(0, &ledger), None);
        ledger.closed = Epoch(3);
        assert_eq!(watch.promised(1, &ledger), None, "another replica");
        assert!(watch.promised(0, &ledger).is_some());
        assert_eq!(watch.shown((0, P), marks(4, 2, 7)), None);
        assert!(watch.shown((0, P), marks(3, 2, 6)).is_some());
        assert!(watch.shown((0, P), marks(5, 6, 8)).is_some());
        assert_eq!(watch.shown((0, P), None), None, "it is removed");
        assert_eq!(watch.shown((0, P), marks(1, 1, 1)), None);
        watch.forget(0);
        assert_eq!(watch.shown((0, P), marks(0, 0, 0)), None);
    }

    #[test]
    fn replicas_that_settled_different_sets_are_seen() {
        let mut watch = PromisesOnlyGrow::default();
        assert_eq!(watch.shown((0, P), marks(4, 2, 7)), None);
        assert_eq!(watch.shown((1, P), marks(3, 2, 6)), None);
        assert_eq!(watch.shown((1, P), marks(4, 2, 7)), None);
        assert!(watch.shown((2, P), marks(4, 2, 8)).is_some());
    }
}
