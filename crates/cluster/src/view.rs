//! What a node knows of its cluster: one immutable value, replaced when anything changes.
//!
//! The data path reads nothing else about the cluster. Two kinds of truth stand side by side and are
//! never mixed: `members` and `topology` come from Raft and decide where data lives; `peers` comes
//! from gossip and only says whom it is worth asking right now.

use std::collections::BTreeMap;
use std::sync::Arc;

use mds_types::{
    ClusterConfig, ClusterId, Epoch, EpochFloors, IncarnationId, MemberInfo, NodeId, RequestId,
    RingStage, Rings, Topology, TopologyVersion,
};
use serde::{Deserialize, Serialize};

use crate::state::{Blocker, ClusterState, REMOVED, RequestFate};

use crate::raft::Chain;

/// Everything a node knows of its cluster.
#[derive(Clone, PartialEq, Debug)]
pub struct ClusterView {
    /// This node.
    pub me: NodeId,
    /// This node's own addresses and placement wishes.
    pub my_info: MemberInfo,
    /// This start of this node: grows with each start of the data directory.
    pub my_boot: u64,
    /// How this node stands towards the cluster.
    pub standing: Standing,
    /// The cluster, or [`ClusterId::NONE`] before this node is part of one.
    pub cluster: ClusterId,
    /// The agreed configuration, once the cluster is born and this node has learnt it.
    pub config: Option<ClusterConfig>,
    /// The epoch, as this node last heard.
    pub epoch: Epoch,
    /// The present ring. Version 0 with no members until it is formed.
    pub topology: Arc<Topology>,
    /// The present ring and the next one, and how far the change is.
    pub rings: Arc<Rings>,
    /// What ties epochs to versions.
    pub floors: Arc<EpochFloors>,
    /// The change of the ring, and whom it waits for.
    pub transition: TransitionView,
    /// Members, by Raft.
    pub members: BTreeMap<NodeId, MemberView>,
    /// Other nodes, by gossip. A member that is absent here was never heard of since this start.
    pub peers: BTreeMap<NodeId, PeerView>,
    /// Raft, as seen from here.
    pub raft: RaftStatus,
}

/// How far a change of the ring is, for people and operators.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TransitionView {
    /// The version of the rings that this was taken at.
    pub version: TopologyVersion,
    /// `Stable`: none is under way.
    pub stage: RingStage,
    /// Who asked for the one under way.
    pub request: Option<RequestId>,
    /// What it does, in words.
    pub change: String,
    /// The members that it waits for, or that the stable ring waits for until it is settled.
    pub blocked_by: Vec<Blocker>,
    /// Members that it waits for no more.
    pub excluded: Vec<NodeId>,
    /// The latest requests and what became of them, the newest last.
    pub requests: Vec<(RequestId, RequestFate)>,
}

/// How this node stands towards its cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Not part of a cluster: `mydatastore init` has not been run, or no member was found yet.
    Unborn,
    /// Part of a cluster, but this start has not been acknowledged by it yet. Serves nothing.
    Joining,
    /// A member that holds no data: it coordinates requests, but is no replica.
    Waiting,
    /// A member on the ring: serves everything.
    Active,
    /// Refused by the cluster for good, with the reason: a cloned or restored directory, a foreign
    /// cluster. The process must stop serving.
    Refused(String),
}

impl Standing {
    /// Whether it is refused because the cluster has removed it: then, and only then, may another node begin in its place.
    pub fn is_removed(&self) -> bool {
        matches!(self, Standing::Refused(reason) if reason == REMOVED)
    }
}

/// A member, as Raft's log says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberView {
    /// Its data directory.
    pub incarnation: IncarnationId,
    /// Its latest acknowledged start.
    pub boot: u64,
    /// Drawn at that start; tells two copies of one directory apart.
    pub boot_nonce: u64,
    /// Its addresses, zone and weight.
    pub info: MemberInfo,
    /// On the ring, or waiting for a ring change.
    pub stage: MemberStage,
}

/// Whether a member holds data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberStage {
    /// On the ring.
    Active,
    /// Known, but not on the ring.
    Waiting,
    /// On the next ring, and getting its data.
    Joining,
    /// On the ring, and handing its data over.
    Leaving,
    /// Not on the ring any more: it holds nothing and may be stopped. Forgotten once it is gone.
    Left,
}

/// Another node, as gossip last heard.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PeerView {
    /// Whether gossip holds it for alive.
    pub alive: bool,
    /// Its start, as it says.
    pub boot: u64,
    /// The cluster it says it is part of.
    pub cluster: ClusterId,
    /// What it says of itself.
    pub info: MemberInfo,
}

/// What this node is in Raft.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RaftRole {
    /// No Raft yet.
    #[default]
    None,
    /// Receives the log, has no vote.
    Learner,
    /// Follows a leader.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// Raft, as seen from this node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct RaftStatus {
    /// This node's role.
    pub role: RaftRole,
    /// The leader it knows of.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: u64,
    /// Index of the last entry it applied.
    pub applied: u64,
    /// Over all entries up to that one: the same on every node that has applied as many. None before the
    /// first entry, and behind a snapshot of a version that did not keep it.
    pub chain: Option<Chain>,
    /// Voters.
    pub voters: Vec<NodeId>,
}

impl TransitionView {
    /// What an agreed state says of it.
    pub fn of(state: &ClusterState) -> TransitionView {
        let open = state.transition.as_ref();
        let requests = state.requests.iter();
        TransitionView {
            version: state.topology.version,
            stage: open.map_or(RingStage::Stable, |open| open.stage),
            request: open.map(|open| open.request),
            change: open.map_or_else(String::new, |open| open.change.to_string()),
            blocked_by: state.blocked_by(),
            excluded: open.map_or_else(Vec::new, |open| open.excluded.iter().copied().collect()),
            requests: requests.map(|known| (known.request, known.fate)).collect(),
        }
    }
}

impl ClusterView {
    /// A node that is part of nothing yet.
    pub fn unborn(me: NodeId, my_info: MemberInfo, my_boot: u64) -> ClusterView {
        ClusterView {
            me,
            my_info,
            my_boot,
            standing: Standing::Unborn,
            cluster: ClusterId::NONE,
            config: None,
            epoch: Epoch(0),
            topology: Arc::new(Topology::default()),
            rings: Arc::default(),
            floors: Arc::default(),
            transition: TransitionView::default(),
            members: BTreeMap::new(),
            peers: BTreeMap::new(),
            raft: RaftStatus::default(),
        }
    }

    /// How to reach a node: what it last said by gossip, else what Raft remembers.
    pub fn info(&self, node: NodeId) -> Option<&MemberInfo> {
        if node == self.me {
            return Some(&self.my_info);
        }
        let peer = self.peers.get(&node).map(|peer| &peer.info);
        peer.or_else(|| self.members.get(&node).map(|member| &member.info))
    }

    /// Whether gossip holds a node for alive. A node always holds itself for alive.
    pub fn is_alive(&self, node: NodeId) -> bool {
        node == self.me || self.peers.get(&node).is_some_and(|peer| peer.alive)
    }
}
