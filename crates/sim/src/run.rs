//! One run: a cluster is born, suffers, heals, and is examined. All of it follows from the seed.
//!
//! 1. **Birth**: three nodes start on empty disks, find each other by gossip, and an administrator
//!    forms the cluster.
//! 2. **Faults**: clients work while the schedule of the seed does its worst. Safety is watched.
//! 3. **Healing**: all faults end. Within bounds of simulated time clients must get on, hints must
//!    drain, and the replicas must become equal. Then the oracle looks at everything.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use mds_cluster::Standing;
use mds_types::Record;

use crate::event::Event;
use crate::faults::{Counts, FaultConfig, MILLISECOND_NS, SECOND_NS, draw_schedule};
use crate::oracle::{self, Violation};
use crate::random::Random;
use crate::trace::Detail;
use crate::world::{INIT_AGAIN_NS, World};

/// The cluster has to be born and complete within this time, nanoseconds.
const BIRTH_NS_MAX: u64 = 30 * SECOND_NS;

/// After the faults, every client has to succeed again within this time, nanoseconds.
const PROGRESS_NS_MAX: u64 = 20 * SECOND_NS;

/// How often every client has to succeed in that time.
const PROGRESS_SUCCESSES: u64 = 4;

/// And all hints have to be delivered within this, nanoseconds: a failed delivery may be repeated
/// as late as 10 s afterwards, and may itself have taken 10 s.
const DRAIN_NS_MAX: u64 = 45 * SECOND_NS;

/// A sweep over all keys takes no longer than this, nanoseconds.
const SWEEP_NS_MAX: u64 = 20 * SECOND_NS;

/// How a run is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Nodes of the cluster.
    pub nodes: usize,
    /// Clients that work at a time.
    pub clients: usize,
    /// How long the faults last, nanoseconds of simulated time.
    pub faults_ns: u64,
    /// How much of the run is written down.
    pub detail: Detail,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            nodes: 3,
            clients: 5,
            faults_ns: 12 * SECOND_NS,
            detail: Detail::Recent,
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed: the run can be had again from it.
    pub seed: u64,
    /// Equal for equal runs.
    pub trace_hash: u64,
    /// Events that the world handled.
    pub events: u64,
    /// Operations of clients, by how they ended.
    pub endings: BTreeMap<&'static str, usize>,
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Faults that happened, by name.
    pub faults: Counts,
    /// What the nodes came to do, by name.
    pub reached: Counts,
    /// How long the run lasted, nanoseconds of simulated time.
    pub sim_ns: u64,
    /// What was broken. Empty: the run passed.
    pub violations: Vec<Violation>,
    /// The timeline, as far as it was kept.
    pub lines: Vec<String>,
}

/// Makes the run of a seed. A panic anywhere in it is a violation like any other.
pub fn run(seed: u64, settings: &Settings) -> Report {
    count_panics();
    let before = PANICS.get();
    let caught = catch_unwind(AssertUnwindSafe(|| live(seed, settings)));
    let mut report = caught.unwrap_or_else(|_| Report {
        seed,
        trace_hash: 0,
        events: 0,
        endings: BTreeMap::new(),
        acknowledged: 0,
        faults: Counts::default(),
        reached: Counts::default(),
        sim_ns: 0,
        violations: Vec::new(),
        lines: Vec::new(),
    });
    if PANICS.get() > before {
        let detail = "something panicked: the message went to the standard error".to_owned();
        let at_ns = report.sim_ns;
        report.violations.push(Violation {
            at_ns,
            invariant: "nothing panics",
            detail,
        });
    }
    report
}

thread_local! {
    /// Panics on this thread, those that were caught on the way included.
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

fn count_panics() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}

fn live(seed: u64, settings: &Settings) -> Report {
    let random = Random::new(seed);
    let faults = FaultConfig::draw(&mut random.part("rates", 0));
    let mut world = World::new(
        &random,
        settings.nodes,
        settings.clients,
        faults,
        settings.detail,
    );
    if birth(&mut world, &random) {
        suffer(&mut world, &random, settings.faults_ns);
    }
    if world.env.violations.is_empty() {
        heal(&mut world);
    }
    report(seed, world)
}

/// Starts the nodes and forms the cluster.
fn birth(world: &mut World, random: &Random) -> bool {
    let mut random = random.part("birth", 0);
    for node in 0..world.machines.len() {
        world
            .env
            .after(random.below(500 * MILLISECOND_NS), Event::Start { node });
    }
    let founder = random.index(world.machines.len());
    loop {
        world
            .env
            .after(INIT_AGAIN_NS, Event::Init { node: founder });
        world.run(BIRTH_NS_MAX, |world| world.env.watch.init.is_some());
        match world.env.watch.init.take() {
            Some(Ok(_)) => break,
            // Too early: not everybody has been heard of.
            Some(Err(_)) => {}
            None => break,
        }
    }
    let is_complete = world.run(BIRTH_NS_MAX, is_complete);
    if !is_complete && world.env.violations.is_empty() {
        let detail = "the cluster did not become complete".to_owned();
        world
            .env
            .violated("a cluster is born within a bound", detail);
    }
    is_complete
}

/// Whether every node is an active member that reaches all others.
fn is_complete(world: &World) -> bool {
    let others = world.machines.len() - 1;
    world.processes().count() == world.machines.len()
        && world.processes().all(|process| {
            process.view().standing == Standing::Active && process.usable_peers() == others
        })
}

fn suffer(world: &mut World, random: &Random, faults_ns: u64) {
    let mut random = random.part("schedule", 0);
    world
        .env
        .line(|| "the clients begin, and so do the faults".to_owned());
    for (after_ns, action) in draw_schedule(&mut random, world.machines.len(), faults_ns) {
        world.env.after(after_ns, Event::Act(action));
    }
    world.clients.work(&mut world.env);
    world.run(world.env.now_ns + faults_ns, |_| false);
}

fn heal(world: &mut World) {
    world.heal();
    world.clients.forget_successes();
    bounded(
        world,
        PROGRESS_NS_MAX,
        "clients get on after the faults",
        |world| is_complete(world) && world.clients.least_successes() >= PROGRESS_SUCCESSES,
    );
    world.clients.rest();
    bounded(world, PROGRESS_NS_MAX, "every request ends", |world| {
        world.clients.are_idle()
    });
    bounded(world, DRAIN_NS_MAX, "hints drain", |world| {
        world
            .processes()
            .all(|process| process.hints_waiting() == 0)
    });
    sweep(world);
    if world.env.violations.is_empty()
        && let Some(replicas) = replicas(world)
    {
        let n = world.config.replicas;
        for (invariant, detail) in oracle::examine(&replicas, &world.clients.history, n) {
            world.env.violated(invariant, detail);
        }
    }
}

/// Something good has to happen within a bound of simulated time.
fn bounded(
    world: &mut World,
    within_ns: u64,
    invariant: &'static str,
    is_good: impl Fn(&World) -> bool,
) {
    if !world.env.violations.is_empty() {
        return;
    }
    let until_ns = world.env.now_ns + within_ns;
    if !world.run(until_ns, is_good) && world.env.violations.is_empty() {
        let detail = format!("not within {} s", within_ns / SECOND_NS);
        world.env.violated(invariant, detail);
    }
}

/// Reads every key from all replicas, through each node in turn, until the replicas are equal.
fn sweep(world: &mut World) {
    let mut difference = None;
    for node in 0..world.machines.len() {
        world
            .env
            .line(|| format!("all keys are read through node {}", node + 1));
        world.clients.sweep(node, &mut world.env);
        bounded(world, SWEEP_NS_MAX, "a healthy cluster answers", |world| {
            !world.clients.is_sweeping()
        });
        // Repairs go on behind the replies.
        world.run(world.env.now_ns + SECOND_NS, |_| false);
        if !world.env.violations.is_empty() {
            return;
        }
        let Some(replicas) = replicas(world) else {
            return;
        };
        difference = oracle::difference(&replicas);
        if difference.is_none() {
            return;
        }
    }
    if let Some(difference) = difference {
        world.env.violated("replicas converge", difference);
    }
}

/// What each replica holds.
fn replicas(world: &mut World) -> Option<Vec<Vec<Record>>> {
    let read: Result<Vec<_>, String> = world.processes().map(|p| p.all_records()).collect();
    match read {
        Ok(replicas) if replicas.len() == world.machines.len() => Some(replicas),
        Ok(_) => None,
        Err(error) => {
            world.env.violated("a sound store can be read", error);
            None
        }
    }
}

fn report(seed: u64, mut world: World) -> Report {
    let names: Vec<String> = world
        .processes()
        .map(|process| process.node_id().to_string())
        .collect();
    world
        .env
        .line(|| format!("the end; the nodes were {}", names.join(", ")));
    for process in world
        .machines
        .iter()
        .filter_map(|machine| machine.process.as_ref())
    {
        process.tally(&mut world.env);
    }
    Report {
        seed,
        trace_hash: world.env.trace.hash(),
        events: world.env.trace.events,
        endings: world.clients.endings(),
        acknowledged: world.clients.acknowledged(),
        faults: world.env.counts,
        reached: world.env.reached,
        sim_ns: world.env.now_ns,
        violations: world.env.violations,
        lines: world.env.trace.into_lines(),
    }
}
