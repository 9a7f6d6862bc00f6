//! The JSON documents, as the front-end writes and the command line reads them.
//!
//! Fields are only ever added: readers ignore those they do not know.

mod epochs;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::database::PartitionDigest;

pub use epochs::{
    AwaitedBody, CopyingBody, EpochBody, EpochSetBody, EpochsBody, LeafBody, PartitionCountsBody,
};

/// Why a request failed.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ErrorBody {
    /// In words.
    pub error: String,
    /// The quorum, if one was missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed: Option<u8>,
    /// Replicas that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub got: Option<u8>,
    /// Replicas there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u8>,
    /// Sent back as `Idempotency-Key`, it makes a retry the very same write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_token: Option<String>,
}

/// A write that succeeded.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WrittenBody {
    /// Its version.
    pub version: String,
    /// Replicas that had it durable when the answer was made.
    pub acked: u8,
}

/// One live record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecordBody {
    /// Percent-encoded, as in `/v1/kv/{key}`.
    pub key: String,
    /// Its version.
    pub version: String,
    /// Bytes of its value.
    pub value_bytes: u64,
    /// Its value, percent-encoded, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
}

/// A page of records.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PageBody {
    /// In key order within a partition. May be empty and still not be the last page.
    pub records: Vec<RecordBody>,
    /// Where the next page begins: the next `after` of a scan, the next `cursor` of a listing. None
    /// on the last page.
    pub next: Option<String>,
}

/// `/v1/status`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StatusBody {
    /// The node that answers.
    pub node: MemberBody,
    /// `unborn`, `joining`, `waiting`, `active` or `refused`.
    pub standing: String,
    /// Whether it serves; else why not.
    pub ready: bool,
    /// In words.
    pub reason: String,
    /// 32 hexadecimal digits; all zero before the cluster is born.
    pub cluster: String,
    /// What is agreed now; null before the cluster is born.
    pub config: Option<ClusterConfigBody>,
    /// The epoch.
    pub epoch: u64,
    /// The ring's version, 0 before it is formed.
    pub ring_version: u64,
    /// Raft, as this node sees it.
    pub raft: RaftBody,
    /// All members, and other nodes that live by gossip; before the cluster is born, all that gossip knows.
    pub members: Vec<MemberBody>,
    /// What the node has counted, by metric name. Labels stand behind the name.
    pub numbers: BTreeMap<String, f64>,
}

/// What is agreed now. The number of partitions holds for the cluster's life; `quorums` changes the others.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterConfigBody {
    /// Partitions.
    pub partition_count: u16,
    /// Replicas of each.
    pub n: u8,
    /// Read quorum.
    pub r: u8,
    /// Write quorum.
    pub w: u8,
}

/// Raft, as one node sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RaftBody {
    /// `none`, `learner`, `follower`, `candidate` or `leader`.
    pub role: String,
    /// Node id of the leader.
    pub leader: Option<String>,
    /// Term.
    pub term: u64,
    /// Index of the last applied entry.
    pub applied: u64,
    /// Digest of all entries up to that one, 32 hexadecimal digits: two nodes that have applied as many
    /// and show another have parted. None where it is not known. Nodes before it did not say.
    #[serde(default)]
    pub chain: Option<String>,
    /// Node ids of the voters.
    pub voters: Vec<String>,
}

/// One node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberBody {
    /// 16 hexadecimal digits.
    pub id: String,
    /// For people.
    pub name: String,
    /// `active` (on the ring), `waiting` (a member that holds no data) or `unknown` (not a member).
    pub stage: String,
    /// Whether gossip holds it for alive.
    pub alive: bool,
    /// Failure domain.
    pub zone: String,
    /// Share.
    pub weight: u32,
    /// Starts of its data directory.
    pub boot: u64,
    /// `host:port` for Redis clients.
    pub resp: String,
    /// `host:port` for HTTP clients.
    pub http: String,
    /// `host:port` for other nodes.
    pub peer: String,
}

/// `/v1/members`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MembersBody {
    /// By node id.
    pub members: Vec<MemberBody>,
}

/// `/v1/ring`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RingBody {
    /// The ring's version.
    pub version: u64,
    /// Partitions.
    pub partition_count: u16,
    /// Replicas of each.
    pub n: u8,
    /// By node id.
    pub members: Vec<RingMemberBody>,
    /// For each partition its replica set, first one first, as indices into `members`.
    pub partitions: Vec<Vec<usize>>,
}

/// A member of the ring and its load.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RingMemberBody {
    /// 16 hexadecimal digits.
    pub id: String,
    /// For people.
    pub name: String,
    /// Failure domain.
    pub zone: String,
    /// Share.
    pub weight: u32,
    /// Partitions it is a replica of.
    pub partitions: u32,
    /// Partitions it is the first replica of.
    pub primaries: u32,
    /// Load relative to its fair share, in thousandths.
    pub load_milli: u64,
}

/// One field of `/v1/config`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FieldBody {
    /// TOML key.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Its default.
    pub default: String,
    /// `default`, `file`, `env` or `flag`.
    pub origin: String,
    /// Its unit.
    pub unit: String,
    /// What it is for.
    pub meaning: String,
    /// What goes wrong when it is set badly.
    pub breaks: String,
}

/// `/v1/config`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConfigBody {
    /// The node's own.
    pub node: Vec<FieldBody>,
    /// The cluster's, once it is born.
    pub cluster: Option<ClusterConfigBody>,
}

/// `/v1/digest`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DigestBody {
    /// The replica's node id.
    pub node: String,
    /// What it holds.
    pub partitions: Vec<PartitionDigest>,
}

/// What `POST /v1/init` takes. All may be left out.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitBody {
    /// Nodes that form the first ring, at least; left out: those known now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<u32>,
    /// Replicas; left out: 3, or as many as there are nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u8>,
    /// Read quorum; left out: the majority of n.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r: Option<u8>,
    /// Write quorum; left out: the majority of n.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub w: Option<u8>,
    /// Partitions; left out: 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_count: Option<u16>,
}

/// The answer of the original's `/set` and `/get`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct OriginalBody {
    /// The value, as text; bytes that are no text are replaced.
    pub value: String,
    /// Empty on success.
    pub error: String,
    /// Names of the key's replicas.
    pub members: Vec<String>,
    /// Those of them that could not be reached.
    #[serde(rename = "Failed_members")]
    pub failed_members: Vec<String>,
}

/// `/v1/transition`: how far a change of the ring is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TransitionBody {
    /// Version of the ring that this was taken at.
    pub version: u64,
    /// `stable`: no change is under way.
    pub stage: String,
    /// The request that the change under way answers.
    #[serde(default)]
    pub request: Option<String>,
    /// What it does, in words; empty if there is none.
    #[serde(default)]
    pub change: String,
    /// Whom the stage waits for; of a stable ring, who has not acknowledged it yet.
    #[serde(default)]
    pub blocked_by: Vec<BlockerBody>,
    /// Members that are waited for no more.
    #[serde(default)]
    pub excluded: Vec<NamedNodeBody>,
    /// The latest requests, the newest last.
    #[serde(default)]
    pub requests: Vec<RequestBody>,
    /// How far the *answering* node is with the partitions that it has to get. Null from nodes that do not say.
    #[serde(default)]
    pub copying: Option<CopyingBody>,
}

/// A node, named for people.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NamedNodeBody {
    /// 16 hexadecimal digits.
    pub id: String,
    /// For people.
    pub name: String,
}

/// A member that holds a change of the ring up.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct BlockerBody {
    /// 16 hexadecimal digits.
    pub id: String,
    /// For people.
    pub name: String,
    /// `ack`: it has not acknowledged the stage. `ready`: it has not copied and verified everything.
    pub waits_for: String,
    /// Whether gossip holds it for alive.
    pub alive: bool,
    /// Since when, as far as the answering node has seen: milliseconds since 1970.
    #[serde(default)]
    pub since_ms: Option<u64>,
    /// `host:port` for HTTP clients: there it tells how far it is.
    #[serde(default)]
    pub http: String,
    /// How far it is with copying. A node says it of itself alone; the command line asks each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copying: Option<CopyingBody>,
}

/// A request about the ring, and what became of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RequestBody {
    /// 32 hexadecimal digits.
    pub request: String,
    /// `running`, `finished` or `aborted`.
    pub fate: String,
}

/// What `POST /v1/transition` takes. Nodes go by their name or id.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingAskBody {
    /// `join`, `leave`, `replace`, `remove`, `reweigh`, `quorums`, `abort` or `exclude`.
    pub action: String,
    /// Names the request, up to 32 hexadecimal digits: repeated with it, it is the same request. For
    /// `abort` and `exclude` the change that is meant; left out, that under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// `join`, `leave`: one or more; `replace`, `remove`, `exclude`: the one that is dead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// `replace`: the waiting node that takes its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<String>,
    /// `reweigh`: the new weight of each node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, u32>,
    /// `quorums`: replicas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u8>,
    /// `quorums`: read quorum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r: Option<u8>,
    /// `quorums`: write quorum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub w: Option<u8>,
    /// `replace`, `remove`, `exclude`: even if the node seems to live, or data may be lost with it.
    #[serde(default)]
    pub force: bool,
}
