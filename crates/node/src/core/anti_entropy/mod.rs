//! Anti-entropy: comparing closed epochs with the other replicas, and becoming equal.
//!
//! Hints and read repair bring most of what a replica missed; this is what proves that nothing is
//! missing (DeCandia et al., *Dynamo*, 2007, section 4.7). A **round** reads the roots of this replica's
//! closed epochs that are not settled yet and tells them to each other member of the partitions' groups, many in one
//! message. Who answers *differs* is compared more closely ([`repair`]); when all have answered *equal* to the
//! same root, the watermark rises. The rules and their proof are in `mds_protocol::verification`; what is
//! equal is the store's to say, and it says so once more, on its own thread, before it raises a watermark.
//!
//! **Everybody pulls** what he lacks and nobody pushes, so two replicas never repair one another in circles.
//!
//! **Invariants**
//!
//! 1. A watermark rises only in a group that holds all replicas of all rings in force, under one version of the
//!    rings, and not while the partition changes hands.
//! 2. A member that is away blocks settling, and nothing else: rounds with the others go on.
//! 3. All of it is bounded: one comparison in flight per member, [`repair::REPAIRS_MAX`] repairs, bounded pages; a
//!    member that does not answer is asked less and less often.
//! 4. A cluster in which nothing was written costs a few messages an epoch, and nothing between.

mod duty;
mod intake;
mod pacing;
mod repair;
mod report;
mod scrub;
mod serve;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use mds_protocol::verification::{Progress, Verdict as Seen};
use mds_storage::store::{Ledger, PartitionState, Settlement};
use mds_types::{Epoch, NodeId, PartitionId, RingStage, RingUse, TopologyVersion};

pub(super) use duty::RingDuty;
pub use duty::RingReport;
use pacing::Pacing;
pub(super) use repair::RepairOp;
pub use report::{Copying, SyncReport};
pub(super) use scrub::ScrubOp;
pub use scrub::ScrubStats;
pub(super) use serve::{failed_answer, to_wire};
pub(super) use stream::StreamOp;

use super::{Core, Pending};
use crate::api::Now;
use crate::store_io::{LedgerOrder, ReadQuery, ReplyTo, Ticket};
use crate::sync_io::{RootOf, SyncAnswer, SyncQuery};
use crate::wire::{Message, RootItem, RootReply, Roots, Verdict, hash_bytes, hash_of};

/// (partition, epoch) pairs that one round looks at, at most; the rest follow in the next.
const ROUND_ITEMS_MAX: usize = 2_048;

/// Pairs in one message, at most.
const MESSAGE_ITEMS_MAX: usize = 1_024;

/// Rounds are at least this far apart, nanoseconds.
const ROUND_NS_MIN: u64 = 100_000_000;

/// A member that had nothing new to say is asked again after this long...
const PAUSE_NS_MIN: u64 = 200_000_000;

/// ...and after twice as long each time, up to this, nanoseconds.
const PAUSE_NS_MAX: u64 = 5_000_000_000;

/// A question to a member, or to this node's own store, has to be answered within this time, nanoseconds.
pub(super) const STEP_TIMEOUT_NS: u64 = 10_000_000_000;

/// What anti-entropy has cost and brought since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SyncStats {
    /// Messages sent, questions and answers.
    pub messages: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Messages received, likewise.
    pub messages_received: u64,
    /// Bytes in them.
    pub bytes_received: u64,
    /// (partition, epoch) pairs compared with another replica.
    pub comparisons: u64,
    /// Of these, those that differed.
    pub differences: u64,
    /// Index rows received.
    pub rows: u64,
    /// Index rows sent.
    pub rows_sent: u64,
    /// Records received to repair what was missing here.
    pub records: u64,
    /// Records sent to repair what was missing elsewhere.
    pub records_sent: u64,
    /// Records received while whole partitions were copied here.
    pub streamed: u64,
    /// Bytes of these.
    pub streamed_bytes: u64,
    /// Records sent to replicas that copy whole partitions from here.
    pub streamed_sent: u64,
    /// Partitions that were copied here to the end.
    pub partitions_streamed: u64,
    /// (partition, epoch) pairs that this replica has settled.
    pub settled: u64,
    /// Partitions that were found to be wrong here, and were wiped to be copied anew.
    pub rebuilt: u64,
}

/// What the core knows of the verification of the partitions it holds.
pub(super) struct AntiEntropy {
    /// What the store has promised.
    pub(super) ledger: Option<Arc<Ledger>>,
    progress: BTreeMap<PartitionId, Progress>,
    /// What the groups were made from.
    grouped: (TopologyVersion, bool),
    members: BTreeMap<NodeId, Member>,
    /// The round under way: its operation's number.
    round: Option<u64>,
    next_round_ns: u64,
    /// Comparisons that found a difference, and wait to be looked at.
    differing: VecDeque<(NodeId, PartitionId, Epoch)>,
    /// The pairs among them and under repair: of one pair only one difference is looked at at a time, or the
    /// same records would come from several members.
    queued: BTreeSet<(PartitionId, Epoch)>,
    repairs: usize,
    /// Repairs that rest, and go on in this order.
    resting: VecDeque<u64>,
    pub(super) pacing: Pacing,
    streams: stream::Streams,
    pub(super) scrub: scrub::Scrubbing,
    pub(super) duty: RingDuty,
    /// Since when something keeps the oldest open epoch from being settled, and who.
    pub(super) blocked: BTreeMap<NodeId, u64>,
    pub(super) stats: SyncStats,
    figures: report::Figures,
}

/// How it goes with one member.
#[derive(Debug, Default)]
struct Member {
    in_flight: bool,
    not_before_ns: u64,
    pause_ns: u64,
    /// Partitions that it said it had not, or not yet.
    lacks: BTreeSet<PartitionId>,
}

/// A round or a comparison in flight.
pub(super) enum CompareOp {
    /// This node's own roots are being read.
    Reading,
    /// A member was told roots.
    Asked {
        member: NodeId,
        version: TopologyVersion,
        items: Vec<RootOf>,
    },
}

impl CompareOp {
    /// Whether it waits for this node.
    pub(super) fn waits_for(&self, node: NodeId) -> bool {
        matches!(self, CompareOp::Asked { member, .. } if *member == node)
    }
}

impl Default for AntiEntropy {
    fn default() -> AntiEntropy {
        AntiEntropy {
            ledger: None,
            progress: BTreeMap::new(),
            grouped: (TopologyVersion(0), false),
            members: BTreeMap::new(),
            round: None,
            next_round_ns: 0,
            differing: VecDeque::new(),
            queued: BTreeSet::new(),
            repairs: 0,
            resting: VecDeque::new(),
            pacing: Pacing::default(),
            streams: stream::Streams::default(),
            scrub: scrub::Scrubbing::default(),
            duty: RingDuty::default(),
            blocked: BTreeMap::new(),
            stats: SyncStats::default(),
            figures: report::Figures::default(),
        }
    }
}

impl Core {
    /// The store's promises have changed.
    pub(super) fn on_ledger(&mut self, ledger: Arc<Ledger>) {
        let before = self.sync.ledger.replace(ledger.clone());
        if let Some(before) = &before {
            self.sync.stats.note_ledger(before, &ledger);
        }
        let was_closed = before.map_or(Epoch(0), |before| before.closed);
        if ledger.closed > was_closed {
            // There is something to compare: at once.
            self.sync.next_round_ns = 0;
            for member in self.sync.members.values_mut() {
                member.not_before_ns = 0;
                member.pause_ns = 0;
            }
        }
        for (partition, progress) in &mut self.sync.progress {
            let settled = ledger.partition(*partition).settled;
            progress.forget(settled);
        }
        self.regroup();
    }

    /// A closed epoch's set is not what it was when others were seen equal to it.
    pub(super) fn on_settle_refused(&mut self, refused: &[(PartitionId, Epoch)]) {
        for (partition, epoch) in refused {
            if let Some(progress) = self.sync.progress.get_mut(partition) {
                progress.changed(*epoch);
            }
        }
    }

    /// Partitions whose sets were verified without what is here, or with what is not: they are copied anew.
    pub(super) fn on_wrong(&mut self, partitions: &[PartitionId]) {
        for partition in partitions {
            tracing::error!(
                %partition,
                "this replica's data is not what was verified on all replicas: it is removed and copied anew"
            );
        }
        self.sync.stats.rebuilt += partitions.len() as u64;
        self.batch
            .orders
            .push(LedgerOrder::Wipe(partitions.to_vec()));
    }

    /// Goes by the groups of the rings in force.
    pub(super) fn regroup(&mut self) {
        let Some(ledger) = self.sync.ledger.clone() else {
            return;
        };
        let (version, me) = (self.rings.version(), self.view.me);
        let is_new = self.sync.grouped != (version, true);
        let all = self.rings.rings().clone();
        for partition in (0..self.rings.partition_count()).map(PartitionId) {
            let is_here = matches!(
                ledger.partition(partition).state,
                PartitionState::Held | PartitionState::Streaming { .. }
            );
            if !is_here || !self.rings.holds_in(RingUse::BOTH, partition, me) {
                self.sync.progress.remove(&partition);
                continue;
            }
            if !is_new && self.sync.progress.contains_key(&partition) {
                continue;
            }
            let group = self.rings.replicas(partition, RingUse::BOTH);
            let others = group.nodes().iter().copied();
            let others = others.filter(|node| *node != me && !all.excluded.contains(node));
            let progress = self.sync.progress.entry(partition).or_default();
            progress.regroup(version, others);
        }
        self.sync.grouped = (version, true);
        let progress = self.sync.progress.values();
        let members: BTreeSet<NodeId> = progress.flat_map(Progress::members).collect();
        self.sync.members.retain(|node, _| members.contains(node));
        for node in members {
            self.sync.members.entry(node).or_default();
        }
    }

    /// Time for anti-entropy: begins a round, repairs and streams, if there is something to do.
    pub(super) fn tick_sync(&mut self, now: Now) {
        if !self.is_member_serving() || self.sync.ledger.is_none() || self.is_draining {
            return;
        }
        // Who holds no data, not yet or no more, owes the ring its word all the same.
        self.tick_duty(now);
        self.tick_report(now);
        self.bring_on(now);
        if !self.is_replica_serving() {
            return;
        }
        self.tick_scrub(now);
        if self.sync.round.is_some() || now.mono_ns < self.sync.next_round_ns {
            return;
        }
        self.sync.next_round_ns = now.mono_ns + ROUND_NS_MIN;
        self.settle_verified();
        self.note_blockers(now);
        let asked = self.pending_items();
        if asked.is_empty() {
            return;
        }
        let is_free = |(node, member): (&NodeId, &Member)| {
            !member.in_flight && member.not_before_ns <= now.mono_ns && self.is_usable(*node)
        };
        if !self.sync.members.iter().any(is_free) {
            return;
        }
        let id = self.pending.insert(Pending::Compare(CompareOp::Reading));
        self.deadlines.insert(now.mono_ns + STEP_TIMEOUT_NS, id);
        self.sync.round = Some(id);
        self.ask_own_store(id, SyncQuery::Roots(asked));
    }

    /// Goes on with what is brought here.
    fn bring_on(&mut self, now: Now) {
        if self.is_replica_serving() {
            self.begin_repairs(now);
            self.tick_streams(now);
            return;
        }
        // It may be about to hold something: it makes place for that before writes come.
        let next = self.rings.rings().next.as_ref();
        if next.is_some_and(|ring| ring.topology.member(self.view.me).is_some()) {
            self.tick_streams(now);
        }
    }

    /// What is brought here has rested.
    pub(super) fn on_rest_over(&mut self, now: Now) {
        if self.is_member_serving() && !self.is_draining {
            self.bring_on(now);
        }
    }

    /// A page that was brought here is merged.
    fn note_merged_page(&mut self, now: Now, since_ns: u64) {
        let served = self.stats.replica_puts + self.stats.replica_gets;
        let took_ns = now.mono_ns.saturating_sub(since_ns);
        self.sync.pacing.note_merged(now, took_ns, served);
    }

    /// Puts a question to this node's own store on behalf of an operation.
    fn ask_own_store(&mut self, id: u64, query: SyncQuery) {
        let ticket = Ticket {
            reply_to: ReplyTo::Me,
            id,
            bytes: 0,
        };
        self.reads.push((ticket, ReadQuery::Sync(query)));
    }

    /// Sends a question to a member. False: nothing was sent.
    fn send_sync(&mut self, to: NodeId, message: &Message) -> bool {
        if !self.is_usable(to) || self.links.send(to, message).is_err() {
            return false;
        }
        self.sync.stats.note_sent(message);
        true
    }

    /// What has to be compared still, oldest epochs first.
    fn pending_items(&self) -> Vec<(PartitionId, Epoch)> {
        let Some(ledger) = &self.sync.ledger else {
            return Vec::new();
        };
        let mut items: Vec<(PartitionId, Epoch)> = Vec::new();
        for (&partition, progress) in &self.sync.progress {
            let entry = ledger.partition(partition);
            // What is being copied is compared when it is whole: the copy brings most of what it lacks.
            if entry.state != PartitionState::Held {
                continue;
            }
            let pending = progress.pending(entry.settled, ledger.closed);
            items.extend(pending.into_iter().map(|epoch| (partition, epoch)));
        }
        items.sort_unstable_by_key(|&(partition, epoch)| (epoch, partition));
        items.truncate(ROUND_ITEMS_MAX);
        items
    }

    /// This node's own roots have been read: tells them to every member that has to be asked.
    fn on_own_roots(&mut self, now: Now, id: u64, roots: &[RootOf]) {
        self.pending.remove(id);
        self.sync.round = None;
        let members: Vec<NodeId> = self.sync.members.keys().copied().collect();
        for member in members {
            let Some(state) = self.sync.members.get(&member) else {
                continue;
            };
            if state.in_flight || state.not_before_ns > now.mono_ns || !self.is_usable(member) {
                continue;
            }
            let items: Vec<RootOf> = roots
                .iter()
                .filter(|root| {
                    let progress = self.sync.progress.get(&root.partition);
                    let key = (root.partition, root.epoch);
                    progress
                        .is_some_and(|progress| progress.has_to_ask(member, root.epoch, root.root))
                        && !self.sync.queued.contains(&key)
                })
                .take(MESSAGE_ITEMS_MAX)
                .copied()
                .collect();
            if !items.is_empty() {
                self.compare_with(now, member, items);
            }
        }
        self.settle_alone(roots);
    }

    fn compare_with(&mut self, now: Now, member: NodeId, items: Vec<RootOf>) {
        let version = self.rings.version();
        let op = CompareOp::Asked {
            member,
            version,
            items: items.clone(),
        };
        let id = self.pending.insert(Pending::Compare(op));
        let items = items.iter().map(|item| RootItem {
            partition: u32::from(item.partition.0),
            epoch: item.epoch.0,
            root: hash_bytes(item.root),
        });
        let message = Message::Roots(Roots {
            id,
            topology: version.0,
            items: items.collect(),
        });
        if !self.send_sync(member, &message) {
            self.pending.remove(id);
            return;
        }
        self.deadlines.insert(now.mono_ns + STEP_TIMEOUT_NS, id);
        if let Some(state) = self.sync.members.get_mut(&member) {
            state.in_flight = true;
        }
    }

    /// A member has answered to roots.
    pub(super) fn on_roots_reply(&mut self, now: Now, id: u64, answers: &[RootReply]) {
        let Some(Pending::Compare(CompareOp::Asked { .. })) = self.pending.get(id) else {
            return;
        };
        let Some(Pending::Compare(CompareOp::Asked {
            member,
            version,
            items,
        })) = self.pending.remove(id)
        else {
            return;
        };
        let mut has_news = false;
        let mut followed = Vec::new();
        for (item, answer) in items.iter().zip(answers) {
            self.sync.stats.comparisons += 1;
            let verdict = Verdict::try_from(answer.verdict).unwrap_or(Verdict::Unknown);
            let seen = match verdict {
                Verdict::Equal => Seen::Equal,
                Verdict::Differs => Seen::Differs,
                Verdict::NotClosed => Seen::NotClosed,
                _ => Seen::Nothing,
            };
            if let Some(progress) = self.sync.progress.get_mut(&item.partition) {
                progress.heard(version, member, item.epoch, item.root, seen);
            }
            match verdict {
                Verdict::Equal => has_news = true,
                Verdict::Differs => {
                    has_news = true;
                    self.sync.stats.differences += 1;
                    self.note_difference(member, item.partition, item.epoch);
                }
                Verdict::NotHere => self.note_lack(member, item.partition),
                Verdict::Ahead => {
                    if let Some(chain) = hash_of(&answer.chain) {
                        followed.push((item.partition, Epoch(answer.epoch), chain));
                    }
                }
                _ => {}
            }
        }
        self.rest_member(now, member, has_news);
        self.follow(followed);
        self.settle_verified();
        self.begin_repairs(now);
    }

    /// A comparison is over: the member is asked again at once if it had something to say, else later.
    fn rest_member(&mut self, now: Now, member: NodeId, has_news: bool) {
        let Some(state) = self.sync.members.get_mut(&member) else {
            return;
        };
        state.in_flight = false;
        state.pause_ns = match has_news {
            true => 0,
            false => (state.pause_ns * 2).clamp(PAUSE_NS_MIN, PAUSE_NS_MAX),
        };
        state.not_before_ns = now.mono_ns + state.pause_ns;
        if has_news {
            self.sync.next_round_ns = self.sync.next_round_ns.min(now.mono_ns + ROUND_NS_MIN);
        }
    }

    /// A member has not got a partition, or not yet.
    fn note_lack(&mut self, member: NodeId, partition: PartitionId) {
        if let Some(member) = self.sync.members.get_mut(&member) {
            member.lacks.insert(partition);
        }
    }

    /// A member asks about these partitions. If it had said that it lacks one, it has it now, and is asked in turn without waiting
    /// for its pause to end.
    pub(super) fn note_asked(&mut self, now: Now, member: NodeId, partitions: &[PartitionId]) {
        let Some(member) = self.sync.members.get_mut(&member) else {
            return;
        };
        let lacked = member.lacks.len();
        for partition in partitions {
            member.lacks.remove(partition);
        }
        if member.lacks.len() < lacked {
            member.pause_ns = 0;
            member.not_before_ns = now.mono_ns;
        }
    }

    /// A comparison, or the reading before it, came to nothing.
    pub(super) fn on_compare_failed(&mut self, now: Now, id: u64) {
        match self.pending.remove(id) {
            Some(Pending::Compare(CompareOp::Reading)) => self.sync.round = None,
            Some(Pending::Compare(CompareOp::Asked { member, .. })) => {
                self.rest_member(now, member, false);
            }
            _ => {}
        }
    }

    /// A member has settled what this replica has not: it was seen equal, so it is; or it is wrong.
    fn follow(&mut self, followed: Vec<(PartitionId, Epoch, u128)>) {
        let Some(ledger) = &self.sync.ledger else {
            return;
        };
        let mut last: BTreeMap<PartitionId, (Epoch, u128)> = BTreeMap::new();
        for (partition, epoch, chain) in followed {
            let is_held = ledger.partition(partition).state == PartitionState::Held;
            // Epochs that are not closed here yet have to be closed first.
            if is_held && epoch <= ledger.closed && epoch > ledger.partition(partition).settled {
                let known = last.entry(partition).or_insert((epoch, chain));
                *known = (*known).max((epoch, chain));
            }
        }
        let others = last.into_iter();
        let others: Vec<Settlement> = others
            .map(|(partition, (epoch, chain))| Settlement {
                partition,
                epoch,
                chain,
            })
            .collect();
        if !others.is_empty() {
            self.batch.orders.push(LedgerOrder::Follow(others));
        }
    }

    /// Raises the watermarks that may rise.
    fn settle_verified(&mut self) {
        let Some(ledger) = self.sync.ledger.clone() else {
            return;
        };
        let mut roots = Vec::new();
        for (&partition, progress) in &self.sync.progress {
            if !self.may_settle(&ledger, partition) {
                continue;
            }
            let settled = ledger.partition(partition).settled;
            let verified = progress.verified(settled, ledger.closed);
            roots.extend(verified.into_iter().map(|(epoch, root)| RootOf {
                partition,
                epoch,
                root,
            }));
        }
        if !roots.is_empty() && !self.sync.duty.is_settling {
            self.sync.duty.is_settling = true;
            self.batch.orders.push(LedgerOrder::Settle(roots));
        }
    }

    /// Who holds a partition alone has nobody to differ from.
    fn settle_alone(&mut self, roots: &[RootOf]) {
        let Some(ledger) = self.sync.ledger.clone() else {
            return;
        };
        let alone = roots.iter().filter(|root| {
            let progress = self.sync.progress.get(&root.partition);
            progress.is_some_and(Progress::is_alone) && self.may_settle(&ledger, root.partition)
        });
        let alone: Vec<RootOf> = alone.copied().collect();
        if !alone.is_empty() && !self.sync.duty.is_settling {
            self.sync.duty.is_settling = true;
            self.batch.orders.push(LedgerOrder::Settle(alone));
        }
    }

    /// Whether a partition's watermark may move: it is held, and does not change hands.
    fn may_settle(&self, ledger: &Ledger, partition: PartitionId) -> bool {
        ledger.partition(partition).state == PartitionState::Held
            && (self.rings.stage() == RingStage::Stable || !self.is_moving(partition))
    }

    /// Whether the replicas of a partition are others in the next ring.
    pub(super) fn is_moving(&self, partition: PartitionId) -> bool {
        let sorted = |nodes: &[NodeId]| {
            let mut nodes = nodes.to_vec();
            nodes.sort_unstable();
            nodes
        };
        self.rings.next().is_some_and(|next| {
            sorted(next.replicas(partition)) != sorted(self.rings.current().replicas(partition))
        })
    }

    /// Takes note of who keeps epochs from being settled, and since when.
    fn note_blockers(&mut self, now: Now) {
        let Some(ledger) = &self.sync.ledger else {
            return;
        };
        let mut blockers = BTreeSet::new();
        for (&partition, progress) in &self.sync.progress {
            let settled = settled_of(ledger, partition);
            if settled < ledger.closed {
                blockers.extend(progress.blocked_by(settled));
            }
        }
        self.sync.blocked.retain(|node, _| blockers.contains(node));
        for node in blockers {
            self.sync.blocked.entry(node).or_insert(now.wall_ms());
        }
    }

    /// An answer of this node's own store to an operation of anti-entropy. `None`: the read failed.
    pub(super) fn on_own_answer(&mut self, now: Now, id: u64, answer: Option<SyncAnswer>) {
        match (self.pending.get(id), answer) {
            (Some(Pending::Compare(CompareOp::Reading)), Some(SyncAnswer::Roots(roots))) => {
                self.on_own_roots(now, id, &roots)
            }
            (Some(Pending::Compare(_)), _) => self.on_compare_failed(now, id),
            (Some(Pending::Repair(_)), answer) => self.on_repair_own(now, id, answer),
            (Some(Pending::Scrub(_)), answer) => self.on_scrub_own(now, id, answer),
            _ => {}
        }
    }
}

/// From where on a partition is compared: a stream brings what its source had settled.
fn settled_of(ledger: &Ledger, partition: PartitionId) -> Epoch {
    let entry = ledger.partition(partition);
    match &entry.state {
        PartitionState::Streaming { settled, .. } => entry.settled.max(*settled),
        _ => entry.settled,
    }
}
