//! Who is reachable (gossip) and who is a member (Raft), as one watchable value.
//!
//! The entry point is [`Control`]: a value that takes datagrams, messages and the time, and gives
//! out datagrams, messages and a [`ClusterView`] whenever it changed. It owns no thread, no socket
//! and no clock; the only I/O it does itself is on the [`mds_storage::Disk`] that it is given. So the
//! deployed node and the simulator run the same code, Raft included:
//!
//! - [`exec`] and [`rt`]: the executor that runs Raft's tasks in turns, and Raft's runtime on it;
//! - [`state`]: what the cluster agrees on: members, starts, ring, epoch. Pure;
//! - `raft`: openraft's log, state machine and network, on disk and in messages;
//! - `gossip`: SWIM, by foca;
//! - [`control`]: birth, joining, announcing, leading; and what is shown of it;
//! - [`hello`]: whether a data connection's other side is who it should be.

pub mod control;
pub mod exec;
mod gossip;
pub mod hello;
mod raft;
mod random;
pub mod rt;
pub mod state;
pub mod view;
mod whole_file;
mod wire;

pub use control::{
    AdminError, AdminReply, AdminRequest, Control, ControlConfig, ControlCounters, ControlError,
    ControlOutputs, RingMode, RingRequest,
};
pub use gossip::{GossipCounters, GossipTiming};
pub use hello::{Hello, HelloRefusal, check_hello};
pub use raft::{Chain, RaftTiming};
pub use state::{Quorums, RequestFate, RingChange};
pub use view::{
    ClusterView, MemberStage, MemberView, PeerView, RaftRole, RaftStatus, Standing, TransitionView,
};
