//! The bookkeeping of one read, and of the repair that it may need.

use std::cmp::Ordering;

use mds_types::mutation::{Mutation, is_on};
use mds_types::{Epoch, Record, Version};

use super::{Needs, Outcome, REPLICAS_JOINT_MAX, ReplicaSet, RingSide, Shortfall, Tally};

/// What the replicas answered to one read.
///
/// As long as answers agree, only the newest record is kept, and who holds it: no allocation,
/// whatever N is. An answer that is newer than all before, even one that comes while a repair is waited
/// for, becomes the newest, and its holders are counted afresh; that can happen once per replica at
/// most.
///
/// **Absence below the watermark is information.** Each answer says how far its replica has *settled*:
/// of the epochs up to there it lacks nothing, so what it does not show of them was deleted, superseded,
/// or never part of what was verified. A record that one replica reports is therefore *dismissed* if
/// another has settled the record's epoch and answers with something older, or with nothing (trap T14:
/// else a tombstone that one replica has collected would be written back to it for ever, and a value
/// that came back from the dead would be spread).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadQuorum {
    tally: Tally,
    newest: Option<Record>,
    /// Answered with the newest record.
    holders: ReplicaSet,
    /// Older records and who answered with them, the newest first. Empty as long as answers agree.
    older: Vec<(Record, ReplicaSet)>,
    /// Answered with a record that another answer dismisses.
    dismissed: ReplicaSet,
    /// How far each replica that answered has settled.
    settled: [Epoch; REPLICAS_JOINT_MAX as usize],
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
            older: Vec::new(),
            dismissed: ReplicaSet::EMPTY,
            settled: [Epoch(0); REPLICAS_JOINT_MAX as usize],
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
            older: Vec::new(),
            dismissed: ReplicaSet::EMPTY,
            settled: [Epoch(0); REPLICAS_JOINT_MAX as usize],
            repaired: ReplicaSet::EMPTY,
            joint: Some(Joint {
                write_back,
                shown_after_write_back_from,
            }),
        }
    }

    /// The replica's answer: its record of the key (a tombstone is one), or none if it has none, and the
    /// epoch up to which it has settled the key's partition. Returns where the quorum stands.
    pub fn answer_settled(
        &mut self,
        replica: usize,
        record: Option<Record>,
        settled: Epoch,
    ) -> Outcome {
        if !self.tally.is_news(replica) {
            return self.tally.outcome;
        }
        self.settled[replica] = settled;
        if let Some(record) = record {
            self.take_record(replica, record);
        }
        self.tally.answer(replica);
        while self.is_newest_dismissed() {
            self.dismiss_newest();
        }
        self.tally.outcome
    }

    fn take_record(&mut self, replica: usize, record: Record) {
        let order = match &self.newest {
            None => Ordering::Greater,
            Some(newest) => record.merge_order(newest),
        };
        match order {
            Ordering::Greater => {
                let only = ReplicaSet::from_iter([replica]);
                let holders = std::mem::replace(&mut self.holders, only);
                if let Some(before) = self.newest.replace(record) {
                    self.older.insert(0, (before, holders));
                }
                self.repaired = ReplicaSet::EMPTY;
            }
            Ordering::Equal => self.holders.insert(replica),
            Ordering::Less => self.take_older(replica, record),
        }
    }

    fn take_older(&mut self, replica: usize, record: Record) {
        for place in 0..self.older.len() {
            let (older, holders) = &mut self.older[place];
            match record.merge_order(older) {
                Ordering::Greater => {
                    let only = ReplicaSet::from_iter([replica]);
                    return self.older.insert(place, (record, only));
                }
                Ordering::Equal => return holders.insert(replica),
                Ordering::Less => {}
            }
        }
        let only = ReplicaSet::from_iter([replica]);
        self.older.push((record, only));
    }

    /// A replica refused a write-back of `version`: it has settled that record's epoch, and has neither it
    /// nor anything newer. So the record is dismissed, as if the replica had answered so.
    pub fn refused_as_settled(&mut self, version: Version) {
        if is_on(Mutation::DismissesNothing) {
            return;
        }
        let is_newest = |newest: &Record| newest.version == version;
        if self.newest.as_ref().is_some_and(is_newest) {
            self.dismiss_newest();
            while self.is_newest_dismissed() {
                self.dismiss_newest();
            }
        }
    }

    /// Whether a replica that does not hold the newest record, nor a newer one that was dismissed, has
    /// settled its epoch.
    fn is_newest_dismissed(&self) -> bool {
        let Some(newest) = &self.newest else {
            return false;
        };
        let without = self.tally.answered.without(self.holders);
        let mut without = without.without(self.dismissed).iter();
        without.any(|replica| self.settled[replica] >= newest.epoch)
            && !is_on(Mutation::DismissesNothing)
    }

    fn dismiss_newest(&mut self) {
        self.dismissed = self.dismissed.union(self.holders);
        self.repaired = ReplicaSet::EMPTY;
        match self.older.is_empty() {
            true => {
                self.newest = None;
                self.holders = ReplicaSet::EMPTY;
            }
            false => {
                let (newest, holders) = self.older.remove(0);
                self.newest = Some(newest);
                self.holders = holders;
            }
        }
    }

    /// The answer of a replica that has settled nothing.
    pub fn answer(&mut self, replica: usize, record: Option<Record>) -> Outcome {
        self.answer_settled(replica, record, Epoch(0))
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

    /// Whether all answers so far say the same, dismissed ones left out.
    pub fn is_unanimous(&self) -> bool {
        self.newest.is_none() || self.holders == self.tally.answered.without(self.dismissed)
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
            Some(_) => {
                let answered = self.tally.answered.without(self.dismissed);
                answered.without(self.durable_on())
            }
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

    /// The ring in which those that answered and those that still may are too few, with their number now: the
    /// outcome keeps the number of the moment when it became impossible.
    pub fn hopeless(&self) -> Option<Shortfall> {
        self.tally.hopeless()
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mds_types::{Body, Hlc, NodeId};

    use super::*;

    fn record(hlc: u64, epoch: u64, body: Body) -> Record {
        Record {
            key: Bytes::from_static(b"key"),
            version: Version {
                hlc: Hlc(hlc),
                node: NodeId(1),
            },
            epoch: Epoch(epoch),
            expires_at_ms: None,
            body,
        }
    }

    fn value(hlc: u64, epoch: u64) -> Record {
        record(hlc, epoch, Body::Value(Bytes::from_static(b"value")))
    }

    #[test]
    fn a_tombstone_that_one_replica_has_collected_is_absence() {
        let tombstone = record(7, 3, Body::Tombstone);
        for collected_first in [false, true] {
            let mut quorum = ReadQuorum::new(2, 3);
            for collected in [collected_first, !collected_first] {
                match collected {
                    true => quorum.answer_settled(0, None, Epoch(3)),
                    false => quorum.answer_settled(1, Some(tombstone.clone()), Epoch(2)),
                };
            }
            assert_eq!(quorum.newest(), None);
            assert!(quorum.may_answer(2), "nothing has to be written back");
            assert!(quorum.stale().is_empty());
        }
    }

    #[test]
    fn what_has_not_been_settled_is_not_dismissed() {
        let mut quorum = ReadQuorum::new(2, 3);
        quorum.answer_settled(0, None, Epoch(2));
        quorum.answer_settled(1, Some(value(7, 3)), Epoch(2));
        assert_eq!(quorum.newest(), Some(&value(7, 3)));
        assert!(!quorum.may_answer(2));
    }

    /// A zombie: a replica that settled its epoch shows an older value, so it was never verified.
    #[test]
    fn below_a_dismissed_record_the_next_one_counts() {
        let mut quorum = ReadQuorum::new(3, 3);
        quorum.answer_settled(0, Some(value(9, 3)), Epoch(1));
        quorum.answer_settled(1, Some(value(5, 2)), Epoch(4));
        assert_eq!(quorum.newest(), Some(&value(5, 2)));
        quorum.answer_settled(2, Some(value(5, 2)), Epoch(4));
        assert!(quorum.is_unanimous() && quorum.may_answer(2));
        // In any order.
        let mut quorum = ReadQuorum::new(3, 3);
        quorum.answer_settled(1, Some(value(5, 2)), Epoch(4));
        quorum.answer_settled(2, Some(value(5, 2)), Epoch(4));
        quorum.answer_settled(0, Some(value(9, 3)), Epoch(1));
        assert_eq!(quorum.newest(), Some(&value(5, 2)));
        assert!(quorum.may_answer(2));
    }

    #[test]
    fn something_newer_than_the_watermark_is_no_zombie() {
        let mut quorum = ReadQuorum::new(2, 3);
        quorum.answer_settled(0, Some(value(9, 5)), Epoch(4));
        quorum.answer_settled(1, Some(value(5, 2)), Epoch(4));
        assert_eq!(quorum.newest(), Some(&value(9, 5)));
        assert_eq!(quorum.stale().iter().collect::<Vec<_>>(), [1]);
    }
}
