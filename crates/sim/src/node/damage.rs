//! What can become of a machine's data directory while nobody looks: a byte changes, all of it is
//! lost, or an old copy takes its place.

use mds_storage::engine::{Engine, MemoryEngine};
use mds_storage::{Disk, FaultyDisk, datadir};

use super::{Machine, Origin, Rot};
use crate::env::Env;

/// Files that are never damaged without a refusal, whatever becomes of the rest.
const STATE_FILES: [&str; 4] = [
    datadir::IDENTITY,
    datadir::BOOT,
    datadir::HLC,
    datadir::PARTITIONS,
];

impl Machine {
    /// Changes a byte of one of the small state files. The node must not run.
    pub(crate) fn rot(&mut self, draw: u64, env: &mut Env) {
        let files = self.disk.files();
        let there: Vec<_> = files
            .iter()
            .filter(|(path, length)| *length > 0 && STATE_FILES.contains(&path.as_str()))
            .collect();
        if there.is_empty() || self.rot.is_some() {
            return;
        }
        let (path, length) = there[draw as usize % there.len()];
        let rot = Rot {
            path: path.clone(),
            offset: (draw >> 16) % length,
            mask: 1 << (draw >> 8 & 7),
        };
        if self.disk.rot(&rot.path, rot.offset, rot.mask) {
            env.counts.count("bit rot");
            env.line(|| format!("node {}: a bit of {} has rotted", self.node + 1, rot.path));
            self.rot = Some(rot);
        }
    }

    /// Whether a start of the node on a damaged directory went as it must: refused, naming the file.
    /// The damage is put right by that, as from a backup of the one file.
    pub(crate) fn examine_rot(&mut self, started: &Result<(), String>, env: &mut Env) -> bool {
        let Some(rot) = self.rot.take() else {
            return false;
        };
        self.disk.rot(&rot.path, rot.offset, rot.mask);
        match started {
            Err(error) if error.contains(&rot.path) => {
                env.counts.count("bit rot refused");
                env.line(|| format!("node {} does not start: {error}", self.node + 1));
            }
            // The disk had something else to say.
            Err(_) if env.sick.contains(&self.node) => {}
            other => {
                let detail = format!("node {}: {rot:?}, and then {other:?}", self.node + 1);
                env.violated("a damaged state file is refused by name", detail);
            }
        }
        true
    }

    /// The directory is gone.
    pub(crate) fn wipe(&mut self, env: &mut Env) {
        env.line(|| format!("node {} loses its directory", self.node + 1));
        self.disk = FaultyDisk::new(self.random.bits());
        self.engine = MemoryEngine::new();
        self.origin = Origin::Empty;
        self.rot = None;
        env.sick.remove(&self.node);
        env.watch.node_wiped(self.node);
    }

    /// Copies the directory aside, file by file, while the node runs.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn copy_directory(&mut self, env: &mut Env) -> Result<(), String> {
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
        env.line(|| format!("the directory of node {} is copied", self.node + 1));
        self.copy = Some((disk, engine, self.life));
        Ok(())
    }

    /// Puts the copy in the directory's place, if the node was started since it was taken: a copy of
    /// the present start cannot be told from the original that was shut down.
    pub(crate) fn restore_copy(&mut self, env: &mut Env) -> bool {
        match self.copy.take() {
            Some((disk, engine, life)) if self.known_life > life => {
                env.line(|| format!("an old copy takes the place of node {}'s", self.node + 1));
                self.disk = disk;
                self.engine = engine;
                self.origin = Origin::Copy;
                self.rot = None;
                true
            }
            _ => false,
        }
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
    Ok(())
}
