//! What writer, readers and flusher share.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use mds_types::slot::partition_of;
use mds_types::{Epoch, PartitionId, Record};
use parking_lot::{Mutex, RwLock};

use super::chores::Chores;
use super::flush::Flushing;
use super::{Merged, StoreError, StoreOptions, Tables};
use crate::cache::{RecordCache, Ticket};
use crate::disk::Disk;
use crate::engine::Engine;
use crate::keys::{Keyspace, engine_key};
use crate::ledger::{ChangeError, Ledger, LedgerFile};
use crate::log::segment_path;
use crate::row::{Place, Rank};
use crate::runs::Runs;
use crate::table::{Entry, KeyHashing, Table};

/// The state of one store.
pub(super) struct Shared {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) options: StoreOptions,
    /// Held for moments only: lookups, and the change of one batch.
    pub(super) tables: RwLock<Tables>,
    /// What the engine holds, beneath the tables.
    pub(super) cache: RecordCache,
    pub(super) runs: Runs,
    pub(super) ledger: LedgerFile,
    /// Held by the one that flushes.
    pub(super) flushing: Mutex<Flushing>,
    /// Held for moments only.
    pub(super) chores: Mutex<Chores>,
    poison: OnceLock<Arc<str>>,
    epoch: AtomicU64,
    counters: [AtomicU64; Counter::COUNT],
}

/// Where the row of a key in an epoch is.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowPresent {
    /// In the table that is being written.
    pub(super) in_active: Option<Rank>,
    /// In older tables and on disk.
    pub(super) elsewhere: Option<Rank>,
}

/// What is counted.
#[derive(Clone, Copy)]
pub(super) enum Counter {
    Applied,
    Superseded,
    Same,
    EpochClosed,
    Settled,
    NotHere,
    RowsAlone,
    Collected,
    LogBytes,
    Syncs,
    Flushes,
    EpochsDropped,
    CacheHits,
    EngineGets,
}

impl Counter {
    const COUNT: usize = Counter::EngineGets as usize + 1;
}

/// Counters since the store was opened, and gauges of now.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct StoreStats {
    /// Records that won and were written.
    pub applied: u64,
    /// Records that lost to a newer one.
    pub superseded: u64,
    /// Records that were there already.
    pub same: u64,
    /// Writes and hints refused because their epoch is closed.
    pub epoch_closed: u64,
    /// Records refused because the partition's watermark has passed their epoch.
    pub settled: u64,
    /// Records refused because their partition is not here.
    pub not_here: u64,
    /// Superseded versions that left their row.
    pub rows_alone: u64,
    /// Dead records that were collected.
    pub collected: u64,
    /// Lookups of single keys that were in no table, and in the cache.
    pub cache_hits: u64,
    /// Lookups of single keys that asked the engine.
    pub engine_gets: u64,
    /// Bytes of the engine's records in memory, roughly.
    pub cache_bytes: u64,
    /// Bytes of bucket hashes in memory, roughly.
    pub index_bytes: u64,
    /// Bytes appended to the log.
    pub log_bytes: u64,
    /// Syncs of the log.
    pub syncs: u64,
    /// Segments flushed to the engine.
    pub flushes: u64,
    /// Closed epochs whose index was dropped unverified, because there was too much of it.
    pub epochs_dropped: u64,
    /// Keys in the active and the frozen tables.
    pub table_records: u64,
    /// Bytes of records in the active and the frozen tables.
    pub table_bytes: u64,
    /// Tables that wait to be flushed.
    pub frozen_tables: u64,
    /// Run files of the epoch index.
    pub run_files: u64,
    /// Bytes in them.
    pub run_bytes: u64,
    /// Bytes of the engine on disk, roughly.
    pub engine_bytes: u64,
    /// Whether the store has stopped after a failure.
    pub poisoned: bool,
}

impl Shared {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        engine: Arc<dyn Engine>,
        options: StoreOptions,
        tables: Tables,
        runs: Runs,
        ledger: LedgerFile,
    ) -> Shared {
        let cache = RecordCache::new(options.cache_bytes_max, options.secret);
        Shared {
            cache,
            disk,
            engine,
            options,
            tables: RwLock::new(tables),
            runs,
            ledger,
            flushing: Mutex::default(),
            chores: Mutex::default(),
            poison: OnceLock::new(),
            epoch: AtomicU64::new(0),
            counters: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    pub(super) fn value_bytes_max(&self) -> usize {
        self.options.value_bytes_max
    }

    pub(super) fn hashing(&self) -> KeyHashing {
        KeyHashing(self.options.secret)
    }

    pub(super) fn new_table(&self, segment: u64) -> Table {
        Table::new(segment, self.options.partition_count, self.options.secret)
    }

    /// Refuses to go on after a failure.
    pub(super) fn check_sound(&self) -> Result<(), StoreError> {
        match self.poison.get() {
            None => Ok(()),
            Some(cause) => Err(StoreError::Poisoned {
                cause: cause.clone(),
            }),
        }
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.poison.get().is_some()
    }

    /// Stops the store for good; the first cause is kept.
    pub(super) fn poison(&self, cause: impl Into<String>) -> StoreError {
        let cause = self.poison.get_or_init(|| {
            let cause = cause.into();
            tracing::error!(cause, "the store stops");
            cause.into()
        });
        StoreError::Poisoned {
            cause: cause.clone(),
        }
    }

    /// Stops the store, unless the disk was only full.
    pub(super) fn poison_unless_full(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Full => StoreError::Full,
            error => self.poison(error.to_string()),
        }
    }

    /// Changes the ledger, durably.
    pub(super) fn change_ledger(&self, change: impl FnOnce(&mut Ledger)) -> Result<(), StoreError> {
        match self.ledger.change(&*self.disk, change) {
            Ok(()) => Ok(()),
            Err(ChangeError::Full) => Err(StoreError::Full),
            Err(ChangeError::Broken(why)) => {
                Err(self.poison(format!("cannot write the epoch ledger: {why}")))
            }
        }
    }

    /// The row of a key in an epoch: the rank of the greatest version that was written. Reads run files.
    pub(super) fn row(
        &self,
        ledger: &Ledger,
        epoch: Epoch,
        place: Place,
        key: &[u8],
    ) -> Result<RowPresent, StoreError> {
        let row = |table: &Table| {
            let row = table.row(epoch, key);
            row.map_err(|error| StoreError::record("table", 0, error))
        };
        // Tables before run files, so that what is flushed in between is seen twice, not never.
        let (in_active, frozen) = {
            let tables = self.tables.read();
            (row(&tables.active)?, tables.frozen.clone())
        };
        let mut elsewhere = None;
        for table in &frozen {
            elsewhere = row(table)?.max(elsewhere);
        }
        let elsewhere = self.runs.row(ledger, epoch, place, key)?.max(elsewhere);
        Ok(RowPresent {
            in_active,
            elsewhere,
        })
    }

    /// The record of a key that is in no table: from the cache, else from the engine, and then it is kept.
    /// `ticket`: of before the tables were asked.
    pub(super) fn get_beneath_tables(
        &self,
        ticket: Ticket,
        partition: PartitionId,
        key: &[u8],
    ) -> Result<Option<Record>, StoreError> {
        if let Some(record) = self.get_from_cache(key) {
            return Ok(Some(record));
        }
        let Some(value) = self.engine_value(partition, key)? else {
            return Ok(None);
        };
        let record = self.decode_engine(key, value.clone())?;
        self.cache.fill(ticket, partition, key, &value);
        Ok(Some(record))
    }

    /// The record of a key in the cache.
    pub(super) fn get_from_cache(&self, key: &[u8]) -> Option<Record> {
        let record = self.cache.get(key)?;
        self.add(Counter::CacheHits, 1);
        Some(record)
    }

    /// The record of a key in the engine.
    pub(super) fn get_from_engine(&self, key: &[u8]) -> Result<Option<Record>, StoreError> {
        let partition = partition_of(key, self.options.partition_count);
        let value = self.engine_value(partition, key)?;
        value
            .map(|value| self.decode_engine(key, value))
            .transpose()
    }

    fn engine_value(
        &self,
        partition: PartitionId,
        key: &[u8],
    ) -> Result<Option<Bytes>, StoreError> {
        self.add(Counter::EngineGets, 1);
        let engine_key = engine_key(partition, Keyspace::Eventual, key);
        Ok(self.engine.get(&engine_key)?)
    }

    /// Reads an engine value, which must be a record of this key.
    pub(super) fn decode_engine(&self, key: &[u8], value: Bytes) -> Result<Record, StoreError> {
        let file = || format!("engine {}", self.engine.name());
        let record =
            Record::decode(value).map_err(|error| StoreError::record(&file(), 0, error))?;
        if record.key != key {
            let what = "a record is stored under another key";
            return Err(StoreError::corrupt(file(), 0, what));
        }
        Ok(record)
    }

    /// Reads a table's entry. It was valid when it went in, so a failure is broken memory.
    pub(super) fn decode(&self, entry: &Entry) -> Result<Record, StoreError> {
        entry
            .record()
            .map_err(|error| StoreError::record("table", 0, error))
    }

    pub(super) fn wants_flush(&self) -> bool {
        !self.tables.read().frozen.is_empty()
    }

    pub(super) fn segment_path_of(&self, table: &Table) -> String {
        segment_path(table.segment())
    }

    /// Takes note of the epoch; whether it is a later one.
    pub(super) fn raise_epoch(&self, epoch: Epoch) -> bool {
        self.epoch.fetch_max(epoch.0, Relaxed) < epoch.0
    }

    pub(super) fn add(&self, counter: Counter, count: u64) {
        self.counters[counter as usize].fetch_add(count, Relaxed);
    }

    pub(super) fn count_merges(&self, outcomes: &[Merged]) {
        let mut counts = [0; 6];
        for outcome in outcomes {
            counts[*outcome as usize] += 1;
        }
        let add = |counter, outcome| self.add(counter, counts[outcome as usize]);
        add(Counter::Applied, Merged::Applied);
        add(Counter::Superseded, Merged::Superseded);
        add(Counter::Same, Merged::Same);
        if counts[3..] != [0; 3] {
            add(Counter::EpochClosed, Merged::EpochClosed);
            add(Counter::Settled, Merged::Settled);
            add(Counter::NotHere, Merged::NotHere);
        }
    }

    pub(super) fn stats(&self) -> StoreStats {
        let count = |counter: Counter| self.counters[counter as usize].load(Relaxed);
        let runs = self.runs.list();
        let (table_records, table_bytes, frozen_tables, index_bytes) = {
            let tables = self.tables.read();
            let frozen = tables.frozen.iter().map(|table| &**table);
            let all = frozen.chain([&tables.active]);
            let sums = all.fold((0, 0), |(records, bytes), table| {
                (records + table.len(), bytes + table.bytes())
            });
            (sums.0, sums.1, tables.frozen.len(), tables.index.bytes())
        };
        StoreStats {
            applied: count(Counter::Applied),
            superseded: count(Counter::Superseded),
            same: count(Counter::Same),
            epoch_closed: count(Counter::EpochClosed),
            settled: count(Counter::Settled),
            not_here: count(Counter::NotHere),
            rows_alone: count(Counter::RowsAlone),
            collected: count(Counter::Collected),
            cache_hits: count(Counter::CacheHits),
            engine_gets: count(Counter::EngineGets),
            cache_bytes: self.cache.bytes(),
            index_bytes: index_bytes as u64,
            log_bytes: count(Counter::LogBytes),
            syncs: count(Counter::Syncs),
            flushes: count(Counter::Flushes),
            epochs_dropped: count(Counter::EpochsDropped),
            table_records: table_records as u64,
            table_bytes: table_bytes as u64,
            frozen_tables: frozen_tables as u64,
            run_files: runs.len() as u64,
            run_bytes: runs.iter().map(|info| info.bytes).sum(),
            engine_bytes: self.engine.disk_bytes(),
            poisoned: self.is_poisoned(),
        }
    }
}
