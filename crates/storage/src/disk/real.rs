//! The disk of the machine: plain files below one root directory.
//!
//! Blocking `std::fs` calls, nothing cached. A file is synced with `fdatasync` (which includes the
//! length, as reading the data back needs it), a directory with `fsync` on the directory itself.
//!
//! What it does not do: preallocate, use direct I/O, or retry. A failed sync is reported once and
//! means that the file must not be used any more (see the contract in [`crate::disk`]).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use super::{Disk, DiskFile};

/// Files below a root directory.
#[derive(Clone, Debug)]
pub struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    /// Files below `root`, which must exist.
    pub fn new(root: PathBuf) -> RealDisk {
        RealDisk { root }
    }

    /// The directory that all paths are relative to.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a relative path lies; whatever could lead out of the root is refused.
    fn path(&self, path: &str) -> io::Result<PathBuf> {
        let relative = Path::new(path);
        let stays_inside = relative
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        if !stays_inside {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{path:?} is not a relative path below the data directory"),
            ));
        }
        Ok(self.root.join(relative))
    }
}

/// Says which file an error is about.
fn named<T>(result: io::Result<T>, path: &Path) -> io::Result<T> {
    result.map_err(|error| {
        let kind = error.kind();
        io::Error::new(kind, format!("{}: {error}", path.display()))
    })
}

impl Disk for RealDisk {
    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        let path = self.path(path)?;
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create_new(true).open(&path);
        Ok(Box::new(RealFile(named(file, &path)?)))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        let path = self.path(path)?;
        let file = OpenOptions::new().read(true).append(true).open(&path);
        Ok(Box::new(RealFile(named(file, &path)?)))
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let path = self.path(path)?;
        named(fs::read(&path), &path)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let dir = self.path(dir)?;
        let mut names = Vec::new();
        for entry in named(fs::read_dir(&dir), &dir)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = named(entry, &dir)?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let dir = self.path(dir)?;
        named(fs::create_dir_all(&dir), &dir)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.path(from)?, self.path(to)?);
        named(fs::rename(&from, &to), &from)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let path = self.path(path)?;
        named(fs::remove_file(&path), &path)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let dir = self.path(dir)?;
        named(File::open(&dir).and_then(|file| file.sync_all()), &dir)
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.0.read_at(&mut buf[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk() -> (tempfile::TempDir, RealDisk) {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path().to_path_buf());
        (dir, disk)
    }

    #[test]
    fn keeps_the_contract_of_a_disk() {
        let (_dir, disk) = disk();
        super::super::tests::conformance(&disk);
    }

    #[test]
    fn paths_do_not_lead_out_of_the_root() {
        let (_dir, disk) = disk();
        for path in ["../x", "/etc/passwd", "a/../../x"] {
            let error = disk.read(path).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
    }

    #[test]
    fn errors_name_the_file() {
        let (_dir, disk) = disk();
        let error = disk.read("log/absent").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("log/absent"), "{error}");
    }
}
