//! Engine keys: what lies where in the engine. The one place that builds or reads them.
//!
//! ```text
//! partition u16 big-endian | keyspace u8 | key bytes
//! ```
//!
//! Partition first, so that a partition is one contiguous range: scanned, streamed and dropped as a
//! whole. The key comes last and is not delimited, so no client can inject a separator. The value
//! is the record's binary form ([`mds_types::Record::encode`]), which holds everything, the key
//! included.

use bytes::{BufMut, Bytes, BytesMut};
use mds_types::PartitionId;
use mds_types::mutation::{Mutation, is_on};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of an engine key before the user's key.
pub const ENGINE_KEY_PREFIX_BYTES: usize = 3;

/// How the keys of a keyspace are agreed on; its number is part of every engine key. One key lives
/// in one keyspace only, ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Keyspace {
    /// Leaderless, merged by version: everything today. (1 is kept for linearizable keys.)
    Eventual = 0,
}

/// The engine key of a user's key.
pub fn engine_key(partition: PartitionId, keyspace: Keyspace, key: &[u8]) -> Bytes {
    let key = match is_on(Mutation::KeyDelimited) {
        true => key.split(|&byte| byte == b'-').next().unwrap_or(key),
        false => key,
    };
    let mut bytes = BytesMut::with_capacity(ENGINE_KEY_PREFIX_BYTES + key.len());
    bytes.put_u16(partition.0);
    bytes.put_u8(keyspace as u8);
    bytes.put_slice(key);
    bytes.freeze()
}

/// The range `from <= engine key < to` of a partition's keys in a keyspace, those up to and
/// including `after` left out.
pub fn engine_range(
    partition: PartitionId,
    keyspace: Keyspace,
    after: Option<&[u8]>,
) -> (Bytes, Bytes) {
    let mut from = BytesMut::from(&engine_key(partition, keyspace, after.unwrap_or(b""))[..]);
    if after.is_some() {
        // The smallest key greater than `after`.
        from.put_u8(0);
    }
    let mut to = BytesMut::with_capacity(ENGINE_KEY_PREFIX_BYTES);
    to.put_u16(partition.0);
    to.put_u8(keyspace as u8 + 1);
    (from.freeze(), to.freeze())
}

/// The bucket of a key within its partition: a leaf of the Merkle tree. All replicas have to agree
/// on it, so the function is part of the format: xxh3-64 with seed 0, modulo the bucket count.
pub fn bucket_of(key: &[u8], bucket_count: u16) -> u16 {
    (xxh3_64(key) % u64::from(bucket_count.max(1))) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_exactly_the_partition_behind_the_mark() {
        let (p, k) = (PartitionId(0x01ff), Keyspace::Eventual);
        let inside = |key: &[u8], after: Option<&[u8]>| {
            let (from, to) = engine_range(p, k, after);
            let key = engine_key(p, k, key);
            from <= key && key < to
        };
        assert!(inside(b"a", None));
        assert!(inside(&[0xff; 40], None));
        assert!(!inside(b"a", Some(b"a")));
        assert!(inside(b"a\0", Some(b"a")));
        assert!(!inside(b"a", Some(b"b")));
        let (from, to) = engine_range(p, k, None);
        for other in [
            PartitionId(0x01fe),
            PartitionId(0x0200),
            PartitionId(0xffff),
        ] {
            let key = engine_key(other, k, b"a");
            assert!(key < from || key >= to);
        }
    }

    #[test]
    fn buckets_are_part_of_the_format() {
        // As xxh3-64 of "foo" and "bar" says.
        assert_eq!(bucket_of(b"foo", 64), 10);
        assert_eq!(bucket_of(b"bar", 64), 34);
        assert!((0u32..1000).all(|n| bucket_of(&n.to_le_bytes(), 64) < 64));
        let hit: std::collections::BTreeSet<_> = (0u32..1000)
            .map(|n| bucket_of(&n.to_le_bytes(), 64))
            .collect();
        assert_eq!(hit.len(), 64, "all buckets are used");
        assert_eq!(bucket_of(b"foo", 0), 0, "no division by zero");
    }
}
