//! A guard that noise cannot fool: how often the store allocates for a merge and for a read, which depends on neither the
//! machine nor its load. Budgets are what it was when they were recorded, and a little air; whoever lowers a count
//! lowers its budget. Time is not measured here: `examples/merge_cost.rs`.

#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;
use mds_storage::engine::MemoryEngine;
use mds_storage::store::{FsyncPolicy, Store, StoreOptions};
use mds_storage::{FaultyDisk, Lookup};
use mds_types::{Body, Epoch, Hlc, NodeId, Record, Version};

const KEYS: u64 = 4_096;
const BATCH: usize = 64;

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

/// Allocations of this thread for each key.
fn allocations_of(act: impl FnOnce()) -> f64 {
    let before = ALLOCATIONS.with(Cell::get);
    act();
    (ALLOCATIONS.with(Cell::get) - before) as f64 / KEYS as f64
}

fn records(round: u64) -> Vec<Record> {
    let record = |n: u64| Record {
        key: Bytes::from(format!("key:{n:012}")),
        version: Version {
            hlc: Hlc(round * KEYS + n + 1),
            node: NodeId(1),
        },
        epoch: Epoch(1),
        expires_at_ms: None,
        body: Body::Value(Bytes::from(vec![b'v'; 100])),
    };
    (0..KEYS).map(record).collect()
}

fn merge(store: &mut Store, round: u64) -> f64 {
    let records = records(round);
    allocations_of(|| {
        for batch in records.chunks(BATCH) {
            store.merge(batch).unwrap();
        }
    })
}

fn flush(store: &mut Store) {
    store.freeze().unwrap();
    while store.flusher().work().unwrap() {}
}

fn assert_within(what: &str, count: f64, budget: f64) {
    println!("{what}: {count:.2} allocations, budget {budget}");
    assert!(
        count <= budget,
        "{what}: {count:.2} allocations, and {budget} are allowed"
    );
}

#[test]
fn merges_and_reads_allocate_no_more_than_they_did() {
    let options = StoreOptions {
        fsync: FsyncPolicy::Os,
        ..StoreOptions::default()
    };
    let disk = Arc::new(FaultyDisk::new(1));
    let mut store = Store::open(disk, Arc::new(MemoryEngine::new()), options).unwrap();
    let reader = store.reader();
    let read = || {
        let keys: Vec<Bytes> = records(0).into_iter().map(|record| record.key).collect();
        allocations_of(|| {
            for key in &keys {
                assert!(matches!(reader.get_in_memory(key), Lookup::Found(_)));
            }
        })
    };
    assert_within("a new key", merge(&mut store, 0), NEW_KEY);
    assert_within("a key in a table", merge(&mut store, 1), KEY_IN_TABLE);
    assert_within("a read from a table", read(), READ);
    flush(&mut store);
    assert_within("a read from the cache, the first", read(), FIRST_READ);
    assert_within("a read from the cache", read(), READ);
    assert_within("a flushed key", merge(&mut store, 2), FLUSHED_KEY);
}

const NEW_KEY: f64 = 1.3;
const KEY_IN_TABLE: f64 = 0.3;
const FLUSHED_KEY: f64 = 1.3;
const READ: f64 = 0.0;
/// What is shared from then on is counted from then on.
const FIRST_READ: f64 = 1.0;
