//! Epochs and their verification.

use serde::{Deserialize, Serialize};

/// `/v1/epochs`: how far one node is with its epochs. It speaks of that node alone.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct EpochsBody {
    /// 16 hexadecimal digits.
    pub id: String,
    /// For people.
    pub name: String,
    /// The present epoch.
    pub epoch: u64,
    /// The epoch that was closed last here.
    pub closed: u64,
    /// The lowest watermark of all partitions held here: all epochs up to it are verified. Null if none is held.
    pub settled: Option<u64>,
    /// The highest one.
    pub settled_most: Option<u64>,
    /// The lowest watermark of collection: dead records that epochs up to it left are gone.
    pub collected: Option<u64>,
    /// Rows of epochs up to this one were dropped for want of room, where they were not settled.
    pub unverifiable: u64,
    /// Epochs that are closed and not verified in all partitions held here.
    pub lag_epochs: u64,
    /// How long the oldest of them has been closed, milliseconds; at least, if that was before this node's
    /// start.
    pub lag_ms: u64,
    /// Partitions, by whether and how they are here.
    pub partitions: PartitionCountsBody,
    /// Members that have been waited for longer than a moment, so that something can be settled here.
    pub blocked_by: Vec<AwaitedBody>,
    /// The latest epochs, the newest first.
    pub epochs: Vec<EpochBody>,
}

/// Partitions, by whether and how they are at a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PartitionCountsBody {
    /// Held.
    pub held: u64,
    /// Being copied here.
    pub streaming: u64,
    /// Being removed.
    pub wiping: u64,
    /// Not here.
    pub absent: u64,
}

/// A member that verification waits for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct AwaitedBody {
    /// 16 hexadecimal digits.
    pub id: String,
    /// For people.
    pub name: String,
    /// Whether gossip holds it for alive.
    pub alive: bool,
    /// Since when, milliseconds since 1970, by the answering node's clock.
    pub since_ms: u64,
}

/// One epoch at one node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct EpochBody {
    /// Its number.
    pub epoch: u64,
    /// `present` (writes carry it), `open` (late writes of it are still taken), `closed`, `settled` (verified
    /// in all partitions held here), `collected`.
    pub state: String,
    /// When it began, milliseconds since 1970. Null if that was before this node's start.
    pub began_at_ms: Option<u64>,
    /// When it was closed. Null if it is not, or if that was before this node's start.
    pub closed_at_ms: Option<u64>,
    /// Partitions held here that have settled it.
    pub settled: u64,
    /// Partitions held here that have collected it.
    pub collected: u64,
    /// Bytes of its rows in files of the epoch index; what is not flushed yet is not among them.
    pub index_bytes: u64,
}

/// `/v1/verify`: what one replica has of one epoch of a partition. Comparing is for whoever asks several.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct EpochSetBody {
    /// 16 hexadecimal digits.
    pub id: String,
    /// For people.
    pub name: String,
    /// The partition.
    pub partition: u16,
    /// The epoch.
    pub epoch: u64,
    /// `not_closed`: writes of it may come still. `closed`: `root` and `leaves` are what is compared.
    /// `settled`: found equal on all replicas, and dropped; `chain` is what is left. `copied`: the partition
    /// is being copied here from a replica that had settled it. `lost`: its rows were dropped for want of room.
    /// `not_here`: the partition is not here.
    pub state: String,
    /// The epoch that was closed last here.
    pub closed: u64,
    /// The partition's watermark here.
    pub settled: u64,
    /// A hash over the roots of all epochs up to the watermark, 32 hexadecimal digits.
    pub chain: String,
    /// Dead records that epochs up to this one left are gone.
    pub collected: u64,
    /// The root of the epoch's Merkle tree, 32 hexadecimal digits; zeros if nothing was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Rows: keys that were written in the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// The tree's leaves, bucket by bucket.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leaves: Vec<LeafBody>,
}

/// A leaf of a Merkle tree.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LeafBody {
    /// 32 hexadecimal digits; zeros if it is empty.
    pub hash: String,
    /// Rows in its bucket.
    pub rows: u32,
}

/// How far a node is with the partitions that it has to get.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CopyingBody {
    /// Partitions that it has to get; while the ring changes, also those that it has got by now.
    pub partitions: u64,
    /// Of these, those that are not whole there yet.
    pub left: u64,
    /// Partitions that change hands, and are not verified there up to the epoch that has to be.
    pub unverified: u64,
    /// Records copied since the change began, or since the node was started.
    pub records: u64,
    /// Bytes of these.
    pub bytes: u64,
}
