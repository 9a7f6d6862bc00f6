//! The database as the HTTP front-end knows it.
//!
//! One trait with two implementers: the running node, and an ordered map in memory that tests put in
//! its place. What a request means is settled in [`mds_node::api`]; here it is only carried.

mod blockers;
mod epoch_samples;
mod epochs;
#[cfg(test)]
pub(crate) mod fake;
mod node;
mod sample;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use mds_cluster::state::Blocker;
use mds_cluster::{ClusterView, RingRequest, TransitionView};
use mds_node::api::{Outcome, Request, RequestError};
use mds_node::core::Copying;
use mds_node::epoch_set::EpochSet;
use mds_types::{ClusterConfig, Epoch, PartitionId, RequestId};
use serde::{Deserialize, Serialize};

pub use epochs::{EpochCounts, EpochsReport, PartitionCounts};
pub use node::RunningNode;
pub use sample::{Reading, Sample};

/// An answer that comes later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the front-end asks of a node. All calls are cheap to make and never block.
pub trait Database: Send + Sync + 'static {
    /// Coordinates one request.
    fn request(&self, request: Request) -> Answer<'_, Result<Outcome, RequestError>>;

    /// What this node knows of the cluster now.
    fn view(&self) -> Arc<ClusterView>;

    /// Why a node whose standing is good does not serve all the same: its store is not open yet, or has
    /// failed. None: it serves.
    fn hindrance(&self) -> Option<String>;

    /// Gives birth to a cluster.
    fn init(&self, init: Init) -> Answer<'_, Result<(), AdminError>>;

    /// Asks for a change of the ring, or for one under way to end otherwise. Repeated with the same
    /// name it is the same request. The answer says how the rings stand where it was decided.
    fn change_ring(
        &self,
        request: RequestId,
        ask: RingRequest,
    ) -> Answer<'_, Result<TransitionView, AdminError>>;

    /// Since when the present stage has waited for this, as far as this node has seen: milliseconds since
    /// 1970. None: it does not wait for it, or has only just begun to.
    fn blocked_since_ms(&self, blocker: &Blocker) -> Option<u64>;

    /// How far this replica is with its epochs; of the latest, `limit` are told of. None until the store is
    /// open.
    fn epochs(&self, limit: usize) -> Option<EpochsReport>;

    /// What this replica has of one epoch of a partition.
    fn epoch_set(
        &self,
        partition: PartitionId,
        epoch: Epoch,
    ) -> Answer<'_, Result<EpochSet, AdminError>>;

    /// How far this node is with partitions that it has to get.
    fn copying(&self) -> Copying;

    /// What this replica holds, partition by partition.
    fn digest(&self) -> Answer<'_, Result<Vec<PartitionDigest>, AdminError>>;

    /// What this node has counted, now.
    fn samples(&self) -> Vec<Sample>;
}

/// How a cluster is to be born.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Init {
    /// Nodes the first ring is formed of, at least. The call waits, within limits, until as many are
    /// known, and takes in all that are.
    pub nodes: u32,
    /// What is agreed at birth: the number of partitions for the cluster's life, N, R and W until they
    /// are changed.
    pub config: ClusterConfig,
}

/// Why an administrative request failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AdminError {
    /// Wrong, and wrong again when repeated.
    #[error("{0}")]
    BadRequest(String),
    /// Against the present state: such as `init` of a cluster that lives.
    #[error("{0}")]
    Conflict(String),
    /// Not possible now; may be repeated.
    #[error("{0}")]
    Unavailable(String),
    /// Nobody knows what has become of it; may be repeated with the same name.
    #[error("{0}")]
    Uncertain(String),
}

/// What one replica holds of one partition. Equal contents have equal digests.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PartitionDigest {
    /// The partition.
    pub partition: PartitionId,
    /// Records, tombstones included.
    pub records: u64,
    /// Tombstones among them.
    pub tombstones: u64,
    /// 128-bit hash over all records in key order, 32 hexadecimal digits.
    pub digest: String,
}
