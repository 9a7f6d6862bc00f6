//! The supervisor: starts all nodes, tells what happens to them, stops them in the end.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use ureq::http::Method;

use super::SettingArgs;
use super::act::STOP_PATIENCE;
use super::layout::{LabDir, Settings};
use super::process::{self, Process};
use super::start::{self, Cancel};
use super::state::{Asked, State, Supervision};
use crate::cli::{Call, Failure, init_cluster, output};
use crate::http::bodies::{InitBody, StatusBody};

/// Runs a lab until it is told to stop.
pub(super) fn run(dir: &Path, asked: &SettingArgs) -> Result<ExitCode, Failure> {
    let dir = LabDir::create(dir)?;
    let Some(_supervision) = Supervision::take(&dir)? else {
        let by = State::read(&dir)?.and_then(|state| state.supervisor);
        return Err(Failure::usage(format!(
            "a lab is already running in {} (process {}): `mydatastore lab status` shows it, \
             another --dir and --port-offset make a second one",
            dir.path().display(),
            by.unwrap_or_default()
        )));
    };
    let before = State::read(&dir)?;
    let settings = Settings::new(asked, before.as_ref().map(|state| &state.settings))?;
    let resumed = before.is_some();
    let mut state = before.unwrap_or_else(|| State::new(settings.clone()));
    state.settings = settings.clone();
    state.supervisor = Some(process::own_pid());

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // Before the number of this process becomes known: a signal must not end it.
        let mut signals = Signals::new()?;
        state.begin(&dir)?;
        let verb = if resumed { "resuming" } else { "starting" };
        output::line(format!(
            "{verb} {} nodes in {} ({}, N={} R={} W={}, fsync {})",
            state.present().len(),
            dir.path().display(),
            settings.engine,
            settings.n,
            settings.r,
            settings.w,
            settings.fsync
        ))?;
        let ended = supervise(&dir, &settings, &mut signals).await;
        let stopped = stop(&dir);
        ended.and(stopped)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What the supervisor listens to.
struct Signals {
    stop: StopSignals,
    /// Another terminal changed the state.
    changed: Signal,
}

/// What means: stop all.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Signals, Failure> {
        Ok(Signals {
            stop: StopSignals {
                interrupt: signal(SignalKind::interrupt())?,
                terminate: signal(SignalKind::terminate())?,
                hangup: signal(SignalKind::hangup())?,
            },
            changed: signal(SignalKind::user_defined1())?,
        })
    }
}

impl StopSignals {
    /// The wish to end.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

async fn supervise(
    dir: &LabDir,
    settings: &Settings,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let cancel = Arc::new(Cancel::new(false));
    let mut starting = {
        let (dir, settings, cancel) = (dir.clone(), settings.clone(), Arc::clone(&cancel));
        tokio::task::spawn_blocking(move || start_all(&dir, &settings, &cancel))
    };
    let started = tokio::select! {
        started = &mut starting => started,
        () = signals.stop.any() => {
            cancel.store(true, Ordering::Relaxed);
            starting.await
        }
    };
    started.map_err(|error| Failure::unavailable(format!("starting failed: {error}")))??;
    if cancel.load(Ordering::Relaxed) {
        return Err(start::cancelled());
    }
    let present = State::read(dir)?.map_or(0, |state| state.present().len());
    output::line(format!("ready: {present} of {present} nodes"))?;
    output::line(how_to_talk(dir, settings))?;

    let mut watched = Watched::default();
    watched.look(dir)?;
    loop {
        tokio::select! {
            () = signals.stop.any() => return Ok(()),
            _ = signals.changed.recv() => {
                for (node, pid) in watched.look(dir)? {
                    output::line(format!("node {node} was started, process {pid}"))?;
                }
            }
            (node, pid) = watched.next_end() => report_end(dir, node, pid)?,
        }
    }
}

/// Starts what does not run yet, gives birth to the cluster if need be, waits until all serve.
fn start_all(dir: &LabDir, settings: &Settings, cancel: &Cancel) -> Result<(), Failure> {
    let state = State::read(dir)?;
    let nodes = state.as_ref().map(State::present).unwrap_or_default();
    let runs = |node| {
        state
            .as_ref()
            .is_some_and(|state| state.process(dir, node).is_some())
    };
    for node in nodes.iter().copied().filter(|&node| !runs(node)) {
        settings.addrs(node).check_free(node)?;
    }
    for &node in &nodes {
        match State::read(dir)?.and_then(|state| state.process(dir, node)) {
            Some(process) => {
                // Left over from a supervisor that was killed. It may be frozen.
                process.signal(libc::SIGCONT)?;
                State::change(dir, |state| {
                    if let Some(entry) = state.node_mut(node) {
                        entry.asked = Asked::Run;
                    }
                })?;
                output::line(format!(
                    "node {node} runs already, process {}",
                    process.pid()
                ))?;
            }
            None => start::spawn(dir, settings, node)?,
        }
    }
    for &node in &nodes {
        start::wait_healthy(dir, settings, node, cancel)?;
    }
    give_birth(settings, &nodes)?;
    for node in nodes {
        start::wait_ready(dir, settings, node, cancel)?;
    }
    Ok(())
}

/// Initialises the cluster, unless the first node is part of one.
fn give_birth(settings: &Settings, nodes: &[u32]) -> Result<(), Failure> {
    let Some(&first) = nodes.first() else {
        return Ok(());
    };
    let client = start::client(settings, first)?;
    let reply = client.call(&Call::new(Method::GET, "/v1/status"))?;
    if !reply.status.is_success() {
        return Err(reply.failure());
    }
    let status: StatusBody = reply.json()?;
    if status.standing != "unborn" {
        return Ok(());
    }
    let body = InitBody {
        nodes: Some(settings.nodes),
        n: Some(settings.n),
        r: Some(settings.r),
        w: Some(settings.w),
        partition_count: None,
    };
    init_cluster(&client, &body).map(|_| ())
}

/// The running nodes, each with a task that waits for its end.
#[derive(Default)]
struct Watched {
    pids: BTreeMap<u32, i32>,
    ends: JoinSet<(u32, i32)>,
}

impl Watched {
    /// Watches what runs now and is not watched yet: node and process, of each.
    fn look(&mut self, dir: &LabDir) -> Result<Vec<(u32, i32)>, Failure> {
        let mut new = Vec::new();
        let Some(state) = State::read(dir)? else {
            return Ok(new);
        };
        for node in 1..=state.settings.nodes {
            let Some(process) = state.process(dir, node) else {
                continue;
            };
            let pid = process.pid();
            if self.pids.get(&node) == Some(&pid) {
                continue;
            }
            // SAFETY: the descriptor is owned by what is handed over, stays the same and stays open
            // until that is dropped, which takes back the registration first.
            let handle =
                unsafe { AsyncFd::register_with_interest(process.into_fd(), Interest::READABLE) }
                    .map_err(|error| Failure::unavailable(error.to_string()))?;
            self.pids.insert(node, pid);
            new.push((node, pid));
            self.ends.spawn(async move {
                // An error would be the runtime's end, and then nobody waits any more.
                drop(handle.readable().await);
                (node, pid)
            });
        }
        Ok(new)
    }

    /// The next node that ends.
    async fn next_end(&mut self) -> (u32, i32) {
        loop {
            match self.ends.join_next().await {
                Some(Ok((node, pid))) => {
                    if self.pids.get(&node) == Some(&pid) {
                        self.pids.remove(&node);
                    }
                    return (node, pid);
                }
                // A watching task neither panics nor is cancelled.
                Some(Err(_)) => {}
                None => std::future::pending().await,
            }
        }
    }
}

/// Says what happened to a node, and what can be done.
fn report_end(dir: &LabDir, node: u32, pid: i32) -> Result<(), Failure> {
    let how = process::in_words(Process::collect(pid));
    let asked =
        State::read(dir)?.and_then(|mut state| state.node_mut(node).map(|entry| entry.asked));
    output::line(match asked {
        Some(Asked::Stop) => format!("node {node} was stopped, and ended {how}"),
        Some(Asked::Kill) => format!("node {node} was killed, as asked"),
        Some(Asked::Leave) => format!("node {node} has left the ring and was stopped, as asked"),
        Some(Asked::Wipe) => format!("node {node} was killed and its data deleted, as asked"),
        Some(Asked::Run) | None => format!(
            "node {node} (process {pid}) DIED unexpectedly, {how}; its log is {}; \
             `mydatastore lab start-node {node}` starts it again",
            dir.log(node).display()
        ),
    })
}

/// Stops all nodes, whoever started them.
fn stop(dir: &LabDir) -> Result<(), Failure> {
    let running_in = |state: &State| -> Vec<(u32, Process)> {
        // More than the lab was started with, maybe: nodes can be added.
        let nodes = 1..=state.settings.nodes;
        nodes
            .filter_map(|node| Some((node, state.process(dir, node)?)))
            .collect()
    };
    let noted = State::change(dir, |state| {
        let running = running_in(state);
        for (node, _) in &running {
            if let Some(entry) = state.node_mut(*node)
                && entry.asked != Asked::Leave
            {
                entry.asked = Asked::Stop;
            }
        }
        running
    });
    let running = match noted {
        Ok(running) => running,
        // A full disk, say, is no reason to leave the nodes running without a supervisor.
        Err(failure) => match State::read(dir)? {
            Some(state) => running_in(&state),
            None => return Err(failure),
        },
    };
    if !running.is_empty() {
        output::line(format!(
            "stopping {} nodes; their data is kept",
            running.len()
        ))?;
    }
    let pids: Vec<i32> = running.iter().map(|(_, process)| process.pid()).collect();
    let killed = start::stop_all(running, STOP_PATIENCE);
    for pid in pids {
        Process::collect(pid);
    }
    State::change(dir, |state| {
        state.supervisor = None;
        state.nodes.iter_mut().for_each(|entry| entry.pid = None);
    })?;
    match killed.is_empty() {
        true => output::line("no node runs any more; `mydatastore lab` resumes them"),
        false => Err(Failure::unavailable(format!(
            "these nodes did not stop within {} s and were killed: {killed:?}",
            STOP_PATIENCE.as_secs()
        ))),
    }
}

fn how_to_talk(dir: &LabDir, settings: &Settings) -> String {
    let addrs = settings.addrs(1);
    let (resp, http) = (addrs.resp.port(), addrs.http);
    let some = settings.nodes.min(2);
    let dir = dir.path().display();
    // As the user called it: it may well not be in the path (`cargo run -- lab`).
    let program = std::env::args()
        .next()
        .unwrap_or_else(|| "mydatastore".to_owned());
    format!(
        "
Talk to any node; node i is one port further:
  redis-cli -p {resp} set greeting hello          a Redis client
  redis-cli -c -p {resp} get greeting             a Redis Cluster client
  curl -X PUT --data-binary hello http://{http}/v1/kv/greeting
  curl http://{http}/v1/kv/greeting
  {program} get greeting --node {http}
In another terminal, break something:
  {program} lab kill-node {some} --dir {dir}
  {program} lab start-node {some} --dir {dir}
  (also stop-node, pause-node, resume-node, wipe-node, add-node, remove-node, status)
Each node's log is {dir}/node-I/node.log. Ctrl-C stops all nodes and keeps the data.
"
    )
}
