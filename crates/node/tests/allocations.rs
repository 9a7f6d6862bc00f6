//! A guard that noise cannot fool: how often the cores of three nodes allocate for one request, all three together, in
//! the roles of coordinator and replica. Only calls of the core are counted: what the store allocates has a guard of
//! its own (`mds-storage`), and the shell's buffers are the shell's. Budgets are what it was when they were recorded,
//! and a little air; whoever lowers a count lowers its budget.

#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mds_cluster::{ClusterView, MemberStage, MemberView, Standing};
use mds_node::api::{FRONT_RESP, Now, Op, Outcome, Request, RequestOptions, Submit, Tag};
use mds_node::core::{Core, CoreConfig, Direction, LinkId};
use mds_node::store_io::{StoreIo, read};
use mds_storage::engine::MemoryEngine;
use mds_storage::hints::{HintLimits, HintStore};
use mds_storage::pace::Unpaced;
use mds_storage::store::{Store, StoreOptions};
use mds_storage::{Disk, FaultyDisk};
use mds_types::{
    ClusterConfig, ClusterId, Epoch, Hlc, IncarnationId, MemberInfo, NodeId, Ring, Rings, Topology,
    TopologyMember, TopologyVersion,
};

const NODES: u64 = 3;
const PARTITIONS: u16 = 8;
const KEYS: u64 = 1_024;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is handed on to the system's allocator as it came; the counter is a plain cell of this thread,
// without a destructor, so that it may be touched at any time.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A link from one node to another: its number at either end, and the bytes that have arrived.
struct Wire {
    from: usize,
    to: usize,
    out: LinkId,
    into: LinkId,
    arrived: BytesMut,
}

/// Three cores over stores in memory, and the wires between them.
struct Trio {
    cores: Vec<Core>,
    stores: Vec<StoreIo>,
    wires: Vec<Wire>,
    now: Now,
    /// Allocations within calls of a core so far.
    allocations: u64,
    answers: u64,
}

fn view_of(me: NodeId) -> Arc<ClusterView> {
    let config = ClusterConfig {
        partition_count: PARTITIONS,
        ..ClusterConfig::default()
    };
    let member = |node| TopologyMember {
        node,
        zone: format!("zone-{node}"),
        weight: 100,
    };
    let topology = Arc::new(Topology {
        version: TopologyVersion(1),
        members: (1..=NODES).map(|node| member(NodeId(node))).collect(),
    });
    let mut view = ClusterView::unborn(me, MemberInfo::default(), 1);
    view.standing = Standing::Active;
    view.cluster = ClusterId(1);
    view.config = Some(config.clone());
    view.epoch = Epoch(1);
    view.topology = topology.clone();
    view.rings = Arc::new(Rings {
        version: TopologyVersion(1),
        accepted_from: TopologyVersion(1),
        current: Ring { topology, config },
        settled: true,
        ..Rings::default()
    });
    for node in 1..=NODES {
        let member = MemberView {
            incarnation: IncarnationId(u128::from(node)),
            boot: 1,
            boot_nonce: 1,
            info: MemberInfo::default(),
            stage: MemberStage::Active,
        };
        view.members.insert(NodeId(node), member);
    }
    Arc::new(view)
}

fn store_of(node: u64) -> StoreIo {
    let disk: Arc<dyn Disk> = Arc::new(FaultyDisk::new(node));
    let options = StoreOptions {
        partition_count: PARTITIONS,
        ..StoreOptions::default()
    };
    let store = Store::open(disk.clone(), Arc::new(MemoryEngine::new()), options).unwrap();
    let hints = HintStore::open(disk.clone(), HintLimits::default()).unwrap();
    StoreIo::new(disk, store, hints)
}

impl Trio {
    fn new() -> Trio {
        let now = Now {
            mono_ns: 1_000_000_000,
            wall_us: 1_800_000_000_000_000,
        };
        let stores: Vec<_> = (1..=NODES).map(store_of).collect();
        let mut cores = Vec::new();
        for (node, store) in (1..=NODES).zip(&stores) {
            let mut core = Core::new(CoreConfig::default(), view_of(NodeId(node)), Hlc(0));
            core.on_store_open(store.ledger(), Vec::new());
            cores.push(core);
        }
        let mut wires = Vec::new();
        for from in 0..cores.len() {
            for to in (0..cores.len()).filter(|&to| to != from) {
                let id = |index: usize| NodeId(index as u64 + 1);
                let dialled = cores[from].on_link_open(now, id(to), Direction::Dialled);
                let accepted = cores[to].on_link_open(now, id(from), Direction::Accepted);
                let wire = |from, to, out, into| Wire {
                    from,
                    to,
                    out,
                    into,
                    arrived: BytesMut::new(),
                };
                wires.push(wire(from, to, dialled, accepted));
                wires.push(wire(to, from, accepted, dialled));
            }
        }
        let (allocations, answers) = (0, 0);
        Trio {
            cores,
            stores,
            wires,
            now,
            allocations,
            answers,
        }
    }

    /// A call of a core, whose allocations count.
    fn counted<T>(&mut self, node: usize, call: impl FnOnce(&mut Core, Now) -> T) -> T {
        let before = ALLOCATIONS.with(Cell::get);
        let result = call(&mut self.cores[node], self.now);
        self.allocations += ALLOCATIONS.with(Cell::get) - before;
        result
    }

    /// One turn of one node; whether anything happened.
    fn turn(&mut self, node: usize) -> bool {
        self.counted(node, |core, now| core.settle(now));
        let mut moved = false;
        let reader = self.stores[node].store().reader();
        for (ticket, query) in self.counted(node, |core, _| core.take_reads()) {
            let answer = read(&reader, &query, &Unpaced).ok();
            self.counted(node, |core, now| {
                core.on_read_done(now, ticket, &query, answer)
            });
            moved = true;
        }
        if let Some(batch) = self.counted(node, |core, _| core.take_batch()) {
            let done = self.stores[node].execute(batch);
            self.counted(node, |core, now| core.on_store_done(now, done));
            moved = true;
        }
        for (_, result) in self.counted(node, |core, _| core.take_done()) {
            match result.unwrap() {
                Outcome::Written { .. } | Outcome::Read { value: Some(_), .. } => self.answers += 1,
                other => panic!("{other:?}"),
            }
            moved = true;
        }
        moved
    }

    /// Carries what the cores have written to where it goes.
    fn carry(&mut self) -> bool {
        let mut moved = false;
        for index in 0..self.wires.len() {
            let Wire { from, to, out, .. } = self.wires[index];
            let output = self.cores[from].link_output(out).unwrap();
            if output.is_empty() {
                continue;
            }
            let wire = &mut self.wires[index];
            wire.arrived.extend_from_slice(output);
            output.clear();
            let (into, mut arrived) = (wire.into, std::mem::take(&mut wire.arrived));
            self.counted(to, |core, now| core.on_link_bytes(now, into, &mut arrived))
                .unwrap();
            self.wires[index].arrived = arrived;
            moved = true;
        }
        moved
    }

    fn run(&mut self) {
        loop {
            let mut moved = false;
            for node in 0..self.cores.len() {
                moved |= self.turn(node);
            }
            if !(moved | self.carry()) {
                return;
            }
        }
    }

    /// Allocations for each request of one to every key, at the first node, so many in a turn.
    fn allocations_a_request(
        &mut self,
        at_once: u64,
        options: &RequestOptions,
        op: impl Fn(Bytes) -> Op,
    ) -> f64 {
        let (before, answers_before) = (self.allocations, self.answers);
        for first in (0..KEYS).step_by(at_once as usize) {
            for id in first..first + at_once {
                let request = Request {
                    op: op(Bytes::from(format!("key:{id:012}"))),
                    options: options.clone(),
                };
                let front = FRONT_RESP;
                self.counted(0, |core, now| core.submit(now, request, Tag { front, id }));
            }
            self.run();
            self.now.mono_ns += 1_000_000;
            self.now.wall_us += 1_000;
        }
        assert_eq!(self.answers - answers_before, KEYS);
        (self.allocations - before) as f64 / KEYS as f64
    }

    fn set(&mut self, at_once: u64) -> f64 {
        let value = Bytes::from(vec![b'v'; 100]);
        self.allocations_a_request(at_once, &RequestOptions::default(), |key| Op::Put {
            key,
            value: value.clone(),
            expires_at_ms: None,
        })
    }

    fn get(&mut self, at_once: u64, read_quorum: u8) -> f64 {
        let options = RequestOptions {
            read_quorum: Some(read_quorum),
            ..RequestOptions::default()
        };
        self.allocations_a_request(at_once, &options, |key| Op::Get { key })
    }
}

#[test]
fn requests_allocate_within_their_budgets() {
    let mut trio = Trio::new();
    // Tables and buffers grow to what they need.
    trio.set(64);
    trio.get(64, 2);
    let measured = [
        ("SET, one at a time", trio.set(1), 10.25),
        ("SET, 64 at once", trio.set(64), 3.75),
        ("GET of two, one at a time", trio.get(1, 2), 6.25),
        ("GET of two, 64 at once", trio.get(64, 2), 3.5),
        ("GET of one, one at a time", trio.get(1, 1), 3.25),
        ("GET of one, 64 at once", trio.get(64, 1), 1.25),
    ];
    let mut is_over = false;
    for (what, found, budget) in measured {
        println!("{what}: {found:.2} allocations in three cores, budget {budget}");
        is_over |= found > budget;
    }
    assert!(!is_over, "a request allocates more than its budget");
}
