//! The control thread: datagrams, messages and administration into the control part, its outputs
//! out of it. While it syncs Raft's log it takes nothing in.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use mds_cluster::{
    AdminRequest, ClusterView, Control, MemberStage, MemberView, RaftRole, RequestFate, Standing,
};
use mds_node::core::RingReport;
use mds_types::{NodeId, TopologyVersion};

use super::{Origin, Process};
use crate::env::Env;
use crate::event::{Event, NodeEvent};
use crate::faults::Action;

/// Something for the control part.
pub(crate) enum ControlInput {
    Datagram(Bytes),
    Message(Bytes),
    Admin(AdminRequest),
    /// What the data thread says of this node's part in the ring.
    Report(RingReport),
}

/// The control thread's state.
pub(super) struct ControlLane {
    control: Control,
    /// As it was last shown to the other threads.
    shown: Arc<ClusterView>,
    inbox: VecDeque<ControlInput>,
    is_syncing: bool,
    is_turn_due: bool,
    /// When the timer that counts fires, simulated time; others are stale.
    timer_ns: u64,
    next_admin: u64,
}

impl ControlLane {
    pub(super) fn new(control: Control) -> ControlLane {
        ControlLane {
            shown: control.view().clone(),
            control,
            inbox: VecDeque::new(),
            is_syncing: false,
            is_turn_due: true,
            timer_ns: u64::MAX,
            next_admin: 0,
        }
    }

    pub(super) fn view(&self) -> Arc<ClusterView> {
        self.shown.clone()
    }

    pub(super) fn boot_nonce(&self) -> u64 {
        self.control.boot_nonce()
    }

    pub(super) fn kill(self) {
        self.control.kill();
    }
}

impl Process {
    /// Administrators' requests that wait for an answer here.
    pub(crate) fn requests_waiting(&self) -> usize {
        self.control.control.requests_waiting()
    }

    /// What the control part last said of the cluster.
    pub(crate) fn view(&self) -> &Arc<ClusterView> {
        &self.control.shown
    }

    /// Hands something to the control part.
    pub(crate) fn control_input(&mut self, input: ControlInput, env: &mut Env) {
        self.control.inbox.push_back(input);
        if !self.control.is_syncing && !self.control.is_turn_due {
            self.control.is_turn_due = true;
            let hop_ns = env.hop_ns();
            env.node_after(hop_ns, self.name(), NodeEvent::ControlTurn);
        }
    }

    pub(super) fn control_turn(&mut self, env: &mut Env) {
        if self.control.is_syncing {
            return;
        }
        self.control.is_turn_due = false;
        let now = self.clock.at(env.now_ns);
        let mono_ns = now.mono_ns;
        let lane = &mut self.control;
        while let Some(input) = lane.inbox.pop_front() {
            match input {
                ControlInput::Datagram(bytes) => lane.control.on_datagram(mono_ns, &bytes),
                ControlInput::Message(bytes) => lane.control.on_message(mono_ns, bytes),
                ControlInput::Report(report) => {
                    lane.control.on_acked(report.acked);
                    if report.is_ready {
                        lane.control.on_ready(report.acked);
                    }
                }
                ControlInput::Admin(request) => {
                    lane.next_admin += 1;
                    lane.control.on_admin(mono_ns, lane.next_admin, request);
                }
            }
        }
        lane.control.turn(mono_ns, now.wall_us);
        let outputs = lane.control.outputs();
        if self.disk.is_stopped() {
            // The power failed in this turn: nothing of it gets out.
            return;
        }
        let has_sent = !outputs.messages.is_empty();
        for (to, bytes) in outputs.datagrams {
            env.send_datagram(self.node, &to, bytes);
        }
        for (_, to, bytes) in outputs.messages {
            env.send_message(self.node, &to, bytes);
        }
        for (_, result) in outputs.admin {
            env.line(|| {
                format!(
                    "node {}: the answer to the administrator: {result:?}",
                    self.node + 1
                )
            });
            env.watch.init = Some(result);
        }
        if let Some(view) = outputs.view {
            self.show_view(view, env);
        }
        if let Some(reason) = outputs.fatal {
            env.node_failed(self.name(), format!("its control part stopped: {reason}"));
        }
        if outputs.wants_sync {
            self.control.is_syncing = true;
            let sync_ns = env.network.sync_ns(self.node, &mut env.counts);
            env.node_after(sync_ns, self.name(), NodeEvent::ControlSync);
            if has_sent && self.control.shown.raft.role == RaftRole::Leader {
                self.leader_syncs(sync_ns, env);
            }
        }
        self.arm_control_timer(env);
    }

    /// The leader's entries are on their way and not on its own disk yet: if that is what was waited for,
    /// its power fails before they are.
    fn leader_syncs(&mut self, sync_ns: u64, env: &mut Env) {
        if let Some(down_ns) = env.leader_loss.take() {
            env.counts.count("leader's power lost before its sync");
            let node = self.node;
            let after_ns = env.some_ns(0, sync_ns - 1);
            env.after(after_ns, Event::Act(Action::PowerLoss { node, down_ns }));
        }
    }

    fn arm_control_timer(&mut self, env: &mut Env) {
        let Some(deadline_ns) = self.control.control.next_deadline() else {
            return;
        };
        let at_ns = self.clock.when(deadline_ns).max(env.now_ns);
        if at_ns < self.control.timer_ns || self.control.timer_ns <= env.now_ns {
            self.control.timer_ns = at_ns;
            let delay_ns = at_ns - env.now_ns;
            env.node_after(delay_ns, self.name(), NodeEvent::ControlTimer);
        }
    }

    pub(super) fn control_sync(&mut self, env: &mut Env) {
        let mono_ns = self.clock.at(env.now_ns).mono_ns;
        let synced = self.control.control.sync_storage(mono_ns);
        if self.disk.is_stopped() {
            return;
        }
        if let Err(error) = synced {
            // It must not go on: what it acknowledged might be lost. It is over with this start.
            return env.node_failed(self.name(), format!("cannot sync Raft's log: {error}"));
        }
        self.control.is_syncing = false;
        self.control_turn(env);
    }

    /// Whose directory is a copy has to be refused, who is new has to wait, everybody else neither.
    fn look_at_standing(&mut self, standing: &Standing, env: &mut Env) {
        let node = self.node + 1;
        match (self.origin, standing) {
            (Origin::Copy, Standing::Refused(reason)) => {
                env.counts.count("restored copy refused");
                env.line(|| format!("node {node} is refused, and rightly: {reason}"));
                env.node_failed(self.name(), format!("refused: {reason}"));
            }
            // It has left, and nobody knows it any more.
            (_, Standing::Refused(_)) if env.welcome.contains(&self.node_id()) => {}
            (_, Standing::Refused(reason)) if env.struck_out.contains(&self.node_id()) => {
                env.node_failed(self.name(), format!("refused: {reason}"));
            }
            (_, Standing::Refused(reason)) => {
                let detail = format!("node {node} was refused: {reason}");
                env.violated("a node that nothing is wrong with goes on", detail);
            }
            (Origin::Copy, Standing::Active) => {
                let detail = format!("node {node} came from a copy and is active");
                env.violated("an old copy of a directory is refused", detail);
            }
            (Origin::Empty, Standing::Active)
                if !env.welcome.contains(&self.node_id())
                    && !env.newcomers.contains(&self.node_id()) =>
            {
                let detail = format!("node {node} was wiped and holds data already");
                env.violated("a node that lost its directory is a new one", detail);
            }
            (Origin::Empty, Standing::Waiting) => env.counts.count("wiped node waits"),
            _ => {}
        }
    }

    fn show_view(&mut self, view: Arc<ClusterView>, env: &mut Env) {
        let before = std::mem::replace(&mut self.control.shown, view.clone());
        let is_copy = self.origin == Origin::Copy;
        if let Some(broken) = env.watch.view(self.name(), is_copy, &view) {
            env.violated(broken.0, broken.1);
        }
        if !is_copy {
            count_ring(&view, env);
            if env.is_auto {
                note_members(&before, &view, env);
            }
        }
        if before.standing != view.standing {
            env.line(|| format!("node {} is {:?} now", self.node + 1, view.standing));
            self.look_at_standing(&view.standing, env);
        }
        let (was, is) = (before.raft.role, view.raft.role);
        if was != is || before.raft.term != view.raft.term {
            let term = view.raft.term;
            env.line(|| format!("node {} is Raft's {is:?} in term {term}", self.node + 1));
            if is == RaftRole::Leader {
                env.reached.count("leader elected");
            }
        }
        if before.epoch != view.epoch {
            env.line(|| format!("node {} has learnt of epoch {}", self.node + 1, view.epoch));
            env.reached.count("epoch learnt");
        }
        if before.config.is_none()
            && let Some(config) = &view.config
            && self.store.is_none()
        {
            let delay_ns = env.some_ns(100_000, 5_000_000);
            let event = NodeEvent::OpenStore(config.partition_count);
            env.node_after(delay_ns, self.name(), event);
        }
        let hop_ns = env.hop_ns();
        env.node_after(hop_ns, self.name(), NodeEvent::View(view));
    }
}

/// Who has come, and who is no member any more. The leader decides on both by itself.
fn note_members(before: &ClusterView, view: &ClusterView, env: &mut Env) {
    let waits = |(node, member): (&NodeId, &MemberView)| {
        (member.stage == MemberStage::Waiting).then_some(*node)
    };
    env.newcomers.extend(view.members.iter().filter_map(waits));
    let gone = before.members.keys();
    let gone = gone.filter(|node| !view.members.contains_key(node));
    env.struck_out.extend(gone);
}

/// Counts what becomes of the ring, when a node is the first to show it.
fn count_ring(view: &Arc<ClusterView>, env: &mut Env) {
    let before = env.newest_ring.replace(view.clone());
    // Founders do not join: they were there.
    let Some(before) = before.filter(|before| before.topology.version > TopologyVersion(0)) else {
        return;
    };
    if before.topology.version >= view.topology.version {
        env.newest_ring = Some(before);
        return;
    }
    let (version, stage) = (view.topology.version, view.transition.stage);
    env.line(|| {
        format!(
            "version {version} of the ring: {stage}, {}",
            view.transition.change
        )
    });
    env.reached.count("stage passed");
    let replicas = |view: &ClusterView| view.config.as_ref().map(|config| config.replicas);
    if replicas(&before) != replicas(view) {
        env.reached.count("n changed");
    }
    let is_on = |view: &ClusterView, node| view.topology.member(node).is_some();
    for member in &view.topology.members {
        if !is_on(&before, member.node) {
            env.reached.count("node joined");
            if env.newcomers.contains(&member.node) {
                env.reached.count("node joined by itself");
            }
        }
    }
    let gone: Vec<NodeId> = before
        .topology
        .members
        .iter()
        .map(|member| member.node)
        .collect();
    for node in gone.into_iter().filter(|node| !is_on(view, *node)) {
        let name = match env.lost.contains(&node) {
            true if env.is_auto => "node replaced by itself",
            true => "node replaced",
            false if env.welcome.contains(&node) => "node left",
            false => "node removed for being away",
        };
        env.reached.count(name);
    }
    let was_known = &before.transition.requests;
    for request in &view.transition.requests {
        if !was_known.contains(request) {
            match request.1 {
                RequestFate::Finished => env.reached.count("ring changed"),
                RequestFate::Aborted => env.reached.count("change aborted"),
                RequestFate::Running => env.reached.count("ring change begun"),
            }
        }
    }
}
