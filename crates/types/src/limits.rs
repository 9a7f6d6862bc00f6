//! Bounds that more than one crate respects, with their units and what happens beyond them.
//!
//! Limits are checked before the first durable byte: what is refused leaves no trace.

/// Keys of 1 to this many bytes are accepted; others are refused as a bad request.
pub const KEY_BYTES_MAX: usize = 32 * 1024;

/// Default bound on a value; a larger one is refused as too large. Configurable downwards.
pub const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bound on the encoded form of one record: key, value and header.
pub const RECORD_BYTES_MAX: usize = KEY_BYTES_MAX + VALUE_BYTES_MAX + 64;

/// Bound on one frame between two nodes; a longer one ends the connection.
pub const FRAME_BYTES_MAX: usize = RECORD_BYTES_MAX + 1024 * 1024;

/// Slots of the key space, as in Redis Cluster.
pub const SLOT_COUNT: u16 = 16384;

/// Replicas of a partition: 1 to this many.
pub const REPLICAS_MAX: u8 = 9;

/// Members of a cluster that vote in Raft, at most; the others learn.
pub const VOTERS_MAX: usize = 5;

/// Members of a cluster. Every node knows all of them.
pub const MEMBERS_MAX: usize = 1024;

/// Bytes of a node's name, zone, or any of its addresses in the member list.
pub const MEMBER_TEXT_BYTES_MAX: usize = 128;

/// A write stamped further ahead of this node's clock than this is refused, in microseconds.
pub const CLOCK_SKEW_US_MAX: u64 = 5_000_000;
