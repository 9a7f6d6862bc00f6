//! Asking several nodes the same thing, each about itself.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::Method;

use super::client::{Call, Client};
use crate::http::bodies::{EpochSetBody, EpochsBody};

/// A document in which a node speaks of itself.
pub(super) trait OfNode: DeserializeOwned {
    /// The node's id.
    fn id(&self) -> &str;
}

impl OfNode for EpochsBody {
    fn id(&self) -> &str {
        &self.id
    }
}

impl OfNode for EpochSetBody {
    fn id(&self) -> &str {
        &self.id
    }
}

/// A node that could not be asked.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub(super) struct Silent {
    /// 16 hexadecimal digits.
    pub(super) id: String,
    /// For people.
    pub(super) name: String,
    /// Why.
    pub(super) reason: String,
}

/// Asks one node for a document about itself; `id` is the node that is meant.
///
/// # Errors
/// In words: it does not answer, refuses, or is another node.
pub(super) fn ask_node<T: OfNode>(
    client: &Client,
    addr: &str,
    id: &str,
    path: &str,
    patience: Duration,
) -> Result<T, String> {
    if addr.is_empty() {
        return Err("nobody has told its address".to_owned());
    }
    let call = Call::new(Method::GET, path).timeout(patience);
    let reply = client
        .call_at(addr, &call)
        .map_err(|error| error.to_string())?;
    if !reply.status.is_success() {
        return Err(reply.error().error);
    }
    let body: T = reply.json().map_err(|error| error.to_string())?;
    match body.id() == id {
        true => Ok(body),
        false => Err(format!("{addr} is another node: {}", body.id())),
    }
}
