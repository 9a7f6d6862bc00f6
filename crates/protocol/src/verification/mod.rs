//! Verification: when have all replicas of a partition the same rows of an epoch, and who holds it up?
//!
//! A [`Ledger`] is what one replica knows of one partition. It says what to ask which other replica next
//! ([`Ledger::question_for`]), judges the questions of others ([`Ledger::answer`]), and says which epochs
//! are verified. It sends nothing: the caller walks the trees and exchanges rows where roots differ
//! (`crate::merkle`), and tells the ledger its own roots as they change.
//!
//! # Words
//!
//! The *group* of a partition are all members that hold it in any active ring, but for excluded ones. An epoch
//! is *closed* at a replica when it takes no more writes and hints of it; what it took before is in its set. It
//! is *settled* when it was verified: then nothing of it is ever merged again. `chain` sums up all settled
//! epochs: equal chains at equal `settled` mean equal sets in all of them.
//!
//! # Verified
//!
//! **Rule** (trap T6). An epoch is verified when every other member of the group has said `Equal` to the
//! root that this replica has still, all under one topology version, and every earlier epoch is settled.
//!
//! **Lemma.** From then on no set of the group ever changes, so each member may settle it alone.
//!
//! *Proof.* Let `D` be the set with that root, and let member `i` have answered at time `t_i`; it then had closed
//! the epoch and held exactly `D`. So had this replica at all those times: its set only grows, and it is `D`
//! before and after. Suppose some member holds an `x` not in `D` at some time. As closed epochs take nothing from
//! outside the group (writes and hints are fenced, and what a member repairs or pulls comes from a member's
//! set), the first member to hold it either held it before it closed, or got it from a member that held it before.
//! Follow `x` back: some member `k` held it without having got it from another. That was before `k` closed the
//! epoch, so before `t_k`; and sets only grow, so it held `x` at `t_k`, when it held exactly `D`. ∎
//!
//! The version matters for "from a member": a replica that still goes by another ring might pull from a node
//! outside this group. Whoever learns of a new version takes nothing more from nodes outside its group. And
//! whoever comes into a group is incomplete ([`Ledger::rebuild`]) until it has streamed from the member that has settled
//! most, when all others go by the same rings; what it took itself of epochs that its source has settled is void.
//! Were it not, it could bring a row of an epoch that others settled before it came.
//!
//! # Being wrong
//!
//! A member that has settled an epoch has seen all others equal. So if its chain is not the one that this
//! replica comes to with its own roots, *this replica* is wrong, by a lost or rotten row: it has to wipe the
//! partition and stream it ([`Ledger::needs_rebuild`]). At equal `settled` and different chains the majority of the group
//! is right; without one nobody is, and it is shown ([`Blocked::Diverged`]).
//!
//! **Invariants** (model-tested with lost, repeated and reordered messages, late writes, changing groups and
//! wiped replicas)
//!
//! 1. What one member has settled, all members of the group of that version have the same set of, for ever.
//! 2. Epochs are settled in order.
//! 3. When messages get through, everybody settles everything that all have closed.
//! 4. A member that is silent, behind or different holds up settling, and nothing else: what other pairs have
//!    found out is kept (trap T15).
//!
//! What it does not do: store anything, choose when to ask, bound the traffic, or collect.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use mds_types::mutation::{Mutation, is_on};
use mds_types::{Epoch, NodeId, TopologyVersion};
use xxhash_rust::xxh3::xxh3_128;

/// Epochs above the settled one that are compared at a time. Later ones wait: a partition that is held up
/// for long costs no more than this.
pub const EPOCHS_COMPARED_MAX: u64 = 64;

/// What one replica asks another about one partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// The epoch.
    pub epoch: Epoch,
    /// The asker's root of it.
    pub root: u128,
    /// The epoch up to which the asker has settled.
    pub settled: Epoch,
    /// The asker's chain up to there.
    pub chain: u128,
    /// The rings that the asker goes by.
    pub version: TopologyVersion,
}

/// What the other one says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Its root is the same; it has closed the epoch.
    Equal,
    /// Its root is another one; it has closed the epoch.
    Differs {
        /// That root.
        root: u128,
    },
    /// It still takes writes of the epoch.
    NotClosed {
        /// The last epoch that it has closed.
        closed: Epoch,
    },
    /// It has settled more than the asker.
    Ahead {
        /// Up to this epoch.
        settled: Epoch,
        /// Its chain up to there.
        chain: u128,
    },
    /// It has settled less than the asker, or is being rebuilt.
    Behind {
        /// Up to this epoch.
        settled: Epoch,
    },
    /// It has settled as much as the asker, but not the same.
    Diverged {
        /// Its chain.
        chain: u128,
    },
    /// It does not hold the partition. For the caller to say who has no ledger.
    NotHere,
    /// It goes by other rings.
    OtherTopology {
        /// Their version.
        version: TopologyVersion,
    },
}

/// What follows from an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Follow {
    /// Nothing to be done about it.
    Nothing,
    /// Walk the other's tree from this root, and get what is missing.
    Walk {
        /// Of this epoch.
        epoch: Epoch,
        /// The other's root.
        root: u128,
    },
}

/// Why a member holds the next epoch up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Blocked {
    /// It has not been asked yet.
    Unasked,
    /// It cannot be reached, or has not answered.
    Silent,
    /// It still takes writes of the epoch.
    NotClosed,
    /// Its rows are different; they are being exchanged.
    Differs,
    /// It has settled less, or is being rebuilt.
    Behind,
    /// It has settled something else, and there is no majority to say who is right.
    Diverged,
    /// It has settled more, and this replica has not yet checked that.
    Ahead,
    /// It does not hold the partition yet.
    NotHere,
    /// It goes by other rings still, or already.
    OtherTopology,
}

/// What is known of one other member.
#[derive(Clone, Debug, Default)]
struct Pair {
    /// The root at which it was equal, by epoch; above `settled`, [`EPOCHS_COMPARED_MAX`] at most.
    equal: BTreeMap<Epoch, u128>,
    /// Why it is not equal in the next epoch, as last heard.
    blocked: Option<Blocked>,
    /// How far it says to be, with its chain.
    ahead: Option<(Epoch, u128)>,
    /// Its chain, where it has settled as much as this replica but not the same.
    diverged: Option<u128>,
}

/// The chain after one more epoch.
pub fn chain_after(chain: u128, root: u128) -> u128 {
    let mut bytes = [0u8; 32];
    bytes[..16].copy_from_slice(&chain.to_le_bytes());
    bytes[16..].copy_from_slice(&root.to_le_bytes());
    xxh3_128(&bytes)
}

/// What one replica knows of the verification of one partition. See the module's chapter.
#[derive(Clone, Debug)]
pub struct Ledger {
    version: TopologyVersion,
    others: BTreeMap<NodeId, Pair>,
    closed: Epoch,
    settled: Epoch,
    chain: u128,
    /// Whether this replica holds everything that it should: not while it streams.
    is_complete: bool,
    /// This replica's roots of closed epochs above `settled`, as far as they were told.
    roots: BTreeMap<Epoch, u128>,
    #[cfg(test)]
    flaw: Option<Mutation>,
}

impl Ledger {
    /// For a replica that has settled up to `settled` with this `chain`, in a group with `others`.
    pub fn new(
        version: TopologyVersion,
        others: BTreeSet<NodeId>,
        settled: Epoch,
        chain: u128,
    ) -> Ledger {
        Ledger {
            version,
            others: others
                .into_iter()
                .map(|node| (node, Pair::default()))
                .collect(),
            closed: settled,
            settled,
            chain,
            is_complete: true,
            roots: BTreeMap::new(),
            #[cfg(test)]
            flaw: None,
        }
    }

    /// The rings have changed: what was found out under the old ones counts no more.
    pub fn set_group(&mut self, version: TopologyVersion, others: BTreeSet<NodeId>) {
        if version == self.version {
            return;
        }
        self.version = version;
        let mut old = std::mem::take(&mut self.others);
        let keeps = self.has(Mutation::VerifiedAcrossTopologies);
        self.others = others
            .into_iter()
            .map(|node| {
                let known = old.remove(&node).filter(|_| keeps);
                (node, known.unwrap_or_default())
            })
            .collect();
    }

    /// This replica takes no more writes and hints of epochs up to this one, and has merged what it took.
    pub fn close(&mut self, epoch: Epoch) {
        self.closed = self.closed.max(epoch);
    }

    /// This replica's root of a closed epoch. To be told before the ledger is asked anything, whenever it has
    /// changed: what was equal to another root counts no more.
    pub fn set_root(&mut self, epoch: Epoch, root: u128) {
        if self.is_compared(epoch) {
            self.roots.insert(epoch, root);
        }
    }

    /// The closed epochs whose roots are still to be told.
    pub fn roots_wanted(&self) -> impl Iterator<Item = Epoch> + '_ {
        let last = self
            .closed
            .0
            .min(self.settled.0.saturating_add(EPOCHS_COMPARED_MAX));
        let wanted = self.settled.0.saturating_add(1)..=last;
        wanted
            .map(Epoch)
            .filter(|epoch| !self.roots.contains_key(epoch))
    }

    fn is_compared(&self, epoch: Epoch) -> bool {
        epoch > self.settled
            && epoch <= self.closed
            && epoch.0 - self.settled.0 <= EPOCHS_COMPARED_MAX
    }

    /// What to ask a member next: the first epoch in which it was not yet seen equal to the present root.
    /// None if there is nothing to ask now.
    pub fn question_for(&self, node: NodeId) -> Option<Question> {
        let pair = self.others.get(&node).filter(|_| self.is_complete)?;
        let open = self
            .roots
            .iter()
            .find(|(epoch, root)| pair.equal.get(epoch) != Some(root));
        open.map(|(epoch, root)| Question {
            epoch: *epoch,
            root: *root,
            settled: self.settled,
            chain: self.chain,
            version: self.version,
        })
    }

    /// The answer to another member's question.
    pub fn answer(&self, question: &Question) -> Answer {
        if question.version != self.version && !self.has(Mutation::VerifiedAcrossTopologies) {
            return Answer::OtherTopology {
                version: self.version,
            };
        }
        if !self.is_complete || self.settled < question.settled {
            return Answer::Behind {
                settled: self.settled,
            };
        }
        if self.settled > question.settled {
            return Answer::Ahead {
                settled: self.settled,
                chain: self.chain,
            };
        }
        if self.chain != question.chain {
            return Answer::Diverged { chain: self.chain };
        }
        match self.roots.get(&question.epoch) {
            Some(root) if *root == question.root => Answer::Equal,
            Some(root) => Answer::Differs { root: *root },
            // Not closed, or so far ahead that it is not compared yet.
            None => Answer::NotClosed {
                closed: self.closed,
            },
        }
    }

    /// Takes the answer to a question that this ledger gave out. Repeated and late ones do no harm.
    pub fn on_answer(&mut self, from: NodeId, question: &Question, answer: Answer) -> Follow {
        let is_stale =
            question.version != self.version && !self.has(Mutation::VerifiedAcrossTopologies);
        // What was asked as of another past is about another past.
        if is_stale || question.settled != self.settled || question.chain != self.chain {
            return Follow::Nothing;
        }
        let compared = self.is_compared(question.epoch);
        let valid_by_disagreeing = self.has(Mutation::ValidByDisagreeing);
        let Some(pair) = self.others.get_mut(&from) else {
            return Follow::Nothing;
        };
        pair.ahead = None;
        pair.diverged = None;
        let (blocked, follow) = match answer {
            Answer::Equal => {
                if compared {
                    pair.equal.insert(question.epoch, question.root);
                }
                (None, Follow::Nothing)
            }
            Answer::Differs { .. } if valid_by_disagreeing => {
                pair.equal.insert(question.epoch, question.root);
                (None, Follow::Nothing)
            }
            Answer::Differs { root } => {
                let epoch = question.epoch;
                (Some(Blocked::Differs), Follow::Walk { epoch, root })
            }
            Answer::NotClosed { .. } => (Some(Blocked::NotClosed), Follow::Nothing),
            Answer::Ahead { settled, chain } => {
                pair.ahead = Some((settled, chain));
                (Some(Blocked::Ahead), Follow::Nothing)
            }
            Answer::Behind { .. } => (Some(Blocked::Behind), Follow::Nothing),
            Answer::Diverged { chain } => {
                pair.diverged = Some(chain);
                (Some(Blocked::Diverged), Follow::Nothing)
            }
            Answer::NotHere => (Some(Blocked::NotHere), Follow::Nothing),
            Answer::OtherTopology { .. } => (Some(Blocked::OtherTopology), Follow::Nothing),
        };
        pair.blocked = blocked;
        follow
    }

    /// A member cannot be reached, or has not answered in time.
    pub fn on_silent(&mut self, node: NodeId) {
        if let Some(pair) = self.others.get_mut(&node) {
            pair.blocked = Some(Blocked::Silent);
        }
    }

    /// The epoch up to which all members were seen equal, the settled ones included. While the ring changes, a
    /// replica is ready when this has reached the last epoch before E1.
    pub fn equal_through(&self) -> Epoch {
        let mut through = self.settled;
        while self.is_equal_everywhere(Epoch(through.0 + 1)) {
            through.0 += 1;
        }
        through
    }

    fn is_equal_everywhere(&self, epoch: Epoch) -> bool {
        let Some(root) = self.roots.get(&epoch).filter(|_| self.is_complete) else {
            return false;
        };
        let differs = |pair: &&Pair| pair.equal.get(&epoch) != Some(root);
        let missing = self.others.values().filter(differs).count();
        missing == 0 || (missing == 1 && self.has(Mutation::VerifiedWithoutOne))
    }

    /// The epoch to settle next, if it is verified: by all members, or by one that has settled it and
    /// whose past is this replica's own. With `is_changing`, while a change of the ring is open on the partition,
    /// only the latter.
    pub fn verified(&self, is_changing: bool) -> Option<Epoch> {
        let next = Epoch(self.settled.0 + 1);
        let confirmed = self
            .others
            .values()
            .filter_map(|pair| pair.ahead)
            .any(|(settled, chain)| settled >= next && self.chain_through(settled) == Some(chain));
        (confirmed || (!is_changing && self.is_equal_everywhere(next))).then_some(next)
    }

    /// The chain that this replica comes to with its own roots.
    fn chain_through(&self, epoch: Epoch) -> Option<u128> {
        let mut chain = self.chain;
        for next in self.settled.0 + 1..=epoch.0 {
            chain = chain_after(chain, *self.roots.get(&Epoch(next))?);
        }
        Some(chain)
    }

    /// What to make durable for a verified epoch: the new chain. None if it is not the next one.
    pub fn chain_with(&self, epoch: Epoch) -> Option<u128> {
        (epoch.0 == self.settled.0 + 1)
            .then(|| self.chain_through(epoch))
            .flatten()
    }

    /// The next epoch has been settled durably.
    pub fn settle(&mut self, epoch: Epoch) {
        let Some(chain) = self.chain_with(epoch) else {
            return;
        };
        self.settled = epoch;
        self.chain = chain;
        self.roots.remove(&epoch);
        for pair in self.others.values_mut() {
            pair.equal.remove(&epoch);
            // Who is ahead of what was settled stays ahead; everything else has to be asked anew.
            pair.ahead = pair.ahead.filter(|(settled, _)| *settled > epoch);
            pair.blocked = pair.ahead.map(|_| Blocked::Ahead);
            pair.diverged = None;
        }
    }

    /// Whether this replica is wrong and has to wipe the partition and stream it: a member has settled what this
    /// replica does not have, or most have settled something else.
    pub fn needs_rebuild(&self) -> bool {
        let pairs = || self.others.values();
        let contradicted = pairs()
            .filter_map(|pair| pair.ahead)
            .any(|(settled, chain)| {
                // Where roots are not known yet, it shows later. What is too far ahead cannot be caught up with.
                match self.chain_through(settled) {
                    Some(own) => own != chain,
                    None => settled.0 - self.settled.0 > EPOCHS_COMPARED_MAX,
                }
            });
        let mut votes: BTreeMap<u128, usize> = BTreeMap::new();
        for chain in pairs().filter_map(|pair| pair.diverged) {
            *votes.entry(chain).or_default() += 1;
        }
        let group = self.others.len() + 1;
        let outvoted = votes.values().any(|votes| 2 * votes > group);
        self.is_complete && (contradicted || outvoted)
    }

    /// The partition is being wiped, or has just been gained: until it is streamed this replica counts for
    /// nothing.
    pub fn rebuild(&mut self) {
        self.is_complete = false;
        self.settled = Epoch(0);
        self.chain = 0;
        self.forget();
    }

    /// The partition was streamed from a member that had settled up to `settled` with this chain, with its rows
    /// of all later epochs.
    pub fn rebuilt(&mut self, settled: Epoch, chain: u128) {
        self.is_complete = true;
        self.settled = settled;
        self.chain = chain;
        self.closed = self.closed.max(settled);
        self.forget();
    }

    fn forget(&mut self) {
        self.roots.clear();
        for pair in self.others.values_mut() {
            *pair = Pair::default();
        }
    }

    /// Who holds up the next epoch, and why. Empty if nothing waits.
    pub fn blocked_by(&self) -> Vec<(NodeId, Blocked)> {
        let next = Epoch(self.settled.0 + 1);
        let Some(root) = self.roots.get(&next) else {
            return Vec::new();
        };
        let open = self
            .others
            .iter()
            .filter(|(_, pair)| pair.equal.get(&next) != Some(root));
        open.map(|(node, pair)| (*node, pair.blocked.unwrap_or(Blocked::Unasked)))
            .collect()
    }

    /// The epoch up to which this replica has settled.
    pub fn settled(&self) -> Epoch {
        self.settled
    }

    /// The chain up to there.
    pub fn chain(&self) -> u128 {
        self.chain
    }

    /// The rings that it goes by.
    pub fn version(&self) -> TopologyVersion {
        self.version
    }

    /// Whether a bug was planted.
    fn has(&self, flaw: Mutation) -> bool {
        #[cfg(test)]
        if self.flaw == Some(flaw) {
            return true;
        }
        is_on(flaw)
    }
}
