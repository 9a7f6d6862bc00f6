//! The control thread: gossip and Raft, with sockets, around the control part.
//!
//! It has a thread and sockets of its own, so that the control plane never waits behind data: under any
//! load, heartbeats go out and health is answered. Messages are fire and forget; each peer has a small
//! queue and a connection that is opened when needed. What does not fit or arrive is sent again by Raft.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use mds_cluster::control::ControlConfig;
use mds_cluster::{AdminError, AdminReply, AdminRequest, ClusterView, Control, Standing};
use mds_types::NodeId;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::spawn_local;

use super::peers::AcceptedPeer;
use super::transport::Channel;
use super::{clock, transport};
use crate::core::RingReport;
use crate::wire;

/// Messages that wait for one peer, at most; further ones are dropped (Raft repeats them).
const OUTBOX_MESSAGES_MAX: usize = 256;

/// Messages that wait to be taken in, at most; connections are read no further meanwhile.
const INBOX_MESSAGES_MAX: usize = 1_024;

/// Connections of peers in their handshake, at most; further ones are closed.
const HANDSHAKES_MAX: usize = 256;

/// Connections that the peer port serves, at most: control and data; further ones are closed. A cluster
/// needs two for each other node.
const CONNECTIONS_MAX: usize = 1_024;

/// Datagrams that wait to be sent, at most; further ones are dropped.
const DATAGRAMS_MAX: usize = 1_024;

/// Bytes of messages joined into one write, roughly.
const WRITE_BYTES_MAX: usize = 256 * 1024;

/// Largest datagram accepted.
const DATAGRAM_BYTES_MAX: usize = 65_536;

/// An admin request of another thread, and where its answer goes.
pub(super) type AdminCall = (
    AdminRequest,
    oneshot::Sender<Result<AdminReply, AdminError>>,
);

/// What the control thread is started with.
pub(super) struct ControlLoopParts {
    pub(super) control: Control,
    pub(super) listener: std::net::TcpListener,
    pub(super) datagrams: std::net::UdpSocket,
    pub(super) admin: mpsc::Receiver<AdminCall>,
    pub(super) peers: mpsc::Sender<AcceptedPeer>,
    pub(super) view: watch::Sender<Arc<ClusterView>>,
    pub(super) fatal: watch::Sender<Option<String>>,
    pub(super) hello: transport::HelloMaker,
    /// What the data thread has to report to those that lead a change of the ring.
    pub(super) reports: watch::Receiver<Option<RingReport>>,
    /// Timers fire together, on a grid of this.
    pub(super) timer_grid_ns: u64,
    pub(super) stop: watch::Receiver<bool>,
}

/// On which grid timers fire. Raft alone looks at its clocks five times a heartbeat, gossip and the control part have
/// clocks of their own, and on an idle node waking up for each of them costs more than all that is done then. So
/// those that are close to each other are served by one turn, later by less than half a heartbeat, or a quarter of a
/// probe if that is less: a heartbeat and a half apart is well below a third of the time that elections wait.
pub(super) fn timer_grid_ns(config: &ControlConfig) -> u64 {
    let grid_ms = (config.raft.heartbeat_ms / 2).min(config.gossip.probe_ms / 4);
    grid_ms.max(1).saturating_mul(1_000_000)
}

/// When to wake up for a timer: at its time if that has come, else at the next line of the grid.
fn on_grid(deadline_ns: u64, now_ns: u64, grid_ns: u64) -> u64 {
    match deadline_ns <= now_ns {
        true => deadline_ns,
        false => deadline_ns
            .checked_next_multiple_of(grid_ns)
            .unwrap_or(u64::MAX),
    }
}

/// Runs the control thread until it is told to stop.
pub(super) async fn run(parts: ControlLoopParts) -> std::io::Result<()> {
    parts.listener.set_nonblocking(true)?;
    parts.datagrams.set_nonblocking(true)?;
    let listener = TcpListener::from_std(parts.listener)?;
    let udp = Rc::new(UdpSocket::from_std(parts.datagrams)?);
    let (inbox_tx, inbox) = mpsc::channel(INBOX_MESSAGES_MAX);
    let (datagram_tx, datagrams) = mpsc::channel(DATAGRAMS_MAX);
    spawn_local(datagram_task(udp.clone(), datagrams));
    spawn_local(accept_task(
        listener,
        parts.view.subscribe(),
        inbox_tx,
        parts.peers,
    ));
    let control_loop = ControlLoop {
        control: parts.control,
        outboxes: BTreeMap::new(),
        datagrams: datagram_tx,
        waiting: BTreeMap::new(),
        next_admin: 0,
        view: parts.view,
        fatal: parts.fatal,
        hello: parts.hello,
        timer_grid_ns: parts.timer_grid_ns,
    };
    control_loop
        .run(udp, inbox, parts.admin, parts.reports, parts.stop)
        .await;
    Ok(())
}

struct ControlLoop {
    control: Control,
    outboxes: BTreeMap<NodeId, (String, mpsc::Sender<Bytes>)>,
    datagrams: mpsc::Sender<(String, Bytes)>,
    waiting: BTreeMap<u64, oneshot::Sender<Result<AdminReply, AdminError>>>,
    next_admin: u64,
    view: watch::Sender<Arc<ClusterView>>,
    fatal: watch::Sender<Option<String>>,
    hello: transport::HelloMaker,
    timer_grid_ns: u64,
}

impl ControlLoop {
    async fn run(
        mut self,
        udp: Rc<UdpSocket>,
        mut inbox: mpsc::Receiver<Bytes>,
        mut admin: mpsc::Receiver<AdminCall>,
        mut reports: watch::Receiver<Option<RingReport>>,
        mut stop: watch::Receiver<bool>,
    ) {
        let mut datagram = vec![0u8; DATAGRAM_BYTES_MAX];
        let (mut is_admin_open, mut is_reporting) = (true, true);
        loop {
            self.turn();
            if *stop.borrow_and_update() {
                self.control.leave(clock::now().mono_ns);
                self.turn();
                // The farewell leaves through a task of this thread; let it run.
                tokio::time::sleep(Duration::from_millis(20)).await;
                return;
            }
            let deadline_ns = self.control.next_deadline().unwrap_or(u64::MAX);
            let deadline_ns = on_grid(deadline_ns, clock::now().mono_ns, self.timer_grid_ns);
            let at = tokio::time::Instant::from_std(clock::instant_at(deadline_ns));
            // No order among them: a flood of one kind must not starve the others.
            tokio::select! {
                _ = stop.changed() => {}
                received = udp.recv_from(&mut datagram) => match received {
                    Ok((len, _)) => {
                        self.control.on_datagram(clock::now().mono_ns, &datagram[..len]);
                    }
                    // As when a peer's port was closed: that is gossip's business, not ours.
                    Err(error) => tracing::debug!(%error, "receiving a datagram failed"),
                },
                message = inbox.recv() => if let Some(message) = message {
                    self.control.on_message(clock::now().mono_ns, message);
                },
                call = admin.recv(), if is_admin_open => match call {
                    Some((request, caller)) => {
                        self.next_admin += 1;
                        self.waiting.insert(self.next_admin, caller);
                        self.control.on_admin(clock::now().mono_ns, self.next_admin, request);
                    }
                    None => is_admin_open = false,
                },
                changed = reports.changed(), if is_reporting => match changed {
                    Ok(()) => self.on_report(*reports.borrow_and_update()),
                    // The data thread has ended.
                    Err(_) => is_reporting = false,
                },
                () = tokio::time::sleep_until(at) => {}
            }
        }
    }

    fn on_report(&mut self, report: Option<RingReport>) {
        let Some(report) = report else { return };
        self.control.on_acked(report.acked);
        if report.is_ready {
            self.control.on_ready(report.acked);
        }
    }

    /// Lets the control part work until it has nothing to do, and carries its outputs away.
    fn turn(&mut self) {
        loop {
            let now = clock::now();
            self.control.turn(now.mono_ns, now.wall_us);
            let outputs = self.control.outputs();
            for (addr, bytes) in outputs.datagrams {
                // A full queue drops it: gossip expects losses.
                let _ = self.datagrams.try_send((addr, bytes));
            }
            for (node, addr, bytes) in outputs.messages {
                self.send(node, addr, bytes);
            }
            for (id, reply) in outputs.admin {
                if let Some(caller) = self.waiting.remove(&id) {
                    let _ = caller.send(reply);
                }
            }
            if let Some(view) = outputs.view {
                // For good: a process that lingers serves nobody, and hides why.
                let refusal = match &view.standing {
                    Standing::Refused(reason) => Some(format!("refused by the cluster: {reason}")),
                    _ => None,
                };
                // Whoever hears that it is over finds the reason in the view.
                self.view.send_replace(view);
                if refusal.is_some() {
                    self.fatal.send_replace(refusal);
                }
            }
            if let Some(reason) = outputs.fatal {
                self.fatal.send_replace(Some(reason));
            }
            if !outputs.wants_sync {
                return;
            }
            if let Err(error) = self.control.sync_storage(clock::now().mono_ns) {
                self.fatal
                    .send_replace(Some(format!("Raft's log cannot be synced: {error}")));
                return;
            }
        }
    }

    fn send(&mut self, node: NodeId, addr: String, message: Bytes) {
        let is_current = self
            .outboxes
            .get(&node)
            .is_some_and(|(known, outbox)| *known == addr && !outbox.is_closed());
        if !is_current {
            let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES_MAX);
            spawn_local(send_task(
                node,
                addr.clone(),
                self.view.subscribe(),
                self.hello.clone(),
                messages,
            ));
            self.outboxes.insert(node, (addr, outbox));
        }
        if let Some((_, outbox)) = self.outboxes.get(&node) {
            let _ = outbox.try_send(message);
        }
    }
}

async fn datagram_task(udp: Rc<UdpSocket>, mut datagrams: mpsc::Receiver<(String, Bytes)>) {
    let mut resolver = transport::Resolver::default();
    while let Some((addr, bytes)) = datagrams.recv().await {
        for addr in resolver.resolve(&addr).await {
            if let Err(error) = udp.send_to(&bytes, addr).await {
                tracing::debug!(%addr, %error, "sending a datagram failed");
            }
        }
    }
}

/// Brings messages to one peer at one address.
async fn send_task(
    node: NodeId,
    addr: String,
    view: watch::Receiver<Arc<ClusterView>>,
    maker: transport::HelloMaker,
    mut messages: mpsc::Receiver<Bytes>,
) {
    let mut backoff = transport::Backoff::default();
    while let Some(first) = messages.recv().await {
        let hello = maker.hello(&view.borrow(), node, Channel::Control);
        let mut stream = match transport::connect(addr.clone(), &hello).await {
            Ok((stream, _)) => stream,
            Err(error) => {
                backoff.note(node, &error);
                tokio::time::sleep(backoff.next()).await;
                // What has waited meanwhile is stale; Raft has newer things to say.
                while messages.try_recv().is_ok() {}
                continue;
            }
        };
        backoff.reset();
        let mut out = BytesMut::new();
        wire::encode_frame(&first, &mut out);
        let mut probe = [0u8; 64];
        loop {
            while out.len() < WRITE_BYTES_MAX
                && let Ok(message) = messages.try_recv()
            {
                wire::encode_frame(&message, &mut out);
            }
            let write = stream.write_all(&out);
            match tokio::time::timeout(transport::PEER_SILENCE_MAX, write).await {
                Ok(Ok(())) => {}
                // Connecting anew is the better hope.
                Ok(Err(_)) | Err(_) => break,
            }
            out.clear();
            // Nothing is ever read here, but the end of the connection shows by reading.
            tokio::select! {
                biased;
                read = tokio::io::AsyncReadExt::read(&mut stream, &mut probe) => match read {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                },
                message = messages.recv() => match message {
                    Some(message) => wire::encode_frame(&message, &mut out),
                    None => return,
                },
            }
        }
    }
}

async fn accept_task(
    listener: TcpListener,
    view: watch::Receiver<Arc<ClusterView>>,
    inbox: mpsc::Sender<Bytes>,
    peers: mpsc::Sender<AcceptedPeer>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a peer");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(handshake) = handshakes.clone().try_acquire_owned() else {
            continue;
        };
        let (places, view) = (places.clone(), view.borrow().clone());
        let (inbox, peers) = (inbox.clone(), peers.clone());
        spawn_local(async move {
            let accepted = transport::accept(stream, view).await;
            drop(handshake);
            let Some(accepted) = accepted else { return };
            let Ok(place) = places.try_acquire_owned() else {
                tracing::warn!(peer = %accepted.peer, "too many connections at the peer port");
                return;
            };
            match accepted.channel {
                // Holds its place until it returns.
                Channel::Control => receive_task(accepted, inbox, place).await,
                Channel::Data => {
                    if let Ok(stream) = accepted.stream.into_std() {
                        let accepted = AcceptedPeer {
                            peer: accepted.peer,
                            start: accepted.start,
                            stream,
                            input: accepted.input,
                            place,
                        };
                        // The data thread has ended; so will this one.
                        let _ = peers.send(accepted).await;
                    }
                }
            }
        });
    }
}

/// Takes control messages off one connection.
async fn receive_task(
    accepted: transport::Accepted,
    inbox: mpsc::Sender<Bytes>,
    _place: OwnedSemaphorePermit,
) {
    let transport::Accepted {
        mut stream,
        mut input,
        peer,
        ..
    } = accepted;
    loop {
        match transport::read_frame(&mut stream, &mut input).await {
            Ok(Ok(message)) => {
                if inbox.send(message).await.is_err() {
                    return;
                }
            }
            Ok(Err(error)) => {
                tracing::warn!(%peer, %error, "closing a control connection");
                return;
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::on_grid;

    #[test]
    fn timers_close_to_each_other_fire_together_and_none_too_early() {
        assert_eq!(on_grid(101, 100, 50), on_grid(149, 100, 50));
        assert_eq!(on_grid(150, 100, 50), 150);
        assert_eq!(on_grid(151, 100, 50), 200);
        assert_eq!(on_grid(101, 101, 50), 101, "what is due is not put off");
        assert_eq!(on_grid(u64::MAX, 100, 50), u64::MAX);
    }
}
