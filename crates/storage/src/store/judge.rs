//! Judging: what a record that comes in does, before anything is written.
//!
//! Three questions, in this order, about a record of epoch `e` in partition `p`, and the current record of
//! its key:
//!
//! 1. **Is `e` settled in `p`?** Then the record comes in only if it, or something newer, is there already;
//!    and it changes nothing. Whatever is missing below the watermark was deleted or overwritten, everywhere
//!    (traps T9-T12). For a partition that is being filled by a stream, what its source had settled counts
//!    as settled for everybody but the stream. One thing passes: what a majority of replicas with exactly
//!    the same past holds and this one has lost ([`Purpose::Rebuild`]; the `scrub` module proves why).
//! 2. **Is `e` closed, and is this a client's write or a hint?** Then only the very version that is there
//!    is answered as done (trap T8). Closed is thereby *sealed*: what no replica holds can no longer come in;
//!    repair and sync bring what some replica holds.
//! 3. **Does it win**, by the merge law? A winner is written with its row. A loser leaves its row alone if
//!    it is the greatest of its key in its epoch, which a look-up in the rows tells (trap T13).
//!
//! The look-up is not on the way of a usual write: a winner never needs one (see
//! [`crate::epoch_index`], invariant 3), nor does a loser of the current record's epoch. Nor is anything
//! hashed there: that is left to the flush, but for a record that replaces one of the same epoch in an
//! older table.

use std::cmp::Ordering;
use std::collections::HashMap;

use mds_types::mutation::{Mutation, is_on};
use mds_types::slot::partition_of;
use mds_types::{Epoch, Kind, PartitionId, Record, Version};

use super::shared::Shared;
use super::{Merged, PartitionState, Purpose, RowMerged, StoreError, Tables};
use crate::cache::Ticket;
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
    /// Its row alone, which has this rank.
    RowAlone(Rank),
    /// That it is gone.
    Removal,
}

/// A record that leaves a trace.
pub(super) struct Accepted<'a> {
    /// Of a row alone and a removal only key, version and epoch count.
    pub(super) record: &'a Record,
    pub(super) what: What,
    pub(super) partition: PartitionId,
    pub(super) index: IndexChange,
}

impl Accepted<'_> {
    fn rank(&self) -> Rank {
        match self.what {
            What::RowAlone(rank) => rank,
            What::Record | What::Removal => self.record.rank(),
        }
    }
}

/// The current record of a key, and where it is.
enum Current<'a> {
    /// In the table that is being written. This much of it is enough, nearly always.
    Active { version: Version, epoch: Epoch },
    /// In an older one.
    Older(Entry),
    /// In the engine, or the cache of what it holds.
    Engine(Box<Record>),
    /// Earlier in the batch.
    Batch(&'a Record),
}

impl Current<'_> {
    fn version(&self) -> Version {
        match self {
            Current::Active { version, .. } => *version,
            Current::Older(entry) => entry.version,
            Current::Engine(record) => record.version,
            Current::Batch(record) => record.version,
        }
    }

    fn epoch(&self) -> Epoch {
        match self {
            Current::Active { epoch, .. } => *epoch,
            Current::Older(entry) => entry.epoch,
            Current::Engine(record) => record.epoch,
            Current::Batch(record) => record.epoch,
        }
    }

    /// Digests the value.
    fn rank(&self, shared: &Shared, key: &[u8]) -> Result<Rank, StoreError> {
        match self {
            Current::Active { .. } => {
                let entry = shared.tables.read().active.get(key).cloned();
                let what = "a record has left the active table";
                let entry = entry.ok_or_else(|| StoreError::corrupt("table", 0, what))?;
                Ok(shared.decode(&entry)?.rank())
            }
            Current::Older(entry) => Ok(shared.decode(entry)?.rank()),
            Current::Engine(record) => Ok(record.rank()),
            Current::Batch(record) => Ok(record.rank()),
        }
    }

    /// Whether its row is, or will be, in the table that is being written.
    fn is_in_active(&self) -> bool {
        matches!(self, Current::Active { .. } | Current::Batch(_))
    }
}

/// What the tables say of a key.
enum InTables {
    Active(Version, Epoch),
    Older(Entry),
    /// There is no record of it any more.
    Gone,
    /// The cache and the engine have to be asked.
    No,
}

/// Compares each record with what is there: earlier in the batch, in the tables, in the engine. Returns
/// what became of each, and what is to be written, into the table that is active now.
pub(super) fn judge<'a>(
    shared: &Shared,
    merges: impl ExactSizeIterator<Item = (Purpose, &'a Record)> + Clone,
) -> Result<(Vec<Merged>, Vec<Accepted<'a>>), StoreError> {
    let ledger = shared.ledger.get();
    let ticket = shared.cache.ticket();
    let count = merges.len();
    // Nothing enters the tables but through this thread, and the flusher moves records down
    // only: what is not in the tables now is in the engine, or nowhere.
    let in_tables: Vec<InTables> = {
        let tables = shared.tables.read();
        let merges = merges.clone();
        merges.map(|(_, record)| tables.find(&record.key)).collect()
    };
    let mut batch: HashMap<&[u8], &'a Record, KeyHashing> = HashMap::with_hasher(shared.hashing());
    let mut outcomes = Vec::with_capacity(count);
    let mut accepted: Vec<Accepted<'a>> = Vec::with_capacity(count);
    for ((purpose, record), in_tables) in merges.zip(in_tables) {
        let partition = partition_of(&record.key, shared.options.partition_count);
        let current = match batch.get(&record.key[..]) {
            Some(earlier) => Some(Current::Batch(earlier)),
            None => {
                // The engine has lost it; what is in memory hides that.
                if matches!(purpose, Purpose::Rebuild { .. }) {
                    shared.cache.forget(&record.key);
                }
                current_of(shared, ticket, partition, &record.key, in_tables)?
            }
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
                batch.insert(&record.key, record);
            }
            accepted.push(written);
        }
    }
    Ok((outcomes, accepted))
}

/// Judges rows that another replica has, the records of which it may not have any more: `headers` have their
/// keys, versions and epochs, `ranks` what decides.
pub(super) fn judge_rows<'a>(
    shared: &Shared,
    headers: &'a [Record],
    ranks: &[Rank],
) -> Result<(Vec<RowMerged>, Vec<Accepted<'a>>), StoreError> {
    let ledger = shared.ledger.get();
    let ticket = shared.cache.ticket();
    let mut outcomes = Vec::with_capacity(headers.len());
    let mut accepted: Vec<Accepted<'a>> = Vec::new();
    for (header, rank) in headers.iter().zip(ranks) {
        let partition = partition_of(&header.key, shared.options.partition_count);
        let arriving = Arriving {
            shared,
            ledger: &ledger,
            purpose: Purpose::Sync,
            record: header,
            partition,
        };
        let in_tables = shared.tables.read().find(&header.key);
        let current = current_of(shared, ticket, partition, &header.key, in_tables)?;
        let (outcome, row) = arriving.judge_row(*rank, current.as_ref(), &accepted)?;
        outcomes.push(outcome);
        accepted.extend(row);
    }
    Ok((outcomes, accepted))
}

/// The current record of a key, which is not in the batch.
fn current_of<'a>(
    shared: &Shared,
    ticket: Ticket,
    partition: PartitionId,
    key: &[u8],
    in_tables: InTables,
) -> Result<Option<Current<'a>>, StoreError> {
    match in_tables {
        InTables::Gone => Ok(None),
        InTables::Active(version, epoch) => Ok(Some(Current::Active { version, epoch })),
        InTables::Older(entry) => Ok(Some(Current::Older(entry))),
        InTables::No => {
            let record = shared.get_beneath_tables(ticket, partition, key)?;
            Ok(record.map(|record| Current::Engine(Box::new(record))))
        }
    }
}

impl Tables {
    fn find(&self, key: &[u8]) -> InTables {
        if let Some(entry) = self.active.get(key) {
            return match entry.gone {
                true => InTables::Gone,
                false => InTables::Active(entry.version, entry.epoch),
            };
        }
        match self.get_older(key) {
            Some(entry) if entry.gone => InTables::Gone,
            Some(entry) => InTables::Older(entry.clone()),
            None => InTables::No,
        }
    }
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
        current: Option<Current<'_>>,
        earlier: &[Accepted<'a>],
    ) -> Result<(Merged, Option<Accepted<'a>>), StoreError> {
        let order = self.order(current.as_ref())?;
        if let Some(refusal) = self.refusal(order, current.as_ref()) {
            return Ok((refusal, None));
        }
        match (order, current) {
            (Ordering::Greater, current) => {
                let index = self.change_of_winner(current.as_ref())?;
                Ok((Merged::Applied, Some(self.accept(What::Record, index))))
            }
            (Ordering::Less, Some(current)) => {
                let rank = || self.record.rank();
                Ok((Merged::Superseded, self.row_alone(rank, &current, earlier)?))
            }
            (Ordering::Less | Ordering::Equal, _) => Ok((Merged::Same, None)),
        }
    }

    /// A row may come in if its version, or a newer one, is there.
    fn judge_row(
        &self,
        rank: Rank,
        current: Option<&Current<'_>>,
        earlier: &[Accepted<'a>],
    ) -> Result<(RowMerged, Option<Accepted<'a>>), StoreError> {
        if !self.ledger.partition(self.partition).is_indexed() {
            return Ok((RowMerged::NotHere, None));
        }
        if !self.leaves_rows() {
            return Ok((RowMerged::Settled, None));
        }
        let Some(current) = current else {
            return Ok((RowMerged::RecordMissing, None));
        };
        let is_there = match self.record.version.cmp(&current.version()) {
            Ordering::Equal => rank <= self.rank_of(current)?,
            order => order == Ordering::Less,
        };
        if !is_there {
            return Ok((RowMerged::RecordMissing, None));
        }
        let row = self.row_alone(|| rank, current, earlier)?;
        let outcome = match row {
            Some(_) => RowMerged::Logged,
            None => RowMerged::Present,
        };
        Ok((outcome, row))
    }

    /// The merge law, against what is there.
    fn order(&self, current: Option<&Current<'_>>) -> Result<Ordering, StoreError> {
        let Some(current) = current else {
            return Ok(Ordering::Greater);
        };
        if is_on(Mutation::MergeByArrival) {
            return Ok(Ordering::Greater);
        }
        match self.record.version.cmp(&current.version()) {
            Ordering::Equal => Ok(self.record.rank().cmp(&self.rank_of(current)?)),
            order => Ok(order),
        }
    }

    /// Why the record may not come in, if so.
    fn refusal(&self, order: Ordering, current: Option<&Current<'_>>) -> Option<Merged> {
        let (ledger, epoch) = (self.ledger, self.record.epoch);
        if let Purpose::Rebuild { settled, chain } = self.purpose {
            return self.refusal_of_rebuild(order, current, (settled, chain));
        }
        if epoch >= ledger.free_from && !ledger.is_some_away {
            return None;
        }
        let entry = ledger.partition(self.partition);
        if !entry.is_indexed() {
            return Some(Merged::NotHere);
        }
        let watermark = match self.purpose {
            Purpose::Sync => entry.settled,
            // A rebuild was dealt with above.
            Purpose::Write | Purpose::Hint | Purpose::Repair | Purpose::Rebuild { .. } => {
                entry.no_new_rows()
            }
        };
        if has_passed(watermark, epoch) {
            if is_on(Mutation::MergesBelowWatermark) {
                return None;
            }
            return (order == Ordering::Greater).then_some(Merged::Settled);
        }
        let is_sealed = matches!(self.purpose, Purpose::Write | Purpose::Hint)
            && has_passed(ledger.closed, epoch)
            && !is_on(Mutation::ClosedEpochOpen);
        let is_there = order != Ordering::Greater
            && current.is_some_and(|current| current.version() == self.record.version);
        (is_sealed && !is_there).then_some(Merged::EpochClosed)
    }

    /// The same for what this replica is said to have lost below its watermark. The law is proved in the
    /// `scrub` module: both have exactly the same past, and the record is alive, or takes the place of something
    /// smaller, which cannot be there but by damage.
    fn refusal_of_rebuild(
        &self,
        order: Ordering,
        current: Option<&Current<'_>>,
        (settled, chain): (Epoch, u128),
    ) -> Option<Merged> {
        let entry = self.ledger.partition(self.partition);
        if entry.state != PartitionState::Held {
            return Some(Merged::NotHere);
        }
        let is_same_past = (entry.settled, entry.chain) == (settled, chain);
        let is_of_it = has_passed(entry.settled, self.record.epoch)
            && (is_same_past || is_on(Mutation::RebuildResurrects));
        let says_something = self.record.kind() != Kind::Tombstone || current.is_some();
        let is_lost = is_of_it && says_something;
        (order == Ordering::Greater && !is_lost).then_some(Merged::Settled)
    }

    /// Whether rows of the record's epoch are still taken.
    fn leaves_rows(&self) -> bool {
        let epoch = self.record.epoch;
        let no_new_rows = || self.ledger.partition(self.partition).no_new_rows();
        epoch >= self.ledger.free_from || !has_passed(no_new_rows(), epoch)
    }

    /// What its row does to the hashes in memory, beyond being in the active table now.
    ///
    /// Where no record of the key is current, its row is new, unless a disk has lost the record: a collected
    /// version lies below the floor of all epochs that may still have rows, so a row of its key in one of them
    /// would be greater, and current. After such a loss the row counts twice; the scrub finds that too, and
    /// has the hashes rebuilt.
    fn change_of_winner(&self, current: Option<&Current<'_>>) -> Result<IndexChange, StoreError> {
        let epoch = self.record.epoch;
        let Some(current) = current.filter(|_| epoch >= self.ledger.free_from) else {
            return Ok(self.change_in_closed(current.map_or(epoch, Current::epoch)));
        };
        match epoch.cmp(&current.epoch()) {
            Ordering::Less => Ok(IndexChange::Forget {
                to: current.epoch(),
            }),
            Ordering::Equal if !current.is_in_active() => Ok(IndexChange::Replaces {
                bucket: self.bucket(),
                hash: self.hash(self.rank_of(current)?),
            }),
            Ordering::Equal | Ordering::Greater => Ok(IndexChange::Nothing),
        }
    }

    /// The same in an epoch that may be closed: what is known of it is not kept up to date.
    fn change_in_closed(&self, current: Epoch) -> IndexChange {
        let epoch = self.record.epoch;
        let is_known_to_change = self.leaves_rows() && epoch < self.ledger.free_from;
        // Even a record that leaves no row: there may be rows of later epochs than that of what is current
        // now.
        match is_known_to_change || epoch < current {
            true => IndexChange::Forget {
                to: current.max(epoch),
            },
            false => IndexChange::Nothing,
        }
    }

    /// The row of a record that has lost to one of another epoch, unless the index has it, or a greater one.
    fn row_alone(
        &self,
        rank: impl FnOnce() -> Rank,
        current: &Current<'_>,
        earlier: &[Accepted<'a>],
    ) -> Result<Option<Accepted<'a>>, StoreError> {
        let record = self.record;
        if current.epoch() == record.epoch
            || !self.leaves_rows()
            || is_on(Mutation::SupersededNotLogged)
        {
            return Ok(None);
        }
        let rank = rank();
        let in_batch = earlier
            .iter()
            .filter(|other| other.record.epoch == record.epoch && other.record.key == record.key)
            .map(Accepted::rank)
            .max();
        let place = (self.partition, self.bucket());
        let present = self
            .shared
            .row(self.ledger, record.epoch, place, &record.key)?;
        let in_active = present.in_active.max(in_batch);
        if in_active.max(present.elsewhere) >= Some(rank) {
            return Ok(None);
        }
        let index = if record.epoch > current.epoch() || record.epoch < self.ledger.free_from {
            IndexChange::Forget { to: record.epoch }
        } else {
            match (in_active, present.elsewhere) {
                (None, Some(replaced)) => IndexChange::Replaces {
                    bucket: place.1,
                    hash: self.hash(replaced),
                },
                _ => IndexChange::Nothing,
            }
        };
        Ok(Some(self.accept(What::RowAlone(rank), index)))
    }

    fn rank_of(&self, current: &Current<'_>) -> Result<Rank, StoreError> {
        current.rank(self.shared, &self.record.key)
    }

    fn accept(&self, what: What, index: IndexChange) -> Accepted<'a> {
        Accepted {
            record: self.record,
            what,
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
