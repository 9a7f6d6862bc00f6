//! What goes into a control part and comes out of it, as plain values.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use mds_storage::datadir::DataDirError;
use mds_types::{ClusterConfig, ClusterId, MemberInfo, NodeId, RequestId};
use serde::{Deserialize, Serialize};

use crate::gossip::{GossipCounters, GossipTiming};
use crate::raft::RaftTiming;
use crate::state::{Quorums, RingChange};
use crate::view::{ClusterView, TransitionView};

/// How a control part is set up. Node configuration: may differ from node to node.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// What this node says of itself.
    pub info: MemberInfo,
    /// `host:port` of nodes to try first, for gossip. This node's own may be among them.
    pub seeds: Vec<String>,
    /// Raft's clocks.
    pub raft: RaftTiming,
    /// Gossip's clocks.
    pub gossip: GossipTiming,
    /// How often this node, when it leads, advances the epoch, in milliseconds. `None`: never.
    pub epoch_interval_ms: Option<u64>,
    /// Where all randomness comes from: entropy in production, the seed in the simulator.
    pub seed: u64,
    /// Whether this node, when it leads, makes nodes without a cluster members that wait.
    pub auto_add_members: bool,
    /// Who decides on changes of the ring.
    pub ring_mode: RingMode,
}

/// Who decides on changes of the ring. All nodes of a cluster should have the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RingMode {
    /// Only administrators do.
    #[default]
    Operator,
    /// The leader lets waiting members join as they come.
    Auto {
        /// It also removes members that gossip has held for dead for this long without a break, in
        /// milliseconds, where nothing is lost by it. `None`: never.
        remove_after_ms: Option<u64>,
    },
}

/// Why a control part cannot be opened. The process has to stop.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),
    /// The disk failed, or what lies on it is damaged.
    #[error("the node's control state cannot be read: {0}")]
    Storage(#[from] io::Error),
    /// The data directory cannot join the cluster.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// Raft did not start.
    #[error("raft did not start: {0}")]
    Raft(String),
}

/// What an administrator asks of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AdminRequest {
    /// Form a cluster of all nodes without a cluster that gossip sees alive, this one included.
    Init {
        /// Agreed for the cluster's life, but for N, R and W.
        config: ClusterConfig,
        /// Refuse unless there are at least this many.
        expected_nodes: usize,
    },
    /// Change the ring, or what is under way. Whatever node is asked has its leader see to it.
    Ring {
        /// Names the request: repeated with the same name, it is the same request. For
        /// [`RingRequest::Abort`] and [`RingRequest::Exclude`] the name of the change that they are about.
        request: RequestId,
        /// What is asked for.
        ask: RingRequest,
    },
    /// How far the change of the ring is, as far as this node knows.
    TransitionStatus,
}

/// What an administrator may ask about the ring. New kinds are added at the end: the position is the
/// encoding.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RingRequest {
    /// Let waiting members come onto the ring.
    Join {
        /// Them.
        nodes: BTreeSet<NodeId>,
    },
    /// Let members hand over what they hold and leave the ring.
    Leave {
        /// Them.
        nodes: BTreeSet<NodeId>,
    },
    /// Remove a dead member from the ring and let a waiting one take its place.
    Replace {
        /// Dead for good.
        dead: NodeId,
        /// Waiting.
        with: NodeId,
        /// Even if `dead` seems to live, or data may be lost with it.
        forced: bool,
    },
    /// Remove a dead member: from the ring by a change of it, or from the list of those that wait.
    Remove {
        /// Dead for good.
        node: NodeId,
        /// Even if it seems to live, or data may be lost with it.
        forced: bool,
    },
    /// Change shares of the data.
    Reweigh {
        /// The new weight of each member named.
        weights: BTreeMap<NodeId, u32>,
    },
    /// Change N, R and W.
    ChangeQuorums(Quorums),
    /// Any number of these at once.
    Change(RingChange),
    /// Call a change off, while it is not past the point of no return.
    Abort,
    /// Wait for a member no more, during a change.
    Exclude {
        /// The member.
        node: NodeId,
        /// Even if it seems to live, or data may be lost with it.
        forced: bool,
    },
}

/// The answer to an administrator.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AdminReply {
    /// The cluster is born.
    Born {
        /// Its identity.
        cluster: ClusterId,
        /// Its first members.
        members: Vec<NodeId>,
    },
    /// The request has been taken up, now or before; how the rings stand.
    Accepted(TransitionView),
    /// How the rings stand, as far as this node knows.
    Status(TransitionView),
}

/// Why an administrator's request was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AdminError {
    /// A cluster is formed once.
    #[error("this node is part of cluster {0} already")]
    AlreadyFormed(ClusterId),
    /// A node of a cluster is in reach: this node will become part of that.
    #[error(
        "a node of cluster {cluster} is in reach ({node}): this node will join it. To form a \
         cluster of its own, take its address out of the seed list"
    )]
    ClusterInReach {
        /// That cluster.
        cluster: ClusterId,
        /// One of its nodes.
        node: String,
    },
    /// Fewer nodes than the administrator expects.
    #[error(
        "{expected} nodes are expected, {} are seen: {}. Start the others, or check their seed lists",
        seen.len(),
        seen.join(", ")
    )]
    TooFewNodes {
        /// As requested.
        expected: usize,
        /// Name and address of each node that is alive and without a cluster.
        seen: Vec<String>,
    },
    /// The configuration is invalid.
    #[error("{0}")]
    Invalid(String),
    /// The request was taken up and goes on, but is not done yet.
    #[error("cluster {0} is being formed and that goes on by itself: see the status")]
    StillForming(ClusterId),
    /// This node stops.
    #[error("this node has stopped: {0}")]
    Stopped(String),
    /// The cluster has not been formed, or this node is not part of it.
    #[error("this node is part of no cluster: form one with init first, or give it a seed")]
    NoCluster,
    /// The change is not possible as it was asked for.
    #[error("{0}")]
    Refused(String),
    /// The change cannot begin yet; nothing has been done.
    #[error("{0}. Nothing has been done; repeat the request when that is over")]
    NotYet(String),
    /// Nobody led while the request waited, or nobody that could be reached.
    #[error(
        "no leader has answered, so it is not certain what has become of the request: repeat it \
         with the same request id, through any node"
    )]
    NoLeader,
    /// Too many requests wait.
    #[error("too many administration requests wait: try again")]
    Busy,
}

/// What a turn brought.
#[derive(Debug, Default)]
pub struct ControlOutputs {
    /// Gossip, for UDP: (`host:port`, bytes).
    pub datagrams: Vec<(String, Bytes)>,
    /// Control messages, each a whole: (node, its `host:port`, bytes). May be lost or reordered.
    pub messages: Vec<(NodeId, String, Bytes)>,
    /// The view, if it changed.
    pub view: Option<Arc<ClusterView>>,
    /// Answers to administration requests, by the id they came with.
    pub admin: Vec<(u64, Result<AdminReply, AdminError>)>,
    /// Call [`crate::Control::sync_storage`] soon: others wait for it.
    pub wants_sync: bool,
    /// The control part has failed and stopped; so has the process to.
    pub fatal: Option<String>,
}

/// What was refused or dropped since this start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ControlCounters {
    /// Gossip's.
    pub gossip: GossipCounters,
    /// Messages of another cluster.
    pub foreign_messages: u64,
    /// Messages that are none of ours, or not for this node.
    pub malformed_messages: u64,
    /// Messages of starts that are over.
    pub stale_messages: u64,
    /// Messages not sent or not handled because too many waited, or no address was known.
    pub shed_messages: u64,
}
