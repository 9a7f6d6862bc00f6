//! `lab.json`: what a lab is made of, its processes, and what was last asked of each node.

use std::fs::{File, TryLockError};
use std::io::Write;

use serde::{Deserialize, Serialize};

use super::layout::{LabDir, Settings};
use super::process::{self, Process};
use crate::cli::Failure;

/// The file's content.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct State {
    /// Grows with changes of the file's form.
    pub(super) format: u32,
    /// The process that supervises, or last did.
    pub(super) supervisor: Option<i32>,
    /// What the lab is made of.
    pub(super) settings: Settings,
    /// Node i at index i-1.
    pub(super) nodes: Vec<NodeState>,
}

const FORMAT: u32 = 1;

/// One node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct NodeState {
    /// Its process, or its last one.
    pub(super) pid: Option<i32>,
    /// What was last asked of it. A node that ends while it should run died by itself.
    pub(super) asked: Asked,
}

/// What was last asked of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Asked {
    /// To run.
    Run,
    /// To stop.
    Stop,
    /// To be killed.
    Kill,
    /// To be killed and to lose its data.
    Wipe,
    /// To leave the ring and stop. Its data cannot come back.
    Leave,
}

impl State {
    /// A lab that was never started.
    pub(super) fn new(settings: Settings) -> State {
        let node = NodeState {
            pid: None,
            asked: Asked::Stop,
        };
        State {
            format: FORMAT,
            supervisor: None,
            nodes: vec![node; settings.nodes as usize],
            settings,
        }
    }

    /// Reads the file; none if there is none.
    pub(super) fn read(dir: &LabDir) -> Result<Option<State>, Failure> {
        let path = dir.state_file();
        let unusable = |reason: String| {
            Failure::unavailable(format!(
                "{} cannot be used: {reason}; if nothing of this lab runs, delete the file (data is \
                 kept) and give the same settings again",
                path.display()
            ))
        };
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unusable(error.to_string())),
        };
        let state: State =
            serde_json::from_slice(&text).map_err(|error| unusable(error.to_string()))?;
        if state.format != FORMAT {
            return Err(unusable(format!(
                "its format is {}, not {FORMAT}",
                state.format
            )));
        }
        if state.nodes.len() != state.settings.nodes as usize {
            return Err(unusable(
                "it contradicts itself about the number of nodes".to_owned(),
            ));
        }
        Ok(Some(state))
    }

    /// Writes the file whole or not at all.
    fn write(&self, dir: &LabDir) -> Result<(), Failure> {
        let path = dir.state_file();
        let new = path.with_extension("json.new");
        let written = serde_json::to_vec_pretty(self)
            .map_err(std::io::Error::other)
            .and_then(|text| {
                let mut file = File::create(&new)?;
                file.write_all(&text)?;
                file.sync_all()?;
                std::fs::rename(&new, &path)
            });
        written.map_err(|error| {
            Failure::unavailable(format!("cannot write {}: {error}", path.display()))
        })
    }

    /// Changes the state of an existing lab while nobody else does, and tells the supervisor.
    pub(super) fn change<T>(
        dir: &LabDir,
        change: impl FnOnce(&mut State) -> T,
    ) -> Result<T, Failure> {
        let _lock = lock(dir)?;
        let Some(mut state) = State::read(dir)? else {
            return Err(Failure::usage(format!(
                "there is no lab in {}: `mydatastore lab` makes one; --dir says where",
                dir.path().display()
            )));
        };
        let result = change(&mut state);
        state.write(dir)?;
        state.tell_supervisor();
        Ok(result)
    }

    /// Writes the state of a lab that this process begins to supervise.
    pub(super) fn begin(&self, dir: &LabDir) -> Result<(), Failure> {
        let _lock = lock(dir)?;
        self.write(dir)
    }

    /// The running process of a node.
    pub(super) fn process(&self, dir: &LabDir, node: u32) -> Option<Process> {
        let pid = self.nodes.get(node.checked_sub(1)? as usize)?.pid?;
        Process::find(pid, &node_arguments(dir, node))
    }

    /// The node's entry, if the lab has such a node.
    pub(super) fn node_mut(&mut self, node: u32) -> Option<&mut NodeState> {
        self.nodes.get_mut(node.checked_sub(1)? as usize)
    }

    /// The nodes that belong to the cluster: all that have not left it.
    pub(super) fn present(&self) -> Vec<u32> {
        let nodes = (1..).zip(&self.nodes);
        nodes
            .filter(|(_, entry)| entry.asked != Asked::Leave)
            .map(|(node, _)| node)
            .collect()
    }

    fn tell_supervisor(&self) {
        let Some(pid) = self.supervisor.filter(|&pid| pid != process::own_pid()) else {
            return;
        };
        if let Some(supervisor) = Process::find(pid, &["lab".to_owned()]) {
            // One that ends at this moment needs to be told nothing.
            let _ = supervisor.signal(libc::SIGUSR1);
        }
    }
}

/// What a node's command line contains, and nobody else's does.
pub(super) fn node_arguments(dir: &LabDir, node: u32) -> [String; 3] {
    let config = dir.config(node).to_string_lossy().into_owned();
    ["serve".to_owned(), "--config".to_owned(), config]
}

fn lock(dir: &LabDir) -> Result<File, Failure> {
    let path = dir.state_lock();
    let locked = File::create(&path).and_then(|file| file.lock().map(|()| file));
    locked.map_err(|error| Failure::unavailable(format!("cannot lock {}: {error}", path.display())))
}

/// The right to supervise a directory, for as long as this value lives.
pub(super) struct Supervision {
    _lock: File,
}

impl Supervision {
    /// Takes it; none if another process has it.
    pub(super) fn take(dir: &LabDir) -> Result<Option<Supervision>, Failure> {
        let path = dir.supervisor_lock();
        let cannot = |error: std::io::Error| {
            Failure::unavailable(format!("cannot lock {}: {error}", path.display()))
        };
        let file = File::create(&path).map_err(cannot)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Supervision { _lock: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(cannot(error)),
        }
    }

    /// Whether some process supervises the directory.
    pub(super) fn is_taken(dir: &LabDir) -> bool {
        matches!(Supervision::take(dir), Ok(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::SettingArgs;

    fn lab() -> (tempfile::TempDir, LabDir, State) {
        let temporary = tempfile::tempdir().unwrap();
        let dir = LabDir::create(temporary.path()).unwrap();
        let settings = Settings::new(&SettingArgs::default(), None).unwrap();
        (temporary, dir, State::new(settings))
    }

    #[test]
    fn the_state_is_kept_and_changed() {
        let (_temporary, dir, state) = lab();
        assert_eq!(State::read(&dir).unwrap(), None);
        assert_eq!(State::change(&dir, |_| ()).unwrap_err().code(), 2);
        state.begin(&dir).unwrap();
        State::change(&dir, |state| state.node_mut(2).unwrap().asked = Asked::Kill).unwrap();
        let read = State::read(&dir).unwrap().unwrap();
        assert_eq!(read.nodes[1].asked, Asked::Kill);
        assert_eq!(read.nodes[0], state.nodes[0]);
        assert!(read.clone().node_mut(0).is_none() && read.clone().node_mut(4).is_none());
    }

    #[test]
    fn changes_by_many_are_all_kept() {
        let (_temporary, dir, state) = lab();
        state.begin(&dir).unwrap();
        std::thread::scope(|scope| {
            for node in 1..=3 {
                let dir = &dir;
                scope.spawn(move || {
                    for _ in 0..20 {
                        let count = |state: &mut State| {
                            let pid = &mut state.node_mut(node).unwrap().pid;
                            // Beyond any process number: nobody is looked for under it.
                            *pid = Some(pid.unwrap_or(i32::MAX - 100) + 1);
                        };
                        State::change(dir, count).unwrap();
                    }
                });
            }
        });
        let read = State::read(&dir).unwrap().unwrap();
        assert!(
            read.nodes
                .iter()
                .all(|node| node.pid == Some(i32::MAX - 80))
        );
    }

    #[test]
    fn a_broken_file_is_named_and_not_believed() {
        let (_temporary, dir, state) = lab();
        for text in ["", "{}", "{\"format\": 2}"] {
            std::fs::write(dir.state_file(), text).unwrap();
            let failure = State::read(&dir).unwrap_err().to_string();
            assert!(failure.contains("lab.json cannot be used"), "{failure}");
        }
        let contradicting = State {
            nodes: Vec::new(),
            ..state
        };
        contradicting.begin(&dir).unwrap();
        assert!(State::read(&dir).is_err());
    }

    #[test]
    fn one_supervisor_a_directory() {
        let (_temporary, dir, _) = lab();
        assert!(!Supervision::is_taken(&dir));
        let supervision = Supervision::take(&dir).unwrap();
        assert!(supervision.is_some());
        assert!(Supervision::is_taken(&dir));
        drop(supervision);
        assert!(!Supervision::is_taken(&dir));
    }
}
