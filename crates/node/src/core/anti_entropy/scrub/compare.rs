//! Comparing a page of settled records with the other replicas, and what follows from a difference.
//!
//! 1. All others are told the page's root. Who has another one says the hashes of his buckets.
//! 2. Only if those that differ may be a majority against this replica, their rows of the differing buckets are
//!    read, one member after another, and then its own. Whoever cannot show all of it at once narrows the range down, and the
//!    rest follows.
//! 3. What a majority holds, one and the same, and this replica lacks, is *wanted*. What this replica holds and a majority does
//!    not is *odd*: something newer may explain it.
//! 4. The records of both are fetched. What is wanted must be the very version and digest that the majority was
//!    seen to hold. Newer ones, of later epochs, come in like any other record.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use mds_storage::IndexRow;
use mds_storage::store::{Purpose, RangeOf};
use mds_types::mutation::{Mutation, is_on};
use mds_types::{NodeId, PartitionId, Record, RingUse};

use super::super::super::Core;
use super::super::repair::{FETCH_KEYS_MAX, rank, row_of};
use super::Phase;
use crate::api::Now;
use crate::sync_io::{RangeAsk, RangeQuery, SyncQuery, root_of};
use crate::wire::{
    Fetch, Message, Range, RangeReply, Status, Verdict, encoded_len, hash_bytes, hash_of,
};

/// A range in which so many others differ that they may be a majority against this replica.
pub(super) struct Difference {
    /// As many replicas have to hold one and the same.
    majority: usize,
    /// What is looked at now: the range, or the first part of it.
    of: RangeOf,
    /// Where the range ends.
    end: Option<Bytes>,
    /// The buckets that differ; none stands for all.
    buckets: Vec<u16>,
    members: Vec<NodeId>,
    theirs: BTreeMap<NodeId, Vec<IndexRow>>,
    /// What this replica has lost, and who has it.
    pub(super) wanted: BTreeMap<Bytes, (NodeId, IndexRow)>,
    /// What only this replica seems to have.
    odd: BTreeMap<Bytes, IndexRow>,
    pub(super) to_fetch: VecDeque<(NodeId, Vec<Bytes>)>,
}

impl Core {
    /// Tells the others the root of a page.
    pub(super) fn compare_range(&mut self, now: Now, id: u64) {
        let Some(op) = self.scrub_op(id) else { return };
        let (partition, range) = (op.partition, op.range.clone());
        let others = self.others(partition);
        let Some(range) = range.filter(|_| !others.is_empty()) else {
            return self.end_scrub_step(now, id);
        };
        self.sync.scrub.stats.pages += 1;
        let phase = Phase::Sums {
            waiting: others.iter().copied().collect(),
            equal: 0,
            differing: BTreeMap::new(),
        };
        self.set_phase(now, id, phase);
        let ask = RangeAsk::Root(root_of(&range.leaves));
        let message = self.range_message(id, partition, &range.of, &ask);
        for other in others {
            if !self.send_sync(other, &message) {
                return self.on_scrub_failed(now, id);
            }
            self.sync.scrub.stats.bytes += encoded_len(&message) as u64;
        }
    }

    fn range_message(
        &self,
        id: u64,
        partition: PartitionId,
        of: &RangeOf,
        ask: &RangeAsk,
    ) -> Message {
        let (root, buckets) = match ask {
            RangeAsk::Root(root) => (Some(hash_bytes(*root)), Vec::new()),
            RangeAsk::Rows(buckets) => (None, buckets.iter().copied().map(u32::from).collect()),
        };
        Message::Range(Range {
            id,
            topology: self.rings.version().0,
            partition: u32::from(partition.0),
            settled: of.settled.0,
            chain: hash_bytes(of.chain),
            left_out_ms: of.left_out_ms,
            after: of.after.clone(),
            up_to: of.up_to.clone(),
            root,
            buckets,
        })
    }

    /// Another replica has answered about a range.
    pub(in super::super) fn on_range_reply(
        &mut self,
        now: Now,
        id: u64,
        from: NodeId,
        reply: &RangeReply,
    ) {
        if self.scrub_op(id).is_none() {
            return;
        }
        let bytes = encoded_len(&Message::RangeReply(reply.clone())) as u64;
        self.sync.scrub.stats.bytes += bytes;
        let verdict = Verdict::try_from(reply.verdict).unwrap_or(Verdict::Unknown);
        let is_answer = matches!(verdict, Verdict::Equal | Verdict::Differs);
        if reply.status != Status::Ok as i32 || !is_answer {
            return self.on_scrub_failed(now, id);
        }
        let Some(op) = self.scrub_op(id) else { return };
        match &mut op.phase {
            Phase::Sums {
                waiting,
                equal,
                differing,
            } => {
                if !waiting.remove(&from) {
                    return;
                }
                if verdict == Verdict::Equal {
                    *equal += 1;
                } else {
                    let hashes = reply.hashes.chunks(16).filter_map(hash_of);
                    differing.insert(from, hashes.collect());
                }
                if waiting.is_empty() {
                    self.on_sums(now, id);
                }
            }
            Phase::Theirs { asked } if *asked == from => self.take_rows(now, id, from, reply),
            _ => {}
        }
    }

    /// All have answered: it is of interest only if those that differ may be a majority.
    fn on_sums(&mut self, now: Now, id: u64) {
        let Some(op) = self.scrub_op(id) else { return };
        let partition = op.partition;
        let (
            Phase::Sums {
                equal, differing, ..
            },
            Some(range),
        ) = (&mut op.phase, &op.range)
        else {
            return;
        };
        let (equal, differing) = (*equal, std::mem::take(differing));
        let (of, mine) = (range.of.clone(), range.leaves.hashes.clone());
        let replicas = self.rings.replicas(partition, RingUse::CURRENT);
        let count = replicas.nodes().len();
        let majority = count / 2 + 1;
        if differing.len() < majority || is_on(Mutation::ScrubComparesNothing) {
            // Somebody else is the odd one, and will find out; unless those that are away would decide.
            if !differing.is_empty() && equal + 1 < majority {
                tracing::warn!(
                    %partition,
                    "settled records differ between replicas, and there is no majority to say who is right"
                );
                self.sync.scrub.stats.undecided += 1;
            }
            return self.end_scrub_step(now, id);
        }
        let difference = Difference {
            majority,
            end: of.up_to.clone(),
            of,
            buckets: differing_buckets(&mine, differing.values()),
            members: differing.into_keys().collect(),
            theirs: BTreeMap::new(),
            wanted: BTreeMap::new(),
            odd: BTreeMap::new(),
            to_fetch: VecDeque::new(),
        };
        if let Some(op) = self.scrub_op(id) {
            op.difference = Some(Box::new(difference));
            self.read_theirs(now, id);
        }
    }

    /// Reads the rows of the next one that differs, or else this node's own.
    fn read_theirs(&mut self, now: Now, id: u64) {
        let Some(op) = self.scrub_op(id) else { return };
        let partition = op.partition;
        let Some(difference) = &op.difference else {
            return;
        };
        let ask = RangeAsk::Rows(difference.buckets.clone());
        let of = difference.of.clone();
        let mut members = difference.members.iter();
        let next = members.find(|member| !difference.theirs.contains_key(member));
        match next.copied() {
            Some(asked) => {
                let message = self.range_message(id, partition, &of, &ask);
                self.scrub_ask(now, id, asked, &message, Phase::Theirs { asked });
            }
            None => {
                self.set_phase(now, id, Phase::Mine);
                let query = RangeQuery { partition, of, ask };
                self.ask_own_store(id, SyncQuery::Range(Box::new(query)));
            }
        }
    }

    fn take_rows(&mut self, now: Now, id: u64, from: NodeId, reply: &RangeReply) {
        let Some(op) = self.scrub_op(id) else { return };
        let partition = op.partition;
        let rows = reply.rows.iter().cloned();
        let rows: Option<Vec<IndexRow>> = rows.map(|row| row_of(partition, row)).collect();
        let (Some(rows), Some(difference)) = (rows, &mut op.difference) else {
            return self.on_scrub_failed(now, id);
        };
        difference.theirs.insert(from, rows);
        // Whoever could not show all of it narrows down what is looked at now.
        if reply.next.is_some() {
            difference.of.up_to = reply.next.clone();
        }
        self.read_theirs(now, id);
    }

    /// Holds the others' rows against this node's own.
    pub(super) fn hold_against(
        &mut self,
        now: Now,
        id: u64,
        mine: &[IndexRow],
        next: Option<Bytes>,
    ) {
        let Some(op) = self.scrub_op(id) else { return };
        let Some(difference) = &mut op.difference else {
            return;
        };
        if next.is_some() {
            difference.of.up_to = next;
        }
        difference.judge(mine);
        self.fetch_on(now, id);
    }

    /// Fetches what is wanted, and what may explain what is odd; then goes on in the range, or ends.
    pub(super) fn fetch_on(&mut self, now: Now, id: u64) {
        let Some(op) = self.scrub_op(id) else { return };
        let Some(difference) = &mut op.difference else {
            return;
        };
        while let Some((asked, mut keys)) = difference.to_fetch.pop_front() {
            let (wanted, odd) = (&difference.wanted, &difference.odd);
            keys.retain(|key| wanted.contains_key(key) || odd.contains_key(key));
            if keys.len() > FETCH_KEYS_MAX {
                let rest = keys.split_off(FETCH_KEYS_MAX);
                difference.to_fetch.push_front((asked, rest));
            }
            if !keys.is_empty() {
                let message = Message::Fetch(Fetch {
                    id,
                    keys: keys.clone(),
                });
                return self.scrub_ask(now, id, asked, &message, Phase::Records { asked, keys });
            }
        }
        let odd = std::mem::take(&mut difference.odd);
        let is_end = difference.of.up_to == difference.end;
        difference.of.after = difference.of.up_to.take();
        difference.of.up_to = difference.end.clone();
        difference.theirs.clear();
        let (partition, before) = (op.partition, op.before);
        self.report_odd(partition, &odd);
        if !is_end {
            return self.read_theirs(now, id);
        }
        let stats = self.sync.scrub.stats;
        let (records, bytes) = (stats.rebuilt - before.rebuilt, stats.bytes - before.bytes);
        if records > 0 {
            tracing::warn!(
                %partition, records, bytes,
                "settled records were lost here, and were brought back from the other replicas"
            );
        }
        self.end_scrub_step(now, id);
    }

    fn report_odd(&mut self, partition: PartitionId, odd: &BTreeMap<Bytes, IndexRow>) {
        self.sync.scrub.stats.unmatched += odd.len() as u64;
        if let Some((key, row)) = odd.first_key_value() {
            tracing::error!(
                %partition, count = odd.len(), ?key, version = %row.version,
                "this replica holds settled records that a majority of the others does not: they were \
                 deleted there, or lost. They are kept; look at this node's disk, and read or rewrite the keys"
            );
        }
    }
}

impl Difference {
    /// Says what this replica has lost, and what it alone has, and whom to ask about it.
    fn judge(&mut self, mine: &[IndexRow]) {
        let up_to = self.of.up_to.clone();
        let is_within = |row: &&IndexRow| up_to.as_ref().is_none_or(|up_to| row.key <= *up_to);
        let mine: BTreeMap<&Bytes, &IndexRow> = mine
            .iter()
            .filter(is_within)
            .map(|row| (&row.key, row))
            .collect();
        let mut holders: BTreeMap<&Bytes, Vec<(NodeId, &IndexRow)>> = BTreeMap::new();
        for (member, rows) in &self.theirs {
            for row in rows.iter().filter(is_within) {
                holders.entry(&row.key).or_default().push((*member, row));
            }
        }
        for (&key, held) in &holders {
            let same = |row: &IndexRow| held.iter().filter(|(_, other)| other == &row).count();
            let agreed = held.iter().find(|(_, row)| same(row) >= self.majority);
            let is_lacking = |row: &IndexRow| mine.get(key).is_none_or(|own| rank(own) < rank(row));
            if let Some((member, row)) = agreed
                && is_lacking(row)
            {
                self.wanted.insert(key.clone(), (*member, (*row).clone()));
            }
        }
        for (&key, row) in &mine {
            let held = holders.get(key).map(Vec::as_slice).unwrap_or_default();
            let as_much = held.iter().filter(|(_, other)| rank(other) >= rank(row));
            if self.members.len() - as_much.count() >= self.majority {
                self.odd.insert(key.clone(), (*row).clone());
            }
        }
        for member in &self.members {
            let from_him = self
                .wanted
                .iter()
                .filter(|(_, (holder, _))| holder == member);
            let keys = from_him.map(|(key, _)| key).chain(self.odd.keys());
            self.to_fetch.push_back((*member, keys.cloned().collect()));
        }
    }

    /// A record that another replica has now.
    pub(super) fn take_record(&mut self, record: Record) -> Option<(Purpose, Record)> {
        let rebuild = Purpose::Rebuild {
            settled: self.of.settled,
            chain: self.of.chain,
        };
        let purpose = match record.epoch > self.of.settled {
            true => Purpose::Sync,
            false => rebuild,
        };
        if let Some(row) = self.odd.get(&record.key) {
            // What he has now may have come after he was asked, or be a tombstone, which is not compared.
            let is_explained = record.version >= row.version;
            let is_newer = record.version > row.version;
            if is_explained {
                self.odd.remove(&record.key);
            }
            return is_newer.then_some((purpose, record));
        }
        let (_, row) = self.wanted.get(&record.key)?;
        let is_it = record.version == row.version && record.digest() == row.digest;
        let is_later = record.version > row.version && purpose == Purpose::Sync;
        (is_it || is_later).then_some((purpose, record))
    }
}

/// The buckets in which somebody differs; none, which stands for all, if that is not known.
fn differing_buckets<'a>(
    mine: &[u128],
    theirs: impl Iterator<Item = &'a Vec<u128>> + Clone,
) -> Vec<u16> {
    if theirs.clone().any(|hashes| hashes.len() != mine.len()) {
        return Vec::new();
    }
    let differs = |bucket: &usize| {
        theirs
            .clone()
            .any(|hashes| hashes[*bucket] != mine[*bucket])
    };
    let buckets = (0..mine.len()).filter(differs);
    buckets.map(|bucket| bucket as u16).collect()
}
