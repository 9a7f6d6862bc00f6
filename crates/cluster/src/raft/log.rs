//! Raft's log, vote and commit mark on disk.
//!
//! One file holds everything, in the order in which it happened: entries, cuts, votes, commit
//! marks, each a checksummed frame. The order of the file is the order of the promises: a vote that
//! is durable proves that all entries before it are. The file `raft/log-N` is followed by
//! `raft/log-N+1` when entries are purged: the new one is written whole, synced and renamed into
//! place before the old one goes. The log is short (a snapshot is taken every few hundred entries)
//! and is held in memory too.
//!
//! **Invariants**
//!
//! 1. A vote is durable when [`RaftLogStorage::save_vote`] returns.
//! 2. Appended entries can be read at once; their callback runs only after a sync that covers them
//!    ([`LogStore::sync`], called by the shell).
//! 3. After a failed write or sync the log takes nothing more: what lies on the disk is unknown.
//! 4. A torn end is cut off at start, for nothing in it was promised; damage before it is refused,
//!    by name.
//! 5. What a start has read is durable before it is relied upon: the file is written afresh.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex};

use mds_storage::datadir::RAFT_DIR;
use mds_storage::frame::{End, FILE_HEADER_BYTES, FileHeader, FileKind, FrameEncoder, scan};
use mds_storage::{Disk, DiskFile};
use mds_types::NodeId;
use mds_types::mutation::{Mutation, is_on};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, OptionalSend, RaftLogReader};
use serde::{Serialize, de::DeserializeOwned};

use super::{Entry, LogId, TypeConfig, Vote};
use crate::exec::lock;
use crate::state::Command;

const NAME_PREFIX: &str = "log-";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// With the next vote the file is rewritten when it has grown beyond this, in bytes: votes without
/// commits, as in a long partition, would otherwise grow it for ever.
const REWRITE_BYTES: u64 = 8 * 1024 * 1024;

// Frame kinds. The number is the encoding.
const ENTRY: u8 = 1;
const VOTE: u8 = 2;
const COMMITTED: u8 = 3;
const TRUNCATED: u8 = 4;
const PURGED: u8 = 5;

/// Whether a log must exist already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OpenMode {
    /// Make an empty one if there is none.
    Create,
    /// Refuse to start without one: it was lost, and with it the votes of this node.
    MustExist,
}

/// Raft's log, shared by its tasks and the control part.
#[derive(Clone)]
pub(crate) struct LogStore(Arc<Mutex<Log>>);

struct Log {
    disk: Arc<dyn Disk>,
    /// Seeds the checksums: the directory's own number.
    salt_seed: u64,
    number: u64,
    salt: u64,
    file: Box<dyn DiskFile>,
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// Callbacks of appends that no sync covers yet.
    unsynced: Vec<IOFlushed<TypeConfig>>,
    failed: Option<String>,
}

fn name_of(number: u64) -> String {
    format!("{RAFT_DIR}/{NAME_PREFIX}{number:010}")
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

impl LogStore {
    /// Opens the log of a data directory.
    ///
    /// # Errors
    /// If the disk fails, the log is damaged, or it has to exist and does not.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        salt_seed: u64,
        mode: OpenMode,
    ) -> io::Result<LogStore> {
        let mut numbers = Vec::new();
        for name in disk.list(RAFT_DIR)? {
            let Some(rest) = name.strip_prefix(NAME_PREFIX) else {
                continue;
            };
            if rest.ends_with(TEMPORARY_SUFFIX) {
                disk.remove(&format!("{RAFT_DIR}/{name}"))?;
            } else if let Ok(number) = rest.parse::<u64>() {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        let Some(newest) = numbers.pop() else {
            if mode == OpenMode::MustExist {
                return Err(invalid(format!(
                    "the directory {RAFT_DIR}/ has no log, and with it this node's votes are \
                     lost. Start the node with an empty data directory: it joins as a new member"
                )));
            }
            return Log::create(disk, salt_seed).map(LogStore::shared);
        };
        for older in numbers {
            disk.remove(&name_of(older))?;
        }
        Log::read(disk, salt_seed, newest).map(LogStore::shared)
    }

    fn shared(log: Log) -> LogStore {
        LogStore(Arc::new(Mutex::new(log)))
    }

    /// Whether appends wait for a sync.
    pub(crate) fn wants_sync(&self) -> bool {
        let log = lock(&self.0);
        !log.unsynced.is_empty() && log.failed.is_none()
    }

    /// Makes all appends durable and tells Raft. To be called inside the executor.
    ///
    /// # Errors
    /// If the disk fails: the node has to stop.
    pub(crate) fn sync(&self) -> io::Result<()> {
        // The callbacks run with the lock free.
        let (result, callbacks) = {
            let mut log = lock(&self.0);
            (log.sync(), std::mem::take(&mut log.unsynced))
        };
        complete(callbacks, &result);
        result
    }

    /// The starts of a node that were proposed behind entry `after`, oldest first: start number, number
    /// drawn, and the earlier ones that its directory remembers.
    pub(crate) fn starts_after(&self, after: u64, of: NodeId) -> Vec<(u64, u64, Vec<u64>)> {
        let log = lock(&self.0);
        let start = |entry: &Entry| match &entry.payload {
            EntryPayload::Normal(Command::Announce {
                member,
                boot,
                nonce,
                earlier,
            }) if member.incarnation.node_id() == of => Some((*boot, *nonce, earlier.clone())),
            _ => None,
        };
        let behind = log.entries.range(after.saturating_add(1)..);
        behind.filter_map(|(_, entry)| start(entry)).collect()
    }

    /// Whether nothing was ever written: no vote, no entry.
    pub(crate) fn is_pristine(&self) -> bool {
        let log = lock(&self.0);
        log.vote.is_none() && log.entries.is_empty() && log.purged.is_none()
    }
}

fn complete(callbacks: Vec<IOFlushed<TypeConfig>>, result: &io::Result<()>) {
    for callback in callbacks {
        callback.io_completed(match result {
            Ok(()) => Ok(()),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        });
    }
}

impl Log {
    fn create(disk: Arc<dyn Disk>, salt_seed: u64) -> io::Result<Log> {
        let number = 1;
        let header = FileHeader::new(FileKind::RaftLog, number, salt_seed);
        let file = install(disk.as_ref(), number, &header.encode())?;
        Ok(Log {
            disk,
            salt_seed,
            number,
            salt: header.salt,
            file,
            entries: BTreeMap::new(),
            vote: None,
            committed: None,
            purged: None,
            unsynced: Vec::new(),
            failed: None,
        })
    }

    fn read(disk: Arc<dyn Disk>, salt_seed: u64, number: u64) -> io::Result<Log> {
        let name = name_of(number);
        let bytes = disk.read(&name)?;
        let header = FileHeader::decode(&bytes, FileKind::RaftLog)
            .map_err(|error| invalid(format!("{name}: {error}")))?;
        let file = disk.open(&name)?;
        let (frames, end) = scan(&bytes, FILE_HEADER_BYTES, header.salt);
        match end {
            End::Clean => {}
            End::Torn { at } => {
                tracing::warn!(file = name, at, "cutting the torn end of raft's log");
            }
            End::Corrupt { at } => return Err(invalid(damage(&name, at, "its checksum is wrong"))),
        }
        let mut log = Log {
            disk,
            salt_seed,
            number,
            salt: header.salt,
            file,
            entries: BTreeMap::new(),
            vote: None,
            committed: None,
            purged: None,
            unsynced: Vec::new(),
            failed: None,
        };
        for frame in frames {
            log.replay(frame.kind, frame.payload)
                .map_err(|error| invalid(damage(&name, frame.offset, &error)))?;
        }
        // What was read back need not be durable: the process may have died before its sync. Nor does a
        // sync of this file make it so: after one that failed, the system may go on showing what it
        // has given up writing. So it is written afresh, and only then relied upon.
        match is_on(Mutation::ReadBackBelieved) {
            true => log.file.sync()?,
            false => log.rewrite()?,
        }
        Ok(log)
    }

    fn replay(&mut self, kind: u8, payload: &[u8]) -> Result<(), String> {
        fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, String> {
            postcard::from_bytes(payload).map_err(|error| error.to_string())
        }
        match kind {
            ENTRY => {
                let entry: Entry = read(payload)?;
                let next = self.last_index().map(|last| last + 1);
                if next.is_some_and(|next| next != entry.log_id.index) {
                    return Err(format!("entry {} leaves a hole", entry.log_id.index));
                }
                self.entries.insert(entry.log_id.index, entry);
            }
            VOTE => self.vote = Some(read(payload)?),
            COMMITTED => self.committed = read(payload)?,
            TRUNCATED => {
                let last: Option<LogId> = read(payload)?;
                self.cut_after(last);
            }
            PURGED => {
                let upto: LogId = read(payload)?;
                self.forget_upto(upto);
            }
            unknown => return Err(format!("frame kind {unknown} is unknown")),
        }
        Ok(())
    }

    fn last_index(&self) -> Option<u64> {
        let last = self.entries.keys().next_back().copied();
        last.or_else(|| self.purged.as_ref().map(|purged| purged.index))
    }

    fn cut_after(&mut self, last: Option<LogId>) {
        let keep_below = last.map_or(0, |last| last.index + 1);
        self.entries.split_off(&keep_below);
    }

    fn forget_upto(&mut self, upto: LogId) {
        self.entries = self.entries.split_off(&(upto.index + 1));
        self.purged = Some(upto);
    }

    /// Appends frames; not durable before [`Log::sync`].
    fn write(&mut self, frames: &FrameEncoder) -> io::Result<()> {
        if let Some(reason) = &self.failed {
            return Err(io::Error::other(format!(
                "raft's log has failed before: {reason}"
            )));
        }
        let result = self.file.append(frames.bytes());
        self.remember_failure(result)
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some(reason) = &self.failed {
            return Err(io::Error::other(format!(
                "raft's log has failed before: {reason}"
            )));
        }
        let result = self.file.sync();
        self.remember_failure(result)
    }

    fn remember_failure<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result {
            self.failed = Some(error.to_string());
        }
        result
    }

    /// Writes the next file with only what still counts. Everything is durable afterwards.
    fn rewrite(&mut self) -> io::Result<()> {
        let number = self.number + 1;
        let header = FileHeader::new(FileKind::RaftLog, number, self.salt_seed);
        let mut frames = FrameEncoder::new(header.salt);
        if let Some(purged) = &self.purged {
            push(&mut frames, PURGED, purged)?;
        }
        if let Some(vote) = &self.vote {
            push(&mut frames, VOTE, vote)?;
        }
        for entry in self.entries.values() {
            push(&mut frames, ENTRY, entry)?;
        }
        push(&mut frames, COMMITTED, &self.committed)?;
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(frames.bytes());
        let installed = install(self.disk.as_ref(), number, &bytes);
        self.file = self.remember_failure(installed)?;
        let old = std::mem::replace(&mut self.number, number);
        self.salt = header.salt;
        let removed = self.disk.remove(&name_of(old));
        self.remember_failure(removed)
    }
}

fn damage(name: &str, at: usize, what: &str) -> String {
    format!(
        "{name} is damaged at byte {at}: {what}. This node cannot know its votes any more: start \
         it with an empty data directory, it joins as a new member"
    )
}

fn push<T: Serialize>(frames: &mut FrameEncoder, kind: u8, value: &T) -> io::Result<()> {
    let payload = postcard::to_stdvec(value).map_err(|error| invalid(error.to_string()))?;
    frames
        .push(kind, &payload)
        .map_err(|error| invalid(error.to_string()))?;
    Ok(())
}

/// Writes a file whole, durably, under its final name.
fn install(disk: &dyn Disk, number: u64, bytes: &[u8]) -> io::Result<Box<dyn DiskFile>> {
    let name = name_of(number);
    let temporary = format!("{name}{TEMPORARY_SUFFIX}");
    let mut file = disk.create(&temporary)?;
    file.append(bytes)?;
    file.sync()?;
    drop(file);
    disk.rename(&temporary, &name)?;
    disk.sync_dir(RAFT_DIR)?;
    disk.open(&name)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        Ok(lock(&self.0)
            .entries
            .range(range)
            .map(|(_, entry)| entry.clone())
            .collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(lock(&self.0).vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let log = lock(&self.0);
        let last = log.entries.values().next_back().map(|entry| entry.log_id);
        Ok(LogState {
            last_purged_log_id: log.purged,
            last_log_id: last.or(log.purged),
        })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (result, callbacks) = {
            let mut log = lock(&self.0);
            let mut frames = FrameEncoder::new(log.salt);
            push(&mut frames, VOTE, vote)?;
            log.write(&frames)?;
            log.vote = Some(*vote);
            if is_on(Mutation::VoteNotSynced) {
                return Ok(());
            }
            // Either way the appends before it are durable afterwards as well.
            let outgrown = log.file.len()? > REWRITE_BYTES;
            let result = if outgrown { log.rewrite() } else { log.sync() };
            (result, std::mem::take(&mut log.unsynced))
        };
        complete(callbacks, &result);
        result
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut log = lock(&self.0);
        let mut frames = FrameEncoder::new(log.salt);
        push(&mut frames, COMMITTED, &committed)?;
        // No sync of its own: it only saves work after a restart, and it follows its entries.
        log.write(&frames)?;
        log.committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(lock(&self.0).committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut log = lock(&self.0);
        let mut frames = FrameEncoder::new(log.salt);
        let entries: Vec<Entry> = entries.into_iter().collect();
        for entry in &entries {
            push(&mut frames, ENTRY, entry)?;
        }
        log.write(&frames)?;
        log.entries
            .extend(entries.into_iter().map(|entry| (entry.index(), entry)));
        if is_on(Mutation::RaftAckBeforeSync) {
            drop(log);
            callback.io_completed(Ok(()));
            return Ok(());
        }
        log.unsynced.push(callback);
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let mut log = lock(&self.0);
        let mut frames = FrameEncoder::new(log.salt);
        push(&mut frames, TRUNCATED, &last_log_id)?;
        log.write(&frames)?;
        log.cut_after(last_log_id);
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let (result, callbacks) = {
            let mut log = lock(&self.0);
            let mut frames = FrameEncoder::new(log.salt);
            push(&mut frames, PURGED, &log_id)?;
            log.write(&frames)?;
            log.forget_upto(log_id);
            (log.rewrite(), std::mem::take(&mut log.unsynced))
        };
        complete(callbacks, &result);
        result
    }
}
