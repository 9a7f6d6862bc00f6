//! An engine that is closed and opened again, in place, once a full disk has room.
//!
//! After a failed write an open engine takes no further run, because what it has in memory may no longer
//! be what is on disk. A restart of the process would cure that: it begins with what is really there, and
//! the log still holds everything that the engine had not confirmed. [`ReopeningEngine`] does the same to
//! the engine alone. It stands in front of an engine on disk and passes everything on.
//!
//! **Invariants**
//!
//! 1. Only want of room leads to a reopening. After any other failed write, a failed sync above all, the
//!    engine stays as it is: it reads and takes nothing until the process ends. A sync that fails for
//!    want of room has not promised anything either, and nothing that an engine shows after opening rests
//!    on it: what was not finished is not there, or is there in part, and the same run repairs it.
//! 2. The next run after such a failure is what reopens it. So the caller paces the attempts, and should
//!    look for room first: each attempt makes readers wait for as long as opening takes.
//! 3. Readers see the engine before or after, never in between. If it cannot be opened, they get an error
//!    ([`EngineError::is_full`] if room is wanting again, which the next run may cure).
//!
//! What it does not do: keep the run that failed. The caller has it, and hands it over again.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use super::{Engine, EngineError, KeyRange, RunItem};

/// How long a reopening waits for calls that are running, and lets new ones wait behind it, before it is
/// put off: a walk or a checkpoint may take long.
const REOPEN_WAIT_MAX: Duration = Duration::from_millis(250);

/// Opens the engine, the first time and each time again.
pub type Opener = Box<dyn Fn() -> Result<Box<dyn Engine>, EngineError> + Send + Sync>;

/// Why an engine takes no further run.
#[derive(Debug)]
pub(super) struct Failure {
    reason: String,
    is_full: bool,
}

impl Failure {
    /// Takes note of a failure. The first one stays, unless it was only want of room and this is worse.
    pub(super) fn note(known: &mut Option<Failure>, doing: &str, error: &EngineError) {
        let is_full = error.is_full();
        let is_news = known.as_ref().is_none_or(|known| known.is_full && !is_full);
        if is_news {
            let reason = format!("{doing}: {error}");
            *known = Some(Failure { reason, is_full });
        }
    }

    /// What every further run is told.
    pub(super) fn to_error(&self) -> EngineError {
        let reason = format!("after an earlier failure: {}", self.reason);
        if self.is_full {
            EngineError::Io(io::Error::new(io::ErrorKind::StorageFull, reason))
        } else {
            EngineError::Stopped(reason)
        }
    }
}

/// The engine now.
enum Current {
    Open(Box<dyn Engine>),
    /// Closed for a reopening that found no room; the next run tries again.
    Closed,
    /// It could not be closed or opened: final.
    Lost(String),
}

/// See the module.
pub struct ReopeningEngine {
    name: &'static str,
    opener: Opener,
    /// Written by a reopening only; calls hold the read side while they run.
    current: RwLock<Current>,
    /// Held by the one that changes the engine. Whether the last change found the disk full.
    was_full: Mutex<bool>,
    is_closing: AtomicBool,
    reopenings: AtomicU64,
    /// Background work of the engines that were closed.
    progress_before: AtomicU64,
    /// The size that was last seen, for those who ask during a reopening.
    disk_bytes: AtomicU64,
}

impl fmt::Debug for ReopeningEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReopeningEngine({})", self.name)
    }
}

impl ReopeningEngine {
    /// Opens the engine.
    ///
    /// # Errors
    /// The opener's.
    pub fn open(opener: Opener) -> Result<ReopeningEngine, EngineError> {
        let engine = opener()?;
        Ok(ReopeningEngine {
            name: engine.name(),
            opener,
            current: RwLock::new(Current::Open(engine)),
            was_full: Mutex::new(false),
            is_closing: AtomicBool::new(false),
            reopenings: AtomicU64::new(0),
            progress_before: AtomicU64::new(0),
            disk_bytes: AtomicU64::new(0),
        })
    }

    /// How often it was opened again.
    pub fn reopenings(&self) -> u64 {
        self.reopenings.load(Ordering::Relaxed)
    }

    /// Runs a call on the engine.
    fn call<T>(
        &self,
        operation: impl FnOnce(&dyn Engine) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        // A run may be read from this very engine while it is ingested. That cannot wait for a
        // reopening, which begins with the lock that the ingestion holds.
        match &*self.current.read() {
            Current::Open(engine) => operation(&**engine),
            Current::Closed => Err(EngineError::Io(io::Error::new(
                io::ErrorKind::StorageFull,
                "there is no room to open it again",
            ))),
            Current::Lost(reason) => Err(EngineError::Stopped(reason.clone())),
        }
    }

    /// Runs one change of the engine, alone, after opening it again if that is due.
    fn change(
        &self,
        operation: impl FnOnce(&dyn Engine) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut was_full = self.was_full.lock();
        if *was_full {
            self.reopen()?;
            *was_full = false;
        }
        self.call(operation).inspect_err(|error| {
            *was_full = error.is_full();
        })
    }

    fn reopen(&self) -> Result<(), EngineError> {
        let Some(mut current) = self.current.try_write_for(REOPEN_WAIT_MAX) else {
            return Err(EngineError::Io(io::Error::new(
                io::ErrorKind::StorageFull,
                "it waits to be opened again: calls are running",
            )));
        };
        if self.is_closing.load(Ordering::SeqCst) {
            return Err(EngineError::closed());
        }
        let lost = |current: &mut Current, doing: &str, error: EngineError| {
            let reason = format!("{doing} after the disk was full: {error}");
            *current = Current::Lost(reason.clone());
            EngineError::Stopped(reason)
        };
        match std::mem::replace(&mut *current, Current::Closed) {
            Current::Open(engine) => {
                let progress = engine.background_progress();
                self.progress_before.fetch_add(progress, Ordering::Relaxed);
                if let Err(error) = engine.close() {
                    return Err(lost(&mut current, "it could not be closed", error));
                }
            }
            Current::Closed => {}
            Current::Lost(reason) => {
                *current = Current::Lost(reason.clone());
                return Err(EngineError::Stopped(reason));
            }
        }
        match (self.opener)() {
            Ok(engine) => {
                self.reopenings.fetch_add(1, Ordering::Relaxed);
                tracing::info!(engine = self.name, "opened again after the disk was full");
                *current = Current::Open(engine);
                Ok(())
            }
            Err(error) if error.is_full() => Err(error),
            Err(error) => Err(lost(&mut current, "it could not be opened again", error)),
        }
    }

    /// The engine, unless it is being reopened or cannot be.
    fn glance<T>(&self, look: impl FnOnce(&dyn Engine) -> T) -> Option<T> {
        let current: Option<RwLockReadGuard<'_, Current>> = self.current.try_read();
        match current.as_deref() {
            Some(Current::Open(engine)) => Some(look(&**engine)),
            _ => None,
        }
    }
}

impl Engine for ReopeningEngine {
    fn name(&self) -> &'static str {
        self.name
    }

    fn ingest(&self, run: &mut dyn Iterator<Item = RunItem>) -> Result<(), EngineError> {
        self.change(|engine| engine.ingest(run))
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.call(|engine| engine.get(key))
    }

    fn visit(
        &self,
        from: &[u8],
        to: &[u8],
        visitor: &mut dyn FnMut(&[u8], Bytes) -> bool,
    ) -> Result<bool, EngineError> {
        self.call(|engine| engine.visit(from, to, visitor))
    }

    fn drop_ranges(&self, ranges: &[KeyRange]) -> Result<(), EngineError> {
        self.change(|engine| engine.drop_ranges(ranges))
    }

    fn is_behind(&self) -> bool {
        self.glance(|engine| engine.is_behind()).unwrap_or(false)
    }

    fn background_progress(&self) -> u64 {
        let now = self.glance(|engine| engine.background_progress());
        self.progress_before.load(Ordering::Relaxed) + now.unwrap_or(0)
    }

    fn disk_bytes(&self) -> u64 {
        if let Some(bytes) = self.glance(|engine| engine.disk_bytes()) {
            self.disk_bytes.store(bytes, Ordering::Relaxed);
        }
        self.disk_bytes.load(Ordering::Relaxed)
    }

    fn checkpoint(&self, to: &Path) -> Result<(), EngineError> {
        self.call(|engine| engine.checkpoint(to))
    }

    fn close(&self) -> Result<(), EngineError> {
        // A reopening that has begun is waited for, and what it opened is closed.
        self.is_closing.store(true, Ordering::SeqCst);
        match &*self.current.read() {
            Current::Open(engine) => engine.close(),
            Current::Closed | Current::Lost(_) => Ok(()),
        }
    }
}
