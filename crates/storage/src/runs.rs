//! Epoch run files: `runs/EPOCH-SEGMENT.run`, the index rows that one flushed segment leaves for
//! one epoch.
//!
//! A row says that a version of a key was written in an epoch (see [`crate::row`]); rows are sorted by
//! (partition, bucket, key), one for each key: the greatest version. An epoch's run files, with the rows
//! that are still in tables, *are* the epoch index that the Merkle trees are built from, and are dropped
//! whole when the epoch is settled, and its dead records collected, in every partition.
//!
//! The last run file of a segment is marked as its **commit point**: once it is durable, everything
//! of the segment is in the engine and in run files, and the segment may go.
//!
//! # Format
//!
//! Framed (see [`crate::frame`]): a META frame, ROWS frames of about 64 KiB, a FOOTER frame that
//! says where each ROWS frame begins and with which place, and a TRAILER frame of fixed length that
//! says where the footer is, so that one partition or bucket is read without the rest.
//!
//! ```text
//! META     epoch 8 | partition count 2 | bucket count 2 | commits 1
//! ROWS     (partition 2 | bucket 2 | kind 1 | hlc 8 | node 8 | digest 16 | key length 2 | key)*
//! FOOTER   rows 8 | (partition 2 | bucket 2 | offset 8 | frame length 4)*
//! TRAILER  footer offset 8
//! ```

mod format;

use std::collections::BTreeMap;
use std::sync::Arc;

use mds_types::Epoch;
use parking_lot::Mutex;

use self::format::{Meta, RunReader};
use crate::disk::Disk;
use crate::error::StoreError;
use crate::ledger::Ledger;
use crate::log::write_whole;
use crate::row::{Place, Rank, sort_rows};

pub use crate::row::{IndexRow, RowRange};

/// The directory of the run files.
pub(crate) const RUNS_DIR: &str = "runs";

const SUFFIX: &str = ".run";

/// One run file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RunInfo {
    /// The epoch of its rows.
    pub epoch: Epoch,
    /// The segment that it was cut from.
    pub segment: u64,
    /// Length of the file, bytes.
    pub bytes: u64,
    /// Whether it commits its segment.
    pub(crate) commits: bool,
}

/// Bounds on run files, beyond which the oldest closed epochs lose their index: partitions that have not
/// settled them then have to compare records instead of rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RunLimits {
    pub(crate) bytes_max: u64,
    pub(crate) files_max: usize,
}

/// All run files of a store.
pub(crate) struct Runs {
    disk: Arc<dyn Disk>,
    seed: u64,
    partition_count: u16,
    bucket_count: u16,
    list: Mutex<BTreeMap<(Epoch, u64), RunInfo>>,
}

fn run_path(epoch: Epoch, segment: u64) -> String {
    format!("{RUNS_DIR}/{:010}-{segment:010}{SUFFIX}", epoch.0)
}

fn parse_name(name: &str) -> Option<(Epoch, u64)> {
    let (epoch, segment) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    Some((Epoch(epoch.parse().ok()?), segment.parse().ok()?))
}

impl Runs {
    /// Finds the run files and reads how each introduces itself.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        seed: u64,
        partition_count: u16,
        bucket_count: u16,
    ) -> Result<Runs, StoreError> {
        let names = disk
            .list(RUNS_DIR)
            .map_err(|error| StoreError::io("list the run files", error))?;
        let runs = Runs {
            disk,
            seed,
            partition_count,
            bucket_count,
            list: Mutex::default(),
        };
        for name in names {
            let Some((epoch, segment)) = parse_name(&name) else {
                tracing::warn!(name, "unknown file among the run files is left alone");
                continue;
            };
            let reader = runs.reader(epoch, segment)?;
            let info = RunInfo {
                epoch,
                segment,
                bytes: reader.len(),
                commits: reader.meta().commits,
            };
            runs.list.lock().insert((epoch, segment), info);
        }
        Ok(runs)
    }

    fn reader(&self, epoch: Epoch, segment: u64) -> Result<RunReader, StoreError> {
        let path = run_path(epoch, segment);
        let file = self
            .disk
            .open(&path)
            .map_err(|error| StoreError::io(format!("open {path}"), error))?;
        let reader = RunReader::open(path.clone(), file, segment)?;
        let expected = self.meta(epoch, reader.meta().commits);
        if *reader.meta() != expected {
            let what = format!("it is {:?}, not {expected:?}", reader.meta());
            return Err(StoreError::corrupt(path, 0, what));
        }
        Ok(reader)
    }

    fn meta(&self, epoch: Epoch, commits: bool) -> Meta {
        Meta {
            epoch,
            partition_count: self.partition_count,
            bucket_count: self.bucket_count,
            commits,
        }
    }

    /// All run files, by epoch and segment.
    pub(crate) fn list(&self) -> Vec<RunInfo> {
        self.list.lock().values().copied().collect()
    }

    /// Bytes of an epoch's run files.
    pub(crate) fn epoch_bytes(&self, epoch: Epoch) -> u64 {
        let list = self.list.lock();
        let infos = list.range((epoch, 0)..=(epoch, u64::MAX));
        infos.map(|(_, info)| info.bytes).sum()
    }

    /// Writes a flushed segment's rows, durably: when this returns, the segment is committed. Run
    /// files that an earlier attempt left are replaced. The caller has ingested the segment.
    pub(crate) fn write_segment(
        &self,
        segment: u64,
        rows: BTreeMap<Epoch, Vec<IndexRow>>,
    ) -> Result<(), StoreError> {
        let last = rows.keys().next_back().copied();
        for (epoch, mut rows) in rows {
            sort_rows(&mut rows);
            let commits = Some(epoch) == last;
            if commits && self.list.lock().keys().any(|key| key.1 == segment) {
                // What is committed has to be there: first the other files, then this one.
                self.sync_dir()?;
            }
            self.write_run(segment, self.meta(epoch, commits), &rows)?;
        }
        self.sync_dir()
    }

    fn write_run(&self, segment: u64, meta: Meta, rows: &[IndexRow]) -> Result<(), StoreError> {
        let path = run_path(meta.epoch, segment);
        let mut bytes = 0;
        let disk = &*self.disk;
        write_whole(disk, &path, |file| {
            bytes = format::write(file, segment, self.seed, &meta, rows)?;
            Ok(())
        })?;
        let info = RunInfo {
            epoch: meta.epoch,
            segment,
            bytes,
            commits: meta.commits,
        };
        self.list.lock().insert((meta.epoch, segment), info);
        Ok(())
    }

    /// Reads rows of an epoch from all its run files, sorted, the greatest version of each key.
    /// Those that a wipe has voided are left out.
    pub(crate) fn rows(
        &self,
        ledger: &Ledger,
        epoch: Epoch,
        range: RowRange,
    ) -> Result<Vec<IndexRow>, StoreError> {
        let segments: Vec<u64> = {
            let list = self.list.lock();
            list.range((epoch, 0)..=(epoch, u64::MAX))
                .map(|((_, segment), _)| *segment)
                .collect()
        };
        let mut rows = Vec::new();
        for segment in segments {
            if let Some(partition) = range.partition()
                && ledger.is_void(partition, segment)
            {
                continue;
            }
            let valid = |row: &IndexRow| !ledger.is_void(row.partition, segment);
            let read = self
                .reader(epoch, segment)
                .and_then(|reader| reader.read(range, valid, &mut rows));
            // Dropped meanwhile: then it is not part of the index any more.
            if self.list.lock().contains_key(&(epoch, segment)) {
                read?;
            }
        }
        sort_rows(&mut rows);
        Ok(rows)
    }

    /// The row of a key in an epoch, as [`Runs::rows`] would give it.
    pub(crate) fn row(
        &self,
        ledger: &Ledger,
        epoch: Epoch,
        (partition, bucket): Place,
        key: &[u8],
    ) -> Result<Option<Rank>, StoreError> {
        let rows = self.rows(ledger, epoch, RowRange::Bucket(partition, bucket))?;
        Ok(rows.iter().find(|row| row.key == key).map(IndexRow::rank))
    }

    /// Removes the run files that `pick` chooses, durably. Their segments must be gone, durably.
    pub(crate) fn remove(&self, pick: impl Fn(&RunInfo) -> bool) -> Result<usize, StoreError> {
        let picked: Vec<RunInfo> = self.list().into_iter().filter(|info| pick(info)).collect();
        for info in &picked {
            let path = run_path(info.epoch, info.segment);
            // Forgotten first: whatever happens, nobody is sent to a file that is gone.
            self.list.lock().remove(&(info.epoch, info.segment));
            self.disk
                .remove(&path)
                .map_err(|error| StoreError::io(format!("remove {path}"), error))?;
        }
        if !picked.is_empty() {
            self.sync_dir()?;
        }
        Ok(picked.len())
    }

    /// The oldest epoch that has to go because there is more than the limits allow, if it is closed.
    pub(crate) fn excess(&self, limits: RunLimits, closed: Epoch) -> Option<Epoch> {
        let list = self.list();
        let bytes: u64 = list.iter().map(|info| info.bytes).sum();
        let is_within = bytes <= limits.bytes_max && list.len() <= limits.files_max;
        let oldest = list.first().map(|info| info.epoch)?;
        (!is_within && oldest <= closed).then_some(oldest)
    }

    fn sync_dir(&self) -> Result<(), StoreError> {
        self.disk
            .sync_dir(RUNS_DIR)
            .map_err(|source| StoreError::Io {
                doing: format!("sync {RUNS_DIR}"),
                source,
            })
    }
}

#[cfg(test)]
mod tests;
