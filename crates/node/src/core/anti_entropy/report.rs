//! What anti-entropy tells people: what it has cost, whom it waits for, and how far copying is.
//!
//! Nothing here decides anything. The figures of copying go through all partitions, so they are taken anew
//! every [`REPORT_NS`] and not on every look.

use std::collections::BTreeMap;

use mds_storage::store::{Ledger, PartitionState};
use mds_types::{Epoch, NodeId, PartitionId, RingStage, RingUse};

use super::super::Core;
use super::SyncStats;
use crate::api::Now;
use crate::wire::Message;

/// The figures of copying are this old at most, nanoseconds.
const REPORT_NS: u64 = 200_000_000;

/// How it goes with anti-entropy at one node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SyncReport {
    /// What it has cost and brought.
    pub stats: SyncStats,
    /// Members without which the oldest closed epoch of some partition cannot be settled here, and since
    /// when each is waited for, milliseconds since 1970. A comparison takes a moment, so everybody is here
    /// for a moment after an epoch was closed.
    pub blocked: BTreeMap<NodeId, u64>,
    /// How far this node is with partitions that it has to get.
    pub copying: Copying,
}

/// How far a node is with the partitions that it has to get: those that a change of the ring gives it, and
/// those that it found to be wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Copying {
    /// Partitions that it has to get; while the ring changes, also those that it has got by now.
    pub partitions: u64,
    /// Of these, those that are not whole here yet.
    pub left: u64,
    /// While the ring changes: partitions of this node that change hands, in which an epoch from before
    /// both rings were written is not verified yet.
    pub unverified: u64,
    /// Records copied here since the change began, or since this node was started.
    pub records: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// The figures of copying, and from where they count.
#[derive(Debug, Default)]
pub(super) struct Figures {
    copying: Copying,
    taken_again_ns: u64,
    /// Whether the ring was changing when they were taken last.
    was_changing: bool,
    /// Records and bytes that had been copied when the change began.
    before: (u64, u64),
}

impl SyncStats {
    /// A message of anti-entropy leaves.
    pub(in super::super) fn note_sent(&mut self, message: &Message) {
        self.messages += 1;
        self.bytes += crate::wire::encoded_len(message) as u64;
        match message {
            Message::RowsReply(reply) => self.rows_sent += reply.rows.len() as u64,
            Message::FetchReply(reply) => self.records_sent += reply.records.len() as u64,
            Message::StreamReply(reply) => self.streamed_sent += reply.records.len() as u64,
            _ => {}
        }
    }

    /// A message of anti-entropy has come.
    pub(in super::super) fn note_received(&mut self, message: &Message) {
        self.messages_received += 1;
        self.bytes_received += crate::wire::encoded_len(message) as u64;
    }

    /// The store's promises have changed: counts partitions whose stream has ended.
    pub(super) fn note_ledger(&mut self, before: &Ledger, now: &Ledger) {
        let streams = before.partitions().filter(|(partition, entry)| {
            matches!(entry.state, PartitionState::Streaming { .. })
                && now.partition(*partition).state == PartitionState::Held
        });
        self.partitions_streamed += streams.count() as u64;
    }
}

impl Core {
    /// How it goes with anti-entropy here.
    pub fn sync_report(&self) -> SyncReport {
        SyncReport {
            stats: self.sync.stats,
            blocked: self.sync.blocked.clone(),
            copying: self.sync.figures.copying,
        }
    }

    /// Takes the figures of copying anew when they are old.
    pub(super) fn tick_report(&mut self, now: Now) {
        if now.mono_ns < self.sync.figures.taken_again_ns {
            return;
        }
        let is_changing = self.rings.stage() != RingStage::Stable;
        let (stats, figures) = (&self.sync.stats, &mut self.sync.figures);
        figures.taken_again_ns = now.mono_ns + REPORT_NS;
        if is_changing && !figures.was_changing {
            figures.before = (stats.streamed, stats.streamed_bytes);
        }
        figures.was_changing = is_changing;
        let (records, bytes) = figures.before;
        let copying = Copying {
            records: stats.streamed - records,
            bytes: stats.streamed_bytes - bytes,
            ..self.partitions_to_get()
        };
        self.sync.figures.copying = copying;
    }

    fn partitions_to_get(&self) -> Copying {
        let mut copying = Copying::default();
        let Some(ledger) = &self.sync.ledger else {
            return copying;
        };
        let (me, stage) = (self.view.me, self.rings.stage());
        let is_changing = stage != RingStage::Stable;
        let needed = self.rings.rings().first_epoch;
        for partition in (0..self.rings.partition_count()).map(PartitionId) {
            let is_current = self.rings.holds_in(RingUse::CURRENT, partition, me);
            let is_next = is_changing && self.rings.holds_in(RingUse::NEXT, partition, me);
            let is_left = ledger.partition(partition).state != PartitionState::Held;
            // What this node has anyway counts only if it was lost.
            let is_gained = is_next && !is_current;
            let is_its_own = is_current && stage != RingStage::Cleanup;
            if is_gained || ((is_its_own || is_next) && is_left) {
                copying.partitions += 1;
                copying.left += u64::from(is_left);
            }
            if is_next && self.is_moving(partition) {
                let needed = needed.map(|first| Epoch(first.0.saturating_sub(1)));
                let is_verified =
                    needed.is_some_and(|needed| self.is_verified_up_to(partition, needed));
                copying.unverified += u64::from(!is_verified);
            }
        }
        copying
    }
}
