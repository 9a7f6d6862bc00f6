//! What a node has agreed on: its own start, and as a leader what the cluster needs.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mds_types::{Epoch, NodeId, RequestId};
use openraft::{ChangeMembers, EmptyNode, LogIdOptionExt};
use openraft_rt::{AsyncRuntime, WatchReceiver};

use super::duties::{self, Duty, Situation};
use super::{Control, Event};
use crate::exec::lock;
use crate::raft::Raft;
use crate::rt::Rt;
use crate::state::{Command, NewMember, Response, start_number_used};
use crate::view::Standing;
use crate::wire::{Body, Proposed};

/// How long a proposal may take before its proposer stops waiting; it may still come about.
pub(super) const PROPOSAL_TIMEOUT: Duration = Duration::from_secs(3);

/// A start that is not acknowledged yet is announced again this often, nanoseconds.
const ANNOUNCE_EVERY_NS: u64 = 500_000_000;

/// A learner gets a vote only when it misses at most this many entries: with a vote, its lag would
/// hold up commits.
const PROMOTE_LAG_ENTRIES_MAX: u64 = 64;

/// When the leader advances the epoch next.
pub(super) struct EpochClock {
    interval_ns: Option<u64>,
    /// The epoch last seen while leading, and when the next one is due.
    running: Option<(Epoch, u64)>,
}

impl EpochClock {
    pub(super) fn new(interval_ms: Option<u64>) -> EpochClock {
        let interval_ns = interval_ms.map(|ms| ms.max(1).saturating_mul(1_000_000));
        EpochClock {
            interval_ns,
            running: None,
        }
    }

    /// Whether the leader has to advance the epoch. A new leader gives the epoch a whole interval.
    fn is_due(&mut self, now_ns: u64, leads: bool, epoch: Epoch) -> bool {
        let (Some(interval_ns), true) = (self.interval_ns, leads && epoch > Epoch(0)) else {
            self.running = None;
            return false;
        };
        match self.running {
            Some((seen, due_ns)) if seen == epoch => now_ns >= due_ns,
            _ => {
                self.running = Some((epoch, now_ns.saturating_add(interval_ns)));
                false
            }
        }
    }
}

/// Has a command agreed on, if this node leads.
pub(super) async fn propose(raft: Raft, command: Command) -> Proposed {
    match Rt::timeout(PROPOSAL_TIMEOUT, raft.client_write(command)).await {
        Ok(Ok(written)) => Proposed::Applied(written.data),
        Ok(Err(error)) => match error.forward_to_leader() {
            Some(forward) => Proposed::NotLeader(forward.leader_id),
            None => Proposed::Unknown,
        },
        Err(_) => Proposed::Unknown,
    }
}

impl Control {
    pub(super) fn is_leader(&self) -> bool {
        let Some(parts) = &self.raft else {
            return false;
        };
        self.exec
            .enter(|| parts.raft.metrics().borrow_watched().state.is_leader())
    }

    /// Why Raft has stopped, if it has.
    pub(super) fn raft_failure(&self) -> Option<String> {
        let parts = self.raft.as_ref()?;
        self.exec.enter(|| {
            let metrics = parts.raft.metrics();
            let running = metrics.borrow_watched().running_state.clone();
            running.err().map(|fatal| fatal.to_string())
        })
    }

    /// Does the next thing that a leader has to see to.
    pub(super) fn lead(&mut self) {
        let Some(parts) = &self.raft else { return };
        let epoch = lock(&parts.applied).state.epoch;
        let leads = self.is_leader();
        let epoch_due = self.epoch.is_due(self.now_ns, leads, epoch);
        if !leads {
            self.watch = super::ring::RingWatch::default();
        }
        if !leads || self.duty_running {
            return;
        }
        let raft = parts.raft.clone();
        let state = lock(&parts.applied).state.clone();
        let (voters, learners, caught_up) = self.exec.enter(|| {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            let membership = metrics.membership_config.membership();
            let last = metrics.last_log_index.unwrap_or(0);
            let caught_up: BTreeSet<NodeId> = metrics
                .replication
                .iter()
                .flatten()
                .filter(|(_, matched)| {
                    matched.next_index().saturating_add(PROMOTE_LAG_ENTRIES_MAX) > last
                })
                .map(|(node, _)| *node)
                .collect();
            (
                membership.voter_ids().collect::<BTreeSet<NodeId>>(),
                membership.learner_ids().collect::<BTreeSet<NodeId>>(),
                caught_up,
            )
        });
        let long_dead = self.watch.look(
            self.now_ns,
            self.me,
            &state,
            self.gossip.peers(),
            self.config.ring_mode,
        );
        let unheard = self.watch.unheard(self.now_ns);
        let request = RequestId(self.rng.next_u128());
        let duty = duties::next(&Situation {
            me: self.me,
            state: &state,
            plan: self.plan.as_ref(),
            voters: &voters,
            learners: &learners,
            caught_up: &caught_up,
            peers: self.gossip.peers(),
            auto_add_members: self.config.auto_add_members,
            epoch_due,
            floor: self.clocks.floor(self.now_ns),
            mode: self.config.ring_mode,
            long_dead: &long_dead,
            unheard: &unheard,
            looks_after_ring: self.watch.is_due(self.now_ns),
            joiners_settled: self.watch.joiners_settled(self.now_ns),
            request,
        });
        // A more urgent duty, such as an epoch that is due at the same moments, does not take this one's turn.
        if duty.as_ref().is_none_or(Duty::comes_after_ring) {
            self.watch.looked(self.now_ns);
        }
        let events = self.events.clone();
        let Some(duty) = duty else {
            self.exec.enter(|| drop(raft));
            return;
        };
        self.duty_running = true;
        self.exec.enter(|| {
            drop(Rt::spawn(async move {
                perform(raft, duty).await;
                lock(&events).push(Event::DutyDone);
            }));
        });
    }

    /// Has this start agreed on, until it is; or asks again whether it still is, when in doubt.
    pub(super) fn announce(&mut self) {
        let Some(parts) = &self.raft else {
            return self.ask_which_start();
        };
        // A copied directory betrays itself by what its log lacks: that comes to light before its
        // start number takes the place of the original's.
        let log_is_right = self.log_confirmed.load(Ordering::Relaxed) || self.is_leader();
        let waits = match self.standing() {
            Standing::Joining if log_is_right => {
                self.with_state(|state| state.members.contains_key(&self.me))
            }
            _ => Some(self.doubt),
        };
        if waits != Some(true) && self.standing() == Standing::Joining {
            return self.ask_which_start();
        }
        if waits != Some(true) || self.now_ns < self.next_announce_ns {
            return;
        }
        self.next_announce_ns = self.now_ns + ANNOUNCE_EVERY_NS;
        let member = NewMember {
            incarnation: self.home.identity().incarnation,
            info: self.config.info.clone(),
        };
        let command = Command::Announce {
            member,
            boot: self.boot,
            nonce: self.nonce,
            earlier: self.earlier_starts.clone(),
        };
        let (leader, voters) = self.exec.enter(|| {
            let metrics = parts.raft.metrics();
            let metrics = metrics.borrow_watched();
            let voters: Vec<NodeId> = metrics.membership_config.voter_ids().collect();
            (metrics.current_leader, voters)
        });
        if leader == Some(self.me) {
            let (raft, events) = (parts.raft.clone(), self.events.clone());
            self.exec.enter(|| {
                drop(Rt::spawn(async move {
                    let outcome = propose(raft, command).await;
                    lock(&events).push(Event::Announced(outcome));
                }));
            });
            return;
        }
        self.announcements += 1;
        self.announce_id = self.rng.draw();
        let (turn, id) = (self.announcements, self.announce_id);
        // Whoever is in doubt may be cut off from the leader that it remembers: ask anybody who
        // votes, in turn.
        let others: Vec<NodeId> = voters.into_iter().filter(|node| *node != self.me).collect();
        let anybody = (!others.is_empty()).then(|| others[turn as usize % others.len()]);
        let asked = if turn.is_multiple_of(2) {
            anybody.or(leader)
        } else {
            leader.or(anybody)
        };
        if let Some(asked) = asked {
            self.outbox.send(asked, Body::Propose { id, command });
        }
    }

    /// A copy that was taken before its node knew anything, of its cluster even: neither invitations nor Raft's
    /// messages come to it, for they go to the start that gossip believes. Rather than wait for ever it asks;
    /// any member can tell it.
    fn ask_which_start(&mut self) {
        if !self.doubt || self.now_ns < self.next_announce_ns {
            return;
        }
        self.next_announce_ns = self.now_ns + ANNOUNCE_EVERY_NS;
        let peers = self.gossip.peers().iter();
        let alive: Vec<NodeId> = peers
            .filter(|(node, peer)| peer.alive && **node != self.me)
            .map(|(node, _)| *node)
            .collect();
        self.announcements += 1;
        if let Some(asked) = alive.get(self.announcements as usize % alive.len().max(1)) {
            self.outbox.send(*asked, Body::WhichStart);
        }
    }

    pub(super) fn on_announced(&mut self, outcome: Proposed) {
        match outcome {
            Proposed::Applied(Response::Refused(reason)) => self.refuse(reason),
            Proposed::Applied(Response::Done) => {
                self.doubt = false;
                self.outbid_copies();
            }
            Proposed::Applied(Response::NotYet(_)) | Proposed::Unknown => {}
            // The next attempt goes to whoever is known to lead by then.
            Proposed::NotLeader(_) => {}
        }
    }

    /// The cluster has just said that this start is the right one: gossip may say so louder than a copy
    /// has spoken. The number that it claims is counted first, so that the next start has a later one.
    fn outbid_copies(&mut self) {
        let Some(boot) = self.gossip.outbidding_boot() else {
            return;
        };
        match self.home.raise_boot(boot) {
            Ok(()) => self.gossip.outbid(self.now_ns, boot),
            // It stays unheard of for the time being, and tries again at the next sign of the copy.
            Err(error) => tracing::warn!(%error, "cannot count up to outbid a copy of this node"),
        }
    }

    /// Looks for signs that another start of this node's directory is about.
    pub(super) fn watch_for_copies(&mut self) {
        if self.gossip.saw_double() {
            self.doubt = true;
        }
        let (me, boot, nonce) = (self.me, self.boot, self.nonce);
        let newer = self.with_state(|state| {
            let member = state.members.get(&me)?;
            let other = member.boot > boot || (member.boot == boot && member.boot_nonce != nonce);
            other.then_some(boot)
        });
        if let Some(Some(boot)) = newer {
            self.refuse(start_number_used(boot));
        }
    }
}

async fn perform(raft: Raft, duty: Duty) {
    let command = match duty {
        Duty::Born(plan) => Command::Born {
            cluster: plan.cluster,
            config: plan.config,
            members: plan.members,
        },
        Duty::AddMember(member) => Command::AddMember { member },
        Duty::AdvanceEpoch(to, floor) => Command::AdvanceEpochWithFloor { to, floor },
        Duty::Step(from, floor) => Command::StepTransition { from, floor },
        Duty::Begin(request, change) => Command::BeginTransition { request, change },
        Duty::Abort(request) => Command::AbortTransition { request },
        Duty::Exclude(request, node) => Command::Exclude {
            request,
            node,
            forced: false,
        },
        Duty::RemoveMember(node) => Command::RemoveMember { node },
        Duty::AddLearners(nodes) => {
            let nodes = nodes
                .into_iter()
                .map(|node| (node, EmptyNode::new()))
                .collect();
            return change(raft, ChangeMembers::AddNodes(nodes)).await;
        }
        Duty::Promote(nodes) => return change(raft, ChangeMembers::AddVoterIds(nodes)).await,
        Duty::SetVoters(nodes) => {
            return change(raft, ChangeMembers::ReplaceAllVoters(nodes)).await;
        }
        Duty::DropLearners(nodes) => return change(raft, ChangeMembers::RemoveNodes(nodes)).await,
    };
    let text = command.to_string();
    match propose(raft, command).await {
        Proposed::Applied(Response::Done) => tracing::info!(command = text, "agreed on"),
        outcome => tracing::info!(command = text, ?outcome, "not agreed on"),
    }
}

async fn change(raft: Raft, change: ChangeMembers<NodeId, EmptyNode>) {
    let text = change.to_string();
    match Rt::timeout(PROPOSAL_TIMEOUT, raft.change_membership(change, true)).await {
        Ok(Ok(_)) => tracing::info!(change = text, "raft's members changed"),
        Ok(Err(error)) => tracing::info!(change = text, %error, "raft's members not changed"),
        Err(_) => tracing::info!(change = text, "raft's members: no answer yet"),
    }
}
