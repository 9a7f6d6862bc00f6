//! What the engines share in writing a checkpoint: an empty target, a stream of pairs into it, and
//! nothing left behind after a failure.
//!
//! Neither fjall nor LevelDB can hand out a consistent set of its files, so a checkpoint is a
//! *logical* copy: a scan of one snapshot, ingested as one run into a fresh engine. It costs what
//! reading and writing everything costs, and the copy comes out compacted.

use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;

use super::{Engine, EngineError, RunItem};

/// Makes names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// Makes a directory's own name durable in its parent.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_directory(Path::new(".")),
        Some(parent) => sync_directory(parent),
        None => Ok(()),
    }
}

/// Whether a directory holds nothing, or does not exist.
fn is_empty_or_absent(path: &Path) -> io::Result<bool> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Writes `pairs`, ascending, into a fresh engine at `to`, and closes it. After an error, its own or
/// one among the pairs, `to` is removed: half a copy would open like a whole one.
pub(super) fn write_copy<E: Engine>(
    to: &Path,
    open: impl FnOnce(&Path) -> Result<E, EngineError>,
    pairs: &mut dyn Iterator<Item = Result<(Bytes, Bytes), EngineError>>,
) -> Result<(), EngineError> {
    if !is_empty_or_absent(to)? {
        return Err(EngineError::Io(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!(
                "{} is not empty; choose a new directory for the copy",
                to.display()
            ),
        )));
    }
    let written = fill(to, open, pairs);
    if written.is_err()
        && let Err(error) = fs::remove_dir_all(to)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %to.display(), %error, "a failed checkpoint could not be removed");
    }
    written
}

fn fill<E: Engine>(
    to: &Path,
    open: impl FnOnce(&Path) -> Result<E, EngineError>,
    pairs: &mut dyn Iterator<Item = Result<(Bytes, Bytes), EngineError>>,
) -> Result<(), EngineError> {
    fs::create_dir_all(to)?;
    let copy = open(to)?;
    let mut failed = None;
    let mut run = pairs.map_while(|pair| -> Option<RunItem> {
        match pair {
            Ok((key, value)) => Some((key, Some(value))),
            Err(error) => {
                failed = Some(error);
                None
            }
        }
    });
    let ingested = copy.ingest(&mut run);
    let closed = copy.close();
    if let Some(error) = failed {
        return Err(error);
    }
    ingested?;
    closed?;
    sync_parent(to)?;
    Ok(())
}
