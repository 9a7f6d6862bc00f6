//! Epoch floors: what ties the order of epochs to the order of versions.
//!
//! A coordinator that lags in epochs but has a fast clock, and one that is ahead with a slow one, stamp
//! versions whose order contradicts that of their epochs. That is harmless until something is
//! *collected*: the tombstone of epoch 5 may be gone when a write of epoch 6 with a smaller version
//! comes in, and the deleted value rises. So Raft agrees, with each epoch, on a **floor**.
//!
//! **Invariants**
//!
//! 1. Every version stamped in epoch E is above `floor(E)`: whoever learns of E lets its clock observe the
//!    floor before it stamps in E.
//! 2. Floors never fall: `floor(E) <= floor(E + 1)`.
//! 3. What is answered is never above the agreed floor, also where that has been forgotten: a lower floor
//!    only delays collection.
//!
//! So a dead record of epoch `e` and time `t` may be collected at watermark `G` only if `e <= G` and
//! `t <= floor(G + 1)`: whatever may still come in, of epochs above `G`, is newer.
//!
//! What it does not do: bound how far a floor lags behind time. One slow clock holds it back.

use serde::{Deserialize, Serialize};

use crate::hlc::Hlc;
use crate::ids::Epoch;

/// Epochs whose floors are remembered; older ones answer zero, which only delays collection.
pub const EPOCH_FLOORS_MAX: usize = 128;

/// The floors of the latest epochs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct EpochFloors {
    /// The epoch of the first floor in `floors`; the others follow one by one.
    first: Epoch,
    /// Never falling; at most [`EPOCH_FLOORS_MAX`].
    floors: Vec<Hlc>,
}

impl EpochFloors {
    /// The floor of an epoch: every version stamped in it, or in a later one, is above. Zero for an
    /// epoch that nothing is remembered of; that of the latest epoch for one still to come.
    pub fn floor(&self, epoch: Epoch) -> Hlc {
        if epoch < self.first {
            return Hlc(0);
        }
        let index = usize::try_from(epoch.0 - self.first.0).unwrap_or(usize::MAX);
        let known = self.floors.get(index).or(self.floors.last());
        known.copied().unwrap_or_default()
    }

    /// The floor of the latest epoch.
    pub fn latest(&self) -> Hlc {
        self.floors.last().copied().unwrap_or_default()
    }

    /// Notes the floor of an epoch that has just begun, raised to that of the epoch before. Of an
    /// epoch that is known already, nothing changes.
    pub fn begin(&mut self, epoch: Epoch, floor: Hlc) {
        let next = self.first.0 + self.floors.len() as u64;
        if !self.floors.is_empty() && epoch.0 < next {
            return;
        }
        let before = self.latest();
        if self.floors.is_empty() {
            self.first = epoch;
        } else {
            // Epochs that were skipped over have the floor of the one before.
            let skipped = (epoch.0 - next).min(EPOCH_FLOORS_MAX as u64);
            self.first = Epoch(epoch.0 - skipped - self.floors.len() as u64);
            self.floors.extend((0..skipped).map(|_| before));
        }
        self.floors.push(floor.max(before));
        let surplus = self.floors.len().saturating_sub(EPOCH_FLOORS_MAX);
        self.floors.drain(..surplus);
        self.first = Epoch(self.first.0 + surplus as u64);
    }

    /// Whether this could have been built by [`EpochFloors::begin`]: for what was read from outside.
    pub fn is_sound(&self) -> bool {
        let ends = self.first.0.checked_add(self.floors.len() as u64);
        self.floors.len() <= EPOCH_FLOORS_MAX && ends.is_some() && self.floors.is_sorted()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_known_at_first() {
        let floors = EpochFloors::default();
        assert_eq!(floors.floor(Epoch(0)), Hlc(0));
        assert_eq!(floors.floor(Epoch(u64::MAX)), Hlc(0));
    }

    #[test]
    fn a_floor_that_would_fall_stays() {
        let mut floors = EpochFloors::default();
        floors.begin(Epoch(4), Hlc(40));
        floors.begin(Epoch(5), Hlc(30));
        floors.begin(Epoch(5), Hlc(90));
        assert_eq!(floors.floor(Epoch(3)), Hlc(0));
        assert_eq!(floors.floor(Epoch(4)), Hlc(40));
        assert_eq!(floors.floor(Epoch(5)), Hlc(40));
        assert_eq!(floors.floor(Epoch(6)), Hlc(40));
    }

    proptest! {
        #[test]
        fn floors_never_fall_and_never_exceed_what_was_agreed(
            steps in prop::collection::vec((1u64..4, 0u64..1_000), 1..400),
        ) {
            let mut floors = EpochFloors::default();
            let mut agreed = vec![(Epoch(0), Hlc(0))];
            let mut epoch = Epoch(0);
            for (step, floor) in steps {
                epoch = Epoch(epoch.0 + step);
                let floor = Hlc(floor);
                floors.begin(epoch, floor);
                let before = agreed.last().unwrap().1;
                agreed.push((epoch, floor.max(before)));
                prop_assert!(floors.is_sound());
                prop_assert_eq!(floors.floor(epoch), floor.max(before));
            }
            for asked in 0..=epoch.0 + 3 {
                // The last agreed floor at or before this epoch.
                let exact = agreed.iter().rev().find(|(of, _)| of.0 <= asked).unwrap().1;
                let told = floors.floor(Epoch(asked));
                prop_assert!(told <= exact);
                let remembered = asked + (EPOCH_FLOORS_MAX as u64) > epoch.0;
                prop_assert!(told == exact || !remembered || asked < agreed[1].0.0);
                prop_assert!(told <= floors.floor(Epoch(asked + 1)));
            }
        }
    }
}
