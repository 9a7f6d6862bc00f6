//! **Regularity in version order: a read returns a version at least that of every write that was
//! acknowledged before the read began, if R + W > N.**
//!
//! R is the read's, W the write's own. A client that carries a token reads with as many replicas as
//! meet its own read's W; that only makes R larger, so the rule holds as it stands.

use std::collections::BTreeMap;

use bytes::Bytes;
use mds_types::Version;

use super::Broken;
use crate::history::{Ending, History, Operation};

const INVARIANT: &str = "a quorum read sees what was acknowledged before";

pub(super) fn check(history: &History, n: u8) -> Vec<Broken> {
    let mut by_key: BTreeMap<&Bytes, Vec<(usize, &Operation)>> = BTreeMap::new();
    for (number, operation) in history.operations.iter().enumerate() {
        by_key
            .entry(&operation.key)
            .or_default()
            .push((number, operation));
    }
    let mut broken = Vec::new();
    for operations in by_key.values() {
        for &(read_number, read) in operations {
            let Ending::Read { version: seen, .. } = read.ending else {
                continue;
            };
            let before = operations.iter().filter_map(|&(number, write)| {
                let version = acknowledged_before(write, read, n)?;
                Some((version, number))
            });
            if let Some((version, number)) = before.max()
                && seen < Some(version)
            {
                let detail = format!(
                    "read #{read_number} of {:?} saw {seen:?}, but write #{number} at {version} \
                     had been acknowledged before",
                    read.key
                );
                broken.push((INVARIANT, detail));
            }
        }
    }
    broken
}

fn acknowledged_before(write: &Operation, read: &Operation, n: u8) -> Option<Version> {
    let Ending::Written { version } = write.ending else {
        return None;
    };
    let is_before = write.returned_ns? < read.invoked_ns;
    (is_before && write.write_quorum + read.read_quorum > n).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{get, put, version};
    use super::*;

    #[test]
    fn a_stale_quorum_read_is_seen() {
        let mut history = History::default();
        let old = put(&mut history, 1, 2, Some(version(4)));
        let new = put(&mut history, 1, 2, Some(version(5)));
        get(&mut history, 1, 2, Some((5, &new)));
        get(&mut history, 1, 1, Some((4, &old)));
        assert_eq!(check(&history, 3), []);
        get(&mut history, 1, 2, Some((4, &old)));
        get(&mut history, 1, 2, None);
        assert_eq!(check(&history, 3).len(), 2);
    }
}
