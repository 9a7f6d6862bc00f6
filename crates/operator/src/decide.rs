//! What to do next: a pure function from what was seen to one action, or to a reason to wait, in words.
//!
//! Level-triggered: nothing is remembered between two decisions, so an operator that dies after any action and
//! starts anew decides from what there is. Each action may be carried out twice: requests to the ring are named by
//! the state that they were decided in ([`request_id`]), all others are idempotent by nature.
//!
//! **Invariants** (tested on a model of the world in which pods, volumes and the ring move by themselves)
//!
//! 1. A pod is never taken away by scaling while its node is on the ring, be it the present or the next one.
//! 2. A ring change is asked for only when none is under way, and never to a ring of fewer than N nodes.
//! 3. A node that serves is restarted for an upgrade only when all nodes on the ring serve, no change is under way,
//!    no hints wait and verification waits for nobody: one at a time.
//! 4. A volume is deleted only when no pod uses it and no member of the cluster lives on it.
//! 5. A cluster is born once: never again while the status remembers one, and never while some pod cannot be
//!    asked.
//! 6. Only members whose pod runs on another directory by now are replaced as dead: one that is just down keeps
//!    its place.
//! 7. If nothing else happens, the ring comes to the size that was asked for.
//!
//! What it does not do: judge whether a change is safe in the ring's own terms. The cluster does, and refuses; the
//! refusal is reported and asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a person asked for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// Nodes.
    pub size: u32,
    /// N, R and W.
    pub quorums: Quorums,
    /// Partitions, at birth.
    pub partition_count: u32,
    /// Change nothing.
    pub paused: bool,
    /// Volumes of nodes that have left are deleted.
    pub delete_scaled_volumes: bool,
}

/// N, R and W.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quorums {
    /// Replicas of each key.
    pub n: u32,
    /// Read quorum.
    pub r: u32,
    /// Write quorum.
    pub w: u32,
}

/// Everything that a decision may depend on.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Observed {
    /// What a person asked for.
    pub wanted: Wanted,
    /// Prefix of the pods' names: pod 3 is `NAME-3`.
    pub name: String,
    /// The status remembers a cluster.
    pub was_born: bool,
    /// Pods that the StatefulSet is told to keep. None: there is no StatefulSet.
    pub replicas: Option<u32>,
    /// Pods by ordinal.
    pub pods: BTreeMap<u32, Pod>,
    /// Ordinals that have a volume.
    pub volumes: BTreeSet<u32>,
    /// What the best informed node knows. None: no node answers, or none has been born.
    pub cluster: Option<Cluster>,
}

/// One pod.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pod {
    /// Its readiness probe succeeds.
    pub ready: bool,
    /// It is being deleted.
    pub terminating: bool,
    /// It was made from the present template.
    pub up_to_date: bool,
    /// What its node says of itself. None: it does not answer.
    pub node: Option<Node>,
}

/// What a node says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// Its id.
    pub id: String,
    /// It belongs to a cluster.
    pub born: bool,
    /// Writes kept for others.
    pub hints: u64,
    /// Epochs that are closed and not verified here.
    pub lag_epochs: u64,
    /// Names of members without which they cannot be.
    pub verification_blocked_by: Vec<String>,
}

/// The cluster, as its best informed node knows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Cluster {
    /// Its id.
    pub id: String,
    /// N, R and W as agreed.
    pub quorums: Quorums,
    /// The ring's version.
    pub version: u64,
    /// `stable`, or the stage of the change under way.
    pub stage: String,
    /// What the change under way does, in words.
    pub change: String,
    /// Ids of those whom the stage waits for.
    pub blocked_by: Vec<String>,
    /// Ids of members that are waited for no more.
    pub excluded: Vec<String>,
    /// All members, by id.
    pub members: BTreeMap<String, Member>,
}

/// One member.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Member {
    /// Its name: that of its pod.
    pub name: String,
    /// Where it stands.
    pub stage: Stage,
    /// Whether the others hold it for alive.
    pub alive: bool,
}

/// Where a member stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Stage {
    /// A member without data.
    #[default]
    Waiting,
    /// On the next ring.
    Joining,
    /// On the ring.
    Active,
    /// On the ring, not on the next.
    Leaving,
    /// Has left the ring and holds nothing.
    Left,
}

impl Stage {
    /// The stage by its word; None for nodes that are no members.
    pub fn of(word: &str) -> Option<Stage> {
        Some(match word {
            "waiting" => Stage::Waiting,
            "joining" => Stage::Joining,
            "active" => Stage::Active,
            "leaving" => Stage::Leaving,
            "left" => Stage::Left,
            _ => return None,
        })
    }

    /// Whether it is on the present ring or the next.
    pub fn is_on_ring(self) -> bool {
        matches!(self, Stage::Joining | Stage::Active | Stage::Leaving)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Stage::Waiting => "waiting",
            Stage::Joining => "joining",
            Stage::Active => "active",
            Stage::Leaving => "leaving",
            Stage::Left => "left",
        })
    }
}

/// One thing to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Have the StatefulSet keep so many pods.
    SetReplicas(u32),
    /// Give birth to the cluster.
    Init,
    /// A change of the ring.
    Ring(Change),
    /// Delete a pod, so that it is made again from the present template.
    RestartPod(u32),
    /// Delete a volume that nobody needs.
    DeleteVolume(u32),
}

/// A request to the ring, nodes by id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Take waiting members in.
    Join(Vec<String>),
    /// Let members go.
    Leave(Vec<String>),
    /// A waiting member takes the place of a dead one.
    Replace {
        /// Who is gone.
        dead: String,
        /// Who takes its place.
        with: String,
    },
    /// Forget a dead member that is not on the ring.
    Remove(String),
    /// Change N, R and W.
    Quorums(Quorums),
    /// Call the change under way off.
    Abort,
    /// Wait for a dead member no more.
    Exclude(String),
}

/// What comes of looking.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Do this; and what it is, in words.
    Act(Action, String),
    /// Nothing can be done now; and why.
    Wait(String),
    /// All is as it was asked for.
    Done,
}

/// A name for a request that is the same as long as the cluster stands where it stood when the request was decided: the
/// ring's version grows with each stage of each change, and with each abort.
pub fn request_id(cluster: &Cluster, change: &Change) -> String {
    let text = format!("{}/{}/{change:?}", cluster.id, cluster.version);
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(text.as_bytes()))
}

/// Decides.
pub fn decide(seen: &Observed) -> Decision {
    if seen.wanted.paused {
        return Decision::Wait("paused: nothing is changed until spec.paused is false".to_owned());
    }
    let Some(replicas) = seen.replicas else {
        let size = seen.wanted.size;
        return act(Action::SetReplicas(size), format!("starting {size} pods"));
    };
    let Some(cluster) = &seen.cluster else {
        return unborn(seen, replicas);
    };
    let eye = Eye {
        seen,
        cluster,
        replicas,
    };
    eye.pods_of_the_ring()
        .or_else(|| eye.broken_pod())
        .or_else(|| eye.change_under_way())
        .or_else(|| eye.lost_member())
        .or_else(|| eye.stale_member())
        .or_else(|| eye.unsettled())
        .or_else(|| eye.grow())
        .or_else(|| eye.change_quorums())
        .or_else(|| eye.shrink())
        .or_else(|| eye.drop_pods())
        .or_else(|| eye.drop_volume())
        .or_else(|| eye.upgrade())
        .or_else(|| eye.not_ready())
        .unwrap_or(Decision::Done)
}

fn act(action: Action, why: impl Into<String>) -> Decision {
    Decision::Act(action, why.into())
}

/// Before birth. Only when each pod says by itself that it belongs to no cluster is there none.
fn unborn(seen: &Observed, replicas: u32) -> Decision {
    let size = seen.wanted.size;
    let all_say_so = (0..replicas).all(|ordinal| {
        let node = seen.pods.get(&ordinal).and_then(|pod| pod.node.as_ref());
        node.is_some_and(|node| !node.born)
    });
    // Of a cluster that only does not answer just now, pods that are too many may have left volumes behind, which have to
    // go first; it has to be asked.
    if replicas < size && !seen.was_born {
        return act(Action::SetReplicas(size), format!("starting {size} pods"));
    }
    if !all_say_so {
        // A pod that cannot start from the present template would be waited for for ever.
        let broken = seen.pods.iter().find(|(_, pod)| {
            !pod.up_to_date && !pod.ready && !pod.terminating && pod.node.is_none()
        });
        return match broken.filter(|_| !seen.was_born) {
            Some((ordinal, _)) => act(
                Action::RestartPod(*ordinal),
                format!(
                    "{}-{ordinal} does not start: making it again from the present template",
                    seen.name
                ),
            ),
            None => Decision::Wait(format!(
                "waiting for all {replicas} pods to answer; silent: {}",
                silent(seen, replicas)
            )),
        };
    }
    if seen.was_born {
        return Decision::Wait(
            "all volumes are empty, but there was a cluster: restore them, or delete this resource and make it anew"
                .to_owned(),
        );
    }
    if replicas > size {
        return act(
            Action::SetReplicas(size),
            format!("{size} pods are enough, and no data is there yet"),
        );
    }
    act(
        Action::Init,
        format!("giving birth to the cluster, with {size} nodes"),
    )
}

fn silent(seen: &Observed, replicas: u32) -> String {
    let silent =
        (0..replicas).filter(|ordinal| seen.pods.get(ordinal).is_none_or(|pod| pod.node.is_none()));
    names(seen, silent)
}

fn names(seen: &Observed, ordinals: impl Iterator<Item = u32>) -> String {
    let names: Vec<String> = ordinals
        .map(|ordinal| format!("{}-{ordinal}", seen.name))
        .collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    }
}

/// A cluster that is there, looked at from all sides.
struct Eye<'a> {
    seen: &'a Observed,
    cluster: &'a Cluster,
    replicas: u32,
}

impl Eye<'_> {
    /// The ordinal of a member's pod.
    fn ordinal(&self, member: &Member) -> Option<u32> {
        let rest = member.name.strip_prefix(self.seen.name.as_str())?;
        rest.strip_prefix('-')?.parse().ok()
    }

    fn name_of(&self, id: &str) -> String {
        let member = self.cluster.members.get(id);
        member.map_or_else(|| id.to_owned(), |member| member.name.clone())
    }

    fn names_of(&self, ids: &[String]) -> String {
        let names: Vec<String> = ids.iter().map(|id| self.name_of(id)).collect();
        names.join(", ")
    }

    /// The node that runs in this pod.
    fn node(&self, ordinal: u32) -> Option<&Node> {
        self.seen.pods.get(&ordinal)?.node.as_ref()
    }

    /// The member that runs in this pod.
    fn member_in(&self, ordinal: u32) -> Option<(&String, &Member)> {
        let id = &self.node(ordinal)?.id;
        self.cluster.members.get_key_value(id)
    }

    /// Whether a member's directory is gone: its pod runs, on another one.
    fn is_lost(&self, id: &str) -> bool {
        let Some(member) = self.cluster.members.get(id) else {
            return false;
        };
        let node = self.ordinal(member).and_then(|ordinal| self.node(ordinal));
        !member.alive && node.is_some_and(|node| node.id != id)
    }

    fn on_ring(&self) -> impl Iterator<Item = (&String, &Member)> {
        let members = self.cluster.members.iter();
        members.filter(|(_, member)| member.stage.is_on_ring())
    }

    fn is_stable(&self) -> bool {
        self.cluster.stage == "stable"
    }

    /// Why the ring should not be changed on purpose now, and no node be restarted.
    fn disturbed(&self) -> Option<String> {
        if let Some((_, member)) = self.on_ring().find(|(_, member)| !member.alive) {
            return Some(format!("{} is down", member.name));
        }
        let unready = self.on_ring().find(|(id, member)| {
            let pod = self
                .ordinal(member)
                .and_then(|ordinal| self.seen.pods.get(&ordinal));
            pod.is_none_or(|pod| {
                !pod.ready
                    || pod.terminating
                    || pod.node.as_ref().is_none_or(|node| node.id != **id)
            })
        });
        if let Some((_, member)) = unready {
            return Some(format!("{} is not ready", member.name));
        }
        let nodes = self.on_ring().filter_map(|(_, member)| {
            let node = self.ordinal(member).and_then(|ordinal| self.node(ordinal));
            node.map(|node| (member, node))
        });
        for (member, node) in nodes {
            if let Some(other) = node.verification_blocked_by.first() {
                return Some(format!(
                    "{} cannot verify closed epochs without {other}",
                    member.name
                ));
            }
        }
        None
    }

    /// Why a node that serves should not be restarted now, beyond that.
    fn unconverged(&self) -> Option<String> {
        let disturbed = self.disturbed();
        if disturbed.is_some() {
            return disturbed;
        }
        self.on_ring().find_map(|(_, member)| {
            let node = self
                .ordinal(member)
                .and_then(|ordinal| self.node(ordinal))?;
            if node.hints > 0 {
                return Some(format!(
                    "{} keeps {} writes that another node has missed",
                    member.name, node.hints
                ));
            }
            (node.lag_epochs > 1).then(|| {
                format!(
                    "{} has {} closed epochs to verify",
                    member.name, node.lag_epochs
                )
            })
        })
    }

    /// Whoever is on the ring has a pod, whatever else was asked for.
    fn pods_of_the_ring(&self) -> Option<Decision> {
        let highest = self
            .on_ring()
            .filter_map(|(_, member)| self.ordinal(member))
            .max()?;
        (self.replicas <= highest).then(|| {
            act(
                Action::SetReplicas(highest + 1),
                format!(
                    "{}-{highest} is on the ring and needs its pod",
                    self.seen.name
                ),
            )
        })
    }

    /// A pod that does not serve and is not of the present template is made again, if no other node of the ring is down:
    /// perhaps it does not serve *because* of its template.
    fn broken_pod(&self) -> Option<Decision> {
        let broken = self.seen.pods.iter().find(|(ordinal, pod)| {
            !pod.up_to_date && !pod.ready && !pod.terminating && self.others_serve(**ordinal)
        });
        broken.map(|(ordinal, _)| {
            act(
                Action::RestartPod(*ordinal),
                format!(
                    "{}-{ordinal} is not ready and not of the present template: making it again",
                    self.seen.name
                ),
            )
        })
    }

    fn others_serve(&self, ordinal: u32) -> bool {
        let mut others = self
            .on_ring()
            .filter(|(_, member)| self.ordinal(member) != Some(ordinal));
        others.all(|(_, member)| {
            let pod = self
                .ordinal(member)
                .and_then(|ordinal| self.seen.pods.get(&ordinal));
            member.alive && pod.is_some_and(|pod| pod.ready && !pod.terminating)
        })
    }

    fn change_under_way(&self) -> Option<Decision> {
        if self.is_stable() {
            return None;
        }
        let cluster = self.cluster;
        let is_waited_for = |id: &&String| !cluster.excluded.contains(id) && self.is_lost(id);
        let lost = cluster.members.keys().find(is_waited_for);
        if let Some(id) = lost {
            let name = self.name_of(id);
            // Calling off helps only if somebody has to take its place first, on the ring.
            let is_on_ring = cluster.members[id].stage.is_on_ring();
            let may_abort =
                is_on_ring && matches!(cluster.stage.as_str(), "prepare" | "write-both" | "stream");
            return Some(match may_abort {
                true => act(
                    Action::Ring(Change::Abort),
                    format!(
                        "{name} has lost its volume during `{}`: calling it off",
                        cluster.change
                    ),
                ),
                false => act(
                    Action::Ring(Change::Exclude(id.clone())),
                    format!(
                        "{name} has lost its volume: `{}` goes on without it",
                        cluster.change
                    ),
                ),
            });
        }
        let waits_for = match cluster.blocked_by.is_empty() {
            true => String::new(),
            false => format!(", waiting for {}", self.names_of(&cluster.blocked_by)),
        };
        Some(Decision::Wait(format!(
            "{}: stage {}{waits_for}",
            cluster.change, cluster.stage
        )))
    }

    /// A member on the ring whose directory is gone: whoever runs in its pod takes its place.
    fn lost_member(&self) -> Option<Decision> {
        let (id, member) = self.on_ring().find(|(id, _)| self.is_lost(id))?;
        let name = &member.name;
        let successor = self
            .ordinal(member)
            .and_then(|ordinal| self.member_in(ordinal))
            .filter(|(_, with)| with.stage == Stage::Waiting && with.alive);
        Some(match successor {
            Some((with, _)) => act(
                Action::Ring(Change::Replace {
                    dead: id.clone(),
                    with: with.clone(),
                }),
                format!("{name} has lost its volume: its new node {with} takes the place of {id}"),
            ),
            None => Decision::Wait(format!(
                "{name} has lost its volume: waiting until the cluster has taken its new node up"
            )),
        })
    }

    /// A dead member that is not on the ring, and whose directory nobody runs on any more.
    fn stale_member(&self) -> Option<Decision> {
        let members = self.cluster.members.iter();
        let mut stale = members.filter(|(id, member)| {
            let has_no_pod = self.ordinal(member).is_none_or(|ordinal| {
                ordinal >= self.replicas && !self.seen.pods.contains_key(&ordinal)
            });
            !member.stage.is_on_ring() && !member.alive && (has_no_pod || self.is_lost(id))
        });
        stale.next().map(|(id, member)| {
            act(
                Action::Ring(Change::Remove(id.clone())),
                format!(
                    "{} ({id}) is gone for good: the cluster forgets it",
                    member.name
                ),
            )
        })
    }

    fn unsettled(&self) -> Option<Decision> {
        let blockers = &self.cluster.blocked_by;
        (!blockers.is_empty()).then(|| {
            Decision::Wait(format!(
                "ring version {} is not known yet to {}",
                self.cluster.version,
                self.names_of(blockers)
            ))
        })
    }

    /// Pods first, then all new nodes together, as one change.
    fn grow(&self) -> Option<Decision> {
        let size = self.seen.wanted.size;
        if self.replicas < size {
            // What has left may not come back: its volume would be refused.
            let used = (self.replicas..size).find(|ordinal| self.seen.volumes.contains(ordinal));
            if let Some(ordinal) = used {
                return Some(self.delete_volume(
                    ordinal,
                    "holds the directory of a node that has left and may not come back, and its number is needed",
                ));
            }
            return Some(act(
                Action::SetReplicas(size),
                format!("starting pods: {} to {size}", self.replicas),
            ));
        }
        if let Some(ordinal) = self.has_left_for_good(size) {
            let why = format!(
                "{}-{ordinal} has left and may not come back: stopping it, to begin anew with an empty volume",
                self.seen.name
            );
            return Some(act(Action::SetReplicas(ordinal), why));
        }
        let mut joiners = Vec::new();
        let mut missing = Vec::new();
        for ordinal in 0..size {
            match self.member_in(ordinal) {
                Some((_, member)) if member.stage == Stage::Active => {}
                Some((id, member)) if member.stage == Stage::Waiting && member.alive => {
                    joiners.push(id.clone());
                }
                // A member that is just down keeps its place.
                _ if self.has_place(ordinal) => {}
                _ => missing.push(ordinal),
            }
        }
        if joiners.is_empty() && missing.is_empty() {
            return None;
        }
        if !missing.is_empty() {
            return Some(Decision::Wait(format!(
                "waiting for {} to start and be taken up as waiting members",
                names(self.seen, missing.into_iter())
            )));
        }
        if let Some(reason) = self.disturbed() {
            return Some(Decision::Wait(format!("no node joins now: {reason}")));
        }
        let why = format!("{} join the ring", self.names_of(&joiners));
        Some(act(Action::Ring(Change::Join(joiners)), why))
    }

    /// The first pod, of those that are wanted, whose node has left the ring while fewer were wanted; if nobody on the
    /// ring is above it.
    fn has_left_for_good(&self, size: u32) -> Option<u32> {
        let on_ring = self
            .on_ring()
            .filter_map(|(_, member)| self.ordinal(member));
        let first_free = on_ring.max().map_or(0, |highest| highest + 1);
        (first_free..size).find(|ordinal| {
            self.member_in(*ordinal)
                .is_some_and(|(_, member)| member.stage == Stage::Left)
        })
    }

    fn has_place(&self, ordinal: u32) -> bool {
        self.on_ring()
            .any(|(_, member)| self.ordinal(member) == Some(ordinal))
    }

    fn change_quorums(&self) -> Option<Decision> {
        let wanted = self.seen.wanted.quorums;
        if self.cluster.quorums == wanted {
            return None;
        }
        if let Some(reason) = self.disturbed() {
            return Some(Decision::Wait(format!(
                "n, r and w are not changed now: {reason}"
            )));
        }
        let Quorums { n, r, w } = wanted;
        Some(act(
            Action::Ring(Change::Quorums(wanted)),
            format!("changing the quorums to n={n}, r={r}, w={w}"),
        ))
    }

    /// All that are too many leave together, as one change.
    fn shrink(&self) -> Option<Decision> {
        let size = self.seen.wanted.size;
        let is_excess =
            |member: &Member| self.ordinal(member).is_none_or(|ordinal| ordinal >= size);
        let (leave, stay): (Vec<_>, Vec<_>) =
            self.on_ring().partition(|(_, member)| is_excess(member));
        if leave.is_empty() {
            return None;
        }
        let needed = self.cluster.quorums.n.max(self.seen.wanted.quorums.n);
        if (stay.len() as u32) < needed {
            return Some(Decision::Wait(format!(
                "no node leaves: {} would stay, and n is {needed}",
                stay.len()
            )));
        }
        if let Some(reason) = self.disturbed() {
            return Some(Decision::Wait(format!("no node leaves now: {reason}")));
        }
        let ids: Vec<String> = leave.iter().map(|(id, _)| (*id).clone()).collect();
        let why = format!("{} leave the ring", self.names_of(&ids));
        Some(act(Action::Ring(Change::Leave(ids)), why))
    }

    /// Nobody on the ring is above `size` when this is reached.
    fn drop_pods(&self) -> Option<Decision> {
        let size = self.seen.wanted.size;
        (self.replicas > size).then(|| {
            act(
                Action::SetReplicas(size),
                format!(
                    "stopping pods whose nodes have left: {} to {size}",
                    self.replicas
                ),
            )
        })
    }

    fn drop_volume(&self) -> Option<Decision> {
        if !self.seen.wanted.delete_scaled_volumes {
            return None;
        }
        let volumes = self.seen.volumes.iter();
        let unused = volumes.copied().find(|ordinal| *ordinal >= self.replicas)?;
        Some(self.delete_volume(unused, "is not needed any more: its node has left"))
    }

    fn delete_volume(&self, ordinal: u32, why: &str) -> Decision {
        let volume = format!("the volume of {}-{ordinal}", self.seen.name);
        let mut members = self.cluster.members.values();
        let lives = members.any(|member| self.ordinal(member) == Some(ordinal));
        if lives || self.seen.pods.contains_key(&ordinal) {
            return Decision::Wait(format!("{volume} {why}: waiting until the node is gone"));
        }
        act(Action::DeleteVolume(ordinal), format!("{volume} {why}"))
    }

    /// One node at a time, the highest first.
    fn upgrade(&self) -> Option<Decision> {
        let mut pods = self.seen.pods.iter().rev();
        let (ordinal, _) = pods.find(|(_, pod)| !pod.up_to_date)?;
        let left = self
            .seen
            .pods
            .values()
            .filter(|pod| !pod.up_to_date)
            .count();
        if let Some(reason) = self.unconverged() {
            return Some(Decision::Wait(format!("upgrade, {left} to go: {reason}")));
        }
        Some(act(
            Action::RestartPod(*ordinal),
            format!(
                "upgrade, {left} to go: restarting {}-{ordinal}",
                self.seen.name
            ),
        ))
    }

    fn not_ready(&self) -> Option<Decision> {
        self.disturbed().map(Decision::Wait)
    }
}
