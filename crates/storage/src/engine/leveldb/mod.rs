//! The other engine on disk: the real [LevelDB](https://github.com/google/leveldb) 1.23 in C++,
//! through its C API. Behind the cargo feature `engine-leveldb`, as it needs the system library.
//!
//! **Durability**, as read in LevelDB's source. A run becomes batches of bounded size, and *every*
//! batch is synced: a full memtable makes LevelDB switch to a new write-ahead log and close the old
//! one **without** a sync, so one sync at the end of a run would not cover the batches before the
//! switch. LevelDB syncs its directory only when it writes a manifest, so we sync it after the last
//! batch, for the name of a log that was created meanwhile. Table files are synced before the manifest names them.
//!
//! A run of several batches becomes visible batch by batch, and a crash leaves a prefix of it, both of
//! which the contract allows.
//!
//! After the first failed write no further run is taken. LevelDB does so itself only after a failed
//! sync; after a failed append it would go on behind half a record, which recovery may then drop
//! together with what follows.
//!
//! What it does not do: store large values apart from their keys, so each compaction rewrites them;
//! use fjall where values are large.

mod ffi;
mod handle;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use self::handle::{Batch, Cursor, Handle};
use super::copy::{sync_directory, sync_parent, write_copy};
use super::kind::EngineOptions;
use super::reopen::Failure;
use super::{Engine, EngineError, KeyRange, RunItem, RunOrder};

/// Bytes of keys and values from which on a batch is written, each at the price of one sync. A batch
/// exceeds this by one pair at most.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// Tables in level 0 from which on the engine says that it is behind: LevelDB's own limit for slowing
/// writers down (it stops them at 12).
const L0_TABLES_BEHIND: u64 = 8;

/// How long closing waits for running calls before it gives up.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(10);

/// A checkpoint is written, not read, so it needs next to no cache.
const CHECKPOINT_CACHE_BYTES: u64 = 1024 * 1024;

/// A LevelDB database.
pub struct LevelDbEngine {
    path: PathBuf,
    /// `None` once closed. Calls hold the read side while they run.
    handle: RwLock<Option<Handle>>,
    /// One change at a time, so that runs overwrite each other by arrival.
    changing: Mutex<()>,
    /// Why no further run is taken.
    failure: Mutex<Option<Failure>>,
    closing: AtomicBool,
    seen: Mutex<SeenStatistics>,
}

/// LevelDB counts no compactions, but its statistics change with each.
#[derive(Default)]
struct SeenStatistics {
    text: String,
    changes: u64,
}

impl LevelDbEngine {
    /// Opens, or creates, a database in the directory `path`.
    ///
    /// # Errors
    /// If another process has it open, and for damaged or unreadable files.
    pub fn open(path: &Path, options: &EngineOptions) -> Result<LevelDbEngine, EngineError> {
        fs::create_dir_all(path)?;
        let handle = Handle::open(path, options.cache_bytes)?;
        sync_directory(path)?;
        sync_parent(path)?;
        Ok(LevelDbEngine {
            path: path.to_owned(),
            handle: RwLock::new(Some(handle)),
            changing: Mutex::new(()),
            failure: Mutex::new(None),
            closing: AtomicBool::new(false),
            seen: Mutex::default(),
        })
    }

    fn call<T>(
        &self,
        operation: impl FnOnce(&Handle) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        if self.is_closing() {
            return Err(EngineError::closed());
        }
        // Recursive, for a run may be read from this very engine while it is ingested.
        let handle = self.handle.read_recursive();
        operation(handle.as_ref().ok_or_else(EngineError::closed)?)
    }

    /// Runs one change of the database, alone. Whatever goes wrong on the way, other than a bad run,
    /// is the last.
    fn change(
        &self,
        operation: impl FnOnce(&Handle) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        self.call(|handle| {
            let _alone = self.changing.lock();
            self.check_failure()?;
            operation(handle)
                .and_then(|()| Ok(sync_directory(&self.path)?))
                .inspect_err(|error| {
                    if !matches!(error, EngineError::BadRun(_)) {
                        self.fail(error);
                    }
                })
        })
    }

    fn fail(&self, error: &EngineError) {
        tracing::error!(%error, "the LevelDB engine takes no further runs until it is opened anew");
        Failure::note(&mut self.failure.lock(), "writing", error);
    }

    fn check_failure(&self) -> Result<(), EngineError> {
        self.failure
            .lock()
            .as_ref()
            .map_or(Ok(()), |failure| Err(failure.to_error()))
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }
}

impl Engine for LevelDbEngine {
    fn name(&self) -> &'static str {
        "leveldb"
    }

    fn ingest(&self, run: &mut dyn Iterator<Item = RunItem>) -> Result<(), EngineError> {
        self.change(|handle| {
            let mut order = RunOrder::default();
            let mut batch = Batch::new();
            for (key, value) in run {
                order.check(&key)?;
                match value {
                    Some(value) => batch.put(&key, &value),
                    None => batch.delete(&key),
                }
                write_if_full(handle, &mut batch)?;
            }
            write_rest(handle, &mut batch)
        })
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.call(|handle| handle.get(key))
    }

    fn visit(
        &self,
        from: &[u8],
        to: &[u8],
        visitor: &mut dyn FnMut(&[u8], Bytes) -> bool,
    ) -> Result<bool, EngineError> {
        self.call(|handle| {
            let mut cursor = handle.iterate(false);
            cursor.seek(from);
            let mut wanted = true;
            while let Some((key, value)) = cursor.pair()?
                && key < to
            {
                if !wanted {
                    return Ok(true);
                }
                wanted = visitor(key, Bytes::copy_from_slice(value));
                cursor.next();
            }
            Ok(false)
        })
    }

    fn drop_ranges(&self, ranges: &[KeyRange]) -> Result<(), EngineError> {
        self.change(|handle| {
            let mut cursor = handle.iterate(true);
            let mut batch = Batch::new();
            for (from, to) in ranges {
                cursor.seek(from);
                while let Some((key, _)) = cursor.pair()?
                    && key < &to[..]
                {
                    batch.delete(key);
                    write_if_full(handle, &mut batch)?;
                    cursor.next();
                }
            }
            write_rest(handle, &mut batch)
        })?;
        // Outside the lock of changes, because it may take long and the flusher should not wait.
        self.call(|handle| {
            for (from, to) in ranges.iter().filter(|(from, to)| from < to) {
                handle.compact(from, to);
            }
            Ok(())
        })
    }

    fn is_behind(&self) -> bool {
        // A failed engine is not waited for: the next run gets the error.
        if self.check_failure().is_err() {
            return false;
        }
        let probed = self.call(|handle| {
            let tables = handle.property(c"leveldb.num-files-at-level0");
            let behind = tables
                .and_then(|text| text.parse::<u64>().ok())
                .is_some_and(|tables| tables >= L0_TABLES_BEHIND);
            if behind {
                // A compaction that failed, and will never catch up, shows in writes only.
                handle
                    .write_sync(&mut Batch::new())
                    .inspect_err(|error| self.fail(error))?;
            }
            Ok(behind)
        });
        probed.unwrap_or(false)
    }

    fn background_progress(&self) -> u64 {
        let mut seen = self.seen.lock();
        if let Ok(Some(text)) = self.call(|handle| Ok(handle.property(c"leveldb.stats")))
            && text != seen.text
        {
            seen.text = text;
            seen.changes += 1;
        }
        seen.changes
    }

    fn disk_bytes(&self) -> u64 {
        directory_bytes(&self.path).unwrap_or(0)
    }

    fn checkpoint(&self, to: &Path) -> Result<(), EngineError> {
        self.call(|handle| {
            let mut cursor = handle.iterate(true);
            cursor.seek(b"");
            let mut pairs = std::iter::from_fn(|| {
                // Closing waits for running calls, and this one may be long.
                if self.is_closing() {
                    return Some(Err(EngineError::closed()));
                }
                next_pair(&mut cursor).transpose()
            });
            let options = EngineOptions {
                cache_bytes: CHECKPOINT_CACHE_BYTES,
            };
            write_copy(to, |to| LevelDbEngine::open(to, &options), &mut pairs)
        })
    }

    fn close(&self) -> Result<(), EngineError> {
        self.closing.store(true, Ordering::SeqCst);
        let Some(mut handle) = self.handle.try_write_for(CLOSE_WAIT_MAX) else {
            return Err(EngineError::Stopped(format!(
                "LevelDB was not closed: calls are still running after {CLOSE_WAIT_MAX:?}"
            )));
        };
        // LevelDB ends a compaction at the next key when it is closed, so this is short.
        drop(handle.take());
        Ok(())
    }
}

fn write_if_full(handle: &Handle, batch: &mut Batch) -> Result<(), EngineError> {
    if batch.bytes() >= BATCH_BYTES {
        handle.write_sync(batch)?;
        batch.clear();
    }
    Ok(())
}

fn write_rest(handle: &Handle, batch: &mut Batch) -> Result<(), EngineError> {
    if batch.bytes() > 0 {
        handle.write_sync(batch)?;
    }
    Ok(())
}

fn next_pair(cursor: &mut Cursor<'_>) -> Result<Option<(Bytes, Bytes)>, EngineError> {
    let pair = cursor
        .pair()?
        .map(|(key, value)| (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
    cursor.next();
    Ok(pair)
}

/// Bytes of the files in a directory. Files that vanish meanwhile, as compaction makes them, count
/// nothing.
fn directory_bytes(path: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        match entry?.metadata() {
            Ok(metadata) => bytes += metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}
