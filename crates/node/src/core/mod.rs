//! The core: the running database as one machine that is driven in turns.
//!
//! It has inputs (a client's request, bytes from a peer, what the store has done, the time, a new view
//! of the cluster) and fills outputs (bytes for peers, a batch for the store, questions for its reader,
//! answers for clients). It owns no socket, file, clock or task. Whoever drives it (the tokio shell,
//! the simulator, a test) calls inputs as they come, then [`Core::settle`], then takes the outputs:
//! that is a *turn*. Everything that one turn produced leaves together, which is what makes an
//! operation cheap: one write per peer, one batch and one sync at the store, whatever the number of
//! requests.
//!
//! The parts, each a file:
//!
//! - [`write`] and [`read`]: the coordinator. It stamps, sends to all replicas or asks R of them,
//!   counts, hedges, repairs, and answers; [`scan`] does the same for pages of a partition;
//! - [`replica`]: the replica's side. This node's own replica is reached by the same request as a
//!   remote one, through a queue instead of a socket;
//! - [`anti_entropy`]: compares closed epochs with the other replicas, repairs, copies partitions;
//! - [`hinting`]: delivers what other nodes missed;
//! - [`rings`]: who holds what, in the ring and in the one that it changes to;
//! - [`links`]: connections to peers and their health;
//! - [`slab`]: operations in flight.
//!
//! **Invariants**
//!
//! 1. Only members of a key's replica set, by the agreed topology, count for its quorums.
//! 2. A write is stamped once. Nothing here ever stamps and sends it again.
//! 3. An error that says "nothing was done" is only given when no replica can have done anything.
//! 4. All that is queued is bounded; beyond a bound, requests are refused, not delayed.
//! 5. Given the same inputs, the core produces the same outputs: no clock, no randomness, no
//!    iteration in hash order.

mod anti_entropy;
mod hinting;
mod links;
mod read;
mod replica;
mod rings;
mod scan;
mod slab;
mod stats;
#[cfg(test)]
mod tests;
mod write;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mds_cluster::{ClusterView, Standing};
use mds_protocol::placement::Placement;
use mds_storage::store::Ledger;
use mds_types::limits::{CLOCK_SKEW_US_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use mds_types::mutation::{Mutation, is_on};
use mds_types::slot::partition_of;
use mds_types::{Epoch, Hlc, HlcClock, NodeId, PartitionId, TopologyVersion};

pub use anti_entropy::{Copying, RingReport, ScrubStats, SyncReport, SyncStats};
pub use hinting::HINT_BACKLOG_BYTES_MAX;
pub use links::{Direction, LINK_BACKLOG_BYTES_MAX, LinkId};
pub use replica::STORE_BACKLOG_MAX;
pub use stats::{CoreStats, LATENCY_BUCKETS, LatencyHistogram, Outcomes};

use crate::api::{Now, Op, Outcome, Request, RequestError, Submit, Tag};
use crate::store_io::{LedgerOrder, ReadAnswer, ReadQuery, StoreBatch, StoreDone, Ticket};
use crate::wire::{self, WireError};
use anti_entropy::AntiEntropy;
use hinting::Hinting;
use links::{HEALTH_TICK_NS, Links};
use replica::{ReplicaReply, ReplicaRequest};
use rings::{Replicas, RingMap};
use slab::{Deadlines, Slab};
use write::RequestIds;

/// An epoch this far behind the present one is closed: no client's write of it is taken any more.
pub const CLOSED_BEHIND: u64 = 2;

/// Everything is scrubbed once a day.
const SCRUB_INTERVAL_MS: u64 = 24 * 60 * 60 * 1_000;

/// So that a hundred million records take an hour and a half.
const SCRUB_ROWS_PER_S: u32 = 20_000;

/// What a node may choose for its core. Times in the unit of their name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CoreConfig {
    /// How long a request may take unless it says otherwise.
    pub request_timeout_ms: u32,
    /// A read asks a further replica after this long at the least...
    pub hedge_us_min: u64,
    /// ...and at the most. In between, the latency of recent reads decides.
    pub hedge_us_max: u64,
    /// Operations in flight; further requests are refused as overloaded.
    pub pending_max: usize,
    /// Bytes of records among them; further writes are refused as overloaded.
    pub pending_bytes_max: usize,
    /// Largest value accepted.
    pub value_bytes_max: usize,
    /// Largest distance of a stamp into the future.
    pub clock_skew_us_max: u64,
    /// All that is here is read and compared with the other replicas this often; 0: never.
    pub scrub_interval_ms: u64,
    /// At this rate at most, records and index rows in a second.
    pub scrub_rows_per_s: u32,
}

impl Default for CoreConfig {
    fn default() -> Self {
        CoreConfig {
            request_timeout_ms: 2_000,
            hedge_us_min: 1_000,
            hedge_us_max: 50_000,
            pending_max: 64 * 1024,
            pending_bytes_max: 256 * 1024 * 1024,
            value_bytes_max: VALUE_BYTES_MAX,
            clock_skew_us_max: CLOCK_SKEW_US_MAX,
            scrub_interval_ms: SCRUB_INTERVAL_MS,
            scrub_rows_per_s: SCRUB_ROWS_PER_S,
        }
    }
}

/// An operation in flight at its coordinator.
enum Pending {
    Write(write::WriteOp),
    Read(read::ReadOp),
    Scan(scan::ScanOp),
    HintDelivery(hinting::Delivery),
    Compare(anti_entropy::CompareOp),
    Repair(Box<anti_entropy::RepairOp>),
    Stream(anti_entropy::StreamOp),
    Scrub(Box<anti_entropy::ScrubOp>),
}

/// The core. See the module's chapter.
pub struct Core {
    config: CoreConfig,
    view: Arc<ClusterView>,
    rings: RingMap,
    clock: HlcClock,
    /// Without a store this node is no replica and stamps nothing.
    is_store_open: bool,
    /// No new work is taken, because the node is shutting down; what is in flight goes on.
    is_draining: bool,
    /// Set when the store has stopped or the node is leaving: why nothing is served.
    stopped: Option<String>,
    links: Links,
    pending: Slab<Pending>,
    pending_bytes: usize,
    deadlines: Deadlines,
    hedges: Deadlines,
    /// Smoothed latency of replica reads and its deviation, microseconds.
    read_latency_us: (u64, u64),
    local_requests: VecDeque<(u64, ReplicaRequest)>,
    local_replies: VecDeque<(u64, ReplicaReply)>,
    /// Writes that wait for a durable clock mark, and whether one is being made.
    awaiting_mark: Vec<(Request, Tag, u64)>,
    mark_in_flight: bool,
    request_ids: RequestIds,
    hinting: Hinting,
    sync: AntiEntropy,
    batch: StoreBatch,
    reads: Vec<(Ticket, ReadQuery)>,
    store_backlog: usize,
    store_backlog_bytes: usize,
    /// Bytes of hints on their way to the store.
    hint_backlog_bytes: usize,
    done: Vec<(Tag, Result<Outcome, RequestError>)>,
    next_tick_ns: u64,
    stats: CoreStats,
}

impl Core {
    /// A core that knows the cluster as `view` says and whose clock continues after `mark`, the last
    /// durable one. It serves once its store is open.
    pub fn new(config: CoreConfig, view: Arc<ClusterView>, mark: Hlc) -> Core {
        let clock = HlcClock::new(mark, config.clock_skew_us_max);
        Core {
            config,
            rings: RingMap::new(view.rings.clone()),
            view,
            clock,
            stopped: None,
            links: Links::default(),
            pending: Slab::new(),
            pending_bytes: 0,
            deadlines: Deadlines::default(),
            hedges: Deadlines::default(),
            read_latency_us: (2_000, 1_000),
            local_requests: VecDeque::new(),
            local_replies: VecDeque::new(),
            awaiting_mark: Vec::new(),
            mark_in_flight: false,
            request_ids: RequestIds::default(),
            hinting: Hinting::default(),
            sync: AntiEntropy::default(),
            is_store_open: false,
            batch: StoreBatch::default(),
            reads: Vec::new(),
            store_backlog: 0,
            store_backlog_bytes: 0,
            hint_backlog_bytes: 0,
            is_draining: false,
            done: Vec::new(),
            next_tick_ns: 0,
            stats: CoreStats::default(),
        }
    }

    // ---- inputs -------------------------------------------------------------------------------

    /// Takes a new view of the cluster.
    pub fn on_view(&mut self, view: Arc<ClusterView>) {
        let epoch_before = self.view.epoch;
        let floors_before = std::mem::replace(&mut self.view, view).floors.clone();
        self.rings.adopt(self.view.rings.clone());
        if self.view.epoch > epoch_before {
            self.begin_epoch();
        } else if floors_before != self.view.floors {
            self.batch.floors = Some(self.view.floors.clone());
        }
        self.regroup();
    }

    /// The cluster is in a later epoch: what is two behind is closed.
    fn begin_epoch(&mut self) {
        let epoch = self.view.epoch;
        self.batch.epoch = Some(epoch);
        self.batch.floors = Some(self.view.floors.clone());
        if epoch.0 > CLOSED_BEHIND {
            let closed = Epoch(epoch.0 - CLOSED_BEHIND);
            self.batch.orders.push(LedgerOrder::Close(closed));
        }
    }

    /// The store is open: what it has promised, and so many hints per target lie on its disk.
    pub fn on_store_open(&mut self, ledger: Arc<Ledger>, hints_pending: Vec<(NodeId, u64)>) {
        self.is_store_open = true;
        if self.view.epoch > Epoch(0) {
            self.begin_epoch();
        }
        self.hinting.set_pending(hints_pending);
        self.on_ledger(ledger);
    }

    /// A connection to a peer is open and its handshake done.
    pub fn on_link_open(&mut self, now: Now, peer: NodeId, direction: Direction) -> LinkId {
        self.links.open(now.mono_ns, peer, direction)
    }

    /// Bytes from a peer: takes all whole frames off the front of `input`.
    ///
    /// # Errors
    /// When the bytes make no sense: close the connection.
    pub fn on_link_bytes(
        &mut self,
        now: Now,
        link: LinkId,
        input: &mut BytesMut,
    ) -> Result<(), WireError> {
        let Some((_, direction)) = self.links.peer(link) else {
            return Ok(());
        };
        if !input.is_empty() {
            // A part of a large frame is a sign of life too.
            self.links.heard(now.mono_ns, link);
        }
        while let Some(frame) = wire::next_frame(input)? {
            self.on_frame(now, link, direction, frame)?;
        }
        Ok(())
    }

    fn on_frame(
        &mut self,
        now: Now,
        link: LinkId,
        direction: Direction,
        frame: Bytes,
    ) -> Result<(), WireError> {
        if let Some(message) = wire::decode(frame)? {
            match direction {
                Direction::Accepted => self.on_peer_request(now, link, message),
                Direction::Dialled => self.on_peer_reply(now, link, message),
            }
        }
        Ok(())
    }

    /// A connection has ended. What was asked on it fails now, not at its deadline.
    pub fn on_link_closed(&mut self, now: Now, link: LinkId) {
        if let Some(peer) = self.links.close(link) {
            self.on_peer_lost(now, peer);
        }
    }

    /// The store has done something.
    pub fn on_store_done(&mut self, now: Now, done: StoreDone) {
        if let Some(reason) = done.failed {
            tracing::error!(%reason, "the store has stopped");
            self.stop(format!("the store has stopped: {reason}"));
        }
        if let Some(mark) = done.mark {
            self.clock.mark_persisted(mark);
            self.mark_in_flight = false;
            for (request, tag, deadline_ns) in std::mem::take(&mut self.awaiting_mark) {
                self.resubmit(now, request, tag, deadline_ns);
            }
        }
        if done.mark_refused {
            self.mark_in_flight = false;
            self.refuse_unstamped(now, u64::MAX);
        }
        self.store_backlog = self.store_backlog.saturating_sub(done.merges.len());
        let bytes: usize = done.merges.iter().map(|(ticket, _)| ticket.bytes).sum();
        self.store_backlog_bytes = self.store_backlog_bytes.saturating_sub(bytes);
        self.hint_backlog_bytes = self
            .hint_backlog_bytes
            .saturating_sub(done.hint_bytes_taken);
        if let Some(refused) = done.settled {
            self.sync.duty.is_settling = false;
            self.on_settle_refused(&refused);
        }
        self.sync.stats.settled += done.settled_count;
        if let Some(ledger) = done.ledger {
            self.on_ledger(ledger);
            self.on_duty_done();
        }
        if !done.wrong.is_empty() {
            self.on_wrong(&done.wrong);
        }
        self.sync.scrub.stats.rebuilt += done.rebuilt;
        self.on_merged(now, done.merges);
        self.stats.hints_stored += done.hints_stored;
        self.stats.hints_dropped += done.hints_dropped;
        if let Some(pending) = done.hints_pending {
            self.hinting.set_pending(pending);
        }
        for (target, records, token) in done.hint_batches {
            self.on_hints_read(now, target, records, token);
        }
    }

    /// The store's reader has answered; `None` means that it failed.
    pub fn on_read_done(
        &mut self,
        now: Now,
        ticket: Ticket,
        query: &ReadQuery,
        answer: Option<ReadAnswer>,
    ) {
        self.on_read_answer(now, ticket, query, answer);
    }

    /// Time has passed: deadlines, hedges, health, hints.
    pub fn on_timer(&mut self, now: Now) {
        while let Some(id) = self.hedges.pop_due(now.mono_ns) {
            self.on_hedge_due(now, id);
        }
        while let Some(id) = self.deadlines.pop_due(now.mono_ns) {
            self.on_deadline(now, id);
        }
        self.refuse_unstamped(now, now.mono_ns);
        if self.sync.pacing.take_due(now) {
            self.on_rest_over(now);
        }
        if now.mono_ns >= self.next_tick_ns {
            self.next_tick_ns = now.mono_ns + HEALTH_TICK_NS;
            for peer in self.links.tick(now.mono_ns) {
                tracing::warn!(%peer, "peer does not answer pings; going on without it");
                self.on_peer_lost(now, peer);
            }
            self.tick_hints(now);
            self.tick_sync(now);
        }
    }

    /// Nothing is served from here on; `reason` is what clients hear.
    pub fn stop(&mut self, reason: String) {
        if self.stopped.is_none() {
            tracing::info!(%reason, "this node stops serving");
            self.stopped = Some(reason);
        }
    }

    /// Takes no new work from here on; what is in flight goes on.
    pub fn begin_drain(&mut self) {
        self.is_draining = true;
    }

    /// Gives up what is still in flight: every client hears what is true of its request now.
    pub fn abandon(&mut self, now: Now) {
        let leaving = || RequestError::NotReady("this node is shutting down".to_owned());
        for (request, tag, _) in std::mem::take(&mut self.awaiting_mark) {
            self.finish(now, now.mono_ns, &request.op, tag, Err(leaving()));
        }
        for id in self.pending.ids() {
            match self.pending.get_mut(id) {
                Some(Pending::Write(_)) => self.on_write_deadline(now, id),
                Some(Pending::Read(_)) => self.end_read(now, id, Err(leaving())),
                Some(Pending::Scan(_)) => self.end_scan(now, id, Err(leaving())),
                Some(Pending::HintDelivery(_)) => self.on_delivery_failed(now, id),
                Some(
                    Pending::Compare(_)
                    | Pending::Repair(_)
                    | Pending::Stream(_)
                    | Pending::Scrub(_),
                ) => {
                    self.pending.remove(id);
                }
                None => {}
            }
        }
        self.stop("this node is shutting down".to_owned());
    }

    /// Links that have been silent for so long that the shell should close them and dial anew.
    pub fn take_lost_links(&mut self) -> Vec<LinkId> {
        self.links.take_given_up()
    }

    /// Why nothing is served any more, if so.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    // ---- outputs ------------------------------------------------------------------------------

    /// Brings requests to and answers from this node's own replica round, and makes the batch ready.
    /// To be called after the inputs of a turn, before its outputs are taken.
    pub fn settle(&mut self, now: Now) {
        loop {
            if let Some((id, request)) = self.local_requests.pop_front() {
                let version = self.rings.version();
                self.serve(now, crate::store_io::ReplyTo::Me, id, version, request);
            } else if let Some((id, reply)) = self.local_replies.pop_front() {
                let me = self.view.me;
                self.on_reply(now, me, id, reply);
            } else {
                break;
            }
        }
        self.batch.wall_ms = now.wall_ms();
        self.batch.mono_ns = now.mono_ns;
    }

    /// Work for the owner of the store, if any.
    pub fn take_batch(&mut self) -> Option<StoreBatch> {
        (!self.batch.is_empty()).then(|| std::mem::take(&mut self.batch))
    }

    /// Questions for the store's reader.
    pub fn take_reads(&mut self) -> Vec<(Ticket, ReadQuery)> {
        std::mem::take(&mut self.reads)
    }

    /// Answers for front-ends.
    pub fn take_done(&mut self) -> Vec<(Tag, Result<Outcome, RequestError>)> {
        std::mem::take(&mut self.done)
    }

    /// Links with new bytes to write.
    pub fn take_dirty_links(&mut self) -> Vec<LinkId> {
        self.links.take_dirty()
    }

    /// The unwritten bytes of a link; the shell takes off the front what its socket takes.
    pub fn link_output(&mut self, link: LinkId) -> Option<&mut BytesMut> {
        self.links.output(link)
    }

    /// When [`Core::on_timer`] wants to be called next, monotonic nanoseconds.
    pub fn next_deadline_ns(&mut self) -> u64 {
        let pending = &self.pending;
        self.hedges.prune(|id| pending.contains(id));
        self.deadlines.prune(|id| pending.contains(id));
        let mark = self.awaiting_mark.iter().map(|&(_, _, at_ns)| at_ns).min();
        let rest = self.sync.pacing.due_ns();
        let due = [self.hedges.next_ns(), self.deadlines.next_ns(), mark, rest];
        due.into_iter()
            .flatten()
            .min()
            .unwrap_or(u64::MAX)
            .min(self.next_tick_ns)
    }

    /// Counters and gauges.
    pub fn stats(&self) -> CoreStats {
        CoreStats {
            pending: self.pending.len() as u64,
            pending_bytes: self.pending_bytes as u64,
            store_backlog: self.store_backlog as u64,
            hints_pending: self.hinting.pending_total(),
            replies_dropped: self.links.replies_dropped,
            hint_backlog_bytes: self.hint_backlog_bytes as u64,
            link_backlog_bytes: self.links.greatest_backlog() as u64,
            scrub: self.scrub_stats(),
            ..self.stats
        }
    }

    /// Peers that can be asked now.
    pub fn usable_peers(&self) -> Vec<NodeId> {
        self.links
            .connected()
            .filter(|&peer| self.links.is_usable(peer))
            .collect()
    }

    /// Requests that somebody still waits for: a graceful shutdown waits for zero. (A hint on its way, and
    /// a write that its client has heard of, are nobody's wait.)
    pub fn in_flight(&self) -> usize {
        let is_waited_for = |op: &&Pending| match op {
            Pending::Write(op) => !op.is_answered,
            Pending::Read(_) | Pending::Scan(_) => true,
            Pending::HintDelivery(_)
            | Pending::Compare(_)
            | Pending::Repair(_)
            | Pending::Stream(_)
            | Pending::Scrub(_) => false,
        };
        let waiting = self.pending.values().filter(is_waited_for).count();
        waiting + self.awaiting_mark.len() + self.store_backlog
    }

    /// Where each partition lives, by the present ring.
    pub fn ring(&self) -> &Arc<Placement> {
        self.rings.current()
    }

    /// Whether this node is a replica of a partition, in any ring that is written to.
    pub fn holds(&self, partition: PartitionId) -> bool {
        self.rings.is_holder(partition, self.view.me)
    }

    // ---- common to the coordinator's parts ----------------------------------------------------

    /// Refuses the writes that wait for the clock's mark and are due by then.
    fn refuse_unstamped(&mut self, now: Now, due_ns: u64) {
        let waiting = std::mem::take(&mut self.awaiting_mark);
        let (due, rest) = waiting
            .into_iter()
            .partition(|&(_, _, at_ns)| at_ns <= due_ns);
        self.awaiting_mark = rest;
        for (request, tag, _) in due {
            let error = RequestError::Overloaded(
                "the clock's mark cannot be made durable; is this node's disk full?",
            );
            self.finish(now, now.mono_ns, &request.op, tag, Err(error));
        }
    }

    /// Whether this node answers as a replica: also while it waits to become a part of the ring, and
    /// takes what is written to the next one.
    fn is_replica_serving(&self) -> bool {
        let holds_data = match self.view.standing {
            Standing::Active => true,
            _ => self.rings.rings().holds_data(self.view.me),
        };
        holds_data && self.is_member_serving()
    }

    /// Whether this node is a member in working order, on the ring or not.
    fn is_member_serving(&self) -> bool {
        let is_member = matches!(self.view.standing, Standing::Active | Standing::Waiting);
        self.stopped.is_none() && self.is_store_open && is_member && !self.is_behind_its_word()
    }

    /// Whether this node may coordinate requests.
    fn coordinating(&self) -> Result<(), RequestError> {
        if let Some(reason) = &self.stopped {
            return Err(RequestError::NotReady(reason.clone()));
        }
        if self.is_draining {
            return Err(RequestError::NotReady(
                "this node is shutting down".to_owned(),
            ));
        }
        let reason = match &self.view.standing {
            Standing::Active | Standing::Waiting
                if self.is_store_open
                    && self.rings.version() > TopologyVersion(0)
                    && !self.is_behind_its_word() =>
            {
                return Ok(());
            }
            Standing::Unborn => {
                "this node is not part of a cluster yet: run `mydatastore init`".to_owned()
            }
            Standing::Refused(reason) => reason.clone(),
            _ => "this node is joining its cluster".to_owned(),
        };
        Err(RequestError::NotReady(reason))
    }

    /// Whether a replica can be asked now.
    fn is_usable(&self, node: NodeId) -> bool {
        if node == self.view.me {
            self.is_replica_serving()
        } else {
            self.links.is_usable(node)
        }
    }

    fn check_key(&self, key: &Bytes) -> Result<(), RequestError> {
        if key.is_empty() {
            return Err(RequestError::BadRequest("the key is empty".to_owned()));
        }
        if key.len() > KEY_BYTES_MAX {
            let (bytes, limit) = (key.len(), KEY_BYTES_MAX);
            return Err(RequestError::TooLarge {
                what: "key",
                bytes,
                limit,
            });
        }
        Ok(())
    }

    fn timeout_ns(&self, timeout_ms: Option<u32>) -> u64 {
        u64::from(timeout_ms.unwrap_or(self.config.request_timeout_ms).max(1)) * 1_000_000
    }

    fn partition_of(&self, key: &[u8]) -> PartitionId {
        partition_of(key, self.rings.partition_count())
    }

    fn epoch(&self) -> Epoch {
        self.view.epoch
    }

    /// An answer of a replica to one of this node's operations.
    fn on_reply(&mut self, now: Now, from: NodeId, id: u64, reply: ReplicaReply) {
        match (self.pending.get_mut(id), reply) {
            (Some(Pending::Write(_)), ReplicaReply::Put(status)) => {
                self.on_write_reply(now, id, from, status);
            }
            (Some(Pending::Read(_)), ReplicaReply::Get(status, record, settled)) => {
                self.on_get_reply(now, id, from, status, record, settled);
            }
            (Some(Pending::Read(_)), ReplicaReply::Put(status)) => {
                self.on_repair_reply(now, id, from, status);
            }
            (Some(Pending::Scan(_)), ReplicaReply::Page(status, page)) => {
                self.on_page_reply(now, id, from, status, page);
            }
            (Some(Pending::Scan(_)), ReplicaReply::Count(status, count)) => {
                self.on_count_reply(now, id, from, status, count);
            }
            (Some(Pending::HintDelivery(_)), ReplicaReply::Put(status)) => {
                self.on_hint_reply(now, id, status);
            }
            (Some(Pending::Repair(_)), ReplicaReply::Put(status)) => {
                self.on_repair_merged(now, id, status);
            }
            (Some(Pending::Stream(_)), ReplicaReply::Put(status)) => {
                self.on_stream_merged(now, id, status);
            }
            (Some(Pending::Scrub(_)), ReplicaReply::Put(status)) => {
                self.on_scrub_merged(now, id, status);
            }
            // The operation has ended, or the answer is not one to its question.
            _ => {}
        }
    }

    /// A peer cannot be asked any more: everything that waits for it moves on at once.
    fn on_peer_lost(&mut self, now: Now, peer: NodeId) {
        for id in self.pending.ids() {
            match self.pending.get_mut(id) {
                Some(Pending::Write(op)) => {
                    if let Some(index) = op.replicas.index_of(peer) {
                        self.on_write_failed(now, id, index, false);
                    }
                }
                Some(Pending::Read(op)) => {
                    if let Some(index) = op.replicas.index_of(peer) {
                        self.on_read_failed(now, id, index);
                    }
                }
                Some(Pending::Scan(op)) => {
                    if let Some(index) = op.replicas.index_of(peer) {
                        self.on_scan_failed(now, id, index);
                    }
                }
                Some(Pending::HintDelivery(op)) if op.target == peer => {
                    self.on_delivery_failed(now, id);
                }
                Some(Pending::Compare(op)) if op.waits_for(peer) => self.on_compare_failed(now, id),
                Some(Pending::Repair(op)) if op.member == peer => self.on_repair_failed(now, id),
                Some(Pending::Stream(op)) if op.waits_for(peer) => self.on_stream_failed(now, id),
                Some(Pending::Scrub(op)) if op.waits_for(peer) => self.on_scrub_failed(now, id),
                _ => {}
            }
        }
    }

    fn on_deadline(&mut self, now: Now, id: u64) {
        match self.pending.get_mut(id) {
            Some(Pending::Write(_)) => self.on_write_deadline(now, id),
            Some(Pending::Read(_)) => self.on_read_deadline(now, id),
            Some(Pending::Scan(_)) => self.on_scan_deadline(now, id),
            Some(Pending::HintDelivery(_)) => self.on_delivery_failed(now, id),
            Some(Pending::Compare(_)) => self.on_compare_failed(now, id),
            Some(Pending::Repair(_)) => self.on_repair_deadline(now, id),
            Some(Pending::Stream(_)) => self.on_stream_failed(now, id),
            Some(Pending::Scrub(_)) => self.on_scrub_deadline(now, id),
            None => {}
        }
    }

    /// Counts how a request ended and hands the answer out.
    fn finish(
        &mut self,
        now: Now,
        started_ns: u64,
        op: &Op,
        tag: Tag,
        result: Result<Outcome, RequestError>,
    ) {
        let kind = match op {
            Op::Get { .. } => OpKind::Get,
            Op::Put { .. } => OpKind::Put,
            Op::Delete { .. } => OpKind::Delete,
            Op::Scan { .. } | Op::Count { .. } => OpKind::Scan,
        };
        self.finish_kind(now, started_ns, kind, tag, result);
    }

    fn finish_kind(
        &mut self,
        now: Now,
        started_ns: u64,
        kind: OpKind,
        tag: Tag,
        result: Result<Outcome, RequestError>,
    ) {
        let counts = match kind {
            OpKind::Get => &mut self.stats.gets,
            OpKind::Put => &mut self.stats.puts,
            OpKind::Delete => &mut self.stats.deletes,
            OpKind::Scan => &mut self.stats.scans,
        };
        match &result {
            Ok(_) => {
                counts.ok += 1;
                counts
                    .latency
                    .record(now.mono_ns.saturating_sub(started_ns));
            }
            Err(RequestError::BadRequest(_) | RequestError::TooLarge { .. }) => counts.refused += 1,
            Err(RequestError::Unavailable { .. }) => counts.unavailable += 1,
            Err(RequestError::Overloaded(_)) => counts.overloaded += 1,
            Err(RequestError::NotReady(_)) => counts.not_ready += 1,
            Err(RequestError::Unknown { .. } | RequestError::TimedOut { .. }) => {
                counts.uncertain += 1;
            }
        }
        self.done.push((tag, result));
    }
}

/// Requests as they are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OpKind {
    Get,
    Put,
    Delete,
    Scan,
}

impl Submit for Core {
    fn submit(&mut self, now: Now, mut request: Request, tag: Tag) {
        if is_on(Mutation::SessionIgnored) {
            request.options.seen = None;
        }
        let deadline_ns = now.mono_ns + self.timeout_ns(request.options.timeout_ms);
        self.resubmit(now, request, tag, deadline_ns);
    }

    fn view(&self) -> &Arc<ClusterView> {
        &self.view
    }
}

impl Core {
    fn resubmit(&mut self, now: Now, request: Request, tag: Tag, deadline_ns: u64) {
        // A replica that is slow to acknowledge must not fill the table with writes that are long answered.
        while self.pending.len() > self.config.pending_max / 2
            && self.end_oldest_answered_write(now)
        {}
        let refusal = match &request.op {
            _ if self.pending.len() >= self.config.pending_max => {
                Some(RequestError::Overloaded("too many requests in flight"))
            }
            Op::Put { .. } | Op::Delete { .. } => {
                return self.begin_write(now, request, tag, deadline_ns);
            }
            Op::Get { key } => self
                .begin_read(now, key, &request.options, tag, deadline_ns)
                .err(),
            Op::Scan {
                partition,
                after,
                limit,
            } => {
                let after = after.clone();
                self.begin_scan(
                    now,
                    *partition,
                    after,
                    *limit,
                    &request.options,
                    tag,
                    deadline_ns,
                )
                .err()
            }
            Op::Count { partition } => self.begin_count(now, *partition, tag, deadline_ns).err(),
        };
        if let Some(error) = refusal {
            self.finish(now, now.mono_ns, &request.op, tag, Err(error));
        }
    }
}
