//! One record of a million vanishes from the engine of one of three real nodes; the slow rebuild finds it.
//!
//! Takes some minutes:
//!
//! ```text
//! cargo test --release -p mydatastore --test scrub -- --ignored --nocapture
//! MDS_SCRUB_RECORDS=100000 ...        fewer
//! ```

// A test's helpers may fail like the test itself.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::time::{Duration, Instant};

use cluster::client::pipeline;
use cluster::lab::Lab;
use mds_storage::engine;
use mds_storage::keys::{Keyspace, engine_key};
use mds_types::slot::partition_of;

/// Three threads load.
const LOADERS: usize = 3;

const VALUE_BYTES: usize = 100;

/// A lab's cluster has as many.
const PARTITIONS: u16 = 256;

/// How long a pass over a million records may take: at 20,000 a second, twice, and the pause before it.
const FOUND_WITHIN: Duration = Duration::from_secs(300);

fn records() -> usize {
    let asked = std::env::var("MDS_SCRUB_RECORDS").ok();
    let asked = asked.and_then(|text| text.parse().ok());
    asked.unwrap_or(1_000_000)
}

fn key(number: usize) -> String {
    format!("record:{number:08}")
}

fn load(port: u16, numbers: impl Iterator<Item = usize>) {
    let value = "v".repeat(VALUE_BYTES);
    let set = |number| vec!["SET".to_owned(), key(number), value.clone()];
    pipeline(port, numbers, set, "+OK");
}

fn wait_long(what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !is_so() {
        assert!(
            began.elapsed() < FOUND_WITHIN,
            "not so after {FOUND_WITHIN:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    began.elapsed()
}

#[test]
#[ignore = "takes minutes, and a million records; see the top of the file"]
fn one_record_of_a_million_that_one_disk_lost_is_found_and_brought_back() {
    let count = records();
    let lab = Lab::start("scrub", 20_600);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for loader in 0..LOADERS {
            let port = lab.resp_port(loader + 1);
            scope.spawn(move || load(port, (loader..count).step_by(LOADERS)));
        }
    });
    println!(
        "{count} records written in {:.1} s",
        began.elapsed().as_secs_f64()
    );
    // Settled is what is two epochs old and equal everywhere.
    let loaded_in = lab.metric(1, "epoch");
    wait_long("the epoch of the load is settled", || {
        lab.metric(1, "epoch") >= loaded_in + 4.0
    });

    lab.act("stop-node", 3);
    let lost = key(count / 2);
    {
        let path = lab.dir().join("node-3").join("data").join("engine");
        let engine = engine::open("fjall", &path).unwrap();
        let partition = partition_of(lost.as_bytes(), PARTITIONS);
        let place = engine_key(partition, Keyspace::Eventual, lost.as_bytes());
        assert!(
            engine.get(&place).unwrap().is_some(),
            "it was flushed when the node stopped"
        );
        engine
            .ingest(&mut [(place.clone(), None)].into_iter())
            .unwrap();
        assert!(engine.get(&place).unwrap().is_none());
        engine.close().unwrap();
    }
    lab.act("start-node", 3);
    lab.wait_ready(3);
    let found_after = wait_long("the record is found", || {
        lab.metric(3, "scrub_restored_total") >= 1.0
    });
    assert_eq!(lab.metric(3, "scrub_restored_total"), 1.0);
    wait_long("the pass ends", || {
        lab.metric(3, "scrub_passes_total") >= 1.0
    });
    lab.wait_equal();
    for node in 1..=3 {
        assert_eq!(
            lab.metric(node, "scrub_unresolved_total"),
            0.0,
            "node {node}"
        );
        assert_eq!(lab.get(&[node], &lost), "v".repeat(VALUE_BYTES));
    }
    let (bytes, rows) = (
        lab.metric(3, "scrub_bytes_total"),
        lab.metric(3, "scrub_rows_total"),
    );
    println!(
        "1 of {count} records lost: found {:.1} s after the start; {rows} records and rows read; {bytes} bytes \
         sent and received, {:.3} % of the {} bytes of the values",
        found_after.as_secs_f64(),
        100.0 * bytes / (count * VALUE_BYTES) as f64,
        count * VALUE_BYTES,
    );
    let log = std::fs::read_to_string(lab.dir().join("node-3").join("node.log")).unwrap();
    for line in log
        .lines()
        .filter(|line| line.contains("brought back") || line.contains("scrub"))
    {
        println!("{line}");
    }
    lab.stop();
}
