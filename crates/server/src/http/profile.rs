//! `GET /debug/pprof/profile`: where this node's processor time goes. See [`crate::profile`].

use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use super::query::Query;
use super::{Shared, reply};
use crate::profile::{self, ProfileError, SECONDS_MAX, flame};

/// How long, if it is not said.
const SECONDS: u32 = 10;

/// Takes a profile, and answers when it has ended.
pub(super) async fn profile(State(app): Shared, RawQuery(query): RawQuery) -> Response {
    if !app.effective.config.profiling {
        let how = "profiling is off: start the node with `profiling = true` (--profiling true)";
        return reply::error(StatusCode::FORBIDDEN, how);
    }
    let (seconds, is_svg) = match asked(query.as_deref()) {
        Ok(asked) => asked,
        Err(reason) => return *reply::bad_request(reason),
    };
    let stacks = match profile::take(Duration::from_secs(seconds.into())).await {
        Ok(stacks) => stacks,
        Err(error @ ProfileError::Busy) => {
            return reply::error(StatusCode::CONFLICT, error.to_string());
        }
        Err(error) => return reply::error(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let name = app.effective.config.node_name();
    let (kind, text) = match is_svg {
        true => {
            let samples: u64 = stacks.values().sum();
            let title = format!("{name}: processor time of {seconds} s, {samples} samples");
            ("image/svg+xml", flame::draw(&stacks, &title))
        }
        false => ("text/plain; charset=utf-8", profile::collapsed(&stacks)),
    };
    ([(CONTENT_TYPE, HeaderValue::from_static(kind))], text).into_response()
}

/// For how many seconds, and whether as a picture.
fn asked(query: Option<&str>) -> Result<(u32, bool), String> {
    let query = Query::strict(query, &["seconds", "format"])?;
    let seconds = query.number("seconds", 1, SECONDS_MAX)?.unwrap_or(SECONDS);
    match query.bytes("format") {
        None | Some(b"svg") => Ok((seconds, true)),
        Some(b"collapsed") => Ok((seconds, false)),
        Some(_) => Err("`format` is `svg` or `collapsed`".to_owned()),
    }
}
