//! Which slot, and so which partition, a key belongs to.
//!
//! As in Redis Cluster: CRC16 (XMODEM: polynomial 0x1021, initial value 0) of the key, modulo 16384.
//! If the key contains a `{...}` with something inside, only that part is hashed, so that related
//! keys can be kept together. Every Redis Cluster client computes the same number and can therefore
//! route straight to a replica.
//!
//! A partition is a contiguous range of slots. The partition count is a power of two and fixed when
//! the cluster is born, so a partition is the high bits of the slot.

use crate::ids::PartitionId;
use crate::limits::SLOT_COUNT;

const CRC16: [u16; 256] = crc16_table();

const fn crc16_table() -> [u16; 256] {
    let mut table = [0u16; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 != 0 {
                (crc << 1) ^ 0x1021
            } else {
                crc << 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)]
    })
}

/// The part of the key that is hashed: the first non-empty `{tag}`, else all of it.
fn hashed_part(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&byte| byte == b'{') else {
        return key;
    };
    let rest = &key[open + 1..];
    match rest.iter().position(|&byte| byte == b'}') {
        Some(length) if length > 0 => &rest[..length],
        _ => key,
    }
}

/// The slot of a key, `0..16384`.
pub fn slot_of(key: &[u8]) -> u16 {
    crc16(hashed_part(key)) % SLOT_COUNT
}

/// The partition of a slot, for a partition count that is a power of two up to 16384.
pub fn partition_of_slot(slot: u16, partition_count: u16) -> PartitionId {
    PartitionId(slot / (SLOT_COUNT / partition_count))
}

/// The partition of a key.
pub fn partition_of(key: &[u8], partition_count: u16) -> PartitionId {
    partition_of_slot(slot_of(key), partition_count)
}

/// The slots of a partition, first and last.
pub fn slots_of(partition: PartitionId, partition_count: u16) -> (u16, u16) {
    let width = SLOT_COUNT / partition_count;
    (partition.0 * width, partition.0 * width + (width - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis_cluster() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        // As `CLUSTER KEYSLOT` of Redis 7 answers.
        for (key, slot) in [
            ("foo", 12182),
            ("bar", 5061),
            ("hello", 866),
            ("{user1000}.following", 3443),
        ] {
            assert_eq!(slot_of(key.as_bytes()), slot, "{key}");
        }
    }

    #[test]
    fn only_the_first_non_empty_tag_counts() {
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"user1000"));
        assert_eq!(hashed_part(b"foo{}{bar}"), b"foo{}{bar}");
        assert_eq!(hashed_part(b"foo{{bar}}zap"), b"{bar");
        assert_eq!(hashed_part(b"foo{bar}{zap}"), b"bar");
        assert_eq!(hashed_part(b"foo{bar"), b"foo{bar");
    }

    #[test]
    fn partitions_cut_the_slots_into_equal_ranges() {
        for bits in 0..=14 {
            let partition_count = 1u16 << bits;
            let mut next_slot = 0;
            for partition in 0..partition_count {
                let (first, last) = slots_of(PartitionId(partition), partition_count);
                assert_eq!(first, next_slot);
                assert_eq!(
                    partition_of_slot(first, partition_count),
                    PartitionId(partition)
                );
                assert_eq!(
                    partition_of_slot(last, partition_count),
                    PartitionId(partition)
                );
                next_slot = last + 1;
            }
            assert_eq!(next_slot, SLOT_COUNT);
        }
    }
}
