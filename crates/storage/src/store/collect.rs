//! Collection: removing dead records whose deletion everybody knows of.
//!
//! **Law** (traps T4, T9). A tombstone of `(epoch e, version v)` in partition `p` goes when
//!
//! 1. `e` is settled in `p`: every replica has the tombstone, or something newer, so no replica can bring
//!    back what it hides; and nothing of epoch `e` or before is merged again, from anywhere;
//! 2. its stamp is not above the *floor* of the first epoch that is not settled: whatever may still come in is
//!    newer than the tombstone, so none of it depends on losing to it. Version order and epoch order may
//!    disagree, and without this a late write of epoch `e + 1` with a smaller version would rise;
//! 3. it is still the current record of its key.
//!
//! Expired values likewise, once they have been expired for longer than clocks may differ: the scrub finds
//! them, because when a value expires follows from nothing that the index holds.
//!
//! A removal is written like a record: a frame in the log, an entry in the table that hides what the engine
//! still holds, and the key's removal in the next run. So order is kept through every crash: the engine
//! never sees the removal without what came before it, nor an older value after it.
//!
//! **What is collected is found by the index**: the rows of the epochs between the partition's `collected` and
//! `settled`, some buckets after others, in bounded steps. To read even one bucket means to open the epoch's run files
//! and to decode a block of each, so as many buckets are read at once as [`READ_BYTES_MAX`] allows: of an epoch with
//! few writes all of a partition's, or the collection of an epoch would cost thousands of reads for a handful of
//! rows. `collected` rises, durably and after the removals, over
//! epochs of which nothing dead is left. A tombstone above the floor holds it back: the epoch is walked again
//! when the watermark, and with it the floor, has risen. A crash begins the epoch anew.

use std::collections::BTreeMap;

use bytes::Bytes;
use mds_types::mutation::{Mutation, is_on};
use mds_types::slot::partition_of;
use mds_types::{Body, Epoch, Hlc, Kind, PartitionId, Record, Version};

use super::judge::{Accepted, What};
use super::shared::Counter;
use super::{Ledger, PartitionState, Store, StoreError, bytes_of};
use crate::epoch_index::IndexChange;
use crate::ledger::has_passed;
use crate::row::RowRange;

/// Of an epoch's rows, so many bytes at most are read at once; one bucket of a partition always.
const READ_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How far collection has come in a partition: an epoch and the next bucket in it, and whether a tombstone
/// was left behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cursor {
    epoch: Epoch,
    bucket: u16,
    held_back: bool,
}

/// Cursors of the partitions in which collection is under way. Lost with the process: then it begins the
/// epoch anew.
pub(super) type Cursors = BTreeMap<PartitionId, Cursor>;

/// What a step of collection did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Collected {
    /// Records that are gone.
    pub removed: u64,
    /// Tombstones that may not go yet, because they are above the floor.
    pub held_back: u64,
    /// Whether there is more to do now.
    pub more: bool,
}

/// A dead record that may be collected, as a scrub finds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dead {
    /// Its key.
    pub key: Bytes,
    /// Its version; if another one is current by now, it is left alone.
    pub version: Version,
}

impl Store {
    /// A step of collection in one partition: looks at up to about `rows_max` rows of settled epochs, removes
    /// the tombstones that may go, and raises `collected` over epochs of which none is left.
    ///
    /// `floor` is the floor of the first epoch that is not settled in the partition: every version
    /// stamped in that epoch or a later one is above it. A lower one is safe.
    ///
    /// To be called again while [`Collected::more`]. An epoch that held tombstones back is walked again when the
    /// floor is another one.
    ///
    /// # Errors
    /// As [`Store::merge_for`].
    pub fn collect(
        &mut self,
        partition: PartitionId,
        floor: Hlc,
        rows_max: usize,
    ) -> Result<Collected, StoreError> {
        self.collect_in(&[(partition, floor)], rows_max)
    }

    /// The same in several partitions, one after another, each with its floor, until about `rows_max` rows of all
    /// of them were looked at. However many partitions have come further, the ledger is written once: it is synced,
    /// and whoever writes a record waits for that.
    ///
    /// # Errors
    /// As [`Store::merge_for`].
    pub fn collect_in(
        &mut self,
        partitions: &[(PartitionId, Hlc)],
        rows_max: usize,
    ) -> Result<Collected, StoreError> {
        self.shared.check_sound()?;
        let mut done = Collected::default();
        let ledger = self.shared.ledger.get();
        let mut rows_left = rows_max.max(1);
        let mut reached = Vec::new();
        let mut walked = Ok(());
        for &(partition, floor) in partitions {
            // What was too young for this floor still is.
            if self.held_back.get(&partition) == Some(&floor) {
                continue;
            }
            let before = ledger.partition(partition).collected;
            let mut up_to = before;
            walked = self.walk(
                &ledger,
                partition,
                floor,
                &mut rows_left,
                &mut up_to,
                &mut done,
            );
            if up_to > before {
                reached.push((partition, up_to));
            }
            if walked.is_err() || done.more {
                break;
            }
        }
        if !reached.is_empty() {
            self.change_ledger(|ledger| {
                for (partition, up_to) in reached {
                    if let Some(entry) = ledger.partition_mut(partition) {
                        entry.collected = entry.collected.max(up_to);
                    }
                }
            })?;
        }
        walked.map(|()| done)
    }

    /// Walks the rows of settled epochs, removes what may go, and says up to which epoch nothing is left.
    fn walk(
        &mut self,
        ledger: &Ledger,
        partition: PartitionId,
        floor: Hlc,
        rows_left: &mut usize,
        reached: &mut Epoch,
        done: &mut Collected,
    ) -> Result<(), StoreError> {
        while let Some(mut cursor) = self.next_cursor(ledger, partition, reached) {
            while cursor.bucket < self.shared.options.bucket_count {
                // In case of an error, too.
                self.collecting.insert(partition, cursor);
                if *rows_left == 0 {
                    done.more = true;
                    return Ok(());
                }
                let count = self.buckets_at_once(cursor.epoch);
                let left = self.shared.options.bucket_count - cursor.bucket;
                let last = cursor.bucket + count.min(left) - 1;
                let range = RowRange::Buckets(partition, cursor.bucket, last);
                let (rows, step) =
                    self.collect_range(ledger, partition, cursor.epoch, range, floor)?;
                *rows_left = rows_left.saturating_sub(rows.max(1));
                done.removed += step.removed;
                done.held_back += step.held_back;
                cursor.held_back |= step.held_back > 0;
                cursor.bucket = last + 1;
            }
            self.collecting.remove(&partition);
            if cursor.held_back {
                self.held_back.insert(partition, floor);
                return Ok(());
            }
            *reached = cursor.epoch;
        }
        Ok(())
    }

    /// Removes dead records that a scrub has found, as far as they may go: settled, not above `floor` (see
    /// [`Store::collect`]), still current, and dead: tombstones, and values that had expired at
    /// `dead_by_ms`, milliseconds since 1970: the time of day less the bound on clocks' differences.
    ///
    /// # Errors
    /// As [`Store::merge_for`].
    pub fn collect_dead(
        &mut self,
        dead: &[Dead],
        floor: Hlc,
        dead_by_ms: u64,
    ) -> Result<Collected, StoreError> {
        self.shared.check_sound()?;
        let ledger = self.shared.ledger.get();
        let mut may_go = Vec::new();
        let mut done = Collected::default();
        for dead in dead {
            let partition = partition_of(&dead.key, self.shared.options.partition_count);
            let current = self.reader().get(&dead.key)?;
            let Some(current) = current.filter(|current| current.version == dead.version) else {
                continue;
            };
            let expired = current
                .expires_at_ms
                .is_some_and(|at_ms| at_ms <= dead_by_ms);
            if current.kind() != Kind::Tombstone && !expired {
                continue;
            }
            if !may_collect(&ledger, partition, current.epoch) {
                continue;
            }
            match is_below_floor(&current, floor) {
                true => may_go.push((partition, header_of(current))),
                false => done.held_back += 1,
            }
        }
        done.removed = self.remove(&may_go)?;
        Ok(done)
    }

    /// Where collection goes on in a partition behind `reached`, if there is anything to do. Epochs without
    /// rows are passed at once.
    fn next_cursor(
        &self,
        ledger: &Ledger,
        partition: PartitionId,
        reached: &mut Epoch,
    ) -> Option<Cursor> {
        let entry = ledger.partition(partition);
        let up_to = match is_on(Mutation::CollectsUnsettled) {
            true => ledger.closed,
            false => entry.settled,
        };
        if entry.state != PartitionState::Held || *reached >= up_to {
            return None;
        }
        let next = self.shared.tables.read().index.next_behind(*reached);
        let Some(epoch) = next.filter(|next| *next <= up_to) else {
            *reached = up_to;
            return None;
        };
        // One of another epoch is from before the partition was wiped.
        let left = self.collecting.get(&partition).copied();
        let left = left.filter(|cursor| cursor.epoch == epoch);
        Some(left.unwrap_or(Cursor {
            epoch,
            bucket: 0,
            held_back: false,
        }))
    }

    /// How many buckets of a partition are read at once: keys are spread over the buckets evenly, so these have
    /// their part of the epoch's rows at most, should all of them be of one partition.
    fn buckets_at_once(&self, epoch: Epoch) -> u16 {
        let bucket_count = self.shared.options.bucket_count;
        let bytes = self.shared.runs.epoch_bytes(epoch).max(1);
        let count = u64::from(bucket_count) * READ_BYTES_MAX / bytes;
        count.clamp(1, u64::from(bucket_count)) as u16
    }

    /// Removes the tombstones of some buckets of an epoch that may go. Also returns the number of rows.
    fn collect_range(
        &mut self,
        ledger: &Ledger,
        partition: PartitionId,
        epoch: Epoch,
        range: RowRange,
        floor: Hlc,
    ) -> Result<(usize, Collected), StoreError> {
        let reader = self.reader();
        let rows = reader.index_rows(epoch, range)?;
        let mut may_go = Vec::new();
        let mut done = Collected::default();
        for row in rows.iter().filter(|row| row.kind == Kind::Tombstone) {
            let current = reader.get(&row.key)?;
            let is_it =
                |record: &Record| record.version == row.version && record.kind() == Kind::Tombstone;
            let Some(current) = current.filter(is_it) else {
                continue;
            };
            debug_assert!(
                is_on(Mutation::CollectsUnsettled) || may_collect(ledger, partition, current.epoch)
            );
            match is_below_floor(&current, floor) {
                true => may_go.push((partition, header_of(current))),
                false => done.held_back += 1,
            }
        }
        done.removed = self.remove(&may_go)?;
        Ok((rows.len(), done))
    }

    /// Writes that these records are gone. They are current: nothing comes between, as there is one writer.
    fn remove(&mut self, headers: &[(PartitionId, Record)]) -> Result<u64, StoreError> {
        if headers.is_empty() {
            return Ok(0);
        }
        let accepted: Vec<Accepted<'_>> = headers
            .iter()
            .map(|(partition, record)| Accepted {
                record,
                what: What::Removal,
                partition: *partition,
                index: IndexChange::Nothing,
            })
            .collect();
        self.make_room(bytes_of(&accepted))?;
        self.commit(&accepted)?;
        self.shared.add(Counter::Collected, accepted.len() as u64);
        Ok(accepted.len() as u64)
    }
}

/// Whether dead records of an epoch may go at all.
fn may_collect(ledger: &Ledger, partition: PartitionId, epoch: Epoch) -> bool {
    let entry = ledger.partition(partition);
    entry.state == PartitionState::Held && has_passed(entry.settled, epoch)
}

fn is_below_floor(record: &Record, floor: Hlc) -> bool {
    record.version.hlc <= floor
        || is_on(Mutation::CollectsAboveFloor)
        || is_on(Mutation::CollectsUnsettled)
}

/// What the log keeps of a record that goes.
fn header_of(record: Record) -> Record {
    Record {
        body: Body::Tombstone,
        ..record
    }
}
