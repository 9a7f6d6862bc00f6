//! **What a client is told lies on a quorum, in each ring: an acknowledged write on W replicas; what a read returned on
//! the smaller of R and W.**
//!
//! It is looked at in the moment in which the client is told, from what the replicas have shown. That is stronger than
//! reads that miss something later, which need bad luck besides: W counted over the union of two rings (trap T5) is
//! seen here with the first write that one ring has too few copies of.
//!
//! **Which ring.** A request may belong to the stage that the newest agreed ring is in, or to the one before. So
//! what is asked for are the rings that *both* stages count in; for each pair of neighbours there is one.

use bytes::Bytes;
use mds_types::{ClusterConfig, NodeId, RingStage, RingUse, Version};

use super::Broken;

const INVARIANT: &str = "what a client is told lies on a quorum of each ring";

/// Something that a client was told.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// By this node.
    pub(crate) node: usize,
    pub(crate) key: Bytes,
    pub(crate) version: Version,
    pub(crate) is_write: bool,
    /// The R that its request asked for, if it did not leave it to the ring.
    pub(crate) r: Option<u8>,
    /// And the W.
    pub(crate) w: Option<u8>,
}

impl Told {
    /// How many replicas of a ring hold it, at least.
    fn needed(&self, config: &ClusterConfig) -> usize {
        let w = self.w.unwrap_or(config.write_quorum);
        let r = self.r.unwrap_or(config.read_quorum);
        let needed = if self.is_write { w } else { r.min(w) };
        usize::from(needed.min(config.replicas))
    }
}

/// The rings that requests under way count in for certain, given the newest stage.
pub(crate) fn rings_of(stage: RingStage, is_write: bool) -> RingUse {
    let used = |stage: RingStage| match is_write {
        true => stage.writes(),
        false => stage.reads(),
    };
    let at = RingStage::ALL.iter().position(|other| *other == stage);
    // The stable ring counts as it did before, by whatever way it became the present one.
    let before = at.and_then(|at| RingStage::ALL.get(at.checked_sub(1)?));
    let (now, before) = (used(stage), used(*before.unwrap_or(&stage)));
    RingUse {
        current: now.current && before.current,
        next: now.next && before.next,
    }
}

/// `replicas` of the key in one ring; `holds` says which of them have the version or a newer one.
pub(crate) fn check(
    told: &Told,
    replicas: &[NodeId],
    config: &ClusterConfig,
    holds: impl Fn(NodeId) -> bool,
) -> Option<Broken> {
    let holders = replicas.iter().filter(|replica| holds(**replica)).count();
    let needed = told.needed(config);
    (holders < needed).then(|| {
        let what = match told.is_write {
            true => "acknowledged",
            false => "returned",
        };
        let Told { key, version, .. } = told;
        let detail = format!(
            "node {} has {what} {key:?} at {version}, which lies on {holders} of {replicas:?}, and {needed} were needed",
            told.node + 1
        );
        (INVARIANT, detail)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{key, version};
    use super::*;

    #[test]
    fn a_write_that_one_ring_has_too_few_copies_of_is_seen() {
        let told = Told {
            node: 0,
            key: key(1),
            version: version(5),
            is_write: true,
            r: None,
            w: Some(2),
        };
        let config = ClusterConfig::default();
        let (current, next) = ([1, 2, 3].map(NodeId), [2, 3, 4].map(NodeId));
        // A quorum of the union, and of one ring only.
        let holds = |node: NodeId| [1, 2].contains(&node.0);
        assert_eq!(check(&told, &current, &config, holds), None);
        assert!(check(&told, &next, &config, holds).is_some());
        let one = Told {
            w: Some(1),
            ..told.clone()
        };
        assert_eq!(check(&one, &next, &config, holds), None);
        let read = Told {
            is_write: false,
            r: Some(1),
            ..told
        };
        assert_eq!(check(&read, &next, &config, holds), None);
        assert!(check(&read, &[NodeId(4)], &config, holds).is_some());
    }

    #[test]
    fn every_two_neighbouring_stages_count_in_a_common_ring() {
        for stage in RingStage::ALL {
            for is_write in [false, true] {
                let rings = rings_of(stage, is_write);
                assert!(rings.current || rings.next, "{stage}");
            }
        }
        assert_eq!(rings_of(RingStage::WriteBoth, true), RingUse::CURRENT);
        assert_eq!(rings_of(RingStage::Stream, true), RingUse::BOTH);
        assert_eq!(rings_of(RingStage::Cleanup, true), RingUse::NEXT);
        assert_eq!(rings_of(RingStage::ReadBoth, false), RingUse::CURRENT);
        assert_eq!(rings_of(RingStage::ReadNext, false), RingUse::NEXT);
    }
}
