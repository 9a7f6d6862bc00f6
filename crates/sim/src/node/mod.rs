//! A simulated machine and the node that runs on it.
//!
//! The node is the real one: control part, core, store, hints, data directory. Only its shell is
//! ours. Where the real shell has threads and sockets, this one has events; it makes the same calls
//! in the same order, and its threads tell each other things with a small delay, so that all their
//! interleavings come about.
//!
//! The machine outlives the node: its disk, its clock and the engine's content stay over crashes.

mod control;
mod damage;
mod data;
mod engine;
mod heard;
mod machines;
mod store;

use std::sync::Arc;

use mds_cluster::{Control, ControlConfig, GossipTiming, RaftTiming, RingMode};
use mds_node::core::Core;
use mds_storage::datadir::{self, DataDir};
use mds_storage::engine::MemoryEngine;
use mds_storage::{Disk, FaultyDisk};
use mds_types::slot::partition_of;
use mds_types::{IncarnationId, MemberInfo, NodeId, PartitionId};

use crate::clock::Clock;
use crate::env::Env;
use crate::event::{ClientEvent, Event, NodeEvent, Part};
use crate::faults::MILLISECOND_NS;
use crate::oracle::queues_are_bounded;
use crate::random::Random;
use control::ControlLane;
use data::DataLane;
use store::StoreLane;

use damage::Rot;

pub(crate) use control::ControlInput;
pub(crate) use machines::Machines;

/// How often the leader raises the epoch is drawn for each run between these, milliseconds: a few times
/// in a run, or so often that there is nearly always an entry on its way.
const EPOCH_INTERVAL_MS_MIN: u64 = 300;
const EPOCH_INTERVAL_MS_MAX: u64 = 5_000;

/// Whether anything runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Power {
    /// The machine has no power.
    Off,
    /// The machine is up; the node may run or not.
    On,
}

/// Where the directory of a node comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// It has always been there.
    Itself,
    /// The former one was lost, after the cluster was born.
    Empty,
    /// An old copy has taken its place, or runs beside it.
    Copy,
}

/// A machine.
pub(crate) struct Machine {
    pub(crate) node: usize,
    pub(crate) power: Power,
    /// Counts the starts of the node.
    pub(crate) life: u64,
    pub(crate) process: Option<Process>,
    /// While the process stands still: what its kernel has taken for it meanwhile.
    pub(crate) held_back: Option<Vec<Event>>,
    /// How long the machine stays down when its power fails inside the disk.
    pub(crate) down_ns: u64,
    pub(crate) origin: Origin,
    /// The last start that the cluster has acknowledged.
    known_life: u64,
    /// A copy of the directory, and the start of the node in which it was taken.
    copy: Option<(FaultyDisk, MemoryEngine, u64)>,
    rot: Option<Rot>,
    clock: Clock,
    disk: FaultyDisk,
    engine: MemoryEngine,
    random: Random,
    epoch_interval_ms: u64,
    ring_mode: RingMode,
    peers: Vec<String>,
    /// Who the node on its directory is.
    pub(crate) id: Option<NodeId>,
    /// How often its peer address has changed.
    moves: u32,
    /// It is the spare one, and no node's directory lies there.
    is_bare: bool,
}

/// A running node.
pub(crate) struct Process {
    node: usize,
    life: u64,
    clock: Clock,
    disk: FaultyDisk,
    engine: MemoryEngine,
    incarnation: IncarnationId,
    origin: Origin,
    control: ControlLane,
    data: DataLane,
    store: Option<StoreLane>,
}

/// The peer address of a machine that has been moved so many times.
pub(crate) fn peer_addr(node: usize, moves: u32) -> String {
    match moves {
        0 => format!("node-{}:9100", node + 1),
        _ => format!("node-{}-moved-{moves}:9100", node + 1),
    }
}

impl Machine {
    pub(crate) fn new(node: usize, nodes: usize, ring_mode: RingMode, random: Random) -> Machine {
        let epoch_interval_ms = random
            .part("epoch interval", 0)
            .between(EPOCH_INTERVAL_MS_MIN, EPOCH_INTERVAL_MS_MAX);
        let mut random = random.part("machine", node);
        Machine {
            node,
            power: Power::On,
            life: 0,
            process: None,
            held_back: None,
            down_ns: MILLISECOND_NS,
            origin: Origin::Itself,
            known_life: 0,
            copy: None,
            rot: None,
            clock: Clock::draw(&mut random),
            disk: FaultyDisk::new(random.bits()),
            engine: MemoryEngine::new(),
            random,
            epoch_interval_ms,
            ring_mode,
            peers: (0..nodes).map(|node| peer_addr(node, 0)).collect(),
            id: None,
            moves: 0,
            is_bare: node >= nodes,
        }
    }

    pub(crate) fn disk(&self) -> &FaultyDisk {
        &self.disk
    }

    /// Whether there is nothing to start here.
    pub(crate) fn is_bare(&self) -> bool {
        self.is_bare
    }

    /// A machine that was not there is set up. False if something has been there already.
    pub(crate) fn unpack(&mut self) -> bool {
        let is_new = self.is_bare && self.life == 0;
        self.is_bare &= !is_new;
        is_new
    }

    /// The node has come onto the ring with an empty directory, as it was asked to.
    pub(crate) fn belongs_now(&mut self) {
        self.origin = Origin::Itself;
        if let Some(process) = &mut self.process {
            process.origin = Origin::Itself;
        }
    }

    /// Where others find the node.
    pub(crate) fn peer_addr(&self) -> String {
        peer_addr(self.node, self.moves)
    }

    /// From now on it is found elsewhere. The node must not run.
    pub(crate) fn change_address(&mut self, env: &mut Env) {
        env.machines.remove(&self.peer_addr());
        self.moves += 1;
        env.machines.insert(self.peer_addr(), self.node);
        env.line(|| format!("node {} is at {} now", self.node + 1, self.peer_addr()));
    }

    /// This start of the node, if it runs.
    pub(crate) fn running(&mut self, life: u64) -> Option<&mut Process> {
        self.process.as_mut().filter(|process| process.life == life)
    }

    /// Who the node on its directory is, once it was started.
    pub(crate) fn node_id(&self) -> Option<NodeId> {
        self.id
    }

    pub(crate) fn engine(&self) -> &MemoryEngine {
        &self.engine
    }

    /// Reads work again.
    pub(crate) fn read_again(&self) {
        self.disk.fail_reads(false);
        self.engine.fail_next_reads(0);
    }

    /// Changes the machine's clock.
    pub(crate) fn change_clock(&mut self, change: impl Fn(&mut Clock)) {
        change(&mut self.clock);
        if let Some(process) = &mut self.process {
            process.clock = self.clock;
        }
    }

    /// Starts the node from what is on the disk, as a real start does.
    ///
    /// # Errors
    /// Why it does not start.
    pub(crate) fn start(&mut self, env: &mut Env) -> Result<(), String> {
        self.power = Power::On;
        self.life += 1;
        let mut process = self.boot(env)?;
        let id = process.node_id();
        if let Some(before) = self.id.replace(id)
            && before != id
        {
            // The copy in the directory's place was taken before there was anything in it.
            env.lost.insert(before);
            env.watch.node_wiped(self.node);
            self.origin = Origin::Empty;
            process.origin = Origin::Empty;
        }
        env.line(|| format!("node {} starts for the {}. time", self.node + 1, self.life));
        let process = self.process.insert(process);
        process.first_turn(env);
        Ok(())
    }

    fn boot(&mut self, env: &mut Env) -> Result<Process, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let fresh = IncarnationId(self.random.bits_128() | 1);
        let directory =
            DataDir::open_or_create(disk.clone(), "memory", fresh).map_err(|e| text(&e))?;
        let boot = directory.next_boot().map_err(|e| text(&e))?;
        let mark = datadir::read_hlc_mark(&*disk)
            .map_err(|e| text(&e))?
            .unwrap_or_default();
        let partitions = datadir::read_partition_count(&*disk).map_err(|e| text(&e))?;
        let incarnation = directory.identity().incarnation;
        let cluster = directory.identity().cluster;
        let mono_ns = self.clock.at(env.now_ns).mono_ns;
        let config = self.control_config(env);
        let control =
            Control::open(disk.clone(), directory, boot, config, mono_ns).map_err(|e| text(&e))?;
        let store = match partitions {
            Some(count) => Some(StoreLane::open(
                &self.disk,
                &self.engine,
                (incarnation, cluster),
                count,
                (self.node, self.life),
                self.is_true_to_its_past(),
                env,
            )?),
            None => None,
        };
        let mut core = Core::new(queues_are_bounded::limits(), control.view().clone(), mark);
        if let Some(store) = &store {
            core.on_store_open(store.ledger(), store.hints_pending());
        }
        Ok(Process {
            node: self.node,
            life: self.life,
            clock: self.clock,
            disk: self.disk.clone(),
            engine: self.engine.clone(),
            incarnation,
            origin: self.origin,
            data: DataLane::new(core, control.view().clone()),
            control: ControlLane::new(control),
            store,
        })
    }

    fn control_config(&mut self, env: &Env) -> ControlConfig {
        let info = MemberInfo {
            name: format!("node-{}", self.node + 1),
            peer_addr: self.peer_addr(),
            resp_addr: String::new(),
            http_addr: String::new(),
            zone: String::new(),
            weight: 100,
        };
        // Whoever sets an empty directory up says where the others live now.
        let seeds = match self.origin {
            Origin::Empty => env.machines.keys().cloned().collect(),
            Origin::Itself | Origin::Copy => self.peers.clone(),
        };
        ControlConfig {
            info,
            seeds,
            raft: RaftTiming::default(),
            gossip: GossipTiming::default(),
            epoch_interval_ms: Some(self.epoch_interval_ms),
            seed: self.random.bits(),
            auto_add_members: true,
            ring_mode: self.ring_mode,
        }
    }

    /// The power fails: what was not synced is at the mercy of the disk. Nobody hears anything.
    pub(crate) fn lose_power(&mut self, env: &mut Env) {
        env.line(|| format!("node {} loses its power", self.node + 1));
        self.power = Power::Off;
        self.held_back = None;
        self.note_known_start();
        if let Some(process) = self.process.take() {
            for (conn, side) in env.network.conns_of(self.node, process.life) {
                env.network.leave(conn, side);
            }
            process.die(env);
        }
        // A start on damaged files that got half-way: what it did to them is of no interest.
        self.undo_rot();
        self.disk.crash();
    }

    /// The process dies; the machine's kernel tidies up behind it.
    pub(crate) fn kill(&mut self, env: &mut Env) {
        env.line(|| format!("node {} is killed", self.node + 1));
        self.note_known_start();
        let Some(process) = self.process.take() else {
            return;
        };
        self.held_back = None;
        for (conn, side) in env.network.conns_of(self.node, process.life) {
            env.send_part(conn, side.other(), Part::Reset);
            env.network.leave(conn, side);
        }
        for asker in process.data.askers() {
            env.tell_client(
                asker.client,
                ClientEvent::Broken {
                    attempt: asker.attempt,
                },
            );
        }
        process.die(env);
        self.disk.process_crash();
    }

    /// Remembers whether the cluster has acknowledged this start.
    fn note_known_start(&mut self) {
        let is_known = self.process.as_ref().is_some_and(|process| {
            let view = process.view();
            let member = view.members.get(&view.me);
            member.is_some_and(|member| member.boot == view.my_boot)
        });
        if is_known {
            self.known_life = self.life;
        }
    }

    /// Whether the directory has to hold all that the node has ever shown: not, if it is a copy, or if
    /// a disk has changed what is in it.
    fn is_true_to_its_past(&self) -> bool {
        self.origin != Origin::Copy && self.rot.is_none()
    }

    /// Plans the next start.
    pub(crate) fn start_after(&self, down_ns: u64, env: &mut Env) {
        env.after(down_ns, Event::Start { node: self.node });
    }
}

impl Process {
    fn first_turn(&mut self, env: &mut Env) {
        let view = self.control.view();
        env.node_after(0, self.name(), NodeEvent::ControlTurn);
        // A start that learnt of the cluster's birth and was cut off before it opened its store.
        if let Some(config) = &view.config
            && self.store.is_none()
        {
            let event = NodeEvent::OpenStore(config.partition_count);
            env.node_after(0, self.name(), event);
        }
        let hop_ns = env.hop_ns();
        env.node_after(hop_ns, self.name(), NodeEvent::View(view));
        self.arm_store(env);
    }

    /// Which start of which node this is.
    fn name(&self) -> (usize, u64) {
        (self.node, self.life)
    }

    /// Handles an event within this process.
    pub(crate) fn on_event(&mut self, event: NodeEvent, env: &mut Env) {
        match event {
            NodeEvent::DataTimer => self.on_data_timer(env),
            NodeEvent::EndTurn => self.end_turn(env),
            NodeEvent::View(view) => self.on_view(view, env),
            NodeEvent::Dial(peer) => self.dial(peer, env),
            NodeEvent::DialTimeout(conn) => self.on_dial_timeout(conn, env),
            NodeEvent::Writable(conn) => self.on_writable(conn, env),
            NodeEvent::OpenStore(partitions) => self.open_store(partitions, env),
            NodeEvent::StoreBegin => self.store_begins(env),
            NodeEvent::StoreFinish => self.store_finishes(env),
            NodeEvent::StoreDone(done) => self.on_store_done(*done, env),
            NodeEvent::StoreIdle { seq } => self.on_store_idle(seq, env),
            NodeEvent::Walk(question) => self.walk(question.0, &question.1, env),
            NodeEvent::Flush => self.flush(env),
            NodeEvent::ControlTurn | NodeEvent::ControlTimer => self.control_turn(env),
            NodeEvent::ControlSync => self.control_sync(env),
        }
    }

    /// The members that hold a key.
    pub(crate) fn holders(&self, key: &[u8]) -> Vec<NodeId> {
        let ring = self.data.core.ring();
        ring.replicas(partition_of(key, ring.partition_count()))
            .to_vec()
    }

    /// The members that hold a partition in the present ring.
    pub(crate) fn replicas(&self, partition: PartitionId) -> Vec<NodeId> {
        self.data.core.ring().replicas(partition).to_vec()
    }

    /// Who the node is in its cluster.
    pub(crate) fn node_id(&self) -> NodeId {
        self.incarnation.node_id()
    }

    /// Ends without a word.
    fn die(self, env: &mut Env) {
        self.tally(env);
        self.control.kill();
    }

    /// Counts what this start of the node came to do.
    pub(crate) fn tally(&self, env: &mut Env) {
        let core = self.data.core.stats();
        let store = self
            .store
            .as_ref()
            .map(|store| store.reader.stats())
            .unwrap_or_default();
        for (name, times) in [
            ("read hedged", core.hedges),
            ("read found a difference", core.disagreements),
            ("record repaired", core.repairs),
            ("hint stored", core.hints_stored),
            ("hint delivered", core.hints_delivered),
            ("request refused by a replica", core.replica_refusals),
            ("record superseded", store.superseded),
            ("segment flushed", store.flushes),
            ("scrub ended", core.scrub.passes),
            ("settled page compared", core.scrub.pages),
            ("scrub left to the next", core.scrub.skipped),
        ] {
            env.reached.add(name, times);
        }
    }
}
