//! What a merge costs the store's thread: instructions or time of merges alone, without a disk.
//!
//! ```sh
//! cargo run --release -p mds-storage --example merge_cost              # nanoseconds for each merge
//! valgrind --tool=callgrind --toggle-collect='*measured*' \
//!     target/release/examples/merge_cost overwrite                     # instructions, without noise
//! ```
//!
//! Records have 16-byte keys and 100-byte values and come in batches of 64. `insert` merges keys that are
//! new, `overwrite` keys of the same epoch that are in memory, `next-epoch` the same keys in a later epoch. `cached` merges
//! keys that have been flushed, and whose records the cache still has; `from-engine` the same without a cache, so that
//! the default engine, in a temporary directory, is asked for each. The log's disk takes everything and keeps nothing.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use mds_storage::engine::{self, Engine, MemoryEngine};
use mds_storage::store::{FsyncPolicy, Store, StoreOptions};
use mds_storage::{Disk, DiskFile};
use mds_types::{Body, Epoch, Hlc, NodeId, Record, Version};

const KEYS: u64 = 50_000;
const BATCH: usize = 64;

/// A disk that takes everything and keeps nothing.
struct NoDisk;

struct NoFile(u64);

impl DiskFile for NoFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0 += bytes.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0 = len;
        Ok(())
    }

    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
}

impl Disk for NoDisk {
    fn create(&self, _path: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(NoFile(0)))
    }

    fn open(&self, _path: &str) -> io::Result<Box<dyn DiskFile>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn read(&self, _path: &str) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn list(&self, _dir: &str) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn create_dir(&self, _dir: &str) -> io::Result<()> {
        Ok(())
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, _path: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _dir: &str) -> io::Result<()> {
        Ok(())
    }
}

fn records(round: u64, epoch: u64) -> Vec<Record> {
    (0..KEYS)
        .map(|n| Record {
            key: Bytes::from(format!("key:{n:012}")),
            version: Version {
                hlc: Hlc(round * KEYS + n + 1),
                node: NodeId(1),
            },
            epoch: Epoch(epoch),
            expires_at_ms: None,
            body: Body::Value(Bytes::from(vec![b'v'; 100])),
        })
        .collect()
}

#[inline(never)]
fn measured(store: &mut Store, records: &[Record]) -> Result<(), Box<dyn std::error::Error>> {
    for batch in records.chunks(BATCH) {
        store.merge(batch)?;
    }
    Ok(())
}

fn run(what: &str) -> Result<f64, Box<dyn std::error::Error>> {
    let mut options = StoreOptions {
        fsync: FsyncPolicy::Os,
        segment_bytes_max: 256 * 1024 * 1024,
        ..StoreOptions::default()
    };
    let dir = tempfile::tempdir()?;
    let mut engine: Arc<dyn Engine> = Arc::new(MemoryEngine::new());
    if what == "from-engine" {
        options.cache_bytes_max = 0;
        engine = engine::open("fjall", &dir.path().join("engine"))?;
    }
    let mut store = Store::open(Arc::new(NoDisk), engine, options)?;
    let before = records(0, 1);
    if what != "insert" {
        for batch in before.chunks(BATCH) {
            store.merge(batch)?;
        }
    }
    let next = records(1, if what == "next-epoch" { 2 } else { 1 });
    if what == "next-epoch" {
        store.epoch_changed(Epoch(2))?;
    }
    if matches!(what, "cached" | "from-engine") {
        store.freeze()?;
        while store.flusher().work()? {}
    }
    let start = Instant::now();
    measured(&mut store, &next)?;
    Ok(start.elapsed().as_nanos() as f64 / KEYS as f64)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if let Some(what) = std::env::args().nth(1) {
        println!("{what}: {:.0} ns", run(&what)?);
        return Ok(());
    }
    for what in ["insert", "overwrite", "next-epoch", "cached", "from-engine"] {
        // The best of some: what disturbs a measurement only ever adds.
        let mut best = f64::INFINITY;
        for _ in 0..15 {
            best = best.min(run(what)?);
        }
        println!("{what:12} {best:6.0} ns");
    }
    Ok(())
}
