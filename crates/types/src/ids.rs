//! Identifiers. Each is a type of its own, so that a partition is never taken for an epoch.
//!
//! A node is named by the directory that it stores its data in: a fresh directory draws a random
//! [`IncarnationId`], and the [`NodeId`] is cut from it. A wiped disk is therefore a *new* node by
//! construction: it cannot inherit the promises (votes, acknowledged writes) of the old one
//! (traps T7 and T17: an amnesiac replica that counts as a good one).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $int:ty, $digits:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{:0", $digits, "x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:0", $digits, "x})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;

            /// Reads the hexadecimal form that `Display` writes.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                <$int>::from_str_radix(text, 16).map($name)
            }
        }
    };
}

hex_id! {
    /// A node of the cluster, for as long as its data directory lives. Drawn at random, never
    /// reused; zero means "nobody".
    NodeId, u64, "16"
}
hex_id! {
    /// The random identity of one data directory. Its low 64 bits are the [`NodeId`].
    IncarnationId, u128, "32"
}
hex_id! {
    /// The identity that a cluster gets once, when it is born by an explicit act. Zero means "not
    /// part of any cluster yet".
    ClusterId, u128, "32"
}

hex_id! {
    /// Names one request of an administrator, so that it can be repeated: a repetition is the same
    /// request. Chosen by whoever asks, at random or as a UUID.
    RequestId, u128, "32"
}

impl From<u64> for NodeId {
    fn from(number: u64) -> NodeId {
        NodeId(number)
    }
}

impl IncarnationId {
    /// The node that lives in the directory with this incarnation.
    pub fn node_id(self) -> NodeId {
        NodeId(self.0 as u64)
    }
}

impl ClusterId {
    /// "Not part of any cluster yet".
    pub const NONE: ClusterId = ClusterId(0);

    /// Whether this is [`ClusterId::NONE`].
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $int:ty) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
        )]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id! {
    /// A number that Raft advances; each record carries the epoch that its coordinator saw.
    Epoch, u64
}
number_id! {
    /// The version of the agreed member list. Only Raft raises it.
    TopologyVersion, u64
}
number_id! {
    /// A contiguous range of slots: `0..partition_count`.
    PartitionId, u16
}
