//! What goes into a control part and comes out of it, as plain values.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use mds_storage::datadir::DataDirError;
use mds_types::{ClusterConfig, ClusterId, MemberInfo, NodeId};

use crate::gossip::{GossipCounters, GossipTiming};
use crate::raft::RaftTiming;
use crate::view::ClusterView;

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
        /// Agreed for the cluster's life.
        config: ClusterConfig,
        /// Refuse unless there are at least this many.
        expected_nodes: usize,
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
