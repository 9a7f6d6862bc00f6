//! A digest of everything that a node has applied, in order.
//!
//! Raft promises *state machine safety*: if a node has applied an entry at an index, no other ever
//! applies another there (Ongaro, *Consensus: Bridging Theory and Practice*, figure 3.2). So each node
//! keeps a hash chain over what it applies, `hash(n) = h(hash(n-1) | entry n)`: two nodes that have applied
//! up to the same index have the same hash, or they have parted at or before it, and that stays visible
//! for ever, even where the states have become equal again since. Operators compare nodes by it, and
//! so does the simulator.
//!
//! The entry is hashed in the form in which it lies in the log: index, term, leader and command. This is no
//! protection against forgers: the hash is xxh3-128.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::Entry;

/// The hash over all applied entries, up to the one that it is shown with.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Chain(pub u128);

impl Chain {
    /// One entry more.
    ///
    /// # Errors
    /// Never for an entry that came out of the log; the encoder's type says otherwise.
    pub(crate) fn next(self, entry: &Entry) -> Result<Chain, postcard::Error> {
        let mut hash = Xxh3::new();
        hash.update(&self.0.to_le_bytes());
        hash.update(&postcard::to_stdvec(entry)?);
        Ok(Chain(hash.digest128()))
    }
}

impl std::fmt::Display for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
