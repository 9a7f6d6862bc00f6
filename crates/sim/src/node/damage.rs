//! What can become of a machine's data directory while nobody looks: a bit changes, all of it is
//! lost, or an old copy takes its place.
//!
//! **What is due to which file**, when a bit of it has changed and the node is started:
//!
//! | File | The start |
//! |---|---|
//! | state files, Raft's snapshot | is refused, naming the file |
//! | a log, a run file | is refused, naming the file; or nothing that counted was touched |
//! | the newest segment of a log | the same; or what looks like a torn tail is cut off, for no log can tell rot in its last frame from that |
//! | hints | goes well: a damaged file costs the hints behind the damage |
//!
//! In no case may it show a record that nobody wrote. A refused file is put right, as from a backup of
//! the one file. If a tail was cut, the disk has lost what it had promised: the directory as it was before
//! takes its place before anybody has heard of that start.

use mds_storage::engine::{Engine, MemoryEngine};
use mds_storage::{Disk, FaultyDisk, datadir};

use super::{Machine, Origin, Process};
use crate::env::Env;
use crate::oracle::SHOWN_BEFORE;

/// Files that are never damaged without a refusal, whatever becomes of the rest.
const STATE_FILES: [&str; 6] = [
    datadir::IDENTITY,
    datadir::BOOT,
    datadir::STARTS,
    datadir::HLC,
    datadir::PARTITIONS,
    datadir::EPOCHS,
];

/// What is due to a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    State,
    DataLog,
    Run,
    Hint,
    RaftLog,
    RaftSnapshot,
}

const KINDS: [Kind; 6] = [
    Kind::State,
    Kind::DataLog,
    Kind::Run,
    Kind::Hint,
    Kind::RaftLog,
    Kind::RaftSnapshot,
];

impl Kind {
    fn of(path: &str) -> Option<Kind> {
        let (directory, name) = path.split_once('/').unwrap_or(("", path));
        match directory {
            _ if name.ends_with(".tmp") => None,
            "" if STATE_FILES.contains(&name) => Some(Kind::State),
            datadir::LOG_DIR => Some(Kind::DataLog),
            datadir::RUNS_DIR => Some(Kind::Run),
            datadir::HINTS_DIR => Some(Kind::Hint),
            datadir::RAFT_DIR if name.starts_with("log-") => Some(Kind::RaftLog),
            datadir::RAFT_DIR if name == "snapshot" => Some(Kind::RaftSnapshot),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::State => "bit rot in a state file",
            Kind::DataLog => "bit rot in the data log",
            Kind::Run => "bit rot in a run file",
            Kind::Hint => "bit rot in hints",
            Kind::RaftLog => "bit rot in Raft's log",
            Kind::RaftSnapshot => "bit rot in Raft's snapshot",
        }
    }

    fn must_refuse(self) -> bool {
        matches!(self, Kind::State | Kind::RaftSnapshot)
    }

    fn may_refuse(self) -> bool {
        self != Kind::Hint
    }
}

/// A bit of a file that the disk has changed.
#[derive(Clone)]
pub(super) struct Rot {
    kind: Kind,
    path: String,
    offset: u64,
    mask: u8,
    /// The directory as it was.
    backup: (FaultyDisk, MemoryEngine),
}

impl Rot {
    /// Whether the end of the file may be cut off: of the newest segment only.
    fn may_be_cut(&self) -> bool {
        let files = self.backup.0.files();
        let segments = files.iter().map(|(path, _)| path);
        let newest = segments
            .filter(|path| Kind::of(path) == Some(Kind::DataLog))
            .max();
        newest == Some(&self.path)
    }
}

impl Machine {
    /// Changes a bit of some file. The node must not run.
    pub(crate) fn rot(&mut self, draw: u64, env: &mut Env) {
        if self.rot.is_some() {
            return;
        }
        let files = self.disk.files();
        let of_kind = |kind| {
            let is_it =
                move |(path, length): &&(String, u64)| *length > 0 && Kind::of(path) == Some(kind);
            files.iter().filter(is_it).collect::<Vec<_>>()
        };
        // As often one kind as another, of those that there are.
        let there: Vec<_> = KINDS
            .into_iter()
            .map(|kind| (kind, of_kind(kind)))
            .filter(|(_, files)| !files.is_empty())
            .collect();
        if there.is_empty() {
            return;
        }
        let (kind, files) = &there[draw as usize % there.len()];
        let (path, length) = files[(draw >> 8) as usize % files.len()];
        let Ok(backup) = self.copy() else {
            // Reads of the disk fail at present.
            return;
        };
        let rot = Rot {
            kind: *kind,
            path: path.clone(),
            offset: (draw >> 16) % length,
            mask: 1 << (draw >> 12 & 7),
            backup,
        };
        if self.disk.rot(&rot.path, rot.offset, rot.mask) {
            env.counts.count("bit rot");
            env.counts.count(rot.kind.name());
            env.line(|| format!("node {}: a bit of {} has rotted", self.node + 1, rot.path));
            self.rot = Some(rot);
        }
    }

    /// Whether a start of the node on a damaged directory is to be undone, the damage being put right;
    /// says so if it did not go as it must.
    pub(crate) fn examine_rot(&mut self, started: &Result<(), String>, env: &mut Env) -> bool {
        let Some(rot) = self.rot.take() else {
            return false;
        };
        let Err(error) = started else {
            return self.examine_start_on_rot(rot, env);
        };
        self.disk.rot(&rot.path, rot.offset, rot.mask);
        if rot.kind.may_refuse() && error.contains(&rot.path) {
            env.counts.count("bit rot refused");
            env.line(|| format!("node {} does not start: {error}", self.node + 1));
        } else if !env.sick.contains(&self.node) {
            // Else the disk had something else to say.
            let (node, path) = (self.node + 1, &rot.path);
            let detail = format!("node {node}: a bit of {path} has rotted, and then: {error}");
            env.violated("a damaged file is refused by name, or does no harm", detail);
        }
        true
    }

    fn examine_start_on_rot(&mut self, rot: Rot, env: &mut Env) -> bool {
        let (node, path) = (self.node + 1, rot.path.clone());
        if rot.kind.must_refuse() {
            let detail = format!("node {node}: a bit of {path} has rotted, and it started");
            env.violated("a damaged file is refused by name, or does no harm", detail);
        }
        let records = self.process.as_ref().map(|process| process.all_records());
        // Without a store nothing can have been lost.
        let records = records.and_then(Result::ok).unwrap_or_default();
        let ledger = self.process.as_ref().and_then(Process::ledger);
        let broken = match self.origin {
            // It may show what was, and nobody asks it.
            Origin::Copy => Vec::new(),
            _ => match ledger {
                Some(ledger) => {
                    let at = (env.now_ns, self.node, self.life);
                    env.watch.node_recovered(at, &records, &ledger)
                }
                None => Vec::new(),
            },
        };
        let is_cut = !broken.is_empty() && broken.iter().all(|(name, _)| *name == SHOWN_BEFORE);
        let is_excused = is_cut && rot.may_be_cut();
        if !(broken.is_empty() || is_excused) {
            for (invariant, detail) in broken {
                env.violated(invariant, format!("after rot in {path}: {detail}"));
            }
            return true;
        }
        if rot.kind == Kind::Hint {
            env.counts.count("bit rot in hints survived");
            return false;
        }
        let name = match is_cut || rot.kind == Kind::RaftLog {
            true => "bit rot cut off",
            false => "bit rot without harm",
        };
        env.counts.count(name);
        env.line(|| format!("node {node} has started in spite of {path}; its backup is put back"));
        self.kill(env);
        (self.disk, self.engine) = rot.backup;
        true
    }

    /// Puts the damage right, if there is some.
    pub(super) fn undo_rot(&mut self) {
        if let Some(rot) = self.rot.take() {
            (self.disk, self.engine) = rot.backup;
        }
    }

    /// The directory is gone.
    pub(crate) fn wipe(&mut self, env: &mut Env) {
        env.line(|| format!("node {} loses its directory", self.node + 1));
        self.disk = FaultyDisk::new(self.random.bits());
        self.engine = MemoryEngine::new();
        self.origin = Origin::Empty;
        self.rot = None;
        env.sick.remove(&self.node);
        env.lost.extend(self.id.take());
        env.watch.node_wiped(self.node);
    }

    /// Copies the directory aside, file by file, while the node runs.
    ///
    /// # Errors
    /// If it cannot be read; if no node has come up on it yet: a copy of that would be nobody's, and a new node.
    pub(crate) fn copy_directory(&mut self, env: &mut Env) -> Result<(), String> {
        if self.id.is_none() {
            return Err("no node has come up on it yet".to_owned());
        }
        let (disk, engine) = self.copy()?;
        env.line(|| format!("the directory of node {} is copied", self.node + 1));
        self.copy = Some((disk, engine, self.life));
        Ok(())
    }

    /// A copy of the directory and of what is in the engine.
    fn copy(&mut self) -> Result<(FaultyDisk, MemoryEngine), String> {
        let disk = FaultyDisk::new(self.random.bits());
        copy_files(&self.disk, &disk).map_err(|error| error.to_string())?;
        let engine = MemoryEngine::new();
        let page = self.engine.scan(&[], &[0xff; 64], usize::MAX, usize::MAX);
        let page = page.map_err(|error| error.to_string())?;
        let mut run = page
            .pairs
            .into_iter()
            .map(|(key, value)| (key, Some(value)));
        engine.ingest(&mut run).map_err(|error| error.to_string())?;
        Ok((disk, engine))
    }

    /// Puts the copy in the directory's place, if the node was started since it was taken: a copy of
    /// the present start cannot be told from the original that was shut down.
    pub(crate) fn restore_copy(&mut self, env: &mut Env) -> bool {
        let Some((disk, engine)) = self.take_old_copy() else {
            return false;
        };
        env.line(|| format!("an old copy takes the place of node {}'s", self.node + 1));
        self.disk = disk;
        self.engine = engine;
        self.origin = Origin::Copy;
        self.rot = None;
        true
    }

    /// The copy that was taken, if the cluster has acknowledged a start of the node since.
    pub(crate) fn take_old_copy(&mut self) -> Option<(FaultyDisk, MemoryEngine)> {
        self.note_known_start();
        let (disk, engine, life) = self.copy.take()?;
        (self.known_life > life).then_some((disk, engine))
    }

    /// On the spare machine lies a copy of some node's directory now.
    pub(crate) fn take_in_copy(&mut self, (disk, engine): (FaultyDisk, MemoryEngine)) {
        self.disk = disk;
        self.engine = engine;
        self.origin = Origin::Copy;
        self.is_bare = false;
    }

    /// The spare machine is cleared.
    pub(crate) fn clear(&mut self, env: &mut Env) {
        self.kill(env);
        self.is_bare = true;
    }
}

fn copy_files(from: &FaultyDisk, to: &FaultyDisk) -> std::io::Result<()> {
    for (path, _) in from.files() {
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        if !directory.is_empty() {
            to.create_dir(directory)?;
        }
        let mut file = to.create(&path)?;
        file.append(&from.read(&path)?)?;
        file.sync()?;
        to.sync_dir(directory)?;
        let above = directory.rsplit_once('/').map_or("", |(above, _)| above);
        to.sync_dir(above)?;
    }
    to.sync_dir("")?;
    Ok(())
}
