//! What the cluster agrees on: the state machine that Raft's log drives.
//!
//! Small, pure, and the same on every node: no clock, no randomness, no I/O. Whoever is a member,
//! which data directory and which start of it, the ring and how it changes (`transition`), the
//! epoch and its floor. A command that may not be carried out is answered with a reason and changes
//! nothing.
//!
//! **Invariants** (tested)
//!
//! 1. A cluster is born once: the first [`Command::Born`] counts, later ones change nothing.
//! 2. A member's start number only grows, and one start number belongs to one nonce: of two copies
//!    of a data directory at most one is the member.
//! 3. The epoch, its floor and the topology version only grow.
//! 4. A directory that was removed does not become a member again.
//!
//! Encodings are positional: commands are added at the end, and a state of an older format stays
//! readable (`encoding`).

mod change;
mod command;
mod encoding;
#[cfg(test)]
mod tests;
mod transition;

use std::collections::BTreeMap;
use std::sync::Arc;

use mds_types::limits::{MEMBER_TEXT_BYTES_MAX, MEMBERS_MAX};
use mds_types::mutation::{Mutation, is_on};
use mds_types::{
    ClusterConfig, ClusterId, Epoch, EpochFloors, Hlc, IncarnationId, MemberInfo, NodeId, Ring,
    RingStage, Rings, Topology, TopologyMember, TopologyVersion,
};
use serde::{Deserialize, Serialize};

pub use command::{Command, NewMember, Quorums, Response, RingChange};
pub use encoding::StateDecodeError;
pub use transition::{
    Blocker, REMOVED_MAX, REQUESTS_MAX, RequestFate, RequestRecord, Transition, WaitsFor,
};

use crate::view::{MemberStage, MemberView};

/// The epoch a cluster is born in.
pub const FIRST_EPOCH: Epoch = Epoch(1);

/// The agreed state.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ClusterState {
    /// [`ClusterId::NONE`] until the cluster is born.
    pub cluster: ClusterId,
    /// Agreed at birth.
    pub config: Option<ClusterConfig>,
    /// Zero until the cluster is born.
    pub epoch: Epoch,
    /// The ring.
    pub topology: Topology,
    /// Everyone who belongs to the cluster.
    pub members: BTreeMap<NodeId, MemberView>,
    /// The floors of the latest epochs.
    pub floors: EpochFloors,
    /// Data messages of senders that know less than this version are refused.
    pub accepted_from: TopologyVersion,
    /// The change of the ring under way.
    pub transition: Option<Transition>,
    /// The version of the ring that each member has acknowledged.
    pub acked: BTreeMap<NodeId, TopologyVersion>,
    /// Directories that may not come back, the latest last.
    pub removed: Vec<IncarnationId>,
    /// The latest requests, the newest last.
    pub requests: Vec<RequestRecord>,
}

impl ClusterState {
    /// Carries a command out.
    pub fn apply(&mut self, command: &Command) -> Response {
        match command {
            Command::Born {
                cluster,
                config,
                members,
            } => self.born(*cluster, config, members),
            _ if self.cluster.is_none() => {
                Response::NotYet("the cluster has not been formed yet".to_owned())
            }
            Command::AddMember { member } => self.add_member(member),
            Command::Announce {
                member,
                boot,
                nonce,
                earlier,
            } => self.announce(member, *boot, *nonce, earlier),
            Command::AdvanceEpoch { to } => self.advance_epoch(*to, Hlc(0)),
            Command::AdvanceEpochWithFloor { to, floor } => self.advance_epoch(*to, *floor),
            Command::BeginTransition { request, change } => self.begin_transition(*request, change),
            Command::Ack { member, version } => self.ack(*member, *version),
            Command::Ready { member, version } => self.ready(*member, *version),
            Command::StepTransition { from, floor } => self.step_transition(*from, *floor),
            Command::AbortTransition { request } => self.abort_transition(*request),
            Command::Exclude {
                request,
                node,
                forced,
            } => self.exclude(*request, *node, *forced),
            Command::RemoveMember { node } => self.remove_member(*node),
        }
    }

    /// The rings, as the data path goes by them.
    pub fn rings(&self) -> Rings {
        let ring = |topology: &Topology, config: &ClusterConfig| Ring {
            topology: Arc::new(topology.clone()),
            config: config.clone(),
        };
        let Some(config) = &self.config else {
            return Rings::default();
        };
        let open = self.transition.as_ref();
        Rings {
            version: self.topology.version,
            accepted_from: self.accepted_from,
            stage: open.map_or(RingStage::Stable, |open| open.stage),
            current: ring(&self.topology, config),
            next: open.map(|open| ring(&open.topology, &open.config)),
            first_epoch: open.and_then(|open| open.first_epoch),
            excluded: open.map(|open| open.excluded.clone()).unwrap_or_default(),
            settled: self.is_settled(),
        }
    }

    /// Whether a node was removed for good.
    pub fn is_removed(&self, node: NodeId) -> bool {
        !self.members.contains_key(&node) && self.removed.iter().any(|gone| gone.node_id() == node)
    }

    fn born(
        &mut self,
        cluster: ClusterId,
        config: &ClusterConfig,
        members: &[NewMember],
    ) -> Response {
        if self.cluster == cluster && !cluster.is_none() {
            return Response::Done;
        }
        if !self.cluster.is_none() {
            return Response::Refused(format!("the cluster was born as {}", self.cluster));
        }
        if let Err(reason) = check_birth(cluster, config, members) {
            return Response::Refused(reason);
        }
        self.cluster = cluster;
        self.config = Some(config.clone());
        self.epoch = FIRST_EPOCH;
        self.floors.begin(FIRST_EPOCH, Hlc(0));
        self.members = members
            .iter()
            .map(|member| {
                (
                    member.incarnation.node_id(),
                    not_started(member, MemberStage::Active),
                )
            })
            .collect();
        let ring = self.members.iter().map(|(node, member)| TopologyMember {
            node: *node,
            zone: member.info.zone.clone(),
            weight: member.info.weight,
        });
        self.topology = Topology {
            version: TopologyVersion(1),
            members: ring.collect(),
        };
        Response::Done
    }

    fn add_member(&mut self, member: &NewMember) -> Response {
        let node = member.incarnation.node_id();
        if let Some(known) = self.members.get(&node) {
            return same_directory(known, member);
        }
        if self.removed.contains(&member.incarnation) {
            return Response::Refused(REMOVED.to_owned());
        }
        if self.members.len() >= MEMBERS_MAX {
            return Response::Refused(format!("the cluster has {MEMBERS_MAX} members, the most"));
        }
        if let Err(reason) = check_info(&member.info) {
            return Response::Refused(reason);
        }
        if is_on(Mutation::FreshOnRing) {
            self.topology.version.0 += 1;
            self.topology.members.push(TopologyMember {
                node,
                zone: member.info.zone.clone(),
                weight: member.info.weight,
            });
        }
        let stage = match is_on(Mutation::FreshOnRing) {
            true => MemberStage::Active,
            false => MemberStage::Waiting,
        };
        self.members.insert(node, not_started(member, stage));
        Response::Done
    }

    fn announce(&mut self, member: &NewMember, boot: u64, nonce: u64, earlier: &[u64]) -> Response {
        let Some(known) = self.members.get_mut(&member.incarnation.node_id()) else {
            if self.removed.contains(&member.incarnation) {
                return Response::Refused(REMOVED.to_owned());
            }
            return Response::NotYet("the node is not a member yet".to_owned());
        };
        if let refused @ Response::Refused(_) = same_directory(known, member) {
            return refused;
        }
        if let Err(reason) = check_info(&member.info) {
            return Response::Refused(reason);
        }
        if boot == known.boot && nonce == known.boot_nonce {
            return Response::Done;
        }
        if !follows(known.boot, known.boot_nonce, boot, earlier) && !is_on(Mutation::CopyAccepted) {
            return Response::Refused(start_number_used(boot));
        }
        known.boot = boot;
        known.boot_nonce = nonce;
        known.info = member.info.clone();
        Response::Done
    }

    fn advance_epoch(&mut self, to: Epoch, floor: Hlc) -> Response {
        if to <= self.epoch {
            return Response::Refused(format!("epoch {to} is over: the epoch is {}", self.epoch));
        }
        if to.0 != self.epoch.0 + 1 {
            return Response::Refused(format!("epoch {to} would skip some after {}", self.epoch));
        }
        self.epoch = to;
        self.floors.begin(to, floor);
        Response::Done
    }
}

/// What a node is told that was removed.
pub(crate) const REMOVED: &str = "this node was removed from the cluster and may not come back, \
     because the others have gone on without it. Start it with an empty directory: it joins as a new member";

/// What a node is told whose start number has been used by another start.
pub(crate) fn start_number_used(boot: u64) -> String {
    format!(
        "this data directory is a copy or was restored from a backup: start number {boot} has \
         already been used, or a later start is missing from it. Start this node with an empty directory: it joins as a new member"
    )
}

/// Whether a start may take the place of the one that is agreed on: it counts further, and its directory
/// remembers that one.
pub(crate) fn follows(known_boot: u64, known_nonce: u64, boot: u64, earlier: &[u64]) -> bool {
    boot > known_boot && (known_boot == 0 || earlier.contains(&known_nonce))
}

fn not_started(member: &NewMember, stage: MemberStage) -> MemberView {
    MemberView {
        incarnation: member.incarnation,
        boot: 0,
        boot_nonce: 0,
        info: member.info.clone(),
        stage,
    }
}

fn same_directory(known: &MemberView, member: &NewMember) -> Response {
    if known.incarnation == member.incarnation {
        Response::Done
    } else {
        Response::Refused("another data directory has the same node id".to_owned())
    }
}

fn check_birth(
    cluster: ClusterId,
    config: &ClusterConfig,
    members: &[NewMember],
) -> Result<(), String> {
    if cluster.is_none() {
        return Err("a cluster cannot be born without an id".to_owned());
    }
    config.validate().map_err(|error| error.to_string())?;
    if members.is_empty() || members.len() > MEMBERS_MAX {
        return Err(format!("a cluster is born with 1 to {MEMBERS_MAX} members"));
    }
    let nodes: std::collections::BTreeSet<NodeId> = members
        .iter()
        .map(|member| member.incarnation.node_id())
        .collect();
    if nodes.len() != members.len() || nodes.contains(&NodeId(0)) {
        return Err("the first members are not distinct nodes".to_owned());
    }
    members
        .iter()
        .try_for_each(|member| check_info(&member.info))
}

/// Whether a node's words about itself are short enough to be kept by everybody.
///
/// # Errors
/// Says which one is too long.
pub fn check_info(info: &MemberInfo) -> Result<(), String> {
    let texts = [
        ("name", &info.name),
        ("peer address", &info.peer_addr),
        ("RESP address", &info.resp_addr),
        ("HTTP address", &info.http_addr),
        ("zone", &info.zone),
    ];
    for (what, text) in texts {
        if text.len() > MEMBER_TEXT_BYTES_MAX {
            return Err(format!(
                "the node's {what} has {} bytes: at most {MEMBER_TEXT_BYTES_MAX} are allowed",
                text.len()
            ));
        }
    }
    Ok(())
}
