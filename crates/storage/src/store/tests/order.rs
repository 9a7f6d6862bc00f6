//! What may be seen, or be left by a loss of power, in the middle of a flush.

use std::path::Path;
use std::sync::OnceLock;

use super::*;
use crate::engine::{EngineError, KeyRange, RunItem};

/// An engine that calls back before and after it takes a run.
struct Watched {
    engine: MemoryEngine,
    watcher: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Engine for Watched {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn ingest(&self, run: &mut dyn Iterator<Item = RunItem>) -> Result<(), EngineError> {
        let watcher = self.watcher.get().unwrap();
        watcher();
        self.engine.ingest(run)?;
        watcher();
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.engine.get(key)
    }

    fn visit(
        &self,
        from: &[u8],
        to: &[u8],
        visitor: &mut dyn FnMut(&[u8], Bytes) -> bool,
    ) -> Result<bool, EngineError> {
        self.engine.visit(from, to, visitor)
    }

    fn drop_ranges(&self, ranges: &[KeyRange]) -> Result<(), EngineError> {
        self.engine.drop_ranges(ranges)
    }

    fn disk_bytes(&self) -> u64 {
        self.engine.disk_bytes()
    }

    fn checkpoint(&self, to: &Path) -> Result<(), EngineError> {
        self.engine.checkpoint(to)
    }

    fn close(&self) -> Result<(), EngineError> {
        self.engine.close()
    }
}

#[test]
fn readers_see_every_record_while_it_moves_to_the_engine() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let bench = Bench::new();
    let engine = Arc::new(Watched {
        engine: bench.engine.clone(),
        watcher: OnceLock::new(),
    });
    let disk = Arc::new(bench.disk.clone());
    let mut store = Store::open(disk, engine.clone(), bench.options.clone()).unwrap();
    let newest = Arc::new(AtomicU64::new(0));
    let seen = Arc::new(AtomicU64::new(0));
    let (reader, expected, count) = (store.reader(), newest.clone(), seen.clone());
    let watch = move || {
        let hlc = expected.load(Ordering::SeqCst);
        assert_eq!(hlc_of(&reader, "k"), Some(hlc));
        let partition = partition_of(b"k", 4);
        let scanned = reader.scan(partition, None, 10).unwrap();
        assert_eq!(scanned[0].version.hlc.0, hlc);
        assert_eq!(reader.count_live(partition, 0).unwrap(), 1);
        let rows = reader.index_rows(Epoch(0), RowRange::All).unwrap();
        assert_eq!(rows[0].version.hlc.0, hlc);
        count.fetch_add(1, Ordering::SeqCst);
    };
    assert!(engine.watcher.set(Box::new(watch)).is_ok());
    for hlc in 1..=6 {
        merge(&mut store, "k", hlc);
        newest.store(hlc, Ordering::SeqCst);
        store.freeze().unwrap();
        // Sometimes two tables wait, so that the older is flushed under the newer.
        if hlc % 3 != 1 {
            while store.flusher().work().unwrap() {}
        }
    }
    assert_eq!(seen.load(Ordering::SeqCst), 12);
}

/// Segments are gone for good before their commit points may go: else a power loss could bring an
/// old segment back, to be replayed over what is newer.
#[test]
fn no_segment_comes_back_after_its_index_is_dropped() {
    for seed in 0..60 {
        let mut bench = Bench::new();
        bench.disk = FaultyDisk::new(seed);
        let mut store = bench.open();
        for hlc in 1..=4 {
            merge(&mut store, "k", 100 + hlc);
            store.freeze().unwrap();
            store.flusher().work().unwrap();
        }
        settle_and_collect(&mut store, 1);
        let reader = store.reader();
        assert_eq!(reader.drop_collected_index().unwrap(), 4);
        drop(store);
        bench.disk.crash();
        let store = bench.open();
        assert_eq!(hlc_of(&store.reader(), "k"), Some(104));
        assert_eq!(store.reader().stats().table_records, 0);
        assert!(store.reader().runs().is_empty());
    }
}
