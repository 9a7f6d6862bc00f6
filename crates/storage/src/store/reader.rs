//! Reading single keys and the epoch index: tables first, then the engine.

use std::sync::Arc;

use mds_types::{Epoch, Record};

use super::shared::Shared;
use super::{StoreError, StoreStats};
use crate::runs::{IndexRow, RowRange, RunInfo, sort_rows};

/// Reads a store from any thread. What it sees is durable by the policy.
#[derive(Clone)]
pub struct StoreReader {
    pub(super) shared: Arc<Shared>,
}

/// An answer from memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// The newest record of the key, a tombstone perhaps.
    Found(Record),
    /// Not in memory: [`StoreReader::get`] has to ask the engine.
    Ask,
}

impl StoreReader {
    pub(super) fn new(shared: Arc<Shared>) -> StoreReader {
        StoreReader { shared }
    }

    /// The newest record of a key, tombstones included. May read the disk.
    ///
    /// # Errors
    /// If the engine fails, if what it holds is damaged, and if the store is poisoned.
    pub fn get(&self, key: &[u8]) -> Result<Option<Record>, StoreError> {
        self.shared.check_sound()?;
        let entry = self.shared.tables.read().get(key).cloned();
        match entry {
            Some(entry) => Ok(Some(self.shared.decode(&entry)?)),
            // Not in the tables at that moment, so the engine shows it now, or something newer.
            None => self.shared.get_from_engine(key),
        }
    }

    /// The newest record of a key if it is in memory, without reading the disk.
    pub fn get_in_memory(&self, key: &[u8]) -> Lookup {
        if self.shared.is_poisoned() {
            // `get` says why.
            return Lookup::Ask;
        }
        let entry = self.shared.tables.read().get(key).cloned();
        match entry.and_then(|entry| self.shared.decode(&entry).ok()) {
            Some(record) => Lookup::Found(record),
            None => Lookup::Ask,
        }
    }

    /// Rows of the epoch index, sorted by (partition, bucket, key): every key written in the epoch,
    /// with its greatest version, from the run files and the tables.
    ///
    /// # Errors
    /// If a run file cannot be read, and if the store is poisoned.
    pub fn index_rows(&self, epoch: Epoch, range: RowRange) -> Result<Vec<IndexRow>, StoreError> {
        self.shared.check_sound()?;
        let bucket_count = self.shared.options.bucket_count;
        // Tables before run files, so that what is flushed in between is seen twice, not never.
        let (mut encoded, frozen) = {
            let tables = self.shared.tables.read();
            let active = tables.active.written(range.partition());
            let active: Vec<_> = active.map(|(p, bytes)| (p, bytes.clone())).collect();
            (active, tables.frozen.clone())
        };
        for table in &frozen {
            let written = table.written(range.partition());
            encoded.extend(written.map(|(p, bytes)| (p, bytes.clone())));
        }
        let mut rows = self.shared.runs.rows(epoch, range)?;
        for (partition, bytes) in encoded {
            let record =
                Record::decode(bytes).map_err(|error| StoreError::record("table", 0, error))?;
            if record.epoch != epoch {
                continue;
            }
            let row = IndexRow::of(partition, bucket_count, &record);
            if range.contains(&row) {
                rows.push(row);
            }
        }
        sort_rows(&mut rows);
        Ok(rows)
    }

    /// The run files, by epoch and segment.
    pub fn runs(&self) -> Vec<RunInfo> {
        self.shared.runs.list()
    }

    /// Drops the run files of the epochs up to and including `epoch`, durably: for epochs that are
    /// verified. Rows still in tables come back with their flush. Returns the number of files.
    /// Waits for a flush that is going on.
    ///
    /// # Errors
    /// If the disk fails, which poisons the store.
    pub fn drop_index_up_to(&self, epoch: Epoch) -> Result<usize, StoreError> {
        self.shared.check_sound()?;
        // Not while a segment is between its commit point and its deletion.
        let _flushing = self.shared.flushing.lock();
        self.shared
            .runs
            .remove(|info| info.epoch <= epoch)
            .map_err(|error| self.shared.poison(error.to_string()))
    }

    /// Counters and gauges.
    pub fn stats(&self) -> StoreStats {
        self.shared.stats()
    }
}
