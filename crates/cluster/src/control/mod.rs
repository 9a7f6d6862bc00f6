//! The control part of a node: gossip, Raft and what ties them together, without any I/O of its
//! own but the disk's.
//!
//! Inputs are datagrams, messages, administration requests and the time; [`Control::turn`] works
//! them off; [`Control::outputs`] is what is to be sent and shown. The shell (a thread with sockets,
//! or the simulator) owns the sockets and calls [`Control::sync_storage`] when asked to.
//!
//! **Invariants**
//!
//! 1. A cluster is born by an explicit [`AdminRequest::Init`], never by a timeout, and its birth
//!    goes on after a crash at any point: the plan is durable before the first step.
//! 2. A directory that has a cluster id keeps it for ever and refuses messages of other clusters.
//! 3. A start of a node serves nothing before the cluster has agreed on its start number; one whose
//!    number was used by another start (a copied or restored directory) stops.
//! 4. Gossip only says whom to invite and where to reach whom; members and votes are Raft's.
//!
//! 5. The ring changes by agreed commands alone. The leader proposes what is due; whether its conditions
//!    are met the agreed state judges by itself.
//!
//! What it does not do: stream, verify or drop data. The shell says when this node has acknowledged a
//! version ([`Control::on_acked`]) and when it holds what it gains ([`Control::on_ready`]).

mod api;
mod birth;
mod duties;
mod lead;
mod messages;
mod report;
mod ring;
mod show;

pub use api::{
    AdminError, AdminReply, AdminRequest, ControlConfig, ControlCounters, ControlError,
    ControlOutputs, RingMode, RingRequest,
};

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex};

use mds_storage::Disk;
use mds_storage::datadir::{DataDir, note_start};
use mds_types::mutation::{Mutation, is_on};
use mds_types::{ClusterId, NodeId, TopologyVersion};
use openraft_rt::AsyncRuntime;

use crate::exec::{Exec, lock};
use crate::gossip::{self, Gossip};
use crate::raft::{Applied, LogStore, Machine, Net, OpenMode, Outbox, Raft};
use crate::random::SplitMix64;
use crate::rt::Rt;
use crate::state::check_info;
use crate::view::{ClusterView, Standing};
use crate::wire::{BirthPlan, Proposed, RingOutcome};

/// How often the control part looks after what no event drives: invitations, announcements,
/// duties. Nanoseconds.
const TICK_NS: u64 = 100_000_000;

/// An administration request waits for its effect this long, nanoseconds. The effect itself is
/// durable and goes on without it.
const ADMIN_TIMEOUT_NS: u64 = 30_000_000_000;

/// Administration requests that may wait at a time; more are refused.
const ADMIN_WAITING_MAX: usize = 64;

struct RaftParts {
    raft: Raft,
    log: LogStore,
    applied: Arc<Mutex<Applied>>,
}

/// What a task tells the control part.
enum Event {
    /// The leader's duty came to an end, one way or the other.
    DutyDone,
    /// An announcement was answered.
    Announced(Proposed),
    /// An administrator's request was answered.
    Asked(u64, RingOutcome),
}

/// An `init` that waits for the birth.
struct WaitingInit {
    id: u64,
    deadline_ns: u64,
}

/// The control part of one node. See the module's chapter.
pub struct Control {
    disk: Arc<dyn Disk>,
    config: ControlConfig,
    home: DataDir,
    me: NodeId,
    boot: u64,
    nonce: u64,
    /// Drawn at this directory's starts before.
    earlier_starts: Vec<u64>,
    rng: SplitMix64,
    exec: Arc<Exec>,
    gossip: Gossip,
    outbox: Outbox,
    raft: Option<RaftParts>,
    plan: Option<BirthPlan>,
    events: Arc<Mutex<Vec<Event>>>,
    /// Incoming questions being answered.
    answering: Arc<AtomicUsize>,
    /// A leader has found this start's log to be what it expects.
    log_confirmed: Arc<AtomicBool>,
    counters: ControlCounters,

    now_ns: u64,
    next_tick_ns: u64,
    next_invite_ns: u64,
    next_announce_ns: u64,
    announcements: u64,
    /// The answer to the latest announcement has to carry this number, drawn at random: another
    /// start of this node's directory would count alike.
    announce_id: u64,
    /// Gossip has seen a start of this node's directory that is not this one.
    doubt: bool,
    duty_running: bool,
    epoch: lead::EpochClock,
    /// Planned members that are part of another cluster now.
    lost_to_others: BTreeSet<NodeId>,
    waiting: Vec<WaitingInit>,
    reports: report::Reports,
    clocks: report::Clocks,
    asks: Vec<ring::WaitingAsk>,
    watch: ring::RingWatch,

    stopped: Option<Standing>,
    fatal: Option<String>,
    fatal_shown: bool,
    view: Arc<ClusterView>,
    view_shown: bool,
    view_key: Option<show::ViewKey>,
    voters: show::Voters,
    admin: Vec<(u64, Result<AdminReply, AdminError>)>,
}

impl Control {
    /// Opens the control part of a data directory. Reads the disk, and goes on with a birth or an
    /// adoption that a crash interrupted.
    ///
    /// `home` is the directory on `disk`, and `boot` its start number, counted durably before this
    /// call ([`DataDir::next_boot`]).
    ///
    /// # Errors
    /// If the configuration is wrong, the disk fails, or the directory is damaged.
    pub fn open(
        disk: Arc<dyn Disk>,
        home: DataDir,
        boot: u64,
        config: ControlConfig,
        mono_ns: u64,
    ) -> Result<Control, ControlError> {
        check_info(&config.info).map_err(ControlError::Config)?;
        let bytes = gossip::info_bytes(&config.info);
        if bytes > gossip::INFO_BYTES_MAX {
            return Err(ControlError::Config(format!(
                "name, zone and addresses of this node take {bytes} bytes together: at most {} fit \
                 a datagram",
                gossip::INFO_BYTES_MAX
            )));
        }
        if config.info.peer_addr.is_empty() {
            return Err(ControlError::Config(
                "this node has no peer address".to_owned(),
            ));
        }
        config
            .raft
            .config()
            .map_err(|error| ControlError::Config(error.to_string()))?;

        let mut rng = SplitMix64::new(config.seed);
        let nonce = rng.draw();
        // Durable before anybody hears of it.
        let earlier_starts = note_start(&*disk, nonce)?;
        let exec = Exec::new(rng.draw(), mono_ns);
        let me = home.identity().node_id();
        let gossip = Gossip::new(
            gossip::Me {
                incarnation: home.identity().incarnation,
                boot,
                cluster: home.identity().cluster,
                info: Arc::new(config.info.clone()),
            },
            &config.gossip,
            config.seeds.clone(),
            rng.split(),
            mono_ns,
        );
        let view = Arc::new(ClusterView::unborn(me, config.info.clone(), boot));
        let mut control = Control {
            disk,
            home,
            me,
            boot,
            nonce,
            earlier_starts,
            rng,
            exec,
            gossip,
            outbox: Outbox::default(),
            raft: None,
            plan: None,
            events: Arc::default(),
            answering: Arc::default(),
            log_confirmed: Arc::default(),
            counters: ControlCounters::default(),
            now_ns: mono_ns,
            next_tick_ns: mono_ns,
            next_invite_ns: mono_ns,
            next_announce_ns: mono_ns,
            announcements: 0,
            announce_id: 0,
            doubt: false,
            duty_running: false,
            epoch: lead::EpochClock::new(config.epoch_interval_ms),
            lost_to_others: BTreeSet::new(),
            waiting: Vec::new(),
            reports: report::Reports::default(),
            clocks: report::Clocks::default(),
            asks: Vec::new(),
            watch: ring::RingWatch::default(),
            stopped: None,
            fatal: None,
            fatal_shown: false,
            view,
            view_shown: false,
            view_key: None,
            voters: show::Voters::default(),
            admin: Vec::new(),
            config,
        };
        control.resume()?;
        control.refresh_view();
        Ok(control)
    }

    /// Takes a gossip datagram.
    pub fn on_datagram(&mut self, mono_ns: u64, bytes: &[u8]) {
        if self.is_running() {
            self.gossip.on_datagram(mono_ns, bytes);
        }
    }

    /// Takes an administrator's request; the answer comes with [`Control::outputs`] under `id`.
    pub fn on_admin(&mut self, mono_ns: u64, id: u64, request: AdminRequest) {
        self.advance(mono_ns);
        let (config, expected_nodes) = match request {
            AdminRequest::Init {
                config,
                expected_nodes,
            } => (config, expected_nodes),
            AdminRequest::Ring { request, ask } => return self.begin_ask(id, request, ask),
            AdminRequest::TransitionStatus => {
                let status = AdminReply::Status(self.view.transition.clone());
                return self.admin.push((id, Ok(status)));
            }
        };
        match self.init(config, expected_nodes) {
            Ok(()) => {
                let deadline_ns = mono_ns.saturating_add(ADMIN_TIMEOUT_NS);
                self.waiting.push(WaitingInit { id, deadline_ns });
            }
            Err(error) => self.admin.push((id, Err(error))),
        }
    }

    /// This node's requests that it began under versions of the ring before this one have ended, and it will
    /// remember the version over restarts: says so to the cluster, until it is agreed on.
    pub fn on_acked(&mut self, version: TopologyVersion) {
        self.reports.acked(version);
    }

    /// This node holds, verified, what it gains in the change of the ring: says so to the cluster. `version`
    /// is that of the rings under which it was verified.
    pub fn on_ready(&mut self, version: TopologyVersion) {
        self.reports.ready(version);
    }

    /// Fires timers and runs tasks until nothing is left to do now. `wall_us` is the physical clock,
    /// microseconds since 1970: floors of epochs are made of it, nothing else.
    pub fn turn(&mut self, mono_ns: u64, wall_us: u64) {
        self.advance(mono_ns);
        self.clocks.set_own(wall_us);
        if self.is_running() {
            self.gossip.turn(self.now_ns);
            self.run_tasks();
            if self.now_ns >= self.next_tick_ns {
                self.next_tick_ns = self.now_ns + TICK_NS;
                self.tick();
                self.run_tasks();
            }
        }
        self.answer_waiting();
        self.give_up_asks();
        self.refresh_view();
    }

    /// When [`Control::turn`] has something to do again, if nothing comes from outside.
    pub fn next_deadline(&self) -> Option<u64> {
        if !self.is_running() {
            return None;
        }
        let others = [self.exec.next_deadline(), self.gossip.next_deadline()];
        others
            .into_iter()
            .flatten()
            .chain([self.next_tick_ns])
            .min()
    }

    /// Takes what has collected since the last call.
    pub fn outputs(&mut self) -> ControlOutputs {
        let messages = self.outgoing_messages();
        let view = (!std::mem::replace(&mut self.view_shown, true)).then(|| self.view.clone());
        let fatal = match &self.fatal {
            Some(reason) if !std::mem::replace(&mut self.fatal_shown, true) => Some(reason.clone()),
            _ => None,
        };
        ControlOutputs {
            datagrams: self.gossip.take_datagrams(),
            messages,
            view,
            admin: std::mem::take(&mut self.admin),
            wants_sync: self.is_running()
                && self
                    .raft
                    .as_ref()
                    .is_some_and(|parts| parts.log.wants_sync()),
            fatal,
        }
    }

    /// Makes Raft's log durable and tells Raft. Blocks for as long as the disk takes. Call
    /// [`Control::turn`] afterwards.
    ///
    /// # Errors
    /// If the disk fails; the control part has stopped then, and says so in its outputs too.
    pub fn sync_storage(&mut self, mono_ns: u64) -> io::Result<()> {
        self.advance(mono_ns);
        let Some(parts) = self.raft.as_ref().filter(|_| self.is_running()) else {
            return Ok(());
        };
        let log = parts.log.clone();
        let result = self.exec.enter(|| log.sync());
        if let Err(error) = &result {
            self.fail(format!("raft's log could not be made durable: {error}"));
        }
        result
    }

    /// What this node knows of its cluster.
    pub fn view(&self) -> &Arc<ClusterView> {
        &self.view
    }

    /// The number drawn at this start: part of this node's [`crate::Hello`].
    pub fn boot_nonce(&self) -> u64 {
        self.nonce
    }

    /// What was refused or dropped since this start.
    pub fn counters(&self) -> ControlCounters {
        let shed = self.counters.shed_messages + self.outbox.dropped();
        ControlCounters {
            gossip: self.gossip.counters(),
            shed_messages: shed,
            ..self.counters
        }
    }

    /// Goes in peace: tells gossip, so that the others need not find out. Send what
    /// [`Control::outputs`] then holds, and stop.
    pub fn leave(&mut self, mono_ns: u64) {
        self.advance(mono_ns);
        if self.is_running() {
            self.gossip.leave(mono_ns);
        }
    }

    /// Dies at once: no task runs any more, nothing is answered, sent or synced.
    pub fn kill(self) {
        drop(self);
    }

    fn cluster(&self) -> ClusterId {
        self.home.identity().cluster
    }

    fn is_running(&self) -> bool {
        self.stopped.is_none() && self.fatal.is_none()
    }

    fn advance(&mut self, mono_ns: u64) {
        self.now_ns = self.now_ns.max(mono_ns);
    }

    fn run_tasks(&mut self) {
        self.exec.turn(self.now_ns);
        let events = std::mem::take(&mut *lock(&self.events));
        for event in events {
            match event {
                Event::DutyDone => self.duty_running = false,
                Event::Announced(outcome) => self.on_announced(outcome),
                Event::Asked(key, outcome) => self.on_asked(key, outcome),
            }
        }
        self.look_for_failure();
    }

    fn tick(&mut self) {
        // Nobody was invited since the start.
        let waited_ns = self.now_ns.saturating_sub(self.next_invite_ns);
        if is_on(Mutation::SelfBootstrap) && self.cluster().is_none() && waited_ns > 1_000_000_000 {
            drop(self.init(mds_types::ClusterConfig::default(), 1));
        }
        self.watch_for_copies();
        self.invite();
        self.announce();
        self.report();
        self.try_asks();
        self.lead();
    }

    fn look_for_failure(&mut self) {
        if let Some(message) = self.exec.panicked() {
            self.fail(format!("a task of the control plane panicked: {message}"));
        } else if let Some(reason) = self.raft_failure() {
            self.fail(format!("raft has stopped: {reason}"));
        }
    }

    /// Stops for good because something broke.
    fn fail(&mut self, reason: String) {
        if self.is_running() {
            tracing::error!(reason, "the control plane has failed");
            self.fatal = Some(reason);
            self.exec.kill();
        }
    }

    /// Stops for good because this start may not be part of the cluster.
    fn refuse(&mut self, reason: String) {
        if self.is_running() {
            tracing::error!(reason, "this node is refused");
            self.stopped = Some(Standing::Refused(reason));
            self.gossip.leave(self.now_ns);
            self.exec.kill();
        }
    }

    fn answer_waiting(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let cluster = self.cluster();
        let stopped = match (&self.fatal, &self.stopped) {
            (Some(reason), _) | (_, Some(Standing::Refused(reason))) => Some(reason.clone()),
            _ => None,
        };
        let born = self
            .with_state(|state| !state.cluster.is_none())
            .unwrap_or(false);
        let members = self.plan.as_ref().map_or_else(Vec::new, BirthPlan::nodes);
        let now_ns = self.now_ns;
        let admin = &mut self.admin;
        self.waiting.retain(|waiting| {
            let answer = if born {
                Ok(AdminReply::Born {
                    cluster,
                    members: members.clone(),
                })
            } else if let Some(reason) = &stopped {
                Err(AdminError::Stopped(reason.clone()))
            } else if now_ns >= waiting.deadline_ns {
                Err(AdminError::StillForming(cluster))
            } else {
                return true;
            };
            admin.push((waiting.id, answer));
            false
        });
    }

    /// Starts Raft on what the directory holds.
    fn start_raft(&mut self, mode: OpenMode) -> Result<(), ControlError> {
        let salt_seed = self.home.identity().incarnation.0 as u64;
        let log = LogStore::open(self.disk.clone(), salt_seed, mode)?;
        let machine = Machine::new(self.disk.clone());
        let applied = machine.applied();
        let net = Net::new(self.me, self.outbox.clone());
        let timing = self.config.raft.config();
        let config = timing.map_err(|error| ControlError::Config(error.to_string()))?;
        let started = Arc::new(Mutex::new(None));
        let slot = started.clone();
        let (me, log_for_raft) = (self.me, log.clone());
        self.exec.enter(|| {
            drop(Rt::spawn(async move {
                let raft = Raft::new(me, config, net, log_for_raft, machine).await;
                *lock(&slot) = Some(raft);
            }));
        });
        self.exec.turn(self.now_ns);
        // All its disk accesses are done in line, so one turn is enough.
        let raft = match lock(&started).take() {
            Some(Ok(raft)) => raft,
            Some(Err(error)) => return Err(ControlError::Raft(error.to_string())),
            None => return Err(ControlError::Raft("it waits for something".to_owned())),
        };
        self.raft = Some(RaftParts { raft, log, applied });
        Ok(())
    }

    fn with_state<R>(&self, f: impl FnOnce(&crate::state::ClusterState) -> R) -> Option<R> {
        self.raft
            .as_ref()
            .map(|parts| f(&lock(&parts.applied).state))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // Raft's handles may only be dropped inside the executor.
        let parts = self.raft.take();
        self.exec.enter(|| drop(parts));
        self.exec.kill();
    }
}

#[cfg(test)]
mod tests;
