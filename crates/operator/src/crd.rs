//! The custom resource `MyDataStore`, version v1alpha1: what a person asks for, and what the operator answers.
//!
//! The API server checks the rules that can be checked by looking at the resource alone (bounds, quorums not above
//! N, size not below N, what may never change). What depends on the cluster's state is the operator's to judge
//! ([`crate::decide`]), and it says so in `status.conditions`.

// The derive repeats the struct in a private module.
#![allow(unreachable_pub)]
#![allow(
    clippy::duplicated_attributes,
    reason = "each column of `kubectl get` has attributes of the same names"
)]

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is asked for.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "mydatastore.dev",
    version = "v1alpha1",
    kind = "MyDataStore",
    plural = "mydatastores",
    shortname = "mds",
    namespaced,
    status = "MyDataStoreStatus",
    doc = "A MyDataStore cluster: a leaderless, replicated key-value database.",
    scale(
        spec_replicas_path = ".spec.size",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Size",
        type_ = "integer",
        json_path = ".spec.size",
        description = "Nodes asked for"
    ),
    printcolumn(
        name = "Ready",
        type_ = "integer",
        json_path = ".status.readyReplicas",
        description = "Nodes that serve"
    ),
    printcolumn(
        name = "Ring",
        type_ = "integer",
        json_path = ".status.ringMembers",
        description = "Nodes that hold data"
    ),
    printcolumn(
        name = "Stage",
        type_ = "string",
        json_path = ".status.stage",
        description = "Stage of the ring: stable, or that of the change under way"
    ),
    printcolumn(
        name = "Epoch",
        type_ = "integer",
        json_path = ".status.epoch",
        priority = 1,
        description = "The present epoch"
    ),
    printcolumn(
        name = "Lag",
        type_ = "integer",
        json_path = ".status.watermarkLagEpochs",
        priority = 1,
        description = "Closed epochs that are not verified everywhere"
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.message",
        description = "What is being done, or why it waits"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[x_kube(
    validation = ("self.size >= self.n", "size is below n: each key needs n nodes"),
    validation = ("!has(self.r) || self.r <= self.n", "r is above n: a read cannot ask more replicas than there are"),
    validation = ("!has(self.w) || self.w <= self.n", "w is above n: a write cannot wait for more replicas than there are"),
    validation = ("self.partitionCount == oldSelf.partitionCount", "partitionCount holds for the cluster's life"),
    validation = ("self.storage == oldSelf.storage", "storage cannot be changed: make a new cluster, or resize the volumes by hand"),
    validation = ("[1,2,4,8,16,32,64,128,256,512,1024,2048,4096,8192,16384].exists(p, p == self.partitionCount)", "partitionCount has to be a power of two")
)]
#[serde(rename_all = "camelCase")]
pub struct MyDataStoreSpec {
    /// Nodes. Changing it is a ring change: data moves while clients work.
    #[schemars(range(min = 1, max = 256))]
    #[serde(default = "three")]
    pub size: u32,

    /// The database's image, with its tag.
    #[schemars(length(min = 1))]
    pub image: String,

    /// Always, IfNotPresent or Never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,

    /// Names of secrets to pull the image with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<String>,

    /// N: replicas of each key. Can be changed while clients work.
    #[schemars(range(min = 1, max = 9))]
    #[serde(default = "three")]
    pub n: u32,

    /// R: replicas that answer a read, unless it says otherwise. Left out: the majority of n.
    #[schemars(range(min = 1, max = 9))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r: Option<u32>,

    /// W: replicas that have a write on disk before it is acknowledged. Left out: the majority of n.
    #[schemars(range(min = 1, max = 9))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub w: Option<u32>,

    /// Partitions, a power of two. Holds for the cluster's life.
    #[schemars(range(min = 1, max = 16384))]
    #[serde(default = "partitions")]
    pub partition_count: u32,

    /// The volume of each node.
    #[serde(default)]
    pub storage: Storage,

    /// What becomes of volumes that are not needed any more.
    #[serde(default)]
    pub volume_retention: VolumeRetention,

    /// When a write is on disk: `always`, `interval:MS` or `os`.
    #[schemars(regex(pattern = r"^(always|os|interval:[0-9]{1,5})$"))]
    #[serde(default = "always")]
    pub fsync: String,

    /// How often a new epoch begins, the unit of verification: `15m`, `10s`, `500ms`.
    #[schemars(regex(pattern = r"^[1-9][0-9]{0,8}(ms|s|m|h)$"))]
    #[serde(default = "quarter_hour")]
    pub epoch_interval: String,

    /// Further settings of the nodes, as in the configuration file: `request_timeout_ms: "1000"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,

    /// True: the operator changes nothing, but goes on telling the status.
    #[serde(default)]
    pub paused: bool,

    /// CPU and memory of each node. A HorizontalPodAutoscaler by utilisation needs `requests.cpu`.
    #[schemars(schema_with = "free_form")]
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub resources: Value,

    /// Over which zones and hosts pods are spread. Left out: over both as well as can be.
    #[schemars(schema_with = "free_form_list")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topology_spread: Vec<Value>,

    /// Labels that a host has to have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints of hosts that are tolerated.
    #[schemars(schema_with = "free_form_list")]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Value>,

    /// Affinity of the pods.
    #[schemars(schema_with = "free_form")]
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub affinity: Value,

    /// Priority class of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
}

/// The volume of each node.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Storage class. Left out: the default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
    /// Its size: `10Gi`.
    #[serde(default = "ten_gib")]
    pub size: String,
}

impl Default for Storage {
    fn default() -> Storage {
        Storage {
            class_name: None,
            size: ten_gib(),
        }
    }
}

/// Whether a volume outlives its use.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Retention {
    /// It stays.
    #[default]
    Retain,
    /// It goes.
    Delete,
}

/// What becomes of volumes that are not needed any more.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeRetention {
    /// Of a node that has left the ring. It cannot be used again: if one was retained, it goes when its number is
    /// needed again.
    #[serde(default)]
    pub when_scaled: Retention,
    /// Of all nodes, when the resource is deleted.
    #[serde(default)]
    pub when_deleted: Retention,
}

/// What the operator has seen last, and does.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MyDataStoreStatus {
    /// The generation of the resource that this answers.
    #[serde(default)]
    pub observed_generation: i64,
    /// Pods there are.
    #[serde(default)]
    pub replicas: u32,
    /// Pods that serve.
    #[serde(default)]
    pub ready_replicas: u32,
    /// Nodes on the ring.
    #[serde(default)]
    pub ring_members: u32,
    /// Selects the pods, for autoscalers.
    #[serde(default)]
    pub selector: String,
    /// The cluster's id, once it is born. While it stands here, the operator gives birth to no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// Version of the ring.
    #[serde(default)]
    pub topology_version: u64,
    /// `stable`, or the stage of the change under way.
    #[serde(default)]
    pub stage: String,
    /// The present epoch.
    #[serde(default)]
    pub epoch: u64,
    /// Closed epochs that are not verified everywhere.
    #[serde(default)]
    pub watermark_lag_epochs: u64,
    /// Whom a change of the ring or verification waits for.
    #[serde(default)]
    pub blocked_by: Vec<String>,
    /// What is being done, or why it waits.
    #[serde(default)]
    pub message: String,
    /// The members.
    #[serde(default)]
    pub members: Vec<MemberStatus>,
    /// `Ready`, `Progressing`, `Degraded`.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

/// One member of the cluster.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Its pod.
    pub name: String,
    /// Its node id.
    pub id: String,
    /// `active`, `waiting`, `joining`, `leaving` or `left`.
    pub stage: String,
    /// Whether the others hold it for alive.
    pub alive: bool,
}

/// A condition, as Kubernetes has them.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Its name.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// In one word.
    pub reason: String,
    /// In a sentence.
    pub message: String,
    /// The generation of the resource that it speaks of.
    #[serde(default)]
    pub observed_generation: i64,
    /// When `status` changed last, RFC 3339.
    pub last_transition_time: String,
}

fn three() -> u32 {
    3
}

fn partitions() -> u32 {
    256
}

fn always() -> String {
    "always".to_owned()
}

fn quarter_hour() -> String {
    "15m".to_owned()
}

fn ten_gib() -> String {
    "10Gi".to_owned()
}

/// An object whose shape is Kubernetes' own: it is checked when the pods are made.
fn free_form(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

fn free_form_list(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "array", "items": free_form(generator)})
}

impl MyDataStoreSpec {
    /// R, the majority of N unless said otherwise.
    pub fn read_quorum(&self) -> u32 {
        self.r.unwrap_or(self.n / 2 + 1)
    }

    /// W, the majority of N unless said otherwise.
    pub fn write_quorum(&self) -> u32 {
        self.w.unwrap_or(self.n / 2 + 1)
    }

    /// `epochInterval` in milliseconds; None if it is no duration or does not fit.
    pub fn epoch_interval_ms(&self) -> Option<u64> {
        let text = self.epoch_interval.as_str();
        let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
        units.iter().find_map(|(unit, unit_ms)| {
            let number = text.strip_suffix(unit)?.parse::<u64>().ok()?;
            number.checked_mul(*unit_ms)
        })
    }
}
