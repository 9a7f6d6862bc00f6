//! The scrub: a slow walk over all that a replica holds of a partition, to find what nobody asks for.
//!
//! Verification compares what the index says; rot below it goes unnoticed until a key is read, and a lost
//! record of a settled epoch for ever, because its rows are gone. The scrub reads everything, in bounded
//! steps, and
//!
//! 1. meets every checksum of the engine's records and of the run files;
//! 2. sums up the partition's settled records, bucket by bucket ([`SettledLeaves`]), for replicas with
//!    equal watermarks to compare. Where their sums differ they compare the records themselves
//!    ([`StoreReader::settled_rows`]). A record that was overwritten in a later epoch on one replica only,
//!    *so far*, is missing from its sum: differing sums are a reason to look, not a proof of loss. What
//!    is dead is left out, as replicas collect it at different times;
//! 3. lists dead records for [`Store::collect_dead`](super::Store::collect_dead): expired values, and what a
//!    stream brought along;
//! 4. compares the bucket hashes in memory with those that the rows give;
//! 5. looks for the record of every row of an unsettled epoch: the current record of its key must be that
//!    version or a newer one. One that is not was lost under the hood.
//!
//! It changes nothing and repairs nothing: it says what it found. It runs on any thread, beside writes;
//! what they change meanwhile is not mistaken for damage.

use std::sync::Arc;

use bytes::Bytes;
use mds_types::{Epoch, Kind, PartitionId, Record};

use super::{Dead, PartitionState, StoreError, StoreReader};
use crate::engine::EngineError;
use crate::epoch_index::Leaves;
use crate::keys::bucket_of;
use crate::ledger::has_passed;
use crate::row::{IndexRow, RowRange};

/// Bytes of records that are read at a time.
const STEP_BYTES: usize = 4 * 1024 * 1024;

/// What a scrub goes by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScrubOptions {
    /// Values that had expired at this time are dead: milliseconds since 1970, the time of day less the bound
    /// on clocks' differences.
    pub dead_by_ms: u64,
    /// Values that expire at or before this time are left out of [`SettledLeaves`]. All replicas have to use
    /// the same, and it should lie after the time at which they compare, or one has collected what
    /// another still counts.
    pub left_out_ms: u64,
}

/// The settled records of a partition, summed up like a Merkle tree's leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SettledLeaves {
    /// The watermark: records of epochs up to and including this one.
    pub settled: Epoch,
    /// The partition's chain at that watermark.
    pub chain: u128,
    /// Values that expire at or before this time were left out, milliseconds since 1970.
    pub left_out_ms: u64,
    /// Of the live records, as if they were rows of one epoch.
    pub leaves: Leaves,
}

/// Something that a scrub found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ScrubFinding {
    /// A dead record of a settled epoch, which may be collected.
    Dead(Dead),
    /// The rows of an epoch do not give the hashes in memory. A row was lost or damaged, or this is a bug.
    HashesDiffer {
        /// The epoch.
        epoch: Epoch,
        /// The buckets that differ.
        buckets: Vec<u16>,
    },
    /// The index has a row whose record, or anything newer, is not there: it was lost.
    Lost {
        /// The row's epoch.
        epoch: Epoch,
        /// The row.
        row: IndexRow,
    },
    /// Stored bytes are damaged; the walk ends here.
    Damaged {
        /// Which, and how.
        what: String,
    },
}

/// What a step found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ScrubStep {
    /// In the order of the walk.
    pub findings: Vec<ScrubFinding>,
    /// Records and rows that were looked at.
    pub looked_at: u64,
    /// Whether the walk is over.
    pub is_done: bool,
}

/// A walk over one partition.
pub struct Scrub {
    reader: StoreReader,
    partition: PartitionId,
    options: ScrubOptions,
    stage: Stage,
}

enum Stage {
    Records {
        after: Option<Bytes>,
        sums: SettledLeaves,
    },
    Rows {
        epoch: Epoch,
        /// The next bucket; before the first the hashes are compared.
        bucket: Option<u16>,
    },
    Done,
}

impl Scrub {
    /// A walk over a partition, from its beginning.
    pub fn new(reader: StoreReader, partition: PartitionId, options: ScrubOptions) -> Scrub {
        let ledger = reader.ledger();
        let entry = ledger.partition(partition);
        let stage = match entry.state {
            PartitionState::Held => Stage::Records {
                after: None,
                sums: SettledLeaves {
                    settled: entry.settled,
                    chain: entry.chain,
                    left_out_ms: options.left_out_ms,
                    leaves: Leaves::empty(reader.shared.options.bucket_count),
                },
            },
            // Not here, or on its way: what is missing is not lost.
            _ => Stage::Done,
        };
        Scrub {
            reader,
            partition,
            options,
            stage,
        }
    }

    /// Looks at about `looks_max` records or rows, from where the last step ended.
    ///
    /// # Errors
    /// If the engine or the disk fails, and if the store is poisoned; the step may be tried again. Damage is
    /// a finding.
    pub fn step(&mut self, looks_max: usize) -> Result<ScrubStep, StoreError> {
        let mut step = ScrubStep::default();
        let state = &self.reader.ledger().partition(self.partition).state.clone();
        if *state != PartitionState::Held {
            self.stage = Stage::Done;
        }
        while step.looked_at < looks_max.max(1) as u64 && !matches!(self.stage, Stage::Done) {
            let left = looks_max - step.looked_at as usize;
            match self.advance(left.max(1), &mut step) {
                Ok(()) => {}
                Err(StoreError::Engine(EngineError::Corrupt(what))) => {
                    step.findings.push(ScrubFinding::Damaged { what });
                    self.stage = Stage::Done;
                }
                Err(error @ StoreError::Corrupt { .. }) => {
                    let what = error.to_string();
                    step.findings.push(ScrubFinding::Damaged { what });
                    self.stage = Stage::Done;
                }
                Err(error) => return Err(error),
            }
        }
        step.is_done = matches!(self.stage, Stage::Done);
        Ok(step)
    }

    fn advance(&mut self, looks_max: usize, step: &mut ScrubStep) -> Result<(), StoreError> {
        match &mut self.stage {
            Stage::Records { .. } => self.look_at_records(looks_max, step),
            Stage::Rows {
                epoch,
                bucket: None,
            } => {
                let epoch = *epoch;
                self.compare_hashes(epoch, step)
            }
            Stage::Rows {
                epoch,
                bucket: Some(bucket),
            } => {
                let (epoch, bucket) = (*epoch, *bucket);
                self.look_for_records(epoch, bucket, step)
            }
            Stage::Done => Ok(()),
        }
    }

    fn look_at_records(
        &mut self,
        looks_max: usize,
        step: &mut ScrubStep,
    ) -> Result<(), StoreError> {
        let Stage::Records { after, sums } = &mut self.stage else {
            return Ok(());
        };
        let reader = &self.reader;
        let (records, more) =
            reader.scan_page(self.partition, after.as_deref(), looks_max, STEP_BYTES)?;
        step.looked_at += records.len().max(1) as u64;
        for record in &records {
            if !has_passed(sums.settled, record.epoch) {
                continue;
            }
            if is_dead(record, self.options.dead_by_ms) {
                step.findings.push(ScrubFinding::Dead(Dead {
                    key: record.key.clone(),
                    version: record.version,
                }));
            }
            if !is_dead(record, self.options.left_out_ms) {
                let row = reader.settled_row(self.partition, record);
                let hash = row.hash(reader.shared.options.row_seed);
                sums.leaves.add(row.bucket, hash);
            }
        }
        match records.last() {
            Some(last) if more => *after = Some(last.key.clone()),
            _ => {
                let sums = Arc::new(sums.clone());
                reader.shared.scrubbed.lock().insert(self.partition, sums);
                self.stage = self.rows_behind(Epoch(0));
            }
        }
        Ok(())
    }

    /// Of the epochs behind this one the next that has rows.
    fn rows_behind(&self, epoch: Epoch) -> Stage {
        let ledger = self.reader.ledger();
        let behind = ledger.partition(self.partition).settled.max(epoch);
        let next = self.reader.shared.tables.read().index.next_behind(behind);
        next.map_or(Stage::Done, |epoch| Stage::Rows {
            epoch,
            bucket: None,
        })
    }

    fn compare_hashes(&mut self, epoch: Epoch, step: &mut ScrubStep) -> Result<(), StoreError> {
        self.stage = Stage::Rows {
            epoch,
            bucket: Some(0),
        };
        let known = || self.reader.known_leaves(epoch, self.partition);
        let Some(before) = known()? else {
            return Ok(());
        };
        let rebuilt = self.reader.rebuilt_leaves(epoch, self.partition)?;
        step.looked_at += rebuilt.row_count();
        // What was merged meanwhile explains a difference.
        if rebuilt != before && known()?.as_ref() == Some(&before) && !self.is_settled(epoch) {
            let differs = |bucket: &usize| {
                before.hashes[*bucket] != rebuilt.hashes[*bucket]
                    || before.rows[*bucket] != rebuilt.rows[*bucket]
            };
            let buckets = (0..before.hashes.len()).filter(differs);
            step.findings.push(ScrubFinding::HashesDiffer {
                epoch,
                buckets: buckets.map(|bucket| bucket as u16).collect(),
            });
        }
        Ok(())
    }

    fn look_for_records(
        &mut self,
        epoch: Epoch,
        bucket: u16,
        step: &mut ScrubStep,
    ) -> Result<(), StoreError> {
        let range = RowRange::Bucket(self.partition, bucket);
        let rows = self.reader.index_rows(epoch, range)?;
        step.looked_at += rows.len().max(1) as u64;
        for row in rows {
            let current = self.reader.get(&row.key)?;
            let is_there = current.is_some_and(|current| current.version >= row.version);
            if !is_there && !self.is_settled(epoch) {
                step.findings.push(ScrubFinding::Lost { epoch, row });
            }
        }
        self.stage = match bucket + 1 < self.reader.shared.options.bucket_count {
            true => Stage::Rows {
                epoch,
                bucket: Some(bucket + 1),
            },
            false => self.rows_behind(epoch),
        };
        Ok(())
    }

    /// Whether the epoch has been settled meanwhile: then its rows, and its dead records, may be gone.
    fn is_settled(&self, epoch: Epoch) -> bool {
        let ledger = self.reader.ledger();
        let entry = ledger.partition(self.partition);
        entry.state != PartitionState::Held || has_passed(entry.settled, epoch)
    }
}

impl StoreReader {
    /// What the last scrub of a partition found its settled records to sum up to, in this life of the store.
    pub fn settled_leaves(&self, partition: PartitionId) -> Option<Arc<SettledLeaves>> {
        self.shared.scrubbed.lock().get(&partition).cloned()
    }

    /// The live settled records of one bucket of a partition, as rows, in key order: those among the next
    /// `looks_max` records behind `after`; and the key to go on behind, unless that was the end. `settled` and
    /// `left_out_ms` are as in [`SettledLeaves`].
    ///
    /// # Errors
    /// As [`StoreReader::get`].
    pub fn settled_rows(
        &self,
        sums: &SettledLeaves,
        (partition, bucket): (PartitionId, u16),
        after: Option<&[u8]>,
        looks_max: usize,
    ) -> Result<(Vec<IndexRow>, Option<Bytes>), StoreError> {
        let (records, more) = self.scan_page(partition, after, looks_max, STEP_BYTES)?;
        let bucket_count = self.shared.options.bucket_count;
        let is_asked_for = |record: &&Record| {
            has_passed(sums.settled, record.epoch)
                && !is_dead(record, sums.left_out_ms)
                && bucket_of(&record.key, bucket_count) == bucket
        };
        let rows = records.iter().filter(is_asked_for);
        let rows = rows.map(|record| self.settled_row(partition, record));
        let end = records.last().filter(|_| more);
        Ok((rows.collect(), end.map(|last| last.key.clone())))
    }

    fn settled_row(&self, partition: PartitionId, record: &Record) -> IndexRow {
        IndexRow::of(partition, self.shared.options.bucket_count, record)
    }
}

fn is_dead(record: &Record, by_ms: u64) -> bool {
    record.kind() == Kind::Tombstone || record.expires_at_ms.is_some_and(|at_ms| at_ms <= by_ms)
}
