//! Deletes while a replica is away: its absence keeps the tombstones, its return lets them go everywhere, and a
//! directory copied before the deletes brings nothing back.
//!
//! The size of the issue:
//!
//! ```text
//! cargo test --release -p mydatastore --test deletes -- --ignored --nocapture
//! MDS_EPOCH_INTERVAL_MS=10000 ...     epochs as long as a lab's
//! ```

// A test's helpers may fail like the test itself.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::path::Path;
use std::time::Instant;

use cluster::client::pipeline;
use cluster::lab::Lab;
use mds_storage::engine;

/// Epochs of a second, unless told otherwise: two of them are soon over.
fn epoch_interval_ms() -> String {
    std::env::var("MDS_EPOCH_INTERVAL_MS").unwrap_or_else(|_| "1000".to_owned())
}

/// What the keys that are deleted begin with, and the keys that stay.
const GONE: &str = "gone:";
const KEPT: &str = "kept:";

/// Keys that stay.
const KEPT_COUNT: usize = 100;

fn command(name: &str, key: String) -> Vec<String> {
    vec![name.to_owned(), key]
}

fn write(port: u16, prefix: &str, count: usize) {
    let set = |number| {
        vec![
            "SET".to_owned(),
            format!("{prefix}{number}"),
            "v".repeat(100),
        ]
    };
    pipeline(port, 0..count, set, "+OK");
}

fn exist(port: u16, prefix: &str, count: usize, answer: &str) {
    let exists = |number| command("EXISTS", format!("{prefix}{number}"));
    pipeline(port, 0..count, exists, answer);
}

fn epoch(lab: &Lab) -> u64 {
    lab.status(1)["epoch"].as_u64().unwrap()
}

fn wait_epochs(lab: &Lab, more: u64) {
    let goal = epoch(lab) + more;
    lab.wait_until(&format!("epoch {goal} begins"), || epoch(lab) >= goal);
}

/// Tombstones that a node holds.
fn tombstones(lab: &Lab, node: usize) -> u64 {
    let (status, body) = lab.http(node, "GET", "/v1/digest", b"");
    assert_eq!(status, 200, "{body}");
    let digest: serde_json::Value = serde_json::from_str(&body).unwrap();
    let partitions = digest["partitions"].as_array().unwrap().iter();
    partitions
        .map(|one| one["tombstones"].as_u64().unwrap())
        .sum()
}

/// Whom a node waits for.
fn blocked_by(lab: &Lab, node: usize) -> String {
    let (_, body) = lab.http(node, "GET", "/v1/epochs", b"");
    let epochs: serde_json::Value = serde_json::from_str(&body).unwrap();
    epochs["blocked_by"][0]["name"]
        .as_str()
        .unwrap_or("")
        .to_owned()
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_directory(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// Files below a directory, other than the engine's, in which some bytes occur.
fn files_with(directory: &Path, bytes: &[u8], found: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let Ok(entry) = entry else { continue };
        let path = entry.path();
        if path.file_name().is_some_and(|name| name == "engine") {
            continue;
        }
        if path.is_dir() {
            files_with(&path, bytes, found);
        // One that is gone by now holds nothing.
        } else if std::fs::read(&path)
            .unwrap_or_default()
            .windows(bytes.len())
            .any(|window| window == bytes)
        {
            found.push(path.display().to_string());
        }
    }
}

/// Keys with these bytes that the engine of a stopped node holds.
fn keys_in_engine(data: &Path, bytes: &[u8]) -> usize {
    let engine = engine::open("fjall", &data.join("engine")).unwrap();
    let mut found = 0;
    let unseen = engine.visit(&[], &[0xff; 64], &mut |key, _| {
        found += usize::from(key.windows(bytes.len()).any(|window| window == bytes));
        true
    });
    assert!(!unseen.unwrap(), "all was seen");
    engine.close().unwrap();
    found
}

fn deletes_wait_for_the_replica_that_is_away_and_are_final(name: &str, count: usize) {
    let interval_ms = epoch_interval_ms();
    let lab = Lab::start_with(name, 20_800, &["--epoch-interval-ms", &interval_ms]);
    let data = |node: usize| lab.dir().join(format!("node-{node}")).join("data");
    write(lab.resp_port(1), GONE, count);
    write(lab.resp_port(2), KEPT, KEPT_COUNT);

    // The copy is of a start that a later one will have followed.
    lab.act("stop-node", 3);
    let copy = lab.dir().join("copy");
    copy_directory(&data(3), &copy);
    lab.act("start-node", 3);
    lab.wait_ready(3);
    lab.wait_equal();

    lab.act("kill-node", 3);
    let delete = |number| command("DEL", format!("{GONE}{number}"));
    pipeline(lab.resp_port(1), 0..count, delete, ":1");
    lab.wait_until("node 3 is waited for", || {
        blocked_by(&lab, 1) == "node-3" && blocked_by(&lab, 2) == "node-3"
    });
    wait_epochs(&lab, 4);
    for node in [1, 2] {
        // The lab has tried itself out, too.
        let held = tombstones(&lab, node);
        assert!(held >= count as u64, "node {node}: only {held} stay");
        assert_eq!(blocked_by(&lab, node), "node-3");
    }

    lab.act("start-node", 3);
    lab.wait_ready(3);
    let (back_in, began) = (epoch(&lab), Instant::now());
    lab.wait_until("no tombstone is left", || {
        (1..=3).all(|node| tombstones(&lab, node) == 0)
    });
    println!(
        "{count} keys deleted without node 3; {:.1} s and {} epochs after its return no replica holds anything of them",
        began.elapsed().as_secs_f64(),
        epoch(&lab) - back_in
    );
    lab.wait_equal();

    // The copy from before the deletes is refused, and nobody sees anything of what it holds.
    lab.act("kill-node", 3);
    let aside = lab.dir().join("aside");
    std::fs::rename(data(3), &aside).unwrap();
    std::fs::rename(&copy, data(3)).unwrap();
    lab.act("start-node", 3);
    lab.wait_until("the copy is refused", || {
        lab.has_logged(3, "is a copy or was restored")
    });
    for node in [1, 2] {
        exist(lab.resp_port(node), GONE, count, ":0");
    }
    lab.act("kill-node", 3);
    std::fs::remove_dir_all(data(3)).unwrap();
    std::fs::rename(&aside, data(3)).unwrap();
    lab.act("start-node", 3);
    lab.wait_ready(3);
    for node in 1..=3 {
        exist(lab.resp_port(node), GONE, count, ":0");
        exist(lab.resp_port(node), KEPT, KEPT_COUNT, ":1");
        assert_eq!(tombstones(&lab, node), 0);
    }
    lab.wait_equal();
    let data: Vec<_> = (1..=3).map(data).collect();
    // Rows of collected epochs go with the next flush, for which something has to be written.
    lab.wait_until("no log, hint or index holds any of it", || {
        write(lab.resp_port(1), KEPT, 1);
        let mut found = Vec::new();
        for data in &data {
            files_with(data, GONE.as_bytes(), &mut found);
        }
        found.is_empty()
    });
    let kept = lab.stop_and_keep();

    for data in data {
        assert_eq!(
            keys_in_engine(&data, GONE.as_bytes()),
            0,
            "{}",
            data.display()
        );
        assert_eq!(keys_in_engine(&data, KEPT.as_bytes()), KEPT_COUNT);
        let mut found = Vec::new();
        files_with(&data, GONE.as_bytes(), &mut found);
        assert_eq!(found, [""; 0], "no log, hint or index holds any of it");
    }
    drop(kept);
}

#[test]
fn deletes_wait_for_a_replica_and_are_final() {
    deletes_wait_for_the_replica_that_is_away_and_are_final("deletes", 2_000);
}

#[test]
#[ignore = "takes a minute or more; see the top of the file"]
fn a_hundred_thousand_deletes_wait_for_a_replica_and_are_final() {
    deletes_wait_for_the_replica_that_is_away_and_are_final("many-deletes", 100_000);
}
