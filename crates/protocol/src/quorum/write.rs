//! The bookkeeping of one write.

use mds_types::mutation::{Mutation, is_on};

use super::{Outcome, ReplicaSet, Tally};

/// Which replicas have made one write durable.
///
/// A failure here says that the replica did not acknowledge, not that it did not write: after
/// something was sent, an impossible quorum leaves the outcome *unknown*. Whoever is in
/// [`WriteQuorum::unacked`] gets a hint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteQuorum {
    tally: Tally,
}

impl WriteQuorum {
    /// W = `needed` of a replica set of `of` (at most `REPLICAS_MAX`).
    pub fn new(needed: u8, of: u8) -> WriteQuorum {
        let needed = needed - u8::from(is_on(Mutation::WriteQuorumShort) && needed > 1);
        WriteQuorum {
            tally: Tally::new(needed, of),
        }
    }

    /// The replica has made the write durable, or holds a newer version. Returns where the quorum
    /// stands.
    pub fn ack(&mut self, replica: usize) -> Outcome {
        if self.tally.is_news(replica) {
            self.tally.answer(replica);
        }
        self.tally.outcome
    }

    /// The replica refused, could not be reached, or did not answer in time.
    pub fn fail(&mut self, replica: usize) -> Outcome {
        self.tally.fail(replica);
        self.tally.outcome
    }

    /// Where the quorum stands.
    pub fn outcome(&self) -> Outcome {
        self.tally.outcome
    }

    /// W.
    pub fn needed(&self) -> u8 {
        self.tally.needed
    }

    /// Size of the replica set.
    pub fn of(&self) -> u8 {
        self.tally.of
    }

    /// How many replicas hold the write durably, as far as known.
    pub fn acked_count(&self) -> u8 {
        self.tally.answered.len()
    }

    /// The replicas that hold the write durably, as far as known.
    pub fn acked(&self) -> ReplicaSet {
        self.tally.answered
    }

    /// The replicas not known to hold the write: failed or silent.
    pub fn unacked(&self) -> ReplicaSet {
        self.tally.unanswered()
    }

    /// The replicas that have neither acknowledged nor failed.
    pub fn outstanding(&self) -> ReplicaSet {
        self.tally.unanswered().without(self.tally.failed)
    }
}
