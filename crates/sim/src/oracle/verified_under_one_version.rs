//! **A replica settles an epoch by its own comparison only if every other member of the group has answered "equal" to
//! one and the same root, under one version of the rings.**
//!
//! Answers under two versions come from two groups: what the one has could still come into the other (traps T5, T6).
//! The answers are read off the wire, and the groups follow from the agreed rings. (A replica may also follow
//! one that is ahead, by its chain: that is no comparison of its own.)

use std::collections::BTreeMap;

use mds_types::{Epoch, NodeId, PartitionId, TopologyVersion};

use super::Broken;

const INVARIANT: &str = "what is settled was seen equal on all under one version of the rings";

/// Which start of which machine.
type Name = (usize, u64);

/// One set: of which machine's start, and which (partition, epoch).
type Place = (Name, PartitionId, Epoch);

/// An answer "equal": under which version, from whom, to which root.
type Equal = (TopologyVersion, NodeId, u128);

/// The answers "equal" that count still.
#[derive(Default)]
pub(super) struct VerifiedUnderOneVersion {
    equal: BTreeMap<Place, Vec<Equal>>,
}

impl VerifiedUnderOneVersion {
    /// A member has answered that it has the same root.
    pub(super) fn equal(&mut self, place: Place, equal: Equal) {
        let known = self.equal.entry(place).or_default();
        if !known.contains(&equal) {
            known.push(equal);
        }
    }

    /// A replica has settled an epoch that it had found to be equal to `root` everywhere. `group`: the other members
    /// under a version, if that one is known.
    pub(super) fn settled(
        &mut self,
        place: Place,
        root: u128,
        group: impl Fn(TopologyVersion) -> Option<Vec<NodeId>>,
        versions: impl IntoIterator<Item = TopologyVersion>,
    ) -> Option<Broken> {
        let equal = self.equal.remove(&place).unwrap_or_default();
        let is_complete = |version: TopologyVersion| {
            let group = group(version);
            group.is_some_and(|group| {
                let mut group = group.into_iter();
                group.all(|member| equal.contains(&(version, member, root)))
            })
        };
        if versions.into_iter().any(is_complete) {
            return None;
        }
        let ((node, _), partition, epoch) = place;
        let seen: Vec<String> = equal
            .iter()
            .map(|(version, member, _)| format!("{member} under {version}"))
            .collect();
        let detail = format!(
            "node {} has settled epoch {epoch} of partition {partition}; it had seen these equal: {}",
            node + 1,
            seen.join(", ")
        );
        Some((INVARIANT, detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_two_versions_are_seen_to_be_none() {
        let place = ((0, 1), PartitionId(2), Epoch(3));
        let group = |_| Some(vec![NodeId(2), NodeId(3)]);
        let settled = |answers: &[(u64, u64, u128)]| {
            let mut watch = VerifiedUnderOneVersion::default();
            for (version, member, root) in answers {
                watch.equal(place, (TopologyVersion(*version), NodeId(*member), *root));
            }
            let versions = [1, 2].map(TopologyVersion);
            watch.settled(place, 7, group, versions).is_some()
        };
        assert!(!settled(&[(1, 2, 7), (1, 3, 7)]));
        assert!(settled(&[(1, 2, 7), (2, 3, 7)]), "two versions");
        assert!(settled(&[(1, 2, 7), (1, 3, 8)]), "another root");
        assert!(settled(&[(1, 2, 7)]), "one is missing");
        assert!(!settled(&[(1, 2, 7), (2, 3, 7), (2, 2, 7)]));
    }
}
