//! Control messages between nodes: one self-contained envelope for each.
//!
//! An envelope says which cluster it belongs to, from which start of which node it comes and for
//! whom it is, so that it can be judged without knowing the connection it came through: a message
//! of another cluster, of an older start, or of a copied data directory is dropped.

use mds_types::{ClusterConfig, ClusterId, IncarnationId, NodeId, RequestId};
use serde::{Deserialize, Serialize};

use crate::control::RingRequest;
use crate::raft::{RaftReply, RaftRpc};
use crate::state::{Command, NewMember, Response};
use crate::view::TransitionView;

/// First byte of an encoded envelope.
const ENVELOPE_FORMAT_2: u8 = 2;

/// Bytes of one control message at most; longer ones are dropped. A snapshot of the largest
/// cluster stays well below.
pub(crate) const CONTROL_MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// A message with what is needed to judge it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) cluster: ClusterId,
    pub(crate) from: NodeId,
    pub(crate) from_boot: u64,
    pub(crate) from_nonce: u64,
    /// Where an answer finds the sender, should gossip not know it yet.
    pub(crate) reply_addr: String,
    /// The sender's physical clock, microseconds since 1970: floors of epochs are made of these.
    pub(crate) clock_us: u64,
    pub(crate) to: NodeId,
    /// The number of the receiver's start that the sender knows to be agreed on; 0 if none is. Whoever
    /// neither has it nor remembers it runs on a copy of the receiver's directory, and must not answer
    /// in its name: not even once, for an answer to Raft counts.
    pub(crate) to_nonce: u64,
    pub(crate) body: Body,
}

/// What a message says. New kinds are added at the end: the position is the encoding.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Body {
    /// A question of Raft.
    RaftRequest { id: u64, rpc: RaftRpc },
    /// Its answer.
    RaftReply { id: u64, reply: RaftReply },
    /// Become part of the envelope's cluster. At birth with the plan, later without.
    Invite { plan: Option<BirthPlan> },
    /// The answer: the cluster that the invited node is part of now.
    Invited { cluster: ClusterId },
    /// Have this agreed on, if you lead.
    Propose { id: u64, command: Command },
    /// What it came to.
    Proposed { id: u64, outcome: Proposed },
    /// Your start is over, as far as I know: have yourself judged.
    SupersededStart,
    /// This start of yours lacks an entry that your node had acknowledged to me.
    LogReverted { boot: u64, nonce: u64, index: u64 },
    /// See to this request of an administrator, if you lead.
    Ask {
        id: u64,
        request: RequestId,
        ask: RingRequest,
    },
    /// What it came to.
    Asked { id: u64, outcome: RingOutcome },
    /// The directory that you run on was removed from the cluster.
    Removed { incarnation: IncarnationId },
    /// Is this start of mine over, as far as you know? Whoever says anything to a start says which one it knows of.
    WhichStart,
}

/// What an administrator's request came to at the node that was asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum RingOutcome {
    /// Carried out, now or before. With how the rings stand after it.
    Done(TransitionView),
    /// It makes no sense to repeat it as it is.
    Refused(String),
    /// Something else has to happen first.
    NotYet(String),
    /// Somebody else leads, or nobody.
    NotLeader,
    /// It may or may not have been agreed on.
    Unknown,
}

/// The answer to a proposal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Proposed {
    /// Agreed on, with this result.
    Applied(Response),
    /// Ask this one, if anybody is known to lead.
    NotLeader(Option<NodeId>),
    /// It may or may not have been agreed on.
    Unknown,
}

/// Everything needed to form a cluster, written down before the first step.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct BirthPlan {
    pub(crate) cluster: ClusterId,
    pub(crate) config: ClusterConfig,
    /// The node that was told to form the cluster. It alone initialises Raft.
    pub(crate) founder: NodeId,
    /// The first voters.
    pub(crate) voters: Vec<NodeId>,
    pub(crate) members: Vec<NewMember>,
}

impl BirthPlan {
    pub(crate) fn includes(&self, node: NodeId) -> bool {
        self.members
            .iter()
            .any(|member| member.incarnation.node_id() == node)
    }

    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.members
            .iter()
            .map(|member| member.incarnation.node_id())
            .collect()
    }

    pub(crate) fn peer_addr(&self, node: NodeId) -> Option<&str> {
        let member = self
            .members
            .iter()
            .find(|member| member.incarnation.node_id() == node)?;
        Some(&member.info.peer_addr)
    }
}

impl Envelope {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_extend(self, vec![ENVELOPE_FORMAT_2])
    }

    /// Reads an envelope; anything else is `None`.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Envelope> {
        if bytes.len() > CONTROL_MESSAGE_BYTES_MAX {
            return None;
        }
        match bytes.split_first() {
            Some((&ENVELOPE_FORMAT_2, rest)) => match postcard::take_from_bytes(rest) {
                Ok((envelope, [])) => Some(envelope),
                _ => None,
            },
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_envelope_survives_the_way() {
        let envelope = Envelope {
            cluster: ClusterId(7),
            from: NodeId(1),
            from_boot: 2,
            from_nonce: 3,
            reply_addr: "host:1".to_owned(),
            clock_us: 5,
            to: NodeId(4),
            to_nonce: 5,
            body: Body::Invited {
                cluster: ClusterId(7),
            },
        };
        let bytes = envelope.encode().unwrap();
        let read = Envelope::decode(&bytes).unwrap();
        assert_eq!(
            (read.from, read.to, read.from_boot),
            (NodeId(1), NodeId(4), 2)
        );
        assert!(matches!(read.body, Body::Invited { cluster } if cluster == ClusterId(7)));
        assert!(Envelope::decode(&bytes[..bytes.len() - 1]).is_none());
        assert!(Envelope::decode(&[&bytes[..], b"x"].concat()).is_none());
        assert!(Envelope::decode(&[]).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Envelope::decode(&bytes);
            let mut framed = vec![ENVELOPE_FORMAT_2];
            framed.extend_from_slice(&bytes);
            let _ = Envelope::decode(&framed);
        }
    }
}
