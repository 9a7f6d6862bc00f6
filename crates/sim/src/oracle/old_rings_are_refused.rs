//! **A replica does nothing for a request that was routed by a ring from before the last stage that may still be in
//! force.**
//!
//! Somebody who was away, and a packet that was, may know a ring that no quorum of today meets (trap T5). What was asked
//! is read off the wire; what was done for it is what the node counts.

use mds_types::TopologyVersion;

use super::Broken;

const INVARIANT: &str = "requests by old rings are refused";

/// Requests of one kind arrived together, routed by these versions, and `done` of them were begun.
pub(crate) fn check(
    node: usize,
    accepted_from: TopologyVersion,
    routed_by: &[TopologyVersion],
    done: u64,
) -> Option<Broken> {
    let is_young = |version: &&TopologyVersion| **version >= accepted_from;
    let young = routed_by.iter().filter(is_young).count() as u64;
    (done > young).then(|| {
        let detail = format!(
            "node {} accepts requests of version {accepted_from} of the rings and later ones, and has begun {done} of \
             {routed_by:?}",
            node + 1
        );
        (INVARIANT, detail)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_by_an_old_ring_is_seen() {
        let routed_by = [2, 4, 5].map(TopologyVersion);
        assert_eq!(check(0, TopologyVersion(4), &routed_by, 2), None);
        assert!(check(0, TopologyVersion(4), &routed_by, 3).is_some());
        assert_eq!(check(0, TopologyVersion(2), &routed_by, 3), None);
    }
}
