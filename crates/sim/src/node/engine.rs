//! The engine in memory, on a machine's disk: so that a loss of power may fall into the middle of an ingestion.
//!
//! [`MemoryEngine`] takes a run at once, and what it has taken is durable. A real engine writes and syncs, and the power
//! may fail before that: then a part of the run is there, or nothing, and the log must still have all of it
//! (trap T21). So each run is written to the simulated disk first, in two operations that count, fail and stop
//! like all others.
//!
//! What it does not do: keep its content there; or count the bytes of a run, so that it finds the disk full only when
//! there is no room at all.

use std::io;
use std::path::Path;

use bytes::Bytes;
use mds_storage::engine::{Engine, EngineError, KeyRange, MemoryEngine, RunItem};
use mds_storage::{Disk, FaultyDisk};

/// Where the engine's files would be.
const DIRECTORY: &str = "engine";

/// A run that is being written.
const RUN: &str = "engine/run.tmp";

/// The engine's content, and the disk that it is on.
pub(super) struct EngineOnDisk {
    engine: MemoryEngine,
    disk: FaultyDisk,
}

impl EngineOnDisk {
    pub(super) fn new(engine: MemoryEngine, disk: FaultyDisk) -> EngineOnDisk {
        EngineOnDisk { engine, disk }
    }

    /// What makes a run durable.
    fn write_run(&self) -> io::Result<()> {
        self.disk.create_dir(DIRECTORY)?;
        // One that was cut short.
        let _ = self.disk.remove(RUN);
        let mut file = self.disk.create(RUN)?;
        file.append(&[0])?;
        file.sync()
    }
}

impl Engine for EngineOnDisk {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn ingest(&self, run: &mut dyn Iterator<Item = RunItem>) -> Result<(), EngineError> {
        let mut items: Vec<RunItem> = run.collect();
        if let Err(error) = self.write_run() {
            if self.disk.is_stopped() {
                // Some of it got there before the power failed.
                items.truncate(items.len() / 2);
                self.engine.ingest(&mut items.into_iter())?;
            }
            return Err(error.into());
        }
        self.engine.ingest(&mut items.into_iter())
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
        match self.write_run() {
            Ok(()) => self.engine.drop_ranges(ranges),
            Err(error) => {
                if self.disk.is_stopped() {
                    // Some of it got there before the power failed.
                    self.engine.drop_ranges(&ranges[..ranges.len() / 2])?;
                }
                Err(error.into())
            }
        }
    }

    fn is_behind(&self) -> bool {
        self.engine.is_behind()
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
