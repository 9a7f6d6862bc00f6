//! What another terminal does to a running lab. Each returns when it is done.

use std::time::Duration;

use super::layout::{LabDir, Settings};
use super::process::Process;
use super::start::{self, Cancel};
use super::state::{Asked, State, Supervision};
use crate::cli::{Call, Failure, output};
use crate::http::bodies::StatusBody;
use std::path::Path;

/// How long a node may take to stop in order. It promises 5 s.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// How long the system may take to end a killed process.
const KILL_PATIENCE: Duration = Duration::from_secs(15);

/// How long `status` waits for a node that may be frozen.
const LOOK_TIMEOUT: Duration = Duration::from_millis(500);

/// A lab, one of its nodes, and that node's process if it runs.
struct Target {
    dir: LabDir,
    settings: Settings,
    node: u32,
    process: Option<Process>,
    has_left: bool,
}

impl Target {
    fn find(dir: &Path, node: u32) -> Result<Target, Failure> {
        let (dir, state) = existing(dir)?;
        if node == 0 || node > state.settings.nodes {
            return Err(Failure::usage(format!(
                "there is no node {node}: this lab has nodes 1 to {}",
                state.settings.nodes
            )));
        }
        Ok(Target {
            process: state.process(&dir, node),
            has_left: !state.present().contains(&node),
            settings: state.settings,
            dir,
            node,
        })
    }

    /// Notes what was asked, before it is done: the supervisor must not be surprised by it.
    fn note(&self, asked: Asked) -> Result<(), Failure> {
        State::change(&self.dir, |state| {
            if let Some(entry) = state.node_mut(self.node) {
                entry.asked = asked;
            }
        })
    }

    fn running(&self) -> Result<&Process, Failure> {
        self.process.as_ref().ok_or_else(|| {
            Failure::unavailable(format!(
                "node {0} is not running: `mydatastore lab start-node {0}` starts it",
                self.node
            ))
        })
    }

    fn kill(&self) -> Result<(), Failure> {
        let Some(process) = &self.process else {
            return Ok(());
        };
        // One that has ended meanwhile is as dead as was wanted.
        let _ = process.signal(libc::SIGKILL);
        match process.wait(KILL_PATIENCE) {
            true => Ok(()),
            false => Err(Failure::unavailable(format!(
                "node {} (process {}) was killed, but the system has not ended it yet",
                self.node,
                process.pid()
            ))),
        }
    }
}

pub(super) fn existing(dir: &Path) -> Result<(LabDir, State), Failure> {
    let open = LabDir::open(dir)?;
    match State::read(&open)? {
        Some(state) => Ok((open, state)),
        None => Err(Failure::usage(format!(
            "there is no lab in {}: `mydatastore lab` makes one; --dir says where",
            dir.display()
        ))),
    }
}

pub(super) fn stop(dir: &Path, node: u32) -> Result<(), Failure> {
    let target = Target::find(dir, node)?;
    target.note(Asked::Stop)?;
    let Some(process) = target.process else {
        return output::line(format!("node {node} was not running"));
    };
    let killed = start::stop_all(vec![(node, process)], STOP_PATIENCE);
    match killed.is_empty() {
        true => output::line(format!("node {node} stopped")),
        false => Err(Failure::unavailable(format!(
            "node {node} did not stop within {} s and was killed; its log is {}",
            STOP_PATIENCE.as_secs(),
            target.dir.log(node).display()
        ))),
    }
}

pub(super) fn kill(dir: &Path, node: u32) -> Result<(), Failure> {
    let target = Target::find(dir, node)?;
    target.note(Asked::Kill)?;
    if target.process.is_none() {
        return output::line(format!("node {node} was not running"));
    }
    target.kill()?;
    output::line(format!("node {node} killed"))
}

pub(super) fn pause(dir: &Path, node: u32) -> Result<(), Failure> {
    let target = Target::find(dir, node)?;
    signal(target.running()?, libc::SIGSTOP, node)?;
    output::line(format!(
        "node {node} paused: `mydatastore lab resume-node {node}` lets it go on"
    ))
}

pub(super) fn resume(dir: &Path, node: u32) -> Result<(), Failure> {
    let target = Target::find(dir, node)?;
    signal(target.running()?, libc::SIGCONT, node)?;
    output::line(format!("node {node} goes on"))
}

fn signal(process: &Process, signal: i32, node: u32) -> Result<(), Failure> {
    let sent = process.signal(signal);
    sent.map_err(|error| Failure::unavailable(format!("cannot signal node {node}: {error}")))
}

pub(super) fn start(dir: &Path, node: u32) -> Result<(), Failure> {
    let target = Target::find(dir, node)?;
    if let Some(process) = &target.process {
        return match process.is_paused() {
            true => Err(Failure::unavailable(format!(
                "node {node} runs, but is paused: `mydatastore lab resume-node {node}`"
            ))),
            false => output::line(format!("node {node} is running already")),
        };
    }
    if target.has_left {
        return Err(Failure::usage(format!(
            "node {node} has left the cluster and its data cannot come back: `mydatastore lab wipe-node \
             {node}` makes it a new node, `lab add-node` starts another one"
        )));
    }
    if !Supervision::is_taken(&target.dir) {
        return Err(Failure::unavailable(format!(
            "the lab in {} is not running: `mydatastore lab` resumes it, with all its nodes",
            target.dir.path().display()
        )));
    }
    start::spawn(&target.dir, &target.settings, node)?;
    start::wait_healthy(&target.dir, &target.settings, node, &Cancel::new(false))?;
    output::line(format!("node {node} started"))
}

pub(super) fn wipe(dir: &Path, node: u32) -> Result<(), Failure> {
    let target = Target::find(dir, node)?;
    target.note(Asked::Wipe)?;
    target.kill()?;
    let data = target.dir.data(node);
    match std::fs::remove_dir_all(&data) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::unavailable(format!(
                "node {node} was killed, but {} cannot be deleted: {error}",
                data.display()
            )));
        }
        _ => {}
    }
    output::line(format!(
        "node {node} killed and its data deleted: it will start as a new node"
    ))
}

pub(super) fn status(dir: &Path) -> Result<(), Failure> {
    let (dir, state) = existing(dir)?;
    let supervised = match Supervision::is_taken(&dir) {
        true => format!("runs, process {}", state.supervisor.unwrap_or_default()),
        false => "does not run: `mydatastore lab` resumes it".to_owned(),
    };
    let settings = &state.settings;
    output::line(format!("the lab in {} {supervised}", dir.path().display()))?;
    output::line(format!(
        "{} nodes, {}, N={} R={} W={}, fsync {}",
        settings.nodes, settings.engine, settings.n, settings.r, settings.w, settings.fsync
    ))?;
    let mut table = output::table(&[
        "node", "process", "is", "standing", "redis", "http", "peers",
    ]);
    for node in 1..=settings.nodes {
        let process = state.process(&dir, node);
        let (pid, is, standing) = match &process {
            Some(process) if process.is_paused() => {
                (process.pid().to_string(), "paused", String::new())
            }
            Some(process) => (
                process.pid().to_string(),
                "running",
                standing(settings, node)?,
            ),
            None => (String::new(), was(&state, node), String::new()),
        };
        let addrs = settings.addrs(node);
        table.add_row([
            format!("node-{node}"),
            pid,
            output::good_or_bad(is == "running", is),
            standing,
            addrs.resp.to_string(),
            addrs.http.to_string(),
            addrs.peer.to_string(),
        ]);
    }
    output::line(table)
}

/// How a node that does not run came to its end.
fn was(state: &State, node: u32) -> &'static str {
    match state.nodes.get(node as usize - 1).map(|entry| entry.asked) {
        Some(Asked::Run) => "died",
        Some(Asked::Kill) => "killed",
        Some(Asked::Wipe) => "wiped",
        Some(Asked::Leave) => "left",
        Some(Asked::Stop) | None => "stopped",
    }
}

fn standing(settings: &Settings, node: u32) -> Result<String, Failure> {
    let call = Call::new(ureq::http::Method::GET, "/v1/status").timeout(LOOK_TIMEOUT);
    let reply = start::client(settings, node)?.call(&call);
    let status = reply.and_then(|reply| reply.json::<StatusBody>());
    Ok(match status {
        Ok(status) => status.standing,
        Err(_) => "does not answer".to_owned(),
    })
}
