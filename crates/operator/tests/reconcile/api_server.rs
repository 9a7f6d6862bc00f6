//! A Kubernetes API server in memory: as much of one as the operator can tell apart from the real one.
//!
//! Objects are JSON, by kind and name, of one namespace. It has: resource versions and 409 for one that is old, uids, generations that
//! grow with the spec, the status as a part of its own, merge patches, server-side apply, label selectors, preconditions of deletes,
//! finalizers, and removal of what an owner leaves behind.
//!
//! What it does not do: validate, default, keep watches, or know who owns a field. An apply merges what it is given (lists are replaced as
//! a whole), which is the same as long as one manager alone applies.
//!
//! Faults are ordered by number: the n-th call from now fails before or after it has had its effect.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use http::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::{Map, Value, json};

/// How a call fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// Refused with 500; nothing was done.
    Refused,
    /// Refused with 409; nothing was done.
    Conflict,
    /// Done, and never answered: what an operator that is killed in the middle leaves.
    Unanswered,
}

/// Plural and name.
pub(crate) type Key = (String, String);

/// Something that happens to the objects.
type Happens = Box<dyn FnOnce(&mut Objects) + Send>;

/// What there is, and what happens to calls.
#[derive(Default)]
pub(crate) struct Objects {
    /// All objects.
    pub(crate) all: BTreeMap<Key, Value>,
    versions: u64,
    /// Calls so far.
    pub(crate) calls: usize,
    /// Which call fails, and how.
    pub(crate) fault: Option<(usize, Fault)>,
    /// What was deleted by a call, in order, with what it was.
    pub(crate) deleted: Vec<(Key, Value)>,
    /// Whose calls are not answered.
    hangs: Option<&'static str>,
    /// What happens, once, just before the next delete.
    pub(crate) on_delete: Option<Happens>,
}

impl Objects {
    /// One object.
    pub(crate) fn get(&self, plural: &str, name: &str) -> Option<&Value> {
        self.all.get(&(plural.to_owned(), name.to_owned()))
    }

    /// Names and objects of a kind.
    pub(crate) fn of(&self, plural: &str) -> impl Iterator<Item = (&str, &Value)> {
        let all = self.all.iter().filter(move |(key, _)| key.0 == plural);
        all.map(|((_, name), object)| (name.as_str(), object))
    }

    /// Writes an object as it is, with a new version.
    pub(crate) fn put(&mut self, plural: &str, name: &str, mut object: Value) {
        self.versions += 1;
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(name);
        metadata["resourceVersion"] = json!(self.versions.to_string());
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid-{}", self.versions));
        }
        self.all
            .insert((plural.to_owned(), name.to_owned()), object);
    }

    /// Removes an object, and all that it owns.
    pub(crate) fn remove(&mut self, plural: &str, name: &str) {
        let Some(gone) = self.all.remove(&(plural.to_owned(), name.to_owned())) else {
            return;
        };
        let uid = gone["metadata"]["uid"].clone();
        let is_owned = |object: &Value| {
            let owners = object["metadata"]["ownerReferences"].as_array();
            owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == uid))
        };
        let owned = self.all.iter().filter(|(_, object)| is_owned(object));
        let owned: Vec<Key> = owned.map(|(key, _)| key.clone()).collect();
        for (plural, name) in owned {
            self.remove(&plural, &name);
        }
    }

    /// A call's turn: how it fails, if it does.
    pub(crate) fn count(&mut self) -> Option<Fault> {
        self.calls += 1;
        self.fault
            .filter(|(number, _)| *number == self.calls)
            .map(|(_, fault)| fault)
    }

    fn answer(&mut self, call: &Call) -> (StatusCode, Value) {
        let Call { plural, name, .. } = call;
        match (&call.method, name.as_deref()) {
            (&Method::GET, None) => {
                let items = self.of(plural).map(|(_, object)| object);
                let items = items.filter(|object| call.selects(object));
                let items: Vec<&Value> = items.collect();
                (
                    StatusCode::OK,
                    json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}),
                )
            }
            (&Method::GET, Some(name)) => match self.get(plural, name) {
                Some(object) => (StatusCode::OK, object.clone()),
                None => status(StatusCode::NOT_FOUND, "there is no such object"),
            },
            (&Method::POST, None) => {
                let generated = format!("generated-{}", self.versions);
                let name = call.body["metadata"]["name"].as_str().unwrap_or(&generated);
                if self.get(plural, name).is_some() {
                    return status(StatusCode::CONFLICT, "it exists already");
                }
                self.write(plural, name, None, call.body.clone())
            }
            (&Method::PUT, Some(name)) => {
                let before = self.get(plural, name).cloned();
                self.write(plural, name, before, call.body.clone())
            }
            (&Method::PATCH, Some(name)) => {
                let before = self.get(plural, name).cloned();
                if before.is_none() && !call.is_apply {
                    return status(StatusCode::NOT_FOUND, "there is no such object");
                }
                let mut after = before.clone().unwrap_or_else(|| json!({}));
                let mut patch = call.body.clone();
                if call.is_status {
                    patch = json!({"status": patch["status"]});
                } else if let Some(patch) = patch.as_object_mut() {
                    patch.remove("status");
                }
                merge(&mut after, &patch, call.is_apply);
                self.write(plural, name, before, after)
            }
            (&Method::DELETE, Some(name)) => self.delete(plural, name, &call.body),
            _ => status(StatusCode::METHOD_NOT_ALLOWED, "not of this server"),
        }
    }

    fn write(
        &mut self,
        plural: &str,
        name: &str,
        before: Option<Value>,
        mut after: Value,
    ) -> (StatusCode, Value) {
        let asked = after["metadata"]["resourceVersion"].clone();
        if let Some(before) = &before {
            if !asked.is_null() && asked != before["metadata"]["resourceVersion"] {
                return status(StatusCode::CONFLICT, "the object has been modified");
            }
            after["metadata"]["uid"] = before["metadata"]["uid"].clone();
        }
        let generation = before.as_ref().map_or(0, |before| {
            before["metadata"]["generation"].as_u64().unwrap_or(0)
        });
        let is_new_spec = before
            .as_ref()
            .is_none_or(|before| before["spec"] != after["spec"]);
        after["metadata"]["generation"] = json!(generation + u64::from(is_new_spec));
        after["metadata"]["namespace"] = json!("shops");
        if before.as_ref() != Some(&after) {
            self.put(plural, name, after);
        }
        let is_gone = self.get(plural, name).is_some_and(|object| {
            let metadata = &object["metadata"];
            let finalizers = metadata["finalizers"].as_array();
            !metadata["deletionTimestamp"].is_null() && finalizers.is_none_or(Vec::is_empty)
        });
        let object = self.get(plural, name).cloned().unwrap_or_default();
        if is_gone {
            self.remove(plural, name);
        }
        (StatusCode::OK, object)
    }

    fn delete(&mut self, plural: &str, name: &str, options: &Value) -> (StatusCode, Value) {
        if let Some(happens) = self.on_delete.take() {
            happens(self);
        }
        let Some(object) = self.get(plural, name).cloned() else {
            return status(StatusCode::NOT_FOUND, "there is no such object");
        };
        for field in ["uid", "resourceVersion"] {
            let asked = &options["preconditions"][field];
            if !asked.is_null() && *asked != object["metadata"][field] {
                return status(StatusCode::CONFLICT, "it is another object by now");
            }
        }
        self.deleted
            .push(((plural.to_owned(), name.to_owned()), object.clone()));
        let finalizers = object["metadata"]["finalizers"].as_array();
        match finalizers.is_none_or(Vec::is_empty) {
            true => self.remove(plural, name),
            false => {
                let mut object = object.clone();
                object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                self.put(plural, name, object);
            }
        }
        (StatusCode::OK, object)
    }
}

/// A call, taken apart.
struct Call {
    method: Method,
    plural: String,
    name: Option<String>,
    is_status: bool,
    is_apply: bool,
    selector: Vec<(String, String)>,
    body: Value,
}

impl Call {
    fn new(parts: &http::request::Parts, body: &[u8]) -> Call {
        // /api/v1/namespaces/NS/PLURAL/NAME/status, or /apis/GROUP/VERSION/namespaces/...
        let path: Vec<&str> = parts.uri.path().split('/').collect();
        let at = path
            .iter()
            .position(|&part| part == "namespaces")
            .unwrap_or(0);
        let of = |place: usize| path.get(at + place).map(|&part| part.to_owned());
        let query = parts
            .uri
            .query()
            .unwrap_or_default()
            .replace("%3D", "=")
            .replace("%2C", ",");
        let query = query.replace("%2F", "/");
        let selector = query
            .split('&')
            .find_map(|one| one.strip_prefix("labelSelector="));
        let selector = selector.unwrap_or_default().split(',');
        let selector = selector.filter_map(|one| one.split_once('='));
        let kind = parts.headers.get(http::header::CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        Call {
            method: parts.method.clone(),
            plural: of(2).unwrap_or_default(),
            name: of(3).filter(|name| !name.is_empty()),
            is_status: of(4).as_deref() == Some("status"),
            is_apply: kind.contains("apply-patch"),
            selector: selector
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            body: serde_json::from_slice(body).unwrap_or(Value::Null),
        }
    }

    fn selects(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let mut selector = self.selector.iter();
        selector.all(|(name, value)| labels[name.as_str()] == json!(value))
    }
}

/// A patch into an object. A merge patch removes what is null in it.
fn merge(into: &mut Value, patch: &Value, is_apply: bool) {
    let Value::Object(fields) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    for (name, value) in fields {
        match value {
            Value::Null if !is_apply => {
                into.as_object_mut().unwrap().remove(name);
            }
            _ => merge(&mut into[name.as_str()], value, is_apply),
        }
    }
}

fn status(code: StatusCode, message: &str) -> (StatusCode, Value) {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code.as_u16(),
        "reason": code.canonical_reason().unwrap_or_default().replace(' ', ""),
    });
    (code, body)
}

/// The server.
#[derive(Clone, Default)]
pub(crate) struct ApiServer(Arc<Mutex<Objects>>);

impl ApiServer {
    /// What there is.
    pub(crate) fn objects(&self) -> MutexGuard<'_, Objects> {
        self.0.lock().unwrap()
    }

    /// An object's uid.
    pub(crate) fn uid(&self, plural: &str, name: &str) -> Option<String> {
        let objects = self.objects();
        let object = objects.get(plural, name)?;
        Some(object["metadata"]["uid"].as_str()?.to_owned())
    }

    /// A client of it.
    pub(crate) fn client(&self) -> Client {
        self.client_of("operator")
    }

    /// Calls of this client are not answered from now on.
    pub(crate) fn hang(&self, client: &'static str) {
        self.objects().hangs = Some(client);
    }

    /// They are again.
    pub(crate) fn heal(&self) {
        self.objects().hangs = None;
    }

    /// A client with a name.
    pub(crate) fn client_of(&self, client: &'static str) -> Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move {
                if this.objects().hangs == Some(client) {
                    std::future::pending::<()>().await;
                }
                this.serve(request).await
            }
        });
        Client::new(service, "shops")
    }

    async fn serve(&self, request: Request<Body>) -> Result<Response<Body>, std::io::Error> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.map_err(std::io::Error::other)?;
        let call = Call::new(&parts, &body);
        let mut objects = self.objects();
        let fault = objects.count();
        let (code, body) = match fault {
            Some(Fault::Refused) => status(StatusCode::INTERNAL_SERVER_ERROR, "refused"),
            Some(Fault::Conflict) => status(StatusCode::CONFLICT, "somebody else was faster"),
            Some(Fault::Unanswered) | None => objects.answer(&call),
        };
        if fault == Some(Fault::Unanswered) {
            return Err(std::io::Error::other("the connection has ended"));
        }
        let body = serde_json::to_vec(&body).map_err(std::io::Error::other)?;
        let answer = Response::builder().status(code).body(Body::from(body));
        answer.map_err(std::io::Error::other)
    }
}
