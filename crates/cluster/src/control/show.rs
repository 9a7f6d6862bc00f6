//! What the node shows of all this: the [`ClusterView`].

use std::sync::Arc;

use mds_types::NodeId;
use openraft::ServerState;
use openraft_rt::WatchReceiver;

use super::Control;
use crate::exec::lock;
use crate::raft::StoredMembership;
use crate::view::{ClusterView, MemberStage, RaftRole, RaftStatus, Standing, TransitionView};

/// Changes whenever the view may have to change: cheaper to compare than to rebuild the view.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ViewKey {
    gossip: u64,
    applied: u64,
    raft: RaftStatus,
    standing: Standing,
}

/// The voters of one membership. Listing them is dear, and they hardly ever change: so they are kept
/// for as long as Raft shows the very same membership.
#[derive(Default)]
pub(super) struct Voters {
    of: Option<Arc<StoredMembership>>,
    nodes: Vec<NodeId>,
}

impl Voters {
    fn of(&mut self, membership: &Arc<StoredMembership>) -> Vec<NodeId> {
        let is_same = |known| Arc::ptr_eq(known, membership);
        if !self.of.as_ref().is_some_and(is_same) {
            self.nodes = membership.voter_ids().collect();
            self.of = Some(membership.clone());
        }
        self.nodes.clone()
    }
}

impl Control {
    /// How this node stands, from what Raft has agreed on.
    pub(super) fn standing(&self) -> Standing {
        if let Some(stopped) = &self.stopped {
            return stopped.clone();
        }
        if self.cluster().is_none() {
            return Standing::Unborn;
        }
        let (me, boot, nonce) = (self.me, self.boot, self.nonce);
        let stage = self.with_state(|state| {
            let member = state.members.get(&me)?;
            (member.boot == boot && member.boot_nonce == nonce).then_some(member.stage)
        });
        match stage.flatten() {
            // A joiner takes writes before it is on the present ring, and one that leaves still does.
            Some(MemberStage::Active | MemberStage::Joining | MemberStage::Leaving) => {
                Standing::Active
            }
            Some(MemberStage::Waiting | MemberStage::Left) => Standing::Waiting,
            None => Standing::Joining,
        }
    }

    fn raft_status(&mut self) -> RaftStatus {
        let Some(parts) = &self.raft else {
            return RaftStatus::default();
        };
        let (applied, chain) = {
            let applied = lock(&parts.applied);
            let last = applied.last.map(|last| last.index);
            (last.unwrap_or(0), applied.chain.filter(|_| last.is_some()))
        };
        let voters = &mut self.voters;
        self.exec.enter(|| {
            let metrics = parts.raft.metrics();
            let metrics = metrics.borrow_watched();
            RaftStatus {
                role: match metrics.state {
                    ServerState::Learner => RaftRole::Learner,
                    ServerState::Follower => RaftRole::Follower,
                    ServerState::Candidate => RaftRole::Candidate,
                    ServerState::Leader => RaftRole::Leader,
                    ServerState::Shutdown => RaftRole::None,
                },
                leader: metrics.current_leader,
                term: metrics.current_term,
                applied,
                chain,
                voters: voters.of(&metrics.membership_config),
            }
        })
    }

    /// Replaces the view if anything in it changed.
    pub(super) fn refresh_view(&mut self) {
        let raft = self.raft_status();
        let key = ViewKey {
            gossip: self.gossip.revision(),
            applied: self
                .raft
                .as_ref()
                .map_or(0, |parts| lock(&parts.applied).revision),
            raft,
            standing: self.standing(),
        };
        if self.view_key.as_ref() == Some(&key) {
            return;
        }
        let mut view = ClusterView {
            standing: key.standing.clone(),
            cluster: self.cluster(),
            peers: self.gossip.views(),
            raft: key.raft.clone(),
            ..ClusterView::unborn(self.me, self.config.info.clone(), self.boot)
        };
        if let Some(parts) = &self.raft {
            let applied = lock(&parts.applied);
            let state = &applied.state;
            view.config = state.config.clone();
            view.epoch = state.epoch;
            view.members = state.members.clone();
            view.transition = TransitionView::of(state);
            let rings = state.rings();
            view.rings = match *self.view.rings == rings {
                true => self.view.rings.clone(),
                false => Arc::new(rings),
            };
            view.floors = match *self.view.floors == state.floors {
                true => self.view.floors.clone(),
                false => Arc::new(state.floors.clone()),
            };
            view.topology = if *self.view.topology == state.topology {
                self.view.topology.clone()
            } else {
                Arc::new(state.topology.clone())
            };
        }
        self.view_key = Some(key);
        if *self.view != view {
            self.view = Arc::new(view);
            self.view_shown = false;
        }
    }
}
