//! `decide` on a model of the world: pods come and go, volumes are lost, people change their minds, the operator dies
//! before, after or twice. No action may ever be unsafe; and once the world is left alone, it comes to what was asked
//! for. The model of the ring is coarse: it knows stages, who waits for whom, and what a cluster refuses.

#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::collections::{BTreeMap, BTreeSet};

use mds_operator::decide::{
    Action, Change, Cluster, Decision, Member, Node, Observed, Pod, Quorums, Stage, Wanted, decide,
    request_id,
};
use proptest::prelude::*;

const STAGES: [&str; 6] = [
    "prepare",
    "write-both",
    "stream",
    "read-both",
    "read-next",
    "cleanup",
];

/// Stages that a change may be called off in.
const ABORTABLE: usize = 3;

/// Rounds within which a world that is left alone has to come to rest.
const ROUNDS_MAX: usize = 300;

#[derive(Clone, Debug)]
struct RealPod {
    ready: bool,
    revision: u32,
}

#[derive(Clone, Debug)]
struct Open {
    change: Change,
    stage: usize,
    excluded: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct Born {
    members: BTreeMap<String, Member>,
    quorums: Quorums,
    version: u64,
    open: Option<Open>,
    seen: BTreeSet<String>,
    /// Ids that were forgotten, or have left: their directories are refused.
    gone: BTreeSet<String>,
}

#[derive(Clone, Debug)]
struct World {
    wanted: Wanted,
    revision: u32,
    replicas: Option<u32>,
    pods: BTreeMap<u32, RealPod>,
    /// The id of the node that a volume was made by.
    volumes: BTreeMap<u32, String>,
    born: Option<Born>,
    was_born: bool,
    hints: u64,
    ids: u32,
}

fn name(ordinal: u32) -> String {
    format!("mds-{ordinal}")
}

fn ordinal(member: &Member) -> u32 {
    member.name.strip_prefix("mds-").unwrap().parse().unwrap()
}

impl World {
    fn new() -> World {
        World {
            wanted: Wanted {
                size: 3,
                quorums: Quorums { n: 3, r: 2, w: 2 },
                partition_count: 64,
                paused: false,
                delete_scaled_volumes: true,
            },
            revision: 1,
            replicas: None,
            pods: BTreeMap::new(),
            volumes: BTreeMap::new(),
            born: None,
            was_born: false,
            hints: 0,
            ids: 0,
        }
    }

    /// The node of a pod answers: it is ready, and its directory is not refused.
    fn answering(&self, ordinal: u32) -> Option<&String> {
        let id = self.volumes.get(&ordinal)?;
        self.pods.get(&ordinal)?.ready.then_some(id)
    }

    fn observed(&self) -> Observed {
        let is_member = |id: &String| {
            let born = self.born.as_ref();
            born.is_some_and(|born| born.members.contains_key(id))
        };
        let pod = |(&ordinal, pod): (&u32, &RealPod)| {
            let node = self.answering(ordinal).map(|id| Node {
                id: id.clone(),
                born: is_member(id),
                hints: self.hints,
                lag_epochs: 0,
                verification_blocked_by: Vec::new(),
            });
            let pod = Pod {
                ready: pod.ready,
                terminating: false,
                up_to_date: pod.revision == self.revision,
                node,
            };
            (ordinal, pod)
        };
        let is_seen = self
            .pods
            .keys()
            .any(|&o| self.answering(o).is_some_and(is_member));
        let cluster = self.born.as_ref().filter(|_| is_seen).map(|born| Cluster {
            id: "cluster".to_owned(),
            quorums: born.quorums,
            version: born.version,
            stage: born
                .open
                .as_ref()
                .map_or("stable", |open| STAGES[open.stage])
                .to_owned(),
            change: born
                .open
                .as_ref()
                .map_or(String::new(), |open| format!("{:?}", open.change)),
            blocked_by: born.blockers(),
            excluded: born
                .open
                .iter()
                .flat_map(|open| open.excluded.iter().cloned())
                .collect(),
            members: born.members.clone(),
        });
        Observed {
            wanted: self.wanted.clone(),
            name: "mds".to_owned(),
            was_born: self.was_born,
            replicas: self.replicas,
            pods: self.pods.iter().map(pod).collect(),
            volumes: self.volumes.keys().copied().collect(),
            cluster,
        }
    }

    /// What Kubernetes does by itself: pods for the StatefulSet, volumes for pods.
    fn control(&mut self) {
        let Some(replicas) = self.replicas else {
            return;
        };
        self.pods.retain(|ordinal, _| *ordinal < replicas);
        for ordinal in 0..replicas {
            let revision = self.revision;
            self.pods.entry(ordinal).or_insert(RealPod {
                ready: false,
                revision,
            });
            if !self.volumes.contains_key(&ordinal) {
                self.ids += 1;
                self.volumes.insert(ordinal, format!("id{}", self.ids));
            }
        }
        self.look_alive();
    }

    fn start(&mut self, ordinal: u32) {
        let is_refused = self.volumes.get(&ordinal).is_none_or(|id| {
            self.born
                .as_ref()
                .is_some_and(|born| born.gone.contains(id))
        });
        if let Some(pod) = self.pods.get_mut(&ordinal)
            && !is_refused
        {
            pod.ready = true;
        }
        self.look_alive();
    }

    /// Members hear who is there; new nodes are taken up as waiting ones.
    fn look_alive(&mut self) {
        let there: BTreeMap<String, u32> = self
            .pods
            .keys()
            .filter_map(|&ordinal| Some((self.answering(ordinal)?.clone(), ordinal)))
            .collect();
        let Some(born) = &mut self.born else { return };
        for (id, member) in &mut born.members {
            member.alive = there.contains_key(id);
        }
        for (id, ordinal) in there {
            if !born.gone.contains(&id) {
                born.members.entry(id).or_insert(Member {
                    name: name(ordinal),
                    stage: Stage::Waiting,
                    alive: true,
                });
            }
        }
    }

    fn fault(&mut self, kind: u8, arg: u32) {
        match kind % 8 {
            0 => self.wanted.size = self.wanted.quorums.n + arg % 4,
            1 => self.revision += 1,
            // A process dies; its pod is started again on the same volume.
            2 => {
                let count = self.pods.len().max(1) as u32;
                if let Some(pod) = self.pods.get_mut(&(arg % count)) {
                    pod.ready = false;
                }
            }
            // A volume is lost, while everybody else is well: no cluster survives more than it was told to.
            3 => {
                let ordinal = arg % self.pods.len().max(1) as u32;
                let is_well = self.born.as_ref().is_some_and(|born| {
                    let mut on_ring = born.members.values().filter(|m| m.stage.is_on_ring());
                    on_ring.all(|member| member.alive)
                });
                if is_well && self.volumes.contains_key(&ordinal) {
                    self.volumes.remove(&ordinal);
                    self.pods.remove(&ordinal);
                }
            }
            4 => self.hints = u64::from(arg % 2),
            5 => self.wanted.quorums.r = 1 + arg % self.wanted.quorums.n,
            6 => self.wanted.delete_scaled_volumes = arg.is_multiple_of(2),
            _ => self.progress(),
        }
        self.look_alive();
    }

    /// The change under way enters its next stage, if nobody holds it up.
    fn progress(&mut self) {
        let Some(born) = &mut self.born else { return };
        if !born.blockers().is_empty() {
            return;
        }
        let Some(open) = &mut born.open else { return };
        born.version += 1;
        open.stage += 1;
        if open.stage == STAGES.len() {
            born.end();
        }
    }

    /// Carries an action out, after it was found safe.
    fn act(&mut self, action: &Action) {
        self.check(action);
        match action {
            Action::SetReplicas(count) => self.replicas = Some(*count),
            Action::Init => {
                let ids = self
                    .pods
                    .keys()
                    .filter_map(|&o| Some((o, self.answering(o)?.clone())));
                let member = |(ordinal, id)| {
                    let member = Member {
                        name: name(ordinal),
                        stage: Stage::Active,
                        alive: true,
                    };
                    (id, member)
                };
                self.born = Some(Born {
                    members: ids.map(member).collect(),
                    quorums: self.wanted.quorums,
                    version: 1,
                    open: None,
                    seen: BTreeSet::new(),
                    gone: BTreeSet::new(),
                });
                self.was_born = true;
            }
            Action::Ring(change) => {
                let cluster = self.observed().cluster.unwrap();
                let request = request_id(&cluster, change);
                self.born.as_mut().unwrap().ask(request, change);
            }
            Action::RestartPod(ordinal) => {
                self.pods.remove(ordinal);
            }
            Action::DeleteVolume(ordinal) => {
                self.volumes.remove(ordinal);
            }
        }
        self.look_alive();
    }

    /// The invariants, against what is true and not only what was seen.
    fn check(&self, action: &Action) {
        let none = BTreeMap::new();
        let members = self.born.as_ref().map_or(&none, |born| &born.members);
        let on_ring = || {
            members
                .iter()
                .filter(|(_, member)| member.stage.is_on_ring())
        };
        match action {
            Action::SetReplicas(count) => {
                for (_, member) in on_ring() {
                    assert!(
                        ordinal(member) < *count,
                        "the pod of {member:?} is taken away"
                    );
                }
            }
            Action::Init => assert!(self.born.is_none(), "a second birth"),
            Action::Ring(change) => {
                let born = self.born.as_ref().unwrap();
                match change {
                    Change::Abort => {}
                    Change::Exclude(id) => assert!(self.is_lost(id), "{id} is only down"),
                    _ => assert!(born.open.is_none(), "a change during another"),
                }
                if let Change::Leave(ids) = change {
                    let stay = on_ring().filter(|(id, _)| !ids.contains(id)).count();
                    assert!(stay as u32 >= born.quorums.n, "fewer than n would stay");
                }
                if let Change::Replace { dead, .. } = change {
                    assert!(self.is_lost(dead), "{dead} is only down");
                }
                if let Change::Remove(id) = change {
                    assert!(!members[id].stage.is_on_ring(), "{id} is on the ring");
                }
            }
            Action::RestartPod(ordinal) => {
                if self.pods.get(ordinal).is_some_and(|pod| pod.ready) {
                    let is_well = on_ring().all(|(_, member)| member.alive);
                    let is_calm = self.born.as_ref().is_none_or(|born| born.open.is_none());
                    assert!(
                        is_well && is_calm && self.hints == 0,
                        "a restart at a bad time"
                    );
                }
            }
            Action::DeleteVolume(ordinal) => {
                assert!(!self.pods.contains_key(ordinal), "a pod uses it");
                let mut members = members.values();
                assert!(
                    members.all(|member| member.name != name(*ordinal)),
                    "a member's"
                );
            }
        }
    }

    /// Whether the directory that a member lived in is no more.
    fn is_lost(&self, id: &str) -> bool {
        !self.volumes.values().any(|there| there == id)
    }

    fn round(&mut self) -> Decision {
        let decision = decide(&self.observed());
        if let Decision::Act(action, why) = &decision {
            assert!(!why.is_empty());
            self.act(action);
        }
        decision
    }
}

impl Born {
    /// Members without whose word a change does not go on.
    fn blockers(&self) -> Vec<String> {
        let Some(open) = &self.open else {
            return Vec::new();
        };
        let members = self.members.iter();
        let holds_up = |(id, member): &(&String, &Member)| {
            member.stage.is_on_ring() && !member.alive && !open.excluded.contains(*id)
        };
        members.filter(holds_up).map(|(id, _)| id.clone()).collect()
    }

    fn set(&mut self, ids: &[String], stage: Stage) {
        for id in ids {
            self.members.get_mut(id).unwrap().stage = stage;
        }
    }

    fn is(&self, id: &str, stage: Stage, alive: bool) -> bool {
        let member = self.members.get(id);
        member.is_some_and(|member| member.stage == stage && member.alive == alive)
    }

    /// What a cluster does with a request; what it would refuse has no effect.
    fn ask(&mut self, request: String, change: &Change) {
        if !self.seen.insert(request) {
            return;
        }
        match (change, &mut self.open) {
            (Change::Abort, Some(open)) if open.stage < ABORTABLE => {
                match open.change.clone() {
                    Change::Join(ids) => self.set(&ids, Stage::Waiting),
                    Change::Leave(ids) => self.set(&ids, Stage::Active),
                    Change::Replace { with, .. } => self.set(&[with], Stage::Waiting),
                    _ => {}
                }
                self.open = None;
            }
            (Change::Exclude(id), Some(open)) => {
                open.excluded.insert(id.clone());
            }
            (Change::Remove(id), None) => {
                if self
                    .members
                    .get(id)
                    .is_some_and(|m| !m.stage.is_on_ring() && !m.alive)
                {
                    self.members.remove(id);
                    self.gone.insert(id.clone());
                }
            }
            (_, None) => self.begin(change),
            _ => return,
        }
        self.version += 1;
    }

    fn begin(&mut self, change: &Change) {
        let mut excluded = BTreeSet::new();
        let is_good = match change {
            Change::Join(ids) => ids.iter().all(|id| self.is(id, Stage::Waiting, true)),
            Change::Leave(ids) => ids.iter().all(|id| self.members[id].stage == Stage::Active),
            Change::Replace { dead, with } => {
                excluded.insert(dead.clone());
                self.is(dead, Stage::Active, false) && self.is(with, Stage::Waiting, true)
            }
            Change::Quorums(_) => true,
            _ => false,
        };
        if !is_good {
            return;
        }
        match change {
            Change::Join(ids) => self.set(ids, Stage::Joining),
            Change::Leave(ids) => self.set(ids, Stage::Leaving),
            Change::Replace { with, .. } => self.set(std::slice::from_ref(with), Stage::Joining),
            _ => {}
        }
        self.open = Some(Open {
            change: change.clone(),
            stage: 0,
            excluded,
        });
    }

    fn end(&mut self) {
        let Some(open) = self.open.take() else { return };
        match open.change {
            Change::Join(ids) => self.set(&ids, Stage::Active),
            Change::Leave(ids) => {
                self.set(&ids, Stage::Left);
                self.gone.extend(ids);
            }
            Change::Replace { dead, with } => {
                self.set(&[with], Stage::Active);
                self.members.remove(&dead);
                self.gone.insert(dead);
            }
            Change::Quorums(quorums) => self.quorums = quorums,
            _ => {}
        }
    }
}

/// The world is left alone until it comes to rest. Panics with what the operator waits for if it does not.
fn settle(world: &mut World) {
    world.hints = 0;
    let mut last = Decision::Done;
    for _ in 0..ROUNDS_MAX {
        world.control();
        let ordinals: Vec<u32> = world.pods.keys().copied().collect();
        for ordinal in ordinals {
            world.start(ordinal);
        }
        last = world.round();
        world.progress();
        if last == Decision::Done {
            break;
        }
    }
    assert_eq!(last, Decision::Done, "{world:#?}");
    let born = world.born.as_ref().unwrap();
    let on_ring: BTreeSet<u32> = born
        .members
        .values()
        .filter(|member| member.stage == Stage::Active && member.alive)
        .map(ordinal)
        .collect();
    assert_eq!(on_ring, (0..world.wanted.size).collect(), "{world:#?}");
    assert_eq!(born.quorums, world.wanted.quorums);
    assert_eq!(world.replicas, Some(world.wanted.size));
    assert!(
        world
            .pods
            .values()
            .all(|pod| pod.revision == world.revision)
    );
    if world.wanted.delete_scaled_volumes {
        assert_eq!(world.volumes.len(), world.wanted.size as usize);
    }
}

#[test]
fn a_cluster_is_born_grows_shrinks_and_is_upgraded() {
    let mut world = World::new();
    for size in [3, 5, 3, 7, 4] {
        world.wanted.size = size;
        world.revision += 1;
        settle(&mut world);
    }
}

#[test]
fn who_is_only_down_is_neither_replaced_nor_excluded() {
    let mut world = World::new();
    world.wanted.size = 4;
    settle(&mut world);
    world.pods.get_mut(&1).unwrap().ready = false;
    world.look_alive();
    world.wanted.size = 5;
    for _ in 0..20 {
        world.control();
        let decision = world.round();
        world.progress();
        let is_ring_change = matches!(decision, Decision::Act(Action::Ring(_), _));
        assert!(!is_ring_change, "{decision:?}");
    }
    settle(&mut world);
}

/// Fewer were wanted, and once the node had left, but before its pod was stopped, more again.
#[test]
fn who_changes_their_mind_in_the_middle_gets_what_they_asked_for_last() {
    for rounds in 0..24 {
        let mut world = World::new();
        world.wanted.size = 5;
        settle(&mut world);
        for size in [3, 5, 4] {
            world.wanted.size = size;
            for _ in 0..rounds {
                world.control();
                world.round();
                world.progress();
            }
        }
        settle(&mut world);
    }
}

/// All nodes were down for a moment, and a number was wanted again whose volume was that of a node that had been
/// forgotten: its pod was started on that volume, which is refused, and was waited for for ever.
#[test]
fn no_pod_is_started_on_the_volume_of_a_node_that_is_forgotten() {
    let mut world = World::new();
    settle(&mut world);
    world.wanted.delete_scaled_volumes = false;
    world.wanted.size = 4;
    settle(&mut world);
    world.wanted.size = 3;
    settle(&mut world);
    assert!(world.volumes.contains_key(&3));
    for pod in world.pods.values_mut() {
        pod.ready = false;
    }
    world.look_alive();
    world.wanted.size = 4;
    assert!(matches!(world.round(), Decision::Wait(_)));
    settle(&mut world);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_happens_no_action_is_unsafe_and_in_the_end_all_is_as_asked(
        steps in prop::collection::vec((any::<u8>(), any::<u32>(), 0u8..8), 0..160),
        is_born in any::<bool>(),
    ) {
        let mut world = World::new();
        if is_born {
            settle(&mut world);
        }
        for (kind, arg, then) in steps {
            world.fault(kind, arg);
            match then {
                0 => world.control(),
                1 => {
                    world.control();
                    world.start(arg % 8);
                }
                // The operator dies before it acts.
                2 => drop(decide(&world.observed())),
                // It dies after it has acted and before it knows, and acts once more.
                3 => {
                    let seen = world.observed();
                    for _ in 0..2 {
                        if let Decision::Act(action, _) = decide(&seen)
                            && (matches!(action, Action::Ring(_)) || seen == world.observed())
                        {
                            let is_first = seen == world.observed();
                            if is_first {
                                world.act(&action);
                            } else if let (Action::Ring(change), Some(cluster)) = (&action, &seen.cluster) {
                                let request = request_id(cluster, change);
                                world.born.as_mut().unwrap().ask(request, change);
                            }
                        }
                    }
                }
                _ => {
                    world.round();
                }
            }
        }
        settle(&mut world);
    }
}
