//! Random lives of a store, with every fault the disk and the engine have, against a plain model.
//!
//! The model knows the order in which records won and rows were left. After a crash the store must stand
//! exactly where it stood after *some* number of them: at least all that were acknowledged if the process
//! died, or if the power went under [`FsyncPolicy::Always`]; else at least all that were synced. Records,
//! epoch index and bucket hashes must agree on that number. What is found at start-up is durable from then
//! on.
//!
//! Beside merging, epochs are closed, settled and collected, and partitions are wiped and streamed. What the
//! ledger has promised is never taken back, and what may be collected is the only thing that may be
//! missing: no removal, torn or not, uncovers anything. Versions are above the floors of their epochs,
//! as coordinators see to; beyond that version order and epoch order differ freely.

use super::*;
use crate::disk::faulty::SplitMix64;

mod check;
mod content;

use content::{Content, brief, is_here, may_be_gone, next_floor, partition};

const KEYS: u64 = 10;
const PARTITIONS: u16 = 4;
const EPOCH_MAX: u64 = 12;
/// Between the floors of two epochs.
const FLOOR_STEP: u64 = 30;
/// Above its epoch's floor a version is at most this far: several epochs' worth.
const HLC_SPAN: u64 = 60;
/// Values of which half expire before this time, and none at it.
const DEAD_BY_MS: u64 = 1_000;

/// Every version of an epoch is above its floor.
fn floor(epoch: Epoch) -> Hlc {
    Hlc(FLOOR_STEP * epoch.0)
}

struct Life {
    seed: u64,
    random: SplitMix64,
    bench: Bench,
    store: Option<Store>,
    /// What is known to survive a loss of power.
    durable: Content,
    /// Winners since then, in order; perhaps in the log.
    history: Vec<Record>,
    /// How many of them were acknowledged.
    acknowledged: usize,
    /// Everything up to `acknowledged`: what readers see.
    visible: Content,
    /// What the ledger said last.
    promised: Arc<Ledger>,
    epoch: u64,
    now_ns: u64,
    seen: Seen,
}

/// What came about.
#[derive(Default)]
struct Seen {
    crashes: u64,
    outcomes: [u64; 6],
    rows_alone: u64,
    collected: u64,
    wiped: u64,
    streamed: u64,
    rebuilt: u64,
    rows_taken: u64,
}

impl Life {
    fn new(seed: u64, fsync: FsyncPolicy) -> Life {
        let mut bench = Bench::new();
        bench.disk = FaultyDisk::new(seed);
        bench.options.fsync = fsync;
        bench.options.partition_count = PARTITIONS;
        bench.options.bucket_count = 3;
        bench.options.row_seed = seed;
        // Half of them have to forget hashes for want of room.
        bench.options.index_bytes_max = if seed.is_multiple_of(2) {
            1_200
        } else {
            1 << 20
        };
        bench.options.segment_bytes_max = 500;
        let mut life = Life {
            seed,
            random: SplitMix64(!seed),
            bench,
            store: None,
            durable: Content::default(),
            history: Vec::new(),
            acknowledged: 0,
            visible: Content::default(),
            promised: Arc::new(Ledger::new(PARTITIONS)),
            epoch: 1,
            now_ns: 0,
            seen: Seen::default(),
        };
        life.reopen(false);
        life
    }

    fn any_record(&mut self) -> Record {
        let key = format!("key-{}", self.random.below(KEYS));
        let oldest = self.epoch.saturating_sub(5).max(1);
        let epoch = oldest + self.random.below(self.epoch - oldest + 1);
        let hlc = floor(Epoch(epoch)).0 + 1 + self.random.below(HLC_SPAN);
        let length = self.random.below(60) as usize;
        let mut record = record(&key, hlc, &"v".repeat(length));
        record.epoch = Epoch(epoch);
        // A version tells its epoch, as no coordinator stamps twice.
        record.version.node = NodeId(2 * epoch + self.random.below(2));
        match self.random.below(8) {
            0..3 => record.body = Body::Tombstone,
            3 => record.expires_at_ms = Some(500),
            4 => record.expires_at_ms = Some(5_000),
            _ => {}
        }
        record
    }

    fn any_partition(&mut self) -> PartitionId {
        PartitionId(self.random.below(u64::from(PARTITIONS)) as u16)
    }

    fn merge(&mut self) {
        let count = 1 + self.random.below(5);
        let purposes = [
            Purpose::Write,
            Purpose::Hint,
            Purpose::Repair,
            Purpose::Sync,
        ];
        let batch: Vec<(Purpose, Record)> = (0..count)
            .map(|_| {
                let mut again = self.visible.records.values();
                let again = again.nth(self.random.below(40) as usize).cloned();
                let record = again.unwrap_or_else(|| self.any_record());
                (purposes[self.random.below(4) as usize], record)
            })
            .collect();
        let mut after = self.visible.clone();
        let mut changes = Vec::new();
        let mut expected = Vec::new();
        for (purpose, record) in &batch {
            let (outcome, is_change) = after.judge(&self.promised, *purpose, record);
            let current = after.records.get(&record.key);
            // Where a dead record may be gone, its absence may be what a record of its time meets.
            let or = match current.is_some_and(|current| may_be_gone(&self.promised, current)) {
                true if matches!(outcome, Merged::Same | Merged::Superseded) => Merged::Settled,
                _ => outcome,
            };
            expected.push([outcome, or]);
            if is_change {
                self.seen.rows_alone += u64::from(outcome == Merged::Superseded);
                after.apply(record);
                changes.push(record.clone());
            }
        }
        let Some(store) = &mut self.store else { return };
        match store.merge_for(&batch) {
            Ok(outcomes) => {
                for ((outcome, expected), merge) in outcomes.iter().zip(expected).zip(&batch) {
                    self.seen.outcomes[*outcome as usize] += 1;
                    assert!(
                        expected.contains(outcome),
                        "seed {}: {outcome:?} is none of {expected:?} for {:?} {}",
                        self.seed,
                        merge.0,
                        brief(&merge.1)
                    );
                }
                self.merged(changes, after);
            }
            Err(error) => self.failed_to_merge(&error, changes),
        }
    }

    /// These changes were acknowledged, and are visible.
    fn merged(&mut self, changes: Vec<Record>, after: Content) {
        self.history.extend(changes);
        self.acknowledged = self.history.len();
        self.visible = after;
        if self.bench.options.fsync == FsyncPolicy::Always {
            self.synced();
        }
    }

    /// None of these changes is visible. What else is known of them depends on the error.
    fn failed_to_merge(&mut self, error: &StoreError, changes: Vec<Record>) {
        match error {
            StoreError::Behind { .. } | StoreError::Full | StoreError::Engine(_) => {}
            // A run file that cannot be read past a planned crash point refuses the batch.
            StoreError::Io { .. } if self.bench.disk.is_stopped() => self.crash(),
            StoreError::Poisoned { .. } => {
                // Nobody knows how much of it is in the log.
                self.history.extend(changes);
                self.crash();
            }
            error => panic!("seed {}: {error}", self.seed),
        }
    }

    /// Rows that another replica has.
    fn merge_rows(&mut self) {
        let count = 1 + self.random.below(3);
        let offers: Vec<Record> = (0..count).map(|_| self.any_record()).collect();
        let mut after = self.visible.clone();
        let mut changes = Vec::new();
        let mut expected = Vec::new();
        for record in &offers {
            let outcome = after.judge_row(&self.promised, record);
            expected.push(outcome);
            if outcome == RowMerged::Logged {
                after.apply(record);
                changes.push(record.clone());
            }
        }
        let row = |record: &Record| (record.epoch, IndexRow::of(PartitionId(0), 1, record));
        let rows: Vec<_> = offers.iter().map(row).collect();
        let Some(store) = &mut self.store else { return };
        match store.merge_rows(&rows) {
            Ok(outcomes) => {
                assert_eq!(outcomes, expected, "seed {}", self.seed);
                self.seen.rows_taken += changes.len() as u64;
                self.merged(changes, after);
            }
            Err(error) => self.failed_to_merge(&error, changes),
        }
    }

    /// The ledger was changed, so everything before is durable.
    fn promised(&mut self) {
        let Some(store) = &self.store else { return };
        let ledger = store.reader().ledger();
        if ledger != self.promised {
            self.synced();
            self.adopt(ledger);
        }
    }

    /// Takes note of a ledger, which may not take back what the last one promised.
    fn adopt(&mut self, ledger: Arc<Ledger>) {
        assert!(ledger.closed >= self.promised.closed);
        for ((place, old), (_, new)) in self.promised.partitions().zip(ledger.partitions()) {
            assert!(new.collected <= new.settled && new.settled <= ledger.closed);
            let was_wiped =
                old.state == PartitionState::Wiping && new.state == PartitionState::Absent;
            assert!(was_wiped || new.wiped_at_segment == old.wiped_at_segment);
            assert!(was_wiped || (new.settled, new.collected) >= (old.settled, old.collected));
            if was_wiped || new.state == PartitionState::Absent {
                self.seen.wiped += u64::from(was_wiped);
                self.visible.wipe(place);
                self.durable.wipe(place);
                let before = self.history.len();
                let behind = self.history[self.acknowledged..].len();
                self.history
                    .retain(|record| partition(&record.key) != place);
                assert!(behind == 0 || before == self.history.len());
                self.acknowledged = self.history.len() - behind;
            }
            let ended = matches!(old.state, PartitionState::Streaming { .. })
                && new.state == PartitionState::Held;
            self.seen.streamed += u64::from(ended);
        }
        self.promised = ledger;
    }

    /// Everything acknowledged is known to be durable.
    fn synced(&mut self) {
        self.durable = self.visible.clone();
        self.history.drain(..self.acknowledged);
        self.acknowledged = 0;
    }

    fn crash(&mut self) {
        self.seen.crashes += 1;
        self.store = None;
        // A store does not open on a full disk.
        self.bench.disk.set_capacity(None);
        let power = self.random.coin();
        if power {
            self.bench.disk.crash();
        } else {
            self.bench.disk.process_crash();
        }
        // Recovery may be cut short too, several times.
        let mut lost_power = power;
        while self.random.below(3) == 0 {
            self.bench.disk.fail_after_ops(self.random.below(12));
            let _ = self.bench.try_open();
            if self.random.coin() {
                lost_power = true;
                self.bench.disk.crash();
            } else {
                self.bench.disk.process_crash();
            }
        }
        self.reopen(lost_power);
    }

    /// Opens the store and finds out where it stands.
    fn reopen(&mut self, lost_power: bool) {
        let store = match self.bench.try_open() {
            Ok(store) => store,
            Err(error) => panic!("seed {}: {error}", self.seed),
        };
        let found = self.content(&store.reader());
        let ledger = store.reader().ledger();
        let at_least = if lost_power { 0 } else { self.acknowledged };
        let mut state = self.durable.clone();
        let is_found = |state: &Content| state.comparable(&ledger) == found.comparable(&ledger);
        // Of several numbers that fit, the last: they differ in what may be gone only.
        let mut at = (at_least == 0 && is_found(&state)).then(|| state.clone());
        for (index, record) in self.history.iter().enumerate() {
            state.apply(record);
            if index + 1 >= at_least && is_found(&state) {
                at = Some(state.clone());
            }
        }
        let Some(at) = at else {
            panic!(
                "seed {}: found {found:?}\nis not {:?}\nand the first of (at least {at_least}) {:?}",
                self.seed,
                self.durable,
                self.history.iter().map(brief).collect::<Vec<_>>()
            );
        };
        self.history.clear();
        self.acknowledged = 0;
        self.visible = at.clone();
        self.durable = at;
        self.adopt(ledger);
        self.store = Some(store);
    }

    fn step(&mut self) {
        if self.bench.disk.is_stopped() {
            return self.crash();
        }
        let outcome = match self.random.below(130) {
            0..40 => return self.merge(),
            40..45 => return self.merge_rows(),
            45..72 => self.work(),
            72..75 => self.sync(),
            75..80 => return self.check(),
            100..118 => self.advance(),
            118..130 => self.move_partitions(),
            80..91 => return self.plan_fault(),
            91..93 => return self.fill_the_disk(),
            93..95 => return self.close(),
            _ => return self.crash(),
        };
        self.promised();
        match outcome {
            Ok(()) | Err(StoreError::Behind { .. } | StoreError::Full) => {}
            Err(StoreError::Engine(_)) => {}
            Err(StoreError::Io { .. }) if self.bench.disk.is_stopped() => self.crash(),
            Err(StoreError::Poisoned { .. }) => self.crash(),
            Err(error) => panic!("seed {}: {error}", self.seed),
        }
    }

    /// Epochs go their way.
    fn advance(&mut self) -> Result<(), StoreError> {
        let partition = self.any_partition();
        let settled = self.promised.partition(partition).settled;
        let closed = self.promised.closed;
        let epoch = Epoch(closed.0.max(settled.0) + self.random.below(2));
        let what = self.random.below(8);
        let (searches, removals_max) = (1 + self.random.below(4), self.random.below(40) as usize);
        let Some(store) = &mut self.store else {
            return Ok(());
        };
        match what {
            0..2 => {
                self.epoch = (self.epoch + 1).min(EPOCH_MAX);
                store.close_epochs(Epoch(self.epoch.saturating_sub(2)))
            }
            2..4 => {
                let settlement = Settlement {
                    partition,
                    epoch,
                    chain: u128::from(epoch.0),
                };
                let outcome = store.settle(&[settlement])?[0];
                let is_held = self.promised.partition(partition).state == PartitionState::Held;
                let expected = match (is_held, epoch <= closed) {
                    (false, _) => SettleOutcome::NotHeld,
                    (true, _) if epoch <= settled => SettleOutcome::Already,
                    (true, false) => SettleOutcome::NotClosed,
                    (true, true) => SettleOutcome::Raised,
                };
                assert_eq!(outcome, expected);
                Ok(())
            }
            // Whatever else happens comes between what is found and what is done about it.
            4..7 => {
                if !store.is_searching() {
                    let floor_of = |p| next_floor(self.promised.partition(p).settled);
                    let all = (0..PARTITIONS).map(PartitionId);
                    store.search_dead(all.map(|p| (p, floor_of(p))).collect());
                }
                for _ in 0..searches {
                    store.flusher().search_some();
                    let collected = store.collect_found(removals_max)?;
                    self.seen.collected += collected.removed;
                }
                Ok(())
            }
            _ => store.reader().drop_collected_index().map(drop),
        }
    }

    /// Partitions are lost and gained.
    fn move_partitions(&mut self) -> Result<(), StoreError> {
        let away = self.promised.partitions();
        let away = away.filter(|(_, entry)| entry.state != PartitionState::Held);
        let away: Vec<_> = away.map(|(partition, _)| partition).collect();
        let any = self.any_partition();
        let partition = away.first().copied().unwrap_or(any);
        let what = self.random.below(9);
        let from = self.random.below(self.promised.closed.0 + 1);
        let lets_flusher_work = self.random.below(2) == 0;
        let Some(store) = &mut self.store else {
            return Ok(());
        };
        match what {
            0 if self
                .promised
                .partitions()
                .all(|(p, _)| is_here(&self.promised, p)) =>
            {
                store.begin_wipe(&[partition])
            }
            0..4 => {
                store.continue_wipe()?;
                if lets_flusher_work {
                    store.flusher().work()?;
                    store.continue_wipe()?;
                }
                Ok(())
            }
            4 => store.hold(&[partition]),
            5 => store.begin_streams(&[Settlement {
                partition,
                epoch: Epoch(from),
                chain: 5,
            }]),
            6 => store.advance_streams(&[(partition, Bytes::from_static(b"key-3"))]),
            _ => store.finish_streams(&[partition]),
        }
    }

    /// What goes on beside merging.
    fn work(&mut self) -> Result<(), StoreError> {
        let Some(store) = &mut self.store else {
            return Ok(());
        };
        match self.random.below(27) {
            0..15 => store.flusher().work().map(drop),
            15..18 => store.freeze().map(drop),
            18..22 => {
                self.epoch = (self.epoch + 1).min(EPOCH_MAX);
                store.epoch_changed(Epoch(self.epoch))
            }
            _ => {
                self.now_ns += 4_000_000;
                store.tick(self.now_ns)
            }
        }
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        if let Some(store) = &mut self.store {
            store.sync()?;
            self.synced();
        }
        Ok(())
    }

    fn plan_fault(&mut self) {
        let disk = &self.bench.disk;
        match self.random.below(11) {
            0..6 => disk.fail_after_ops(self.random.below(25)),
            6..8 => disk.fail_sync_in(self.random.below(3)),
            8 => disk.fail_append_in(self.random.below(5)),
            _ => {
                let items = self.random.below(6) as usize;
                self.bench.engine.fail_next_ingest_after(items);
            }
        }
    }

    fn fill_the_disk(&mut self) {
        let disk = &self.bench.disk;
        disk.set_capacity(Some(disk.used_bytes() + self.random.below(400)));
        for _ in 0..6 {
            self.merge();
            let flushed = self.store.as_ref().map(|store| store.flusher().work());
            if flushed.is_some_and(is_poisoned) {
                self.crash();
            }
        }
        self.bench.disk.set_capacity(None);
    }

    fn close(&mut self) {
        if self.store.take().is_some_and(|store| store.close().is_ok()) {
            self.synced();
            assert!(self.history.is_empty());
        }
        self.crash();
    }
}

fn live(seeds: std::ops::Range<u64>, fsync: FsyncPolicy) {
    let (mut flushes, mut applied) = (0, 0);
    let mut all = Seen::default();
    for seed in seeds {
        let mut life = Life::new(seed, fsync);
        for _ in 0..300 {
            life.step();
            if let Some(store) = &life.store {
                let stats = store.reader().stats();
                flushes = flushes.max(stats.flushes);
                applied = applied.max(stats.applied);
            }
        }
        if !life.bench.disk.is_stopped() {
            life.check();
        }
        let seen = &life.seen;
        for (sum, count) in all.outcomes.iter_mut().zip(seen.outcomes) {
            *sum += count;
        }
        all.crashes += seen.crashes;
        all.rows_alone += seen.rows_alone;
        all.collected += seen.collected;
        all.wiped += seen.wiped;
        all.streamed += seen.streamed;
        all.rebuilt += seen.rebuilt;
        all.rows_taken += seen.rows_taken;
    }
    // The lives were worth living.
    let crashes = all.crashes;
    assert!(
        crashes > 500 && flushes > 3 && applied > 15,
        "{crashes} {flushes} {applied}"
    );
    assert!(
        all.outcomes.iter().all(|count| *count > 50),
        "{:?}",
        all.outcomes
    );
    let counts = [
        all.rows_alone,
        all.collected,
        all.wiped,
        all.streamed,
        all.rebuilt,
        all.rows_taken,
    ];
    assert!(counts.iter().all(|count| *count > 30), "{counts:?}");
}

#[test]
fn random_lives_when_every_batch_is_synced() {
    live(0..150, FsyncPolicy::Always);
}

#[test]
fn random_lives_when_synced_now_and_then() {
    live(1000..1150, FsyncPolicy::Interval { ms: 10 });
}

#[test]
fn random_lives_when_the_system_syncs() {
    live(2000..2150, FsyncPolicy::Os);
}
