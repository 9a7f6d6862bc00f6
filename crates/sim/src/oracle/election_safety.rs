//! **Election safety: in each of Raft's terms at most one node leads.** (Ongaro, *Consensus: Bridging
//! Theory and Practice*, figure 3.2.)
//!
//! It rests on votes that are durable before they are given. So does the second sentence watched here:
//! **a node's term never goes back over its restarts**, for a term that it forgot is one in which it may
//! vote again. A directory that was lost is another node; an old copy in its place is not asked.

use std::collections::BTreeMap;

use mds_cluster::{ClusterView, RaftRole};
use mds_types::NodeId;

use super::Broken;

const ONE_LEADER: &str = "a term has at most one leader";
const TERM_KEPT: &str = "a node's term never goes back";

/// Who leads in which term, and which term each node has come to.
#[derive(Default)]
pub(super) struct ElectionSafety {
    leaders: BTreeMap<u64, NodeId>,
    terms: BTreeMap<NodeId, u64>,
}

impl ElectionSafety {
    /// What a node shows.
    pub(super) fn shown(&mut self, view: &ClusterView, is_copy: bool) -> Option<Broken> {
        let (me, is) = (view.me, view.raft.term);
        if view.raft.role == RaftRole::None {
            return None;
        }
        let term = self.terms.entry(me).or_insert(is);
        let was = std::mem::replace(term, is.max(*term));
        if is < was && !is_copy {
            let detail = format!("node {me} is in term {is}, after {was}");
            return Some((TERM_KEPT, detail));
        }
        if view.raft.role == RaftRole::Leader {
            let leader = *self.leaders.entry(is).or_insert(me);
            if leader != me {
                let detail = format!("in term {is} both {leader} and {me} lead");
                return Some((ONE_LEADER, detail));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::view;
    use super::*;

    fn in_term(node: u64, role: RaftRole, term: u64) -> ClusterView {
        let mut view = view(node);
        view.raft.role = role;
        view.raft.term = term;
        view
    }

    #[test]
    fn two_leaders_in_a_term_are_seen() {
        let mut watch = ElectionSafety::default();
        for (node, term) in [(1, 3), (1, 3), (2, 4), (1, 5)] {
            let leads = in_term(node, RaftRole::Leader, term);
            assert_eq!(watch.shown(&leads, false), None);
        }
        let second = watch.shown(&in_term(3, RaftRole::Leader, 4), false);
        assert_eq!(second.map(|broken| broken.0), Some(ONE_LEADER));
    }

    #[test]
    fn a_term_that_goes_back_is_seen_unless_the_directory_is_an_old_copy() {
        let mut watch = ElectionSafety::default();
        assert_eq!(watch.shown(&in_term(1, RaftRole::Follower, 4), false), None);
        assert_eq!(watch.shown(&in_term(1, RaftRole::None, 0), false), None);
        assert_eq!(watch.shown(&in_term(1, RaftRole::Follower, 3), true), None);
        let back = watch.shown(&in_term(1, RaftRole::Follower, 3), false);
        assert_eq!(back.map(|broken| broken.0), Some(TERM_KEPT));
    }
}
