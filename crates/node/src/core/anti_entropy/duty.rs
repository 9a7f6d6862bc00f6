//! What a node owes the ring: acknowledging its versions, making place for what it gains, saying when it is ready,
//! and giving up what it has lost.
//!
//! **Invariants**
//!
//! 1. A version is acknowledged only when every request that was begun under an older one has ended, and when it is
//!    in the ledger: a node that is started again serves nothing until it knows that version again
//!    ([`Core::is_behind_its_word`]).
//! 2. `Prepare` is acknowledged only when all partitions that this node gains are empty and ready to take writes.
//! 3. Ready means: every partition of this node whose replicas change is whole, and every epoch before E1 is
//!    verified in the group of both rings.
//! 4. A partition that was lost is wiped only when everybody has acknowledged a ring without it.

use std::collections::BTreeSet;

use mds_storage::store::PartitionState;
use mds_types::{Epoch, PartitionId, RingStage, RingUse, TopologyVersion};

use super::super::{CLOSED_BEHIND, Core, Pending};
use super::settled_of;
use crate::api::Now;
use crate::store_io::LedgerOrder;

/// Orders to wipe or acknowledge are repeated after this long, if nothing has come of them, nanoseconds.
const REPEAT_NS: u64 = 1_000_000_000;

/// What is under way towards the ring.
#[derive(Debug, Default)]
pub(in super::super) struct RingDuty {
    /// An order to settle is on its way to the store.
    pub(in super::super) is_settling: bool,
    /// Partitions for which a stream was begun in this life and under this change.
    begun: BTreeSet<PartitionId>,
    /// Since when `begun` counts: the change's first version that this node saw.
    begun_under: TopologyVersion,
    /// No order is given again before this.
    ordered_until_ns: u64,
    /// What was told to the control part last.
    told: Option<(TopologyVersion, bool)>,
}

impl RingDuty {
    /// A stream was begun for a partition.
    pub(super) fn begun(&mut self, partition: PartitionId) {
        self.begun.insert(partition);
    }
}

/// What this node says of itself to those that lead the change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingReport {
    /// It has acknowledged this version: all requests begun under older ones have ended, and it is durable.
    pub acked: TopologyVersion,
    /// Under this version it holds everything that the next ring gives it.
    pub is_ready: bool,
}

impl Core {
    /// Whether this node, started again, knows less of the ring than it had acknowledged.
    pub(in super::super) fn is_behind_its_word(&self) -> bool {
        let ledger = self.sync.ledger.as_ref();
        ledger.is_some_and(|ledger| ledger.acked > self.rings.version())
    }

    /// What there is to tell, if it is something new.
    pub fn take_ring_report(&mut self) -> Option<RingReport> {
        let acked = self.sync.ledger.as_ref()?.acked;
        let report = RingReport {
            acked,
            is_ready: acked == self.rings.version() && self.is_ready(),
        };
        let told = Some((report.acked, report.is_ready));
        (std::mem::replace(&mut self.sync.duty.told, told) != told).then_some(report)
    }

    /// Does what the ring asks of this node now.
    pub(super) fn tick_duty(&mut self, now: Now) {
        self.follow_change();
        if now.mono_ns < self.sync.duty.ordered_until_ns {
            return;
        }
        let Some(ledger) = self.sync.ledger.clone() else {
            return;
        };
        let wiped = self.to_wipe();
        if !wiped.is_empty() {
            self.sync.duty.ordered_until_ns = now.mono_ns + REPEAT_NS;
            self.batch.orders.push(LedgerOrder::Wipe(wiped));
            return;
        }
        // The order that came with the epoch is lost if the store had no room, or was behind, just then.
        let closed = Epoch(self.view.epoch.0.saturating_sub(CLOSED_BEHIND));
        if ledger.closed < closed {
            self.sync.duty.ordered_until_ns = now.mono_ns + REPEAT_NS;
            self.batch.orders.push(LedgerOrder::Close(closed));
        }
        let version = self.rings.version();
        if ledger.acked < version && self.has_drained() && self.is_prepared() {
            self.sync.duty.ordered_until_ns = now.mono_ns + REPEAT_NS;
            self.batch.orders.push(LedgerOrder::Acknowledge(version));
        }
    }

    /// An order may be given again: the ledger has changed.
    pub(in super::super) fn on_duty_done(&mut self) {
        self.sync.duty.ordered_until_ns = 0;
    }

    /// Streams of an earlier change count no more.
    fn follow_change(&mut self) {
        let duty = &mut self.sync.duty;
        let is_changing = self.rings.stage() != RingStage::Stable;
        if !is_changing {
            duty.begun.clear();
            duty.begun_under = TopologyVersion(0);
        } else if duty.begun_under == TopologyVersion(0) {
            duty.begun_under = self.rings.version();
        }
    }

    /// Partitions to remove: lost ones, and those that are to be gained and hold something old.
    fn to_wipe(&self) -> Vec<PartitionId> {
        let Some(ledger) = &self.sync.ledger else {
            return Vec::new();
        };
        let me = self.view.me;
        let rings = self.rings.rings();
        let has_promised = ledger.acked >= self.rings.version();
        let all = (0..self.rings.partition_count()).map(PartitionId);
        let is_to_go = |partition: &PartitionId| {
            let is_current = self.rings.holds_in(RingUse::CURRENT, *partition, me);
            let is_next = self.rings.holds_in(RingUse::NEXT, *partition, me);
            match &ledger.partition(*partition).state {
                PartitionState::Absent | PartitionState::Wiping => false,
                _ if is_current => false,
                // Before this node has promised to take writes to it, whatever is there is of old.
                PartitionState::Held if is_next => {
                    rings.stage == RingStage::Prepare && !has_promised
                }
                PartitionState::Streaming { .. } if is_next => {
                    rings.stage == RingStage::Prepare
                        && !has_promised
                        && !self.sync.duty.begun.contains(partition)
                }
                PartitionState::Held | PartitionState::Streaming { .. } => {
                    rings.stage == RingStage::Stable && rings.settled
                }
            }
        };
        all.filter(is_to_go).collect()
    }

    /// Whether all partitions that this node gains are ready to take writes.
    fn is_prepared(&self) -> bool {
        let Some(ledger) = &self.sync.ledger else {
            return false;
        };
        if self.rings.stage() != RingStage::Prepare {
            return true;
        }
        let me = self.view.me;
        let all = (0..self.rings.partition_count()).map(PartitionId);
        let mut gained = all.filter(|&partition| {
            self.rings.holds_in(RingUse::NEXT, partition, me)
                && !self.rings.holds_in(RingUse::CURRENT, partition, me)
        });
        gained.all(|partition| {
            matches!(
                ledger.partition(partition).state,
                PartitionState::Streaming { .. }
            )
        })
    }

    /// Whether all requests that were begun under older versions of the rings have ended.
    fn has_drained(&self) -> bool {
        let version = self.rings.version();
        self.pending.values().all(|op| match op {
            Pending::Write(op) => op.is_answered || op.ring >= version,
            Pending::Read(op) => op.ring >= version,
            Pending::Scan(op) => op.ring >= version,
            _ => true,
        })
    }

    /// Whether this node holds, whole and verified, all that changes hands and is its own in the next ring.
    fn is_ready(&self) -> bool {
        let (Some(ledger), Some(first)) = (&self.sync.ledger, self.rings.rings().first_epoch)
        else {
            return false;
        };
        if self.rings.stage() != RingStage::Stream {
            return false;
        }
        let me = self.view.me;
        let needed = Epoch(first.0.saturating_sub(1));
        let mut all = (0..self.rings.partition_count()).map(PartitionId);
        all.all(|partition| {
            if !self.rings.holds_in(RingUse::NEXT, partition, me) || !self.is_moving(partition) {
                return true;
            }
            let is_held = ledger.partition(partition).state == PartitionState::Held;
            is_held && self.is_verified_up_to(partition, needed)
        })
    }

    /// Whether all others of a partition's group were seen equal to this node in all epochs up to this one.
    pub(super) fn is_verified_up_to(&self, partition: PartitionId, needed: Epoch) -> bool {
        let (Some(ledger), Some(progress)) =
            (&self.sync.ledger, self.sync.progress.get(&partition))
        else {
            return false;
        };
        let settled = settled_of(ledger, partition);
        let verified = progress.verified(settled, ledger.closed);
        verified.last().map_or(settled, |(epoch, _)| *epoch) >= needed
    }
}
