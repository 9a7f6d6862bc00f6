//! Pages of records.
//!
//! `GET /v1/scan?partition=&after=&limit=&values=&r=&timeout_ms=` is one page of one partition, in
//! key order. `GET /v1/list?prefix=&cursor=&limit=&values=&r=&timeout_ms=` goes through all
//! partitions, one after the other: its keys are in order within a partition only, and its pages may
//! be empty without being the last. Neither is a snapshot: a record written meanwhile may be in it or
//! not; one that is there all the time is in it exactly once.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use mds_node::api::{Op, Outcome, RequestOptions};
use mds_types::{PartitionId, Record};
use tokio::time::Instant;

use super::bodies::{PageBody, RecordBody};
use super::query::Query;
use super::reply::{self, Refusal, bad_request};
use super::{App, Shared, key, kv, limits};

pub(super) async fn scan(State(app): Shared, RawQuery(query): RawQuery) -> Response {
    match scan_asked(&app, query.as_deref()).await {
        Ok(response) => response,
        Err(refusal) => *refusal,
    }
}

async fn scan_asked(app: &Arc<App>, query: Option<&str>) -> Result<Response, Refusal> {
    let known = ["partition", "after", "limit", "values", "r", "timeout_ms"];
    let query = Query::strict(query, &known).map_err(bad_request)?;
    let page = PageOptions::new(&query)?;
    let partitions = partition_count(app)?;
    let partition = query
        .number("partition", 0, partitions - 1)
        .map_err(bad_request)?
        .ok_or_else(|| bad_request("partition is missing; /v1/list goes through all"))?;
    let after = query.bytes("after").map(Bytes::copy_from_slice);
    let (records, next) = page
        .ask(app, PartitionId(partition), after, page.limit)
        .await?;
    let body = PageBody {
        records: records.iter().map(|record| page.body(record)).collect(),
        next: next.map(|after| key::encode(&after)),
    };
    Ok(reply::json(StatusCode::OK, &body))
}

pub(super) async fn list(State(app): Shared, RawQuery(query): RawQuery) -> Response {
    match list_asked(&app, query.as_deref()).await {
        Ok(response) => response,
        Err(refusal) => *refusal,
    }
}

async fn list_asked(app: &Arc<App>, query: Option<&str>) -> Result<Response, Refusal> {
    let known = ["prefix", "cursor", "limit", "values", "r", "timeout_ms"];
    let query = Query::strict(query, &known).map_err(bad_request)?;
    let page = PageOptions::new(&query)?;
    let partitions = partition_count(app)?;
    let prefix = query.bytes("prefix").unwrap_or_default();
    let mut at = match query.bytes("cursor") {
        None => Cursor::begin(0, prefix),
        Some(text) => Cursor::parse(text, partitions)
            .ok_or_else(|| bad_request("cursor is not one that was given out"))?,
    };
    let deadline = Instant::now() + limits::LIST_TIME_BUDGET;
    let mut records = Vec::new();
    let mut bytes = 0;
    while at.partition < partitions {
        let left = page.limit - records.len() as u32;
        if left == 0 || bytes >= limits::PAGE_BYTES_MAX || Instant::now() >= deadline {
            let next = Some(at.text());
            return Ok(reply::json(StatusCode::OK, &PageBody { records, next }));
        }
        let partition = PartitionId(at.partition);
        let (found, next) = page.ask(app, partition, at.after.clone(), left).await?;
        let past = found
            .last()
            .is_some_and(|last| *last.key > *prefix && !last.key.starts_with(prefix));
        for record in found.iter().filter(|record| record.key.starts_with(prefix)) {
            bytes += record.encoded_len();
            records.push(page.body(record));
        }
        match next {
            Some(after) if !past => at.after = Some(after),
            _ => at = Cursor::begin(at.partition + 1, prefix),
        }
    }
    Ok(reply::json(
        StatusCode::OK,
        &PageBody {
            records,
            next: None,
        },
    ))
}

/// What the pages of one request have in common.
struct PageOptions {
    limit: u32,
    values: bool,
    options: RequestOptions,
}

impl PageOptions {
    fn new(query: &Query) -> Result<PageOptions, Refusal> {
        let limit = query
            .number("limit", 1, limits::PAGE_RECORDS_MAX)
            .map_err(bad_request)?;
        Ok(PageOptions {
            limit: limit.unwrap_or(limits::PAGE_RECORDS),
            values: query.flag("values").map_err(bad_request)?,
            options: kv::quorums(query)?,
        })
    }

    async fn ask(
        &self,
        app: &Arc<App>,
        partition: PartitionId,
        after: Option<Bytes>,
        limit: u32,
    ) -> Result<(Vec<Record>, Option<Bytes>), Refusal> {
        let op = Op::Scan {
            partition,
            after,
            limit,
        };
        match app.ask(op, self.options.clone()).await {
            Ok(Outcome::Page { records, next }) => Ok((records, next)),
            Ok(_) => Err(Box::new(reply::wrong_outcome())),
            Err(error) => Err(Box::new(reply::refused(&error))),
        }
    }

    fn body(&self, record: &Record) -> RecordBody {
        let value = record
            .value()
            .map(|value| value.as_ref())
            .unwrap_or_default();
        RecordBody {
            key: key::encode(&record.key),
            version: record.version.to_string(),
            value_bytes: value.len() as u64,
            value: self.values.then(|| key::encode(value)),
            expires_at_ms: record.expires_at_ms,
        }
    }
}

pub(super) fn partition_count(app: &App) -> Result<u16, Refusal> {
    match &app.database.view().config {
        Some(config) => Ok(config.partition_count.max(1)),
        None => Err(Box::new(reply::error(
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: the cluster is not born yet: run `mydatastore init`",
        ))),
    }
}

/// Where a listing goes on: `PARTITION` or `PARTITION:KEY`, the key percent-encoded.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Cursor {
    partition: u16,
    after: Option<Bytes>,
}

impl Cursor {
    /// The beginning of a partition, or a place in it that no key of the prefix lies before.
    fn begin(partition: u16, prefix: &[u8]) -> Cursor {
        let after = prefix.split_last().map(|(&last, rest)| {
            let mut before = rest.to_vec();
            if let Some(smaller) = last.checked_sub(1) {
                before.push(smaller);
                // Anything that begins so is smaller than the prefix; the more 0xff, the nearer.
                before.extend_from_slice(&[0xff; 8]);
            }
            before
        });
        Cursor {
            partition,
            after: after.filter(|after| !after.is_empty()).map(Bytes::from),
        }
    }

    fn text(&self) -> String {
        match &self.after {
            Some(after) => format!("{}:{}", self.partition, key::encode(after)),
            None => self.partition.to_string(),
        }
    }

    fn parse(text: &[u8], partitions: u16) -> Option<Cursor> {
        let text = std::str::from_utf8(text).ok()?;
        let (partition, after) = match text.split_once(':') {
            Some((partition, after)) => (partition, Some(Bytes::from(key::decode(after)?))),
            None => (text, None),
        };
        let partition = partition.parse().ok()?;
        (partition < partitions).then_some(Cursor { partition, after })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cursors_read_what_they_write(
            partition in 0u16..16,
            after in prop::option::of(prop::collection::vec(any::<u8>(), 1..40)),
        ) {
            let cursor = Cursor { partition, after: after.map(Bytes::from) };
            prop_assert_eq!(Cursor::parse(cursor.text().as_bytes(), 16), Some(cursor));
        }

        #[test]
        fn no_cursor_panics(text in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Cursor::parse(&text, 16);
        }

        /// A listing by prefix begins before each key that has it.
        #[test]
        fn no_key_lies_before_the_beginning(
            prefix in prop::collection::vec(any::<u8>(), 0..6),
            rest in prop::collection::vec(any::<u8>(), 0..6),
        ) {
            let key = [prefix.clone(), rest].concat();
            if let Some(after) = Cursor::begin(0, &prefix).after {
                prop_assert!(key.as_slice() > after.as_ref());
            }
        }
    }
}
