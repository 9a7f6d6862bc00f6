//! The store: the one door to user data.
//!
//! Every change to user data goes through [`Store::merge`]: a record that wins over what is there,
//! by the merge law, is appended to the log as one frame (so the record and its epoch row cannot
//! part), becomes visible in the active table, and reaches the engine and the epoch index in the
//! background. A record that does not win leaves no trace.
//!
//! There is one writer, [`Store`], so comparing and writing need no lock per key; any number of
//! [`StoreReader`]s; and one [`Flusher`] at a time.
//!
//! **Invariants**
//!
//! 1. A batch is one append and, under [`FsyncPolicy::Always`], one sync. Only then does it become
//!    visible: what a reader sees is as durable as the policy promises, over restarts too.
//! 2. Only winners are appended, so of one key the later frame is the newer record.
//! 3. Readers look in the active table, the frozen ones from new to old, the cache of what the engine holds, then
//!    the engine. A table goes only after the engine shows its records, and the cache nothing older.
//! 4. Flush order (see [`flush`](Flusher)): segments reach the engine strictly in order, each
//!    committed and deleted before the next is handed over, because the engine keeps what arrives
//!    last and not what is newest.
//! 5. What an epoch's rows say is kept exactly, in the log and in memory: a version that comes after a
//!    greater one still leaves its row, by a frame of its own (trap T13).
//! 6. What the ledger has promised is kept at the door: nothing a watermark has passed is merged, nothing a
//!    client writes comes into a closed epoch (see [`Merged`] and the `judge` module).
//! 7. After a failed write or sync nobody knows what is on disk: the store is *poisoned*, it
//!    answers nothing more. A full disk is refused gracefully ([`StoreError::Full`]) as long as the
//!    part that was appended can be cut off again.
//!
//! What it does not do: decide when an epoch is closed, settled or collected, or when a partition is
//! wiped. It carries that out, and remembers it.

mod chores;
mod collect;
mod flush;
mod judge;
mod options;
mod reader;
mod recover;
mod scan;
mod scrub;
mod shared;
mod watermarks;
mod wipe;

use std::collections::VecDeque;
use std::sync::Arc;

use mds_types::limits::KEY_BYTES_MAX;
use mds_types::mutation::{Mutation, is_on};
use mds_types::{Body, Epoch, Record};

use self::judge::{Accepted, What};
use self::shared::{Counter, Shared};
use crate::disk::Disk;
use crate::engine::Engine;
use crate::epoch_index::EpochIndex;
use crate::frame::{FRAME_HEADER_BYTES, FrameEncoder};
use crate::log::{AppendError, RECORD_FRAME, REMOVAL_FRAME, ROW_FRAME, SegmentWriter};
use crate::row::{self, IndexRow, Rank};
use crate::table::{Entry, Table};

pub use self::collect::{Collected, Dead};
pub use self::flush::Flusher;
pub use self::options::{
    BUCKET_COUNT, CACHE_BYTES_MAX, FROZEN_TABLES_MAX, FsyncPolicy, INDEX_BYTES_MAX, RUN_BYTES_MAX,
    RUN_FILES_MAX, SEARCH_ROWS_MAX, SEGMENT_BYTES_MAX, StoreOptions, WIPE_KEYS_MAX,
};
pub use self::reader::{Lookup, StoreReader};
pub use self::scrub::{RangeOf, Scrub, ScrubFinding, ScrubOptions, ScrubStep, SettledRange};
pub use self::shared::StoreStats;
pub use self::watermarks::{SettleOutcome, Settlement};
pub use self::wipe::WipeProgress;
pub use crate::epoch_index::Leaves;
pub use crate::error::StoreError;
pub use crate::ledger::{Ledger, PartitionLedger, PartitionState};

/// Why a record comes: it decides until when it may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// A client's write, now.
    Write,
    /// A write that this replica missed, kept for it by a coordinator.
    Hint,
    /// A coordinator saw that this replica is behind.
    Repair,
    /// From another replica's set: verification, or a stream.
    Sync,
    /// Below the watermark, where nothing else comes in: a majority of the replicas holds it, all with this
    /// past, so that this replica has lost it (see [`Scrub`] for the proof). Refused unless this replica's
    /// watermark and chain are still exactly these.
    Rebuild {
        /// The watermark that all of them have.
        settled: Epoch,
        /// Their chain up to there.
        chain: u128,
    },
}

/// What became of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Merged {
    /// It won and is written.
    Applied,
    /// Something newer is there.
    Superseded,
    /// That very version is there.
    Same,
    /// Refused: a client's write or a hint of an epoch that is closed here. Nothing was done.
    EpochClosed,
    /// Refused: the partition's watermark has passed the record's epoch, and neither the record nor
    /// anything newer is there. It was deleted or overwritten long ago, everywhere.
    Settled,
    /// Refused: the partition is not here, or is just being wiped. Nothing was done.
    NotHere,
}

impl Merged {
    /// Whether the record, or something newer, is there.
    pub fn is_there(self) -> bool {
        matches!(self, Merged::Applied | Merged::Superseded | Merged::Same)
    }
}

/// What became of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowMerged {
    /// It is in the index now.
    Logged,
    /// It, or a greater one of its key, was there.
    Present,
    /// Refused: neither its version nor a newer one is here. Fetch the record first.
    RecordMissing,
    /// Refused: the partition keeps no new rows of the epoch.
    Settled,
    /// Refused: the partition is not here.
    NotHere,
}

/// The single writer of a store.
pub struct Store {
    shared: Arc<Shared>,
    log: SegmentWriter,
    /// The epoch changed while no table could be frozen: cut as soon as one can.
    cut_pending: bool,
    /// When [`Store::tick`] last found the log synced or synced it, nanoseconds.
    synced_at_ns: Option<u64>,
}

impl Store {
    /// Opens a store, recovering what an earlier life left: see the `recover` module.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if anything but the torn end of the newest segment is damaged;
    /// [`StoreError::Full`] if there is no room for another copy of the newest segment.
    pub fn open(
        disk: Arc<dyn Disk>,
        engine: Arc<dyn Engine>,
        options: StoreOptions,
    ) -> Result<Store, StoreError> {
        recover::open(disk, engine, options.sane())
    }

    /// Merges records, in order: the one door. When it returns `Ok`, the winners are visible, and
    /// durable by the policy; so are the index rows of what was superseded.
    ///
    /// # Errors
    /// After an error nothing of the batch is visible. [`StoreError::Full`] and
    /// [`StoreError::Behind`]: try again later. [`StoreError::Limit`]: a record is too large. A
    /// failed or damaged read of the engine or a run file refuses the batch only. Else the store is
    /// poisoned, and part of the batch may be found after a restart.
    pub fn merge_for(&mut self, merges: &[(Purpose, Record)]) -> Result<Vec<Merged>, StoreError> {
        self.merge_each(merges.iter().map(|(purpose, record)| (*purpose, record)))
    }

    /// [`Store::merge_for`] of records that come from another replica's set.
    ///
    /// # Errors
    /// As there.
    pub fn merge(&mut self, records: &[Record]) -> Result<Vec<Merged>, StoreError> {
        self.merge_each(records.iter().map(|record| (Purpose::Sync, record)))
    }

    fn merge_each<'a>(
        &mut self,
        merges: impl ExactSizeIterator<Item = (Purpose, &'a Record)> + Clone,
    ) -> Result<Vec<Merged>, StoreError> {
        self.shared.check_sound()?;
        self.check_limits(merges.clone())?;
        let (mut outcomes, mut accepted) = judge::judge(&self.shared, merges.clone())?;
        if !accepted.is_empty() {
            if self.make_room(bytes_of(&accepted))? {
                // What was in the active table is in an older one now, and that makes a difference.
                (outcomes, accepted) = judge::judge(&self.shared, merges)?;
            }
            self.commit(&accepted)?;
        }
        self.shared.count_merges(&outcomes);
        Ok(outcomes)
    }

    /// Takes rows that another replica has in an epoch's set, as far as their versions, or newer ones, are
    /// here: superseded counts as present (trap T13). So sets become equal although the records of some rows
    /// are gone everywhere. Partition and bucket of the rows are not relied on.
    ///
    /// # Errors
    /// As [`Store::merge_for`].
    pub fn merge_rows(&mut self, rows: &[(Epoch, IndexRow)]) -> Result<Vec<RowMerged>, StoreError> {
        self.shared.check_sound()?;
        let header = |(epoch, row): &(Epoch, IndexRow)| Record {
            key: row.key.clone(),
            version: row.version,
            epoch: *epoch,
            expires_at_ms: None,
            body: Body::Tombstone,
        };
        let headers: Vec<Record> = rows.iter().map(header).collect();
        let ranks: Vec<Rank> = rows.iter().map(|(_, row)| row.rank()).collect();
        self.check_limits(headers.iter().map(|header| (Purpose::Sync, header)))?;
        let (mut outcomes, mut accepted) = judge::judge_rows(&self.shared, &headers, &ranks)?;
        if !accepted.is_empty() {
            if self.make_room(bytes_of(&accepted))? {
                (outcomes, accepted) = judge::judge_rows(&self.shared, &headers, &ranks)?;
            }
            self.commit(&accepted)?;
        }
        Ok(outcomes)
    }

    /// Refuses what is too large before the first byte is written.
    fn check_limits<'a>(
        &self,
        merges: impl Iterator<Item = (Purpose, &'a Record)>,
    ) -> Result<(), StoreError> {
        for (index, (_, record)) in merges.enumerate() {
            let what = if record.key.is_empty() {
                "the key is empty"
            } else if record.key.len() > KEY_BYTES_MAX {
                "the key is longer than 32 KiB"
            } else if record.value().map_or(0, bytes::Bytes::len) > self.shared.value_bytes_max() {
                "the value is longer than the limit"
            } else {
                continue;
            };
            return Err(StoreError::Limit { index, what });
        }
        Ok(())
    }

    /// Writes what was accepted to the log and makes it visible. There is room for it.
    fn commit(&mut self, accepted: &[Accepted<'_>]) -> Result<(), StoreError> {
        let bytes = bytes_of(accepted);
        let mut encoder = FrameEncoder::with_capacity(self.log.salt(), bytes);
        let mut places = Vec::with_capacity(accepted.len());
        for (index, accepted) in accepted.iter().enumerate() {
            let record = accepted.record;
            let place = match accepted.what {
                What::Record => encoder.push_with(RECORD_FRAME, |out| record.encode(out)),
                What::Removal => encoder.push_with(REMOVAL_FRAME, |out| record.encode(out)),
                What::RowAlone(rank) => encoder.push_with(ROW_FRAME, |out| {
                    row::put_alone(record.epoch, &record.key, rank, out);
                }),
            };
            // Within the limits a record always fits a frame.
            let what = "the record is too long";
            places.push(place.map_err(|_| StoreError::Limit { index, what })?);
        }
        let encoded = encoder.finish();
        self.append(&encoded)?;

        let is_alone = |one: &&Accepted<'_>| matches!(one.what, What::RowAlone(_));
        let rows_alone = accepted.iter().filter(is_alone).count();
        self.shared.add(Counter::RowsAlone, rows_alone as u64);
        let mut tables = self.shared.tables.write();
        for (accepted, place) in accepted.iter().zip(places) {
            let (partition, record) = (accepted.partition, accepted.record);
            let payload = encoded.slice(place);
            match accepted.what {
                What::Record => tables.active.put(partition, record, payload),
                What::Removal => tables.active.put_gone(partition, record, payload),
                What::RowAlone(rank) => {
                    // The log's bytes, not the record's: those may belong to something larger.
                    let key = payload.slice(payload.len() - record.key.len()..);
                    tables.active.put_aside(partition, record.epoch, key, rank);
                }
            }
            tables.index.apply(record.epoch, partition, accepted.index);
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        match self.log.append(bytes) {
            Ok(()) => {}
            Err(AppendError::Full) => return Err(StoreError::Full),
            Err(AppendError::Broken(error)) => {
                return Err(self
                    .shared
                    .poison(format!("cannot append to the log: {error}")));
            }
        }
        self.shared.add(Counter::LogBytes, bytes.len() as u64);
        if self.shared.options.fsync == FsyncPolicy::Always && !is_on(Mutation::AckBeforeSync) {
            self.sync()?;
        }
        Ok(())
    }

    /// Syncs the log now, whatever the policy.
    ///
    /// # Errors
    /// A failure poisons the store.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        self.shared.check_sound()?;
        if self.log.is_synced() {
            return Ok(());
        }
        self.shared.add(Counter::Syncs, 1);
        self.log
            .sync()
            .or_else(|error| match is_on(Mutation::FailedSyncRetried) {
                true => self.log.sync(),
                false => Err(error),
            })
            .map_err(|error| self.shared.poison(format!("cannot sync the log: {error}")))
    }

    /// Starts a new segment if `bytes` more would not fit this one, or if the epoch was cut; whether it did.
    fn make_room(&mut self, bytes: usize) -> Result<bool, StoreError> {
        let segment = self.log.id();
        if self.log.len() + bytes as u64 > self.shared.options.segment_bytes_max as u64 {
            self.freeze()?;
        } else if self.cut_pending {
            self.try_cut()?;
        }
        Ok(self.log.id() != segment)
    }

    /// Starts a new segment, if that can be done now. It only keeps epochs apart, so it can wait:
    /// run files are written for each epoch anyway.
    fn try_cut(&mut self) -> Result<(), StoreError> {
        match self.freeze() {
            Ok(_) | Err(StoreError::Behind { .. } | StoreError::Full) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends the active segment, leaves its table to the flusher, and starts a new one. False if
    /// there was nothing in it.
    ///
    /// # Errors
    /// [`StoreError::Behind`] if too many tables wait already, [`StoreError::Full`]; nothing has
    /// changed then. Else the store is poisoned.
    pub fn freeze(&mut self) -> Result<bool, StoreError> {
        self.shared.check_sound()?;
        let frozen = {
            let tables = self.shared.tables.read();
            if tables.active.is_empty() {
                self.cut_pending = false;
                return Ok(false);
            }
            tables.frozen.len()
        };
        if frozen >= self.shared.options.frozen_tables_max {
            return Err(StoreError::Behind { frozen });
        }
        // All segments but the newest are durable to their end.
        self.sync()?;
        let id = self.log.id() + 1;
        self.log = SegmentWriter::create(&*self.shared.disk, id, self.shared.options.secret)
            .map_err(|error| self.shared.poison_unless_full(error))?;
        self.cut_pending = false;
        let empty = self.shared.new_table(id);
        let mut tables = self.shared.tables.write();
        let full = std::mem::replace(&mut tables.active, empty);
        tables.frozen.push_back(Arc::new(full));
        Ok(true)
    }

    /// Says that the cluster is in this epoch now: the segment is cut, at once or as soon as the
    /// flusher allows, so that segments mostly hold one epoch.
    ///
    /// # Errors
    /// If the store is or becomes poisoned.
    pub fn epoch_changed(&mut self, epoch: Epoch) -> Result<(), StoreError> {
        self.shared.check_sound()?;
        if self.shared.raise_epoch(epoch) {
            self.cut_pending = true;
            self.try_cut()?;
        }
        Ok(())
    }

    /// The passing of time, nanoseconds of a monotonic clock: syncs when the interval is over.
    ///
    /// # Errors
    /// If the store is or becomes poisoned.
    pub fn tick(&mut self, mono_ns: u64) -> Result<(), StoreError> {
        self.shared.check_sound()?;
        let FsyncPolicy::Interval { ms } = self.shared.options.fsync else {
            return Ok(());
        };
        let since = *self.synced_at_ns.get_or_insert(mono_ns);
        if self.log.is_synced() {
            self.synced_at_ns = Some(mono_ns);
        } else if mono_ns.saturating_sub(since) >= ms.saturating_mul(1_000_000) {
            self.sync()?;
            self.synced_at_ns = Some(mono_ns);
        }
        Ok(())
    }

    /// A handle for reading, for any thread.
    pub fn reader(&self) -> StoreReader {
        StoreReader::new(self.shared.clone())
    }

    /// A handle for flushing. All of them take turns.
    pub fn flusher(&self) -> Flusher {
        Flusher::new(self.shared.clone())
    }

    /// Whether there is work for the flusher: a table waits, or one of its chores.
    pub fn wants_flush(&self) -> bool {
        self.shared.wants_flush() || self.shared.chores.lock().is_any_due()
    }

    /// Ends the store: syncs the log and flushes everything, so that the next start has nothing to
    /// replay. The engine stays open.
    ///
    /// # Errors
    /// If the store is or becomes poisoned, or the disk is full; what was acknowledged is then as
    /// durable as the policy promised.
    pub fn close(mut self) -> Result<(), StoreError> {
        self.sync()?;
        let flusher = self.flusher();
        while flusher.flush_oldest()? {}
        self.freeze()?;
        while flusher.flush_oldest()? {}
        Ok(())
    }
}

/// The tables: what the engine does not show yet.
struct Tables {
    active: Table,
    /// Oldest first.
    frozen: VecDeque<Arc<Table>>,
    /// The hashes of the rows that are in tables and run files.
    index: EpochIndex,
}

impl Tables {
    /// The newest record of a key, if it is here, or that it is gone.
    fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.active.get(key).or_else(|| self.get_older(key))
    }

    /// The same without the active table.
    fn get_older(&self, key: &[u8]) -> Option<&Entry> {
        self.frozen.iter().rev().find_map(|table| table.get(key))
    }
}

/// Bytes that these take in the log.
fn bytes_of(accepted: &[Accepted<'_>]) -> usize {
    let frame_bytes = |accepted: &Accepted<'_>| {
        FRAME_HEADER_BYTES
            + match accepted.what {
                What::Record | What::Removal => accepted.record.encoded_len(),
                What::RowAlone(_) => row::alone_len(&accepted.record.key),
            }
    };
    accepted.iter().map(frame_bytes).sum()
}

#[cfg(test)]
mod tests;
