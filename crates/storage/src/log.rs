//! The log's segments: `log/NNNNNNNNNN.log`, framed records in the order in which they won.
//!
//! Segment numbers only grow and the newest segment always exists, so that no number is ever used
//! twice: a run file that commits segment n can never be taken for one of a later segment n.
//!
//! A segment is born under a temporary name, synced with its header, renamed, and its directory
//! synced, before the first record goes in. So a header is never torn, and a name that is there is
//! there for good. All segments but the newest were synced to their end before the next was born:
//! only the newest may have a torn tail.

use bytes::Bytes;

use crate::disk::{Disk, DiskFile};
use crate::error::{StoreError, is_full};
use crate::frame::{End, FILE_HEADER_BYTES, FileHeader, FileKind, Frame, scan};

/// The directory of the segments.
pub(crate) const LOG_DIR: &str = "log";

const SUFFIX: &str = ".log";

/// Ends the names of files that are being written; those found at start-up are removed.
pub(crate) const TEMPORARY_SUFFIX: &str = ".tmp";

/// The kind of a frame that holds a record that won its merge; it is also the record's epoch row.
pub(crate) const RECORD_FRAME: u8 = 1;

/// The kind of a frame that holds an epoch row alone: a version that lost its merge.
pub(crate) const ROW_FRAME: u8 = 2;

/// The kind of a frame that says that a dead record was collected: nothing is left of its key. It holds
/// the record without its value.
pub(crate) const REMOVAL_FRAME: u8 = 3;

/// Where a segment lies.
pub(crate) fn segment_path(id: u64) -> String {
    format!("{LOG_DIR}/{id:010}{SUFFIX}")
}

/// The segments on disk, ascending.
pub(crate) fn list_segments(disk: &dyn Disk) -> Result<Vec<u64>, StoreError> {
    let names = disk
        .list(LOG_DIR)
        .map_err(|error| StoreError::io("list the log", error))?;
    let mut ids = Vec::new();
    for name in names {
        match name.strip_suffix(SUFFIX).and_then(|id| id.parse().ok()) {
            Some(id) => ids.push(id),
            None => tracing::warn!(name, "unknown file in the log directory is left alone"),
        }
    }
    ids.sort_unstable();
    Ok(ids)
}

/// Removes what an earlier life left half-written in a directory.
pub(crate) fn remove_temporaries(disk: &dyn Disk, dir: &str) -> Result<(), StoreError> {
    let doing = || format!("clean up {dir}");
    for name in disk.list(dir).map_err(|e| StoreError::io(doing(), e))? {
        if name.ends_with(TEMPORARY_SUFFIX) {
            disk.remove(&format!("{dir}/{name}"))
                .map_err(|e| StoreError::io(doing(), e))?;
        }
    }
    Ok(())
}

/// Writes a whole file so that it is there completely or not at all, and returns it for appending.
/// The caller syncs the directory.
pub(crate) fn write_whole(
    disk: &dyn Disk,
    path: &str,
    write: impl FnOnce(&mut dyn DiskFile) -> std::io::Result<()>,
) -> Result<Box<dyn DiskFile>, StoreError> {
    let temporary = format!("{path}{TEMPORARY_SUFFIX}");
    let attempt = || {
        // An attempt that failed before may have left one behind.
        match disk.remove(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = disk.create(&temporary)?;
        write(&mut *file)?;
        file.sync()?;
        disk.rename(&temporary, path)?;
        Ok(file)
    };
    attempt().map_err(|error| {
        if is_full(&error) {
            // Leaves no half file to fill the disk; if this fails, start-up or the next try does
            // it.
            let _ = disk.remove(&temporary);
        }
        StoreError::io(format!("write {path}"), error)
    })
}

/// A segment that is being appended to.
pub(crate) struct SegmentWriter {
    id: u64,
    salt: u64,
    file: Box<dyn DiskFile>,
    len: u64,
    synced: bool,
}

/// Why an append failed.
pub(crate) enum AppendError {
    /// The disk is full; the segment is as it was.
    Full,
    /// Nobody knows what the segment holds now.
    Broken(std::io::Error),
}

impl SegmentWriter {
    /// Creates the segment, durably.
    pub(crate) fn create(disk: &dyn Disk, id: u64, seed: u64) -> Result<SegmentWriter, StoreError> {
        let header = FileHeader::new(FileKind::DataLog, id, seed);
        SegmentWriter::write(disk, &header, &header.encode())
    }

    /// Replaces the segment by these bytes, its own header and frames, durably.
    ///
    /// Reading bytes back does not prove that they are on disk: after a sync that failed, the
    /// system may go on showing them and forget to write them. So the end of the newest segment is
    /// trusted only when written afresh.
    pub(crate) fn write(
        disk: &dyn Disk,
        header: &FileHeader,
        bytes: &[u8],
    ) -> Result<SegmentWriter, StoreError> {
        let path = segment_path(header.id);
        let file = write_whole(disk, &path, |file| file.append(bytes))?;
        disk.sync_dir(LOG_DIR).map_err(|source| StoreError::Io {
            // Never "full": the name exists, and is not known to be durable.
            doing: format!("sync the directory of {path}"),
            source,
        })?;
        Ok(SegmentWriter {
            id: header.id,
            salt: header.salt,
            file,
            len: bytes.len() as u64,
            synced: true,
        })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn salt(&self) -> u64 {
        self.salt
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.synced
    }

    /// Appends whole frames.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), AppendError> {
        let Err(error) = self.file.append(bytes) else {
            self.len += bytes.len() as u64;
            self.synced = false;
            return Ok(());
        };
        // Only a full disk is forgiven, and only if the part that was written can be cut off again,
        // durably: else a power loss could bring back what was refused, or leave a torn tail in a
        // segment that is sealed meanwhile. What was there before has not been touched.
        let cut = is_full(&error)
            && self.file.truncate(self.len).is_ok()
            && self.file.len().is_ok_and(|len| len == self.len)
            && self.sync().is_ok();
        if cut {
            return Err(AppendError::Full);
        }
        Err(AppendError::Broken(error))
    }

    /// Makes everything appended durable. After a failure the segment must not be used any more.
    pub(crate) fn sync(&mut self) -> std::io::Result<()> {
        self.file.sync()?;
        self.synced = true;
        Ok(())
    }
}

/// A segment as read back.
pub(crate) struct SegmentBytes {
    pub(crate) path: String,
    pub(crate) header: FileHeader,
    pub(crate) bytes: Bytes,
}

impl SegmentBytes {
    pub(crate) fn read(disk: &dyn Disk, id: u64) -> Result<SegmentBytes, StoreError> {
        let path = segment_path(id);
        let bytes = disk
            .read(&path)
            .map_err(|error| StoreError::io(format!("read {path}"), error))?;
        let header = FileHeader::decode(&bytes, FileKind::DataLog)
            .map_err(|error| StoreError::header(&path, error))?;
        if header.id != id {
            let what = format!("the file says that it is segment {}", header.id);
            return Err(StoreError::corrupt(path, 8, what));
        }
        Ok(SegmentBytes {
            path,
            header,
            bytes: Bytes::from(bytes),
        })
    }

    pub(crate) fn frames(&self) -> (Vec<Frame<'_>>, End) {
        scan(&self.bytes, FILE_HEADER_BYTES, self.header.salt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::FaultyDisk;
    use crate::frame::FrameEncoder;

    fn disk() -> FaultyDisk {
        let disk = FaultyDisk::new(1);
        disk.create_dir(LOG_DIR).unwrap();
        disk.sync_dir("").unwrap();
        disk
    }

    fn frame(writer: &SegmentWriter, payload: &[u8]) -> Bytes {
        let mut encoder = FrameEncoder::new(writer.salt());
        encoder.push(RECORD_FRAME, payload).unwrap();
        encoder.finish()
    }

    #[test]
    fn a_created_segment_survives_power_loss_with_its_header() {
        for seed in 0..20 {
            let disk = FaultyDisk::new(seed);
            disk.create_dir(LOG_DIR).unwrap();
            disk.sync_dir("").unwrap();
            SegmentWriter::create(&disk, 3, 9).unwrap();
            disk.crash();
            assert_eq!(list_segments(&disk).unwrap(), [3]);
            let segment = SegmentBytes::read(&disk, 3).unwrap();
            assert_eq!(segment.frames(), (Vec::new(), End::Clean));
        }
    }

    #[test]
    fn an_append_that_does_not_fit_leaves_the_segment_as_it_was() {
        let disk = disk();
        let mut writer = SegmentWriter::create(&disk, 1, 9).unwrap();
        let small = frame(&writer, b"small");
        writer.append(&small).ok().unwrap();
        disk.set_capacity(Some(disk.used_bytes() + 10));
        let large = frame(&writer, &[7; 100]);
        assert!(matches!(writer.append(&large), Err(AppendError::Full)));
        disk.set_capacity(None);
        writer.append(&large).ok().unwrap();
        let segment = SegmentBytes::read(&disk, 1).unwrap();
        let (frames, end) = segment.frames();
        assert_eq!(end, End::Clean);
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[1].payload, [7; 100]);
    }

    #[test]
    fn a_segment_under_the_name_of_another_is_refused() {
        let disk = disk();
        SegmentWriter::create(&disk, 1, 9).unwrap();
        disk.rename(&segment_path(1), &segment_path(2)).unwrap();
        let error = SegmentBytes::read(&disk, 2).err().unwrap();
        assert!(error.to_string().contains("segment 1"), "{error}");
    }

    #[test]
    fn a_full_disk_leaves_no_half_segment() {
        let disk = disk();
        disk.set_capacity(Some(5));
        let error = SegmentWriter::create(&disk, 1, 9).err().unwrap();
        assert!(matches!(error, StoreError::Full));
        assert_eq!(disk.files(), []);
    }
}
