//! The scrub: what it finds, and what may be taken back below the watermark.

use super::epochs::{P, flush, merged, settle, tombstone};
use super::*;
use crate::keys::{Keyspace, engine_key};

/// What the engine shows is seen at once.
fn bench() -> Bench {
    let mut bench = super::epochs::bench();
    bench.options.cache_bytes_max = 0;
    bench
}

fn options() -> ScrubOptions {
    ScrubOptions {
        dead_by_ms: 1_000,
        left_out_ms: 1_000,
    }
}

fn findings(store: &Store) -> Vec<ScrubFinding> {
    let mut scrub = Scrub::new(P, options());
    let mut all = Vec::new();
    loop {
        let step = scrub.step(&store.reader(), 3).unwrap();
        all.extend(step.findings);
        if step.is_done {
            return all;
        }
    }
}

/// The live settled records, page by page, which sum up to what the scrub says; and how far the store has settled.
fn settled(store: &Store) -> ((Epoch, u128), Vec<IndexRow>) {
    let reader = store.reader();
    let mut scrub = Scrub::new(P, options());
    let mut all = Vec::new();
    let mut past = (Epoch(0), 0);
    loop {
        let step = scrub.step(&reader, 2).unwrap();
        if let Some(range) = step.range {
            let found = reader.settled_rows(P, &range.of, &[], 100).unwrap();
            let (rows, None) = found.unwrap() else {
                panic!("there is more")
            };
            assert_eq!(reader.leaves_of(&rows), range.leaves);
            past = (range.of.settled, range.of.chain);
            all.extend(rows);
        }
        if step.is_done {
            return (past, all);
        }
    }
}

/// The engine forgets a key.
fn lose(bench: &Bench, store: &mut Store, name: &str) {
    flush(store);
    let key = engine_key(P, Keyspace::Eventual, name.as_bytes());
    bench.engine.ingest(&mut [(key, None)].into_iter()).unwrap();
}

#[test]
fn a_scrub_looks_beneath_the_cache_and_what_comes_back_is_written() {
    let bench = super::epochs::bench();
    let mut store = bench.open();
    merge(&mut store, "a", 110);
    flush(&mut store);
    let key = engine_key(P, Keyspace::Eventual, b"a");
    bench.engine.ingest(&mut [(key, None)].into_iter()).unwrap();
    assert_eq!(hlc_of(&store.reader(), "a"), Some(110), "from memory");
    assert!(matches!(&findings(&store)[..], [ScrubFinding::Lost { .. }]));
    assert_eq!(hlc_of(&store.reader(), "a"), None);
    store.forget_hashes(P, Epoch(1)).unwrap();
    merge(&mut store, "a", 110);
    flush(&mut store);
    assert_eq!(findings(&store), []);
}

#[test]
fn a_scrub_finds_what_is_lost_below() {
    let bench = bench();
    let mut store = bench.open();
    for key in ["a", "b", "c"] {
        merge(&mut store, key, 110);
    }
    store.merge(&[record("c", 210, "newer")]).unwrap();
    flush(&mut store);
    assert_eq!(findings(&store), []);
    // The engine forgets a record, and another one shows an old version.
    let key = |key: &[u8]| engine_key(P, Keyspace::Eventual, key);
    let mut old = Vec::new();
    record("c", 110, "value").encode(&mut old);
    let items = [(key(b"a"), None), (key(b"c"), Some(Bytes::from(old)))];
    bench.engine.ingest(&mut items.into_iter()).unwrap();
    let lost: Vec<_> = findings(&store)
        .into_iter()
        .map(|finding| match finding {
            ScrubFinding::Lost { epoch, row } => (epoch.0, row.key),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(lost, [(1, Bytes::from("a")), (2, Bytes::from("c"))]);
    // Bytes that are no record.
    let items = [(key(b"b"), Some(Bytes::from_static(b"garbage")))];
    bench.engine.ingest(&mut items.into_iter()).unwrap();
    let damaged = findings(&store);
    assert!(
        matches!(&damaged[..], [ScrubFinding::Damaged { .. }]),
        "{damaged:?}"
    );
}

#[test]
fn a_scrub_finds_rows_that_are_not_those_of_the_hashes() {
    let bench = bench();
    let mut store = bench.open();
    merge(&mut store, "a", 110);
    flush(&mut store);
    store.shared.tables.write().index.apply(
        Epoch(1),
        P,
        crate::epoch_index::IndexChange::Replaces { bucket: 5, hash: 1 },
    );
    let expected = ScrubFinding::HashesDiffer {
        epoch: Epoch(1),
        buckets: vec![5],
    };
    assert_eq!(findings(&store), [expected]);
}

#[test]
fn replicas_with_equal_records_sum_up_to_the_same_whatever_they_collected() {
    let fill = |order: &[usize], collects: bool| {
        let bench = bench();
        let mut store = bench.open();
        let mut expiring = record("x", 130, "v");
        expiring.expires_at_ms = Some(500);
        let records = [record("a", 110, "v"), tombstone("t", 120), expiring];
        for &index in order {
            store.merge(&[records[index].clone()]).unwrap();
        }
        store.close_epochs(Epoch(1)).unwrap();
        settle(&mut store, 1);
        if collects {
            let dead: Vec<Dead> = findings(&store)
                .into_iter()
                .map(|finding| match finding {
                    ScrubFinding::Dead(dead) => dead,
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(dead.len(), 2);
            let collected = store.collect_dead(&dead, Hlc(125), 1_000).unwrap();
            assert_eq!((collected.removed, collected.held_back), (1, 1));
            let collected = store.collect_dead(&dead, Hlc(200), 400).unwrap();
            assert_eq!(collected.removed, 0, "it may not have expired yet");
            let collected = store.collect_dead(&dead, Hlc(200), 1_000).unwrap();
            assert_eq!(collected.removed, 1);
        }
        assert!(findings(&store).len() <= 2);
        let (of, rows) = settled(&store);
        assert_eq!(rows.len(), 1);
        (of, store.reader().leaves_of(&rows))
    };
    assert_eq!(fill(&[0, 1, 2], false), fill(&[2, 0, 1], true));
}

#[test]
fn ranges_are_of_one_past_and_of_their_keys() {
    let bench = bench();
    let mut store = bench.open();
    for key in ["a", "b", "c", "d", "e"] {
        merge(&mut store, key, 110);
    }
    merge(&mut store, "b", 210);
    store.close_epochs(Epoch(1)).unwrap();
    settle(&mut store, 1);
    let (past, rows) = settled(&store);
    assert_eq!(past, (Epoch(1), 1));
    let keys: Vec<&[u8]> = rows.iter().map(|row| &row.key[..]).collect();
    assert_eq!(keys, [b"a", b"c", b"d", b"e"], "one is of a later epoch");
    let of = RangeOf {
        settled: Epoch(1),
        chain: 1,
        left_out_ms: 0,
        after: Some(Bytes::from("a")),
        up_to: Some(Bytes::from("d")),
    };
    let reader = store.reader();
    let (some, next) = reader.settled_rows(P, &of, &[], 2).unwrap().unwrap();
    assert_eq!((some.len(), next), (1, Some(Bytes::from("c"))));
    let (all, next) = reader.settled_rows(P, &of, &[], 9).unwrap().unwrap();
    assert_eq!((all.len(), next), (2, None));
    let buckets = [all[0].bucket];
    let (one, _) = reader.settled_rows(P, &of, &buckets, 9).unwrap().unwrap();
    assert!(one.contains(&all[0]) && one.iter().all(|row| row.bucket == buckets[0]));
    for other in [
        RangeOf {
            chain: 2,
            ..of.clone()
        },
        RangeOf {
            settled: Epoch(2),
            ..of.clone()
        },
    ] {
        assert_eq!(reader.settled_rows(P, &other, &[], 9).unwrap(), None);
    }
}

#[test]
fn what_was_lost_below_the_watermark_comes_back_by_a_rebuild_alone() {
    let bench = bench();
    let mut store = bench.open();
    merge(&mut store, "key", 110);
    merge(&mut store, "old", 110);
    merge(&mut store, "old", 120);
    store.close_epochs(Epoch(1)).unwrap();
    settle(&mut store, 1);
    lose(&bench, &mut store, "key");
    assert_eq!(hlc_of(&store.reader(), "key"), None);
    assert_eq!(findings(&store), [], "no row is left of it");
    let lost = || record("key", 110, "value");
    let rebuild = Purpose::Rebuild {
        settled: Epoch(1),
        chain: 1,
    };
    for purpose in [
        Purpose::Write,
        Purpose::Hint,
        Purpose::Repair,
        Purpose::Sync,
        Purpose::Rebuild {
            settled: Epoch(1),
            chain: 2,
        },
        Purpose::Rebuild {
            settled: Epoch(2),
            chain: 1,
        },
    ] {
        let refused = merged(&mut store, purpose, lost());
        assert_eq!(refused, Merged::Settled, "{purpose:?}");
    }
    let above = merged(&mut store, rebuild, record("new", 210, "value"));
    assert_eq!(above, Merged::Settled, "it is not of that past");
    let dead = merged(&mut store, rebuild, tombstone("key", 110));
    assert_eq!(dead, Merged::Settled, "it would say nothing");
    assert_eq!(merged(&mut store, rebuild, lost()), Merged::Applied);
    assert_eq!(merged(&mut store, rebuild, lost()), Merged::Same);
    let older = merged(&mut store, rebuild, record("old", 110, "value"));
    assert_eq!(older, Merged::Superseded);
    let dead = merged(&mut store, rebuild, tombstone("old", 130));
    assert_eq!(dead, Merged::Applied, "it hides what must be damage");
    drop(store);
    let mut store = bench.open();
    assert_eq!(hlc_of(&store.reader(), "key"), Some(110));
    // What is rebuilt leaves no trace in epochs that are compared.
    flush(&mut store);
    let reader = store.reader();
    for epoch in [2, 9].map(Epoch) {
        let rebuilt = reader.rebuilt_leaves(epoch, P).unwrap();
        assert_eq!(reader.leaves(epoch, P).unwrap(), Some(rebuilt));
    }
}

/// A replica that is behind holds what the others have deleted and collected since.
#[test]
fn what_another_past_holds_is_not_taken_for_lost() {
    let bench = bench();
    let mut store = bench.open();
    merge(&mut store, "key", 110);
    store.merge(&[tombstone("key", 210)]).unwrap();
    store.close_epochs(Epoch(2)).unwrap();
    settle(&mut store, 1);
    settle(&mut store, 2);
    collect(&mut store, P, Hlc(300)).unwrap();
    assert_eq!(hlc_of(&store.reader(), "key"), None);
    let of_another = Purpose::Rebuild {
        settled: Epoch(1),
        chain: 1,
    };
    let refused = merged(&mut store, of_another, record("key", 110, "value"));
    assert_eq!(refused, Merged::Settled);
}

#[test]
fn a_record_that_is_merged_again_counts_once_when_its_hashes_are_forgotten() {
    let bench = bench();
    let mut store = bench.open();
    merge(&mut store, "key", 110);
    flush(&mut store);
    lose(&bench, &mut store, "key");
    // Its epoch is open, and its hashes are known: they have the row already.
    merge(&mut store, "key", 110);
    let reader = store.reader();
    let rebuilt = reader.rebuilt_leaves(Epoch(1), P).unwrap();
    assert_eq!(rebuilt.row_count(), 1);
    let differs = ScrubFinding::HashesDiffer {
        epoch: Epoch(1),
        buckets: vec![crate::keys::bucket_of(b"key", bench.options.bucket_count)],
    };
    assert_eq!(findings(&store), [differs]);
    store.forget_hashes(P, Epoch(1)).unwrap();
    assert_eq!(reader.leaves(Epoch(1), P).unwrap(), Some(rebuilt));
    assert_eq!(findings(&store), []);
}
