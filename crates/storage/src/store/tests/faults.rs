//! One fault at a time: what is refused, what poisons, what is named, what is survived.

use super::*;

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    for fsync in [FsyncPolicy::Always, FsyncPolicy::Os] {
        let mut bench = Bench::new();
        bench.options.fsync = fsync;
        let mut store = bench.open();
        merge(&mut store, "a", 1);
        for room in 0..60 {
            bench
                .disk
                .set_capacity(Some(bench.disk.used_bytes() + room));
            let refused = store.merge(&[record("a", 2, "value"), record("b", 2, "value")]);
            assert!(matches!(refused, Err(StoreError::Full)), "{refused:?}");
            assert_eq!(hlc_of(&store.reader(), "a"), Some(1));
        }
        // Neither a new segment nor a flush fits.
        bench.disk.set_capacity(Some(bench.disk.used_bytes()));
        assert!(matches!(store.freeze(), Err(StoreError::Full)));
        store.epoch_changed(Epoch(9)).unwrap();
        bench.disk.set_capacity(None);
        merge(&mut store, "a", 3);
        store.freeze().unwrap();
        bench.disk.set_capacity(Some(bench.disk.used_bytes()));
        assert!(matches!(store.flusher().work(), Err(StoreError::Full)));
        assert!(store.wants_flush());
        drop(store);
        bench.disk.process_crash();
        assert!(matches!(bench.refusal(), StoreError::Full));
        bench.disk.set_capacity(None);
        let store = bench.open();
        assert_eq!(hlc_of(&store.reader(), "a"), Some(3));
        assert_eq!(hlc_of(&store.reader(), "b"), None);
        store.close().unwrap();
    }
}

/// An engine without room stops flushing, and nothing else; with room again it goes on.
#[test]
fn a_full_engine_is_flushed_to_when_there_is_room() {
    let bench = Bench::new();
    let mut store = bench.open();
    let flusher = store.flusher();
    merge(&mut store, "a", 1);
    store.freeze().unwrap();
    bench.engine.set_full(true);
    assert!(matches!(flusher.work(), Err(StoreError::Full)));
    // Its table answers, and new ones are written.
    assert_eq!(hlc_of(&store.reader(), "a"), Some(1));
    merge(&mut store, "b", 2);
    assert!(matches!(flusher.work(), Err(StoreError::Full)));
    // Without room for the table the engine is not even asked.
    bench.engine.set_full(false);
    let used = bench.disk.used_bytes();
    bench.disk.set_capacity(Some(used + 1_000));
    assert!(!flusher.has_room(0));
    assert!(matches!(flusher.work(), Err(StoreError::Full)));
    assert_eq!(
        bench.disk.used_bytes(),
        used,
        "looking for room leaves nothing"
    );
    assert!(bench.engine.get(b"").is_ok_and(|found| found.is_none()));
    assert_eq!(bench.engine.disk_bytes(), 0);
    bench.disk.set_capacity(None);
    assert!(flusher.work().unwrap());
    assert!(!flusher.work().unwrap());
    assert!(bench.engine.disk_bytes() > 0);
    assert_eq!(hlc_of(&store.reader(), "a"), Some(1));
    store.close().unwrap();
    let store = bench.open();
    assert_eq!(hlc_of(&store.reader(), "a"), Some(1));
    assert_eq!(hlc_of(&store.reader(), "b"), Some(2));
}

/// What the engine has confirmed it is not handed again because the run files found no room.
#[test]
fn a_full_disk_for_run_files_costs_the_engine_nothing() {
    let bench = Bench::new();
    let mut store = bench.open();
    let flusher = store.flusher();
    merge(&mut store, "a", 1);
    store.freeze().unwrap();
    bench.disk.set_capacity(Some(bench.disk.used_bytes()));
    assert!(matches!(flusher.work(), Err(StoreError::Full)));
    assert!(bench.engine.disk_bytes() > 0, "the engine has taken it");
    // Would poison the store, if the engine were asked.
    bench.engine.fail_next_ingest_after(0);
    bench.disk.set_capacity(None);
    assert!(flusher.work().unwrap());
    // The next segment is another.
    merge(&mut store, "a", 2);
    store.freeze().unwrap();
    assert!(is_poisoned(flusher.work()));
}

#[test]
fn a_failed_sync_or_append_poisons_everything() {
    for fault in 0..3 {
        let bench = Bench::new();
        let mut store = bench.open();
        merge(&mut store, "a", 1);
        let (reader, flusher) = (store.reader(), store.flusher());
        store.freeze().unwrap();
        let failed = match fault {
            0 => {
                bench.disk.fail_sync_in(0);
                is_poisoned(store.merge(&[record("a", 2, "lost?")]))
            }
            1 => {
                bench.disk.fail_append_in(0);
                is_poisoned(store.merge(&[record("a", 2, "lost?")]))
            }
            _ => {
                bench.engine.fail_next_ingest_after(0);
                is_poisoned(flusher.work())
            }
        };
        assert!(failed);
        assert!(is_poisoned(store.merge(&[])));
        assert!(is_poisoned(store.merge(&[record("b", 1, "x")])));
        assert!(is_poisoned(store.tick(0)));
        assert!(is_poisoned(store.sync()));
        assert!(is_poisoned(store.freeze()));
        assert!(is_poisoned(store.epoch_changed(Epoch(3))));
        assert!(is_poisoned(flusher.work()));
        assert!(is_poisoned(reader.get(b"a")));
        assert_eq!(reader.get_in_memory(b"a"), Lookup::Ask);
        assert!(is_poisoned(reader.scan(PartitionId(0), None, 1)));
        assert!(is_poisoned(reader.scan_page(PartitionId(0), None, 1, 1)));
        assert!(is_poisoned(reader.count_live(PartitionId(0), 0)));
        assert!(is_poisoned(reader.index_rows(Epoch(0), RowRange::All)));
        assert!(reader.stats().poisoned);
        let error = reader.get(b"a").unwrap_err().to_string();
        assert!(
            error.contains("simulated") || error.contains("injected"),
            "{error}"
        );
        assert!(is_poisoned(store.close()));
        bench.disk.crash();
        assert!(hlc_of(&bench.open().reader(), "a") >= Some(1));
    }
}

#[test]
fn engine_read_errors_are_errors_and_damaged_values_are_named() {
    let mut bench = Bench::new();
    bench.options.cache_bytes_max = 0;
    let mut store = bench.open();
    merge(&mut store, "a", 1);
    store.close().unwrap();
    let mut store = bench.open();
    let reader = store.reader();
    let partition = partition_of(b"a", 4);
    bench.engine.fail_next_reads(4);
    assert!(matches!(reader.get(b"a"), Err(StoreError::Engine(_))));
    assert!(matches!(
        reader.scan(partition, None, 9),
        Err(StoreError::Engine(_))
    ));
    assert!(matches!(
        reader.count_live(partition, 0),
        Err(StoreError::Engine(_))
    ));
    let merged = store.merge(&[record("b", 1, "x"), record("a", 2, "x")]);
    assert!(matches!(merged, Err(StoreError::Engine(_))));
    assert_eq!(
        hlc_of(&reader, "b"),
        None,
        "nothing of the batch was written"
    );
    assert_eq!(hlc_of(&reader, "a"), Some(1));

    let key = crate::keys::engine_key(partition, crate::keys::Keyspace::Eventual, b"a");
    let mut other = Vec::new();
    record("other", 1, "x").encode(&mut other);
    for damaged in [b"garbage".to_vec(), other] {
        let item = (key.clone(), Some(Bytes::from(damaged)));
        bench.engine.ingest(&mut [item].into_iter()).unwrap();
        assert!(matches!(reader.get(b"a"), Err(StoreError::Corrupt { .. })));
        assert!(matches!(
            reader.scan(partition, None, 9),
            Err(StoreError::Corrupt { .. })
        ));
        assert!(matches!(
            reader.count_live(partition, 0),
            Err(StoreError::Corrupt { .. })
        ));
        assert!(matches!(
            store.merge(&[record("a", 2, "x")]),
            Err(StoreError::Corrupt { .. })
        ));
    }
}

#[test]
fn a_torn_tail_is_cut_off_and_never_appended_to() {
    let bench = Bench::new();
    let mut store = bench.open();
    merge(&mut store, "a", 1);
    let whole = bench.disk.files().last().unwrap().1;
    merge(&mut store, "a", 2);
    drop(store);
    let path = segment_path(1);
    bench.disk.process_crash();
    let len = bench.disk.files().last().unwrap().1;
    bench.disk.open(&path).unwrap().truncate(len - 1).unwrap();
    let mut store = bench.open();
    assert_eq!(hlc_of(&store.reader(), "a"), Some(1));
    assert_eq!(bench.disk.files().last().unwrap().1, whole);
    merge(&mut store, "b", 3);
    drop(store);
    bench.disk.crash();
    let store = bench.open();
    assert_eq!(hlc_of(&store.reader(), "a"), Some(1));
    assert_eq!(hlc_of(&store.reader(), "b"), Some(3));
}

#[test]
fn rot_in_any_byte_is_named_and_refused_but_in_the_last_record() {
    for segment in 1..=3 {
        let path = segment_path(segment);
        let files = crashed().disk.files();
        let len = files.iter().find(|(name, _)| *name == path).unwrap().1;
        // The last record of the newest segment cannot be told from a torn tail.
        let frame_bytes = (len - crate::frame::FILE_HEADER_BYTES as u64) / 2;
        let end = if segment == 3 { len - frame_bytes } else { len };
        for at in 0..end {
            let bench = crashed();
            assert!(bench.disk.rot(&path, at, 0x10));
            let refusal = bench.refusal();
            assert!(
                matches!(&refusal, StoreError::Corrupt { file, .. } if *file == path),
                "{path} at {at}: {refusal}"
            );
        }
    }
}

#[test]
fn missing_segments_are_named_and_refused() {
    let bench = crashed();
    bench.disk.remove(&segment_path(2)).unwrap();
    assert!(bench.refusal().to_string().contains(&segment_path(2)));

    // Segment 1 was flushed: the log cannot end with it, or be gone.
    let bench = crashed();
    let store = bench.open();
    store.flusher().work().unwrap();
    drop(store);
    for id in [2, 3] {
        bench.disk.remove(&segment_path(id)).unwrap();
    }
    let refusal = bench.refusal().to_string();
    assert!(refusal.contains("none after it"), "{refusal}");
}

#[test]
fn an_engine_without_its_log_is_refused() {
    let bench = Bench::new();
    let mut store = bench.open();
    merge(&mut store, "a", 1);
    store.close().unwrap();
    for (path, _) in bench.disk.files() {
        bench.disk.remove(&path).unwrap();
    }
    assert!(bench.refusal().to_string().contains("the log is gone"));
}
