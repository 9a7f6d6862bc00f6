//! What a Raft leader sees to, one thing at a time. Pure decisions.

use std::collections::{BTreeMap, BTreeSet};

use mds_types::limits::VOTERS_MAX;
use mds_types::{Epoch, Hlc, NodeId, RequestId, TopologyVersion};

use super::RingMode;
use super::ring::successor;
use crate::gossip::Peer;
use crate::state::{ClusterState, Command, NewMember, Response, RingChange};
use crate::view::MemberStage;
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
    /// Let these vote and nobody else.
    SetVoters(BTreeSet<NodeId>),
    /// Send Raft's log no more to these, who are no members.
    DropLearners(BTreeSet<NodeId>),
    /// Raise the epoch, with this floor.
    AdvanceEpoch(Epoch, Hlc),
    /// Enter the next stage of the change, with this floor for an epoch that it begins.
    Step(TopologyVersion, Hlc),
    /// Begin a change of the ring.
    Begin(RequestId, RingChange),
    /// Call a change off.
    Abort(RequestId),
    /// Wait for a dead member no more.
    Exclude(RequestId, NodeId),
    /// Strike out a member that is on no ring and gone.
    RemoveMember(NodeId),
}

impl Duty {
    /// Whether the ring was looked after before this was decided on.
    pub(super) fn comes_after_ring(&self) -> bool {
        matches!(
            self,
            Duty::Begin(..) | Duty::Abort(_) | Duty::Exclude(..) | Duty::AddMember(_)
        )
    }
}

/// What the decision is made of.
pub(super) struct Situation<'a> {
    pub(super) me: NodeId,
    pub(super) state: &'a ClusterState,
    pub(super) plan: Option<&'a BirthPlan>,
    pub(super) voters: &'a BTreeSet<NodeId>,
    pub(super) learners: &'a BTreeSet<NodeId>,
    /// Learners whose log is nearly complete.
    pub(super) caught_up: &'a BTreeSet<NodeId>,
    pub(super) peers: &'a BTreeMap<NodeId, Peer>,
    pub(super) auto_add_members: bool,
    pub(super) epoch_due: bool,
    /// For an epoch that begins now.
    pub(super) floor: Hlc,
    pub(super) mode: RingMode,
    /// Members that are gone for good, as far as the mode may say so: dead for as long as it says, or dead and
    /// succeeded by another directory at their address.
    pub(super) long_dead: &'a BTreeSet<NodeId>,
    /// Members that nobody has heard of for a while.
    pub(super) unheard: &'a BTreeSet<NodeId>,
    /// No further joiner has come for a while.
    pub(super) joiners_settled: bool,
    /// Whether to look after the ring this time: judging a change may take a while.
    pub(super) looks_after_ring: bool,
    /// A fresh name, should a request be made.
    pub(super) request: RequestId,
}

impl Situation<'_> {
    fn is_alive(&self, node: NodeId) -> bool {
        node == self.me || self.peers.get(&node).is_some_and(|peer| peer.alive)
    }
}

/// The most urgent duty, if there is any.
pub(super) fn next(situation: &Situation<'_>) -> Option<Duty> {
    let state = situation.state;
    if state.cluster.is_none() {
        return situation
            .plan
            .map(|plan| Duty::Born(Box::new(plan.clone())));
    }
    if situation.epoch_due || state.transition_wants_epoch() {
        let next = Epoch(state.epoch.0 + 1);
        return Some(Duty::AdvanceEpoch(next, situation.floor));
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
    if state.transition.is_some() && state.blocked_by().is_empty() {
        return Some(Duty::Step(state.topology.version, situation.floor));
    }
    voting(situation)
        .or_else(|| departed(situation))
        .or_else(|| change_of_ring(situation))
        .or_else(|| arrived(situation))
}

/// A node of this cluster that is no member yet.
fn arrived(situation: &Situation<'_>) -> Option<Duty> {
    let state = situation.state;
    if !situation.auto_add_members {
        return None;
    }
    let joiner = situation.peers.iter().find(|(node, peer)| {
        peer.alive
            && peer.id.cluster == state.cluster
            && !state.members.contains_key(node)
            && !state.removed.contains(&peer.id.incarnation)
    });
    joiner.map(|(_, peer)| {
        let info = (*peer.id.info).clone();
        Duty::AddMember(NewMember {
            incarnation: peer.id.incarnation,
            info,
        })
    })
}

/// Members that have left and are gone, and what Raft still knows of former members.
fn departed(situation: &Situation<'_>) -> Option<Duty> {
    let state = situation.state;
    let former: BTreeSet<NodeId> = situation
        .learners
        .iter()
        .filter(|node| !state.members.contains_key(node))
        .copied()
        .collect();
    if !former.is_empty() {
        return Some(Duty::DropLearners(former));
    }
    // A leader that was started after they had gone never hears that they are dead.
    let gone = |node: &NodeId| {
        situation.unheard.contains(node)
            || situation.peers.get(node).is_some_and(|peer| !peer.alive)
    };
    let mut members = state.members.iter();
    let left = members.find(|(node, member)| {
        let stage = member.stage;
        (stage == MemberStage::Left && gone(node))
            || (stage == MemberStage::Waiting && situation.long_dead.contains(node))
    });
    left.map(|(node, _)| Duty::RemoveMember(*node))
}

/// In auto mode: what the leader asks for by itself.
fn change_of_ring(situation: &Situation<'_>) -> Option<Duty> {
    let state = situation.state;
    if !matches!(situation.mode, RingMode::Auto { .. }) || !situation.looks_after_ring {
        return None;
    }
    let may = |command: &Command| state.clone().apply(command) == Response::Done;
    if let Some(open) = &state.transition {
        // Every member's word is needed before the end. And who has said that it is ready and died since is
        // still needed by the others, who cannot verify without it: it blocks without being named.
        let is_needed =
            |node: &&NodeId| state.members.contains_key(*node) && !open.excluded.contains(*node);
        let dead: Vec<NodeId> = situation
            .long_dead
            .iter()
            .filter(is_needed)
            .copied()
            .collect();
        // A joiner that died before it holds anything is better left out than waited for later.
        let may_abort = open.stage.may_abort();
        if may_abort && dead.iter().any(|node| open.change.join.contains(node)) {
            return Some(Duty::Abort(open.request));
        }
        let request = open.request;
        let may_exclude = |node: &&NodeId| {
            may(&Command::Exclude {
                request,
                node: **node,
                forced: false,
            })
        };
        if let Some(node) = dead.iter().find(may_exclude) {
            return Some(Duty::Exclude(request, *node));
        }
        // One too many, perhaps only because somebody else is left out who is back again: better to begin anew.
        let is_back = |node: &NodeId| situation.is_alive(*node);
        let is_moot = !dead.is_empty() && open.excluded.iter().any(is_back);
        return (is_moot && may_abort).then_some(Duty::Abort(request));
    }
    let join = match situation.joiners_settled {
        true => joiners(situation),
        false => BTreeSet::new(),
    };
    let on_ring = |node: &&NodeId| state.topology.member(**node).is_some();
    let dead = situation.long_dead.iter().filter(on_ring);
    let remove_dead: BTreeSet<NodeId> = dead.copied().collect();
    // First what is best; then one dead node less at a time; then the joiners alone.
    let mut change = RingChange {
        join,
        remove_dead,
        ..RingChange::default()
    };
    loop {
        let begin = Command::BeginTransition {
            request: situation.request,
            change: change.clone(),
        };
        if may(&begin) {
            return Some(Duty::Begin(situation.request, change));
        }
        change.remove_dead.pop_last()?;
    }
}

/// Who waits, lives, and may join at once. Who has the address of a member of the ring that is not gone for good yet
/// will be, as soon as that is sure: it takes that one's place, in one change instead of two.
fn joiners(situation: &Situation<'_>) -> BTreeSet<NodeId> {
    let state = situation.state;
    let waiting = state.members.iter().filter(|(node, member)| {
        member.stage == MemberStage::Waiting && member.boot > 0 && situation.is_alive(**node)
    });
    let mut joiners: BTreeSet<NodeId> = waiting.map(|(node, _)| *node).collect();
    let on_ring = state.topology.members.iter().map(|member| member.node);
    for node in on_ring.filter(|node| !situation.long_dead.contains(node)) {
        if let Some(early) = successor(state, node, &joiners) {
            joiners.remove(&early);
        }
    }
    joiners
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

/// Who should vote, if that is to change.
///
/// Votes follow the member list: who has left or was removed loses its vote, a learner that is alive and has
/// the log takes its place. As long as nobody left, nobody's vote is taken: who is dead may come back with
/// it. And who is only excluded keeps it until somebody can take its place.
fn voting(situation: &Situation<'_>) -> Option<Duty> {
    let state = situation.state;
    let open = state.transition.as_ref();
    let stays = |node: &NodeId| {
        let member = state.members.get(node);
        member.is_some_and(|member| member.stage != MemberStage::Left)
            && !open.is_some_and(|open| open.excluded.contains(node))
    };
    let zone = |node: &NodeId| {
        let member = state.members.get(node);
        member.map_or("", |member| member.info.zone.as_str())
    };
    let wanted = voters_wanted(state.members.keys().filter(|node| stays(node)).count());
    let candidates: Vec<(NodeId, &str)> = situation
        .caught_up
        .iter()
        .filter(|node| situation.learners.contains(node) && stays(node))
        .filter(|node| situation.peers.get(node).is_some_and(|peer| peer.alive))
        .map(|node| (*node, zone(node)))
        .collect();
    let (fit, unfit): (Vec<NodeId>, Vec<NodeId>) =
        situation.voters.iter().partition(|node| stays(node));
    if unfit.is_empty() {
        // As many as lead to the next odd number.
        let missing = if fit.len().is_multiple_of(2) { 1 } else { 2 };
        if fit.len() >= wanted || candidates.len() < missing {
            return None;
        }
        let zones: Vec<&str> = fit.iter().map(zone).collect();
        let chosen = choose_voters(&zones, &candidates, missing);
        return Some(Duty::Promote(chosen.into_iter().collect()));
    }
    let possible = wanted.min(fit.len() + candidates.len());
    let size = voters_wanted(possible).max(1);
    let must_go = unfit.iter().any(|node| {
        let member = state.members.get(node);
        member.is_none_or(|member| member.stage == MemberStage::Left)
    });
    if (!must_go && size < situation.voters.len()) || fit.is_empty() {
        return None;
    }
    let mut voters: BTreeSet<NodeId> = match fit.len() <= size {
        true => fit.into_iter().collect(),
        false => {
            let kept = fit.contains(&situation.me).then_some(situation.me);
            let zones: Vec<&str> = kept.iter().map(zone).collect();
            let rest = fit.iter().filter(|node| Some(**node) != kept);
            let (alive, dead): (Vec<_>, Vec<_>) = rest
                .map(|node| (*node, zone(node)))
                .partition(|(node, _)| situation.is_alive(*node));
            let alive = choose_voters(&zones, &alive, size - zones.len());
            let missing = size - zones.len() - alive.len();
            let dead = choose_voters(&zones, &dead, missing);
            kept.into_iter().chain(alive).chain(dead).collect()
        }
    };
    let zones: Vec<&str> = voters.iter().map(zone).collect();
    let more = choose_voters(&zones, &candidates, size - voters.len());
    voters.extend(more);
    Some(Duty::SetVoters(voters))
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
mod tests;
