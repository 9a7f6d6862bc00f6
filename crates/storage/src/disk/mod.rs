//! The disk, as the log, run files and small state files see it.
//!
//! A deliberately small interface, so that a faulty disk in memory can stand in for the real one:
//! append-only files, explicit syncs, atomic rename. Paths are relative to the data directory,
//! `/`-separated, never contain `..`.
//!
//! **Contract.** What was appended survives a *process* crash once `append` returned, and a *power*
//! loss only once [`DiskFile::sync`] returned. A created, renamed or removed name survives power
//! loss only once [`Disk::sync_dir`] of its directory returned. After any failed `sync` nothing is
//! known about the unsynced bytes of that file: the caller must stop using it (fsync failures are
//! not retryable: Rebello et al., *Can Applications Recover from fsync Failures?*, ATC 2020).

use std::io;

/// A directory of append-only files.
pub trait Disk: Send + Sync + 'static {
    /// Creates a new, empty file for appending; it must not exist yet.
    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Opens an existing file for appending and reading.
    fn open(&self, path: &str) -> io::Result<Box<dyn DiskFile>>;

    /// Reads a whole file.
    fn read(&self, path: &str) -> io::Result<Vec<u8>>;

    /// Names in a directory (not paths), sorted. An absent directory is an error of kind `NotFound`.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;

    /// Creates a directory and its parents; it may exist already.
    fn create_dir(&self, dir: &str) -> io::Result<()>;

    /// Renames a file, replacing what stands at `to`, atomically.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Makes creations, renames and removals in a directory durable. `""` is the data directory.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
}

/// One append-only file.
pub trait DiskFile: Send {
    /// Appends all of `bytes`, or fails having appended some prefix of them.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes all appended bytes durable.
    fn sync(&mut self) -> io::Result<()>;

    /// Bytes in the file.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts the file to `len` bytes; not durable before the next sync.
    fn truncate(&mut self, len: u64) -> io::Result<()>;

    /// Reads up to `buf.len()` bytes from `offset`; fewer only at the end of the file.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
}
