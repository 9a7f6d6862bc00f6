//! Planted bugs that a single store shows. A process of its own, because a bug is switched on for the whole process:
//! `cargo test -p mds-storage --features mutations --test planted_bugs`.

use std::sync::Arc;

use bytes::Bytes;
use mds_storage::disk::FaultyDisk;
use mds_storage::engine::MemoryEngine;
use mds_storage::store::{Merged, Purpose, Settlement, Store, StoreOptions};
use mds_types::mutation::{Mutation, switch};
use mds_types::{Body, Epoch, Hlc, NodeId, PartitionId, Record, Version};

fn record(epoch: u64, body: Body) -> Record {
    Record {
        key: Bytes::from_static(b"key"),
        version: Version {
            hlc: Hlc(epoch * 100),
            node: NodeId(1),
        },
        epoch: Epoch(epoch),
        expires_at_ms: None,
        body,
    }
}

/// A replica has deleted a key and collected its tombstone; another one, which is behind, holds the key still. What
/// becomes of an attempt to take it for lost?
fn rebuilt_from_another_past() -> Merged {
    let options = StoreOptions {
        partition_count: 1,
        ..StoreOptions::default()
    };
    let (disk, engine) = (FaultyDisk::new(1), MemoryEngine::new());
    let mut store = Store::open(Arc::new(disk), Arc::new(engine), options).unwrap();
    let value = record(1, Body::Value(Bytes::from_static(b"value")));
    store.merge(std::slice::from_ref(&value)).unwrap();
    store.merge(&[record(2, Body::Tombstone)]).unwrap();
    store.close_epochs(Epoch(2)).unwrap();
    let partition = PartitionId(0);
    for (epoch, chain) in [(1, 11), (2, 22)] {
        let epoch = Epoch(epoch);
        store
            .settle(&[Settlement {
                partition,
                epoch,
                chain,
            }])
            .unwrap();
    }
    store.search_dead(vec![(partition, Hlc(300))]);
    while store.is_searching() {
        store.flusher().work().unwrap();
        store.collect_found(10).unwrap();
    }
    assert_eq!(store.reader().get(b"key").unwrap(), None);
    let purpose = Purpose::Rebuild {
        settled: Epoch(1),
        chain: 11,
    };
    store.merge_for(&[(purpose, value)]).unwrap()[0]
}

#[test]
fn a_rebuild_that_compares_no_pasts_resurrects() {
    assert_eq!(rebuilt_from_another_past(), Merged::Settled);
    switch(Some(Mutation::RebuildResurrects));
    let resurrected = rebuilt_from_another_past();
    switch(None);
    assert_eq!(resurrected, Merged::Applied, "the bug would not be noticed");
}
