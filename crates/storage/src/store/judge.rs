//! Judging: what a record that comes in does, before anything is written.
//!
//! Three questions, in this order, about a record of epoch `e` in partition `p`, and the current record of
//! its key:
//!
//! 1. **Is `e` settled in `p`?** Then the record comes in only if it, or something newer, is there already;
//!    and it changes nothing. Whatever is missing below the watermark was deleted or overwritten, everywhere
//!    (traps T9-T12). For a partition that is being filled by a stream, what its source had settled counts
//!    as settled for everybody but the stream.
//! 2. **Is `e` closed, and is this a client's write or a hint?** Then only the very version that is there
//!    is answered as done (trap T8). Closed is thereby *sealed*: what no replica holds can no longer come in;
//!    repair and sync bring what some replica holds.
//! 3. **Does it win**, by the merge law? A winner is written with its row. A loser leaves its row alone if
//!    it is the greatest of its key in its epoch, which a look-up in the rows tells (trap T13).
//!
//! The look-up is not on the way of a usual write: a winner never needs one (see
//! [`crate::epoch_index`], invariant 3), nor does a loser of the current record's epoch.

use std::cmp::Ordering;
use std::collections::HashMap;

use mds_types::mutation::{Mutation, is_on};
use mds_types::slot::partition_of;
use mds_types::{Digest, Epoch, Kind, PartitionId, Record, Version};

use super::shared::Shared;
use super::{Merged, Purpose, StoreError};
use crate::epoch_index::IndexChange;
use crate::keys::bucket_of;
use crate::ledger::{Ledger, has_passed};
use crate::row::{Rank, row_hash};
use crate::table::{Entry, KeyHashing};

/// What is written for a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    /// The record, which is its row too.
    Record,
    /// Its row alone.
    RowAlone,
    /// That it is gone.
    Removal,
}

/// A record that leaves a trace.
pub(super) struct Accepted<'a> {
    pub(super) record: &'a Record,
    pub(super) what: What,
    pub(super) digest: Digest,
    pub(super) partition: PartitionId,
    pub(super) index: IndexChange,
}

impl Accepted<'_> {
    fn rank(&self) -> Rank {
        (self.record.version, self.record.kind(), self.digest)
    }
}

/// What is known of a key's current record. Kept small: there is one for each record of a batch.
struct Current {
    version: Version,
    epoch: Epoch,
    kind: Kind,
    digest: CurrentDigest,
}

/// Its digest: most merges do not need that of a record in the engine.
enum CurrentDigest {
    Known(Digest),
    Of(Box<Record>),
}

impl Current {
    fn of_entry(entry: &Entry) -> Current {
        Current {
            version: entry.version,
            epoch: entry.epoch,
            kind: entry.kind,
            digest: CurrentDigest::Known(entry.digest),
        }
    }

    fn of_record(record: Record) -> Current {
        Current {
            version: record.version,
            epoch: record.epoch,
            kind: record.kind(),
            digest: CurrentDigest::Of(Box::new(record)),
        }
    }

    fn of_accepted(accepted: &Accepted<'_>) -> Current {
        Current {
            version: accepted.record.version,
            epoch: accepted.record.epoch,
            kind: accepted.record.kind(),
            digest: CurrentDigest::Known(accepted.digest),
        }
    }

    fn digest(&self) -> Digest {
        match &self.digest {
            CurrentDigest::Known(digest) => *digest,
            CurrentDigest::Of(record) => record.digest(),
        }
    }
}

/// What the tables say of a key.
enum InTables {
    Current(Current),
    /// There is no record of it.
    Gone,
    /// The engine has to be asked.
    No,
}

/// Compares each record with what is there: earlier in the batch, in the tables, in the engine. Returns
/// what became of each, and what is to be written.
pub(super) fn judge<'a>(
    shared: &Shared,
    merges: impl ExactSizeIterator<Item = (Purpose, &'a Record)> + Clone,
) -> Result<(Vec<Merged>, Vec<Accepted<'a>>), StoreError> {
    let ledger = shared.ledger.get();
    let count = merges.len();
    // Nothing enters the tables but through this thread, and the flusher moves records down
    // only: what is not in the tables now is in the engine, or nowhere.
    let in_tables: Vec<InTables> = {
        let tables = shared.tables.read();
        let look_up = |(_, record): (Purpose, &Record)| match tables.get(&record.key) {
            Some(entry) if entry.gone => InTables::Gone,
            Some(entry) => InTables::Current(Current::of_entry(entry)),
            None => InTables::No,
        };
        merges.clone().map(look_up).collect()
    };
    let mut batch: HashMap<&[u8], usize, KeyHashing> = HashMap::with_hasher(shared.hashing());
    let mut outcomes = Vec::with_capacity(count);
    let mut accepted: Vec<Accepted<'a>> = Vec::with_capacity(count);
    for ((purpose, record), in_tables) in merges.zip(in_tables) {
        let partition = partition_of(&record.key, shared.options.partition_count);
        let current = match (batch.get(&record.key[..]), in_tables) {
            (Some(&earlier), _) => Some(Current::of_accepted(&accepted[earlier])),
            (None, InTables::Current(current)) => Some(current),
            (None, InTables::Gone) => None,
            (None, InTables::No) => shared
                .get_from_engine_in(partition, &record.key)?
                .map(Current::of_record),
        };
        let arriving = Arriving {
            shared,
            ledger: &ledger,
            purpose,
            record,
            partition,
        };
        let (outcome, written) = arriving.judge(current, &accepted)?;
        outcomes.push(outcome);
        if let Some(written) = written {
            if written.what == What::Record && count > 1 {
                batch.insert(&record.key, accepted.len());
            }
            accepted.push(written);
        }
    }
    Ok((outcomes, accepted))
}

/// A record that is being judged.
struct Arriving<'a, 'b> {
    shared: &'b Shared,
    ledger: &'b Ledger,
    purpose: Purpose,
    record: &'a Record,
    partition: PartitionId,
}

impl<'a> Arriving<'a, '_> {
    fn judge(
        &self,
        current: Option<Current>,
        earlier: &[Accepted<'a>],
    ) -> Result<(Merged, Option<Accepted<'a>>), StoreError> {
        let order = self.order(current.as_ref());
        if let Some(refusal) = self.refusal(order, current.as_ref()) {
            return Ok((refusal, None));
        }
        match (order, current) {
            (Ordering::Greater, current) => {
                let digest = self.record.digest();
                let index = self.change_of_winner(digest, current.as_ref());
                Ok((
                    Merged::Applied,
                    Some(self.accept(What::Record, digest, index)),
                ))
            }
            (Ordering::Less, Some(current)) => {
                Ok((Merged::Superseded, self.row_alone(&current, earlier)?))
            }
            (Ordering::Less | Ordering::Equal, _) => Ok((Merged::Same, None)),
        }
    }

    /// The merge law, against what is there.
    fn order(&self, current: Option<&Current>) -> Ordering {
        let Some(current) = current else {
            return Ordering::Greater;
        };
        if is_on(Mutation::MergeByArrival) {
            return Ordering::Greater;
        }
        self.record.version.cmp(&current.version).then_with(|| {
            // Only the same version seen again: hashing is off the usual way.
            let ours = (self.record.kind(), self.record.digest());
            ours.cmp(&(current.kind, current.digest()))
        })
    }

    /// Why the record may not come in, if so.
    fn refusal(&self, order: Ordering, current: Option<&Current>) -> Option<Merged> {
        let (ledger, epoch) = (self.ledger, self.record.epoch);
        if epoch >= ledger.free_from && !ledger.is_some_away {
            return None;
        }
        let entry = ledger.partition(self.partition);
        if !entry.is_indexed() {
            return Some(Merged::NotHere);
        }
        let watermark = match self.purpose {
            Purpose::Sync => entry.settled,
            Purpose::Write | Purpose::Hint | Purpose::Repair => entry.no_new_rows(),
        };
        if has_passed(watermark, epoch) && !is_on(Mutation::MergesBelowWatermark) {
            return (order == Ordering::Greater).then_some(Merged::Settled);
        }
        let is_sealed = matches!(self.purpose, Purpose::Write | Purpose::Hint)
            && has_passed(ledger.closed, epoch)
            && !is_on(Mutation::ClosedEpochOpen);
        let is_there = order != Ordering::Greater
            && current.is_some_and(|current| current.version == self.record.version);
        (is_sealed && !is_there).then_some(Merged::EpochClosed)
    }

    /// Whether rows of the record's epoch are still taken.
    fn leaves_rows(&self) -> bool {
        let epoch = self.record.epoch;
        let no_new_rows = || self.ledger.partition(self.partition).no_new_rows();
        epoch >= self.ledger.free_from || !has_passed(no_new_rows(), epoch)
    }

    fn change_of_winner(&self, digest: Digest, current: Option<&Current>) -> IndexChange {
        let record = self.record;
        if let Some(current) = current.filter(|current| current.epoch > record.epoch) {
            // Even if the record leaves no row itself: there are rows of later epochs than that of what is
            // current now.
            return IndexChange::Forget { to: current.epoch };
        }
        if !self.leaves_rows() {
            return IndexChange::Nothing;
        }
        let hash = self.hash((record.version, record.kind(), digest));
        let (delta, is_new) = match current {
            Some(current) if current.epoch == record.epoch => {
                let replaced = (current.version, current.kind, current.digest());
                (hash.wrapping_sub(self.hash(replaced)), false)
            }
            Some(_) | None => (hash, true),
        };
        IndexChange::Row {
            bucket: self.bucket(),
            delta,
            is_new,
        }
    }

    /// The row of a record that has lost to one of another epoch, unless the index has it, or a greater one.
    fn row_alone(
        &self,
        current: &Current,
        earlier: &[Accepted<'a>],
    ) -> Result<Option<Accepted<'a>>, StoreError> {
        let record = self.record;
        if current.epoch == record.epoch
            || !self.leaves_rows()
            || is_on(Mutation::SupersededNotLogged)
        {
            return Ok(None);
        }
        let digest = record.digest();
        let rank = (record.version, record.kind(), digest);
        let in_batch = earlier
            .iter()
            .filter(|other| other.record.epoch == record.epoch && other.record.key == record.key)
            .map(Accepted::rank)
            .max();
        let bucket = self.bucket();
        let present = self.shared.row(
            self.ledger,
            record.epoch,
            (self.partition, bucket),
            &record.key,
        )?;
        let present = present.max(in_batch);
        if present >= Some(rank) {
            return Ok(None);
        }
        let index = if record.epoch > current.epoch {
            IndexChange::Forget { to: record.epoch }
        } else {
            let replaced = present.map_or(0, |present| self.hash(present));
            IndexChange::Row {
                bucket,
                delta: self.hash(rank).wrapping_sub(replaced),
                is_new: present.is_none(),
            }
        };
        Ok(Some(self.accept(What::RowAlone, digest, index)))
    }

    fn accept(&self, what: What, digest: Digest, index: IndexChange) -> Accepted<'a> {
        Accepted {
            record: self.record,
            what,
            digest,
            partition: self.partition,
            index,
        }
    }

    fn bucket(&self) -> u16 {
        bucket_of(&self.record.key, self.shared.options.bucket_count)
    }

    fn hash(&self, (version, kind, digest): Rank) -> u128 {
        let seed = self.shared.options.row_seed;
        row_hash(seed, &self.record.key, version, digest, kind)
    }
}
