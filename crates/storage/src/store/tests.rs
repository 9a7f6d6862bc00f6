use super::*;
use crate::disk::FaultyDisk;
use crate::engine::memory::MemoryEngine;
use crate::log::segment_path;
use crate::runs::RowRange;
use bytes::Bytes;
use mds_types::slot::partition_of;
use mds_types::{Body, Hlc, NodeId, PartitionId, Version};

mod epochs;
mod faults;
mod hashes;
mod model;
mod order;
mod scan;
mod scrub;

/// A disk and an engine that outlive stores.
struct Bench {
    disk: FaultyDisk,
    engine: MemoryEngine,
    options: StoreOptions,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            disk: FaultyDisk::new(1),
            engine: MemoryEngine::new(),
            options: StoreOptions {
                partition_count: 4,
                secret: 77,
                wipe_keys_max: 3,
                search_rows_max: 3,
                ..StoreOptions::default()
            },
        }
    }

    fn try_open(&self) -> Result<Store, StoreError> {
        Store::open(
            Arc::new(self.disk.clone()),
            Arc::new(self.engine.clone()),
            self.options.clone(),
        )
    }

    fn open(&self) -> Store {
        self.try_open().unwrap()
    }

    /// Why the store does not open.
    fn refusal(&self) -> StoreError {
        match self.try_open() {
            Ok(_) => panic!("the store opened"),
            Err(error) => error,
        }
    }
}

fn record(key: &str, hlc: u64, value: &str) -> Record {
    Record {
        key: Bytes::copy_from_slice(key.as_bytes()),
        version: Version {
            hlc: Hlc(hlc),
            node: NodeId(1),
        },
        epoch: Epoch(hlc / 100),
        expires_at_ms: None,
        body: Body::Value(Bytes::copy_from_slice(value.as_bytes())),
    }
}

fn merge(store: &mut Store, key: &str, hlc: u64) {
    assert_eq!(
        store.merge(&[record(key, hlc, "value")]).unwrap(),
        [Merged::Applied]
    );
}

fn hlc_of(reader: &StoreReader, key: &str) -> Option<u64> {
    let record = reader.get(key.as_bytes()).unwrap()?;
    assert_eq!(record.key, key);
    Some(record.version.hlc.0)
}

/// Collects what may go of a partition, to the end.
fn collect(store: &mut Store, partition: PartitionId, floor: Hlc) -> Result<Collected, StoreError> {
    store.search_dead(vec![(partition, floor)]);
    let mut all = Collected::default();
    while store.is_searching() {
        store.flusher().search_some();
        let collected = store.collect_found(3)?;
        all.removed += collected.removed;
        all.held_back += collected.held_back;
    }
    Ok(all)
}

/// Closes, settles and collects all epochs up to this one, everywhere.
fn settle_and_collect(store: &mut Store, epoch: u64) {
    let epoch = Epoch(epoch);
    store.close_epochs(epoch).unwrap();
    for partition in (0..store.shared.options.partition_count).map(PartitionId) {
        let settlement = Settlement {
            partition,
            epoch,
            chain: 7,
        };
        store.settle(&[settlement]).unwrap();
        collect(store, partition, Hlc(u64::MAX)).unwrap();
    }
}

fn is_poisoned<T>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Poisoned { .. }))
}

/// A store that crashed with two sealed segments and an active one, of two records each.
fn crashed() -> Bench {
    let bench = Bench::new();
    let mut store = bench.open();
    for segment in 0..3u64 {
        merge(&mut store, "a", 10 * segment + 1);
        merge(&mut store, "b", 10 * segment + 2);
        if segment < 2 {
            store.freeze().unwrap();
        }
    }
    drop(store);
    bench.disk.crash();
    bench
}

#[test]
fn a_batch_is_judged_in_order_against_itself_and_the_store() {
    let bench = Bench::new();
    let mut store = bench.open();
    let batch = [
        record("a", 5, "x"),
        record("a", 7, "y"),
        record("a", 6, "z"),
        record("a", 7, "y"),
        record("b", 1, ""),
    ];
    use Merged::{Applied, Same, Superseded};
    let expected = [Applied, Applied, Superseded, Same, Applied];
    assert_eq!(store.merge(&batch).unwrap(), expected);
    assert_eq!(store.merge(&batch[1..3]).unwrap(), [Same, Superseded]);
    let reader = store.reader();
    assert_eq!(reader.get(b"a").unwrap().unwrap(), batch[1]);
    assert_eq!(reader.get_in_memory(b"b"), Lookup::Found(batch[4].clone()));
    assert_eq!(reader.get_in_memory(b"c"), Lookup::Ask);
    assert_eq!(reader.get(b"c").unwrap(), None);
    let stats = reader.stats();
    assert_eq!((stats.applied, stats.same, stats.superseded), (3, 2, 2));
}

#[test]
fn the_same_version_with_another_value_is_decided_by_the_merge_law() {
    for flushed in [false, true] {
        let bench = Bench::new();
        let mut store = bench.open();
        let (a, b) = (record("k", 5, "one"), record("k", 5, "two"));
        let greater = a.clone().merge(b.clone());
        let lesser = if greater == a { &b } else { &a };
        store.merge(std::slice::from_ref(lesser)).unwrap();
        if flushed {
            store.close().unwrap();
            store = bench.open();
        }
        assert_eq!(
            store.merge(std::slice::from_ref(&greater)).unwrap(),
            [Merged::Applied]
        );
        assert_eq!(
            store.merge(std::slice::from_ref(lesser)).unwrap(),
            [Merged::Superseded]
        );
        assert_eq!(store.reader().get(b"k").unwrap().unwrap(), greater);
    }
}

#[test]
fn a_batch_is_one_append_and_one_sync_by_policy() {
    for (fsync, syncs) in [
        (FsyncPolicy::Always, 1),
        (FsyncPolicy::Interval { ms: 10 }, 0),
        (FsyncPolicy::Os, 0),
    ] {
        let mut bench = Bench::new();
        bench.options.fsync = fsync;
        let mut store = bench.open();
        let before = bench.disk.counts();
        store
            .merge(&[record("a", 1, "x"), record("b", 1, "y")])
            .unwrap();
        let after = bench.disk.counts();
        assert_eq!(after.appends - before.appends, 1);
        assert_eq!(after.syncs - before.syncs, syncs);
        // Nothing won: nothing is written.
        store.merge(&[record("a", 1, "x")]).unwrap();
        assert_eq!(bench.disk.counts(), after);
    }
}

#[test]
fn the_interval_is_kept() {
    let mut bench = Bench::new();
    bench.options.fsync = FsyncPolicy::Interval { ms: 10 };
    let mut store = bench.open();
    let tick = |store: &mut Store, ms: u64| {
        let before = bench.disk.counts().syncs;
        store.tick(ms * 1_000_000).unwrap();
        bench.disk.counts().syncs - before
    };
    assert_eq!(tick(&mut store, 100), 0);
    merge(&mut store, "a", 1);
    assert_eq!(tick(&mut store, 109), 0);
    assert_eq!(tick(&mut store, 110), 1);
    assert_eq!(tick(&mut store, 150), 0, "nothing to sync");
    merge(&mut store, "a", 2);
    assert_eq!(tick(&mut store, 159), 0);
    assert_eq!(tick(&mut store, 160), 1);
}

#[test]
fn limits_are_checked_before_the_first_byte() {
    let mut bench = Bench::new();
    bench.options.value_bytes_max = 10;
    let mut store = bench.open();
    let before = bench.disk.counts();
    let good = record("good", 1, "1234567890");
    let long_key = "k".repeat(KEY_BYTES_MAX + 1);
    for (bad, what) in [
        (record("", 1, ""), "empty"),
        (record(&long_key, 1, ""), "key is longer"),
        (record("k", 1, "12345678901"), "value is longer"),
    ] {
        let error = store.merge(&[good.clone(), bad]).unwrap_err();
        assert!(matches!(error, StoreError::Limit { index: 1, .. }));
        assert!(error.to_string().contains(what), "{error}");
    }
    assert_eq!(bench.disk.counts(), before);
    let longest_key = record(&long_key[1..], 1, "1234567890");
    store.merge(&[good, longest_key]).unwrap();
}

#[test]
fn too_many_frozen_tables_push_back_and_flushing_relieves() {
    let mut bench = Bench::new();
    bench.options.segment_bytes_max = 100;
    let mut store = bench.open();
    merge(&mut store, "a", 1);
    merge(&mut store, "a", 2);
    merge(&mut store, "a", 3);
    let refused = store.merge(&[record("a", 4, "value")]);
    assert!(matches!(refused, Err(StoreError::Behind { frozen: 2 })));
    assert_eq!(hlc_of(&store.reader(), "a"), Some(3));
    // A record that does not win needs no room.
    assert_eq!(
        store.merge(&[record("a", 3, "value")]).unwrap(),
        [Merged::Same]
    );
    assert!(store.wants_flush());
    assert!(store.flusher().work().unwrap());
    merge(&mut store, "a", 4);
    // A busy engine is left alone, but closing flushes all the same.
    bench.engine.set_behind(true);
    assert!(!store.flusher().work().unwrap());
    assert!(store.wants_flush());
    store.close().unwrap();
    assert_eq!(hlc_of(&bench.open().reader(), "a"), Some(4));
}

#[test]
fn an_epoch_change_cuts_the_segment_and_leaves_one_run_for_each_epoch() {
    let bench = Bench::new();
    let mut store = bench.open();
    merge(&mut store, "a", 100);
    merge(&mut store, "b", 150);
    merge(&mut store, "late", 99);
    store.epoch_changed(Epoch(2)).unwrap();
    store.epoch_changed(Epoch(2)).unwrap();
    merge(&mut store, "a", 200);
    assert_eq!(store.reader().stats().frozen_tables, 1);
    assert!(store.flusher().work().unwrap());
    assert!(!store.flusher().work().unwrap());
    let runs = store.reader().runs();
    let epochs: Vec<_> = runs.iter().map(|run| (run.epoch.0, run.segment)).collect();
    assert_eq!(epochs, [(0, 1), (1, 1)]);
    let reader = store.reader();
    let rows = |epoch| {
        let rows = reader.index_rows(Epoch(epoch), RowRange::All).unwrap();
        let mut rows: Vec<_> = rows
            .iter()
            .map(|row| (row.key.clone(), row.version.hlc.0))
            .collect();
        rows.sort();
        rows
    };
    assert_eq!(rows(0), [("late".into(), 99)]);
    assert_eq!(rows(1), [("a".into(), 100), ("b".into(), 150)]);
    assert_eq!(rows(2), [("a".into(), 200)], "not flushed yet, but indexed");
    assert_eq!(reader.drop_collected_index().unwrap(), 0, "not settled");
    settle_and_collect(&mut store, 1);
    assert_eq!(reader.drop_collected_index().unwrap(), 2);
    assert_eq!(rows(1), []);
    assert_eq!(hlc_of(&reader, "b"), Some(150));
}

#[test]
fn a_flushed_table_leaves_its_records_in_memory() {
    let bench = Bench::new();
    let mut store = bench.open();
    let reader = store.reader();
    for hlc in 1..=3 {
        merge(&mut store, "a", hlc);
        store.freeze().unwrap();
        store.flusher().work().unwrap();
        let Lookup::Found(record) = reader.get_in_memory(b"a") else {
            panic!("it is not in memory");
        };
        assert_eq!(record.version.hlc.0, hlc);
    }
    let stats = reader.stats();
    assert_eq!(
        (stats.engine_gets, stats.table_records),
        (1, 0),
        "it was asked before the first"
    );
}

#[test]
fn what_the_engine_was_asked_for_is_in_memory_the_next_time() {
    let bench = Bench::new();
    let mut store = bench.open();
    merge(&mut store, "a", 1);
    store.close().unwrap();
    let store = bench.open();
    let reader = store.reader();
    assert_eq!(reader.get_in_memory(b"a"), Lookup::Ask);
    for _ in 0..2 {
        assert_eq!(hlc_of(&reader, "a"), Some(1));
    }
    assert!(matches!(reader.get_in_memory(b"a"), Lookup::Found(_)));
    assert_eq!(reader.stats().engine_gets, 1);
}

#[test]
fn a_closed_store_leaves_an_empty_log_and_opens_the_same() {
    let bench = Bench::new();
    let mut store = bench.open();
    merge(&mut store, "a", 1);
    store.close().unwrap();
    let logs = |bench: &Bench| -> Vec<_> {
        let files = bench.disk.files().into_iter();
        files.filter(|(path, _)| path.starts_with("log/")).collect()
    };
    let header_bytes = crate::frame::FILE_HEADER_BYTES as u64;
    assert_eq!(logs(&bench), [(segment_path(2), header_bytes)]);
    for _ in 0..2 {
        let store = bench.open();
        assert_eq!(store.reader().stats().table_records, 0);
        assert_eq!(hlc_of(&store.reader(), "a"), Some(1));
        assert_eq!(logs(&bench), [(segment_path(2), header_bytes)]);
    }
}

#[test]
fn opening_again_changes_nothing() {
    let bench = crashed();
    let contents = |bench: &Bench| -> Vec<_> {
        let files = bench.disk.files().into_iter();
        let read = |path: &str| bench.disk.read(path).unwrap();
        files.map(|(path, _)| (read(&path), path)).collect()
    };
    let before = contents(&bench);
    for _ in 0..3 {
        let store = bench.open();
        assert_eq!(hlc_of(&store.reader(), "a"), Some(21));
        assert_eq!(hlc_of(&store.reader(), "b"), Some(22));
        assert_eq!(store.reader().stats().frozen_tables, 2);
        drop(store);
        bench.disk.crash();
        assert_eq!(contents(&bench), before);
    }
}

#[test]
fn too_much_index_drops_the_oldest_closed_epochs() {
    let mut bench = Bench::new();
    bench.options.run_files_max = 2;
    let mut store = bench.open();
    for epoch in 1..=6 {
        merge(&mut store, "a", epoch * 100);
        store.epoch_changed(Epoch(epoch + 1)).unwrap();
        store.close_epochs(Epoch(epoch - 1)).unwrap();
        store.flusher().work().unwrap();
    }
    let left: Vec<_> = store
        .reader()
        .runs()
        .iter()
        .map(|run| run.epoch.0)
        .collect();
    assert_eq!(left, [5, 6]);
    assert_eq!(store.reader().stats().epochs_dropped, 4);
}

#[test]
fn real_files_and_the_default_engine_keep_everything_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(crate::disk::RealDisk::new(dir.path().to_path_buf()));
    let options = StoreOptions {
        segment_bytes_max: 1_500,
        ..StoreOptions::default()
    };
    for life in 0..3u64 {
        let engine = crate::engine::open("fjall", &dir.path().join("engine")).unwrap();
        let mut store = Store::open(disk.clone(), engine.clone(), options.clone()).unwrap();
        let reader = store.reader();
        for n in 0..100u64 {
            let expected = (life > 0).then(|| 1000 * (life - 1) + n);
            assert_eq!(hlc_of(&reader, &format!("k{n}")), expected);
            merge(&mut store, &format!("k{n}"), 1000 * life + n);
            store.flusher().work().unwrap();
        }
        assert!(reader.stats().flushes > 1 && reader.stats().table_records > 0);
        // The second life ends without closing: its last records are in the log only.
        if life == 0 {
            store.close().unwrap();
            assert_eq!(reader.stats().table_records, 0);
        }
        let all = (0..256).flat_map(|p| reader.scan(PartitionId(p), None, 1000).unwrap());
        assert_eq!(all.count(), 100);
        engine.close().unwrap();
    }
}

/// On real files, with readers and a flusher on threads of their own: a reader never sees a key go
/// back, and everything is there after a restart.
#[test]
fn readers_never_see_time_go_back_while_tables_move() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(crate::disk::RealDisk::new(dir.path().to_path_buf()));
    let engine = MemoryEngine::new();
    let options = StoreOptions {
        segment_bytes_max: 2_000,
        fsync: FsyncPolicy::Os,
        partition_count: 1,
        ..StoreOptions::default()
    };
    let open = || Store::open(disk.clone(), Arc::new(engine.clone()), options.clone()).unwrap();
    let mut store = open();
    let (reader, flusher) = (store.reader(), store.flusher());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                if !flusher.work().unwrap() {
                    std::thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            let mut seen = [0; 8];
            let mut seen_by_scan = [0; 8];
            while !stop.load(Ordering::SeqCst) {
                for (n, seen) in seen.iter_mut().enumerate() {
                    let hlc = hlc_of(&reader, &format!("k{n}")).unwrap_or(0);
                    assert!(hlc >= *seen, "k{n} went back from {seen} to {hlc}");
                    *seen = hlc;
                }
                for record in reader.scan(PartitionId(0), None, 100).unwrap() {
                    let seen = &mut seen_by_scan[usize::from(record.key[1] - b'0')];
                    assert!(record.version.hlc.0 >= *seen);
                    *seen = record.version.hlc.0;
                }
            }
        });
        for hlc in 1..=3000 {
            let records = [record(&format!("k{}", hlc % 8), hlc, "some value")];
            loop {
                match store.merge(&records) {
                    Err(StoreError::Behind { .. }) => std::thread::yield_now(),
                    merged => break assert_eq!(merged.unwrap(), [Merged::Applied]),
                }
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert!(store.reader().stats().flushes > 20);
    drop(store);
    let store = open();
    for n in 0..8 {
        let hlc = hlc_of(&store.reader(), &format!("k{n}")).unwrap();
        assert_eq!((hlc % 8, hlc > 2992), (n, true));
    }
}
