//! **Monotonic quorum reads: once a read has returned a version, no later read returns an older one,
//! whoever reads, if their quorums meet.**
//!
//! Blocking read repair makes it so: when a read with R and W returns, at least min(R, W) replicas
//! hold what it returned. A later read meets them if its own R and that number exceed N.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Broken;
use crate::history::{Ending, History, Operation};

const INVARIANT: &str = "quorum reads never go back";

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
        for &(later_number, later) in operations {
            let Ending::Read { version: seen, .. } = later.ending else {
                continue;
            };
            let before = operations.iter().filter_map(|&(number, earlier)| {
                let Ending::Read { version, .. } = earlier.ending else {
                    return None;
                };
                let is_before = earlier.returned_ns? < later.invoked_ns;
                let holders = earlier.read_quorum.min(earlier.write_quorum);
                (is_before && holders + later.read_quorum > n).then_some((version, number))
            });
            if let Some((version, number)) = before.max()
                && seen < version
            {
                let detail = format!(
                    "read #{later_number} of {:?} saw {seen:?}, but read #{number} had seen \
                     {version:?} before",
                    later.key
                );
                broken.push((INVARIANT, detail));
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{get, put};
    use super::*;

    #[test]
    fn a_read_that_goes_back_is_seen() {
        let mut history = History::default();
        let (old, new) = (put(&mut history, 1, 2, None), put(&mut history, 1, 2, None));
        get(&mut history, 1, 2, Some((4, &old)));
        get(&mut history, 1, 2, Some((5, &new)));
        get(&mut history, 1, 1, Some((4, &old)));
        assert_eq!(check(&history, 3), []);
        get(&mut history, 1, 2, Some((4, &old)));
        assert_eq!(check(&history, 3).len(), 1);
    }
}
