//! The administrator of the ring: lets spare machines join, members leave, weights change; calls a change
//! off in the middle; and sees to whoever has lost a directory for good.
//!
//! What it wants stands in the schedule, as [`RingAct`]s. It looks at the cluster from outside a few times a second,
//! and asks for what it wants under one request id until the change is known to be under way: nodes may be down,
//! the leader may change, an earlier change may have to end first. Of its own accord it *excludes* a directory
//! that is gone and holds a change up, lets the new node on that machine *replace* it, *removes* it if it was only
//! waiting, and switches machines off whose nodes have left.
//!
//! **In auto mode** ([`RingMode::Auto`], a share of the runs) the cluster's leader does most of that: who comes late joins
//! by itself, a wiped node takes its former self's place, who is away for long is removed. The administrator asks for
//! nothing of the kind then. What is left to it is what that mode never does: leaving, weights, N, R and W, calling
//! a change off; and a change that nobody can end, because more replicas of a partition are gone than may be left out by
//! rule: it calls that off, or beyond the point of no return, where the next ring has everything, takes the lost one out by force.
//! A sound node that was removed for being away is refused when it returns, with advice; the administrator follows it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use mds_cluster::view::MemberStage;
use mds_cluster::{
    AdminRequest, ClusterView, Quorums, RequestFate, RingMode, RingRequest, Standing,
};
use mds_types::{NodeId, RequestId, RingStage, TopologyVersion};

use crate::event::Event;
use crate::faults::{Action, MILLISECOND_NS, SECOND_NS, Schedule};
use crate::node::{ControlInput, Origin, Process};
use crate::random::Random;
use crate::world::World;

/// The administrator looks at the cluster this often, nanoseconds.
const LOOK_EVERY_NS: u64 = 400 * MILLISECOND_NS;

/// A wish that came to nothing in so many looks is given up: it may have been refused, and rightly.
const LOOKS_MAX: u32 = 30;

/// Of the acts that are no joins, so many are changes of N, R and W: one of so many.
const QUORUMS_ONE_IN: u64 = 6;

/// N, R and W, as they may become. Never one: a node that is lost could not be taken out without force then, for
/// what W = 1 has acknowledged may have been nowhere else.
const QUORUMS: [Quorums; 5] = [
    quorums(3, 3, 2),
    quorums(3, 2, 3),
    quorums(4, 3, 2),
    quorums(4, 2, 3),
    quorums(5, 3, 3),
];

const fn quorums(replicas: u8, read: u8, write: u8) -> Quorums {
    Quorums {
        replicas,
        read,
        write,
    }
}

/// Runs in which the ring never changes: one of so many.
const STEADY_ONE_IN: u64 = 3;

/// The leader looks after the ring in one of so many of the runs in which it changes.
const AUTO_ONE_IN: u64 = 4;

/// How long a node is dead before it is removed, in auto mode, milliseconds: so short that it happens within a run.
const REMOVE_AFTER_MS_MIN: u64 = 1_000;
const REMOVE_AFTER_MS_MAX: u64 = 4_000;

/// In auto mode a node stays away for long in one of so many runs.
const AWAY_ONE_IN: u64 = 2;

/// For so long, nanoseconds.
const AWAY_NS_MIN: u64 = 8 * SECOND_NS;
const AWAY_NS_MAX: u64 = 20 * SECOND_NS;

/// In auto mode a lost node is in the way of a change for so many looks before the administrator steps in.
const AUTO_PATIENCE_LOOKS: u32 = 50;

/// How much the ring changes in a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RingConfig {
    /// Whether anybody looks after the ring at all: replaces what is lost, excludes what is in the way.
    pub is_looked_after: bool,
    /// Who does: the administrator alone, or the leader by itself and the administrator where it cannot.
    pub mode: RingMode,
    /// Machines that are not there when the cluster is born, and may join it.
    pub late: usize,
    /// Acts of the administrator.
    pub acts: u64,
    /// Acts after which the change is called off soon, in parts per million.
    pub abort_ppm: u32,
}

impl RingConfig {
    /// The ring never changes.
    pub fn none() -> RingConfig {
        RingConfig {
            is_looked_after: false,
            mode: RingMode::Operator,
            late: 0,
            acts: 0,
            abort_ppm: 0,
        }
    }

    /// Draws one. A share of the runs has a ring that never changes.
    pub fn draw(random: &mut Random) -> RingConfig {
        if random.below(STEADY_ONE_IN) == 0 {
            return RingConfig::none();
        }
        RingConfig {
            is_looked_after: true,
            mode: RingMode::Operator,
            late: random.between(1, 2) as usize,
            acts: random.between(1, 4),
            abort_ppm: random.below(500_001) as u32,
        }
    }

    /// Has the leader look after the ring in a share of the runs, or always, or never. In a steady ring nobody does.
    #[must_use]
    pub fn in_drawn_mode(self, random: &mut Random, is_auto: Option<bool>) -> RingConfig {
        let drawn = random.below(AUTO_ONE_IN) == 0;
        let after_ms = random.between(REMOVE_AFTER_MS_MIN, REMOVE_AFTER_MS_MAX);
        let mode = match self.is_looked_after && is_auto.unwrap_or(drawn) {
            true => RingMode::Auto {
                remove_after_ms: Some(after_ms),
            },
            false => RingMode::Operator,
        };
        RingConfig { mode, ..self }
    }

    /// Whether the leader looks after the ring.
    pub fn is_auto(&self) -> bool {
        matches!(self.mode, RingMode::Auto { .. })
    }

    /// In auto mode: somebody who stays away for so long that it is removed, maybe.
    pub(crate) fn draw_absence(
        &self,
        random: &mut Random,
        nodes: usize,
        lasts_ns: u64,
    ) -> Schedule {
        if !self.is_auto() || random.below(AWAY_ONE_IN) != 0 {
            return Schedule::new();
        }
        let (node, at_ns) = (random.index(nodes), random.below(lasts_ns / 2));
        let down_ns = random.between(AWAY_NS_MIN, AWAY_NS_MAX);
        let away = match random.below(2) {
            0 => Action::Kill { node, down_ns },
            _ => Action::PowerLoss { node, down_ns },
        };
        vec![(at_ns, away)]
    }

    /// The acts, within the time of the faults.
    pub(crate) fn draw_acts(
        &self,
        random: &mut Random,
        founders: usize,
        lasts_ns: u64,
    ) -> Schedule {
        let mut schedule = Schedule::new();
        let mut late = 0;
        for _ in 0..self.acts {
            let at_ns = random.below(lasts_ns);
            let act = match random.below(5) {
                0..=2 if late < self.late => {
                    late += 1;
                    RingAct::Join {
                        node: founders + late - 1,
                    }
                }
                _ if random.below(QUORUMS_ONE_IN) == 0 => RingAct::Quorums {
                    choice: random.index(QUORUMS.len()),
                },
                3 => RingAct::Reweigh {
                    node: random.index(founders),
                    weight: random.between(30, 300) as u32,
                },
                _ => RingAct::Leave {
                    node: random.index(founders),
                },
            };
            schedule.push((at_ns, Action::Ring(act)));
            if random.chance(self.abort_ppm) {
                let soon_ns = random.between(100 * MILLISECOND_NS, 3_000 * MILLISECOND_NS);
                schedule.push((at_ns + soon_ns, Action::Ring(RingAct::Abort)));
            }
        }
        schedule
    }
}

/// What an administrator may want.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RingAct {
    /// A machine that was not there starts its node, which joins.
    Join {
        /// Which machine.
        node: usize,
    },
    /// A node hands over what it holds and leaves. Forgotten if the ring would get too small.
    Leave {
        /// Which machine.
        node: usize,
    },
    /// A node gets another weight.
    Reweigh {
        /// Which machine.
        node: usize,
        /// 100 is what all have at first.
        weight: u32,
    },
    /// N, R and W become others. N only grows, and only as far as there are members for it.
    Quorums {
        /// Which of [`QUORUMS`].
        choice: usize,
    },
    /// The change under way is called off, if it still may be.
    Abort,
}

/// What was asked for and is not known to be under way.
struct Wish {
    request: RequestId,
    act: RingAct,
    ask: Option<RingRequest>,
    looks: u32,
}

/// The administrator.
pub(crate) struct Administrator {
    is_at_work: bool,
    /// The leader does what it can by itself.
    is_auto: bool,
    /// For how many looks a lost node has been in the way of which version of the ring.
    in_the_way: (TopologyVersion, u32),
    requests: u128,
    wishes: VecDeque<Wish>,
    /// Requests to replace a lost one by the node of a machine.
    replacing: BTreeMap<(NodeId, NodeId), RequestId>,
    looks: usize,
}

impl Administrator {
    pub(crate) fn new(config: &RingConfig) -> Administrator {
        Administrator {
            is_at_work: config.is_looked_after,
            is_auto: config.is_auto(),
            in_the_way: (TopologyVersion(0), 0),
            requests: 0,
            wishes: VecDeque::new(),
            replacing: BTreeMap::new(),
            looks: 0,
        }
    }

    fn next_request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }
}

impl World {
    /// The administrator begins to look, if there is one.
    pub(crate) fn look_after_ring(&mut self) {
        if self.administrator.is_at_work {
            self.env.after(LOOK_EVERY_NS, Event::Administer);
        }
    }

    /// Something in the schedule that concerns the ring.
    pub(crate) fn act_on_ring(&mut self, act: RingAct) {
        self.env
            .line(|| format!("the administrator wants: {act:?}"));
        if let RingAct::Join { node } = act
            && self.machines[node].unpack()
        {
            self.env.after(0, Event::Start { node });
        }
        if self.administrator.is_auto && matches!(act, RingAct::Join { .. }) {
            return;
        }
        let request = self.administrator.next_request();
        self.administrator.wishes.push_back(Wish {
            request,
            act,
            ask: None,
            looks: 0,
        });
    }

    /// No new changes from here on: what is under way has to end.
    pub(crate) fn want_no_more(&mut self) {
        self.administrator.wishes.clear();
    }

    /// The view of whoever has applied most. Copies of directories are not asked.
    pub(crate) fn newest_view(&self) -> Option<Arc<ClusterView>> {
        let machines = self.machines.iter();
        let views = machines
            .filter(|machine| machine.origin != Origin::Copy)
            .filter_map(|machine| machine.process.as_ref())
            .map(Process::view)
            .filter(|view| view.config.is_some());
        views.max_by_key(|view| view.raft.applied).cloned()
    }

    /// Whether nothing is left to change: all know the same stable ring, and nobody lost is on it.
    pub(crate) fn is_ring_at_rest(&self) -> bool {
        let Some(newest) = self.newest_view() else {
            return false;
        };
        if !self.administrator.is_at_work {
            return true;
        }
        let knows = |process: &Process| {
            let view = process.view();
            view.topology.version == newest.topology.version
                && view
                    .members
                    .get(&view.me)
                    .is_none_or(|member| member.stage != MemberStage::Left)
        };
        // Whoever waits is about to join by itself.
        let joins = |process: &Process| {
            let member = newest.members.get(&process.node_id());
            member.is_none_or(|member| member.stage == MemberStage::Waiting)
        };
        let is_complete = !self.administrator.is_auto || !self.processes().any(joins);
        newest.transition.stage == RingStage::Stable
            && is_complete
            && newest.transition.blocked_by.is_empty()
            && !newest
                .members
                .keys()
                .any(|node| self.env.lost.contains(node))
            && self
                .processes()
                .all(|process| process.requests_waiting() == 0)
            && self.processes().all(knows)
    }

    /// The administrator looks at the cluster, and asks for what there is to ask for.
    pub(crate) fn administer(&mut self) {
        self.env.after(LOOK_EVERY_NS, Event::Administer);
        self.administrator.looks += 1;
        let Some(view) = self.newest_view() else {
            return;
        };
        self.receive_members(&view);
        self.switch_off_who_left(&view);
        match view.transition.request {
            Some(request) => self.see_to_change(request, &view),
            None => self.begin_changes(&view),
        }
    }

    /// Who has come onto the ring on a disk that replaces a lost one is a replica like any other.
    fn receive_members(&mut self, view: &ClusterView) {
        if view.transition.stage != RingStage::Stable {
            return;
        }
        for node in 0..self.machines.len() {
            let machine = &mut self.machines[node];
            if let Some(process) = &machine.process
                && machine.origin == Origin::Empty
                && view.topology.member(process.node_id()).is_some()
            {
                machine.belongs_now();
            }
        }
    }

    fn switch_off_who_left(&mut self, view: &ClusterView) {
        for node in 0..self.machines.len() {
            let Some(process) = &self.machines[node].process else {
                continue;
            };
            let id = process.node_id();
            let member = view.members.get(&id);
            let has_left = member.is_some_and(|member| member.stage == MemberStage::Left);
            // Forgotten already.
            let is_turned_away = matches!(process.view().standing, Standing::Refused(_));
            if has_left || (is_turned_away && self.env.welcome.contains(&id)) {
                self.env
                    .line(|| format!("node {} has left and is switched off", node + 1));
                self.env.watch.node_wiped(node);
                self.machines[node].clear(&mut self.env);
            }
        }
    }

    /// A change is under way: it is called off if that is wanted, and whoever is gone is not waited for.
    fn see_to_change(&mut self, request: RequestId, view: &ClusterView) {
        let change = &view.transition;
        let administrator = &mut self.administrator;
        administrator.wishes.retain(|wish| wish.request != request);
        let wants_abort = administrator
            .wishes
            .front()
            .is_some_and(|wish| wish.act == RingAct::Abort);
        if wants_abort {
            administrator.wishes.pop_front();
            self.ask(request, RingRequest::Abort);
        }
        // Others may wait for its word without being able to say so: they cannot verify without it.
        let in_the_way = view.members.keys().copied();
        let gone = in_the_way
            .filter(|node| self.env.lost.contains(node) && !change.excluded.contains(node))
            .min();
        let Some(node) = gone else { return };
        if !self.administrator.is_auto {
            let forced = false;
            return self.ask(request, RingRequest::Exclude { node, forced });
        }
        let (version, looks) = &mut self.administrator.in_the_way;
        match *version == view.topology.version {
            true => *looks += 1,
            false => (*version, *looks) = (view.topology.version, 1),
        }
        if *looks < AUTO_PATIENCE_LOOKS {
            return;
        }
        self.env.reached.count("leader helped in auto mode");
        let ask = match change.stage.may_abort() {
            true => RingRequest::Abort,
            false => RingRequest::Exclude { node, forced: true },
        };
        self.ask(request, ask);
    }

    fn begin_changes(&mut self, view: &ClusterView) {
        let known = &view.transition.requests;
        let is_over = |wish: &Wish| known.iter().any(|(request, _)| *request == wish.request);
        self.administrator.wishes.retain(|wish| !is_over(wish));
        if !self.administrator.is_auto && (self.replace_lost(view) || self.remove_lost(view)) {
            return;
        }
        let Some(mut wish) = self.administrator.wishes.pop_front() else {
            return;
        };
        wish.looks += 1;
        if wish.looks > LOOKS_MAX {
            return;
        }
        if wish.ask.is_none() {
            match self.ask_for(&wish.act, view) {
                Some(ask) => wish.ask = Some(ask),
                // It may become possible.
                None if wish.act != RingAct::Abort => {
                    return self.administrator.wishes.push_back(wish);
                }
                None => return,
            }
        }
        if let Some(ask) = wish.ask.clone() {
            let request = wish.request;
            self.administrator.wishes.push_front(wish);
            self.ask(request, ask);
        }
    }

    /// Has a lost member of the ring replaced by whoever waits on its machine.
    fn replace_lost(&mut self, view: &ClusterView) -> bool {
        let members = view.topology.members.iter().map(|member| member.node);
        let Some(dead) = members.filter(|node| self.env.lost.contains(node)).min() else {
            return false;
        };
        let fresh = self.machines.iter().find_map(|machine| {
            let id = machine.process.as_ref()?.node_id();
            let member = view.members.get(&id)?;
            (machine.origin == Origin::Empty && member.stage == MemberStage::Waiting).then_some(id)
        });
        if let Some(with) = fresh {
            let mut request = self.administrator.replacing.get(&(dead, with)).copied();
            let aborted = |request: &RequestId| {
                view.transition
                    .requests
                    .contains(&(*request, RequestFate::Aborted))
            };
            request = request.filter(|request| !aborted(request));
            let request = request.unwrap_or_else(|| self.administrator.next_request());
            self.administrator.replacing.insert((dead, with), request);
            self.env.welcome.insert(with);
            let forced = false;
            self.ask(request, RingRequest::Replace { dead, with, forced });
        }
        true
    }

    /// Strikes out a lost node that is on no ring: while it is a member, every change waits for its word.
    fn remove_lost(&mut self, view: &ClusterView) -> bool {
        let is_lost_and_waits =
            |node: &&NodeId| self.env.lost.contains(node) && view.topology.member(**node).is_none();
        let Some(&node) = view.members.keys().find(is_lost_and_waits) else {
            return false;
        };
        let request = self.administrator.next_request();
        let forced = false;
        self.ask(request, RingRequest::Remove { node, forced });
        true
    }

    /// The request that an act comes to at present, if it is possible.
    fn ask_for(&mut self, act: &RingAct, view: &ClusterView) -> Option<RingRequest> {
        let id = |node: usize| Some(self.machines[node].process.as_ref()?.node_id());
        match *act {
            RingAct::Join { node } => {
                let joiner = id(node)?;
                let member = view.members.get(&joiner)?;
                if member.stage != MemberStage::Waiting {
                    return None;
                }
                self.env.welcome.insert(joiner);
                let nodes = BTreeSet::from([joiner]);
                Some(RingRequest::Join { nodes })
            }
            RingAct::Leave { node } => {
                let leaver = id(node).filter(|id| view.topology.member(*id).is_some())?;
                let replicas = view.config.as_ref()?.replicas;
                let is_spare = view.topology.members.len() > usize::from(replicas);
                self.env.welcome.insert(leaver);
                let nodes = BTreeSet::from([leaver]);
                is_spare.then_some(RingRequest::Leave { nodes })
            }
            RingAct::Reweigh { node, weight } => {
                let node = id(node).filter(|id| view.topology.member(*id).is_some())?;
                let weights = [(node, weight)].into_iter().collect();
                Some(RingRequest::Reweigh { weights })
            }
            RingAct::Quorums { choice } => {
                let replicas = view.config.as_ref()?.replicas;
                let is_possible = QUORUMS[choice].replicas >= replicas
                    && view.topology.members.len() >= usize::from(QUORUMS[choice].replicas);
                is_possible.then_some(RingRequest::ChangeQuorums(QUORUMS[choice]))
            }
            RingAct::Abort => None,
        }
    }

    /// Asks one node after another.
    fn ask(&mut self, request: RequestId, ask: RingRequest) {
        let running: Vec<usize> = (0..self.machines.len())
            .filter(|node| {
                let machine = &self.machines[*node];
                machine.process.is_some() && machine.origin != Origin::Copy
            })
            .collect();
        if running.is_empty() {
            return;
        }
        let node = running[self.administrator.looks % running.len()];
        self.env
            .line(|| format!("node {} is asked, request {request}: {ask:?}", node + 1));
        self.control(
            node,
            ControlInput::Admin(AdminRequest::Ring { request, ask }),
        );
    }
}
