//! Copying whole partitions here: those that this node gains, and those that it had to give up as wrong.
//!
//! A stream pulls pages in key order from one source and merges them by the one door. Its beginning is a *probe*: the
//! replicas that can be asked say how far they have settled, and the one with the highest watermark becomes the
//! source. Its watermark and chain go into the ledger before the first record, because they say what the copy
//! will have settled when it is whole; so another source may go on with a stream if, and only if, it says the
//! same two.
//!
//! Progress is kept in the ledger every [`PAGES_KEPT_EVERY`] pages; a crash costs that many pages at most.
//!
//! **It gives way.** At most [`STREAMS_MAX`] at a time, each with one page in flight, at the pace of all that is brought
//! here ([`super::pacing`]).
//!
//! A source may still settle an epoch in the moment in which a change begins, after it was asked. Then what its rows
//! said of that epoch is gone, the copy's root of it can be nobody's, and the copy is found wrong, wiped, and made once
//! more with the higher watermark. It costs a second copy and nothing else.
//!
//! What is written while the stream passes does not depend on it: writes reach this node by themselves, and what
//! of closed epochs is missing is brought by verification.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mds_storage::store::{Ledger, PartitionState, Purpose, Settlement};
use mds_types::{Epoch, NodeId, PartitionId, Record, RingStage, RingUse};

use super::super::{Core, Pending};
use super::STEP_TIMEOUT_NS;
use super::intake::decode_all;
use crate::api::Now;
use crate::store_io::LedgerOrder;
use crate::wire::{Message, Status, Stream, StreamReply, hash_of};

/// Partitions that are copied at a time.
const STREAMS_MAX: usize = 4;

/// Partitions for which a source is looked for at a time: what is found together is written down together.
const PROBES_MAX: usize = 64;

/// Progress is made durable after so many pages.
const PAGES_KEPT_EVERY: u32 = 64;

/// Whole copies that are written down together, at most.
const FINISHED_MAX: usize = 32;

/// A whole copy waits so long, at most, for others to be written down with it, nanoseconds: each time is a synced write,
/// for which everybody's records wait.
const FINISHED_WAIT_NS: u64 = 100_000_000;

/// A stream that failed is tried again after this long, nanoseconds.
const RETRY_NS: u64 = 300_000_000;

/// What is known of streams between their pages.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// Partitions with an operation in flight.
    busy: BTreeSet<PartitionId>,
    /// Of these, the ones for which a source is looked for.
    probing: usize,
    /// When partitions may be looked at again: after a failure, or when the ledger should know.
    not_before_ns: BTreeMap<PartitionId, u64>,
    /// Up to which key each has come, ahead of what the ledger knows, and pages since that was told.
    at: BTreeMap<PartitionId, (Bytes, u32)>,
    /// Whole copies that are to be written down as such, and until when they may wait for that.
    finished: Vec<PartitionId>,
    finished_until_ns: u64,
}

/// A stream's step in flight.
pub(in super::super) enum StreamOp {
    /// Asking who has settled how far.
    Probe {
        partition: PartitionId,
        waiting: BTreeSet<NodeId>,
        best: Option<Settlement>,
    },
    /// A page was asked for.
    Page {
        partition: PartitionId,
        source: NodeId,
    },
    /// Its records are being merged.
    Merging {
        partition: PartitionId,
        last: Option<Bytes>,
        more: bool,
        left: usize,
        has_failed: bool,
        since_ns: u64,
    },
}

impl StreamOp {
    fn partition(&self) -> PartitionId {
        match self {
            StreamOp::Probe { partition, .. }
            | StreamOp::Page { partition, .. }
            | StreamOp::Merging { partition, .. } => *partition,
        }
    }

    /// Whether it waits for this node.
    pub(in super::super) fn waits_for(&self, node: NodeId) -> bool {
        match self {
            StreamOp::Probe { waiting, .. } => waiting.contains(&node),
            StreamOp::Page { source, .. } => *source == node,
            StreamOp::Merging { .. } => false,
        }
    }
}

impl Core {
    /// Begins what has to be copied here, as far as there is room.
    pub(super) fn tick_streams(&mut self, now: Now) {
        let Some(ledger) = self.sync.ledger.clone() else {
            return;
        };
        if self.sync.pacing.may_go_on(now) {
            self.begin_streams(now, &ledger);
        }
        self.write_finished_down(now);
    }

    fn begin_streams(&mut self, now: Now, ledger: &Ledger) {
        for partition in (0..self.rings.partition_count()).map(PartitionId) {
            let streams = &self.sync.streams;
            let may_probe = streams.probing < PROBES_MAX;
            let may_copy = streams.busy.len() - streams.probing < STREAMS_MAX;
            if !may_probe && !may_copy {
                return;
            }
            let not_before_ns = self.sync.streams.not_before_ns.get(&partition);
            if self.sync.streams.busy.contains(&partition)
                || not_before_ns.is_some_and(|&at_ns| at_ns > now.mono_ns)
            {
                continue;
            }
            match &ledger.partition(partition).state {
                PartitionState::Absent if may_probe && self.wants_stream(partition) => {
                    self.probe(now, partition);
                }
                PartitionState::Streaming { .. } if may_copy && self.may_stream(partition) => {
                    self.next_page(now, partition);
                }
                _ => {}
            }
        }
    }

    /// Has the ledger say which copies are whole, those of a while together.
    fn write_finished_down(&mut self, now: Now) {
        let streams = &mut self.sync.streams;
        let is_last = streams.busy.len() == streams.probing;
        let is_due = is_last
            || streams.finished.len() >= FINISHED_MAX
            || now.mono_ns >= streams.finished_until_ns;
        if is_due && !streams.finished.is_empty() {
            let finished = std::mem::take(&mut streams.finished);
            for partition in &finished {
                // The ledger should know by then.
                let at_ns = now.mono_ns + RETRY_NS;
                streams.not_before_ns.insert(*partition, at_ns);
            }
            self.batch.orders.push(LedgerOrder::FinishStreams(finished));
        }
    }

    /// Whether a partition that is not here belongs here: this node gains it, or has wiped it as wrong.
    fn wants_stream(&self, partition: PartitionId) -> bool {
        let me = self.view.me;
        match self.rings.stage() {
            RingStage::Stable | RingStage::Cleanup => self.rings.is_holder(partition, me),
            _ => self.rings.holds_in(RingUse::BOTH, partition, me),
        }
    }

    /// Whether records may be copied now: into a gained partition only when every new write reaches it.
    fn may_stream(&self, partition: PartitionId) -> bool {
        let is_gained = !self
            .rings
            .holds_in(RingUse::CURRENT, partition, self.view.me);
        match self.rings.stage() {
            RingStage::Prepare | RingStage::WriteBoth => !is_gained,
            _ => true,
        }
    }

    /// The replicas that a partition may be copied from.
    fn sources(&self, partition: PartitionId) -> Vec<NodeId> {
        let rings = match self.rings.stage() {
            RingStage::Cleanup => RingUse::NEXT,
            _ => RingUse::CURRENT,
        };
        let excluded = &self.rings.rings().excluded;
        let replicas = self.rings.replicas(partition, rings);
        let nodes = replicas.nodes().iter().copied();
        nodes
            .filter(|node| *node != self.view.me && !excluded.contains(node))
            .filter(|node| self.is_usable(*node))
            .collect()
    }

    fn probe(&mut self, now: Now, partition: PartitionId) {
        let sources = self.sources(partition);
        let op = StreamOp::Probe {
            partition,
            waiting: sources.iter().copied().collect(),
            best: None,
        };
        let id = self.pending.insert(Pending::Stream(op));
        self.deadlines.insert(now.mono_ns + STEP_TIMEOUT_NS, id);
        self.sync.streams.busy.insert(partition);
        self.sync.streams.probing += 1;
        let message = Message::Stream(Stream {
            id,
            topology: self.rings.version().0,
            partition: u32::from(partition.0),
            after: None,
            is_probe: true,
        });
        for source in sources {
            if !self.send_sync(source, &message) {
                self.on_probed(now, id, source, None);
            }
        }
        // Nobody to ask.
        if let Some(Pending::Stream(StreamOp::Probe { waiting, .. })) = self.pending.get(id)
            && waiting.is_empty()
        {
            self.on_stream_failed(now, id);
        }
    }

    fn on_probed(&mut self, now: Now, id: u64, from: NodeId, said: Option<Settlement>) {
        let Some(Pending::Stream(StreamOp::Probe { waiting, best, .. })) = self.pending.get_mut(id)
        else {
            return;
        };
        if !waiting.remove(&from) {
            return;
        }
        if said.is_some_and(|said| best.is_none_or(|best| said.epoch > best.epoch)) {
            *best = said;
        }
        if !waiting.is_empty() {
            return;
        }
        let Some(best) = *best else {
            return self.on_stream_failed(now, id);
        };
        self.pending.remove(id);
        self.sync.streams.busy.remove(&best.partition);
        self.sync.streams.probing -= 1;
        self.sync.streams.at.remove(&best.partition);
        self.rest_stream(now, best.partition);
        self.sync.duty.begun(best.partition);
        self.batch
            .orders
            .push(LedgerOrder::BeginStreams(vec![best]));
    }

    fn next_page(&mut self, now: Now, partition: PartitionId) {
        let Some(ledger) = &self.sync.ledger else {
            return;
        };
        let PartitionState::Streaming { after, .. } = &ledger.partition(partition).state else {
            return;
        };
        let at = self.sync.streams.at.get(&partition);
        let after = at.map_or(after, |(after, _)| after).clone();
        let sources = self.sources(partition);
        // One after another gets its turn when the last one failed.
        let turn = self.sync.stats.messages as usize;
        let Some(&source) = sources.get(turn % sources.len().max(1)) else {
            return self.rest_stream(now, partition);
        };
        let op = StreamOp::Page { partition, source };
        let id = self.pending.insert(Pending::Stream(op));
        let message = Message::Stream(Stream {
            id,
            topology: self.rings.version().0,
            partition: u32::from(partition.0),
            after: (!after.is_empty()).then_some(after),
            is_probe: false,
        });
        if !self.send_sync(source, &message) {
            self.pending.remove(id);
            return self.rest_stream(now, partition);
        }
        self.deadlines.insert(now.mono_ns + STEP_TIMEOUT_NS, id);
        self.sync.streams.busy.insert(partition);
    }

    /// A source has answered.
    pub(in super::super) fn on_stream_reply(
        &mut self,
        now: Now,
        id: u64,
        from: NodeId,
        reply: &StreamReply,
    ) {
        let Some(Pending::Stream(op)) = self.pending.get(id) else {
            return;
        };
        let partition = op.partition();
        let is_ok = reply.status == Status::Ok as i32;
        let said = hash_of(&reply.chain).filter(|_| is_ok);
        let said = said.map(|chain| Settlement {
            partition,
            epoch: Epoch(reply.settled),
            chain,
        });
        match *op {
            StreamOp::Probe { .. } => self.on_probed(now, id, from, said),
            StreamOp::Page { .. } => match said {
                Some(said) => self.take_page(now, id, said, reply),
                None => self.on_stream_failed(now, id),
            },
            StreamOp::Merging { .. } => {}
        }
    }

    fn take_page(&mut self, now: Now, id: u64, said: Settlement, reply: &StreamReply) {
        let partition = said.partition;
        let begun = self.sync.ledger.as_ref().map(|ledger| {
            let state = &ledger.partition(partition).state;
            matches!(state, PartitionState::Streaming { settled, chain, .. }
                if *settled <= said.epoch && (*settled < said.epoch || *chain == said.chain))
        });
        let records = decode_all(&reply.records);
        let (Some(true), Some(records)) = (begun, records) else {
            return self.on_stream_failed(now, id);
        };
        let last = records.last().map(|record| record.key.clone());
        let bytes: usize = records.iter().map(Record::encoded_len).sum();
        self.sync.stats.streamed += records.len() as u64;
        self.sync.stats.streamed_bytes += bytes as u64;
        self.sync.pacing.note_bytes(now, bytes);
        if let Some(Pending::Stream(op)) = self.pending.get_mut(id) {
            *op = StreamOp::Merging {
                partition,
                last,
                more: reply.more,
                left: records.len(),
                has_failed: false,
                since_ns: now.mono_ns,
            };
        }
        self.deadlines.insert(now.mono_ns + STEP_TIMEOUT_NS, id);
        let is_empty = records.is_empty();
        for record in records {
            self.merge_here(id, Purpose::Sync, record);
        }
        if is_empty {
            self.on_page_merged(now, id);
        }
    }

    /// The store has merged one record of a page.
    pub(in super::super) fn on_stream_merged(&mut self, now: Now, id: u64, status: Status) {
        let Some(Pending::Stream(StreamOp::Merging {
            left, has_failed, ..
        })) = self.pending.get_mut(id)
        else {
            return;
        };
        *left = left.saturating_sub(1);
        *has_failed |= status != Status::Ok;
        if *left == 0 {
            self.on_page_merged(now, id);
        }
    }

    fn on_page_merged(&mut self, now: Now, id: u64) {
        let Some(Pending::Stream(StreamOp::Merging {
            partition,
            last,
            more,
            has_failed,
            since_ns,
            ..
        })) = self.pending.remove(id)
        else {
            return;
        };
        self.sync.streams.busy.remove(&partition);
        self.note_merged_page(now, since_ns);
        if has_failed {
            return self.rest_stream(now, partition);
        }
        let streams = &mut self.sync.streams;
        if !more {
            streams.at.remove(&partition);
            if streams.finished.is_empty() {
                streams.finished_until_ns = now.mono_ns + FINISHED_WAIT_NS;
            }
            streams.finished.push(partition);
            self.rest_stream(now, partition);
            return self.tick_streams(now);
        }
        let Some(last) = last else {
            return self.rest_stream(now, partition);
        };
        let (at, pages) = streams.at.entry(partition).or_default();
        *at = last.clone();
        *pages += 1;
        if *pages >= PAGES_KEPT_EVERY {
            *pages = 0;
            let order = LedgerOrder::AdvanceStreams(vec![(partition, last)]);
            self.batch.orders.push(order);
        }
        self.tick_streams(now);
    }

    /// A step came to nothing: its partition rests for a while.
    pub(in super::super) fn on_stream_failed(&mut self, now: Now, id: u64) {
        if let Some(Pending::Stream(op)) = self.pending.remove(id) {
            self.sync.streams.busy.remove(&op.partition());
            self.sync.streams.probing -= usize::from(matches!(op, StreamOp::Probe { .. }));
            self.rest_stream(now, op.partition());
        }
    }

    fn rest_stream(&mut self, now: Now, partition: PartitionId) {
        let at_ns = now.mono_ns + RETRY_NS;
        self.sync.streams.not_before_ns.insert(partition, at_ns);
    }
}
