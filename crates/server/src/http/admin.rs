//! What people and scripts ask about a node and its cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use mds_cluster::{ClusterView, MemberStage, RaftRole, Standing};
use mds_types::{ClusterConfig, NodeId};

use super::bodies::{
    ClusterConfigBody, ConfigBody, DigestBody, FieldBody, InitBody, MemberBody, MembersBody,
    RaftBody, RingBody, RingMemberBody, StatusBody,
};
use super::reply::{self, Refusal, bad_request};
use super::{App, Shared, limits};
use crate::config::{Effective, FIELDS};
use crate::database::{Init, Reading, Sample};

/// How long `init` may take: it waits for nodes to be found and for Raft to agree.
const INIT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a digest of all data of this node may take.
const DIGEST_TIMEOUT: Duration = Duration::from_secs(300);

const WELCOME: &str = "\
MyDataStore, a leaderless replicated key-value database.

  curl -X PUT --data-binary VALUE /v1/kv/KEY    write   (?w= &ttl_ms= &timeout_ms=)
  curl /v1/kv/KEY                               read    (?r= &timeout_ms=)
  curl -X DELETE /v1/kv/KEY                     delete
  curl '/v1/list?prefix=&limit=&values=true'    list;  /v1/scan?partition= for one partition
  curl /v1/status /v1/ring /v1/members /v1/config /v1/digest
  curl /v1/epochs                               how far epochs are verified here
  curl '/v1/verify?partition=P&epoch=E'         what this replica has of one of them
  curl -X POST -d '{\"nodes\":3}' /v1/init        give birth to a cluster
  curl /v1/transition                           how far a change of the ring is
  curl -X POST -d '{\"action\":\"join\",\"nodes\":[\"node-4\"]}' /v1/transition      change the ring
  curl '/set?key=K&value=V'  '/get?key=K'       as the system this one descends from
  curl /health /ready /metrics
";

pub(super) async fn welcome() -> &'static str {
    WELCOME
}

pub(super) async fn health() -> &'static str {
    "ok\n"
}

pub(super) async fn ready(State(app): Shared) -> Response {
    let (ready, reason) = readiness(&app.database.view(), app.database.hindrance());
    let status = match ready {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, format!("{reason}\n")).into_response()
}

/// Whether the node serves as it should, and why (not), in words.
fn readiness(view: &ClusterView, hindrance: Option<String>) -> (bool, String) {
    match (&view.standing, hindrance) {
        (Standing::Active | Standing::Waiting, Some(reason)) => {
            (false, format!("not ready: {reason}"))
        }
        (Standing::Active, _) => (true, "ready".to_owned()),
        (Standing::Waiting, _) => (
            true,
            "ready: coordinates requests, holds no data until a ring change takes it in".to_owned(),
        ),
        (Standing::Unborn, _) => (
            false,
            "not ready: not part of a cluster yet: run `mydatastore init` on one node, and check \
             the seeds of this one"
                .to_owned(),
        ),
        (Standing::Joining, _) => (
            false,
            "not ready: waiting for the cluster to acknowledge this start".to_owned(),
        ),
        (Standing::Refused(reason), _) => (false, format!("not ready: refused for good: {reason}")),
    }
}

pub(super) async fn status(State(app): Shared) -> Response {
    let view = app.database.view();
    let (ready, reason) = readiness(&view, app.database.hindrance());
    let body = StatusBody {
        node: member(&view, view.me),
        standing: standing_word(&view.standing).to_owned(),
        ready,
        reason,
        cluster: view.cluster.to_string(),
        config: view.config.as_ref().map(cluster_config),
        epoch: view.epoch.0,
        ring_version: view.topology.version.0,
        raft: RaftBody {
            role: role_word(view.raft.role).to_owned(),
            leader: view.raft.leader.map(|node| node.to_string()),
            term: view.raft.term,
            applied: view.raft.applied,
            chain: view.raft.chain.map(|chain| chain.to_string()),
            voters: view.raft.voters.iter().map(NodeId::to_string).collect(),
        },
        members: members_of(&view),
        numbers: numbers(&app.database.samples()),
    };
    reply::json(StatusCode::OK, &body)
}

pub(super) async fn members(State(app): Shared) -> Response {
    let members = members_of(&app.database.view());
    reply::json(StatusCode::OK, &MembersBody { members })
}

pub(super) async fn ring(State(app): Shared) -> Response {
    let view = app.database.view();
    let (Some(placement), Some(config)) = (app.placement(), &view.config) else {
        let message = "no ring yet: run `mydatastore init`";
        return reply::error(StatusCode::SERVICE_UNAVAILABLE, message);
    };
    let loads: BTreeMap<NodeId, _> = placement.loads().map(|load| (load.node, *load)).collect();
    let members = view.topology.members.iter().map(|ringed| {
        let load = loads.get(&ringed.node);
        RingMemberBody {
            id: ringed.node.to_string(),
            name: view
                .info(ringed.node)
                .map(|info| info.name.clone())
                .unwrap_or_default(),
            zone: ringed.zone.clone(),
            weight: ringed.weight,
            partitions: load.map_or(0, |load| load.partitions),
            primaries: load.map_or(0, |load| load.primaries),
            load_milli: load.map_or(0, |load| load.ratio_milli()),
        }
    });
    let index = |node: &NodeId| {
        let members = &view.topology.members;
        members
            .binary_search_by_key(node, |member| member.node)
            .ok()
    };
    let partitions = (0..config.partition_count).map(|partition| {
        let replicas = placement.replicas(mds_types::PartitionId(partition));
        replicas.iter().filter_map(index).collect()
    });
    let body = RingBody {
        version: view.topology.version.0,
        partition_count: config.partition_count,
        n: config.replicas,
        members: members.collect(),
        partitions: partitions.collect(),
    };
    reply::json(StatusCode::OK, &body)
}

pub(super) async fn config(State(app): Shared) -> Response {
    let body = ConfigBody {
        node: config_fields(&app.effective),
        cluster: app.database.view().config.as_ref().map(cluster_config),
    };
    reply::json(StatusCode::OK, &body)
}

/// The fields of a configuration as documents.
pub fn config_fields(effective: &Effective) -> Vec<FieldBody> {
    let fields = FIELDS.iter().zip(&effective.origins);
    fields
        .map(|(field, origin)| FieldBody {
            name: field.name.to_owned(),
            value: field.text(&effective.config),
            default: field.default_text(),
            origin: origin.to_string(),
            unit: field.unit.to_owned(),
            meaning: field.meaning.to_owned(),
            breaks: field.breaks.to_owned(),
        })
        .collect()
}

pub(super) async fn digest(State(app): Shared) -> Response {
    match tokio::time::timeout(DIGEST_TIMEOUT, app.database.digest()).await {
        Ok(Ok(partitions)) => {
            let node = app.database.view().me.to_string();
            reply::json(StatusCode::OK, &DigestBody { node, partitions })
        }
        Ok(Err(error)) => reply::admin_refused(&error),
        Err(_) => reply::error(StatusCode::GATEWAY_TIMEOUT, "the digest took too long"),
    }
}

pub(super) async fn init(State(app): Shared, body: Body) -> Response {
    let wanted = match init_asked(&app, body).await {
        Ok(wanted) => wanted,
        Err(refusal) => return *refusal,
    };
    match tokio::time::timeout(INIT_TIMEOUT, app.database.init(wanted)).await {
        Ok(Ok(())) => status(State(app)).await,
        Ok(Err(error)) => reply::admin_refused(&error),
        Err(_) => reply::error(
            StatusCode::GATEWAY_TIMEOUT,
            "the cluster was not born in time; it may still be: look at /v1/status",
        ),
    }
}

/// The whole body of an administrative request.
pub(super) async fn json_body(body: Body) -> Result<Bytes, Refusal> {
    match tokio::time::timeout(
        limits::BODY_READ_TIMEOUT,
        to_bytes(body, limits::JSON_BYTES_MAX),
    )
    .await
    {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => Err(bad_request(format!("the body could not be read: {error}"))),
        Err(_) => {
            let message = "the body did not arrive in time";
            Err(Box::new(reply::error(StatusCode::REQUEST_TIMEOUT, message)))
        }
    }
}

async fn init_asked(app: &Arc<App>, body: Body) -> Result<Init, Refusal> {
    let bytes = json_body(body).await?;
    let asked = match bytes.is_empty() {
        true => InitBody::default(),
        false => serde_json::from_slice(&bytes)
            .map_err(|error| bad_request(format!("the body is not what init takes: {error}")))?,
    };
    let view = app.database.view();
    let known = 1 + view.peers.values().filter(|peer| peer.alive).count() as u32;
    init_of(&asked, known).map_err(bad_request)
}

/// Fills in what was left out, and checks the rest.
fn init_of(asked: &InitBody, known: u32) -> Result<Init, String> {
    let nodes = asked.nodes.unwrap_or(known);
    if nodes == 0 {
        return Err("nodes is 0: a cluster needs at least one".to_owned());
    }
    let usual = ClusterConfig::default();
    let most = u8::try_from(nodes).unwrap_or(u8::MAX);
    let replicas = asked.n.unwrap_or(usual.replicas.min(most));
    let majority = replicas / 2 + 1;
    let config = ClusterConfig {
        partition_count: asked.partition_count.unwrap_or(usual.partition_count),
        replicas,
        read_quorum: asked.r.unwrap_or(majority),
        write_quorum: asked.w.unwrap_or(majority),
        ..usual
    };
    config.validate().map_err(|error| error.to_string())?;
    if u32::from(replicas) > nodes {
        return Err(format!(
            "n is {replicas}, but the ring is formed of {nodes} node(s): start more nodes first, \
             or choose a smaller n"
        ));
    }
    Ok(Init { nodes, config })
}

fn cluster_config(config: &ClusterConfig) -> ClusterConfigBody {
    ClusterConfigBody {
        partition_count: config.partition_count,
        n: config.replicas,
        r: config.read_quorum,
        w: config.write_quorum,
    }
}

/// Members, and who may become one. Gossip remembers for hours those that have left or were replaced: they are nobody's concern.
fn members_of(view: &ClusterView) -> Vec<MemberBody> {
    let is_born = view.config.is_some();
    let heard_of = view.peers.iter().filter(|(_, peer)| peer.alive || !is_born);
    let heard_of = heard_of.map(|(node, _)| node);
    let mut nodes: BTreeSet<NodeId> = view.members.keys().chain(heard_of).copied().collect();
    nodes.insert(view.me);
    nodes.into_iter().map(|node| member(view, node)).collect()
}

fn member(view: &ClusterView, node: NodeId) -> MemberBody {
    let info = view.info(node).cloned().unwrap_or_default();
    let ours = view.members.get(&node);
    let heard = view.peers.get(&node);
    let stage = match ours.map(|member| member.stage) {
        Some(MemberStage::Active) => "active",
        Some(MemberStage::Waiting) => "waiting",
        Some(MemberStage::Joining) => "joining",
        Some(MemberStage::Leaving) => "leaving",
        Some(MemberStage::Left) => "left",
        None => "unknown",
    };
    let boot = match node == view.me {
        true => view.my_boot,
        false => heard
            .map(|peer| peer.boot)
            .or(ours.map(|member| member.boot))
            .unwrap_or(0),
    };
    MemberBody {
        id: node.to_string(),
        name: info.name,
        stage: stage.to_owned(),
        alive: view.is_alive(node),
        zone: info.zone,
        weight: info.weight,
        boot,
        resp: info.resp_addr,
        http: info.http_addr,
        peer: info.peer_addr,
    }
}

fn standing_word(standing: &Standing) -> &'static str {
    match standing {
        Standing::Unborn => "unborn",
        Standing::Joining => "joining",
        Standing::Waiting => "waiting",
        Standing::Active => "active",
        Standing::Refused(_) => "refused",
    }
}

fn role_word(role: RaftRole) -> &'static str {
    match role {
        RaftRole::None => "none",
        RaftRole::Learner => "learner",
        RaftRole::Follower => "follower",
        RaftRole::Candidate => "candidate",
        RaftRole::Leader => "leader",
    }
}

/// Samples as a flat map; of a histogram, how many and their sum.
fn numbers(samples: &[Sample]) -> BTreeMap<String, f64> {
    let mut out = BTreeMap::new();
    for sample in samples {
        let mut name = sample.name.to_owned();
        for (label, value) in &sample.labels {
            name.push_str(&format!(" {label}={value}"));
        }
        match &sample.reading {
            Reading::Counter(value) => {
                out.insert(name, *value as f64);
            }
            Reading::Gauge(value) => {
                out.insert(name, *value);
            }
            Reading::Histogram { buckets, sum } => {
                let count: u64 = buckets.iter().map(|(_, count)| count).sum();
                out.insert(format!("{name} count"), count as f64);
                out.insert(format!("{name} sum"), *sum);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::fake::three_members;

    #[test]
    fn who_was_replaced_is_no_member_though_gossip_remembers_it() {
        let ids = |view: &ClusterView| -> Vec<NodeId> {
            let told = members_of(view).into_iter();
            told.map(|member| member.id.parse().unwrap()).collect()
        };
        let mut view = three_members();
        view.members.remove(&NodeId(3));
        // It lives, so that it may become a member again.
        assert_eq!(ids(&view), [NodeId(1), NodeId(2), NodeId(3)]);
        view.peers.get_mut(&NodeId(3)).unwrap().alive = false;
        assert_eq!(ids(&view), [NodeId(1), NodeId(2)]);
        // A member that is dead is a member, and before birth whoever was heard of is of interest.
        view.peers.get_mut(&NodeId(2)).unwrap().alive = false;
        assert_eq!(ids(&view), [NodeId(1), NodeId(2)]);
        view.config = None;
        assert_eq!(ids(&view), [NodeId(1), NodeId(2), NodeId(3)]);
    }

    #[test]
    fn what_init_leaves_out_is_filled_in() {
        let of = |asked: &InitBody, known| init_of(asked, known);
        let three = of(&InitBody::default(), 3).unwrap();
        assert_eq!(three.nodes, 3);
        assert_eq!(three.config, ClusterConfig::default());
        let one = of(&InitBody::default(), 1).unwrap();
        assert_eq!((one.config.replicas, one.config.read_quorum), (1, 1));
        let five = InitBody {
            n: Some(5),
            ..InitBody::default()
        };
        assert_eq!(of(&five, 5).unwrap().config.write_quorum, 3);
        assert_eq!(
            of(&five, 3).unwrap_err(),
            "n is 5, but the ring is formed of 3 node(s): start more nodes first, or choose a \
             smaller n"
        );
        let odd = InitBody {
            partition_count: Some(100),
            ..InitBody::default()
        };
        assert!(of(&odd, 3).unwrap_err().contains("power of two"));
    }
}
