//! The data thread: sockets of clients and peers around the core, in turns.
//!
//! One thread, one tokio current-thread runtime, a task per *connection* (never per request). Tasks read
//! what is readable and hand it to the core or the front-end; the first one in a turn wakes the flusher,
//! which runs after all tasks that were ready with it, and then does everything at once: local replies,
//! reads, one batch to the store, one write per peer, one write per client. Nothing waits *for* a batch.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use bytes::{Buf, BytesMut};
use mds_cluster::ClusterView;
use mds_storage::store::StoreReader;
use mds_types::NodeId;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::spawn_local;

use super::store_thread::DoneQueue;
use super::{clock, transport};
use crate::api::{FRONT_HTTP, Outcome, Request, RequestError, Submit, Tag};
use crate::core::{Core, CoreStats, Direction, LinkId};
use crate::front::Frontend;
use crate::store_io::{StoreBatch, read};

/// Bytes asked of a socket at a time.
const READ_BYTES: usize = 64 * 1024;

/// Replies that a client does not take, at most; beyond, its connection is closed.
const CLIENT_BACKLOG_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A stopping node waits this long for what is in flight.
const DRAIN_MAX: std::time::Duration = std::time::Duration::from_millis(2_500);

/// A request from another thread of this process, and where its answer goes.
pub(super) type Call = (Request, oneshot::Sender<Result<Outcome, RequestError>>);

/// An accepted connection of a peer, past its handshake.
pub(super) struct AcceptedPeer {
    pub(super) peer: NodeId,
    pub(super) stream: std::net::TcpStream,
    /// What came behind the handshake in the same read.
    pub(super) input: BytesMut,
}

/// The store's ends that the data thread uses.
pub(super) struct AttachedStore {
    pub(super) reader: StoreReader,
    pub(super) batches: Sender<StoreBatch>,
    pub(super) hints_pending: Vec<(NodeId, u64)>,
}

/// What the data thread is started with.
pub(super) struct DataLoopParts {
    pub(super) core: Core,
    pub(super) front: Box<dyn FnOnce() -> Box<dyn Frontend> + Send>,
    /// The store, once it is open: at the start, or when the cluster is born.
    pub(super) store: oneshot::Receiver<AttachedStore>,
    pub(super) store_done: Arc<DoneQueue>,
    pub(super) clients: std::net::TcpListener,
    pub(super) clients_max: usize,
    pub(super) calls: mpsc::Receiver<Call>,
    pub(super) peers: mpsc::Receiver<AcceptedPeer>,
    pub(super) view: watch::Receiver<Arc<ClusterView>>,
    pub(super) hello: transport::HelloMaker,
    pub(super) health: Arc<Mutex<Health>>,
    pub(super) stop: watch::Receiver<bool>,
}

/// What the rest of the process may know of the core, at most a tick old.
#[derive(Clone, Debug, Default)]
pub(super) struct Health {
    pub(super) stats: CoreStats,
    pub(super) usable_peers: usize,
    pub(super) stopped: Option<String>,
}

/// A socket that is written to at the end of turns.
struct Outlet {
    stream: TcpStream,
    /// A task waits until the socket takes bytes again.
    is_blocked: Cell<bool>,
    is_closing: Cell<bool>,
    /// Wakes the reading task: to go on reading, or to end.
    wake: Notify,
}

/// The data thread's state, shared by its tasks.
struct DataLoop {
    core: RefCell<Core>,
    front: RefCell<Box<dyn Frontend>>,
    store: RefCell<Option<AttachedStore>>,
    clients: RefCell<BTreeMap<u64, (Rc<Outlet>, BytesMut)>>,
    links: RefCell<BTreeMap<LinkId, Rc<Outlet>>>,
    calls: RefCell<BTreeMap<u64, oneshot::Sender<Result<Outcome, RequestError>>>>,
    next_number: Cell<u64>,
    is_flush_due: Cell<bool>,
    flush: Notify,
    armed_ns: Cell<u64>,
    rearm: Notify,
    view: watch::Receiver<Arc<ClusterView>>,
    hello: transport::HelloMaker,
    health: Arc<Mutex<Health>>,
}

/// Runs the data thread until it is told to stop and has drained.
pub(super) async fn run(parts: DataLoopParts) -> std::io::Result<()> {
    let shared = Rc::new(DataLoop {
        core: RefCell::new(parts.core),
        front: RefCell::new((parts.front)()),
        store: RefCell::new(None),
        clients: RefCell::default(),
        links: RefCell::default(),
        calls: RefCell::default(),
        next_number: Cell::new(1),
        is_flush_due: Cell::new(false),
        flush: Notify::new(),
        armed_ns: Cell::new(0),
        rearm: Notify::new(),
        view: parts.view.clone(),
        hello: parts.hello,
        health: parts.health,
    });
    parts.clients.set_nonblocking(true)?;
    let listener = TcpListener::from_std(parts.clients)?;
    spawn_local(flush_task(shared.clone()));
    spawn_local(timer_task(shared.clone()));
    spawn_local(attach_task(shared.clone(), parts.store));
    spawn_local(store_task(shared.clone(), parts.store_done));
    spawn_local(call_task(shared.clone(), parts.calls));
    spawn_local(view_task(shared.clone(), parts.view));
    spawn_local(peer_task(shared.clone(), parts.peers));
    let accept = spawn_local(accept_task(shared.clone(), listener, parts.clients_max));

    let mut stop = parts.stop;
    while !*stop.borrow_and_update() {
        if stop.changed().await.is_err() {
            break;
        }
    }
    accept.abort();
    shared.drain().await;
    // The store thread ends when the last sender of batches is gone.
    shared.store.borrow_mut().take();
    Ok(())
}

impl DataLoop {
    fn number(&self) -> u64 {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        number
    }

    fn publish_health(&self, core: &Core) {
        let mut health = self.health.lock();
        health.stats = core.stats();
        health.usable_peers = core.usable_peers().len();
        if health.stopped.is_none() {
            health.stopped = core.stopped().map(str::to_owned);
        }
    }

    fn schedule_flush(&self) {
        if !self.is_flush_due.replace(true) {
            self.flush.notify_one();
        }
    }

    /// The end of a turn: everything that its inputs brought about leaves together.
    fn end_turn(self: &Rc<Self>) {
        self.is_flush_due.set(false);
        let now = clock::now();
        let mut core = self.core.borrow_mut();
        let store = self.store.borrow();
        loop {
            core.settle(now);
            let reads = core.take_reads();
            let done = core.take_done();
            if reads.is_empty() && done.is_empty() {
                break;
            }
            for (ticket, query) in reads {
                let answer = store.as_ref().and_then(|store| {
                    read(&store.reader, &query)
                        .inspect_err(|error| tracing::error!(%error, "a read failed"))
                        .ok()
                });
                core.on_read_done(now, ticket, &query, answer);
            }
            for (tag, result) in done {
                if tag.front == FRONT_HTTP {
                    if let Some(caller) = self.calls.borrow_mut().remove(&tag.id) {
                        // The caller may have gone away; then nobody wants to know.
                        let _ = caller.send(result);
                    }
                } else {
                    self.front
                        .borrow_mut()
                        .on_done(now, tag, result, &mut *core);
                }
            }
        }
        if let Some(store) = &*store
            && let Some(batch) = core.take_batch()
            && store.batches.send(batch).is_err()
        {
            core.stop("the store thread has ended".to_owned());
        }
        drop(store);
        for link in core.take_dirty_links() {
            let outlet = self.links.borrow().get(&link).cloned();
            if let (Some(outlet), Some(out)) = (outlet, core.link_output(link)) {
                let again = self.clone();
                write_out(&outlet, out, move || again.write_link(link));
            }
        }
        let deadline_ns = core.next_deadline_ns();
        drop(core);
        self.flush_clients();
        if deadline_ns < self.armed_ns.get() {
            self.rearm.notify_one();
        }
    }

    fn flush_clients(self: &Rc<Self>) {
        let mut front = self.front.borrow_mut();
        for conn in front.take_dirty() {
            let mut clients = self.clients.borrow_mut();
            let Some((outlet, backlog)) = clients.get_mut(&conn) else {
                continue;
            };
            if let Some(output) = front.take_output(conn) {
                if backlog.is_empty() {
                    *backlog = output;
                } else {
                    backlog.extend_from_slice(&output);
                }
            }
            let again = self.clone();
            write_out(outlet, backlog, move || again.write_client(conn));
            front.set_backlog(conn, backlog.len());
            let is_stuck = backlog.len() > CLIENT_BACKLOG_BYTES_MAX;
            if is_stuck {
                tracing::warn!(conn, "closing a client that does not take its replies");
            }
            if is_stuck || (front.wants_close(conn) && backlog.is_empty()) {
                outlet.is_closing.set(true);
            }
            outlet.wake.notify_one();
        }
    }

    fn write_link(self: &Rc<Self>, link: LinkId) {
        let Some(outlet) = self.links.borrow().get(&link).cloned() else {
            return;
        };
        if let Some(out) = self.core.borrow_mut().link_output(link) {
            let again = self.clone();
            write_out(&outlet, out, move || again.write_link(link));
        }
    }

    fn write_client(self: &Rc<Self>, conn: u64) {
        let mut clients = self.clients.borrow_mut();
        let Some((outlet, backlog)) = clients.get_mut(&conn) else {
            return;
        };
        let again = self.clone();
        write_out(outlet, backlog, move || again.write_client(conn));
        let mut front = self.front.borrow_mut();
        front.set_backlog(conn, backlog.len());
        if backlog.is_empty() {
            if front.wants_close(conn) {
                outlet.is_closing.set(true);
            }
            outlet.wake.notify_one();
        }
    }

    /// Serves a link until it ends: reads, and tells the core.
    async fn serve_link(
        self: &Rc<Self>,
        peer: NodeId,
        direction: Direction,
        stream: TcpStream,
        mut input: BytesMut,
    ) {
        let outlet = Rc::new(Outlet::new(stream));
        let link = self
            .core
            .borrow_mut()
            .on_link_open(clock::now(), peer, direction);
        self.links.borrow_mut().insert(link, outlet.clone());
        loop {
            let taken = self
                .core
                .borrow_mut()
                .on_link_bytes(clock::now(), link, &mut input);
            self.schedule_flush();
            if let Err(error) = taken {
                tracing::warn!(%peer, %error, "closing the connection to a peer");
                break;
            }
            if !read_more(&outlet, &mut input).await {
                break;
            }
        }
        self.links.borrow_mut().remove(&link);
        self.core.borrow_mut().on_link_closed(clock::now(), link);
        self.schedule_flush();
    }

    /// Waits for what is in flight, within a bound; refuses new requests meanwhile.
    async fn drain(self: &Rc<Self>) {
        let until = tokio::time::Instant::now() + DRAIN_MAX;
        while self.core.borrow().in_flight() > 0 && tokio::time::Instant::now() < until {
            // Every turn that ends an operation changes the count; a turn comes at least every tick.
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        self.core
            .borrow_mut()
            .stop("this node is shutting down".to_owned());
        self.end_turn();
        // What the clients' sockets take at once has been written now; say goodbye.
        for (outlet, _) in self.clients.borrow().values() {
            outlet.is_closing.set(true);
            outlet.wake.notify_one();
        }
    }
}

impl Outlet {
    fn new(stream: TcpStream) -> Outlet {
        // Fails only on a socket that is broken already; reading then says so.
        let _ = stream.set_nodelay(true);
        Outlet {
            stream,
            is_blocked: Cell::new(false),
            is_closing: Cell::new(false),
            wake: Notify::new(),
        }
    }
}

/// Writes what the socket takes; if that is not all, waits in a task of its own until it takes more.
fn write_out(outlet: &Rc<Outlet>, out: &mut BytesMut, again: impl FnOnce() + 'static) {
    if outlet.is_blocked.get() {
        return;
    }
    while !out.is_empty() {
        match outlet.stream.try_write(out) {
            Ok(0) => return outlet.end(),
            Ok(written) => out.advance(written),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                outlet.is_blocked.set(true);
                let outlet = outlet.clone();
                spawn_local(async move {
                    let is_writable = outlet.stream.writable().await.is_ok();
                    outlet.is_blocked.set(false);
                    if is_writable {
                        again();
                    }
                });
                return;
            }
            Err(_) => return outlet.end(),
        }
    }
    // A buffer that once held a large value does not keep its memory.
    if out.capacity() > 1024 * 1024 {
        *out = BytesMut::new();
    }
}

impl Outlet {
    /// Makes the reading task end.
    fn end(&self) {
        self.is_closing.set(true);
        self.wake.notify_one();
    }
}

/// Waits for bytes and appends them. False when the connection has ended or is to end.
async fn read_more(outlet: &Outlet, input: &mut BytesMut) -> bool {
    loop {
        if outlet.is_closing.get() {
            return false;
        }
        tokio::select! {
            biased;
            readable = outlet.stream.readable() => if readable.is_err() { return false },
            () = outlet.wake.notified() => continue,
        }
        input.reserve(READ_BYTES);
        match outlet.stream.try_read_buf(input) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
}

async fn flush_task(shared: Rc<DataLoop>) {
    loop {
        shared.flush.notified().await;
        shared.end_turn();
    }
}

async fn timer_task(shared: Rc<DataLoop>) {
    loop {
        let deadline_ns = shared.core.borrow_mut().next_deadline_ns();
        shared.armed_ns.set(deadline_ns);
        let at = tokio::time::Instant::from_std(clock::instant_at(deadline_ns));
        tokio::select! {
            biased;
            () = shared.rearm.notified() => continue,
            () = tokio::time::sleep_until(at) => {}
        }
        let mut core = shared.core.borrow_mut();
        core.on_timer(clock::now());
        shared.publish_health(&core);
        drop(core);
        shared.schedule_flush();
    }
}

async fn attach_task(shared: Rc<DataLoop>, store: oneshot::Receiver<AttachedStore>) {
    if let Ok(store) = store.await {
        shared
            .core
            .borrow_mut()
            .on_store_open(store.hints_pending.clone());
        *shared.store.borrow_mut() = Some(store);
        shared.schedule_flush();
    }
}

async fn store_task(shared: Rc<DataLoop>, store_done: Arc<DoneQueue>) {
    loop {
        store_done.notify.notified().await;
        for done in store_done.take() {
            shared.core.borrow_mut().on_store_done(clock::now(), done);
        }
        shared.schedule_flush();
    }
}

async fn call_task(shared: Rc<DataLoop>, mut calls: mpsc::Receiver<Call>) {
    while let Some((request, caller)) = calls.recv().await {
        let id = shared.number();
        shared.calls.borrow_mut().insert(id, caller);
        let tag = Tag {
            front: FRONT_HTTP,
            id,
        };
        shared.core.borrow_mut().submit(clock::now(), request, tag);
        shared.schedule_flush();
    }
}

/// Keeps the core's view fresh, and a dialling task for every other member.
async fn view_task(shared: Rc<DataLoop>, mut views: watch::Receiver<Arc<ClusterView>>) {
    let mut dialling: BTreeMap<NodeId, tokio::task::JoinHandle<()>> = BTreeMap::new();
    loop {
        let view = views.borrow_and_update().clone();
        dialling.retain(|node, task| {
            let is_member = view.members.contains_key(node);
            if !is_member {
                task.abort();
            }
            is_member
        });
        for &node in view.members.keys().filter(|&&node| node != view.me) {
            let dial = || spawn_local(dial_task(shared.clone(), node));
            dialling.entry(node).or_insert_with(dial);
        }
        shared.core.borrow_mut().on_view(view);
        shared.schedule_flush();
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// Keeps a link to one member open, for as long as it is one.
async fn dial_task(shared: Rc<DataLoop>, node: NodeId) {
    let mut backoff = transport::Backoff::default();
    loop {
        let view = shared.view.borrow().clone();
        match transport::dial(&view, &shared.hello, node).await {
            Ok((stream, input)) => {
                tracing::info!(peer = %node, "connected to a peer");
                backoff.reset();
                shared
                    .serve_link(node, Direction::Dialled, stream, input)
                    .await;
                tracing::info!(peer = %node, "connection to a peer ended");
            }
            Err(error) => backoff.note(node, &error),
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

async fn peer_task(shared: Rc<DataLoop>, mut peers: mpsc::Receiver<AcceptedPeer>) {
    while let Some(accepted) = peers.recv().await {
        let shared = shared.clone();
        match TcpStream::from_std(accepted.stream) {
            Ok(stream) => {
                spawn_local(async move {
                    let (peer, input) = (accepted.peer, accepted.input);
                    shared
                        .serve_link(peer, Direction::Accepted, stream, input)
                        .await;
                });
            }
            Err(error) => tracing::warn!(%error, "an accepted connection is unusable"),
        }
    }
}

async fn accept_task(shared: Rc<DataLoop>, listener: TcpListener, clients_max: usize) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if shared.clients.borrow().len() >= clients_max => {
                // As Redis says it, so that clients understand.
                let _ = stream.try_write(b"-ERR max number of clients reached\r\n");
            }
            Ok((stream, address)) => {
                spawn_local(client_task(shared.clone(), stream, address.to_string()));
            }
            Err(error) => {
                // Out of file descriptors, most likely: let some connections end first.
                tracing::warn!(%error, "cannot accept a client");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }
}

async fn client_task(shared: Rc<DataLoop>, stream: TcpStream, peer: String) {
    let conn = shared.number();
    let outlet = Rc::new(Outlet::new(stream));
    shared
        .clients
        .borrow_mut()
        .insert(conn, (outlet.clone(), BytesMut::new()));
    shared.front.borrow_mut().open(conn, peer);
    let mut input = BytesMut::new();
    while read_more(&outlet, &mut input).await {
        shared.take_commands(conn, &mut input);
        // A client with too much in flight is not read from until some of it is answered; what it
        // sent already may hold further commands.
        while shared.front.borrow().is_paused(conn) && !outlet.is_closing.get() {
            outlet.wake.notified().await;
            if !shared.front.borrow().is_paused(conn) {
                shared.take_commands(conn, &mut input);
            }
        }
    }
    shared.front.borrow_mut().close(conn);
    shared.clients.borrow_mut().remove(&conn);
}

impl DataLoop {
    fn take_commands(&self, conn: u64, input: &mut BytesMut) {
        let mut core = self.core.borrow_mut();
        self.front
            .borrow_mut()
            .on_bytes(clock::now(), conn, input, &mut *core);
        drop(core);
        self.schedule_flush();
    }
}
