//! The bookkeeping of one write.

use mds_types::mutation::{Mutation, is_on};

use super::{Needs, Outcome, ReplicaSet, RingSide, Shortfall, Tally};

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

    /// W in each of two rings, over `of` replicas (at most [`super::REPLICAS_JOINT_MAX`]): the current ring's
    /// first, then those that are only in the next one.
    pub fn joint(needs: Needs, of: u8) -> WriteQuorum {
        WriteQuorum {
            tally: Tally::over(needs, of),
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

    /// The ring in which those that answered and those that still may are too few, with their number now: the
    /// outcome keeps the number of the moment when it became impossible.
    pub fn hopeless(&self) -> Option<Shortfall> {
        self.tally.hopeless()
    }

    /// The ring that made the quorum impossible.
    pub fn failed_ring(&self) -> Option<RingSide> {
        self.tally.failed_ring
    }

    /// What the acknowledgements so far lack, in the ring that lacks most: for numbers that people read.
    pub fn shortfall(&self) -> Shortfall {
        self.tally.shortfall()
    }

    /// W, in the current ring if there are two.
    pub fn needed(&self) -> u8 {
        self.tally.needs.current.needed
    }

    /// How many replicas the write goes to, in all rings.
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
        self.tally.outstanding()
    }
}
