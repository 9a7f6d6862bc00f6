//! How the ring changes: the state machine of a transition.
//!
//! A change is begun by a request with an id, walks through the stages of [`mds_types::ring`], and ends
//! with the next ring as the present one. The state machine itself checks every condition; whoever
//! proposes a step too early is told what it waits for.
//!
//! **Invariants** (property-tested in `state::tests::transitions`)
//!
//! 1. One change at a time. Stages follow one another in their order; only `Prepare`, `WriteBoth` and `Stream` may end
//!    in `Stable` by an abort.
//! 2. No stage is left before every required member (all but the excluded ones) has acknowledged it:
//!    acknowledged means that its requests begun under older versions have ended. `Stream` is left only when
//!    the members of the next ring are ready too.
//! 3. The version grows with every change of stage, ring or exclusion, and by nothing else.
//! 4. The records of which no write to both rings is certain have epochs before E1, which begins with
//!    `Stream`, that is: when everybody knows the next ring. `Stream` is left only when they are closed (by
//!    the epoch after E1) and verified in both rings. Were E1 to begin earlier, a coordinator that knows one
//!    ring only could show a record of E1 to a reader, and no verification would bring it to the other ring.
//! 5. A ring keeps N members that hold data, or as many of them as it had.
//! 6. Of the replicas of one partition, fewer than min(R, W) may be excluded: the others hold whatever was
//!    acknowledged or read. `forced` takes the risk.
//! 7. What was removed does not come back: its directory is remembered (the latest [`REMOVED_MAX`]).
//!
//! Which changes are possible at all, invariants 5 and 6 among it, is judged in `change`.
//!
//! What it does not do: decide that a node is dead, move data, or watch time.

use std::collections::BTreeSet;

use mds_types::mutation::{Mutation, is_on};
use mds_types::{
    ClusterConfig, Epoch, Hlc, NodeId, RequestId, RingStage, Topology, TopologyVersion,
};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{ClusterState, Response, RingChange};
use crate::view::MemberStage;

/// Requests whose outcome is remembered. A repetition of one that was forgotten is judged anew.
pub const REQUESTS_MAX: usize = 64;

/// Removed directories that are remembered and may not come back.
pub const REMOVED_MAX: usize = 1024;

/// Nodes that an answer names at most; of more it says how many.
const NAMED_MAX: usize = 5;

/// A change of the ring under way.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Transition {
    /// Who asked.
    pub request: RequestId,
    /// For what.
    pub change: RingChange,
    /// Never `Stable`.
    pub stage: RingStage,
    /// The topology version with which the stage was entered.
    pub entered: TopologyVersion,
    /// E1, from `Stream` on.
    pub first_epoch: Option<Epoch>,
    /// The next ring. Its version is that of the present one.
    pub topology: Topology,
    /// N, R and W of the next ring, and what never changes.
    pub config: ClusterConfig,
    /// Members that are waited for no more.
    pub excluded: BTreeSet<NodeId>,
    /// Members of the next ring that are ready, during `Stream`.
    pub ready: BTreeSet<NodeId>,
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestFate {
    /// The change is under way.
    Running,
    /// The ring has changed.
    Finished,
    /// It was called off.
    Aborted,
}

/// A request that was taken up.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RequestRecord {
    /// Its name.
    pub request: RequestId,
    /// A hash of what it asked for.
    pub asked: u64,
    /// What became of it.
    pub fate: RequestFate,
}

/// Why a stage, or the settling of a ring, goes on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitsFor {
    /// The member has not acknowledged the version.
    Ack,
    /// The member has not streamed and verified everything yet.
    Ready,
}

/// A member that holds a transition up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Blocker {
    /// The member.
    pub node: NodeId,
    /// What is missing.
    pub waits_for: WaitsFor,
}

fn hash_of(change: &RingChange) -> u64 {
    // Collections of integers always encode; were it otherwise, all changes would look alike.
    xxh3_64(&postcard::to_extend(change, Vec::new()).unwrap_or_default())
}

impl ClusterState {
    /// Whether a node has acknowledged a version or a later one.
    fn has_acked(&self, node: NodeId, version: TopologyVersion) -> bool {
        self.acked.get(&node).is_some_and(|acked| *acked >= version)
    }

    /// The members that have not acknowledged `version`, except for `excluded`.
    fn missing_acks(&self, version: TopologyVersion, excluded: &BTreeSet<NodeId>) -> Vec<NodeId> {
        let members = self.members.keys();
        members
            .filter(|node| !excluded.contains(node) && !self.has_acked(**node, version))
            .copied()
            .collect()
    }

    /// Whom the present stage waits for. In `Stable`: who has not acknowledged the ring; before all
    /// have, no change begins and no replica drops what it lost.
    pub fn blocked_by(&self) -> Vec<Blocker> {
        let none = BTreeSet::new();
        let (version, excluded) = match &self.transition {
            None => (self.topology.version, &none),
            Some(transition) => (transition.entered, &transition.excluded),
        };
        let acks = self.missing_acks(version, excluded).into_iter();
        let mut blockers: Vec<Blocker> = acks
            .map(|node| Blocker {
                node,
                waits_for: WaitsFor::Ack,
            })
            .collect();
        if let Some(transition) = &self.transition
            && transition.stage == RingStage::Stream
        {
            let next = transition.topology.members.iter().map(|member| member.node);
            let unready = next
                .filter(|node| !excluded.contains(node) && !transition.ready.contains(node))
                .map(|node| Blocker {
                    node,
                    waits_for: WaitsFor::Ready,
                });
            blockers.extend(unready);
        }
        blockers.sort_unstable();
        blockers
    }

    /// Whether the ring is stable and everybody has acknowledged it.
    pub fn is_settled(&self) -> bool {
        !self.cluster.is_none() && self.transition.is_none() && self.blocked_by().is_empty()
    }

    /// Whether the epoch has to be advanced for the sake of a transition: E1 has begun and everybody
    /// knows, so the epochs before it can be closed.
    pub fn transition_wants_epoch(&self) -> bool {
        self.transition.as_ref().is_some_and(|transition| {
            transition.stage == RingStage::Stream
                && transition.first_epoch == Some(self.epoch)
                && self
                    .missing_acks(transition.entered, &transition.excluded)
                    .is_empty()
        })
    }

    /// Names for people, of the first few.
    pub(super) fn names(&self, nodes: impl IntoIterator<Item = NodeId>) -> String {
        let names: Vec<String> = nodes
            .into_iter()
            .map(|node| match self.members.get(&node) {
                Some(member) if !member.info.name.is_empty() => member.info.name.clone(),
                _ => node.to_string(),
            })
            .collect();
        match names.len().checked_sub(NAMED_MAX) {
            None | Some(0) => names.join(", "),
            Some(more) => format!("{} and {more} more", names[..NAMED_MAX].join(", ")),
        }
    }

    /// Every change of ring, stage or exclusion is a new version.
    fn raise_version(&mut self) {
        self.topology.version.0 += 1;
        if let Some(transition) = &mut self.transition {
            transition.topology.version = self.topology.version;
        }
    }

    pub(super) fn begin_transition(&mut self, request: RequestId, change: &RingChange) -> Response {
        let asked = hash_of(change);
        if let Some(known) = self.requests.iter().find(|known| known.request == request) {
            return repeated(known, asked);
        }
        if let Some(open) = &self.transition {
            return Response::NotYet(format!(
                "the ring is changing already (request {}, stage {}): wait for its end, or abort it",
                open.request, open.stage
            ));
        }
        let (topology, config) = match self.next_ring(change) {
            Ok(next) => next,
            Err(reason) => return Response::Refused(reason),
        };
        let missing = self.missing_acks(self.topology.version, &change.remove_dead);
        if !missing.is_empty() && !is_on(Mutation::StageWithoutAcks) {
            return Response::NotYet(format!(
                "version {} of the ring is not known everywhere: waiting for {}. If one of them is \
                 dead for good, remove it in the same change",
                self.topology.version,
                self.names(missing)
            ));
        }
        self.remember(request, asked);
        self.accepted_from = self.topology.version;
        self.transition = Some(Transition {
            request,
            change: change.clone(),
            stage: RingStage::Prepare,
            entered: TopologyVersion(self.topology.version.0 + 1),
            first_epoch: None,
            topology,
            config,
            excluded: change.remove_dead.clone(),
            ready: BTreeSet::new(),
        });
        self.raise_version();
        self.mark_members(&change.join, MemberStage::Joining);
        self.mark_members(&change.leave, MemberStage::Leaving);
        Response::Done
    }

    fn mark_members(&mut self, nodes: &BTreeSet<NodeId>, stage: MemberStage) {
        for node in nodes {
            if let Some(member) = self.members.get_mut(node) {
                member.stage = stage;
            }
        }
    }

    /// Notes a request that was taken up, and forgets the oldest beyond the bound.
    fn remember(&mut self, request: RequestId, asked: u64) {
        if self.requests.len() >= REQUESTS_MAX {
            self.requests.remove(0);
        }
        self.requests.push(RequestRecord {
            request,
            asked,
            fate: RequestFate::Running,
        });
    }

    fn settle_request(&mut self, request: RequestId, fate: RequestFate) {
        if let Some(known) = self
            .requests
            .iter_mut()
            .find(|known| known.request == request)
        {
            known.fate = fate;
        }
    }

    pub(super) fn ack(&mut self, member: NodeId, version: TopologyVersion) -> Response {
        if !self.members.contains_key(&member) {
            return Response::NotYet("the node is not a member".to_owned());
        }
        if version > self.topology.version {
            return Response::Refused(format!("there is no version {version} yet"));
        }
        let acked = self.acked.entry(member).or_default();
        *acked = version.max(*acked);
        Response::Done
    }

    pub(super) fn ready(&mut self, member: NodeId, version: TopologyVersion) -> Response {
        let Some(transition) = &mut self.transition else {
            return Response::Refused("the ring does not change".to_owned());
        };
        if version < transition.entered || transition.stage != RingStage::Stream {
            return Response::Refused(format!(
                "ready at version {version}, but stage {} began with version {}",
                transition.stage, transition.entered
            ));
        }
        if version > self.topology.version || transition.topology.member(member).is_none() {
            return Response::Refused("it is not on the next ring of that version".to_owned());
        }
        transition.ready.insert(member);
        Response::Done
    }

    pub(super) fn step_transition(&mut self, from: TopologyVersion, floor: Hlc) -> Response {
        if from < self.topology.version {
            return Response::Done;
        }
        let Some(following) = self
            .transition
            .as_ref()
            .and_then(|open| open.stage.following())
        else {
            return Response::Refused("the ring does not change".to_owned());
        };
        let blockers = self.blocked_by();
        if !blockers.is_empty() && !is_on(Mutation::StageWithoutAcks) {
            let nodes: BTreeSet<NodeId> = blockers.iter().map(|blocker| blocker.node).collect();
            return Response::NotYet(format!("waiting for {}", self.names(nodes)));
        }
        if self.transition_wants_epoch() {
            return Response::NotYet(format!(
                "waiting for epoch {}, which closes what was written before the stage",
                self.epoch.0 + 1
            ));
        }
        let Some(transition) = &mut self.transition else {
            return Response::Refused("the ring does not change".to_owned());
        };
        // The stage that is left was entered with this version: older senders' time is over.
        self.accepted_from = transition.entered;
        transition.stage = following;
        transition.entered = TopologyVersion(self.topology.version.0 + 1);
        transition.ready.clear();
        match following {
            RingStage::Stream => {
                let first = Epoch(self.epoch.0 + 1);
                transition.first_epoch = Some(first);
                self.epoch = first;
                self.floors.begin(first, floor);
            }
            RingStage::Stable => self.finish(),
            _ => {}
        }
        self.raise_version();
        Response::Done
    }

    /// The next ring becomes the present one.
    fn finish(&mut self) {
        let Some(transition) = self.transition.take() else {
            return;
        };
        let version = self.topology.version;
        self.topology = transition.topology;
        self.topology.version = version;
        self.config = Some(transition.config);
        self.mark_members(&transition.change.join, MemberStage::Active);
        self.mark_members(&transition.change.leave, MemberStage::Left);
        for node in &transition.change.remove_dead {
            self.strike_out(*node);
        }
        self.settle_request(transition.request, RequestFate::Finished);
    }

    fn strike_out(&mut self, node: NodeId) {
        let Some(member) = self.members.remove(&node) else {
            return;
        };
        self.acked.remove(&node);
        if self.removed.len() >= REMOVED_MAX {
            self.removed.remove(0);
        }
        self.removed.push(member.incarnation);
    }

    pub(super) fn abort_transition(&mut self, request: RequestId) -> Response {
        let known = self.requests.iter().find(|known| known.request == request);
        match known.map(|known| known.fate) {
            None => {
                return Response::Refused(format!("no change with request {request} is known"));
            }
            Some(RequestFate::Aborted) => return Response::Done,
            Some(RequestFate::Finished) => {
                return Response::Refused(
                    "it has finished: ask for the opposite change instead".to_owned(),
                );
            }
            Some(RequestFate::Running) => {}
        }
        match self.transition.take() {
            Some(open) if open.request == request && open.stage.may_abort() => {
                self.mark_members(&open.change.join, MemberStage::Waiting);
                self.mark_members(&open.change.leave, MemberStage::Active);
                self.settle_request(request, RequestFate::Aborted);
                // Senders of the stage that ends here are still served: they write to this ring too.
                self.raise_version();
                Response::Done
            }
            Some(open) => {
                let stage = open.stage;
                self.transition = Some(open);
                Response::Refused(format!(
                    "stage {stage} is past the point of no return: the change goes on to its end. If a \
                     node holds it up, exclude that node; then ask for the opposite change"
                ))
            }
            None => Response::Refused("the ring does not change".to_owned()),
        }
    }

    pub(super) fn exclude(&mut self, request: RequestId, node: NodeId, forced: bool) -> Response {
        let Some(open) = self
            .transition
            .as_ref()
            .filter(|open| open.request == request)
        else {
            return Response::Refused(format!("no change with request {request} is under way"));
        };
        if open.excluded.contains(&node) {
            return Response::Done;
        }
        if !self.members.contains_key(&node) {
            return Response::Refused(format!("{node} is not a member of this cluster"));
        }
        let mut excluded = open.excluded.clone();
        excluded.insert(node);
        if !forced
            && let Err(reason) =
                self.check_excluded(&excluded, Some((&open.topology, &open.config)))
        {
            return Response::Refused(reason);
        }
        if let Some(open) = &mut self.transition {
            open.excluded = excluded;
        }
        self.raise_version();
        Response::Done
    }

    pub(super) fn remove_member(&mut self, node: NodeId) -> Response {
        let Some(member) = self.members.get(&node) else {
            return match self.removed.iter().any(|gone| gone.node_id() == node) {
                true => Response::Done,
                false => Response::Refused(format!("{node} is not a member of this cluster")),
            };
        };
        match member.stage {
            MemberStage::Waiting | MemberStage::Left => {
                self.strike_out(node);
                Response::Done
            }
            MemberStage::Active | MemberStage::Joining | MemberStage::Leaving => {
                Response::Refused(format!(
                    "{} is on the ring: let it leave, or remove it as dead, by a change of the ring",
                    self.names([node])
                ))
            }
        }
    }
}

/// The answer to a request that was taken up before.
fn repeated(known: &RequestRecord, asked: u64) -> Response {
    if known.asked != asked {
        return Response::Refused(format!(
            "request {} asked for something else before: a new change needs a new request id",
            known.request
        ));
    }
    match known.fate {
        RequestFate::Running | RequestFate::Finished => Response::Done,
        RequestFate::Aborted => Response::Refused(format!(
            "request {} was aborted: give a new request id to try again",
            known.request
        )),
    }
}
