//! One node, from configuration to the last drained request.
//!
//! The process runs until SIGTERM or Ctrl-C, then stops taking work, lets what is in progress finish
//! and exits 0, in under five seconds; with `on_stop = "leave"` it leaves the ring before that. What it cannot start with it says in one sentence that names
//! the way out, and exits non-zero; so it does when a part of it fails for good while it runs (a
//! sync that failed, a directory that turns out to be a clone), because a node that does not keep its
//! promises must not answer.
//!
//! The main thread runs HTTP and waits for signals; the node's own threads do the rest.

mod leave;
mod life;
mod log;
mod rejoin;
mod settings;

use std::io::Read;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use mds_node::front::Frontend;
use mds_node::shell::{Node, NodeError, NodeHandle};
use mds_storage::datadir;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::rejoin::Rejoin;
use crate::config::{Effective, NodeConfig, OnStop};
use crate::database::RunningNode;
use crate::http::{self, App};
use crate::profile;
use crate::resp::RespFront;

/// How often a running node is asked whether a part of it has failed.
const FAILURE_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// How long the node's threads may take to end, from the moment they are told to: longer than the node
/// waits for what is in flight, and short enough that the process is gone within five seconds. Beyond it
/// the process ends without them: everything acknowledged is in the log, which the next start replays.
const STOP_TIMEOUT: Duration = Duration::from_millis(4_500);

/// Why a node did not start or did not end well: a sentence for a person.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServeError(String);

impl ServeError {
    fn new(what: impl std::fmt::Display, error: impl std::fmt::Display) -> ServeError {
        ServeError(format!("{what}: {error}"))
    }
}

/// Exit code of a node that could not start or go on.
const EXIT_FAILED: u8 = 3;

/// Opens the log, then runs a node to its end. Why it ended is the last line of its log.
///
/// # Errors
/// [`ServeError`], when there is no log to say it in.
pub fn main(effective: Effective) -> Result<ExitCode, ServeError> {
    log::open(&effective.config)?;
    loop {
        match run(effective.clone()) {
            Ok(Ended::Stopped) => return Ok(ExitCode::SUCCESS),
            Ok(Ended::Removed) => {}
            Err(error) if tracing::enabled!(tracing::Level::ERROR) => {
                tracing::error!("{error}");
                return Ok(ExitCode::from(EXIT_FAILED));
            }
            Err(error) => return Err(error),
        }
    }
}

/// How a node ended that did not fail.
enum Ended {
    /// It was told to stop.
    Stopped,
    /// It is off the ring for good, and another is to begin in its directory.
    Removed,
}

/// Runs a node until it is told to stop, cannot go on, or is to make room for another.
fn run(effective: Effective) -> Result<Ended, ServeError> {
    let config = &effective.config;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        name = config.node_name(),
        data_dir = %config.data_dir.display(),
        engine = %config.engine,
        fsync = %config.fsync,
        "starting"
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ServeError::new("the runtime cannot be built", error))?;
    let _entered = runtime.enter();
    // Before anything is opened: a signal from now on means an orderly end.
    let signals = Signals::new().map_err(|error| ServeError::new("cannot catch signals", error))?;
    let listener = bind_http(config)?;
    let node = start(config)?;
    if config.profiling {
        profile::keep_samples_in(&config.data_dir);
    }
    let handle = node.handle();
    tracing::info!(
        resp = %config.resp_listen,
        http = %config.http_listen,
        peers = %config.peer_listen,
        "listening"
    );
    let connections_max = config.http_connections_max;
    let leaving = Leaving::of(config)?;
    let (rejoin, data_dir) = (Rejoin::of(config.on_removed), config.data_dir.clone());
    let database = Arc::new(RunningNode::new(handle.clone()));
    let router = http::router(App::new(database, effective));
    let ended = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)
            .map_err(|error| ServeError::new("cannot serve HTTP", error))?;
        let life = tokio::spawn(life::tell(handle.clone()));
        // The node and HTTP drain at the same time: the node refuses what is new, so that HTTP has an
        // answer for everything, and HTTP carries the answers out.
        let mut ended = None;
        let until = async {
            let end = wait_for_end(signals, &node, &handle, leaving, rejoin).await;
            ended = Some((end, Stopping::begin(node)));
        };
        http::server::serve(listener, router, connections_max, until).await;
        life.abort();
        ended.ok_or_else(|| ServeError("HTTP ended by itself".to_owned()))
    })?;
    let (end, stopping) = ended;
    let stopped = stopping.and_then(Stopping::wait);
    match end {
        End::Failure(reason) => Err(ServeError(reason)),
        End::Removed => {
            // Before all else: should a thread hang, the next start begins anew.
            datadir::note_removal(&data_dir, handle.view().me)
                .map_err(|error| ServeError::new("cannot begin anew", error))?;
            stopped?;
            Ok(Ended::Removed)
        }
        End::Signal(_) => {
            stopped?;
            tracing::info!("stopped");
            Ok(Ended::Stopped)
        }
    }
}

/// Opens the data directory and starts the node's threads, with the Redis front-end on its data
/// thread.
fn start(config: &NodeConfig) -> Result<Node, ServeError> {
    let no_entropy = |error| ServeError::new("no randomness from /dev/urandom", error);
    let settings = settings::of(config, entropy().map_err(no_entropy)?);
    let seed = entropy().map_err(no_entropy)?;
    let front = Box::new(move || Box::new(RespFront::new(seed)) as Box<dyn Frontend>);
    Node::start(settings, front).map_err(|error| ServeError(error.to_string()))
}

fn entropy() -> std::io::Result<u64> {
    let mut bytes = [0u8; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn bind_http(config: &NodeConfig) -> Result<TcpListener, ServeError> {
    let bound = TcpListener::bind(config.http_listen).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    bound.map_err(|error| {
        let addr = config.http_listen;
        let what = format!(
            "cannot listen on {addr} (http_listen): is another process using the port? \
             `ss -tulpn | grep :{}` shows it",
            addr.port()
        );
        ServeError::new(what, error)
    })
}

/// Why a node ends.
enum End {
    /// It was told to, by this signal.
    Signal(&'static str),
    /// It is off the ring for good, and another is to begin in its place.
    Removed,
    /// It cannot go on.
    Failure(String),
}

/// Waits for a signal or a failure.
async fn wait_for_end(
    mut signals: Signals,
    node: &Node,
    handle: &NodeHandle,
    leaving: Option<Leaving>,
    mut rejoin: Rejoin,
) -> End {
    let mut check = tokio::time::interval(FAILURE_CHECK_INTERVAL);
    let end = loop {
        tokio::select! {
            name = signals.next() => break End::Signal(name),
            _ = check.tick() => {}
        }
        if rejoin.is_due(&handle.view()) {
            break End::Removed;
        }
        if let Some(reason) = handle.fatal() {
            break End::Failure(reason);
        }
        if node.has_failed() {
            let reason = "a thread of this node ended by itself: see the log lines above";
            break End::Failure(reason.to_owned());
        }
    };
    match &end {
        End::Signal(name) => {
            if let Some(leaving) = leaving {
                leaving.leave(name, &mut signals, handle).await;
            }
            tracing::info!(signal = name, "stopping");
        }
        End::Removed => tracing::info!("this node is off the ring for good: it begins anew"),
        End::Failure(_) => tracing::error!("stopping, as this node cannot go on"),
    }
    end
}

/// That a node leaves the ring before it stops.
struct Leaving {
    /// Names the request.
    request: u128,
    timeout: Duration,
}

impl Leaving {
    /// `None` if the node stays on the ring.
    fn of(config: &NodeConfig) -> Result<Option<Leaving>, ServeError> {
        if config.on_stop == OnStop::Stay {
            return Ok(None);
        }
        let half = || entropy().map(u128::from);
        let request = half().and_then(|high| Ok(high << 64 | half()?));
        let request =
            request.map_err(|error| ServeError::new("no randomness from /dev/urandom", error))?;
        let timeout = Duration::from_millis(config.leave_timeout_ms);
        Ok(Some(Leaving { request, timeout }))
    }

    /// Leaves, unless a second signal says that there is no time for it.
    async fn leave(self, signal: &str, signals: &mut Signals, handle: &NodeHandle) {
        tracing::info!(
            signal,
            "leaving the ring before stopping; a second signal stops at once"
        );
        tokio::select! {
            left = leave::leave(handle, self.request, self.timeout) => match left {
                Ok(()) => tracing::info!("left the ring"),
                Err(reason) => tracing::warn!(reason, "this node stays on the ring"),
            },
            name = signals.next() => {
                tracing::warn!(signal = name, "stopping at once: this node may still be on the ring");
            }
        }
    }
}

/// The node's threads, on their way to their end.
struct Stopping {
    result: mpsc::Receiver<Result<(), NodeError>>,
    until: Instant,
}

impl Stopping {
    /// Tells the node's threads to end. Does not wait.
    fn begin(node: Node) -> Result<Stopping, ServeError> {
        let (done, result) = mpsc::channel();
        let stopping = std::thread::Builder::new()
            .name("mds-stop".to_owned())
            .spawn(move || {
                // Nobody listens any more once the time is up.
                let _ = done.send(node.stop());
            });
        stopping.map_err(|error| ServeError::new("cannot start a thread", error))?;
        Ok(Stopping {
            result,
            until: Instant::now() + STOP_TIMEOUT,
        })
    }

    /// Waits for them, within the bound.
    fn wait(self) -> Result<(), ServeError> {
        let left = self.until.saturating_duration_since(Instant::now());
        match self.result.recv_timeout(left) {
            Ok(result) => result.map_err(|error| ServeError(error.to_string())),
            Err(_) => Err(ServeError(format!(
                "the node did not stop within {} ms and was cut off; its log is replayed at the \
                 next start",
                STOP_TIMEOUT.as_millis()
            ))),
        }
    }
}

/// The signals that mean: end in order.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
