//! **A version names one record: all replicas that hold it hold the same bytes.**
//!
//! Merging compares versions; two records under one version would never be told apart again, and
//! replicas would differ for ever.

use std::collections::BTreeMap;

use bytes::Bytes;
use mds_types::{Record, Version};

use super::Broken;

const INVARIANT: &str = "a version names one record";

/// The first record seen of each version, and where.
#[derive(Default)]
pub(super) struct OneRecordPerVersion {
    first: BTreeMap<(Bytes, Version), (usize, Record)>,
}

impl OneRecordPerVersion {
    /// What a version of a key names, if a replica ever showed it.
    pub(super) fn record(&self, key: &Bytes, version: Version) -> Option<&Record> {
        let (_, record) = self.first.get(&(key.clone(), version))?;
        Some(record)
    }

    /// The records of a key that replicas have shown, from a version on.
    pub(super) fn from(&self, key: &Bytes, version: Version) -> impl Iterator<Item = &Record> {
        let key = key.clone();
        let shown = self.first.range((key.clone(), version)..);
        shown
            .take_while(move |((of, _), _)| *of == key)
            .map(|(_, (_, record))| record)
    }

    pub(super) fn visible(&mut self, node: usize, record: &Record) -> Option<Broken> {
        let named = (record.key.clone(), record.version);
        let (first_node, first) = self
            .first
            .entry(named)
            .or_insert_with(|| (node, record.clone()));
        let detail = || {
            format!(
                "node {} holds {}, node {} holds {}",
                *first_node + 1,
                describe(first),
                node + 1,
                describe(record)
            )
        };
        (first != record).then(|| (INVARIANT, detail()))
    }
}

fn describe(record: &Record) -> String {
    let Record {
        key,
        version,
        epoch,
        expires_at_ms,
        ..
    } = record;
    let bytes = record.value().map(Bytes::len);
    format!("{key:?} {version} of epoch {epoch}, expiry {expires_at_ms:?}, value bytes {bytes:?}")
}

#[cfg(test)]
mod tests {
    use mds_types::Epoch;

    use super::super::tests_support::record;
    use super::*;

    #[test]
    fn two_records_of_one_version_are_seen() {
        let mut watch = OneRecordPerVersion::default();
        assert_eq!(watch.visible(0, &record(1, 5)), None);
        assert_eq!(watch.visible(1, &record(1, 5)), None);
        let other = Record {
            epoch: Epoch(9),
            ..record(1, 5)
        };
        assert!(watch.visible(2, &other).is_some());
    }
}
