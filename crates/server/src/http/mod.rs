//! HTTP: keys and values as bytes, administration as JSON, metrics as text.
//!
//! | path | |
//! |---|---|
//! | `PUT GET HEAD DELETE /v1/kv/{key}` | one key; see [`kv`] |
//! | `GET /v1/scan`, `GET /v1/list` | a page of one partition, of everything; see [`scan`] |
//! | `GET /v1/epochs`, `GET /v1/verify` | how far epochs are verified; see [`epochs`] |
//! | `GET /v1/status`, `/v1/ring`, `/v1/members`, `/v1/config`, `/v1/digest` | see [`admin`] |
//! | `POST /v1/init` | gives birth to a cluster |
//! | `GET POST /v1/transition` | changes of the ring; see [`transition`] |
//! | `GET /set?key=&value=`, `GET /get?key=` | the interface of the system this one descends from |
//! | `GET /health` | the process lives; depends on nothing else, so that load never kills it |
//! | `GET /ready` | this node serves as it should, or why not |
//! | `GET /metrics` | for Prometheus |
//! | `GET /debug/pprof/profile` | where the processor time goes; see [`profile`] |
//!
//! A key is any 1 to 32768 bytes. In a path, a query or JSON it is percent-encoded, slashes may
//! stand as they are; one whose encoded form is beyond 65,000 bytes does not fit into a URL and
//! has to go by RESP.
//!
//! **Invariants.** A status code says what a client may do: 4xx is the client's mistake, 503 means
//! that nothing was done, 504 that it is not known what was done. Nothing a client sends grows
//! memory beyond the named limits of [`limits`]; what is over them is refused at once, never queued.
//!
//! What it does not do: authenticate, encrypt, or offer conditional writes, which need linearizable
//! keys (they are refused, not ignored).

pub mod admin;
pub mod bodies;
mod epochs;
mod key;
mod kv;
pub mod limits;
mod metrics;
mod original;
mod profile;
mod query;
mod reply;
mod scan;
pub mod server;
#[cfg(test)]
mod tests;
mod transition;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use mds_node::api::{Op, Outcome, Request as DataRequest, RequestError, RequestOptions};
use mds_protocol::Placement;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::config::Effective;
use crate::database::Database;

pub use key::{decode as percent_decode, encode as percent_encode};

/// What all handlers share.
pub struct App {
    database: Arc<dyn Database>,
    effective: Effective,
    /// One permit for each data request in progress.
    gate: Semaphore,
    /// One permit for each KiB of request bodies in memory.
    body_budget: Semaphore,
    metrics: metrics::Metrics,
    /// Computed once for each topology.
    placement: Mutex<Option<Arc<Placement>>>,
}

type Shared = State<Arc<App>>;

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
enum AskError {
    /// The database says so.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The database did not answer at all: a defect, survived.
    #[error("no answer: the outcome is unknown")]
    NoAnswer,
}

impl App {
    /// The front-end of a node.
    pub fn new(database: Arc<dyn Database>, effective: Effective) -> Arc<App> {
        Arc::new(App {
            gate: Semaphore::new(effective.config.http_requests_max as usize),
            body_budget: Semaphore::new(limits::BODY_KIB_IN_FLIGHT_MAX as usize),
            metrics: metrics::Metrics::new(Arc::clone(&database)),
            placement: Mutex::new(None),
            database,
            effective,
        })
    }

    /// Asks the database, and does not wait for ever even if it never answers.
    async fn ask(&self, op: Op, options: RequestOptions) -> Result<Outcome, AskError> {
        let timeout_ms = options
            .timeout_ms
            .unwrap_or(self.effective.config.request_timeout_ms);
        let patience = Duration::from_millis(timeout_ms.into()) + limits::ANSWER_GRACE;
        let answer = self.database.request(DataRequest { op, options });
        match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer.map_err(AskError::Request),
            Err(_) => Err(AskError::NoAnswer),
        }
    }

    /// Where data lives, by the ring this node knows now. None before there is one.
    fn placement(&self) -> Option<Arc<Placement>> {
        let view = self.database.view();
        let config = view.config.as_ref()?;
        // Only a panic while it is held could poison the lock; what it holds is whole even then.
        let mut known = self
            .placement
            .lock()
            .unwrap_or_else(|poison| poison.into_inner());
        if let Some(placement) = known.as_ref()
            && placement.version() == view.topology.version
            && placement.partition_count() == config.partition_count
        {
            return Some(Arc::clone(placement));
        }
        let placement = Arc::new(Placement::compute(&view.topology, config));
        *known = Some(Arc::clone(&placement));
        Some(placement)
    }
}

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let data = Router::new()
        .route(
            "/v1/kv/{*key}",
            get(kv::get).put(kv::put).delete(kv::delete),
        )
        .route(
            "/v1/kv/",
            get(kv::no_key).put(kv::no_key).delete(kv::no_key),
        )
        .route("/v1/scan", get(scan::scan))
        .route("/v1/list", get(scan::list))
        .route("/v1/digest", get(admin::digest))
        .route("/v1/verify", get(epochs::verify))
        .route("/set", get(original::set))
        .route("/get", get(original::get))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), shed));
    let control = Router::new()
        .route("/", get(admin::welcome))
        .route("/v1/status", get(admin::status))
        .route("/v1/ring", get(admin::ring))
        .route("/v1/members", get(admin::members))
        .route("/v1/config", get(admin::config))
        .route("/v1/epochs", get(epochs::epochs))
        .route("/v1/init", post(admin::init))
        .route(
            "/v1/transition",
            get(transition::status).post(transition::ask),
        )
        .route("/health", get(admin::health))
        .route("/ready", get(admin::ready))
        .route("/metrics", get(metrics::metrics))
        .route("/debug/pprof/profile", get(profile::profile));
    data.merge(control)
        .fallback(reply::no_such_path)
        .method_not_allowed_fallback(reply::no_such_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&app), measure))
        .with_state(app)
}

/// Refuses a data request at once when too many are in progress: waiting would only make it late.
async fn shed(State(app): Shared, request: Request, next: Next) -> Response {
    let Ok(_permit) = app.gate.try_acquire() else {
        app.metrics.shed();
        return reply::overloaded("too many HTTP requests at a time");
    };
    next.run(request).await
}

/// Counts and times every request.
async fn measure(State(app): Shared, request: Request, next: Next) -> Response {
    let route = metrics::route_label(request.uri().path());
    let method = metrics::method_label(request.method());
    let start = Instant::now();
    let response = next.run(request).await;
    app.metrics
        .record(route, method, response.status(), start.elapsed());
    response
}
