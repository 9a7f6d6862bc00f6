//! Which changes of the ring are possible, and where they lead. Refusals tell a person what to do.

use std::collections::{BTreeMap, BTreeSet};

use mds_protocol::Placement;
use mds_protocol::placement::WEIGHT_MAX;
use mds_types::limits::MEMBERS_MAX;
use mds_types::{ClusterConfig, NodeId, PartitionId, Topology, TopologyMember, TopologyVersion};

use super::{ClusterState, RingChange};

impl ClusterState {
    /// The ring that a change leads to.
    pub(super) fn next_ring(
        &self,
        change: &RingChange,
    ) -> Result<(Topology, ClusterConfig), String> {
        let Some(config) = &self.config else {
            return Err("the cluster has not been formed yet".to_owned());
        };
        self.check_nodes(change)?;
        let mut config = config.clone();
        if let Some(quorums) = change.quorums {
            config.replicas = quorums.replicas;
            config.read_quorum = quorums.read;
            config.write_quorum = quorums.write;
            config.validate().map_err(|error| error.to_string())?;
        }
        let goes = |node| change.leave.contains(&node) || change.remove_dead.contains(&node);
        let mut ring: BTreeMap<NodeId, TopologyMember> = self
            .topology
            .members
            .iter()
            .filter(|member| !goes(member.node))
            .map(|member| (member.node, member.clone()))
            .collect();
        for node in &change.join {
            if let Some(member) = self.members.get(node) {
                let (zone, weight) = (member.info.zone.clone(), member.info.weight);
                let node = *node;
                ring.insert(node, TopologyMember { node, zone, weight });
            }
        }
        for (node, weight) in &change.reweigh {
            match ring.get_mut(node) {
                Some(member) => member.weight = *weight,
                None => {
                    return Err(format!(
                        "{} is not on the ring, so it has no weight: let it join first",
                        self.names([*node])
                    ));
                }
            }
        }
        let topology = Topology {
            version: TopologyVersion(self.topology.version.0 + 1),
            members: ring.into_values().collect(),
        };
        if topology.members == self.topology.members && Some(&config) == self.config.as_ref() {
            return Err("nothing would change: the ring is like that already".to_owned());
        }
        self.check_size(&topology, &config)?;
        if !change.forced {
            self.check_excluded(&change.remove_dead, Some((&topology, &config)))?;
        }
        Ok((topology, config))
    }

    /// Whether every node of a change is where the change takes it from.
    fn check_nodes(&self, change: &RingChange) -> Result<(), String> {
        if change.is_empty() {
            return Err(
                "the change is empty: say who joins, leaves, is removed or weighed".to_owned(),
            );
        }
        for node in &change.join {
            let Some(member) = self.members.get(node) else {
                return Err(format!(
                    "{node} is not known to the cluster: start it with a seed address of this \
                     cluster, and see it wait in the status"
                ));
            };
            let name = self.names([*node]);
            if self.topology.member(*node).is_some() {
                return Err(format!("{name} is on the ring already"));
            }
            if member.boot == 0 {
                return Err(format!("{name} has never started: start it first"));
            }
            if member.info.weight > WEIGHT_MAX {
                return Err(format!(
                    "{name} asks for a weight above {WEIGHT_MAX}: lower it"
                ));
            }
        }
        for node in change.leave.iter().chain(&change.remove_dead) {
            if self.topology.member(*node).is_none() {
                let name = self.names([*node]);
                return Err(match self.members.contains_key(node) {
                    true => format!("{name} is not on the ring: remove it as a member instead"),
                    false => format!("{name} is not a member of this cluster"),
                });
            }
        }
        if let Some(both) = change.leave.intersection(&change.remove_dead).next() {
            return Err(format!(
                "{} cannot leave and be removed as dead at once: choose one",
                self.names([*both])
            ));
        }
        for (node, weight) in &change.reweigh {
            if *weight > WEIGHT_MAX {
                return Err(format!(
                    "the weight of {} is {weight}: at most {WEIGHT_MAX} is allowed",
                    self.names([*node])
                ));
            }
        }
        Ok(())
    }

    /// A ring keeps N members that hold data, or as many of them as it had.
    fn check_size(&self, next: &Topology, next_config: &ClusterConfig) -> Result<(), String> {
        let holders = |topology: &Topology| {
            let members = topology.members.iter();
            members.filter(|member| member.weight > 0).count()
        };
        let (before, after) = (holders(&self.topology), holders(next));
        let wanted = usize::from(next_config.replicas);
        let had = self.config.as_ref().map_or(0, |config| config.replicas);
        if after == 0 {
            return Err("no member of weight above zero would be left to hold data".to_owned());
        }
        if next.members.len() > MEMBERS_MAX {
            return Err(format!(
                "the ring would have more than {MEMBERS_MAX} members"
            ));
        }
        // A cluster may have been formed with fewer, and grow towards N.
        if after < wanted && (after < before || next_config.replicas > had) {
            return Err(format!(
                "{after} members would hold data, and n is {wanted}: let more nodes join in the same \
                 change, or change n too"
            ));
        }
        Ok(())
    }

    /// Of the replicas of one partition fewer than min(R, W) are excluded, in the present ring and the next:
    /// what was acknowledged by W or shown after R answers is held by others too.
    pub(super) fn check_excluded(
        &self,
        excluded: &BTreeSet<NodeId>,
        next: Option<(&Topology, &ClusterConfig)>,
    ) -> Result<(), String> {
        let current = self.config.as_ref().map(|config| (&self.topology, config));
        for (topology, config) in current.into_iter().chain(next) {
            let enough = usize::from(config.read_quorum.min(config.write_quorum));
            // Placement may take long with very many members, and is seldom asked.
            if excluded.len() < enough {
                continue;
            }
            let placement = Placement::compute(topology, config);
            let lost = (0..config.partition_count).map(PartitionId).find(|of| {
                let replicas = placement.replicas(*of).iter();
                replicas.filter(|node| excluded.contains(node)).count() >= enough
            });
            if let Some(partition) = lost {
                return Err(format!(
                    "partition {partition} would be without {enough} of its replicas at once ({}): \
                     data may exist nowhere else. Bring one of them back, or remove one at a time, or \
                     force it and lose what only they hold",
                    self.names(excluded.iter().copied())
                ));
            }
        }
        Ok(())
    }
}
