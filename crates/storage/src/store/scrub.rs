//! The scrub: a slow walk over all that a replica holds of a partition, to find what nobody asks for.
//!
//! Verification compares what the index says; rot below it goes unnoticed until a key is read, and a lost
//! record of a settled epoch for ever, because its rows are gone. The scrub reads everything, in bounded
//! steps, and
//!
//! 1. meets every checksum of the engine's records and of the run files;
//! 2. sums up the settled records, page by page ([`SettledRange`]), for replicas of the same past to compare: see
//!    below. What is dead is left out, as replicas collect it at different times;
//! 3. lists dead records for [`Store::collect_dead`](super::Store::collect_dead): expired values, and what a
//!    stream brought along;
//! 4. compares the bucket hashes in memory with those that the rows give;
//! 5. looks for the record of every row of an unsettled epoch: the current record of its key must be that
//!    version or a newer one. One that is not was lost under the hood.
//!
//! It changes nothing and repairs nothing: it says what it found. A [`Scrub`] is a place in the walk, a plain
//! value; it may be taken up on any thread, beside writes, and what they change meanwhile is not mistaken for
//! damage. Whoever loses it begins anew.
//!
//! # What a replica may take back below its watermark
//!
//! Nothing at or below the watermark `G` is merged, because what is missing there was deleted or overwritten
//! (traps T9-T12). A record that the disk lost is missing there too. How can the two be told apart?
//!
//! Write `M(k)` for the greatest version of key `k` in all epochs up to `G`. Replicas with the same `(G, chain)` had the
//! same sets in all these epochs, so they agree on `M(k)`, its kind and its digest.
//!
//! **Invariant.** At a replica that has settled `G` and lost nothing, the current record of `k` is at least `M(k)`;
//! or `M(k)` was dead, and what is current is absent, or of a later epoch and greater. *Proof.* Each version of the
//! sets was merged, or had lost to a greater one that was there: superseded counts as present. Only collection removes, and what it
//! removes last, of an epoch up to `G`, was current then, thus at least all that was merged until then; all that is merged
//! afterwards is of later epochs (the door refuses the others) and greater (the floor). If that left `k` absent, the
//! removed version is `M(k)`. A stream copies a source for which all of this holds. ∎
//!
//! **Lemma.** Let Y, with the past `(G, chain)`, hold `r` as the current record of `k`, of an epoch up to `G`, alive. Let X have exactly the
//! past `(G, chain)` now, and hold nothing of `k`, or something smaller. If Y lost nothing, X has lost `r`, and may merge it. *Proof.* At Y,
//! `r` is at least `M(k)` and of the sets, so it is `M(k)`. It is alive, so X cannot have collected it; by the invariant X
//! lacks it by damage. Nothing newer can be harmed: were there a later version of `k` at X, of an epoch
//! above `G`, it could not have been collected, because X has settled no more than `G`; so it would be current, and win. ∎
//!
//! A *tombstone* `r` may likewise be merged over something smaller, which X can only hold by damage; where X holds
//! nothing, it would say nothing new, and is refused.
//!
//! **If Y is the damaged one.** An engine that loses its newest file may show what was overwritten before: an old value
//! in the place of its tombstone. Then X has rightly collected what Y shows. So one witness is not enough: a version is
//! taken only if a *majority* of the partition's replicas holds exactly it, all with X's own past. One damaged
//! replica then resurrects nothing and deletes nothing. With two replicas there is no majority, and such differences are
//! only reported.
//!
//! **The other way round**, if this replica alone holds something, the same majority says that it is
//! damaged. It is reported and *not* deleted: to be wrong about it would cost the only copy.
//!
//! The equality of pasts is checked where it counts, by the one writer at the moment of the merge
//! ([`Purpose::Rebuild`](super::Purpose::Rebuild)); that Y is alone or not is for the node to find out.

use bytes::Bytes;
use mds_types::{Epoch, Kind, PartitionId, Record};

use super::{Dead, PartitionState, Store, StoreError, StoreReader};
use crate::engine::EngineError;
use crate::epoch_index::{IndexChange, Leaves};
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
    /// Values that expire at or before this time are left out of [`SettledRange`]. All replicas have to use
    /// the same, and it should lie well after the time at which they compare, or one has collected what
    /// another still counts.
    pub left_out_ms: u64,
}

/// Which of the settled records of a partition, as a replica of a certain past has them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeOf {
    /// The watermark: records of epochs up to and including this one.
    pub settled: Epoch,
    /// The partition's chain at that watermark. Who has another past has nothing to say.
    pub chain: u128,
    /// Values that expire at or before this time are left out, milliseconds since 1970; so are tombstones.
    pub left_out_ms: u64,
    /// Only keys behind this one.
    pub after: Option<Bytes>,
    /// Only keys up to and including this one.
    pub up_to: Option<Bytes>,
}

/// The settled records of a range, summed up like a Merkle tree's leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SettledRange {
    /// Which records.
    pub of: RangeOf,
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
    /// The settled records that were looked at; a step is over with a page of them. None below the first
    /// watermark.
    pub range: Option<SettledRange>,
    /// Whether the walk is over.
    pub is_done: bool,
}

/// A walk over one partition, and where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scrub {
    partition: PartitionId,
    options: ScrubOptions,
    stage: Stage,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Stage {
    Records {
        after: Option<Bytes>,
    },
    Rows {
        epoch: Epoch,
        /// The next bucket, and how many are read together; before the first the hashes are compared.
        next: Option<(u16, u16)>,
    },
    Done,
}

impl Scrub {
    /// A walk over a partition, from its beginning.
    pub fn new(partition: PartitionId, options: ScrubOptions) -> Scrub {
        Scrub {
            partition,
            options,
            stage: Stage::Records { after: None },
        }
    }

    /// The partition.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Looks at about `looks_max` records or rows, from where the last step ended; of an epoch whose hashes are
    /// compared at all rows.
    ///
    /// # Errors
    /// If the engine or the disk fails, and if the store is poisoned; the step may be tried again. Damage is
    /// a finding.
    pub fn step(
        &mut self,
        reader: &StoreReader,
        looks_max: usize,
    ) -> Result<ScrubStep, StoreError> {
        let mut step = ScrubStep::default();
        // What is not here, or on its way, is not lost.
        if reader.ledger().partition(self.partition).state != PartitionState::Held {
            self.stage = Stage::Done;
        }
        let looks_max = looks_max.max(1);
        while step.looked_at < looks_max as u64 && step.range.is_none() && !self.is_done() {
            let left = looks_max - step.looked_at as usize;
            match self.advance(reader, left, &mut step) {
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
        step.is_done = self.is_done();
        Ok(step)
    }

    fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    fn advance(
        &mut self,
        reader: &StoreReader,
        looks_max: usize,
        step: &mut ScrubStep,
    ) -> Result<(), StoreError> {
        match &self.stage {
            Stage::Records { after } => {
                let after = after.clone();
                self.look_at_records(reader, after, looks_max, step)
            }
            Stage::Rows { epoch, next: None } => {
                self.compare_hashes(reader, *epoch, looks_max, step)
            }
            Stage::Rows {
                epoch,
                next: Some((bucket, count)),
            } => self.look_for_records(reader, *epoch, (*bucket, *count), step),
            Stage::Done => Ok(()),
        }
    }

    fn look_at_records(
        &mut self,
        reader: &StoreReader,
        after: Option<Bytes>,
        looks_max: usize,
        step: &mut ScrubStep,
    ) -> Result<(), StoreError> {
        // Before the records: what they lack has not been settled then.
        let entry = reader.ledger().partition(self.partition).clone();
        let (records, more) =
            reader.scan_page(self.partition, after.as_deref(), looks_max, STEP_BYTES)?;
        step.looked_at += records.len().max(1) as u64;
        let last = records.last().filter(|_| more);
        let last = last.map(|last| Bytes::copy_from_slice(&last.key));
        let of = RangeOf {
            settled: entry.settled,
            chain: entry.chain,
            left_out_ms: self.options.left_out_ms,
            after,
            up_to: last.clone(),
        };
        let mut leaves = Leaves::empty(reader.shared.options.bucket_count);
        for record in &records {
            if !has_passed(of.settled, record.epoch) {
                continue;
            }
            if is_dead(record, self.options.dead_by_ms) {
                step.findings.push(ScrubFinding::Dead(Dead {
                    key: Bytes::copy_from_slice(&record.key),
                    version: record.version,
                }));
            }
            if of.counts(record) {
                let row = reader.settled_row(self.partition, record);
                leaves.add(row.bucket, row.hash(reader.shared.options.row_seed));
            }
        }
        self.stage = match last {
            Some(_) => Stage::Records { after: last },
            None => rows_behind(reader, self.partition, Epoch(0)),
        };
        if of.settled > Epoch(0) {
            step.range = Some(SettledRange { of, leaves });
        }
        Ok(())
    }

    fn compare_hashes(
        &mut self,
        reader: &StoreReader,
        epoch: Epoch,
        looks_max: usize,
        step: &mut ScrubStep,
    ) -> Result<(), StoreError> {
        let from_first = |together| Stage::Rows {
            epoch,
            next: Some((0, together)),
        };
        step.looked_at += 1;
        let known = || reader.known_leaves(epoch, self.partition);
        let Some(before) = known()? else {
            self.stage = from_first(1);
            return Ok(());
        };
        let rebuilt = reader.rebuilt_leaves(epoch, self.partition)?;
        step.looked_at += rebuilt.row_count();
        // What was merged meanwhile explains a difference.
        if rebuilt != before
            && known()?.as_ref() == Some(&before)
            && !is_settled(reader, self.partition, epoch)
        {
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
        // To read a few buckets takes as long as to read one: what is not flushed is looked through for each.
        let buckets = u64::from(reader.shared.options.bucket_count);
        let together = looks_max as u64 * buckets / rebuilt.row_count().max(1);
        self.stage = from_first(together.clamp(1, buckets) as u16);
        Ok(())
    }

    fn look_for_records(
        &mut self,
        reader: &StoreReader,
        epoch: Epoch,
        (bucket, together): (u16, u16),
        step: &mut ScrubStep,
    ) -> Result<(), StoreError> {
        let behind = bucket
            .saturating_add(together)
            .min(reader.shared.options.bucket_count);
        let range = RowRange::Buckets(self.partition, bucket, behind - 1);
        let rows = reader.index_rows(epoch, range)?;
        step.looked_at += rows.len().max(1) as u64;
        for row in rows {
            let current = reader.get_uncached(&row.key)?;
            let is_there = current.is_some_and(|current| current.version >= row.version);
            if !is_there && !is_settled(reader, self.partition, epoch) {
                // Else what comes back would be taken for what is there.
                reader.shared.cache.forget(&row.key);
                step.findings.push(ScrubFinding::Lost { epoch, row });
            }
        }
        self.stage = match behind < reader.shared.options.bucket_count {
            true => Stage::Rows {
                epoch,
                next: Some((behind, together)),
            },
            false => rows_behind(reader, self.partition, epoch),
        };
        Ok(())
    }
}

/// Of the epochs behind this one, and behind the watermark, the next that has rows.
fn rows_behind(reader: &StoreReader, partition: PartitionId, epoch: Epoch) -> Stage {
    let ledger = reader.ledger();
    let behind = ledger.partition(partition).settled.max(epoch);
    let next = reader.shared.tables.read().index.next_behind(behind);
    next.map_or(Stage::Done, |epoch| Stage::Rows { epoch, next: None })
}

/// Whether an epoch has been settled meanwhile: then its rows, and its dead records, may be gone.
fn is_settled(reader: &StoreReader, partition: PartitionId, epoch: Epoch) -> bool {
    let ledger = reader.ledger();
    let entry = ledger.partition(partition);
    entry.state != PartitionState::Held || has_passed(entry.settled, epoch)
}

impl RangeOf {
    /// Whether a record of the partition belongs to what is summed up, as far as it is within the keys.
    fn counts(&self, record: &Record) -> bool {
        has_passed(self.settled, record.epoch) && !is_dead(record, self.left_out_ms)
    }

    fn is_within(&self, key: &[u8]) -> bool {
        self.up_to.as_ref().is_none_or(|up_to| key <= &up_to[..])
    }
}

impl StoreReader {
    /// The live settled records of a range, as rows, in key order, those of `buckets` or, if there are none,
    /// of all: found among the next `looks_max` records or so; and the key to go on behind, unless that was
    /// the end. `None` if this replica has not that past: another watermark, another chain, or not the
    /// partition.
    ///
    /// # Errors
    /// As [`StoreReader::get`].
    #[expect(
        clippy::type_complexity,
        reason = "rows and a key, named in the sentence above"
    )]
    pub fn settled_rows(
        &self,
        partition: PartitionId,
        of: &RangeOf,
        buckets: &[u16],
        looks_max: usize,
    ) -> Result<Option<(Vec<IndexRow>, Option<Bytes>)>, StoreError> {
        // Before the records: what they lack has not been settled then.
        let ledger = self.ledger();
        let entry = ledger.partition(partition);
        let is_its_past = (entry.settled, entry.chain) == (of.settled, of.chain);
        if entry.state != PartitionState::Held || !is_its_past {
            return Ok(None);
        }
        let mut rows = Vec::new();
        let mut after = of.after.clone();
        let mut looks_left = looks_max.max(1);
        loop {
            let (records, more) =
                self.scan_page(partition, after.as_deref(), looks_left, STEP_BYTES)?;
            looks_left = looks_left.saturating_sub(records.len());
            for record in records.iter().filter(|record| of.counts(record)) {
                if !of.is_within(&record.key) {
                    break;
                }
                let row = self.settled_row(partition, record);
                if buckets.is_empty() || buckets.contains(&row.bucket) {
                    rows.push(row);
                }
            }
            let last = records
                .last()
                .filter(|last| more && of.is_within(&last.key));
            let Some(last) = last else {
                return Ok(Some((rows, None)));
            };
            let last = Bytes::copy_from_slice(&last.key);
            if looks_left == 0 {
                return Ok(Some((rows, Some(last))));
            }
            after = Some(last);
        }
    }

    fn settled_row(&self, partition: PartitionId, record: &Record) -> IndexRow {
        IndexRow::of(partition, self.shared.options.bucket_count, record)
    }

    /// What such rows, all of one partition, sum up to.
    pub fn leaves_of(&self, rows: &[IndexRow]) -> Leaves {
        let options = &self.shared.options;
        Leaves::of(rows, options.bucket_count, options.row_seed)
    }
}

impl Store {
    /// Relies no more on what is known in memory of an epoch's hashes in a partition: they are rebuilt from the
    /// rows, which are the truth, when somebody asks for them.
    ///
    /// # Errors
    /// If the store is poisoned.
    pub fn forget_hashes(
        &mut self,
        partition: PartitionId,
        epoch: Epoch,
    ) -> Result<(), StoreError> {
        self.shared.check_sound()?;
        let forget = IndexChange::Forget { to: epoch };
        let index = &mut self.shared.tables.write().index;
        index.apply(epoch, partition, forget);
        Ok(())
    }
}

fn is_dead(record: &Record, by_ms: u64) -> bool {
    record.kind() == Kind::Tombstone || record.expires_at_ms.is_some_and(|at_ms| at_ms <= by_ms)
}
