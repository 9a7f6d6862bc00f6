//! The oracle's looks at all machines together: what clients were told against what lies on the quorums of the agreed
//! rings, and how far closed epochs are settled.

use mds_storage::store::PartitionState;
use mds_types::slot::partition_of;
use mds_types::{Epoch, NodeId, PartitionId};

use crate::node::{Origin, Process};
use crate::oracle::quorums_are_held::{self, Told, rings_of};
use crate::oracle::settles_in_time::{self, Settled};
use crate::world::World;

impl World {
    /// What a client has just been told must lie on a quorum of each ring that counts for certain.
    pub(crate) fn look_at_told(&mut self) {
        for told in std::mem::take(&mut self.env.watch.told) {
            if let Some(broken) = self.too_few_hold(&told) {
                self.env.violated(broken.0, broken.1);
            }
        }
    }

    fn too_few_hold(&self, told: &Told) -> Option<(&'static str, String)> {
        let placed = self.env.watch.rings.newest()?;
        let partition = partition_of(&told.key, self.config.partition_count);
        let used = rings_of(placed.rings.stage, told.is_write);
        let mut rings = placed.replicas(partition, used);
        rings.find_map(|(replicas, config)| {
            quorums_are_held::check(told, replicas, config, |node| {
                self.holds_or_may_not(node, told, partition)
            })
        })
    }

    /// Whether a replica holds what a client was told, or has lost it by a fault that takes it legitimately: its disk,
    /// or the reading of it.
    fn holds_or_may_not(&self, node: NodeId, told: &Told, partition: PartitionId) -> bool {
        let mut machines = self.machines.iter().enumerate();
        let Some((at, machine)) = machines.find(|(_, machine)| machine.node_id() == Some(node))
        else {
            // Its directory is gone for good.
            return true;
        };
        let ledger = machine.process.as_ref().and_then(Process::ledger);
        let is_removed = ledger.is_some_and(|ledger| {
            let state = &ledger.partition(partition).state;
            matches!(state, PartitionState::Wiping | PartitionState::Absent)
        });
        machine.origin == Origin::Copy
            || self.env.sick.contains(&at)
            || is_removed
            || self.env.watch.has_shown(at, &told.key, told.version)
    }

    /// How far a running node has settled the partition of a key.
    pub(crate) fn settled_of(&self, node: usize, key: &[u8]) -> Epoch {
        let partition = partition_of(key, self.config.partition_count);
        let process = self.machines[node].process.as_ref();
        let ledger = process.and_then(Process::ledger);
        ledger.map_or(Epoch(0), |ledger| ledger.partition(partition).settled)
    }

    /// The last epoch that is closed on all replicas. None: some replica is not there, or has lost its disk, so that
    /// nothing has to be settled.
    pub(crate) fn closed_everywhere(&self) -> Option<Epoch> {
        let placed = self.env.watch.rings.newest()?;
        let members = placed.rings.current.topology.members.iter();
        let closed = members.map(|member| {
            let of = |machine: &&crate::node::Machine| machine.node_id() == Some(member.node);
            let machine = self.machines.iter().find(of)?;
            let process = machine.process.as_ref()?;
            let is_sound = machine.origin == Origin::Itself;
            is_sound.then(|| process.ledger().map(|ledger| ledger.closed))?
        });
        closed.collect::<Option<Vec<Epoch>>>()?.into_iter().min()
    }

    /// A replica that has not settled a partition up to `goal`, in words.
    pub(crate) fn behind_in_settling(&self, goal: Epoch) -> Option<String> {
        let replicas = self.machines.iter().enumerate();
        let replicas = replicas.filter_map(|(at, machine)| Some((at, machine.process.as_ref()?)));
        let settled = replicas.flat_map(|(at, process)| {
            let all = (0..self.config.partition_count).map(PartitionId);
            let held =
                all.filter(|partition| process.replicas(*partition).contains(&process.node_id()));
            let ledger = process.ledger();
            held.map(move |partition| -> Settled {
                let settled = ledger
                    .as_ref()
                    .map_or(Epoch(0), |ledger| ledger.partition(partition).settled);
                (at, partition, settled)
            })
        });
        settles_in_time::behind(goal, settled)
    }
}
