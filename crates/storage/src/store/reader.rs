//! Reading single keys, the epoch index and the ledger: tables first, then the disk.

use std::collections::VecDeque;
use std::sync::Arc;

use mds_types::mutation::{Mutation, is_on};
use mds_types::{Epoch, PartitionId, Record};

use super::shared::Shared;
use super::{Ledger, StoreError, StoreStats, Tables};
use crate::epoch_index::{Known, Leaves};
use crate::keys::bucket_of;
use crate::ledger::has_passed;
use crate::row::{IndexRow, RowRange, sort_rows};
use crate::runs::RunInfo;
use crate::table::leaves_of;
use crate::table::{Table, Written};

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
        let ticket = self.shared.cache.ticket();
        self.get_or(key, || {
            let partition = self.partition_of(key);
            self.shared.get_beneath_tables(ticket, partition, key)
        })
    }

    /// The same past the cache: what the engine shows, where no table hides it.
    pub(super) fn get_uncached(&self, key: &[u8]) -> Result<Option<Record>, StoreError> {
        self.get_or(key, || self.shared.get_from_engine(key))
    }

    fn get_or(
        &self,
        key: &[u8],
        beneath: impl FnOnce() -> Result<Option<Record>, StoreError>,
    ) -> Result<Option<Record>, StoreError> {
        self.shared.check_sound()?;
        let entry = self.shared.tables.read().get(key).cloned();
        match entry {
            Some(entry) if entry.gone => Ok(None),
            Some(entry) => Ok(Some(self.shared.decode(&entry)?)),
            // Not in the tables at that moment, so the engine shows it now, or something newer.
            None => beneath(),
        }
    }

    /// The newest record of a key if it is in memory, without reading the disk.
    pub fn get_in_memory(&self, key: &[u8]) -> Lookup {
        if self.shared.is_poisoned() {
            // `get` says why.
            return Lookup::Ask;
        }
        let entry = self.shared.tables.read().get(key).cloned();
        let record = match entry {
            // That a key is gone is rare enough to be told by `get`.
            Some(entry) if entry.gone => None,
            Some(entry) => self.shared.decode(&entry).ok(),
            None => self.shared.get_from_cache(key),
        };
        record.map_or(Lookup::Ask, Lookup::Found)
    }

    /// Rows of the epoch index, sorted by (partition, bucket, key): every key written in the epoch,
    /// with its greatest version, from the run files and the tables. Of an epoch that is settled and
    /// collected, or whose rows were dropped for want of room, there may be some, all or none.
    ///
    /// # Errors
    /// If a run file cannot be read, and if the store is poisoned.
    pub fn index_rows(&self, epoch: Epoch, range: RowRange) -> Result<Vec<IndexRow>, StoreError> {
        self.shared.check_sound()?;
        let ledger = self.shared.ledger.get();
        let bucket_count = self.shared.options.bucket_count;
        // To make a row is to digest its value: only of those that are asked for.
        let is_wanted = |written: &Written| {
            let is_here = ledger.partition(written.partition).is_indexed();
            is_here
                && (range.has_all_buckets()
                    || range.has_bucket(bucket_of(written.key(), bucket_count)))
        };
        // Tables before run files, so that what is flushed in between is seen twice, not never.
        let (active, frozen) = self.tables_of(epoch, range.partition());
        let mut rows = Vec::new();
        let frozen = frozen
            .iter()
            .flat_map(|table| table.written(Some(epoch), range.partition()));
        for written in active.into_iter().chain(frozen).filter(is_wanted) {
            rows.push(self.row_of(&written)?);
        }
        rows.extend(self.shared.runs.rows(&ledger, epoch, range)?);
        sort_rows(&mut rows);
        if is_on(Mutation::RowGoesWithRecord) {
            let current = |row: &IndexRow| self.get(&row.key).ok().flatten();
            rows.retain(|row| current(row).is_some_and(|record| record.version == row.version));
        }
        Ok(rows)
    }

    /// The leaves of a partition's Merkle tree for an epoch, exact: from memory, or rebuilt from the rows,
    /// which reads run files. `None` if there is no set to compare: the partition is not here, its
    /// watermark (or the one of the replica that it is streamed from) has passed the epoch, or rows were
    /// dropped for want of room ([`Ledger::lacks_rows`]).
    ///
    /// # Errors
    /// As [`StoreReader::index_rows`].
    pub fn leaves(
        &self,
        epoch: Epoch,
        partition: PartitionId,
    ) -> Result<Option<Leaves>, StoreError> {
        self.shared.check_sound()?;
        let ledger = self.shared.ledger.get();
        let entry = ledger.partition(partition);
        let is_lost = ledger.lacks_rows(partition) && epoch <= ledger.unverifiable;
        if !entry.is_indexed() || has_passed(entry.no_new_rows(), epoch) || is_lost {
            return Ok(None);
        }
        if is_on(Mutation::RowGoesWithRecord) {
            return self.rebuilt_leaves(epoch, partition).map(Some);
        }
        if let Some(leaves) = self.known_leaves(epoch, partition)? {
            return Ok(Some(leaves));
        }
        if has_passed(ledger.closed, epoch)
            && let Some(leaves) = self.rebuild(&ledger, epoch, partition)?
        {
            return Ok(Some(leaves));
        }
        self.rebuilt_leaves(epoch, partition).map(Some)
    }

    /// The leaves, without reading the disk, if they are known.
    pub(super) fn known_leaves(
        &self,
        epoch: Epoch,
        partition: PartitionId,
    ) -> Result<Option<Leaves>, StoreError> {
        // Of one moment: a flush moves rows from here to there.
        let (known, active, frozen) = {
            let tables = self.shared.tables.read();
            let Known::Leaves(known) = tables.index.get(epoch, partition) else {
                return Ok(None);
            };
            let active = tables.active.written(Some(epoch), Some(partition));
            (known, active.collect::<Vec<_>>(), tables.frozen.clone())
        };
        let mut leaves = known;
        let options = &self.shared.options;
        let (bucket_count, row_seed) = (options.bucket_count, options.row_seed);
        // It was valid when it went in, so a failure is broken memory.
        let broken = |error| StoreError::record("table", 0, error);
        let in_active = leaves_of(active.into_iter(), bucket_count, row_seed);
        leaves.add_all(&in_active.map_err(broken)?);
        for table in &frozen {
            let in_frozen = table.frozen_leaves(epoch, partition, bucket_count, row_seed);
            leaves.add_all(&in_frozen.map_err(broken)?);
        }
        Ok(Some(leaves))
    }

    /// Rebuilds the leaves of a closed epoch from its run files, and remembers them. `None` if some of its
    /// rows are in tables still, or come in just now.
    fn rebuild(
        &self,
        ledger: &Ledger,
        epoch: Epoch,
        partition: PartitionId,
    ) -> Result<Option<Leaves>, StoreError> {
        let has_rows = |tables: &Tables| {
            let frozen = tables.frozen.iter().map(|table| &**table);
            let mut all = frozen.chain([&tables.active]);
            all.any(|table| {
                let mut written = table.written(Some(epoch), Some(partition));
                written.next().is_some()
            })
        };
        let changes = {
            let tables = self.shared.tables.read();
            match tables.index.get(epoch, partition) {
                Known::No(changes) if !has_rows(&tables) => changes,
                _ => return Ok(None),
            }
        };
        let range = RowRange::Partition(partition);
        let rows = self.shared.runs.rows(ledger, epoch, range)?;
        let options = &self.shared.options;
        let leaves = Leaves::of(&rows, options.bucket_count, options.row_seed);
        let mut tables = self.shared.tables.write();
        let is_kept = !has_rows(&tables)
            && tables
                .index
                .install(epoch, partition, changes, leaves.clone());
        Ok(is_kept.then_some(leaves))
    }

    /// What the active table has of an epoch and perhaps partition, and the other tables whose rows are not
    /// in run files yet.
    fn tables_of(
        &self,
        epoch: Epoch,
        partition: Option<PartitionId>,
    ) -> (Vec<Written>, VecDeque<Arc<Table>>) {
        let tables = self.shared.tables.read();
        let active = tables.active.written(Some(epoch), partition);
        (active.collect(), tables.frozen.clone())
    }

    fn row_of(&self, written: &Written) -> Result<IndexRow, StoreError> {
        // It was valid when it went in, so a failure is broken memory.
        let row = written.row(self.shared.options.bucket_count);
        row.map_err(|error| StoreError::record("table", 0, error))
    }

    /// The same from the rows, whatever memory says: for checking that it says the same. Not `None` for
    /// epochs of which it says nothing.
    ///
    /// # Errors
    /// As [`StoreReader::index_rows`].
    pub fn rebuilt_leaves(
        &self,
        epoch: Epoch,
        partition: PartitionId,
    ) -> Result<Leaves, StoreError> {
        let rows = self.index_rows(epoch, RowRange::Partition(partition))?;
        let options = &self.shared.options;
        Ok(Leaves::of(&rows, options.bucket_count, options.row_seed))
    }

    /// The partition of a key.
    pub fn partition_of(&self, key: &[u8]) -> PartitionId {
        mds_types::slot::partition_of(key, self.shared.options.partition_count)
    }

    /// What this replica has promised about epochs: a snapshot, cheap.
    pub fn ledger(&self) -> Arc<Ledger> {
        self.shared.ledger.get()
    }

    /// The run files, by epoch and segment.
    pub fn runs(&self) -> Vec<RunInfo> {
        self.shared.runs.list()
    }

    /// Drops the run files of the epochs that are collected in every partition that is here, durably.
    /// Rows still in tables come back with their flush. Returns the number of files. Waits for a flush that
    /// is going on.
    ///
    /// # Errors
    /// If the disk fails, which poisons the store.
    pub fn drop_collected_index(&self) -> Result<usize, StoreError> {
        self.shared.check_sound()?;
        // Not while a segment is between its commit point and its deletion.
        let _flushing = self.shared.flushing.lock();
        let ledger = self.shared.ledger.get();
        // Where nothing is here, no row is of use to anybody.
        let up_to = ledger.collected_everywhere().unwrap_or(ledger.closed);
        if up_to == Epoch(0) {
            return Ok(0);
        }
        let removed = self
            .shared
            .runs
            .remove(|info| info.epoch <= up_to)
            .map_err(|error| self.shared.poison(error.to_string()))?;
        self.shared.tables.write().index.drop_up_to(up_to);
        Ok(removed)
    }

    /// Counters and gauges.
    pub fn stats(&self) -> StoreStats {
        self.shared.stats()
    }
}
