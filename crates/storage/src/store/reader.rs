//! Reading single keys, the epoch index and the ledger: tables first, then the disk.

use std::sync::Arc;

use mds_types::mutation::{Mutation, is_on};
use mds_types::{Epoch, PartitionId, Record};

use super::shared::Shared;
use super::{Ledger, StoreError, StoreStats};
use crate::epoch_index::{Known, Leaves};
use crate::ledger::has_passed;
use crate::row::{IndexRow, RowRange, sort_rows};
use crate::runs::RunInfo;

/// Times that a rebuild of hashes is tried while merges change its rows, before what it gave is returned
/// without being kept.
const REBUILDS_MAX: usize = 3;

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
            Some(entry) if entry.gone => Ok(None),
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
        // That a key is gone is rare enough to be told by `get`.
        let entry = entry.filter(|entry| !entry.gone);
        match entry.and_then(|entry| self.shared.decode(&entry).ok()) {
            Some(record) => Lookup::Found(record),
            None => Lookup::Ask,
        }
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
        // Tables before run files, so that what is flushed in between is seen twice, not never.
        let mut rows = Vec::new();
        let mut add = |(of, row): (Epoch, IndexRow)| {
            let is_here = ledger.partition(row.partition).is_indexed();
            if of == epoch && is_here && range.contains(&row) {
                rows.push(row);
            }
        };
        let frozen = {
            let tables = self.shared.tables.read();
            tables.active.rows(range.partition()).for_each(&mut add);
            tables.frozen.clone()
        };
        for table in &frozen {
            table.rows(range.partition()).for_each(&mut add);
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
        let mut rebuilt = None;
        for _ in 0..REBUILDS_MAX {
            let ledger = self.shared.ledger.get();
            let entry = ledger.partition(partition);
            let is_lost = ledger.lacks_rows(partition) && epoch <= ledger.unverifiable;
            if !entry.is_indexed() || has_passed(entry.no_new_rows(), epoch) || is_lost {
                return Ok(None);
            }
            let known = self.shared.tables.read().index.get(epoch, partition);
            let changes = match known {
                Known::Leaves(leaves) if !is_on(Mutation::RowGoesWithRecord) => {
                    return Ok(Some(leaves));
                }
                Known::Leaves(_) => u64::MAX,
                Known::No(changes) => changes,
            };
            let leaves = self.rebuilt_leaves(epoch, partition)?;
            // Only what nobody writes to is kept: see the index.
            let is_kept = !has_passed(ledger.closed, epoch) || {
                let index = &mut self.shared.tables.write().index;
                index.install(epoch, partition, changes, leaves.clone())
            };
            rebuilt = Some(leaves);
            if is_kept {
                break;
            }
        }
        Ok(rebuilt)
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
