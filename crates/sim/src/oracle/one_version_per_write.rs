//! **A write has one version: however often a client repeats it by its token, no replica ever shows
//! its value under another version.**
//!
//! Otherwise readers could see the value, then another, then it again. Clients that repeat a write
//! without its token make a second write, and say so.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mds_types::{Record, Version};

use super::Broken;

const INVARIANT: &str = "a write has one version";

/// The version that each value was first seen under.
#[derive(Default)]
pub(super) struct OneVersionPerWrite {
    first: BTreeMap<Bytes, Version>,
    /// Operations that may well be several writes.
    several: BTreeSet<u64>,
}

impl OneVersionPerWrite {
    /// The client repeats its operation in a way that may make it another write.
    pub(super) fn repeated_as_another(&mut self, operation: u64) {
        self.several.insert(operation);
    }

    /// A record that a replica shows.
    pub(super) fn visible(&mut self, node: usize, record: &Record) -> Option<Broken> {
        // Values begin with the number of their operation; nobody writes one twice.
        let value = record.value()?;
        let operation = u64::from_le_bytes(value.get(..8)?.try_into().ok()?);
        if self.several.contains(&operation) {
            return None;
        }
        let first = *self.first.entry(value.clone()).or_insert(record.version);
        let detail = || {
            let (key, is) = (&record.key, record.version);
            format!(
                "node {} shows #{operation} of {key:?} at {is}, after {first}",
                node + 1
            )
        };
        (first != record.version).then(|| (INVARIANT, detail()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::record_of;
    use super::*;

    #[test]
    fn a_second_version_of_one_value_is_seen() {
        let value = Bytes::from_static(b"\x07\0\0\0\0\0\0\0.");
        let mut watch = OneVersionPerWrite::default();
        assert_eq!(watch.visible(0, &record_of(1, 5, &value)), None);
        assert_eq!(watch.visible(1, &record_of(1, 5, &value)), None);
        assert!(watch.visible(1, &record_of(1, 6, &value)).is_some());
        watch.repeated_as_another(7);
        assert_eq!(watch.visible(1, &record_of(1, 6, &value)), None);
    }
}
