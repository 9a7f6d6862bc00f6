//! What the units of work cost that grow with nodes, partitions and writes: the figures that `docs/scale.md` reckons
//! with.
//!
//! ```sh
//! cargo run --release -p mds-node --example unit_costs             # a few seconds
//! cargo run --release -p mds-node --example unit_costs -- large    # placement at the limits too: a minute
//! ```
//!
//! Times are the best of some, because what disturbs a measurement only ever adds; those of the ledger include the
//! disk of the directory for temporary files (`TMPDIR`).

use std::error::Error;
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use mds_node::sync_io::{self, RootOf, SyncAnswer, SyncQuery};
use mds_node::wire::{
    self, Message, RootItem, RootReply, Roots, RootsReply, Row, RowsReply, Status, Verdict,
};
use mds_protocol::Placement;
use mds_storage::engine::MemoryEngine;
use mds_storage::pace::Unpaced;
use mds_storage::store::{Settlement, Store, StoreOptions};
use mds_storage::{FaultyDisk, RealDisk};
use mds_types::{
    Body, ClusterConfig, Epoch, Hlc, NodeId, PartitionId, Record, Topology, TopologyMember,
    TopologyVersion, Version,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// An epoch as it stands after half a year of quarters of an hour: numbers take three bytes on the wire.
const EPOCH: Epoch = Epoch(20_000);

/// What is measured is repeated so often.
const TIMES: usize = 7;

fn main() -> Outcome<()> {
    let is_large = std::env::args().any(|argument| argument == "large");
    messages()?;
    roots()?;
    for partition_count in [256, 1_024, 4_096, 16_384] {
        ledger(partition_count)?;
    }
    placement(is_large);
    Ok(())
}

/// The best of some, in microseconds.
fn best_us(mut work: impl FnMut() -> Outcome<()>) -> Outcome<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..TIMES {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_nanos() as f64 / 1e3);
    }
    Ok(best)
}

/// Bytes of a message, and the time to encode and to decode it.
fn message(what: &str, count: usize, message: &Message) -> Outcome<()> {
    let mut out = BytesMut::new();
    let us = best_us(|| {
        out.clear();
        wire::encode(black_box(message), &mut out);
        let frame = wire::next_frame(&mut out)?.ok_or("no frame")?;
        black_box(wire::decode(frame)?);
        Ok(())
    })?;
    let bytes = wire::encoded_len(message);
    let each = |total: f64| total / count as f64;
    println!(
        "{what}: {bytes} bytes for {count}, {:.1} each; encoded and decoded in {:.0} ns each",
        each(bytes as f64),
        each(us * 1e3)
    );
    Ok(())
}

fn messages() -> Outcome<()> {
    let hash = Bytes::from_static(&[7; 16]);
    let partition = |n: u32| 1_000 + n;
    for count in [1, 1_024] {
        let items = (0..count).map(|n| RootItem {
            partition: partition(n),
            epoch: EPOCH.0,
            root: hash.clone(),
        });
        let asked = Message::Roots(Roots {
            id: 1 << 40,
            topology: 9,
            items: items.collect(),
        });
        message("roots asked", count as usize, &asked)?;
        let answer = RootReply {
            verdict: Verdict::Equal as i32,
            epoch: 0,
            chain: Bytes::from_static(&[0; 16]),
        };
        let answered = Message::RootsReply(RootsReply {
            id: 1 << 40,
            status: Status::Ok as i32,
            answers: vec![answer; count as usize],
        });
        message("roots answered", count as usize, &answered)?;
    }
    let rows = (0..1_024).map(|n| Row {
        key: Bytes::from(format!("key:{n:012}")),
        hlc: 7,
        node: 7,
        digest: hash.clone(),
        kind: 1,
        bucket: 1,
    });
    let rows = Message::RowsReply(RowsReply {
        id: 1 << 40,
        status: Status::Ok as i32,
        rows: rows.collect(),
        more: false,
    });
    message("rows, 16-byte keys", 1_024, &rows)
}

fn record(number: u64) -> Record {
    Record {
        key: Bytes::from(format!("key:{number:012}")),
        version: Version {
            hlc: Hlc::from_physical_us(number + 1),
            node: NodeId(1),
        },
        epoch: Epoch(1),
        expires_at_ms: None,
        body: Body::Value(Bytes::from(vec![b'v'; 100])),
    }
}

/// The time to read a closed root, and to compare one: without rows, with rows whose hashes are known, and
/// when they are still to be hashed.
fn roots() -> Outcome<()> {
    let partition_count = 256;
    for writes in [0, 100_000] {
        let options = StoreOptions {
            partition_count,
            ..StoreOptions::default()
        };
        let disk = Arc::new(FaultyDisk::new(7));
        let mut store = Store::open(disk, Arc::new(MemoryEngine::new()), options)?;
        let records: Vec<Record> = (0..writes).map(record).collect();
        for batch in records.chunks(1_024) {
            store.merge(batch)?;
        }
        store.epoch_changed(Epoch(3))?;
        while store.flusher().work()? {}
        store.close_epochs(Epoch(1))?;
        let reader = store.reader();
        let asked = (0..partition_count).map(|n| (PartitionId(n), Epoch(1)));
        let asked = SyncQuery::Roots(asked.collect());
        let mut known: Vec<RootOf> = Vec::new();
        let us = best_us(|| {
            if let SyncAnswer::Roots(roots) = sync_io::answer(&reader, &asked, &Unpaced)? {
                known = roots;
            }
            Ok(())
        })?;
        let each = us / f64::from(partition_count);
        println!("a root of an epoch with {writes} writes, read: {each:.2} us");
        let theirs = SyncQuery::Compare(known);
        let us = best_us(|| {
            black_box(sync_io::answer(&reader, &theirs, &Unpaced)?);
            Ok(())
        })?;
        let each = us / f64::from(partition_count);
        println!("a root of an epoch with {writes} writes, compared: {each:.2} us");
        println!("bytes of bucket hashes: {}", reader.stats().index_bytes);
    }
    Ok(())
}

/// What one write of the ledger costs: all partitions settled together, with syncs.
fn ledger(partition_count: u16) -> Outcome<()> {
    let root: PathBuf = std::env::temp_dir().join(format!("mds-unit-costs-{}", std::process::id()));
    std::fs::create_dir_all(&root)?;
    let options = StoreOptions {
        partition_count,
        ..StoreOptions::default()
    };
    let disk = Arc::new(RealDisk::new(root.clone()));
    let mut store = Store::open(disk, Arc::new(MemoryEngine::new()), options)?;
    store.close_epochs(Epoch(1_000))?;
    let mut epoch = 0;
    let us = best_us(|| {
        epoch += 1;
        let settlement = |n: u16| Settlement {
            partition: PartitionId(n),
            epoch: Epoch(epoch),
            chain: 7,
        };
        let all: Vec<Settlement> = (0..partition_count).map(settlement).collect();
        store.settle(&all)?;
        Ok(())
    })?;
    let bytes = std::fs::metadata(root.join("epochs"))?.len();
    println!(
        "ledger of {partition_count} partitions: {bytes} bytes, written and synced in {us:.0} us"
    );
    drop(store);
    std::fs::remove_dir_all(&root)?;
    Ok(())
}

/// Members of equal weight in three zones.
fn topology(nodes: u64) -> Topology {
    let member = |n: u64| TopologyMember {
        node: NodeId(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        zone: format!("zone-{}", n % 3),
        weight: 100,
    };
    let mut members: Vec<TopologyMember> = (1..=nodes).map(member).collect();
    members.sort_by_key(|member| member.node);
    Topology {
        version: TopologyVersion(1),
        members,
    }
}

/// How long placement takes, and what moves when one more node joins.
fn placement(is_large: bool) {
    for nodes in [3, 10, 100, 1_000] {
        for partition_count in [256, 1_024, 4_096, 16_384] {
            let pairs = nodes * u64::from(partition_count);
            if pairs > 2_000_000 && !is_large {
                println!(
                    "placement of {nodes} nodes, {partition_count} partitions: left out, see `large`"
                );
                continue;
            }
            let config = ClusterConfig {
                partition_count,
                ..ClusterConfig::default()
            };
            let before = topology(nodes);
            let start = Instant::now();
            let old = Placement::compute(&before, &config);
            let ms = start.elapsed().as_nanos() as f64 / 1e6;
            let new = Placement::compute(&topology(nodes + 1), &config);
            let moved: usize = (0..partition_count)
                .map(PartitionId)
                .map(|partition| {
                    let held = old.replicas(partition);
                    let gained = new.replicas(partition).iter();
                    gained.filter(|node| !held.contains(node)).count()
                })
                .sum();
            println!(
                "placement of {nodes} nodes, {partition_count} partitions: {ms:.1} ms; one more moves \
                 {moved} replicas"
            );
        }
    }
}
