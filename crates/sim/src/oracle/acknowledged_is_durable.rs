//! **No acknowledged write is lost: in the end at least W replicas hold it, or something newer.**
//!
//! W is the write's own. A disk that was lost for ever may have been one of the W; that is all that
//! may be missing. So may a member that a change of the ring did not wait for: it is emptied when it comes back.

use std::collections::BTreeMap;

use bytes::Bytes;
use mds_types::{Record, Version};

use super::Broken;
use crate::history::{Ending, History};

const INVARIANT: &str = "no acknowledged write is lost";

pub(super) fn check(
    replicas: &[Vec<Record>],
    history: &History,
    lost: impl Fn(&Bytes) -> usize,
) -> Vec<Broken> {
    let versions: Vec<BTreeMap<&Bytes, Version>> = replicas
        .iter()
        .map(|records| {
            records
                .iter()
                .map(|record| (&record.key, record.version))
                .collect()
        })
        .collect();
    let mut broken = Vec::new();
    for (number, operation) in history.operations.iter().enumerate() {
        let Ending::Written { version } = operation.ending else {
            continue;
        };
        let has = |replica: &&BTreeMap<&Bytes, Version>| {
            replica
                .get(&operation.key)
                .is_some_and(|&held| held >= version)
        };
        let holders = versions.iter().filter(has).count();
        if holders + lost(&operation.key) < usize::from(operation.write_quorum) {
            let (key, w) = (&operation.key, operation.write_quorum);
            let detail = format!(
                "write #{number} of {key:?} at {version} was acknowledged with W = {w}, and \
                 {holders} replicas hold it or something newer"
            );
            broken.push((INVARIANT, detail));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{key, put, record, version};
    use super::*;

    #[test]
    fn a_lost_write_is_seen() {
        let mut history = History::default();
        put(&mut history, 1, 2, Some(version(5)));
        let old = vec![record(1, 4)];
        let same = vec![record(1, 5)];
        let newer = vec![record(1, 6)];
        let check = |replicas: &[&Vec<Record>], lost| {
            let replicas: Vec<_> = replicas.iter().map(|&replica| replica.clone()).collect();
            check(&replicas, &history, |_| lost).len()
        };
        assert_eq!(check(&[&same, &newer, &old], 0), 0);
        assert_eq!(check(&[&same, &old, &old], 0), 1);
        assert_eq!(check(&[&same, &old, &vec![]], 1), 0);
        assert_eq!(check(&[&same, &vec![], &vec![]], 0), 1);
        assert_eq!(key(1), record(1, 1).key);
    }
}
