//! Who is to be asked, in the ring and in the one that it changes to.
//!
//! Placement is computed once per ring, not per request. While the ring changes, the replicas of a
//! request are one list, the current ring's first and then those that are only in the next one, and
//! two sets of indexes say who belongs to which. A quorum is counted in each ring by itself
//! ([`Needs`]); which of them a read or a write needs follows from the stage (`mds_types::ring`).
//!
//! What it does not do: know who can be reached.

use std::sync::Arc;

use mds_protocol::Placement;
use mds_protocol::quorum::{Need, Needs, REPLICAS_JOINT_MAX, ReadQuorum, ReplicaSet, WriteQuorum};
use mds_types::{
    ClusterConfig, NodeId, PartitionId, Ring, RingStage, RingUse, Rings, TopologyVersion,
};

/// The agreed rings, with placement.
#[derive(Debug)]
pub(super) struct RingMap {
    rings: Arc<Rings>,
    current: Arc<Placement>,
    next: Option<Arc<Placement>>,
}

impl Default for RingMap {
    fn default() -> RingMap {
        RingMap::new(Arc::default())
    }
}

impl RingMap {
    pub(super) fn new(rings: Arc<Rings>) -> RingMap {
        let placed = |ring: &Ring| Arc::new(Placement::compute(&ring.topology, &ring.config));
        RingMap {
            current: placed(&rings.current),
            next: rings.next.as_ref().map(placed),
            rings,
        }
    }

    /// Follows the agreed rings. What is placed as before is not placed anew: a stage that only moves
    /// on costs nothing, and the ring that was the next one is known already when it becomes the present
    /// one.
    pub(super) fn adopt(&mut self, rings: Arc<Rings>) {
        if self.rings == rings {
            return;
        }
        let known = |ring: &Ring| {
            let before = [
                (Some(&self.rings.current), Some(&self.current)),
                (self.rings.next.as_ref(), self.next.as_ref()),
            ];
            let before = before
                .into_iter()
                .filter_map(|(ring, placed)| ring.zip(placed));
            before
                .filter(|(known, _)| known.places_like(ring))
                .map(|(_, placed)| placed.clone())
                .next()
                .unwrap_or_else(|| Arc::new(Placement::compute(&ring.topology, &ring.config)))
        };
        let (current, next) = (known(&rings.current), rings.next.as_ref().map(known));
        *self = RingMap {
            rings,
            current,
            next,
        };
    }

    pub(super) fn rings(&self) -> &Arc<Rings> {
        &self.rings
    }

    /// Placement of the present ring.
    pub(super) fn current(&self) -> &Arc<Placement> {
        &self.current
    }

    /// Placement of the ring that the present one changes to.
    pub(super) fn next(&self) -> Option<&Arc<Placement>> {
        self.next.as_ref()
    }

    /// What every message about data carries.
    pub(super) fn version(&self) -> TopologyVersion {
        self.rings.version
    }

    pub(super) fn stage(&self) -> RingStage {
        self.rings.stage
    }

    pub(super) fn partition_count(&self) -> u16 {
        self.current.partition_count()
    }

    /// Whether a node holds a partition, in any ring that is written to.
    pub(super) fn is_holder(&self, partition: PartitionId, node: NodeId) -> bool {
        self.holds_in(self.rings.stage.writes(), partition, node)
    }

    /// Whether a node is a replica of a partition in one of these rings.
    pub(super) fn holds_in(&self, rings: RingUse, partition: PartitionId, node: NodeId) -> bool {
        let holds = |placed: &Placement| placed.replicas(partition).contains(&node);
        (rings.current && holds(&self.current))
            || (rings.next && self.next.as_ref().is_some_and(|next| holds(next)))
    }

    /// The replicas of a partition in these rings.
    pub(super) fn replicas(&self, partition: PartitionId, rings: RingUse) -> Replicas {
        let mut replicas = Replicas::default();
        if rings.current {
            for &node in self.current.replicas(partition) {
                replicas.add(node, RingUse::CURRENT);
            }
        }
        if rings.next
            && let Some(next) = &self.next
        {
            for &node in next.replicas(partition) {
                replicas.add(node, RingUse::NEXT);
            }
        }
        replicas
    }

    /// The replicas that a write goes to.
    pub(super) fn write_replicas(&self, partition: PartitionId) -> Replicas {
        self.replicas(partition, self.rings.stage.writes())
    }

    /// The configuration that new requests go by: that of the ring they are read from.
    pub(super) fn config(&self) -> &ClusterConfig {
        match (&self.rings.next, self.rings.stage.reads()) {
            (Some(next), rings) if rings.next => &next.config,
            _ => &self.rings.current.config,
        }
    }

    /// W in each ring that writes go to. `asked` is the request's own W.
    fn write_needs(&self, replicas: &Replicas, asked: Option<u8>) -> Needs {
        let rings = self.rings.stage.writes();
        let w = |config: &ClusterConfig| {
            let w = asked.unwrap_or(config.write_quorum);
            w.min(config.replicas)
        };
        self.needs(replicas, rings, w)
    }

    /// R in each ring that reads ask. `asked` is the request's own R, or more.
    fn read_needs(&self, replicas: &Replicas, r: impl Fn(&ClusterConfig) -> u8) -> Needs {
        self.needs(replicas, self.rings.stage.reads(), r)
    }

    fn needs(
        &self,
        replicas: &Replicas,
        rings: RingUse,
        quorum: impl Fn(&ClusterConfig) -> u8,
    ) -> Needs {
        let need = |ring: Option<&Ring>, replicas: ReplicaSet| match ring {
            Some(ring) => Need {
                needed: quorum(&ring.config),
                replicas,
            },
            None => Need::NONE,
        };
        let current = Some(&self.rings.current).filter(|_| rings.current);
        let next = self.rings.next.as_ref().filter(|_| rings.next);
        Needs {
            current: need(current, replicas.current),
            next: need(next, replicas.next),
        }
    }

    /// The bookkeeping of a write to these replicas.
    pub(super) fn write_quorum(&self, replicas: &Replicas, asked: Option<u8>) -> WriteQuorum {
        if self.rings.stage == RingStage::Stable {
            let needed = asked.unwrap_or(self.rings.current.config.write_quorum);
            return WriteQuorum::new(needed, replicas.len);
        }
        WriteQuorum::joint(self.write_needs(replicas, asked), replicas.len)
    }

    /// The bookkeeping of a read of these replicas: `r` says what R is, given a ring's configuration.
    /// `asked_w` is the request's own W, for what is written back.
    pub(super) fn read_quorum(
        &self,
        replicas: &Replicas,
        r: impl Fn(&ClusterConfig) -> u8,
        asked_w: Option<u8>,
        shown_after_write_back_from: Option<mds_types::Epoch>,
    ) -> ReadQuorum {
        if self.rings.stage == RingStage::Stable {
            return ReadQuorum::new(r(&self.rings.current.config), replicas.len);
        }
        let (reads, write_back) = (
            self.read_needs(replicas, r),
            self.write_needs(replicas, asked_w),
        );
        ReadQuorum::joint(reads, write_back, replicas.len, shown_after_write_back_from)
    }
}

/// The nodes that a request may concern, and which ring each belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replicas {
    nodes: [NodeId; REPLICAS_JOINT_MAX as usize],
    len: u8,
    /// Those of the current ring, by index.
    current: ReplicaSet,
    /// Those of the next ring.
    next: ReplicaSet,
}

impl Default for Replicas {
    fn default() -> Replicas {
        Replicas {
            nodes: [NodeId(0); REPLICAS_JOINT_MAX as usize],
            len: 0,
            current: ReplicaSet::EMPTY,
            next: ReplicaSet::EMPTY,
        }
    }
}

impl Replicas {
    fn add(&mut self, node: NodeId, ring: RingUse) {
        let index = self.index_of(node).unwrap_or(usize::from(self.len));
        let Some(place) = self.nodes.get_mut(index) else {
            return;
        };
        *place = node;
        self.len = self.len.max(index as u8 + 1);
        let only = ReplicaSet::from_iter([index]);
        if ring.current {
            self.current = self.current.union(only);
        }
        if ring.next {
            self.next = self.next.union(only);
        }
    }

    /// The nodes, those of the current ring first.
    pub(super) fn nodes(&self) -> &[NodeId] {
        &self.nodes[..usize::from(self.len)]
    }

    /// Those that belong to one of these rings.
    pub(super) fn of(&self, rings: RingUse) -> ReplicaSet {
        let pick = |of: ReplicaSet, is_used| match is_used {
            true => of,
            false => ReplicaSet::EMPTY,
        };
        pick(self.current, rings.current).union(pick(self.next, rings.next))
    }

    pub(super) fn index_of(&self, node: NodeId) -> Option<usize> {
        self.nodes().iter().position(|&replica| replica == node)
    }

    pub(super) fn node(&self, index: usize) -> Option<NodeId> {
        self.nodes().get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use mds_types::{Topology, TopologyMember};

    use super::*;

    fn ring(nodes: &[u64], replicas: u8) -> Ring {
        let member = |&node: &u64| TopologyMember {
            node: NodeId(node),
            zone: String::new(),
            weight: 100,
        };
        Ring {
            topology: Arc::new(Topology {
                version: TopologyVersion(1),
                members: nodes.iter().map(member).collect(),
            }),
            config: ClusterConfig {
                partition_count: 8,
                replicas,
                ..ClusterConfig::default()
            },
        }
    }

    fn changing(stage: RingStage) -> RingMap {
        RingMap::new(Arc::new(Rings {
            stage,
            current: ring(&[1, 2, 3], 3),
            next: Some(ring(&[3, 4, 5], 3)),
            ..Rings::default()
        }))
    }

    #[test]
    fn a_request_of_two_rings_asks_each_node_once() {
        let map = changing(RingStage::Stream);
        let replicas = map.write_replicas(PartitionId(0));
        let mut nodes: Vec<u64> = replicas.nodes().iter().map(|node| node.0).collect();
        nodes.sort_unstable();
        assert_eq!(nodes, [1, 2, 3, 4, 5]);
        let shared = replicas.index_of(NodeId(3)).unwrap();
        assert!(replicas.current.contains(shared) && replicas.next.contains(shared));
        assert_eq!((replicas.current.len(), replicas.next.len()), (3, 3));
        let mut quorum = map.write_quorum(&replicas, None);
        let index = |node| replicas.index_of(NodeId(node)).unwrap();
        quorum.ack(index(1));
        quorum.ack(index(2));
        assert_eq!(
            quorum.outcome(),
            mds_protocol::quorum::Outcome::Pending,
            "the next ring has nothing yet"
        );
        quorum.ack(index(3));
        quorum.ack(index(4));
        assert_eq!(quorum.outcome(), mds_protocol::quorum::Outcome::Met);
    }

    #[test]
    fn the_next_ring_is_not_placed_again_when_it_becomes_the_present_one() {
        let mut map = changing(RingStage::Cleanup);
        let next = map.next().cloned().unwrap();
        map.adopt(Arc::new(Rings {
            version: TopologyVersion(9),
            current: ring(&[3, 4, 5], 3),
            ..Rings::default()
        }));
        assert!(Arc::ptr_eq(map.current(), &next));
        assert!(map.next().is_none());
        assert_eq!(map.version(), TopologyVersion(9));
    }
}
