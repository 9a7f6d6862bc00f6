//! What replicas say to each other to find out whether they are equal, and to become it.
//!
//! Verification of a closed (partition, epoch) goes down a Merkle tree: roots of many partitions in
//! one message ([`Roots`]), then hashes of the remote tree level by level ([`Hashes`]), then the rows
//! of differing buckets ([`Rows`]), then only the records that are missing ([`Fetch`]). Everybody pulls
//! what he lacks; nobody pushes. A whole partition is brought over by [`Stream`].
//!
//! Hashes are 128 bits, little-endian, 16 bytes each.

use bytes::Bytes;

/// How a replica's set of one (partition, epoch) stands to the asker's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ::prost::Enumeration)]
#[repr(i32)]
pub enum Verdict {
    /// Unknown to this build: nothing follows.
    Unknown = 0,
    /// The same root, in a closed epoch: the sets are equal.
    Equal = 1,
    /// Another root, in a closed epoch.
    Differs = 2,
    /// The epoch is not closed here yet.
    NotClosed = 3,
    /// Settled here already: `settled` and `chain` say how far, and with what.
    Ahead = 4,
    /// This node does not hold the partition, or not yet.
    NotHere = 5,
    /// The two rings are not of the same version.
    OtherTopology = 6,
    /// The replica could not look: its disk failed, or it has too much to do.
    Failed = 7,
}

/// Are our sets equal?
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Roots {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Topology version of the asker.
    #[prost(uint64, tag = "2")]
    pub topology: u64,
    /// What is compared.
    #[prost(message, repeated, tag = "3")]
    pub items: Vec<RootItem>,
}

/// One (partition, epoch) of the asker.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct RootItem {
    /// The partition.
    #[prost(uint32, tag = "1")]
    pub partition: u32,
    /// A closed epoch.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// The root of the asker's tree.
    #[prost(bytes = "bytes", tag = "3")]
    pub root: Bytes,
}

/// Answer to [`Roots`]: one for each of its items, in their order.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct RootsReply {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// A status of the whole; the answers are empty unless it is OK.
    #[prost(enumeration = "super::Status", tag = "2")]
    pub status: i32,
    /// The answers.
    #[prost(message, repeated, tag = "3")]
    pub answers: Vec<RootReply>,
}

/// Answer to one [`RootItem`].
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct RootReply {
    /// A [`Verdict`].
    #[prost(enumeration = "Verdict", tag = "1")]
    pub verdict: i32,
    /// With [`Verdict::Ahead`]: the watermark. With [`Verdict::NotClosed`]: the epoch closed last.
    #[prost(uint64, tag = "2")]
    pub epoch: u64,
    /// With [`Verdict::Ahead`]: the chain of roots up to the watermark.
    #[prost(bytes = "bytes", tag = "3")]
    pub chain: Bytes,
}

/// Hashes of nodes of the replica's tree.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Hashes {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The epoch.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    /// Level of the nodes, 0 the root's.
    #[prost(uint32, tag = "4")]
    pub level: u32,
    /// Their places in the level.
    #[prost(uint32, repeated, tag = "5")]
    pub nodes: Vec<u32>,
}

/// Answer to [`Hashes`].
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct HashesReply {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// A status.
    #[prost(enumeration = "super::Status", tag = "2")]
    pub status: i32,
    /// One for each node asked for, in their order.
    #[prost(bytes = "bytes", tag = "3")]
    pub hashes: Bytes,
}

/// Index rows of some buckets.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Rows {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The partition.
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// The epoch.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    /// The buckets: leaves of the tree, growing.
    #[prost(uint32, repeated, tag = "4")]
    pub buckets: Vec<u32>,
    /// Of the first bucket only keys after this one.
    #[prost(bytes = "bytes", optional, tag = "5")]
    pub after: Option<Bytes>,
}

/// Answer to [`Rows`].
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct RowsReply {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// A status.
    #[prost(enumeration = "super::Status", tag = "2")]
    pub status: i32,
    /// Rows bucket by bucket, in each in key order.
    #[prost(message, repeated, tag = "3")]
    pub rows: Vec<Row>,
    /// Whether rows may follow after the last one.
    #[prost(bool, tag = "4")]
    pub more: bool,
}

/// This version of this key was written in the epoch.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Row {
    /// The key.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// The version's stamp.
    #[prost(fixed64, tag = "2")]
    pub hlc: u64,
    /// The version's coordinator.
    #[prost(fixed64, tag = "3")]
    pub node: u64,
    /// The record's digest.
    #[prost(bytes = "bytes", tag = "4")]
    pub digest: Bytes,
    /// Value or tombstone, as in the record's binary form.
    #[prost(uint32, tag = "5")]
    pub kind: u32,
    /// Its bucket, where rows of several were asked for.
    #[prost(uint32, tag = "6")]
    pub bucket: u32,
}

/// The current records of these keys.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Fetch {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The keys, all of one partition.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub keys: Vec<Bytes>,
}

/// Answer to [`Fetch`]: records in the order of the keys, up to a bound of bytes. Who has none of a
/// key leaves it out, so the asker looks at each record's own key, and asks again for what is missing.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct FetchReply {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// A status.
    #[prost(enumeration = "super::Status", tag = "2")]
    pub status: i32,
    /// The records, in their binary form.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub records: Vec<Bytes>,
    /// Keys of the request that were looked at: the first so many.
    #[prost(uint32, tag = "4")]
    pub taken: u32,
}

/// A page of a partition, for a replica that is to hold it.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Stream {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Topology version of the asker.
    #[prost(uint64, tag = "2")]
    pub topology: u64,
    /// The partition.
    #[prost(uint32, tag = "3")]
    pub partition: u32,
    /// Only keys after this one.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub after: Option<Bytes>,
    /// Only how far the replica has settled is wanted, no records.
    #[prost(bool, tag = "5")]
    pub is_probe: bool,
}

/// Answer to [`Stream`].
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct StreamReply {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// A status.
    #[prost(enumeration = "super::Status", tag = "2")]
    pub status: i32,
    /// Records in key order, tombstones included.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub records: Vec<Bytes>,
    /// Whether keys may follow after the last one.
    #[prost(bool, tag = "4")]
    pub more: bool,
    /// The source's watermark of the partition.
    #[prost(uint64, tag = "5")]
    pub settled: u64,
    /// The source's chain of roots up to there.
    #[prost(bytes = "bytes", tag = "6")]
    pub chain: Bytes,
}

/// How does a range of your settled records stand to mine? For the scrub, where rows are long gone.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Range {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Topology version of the asker.
    #[prost(uint64, tag = "2")]
    pub topology: u64,
    /// The partition.
    #[prost(uint32, tag = "3")]
    pub partition: u32,
    /// The asker's watermark of it: records of later epochs are left out.
    #[prost(uint64, tag = "4")]
    pub settled: u64,
    /// The asker's chain. Who has another watermark or chain has nothing to say.
    #[prost(bytes = "bytes", tag = "5")]
    pub chain: Bytes,
    /// Values that expire at or before this time are left out, milliseconds since 1970; so are tombstones.
    #[prost(uint64, tag = "6")]
    pub left_out_ms: u64,
    /// Only keys after this one.
    #[prost(bytes = "bytes", optional, tag = "7")]
    pub after: Option<Bytes>,
    /// Only keys up to and including this one.
    #[prost(bytes = "bytes", optional, tag = "8")]
    pub up_to: Option<Bytes>,
    /// The root of the asker's records there. Absent: rows are wanted.
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub root: Option<Bytes>,
    /// Of which buckets rows are wanted; none: of all.
    #[prost(uint32, repeated, tag = "10")]
    pub buckets: Vec<u32>,
}

/// Answer to [`Range`].
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct RangeReply {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// A status.
    #[prost(enumeration = "super::Status", tag = "2")]
    pub status: i32,
    /// A [`Verdict`]: equal, differs, or not here, which means: not with that past.
    #[prost(enumeration = "Verdict", tag = "3")]
    pub verdict: i32,
    /// With [`Verdict::Differs`]: the hashes of all buckets; none if there is too much to sum up.
    #[prost(bytes = "bytes", tag = "4")]
    pub hashes: Bytes,
    /// Rows that were asked for, in key order.
    #[prost(message, repeated, tag = "5")]
    pub rows: Vec<Row>,
    /// The key to go on after, unless these were all.
    #[prost(bytes = "bytes", optional, tag = "6")]
    pub next: Option<Bytes>,
}

/// A hash in 16 bytes.
pub(crate) fn hash_bytes(hash: u128) -> Bytes {
    Bytes::copy_from_slice(&hash.to_le_bytes())
}

/// The hash in 16 bytes; none if they are not 16.
pub(crate) fn hash_of(bytes: &[u8]) -> Option<u128> {
    Some(u128::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::Message;
    use super::*;

    pub(in super::super) fn any_sync_message() -> impl Strategy<Value = Message> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from);
        let item =
            (any::<u32>(), any::<u64>(), bytes()).prop_map(|(partition, epoch, root)| RootItem {
                partition,
                epoch,
                root,
            });
        let row =
            (bytes(), any::<u64>(), any::<u64>(), bytes()).prop_map(|(key, hlc, node, digest)| {
                Row {
                    key,
                    hlc,
                    node,
                    digest,
                    kind: 1,
                    bucket: hlc as u32,
                }
            });
        prop_oneof![
            (any::<u64>(), prop::collection::vec(item, 0..4)).prop_map(|(id, items)| {
                Message::Roots(Roots {
                    id,
                    topology: id,
                    items,
                })
            }),
            (any::<u64>(), prop::collection::vec(any::<u32>(), 0..9)).prop_map(|(id, nodes)| {
                Message::Hashes(Hashes {
                    id,
                    partition: 3,
                    epoch: id,
                    level: 1,
                    nodes,
                })
            }),
            (
                any::<u64>(),
                prop::collection::vec(row, 0..4),
                any::<bool>()
            )
                .prop_map(|(id, rows, more)| Message::RowsReply(RowsReply {
                    id,
                    status: 0,
                    rows,
                    more
                })),
            (any::<u64>(), prop::collection::vec(bytes(), 0..4))
                .prop_map(|(id, keys)| Message::Fetch(Fetch { id, keys })),
            (any::<u64>(), prop::collection::vec(bytes(), 0..4), bytes()).prop_map(
                |(id, records, chain)| Message::StreamReply(StreamReply {
                    id,
                    status: 0,
                    records,
                    more: false,
                    settled: id,
                    chain
                })
            ),
        ]
    }

    #[test]
    fn a_hash_is_sixteen_bytes() {
        assert_eq!(hash_of(&hash_bytes(7)), Some(7));
        assert_eq!(hash_of(&hash_bytes(7)[..15]), None);
    }
}
