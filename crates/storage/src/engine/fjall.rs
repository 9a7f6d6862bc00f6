//! The default engine: [fjall](https://github.com/fjall-rs/fjall), a log-structured merge tree with
//! key-value separation (the WiscKey design: Lu et al., FAST 2016), fed by bulk ingestion only.
//!
//! **Durability**, as read in the source of fjall 3.1.13 and lsm-tree 3.1.10. Ingestion bypasses
//! journal and memtable: it writes table and blob files, syncs each of them, writes and syncs a new
//! version file that lists them, and renames the `current` pointer over it, syncing the directory.
//! Only then are the tables visible, all at once under one sequence number. So a finished ingestion
//! is durable and atomic without a word from the journal. Three gaps are closed here: the directory
//! of the blob files is not synced by fjall, so we sync it *before* the version that refers to them
//! is written; nor are the names of a fresh keyspace and of the database's directory, which we sync
//! on opening; and a crash within the creation of a database leaves files that fjall cannot open,
//! which are recognised (no data can be in them yet) and removed.
//!
//! **What we keep away from.** fjall's own workers: one alone can deadlock on its own memtable
//! rotation, and one that fails tells nobody why, while a full disk has to be told from a broken one.
//! There are none ([`WORKER_THREADS`]): nothing is ever written through a memtable, so there is nothing
//! for them to flush, and a thread of ours compacts after each run until the tree is settled, where one
//! step of a worker's need not keep up with what was ingested. [`Engine::is_behind`] watches level 0.
//! [`Engine::close`] drops the database on a thread and waits [`CLOSE_WAIT_MAX`] at most. A panic inside
//! fjall (it trusts its files) comes out as an error.
//!
//! After a failed ingestion or compaction reads go on (each block carries a checksum), and every further
//! ingestion fails: with [`EngineError::Io`] of a full disk as long as only room was wanting, else with
//! [`EngineError::Stopped`].
//!
//! What it does not do: compress, and reclaim the space of a dropped range at once (tombstones are
//! ingested, compaction does the rest).
//!
//! The version is pinned: the number of workers, compaction, level 0 and the version number go through
//! fjall's undocumented public items.

use std::any::Any;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use fjall::{
    AbstractTree, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, LsmError,
    Readable, Slice, UserKey, UserValue,
};
use parking_lot::{Condvar, Mutex, RwLock};

use super::copy::{sync_directory, sync_parent, write_copy};
use super::kind::EngineOptions;
use super::reopen::Failure;
use super::{Engine, EngineError, KeyRange, RunItem, RunOrder};

/// Threads of fjall's own: see above.
const WORKER_THREADS: usize = 0;

/// Values from this many bytes on are stored apart from their keys, so that compaction does not
/// rewrite them.
const SEPARATED_BYTES_MIN: u32 = 1024;

/// Runs in level 0 beyond which the engine says that it is behind. Each costs every read of an
/// absent or settled key a filter lookup.
const L0_RUNS_BEHIND: usize = 12;

/// How long closing waits for running calls, and then again for background work, before it gives up.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(10);

/// A checkpoint is written, not read, so it needs next to no cache.
const CHECKPOINT_CACHE_BYTES: u64 = 1024 * 1024;

/// The one keyspace.
const KEYSPACE: &str = "records";

/// fjall's own names in its directory, for recognising a creation that was cut short.
const VERSION_MARKER: &str = "version";
const KEYSPACES_DIRECTORY: &str = "keyspaces";
const BLOBS_DIRECTORY: &str = "blobs";

/// A fjall database with one keyspace.
pub struct FjallEngine {
    /// `None` once closed. Calls hold the read side while they run.
    open: RwLock<Option<Open>>,
    health: Arc<Health>,
}

struct Open {
    db: Database,
    records: Keyspace,
    /// One ingestion at a time, so that runs overwrite each other by arrival.
    ingesting: Mutex<()>,
    compactor: JoinHandle<()>,
}

/// What calls and the compaction thread tell each other.
#[derive(Default)]
struct Health {
    closing: AtomicBool,
    /// Why no further run is taken.
    failure: Mutex<Option<Failure>>,
    /// Steps of compaction that changed the tree.
    compactions: AtomicU64,
    work: Mutex<bool>,
    work_or_closing: Condvar,
}

impl Health {
    fn fail(&self, doing: &str, error: &EngineError) {
        tracing::error!(doing, %error, "the fjall engine takes no further runs until it is opened anew");
        Failure::note(&mut self.failure.lock(), doing, error);
    }

    fn check(&self) -> Result<(), EngineError> {
        self.failure
            .lock()
            .as_ref()
            .map_or(Ok(()), |failure| Err(failure.to_error()))
    }

    fn wake_compactor(&self) {
        *self.work.lock() = true;
        self.work_or_closing.notify_all();
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }
}

impl FjallEngine {
    /// Opens, or creates, a database in the directory `path`.
    ///
    /// # Errors
    /// If another process has it open, and for damaged or unreadable files.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<FjallEngine, EngineError> {
        remove_unfinished_creation(path)?;
        let (db, records) = unwound(|| open_database(path, options))?;
        let health = Arc::new(Health::default());
        let compactor = thread::Builder::new()
            .name("mds-fjall-compact".to_owned())
            .spawn({
                let (db, records, health) = (db.clone(), records.clone(), Arc::clone(&health));
                move || run_compactor(&db, &records, &health)
            })?;
        // A process that was killed may have left work.
        health.wake_compactor();
        Ok(FjallEngine {
            open: RwLock::new(Some(Open {
                db,
                records,
                ingesting: Mutex::new(()),
                compactor,
            })),
            health,
        })
    }

    /// Runs one call on the open database; a panic within fjall becomes an error.
    fn call<T>(
        &self,
        operation: impl FnOnce(&Open) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        if self.health.is_closing() {
            return Err(EngineError::closed());
        }
        // Recursive, for a run may be read from this very engine while it is ingested.
        let open = self.open.read_recursive();
        let open = open.as_ref().ok_or_else(EngineError::closed)?;
        unwound(|| operation(open))
    }

    /// Runs one change of the database, alone. Whatever goes wrong on the way, other than a bad run,
    /// is the last: what a failed sync left on disk only a new start can tell.
    fn change(
        &self,
        operation: impl FnOnce(&Open) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let changed = self.call(|open| {
            let _alone = open.ingesting.lock();
            self.health.check()?;
            unwound(|| operation(open)).inspect_err(|error| {
                if !matches!(error, EngineError::BadRun(_)) {
                    self.health.fail("ingestion", error);
                }
            })
        });
        self.health.wake_compactor();
        changed
    }
}

impl Engine for FjallEngine {
    fn name(&self) -> &'static str {
        "fjall"
    }

    fn ingest(&self, run: &mut dyn Iterator<Item = RunItem>) -> Result<(), EngineError> {
        self.change(|open| ingest(&open.records, &mut run.map(Ok)))
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        if key.is_empty() {
            return self.call(|_| Ok(None));
        }
        self.call(|open| Ok(open.records.get(key)?.map(value_bytes)))
    }

    fn visit(
        &self,
        from: &[u8],
        to: &[u8],
        visitor: &mut dyn FnMut(&[u8], Bytes) -> bool,
    ) -> Result<bool, EngineError> {
        self.call(|open| {
            if from >= to {
                return Ok(false);
            }
            let snapshot = open.db.snapshot();
            let mut pairs = snapshot.range(&open.records, from..to);
            while let Some(pair) = pairs.next() {
                let (key, value) = pair.into_inner()?;
                if visitor(&key, value_bytes(value)) {
                    continue;
                }
                // Of the next pair only the key is read, not a value stored apart.
                return match pairs.next() {
                    Some(pair) => Ok(pair.key().map(|_| true)?),
                    None => Ok(false),
                };
            }
            Ok(false)
        })
    }

    fn drop_ranges(&self, ranges: &[KeyRange]) -> Result<(), EngineError> {
        self.change(|open| {
            let snapshot = open.db.snapshot();
            let ranges = ranges.iter().filter(|(from, to)| from < to);
            let pairs =
                ranges.flat_map(|(from, to)| snapshot.range(&open.records, &from[..]..&to[..]));
            // Only keys are read, not the values stored apart.
            let mut tombstones = pairs.map(|pair| {
                let key = pair.key()?;
                Ok((Bytes::copy_from_slice(&key), None))
            });
            ingest(&open.records, &mut tombstones)
        })
    }

    fn is_behind(&self) -> bool {
        // A failed engine is not waited for: the next run gets the error.
        if self.health.check().is_err() {
            return false;
        }
        let behind = self
            .call(|open| Ok(open.records.tree.l0_run_count() > L0_RUNS_BEHIND))
            .unwrap_or(false);
        if behind {
            self.health.wake_compactor();
        }
        behind
    }

    fn background_progress(&self) -> u64 {
        self.health.compactions.load(Ordering::Relaxed)
    }

    fn disk_bytes(&self) -> u64 {
        self.call(|open| Ok(open.db.disk_space()?)).unwrap_or(0)
    }

    fn checkpoint(&self, to: &Path) -> Result<(), EngineError> {
        self.call(|open| {
            let snapshot = open.db.snapshot();
            let mut pairs = snapshot.iter(&open.records).map(|pair| {
                // Closing waits for running calls, and this one may be long.
                if self.health.is_closing() {
                    return Err(EngineError::closed());
                }
                let (key, value) = pair.into_inner()?;
                Ok((Bytes::copy_from_slice(&key), value_bytes(value)))
            });
            let options = EngineOptions {
                cache_bytes: CHECKPOINT_CACHE_BYTES,
            };
            write_copy(to, |to| FjallEngine::open(to, &options), &mut pairs)
        })
    }

    fn close(&self) -> Result<(), EngineError> {
        self.health.closing.store(true, Ordering::SeqCst);
        self.health.wake_compactor();
        let Some(mut open) = self.open.try_write_for(CLOSE_WAIT_MAX) else {
            return Err(EngineError::Stopped(format!(
                "fjall was not closed: calls are still running after {CLOSE_WAIT_MAX:?}"
            )));
        };
        let Some(open) = open.take() else {
            return Ok(());
        };
        let (closed, is_closed) = mpsc::channel();
        thread::Builder::new()
            .name("mds-fjall-close".to_owned())
            .spawn(move || {
                let compactor = open.compactor.join();
                drop(open.records);
                drop(open.db);
                // Nobody listens any more after the wait below has ended: nothing to do about it.
                let _ = closed.send(compactor.is_ok());
            })?;
        match is_closed.recv_timeout(CLOSE_WAIT_MAX) {
            // A failure of which nobody has heard yet must not be lost in a reopening.
            Ok(true) => match self.health.check() {
                Err(error) if !error.is_full() => Err(error),
                _ => Ok(()),
            },
            Ok(false) => Err(EngineError::Stopped(
                "the compaction thread panicked".to_owned(),
            )),
            Err(_) => Err(EngineError::Stopped(format!(
                "fjall's threads did not stop within {CLOSE_WAIT_MAX:?}; all runs are durable, \
                 end the process"
            ))),
        }
    }
}

impl Drop for FjallEngine {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "closing the fjall engine");
        }
    }
}

fn open_database(
    path: &Path,
    options: &EngineOptions,
) -> Result<(Database, Keyspace), EngineError> {
    fs::create_dir_all(path)?;
    let db = Database::builder(path)
        .worker_threads_unchecked(WORKER_THREADS)
        .cache_size(options.cache_bytes)
        .open()?;
    let records = db.keyspace(KEYSPACE, || {
        KeyspaceCreateOptions::default().with_kv_separation(Some(
            KvSeparationOptions::default().separation_threshold(SEPARATED_BYTES_MIN),
        ))
    })?;
    sync_directory(&path.join(KEYSPACES_DIRECTORY))?;
    sync_directory(path)?;
    sync_parent(path)?;
    Ok((db, records))
}

/// Removes what a crash within the creation of a database left: files, but no version marker and
/// no keyspace, hence no data. fjall itself would refuse to open or to create over them.
fn remove_unfinished_creation(path: &Path) -> Result<(), EngineError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let has_version = match fs::metadata(path.join(VERSION_MARKER)) {
        Ok(marker) => marker.len() > 0,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error.into()),
    };
    if has_version || entries.is_empty() {
        return Ok(());
    }
    for entry in &entries {
        let name = entry.file_name();
        let is_leftover = if name == KEYSPACES_DIRECTORY {
            fs::read_dir(entry.path())?.next().is_none()
        } else {
            name == VERSION_MARKER || name == "lock" || name == "0.jnl"
        };
        if !is_leftover {
            return Err(EngineError::Corrupt(format!(
                "{} has {name:?} but no readable {VERSION_MARKER:?} file: restore the directory, \
                 or remove the node's data and let it join as a new node",
                path.display()
            )));
        }
    }
    for entry in &entries {
        if entry.file_type()?.is_dir() {
            fs::remove_dir(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Ingests items, ascending. An error among them ends the ingestion before anything is visible.
fn ingest(
    records: &Keyspace,
    items: &mut dyn Iterator<Item = Result<RunItem, EngineError>>,
) -> Result<(), EngineError> {
    let mut items = items.peekable();
    if items.peek().is_none() {
        return Ok(());
    }
    let mut order = RunOrder::default();
    let mut ingestion = records.start_ingestion()?;
    for item in items {
        let (key, value) = item?;
        order.check(&key)?;
        match value {
            Some(value) => ingestion.write(UserKey::from(&*key), UserValue::from(&*value))?,
            None => ingestion.write_tombstone(UserKey::from(&*key))?,
        }
    }
    // Every blob file exists by now, though the last one may still be buffered.
    sync_directory(&records.path().join(BLOBS_DIRECTORY))?;
    ingestion.finish()?;
    Ok(())
}

/// A value as bytes of our own. A small one is copied, because it shares memory with the whole block
/// that it was read in; a separated one owns its memory.
fn value_bytes(value: Slice) -> Bytes {
    if value.len() < SEPARATED_BYTES_MIN as usize {
        Bytes::copy_from_slice(&value)
    } else {
        Bytes::from_owner(value)
    }
}

/// The compaction thread: after each run, and when asked, one step after the other until a step
/// changes nothing.
fn run_compactor(db: &Database, records: &Keyspace, health: &Health) {
    loop {
        {
            let mut work = health.work.lock();
            while !*work && !health.is_closing() {
                health.work_or_closing.wait(&mut work);
            }
            *work = false;
        }
        if health.is_closing() {
            return;
        }
        if let Err(error) = unwound(|| compact_until_settled(db, records, health)) {
            health.fail("compaction", &error);
            return;
        }
    }
}

fn compact_until_settled(
    db: &Database,
    records: &Keyspace,
    health: &Health,
) -> Result<(), EngineError> {
    while !health.is_closing() {
        let before = records.tree.current_version().id();
        records
            .tree
            .compact(
                records.config.compaction_strategy.clone(),
                db.supervisor.snapshot_tracker.get_seqno_safe_to_gc(),
            )
            .map_err(fjall::Error::from)?;
        if records.tree.current_version().id() == before {
            return Ok(());
        }
        health.compactions.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Runs `operation`; a panic in it becomes an error.
fn unwound<T>(operation: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    // What a panic may have left half-done lies inside fjall, behind locks that it poisons.
    catch_unwind(AssertUnwindSafe(operation)).unwrap_or_else(|panic| {
        Err(EngineError::Stopped(format!(
            "fjall panicked: {}",
            panic_text(&*panic)
        )))
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}

impl From<fjall::Error> for EngineError {
    fn from(error: fjall::Error) -> EngineError {
        match error {
            fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error)) => {
                EngineError::Io(error)
            }
            fjall::Error::Poisoned => EngineError::Stopped(
                "a background worker of fjall failed; see the log, and restart the node".to_owned(),
            ),
            fjall::Error::Locked => {
                EngineError::Stopped("another process has this fjall database open".to_owned())
            }
            fjall::Error::KeyspaceDeleted => EngineError::closed(),
            other => EngineError::Corrupt(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
