//! Decisions as plain values: who holds a key, and when have enough replicas answered.
//!
//! Nothing here performs anything. There is no socket, file, clock, task, lock or random number in
//! this crate (clippy's lists in `clippy.toml` enforce it): what has happened is an argument, what
//! follows from it is the result. So each rule can be read in one place and tested by itself, and
//! the node, the simulator and the tools cannot disagree about it.
//!
//! - [`placement`]: topology in, replica sets out;
//! - [`quorum`]: answers in; met, impossible or pending out, and what has to be repaired;
//! - [`merkle`]: a remote tree's hashes in, the buckets that differ out;
//! - [`verification`]: other replicas' answers in; which epochs are the same everywhere, and who holds that up.

#[cfg(test)]
mod golden;
pub mod merkle;
pub mod placement;
pub mod quorum;
pub mod verification;

pub use placement::{NodeLoad, Placement};
pub use quorum::{
    Need, Needs, Outcome, QuorumError, REPLICAS_JOINT_MAX, ReadQuorum, ReplicaSet, RingSide,
    Shortfall, WriteQuorum, check_quorum,
};
