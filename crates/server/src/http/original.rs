//! `/set` and `/get`, as the system that this one descends from had them.
//!
//! Both are `GET`, and both answer `{"Value", "Error", "Members", "Failed_members"}`: the key's
//! replicas, and which of them this node could not reach. Values are text there; bytes that are no
//! text are shown replaced (use `/v1/kv` for bytes). Status codes are those of `/v1/kv`.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use mds_node::api::{Op, Outcome, RequestError, RequestOptions};

use super::bodies::OriginalBody;
use super::query::Query;
use super::{App, AskError, Shared, reply};

pub(super) async fn set(State(app): Shared, RawQuery(query): RawQuery) -> Response {
    let (key, query) = match asked(query.as_deref()) {
        Ok(asked) => asked,
        Err(message) => return refused(&app, None, &AskError::Request(message)),
    };
    let Some(value) = query.bytes("value") else {
        let error = RequestError::BadRequest("value is missing: /set?key=KEY&value=VALUE".into());
        return refused(&app, Some(&key), &AskError::Request(error));
    };
    let value = Bytes::copy_from_slice(value);
    let op = Op::Put {
        key: key.clone(),
        value: value.clone(),
        expires_at_ms: None,
    };
    match app.ask(op, RequestOptions::default()).await {
        Ok(_) => answered(&app, &key, &value),
        Err(error) => refused(&app, Some(&key), &error),
    }
}

pub(super) async fn get(State(app): Shared, RawQuery(query): RawQuery) -> Response {
    let (key, _) = match asked(query.as_deref()) {
        Ok(asked) => asked,
        Err(message) => return refused(&app, None, &AskError::Request(message)),
    };
    match app
        .ask(Op::Get { key: key.clone() }, RequestOptions::default())
        .await
    {
        Ok(Outcome::Read {
            value: Some(value), ..
        }) => answered(&app, &key, &value),
        Ok(_) => {
            let body = OriginalBody {
                error: "key not found".to_owned(),
                ..body(&app, Some(&key))
            };
            reply::json(StatusCode::NOT_FOUND, &body)
        }
        Err(error) => refused(&app, Some(&key), &error),
    }
}

fn asked(query: Option<&str>) -> Result<(Bytes, Query), RequestError> {
    let query = Query::lenient(query).map_err(RequestError::BadRequest)?;
    match query.bytes("key") {
        Some(key) if !key.is_empty() => Ok((Bytes::copy_from_slice(key), query)),
        _ => Err(RequestError::BadRequest(
            "key is missing: /get?key=KEY".to_owned(),
        )),
    }
}

fn answered(app: &Arc<App>, key: &Bytes, value: &[u8]) -> Response {
    let body = OriginalBody {
        value: String::from_utf8_lossy(value).into_owned(),
        ..body(app, Some(key))
    };
    reply::json(StatusCode::OK, &body)
}

fn refused(app: &Arc<App>, key: Option<&Bytes>, error: &AskError) -> Response {
    let body = OriginalBody {
        error: error.to_string(),
        ..body(app, key)
    };
    reply::json(reply::status_of(error), &body)
}

/// The part that names the key's replicas.
fn body(app: &Arc<App>, key: Option<&Bytes>) -> OriginalBody {
    let mut body = OriginalBody::default();
    let (Some(key), Some(placement)) = (key, app.placement()) else {
        return body;
    };
    let view = app.database.view();
    for &node in placement.replicas_of_key(key) {
        let name = match view.info(node) {
            Some(info) if !info.name.is_empty() => info.name.clone(),
            _ => node.to_string(),
        };
        if !view.is_alive(node) {
            body.failed_members.push(name.clone());
        }
        body.members.push(name);
    }
    body
}
