//! What a request needs of one ring, or of two.

use std::fmt;

use mds_types::RingUse;

use super::ReplicaSet;

/// One of the two rings of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RingSide {
    /// The present ring.
    Current,
    /// The ring that it changes to.
    Next,
}

impl fmt::Display for RingSide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RingSide::Current => "the current ring",
            RingSide::Next => "the next ring",
        })
    }
}

/// A quorum in one replica set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Need {
    /// How many of the replicas.
    pub needed: u8,
    /// The replica set of one ring, among the replicas of the request.
    pub replicas: ReplicaSet,
}

impl Need {
    /// Nothing: this ring is not asked.
    pub const NONE: Need = Need {
        needed: 0,
        replicas: ReplicaSet::EMPTY,
    };

    fn got(&self, replicas: ReplicaSet) -> u8 {
        self.replicas.intersection(replicas).len()
    }

    fn is_met_by(&self, replicas: ReplicaSet) -> bool {
        self.got(replicas) >= self.needed
    }
}

/// Quorums in both rings. A ring that needs nothing is [`Need::NONE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Needs {
    /// In the current ring.
    pub current: Need,
    /// In the next ring.
    pub next: Need,
}

/// How far one ring is from its quorum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shortfall {
    /// Which ring.
    pub ring: RingSide,
    /// The quorum.
    pub needed: u8,
    /// Replicas that count for it.
    pub got: u8,
    /// Replicas in the set.
    pub of: u8,
}

impl Needs {
    /// One ring: `needed` of the first `of` replicas.
    pub fn single(needed: u8, of: u8) -> Needs {
        let replicas = ReplicaSet::all(of);
        Needs {
            current: Need { needed, replicas },
            next: Need::NONE,
        }
    }

    /// Of the needs in each ring, those of the rings that a request uses.
    pub fn used(by: RingUse, current: Need, next: Need) -> Needs {
        Needs {
            current: if by.current { current } else { Need::NONE },
            next: if by.next { next } else { Need::NONE },
        }
    }

    /// Whether these replicas are a quorum in each ring.
    pub fn are_met_by(&self, replicas: ReplicaSet) -> bool {
        self.current.is_met_by(replicas) && self.next.is_met_by(replicas)
    }

    /// The first ring in which these replicas are no quorum.
    pub fn unmet_by(&self, replicas: ReplicaSet) -> Option<Shortfall> {
        if !self.current.is_met_by(replicas) {
            Some(self.short(RingSide::Current, replicas))
        } else if !self.next.is_met_by(replicas) {
            Some(self.short(RingSide::Next, replicas))
        } else {
            None
        }
    }

    /// The ring that is furthest from its quorum with these replicas: for numbers that people read.
    pub fn shortfall(&self, replicas: ReplicaSet) -> Shortfall {
        let missing = |need: &Need| need.needed.saturating_sub(need.got(replicas));
        let ring = match missing(&self.next) > missing(&self.current) || self.current == Need::NONE
        {
            true => RingSide::Next,
            false => RingSide::Current,
        };
        self.short(ring, replicas)
    }

    /// The replicas of the rings in which `replicas` are no quorum.
    pub fn lacking(&self, replicas: ReplicaSet) -> ReplicaSet {
        let [current, next] =
            [&self.current, &self.next].map(|need| match need.is_met_by(replicas) {
                true => ReplicaSet::EMPTY,
                false => need.replicas,
            });
        current.union(next)
    }

    fn short(&self, ring: RingSide, replicas: ReplicaSet) -> Shortfall {
        let need = match ring {
            RingSide::Current => &self.current,
            RingSide::Next => &self.next,
        };
        Shortfall {
            ring,
            needed: need.needed,
            got: need.got(replicas),
            of: need.replicas.len(),
        }
    }

    /// The planted bug: one quorum, counted over the union of both replica sets.
    pub(super) fn over_the_union(self) -> Needs {
        Needs {
            current: Need {
                needed: self.current.needed.max(self.next.needed),
                replicas: self.current.replicas.union(self.next.replicas),
            },
            next: Need::NONE,
        }
    }
}
