//! A disk in memory that fails the way disks fail, from a seed.
//!
//! Every file and every name exists twice: as programs see it, and as it would be found after a
//! loss of power. Between the two lie pending changes:
//!
//! - [`FaultyDisk::crash`] is a loss of power: of each file, a random prefix of the unsynced
//!   changes survives, the last append perhaps torn; of each directory, unsynced creations, renames
//!   and removals survive or are lost independently, as POSIX permits;
//! - [`FaultyDisk::process_crash`] is a kill: everything handed to the disk stays, but is no more
//!   durable than before;
//! - [`FaultyDisk::fail_after_ops`] stops the world at an exact operation, which may still take
//!   effect in part;
//! - a failed sync ([`FaultyDisk::fail_sync_in`]) may drop the dirty pages while they can still be
//!   read, and the next sync then succeeds without them: what Linux does (Rebello et al., ATC
//!   2020);
//! - the disk can be full ([`FaultyDisk::set_capacity`]), refuse reads, and rot
//!   ([`FaultyDisk::rot`]).
//!
//! Clones share one disk. Everything random is drawn from the one seed, in the order of calls, so a
//! run of one thread can be repeated exactly. File handles from before a crash fail afterwards.

mod image;

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use self::image::{Inode, Names, Node, parent};
use super::{Disk, DiskFile};

/// Counts of operations since the disk was made, failed ones included.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct OpCounts {
    /// Everything that may change the disk: what [`FaultyDisk::fail_after_ops`] counts.
    pub mutations: u64,
    /// Appends.
    pub appends: u64,
    /// Bytes that appends asked for.
    pub appended_bytes: u64,
    /// File syncs.
    pub syncs: u64,
    /// Directory syncs.
    pub dir_syncs: u64,
    /// Whole-file and positioned reads.
    pub reads: u64,
}

/// A deterministic disk that fails on demand. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct FaultyDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    random: SplitMix64,
    names: Names,
    counts: OpCounts,
    /// Crashes make older file handles invalid.
    generation: u64,
    /// Mutations that still succeed before the crash point.
    ops_left: Option<u64>,
    /// Past the crash point: everything fails.
    stopped: bool,
    syncs_left: Option<u64>,
    appends_left: Option<u64>,
    reads_fail: bool,
    capacity_bytes: Option<u64>,
}

/// How a mutation ends.
enum Fate {
    Done,
    /// At the crash point: it fails, having taken effect or not.
    Cut,
}

impl FaultyDisk {
    /// An empty disk whose faults follow from `seed`.
    pub fn new(seed: u64) -> FaultyDisk {
        FaultyDisk {
            state: Arc::new(Mutex::new(State {
                random: SplitMix64(seed),
                names: Names::default(),
                counts: OpCounts::default(),
                generation: 0,
                ops_left: None,
                stopped: false,
                syncs_left: None,
                appends_left: None,
                reads_fail: false,
                capacity_bytes: None,
            })),
        }
    }

    /// Loss of power, and power again. Planned faults are forgotten, except the capacity.
    pub fn crash(&self) {
        let mut state = self.state.lock();
        let State { random, names, .. } = &mut *state;
        names.lose_power(random);
        state.restart();
    }

    /// Death of the process. Nothing is lost, nothing becomes durable. Planned faults are
    /// forgotten, except the capacity.
    pub fn process_crash(&self) {
        self.state.lock().restart();
    }

    /// Lets `ops` more mutations succeed. The next one fails, perhaps having taken effect (an
    /// append in part), and from then on everything fails until a crash.
    pub fn fail_after_ops(&self, ops: u64) {
        self.state.lock().ops_left = Some(ops);
    }

    /// Whether the crash point set by [`FaultyDisk::fail_after_ops`] has been reached.
    pub fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Makes one file sync fail: the next but `syncs`.
    pub fn fail_sync_in(&self, syncs: u64) {
        self.state.lock().syncs_left = Some(syncs);
    }

    /// Makes one append fail having written a part: the next but `appends`.
    pub fn fail_append_in(&self, appends: u64) {
        self.state.lock().appends_left = Some(appends);
    }

    /// Makes reads fail, or work again.
    pub fn fail_reads(&self, fail: bool) {
        self.state.lock().reads_fail = fail;
    }

    /// Bounds the bytes in all files; `None` is unbounded. An append beyond it writes what fits and
    /// fails with [`io::ErrorKind::StorageFull`].
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state.lock().capacity_bytes = bytes;
    }

    /// Flips the bits of `mask` in one byte of a file. False if there is no such byte.
    pub fn rot(&self, path: &str, offset: u64, mask: u8) -> bool {
        let state = self.state.lock();
        state
            .names
            .file(path)
            .is_some_and(|inode| inode.lock().rot(offset as usize, mask))
    }

    /// All files with their lengths in bytes, sorted by path.
    pub fn files(&self) -> Vec<(String, u64)> {
        let state = self.state.lock();
        let live = state.names.live.iter();
        live.filter_map(|(path, node)| match node {
            Node::File(inode) => Some((path.clone(), inode.lock().live.len() as u64)),
            Node::Dir => None,
        })
        .collect()
    }

    /// Bytes in all files.
    pub fn used_bytes(&self) -> u64 {
        self.state.lock().used_bytes()
    }

    /// Operations so far.
    pub fn counts(&self) -> OpCounts {
        self.state.lock().counts
    }

    fn handle(&self, state: &State, inode: Arc<Mutex<Inode>>) -> Box<dyn DiskFile> {
        Box::new(FaultyFile {
            disk: self.clone(),
            inode,
            generation: state.generation,
        })
    }
}

impl State {
    fn restart(&mut self) {
        self.generation += 1;
        self.ops_left = None;
        self.stopped = false;
        self.syncs_left = None;
        self.appends_left = None;
        self.reads_fail = false;
    }

    fn used_bytes(&self) -> u64 {
        let live = self.names.live.values();
        live.map(|node| match node {
            Node::File(inode) => inode.lock().live.len() as u64,
            Node::Dir => 0,
        })
        .sum()
    }

    fn check_running(&self) -> io::Result<()> {
        if self.stopped {
            return Err(crash_point());
        }
        Ok(())
    }

    fn check_readable(&mut self) -> io::Result<()> {
        self.check_running()?;
        self.counts.reads += 1;
        if self.reads_fail {
            return Err(io::Error::other("simulated read error"));
        }
        Ok(())
    }

    /// Counts a mutation and says how it ends.
    fn mutate(&mut self) -> io::Result<Fate> {
        self.check_running()?;
        self.counts.mutations += 1;
        match &mut self.ops_left {
            Some(0) => {
                self.stopped = true;
                Ok(Fate::Cut)
            }
            Some(left) => {
                *left -= 1;
                Ok(Fate::Done)
            }
            None => Ok(Fate::Done),
        }
    }

    /// Runs a mutation that happens whole or not at all.
    fn mutate_whole(&mut self, change: impl FnOnce(&mut State)) -> io::Result<()> {
        match self.mutate()? {
            Fate::Done => {
                change(self);
                Ok(())
            }
            Fate::Cut => {
                if self.random.coin() {
                    change(self);
                }
                Err(crash_point())
            }
        }
    }
}

fn crash_point() -> io::Error {
    io::Error::other("the simulated disk has stopped")
}

fn not_found(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{path}: not found"))
}

/// Whether a countdown ends with this call; it is then disarmed.
fn comes_due(left: &mut Option<u64>) -> bool {
    match left {
        Some(0) => {
            *left = None;
            true
        }
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.check_running()?;
        if state.names.live.contains_key(path) {
            let message = format!("{path}: exists already");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        if !state.names.has_dir(parent(path)) {
            return Err(not_found(path));
        }
        let inode = Arc::new(Mutex::new(Inode::default()));
        let node = Node::File(inode.clone());
        state.mutate_whole(|state| state.names.put(path, node))?;
        Ok(self.handle(&state, inode))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        let state = self.state.lock();
        state.check_running()?;
        let inode = state.names.file(path).ok_or_else(|| not_found(path))?;
        Ok(self.handle(&state, inode))
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        let mut state = self.state.lock();
        state.check_readable()?;
        let inode = state.names.file(path).ok_or_else(|| not_found(path))?;
        let bytes = inode.lock().live.clone();
        Ok(bytes)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        state.check_running()?;
        if !state.names.has_dir(dir) {
            return Err(not_found(dir));
        }
        let inside = state.names.live.keys().filter(|path| parent(path) == dir);
        let start = if dir.is_empty() { 0 } else { dir.len() + 1 };
        Ok(inside.map(|path| path[start..].to_owned()).collect())
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        let ends = dir.match_indices('/').map(|(at, _)| at);
        for end in ends.chain([dir.len()]) {
            let path = &dir[..end];
            state.check_running()?;
            if !state.names.has_dir(path) {
                state.mutate_whole(|state| state.names.put(path, Node::Dir))?;
            }
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_running()?;
        if state.names.file(from).is_none() || !state.names.has_dir(parent(to)) {
            return Err(not_found(from));
        }
        state.mutate_whole(|state| state.names.rename(from, to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_running()?;
        if state.names.file(path).is_none() {
            return Err(not_found(path));
        }
        state.mutate_whole(|state| state.names.remove(path))
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check_running()?;
        if !state.names.has_dir(dir) {
            return Err(not_found(dir));
        }
        state.counts.dir_syncs += 1;
        state.mutate_whole(|state| state.names.sync(dir))
    }
}

struct FaultyFile {
    disk: FaultyDisk,
    inode: Arc<Mutex<Inode>>,
    generation: u64,
}

impl FaultyFile {
    fn state(&self) -> io::Result<parking_lot::MutexGuard<'_, State>> {
        let state = self.disk.state.lock();
        state.check_running()?;
        if state.generation != self.generation {
            return Err(io::Error::other("this file was opened before the crash"));
        }
        Ok(state)
    }
}

impl DiskFile for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state()?;
        let fate = state.mutate()?;
        state.counts.appends += 1;
        state.counts.appended_bytes += bytes.len() as u64;
        let (written, error) = if matches!(fate, Fate::Cut) {
            let part = state.random.below(bytes.len() as u64 + 1);
            (part, Some(crash_point()))
        } else if comes_due(&mut state.appends_left) {
            let part = state.random.below(bytes.len() as u64 + 1);
            (part, Some(io::Error::other("simulated write error")))
        } else {
            let room = state.capacity_bytes.map_or(u64::MAX, |capacity| {
                capacity.saturating_sub(state.used_bytes())
            });
            let full = || io::Error::new(io::ErrorKind::StorageFull, "simulated full disk");
            let fits = room >= bytes.len() as u64;
            (room.min(bytes.len() as u64), (!fits).then(full))
        };
        if written > 0 {
            self.inode.lock().append(&bytes[..written as usize]);
        }
        error.map_or(Ok(()), Err)
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.state()?;
        let fate = state.mutate()?;
        state.counts.syncs += 1;
        let mut inode = self.inode.lock();
        if matches!(fate, Fate::Cut) {
            if state.random.coin() {
                inode.sync();
            }
            return Err(crash_point());
        }
        if comes_due(&mut state.syncs_left) {
            if state.random.coin() {
                inode.drop_dirty_pages();
            }
            return Err(io::Error::other("simulated sync error"));
        }
        inode.sync();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let _state = self.state()?;
        Ok(self.inode.lock().live.len() as u64)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let mut state = self.state()?;
        let inode = self.inode.clone();
        state.mutate_whole(|_| inode.lock().truncate(len as usize))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.state()?.check_readable()?;
        let inode = self.inode.lock();
        let rest = inode.live.get(offset as usize..).unwrap_or(&[]);
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

/// The generator of Steele, Lea and Flood, *Fast Splittable Pseudorandom Number Generators* (OOPSLA
/// 2014): tiny, seedable, good enough to choose faults with.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix64(pub(crate) u64);

impl SplitMix64 {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number in `0..bound`; `bound` is at least 1.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    pub(crate) fn coin(&mut self) -> bool {
        self.next() & 1 == 0
    }
}

#[cfg(test)]
mod tests;
