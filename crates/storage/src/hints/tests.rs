use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mds_types::{Body, Epoch, Hlc, Version};
use proptest::prelude::*;

use super::*;
use crate::disk::FaultyDisk;

const A: NodeId = NodeId(0xa);
const B: NodeId = NodeId(0xb);
const HOUR_MS: u64 = 60 * 60 * 1000;

/// The `number`-th record, told from the others by its version.
fn record(number: u64, value_bytes: usize) -> Record {
    Record {
        key: Bytes::from(format!("key-{number}")),
        version: Version {
            hlc: Hlc(number),
            node: NodeId(1),
        },
        epoch: Epoch(1),
        expires_at_ms: None,
        body: Body::Value(Bytes::from(vec![number as u8; value_bytes])),
    }
}

fn records(numbers: std::ops::Range<u64>, value_bytes: usize) -> Vec<Record> {
    numbers.map(|number| record(number, value_bytes)).collect()
}

fn open(disk: &FaultyDisk) -> HintStore {
    open_with(disk, HintLimits::default())
}

fn open_with(disk: &FaultyDisk, limits: HintLimits) -> HintStore {
    HintStore::open(Arc::new(disk.clone()), limits).unwrap()
}

fn disk(seed: u64) -> FaultyDisk {
    let disk = FaultyDisk::new(seed);
    disk.create_dir(HINTS_DIR).unwrap();
    disk.sync_dir("").unwrap();
    disk
}

/// Delivers everything to a target, in batches of at most `max_bytes`: the numbers, in order.
fn drain(store: &mut HintStore, target: NodeId, max_bytes: usize, now_ms: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        let batch = store.peek(target, max_bytes, now_ms).unwrap();
        if batch.records.is_empty() {
            return numbers;
        }
        for record in &batch.records {
            let value_bytes = record.value().unwrap().len();
            assert_eq!(*record, self::record(record.version.hlc.0, value_bytes));
            numbers.push(record.version.hlc.0);
        }
        store.delivered(target, batch.token);
    }
}

fn total(store: &HintStore, node: NodeId) -> Option<TargetHints> {
    store
        .targets()
        .into_iter()
        .find(|target| target.node == node)
}

#[test]
fn hints_are_delivered_once_in_order_and_their_space_is_given_back() {
    let disk = disk(1);
    let mut store = open(&disk);
    assert!(store.targets().is_empty());
    assert!(store.peek(A, 100, 0).unwrap().records.is_empty());
    // Twelve megabytes: several segments.
    for number in 0..12 {
        let appended = store
            .append(A, &[record(number, 1024 * 1024)], 5 + number)
            .unwrap();
        assert_eq!(
            appended,
            Appended {
                stored: 1,
                dropped: 0
            }
        );
    }
    store.append(B, &records(100..103, 10), 50).unwrap();
    let waiting = total(&store, A).unwrap();
    assert_eq!((waiting.count, waiting.oldest_ms), (12, 5));
    assert!(waiting.bytes > 12 * 1024 * 1024);
    let files = disk.files();
    assert!(files.len() >= 4, "{files:?}");
    for (path, bytes) in &files {
        assert!(
            *bytes < SEGMENT_BYTES + 2 * 1024 * 1024,
            "{path} has {bytes} bytes"
        );
    }

    assert_eq!(drain(&mut store, A, 100, 60), (0..12).collect::<Vec<_>>());
    assert_eq!(total(&store, A), None);
    assert_eq!(store.counters().delivered, 12);
    assert_eq!(drain(&mut store, B, 1_000_000, 60), [100, 101, 102]);
    assert!(disk.files().is_empty());
}

#[test]
fn a_batch_keeps_to_its_bytes_but_holds_one_hint_at_least() {
    let disk = disk(1);
    let mut store = open(&disk);
    store.append(A, &records(0..100, 50), 0).unwrap();
    store
        .append(A, &[record(100, 10_000), record(101, 1)], 0)
        .unwrap();
    let batch = store.peek(A, 1_000, 0).unwrap();
    assert!(
        (5..20).contains(&batch.records.len()),
        "{}",
        batch.records.len()
    );
    // Peeking takes nothing.
    assert_eq!(store.peek(A, 1_000, 0).unwrap().records, batch.records);
    assert_eq!(drain(&mut store, A, 1_000, 0), (0..102).collect::<Vec<_>>());
}

#[test]
fn hints_survive_a_restart_and_are_delivered_from_the_segments_start() {
    let disk = disk(1);
    let mut store = open(&disk);
    store.append(A, &records(0..10, 10), 7).unwrap();
    let batch = store.peek(A, 200, 7).unwrap();
    assert!(batch.records.len() < 10);
    store.delivered(A, batch.token);
    store.sync().unwrap();
    drop(store);
    disk.crash();
    let mut store = open(&disk);
    assert_eq!(total(&store, A).unwrap().count, 10);
    assert_eq!(total(&store, A).unwrap().oldest_ms, 7);
    store.append(A, &records(10..12, 10), 8).unwrap();
    assert_eq!(drain(&mut store, A, 200, 8), (0..12).collect::<Vec<_>>());
}

#[test]
fn beyond_the_bytes_new_hints_are_dropped_and_counted() {
    let disk = disk(1);
    let limits = HintLimits {
        bytes_per_target_max: 10_000,
        ..HintLimits::default()
    };
    let mut store = open_with(&disk, limits);
    let appended = store.append(A, &records(0..30, 1_000), 0).unwrap();
    assert_eq!((appended.stored, appended.dropped), (9, 21));
    assert_eq!(
        store.append(A, &records(30..31, 1_000), 0).unwrap().dropped,
        1
    );
    // A smaller one still fits, and each target has its own bound.
    assert_eq!(store.append(A, &records(31..32, 10), 0).unwrap().stored, 1);
    assert_eq!(
        store.append(B, &records(32..33, 1_000), 0).unwrap().stored,
        1
    );
    assert!(total(&store, A).unwrap().bytes <= 10_000);
    assert_eq!(store.counters().dropped, 22);
    // The bound holds over restarts.
    let mut store = open_with(&disk, limits);
    assert_eq!(
        store.append(A, &records(33..34, 1_000), 0).unwrap().dropped,
        1
    );
    assert_eq!(
        drain(&mut store, A, 500, 0),
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 31]
    );
    assert_eq!(
        store.append(A, &records(33..34, 1_000), 0).unwrap().stored,
        1
    );
}

#[test]
fn old_hints_are_dropped_and_counted_once() {
    let disk = disk(1);
    let mut store = open(&disk);
    store.append(A, &records(0..3, 10), 0).unwrap();
    store.append(A, &records(3..5, 10), 2 * HOUR_MS).unwrap();
    // One segment: the old ones are left out when they are come across.
    let now_ms = 4 * HOUR_MS;
    for _ in 0..2 {
        assert_eq!(store.peek(A, 10_000, now_ms).unwrap().records.len(), 2);
    }
    assert_eq!(drain(&mut store, A, 10_000, now_ms), [3, 4]);
    assert_eq!(
        (store.counters().expired, store.counters().delivered),
        (3, 2)
    );
    // A whole segment goes at once.
    store.append(A, &records(5..8, 10), now_ms).unwrap();
    store.expire(now_ms + 3 * HOUR_MS - 1);
    assert_eq!(total(&store, A).unwrap().count, 3);
    store.expire(now_ms + 3 * HOUR_MS);
    assert_eq!(total(&store, A), None);
    assert_eq!(store.counters().expired, 6);
    assert!(disk.files().is_empty());
}

#[test]
fn a_stretch_of_old_hints_hides_no_younger_one() {
    let disk = disk(1);
    let mut store = open(&disk);
    store.append(A, &records(0..50, 10), 0).unwrap();
    store.append(A, &records(50..51, 10), 2 * HOUR_MS).unwrap();
    assert_eq!(drain(&mut store, A, 100, 4 * HOUR_MS), [50]);
    assert_eq!(store.counters().expired, 50);
}

#[test]
fn a_clock_set_back_expires_nothing() {
    let disk = disk(1);
    let mut store = open(&disk);
    store.append(A, &records(0..1, 10), 10 * HOUR_MS).unwrap();
    assert_eq!(drain(&mut store, A, 100, 0), [0]);
}

#[test]
fn stale_and_strange_tokens_do_nothing() {
    let disk = disk(1);
    let mut store = open(&disk);
    let nothing = store.peek(A, 100, 0).unwrap();
    store.delivered(A, nothing.token);
    store.append(A, &records(0..4, 10), 0).unwrap();
    let batch = store.peek(A, 10_000, 0).unwrap();
    store.delivered(B, batch.token);
    store.delivered(A, batch.token);
    store.append(A, &records(4..6, 10), 0).unwrap();
    store.delivered(A, batch.token);
    store.delivered(A, nothing.token);
    assert_eq!(drain(&mut store, A, 10_000, 0), [4, 5]);
}

#[test]
fn a_forgotten_target_leaves_no_file() {
    let disk = disk(1);
    let mut store = open(&disk);
    store.append(A, &records(0..4, 10), 0).unwrap();
    store.append(B, &records(4..5, 10), 0).unwrap();
    store.forget(A);
    assert_eq!(disk.files().len(), 1);
    store.append(A, &records(5..6, 10), 0).unwrap();
    assert_eq!(drain(&mut store, A, 10_000, 0), [5]);
    assert_eq!(drain(&mut store, B, 10_000, 0), [4]);
}

#[test]
fn after_a_failed_append_later_hints_go_to_a_new_file() {
    for seed in 0..20 {
        let disk = disk(seed);
        let mut store = open(&disk);
        store.append(A, &records(0..2, 100), 0).unwrap();
        disk.fail_append_in(0);
        let error = store.append(A, &records(2..4, 100), 0).unwrap_err();
        assert!(
            error.to_string().contains("hints/000000000000000a"),
            "{error}"
        );
        store.append(A, &records(4..6, 100), 0).unwrap();
        store.sync().unwrap();
        if seed % 2 == 0 {
            assert_eq!(drain(&mut store, A, 10_000, 0), [0, 1, 4, 5]);
        } else {
            // Some of what failed may be there as well.
            disk.crash();
            let found = drain(&mut open(&disk), A, 10_000, 0);
            assert!(
                found.starts_with(&[0, 1]) && found.ends_with(&[4, 5]),
                "{found:?}"
            );
        }
    }
}

#[test]
fn a_failed_sync_costs_no_later_hint() {
    for seed in 0..20 {
        let disk = disk(seed);
        let mut store = open(&disk);
        store.append(A, &records(0..2, 100), 0).unwrap();
        disk.fail_sync_in(0);
        assert!(store.sync().is_err());
        store.append(A, &records(2..4, 100), 0).unwrap();
        store.sync().unwrap();
        disk.crash();
        let found = drain(&mut open(&disk), A, 10_000, 0);
        assert!(found.ends_with(&[2, 3]), "{found:?}");
    }
}

#[test]
fn a_full_disk_is_an_error_until_there_is_room() {
    let disk = disk(1);
    let mut store = open(&disk);
    store.append(A, &records(0..5, 100), 0).unwrap();
    disk.set_capacity(Some(disk.used_bytes() + 50));
    assert!(store.append(B, &records(5..6, 100), 0).is_err());
    assert!(store.append(A, &records(6..7, 100), 0).is_err());
    assert_eq!(drain(&mut store, A, 10_000, 0), [0, 1, 2, 3, 4]);
    store.append(B, &records(7..8, 100), 0).unwrap();
    assert_eq!(drain(&mut store, B, 10_000, 0), [7]);
}

#[test]
fn a_failed_read_loses_nothing() {
    let disk = disk(1);
    let mut store = open(&disk);
    store.append(A, &records(0..5, 100), 0).unwrap();
    disk.fail_reads(true);
    assert!(store.peek(A, 10_000, 0).is_err());
    // A start with unreadable files goes on without them, and leaves them where they are.
    let unreadable = open(&disk);
    assert_eq!(unreadable.counters().damaged_segments, 1);
    disk.fail_reads(false);
    assert_eq!(drain(&mut store, A, 10_000, 0), [0, 1, 2, 3, 4]);
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let disk = disk(1);
    for dir in [
        "hints/x",
        "hints/000000000000000A",
        "hints/000000000000000a",
    ] {
        disk.create_dir(dir).unwrap();
    }
    for path in [
        "hints/file",
        "hints/000000000000000a/readme",
        "hints/000000000000000a/1.hint",
    ] {
        disk.create(path).unwrap();
    }
    let mut store = open(&disk);
    assert!(store.targets().is_empty());
    store.append(A, &records(0..1, 1), 0).unwrap();
    assert_eq!(drain(&mut store, A, 100, 0), [0]);
    assert_eq!(disk.files().len(), 3);
}

#[test]
fn a_segment_under_another_targets_name_is_not_delivered() {
    let disk = disk(1);
    let mut store = open(&disk);
    store.append(A, &records(0..3, 10), 0).unwrap();
    disk.create_dir(&target_dir(B)).unwrap();
    disk.rename(&segment_path(A, 1), &segment_path(B, 1))
        .unwrap();
    let mut store = open(&disk);
    assert_eq!(store.counters().damaged_segments, 1);
    assert!(drain(&mut store, B, 1_000, 0).is_empty());
}

/// Rot that appears while the node runs costs the hints behind it, no others.
#[test]
fn rot_under_a_running_node_is_skipped() {
    let disk = disk(1);
    let mut store = open(&disk);
    // Two segments, of four hints and of three; the first is damaged in its third hint.
    store.append(A, &records(0..5, 1024 * 1024), 0).unwrap();
    store.append(A, &records(5..7, 10), 0).unwrap();
    assert!(disk.rot(&segment_path(A, 1), 2 * 1024 * 1024 + 1_000, 0x40));
    assert_eq!(drain(&mut store, A, 3 * 1024 * 1024, 0), [0, 1, 4, 5, 6]);
    assert_eq!(store.counters().damaged_segments, 1);
    assert!(disk.files().is_empty());
}

#[derive(Clone, Debug)]
enum Op {
    Append {
        target: bool,
        count: u64,
        value_bytes: usize,
    },
    Deliver {
        target: bool,
        max_bytes: usize,
    },
    Sync,
    /// Faults from here on, then a crash.
    Fault {
        after_ops: u64,
    },
    Crash,
    Kill,
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (any::<bool>(), 1u64..8, 0usize..300)
            .prop_map(|(target, count, value_bytes)| Op::Append { target, count, value_bytes }),
        3 => (any::<bool>(), 50usize..1_000)
            .prop_map(|(target, max_bytes)| Op::Deliver { target, max_bytes }),
        3 => Just(Op::Sync),
        1 => (0u64..8).prop_map(|after_ops| Op::Fault { after_ops }),
        1 => Just(Op::Crash),
        1 => Just(Op::Kill),
    ]
}

/// What each target may and must have.
#[derive(Default)]
struct Model {
    next: u64,
    /// Appended, perhaps in part.
    known: BTreeMap<NodeId, BTreeSet<u64>>,
    /// Appended, nothing went wrong, not synced yet.
    fresh: BTreeMap<NodeId, BTreeSet<u64>>,
    /// Synced and not delivered.
    owed: BTreeMap<NodeId, BTreeSet<u64>>,
}

impl Model {
    fn check(&self, store: &mut HintStore, target: NodeId) {
        let found = drain(store, target, 500, 0);
        assert!(found.is_sorted(), "{found:?} is out of order");
        let found: BTreeSet<u64> = found.into_iter().collect();
        let known = self.known.get(&target).cloned().unwrap_or_default();
        assert!(
            found.is_subset(&known),
            "{found:?} were not all for {target}"
        );
        let owed = self.owed.get(&target).cloned().unwrap_or_default();
        assert!(
            owed.is_subset(&found),
            "{owed:?} were owed, {found:?} were there"
        );
    }
}

proptest! {
    /// Whatever happens to disk and process, a hint that was synced and not delivered is there, for
    /// its target, in order.
    #[test]
    fn synced_hints_are_kept_through_crashes_at_any_operation(
        seed: u64, ops in prop::collection::vec(any_op(), 1..30),
    ) {
        let disk = disk(seed);
        let mut store = open(&disk);
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Append { target, count, value_bytes } => {
                    let target = if target { A } else { B };
                    let numbers = model.next..model.next + count;
                    model.next += count;
                    model.known.entry(target).or_default().extend(numbers.clone());
                    if store.append(target, &records(numbers.clone(), value_bytes), 0).is_ok() {
                        model.fresh.entry(target).or_default().extend(numbers);
                    }
                }
                Op::Deliver { target, max_bytes } => {
                    let target = if target { A } else { B };
                    if let Ok(batch) = store.peek(target, max_bytes, 0) {
                        for record in &batch.records {
                            let number = record.version.hlc.0;
                            model.fresh.entry(target).or_default().remove(&number);
                            model.owed.entry(target).or_default().remove(&number);
                        }
                        store.delivered(target, batch.token);
                    }
                }
                Op::Sync => {
                    let synced = store.sync().is_ok();
                    for (target, numbers) in std::mem::take(&mut model.fresh) {
                        if synced {
                            model.owed.entry(target).or_default().extend(numbers);
                        }
                    }
                }
                Op::Fault { after_ops } => disk.fail_after_ops(after_ops),
                Op::Crash | Op::Kill => {
                    if matches!(op, Op::Crash) { disk.crash() } else { disk.process_crash() }
                    // What one process did not sync, the next one does not promise.
                    model.fresh.clear();
                    store = open(&disk);
                    prop_assert_eq!(store.counters().damaged_segments, 0);
                }
            }
        }
        disk.crash();
        let mut store = open(&disk);
        for target in [A, B] {
            model.check(&mut store, target);
        }
    }

    /// Any damage to any file: the store opens, gives what is whole, and takes new hints.
    #[test]
    fn damage_costs_hints_and_nothing_else(
        seed: u64,
        rots in prop::collection::vec((any::<prop::sample::Index>(), 0u64..2_000, 1u8..), 1..6),
        garbage in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let disk = disk(seed);
        for start in [0u64, 10, 20] {
            // A store of its own for each, hence a segment.
            let mut store = open(&disk);
            store.append(A, &records(start..start + 5, 100), 0).unwrap();
            store.sync().unwrap();
        }
        let mut file = disk.create(&segment_path(B, 1)).or_else(|_| {
            disk.create_dir(&target_dir(B))?;
            disk.create(&segment_path(B, 1))
        }).unwrap();
        file.append(&garbage).unwrap();
        let files = disk.files();
        let mut damaged = BTreeSet::new();
        for (file, offset, mask) in rots {
            let (path, bytes) = file.get(&files);
            if disk.rot(path, offset % (bytes + 1), mask) {
                damaged.insert(path.clone());
            }
        }
        let mut store = open(&disk);
        store.append(A, &records(30..32, 100), 0).unwrap();
        let found = drain(&mut store, A, 300, 0);
        prop_assert!(found.is_sorted());
        for (id, start) in [(1, 0u64), (2, 10), (3, 20)] {
            if !damaged.contains(&segment_path(A, id)) {
                for number in start..start + 5 {
                    prop_assert!(found.contains(&number));
                }
            }
        }
        prop_assert!(found.ends_with(&[30, 31]));
        prop_assert!(drain(&mut store, B, 300, 0).is_empty());
    }
}
