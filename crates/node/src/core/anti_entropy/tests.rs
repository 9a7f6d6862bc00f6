//! Three cores that miss things, and find out.

use mds_cluster::Standing;
use mds_storage::store::PartitionState;
use mds_types::{ClusterConfig, Epoch, EpochFloors, Hlc, Record, Ring, Rings, Topology};

use super::super::tests::{Trio, id, put};
use super::*;
use crate::api::{Op, RequestOptions};

impl Trio {
    /// The cluster goes on to this epoch.
    pub(super) fn enter(&mut self, epoch: u64) {
        let mut floors = EpochFloors::default();
        for known in 1..=epoch {
            // A floor that lies just below the present.
            let floor = Hlc::from_physical_us(self.now.wall_us - 1);
            floors.begin(Epoch(known), floor);
        }
        let floors = Arc::new(floors);
        for node in self.nodes.values_mut() {
            let mut view = (*node.core.view).clone();
            view.epoch = Epoch(epoch);
            view.floors = floors.clone();
            node.core.on_view(Arc::new(view));
        }
        self.run();
    }

    pub(super) fn settled(&mut self) -> Vec<Epoch> {
        let settled = |node: &mut super::super::tests::TestNode| {
            let ledger = node.io.ledger();
            ledger.settled_everywhere().unwrap()
        };
        self.nodes.values_mut().map(settled).collect()
    }

    fn sync_stats(&mut self, number: u64) -> SyncStats {
        self.node(number).core.sync.stats
    }
}

#[test]
fn equal_replicas_settle_what_is_closed() {
    let mut trio = Trio::new();
    for number in 0..50 {
        trio.put(1 + number % 3, &format!("key-{number}"), "v")
            .unwrap();
    }
    trio.enter(2);
    trio.pass_ms(500);
    assert_eq!(trio.settled(), [Epoch(0); 3], "epoch 1 is not closed");
    trio.enter(3);
    trio.pass_ms(1_000);
    assert_eq!(trio.settled(), [Epoch(1); 3]);
    assert_eq!(trio.sync_stats(1).differences, 0);
    let before = trio.sync_stats(1);
    trio.pass_ms(20_000);
    assert_eq!(
        trio.sync_stats(1),
        before,
        "and then nothing is said any more"
    );
}

#[test]
fn an_epoch_is_closed_although_the_store_could_not_when_it_was_told_to() {
    let mut trio = Trio::new();
    let core = &mut trio.node(1).core;
    let mut view = (*core.view).clone();
    view.epoch = Epoch(3);
    core.on_view(Arc::new(view));
    // The disk is full, say: the order comes to nothing.
    let order = LedgerOrder::Close(Epoch(1));
    assert!(core.batch.orders.contains(&order));
    core.batch.orders.clear();
    trio.run();
    assert_eq!(trio.node(1).io.ledger().closed, Epoch(0));
    trio.pass_ms(2_000);
    assert_eq!(trio.node(1).io.ledger().closed, Epoch(1));
}

#[test]
fn what_a_replica_missed_is_found_and_brought_over() {
    let mut trio = Trio::new();
    for number in 0..200 {
        trio.put(1, &format!("key-{number}"), "v").unwrap();
    }
    trio.kill(3);
    trio.put(1, "missed", "v").unwrap();
    // The hint is lost with everything that its coordinator had not written.
    trio.node(1).core.batch.hints.clear();
    trio.revive(3);
    assert_eq!(trio.stored("missed")[2], None);
    trio.enter(3);
    trio.pass_ms(2_000);
    assert_eq!(trio.stored("missed"), vec![Some("v".to_owned()); 3]);
    assert_eq!(trio.settled(), [Epoch(1); 3]);
    let stats = trio.sync_stats(3);
    assert_eq!(stats.records, 1, "nothing but what was missing is sent");
    assert!(
        stats.rows < 30,
        "of one bucket of one partition: {}",
        stats.rows
    );
}

/// A repair rests after each page but the last, and none is forgotten.
#[test]
fn a_large_difference_is_brought_over_page_by_page() {
    let mut trio = Trio::new();
    trio.kill(3);
    for number in 0..8_000 {
        trio.put(1, &format!("key-{number}"), "v").unwrap();
    }
    for node in [1, 2] {
        trio.node(node).core.batch.hints.clear();
    }
    trio.revive(3);
    trio.enter(3);
    trio.pass_ms(5_000);
    assert_eq!(trio.sync_stats(3).records, 8_000);
    assert_eq!(trio.settled(), [Epoch(1); 3]);
    assert!(trio.node(3).core.sync.resting.is_empty());
}

#[test]
fn a_version_that_was_superseded_meanwhile_counts_as_present() {
    let mut trio = Trio::new();
    trio.kill(3);
    trio.put(1, "key", "old").unwrap();
    trio.node(1).core.batch.hints.clear();
    trio.revive(3);
    trio.enter(2);
    trio.put(2, "key", "new").unwrap();
    trio.enter(4);
    trio.pass_ms(2_000);
    assert_eq!(trio.settled(), [Epoch(2); 3]);
    assert_eq!(trio.stored("key"), vec![Some("new".to_owned()); 3]);
}

#[test]
fn a_dead_replica_blocks_settling_and_is_named_and_the_others_still_compare() {
    let mut trio = Trio::new();
    trio.put(1, "key", "v").unwrap();
    trio.kill(3);
    trio.enter(3);
    trio.pass_ms(2_000);
    assert_eq!(trio.settled(), [Epoch(0); 3]);
    let blocked = trio.node(1).core.sync.blocked.clone();
    assert!(blocked.keys().eq([&id(3)]), "{blocked:?}");
    assert!(trio.sync_stats(1).comparisons > 0);
    trio.revive(3);
    trio.pass_ms(8_000);
    assert_eq!(trio.settled(), [Epoch(1); 3]);
    assert!(trio.node(1).core.sync.blocked.is_empty());
}

#[test]
fn a_deleted_key_is_gone_from_every_replica_and_an_old_value_of_it_does_not_come_back() {
    let mut trio = Trio::new();
    let version = trio.put(1, "key", "v").unwrap();
    let old = trio
        .node(1)
        .io
        .store()
        .reader()
        .get(b"key")
        .unwrap()
        .unwrap();
    let tag = trio.submit(
        2,
        Op::Delete { key: "key".into() },
        RequestOptions::default(),
    );
    assert!(trio.answer(tag).unwrap().is_ok());
    assert_eq!(trio.stored("key"), vec![Some("(deleted)".to_owned()); 3]);
    trio.enter(3);
    trio.pass_ms(1_000);
    trio.now.wall_us += 1_000_000;
    // Above the floor of the first epoch that is not settled, until that has risen.
    trio.enter(4);
    trio.pass_ms(2_000);
    assert_eq!(trio.stored("key"), [None, None, None]);
    // From a directory that was copied before, say.
    assert_eq!(old.version, version);
    for purpose in [
        crate::wire::Purpose::Write,
        crate::wire::Purpose::Hint,
        crate::wire::Purpose::Repair,
    ] {
        send(&mut trio, &old, purpose);
        assert_eq!(trio.stored("key"), [None, None, None], "{purpose:?}");
    }
    assert_eq!(trio.get(3, "key").unwrap(), None);
    trio.put(3, "key", "again").unwrap();
    assert_eq!(trio.stored("key"), vec![Some("again".to_owned()); 3]);
}

/// A record on its way to node 2, as if a coordinator had it still.
fn send(trio: &mut Trio, record: &Record, purpose: crate::wire::Purpose) {
    let mut encoded = super::super::write::Encoded::new(record);
    let sent = trio
        .node(1)
        .core
        .send_put(id(2), 77, &mut encoded, purpose, 1_000);
    assert!(sent);
    trio.run();
}

#[test]
fn a_replica_whose_past_is_another_one_copies_the_partition_anew() {
    let mut trio = Trio::new();
    for number in 0..30 {
        trio.put(1, &format!("key-{number}"), "v").unwrap();
    }
    // Node 3 is left behind; the others are told that it was equal.
    trio.frozen.insert(id(3));
    trio.enter(3);
    for number in [1, 2] {
        let core = &mut trio.node(number).core;
        let ledger = core.sync.ledger.clone().unwrap();
        let reader_roots: Vec<RootOf> = {
            let reader = trio.node(number).io.store().reader();
            let asked = (0..8).map(|p| (PartitionId(p), Epoch(1))).collect();
            match crate::sync_io::answer(
                &reader,
                &SyncQuery::Roots(asked),
                &mds_storage::pace::Unpaced,
            )
            .unwrap()
            {
                SyncAnswer::Roots(roots) => roots,
                other => panic!("{other:?}"),
            }
        };
        drop(ledger);
        trio.node(number)
            .core
            .batch
            .orders
            .push(LedgerOrder::Settle(reader_roots));
    }
    trio.run();
    trio.frozen.clear();
    // Of what it had, one record rotted away: it has one more that nobody else has, of the settled epoch.
    let mut rogue = trio
        .node(1)
        .io
        .store()
        .reader()
        .get(b"key-1")
        .unwrap()
        .unwrap();
    rogue.key = "rogue".into();
    trio.node(3).io.store().merge(&[rogue]).unwrap();
    trio.enter(4);
    trio.pass_ms(6_000);
    assert!(trio.sync_stats(3).rebuilt >= 1);
    let copied = trio.sync_stats(3);
    assert!(copied.partitions_streamed >= 1);
    let sent: u64 = (1..=2)
        .map(|node| trio.sync_stats(node).streamed_sent)
        .sum();
    assert_eq!(copied.streamed, sent, "what is sent comes in");
    let report = trio.node(3).core.sync_report();
    assert_eq!((report.copying.partitions, report.copying.left), (0, 0));
    assert_eq!(trio.stored("rogue"), [None, None, None]);
    for number in 0..30 {
        let stored = trio.stored(&format!("key-{number}"));
        assert_eq!(stored, vec![Some("v".to_owned()); 3]);
    }
    let ledger = trio.node(3).io.ledger();
    assert!(
        ledger
            .partitions()
            .all(|(_, entry)| entry.state == PartitionState::Held)
    );
}

#[test]
fn a_write_of_a_closed_epoch_is_refused_and_nothing_is_done() {
    let mut trio = Trio::new();
    trio.put(1, "key", "v").unwrap();
    let old = trio
        .node(1)
        .io
        .store()
        .reader()
        .get(b"key")
        .unwrap()
        .unwrap();
    trio.enter(3);
    let late = Record {
        key: "late".into(),
        ..old
    };
    send(&mut trio, &late, crate::wire::Purpose::Write);
    send(&mut trio, &late, crate::wire::Purpose::Hint);
    assert_eq!(trio.stored("late"), [None, None, None]);
    send(&mut trio, &late, crate::wire::Purpose::Repair);
    assert_eq!(
        trio.stored("late")[1],
        Some("v".to_owned()),
        "some replica has it"
    );
    let _ = put("a", "b");
}

#[test]
fn a_member_without_data_acknowledges_the_ring_and_makes_place_for_what_it_will_hold() {
    let mut trio = Trio::new();
    let whole = (*trio.node(1).core.view.topology).clone();
    let ring_of = |nodes: &[u64], replicas| {
        let mut members = whole.members.clone();
        members.retain(|member| nodes.contains(&member.node.0));
        Ring {
            topology: Arc::new(Topology {
                members,
                ..whole.clone()
            }),
            config: ClusterConfig {
                partition_count: 8,
                replicas,
                ..ClusterConfig::default()
            },
        }
    };
    let adopt = |trio: &mut Trio, rings: Rings| {
        let rings = Arc::new(rings);
        for (node, test) in &mut trio.nodes {
            let mut view = (*test.core.view).clone();
            view.topology = rings.current.topology.clone();
            view.rings = rings.clone();
            if *node == id(3) {
                view.standing = Standing::Waiting;
            }
            test.core.on_view(Arc::new(view));
        }
        trio.run();
        trio.pass_ms(3_000);
    };
    let stable = Rings {
        version: TopologyVersion(2),
        current: ring_of(&[1, 2], 2),
        settled: true,
        ..Rings::default()
    };
    adopt(&mut trio, stable.clone());
    let ledger = trio.node(3).io.ledger();
    assert_eq!(ledger.acked, TopologyVersion(2));
    let states = |ledger: &Ledger| -> Vec<PartitionState> {
        let all = (0..8).map(PartitionId);
        all.map(|partition| ledger.partition(partition).state.clone())
            .collect()
    };
    assert_eq!(states(&ledger), vec![PartitionState::Absent; 8]);

    adopt(
        &mut trio,
        Rings {
            version: TopologyVersion(3),
            stage: RingStage::Prepare,
            next: Some(ring_of(&[1, 2, 3], 3)),
            settled: false,
            ..stable
        },
    );
    let copying = trio.node(3).core.sync_report().copying;
    assert_eq!(
        (copying.partitions, copying.left, copying.unverified),
        (8, 8, 8)
    );
    let copying = trio.node(1).core.sync_report().copying;
    assert_eq!((copying.partitions, copying.left), (0, 0), "it has them");
    let ledger = trio.node(3).io.ledger();
    assert_eq!(ledger.acked, TopologyVersion(3));
    let is_ready = |state: &PartitionState| matches!(state, PartitionState::Streaming { .. });
    assert!(states(&ledger).iter().all(is_ready), "{ledger:?}");
}
