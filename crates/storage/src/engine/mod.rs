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
//! 2. [`Engine::get`] and [`Engine::scan`] see the latest completed ingestion, from any thread, while
//!    others ingest. A scan is of one snapshot.
//! 3. Keys and values are arbitrary bytes; order is bytewise on keys.
//! 4. An error is an error: a failed read is never `None`, a failed ingestion is never `Ok`.

use std::path::Path;

use bytes::Bytes;

/// One key and what to do with it: `Some` puts a value, `None` removes the key.
pub type RunItem = (Bytes, Option<Bytes>);

/// Why an engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The disk failed or is full. The store must stop taking writes.
    #[error("engine I/O: {0}")]
    Io(#[from] std::io::Error),
    /// Stored bytes fail their checksum or make no sense.
    #[error("engine data is corrupt: {0}")]
    Corrupt(String),
    /// The engine gave up (an earlier failure, a bug, a closed handle).
    #[error("engine stopped: {0}")]
    Stopped(String),
}

/// An ordered map on disk. See the module's contract.
pub trait Engine: Send + Sync + 'static {
    /// The name a data directory remembers: `fjall`, `leveldb`, `memory`.
    fn name(&self) -> &'static str;

    /// Takes a run, strictly ascending by key; durable when it returns.
    fn ingest(&self, run: &mut dyn Iterator<Item = RunItem>) -> Result<(), EngineError>;

    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Up to `limit` pairs with `from <= key < to` in order, of one snapshot.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, EngineError>;

    /// Removes every key with `from <= key < to`, durably.
    fn drop_range(&self, from: &[u8], to: &[u8]) -> Result<(), EngineError>;

    /// Whether the engine is behind with its background work, so that the flusher should wait.
    fn is_behind(&self) -> bool {
        false
    }

    /// Bytes on disk, roughly.
    fn disk_bytes(&self) -> u64;

    /// Writes a consistent copy into the empty or absent directory `to`, which the same engine can
    /// open later.
    fn checkpoint(&self, to: &Path) -> Result<(), EngineError>;

    /// Stops background work and waits for it, within a time bound. Further calls fail.
    fn close(&self) -> Result<(), EngineError>;
}
