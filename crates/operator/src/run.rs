//! The process: a loop over all resources while it holds the lease, and an endpoint for health and metrics.
//!
//! Rounds of different resources run at the same time, up to a bound; one resource has one round at a time. It polls,
//! rather than watches: most of what a decision depends on (stages, epochs, who is waited for) is the database's to tell, and cannot
//! be watched.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use clap::Args;
use futures_util::StreamExt;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

use crate::crd::MyDataStore;
use crate::database::HttpDatabase;
use crate::lease::Lease;
use crate::reconcile::{Context, Round};

/// Resources whose rounds run at the same time, at most.
const ROUNDS_MAX: usize = 16;

/// How often the list of resources is read.
const LIST_EVERY: Duration = Duration::from_secs(1);

/// How the operator is run.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Look after the resources of this namespace only [default: of all]
    #[arg(long, env = "WATCH_NAMESPACE")]
    namespace: Option<String>,
    /// Where health and metrics are told
    #[arg(long, default_value = "0.0.0.0:8080")]
    listen: std::net::SocketAddr,
    /// The namespace of the lease by which one of several operators is chosen
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    lease_namespace: String,
    /// This process' name in the lease
    #[arg(long, env = "POD_NAME", default_value = "mds-operator")]
    identity: String,
}

/// What is counted.
#[derive(Default)]
struct Counts {
    leads: AtomicU64,
    rounds: AtomicU64,
    errors: AtomicU64,
    actions: AtomicU64,
    waiting: AtomicU64,
    resources: AtomicU64,
}

impl Counts {
    fn text(&self) -> String {
        let rows = [
            ("leader", "gauge", "1 if this process acts.", &self.leads),
            (
                "resources",
                "gauge",
                "Resources that are looked after.",
                &self.resources,
            ),
            (
                "waiting",
                "gauge",
                "Resources that wait for something.",
                &self.waiting,
            ),
            (
                "rounds_total",
                "counter",
                "Looks at a resource.",
                &self.rounds,
            ),
            (
                "actions_total",
                "counter",
                "Actions decided on.",
                &self.actions,
            ),
            (
                "errors_total",
                "counter",
                "Rounds that failed.",
                &self.errors,
            ),
        ];
        let rows = rows.map(|(name, kind, help, value)| {
            let value = value.load(Ordering::Relaxed);
            format!(
                "# HELP mds_operator_{name} {help}\n# TYPE mds_operator_{name} {kind}\nmds_operator_{name} {value}\n"
            )
        });
        rows.concat()
    }
}

/// Runs until SIGTERM or until the lease is lost.
///
/// # Errors
/// Why it could not start or go on.
pub fn main(args: &RunArgs) -> Result<(), Box<dyn std::error::Error>> {
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let client = Client::try_default().await?;
        let lease = Lease::new(client.clone(), &args.lease_namespace, &args.identity);
        tokio::select! {
            ended = work(client, &lease, args) => ended,
            _ = terminate.recv() => {
                tracing::info!("stopping");
                lease.release().await;
                Ok(())
            }
        }
    })
}

async fn work(
    client: Client,
    lease: &Lease,
    args: &RunArgs,
) -> Result<(), Box<dyn std::error::Error>> {
    let counts = Arc::new(Counts::default());
    let shown = counts.clone();
    let routes = Router::new()
        .route("/health", get(|| async { "ok" }))
        .route("/metrics", get(move || async move { shown.text() }));
    let listener = tokio::net::TcpListener::bind(args.listen).await?;
    tokio::spawn(async move { axum::serve(listener, routes).await });

    let until = lease.acquire().await;
    tracing::info!(identity = args.identity, "leading");
    counts.leads.store(1, Ordering::Relaxed);
    let context = Context {
        client,
        database: HttpDatabase::default(),
    };
    tokio::select! {
        () = lease.keep(until) => Err("the lease was lost: another operator leads now".into()),
        () = all_rounds(&context, args, &counts) => Ok(()),
    }
}

/// What was last said about a resource, and when it is looked at again.
struct Last {
    said: String,
    next: Instant,
}

async fn all_rounds(context: &Context<HttpDatabase>, args: &RunArgs, counts: &Counts) {
    let api: Api<MyDataStore> = match &args.namespace {
        Some(namespace) => Api::namespaced(context.client.clone(), namespace),
        None => Api::all(context.client.clone()),
    };
    let mut last: BTreeMap<String, Last> = BTreeMap::new();
    let mut seen: BTreeMap<String, Option<i64>> = BTreeMap::new();
    loop {
        match api.list(&ListParams::default()).await {
            Err(error) => {
                counts.errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%error, "the resources cannot be listed");
            }
            Ok(list) => {
                let names: Vec<String> = list.items.iter().map(key).collect();
                last.retain(|name, _| names.contains(name));
                seen.retain(|name, _| names.contains(name));
                counts
                    .resources
                    .store(names.len() as u64, Ordering::Relaxed);
                // A changed resource need not wait for its time.
                let due = list.items.iter().filter(|store| {
                    let name = key(store);
                    let generation = store.metadata.generation;
                    let changed = seen.insert(name.clone(), generation) != Some(generation);
                    changed
                        || last
                            .get(&name)
                            .is_none_or(|last| Instant::now() >= last.next)
                });
                let due: Vec<&MyDataStore> = due.collect();
                let rounds = futures_util::stream::iter(due)
                    .map(|store| one_round(context, store, counts))
                    .buffer_unordered(ROUNDS_MAX);
                let rounds: Vec<(&MyDataStore, Round)> = rounds.collect().await;
                for (store, round) in rounds {
                    let entry = last.entry(key(store)).or_insert_with(|| Last {
                        said: String::new(),
                        next: Instant::now(),
                    });
                    entry.next = Instant::now() + round.again;
                    if entry.said != round.message {
                        tracing::info!(
                            resource = key(store),
                            reason = round.reason,
                            "{}",
                            round.message
                        );
                        entry.said.clone_from(&round.message);
                        let now = k8s_openapi::jiff::Timestamp::now();
                        let mut said = round;
                        if said.message.is_empty() {
                            "all is as it was asked for".clone_into(&mut said.message);
                        }
                        context.event(store, &said, &format!("{now:.0}")).await;
                    }
                }
                let waiting = last.values().filter(|last| !last.said.is_empty()).count();
                counts.waiting.store(waiting as u64, Ordering::Relaxed);
            }
        }
        tokio::time::sleep(LIST_EVERY).await;
    }
}

async fn one_round<'a>(
    context: &Context<HttpDatabase>,
    store: &'a MyDataStore,
    counts: &Counts,
) -> (&'a MyDataStore, Round) {
    counts.rounds.fetch_add(1, Ordering::Relaxed);
    let round = context.round(store).await.unwrap_or_else(|error| {
        counts.errors.fetch_add(1, Ordering::Relaxed);
        Round {
            message: error.to_string(),
            reason: "Error",
            failed: true,
            again: Duration::from_secs(5),
        }
    });
    if !matches!(round.reason, "Waiting" | "Done" | "Error" | "Invalid") {
        counts.actions.fetch_add(1, Ordering::Relaxed);
    }
    (store, round)
}

fn key(store: &MyDataStore) -> String {
    format!(
        "{}/{}",
        store.namespace().unwrap_or_default(),
        store.name_any()
    )
}
