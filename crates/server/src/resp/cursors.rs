//! The cursors of `SCAN`: one number that says where a walk over all keys stands.
//!
//! A cursor has to mean the same on every node and after any time, and nobody may have to keep
//! anything for it. So it holds the partition, and a hash of the last key that was returned:
//!
//! ```text
//! cursor = (partition + 1) << 44 | hash of the key (44 bits; 0: the partition's beginning)
//! ```
//!
//! The key itself cannot be computed from the hash. Usually this node made the cursor a moment ago
//! and remembers the key; if it does not, the partition is read from its beginning until a key with
//! this hash comes by, and if none does (it was deleted), the partition is returned anew. `SCAN`
//! allows duplicates, but no gaps.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use mds_types::PartitionId;
use xxhash_rust::xxh3::xxh3_64;

/// Bits of the key's hash.
const HASH_BITS: u32 = 44;
/// Cursors whose key is remembered; of more, the oldest are forgotten, which costs a search.
pub const CURSORS_MAX: usize = 4096;

/// Where a walk stands, as far as the cursor itself says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Position {
    /// The partition to go on in.
    pub(super) partition: PartitionId,
    /// Hash of the last key returned from it; none at its beginning.
    pub(super) key_hash: Option<u64>,
}

/// The hash by which a cursor names a key; never zero.
pub(super) fn key_hash(key: &[u8]) -> u64 {
    (xxh3_64(key) & ((1 << HASH_BITS) - 1)).max(1)
}

impl Position {
    pub(super) fn encode(self) -> u64 {
        (u64::from(self.partition.0) + 1) << HASH_BITS | self.key_hash.unwrap_or(0)
    }

    /// None for a number that is no cursor of a cluster with this many partitions. Zero is the
    /// beginning.
    pub(super) fn decode(cursor: u64, partition_count: u16) -> Option<Position> {
        let hash = cursor & ((1 << HASH_BITS) - 1);
        let partition = match cursor >> HASH_BITS {
            0 if hash == 0 => 0,
            0 => return None,
            above => u16::try_from(above - 1).ok()?,
        };
        (partition < partition_count).then_some(Position {
            partition: PartitionId(partition),
            key_hash: (hash != 0).then_some(hash),
        })
    }
}

/// The keys of recent cursors.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    keys: BTreeMap<u64, Bytes>,
    by_age: VecDeque<u64>,
}

impl Cursors {
    pub(super) fn remember(&mut self, cursor: u64, key: Bytes) {
        if self.keys.insert(cursor, key).is_none() {
            self.by_age.push_back(cursor);
        }
        if self.by_age.len() > CURSORS_MAX
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }

    pub(super) fn key(&self, cursor: u64) -> Option<&Bytes> {
        self.keys.get(&cursor)
    }

    #[cfg(test)]
    pub(super) fn forget_all(&mut self) {
        *self = Cursors::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cursors_round_trip(bits in 0u32..=14, partition: u16, key in prop::option::of(".{1,9}")) {
            let partition_count = 1u16 << bits;
            let position = Position {
                partition: PartitionId(partition % partition_count),
                key_hash: key.map(|key| key_hash(key.as_bytes())),
            };
            let cursor = position.encode();
            prop_assert_ne!(cursor, 0);
            // Clients read cursors into signed numbers.
            prop_assert!(i64::try_from(cursor).is_ok());
            prop_assert_eq!(Position::decode(cursor, partition_count), Some(position));
        }

        #[test]
        fn any_number_is_a_cursor_or_is_refused(cursor: u64, bits in 0u32..=14) {
            if let Some(position) = Position::decode(cursor, 1 << bits) {
                prop_assert!(cursor == 0 || position.encode() == cursor);
            }
        }
    }

    #[test]
    fn the_table_is_bounded() {
        let mut cursors = Cursors::default();
        for cursor in 0..2 * CURSORS_MAX as u64 {
            cursors.remember(cursor, Bytes::new());
            cursors.remember(cursor, Bytes::new());
        }
        assert_eq!(cursors.keys.len(), CURSORS_MAX);
        assert!(cursors.key(0).is_none());
    }
}
