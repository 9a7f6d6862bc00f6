//! Hints: writes that an absent replica has missed, kept for it until it is back.
//!
//! *Hinted handoff* (DeCandia et al., *Dynamo*, SOSP 2007): the coordinator keeps the record and
//! delivers it when the replica returns. Hints only save work: what they miss, read repair and
//! verification find. They are never counted in a write quorum. So they are **best effort**: bounded
//! in bytes and age, dropped beyond that and counted; a damaged file costs the hints behind the
//! damage, and never the start of the node.
//!
//! Each target has a directory of small segment files of [frames](crate::frame), delivered and
//! removed from the front:
//!
//! ```text
//! hints/<node, 16 hex digits>/<number, 16 hex digits>.hint
//! frame payload   created_at_ms 8 (little-endian) | record
//! ```
//!
//! **Invariants**
//!
//! 1. What [`HintStore::sync`] has covered survives a loss of power until it is delivered, expires
//!    or is forgotten.
//! 2. A hint may be delivered more than once (after a restart delivery begins again at the first
//!    segment's start, and a removed file may come back after a loss of power): merging is
//!    idempotent.
//! 3. A segment that was opened by an earlier process, or that a write has failed on, is not appended
//!    to again.
//!
//! Frames here are salted with the target's id, so a file under another target's name is not read.

mod segments;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;

use mds_types::{NodeId, Record};

use crate::datadir::HINTS_DIR;
use crate::disk::{Disk, DiskFile};
use crate::frame::FILE_HEADER_BYTES;

/// A segment that has this many bytes is closed, and the next one begun; it is the unit in which the
/// space of delivered hints is given back.
pub const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;

/// The only kind of frame in a hint segment.
const HINT_FRAME: u8 = 1;

const SEGMENT_SUFFIX: &str = ".hint";

/// How much is kept for each target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HintLimits {
    /// Bytes of segment files per target. Beyond it new hints are dropped: the old ones are nearer
    /// to being delivered, and a target that is this far behind needs repair anyway.
    pub bytes_per_target_max: u64,
    /// Milliseconds after which a hint is dropped.
    pub age_ms_max: u64,
}

impl Default for HintLimits {
    /// 1 GiB and three hours.
    fn default() -> HintLimits {
        HintLimits {
            bytes_per_target_max: 1024 * 1024 * 1024,
            age_ms_max: 3 * 60 * 60 * 1000,
        }
    }
}

/// The disk failed. Hints that are stored stay stored; the caller counts and goes on.
#[derive(Debug, thiserror::Error)]
#[error("hints in {path}: {source}")]
pub struct HintError {
    /// The directory of the target, or of all.
    pub path: String,
    /// What the disk said.
    pub source: io::Error,
}

/// What became of appended hints.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Appended {
    /// Hints that are in the log now, not yet synced.
    pub stored: u64,
    /// Hints that there was no room for.
    pub dropped: u64,
}

/// The oldest hints of a target.
#[derive(Clone, Debug)]
pub struct HintBatch {
    /// The records, oldest hint first. Empty if there are none.
    pub records: Vec<Record>,
    /// To be given back when the target has them all.
    pub token: HintToken,
}

/// A place in a target's log: everything before it has been handed out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HintToken {
    segment: u64,
    offset: u64,
    /// Hints between the last delivered one and this place.
    hints: u64,
    /// Those of them that were too old to be handed out.
    expired: u64,
}

impl HintToken {
    /// Before everything. Segments are numbered from 1.
    const NOWHERE: HintToken = HintToken {
        segment: 0,
        offset: 0,
        hints: 0,
        expired: 0,
    };
}

/// What waits for a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TargetHints {
    /// Who is absent.
    pub node: NodeId,
    /// Hints that wait, expired ones included until they are come across.
    pub count: u64,
    /// Bytes of its segment files.
    pub bytes: u64,
    /// When the first hint of the oldest segment was made: no waiting hint is older. Milliseconds
    /// since 1970.
    pub oldest_ms: u64,
}

/// Counts since the store was opened.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct HintCounters {
    /// Hints appended.
    pub stored: u64,
    /// Hints refused for want of room.
    pub dropped: u64,
    /// Hints dropped for their age.
    pub expired: u64,
    /// Hints delivered.
    pub delivered: u64,
    /// Segments of which some or all hints were lost to damage or could not be read.
    pub damaged_segments: u64,
}

/// One segment file.
#[derive(Debug)]
struct Segment {
    id: u64,
    salt: u64,
    /// Bytes that are whole frames, from the file's start.
    bytes: u64,
    /// Hints not yet delivered.
    count: u64,
    /// When its first and last hint were made, milliseconds since 1970.
    oldest_ms: u64,
    newest_ms: u64,
}

/// The segment that is being appended to: always the target's last.
struct Active {
    file: Box<dyn DiskFile>,
    is_dirty: bool,
}

struct Target {
    segments: VecDeque<Segment>,
    active: Option<Active>,
    /// Delivered up to here in the first segment.
    offset: u64,
    next_id: u64,
    /// Names in the target's directory that are not durable.
    is_directory_dirty: bool,
}

impl Target {
    fn new(next_id: u64) -> Target {
        Target {
            segments: VecDeque::new(),
            active: None,
            offset: FILE_HEADER_BYTES as u64,
            next_id,
            is_directory_dirty: false,
        }
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    fn count(&self) -> u64 {
        self.segments.iter().map(|segment| segment.count).sum()
    }
}

/// The hints of one node, for all absent targets.
pub struct HintStore {
    disk: Arc<dyn Disk>,
    limits: HintLimits,
    targets: BTreeMap<NodeId, Target>,
    counters: HintCounters,
    /// The directories of new targets are not durable.
    is_root_dirty: bool,
    /// A sync that failed outside of [`HintStore::sync`].
    unreported: Option<HintError>,
}

impl HintStore {
    /// Opens the hints on a disk, reading all of them once to count them and to find damage.
    ///
    /// # Errors
    /// Only if the directory of hints itself cannot be listed. Files that are damaged or cannot be
    /// read are left out, with a warning and a count.
    pub fn open(disk: Arc<dyn Disk>, limits: HintLimits) -> Result<HintStore, HintError> {
        let mut store = HintStore {
            disk,
            limits,
            targets: BTreeMap::new(),
            counters: HintCounters::default(),
            is_root_dirty: false,
            unreported: None,
        };
        let names = match store.disk.list(HINTS_DIR) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => {
                let path = HINTS_DIR.to_owned();
                return Err(HintError { path, source });
            }
        };
        for name in names {
            match parse_hex(&name) {
                Some(node) => store.open_target(NodeId(node)),
                None => tracing::warn!(name, "not a target of hints; ignored"),
            }
        }
        // A killed process may have left directories that are not durable.
        store.is_root_dirty = !store.targets.is_empty();
        Ok(store)
    }

    /// Appends hints for an absent target; not durable before [`HintStore::sync`].
    ///
    /// # Errors
    /// If the disk fails: of these records none may be counted on. Later ones go to a new file.
    pub fn append(
        &mut self,
        target: NodeId,
        records: &[Record],
        now_ms: u64,
    ) -> Result<Appended, HintError> {
        self.expire_front(target, now_ms);
        let mut appended = Appended::default();
        let mut rest = records;
        while !rest.is_empty() {
            let stored = self.append_to_segment(target, rest, now_ms)?;
            if stored == 0 {
                // No room for the first of them: on to the next, which may be shorter.
                appended.dropped += 1;
                rest = &rest[1..];
            } else {
                appended.stored += stored as u64;
                rest = &rest[stored..];
            }
        }
        self.counters.stored += appended.stored;
        self.counters.dropped += appended.dropped;
        Ok(appended)
    }

    /// Makes all appended hints durable.
    ///
    /// # Errors
    /// The first failure; the other targets are synced nevertheless. The file that failed is not
    /// appended to again.
    pub fn sync(&mut self) -> Result<(), HintError> {
        let mut first_error = self.unreported.take().map_or(Ok(()), Err);
        let nodes: Vec<NodeId> = self.targets.keys().copied().collect();
        for node in nodes {
            first_error = first_error.and(self.sync_target(node));
        }
        if self.is_root_dirty {
            let synced = self
                .disk
                .sync_dir(HINTS_DIR)
                .and_then(|()| self.disk.sync_dir(""));
            self.is_root_dirty = synced.is_err();
            let path = HINTS_DIR.to_owned();
            first_error = first_error.and(synced.map_err(|source| HintError { path, source }));
        }
        first_error
    }

    /// The oldest hints of a target, at least one and then up to `max_bytes` of frames, which stay
    /// where they are until [`HintStore::delivered`]. Expired ones are dropped on the way.
    ///
    /// # Errors
    /// If a file cannot be read; it is tried again by the next call.
    pub fn peek(
        &mut self,
        target: NodeId,
        max_bytes: usize,
        now_ms: u64,
    ) -> Result<HintBatch, HintError> {
        self.expire_front(target, now_ms);
        loop {
            let Some((hints, mut token)) = self.read_front(target, max_bytes)? else {
                return Ok(HintBatch {
                    records: Vec::new(),
                    token: HintToken::NOWHERE,
                });
            };
            let mut records = Vec::new();
            for hint in hints {
                if self.is_expired(hint.created_at_ms, now_ms) {
                    token.expired += 1;
                } else {
                    records.push(hint.record);
                }
            }
            if !records.is_empty() {
                return Ok(HintBatch { records, token });
            }
            // Nothing to deliver in this stretch: behind it, then.
            self.advance(target, token);
        }
    }

    /// The target has the hints before `token`. Segments that are delivered whole are removed. A
    /// token that is behind what was delivered already does nothing.
    pub fn delivered(&mut self, target: NodeId, token: HintToken) {
        self.advance(target, token);
    }

    /// What waits, for each target that has something waiting, by node.
    pub fn targets(&self) -> Vec<TargetHints> {
        let waiting = self.targets.iter().filter_map(|(&node, target)| {
            let front = target.segments.front()?;
            Some(TargetHints {
                node,
                count: target.count(),
                bytes: target.bytes(),
                oldest_ms: front.oldest_ms,
            })
        });
        waiting.filter(|target| target.count > 0).collect()
    }

    /// Drops everything for a target, as when it has left the cluster.
    pub fn forget(&mut self, target: NodeId) {
        while self.remove_front(target) {}
    }

    /// Drops segments whose every hint is too old, for all targets.
    pub fn expire(&mut self, now_ms: u64) {
        let nodes: Vec<NodeId> = self.targets.keys().copied().collect();
        for node in nodes {
            self.expire_front(node, now_ms);
        }
    }

    /// Counts since the store was opened.
    pub fn counters(&self) -> HintCounters {
        self.counters
    }

    fn is_expired(&self, created_at_ms: u64, now_ms: u64) -> bool {
        // A clock that was set back makes hints live longer, never shorter.
        now_ms.saturating_sub(created_at_ms) >= self.limits.age_ms_max
    }
}

/// A hint as it was read back.
struct Hint {
    created_at_ms: u64,
    record: Record,
}

fn target_dir(target: NodeId) -> String {
    format!("{HINTS_DIR}/{target}")
}

fn segment_path(target: NodeId, id: u64) -> String {
    format!("{HINTS_DIR}/{target}/{id:016x}{SEGMENT_SUFFIX}")
}

/// Reads a number of exactly 16 lower-case hexadecimal digits: one name for one number.
fn parse_hex(text: &str) -> Option<u64> {
    let number = u64::from_str_radix(text, 16).ok()?;
    (format!("{number:016x}") == text).then_some(number)
}

#[cfg(test)]
mod tests;
