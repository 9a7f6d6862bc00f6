//! The ledger of a replica: what it has promised about epochs, durably. The file `epochs`.
//!
//! - **closed**: from this epoch down no client's write and no hint is taken any more (the *fence*, trap
//!   T8).
//! - **acked**: the topology version that this node has told the others it follows.
//! - for each partition, its **watermark** `settled`: the sets of all epochs up to it were found equal on
//!   all replicas, so absence below it is information, and nothing below it is ever merged again (traps
//!   T9-T12); the **chain**, a hash over the roots of all those epochs, by which two replicas with
//!   equal watermarks know that their sets were equal all the way; **collected**, the watermark of
//!   collection, never above `settled`; and whether the partition is here at all ([`PartitionState`]).
//! - **unverifiable**: rows of epochs up to this one were dropped for want of room, the oldest first. A
//!   partition that had not settled them cannot settle past them without a comparison of records.
//!
//! **Invariants**
//!
//! 1. `collected <= settled <= closed`, and none of them ever falls, except that a partition that is
//!    wiped begins at zero again.
//! 2. What is in memory is on disk: a change is written, synced, and only then seen by anybody. A
//!    failed write leaves the old ledger in force, or stops the store if nobody knows which one is on
//!    disk.
//! 3. Epochs of records begin at 1. A watermark of 0 has passed nothing.
//! 4. A store without a ledger is a new one. Where there is data, a ledger that is missing or damaged is
//!    corruption, and the store does not open: it has forgotten what must not come back.
//!
//! The file is a cell (see [`crate::cell`]), rewritten whole; one write changes any number of partitions.
//!
//! ```text
//! format 1 | closed 8 | acked 8 | unverifiable 8 | partition count 2 | partition*
//! partition   settled 8 | chain 16 | collected 8 | wiped at segment 8 | state 1
//!     (Streaming) source settled 8 | source chain 16 | after length 2 | after
//! ```

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use mds_types::limits::SLOT_COUNT;
use mds_types::{Epoch, PartitionId, TopologyVersion};
use parking_lot::{Mutex, RwLock};

use crate::cell::{CellError, DurableCell};
use crate::disk::Disk;
use crate::error::{StoreError, is_full};

/// The file's name, in the data directory.
pub(crate) const LEDGER: &str = crate::datadir::EPOCHS;

/// Bytes of the key up to which a stream has come that are kept. Of a longer key its beginning is kept: it
/// is less than the key, so a little is streamed twice and nothing is left out.
const AFTER_BYTES_MAX: usize = 256;

/// Bound on the ledger, bytes: all partitions streaming.
const LEDGER_BYTES_MAX: usize =
    SLOT_COUNT as usize * (PARTITION_BYTES + STREAM_BYTES + AFTER_BYTES_MAX) + 64;

const FORMAT_1: u8 = 1;
const PARTITION_BYTES: usize = 8 + 16 + 8 + 8 + 1;
const STREAM_BYTES: usize = 8 + 16 + 2;

const HELD: u8 = 1;
const WIPING: u8 = 2;
const STREAMING: u8 = 3;
const ABSENT: u8 = 4;

/// Whether and how a partition is here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PartitionState {
    /// A replica like any other.
    Held,
    /// Its data is being removed; nothing comes in. A restart goes on with it.
    Wiping,
    /// It is being filled from a replica that had settled `settled` with `chain`. Up to there only the
    /// stream brings anything in, and no index rows are kept.
    Streaming {
        /// Keys up to and including this one have come; empty at first.
        after: Bytes,
        /// The source's watermark, which becomes this partition's when the stream ends.
        settled: Epoch,
        /// The source's chain.
        chain: u128,
    },
    /// Nothing of it is here, and nothing comes in.
    Absent,
}

/// Whether a watermark has passed an epoch.
pub(crate) fn has_passed(watermark: Epoch, epoch: Epoch) -> bool {
    watermark.0 > 0 && epoch <= watermark
}

/// What a replica has promised about one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionLedger {
    /// The watermark: all epochs up to it were found equal on all replicas.
    pub settled: Epoch,
    /// A hash over the roots of these epochs, as the verification chains them.
    pub chain: u128,
    /// Dead records that these epochs left have been removed.
    pub collected: Epoch,
    /// Rows of log segments up to and including this one are void.
    pub wiped_at_segment: u64,
    /// Whether and how the partition is here.
    pub state: PartitionState,
}

impl PartitionLedger {
    fn new() -> PartitionLedger {
        PartitionLedger {
            settled: Epoch(0),
            chain: 0,
            collected: Epoch(0),
            wiped_at_segment: 0,
            state: PartitionState::Held,
        }
    }

    /// Epochs up to and including this one get no new rows.
    pub(crate) fn no_new_rows(&self) -> Epoch {
        match &self.state {
            PartitionState::Streaming { settled, .. } => self.settled.max(*settled),
            _ => self.settled,
        }
    }

    /// Epochs up to and including this one need no rows any more.
    pub(crate) fn no_rows(&self) -> Epoch {
        match &self.state {
            PartitionState::Streaming { settled, .. } => self.collected.max(*settled),
            _ => self.collected,
        }
    }

    /// Whether its rows are needed at all.
    pub(crate) fn is_indexed(&self) -> bool {
        matches!(
            self.state,
            PartitionState::Held | PartitionState::Streaming { .. }
        )
    }
}

/// What a replica has promised about epochs. A snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ledger {
    /// No client's write and no hint of this epoch or an earlier one is taken.
    pub closed: Epoch,
    /// The topology version that this node has acknowledged.
    pub acked: TopologyVersion,
    /// Rows of epochs up to and including this one may be missing from the index, in all partitions that
    /// have not settled it.
    pub unverifiable: Epoch,
    partitions: Vec<PartitionLedger>,
    /// Derived: from this epoch on nothing is subject to a rule, in any partition...
    pub(crate) free_from: Epoch,
    /// ...that is neither being wiped nor absent. Derived: whether there are such ones.
    pub(crate) is_some_away: bool,
}

impl Ledger {
    /// The ledger of a new replica, which holds all partitions.
    pub fn new(partition_count: u16) -> Ledger {
        Ledger {
            closed: Epoch(0),
            acked: TopologyVersion(0),
            unverifiable: Epoch(0),
            partitions: vec![PartitionLedger::new(); usize::from(partition_count)],
            free_from: Epoch(0),
            is_some_away: false,
        }
    }

    /// What is promised about a partition. One that does not exist is absent.
    pub fn partition(&self, partition: PartitionId) -> &PartitionLedger {
        static NONE: PartitionLedger = PartitionLedger {
            settled: Epoch(0),
            chain: 0,
            collected: Epoch(0),
            wiped_at_segment: 0,
            state: PartitionState::Absent,
        };
        self.partitions
            .get(usize::from(partition.0))
            .unwrap_or(&NONE)
    }

    /// All partitions.
    pub fn partitions(&self) -> impl Iterator<Item = (PartitionId, &PartitionLedger)> {
        let ids = (0..=u16::MAX).map(PartitionId);
        ids.zip(&self.partitions)
    }

    /// For changes; `None` for a partition that does not exist.
    pub(crate) fn partition_mut(&mut self, partition: PartitionId) -> Option<&mut PartitionLedger> {
        self.partitions.get_mut(usize::from(partition.0))
    }

    /// Whether a row of a partition in this segment was voided by a wipe.
    pub(crate) fn is_void(&self, partition: PartitionId, segment: u64) -> bool {
        let entry = self.partition(partition);
        segment <= entry.wiped_at_segment || !entry.is_indexed()
    }

    /// Epochs up to and including this one need no rows, in any partition: what is collected
    /// everywhere. `None` if no partition is here.
    pub fn collected_everywhere(&self) -> Option<Epoch> {
        let indexed = self.partitions.iter().filter(|entry| entry.is_indexed());
        indexed.map(|entry| entry.collected).min()
    }

    /// Likewise for what is settled.
    pub fn settled_everywhere(&self) -> Option<Epoch> {
        let indexed = self.partitions.iter().filter(|entry| entry.is_indexed());
        indexed.map(|entry| entry.settled).min()
    }

    /// Whether rows are missing that a partition would need to settle anything more: only a comparison of
    /// records helps it on.
    pub fn lacks_rows(&self, partition: PartitionId) -> bool {
        self.partition(partition).no_new_rows() < self.unverifiable
    }

    /// Brings what is derived up to date.
    fn derive(&mut self) {
        let entries = self.partitions.iter();
        let ruled = entries.map(PartitionLedger::no_new_rows).max();
        self.free_from = match ruled.unwrap_or_default().max(self.closed) {
            Epoch(0) => Epoch(0),
            Epoch(ruled) => Epoch(ruled.saturating_add(1)),
        };
        self.is_some_away = self.partitions.iter().any(|entry| !entry.is_indexed());
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + self.partitions.len() * PARTITION_BYTES);
        out.put_u8(FORMAT_1);
        out.put_u64_le(self.closed.0);
        out.put_u64_le(self.acked.0);
        out.put_u64_le(self.unverifiable.0);
        out.put_u16_le(self.partitions.len() as u16);
        for entry in &self.partitions {
            out.put_u64_le(entry.settled.0);
            out.put_u128_le(entry.chain);
            out.put_u64_le(entry.collected.0);
            out.put_u64_le(entry.wiped_at_segment);
            match &entry.state {
                PartitionState::Held => out.put_u8(HELD),
                PartitionState::Wiping => out.put_u8(WIPING),
                PartitionState::Absent => out.put_u8(ABSENT),
                PartitionState::Streaming {
                    after,
                    settled,
                    chain,
                } => {
                    out.put_u8(STREAMING);
                    out.put_u64_le(settled.0);
                    out.put_u128_le(*chain);
                    out.put_u16_le(after.len() as u16);
                    out.put_slice(after);
                }
            }
        }
        out
    }

    fn decode(mut bytes: Bytes) -> Option<Ledger> {
        if bytes.try_get_u8().ok()? != FORMAT_1 {
            return None;
        }
        let closed = Epoch(bytes.try_get_u64_le().ok()?);
        let acked = TopologyVersion(bytes.try_get_u64_le().ok()?);
        let unverifiable = Epoch(bytes.try_get_u64_le().ok()?);
        let count = bytes.try_get_u16_le().ok()?;
        let mut ledger = Ledger {
            closed,
            acked,
            unverifiable,
            ..Ledger::new(0)
        };
        for _ in 0..count {
            ledger.partitions.push(decode_partition(&mut bytes)?);
        }
        ledger.derive();
        bytes.is_empty().then_some(ledger)
    }
}

fn decode_partition(bytes: &mut Bytes) -> Option<PartitionLedger> {
    let settled = Epoch(bytes.try_get_u64_le().ok()?);
    let chain = bytes.try_get_u128_le().ok()?;
    let collected = Epoch(bytes.try_get_u64_le().ok()?);
    let wiped_at_segment = bytes.try_get_u64_le().ok()?;
    let state = match bytes.try_get_u8().ok()? {
        HELD => PartitionState::Held,
        WIPING => PartitionState::Wiping,
        ABSENT => PartitionState::Absent,
        STREAMING => {
            let settled = Epoch(bytes.try_get_u64_le().ok()?);
            let chain = bytes.try_get_u128_le().ok()?;
            let length = usize::from(bytes.try_get_u16_le().ok()?);
            if length > bytes.len() {
                return None;
            }
            PartitionState::Streaming {
                after: bytes.split_to(length),
                settled,
                chain,
            }
        }
        _ => return None,
    };
    Some(PartitionLedger {
        settled,
        chain,
        collected,
        wiped_at_segment,
        state,
    })
}

/// The beginning of a key that is kept as a stream's progress.
pub(crate) fn kept_of(after: &Bytes) -> Bytes {
    // A copy: a slice would keep all that the key lies in.
    Bytes::copy_from_slice(&after[..after.len().min(AFTER_BYTES_MAX)])
}

/// The ledger in force, and its file.
pub(crate) struct LedgerFile {
    cell: DurableCell,
    current: RwLock<Arc<Ledger>>,
    /// Held by the one that changes the ledger.
    changing: Mutex<()>,
}

/// Why a ledger could not be changed.
pub(crate) enum ChangeError {
    /// The disk is full; the old ledger is in force and on disk.
    Full,
    /// Nobody knows which one is on disk.
    Broken(String),
}

impl LedgerFile {
    /// Reads the ledger, or writes that of a new replica if `is_new` says that there is nothing else yet.
    pub(crate) fn open(
        disk: &dyn Disk,
        partition_count: u16,
        is_new: bool,
    ) -> Result<LedgerFile, StoreError> {
        let cell = DurableCell::with_bytes_max(LEDGER, LEDGER_BYTES_MAX);
        let ledger = match cell.read(disk).map_err(store_error)? {
            Some(payload) => {
                let ledger = Ledger::decode(Bytes::from(payload));
                let what = "its content makes no sense: written by a newer version?";
                ledger.ok_or_else(|| StoreError::corrupt(LEDGER, 0, what))?
            }
            None if is_new => {
                let ledger = Ledger::new(partition_count);
                cell.write(disk, &ledger.encode()).map_err(store_error)?;
                ledger
            }
            None => {
                let what = "it is gone, and with it what this replica has promised about epochs";
                return Err(StoreError::corrupt(LEDGER, 0, what));
            }
        };
        if ledger.partitions.len() != usize::from(partition_count) {
            let what = format!(
                "it is of {} partitions, not of {partition_count}",
                ledger.partitions.len()
            );
            return Err(StoreError::corrupt(LEDGER, 0, what));
        }
        Ok(LedgerFile {
            cell,
            current: RwLock::new(Arc::new(ledger)),
            changing: Mutex::new(()),
        })
    }

    /// The ledger in force.
    pub(crate) fn get(&self) -> Arc<Ledger> {
        self.current.read().clone()
    }

    /// Changes the ledger, durably. Nothing is written if nothing changes.
    pub(crate) fn change(
        &self,
        disk: &dyn Disk,
        change: impl FnOnce(&mut Ledger),
    ) -> Result<(), ChangeError> {
        let _changing = self.changing.lock();
        let current = self.get();
        let mut next = Ledger::clone(&current);
        change(&mut next);
        next.derive();
        if next == *current {
            return Ok(());
        }
        match self.cell.write(disk, &next.encode()) {
            Ok(()) => {
                *self.current.write() = Arc::new(next);
                Ok(())
            }
            // A full disk is met before the rename: the old one stands.
            Err(CellError::Io { source, .. }) if is_full(&source) => Err(ChangeError::Full),
            Err(error) => Err(ChangeError::Broken(error.to_string())),
        }
    }
}

fn store_error(error: CellError) -> StoreError {
    match error {
        CellError::Io { path, source } => StoreError::io(format!("read or write {path}"), source),
        error => StoreError::corrupt(LEDGER, 0, error.to_string()),
    }
}

#[cfg(test)]
mod tests;
