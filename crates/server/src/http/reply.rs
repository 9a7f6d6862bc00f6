//! Answers: errors as status codes with a JSON body, JSON documents.

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use mds_node::api::RequestError;
use serde::Serialize;

use super::AskError;
use super::bodies::ErrorBody;
use crate::database::AdminError;

/// A handler's failure: already an answer.
pub(super) type Refusal = Box<Response>;

/// A JSON document.
pub(super) fn json(status: StatusCode, document: &impl Serialize) -> Response {
    let (status, mut text) = match serde_json::to_vec(document) {
        Ok(text) => (status, text),
        // Only maps with keys that are not text fail, and none of our documents has such a map.
        Err(error) => {
            tracing::error!(%error, "a JSON answer could not be written");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                b"{\"error\":\"internal\"}".to_vec(),
            )
        }
    };
    text.push(b'\n');
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// An error that has only words.
pub(super) fn error(status: StatusCode, message: impl Into<String>) -> Response {
    let body = ErrorBody {
        error: message.into(),
        ..ErrorBody::default()
    };
    json(status, &body)
}

/// 400.
pub(super) fn bad_request(message: impl Into<String>) -> Refusal {
    Box::new(error(StatusCode::BAD_REQUEST, message))
}

/// The status code of a failed request.
pub(super) fn status_of(error: &AskError) -> StatusCode {
    let AskError::Request(error) = error else {
        return StatusCode::GATEWAY_TIMEOUT;
    };
    match error {
        RequestError::BadRequest(_) => StatusCode::BAD_REQUEST,
        RequestError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        RequestError::Unavailable { .. }
        | RequestError::Overloaded(_)
        | RequestError::NotReady(_) => StatusCode::SERVICE_UNAVAILABLE,
        RequestError::Unknown { .. } | RequestError::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
    }
}

/// The answer to a failed request.
pub(super) fn refused(error: &AskError) -> Response {
    let mut body = ErrorBody {
        error: error.to_string(),
        ..ErrorBody::default()
    };
    let overloaded = matches!(error, AskError::Request(RequestError::Overloaded(_)));
    if let AskError::Request(
        RequestError::Unavailable { needed, got, of }
        | RequestError::TimedOut { needed, got, of }
        | RequestError::Unknown {
            needed, got, of, ..
        },
    ) = error
    {
        (body.needed, body.got, body.of) = (Some(*needed), Some(*got), Some(*of));
    }
    if let AskError::Request(RequestError::Unknown { stamp, .. }) = error {
        body.retry_token = Some(stamp.to_string());
    }
    let mut response = json(status_of(error), &body);
    if overloaded {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Nothing was done, because there is too much to do.
pub(super) fn overloaded(what: &'static str) -> Response {
    refused(&AskError::Request(RequestError::Overloaded(what)))
}

/// The answer to a failed administrative request.
pub(super) fn admin_refused(error_: &AdminError) -> Response {
    let status = match error_ {
        AdminError::BadRequest(_) => StatusCode::BAD_REQUEST,
        AdminError::Conflict(_) => StatusCode::CONFLICT,
        AdminError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        AdminError::Uncertain(_) => StatusCode::GATEWAY_TIMEOUT,
    };
    error(status, error_.to_string())
}

/// What the database answered is not an answer to what it was asked: a defect, named as such.
pub(super) fn wrong_outcome() -> Response {
    tracing::error!("the database answered something else than it was asked");
    error(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal error: unexpected answer",
    )
}

pub(super) async fn no_such_path(uri: Uri) -> Response {
    let path = uri.path();
    // A path is at most 64 KiB, but nobody wants it back whole.
    let shown: String = path.chars().take(80).collect();
    error(
        StatusCode::NOT_FOUND,
        format!("no such path: {shown}; GET / lists all"),
    )
    .into_response()
}

pub(super) async fn no_such_method() -> Response {
    error(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path does not take this method; GET / lists all",
    )
}
