//! What the core asks of the disk, and how that is carried out.
//!
//! In a turn the core fills one [`StoreBatch`]; the shell hands it to whoever owns the [`StoreIo`] (a
//! thread of its own; in the simulator, an event) and brings the [`StoreDone`] back. Batches that wait
//! are joined before they are carried out: that is the group commit, one sync for all. Reads do not
//! queue behind writes: they go to the [`StoreReader`], which any thread may ask.
//!
//! **Invariants**
//! 1. A merge is answered only after the store made it durable under its policy, and what a read
//!    shows has been answered so before: a reader never sees what a crash could take back.
//! 2. Batches are carried out in the order they were handed over.
//! 3. Orders about epochs ([`LedgerOrder`]) are carried out after the merges that came before them: an epoch is
//!    closed when everything that was accepted of it is in.
//! 4. A watermark is raised only if the store's own root is, at that moment, the one that all other
//!    replicas were seen to have.
//! 5. Collection and wiping go on in bounded steps, between batches.
//! 6. Hints are best effort: they follow the merges, are synced at most every
//!    [`HINT_SYNC_EVERY_MS`], and their failure is counted, never a reason to refuse a write.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use mds_protocol::verification;
use mds_storage::Disk;
use mds_storage::IndexRow;
use mds_storage::datadir;
use mds_storage::hints::{HintStore, HintToken};
use mds_storage::pace::{Pace, Unpaced};
use mds_storage::store::{
    Dead, Ledger, Lookup, Merged, PartitionLedger, PartitionState, Purpose, SettleOutcome,
    Settlement, Store, StoreError, StoreReader, WipeProgress,
};
use mds_types::{ClusterId, Epoch, EpochFloors, Hlc, NodeId, PartitionId, Record, TopologyVersion};

use crate::core::LinkId;
use crate::sync_io::{self, RootOf, SyncAnswer, SyncQuery};

/// Unsynced hints may be this old, milliseconds: what a power loss can take of them.
pub const HINT_SYNC_EVERY_MS: u64 = 200;

/// Bytes of records in one page of a scan, at most (but always one record).
pub const PAGE_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of hints read for one delivery, at most (but always one hint).
pub const HINT_BATCH_BYTES_MAX: usize = 256 * 1024;

/// Dead records removed in a turn, at most.
const REMOVALS_MAX: usize = 1_024;

/// The same in a turn that merges records, whose senders wait for the next turn.
const REMOVALS_BETWEEN_MERGES_MAX: usize = 128;

/// Rows that are kept with one synced write, at most: records that come wait for it.
const ROWS_JOINED_MAX: usize = 512;

/// Who waits for an answer of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// Where the answer goes: the link its request came by, or this node's own coordinator.
    pub reply_to: ReplyTo,
    /// The asker's number.
    pub id: u64,
    /// Bytes of the record that it has in the store's hands.
    pub bytes: usize,
}

/// Where a replica's answer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyTo {
    /// This node's own coordinator.
    Me,
    /// The peer at the other end of a link.
    Link(LinkId),
}

/// Work for the owner of the store.
#[derive(Debug, Default)]
pub struct StoreBatch {
    /// Who waits for the merge at the same index of `merges`.
    pub tickets: Vec<Ticket>,
    /// Records to merge, and why they come.
    pub merges: Vec<(Purpose, Record)>,
    /// A clock mark to make durable.
    pub mark: Option<Hlc>,
    /// Writes to keep for replicas that missed them.
    pub hints: Vec<(NodeId, Record)>,
    /// Targets of which the oldest hints are wanted.
    pub hint_reads: Vec<NodeId>,
    /// Hints that their targets have acknowledged.
    pub hints_delivered: Vec<(NodeId, HintToken)>,
    /// Targets whose hints are of no use to anybody any more.
    pub hints_forgotten: Vec<NodeId>,
    /// The epoch, when it has changed.
    pub epoch: Option<Epoch>,
    /// What the versions of each epoch lie above, when it has changed.
    pub floors: Option<Arc<EpochFloors>>,
    /// What is to be promised about epochs and partitions, in order.
    pub orders: Vec<LedgerOrder>,
    /// Milliseconds since 1970, for the age of hints.
    pub wall_ms: u64,
    /// Monotonic nanoseconds, for syncing at intervals.
    pub mono_ns: u64,
}

impl StoreBatch {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.merges.is_empty()
            && self.mark.is_none()
            && self.hints.is_empty()
            && self.hint_reads.is_empty()
            && self.hints_delivered.is_empty()
            && self.hints_forgotten.is_empty()
            && self.epoch.is_none()
            && self.floors.is_none()
            && self.orders.is_empty()
    }

    /// Adds a record to merge.
    pub fn push(&mut self, ticket: Ticket, purpose: Purpose, record: Record) {
        self.tickets.push(ticket);
        self.merges.push((purpose, record));
    }

    /// Joins a batch that came later to this one.
    pub fn append(&mut self, mut later: StoreBatch) {
        self.tickets.append(&mut later.tickets);
        self.merges.append(&mut later.merges);
        self.mark = later.mark.max(self.mark);
        self.hints.append(&mut later.hints);
        self.hint_reads.append(&mut later.hint_reads);
        self.hints_delivered.append(&mut later.hints_delivered);
        self.hints_forgotten.append(&mut later.hints_forgotten);
        self.epoch = later.epoch.max(self.epoch);
        self.floors = later.floors.or(self.floors.take());
        self.orders.append(&mut later.orders);
        self.wall_ms = later.wall_ms;
        self.mono_ns = later.mono_ns;
    }
}

/// Something to promise, or to do, about epochs and partitions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LedgerOrder {
    /// Take no client's write and no hint of this epoch and earlier ones any more.
    Close(Epoch),
    /// Remember that this version of the rings is acknowledged.
    Acknowledge(TopologyVersion),
    /// Raise watermarks: all other replicas were seen to have these roots. In order, without gaps.
    Settle(Vec<RootOf>),
    /// Another replica has settled these, up to this epoch with this chain: follow, if this replica's own chain is
    /// the same; else the partition is wrong here.
    Follow(Vec<Settlement>),
    /// Keep rows of versions that something newer has superseded here, in these epochs.
    Rows(Vec<(Epoch, IndexRow)>),
    /// Remove all that is here of these partitions.
    Wipe(Vec<PartitionId>),
    /// These absent partitions are to be filled from replicas with these watermarks and chains.
    BeginStreams(Vec<Settlement>),
    /// These streams have come up to and including these keys.
    AdvanceStreams(Vec<(PartitionId, Bytes)>),
    /// Everything of these streams has come.
    FinishStreams(Vec<PartitionId>),
    /// Collect these dead records, which a scrub has found, as far as they may go.
    CollectDead {
        /// All of one partition.
        partition: PartitionId,
        /// The records.
        dead: Vec<Dead>,
        /// Values that had expired at this time are dead, milliseconds since 1970.
        dead_by_ms: u64,
    },
    /// Rebuild an epoch's hashes from its rows when they are asked for.
    ForgetHashes(PartitionId, Epoch),
}

impl LedgerOrder {
    /// Takes in the order that follows this one, if that is of its kind; else gives it back.
    fn join(&mut self, next: LedgerOrder) -> Option<LedgerOrder> {
        match (self, next) {
            (LedgerOrder::Rows(all), LedgerOrder::Rows(more))
                if all.len() + more.len() <= ROWS_JOINED_MAX =>
            {
                all.extend(more);
            }
            (LedgerOrder::Follow(all), LedgerOrder::Follow(more)) => all.extend(more),
            (LedgerOrder::Wipe(all), LedgerOrder::Wipe(more)) => all.extend(more),
            (LedgerOrder::BeginStreams(all), LedgerOrder::BeginStreams(more)) => all.extend(more),
            (LedgerOrder::AdvanceStreams(all), LedgerOrder::AdvanceStreams(more)) => {
                all.extend(more);
            }
            (LedgerOrder::FinishStreams(all), LedgerOrder::FinishStreams(more)) => all.extend(more),
            (_, next) => return Some(next),
        }
        None
    }
}

/// Takes the first of these orders, joined with those of its kind that follow: each order costs a synced write of the
/// ledger, for which everybody's records wait.
pub fn next_order(orders: &mut VecDeque<LedgerOrder>) -> Option<LedgerOrder> {
    let mut first = orders.pop_front()?;
    while let Some(next) = orders.pop_front() {
        if let Some(other) = first.join(next) {
            orders.push_front(other);
            break;
        }
    }
    Some(first)
}

/// How a merge ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MergeResult {
    /// The record, or something newer, is durable.
    Durable,
    /// Refused for now, leaving no trace: the disk is full, the flusher is behind, or the partition is not
    /// here.
    Refused,
    /// Refused, leaving no trace: the record's epoch is closed here.
    EpochClosed,
    /// Refused, leaving no trace: the partition's watermark has passed the record's epoch.
    Settled,
    /// The store failed and has stopped. Whether the record is there is not known.
    Failed,
}

/// What became of a [`StoreBatch`].
#[derive(Debug, Default)]
pub struct StoreDone {
    /// One for each ticket.
    pub merges: Vec<(Ticket, MergeResult)>,
    /// The mark is durable.
    pub mark: Option<Hlc>,
    /// The mark could not be made durable; it may be tried again.
    pub mark_refused: bool,
    /// Hints read for delivery, with the token that says they were delivered. Empty: there are none.
    pub hint_batches: Vec<(NodeId, Vec<Record>, Option<HintToken>)>,
    /// Hints kept, and hints dropped for want of room.
    pub hints_stored: u64,
    /// Hints that no room was left for, or that could not be written.
    pub hints_dropped: u64,
    /// Bytes of the hints that the batch held, kept or dropped.
    pub hint_bytes_taken: usize,
    /// Hints waiting per target, when that may have changed.
    pub hints_pending: Option<Vec<(NodeId, u64)>>,
    /// Merges were refused because the disk is full (true), or found room (false); nothing if neither.
    pub found_disk_full: Option<bool>,
    /// The store has stopped: why, in words.
    pub failed: Option<String>,
    /// What the store has promised, when that has changed.
    pub ledger: Option<Arc<Ledger>>,
    /// An order to settle was carried out; these were refused because the store's own root is another.
    pub settled: Option<Vec<(PartitionId, Epoch)>>,
    /// Pairs that were settled.
    pub settled_count: u64,
    /// Dead records that were removed because all replicas were proved to have them.
    pub collected: u64,
    /// Records below the watermark that were lost here and are there again.
    pub rebuilt: u64,
    /// Partitions that turned out to be wrong here: another replica has settled with another chain.
    pub wrong: Vec<PartitionId>,
}

impl StoreDone {
    /// How many dead records may be removed in the same turn: few if somebody merges, who has sent more by then.
    pub fn removals_max(&self) -> usize {
        match self.merges.is_empty() {
            true => REMOVALS_MAX,
            false => REMOVALS_BETWEEN_MERGES_MAX,
        }
    }

    /// Whether the core has to hear of it although it had asked for nothing: what went on by itself has
    /// come somewhere. The change of the ledger is told once, so it must not be dropped.
    pub fn is_news(&self) -> bool {
        self.failed.is_some() || self.ledger.is_some() || self.collected > 0
    }
}

/// The store and what lies beside it, carried out in turns. Owned by one thread.
pub struct StoreIo {
    disk: Arc<dyn Disk>,
    store: Store,
    hints: HintStore,
    hints_unsynced_since_ms: Option<u64>,
    wait_for_flusher: Option<WaitForFlusher>,
    floors: Arc<EpochFloors>,
    /// As it was last reported.
    ledger: Arc<Ledger>,
    /// With which promises and floors dead records were last searched for: nothing more may go before one of them
    /// has changed.
    searched: Option<(Arc<Ledger>, Arc<EpochFloors>)>,
    wants_wiping: bool,
}

/// Waits until the flusher has made room; false when it took too long.
pub type WaitForFlusher = Box<dyn FnMut() -> bool + Send>;

impl StoreIo {
    /// Takes ownership of an opened store.
    pub fn new(disk: Arc<dyn Disk>, store: Store, hints: HintStore) -> StoreIo {
        StoreIo {
            floors: Arc::default(),
            ledger: store.reader().ledger(),
            searched: None,
            wants_wiping: true,
            disk,
            store,
            hints,
            hints_unsynced_since_ms: None,
            wait_for_flusher: None,
        }
    }

    /// Back-pressure instead of refusal: merges that find the flusher behind call `wait` and try again
    /// while it returns true. Without it they are refused at once.
    pub fn set_wait_for_flusher(&mut self, wait: WaitForFlusher) {
        self.wait_for_flusher = Some(wait);
    }

    /// The store itself, for its flusher and readers.
    pub fn store(&mut self) -> &mut Store {
        &mut self.store
    }

    /// Hints waiting per target.
    pub fn hints_pending(&self) -> Vec<(NodeId, u64)> {
        self.hints
            .targets()
            .into_iter()
            .map(|target| (target.node, target.count))
            .collect()
    }

    /// Carries a batch out.
    pub fn execute(&mut self, mut batch: StoreBatch) -> StoreDone {
        let mut done = self.execute_merges(&mut batch);
        let removals_max = done.removals_max();
        self.execute_rest(batch, removals_max, &mut done);
        done
    }

    /// What the store has promised.
    pub fn ledger(&self) -> Arc<Ledger> {
        self.ledger.clone()
    }

    /// The first half: what a client waits for. Takes it out of the batch.
    pub fn execute_merges(&mut self, batch: &mut StoreBatch) -> StoreDone {
        let mut done = StoreDone::default();
        if let Some(mark) = batch.mark.take() {
            match datadir::write_hlc_mark(&*self.disk, mark) {
                Ok(()) => done.mark = Some(mark),
                // The old mark stands, so no stamp is given out that it does not cover; a disk that is
                // full may have room later.
                Err(error) => {
                    tracing::error!(%error, "the clock's mark cannot be made durable");
                    done.mark_refused = true;
                }
            }
        }
        if let Some(epoch) = batch.epoch.take() {
            match self.store.epoch_changed(epoch) {
                Ok(()) | Err(StoreError::Full | StoreError::Behind { .. }) => {}
                Err(error) => done.failed = Some(error.to_string()),
            }
        }
        let (tickets, merges) = (
            std::mem::take(&mut batch.tickets),
            std::mem::take(&mut batch.merges),
        );
        self.merge(tickets, &merges, &mut done);
        done
    }

    /// The second half: orders about epochs and partitions, what goes on by itself, and hints.
    /// At most `removals_max` dead records are removed.
    pub fn execute_rest(
        &mut self,
        mut batch: StoreBatch,
        removals_max: usize,
        done: &mut StoreDone,
    ) {
        if let Some(floors) = batch.floors.take() {
            self.floors = floors;
        }
        let mut orders = VecDeque::from(std::mem::take(&mut batch.orders));
        while let Some(order) = next_order(&mut orders) {
            if let Err(error) = self.carry_out(order, done) {
                self.note_failure(error, done);
            }
        }
        if let Err(error) = self.tidy(removals_max, done) {
            self.note_failure(error, done);
        }
        let ledger = self.store.reader().ledger();
        if !Arc::ptr_eq(&ledger, &self.ledger) {
            self.ledger = ledger.clone();
            done.ledger = Some(ledger);
        }
        match self.store.tick(batch.mono_ns) {
            Ok(()) | Err(StoreError::Full | StoreError::Behind { .. }) => {}
            Err(error) => done.failed = Some(error.to_string()),
        }
        self.execute_hints(batch, done);
    }

    /// A full disk and a flusher that is behind pass; what poisons the store does not.
    fn note_failure(&mut self, error: StoreError, done: &mut StoreDone) {
        match error {
            StoreError::Full | StoreError::Behind { .. } => {
                tracing::debug!(%error, "an order about epochs has to wait");
            }
            error if self.store.reader().stats().poisoned => {
                done.failed = Some(error.to_string());
            }
            error => tracing::error!(%error, "an order about epochs failed"),
        }
    }

    fn carry_out(&mut self, order: LedgerOrder, done: &mut StoreDone) -> Result<(), StoreError> {
        match order {
            LedgerOrder::Close(epoch) => self.store.close_epochs(epoch),
            LedgerOrder::Acknowledge(version) => self.store.acknowledge_topology(version),
            LedgerOrder::Settle(roots) => {
                let refused = done.settled.insert(Vec::new());
                let (settlements, others) = self.still_equal(&roots)?;
                refused.extend(others);
                self.settle(&settlements, done)
            }
            LedgerOrder::Follow(others) => self.follow(&others, done),
            LedgerOrder::Rows(rows) => self.store.merge_rows(&rows).map(drop),
            LedgerOrder::Wipe(partitions) => {
                self.wants_wiping = true;
                self.store.begin_wipe(&partitions)
            }
            LedgerOrder::BeginStreams(streams) => self.store.begin_streams(&streams),
            LedgerOrder::AdvanceStreams(streams) => self.store.advance_streams(&streams),
            LedgerOrder::FinishStreams(partitions) => self.store.finish_streams(&partitions),
            LedgerOrder::CollectDead {
                partition,
                dead,
                dead_by_ms,
            } => {
                let settled = self.store.reader().ledger().partition(partition).settled;
                let floor = self.floors.floor(Epoch(settled.0 + 1));
                let collected = self.store.collect_dead(&dead, floor, dead_by_ms)?;
                done.collected += collected.removed;
                Ok(())
            }
            LedgerOrder::ForgetHashes(partition, epoch) => {
                self.store.forget_hashes(partition, epoch)
            }
        }
    }

    /// The settlements that these roots are, as far as the store's own roots are the same; and the pairs of
    /// which they are not.
    #[expect(
        clippy::type_complexity,
        reason = "two lists, named in the sentence above"
    )]
    fn still_equal(
        &self,
        roots: &[RootOf],
    ) -> Result<(Vec<Settlement>, Vec<(PartitionId, Epoch)>), StoreError> {
        let reader = self.store.reader();
        let ledger = reader.ledger();
        let mut settlements: Vec<Settlement> = Vec::new();
        let mut others = Vec::new();
        for root in roots {
            let RootOf {
                partition, epoch, ..
            } = *root;
            let last = settlements
                .last()
                .filter(|last| last.partition == partition);
            let entry = ledger.partition(partition);
            let (settled, chain) = match last {
                Some(last) => (last.epoch, last.chain),
                None => (entry.settled, entry.chain),
            };
            if epoch.0 != settled.0 + 1 {
                // It was settled meanwhile, or follows on one that was refused.
                continue;
            }
            let query = SyncQuery::Roots(vec![(partition, epoch)]);
            let own = sync_io::answer(&reader, &query, &Unpaced)?;
            if own != SyncAnswer::Roots(vec![*root]) {
                others.push((partition, epoch));
                continue;
            }
            settlements.push(Settlement {
                partition,
                epoch,
                chain: verification::chain(chain, epoch, root.root),
            });
        }
        Ok((settlements, others))
    }

    fn settle(
        &mut self,
        settlements: &[Settlement],
        done: &mut StoreDone,
    ) -> Result<(), StoreError> {
        let outcomes = self.store.settle(settlements)?;
        let raised = |outcome: &&SettleOutcome| **outcome == SettleOutcome::Raised;
        done.settled_count += outcomes.iter().filter(raised).count() as u64;
        Ok(())
    }

    fn follow(&mut self, others: &[Settlement], done: &mut StoreDone) -> Result<(), StoreError> {
        let reader = self.store.reader();
        let ledger = reader.ledger();
        let mut equal: Vec<Settlement> = Vec::new();
        for other in others {
            let entry = ledger.partition(other.partition);
            let is_known = |known: &Settlement| known.partition == other.partition;
            if entry.state != PartitionState::Held
                || entry.settled >= other.epoch
                || equal.iter().any(is_known)
            {
                continue;
            }
            match sync_io::chain_up_to(&reader, other.partition, other.epoch)? {
                Some(own) if own == other.chain => equal.push(*other),
                Some(_) => done.wrong.push(other.partition),
                None => {}
            }
        }
        self.settle(&equal, done)
    }

    /// A bounded step of what goes on by itself: wiping, and collecting what is settled. What takes long of it the
    /// flusher does.
    fn tidy(&mut self, removals_max: usize, done: &mut StoreDone) -> Result<(), StoreError> {
        if self.wants_wiping {
            self.wants_wiping = self.store.continue_wipe()? != WipeProgress::Done;
        }
        done.collected += self.store.collect_found(removals_max)?.removed;
        if self.store.is_searching() || self.is_searched() {
            return Ok(());
        }
        let (ledger, floors) = (self.store.reader().ledger(), self.floors.clone());
        let is_behind = |(_, entry): &(PartitionId, &PartitionLedger)| {
            entry.state == PartitionState::Held && entry.collected < entry.settled
        };
        let behind: Vec<(PartitionId, Hlc)> = ledger
            .partitions()
            .filter(is_behind)
            .map(|(partition, entry)| (partition, floors.floor(Epoch(entry.settled.0 + 1))))
            .collect();
        self.store.search_dead(behind);
        self.searched = Some((ledger, floors));
        Ok(())
    }

    /// Whether a search for dead records was begun with these promises and these floors.
    fn is_searched(&self) -> bool {
        self.searched.as_ref().is_some_and(|(ledger, floors)| {
            Arc::ptr_eq(ledger, &self.store.reader().ledger()) && Arc::ptr_eq(floors, &self.floors)
        })
    }

    /// Whether there is work that goes on by itself: call [`StoreIo::execute`] again soon.
    pub fn has_more_to_do(&self) -> bool {
        self.wants_wiping || self.store.is_searching() || !self.is_searched()
    }

    /// Hints, for which nobody waits.
    fn execute_hints(&mut self, batch: StoreBatch, done: &mut StoreDone) {
        let touches_hints = !batch.hints.is_empty()
            || !batch.hint_reads.is_empty()
            || !batch.hints_delivered.is_empty()
            || !batch.hints_forgotten.is_empty();
        if touches_hints {
            done.hint_bytes_taken = batch.hints.iter().map(|(_, r)| r.encoded_len()).sum();
            self.keep_hints(batch.hints, batch.wall_ms, done);
            for (target, token) in batch.hints_delivered {
                self.hints.delivered(target, token);
            }
            for target in batch.hints_forgotten {
                self.hints.forget(target);
            }
            for target in batch.hint_reads {
                done.hint_batches
                    .push(self.read_hints(target, batch.wall_ms));
            }
            done.hints_pending = Some(self.hints_pending());
        }
        self.sync_hints(batch.wall_ms);
    }

    /// Whether [`StoreIo::execute`] wants to be called again soon without new work, to sync.
    pub fn has_unsynced_hints(&self) -> bool {
        self.hints_unsynced_since_ms.is_some()
    }

    /// Makes everything durable and closes the store.
    ///
    /// # Errors
    /// The store's, if its last sync fails.
    pub fn close(mut self) -> Result<(), StoreError> {
        if let Err(error) = self.hints.sync() {
            tracing::warn!(%error, "hints could not be synced while closing");
        }
        self.store.close()
    }

    fn merge(&mut self, tickets: Vec<Ticket>, merges: &[(Purpose, Record)], done: &mut StoreDone) {
        if merges.is_empty() {
            return;
        }
        let mut result = self.store.merge_for(merges);
        while let (Err(StoreError::Behind { .. }), Some(wait)) =
            (&result, &mut self.wait_for_flusher)
        {
            if !wait() {
                break;
            }
            result = self.store.merge_for(merges);
        }
        match &result {
            Ok(_) => done.found_disk_full = Some(false),
            Err(StoreError::Full) => done.found_disk_full = Some(true),
            Err(_) => {}
        }
        match result {
            Ok(merged) => {
                debug_assert_eq!(merged.len(), tickets.len());
                let is_rebuilt = |((purpose, _), merged): &(&(Purpose, Record), &Merged)| {
                    matches!(purpose, Purpose::Rebuild { .. }) && **merged == Merged::Applied
                };
                done.rebuilt += merges.iter().zip(&merged).filter(is_rebuilt).count() as u64;
                let answer = |merged: &Merged| match merged {
                    Merged::Applied | Merged::Superseded | Merged::Same => MergeResult::Durable,
                    Merged::EpochClosed => MergeResult::EpochClosed,
                    Merged::Settled => MergeResult::Settled,
                    Merged::NotHere => MergeResult::Refused,
                };
                done.merges
                    .extend(tickets.into_iter().zip(merged.iter().map(answer)));
            }
            Err(StoreError::Behind { .. } | StoreError::Full) => {
                let refused = tickets
                    .into_iter()
                    .map(|ticket| (ticket, MergeResult::Refused));
                done.merges.extend(refused);
            }
            Err(error) if self.store.reader().stats().poisoned => {
                let failed = |ticket| (ticket, MergeResult::Failed);
                done.merges.extend(tickets.into_iter().map(failed));
                done.failed = Some(error.to_string());
            }
            // One old version cannot be read, say: nothing of the group was written. The others in it
            // must not suffer for that one.
            Err(_) if merges.len() > 1 => {
                for (ticket, merge) in tickets.into_iter().zip(merges) {
                    self.merge(vec![ticket], std::slice::from_ref(merge), done);
                }
            }
            Err(error) => {
                tracing::error!(%error, "a record cannot be merged");
                let refused = |ticket| (ticket, MergeResult::Refused);
                done.merges.extend(tickets.into_iter().map(refused));
            }
        }
    }

    fn keep_hints(&mut self, hints: Vec<(NodeId, Record)>, wall_ms: u64, done: &mut StoreDone) {
        let mut by_target: std::collections::BTreeMap<NodeId, Vec<Record>> = Default::default();
        for (target, record) in hints {
            by_target.entry(target).or_default().push(record);
        }
        for (target, records) in by_target {
            match self.hints.append(target, &records, wall_ms) {
                Ok(appended) => {
                    done.hints_stored += appended.stored;
                    done.hints_dropped += appended.dropped;
                }
                Err(error) => {
                    tracing::warn!(%target, %error, "hints could not be written; repair will do");
                    done.hints_dropped += records.len() as u64;
                }
            }
            self.hints_unsynced_since_ms.get_or_insert(wall_ms);
        }
    }

    fn read_hints(
        &mut self,
        target: NodeId,
        wall_ms: u64,
    ) -> (NodeId, Vec<Record>, Option<HintToken>) {
        match self.hints.peek(target, HINT_BATCH_BYTES_MAX, wall_ms) {
            Ok(batch) => (target, batch.records, Some(batch.token)),
            Err(error) => {
                tracing::warn!(%target, %error, "hints could not be read");
                (target, Vec::new(), None)
            }
        }
    }

    fn sync_hints(&mut self, wall_ms: u64) {
        let Some(since_ms) = self.hints_unsynced_since_ms else {
            return;
        };
        // A wall clock that went back must not postpone the sync for ever.
        if wall_ms < since_ms || wall_ms - since_ms >= HINT_SYNC_EVERY_MS {
            self.hints_unsynced_since_ms = None;
            if let Err(error) = self.hints.sync() {
                tracing::warn!(%error, "hints could not be synced");
            }
        }
    }
}

/// What the hashes of index rows are seeded with: the same on all nodes of a cluster, and another in another one, so
/// that no two clusters ever take each other's sets for equal.
pub fn row_seed(cluster: ClusterId) -> u64 {
    (cluster.0 >> 64) as u64 ^ cluster.0 as u64
}

/// A question for the store's reader.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadQuery {
    /// One key.
    Get {
        /// The key.
        key: Bytes,
    },
    /// A page of a partition.
    Page {
        /// The partition.
        partition: PartitionId,
        /// Only keys after this one.
        after: Option<Bytes>,
        /// Records at most.
        limit: u32,
    },
    /// Something that anti-entropy wants to know.
    Sync(SyncQuery),
    /// The number of live records of a partition.
    Count {
        /// The partition.
        partition: PartitionId,
        /// Milliseconds since 1970: what has expired does not count.
        wall_ms: u64,
    },
}

/// The answer to a [`ReadQuery`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadAnswer {
    /// To `Get`, with the watermark of the key's partition.
    Record(Option<Record>, Epoch),
    /// To `Sync`.
    Sync(SyncAnswer),
    /// To `Page`.
    Page {
        /// Records in key order, tombstones included.
        records: Vec<Record>,
        /// Whether more may follow.
        more: bool,
        /// The watermark of the partition, from before the page was read.
        settled: Epoch,
    },
    /// To `Count`.
    Count(u64),
}

/// Asks the store's reader. Blocking, but for keys in memory only briefly.
///
/// # Errors
/// The store's: a failed read is an error, never "absent".
pub fn read(
    reader: &StoreReader,
    query: &ReadQuery,
    pace: &dyn Pace,
) -> Result<ReadAnswer, StoreError> {
    match query {
        ReadQuery::Get { key } => {
            let settled = settled_of(reader, key);
            Ok(ReadAnswer::Record(reader.get(key)?, settled))
        }
        ReadQuery::Sync(query) => Ok(ReadAnswer::Sync(sync_io::answer(reader, query, pace)?)),
        ReadQuery::Page {
            partition,
            after,
            limit,
        } => {
            let limit = *limit as usize;
            let settled = reader.ledger().partition(*partition).settled;
            let (records, more) =
                reader.scan_page(*partition, after.as_deref(), limit, PAGE_BYTES_MAX)?;
            Ok(ReadAnswer::Page {
                records,
                more,
                settled,
            })
        }
        ReadQuery::Count { partition, wall_ms } => {
            Ok(ReadAnswer::Count(reader.count_live(*partition, *wall_ms)?))
        }
    }
}

/// The answer to a question about one key that is in memory; none if the disk has to be read.
pub fn read_in_memory(reader: &StoreReader, query: &ReadQuery) -> Option<ReadAnswer> {
    let ReadQuery::Get { key } = query else {
        return None;
    };
    let settled = settled_of(reader, key);
    match reader.get_in_memory(key) {
        Lookup::Found(record) => Some(ReadAnswer::Record(Some(record), settled)),
        Lookup::Ask => None,
    }
}

/// The watermark of a key's partition, to be asked for *before* the key: what is absent then although it is
/// settled was deleted or superseded. Asked for afterwards, it might have passed something that came in
/// between.
fn settled_of(reader: &StoreReader, key: &[u8]) -> Epoch {
    let ledger = reader.ledger();
    ledger.partition(reader.partition_of(key)).settled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wipe(partitions: &[u16]) -> LedgerOrder {
        LedgerOrder::Wipe(partitions.iter().copied().map(PartitionId).collect())
    }

    fn finish(partitions: &[u16]) -> LedgerOrder {
        LedgerOrder::FinishStreams(partitions.iter().copied().map(PartitionId).collect())
    }

    /// What is carried out, in words, until nothing is left.
    fn carried_out(orders: impl IntoIterator<Item = LedgerOrder>) -> Vec<String> {
        let mut orders = orders.into_iter().collect::<VecDeque<_>>();
        std::iter::from_fn(|| next_order(&mut orders))
            .map(|order| match order {
                LedgerOrder::Wipe(all) => format!("wipe {:?}", ids(&all)),
                LedgerOrder::FinishStreams(all) => format!("finish {:?}", ids(&all)),
                LedgerOrder::ForgetHashes(partition, epoch) => {
                    format!("forget {} {}", partition.0, epoch.0)
                }
                _ => unreachable!("no other kind is ordered here"),
            })
            .collect()
    }

    fn ids(partitions: &[PartitionId]) -> Vec<u16> {
        partitions.iter().map(|partition| partition.0).collect()
    }

    #[test]
    fn orders_of_a_kind_are_one_order() {
        assert_eq!(
            carried_out([wipe(&[1]), wipe(&[2, 3]), wipe(&[4])]),
            ["wipe [1, 2, 3, 4]"]
        );
    }

    /// Each order is a synced write, and records that come wait for it: few and not too long.
    #[test]
    fn rows_are_kept_together_up_to_a_limit() {
        let row = |number: usize| IndexRow {
            partition: PartitionId(1),
            bucket: 0,
            version: mds_types::Version {
                hlc: Hlc(number as u64),
                node: NodeId(1),
            },
            digest: mds_types::Digest(0),
            kind: mds_types::Kind::Value,
            key: Bytes::from_static(b"key"),
        };
        let rows =
            |count: usize| LedgerOrder::Rows((0..count).map(|n| (Epoch(2), row(n))).collect());
        let third = ROWS_JOINED_MAX / 3;
        let mut orders = VecDeque::from([third, third, third, third, 1].map(rows));
        let counts: Vec<usize> = std::iter::from_fn(|| next_order(&mut orders))
            .map(|order| match order {
                LedgerOrder::Rows(rows) => rows.len(),
                other => unreachable!("{other:?}"),
            })
            .collect();
        assert_eq!(counts, [3 * third, third + 1]);
    }

    /// A stream that ends before its partition is wiped is another thing than one that ends after.
    #[test]
    fn orders_do_not_overtake_each_other() {
        assert_eq!(
            carried_out([finish(&[1]), wipe(&[1]), wipe(&[2]), finish(&[2])]),
            ["finish [1]", "wipe [1, 2]", "finish [2]"]
        );
    }

    #[test]
    fn orders_that_cannot_be_joined_come_one_by_one() {
        let forget = |epoch| LedgerOrder::ForgetHashes(PartitionId(7), Epoch(epoch));
        assert_eq!(
            carried_out([forget(1), forget(2), wipe(&[7])]),
            ["forget 7 1", "forget 7 2", "wipe [7]"]
        );
        assert!(carried_out([]).is_empty());
    }
}
