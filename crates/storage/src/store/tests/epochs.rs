//! Closing, settling, collecting, wiping and streaming, one story each. The random lives of the
//! `model` put them all together.

use super::*;
use crate::keys::{Keyspace, engine_key};

pub(super) const P: PartitionId = PartitionId(0);

pub(super) fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.options.partition_count = 1;
    bench
}

pub(super) fn tombstone(key: &str, hlc: u64) -> Record {
    Record {
        body: Body::Tombstone,
        ..record(key, hlc, "")
    }
}

pub(super) fn merged(store: &mut Store, purpose: Purpose, record: Record) -> Merged {
    store.merge_for(&[(purpose, record)]).unwrap()[0]
}

pub(super) fn settle(store: &mut Store, epoch: u64) -> SettleOutcome {
    let settlement = Settlement {
        partition: P,
        epoch: Epoch(epoch),
        chain: u128::from(epoch),
    };
    store.settle(&[settlement]).unwrap()[0]
}

pub(super) fn flush(store: &mut Store) {
    store.freeze().unwrap();
    while store.flusher().work().unwrap() {}
}

#[test]
fn a_closed_epoch_takes_repairs_but_no_writes() {
    let bench = bench();
    let mut store = bench.open();
    merge(&mut store, "there", 150);
    merge(&mut store, "newer", 150);
    merge(&mut store, "newer", 250);
    store.close_epochs(Epoch(1)).unwrap();
    store.close_epochs(Epoch(0)).unwrap();
    for life in 0..2 {
        assert_eq!(store.reader().ledger().closed, Epoch(1));
        for purpose in [Purpose::Write, Purpose::Hint] {
            let mut write = |key, hlc| merged(&mut store, purpose, record(key, hlc, "value"));
            assert_eq!(write("late", 160), Merged::EpochClosed);
            assert_eq!(write("there", 160), Merged::EpochClosed);
            assert_eq!(write("there", 150), Merged::Same);
            // Something newer is there; but nobody may count on the row of what comes now.
            assert_eq!(write("there", 140), Merged::EpochClosed);
            assert_eq!(write("newer", 150), Merged::EpochClosed);
            assert_eq!(write("newer", 250), Merged::Same);
        }
        for purpose in [Purpose::Repair, Purpose::Sync] {
            let key = format!("{purpose:?}{life}");
            let repaired = merged(&mut store, purpose, record(&key, 160, "value"));
            assert_eq!(repaired, Merged::Applied);
        }
        assert_eq!(store.reader().stats().epoch_closed, 8);
        drop(store);
        bench.disk.crash();
        store = bench.open();
    }
}

#[test]
fn what_a_watermark_has_passed_never_comes_back() {
    let bench = bench();
    let mut store = bench.open();
    merge(&mut store, "kept", 150);
    merge(&mut store, "gone", 150);
    store.merge(&[tombstone("gone", 160)]).unwrap();
    assert_eq!(settle(&mut store, 1), SettleOutcome::NotClosed);
    settle_and_collect(&mut store, 1);
    assert_eq!(settle(&mut store, 1), SettleOutcome::Already);
    assert_eq!(store.reader().get(b"gone").unwrap(), None);
    assert_eq!(store.reader().stats().collected, 1);
    for purpose in [
        Purpose::Write,
        Purpose::Hint,
        Purpose::Repair,
        Purpose::Sync,
    ] {
        let mut late = |record| merged(&mut store, purpose, record);
        assert_eq!(late(record("gone", 150, "value")), Merged::Settled);
        assert_eq!(late(tombstone("gone", 160)), Merged::Settled);
        assert_eq!(late(record("kept", 170, "value")), Merged::Settled);
        assert_eq!(late(record("kept", 150, "value")), Merged::Same);
        assert_eq!(late(record("kept", 140, "value")), Merged::Superseded);
    }
    assert_eq!(store.reader().stats().rows_alone, 0);
    assert_eq!(
        merged(&mut store, Purpose::Write, record("gone", 250, "again")),
        Merged::Applied
    );
}

#[test]
fn a_tombstone_waits_for_the_floor_and_holds_its_epoch_back() {
    let bench = bench();
    let mut store = bench.open();
    store
        .merge(&[tombstone("low", 110), tombstone("high", 190)])
        .unwrap();
    store.close_epochs(Epoch(2)).unwrap();
    settle(&mut store, 2);
    let collected = collect(&mut store, P, Hlc(150)).unwrap();
    assert_eq!((collected.removed, collected.held_back), (1, 1));
    let ledger = store.reader().ledger();
    assert_eq!(ledger.partition(P).collected, Epoch(0));
    assert_eq!(hlc_of(&store.reader(), "high"), Some(190));
    let collected = collect(&mut store, P, Hlc(200)).unwrap();
    assert_eq!((collected.removed, collected.held_back), (1, 0));
    let ledger = store.reader().ledger();
    assert_eq!(ledger.partition(P).collected, Epoch(2));
}

/// The engine holds the old value, the tombstone is in a table or in the engine too, and the removal comes on
/// top: wherever a crash cuts, the old value stays hidden.
#[test]
fn a_collected_tombstone_never_uncovers_what_it_hid() {
    for seed in 0..400 {
        let mut bench = bench();
        bench.disk = FaultyDisk::new(seed);
        bench.options.fsync = if seed % 2 == 0 {
            FsyncPolicy::Always
        } else {
            FsyncPolicy::Os
        };
        let mut store = bench.open();
        merge(&mut store, "k", 110);
        flush(&mut store);
        store.merge(&[tombstone("k", 120)]).unwrap();
        if seed % 3 == 0 {
            flush(&mut store);
        }
        store.close_epochs(Epoch(1)).unwrap();
        settle(&mut store, 1);
        bench.disk.fail_after_ops(seed / 6 % 16);
        let _ = collect(&mut store, P, Hlc(150));
        let _ = store.freeze();
        let _ = store.flusher().work();
        drop(store);
        if seed % 5 < 3 {
            bench.disk.crash();
        } else {
            bench.disk.process_crash();
        }
        let mut store = bench.open();
        let found = store.reader().get(b"k").unwrap();
        assert!(
            found.is_none_or(|found| found == tombstone("k", 120)),
            "seed {seed}"
        );
        collect(&mut store, P, Hlc(150)).unwrap();
        flush(&mut store);
        assert_eq!(store.reader().get(b"k").unwrap(), None, "seed {seed}");
        assert_eq!(store.reader().ledger().partition(P).collected, Epoch(1));
        assert!(store.reader().drop_collected_index().unwrap() > 0);
        assert!(store.reader().scan(P, None, 9).unwrap().is_empty());
    }
}

#[test]
fn an_epoch_with_few_rows_is_collected_in_one_step() {
    let mut bench = bench();
    bench.options.search_rows_max = 1;
    let mut store = bench.open();
    store.merge(&[tombstone("a", 110)]).unwrap();
    flush(&mut store);
    store.close_epochs(Epoch(1)).unwrap();
    settle(&mut store, 1);
    // Not in one for each bucket: each is a read of the run file.
    store.search_dead(vec![(P, Hlc(150))]);
    assert!(store.flusher().search_some());
    assert_eq!(store.collect_found(9).unwrap().removed, 1);
    assert!(!store.is_searching());
}

#[test]
fn pages_pass_over_what_is_gone() {
    let bench = bench();
    let mut store = bench.open();
    let keys: Vec<String> = (0..20).map(|n| format!("k{n:02}")).collect();
    for key in &keys {
        let record = match key.ends_with('9') {
            true => record(key, 110, "value"),
            false => tombstone(key, 110),
        };
        store.merge(&[record]).unwrap();
    }
    flush(&mut store);
    settle_and_collect(&mut store, 1);
    let reader = store.reader();
    for flushed in [false, true] {
        let (page, more) = reader.scan_page(P, None, 1, 1).unwrap();
        assert_eq!((page[0].key.as_ref(), more), (&b"k09"[..], true));
        let (page, _) = reader.scan_page(P, Some(b"k09"), 3, 1 << 20).unwrap();
        assert_eq!(page[0].key, "k19");
        assert!(
            reader
                .scan_page(P, Some(b"k19"), 1, 1)
                .unwrap()
                .0
                .is_empty()
        );
        assert_eq!(reader.count_live(P, 0).unwrap(), 2);
        assert_eq!(reader.get(b"k00").unwrap(), None);
        assert_eq!(reader.get_in_memory(b"k00"), Lookup::Ask);
        assert!(
            !flushed
                || bench
                    .engine
                    .get(&engine_key(P, Keyspace::Eventual, b"k00"))
                    .unwrap()
                    .is_none()
        );
        flush(&mut store);
    }
}

#[test]
fn an_index_that_had_to_go_is_remembered_until_records_are_compared() {
    let mut bench = bench();
    bench.options.run_files_max = 2;
    let mut store = bench.open();
    for epoch in 1..=4 {
        merge(&mut store, "a", epoch * 100);
        store.epoch_changed(Epoch(epoch + 1)).unwrap();
        store.close_epochs(Epoch(epoch)).unwrap();
        store.flusher().work().unwrap();
    }
    for _ in 0..2 {
        let reader = store.reader();
        let ledger = reader.ledger();
        assert_eq!(ledger.unverifiable, Epoch(2));
        assert!(ledger.lacks_rows(P));
        assert_eq!(reader.leaves(Epoch(2), P).unwrap(), None);
        assert_eq!(reader.leaves(Epoch(3), P).unwrap().unwrap().row_count(), 1);
        assert_eq!(settle(&mut store, 3), SettleOutcome::LacksRows);
        drop(store);
        bench.disk.crash();
        store = bench.open();
    }
    let settlement = Settlement {
        partition: P,
        epoch: Epoch(2),
        chain: 1,
    };
    let outcome = store.settle_compared(&[settlement]).unwrap();
    assert_eq!(outcome, [SettleOutcome::Raised]);
    assert_eq!(settle(&mut store, 3), SettleOutcome::Raised);
}

#[test]
fn a_wiped_partition_leaves_nothing_and_begins_anew() {
    let (a, b) = ("foo", "bar");
    let (pa, pb) = (partition_of(a.as_bytes(), 2), partition_of(b.as_bytes(), 2));
    assert_ne!(pa, pb);
    for restarts in [false, true] {
        let mut bench = Bench::new();
        bench.options.partition_count = 2;
        let mut store = bench.open();
        merge(&mut store, a, 110);
        merge(&mut store, b, 110);
        flush(&mut store);
        merge(&mut store, a, 120);
        merge(&mut store, b, 120);
        store.begin_wipe(&[pa]).unwrap();
        let mut waited = 0;
        loop {
            if restarts {
                drop(store);
                bench.disk.crash();
                store = bench.open();
            }
            let refused = merged(&mut store, Purpose::Sync, record(a, 300, "x"));
            assert_eq!(refused, Merged::NotHere);
            if store.continue_wipe().unwrap() == WipeProgress::Done {
                break;
            }
            waited += 1;
            assert!(store.flusher().work().unwrap());
            if waited == 2 {
                // Emptied, and not yet written down: a restart has it looked at again.
                let is_wiping =
                    store.reader().ledger().partition(pa).state == PartitionState::Wiping;
                assert!(is_wiping);
                assert_eq!(store.continue_wipe().unwrap(), WipeProgress::Done);
            }
        }
        assert_eq!(waited, 2, "a flush, and the drop");
        let reader = store.reader();
        assert_eq!(reader.get(a.as_bytes()).unwrap(), None);
        assert_eq!(hlc_of(&reader, b), Some(120));
        assert_eq!(reader.ledger().partition(pa).state, PartitionState::Absent);
        assert_eq!(reader.leaves(Epoch(1), pa).unwrap(), None);
        // Regained by a stream, whose source had settled epoch 1.
        store.close_epochs(Epoch(1)).unwrap();
        store
            .begin_streams(&[Settlement {
                partition: pa,
                epoch: Epoch(1),
                chain: 9,
            }])
            .unwrap();
        let from = |store: &mut Store, purpose, hlc| merged(store, purpose, record(a, hlc, "s"));
        assert_eq!(from(&mut store, Purpose::Repair, 130), Merged::Settled);
        assert_eq!(from(&mut store, Purpose::Sync, 130), Merged::Applied);
        let long = Bytes::from(vec![b'x'; 1000]);
        store.advance_streams(&[(pa, long.clone())]).unwrap();
        drop(store);
        bench.disk.crash();
        store = bench.open();
        let ledger = store.reader().ledger();
        let PartitionState::Streaming { after, .. } = &ledger.partition(pa).state else {
            panic!("{:?}", ledger.partition(pa));
        };
        assert!(!after.is_empty() && long.starts_with(after) && after.len() < long.len());
        assert_eq!(from(&mut store, Purpose::Write, 250), Merged::Applied);
        let leaves = store.reader().leaves(Epoch(2), pa).unwrap().unwrap();
        assert_eq!(leaves.row_count(), 1);
        store.finish_streams(&[pa]).unwrap();
        flush(&mut store);
        let entry = store.reader().ledger().partition(pa).clone();
        assert_eq!(
            (entry.settled, entry.collected, entry.chain),
            (Epoch(1), Epoch(1), 9)
        );
        // Old rows are void, and what the stream brought left none.
        let range = RowRange::Partition(pa);
        assert_eq!(store.reader().index_rows(Epoch(1), range).unwrap(), []);
        let range = RowRange::Partition(pb);
        assert_eq!(store.reader().index_rows(Epoch(1), range).unwrap().len(), 1);
        assert_eq!(hlc_of(&store.reader(), a), Some(250));
    }
}

#[test]
fn a_large_partition_is_wiped_in_steps_over_restarts() {
    let bench = bench();
    let mut store = bench.open();
    for number in 0..8 {
        merge(&mut store, &format!("key-{number}"), 110);
    }
    flush(&mut store);
    store.begin_wipe(&[P]).unwrap();
    let mut left = Vec::new();
    while store.continue_wipe().unwrap() != WipeProgress::Done {
        assert!(store.flusher().work().unwrap());
        left.push(store.reader().scan(P, None, 100).unwrap().len());
        // Once nothing is left, that has to be written down.
        if left.last() != Some(&0) {
            drop(store);
            bench.disk.crash();
            store = bench.open();
        }
    }
    assert_eq!(left, [5, 2, 0], "three keys at a time");
    assert_eq!(store.reader().scan(P, None, 100).unwrap(), []);
    let state = store.reader().ledger().partition(P).state.clone();
    assert_eq!(state, PartitionState::Absent);
}

#[test]
fn many_empty_partitions_are_wiped_at_once() {
    let bench = Bench::new();
    let mut store = bench.open();
    let all: Vec<_> = (0..4).map(PartitionId).collect();
    store.begin_wipe(&all).unwrap();
    assert_eq!(
        store.continue_wipe().unwrap(),
        WipeProgress::WaitsForFlusher
    );
    assert!(store.flusher().work().unwrap());
    assert_eq!(store.continue_wipe().unwrap(), WipeProgress::Done);
    assert_eq!(store.reader().ledger().collected_everywhere(), None);
    store.hold(&all[..1]).unwrap();
    assert_eq!(
        store.reader().ledger().collected_everywhere(),
        Some(Epoch(0))
    );
}

/// The whole way on real files and the default engine.
#[test]
fn collection_and_wipes_on_the_default_engine() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(crate::disk::RealDisk::new(dir.path().to_path_buf()));
    let options = StoreOptions {
        partition_count: 2,
        ..StoreOptions::default()
    };
    let open = || {
        let engine = crate::engine::open("fjall", &dir.path().join("engine")).unwrap();
        let store = Store::open(disk.clone(), engine.clone(), options.clone()).unwrap();
        (store, engine)
    };
    let (mut store, engine) = open();
    for n in 0..200 {
        merge(&mut store, &format!("k{n}"), 110);
    }
    flush(&mut store);
    for n in 0..100 {
        store.merge(&[tombstone(&format!("k{n}"), 120)]).unwrap();
    }
    flush(&mut store);
    settle_and_collect(&mut store, 1);
    flush(&mut store);
    assert!(store.reader().drop_collected_index().unwrap() > 0);
    store.close().unwrap();
    engine.close().unwrap();
    let (mut store, engine) = open();
    let count = |store: &Store| -> u64 {
        let counts = (0..2).map(|p| store.reader().count_live(PartitionId(p), 0).unwrap());
        counts.sum()
    };
    assert_eq!(count(&store), 100);
    assert_eq!(store.reader().get(b"k7").unwrap(), None);
    store.begin_wipe(&[PartitionId(0), PartitionId(1)]).unwrap();
    while store.continue_wipe().unwrap() != WipeProgress::Done {
        store.flusher().work().unwrap();
    }
    assert_eq!(count(&store), 0);
    store.close().unwrap();
    engine.close().unwrap();
}
