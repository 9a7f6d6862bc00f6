//! The data directory: what lies where in it, and whose it is.
//!
//! A node *is* its data directory: the random incarnation that a fresh directory draws names the node
//! for ever, so a node whose disk was wiped comes back as somebody else and inherits no promise. The
//! identity is therefore the first thing that is written into a directory and, once written, only
//! ever gains the cluster that the node joins.
//!
//! **Invariants**
//!
//! 1. Nothing else is written before the identity is durable. So a directory with data but without an
//!    identity is damaged, never taken for a fresh one: it would come back empty under a new name
//!    while its files are still there.
//! 2. A directory belongs to one cluster, for ever, once it has joined one.
//! 3. A directory is opened with the engine and the format that it was created with, by one process
//!    at a time.
//! 4. Boot numbers of a directory never repeat; the clock's mark never goes back.

mod removed;

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use mds_types::{ClusterId, Hlc, IncarnationId, NodeId};

use self::removed::ASIDE_PREFIX;
pub use self::removed::{note_removal, set_aside_removed};
use crate::cell::{CellError, DurableCell, TEMPORARY_SUFFIX};
use crate::disk::Disk;

/// The identity: format, engine, incarnation, cluster. A cell.
pub const IDENTITY: &str = "IDENTITY";
/// An empty file that a running process holds locked.
pub const LOCK: &str = "LOCK";
/// How often the node was started. A cell.
pub const BOOT: &str = "boot";
/// The numbers drawn at its latest starts. A cell.
pub const STARTS: &str = "starts";
/// A mark above every stamp that the node has given out. A cell.
pub const HLC: &str = "hlc";
/// The number of partitions that the store was laid out for. A cell.
pub const PARTITIONS: &str = "partitions";
/// The ledger: what the replica has promised about epochs.
pub const EPOCHS: &str = "epochs";
/// Segments of the data log.
pub const LOG_DIR: &str = "log";
/// Run files of the epoch index.
pub const RUNS_DIR: &str = "runs";
/// The engine's own files. Not ours to touch.
pub const ENGINE_DIR: &str = "engine";
/// Raft's log and vote.
pub const RAFT_DIR: &str = "raft";
/// Hints for absent nodes, a directory for each.
pub const HINTS_DIR: &str = "hints";

/// What file systems put into a directory of their own accord.
const LOST_AND_FOUND: &str = "lost+found";

/// The directories that every data directory has.
const DIRECTORIES: [&str; 5] = [LOG_DIR, RUNS_DIR, ENGINE_DIR, RAFT_DIR, HINTS_DIR];

/// The format of the directory as a whole. Raised by a change that an older version cannot live with.
pub const DATA_FORMAT: u32 = 1;

/// Bytes of an engine's name, at most.
const ENGINE_NAME_BYTES_MAX: usize = 32;

/// Who a data directory is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The format that it was created with.
    pub format: u32,
    /// The engine that it was created with.
    pub engine: String,
    /// Drawn at random when it was created.
    pub incarnation: IncarnationId,
    /// The cluster that it belongs to, or [`ClusterId::NONE`] as long as it has not joined one.
    pub cluster: ClusterId,
}

impl Identity {
    /// The node that lives here.
    pub fn node_id(&self) -> NodeId {
        self.incarnation.node_id()
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.put_u32_le(self.format);
        bytes.put_u128_le(self.incarnation.0);
        bytes.put_u128_le(self.cluster.0);
        bytes.put_slice(self.engine.as_bytes());
        bytes
    }

    fn decode(mut bytes: Bytes) -> Result<Identity, DataDirError> {
        let damaged = |why: &str| DataDirError::Damaged(format!("{IDENTITY} {why}"));
        if bytes.len() < 4 {
            return Err(damaged("is too short"));
        }
        let format = bytes.get_u32_le();
        if format != DATA_FORMAT {
            return Err(DataDirError::WrongFormat {
                found: format,
                known: DATA_FORMAT,
            });
        }
        if bytes.len() < 32 {
            return Err(damaged("is too short"));
        }
        let incarnation = IncarnationId(bytes.get_u128_le());
        let cluster = ClusterId(bytes.get_u128_le());
        let engine = String::from_utf8(bytes.to_vec())
            .ok()
            .filter(|name| is_engine_name(name))
            .ok_or_else(|| damaged("names no engine"))?;
        if incarnation.node_id() == NodeId(0) {
            return Err(damaged("names nobody"));
        }
        Ok(Identity {
            format,
            engine,
            incarnation,
            cluster,
        })
    }
}

fn is_engine_name(name: &str) -> bool {
    (1..=ENGINE_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// A small state file cannot be read or written.
    #[error(transparent)]
    Cell(#[from] CellError),
    /// The disk failed.
    #[error("data directory: {0}")]
    Io(#[from] io::Error),
    /// What is there cannot be what a node left.
    #[error(
        "the data directory is damaged: {0}; restore it as a whole, or remove it and let the node \
         join as a new one"
    )]
    Damaged(String),
    /// Created with another engine.
    #[error(
        "the data directory was created with the engine {found:?}, not {wanted:?}: start with \
         {found:?}, or with an empty directory"
    )]
    WrongEngine {
        /// The engine that it was created with.
        found: String,
        /// The engine that was asked for.
        wanted: String,
    },
    /// Created by another version.
    #[error(
        "the data directory has format {found}, and this version knows format {known}: start the \
         version that wrote it"
    )]
    WrongFormat {
        /// The directory's format.
        found: u32,
        /// This version's.
        known: u32,
    },
    /// It belongs to another cluster.
    #[error(
        "the data directory belongs to cluster {found}, not {wanted}: a node joins one cluster in \
         its life; start with an empty directory"
    )]
    OtherCluster {
        /// The cluster that it belongs to.
        found: ClusterId,
        /// The cluster that was asked for.
        wanted: ClusterId,
    },
    /// A process has it open.
    #[error("another process is using {}", .0.display())]
    InUse(PathBuf),
    /// It cannot be written.
    #[error(
        "{} cannot be written ({source}): make it writable for this user, or choose another data \
         directory", path.display()
    )]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The caller gave something that cannot be stored.
    #[error("{0}")]
    Invalid(&'static str),
}

/// An opened data directory.
pub struct DataDir {
    disk: Arc<dyn Disk>,
    identity: Identity,
}

impl DataDir {
    /// Opens the directory that is the disk's root, or makes a fresh one of an empty one.
    ///
    /// `fresh_incarnation` is drawn at random by the caller and used for a fresh directory only. On
    /// a real file system hold a [`DirLock`] before.
    ///
    /// # Errors
    /// If the directory was created with another engine or format, is damaged, or the disk fails.
    pub fn open_or_create(
        disk: Arc<dyn Disk>,
        engine_name: &str,
        fresh_incarnation: IncarnationId,
    ) -> Result<DataDir, DataDirError> {
        let identity = match DurableCell::new(IDENTITY).read(&*disk)? {
            Some(bytes) => Identity::decode(Bytes::from(bytes))?,
            None => create(&*disk, engine_name, fresh_incarnation)?,
        };
        if identity.engine != engine_name {
            return Err(DataDirError::WrongEngine {
                found: identity.engine,
                wanted: engine_name.to_owned(),
            });
        }
        for directory in DIRECTORIES {
            disk.create_dir(directory)?;
        }
        disk.sync_dir("")?;
        Ok(DataDir { disk, identity })
    }

    /// Who this directory is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Joins the directory to a cluster, durably and for ever. Again with the same cluster: nothing.
    ///
    /// # Errors
    /// If it belongs to another cluster, and if the disk fails: whether it has joined then shows when
    /// it is opened again.
    pub fn adopt_cluster(&mut self, cluster: ClusterId) -> Result<(), DataDirError> {
        if cluster.is_none() {
            return Err(DataDirError::Invalid("cluster id zero means no cluster"));
        }
        if self.identity.cluster == cluster {
            return Ok(());
        }
        if !self.identity.cluster.is_none() {
            return Err(DataDirError::OtherCluster {
                found: self.identity.cluster,
                wanted: cluster,
            });
        }
        let mut joined = self.identity.clone();
        joined.cluster = cluster;
        DurableCell::new(IDENTITY).write(&*self.disk, &joined.encode())?;
        self.identity = joined;
        Ok(())
    }

    /// The number of this start of the node: 1, 2, ... It is durable before it is returned, so no
    /// two starts have the same one.
    ///
    /// # Errors
    /// If the counter is damaged or the disk fails.
    pub fn next_boot(&self) -> Result<u64, DataDirError> {
        let boot = read_number(&*self.disk, BOOT)?
            .unwrap_or(0)
            .checked_add(1)
            .ok_or_else(|| DataDirError::Damaged(format!("{BOOT} counts no further")))?;
        DurableCell::new(BOOT).write(&*self.disk, &boot.to_le_bytes())?;
        Ok(boot)
    }

    /// Counts on from `boot`, durably, if the directory has not counted so far: the next start has a
    /// greater number.
    ///
    /// # Errors
    /// If the counter is damaged or the disk fails.
    pub fn raise_boot(&self, boot: u64) -> Result<(), DataDirError> {
        if read_number(&*self.disk, BOOT)?.unwrap_or(0) < boot {
            DurableCell::new(BOOT).write(&*self.disk, &boot.to_le_bytes())?;
        }
        Ok(())
    }
}

/// The clock's durable mark, if one was ever written: the restarted clock begins there.
///
/// # Errors
/// If the mark is damaged or cannot be read.
pub fn read_hlc_mark(disk: &dyn Disk) -> Result<Option<Hlc>, DataDirError> {
    Ok(read_number(disk, HLC)?.map(Hlc))
}

/// Makes the clock's mark durable. Marks only grow: the caller is the one clock.
///
/// # Errors
/// If the disk fails; the mark is then the old or the new one, and no stamp above the old one may be
/// given out.
pub fn write_hlc_mark(disk: &dyn Disk, mark: Hlc) -> Result<(), DataDirError> {
    Ok(DurableCell::new(HLC).write(disk, &mark.0.to_le_bytes())?)
}

/// Starts that a directory remembers: more than ever fail in a row before one is acknowledged.
pub const STARTS_KEPT: usize = 64;

/// Notes, durably, the number drawn at this start; the numbers of the latest starts before it, oldest
/// first. A start that the cluster has acknowledged is in this list for ever after, but for its
/// [`STARTS_KEPT`]; in a copy that was taken before that start it never is: so a copy is told from its
/// original, however often it is started.
///
/// # Errors
/// If the cell is damaged or the disk fails; this start must not be announced then.
pub fn note_start(disk: &dyn Disk, number: u64) -> Result<Vec<u64>, DataDirError> {
    let cell = DurableCell::new(STARTS);
    let bytes = cell.read(disk)?.unwrap_or_default();
    if bytes.len() % 8 != 0 {
        return Err(DataDirError::Damaged(format!(
            "{STARTS} is no list of numbers"
        )));
    }
    let numbers = bytes.chunks_exact(8).map(|chunk| {
        let mut number = [0; 8];
        number.copy_from_slice(chunk);
        u64::from_le_bytes(number)
    });
    let earlier: Vec<u64> = numbers.collect();
    let kept = earlier.len().saturating_sub(STARTS_KEPT - 1);
    let now = earlier[kept..].iter().chain([&number]);
    let bytes: Vec<u8> = now.flat_map(|number| number.to_le_bytes()).collect();
    cell.write(disk, &bytes)?;
    Ok(earlier)
}

/// The number of partitions that this directory's store is laid out for; none before the directory
/// first belonged to a born cluster.
///
/// # Errors
/// If it is damaged, out of range or cannot be read.
pub fn read_partition_count(disk: &dyn Disk) -> Result<Option<u16>, DataDirError> {
    let Some(count) = read_number(disk, PARTITIONS)? else {
        return Ok(None);
    };
    let in_range = u16::try_from(count).ok().filter(|count| *count > 0);
    let damaged = || DataDirError::Damaged(format!("{PARTITIONS} says {count}"));
    in_range.ok_or_else(damaged).map(Some)
}

/// Makes the number of partitions durable, before the store is opened for the first time.
///
/// # Errors
/// If the disk fails.
pub fn write_partition_count(disk: &dyn Disk, count: u16) -> Result<(), DataDirError> {
    Ok(DurableCell::new(PARTITIONS).write(disk, &u64::from(count).to_le_bytes())?)
}

fn read_number(disk: &dyn Disk, name: &str) -> Result<Option<u64>, DataDirError> {
    let Some(bytes) = DurableCell::new(name).read(disk)? else {
        return Ok(None);
    };
    let bytes = <[u8; 8]>::try_from(bytes)
        .map_err(|_| DataDirError::Damaged(format!("{name} is no number")))?;
    Ok(Some(u64::from_le_bytes(bytes)))
}

/// Writes the identity into a directory that is empty but for what may lie in a fresh one.
fn create(
    disk: &dyn Disk,
    engine_name: &str,
    incarnation: IncarnationId,
) -> Result<Identity, DataDirError> {
    if !is_engine_name(engine_name) {
        return Err(DataDirError::Invalid(
            "an engine's name is 1 to 32 visible ASCII bytes",
        ));
    }
    if incarnation.node_id() == NodeId(0) {
        return Err(DataDirError::Invalid(
            "an incarnation with node id zero is nobody",
        ));
    }
    // Left by a creation that was cut short; made by the file system itself.
    let unfinished = format!("{IDENTITY}{TEMPORARY_SUFFIX}");
    let harmless = [LOCK, &unfinished, LOST_AND_FOUND];
    let mut found = disk.list("")?;
    found.retain(|name| !harmless.contains(&&**name) && !name.starts_with(ASIDE_PREFIX));
    if !found.is_empty() {
        return Err(DataDirError::Damaged(format!(
            "it has no {IDENTITY} file but holds {}",
            found.join(", ")
        )));
    }
    let identity = Identity {
        format: DATA_FORMAT,
        engine: engine_name.to_owned(),
        incarnation,
        cluster: ClusterId::NONE,
    };
    DurableCell::new(IDENTITY).write(disk, &identity.encode())?;
    Ok(identity)
}

/// Keeps other processes out of a data directory for as long as it lives.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Locks the directory `path`, creating it where it is absent.
    ///
    /// # Errors
    /// If another process has locked it, or it cannot be written.
    pub fn acquire(path: &Path) -> Result<DirLock, DataDirError> {
        let not_writable = |source| DataDirError::NotWritable {
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(path).map_err(not_writable)?;
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(LOCK))
            .map_err(not_writable)?;
        match file.try_lock() {
            Ok(()) => Ok(DirLock { _file: file }),
            Err(TryLockError::WouldBlock) => Err(DataDirError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(not_writable(source)),
        }
    }
}

#[cfg(test)]
mod tests;
