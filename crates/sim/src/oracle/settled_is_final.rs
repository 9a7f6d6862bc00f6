//! **Whoever was told that a record is settled and gone takes that for an answer: a read does not write the same version
//! back to a replica that has refused it as settled.**
//!
//! A tombstone that one replica has collected and another one has not is no difference to be repaired. A read that took
//! it for one would write it back for ever, and nobody would hear what it found (trap T14).

use std::collections::BTreeSet;

use bytes::Bytes;
use mds_node::core::LinkId;
use mds_node::store_io::{MergeResult, ReplyTo, StoreDone};
use mds_storage::store::Purpose;
use mds_types::Version;

use super::Broken;
use super::arrivals::Arrival;

const INVARIANT: &str = "a settled record is not written back again";

/// What a replica has refused as settled: by which link (none: to its own coordinator), for which request.
#[derive(Default)]
pub(crate) struct SettledIsFinal {
    refused: BTreeSet<(Option<LinkId>, u64, Bytes, Version)>,
}

impl SettledIsFinal {
    /// Looks at a group of records and at what became of it.
    pub(crate) fn check(
        &mut self,
        node: usize,
        arrivals: &[Arrival],
        done: &StoreDone,
    ) -> Option<Broken> {
        let mut broken = None;
        for (arrival, (ticket, result)) in arrivals.iter().zip(&done.merges) {
            if *result == MergeResult::Settled && arrival.purpose == Purpose::Repair {
                let link = match ticket.reply_to {
                    ReplyTo::Me => None,
                    ReplyTo::Link(link) => Some(link),
                };
                broken = broken.or(self.refused(node, link, ticket.id, arrival));
            }
        }
        broken
    }

    fn refused(
        &mut self,
        node: usize,
        link: Option<LinkId>,
        request: u64,
        arrival: &Arrival,
    ) -> Option<Broken> {
        let (key, version) = (&arrival.key, arrival.version);
        let is_new = self.refused.insert((link, request, key.clone(), version));
        (!is_new).then(|| {
            let detail = format!(
                "node {} has refused {key:?} at {version} as settled, and is asked by the same read again",
                node + 1
            );
            (INVARIANT, detail)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::arrival;
    use super::*;

    #[test]
    fn a_write_back_that_does_not_take_no_for_an_answer_is_seen() {
        let mut watch = SettledIsFinal::default();
        let dead = arrival(1, 5, 3);
        assert_eq!(watch.refused(0, Some(LinkId(1)), 7, &dead), None);
        assert_eq!(watch.refused(0, Some(LinkId(1)), 8, &dead), None);
        assert_eq!(watch.refused(0, Some(LinkId(2)), 7, &dead), None);
        let older = arrival(1, 4, 3);
        assert_eq!(watch.refused(0, Some(LinkId(1)), 7, &older), None);
        assert!(watch.refused(0, Some(LinkId(1)), 7, &dead).is_some());
    }
}
