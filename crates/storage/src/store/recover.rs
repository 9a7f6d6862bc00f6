//! Opening a store: what an earlier life left is checked, finished and replayed.
//!
//! 1. Half-written files (`*.tmp`) are removed. Names found are made durable: what a killed process
//!    renamed may not have been.
//! 2. Segments that a run file commits are in the engine: they are deleted. They must be the
//!    oldest.
//! 3. Run files of segments that are not committed come from a flush that was cut short: they are
//!    deleted; the flush will write them again.
//! 4. The other segments are replayed in order. All but the newest must be whole, and no number
//!    between them may be missing. The newest may have a torn tail, which is cut off; it is written
//!    afresh and goes on as the active segment.
//!
//!
//! The ledger is read first; it says which rows are void. A wipe that was cut short goes on when asked to
//! (see the `wipe` module).
//!
//! Anything else is [`StoreError::Corrupt`], and the store does not open: a node that has lost what
//! it acknowledged must not answer as if it had not.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use mds_types::mutation::{Mutation, is_on};
use mds_types::slot::partition_of;
use mds_types::{Epoch, Record};

use super::shared::Shared;
use super::{Store, StoreError, StoreOptions, Tables};
use crate::disk::Disk;
use crate::engine::Engine;
use crate::epoch_index::EpochIndex;
use crate::frame::{End, Frame};
use crate::ledger::LedgerFile;
use crate::log::{
    LOG_DIR, RECORD_FRAME, REMOVAL_FRAME, ROW_FRAME, SegmentBytes, SegmentWriter, list_segments,
    remove_temporaries, segment_path,
};
use crate::row::{RowAlone, take_alone};
use crate::runs::{RUNS_DIR, Runs};
use crate::table::Table;

/// The first segment of a store.
const FIRST_SEGMENT: u64 = 1;

pub(super) fn open(
    disk: Arc<dyn Disk>,
    engine: Arc<dyn Engine>,
    options: StoreOptions,
) -> Result<Store, StoreError> {
    prepare_dirs(&*disk)?;
    let is_new = list_segments(&*disk)?.is_empty();
    // Before the first segment, so that a store with a log always has a ledger.
    let ledger = LedgerFile::open(&*disk, options.partition_count, is_new)?;
    let runs = Runs::open(
        disk.clone(),
        options.secret,
        options.partition_count,
        options.bucket_count,
    )?;
    let segments = finish_flushes(&*disk, &runs)?;
    let (log, active, frozen) = match segments.split_last() {
        None => {
            check_engine_is_empty(&*engine)?;
            let log = SegmentWriter::create(&*disk, FIRST_SEGMENT, options.secret)?;
            let active = empty_table(FIRST_SEGMENT, &options);
            (log, active, VecDeque::new())
        }
        Some((&newest, sealed)) => {
            let mut frozen = VecDeque::new();
            for &id in sealed {
                frozen.push_back(Arc::new(replay_sealed(&*disk, id, &options)?));
            }
            let (log, active) = replay_newest(&*disk, newest, &options)?;
            (log, active, frozen)
        }
    };
    let index = index_of(&active, &frozen, &runs, &ledger, &options);
    let tables = Tables {
        active,
        frozen,
        index,
    };
    Ok(Store {
        shared: Arc::new(Shared::new(disk, engine, options, tables, runs, ledger)),
        log,
        cut_pending: false,
        synced_at_ns: None,
    })
}

/// The hashes of what was recovered are not known; they are rebuilt when asked for.
fn index_of(
    active: &Table,
    frozen: &VecDeque<Arc<Table>>,
    runs: &Runs,
    ledger: &LedgerFile,
    options: &StoreOptions,
) -> EpochIndex {
    let mut recovered: BTreeSet<Epoch> = runs.list().iter().map(|info| info.epoch).collect();
    for table in frozen.iter().map(|table| &**table).chain([active]) {
        recovered.extend(table.epochs());
    }
    EpochIndex::new(
        options.partition_count,
        options.bucket_count,
        options.index_bytes_max,
        ledger.get().closed,
        recovered,
    )
}

/// A store without a log is a new one; an engine that holds something has lost its log.
fn check_engine_is_empty(engine: &dyn Engine) -> Result<(), StoreError> {
    if engine.scan(&[], &[0xff], 1, 1)?.pairs.is_empty() {
        return Ok(());
    }
    let what = "the engine holds records, but the log is gone";
    Err(StoreError::corrupt(LOG_DIR, 0, what))
}

fn empty_table(segment: u64, options: &StoreOptions) -> Table {
    Table::new(segment, options.partition_count, options.secret)
}

fn prepare_dirs(disk: &dyn Disk) -> Result<(), StoreError> {
    for dir in [LOG_DIR, RUNS_DIR] {
        disk.create_dir(dir)
            .map_err(|error| StoreError::io(format!("create {dir}"), error))?;
        remove_temporaries(disk, dir)?;
    }
    for dir in ["", LOG_DIR, RUNS_DIR] {
        disk.sync_dir(dir)
            .map_err(|error| StoreError::io(format!("sync directory {dir:?}"), error))?;
    }
    Ok(())
}

/// Finishes or undoes what a flush had begun, and returns the segments to replay.
fn finish_flushes(disk: &dyn Disk, runs: &Runs) -> Result<Vec<u64>, StoreError> {
    let found = list_segments(disk)?;
    let list = runs.list();
    let newest_run = list.iter().map(|info| info.segment).max();
    if let Some(run) = newest_run.filter(|run| found.last().is_none_or(|newest| newest <= run)) {
        // A segment is not flushed before the next one is there for good.
        let what = format!("segment {run} was flushed, but none after it is there");
        return Err(StoreError::corrupt(LOG_DIR, 0, what));
    }
    let committed: BTreeSet<u64> = list
        .iter()
        .filter(|info| info.commits)
        .map(|info| info.segment)
        .collect();
    let (done, rest): (Vec<u64>, Vec<u64>) = found.iter().partition(|id| committed.contains(id));
    let newest_committed = committed.last().copied().unwrap_or(0);
    if let Some(&early) = rest.first().filter(|id| **id < newest_committed) {
        let what = format!("segment {newest_committed} was flushed before it");
        return Err(StoreError::corrupt(segment_path(early), 0, what));
    }
    if let Some(pair) = rest.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
        let what = format!("the segment is missing, but {} is there", pair[1]);
        return Err(StoreError::corrupt(segment_path(pair[0] + 1), 0, what));
    }
    for id in done {
        let path = segment_path(id);
        disk.remove(&path)
            .map_err(|error| StoreError::io(format!("remove {path}"), error))?;
    }
    disk.sync_dir(LOG_DIR)
        .map_err(|error| StoreError::io("sync the log directory", error))?;
    runs.remove(|info| rest.contains(&info.segment))?;
    Ok(rest)
}

fn replay_sealed(disk: &dyn Disk, id: u64, options: &StoreOptions) -> Result<Table, StoreError> {
    let segment = SegmentBytes::read(disk, id)?;
    let (frames, end) = segment.frames();
    match end {
        End::Clean if !frames.is_empty() => replay(&segment, &frames, options),
        End::Clean => Err(StoreError::corrupt(segment.path, 0, "it holds no record")),
        End::Torn { at } | End::Corrupt { at } => {
            let what = "a record is damaged, and this is not the newest segment";
            Err(StoreError::corrupt(segment.path, at, what))
        }
    }
}

fn replay_newest(
    disk: &dyn Disk,
    id: u64,
    options: &StoreOptions,
) -> Result<(SegmentWriter, Table), StoreError> {
    let segment = SegmentBytes::read(disk, id)?;
    let (frames, end) = segment.frames();
    let valid = match end {
        End::Clean => segment.bytes.len(),
        End::Torn { at } => {
            let cut = segment.bytes.len() - at;
            tracing::info!(file = segment.path, at, cut, "a torn tail is cut off");
            match is_on(Mutation::TornTailKept) {
                true => segment.bytes.len(),
                false => at,
            }
        }
        End::Corrupt { at } => {
            let what = "a record is damaged, and valid ones follow it";
            return Err(StoreError::corrupt(segment.path, at, what));
        }
    };
    let table = replay(&segment, &frames, options)?;
    let log = SegmentWriter::write(disk, &segment.header, &segment.bytes[..valid])?;
    Ok((log, table))
}

fn replay(
    segment: &SegmentBytes,
    frames: &[Frame<'_>],
    options: &StoreOptions,
) -> Result<Table, StoreError> {
    let mut table = empty_table(segment.header.id, options);
    for frame in frames {
        let encoded = segment.bytes.slice(frame.payload_range());
        let record = |encoded: Bytes| {
            Record::decode(encoded)
                .map_err(|error| StoreError::record(&segment.path, frame.offset, error))
        };
        let corrupt = |what| StoreError::corrupt(&segment.path, frame.offset, what);
        match frame.kind {
            RECORD_FRAME => {
                let record = record(encoded.clone())?;
                let partition = partition_of(&record.key, options.partition_count);
                table.put(partition, &record, encoded);
            }
            REMOVAL_FRAME => {
                let header = record(encoded.clone())?;
                let partition = partition_of(&header.key, options.partition_count);
                table.put_gone(partition, &header, encoded);
            }
            ROW_FRAME => {
                let RowAlone { epoch, key, rank } = take_alone(encoded).map_err(corrupt)?;
                let partition = partition_of(&key, options.partition_count);
                table.put_aside(partition, epoch, key, rank);
            }
            kind => {
                let what = format!("unknown frame kind {kind}: written by a newer version?");
                return Err(StoreError::corrupt(&segment.path, frame.offset, what));
            }
        }
    }
    Ok(table)
}
