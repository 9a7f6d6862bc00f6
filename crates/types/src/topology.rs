//! Members, the agreed ring, and what a cluster is born with.
//!
//! There are two kinds of truth: gossip says who is *reachable*, Raft says who is a *member*. The
//! types here are the second kind. **Law**: placement is a function of the [`Topology`] alone.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::ids::{NodeId, TopologyVersion};
use crate::limits::{REPLICAS_MAX, SLOT_COUNT};

/// What a node says of itself: how to reach it and where it stands. It may change at a restart.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct MemberInfo {
    /// A name for people, such as `node-1` or a pod's name.
    pub name: String,
    /// `host:port` for other nodes: data and Raft by TCP, gossip by UDP.
    pub peer_addr: String,
    /// `host:port` for Redis clients.
    pub resp_addr: String,
    /// `host:port` for HTTP clients.
    pub http_addr: String,
    /// Failure domain: replicas go to distinct zones while there are enough.
    pub zone: String,
    /// Share of the data relative to other members; 100 is the norm, zero holds none.
    pub weight: u32,
}

/// A member of the ring, as placement sees it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct TopologyMember {
    /// The node.
    pub node: NodeId,
    /// Its failure domain.
    pub zone: String,
    /// Its share.
    pub weight: u32,
}

/// The agreed ring: who holds data. Numbered; only Raft changes it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Topology {
    /// Grows with every change.
    pub version: TopologyVersion,
    /// Sorted by node id.
    pub members: Vec<TopologyMember>,
}

/// What is agreed when a cluster is born. N, R and W may change later, by a change of the ring; the rest
/// holds for the cluster's life, and nodes compare a fingerprint of it in every handshake.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// Partitions: a power of two, 1 to 16384.
    pub partition_count: u16,
    /// Replicas of each partition (N).
    pub replicas: u8,
    /// Replicas that must answer a read (R), unless the request says otherwise.
    pub read_quorum: u8,
    /// Replicas that must have made a write durable (W), unless the request says otherwise.
    pub write_quorum: u8,
    /// The placement function, by number: a change of the algorithm is a change of this.
    pub placement_format: u16,
    /// The record format, by number.
    pub record_format: u16,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        ClusterConfig {
            partition_count: 256,
            replicas: 3,
            read_quorum: 2,
            write_quorum: 2,
            placement_format: 1,
            record_format: 1,
        }
    }
}

/// Why a cluster configuration is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a power of two in range.
    #[error("partition_count is {0}: it has to be a power of two from 1 to 16384")]
    PartitionCount(u16),
    /// N out of range.
    #[error("n (replicas) is {0}: it has to be 1 to {REPLICAS_MAX}")]
    Replicas(u8),
    /// R or W out of range.
    #[error("{name} is {quorum}: it has to be 1 to n, and n is {replicas}")]
    Quorum {
        /// `r` or `w`.
        name: &'static str,
        /// The given value.
        quorum: u8,
        /// N.
        replicas: u8,
    },
}

impl ClusterConfig {
    /// Checks every field against its range.
    ///
    /// # Errors
    /// Names the first field that is out of range, and the range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !self.partition_count.is_power_of_two() || self.partition_count > SLOT_COUNT {
            return Err(ConfigError::PartitionCount(self.partition_count));
        }
        if self.replicas == 0 || self.replicas > REPLICAS_MAX {
            return Err(ConfigError::Replicas(self.replicas));
        }
        for (name, quorum) in [("r", self.read_quorum), ("w", self.write_quorum)] {
            if quorum == 0 || quorum > self.replicas {
                return Err(ConfigError::Quorum {
                    name,
                    quorum,
                    replicas: self.replicas,
                });
            }
        }
        Ok(())
    }

    /// A number that differs when anything differs that holds for the cluster's life and would make two
    /// nodes disagree about data. N, R and W are not part of it: they change with the ring, and the
    /// topology version that every message carries says which ones its sender goes by.
    pub fn fingerprint(&self) -> u64 {
        let mut bytes = Vec::with_capacity(8);
        bytes.extend_from_slice(&self.partition_count.to_le_bytes());
        bytes.extend_from_slice(&self.placement_format.to_le_bytes());
        bytes.extend_from_slice(&self.record_format.to_le_bytes());
        xxh3_64(&bytes)
    }
}

impl Topology {
    /// The member entry of a node, if it is on the ring.
    pub fn member(&self, node: NodeId) -> Option<&TopologyMember> {
        self.members
            .binary_search_by_key(&node, |member| member.node)
            .ok()
            .map(|index| &self.members[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_configurations_are_refused_by_name() {
        let good = ClusterConfig::default();
        assert_eq!(good.validate(), Ok(()));
        let bad = ClusterConfig {
            partition_count: 100,
            ..good.clone()
        };
        assert_eq!(bad.validate(), Err(ConfigError::PartitionCount(100)));
        let bad = ClusterConfig {
            write_quorum: 4,
            ..good.clone()
        };
        assert_eq!(
            bad.validate().unwrap_err().to_string(),
            "w is 4: it has to be 1 to n, and n is 3"
        );
        assert!(
            ClusterConfig {
                replicas: 0,
                ..good
            }
            .validate()
            .is_err()
        );
    }

    #[test]
    fn fingerprints_tell_configurations_apart() {
        let one = ClusterConfig::default();
        let other = ClusterConfig {
            partition_count: 512,
            ..one.clone()
        };
        assert_ne!(one.fingerprint(), other.fingerprint());
        assert_eq!(one.fingerprint(), ClusterConfig::default().fingerprint());
        let other_quorums = ClusterConfig {
            replicas: 5,
            read_quorum: 3,
            write_quorum: 3,
            ..one.clone()
        };
        assert_eq!(
            one.fingerprint(),
            other_quorums.fingerprint(),
            "N, R and W may change while nodes talk"
        );
    }
}
