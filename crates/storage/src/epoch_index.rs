//! Bucket hashes of the epoch index, kept exact as rows arrive.
//!
//! The rows themselves are in tables and run files. Here is, for each epoch and partition, what a Merkle
//! tree's leaves need: the sum of the hashes of each bucket's rows, and their number. A row that is new or
//! replaces another costs an addition (as in Riak's active anti-entropy), where a rebuild would read the rows.
//!
//! To hash a row is to digest its value, and that is not done on the way of a write: the rows of a table
//! are hashed when it is flushed, which digests them anyway, or when somebody asks for leaves while they are in
//! it. What a merge does here is to *take away* the hash of a row that its record replaces, if that one is in
//! an older table or on disk; within a table only the last version counts. So
//!
//! > leaves = what is known here + the hashes of each table's rows, of every key the greatest
//!
//! **Invariants**
//!
//! 1. Where something is *known*, this equation holds, at every moment. Where nothing is known, the leaves are
//!    rebuilt from the rows when somebody asks ([`EpochIndex::install`]).
//! 2. An epoch that is not here has no rows at all.
//! 3. **If `(x, p)` is known and `k` is a key of `p` whose current record is of epoch `c`, then for `x > c`
//!    there is no row `(x, k)`.** So a record that wins with an epoch `e > c` adds a new row, and one that
//!    wins with `e == c` replaces the current record's: a winner's row needs no look-up.
//!
//! The third holds as long as versions and epochs of a key grow together, which is the rule: a later epoch
//! has later stamps. Coordinators whose clocks differ break it around an epoch's end. Whoever sees that (a
//! record that wins with `e < c`, or a superseded version with `e > c`) *forgets* the hashes of
//! that partition in the epochs concerned, and they are rebuilt when asked for. That is cheaper, and a good
//! deal simpler, than remembering which keys are irregular: no set, no filter, no look-up.
//!
//! The same answer serves closed epochs, which change by repair only; epochs that began in an earlier
//! life; and memory: beyond a bound, whole epochs are forgotten, those first that will be asked for last.

use std::collections::BTreeMap;
use std::ops::Bound;

use mds_types::{Epoch, PartitionId};

use crate::row::IndexRow;

/// Bound on known hashes, bytes; beyond it whole epochs are forgotten and rebuilt when asked for.
/// With 256 partitions and 64 buckets, an epoch takes 350 KB.
pub(crate) const INDEX_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The leaves of one partition's Merkle tree for one epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaves {
    /// For each bucket the wrapping sum of its rows' hashes.
    pub hashes: Box<[u128]>,
    /// For each bucket the number of its rows.
    pub rows: Box<[u32]>,
}

impl Leaves {
    /// The leaves of a partition without rows.
    pub fn empty(bucket_count: u16) -> Leaves {
        Leaves {
            hashes: vec![0; usize::from(bucket_count)].into(),
            rows: vec![0; usize::from(bucket_count)].into(),
        }
    }

    /// The leaves that these rows give: of each key one, all of one partition. `seed` is the cluster's.
    pub fn of<'a>(
        rows: impl IntoIterator<Item = &'a IndexRow>,
        bucket_count: u16,
        seed: u64,
    ) -> Leaves {
        let mut leaves = Leaves::empty(bucket_count);
        for row in rows {
            leaves.add(row.bucket, row.hash(seed));
        }
        leaves
    }

    /// Rows in all buckets.
    pub fn row_count(&self) -> u64 {
        self.rows.iter().map(|&rows| u64::from(rows)).sum()
    }

    pub(crate) fn add(&mut self, bucket: u16, hash: u128) {
        let bucket = usize::from(bucket);
        self.hashes[bucket] = self.hashes[bucket].wrapping_add(hash);
        self.rows[bucket] = self.rows[bucket].wrapping_add(1);
    }

    fn take_away(&mut self, bucket: u16, hash: u128) {
        let bucket = usize::from(bucket);
        self.hashes[bucket] = self.hashes[bucket].wrapping_sub(hash);
        self.rows[bucket] = self.rows[bucket].wrapping_sub(1);
    }

    pub(crate) fn add_all(&mut self, other: &Leaves) {
        for (hash, more) in self.hashes.iter_mut().zip(&other.hashes) {
            *hash = hash.wrapping_add(*more);
        }
        for (rows, more) in self.rows.iter_mut().zip(&other.rows) {
            *rows = rows.wrapping_add(*more);
        }
    }
}

/// What a merge does to the hashes of its epoch and partition, beyond putting a row into the active table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IndexChange {
    /// Nothing.
    Nothing,
    /// The row takes the place of one that is not in the active table.
    Replaces {
        bucket: u16,
        /// The hash of the row that is replaced.
        hash: u128,
    },
    /// What is known of this epoch, and of later ones up to `to`, is not to be relied on any more.
    Forget { to: Epoch },
}

/// What is known of one epoch and partition.
enum Slot {
    /// There are no rows but in tables: all leaves are zero.
    Empty,
    Known(Box<Leaves>),
    Unknown,
}

/// One epoch.
struct EpochSlots {
    /// One for each partition, or none: then all of them are unknown.
    slots: Vec<Slot>,
    /// Counts changes of what is not known, so that a rebuild notices that it was overtaken.
    changes: u64,
}

/// An answer of the index.
pub(crate) enum Known {
    Leaves(Leaves),
    /// To be rebuilt from rows; the number is for [`EpochIndex::install`].
    No(u64),
}

/// The bucket hashes of all epochs that are not settled everywhere.
pub(crate) struct EpochIndex {
    partition_count: u16,
    bucket_count: u16,
    bytes_max: usize,
    bytes: usize,
    /// Epochs up to this one are asked for soon, in their order.
    closed: Epoch,
    epochs: BTreeMap<Epoch, EpochSlots>,
    /// The epoch that was noted last: most merges are of one.
    noted: Option<Epoch>,
}

impl EpochIndex {
    /// An index that knows nothing of `recovered`, the epochs that have rows already.
    pub(crate) fn new(
        partition_count: u16,
        bucket_count: u16,
        bytes_max: usize,
        closed: Epoch,
        recovered: impl IntoIterator<Item = Epoch>,
    ) -> EpochIndex {
        let unknown = |epoch| (epoch, EpochSlots::unknown());
        EpochIndex {
            partition_count,
            bucket_count,
            bytes_max,
            bytes: 0,
            closed,
            epochs: recovered.into_iter().map(unknown).collect(),
            noted: None,
        }
    }

    /// Bytes of memory, roughly.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn set_closed(&mut self, closed: Epoch) {
        self.closed = closed;
    }

    /// Takes note of what a merge did that put a row of this epoch and partition into the active table.
    pub(crate) fn apply(&mut self, epoch: Epoch, partition: PartitionId, change: IndexChange) {
        self.note(epoch);
        match change {
            IndexChange::Nothing => {}
            IndexChange::Replaces { bucket, hash } => {
                self.change(epoch, partition, |leaves| leaves.take_away(bucket, hash));
            }
            IndexChange::Forget { to } => {
                for (_, slots) in self.epochs.range_mut(epoch..=to.max(epoch)) {
                    self.bytes -= slots.replace(partition, Slot::Unknown);
                }
            }
        }
    }

    /// Takes over the rows of a table that leaves memory.
    pub(crate) fn add_flushed(&mut self, epoch: Epoch, partition: PartitionId, rows: &Leaves) {
        self.note(epoch);
        self.change(epoch, partition, |leaves| leaves.add_all(rows));
    }

    /// Takes note of an epoch: if it is met for the first time, it has had no rows so far.
    fn note(&mut self, epoch: Epoch) {
        if self.noted == Some(epoch) {
            return;
        }
        if !self.epochs.contains_key(&epoch) {
            let empty = (0..self.partition_count).map(|_| Slot::Empty);
            let slots = EpochSlots {
                slots: empty.collect(),
                changes: 0,
            };
            self.bytes += slots.bytes();
            self.epochs.insert(epoch, slots);
        }
        self.noted = Some(epoch);
    }

    fn change(&mut self, epoch: Epoch, partition: PartitionId, change: impl FnOnce(&mut Leaves)) {
        let Some(slots) = self.epochs.get_mut(&epoch) else {
            return;
        };
        slots.changes += 1;
        match slots.slots.get_mut(usize::from(partition.0)) {
            Some(Slot::Known(leaves)) => change(leaves),
            Some(Slot::Empty) => {
                let mut leaves = Leaves::empty(self.bucket_count);
                change(&mut leaves);
                self.put(epoch, partition, leaves);
            }
            Some(Slot::Unknown) | None => {}
        }
    }

    /// The leaves of an epoch and partition without the rows in tables, if they are known.
    pub(crate) fn get(&self, epoch: Epoch, partition: PartitionId) -> Known {
        let Some(slots) = self.epochs.get(&epoch) else {
            return Known::Leaves(Leaves::empty(self.bucket_count));
        };
        match slots.slots.get(usize::from(partition.0)) {
            Some(Slot::Known(leaves)) => Known::Leaves(Leaves::clone(leaves)),
            Some(Slot::Empty) => Known::Leaves(Leaves::empty(self.bucket_count)),
            Some(Slot::Unknown) | None => Known::No(slots.changes),
        }
    }

    /// The first epoch behind this one that may have rows.
    pub(crate) fn next_behind(&self, epoch: Epoch) -> Option<Epoch> {
        let behind = (Bound::Excluded(epoch), Bound::Unbounded);
        self.epochs.range(behind).next().map(|(epoch, _)| *epoch)
    }

    /// Takes leaves that were rebuilt from run files which were read after [`EpochIndex::get`] gave
    /// `changes`; false, and nothing is known still, if something changed meanwhile.
    ///
    /// The caller sees to it that the epoch is closed, so that merges forget what is known of it: of its keys
    /// invariant 3 may not hold.
    pub(crate) fn install(
        &mut self,
        epoch: Epoch,
        partition: PartitionId,
        changes: u64,
        leaves: Leaves,
    ) -> bool {
        let Some(slots) = self.epochs.get(&epoch) else {
            return false;
        };
        let index = usize::from(partition.0);
        let is_unknown = matches!(slots.slots.get(index), None | Some(Slot::Unknown));
        if slots.changes != changes || !is_unknown {
            return false;
        }
        self.put(epoch, partition, leaves);
        true
    }

    /// A partition's rows up to and including `up_to` are of no interest any more, or void.
    pub(crate) fn clear(&mut self, partition: PartitionId, up_to: Epoch) {
        for (_, slots) in self.epochs.range_mut(..=up_to) {
            match slots.slots.is_empty() {
                true => slots.changes += 1,
                false => self.bytes -= slots.replace(partition, Slot::Empty),
            }
        }
    }

    /// An epoch's rows are lost, those of all partitions.
    pub(crate) fn forget(&mut self, epoch: Epoch) {
        if let Some(slots) = self.epochs.get_mut(&epoch) {
            self.bytes -= slots.bytes();
            *slots = EpochSlots {
                changes: slots.changes + 1,
                ..EpochSlots::unknown()
            };
        }
    }

    /// Epochs up to and including `epoch` keep no rows, of no partition.
    pub(crate) fn drop_up_to(&mut self, epoch: Epoch) {
        let kept = self.epochs.split_off(&Epoch(epoch.0.saturating_add(1)));
        for slots in self.epochs.values() {
            self.bytes -= slots.bytes();
        }
        self.epochs = kept;
        self.noted = None;
    }

    /// Makes leaves known, as far as there is room.
    fn put(&mut self, epoch: Epoch, partition: PartitionId, leaves: Leaves) {
        let more = leaves_bytes(&leaves);
        while self.bytes + more > self.bytes_max {
            match self.victim(epoch) {
                Some(victim) => self.forget(victim),
                None => break,
            }
        }
        let slot = match self.bytes + more > self.bytes_max {
            true => Slot::Unknown,
            false => Slot::Known(Box::new(leaves)),
        };
        let Some(slots) = self.epochs.get_mut(&epoch) else {
            return;
        };
        if slots.slots.is_empty() {
            slots.slots = (0..self.partition_count).map(|_| Slot::Unknown).collect();
            self.bytes += slots.bytes();
        }
        self.bytes += slot_bytes(&slot);
        self.bytes -= slots.replace(partition, slot);
    }

    /// The epoch whose hashes are needed last: closed ones are verified from the oldest to the newest; then
    /// those that are open.
    fn victim(&self, keep: Epoch) -> Option<Epoch> {
        let has_memory =
            |(epoch, slots): &(&Epoch, &EpochSlots)| **epoch != keep && !slots.slots.is_empty();
        let closed = self.epochs.range(..=self.closed).rev().find(has_memory);
        let any = || self.epochs.iter().find(has_memory);
        closed.or_else(any).map(|(epoch, _)| *epoch)
    }
}

impl EpochSlots {
    fn unknown() -> EpochSlots {
        EpochSlots {
            slots: Vec::new(),
            changes: 0,
        }
    }

    /// Puts a slot in place of another, whose bytes it returns. Where nothing is known it stays so.
    fn replace(&mut self, partition: PartitionId, slot: Slot) -> usize {
        self.changes += 1;
        let Some(place) = self.slots.get_mut(usize::from(partition.0)) else {
            return 0;
        };
        slot_bytes(&std::mem::replace(place, slot))
    }

    fn bytes(&self) -> usize {
        let fixed = self.slots.len() * size_of::<Slot>();
        fixed + self.slots.iter().map(slot_bytes).sum::<usize>()
    }
}

fn slot_bytes(slot: &Slot) -> usize {
    match slot {
        Slot::Known(leaves) => leaves_bytes(leaves),
        Slot::Empty | Slot::Unknown => 0,
    }
}

fn leaves_bytes(leaves: &Leaves) -> usize {
    size_of::<Leaves>() + size_of_val(&*leaves.hashes) + size_of_val(&*leaves.rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PartitionId = PartitionId(1);

    fn index(bytes_max: usize) -> EpochIndex {
        EpochIndex::new(4, 8, bytes_max, Epoch(0), [Epoch(1)])
    }

    /// Flushes a row.
    fn flush(index: &mut EpochIndex, epoch: u64, partition: PartitionId, hash: u128) {
        let mut leaves = Leaves::empty(8);
        leaves.add(3, hash);
        index.add_flushed(Epoch(epoch), partition, &leaves);
    }

    fn known(index: &EpochIndex, epoch: u64) -> Option<(u32, u128)> {
        match index.get(Epoch(epoch), P) {
            Known::Leaves(leaves) => Some((leaves.rows[3], leaves.hashes[3])),
            Known::No(_) => None,
        }
    }

    #[test]
    fn new_epochs_are_known_and_recovered_ones_are_rebuilt() {
        let mut index = index(INDEX_BYTES_MAX);
        flush(&mut index, 1, P, 5);
        flush(&mut index, 2, P, 5);
        assert_eq!((known(&index, 1), known(&index, 2)), (None, Some((1, 5))));
        assert_eq!(known(&index, 3), Some((0, 0)));
        let Known::No(changes) = index.get(Epoch(1), P) else {
            panic!("known")
        };
        flush(&mut index, 1, P, 6);
        let empty = || Leaves::empty(8);
        assert!(!index.install(Epoch(1), P, changes, empty()), "overtaken");
        assert!(index.install(Epoch(1), P, changes + 1, empty()));
        assert_eq!(known(&index, 1), Some((0, 0)));
        let again = index.install(Epoch(1), P, changes + 1, empty());
        assert!(!again, "it is known already");
    }

    #[test]
    fn a_row_that_is_replaced_may_be_taken_away_before_it_comes() {
        let mut index = index(INDEX_BYTES_MAX);
        let replaces = IndexChange::Replaces { bucket: 3, hash: 5 };
        index.apply(Epoch(2), P, replaces);
        flush(&mut index, 2, P, 5);
        assert_eq!(known(&index, 2), Some((0, 0)));
        flush(&mut index, 2, P, 9);
        assert_eq!(known(&index, 2), Some((1, 9)));
    }

    #[test]
    fn a_disagreement_forgets_the_epochs_concerned_of_its_partition() {
        let mut index = index(INDEX_BYTES_MAX);
        for epoch in 2..=5 {
            flush(&mut index, epoch, P, 1);
            flush(&mut index, epoch, PartitionId(2), 1);
        }
        index.apply(Epoch(3), P, IndexChange::Forget { to: Epoch(4) });
        let all: Vec<_> = (2..=5)
            .map(|epoch| known(&index, epoch).is_some())
            .collect();
        assert_eq!(all, [true, false, false, true]);
        assert!(matches!(
            index.get(Epoch(3), PartitionId(2)),
            Known::Leaves(_)
        ));
        index.apply(Epoch(7), P, IndexChange::Forget { to: Epoch(4) });
        assert_eq!(known(&index, 7), None);
        index.clear(P, Epoch(4));
        assert_eq!((known(&index, 3), known(&index, 7)), (Some((0, 0)), None));
    }

    #[test]
    fn memory_is_bounded_and_what_is_needed_last_goes_first() {
        // An epoch here takes 256 bytes: room for four.
        let mut index = index(1_100);
        index.set_closed(Epoch(4));
        for epoch in 2..=6 {
            flush(&mut index, epoch, P, 1);
            assert!(index.bytes() <= 1_100, "{}", index.bytes());
        }
        let all: Vec<_> = (2..=6)
            .map(|epoch| known(&index, epoch).is_some())
            .collect();
        assert!(all[0], "the next to be verified");
        assert!(!all[2], "closed, and verified last");
        assert!(all[4], "being written");
        index.drop_up_to(Epoch(5));
        index.drop_up_to(Epoch(6));
        assert_eq!(index.bytes(), 0);
    }
}
