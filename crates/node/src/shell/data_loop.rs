//! The data thread: sockets of clients and peers around the core, in turns.
//!
//! One thread, one tokio current-thread runtime, a task per *connection* (never per request). Tasks read
//! what is readable and hand it to the core or the front-end; the first one in a turn wakes the flusher,
//! which runs after all tasks that were ready with it, and then does everything at once: local replies,
//! reads, one batch to the store, one write per peer, one write per client. Nothing waits *for* a batch,
//! and nothing in a turn waits for a disk: what is not in memory is read by threads ([`read_thread`]), so
//! that a turn is short and pings are answered whatever clients ask for.
//!
//! Clients' connections are here; peers' are in [`peers`](super::peers).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use bytes::BytesMut;
use mds_cluster::ClusterView;
use mds_storage::store::{Ledger, StoreReader};
use mds_types::NodeId;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet, spawn_local};

use super::outlet::Outlet;
use super::peers::{self, AcceptedPeer, OpenLink};
use super::read_thread::{AnswerQueue, ReadThreads};
use super::store_thread::DoneQueue;
use super::{clock, transport};
use crate::api::{FRONT_HTTP, Outcome, Request, RequestError, Submit, Tag};
use crate::core::{Core, CoreStats, LinkId, RingReport, SyncReport};
use crate::front::Frontend;
use crate::store_io::{StoreBatch, read_in_memory};

/// Replies that a client does not take, at most; beyond, its connection is closed.
const CLIENT_BACKLOG_BYTES_MAX: usize = 256 * 1024 * 1024;

/// A stopping node waits this long for what is in flight; what is then unanswered is answered as
/// unknown or not ready. Less than HTTP takes to drain, so that its callers hear it too.
const DRAIN_MAX: Duration = Duration::from_millis(1_800);

/// After that, clients have this long to take their last replies.
const FAREWELL_MAX: Duration = Duration::from_millis(250);

/// What clients of a stopping node hear.
const SHUTTING_DOWN: &str = "this node is shutting down";

/// A request from another thread of this process, and where its answer goes.
pub(super) type Call = (Request, oneshot::Sender<Result<Outcome, RequestError>>);

/// The store's ends that the data thread uses.
pub(super) struct AttachedStore {
    pub(super) reader: StoreReader,
    pub(super) batches: Sender<StoreBatch>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) hints_pending: Vec<(NodeId, u64)>,
}

/// The same, in use.
struct OpenStore {
    reader: StoreReader,
    batches: Sender<StoreBatch>,
    reads: ReadThreads,
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
    /// What this node has to report to those that lead a change of the ring.
    pub(super) reports: watch::Sender<Option<RingReport>>,
    pub(super) stop: watch::Receiver<bool>,
}

/// What the rest of the process may know of the core, at most a tick old.
#[derive(Clone, Debug, Default)]
pub(super) struct Health {
    pub(super) stats: CoreStats,
    pub(super) sync: SyncReport,
    pub(super) usable_peers: usize,
    /// Why nothing is served any more.
    pub(super) stopped: Option<String>,
    /// Why not everything can be done, though reads go on: until the node is started anew.
    pub(super) hindrance: Option<String>,
}

/// The data thread's state, shared by its tasks.
pub(super) struct DataLoop {
    pub(super) core: RefCell<Core>,
    front: RefCell<Box<dyn Frontend>>,
    store: RefCell<Option<OpenStore>>,
    clients: RefCell<BTreeMap<u64, (Rc<Outlet>, BytesMut)>>,
    pub(super) links: RefCell<BTreeMap<LinkId, OpenLink>>,
    calls: RefCell<BTreeMap<u64, oneshot::Sender<Result<Outcome, RequestError>>>>,
    next_number: Cell<u64>,
    answers: Arc<AnswerQueue>,
    is_flush_due: Cell<bool>,
    flush: Notify,
    /// A turn has ended or a client has taken all of its output; for whoever waits for quiet.
    turned: Notify,
    /// The task of a connection panicked: the core may be in any state.
    panicked: Notify,
    armed_ns: Cell<u64>,
    rearm: Notify,
    pub(super) view: watch::Receiver<Arc<ClusterView>>,
    pub(super) hello: transport::HelloMaker,
    health: Arc<Mutex<Health>>,
    reports: watch::Sender<Option<RingReport>>,
}

/// Runs the data thread until it is told to stop and has drained.
///
/// # Errors
/// When a task without which nothing is served has ended.
pub(super) async fn run(parts: DataLoopParts) -> std::io::Result<()> {
    let shared = Rc::new(DataLoop {
        core: RefCell::new(parts.core),
        front: RefCell::new((parts.front)()),
        store: RefCell::new(None),
        clients: RefCell::default(),
        links: RefCell::default(),
        calls: RefCell::default(),
        next_number: Cell::new(1),
        answers: Arc::default(),
        is_flush_due: Cell::new(false),
        flush: Notify::new(),
        turned: Notify::new(),
        panicked: Notify::new(),
        armed_ns: Cell::new(0),
        rearm: Notify::new(),
        view: parts.view.clone(),
        hello: parts.hello,
        health: parts.health,
        reports: parts.reports,
    });
    parts.clients.set_nonblocking(true)?;
    let listener = TcpListener::from_std(parts.clients)?;
    let mut essential = JoinSet::new();
    essential.spawn_local(flush_task(shared.clone()));
    essential.spawn_local(timer_task(shared.clone()));
    essential.spawn_local(store_task(shared.clone(), parts.store_done));
    essential.spawn_local(read_task(shared.clone()));
    shared.spawn(attach_task(shared.clone(), parts.store));
    shared.spawn(call_task(shared.clone(), parts.calls));
    shared.spawn(peers::view_task(shared.clone(), parts.view));
    shared.spawn(peers::accepted_task(shared.clone(), parts.peers));
    let accept = shared.spawn(accept_task(shared.clone(), listener, parts.clients_max));

    let mut stop = parts.stop;
    tokio::select! {
        // An error means that whoever could say "stop" is gone: that is a stop, too.
        _ = stop.wait_for(|is_stopping| *is_stopping) => {}
        ended = essential.join_next() => {
            let how = match ended {
                Some(Err(error)) => error.to_string(),
                Some(Ok(())) | None => "it returned".to_owned(),
            };
            let what = format!("an essential task of the data thread has ended: {how}");
            return Err(std::io::Error::other(what));
        }
        () = shared.panicked.notified() => {
            return Err(std::io::Error::other("a task of the data thread panicked"));
        }
    }
    accept.abort();
    shared.drain().await;
    // The store thread ends when the last sender of batches is gone, and the store closes when nobody
    // reads from it any more.
    let store = shared.store.borrow_mut().take();
    if let Some(store) = store {
        drop(store.batches);
        store.reads.stop();
    }
    Ok(())
}

/// Says that the task which holds it panicked.
struct Alarm(Rc<DataLoop>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.panicked.notify_one();
        }
    }
}

impl DataLoop {
    /// Starts a task whose panic ends the data thread.
    pub(super) fn spawn(
        self: &Rc<Self>,
        task: impl Future<Output = ()> + 'static,
    ) -> JoinHandle<()> {
        let alarm = Alarm(self.clone());
        spawn_local(async move {
            let _alarm = alarm;
            task.await;
        })
    }

    fn number(&self) -> u64 {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        number
    }

    fn publish_health(&self, core: &Core) {
        let mut health = self.health.lock();
        health.stats = core.stats();
        health.sync = core.sync_report();
        health.usable_peers = core.usable_peers().len();
        if health.stopped.is_none() {
            health.stopped = core.stopped().map(str::to_owned);
        }
    }

    pub(super) fn schedule_flush(&self) {
        if !self.is_flush_due.replace(true) {
            self.flush.notify_one();
        }
    }

    /// The end of a turn: everything that its inputs brought about leaves together. What the answers
    /// bring about in their turn is the business of the next one, after tasks that are ready.
    fn end_turn(self: &Rc<Self>) {
        self.is_flush_due.set(false);
        let now = clock::now();
        let mut core = self.core.borrow_mut();
        core.settle(now);
        let has_read = self.carry_reads(now, &mut core);
        if has_read {
            core.settle(now);
        }
        let has_answered = self.deliver(now, &mut core);
        if has_read || has_answered {
            self.schedule_flush();
        }
        if let Some(store) = &*self.store.borrow()
            && let Some(batch) = core.take_batch()
            && store.batches.send(batch).is_err()
        {
            core.stop("the store thread has ended".to_owned());
        }
        for link in core.take_dirty_links() {
            let outlet = self.outlet(link);
            if let (Some(outlet), Some(out)) = (outlet, core.link_output(link)) {
                let again = self.clone();
                outlet.write(out, move || again.write_link(link));
            }
        }
        let deadline_ns = core.next_deadline_ns();
        drop(core);
        self.flush_clients();
        if deadline_ns < self.armed_ns.get() {
            self.rearm.notify_one();
        }
        self.turned.notify_one();
    }

    /// Answers the core's questions that memory can answer, and hands the others to the threads. True if
    /// anything was answered.
    fn carry_reads(&self, now: crate::api::Now, core: &mut Core) -> bool {
        let questions = core.take_reads();
        if questions.is_empty() {
            return false;
        }
        let mut store = self.store.borrow_mut();
        let mut has_read = false;
        for (ticket, query) in questions {
            let Some(store) = &mut *store else {
                core.on_read_done(now, ticket, &query, None);
                has_read = true;
                continue;
            };
            if let Some(answer) = read_in_memory(&store.reader, &query) {
                core.on_read_done(now, ticket, &query, Some(answer));
                has_read = true;
            } else if let Err((ticket, query)) = store.reads.ask((ticket, query)) {
                core.on_read_done(now, ticket, &query, None);
                has_read = true;
            }
        }
        if let Some(store) = &mut *store
            && !store.reads.send()
        {
            core.stop("a thread that reads from the store has ended".to_owned());
        }
        has_read
    }

    /// Gives answers to whom they belong. True if there were any.
    fn deliver(&self, now: crate::api::Now, core: &mut Core) -> bool {
        let done = core.take_done();
        let has_answered = !done.is_empty();
        for (tag, result) in done {
            if tag.front == FRONT_HTTP {
                if let Some(caller) = self.calls.borrow_mut().remove(&tag.id) {
                    // The caller may have gone away; then nobody wants to know.
                    let _ = caller.send(result);
                }
            } else {
                self.front.borrow_mut().on_done(now, tag, result, core);
            }
        }
        has_answered
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
            outlet.write(backlog, move || again.write_client(conn));
            front.set_backlog(conn, backlog.len());
            if front.must_close_now(conn) || backlog.len() > CLIENT_BACKLOG_BYTES_MAX {
                tracing::warn!(conn, "closing a client that does not take its replies");
                *backlog = BytesMut::new();
                outlet.end();
            } else if front.wants_close(conn) && backlog.is_empty() {
                outlet.end();
            } else {
                outlet.wake();
            }
        }
    }

    pub(super) fn outlet(&self, link: LinkId) -> Option<Rc<Outlet>> {
        self.links
            .borrow()
            .get(&link)
            .map(|open| open.outlet.clone())
    }

    fn write_link(self: &Rc<Self>, link: LinkId) {
        let outlet = self.outlet(link);
        if let (Some(outlet), Some(out)) = (outlet, self.core.borrow_mut().link_output(link)) {
            let again = self.clone();
            outlet.write(out, move || again.write_link(link));
        }
    }

    fn write_client(self: &Rc<Self>, conn: u64) {
        let mut clients = self.clients.borrow_mut();
        let Some((outlet, backlog)) = clients.get_mut(&conn) else {
            return;
        };
        let again = self.clone();
        outlet.write(backlog, move || again.write_client(conn));
        let mut front = self.front.borrow_mut();
        front.set_backlog(conn, backlog.len());
        if backlog.is_empty() {
            if front.wants_close(conn) {
                outlet.end();
            } else {
                outlet.wake();
            }
            self.turned.notify_one();
        }
    }

    /// Refuses new requests, waits for what is in flight, and sees that everybody hears how it ended:
    /// all of it within bounds.
    async fn drain(self: &Rc<Self>) {
        self.health
            .lock()
            .stopped
            .get_or_insert(SHUTTING_DOWN.to_owned());
        self.core.borrow_mut().begin_drain();
        self.until(DRAIN_MAX, || self.core.borrow().in_flight() == 0)
            .await;
        self.core.borrow_mut().abandon(clock::now());
        // Answers may make front-ends ask again, and hear that it is too late.
        self.schedule_flush();
        while self.is_flush_due.get() {
            self.end_turn();
        }
        let is_all_taken = || {
            let clients = self.clients.borrow();
            clients
                .values()
                .all(|(outlet, backlog)| backlog.is_empty() || outlet.is_ended())
        };
        self.until(FAREWELL_MAX, is_all_taken).await;
        for (outlet, _) in self.clients.borrow().values() {
            outlet.end();
        }
    }

    /// Waits until something is so, at most for so long.
    async fn until(&self, time_max: Duration, is_so: impl Fn() -> bool) {
        let wait = async {
            while !is_so() {
                self.turned.notified().await;
            }
        };
        // Being late is not an error: the caller goes on.
        let _ = tokio::time::timeout(time_max, wait).await;
    }

    fn take_commands(&self, conn: u64, input: &mut BytesMut) {
        let mut core = self.core.borrow_mut();
        self.front
            .borrow_mut()
            .on_bytes(clock::now(), conn, input, &mut *core);
        drop(core);
        self.schedule_flush();
    }
}

async fn flush_task(shared: Rc<DataLoop>) {
    loop {
        shared.flush.notified().await;
        shared.end_turn();
    }
}

async fn timer_task(shared: Rc<DataLoop>) {
    let mut silence = peers::SilenceWatch::default();
    loop {
        let deadline_ns = shared.core.borrow_mut().next_deadline_ns();
        shared.armed_ns.set(deadline_ns);
        let at = tokio::time::Instant::from_std(clock::instant_at(deadline_ns));
        tokio::select! {
            biased;
            () = shared.rearm.notified() => continue,
            () = tokio::time::sleep_until(at) => {}
        }
        let now = clock::now();
        let mut core = shared.core.borrow_mut();
        core.on_timer(now);
        shared.publish_health(&core);
        if let Some(report) = core.take_ring_report() {
            shared.reports.send_replace(Some(report));
        }
        let lost = core.take_lost_links();
        drop(core);
        for outlet in lost.into_iter().filter_map(|link| shared.outlet(link)) {
            outlet.end();
        }
        silence.look(now.mono_ns, &shared.links.borrow());
        shared.schedule_flush();
    }
}

async fn attach_task(shared: Rc<DataLoop>, store: oneshot::Receiver<AttachedStore>) {
    let Ok(store) = store.await else {
        return;
    };
    let mut core = shared.core.borrow_mut();
    match ReadThreads::spawn(&store.reader, shared.answers.clone()) {
        Ok(reads) => {
            core.on_store_open(store.ledger, store.hints_pending);
            *shared.store.borrow_mut() = Some(OpenStore {
                reader: store.reader,
                batches: store.batches,
                reads,
            });
        }
        Err(error) => core.stop(format!("no thread to read with: {error}")),
    }
    drop(core);
    shared.schedule_flush();
}

async fn store_task(shared: Rc<DataLoop>, store_done: Arc<DoneQueue>) {
    loop {
        store_done.notify.notified().await;
        for done in store_done.take() {
            shared.core.borrow_mut().on_store_done(clock::now(), done);
        }
        shared.health.lock().hindrance = store_done.hindrance();
        shared.schedule_flush();
    }
}

async fn read_task(shared: Rc<DataLoop>) {
    loop {
        shared.answers.notify.notified().await;
        let mut store = shared.store.borrow_mut();
        let answers = store.as_mut().map(|store| store.reads.take_answers());
        drop(store);
        let (now, mut core) = (clock::now(), shared.core.borrow_mut());
        for ((ticket, query), answer) in answers.into_iter().flatten() {
            core.on_read_done(now, ticket, &query, answer);
        }
        drop(core);
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

async fn accept_task(shared: Rc<DataLoop>, listener: TcpListener, clients_max: usize) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) if shared.clients.borrow().len() >= clients_max => {
                // As Redis says it, so that clients understand.
                let _ = stream.try_write(b"-ERR max number of clients reached\r\n");
            }
            Ok((stream, address)) => {
                shared.spawn(client_task(shared.clone(), stream, address.to_string()));
            }
            Err(error) => {
                // Out of file descriptors, most likely: let some connections end first.
                tracing::warn!(%error, "cannot accept a client");
                tokio::time::sleep(Duration::from_millis(50)).await;
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
    while outlet.read(&mut input).await {
        shared.take_commands(conn, &mut input);
        // A client with too much in flight is not read from until some of it is answered; what it
        // sent already may hold further commands.
        while shared.front.borrow().is_paused(conn) && !outlet.is_ended() {
            outlet.woken().await;
            if !shared.front.borrow().is_paused(conn) {
                shared.take_commands(conn, &mut input);
            }
        }
    }
    // A task that waits for room lets go of the socket, too.
    outlet.end();
    shared.front.borrow_mut().close(conn);
    shared.clients.borrow_mut().remove(&conn);
    shared.turned.notify_one();
}
