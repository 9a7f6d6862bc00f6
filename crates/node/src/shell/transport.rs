//! Connections between nodes: dialling, accepting, and the handshake.
//!
//! Whoever dials says who it is and whom it means to reach ([`Hello`]); the other side checks that
//! against what Raft's log says and answers with a welcome or with the reason why not. So a foreign
//! cluster, a cloned directory, an old address that now belongs to somebody else, or a client that took
//! the wrong port is turned away before it can do harm, and hears why.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use mds_cluster::hello::{Hello, PROTOCOL_VERSION, check_hello};
use mds_cluster::{ClusterView, HelloRefusal};
use mds_types::{ClusterConfig, IncarnationId, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::wire::{self, WireError};

/// A handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of a refusal's reason, at most.
const REASON_BYTES_MAX: usize = 512;

/// What a connection between nodes is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Channel {
    /// Requests to replicas, and their answers.
    Data = 1,
    /// Raft and control messages, one way. Each message is checked by itself, so that a node that is not
    /// part of the cluster yet can be invited.
    Control = 2,
}

/// First byte of the answer to a hello.
const WELCOME: u8 = 1;
const REFUSED: u8 = 0;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("its address is not known")]
    NoAddress,
    #[error("{addr}: {error}")]
    Io { addr: String, error: std::io::Error },
    #[error("{addr} did not finish the handshake in time")]
    Timeout { addr: String },
    #[error("{addr} refused: {reason}")]
    Refused { addr: String, reason: String },
    #[error("{addr} does not speak our protocol: {error}")]
    Wire { addr: String, error: WireError },
}

/// What this node says of itself in every handshake.
#[derive(Clone, Debug)]
pub(super) struct HelloMaker {
    pub(super) incarnation: IncarnationId,
    pub(super) boot_nonce: u64,
}

impl HelloMaker {
    pub(super) fn hello(&self, view: &ClusterView, to: NodeId, channel: Channel) -> Hello {
        Hello {
            protocol: PROTOCOL_VERSION,
            channel: channel as u8,
            cluster: view.cluster,
            from: view.me,
            incarnation: self.incarnation,
            boot: view.my_boot,
            nonce: self.boot_nonce,
            to,
            fingerprint: view.config.as_ref().map_or(0, ClusterConfig::fingerprint),
        }
    }
}

/// Waits between tries to reach one peer, and says only new reasons aloud.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    wait: Duration,
    last_reason: String,
}

impl Backoff {
    const MIN: Duration = Duration::from_millis(20);
    const MAX: Duration = Duration::from_millis(500);

    pub(super) fn reset(&mut self) {
        self.wait = Duration::ZERO;
        self.last_reason.clear();
    }

    pub(super) fn note(&mut self, peer: NodeId, error: &DialError) {
        let reason = error.to_string();
        if reason != self.last_reason {
            tracing::info!(%peer, %reason, "cannot reach a peer; trying on");
            self.last_reason = reason;
        }
    }

    pub(super) fn next(&mut self) -> Duration {
        self.wait = (self.wait * 2).clamp(Self::MIN, Self::MAX);
        self.wait
    }
}

/// Opens a data connection to a member. Also returns what came behind its welcome.
pub(super) async fn dial(
    view: &ClusterView,
    maker: &HelloMaker,
    node: NodeId,
) -> Result<(TcpStream, BytesMut), DialError> {
    let addr = view
        .info(node)
        .map(|info| info.peer_addr.clone())
        .ok_or(DialError::NoAddress)?;
    let hello = maker.hello(view, node, Channel::Data);
    connect(addr, &hello).await
}

/// Opens a connection and shakes hands.
pub(super) async fn connect(
    addr: String,
    hello: &Hello,
) -> Result<(TcpStream, BytesMut), DialError> {
    let shake = async {
        let io = |error| DialError::Io {
            addr: addr.clone(),
            error,
        };
        let mut stream = TcpStream::connect(&addr).await.map_err(io)?;
        stream.set_nodelay(true).map_err(io)?;
        let mut out = BytesMut::new();
        wire::encode_frame(&hello.encode(), &mut out);
        stream.write_all(&out).await.map_err(io)?;
        let mut input = BytesMut::new();
        let answer = read_frame(&mut stream, &mut input)
            .await
            .map_err(io)?
            .map_err(|error| DialError::Wire {
                addr: addr.clone(),
                error,
            })?;
        match answer.split_first() {
            Some((&WELCOME, _)) => Ok((stream, input)),
            Some((_, reason)) => {
                let reason = String::from_utf8_lossy(reason).into_owned();
                Err(DialError::Refused {
                    addr: addr.clone(),
                    reason,
                })
            }
            None => Err(DialError::Wire {
                addr: addr.clone(),
                error: WireError::Length(0),
            }),
        }
    };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, shake).await {
        Ok(result) => result,
        Err(_) => Err(DialError::Timeout { addr: addr.clone() }),
    }
}

/// A connection that has shaken hands.
pub(super) struct Accepted {
    pub(super) channel: Channel,
    pub(super) peer: NodeId,
    pub(super) stream: TcpStream,
    /// What came behind the hello.
    pub(super) input: BytesMut,
}

/// Takes the hello of an accepted connection and answers it. `None`: turned away, or no node at all.
pub(super) async fn accept(mut stream: TcpStream, view: Arc<ClusterView>) -> Option<Accepted> {
    let from = stream
        .peer_addr()
        .map(|addr| addr.to_string())
        .unwrap_or_default();
    let shake = async {
        stream.set_nodelay(true).ok()?;
        let mut input = BytesMut::new();
        let frame = match read_frame(&mut stream, &mut input).await.ok()? {
            Ok(frame) => frame,
            Err(error) => {
                tracing::warn!(%from, %error, "a connection to the peer port is no node's");
                return None;
            }
        };
        let checked = check(&view, &frame);
        let mut answer = Vec::new();
        match &checked {
            Ok(_) => answer.push(WELCOME),
            Err(refusal) => {
                answer.push(REFUSED);
                answer.extend(refusal.to_string().bytes().take(REASON_BYTES_MAX));
            }
        }
        let mut out = BytesMut::new();
        wire::encode_frame(&answer, &mut out);
        stream.write_all(&out).await.ok()?;
        match checked {
            Ok((channel, peer)) => Some((channel, peer, input)),
            Err(reason) => {
                tracing::info!(%from, %reason, "turned a connection away");
                None
            }
        }
    };
    let (channel, peer, input) = tokio::time::timeout(HANDSHAKE_TIMEOUT, shake)
        .await
        .ok()??;
    Some(Accepted {
        channel,
        peer,
        stream,
        input,
    })
}

/// Whether a hello is good enough for the channel it asks for.
fn check(view: &ClusterView, frame: &[u8]) -> Result<(Channel, NodeId), HelloRefusal> {
    let hello = Hello::decode(frame)?;
    let channel = match hello.channel {
        c if c == Channel::Data as u8 => Channel::Data,
        c if c == Channel::Control as u8 => Channel::Control,
        _ => return Err(HelloRefusal::Malformed),
    };
    if channel == Channel::Data {
        check_hello(view, &hello)?;
    }
    Ok((channel, hello.from))
}

/// Reads one frame. The outer error is the socket's, the inner one says that the bytes are no frame.
pub(super) async fn read_frame(
    stream: &mut TcpStream,
    input: &mut BytesMut,
) -> std::io::Result<Result<bytes::Bytes, WireError>> {
    loop {
        match wire::next_frame(input) {
            Ok(Some(frame)) => return Ok(Ok(frame)),
            Ok(None) => {}
            Err(error) => return Ok(Err(error)),
        }
        if stream.read_buf(input).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Names resolved to addresses, for datagrams. Entries are refreshed by age, so that a pod that moved
/// is found again.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    known: BTreeMap<String, (Option<std::net::SocketAddr>, std::time::Instant)>,
}

impl Resolver {
    const FRESH: Duration = Duration::from_secs(5);

    /// Hosts remembered at most; beyond, all are forgotten and looked up afresh.
    const KNOWN_MAX: usize = 4_096;

    /// The address of `host:port`.
    pub(super) async fn resolve(&mut self, addr: &str) -> Option<std::net::SocketAddr> {
        if let Ok(literal) = addr.parse() {
            return Some(literal);
        }
        if let Some((known, at)) = self.known.get(addr)
            && at.elapsed() < Self::FRESH
        {
            return *known;
        }
        let looked_up = tokio::time::timeout(Duration::from_secs(1), tokio::net::lookup_host(addr));
        let found = looked_up
            .await
            .ok()
            .and_then(Result::ok)
            .and_then(|mut found| found.next());
        if self.known.len() >= Self::KNOWN_MAX {
            self.known.clear();
        }
        self.known
            .insert(addr.to_owned(), (found, std::time::Instant::now()));
        found
    }
}
