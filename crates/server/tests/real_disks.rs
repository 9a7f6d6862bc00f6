//! Real processes on real engines whose disk gets full or slow while they serve: see
//! `faulty_disk/shim.rs` among the storage's tests for how. The simulator has these faults too; here are the kernel's files, the
//! engine's own way to them, and the threads that wait for them.

#![allow(clippy::unwrap_used)]

mod cluster;

use std::time::{Duration, Instant};

use cluster::client::Client;
use cluster::lab::Lab;
use cluster::load::{Load, check_all};

/// Bytes of a log segment: when a table of as many is full, it is handed to the engine.
const SEGMENT_BYTES: u64 = 48 * 1024 * 1024;

/// Bytes of a value of ballast.
const BALLAST_BYTES: usize = 1024 * 1024;

/// The node whose disk fails.
const VICTIM: usize = 3;

/// Writes large values through the other nodes, which have to take each of them.
fn put_ballast(lab: &Lab, count: usize) {
    let value = vec![b'b'; BALLAST_BYTES];
    for number in 0..count {
        let node = number % 2 + 1;
        let path = format!("/v1/kv/ballast-{number}");
        let (status, body) = lab.http(node, "PUT", &path, &value);
        assert_eq!(status, 200, "through node {node}: {body}");
    }
}

/// A read that the victim alone has to answer.
fn reads_by_itself(lab: &Lab, key: &str, value: &str) {
    let mut client = Client::connect(lab.resp_port(VICTIM)).unwrap();
    let set = client.call(&["MDS.CONSISTENCY", "R", "1"]).unwrap();
    assert!(set.starts_with('+'), "{set}");
    assert_eq!(client.call(&["GET", key]).unwrap(), value);
}

#[test]
fn a_full_disk_harms_nobody_else_and_when_there_is_room_the_node_goes_on_by_itself() {
    let Some((lab, disks)) = Lab::start_on_faulty_disks("full", 13_070) else {
        return;
    };
    let disk = &disks[VICTIM - 1];
    lab.put(&[1], "before", "the disk was full");
    let load = Load::start(&lab);
    load.wait_for(300);

    // Room for the log of one table, and for a part of the same in the engine.
    load.set_up(VICTIM, false);
    disk.set_room(Some(SEGMENT_BYTES + 8 * BALLAST_BYTES as u64));
    put_ballast(&lab, 64);
    lab.wait_until("the victim says that its disk is full", || {
        lab.http(VICTIM, "GET", "/ready", b"").0 == 503
    });
    let (_, reason) = lab.http(VICTIM, "GET", "/ready", b"");
    assert!(reason.contains("the disk is full"), "{reason}");
    assert_eq!(lab.metric(VICTIM, "store_poisoned"), 0.0);
    let refused = disk.counts().writes_refused;
    assert!(refused > 0, "nothing was refused: {:?}", disk.counts());

    // The others go on, and it reads.
    load.wait_for(500);
    assert!(disk.counts().writes_refused > refused);
    reads_by_itself(&lab, "before", "the disk was full");
    let (status, said) = lab.http(1, "PUT", "/v1/kv/all-three?w=3", b"v");
    println!("a write that needs all three: {status} {said}");
    assert!(status == 503 || status == 504, "{said}");
    assert!(said.contains("needed 3, got"), "{said}");
    // Through the victim the others are a quorum, as long as it may stamp.
    let (status, said) = lab.http(VICTIM, "PUT", "/v1/kv/by-way-of-the-victim", b"v");
    println!("a write through the victim: {status} {said}");
    assert!(status == 200 || said.contains("the clock's mark"), "{said}");
    assert_eq!(lab.metric(VICTIM, "store_flushes_total"), 0.0);

    // A little room is not enough, and does not end in a failure.
    disk.set_room(Some(3 * BALLAST_BYTES as u64));
    lab.wait_until("the victim has looked for room", || disk.room() == Some(0));
    load.wait_for(300);
    assert_eq!(lab.http(VICTIM, "GET", "/ready", b"").0, 503);

    disk.set_room(None);
    let began = Instant::now();
    lab.wait_ready(VICTIM);
    println!("ready again {:?} after there was room", began.elapsed());
    lab.wait_until("the victim flushes", || {
        lab.metric(VICTIM, "store_flushes_total") >= 1.0
    });
    assert!(
        lab.has_logged(VICTIM, "opened again after the disk was full"),
        "{}",
        lab.log(VICTIM)
    );
    lab.wait_writable(VICTIM);
    load.set_up(VICTIM, true);
    load.wait_for(300);

    let acked = load.finish();
    // What was written through the victim had nowhere to keep a hint for the victim: such a key is
    // repaired when it is read.
    let (status, _) = lab.http(1, "GET", "/v1/kv/by-way-of-the-victim?r=3", b"");
    assert!(status == 200 || status == 404);
    lab.wait_equal();
    for node in 1..=3 {
        check_all(&lab, node, &acked);
        assert!(!lab.has_logged(node, "panicked"), "{}", lab.log(node));
    }
    println!("{:?}", disk.counts());
    lab.stop();
}

/// Merges that wait for a replica's disk, at most: beyond it they are refused.
const STORE_BACKLOG_MAX: f64 = 65_536.0;

/// How much the memory of a node may grow beside a slow disk, bytes: what may wait for it is bounded by 128
/// MiB of records, and some are kept twice.
const GROWTH_MAX: u64 = 256 * 1024 * 1024;

/// How long each sync of the slow disk takes.
const SLOW_SYNC: Duration = Duration::from_millis(300);

/// Writes one after the other through the sound nodes; how long each took, ascending.
fn timed_writes(lab: &Lab, name: &str, count: usize) -> Vec<Duration> {
    let mut clients = [1, 2].map(|node| Client::connect(lab.resp_port(node)).unwrap());
    let mut times: Vec<Duration> = (0..count)
        .map(|number| {
            let key = format!("{name}-{number}");
            let began = Instant::now();
            let reply = clients[number % 2].call(&["SET", &key, name]).unwrap();
            assert_eq!(reply, "+OK", "{key}");
            began.elapsed()
        })
        .collect();
    times.sort();
    times
}

/// Memory of a node's process, bytes.
fn resident_bytes(lab: &Lab, node: usize) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", lab.pid(node))).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

#[test]
fn a_slow_disk_slows_nobody_else_and_catches_up() {
    let Some((lab, disks)) = Lab::start_on_faulty_disks("slow", 13_080) else {
        return;
    };
    let disk = &disks[VICTIM - 1];
    let load = Load::start(&lab);
    load.wait_for(300);
    let sound = timed_writes(&lab, "sound", 300);

    disk.set_sync_delay(SLOW_SYNC);
    load.set_up(VICTIM, false);
    let before = disk.counts().syncs_delayed;
    let memory_before: Vec<u64> = (1..=3).map(|node| resident_bytes(&lab, node)).collect();
    let slow = timed_writes(&lab, "slow", 300);
    let mut most_backlog = 0.0f64;
    for _ in 0..10 {
        load.wait_for(200);
        most_backlog = most_backlog.max(lab.metric(VICTIM, "store_backlog"));
    }
    // A write that needs the slow disk takes as long as the disk: the fault is there.
    let began = Instant::now();
    let (status, said) = lab.http(1, "PUT", "/v1/kv/all-three?w=3", b"v");
    let needed_all = began.elapsed();
    let delayed = disk.counts().syncs_delayed - before;
    let middle = |times: &[Duration]| times[times.len() / 2];
    println!(
        "half of the writes within {:?} on sound disks, {:?} beside a slow one; with W=3 {needed_all:?} \
         ({status} {said}); {delayed} slow syncs, backlog up to {most_backlog}",
        middle(&sound),
        middle(&slow),
    );
    assert!(delayed > 0, "no sync was slow: {:?}", disk.counts());
    assert!(needed_all >= SLOW_SYNC, "{needed_all:?}");
    // Two acknowledge without it: far below the slow sync, and not far above what it was.
    assert!(middle(&slow) < SLOW_SYNC / 2, "{:?}", middle(&slow));
    assert!(
        middle(&slow) < middle(&sound) * 20,
        "{:?}, {:?}",
        middle(&slow),
        middle(&sound)
    );
    let waited = slow.iter().filter(|&&time| time >= SLOW_SYNC).count();
    assert!(
        waited * 10 <= slow.len(),
        "{waited} of {} writes waited",
        slow.len()
    );
    for (node, before) in (1..=3).zip(memory_before) {
        let now = resident_bytes(&lab, node);
        println!("node {node}: {} MiB, then {} MiB", before >> 20, now >> 20);
        assert!(
            now < before + GROWTH_MAX,
            "node {node} grows: {before}, {now}"
        );
    }
    assert!(most_backlog <= STORE_BACKLOG_MAX, "{most_backlog}");
    assert_eq!(lab.metric(VICTIM, "store_poisoned"), 0.0);

    disk.set_sync_delay(Duration::ZERO);
    lab.wait_writable(VICTIM);
    load.set_up(VICTIM, true);
    load.wait_for(300);
    let acked = load.finish();
    lab.wait_until("all hints are delivered", || {
        (1..=3).all(|node| lab.metric(node, "hints_pending") == 0.0)
    });
    lab.wait_equal();
    for node in 1..=3 {
        check_all(&lab, node, &acked);
    }
    lab.stop();
}
