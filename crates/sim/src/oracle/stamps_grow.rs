//! **A node's stamps only grow: of two writes that one node stamped, the one that was asked for after
//! the other was acknowledged has the later stamp, over restarts and whatever its wall clock does.**
//!
//! A node whose stamps went back would let a new write lose against its own older one.

use std::collections::BTreeMap;

use mds_types::{NodeId, Version};

use super::Broken;
use crate::history::{Ending, History};

const INVARIANT: &str = "a node's stamps only grow";

pub(super) fn check(history: &History) -> Vec<Broken> {
    let mut by_node: BTreeMap<NodeId, Vec<(u64, u64, Version, usize)>> = BTreeMap::new();
    for (number, operation) in history.operations.iter().enumerate() {
        if let (Ending::Written { version }, Some(returned_ns)) =
            (&operation.ending, operation.returned_ns)
        {
            let write = (operation.invoked_ns, returned_ns, *version, number);
            by_node.entry(version.node).or_default().push(write);
        }
    }
    let mut broken = Vec::new();
    for mut writes in by_node.into_values() {
        writes.sort();
        let mut ended = writes.clone();
        ended.sort_by_key(|&(_, returned_ns, ..)| returned_ns);
        let mut ended = ended.into_iter().peekable();
        let mut greatest: Option<(Version, usize)> = None;
        for (invoked_ns, _, version, number) in writes {
            while let Some((.., before, by)) = ended.next_if(|write| write.1 < invoked_ns) {
                greatest = greatest.max(Some((before, by)));
            }
            if let Some((before, by)) = greatest
                && before >= version
            {
                let detail = format!(
                    "write #{number} was stamped {version}, after #{by} had been stamped {before}"
                );
                broken.push((INVARIANT, detail));
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{put, version};
    use super::*;

    #[test]
    fn a_stamp_that_goes_back_is_seen() {
        let mut history = History::default();
        put(&mut history, 1, 2, Some(version(5)));
        put(&mut history, 2, 2, Some(version(6)));
        put(&mut history, 3, 2, None);
        assert_eq!(check(&history), []);
        put(&mut history, 3, 2, Some(version(6)));
        put(&mut history, 3, 2, Some(version(4)));
        assert_eq!(check(&history).len(), 2);
    }
}
