//! Fetching records that this replica lacks, and merging them.
//!
//! What was lost *above* the watermark is missed by its row, so nothing has to be proved: whoever has that version, or a newer one,
//! is believed, and it comes in like any other record of a closed epoch. What was lost *below* is asked for by
//! [`compare`](super::compare), which says of each record what it is merged as.

use bytes::Bytes;
use mds_storage::store::Purpose;
use mds_types::{NodeId, PartitionId, Record};

use super::super::super::Core;
use super::super::Progress;
use super::super::intake::decode_all;
use super::super::repair::FETCH_KEYS_MAX;
use super::{Phase, ScrubOp};
use crate::api::Now;
use crate::wire::{Fetch, FetchReply, Message, Status, encoded_len};

impl Core {
    /// Asks the next of these for the lost records that nobody had so far.
    pub(super) fn ask_for_lost(&mut self, now: Now, id: u64, mut left: Vec<NodeId>) {
        let Some(op) = self.scrub_op(id) else { return };
        if op.lost.is_empty() {
            return self.compare_range(now, id);
        }
        let (partition, count) = (op.partition, op.lost.len() as u64);
        let Some(asked) = left.pop() else {
            return self.give_up_lost(now, id, partition, count);
        };
        let keys = op.lost.keys().take(FETCH_KEYS_MAX).cloned().collect();
        let message = Message::Fetch(Fetch { id, keys });
        self.scrub_ask(now, id, asked, &message, Phase::Lost { asked, left });
    }

    fn give_up_lost(&mut self, now: Now, id: u64, partition: PartitionId, count: u64) {
        let progress = self.sync.progress.get(&partition);
        let is_alone = progress.is_none_or(Progress::is_alone);
        if !is_alone && self.others(partition).is_empty() {
            // Nobody was asked.
            return self.on_scrub_failed(now, id);
        }
        if let Some(op) = self.scrub_op(id) {
            op.lost.clear();
        }
        tracing::error!(
            %partition, count,
            "records were lost here, and no other replica that can be asked has them"
        );
        self.sync.scrub.stats.unfound += count;
        self.compare_range(now, id);
    }

    /// Somebody has sent records, of either kind.
    pub(in super::super) fn on_scrub_fetched(&mut self, now: Now, id: u64, reply: &FetchReply) {
        if self.scrub_op(id).is_none() {
            return;
        }
        let bytes = encoded_len(&Message::FetchReply(reply.clone())) as u64;
        self.sync.scrub.stats.bytes += bytes;
        let records = decode_all(&reply.records);
        let taken = reply.taken as usize;
        let records = match records {
            Some(records) if reply.status == Status::Ok as i32 && taken > 0 => records,
            _ => return self.on_scrub_failed(now, id),
        };
        let Some(op) = self.scrub_op(id) else { return };
        let merges = match &mut op.phase {
            Phase::Lost { .. } => op.take_lost(records),
            Phase::Records { asked, keys } => {
                let (asked, keys) = (*asked, std::mem::take(keys));
                op.take_records(asked, keys, taken, records)
            }
            _ => return,
        };
        // Who is asked next is kept until they are merged.
        let left = match &op.phase {
            Phase::Lost { left, .. } => Some(left.clone()),
            _ => None,
        };
        if merges.is_empty() {
            return self.after_merges(now, id, left);
        }
        let count = merges.len();
        self.set_phase(now, id, Phase::Merging { left: count });
        for (purpose, record) in merges {
            self.merge_here(id, purpose, record);
        }
    }

    /// The store has merged one of the records.
    pub(in super::super::super) fn on_scrub_merged(&mut self, now: Now, id: u64, status: Status) {
        let Some(op) = self.scrub_op(id) else { return };
        let is_below = op.difference.is_some();
        let Phase::Merging { left } = &mut op.phase else {
            return;
        };
        *left = left.saturating_sub(1);
        let is_last = *left == 0;
        let stats = &mut self.sync.scrub.stats;
        // Refused: the watermark has risen, or there is no room. The next pass finds it again. What came
        // back below the watermark is counted by the store, which knows it from what was there meanwhile.
        stats.restored += u64::from(status == Status::Ok && !is_below);
        if is_last {
            self.after_merges(now, id, None);
        }
    }

    fn after_merges(&mut self, now: Now, id: u64, left: Option<Vec<NodeId>>) {
        let Some(op) = self.scrub_op(id) else { return };
        let partition = op.partition;
        match (op.difference.is_some(), left) {
            (true, _) => self.fetch_on(now, id),
            (false, Some(left)) => self.ask_for_lost(now, id, left),
            (false, None) => {
                let others = self.others(partition);
                self.ask_for_lost(now, id, others);
            }
        }
    }
}

impl ScrubOp {
    /// Of the records that another replica has for lost rows those that make up for them.
    fn take_lost(&mut self, records: Vec<Record>) -> Vec<(Purpose, Record)> {
        let mut merges = Vec::new();
        for record in records {
            let row = self.lost.get(&record.key);
            if row.is_some_and(|(_, row)| record.version >= row.version) {
                self.lost.remove(&record.key);
                merges.push((Purpose::Sync, record));
            }
        }
        merges
    }

    /// Of the records that another replica has those that are to be merged, and as what.
    fn take_records(
        &mut self,
        asked: NodeId,
        mut keys: Vec<Bytes>,
        taken: usize,
        records: Vec<Record>,
    ) -> Vec<(Purpose, Record)> {
        let Some(difference) = &mut self.difference else {
            return Vec::new();
        };
        let rest = keys.split_off(taken.min(keys.len()));
        if !rest.is_empty() {
            difference.to_fetch.push_front((asked, rest));
        }
        let merges = records.into_iter();
        let merges = merges.filter_map(|record| difference.take_record(record));
        let merges = merges.collect();
        for key in keys {
            difference.wanted.remove(&key);
        }
        merges
    }
}
