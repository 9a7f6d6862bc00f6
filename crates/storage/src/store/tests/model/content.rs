//! The plain model: what a replica holds, and the rules of the one door, without any cleverness.

use std::collections::BTreeMap;

use bytes::Bytes;
use mds_types::slot::partition_of;
use mds_types::{Epoch, Hlc, PartitionId, Record};

use super::{DEAD_BY_MS, PARTITIONS, floor};
use crate::ledger::{Ledger, has_passed};
use crate::row::{IndexRow, Rank};
use crate::store::{Leaves, Merged, PartitionState, Purpose, RowMerged};

/// What a store holds.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Content {
    pub(super) records: BTreeMap<Bytes, Record>,
    /// The greatest version written of each key in each epoch.
    pub(super) rows: BTreeMap<(Epoch, Bytes), Rank>,
}

/// `key@hlc.node=length`, and `-` for a tombstone's length.
pub(super) fn brief(record: &Record) -> String {
    let key = String::from_utf8_lossy(&record.key);
    let (hlc, node) = (record.version.hlc.0, record.version.node.0);
    let length = record
        .value()
        .map_or("-".into(), |value| value.len().to_string());
    format!("{}:{key}@{hlc}.{node}={length}", record.epoch)
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let records: Vec<_> = self.records.values().map(brief).collect();
        let row = |((epoch, key), rank): (&(Epoch, Bytes), &Rank)| {
            let key = String::from_utf8_lossy(key);
            format!("{epoch}/{key}@{}.{}", rank.0.hlc.0, rank.0.node.0)
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        write!(f, "records {records:?} rows {rows:?}")
    }
}

pub(super) fn partition(key: &[u8]) -> PartitionId {
    partition_of(key, PARTITIONS)
}

fn rank(record: &Record) -> Rank {
    (record.version, record.kind(), record.digest())
}

/// What streams bring is settled at their source.
pub(super) fn base(ledger: &Ledger, partition: PartitionId) -> Epoch {
    let entry = ledger.partition(partition);
    match entry.state {
        PartitionState::Streaming { settled, .. } => settled.max(entry.settled),
        _ => entry.settled,
    }
}

pub(super) fn is_here(ledger: &Ledger, partition: PartitionId) -> bool {
    !matches!(
        ledger.partition(partition).state,
        PartitionState::Wiping | PartitionState::Absent
    )
}

/// Whether the record may have been collected, or may be at any time.
pub(super) fn may_be_gone(ledger: &Ledger, record: &Record) -> bool {
    let settled = ledger.partition(partition(&record.key)).settled;
    let is_dead = record.value().is_none()
        || record
            .expires_at_ms
            .is_some_and(|at_ms| at_ms <= DEAD_BY_MS);
    is_dead && has_passed(settled, record.epoch) && record.version.hlc <= next_floor(settled)
}

/// The floor of the first epoch that is not settled.
pub(super) fn next_floor(settled: Epoch) -> Hlc {
    floor(Epoch(settled.0 + 1))
}

impl Content {
    /// What becomes of a record, and whether it leaves a trace.
    pub(super) fn judge(
        &self,
        ledger: &Ledger,
        purpose: Purpose,
        record: &Record,
    ) -> (Merged, bool) {
        let place = partition(&record.key);
        if !is_here(ledger, place) {
            return (Merged::NotHere, false);
        }
        let outcome = match self.records.get(&record.key) {
            None => Merged::Applied,
            Some(current) if record.supersedes(current) => Merged::Applied,
            Some(current) if record == current => Merged::Same,
            Some(_) => Merged::Superseded,
        };
        let watermark = match purpose {
            Purpose::Sync => ledger.partition(place).settled,
            _ => base(ledger, place),
        };
        if has_passed(watermark, record.epoch) {
            return match outcome {
                Merged::Applied => (Merged::Settled, false),
                there => (there, false),
            };
        }
        let is_new = matches!(purpose, Purpose::Write | Purpose::Hint);
        let current = self.records.get(&record.key);
        let is_there = outcome != Merged::Applied
            && current.is_some_and(|current| current.version == record.version);
        if is_new && has_passed(ledger.closed, record.epoch) && !is_there {
            return (Merged::EpochClosed, false);
        }
        let row = self.rows.get(&(record.epoch, record.key.clone()));
        let leaves_row =
            !has_passed(base(ledger, place), record.epoch) && row < Some(&rank(record));
        (outcome, outcome == Merged::Applied || leaves_row)
    }

    /// What becomes of another replica's row of this record.
    pub(super) fn judge_row(&self, ledger: &Ledger, record: &Record) -> RowMerged {
        let place = partition(&record.key);
        if !is_here(ledger, place) {
            return RowMerged::NotHere;
        }
        if has_passed(base(ledger, place), record.epoch) {
            return RowMerged::Settled;
        }
        match self.records.get(&record.key) {
            Some(current) if !record.supersedes(current) => {
                let row = self.rows.get(&(record.epoch, record.key.clone()));
                match row >= Some(&rank(record)) {
                    true => RowMerged::Present,
                    false => RowMerged::Logged,
                }
            }
            _ => RowMerged::RecordMissing,
        }
    }

    pub(super) fn apply(&mut self, record: &Record) {
        let current = self.records.get(&record.key);
        if current.is_none_or(|current| record.supersedes(current)) {
            self.records.insert(record.key.clone(), record.clone());
        }
        let row = self.rows.entry((record.epoch, record.key.clone()));
        let row = row.or_insert(rank(record));
        *row = rank(record).max(*row);
    }

    /// What has to be the same in model and store: without what may be gone or is being wiped, and without
    /// rows that nobody needs.
    pub(super) fn comparable(&self, ledger: &Ledger) -> Content {
        let mut content = self.clone();
        content
            .records
            .retain(|key, record| is_here(ledger, partition(key)) && !may_be_gone(ledger, record));
        content.rows.retain(|(epoch, key), _| {
            let place = partition(key);
            is_here(ledger, place) && !has_passed(base(ledger, place), *epoch)
        });
        content
    }

    /// Nothing is left of a partition.
    pub(super) fn wipe(&mut self, place: PartitionId) {
        self.records.retain(|key, _| partition(key) != place);
        self.rows.retain(|(_, key), _| partition(key) != place);
    }

    pub(super) fn leaves(
        &self,
        epoch: Epoch,
        place: PartitionId,
        bucket_count: u16,
        seed: u64,
    ) -> Leaves {
        let row = |((of, key), rank): (&(Epoch, Bytes), &Rank)| {
            let row = IndexRow::new(place, bucket_count, key.clone(), *rank);
            (*of == epoch && partition(key) == place).then_some(row)
        };
        let rows: Vec<IndexRow> = self.rows.iter().filter_map(row).collect();
        Leaves::of(&rows, bucket_count, seed)
    }
}
