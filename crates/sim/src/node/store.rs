//! The store's threads: one merges and syncs in groups, one flushes.
//!
//! A group is taken when the thread gets to it and carried out when the simulated sync is over: in
//! between, a crash takes all of it. That it may also be cut in the middle is the disk's doing.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use mds_node::core::ScrubStats;
use mds_node::store_io::{
    HINT_SYNC_EVERY_MS, LedgerOrder, MergeResult, StoreBatch, StoreDone, StoreIo, row_seed,
};
use mds_node::sync_io::RootOf;
use mds_storage::engine::MemoryEngine;
use mds_storage::hints::{HintLimits, HintStore};
use mds_storage::store::{
    Flusher, FsyncPolicy, Ledger, PartitionState, Store, StoreError, StoreOptions, StoreReader,
};
use mds_storage::{Disk, FaultyDisk};
use mds_types::slot::partition_of;
use mds_types::{ClusterId, IncarnationId, NodeId, PartitionId, Record};

use super::engine::EngineOnDisk;
use super::{Origin, Process};
use crate::env::Env;
use crate::event::NodeEvent;
use crate::faults::MILLISECOND_NS;
use crate::oracle::arrivals::{self, Arrival};
use crate::oracle::settled_is_equal::Held;
use crate::oracle::settled_is_final::SettledIsFinal;
use crate::oracle::{closed_takes_nothing, settled_takes_nothing};

/// Small, so that a run goes through many segments and flushes.
const SEGMENT_BYTES_MAX: usize = 24 * 1024;

/// Few, so that wiping a partition takes several steps.
const WIPE_KEYS_MAX: usize = 2;

/// Few, so that an epoch is searched for dead records in several steps.
const SEARCH_ROWS_MAX: usize = 4;

/// A few records only: most lookups find out what happens where the cache ends, and where it goes on.
const CACHE_BYTES_MAX: usize = 2_048;

/// Records merged as one group, at most.
const GROUP_RECORDS_MAX: usize = 4_096;

/// Records read at a time when all are looked at.
const CHUNK_RECORDS: usize = 1_024;

/// The store's threads' state.
pub(super) struct StoreLane {
    io: StoreIo,
    pub(super) reader: StoreReader,
    flusher: Flusher,
    partitions: u16,
    waiting: VecDeque<StoreBatch>,
    /// What is being carried out.
    group: Option<StoreBatch>,
    is_begin_due: bool,
    is_flush_due: bool,
    idle_seq: u64,
    /// The ledger as the oracle last saw it.
    seen: Arc<Ledger>,
    refusals: SettledIsFinal,
}

impl StoreLane {
    /// Opens the store and the hints, and has the watch look at all that is there.
    pub(super) fn open(
        disk: &FaultyDisk,
        engine: &MemoryEngine,
        (incarnation, cluster): (IncarnationId, ClusterId),
        partitions: u16,
        (node, life): (usize, u64),
        is_true_to_its_past: bool,
        env: &mut Env,
    ) -> Result<StoreLane, String> {
        let machine_disk = disk;
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let options = StoreOptions {
            partition_count: partitions,
            bucket_count: 8,
            fsync: FsyncPolicy::Always,
            segment_bytes_max: SEGMENT_BYTES_MAX,
            wipe_keys_max: WIPE_KEYS_MAX,
            search_rows_max: SEARCH_ROWS_MAX,
            cache_bytes_max: CACHE_BYTES_MAX,
            secret: (incarnation.0 >> 64) as u64,
            row_seed: row_seed(cluster),
            ..StoreOptions::default()
        };
        let engine = Arc::new(EngineOnDisk::new(engine.clone(), machine_disk.clone()));
        let store = Store::open(disk.clone(), engine, options).map_err(|e| e.to_string())?;
        let hints = HintStore::open(disk.clone(), HintLimits::default())
            .map_err(|error| error.to_string())?;
        let mut io = StoreIo::new(disk, store, hints);
        let (reader, flusher) = (io.store().reader(), io.store().flusher());
        // Merges that find the flusher behind let it go first.
        let in_the_way = flusher.clone();
        io.set_wait_for_flusher(Box::new(move || in_the_way.work().unwrap_or(false)));
        let lane = StoreLane {
            seen: io.ledger(),
            refusals: SettledIsFinal::default(),
            io,
            reader,
            flusher,
            partitions,
            waiting: VecDeque::new(),
            group: None,
            is_begin_due: false,
            is_flush_due: false,
            idle_seq: 0,
        };
        let records = lane.all_records()?;
        env.line(|| {
            format!(
                "node {} has opened its store: {} records",
                node + 1,
                records.len()
            )
        });
        // An old copy shows what was; it may as long as nobody asks it. Damage is looked at elsewhere.
        if is_true_to_its_past {
            let id = incarnation.node_id();
            if let Some(broken) = env.watch.promised(node, id, &lane.seen) {
                env.violated(broken.0, broken.1);
            }
            let at = (env.now_ns, node, life);
            for broken in env.watch.node_recovered(at, &records, &lane.seen) {
                env.violated(broken.0, broken.1);
            }
        }
        Ok(lane)
    }

    pub(super) fn ledger(&self) -> Arc<Ledger> {
        self.io.ledger()
    }

    pub(super) fn hints_pending(&self) -> Vec<(NodeId, u64)> {
        self.io.hints_pending()
    }

    /// All records of the replica.
    pub(super) fn all_records(&self) -> Result<Vec<Record>, String> {
        let mut all = Vec::new();
        for partition in (0..self.partitions).map(PartitionId) {
            let mut after: Option<Bytes> = None;
            loop {
                let page = self
                    .reader
                    .scan(partition, after.as_deref(), CHUNK_RECORDS)
                    .map_err(|error| error.to_string())?;
                let is_last = page.len() < CHUNK_RECORDS;
                after = page.last().map(|record| record.key.clone());
                all.extend(page);
                if is_last {
                    break;
                }
            }
        }
        Ok(all)
    }
}

impl Process {
    /// Opens the store at the moment when the cluster is born.
    pub(super) fn open_store(&mut self, partitions: u16, env: &mut Env) {
        if self.store.is_some() {
            return;
        }
        let written = mds_storage::datadir::write_partition_count(&self.disk, partitions);
        let opened = written.map_err(|error| error.to_string()).and_then(|()| {
            let name = (self.node, self.life);
            StoreLane::open(
                &self.disk,
                &self.engine,
                (self.incarnation, self.control.view().cluster),
                partitions,
                name,
                self.origin != Origin::Copy,
                env,
            )
        });
        match opened {
            _ if self.disk.is_stopped() => {}
            Ok(lane) => {
                let (ledger, pending) = (lane.ledger(), lane.hints_pending());
                self.store = Some(lane);
                self.data.core.on_store_open(ledger, pending);
                self.schedule_end_of_turn(env);
                self.arm_store(env);
            }
            Err(error) => {
                env.node_failed(self.name(), format!("it cannot open its store: {error}"));
            }
        }
    }

    /// Hands a batch to the store's thread.
    pub(super) fn store_batch(&mut self, batch: StoreBatch, env: &mut Env) {
        if let Some(lane) = &mut self.store {
            lane.waiting.push_back(batch);
            self.wake_store(env);
        }
    }

    fn wake_store(&mut self, env: &mut Env) {
        let name = self.name();
        let Some(lane) = &mut self.store else { return };
        if lane.group.is_none() && !lane.is_begin_due && !lane.waiting.is_empty() {
            lane.is_begin_due = true;
            lane.idle_seq += 1;
            let hop_ns = env.hop_ns();
            env.node_after(hop_ns, name, NodeEvent::StoreBegin);
        }
    }

    pub(super) fn store_begins(&mut self, env: &mut Env) {
        let name = self.name();
        let Some(lane) = &mut self.store else { return };
        lane.is_begin_due = false;
        let Some(mut group) = lane.waiting.pop_front() else {
            return;
        };
        while group.merges.len() < GROUP_RECORDS_MAX
            && let Some(later) = lane.waiting.pop_front()
        {
            group.append(later);
        }
        lane.group = Some(group);
        let sync_ns = env.network.sync_ns(self.node, &mut env.counts);
        env.node_after(sync_ns, name, NodeEvent::StoreFinish);
    }

    pub(super) fn store_finishes(&mut self, env: &mut Env) {
        let Some(lane) = &mut self.store else { return };
        let Some(group) = lane.group.take() else {
            return;
        };
        let (ledger, reader) = (lane.seen.clone(), &lane.reader);
        let held = |key: &Bytes| match reader.get(key) {
            Ok(record) => Ok(record.map(|record| record.version)),
            Err(_) => Err(()),
        };
        let mut arrivals = arrivals::before(&group, &ledger, lane.partitions, held);
        let verified = roots_to_settle(&group);
        let done = lane.io.execute(group);
        if self.disk.is_stopped() {
            return;
        }
        arrivals::after(&mut arrivals, &done);
        let broken = settled_takes_nothing::check(self.node, &arrivals)
            .or_else(|| closed_takes_nothing::check(self.node, ledger.closed, &arrivals))
            .or_else(|| lane.refusals.check(self.node, &arrivals, &done));
        if let Some(broken) = broken {
            env.violated(broken.0, broken.1);
        }
        for root in verified {
            let settled = |ledger: &Ledger| ledger.partition(root.partition).settled;
            let is_now = done
                .ledger
                .as_deref()
                .is_some_and(|now| settled(now) >= root.epoch);
            if is_now && settled(&ledger) < root.epoch {
                let (name, me) = ((self.node, self.life), self.incarnation.node_id());
                if let Some(broken) = env.watch.settled(name, me, &root) {
                    env.violated(broken.0, broken.1);
                }
            }
        }
        let is_refused = |(_, result): &(_, MergeResult)| *result == MergeResult::Refused;
        if done.merges.iter().any(is_refused) {
            env.reached.count("write refused for want of room");
        }
        let now = done.ledger.as_ref().unwrap_or(&lane.seen);
        for Arrival { key, .. } in arrivals {
            // What is left of a partition that is being wiped is shown to nobody.
            if now.partition(partition_of(&key, lane.partitions)).state == PartitionState::Wiping {
                continue;
            }
            match lane.reader.get(&key) {
                Ok(Some(record)) => {
                    if let Some(broken) = env.watch.visible_by(self.node, &record, &lane.seen) {
                        env.violated(broken.0, broken.1);
                    }
                }
                // Refused, as when the flusher is behind, and never written before.
                Ok(None) => {}
                // The disk's fault; whoever asks hears of a failure.
                Err(_) if env.sick.contains(&self.node) => {}
                Err(error) => env.violated("a sound store can be read", error.to_string()),
            }
        }
        self.look_at_promises(&done, env);
        let hop_ns = env.hop_ns();
        env.node_after(hop_ns, self.name(), NodeEvent::StoreDone(Box::new(done)));
        self.after_store_work(env);
    }

    /// Has the oracle look at what the store has promised, collected and wiped.
    fn look_at_promises(&mut self, done: &StoreDone, env: &mut Env) {
        let Some(lane) = &mut self.store else { return };
        if done.collected > 0 {
            env.reached.add("tombstone collected", done.collected);
        }
        // An old copy lacks what its original has shown since.
        if done.collected > 0 && self.origin != Origin::Copy {
            for (key, _) in env.watch.shown(self.node) {
                let lost = env.lost_record.as_ref();
                if lost.is_some_and(|lost| (lost.node, &lost.key) == (self.node, &key)) {
                    continue;
                }
                if matches!(lane.reader.get(&key), Ok(None)) {
                    env.gone.push((self.node, key));
                }
            }
        }
        env.reached
            .add("partition found wrong", done.wrong.len() as u64);
        for partition in &done.wrong {
            let (node, entry) = (self.node + 1, lane.seen.partition(*partition).clone());
            env.line(|| format!("node {node} finds its partition {partition} wrong: {entry:?}"));
        }
        let Some(ledger) = &done.ledger else { return };
        let before = std::mem::replace(&mut lane.seen, ledger.clone());
        let (node, id) = (self.node, self.incarnation.node_id());
        // What an old copy has promised was taken back with it.
        if self.origin != Origin::Copy
            && let Some(broken) = env.watch.promised(node, id, ledger)
        {
            env.violated(broken.0, broken.1);
        }
        if ledger.closed > before.closed {
            env.reached.count("epoch closed");
        }
        for (partition, entry) in ledger.partitions() {
            let was = before.partition(partition);
            if entry.settled > was.settled {
                env.reached.count("epoch settled");
                env.settled.push((self.node, partition, entry.settled));
            }
            if matches!(was.state, PartitionState::Streaming { .. })
                && entry.state == PartitionState::Held
            {
                env.reached.count("partition streamed");
            }
            let is_gone = |state: &PartitionState| {
                matches!(state, PartitionState::Wiping | PartitionState::Absent)
            };
            // While it is being wiped, what is left can be seen still.
            if was.state != entry.state && is_gone(&entry.state) {
                let partitions = lane.partitions;
                env.watch
                    .partition_wiped(self.node, |key| partition_of(key, partitions) == partition);
            }
        }
    }

    fn after_store_work(&mut self, env: &mut Env) {
        let name = self.name();
        let Some(lane) = &mut self.store else { return };
        if lane.io.store().wants_flush() && !lane.is_flush_due {
            lane.is_flush_due = true;
            let delay_ns = env.some_ns(MILLISECOND_NS, 40 * MILLISECOND_NS);
            env.node_after(delay_ns, name, NodeEvent::Flush);
        }
        self.wake_store(env);
        self.arm_store(env);
    }

    /// The store's thread looks around when it has had nothing to do for a while.
    pub(super) fn arm_store(&mut self, env: &mut Env) {
        let name = self.name();
        let Some(lane) = &mut self.store else { return };
        if lane.group.is_none() && !lane.is_begin_due {
            lane.idle_seq += 1;
            let seq = lane.idle_seq;
            let idle_ns = HINT_SYNC_EVERY_MS * MILLISECOND_NS;
            env.node_after(idle_ns, name, NodeEvent::StoreIdle { seq });
        }
    }

    pub(super) fn on_store_idle(&mut self, seq: u64, env: &mut Env) {
        let now = self.clock.at(env.now_ns);
        let Some(lane) = &mut self.store else { return };
        if seq != lane.idle_seq {
            return;
        }
        let (wall_ms, mono_ns) = (now.wall_ms(), now.mono_ns);
        let done = lane.io.execute(StoreBatch {
            wall_ms,
            mono_ns,
            ..StoreBatch::default()
        });
        if self.disk.is_stopped() {
            return;
        }
        self.look_at_promises(&done, env);
        if done.is_news() {
            let hop_ns = env.hop_ns();
            env.node_after(hop_ns, self.name(), NodeEvent::StoreDone(Box::new(done)));
        }
        self.after_store_work(env);
    }

    pub(super) fn flush(&mut self, env: &mut Env) {
        let name = self.name();
        let Some(lane) = &mut self.store else { return };
        lane.is_flush_due = false;
        let worked = lane.flusher.work().and_then(|is_more| {
            if !is_more {
                let dropped = lane.reader.drop_collected_index()?;
                env.reached.add("collected index dropped", dropped as u64);
            }
            Ok(is_more)
        });
        if self.disk.is_stopped() {
            return;
        }
        match worked {
            Ok(is_more) => {
                if is_more {
                    lane.is_flush_due = true;
                    let delay_ns = env.some_ns(MILLISECOND_NS, 10 * MILLISECOND_NS);
                    env.node_after(delay_ns, name, NodeEvent::Flush);
                }
            }
            // As the real thread: what waits stays in the log, and it tries again.
            Err(StoreError::Full) => {
                lane.is_flush_due = true;
                let delay_ns = env.some_ns(200 * MILLISECOND_NS, 1_000 * MILLISECOND_NS);
                env.node_after(delay_ns, name, NodeEvent::Flush);
            }
            Err(error) => {
                let failed = Some(format!("flushing failed: {error}"));
                let done = StoreDone {
                    failed,
                    ..StoreDone::default()
                };
                env.node_after(0, name, NodeEvent::StoreDone(Box::new(done)));
            }
        }
    }

    pub(super) fn on_store_done(&mut self, done: StoreDone, env: &mut Env) {
        if let Some(reason) = &done.failed {
            env.node_failed(self.name(), format!("its store stopped: {reason}"));
        }
        let now = self.clock.at(env.now_ns);
        self.data.core.on_store_done(now, done);
        self.schedule_end_of_turn(env);
    }

    /// What this node's store has promised.
    pub(crate) fn ledger(&self) -> Option<Arc<Ledger>> {
        Some(self.store.as_ref()?.ledger())
    }

    /// Whether this node holds the partition of a key, and is not just copying it.
    pub(crate) fn is_whole(&self, key: &[u8]) -> bool {
        self.store.as_ref().is_some_and(|lane| {
            let partition = partition_of(key, lane.partitions);
            lane.io.ledger().partition(partition).state == PartitionState::Held
        })
    }

    /// What this node's scrubs have found.
    pub(crate) fn scrubbed(&self) -> ScrubStats {
        self.data.core.stats().scrub
    }

    /// What this node holds of a key, for the oracle.
    pub(crate) fn record(&self, key: &[u8]) -> Option<Record> {
        self.store.as_ref()?.reader.get(key).ok()?
    }

    /// What this node holds of a partition, if it is a replica of it like any other.
    pub(crate) fn held(&self, partition: PartitionId) -> Option<Held> {
        let lane = self.store.as_ref()?;
        let ledger = lane.io.ledger();
        let entry = ledger.partition(partition);
        let is_replica = self.replicas(partition).contains(&self.node_id());
        if entry.state != PartitionState::Held || !is_replica || self.origin != Origin::Itself {
            return None;
        }
        let (records, more) = lane
            .reader
            .scan_page(partition, None, usize::MAX, usize::MAX)
            .ok()?;
        (!more).then_some(Held {
            node: self.node,
            records,
            settled: entry.settled,
        })
    }

    /// Whether this node holds records of partitions that it is no replica of.
    pub(crate) fn keeps_too_much(&self) -> bool {
        let Some(lane) = &self.store else {
            return false;
        };
        (0..lane.partitions).map(PartitionId).any(|partition| {
            let page = lane.reader.scan(partition, None, 1);
            !self.data.core.holds(partition) && page.is_ok_and(|page| !page.is_empty())
        })
    }

    /// All records of this node's replica, for the oracle.
    ///
    /// # Errors
    /// If the store is not open or fails.
    pub(crate) fn all_records(&self) -> Result<Vec<Record>, String> {
        self.store
            .as_ref()
            .ok_or("its store is not open")?
            .all_records()
    }

    /// Hints that wait on this node's disk for one of these.
    pub(crate) fn hints_waiting(&self, targets: &BTreeSet<NodeId>) -> u64 {
        let Some(lane) = &self.store else { return 0 };
        lane.hints_pending()
            .iter()
            .filter(|(target, _)| targets.contains(target))
            .map(|&(_, count)| count)
            .sum()
    }
}

/// What a group of work wants to settle by comparison.
fn roots_to_settle(group: &StoreBatch) -> Vec<RootOf> {
    let roots = group.orders.iter().filter_map(|order| match order {
        LedgerOrder::Settle(roots) => Some(roots),
        _ => None,
    });
    roots.flatten().copied().collect()
}
