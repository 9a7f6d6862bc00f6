//! Who is reachable (gossip) and who is a member (Raft), as one watchable value.

pub mod view;

pub use view::{ClusterView, MemberStage, MemberView, PeerView, RaftRole, RaftStatus, Standing};
