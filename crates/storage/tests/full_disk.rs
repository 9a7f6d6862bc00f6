//! The engines on disk and the store above them on a disk that gets full or breaks, on real files: what no
//! simulated disk shows, because engines bring their own way to files.
//!
//! Each test starts this very program again with the faulty disk preloaded (`faulty_disk/shim.rs`), and the
//! test within it does the work.

// A test's helpers may fail like the test itself.
#![allow(clippy::unwrap_used)]

mod faulty_disk;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use faulty_disk::FaultyDisk;
use mds_storage::engine::{EngineKind, EngineOptions, open_with};
use mds_storage::{Engine, EngineError, RealDisk, Store, StoreError, StoreOptions};
use mds_types::{Body, Epoch, Hlc, NodeId, Record, Version};

/// Where the program within finds its directory.
const ROOM_VARIABLE: &str = "MDS_TEST_FAULTY_ROOM";

/// How often a run is handed over again before the test gives up.
const ATTEMPTS_MAX: usize = 10;

/// Runs the ignored test of this name on a faulty disk.
fn on_a_faulty_disk(name: &str) {
    let root = tempfile::tempdir().unwrap();
    let Some(environment) = faulty_disk::environment(root.path()) else {
        return;
    };
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .envs(environment)
        .env(ROOM_VARIABLE, root.path().canonicalize().unwrap())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    println!("{said}");
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}"
    );
}

/// Within: the home, or nothing if the test was called by itself.
fn home() -> Option<PathBuf> {
    Some(PathBuf::from(std::env::var_os(ROOM_VARIABLE)?).join("home"))
}

/// The engines that write to disk and are built in.
fn engines() -> Vec<EngineKind> {
    let mut kinds = vec![EngineKind::Fjall];
    if cfg!(feature = "engine-leveldb") {
        kinds.push(EngineKind::LevelDb);
    }
    kinds
}

fn open(kind: EngineKind, path: &Path) -> Arc<dyn Engine> {
    open_with(kind, path, &EngineOptions::default()).unwrap()
}

/// Keys with small values and some that are stored apart.
fn ingest(engine: &dyn Engine, round: u8) -> Result<(), EngineError> {
    let mut run = (0..40u32).map(|number| {
        let length = if number % 8 == 0 { 3_000 } else { 50 };
        let value = Bytes::from(vec![round; length]);
        (Bytes::from(format!("key-{number:03}")), Some(value))
    });
    engine.ingest(&mut run)
}

/// The rounds whose values are there, by key.
fn rounds(engine: &dyn Engine) -> Vec<u8> {
    let page = engine.scan(b"", b"z", usize::MAX, usize::MAX).unwrap();
    page.pairs.iter().map(|(_, value)| value[0]).collect()
}

#[test]
fn an_engine_goes_on_wherever_the_disk_was_full() {
    on_a_faulty_disk("within_an_engine_goes_on_wherever_the_disk_was_full");
}

#[test]
#[ignore = "run by the test of the same name, on a faulty disk"]
fn within_an_engine_goes_on_wherever_the_disk_was_full() {
    let Some(home) = home() else { return };
    let disk = FaultyDisk::new(&home);
    for kind in engines() {
        let path = home.join("data").join(kind.name());
        let mut engine = open(kind, &path);
        ingest(&*engine, 0).unwrap();
        let mut round = 0;
        let mut refused = 0;
        for room in (0..).step_by(700) {
            round = (round + 1) % 250;
            disk.set_room(Some(room));
            let taken = ingest(&*engine, round);
            let is_taken = taken.is_ok();
            if let Err(error) = taken {
                refused += 1;
                assert!(error.is_full(), "room {room}: {error}");
                // It reads what it had, or key by key what it has got, and is not waited for.
                let found = rounds(&*engine);
                assert_eq!(found.len(), 40);
                assert!(
                    found.iter().all(|&r| r == round || r == round - 1),
                    "{found:?}"
                );
                assert!(!engine.is_behind());
                // As long as the disk is full this does not change.
                disk.set_room(Some(0));
                assert!(ingest(&*engine, round).unwrap_err().is_full());
                disk.set_room(None);
                ingest(&*engine, round).unwrap();
            }
            disk.set_room(None);
            assert_eq!(rounds(&*engine), [round; 40]);
            if is_taken {
                break;
            }
            if refused % 8 == 0 {
                engine.close().unwrap();
                drop(engine);
                engine = open(kind, &path);
                assert_eq!(rounds(&*engine), [round; 40]);
            }
        }
        println!(
            "{kind}: {refused} places at which the disk was full; {:?}",
            disk.counts()
        );
        assert!(refused > 10, "the disk was never full");
        engine.close().unwrap();
    }
    let counts = disk.counts();
    assert!(
        counts.writes > 0 && counts.writes_refused > 0 && counts.syncs > 0,
        "{counts:?}"
    );
}

#[test]
fn an_engine_stays_stopped_after_a_failed_sync() {
    on_a_faulty_disk("within_an_engine_stays_stopped_after_a_failed_sync");
}

#[test]
#[ignore = "run by the test of the same name, on a faulty disk"]
fn within_an_engine_stays_stopped_after_a_failed_sync() {
    let Some(home) = home() else { return };
    let disk = FaultyDisk::new(&home);
    for kind in engines() {
        let path = home.join("data").join(kind.name());
        let engine = open(kind, &path);
        ingest(&*engine, 1).unwrap();
        disk.set_syncs_fail(true);
        let error = ingest(&*engine, 2).unwrap_err();
        assert!(
            matches!(error, EngineError::Io(_)) && !error.is_full(),
            "{error}"
        );
        disk.set_syncs_fail(false);
        for _ in 0..3 {
            let error = ingest(&*engine, 2).unwrap_err();
            assert!(matches!(error, EngineError::Stopped(_)), "{error}");
        }
        assert_eq!(rounds(&*engine).len(), 40, "it reads on");
        drop(engine);
        let engine = open(kind, &path);
        ingest(&*engine, 2).unwrap();
        assert_eq!(rounds(&*engine), [2; 40]);
    }
    assert!(disk.counts().syncs_failed > 0);
}

/// Runs until compaction has work as well, on a disk that is full again and again.
#[test]
fn background_work_that_finds_the_disk_full_is_made_good() {
    on_a_faulty_disk("within_background_work_that_finds_the_disk_full_is_made_good");
}

#[test]
#[ignore = "run by the test of the same name, on a faulty disk"]
fn within_background_work_that_finds_the_disk_full_is_made_good() {
    let Some(home) = home() else { return };
    let disk = FaultyDisk::new(&home);
    for kind in engines() {
        let engine = open(kind, &home.join("data").join(kind.name()));
        let mut refused = 0;
        for round in 1..=60 {
            // Enough for one or two runs, or for compacting some.
            if round % 3 == 1 {
                disk.set_room(Some(50_000 + 1_000 * u64::from(round)));
            }
            // With so much room the second attempt fails at most for what background work found.
            for _ in 0..ATTEMPTS_MAX {
                let Err(error) = ingest(&*engine, round) else {
                    break;
                };
                assert!(error.is_full(), "round {round}: {error}");
                refused += 1;
                disk.set_room(Some(200_000));
            }
            assert_eq!(rounds(&*engine), [round; 40]);
        }
        println!("{kind}: refused {refused} times; {:?}", disk.counts());
        disk.set_room(None);
        let closed = engine.close();
        assert!(closed.is_ok(), "{closed:?}");
        drop(engine);
        let engine = open(kind, &home.join("data").join(kind.name()));
        assert_eq!(rounds(&*engine), [60; 40]);
        assert!(refused > 0);
    }
}

fn record(key: &str, hlc: u64, bytes: usize) -> Record {
    Record {
        key: Bytes::copy_from_slice(key.as_bytes()),
        version: Version {
            hlc: Hlc(hlc),
            node: NodeId(1),
        },
        epoch: Epoch(1),
        expires_at_ms: None,
        body: Body::Value(Bytes::from(vec![b'v'; bytes])),
    }
}

#[test]
fn a_store_flushes_on_when_there_is_room_and_loses_nothing() {
    on_a_faulty_disk("within_a_store_flushes_on_when_there_is_room_and_loses_nothing");
}

#[test]
#[ignore = "run by the test of the same name, on a faulty disk"]
fn within_a_store_flushes_on_when_there_is_room_and_loses_nothing() {
    let Some(home) = home() else { return };
    let faults = FaultyDisk::new(&home);
    let root = home.join("data");
    std::fs::create_dir_all(&root).unwrap();
    let open_store = || {
        let engine = open(EngineKind::Fjall, &root.join("engine"));
        let options = StoreOptions {
            segment_bytes_max: 64 * 1024,
            ..StoreOptions::default()
        };
        Store::open(Arc::new(RealDisk::new(root.clone())), engine, options).unwrap()
    };
    let mut store = open_store();
    let (reader, flusher) = (store.reader(), store.flusher());
    let mut acknowledged = Vec::new();
    let mut found_full = 0;
    for cycle in 0..6u64 {
        faults.set_room(Some(40_000 + 37_000 * cycle));
        for number in 0..400 {
            let key = format!("key-{cycle}-{number}");
            match store.merge(&[record(&key, 1_000 * cycle + number + 1, 900)]) {
                Ok(_) => acknowledged.push(key),
                Err(StoreError::Full | StoreError::Behind { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            match flusher.work() {
                Ok(_) => {}
                Err(StoreError::Full) => found_full += 1,
                Err(error) => panic!("{error}"),
            }
        }
        let sample = acknowledged.iter().step_by(7);
        for key in sample {
            assert!(
                reader.get(key.as_bytes()).unwrap().is_some(),
                "{key}, on a full disk"
            );
        }
        faults.set_room(None);
        while flusher.work().unwrap() {}
        assert!(!store.wants_flush());
    }
    for key in &acknowledged {
        assert!(reader.get(key.as_bytes()).unwrap().is_some(), "{key}");
    }
    println!("{} acknowledged; {:?}", acknowledged.len(), faults.counts());
    assert!(found_full > 0 && faults.counts().writes_refused > 0);
    store.close().unwrap();
    drop((reader, flusher));
    let reader = open_store().reader();
    for key in &acknowledged {
        assert!(
            reader.get(key.as_bytes()).unwrap().is_some(),
            "{key}, after a restart"
        );
    }
}
