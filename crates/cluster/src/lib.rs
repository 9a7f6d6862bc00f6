//! Who is reachable (gossip) and who is a member (Raft), as one watchable value.

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
    ControlOutputs,
};
pub use gossip::{GossipCounters, GossipTiming};
pub use hello::{Hello, HelloRefusal, check_hello};
pub use raft::RaftTiming;
pub use view::{ClusterView, MemberStage, MemberView, PeerView, RaftRole, RaftStatus, Standing};
