//! Three cores whose engines forget things, or remember what is over.

use mds_storage::engine::Engine as _;
use mds_storage::keys::{Keyspace, engine_key};
use mds_storage::store::Purpose;
use mds_types::slot::partition_of;

use super::super::super::tests::{Trio, put};
use bytes::Bytes;
use mds_types::Record;

use super::super::*;
use crate::api::{Op, RequestOptions};

impl Trio {
    fn scrub_every_ms(&mut self, ms: u64) {
        for node in self.nodes.values_mut() {
            node.core.config.scrub_interval_ms = ms;
            node.core.sync.scrub.due_ns = None;
        }
    }

    fn scrubbed(&mut self, number: u64) -> ScrubStats {
        self.node(number).core.scrub_stats()
    }

    fn flush(&mut self, number: u64) {
        let store = self.node(number).io.store();
        store.freeze().unwrap();
        while store.flusher().work().unwrap() {}
    }

    /// Everything is in the engines, and nothing in tables above them.
    fn uncover(&mut self) {
        for number in 1..=3 {
            self.flush(number);
        }
    }

    /// A node's engine shows something else of a key, without a trace.
    fn tamper(&mut self, number: u64, key: &str, value: Option<&Record>) {
        let place = partition_of(key.as_bytes(), 8);
        let key = engine_key(place, Keyspace::Eventual, key.as_bytes());
        let value = value.map(|record| {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            Bytes::from(bytes)
        });
        let engine = &self.node(number).engine;
        engine.ingest(&mut [(key, value)].into_iter()).unwrap();
    }

    fn record(&mut self, number: u64, key: &str) -> Option<Record> {
        let reader = self.node(number).io.store().reader();
        reader.get(key.as_bytes()).unwrap()
    }
}

fn filled(keys: usize) -> Trio {
    let mut trio = Trio::new();
    for number in 0..keys {
        trio.put(1, &format!("key-{number}"), "v").unwrap();
    }
    trio
}

#[test]
fn a_settled_record_that_one_replica_lost_is_found_and_brought_back() {
    let mut trio = filled(1_000);
    trio.enter(3);
    trio.pass_ms(1_000);
    assert_eq!(trio.settled(), [Epoch(1); 3]);
    trio.uncover();
    trio.tamper(3, "key-7", None);
    assert_eq!(trio.record(3, "key-7"), None);
    trio.scrub_every_ms(1_000);
    trio.pass_ms(1_900);
    let lost = trio.scrubbed(3);
    assert_eq!((lost.passes, lost.rebuilt), (1, 1), "{lost:?}");
    assert!(lost.looked_at >= 999);
    assert!(lost.bytes < 20_000, "{lost:?}");
    assert_eq!(trio.stored("key-7"), vec![Some("v".to_owned()); 3]);
    for number in [1, 2] {
        let stats = trio.scrubbed(number);
        assert_eq!((stats.rebuilt, stats.unmatched), (0, 0), "{stats:?}");
    }
    trio.pass_ms(3_000);
    let again = trio.scrubbed(3);
    assert!(again.passes >= 3 && again.rebuilt == 1, "{again:?}");
    // What was brought back is in nobody's way.
    trio.enter(5);
    trio.pass_ms(2_000);
    assert_eq!(trio.settled(), [Epoch(3); 3]);
}

#[test]
fn many_lost_records_come_back_page_by_page() {
    let mut trio = filled(3_000);
    trio.enter(3);
    trio.pass_ms(1_000);
    trio.uncover();
    for number in 0..2_500 {
        trio.tamper(2, &format!("key-{number}"), None);
    }
    trio.scrub_every_ms(1_000);
    trio.pass_ms(5_000);
    let stats = trio.scrubbed(2);
    assert_eq!((stats.rebuilt, stats.unmatched), (2_500, 0), "{stats:?}");
    for number in 0..3_000 {
        let key = format!("key-{number}");
        assert_eq!(trio.stored(&key), vec![Some("v".to_owned()); 3], "{key}");
    }
}

#[test]
fn a_record_that_was_lost_above_the_watermark_is_missed_by_its_row() {
    let mut trio = filled(50);
    trio.uncover();
    trio.tamper(1, "key-7", None);
    assert_eq!(trio.record(1, "key-7"), None);
    trio.scrub_every_ms(1_000);
    trio.pass_ms(1_900);
    let stats = trio.scrubbed(1);
    assert_eq!((stats.restored, stats.rebuilt), (1, 0), "{stats:?}");
    assert_eq!(trio.stored("key-7"), vec![Some("v".to_owned()); 3]);
    // Its row counts once.
    trio.pass_ms(2_000);
    assert_eq!(trio.scrubbed(1).hashes_rebuilt, 0);
    trio.enter(3);
    trio.pass_ms(2_000);
    assert_eq!(trio.settled(), [Epoch(1); 3]);
}

#[test]
fn hashes_that_have_gone_wrong_are_rebuilt_and_hold_nothing_up() {
    let mut trio = filled(50);
    let lost = trio.record(1, "key-7").unwrap();
    trio.uncover();
    trio.tamper(1, "key-7", None);
    // A reader repairs it before the scrub comes by: its row is counted twice.
    let store = trio.node(1).io.store();
    store.merge_for(&[(Purpose::Repair, lost)]).unwrap();
    trio.scrub_every_ms(1_000);
    trio.pass_ms(1_900);
    assert_eq!(trio.scrubbed(1).hashes_rebuilt, 1);
    trio.enter(3);
    trio.pass_ms(2_000);
    assert_eq!(trio.settled(), [Epoch(1); 3]);
}

/// An engine that loses its newest file shows what was overwritten: the others must not take it for theirs.
#[test]
fn one_replica_that_shows_what_was_deleted_resurrects_nothing_and_is_reported() {
    let mut trio = filled(20);
    let old = trio.record(1, "key-7").unwrap();
    let delete = Op::Delete {
        key: "key-7".into(),
    };
    let tag = trio.submit(2, delete, RequestOptions::default());
    assert!(trio.answer(tag).unwrap().is_ok());
    trio.enter(3);
    trio.pass_ms(1_000);
    trio.now.wall_us += 1_000_000;
    trio.enter(4);
    trio.pass_ms(2_000);
    assert_eq!(trio.stored("key-7"), [None, None, None], "collected");
    trio.uncover();
    trio.tamper(3, "key-7", Some(&old));
    assert!(trio.record(3, "key-7").is_some());
    trio.scrub_every_ms(1_000);
    trio.pass_ms(1_900);
    assert_eq!(trio.record(1, "key-7"), None);
    assert_eq!(trio.record(2, "key-7"), None);
    assert!(trio.record(3, "key-7").is_some(), "it may be the only copy");
    for (number, unmatched) in [(1, 0), (2, 0), (3, 1)] {
        let stats = trio.scrubbed(number);
        assert_eq!(
            (stats.unmatched, stats.rebuilt),
            (unmatched, 0),
            "{stats:?}"
        );
    }
    assert_eq!(trio.get(1, "key-7").unwrap(), None);
}

#[test]
fn an_old_version_in_the_place_of_a_newer_one_is_replaced() {
    let mut trio = filled(20);
    let old = trio.record(1, "key-7").unwrap();
    trio.put(2, "key-7", "new").unwrap();
    trio.enter(3);
    trio.pass_ms(1_000);
    trio.uncover();
    trio.tamper(3, "key-7", Some(&old));
    trio.scrub_every_ms(1_000);
    trio.pass_ms(1_900);
    assert_eq!(trio.stored("key-7"), vec![Some("new".to_owned()); 3]);
    assert_eq!(trio.scrubbed(3).rebuilt, 1);
}

#[test]
fn without_a_majority_nothing_is_decided() {
    let mut trio = filled(20);
    trio.enter(3);
    trio.pass_ms(1_000);
    trio.uncover();
    trio.tamper(3, "key-7", None);
    trio.kill(2);
    trio.scrub_every_ms(1_000);
    trio.pass_ms(1_900);
    let stats = trio.scrubbed(3);
    assert_eq!((stats.undecided, stats.rebuilt), (1, 0), "{stats:?}");
    assert_eq!(trio.record(3, "key-7"), None);
    trio.revive(2);
    trio.pass_ms(3_000);
    assert_eq!(trio.scrubbed(3).rebuilt, 1);
    assert_eq!(trio.stored("key-7"), vec![Some("v".to_owned()); 3]);
}

#[test]
fn expired_values_are_collected_when_they_have_expired_on_all_clocks() {
    let mut trio = filled(20);
    let expires_at_ms = trio.now.wall_ms() + 1_000;
    let mut op = put("brief", "v");
    if let Op::Put {
        expires_at_ms: at, ..
    } = &mut op
    {
        *at = Some(expires_at_ms);
    }
    let tag = trio.submit(1, op, RequestOptions::default());
    assert!(trio.answer(tag).unwrap().is_ok());
    trio.enter(3);
    trio.pass_ms(1_000);
    trio.scrub_every_ms(1_000);
    trio.pass_ms(2_000);
    assert!(
        trio.record(1, "brief").is_some(),
        "the floor is too low yet"
    );
    trio.now.wall_us += 20_000_000;
    trio.enter(4);
    trio.pass_ms(3_000);
    assert_eq!(trio.stored("brief"), [None, None, None]);
    for number in 1..=3 {
        let stats = trio.scrubbed(number);
        assert_eq!((stats.unmatched, stats.rebuilt), (0, 0), "{stats:?}");
    }
}
