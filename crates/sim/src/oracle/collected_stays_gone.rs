//! **What is collected was dead; when it goes, nothing older of its key is left on any replica; and
//! nothing older ever comes back, to anybody.**
//!
//! A tombstone hides older versions. Were one of them left anywhere, on a replica, in a hint, in a late
//! packet, the deleted key would rise again (traps T4, T9-T12). So from the moment at which the first replica
//! has collected a version, no replica may show a smaller one of that key.
//!
//! For all other invariants a collected record counts as if it were there: absence says the same. So does a
//! replica that was filled by a stream: its source may have collected before what the replica would hold else.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mds_storage::store::{Ledger, PartitionState};
use mds_types::slot::partition_of;
use mds_types::{Epoch, PartitionId, Record, Version};

use super::Broken;

pub(super) const INVARIANT: &str = "what was collected stays gone";

/// What has been collected.
#[derive(Default)]
pub(super) struct CollectedStaysGone {
    /// By replica and key, the record that is gone there.
    gone: BTreeMap<(usize, Bytes), Record>,
    /// All records that were ever gone somewhere. Who collected them may have given the partition away since; who was
    /// filled by a stream is without them all the same.
    ever: BTreeMap<(Bytes, Version), Record>,
    /// By key, when a version was first gone somewhere, growing in time.
    first: BTreeMap<Bytes, Vec<(u64, Version)>>,
    /// Partitions that were filled by a stream, with what the source had settled.
    streamed: BTreeMap<(usize, PartitionId), Epoch>,
}

impl CollectedStaysGone {
    /// A replica has collected its record of a key. `others`: what the other replicas hold of it, those
    /// that hold nothing left out.
    pub(super) fn gone(
        &mut self,
        now_ns: u64,
        node: usize,
        record: &Record,
        is_dead: bool,
        others: &[(usize, Version)],
    ) -> Option<Broken> {
        let (key, version) = (&record.key, record.version);
        self.gone.insert((node, key.clone()), record.clone());
        self.ever.insert((key.clone(), version), record.clone());
        let first = self.first.entry(key.clone()).or_default();
        if first.last().is_none_or(|(_, last)| *last < version) {
            first.push((now_ns, version));
        }
        let node = node + 1;
        if !is_dead {
            let detail = format!("node {node} has lost {key:?} at {version}, which is alive");
            return Some((INVARIANT, detail));
        }
        let older = others.iter().find(|(_, held)| *held < version);
        older.map(|(other, held)| {
            let detail = format!(
                "node {node} has collected {key:?} at {version}, and node {} still holds {held}",
                other + 1
            );
            (INVARIANT, detail)
        })
    }

    /// A record that a replica shows.
    pub(super) fn visible(&mut self, node: usize, record: &Record) -> Option<Broken> {
        self.gone.remove(&(node, record.key.clone()));
        let collected = self.greatest(&record.key)?;
        (record.version < collected).then(|| {
            let (key, version) = (&record.key, record.version);
            let detail = format!(
                "node {} shows {key:?} at {version}, after {collected} was collected",
                node + 1
            );
            (INVARIANT, detail)
        })
    }

    /// The greatest version of a key that is gone somewhere.
    pub(super) fn greatest(&self, key: &Bytes) -> Option<Version> {
        let (_, version) = self.first.get(key)?.last()?;
        Some(*version)
    }

    /// The greatest version of a key that was gone somewhere by then.
    pub(super) fn by(&self, key: &Bytes, at_ns: u64) -> Option<Version> {
        let first = self.first.get(key)?;
        let (_, version) = first.iter().rev().find(|(gone_ns, _)| *gone_ns <= at_ns)?;
        Some(*version)
    }

    /// A replica's disk is lost.
    pub(super) fn forget(&mut self, node: usize) {
        self.gone.retain(|(at, _), _| *at != node);
        self.streamed.retain(|(at, _), _| *at != node);
    }

    /// What a replica has promised of its partitions.
    pub(super) fn promised(&mut self, node: usize, ledger: &Ledger) {
        for (partition, entry) in ledger.partitions() {
            match &entry.state {
                PartitionState::Held => {}
                PartitionState::Streaming { settled, .. } => {
                    self.streamed.insert((node, partition), *settled);
                }
                PartitionState::Wiping | PartitionState::Absent => {
                    self.streamed.remove(&(node, partition));
                }
            }
        }
    }

    /// A replica has removed a whole partition.
    pub(super) fn forget_keys(&mut self, node: usize, is_of_it: impl Fn(&Bytes) -> bool) {
        self.gone
            .retain(|(at, key), _| *at != node || !is_of_it(key));
    }

    /// What a replica would hold beside `held`, had nobody collected anything.
    pub(super) fn of(&self, node: usize, held: &[Record], partitions: u16) -> Vec<Record> {
        let range = (node, Bytes::new())..(node + 1, Bytes::new());
        let own = self.gone.range(range).map(|(_, record)| record);
        let held: BTreeSet<&Bytes> = held.iter().map(|record| &record.key).collect();
        let mut kept: BTreeMap<&Bytes, &Record> = own.map(|record| (&record.key, record)).collect();
        for record in self.ever.values() {
            let place = (node, partition_of(&record.key, partitions));
            let settled = self.streamed.get(&place);
            if settled.is_some_and(|settled| record.epoch <= *settled)
                && !held.contains(&record.key)
            {
                let known = kept.entry(&record.key).or_insert(record);
                if known.version < record.version {
                    *known = record;
                }
            }
        }
        kept.into_values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{key, record, version};
    use super::*;

    #[test]
    fn something_older_is_seen_wherever_it_is_and_whenever() {
        let mut watch = CollectedStaysGone::default();
        let gone = record(1, 5);
        assert_eq!(watch.gone(10, 0, &gone, true, &[(1, version(5))]), None);
        assert!(watch.gone(11, 1, &gone, true, &[(2, version(4))]).is_some());
        assert!(watch.gone(12, 2, &gone, false, &[]).is_some(), "alive");
        assert_eq!(watch.by(&key(1), 9), None);
        assert_eq!(watch.by(&key(1), 10), Some(version(5)));
        assert!(watch.visible(2, &record(1, 4)).is_some());
        assert_eq!(
            watch.visible(2, &record(1, 5)),
            None,
            "not collected there yet"
        );
        assert_eq!(watch.visible(2, &record(1, 6)), None);
        assert_eq!(watch.visible(2, &record(2, 1)), None);
        assert_eq!(watch.of(0, &[], 1).len(), 1);
        assert_eq!(watch.of(2, &[], 1).len(), 0, "it shows something again");
    }

    #[test]
    fn what_the_source_of_a_stream_had_settled_counts_as_collected() {
        let mut watch = CollectedStaysGone::default();
        assert_eq!(watch.gone(10, 0, &record(1, 5), true, &[]), None);
        watch.streamed.insert((1, PartitionId(0)), Epoch(0));
        assert_eq!(watch.of(1, &[], 1), [], "not settled at the source");
        watch.streamed.insert((1, PartitionId(0)), Epoch(1));
        assert_eq!(watch.of(1, &[], 1), [record(1, 5)]);
        assert_eq!(watch.of(1, &[record(1, 6)], 1), [], "it holds something");
        assert_eq!(watch.of(2, &[], 1), [], "it was not filled by a stream");
        watch.forget(0);
        assert_eq!(
            watch.of(1, &[], 1),
            [record(1, 5)],
            "who collected it has gone"
        );
    }
}
