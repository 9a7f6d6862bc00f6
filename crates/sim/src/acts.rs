//! Large faults as they happen, and their ends.

use std::collections::BTreeSet;

use mds_storage::FaultyDisk;

use crate::event::{Event, Undo};
use crate::faults::{Action, MILLISECOND_NS};
use crate::network::Side;
use crate::node::{Machine, Origin};
use crate::world::World;

/// Reads of the engine that fail with those of the disk.
const ENGINE_READS_FAILED: usize = 20;

/// A node that was stopped by a disk that nobody planned an end for is started again after this
/// long, nanoseconds.
const DOWN_NS: u64 = 300 * MILLISECOND_NS;

impl World {
    pub(crate) fn act(&mut self, action: Action) {
        match action {
            Action::PowerLoss { node, down_ns } => {
                self.stop(node, "power lost", down_ns, Machine::lose_power);
            }
            Action::Kill { node, down_ns } => {
                self.stop(node, "process killed", down_ns, Machine::kill);
            }
            Action::LeaderLoss { down_ns } => {
                self.env.leader_loss = Some(down_ns);
                self.env
                    .line(|| "the next leader that sends what it has not synced dies".to_owned());
            }
            Action::PowerLossInDisk {
                node,
                operations,
                down_ns,
            } => {
                self.plan_on_disk(node, down_ns, |disk| disk.fail_after_ops(operations));
                let left = operations + 1;
                let say = || {
                    format!(
                        "node {} will lose its power in {left} disk writes",
                        node + 1
                    )
                };
                self.env.line(say);
            }
            Action::Cut {
                name,
                traffic,
                pairs,
                for_ns,
            } => {
                self.env.counts.count(name);
                self.env
                    .line(|| format!("{name}: {traffic:?} is cut, {}", arrows(&pairs)));
                self.env.network.cut(traffic, &pairs);
                self.env
                    .after(for_ns, Event::Undo(Undo::Cut(traffic, pairs)));
            }
            Action::SlowLink {
                pair,
                by_ns,
                for_ns,
            } => {
                self.env.counts.count("slow link");
                self.env
                    .line(|| format!("the link {} is slow", arrows(&[pair])));
                self.env.network.slow_link(pair, by_ns);
                self.env.after(for_ns, Event::Undo(Undo::SlowLink(pair)));
            }
            Action::SlowConsumer { pair, for_ns } => {
                self.env.counts.count("slow consumer");
                self.env.line(|| {
                    let (from, to) = (pair.0 + 1, pair.1 + 1);
                    format!("node {to} does not read what node {from} sends it")
                });
                self.env.network.stop_reading(pair);
                self.env
                    .after(for_ns, Event::Undo(Undo::SlowConsumer(pair)));
            }
            Action::Ring(act) => self.act_on_ring(act),
            Action::Move { node, down_ns } => self.move_node(node, down_ns),
            Action::StartClone { node, for_ns } => self.start_clone(node, for_ns),
            Action::ResetStreams { one, other } => self.reset_streams(one, other),
            Action::Pause { node, for_ns } => self.pause(node, for_ns),
            Action::RetryStorm { for_ns } => {
                self.env.counts.count("retry storm");
                self.env.line(|| "the clients lose patience".to_owned());
                self.clients.storm_until(self.env.now_ns + for_ns);
            }
            Action::ClockJump { .. } | Action::ClockFreeze { .. } => self.act_on_clock(&action),
            disk => self.act_on_disk(disk),
        }
    }

    fn act_on_disk(&mut self, action: Action) {
        match action {
            Action::DiskFull {
                node,
                room_bytes,
                for_ns,
            } => {
                self.env.counts.count("disk full");
                let disk = self.machines[node].disk();
                disk.set_capacity(Some(disk.used_bytes() + room_bytes));
                self.is_sick(node, "its disk is nearly full");
                self.env.after(for_ns, Event::Undo(Undo::DiskFull(node)));
            }
            Action::SyncError {
                node,
                syncs,
                down_ns,
            } => self.plan_failure(node, down_ns, "sync error planned", |disk| {
                disk.fail_sync_in(syncs);
            }),
            Action::WriteError {
                node,
                appends,
                down_ns,
            } => self.plan_failure(node, down_ns, "write error planned", |disk| {
                disk.fail_append_in(appends);
            }),
            Action::ReadError { node, for_ns } => {
                self.env.counts.count("read error");
                let machine = &self.machines[node];
                machine.disk().fail_reads(true);
                machine.engine().fail_next_reads(ENGINE_READS_FAILED);
                self.is_sick(node, "its disk cannot be read");
                self.env.after(for_ns, Event::Undo(Undo::ReadError(node)));
            }
            Action::BitRot {
                node,
                draw,
                down_ns,
            } => {
                let machine = &mut self.machines[node];
                if machine.process.is_some() {
                    machine.kill(&mut self.env);
                    machine.rot(draw, &mut self.env);
                    machine.start_after(down_ns, &mut self.env);
                }
            }
            Action::SlowDisk {
                node,
                by_ns,
                for_ns,
            } => {
                self.env.counts.count("slow disk");
                self.env
                    .line(|| format!("the disk of node {} is slow", node + 1));
                self.env.network.slow_disk(node, by_ns);
                self.env.after(for_ns, Event::Undo(Undo::SlowDisk(node)));
            }
            Action::Wipe { node, down_ns } => {
                let machine = &mut self.machines[node];
                if machine.origin == Origin::Itself && !machine.is_bare() {
                    self.env.counts.count("directory wiped");
                    machine.lose_power(&mut self.env);
                    machine.wipe(&mut self.env);
                    machine.start_after(down_ns, &mut self.env);
                }
            }
            Action::CopyDirectory { node } => {
                if let Err(error) = self.machines[node].copy_directory(&mut self.env) {
                    // It fails while reads of the disk do.
                    self.env
                        .line(|| format!("no copy of node {}: {error}", node + 1));
                }
            }
            Action::RestoreCopy { node, down_ns } => {
                // A voter that forgets what it has acknowledged can take the only other trace of its
                // later start with it: that is beyond what Raft can bear, and is not asked of it.
                if !self.all_know_last_start(node) {
                    return;
                }
                let machine = &mut self.machines[node];
                machine.kill(&mut self.env);
                if machine.restore_copy(&mut self.env) {
                    self.env.counts.count("old copy restored");
                }
                machine.start_after(down_ns, &mut self.env);
            }
            _ => {}
        }
    }

    /// Whether every other node runs and knows of the node's present start.
    fn all_know_last_start(&self, node: usize) -> bool {
        let start_of = |at: usize, me| {
            let process = self.machines[at].process.as_ref()?;
            let member = process.view().members.get(&me)?;
            Some((member.boot, member.boot_nonce))
        };
        let Some(process) = self.machines[node].process.as_ref() else {
            return false;
        };
        let me = process.view().me;
        let own = start_of(node, me);
        let mut there = (0..self.machines.len()).filter(|at| !self.machines[*at].is_bare());
        own.is_some() && there.all(|at| start_of(at, me) == own)
    }

    fn act_on_clock(&mut self, action: &Action) {
        let now_ns = self.env.now_ns;
        let (node, name, for_ns) = match *action {
            Action::ClockJump {
                node,
                by_us,
                for_ns,
            } => {
                self.machines[node].change_clock(|clock| clock.jump(by_us));
                let name = if by_us < 0 {
                    "clock jumped back"
                } else {
                    "clock jumped ahead"
                };
                (node, name, for_ns)
            }
            Action::ClockFreeze { node, for_ns } => {
                self.machines[node].change_clock(|clock| clock.freeze(now_ns));
                (node, "clock frozen", for_ns)
            }
            _ => return,
        };
        self.env.counts.count(name);
        self.env.wrong_clocks.insert(node);
        self.env
            .line(|| format!("node {}: {name}: {action:?}", node + 1));
        self.env.after(for_ns, Event::Undo(Undo::Clock(node)));
    }

    /// The end of a large fault.
    pub(crate) fn undo(&mut self, undo: Undo) {
        self.env.line(|| format!("over: {}", over(&undo)));
        match undo {
            Undo::Cut(traffic, pairs) => self.env.network.mend(traffic, &pairs),
            Undo::SlowLink(pair) => self.env.network.slow_link(pair, 0),
            Undo::SlowConsumer(pair) => self.env.network.read_again(pair),
            Undo::Clone => self.remove_clone(),
            Undo::SlowDisk(node) => self.env.network.slow_disk(node, 0),
            Undo::DiskFull(node) => self.machines[node].disk().set_capacity(None),
            Undo::ReadError(node) => self.machines[node].read_again(),
            Undo::Clock(node) => self.machines[node].change_clock(|clock| clock.put_right()),
        }
    }

    fn stop(
        &mut self,
        node: usize,
        name: &'static str,
        down_ns: u64,
        how: impl Fn(&mut Machine, &mut crate::env::Env),
    ) {
        let machine = &mut self.machines[node];
        if machine.process.is_some() {
            self.env.counts.count(name);
            how(machine, &mut self.env);
            machine.start_after(down_ns, &mut self.env);
        }
    }

    fn plan_on_disk(&mut self, node: usize, down_ns: u64, plan: impl Fn(&FaultyDisk)) {
        let machine = &mut self.machines[node];
        machine.down_ns = down_ns;
        plan(machine.disk());
    }

    /// Plans a failure of the disk of a running node. A start forgets it, so it is of no use to a node
    /// that is down.
    fn plan_failure(
        &mut self,
        node: usize,
        down_ns: u64,
        name: &'static str,
        plan: impl Fn(&FaultyDisk),
    ) {
        if self.machines[node].process.is_some() {
            self.env.counts.count(name);
            self.plan_on_disk(node, down_ns, plan);
            self.is_sick(node, name);
        }
    }

    /// The node goes down and comes back under another address.
    fn move_node(&mut self, node: usize, down_ns: u64) {
        let machine = &mut self.machines[node];
        if machine.process.is_some() {
            self.env.counts.count("address changed");
            machine.kill(&mut self.env);
            machine.change_address(&mut self.env);
            machine.start_after(down_ns, &mut self.env);
        }
    }

    /// A copy of an earlier start comes up beside the original, which the others know to be later.
    fn start_clone(&mut self, node: usize, for_ns: u64) {
        let spare = self.machines.spare();
        // As with a copy in the original's place: who has forgotten what it acknowledged must not be
        // able to take the only trace of that along.
        if !self.machines[spare].is_bare()
            || self.machines[node].origin != Origin::Itself
            || !self.all_know_last_start(node)
        {
            return;
        }
        let Some(copy) = self.machines[node].take_old_copy() else {
            return;
        };
        self.env.counts.count("clone started");
        self.env
            .line(|| format!("a copy of node {} starts beside it", node + 1));
        self.machines[spare].take_in_copy(copy);
        self.env.after(0, Event::Start { node: spare });
        self.env.after(for_ns, Event::Undo(Undo::Clone));
    }

    fn remove_clone(&mut self) {
        let spare = self.machines.spare();
        if self.machines[spare].is_bare() {
            return;
        }
        // A copy of a directory in which there was nothing yet has become a node of its own.
        if let Some(id) = self.machines[spare].id
            && !self
                .machines
                .iter()
                .any(|other| other.node != spare && other.id == Some(id))
        {
            self.env.lost.insert(id);
        }
        self.machines[spare].clear(&mut self.env);
    }

    /// From now on the disk may be to blame when the node stops.
    fn is_sick(&mut self, node: usize, why: &str) {
        self.env.sick.insert(node);
        self.env.line(|| format!("node {}: {why}", node + 1));
    }

    fn reset_streams(&mut self, one: usize, other: usize) {
        self.env
            .line(|| format!("streams of nodes {} and {} break", one + 1, other + 1));
        for conn in self.env.network.conns_between(one, other) {
            self.env.counts.count("stream reset");
            self.env
                .send_part(conn, Side::Dialler, crate::event::Part::Reset);
            self.env
                .send_part(conn, Side::Acceptor, crate::event::Part::Reset);
        }
    }

    fn pause(&mut self, node: usize, for_ns: u64) {
        let machine = &mut self.machines[node];
        if machine.process.is_some() && machine.held_back.is_none() {
            self.env.counts.count("process paused");
            self.env.line(|| format!("node {} stands still", node + 1));
            machine.held_back = Some(Vec::new());
            let life = machine.life;
            self.env.after(for_ns, Event::Resume { node, life });
        }
    }

    /// Ends all faults, those to come included, and starts what does not run. Who stands still goes
    /// on by itself, soon.
    pub(crate) fn heal(&mut self) {
        self.env.line(|| "the world heals".to_owned());
        self.env.network.heal();
        self.env.drop_planned_faults();
        self.remove_clone();
        self.want_no_more();
        self.clients.storm_until(0);
        for node in 0..self.machines.len() {
            let machine = &mut self.machines[node];
            machine.disk().fail_after_ops(u64::MAX);
            machine.disk().fail_sync_in(u64::MAX);
            machine.disk().fail_append_in(u64::MAX);
            machine.disk().set_capacity(None);
            machine.read_again();
            machine.change_clock(|clock| clock.put_right());
            machine.down_ns = DOWN_NS;
            if machine.process.is_none() {
                self.env.after(0, Event::Start { node });
            }
        }
    }

    /// Machines whose first disk is lost for ever, or will be when the copy in its place is found
    /// out.
    pub(crate) fn lost_disks(&self) -> BTreeSet<usize> {
        let machines = self.machines.iter().enumerate();
        machines
            .filter(|(_, machine)| machine.origin != Origin::Itself)
            .map(|(node, _)| node)
            .collect()
    }
}

/// Ordered pairs of nodes, for people.
fn arrows(pairs: &[(usize, usize)]) -> String {
    let arrow = |&(from, to): &(usize, usize)| format!("{} -> {}", from + 1, to + 1);
    let arrows: Vec<String> = pairs.iter().map(arrow).collect();
    format!("nodes {}", arrows.join(", "))
}

/// What is over, for people.
fn over(undo: &Undo) -> String {
    let of = |what: &str, node: &usize| format!("{what} of node {}", node + 1);
    match undo {
        Undo::Cut(traffic, pairs) => format!("{traffic:?} flows again, {}", arrows(pairs)),
        Undo::SlowLink(pair) => format!("the slow link, {}", arrows(&[*pair])),
        Undo::SlowConsumer(pair) => format!("not reading, {}", arrows(&[*pair])),
        Undo::Clone => "the copy beside its original is removed".to_owned(),
        Undo::SlowDisk(node) => of("the slow disk", node),
        Undo::DiskFull(node) => of("the full disk", node),
        Undo::ReadError(node) => of("the read errors", node),
        Undo::Clock(node) => of("the wrong clock", node),
    }
}
