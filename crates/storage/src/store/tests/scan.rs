//! Pages and counts of partitions that lie in tables and in the engine at once, against a map.

use std::collections::BTreeMap;

use super::*;
use crate::disk::faulty::SplitMix64;
use crate::engine::Engine;
use crate::keys::{Keyspace, engine_key};

const ONLY: PartitionId = PartitionId(0);

/// A bench whose keys are all in one partition.
fn bench_of_one_partition() -> Bench {
    let mut bench = Bench::new();
    bench.options.partition_count = 1;
    bench.options.fsync = FsyncPolicy::Os;
    bench
}

/// Where records are when they are read.
#[derive(Clone, Copy, Debug)]
enum Place {
    Active,
    Frozen,
    Engine,
}

fn move_to(place: Place, store: &mut Store) {
    if !matches!(place, Place::Active) {
        store.freeze().unwrap();
    }
    if matches!(place, Place::Engine) {
        while store.flusher().work().unwrap() {}
    }
}

fn lengths(records: &[Record]) -> usize {
    records.iter().map(Record::encoded_len).sum()
}

/// What `scan_page` promises of one page, given everything that is there.
fn check_page(
    model: &BTreeMap<Bytes, Record>,
    reader: &StoreReader,
    after: Option<&Bytes>,
    limit: usize,
    bytes_max: usize,
) -> (Vec<Record>, bool) {
    let after_key = after.map(|key| &key[..]);
    let (page, more) = reader.scan_page(ONLY, after_key, limit, bytes_max).unwrap();
    let mut rest = model
        .values()
        .filter(|record| after.is_none_or(|after| record.key > *after));
    for record in &page {
        assert_eq!(Some(record), rest.next(), "limit {limit} bytes {bytes_max}");
    }
    assert_eq!(
        more,
        rest.next().is_some(),
        "limit {limit} bytes {bytes_max}"
    );
    assert!(page.len() <= limit.max(1));
    assert!(page.len() == 1 || lengths(&page) <= bytes_max);
    assert!(!page.is_empty() || !more);
    (page, more)
}

fn live_at(model: &BTreeMap<Bytes, Record>, wall_ms: u64) -> u64 {
    let visible = |record: &&Record| record.visible_value(wall_ms).is_some();
    model.values().filter(visible).count() as u64
}

/// Everything, in pages and counted.
fn check_walks(model: &BTreeMap<Bytes, Record>, reader: &StoreReader, random: &mut SplitMix64) {
    for _ in 0..4 {
        let limit = random.below(12) as usize;
        let bytes_max = match random.below(3) {
            0 => random.below(300) as usize,
            1 => random.below(20_000) as usize,
            _ => usize::MAX,
        };
        let mut after = None;
        let mut read = 0;
        loop {
            let (page, more) = check_page(model, reader, after.as_ref(), limit, bytes_max);
            read += page.len();
            let Some(last) = page.last().filter(|_| more) else {
                break;
            };
            after = Some(last.key.clone());
        }
        assert_eq!(read, model.len());
    }
    let limit = random.below(30) as usize;
    let scanned = reader.scan(ONLY, None, limit).unwrap();
    assert!(scanned.iter().eq(model.values().take(limit)));
    assert_eq!(scanned.len(), limit.min(model.len()));
    for wall_ms in [0, 1_000, 2_000, u64::MAX] {
        assert_eq!(
            reader.count_live(ONLY, wall_ms).unwrap(),
            live_at(model, wall_ms)
        );
    }
}

#[test]
fn pages_and_counts_agree_with_a_map_wherever_the_records_are() {
    for seed in 0..25 {
        let mut random = SplitMix64(seed);
        let bench = bench_of_one_partition();
        let mut store = bench.open();
        let reader = store.reader();
        let mut model = BTreeMap::new();
        // Most rounds meet two frozen tables, an active one and an engine, with keys in common.
        for round in 1..=30u64 {
            for _ in 0..random.below(12) {
                let key = format!("key-{}", random.below(25));
                let length = [0, 10, 100, 6_000][random.below(4) as usize];
                let mut record = record(&key, 1 + model.len() as u64, &"v".repeat(length));
                record.version.hlc = Hlc(1_000 * round + random.below(1_000));
                match random.below(6) {
                    0 => record.body = Body::Tombstone,
                    1 => record.expires_at_ms = Some(500 + 1_000 * random.below(3)),
                    _ => {}
                }
                if store.merge(std::slice::from_ref(&record)).unwrap() == [Merged::Applied] {
                    model.insert(record.key.clone(), record);
                }
            }
            check_walks(&model, &reader, &mut random);
            if let Err(StoreError::Behind { .. }) = store.freeze() {
                store.flusher().work().unwrap();
                store.freeze().unwrap();
            }
            if random.below(4) == 0 {
                store.flusher().work().unwrap();
            }
        }
        let stats = reader.stats();
        assert!(stats.flushes > 5 && stats.frozen_tables > 0, "{stats:?}");
        drop(store);
        check_walks(&model, &bench.open().reader(), &mut random);
    }
}

#[test]
fn a_page_ends_exactly_at_its_bytes() {
    for place in [Place::Active, Place::Frozen, Place::Engine] {
        let bench = bench_of_one_partition();
        let mut store = bench.open();
        let records: Vec<_> = (1..=4)
            .map(|n| record(&format!("k{n}"), n, &"v".repeat(5_000)))
            .collect();
        store.merge(&records).unwrap();
        move_to(place, &mut store);
        let reader = store.reader();
        let one = records[0].encoded_len();
        let page = |bytes_max| {
            let (page, more) = reader.scan_page(ONLY, None, 9, bytes_max).unwrap();
            (page.len(), more)
        };
        for (bytes_max, expected) in [
            (0, (1, true)),
            (one - 1, (1, true)),
            (one, (1, true)),
            (2 * one - 1, (1, true)),
            (2 * one, (2, true)),
            (2 * one + 1, (2, true)),
            (usize::MAX, (4, false)),
        ] {
            assert_eq!(page(bytes_max), expected, "{place:?}, {bytes_max} bytes");
        }
        // The last records fill their page, and nothing follows.
        let last = reader.scan_page(ONLY, Some(b"k2"), 9, 2 * one).unwrap();
        assert_eq!(last, (records[2..].to_vec(), false), "{place:?}");
        let none = reader.scan_page(ONLY, Some(b"k4"), 9, one).unwrap();
        assert_eq!(none, (Vec::new(), false), "{place:?}");
    }
}

/// The newest record of a key decides how much of a page it takes, wherever older ones are.
#[test]
fn tombstones_over_large_values_are_found_and_do_not_count() {
    let bench = bench_of_one_partition();
    let mut store = bench.open();
    let large = "v".repeat(100_000);
    let mut model = BTreeMap::new();
    for n in 0..9u64 {
        store
            .merge(&[record(&format!("k{n}"), 1 + n, &large)])
            .unwrap();
    }
    move_to(Place::Engine, &mut store);
    for n in 0..9u64 {
        let mut newer = record(&format!("k{n}"), 20 + n, "short");
        if n % 3 != 0 {
            newer.body = Body::Tombstone;
        }
        store.merge(&[newer.clone()]).unwrap();
        model.insert(newer.key.clone(), newer);
        if n == 5 {
            store.freeze().unwrap();
        }
    }
    let reader = store.reader();
    let mut after = None;
    let mut read = 0;
    loop {
        let (page, more) = check_page(&model, &reader, after.as_ref(), 9, 1_000);
        read += page.len();
        after = page.last().map(|record| record.key.clone());
        if !more {
            break;
        }
    }
    assert_eq!(read, 9);
    assert_eq!(reader.count_live(ONLY, 0).unwrap(), 3);
}

/// More records than one step looks at, in every place.
#[test]
fn counts_go_on_from_step_to_step() {
    let bench = bench_of_one_partition();
    let mut store = bench.open();
    let reader = store.reader();
    let mut model = BTreeMap::new();
    let places = [
        (Place::Engine, 1, 10_000),
        (Place::Frozen, 2, 9_000),
        (Place::Frozen, 3, 4_097),
        (Place::Active, 5, 2_000),
    ];
    for (generation, (place, step, count)) in (1u64..).zip(places) {
        let batch: Vec<_> = (0..count)
            .map(|n| {
                let mut record = record(&format!("key-{:06}", n * step), generation, "v");
                match n % 7 {
                    0 => record.body = Body::Tombstone,
                    1 => record.expires_at_ms = Some(1_000),
                    _ => {}
                }
                record
            })
            .collect();
        store.merge(&batch).unwrap();
        model.extend(batch.into_iter().map(|record| (record.key.clone(), record)));
        move_to(place, &mut store);
    }
    let stats = reader.stats();
    assert_eq!((stats.flushes, stats.frozen_tables), (1, 2));
    for wall_ms in [999, 1_000] {
        assert_eq!(
            reader.count_live(ONLY, wall_ms).unwrap(),
            live_at(&model, wall_ms)
        );
    }
    assert_eq!(reader.count_live(PartitionId(1), 0).unwrap(), 0);
    let scanned = reader.scan(ONLY, None, usize::MAX).unwrap();
    assert!(scanned.iter().eq(model.values()));
}

/// More bytes than one step reads.
#[test]
fn counts_and_scans_go_on_over_large_values() {
    let bench = bench_of_one_partition();
    let reader = bench.open().reader();
    for n in 0..6 {
        let mut value = Vec::new();
        record(&format!("k{n}"), 1, &"v".repeat(15 << 20)).encode(&mut value);
        let key = engine_key(ONLY, Keyspace::Eventual, format!("k{n}").as_bytes());
        let mut run = [(key, Some(Bytes::from(value)))].into_iter();
        bench.engine.ingest(&mut run).unwrap();
    }
    assert_eq!(reader.count_live(ONLY, 0).unwrap(), 6);
    assert_eq!(reader.scan(ONLY, None, 9).unwrap().len(), 6);
    let (page, more) = reader.scan_page(ONLY, None, 9, 1 << 20).unwrap();
    assert_eq!((page.len(), more), (1, true));
}
