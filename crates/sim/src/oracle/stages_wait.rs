//! **A stage of a ring change is left only when every member that is waited for has promised, in its own ledger, that its
//! requests of earlier stages are over.**
//!
//! The agreed rings say from which version on senders are served (`accepted_from`): requests of older ones are over
//! everywhere. Whether that is so is looked up in the ledgers of the members, not in what Raft was told of them.

use std::collections::{BTreeMap, BTreeSet};

use mds_cluster::ClusterView;
use mds_types::{NodeId, TopologyVersion};

use super::Broken;

const INVARIANT: &str = "a stage waits for every member";

/// What members have promised, and what the rings rely on.
#[derive(Default)]
pub(super) struct StagesWait {
    promised: BTreeMap<NodeId, TopologyVersion>,
    accepted_from: TopologyVersion,
    applied: u64,
    members: BTreeSet<NodeId>,
    excluded: BTreeSet<NodeId>,
}

impl StagesWait {
    /// A node's ledger has this version acknowledged.
    pub(super) fn promised(&mut self, node: NodeId, acked: TopologyVersion) {
        let known = self.promised.entry(node).or_default();
        *known = acked.max(*known);
    }

    /// What a node shows.
    pub(super) fn shown(&mut self, view: &ClusterView) -> Option<Broken> {
        if view.raft.applied <= self.applied {
            return None;
        }
        self.applied = view.raft.applied;
        let members = view.members.keys().copied().collect();
        // Who has come or gone with this very step is not waited for.
        let before = std::mem::replace(&mut self.members, members);
        let excluded = std::mem::replace(&mut self.excluded, view.rings.excluded.clone());
        let from = view.rings.accepted_from;
        if from <= self.accepted_from {
            return None;
        }
        self.accepted_from = from;
        let waited_for = self.members.intersection(&before);
        let mut waited_for =
            waited_for.filter(|node| !excluded.contains(node) && !self.excluded.contains(node));
        let promised = |node: &NodeId| self.promised.get(node).copied().unwrap_or_default();
        let node = waited_for.find(|node| promised(node) < from)?;
        let detail = format!(
            "versions before {from} of the rings are said to be over, and {node} has acknowledged version {} only",
            promised(node)
        );
        Some((INVARIANT, detail))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mds_types::Rings;

    use super::super::tests_support::{member, view};
    use super::*;

    fn at(applied: u64, accepted_from: u64, excluded: &[u64]) -> ClusterView {
        let mut view = view(1);
        view.raft.applied = applied;
        view.members = [1, 2].map(|node| (NodeId(node), member())).into();
        view.rings = Arc::new(Rings {
            accepted_from: TopologyVersion(accepted_from),
            excluded: excluded.iter().map(|node| NodeId(*node)).collect(),
            ..Rings::default()
        });
        view
    }

    #[test]
    fn a_stage_that_does_not_wait_is_seen() {
        let mut watch = StagesWait::default();
        assert_eq!(watch.shown(&at(1, 0, &[])), None);
        watch.promised(NodeId(1), TopologyVersion(3));
        watch.promised(NodeId(2), TopologyVersion(2));
        assert_eq!(watch.shown(&at(2, 2, &[])), None);
        assert!(watch.shown(&at(3, 3, &[])).is_some());
        assert_eq!(watch.shown(&at(3, 9, &[])), None, "nothing new");
        assert_eq!(watch.shown(&at(4, 3, &[2])), None);
        watch.promised(NodeId(1), TopologyVersion(4));
        assert_eq!(watch.shown(&at(5, 4, &[])), None, "it was excluded");
    }
}
