//! Random lives of a store, with every fault the disk and the engine have, against a plain model.
//!
//! The model knows the order in which records won. After a crash the store must stand exactly where
//! it stood after *some* number of them: at least all that were acknowledged if the process died,
//! or if the power went under [`FsyncPolicy::Always`]; else at least all that were synced. Records
//! and epoch index must agree on that number. What is found at start-up is durable from then on.

use std::collections::BTreeMap;

use super::*;
use crate::disk::faulty::SplitMix64;

const KEYS: u64 = 10;
const PARTITIONS: u16 = 4;
const HLC_MAX: u64 = 400;

/// What a store holds.
#[derive(Clone, Default, PartialEq)]
struct Content {
    records: BTreeMap<Bytes, Record>,
    /// The greatest version written of each key in each epoch.
    rows: BTreeMap<(Epoch, Bytes), Version>,
}

/// `key@hlc.node=length`, and `-` for a tombstone's length.
fn brief(record: &Record) -> String {
    let key = String::from_utf8_lossy(&record.key);
    let (hlc, node) = (record.version.hlc.0, record.version.node.0);
    let length = record
        .value()
        .map_or("-".into(), |value| value.len().to_string());
    format!("{key}@{hlc}.{node}={length}")
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let records: Vec<_> = self.records.values().map(brief).collect();
        let row = |((epoch, key), version): (&(Epoch, Bytes), &Version)| {
            let key = String::from_utf8_lossy(key);
            format!("{epoch}/{key}@{}.{}", version.hlc.0, version.node.0)
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        write!(f, "records {records:?} rows {rows:?}")
    }
}

impl Content {
    fn judge(&self, record: &Record) -> Merged {
        match self.records.get(&record.key) {
            None => Merged::Applied,
            Some(current) if record.supersedes(current) => Merged::Applied,
            Some(current) if record == current => Merged::Same,
            Some(_) => Merged::Superseded,
        }
    }

    fn apply(&mut self, record: &Record) {
        self.records.insert(record.key.clone(), record.clone());
        let row = self.rows.entry((record.epoch, record.key.clone()));
        let version = row.or_default();
        *version = record.version.max(*version);
    }
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
    epoch: u64,
    now_ns: u64,
    crashes: u32,
}

impl Life {
    fn new(seed: u64, fsync: FsyncPolicy) -> Life {
        let mut bench = Bench::new();
        bench.disk = FaultyDisk::new(seed);
        bench.options.fsync = fsync;
        bench.options.partition_count = PARTITIONS;
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
            epoch: 0,
            now_ns: 0,
            crashes: 0,
        };
        life.reopen(false);
        life
    }

    fn any_record(&mut self) -> Record {
        let key = format!("key-{}", self.random.below(KEYS));
        let hlc = 1 + self.random.below(HLC_MAX);
        let length = self.random.below(60) as usize;
        let mut record = record(&key, hlc, &"v".repeat(length));
        record.version.node = NodeId(1 + self.random.below(2));
        if self.random.below(5) == 0 {
            record.body = Body::Tombstone;
        }
        record
    }

    fn merge(&mut self) {
        let count = 1 + self.random.below(5);
        let batch: Vec<Record> = (0..count).map(|_| self.any_record()).collect();
        let mut after = self.visible.clone();
        let mut winners = Vec::new();
        let mut expected = Vec::new();
        for record in &batch {
            let outcome = after.judge(record);
            expected.push(outcome);
            if outcome == Merged::Applied {
                after.apply(record);
                winners.push(record.clone());
            }
        }
        let Some(store) = &mut self.store else { return };
        match store.merge(&batch) {
            Ok(outcomes) => {
                assert_eq!(outcomes, expected, "seed {}", self.seed);
                self.history.extend(winners);
                self.acknowledged = self.history.len();
                self.visible = after;
                if self.bench.options.fsync == FsyncPolicy::Always {
                    self.synced();
                }
            }
            Err(StoreError::Behind { .. } | StoreError::Full | StoreError::Engine(_)) => {}
            Err(StoreError::Poisoned { .. }) => {
                // Nobody knows how much of it is in the log.
                self.history.extend(winners);
                self.crash();
            }
            Err(error) => panic!("seed {}: {error}", self.seed),
        }
    }

    /// Everything acknowledged is known to be durable.
    fn synced(&mut self) {
        self.durable = self.visible.clone();
        self.history.drain(..self.acknowledged);
        self.acknowledged = 0;
    }

    fn crash(&mut self) {
        self.crashes += 1;
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
        let at_least = if lost_power { 0 } else { self.acknowledged };
        let mut state = self.durable.clone();
        let mut matches = at_least == 0 && state == found;
        for (index, record) in self.history.iter().enumerate() {
            state.apply(record);
            matches |= index + 1 >= at_least && state == found;
        }
        assert!(
            matches,
            "seed {}: found {found:?}\nis not {:?}\nand the first of (at least {at_least}) {:?}",
            self.seed,
            self.durable,
            self.history.iter().map(brief).collect::<Vec<_>>()
        );
        self.history.clear();
        self.acknowledged = 0;
        self.visible = found.clone();
        self.durable = found;
        self.store = Some(store);
    }

    /// Everything that can be read.
    fn content(&mut self, reader: &StoreReader) -> Content {
        let mut content = Content::default();
        let limit = 1 + self.random.below(5) as usize;
        for partition in 0..PARTITIONS {
            let mut after: Option<Bytes> = None;
            loop {
                let page = reader.scan(PartitionId(partition), after.as_deref(), limit);
                let page = page.unwrap();
                after = page.last().map(|record| record.key.clone());
                let ended = page.len() < limit;
                for record in page {
                    assert_eq!(partition_of(&record.key, PARTITIONS).0, partition);
                    let twice = content.records.insert(record.key.clone(), record);
                    assert_eq!(twice, None, "seed {}", self.seed);
                }
                if ended {
                    break;
                }
            }
        }
        for n in 0..KEYS {
            let key = Bytes::from(format!("key-{n}"));
            let got = reader.get(&key).unwrap();
            assert_eq!(
                got.as_ref(),
                content.records.get(&key),
                "seed {}",
                self.seed
            );
            if let Lookup::Found(record) = reader.get_in_memory(&key) {
                assert_eq!(Some(record), got);
            }
        }
        for epoch in (0..=HLC_MAX / 100).map(Epoch) {
            let all = reader.index_rows(epoch, RowRange::All).unwrap();
            let parts = (0..PARTITIONS).flat_map(|partition| {
                let range = RowRange::Partition(PartitionId(partition));
                reader.index_rows(epoch, range).unwrap()
            });
            assert_eq!(parts.collect::<Vec<_>>(), all, "seed {}", self.seed);
            for row in all {
                content.rows.insert((epoch, row.key), row.version);
            }
        }
        content
    }

    fn check(&mut self) {
        if let Some(reader) = self.store.as_ref().map(Store::reader) {
            // A planned crash point does not stop reads of tables and engine, but those of run
            // files once it is reached.
            if !self.bench.disk.is_stopped() {
                assert_eq!(self.content(&reader), self.visible, "seed {}", self.seed);
            }
        }
    }

    fn step(&mut self) {
        if self.bench.disk.is_stopped() {
            return self.crash();
        }
        let outcome = match self.random.below(100) {
            0..45 => return self.merge(),
            45..72 => self.work(),
            72..75 => self.sync(),
            75..80 => return self.check(),
            80..91 => return self.plan_fault(),
            91..93 => return self.fill_the_disk(),
            93..95 => return self.close(),
            _ => return self.crash(),
        };
        match outcome {
            Ok(()) | Err(StoreError::Behind { .. } | StoreError::Full) => {}
            Err(StoreError::Poisoned { .. }) => self.crash(),
            Err(error) => panic!("seed {}: {error}", self.seed),
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
                self.epoch += 1;
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
    let (mut crashes, mut flushes, mut applied) = (0, 0, 0);
    for seed in seeds {
        let mut life = Life::new(seed, fsync);
        for _ in 0..120 {
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
        crashes += life.crashes;
    }
    // The lives were worth living.
    assert!(crashes > 500 && flushes > 3 && applied > 20);
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
