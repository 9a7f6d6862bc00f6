//! What a Raft leader sees to, one thing at a time. Pure decisions.

use std::collections::{BTreeMap, BTreeSet};

use mds_types::limits::VOTERS_MAX;
use mds_types::{Epoch, NodeId};

use crate::gossip::Peer;
use crate::state::{ClusterState, NewMember};
use crate::wire::BirthPlan;

/// What the leader does next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Duty {
    /// Have the birth of the cluster agreed on.
    Born(Box<BirthPlan>),
    /// Have a node agreed on as a member that waits.
    AddMember(NewMember),
    /// Send Raft's log to these members.
    AddLearners(BTreeSet<NodeId>),
    /// Give these learners a vote.
    Promote(BTreeSet<NodeId>),
    /// Raise the epoch.
    AdvanceEpoch(Epoch),
}

/// What the decision is made of.
pub(super) struct Situation<'a> {
    pub(super) state: &'a ClusterState,
    pub(super) plan: Option<&'a BirthPlan>,
    pub(super) voters: &'a BTreeSet<NodeId>,
    pub(super) learners: &'a BTreeSet<NodeId>,
    /// Learners whose log is nearly complete.
    pub(super) caught_up: &'a BTreeSet<NodeId>,
    pub(super) peers: &'a BTreeMap<NodeId, Peer>,
    pub(super) auto_add_members: bool,
    pub(super) epoch_due: bool,
}

/// The most urgent duty, if there is any.
pub(super) fn next(situation: &Situation<'_>) -> Option<Duty> {
    let state = situation.state;
    if state.cluster.is_none() {
        return situation
            .plan
            .map(|plan| Duty::Born(Box::new(plan.clone())));
    }
    if situation.epoch_due {
        return Some(Duty::AdvanceEpoch(Epoch(state.epoch.0 + 1)));
    }
    let strangers: BTreeSet<NodeId> = state
        .members
        .keys()
        .filter(|node| !situation.voters.contains(node) && !situation.learners.contains(node))
        .copied()
        .collect();
    if !strangers.is_empty() {
        return Some(Duty::AddLearners(strangers));
    }
    if let Some(promoted) = promotion(situation) {
        return Some(Duty::Promote(promoted));
    }
    if !situation.auto_add_members {
        return None;
    }
    let joiner = situation.peers.iter().find(|(node, peer)| {
        peer.alive && peer.id.cluster == state.cluster && !state.members.contains_key(node)
    });
    joiner.map(|(_, peer)| {
        let info = (*peer.id.info).clone();
        Duty::AddMember(NewMember {
            incarnation: peer.id.incarnation,
            info,
        })
    })
}

/// Voters that a cluster of this many members has: odd, for an even one more adds a way to lose the
/// quorum and none to keep it.
pub(super) fn voters_wanted(members: usize) -> usize {
    match members.min(VOTERS_MAX) {
        0 => 0,
        n if n % 2 == 0 => n - 1,
        n => n,
    }
}

/// The learners to give a vote: as many as lead to the next odd number, if there are as many that
/// are alive and have the log. Nobody's vote is taken: who is dead may come back with it.
fn promotion(situation: &Situation<'_>) -> Option<BTreeSet<NodeId>> {
    let state = situation.state;
    let have = situation.voters.len();
    if have >= voters_wanted(state.members.len()) {
        return None;
    }
    let missing = if have.is_multiple_of(2) { 1 } else { 2 };
    let zone = |node: &NodeId| {
        state
            .members
            .get(node)
            .map_or("", |member| &member.info.zone)
    };
    let candidates: Vec<(NodeId, &str)> = situation
        .caught_up
        .iter()
        .filter(|node| situation.learners.contains(node) && state.members.contains_key(node))
        .filter(|node| situation.peers.get(node).is_some_and(|peer| peer.alive))
        .map(|node| (*node, zone(node)))
        .collect();
    if candidates.len() < missing {
        return None;
    }
    let zones: Vec<&str> = situation.voters.iter().map(zone).collect();
    Some(
        choose_voters(&zones, &candidates, missing)
            .into_iter()
            .collect(),
    )
}

/// `count` of the candidates, so that zones share the voters as evenly as can be; among equals
/// the smallest ids. `taken` are the zones of the voters there are.
pub(super) fn choose_voters(
    taken: &[&str],
    candidates: &[(NodeId, &str)],
    count: usize,
) -> Vec<NodeId> {
    let mut in_zone: BTreeMap<&str, usize> = BTreeMap::new();
    for zone in taken {
        *in_zone.entry(zone).or_default() += 1;
    }
    let mut rest = candidates.to_vec();
    let mut chosen = Vec::new();
    while chosen.len() < count {
        let best = rest
            .iter()
            .enumerate()
            .min_by_key(|(_, (node, zone))| (in_zone.get(zone).copied().unwrap_or(0), *node));
        let Some((index, _)) = best else { break };
        let (node, zone) = rest.swap_remove(index);
        *in_zone.entry(zone).or_default() += 1;
        chosen.push(node);
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mds_types::{ClusterConfig, ClusterId, IncarnationId, MemberInfo};

    use super::*;
    use crate::gossip::Id;
    use crate::state::{Command, Response};

    const OURS: ClusterId = ClusterId(7);

    struct World {
        state: ClusterState,
        voters: BTreeSet<NodeId>,
        learners: BTreeSet<NodeId>,
        caught_up: BTreeSet<NodeId>,
        peers: BTreeMap<NodeId, Peer>,
        epoch_due: bool,
    }

    fn nodes(ids: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
        ids.into_iter().map(NodeId).collect()
    }

    fn new_member(node: u64) -> NewMember {
        NewMember {
            incarnation: IncarnationId(u128::from(node)),
            info: MemberInfo::default(),
        }
    }

    fn world(members: u64, voters: u64) -> World {
        let mut state = ClusterState::default();
        let born = Command::Born {
            cluster: OURS,
            config: ClusterConfig::default(),
            members: (1..=members).map(new_member).collect(),
        };
        assert_eq!(state.apply(&born), Response::Done);
        World {
            state,
            voters: nodes(1..=voters),
            learners: nodes(voters + 1..=members),
            caught_up: nodes(voters + 1..=members),
            peers: (1..=members)
                .map(|node| (NodeId(node), peer(node, OURS, true)))
                .collect(),
            epoch_due: false,
        }
    }

    fn peer(node: u64, cluster: ClusterId, alive: bool) -> Peer {
        let id = Id {
            incarnation: IncarnationId(u128::from(node)),
            boot: 1,
            generation: 0,
            cluster,
            info: Arc::default(),
        };
        Peer { id, alive }
    }

    fn decide(world: &World, auto_add_members: bool) -> Option<Duty> {
        next(&Situation {
            state: &world.state,
            plan: None,
            voters: &world.voters,
            learners: &world.learners,
            caught_up: &world.caught_up,
            peers: &world.peers,
            auto_add_members,
            epoch_due: world.epoch_due,
        })
    }

    #[test]
    fn voters_are_odd_and_at_most_five() {
        let wanted: Vec<usize> = (0..9).map(voters_wanted).collect();
        assert_eq!(wanted, [0, 1, 1, 3, 3, 5, 5, 5, 5]);
    }

    #[test]
    fn voters_spread_over_zones() {
        let candidates: Vec<(NodeId, &str)> =
            [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "c"), (6, "c")]
                .map(|(node, zone)| (NodeId(node), zone))
                .to_vec();
        assert_eq!(choose_voters(&[], &candidates, 3), [1, 4, 5].map(NodeId));
        assert_eq!(
            choose_voters(&[], &candidates, 5),
            [1, 2, 4, 5, 6].map(NodeId)
        );
        assert_eq!(choose_voters(&["b", "c", "c"], &candidates, 1), [NodeId(1)]);
        assert_eq!(choose_voters(&[], &candidates, 9).len(), 6);
    }

    #[test]
    fn two_learners_at_a_time_get_a_vote() {
        assert_eq!(
            decide(&world(2, 1), true),
            None,
            "two voters are worse than one"
        );
        assert_eq!(
            decide(&world(3, 1), true),
            Some(Duty::Promote(nodes([2, 3])))
        );
        assert_eq!(decide(&world(7, 5), true), None);
        let mut dead = world(3, 1);
        dead.peers.insert(NodeId(3), peer(3, OURS, false));
        assert_eq!(decide(&dead, true), None, "a dead learner gets no vote");
        let mut behind = world(3, 1);
        behind.caught_up.remove(&NodeId(2));
        assert_eq!(decide(&behind, true), None, "one without the log neither");
    }

    #[test]
    fn a_joiner_becomes_member_then_learner() {
        let mut world = world(3, 3);
        world
            .peers
            .insert(NodeId(8), peer(8, ClusterId::NONE, true));
        world.peers.insert(NodeId(9), peer(9, OURS, true));
        assert_eq!(decide(&world, false), None);
        assert_eq!(decide(&world, true), Some(Duty::AddMember(new_member(9))));
        let _ = world.state.apply(&Command::AddMember {
            member: new_member(9),
        });
        assert_eq!(decide(&world, false), Some(Duty::AddLearners(nodes([9]))));
        world.learners.insert(NodeId(9));
        assert_eq!(decide(&world, true), None);
    }

    #[test]
    fn the_epoch_waits_for_nobody_but_birth() {
        let mut world = world(3, 1);
        world.epoch_due = true;
        assert_eq!(decide(&world, true), Some(Duty::AdvanceEpoch(Epoch(2))));
        world.state = ClusterState::default();
        assert_eq!(decide(&world, true), None);
    }
}
