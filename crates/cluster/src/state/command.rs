//! The entries of Raft's log.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use mds_types::{
    ClusterConfig, ClusterId, Epoch, Hlc, IncarnationId, MemberInfo, NodeId, RequestId,
    TopologyVersion,
};
use serde::{Deserialize, Serialize};

/// A data directory and what its node says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewMember {
    /// The directory; the node id is cut from it.
    pub incarnation: IncarnationId,
    /// Addresses, zone, weight.
    pub info: MemberInfo,
}

/// N, R and W.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Quorums {
    /// N.
    pub replicas: u8,
    /// R, unless a request says otherwise.
    pub read: u8,
    /// W, unless a request says otherwise.
    pub write: u8,
}

/// A change of the ring: any number of nodes come and go at once. Replacing a node is one joining while
/// the other leaves or is removed as dead.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RingChange {
    /// Waiting members that come onto the ring, with the weight they ask for.
    pub join: BTreeSet<NodeId>,
    /// Members that hand over what they hold, and leave the ring.
    pub leave: BTreeSet<NodeId>,
    /// Members that are taken for dead for good: nobody waits for them, and they may not come back.
    pub remove_dead: BTreeSet<NodeId>,
    /// New weights, of members that stay or join.
    pub reweigh: BTreeMap<NodeId, u32>,
    /// N, R and W from now on.
    pub quorums: Option<Quorums>,
    /// Remove the dead even where data may be lost with them.
    pub forced: bool,
}

impl RingChange {
    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.join.is_empty()
            && self.leave.is_empty()
            && self.remove_dead.is_empty()
            && self.reweigh.is_empty()
            && self.quorums.is_none()
    }
}

impl fmt::Display for RingChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (what, nodes) in [
            ("join", &self.join),
            ("leave", &self.leave),
            ("remove", &self.remove_dead),
        ] {
            for node in nodes {
                write!(f, "{separator}{what} {node}")?;
                separator = ", ";
            }
        }
        for (node, weight) in &self.reweigh {
            write!(f, "{separator}weigh {node} {weight}")?;
            separator = ", ";
        }
        if let Some(quorums) = &self.quorums {
            let (n, r, w) = (quorums.replicas, quorums.read, quorums.write);
            write!(f, "{separator}n {n} r {r} w {w}")?;
        }
        Ok(())
    }
}

/// An entry of Raft's log. New commands are added at the end: the position is the encoding.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Forms the ring of all `members`, version 1.
    Born {
        /// The identity drawn at `init`.
        cluster: ClusterId,
        /// Agreed for the cluster's life, but for N, R and W.
        config: ClusterConfig,
        /// The first members.
        members: Vec<NewMember>,
    },
    /// Makes a node a member that waits for a ring change. A known member stays as it is.
    AddMember {
        /// The node.
        member: NewMember,
    },
    /// A member has started.
    Announce {
        /// Its directory and what it says of itself from now on.
        member: NewMember,
        /// The directory's start number.
        boot: u64,
        /// Drawn at that start.
        nonce: u64,
        /// Drawn at the directory's starts before it. A directory that does not remember the start which
        /// the cluster acknowledged last is not the one that was started then.
        earlier: Vec<u64>,
    },
    /// Raises the epoch and leaves its floor at that of the epoch before. Only in old logs.
    AdvanceEpoch {
        /// To this; only one more than the present epoch is accepted.
        to: Epoch,
    },
    /// Raises the epoch.
    AdvanceEpochWithFloor {
        /// To this; only one more than the present epoch is accepted.
        to: Epoch,
        /// Its floor; raised to that of the epoch before if it is smaller.
        floor: Hlc,
    },
    /// Begins a change of the ring, once everybody has acknowledged the present one.
    BeginTransition {
        /// Names it: repeated, it is the same change.
        request: RequestId,
        /// What is to change.
        change: RingChange,
    },
    /// A member's requests begun under older versions have ended, and it will remember this version.
    Ack {
        /// The member.
        member: NodeId,
        /// The topology version.
        version: TopologyVersion,
    },
    /// A member of the next ring holds what it gains, verified.
    Ready {
        /// The member.
        member: NodeId,
        /// The topology version that it verified under.
        version: TopologyVersion,
    },
    /// Enters the next stage, if its conditions are met.
    StepTransition {
        /// The topology version of the stage to leave.
        from: TopologyVersion,
        /// The floor of the epoch that the step may begin.
        floor: Hlc,
    },
    /// Calls a change off.
    AbortTransition {
        /// The change.
        request: RequestId,
    },
    /// Waits for a member no more, during a change.
    Exclude {
        /// The change.
        request: RequestId,
        /// The member.
        node: NodeId,
        /// Even where data may be lost with it.
        forced: bool,
    },
    /// Strikes out a member that is on no ring, for good.
    RemoveMember {
        /// The member.
        node: NodeId,
    },
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Born {
                cluster, members, ..
            } => {
                write!(f, "born {cluster} with {} members", members.len())
            }
            Command::AddMember { member } => {
                write!(f, "add member {}", member.incarnation.node_id())
            }
            Command::Announce { member, boot, .. } => {
                write!(f, "start {boot} of {}", member.incarnation.node_id())
            }
            Command::AdvanceEpoch { to } | Command::AdvanceEpochWithFloor { to, .. } => {
                write!(f, "epoch {to}")
            }
            Command::BeginTransition { change, .. } => write!(f, "change the ring: {change}"),
            Command::Ack { member, version } => write!(f, "{member} acknowledges {version}"),
            Command::Ready { member, version } => write!(f, "{member} is ready at {version}"),
            Command::StepTransition { from, .. } => write!(f, "step from {from}"),
            Command::AbortTransition { request } => write!(f, "abort {request}"),
            Command::Exclude { node, .. } => write!(f, "exclude {node}"),
            Command::RemoveMember { node } => write!(f, "remove member {node}"),
        }
    }
}

/// What a command came to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Response {
    /// Carried out, or nothing had to be done.
    Done,
    /// Not carried out, and it makes no sense to repeat it as it is.
    Refused(String),
    /// Not carried out now: something else has to happen first.
    NotYet(String),
}
