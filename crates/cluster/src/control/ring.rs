//! Changes of the ring: administrators' requests, and what a leader watches for by itself.
//!
//! Any node may be asked. It passes the request on to whoever leads, again and again until there is an answer or
//! its time is up; the request's id makes that the same request. The leader turns it into a command of the
//! agreed state, which judges it.

use std::collections::{BTreeMap, BTreeSet};

use mds_types::{NodeId, RequestId};
use openraft_rt::{AsyncRuntime, WatchReceiver};

use super::lead::propose;
use super::{
    ADMIN_TIMEOUT_NS, ADMIN_WAITING_MAX, AdminError, AdminReply, Control, Event, RingMode,
    RingRequest,
};
use crate::exec::lock;
use crate::gossip::Peer;
use crate::rt::Rt;
use crate::state::{ClusterState, Command, Response, RingChange};
use crate::view::{MemberStage, TransitionView};
use crate::wire::{Body, Proposed, RingOutcome};

/// Who has left the ring, and has not been heard of for so long since this node leads, is gone, nanoseconds.
const UNHEARD_NS: u64 = 5_000_000_000;

/// A request without an answer, or one that has to wait, is tried again this often, nanoseconds.
const ASK_EVERY_NS: u64 = 500_000_000;

/// A leader in auto mode considers changes of the ring this often, nanoseconds.
const LOOK_EVERY_NS: u64 = 1_000_000_000;

/// Joiners that come within this time of each other join in one change, nanoseconds.
const JOINERS_SETTLE_NS: u64 = 2_000_000_000;

/// An administrator's request that waits for its answer.
pub(super) struct WaitingAsk {
    /// Drawn at random; the answer carries it.
    key: u64,
    /// The shell's name for it.
    id: u64,
    request: RequestId,
    ask: RingRequest,
    deadline_ns: u64,
    next_ns: u64,
    /// Why it could not be carried out yet, when it was tried last.
    not_yet: Option<String>,
}

impl Control {
    pub(super) fn begin_ask(&mut self, id: u64, request: RequestId, ask: RingRequest) {
        let refused = if let Some(reason) = &self.fatal {
            Some(AdminError::Stopped(reason.clone()))
        } else if !self.is_running() {
            Some(AdminError::Stopped("it has been refused".to_owned()))
        } else if self.raft.is_none() {
            Some(AdminError::NoCluster)
        } else if self.asks.len() >= ADMIN_WAITING_MAX {
            Some(AdminError::Busy)
        } else {
            None
        };
        if let Some(error) = refused {
            return self.admin.push((id, Err(error)));
        }
        let key = self.rng.draw();
        self.asks.push(WaitingAsk {
            key,
            id,
            request,
            ask,
            deadline_ns: self.now_ns.saturating_add(ADMIN_TIMEOUT_NS),
            next_ns: self.now_ns,
            not_yet: None,
        });
        self.try_asks();
    }

    /// Passes on what waits and is due.
    pub(super) fn try_asks(&mut self) {
        let due: Vec<usize> = (0..self.asks.len())
            .filter(|index| self.now_ns >= self.asks[*index].next_ns)
            .collect();
        if due.is_empty() {
            return;
        }
        let Some(parts) = &self.raft else { return };
        let leader = self
            .exec
            .enter(|| parts.raft.metrics().borrow_watched().current_leader);
        for index in due {
            let waiting = &mut self.asks[index];
            waiting.next_ns = self.now_ns + ASK_EVERY_NS;
            let (id, request, ask) = (waiting.key, waiting.request, waiting.ask.clone());
            if leader == Some(self.me) {
                let events = self.events.clone();
                self.see_to(request, &ask, move |outcome| {
                    lock(&events).push(Event::Asked(id, outcome));
                });
            } else if let Some(leader) = leader {
                self.outbox.send(leader, Body::Ask { id, request, ask });
            }
        }
    }

    /// Another node passes an administrator's request on.
    pub(super) fn answer_ask(
        &mut self,
        from: NodeId,
        addr: String,
        id: u64,
        request: RequestId,
        ask: RingRequest,
    ) {
        let Some((raft, counted)) = self.begin_answer() else {
            return;
        };
        self.exec.enter(|| drop(raft));
        let outbox = self.outbox.clone();
        self.see_to(request, &ask, move |outcome| {
            outbox.send_to_start(from, addr, Body::Asked { id, outcome });
            drop(counted);
        });
    }

    /// Carries an administrator's request out, if this node leads, and says what it came to.
    fn see_to(
        &self,
        request: RequestId,
        ask: &RingRequest,
        say: impl FnOnce(RingOutcome) + Send + 'static,
    ) {
        let Some(parts) = self.raft.as_ref().filter(|_| self.is_leader()) else {
            return say(RingOutcome::NotLeader);
        };
        let mut state = lock(&parts.applied).state.clone();
        let command = match self.command_for(&state, request, ask) {
            Ok(command) => command,
            Err(reason) => return say(RingOutcome::Refused(reason)),
        };
        // What has to wait need not fill the log with attempts.
        if let Response::NotYet(reason) = state.apply(&command) {
            return say(RingOutcome::NotYet(reason));
        }
        let (raft, applied) = (parts.raft.clone(), parts.applied.clone());
        self.exec.enter(|| {
            drop(Rt::spawn(async move {
                let text = command.to_string();
                let outcome = match propose(raft, command).await {
                    Proposed::Applied(Response::Done) => {
                        RingOutcome::Done(TransitionView::of(&lock(&applied).state))
                    }
                    Proposed::Applied(Response::Refused(reason)) => RingOutcome::Refused(reason),
                    Proposed::Applied(Response::NotYet(reason)) => RingOutcome::NotYet(reason),
                    Proposed::NotLeader(_) => RingOutcome::NotLeader,
                    Proposed::Unknown => RingOutcome::Unknown,
                };
                tracing::info!(command = text, ?outcome, "an administrator's request");
                say(outcome);
            }));
        });
    }

    /// The command that a request comes to.
    fn command_for(
        &self,
        state: &ClusterState,
        request: RequestId,
        ask: &RingRequest,
    ) -> Result<Command, String> {
        let one = |node: &NodeId| BTreeSet::from([*node]);
        let change = match ask {
            RingRequest::Join { nodes } => RingChange {
                join: nodes.clone(),
                ..RingChange::default()
            },
            RingRequest::Leave { nodes } => RingChange {
                leave: nodes.clone(),
                ..RingChange::default()
            },
            RingRequest::Replace { dead, with, forced } => RingChange {
                join: one(with),
                remove_dead: one(dead),
                forced: *forced,
                ..RingChange::default()
            },
            RingRequest::Remove { node, forced } => {
                if state.topology.member(*node).is_none() {
                    self.check_dead(state, &one(node), *forced)?;
                    return Ok(Command::RemoveMember { node: *node });
                }
                RingChange {
                    remove_dead: one(node),
                    forced: *forced,
                    ..RingChange::default()
                }
            }
            RingRequest::Reweigh { weights } => RingChange {
                reweigh: weights.clone(),
                ..RingChange::default()
            },
            RingRequest::ChangeQuorums(quorums) => RingChange {
                quorums: Some(*quorums),
                ..RingChange::default()
            },
            RingRequest::Change(change) => change.clone(),
            RingRequest::Abort => return Ok(Command::AbortTransition { request }),
            RingRequest::Exclude { node, forced } => {
                self.check_dead(state, &one(node), *forced)?;
                let (node, forced) = (*node, *forced);
                return Ok(Command::Exclude {
                    request,
                    node,
                    forced,
                });
            }
        };
        // A repetition finds them removed, or back to life: it is judged by its id.
        if !state.requests.iter().any(|known| known.request == request) {
            self.check_dead(state, &change.remove_dead, change.forced)?;
        }
        Ok(Command::BeginTransition { request, change })
    }

    /// Whoever is to be taken for dead should not be alive.
    fn check_dead(
        &self,
        state: &ClusterState,
        nodes: &BTreeSet<NodeId>,
        forced: bool,
    ) -> Result<(), String> {
        let alive = |node: &NodeId| {
            let peer = self.gossip.peers().get(node);
            *node == self.me || peer.is_some_and(|peer| peer.alive)
        };
        let Some(node) = nodes.iter().find(|node| alive(node)).filter(|_| !forced) else {
            return Ok(());
        };
        let info = state.members.get(node).map(|member| &member.info.name);
        let name = info.filter(|name| !name.is_empty()).cloned();
        Err(format!(
            "{} is alive: let it leave instead, or stop it first and wait until it is seen as dead",
            name.unwrap_or_else(|| node.to_string())
        ))
    }

    pub(super) fn on_asked(&mut self, key: u64, outcome: RingOutcome) {
        let Some(index) = self.asks.iter().position(|waiting| waiting.key == key) else {
            return;
        };
        let answer = match outcome {
            RingOutcome::Done(view) => Ok(AdminReply::Accepted(view)),
            RingOutcome::Refused(reason) => Err(AdminError::Refused(reason)),
            RingOutcome::NotYet(reason) => {
                self.asks[index].not_yet = Some(reason);
                return;
            }
            // The next attempt goes to whoever is known to lead by then.
            RingOutcome::NotLeader | RingOutcome::Unknown => return,
        };
        let waiting = self.asks.swap_remove(index);
        self.admin.push((waiting.id, answer));
    }

    /// Administrators' requests that wait for their answer here.
    pub fn requests_waiting(&self) -> usize {
        self.asks.len()
    }

    /// Answers those whose time is up, or all when this node has stopped.
    pub(super) fn give_up_asks(&mut self) {
        let stopped = match (&self.fatal, &self.stopped) {
            (Some(reason), _) | (_, Some(crate::view::Standing::Refused(reason))) => {
                Some(reason.clone())
            }
            _ => None,
        };
        let (now_ns, admin) = (self.now_ns, &mut self.admin);
        self.asks.retain_mut(|waiting| {
            let error = match (&stopped, waiting.not_yet.take()) {
                (Some(reason), _) => AdminError::Stopped(reason.clone()),
                (None, not_yet) if now_ns < waiting.deadline_ns => {
                    waiting.not_yet = not_yet;
                    return true;
                }
                (None, Some(reason)) => AdminError::NotYet(reason),
                (None, None) => AdminError::NoLeader,
            };
            admin.push((waiting.id, Err(error)));
            false
        });
    }

    /// Tells removed nodes that gossip sees alive: no log reaches them any more.
    pub(super) fn tell_the_removed(&self) {
        let alive = self.gossip.peers().iter().filter(|(_, peer)| peer.alive);
        let removed: Vec<NodeId> = alive
            .filter(|(node, _)| self.with_state(|state| state.is_removed(**node)) == Some(true))
            .map(|(node, _)| *node)
            .collect();
        for node in removed {
            self.tell_removed(node, None);
        }
    }
}

/// Who, of those that wait, has the address of another member.
pub(super) fn successor(
    state: &ClusterState,
    of: NodeId,
    waiting: &BTreeSet<NodeId>,
) -> Option<NodeId> {
    let addr = &state.members.get(&of)?.info.peer_addr;
    let has_it = |node: &NodeId| {
        let member = state.members.get(node);
        *node != of && member.is_some_and(|member| member.info.peer_addr == *addr)
    };
    let has_addr = !addr.is_empty();
    waiting
        .iter()
        .find(|node| has_addr && has_it(node))
        .copied()
}

/// What a leader has seen of members over time. Begins anew with each leadership.
#[derive(Default)]
pub(super) struct RingWatch {
    /// Since when each member has been dead without a break.
    dead_since_ns: BTreeMap<NodeId, u64>,
    /// Who waits and lives, and since when exactly these.
    joiners: BTreeSet<NodeId>,
    joiners_since_ns: u64,
    next_ns: u64,
}

impl RingWatch {
    /// Looks at gossip; in auto mode: which members are gone for good. That is whom gossip has held for dead for long
    /// enough, and the dead whose address somebody else has.
    pub(super) fn look(
        &mut self,
        now_ns: u64,
        me: NodeId,
        state: &ClusterState,
        peers: &BTreeMap<NodeId, Peer>,
        mode: RingMode,
    ) -> BTreeSet<NodeId> {
        let alive = |node: &NodeId| *node == me || peers.get(node).is_some_and(|peer| peer.alive);
        let joiners: BTreeSet<NodeId> = state
            .members
            .iter()
            .filter(|(node, member)| {
                member.stage == MemberStage::Waiting && member.boot > 0 && alive(node)
            })
            .map(|(node, _)| *node)
            .collect();
        if joiners != self.joiners {
            self.joiners = joiners;
            self.joiners_since_ns = now_ns;
        }
        self.dead_since_ns
            .retain(|node, _| state.members.contains_key(node) && !alive(node));
        for node in state.members.keys().filter(|node| !alive(node)) {
            self.dead_since_ns.entry(*node).or_insert(now_ns);
        }
        let RingMode::Auto { remove_after_ms } = mode else {
            return BTreeSet::new();
        };
        let mut gone = self.succeeded(now_ns, state, peers);
        if let Some(after_ms) = remove_after_ms {
            gone.extend(self.dead_for(now_ns, after_ms.saturating_mul(1_000_000)));
        }
        gone
    }

    /// Dead members at whose address another directory answers: a node that was wiped, or a new machine in an old
    /// one's place. Nobody need wait for them, they are not being mended.
    fn succeeded(
        &self,
        now_ns: u64,
        state: &ClusterState,
        peers: &BTreeMap<NodeId, Peer>,
    ) -> BTreeSet<NodeId> {
        let unheard = self.unheard(now_ns);
        // Who is not known to gossip at all may be about to say hello to a leader that has just started.
        let is_dead = |node: &NodeId| {
            unheard.contains(node) || peers.get(node).is_some_and(|peer| !peer.alive)
        };
        let dead = self.dead_since_ns.keys().filter(|node| is_dead(node));
        dead.filter(|node| successor(state, **node, &self.joiners).is_some())
            .copied()
            .collect()
    }

    /// Members that gossip has not shown alive for [`UNHEARD_NS`]: dead, or not known to it at all.
    pub(super) fn unheard(&self, now_ns: u64) -> BTreeSet<NodeId> {
        self.dead_for(now_ns, UNHEARD_NS)
    }

    fn dead_for(&self, now_ns: u64, for_ns: u64) -> BTreeSet<NodeId> {
        let dead = self.dead_since_ns.iter();
        dead.filter(|(_, since_ns)| now_ns.saturating_sub(**since_ns) >= for_ns)
            .map(|(node, _)| *node)
            .collect()
    }

    /// Whether the ring is to be considered now.
    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.next_ns
    }

    /// It may have been considered, if it was due; the next time comes a while later.
    pub(super) fn looked(&mut self, now_ns: u64) {
        if self.is_due(now_ns) {
            self.next_ns = now_ns + LOOK_EVERY_NS;
        }
    }

    /// Whether the same nodes have waited for a while, so that nobody is about to come beside them.
    pub(super) fn joiners_settled(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.joiners_since_ns) >= JOINERS_SETTLE_NS
    }
}
