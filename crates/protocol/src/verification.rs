//! Verification of one partition: who has been seen to hold the same sets, and what follows.
//!
//! A replica compares the roots of its closed epochs with each other member of the partition's group, by
//! itself and in any order, and remembers with which root each was seen *equal*. When all others were
//! seen equal to the same root, and that is the replica's own root still, the epoch is verified there, and
//! its watermark may rise: [`Progress::verified`].
//!
//! # Why a replica may raise its watermark alone
//!
//! **Lemma.** Let X have seen every other member M equal to root D, each at some time t(M), in a closed epoch, and
//! let X's own root be D now. Then the sets of all members are equal from now on.
//!
//! *Proof.* An epoch is closed at a member when nothing gets into its set but what another member's set has. So
//! sets only grow (per key, the version only grows), and a member's set at any time is made of what members had
//! before. X's root was D when it was compared and is D now; its set only grew; so it was D's set S all the
//! time. At t(M), M's set was S. Take the last of these times. Each member's set contained S from its t(M)
//! on. Suppose some set holds something beyond S at some time; take the earliest such moment. What came in then came
//! from a member that had it before: a contradiction, unless it had it before its own t(M), but then its set at t(M)
//! would have contained it, and that set was S. So no set ever goes beyond S, and none falls back. *(Equal roots are
//! taken for equal sets: 128-bit hashes.)*
//!
//! It rests on three things that are not visible here: epochs are closed durably before they are compared (trap T8); *all*
//! members of all rings in force are in the group, under one version of the rings (traps T5, T6); and nothing is
//! merged from outside the group, however late (traps T9-T12).
//!
//! # The chain
//!
//! A member that is ahead has dropped its rows, so there is no root to compare with. It was only able to get
//! ahead because everybody, this replica included, had been seen equal. It says so with its **chain**, a hash over the roots
//! of all epochs it has settled. Who computes the same chain from his own roots follows; who does not is *wrong himself* (trap
//! T6) and has to get the partition anew.
//!
//! What it does not do: read roots, send anything, or decide when to ask again.

use std::collections::BTreeMap;

use mds_types::mutation::{Mutation, is_on};
use mds_types::{Epoch, NodeId, TopologyVersion};
use xxhash_rust::xxh3::xxh3_128;

/// Epochs beyond the watermark that are compared at a time; later ones wait. Bounds memory when a member
/// is away for long.
pub const EPOCHS_AHEAD_MAX: u64 = 64;

/// The chain after one more epoch with this root. A partition's chain begins at zero.
pub fn chain(before: u128, epoch: Epoch, root: u128) -> u128 {
    let mut bytes = [0; 40];
    bytes[..16].copy_from_slice(&before.to_le_bytes());
    bytes[16..24].copy_from_slice(&epoch.0.to_le_bytes());
    bytes[24..].copy_from_slice(&root.to_le_bytes());
    xxh3_128(&bytes)
}

/// What a member answered about one epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Its closed set has the root that it was asked about.
    Equal,
    /// It has another root.
    Differs,
    /// It has not closed the epoch.
    NotClosed,
    /// Nothing is known: it does not hold the partition yet, knows another ring, failed, or is not there.
    Nothing,
}

/// What one member was seen to have.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// By epoch, the root that it was equal to.
    equal: BTreeMap<Epoch, u128>,
}

/// How far the verification of one partition is, at one replica.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The version of the rings that all of it was seen under.
    version: TopologyVersion,
    /// The other members of the group, sorted, with what each was seen to have.
    members: Vec<(NodeId, Seen)>,
}

impl Progress {
    /// Goes by this group from now on: all replicas of the partition in all rings in force, this one and
    /// excluded ones left out. What was seen under another version counts no more.
    pub fn regroup(&mut self, version: TopologyVersion, members: impl IntoIterator<Item = NodeId>) {
        let mut members: Vec<NodeId> = members.into_iter().collect();
        members.sort_unstable();
        members.dedup();
        if is_on(Mutation::VerifiedWithoutOne) && members.len() > 1 {
            members.pop();
        }
        let is_same = self
            .members
            .iter()
            .map(|(node, _)| *node)
            .eq(members.iter().copied());
        if is_same && (self.version == version || is_on(Mutation::VerifiedAcrossTopologies)) {
            self.version = version;
            return;
        }
        *self = Progress {
            version,
            members: members
                .into_iter()
                .map(|node| (node, Seen::default()))
                .collect(),
        };
    }

    /// The others.
    pub fn members(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().map(|(node, _)| *node)
    }

    /// The epochs that are to be compared now, given the watermark and the epoch closed last.
    pub fn open(settled: Epoch, closed: Epoch) -> impl Iterator<Item = Epoch> {
        let last = closed.0.min(settled.0.saturating_add(EPOCHS_AHEAD_MAX));
        (settled.0 + 1..=last).map(Epoch)
    }

    /// The open epochs in which something is left to compare: not all others were seen equal to one and
    /// the same root.
    pub fn pending(&self, settled: Epoch, closed: Epoch) -> Vec<Epoch> {
        Progress::open(settled, closed)
            .filter(|&epoch| self.root_of_all(epoch).is_none())
            .collect()
    }

    /// Whether a member has to be asked about an epoch of which this is this replica's root now.
    pub fn has_to_ask(&self, member: NodeId, epoch: Epoch, root: u128) -> bool {
        self.seen(member)
            .is_some_and(|seen| seen.equal.get(&epoch) != Some(&root))
    }

    /// The root that all others were seen equal to.
    fn root_of_all(&self, epoch: Epoch) -> Option<u128> {
        let mut roots = self.members.iter().map(|(_, seen)| seen.equal.get(&epoch));
        let first = *roots.next()??;
        roots.all(|root| root == Some(&first)).then_some(first)
    }

    fn seen(&self, member: NodeId) -> Option<&Seen> {
        let (_, seen) = self.members.iter().find(|(node, _)| *node == member)?;
        Some(seen)
    }

    /// A member's answer about an epoch that it was told this replica's `root` of, under this version of the
    /// rings.
    pub fn heard(
        &mut self,
        version: TopologyVersion,
        member: NodeId,
        epoch: Epoch,
        root: u128,
        verdict: Verdict,
    ) {
        if version != self.version && !is_on(Mutation::VerifiedAcrossTopologies) {
            return;
        }
        let is_equal = verdict == Verdict::Equal
            || (verdict == Verdict::Differs && is_on(Mutation::ValidByDisagreeing));
        let known = self.members.iter_mut().find(|(node, _)| *node == member);
        if is_equal && let Some((_, seen)) = known {
            seen.equal.insert(epoch, root);
        }
    }

    /// This replica's set of an epoch has changed: nobody was seen equal to what it is now.
    pub fn changed(&mut self, epoch: Epoch) {
        for (_, seen) in &mut self.members {
            seen.equal.remove(&epoch);
        }
    }

    /// The epochs behind the watermark, without a gap, in which all others were seen equal to one and the same
    /// root: the roots that this replica's own have to be. If one is not, tell [`Progress::changed`].
    pub fn verified(&self, settled: Epoch, closed: Epoch) -> Vec<(Epoch, u128)> {
        Progress::open(settled, closed)
            .map_while(|epoch| Some((epoch, self.root_of_all(epoch)?)))
            .collect()
    }

    /// Whether nobody else holds the partition: then there is nobody to differ from.
    pub fn is_alone(&self) -> bool {
        self.members.is_empty()
    }

    /// The members that keep the first open epoch from being verified.
    pub fn blocked_by(&self, settled: Epoch) -> impl Iterator<Item = NodeId> {
        let epoch = Epoch(settled.0 + 1);
        let members = self.members.iter();
        members
            .filter(move |(_, seen)| !seen.equal.contains_key(&epoch))
            .map(|(node, _)| *node)
    }

    /// Forgets what lies at or below the watermark.
    pub fn forget(&mut self, settled: Epoch) {
        for (_, seen) in &mut self.members {
            seen.equal = seen.equal.split_off(&Epoch(settled.0 + 1));
        }
    }
}

#[cfg(test)]
mod tests;
