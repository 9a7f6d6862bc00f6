//! Epochs: how far this node has verified them, and what it has of one of them.
//!
//! `GET /v1/epochs?limit=` counts this node's partitions, epoch by epoch. `GET /v1/verify?partition=&epoch=` is
//! what this replica has of one closed epoch of a partition: the Merkle root and the leaves that replicas compare
//! among themselves, or, once it is settled and dropped, the chain.
//!
//! What they do not do: ask other nodes. `mydatastore epochs` and `mydatastore verify` ask all, and compare.

use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use mds_cluster::ClusterView;
use mds_node::core::Copying;
use mds_node::epoch_set::{EpochSet, Found};
use mds_types::{Epoch, PartitionId};

use super::bodies::{
    AwaitedBody, CopyingBody, EpochBody, EpochSetBody, EpochsBody, LeafBody, PartitionCountsBody,
};
use super::query::Query;
use super::reply::{self, Refusal, bad_request};
use super::{App, Shared, limits, scan};
use crate::database::{EpochCounts, EpochsReport};

/// How long reading the rows of one epoch of a partition may take.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(30);

/// A member is shown as waited for only after this long, milliseconds: a comparison takes a moment.
const AWAITED_MS_MIN: u64 = 1_000;

pub(super) async fn epochs(State(app): Shared, RawQuery(query): RawQuery) -> Response {
    let limit = Query::strict(query.as_deref(), &["limit"])
        .and_then(|query| query.number("limit", 1, limits::EPOCHS_MAX));
    let limit = match limit {
        Ok(limit) => limit.unwrap_or(limits::EPOCHS),
        Err(message) => return *bad_request(message),
    };
    let view = app.database.view();
    match app.database.epochs(limit) {
        Some(report) => reply::json(StatusCode::OK, &body(&view, &report, now_ms())),
        None => reply::error(
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: the store is not open: the cluster is not born yet, or this node has just started",
        ),
    }
}

fn body(view: &ClusterView, report: &EpochsReport, now_ms: u64) -> EpochsBody {
    let waited = |since_ms: u64| now_ms.saturating_sub(since_ms);
    let blockers = report.blocked.iter().copied();
    let blockers = blockers.filter(|(_, since_ms)| waited(*since_ms) >= AWAITED_MS_MIN);
    let partitions = report.partitions;
    EpochsBody {
        id: view.me.to_string(),
        name: view.my_info.name.clone(),
        epoch: view.epoch.0,
        closed: report.closed.0,
        settled: report.settled.map(|epoch| epoch.0),
        settled_most: report.settled_most.map(|epoch| epoch.0),
        collected: report.collected.map(|epoch| epoch.0),
        unverifiable: report.unverifiable.0,
        lag_epochs: report.lag_epochs(),
        lag_ms: report.lag_ms,
        partitions: PartitionCountsBody {
            held: partitions.held,
            streaming: partitions.streaming,
            wiping: partitions.wiping,
            absent: partitions.absent,
        },
        blocked_by: blockers
            .map(|(node, since_ms)| AwaitedBody {
                id: node.to_string(),
                name: view
                    .info(node)
                    .map(|info| info.name.clone())
                    .unwrap_or_default(),
                alive: view.is_alive(node),
                since_ms,
            })
            .collect(),
        epochs: report
            .epochs
            .iter()
            .map(|counts| epoch_body(view.epoch, report, counts))
            .collect(),
    }
}

fn epoch_body(present: Epoch, report: &EpochsReport, counts: &EpochCounts) -> EpochBody {
    let held = report.partitions.held;
    let state = match counts.epoch {
        epoch if epoch > report.closed && epoch >= present => "present",
        epoch if epoch > report.closed => "open",
        _ if counts.settled < held => "closed",
        _ if counts.collected < held => "settled",
        _ => "collected",
    };
    EpochBody {
        epoch: counts.epoch.0,
        state: state.to_owned(),
        began_at_ms: counts.began_at_ms,
        closed_at_ms: counts.closed_at_ms,
        settled: counts.settled,
        collected: counts.collected,
        index_bytes: counts.index_bytes,
    }
}

pub(super) async fn verify(State(app): Shared, RawQuery(query): RawQuery) -> Response {
    match verify_asked(&app, query.as_deref()).await {
        Ok(response) => response,
        Err(refusal) => *refusal,
    }
}

async fn verify_asked(app: &App, query: Option<&str>) -> Result<Response, Refusal> {
    let query = Query::strict(query, &["partition", "epoch"]).map_err(bad_request)?;
    let partitions = scan::partition_count(app)?;
    let partition = query
        .number("partition", 0, partitions - 1)
        .map_err(bad_request)?
        .ok_or_else(|| bad_request("partition is missing"))?;
    let epoch = query
        .number("epoch", 1, u64::MAX)
        .map_err(bad_request)?
        .ok_or_else(|| bad_request("epoch is missing: /v1/epochs lists the latest"))?;
    let (partition, epoch) = (PartitionId(partition), Epoch(epoch));
    let read = app.database.epoch_set(partition, epoch);
    Ok(match tokio::time::timeout(VERIFY_TIMEOUT, read).await {
        Ok(Ok(set)) => {
            let view = app.database.view();
            reply::json(StatusCode::OK, &set_body(&view, partition, epoch, set))
        }
        Ok(Err(error)) => reply::admin_refused(&error),
        Err(_) => reply::error(
            StatusCode::GATEWAY_TIMEOUT,
            "reading the rows of that epoch took too long",
        ),
    })
}

fn set_body(
    view: &ClusterView,
    partition: PartitionId,
    epoch: Epoch,
    set: EpochSet,
) -> EpochSetBody {
    let mut body = EpochSetBody {
        id: view.me.to_string(),
        name: view.my_info.name.clone(),
        partition: partition.0,
        epoch: epoch.0,
        closed: set.closed.0,
        settled: set.settled.0,
        chain: hash_text(set.chain),
        collected: set.collected.0,
        ..EpochSetBody::default()
    };
    let state = match set.found {
        Found::NotClosed => "not_closed",
        Found::Tree { rows, root, leaves } => {
            body.root = Some(hash_text(root));
            body.rows = Some(rows);
            body.leaves = leaves
                .into_iter()
                .map(|(hash, rows)| LeafBody {
                    hash: hash_text(hash),
                    rows,
                })
                .collect();
            "closed"
        }
        Found::Settled => "settled",
        Found::Copied => "copied",
        Found::Lost => "lost",
        Found::NotHere => "not_here",
    };
    body.state = state.to_owned();
    body
}

pub(super) fn copying_body(copying: &Copying) -> CopyingBody {
    CopyingBody {
        partitions: copying.partitions,
        left: copying.left,
        unverified: copying.unverified,
        records: copying.records,
        bytes: copying.bytes,
    }
}

fn hash_text(hash: u128) -> String {
    format!("{hash:032x}")
}

/// The wall clock, milliseconds since 1970.
fn now_ms() -> u64 {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since_1970.map_or(0, |since| since.as_millis() as u64)
}
