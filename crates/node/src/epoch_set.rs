//! What a replica has of one (partition, epoch), for people who compare replicas.
//!
//! It is what anti-entropy compares, by the same tree: the root over what was *written* in the epoch, and the
//! leaves below it. Once an epoch is settled its rows are dropped, and what is left to compare is the
//! **chain**, a hash over the roots of all epochs up to the watermark: two replicas with equal watermarks and
//! equal chains had equal sets in every one of them.
//!
//! What it does not do: ask anybody else, or change anything.

use mds_protocol::merkle::Tree;
use mds_storage::store::{Ledger, PartitionState, StoreError, StoreReader};
use mds_types::{Epoch, PartitionId};

/// What a replica has of one epoch of a partition, and what it has promised about the partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EpochSet {
    /// The epoch that was closed last here.
    pub closed: Epoch,
    /// The partition's watermark here.
    pub settled: Epoch,
    /// The chain of roots up to the watermark.
    pub chain: u128,
    /// Dead records that these epochs left have been removed.
    pub collected: Epoch,
    /// What there is of the epoch.
    pub found: Found,
}

/// What there is of an epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// It is not closed here: writes may come still, so there is nothing to compare.
    NotClosed,
    /// Closed, and not settled: its tree.
    Tree {
        /// Rows in all leaves.
        rows: u64,
        /// The root.
        root: u128,
        /// For each bucket the hash of its leaf, zero if it is empty, and its rows.
        leaves: Vec<(u128, u32)>,
    },
    /// Settled: found equal on all replicas, and dropped since.
    Settled,
    /// The partition is being copied here; its source had settled the epoch.
    Copied,
    /// Its rows were dropped for want of room before it was verified.
    Lost,
    /// The partition is not here.
    NotHere,
}

/// Reads what a replica has of one epoch of a partition. Blocking: may read the rows.
///
/// # Errors
/// The store's.
pub fn epoch_set(
    reader: &StoreReader,
    partition: PartitionId,
    epoch: Epoch,
) -> Result<EpochSet, StoreError> {
    let ledger = reader.ledger();
    if epoch > ledger.closed {
        return Ok(of_ledger(&ledger, partition, Found::NotClosed));
    }
    if let Some(leaves) = reader.leaves(epoch, partition)? {
        let tree = Tree::new(&leaves.hashes, &leaves.rows);
        let nodes: Vec<u32> = (0..leaves.rows.len() as u32).collect();
        let hashes = tree.hashes(tree.depth() - 1, &nodes).unwrap_or_default();
        let found = Found::Tree {
            rows: leaves.row_count(),
            root: tree.root(),
            leaves: hashes.into_iter().zip(leaves.rows).collect(),
        };
        return Ok(of_ledger(&ledger, partition, found));
    }
    // What it was before may have been settled meanwhile.
    let ledger = reader.ledger();
    let entry = ledger.partition(partition);
    let found = match &entry.state {
        PartitionState::Wiping | PartitionState::Absent => Found::NotHere,
        _ if epoch <= entry.settled => Found::Settled,
        PartitionState::Streaming { settled, .. } if epoch <= *settled => Found::Copied,
        _ => Found::Lost,
    };
    Ok(of_ledger(&ledger, partition, found))
}

fn of_ledger(ledger: &Ledger, partition: PartitionId, found: Found) -> EpochSet {
    let entry = ledger.partition(partition);
    EpochSet {
        closed: ledger.closed,
        settled: entry.settled,
        chain: entry.chain,
        collected: entry.collected,
        found,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mds_storage::engine::MemoryEngine;
    use mds_storage::store::{Settlement, Store, StoreOptions};
    use mds_storage::{Disk, FaultyDisk};
    use mds_types::{Body, Hlc, NodeId, Record, Version};

    use super::*;

    fn store() -> Store {
        let disk: Arc<dyn Disk> = Arc::new(FaultyDisk::new(7));
        let engine = Arc::new(MemoryEngine::new());
        let options = StoreOptions {
            partition_count: 1,
            ..StoreOptions::default()
        };
        Store::open(disk, engine, options).unwrap()
    }

    fn record(key: &str, epoch: u64) -> Record {
        Record {
            key: key.to_owned().into(),
            version: Version {
                hlc: Hlc::from_physical_us(epoch),
                node: NodeId(1),
            },
            epoch: Epoch(epoch),
            expires_at_ms: None,
            body: Body::Value("v".into()),
        }
    }

    #[test]
    fn an_epoch_is_open_then_closed_with_a_tree_then_settled_without() {
        let (mut store, partition) = (store(), PartitionId(0));
        let reader = store.reader();
        let write = |store: &mut Store, key: &str| {
            let outcomes = store.merge(&[record(key, 1)]).unwrap();
            assert_eq!(outcomes.len(), 1);
        };
        write(&mut store, "a");
        write(&mut store, "b");
        let found = |epoch| epoch_set(&reader, partition, Epoch(epoch)).unwrap().found;
        assert_eq!(found(1), Found::NotClosed);
        store.close_epochs(Epoch(1)).unwrap();
        let Found::Tree { rows, root, leaves } = found(1) else {
            panic!("{:?}", found(1));
        };
        assert_eq!((rows, leaves.len()), (2, 64));
        assert_eq!(leaves.iter().map(|(_, rows)| *rows).sum::<u32>(), 2);
        assert!(
            leaves
                .iter()
                .all(|(hash, rows)| (*hash == 0) == (*rows == 0))
        );
        let settled = Settlement {
            partition,
            epoch: Epoch(1),
            chain: root,
        };
        store.settle(&[settled]).unwrap();
        let set = epoch_set(&reader, partition, Epoch(1)).unwrap();
        assert_eq!(
            (set.found, set.settled, set.chain),
            (Found::Settled, Epoch(1), root)
        );
        assert_eq!(
            epoch_set(&reader, PartitionId(7), Epoch(1)).unwrap().found,
            Found::NotHere
        );
    }
}
