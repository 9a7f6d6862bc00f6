//! What a replica holds, in a few numbers: to show that replicas are equal, byte for byte.

use bytes::Bytes;
use mds_storage::store::{StoreError, StoreReader};
use mds_types::PartitionId;
use xxhash_rust::xxh3::Xxh3;

/// The content of one partition of one replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionDigest {
    /// The partition.
    pub partition: PartitionId,
    /// Records, tombstones included.
    pub records: u64,
    /// Tombstones among them.
    pub tombstones: u64,
    /// xxh3-128 over the binary forms of all records in key order.
    pub hash: u128,
}

/// Records read at a time, at most...
const CHUNK_RECORDS: usize = 1024;

/// ...and their bytes.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// Reads a whole partition and digests it. Takes as long as reading it does.
///
/// # Errors
/// The store's.
pub fn digest(reader: &StoreReader, partition: PartitionId) -> Result<PartitionDigest, StoreError> {
    let mut hash = Xxh3::new();
    let mut digest = PartitionDigest {
        partition,
        records: 0,
        tombstones: 0,
        hash: 0,
    };
    let mut after: Option<Bytes> = None;
    let mut bytes = Vec::new();
    loop {
        let (records, more) =
            reader.scan_page(partition, after.as_deref(), CHUNK_RECORDS, CHUNK_BYTES)?;
        for record in &records {
            bytes.clear();
            record.encode(&mut bytes);
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(&bytes);
            digest.records += 1;
            digest.tombstones += u64::from(record.value().is_none());
        }
        match records.last() {
            Some(last) if more => after = Some(last.key.clone()),
            _ => break,
        }
    }
    digest.hash = hash.digest128();
    Ok(digest)
}
