//! The oracle: it sees all replicas at once and all that clients heard, and holds both against what
//! is promised. One file per invariant, each beginning with the sentence that it proves.
//!
//! Some invariants are watched at every step ([`Watch`]), the others looked at when the world has
//! healed and come to rest ([`examine`]).

mod acknowledged_is_durable;
mod agreed_only_grows;
pub(crate) mod agreed_rings;
pub(crate) mod arrivals;
pub(crate) mod closed_takes_nothing;
mod collected_stays_gone;
mod collected_when_due;
mod counts_are_true;
mod election_safety;
mod expires_in_time;
mod failed_means_nothing;
mod monotonic_reads;
mod nothing_invented;
pub(crate) mod old_rings_are_refused;
mod one_cluster;
mod one_record_per_version;
mod one_version_per_write;
mod pages_are_true;
mod promises_only_grow;
pub(crate) mod queues_are_bounded;
pub(crate) mod quorums_are_held;
mod regular_reads;
mod replicas_converge;
mod sessions_hold;
pub(crate) mod settled_is_equal;
pub(crate) mod settled_is_final;
pub(crate) mod settled_takes_nothing;
pub(crate) mod settles_in_time;
mod stages_wait;
mod stamps_above_floors;
mod stamps_grow;
mod state_machine_safety;
#[cfg(test)]
mod tests_support;
mod verified_under_one_version;
mod versions_grow;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mds_cluster::{AdminError, AdminReply, ClusterView};
use mds_node::sync_io::RootOf;
use mds_storage::store::{Ledger, PartitionState};
use mds_types::slot::partition_of;
use mds_types::{ClusterConfig, Epoch, NodeId, Record, RingUse, TopologyVersion, Version};

use crate::history::{Ending, History};
use agreed_only_grows::AgreedOnlyGrows;
use agreed_rings::AgreedRings;
use collected_stays_gone::CollectedStaysGone;
use election_safety::ElectionSafety;
use one_cluster::OneCluster;
use one_record_per_version::OneRecordPerVersion;
use one_version_per_write::OneVersionPerWrite;
use promises_only_grow::PromisesOnlyGrow;
use quorums_are_held::Told;
use stages_wait::StagesWait;
use stamps_above_floors::StampsAboveFloors;
use state_machine_safety::StateMachineSafety;
use verified_under_one_version::VerifiedUnderOneVersion;
use versions_grow::VersionsGrow;

/// Where replicas differ, in words, with what was collected counted as if it were there.
pub(crate) fn difference(
    replicas: &[Vec<Record>],
    watch: &Watch,
    partitions: u16,
    holders: impl Fn(&Bytes) -> Vec<usize>,
) -> Option<String> {
    replicas_converge::difference(&watch.as_if_kept(replicas, partitions), holders)
}

/// Broken by a start that does not find what the replica had shown before.
pub(crate) use versions_grow::INVARIANT as SHOWN_BEFORE;

/// An invariant that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// When it was seen, simulated nanoseconds.
    pub at_ns: u64,
    /// The sentence that is not true.
    pub invariant: &'static str,
    /// What was seen instead.
    pub detail: String,
}

/// The sentence that is not true, and what was seen instead.
pub(crate) type Broken = (&'static str, String);

/// What is watched at every step.
#[derive(Default)]
pub(crate) struct Watch {
    versions: VersionsGrow,
    records: OneRecordPerVersion,
    writes: OneVersionPerWrite,
    cluster: OneCluster,
    elections: ElectionSafety,
    machines: StateMachineSafety,
    agreed: AgreedOnlyGrows,
    collected: CollectedStaysGone,
    /// Who lives on each machine.
    ids: BTreeMap<usize, NodeId>,
    floors: StampsAboveFloors,
    stages: StagesWait,
    promises: PromisesOnlyGrow,
    verified: VerifiedUnderOneVersion,
    /// The rings that were agreed on.
    pub(crate) rings: AgreedRings,
    /// What clients were told: the world's to look at, with all replicas in view.
    pub(crate) told: Vec<Told>,
    /// The answer to the last `init`.
    pub(crate) init: Option<Result<AdminReply, AdminError>>,
    /// Members that a change of the ring did not wait for.
    left_out: BTreeSet<NodeId>,
}

impl Watch {
    /// A record that a replica shows.
    pub(crate) fn visible(&mut self, node: usize, record: &Record) -> Option<Broken> {
        self.versions
            .visible(node, record)
            .or_else(|| self.records.visible(node, record))
            .or_else(|| self.writes.visible(node, record))
            .or_else(|| self.collected.visible(node, record))
            .or_else(|| self.floors.visible(node, record))
    }

    /// A record that a replica shows after something was asked of it, by its ledger of then. What it has shown all the
    /// time, and what the others have collected since it was left out, is no return: it has not caught up yet.
    pub(crate) fn visible_by(
        &mut self,
        node: usize,
        record: &Record,
        ledger: &Ledger,
    ) -> Option<Broken> {
        let is_known = self.versions.of(node, &record.key) == Some(record.version);
        let broken = self.visible(node, record)?;
        let is_still_there = is_known
            && broken.0 == collected_stays_gone::INVARIANT
            && self.is_behind_since_left_out(node, &record.key, ledger);
        (!is_still_there).then_some(broken)
    }

    /// Whether a machine's node is a replica of a key by the latest agreed rings. In doubt it is.
    fn is_replica(&self, node: usize, key: &[u8]) -> bool {
        let (Some(id), Some(newest)) = (self.ids.get(&node), self.rings.newest()) else {
            return true;
        };
        let partition = partition_of(key, newest.rings.current.config.partition_count);
        let mut replicas = newest.replicas(partition, RingUse::BOTH);
        replicas.any(|(nodes, _)| nodes.contains(id))
    }

    /// Who was left out of a change of the ring, and is back: the others have gone on without it, and may have settled
    /// and collected what it never heard of. It takes part again, and is held to everything, up to where it has settled
    /// by itself.
    pub(crate) fn may_be_behind(
        &self,
        node: NodeId,
        settled: Epoch,
        others_settled: Epoch,
    ) -> bool {
        self.left_out.contains(&node) && settled < others_settled
    }

    /// How many members changes of the ring did not wait for: each may have been one of those that acknowledged a write,
    /// and have been emptied when it came back, as if its disk had been lost.
    pub(crate) fn left_out(&self) -> usize {
        self.left_out.len()
    }

    /// Whether what was collected of a key lies above what a replica has settled, which was left out.
    fn is_behind_since_left_out(&self, node: usize, key: &Bytes, ledger: &Ledger) -> bool {
        let count = ledger.partitions().count() as u16;
        let settled = ledger.partition(partition_of(key, count)).settled;
        let collected = self.collected.greatest(key);
        let collected = collected.and_then(|version| self.records.record(key, version));
        let (Some(id), Some(collected)) = (self.ids.get(&node), collected) else {
            return false;
        };
        self.may_be_behind(*id, settled, collected.epoch)
    }

    /// Whether a replica has shown a version of a key, or a newer one. What was collected anywhere counts as shown.
    pub(crate) fn has_shown(&self, node: usize, key: &Bytes, version: Version) -> bool {
        let is_there = |shown: Option<Version>| shown.is_some_and(|shown| shown >= version);
        is_there(self.versions.of(node, key)) || is_there(self.collected.greatest(key))
    }

    /// What a replica's ledger says. `id`: who the node is.
    pub(crate) fn promised(&mut self, node: usize, id: NodeId, ledger: &Ledger) -> Option<Broken> {
        self.stages.promised(id, ledger.acked);
        self.collected.promised(node, ledger);
        self.promises.promised(node, ledger)
    }

    /// A member has told a node, in that start of it, that it has the same root of a set.
    pub(crate) fn seen_equal(
        &mut self,
        name: (usize, u64),
        root: &RootOf,
        member: NodeId,
        version: TopologyVersion,
    ) {
        let place = (name, root.partition, root.epoch);
        self.verified.equal(place, (version, member, root.root));
    }

    /// A node has settled a set, having seen all others equal to this root.
    pub(crate) fn settled(
        &mut self,
        name: (usize, u64),
        me: NodeId,
        root: &RootOf,
    ) -> Option<Broken> {
        let place = (name, root.partition, root.epoch);
        let group = |version| self.rings.group(version, root.partition, me);
        let versions = self.rings.versions();
        self.verified.settled(place, root.root, group, versions)
    }

    /// What a replica last showed of each key.
    pub(crate) fn shown(&self, node: usize) -> Vec<(Bytes, Version)> {
        self.versions.shown(node)
    }

    /// A replica shows nothing of a key any more: it has collected what it had shown, or has given the partition
    /// away. `settled`: its watermark there; `others`: what the other replicas hold of it.
    pub(crate) fn gone(
        &mut self,
        now_ns: u64,
        node: usize,
        key: &Bytes,
        settled: Epoch,
        others: &[(usize, Version)],
    ) -> Option<Broken> {
        let version = self.versions.take(node, key)?;
        let record = self.records.record(key, version)?.clone();
        let is_dead = expires_in_time::can_be_missed(&record, now_ns);
        let due = self.is_not_due(node, &record, settled);
        let gone = self.collected.gone(now_ns, node, &record, is_dead, others);
        gone.or(due)
    }

    /// Why a record may not be collected yet, if so.
    fn is_not_due(&self, node: usize, record: &Record, settled: Epoch) -> Option<Broken> {
        let floor = self.floors.floor(Epoch(settled.0 + 1));
        collected_when_due::check(node, record, settled, floor)
    }

    /// A replica has removed a whole partition: it has promised nothing of it any more.
    pub(crate) fn partition_wiped(&mut self, node: usize, is_of_it: impl Fn(&Bytes) -> bool) {
        self.versions.forget_keys(node, &is_of_it);
        self.collected.forget_keys(node, is_of_it);
    }

    /// Whether a record may be collected by somebody whose clock is right.
    pub(crate) fn is_dead(record: &Record, now_ns: u64) -> bool {
        expires_in_time::can_be_missed(record, now_ns)
    }

    /// What the replicas would hold, had they collected nothing.
    fn as_if_kept(&self, replicas: &[Vec<Record>], partitions: u16) -> Vec<Vec<Record>> {
        let kept = |(node, records): (usize, &Vec<Record>)| {
            let mut kept = records.clone();
            kept.extend(self.collected.of(node, records, partitions));
            kept
        };
        replicas.iter().enumerate().map(kept).collect()
    }

    /// The history, in which a read that found nothing says which collected version that stands for.
    fn with_collected(&self, history: &History) -> History {
        let mut history = history.clone();
        for operation in &mut history.operations {
            if let (
                Ending::Read {
                    version,
                    value: None,
                },
                Some(at_ns),
            ) = (&mut operation.ending, operation.returned_ns)
                && version.is_none()
            {
                *version = self.collected.by(&operation.key, at_ns);
            }
        }
        history
    }

    /// What a node shows of the cluster and of Raft. `is_copy`: its directory is an old copy.
    pub(crate) fn view(
        &mut self,
        (node, life): (usize, u64),
        is_copy: bool,
        view: &ClusterView,
    ) -> Option<Broken> {
        let stages = match is_copy {
            true => None,
            false => {
                self.floors.shown(view);
                self.rings.shown(&view.rings);
                self.left_out.extend(&view.rings.excluded);
                self.stages.shown(view)
            }
        };
        if !is_copy {
            self.ids.insert(node, view.me);
        }
        self.cluster
            .shown(node, view)
            .or(stages)
            .or_else(|| self.elections.shown(view, is_copy))
            .or_else(|| self.machines.shown(node, view))
            .or_else(|| self.agreed.shown(node, life, view))
    }

    /// The greatest index of Raft's log that any node has ever shown as applied.
    pub(crate) fn greatest_applied(&self) -> u64 {
        self.machines.greatest()
    }

    /// What a version of a key names, if a replica ever showed it.
    fn record(&self, key: &Bytes, version: Version) -> Option<&Record> {
        self.records.record(key, version)
    }

    /// The records of a key that replicas have shown, from a version on.
    fn records_from(&self, key: &Bytes, version: Version) -> impl Iterator<Item = &Record> {
        self.records.from(key, version)
    }

    /// A client repeats an operation in a way that may make it another write.
    pub(crate) fn repeated_as_another(&mut self, operation: usize) {
        self.writes.repeated_as_another(operation as u64);
    }

    /// A replica's disk is lost: it has promised nothing any more.
    pub(crate) fn node_wiped(&mut self, node: usize) {
        self.versions.forget(node);
        self.collected.forget(node);
        self.promises.forget(node);
    }

    /// A start may have lost its power just after it had collected something, or had given a partition away.
    fn note_collected_before(
        &mut self,
        now_ns: u64,
        node: usize,
        records: &[Record],
        ledger: &Ledger,
    ) {
        let count = ledger.partitions().count() as u16;
        let is_held =
            |key: &Bytes| ledger.partition(partition_of(key, count)).state == PartitionState::Held;
        self.partition_wiped(node, |key| !is_held(key));
        let held: BTreeSet<&Bytes> = records.iter().map(|record| &record.key).collect();
        for (key, version) in self.shown(node) {
            let settled = ledger.partition(partition_of(&key, count)).settled;
            let record = self.records.record(&key, version);
            let may_be_gone = record.is_some_and(|record| {
                Watch::is_dead(record, now_ns) && self.is_not_due(node, record, settled).is_none()
            });
            if may_be_gone && !held.contains(&key) {
                // What the others hold is compared when they are looked at together.
                let _ = self.gone(now_ns, node, &key, settled, &[]);
            }
        }
    }

    /// All that a replica shows when its store is opened.
    pub(crate) fn node_recovered(
        &mut self,
        (now_ns, node, life): (u64, usize, u64),
        records: &[Record],
        ledger: &Ledger,
    ) -> Vec<Broken> {
        self.note_collected_before(now_ns, node, records, ledger);
        let lost = self.versions.recovered(node, life, records);
        lost.into_iter()
            .chain(records.iter().filter_map(|record| {
                let broken = self.visible(node, record)?;
                // Who is no replica any more keeps what it held until the ring is at rest, and is not asked. It may
                // be behind what the replicas have collected since.
                let is_left_over = broken.0 == collected_stays_gone::INVARIANT
                    && (!self.is_replica(node, &record.key)
                        || self.is_behind_since_left_out(node, &record.key, ledger));
                (!is_left_over).then_some(broken)
            }))
            .collect()
    }
}

/// Looks at everything when the world has come to rest: all records of each replica, and the whole
/// history. `lost` says how many of a key's replicas have lost their disks.
pub(crate) fn examine(
    replicas: &[Vec<Record>],
    history: &History,
    watch: &Watch,
    config: &ClusterConfig,
    lost: impl Fn(&Bytes) -> usize,
) -> Vec<Broken> {
    let n = config.replicas;
    let (replicas, history) = (
        &watch.as_if_kept(replicas, config.partition_count)[..],
        &watch.with_collected(history),
    );
    let mut broken = Vec::new();
    let gone = |key: &Bytes| lost(key) + watch.left_out();
    broken.extend(acknowledged_is_durable::check(replicas, history, gone));
    broken.extend(nothing_invented::check(replicas, history));
    broken.extend(failed_means_nothing::check(replicas, history));
    broken.extend(stamps_grow::check(history));
    broken.extend(regular_reads::check(history, n));
    broken.extend(monotonic_reads::check(history, n));
    broken.extend(sessions_hold::check(history, config));
    broken.extend(expires_in_time::check(history, watch));
    broken.extend(pages_are_true::check(history, watch, config, lost));
    broken.extend(counts_are_true::check(replicas, history, config));
    broken
}
