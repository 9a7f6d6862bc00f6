//! Why the store refused or failed, by what the caller can do about it.

use std::io;
use std::sync::Arc;

use mds_types::DecodeError;

use crate::engine::EngineError;
use crate::frame::HeaderError;

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An earlier failure left the disk in doubt; the store answers nothing more. Restart the node:
    /// it then recovers from what is really on disk.
    #[error("the store stopped after a failure ({cause}); repair the disk and restart the node")]
    Poisoned {
        /// The first failure, for people.
        cause: Arc<str>,
    },
    /// The disk is full. Nothing was changed and nothing is lost; try again when there is room.
    #[error("the disk is full; free some space")]
    Full,
    /// The background flush is behind. Nothing was changed; shed load and try again.
    #[error("{frozen} tables wait to be flushed; the disk is too slow for this load")]
    Behind {
        /// Tables that wait.
        frozen: usize,
    },
    /// A record beyond a limit. Nothing of its batch was written.
    #[error("record {index} of the batch: {what}")]
    Limit {
        /// Its place in the batch, from 0.
        index: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Stored bytes are damaged or missing. Let this node join as a new one, with an empty data
    /// directory, or restore the named file.
    #[error("{file} is corrupt at byte {offset}: {what}")]
    Corrupt {
        /// Path within the data directory, or what stands for it.
        file: String,
        /// Offset of the damage, in bytes.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(EngineError),
    /// The disk failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried, with the file's name.
        doing: String,
        /// The disk's answer.
        source: io::Error,
    },
}

impl StoreError {
    /// The error for a failed disk operation; a full disk has a name of its own.
    pub(crate) fn io(doing: impl Into<String>, source: io::Error) -> StoreError {
        if is_full(&source) {
            return StoreError::Full;
        }
        StoreError::Io {
            doing: doing.into(),
            source,
        }
    }

    /// The error for damaged bytes.
    pub(crate) fn corrupt(
        file: impl Into<String>,
        offset: usize,
        what: impl Into<String>,
    ) -> StoreError {
        StoreError::Corrupt {
            file: file.into(),
            offset: offset as u64,
            what: what.into(),
        }
    }

    /// The error for a file with a bad header.
    pub(crate) fn header(file: &str, error: HeaderError) -> StoreError {
        StoreError::corrupt(file, 0, error.to_string())
    }

    /// The error for a stored record that cannot be read.
    pub(crate) fn record(file: &str, offset: usize, error: DecodeError) -> StoreError {
        StoreError::corrupt(file, offset, error.to_string())
    }
}

impl From<EngineError> for StoreError {
    fn from(error: EngineError) -> StoreError {
        match error {
            EngineError::Io(source) if is_full(&source) => StoreError::Full,
            error => StoreError::Engine(error),
        }
    }
}

/// Whether a disk said that it, or our share of it, is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
