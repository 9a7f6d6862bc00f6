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
//!
//! **A full disk** stops a flush where it is, with [`StoreError::Full`]; the next attempt goes on
//! there. It looks for room first: it writes as many bytes as the table holds to a file of no meaning
//! and removes it. While those do not fit the engine is left alone, because an engine that ran out of
//! room is opened again by the next run, and makes readers wait meanwhile. Nor is it handed a run
//! twice because the *run files* found no room: what it has confirmed is remembered.

use std::collections::BTreeMap;
use std::sync::Arc;

use mds_types::mutation::{Mutation, is_on};
use mds_types::{Epoch, Kind, PartitionId};

use super::StoreError;
use super::collect::Search;
use super::shared::{Counter, Shared};
use crate::epoch_index::Leaves;
use crate::keys::{Keyspace, engine_key};
use crate::ledger::has_passed;
use crate::log::LOG_DIR;
use crate::pace::{Pace, Unpaced};
use crate::row::sort_rows;
use crate::runs::{IndexRow, RunLimits};
use crate::table::Table;

/// More room than a table's bytes that a flush wants to see after it found the disk full, in bytes: for
/// indexes, run files and a little compaction.
const ROOM_SPARE_BYTES: usize = 1024 * 1024;

/// What is written to see whether there is room. Where the log's start-up would clear it away.
const ROOM_PROBE: &str = "log/room.tmp";

/// Bytes that a probe writes at a time.
const ROOM_PROBE_WRITE_BYTES: usize = 64 * 1024;

/// Rows that are flushed between two looks at whether to give way: some tens of microseconds.
const ROWS_A_STEP: usize = 64;

/// What one attempt to flush leaves to the next.
#[derive(Default)]
pub(super) struct Flushing {
    /// The segment that the engine has confirmed, though its run files are not all written.
    ingested: Option<u64>,
    /// The last attempt found the disk full.
    was_full: bool,
    /// Where the search for dead records stands.
    pub(super) search: Search,
}

/// Flushes frozen tables, and does the writer's [chores](super::chores) when none waits: on a thread of its own, or in
/// turns.
#[derive(Clone)]
pub struct Flusher {
    pub(super) shared: Arc<Shared>,
    pace: Arc<dyn Pace>,
}

impl Flusher {
    pub(super) fn new(shared: Arc<Shared>) -> Flusher {
        Flusher {
            shared,
            pace: Arc::new(Unpaced),
        }
    }

    /// Has it pause between small pieces of its work, as long as nobody waits for that.
    pub fn set_pace(&mut self, pace: Arc<dyn Pace>) {
        self.pace = pace;
    }

    /// A small piece of a flush is done. When as many tables wait as may, and the segment fills up, the writer will soon wait too:
    /// then there is no time for courtesy.
    pub(super) fn step(&self) {
        let has_time = {
            let tables = self.shared.tables.read();
            let options = &self.shared.options;
            tables.frozen.len() < options.frozen_tables_max
                || tables.active.bytes() < options.segment_bytes_max / 2
        };
        if has_time {
            self.pace.step();
        }
    }

    /// Flushes the oldest frozen table, or does a bounded part of a chore. False if there is nothing to do now: no
    /// table waits, or the engine is behind with its own work (then ask again in a while), and no chore is due.
    ///
    /// # Errors
    /// [`StoreError::Full`]: try again in a while; nothing is lost, and the attempt looks for room by
    /// itself. Else the store is poisoned.
    pub fn work(&self) -> Result<bool, StoreError> {
        let wants_engine =
            self.shared.wants_flush() || !self.shared.chores.lock().to_empty().is_empty();
        if wants_engine && self.shared.engine.is_behind() {
            return Ok(self.search_some());
        }
        Ok(self.flush_oldest()? || self.empty_some()? || self.search_some())
    }

    /// Whether so many bytes, and a few more, can be written now. Says no when that cannot be found out.
    pub fn has_room(&self, bytes: usize) -> bool {
        let disk = &*self.shared.disk;
        let wanted = bytes.saturating_add(ROOM_SPARE_BYTES);
        let probe = || {
            let mut file = disk.create(ROOM_PROBE)?;
            let zeros = [0; ROOM_PROBE_WRITE_BYTES];
            let mut left = wanted;
            while left > 0 {
                let count = left.min(zeros.len());
                file.append(&zeros[..count])?;
                left -= count;
            }
            Ok::<(), std::io::Error>(())
        };
        // An earlier probe that was cut short may be in the way; usually there is none.
        let _ = disk.remove(ROOM_PROBE);
        let probed = probe();
        let _ = disk.remove(ROOM_PROBE);
        probed.is_ok()
    }

    /// Flushes the oldest frozen table, however busy the engine is.
    pub(super) fn flush_oldest(&self) -> Result<bool, StoreError> {
        let mut flushing = self.shared.flushing.lock();
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
        if flushing.was_full && !self.has_room(table.bytes()) {
            return Err(StoreError::Full);
        }
        let flushed = self.flush(&table, &mut flushing);
        flushing.was_full = matches!(flushed, Err(StoreError::Full));
        flushed.map_err(|error| self.shared.poison_unless_full(error))?;
        self.shared.add(Counter::Flushes, 1);
        self.enforce_run_limits()?;
        Ok(true)
    }

    fn flush(&self, table: &Arc<Table>, flushing: &mut Flushing) -> Result<(), StoreError> {
        let shared = &*self.shared;
        self.pace.begin();
        if is_on(Mutation::SegmentDroppedFirst) {
            self.remove_segment(table)?;
        }
        if flushing.ingested != Some(table.segment()) {
            self.ingest(table)?;
            flushing.ingested = Some(table.segment());
        }
        let rows = self.rows(table)?;
        let hashes = self.hashes(&rows);
        shared.runs.write_segment(table.segment(), rows)?;

        // The engine shows the records: the table may go, and leaves them to the cache.
        shared.cache.take_in(table, |row| self.step_at(row));
        {
            let mut tables = shared.tables.write();
            for ((epoch, partition), hashes) in &hashes {
                tables.index.add_flushed(*epoch, *partition, hashes);
            }
            match is_on(Mutation::FlushNewestFirst) {
                true => tables.frozen.pop_back(),
                false => tables.frozen.pop_front(),
            };
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
        let mut run = table.sorted().enumerate().map(|(at, entry)| {
            let key = engine_key(entry.partition, Keyspace::Eventual, entry.key());
            self.step_at(at);
            let is_dropped = is_on(Mutation::TombstoneDropped)
                && entry
                    .record()
                    .is_ok_and(|record| record.kind() == Kind::Tombstone);
            (
                key,
                (!entry.gone && !is_dropped).then(|| entry.encoded.clone()),
            )
        });
        Ok(self.shared.engine.ingest(&mut run)?)
    }

    /// [`Flusher::step`] for every so many rows.
    fn step_at(&self, row: usize) {
        if row.is_multiple_of(ROWS_A_STEP) {
            self.step();
        }
    }

    /// The rows of a table that anybody still needs, by epoch: what its run files will hold. Of each key
    /// the greatest, in order. There is one epoch at least, as the segment's commit point.
    fn rows(&self, table: &Table) -> Result<BTreeMap<Epoch, Vec<IndexRow>>, StoreError> {
        let ledger = self.shared.ledger.get();
        let bucket_count = self.shared.options.bucket_count;
        let mut rows: BTreeMap<Epoch, Vec<IndexRow>> = BTreeMap::new();
        for partition in table.partitions() {
            let entry = ledger.partition(partition);
            if !entry.is_indexed() {
                continue;
            }
            let mut of_partition: BTreeMap<Epoch, Vec<IndexRow>> = BTreeMap::new();
            for (at, written) in table.written(None, Some(partition)).enumerate() {
                self.step_at(at);
                if !has_passed(entry.no_rows(), written.epoch) {
                    let row = written.row(bucket_count);
                    let row = row.map_err(|error| StoreError::record("table", 0, error))?;
                    of_partition.entry(written.epoch).or_default().push(row);
                }
            }
            for (epoch, mut of_epoch) in of_partition {
                sort_rows(&mut of_epoch);
                rows.entry(epoch).or_default().append(&mut of_epoch);
            }
        }
        if rows.is_empty() {
            rows.insert(Epoch(0), Vec::new());
        }
        Ok(rows)
    }

    /// The hashes of these rows, as far as they count still.
    fn hashes(
        &self,
        rows: &BTreeMap<Epoch, Vec<IndexRow>>,
    ) -> BTreeMap<(Epoch, PartitionId), Leaves> {
        let ledger = self.shared.ledger.get();
        let options = &self.shared.options;
        let mut hashes = BTreeMap::new();
        for (&epoch, rows) in rows {
            for rows in rows.chunk_by(|a, b| a.partition == b.partition) {
                let partition = rows[0].partition;
                if !has_passed(ledger.partition(partition).no_new_rows(), epoch) {
                    self.step();
                    let leaves = Leaves::of(rows, options.bucket_count, options.row_seed);
                    hashes.insert((epoch, partition), leaves);
                }
            }
        }
        hashes
    }

    fn enforce_run_limits(&self) -> Result<(), StoreError> {
        let limits = RunLimits {
            bytes_max: self.shared.options.run_bytes_max,
            files_max: self.shared.options.run_files_max,
        };
        let closed = self.shared.ledger.get().closed;
        while let Some(epoch) = self.shared.runs.excess(limits, closed) {
            match self.drop_unverified(epoch) {
                Ok(()) => {}
                // The flush itself is done. What is too much goes when there is room to say so.
                Err(StoreError::Full) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives up an epoch's index. Partitions that have not settled it are told so first, durably.
    fn drop_unverified(&self, epoch: Epoch) -> Result<(), StoreError> {
        let shared = &*self.shared;
        let settled = shared.ledger.get().settled_everywhere();
        let is_needed = settled.is_some_and(|settled| settled < epoch);
        if is_needed {
            shared.change_ledger(|ledger| {
                ledger.unverifiable = ledger.unverifiable.max(epoch);
            })?;
            shared.add(Counter::EpochsDropped, 1);
            tracing::warn!(
                epoch = epoch.0,
                "there is too much epoch index, and the oldest epoch loses its rows unverified:                  partitions that have not settled it need a full comparison. Find out what blocks their                  verification, or allow more room for the index"
            );
        }
        shared.tables.write().index.forget(epoch);
        let removed = shared.runs.remove(|info| info.epoch == epoch);
        removed.map_err(|error| shared.poison(error.to_string()))?;
        Ok(())
    }
}
