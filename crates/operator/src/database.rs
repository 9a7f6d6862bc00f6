//! The database's administration by HTTP, as `docs/http.md` describes it: as much of it as the operator needs.
//!
//! Documents are read leniently (fields that are not known are ignored, missing ones have a default), so that the operator
//! works with nodes somewhat older or newer than itself: an upgrade has both.

use std::future::Future;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::decide::{Cluster, Member, Node, Quorums, Stage};

/// A node that does not answer a question within this time is taken for silent.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// A request to the ring is answered within 40 s; see `docs/http.md`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(45);

/// Bytes of an answer that are read at most.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// What one node tells.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// `/v1/status`.
    pub status: Status,
    /// `/v1/transition`.
    pub transition: Transition,
    /// `/v1/epochs`; None while the store is not open.
    pub epochs: Option<Epochs>,
}

/// `/v1/status`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    node: MemberBody,
    cluster: String,
    config: Option<ConfigBody>,
    epoch: u64,
    raft: RaftBody,
    members: Vec<MemberBody>,
    numbers: std::collections::BTreeMap<String, f64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct MemberBody {
    id: String,
    name: String,
    stage: String,
    alive: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct ConfigBody {
    n: u32,
    r: u32,
    w: u32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct RaftBody {
    role: String,
    applied: u64,
}

/// `/v1/transition`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Transition {
    version: u64,
    stage: String,
    change: String,
    blocked_by: Vec<Named>,
    excluded: Vec<Named>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    id: String,
    name: String,
}

/// `/v1/epochs`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Epochs {
    lag_epochs: u64,
    blocked_by: Vec<Named>,
}

impl Report {
    /// What the node says of itself.
    pub fn node(&self) -> Node {
        let epochs = self.epochs.clone().unwrap_or_default();
        let hints = self.status.numbers.get("hints_pending");
        Node {
            id: self.status.node.id.clone(),
            born: self.is_born(),
            hints: hints.copied().unwrap_or(0.0) as u64,
            lag_epochs: epochs.lag_epochs,
            verification_blocked_by: epochs.blocked_by.into_iter().map(|one| one.name).collect(),
        }
    }

    /// The present epoch.
    pub fn epoch(&self) -> u64 {
        self.status.epoch
    }

    fn is_born(&self) -> bool {
        self.status.cluster.chars().any(|digit| digit != '0')
    }

    /// How well informed the node is: by what it has applied of Raft's log; of equals, the leader.
    pub fn rank(&self) -> (u64, bool) {
        (self.status.raft.applied, self.status.raft.role == "leader")
    }

    /// The cluster, as this node knows it; None before it is born.
    pub fn cluster(&self) -> Option<Cluster> {
        let config = self.status.config.as_ref().filter(|_| self.is_born())?;
        let members = self.status.members.iter().filter_map(|member| {
            let stage = Stage::of(&member.stage)?;
            let (name, alive) = (member.name.clone(), member.alive);
            Some((member.id.clone(), Member { name, stage, alive }))
        });
        // A node is named once for each thing that it is waited for.
        let ids = |nodes: &[Named]| {
            let mut ids: Vec<String> = Vec::new();
            for node in nodes {
                if !ids.contains(&node.id) {
                    ids.push(node.id.clone());
                }
            }
            ids
        };
        Some(Cluster {
            id: self.status.cluster.clone(),
            quorums: Quorums {
                n: config.n,
                r: config.r,
                w: config.w,
            },
            version: self.transition.version,
            stage: self.transition.stage.clone(),
            change: self.transition.change.clone(),
            blocked_by: ids(&self.transition.blocked_by),
            excluded: ids(&self.transition.excluded),
            members: members.collect(),
        })
    }
}

/// The way to the nodes. There is one for HTTP, and one for tests.
pub trait Database: Send + Sync + 'static {
    /// Asks a node at `host:port` for all that it tells. None: it does not answer.
    fn report(&self, address: String) -> impl Future<Output = Option<Report>> + Send;

    /// Posts a request to a node.
    ///
    /// # Errors
    /// The node's refusal, or why there was no answer, in words.
    fn post(
        &self,
        address: String,
        path: &'static str,
        body: Value,
    ) -> impl Future<Output = Result<(), String>> + Send;
}

/// Nodes, by HTTP.
#[derive(Clone)]
pub struct HttpDatabase {
    agent: ureq::Agent,
}

impl Default for HttpDatabase {
    fn default() -> HttpDatabase {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build();
        HttpDatabase {
            agent: config.into(),
        }
    }
}

impl HttpDatabase {
    fn get<T: serde::de::DeserializeOwned>(&self, address: &str, path: &str) -> Option<T> {
        let request = self.agent.get(format!("http://{address}{path}"));
        let request = request.config().timeout_global(Some(ASK_TIMEOUT)).build();
        let mut answer = request.call().ok()?;
        if !answer.status().is_success() {
            return None;
        }
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        body.read_json().ok()
    }
}

impl Database for HttpDatabase {
    async fn report(&self, address: String) -> Option<Report> {
        let this = self.clone();
        let asked = tokio::task::spawn_blocking(move || {
            Some(Report {
                status: this.get(&address, "/v1/status")?,
                transition: this.get(&address, "/v1/transition")?,
                epochs: this.get(&address, "/v1/epochs?limit=1"),
            })
        });
        asked.await.ok().flatten()
    }

    async fn post(&self, address: String, path: &'static str, body: Value) -> Result<(), String> {
        let this = self.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let request = this.agent.post(format!("http://{address}{path}"));
            let request = request
                .config()
                .timeout_global(Some(REQUEST_TIMEOUT))
                .build();
            let mut answer = request
                .send_json(&body)
                .map_err(|error| format!("{address} does not answer: {error}"))?;
            if answer.status().is_success() {
                return Ok(());
            }
            let text = answer.body_mut().read_to_string().unwrap_or_default();
            let refusal = serde_json::from_str::<Value>(&text).ok();
            let words = refusal.and_then(|body| Some(body.get("error")?.as_str()?.to_owned()));
            Err(words.unwrap_or(text))
        });
        asked.await.map_err(|error| error.to_string())?
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_is_waited_for_twice_is_named_once() {
        let of = |id: &str| json!({"id": id, "name": id});
        let report = Report {
            status: serde_json::from_value(json!({
                "cluster": "c1", "config": {"n": 3, "r": 2, "w": 2},
            }))
            .unwrap(),
            transition: serde_json::from_value(json!({
                "stage": "stream", "blocked_by": [of("b"), of("a"), of("b")],
            }))
            .unwrap(),
            epochs: None,
        };
        assert_eq!(report.cluster().unwrap().blocked_by, ["b", "a"]);
    }
}
