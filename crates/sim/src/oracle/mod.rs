//! The oracle: it sees all replicas at once and all that clients heard, and holds both against what
//! is promised. One file per invariant, each beginning with the sentence that it proves.
//!
//! Some invariants are watched at every step ([`Watch`]), the others looked at when the world has
//! healed and come to rest ([`examine`]).

mod acknowledged_is_durable;
mod agreed_only_grows;
mod collected_stays_gone;
mod counts_are_true;
mod election_safety;
mod expires_in_time;
mod failed_means_nothing;
mod monotonic_reads;
mod nothing_invented;
mod one_cluster;
mod one_record_per_version;
mod one_version_per_write;
mod pages_are_true;
pub(crate) mod queues_are_bounded;
mod regular_reads;
mod replicas_converge;
mod sessions_hold;
pub(crate) mod settled_is_equal;
mod stamps_grow;
mod state_machine_safety;
#[cfg(test)]
mod tests_support;
mod versions_grow;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use mds_cluster::{AdminError, AdminReply, ClusterView};
use mds_storage::store::{Ledger, PartitionState};
use mds_types::slot::partition_of;
use mds_types::{ClusterConfig, Record, Version};

use crate::history::{Ending, History};
use agreed_only_grows::AgreedOnlyGrows;
use collected_stays_gone::CollectedStaysGone;
use election_safety::ElectionSafety;
use one_cluster::OneCluster;
use one_record_per_version::OneRecordPerVersion;
use one_version_per_write::OneVersionPerWrite;
use state_machine_safety::StateMachineSafety;
use versions_grow::VersionsGrow;

/// Where replicas differ, in words, with what was collected counted as if it were there.
pub(crate) fn difference(
    replicas: &Replicas,
    watch: &Watch,
    holders: impl Fn(&Bytes) -> Vec<usize>,
) -> Option<String> {
    replicas_converge::difference(&watch.as_if_kept(replicas), holders)
}

/// What the replicas hold and have promised, by machine.
#[derive(Default)]
pub(crate) struct Replicas {
    /// All records.
    pub(crate) records: Vec<Vec<Record>>,
    /// The ledger, if there is a store.
    pub(crate) ledgers: Vec<Option<Arc<Ledger>>>,
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
    /// The answer to the last `init`.
    pub(crate) init: Option<Result<AdminReply, AdminError>>,
}

impl Watch {
    /// A record that a replica shows.
    pub(crate) fn visible(&mut self, node: usize, record: &Record) -> Option<Broken> {
        self.versions
            .visible(node, record)
            .or_else(|| self.records.visible(node, record))
            .or_else(|| self.writes.visible(node, record))
            .or_else(|| self.collected.visible(node, record))
    }

    /// What a replica last showed of each key.
    pub(crate) fn shown(&self, node: usize) -> Vec<(Bytes, Version)> {
        self.versions.shown(node)
    }

    /// A replica shows nothing of a key any more: it has collected what it had shown, or has given the partition
    /// away. `others`: what the other replicas hold of it.
    pub(crate) fn gone(
        &mut self,
        now_ns: u64,
        node: usize,
        key: &Bytes,
        others: &[(usize, Version)],
    ) -> Option<Broken> {
        let version = self.versions.take(node, key)?;
        let record = self.records.record(key, version)?.clone();
        let is_dead = expires_in_time::can_be_missed(&record, now_ns);
        self.collected.gone(now_ns, node, &record, is_dead, others)
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
    ///
    /// A replica that copied a partition has not met what its source had collected by then. That it holds nothing of
    /// such a key says the same, if, and only if, its watermark covers the record.
    fn as_if_kept(&self, replicas: &Replicas) -> Vec<Vec<Record>> {
        let kept = |(node, records): (usize, &Vec<Record>)| {
            let mut kept = records.clone();
            kept.extend(self.collected.of(node).cloned());
            let ledger = replicas.ledgers.get(node).and_then(Option::as_ref);
            if let Some(ledger) = ledger {
                let known: BTreeSet<&Bytes> = kept.iter().map(|record| &record.key).collect();
                let count = ledger.partitions().count() as u16;
                let is_covered = |record: &&Record| {
                    let partition = ledger.partition(partition_of(&record.key, count));
                    partition.state == PartitionState::Held && record.epoch <= partition.settled
                };
                let elsewhere = self.collected.greatest_anywhere().into_values();
                let unmet: Vec<Record> = elsewhere
                    .filter(|record| !known.contains(&record.key))
                    .filter(is_covered)
                    .cloned()
                    .collect();
                kept.extend(unmet);
            }
            kept
        };
        replicas.records.iter().enumerate().map(kept).collect()
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
        self.cluster
            .shown(node, view)
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
            let may_be_gone = record
                .is_some_and(|record| record.epoch <= settled && Watch::is_dead(record, now_ns));
            if may_be_gone && !held.contains(&key) {
                // What the others hold is compared when they are looked at together.
                let _ = self.gone(now_ns, node, &key, &[]);
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
            .chain(records.iter().filter_map(|r| self.visible(node, r)))
            .collect()
    }
}

/// Looks at everything when the world has come to rest: all records of each replica, and the whole
/// history. `lost` says how many of a key's replicas have lost their disks.
pub(crate) fn examine(
    replicas: &Replicas,
    history: &History,
    watch: &Watch,
    config: &ClusterConfig,
    lost: impl Fn(&Bytes) -> usize,
) -> Vec<Broken> {
    let n = config.replicas;
    let (replicas, history) = (
        &watch.as_if_kept(replicas)[..],
        &watch.with_collected(history),
    );
    let mut broken = Vec::new();
    broken.extend(acknowledged_is_durable::check(replicas, history, &lost));
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
