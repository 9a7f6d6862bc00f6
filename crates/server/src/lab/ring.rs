//! Nodes that come and go while the lab runs: each a change of the ring, followed to its end.

use std::path::Path;
use std::time::{Duration, Instant};

use super::act::{self, STOP_PATIENCE};
use super::layout::{LabDir, NODES_MAX, Settings};
use super::start::{self, Cancel};
use super::state::{Asked, NodeState, State, Supervision};
use crate::cli::{Client, Failure, Waiting, change_ring, output};
use crate::config::RingModeKind;
use crate::http::bodies::{RingAskBody, StatusBody, TransitionBody};

/// How long a new node may take to become a member.
const MEMBER_PATIENCE: Duration = Duration::from_secs(60);

/// How long a change may take. A lab's data is small; a real cluster may well need longer.
const CHANGE_PATIENCE: Duration = Duration::from_secs(600);

/// How long all members may take to acknowledge the ring that a change led to.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);

/// Pause between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// Starts a further node and lets it join.
pub(super) fn add(dir: &Path) -> Result<(), Failure> {
    let (dir, _) = act::existing(dir)?;
    check_supervised(&dir)?;
    let noted = State::change(&dir, |state| {
        let node = state.settings.nodes + 1;
        if node > NODES_MAX {
            return None;
        }
        state.settings.nodes = node;
        state.nodes.push(NodeState {
            pid: None,
            asked: Asked::Stop,
        });
        Some((node, state.settings.clone()))
    })?;
    let Some((node, settings)) = noted else {
        return Err(Failure::usage(format!(
            "this lab has had {NODES_MAX} nodes, which is as many as a lab can number: begin another one"
        )));
    };
    if let Err(failure) = start::spawn(&dir, &settings, node) {
        // The node was never there.
        State::change(&dir, |state| {
            if state.settings.nodes == node && state.nodes.len() == node as usize {
                state.settings.nodes -= 1;
                state.nodes.pop();
            }
        })?;
        return Err(failure);
    }
    start::wait_healthy(&dir, &settings, node, &Cancel::new(false))?;
    output::line(format!("node {node} started"))?;
    wait_member(&settings, node)?;
    output::line(format!(
        "node {node} is a member that waits; it joins the ring"
    ))?;
    match settings.ring_mode()? {
        RingModeKind::Auto => wait_active(&settings, node)?,
        RingModeKind::Operator => change(&others(&dir, node)?, "join", node)?,
    }
    output::line(format!("node {node} has joined"))
}

/// Lets a node leave and stops it.
pub(super) fn remove(dir: &Path, node: u32) -> Result<(), Failure> {
    let (dir, state) = act::existing(dir)?;
    check_supervised(&dir)?;
    if !state.present().contains(&node) {
        return Err(Failure::usage(format!(
            "there is no node {node} in this lab: `mydatastore lab status` lists them"
        )));
    }
    let Some(process) = state.process(&dir, node) else {
        return Err(Failure::unavailable(format!(
            "node {node} does not run, so it cannot hand over what it holds: `mydatastore lab start-node \
             {node}` first; one that is lost for good is removed by `mydatastore remove node-{node}`"
        )));
    };
    let client = others(&dir, node)?;
    change(&client, "leave", node)?;
    wait_settled(&client)?;
    State::change(&dir, |state| {
        if let Some(entry) = state.node_mut(node) {
            entry.asked = Asked::Leave;
        }
    })?;
    start::stop_all(vec![(node, process)], STOP_PATIENCE);
    output::line(format!("node {node} has left the ring and was stopped"))
}

fn check_supervised(dir: &LabDir) -> Result<(), Failure> {
    match Supervision::is_taken(dir) {
        true => Ok(()),
        false => Err(Failure::unavailable(format!(
            "the lab in {} is not running: `mydatastore lab` resumes it",
            dir.path().display()
        ))),
    }
}

/// A client of all running nodes but one.
fn others(dir: &LabDir, node: u32) -> Result<Client, Failure> {
    let state = State::read(dir)?;
    let addrs: Vec<String> = state
        .iter()
        .flat_map(|state| {
            let present = state.present().into_iter();
            let running = present.filter(|&other| {
                other != node
                    && state
                        .process(dir, other)
                        .is_some_and(|one| !one.is_paused())
            });
            running.map(|other| state.settings.addrs(other).http.to_string())
        })
        .collect();
    match addrs.is_empty() {
        true => Err(Failure::unavailable("no other node runs")),
        false => Client::new(&addrs.join(",")).map_err(Failure::usage),
    }
}

/// Has the ring changed, and prints what happens until it has.
fn change(client: &Client, action: &str, node: u32) -> Result<(), Failure> {
    let body = RingAskBody {
        action: action.to_owned(),
        nodes: vec![format!("node-{node}")],
        ..RingAskBody::default()
    };
    let taken_up = change_ring(client, &body)?;
    let Some(request) = taken_up.request else {
        return Ok(());
    };
    Waiting::new(client, &request, true)
        .until_ended(Some(CHANGE_PATIENCE))
        .map(|_| ())
}

/// Waits until the cluster has taken a node up.
fn wait_member(settings: &Settings, node: u32) -> Result<(), Failure> {
    wait_standing(settings, node, &["waiting", "active"], MEMBER_PATIENCE)
}

/// Waits until a node is on the ring, onto which the leader takes it by itself.
fn wait_active(settings: &Settings, node: u32) -> Result<(), Failure> {
    wait_standing(settings, node, &["active"], CHANGE_PATIENCE)
}

fn wait_standing(
    settings: &Settings,
    node: u32,
    wanted: &[&str],
    patience: Duration,
) -> Result<(), Failure> {
    let client = start::client(settings, node)?;
    wait_until(patience, || {
        let status: StatusBody = client.get("/v1/status")?;
        let is_there = wanted.contains(&status.standing.as_str());
        Ok((!is_there).then_some(format!(
            "node {node} is {}: {}",
            status.standing, status.reason
        )))
    })
}

/// Waits until everybody has acknowledged the ring.
fn wait_settled(client: &Client) -> Result<(), Failure> {
    wait_until(SETTLE_PATIENCE, || {
        let now: TransitionBody = client.get("/v1/transition")?;
        let names: Vec<String> = now.blocked_by.into_iter().map(|one| one.name).collect();
        Ok((!names.is_empty()).then(|| format!("the ring waits for {}", names.join(", "))))
    })
}

/// Looks again and again until nothing is missing any more.
fn wait_until(
    patience: Duration,
    mut missing: impl FnMut() -> Result<Option<String>, Failure>,
) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        let reason = match missing() {
            Ok(None) => return Ok(()),
            Ok(Some(reason)) => reason,
            Err(failure) => failure.to_string(),
        };
        if began.elapsed() > patience {
            let waited_s = patience.as_secs();
            return Err(Failure::unavailable(format!(
                "after {waited_s} s: {reason}"
            )));
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}
