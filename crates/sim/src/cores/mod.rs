//! Three cores alone: the protocol of requests, thousands of seeds a second.
//!
//! A whole simulated node brings Raft, gossip, a log and a disk along, and most of a run is spent on
//! them. What coordinator and replica say to each other deserves many more runs than that allows. Here
//! the real [`Core`]s of three nodes stand alone: their view of the cluster is given, their store is a
//! map in memory that delays, refuses and fails ([`store`]), and every single *frame* between them has a
//! fate of its own: lost, late, doubled, overtaken. That is more than a stream does to it, so nothing
//! here can rely on the order of a connection by accident. Connections break besides, and one end may
//! hear of it long before the other.
//!
//! What is promised is held against what each store did, in [`promises`].
//!
//! Not here: hints (the store drops them, as it may), topology changes, crashes, pages and counts. The
//! runs of whole clusters have those, except for the last two.

mod client;
mod promises;
mod store;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mds_cluster::{ClusterView, MemberStage, MemberView, Standing};
use mds_node::api::{Now, Submit, Tag};
use mds_node::core::{Core, CoreConfig, Direction, LinkId};
use mds_node::store_io::{ReadQuery, StoreBatch, Ticket};
use mds_node::wire;
use mds_storage::store::Ledger;
use mds_types::{
    ClusterConfig, ClusterId, Epoch, Hlc, IncarnationId, MemberInfo, NodeId, Ring, Rings, Topology,
    TopologyMember, TopologyVersion,
};

use crate::faults::{Counts, MILLISECOND_NS};
use crate::queue::Queue;
use crate::random::Random;
use client::Clients;
use promises::Promises;
use store::MapStore;

/// Cores in a run, and replicas of each key.
const NODES: usize = 3;

/// Partitions of their cluster.
const PARTITION_COUNT: u16 = 8;

/// What the cores' wall clocks show when a run begins, microseconds since 1970.
const WALL_START_US: u64 = 1_893_456_000_000_000;

/// A wall clock is wrong by at most this much, microseconds.
const WALL_ERROR_US_MAX: u64 = 200_000;

/// When the last request is answered, what is left over ends within this time, nanoseconds: the
/// longest timeout of a request, and a health tick.
const REST_NS: u64 = (client::TIMEOUT_MS_MAX + 100) * MILLISECOND_NS;

/// A run that is not over by then never will be, nanoseconds.
const RUN_NS_MAX: u64 = 30_000 * MILLISECOND_NS;

/// What a run came to.
#[derive(Clone, Debug)]
pub struct CoresReport {
    /// The seed: the run can be had again from it.
    pub seed: u64,
    /// Events that were handled.
    pub events: u64,
    /// How long it lasted, nanoseconds of simulated time.
    pub sim_ns: u64,
    /// Faults, endings of requests and what the cores came to do, by name.
    pub counts: Counts,
    /// Promises that were broken: the sentence, and what was seen instead.
    pub broken: Vec<(&'static str, String)>,
}

/// What every batch of [`SEEDS_MIN`] seeds comes to; one that does not has tested less than it says.
pub const REACHED: [&str; 22] = [
    "connection broken",
    "epoch raised",
    "frame doubled",
    "frame late",
    "frame lost",
    "merge failed",
    "merge refused",
    "operation repeated",
    "read failed",
    "read hedged",
    "read met a difference",
    "record repaired",
    "hint kept",
    "store slow",
    "store stopped",
    "ended: absent",
    "ended: not ready",
    "ended: read",
    "ended: timed out",
    "ended: unavailable",
    "ended: unknown",
    "ended: written",
];

/// From so many seeds on, everything in [`REACHED`] has to have happened.
pub const SEEDS_MIN: u64 = 500;

/// Makes the run of a seed. A panic in it is a broken promise like any other.
pub fn run(seed: u64) -> CoresReport {
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed);
        world.live();
        world.report(seed)
    }));
    caught.unwrap_or_else(|_| CoresReport {
        seed,
        events: 0,
        sim_ns: 0,
        counts: Counts::default(),
        broken: vec![(
            "nothing panics",
            "the message went to the standard error".to_owned(),
        )],
    })
}

/// What happens.
enum Event {
    /// A client sends its operation, or sends it again.
    Submit { operation: usize },
    /// A frame arrives.
    Frame {
        node: usize,
        link: LinkId,
        bytes: BytesMut,
    },
    /// A store has got to a batch.
    Store { node: usize, batch: StoreBatch },
    /// A store's reader has got to a question.
    Read {
        node: usize,
        ticket: Ticket,
        query: ReadQuery,
    },
    /// A core's timer.
    Timer { node: usize },
    /// A connection breaks.
    Break { from: usize, to: usize },
    /// One end hears of it.
    Broken { node: usize, link: LinkId },
    /// It is dialled anew.
    Dial { from: usize, to: usize },
    /// A node learns of the next epoch.
    Raise { node: usize },
}

/// One core and what surrounds it.
struct Node {
    core: Core,
    view: Arc<ClusterView>,
    store: MapStore,
    wall_error_us: u64,
    /// When the timer that counts fires; others are stale.
    timer_ns: u64,
}

/// How often things go wrong in a run, parts per million.
struct Rates {
    lost_ppm: u32,
    doubled_ppm: u32,
    late_ppm: u32,
    late_ms_max: u64,
}

/// A connection: who dialled, who accepted, and their names for it.
struct Wire {
    from: usize,
    to: usize,
    dialled: LinkId,
    accepted: LinkId,
}

struct World {
    now_ns: u64,
    events: u64,
    queue: Queue<Event>,
    random: Random,
    rates: Rates,
    nodes: Vec<Node>,
    wires: Vec<Wire>,
    clients: Clients,
    promises: Promises,
    counts: Counts,
}

impl World {
    fn new(seed: u64) -> World {
        let random = Random::new(seed);
        let mut draw = random.part("cores", 0);
        let rates = Rates {
            lost_ppm: draw.below(40_001) as u32,
            doubled_ppm: draw.below(20_001) as u32,
            late_ppm: draw.below(60_001) as u32,
            late_ms_max: 1 + draw.below(300),
        };
        let view = first_view();
        let node = |index: usize| {
            let view = Arc::new(ClusterView {
                me: node_id(index),
                ..view.clone()
            });
            let mut core = Core::new(CoreConfig::default(), view.clone(), Hlc(0));
            core.on_store_open(Arc::new(Ledger::new(PARTITION_COUNT)), Vec::new());
            let mut random = random.part("store", index);
            Node {
                core,
                view,
                wall_error_us: random.below(WALL_ERROR_US_MAX),
                store: MapStore::new(random),
                timer_ns: u64::MAX,
            }
        };
        let mut world = World {
            now_ns: 0,
            events: 0,
            queue: Queue::default(),
            rates,
            nodes: (0..NODES).map(node).collect(),
            wires: Vec::new(),
            clients: Clients::new(random.part("clients", 0)),
            promises: Promises::new(NODES),
            counts: Counts::default(),
            random: draw,
        };
        for from in 0..NODES {
            for to in (0..NODES).filter(|&to| to != from) {
                world.dial(from, to);
            }
            world.turn(from);
        }
        world.plan_faults();
        for (at_ns, operation) in world.clients.first_submits() {
            world.queue.push(at_ns, Event::Submit { operation });
        }
        world
    }

    fn plan_faults(&mut self) {
        let during_ns = client::BUSY_NS;
        for _ in 0..self.random.below(4) {
            let from = self.random.index(NODES);
            let to = (from + 1 + self.random.index(NODES - 1)) % NODES;
            let at_ns = self.random.below(during_ns);
            self.queue.push(at_ns, Event::Break { from, to });
        }
        if self.random.below(2) == 0 {
            let at_ns = self.random.below(during_ns);
            for node in 0..NODES {
                let at_ns = at_ns + self.random.below(50 * MILLISECOND_NS);
                self.queue.push(at_ns, Event::Raise { node });
            }
        }
    }

    fn live(&mut self) {
        let mut until_ns = RUN_NS_MAX;
        let mut is_resting = false;
        while self.promises.broken().is_empty()
            && let Some((at_ns, event)) = self.queue.pop(until_ns)
        {
            self.now_ns = at_ns;
            self.events += 1;
            self.handle(event);
            if !is_resting && self.clients.are_done() {
                is_resting = true;
                until_ns = self.now_ns + REST_NS;
            }
        }
        if self.promises.broken().is_empty() {
            self.promises.at_the_end(&self.clients);
            for (index, node) in self.nodes.iter().enumerate() {
                let pending = node.core.stats().pending;
                if pending > 0 {
                    let detail = format!("node {} still has {pending} in flight", index + 1);
                    self.promises.add_broken("every operation ends", detail);
                }
            }
        }
    }

    fn report(self, seed: u64) -> CoresReport {
        let mut counts = self.counts;
        for node in &self.nodes {
            let stats = node.core.stats();
            counts.add("read hedged", stats.hedges);
            counts.add("read met a difference", stats.disagreements);
            counts.add("record repaired", stats.repairs);
        }
        CoresReport {
            seed,
            events: self.events,
            sim_ns: self.now_ns,
            counts,
            broken: self.promises.into_broken(),
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Submit { operation } => self.submit(operation),
            Event::Frame {
                node,
                link,
                mut bytes,
            } => {
                let now = self.now(node);
                let taken = self.nodes[node].core.on_link_bytes(now, link, &mut bytes);
                if let Err(error) = taken {
                    let sentence = "what a core sends, a core understands";
                    self.promises.add_broken(sentence, error.to_string());
                }
                self.turn(node);
            }
            Event::Store { node, batch } => {
                let now = self.now(node);
                let Node { core, store, .. } = &mut self.nodes[node];
                let done = store.execute(node, batch, &mut self.promises, &mut self.counts);
                core.on_store_done(now, done);
                self.turn(node);
            }
            Event::Read {
                node,
                ticket,
                query,
            } => {
                let now = self.now(node);
                let Node { core, store, .. } = &mut self.nodes[node];
                let answer = store.read(&query, &mut self.counts);
                core.on_read_done(now, ticket, &query, answer);
                self.turn(node);
            }
            Event::Timer { node } => {
                if self.now_ns >= self.nodes[node].timer_ns {
                    self.nodes[node].timer_ns = u64::MAX;
                    let now = self.now(node);
                    self.nodes[node].core.on_timer(now);
                    self.turn(node);
                }
            }
            Event::Break { from, to } => self.break_wire(from, to),
            Event::Broken { node, link } => {
                let now = self.now(node);
                self.nodes[node].core.on_link_closed(now, link);
                self.turn(node);
            }
            Event::Dial { from, to } => {
                self.dial(from, to);
                self.turn(from);
                self.turn(to);
            }
            Event::Raise { node } => {
                let Node { core, view, .. } = &mut self.nodes[node];
                *view = Arc::new(ClusterView {
                    epoch: Epoch(view.epoch.0 + 1),
                    ..ClusterView::clone(view)
                });
                core.on_view(view.clone());
                self.counts.count("epoch raised");
                self.turn(node);
            }
        }
    }

    /// Both clocks of a node.
    fn now(&self, node: usize) -> Now {
        let wall_us = WALL_START_US + self.nodes[node].wall_error_us + self.now_ns / 1_000;
        Now {
            mono_ns: self.now_ns,
            wall_us,
        }
    }

    fn submit(&mut self, operation: usize) {
        let (attempt, node, request) = self.clients.attempt(operation, self.now_ns, &self.promises);
        let now = self.now(node);
        let tag = Tag {
            front: mds_node::api::FRONT_HTTP,
            id: attempt as u64,
        };
        self.nodes[node].core.submit(now, request, tag);
        self.turn(node);
    }

    /// Everything that an input brought about leaves: to the store, to the peers, to the clients.
    fn turn(&mut self, node: usize) {
        let now = self.now(node);
        let random = &mut self.random;
        let Node { core, store, .. } = &mut self.nodes[node];
        loop {
            core.settle(now);
            let (reads, done) = (core.take_reads(), core.take_done());
            if reads.is_empty() && done.is_empty() {
                break;
            }
            for (ticket, query) in reads {
                if random.below(4) > 0 {
                    let answer = store.read(&query, &mut self.counts);
                    core.on_read_done(now, ticket, &query, answer);
                } else {
                    let at_ns = self.now_ns + store.delay_ns(&mut self.counts);
                    let event = Event::Read {
                        node,
                        ticket,
                        query,
                    };
                    self.queue.push(at_ns, event);
                }
            }
            for (tag, result) in done {
                let attempt = tag.id as usize;
                let again = self.clients.on_answer(
                    attempt,
                    result,
                    self.now_ns,
                    &mut self.promises,
                    &mut self.counts,
                );
                if let Some((at_ns, operation)) = again {
                    self.counts.count("operation repeated");
                    self.queue.push(at_ns, Event::Submit { operation });
                }
            }
        }
        if let Some(batch) = core.take_batch() {
            let at_ns = store.begin(self.now_ns, &mut self.counts);
            self.queue.push(at_ns, Event::Store { node, batch });
        }
        let timer_ns = core.next_deadline_ns().max(self.now_ns);
        if timer_ns < self.nodes[node].timer_ns {
            self.nodes[node].timer_ns = timer_ns;
            self.queue.push(timer_ns, Event::Timer { node });
        }
        self.send(node);
    }

    /// Every frame that a core has written gets its fate.
    fn send(&mut self, node: usize) {
        let core = &mut self.nodes[node].core;
        let lost = core.take_lost_links();
        for link in core.take_dirty_links() {
            let mut bytes = match core.link_output(link) {
                Some(output) => output.split(),
                None => continue,
            };
            let Some((peer, peer_link)) = other_end(&self.wires, node, link) else {
                // Nobody is there any more, and this end has not heard of it yet.
                continue;
            };
            while let Ok(Some(frame)) = wire::next_frame(&mut bytes) {
                if self.random.chance(self.rates.lost_ppm) {
                    self.counts.count("frame lost");
                    continue;
                }
                let is_doubled = self.random.chance(self.rates.doubled_ppm);
                if is_doubled {
                    self.counts.count("frame doubled");
                }
                for _ in 0..1 + u32::from(is_doubled) {
                    let at_ns = self.now_ns
                        + frame_delay_ns(&mut self.random, &self.rates, &mut self.counts);
                    let bytes = framed(&frame);
                    let event = Event::Frame {
                        node: peer,
                        link: peer_link,
                        bytes,
                    };
                    self.queue.push(at_ns, event);
                }
            }
        }
        for link in lost {
            let wire = self.wires.iter();
            let given_up = wire.clone().find(|w| w.from == node && w.dialled == link);
            if let Some(&Wire { from, to, .. }) = given_up {
                self.queue.push(self.now_ns, Event::Break { from, to });
            }
        }
    }

    fn dial(&mut self, from: usize, to: usize) {
        let (now, then) = (self.now(from), self.now(to));
        let direction = Direction::Dialled;
        let dialled = self.nodes[from]
            .core
            .on_link_open(now, node_id(to), direction);
        let direction = Direction::Accepted;
        let accepted = self.nodes[to]
            .core
            .on_link_open(then, node_id(from), direction);
        self.wires.push(Wire {
            from,
            to,
            dialled,
            accepted,
        });
    }

    /// A connection carries nothing any more. Its ends hear of it when they do; then it is dialled anew.
    fn break_wire(&mut self, from: usize, to: usize) {
        let mut wires = self.wires.iter();
        let Some(index) = wires.position(|wire| (wire.from, wire.to) == (from, to)) else {
            return;
        };
        self.counts.count("connection broken");
        let wire = self.wires.swap_remove(index);
        let mut heard_ns = self.now_ns;
        for (node, link) in [(from, wire.dialled), (to, wire.accepted)] {
            let most_ns = match self.random.below(4) {
                0 => 1_000 * MILLISECOND_NS,
                _ => MILLISECOND_NS,
            };
            let at_ns = self.now_ns + self.random.below(most_ns);
            self.queue.push(at_ns, Event::Broken { node, link });
            heard_ns = heard_ns.max(at_ns);
        }
        let pause_ns = self.random.below(100 * MILLISECOND_NS);
        self.queue
            .push(heard_ns + pause_ns, Event::Dial { from, to });
    }
}

fn other_end(wires: &[Wire], node: usize, link: LinkId) -> Option<(usize, LinkId)> {
    wires.iter().find_map(|wire| {
        if (wire.from, wire.dialled) == (node, link) {
            Some((wire.to, wire.accepted))
        } else if (wire.to, wire.accepted) == (node, link) {
            Some((wire.from, wire.dialled))
        } else {
            None
        }
    })
}

fn frame_delay_ns(random: &mut Random, rates: &Rates, counts: &mut Counts) -> u64 {
    if random.chance(rates.late_ppm) {
        counts.count("frame late");
        return random.below(rates.late_ms_max * MILLISECOND_NS);
    }
    random.between(50_000, 400_000)
}

fn framed(payload: &Bytes) -> BytesMut {
    let mut bytes = BytesMut::with_capacity(payload.len() + 16);
    wire::encode_frame(payload, &mut bytes);
    bytes
}

fn node_id(index: usize) -> NodeId {
    NodeId(index as u64 + 1)
}

/// A cluster of three active members, as each of them sees it.
fn first_view() -> ClusterView {
    let mut view = ClusterView::unborn(node_id(0), MemberInfo::default(), 1);
    view.standing = Standing::Active;
    view.cluster = ClusterId(1);
    view.config = Some(ClusterConfig {
        partition_count: PARTITION_COUNT,
        ..ClusterConfig::default()
    });
    view.epoch = Epoch(1);
    let members = (0..NODES).map(node_id);
    view.topology = Arc::new(Topology {
        version: TopologyVersion(1),
        members: members
            .clone()
            .map(|node| TopologyMember {
                node,
                zone: String::new(),
                weight: 100,
            })
            .collect(),
    });
    view.rings = Arc::new(Rings {
        version: TopologyVersion(1),
        accepted_from: TopologyVersion(1),
        current: Ring {
            topology: view.topology.clone(),
            config: view.config.clone().unwrap_or_default(),
        },
        settled: true,
        ..Rings::default()
    });
    view.members = members
        .map(|node| {
            let member = MemberView {
                incarnation: IncarnationId(u128::from(node.0)),
                boot: 1,
                boot_nonce: 1,
                info: MemberInfo::default(),
                stage: MemberStage::Active,
            };
            (node, member)
        })
        .collect();
    view
}

#[cfg(test)]
mod tests;
