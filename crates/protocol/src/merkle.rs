//! Merkle trees over buckets, and the walk that finds where two of them differ.
//!
//! A leaf is the hash of one bucket's rows; an inner node is the hash of its [`FANOUT`] children; equal
//! roots are equal sets (Merkle, *A Digital Signature Based on a Conventional Encryption Function*,
//! 1987; for replicas: DeCandia et al., *Dynamo*, 2007, section 4.7). The tree is built from leaves that
//! are kept up to date as rows arrive, so it costs nothing but a few hashes when it is asked for.
//!
//! [`Walk`] compares one's own tree with a remote one, breadth first: it asks for the hashes of one
//! level's nodes, keeps those that differ, and goes on with their children. It is a plain value that
//! sends nothing.
//!
//! **Invariants** (property-tested)
//!
//! 1. A walk ends with exactly the leaves that differ.
//! 2. It asks for at most `FANOUT` hashes below each node that differs, and never for more than
//!    [`NODES_ASKED_MAX`] at once.
//!
//! What it does not do: know what rows are, or notice that the remote tree changes while it is walked: then the
//! leaves that it finds are those of no single moment, which costs a further comparison and nothing else.

use xxhash_rust::xxh3::xxh3_128;

/// Children of an inner node.
pub const FANOUT: usize = 8;

/// Hashes that a walk asks for at once, at most.
pub const NODES_ASKED_MAX: usize = 512;

/// A tree, complete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tree {
    /// The root's level first, the leaves' last.
    levels: Vec<Vec<u128>>,
}

impl Tree {
    /// The tree over these leaves: for each bucket the sum of its rows' hashes, and their number.
    pub fn new(sums: &[u128], counts: &[u32]) -> Tree {
        let leaf = |(sum, count): (&u128, &u32)| match (sum, count) {
            // Most buckets of most epochs are empty: they cost nothing.
            (0, 0) => 0,
            (sum, count) => {
                let mut bytes = [0; 20];
                bytes[..16].copy_from_slice(&sum.to_le_bytes());
                bytes[16..].copy_from_slice(&count.to_le_bytes());
                xxh3_128(&bytes)
            }
        };
        let mut levels = vec![sums.iter().zip(counts).map(leaf).collect::<Vec<u128>>()];
        while let Some(level) = levels.last()
            && level.len() > 1
        {
            levels.push(level.chunks(FANOUT).map(parent).collect());
        }
        levels.reverse();
        Tree { levels }
    }

    /// The hash of everything. Zero if there is nothing.
    pub fn root(&self) -> u128 {
        self.levels[0].first().copied().unwrap_or(0)
    }

    /// Levels, the root's and the leaves' included.
    pub fn depth(&self) -> u32 {
        self.levels.len() as u32
    }

    /// The hashes of these nodes of a level; `None` if there are no such nodes.
    pub fn hashes(&self, level: u32, nodes: &[u32]) -> Option<Vec<u128>> {
        let level = self.levels.get(level as usize)?;
        let hash = |&node: &u32| level.get(node as usize).copied();
        nodes.iter().map(hash).collect()
    }
}

fn parent(children: &[u128]) -> u128 {
    if children.iter().all(|&child| child == 0) {
        return 0;
    }
    let mut bytes = [0; 16 * FANOUT];
    for (place, child) in bytes.chunks_exact_mut(16).zip(children) {
        place.copy_from_slice(&child.to_le_bytes());
    }
    xxh3_128(&bytes[..16 * children.len()])
}

/// The comparison of one's own tree with a remote one whose root differs.
#[derive(Clone, Debug)]
pub struct Walk {
    mine: Tree,
    level: u32,
    /// Nodes of the level that have to be compared still, growing.
    open: Vec<u32>,
    /// Children of those that differ: nodes of the next level.
    below: Vec<u32>,
    /// Leaves that differ.
    leaves: Vec<u16>,
}

/// What a remote tree answered makes no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{got} hashes were answered where {asked} were asked for")]
pub struct WrongAnswer {
    asked: usize,
    got: usize,
}

impl Walk {
    /// Begins below the root.
    pub fn new(mine: Tree) -> Walk {
        let mut walk = Walk {
            level: 0,
            open: Vec::new(),
            below: vec![0],
            leaves: Vec::new(),
            mine,
        };
        match walk.mine.depth() {
            // A single bucket: the root is the leaf.
            1 => walk.leaves = vec![0],
            _ => {
                walk.below = children(0, walk.width(1));
                walk.descend();
            }
        }
        walk
    }

    fn width(&self, level: u32) -> usize {
        self.mine.levels.get(level as usize).map_or(0, Vec::len)
    }

    fn descend(&mut self) {
        self.level += 1;
        self.open = std::mem::take(&mut self.below);
    }

    /// The nodes to ask the remote tree for: level and places. `None`: the walk is over.
    pub fn ask(&self) -> Option<(u32, &[u32])> {
        let asked = self.open.len().min(NODES_ASKED_MAX);
        (asked > 0).then(|| (self.level, &self.open[..asked]))
    }

    /// Takes the hashes of the nodes that [`Walk::ask`] says.
    ///
    /// # Errors
    /// If they are not as many; the walk is of no more use.
    pub fn answer(&mut self, hashes: &[u128]) -> Result<(), WrongAnswer> {
        let asked = self.open.len().min(NODES_ASKED_MAX);
        if hashes.len() != asked {
            let got = hashes.len();
            return Err(WrongAnswer { asked, got });
        }
        let rest = self.open.split_off(asked);
        let asked = std::mem::replace(&mut self.open, rest);
        let mine = &self.mine.levels[self.level as usize];
        let is_leaf = self.level + 1 == self.mine.depth();
        for (&node, hash) in asked.iter().zip(hashes) {
            if mine[node as usize] == *hash {
                continue;
            }
            match is_leaf {
                true => self.leaves.push(node as u16),
                false => self
                    .below
                    .extend(children(node, self.width(self.level + 1))),
            }
        }
        if self.open.is_empty() && !is_leaf {
            self.descend();
        }
        Ok(())
    }

    /// The leaves that were found to differ so far; all of them when the walk is over.
    pub fn differing(&self) -> &[u16] {
        &self.leaves
    }
}

fn children(node: u32, width: usize) -> Vec<u32> {
    let first = node * FANOUT as u32;
    (first..(first + FANOUT as u32).min(width as u32)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tree(leaves: &[u64]) -> Tree {
        let sums: Vec<u128> = leaves.iter().map(|&leaf| u128::from(leaf)).collect();
        let counts: Vec<u32> = leaves.iter().map(|&leaf| u32::from(leaf != 0)).collect();
        Tree::new(&sums, &counts)
    }

    /// Walks to the end; also how many hashes were asked for, and in how many messages.
    fn walk(mine: &Tree, remote: &Tree) -> (Vec<u16>, usize, usize) {
        let mut walk = Walk::new(mine.clone());
        let (mut hashes, mut messages) = (0, 0);
        while let Some((level, nodes)) = walk.ask() {
            assert!(nodes.len() <= NODES_ASKED_MAX);
            hashes += nodes.len();
            messages += 1;
            let answer = remote.hashes(level, nodes).unwrap();
            walk.answer(&answer).unwrap();
        }
        (walk.differing().to_vec(), hashes, messages)
    }

    proptest! {
        #[test]
        fn a_walk_finds_exactly_what_differs(
            leaves in prop::collection::vec(0u64..3, 1..600),
            changes in prop::collection::vec((any::<prop::sample::Index>(), 0u64..5), 0..6),
        ) {
            let mut other = leaves.clone();
            for (at, value) in changes {
                other[at.index(leaves.len())] = value;
            }
            let (mine, remote) = (tree(&leaves), tree(&other));
            let differs = |&leaf: &usize| leaves[leaf] != other[leaf];
            let expected: Vec<u16> = (0..leaves.len()).filter(differs).map(|l| l as u16).collect();
            prop_assert_eq!(mine.root() == remote.root(), expected.is_empty());
            if !expected.is_empty() {
                let (found, hashes, _) = walk(&mine, &remote);
                let bound = FANOUT * mine.depth() as usize * expected.len();
                prop_assert!(hashes <= bound, "{hashes} hashes for {} leaves", expected.len());
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn one_leaf_of_sixty_four_costs_two_messages() {
        let mut other = vec![7; 64];
        other[40] = 8;
        let (found, hashes, messages) = walk(&tree(&[7; 64]), &tree(&other));
        assert_eq!((found, hashes, messages), (vec![40], 16, 2));
    }

    #[test]
    fn nothing_at_all_has_no_hash() {
        assert_eq!(tree(&[0; 64]).root(), 0);
        assert_ne!(tree(&[0, 1]).root(), tree(&[1, 0]).root());
    }

    #[test]
    fn a_wrong_number_of_hashes_is_refused() {
        let mut walk = Walk::new(tree(&[1; 64]));
        let wrong = walk.answer(&[1; 7]);
        assert_eq!(wrong, Err(WrongAnswer { asked: 8, got: 7 }));
        assert_eq!(tree(&[1; 64]).hashes(1, &[8]), None);
        assert_eq!(tree(&[1; 64]).hashes(9, &[0]), None);
    }
}
