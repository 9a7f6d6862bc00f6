//! **What was agreed on is never taken back: with the index of Raft's log the epoch, the version of the ring
//! and every member's start number only grow, whichever node shows them; and while a node runs, what it
//! has applied only grows.**
//!
//! What is agreed on is a function of the index. So a node that is behind, as each is after a restart until
//! it has applied its log again, is compared with what others showed at smaller and at greater indexes,
//! not with what it showed itself before.

use std::collections::BTreeMap;

use mds_cluster::ClusterView;
use mds_types::{Epoch, NodeId, TopologyVersion};

use super::Broken;

const INVARIANT: &str = "what was agreed on is never taken back";

/// What can only grow.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Agreed {
    epoch: Epoch,
    ring: TopologyVersion,
    starts: BTreeMap<NodeId, u64>,
}

impl Agreed {
    fn of(view: &ClusterView) -> Agreed {
        let starts = view.members.iter();
        Agreed {
            epoch: view.epoch,
            ring: view.topology.version,
            starts: starts.map(|(&node, member)| (node, member.boot)).collect(),
        }
    }

    /// Whether this may have come before `later`. A member that was removed is no step back.
    fn may_precede(&self, later: &Agreed) -> bool {
        let is_known_later = |(node, boot): (&NodeId, &u64)| {
            let later = later.starts.get(node);
            later.is_none_or(|later| boot <= later)
        };
        self.epoch <= later.epoch
            && self.ring <= later.ring
            && self.starts.iter().all(is_known_later)
    }
}

/// What was shown at each index, and how far each node has come in its present start.
#[derive(Default)]
pub(super) struct AgreedOnlyGrows {
    shown: BTreeMap<u64, Agreed>,
    applied: BTreeMap<usize, (u64, u64)>,
}

impl AgreedOnlyGrows {
    /// What a node shows, in this start of it.
    pub(super) fn shown(&mut self, node: usize, life: u64, view: &ClusterView) -> Option<Broken> {
        view.raft.chain?;
        let index = view.raft.applied;
        let before = self.applied.insert(node, (life, index));
        if before == Some((life, index)) {
            return None;
        }
        let broken = |detail: String| Some((INVARIANT, format!("node {}: {detail}", node + 1)));
        if let Some((_, was)) = before.filter(|&(lived, was)| lived == life && was > index) {
            return broken(format!("has applied up to {index}, after {was}"));
        }
        let agreed = Agreed::of(view);
        if let Some((at, earlier)) = self.shown.range(..=index).next_back()
            && !earlier.may_precede(&agreed)
        {
            return broken(format!("{agreed:?} at {index}, but {earlier:?} at {at}"));
        }
        if let Some((at, later)) = self.shown.range(index..).next()
            && !agreed.may_precede(later)
        {
            return broken(format!("{agreed:?} at {index}, but {later:?} at {at}"));
        }
        self.shown.insert(index, agreed);
        None
    }
}

#[cfg(test)]
mod tests {
    use mds_cluster::Chain;

    use super::super::tests_support::view;
    use super::*;

    fn at(index: u64, epoch: u64) -> ClusterView {
        let mut view = view(1);
        view.raft.applied = index;
        view.raft.chain = Some(Chain(u128::from(index)));
        view.epoch = Epoch(epoch);
        view
    }

    #[test]
    fn an_epoch_that_goes_back_is_seen_whoever_shows_it() {
        let mut watch = AgreedOnlyGrows::default();
        assert_eq!(watch.shown(0, 1, &at(4, 2)), None);
        assert_eq!(watch.shown(0, 1, &at(9, 5)), None);
        // Started again, and behind: that is no step back.
        assert_eq!(watch.shown(0, 2, &at(3, 2)), None);
        assert!(watch.shown(1, 1, &at(10, 4)).is_some(), "less than at 9");
        assert!(watch.shown(2, 1, &at(8, 6)).is_some(), "more than at 9");
    }

    #[test]
    fn what_a_running_node_has_applied_does_not_go_back() {
        let mut watch = AgreedOnlyGrows::default();
        assert_eq!(watch.shown(0, 1, &at(4, 2)), None);
        assert!(watch.shown(0, 1, &at(3, 2)).is_some());
    }
}
