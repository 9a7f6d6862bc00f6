//! A small simulator: one event queue, one seed, N control parts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use mds_storage::FaultyDisk;
use mds_storage::datadir::DataDir;
use mds_types::{
    ClusterConfig, ClusterId, IncarnationId, MemberInfo, NodeId, RequestId, RingStage,
    TopologyVersion,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::control::{
    AdminError, AdminReply, AdminRequest, Control, ControlConfig, ControlError, RingMode,
    RingRequest,
};
use crate::exec::lock;
use crate::gossip::GossipTiming;
use crate::raft::RaftTiming;
use crate::random::SplitMix64;
use crate::view::{ClusterView, RaftRole, Standing};

pub(super) const MS: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1_000 * MS;

/// Events at one instant of which it is a bug if they do not end.
const EVENTS_PER_INSTANT_MAX: u64 = 10_000;

enum Event {
    Turn {
        node: usize,
    },
    Datagram {
        to: usize,
        bytes: Bytes,
    },
    Message {
        to: usize,
        bytes: Bytes,
    },
    Synced {
        node: usize,
        life: u64,
    },
    /// The data core has drained what it began under older versions.
    Acked {
        node: usize,
        life: u64,
        version: TopologyVersion,
    },
    /// The data core holds what it gains.
    Ready {
        node: usize,
        life: u64,
        version: TopologyVersion,
    },
}

pub(super) struct Node {
    pub(super) disk: FaultyDisk,
    pub(super) control: Option<Control>,
    /// Why the last start or life ended, if it did not end by the test's hand.
    pub(super) died_of: Option<String>,
    addr: String,
    zone: String,
    /// Counts starts, so that what belongs to an earlier life is recognised.
    life: u64,
    next_turn: Option<u64>,
    syncing: bool,
    /// The version that the data core, played by the test, has drained for.
    drained: TopologyVersion,
    /// How far this node's physical clock is ahead, microseconds.
    pub(super) clock_ahead_us: u64,
    pub(super) admin: Vec<Result<AdminReply, AdminError>>,
}

pub(super) struct World {
    pub(super) now: u64,
    queue: BTreeMap<(u64, u64), Event>,
    next_seq: u64,
    pub(super) rng: SplitMix64,
    pub(super) nodes: Vec<Node>,
    by_addr: BTreeMap<String, usize>,
    cut: BTreeSet<(usize, usize)>,
    pub(super) loss_percent: u64,
    pub(super) epoch_interval_ms: Option<u64>,
    pub(super) ring_mode: RingMode,
    /// Nodes whose data core neither drains nor gets ready.
    pub(super) stuck: BTreeSet<usize>,
    pub(super) snapshot_every: u64,
    /// How long a sync takes, at most.
    pub(super) sync_ns_max: u64,
    seeds: Vec<String>,
    /// What was applied up to an index is the same wherever it was applied.
    digests: BTreeMap<(ClusterId, u64), u64>,
    trace: u64,
    events: u64,
}

impl World {
    /// `count` nodes with fresh disks, all started; the first two are the seeds.
    pub(super) fn new(seed: u64, count: usize) -> World {
        let mut world = World {
            now: SECOND,
            queue: BTreeMap::new(),
            next_seq: 0,
            rng: SplitMix64::new(seed),
            nodes: Vec::new(),
            by_addr: BTreeMap::new(),
            cut: BTreeSet::new(),
            loss_percent: 2,
            epoch_interval_ms: None,
            ring_mode: RingMode::Operator,
            stuck: BTreeSet::new(),
            snapshot_every: 40,
            sync_ns_max: 8 * MS,
            seeds: vec!["node-0:1".to_owned(), "node-1:1".to_owned()],
            digests: BTreeMap::new(),
            trace: seed,
            events: 0,
        };
        for _ in 0..count {
            world.add_node();
        }
        world
    }

    /// One more node with a fresh disk, started.
    pub(super) fn add_node(&mut self) -> usize {
        let seed = self.rng.draw();
        let node = self.add_stopped(FaultyDisk::new(seed));
        self.start(node);
        node
    }

    pub(super) fn add_stopped(&mut self, disk: FaultyDisk) -> usize {
        let node = self.nodes.len();
        let addr = format!("node-{node}:1");
        self.by_addr.insert(addr.clone(), node);
        self.nodes.push(Node {
            disk,
            control: None,
            died_of: None,
            addr,
            zone: format!("zone-{}", node % 3),
            life: 0,
            next_turn: None,
            syncing: false,
            drained: TopologyVersion(0),
            clock_ahead_us: 0,
            admin: Vec::new(),
        });
        node
    }

    fn open(&mut self, node: usize) -> Result<Control, String> {
        let seed = self.rng.draw();
        let fresh = IncarnationId(self.rng.next_u128());
        let config = self.config(node, seed);
        let disk = Arc::new(self.nodes[node].disk.clone());
        let home = DataDir::open_or_create(disk.clone(), "memory", fresh)
            .map_err(|error| error.to_string())?;
        let boot = home.next_boot().map_err(|error| error.to_string())?;
        Control::open(disk, home, boot, config, self.now)
            .map_err(|error: ControlError| error.to_string())
    }

    fn config(&self, node: usize, seed: u64) -> ControlConfig {
        let node = &self.nodes[node];
        ControlConfig {
            info: MemberInfo {
                name: node.addr.trim_end_matches(":1").to_owned(),
                peer_addr: node.addr.clone(),
                zone: node.zone.clone(),
                weight: 100,
                ..MemberInfo::default()
            },
            seeds: self.seeds.clone(),
            raft: RaftTiming {
                snapshot_every_entries: self.snapshot_every,
                ..RaftTiming::default()
            },
            gossip: GossipTiming::default(),
            epoch_interval_ms: self.epoch_interval_ms,
            seed,
            auto_add_members: true,
            ring_mode: self.ring_mode,
        }
    }

    /// Starts a stopped node. If it cannot start, it stays stopped and `died_of` says why.
    pub(super) fn start(&mut self, node: usize) {
        assert!(self.nodes[node].control.is_none(), "it runs");
        let opened = self.open(node);
        let entry = &mut self.nodes[node];
        entry.life += 1;
        entry.next_turn = None;
        entry.syncing = false;
        entry.drained = TopologyVersion(0);
        entry.died_of = None;
        match opened {
            Ok(control) => {
                entry.control = Some(control);
                self.after(node);
            }
            Err(reason) => entry.died_of = Some(reason),
        }
    }

    /// Kill, with or without a loss of power.
    pub(super) fn crash(&mut self, node: usize, lose_power: bool) {
        if let Some(control) = self.nodes[node].control.take() {
            control.kill();
        }
        if lose_power {
            self.nodes[node].disk.crash();
        } else {
            self.nodes[node].disk.process_crash();
        }
    }

    pub(super) fn restart(&mut self, node: usize) {
        self.crash(node, true);
        self.start(node);
    }

    /// A stopped node's directory is lost, and it starts on an empty one, at the same address.
    pub(super) fn wipe(&mut self, node: usize) {
        self.nodes[node].disk = FaultyDisk::new(self.rng.draw());
        self.start(node);
    }

    pub(super) fn cut_off(&mut self, one: usize) {
        for other in 0..self.nodes.len() {
            if other != one {
                self.cut.insert((one, other));
                self.cut.insert((other, one));
            }
        }
    }

    pub(super) fn heal(&mut self) {
        self.cut.clear();
    }

    pub(super) fn init(&mut self, node: usize, expected_nodes: usize) {
        let request = AdminRequest::Init {
            config: ClusterConfig::default(),
            expected_nodes,
        };
        let now = self.now;
        if let Some(control) = &mut self.nodes[node].control {
            control.on_admin(now, 1, request);
            self.after(node);
        }
    }

    pub(super) fn control(&self, node: usize) -> &Control {
        self.nodes[node].control.as_ref().expect("the node runs")
    }

    pub(super) fn view(&self, node: usize) -> &ClusterView {
        self.control(node).view()
    }

    pub(super) fn id(&self, node: usize) -> NodeId {
        self.view(node).me
    }

    pub(super) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|node| self.nodes[*node].control.is_some())
            .collect()
    }

    pub(super) fn leader(&self) -> Option<usize> {
        let leads = |node: &usize| self.view(*node).raft.role == RaftRole::Leader;
        // A leader that is cut off does not know yet that it leads nobody.
        self.running()
            .into_iter()
            .filter(leads)
            .max_by_key(|node| self.view(*node).raft.term)
    }

    pub(super) fn clusters(&self) -> BTreeSet<ClusterId> {
        self.running()
            .into_iter()
            .map(|node| self.view(node).cluster)
            .filter(|cluster| !cluster.is_none())
            .collect()
    }

    /// All running nodes have the same agreed state.
    pub(super) fn agree(&self) -> bool {
        let mut states = self.running().into_iter().map(|node| {
            let view = self.view(node);
            (
                &view.members,
                &view.rings,
                &view.floors,
                view.epoch,
                view.cluster,
            )
        });
        let first = states.next();
        states.all(|state| Some(state) == first)
    }

    pub(super) fn standing_is(&self, standing: &Standing, nodes: &[usize]) -> bool {
        nodes
            .iter()
            .all(|node| self.view(*node).standing == *standing)
    }

    /// Runs until `done`, at most for `limit` nanoseconds. Returns how long it took.
    #[track_caller]
    pub(super) fn run_until(&mut self, limit: u64, done: impl Fn(&World) -> bool) -> u64 {
        let start = self.now;
        while !done(self) {
            let waited = self.now - start;
            assert!(
                waited <= limit,
                "not within {} ms:\n{}",
                limit / MS,
                self.describe()
            );
            self.step();
        }
        self.now - start
    }

    pub(super) fn run_for(&mut self, duration: u64) {
        let end = self.now + duration;
        while self
            .queue
            .keys()
            .next()
            .is_some_and(|(time, _)| *time <= end)
        {
            self.step();
        }
        self.now = end;
    }

    fn step(&mut self) {
        let Some(((time, _), event)) = self.queue.pop_first() else {
            // Nothing is alive any more: only the test can change that.
            self.now += 10 * MS;
            return;
        };
        self.events = if time > self.now { 0 } else { self.events + 1 };
        assert!(self.events < EVENTS_PER_INSTANT_MAX, "time stands still");
        self.now = self.now.max(time);
        match event {
            Event::Turn { node } => {
                if self.nodes[node].next_turn == Some(time) {
                    self.nodes[node].next_turn = None;
                    self.note(&[1, node as u8]);
                    self.after(node);
                }
            }
            Event::Datagram { to, bytes } => {
                self.note(&bytes);
                let now = self.now;
                if let Some(control) = &mut self.nodes[to].control {
                    control.on_datagram(now, &bytes);
                    self.after(to);
                }
            }
            Event::Message { to, bytes } => {
                self.note(&bytes);
                let now = self.now;
                if let Some(control) = &mut self.nodes[to].control {
                    control.on_message(now, bytes);
                    self.after(to);
                }
            }
            Event::Acked {
                node,
                life,
                version,
            } => {
                if let Some(control) = self.control_of(node, life) {
                    control.on_acked(version);
                    self.after(node);
                }
            }
            Event::Ready {
                node,
                life,
                version,
            } => {
                if let Some(control) = self.control_of(node, life) {
                    control.on_ready(version);
                    self.after(node);
                }
            }
            Event::Synced { node, life } => {
                let now = self.now;
                let entry = &mut self.nodes[node];
                if entry.life == life
                    && let Some(control) = &mut entry.control
                {
                    entry.syncing = false;
                    // A failure shows in the outputs.
                    let _ = control.sync_storage(now);
                    self.after(node);
                }
            }
        }
    }

    fn control_of(&mut self, node: usize, life: u64) -> Option<&mut Control> {
        let entry = &mut self.nodes[node];
        entry.control.as_mut().filter(|_| entry.life == life)
    }

    /// What a data core does when the rings change: it drains, it streams.
    fn play_core(&mut self, node: usize) {
        if self.stuck.contains(&node) {
            return;
        }
        let view = self.control(node).view().clone();
        let rings = &view.rings;
        if rings.version <= self.nodes[node].drained || view.raft.role == RaftRole::None {
            return;
        }
        self.nodes[node].drained = rings.version;
        let (life, version) = (self.nodes[node].life, rings.version);
        let at = self.now + self.between(MS, 80 * MS);
        self.schedule(
            at,
            Event::Acked {
                node,
                life,
                version,
            },
        );
        let gains = rings
            .next
            .as_ref()
            .is_some_and(|ring| ring.topology.member(view.me).is_some());
        if rings.stage == RingStage::Stream && gains {
            let at = self.now + self.between(50 * MS, 500 * MS);
            self.schedule(
                at,
                Event::Ready {
                    node,
                    life,
                    version,
                },
            );
        }
    }

    /// Lets a core that was stuck go on.
    pub(super) fn unstick(&mut self, node: usize) {
        self.stuck.remove(&node);
        self.nodes[node].drained = TopologyVersion(0);
        self.after(node);
    }

    /// Asks a node for a change of the ring.
    pub(super) fn ask(&mut self, node: usize, request: u128, ask: RingRequest) {
        let now = self.now;
        let request = AdminRequest::Ring {
            request: RequestId(request),
            ask,
        };
        if let Some(control) = &mut self.nodes[node].control {
            control.on_admin(now, 2, request);
            self.after(node);
        }
    }

    /// A turn, and what comes of it.
    fn after(&mut self, node: usize) {
        let now = self.now;
        let entry = &mut self.nodes[node];
        let Some(control) = &mut entry.control else {
            return;
        };
        control.turn(now, now / 1_000 + entry.clock_ahead_us);
        let outputs = control.outputs();
        let deadline = control.next_deadline();
        entry
            .admin
            .extend(outputs.admin.into_iter().map(|(_, answer)| answer));
        if let Some(reason) = outputs.fatal {
            entry.died_of = Some(reason);
            entry.control = None;
            return;
        }
        self.check_agreement(node);
        self.play_core(node);
        for (addr, bytes) in outputs.datagrams {
            self.transmit(node, &addr, bytes, true);
        }
        for (_, addr, bytes) in outputs.messages {
            self.transmit(node, &addr, bytes, false);
        }
        if outputs.wants_sync && !self.nodes[node].syncing {
            self.nodes[node].syncing = true;
            let life = self.nodes[node].life;
            let limit = self.sync_ns_max;
            let at = self.now + self.between(MS, limit);
            self.schedule(at, Event::Synced { node, life });
        }
        if let Some(deadline) = deadline {
            let at = deadline.max(self.now);
            if self.nodes[node]
                .next_turn
                .is_none_or(|planned| at < planned)
            {
                self.nodes[node].next_turn = Some(at);
                self.schedule(at, Event::Turn { node });
            }
        }
    }

    fn transmit(&mut self, from: usize, addr: &str, bytes: Bytes, datagram: bool) {
        let Some(&to) = self.by_addr.get(addr) else {
            return;
        };
        if self.cut.contains(&(from, to)) || self.rng.draw() % 100 < self.loss_percent {
            return;
        }
        let copies = if self.rng.draw() % 100 < self.loss_percent {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let at = self.now + self.between(MS / 5, 3 * MS);
            let bytes = bytes.clone();
            let event = if datagram {
                Event::Datagram { to, bytes }
            } else {
                Event::Message { to, bytes }
            };
            self.schedule(at, event);
        }
    }

    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.rng.draw() % (high - low)
    }

    fn schedule(&mut self, at: u64, event: Event) {
        self.next_seq += 1;
        self.queue.insert((at, self.next_seq), event);
    }

    fn check_agreement(&mut self, node: usize) {
        let Some(parts) = &self.control(node).raft else {
            return;
        };
        let (index, digest) = {
            let applied = lock(&parts.applied);
            let Some(last) = applied.last else { return };
            (
                last.index,
                xxh3_64_with_seed(&applied.state.encode().unwrap(), last.index),
            )
        };
        let key = (self.view(node).cluster, index);
        let agreed = *self.digests.entry(key).or_insert(digest);
        assert_eq!(agreed, digest, "node {node} differs at entry {index}");
    }

    fn note(&mut self, bytes: &[u8]) {
        self.trace = xxh3_64_with_seed(bytes, self.trace ^ self.now);
    }

    /// Differs when anything happened differently.
    pub(super) fn trace(&self) -> u64 {
        self.trace
    }

    pub(super) fn describe(&self) -> String {
        let mut text = format!("at {} ms\n", self.now / MS);
        for (node, entry) in self.nodes.iter().enumerate() {
            match &entry.control {
                None => text += &format!("  {node}: down, {:?}\n", entry.died_of),
                Some(control) => {
                    let view = control.view();
                    let alive = view.peers.values().filter(|peer| peer.alive).count();
                    text += &format!(
                        "  {node}: {} boot {} {:?} of {} {:?} leader {:?} term {} applied {} voters \
                         {} members {} peers {}/{} epoch {} {:?} {:?}\n",
                        view.me,
                        view.my_boot,
                        view.standing,
                        view.cluster,
                        view.raft.role,
                        view.raft.leader,
                        view.raft.term,
                        view.raft.applied,
                        view.raft.voters.len(),
                        view.members.len(),
                        alive,
                        view.peers.len(),
                        view.epoch,
                        view.transition,
                        control.counters(),
                    );
                }
            }
        }
        text
    }
}

/// A world with a cluster of `count` nodes, all active.
#[track_caller]
pub(super) fn born(seed: u64, count: usize) -> World {
    let mut world = World::new(seed, count);
    gather(&mut world);
    world.init(0, count);
    let all: Vec<usize> = (0..count).collect();
    world.run_until(10 * SECOND, |world| {
        world.standing_is(&Standing::Active, &all) && world.agree()
    });
    world
}

/// Waits until every running node sees every other.
#[track_caller]
pub(super) fn gather(world: &mut World) {
    world.run_until(15 * SECOND, |world| {
        let running = world.running();
        running.iter().all(|node| {
            let view = world.view(*node);
            view.peers.values().filter(|peer| peer.alive).count() + 1 == running.len()
        })
    });
}
