//! Cells: small pieces of state, each a file of its own that is replaced whole.
//!
//! For what is read once at start and rewritten now and then: the identity of a data directory, the
//! boot counter, the clock's mark, Raft's vote. A cell is written to a second file, synced, renamed
//! over the first, and the directory is synced: after a crash at any point either the old value or
//! the new one is there, whole (Pillai et al., *All File Systems Are Not Created Equal*, OSDI 2014).
//!
//! **Invariants**
//!
//! 1. A write that returned is durable. One that failed, or that a crash cut short, leaves the old
//!    value or the new one.
//! 2. What a read returned is durable too: a value that was renamed into place just before a kill is
//!    made so by the read, so nobody acts on a vote that a loss of power then takes back.
//! 3. Absent is `None`; damaged is an error that names the file. Damage is never taken for absence.
//!
//! ```text
//! magic "MDSC" 4 | format 1 | payload length 4 | checksum 8 | payload
//! ```
//!
//! The checksum is the xxh3-64 of everything else. Little-endian.
//!
//! What it does not do: keep two writers apart. A cell has one owner.

use std::io;

use bytes::{Buf, BufMut};
use xxhash_rust::xxh3::Xxh3;

use crate::disk::Disk;

/// Bytes of a cell's payload, at most, unless it was made for more ([`DurableCell::with_bytes_max`]); more
/// is refused. Cells are rewritten whole.
pub const CELL_BYTES_MAX: usize = 64 * 1024;

/// What is appended to a cell's name for the file that is to replace it.
pub const TEMPORARY_SUFFIX: &str = ".new";

const MAGIC: &[u8; 4] = b"MDSC";
const FORMAT_1: u8 = 1;
/// Bytes that the checksum is not over: itself.
const CHECKSUM_AT: usize = 4 + 1 + 4;
const HEADER_BYTES: usize = CHECKSUM_AT + 8;

/// Why a cell could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CellError {
    /// The disk failed. After a failed write either value may be there.
    #[error("{path}: {source}")]
    Io {
        /// The cell's file.
        path: String,
        /// What the disk said.
        source: io::Error,
    },
    /// The file is not a whole cell.
    #[error("{path} is damaged ({why})")]
    Corrupt {
        /// The cell's file.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Written by a later version.
    #[error(
        "{path} has format {format}, and this version knows {FORMAT_1}: start the newer version"
    )]
    UnknownFormat {
        /// The cell's file.
        path: String,
        /// Its format.
        format: u8,
    },
    /// The payload is longer than the cell may be; nothing was written.
    #[error("{path}: {bytes} bytes are too many for this cell")]
    TooLong {
        /// The cell's file.
        path: String,
        /// Bytes of the payload.
        bytes: usize,
    },
}

/// A small durable file that is replaced atomically.
#[derive(Clone, Debug)]
pub struct DurableCell {
    path: String,
    bytes_max: usize,
}

impl DurableCell {
    /// The cell in the file `path`, relative to the disk's root; its directory must exist before the
    /// first write.
    pub fn new(path: impl Into<String>) -> DurableCell {
        DurableCell::with_bytes_max(path, CELL_BYTES_MAX)
    }

    /// The same, with a bound of its own on the payload, in bytes.
    pub fn with_bytes_max(path: impl Into<String>, bytes_max: usize) -> DurableCell {
        DurableCell {
            path: path.into(),
            bytes_max,
        }
    }

    /// The payload, or `None` if the cell was never written. What is returned is durable.
    ///
    /// # Errors
    /// If the file cannot be read, or is not a whole cell of a format that is known.
    pub fn read(&self, disk: &dyn Disk) -> Result<Option<Vec<u8>>, CellError> {
        let bytes = match disk.read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io(error)),
        };
        let payload = self.decode(&bytes)?.to_vec();
        disk.sync_dir(self.directory())
            .map_err(|error| self.io(error))?;
        Ok(Some(payload))
    }

    /// Replaces the payload, durably.
    ///
    /// # Errors
    /// If the payload is too long, or the disk fails: either value may be there then, whole.
    pub fn write(&self, disk: &dyn Disk, payload: &[u8]) -> Result<(), CellError> {
        if payload.len() > self.bytes_max {
            return Err(CellError::TooLong {
                path: self.path.clone(),
                bytes: payload.len(),
            });
        }
        self.replace(disk, &encode(payload))
            .map_err(|error| self.io(error))
    }

    fn replace(&self, disk: &dyn Disk, bytes: &[u8]) -> io::Result<()> {
        let temporary = format!("{}{TEMPORARY_SUFFIX}", self.path);
        // Left by a write that was cut short.
        match disk.remove(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = disk.create(&temporary)?;
        file.append(bytes)?;
        file.sync()?;
        disk.rename(&temporary, &self.path)?;
        disk.sync_dir(self.directory())
    }

    fn decode<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], CellError> {
        let corrupt = |why| CellError::Corrupt {
            path: self.path.clone(),
            why,
        };
        if bytes.len() < HEADER_BYTES {
            return Err(corrupt("too short"));
        }
        let (header, payload) = bytes.split_at(HEADER_BYTES);
        let (checked, mut checksum) = header.split_at(CHECKSUM_AT);
        if !checked.starts_with(MAGIC) {
            return Err(corrupt("not a cell"));
        }
        if checksum.get_u64_le() != checksum_of(checked, payload) {
            return Err(corrupt("checksum mismatch"));
        }
        // From here on the bytes are as somebody wrote them.
        let mut checked = &checked[MAGIC.len()..];
        let format = checked.get_u8();
        if format != FORMAT_1 {
            return Err(CellError::UnknownFormat {
                path: self.path.clone(),
                format,
            });
        }
        if checked.get_u32_le() as usize != payload.len() {
            return Err(corrupt("wrong length"));
        }
        Ok(payload)
    }

    fn directory(&self) -> &str {
        self.path
            .rsplit_once('/')
            .map_or("", |(directory, _)| directory)
    }

    fn io(&self, source: io::Error) -> CellError {
        CellError::Io {
            path: self.path.clone(),
            source,
        }
    }
}

fn encode(payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.put_slice(MAGIC);
    bytes.put_u8(FORMAT_1);
    bytes.put_u32_le(payload.len() as u32);
    let checksum = checksum_of(&bytes, payload);
    bytes.put_u64_le(checksum);
    bytes.put_slice(payload);
    bytes
}

fn checksum_of(header: &[u8], payload: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(header);
    hash.update(payload);
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{FaultyDisk, RealDisk};
    use proptest::prelude::*;

    fn cell() -> DurableCell {
        DurableCell::new("dir/cell")
    }

    fn disk(seed: u64) -> FaultyDisk {
        let disk = FaultyDisk::new(seed);
        disk.create_dir("dir").unwrap();
        disk.sync_dir("").unwrap();
        disk
    }

    fn put_file(disk: &FaultyDisk, bytes: &[u8]) {
        let mut file = disk.create("dir/cell").unwrap();
        file.append(bytes).unwrap();
        file.sync().unwrap();
    }

    #[test]
    fn an_absent_cell_is_none_and_a_written_one_is_replaced() {
        let disk = disk(1);
        assert_eq!(cell().read(&disk).unwrap(), None);
        for payload in [&b"first"[..], b"", b"a longer second one"] {
            cell().write(&disk, payload).unwrap();
            assert_eq!(cell().read(&disk).unwrap().unwrap(), payload);
        }
        assert_eq!(disk.list("dir").unwrap(), ["cell"]);
    }

    #[test]
    fn works_on_the_real_disk() {
        let root = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(root.path().to_owned());
        let cell = DurableCell::new("cell");
        assert_eq!(cell.read(&disk).unwrap(), None);
        cell.write(&disk, b"one").unwrap();
        cell.write(&disk, b"two").unwrap();
        assert_eq!(cell.read(&disk).unwrap().unwrap(), b"two");
    }

    #[test]
    fn what_is_too_long_leaves_no_trace() {
        let disk = disk(1);
        let error = cell()
            .write(&disk, &vec![0; CELL_BYTES_MAX + 1])
            .unwrap_err();
        assert!(matches!(error, CellError::TooLong { .. }));
        assert!(disk.files().is_empty());
        cell().write(&disk, &vec![0; CELL_BYTES_MAX]).unwrap();
    }

    #[test]
    fn a_later_format_is_told_from_damage() {
        let disk = disk(1);
        let mut bytes = encode(b"payload");
        bytes[4] = 2;
        let checksum = checksum_of(&bytes[..CHECKSUM_AT], b"payload");
        bytes[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        put_file(&disk, &bytes);
        let error = cell().read(&disk).unwrap_err();
        assert!(
            matches!(error, CellError::UnknownFormat { format: 2, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_failed_read_is_not_an_absent_cell() {
        let disk = disk(1);
        cell().write(&disk, b"x").unwrap();
        disk.fail_reads(true);
        let error = cell().read(&disk).unwrap_err();
        assert!(error.to_string().contains("dir/cell"), "{error}");
    }

    proptest! {
        /// Crash at any operation of the second write, by kill or loss of power: old or new; and what
        /// was read after a kill is still there after a loss of power.
        #[test]
        fn a_crash_leaves_the_old_value_or_the_new_one(
            seed: u64, ops in 0u64..12, power_first: bool,
        ) {
            let disk = disk(seed);
            cell().write(&disk, b"old").unwrap();
            disk.fail_after_ops(ops);
            let written = cell().write(&disk, b"new");
            if power_first { disk.crash() } else { disk.process_crash() }
            let found = cell().read(&disk).unwrap().unwrap();
            prop_assert!(found == b"old" || found == b"new");
            if written.is_ok() {
                prop_assert_eq!(&found, b"new");
            }
            disk.crash();
            prop_assert_eq!(cell().read(&disk).unwrap().unwrap(), found);
            // Leftovers are no obstacle.
            cell().write(&disk, b"after").unwrap();
            disk.crash();
            prop_assert_eq!(cell().read(&disk).unwrap().unwrap(), b"after");
        }

        #[test]
        fn a_failed_sync_is_an_error_and_the_old_value_stays(seed: u64) {
            let disk = disk(seed);
            cell().write(&disk, b"old").unwrap();
            disk.fail_sync_in(0);
            prop_assert!(cell().write(&disk, b"new").is_err());
            disk.crash();
            prop_assert_eq!(cell().read(&disk).unwrap().unwrap(), b"old");
        }

        #[test]
        fn no_damage_passes(
            payload in prop::collection::vec(any::<u8>(), 0..40),
            at: prop::sample::Index,
            flip in 1u8..,
        ) {
            let disk = disk(1);
            let mut bytes = encode(&payload);
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            put_file(&disk, &bytes);
            prop_assert!(cell().read(&disk).is_err());
        }

        #[test]
        fn garbage_and_cut_files_are_named_not_read(
            mut bytes in prop::collection::vec(any::<u8>(), 0..40), marked: bool,
        ) {
            if marked {
                bytes.splice(0..0, encode(b"payload"));
                bytes.pop();
            }
            let disk = disk(1);
            put_file(&disk, &bytes);
            match cell().read(&disk) {
                // Only if the garbage was the one byte that had been cut off.
                Ok(payload) => prop_assert_eq!(payload.unwrap(), b"payload"),
                Err(error) => prop_assert!(error.to_string().contains("dir/cell")),
            }
        }
    }
}
