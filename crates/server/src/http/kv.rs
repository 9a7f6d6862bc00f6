//! `/v1/kv/{key}`: one key.
//!
//! Query of all: `r=`, `w=` (quorums), `timeout_ms=`. Of `PUT` also `ttl_ms=` or `expires_at_ms=`.
//!
//! Request headers: `Idempotency-Key`, so that a write sent again is the same write: either the
//! `retry_token` of a 504 (through any node), or any text of the client's own (through the same node
//! while it remembers). `X-MDS-Seen`, the greatest version the client has seen: what it writes is
//! later than that.
//!
//! Response headers: `ETag` and `X-MDS-Version` (the version), `X-MDS-Expires-At-Ms`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{
    CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use mds_node::api::{Op, Outcome, RequestError, RequestOptions, Stamp};
use mds_types::Version;
use mds_types::limits::{KEY_BYTES_MAX, REPLICAS_MAX};
use tokio::sync::SemaphorePermit;
use xxhash_rust::xxh3::xxh3_128;

use super::bodies::WrittenBody;
use super::query::Query;
use super::reply::{self, Refusal, bad_request};
use super::{App, AskError, Shared, key, limits};

const KEY_PATH: &str = "/v1/kv/";

/// A version a client has seen.
pub(super) static SEEN: HeaderName = HeaderName::from_static("x-mds-seen");
/// The version of a record.
pub(super) static VERSION: HeaderName = HeaderName::from_static("x-mds-version");
/// When a record expires.
pub(super) static EXPIRES_AT_MS: HeaderName = HeaderName::from_static("x-mds-expires-at-ms");
/// Names a write, so that its retry is the same write.
pub(super) static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

pub(super) async fn get(State(app): Shared, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let asked = asked(&parts, &["r", "w", "timeout_ms"], false);
    let (key, options, _) = match asked {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    match app.ask(Op::Get { key }, options).await {
        Ok(Outcome::Read {
            version,
            value,
            expires_at_ms,
        }) => {
            let mut response = match value {
                Some(value) => found(value, expires_at_ms),
                None => reply::error(StatusCode::NOT_FOUND, "no such key"),
            };
            if let Some(version) = version {
                put_version(response.headers_mut(), version);
            }
            response
        }
        Ok(_) => reply::wrong_outcome(),
        Err(error) => reply::refused(&error),
    }
}

pub(super) async fn put(State(app): Shared, request: Request) -> Response {
    match put_asked(&app, request).await {
        Ok(response) => response,
        Err(refusal) => *refusal,
    }
}

async fn put_asked(app: &Arc<App>, request: Request) -> Result<Response, Refusal> {
    let (parts, body) = request.into_parts();
    let known = ["r", "w", "timeout_ms", "ttl_ms", "expires_at_ms"];
    let (key, options, query) = asked(&parts, &known, true)?;
    let expires_at_ms = expiry(&query, &options)?;
    let (value, _permit) = read_body(app, &parts.headers, body).await?;
    let op = Op::Put {
        key,
        value,
        expires_at_ms,
    };
    let mut response = written(app.ask(op, options).await);
    if let Some(expires_at_ms) = expires_at_ms {
        let value = HeaderValue::from(expires_at_ms);
        response.headers_mut().insert(&EXPIRES_AT_MS, value);
    }
    Ok(response)
}

pub(super) async fn delete(State(app): Shared, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    match asked(&parts, &["r", "w", "timeout_ms"], true) {
        Ok((key, options, _)) => written(app.ask(Op::Delete { key }, options).await),
        Err(refusal) => *refusal,
    }
}

pub(super) async fn no_key() -> Response {
    reply::error(
        StatusCode::BAD_REQUEST,
        "the key is empty: it has to be 1 byte or more",
    )
}

fn found(value: Bytes, expires_at_ms: Option<u64>) -> Response {
    let mut response = Response::new(Body::from(value));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    if let Some(expires_at_ms) = expires_at_ms {
        headers.insert(&EXPIRES_AT_MS, HeaderValue::from(expires_at_ms));
    }
    response
}

fn written(outcome: Result<Outcome, AskError>) -> Response {
    match outcome {
        Ok(Outcome::Written { version, acked }) => {
            let body = WrittenBody {
                version: version.to_string(),
                acked,
            };
            let mut response = reply::json(StatusCode::OK, &body);
            put_version(response.headers_mut(), version);
            response
        }
        Ok(_) => reply::wrong_outcome(),
        Err(error) => {
            let mut response = reply::refused(&error);
            if let AskError::Request(RequestError::Unknown { stamp, .. }) = error {
                put_version(response.headers_mut(), stamp.version);
            }
            response
        }
    }
}

fn put_version(headers: &mut HeaderMap, version: Version) {
    // Hexadecimal digits, a dash and quotes are always legal in a header.
    if let (Ok(tag), Ok(plain)) = (
        HeaderValue::from_str(&format!("\"{version}\"")),
        HeaderValue::from_str(&version.to_string()),
    ) {
        headers.insert(ETAG, tag);
        headers.insert(&VERSION, plain);
    }
}

/// Key, options and query of a request for one key.
fn asked(
    parts: &Parts,
    known: &[&str],
    is_write: bool,
) -> Result<(Bytes, RequestOptions, Query), Refusal> {
    let query = Query::strict(parts.uri.query(), known).map_err(bad_request)?;
    // Routing has matched the prefix already.
    let text = parts.uri.path().strip_prefix(KEY_PATH).unwrap_or_default();
    let key = key::decode(text)
        .ok_or_else(|| bad_request("the key is not valid percent-encoding: write `%` as `%25`"))?;
    let key = checked_key(key)?;
    let mut options = quorums(&query)?;
    options.seen = version_header(&parts.headers, &SEEN)?;
    if is_write {
        refuse_conditions(&parts.headers)?;
        identify(&parts.headers, &mut options)?;
    }
    Ok((key, options, query))
}

/// A key within its limits.
pub(super) fn checked_key(key: Vec<u8>) -> Result<Bytes, Refusal> {
    if key.is_empty() {
        return Err(bad_request("the key is empty: it has to be 1 byte or more"));
    }
    if key.len() > KEY_BYTES_MAX {
        let error = RequestError::TooLarge {
            what: "key",
            bytes: key.len(),
            limit: KEY_BYTES_MAX,
        };
        return Err(Box::new(reply::refused(&AskError::Request(error))));
    }
    Ok(Bytes::from(key))
}

/// Quorums and timeout that the query chooses.
pub(super) fn quorums(query: &Query) -> Result<RequestOptions, Refusal> {
    let quorum = |name| query.number(name, 1, REPLICAS_MAX);
    Ok(RequestOptions {
        read_quorum: quorum("r").map_err(bad_request)?,
        write_quorum: quorum("w").map_err(bad_request)?,
        timeout_ms: query
            .number("timeout_ms", 1, limits::TIMEOUT_MS_MAX)
            .map_err(bad_request)?,
        ..RequestOptions::default()
    })
}

fn version_header(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Version>, Refusal> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let version = value.to_str().ok().and_then(version_token);
    match version {
        Some(version) => Ok(Some(version)),
        None => Err(bad_request(format!(
            "{name} is not a version: two groups of 16 hexadecimal digits with `-` between them"
        ))),
    }
}

/// A version in exactly the form that was given out, bare or in an ETag's quotes.
fn version_token(text: &str) -> Option<Version> {
    let text = text.trim_matches('"');
    let version: Version = text.parse().ok()?;
    (version.to_string() == text).then_some(version)
}

/// A retry token as this node would write it.
fn retry_token(text: &str) -> Option<Stamp> {
    let text = text.trim_matches('"');
    let stamp: Stamp = text.parse().ok()?;
    (stamp.to_string() == text).then_some(stamp)
}

/// Makes a retry the same write.
fn identify(headers: &HeaderMap, options: &mut RequestOptions) -> Result<(), Refusal> {
    let Some(value) = headers.get(&IDEMPOTENCY_KEY) else {
        return Ok(());
    };
    if value.is_empty() {
        return Err(bad_request("Idempotency-Key is empty"));
    }
    match value.to_str().ok().and_then(retry_token) {
        Some(stamp) => options.stamp = Some(stamp),
        None => options.request_id = Some(xxh3_128(value.as_bytes())),
    }
    Ok(())
}

/// Conditional writes are read-modify-write, which last-write-wins cannot do. To ignore the
/// condition would be worse than to refuse it.
fn refuse_conditions(headers: &HeaderMap) -> Result<(), Refusal> {
    let conditions = [IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE];
    match conditions.iter().find(|&name| headers.contains_key(name)) {
        Some(name) => Err(Box::new(reply::error(
            StatusCode::NOT_IMPLEMENTED,
            format!("{name}: conditional writes need linearizable keys, which come later"),
        ))),
        None => Ok(()),
    }
}

/// When the value expires, as an absolute time.
fn expiry(query: &Query, options: &RequestOptions) -> Result<Option<u64>, Refusal> {
    let ttl_ms = query.number("ttl_ms", 1, u64::MAX).map_err(bad_request)?;
    let at_ms = query
        .number("expires_at_ms", 1, u64::MAX)
        .map_err(bad_request)?;
    match (ttl_ms, at_ms) {
        (Some(_), Some(_)) => Err(bad_request("give either ttl_ms or expires_at_ms, not both")),
        (Some(_), None) if options.stamp.is_some() => Err(bad_request(
            "with a retry token give expires_at_ms (the first answer's X-MDS-Expires-At-Ms): \
             counted from now, ttl_ms would make it another write",
        )),
        (Some(ttl_ms), None) => {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
            let at_ms = now_ms.checked_add(ttl_ms);
            at_ms
                .map(Some)
                .ok_or_else(|| bad_request("ttl_ms is too far in the future"))
        }
        (None, at_ms) => Ok(at_ms),
    }
}

/// Reads a value, refusing it as soon as it is known to be too large, and keeps its share of the
/// memory budget until the permit is dropped.
async fn read_body<'a>(
    app: &'a App,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Bytes, SemaphorePermit<'a>), Refusal> {
    let limit = usize::try_from(app.effective.config.value_bytes_max).unwrap_or(usize::MAX);
    let too_large = |bytes: usize| {
        let error = RequestError::TooLarge {
            what: "value",
            bytes,
            limit,
        };
        Box::new(reply::refused(&AskError::Request(error)))
    };
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    let length = length.and_then(|text| text.parse::<usize>().ok());
    let expected = match length {
        Some(bytes) if bytes > limit => return Err(too_large(bytes)),
        Some(bytes) => bytes,
        // Chunked: as large as it may become.
        None => limit,
    };
    let kib = u32::try_from(expected.div_ceil(1024)).unwrap_or(u32::MAX);
    let Ok(permit) = app.body_budget.try_acquire_many(kib) else {
        return Err(Box::new(reply::overloaded(
            "too many bytes of values are on their way",
        )));
    };
    match tokio::time::timeout(limits::BODY_READ_TIMEOUT, to_bytes(body, limit)).await {
        Ok(Ok(value)) => Ok((value, permit)),
        // Only a chunked body can still turn out too large.
        Ok(Err(_)) if length.is_none() => Err(too_large(limit.saturating_add(1))),
        Ok(Err(error)) => Err(bad_request(format!("the value could not be read: {error}"))),
        Err(_) => Err(Box::new(reply::error(
            StatusCode::REQUEST_TIMEOUT,
            "the value did not arrive in time; nothing was done",
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_version_as_given_out_is_a_token() {
        let token = "0000000000001000-00000000000000ff";
        let version = version_token(token).unwrap();
        assert_eq!(version.to_string(), token);
        assert_eq!(version_token(&format!("\"{token}\"")), Some(version));
        for text in [
            "1000-ff",
            "",
            "-",
            "+000000000001000-00000000000000ff",
            "order-42",
        ] {
            assert_eq!(version_token(text), None, "{text}");
        }
        assert_eq!(version_token(&token.to_uppercase()), None);
    }
}
