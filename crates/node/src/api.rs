//! What a front-end (RESP, HTTP, a test, the simulator) asks of the database, and what it hears.
//!
//! A front-end hands a [`Request`] with a [`Tag`] to a [`Submit`] and gets the tag back with the
//! answer, perhaps at once, perhaps after a few turns. Nothing blocks, nothing is allocated per
//! request beyond its own bytes, and the order of answers is free: a front-end that must answer in
//! order (RESP) keeps ordered slots of its own.

use std::sync::Arc;

use bytes::Bytes;
use mds_types::{DecodeError, Epoch, PartitionId, Record, Version};

/// The time, as a turn sees it. Both clocks are arguments, never read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// Monotonic nanoseconds since some start; for deadlines.
    pub mono_ns: u64,
    /// Microseconds since 1970; for stamps and expiry. May jump.
    pub wall_us: u64,
}

impl Now {
    /// Milliseconds since 1970, as expiry counts.
    pub fn wall_ms(self) -> u64 {
        self.wall_us / 1_000
    }
}

/// Which front-end asked, and its own number for the question.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tag {
    /// Routes the answer back: see the `FRONT_*` constants.
    pub front: u8,
    /// Opaque to the core.
    pub id: u64,
}

/// Answers go to the RESP front-end.
pub const FRONT_RESP: u8 = 1;
/// Answers go to the HTTP front-end.
pub const FRONT_HTTP: u8 = 2;

/// One question.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// With which quorums, until when.
    pub options: RequestOptions,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// Read a key.
    Get {
        /// The key.
        key: Bytes,
    },
    /// Write a value.
    Put {
        /// The key.
        key: Bytes,
        /// The value, possibly empty.
        value: Bytes,
        /// Absolute expiry, milliseconds since 1970.
        expires_at_ms: Option<u64>,
    },
    /// Write a tombstone. Deleting an absent key is a success.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// A page of a partition's live records in key order, asked of R replicas and merged.
    Scan {
        /// The partition.
        partition: PartitionId,
        /// Only keys after this one.
        after: Option<Bytes>,
        /// Records at most; the page may hold fewer and still not be the last.
        limit: u32,
    },
    /// How many live records a partition holds, as its nearest replica counts.
    Count {
        /// The partition.
        partition: PartitionId,
    },
}

/// What a request may choose for itself. `None` means the cluster's or node's default.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct RequestOptions {
    /// R: replicas that must answer a read.
    pub read_quorum: Option<u8>,
    /// W: replicas that must have made a write durable.
    pub write_quorum: Option<u8>,
    /// How long to wait for the quorum, milliseconds.
    pub timeout_ms: Option<u32>,
    /// The greatest version the client has seen: its writes get a later stamp.
    pub seen: Option<Version>,
    /// The very stamp this write had when it was first sent: a retry that is the same write,
    /// through any coordinator.
    pub stamp: Option<Stamp>,
    /// A client's own name for this write, hashed: a retry through the *same* coordinator is the same
    /// write while the coordinator remembers it.
    pub request_id: Option<u128>,
}

/// What a write is stamped with, once: the retry token. A retry carries all of it, because the same
/// version with another epoch or another value would be another record, which merging could not tell
/// from the first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Stamp {
    /// Who wrote, when.
    pub version: Version,
    /// The epoch that the first coordinator saw.
    pub epoch: Epoch,
    /// A hash of what is written: a token that comes back with another write is refused.
    pub content: u64,
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}-{:x}-{:016x}",
            self.version, self.epoch.0, self.content
        )
    }
}

impl std::str::FromStr for Stamp {
    type Err = DecodeError;

    /// Reads the form that `Display` writes: the token clients carry.
    fn from_str(text: &str) -> Result<Stamp, DecodeError> {
        let malformed = DecodeError::Malformed("retry token");
        let number = |text| u64::from_str_radix(text, 16).map_err(|_| malformed);
        let (rest, content) = text.rsplit_once('-').ok_or(malformed)?;
        let (version, epoch) = rest.rsplit_once('-').ok_or(malformed)?;
        Ok(Stamp {
            version: version.parse()?,
            epoch: Epoch(number(epoch)?),
            content: number(content)?,
        })
    }
}

/// What a request came to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Answer to `Get`. A deleted or expired key has no value but may have a version.
    Read {
        /// The newest version among the replicas asked, if any had one.
        version: Option<Version>,
        /// The value, if the key is live.
        value: Option<Bytes>,
        /// Its expiry, milliseconds since 1970.
        expires_at_ms: Option<u64>,
    },
    /// Answer to `Put` and `Delete`: durable on `acked` replicas, at least W.
    Written {
        /// The version of the write.
        version: Version,
        /// Replicas that had it durable when the answer was made.
        acked: u8,
    },
    /// Answer to `Scan`.
    Page {
        /// Live records in key order.
        records: Vec<Record>,
        /// Where the next page begins (after this key); none when the partition is finished.
        next: Option<Bytes>,
    },
    /// Answer to `Count`.
    Count(u64),
}

/// Why a request did not succeed, by what the client can do about it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum RequestError {
    /// The request itself is wrong: retrying it is useless.
    #[error("{0}")]
    BadRequest(String),
    /// Key or value beyond its limit.
    #[error("{what} is {bytes} bytes, more than the limit of {limit}")]
    TooLarge {
        /// `key` or `value`.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Too few replicas can answer. For a write: nothing was sent, so nothing was done.
    #[error("needed {needed}, got {got} of {of}")]
    Unavailable {
        /// The quorum.
        needed: u8,
        /// Replicas that answered or could have.
        got: u8,
        /// N.
        of: u8,
    },
    /// This node has too much to do; nothing was done. Retry after a pause.
    #[error("overloaded: {0}")]
    Overloaded(&'static str),
    /// This node cannot serve yet, or any more: why, in words.
    #[error("not ready: {0}")]
    NotReady(String),
    /// A write reached some replicas but not (known) W of them: it may or may not become visible.
    /// Retry it with the same stamp to make it certain.
    #[error("outcome unknown: needed {needed}, got {got} of {of}")]
    Unknown {
        /// The quorum.
        needed: u8,
        /// Replicas that acknowledged.
        got: u8,
        /// N.
        of: u8,
        /// What the write carries: the retry token.
        stamp: Stamp,
    },
    /// A read did not get its quorum in time.
    #[error("timed out: needed {needed}, got {got} of {of}")]
    TimedOut {
        /// The quorum.
        needed: u8,
        /// Replicas that answered.
        got: u8,
        /// N.
        of: u8,
    },
}

/// Where requests go: the coordinator of this node, or a test's stand-in.
pub trait Submit {
    /// Takes a request. Its answer comes back through the completions, never from inside this call.
    fn submit(&mut self, now: Now, request: Request, tag: Tag);

    /// What this node knows of the cluster now.
    fn view(&self) -> &Arc<mds_cluster::ClusterView>;
}
