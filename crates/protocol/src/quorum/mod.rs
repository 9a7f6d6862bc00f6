//! Quorums: have enough replicas answered, can they still, and who has to be repaired?
//!
//! [`WriteQuorum`] and [`ReadQuorum`] are the bookkeeping of one request. They send nothing and know
//! no time: the coordinator tells them what it heard from which replica (by its index in the replica
//! set) and asks what follows. (The split is Riak's: `riak_kv_get_core` decides, `get_fsm` drives.)
//!
//! # Rules
//!
//! - **Strict.** Only the N members of the replica set count; hints and stand-ins never do. A quorum
//!   of W and one of R that add up to more than N therefore share a replica.
//! - **`NotFound` is an answer.** An absent key is read as fast as a present one. Errors are no
//!   answers, and a quorum that they made impossible fails at once, with numbers.
//! - **Decided is decided.** Once met or impossible, an outcome never changes: the client may have
//!   been told. Later answers still count for what they are good for: fewer hints, fewer repairs.
//! - **Each replica counts once.** Duplicates change nothing. An answer after a failure (a timeout,
//!   a broken connection) counts, as it says what the replica has; a failure after an answer does
//!   not take it back.
//!
//! # What a read may promise
//!
//! The newest record among the answers is at least as new as every write acknowledged before, if
//! R + W > N. That alone is not monotonic: a value that reached one replica only can be seen by one
//! read and missed by the next. So if the answers differ, the newest is written back, and the reader
//! hears it only once W replicas are known to hold it ([`ReadQuorum::may_answer`]): **blocking read
//! repair**, the second phase of a read in Attiya, Bar-Noy and Dolev, *Sharing Memory Robustly in
//! Message-Passing Systems*, 1995. Answers that agree are given at once: R replicas hold the value,
//! which later reads of R cannot miss if 2R > N.
//!
//! # Two rings
//!
//! While the ring changes, a request may need a quorum in each of two replica sets ([`Needs`]). Its
//! replicas are then one list, the current ring's first and then those that are only in the next one, and each
//! counts in every set that it is in. It is met when both quorums are, and impossible as soon as either is; the
//! numbers are those of the ring that failed ([`WriteQuorum::failed_ring`]). Counting W over the union
//! instead is a classic mistake (trap T5): two replicas of the new ring and two of the old one need not
//! have anything in common.
//!
//! Where reads ask the current ring alone while writes go to both, unanimous answers are not enough for a record that was
//! stamped during the change: R replicas of the *current* ring hold it, and a later reader of the next one may
//! meet none of them. Such a record is written back to both rings first ([`ReadQuorum::joint`]).
//!
//! What this does not do: choose replicas, wait, hedge, or know the stage of a change.

mod needs;
mod read;
#[cfg(test)]
mod tests;
mod write;

use std::fmt;

use mds_types::limits::REPLICAS_MAX;
use mds_types::mutation::{Mutation, is_on};

pub use needs::{Need, Needs, RingSide, Shortfall};
pub use read::ReadQuorum;
pub use write::WriteQuorum;

/// Where a quorum stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// More answers are needed, and can still come.
    Pending,
    /// Enough replicas have answered. Final.
    Met,
    /// Too many replicas have failed. Final. With two rings the numbers are those of the ring that failed.
    Impossible {
        /// The quorum.
        needed: u8,
        /// Replicas that answered, or still could have, when it became impossible.
        got: u8,
        /// Replicas in the set.
        of: u8,
    },
}

/// Why a quorum is refused before anything is sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{name} is {quorum}: it has to be 1 to n, and n is {replicas}")]
pub struct QuorumError {
    /// `r` or `w`.
    pub name: &'static str,
    /// The given value.
    pub quorum: u8,
    /// N, as the cluster is configured.
    pub replicas: u8,
}

/// Checks a quorum that a client asked for against the configured N. `name` is `r` or `w`.
///
/// # Errors
/// Outside `1..=n`: retrying is useless.
pub fn check_quorum(name: &'static str, quorum: u8, n: u8) -> Result<(), QuorumError> {
    if (1..=n).contains(&quorum) {
        Ok(())
    } else {
        Err(QuorumError {
            name,
            quorum,
            replicas: n,
        })
    }
}

/// Replicas of one request: those of two rings that have none in common, at most.
pub const REPLICAS_JOINT_MAX: u8 = 2 * REPLICAS_MAX;

/// Some of the replicas of one request, by index.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplicaSet(u32);

// One bit per replica.
const _: () = assert!((REPLICAS_JOINT_MAX as u32) < u32::BITS);

impl ReplicaSet {
    /// None of them.
    pub const EMPTY: ReplicaSet = ReplicaSet(0);

    /// The first `of` replicas: the whole set.
    ///
    /// # Panics
    /// If `of` exceeds [`REPLICAS_JOINT_MAX`]: a programming error.
    pub fn all(of: u8) -> ReplicaSet {
        assert!(of <= REPLICAS_JOINT_MAX, "a replica set of {of}");
        ReplicaSet((1 << of) - 1)
    }

    /// Whether the replica is among them.
    pub fn contains(self, replica: usize) -> bool {
        replica < usize::from(REPLICAS_JOINT_MAX) && self.0 & 1 << replica != 0
    }

    /// How many.
    pub fn len(self) -> u8 {
        self.0.count_ones() as u8
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Their indexes, growing.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..usize::from(REPLICAS_JOINT_MAX)).filter(move |&replica| self.contains(replica))
    }

    fn insert(&mut self, replica: usize) {
        self.0 |= 1 << replica;
    }

    /// Those in either.
    pub fn union(self, other: ReplicaSet) -> ReplicaSet {
        ReplicaSet(self.0 | other.0)
    }

    /// Those in both.
    pub fn intersection(self, other: ReplicaSet) -> ReplicaSet {
        ReplicaSet(self.0 & other.0)
    }

    /// Those of this one that are not in the other.
    pub fn without(self, other: ReplicaSet) -> ReplicaSet {
        ReplicaSet(self.0 & !other.0)
    }
}

impl FromIterator<usize> for ReplicaSet {
    /// Collects indexes; those of [`REPLICAS_JOINT_MAX`] and above are none of a request's replicas and
    /// are left out.
    fn from_iter<I: IntoIterator<Item = usize>>(indexes: I) -> ReplicaSet {
        let mut set = ReplicaSet::EMPTY;
        for index in indexes {
            if index < usize::from(REPLICAS_JOINT_MAX) {
                set.insert(index);
            }
        }
        set
    }
}

impl fmt::Debug for ReplicaSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Who answered and who failed, and what follows: common to reads and writes.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Tally {
    needs: Needs,
    of: u8,
    answered: ReplicaSet,
    failed: ReplicaSet,
    outcome: Outcome,
    failed_ring: Option<RingSide>,
}

impl Tally {
    /// `needed` may exceed `of` (a ring with fewer members than N): impossible from the start.
    fn new(needed: u8, of: u8) -> Tally {
        let of = of.min(REPLICAS_MAX);
        Tally::over(Needs::single(needed, of), of)
    }

    fn over(needs: Needs, of: u8) -> Tally {
        let of = of.min(REPLICAS_JOINT_MAX);
        let needs = match is_on(Mutation::UnionQuorum) {
            true => needs.over_the_union(),
            false => needs,
        };
        let mut tally = Tally {
            needs,
            of,
            answered: ReplicaSet::EMPTY,
            failed: ReplicaSet::EMPTY,
            outcome: Outcome::Pending,
            failed_ring: None,
        };
        tally.settle();
        tally
    }

    /// Whether the replica exists and has not answered yet.
    fn is_news(&self, replica: usize) -> bool {
        replica < usize::from(self.of) && !self.answered.contains(replica)
    }

    fn answer(&mut self, replica: usize) {
        self.answered.insert(replica);
        self.settle();
    }

    fn fail(&mut self, replica: usize) {
        if self.is_news(replica) {
            self.failed.insert(replica);
            self.settle();
        }
    }

    fn unanswered(&self) -> ReplicaSet {
        ReplicaSet::all(self.of).without(self.answered)
    }

    fn outstanding(&self) -> ReplicaSet {
        self.unanswered().without(self.failed)
    }

    /// Replicas that answered or still may.
    fn reachable(&self) -> ReplicaSet {
        self.answered.union(self.outstanding())
    }

    /// What the answers so far still lack, in the ring that lacks most.
    fn shortfall(&self) -> Shortfall {
        self.needs.shortfall(self.answered)
    }

    /// The ring in which those that answered and those that still may are too few.
    fn hopeless(&self) -> Option<Shortfall> {
        self.needs.unmet_by(self.reachable())
    }

    /// The replicas that should be asked, beside those that were asked already.
    fn to_ask(&self, asked: ReplicaSet) -> ReplicaSet {
        let outstanding = self.outstanding();
        let hoped = self.answered.union(asked.intersection(outstanding));
        let lacking = self.needs.lacking(hoped);
        lacking.intersection(outstanding).without(asked)
    }

    fn settle(&mut self) {
        if self.outcome != Outcome::Pending {
            return;
        }
        if self.needs.are_met_by(self.answered) {
            self.outcome = Outcome::Met;
        } else if let Some(short) = self.hopeless() {
            self.failed_ring = Some(short.ring);
            self.outcome = Outcome::Impossible {
                needed: short.needed,
                got: short.got,
                of: short.of,
            };
        }
    }
}
