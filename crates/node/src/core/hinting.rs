//! Hinted handoff: what a replica missed is kept by the coordinator and delivered on its return.
//!
//! Hints lie in the store's hint logs, bounded in bytes and age. Per target one batch at a time is read,
//! sent as ordinary writes, and dropped from the log once all of it is acknowledged; then the next.
//! That window of one batch is the throttle: a node that returns is not flooded. When a delivery fails,
//! the next waits, longer each time up to [`BACKOFF_NS_MAX`].
//!
//! Hints only shorten the time a replica is behind. They are never counted in a quorum, and nothing
//! relies on their arrival. Delivering one twice is harmless: merging is idempotent.

use std::collections::BTreeMap;

use mds_storage::hints::HintToken;
use mds_types::mutation::{Mutation, is_on};
use mds_types::{NodeId, Record};

use super::write::Encoded;
use super::{Core, Pending};
use crate::api::Now;
use crate::wire::{Purpose, Status};

/// A first failed delivery is tried again after this long.
const BACKOFF_NS_MIN: u64 = 200_000_000;

/// No delivery waits longer than this for its next try, while its target can be reached.
pub(super) const BACKOFF_NS_MAX: u64 = 10_000_000_000;

/// A batch has to be acknowledged within this time.
const DELIVERY_TIMEOUT_NS: u64 = 10_000_000_000;

/// Bytes of hints on their way to the store, at most; beyond, hints are dropped and counted, and repair
/// has to do.
pub const HINT_BACKLOG_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Who has hints waiting.
#[derive(Debug, Default)]
pub(super) struct Hinting {
    targets: BTreeMap<NodeId, Target>,
}

#[derive(Debug, Default)]
struct Target {
    pending: u64,
    in_flight: bool,
    backoff_ns: u64,
    not_before_ns: u64,
}

/// A batch of hints on its way.
pub(super) struct Delivery {
    pub(super) target: NodeId,
    token: HintToken,
    unacked: usize,
    count: u64,
}

impl Hinting {
    pub(super) fn set_pending(&mut self, pending: Vec<(NodeId, u64)>) {
        for target in self.targets.values_mut() {
            target.pending = 0;
        }
        for (node, count) in pending {
            self.targets.entry(node).or_default().pending = count;
        }
        self.targets
            .retain(|_, target| target.pending > 0 || target.in_flight);
    }

    pub(super) fn pending_total(&self) -> u64 {
        self.targets.values().map(|target| target.pending).sum()
    }

    /// Ends a delivery; the next waits if this one failed.
    fn landed(&mut self, now_ns: u64, node: NodeId, ok: bool) {
        let Some(target) = self.targets.get_mut(&node) else {
            return;
        };
        target.in_flight = false;
        target.backoff_ns = match ok {
            true => 0,
            false => (target.backoff_ns * 2).clamp(BACKOFF_NS_MIN, BACKOFF_NS_MAX),
        };
        target.not_before_ns = now_ns + target.backoff_ns;
    }
}

impl Core {
    /// Keeps a write for a replica that missed it, if there is room.
    pub(super) fn keep_hint(&mut self, node: NodeId, record: &Record) {
        let bytes = record.encoded_len();
        if self.hint_backlog_bytes + bytes > HINT_BACKLOG_BYTES_MAX {
            self.stats.hints_dropped += 1;
            return;
        }
        self.hint_backlog_bytes += bytes;
        self.batch.hints.push((node, record.clone()));
    }

    /// Asks the store for hints of every target that can be reached and has some.
    pub(super) fn tick_hints(&mut self, now: Now) {
        self.forget_hints_of_nobody();
        let due: Vec<NodeId> = self
            .hinting
            .targets
            .iter()
            .filter(|(_, target)| {
                target.pending > 0 && !target.in_flight && target.not_before_ns <= now.mono_ns
            })
            .map(|(&node, _)| node)
            .filter(|&node| self.is_usable(node))
            .collect();
        for node in due {
            self.read_hints(node);
        }
    }

    /// Drops the hints of targets that are on no ring in force: a change was called off before they joined, or they
    /// have left. Should one join later, it begins empty and copies everything.
    fn forget_hints_of_nobody(&mut self) {
        let rings = self.rings.rings();
        let rings = [Some(&rings.current), rings.next.as_ref()];
        let is_on_ring = |node: &NodeId| {
            let mut rings = rings.iter().flatten();
            rings.any(|ring| ring.topology.member(*node).is_some())
        };
        let is_known = rings[0].is_some_and(|ring| !ring.topology.members.is_empty());
        if !is_known {
            return;
        }
        let targets = self.hinting.targets.iter_mut();
        let nobodys = targets
            .filter(|(node, target)| target.pending > 0 && !target.in_flight && !is_on_ring(node));
        for (node, target) in nobodys {
            tracing::info!(target_node = %node, hints = target.pending,
                "hints are dropped: their target is on no ring");
            self.stats.hints_obsolete += target.pending;
            target.pending = 0;
            self.batch.hints_forgotten.push(*node);
        }
    }

    fn read_hints(&mut self, node: NodeId) {
        if let Some(target) = self.hinting.targets.get_mut(&node) {
            target.in_flight = true;
            self.batch.hint_reads.push(node);
        }
    }

    /// The store has read a batch of hints: send it.
    pub(super) fn on_hints_read(
        &mut self,
        now: Now,
        target: NodeId,
        mut records: Vec<Record>,
        token: Option<HintToken>,
    ) {
        for record in records
            .iter_mut()
            .filter(|_| is_on(Mutation::HintRestamped))
        {
            record.version.node = self.view.me;
            record.version.hlc = self.clock.now(now.wall_us).unwrap_or(record.version.hlc);
        }
        let Some(token) = token else {
            return self.hinting.landed(now.mono_ns, target, false);
        };
        if records.is_empty() {
            return self.hinting.landed(now.mono_ns, target, true);
        }
        let count = records.len();
        let delivery = Delivery {
            target,
            token,
            unacked: count,
            count: count as u64,
        };
        let id = self.pending.insert(Pending::HintDelivery(delivery));
        self.deadlines.insert(now.mono_ns + DELIVERY_TIMEOUT_NS, id);
        let timeout_ms = (DELIVERY_TIMEOUT_NS / 1_000_000) as u32;
        for record in &records {
            let mut encoded = Encoded::new(record);
            let sent = self.is_usable(target)
                && self.send_put(target, id, &mut encoded, Purpose::Hint, timeout_ms);
            if !sent {
                return self.on_delivery_failed(now, id);
            }
        }
    }

    /// The target has answered to one hint of a batch.
    pub(super) fn on_hint_reply(&mut self, now: Now, id: u64, status: Status) {
        let is_settled = match status {
            Status::Ok => true,
            // It will never take it: not its data any more, or a record that breaks its limits.
            Status::NotReplica | Status::Malformed => true,
            // Too late for a hint: what any replica has of that epoch, verification brings to all.
            Status::EpochClosed | Status::Settled => true,
            Status::Overloaded
            | Status::NotServing
            | Status::ClockSkew
            | Status::StorageFailed
            | Status::StaleTopology => false,
        };
        if !is_settled {
            return self.on_delivery_failed(now, id);
        }
        let Some(Pending::HintDelivery(delivery)) = self.pending.get_mut(id) else {
            return;
        };
        delivery.unacked -= 1;
        if delivery.unacked > 0 {
            return;
        }
        if let Some(Pending::HintDelivery(delivery)) = self.pending.remove(id) {
            self.stats.hints_delivered += delivery.count;
            self.batch
                .hints_delivered
                .push((delivery.target, delivery.token));
            self.hinting.landed(now.mono_ns, delivery.target, true);
            self.read_hints(delivery.target);
        }
    }

    /// A batch did not arrive whole: it stays on disk and is sent again later.
    pub(super) fn on_delivery_failed(&mut self, now: Now, id: u64) {
        if let Some(Pending::HintDelivery(delivery)) = self.pending.remove(id) {
            tracing::debug!(target_node = %delivery.target, "hints not delivered; trying later");
            self.hinting.landed(now.mono_ns, delivery.target, false);
        }
    }
}
