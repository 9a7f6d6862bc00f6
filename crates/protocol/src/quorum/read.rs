//! The bookkeeping of one read, and of the repair that it may need.

use std::cmp::Ordering;

use mds_types::mutation::{Mutation, is_on};
use mds_types::{Epoch, Record, Version};

use super::{Needs, Outcome, ReplicaSet, RingSide, Shortfall, Tally};

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
    /// While the ring changes.
    joint: Option<Joint>,
}

/// What a read needs beside its answers while the ring changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Joint {
    /// Where a write-back has to be durable.
    write_back: Needs,
    /// A record of this epoch or a later one is shown only when it is durable there.
    shown_after_write_back_from: Option<Epoch>,
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
            joint: None,
        }
    }

    /// A read while the ring changes, over `of` replicas (at most [`super::REPLICAS_JOINT_MAX`]): the current
    /// ring's first, then those that are only in the next one.
    ///
    /// It needs `reads` to be met, and what it writes back has to meet `write_back`. A record of epoch
    /// `shown_after_write_back_from` or later is shown only when it is known to meet `write_back`, even if
    /// all answers agree (see `mds_types::Rings::shown_after_write_back_from`).
    pub fn joint(
        reads: Needs,
        write_back: Needs,
        of: u8,
        shown_after_write_back_from: Option<Epoch>,
    ) -> ReadQuorum {
        ReadQuorum {
            tally: Tally::over(reads, of),
            newest: None,
            holders: ReplicaSet::EMPTY,
            repaired: ReplicaSet::EMPTY,
            joint: Some(Joint {
                write_back,
                shown_after_write_back_from,
            }),
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

    /// Where the newest record has to be durable before a reader hears it, if the answers differ: W = `w`
    /// in one ring; while the ring changes, what the quorum was made with.
    fn write_back(&self, w: u8) -> Needs {
        match &self.joint {
            None => Needs::single(w, self.tally.of),
            Some(joint) => joint.write_back,
        }
    }

    /// How many repairs have to be acknowledged until `w` replicas are known to hold the newest
    /// record; with two rings, in the ring that lacks most. Zero if there is no record.
    pub fn repair_acks_needed(&self, w: u8) -> u8 {
        match self.newest {
            None => 0,
            Some(_) => {
                let short = self.write_back(w).shortfall(self.durable_on());
                short.needed.saturating_sub(short.got)
            }
        }
    }

    /// Whether the reader may hear the newest record: the quorum is met, and the answers agree or
    /// `w` replicas are known to hold it. While the ring changes, `w` is not looked at, and what was stamped
    /// during the change has to be written back in any case ([`ReadQuorum::joint`]). See the module's
    /// chapter for what this promises.
    pub fn may_answer(&self, w: u8) -> bool {
        self.tally.outcome == Outcome::Met
            && (is_on(Mutation::NoBlockingRepair)
                || (self.is_unanimous() && !self.may_be_missed_later())
                || self.repair_acks_needed(w) == 0)
    }

    /// Whether the newest record was stamped so late that only a write-back brings it to the next ring.
    fn may_be_missed_later(&self) -> bool {
        let from = self
            .joint
            .and_then(|joint| joint.shown_after_write_back_from);
        match (from, &self.newest) {
            (Some(from), Some(newest)) => newest.epoch >= from,
            _ => false,
        }
    }

    /// If those that hold the newest record and `hoped` were all that ever hold it: the ring in which that
    /// would not be enough.
    pub fn repair_shortfall(&self, w: u8, hoped: ReplicaSet) -> Option<Shortfall> {
        self.write_back(w).unmet_by(self.durable_on().union(hoped))
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
        self.tally.outstanding()
    }

    /// The replicas to ask beside those `asked` already, if those that were asked and have not failed
    /// would not be enough. Those of a ring that this read does not ask are never among them.
    pub fn to_ask(&self, asked: ReplicaSet) -> ReplicaSet {
        self.tally.to_ask(asked)
    }

    /// The ring that made the quorum impossible.
    pub fn failed_ring(&self) -> Option<RingSide> {
        self.tally.failed_ring
    }

    /// What the answers so far lack, in the ring that lacks most: for numbers that people read.
    pub fn shortfall(&self) -> Shortfall {
        self.tally.shortfall()
    }

    /// R, in the current ring if there are two.
    pub fn needed(&self) -> u8 {
        self.tally.needs.current.needed
    }

    /// How many replicas there are, in all rings.
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
