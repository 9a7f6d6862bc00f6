//! Flushing: one frozen table, the oldest, into the engine and the epoch index.
//!
//! **The order is law**, because the engine keeps what arrives last, not what is newest: replaying
//! segment n over n+1 would bring old values back. So, for segment n:
//!
//! 1. the engine ingests its records, durably;
//! 2. its run files are written, durably; the last one is the *commit point*;
//! 3. the segment's file is deleted, durably;
//! 4. only then is n+1 handed over.
//!
//! A crash before the commit point finds the segment and flushes it again, onto an engine that
//! holds part of it and nothing later. A crash after it finds the commit point and deletes the
//! segment.

use std::collections::BTreeMap;
use std::sync::Arc;

use mds_types::mutation::{Mutation, is_on};
use mds_types::{Epoch, Record};

use super::StoreError;
use super::shared::{Counter, Shared};
use crate::keys::{Keyspace, engine_key};
use crate::log::LOG_DIR;
use crate::runs::{IndexRow, RunLimits};
use crate::table::Table;

/// Flushes frozen tables: on a thread of its own, or in turns.
#[derive(Clone)]
pub struct Flusher {
    shared: Arc<Shared>,
}

impl Flusher {
    pub(super) fn new(shared: Arc<Shared>) -> Flusher {
        Flusher { shared }
    }

    /// Flushes the oldest frozen table. False if there is nothing to do now: no table waits, or the
    /// engine is behind with its own work (then ask again in a while, see [`Flusher::wants_work`]).
    ///
    /// # Errors
    /// [`StoreError::Full`]: try again when there is room; nothing is lost. Else the store is
    /// poisoned.
    pub fn work(&self) -> Result<bool, StoreError> {
        if self.wants_work() && self.shared.engine.is_behind() {
            return Ok(false);
        }
        self.flush_oldest()
    }

    /// Whether a table waits.
    pub fn wants_work(&self) -> bool {
        self.shared.wants_flush()
    }

    /// Flushes the oldest frozen table, however busy the engine is.
    pub(super) fn flush_oldest(&self) -> Result<bool, StoreError> {
        let _flushing = self.shared.flushing.lock();
        self.shared.check_sound()?;
        let next = {
            let tables = self.shared.tables.read();
            match is_on(Mutation::FlushNewestFirst) {
                true => tables.frozen.back().cloned(),
                false => tables.frozen.front().cloned(),
            }
        };
        let Some(table) = next else {
            return Ok(false);
        };
        self.flush(&table)
            .map_err(|error| self.shared.poison_unless_full(error))?;
        self.shared.add(Counter::Flushes, 1);
        self.enforce_run_limits()?;
        Ok(true)
    }

    fn flush(&self, table: &Arc<Table>) -> Result<(), StoreError> {
        let shared = &*self.shared;
        if is_on(Mutation::SegmentDroppedFirst) {
            self.remove_segment(table)?;
        }
        self.ingest(table)?;
        shared
            .runs
            .write_segment(table.segment(), self.rows(table)?)?;

        // The engine shows the records: the table may go. It stays for one more turn as a cache.
        {
            let mut tables = shared.tables.write();
            match is_on(Mutation::FlushNewestFirst) {
                true => tables.frozen.pop_back(),
                false => tables.frozen.pop_front(),
            };
            tables.flushed = Some(table.clone());
        }

        match is_on(Mutation::SegmentDroppedFirst) {
            true => Ok(()),
            false => self.remove_segment(table),
        }
    }

    fn remove_segment(&self, table: &Table) -> Result<(), StoreError> {
        let shared = &*self.shared;
        let path = shared.segment_path_of(table);
        let removed = shared
            .disk
            .remove(&path)
            .and_then(|()| shared.disk.sync_dir(LOG_DIR));
        // Never "full", from which one would go on: n+1 may only follow when n is gone.
        removed.map_err(|source| StoreError::Io {
            doing: format!("remove {path}"),
            source,
        })
    }

    fn ingest(&self, table: &Table) -> Result<(), StoreError> {
        let mut run = table.sorted().into_iter().map(|entry| {
            let key = engine_key(entry.partition, Keyspace::Eventual, entry.key());
            let is_deleted = |record: Record| record.value().is_none();
            let is_dropped =
                is_on(Mutation::TombstoneDropped) && entry.record().is_ok_and(is_deleted);
            (key, (!is_dropped).then(|| entry.encoded.clone()))
        });
        Ok(self.shared.engine.ingest(&mut run)?)
    }

    fn rows(&self, table: &Table) -> Result<BTreeMap<Epoch, Vec<IndexRow>>, StoreError> {
        let bucket_count = self.shared.options.bucket_count;
        let mut rows: BTreeMap<Epoch, Vec<IndexRow>> = BTreeMap::new();
        for (partition, encoded) in table.written(None) {
            let record = Record::decode(encoded.clone())
                .map_err(|error| StoreError::record("table", 0, error))?;
            rows.entry(record.epoch).or_default().push(IndexRow::of(
                partition,
                bucket_count,
                &record,
            ));
        }
        Ok(rows)
    }

    fn enforce_run_limits(&self) -> Result<(), StoreError> {
        let limits = RunLimits {
            bytes_max: self.shared.options.run_bytes_max,
            files_max: self.shared.options.run_files_max,
        };
        let dropped = self
            .shared
            .runs
            .enforce(limits, self.shared.epoch())
            .map_err(|error| self.shared.poison(error.to_string()))?;
        self.shared.add(Counter::EpochsDropped, dropped as u64);
        Ok(())
    }
}
