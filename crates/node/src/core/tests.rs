//! Three cores over real stores on disks in memory, driven by hand: every message, every batch and the
//! time are moved by the test.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use mds_cluster::{MemberStage, MemberView};
use mds_storage::disk::FaultyDisk;
use mds_storage::engine::memory::MemoryEngine;
use mds_storage::hints::{HintLimits, HintStore};
use mds_storage::store::{Store, StoreOptions};
use mds_types::{
    ClusterConfig, ClusterId, IncarnationId, MemberInfo, Ring, Rings, Topology, TopologyMember,
    Version,
};

use super::*;
use crate::api::{FRONT_HTTP, RequestOptions, Stamp};
use crate::store_io::{StoreIo, read};

const START_US: u64 = 1_800_000_000_000_000;

pub(super) struct TestNode {
    pub(super) core: Core,
    pub(super) io: StoreIo,
    disk: FaultyDisk,
    pub(super) engine: MemoryEngine,
    /// While set, batches stay where they are: a store that takes its time.
    is_store_slow: bool,
}

/// Three nodes and the wires between them.
pub(super) struct Trio {
    pub(super) nodes: BTreeMap<NodeId, TestNode>,
    /// Dialled link of the first to the second, and the second's accepted end.
    wires: BTreeMap<(NodeId, NodeId), (LinkId, LinkId)>,
    /// Nodes that take nothing in: stopped processes.
    pub(super) frozen: BTreeSet<NodeId>,
    pub(super) now: Now,
    next_tag: u64,
    answers: BTreeMap<u64, Result<Outcome, RequestError>>,
}

pub(super) fn id(number: u64) -> NodeId {
    NodeId(number)
}

fn view_of(me: NodeId) -> Arc<ClusterView> {
    let mut view = ClusterView::unborn(me, MemberInfo::default(), 1);
    view.standing = Standing::Active;
    view.cluster = ClusterId(1);
    view.config = Some(ClusterConfig {
        partition_count: 8,
        ..ClusterConfig::default()
    });
    view.epoch = Epoch(1);
    let members = (1..=3).map(id);
    view.topology = Arc::new(Topology {
        version: TopologyVersion(1),
        members: members
            .clone()
            .map(|node| TopologyMember {
                node,
                zone: format!("z{node}"),
                weight: 100,
            })
            .collect(),
    });
    view.rings = Arc::new(Rings {
        version: TopologyVersion(1),
        accepted_from: TopologyVersion(1),
        current: Ring {
            topology: view.topology.clone(),
            config: view.config.clone().unwrap(),
        },
        settled: true,
        ..Rings::default()
    });
    for node in members {
        let member = MemberView {
            incarnation: IncarnationId(u128::from(node.0)),
            boot: 1,
            boot_nonce: 1,
            info: MemberInfo::default(),
            stage: MemberStage::Active,
        };
        view.members.insert(node, member);
    }
    Arc::new(view)
}

impl Trio {
    pub(super) fn new() -> Trio {
        let now = Now {
            mono_ns: 1_000_000_000,
            wall_us: START_US,
        };
        let mut trio = Trio {
            nodes: BTreeMap::new(),
            wires: BTreeMap::new(),
            frozen: BTreeSet::new(),
            now,
            next_tag: 0,
            answers: BTreeMap::new(),
        };
        for node in (1..=3).map(id) {
            let disk = FaultyDisk::new(node.0);
            let shared: Arc<dyn mds_storage::Disk> = Arc::new(disk.clone());
            let options = StoreOptions {
                partition_count: 8,
                // What an engine shows is seen at once, also by tests that tamper with it.
                cache_bytes_max: 0,
                ..StoreOptions::default()
            };
            let engine = MemoryEngine::new();
            let shown = Arc::new(engine.clone());
            let store = Store::open(shared.clone(), shown, options).unwrap();
            let hints = HintStore::open(shared.clone(), HintLimits::default()).unwrap();
            let io = StoreIo::new(shared, store, hints);
            let mut core = Core::new(CoreConfig::default(), view_of(node), Hlc(0));
            core.on_store_open(io.ledger(), Vec::new());
            trio.nodes.insert(
                node,
                TestNode {
                    core,
                    io,
                    disk,
                    engine,
                    is_store_slow: false,
                },
            );
        }
        for from in (1..=3).map(id) {
            for to in (1..=3).map(id).filter(|&to| to != from) {
                trio.connect(from, to);
            }
        }
        trio
    }

    pub(super) fn node(&mut self, number: u64) -> &mut TestNode {
        self.nodes.get_mut(&id(number)).unwrap()
    }

    fn connect(&mut self, from: NodeId, to: NodeId) {
        let now = self.now;
        let core = |trio: &mut Trio, node, peer, direction| {
            trio.nodes
                .get_mut(&node)
                .unwrap()
                .core
                .on_link_open(now, peer, direction)
        };
        let dialled = core(self, from, to, Direction::Dialled);
        let accepted = core(self, to, from, Direction::Accepted);
        self.wires.insert((from, to), (dialled, accepted));
    }

    /// The process at a node dies: every connection of it breaks.
    pub(super) fn kill(&mut self, number: u64) {
        let gone = id(number);
        let now = self.now;
        let broken: Vec<_> = self
            .wires
            .keys()
            .copied()
            .filter(|wire| wire.0 == gone || wire.1 == gone)
            .collect();
        for wire in broken {
            let (dialled, accepted) = self.wires.remove(&wire).unwrap();
            self.nodes
                .get_mut(&wire.0)
                .unwrap()
                .core
                .on_link_closed(now, dialled);
            self.nodes
                .get_mut(&wire.1)
                .unwrap()
                .core
                .on_link_closed(now, accepted);
        }
    }

    pub(super) fn revive(&mut self, number: u64) {
        for other in (1..=3).filter(|&other| other != number) {
            self.connect(id(number), id(other));
            self.connect(id(other), id(number));
        }
    }

    /// One turn of one node; whether anything happened.
    fn turn(&mut self, node: NodeId) -> bool {
        if self.frozen.contains(&node) {
            return false;
        }
        let now = self.now;
        let mut moved = false;
        let TestNode {
            core,
            io,
            is_store_slow,
            ..
        } = self.nodes.get_mut(&node).unwrap();
        core.settle(now);
        let reader = io.store().reader();
        for (ticket, query) in core.take_reads() {
            let answer = read(&reader, &query, &mds_storage::pace::Unpaced).ok();
            core.on_read_done(now, ticket, &query, answer);
            moved = true;
        }
        if io.store().wants_flush() {
            io.store().flusher().work().unwrap();
        }
        if !*is_store_slow && let Some(batch) = core.take_batch() {
            let done = io.execute(batch);
            core.on_store_done(now, done);
            moved = true;
        }
        for (tag, result) in core.take_done() {
            assert!(
                self.answers.insert(tag.id, result).is_none(),
                "answered twice"
            );
            moved = true;
        }
        moved
    }

    /// Carries bytes over every wire whose receiver is awake.
    fn carry(&mut self) -> bool {
        let now = self.now;
        let mut moved = false;
        for ((from, to), (dialled, accepted)) in self.wires.clone() {
            for (source, out, target, into) in
                [(from, dialled, to, accepted), (to, accepted, from, dialled)]
            {
                if self.frozen.contains(&source) || self.frozen.contains(&target) {
                    continue;
                }
                let output = self
                    .nodes
                    .get_mut(&source)
                    .unwrap()
                    .core
                    .link_output(out)
                    .unwrap();
                let mut bytes = output.split();
                if !bytes.is_empty() {
                    let core = &mut self.nodes.get_mut(&target).unwrap().core;
                    core.on_link_bytes(now, into, &mut bytes).unwrap();
                    assert!(bytes.is_empty(), "frames leave whole");
                    moved = true;
                }
            }
        }
        moved
    }

    /// Lets everything happen that can without time passing.
    pub(super) fn run(&mut self) {
        for _ in 0..1_000 {
            let mut moved = false;
            for node in (1..=3).map(id) {
                moved |= self.turn(node);
            }
            if !(moved | self.carry()) {
                return;
            }
        }
        panic!("never came to rest");
    }

    /// Lets time pass, in steps of a tick.
    pub(super) fn pass_ms(&mut self, ms: u64) {
        for _ in 0..ms.div_ceil(10) {
            self.now.mono_ns += 10_000_000;
            self.now.wall_us += 10_000;
            for node in (1..=3).map(id) {
                if !self.frozen.contains(&node) {
                    let now = self.now;
                    let TestNode { core, io, .. } = self.nodes.get_mut(&node).unwrap();
                    core.on_timer(now);
                    if io.has_more_to_do() {
                        let done = io.execute(StoreBatch::default());
                        core.on_store_done(now, done);
                    }
                }
            }
            self.run();
        }
    }

    pub(super) fn submit(&mut self, number: u64, op: Op, options: RequestOptions) -> u64 {
        self.next_tag += 1;
        let (now, tag) = (
            self.now,
            Tag {
                front: FRONT_HTTP,
                id: self.next_tag,
            },
        );
        self.node(number)
            .core
            .submit(now, Request { op, options }, tag);
        self.next_tag
    }

    pub(super) fn answer(&mut self, tag: u64) -> Option<Result<Outcome, RequestError>> {
        self.run();
        self.answers.remove(&tag)
    }

    pub(super) fn put(
        &mut self,
        number: u64,
        key: &str,
        value: &str,
    ) -> Result<Version, RequestError> {
        let tag = self.submit(number, put(key, value), RequestOptions::default());
        match self.answer(tag).expect("answered without waiting")? {
            Outcome::Written { version, .. } => Ok(version),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn get(&mut self, number: u64, key: &str) -> Result<Option<String>, RequestError> {
        let tag = self.submit(number, get(key), RequestOptions::default());
        Ok(value_of(
            self.answer(tag).expect("answered without waiting")?,
        ))
    }

    /// What each replica holds of a key.
    pub(super) fn stored(&mut self, key: &str) -> Vec<Option<String>> {
        let held = |node: &mut TestNode| node.io.store().reader().get(key.as_bytes()).unwrap();
        let text = |record: Record| {
            record.value().map_or("(deleted)".to_owned(), |value| {
                String::from_utf8(value.to_vec()).unwrap()
            })
        };
        self.nodes
            .values_mut()
            .map(|node| held(node).map(text))
            .collect()
    }
}

use mds_types::Record;

pub(super) fn put(key: &str, value: &str) -> Op {
    let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(value.to_owned()));
    Op::Put {
        key,
        value,
        expires_at_ms: None,
    }
}

fn get(key: &str) -> Op {
    Op::Get {
        key: Bytes::from(key.to_owned()),
    }
}

fn value_of(outcome: Outcome) -> Option<String> {
    match outcome {
        Outcome::Read { value, .. } => {
            value.map(|value| String::from_utf8(value.to_vec()).unwrap())
        }
        other => panic!("{other:?}"),
    }
}

fn same(value: &str) -> Vec<Option<String>> {
    vec![Some(value.to_owned()); 3]
}

#[test]
fn a_write_through_any_node_is_read_through_any_other_and_lies_on_all() {
    let mut trio = Trio::new();
    for writer in 1..=3 {
        let (key, value) = (format!("k{writer}"), format!("v{writer}"));
        trio.put(writer, &key, &value).unwrap();
        for reader in 1..=3 {
            assert_eq!(trio.get(reader, &key), Ok(Some(value.clone())));
        }
        assert_eq!(trio.stored(&key), same(&value));
    }
    assert_eq!(trio.get(1, "absent"), Ok(None));
    assert_eq!(trio.node(1).core.in_flight(), 0);
}

#[test]
fn later_writes_win_whatever_node_stamps_them() {
    let mut trio = Trio::new();
    let first = trio.put(1, "k", "one").unwrap();
    let second = trio.put(2, "k", "two").unwrap();
    let third = trio.put(3, "k", "three").unwrap();
    assert!(
        first < second && second < third,
        "the clock follows causality"
    );
    assert_eq!(trio.stored("k"), same("three"));
}

#[test]
fn with_two_of_three_dead_requests_fail_at_once_with_numbers_and_nothing_is_done() {
    let mut trio = Trio::new();
    trio.put(1, "k", "before").unwrap();
    trio.kill(2);
    trio.kill(3);
    let error = trio.put(1, "k", "after").unwrap_err();
    assert_eq!(error.to_string(), "needed 2, got 1 of 3");
    assert!(matches!(error, RequestError::Unavailable { .. }));
    assert_eq!(
        trio.get(1, "k").unwrap_err().to_string(),
        "needed 2, got 1 of 3"
    );
    assert_eq!(trio.stored("k"), same("before"));
    let all = RequestOptions {
        read_quorum: Some(3),
        ..RequestOptions::default()
    };
    let tag = trio.submit(1, get("k"), all);
    let error = trio.answer(tag).unwrap().unwrap_err();
    assert_eq!(error.to_string(), "needed 3, got 1 of 3");
    // Weaker quorums still work, and say no more than they are.
    let options = RequestOptions {
        read_quorum: Some(1),
        ..RequestOptions::default()
    };
    let tag = trio.submit(1, get("k"), options);
    assert_eq!(
        value_of(trio.answer(tag).unwrap().unwrap()),
        Some("before".to_owned())
    );
    trio.revive(2);
    trio.put(1, "k", "again").unwrap();
}

#[test]
fn what_a_dead_replica_misses_is_hinted_and_delivered_on_its_return() {
    let mut trio = Trio::new();
    trio.put(1, "k", "old").unwrap();
    trio.kill(3);
    for number in 0..100 {
        trio.put(1, &format!("k{number}"), "new").unwrap();
    }
    trio.put(2, "k", "new").unwrap();
    assert_eq!(
        trio.stored("k"),
        [Some("new".into()), Some("new".into()), Some("old".into())]
    );
    assert_eq!(trio.node(1).core.stats().hints_stored, 100);
    trio.pass_ms(1_000);
    assert_eq!(
        trio.node(1).core.stats().hints_delivered,
        0,
        "nobody to deliver to"
    );
    trio.revive(3);
    trio.pass_ms(1_000);
    assert_eq!(trio.stored("k"), same("new"));
    assert_eq!(trio.stored("k99"), same("new"));
    let stats = trio.node(1).core.stats();
    assert_eq!((stats.hints_delivered, stats.hints_pending), (100, 0));
}

/// A change was called off: who was to become a replica, and missed a write meanwhile, waits and serves nothing.
#[test]
fn a_hint_for_who_is_no_replica_any_more_is_given_up() {
    let mut trio = Trio::new();
    trio.kill(3);
    trio.put(1, "k", "v").unwrap();
    trio.pass_ms(100);
    assert_eq!(trio.node(1).core.stats().hints_pending, 1);
    for number in 1..=3 {
        let mut view = ClusterView::clone(&view_of(id(number)));
        let mut rings = Rings::clone(&view.rings);
        let mut ring = Topology::clone(&view.topology);
        (rings.version, ring.version) = (TopologyVersion(2), TopologyVersion(2));
        ring.members.retain(|member| member.node != id(3));
        rings.current.topology = Arc::new(ring);
        view.topology = rings.current.topology.clone();
        view.rings = Arc::new(rings);
        if number == 3 {
            view.standing = Standing::Waiting;
        }
        trio.node(number).core.on_view(Arc::new(view));
    }
    trio.revive(3);
    trio.pass_ms(1_000);
    let stats = trio.node(1).core.stats();
    assert_eq!(stats.hints_pending, 0);
    // An alarm about missing room would be a false one.
    assert_eq!((stats.hints_obsolete, stats.hints_dropped), (1, 0));
    assert_eq!(trio.stored("k")[2], None, "it was never handed to it");
}

#[test]
fn a_write_whose_acknowledgements_are_lost_is_unknown_and_its_retry_is_the_same_write() {
    let mut trio = Trio::new();
    trio.frozen = [id(2), id(3)].into();
    let tag = trio.submit(1, put("k", "v"), RequestOptions::default());
    assert_eq!(trio.answer(tag), None, "two replicas hold it up");
    // Their processes die without having answered: nobody knows what they did.
    trio.kill(2);
    trio.kill(3);
    let Some(Err(RequestError::Unknown {
        needed: 2,
        got: 1,
        of: 3,
        stamp,
    })) = trio.answer(tag)
    else {
        panic!("neither written nor undone");
    };
    trio.frozen.clear();
    trio.revive(2);
    trio.revive(3);
    // The cluster has moved on meanwhile; the write has not.
    for number in 1..=3 {
        let mut view = (*view_of(id(number))).clone();
        view.epoch = Epoch(2);
        trio.node(number).core.on_view(Arc::new(view));
    }
    let options = RequestOptions {
        stamp: Some(stamp),
        ..RequestOptions::default()
    };
    let tag = trio.submit(2, put("k", "v"), options);
    let Some(Ok(Outcome::Written { version: again, .. })) = trio.answer(tag) else {
        panic!("the retry succeeds, through another coordinator");
    };
    assert_eq!(again, stamp.version);
    assert_eq!(trio.stored("k"), same("v"));
    for number in 1..=3 {
        let reader = trio.node(number).io.store().reader();
        assert_eq!(reader.get(b"k").unwrap().unwrap().epoch, stamp.epoch);
    }
}

#[test]
fn a_request_id_makes_a_retry_through_the_same_node_the_same_write() {
    let mut trio = Trio::new();
    let options = RequestOptions {
        request_id: Some(7),
        ..RequestOptions::default()
    };
    let mut versions = BTreeSet::new();
    for _ in 0..3 {
        let tag = trio.submit(1, put("k", "v"), options.clone());
        match trio.answer(tag) {
            Some(Ok(Outcome::Written { version, .. })) => versions.insert(version),
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(versions.len(), 1);
}

#[test]
fn a_request_id_that_comes_back_with_something_else_is_refused() {
    let mut trio = Trio::new();
    let options = RequestOptions {
        request_id: Some(7),
        ..RequestOptions::default()
    };
    let tag = trio.submit(1, put("k", "first"), options.clone());
    assert!(matches!(trio.answer(tag), Some(Ok(_))));
    for other in [
        put("k", "second"),
        put("j", "first"),
        Op::Delete { key: "k".into() },
    ] {
        let tag = trio.submit(1, other, options.clone());
        let answer = trio.answer(tag);
        assert!(
            matches!(answer, Some(Err(RequestError::BadRequest(_)))),
            "{answer:?}"
        );
    }
    assert_eq!(trio.stored("k"), same("first"));
}

#[test]
fn a_retry_token_that_comes_back_with_another_value_is_refused() {
    let mut trio = Trio::new();
    trio.put(1, "warm", "up").unwrap();
    trio.frozen = [id(2), id(3)].into();
    let tag = trio.submit(1, put("k", "v"), RequestOptions::default());
    assert_eq!(trio.answer(tag), None);
    let now = trio.now;
    trio.node(1).core.abandon(now);
    let Some(Err(RequestError::Unknown { stamp, .. })) = trio.answer(tag) else {
        panic!("something was sent");
    };
    trio.frozen.clear();
    let options = RequestOptions {
        stamp: Some(stamp),
        ..RequestOptions::default()
    };
    let tag = trio.submit(2, put("k", "w"), options.clone());
    let answer = trio.answer(tag);
    assert!(
        matches!(answer, Some(Err(RequestError::BadRequest(_)))),
        "{answer:?}"
    );
    let tag = trio.submit(2, put("k", "v"), options);
    assert!(matches!(trio.answer(tag), Some(Ok(_))));
}

#[test]
fn a_retry_token_of_an_unknown_epoch_is_refused() {
    let mut trio = Trio::new();
    let version = trio.put(1, "k", "v").unwrap();
    let epoch = Epoch(u64::MAX);
    let options = RequestOptions {
        stamp: Some(Stamp {
            version,
            epoch,
            content: 0,
        }),
        ..RequestOptions::default()
    };
    let tag = trio.submit(2, put("k", "v"), options);
    assert!(matches!(
        trio.answer(tag),
        Some(Err(RequestError::NotReady(_)))
    ));
}

#[test]
fn a_shutdown_refuses_what_is_new_and_tells_the_truth_about_the_rest() {
    let mut trio = Trio::new();
    trio.put(1, "warm", "up").unwrap();
    trio.frozen = [id(2), id(3)].into();
    let write = trio.submit(1, put("k", "v"), RequestOptions::default());
    let read = trio.submit(1, get("k"), RequestOptions::default());
    assert_eq!(trio.answer(write), None);
    trio.node(1).core.begin_drain();
    assert!(matches!(
        trio.put(1, "late", "v"),
        Err(RequestError::NotReady(_))
    ));
    assert_eq!(trio.node(1).core.in_flight(), 2);
    let now = trio.now;
    trio.node(1).core.abandon(now);
    // Its own replica has the write: it may well become visible.
    let answer = trio.answer(write);
    assert!(
        matches!(answer, Some(Err(RequestError::Unknown { got: 1, .. }))),
        "{answer:?}"
    );
    assert!(matches!(
        trio.answer(read),
        Some(Err(RequestError::NotReady(_)))
    ));
    assert_eq!(trio.node(1).core.in_flight(), 0);
}

#[test]
fn writes_that_are_answered_do_not_keep_new_ones_out() {
    let mut trio = Trio::new();
    trio.put(1, "warm", "up").unwrap();
    trio.node(1).core.config.pending_max = 20;
    // Node 3 answers pings, but its disk takes for ever.
    trio.node(3).is_store_slow = true;
    for number in 0..200 {
        trio.put(1, &format!("k{number}"), "v").unwrap();
    }
    assert!(trio.node(1).core.stats().pending <= 20);
    assert!(
        trio.node(1).core.stats().hints_stored > 100,
        "it is told later"
    );
}

#[test]
fn a_stopped_replica_delays_no_read_beyond_the_hedge_and_no_write_at_all() {
    let mut trio = Trio::new();
    trio.put(1, "k", "v").unwrap();
    trio.frozen = [id(2)].into();
    trio.put(1, "k", "w").unwrap();
    let tag = trio.submit(1, get("k"), RequestOptions::default());
    let asked_frozen_one = trio.answer(tag).is_none();
    if asked_frozen_one {
        trio.pass_ms(60);
        let answer = trio.answers.remove(&tag).expect("hedged");
        assert_eq!(value_of(answer.unwrap()), Some("w".to_owned()));
        assert!(trio.node(1).core.stats().hedges > 0);
    }
    // After a while it is known to be silent; then it is not asked at all, and gets hints.
    trio.pass_ms(600);
    assert!(!trio.node(1).core.usable_peers().contains(&id(2)));
    assert_eq!(trio.get(1, "k"), Ok(Some("w".to_owned())));
    trio.put(1, "k2", "v").unwrap();
    trio.frozen.clear();
    trio.pass_ms(2_500);
    assert_eq!(trio.stored("k2"), same("v"));
    assert_eq!(trio.stored("k"), same("w"));
}

#[test]
fn a_read_that_finds_replicas_to_differ_repairs_before_it_answers() {
    let mut trio = Trio::new();
    trio.put(1, "k", "old").unwrap();
    // A write that only node 3 has: as a coordinator that died in the middle leaves it.
    trio.kill(1);
    trio.kill(2);
    let options = RequestOptions {
        write_quorum: Some(1),
        ..RequestOptions::default()
    };
    let tag = trio.submit(3, put("k", "new"), options);
    assert!(matches!(trio.answer(tag), Some(Ok(_))));
    trio.node(3).io.hints_pending();
    assert_eq!(trio.stored("k")[2], Some("new".to_owned()));
    trio.revive(1);
    trio.revive(2);
    // A reader that asks node 3 hears the new value only when a second replica holds it durably.
    for node in [1, 2] {
        trio.node(node).is_store_slow = true;
    }
    let tag = trio.submit(3, get("k"), RequestOptions::default());
    assert_eq!(trio.answer(tag), None, "not before it is repaired");
    trio.node(1).is_store_slow = false;
    trio.node(2).is_store_slow = false;
    let answer = trio.answer(tag).expect("repaired").unwrap();
    assert_eq!(value_of(answer), Some("new".to_owned()));
    assert_eq!(
        trio.stored("k"),
        same("new"),
        "the rest was repaired behind the reply"
    );
    assert_eq!(trio.node(3).core.stats().disagreements, 1);
}

#[test]
fn a_read_that_enough_replicas_answer_alike_repairs_the_rest_behind_the_reply() {
    let mut trio = Trio::new();
    trio.put(1, "k", "old").unwrap();
    trio.kill(1);
    trio.put(3, "k", "new").unwrap();
    trio.revive(1);
    let options = RequestOptions {
        read_quorum: Some(3),
        ..RequestOptions::default()
    };
    let tag = trio.submit(2, get("k"), options);
    let answer = trio.answer(tag).expect("answered").unwrap();
    assert_eq!(value_of(answer), Some("new".to_owned()));
    assert_eq!(trio.stored("k"), same("new"));
    let hinted = trio.node(3).core.stats().hints_delivered;
    assert_eq!(hinted, 0, "it was the read's doing");
}

#[test]
fn deleted_and_expired_keys_read_as_absent_but_keep_their_version() {
    let mut trio = Trio::new();
    trio.put(1, "k", "v").unwrap();
    let tag = trio.submit(2, Op::Delete { key: "k".into() }, RequestOptions::default());
    assert!(matches!(
        trio.answer(tag),
        Some(Ok(Outcome::Written { .. }))
    ));
    assert_eq!(trio.get(3, "k"), Ok(None));
    assert_eq!(trio.stored("k"), same("(deleted)"));
    let expires_at_ms = Some(trio.now.wall_ms() + 50);
    let op = Op::Put {
        key: "e".into(),
        value: "v".into(),
        expires_at_ms,
    };
    let tag = trio.submit(1, op, RequestOptions::default());
    assert!(matches!(trio.answer(tag), Some(Ok(_))));
    assert_eq!(trio.get(2, "e"), Ok(Some("v".to_owned())));
    trio.pass_ms(60);
    let tag = trio.submit(2, get("e"), RequestOptions::default());
    let answer = trio.answer(tag).unwrap().unwrap();
    assert!(matches!(
        answer,
        Outcome::Read {
            version: Some(_),
            value: None,
            expires_at_ms: None
        }
    ));
}

#[test]
fn an_empty_value_is_a_value() {
    let mut trio = Trio::new();
    trio.put(1, "k", "").unwrap();
    assert_eq!(trio.get(2, "k"), Ok(Some(String::new())));
}

#[test]
fn nothing_is_acknowledged_before_the_store_has_it() {
    let mut trio = Trio::new();
    trio.put(1, "warm", "the clock's mark is durable now")
        .unwrap();
    for node in 1..=3 {
        trio.node(node).is_store_slow = true;
    }
    let tag = trio.submit(1, put("k", "v"), RequestOptions::default());
    assert_eq!(trio.answer(tag), None);
    trio.node(1).is_store_slow = false;
    assert_eq!(trio.answer(tag), None, "one durable copy is not W");
    trio.node(3).is_store_slow = false;
    assert!(matches!(
        trio.answer(tag),
        Some(Ok(Outcome::Written { acked: 2, .. }))
    ));
}

#[test]
fn a_store_that_fails_stops_its_node_and_the_others_go_on() {
    let mut trio = Trio::new();
    trio.put(1, "k", "v").unwrap();
    trio.node(1).disk.fail_after_ops(0);
    // Its own replica fails; the two others make the quorum.
    trio.put(1, "k", "w").unwrap();
    let error = trio.put(1, "k", "x").unwrap_err();
    assert!(matches!(error, RequestError::NotReady(_)), "{error}");
    assert_eq!(trio.get(2, "k"), Ok(Some("w".to_owned())));
}

#[test]
fn a_stamp_from_the_far_future_is_refused_everywhere() {
    let mut trio = Trio::new();
    let silly = Version {
        hlc: Hlc(u64::MAX),
        node: id(9),
    };
    for options in [
        RequestOptions {
            stamp: Some(Stamp {
                version: silly,
                epoch: Epoch(1),
                content: 0,
            }),
            ..RequestOptions::default()
        },
        RequestOptions {
            seen: Some(silly),
            ..RequestOptions::default()
        },
    ] {
        let tag = trio.submit(1, put("k", "v"), options);
        let answer = trio.answer(tag);
        assert!(
            matches!(answer, Some(Err(RequestError::BadRequest(_)))),
            "{answer:?}"
        );
    }
    assert_eq!(trio.stored("k"), [None, None, None]);
}

#[test]
fn bad_requests_are_refused_before_anything_is_sent() {
    let mut trio = Trio::new();
    let quorum = RequestOptions {
        write_quorum: Some(4),
        ..RequestOptions::default()
    };
    let big_key = "k".repeat(KEY_BYTES_MAX + 1);
    let big_value = "v".repeat(VALUE_BYTES_MAX + 1);
    for (op, options) in [
        (put("", "v"), RequestOptions::default()),
        (put(&big_key, "v"), RequestOptions::default()),
        (put("k", &big_value), RequestOptions::default()),
        (put("k", "v"), quorum),
        (
            Op::Scan {
                partition: PartitionId(8),
                after: None,
                limit: 1,
            },
            RequestOptions::default(),
        ),
    ] {
        let tag = trio.submit(1, op, options);
        let answer = trio.answer(tag).unwrap().unwrap_err();
        let is_refusal = matches!(
            answer,
            RequestError::BadRequest(_) | RequestError::TooLarge { .. }
        );
        assert!(is_refusal, "{answer}");
    }
    assert_eq!(trio.node(2).core.stats().replica_puts, 0);
}

#[test]
fn a_node_that_is_not_active_answers_no_replica_but_coordinates() {
    let mut trio = Trio::new();
    trio.put(1, "k", "v").unwrap();
    let mut waiting = (*view_of(id(3))).clone();
    waiting.standing = Standing::Waiting;
    trio.node(3).core.on_view(Arc::new(waiting));
    assert_eq!(
        trio.get(3, "k"),
        Ok(Some("v".to_owned())),
        "through the two others"
    );
    let mut joining = (*view_of(id(3))).clone();
    joining.standing = Standing::Joining;
    trio.node(3).core.on_view(Arc::new(joining));
    assert!(matches!(trio.get(3, "k"), Err(RequestError::NotReady(_))));
    assert_eq!(trio.get(1, "k"), Ok(Some("v".to_owned())));
}

#[test]
fn pages_hold_every_live_key_once() {
    let mut trio = Trio::new();
    let mut expected = BTreeSet::new();
    for number in 0..200 {
        let key = format!("key{number}");
        trio.put(1 + number % 3, &key, "v").unwrap();
        expected.insert(key);
    }
    let tag = trio.submit(
        1,
        Op::Delete { key: "key7".into() },
        RequestOptions::default(),
    );
    assert!(trio.answer(tag).is_some());
    expected.remove("key7");
    let mut found = Vec::new();
    for partition in (0..8).map(PartitionId) {
        let mut after = None;
        loop {
            let op = Op::Scan {
                partition,
                after,
                limit: 7,
            };
            let tag = trio.submit(2, op, RequestOptions::default());
            let Some(Ok(Outcome::Page { records, next })) = trio.answer(tag) else {
                panic!()
            };
            found.extend(
                records
                    .iter()
                    .map(|r| String::from_utf8(r.key.to_vec()).unwrap()),
            );
            let Some(next) = next else { break };
            after = Some(next);
        }
        let tag = trio.submit(3, Op::Count { partition }, RequestOptions::default());
        assert!(matches!(trio.answer(tag), Some(Ok(Outcome::Count(_)))));
    }
    assert_eq!(found.len(), expected.len(), "none twice");
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn too_many_requests_are_shed_with_a_word() {
    let mut trio = Trio::new();
    trio.put(1, "warm", "up").unwrap();
    trio.node(1).core.config.pending_max = 2;
    let tags: Vec<u64> = (0..3)
        .map(|_| trio.submit(1, put("k", "v"), RequestOptions::default()))
        .collect();
    let answers: Vec<_> = tags
        .into_iter()
        .map(|tag| trio.answer(tag).unwrap())
        .collect();
    assert!(answers[0].is_ok() && answers[1].is_ok());
    assert!(matches!(answers[2], Err(RequestError::Overloaded(_))));
    assert!(trio.put(1, "k", "v").is_ok(), "and no longer than needed");
}

#[test]
fn what_the_store_has_done_no_longer_counts_as_its_backlog() {
    let mut trio = Trio::new();
    trio.put(1, "warm", "up").unwrap();
    // Two batches overlap, so that the backlog is never empty in between.
    trio.node(2).is_store_slow = true;
    trio.put(1, "a", "1").unwrap();
    let first = trio.node(2).core.take_batch().unwrap();
    trio.put(1, "b", "2").unwrap();
    let now = trio.now;
    let TestNode { core, io, .. } = trio.node(2);
    let before = core.store_backlog_bytes;
    let done = io.execute(first);
    core.on_store_done(now, done);
    assert_eq!(
        (core.store_backlog, core.store_backlog_bytes),
        (1, before / 2)
    );
    trio.node(2).is_store_slow = false;
    trio.run();
    let core = &trio.node(2).core;
    assert_eq!((core.store_backlog, core.store_backlog_bytes), (0, 0));
}

#[test]
fn a_read_that_is_never_answered_times_out_with_numbers() {
    let mut trio = Trio::new();
    trio.put(1, "k", "v").unwrap();
    trio.frozen = [id(2), id(3)].into();
    let options = RequestOptions {
        timeout_ms: Some(100),
        ..RequestOptions::default()
    };
    let tag = trio.submit(1, get("k"), options);
    assert_eq!(trio.answer(tag), None);
    trio.pass_ms(110);
    let answer = trio.answers.remove(&tag);
    let timed_out = RequestError::TimedOut {
        needed: 2,
        got: 1,
        of: 3,
    };
    assert_eq!(answer, Some(Err(timed_out)));
}
