//! Wiping partitions: removing all that is here of them, resumably.
//!
//! A replica wipes a partition when it loses it to another node, and when it finds itself behind the
//! watermark of the others: what it holds below may long have been deleted, so it must not be merged with
//! theirs (trap T11).
//!
//! 1. The intent goes into the ledger, durably. From then on nothing comes into the partition.
//! 2. What the tables hold of it is brought down: the active table is frozen, and the flusher flushes
//!    all tables that hold something of it. So no segment is left that could bring anything back.
//! 3. The flusher drops the partition's range from the engine, some keys at a time, those of several
//!    partitions as one run.
//! 4. The ledger says that it is done: rows of all segments so far are void, the watermarks are zero, and the
//!    partition is absent. Run files are shared by all partitions and are left alone: their void rows are
//!    ignored, whoever reads them.
//!
//! A crash at any point finds the intent, and the next [`Store::continue_wipe`] goes on with 2.
//!
//! Readers may see any part of the partition until it is absent: whoever serves reads asks the ledger.

use bytes::Bytes;
use mds_types::{Epoch, PartitionId};

use super::{Flusher, PartitionState, Store, StoreError};
use crate::keys::{Keyspace, engine_range};
use crate::ledger::PartitionLedger;

/// Bytes of keys that one step drops from the engine, at most; one key always.
const STEP_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Where a wipe stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WipeProgress {
    /// Nothing is to be wiped, or nothing any more.
    Done,
    /// Let the flusher work, and call again.
    WaitsForFlusher,
}

impl Store {
    /// Decides, durably, to wipe these partitions. [`Store::continue_wipe`] does it. Absent ones stay so.
    ///
    /// # Errors
    /// As [`Store::close_epochs`].
    pub fn begin_wipe(&mut self, partitions: &[PartitionId]) -> Result<(), StoreError> {
        self.change_ledger(|ledger| {
            for partition in partitions {
                if let Some(entry) = ledger.partition_mut(*partition)
                    && entry.state != PartitionState::Absent
                {
                    entry.state = PartitionState::Wiping;
                }
            }
        })
    }

    /// Goes on with the wipe that was decided, in this life or an earlier one: sees to it that nothing is left in
    /// tables, has the flusher empty the partitions in the engine, and writes down which of them are empty.
    ///
    /// # Errors
    /// [`StoreError::Full`]: try again when there is room. Else the store is or becomes poisoned.
    pub fn continue_wipe(&mut self) -> Result<WipeProgress, StoreError> {
        self.shared.check_sound()?;
        let emptied = self.shared.chores.lock().take_emptied();
        self.end_wipe(&emptied)?;
        let ledger = self.shared.ledger.get();
        let left: Vec<PartitionId> = ledger
            .partitions()
            .filter(|(_, entry)| entry.state == PartitionState::Wiping)
            .map(|(partition, _)| partition)
            .collect();
        if left.is_empty() {
            return Ok(WipeProgress::Done);
        }
        if !self.bring_down(&left)? {
            // Nothing of these partitions is in a table, and nothing comes in.
            self.shared.chores.lock().empty(left);
        }
        Ok(WipeProgress::WaitsForFlusher)
    }

    /// Nothing is left of these partitions anywhere: they are absent from now on.
    fn end_wipe(&mut self, emptied: &[PartitionId]) -> Result<(), StoreError> {
        if emptied.is_empty() {
            return Ok(());
        }
        let wiped_at_segment = self.log.id().saturating_sub(1);
        self.change_ledger(|ledger| {
            for partition in emptied {
                if let Some(entry) = ledger.partition_mut(*partition) {
                    *entry = PartitionLedger {
                        settled: Epoch(0),
                        chain: 0,
                        collected: Epoch(0),
                        wiped_at_segment,
                        state: PartitionState::Absent,
                    };
                }
            }
        })?;
        self.shared.chores.lock().are_wiped(emptied);
        let index = &mut self.shared.tables.write().index;
        for &partition in emptied {
            index.clear(partition, Epoch(u64::MAX));
        }
        Ok(())
    }

    /// Whether a table still holds something of these partitions, and has to be flushed.
    fn bring_down(&mut self, partitions: &[PartitionId]) -> Result<bool, StoreError> {
        let holds_any = |table: &crate::table::Table| partitions.iter().any(|p| table.holds(*p));
        let (in_active, in_frozen) = {
            let tables = self.shared.tables.read();
            let in_frozen = tables.frozen.iter().any(|table| holds_any(table));
            (holds_any(&tables.active), in_frozen)
        };
        if in_active {
            match self.freeze() {
                Ok(_) | Err(StoreError::Behind { .. }) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(in_frozen)
    }
}

impl Flusher {
    /// Empties partitions in the engine: a bounded number of keys of those that hold something, as one run, and
    /// any number of empty ones. False if none is to be emptied.
    ///
    /// # Errors
    /// [`StoreError::Full`]: try again when there is room. Else the store is poisoned: an engine that failed to drop
    /// a range is in an unknown state.
    pub(super) fn empty_some(&self) -> Result<bool, StoreError> {
        let shared = &*self.shared;
        // A run of records and a drop must not cross.
        let _flushing = shared.flushing.lock();
        shared.check_sound()?;
        let wanted = shared.chores.lock().to_empty().to_vec();
        if wanted.is_empty() {
            return Ok(false);
        }
        let ledger = shared.ledger.get();
        let is_wiping =
            |partition: &PartitionId| ledger.partition(*partition).state == PartitionState::Wiping;
        let wanted: Vec<PartitionId> = wanted.into_iter().filter(is_wiping).collect();
        let (mut keys_left, mut bytes_left) = (shared.options.wipe_keys_max, STEP_BYTES_MAX);
        let (mut ranges, mut emptied) = (Vec::new(), Vec::new());
        for &partition in &wanted {
            let (from, to) = engine_range(partition, Keyspace::Eventual, None);
            let (mut is_any, mut end) = (false, None);
            shared.engine.visit(&from, &to, &mut |key, _| {
                if keys_left == 0 || bytes_left == 0 {
                    end = Some(Bytes::copy_from_slice(key));
                    return false;
                }
                is_any = true;
                keys_left -= 1;
                bytes_left = bytes_left.saturating_sub(key.len());
                true
            })?;
            let is_whole = end.is_none();
            if is_any {
                ranges.push((from, end.unwrap_or(to)));
            }
            if !is_whole {
                break;
            }
            emptied.push(partition);
        }
        if !ranges.is_empty() {
            let dropped = shared.engine.drop_ranges(&ranges);
            dropped.map_err(|error| shared.poison_unless_full(StoreError::from(error)))?;
            shared.cache.forget_partitions(&wanted);
        }
        shared.chores.lock().are_empty(emptied);
        Ok(true)
    }
}
