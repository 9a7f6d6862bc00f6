//! **State machine safety: if a node has applied an entry of Raft's log at an index, no node ever applies
//! another there, over all nodes and all their starts.** (Ongaro, *Consensus: Bridging Theory and
//! Practice*, figure 3.2.)
//!
//! Nodes show how far they have applied, and the hash chain over all of it (`Chain`). So not every index
//! has to be seen: a node that parted from the others shows another chain at every index from there on.
//! It also covers what was taken back: an entry that one node has shown as applied, that all then lose,
//! and that another takes the place of.

use std::collections::BTreeMap;

use mds_cluster::{Chain, ClusterView};

use super::Broken;

const INVARIANT: &str = "nodes apply the same entries of Raft's log";

/// The chain at each index, as it was shown first, and by whom.
#[derive(Default)]
pub(super) struct StateMachineSafety {
    applied: BTreeMap<u64, (Chain, usize)>,
}

impl StateMachineSafety {
    /// What a node shows.
    pub(super) fn shown(&mut self, node: usize, view: &ClusterView) -> Option<Broken> {
        let (index, chain) = (view.raft.applied, view.raft.chain?);
        let &mut (first, by) = self.applied.entry(index).or_insert((chain, node));
        if first == chain {
            return None;
        }
        let (node, by) = (node + 1, by + 1);
        let detail =
            format!("up to index {index} node {node} has applied {chain}, node {by} {first}");
        Some((INVARIANT, detail))
    }

    /// The greatest index that was ever shown as applied.
    pub(super) fn greatest(&self) -> u64 {
        self.applied.keys().next_back().copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::view;
    use super::*;

    fn applied(node: u64, index: u64, chain: u128) -> ClusterView {
        let mut view = view(node);
        view.raft.applied = index;
        view.raft.chain = Some(Chain(chain));
        view
    }

    #[test]
    fn another_entry_at_the_same_index_is_seen() {
        let mut watch = StateMachineSafety::default();
        assert_eq!(watch.shown(0, &view(1)), None, "nothing is applied yet");
        assert_eq!(watch.shown(0, &applied(1, 4, 40)), None);
        assert_eq!(watch.shown(1, &applied(2, 4, 40)), None);
        assert_eq!(watch.shown(1, &applied(2, 6, 60)), None);
        // Behind, as after a restart, and then somewhere else than before.
        assert_eq!(watch.shown(1, &applied(2, 5, 50)), None);
        assert!(watch.shown(1, &applied(2, 6, 61)).is_some());
        assert!(watch.shown(0, &applied(1, 5, 51)).is_some());
        assert_eq!(watch.greatest(), 6);
    }
}
