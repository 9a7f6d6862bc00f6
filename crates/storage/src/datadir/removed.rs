//! The directory of a node that its cluster has removed: put aside, so that a new node can begin in its place.
//!
//! A removed node may not come back, because the others have gone on without what it had promised. Where machines or containers come
//! and go by themselves, the process that finds this out can begin anew in the same directory instead of ending. What the old node held
//! is moved into `removed-ID` beside the new one's files: it is not needed, and yet not ours to throw away.
//!
//! **Invariants**
//!
//! 1. That it is to be put aside is durable before the first file moves ([`note_removal`]), and forgotten after all moves are durable. So a crash in
//!    between is taken up by the next start: never does a node open half of its directory.
//! 2. A note about another node than the one that lives here is void: a directory is never put aside for what its predecessor was told.
//! 3. The latest one that was put aside is kept. Those before it are deleted, or a node that comes and goes would fill its disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mds_types::NodeId;

use super::{DataDirError, IDENTITY, Identity, LOCK, LOST_AND_FOUND};
use crate::cell::{DurableCell, TEMPORARY_SUFFIX};
use crate::disk::{Disk, RealDisk};

/// The note that this directory's node was removed. A cell.
const REMOVED: &str = "REMOVED";
/// What the names of directories begin with that were put aside.
pub(super) const ASIDE_PREFIX: &str = "removed-";

/// Notes durably that the cluster has removed the node that lives in `root`, and that the next start is to begin anew.
///
/// # Errors
/// If the note cannot be written: nothing changes then.
pub fn note_removal(root: &Path, node: NodeId) -> Result<(), DataDirError> {
    let disk = RealDisk::new(root.to_owned());
    Ok(DurableCell::new(REMOVED).write(&disk, &node.0.to_le_bytes())?)
}

/// Puts aside what a removed node has left in `root`, if that was noted, and says where it is. To be called by whoever has
/// [locked](super::DirLock) the directory, before it is opened.
///
/// # Errors
/// If the disk fails; to be tried again at the next start.
pub fn set_aside_removed(root: &Path) -> Result<Option<PathBuf>, DataDirError> {
    let disk = RealDisk::new(root.to_owned());
    let Some(noted) = DurableCell::new(REMOVED).read(&disk)? else {
        return Ok(None);
    };
    let noted = noted
        .try_into()
        .map(|bytes| NodeId(u64::from_le_bytes(bytes)))
        .map_err(|_| DataDirError::Damaged(format!("{REMOVED} names nobody")))?;
    // Without an identity a crash came between the moves: the rest is to follow.
    let is_void = match DurableCell::new(IDENTITY).read(&disk)? {
        Some(identity) => Identity::decode(identity.into())?.node_id() != noted,
        None => false,
    };
    let aside = format!("{ASIDE_PREFIX}{noted}");
    if !is_void {
        move_into(&disk, &aside)?;
    }
    disk.remove(REMOVED)?;
    disk.sync_dir("")?;
    if is_void {
        return Ok(None);
    }
    remove_older(root, &disk, &aside)?;
    Ok(Some(root.join(aside)))
}

fn move_into(disk: &dyn Disk, aside: &str) -> io::Result<()> {
    disk.create_dir(aside)?;
    for name in disk.list("")? {
        if is_residents(&name) {
            disk.rename(&name, &format!("{aside}/{name}"))?;
        }
    }
    // In this order: a name that is in neither directory after a crash would be lost.
    disk.sync_dir(aside)?;
    disk.sync_dir("")
}

/// Whether a file or directory belongs to the node that lives there, and not to the place.
fn is_residents(name: &str) -> bool {
    let note_unfinished = format!("{REMOVED}{TEMPORARY_SUFFIX}");
    let of_the_place = [LOCK, LOST_AND_FOUND, REMOVED, &note_unfinished];
    !of_the_place.contains(&name) && !name.starts_with(ASIDE_PREFIX)
}

fn remove_older(root: &Path, disk: &dyn Disk, latest: &str) -> io::Result<()> {
    for name in disk.list("")? {
        if name.starts_with(ASIDE_PREFIX) && name != latest {
            fs::remove_dir_all(root.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mds_types::IncarnationId;

    use super::*;
    use crate::datadir::DataDir;

    const FIRST: IncarnationId = IncarnationId(0x1111_0000_0000_0000_0000_0000_0000_0001);
    const SECOND: IncarnationId = IncarnationId(0x2222_0000_0000_0000_0000_0000_0000_0002);
    const THIRD: IncarnationId = IncarnationId(0x3333_0000_0000_0000_0000_0000_0000_0003);

    fn open(root: &Path, fresh: IncarnationId) -> IncarnationId {
        let disk = Arc::new(RealDisk::new(root.to_owned()));
        let opened = DataDir::open_or_create(disk, "fjall", fresh).unwrap();
        opened.identity().incarnation
    }

    fn names(root: &Path) -> Vec<String> {
        RealDisk::new(root.to_owned()).list("").unwrap()
    }

    fn aside(root: &Path, incarnation: IncarnationId) -> PathBuf {
        root.join(format!("{ASIDE_PREFIX}{}", incarnation.node_id()))
    }

    #[test]
    fn what_was_not_removed_stays_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(set_aside_removed(root.path()).unwrap(), None);
        open(root.path(), FIRST);
        let before = names(root.path());
        assert_eq!(set_aside_removed(root.path()).unwrap(), None);
        assert_eq!(names(root.path()), before);
        assert_eq!(open(root.path(), SECOND), FIRST);
    }

    #[test]
    fn a_removed_node_is_put_aside_whole_and_a_new_one_begins() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        open(root, FIRST);
        fs::write(root.join("log/1"), "records").unwrap();
        fs::create_dir(root.join(LOST_AND_FOUND)).unwrap();
        fs::write(root.join(LOCK), "").unwrap();
        note_removal(root, FIRST.node_id()).unwrap();
        assert_eq!(set_aside_removed(root).unwrap(), Some(aside(root, FIRST)));
        assert_eq!(
            fs::read(aside(root, FIRST).join("log/1")).unwrap(),
            b"records"
        );
        assert!(root.join(LOST_AND_FOUND).is_dir() && root.join(LOCK).is_file());

        assert_eq!(open(root, SECOND), SECOND);
        assert!(!root.join("log/1").exists());
        assert_eq!(set_aside_removed(root).unwrap(), None);
        assert_eq!(open(root, THIRD), SECOND);
        // What was put aside is a whole directory still.
        assert_eq!(open(&aside(root, FIRST), THIRD), FIRST);
    }

    #[test]
    fn a_crash_between_two_moves_is_taken_up_by_the_next_start() {
        let all = {
            let root = tempfile::tempdir().unwrap();
            open(root.path(), FIRST);
            names(root.path())
        };
        for moved in 0..=all.len() {
            let root = tempfile::tempdir().unwrap();
            let root = root.path();
            open(root, FIRST);
            note_removal(root, FIRST.node_id()).unwrap();
            fs::create_dir(aside(root, FIRST)).unwrap();
            for name in &all[..moved] {
                fs::rename(root.join(name), aside(root, FIRST).join(name)).unwrap();
            }
            assert_eq!(set_aside_removed(root).unwrap(), Some(aside(root, FIRST)));
            assert_eq!(open(root, SECOND), SECOND, "{moved} moved before the crash");
            assert_eq!(open(&aside(root, FIRST), THIRD), FIRST);
        }
    }

    #[test]
    fn the_latest_is_kept_and_those_before_it_go() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for (removed, next) in [(FIRST, SECOND), (SECOND, THIRD)] {
            open(root, removed);
            note_removal(root, removed.node_id()).unwrap();
            set_aside_removed(root).unwrap();
            open(root, next);
        }
        assert!(!aside(root, FIRST).exists());
        assert_eq!(open(&aside(root, SECOND), FIRST), SECOND);
        assert_eq!(open(root, FIRST), THIRD);
    }

    #[test]
    fn a_note_about_somebody_else_is_void() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        open(root, FIRST);
        note_removal(root, SECOND.node_id()).unwrap();
        assert_eq!(set_aside_removed(root).unwrap(), None);
        assert_eq!(open(root, THIRD), FIRST);
        assert!(!root.join(REMOVED).exists());
    }
}
