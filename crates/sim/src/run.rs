//! One run: a cluster is born, suffers, heals, and is examined. All of it follows from the seed.
//!
//! 1. **Birth**: three nodes start on empty disks, find each other by gossip, and an administrator
//!    forms the cluster.
//! 2. **Faults**: clients work while the schedule of the seed does its worst. Safety is watched.
//! 3. **Healing**: all faults end. Within bounds of simulated time clients must get on, hints must
//!    drain, and the replicas must become equal. Then the oracle looks at everything.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use bytes::Bytes;
use mds_cluster::{MemberStage, Standing};
use mds_types::{ClusterConfig, NodeId, Record};

use crate::checkers::linearizable::{self, EFFORT_DEFAULT, Verdict};
use crate::checkers::ops_of;
use crate::client::Workload;
use crate::event::Event;
use crate::faults::{
    Action, Counts, FaultConfig, MILLISECOND_NS, SECOND_NS, Schedule, draw_schedule,
};
use crate::history::Ending;
use crate::node::Process;
use crate::oracle::{self, Violation, settles_in_time};
use crate::random::Random;
use crate::rings::RingConfig;
use crate::trace::Detail;
use crate::under_hood;
use crate::world::{INIT_AGAIN_NS, World};

/// The cluster has to be born and complete within this time, nanoseconds.
const BIRTH_NS_MAX: u64 = 30 * SECOND_NS;

/// A machine loses its power while the cluster is born in one of so many cases.
const BIRTH_CRASH_ONE_IN: u64 = 6;

/// After the faults, every client has to succeed again within this time, nanoseconds.
const PROGRESS_NS_MAX: u64 = 20 * SECOND_NS;

/// Every node has to apply in that time all that any node has ever shown as applied.
const RAFT_CATCHES_UP: &str = "what was agreed on is applied by all";

/// A change of the ring that is under way when the faults end comes to its end within this, nanoseconds.
const RING_NS_MAX: u64 = 90 * SECOND_NS;

/// No transition stays open.
const RING_ENDS: &str = "a change of the ring ends after the faults";

/// Replicas that lost a partition have removed it within this, nanoseconds.
const GIVE_UP_NS_MAX: u64 = 30 * SECOND_NS;

/// How often every client has to succeed in that time.
const PROGRESS_SUCCESSES: u64 = 4;

/// And all hints have to be delivered within this, nanoseconds: a failed delivery may be repeated
/// as late as 10 s afterwards, and may itself have taken 10 s.
const DRAIN_NS_MAX: u64 = 45 * SECOND_NS;

/// Epochs that are closed on all replicas are settled within this, nanoseconds: who has been away is asked again as
/// late as 5 s afterwards, and a question that nobody answers is given up after 10 s.
const SETTLED_NS_MAX: u64 = 60 * SECOND_NS;

/// A sweep over all keys takes no longer than this, nanoseconds.
const SWEEP_NS_MAX: u64 = 20 * SECOND_NS;

/// What the network delayed on streams has arrived after this long, nanoseconds: a packet is late by half a
/// second at most, and what waits is sent again within 1.6 s.
const SETTLE_NS: u64 = 3 * SECOND_NS;

/// After the faults all nodes that hold data reach each other.
const NODES_MEET: &str = "nodes reach each other after the faults";

/// Every key can be read, absent ones too.
const HEALTHY_ANSWERS: &str = "a healthy cluster answers";

/// Placements per key that are tried to find out whether a history happens to be linearizable.
const COUNTING_EFFORT: u64 = 20_000;

/// Keys have one writer each in one of so many runs.
const ONE_WRITER_ONE_IN: u64 = 5;

/// How a run is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Nodes of the cluster. None: three, or five in a share of the runs.
    pub nodes: Option<usize>,
    /// Clients that work at a time.
    pub clients: usize,
    /// How clients share the keys. None: as anybody likes, or one writer per key in a share of the
    /// runs.
    pub workload: Option<Workload>,
    /// How long the faults last, nanoseconds of simulated time.
    pub faults_ns: u64,
    /// Large faults, written by hand, counted from the moment when the clients begin. None: drawn from
    /// the seed.
    pub schedule: Option<Schedule>,
    /// Rates of small faults. None: drawn from the seed.
    pub faults: Option<FaultConfig>,
    /// How the ring changes. None: drawn from the seed.
    pub rings: Option<RingConfig>,
    /// Whether the leader looks after a ring that is drawn. None: in a share of the runs.
    pub is_auto: Option<bool>,
    /// Machines may lose their power while the cluster is born.
    pub is_birth_hard: bool,
    /// Which large faults of the schedule happen, by their number. None: all.
    pub keep: Option<BTreeSet<usize>>,
    /// How much of the run is written down.
    pub detail: Detail,
}

impl Settings {
    /// Nothing goes wrong: a good network, good disks, an empty schedule.
    pub fn in_peace() -> Settings {
        Settings {
            schedule: Some(Schedule::new()),
            faults: Some(FaultConfig::none()),
            rings: Some(RingConfig::none()),
            is_birth_hard: false,
            ..Settings::default()
        }
    }
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            nodes: None,
            clients: 5,
            workload: None,
            faults_ns: 12 * SECOND_NS,
            schedule: None,
            faults: None,
            rings: None,
            is_auto: None,
            is_birth_hard: true,
            keep: None,
            detail: Detail::Nothing,
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
    /// Large faults in the schedule, whether they happened or not.
    pub scheduled: usize,
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
        scheduled: 0,
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
    let drawn_faults = FaultConfig::draw(&mut random.part("rates", 0));
    let faults = settings.faults.clone().unwrap_or(drawn_faults);
    let drawn_rings = RingConfig::draw(&mut random.part("rings", 0));
    let drawn_rings = drawn_rings.in_drawn_mode(&mut random.part("ring mode", 0), settings.is_auto);
    let rings = settings.rings.clone().unwrap_or(drawn_rings);
    // Five: more than replicas, so that no node holds everything.
    let drawn = match random.part("nodes", 0).below(4) {
        0 => 5,
        _ => 3,
    };
    let workload = match random.part("workload", 0).below(ONE_WRITER_ONE_IN) {
        0 => Workload::OneWriterPerKey,
        _ => Workload::Anybody,
    };
    let mut world = World::new(
        &random,
        settings.nodes.unwrap_or(drawn),
        &rings,
        settings.clients,
        settings.workload.unwrap_or(workload),
        faults,
        settings.detail,
    );
    if world.machines.len() > usize::from(world.config.replicas) {
        world.env.reached.count("more nodes than replicas");
    }
    if rings.is_auto() {
        world.env.reached.count("leader looks after the ring");
    }
    if birth(&mut world, &random, settings.is_birth_hard) {
        suffer(&mut world, &random, settings, &rings);
    }
    if world.env.violations.is_empty() {
        heal(&mut world);
    }
    report(seed, world)
}

/// Starts the nodes and forms the cluster.
fn birth(world: &mut World, random: &Random, is_hard: bool) -> bool {
    let mut random = random.part("birth", 0);
    for node in 0..world.founders {
        world
            .env
            .after(random.below(500 * MILLISECOND_NS), Event::Start { node });
    }
    // Some machines lose their power in the middle of it.
    for node in 0..world.founders {
        if is_hard && random.below(BIRTH_CRASH_ONE_IN) == 0 {
            let down_ns = random.between(50 * MILLISECOND_NS, SECOND_NS);
            let operations = random.below(80);
            world.env.counts.count("power lost during birth");
            world.act(Action::PowerLossInDisk {
                node,
                operations,
                down_ns,
            });
        }
    }
    let founder = random.index(world.founders);
    // The administrator asks again: it was too early, or the machine had no power and never answered.
    while world.env.now_ns < BIRTH_NS_MAX && world.env.violations.is_empty() {
        world.env.after(0, Event::Init { node: founder });
        let until_ns = world.env.now_ns + INIT_AGAIN_NS;
        world.run(until_ns, |_| false);
        let is_formed = |process: &Process| process.view().config.is_some();
        if world.processes().any(is_formed) {
            break;
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

/// Whether every node that is on the ring is active and reaches all others of it, and everybody else waits. A
/// node that lost its directory is somebody else now: it waits until it is let onto the ring.
fn is_complete(world: &World) -> bool {
    let Some(newest) = world.newest_view() else {
        return false;
    };
    let lost = world.lost_disks();
    let is_on_ring = |process: &Process| {
        let member = newest.members.get(&process.node_id());
        member.is_some_and(|member| member.stage == MemberStage::Active)
    };
    let there = world.machines.iter().filter(|machine| !machine.is_bare());
    let holders: Vec<NodeId> = there
        .clone()
        .filter(|machine| !lost.contains(&machine.node))
        .filter_map(|machine| machine.process.as_ref())
        .filter(|process| is_on_ring(process))
        .map(Process::node_id)
        .collect();
    let reaches = |process: &Process| {
        let usable = process.usable_peers();
        let mut others = holders.iter().filter(|&&node| node != process.node_id());
        others.all(|node| usable.contains(node))
    };
    let stands = |process: &Process| match is_on_ring(process) {
        true => process.view().standing == Standing::Active && reaches(process),
        // Whoever comes or goes may be on its way.
        false => matches!(
            process.view().standing,
            Standing::Waiting | Standing::Active
        ),
    };
    there.clone().count() > 0
        && there
            .map(|machine| machine.process.as_ref())
            .all(|process| process.is_some_and(stands))
}

fn suffer(world: &mut World, random: &Random, settings: &Settings, rings: &RingConfig) {
    let faults_ns = settings.faults_ns;
    let mut on_ring = random.part("ring acts", 0);
    let mut absence = random.part("absence", 0);
    let mut random = random.part("schedule", 0);
    world
        .env
        .line(|| "the clients begin, and so do the faults".to_owned());
    let mut drawn = draw_schedule(&mut random, world.machines.len(), faults_ns);
    drawn.extend(rings.draw_acts(&mut on_ring, world.founders, faults_ns));
    drawn.extend(rings.draw_absence(&mut absence, world.founders, faults_ns));
    let schedule = settings.schedule.clone().unwrap_or(drawn);
    world.scheduled = schedule.len();
    for (number, (after_ns, action)) in schedule.into_iter().enumerate() {
        let is_kept = settings.keep.as_ref();
        if is_kept.is_none_or(|keep| keep.contains(&number)) {
            world.env.after(after_ns, Event::Act(action));
        }
    }
    world.look_after_ring();
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
    let applied = world.env.watch.greatest_applied();
    bounded(world, PROGRESS_NS_MAX, RAFT_CATCHES_UP, |world| {
        world
            .processes()
            .all(|process| process.view().raft.applied >= applied)
    });
    bounded(world, RING_NS_MAX, RING_ENDS, World::is_ring_at_rest);
    say_what_the_ring_waits_for(world);
    world.clients.rest();
    bounded(world, PROGRESS_NS_MAX, "every request ends", |world| {
        world.clients.are_idle()
    });
    // Hints for a node that is gone for ever wait for ever, as long as the ring stays.
    let targets: BTreeSet<NodeId> = world.processes().map(Process::node_id).collect();
    bounded(world, DRAIN_NS_MAX, "hints drain", |world| {
        world
            .processes()
            .all(|process| process.hints_waiting(&targets) == 0)
    });
    for process in world.machines.iter().filter_map(|m| m.process.as_ref()) {
        let (node, waiting) = (process.node_id(), process.hints_waiting(&targets));
        world
            .env
            .line(|| format!("{waiting} hints wait at node {node}"));
    }
    settle(world);
    // Resets and resends that the faults left on the way may still break a stream.
    world.run(world.env.now_ns + SETTLE_NS, |_| false);
    bounded(world, PROGRESS_NS_MAX, NODES_MEET, is_complete);
    // Who was refused meanwhile, and begins anew with an empty directory, joins by itself in auto mode.
    bounded(world, RING_NS_MAX, RING_ENDS, World::is_ring_at_rest);
    give_up(world);
    if world.env.violations.is_empty() {
        under_hood::lose_and_find(world);
    }
    sweep(world);
    census(world);
    if world.env.violations.is_empty()
        && let Some(replicas) = replicas(world)
    {
        let (history, watch) = (&world.clients.history, &world.env.watch);
        let config = &config_of_oracle(world);
        let lost = |key: &Bytes| placed(world, key).len() - holders(world, key).len();
        let broken = oracle::examine(&replicas, history, watch, config, lost);
        for (invariant, detail) in broken {
            world.env.violated(invariant, detail);
        }
        judge_registers(world);
    }
}

/// Whether clients could have told the database from a store of atomic registers. With one writer
/// per key they must not be able to. Otherwise last write wins promises no such thing, and the
/// verdict is only counted: a batch has to show both.
fn judge_registers(world: &mut World) {
    let mut ops = ops_of(&world.clients.history);
    // What expires is no register, whoever writes it.
    let operations = &world.clients.history.operations;
    let expiring: BTreeSet<&Bytes> = operations
        .iter()
        .filter(|operation| operation.expires_at_ms.is_some())
        .map(|operation| &operation.key)
        .collect();
    ops.retain(|op| !expiring.contains(&op.key));
    // Quorums that do not meet, since N has grown, make no registers.
    let (r, w) = (world.config.read_quorum, world.config.write_quorum);
    let must_be = world.clients.workload() == Workload::OneWriterPerKey
        && r + w > config_of_oracle(world).replicas;
    let effort = match must_be {
        true => EFFORT_DEFAULT,
        false => COUNTING_EFFORT,
    };
    let verdict = linearizable::check(&ops, effort);
    let name = match (&verdict, must_be) {
        (Verdict::Linearizable, true) => "history of registers",
        (Verdict::Linearizable, false) => "history linearizable",
        (Verdict::NotLinearizable(_), _) => "history not linearizable",
        (Verdict::Undecided { .. }, _) => "history undecided",
    };
    world.env.reached.count(name);
    let detail = match verdict {
        Verdict::Linearizable => return,
        Verdict::NotLinearizable(counterexample) => counterexample.to_string(),
        Verdict::Undecided { key } => format!("undecided for {key:?}: raise the effort"),
    };
    if must_be {
        let invariant = "a key with one writer is an atomic register";
        world.env.violated(invariant, detail);
    } else {
        world.env.line(|| format!("as it may be: {detail}"));
    }
}

/// By which promises are judged: N may have grown in the run, and then R + W has to be more than the greatest N for
/// a read to meet an earlier write.
fn config_of_oracle(world: &World) -> ClusterConfig {
    let newest = world.newest_view().and_then(|view| view.config.clone());
    newest.unwrap_or_else(|| world.config.clone())
}

/// The members that a key is placed on.
fn placed(world: &World, key: &Bytes) -> Vec<NodeId> {
    let newest = world
        .processes()
        .max_by_key(|process| process.view().raft.applied);
    newest.map_or_else(Vec::new, |process| process.holders(key))
}

/// Machines that hold a key and have not lost their disk.
fn holders(world: &World, key: &Bytes) -> Vec<usize> {
    let nodes = placed(world, key);
    let machines = world.machines.iter().enumerate();
    machines
        .filter(|(_, machine)| {
            let id = machine.process.as_ref().map(Process::node_id);
            id.is_some_and(|id| nodes.contains(&id))
        })
        .map(|(node, _)| node)
        .collect()
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

/// If the ring did not come to rest: how far it is, and whom it waits for.
fn say_what_the_ring_waits_for(world: &mut World) {
    let is_open = |violation: &Violation| violation.invariant == RING_ENDS;
    if world.env.violations.iter().any(is_open)
        && let Some(view) = world.newest_view()
    {
        let change = &view.transition;
        let text = format!("the ring's state at the end: {change:?}");
        world.env.line(|| text);
    }
}

/// What is closed on all replicas gets settled, if none of them has lost its disk.
fn settle(world: &mut World) {
    let Some(goal) = world
        .closed_everywhere()
        .filter(|_| world.is_ring_at_rest())
    else {
        return;
    };
    let until_ns = world.env.now_ns + SETTLED_NS_MAX;
    let is_settled = |world: &World| world.behind_in_settling(goal).is_none();
    match world.run(until_ns, is_settled) {
        true => world.env.reached.count("all that was closed is settled"),
        false => {
            if let Some(behind) = world.behind_in_settling(goal)
                && world.env.violations.is_empty()
            {
                world.env.violated(settles_in_time::INVARIANT, behind);
            }
        }
    }
}

/// Machines that are there.
fn there(world: &World) -> Vec<usize> {
    let machines = world.machines.iter().filter(|machine| !machine.is_bare());
    machines.map(|machine| machine.node).collect()
}

/// Whoever is no replica of a partition any more removes what it held of it.
fn give_up(world: &mut World) {
    let until_ns = world.env.now_ns + GIVE_UP_NS_MAX;
    while world.env.violations.is_empty() {
        let keeps = |process: &&Process| process.keeps_too_much();
        let Some(node) = world.processes().find(keeps).map(Process::node_id) else {
            return;
        };
        if world.env.now_ns >= until_ns {
            let detail = format!(
                "node {node} does not, within {} s",
                GIVE_UP_NS_MAX / SECOND_NS
            );
            let invariant = "who is no replica any more removes what it held";
            return world.env.violated(invariant, detail);
        }
        world.run(world.env.now_ns + SECOND_NS, |_| false);
    }
}

/// Reads every key from all replicas, through each node in turn, until the replicas are equal.
fn sweep(world: &mut World) {
    let mut difference = None;
    for node in there(world) {
        world
            .env
            .line(|| format!("all keys are read through node {}", node + 1));
        let held_by: Vec<u8> = world
            .clients
            .keys()
            .map(|key| holders(world, &key).len() as u8)
            .collect();
        let begun = world.clients.history.operations.len();
        world.clients.sweep(node, &held_by, &mut world.env);
        bounded(world, SWEEP_NS_MAX, HEALTHY_ANSWERS, |world| {
            !world.clients.is_sweeping()
        });
        let swept = &world.clients.history.operations[begun..];
        let failed = swept.iter().find(|read| read.ending == Ending::Failed);
        if let Some(detail) = failed.map(|read| format!("{read:?} through node {}", node + 1)) {
            world.env.violated(HEALTHY_ANSWERS, detail);
        }
        // Repairs go on behind the replies.
        world.run(world.env.now_ns + SECOND_NS, |_| false);
        if !world.env.violations.is_empty() {
            return;
        }
        let Some(replicas) = replicas(world) else {
            return;
        };
        let (watch, partitions) = (&world.env.watch, world.config.partition_count);
        difference = oracle::difference(&replicas, watch, partitions, |key| holders(world, key));
        if difference.is_none() {
            return;
        }
    }
    if let Some(difference) = difference {
        world.env.violated("replicas converge", difference);
    }
}

/// Walks through and counts all partitions, through each node.
fn census(world: &mut World) {
    for node in there(world) {
        if !world.env.violations.is_empty() {
            return;
        }
        world
            .env
            .line(|| format!("all partitions are counted through node {}", node + 1));
        world.clients.census(node, &mut world.env);
        bounded(world, SWEEP_NS_MAX, "a healthy cluster answers", |world| {
            !world.clients.is_sweeping()
        });
    }
}

/// What each replica holds.
fn replicas(world: &mut World) -> Option<Vec<Vec<Record>>> {
    let lost = world.lost_disks();
    let machines = world.machines.iter().enumerate();
    let read: Result<Vec<_>, String> = machines
        .filter(|(_, machine)| machine.is_bare() || machine.process.is_some())
        .map(|(node, machine)| match &machine.process {
            Some(process) if !lost.contains(&node) => process.all_records(),
            _ => Ok(Vec::new()),
        })
        .collect();
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
        scheduled: world.scheduled,
        violations: world.env.violations,
        lines: world.env.trace.into_lines(),
    }
}
