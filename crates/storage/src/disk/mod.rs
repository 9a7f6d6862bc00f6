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

pub mod faulty;
pub mod real;

use std::io;

pub use faulty::FaultyDisk;
pub use real::RealDisk;

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    /// What every disk does when nothing fails.
    pub(super) fn conformance(disk: &dyn Disk) {
        let kind = |result: io::Result<()>| result.unwrap_err().kind();
        assert_eq!(disk.list("log").unwrap_err().kind(), ErrorKind::NotFound);
        disk.create_dir("log/deep").unwrap();
        disk.create_dir("log/deep").unwrap();
        disk.sync_dir("").unwrap();

        let mut file = disk.create("log/a").unwrap();
        assert!(file.is_empty().unwrap());
        file.append(b"one").unwrap();
        file.append(b"two").unwrap();
        file.sync().unwrap();
        assert_eq!(file.len().unwrap(), 6);
        assert_eq!(disk.read("log/a").unwrap(), b"onetwo");
        let mut buf = [0; 4];
        assert_eq!(file.read_at(1, &mut buf).unwrap(), 4);
        assert_eq!(&buf, b"netw");
        assert_eq!(file.read_at(4, &mut buf).unwrap(), 2);
        assert_eq!(file.read_at(60, &mut buf).unwrap(), 0);
        file.truncate(4).unwrap();
        file.append(b"!").unwrap();
        assert_eq!(disk.read("log/a").unwrap(), b"onet!");

        assert_eq!(
            kind(disk.create("log/a").map(drop)),
            ErrorKind::AlreadyExists
        );
        assert_eq!(kind(disk.open("log/b").map(drop)), ErrorKind::NotFound);
        assert_eq!(kind(disk.create("no/b").map(drop)), ErrorKind::NotFound);
        assert_eq!(kind(disk.rename("log/b", "log/c")), ErrorKind::NotFound);
        assert_eq!(kind(disk.remove("log/b")), ErrorKind::NotFound);
        assert_eq!(kind(disk.sync_dir("no")), ErrorKind::NotFound);

        disk.create("log/b").unwrap().append(b"b").unwrap();
        disk.open("log/b").unwrap().append(b"c").unwrap();
        assert_eq!(disk.list("log").unwrap(), ["a", "b", "deep"]);
        disk.rename("log/b", "log/a").unwrap();
        disk.sync_dir("log").unwrap();
        assert_eq!(disk.list("log").unwrap(), ["a", "deep"]);
        assert_eq!(disk.read("log/a").unwrap(), b"bc");
        // The replaced file lives on for those who hold it.
        file.append(b"?").unwrap();
        assert_eq!(file.len().unwrap(), 6);
        disk.remove("log/a").unwrap();
        assert_eq!(disk.read("log/a").unwrap_err().kind(), ErrorKind::NotFound);
    }
}
