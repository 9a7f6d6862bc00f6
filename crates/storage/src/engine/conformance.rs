//! The contract of [`Engine`], checked on every engine, on its real files.
//!
//! One function for each clause, run for each engine by the [`suite`] macro below.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;

use super::*;

type Model = BTreeMap<Bytes, Bytes>;
type Run = BTreeMap<Bytes, Option<Bytes>>;

/// Greater than every key that the suite uses.
const END: &[u8] = &[0xff; 16];

/// Removes all keys.
fn drop_all(engine: &dyn Engine) -> Result<(), EngineError> {
    engine.drop_ranges(&[(Bytes::new(), Bytes::from_static(END))])
}

/// How long something that must happen in the background may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A place where one engine lives, closes, crashes and comes back.
struct Home {
    kind: EngineKind,
    root: TempDir,
    memory: MemoryEngine,
    copies: u64,
}

impl Home {
    fn new(kind: EngineKind) -> Home {
        Home {
            kind,
            root: TempDir::new().unwrap(),
            memory: MemoryEngine::new(),
            copies: 0,
        }
    }

    fn path(&self) -> PathBuf {
        self.root.path().join(format!("engine-{}", self.copies))
    }

    fn open(&self) -> Arc<dyn Engine> {
        match self.kind {
            EngineKind::Memory => Arc::new(self.memory.clone()),
            kind => open_with(kind, &self.path(), &EngineOptions::default()).unwrap(),
        }
    }

    fn fresh_path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// What a killed process would leave behind: a copy of the directory, taken while the engine has
    /// it open. From now on the engine lives there.
    fn crash(&mut self) -> Arc<dyn Engine> {
        let from = self.path();
        self.copies += 1;
        if self.kind != EngineKind::Memory {
            copy_between_changes(&from, &self.path());
        }
        self.open()
    }

    fn is_on_disk(&self) -> bool {
        self.kind != EngineKind::Memory
    }
}

/// Names, lengths and times of all files below a directory.
fn listing(root: &Path) -> BTreeMap<PathBuf, (u64, Option<std::time::SystemTime>)> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            if let Ok(metadata) = entry.metadata() {
                if metadata.is_dir() {
                    directories.push(entry.path());
                } else {
                    found.insert(entry.path(), (metadata.len(), metadata.modified().ok()));
                }
            }
        }
    }
    found
}

/// Copies a directory as it was at one instant: again, as long as background work changes it.
fn copy_between_changes(from: &Path, to: &Path) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = listing(from);
        let mut whole = true;
        for path in before.keys() {
            let target = to.join(path.strip_prefix(from).unwrap());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            whole &= fs::copy(path, target).is_ok();
        }
        if whole && listing(from) == before {
            // Directories without files are part of the state as well.
            copy_empty_directories(from, to);
            return;
        }
        assert!(Instant::now() < deadline, "the engine never comes to rest");
        fs::remove_dir_all(to).unwrap();
    }
}

fn copy_empty_directories(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            copy_empty_directories(&entry.path(), &to.join(entry.file_name()));
        }
    }
}

fn ingest(engine: &dyn Engine, run: &Run) -> Result<(), EngineError> {
    engine.ingest(&mut run.iter().map(|(key, value)| (key.clone(), value.clone())))
}

fn apply(model: &mut Model, run: &Run) {
    for (key, value) in run {
        match value {
            Some(value) => model.insert(key.clone(), value.clone()),
            None => model.remove(key),
        };
    }
}

fn everything(engine: &dyn Engine) -> Model {
    engine
        .scan(b"", END, usize::MAX, usize::MAX)
        .unwrap()
        .pairs
        .into_iter()
        .collect()
}

/// A run of `count` keys, all with the same value.
fn uniform_run(count: usize, value: &[u8]) -> Run {
    let value = Bytes::copy_from_slice(value);
    (0..count)
        .map(|i| (Bytes::from(format!("key-{i:05}")), Some(value.clone())))
        .collect()
}

/// Few enough keys that runs overlap, with all the bytes that could be special.
fn any_key() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(prop::sample::select(vec![0u8, 1, b'a', 0x7f, 0xff]), 1..4)
        .prop_map(Bytes::from)
}

/// Absent, empty, small, and stored apart from its key.
fn any_value() -> impl Strategy<Value = Option<Bytes>> {
    prop_oneof![
        2 => Just(None),
        1 => Just(Some(Bytes::new())),
        4 => prop::collection::vec(any::<u8>(), 1..20).prop_map(|value| Some(Bytes::from(value))),
        2 => (any::<u8>(), 1_000usize..40_000)
            .prop_map(|(byte, length)| Some(Bytes::from(vec![byte; length]))),
    ]
}

#[derive(Clone, Debug)]
enum Op {
    Ingest(Run),
    DropRanges(Vec<KeyRange>),
    Get(Bytes),
    Scan(Bytes, Bytes, usize, usize),
    Reopen,
    Crash,
    Checkpoint,
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => prop::collection::btree_map(any_key(), any_value(), 0..12).prop_map(Op::Ingest),
        2 => prop::collection::vec(any_key(), 2..5).prop_map(|mut ends| {
            // Ascending, one after another; sometimes an empty one, and one that ends before it begins.
            ends[1..].sort_unstable();
            let ranges = ends.chunks_exact(2);
            Op::DropRanges(ranges.map(|ends| (ends[0].clone(), ends[1].clone())).collect())
        }),
        4 => any_key().prop_map(Op::Get),
        4 => (any_key(), any_key(), 0usize..20, any_bytes_max())
            .prop_map(|(a, b, limit, bytes_max)| Op::Scan(a, b, limit, bytes_max)),
        1 => Just(Op::Reopen),
        1 => Just(Op::Crash),
        1 => Just(Op::Checkpoint),
    ]
}

/// None, a few small pairs, a few large ones, all.
fn any_bytes_max() -> impl Strategy<Value = usize> {
    prop_oneof![0usize..60, 1_000usize..100_000, Just(usize::MAX)]
}

fn expected_scan(
    model: &Model,
    from: &Bytes,
    to: &Bytes,
    limit: usize,
    bytes_max: usize,
) -> EnginePage {
    let mut page = EnginePage::default();
    if from >= to {
        return page;
    }
    let mut bytes = 0;
    for (key, value) in model.range(from.clone()..to.clone()) {
        if page.pairs.len() == limit || (bytes >= bytes_max && !page.pairs.is_empty()) {
            page.more = true;
            break;
        }
        bytes += key.len() + value.len();
        page.pairs.push((key.clone(), value.clone()));
    }
    page
}

fn agrees_with_a_map(kind: EngineKind) {
    let cases = if kind == EngineKind::Memory { 200 } else { 8 };
    let mut runner = TestRunner::new(Config::with_cases(cases));
    runner
        .run(&prop::collection::vec(any_op(), 1..20), |ops| {
            let mut home = Home::new(kind);
            let mut engine = home.open();
            let mut model = Model::new();
            for (step, op) in ops.into_iter().enumerate() {
                match op {
                    Op::Ingest(run) => {
                        ingest(&*engine, &run).unwrap();
                        apply(&mut model, &run);
                    }
                    Op::DropRanges(ranges) => {
                        engine.drop_ranges(&ranges).unwrap();
                        let is_in =
                            |key: &Bytes| ranges.iter().any(|(from, to)| from <= key && key < to);
                        model.retain(|key, _| !is_in(key));
                    }
                    Op::Get(key) => {
                        prop_assert_eq!(engine.get(&key).unwrap(), model.get(&key).cloned());
                    }
                    Op::Scan(from, to, limit, bytes_max) => {
                        let page = engine.scan(&from, &to, limit, bytes_max).unwrap();
                        let expected = expected_scan(&model, &from, &to, limit, bytes_max);
                        prop_assert_eq!(page, expected);
                    }
                    Op::Reopen => {
                        engine.close().unwrap();
                        drop(engine);
                        engine = home.open();
                    }
                    Op::Crash => engine = home.crash(),
                    Op::Checkpoint => {
                        let to = home.fresh_path(&format!("checkpoint-{step}"));
                        engine.checkpoint(&to).unwrap();
                        let copy = open_with(kind, &to, &EngineOptions::default()).unwrap();
                        prop_assert_eq!(everything(&*copy), model.clone());
                    }
                }
            }
            prop_assert_eq!(everything(&*engine), model);
            Ok(())
        })
        .unwrap();
}

/// Several megabytes: more than one batch, more than one block, values of all sizes.
fn takes_a_large_run(kind: EngineKind) {
    let mut home = Home::new(kind);
    let engine = home.open();
    let mut model = Model::new();
    let mut run = uniform_run(20_000, &[7; 300]);
    for (i, value) in run.values_mut().enumerate().filter(|(i, _)| i % 100 == 0) {
        *value = Some(Bytes::from(vec![i as u8; i]));
    }
    ingest(&*engine, &run).unwrap();
    apply(&mut model, &run);
    let removals: Run = run
        .keys()
        .step_by(3)
        .map(|key| (key.clone(), None))
        .collect();
    ingest(&*engine, &removals).unwrap();
    apply(&mut model, &removals);
    assert!(
        everything(&*engine) == model,
        "content differs after a large run"
    );
    // A reader that pages gets the same, in order.
    let mut from = Bytes::new();
    let mut paged = Vec::new();
    loop {
        let page = engine.scan(&from, END, 1000, 50_000).unwrap().pairs;
        let Some((last, _)) = page.last() else { break };
        from = Bytes::from([last, &[0][..]].concat());
        paged.extend(page);
    }
    assert!(paged.into_iter().eq(model.clone()), "pages differ");
    assert!(engine.disk_bytes() > 1_000_000);
    let engine = home.crash();
    assert!(
        everything(&*engine) == model,
        "content differs after a crash"
    );
}

/// At every bound: one pair less, exactly, one byte more; values stored apart and empty ones.
fn a_scan_ends_with_the_pair_that_reaches_its_bytes(kind: EngineKind) {
    let home = Home::new(kind);
    let engine = home.open();
    let mut run = Run::new();
    for (i, length) in [0, 40_000, 10, 5_000, 0, 70_000].into_iter().enumerate() {
        let value = Bytes::from(vec![i as u8; length]);
        run.insert(Bytes::from(format!("key-{i}")), Some(value));
    }
    ingest(&*engine, &run).unwrap();
    // Neither a removed pair nor one beyond the range makes a scan go on.
    let removed: Run = [(Bytes::from("key-6"), None), (Bytes::from("other"), None)].into();
    let with_other: Run = removed
        .keys()
        .map(|k| (k.clone(), Some(k.clone())))
        .collect();
    ingest(&*engine, &with_other).unwrap();
    ingest(&*engine, &removed).unwrap();
    ingest(&*engine, &[(Bytes::from("z"), Some(Bytes::new()))].into()).unwrap();
    let mut model = Model::new();
    apply(&mut model, &run);
    let (from, to) = (Bytes::from("key-0"), Bytes::from("z"));
    let mut sums = vec![0];
    for (key, value) in &model {
        sums.push(sums.last().unwrap() + key.len() + value.len());
    }
    for sum in sums {
        for bytes_max in [sum.saturating_sub(1), sum, sum + 1] {
            for limit in 0..8 {
                let expected = expected_scan(&model, &from, &to, limit, bytes_max);
                let page = engine.scan(&from, &to, limit, bytes_max).unwrap();
                assert!(page == expected, "{limit} pairs, {bytes_max} bytes");
            }
        }
    }
}

fn a_visit_ends_when_the_visitor_says_so(kind: EngineKind) {
    let home = Home::new(kind);
    let engine = home.open();
    let run = uniform_run(10, &[7; 3_000]);
    ingest(&*engine, &run).unwrap();
    for stop_at in 1..=11 {
        let mut seen = Run::new();
        let unseen = engine
            .visit(b"", END, &mut |key, value| {
                seen.insert(Bytes::copy_from_slice(key), Some(value));
                seen.len() < stop_at
            })
            .unwrap();
        assert!(seen.iter().eq(run.iter().take(stop_at)));
        assert_eq!(unseen, stop_at < 10);
    }
    let mut calls = 0;
    let mut count = |_: &[u8], _: Bytes| {
        calls += 1;
        true
    };
    assert!(!engine.visit(b"z", b"a", &mut count).unwrap());
    assert!(!engine.visit(b"l", END, &mut count).unwrap());
    engine.close().unwrap();
    assert!(engine.visit(b"", END, &mut count).is_err());
    assert_eq!(calls, 0);
}

fn refuses_bad_runs_and_goes_on(kind: EngineKind) {
    let home = Home::new(kind);
    let engine = home.open();
    let item = |key: &[u8]| (Bytes::copy_from_slice(key), Some(Bytes::from_static(b"v")));
    let too_long = vec![b'k'; ENGINE_KEY_BYTES_MAX + 1];
    for keys in [
        vec![&b"b"[..], b"a"],
        vec![b"a", b"a"],
        vec![b""],
        vec![&too_long[..]],
    ] {
        let error = engine
            .ingest(&mut keys.iter().map(|key| item(key)))
            .unwrap_err();
        assert!(matches!(error, EngineError::BadRun(_)), "{error}");
    }
    engine.ingest(&mut std::iter::empty()).unwrap();
    let longest = &too_long[1..];
    engine
        .ingest(&mut [item(b"a"), item(longest)].into_iter())
        .unwrap();
    assert!(engine.get(longest).unwrap().is_some());
    assert!(engine.get(b"").unwrap().is_none());
    assert!(engine.scan(b"z", b"a", 10, 10).unwrap().pairs.is_empty());
    assert!(engine.scan(b"a", b"z", 0, 10).unwrap().pairs.is_empty());
}

/// Readers see, for each key, old values or new ones, never go back, and see a run as soon as its
/// ingestion has returned.
fn readers_see_whole_values_that_never_go_back(kind: EngineKind) {
    const KEYS: usize = 50;
    const GENERATIONS: u64 = 40;
    let home = Home::new(kind);
    let engine = home.open();
    let completed = AtomicU64::new(0);
    let value_of = |generation: u64| -> Vec<u8> {
        // Every other generation is stored apart from its key.
        let copies = if generation.is_multiple_of(2) { 1 } else { 300 };
        generation.to_be_bytes().repeat(copies)
    };
    let generation_of = |value: &[u8]| -> u64 {
        let generation = u64::from_be_bytes(value[..8].try_into().unwrap());
        assert_eq!(value, value_of(generation), "a value that nobody wrote");
        generation
    };
    ingest(&*engine, &uniform_run(KEYS, &value_of(0))).unwrap();
    thread::scope(|scope| {
        for reader in 0..2 {
            let (engine, completed) = (&*engine, &completed);
            scope.spawn(move || {
                let mut last = [0; KEYS];
                while completed.load(Ordering::SeqCst) < GENERATIONS {
                    let floor = completed.load(Ordering::SeqCst);
                    let pairs = if reader == 0 {
                        engine.scan(b"", END, KEYS, usize::MAX).unwrap().pairs
                    } else {
                        (0..KEYS)
                            .map(|i| {
                                let key = Bytes::from(format!("key-{i:05}"));
                                let value = engine.get(&key).unwrap().unwrap();
                                (key, value)
                            })
                            .collect()
                    };
                    assert_eq!(pairs.len(), KEYS);
                    for (i, (_, value)) in pairs.iter().enumerate() {
                        let generation = generation_of(value);
                        assert!(generation >= floor, "a completed run is not visible");
                        assert!(generation >= last[i], "a value went back");
                        last[i] = generation;
                    }
                }
            });
        }
        for generation in 1..=GENERATIONS {
            ingest(&*engine, &uniform_run(KEYS, &value_of(generation))).unwrap();
            completed.store(generation, Ordering::SeqCst);
        }
    });
}

/// Many overlapping runs: the engine catches up by itself, with nobody writing.
fn catches_up_in_the_background(kind: EngineKind) {
    let home = Home::new(kind);
    let engine = home.open();
    for i in 0..40u8 {
        ingest(&*engine, &uniform_run(100, &[i; 64])).unwrap();
    }
    let deadline = Instant::now() + PATIENCE;
    while engine.is_behind() {
        assert!(Instant::now() < deadline, "the engine does not catch up");
        thread::yield_now();
    }
    for (key, value) in uniform_run(100, &[39; 64]) {
        assert_eq!(engine.get(&key).unwrap(), value);
    }
}

fn fails_when_closed(kind: EngineKind) {
    let home = Home::new(kind);
    let engine = home.open();
    ingest(&*engine, &uniform_run(3, b"v")).unwrap();
    engine.close().unwrap();
    engine.close().unwrap();
    assert!(engine.get(b"key-00000").is_err());
    assert!(engine.scan(b"", END, 1, 1).is_err());
    assert!(ingest(&*engine, &uniform_run(1, b"w")).is_err());
    assert!(drop_all(&*engine).is_err());
    assert!(engine.checkpoint(&home.fresh_path("checkpoint")).is_err());
    assert!(!engine.is_behind());
    assert_eq!(everything(&*home.open()).len(), 3);
}

fn copies_only_into_an_empty_directory(kind: EngineKind) {
    let home = Home::new(kind);
    let engine = home.open();
    ingest(&*engine, &uniform_run(3, b"v")).unwrap();
    let to = home.fresh_path("taken");
    fs::create_dir(&to).unwrap();
    engine.checkpoint(&to).unwrap();
    let error = engine.checkpoint(&to).unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    let copy = open_with(kind, &to, &EngineOptions::default()).unwrap();
    assert_eq!(everything(&*copy), everything(&*engine));
}

/// A run may be read from the engine that takes it.
fn takes_a_run_that_is_read_from_itself(kind: EngineKind) {
    let home = Home::new(kind);
    let engine = home.open();
    ingest(&*engine, &uniform_run(10, b"v")).unwrap();
    let mut run = (0..10).map(|i| {
        let value = engine
            .get(format!("key-{i:05}").as_bytes())
            .unwrap()
            .unwrap();
        (Bytes::from(format!("new-{i:05}")), Some(value))
    });
    engine.ingest(&mut run).unwrap();
    let found = engine.scan(b"new", b"nex", 100, usize::MAX).unwrap();
    assert_eq!((found.pairs.len(), found.more), (10, false));
}

fn is_opened_once(kind: EngineKind) {
    let home = Home::new(kind);
    if !home.is_on_disk() {
        return;
    }
    let engine = home.open();
    let Err(error) = open_with(kind, &home.path(), &EngineOptions::default()) else {
        panic!("opened twice");
    };
    assert!(error.to_string().contains("another process"), "{error}");
    drop(engine);
    home.open();
}

/// Damage in the files of settled data is an error or harmless, never another answer.
fn a_flipped_byte_is_never_a_wrong_answer(kind: EngineKind) {
    let home = Home::new(kind);
    if !home.is_on_disk() {
        return;
    }
    let engine = home.open();
    let mut model = Model::new();
    for run in [uniform_run(50, &[1; 100]), uniform_run(5, &[2; 5_000])] {
        ingest(&*engine, &run).unwrap();
        apply(&mut model, &run);
    }
    // Opened a second time, so that LevelDB turns its log into a table: the end of a log cannot be
    // told from one that was cut by a crash, in any engine.
    engine.close().unwrap();
    home.open().close().unwrap();
    let files: Vec<PathBuf> = listing(&home.path())
        .into_iter()
        .filter(|(path, (bytes, _))| {
            let name = path.file_name().unwrap().to_string_lossy();
            let is_table = path.to_string_lossy().contains("keyspaces/1/")
                && (path.parent().unwrap().ends_with("tables")
                    || path.parent().unwrap().ends_with("blobs"));
            *bytes > 0 && (is_table || name.ends_with(".ldb"))
        })
        .map(|(path, _)| path)
        .collect();
    assert!(!files.is_empty());
    let noticed = AtomicU64::new(0);
    let mut runner = TestRunner::new(Config::with_cases(16));
    runner
        .run(
            &(
                any::<prop::sample::Index>(),
                any::<prop::sample::Index>(),
                1u8..,
            ),
            |(file, at, flip)| {
                let damaged = TempDir::new().unwrap();
                copy_between_changes(&home.path(), damaged.path());
                let file = file.get(&files);
                let target = damaged.path().join(file.strip_prefix(home.path()).unwrap());
                let mut bytes = fs::read(&target).unwrap();
                let at = at.index(bytes.len());
                bytes[at] ^= flip;
                fs::write(&target, bytes).unwrap();
                let Ok(engine) = open_with(kind, damaged.path(), &EngineOptions::default()) else {
                    noticed.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                };
                for (key, value) in &model {
                    match engine.get(key) {
                        Ok(found) => {
                            prop_assert_eq!(found.as_ref(), Some(value), "{:?} at {}", target, at);
                        }
                        Err(_) => {
                            noticed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
                if let Ok(found) = engine.scan(b"", END, usize::MAX, usize::MAX) {
                    let whole = found.pairs.into_iter().eq(model.clone());
                    prop_assert!(whole, "scan with {:?} at {}", target, at);
                }
                Ok(())
            },
        )
        .unwrap();
    assert!(noticed.into_inner() > 0, "no damage was ever noticed");
}

/// After a failed ingestion the engine takes no run, whatever the disk says then; reopened, it does.
fn takes_no_run_after_a_failed_one(kind: EngineKind) {
    let home = Home::new(kind);
    if !home.is_on_disk() {
        return;
    }
    let engine = home.open();
    let mut model = Model::new();
    let before = uniform_run(20, b"before");
    ingest(&*engine, &before).unwrap();
    apply(&mut model, &before);
    // The directory is not where it was: files cannot be created in it, nor can it be synced.
    let elsewhere = home.fresh_path("elsewhere");
    fs::rename(home.path(), &elsewhere).unwrap();
    let failed: Run = [(Bytes::from("failed"), Some(Bytes::from("run")))].into();
    let error = ingest(&*engine, &failed).unwrap_err();
    assert!(matches!(error, EngineError::Io(_)), "{error}");
    fs::rename(&elsewhere, home.path()).unwrap();
    let error = ingest(&*engine, &failed).unwrap_err();
    assert!(matches!(error, EngineError::Stopped(_)), "{error}");
    assert!(drop_all(&*engine).is_err());
    assert!(
        !engine.is_behind(),
        "nobody should wait for a failed engine"
    );
    assert_eq!(
        engine.get(b"key-00000").unwrap(),
        Some(Bytes::from("before"))
    );
    drop(engine);
    let engine = home.open();
    ingest(&*engine, &failed).unwrap();
    apply(&mut model, &failed);
    assert_eq!(everything(&*engine), model);
}

/// An engine that finds no room for a part of its runs, and keeps the contract then: the part before is
/// there, and no run is taken until it is opened anew.
struct Cramped {
    engine: Arc<dyn Engine>,
    room: Arc<Room>,
    failed: AtomicBool,
}

#[derive(Default)]
struct Room {
    /// Items that fit before the disk is full; negative: all.
    items: AtomicI64,
    /// The failure is a failed sync instead.
    is_broken: AtomicBool,
    opened: AtomicU64,
}

impl Cramped {
    fn error(&self) -> EngineError {
        if self.room.is_broken.load(Ordering::SeqCst) {
            return EngineError::Io(io::Error::other("injected failed sync"));
        }
        EngineError::Io(io::Error::new(io::ErrorKind::QuotaExceeded, "injected"))
    }
}

impl Engine for Cramped {
    fn name(&self) -> &'static str {
        self.engine.name()
    }

    fn ingest(&self, run: &mut dyn Iterator<Item = RunItem>) -> Result<(), EngineError> {
        let items = self.room.items.load(Ordering::SeqCst);
        if self.failed.load(Ordering::SeqCst) {
            // Whether there is room by now or not.
            return Err(if self.room.is_broken.load(Ordering::SeqCst) {
                EngineError::Stopped("injected".to_owned())
            } else {
                self.error()
            });
        }
        let Ok(items) = usize::try_from(items) else {
            return self.engine.ingest(run);
        };
        self.failed.store(true, Ordering::SeqCst);
        self.engine.ingest(&mut run.take(items))?;
        Err(self.error())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.engine.get(key)
    }

    fn visit(
        &self,
        from: &[u8],
        to: &[u8],
        visitor: &mut dyn FnMut(&[u8], Bytes) -> bool,
    ) -> Result<bool, EngineError> {
        self.engine.visit(from, to, visitor)
    }

    fn drop_ranges(&self, ranges: &[KeyRange]) -> Result<(), EngineError> {
        self.engine.drop_ranges(ranges)
    }

    fn disk_bytes(&self) -> u64 {
        self.engine.disk_bytes()
    }

    fn checkpoint(&self, to: &Path) -> Result<(), EngineError> {
        self.engine.checkpoint(to)
    }

    fn close(&self) -> Result<(), EngineError> {
        self.engine.close()
    }
}

/// The engine, bare, in a small room and behind what reopens it.
fn cramped(home: &Home, room: &Arc<Room>) -> ReopeningEngine {
    let (kind, path, memory) = (home.kind, home.path(), home.memory.clone());
    let room = Arc::clone(room);
    ReopeningEngine::open(Box::new(move || {
        room.opened.fetch_add(1, Ordering::SeqCst);
        let engine: Arc<dyn Engine> = match kind {
            EngineKind::Memory => Arc::new(memory.clone()),
            kind => open_with(kind, &path, &EngineOptions::default())?,
        };
        Ok(Box::new(Cramped {
            engine,
            room: Arc::clone(&room),
            failed: AtomicBool::new(false),
        }))
    }))
    .unwrap()
}

/// Wherever in a run the room ends: reads go on, and the same run, once there is room, is taken by the
/// engine opened anew.
fn goes_on_when_a_full_disk_has_room(kind: EngineKind) {
    for items in [0, 1, 7, 19, 20] {
        let home = Home::new(kind);
        let room = Arc::new(Room::default());
        room.items.store(-1, Ordering::SeqCst);
        let engine = cramped(&home, &room);
        let (before, after) = (uniform_run(20, b"before"), uniform_run(20, &[7; 2_000]));
        ingest(&engine, &before).unwrap();
        room.items.store(items, Ordering::SeqCst);
        for _ in 0..3 {
            let error = ingest(&engine, &after).unwrap_err();
            assert!(error.is_full(), "{error}");
            for (key, value) in &before {
                let found = engine.get(key).unwrap();
                assert!(found == *value || found == after[key], "{found:?}");
            }
        }
        assert!(!engine.is_behind());
        room.items.store(-1, Ordering::SeqCst);
        ingest(&engine, &after).unwrap();
        let mut model = Model::new();
        apply(&mut model, &after);
        assert_eq!(everything(&engine), model);
        // Opened anew by each run after a failed one, and by nothing else.
        assert_eq!(engine.reopenings(), 3);
        drop_all(&engine).unwrap();
        engine.close().unwrap();
        assert!(ingest(&engine, &after).is_err(), "closed is closed");
        assert_eq!(room.opened.load(Ordering::SeqCst), 4);
        drop(engine);
        assert_eq!(everything(&*home.open()), Model::new());
    }
}

/// After a failed sync there is no reopening, whatever room there is.
fn stays_stopped_after_a_failed_sync(kind: EngineKind) {
    let home = Home::new(kind);
    let room = Arc::new(Room::default());
    room.is_broken.store(true, Ordering::SeqCst);
    let engine = cramped(&home, &room);
    let run = uniform_run(20, b"value");
    for _ in 0..3 {
        let error = ingest(&engine, &run).unwrap_err();
        assert!(!error.is_full(), "{error}");
        room.items.store(-1, Ordering::SeqCst);
    }
    assert_eq!(engine.reopenings(), 0);
}

/// While it is opened anew, readers find it as it was or as it will be, never closed.
fn readers_see_nothing_of_a_reopening(kind: EngineKind) {
    let home = Home::new(kind);
    let room = Arc::new(Room::default());
    room.items.store(-1, Ordering::SeqCst);
    let engine = cramped(&home, &room);
    let run = uniform_run(20, b"value");
    ingest(&engine, &run).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut reads = 0u64;
                while !is_over.load(Ordering::SeqCst) || reads == 0 {
                    assert_eq!(everything(&engine).len(), 20);
                    assert!(engine.get(b"key-00003").unwrap().is_some());
                    assert!(engine.disk_bytes() < u64::MAX);
                    reads += 1;
                }
            });
        }
        while engine.reopenings() < 5 {
            room.items.store(3, Ordering::SeqCst);
            assert!(ingest(&engine, &run).unwrap_err().is_full());
            room.items.store(-1, Ordering::SeqCst);
            // Put off while readers are in the way.
            let deadline = Instant::now() + PATIENCE;
            while let Err(error) = ingest(&engine, &run) {
                assert!(error.is_full() && Instant::now() < deadline, "{error}");
            }
        }
        is_over.store(true, Ordering::SeqCst);
    });
}

/// A memory engine that fails is repaired by the same run again, as the contract says of a crash.
#[test]
fn an_interrupted_ingestion_is_repaired_by_the_same_run() {
    let mut runner = TestRunner::new(Config::with_cases(200));
    let runs = prop::collection::vec(
        (
            prop::collection::btree_map(any_key(), any_value(), 0..12),
            0usize..12,
        ),
        1..10,
    );
    runner
        .run(&runs, |runs| {
            let engine = MemoryEngine::new();
            let mut model = Model::new();
            for (run, fails_after) in runs {
                engine.fail_next_ingest_after(fails_after);
                prop_assert!(ingest(&engine, &run).is_err());
                let mut new = model.clone();
                apply(&mut new, &run);
                // In between: for each key the old value or the new one.
                for key in model.keys().chain(run.keys()) {
                    let found = engine.get(key).unwrap();
                    prop_assert!(
                        found.as_ref() == model.get(key) || found.as_ref() == new.get(key)
                    );
                }
                ingest(&engine.clone(), &run).unwrap();
                model = new;
                prop_assert_eq!(everything(&engine), model.clone());
            }
            Ok(())
        })
        .unwrap();
}

macro_rules! suite {
    ($engine:ident, $kind:expr, [$($clause:ident),* $(,)?]) => {
        mod $engine {
            use super::EngineKind;
            $(
                #[test]
                fn $clause() {
                    super::$clause($kind);
                }
            )*
        }
    };
    ($engine:ident, $kind:expr) => {
        suite!($engine, $kind, [
            agrees_with_a_map,
            takes_a_large_run,
            a_scan_ends_with_the_pair_that_reaches_its_bytes,
            a_visit_ends_when_the_visitor_says_so,
            refuses_bad_runs_and_goes_on,
            readers_see_whole_values_that_never_go_back,
            catches_up_in_the_background,
            fails_when_closed,
            copies_only_into_an_empty_directory,
            takes_a_run_that_is_read_from_itself,
            is_opened_once,
            takes_no_run_after_a_failed_one,
            goes_on_when_a_full_disk_has_room,
            stays_stopped_after_a_failed_sync,
            readers_see_nothing_of_a_reopening,
            a_flipped_byte_is_never_a_wrong_answer,
        ]);
    };
}

suite!(memory, EngineKind::Memory);
suite!(fjall, EngineKind::Fjall);
#[cfg(feature = "engine-leveldb")]
suite!(leveldb, EngineKind::LevelDb);
