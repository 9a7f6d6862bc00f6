//! Changes of the ring: asking for them, and how far they are.
//!
//! A request carries a name of the client's own, so it can be sent again, to any node, and is the same
//! request: the agreed state remembers the latest ones and what became of them. Nodes go by name or id; a
//! name that two members share is refused, never guessed.
//!
//! What it does not do: wait for the end of a change, which may take hours. The answer says that it is
//! under way; `GET` says how far it is, as far as the asked node knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use mds_cluster::state::{Quorums, WaitsFor};
use mds_cluster::{ClusterView, RequestFate, RingRequest, TransitionView};
use mds_types::{NodeId, RequestId};

use super::bodies::{BlockerBody, NamedNodeBody, RequestBody, RingAskBody, TransitionBody};
use super::reply::{self, Refusal, bad_request};
use super::{App, Shared, admin, epochs};

/// How long a request may take to be taken up: the node itself gives up after 30 s.
const ASK_TIMEOUT: Duration = Duration::from_secs(40);

pub(super) async fn status(State(app): Shared) -> Response {
    let view = app.database.view();
    reply::json(StatusCode::OK, &body(&app, &view, &view.transition))
}

pub(super) async fn ask(State(app): Shared, body: Body) -> Response {
    let view = app.database.view();
    let (request, ask) = match asked(&view, body).await {
        Ok(asked) => asked,
        Err(refusal) => return *refusal,
    };
    match tokio::time::timeout(ASK_TIMEOUT, app.database.change_ring(request, ask)).await {
        Ok(Ok(transition)) => {
            let document = self::body(&app, &app.database.view(), &transition);
            reply::json(StatusCode::OK, &document)
        }
        Ok(Err(error)) => reply::admin_refused(&error),
        Err(_) => reply::error(
            StatusCode::GATEWAY_TIMEOUT,
            "no answer in time: repeat it with the same request id",
        ),
    }
}

async fn asked(view: &ClusterView, body: Body) -> Result<(RequestId, RingRequest), Refusal> {
    let bytes = admin::json_body(body).await?;
    let asked: RingAskBody = serde_json::from_slice(&bytes)
        .map_err(|error| bad_request(format!("the body is not a change of the ring: {error}")))?;
    let ask = ask_of(view, &asked).map_err(bad_request)?;
    let request = match (&asked.request, &ask) {
        (Some(text), _) => text.parse().map_err(|_| {
            bad_request(format!(
                "request is `{text}`, not up to 32 hexadecimal digits"
            ))
        })?,
        (None, RingRequest::Abort | RingRequest::Exclude { .. }) => {
            view.transition.request.ok_or_else(|| {
                let message = "no change of the ring is under way, as far as this node knows";
                Box::new(reply::error(StatusCode::CONFLICT, message))
            })?
        }
        (None, _) => {
            return Err(bad_request(
                "request is missing: choose up to 32 random hexadecimal digits, and repeat the request \
                 with the same ones if its answer is lost",
            ));
        }
    };
    Ok((request, ask))
}

/// What is asked for, with nodes by id.
fn ask_of(view: &ClusterView, asked: &RingAskBody) -> Result<RingRequest, String> {
    check_fields(asked)?;
    let nodes = || -> Result<BTreeSet<NodeId>, String> {
        match asked.nodes.is_empty() {
            true => Err(format!("`{}` needs nodes: one or more", asked.action)),
            false => asked.nodes.iter().map(|text| node_of(view, text)).collect(),
        }
    };
    let one = || match asked.nodes.as_slice() {
        [text] => node_of(view, text),
        _ => Err(format!(
            "`{}` needs exactly one node in nodes",
            asked.action
        )),
    };
    let forced = asked.force;
    Ok(match asked.action.as_str() {
        "join" => RingRequest::Join { nodes: nodes()? },
        "leave" => RingRequest::Leave { nodes: nodes()? },
        "replace" => {
            let with = asked.with.as_ref();
            let with = with.ok_or("`replace` needs with: the node that takes the place")?;
            RingRequest::Replace {
                dead: one()?,
                with: node_of(view, with)?,
                forced,
            }
        }
        "remove" => RingRequest::Remove {
            node: one()?,
            forced,
        },
        "exclude" => RingRequest::Exclude {
            node: one()?,
            forced,
        },
        "reweigh" if asked.weights.is_empty() => {
            return Err("`reweigh` needs weights: {\"node\": weight}".to_owned());
        }
        "reweigh" => {
            let weights = asked.weights.iter();
            let weights = weights.map(|(text, weight)| Ok((node_of(view, text)?, *weight)));
            RingRequest::Reweigh {
                weights: weights.collect::<Result<BTreeMap<NodeId, u32>, String>>()?,
            }
        }
        "quorums" => RingRequest::ChangeQuorums(quorums(view, asked)?),
        "abort" => RingRequest::Abort,
        other => {
            return Err(format!(
                "action is `{other}`: it has to be join, leave, replace, remove, reweigh, quorums, abort \
                 or exclude"
            ));
        }
    })
}

/// A field that the action has no use for is a misunderstanding, not to be passed over.
fn check_fields(asked: &RingAskBody) -> Result<(), String> {
    let action = asked.action.as_str();
    let takes_nodes = !matches!(action, "reweigh" | "quorums" | "abort");
    let has_quorums = asked.n.is_some() || asked.r.is_some() || asked.w.is_some();
    let unused = [
        ("nodes", !asked.nodes.is_empty() && !takes_nodes),
        ("with", asked.with.is_some() && action != "replace"),
        ("weights", !asked.weights.is_empty() && action != "reweigh"),
        ("n, r and w", has_quorums && action != "quorums"),
        (
            "force",
            asked.force && !matches!(action, "replace" | "remove" | "exclude"),
        ),
    ];
    match unused.iter().find(|(_, is_unused)| *is_unused) {
        Some((field, _)) => Err(format!("`{action}` takes no {field}")),
        None => Ok(()),
    }
}

/// N, R and W; what is left out stays as it is.
fn quorums(view: &ClusterView, asked: &RingAskBody) -> Result<Quorums, String> {
    if asked.n.is_none() && asked.r.is_none() && asked.w.is_none() {
        return Err("`quorums` needs n, r or w".to_owned());
    }
    let config = view.config.as_ref();
    let config = config.ok_or("the cluster has not been formed yet")?;
    Ok(Quorums {
        replicas: asked.n.unwrap_or(config.replicas),
        read: asked.r.unwrap_or(config.read_quorum),
        write: asked.w.unwrap_or(config.write_quorum),
    })
}

/// The member of this name or id.
fn node_of(view: &ClusterView, text: &str) -> Result<NodeId, String> {
    let named: Vec<NodeId> = view
        .members
        .keys()
        .filter(|node| view.info(**node).is_some_and(|info| info.name == text))
        .copied()
        .collect();
    match named.as_slice() {
        [node] => return Ok(*node),
        [] => {}
        several => {
            let ids: Vec<String> = several.iter().map(NodeId::to_string).collect();
            return Err(format!(
                "several members are called `{text}`: say which by its id: {}",
                ids.join(", ")
            ));
        }
    }
    if let Ok(node) = text.parse::<NodeId>()
        && view.members.contains_key(&node)
    {
        return Ok(node);
    }
    Err(format!(
        "`{text}` is no member: `mydatastore status` lists all, and a node that was just started appears \
         there as `waiting` once the cluster has taken it up"
    ))
}

fn named(view: &ClusterView, node: NodeId) -> NamedNodeBody {
    let info = view.info(node);
    NamedNodeBody {
        id: node.to_string(),
        name: info.map(|info| info.name.clone()).unwrap_or_default(),
    }
}

fn body(app: &App, view: &ClusterView, transition: &TransitionView) -> TransitionBody {
    let copying = epochs::copying_body(&app.database.copying());
    let blockers = transition.blocked_by.iter().map(|blocker| {
        let NamedNodeBody { id, name } = named(view, blocker.node);
        BlockerBody {
            id,
            name,
            waits_for: match blocker.waits_for {
                WaitsFor::Ack => "ack",
                WaitsFor::Ready => "ready",
            }
            .to_owned(),
            alive: view.is_alive(blocker.node),
            since_ms: app.database.blocked_since_ms(blocker),
            http: view
                .info(blocker.node)
                .map(|info| info.http_addr.clone())
                .unwrap_or_default(),
            copying: (blocker.node == view.me).then_some(copying),
        }
    });
    let requests = transition
        .requests
        .iter()
        .map(|(request, fate)| RequestBody {
            request: request.to_string(),
            fate: match fate {
                RequestFate::Running => "running",
                RequestFate::Finished => "finished",
                RequestFate::Aborted => "aborted",
            }
            .to_owned(),
        });
    TransitionBody {
        version: transition.version.0,
        stage: transition.stage.to_string(),
        request: transition.request.map(|request| request.to_string()),
        change: in_names(view, &transition.change),
        blocked_by: blockers.collect(),
        excluded: transition
            .excluded
            .iter()
            .map(|node| named(view, *node))
            .collect(),
        requests: requests.collect(),
        copying: Some(copying),
    }
}

/// The words of a change, with names in the place of ids.
fn in_names(view: &ClusterView, change: &str) -> String {
    let words = change.split(' ').map(|word| {
        let bare = word.trim_end_matches(',');
        let comma = &word[bare.len()..];
        let node = bare.parse::<NodeId>().ok().filter(|_| bare.len() == 16);
        let name = node.map(|node| named(view, node).name);
        match name.filter(|name| !name.is_empty()) {
            Some(name) => format!("{name}{comma}"),
            None => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}
