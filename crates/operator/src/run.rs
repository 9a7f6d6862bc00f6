//! The process: the [rounds](crate::rounds) while it holds the lease, and an endpoint for health and metrics.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use axum::Router;
use axum::routing::get;
use clap::Args;
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};

use crate::database::HttpDatabase;
use crate::lease::Lease;
use crate::reconcile::Context;
use crate::rounds::{Counts, all_rounds};

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
    /// This process' name in the lease, which no other may have [default: one of its own]
    #[arg(long, env = "POD_NAME")]
    identity: Option<String>,
}

/// Runs until SIGTERM, Ctrl-C or until the lease is lost.
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
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let client = Client::try_default().await?;
        let identity = args.identity.clone().unwrap_or_else(own_name);
        let lease = Lease::new(client.clone(), &args.lease_namespace, &identity);
        tokio::select! {
            ended = work(client, &lease, &identity, args) => return ended,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        lease.release().await;
        Ok(())
    })
}

/// A name that no other operator has, on whichever machine: whoever finds its own in the lease takes it for its own.
fn own_name() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanoseconds = since.unwrap_or_default().as_nanos();
    format!("mds-operator-{}-{nanoseconds}", std::process::id())
}

async fn work(
    client: Client,
    lease: &Lease,
    identity: &str,
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
    tracing::info!(identity, "leading");
    counts.leads.store(1, Ordering::Relaxed);
    let context = Context {
        client,
        database: HttpDatabase::default(),
    };
    tokio::select! {
        () = lease.keep(until) => Err("the lease was lost: another operator leads now".into()),
        () = all_rounds(&context, args.namespace.as_deref(), &counts) => Ok(()),
    }
}
