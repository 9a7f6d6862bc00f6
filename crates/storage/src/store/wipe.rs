//! Wiping partitions: removing all that is here of them, resumably.
//!
//! A replica wipes a partition when it loses it to another node, and when it finds itself behind the
//! watermark of the others: what it holds below may long have been deleted, so it must not be merged with
//! theirs (trap T11).
//!
//! 1. The intent goes into the ledger, durably. From then on nothing comes into the partition.
//! 2. What the tables hold of it is brought down: the active table is frozen, and the flusher flushes
//!    all tables that hold something of it. So no segment is left that could bring anything back.
//! 3. The engine drops the partition's range.
//! 4. The ledger says that it is done: rows of all segments so far are void, the watermarks are zero, and the
//!    partition is absent. Run files are shared by all partitions and are left alone: their void rows are
//!    ignored, whoever reads them.
//!
//! A crash at any point finds the intent, and the next [`Store::continue_wipe`] goes on with 2.
//!
//! Readers may see any part of the partition until it is absent: whoever serves reads asks the ledger.

use bytes::Bytes;
use mds_types::{Epoch, PartitionId};

use super::{PartitionState, Store, StoreError};
use crate::keys::{Keyspace, engine_range};
use crate::ledger::PartitionLedger;

/// Where a wipe stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WipeProgress {
    /// Nothing is to be wiped, or nothing any more.
    Done,
    /// Some partitions are done, others are left: call again.
    More,
    /// A table has to be flushed first: let the flusher work, and call again.
    WaitsForFlush,
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

    /// Goes on with the wipe that was decided, in this life or an earlier one: a bounded number of keys of one
    /// partition that holds something, and any number of empty ones. Waits for a flush that is going on.
    ///
    /// # Errors
    /// [`StoreError::Full`]: try again when there is room. Else the store is or becomes poisoned: an engine
    /// that failed to drop a range is in an unknown state.
    pub fn continue_wipe(&mut self) -> Result<WipeProgress, StoreError> {
        self.shared.check_sound()?;
        let ledger = self.shared.ledger.get();
        let wiping: Vec<PartitionId> = ledger
            .partitions()
            .filter(|(_, entry)| entry.state == PartitionState::Wiping)
            .map(|(partition, _)| partition)
            .collect();
        if wiping.is_empty() {
            return Ok(WipeProgress::Done);
        }
        if self.bring_down(&wiping)? {
            return Ok(WipeProgress::WaitsForFlush);
        }
        // Nothing of these partitions is in a table, and nothing comes in.
        let mut done = Vec::new();
        for &partition in &wiping {
            let dropped = self.drop_from_engine(partition)?;
            if dropped == Dropped::Part {
                break;
            }
            done.push(partition);
            if dropped == Dropped::Rest {
                break;
            }
        }
        if done.is_empty() {
            return Ok(WipeProgress::More);
        }
        let wiped_at_segment = self.log.id().saturating_sub(1);
        self.change_ledger(|ledger| {
            for partition in &done {
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
        let index = &mut self.shared.tables.write().index;
        for &partition in &done {
            index.clear(partition, Epoch(u64::MAX));
            self.collecting.remove(&partition);
            self.held_back.remove(&partition);
        }
        Ok(match done.len() < wiping.len() {
            true => WipeProgress::More,
            false => WipeProgress::Done,
        })
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
        if !in_frozen {
            // What was flushed last is still shown, as a cache.
            self.shared.tables.write().flushed = None;
        }
        Ok(in_frozen)
    }

    /// Drops a partition from the engine, or its first keys: dropping many keeps the writer for long, and writes
    /// of all partitions wait meanwhile.
    fn drop_from_engine(&self, partition: PartitionId) -> Result<Dropped, StoreError> {
        let engine = &self.shared.engine;
        let (from, to) = engine_range(partition, Keyspace::Eventual, None);
        let keys_max = self.shared.options.wipe_keys_max;
        let (mut seen, mut end) = (0, None);
        engine.visit(&from, &to, &mut |key, _| {
            seen += 1;
            if seen > keys_max {
                end = Some(Bytes::copy_from_slice(key));
            }
            end.is_none()
        })?;
        if seen == 0 {
            return Ok(Dropped::Nothing);
        }
        // The flusher hands the engine its runs, and a run and a drop must not cross.
        let _flushing = self.shared.flushing.lock();
        let dropped = engine.drop_range(&from, end.as_ref().unwrap_or(&to));
        dropped.map_err(|error| {
            let error = StoreError::from(error);
            self.shared.poison_unless_full(error)
        })?;
        Ok(match end {
            Some(_) => Dropped::Part,
            None => Dropped::Rest,
        })
    }
}

/// What was dropped of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Dropped {
    /// It was empty.
    Nothing,
    /// Its first keys; there are more.
    Part,
    /// All that was left.
    Rest,
}
