//! A table: the records of one log segment, in memory, until the engine holds them.
//!
//! A table shares the memory of what was appended to the log: each batch is encoded once, into one
//! buffer, and keys and records here are slices of it. So a table's memory is bounded by its
//! segment's bytes plus about 150 bytes for each distinct key, and nothing is copied again on the
//! way to the engine.
//!
//! Point lookups go through a hash map that is never iterated. The entries of each partition are
//! chained, so that a partition can be scanned without a second index; order is made when asked
//! for.
//!
//! The epoch index needs every (epoch, key) that was *written*, not only what is current: the row of a
//! record that is replaced by one of another epoch is therefore kept *aside*, with the rows of versions
//! that never were current.
//!
//! A record that was collected leaves an entry that is *gone*: it hides what the engine still holds of
//! its key, until the flush removes that.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher};

use bytes::Bytes;
use mds_types::record::HEADER_BYTES;
use mds_types::{DecodeError, Epoch, PartitionId, Record, Version};
use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::epoch_index::Leaves;
use crate::row::{IndexRow, Rank, sort_rows};

/// No entry.
const NONE: u32 = u32::MAX;

/// A record as a table holds it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The record's binary form.
    pub(crate) encoded: Bytes,
    pub(crate) version: Version,
    pub(crate) partition: PartitionId,
    pub(crate) epoch: Epoch,
    /// Whether the record was collected: there is none of this key any more.
    pub(crate) gone: bool,
    key_len: u32,
    /// The next older entry of the same partition.
    previous: u32,
}

impl Entry {
    pub(crate) fn key(&self) -> &[u8] {
        &self.encoded[HEADER_BYTES..HEADER_BYTES + self.key_len as usize]
    }

    /// The key, sharing the record's memory.
    pub(crate) fn key_bytes(&self) -> Bytes {
        self.encoded
            .slice(HEADER_BYTES..HEADER_BYTES + self.key_len as usize)
    }

    pub(crate) fn record(&self) -> Result<Record, DecodeError> {
        Record::decode(self.encoded.clone())
    }

    /// What it leaves in the index of its epoch.
    fn written(&self) -> Written {
        Written {
            partition: self.partition,
            epoch: self.epoch,
            key: self.key_bytes(),
            version: WrittenVersion::Record(self.encoded.clone()),
        }
    }
}

/// Something that was written, of which a row can be made. Making it digests the value, so it is put off
/// until somebody asks.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) partition: PartitionId,
    pub(crate) epoch: Epoch,
    key: Bytes,
    version: WrittenVersion,
}

#[derive(Clone, Debug)]
enum WrittenVersion {
    /// A record, in its binary form.
    Record(Bytes),
    /// A row alone.
    Rank(Rank),
}

impl Written {
    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    fn rank(&self) -> Result<Rank, DecodeError> {
        match &self.version {
            WrittenVersion::Record(encoded) => Ok(Record::decode(encoded.clone())?.rank()),
            WrittenVersion::Rank(rank) => Ok(*rank),
        }
    }

    pub(crate) fn row(&self, bucket_count: u16) -> Result<IndexRow, DecodeError> {
        let (key, rank) = (self.key.clone(), self.rank()?);
        Ok(IndexRow::new(self.partition, bucket_count, key, rank))
    }
}

/// The leaves of what one table holds of a partition and an epoch.
pub(crate) fn leaves_of(
    written: impl Iterator<Item = Written>,
    bucket_count: u16,
    row_seed: u64,
) -> Result<Leaves, DecodeError> {
    let rows: Result<Vec<IndexRow>, DecodeError> =
        written.map(|written| written.row(bucket_count)).collect();
    let mut rows = rows?;
    // Of each key the greatest.
    sort_rows(&mut rows);
    Ok(Leaves::of(&rows, bucket_count, row_seed))
}

/// A row that was put aside.
#[derive(Clone, Debug)]
struct Aside {
    written: Written,
    /// The next older one of the same key.
    previous: u32,
    /// The next older one of the same partition.
    previous_here: u32,
}

/// The records of one segment.
#[derive(Debug)]
pub(crate) struct Table {
    segment: u64,
    by_key: HashMap<Bytes, u32, KeyHashing>,
    entries: Vec<Entry>,
    /// The newest entry of each partition.
    newest: Vec<u32>,
    /// Rows of versions that are not current here: replaced by one of another epoch, or beaten before
    /// they came.
    aside: Vec<Aside>,
    /// The newest in `aside` of each partition.
    newest_aside: Vec<u32>,
    /// The newest in `aside` of each key.
    aside_by_key: HashMap<Bytes, u32, KeyHashing>,
    bytes: usize,
    /// Hashes of rows, once the table is frozen and somebody has asked: several replicas will, and so will the settling.
    leaves: Mutex<BTreeMap<(Epoch, PartitionId), Leaves>>,
}

impl Table {
    pub(crate) fn new(segment: u64, partition_count: u16, hash_seed: u64) -> Table {
        Table {
            segment,
            by_key: HashMap::with_hasher(KeyHashing(hash_seed)),
            entries: Vec::new(),
            newest: vec![NONE; usize::from(partition_count)],
            aside: Vec::new(),
            newest_aside: vec![NONE; usize::from(partition_count)],
            aside_by_key: HashMap::with_hasher(KeyHashing(hash_seed)),
            bytes: 0,
            leaves: Mutex::default(),
        }
    }

    /// The segment whose records these are.
    pub(crate) fn segment(&self) -> u64 {
        self.segment
    }

    /// Distinct keys.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.aside.is_empty()
    }

    /// Whether anything of a partition is here.
    pub(crate) fn holds(&self, partition: PartitionId) -> bool {
        self.partition(partition).next().is_some() || self.aside_of(partition).next().is_some()
    }

    /// Bytes of all records put in, replaced ones included, as their memory is shared.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.by_key
            .get(key)
            .map(|&index| &self.entries[index as usize])
    }

    /// Puts a record that won over whatever was here; `encoded` is its binary form.
    pub(crate) fn put(&mut self, partition: PartitionId, record: &Record, encoded: Bytes) {
        self.enter(partition, record, encoded, false);
    }

    /// Says that the record of this key is gone; `encoded` is the binary form of `header`, which is that
    /// record without its value.
    pub(crate) fn put_gone(&mut self, partition: PartitionId, header: &Record, encoded: Bytes) {
        self.enter(partition, header, encoded, true);
    }

    /// Puts the row of a version that is not current.
    pub(crate) fn put_aside(
        &mut self,
        partition: PartitionId,
        epoch: Epoch,
        key: Bytes,
        rank: Rank,
    ) {
        self.bytes += key.len();
        self.keep_aside(Written {
            partition,
            epoch,
            key,
            version: WrittenVersion::Rank(rank),
        });
    }

    fn keep_aside(&mut self, written: Written) {
        let index = self.aside.len() as u32;
        let previous = self.aside_by_key.insert(written.key.clone(), index);
        let head = &mut self.newest_aside[usize::from(written.partition.0)];
        let previous_here = std::mem::replace(head, index);
        self.aside.push(Aside {
            written,
            previous: previous.unwrap_or(NONE),
            previous_here,
        });
    }

    fn enter(&mut self, partition: PartitionId, record: &Record, encoded: Bytes, gone: bool) {
        self.bytes += encoded.len();
        let key = encoded.slice(HEADER_BYTES..HEADER_BYTES + record.key.len());
        let head = &mut self.newest[usize::from(partition.0)];
        let mut entry = Entry {
            encoded,
            version: record.version,
            partition,
            epoch: record.epoch,
            gone,
            key_len: record.key.len() as u32,
            previous: *head,
        };
        if let Some(&index) = self.by_key.get(&key) {
            let old = &mut self.entries[index as usize];
            entry.previous = old.previous;
            let old = std::mem::replace(old, entry);
            if !old.gone && (gone || old.epoch != record.epoch) {
                self.keep_aside(old.written());
            }
            return;
        }
        let index = self.entries.len() as u32;
        *head = index;
        self.entries.push(entry);
        self.by_key.insert(key, index);
    }

    /// The entries of a partition, in no useful order.
    pub(crate) fn partition(&self, partition: PartitionId) -> impl Iterator<Item = &Entry> {
        let mut next = self
            .newest
            .get(usize::from(partition.0))
            .copied()
            .unwrap_or(NONE);
        std::iter::from_fn(move || {
            let entry = self.entries.get(next as usize)?;
            next = entry.previous;
            Some(entry)
        })
    }

    /// The rows of a partition that were put aside, in no useful order.
    fn aside_of(&self, partition: PartitionId) -> impl Iterator<Item = &Written> {
        let newest = self.newest_aside.get(usize::from(partition.0));
        let mut next = newest.copied().unwrap_or(NONE);
        std::iter::from_fn(move || {
            let aside = self.aside.get(next as usize)?;
            next = aside.previous_here;
            Some(&aside.written)
        })
    }

    /// The first `limit` entries of a partition behind the key `after`, in no useful order, and
    /// whether there are more. Copies no record.
    pub(crate) fn first(
        &self,
        partition: PartitionId,
        after: Option<&[u8]>,
        limit: usize,
    ) -> (Vec<Entry>, bool) {
        let mut found: Vec<&Entry> = self
            .partition(partition)
            .filter(|entry| after.is_none_or(|after| entry.key() > after))
            .collect();
        let more = found.len() > limit;
        if more {
            found.select_nth_unstable_by(limit, |a, b| a.key().cmp(b.key()));
            found.truncate(limit);
        }
        (found.into_iter().cloned().collect(), more)
    }

    /// All entries, by (partition, key): the engine's order.
    pub(crate) fn sorted(&self) -> impl Iterator<Item = &Entry> {
        // Partition by partition: whoever goes through a large table can pause between small sorts.
        self.partitions().flat_map(|partition| {
            let mut entries: Vec<&Entry> = self.partition(partition).collect();
            entries.sort_unstable_by_key(|entry| entry.key());
            entries
        })
    }

    /// All partitions that there could be, ascending.
    pub(crate) fn partitions(&self) -> impl Iterator<Item = PartitionId> + use<> {
        // As many as an id has room for, at most.
        (0..self.newest.len() as u16).map(PartitionId)
    }

    /// All entries, in no order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The row of a key in an epoch, if this table has one: the rank of its version.
    pub(crate) fn row(&self, epoch: Epoch, key: &[u8]) -> Result<Option<Rank>, DecodeError> {
        let current = self.get(key);
        let current = current.filter(|entry| !entry.gone && entry.epoch == epoch);
        let current = current.map(|entry| entry.written().rank());
        let mut greatest = current.transpose()?;
        let mut next = self.aside_by_key.get(key).copied().unwrap_or(NONE);
        while let Some(Aside {
            written, previous, ..
        }) = self.aside.get(next as usize)
        {
            if written.epoch == epoch {
                greatest = greatest.max(Some(written.rank()?));
            }
            next = *previous;
        }
        Ok(greatest)
    }

    /// What was written, of one epoch or all, and of one partition or all, in no useful order. Of a key and
    /// epoch there may be several: the greatest counts.
    pub(crate) fn written(
        &self,
        epoch: Option<Epoch>,
        partition: Option<PartitionId>,
    ) -> impl Iterator<Item = Written> {
        let (all, one) = match partition {
            None => (Some(self.entries.iter()), None),
            Some(partition) => (None, Some(self.partition(partition))),
        };
        let current = all.into_iter().flatten().chain(one.into_iter().flatten());
        let is_of = move |of: Epoch| epoch.is_none_or(|epoch| epoch == of);
        let current = current.filter(move |entry| !entry.gone && is_of(entry.epoch));
        let (all, one) = match partition {
            None => (Some(self.aside.iter().map(|aside| &aside.written)), None),
            Some(partition) => (None, Some(self.aside_of(partition))),
        };
        let aside = all.into_iter().flatten().chain(one.into_iter().flatten());
        let aside = aside.filter(move |written| is_of(written.epoch));
        current.map(Entry::written).chain(aside.cloned())
    }

    /// The leaves of a partition's rows in an epoch, of each key the greatest. Only of a frozen table: they are
    /// remembered.
    pub(crate) fn frozen_leaves(
        &self,
        epoch: Epoch,
        partition: PartitionId,
        bucket_count: u16,
        row_seed: u64,
    ) -> Result<Leaves, DecodeError> {
        if let Some(leaves) = self.leaves.lock().get(&(epoch, partition)) {
            return Ok(leaves.clone());
        }
        let leaves = leaves_of(
            self.written(Some(epoch), Some(partition)),
            bucket_count,
            row_seed,
        )?;
        let known = leaves.clone();
        self.leaves.lock().insert((epoch, partition), known);
        Ok(leaves)
    }

    /// The epochs of all rows.
    pub(crate) fn epochs(&self) -> impl Iterator<Item = Epoch> {
        let current = self.entries.iter().filter(|entry| !entry.gone);
        let aside = self.aside.iter().map(|aside| aside.written.epoch);
        current.map(|entry| entry.epoch).chain(aside)
    }
}

/// Hashes keys with xxh3, seeded, so that nobody who does not know the seed can choose keys that
/// collide.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyHashing(pub(crate) u64);

impl BuildHasher for KeyHashing {
    type Hasher = KeyHasher;

    fn build_hasher(&self) -> KeyHasher {
        KeyHasher(self.0)
    }
}

pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64_with_seed(bytes, self.0);
    }

    fn write_usize(&mut self, _length: usize) {
        // The length that a slice announces: xxh3 hashes it anyway.
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mds_types::{Body, Hlc, NodeId};

    fn put(table: &mut Table, partition: u16, key: &str, hlc: u64, epoch: u64) {
        let record = Record {
            key: Bytes::copy_from_slice(key.as_bytes()),
            version: Version {
                hlc: Hlc(hlc),
                node: NodeId(1),
            },
            epoch: Epoch(epoch),
            expires_at_ms: None,
            body: Body::Value(Bytes::from(format!("{key}-{hlc}"))),
        };
        let mut encoded = Vec::new();
        record.encode(&mut encoded);
        table.put(PartitionId(partition), &record, Bytes::from(encoded));
    }

    fn keys(mut entries: Vec<Entry>) -> Vec<String> {
        entries.sort_by(|a, b| a.key().cmp(b.key()));
        let text = |entry: &Entry| String::from_utf8_lossy(entry.key()).into_owned();
        entries.iter().map(text).collect()
    }

    #[test]
    fn the_last_put_of_a_key_is_found_and_partitions_stay_apart() {
        let mut table = Table::new(7, 4, 99);
        for (partition, key, hlc) in [(0, "b", 1), (1, "x", 2), (0, "a", 3), (0, "b", 4)] {
            put(&mut table, partition, key, hlc, 1);
        }
        assert_eq!(table.len(), 3);
        let record = table.get(b"b").unwrap().record().unwrap();
        assert_eq!(record.value().unwrap(), "b-4");
        assert!(table.get(b"c").is_none());
        let first = |partition, after, limit| {
            let (entries, more) = table.first(PartitionId(partition), after, limit);
            (keys(entries).concat(), more)
        };
        assert_eq!(first(0, None, 10), ("ab".into(), false));
        assert_eq!(first(0, None, 2), ("ab".into(), false));
        assert_eq!(first(0, None, 1), ("a".into(), true));
        assert_eq!(first(0, Some(b"a"), 10), ("b".into(), false));
        assert_eq!(first(0, Some(b"b"), 10), (String::new(), false));
        assert_eq!(first(1, None, 10), ("x".into(), false));
        assert_eq!(first(2, None, 10), (String::new(), false));
        assert_eq!(first(9, None, 10), (String::new(), false));
        let sorted = table.sorted().cloned();
        let order: Vec<_> = sorted.map(|e| (e.partition.0, e.key().to_vec())).collect();
        assert_eq!(
            order,
            [(0, b"a".to_vec()), (0, b"b".to_vec()), (1, b"x".to_vec())]
        );
    }

    #[test]
    fn a_replaced_record_of_another_epoch_is_still_among_the_written() {
        let mut table = Table::new(7, 4, 99);
        for (hlc, epoch) in [(1, 5), (2, 5), (3, 6), (4, 5)] {
            put(&mut table, 2, "k", hlc, epoch);
        }
        let rows = |table: &Table, only| {
            let written = table.written(None, only);
            let hlc = |one: &Written| one.row(64).unwrap().version.hlc.0;
            let mut rows: Vec<_> = written.map(|one| (one.epoch.0, hlc(&one))).collect();
            rows.sort_unstable();
            rows
        };
        assert_eq!(rows(&table, Some(PartitionId(2))), [(5, 2), (5, 4), (6, 3)]);
        assert_eq!(table.written(None, None).count(), 3);
        assert_eq!(table.written(None, Some(PartitionId(1))).count(), 0);
        let row = |epoch| table.row(Epoch(epoch), b"k").unwrap();
        let hlc = |epoch| row(epoch).map(|rank| rank.0.hlc.0);
        let count = |epoch| table.written(Some(Epoch(epoch)), None).count();
        assert_eq!((count(4), count(5), count(6)), (0, 2, 1));
        assert_eq!((hlc(4), hlc(5), hlc(6)), (None, Some(4), Some(3)));
    }

    #[test]
    fn what_is_gone_leaves_its_row_and_hides_its_key() {
        let mut table = Table::new(7, 4, 99);
        put(&mut table, 2, "k", 3, 5);
        let header = Record {
            body: Body::Tombstone,
            ..table.get(b"k").unwrap().record().unwrap()
        };
        let mut encoded = Vec::new();
        header.encode(&mut encoded);
        table.put_gone(PartitionId(2), &header, Bytes::from(encoded));
        assert!(table.get(b"k").unwrap().gone);
        assert_eq!(table.epochs().collect::<Vec<_>>(), [Epoch(5)]);
        assert_eq!(table.written(None, None).count(), 1);
        let row = table.row(Epoch(5), b"k").unwrap();
        assert_eq!(row.unwrap().0.hlc, Hlc(3));
        put(&mut table, 2, "k", 9, 7);
        assert!(!table.get(b"k").unwrap().gone);
        assert_eq!(table.written(None, None).count(), 2);
    }
}
