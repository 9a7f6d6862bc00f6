//! The slow rebuild: reading all that is here, comparing what is settled with the other replicas, and bringing back what
//! was lost under the hood.
//!
//! Verification compares what the index says was *received*. Whether the disk has it still is found out here. A
//! **pass** goes partition after partition and page after page, at a bounded rate; a start begins anew. Of each step the
//! store says what it found (`mds_storage::store::Scrub`), and this is what follows:
//!
//! | found | follows |
//! |---|---|
//! | a row above the watermark without its record | the record is fetched from another replica and merged like any other |
//! | hashes that are not those of the rows | counted, logged, forgotten: they are rebuilt from the rows, which are the truth |
//! | dead records | collected, by the same rule of the floor as everywhere |
//! | damaged bytes | counted and logged; the walk of the partition ends there |
//! | a page of settled records | compared with all other replicas of the same past: below |
//!
//! **Comparing a page** costs one question and one answer per replica, about 150 bytes for [`SCRUB_LOOKS_MAX`] records, as long as
//! all is well. Who differs answers with the hashes of the buckets; of differing buckets the rows are read; of missing
//! rows the records. What a majority of the partition's replicas holds and this one lacks was lost here, and
//! is merged as [`Purpose::Rebuild`]; the proof stands with the store's `Scrub`. What only this replica holds is *reported and
//! kept*. Everybody looks after himself: what another one lacks is for his own pass to find.
//!
//! **The same past** is a matter of moments, because watermarks rise several times an hour and not everywhere at
//! once. A page that meets another past is read anew a little later; after [`TRIES_MAX`] times the rest of the
//! partition is left to the next pass.
//!
//! [`SCRUB_LOOKS_MAX`]: crate::sync_io::SCRUB_LOOKS_MAX

mod compare;
mod fetch;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mds_storage::IndexRow;
use mds_storage::store::{
    PartitionState, Scrub, ScrubFinding, ScrubOptions, ScrubStep, SettledRange,
};
use mds_types::{Epoch, NodeId, PartitionId, RingStage};

use super::super::{Core, HEALTH_TICK_NS, Pending};
use super::{Progress, STEP_TIMEOUT_NS};
use crate::api::Now;
use crate::store_io::LedgerOrder;
use crate::sync_io::{RangeAnswer, SyncAnswer, SyncQuery};
use crate::wire::{Message, encoded_len};
use compare::Difference;

/// The first pass begins this long after the start, or after the interval if that is shorter, nanoseconds.
const FIRST_PASS_NS: u64 = 60_000_000_000;

/// A step that came to nothing is tried again after this long, and after so much longer each time, nanoseconds...
const RETRY_NS: u64 = 200_000_000;

/// ...and so often.
const TRIES_MAX: u32 = 10;

/// A step counts as at least so many rows, whatever it found: bounds the messages of small partitions.
const STEP_LOOKS_MIN: u64 = 64;

/// Values that expire within this time of a pass are not compared, milliseconds: clocks may differ, and what one
/// replica has collected another may still hold.
const LEFT_OUT_MS: u64 = 60 * 60 * 1_000;

/// What the slow rebuild has looked at, found and cost since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubStats {
    /// Passes over everything that ended.
    pub passes: u64,
    /// Records and index rows looked at.
    pub looked_at: u64,
    /// Pages of settled records that were compared with other replicas.
    pub pages: u64,
    /// Bytes of messages that this node sent and received for it, answers to others' scrubs left out.
    pub bytes: u64,
    /// Records above the watermark that were lost here, and were brought back.
    pub restored: u64,
    /// Records below the watermark that were lost here, and were brought back.
    pub rebuilt: u64,
    /// Epochs of partitions whose hashes were not those of their rows, and were rebuilt.
    pub hashes_rebuilt: u64,
    /// Partitions in which stored bytes are damaged.
    pub damaged: u64,
    /// Records that were lost here and were found on no other replica.
    pub unfound: u64,
    /// Settled records that this replica holds and a majority of the others does not.
    pub unmatched: u64,
    /// Differences that no majority could decide, because replicas were away or are too few.
    pub undecided: u64,
    /// Partitions that were left to the next pass, in whole or in part.
    pub skipped: u64,
}

/// The pass under way, and what there was.
#[derive(Debug, Default)]
pub(in super::super) struct Scrubbing {
    /// When the next pass is due.
    pub(super) due_ns: Option<u64>,
    pass: Option<Pass>,
    /// Up to when what was read so far uses up the rate.
    paced_until_ns: u64,
    pub(in super::super) stats: ScrubStats,
}

#[derive(Debug)]
struct Pass {
    at: Scrub,
    options: ScrubOptions,
    /// The step under way.
    step: Option<u64>,
    tries: u32,
    /// The rest of the partition is not compared: the others have another past.
    is_apart: bool,
    before: ScrubStats,
}

/// A step of a pass in flight.
pub(in super::super) struct ScrubOp {
    phase: Phase,
    due_ns: u64,
    partition: PartitionId,
    /// Where the walk stands behind this step, and whether it is over.
    next: Option<(Scrub, bool)>,
    /// What remains to be compared.
    range: Option<SettledRange>,
    /// Rows above the watermark without their records.
    lost: BTreeMap<Bytes, (Epoch, IndexRow)>,
    difference: Option<Box<Difference>>,
    /// What there was when the step began.
    before: ScrubStats,
}

enum Phase {
    /// This node's own store is looking.
    Own,
    /// Somebody was asked for lost records.
    Lost { asked: NodeId, left: Vec<NodeId> },
    /// All others were told a root.
    Sums {
        waiting: BTreeSet<NodeId>,
        equal: usize,
        differing: BTreeMap<NodeId, Vec<u128>>,
    },
    /// Rows of those that differ are read, one after another.
    Theirs { asked: NodeId },
    /// This node's own rows of the same range.
    Mine,
    /// Records of these keys were asked for.
    Records { asked: NodeId, keys: Vec<Bytes> },
    /// Records are being merged.
    Merging { left: usize },
}

impl ScrubOp {
    /// Whether it waits for this node.
    pub(in super::super) fn waits_for(&self, node: NodeId) -> bool {
        match &self.phase {
            Phase::Own | Phase::Mine | Phase::Merging { .. } => false,
            Phase::Lost { asked, .. } | Phase::Theirs { asked } | Phase::Records { asked, .. } => {
                *asked == node
            }
            Phase::Sums { waiting, .. } => waiting.contains(&node),
        }
    }
}

// ---- passes and steps ---------------------------------------------------------------------------

impl Core {
    /// What the slow rebuild has found and cost.
    pub(in super::super) fn scrub_stats(&self) -> ScrubStats {
        self.sync.scrub.stats
    }

    /// Time for the scrub: begins a pass when one is due, and goes on with it.
    pub(super) fn tick_scrub(&mut self, now: Now) {
        let interval_ns = self.config.scrub_interval_ms.saturating_mul(1_000_000);
        if interval_ns == 0 {
            return;
        }
        let first_ns = now.mono_ns + interval_ns.min(FIRST_PASS_NS);
        let due_ns = *self.sync.scrub.due_ns.get_or_insert(first_ns);
        if self.sync.scrub.pass.is_none() {
            if now.mono_ns < due_ns {
                return;
            }
            self.sync.scrub.due_ns = Some(now.mono_ns + interval_ns);
            let options = self.scrub_options(now);
            let Some(first) = self.next_scrubbed(PartitionId(0)) else {
                return;
            };
            self.sync.scrub.pass = Some(Pass {
                at: Scrub::new(first, options),
                options,
                step: None,
                tries: 0,
                is_apart: false,
                before: self.sync.scrub.stats,
            });
        }
        self.scrub_on(now);
    }

    /// What is dead by now on all clocks, and what may not be so for long. The floor follows the slowest clock of the
    /// cluster, so that a fast one collects nothing too early.
    fn scrub_options(&self, now: Now) -> ScrubOptions {
        let floor_ms = self.view.floors.latest().physical_us() / 1_000;
        let skew_ms = self.config.clock_skew_us_max / 1_000;
        ScrubOptions {
            dead_by_ms: now.wall_ms().min(floor_ms).saturating_sub(skew_ms),
            left_out_ms: now.wall_ms().max(floor_ms).saturating_add(LEFT_OUT_MS),
        }
    }

    /// The first partition from this one on that is here.
    fn next_scrubbed(&self, from: PartitionId) -> Option<PartitionId> {
        let ledger = self.sync.ledger.as_ref()?;
        let all = (from.0..self.rings.partition_count()).map(PartitionId);
        let is_held = |partition: &PartitionId| {
            ledger.partition(*partition).state == PartitionState::Held
                && self.sync.progress.contains_key(partition)
        };
        all.into_iter().find(is_held)
    }

    /// Begins the next step, if there is a pass and the rate allows it.
    fn scrub_on(&mut self, now: Now) {
        let scrub = &mut self.sync.scrub;
        // A tick's worth may be read ahead of time: nobody looks more often.
        let is_paced = scrub.paced_until_ns > now.mono_ns + HEALTH_TICK_NS;
        let Some(pass) = scrub.pass.as_mut().filter(|pass| pass.step.is_none()) else {
            return;
        };
        if is_paced {
            return;
        }
        let at = pass.at.clone();
        let op = ScrubOp {
            phase: Phase::Own,
            due_ns: now.mono_ns + STEP_TIMEOUT_NS,
            partition: at.partition(),
            next: None,
            range: None,
            lost: BTreeMap::new(),
            difference: None,
            before: scrub.stats,
        };
        let id = self.pending.insert(Pending::Scrub(Box::new(op)));
        pass.step = Some(id);
        self.deadlines.insert(now.mono_ns + STEP_TIMEOUT_NS, id);
        self.ask_own_store(id, SyncQuery::Scrub(Box::new(at)));
    }

    /// The step is done with.
    fn end_scrub_step(&mut self, now: Now, id: u64) {
        let Some(Pending::Scrub(op)) = self.pending.remove(id) else {
            return;
        };
        self.scrub_behind(now, op.partition, op.next);
        self.scrub_on(now);
    }

    /// Goes on behind a step: in its partition, in the next one, or not at all.
    fn scrub_behind(&mut self, now: Now, partition: PartitionId, behind: Option<(Scrub, bool)>) {
        let options = self.scrub_options(now);
        let next = self.next_scrubbed(PartitionId(partition.0.saturating_add(1)));
        let scrub = &mut self.sync.scrub;
        let Some(pass) = &mut scrub.pass else { return };
        pass.step = None;
        pass.tries = 0;
        match (behind, next) {
            (Some((at, false)), _) => pass.at = at,
            (_, Some(next)) => {
                pass.is_apart = false;
                pass.options = options;
                pass.at = Scrub::new(next, options);
            }
            (_, None) => {
                scrub.stats.passes += 1;
                let (before, after) = (pass.before, scrub.stats);
                tracing::info!(
                    looked_at = after.looked_at - before.looked_at,
                    pages = after.pages - before.pages,
                    bytes = after.bytes - before.bytes,
                    restored = after.restored - before.restored,
                    rebuilt = after.rebuilt - before.rebuilt,
                    "a scrub of all that is here has ended"
                );
                scrub.pass = None;
            }
        }
    }

    /// The step came to nothing: again, later; or on behind it.
    pub(in super::super) fn on_scrub_failed(&mut self, now: Now, id: u64) {
        let Some(Pending::Scrub(op)) = self.pending.remove(id) else {
            return;
        };
        let scrub = &mut self.sync.scrub;
        let Some(pass) = &mut scrub.pass else { return };
        pass.step = None;
        pass.tries += 1;
        let rest_ns = RETRY_NS * u64::from(pass.tries);
        scrub.paced_until_ns = scrub
            .paced_until_ns
            .max(now.mono_ns + rest_ns + HEALTH_TICK_NS);
        if pass.tries >= TRIES_MAX {
            scrub.stats.skipped += 1;
            pass.is_apart = true;
            tracing::info!(
                partition = %op.partition,
                "the settled records of a partition were not compared: others have another past, or \
                 cannot be asked; the next scrub will"
            );
            self.scrub_behind(now, op.partition, op.next);
        }
    }

    pub(in super::super) fn on_scrub_deadline(&mut self, now: Now, id: u64) {
        if self.scrub_op(id).is_some_and(|op| op.due_ns <= now.mono_ns) {
            self.on_scrub_failed(now, id);
        }
    }

    fn scrub_op(&mut self, id: u64) -> Option<&mut ScrubOp> {
        match self.pending.get_mut(id) {
            Some(Pending::Scrub(op)) => Some(op),
            _ => None,
        }
    }

    fn set_phase(&mut self, now: Now, id: u64, phase: Phase) {
        let due_ns = now.mono_ns + STEP_TIMEOUT_NS;
        if let Some(op) = self.scrub_op(id) {
            op.phase = phase;
            op.due_ns = due_ns;
            self.deadlines.insert(due_ns, id);
        }
    }

    /// Asks somebody; without a way to him the step has failed.
    fn scrub_ask(&mut self, now: Now, id: u64, to: NodeId, message: &Message, phase: Phase) {
        self.set_phase(now, id, phase);
        match self.send_sync(to, message) {
            true => self.sync.scrub.stats.bytes += encoded_len(message) as u64,
            false => self.on_scrub_failed(now, id),
        }
    }

    // ---- what this node's own store found ------------------------------------------------------

    pub(super) fn on_scrub_own(&mut self, now: Now, id: u64, answer: Option<SyncAnswer>) {
        let Some(op) = self.scrub_op(id) else { return };
        match (&op.phase, answer) {
            (Phase::Own, Some(SyncAnswer::Scrub(found))) => {
                let (next, step) = *found;
                self.take_step(now, id, next, step);
            }
            (Phase::Mine, Some(SyncAnswer::Range(RangeAnswer::Rows(rows, next)))) => {
                self.hold_against(now, id, &rows, next);
            }
            _ => self.on_scrub_failed(now, id),
        }
    }

    fn take_step(&mut self, now: Now, id: u64, next: Scrub, step: ScrubStep) {
        let partition = next.partition();
        self.pace_scrub(now, step.looked_at);
        let lost = self.take_findings(partition, step.findings);
        let is_apart = self
            .sync
            .scrub
            .pass
            .as_ref()
            .is_none_or(|pass| pass.is_apart);
        let is_stable = self.rings.stage() == RingStage::Stable;
        let Some(op) = self.scrub_op(id) else { return };
        op.next = Some((next, step.is_done));
        op.range = step.range.filter(|_| is_stable && !is_apart);
        op.lost = lost;
        let others = self.others(partition);
        self.ask_for_lost(now, id, others);
    }

    fn pace_scrub(&mut self, now: Now, looked_at: u64) {
        let rate = u64::from(self.config.scrub_rows_per_s.max(1));
        let scrub = &mut self.sync.scrub;
        scrub.stats.looked_at += looked_at;
        let looks_ns = looked_at.max(STEP_LOOKS_MIN) * 1_000_000_000 / rate;
        scrub.paced_until_ns = scrub.paced_until_ns.max(now.mono_ns) + looks_ns;
    }

    /// Does what follows from findings; the rows that lack their records are returned.
    fn take_findings(
        &mut self,
        partition: PartitionId,
        findings: Vec<ScrubFinding>,
    ) -> BTreeMap<Bytes, (Epoch, IndexRow)> {
        let mut lost: BTreeMap<Bytes, (Epoch, IndexRow)> = BTreeMap::new();
        let mut dead = Vec::new();
        for finding in findings {
            match finding {
                ScrubFinding::Dead(found) => dead.push(found),
                ScrubFinding::HashesDiffer { epoch, buckets } => {
                    tracing::error!(
                        %partition, epoch = epoch.0, ?buckets,
                        "the hashes of an epoch are not those of its rows: they are rebuilt from the rows"
                    );
                    self.sync.scrub.stats.hashes_rebuilt += 1;
                    let order = LedgerOrder::ForgetHashes(partition, epoch);
                    self.batch.orders.push(order);
                }
                ScrubFinding::Lost { epoch, row } => {
                    // What comes back must not be added to hashes that have its row already.
                    let order = LedgerOrder::ForgetHashes(partition, epoch);
                    if !self.batch.orders.contains(&order) {
                        self.batch.orders.push(order);
                    }
                    let greatest = lost.entry(row.key.clone()).or_insert((epoch, row.clone()));
                    if row.version > greatest.1.version {
                        *greatest = (epoch, row);
                    }
                }
                ScrubFinding::Damaged { what } => {
                    tracing::error!(%partition, what, "stored bytes are damaged: check this node's disk");
                    self.sync.scrub.stats.damaged += 1;
                }
            }
        }
        if !dead.is_empty() {
            let options = self.sync.scrub.pass.as_ref().map(|pass| pass.options);
            self.batch.orders.push(LedgerOrder::CollectDead {
                partition,
                dead,
                dead_by_ms: options.map_or(0, |options| options.dead_by_ms),
            });
        }
        lost
    }

    /// The other replicas of a partition that can be asked.
    fn others(&self, partition: PartitionId) -> Vec<NodeId> {
        let progress = self.sync.progress.get(&partition);
        let members = progress.into_iter().flat_map(Progress::members);
        members.filter(|node| self.is_usable(*node)).collect()
    }
}
