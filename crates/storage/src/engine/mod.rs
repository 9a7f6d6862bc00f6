//! The engine: an ordered map on disk that takes *sorted runs* in the background.
//!
//! The log in front of it (see the store) makes writes durable and answers for what is fresh, so an
//! engine never sees single writes and is never on the path of one. It is handed whole sorted runs,
//! and asked for keys and ranges. Blocking by nature; implementations are `Send + Sync`.
//!
//! **Contract** (one conformance suite checks every engine):
//!
//! 1. [`Engine::ingest`] is durable and visible as a whole when it returns; a crash in the middle
//!    may leave any *subset* visible, and ingesting the same run again then repairs it. Later runs
//!    overwrite earlier ones **by arrival**, so the caller must keep flush order.
//! 2. [`Engine::get`], [`Engine::visit`] and [`Engine::scan`] see the latest completed ingestion, from
//!    any thread, while others ingest. A visit or a scan is of one snapshot.
//! 3. Keys are 1 to [`ENGINE_KEY_BYTES_MAX`] arbitrary bytes, values any bytes, also none; order is
//!    bytewise on keys. A run that breaks this is refused ([`EngineError::BadRun`]).
//! 4. An error is an error: a failed read is never `None`, a failed ingestion is never `Ok`. After
//!    a failed write to disk an open engine takes no further run: what a failed write left behind is
//!    unknown, and only reopening tells.
//! 5. **A full disk passes.** If all that was wanting was room, for the run itself or for background
//!    work, the error says so ([`EngineError::is_full`]), reads go on, and ingesting the same run
//!    again, later, is allowed: the engine is then reopened in place ([`ReopeningEngine`]), so that the
//!    fourth clause holds. Any other failed write is final until the process ends, a failed sync above all.
//!
//! While an ingestion is running, a reader may see any part of its run already, key by key whole:
//! for each key the old value or the new one, never anything else.

mod copy;
pub mod fjall;
mod kind;
#[cfg(feature = "engine-leveldb")]
pub mod leveldb;
pub mod memory;
mod reopen;

#[cfg(test)]
pub(crate) mod conformance;

use std::path::Path;

use bytes::Bytes;

use crate::error::is_full;

pub use self::fjall::FjallEngine;
pub use self::kind::{
    CACHE_BYTES_DEFAULT, EngineKind, EngineOptions, UnknownEngine, open, open_with,
};
#[cfg(feature = "engine-leveldb")]
pub use self::leveldb::LevelDbEngine;
pub use self::memory::MemoryEngine;
pub use self::reopen::{Opener, ReopeningEngine};

/// Longest key that an engine takes, in bytes; a run with a longer one is refused. The store's keys
/// are a client's key with a short prefix, well below.
pub const ENGINE_KEY_BYTES_MAX: usize = u16::MAX as usize;

/// One key and what to do with it: `Some` puts a value, `None` removes the key.
pub type RunItem = (Bytes, Option<Bytes>);

/// The keys `from <= key < to`.
pub type KeyRange = (Bytes, Bytes);

/// Why an engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The disk failed, or is full ([`EngineError::is_full`]).
    #[error("engine I/O: {0}")]
    Io(#[from] std::io::Error),
    /// Stored bytes fail their checksum or make no sense.
    #[error("engine data is corrupt: {0}")]
    Corrupt(String),
    /// The run is not strictly ascending, or a key's length is out of bounds: the caller's mistake.
    /// A part of the run may have become visible.
    #[error("run refused: {0}")]
    BadRun(String),
    /// The engine gave up (an earlier failure, a bug, a closed handle).
    #[error("engine stopped: {0}")]
    Stopped(String),
}

impl EngineError {
    /// Whether only room was wanting: the disk, or this user's share of it, is full.
    pub fn is_full(&self) -> bool {
        matches!(self, EngineError::Io(error) if is_full(error))
    }

    /// The error of every call after `close`.
    fn closed() -> EngineError {
        EngineError::Stopped("it was closed".to_owned())
    }
}

/// What [`Engine::scan`] found.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct EnginePage {
    /// Keys and values, in key order.
    pub pairs: Vec<(Bytes, Bytes)>,
    /// Whether the range goes on behind them. Exact.
    pub more: bool,
}

/// Checks, key by key, that a run is what the contract asks for.
#[derive(Default)]
struct RunOrder {
    last: Option<Bytes>,
}

impl RunOrder {
    /// Accepts the next key of a run, or says what is wrong with it.
    fn check(&mut self, key: &Bytes) -> Result<(), EngineError> {
        if key.is_empty() || key.len() > ENGINE_KEY_BYTES_MAX {
            return Err(EngineError::BadRun(format!(
                "a key of {} bytes, and 1 to {ENGINE_KEY_BYTES_MAX} are allowed",
                key.len()
            )));
        }
        if let Some(last) = &self.last
            && last >= key
        {
            return Err(EngineError::BadRun(format!(
                "key {:?} follows {last:?}, so it is not strictly ascending",
                key
            )));
        }
        self.last = Some(key.clone());
        Ok(())
    }
}

/// An ordered map on disk. See the module's contract.
pub trait Engine: Send + Sync + 'static {
    /// The name a data directory remembers: `fjall`, `leveldb`, `memory`.
    fn name(&self) -> &'static str;

    /// Takes a run, strictly ascending by key; durable when it returns.
    fn ingest(&self, run: &mut dyn Iterator<Item = RunItem>) -> Result<(), EngineError>;

    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Shows the pairs with `from <= key < to`, in order and of one snapshot, until `visitor` returns
    /// false. Returns whether it left pairs unseen.
    ///
    /// Values are loaded one at a time, and only those that are shown. Closing and, in some engines,
    /// ingesting wait for it: a visitor should stop in time and continue from where it was. It must
    /// not call the engine.
    fn visit(
        &self,
        from: &[u8],
        to: &[u8],
        visitor: &mut dyn FnMut(&[u8], Bytes) -> bool,
    ) -> Result<bool, EngineError>;

    /// The first pairs with `from <= key < to`, in order and of one snapshot: up to `limit`, and no
    /// further than the pair with which their keys and values come to `bytes_max` bytes. So unless
    /// `limit` is 0 or the range is empty there is one pair at least, and never more than
    /// `bytes_max` and one pair in memory.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        bytes_max: usize,
    ) -> Result<EnginePage, EngineError> {
        let mut pairs = Vec::new();
        let mut bytes = 0usize;
        let mut refused = false;
        let unseen = self.visit(from, to, &mut |key, value| {
            refused = limit == 0;
            if refused {
                return false;
            }
            bytes = bytes.saturating_add(key.len() + value.len());
            pairs.push((Bytes::copy_from_slice(key), value));
            pairs.len() < limit && bytes < bytes_max
        })?;
        Ok(EnginePage {
            pairs,
            more: unseen || refused,
        })
    }

    /// Removes every key with `from <= key < to` of any of these ranges, durably. They are ascending and do not
    /// overlap. As with a run, a crash in the middle may leave any subset removed.
    fn drop_ranges(&self, ranges: &[KeyRange]) -> Result<(), EngineError>;

    /// Whether the engine is behind with its background work, so that the flusher should wait.
    fn is_behind(&self) -> bool {
        false
    }

    /// A count of background work done since the engine was opened. While [`Engine::is_behind`] stays
    /// true this has to grow: a caller that sees it stand still for minutes should alarm, because the
    /// flusher, and then every write, is waiting for it.
    fn background_progress(&self) -> u64 {
        0
    }

    /// Bytes on disk, roughly.
    fn disk_bytes(&self) -> u64;

    /// Writes a consistent, durable copy into the empty or absent directory `to`, which the same kind
    /// of engine can open later. A failed copy is removed again.
    fn checkpoint(&self, to: &Path) -> Result<(), EngineError>;

    /// Stops background work and waits for it, within a time bound. Further calls fail.
    fn close(&self) -> Result<(), EngineError>;
}
