//! Raft: openraft, run by our own executor, over our own log, state machine and messages.
//!
//! What we ask of openraft, and why (see [`timing`]): a restarted leader may not resume without an
//! election, because entries that it sent before its own sync may be lost with its power; and a
//! node asks with a pre-vote before it disturbs a leader.

mod chain;
mod log;
mod machine;
mod net;
mod timing;

use mds_types::NodeId;

use crate::rt::Rt;
use crate::state::{Command, Response};

pub use chain::Chain;
pub(crate) use log::{LogStore, OpenMode};
pub(crate) use machine::{Applied, Machine};
pub(crate) use net::{Net, Outbox, RaftReply, RaftRpc, Sender, answer};
pub use timing::RaftTiming;

openraft::declare_raft_types!(
    /// The types that Raft is built of.
    pub TypeConfig:
        D = Command,
        R = Response,
        NodeId = NodeId,
        Node = openraft::EmptyNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = Rt,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, Machine>;
pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, Vec<u8>>;

#[cfg(test)]
mod tests;
