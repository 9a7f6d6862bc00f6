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
//! 3. Readers look in the active table, the frozen ones from new to old, the one flushed last, then
//!    the engine. A table goes only after the engine shows its records.
//! 4. Flush order (see [`flush`](Flusher)): segments reach the engine strictly in order, each
//!    committed and deleted before the next is handed over, because the engine keeps what arrives
//!    last and not what is newest.
//! 5. After a failed write or sync nobody knows what is on disk: the store is *poisoned*, it
//!    answers nothing more. A full disk is refused gracefully ([`StoreError::Full`]) as long as the
//!    part that was appended can be cut off again.
//!
//! What it does not do: decide whether a record may still come in (epoch fence, watermark), or
//! collect tombstones. Those ask first, and come through the door.

mod flush;
mod reader;
mod recover;
mod scan;
mod shared;

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use mds_types::limits::{KEY_BYTES_MAX, SLOT_COUNT, VALUE_BYTES_MAX};
use mds_types::mutation::{Mutation, is_on};
use mds_types::slot::partition_of;
use mds_types::{Epoch, Record};

use self::shared::{Counter, Shared};
use crate::disk::Disk;
use crate::engine::Engine;
use crate::frame::{FRAME_HEADER_BYTES, FrameEncoder};
use crate::log::{AppendError, RECORD_FRAME, SegmentWriter};
use crate::table::{Entry, KeyHashing, Table};

pub use self::flush::Flusher;
pub use self::reader::{Lookup, StoreReader};
pub use self::shared::StoreStats;
pub use crate::error::StoreError;

/// Default bound on a log segment, bytes: beyond it the next batch starts a new one. Memory is
/// about (frozen tables + 2) times this; the replay of a full one takes about a tenth of a second.
pub const SEGMENT_BYTES_MAX: usize = 48 * 1024 * 1024;

/// No segment is asked to be larger than this, bytes, whatever the options say.
const SEGMENT_BYTES_CEILING: usize = 1024 * 1024 * 1024;

/// Default bound on tables that wait to be flushed; beyond it merges are refused as
/// [`StoreError::Behind`].
pub const FROZEN_TABLES_MAX: usize = 2;

/// Default bound on all run files together, bytes; beyond it the oldest closed epochs lose theirs.
pub const RUN_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// Default bound on the number of run files; beyond it the oldest closed epochs lose theirs.
pub const RUN_FILES_MAX: usize = 4096;

/// Default number of Merkle leaves in a partition.
pub const BUCKET_COUNT: u16 = 64;

/// When the log is synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FsyncPolicy {
    /// Before a merge returns: it survives a loss of power.
    Always,
    /// By [`Store::tick`], this many milliseconds after the last sync: a loss of power costs at
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
    /// Values longer than this are refused; at most [`VALUE_BYTES_MAX`].
    pub value_bytes_max: usize,
    /// A number that clients do not know, such as a part of the directory's incarnation: it salts
    /// checksums and hash tables, so that nobody can choose keys or values that upset them.
    pub secret: u64,
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
            value_bytes_max: VALUE_BYTES_MAX,
            secret: 0,
        }
    }
}

impl StoreOptions {
    /// The nearest options that make sense.
    fn sane(mut self) -> StoreOptions {
        let partition_count = self.partition_count.clamp(1, SLOT_COUNT);
        self.partition_count = partition_count.next_power_of_two();
        self.bucket_count = self.bucket_count.max(1);
        self.segment_bytes_max = self.segment_bytes_max.min(SEGMENT_BYTES_CEILING);
        self.frozen_tables_max = self.frozen_tables_max.max(1);
        self.value_bytes_max = self.value_bytes_max.min(VALUE_BYTES_MAX);
        self
    }
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
    /// durable by the policy.
    ///
    /// # Errors
    /// After an error nothing of the batch is visible. [`StoreError::Full`] and
    /// [`StoreError::Behind`]: try again later. [`StoreError::Limit`]: a record is too large. A
    /// failed or damaged read of the engine refuses the batch only. Else the store is poisoned, and
    /// part of the batch may be found after a restart.
    pub fn merge(&mut self, records: &[Record]) -> Result<Vec<Merged>, StoreError> {
        self.shared.check_sound()?;
        self.check_limits(records)?;
        let (outcomes, winners) = self.judge(records)?;
        if !winners.is_empty() {
            self.commit(&winners)?;
        }
        self.shared.count_merges(&outcomes);
        Ok(outcomes)
    }

    /// Refuses what is too large before the first byte is written.
    fn check_limits(&self, records: &[Record]) -> Result<(), StoreError> {
        for (index, record) in records.iter().enumerate() {
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

    /// Compares each record with what is there: earlier in the batch, in the tables, in the engine.
    fn judge<'a>(
        &self,
        records: &'a [Record],
    ) -> Result<(Vec<Merged>, Vec<&'a Record>), StoreError> {
        // Nothing enters the tables but through this thread, and the flusher moves records down
        // only: what is not in the tables now is in the engine, or nowhere.
        let known: Vec<Option<Entry>> = {
            let tables = self.shared.tables.read();
            let known = records
                .iter()
                .map(|record| tables.get(&record.key).cloned());
            known.collect()
        };
        let mut batch: HashMap<&[u8], &Record, KeyHashing> =
            HashMap::with_hasher(self.shared.hashing());
        let mut outcomes = Vec::with_capacity(records.len());
        let mut winners = Vec::with_capacity(records.len());
        for (record, known) in records.iter().zip(known) {
            let order = match (batch.get(&record.key[..]), known) {
                (Some(earlier), _) => record.merge_order(earlier),
                (None, Some(entry)) if record.version != entry.version => {
                    record.version.cmp(&entry.version)
                }
                (None, Some(entry)) => record.merge_order(&self.shared.decode(&entry)?),
                (None, None) => match self.shared.get_from_engine(&record.key)? {
                    Some(current) => record.merge_order(&current),
                    None => Ordering::Greater,
                },
            };
            let order = if is_on(Mutation::MergeByArrival) {
                Ordering::Greater
            } else {
                order
            };
            outcomes.push(match order {
                Ordering::Greater => Merged::Applied,
                Ordering::Equal => Merged::Same,
                Ordering::Less => Merged::Superseded,
            });
            if order == Ordering::Greater {
                if records.len() > 1 {
                    batch.insert(&record.key, record);
                }
                winners.push(record);
            }
        }
        Ok((outcomes, winners))
    }

    /// Writes the winners to the log and makes them visible.
    fn commit(&mut self, winners: &[&Record]) -> Result<(), StoreError> {
        let frame_bytes = |record: &&Record| FRAME_HEADER_BYTES + record.encoded_len();
        let bytes: usize = winners.iter().map(frame_bytes).sum();
        self.make_room(bytes)?;

        let mut encoder = FrameEncoder::with_capacity(self.log.salt(), bytes);
        let mut places = Vec::with_capacity(winners.len());
        for (index, record) in winners.iter().enumerate() {
            let place = encoder.push_with(RECORD_FRAME, |out| record.encode(out));
            // Within the limits a record always fits a frame.
            let what = "the record is too long";
            places.push(place.map_err(|_| StoreError::Limit { index, what })?);
        }
        let encoded = encoder.finish();
        self.append(&encoded)?;

        let partition_count = self.shared.options.partition_count;
        let mut tables = self.shared.tables.write();
        for (record, place) in winners.iter().zip(places) {
            let partition = partition_of(&record.key, partition_count);
            tables.active.put(partition, record, encoded.slice(place));
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

    /// Starts a new segment if `bytes` more would not fit this one, or if the epoch was cut.
    fn make_room(&mut self, bytes: usize) -> Result<(), StoreError> {
        if self.log.len() + bytes as u64 > self.shared.options.segment_bytes_max as u64 {
            return self.freeze().map(drop);
        }
        if self.cut_pending {
            self.try_cut()?;
        }
        Ok(())
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

    /// Whether a table waits to be flushed.
    pub fn wants_flush(&self) -> bool {
        self.shared.wants_flush()
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

/// The tables, from the newest: what the engine does not show yet, and the one that it has just
/// been handed, as a cache of recent versions.
struct Tables {
    active: Table,
    /// Oldest first.
    frozen: VecDeque<Arc<Table>>,
    flushed: Option<Arc<Table>>,
}

impl Tables {
    /// The newest record of a key, if it is here.
    fn get(&self, key: &[u8]) -> Option<&Entry> {
        self.active
            .get(key)
            .or_else(|| self.frozen.iter().rev().find_map(|table| table.get(key)))
            .or_else(|| self.flushed.as_ref()?.get(key))
    }
}

#[cfg(test)]
mod tests;
