//! Starting nodes, and waiting until they serve.
//!
//! Each wait is for an event where there is one (the end of a process), and a poll of a node's
//! `/health` or `/ready`, with a named pause, where there is none.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ureq::http::{Method, StatusCode};

use super::layout::{LabDir, OWN_FIELDS, Settings};
use super::process::{self, Process};
use super::state::{Asked, State, node_arguments};
use crate::cli::{Call, Client, Failure};
use crate::config::{ENV_CONFIG_FILE, FIELDS};

/// How long a node may take from its start until it answers: it replays its log meanwhile.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(60);

/// How long nodes may take until a quorum write works through each of them.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause between two looks at a node.
const POLL_PAUSE: Duration = Duration::from_millis(50);

/// How long one look may take.
const POLL_TIMEOUT: Duration = Duration::from_millis(2_500);

/// How much of a node's log is shown when it does not start, bytes.
const LOG_TAIL_BYTES: u64 = 1_500;

/// Set when the user wants to stop while nodes are still starting.
pub(super) type Cancel = AtomicBool;

/// A start that was called off, which is not an error.
pub(super) fn cancelled() -> Failure {
    Failure::unavailable("stopped before all nodes were ready")
}

/// Writes a node's configuration and starts its process. It must not be running.
pub(super) fn spawn(dir: &LabDir, settings: &Settings, node: u32) -> Result<(), Failure> {
    let cannot = |what: &str, error: std::io::Error| {
        Failure::unavailable(format!("node {node}: cannot {what}: {error}"))
    };
    settings.addrs(node).check_free(node)?;
    std::fs::create_dir_all(dir.node(node)).map_err(|error| cannot("make its directory", error))?;
    let config = settings.node_config(dir, node)?;
    write_whole(&dir.config(node), &config.to_toml())
        .map_err(|error| cannot("write its configuration", error))?;
    let program = std::env::current_exe().map_err(|error| cannot("find this program", error))?;
    let mut command = Command::new(program);
    command
        .args(node_arguments(dir, node))
        .env_remove(ENV_CONFIG_FILE);
    for field in FIELDS
        .iter()
        .filter(|field| OWN_FIELDS.contains(&field.name))
    {
        command.env_remove(field.env());
    }
    let pid = process::spawn(command, &dir.log(node)).map_err(|error| cannot("start it", error))?;
    State::change(dir, |state| {
        if let Some(entry) = state.node_mut(node) {
            entry.pid = Some(pid);
            entry.asked = Asked::Run;
        }
    })
}

fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("toml.new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, path)
}

/// Waits until a node answers at all.
pub(super) fn wait_healthy(
    dir: &LabDir,
    settings: &Settings,
    node: u32,
    cancel: &Cancel,
) -> Result<(), Failure> {
    let client = client(settings, node)?;
    wait_until(dir, node, HEALTH_TIMEOUT, cancel, || {
        let call = Call::new(Method::GET, "/health").timeout(POLL_TIMEOUT);
        match client.call(&call) {
            Ok(reply) if reply.status.is_success() => Ok(()),
            Ok(reply) => Err(reply.error().error),
            Err(error) => Err(error.to_string()),
        }
    })
}

/// Waits until a write through a node reaches its quorum.
pub(super) fn wait_ready(
    dir: &LabDir,
    settings: &Settings,
    node: u32,
    cancel: &Cancel,
) -> Result<(), Failure> {
    let client = client(settings, node)?;
    wait_until(dir, node, READY_TIMEOUT, cancel, || probe(&client, node))
}

/// One write through a node, taken back at once.
fn probe(client: &Client, node: u32) -> Result<(), String> {
    let path = format!("/v1/kv/mydatastore:lab:ready:{node}");
    let calls = [
        Call::new(Method::GET, "/ready"),
        Call::new(Method::PUT, path.as_str()).body(b"ready"),
        Call::new(Method::DELETE, path.as_str()),
    ];
    for call in calls {
        let reply = client
            .call(&call.timeout(POLL_TIMEOUT))
            .map_err(|error| error.to_string())?;
        if reply.status != StatusCode::OK {
            return Err(reply.error().error);
        }
    }
    Ok(())
}

/// Polls a node until it is as it should be, it ends, time is up or the user has enough.
fn wait_until(
    dir: &LabDir,
    node: u32,
    timeout: Duration,
    cancel: &Cancel,
    mut look: impl FnMut() -> Result<(), String>,
) -> Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Err(cancelled());
        }
        let process = State::read(dir)?.and_then(|state| state.process(dir, node));
        let reason = match look() {
            Ok(()) => return Ok(()),
            Err(reason) => reason,
        };
        let ended = process
            .as_ref()
            .is_none_or(|process| process.wait(POLL_PAUSE));
        if ended {
            return Err(Failure::unavailable(format!(
                "node {node} ended instead of serving; the end of its log {}:\n{}",
                dir.log(node).display(),
                log_tail(&dir.log(node))
            )));
        }
        if Instant::now() >= deadline {
            return Err(Failure::unavailable(format!(
                "node {node} is not ready after {} s: {}\nits log is {}",
                timeout.as_secs(),
                reason.trim(),
                dir.log(node).display()
            )));
        }
    }
}

pub(super) fn client(settings: &Settings, node: u32) -> Result<Client, Failure> {
    Client::new(&settings.addrs(node).http.to_string()).map_err(Failure::usage)
}

/// The last lines of a log.
fn log_tail(path: &Path) -> String {
    let tail = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = tail().unwrap_or_else(|error| format!("(cannot be read: {error})"));
    let lines: Vec<String> = text.lines().map(|line| format!("  {line}")).collect();
    lines.join("\n")
}

/// Stops processes in order and waits for them; those that do not end in time are killed. Returns
/// the nodes that had to be.
pub(super) fn stop_all(running: Vec<(u32, Process)>, patience: Duration) -> Vec<u32> {
    for (_, process) in &running {
        // A process that ended by itself meanwhile needs no signal. A frozen one hears only after
        // it was let go on.
        let _ = process.signal(libc::SIGTERM);
        let _ = process.signal(libc::SIGCONT);
    }
    let deadline = Instant::now() + patience;
    let mut killed = Vec::new();
    for (node, process) in &running {
        if !process.wait(deadline.saturating_duration_since(Instant::now())) {
            let _ = process.signal(libc::SIGKILL);
            process.wait(patience);
            killed.push(*node);
        }
    }
    killed
}
