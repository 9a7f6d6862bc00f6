//! Everything that can happen in the simulated world, one value each.

use std::sync::Arc;

use bytes::Bytes;
use mds_cluster::ClusterView;
use mds_node::api::{Outcome, Request, RequestError};
use mds_node::store_io::{MergeResult, ReadQuery, StoreDone, Ticket};
use mds_types::NodeId;

use crate::faults::{Action, Traffic};
use crate::network::{ConnId, Side};
use crate::trace::Trace;

/// What happens.
#[derive(Debug)]
pub(crate) enum Event {
    /// Something within a process. Void if that start of the node is over.
    Node {
        node: usize,
        life: u64,
        event: NodeEvent,
    },
    /// A gossip datagram arrives at a machine.
    Datagram { to: usize, bytes: Bytes },
    /// A control message arrives at a machine.
    Message { to: usize, bytes: Bytes },
    /// A part of a stream arrives at one side of its connection.
    Stream { conn: ConnId, to: Side, part: Part },
    /// What waits on a stream is sent again.
    Resend { conn: ConnId, to: Side },
    /// A client's request arrives at a node.
    Request {
        node: usize,
        from: Asker,
        /// In a box, as all that is large: events are moved about a lot.
        request: Box<Request>,
    },
    /// Something reaches a client.
    Client { client: usize, event: ClientEvent },
    /// A machine starts the node, if it does not run.
    Start { node: usize },
    /// An administrator forms the cluster, through this node.
    Init { node: usize },
    /// The administrator looks after the ring.
    Administer,
    /// A large fault.
    Act(Action),
    /// The end of a standstill of a process.
    Resume { node: usize, life: u64 },
    /// The end of a large fault.
    Undo(Undo),
}

/// What ends a large fault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Undo {
    /// A cut is mended.
    Cut(Traffic, Vec<(usize, usize)>),
    /// A link is as fast as the others again.
    SlowLink((usize, usize)),
    /// The second of these reads again what the first sends it.
    SlowConsumer((usize, usize)),
    /// The copy beside its original is removed.
    Clone,
    /// A machine's disk is as fast as others again.
    SlowDisk(usize),
    /// Room on a machine's disk again.
    DiskFull(usize),
    /// A machine's disk can be read again.
    ReadError(usize),
    /// A machine's wall clock is right again, as right as it was.
    Clock(usize),
}

/// What happens within a process.
#[derive(Debug)]
pub(crate) enum NodeEvent {
    /// The data loop's timer.
    DataTimer,
    /// The data loop has worked off its inputs: everything leaves.
    EndTurn,
    /// The control loop hands a new view to the data loop.
    View(Arc<ClusterView>),
    /// The data loop dials a peer.
    Dial(NodeId),
    /// A handshake has taken too long.
    DialTimeout(ConnId),
    /// A socket takes bytes again.
    Writable(ConnId),
    /// The store is opened for so many partitions: the cluster is born.
    OpenStore(u16),
    /// The store's thread takes what waits.
    StoreBegin,
    /// The disk has done it.
    StoreFinish,
    /// The store's thread tells the data loop.
    StoreDone(Box<StoreDone>),
    /// The store's thread has had nothing to do for a while.
    StoreIdle { seq: u64 },
    /// The thread that walks answers a question of anti-entropy.
    Walk(Box<(Ticket, ReadQuery)>),
    /// The flusher works.
    Flush,
    /// The control loop works off its inputs.
    ControlTurn,
    /// The control loop's timer.
    ControlTimer,
    /// The disk has synced Raft's log.
    ControlSync,
}

/// What travels on a stream.
#[derive(Clone, Debug)]
pub(crate) enum Part {
    /// The dialler says who it is.
    Hello(Bytes),
    /// The acceptor's answer: nothing, or why not.
    Answer(Result<(), String>),
    /// Data.
    Bytes(Bytes),
    /// The connection has ended.
    Reset,
}

/// Which client asked, in which of its attempts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Asker {
    pub(crate) client: usize,
    pub(crate) attempt: u64,
}

/// What reaches a client.
#[derive(Hash, Debug)]
pub(crate) enum ClientEvent {
    /// It does something next.
    Next,
    /// Its request was answered.
    Reply {
        attempt: u64,
        result: Box<Result<Outcome, RequestError>>,
    },
    /// The node's machine refused the connection: the request was never read.
    Refused { attempt: u64 },
    /// The connection has ended before an answer came.
    Broken { attempt: u64 },
    /// No answer came in time.
    Timeout { attempt: u64 },
}

impl Event {
    /// Puts the event into the trace.
    pub(crate) fn note(&self, at_ns: u64, trace: &mut Trace) {
        match self {
            Event::Node { node, event, .. } => event.note(at_ns, *node as u64, trace),
            Event::Datagram { to, bytes } => trace.event(at_ns, "datagram", *to as u64, bytes),
            Event::Message { to, bytes } => trace.event(at_ns, "message", *to as u64, bytes),
            Event::Stream { conn, to, part } => {
                let place = conn.0 * 2 + *to as u64;
                match part {
                    Part::Hello(bytes) => trace.event(at_ns, "hello", place, bytes),
                    Part::Answer(Ok(())) => trace.event(at_ns, "welcome", place, &[]),
                    Part::Answer(Err(why)) => {
                        trace.event(at_ns, "refused", place, why.as_bytes());
                    }
                    Part::Bytes(bytes) => trace.event(at_ns, "bytes", place, bytes),
                    Part::Reset => trace.event(at_ns, "reset", place, &[]),
                }
            }
            Event::Resend { conn, to } => {
                trace.event(at_ns, "resend", conn.0 * 2 + *to as u64, &[]);
            }
            Event::Request {
                node,
                from,
                request,
            } => trace.value(at_ns, "request", *node as u64, &(from, request)),
            Event::Client { client, event } => {
                trace.value(at_ns, "client", *client as u64, event);
            }
            Event::Start { node } => trace.event(at_ns, "start", *node as u64, &[]),
            Event::Init { node } => trace.event(at_ns, "init", *node as u64, &[]),
            Event::Administer => trace.event(at_ns, "administer", 0, &[]),
            Event::Act(action) => {
                trace.event(at_ns, "act", 0, format!("{action:?}").as_bytes());
            }
            Event::Resume { node, .. } => trace.event(at_ns, "resume", *node as u64, &[]),
            Event::Undo(undo) => trace.event(at_ns, "undo", 0, format!("{undo:?}").as_bytes()),
        }
    }
}

impl NodeEvent {
    fn note(&self, at_ns: u64, node: u64, trace: &mut Trace) {
        let mut bytes = Vec::new();
        let kind = match self {
            NodeEvent::DataTimer => "data timer",
            NodeEvent::EndTurn => "end of turn",
            NodeEvent::View(view) => {
                for number in [
                    view.epoch.0,
                    view.topology.version.0,
                    view.members.len() as u64,
                    view.raft.term,
                    view.raft.applied,
                ] {
                    bytes.extend_from_slice(&number.to_le_bytes());
                }
                for (node, peer) in &view.peers {
                    bytes.extend_from_slice(&node.0.to_le_bytes());
                    bytes.push(u8::from(peer.alive));
                }
                "view"
            }
            NodeEvent::Dial(peer) => {
                bytes.extend_from_slice(&peer.0.to_le_bytes());
                "dial"
            }
            NodeEvent::DialTimeout(conn) => {
                bytes.extend_from_slice(&conn.0.to_le_bytes());
                "dial timeout"
            }
            NodeEvent::Writable(conn) => {
                bytes.extend_from_slice(&conn.0.to_le_bytes());
                "writable"
            }
            NodeEvent::OpenStore(count) => {
                bytes.extend_from_slice(&count.to_le_bytes());
                "open store"
            }
            NodeEvent::StoreBegin => "store begins",
            NodeEvent::StoreFinish => "store finishes",
            NodeEvent::StoreDone(done) => {
                for (ticket, result) in &done.merges {
                    bytes.extend_from_slice(&ticket.id.to_le_bytes());
                    bytes.push(match result {
                        MergeResult::Durable => 0,
                        MergeResult::Refused => 1,
                        MergeResult::Failed => 2,
                        MergeResult::EpochClosed => 3,
                        MergeResult::Settled => 4,
                    });
                }
                bytes.extend_from_slice(&done.hints_stored.to_le_bytes());
                "store done"
            }
            NodeEvent::StoreIdle { seq } => {
                bytes.extend_from_slice(&seq.to_le_bytes());
                "store idle"
            }
            NodeEvent::Walk(question) => {
                bytes.extend_from_slice(&question.0.id.to_le_bytes());
                "walk"
            }
            NodeEvent::Flush => "flush",
            NodeEvent::ControlTurn => "control turn",
            NodeEvent::ControlTimer => "control timer",
            NodeEvent::ControlSync => "control sync",
        };
        trace.event(at_ns, kind, node, &bytes);
    }
}
