//! Records that the engine holds, kept in memory: what a point lookup asks after the tables and before the engine.
//!
//! A merge compares with the current record of its key, and a read answers with it. Right after a write that is
//! in a table; once the table is flushed, it would take a search of the engine, which costs five to twenty times as
//! much as all else that the store does for a write. So a table that goes leaves its records here, and so does a
//! lookup that had to ask the engine. What is asked for often stays (the replacement policy is that of S3-FIFO,
//! by `quick_cache`); scans go by without a trace.
//!
//! **Invariant.** For a key that is in no table, what is here is what the engine shows; or nothing is here. So:
//!
//! 1. A table's records are taken in, or what is older of them here goes, *before* the table goes, and after the engine
//!    shows them.
//! 2. What a lookup found in the engine is taken in only if no table was taken in, and nothing was forgotten, since
//!    before that lookup looked into the tables: it holds a [`Ticket`] of that moment.
//! 3. What is removed from the engine otherwise, when a partition is wiped, is forgotten afterwards; nothing comes in
//!    meanwhile.
//!
//! What it does not do: remember that a key is absent. And it believes the engine: what a disk loses without a trace can
//! still be here, so the scrub looks beneath it, and what is to be rebuilt is forgotten first.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher};

use bytes::Bytes;
use mds_types::mutation::{Mutation, is_on};
use mds_types::{PartitionId, Record};
use parking_lot::RwLock;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::table::Table;

/// Default bound, bytes.
pub(crate) const CACHE_BYTES_MAX: usize = 48 * 1024 * 1024;

/// A longer record is left to the engine, bytes: it would push out a hundred others, and finding it is the least of
/// what it costs.
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// What a record costs beyond its bytes: its name, its place in the queue, the allocation.
const OVERHEAD_BYTES: u64 = 112;

/// A guess, which sets how many are remembered that were pushed out.
const RECORD_BYTES_GUESS: usize = 256;

/// Locks; each guards its share of the bytes. One thread writes, a few read.
const SHARDS: usize = 8;

/// With less than this each, bytes, fewer locks are better than smaller shares.
const SHARD_BYTES_MIN: usize = 64 * 1024;

/// A moment, as far as the cache is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket(u64);

#[derive(Clone)]
struct Kept {
    partition: PartitionId,
    /// The record's binary form, in memory of its own: a slice would keep a whole batch, or block.
    encoded: Bytes,
}

type ByName = Cache<u128, Kept, Weigher, AsItIs, DefaultLifecycle<u128, Kept>>;

/// Records that the engine holds.
pub(crate) struct RecordCache {
    /// By the key's hash; the record says whose it is. None: no cache.
    kept: Option<ByName>,
    /// How often something was taken in or forgotten. Held while a lookup's finding comes in.
    changes: RwLock<u64>,
    /// Seeds the hashes, so that nobody can choose keys that fall together.
    secret: u64,
}

impl RecordCache {
    /// Of up to about `bytes_max` bytes; with 0 nothing is kept.
    pub(crate) fn new(bytes_max: usize, secret: u64) -> RecordCache {
        let shards = (bytes_max / SHARD_BYTES_MIN).clamp(1, SHARDS);
        let options = OptionsBuilder::new()
            .shards(shards)
            .estimated_items_capacity((bytes_max / RECORD_BYTES_GUESS).max(1))
            .weight_capacity(bytes_max as u64)
            .build();
        // All that it needs was given; if it should ever object, there is no cache.
        let options = options.ok().filter(|_| bytes_max > 0);
        RecordCache {
            kept: options.map(|options| {
                Cache::with_options(options, Weigher, AsItIs, DefaultLifecycle::default())
            }),
            changes: RwLock::new(0),
            secret,
        }
    }

    /// To be taken before the tables are asked.
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket(*self.changes.read())
    }

    /// The record of a key, if it is here.
    pub(crate) fn get(&self, key: &[u8]) -> Option<Record> {
        let kept = self.kept.as_ref()?.get(&self.name(key))?;
        // Of two keys with the same hash one is not here.
        let record = Record::decode(kept.encoded).ok();
        record.filter(|record| record.key == key)
    }

    /// Takes in what a lookup found in the engine, unless something has changed since its ticket.
    pub(crate) fn fill(&self, ticket: Ticket, partition: PartitionId, key: &[u8], encoded: &[u8]) {
        let Some(kept) = &self.kept else { return };
        if encoded.len() > RECORD_BYTES_MAX {
            return;
        }
        let changes = self.changes.read();
        if *changes == ticket.0 {
            kept.insert(self.name(key), Kept::new(partition, encoded));
        }
    }

    /// Takes in all records of a table that is about to go; `step` hears of each by its number.
    pub(crate) fn take_in(&self, table: &Table, step: impl Fn(usize)) {
        let Some(kept) = &self.kept else { return };
        self.change();
        for (at, entry) in table.entries().enumerate() {
            step(at);
            let name = self.name(entry.key());
            match entry.gone || entry.encoded.len() > RECORD_BYTES_MAX {
                true => {
                    kept.remove(&name);
                }
                false if is_on(Mutation::CacheKeepsOld) && kept.contains_key(&name) => {}
                false => kept.insert(name, Kept::new(entry.partition, &entry.encoded)),
            }
        }
    }

    /// Forgets a key, because the engine is not to be believed, or has something else now.
    pub(crate) fn forget(&self, key: &[u8]) {
        if let Some(kept) = &self.kept {
            self.change();
            kept.remove(&self.name(key));
        }
    }

    /// Forgets partitions of which something has been removed from the engine, past the tables.
    pub(crate) fn forget_partitions(&self, partitions: &[PartitionId]) {
        if let Some(kept) = &self.kept {
            self.change();
            // A lookup for each record that is kept, while readers of its shard wait.
            let gone: BTreeSet<PartitionId> = partitions.iter().copied().collect();
            kept.retain(|_, one| !gone.contains(&one.partition));
        }
    }

    /// Bytes, roughly.
    pub(crate) fn bytes(&self) -> u64 {
        self.kept.as_ref().map_or(0, Cache::weight)
    }

    /// From here on no older ticket counts. Whoever was let in before has come in.
    fn change(&self) {
        *self.changes.write() += 1;
    }

    fn name(&self, key: &[u8]) -> u128 {
        xxh3_128_with_seed(key, self.secret)
    }
}

impl Kept {
    fn new(partition: PartitionId, encoded: &[u8]) -> Kept {
        Kept {
            partition,
            encoded: Bytes::copy_from_slice(encoded),
        }
    }
}

#[derive(Clone)]
struct Weigher;

impl Weighter<u128, Kept> for Weigher {
    fn weight(&self, _: &u128, kept: &Kept) -> u64 {
        kept.encoded.len() as u64 + OVERHEAD_BYTES
    }
}

/// The names are hashes.
#[derive(Clone, Copy, Default)]
struct AsItIs;

impl BuildHasher for AsItIs {
    type Hasher = LowHalf;

    fn build_hasher(&self) -> LowHalf {
        LowHalf(0)
    }
}

struct LowHalf(u64);

impl Hasher for LowHalf {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Never used: a `u128` is written as a whole.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, name: u128) {
        self.0 = name as u64;
    }
}

#[cfg(test)]
mod tests {
    use mds_types::{Body, Epoch, Hlc, NodeId, Version};

    use super::*;

    const P: PartitionId = PartitionId(2);

    fn record(key: &str, hlc: u64, value_bytes: usize) -> (Record, Bytes) {
        let record = Record {
            key: Bytes::copy_from_slice(key.as_bytes()),
            version: Version {
                hlc: Hlc(hlc),
                node: NodeId(1),
            },
            epoch: Epoch(1),
            expires_at_ms: None,
            body: Body::Value(Bytes::from(vec![7; value_bytes])),
        };
        let mut encoded = Vec::new();
        record.encode(&mut encoded);
        (record, encoded.into())
    }

    fn table(records: &[(&str, u64, bool)]) -> Table {
        let mut table = Table::new(1, 4, 99);
        for &(key, hlc, is_gone) in records {
            let (record, encoded) = record(key, hlc, 10);
            match is_gone {
                true => table.put_gone(P, &record, encoded),
                false => table.put(P, &record, encoded),
            }
        }
        table
    }

    fn hlc(cache: &RecordCache, key: &str) -> Option<u64> {
        Some(cache.get(key.as_bytes())?.version.hlc.0)
    }

    #[test]
    fn a_table_that_goes_leaves_its_records_and_takes_those_that_are_gone() {
        let cache = RecordCache::new(1 << 20, 7);
        cache.take_in(&table(&[("a", 1, false), ("b", 1, false)]), |_| {});
        assert_eq!((hlc(&cache, "a"), hlc(&cache, "b")), (Some(1), Some(1)));
        cache.take_in(&table(&[("a", 2, false), ("b", 1, true)]), |_| {});
        assert_eq!((hlc(&cache, "a"), hlc(&cache, "b")), (Some(2), None));
        cache.forget(b"a");
        assert_eq!((hlc(&cache, "a"), cache.bytes()), (None, 0));
    }

    #[test]
    fn a_late_finding_does_not_come_in() {
        let cache = RecordCache::new(1 << 20, 7);
        let (_, old) = record("a", 1, 10);
        let ticket = cache.ticket();
        cache.take_in(&table(&[("a", 2, false)]), |_| {});
        cache.fill(ticket, P, b"a", &old);
        assert_eq!(hlc(&cache, "a"), Some(2));
        cache.forget(b"a");
        cache.fill(ticket, P, b"a", &old);
        assert_eq!(hlc(&cache, "a"), None);
        for is_wiped in [false, true] {
            let ticket = cache.ticket();
            if is_wiped {
                cache.forget_partitions(&[P]);
            }
            cache.fill(ticket, P, b"a", &old);
            assert_eq!(hlc(&cache, "a").is_some(), !is_wiped);
        }
    }

    #[test]
    fn a_wiped_partition_is_forgotten_and_no_other() {
        let cache = RecordCache::new(1 << 20, 7);
        let (_, other) = record("z", 5, 10);
        cache.fill(cache.ticket(), PartitionId(3), b"z", &other);
        cache.take_in(&table(&[("a", 1, false), ("b", 1, false)]), |_| {});
        cache.forget_partitions(&[P]);
        let left = ["a", "b", "z"].map(|key| hlc(&cache, key));
        assert_eq!(left, [None, None, Some(5)]);
    }

    #[test]
    fn it_stays_within_its_bound_and_keeps_what_is_asked_for() {
        let cache = RecordCache::new(64 * 1024, 7);
        let (_, hot) = record("hot", 1, 10);
        cache.fill(cache.ticket(), P, b"hot", &hot);
        for number in 0..10_000 {
            let key = format!("key-{number}");
            let (_, cold) = record(&key, 1, 100);
            cache.fill(cache.ticket(), P, key.as_bytes(), &cold);
            assert!(cache.bytes() <= 64 * 1024);
            assert_eq!(hlc(&cache, "hot"), Some(1), "after {number} others");
        }
        let (_, long) = record("long", 1, RECORD_BYTES_MAX);
        cache.fill(cache.ticket(), P, b"long", &long);
        assert_eq!(hlc(&cache, "long"), None);
        let none = RecordCache::new(0, 7);
        none.fill(none.ticket(), P, b"hot", &hot);
        none.take_in(&table(&[("a", 1, false)]), |_| {});
        assert_eq!(
            (hlc(&none, "hot"), hlc(&none, "a"), none.bytes()),
            (None, None, 0)
        );
    }
}
