//! Bucket hashes while everything moves.

use super::*;

/// Eight keys are overwritten in one epoch while tables are frozen and flushed below them: at no moment does
/// a reader count one of them twice, or not at all.
#[test]
fn readers_see_every_row_once_while_tables_move() {
    use std::sync::atomic::{AtomicBool, Ordering};
    const KEYS: u64 = 8;
    let mut bench = Bench::new();
    bench.options.partition_count = 1;
    bench.options.segment_bytes_max = 1_000;
    bench.options.fsync = FsyncPolicy::Os;
    let mut store = bench.open();
    let at = |n: u64| Record {
        epoch: Epoch(1),
        ..record(&format!("k{}", n % KEYS), n, "value")
    };
    let all: Vec<Record> = (0..KEYS).map(at).collect();
    store.merge(&all).unwrap();
    let (reader, flusher) = (store.reader(), store.flusher());
    let stop = AtomicBool::new(false);
    let leaves = || reader.leaves(Epoch(1), PartitionId(0)).unwrap().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                if !flusher.work().unwrap() {
                    std::thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let leaves = leaves();
                assert!(leaves.rows.iter().all(|rows| *rows <= KEYS as u32));
                assert_eq!(leaves.row_count(), KEYS);
            }
        });
        for n in KEYS..4_000 {
            loop {
                match store.merge(&[at(n)]) {
                    Err(StoreError::Behind { .. }) => std::thread::yield_now(),
                    merged => break assert_eq!(merged.unwrap(), [Merged::Applied]),
                }
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert!(reader.stats().flushes > 20);
    let rebuilt = reader.rebuilt_leaves(Epoch(1), PartitionId(0)).unwrap();
    assert_eq!(leaves(), rebuilt);
}

/// Two replicas that have met the same versions in different orders, flushed at different times and
/// restarted or not, have the same leaves; one more version makes them differ.
#[test]
fn leaves_do_not_depend_on_how_rows_came() {
    let versions = [150, 110, 260, 190, 210, 170];
    let fill = |order: &[usize], restarts: bool| {
        let bench = Bench::new();
        let mut store = bench.open();
        for (step, &index) in order.iter().enumerate() {
            store.merge(&[record("k", versions[index], "v")]).unwrap();
            if restarts && step % 2 == 0 {
                store.freeze().unwrap();
                store.flusher().work().unwrap();
                drop(store);
                bench.disk.crash();
                store = bench.open();
            }
        }
        let reader = store.reader();
        let place = partition_of(b"k", 4);
        [1, 2].map(|epoch| reader.leaves(Epoch(epoch), place).unwrap().unwrap())
    };
    let expected = fill(&[0, 1, 2, 3, 4, 5], false);
    assert_eq!(expected[0].row_count(), 1);
    for order in [[5, 4, 3, 2, 1, 0], [2, 0, 4, 1, 5, 3], [3, 2, 1, 5, 0, 4]] {
        assert_eq!(fill(&order, false), expected, "{order:?}");
        assert_eq!(fill(&order, true), expected, "{order:?}");
    }
    let without_190 = fill(&[0, 1, 2, 4, 5], false);
    assert_ne!(without_190[0], expected[0]);
    assert_eq!(without_190[1], expected[1]);
}
