//! The record, its version, and the merge law.
//!
//! A record is what one write left behind: a key with a value or a tombstone, stamped with a
//! [`Version`]. Replicas keep, for each key, the greatest record they have seen, and *greatest* is
//! one total order used everywhere: write, repair, hint, streaming, sync ([`Record::supersedes`]):
//!
//! 1. the larger `(hlc, node id)`;
//! 2. at the same version, a tombstone over a live value;
//! 3. then the larger digest of value and expiry.
//!
//! **Invariant (the merge law).** Taking the greater of two records is commutative, associative and
//! idempotent, so replicas that have seen the same records agree, whatever the order, whatever was
//! seen twice. Epoch and arrival time are never part of it (trap T2). The properties are tested
//! below.
//!
//! The epoch is set by the coordinator together with the version, and a version is never stamped
//! twice, so two records of the same version carry the same epoch.
//!
//! **Expiry** is absolute time inside the record. An expired record still takes part in merging: it
//! *reads* as absent, and is collected like a tombstone.
//!
//! # Binary form
//!
//! One form for disk and wire, little-endian, with a format marker first:
//!
//! ```text
//! format 1 | kind 1 | epoch 8 | hlc 8 | node 8 | expires_at_ms 8 | key length 4 | key | value
//! ```

use std::cmp::Ordering;
use std::fmt;

use bytes::{Buf, BufMut, Bytes};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use crate::hlc::Hlc;
use crate::ids::{Epoch, NodeId};
use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::mutation::{Mutation, is_on};

/// Marks the first format of an encoded record.
const FORMAT_1: u8 = 1;

/// Bytes that are digested before the value: kind and expiry.
const DIGEST_HEAD_BYTES: usize = 1 + 8;

/// What is digested is copied together on the stack up to this many bytes.
const DIGEST_STACK_BYTES: usize = 256;

/// Bytes before the key in the encoded form of a record.
pub const HEADER_BYTES: usize = 1 + 1 + 8 + 8 + 8 + 8 + 4;

/// Who wrote, when. Totally ordered: by time, then by node.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
pub struct Version {
    /// The coordinator's stamp.
    pub hlc: Hlc,
    /// The coordinator.
    pub node: NodeId,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.hlc.0, self.node)
    }
}

impl std::str::FromStr for Version {
    type Err = DecodeError;

    /// Reads the form that `Display` writes: the token clients carry.
    fn from_str(text: &str) -> Result<Version, DecodeError> {
        let (hlc, node) = text
            .split_once('-')
            .ok_or(DecodeError::Malformed("version token"))?;
        let hlc =
            u64::from_str_radix(hlc, 16).map_err(|_| DecodeError::Malformed("version token"))?;
        let node = node
            .parse()
            .map_err(|_| DecodeError::Malformed("version token"))?;
        Ok(Version {
            hlc: Hlc(hlc),
            node,
        })
    }
}

/// A strong 128-bit hash of what a record says: kind, expiry and value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Digest(pub u128);

/// What kind of record: one byte on disk and wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Holds a value.
    Value = 1,
    /// Says that the key was deleted.
    Tombstone = 2,
}

impl TryFrom<u8> for Kind {
    type Error = DecodeError;

    fn try_from(byte: u8) -> Result<Kind, DecodeError> {
        match byte {
            1 => Ok(Kind::Value),
            2 => Ok(Kind::Tombstone),
            _ => Err(DecodeError::Malformed("record kind")),
        }
    }
}

/// What a write left behind.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Body {
    /// A value, possibly empty. An empty value is not an absent one.
    Value(Bytes),
    /// The key was deleted.
    Tombstone,
}

/// One version of one key.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Record {
    /// The key, 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: Bytes,
    /// Who wrote, when.
    pub version: Version,
    /// The epoch the coordinator saw.
    pub epoch: Epoch,
    /// When the value ceases to be readable: milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
    /// The value, or a tombstone.
    pub body: Body,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than the form needs.
    #[error("truncated {0}")]
    Truncated(&'static str),
    /// Bytes that the form does not allow.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// Written by a format this build does not know.
    #[error("unknown record format {0}: written by a newer version?")]
    UnknownFormat(u8),
    /// A key or value beyond its limit.
    #[error("{0} is too long")]
    TooLong(&'static str),
}

impl Record {
    /// Whether the record is a value or a tombstone.
    pub fn kind(&self) -> Kind {
        match self.body {
            Body::Value(_) => Kind::Value,
            Body::Tombstone => Kind::Tombstone,
        }
    }

    /// The value, unless the record is a tombstone.
    pub fn value(&self) -> Option<&Bytes> {
        match &self.body {
            Body::Value(value) => Some(value),
            Body::Tombstone => None,
        }
    }

    /// The value as a reader sees it at `now_ms`: none if deleted or expired.
    pub fn visible_value(&self, now_ms: u64) -> Option<&Bytes> {
        if self
            .expires_at_ms
            .is_some_and(|expires_at_ms| expires_at_ms <= now_ms)
        {
            return None;
        }
        self.value()
    }

    /// The digest that breaks ties and feeds the Merkle trees.
    pub fn digest(&self) -> Digest {
        let value: &[u8] = self.value().map_or(&[], |value| value);
        let mut head = [0; DIGEST_HEAD_BYTES];
        head[0] = self.kind() as u8;
        head[1..].copy_from_slice(&self.expires_at_ms.unwrap_or(0).to_le_bytes());
        // Every write is digested once. What fits the stack is hashed in one go, several times faster
        // than in pieces; both give the same.
        let mut whole = [0; DIGEST_STACK_BYTES];
        let end = DIGEST_HEAD_BYTES + value.len();
        if let Some(whole) = whole.get_mut(..end) {
            whole[..DIGEST_HEAD_BYTES].copy_from_slice(&head);
            whole[DIGEST_HEAD_BYTES..].copy_from_slice(value);
            return Digest(xxh3_128(whole));
        }
        let mut hash = Xxh3::new();
        hash.update(&head);
        hash.update(value);
        Digest(hash.digest128())
    }

    /// The total order of the merge law. Both records must be of the same key.
    pub fn merge_order(&self, other: &Record) -> Ordering {
        debug_assert_eq!(self.key, other.key);
        if is_on(Mutation::EpochInOrder) && self.epoch != other.epoch {
            return self.epoch.cmp(&other.epoch);
        }
        self.version.cmp(&other.version).then_with(|| {
            // Only ever reached when the same version is seen again: hashing is off the hot path.
            self.kind()
                .cmp(&other.kind())
                .then_with(|| self.digest().cmp(&other.digest()))
        })
    }

    /// What the merge law compares, of records of one key: the greater rank is the greater record.
    pub fn rank(&self) -> (Version, Kind, Digest) {
        (self.version, self.kind(), self.digest())
    }

    /// Whether this record wins over `other`, by the merge law.
    pub fn supersedes(&self, other: &Record) -> bool {
        self.merge_order(other) == Ordering::Greater
    }

    /// The greater of two records of one key: the merge itself.
    pub fn merge(self, other: Record) -> Record {
        if other.supersedes(&self) { other } else { self }
    }

    /// Bytes of the encoded form.
    pub fn encoded_len(&self) -> usize {
        HEADER_BYTES + self.key.len() + self.value().map_or(0, Bytes::len)
    }

    /// Appends the binary form.
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(FORMAT_1);
        out.put_u8(self.kind() as u8);
        out.put_u64_le(self.epoch.0);
        out.put_u64_le(self.version.hlc.0);
        out.put_u64_le(self.version.node.0);
        out.put_u64_le(self.expires_at_ms.unwrap_or(0));
        out.put_u32_le(self.key.len() as u32);
        out.put_slice(&self.key);
        if let Body::Value(value) = &self.body {
            out.put_slice(value);
        }
    }

    /// Reads the binary form; key and value share the memory of `bytes`.
    ///
    /// # Errors
    /// For bytes that no [`Record::encode`] wrote, and for keys or values beyond their limits.
    pub fn decode(mut bytes: Bytes) -> Result<Record, DecodeError> {
        if bytes.is_empty() {
            return Err(DecodeError::Truncated("record"));
        }
        if bytes[0] != FORMAT_1 {
            return Err(DecodeError::UnknownFormat(bytes[0]));
        }
        if bytes.len() < HEADER_BYTES {
            return Err(DecodeError::Truncated("record header"));
        }
        bytes.advance(1);
        let kind = Kind::try_from(bytes.get_u8())?;
        let epoch = Epoch(bytes.get_u64_le());
        let version = Version {
            hlc: Hlc(bytes.get_u64_le()),
            node: NodeId(bytes.get_u64_le()),
        };
        let expires_at_ms = Some(bytes.get_u64_le()).filter(|&at_ms| at_ms != 0);
        let key_length = bytes.get_u32_le() as usize;
        if key_length == 0 || key_length > KEY_BYTES_MAX {
            return Err(DecodeError::Malformed("record key length"));
        }
        if bytes.len() < key_length {
            return Err(DecodeError::Truncated("record key"));
        }
        let key = bytes.split_to(key_length);
        if bytes.len() > VALUE_BYTES_MAX {
            return Err(DecodeError::TooLong("record value"));
        }
        let body = match kind {
            Kind::Value => Body::Value(bytes),
            Kind::Tombstone if bytes.is_empty() => Body::Tombstone,
            Kind::Tombstone => return Err(DecodeError::Malformed("tombstone with a value")),
        };
        Ok(Record {
            key,
            version,
            epoch,
            expires_at_ms,
            body,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Records of one key, from so few stamps that ties are common. The epoch follows from the
    /// version, as a coordinator's does.
    fn any_record() -> impl Strategy<Value = Record> {
        (
            0u64..4,
            0u64..3,
            prop::option::of(1u64..3),
            prop::option::of("[a-c]{0,2}"),
        )
            .prop_map(|(hlc, node, expires_at_ms, value)| Record {
                key: Bytes::from_static(b"k"),
                version: Version {
                    hlc: Hlc(hlc),
                    node: NodeId(node),
                },
                epoch: Epoch(hlc / 2),
                expires_at_ms,
                body: value.map_or(Body::Tombstone, |value| Body::Value(Bytes::from(value))),
            })
    }

    /// Short ones are digested another way than long ones, and nobody may be able to tell.
    #[test]
    fn a_digest_is_the_hash_of_kind_expiry_and_value_whatever_the_length() {
        for length in [0, 1, 240, 246, 247, 248, 256, 1000] {
            for expires_at_ms in [None, Some(7u64)] {
                let value = Bytes::from(vec![7; length]);
                let mut bytes = vec![Kind::Value as u8];
                bytes.extend_from_slice(&expires_at_ms.unwrap_or(0).to_le_bytes());
                bytes.extend_from_slice(&value);
                let record = Record {
                    key: Bytes::from_static(b"k"),
                    version: Version::default(),
                    epoch: Epoch(1),
                    expires_at_ms,
                    body: Body::Value(value),
                };
                assert_eq!(record.digest(), Digest(xxh3_128(&bytes)), "{length}");
            }
        }
    }

    proptest! {
        #[test]
        fn merge_is_commutative(a in any_record(), b in any_record()) {
            prop_assert_eq!(a.clone().merge(b.clone()), b.merge(a));
        }

        #[test]
        fn merge_is_associative(a in any_record(), b in any_record(), c in any_record()) {
            let left = a.clone().merge(b.clone()).merge(c.clone());
            prop_assert_eq!(left, a.merge(b.merge(c)));
        }

        #[test]
        fn the_greater_rank_is_the_greater_record(a in any_record(), b in any_record()) {
            prop_assert_eq!(a.merge_order(&b), a.rank().cmp(&b.rank()));
        }

        #[test]
        fn merge_is_idempotent(a in any_record(), b in any_record()) {
            prop_assert_eq!(a.clone().merge(a.clone()), a.clone());
            let once = a.clone().merge(b.clone());
            prop_assert_eq!(once.clone().merge(b).merge(a), once);
        }

        #[test]
        fn order_is_by_version_then_tombstone(a in any_record(), b in any_record()) {
            if a.version > b.version {
                prop_assert!(a.supersedes(&b));
            }
            if a.version == b.version && a.kind() > b.kind() {
                prop_assert!(a.supersedes(&b));
            }
            // Neither wins only where they are the same record.
            if a.merge_order(&b) == Ordering::Equal {
                prop_assert_eq!(a, b);
            }
        }

        #[test]
        fn encoding_round_trips(
            key in prop::collection::vec(any::<u8>(), 1..64),
            value in prop::option::of(prop::collection::vec(any::<u8>(), 0..256)),
            hlc: u64, node: u64, epoch: u64, expires in prop::option::of(1u64..),
        ) {
            let record = Record {
                key: Bytes::from(key),
                version: Version { hlc: Hlc(hlc), node: NodeId(node) },
                epoch: Epoch(epoch),
                expires_at_ms: expires,
                body: value.map_or(Body::Tombstone, |value| Body::Value(Bytes::from(value))),
            };
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), record.encoded_len());
            prop_assert_eq!(Record::decode(Bytes::from(bytes)).unwrap(), record);
        }

        /// Any bytes at all: a record or a clear error, never a panic; a record that decodes is the
        /// one that its bytes encode.
        #[test]
        fn decoding_garbage_never_panics(
            mut bytes in prop::collection::vec(any::<u8>(), 0..128),
            marked: bool,
        ) {
            if marked && bytes.len() > 1 {
                bytes[0] = FORMAT_1;
                bytes[1] = 1 + bytes[1] % 2;
            }
            if let Ok(record) = Record::decode(Bytes::from(bytes.clone())) {
                let mut again = Vec::new();
                record.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }

    #[test]
    fn an_expired_value_reads_as_absent_from_its_instant_on() {
        let record = Record {
            key: Bytes::from_static(b"k"),
            version: Version::default(),
            epoch: Epoch(1),
            expires_at_ms: Some(1_000),
            body: Body::Value(Bytes::from_static(b"v")),
        };
        assert!(record.visible_value(999).is_some());
        assert!(record.visible_value(1_000).is_none());
    }

    #[test]
    fn a_version_token_round_trips() {
        let version = Version {
            hlc: Hlc(0x1234_5678),
            node: NodeId(0xabcd),
        };
        assert_eq!(version.to_string().parse::<Version>().unwrap(), version);
        for bad in ["", "-", "12", "zz-01", "1-2-3"] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }
}
