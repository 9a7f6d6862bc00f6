//! LevelDB's C API made safe: a handle that owns everything it was opened with, batches, and
//! iterators that cannot outlive it. No unsafe code of the engine lies outside this file.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use bytes::Bytes;

use super::ffi;
use crate::engine::EngineError;

/// Bytes of the memtable; a full one becomes a level 0 table.
const WRITE_BUFFER_BYTES: usize = 16 * 1024 * 1024;

/// Bytes of a table file.
const TABLE_BYTES: usize = 16 * 1024 * 1024;

/// Bits of Bloom filter for each key: about 1 % false positives.
const BLOOM_BITS_PER_KEY: i32 = 10;

/// An open database.
///
/// Every pointer is non-null (the constructors of LevelDB allocate with C++ `new`, which aborts the
/// process rather than return null across this boundary), owned, and freed in `Drop`.
pub(super) struct Handle {
    db: *mut ffi::Db,
    options: *mut ffi::Options,
    filter: *mut ffi::FilterPolicy,
    cache: *mut ffi::Cache,
    /// For gets and short scans.
    read: *mut ffi::ReadOptions,
    /// For reading everything once: leaves the cache to others.
    read_through: *mut ffi::ReadOptions,
    write_sync: *mut ffi::WriteOptions,
}

// SAFETY: a `leveldb_t` may be used, and closed, from any thread (doc/index.md of LevelDB,
// "Concurrency"); the other objects have no thread affinity.
unsafe impl Send for Handle {}

// SAFETY: "a single leveldb::DB object may be safely shared by multiple concurrent threads" (the same
// place): get, write, creating iterators, properties and compaction lock inside. Option objects are
// only read after `open` returned. Iterators and batches, which need outside synchronisation, are
// types of their own, not `Sync`.
unsafe impl Sync for Handle {}

impl Handle {
    /// Opens, or creates, the database in an existing directory.
    pub(super) fn open(path: &Path, cache_bytes: u64) -> Result<Handle, EngineError> {
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| {
            EngineError::Io(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a directory's name has a zero byte",
            ))
        })?;
        // SAFETY: constructors without preconditions.
        let mut handle = unsafe {
            Handle {
                db: ptr::null_mut(),
                options: ffi::leveldb_options_create(),
                filter: ffi::leveldb_filterpolicy_create_bloom(BLOOM_BITS_PER_KEY),
                cache: ffi::leveldb_cache_create_lru(cache_bytes as usize),
                read: ffi::leveldb_readoptions_create(),
                read_through: ffi::leveldb_readoptions_create(),
                write_sync: ffi::leveldb_writeoptions_create(),
            }
        };
        let mut error = ErrorSlot::new();
        // SAFETY: live, exclusively owned option objects, which `Drop` frees only after the database
        // that refers to filter and cache is closed; `name` ends with a zero byte and outlives the
        // call.
        unsafe {
            let options = handle.options;
            ffi::leveldb_options_set_create_if_missing(options, 1);
            // Damage in log or manifest is an error, never skipped.
            ffi::leveldb_options_set_paranoid_checks(options, 1);
            ffi::leveldb_options_set_write_buffer_size(options, WRITE_BUFFER_BYTES);
            ffi::leveldb_options_set_max_file_size(options, TABLE_BYTES);
            ffi::leveldb_options_set_cache(options, handle.cache);
            ffi::leveldb_options_set_filter_policy(options, handle.filter);
            ffi::leveldb_options_set_compression(options, ffi::NO_COMPRESSION);
            for read in [handle.read, handle.read_through] {
                ffi::leveldb_readoptions_set_verify_checksums(read, 1);
            }
            ffi::leveldb_readoptions_set_fill_cache(handle.read_through, 0);
            ffi::leveldb_writeoptions_set_sync(handle.write_sync, 1);
            handle.db = ffi::leveldb_open(options, name.as_ptr(), error.as_mut());
        }
        // On an error `db` is null, and `Drop` frees the rest.
        error.into_result()?;
        Ok(handle)
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let mut error = ErrorSlot::new();
        let mut value_bytes = 0;
        // SAFETY: a live database; `key` is `key.len()` readable bytes, which LevelDB only reads.
        let value = unsafe {
            ffi::leveldb_get(
                self.db,
                self.read,
                key.as_ptr().cast(),
                key.len(),
                &mut value_bytes,
                error.as_mut(),
            )
        };
        error.into_result()?;
        if value.is_null() {
            return Ok(None);
        }
        // SAFETY: without an error a non-null result is an array of `value_bytes` bytes, ours until
        // it is freed, once, below. (LevelDB copies an empty value into `malloc(0)`, which glibc
        // answers with a pointer that is not null.)
        unsafe {
            let bytes =
                Bytes::copy_from_slice(std::slice::from_raw_parts(value.cast(), value_bytes));
            ffi::leveldb_free(value.cast());
            Ok(Some(bytes))
        }
    }

    /// Writes a batch and syncs the write-ahead log that it went to.
    pub(super) fn write_sync(&self, batch: &mut Batch) -> Result<(), EngineError> {
        let mut error = ErrorSlot::new();
        // SAFETY: a live database and batch; the batch is borrowed exclusively.
        unsafe { ffi::leveldb_write(self.db, self.write_sync, batch.batch, error.as_mut()) };
        error.into_result()
    }

    /// An iterator over one snapshot: the database as it is now. With `through`, what it reads does
    /// not displace what others have in the cache.
    pub(super) fn iterate(&self, through: bool) -> Cursor<'_> {
        let options = if through {
            self.read_through
        } else {
            self.read
        };
        // SAFETY: a live database and options.
        let iterator = unsafe { ffi::leveldb_create_iterator(self.db, options) };
        Cursor {
            iterator,
            _handle: self,
        }
    }

    /// What LevelDB says about one of its properties, if it knows it.
    pub(super) fn property(&self, name: &CStr) -> Option<String> {
        // SAFETY: a live database; the name ends with a zero byte. A non-null result is a string
        // that ends with a zero byte, ours until it is freed, once.
        unsafe {
            let text = ffi::leveldb_property_value(self.db, name.as_ptr());
            if text.is_null() {
                return None;
            }
            let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
            ffi::leveldb_free(text.cast());
            Some(copy)
        }
    }

    /// Compacts a range of keys, and waits for it. LevelDB reports no errors here: a failure shows
    /// in the next write.
    pub(super) fn compact(&self, from: &[u8], to: &[u8]) {
        // SAFETY: a live database; both keys are readable for their lengths.
        unsafe {
            ffi::leveldb_compact_range(
                self.db,
                from.as_ptr().cast(),
                from.len(),
                to.as_ptr().cast(),
                to.len(),
            );
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: each was made by its constructor and is freed once. The database goes first, for
        // it uses filter and cache to its end. No iterator is left: they borrow this handle.
        unsafe {
            if !self.db.is_null() {
                ffi::leveldb_close(self.db);
            }
            ffi::leveldb_writeoptions_destroy(self.write_sync);
            ffi::leveldb_readoptions_destroy(self.read_through);
            ffi::leveldb_readoptions_destroy(self.read);
            ffi::leveldb_options_destroy(self.options);
            ffi::leveldb_cache_destroy(self.cache);
            ffi::leveldb_filterpolicy_destroy(self.filter);
        }
    }
}

/// Changes that are written together.
pub(super) struct Batch {
    batch: *mut ffi::WriteBatch,
    bytes: usize,
}

impl Batch {
    pub(super) fn new() -> Batch {
        Batch {
            // SAFETY: a constructor without preconditions.
            batch: unsafe { ffi::leveldb_writebatch_create() },
            bytes: 0,
        }
    }

    /// Bytes of the keys and values in it.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) {
        self.bytes += key.len() + value.len();
        // SAFETY: a live batch, borrowed exclusively; LevelDB copies key and value.
        unsafe {
            ffi::leveldb_writebatch_put(
                self.batch,
                key.as_ptr().cast(),
                key.len(),
                value.as_ptr().cast(),
                value.len(),
            );
        }
    }

    pub(super) fn delete(&mut self, key: &[u8]) {
        self.bytes += key.len();
        // SAFETY: as in `put`.
        unsafe { ffi::leveldb_writebatch_delete(self.batch, key.as_ptr().cast(), key.len()) };
    }

    pub(super) fn clear(&mut self) {
        self.bytes = 0;
        // SAFETY: a live batch, borrowed exclusively.
        unsafe { ffi::leveldb_writebatch_clear(self.batch) };
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // SAFETY: made by its constructor, freed once.
        unsafe { ffi::leveldb_writebatch_destroy(self.batch) };
    }
}

/// Key and value, in LevelDB's memory.
pub(super) type Pair<'a> = (&'a [u8], &'a [u8]);

/// A place in one snapshot of the database. It borrows the handle, so the database outlives it.
pub(super) struct Cursor<'a> {
    iterator: *mut ffi::Iterator,
    _handle: &'a Handle,
}

impl Cursor<'_> {
    /// Goes to the first key from `key` on.
    pub(super) fn seek(&mut self, key: &[u8]) {
        // SAFETY: a live iterator, borrowed exclusively; LevelDB copies what it keeps of the key.
        unsafe { ffi::leveldb_iter_seek(self.iterator, key.as_ptr().cast(), key.len()) };
    }

    /// Goes to the next key. Only after [`Cursor::pair`] has given one.
    pub(super) fn next(&mut self) {
        // SAFETY: a live iterator, borrowed exclusively; it is checked that it stands on a pair.
        unsafe {
            if ffi::leveldb_iter_valid(self.iterator) != 0 {
                ffi::leveldb_iter_next(self.iterator);
            }
        }
    }

    /// The pair that it stands on; `None` at the end.
    ///
    /// # Errors
    /// If the end was reached because a read failed.
    pub(super) fn pair(&self) -> Result<Option<Pair<'_>>, EngineError> {
        // SAFETY: a live iterator. While it is valid, key and value are readable for their lengths
        // until it moves, and moving needs the exclusive borrow that this one keeps away.
        unsafe {
            if ffi::leveldb_iter_valid(self.iterator) == 0 {
                let mut error = ErrorSlot::new();
                ffi::leveldb_iter_get_error(self.iterator, error.as_mut());
                error.into_result()?;
                return Ok(None);
            }
            let (mut key_bytes, mut value_bytes) = (0, 0);
            let key = ffi::leveldb_iter_key(self.iterator, &mut key_bytes);
            let value = ffi::leveldb_iter_value(self.iterator, &mut value_bytes);
            Ok(Some((slice(key, key_bytes), slice(value, value_bytes))))
        }
    }
}

impl Drop for Cursor<'_> {
    fn drop(&mut self) {
        // SAFETY: made by its constructor, freed once, before the database is closed.
        unsafe { ffi::leveldb_iter_destroy(self.iterator) };
    }
}

/// # Safety
/// `start` must be readable for `bytes` bytes for as long as the slice lives, or `bytes` be 0.
unsafe fn slice<'a>(start: *const c_char, bytes: usize) -> &'a [u8] {
    if bytes == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(start.cast(), bytes) }
}

/// Where LevelDB puts an error message; frees it.
struct ErrorSlot(*mut c_char);

impl ErrorSlot {
    fn new() -> ErrorSlot {
        ErrorSlot(ptr::null_mut())
    }

    fn as_mut(&mut self) -> *mut *mut c_char {
        &mut self.0
    }

    /// The error that was put here, if any. The C API keeps of a status its text only, which begins
    /// with the kind of the error.
    fn into_result(self) -> Result<(), EngineError> {
        if self.0.is_null() {
            return Ok(());
        }
        // SAFETY: not null, so it is a string that ends with a zero byte; `Drop` frees it.
        let message = unsafe { CStr::from_ptr(self.0) }
            .to_string_lossy()
            .into_owned();
        Err(if message.starts_with("Corruption") {
            EngineError::Corrupt(message)
        } else if message.starts_with("IO error: lock") {
            EngineError::Stopped(format!(
                "another process has this database open ({message})"
            ))
        } else if message.starts_with("IO error") {
            // After the file's name: what the system calls the error. The names are glibc's.
            let is_full = ["No space left on device", "Disk quota exceeded"]
                .iter()
                .any(|words| message.ends_with(words));
            EngineError::Io(if is_full {
                io::Error::new(io::ErrorKind::StorageFull, message)
            } else {
                io::Error::other(message)
            })
        } else {
            EngineError::Stopped(message)
        })
    }
}

impl Drop for ErrorSlot {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: a message that LevelDB allocated, freed once.
            unsafe { ffi::leveldb_free(self.0.cast()) };
        }
    }
}
