//! How a store works: its options, their defaults and bounds.

use mds_types::limits::{SLOT_COUNT, VALUE_BYTES_MAX};

/// Default bound on a log segment, bytes: beyond it the next batch starts a new one. Memory is
/// about (frozen tables + 1) times this; the replay of a full one takes about a tenth of a second.
pub const SEGMENT_BYTES_MAX: usize = 48 * 1024 * 1024;

/// No segment is asked to be larger than this, bytes, whatever the options say.
const SEGMENT_BYTES_CEILING: usize = 1024 * 1024 * 1024;

/// Default bound on tables that wait to be flushed; beyond it merges are refused as
/// [`StoreError::Behind`](super::StoreError::Behind).
pub const FROZEN_TABLES_MAX: usize = 2;

/// Default bound on all run files together, bytes; beyond it the oldest closed epochs lose theirs.
pub const RUN_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// Default bound on the number of run files; beyond it the oldest closed epochs lose theirs.
pub const RUN_FILES_MAX: usize = 4096;

/// Default bound on the bucket hashes in memory, bytes.
pub const INDEX_BYTES_MAX: usize = crate::epoch_index::INDEX_BYTES_MAX;

/// Default bound on the keys that one step of a wipe drops from the engine.
pub const WIPE_KEYS_MAX: usize = 32 * 1024;

/// Default bound on the rows that one step of the search for dead records looks at, beyond which it stops at the next
/// bucket.
pub const SEARCH_ROWS_MAX: usize = 4 * 1024;

/// Default bound on the records of the engine that are kept in memory, bytes.
pub const CACHE_BYTES_MAX: usize = crate::cache::CACHE_BYTES_MAX;

/// Default number of Merkle leaves in a partition.
pub const BUCKET_COUNT: u16 = 64;

/// When the log is synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FsyncPolicy {
    /// Before a merge returns: it survives a loss of power.
    Always,
    /// By [`Store::tick`](super::Store::tick), this many milliseconds after the last sync: a loss of power costs at
    /// most what was merged since. A crash of the process costs nothing.
    Interval {
        /// Milliseconds between syncs.
        ms: u64,
    },
    /// When the operating system likes to. A crash of the process costs nothing.
    Os,
}

/// How a store works.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Partitions of the cluster: a power of two up to 16384, fixed for its life.
    pub partition_count: u16,
    /// Merkle leaves in a partition, at least 1. Fixed like the partitions.
    pub bucket_count: u16,
    /// When the log is synced.
    pub fsync: FsyncPolicy,
    /// See [`SEGMENT_BYTES_MAX`].
    pub segment_bytes_max: usize,
    /// See [`FROZEN_TABLES_MAX`]; at least 1.
    pub frozen_tables_max: usize,
    /// See [`RUN_BYTES_MAX`].
    pub run_bytes_max: u64,
    /// See [`RUN_FILES_MAX`].
    pub run_files_max: usize,
    /// Bound on the bucket hashes in memory, bytes; beyond it they are rebuilt from rows when asked for.
    pub index_bytes_max: usize,
    /// See [`CACHE_BYTES_MAX`]; 0: every lookup of what is in no table asks the engine.
    pub cache_bytes_max: usize,
    /// See [`WIPE_KEYS_MAX`]; at least 1.
    pub wipe_keys_max: usize,
    /// See [`SEARCH_ROWS_MAX`]; at least 1.
    pub search_rows_max: usize,
    /// Values longer than this are refused; at most [`VALUE_BYTES_MAX`].
    pub value_bytes_max: usize,
    /// A number that clients do not know, such as a part of the directory's incarnation: it salts
    /// checksums and hash tables, so that nobody can choose keys or values that upset them.
    pub secret: u64,
    /// Seeds the hashes of index rows. All replicas of a cluster need the same, and it should differ
    /// between clusters.
    pub row_seed: u64,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions {
            partition_count: 256,
            bucket_count: BUCKET_COUNT,
            fsync: FsyncPolicy::Always,
            segment_bytes_max: SEGMENT_BYTES_MAX,
            frozen_tables_max: FROZEN_TABLES_MAX,
            run_bytes_max: RUN_BYTES_MAX,
            run_files_max: RUN_FILES_MAX,
            index_bytes_max: INDEX_BYTES_MAX,
            cache_bytes_max: CACHE_BYTES_MAX,
            wipe_keys_max: WIPE_KEYS_MAX,
            search_rows_max: SEARCH_ROWS_MAX,
            value_bytes_max: VALUE_BYTES_MAX,
            secret: 0,
            row_seed: 0,
        }
    }
}

impl StoreOptions {
    /// The nearest options that make sense.
    pub(super) fn sane(mut self) -> StoreOptions {
        let partition_count = self.partition_count.clamp(1, SLOT_COUNT);
        self.partition_count = partition_count.next_power_of_two();
        self.bucket_count = self.bucket_count.max(1);
        self.segment_bytes_max = self.segment_bytes_max.min(SEGMENT_BYTES_CEILING);
        self.frozen_tables_max = self.frozen_tables_max.max(1);
        self.wipe_keys_max = self.wipe_keys_max.max(1);
        self.search_rows_max = self.search_rows_max.max(1);
        self.value_bytes_max = self.value_bytes_max.min(VALUE_BYTES_MAX);
        self
    }
}
