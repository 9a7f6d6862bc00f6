//! The agreed rings by their version, with placement, as the oracle computes it from what nodes show: what invariants
//! about quorums and groups go by.

use std::collections::BTreeMap;
use std::sync::Arc;

use mds_protocol::Placement;
use mds_types::{ClusterConfig, NodeId, PartitionId, Ring, RingUse, Rings, TopologyVersion};

/// One version of the rings.
pub(crate) struct Placed {
    pub(crate) rings: Arc<Rings>,
    current: Placement,
    next: Option<Placement>,
}

impl Placed {
    fn of(rings: &Arc<Rings>) -> Placed {
        let place = |ring: &Ring| Placement::compute(&ring.topology, &ring.config);
        Placed {
            rings: rings.clone(),
            current: place(&rings.current),
            next: rings.next.as_ref().map(place),
        }
    }

    /// The replicas of a partition in each of these rings, with the ring's configuration.
    pub(crate) fn replicas(
        &self,
        partition: PartitionId,
        used: RingUse,
    ) -> impl Iterator<Item = (&[NodeId], &ClusterConfig)> {
        let current = used.current.then_some((&self.current, &self.rings.current));
        let next = self.next.as_ref().zip(self.rings.next.as_ref());
        let placed = current.into_iter().chain(next.filter(|_| used.next));
        placed.map(move |(placed, ring)| (placed.replicas(partition), &ring.config))
    }

    /// All who have to be equal with `me` in a partition: the replicas in all rings in force that are waited for.
    fn group(&self, partition: PartitionId, me: NodeId) -> Vec<NodeId> {
        let replicas = self.replicas(partition, RingUse::BOTH);
        let mut group: Vec<NodeId> = replicas.flat_map(|(nodes, _)| nodes.to_vec()).collect();
        group.retain(|node| *node != me && !self.rings.excluded.contains(node));
        group.sort_unstable();
        group.dedup();
        group
    }
}

/// All versions that any node has shown.
#[derive(Default)]
pub(crate) struct AgreedRings {
    versions: BTreeMap<TopologyVersion, Placed>,
}

impl AgreedRings {
    /// What a node shows.
    pub(super) fn shown(&mut self, rings: &Arc<Rings>) {
        if rings.version > TopologyVersion(0) {
            let placed = || Placed::of(rings);
            self.versions.entry(rings.version).or_insert_with(placed);
        }
    }

    /// The latest version.
    pub(crate) fn newest(&self) -> Option<&Placed> {
        self.versions.values().next_back()
    }

    /// The versions, the latest first.
    pub(super) fn versions(&self) -> impl Iterator<Item = TopologyVersion> {
        self.versions.keys().rev().copied()
    }

    /// The others that a replica was to compare itself with, under a version.
    pub(super) fn group(
        &self,
        version: TopologyVersion,
        partition: PartitionId,
        me: NodeId,
    ) -> Option<Vec<NodeId>> {
        Some(self.versions.get(&version)?.group(partition, me))
    }
}
