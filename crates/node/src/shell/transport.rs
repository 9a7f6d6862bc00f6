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
use mds_cluster::hello::{HELLO_BYTES, Hello, PROTOCOL_VERSION, check_hello};
use mds_cluster::{ClusterView, HelloRefusal};
use mds_types::{ClusterConfig, IncarnationId, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::peers::Start;
use crate::wire::{self, WireError};

/// A handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of a refusal's reason, at most.
const REASON_BYTES_MAX: usize = 512;

/// A first frame (hello, or the answer to it) that says it is longer is not read: whoever sends it is no
/// node. Room for what later protocol versions may add.
const FIRST_FRAME_BYTES_MAX: usize = 1024;
const _: () = assert!(HELLO_BYTES < FIRST_FRAME_BYTES_MAX);
const _: () = assert!(1 + REASON_BYTES_MAX < FIRST_FRAME_BYTES_MAX);

/// A connection whose other side neither acknowledges bytes nor probes for this long is broken.
pub(super) const PEER_SILENCE_MAX: Duration = Duration::from_secs(3);

/// An idle connection is probed this often, to find out that the other side's machine is gone.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);

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
        tune(&stream).map_err(io)?;
        let mut out = BytesMut::new();
        wire::encode_frame(&hello.encode(), &mut out);
        stream.write_all(&out).await.map_err(io)?;
        let mut input = BytesMut::new();
        let answer = read_first_frame(&mut stream, &mut input)
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
    /// The start of the peer that speaks.
    pub(super) start: Start,
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
        tune(&stream).ok()?;
        let mut input = BytesMut::new();
        let frame = match read_first_frame(&mut stream, &mut input).await.ok()? {
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
            Ok((channel, hello)) => Some((channel, hello, input)),
            Err(reason) => {
                tracing::info!(%from, %reason, "turned a connection away");
                None
            }
        }
    };
    let (channel, hello, input) = tokio::time::timeout(HANDSHAKE_TIMEOUT, shake)
        .await
        .ok()??;
    Some(Accepted {
        channel,
        peer: hello.from,
        start: Start {
            boot: hello.boot,
            nonce: hello.nonce,
        },
        stream,
        input,
    })
}

/// Whether a hello is good enough for the channel it asks for.
fn check(view: &ClusterView, frame: &[u8]) -> Result<(Channel, Hello), HelloRefusal> {
    let hello = Hello::decode(frame)?;
    let channel = match hello.channel {
        c if c == Channel::Data as u8 => Channel::Data,
        c if c == Channel::Control as u8 => Channel::Control,
        _ => return Err(HelloRefusal::Malformed),
    };
    match channel {
        Channel::Data => check_hello(view, &hello)?,
        // One of both may not be part of a cluster yet; two clusters have nothing to say to each other.
        Channel::Control => {
            let (theirs, ours) = (hello.cluster, view.cluster);
            if !theirs.is_none() && !ours.is_none() && theirs != ours {
                let from = hello.from;
                return Err(HelloRefusal::Cluster { from, theirs, ours });
            }
        }
    }
    Ok((channel, hello))
}

/// Makes the system notice a connection whose other side is gone: with bytes on their way, and idle.
fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(KEEPALIVE_EVERY)
        .with_interval(KEEPALIVE_EVERY);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(PEER_SILENCE_MAX))?;
    Ok(())
}

/// Reads the first frame of a connection, from somebody who may not be a node at all: takes no more
/// memory than [`FIRST_FRAME_BYTES_MAX`], whatever length is claimed.
async fn read_first_frame(
    stream: &mut TcpStream,
    input: &mut BytesMut,
) -> std::io::Result<Result<bytes::Bytes, WireError>> {
    let length = loop {
        // A frame begins with its length.
        if let Some(length) = input.first_chunk() {
            break u32::from_le_bytes(*length) as usize;
        }
        if stream.read_buf(input).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    if length > FIRST_FRAME_BYTES_MAX {
        return Ok(Err(WireError::Length(length)));
    }
    read_frame(stream, input).await
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
    known: BTreeMap<String, (Vec<std::net::SocketAddr>, std::time::Instant)>,
}

impl Resolver {
    const FRESH: Duration = Duration::from_secs(5);

    /// Hosts remembered at most; beyond, all are forgotten and looked up afresh.
    const KNOWN_MAX: usize = 4_096;

    /// Addresses of one name at most; further ones are not used.
    const ADDRS_MAX: usize = 16;

    /// The addresses of `host:port`: one for a node's own name, many for a name that stands for all nodes of a
    /// service, whose first address may be this very node's. Empty if the name is not known.
    pub(super) async fn resolve(&mut self, addr: &str) -> Vec<std::net::SocketAddr> {
        if let Ok(literal) = addr.parse() {
            return vec![literal];
        }
        if let Some((known, at)) = self.known.get(addr)
            && at.elapsed() < Self::FRESH
        {
            return known.clone();
        }
        let looked_up = tokio::time::timeout(Duration::from_secs(1), tokio::net::lookup_host(addr));
        let found = match looked_up.await {
            Ok(Ok(found)) => found.take(Self::ADDRS_MAX).collect(),
            _ => Vec::new(),
        };
        if self.known.len() >= Self::KNOWN_MAX {
            self.known.clear();
        }
        self.known
            .insert(addr.to_owned(), (found.clone(), std::time::Instant::now()));
        found
    }
}

#[cfg(test)]
mod tests {
    use mds_types::{ClusterId, MemberInfo};
    use tokio::net::TcpListener;

    use super::*;

    const ME: NodeId = NodeId(1);

    fn view(cluster: ClusterId) -> ClusterView {
        let mut view = ClusterView::unborn(ME, MemberInfo::default(), 1);
        view.cluster = cluster;
        view
    }

    fn hello(cluster: ClusterId, channel: Channel) -> Hello {
        let maker = HelloMaker {
            incarnation: IncarnationId(2),
            boot_nonce: 9,
        };
        let mut speaker = view(cluster);
        speaker.me = NodeId(2);
        maker.hello(&speaker, ME, channel)
    }

    /// The answer of a node with this view to what is written to it.
    fn answer_to(bytes: Vec<u8>, view: ClusterView) -> (Option<Accepted>, Vec<u8>) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut dialled = TcpStream::connect(listener.local_addr().unwrap())
                .await
                .unwrap();
            dialled.write_all(&bytes).await.unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let accepted = accept(stream, Arc::new(view)).await;
            let mut answer = BytesMut::new();
            let read = read_first_frame(&mut dialled, &mut answer).await;
            (
                accepted,
                read.map_or(Vec::new(), |frame| frame.unwrap().to_vec()),
            )
        })
    }

    fn framed(payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        wire::encode_frame(payload, &mut out);
        out.to_vec()
    }

    #[test]
    fn nobody_makes_a_node_wait_for_a_long_first_frame() {
        // Only the header, claiming what a later frame may well have.
        let mut bytes = (FIRST_FRAME_BYTES_MAX as u32 + 1).to_le_bytes().to_vec();
        bytes.extend_from_slice(&[0; 4]);
        let (accepted, answer) = answer_to(bytes, view(ClusterId::NONE));
        assert!(accepted.is_none() && answer.is_empty());
    }

    #[test]
    fn what_comes_behind_a_hello_is_kept() {
        let mut bytes = framed(&hello(ClusterId::NONE, Channel::Control).encode());
        bytes.extend_from_slice(b"more");
        let (accepted, answer) = answer_to(bytes, view(ClusterId(7)));
        let accepted = accepted.unwrap();
        assert_eq!(answer, [WELCOME]);
        assert_eq!(&accepted.input[..], b"more");
        assert_eq!(
            (accepted.channel, accepted.peer),
            (Channel::Control, NodeId(2))
        );
        assert_eq!(accepted.start, Start { boot: 1, nonce: 9 });
    }

    #[test]
    fn clusters_do_not_mix() {
        for (theirs, ours, is_welcome) in [(7, 7, true), (7, 0, true), (0, 7, true), (7, 8, false)]
        {
            let hello = hello(ClusterId(theirs), Channel::Control);
            let checked = check(&view(ClusterId(ours)), &hello.encode());
            assert_eq!(
                checked.is_ok(),
                is_welcome,
                "{theirs} at {ours}: {checked:?}"
            );
        }
        let (accepted, answer) = answer_to(
            framed(&hello(ClusterId(7), Channel::Control).encode()),
            view(ClusterId(8)),
        );
        assert!(accepted.is_none());
        assert_eq!(answer[0], REFUSED);
        // Data is for members only.
        let data = hello(ClusterId(7), Channel::Data);
        assert!(check(&view(ClusterId(7)), &data.encode()).is_err());
    }
}
