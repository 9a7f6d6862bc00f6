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
//! The epoch index needs every (epoch, key) that was *written*, not only what is current: a record
//! that is replaced by one of another epoch is therefore kept aside for its index row.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

use bytes::Bytes;
use mds_types::record::HEADER_BYTES;
use mds_types::{DecodeError, Epoch, PartitionId, Record, Version};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// No entry.
const NONE: u32 = u32::MAX;

/// A record as a table holds it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The record's binary form.
    pub(crate) encoded: Bytes,
    pub(crate) version: Version,
    pub(crate) partition: PartitionId,
    epoch: Epoch,
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
}

/// The records of one segment.
#[derive(Debug)]
pub(crate) struct Table {
    segment: u64,
    by_key: HashMap<Bytes, u32, KeyHashing>,
    entries: Vec<Entry>,
    /// The newest entry of each partition.
    newest: Vec<u32>,
    /// Encoded records that one of another epoch replaced, with their partitions.
    displaced: Vec<(PartitionId, Bytes)>,
    bytes: usize,
}

impl Table {
    pub(crate) fn new(segment: u64, partition_count: u16, hash_seed: u64) -> Table {
        Table {
            segment,
            by_key: HashMap::with_hasher(KeyHashing(hash_seed)),
            entries: Vec::new(),
            newest: vec![NONE; usize::from(partition_count)],
            displaced: Vec::new(),
            bytes: 0,
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
        self.entries.is_empty()
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
        self.bytes += encoded.len();
        let key = encoded.slice(HEADER_BYTES..HEADER_BYTES + record.key.len());
        let head = &mut self.newest[usize::from(partition.0)];
        let mut entry = Entry {
            encoded,
            version: record.version,
            partition,
            epoch: record.epoch,
            key_len: record.key.len() as u32,
            previous: *head,
        };
        if let Some(&index) = self.by_key.get(&key) {
            let old = &mut self.entries[index as usize];
            entry.previous = old.previous;
            let old = std::mem::replace(old, entry);
            if old.epoch != record.epoch {
                self.displaced.push((partition, old.encoded));
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
    pub(crate) fn sorted(&self) -> Vec<&Entry> {
        let mut entries: Vec<&Entry> = self.entries.iter().collect();
        entries.sort_unstable_by(|a, b| (a.partition, a.key()).cmp(&(b.partition, b.key())));
        entries
    }

    /// Partition and binary form of what was written, of all partitions or one: for each key and
    /// epoch at least the last record, perhaps earlier ones too, in no useful order.
    pub(crate) fn written(
        &self,
        only: Option<PartitionId>,
    ) -> impl Iterator<Item = (PartitionId, &Bytes)> {
        let displaced = self.displaced.iter();
        let displaced = displaced.map(|(partition, encoded)| (*partition, encoded));
        let (all, one) = match only {
            None => (Some(self.entries.iter()), None),
            Some(partition) => (None, Some(self.partition(partition))),
        };
        let current = all.into_iter().flatten().chain(one.into_iter().flatten());
        current
            .map(|entry| (entry.partition, &entry.encoded))
            .chain(displaced.filter(move |(partition, _)| only.is_none_or(|p| p == *partition)))
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
        let sorted = table.sorted().into_iter().cloned();
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
        let mut written: Vec<(u64, u64)> = table
            .written(Some(PartitionId(2)))
            .map(|(_, encoded)| Record::decode(encoded.clone()).unwrap())
            .map(|record| (record.epoch.0, record.version.hlc.0))
            .collect();
        written.sort_unstable();
        assert_eq!(written, [(5, 2), (5, 4), (6, 3)]);
        assert_eq!(table.written(None).count(), 3);
        assert_eq!(table.written(Some(PartitionId(1))).count(), 0);
    }
}
