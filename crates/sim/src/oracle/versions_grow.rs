//! **Each replica's version of a key only grows, over crashes too: what a reader could see is never
//! taken back.**

use std::collections::BTreeMap;

use bytes::Bytes;
use mds_types::{Record, Version};

use super::Broken;

pub(crate) const INVARIANT: &str = "a replica's versions only grow";

/// The newest version that each replica has shown of each key.
#[derive(Default)]
pub(super) struct VersionsGrow {
    shown: BTreeMap<(usize, Bytes), Version>,
}

impl VersionsGrow {
    /// A record that a replica shows.
    pub(super) fn visible(&mut self, node: usize, record: &Record) -> Option<Broken> {
        let shown = self
            .shown
            .entry((node, record.key.clone()))
            .or_insert(record.version);
        if record.version < *shown {
            let (key, is, was) = (&record.key, record.version, *shown);
            let detail = format!("node {} shows {key:?} at {is}, after {was}", node + 1);
            return Some((INVARIANT, detail));
        }
        *shown = record.version;
        None
    }

    /// A replica is gone for ever, with its disk.
    pub(super) fn forget(&mut self, node: usize) {
        self.shown.retain(|(shower, _), _| *shower != node);
    }

    /// What a replica last showed of each key.
    pub(super) fn shown(&self, node: usize) -> Vec<(Bytes, Version)> {
        let range = (node, Bytes::new())..(node + 1, Bytes::new());
        let shown = self.shown.range(range);
        shown
            .map(|((_, key), version)| (key.clone(), *version))
            .collect()
    }

    /// What a replica last showed of a key.
    pub(super) fn of(&self, node: usize, key: &Bytes) -> Option<Version> {
        self.shown.get(&(node, key.clone())).copied()
    }

    /// A replica shows nothing of a key any more, and may.
    pub(super) fn take(&mut self, node: usize, key: &Bytes) -> Option<Version> {
        self.shown.remove(&(node, key.clone()))
    }

    /// A replica has removed these keys, and may.
    pub(super) fn forget_keys(&mut self, node: usize, is_of_it: impl Fn(&Bytes) -> bool) {
        self.shown
            .retain(|(shower, key), _| *shower != node || !is_of_it(key));
    }

    /// All records that a replica shows when it is started again.
    pub(super) fn recovered(&self, node: usize, life: u64, records: &[Record]) -> Vec<Broken> {
        let held: BTreeMap<&Bytes, Version> = records
            .iter()
            .map(|record| (&record.key, record.version))
            .collect();
        let mut lost = Vec::new();
        for ((_, key), was) in self
            .shown
            .range((node, Bytes::new())..(node + 1, Bytes::new()))
        {
            let is = held.get(key).copied();
            if is < Some(*was) {
                let node = node + 1;
                let detail =
                    format!("node {node} shows {key:?} at {is:?} in its life {life}, after {was}");
                lost.push((INVARIANT, detail));
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::record;
    use super::*;

    #[test]
    fn a_version_that_goes_back_is_seen() {
        let mut watch = VersionsGrow::default();
        assert_eq!(watch.visible(0, &record(1, 5)), None);
        assert_eq!(watch.visible(0, &record(1, 5)), None);
        assert_eq!(watch.visible(1, &record(1, 4)), None, "another replica");
        assert!(watch.visible(0, &record(1, 4)).is_some());
        assert_eq!(watch.recovered(0, 2, &[record(1, 5)]), []);
        assert_eq!(watch.recovered(0, 2, &[record(1, 4)]).len(), 1);
        assert_eq!(watch.recovered(0, 2, &[]).len(), 1);
        watch.forget(0);
        assert_eq!(watch.recovered(0, 2, &[]), []);
    }
}
