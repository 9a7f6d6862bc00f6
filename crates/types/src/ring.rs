//! Rings in transition: which ring is written, which is read, in which stage.
//!
//! A change of the ring is a walk through [`RingStage`]s that Raft agrees on, as in Scylla's topology
//! changes (write both, read old; write both, read new) with one stage more. Each stage is entered only
//! when every member has acknowledged the one before and has ended the requests that it began earlier; so at
//! any time the requests under way belong to two adjacent stages at most.
//!
//! | stage | writes need W in | reads need R in |
//! |---|---|---|
//! | `Stable` | current | current |
//! | `Prepare` | current | current |
//! | `WriteBoth` | current and next | current |
//! | `Stream` | current and next | current |
//! | `ReadBoth` | current and next | current and next |
//! | `ReadNext` | current and next | next |
//! | `Cleanup` | next | next |
//! | `Stable`, next being current | next | next |
//!
//! **Invariants**
//!
//! 1. Reads of a stage need R in a ring in which writes of this stage and of both its neighbours need W:
//!    what was acknowledged is met (proved by enumeration in `mds-protocol`, `quorum::tests::rings`).
//! 2. Records of epochs before [`Rings::first_epoch`] may have met W of the current ring only. They are
//!    all closed, and equal in both rings, before anybody reads the next one (`ReadBoth` is entered when
//!    all have said so). Records of later epochs are written to both rings by themselves.
//! 3. **Monotonic reads** over the switch: a read in `WriteBoth` or `Stream` shows a record that may
//!    outlive its verification ([`Rings::shown_after_write_back_from`]) only once W of *both* rings hold it;
//!    a read in `ReadBoth` agrees in both rings or writes back to both.
//!
//! The quorum is never counted over the union of two rings (trap T5): two of the new ring's replicas and
//! two of the old one's may have nothing in common.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, NodeId, TopologyVersion};
use crate::topology::{ClusterConfig, Topology};

/// Where a change of the ring stands.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum RingStage {
    /// One ring.
    #[default]
    Stable,
    /// Everybody learns of the next ring; nodes that gain partitions make place for them, so that the first
    /// write that needs them finds them ready.
    Prepare,
    /// All coordinators begin to write to the next ring too.
    WriteBoth,
    /// Every new write reaches both rings; gaining replicas stream what is older.
    Stream,
    /// The next ring holds everything; reads ask both.
    ReadBoth,
    /// Reads ask the next ring alone.
    ReadNext,
    /// Nobody reads the old ring any more; writes leave it too.
    Cleanup,
}

/// Which of the two rings a request needs a quorum in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingUse {
    /// The current ring.
    pub current: bool,
    /// The next ring.
    pub next: bool,
}

impl RingUse {
    /// The current ring alone.
    pub const CURRENT: RingUse = RingUse {
        current: true,
        next: false,
    };
    /// The next ring alone.
    pub const NEXT: RingUse = RingUse {
        current: false,
        next: true,
    };
    /// Both rings.
    pub const BOTH: RingUse = RingUse {
        current: true,
        next: true,
    };
}

impl RingStage {
    /// All stages, in their order.
    pub const ALL: [RingStage; 7] = [
        RingStage::Stable,
        RingStage::Prepare,
        RingStage::WriteBoth,
        RingStage::Stream,
        RingStage::ReadBoth,
        RingStage::ReadNext,
        RingStage::Cleanup,
    ];

    /// Where a write needs W, and the write-back of a read too.
    pub const fn writes(self) -> RingUse {
        match self {
            RingStage::Stable | RingStage::Prepare => RingUse::CURRENT,
            RingStage::WriteBoth
            | RingStage::Stream
            | RingStage::ReadBoth
            | RingStage::ReadNext => RingUse::BOTH,
            RingStage::Cleanup => RingUse::NEXT,
        }
    }

    /// Where a read needs R.
    pub const fn reads(self) -> RingUse {
        match self {
            RingStage::Stable | RingStage::Prepare | RingStage::WriteBoth | RingStage::Stream => {
                RingUse::CURRENT
            }
            RingStage::ReadBoth => RingUse::BOTH,
            RingStage::ReadNext | RingStage::Cleanup => RingUse::NEXT,
        }
    }

    /// The stage after this one; `Cleanup` ends in `Stable`, which begins nothing by itself.
    pub const fn following(self) -> Option<RingStage> {
        match self {
            RingStage::Stable => None,
            RingStage::Prepare => Some(RingStage::WriteBoth),
            RingStage::WriteBoth => Some(RingStage::Stream),
            RingStage::Stream => Some(RingStage::ReadBoth),
            RingStage::ReadBoth => Some(RingStage::ReadNext),
            RingStage::ReadNext => Some(RingStage::Cleanup),
            RingStage::Cleanup => Some(RingStage::Stable),
        }
    }

    /// Whether the change may still be called off: nobody has read the next ring yet.
    pub const fn may_abort(self) -> bool {
        matches!(
            self,
            RingStage::Prepare | RingStage::WriteBoth | RingStage::Stream
        )
    }
}

impl fmt::Display for RingStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RingStage::Stable => "stable",
            RingStage::Prepare => "prepare",
            RingStage::WriteBoth => "write-both",
            RingStage::Stream => "stream",
            RingStage::ReadBoth => "read-both",
            RingStage::ReadNext => "read-next",
            RingStage::Cleanup => "cleanup",
        })
    }
}

/// A ring: members and the configuration that placement and quorums follow from.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ring {
    /// Its members. Its version is that of the [`Rings`] it belongs to: to see whether placement has
    /// changed, compare members and `replicas`.
    pub topology: Arc<Topology>,
    /// N, R, W, and what never changes.
    pub config: ClusterConfig,
}

impl Ring {
    /// Whether two rings place everything alike: the same members and the same N.
    pub fn places_like(&self, other: &Ring) -> bool {
        self.topology.members == other.topology.members
            && self.config.replicas == other.config.replicas
            && self.config.partition_count == other.config.partition_count
            && self.config.placement_format == other.config.placement_format
    }
}

/// The agreed rings: one value, replaced as a whole.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rings {
    /// Grows with every change of ring, stage or exclusion. Every message about data carries it.
    pub version: TopologyVersion,
    /// Messages of senders with a smaller version are refused: their stage is over everywhere.
    pub accepted_from: TopologyVersion,
    /// Where the change stands.
    pub stage: RingStage,
    /// The present ring.
    pub current: Ring,
    /// The ring that it changes to; none if `Stable`.
    pub next: Option<Ring>,
    /// E1: records of this epoch and later ones are written to both rings. None before `Stream`, and if
    /// `Stable`.
    pub first_epoch: Option<Epoch>,
    /// Members that are waited for no more: removed or replaced as dead.
    pub excluded: BTreeSet<NodeId>,
    /// `Stable`, and every member has acknowledged this version: replicas may drop what they lost.
    pub settled: bool,
}

impl Rings {
    /// The rings that a request of this stage needs a quorum in, the current one first.
    pub fn used(&self, by: RingUse) -> impl Iterator<Item = &Ring> {
        let current = by.current.then_some(&self.current);
        let next = self.next.as_ref().filter(|_| by.next);
        current.into_iter().chain(next)
    }

    /// While reads ask the current ring alone and writes both: from which epoch on a record must be
    /// known to lie on W of both rings before a reader is shown it, though all answers agree. Older
    /// records are verified in both rings before the next one is read. `epoch` is the one that the reader's
    /// view had when the read began.
    ///
    /// None outside `WriteBoth` and `Stream`.
    pub fn shown_after_write_back_from(&self, epoch: Epoch) -> Option<Epoch> {
        match self.stage {
            // A later epoch than this node knows of may be E1 already.
            RingStage::WriteBoth => Some(Epoch(epoch.0.saturating_add(1))),
            RingStage::Stream => self.first_epoch,
            _ => None,
        }
    }

    /// Whether a node is on one of the rings that data is written to.
    pub fn holds_data(&self, node: NodeId) -> bool {
        self.used(self.stage.writes())
            .any(|ring| ring.topology.member(node).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_one_another_and_end_where_they_began() {
        let mut stage = RingStage::Prepare;
        let mut seen = vec![RingStage::Stable, stage];
        while let Some(next) = stage.following() {
            stage = next;
            seen.push(stage);
        }
        assert_eq!(seen.pop(), Some(RingStage::Stable));
        assert_eq!(seen, RingStage::ALL);
    }

    #[test]
    fn only_before_the_next_ring_is_read_a_change_can_be_called_off() {
        for stage in RingStage::ALL {
            let changes = stage != RingStage::Stable;
            assert_eq!(stage.may_abort(), changes && !stage.reads().next, "{stage}");
        }
    }

    /// What a table can show of invariant 1: a read shares a whole ring with every write of its own
    /// and of the neighbouring stages.
    #[test]
    fn neighbouring_stages_share_a_ring() {
        let mut walk = RingStage::ALL.to_vec();
        // The stable ring at the end is the next one: as in cleanup.
        walk.push(RingStage::Cleanup);
        for at in 0..walk.len() {
            let reads = walk[at].reads();
            for near in at.saturating_sub(1)..=(at + 1).min(walk.len() - 1) {
                let writes = walk[near].writes();
                let shared = (reads.current && writes.current) || (reads.next && writes.next);
                assert!(shared, "{} reads, {} writes", walk[at], walk[near]);
            }
        }
    }
}
