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
//! `settled`, some buckets after others, in bounded steps. The flusher searches, and the writer looks at what it found
//! once more before it removes it. Nothing that the search has passed can change behind it: no row is added to a settled
//! epoch, and a version that is no longer current never is again. To read even one bucket means to open the epoch's run files
//! and to decode a block of each, so as many buckets are read at once as [`READ_BYTES_MAX`] allows: of an epoch with
//! few writes all of a partition's, or the collection of an epoch would cost thousands of reads for a handful of
//! rows. `collected` rises, durably and after the removals, over
//! epochs of which nothing dead is left. A tombstone above the floor holds it back: the epoch is walked again
//! when the watermark, and with it the floor, has risen. A crash begins the epoch anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use mds_types::mutation::{Mutation, is_on};
use mds_types::slot::partition_of;
use mds_types::{Body, Epoch, Hlc, Kind, PartitionId, Record, Version};

use super::judge::{Accepted, What};
use super::shared::{Counter, Shared};
use super::{Flusher, Ledger, PartitionState, Store, StoreError, StoreReader, bytes_of};
use crate::epoch_index::IndexChange;
use crate::ledger::has_passed;
use crate::row::RowRange;

/// Of an epoch's rows, so many bytes at most are read at once; one bucket of a partition always.
const READ_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Dead records that one step of the search finds, about, at most: its findings wait in memory.
const SEARCH_DEAD_MAX: usize = 4 * 1024;

/// How far the search has come in a partition: an epoch and the next bucket in it, and whether a tombstone
/// was left behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cursor {
    epoch: Epoch,
    bucket: u16,
    held_back: bool,
    wipes: u64,
}

/// Where the search for dead records stands. Lost with the process: then it begins its epochs anew.
#[derive(Default)]
pub(super) struct Search {
    /// Of partitions in the middle of an epoch.
    cursors: BTreeMap<PartitionId, Cursor>,
    /// Partitions in which a tombstone was too young to go: how often they had been wiped, and the floor that it was
    /// held against.
    held_back: BTreeMap<PartitionId, (u64, Hlc)>,
}

/// What a step of the search has found.
#[derive(Default)]
pub(super) struct Found {
    /// What may go, if it is still current then, without values.
    dead: Vec<(PartitionId, Record)>,
    held_back: u64,
    /// Up to which epoch nothing dead is left in these partitions, once those are gone.
    reached: Vec<Reached>,
}

struct Reached {
    partition: PartitionId,
    /// How often it had been wiped then.
    wipes: u64,
    up_to: Epoch,
}

/// What a step of collection did.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Collected {
    /// Records that are gone.
    pub removed: u64,
    /// Tombstones that may not go yet, because they are above the floor.
    pub held_back: u64,
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
    /// Has the flusher search these partitions, in order, for tombstones that may go, each with the *floor* of the
    /// first epoch that is not settled in it: every version stamped in that epoch or a later one is above it. A lower
    /// one is safe. Not while [`Store::is_searching`].
    ///
    /// An epoch that held tombstones back is searched again when the floor is another one.
    pub fn search_dead(&mut self, partitions: Vec<(PartitionId, Hlc)>) {
        self.shared.chores.lock().search(partitions);
    }

    /// Whether the search goes on, or something that it found waits for [`Store::collect_found`].
    pub fn is_searching(&self) -> bool {
        self.shared.chores.lock().is_searching()
    }

    /// Removes up to `removals_max` of the tombstones that were found, as far as they are still current, and raises
    /// `collected` over epochs of which none is left. However many partitions have come further, the ledger is
    /// written once: it is synced, and whoever writes a record waits for that.
    ///
    /// # Errors
    /// As [`Store::merge_for`], or what the search met. What was found is kept for another try.
    pub fn collect_found(&mut self, removals_max: usize) -> Result<Collected, StoreError> {
        self.shared.check_sound()?;
        let Some(found) = self.shared.chores.lock().take_found() else {
            return Ok(Collected::default());
        };
        let mut found = found?;
        let collected = self.take_up(&mut found, removals_max.max(1));
        if collected.is_err() || !found.dead.is_empty() {
            self.shared.chores.lock().keep_found(found);
        }
        collected
    }

    fn take_up(&mut self, found: &mut Found, removals_max: usize) -> Result<Collected, StoreError> {
        let ledger = self.shared.ledger.get();
        let reader = self.reader();
        let left = found.dead.len().saturating_sub(removals_max);
        let mut may_go = Vec::new();
        for (partition, header) in &found.dead[left..] {
            let current = reader.get(&header.key)?;
            let is_it = |current: Record| {
                current.version == header.version && current.kind() == Kind::Tombstone
            };
            // Something newer may have come since, or the partition may have been wiped.
            let may_still = is_on(Mutation::CollectsUnsettled)
                || may_collect(&ledger, *partition, header.epoch);
            if may_still && current.is_some_and(is_it) {
                may_go.push((*partition, header.clone()));
            }
        }
        let removed = self.remove(&may_go)?;
        found.dead.truncate(left);
        if found.dead.is_empty() && !found.reached.is_empty() {
            let wipes = self.shared.chores.lock().wipes();
            let is_same = |reached: &Reached| {
                wipes.get(&reached.partition).copied().unwrap_or(0) == reached.wipes
            };
            self.change_ledger(|ledger| {
                for reached in found.reached.iter().filter(|reached| is_same(reached)) {
                    if let Some(entry) = ledger.partition_mut(reached.partition)
                        && entry.state == PartitionState::Held
                    {
                        entry.collected = entry.collected.max(reached.up_to);
                    }
                }
            })?;
        }
        Ok(Collected {
            removed,
            held_back: std::mem::take(&mut found.held_back),
        })
    }

    /// Removes dead records that a scrub has found, as far as they may go: settled, not above `floor` (see
    /// [`Store::search_dead`]), still current, and dead: tombstones, and values that had expired at
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

impl Flusher {
    /// A step of the search for dead records: looks at about [`SEARCH_ROWS_MAX`](super::SEARCH_ROWS_MAX) rows. False if
    /// nothing is to be searched, or findings wait for the writer.
    pub(super) fn search_some(&self) -> bool {
        let mut flushing = self.shared.flushing.lock();
        let next = self.shared.chores.lock().next_search();
        let Some((partitions, mut at)) = next.filter(|_| !self.shared.is_poisoned()) else {
            return false;
        };
        let wipes = self.shared.chores.lock().wipes();
        let ledger = self.shared.ledger.get();
        let mut step = SearchStep {
            shared: &self.shared,
            wipes: &wipes,
            ledger: &ledger,
            rows_left: self.shared.options.search_rows_max,
            found: Found::default(),
        };
        let mut walked = Ok(true);
        while at < partitions.len() {
            let (partition, floor) = partitions[at];
            walked = step.walk(&mut flushing.search, partition, floor);
            if !matches!(walked, Ok(true)) {
                break;
            }
            at += 1;
            self.step();
        }
        let found = match walked {
            // It is at the same place that the next search fails, or not.
            Err(error) => {
                at = partitions.len();
                Err(error)
            }
            Ok(_) => Ok(step.found),
        };
        self.shared.chores.lock().have_found(found, at);
        true
    }
}

/// A step of the search.
struct SearchStep<'s> {
    shared: &'s Arc<Shared>,
    wipes: &'s BTreeMap<PartitionId, u64>,
    ledger: &'s Ledger,
    rows_left: usize,
    found: Found,
}

impl SearchStep<'_> {
    fn wipes_of(&self, partition: PartitionId) -> u64 {
        self.wipes.get(&partition).copied().unwrap_or(0)
    }

    /// Walks the rows of a partition's settled epochs. False if there are more than this step may look at.
    fn walk(
        &mut self,
        search: &mut Search,
        partition: PartitionId,
        floor: Hlc,
    ) -> Result<bool, StoreError> {
        let entry = self.ledger.partition(partition);
        let wipes = self.wipes_of(partition);
        // What was too young for this floor still is.
        if search.held_back.get(&partition) == Some(&(wipes, floor)) {
            return Ok(true);
        }
        let mut up_to = entry.collected;
        let walked = self.walk_epochs(search, partition, floor, &mut up_to);
        if up_to > entry.collected {
            self.found.reached.push(Reached {
                partition,
                wipes,
                up_to,
            });
        }
        walked
    }

    fn walk_epochs(
        &mut self,
        search: &mut Search,
        partition: PartitionId,
        floor: Hlc,
        reached: &mut Epoch,
    ) -> Result<bool, StoreError> {
        let bucket_count = self.shared.options.bucket_count;
        while let Some(mut cursor) = self.next_cursor(search, partition, reached) {
            while cursor.bucket < bucket_count {
                // In case of an error, too.
                search.cursors.insert(partition, cursor);
                if self.rows_left == 0 || self.found.dead.len() >= SEARCH_DEAD_MAX {
                    return Ok(false);
                }
                let count = self.buckets_at_once(cursor.epoch);
                let left = bucket_count - cursor.bucket;
                let last = cursor.bucket + count.min(left) - 1;
                let range = RowRange::Buckets(partition, cursor.bucket, last);
                let held_back = self.search_range(partition, cursor.epoch, range, floor)?;
                self.found.held_back += held_back;
                cursor.held_back |= held_back > 0;
                cursor.bucket = last + 1;
            }
            search.cursors.remove(&partition);
            if cursor.held_back {
                search.held_back.insert(partition, (cursor.wipes, floor));
                return Ok(true);
            }
            *reached = cursor.epoch;
        }
        Ok(true)
    }

    /// Where collection goes on in a partition behind `reached`, if there is anything to do. Epochs without
    /// rows are passed at once.
    fn next_cursor(
        &self,
        search: &Search,
        partition: PartitionId,
        reached: &mut Epoch,
    ) -> Option<Cursor> {
        let entry = self.ledger.partition(partition);
        let up_to = match is_on(Mutation::CollectsUnsettled) {
            true => self.ledger.closed,
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
        let wipes = self.wipes_of(partition);
        let left = search.cursors.get(&partition).copied();
        let left = left.filter(|cursor| (cursor.epoch, cursor.wipes) == (epoch, wipes));
        Some(left.unwrap_or(Cursor {
            epoch,
            bucket: 0,
            held_back: false,
            wipes,
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

    /// Finds the tombstones of some buckets of an epoch that may go; how many may not yet.
    fn search_range(
        &mut self,
        partition: PartitionId,
        epoch: Epoch,
        range: RowRange,
        floor: Hlc,
    ) -> Result<u64, StoreError> {
        let reader = StoreReader::new(self.shared.clone());
        let rows = reader.index_rows(epoch, range)?;
        self.rows_left = self.rows_left.saturating_sub(rows.len().max(1));
        let mut held_back = 0;
        for row in rows.iter().filter(|row| row.kind == Kind::Tombstone) {
            let current = reader.get(&row.key)?;
            let is_it =
                |record: &Record| record.version == row.version && record.kind() == Kind::Tombstone;
            let Some(current) = current.filter(is_it) else {
                continue;
            };
            match is_below_floor(&current, floor) {
                true => self.found.dead.push((partition, header_of(current))),
                false => held_back += 1,
            }
        }
        Ok(held_back)
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
