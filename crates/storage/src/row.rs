//! Rows of the epoch index: what was written, where it belongs, and its hash.
//!
//! **The row law.** `row(e, k)` is the greatest version of key `k` *written with epoch `e`* that this
//! replica has met, whether or not it is the current record of `k` (trap T13): a row is not removed by a
//! later overwrite, and a version that arrives superseded leaves its row all the same. So the rows of a
//! closed epoch only ever grow towards the union of what all replicas hold, and can become equal.
//!
//! *Greatest* is the merge law's order, told from a row: version, then kind, then digest.
//!
//! **Hash.** A row's hash is xxh3-128, seeded with a number that is the cluster's, over
//!
//! ```text
//! key length 4 | key | hlc 8 | node 8 | digest 16 | kind 1
//! ```
//!
//! so over everything that two replicas can disagree on (trap T3; the digest covers value and expiry). A
//! bucket's hash is the wrapping sum of its rows' hashes: adding, replacing and removing a row cost one
//! addition each, in any order. It tells accidents apart, not an adversary who knows the seed: sums of
//! hashes can be forged by whoever can choose many rows (Bellare and Micciancio, *A New Paradigm for
//! Collision-Free Hashing*, 1997, on why).

use bytes::{Buf, BufMut, Bytes};
use mds_types::limits::KEY_BYTES_MAX;
use mds_types::mutation::{Mutation, is_on};
use mds_types::{Digest, Epoch, Hlc, Kind, NodeId, PartitionId, Record, Version};
use xxhash_rust::xxh3::{Xxh3, xxh3_128_with_seed};

use crate::keys::bucket_of;

/// One row of the epoch index: this version of this key was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexRow {
    /// The key's partition.
    pub partition: PartitionId,
    /// Its bucket, a leaf of the partition's Merkle tree.
    pub bucket: u16,
    /// The key.
    pub key: Bytes,
    /// The greatest version of the key in the epoch.
    pub version: Version,
    /// The digest of that record.
    pub digest: Digest,
    /// Whether it is a value or a tombstone.
    pub kind: Kind,
}

impl IndexRow {
    pub(crate) fn new(
        partition: PartitionId,
        bucket_count: u16,
        key: Bytes,
        (version, kind, digest): Rank,
    ) -> IndexRow {
        IndexRow {
            partition,
            bucket: bucket_of(&key, bucket_count),
            key,
            version,
            digest,
            kind,
        }
    }

    pub(crate) fn of(partition: PartitionId, bucket_count: u16, record: &Record) -> IndexRow {
        IndexRow::new(partition, bucket_count, record.key.clone(), record.rank())
    }

    /// The row's hash: see the module. `seed` is the cluster's.
    pub fn hash(&self, seed: u64) -> u128 {
        row_hash(seed, &self.key, self.version, self.digest, self.kind)
    }

    /// What decides which of two rows of a key is the greater.
    pub(crate) fn rank(&self) -> Rank {
        (self.version, self.kind, self.digest)
    }

    pub(crate) fn place(&self) -> Place {
        (self.partition, self.bucket)
    }
}

/// The merge law's order of two records of one key, told without their values.
pub(crate) type Rank = (Version, Kind, Digest);

/// Where rows belong: partition and bucket.
pub(crate) type Place = (PartitionId, u16);

/// Rows with keys up to about this long are hashed from the stack.
const HASH_STACK_BYTES: usize = 192;

/// Bytes that are hashed beside the key.
const HASH_FIXED_BYTES: usize = 4 + 8 + 8 + 16 + 1;

/// The hash of a row; see the module.
pub(crate) fn row_hash(
    seed: u64,
    key: &[u8],
    version: Version,
    digest: Digest,
    kind: Kind,
) -> u128 {
    let (version, digest) = match is_on(Mutation::RowHashOfKeyOnly) {
        true => (Version::default(), Digest::default()),
        false => (version, digest),
    };
    let mut tail = [0; HASH_FIXED_BYTES - 4];
    tail[..8].copy_from_slice(&version.hlc.0.to_le_bytes());
    tail[8..16].copy_from_slice(&version.node.0.to_le_bytes());
    tail[16..32].copy_from_slice(&digest.0.to_le_bytes());
    tail[32] = kind as u8;
    let length = (key.len() as u32).to_le_bytes();
    let mut whole = [0; HASH_STACK_BYTES];
    if let Some(whole) = whole.get_mut(..HASH_FIXED_BYTES + key.len()) {
        whole[..4].copy_from_slice(&length);
        whole[4..4 + key.len()].copy_from_slice(key);
        whole[4 + key.len()..].copy_from_slice(&tail);
        return xxh3_128_with_seed(whole, seed);
    }
    let mut hash = Xxh3::with_seed(seed);
    hash.update(&length);
    hash.update(key);
    hash.update(&tail);
    hash.digest128()
}

/// Sorts rows by (partition, bucket, key) and keeps the greatest of each key, by the merge law.
pub(crate) fn sort_rows(rows: &mut Vec<IndexRow>) {
    rows.sort_unstable_by(|a, b| {
        (a.place(), &a.key)
            .cmp(&(b.place(), &b.key))
            .then_with(|| b.rank().cmp(&a.rank()))
    });
    rows.dedup_by(|later, kept| later.key == kept.key);
}

/// Which rows to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowRange {
    /// All.
    All,
    /// Those of one partition.
    Partition(PartitionId),
    /// Those of one bucket of a partition.
    Bucket(PartitionId, u16),
    /// Those of some buckets of a partition, from the first to the last, both included.
    Buckets(PartitionId, u16, u16),
}

impl RowRange {
    /// First and last place.
    pub(crate) fn bounds(self) -> (Place, Place) {
        match self {
            RowRange::All => ((PartitionId(0), 0), (PartitionId(u16::MAX), u16::MAX)),
            RowRange::Partition(partition) => ((partition, 0), (partition, u16::MAX)),
            RowRange::Bucket(partition, bucket) => ((partition, bucket), (partition, bucket)),
            RowRange::Buckets(partition, first, last) => ((partition, first), (partition, last)),
        }
    }

    pub(crate) fn partition(self) -> Option<PartitionId> {
        match self {
            RowRange::All => None,
            RowRange::Partition(partition)
            | RowRange::Bucket(partition, _)
            | RowRange::Buckets(partition, ..) => Some(partition),
        }
    }

    /// Whether all buckets of its partitions are in it.
    pub(crate) fn has_all_buckets(self) -> bool {
        matches!(self, RowRange::All | RowRange::Partition(_))
    }

    /// Whether a bucket is in it, of the partition that it is about.
    pub(crate) fn has_bucket(self, bucket: u16) -> bool {
        let ((_, first), (_, last)) = self.bounds();
        self.has_all_buckets() || (first..=last).contains(&bucket)
    }

    pub(crate) fn contains(self, row: &IndexRow) -> bool {
        let (first, last) = self.bounds();
        (first..=last).contains(&row.place())
    }
}

/// Marks the first format of a row alone in the log.
const FORMAT_1: u8 = 1;

/// Bytes of a row alone before its key.
const ALONE_HEADER_BYTES: usize = 1 + 1 + 8 + 8 + 8 + 16;

/// Bytes of a row alone: see [`put_alone`].
pub(crate) fn alone_len(key: &[u8]) -> usize {
    ALONE_HEADER_BYTES + key.len()
}

/// Appends a row alone, as the log holds it: the row of a version that lost its merge.
///
/// ```text
/// format 1 | kind 1 | epoch 8 | hlc 8 | node 8 | digest 16 | key
/// ```
pub(crate) fn put_alone(
    epoch: Epoch,
    key: &[u8],
    (version, kind, digest): Rank,
    out: &mut impl BufMut,
) {
    out.put_u8(FORMAT_1);
    out.put_u8(kind as u8);
    out.put_u64_le(epoch.0);
    out.put_u64_le(version.hlc.0);
    out.put_u64_le(version.node.0);
    out.put_u128_le(digest.0);
    out.put_slice(key);
}

/// A row alone, read back.
pub(crate) struct RowAlone {
    pub(crate) epoch: Epoch,
    pub(crate) key: Bytes,
    pub(crate) rank: Rank,
}

/// Reads what [`put_alone`] wrote, or says what is wrong.
pub(crate) fn take_alone(mut bytes: Bytes) -> Result<RowAlone, &'static str> {
    if bytes.len() <= ALONE_HEADER_BYTES || bytes.len() > ALONE_HEADER_BYTES + KEY_BYTES_MAX {
        return Err("a row has a wrong length");
    }
    if bytes.get_u8() != FORMAT_1 {
        return Err("a row has an unknown format: written by a newer version?");
    }
    let kind = Kind::try_from(bytes.get_u8()).map_err(|_| "a row has an unknown kind")?;
    let epoch = Epoch(bytes.get_u64_le());
    let version = Version {
        hlc: Hlc(bytes.get_u64_le()),
        node: NodeId(bytes.get_u64_le()),
    };
    let digest = Digest(bytes.get_u128_le());
    Ok(RowAlone {
        epoch,
        key: bytes,
        rank: (version, kind, digest),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mds_types::Body;
    use proptest::prelude::*;

    fn version(hlc: u64, node: u64) -> Version {
        Version {
            hlc: Hlc(hlc),
            node: NodeId(node),
        }
    }

    proptest! {
        /// Every part of a row is hashed, and the length of a key does not change how.
        #[test]
        fn a_hash_depends_on_every_part(
            key in prop::collection::vec(any::<u8>(), 1..400), seed: u64, hlc: u64, node: u64,
            digest: u128,
        ) {
            let hash = |seed, key: &[u8], hlc, node, digest, kind| {
                row_hash(seed, key, version(hlc, node), Digest(digest), kind)
            };
            let base = hash(seed, &key, hlc, node, digest, Kind::Value);
            let mut bytes = (key.len() as u32).to_le_bytes().to_vec();
            bytes.extend_from_slice(&key);
            bytes.extend_from_slice(&hlc.to_le_bytes());
            bytes.extend_from_slice(&node.to_le_bytes());
            bytes.extend_from_slice(&digest.to_le_bytes());
            bytes.push(Kind::Value as u8);
            prop_assert_eq!(base, xxh3_128_with_seed(&bytes, seed));
            let mut longer = key.clone();
            longer.push(0);
            let others = [
                hash(seed ^ 1, &key, hlc, node, digest, Kind::Value),
                hash(seed, &longer, hlc, node, digest, Kind::Value),
                hash(seed, &key, hlc ^ 1, node, digest, Kind::Value),
                hash(seed, &key, hlc, node ^ 1, digest, Kind::Value),
                hash(seed, &key, hlc, node, digest ^ 1, Kind::Value),
                hash(seed, &key, hlc, node, digest, Kind::Tombstone),
            ];
            prop_assert!(!others.contains(&base));
        }

        #[test]
        fn a_row_alone_round_trips_and_garbage_is_refused(
            key in prop::collection::vec(any::<u8>(), 1..60), epoch: u64, hlc: u64, node: u64,
            garbage in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let record = Record {
                key: Bytes::from(key),
                version: version(hlc, node),
                epoch: Epoch(epoch),
                expires_at_ms: None,
                body: Body::Tombstone,
            };
            let mut bytes = Vec::new();
            put_alone(record.epoch, &record.key, record.rank(), &mut bytes);
            prop_assert_eq!(bytes.len(), alone_len(&record.key));
            let row = take_alone(Bytes::from(bytes)).unwrap();
            prop_assert_eq!(row.key, record.key.clone());
            prop_assert_eq!(row.epoch, record.epoch);
            prop_assert_eq!(row.rank, record.rank());
            let _ = take_alone(Bytes::from(garbage));
        }
    }

    #[test]
    fn the_hash_is_part_of_the_format() {
        // Replicas of different builds compare it.
        let hash = row_hash(7, b"foo", version(1, 2), Digest(3), Kind::Value);
        assert_eq!(hash, GOLDEN, "{hash:#034x}");
    }

    const GOLDEN: u128 = 0x45c2_34d3_c628_fdc7_f3f0_b8cd_26bd_69e9;
}
