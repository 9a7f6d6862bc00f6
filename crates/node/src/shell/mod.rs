//! The shell: the threads, sockets and files that a real node has around its core.
//!
//! | thread | owns | does |
//! |---|---|---|
//! | data | core, client and peer sockets | everything a request needs, in turns ([`data_loop`]) |
//! | read, walk | nothing | read what is not in memory ([`read_thread`]) |
//! | store | the store's writing end | merges, one sync per group ([`store_thread`]) |
//! | flush | the flusher | brings what the log holds into the engine |
//! | control | gossip, Raft, the peer port | who is reachable, who is a member ([`control_loop`]) |
//!
//! [`Node::start`] opens the data directory, starts the threads and returns; [`NodeHandle`] is how the
//! rest of the process (HTTP, signals) talks to them. Whatever ends a thread ends the node, with a
//! reason.

mod clock;
mod control_loop;
mod courtesy;
mod data_loop;
mod outlet;
mod peers;
mod read_thread;
mod store_thread;
mod transport;

use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use mds_cluster::{AdminError, AdminReply, AdminRequest, ClusterView, Control, ControlConfig};
use mds_storage::datadir::{self, DataDir, DataDirError, DirLock};
use mds_storage::disk::RealDisk;
use mds_storage::hints::{HintLimits, HintStore};
use mds_storage::store::{Ledger, Store, StoreError, StoreOptions, StoreReader, StoreStats};
use mds_storage::{Disk, RunInfo, engine};
use mds_types::{ClusterId, Epoch, IncarnationId, NodeId, PartitionId};
use parking_lot::Mutex;
use tokio::runtime::Builder;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;

pub use clock::now;

use crate::api::{Outcome, Request, RequestError};
use crate::core::{Core, CoreConfig, CoreStats, SyncReport};
use crate::digest::{PartitionDigest, digest};
use crate::epoch_set::{EpochSet, epoch_set};
use crate::front::Frontend;
use crate::store_io::{StoreIo, row_seed};
use data_loop::{AttachedStore, Call, DataLoopParts, Health};

/// Calls of other threads (HTTP) that wait for the data thread, at most.
const CALLS_MAX: usize = 4_096;

/// Admin requests that wait for the control thread, at most.
const ADMIN_CALLS_MAX: usize = 64;

/// Accepted peers that wait for the data thread, at most.
const ACCEPTED_PEERS_MAX: usize = 256;

/// What a node is started with.
pub struct NodeConfig {
    /// Where everything durable lives.
    pub data_dir: PathBuf,
    /// The engine's name: `fjall`, `leveldb`, `memory`.
    pub engine: String,
    /// How the store works; its partition count is replaced by the cluster's.
    pub store: StoreOptions,
    /// Bounds on hints.
    pub hints: HintLimits,
    /// The core's settings.
    pub core: CoreConfig,
    /// Gossip and Raft.
    pub control: ControlConfig,
    /// `host:port` to listen on for Redis clients.
    pub resp_listen: String,
    /// `host:port` to listen on for peers: TCP for data and Raft, UDP for gossip.
    pub peer_listen: String,
    /// Client connections at most.
    pub clients_max: usize,
}

/// Why a node could not start or stopped. The message says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NodeError(String);

impl NodeError {
    fn new(what: impl std::fmt::Display, error: impl std::fmt::Display) -> NodeError {
        NodeError(format!("{what}: {error}"))
    }
}

/// A running node.
pub struct Node {
    handle: NodeHandle,
    stop: watch::Sender<bool>,
    data: JoinHandle<std::io::Result<()>>,
    control: JoinHandle<std::io::Result<()>>,
    store: StoreThread,
    // Held for as long as the node runs.
    _lock: DirLock,
}

/// The thread that owns the store, once there is one.
type StoreThread = Arc<Mutex<Option<JoinHandle<Result<(), StoreError>>>>>;

/// Talks to a running node from any thread.
#[derive(Clone)]
pub struct NodeHandle {
    calls: mpsc::Sender<Call>,
    admin: mpsc::Sender<control_loop::AdminCall>,
    view: watch::Receiver<Arc<ClusterView>>,
    fatal: watch::Receiver<Option<String>>,
    health: Arc<Mutex<Health>>,
    reader: Arc<OnceLock<StoreReader>>,
}

/// Counters and gauges of a node.
#[derive(Clone, Debug)]
pub struct NodeStats {
    /// The core's.
    pub core: CoreStats,
    /// The store's, once it is open.
    pub store: Option<StoreStats>,
}

impl Node {
    /// Opens the data directory, binds the ports, and starts the threads. `front` makes the front-end
    /// for client connections, on the data thread.
    ///
    /// # Errors
    /// Says what is wrong and, where it can, what to do: a directory in use, foreign or damaged, a port
    /// in use.
    pub fn start(
        config: NodeConfig,
        front: Box<dyn FnOnce() -> Box<dyn Frontend> + Send>,
    ) -> Result<Node, NodeError> {
        let opened = open_directory(&config)?;
        let resp = bind_tcp("resp", &config.resp_listen)?;
        let peer = bind_tcp("peer", &config.peer_listen)?;
        let gossip = UdpSocket::bind(&config.peer_listen).map_err(|error| {
            NodeError::new(
                format!("cannot listen for gossip on UDP {}", config.peer_listen),
                error,
            )
        })?;
        let incarnation = opened.directory.identity().incarnation;
        let cluster = opened.directory.identity().cluster;
        let timer_grid_ns = control_loop::timer_grid_ns(&config.control);
        let control = Control::open(
            opened.disk.clone(),
            opened.directory,
            opened.boot,
            config.control,
            clock::now().mono_ns,
        )
        .map_err(|error| NodeError::new("cannot open the control state", error))?;
        let hello = transport::HelloMaker {
            incarnation,
            boot_nonce: control.boot_nonce(),
        };

        let (stop, stopped) = watch::channel(false);
        let (view_tx, view) = watch::channel(control.view().clone());
        let (fatal_tx, fatal) = watch::channel(None);
        let (calls_tx, calls) = mpsc::channel(CALLS_MAX);
        let (admin_tx, admin) = mpsc::channel(ADMIN_CALLS_MAX);
        let (reports_tx, reports) = watch::channel(None);
        let (peers_tx, peers) = mpsc::channel(ACCEPTED_PEERS_MAX);
        let store_done = Arc::new(store_thread::DoneQueue::default());
        let health = Arc::new(Mutex::new(Health::default()));
        let (attach, attached) = oneshot::channel();
        let opener = StoreOpener {
            root: config.data_dir.clone(),
            engine: config.engine,
            // Salts what clients' bytes go into, so that nobody can forge frames inside values.
            options: StoreOptions {
                secret: (incarnation.0 >> 64) as u64,
                ..config.store
            },
            hints: config.hints,
            disk: opened.disk.clone(),
            done: store_done.clone(),
            thread: StoreThread::default(),
            reader: Arc::default(),
            attach,
        };
        let (store, reader) = (opener.thread.clone(), opener.reader.clone());
        match opened.partition_count {
            Some(partition_count) => opener.open(partition_count, cluster)?,
            None => opener.open_when_born(view.clone(), fatal_tx.clone())?,
        }
        let core = Core::new(config.core, view.borrow().clone(), opened.mark);
        let data_parts = DataLoopParts {
            core,
            front,
            store: attached,
            store_done,
            clients: resp,
            clients_max: config.clients_max,
            calls,
            peers,
            view: view.clone(),
            hello: hello.clone(),
            health: health.clone(),
            reports: reports_tx,
            stop: stopped.clone(),
        };
        let control_parts = control_loop::ControlLoopParts {
            control,
            listener: peer,
            datagrams: gossip,
            admin,
            peers: peers_tx,
            reports,
            view: view_tx,
            fatal: fatal_tx,
            hello,
            timer_grid_ns,
            stop: stopped,
        };
        let data = spawn_loop("mds-data", move || data_loop::run(data_parts))?;
        let control = spawn_loop("mds-control", move || control_loop::run(control_parts))?;
        let handle = NodeHandle {
            calls: calls_tx,
            admin: admin_tx,
            view,
            fatal,
            health,
            reader,
        };
        Ok(Node {
            handle,
            stop,
            data,
            control,
            store,
            _lock: opened.lock,
        })
    }

    /// A handle for other threads.
    pub fn handle(&self) -> NodeHandle {
        self.handle.clone()
    }

    /// Whether a thread has ended by itself: the node is of no use any more.
    pub fn has_failed(&self) -> bool {
        let has_store_ended = self
            .store
            .lock()
            .as_ref()
            .is_some_and(JoinHandle::is_finished);
        self.data.is_finished() || self.control.is_finished() || has_store_ended
    }

    /// Stops gracefully: no new connections, what is in flight is waited for within a bound, the log is
    /// synced and the store closed. Blocks until all threads have ended.
    ///
    /// # Errors
    /// The first thread's that did not end well.
    pub fn stop(self) -> Result<(), NodeError> {
        self.stop.send_replace(true);
        let panicked = |name: &str| NodeError(format!("the {name} thread panicked"));
        let data = self.data.join().map_err(|_| panicked("data"))?;
        let store = match self.store.lock().take() {
            Some(thread) => thread.join().map_err(|_| panicked("store"))?,
            None => Ok(()),
        };
        let control = self.control.join().map_err(|_| panicked("control"))?;
        data.map_err(|error| NodeError::new("the data thread failed", error))?;
        store.map_err(|error| NodeError::new("the store did not close well", error))?;
        control.map_err(|error| NodeError::new("the control thread failed", error))
    }
}

impl NodeHandle {
    /// Puts a request to this node as coordinator.
    ///
    /// # Errors
    /// The request's; [`RequestError::Overloaded`] when too many callers wait.
    pub async fn request(&self, request: Request) -> Result<Outcome, RequestError> {
        let (caller, answer) = oneshot::channel();
        let gone = || RequestError::NotReady("this node is shutting down".to_owned());
        self.calls
            .try_send((request, caller))
            .map_err(|error| match error {
                TrySendError::Full(_) => {
                    RequestError::Overloaded("too many calls wait for the data thread")
                }
                TrySendError::Closed(_) => gone(),
            })?;
        answer.await.map_err(|_| gone())?
    }

    /// Puts an admin request to the control part.
    ///
    /// # Errors
    /// The control part's; `None` when the node is shutting down or too many wait.
    pub async fn admin(&self, request: AdminRequest) -> Option<Result<AdminReply, AdminError>> {
        let (caller, answer) = oneshot::channel();
        self.admin.try_send((request, caller)).ok()?;
        answer.await.ok()
    }

    /// What this node knows of its cluster, now.
    pub fn view(&self) -> Arc<ClusterView> {
        self.view.borrow().clone()
    }

    /// Waits for the view to change. False when the node has ended.
    pub async fn view_changed(&mut self) -> bool {
        self.view.changed().await.is_ok()
    }

    /// Why this node has to stop, if it has.
    pub fn fatal(&self) -> Option<String> {
        self.fatal.borrow().clone()
    }

    /// Counters and gauges, at most a moment old.
    pub fn stats(&self) -> NodeStats {
        NodeStats {
            core: self.health.lock().stats,
            store: self.reader.get().map(StoreReader::stats),
        }
    }

    /// Why this node serves nothing any more, if so: its store has failed, or it is shutting down.
    pub fn stopped(&self) -> Option<String> {
        self.health.lock().stopped.clone()
    }

    /// Why this node cannot do everything, though it reads, until it is started anew: its disk was full.
    pub fn hindrance(&self) -> Option<String> {
        self.health.lock().hindrance.clone()
    }

    /// Peers that can be asked now.
    pub fn usable_peers(&self) -> usize {
        self.health.lock().usable_peers
    }

    /// How it goes with anti-entropy, at most a moment old.
    pub fn sync(&self) -> SyncReport {
        self.health.lock().sync.clone()
    }

    /// What this replica has promised about epochs: a snapshot, cheap. `None` until the store is open.
    pub fn ledger(&self) -> Option<Arc<Ledger>> {
        self.reader.get().map(StoreReader::ledger)
    }

    /// The files of the epoch index, by epoch; none until the store is open.
    pub fn runs(&self) -> Vec<RunInfo> {
        self.reader.get().map(StoreReader::runs).unwrap_or_default()
    }

    /// What this replica has of one epoch of a partition, as it is compared with others. Blocking: may read
    /// the rows of that epoch of that partition.
    ///
    /// # Errors
    /// In words, when the store fails or is not open.
    pub fn epoch_set(&self, partition: PartitionId, epoch: Epoch) -> Result<EpochSet, String> {
        let reader = self
            .reader
            .get()
            .ok_or("this node's store is not open yet")?;
        epoch_set(reader, partition, epoch).map_err(|error| error.to_string())
    }

    /// What this replica holds of each partition. Reads everything: for tests and people, not for
    /// monitoring. Blocking.
    ///
    /// # Errors
    /// In words, when the store fails or the cluster is not born.
    pub fn digests(&self) -> Result<Vec<PartitionDigest>, String> {
        let view = self.view();
        let config = view
            .config
            .as_ref()
            .ok_or("this node is not part of a cluster yet")?;
        let reader = self
            .reader
            .get()
            .ok_or("this node's store is not open yet")?;
        let partitions = (0..config.partition_count).map(PartitionId);
        partitions
            .map(|partition| digest(reader, partition).map_err(|error| error.to_string()))
            .collect()
    }
}

struct Opened {
    disk: Arc<dyn Disk>,
    directory: DataDir,
    boot: u64,
    mark: mds_types::Hlc,
    /// Known once the directory has belonged to a born cluster.
    partition_count: Option<u16>,
    lock: DirLock,
}

fn open_directory(config: &NodeConfig) -> Result<Opened, NodeError> {
    let root = config.data_dir.as_path();
    let at = |what: &str| format!("{what} {}", root.display());
    std::fs::create_dir_all(root)
        .map_err(|error| NodeError::new(at("cannot create the data directory"), error))?;
    let lock = DirLock::acquire(root).map_err(|error| NodeError(error.to_string()))?;
    let aside = datadir::set_aside_removed(root)
        .map_err(|error| NodeError::new(at("cannot begin anew in"), error))?;
    if let Some(aside) = aside {
        tracing::info!(
            kept_in = %aside.display(),
            "the node that lived here was removed from its cluster: a new one begins in its place"
        );
    }
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new(root.to_owned()));
    let refuse = |error: DataDirError| NodeError::new(at("cannot use the data directory"), error);
    let fresh = fresh_incarnation().map_err(|error| NodeError::new("no randomness", error))?;
    let directory = DataDir::open_or_create(disk.clone(), &config.engine, fresh).map_err(refuse)?;
    let boot = directory.next_boot().map_err(refuse)?;
    let mark = datadir::read_hlc_mark(&*disk)
        .map_err(refuse)?
        .unwrap_or_default();
    let partition_count = datadir::read_partition_count(&*disk).map_err(refuse)?;
    Ok(Opened {
        disk,
        directory,
        boot,
        mark,
        partition_count,
        lock,
    })
}

/// Opens the store and starts its threads: at the start of a node that is part of a cluster, or at the
/// moment its cluster is born, because only then the number of partitions is known.
struct StoreOpener {
    root: PathBuf,
    engine: String,
    options: StoreOptions,
    hints: HintLimits,
    disk: Arc<dyn Disk>,
    done: Arc<store_thread::DoneQueue>,
    thread: StoreThread,
    reader: Arc<OnceLock<StoreReader>>,
    attach: oneshot::Sender<AttachedStore>,
}

impl StoreOpener {
    fn open(self, partition_count: u16, cluster: ClusterId) -> Result<(), NodeError> {
        let at = |what: &str| format!("{what} {}", self.root.display());
        let engine = engine::open(&self.engine, &engine_path(&self.root))
            .map_err(|error| NodeError::new(at("cannot open the engine in"), error))?;
        let options = StoreOptions {
            partition_count,
            row_seed: row_seed(cluster),
            ..self.options
        };
        let store = Store::open(self.disk.clone(), engine, options)
            .map_err(|error| NodeError::new(at("cannot open the store in"), error))?;
        let hints = HintStore::open(self.disk.clone(), self.hints)
            .map_err(|error| NodeError::new(at("cannot open the hints in"), error))?;
        let mut io = StoreIo::new(self.disk, store, hints);
        let (reader, flusher) = (io.store().reader(), io.store().flusher());
        let (ledger, hints_pending) = (io.ledger(), io.hints_pending());
        let (batches, waiting) = std::sync::mpsc::channel();
        let thread = store_thread::spawn(io, flusher, waiting, self.done)
            .map_err(|error| NodeError::new("cannot start a thread", error))?;
        *self.thread.lock() = Some(thread);
        // Set once: an opener opens once.
        let _ = self.reader.set(reader.clone());
        // A data thread that has ended already needs no store.
        let _ = self.attach.send(AttachedStore {
            reader,
            batches,
            ledger,
            hints_pending,
        });
        Ok(())
    }

    fn open_when_born(
        self,
        mut view: watch::Receiver<Arc<ClusterView>>,
        fatal: watch::Sender<Option<String>>,
    ) -> Result<(), NodeError> {
        let open = move || {
            let Ok(runtime) = Builder::new_current_thread().build() else {
                return;
            };
            let born = runtime.block_on(view.wait_for(|view| view.config.is_some()));
            let born = born.ok().and_then(|view| {
                let config = view.config.as_ref()?;
                Some((config.partition_count, view.cluster))
            });
            // None: the node was stopped before it became part of a cluster.
            let Some((partition_count, cluster)) = born else {
                return;
            };
            let opened = datadir::write_partition_count(&*self.disk, partition_count)
                .map_err(|error| NodeError(error.to_string()))
                .and_then(|()| self.open(partition_count, cluster));
            if let Err(error) = opened {
                fatal.send_replace(Some(error.to_string()));
            }
        };
        let spawned = std::thread::Builder::new()
            .name("mds-open".to_owned())
            .spawn(open);
        spawned
            .map(drop)
            .map_err(|error| NodeError::new("cannot start a thread", error))
    }
}

fn engine_path(root: &Path) -> PathBuf {
    root.join(mds_storage::datadir::ENGINE_DIR)
}

/// A random identity for a directory that has none.
fn fresh_incarnation() -> std::io::Result<IncarnationId> {
    use std::io::Read as _;
    let mut bytes = [0u8; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let id = IncarnationId(u128::from_le_bytes(bytes));
    // Zero stands for "nobody"; one chance in 2^64 is still not taken.
    Ok(if id.node_id() == NodeId(0) {
        IncarnationId(id.0 | 1)
    } else {
        id
    })
}

fn bind_tcp(name: &str, addr: &str) -> Result<TcpListener, NodeError> {
    TcpListener::bind(addr).map_err(|error| {
        let what =
            format!("cannot listen on {addr} ({name}_listen): is another process using the port?");
        NodeError::new(what, error)
    })
}

/// Runs a loop on a thread of its own, with a current-thread runtime of its own.
fn spawn_loop<F, R>(name: &str, make: F) -> Result<JoinHandle<std::io::Result<()>>, NodeError>
where
    F: FnOnce() -> R + Send + 'static,
    R: Future<Output = std::io::Result<()>>,
{
    let spawned = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let ended = LocalSet::new().block_on(&runtime, make());
            // A name that is being looked up may take longer than a node has for its end.
            runtime.shutdown_background();
            ended
        });
    spawned.map_err(|error| NodeError::new("cannot start a thread", error))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_lookup_that_hangs_keeps_no_loop_from_its_end() {
        let (release, released) = mpsc::channel::<()>();
        let hanging = spawn_loop("hanging", move || async move {
            // As a name is looked up. Ends when the test does.
            tokio::task::spawn_blocking(move || released.recv());
            Ok(())
        });
        let (done, ended) = mpsc::channel();
        std::thread::spawn(move || done.send(hanging.unwrap().join().unwrap().is_ok()));
        // Far more than it takes; without an end it would be for ever.
        assert!(ended.recv_timeout(Duration::from_secs(20)).unwrap());
        drop(release);
    }
}
