//! The bookkeeping of one read, and of the repair that it may need.

use std::cmp::Ordering;

use mds_types::mutation::{Mutation, is_on};
use mds_types::{Record, Version};

use super::{Outcome, ReplicaSet, Tally};

/// What the replicas answered to one read.
///
/// Only the newest record is kept, and who holds it: no allocation, whatever N is. An answer that is
/// newer than all before, even one that comes while a repair is waited for, becomes the newest, and
/// its holders are counted afresh; that can happen once per replica at most.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadQuorum {
    tally: Tally,
    newest: Option<Record>,
    /// Answered with the newest record.
    holders: ReplicaSet,
    /// Acknowledged that they hold it since.
    repaired: ReplicaSet,
}

impl ReadQuorum {
    /// R = `needed` of a replica set of `of` (at most `REPLICAS_MAX`).
    pub fn new(needed: u8, of: u8) -> ReadQuorum {
        let needed = needed - u8::from(is_on(Mutation::ReadQuorumShort) && needed > 1);
        ReadQuorum {
            tally: Tally::new(needed, of),
            newest: None,
            holders: ReplicaSet::EMPTY,
            repaired: ReplicaSet::EMPTY,
        }
    }

    /// The replica's answer: its record of the key (a tombstone is one), or none if it has none.
    /// Returns where the quorum stands.
    pub fn answer(&mut self, replica: usize, record: Option<Record>) -> Outcome {
        if !self.tally.is_news(replica) {
            return self.tally.outcome;
        }
        if let Some(record) = record {
            let order = match &self.newest {
                None => Ordering::Greater,
                Some(newest) => record.merge_order(newest),
            };
            match order {
                Ordering::Greater => {
                    self.newest = Some(record);
                    self.holders = ReplicaSet::EMPTY;
                    self.holders.insert(replica);
                    self.repaired = ReplicaSet::EMPTY;
                }
                Ordering::Equal => self.holders.insert(replica),
                Ordering::Less => {}
            }
        }
        self.tally.answer(replica);
        self.tally.outcome
    }

    /// The replica refused, could not be reached, or did not answer in time.
    pub fn fail(&mut self, replica: usize) -> Outcome {
        self.tally.fail(replica);
        self.tally.outcome
    }

    /// A replica acknowledged a write-back of `version`: it holds that or something newer, durably.
    /// An acknowledgement of what has since proved not to be the newest counts for nothing.
    pub fn repair_acked(&mut self, replica: usize, version: Version) {
        let is_newest = self
            .newest
            .as_ref()
            .is_some_and(|newest| newest.version == version);
        if is_newest && replica < usize::from(self.tally.of) {
            self.repaired.insert(replica);
        }
    }

    /// Where the quorum stands.
    pub fn outcome(&self) -> Outcome {
        self.tally.outcome
    }

    /// The newest record among all answers, by the merge law; none if no replica has one. It may be
    /// a tombstone, or expired.
    pub fn newest(&self) -> Option<&Record> {
        self.newest.as_ref()
    }

    /// Whether all answers so far say the same.
    pub fn is_unanimous(&self) -> bool {
        self.newest.is_none() || self.holders == self.tally.answered
    }

    /// The replicas known to hold the newest record durably: answered with it or acknowledged it.
    pub fn durable_on(&self) -> ReplicaSet {
        self.holders.union(self.repaired)
    }

    /// How many repairs have to be acknowledged until `w` replicas are known to hold the newest
    /// record. Zero if there is no record.
    pub fn repair_acks_needed(&self, w: u8) -> u8 {
        match self.newest {
            None => 0,
            Some(_) => w.saturating_sub(self.durable_on().len()),
        }
    }

    /// Whether the reader may hear the newest record: the quorum is met, and the answers agree or
    /// `w` replicas are known to hold it. See the module's chapter for what this promises.
    pub fn may_answer(&self, w: u8) -> bool {
        self.tally.outcome == Outcome::Met
            && (is_on(Mutation::NoBlockingRepair)
                || self.is_unanimous()
                || self.repair_acks_needed(w) == 0)
    }

    /// The replicas that answered with something older than the newest, or with nothing, and have
    /// not acknowledged a repair: they need the newest record.
    pub fn stale(&self) -> ReplicaSet {
        match self.newest {
            None => ReplicaSet::EMPTY,
            Some(_) => self.tally.answered.without(self.durable_on()),
        }
    }

    /// The replicas of which nothing is known: no answer, no acknowledged repair. A repair may be
    /// sent to them too, when those that answered are too few to make the record durable.
    pub fn silent(&self) -> ReplicaSet {
        self.tally.unanswered().without(self.repaired)
    }

    /// The replicas that have neither answered nor failed.
    pub fn outstanding(&self) -> ReplicaSet {
        self.tally.unanswered().without(self.tally.failed)
    }

    /// R.
    pub fn needed(&self) -> u8 {
        self.tally.needed
    }

    /// Size of the replica set.
    pub fn of(&self) -> u8 {
        self.tally.of
    }

    /// How many replicas have answered.
    pub fn answered_count(&self) -> u8 {
        self.tally.answered.len()
    }

    /// The replicas that have answered.
    pub fn answered(&self) -> ReplicaSet {
        self.tally.answered
    }
}
