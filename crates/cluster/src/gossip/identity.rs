//! What a node is called in gossip, and its form in a datagram.
//!
//! An identity is the data directory, its start number and a generation that grows when the node
//! has to refute its own death or becomes part of a cluster. Addresses travel with the identity of a
//! sender and of a member that is talked about, but not where an identity is only a destination:
//! so a datagram stays within one Ethernet frame.

use std::sync::Arc;

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Identity, Incarnation, Member, Message, State};
use mds_types::{ClusterId, IncarnationId, MemberInfo, NodeId};
use serde::{Deserialize, Serialize};

/// Bytes of an encoded [`MemberInfo`] at most: two identities and a member have to fit one
/// datagram. Checked when a node starts.
pub(crate) const INFO_BYTES_MAX: usize = 380;

/// A node in gossip.
#[derive(Clone, Debug)]
pub(crate) struct Id {
    pub(crate) incarnation: IncarnationId,
    /// The start number; greater, if the node has to outbid a copy of its directory.
    pub(crate) boot: u64,
    pub(crate) generation: u32,
    pub(crate) cluster: ClusterId,
    pub(crate) info: Arc<MemberInfo>,
}

impl Id {
    pub(crate) fn node(&self) -> NodeId {
        self.incarnation.node_id()
    }

    fn rank(&self) -> (u64, u32, IncarnationId) {
        (self.boot, self.generation, self.incarnation)
    }
}

/// What was said does not matter for who said it.
impl PartialEq for Id {
    fn eq(&self, other: &Id) -> bool {
        self.rank() == other.rank()
    }
}

impl Eq for Id {}

impl Identity for Id {
    type Addr = NodeId;

    /// The next generation: a node that is wrongly held for dead comes back as this.
    fn renew(&self) -> Option<Id> {
        let generation = self.generation.checked_add(1)?;
        Some(Id {
            generation,
            ..self.clone()
        })
    }

    fn addr(&self) -> NodeId {
        self.node()
    }

    /// A later start wins, whatever generation the earlier one had reached: start numbers are
    /// durable, generations are not.
    fn win_addr_conflict(&self, adversary: &Id) -> bool {
        self.rank() > adversary.rank()
    }
}

/// An identity with everything it says.
#[derive(Serialize, Deserialize)]
struct FullId {
    incarnation: IncarnationId,
    boot: u64,
    generation: u32,
    cluster: ClusterId,
    info: MemberInfo,
}

/// An identity as a destination.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct BareId {
    incarnation: IncarnationId,
    boot: u64,
    generation: u32,
}

impl From<&Id> for FullId {
    fn from(id: &Id) -> FullId {
        FullId {
            incarnation: id.incarnation,
            boot: id.boot,
            generation: id.generation,
            cluster: id.cluster,
            info: (*id.info).clone(),
        }
    }
}

impl From<FullId> for Id {
    fn from(full: FullId) -> Id {
        Id {
            incarnation: full.incarnation,
            boot: full.boot,
            generation: full.generation,
            cluster: full.cluster,
            info: Arc::new(full.info),
        }
    }
}

impl From<&Id> for BareId {
    fn from(id: &Id) -> BareId {
        BareId {
            incarnation: id.incarnation,
            boot: id.boot,
            generation: id.generation,
        }
    }
}

impl From<BareId> for Id {
    fn from(bare: BareId) -> Id {
        Id {
            incarnation: bare.incarnation,
            boot: bare.boot,
            generation: bare.generation,
            cluster: ClusterId::NONE,
            info: Arc::default(),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct WireHeader {
    src: FullId,
    src_incarnation: Incarnation,
    dst: BareId,
    message: Message<BareId>,
}

#[derive(Serialize, Deserialize)]
struct WireMember {
    id: FullId,
    incarnation: Incarnation,
    state: State,
}

/// Why a datagram could not be written or read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum CodecError {
    #[error("no room left in the datagram")]
    Full,
    #[error("not a gossip message: {0}")]
    Malformed(#[from] postcard::Error),
    #[error("a node describes itself in more than {INFO_BYTES_MAX} bytes")]
    TooLong,
}

/// How identities and headers are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdCodec;

impl IdCodec {
    pub(crate) fn encode_id(id: &Id) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_stdvec(&FullId::from(id))
    }

    pub(crate) fn decode_id(bytes: &[u8]) -> Result<Id, CodecError> {
        checked(postcard::from_bytes::<FullId>(bytes)?)
    }
}

fn checked(full: FullId) -> Result<Id, CodecError> {
    if info_bytes(&full.info) > INFO_BYTES_MAX {
        return Err(CodecError::TooLong);
    }
    Ok(full.into())
}

/// Bytes that `info` takes in a datagram, rounded up.
pub(crate) fn info_bytes(info: &MemberInfo) -> usize {
    let texts = [
        &info.name,
        &info.peer_addr,
        &info.resp_addr,
        &info.http_addr,
        &info.zone,
    ];
    // Each text has a length of one or two bytes, the weight takes up to five.
    texts.iter().map(|text| text.len() + 2).sum::<usize>() + 5
}

fn put<T: Serialize>(value: &T, mut buf: impl BufMut) -> Result<(), CodecError> {
    let bytes = postcard::to_stdvec(value)?;
    if bytes.len() > buf.remaining_mut() {
        return Err(CodecError::Full);
    }
    buf.put_slice(&bytes);
    Ok(())
}

fn take<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<(T, usize), CodecError> {
    let (value, rest) = postcard::take_from_bytes(bytes)?;
    Ok((value, bytes.len() - rest.len()))
}

fn map_message<A, B>(message: Message<A>, map: impl Fn(A) -> B) -> Message<B> {
    match message {
        Message::Ping(number) => Message::Ping(number),
        Message::Ack(number) => Message::Ack(number),
        Message::PingReq {
            target,
            probe_number,
        } => Message::PingReq {
            target: map(target),
            probe_number,
        },
        Message::IndirectPing {
            origin,
            probe_number,
        } => Message::IndirectPing {
            origin: map(origin),
            probe_number,
        },
        Message::IndirectAck {
            target,
            probe_number,
        } => Message::IndirectAck {
            target: map(target),
            probe_number,
        },
        Message::ForwardedAck {
            origin,
            probe_number,
        } => Message::ForwardedAck {
            origin: map(origin),
            probe_number,
        },
        Message::Announce => Message::Announce,
        Message::Feed => Message::Feed,
        Message::Gossip => Message::Gossip,
        Message::Broadcast => Message::Broadcast,
        Message::TurnUndead => Message::TurnUndead,
    }
}

impl Codec<Id> for IdCodec {
    type Error = CodecError;

    fn encode_header(&mut self, header: &Header<Id>, buf: impl BufMut) -> Result<(), CodecError> {
        let wire = WireHeader {
            src: FullId::from(&header.src),
            src_incarnation: header.src_incarnation,
            dst: BareId::from(&header.dst),
            message: map_message(header.message.clone(), |id| BareId::from(&id)),
        };
        put(&wire, buf)
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Id>, CodecError> {
        let (wire, used) = take::<WireHeader>(buf.chunk())?;
        buf.advance(used);
        Ok(Header {
            src: checked(wire.src)?,
            src_incarnation: wire.src_incarnation,
            dst: wire.dst.into(),
            message: map_message(wire.message, Id::from),
        })
    }

    fn encode_member(&mut self, member: &Member<Id>, buf: impl BufMut) -> Result<(), CodecError> {
        let wire = WireMember {
            id: FullId::from(member.id()),
            incarnation: member.incarnation(),
            state: member.state(),
        };
        put(&wire, buf)
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Id>, CodecError> {
        let (wire, used) = take::<WireMember>(buf.chunk())?;
        buf.advance(used);
        Ok(Member::new(checked(wire.id)?, wire.incarnation, wire.state))
    }
}
