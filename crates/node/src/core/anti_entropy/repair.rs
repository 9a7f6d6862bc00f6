//! Bringing over what another replica has of one closed (partition, epoch), and this one lacks.
//!
//! 1. The **walk** asks for hashes of the other's tree, level by level, until the buckets that differ are
//!    known.
//! 2. Of these buckets the other's **rows** are read, page by page, and held against one's own.
//! 3. For rows that are missing here, or lower, the other's *current* **records** are fetched and merged: each is
//!    the row's version or a newer one, which supersedes it.
//! 4. Where it was a newer one of another epoch, the **row alone** is kept, because superseded counts as
//!    present. The store takes it only if it holds something newer, so no row ever stands for a record that is
//!    nowhere.
//!
//! Then the roots are compared again. If anything goes wrong on the way, nothing is lost: the next round finds the
//! same difference.
//!
//! **It gives way**, at the pace of all that is brought here ([`super::pacing`]): after a page of records a repair rests as
//! long as that says, and then one after the other goes on.
//!
//! What it does not do: send the other what *it* lacks; that is for the other to find out.

use std::collections::BTreeMap;

use bytes::Bytes;
use mds_protocol::merkle::{Tree, Walk};
use mds_storage::IndexRow;
use mds_storage::store::Purpose;
use mds_types::{Digest, Epoch, Hlc, Kind, NodeId, PartitionId, Record, Version};

use super::super::{Core, Pending};
use super::STEP_TIMEOUT_NS;
use super::intake::decode_all;
use crate::api::Now;
use crate::store_io::LedgerOrder;
use crate::sync_io::{SyncAnswer, SyncQuery};
use crate::wire::{
    Fetch, FetchReply, Hashes, HashesReply, Message, Row, Rows, RowsReply, Status, hash_of,
};

/// Repairs under way at a time; further differences wait.
pub(super) const REPAIRS_MAX: usize = 4;

/// Differences that wait, at most; others are found again by a later round.
const DIFFERING_MAX: usize = 4_096;

/// Keys fetched at a time, at most: requests wait while they are merged.
pub(super) const FETCH_KEYS_MAX: usize = 256;

/// A repair in flight.
pub(in super::super) struct RepairOp {
    pub(in super::super) member: NodeId,
    partition: PartitionId,
    epoch: Epoch,
    step: Step,
    /// Buckets that differ and were not read to the end yet, growing.
    buckets: Vec<u16>,
    /// Up to which key the first of them has been read.
    after: Option<Bytes>,
    /// The other's rows that are missing here, by key, until their records are here.
    missing: BTreeMap<Bytes, IndexRow>,
    /// Those whose records were fetched; which of them need the row alone is known when they are merged.
    fetched: Vec<IndexRow>,
    merges_left: usize,
    merging_since_ns: u64,
    has_failed: bool,
    /// What it waits for now has to come before this.
    until_ns: u64,
}

enum Step {
    OwnTree,
    Walking(Box<Walk>),
    TheirRows,
    /// The other's rows of a page, whether more follow in the bucket.
    OwnRows(Vec<IndexRow>, bool),
    Records,
    Merging,
    Resting,
}

impl Core {
    /// A comparison has found a difference: it is looked at when there is room.
    pub(super) fn note_difference(&mut self, member: NodeId, partition: PartitionId, epoch: Epoch) {
        if self.sync.differing.len() < DIFFERING_MAX && self.sync.queued.insert((partition, epoch))
        {
            self.sync.differing.push_back((member, partition, epoch));
        }
    }

    /// Goes on with a repair that has rested, and begins others as far as there is room.
    pub(super) fn begin_repairs(&mut self, now: Now) {
        if !self.sync.pacing.may_go_on(now) {
            return;
        }
        // One: the next when this one has merged its page and rests in turn, or is over.
        while let Some(id) = self.sync.resting.pop_front() {
            if self.repair(id).is_some() {
                return self.go_on(now, id);
            }
        }
        while self.sync.repairs < REPAIRS_MAX
            && let Some((member, partition, epoch)) = self.sync.differing.pop_front()
        {
            self.sync.repairs += 1;
            let op = RepairOp {
                member,
                partition,
                epoch,
                step: Step::OwnTree,
                buckets: Vec::new(),
                after: None,
                missing: BTreeMap::new(),
                fetched: Vec::new(),
                merges_left: 0,
                merging_since_ns: 0,
                has_failed: false,
                until_ns: 0,
            };
            let id = self.pending.insert(Pending::Repair(Box::new(op)));
            self.set_repair_deadline(now, id);
            self.ask_own_store(id, SyncQuery::Tree(partition, epoch));
        }
    }

    /// A repair is over, well or not.
    fn end_repair(&mut self, now: Now, id: u64) {
        let Some(Pending::Repair(op)) = self.pending.remove(id) else {
            return;
        };
        self.sync.repairs -= 1;
        let key = (op.partition, op.epoch);
        self.sync.queued.remove(&key);
        // Whether it helped is for the next round to find out.
        if !op.has_failed {
            self.sync.next_round_ns = self.sync.next_round_ns.min(now.mono_ns);
        }
        self.begin_repairs(now);
    }

    /// What it waits for next has to come in time.
    fn set_repair_deadline(&mut self, now: Now, id: u64) {
        let until_ns = now.mono_ns + STEP_TIMEOUT_NS;
        if let Some(op) = self.repair(id) {
            op.until_ns = until_ns;
            self.deadlines.insert(until_ns, id);
        }
    }

    /// A deadline of a repair has come: of what it waits for, or of something that has come meanwhile.
    pub(in super::super) fn on_repair_deadline(&mut self, now: Now, id: u64) {
        if self.repair(id).is_some_and(|op| op.until_ns <= now.mono_ns) {
            self.on_repair_failed(now, id);
        }
    }

    pub(in super::super) fn on_repair_failed(&mut self, now: Now, id: u64) {
        if let Some(Pending::Repair(op)) = self.pending.get_mut(id) {
            op.has_failed = true;
        }
        self.end_repair(now, id);
    }

    fn repair(&mut self, id: u64) -> Option<&mut RepairOp> {
        match self.pending.get_mut(id) {
            Some(Pending::Repair(op)) => Some(op),
            _ => None,
        }
    }

    /// Sends the repair's next question; without a way to its member it is over.
    fn ask_member(&mut self, now: Now, id: u64, message: &Message) {
        let Some(member) = self.repair(id).map(|op| op.member) else {
            return;
        };
        if self.send_sync(member, message) {
            self.set_repair_deadline(now, id);
        } else {
            self.on_repair_failed(now, id);
        }
    }

    /// This node's own store has answered.
    pub(super) fn on_repair_own(&mut self, now: Now, id: u64, answer: Option<SyncAnswer>) {
        let Some(op) = self.repair(id) else { return };
        match (&mut op.step, answer) {
            (Step::OwnTree, Some(SyncAnswer::Tree(Some(tree)))) => self.begin_walk(now, id, tree),
            (Step::OwnRows(theirs, more), Some(SyncAnswer::Rows { rows: mine, .. })) => {
                let (theirs, more) = (std::mem::take(theirs), *more);
                op.take_rows(theirs, &mine, more);
                self.go_on(now, id);
            }
            _ => self.on_repair_failed(now, id),
        }
    }

    fn begin_walk(&mut self, now: Now, id: u64, tree: Tree) {
        if let Some(op) = self.repair(id) {
            op.step = Step::Walking(Box::new(Walk::new(tree)));
            self.walk_on(now, id);
        }
    }

    fn walk_on(&mut self, now: Now, id: u64) {
        let Some(op) = self.repair(id) else { return };
        let Step::Walking(walk) = &op.step else {
            return;
        };
        match walk.ask() {
            Some((level, nodes)) => {
                let message = Message::Hashes(Hashes {
                    id,
                    partition: u32::from(op.partition.0),
                    epoch: op.epoch.0,
                    level,
                    nodes: nodes.to_vec(),
                });
                self.ask_member(now, id, &message);
            }
            None => {
                op.buckets = walk.differing().to_vec();
                self.go_on(now, id);
            }
        }
    }

    pub(in super::super) fn on_hashes_reply(&mut self, now: Now, id: u64, reply: &HashesReply) {
        let Some(op) = self.repair(id) else { return };
        let Step::Walking(walk) = &mut op.step else {
            return;
        };
        let hashes = reply.hashes.chunks(16).map(hash_of);
        let hashes: Option<Vec<u128>> = hashes.collect();
        let taken = match hashes {
            Some(hashes) if reply.status == Status::Ok as i32 => walk.answer(&hashes).is_ok(),
            _ => false,
        };
        match taken {
            true => self.walk_on(now, id),
            // It has settled the epoch meanwhile, say.
            false => self.on_repair_failed(now, id),
        }
    }

    /// Reads more rows until enough records are known to be missing, fetches these, or ends. Fetching is what
    /// costs: a question, and a sync when they are merged.
    fn go_on(&mut self, now: Now, id: u64) {
        let Some(op) = self.repair(id) else { return };
        let has_room = op.missing.len() < FETCH_KEYS_MAX;
        if op.buckets.is_empty() || !has_room {
            if op.missing.is_empty() {
                return self.end_repair(now, id);
            }
            op.step = Step::Records;
            let keys = op.missing.keys().take(FETCH_KEYS_MAX).cloned().collect();
            let message = Message::Fetch(Fetch { id, keys });
            return self.ask_member(now, id, &message);
        }
        op.step = Step::TheirRows;
        let message = Message::Rows(Rows {
            id,
            partition: u32::from(op.partition.0),
            epoch: op.epoch.0,
            buckets: op.buckets.iter().map(|bucket| u32::from(*bucket)).collect(),
            after: op.after.clone(),
        });
        self.ask_member(now, id, &message);
    }

    pub(in super::super) fn on_rows_reply(&mut self, now: Now, id: u64, reply: RowsReply) {
        let Some(op) = self.repair(id) else { return };
        if !matches!(op.step, Step::TheirRows) {
            return;
        }
        let partition = op.partition;
        let count = reply.rows.len();
        let rows = reply.rows.into_iter();
        let rows: Vec<IndexRow> = rows.filter_map(|row| row_of(partition, row)).collect();
        let is_asked_for = |row: &IndexRow| op.buckets.binary_search(&row.bucket).is_ok();
        let is_sound = rows.len() == count
            && rows.iter().all(is_asked_for)
            && rows.is_sorted_by_key(|row| (row.bucket, row.key.clone()))
            && (count > 0 || !reply.more);
        if reply.status != Status::Ok as i32 || !is_sound {
            return self.on_repair_failed(now, id);
        }
        op.step = Step::OwnRows(rows, reply.more);
        let query = SyncQuery::Rows {
            partition,
            epoch: op.epoch,
            buckets: op.buckets.clone(),
            after: op.after.clone(),
        };
        self.sync.stats.rows += count as u64;
        self.set_repair_deadline(now, id);
        self.ask_own_store(id, query);
    }

    pub(in super::super) fn on_fetch_reply(&mut self, now: Now, id: u64, reply: &FetchReply) {
        let Some(op) = self.repair(id) else { return };
        if !matches!(op.step, Step::Records) {
            return;
        }
        let records = decode_all(&reply.records);
        let taken = reply.taken as usize;
        let records = match records {
            Some(records) if reply.status == Status::Ok as i32 && taken > 0 => records,
            _ => return self.on_repair_failed(now, id),
        };
        let looked_at: Vec<Bytes> = op.missing.keys().take(taken).cloned().collect();
        let mut merges = Vec::new();
        for record in records {
            if let Some(row) = op.missing.get(&record.key)
                && record.version >= row.version
            {
                op.fetched.push(row.clone());
                merges.push(record);
            }
        }
        // What the other has no record of any more was settled and collected there meanwhile.
        for key in looked_at {
            op.missing.remove(&key);
        }
        op.merges_left = merges.len();
        op.merging_since_ns = now.mono_ns;
        op.step = Step::Merging;
        let is_empty = merges.is_empty();
        let bytes = merges.iter().map(Record::encoded_len).sum();
        self.sync.pacing.note_bytes(now, bytes);
        self.sync.stats.records += merges.len() as u64;
        for record in merges {
            self.merge_here(id, Purpose::Sync, record);
        }
        self.set_repair_deadline(now, id);
        if is_empty {
            self.on_merges_done(now, id);
        }
    }

    /// The store has merged one of the records.
    pub(in super::super) fn on_repair_merged(&mut self, now: Now, id: u64, status: Status) {
        let Some(op) = self.repair(id) else { return };
        op.merges_left = op.merges_left.saturating_sub(1);
        op.has_failed |= status != Status::Ok;
        if op.merges_left == 0 {
            self.on_merges_done(now, id);
        }
    }

    fn on_merges_done(&mut self, now: Now, id: u64) {
        let Some(op) = self.repair(id) else { return };
        let (epoch, since_ns) = (op.epoch, op.merging_since_ns);
        let rows = std::mem::take(&mut op.fetched);
        if op.has_failed {
            return self.end_repair(now, id);
        }
        let is_over = op.is_over();
        if !rows.is_empty() {
            let rows = rows.into_iter().map(|row| (epoch, row));
            self.batch.orders.push(LedgerOrder::Rows(rows.collect()));
        }
        self.note_merged_page(now, since_ns);
        if !is_over && !self.sync.pacing.may_go_on(now) {
            return self.rest_repair(now, id);
        }
        self.go_on(now, id);
    }

    fn rest_repair(&mut self, now: Now, id: u64) {
        self.set_repair_deadline(now, id);
        if let Some(op) = self.repair(id) {
            op.step = Step::Resting;
            self.sync.resting.push_back(id);
        }
    }
}

impl RepairOp {
    /// Nothing is left to read or to fetch.
    fn is_over(&self) -> bool {
        self.buckets.is_empty() && self.missing.is_empty()
    }

    /// Holds a page of the other's rows against one's own.
    fn take_rows(&mut self, theirs: Vec<IndexRow>, mine: &[IndexRow], more: bool) {
        let last = theirs.last().map(|row| (row.bucket, row.key.clone()));
        for row in theirs {
            let place = |mine: &IndexRow| (mine.bucket, &mine.key).cmp(&(row.bucket, &row.key));
            let known = mine.binary_search_by(place);
            let is_here = known.is_ok_and(|at| rank(&mine[at]) >= rank(&row));
            if !is_here {
                self.missing.insert(row.key.clone(), row);
            }
        }
        match last.filter(|_| more) {
            Some((bucket, key)) => {
                self.buckets.retain(|left| *left >= bucket);
                self.after = Some(key);
            }
            None => {
                self.buckets.clear();
                self.after = None;
            }
        }
    }
}

/// The merge law's order of two rows of one key.
pub(super) fn rank(row: &IndexRow) -> (Version, Kind, Digest) {
    (row.version, row.kind, row.digest)
}

pub(super) fn row_of(partition: PartitionId, row: Row) -> Option<IndexRow> {
    let kind = u8::try_from(row.kind).ok()?;
    Some(IndexRow {
        partition,
        bucket: u16::try_from(row.bucket).ok()?,
        version: Version {
            hlc: Hlc(row.hlc),
            node: NodeId(row.node),
        },
        digest: Digest(hash_of(&row.digest)?),
        kind: Kind::try_from(kind).ok()?,
        key: row.key,
    })
}
