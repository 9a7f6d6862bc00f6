//! What only fjall has: creations that were cut short, values stored apart, level 0.

use super::*;

fn open(path: &Path) -> Result<FjallEngine, EngineError> {
    FjallEngine::open(path, &EngineOptions::default())
}

fn item(key: &'static str) -> RunItem {
    (Bytes::from(key), Some(Bytes::from("value")))
}

/// Every state that a crash within the creation of a database can leave is a fresh directory.
#[test]
fn a_creation_that_was_cut_short_is_done_again() {
    let leftovers: [&[&str]; 5] = [
        &[],
        &["lock"],
        &["lock", "keyspaces/"],
        &["lock", "keyspaces/", "0.jnl"],
        &["lock", "keyspaces/", "0.jnl", "version"],
    ];
    for names in leftovers {
        let directory = tempfile::tempdir().unwrap();
        for name in names {
            let path = directory.path().join(name);
            if name.ends_with('/') {
                fs::create_dir(path).unwrap();
            } else {
                fs::write(path, b"").unwrap();
            }
        }
        let engine = open(directory.path()).unwrap();
        engine.ingest(&mut [item("a")].into_iter()).unwrap();
        drop(engine);
        assert!(open(directory.path()).unwrap().get(b"a").unwrap().is_some());
    }
}

/// A value beyond a scan's bounds is not read: damage in it shows only when it is asked for.
#[test]
fn values_beyond_the_bounds_of_a_scan_are_not_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path()).unwrap();
    for (key, byte) in [("a", 0x5a), ("b", 0xa5)] {
        let value = Bytes::from(vec![byte; 100_000]);
        engine
            .ingest(&mut [(Bytes::from(key), Some(value))].into_iter())
            .unwrap();
    }
    let blobs = engine
        .call(|open| Ok(open.records.path().join(BLOBS_DIRECTORY)))
        .unwrap();
    drop(engine);
    for entry in fs::read_dir(blobs).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        // The second value lies in a file of its own, or behind the first.
        if let Some(at) = bytes.windows(64).position(|window| window == [0xa5; 64]) {
            bytes[at + 1_000] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    let engine = open(directory.path()).unwrap();
    for (limit, bytes_max) in [(1, usize::MAX), (2, 1), (2, 100_001)] {
        let page = engine.scan(b"a", b"z", limit, bytes_max).unwrap();
        assert_eq!((page.pairs.len(), page.more), (1, true));
    }
    assert!(engine.scan(b"a", b"z", 2, 100_002).is_err());
    assert!(engine.get(b"b").is_err());
}

/// What has data but no marker is damaged, and left as it is.
#[test]
fn data_without_a_version_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path()).unwrap();
    engine.ingest(&mut [item("a")].into_iter()).unwrap();
    drop(engine);
    let marker = directory.path().join(VERSION_MARKER);
    let kept = directory.path().join("kept");
    fs::rename(&marker, &kept).unwrap();
    let Err(error) = open(directory.path()) else {
        panic!("opened without a version marker");
    };
    assert!(matches!(error, EngineError::Corrupt(_)), "{error}");
    fs::rename(&kept, &marker).unwrap();
    assert!(open(directory.path()).unwrap().get(b"a").unwrap().is_some());
}

/// Compaction needs no further run to go on: level 0 empties by itself.
#[test]
fn level_0_is_compacted_by_our_own_thread() {
    let directory = tempfile::tempdir().unwrap();
    let engine = open(directory.path()).unwrap();
    for _ in 0..2 * L0_RUNS_BEHIND {
        engine
            .ingest(&mut [item("a"), item("b")].into_iter())
            .unwrap();
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let runs = || {
        engine
            .call(|open| Ok(open.records.tree.l0_run_count()))
            .unwrap()
    };
    while runs() >= 4 {
        assert!(
            std::time::Instant::now() < deadline,
            "{} runs in level 0",
            runs()
        );
        thread::yield_now();
    }
    assert!(engine.background_progress() > 0);
}

#[test]
fn a_panic_inside_fjall_is_an_error() {
    let error = unwound(|| -> Result<(), EngineError> { panic!("{} is odd", 7) }).unwrap_err();
    assert!(error.to_string().contains("7 is odd"), "{error}");
}
