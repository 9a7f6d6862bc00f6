//! Merkle trees over the buckets of one (partition, epoch), and the walk that finds where two differ.
//!
//! A leaf is a bucket: the sum of its rows' hashes and their number. An inner node is the hash of its up to
//! [`FANOUT`] children. Equal roots mean equal sets; where they differ, the walk asks for the children of nodes
//! that differ, level by level, and ends with the buckets whose rows have to be exchanged. (Merkle, *A Digital
//! Signature Based on a Conventional Encryption Function*, 1987; as anti-entropy: DeCandia et al.,
//! *Dynamo*, 2007, section 4.7.)
//!
//! **Invariants** (tested)
//!
//! 1. The walk ends with exactly the leaves that differ.
//! 2. It fetches [`FANOUT`] hashes at most for each inner node above a differing leaf, and nothing else:
//!    one differing bucket of 64 costs 16 hashes, all of them 72.
//! 3. Every answer is checked against the hash it has to add up to: a remote tree that has changed meanwhile
//!    is noticed ([`WalkError::Changed`]), and the walk begins anew. So a walk always describes one state.
//!
//! Hashes are 128 bits of xxh3: strong against chance, not against an adversary who may choose rows; members
//! trust each other.
//!
//! What it does not do: compute leaves, exchange rows, or decide who is right.

use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Children of an inner node, at most.
pub const FANOUT: usize = 8;

/// Leaves of a tree, unless configured otherwise.
pub const LEAVES_DEFAULT: usize = 64;

/// Leaves of a tree, at most.
pub const LEAVES_MAX: usize = 4096;

/// Nodes asked for in one request, at most.
pub const NODES_ASKED_MAX: usize = 64;

/// Bytes of a hash in a message.
const HASH_BYTES: u64 = 16;

/// Bytes of a node's name in a message.
const NODE_BYTES: u64 = 4;

/// A bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Leaf {
    /// Wrapping sum of the hashes of its rows.
    pub hash: u128,
    /// How many rows.
    pub rows: u64,
}

/// A node of a tree: level 0 is the root, `index` counts from the left.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Node {
    /// Distance from the root.
    pub level: u8,
    /// Place within the level.
    pub index: u16,
}

impl Node {
    /// The root.
    pub const ROOT: Node = Node { level: 0, index: 0 };

    fn child(self, number: usize) -> Node {
        Node {
            level: self.level + 1,
            index: self.index * FANOUT as u16 + number as u16,
        }
    }
}

/// The tree over the buckets of one (partition, epoch).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tree {
    /// The root's level first, the leaves' last.
    levels: Vec<Vec<u128>>,
}

impl Tree {
    /// Builds the tree. No leaves count as one empty one.
    ///
    /// # Panics
    /// With more than [`LEAVES_MAX`] leaves: a programming error.
    pub fn new(leaves: &[Leaf]) -> Tree {
        assert!(leaves.len() <= LEAVES_MAX, "{} leaves", leaves.len());
        let mut bottom: Vec<u128> = leaves.iter().map(hash_of_leaf).collect();
        if bottom.is_empty() {
            bottom.push(hash_of_leaf(&Leaf::default()));
        }
        let mut levels = vec![bottom];
        // Even a single leaf has a root above it: a leaf's hash and a root's are never confused.
        while levels.len() == 1 || levels[0].len() > 1 {
            let above = levels[0].chunks(FANOUT).map(hash_of_node).collect();
            levels.insert(0, above);
        }
        Tree { levels }
    }

    /// The hash of everything.
    pub fn root(&self) -> u128 {
        self.levels[0][0]
    }

    /// How many leaves.
    pub fn leaves(&self) -> usize {
        self.levels[self.depth()].len()
    }

    /// The hashes of a node's children, from the left. None for leaves, and for what does not exist.
    pub fn children(&self, node: Node) -> Option<&[u128]> {
        let exists = usize::from(node.index) < self.levels.get(usize::from(node.level))?.len();
        let below = self.levels.get(usize::from(node.level) + 1)?;
        let start = usize::from(node.index) * FANOUT;
        let end = (start + FANOUT).min(below.len());
        exists.then(|| &below[start..end])
    }

    /// The level of the leaves.
    fn depth(&self) -> usize {
        self.levels.len() - 1
    }

    fn hash(&self, node: Node) -> u128 {
        self.levels[usize::from(node.level)][usize::from(node.index)]
    }
}

/// Leaves and inner nodes are hashed apart, so that one cannot stand for the other.
const LEAF_SEED: u64 = 0x6c65_6166;
const NODE_SEED: u64 = 0x6e6f_6465;

fn hash_of_leaf(leaf: &Leaf) -> u128 {
    let mut bytes = [0u8; 24];
    bytes[..16].copy_from_slice(&leaf.hash.to_le_bytes());
    bytes[16..].copy_from_slice(&leaf.rows.to_le_bytes());
    xxh3_128_with_seed(&bytes, LEAF_SEED)
}

fn hash_of_node(children: &[u128]) -> u128 {
    let mut bytes = [0u8; FANOUT * HASH_BYTES as usize];
    for (place, child) in bytes.chunks_exact_mut(HASH_BYTES as usize).zip(children) {
        place.copy_from_slice(&child.to_le_bytes());
    }
    let used = children.len().min(FANOUT) * HASH_BYTES as usize;
    xxh3_128_with_seed(&bytes[..used], NODE_SEED)
}

/// Why a walk cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WalkError {
    /// The answer does not add up to the hash that the remote tree gave before: it has changed since.
    #[error("the remote tree has changed during the walk: compare roots again")]
    Changed,
    /// The answer is about something that was not asked for, or has the wrong form.
    #[error("the answer does not fit the question: is the remote tree of another shape?")]
    Unexpected,
}

/// What a walk has cost so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WalkCost {
    /// Requests.
    pub messages: u64,
    /// Hashes in the answers.
    pub hashes: u64,
    /// Bytes of nodes asked for and hashes answered, without what frames them.
    pub bytes: u64,
}

/// The walk of one replica through a remote tree. See the module's chapter.
#[derive(Clone, Debug)]
pub struct Walk {
    mine: Tree,
    /// Differing inner nodes whose children are to be asked for, with the remote's hash of each.
    open: Vec<(Node, u128)>,
    /// Asked for and not answered yet.
    asked: Vec<(Node, u128)>,
    differing: Vec<u16>,
    cost: WalkCost,
}

impl Walk {
    /// Begins with the two roots. If they are equal, the walk has ended.
    pub fn new(mine: Tree, remote_root: u128) -> Walk {
        let open = match mine.root() == remote_root {
            true => Vec::new(),
            false => vec![(Node::ROOT, remote_root)],
        };
        Walk {
            mine,
            open,
            asked: Vec::new(),
            differing: Vec::new(),
            cost: WalkCost::default(),
        }
    }

    /// The nodes whose children to ask for now, at most [`NODES_ASKED_MAX`]; none while an answer is
    /// outstanding, and none when the walk has ended.
    pub fn next_request(&mut self) -> Option<Vec<Node>> {
        if !self.asked.is_empty() || self.open.is_empty() {
            return None;
        }
        let count = self.open.len().min(NODES_ASKED_MAX);
        self.asked = self.open.drain(..count).collect();
        self.cost.messages += 1;
        self.cost.bytes += count as u64 * NODE_BYTES;
        Some(self.asked.iter().map(|(node, _)| *node).collect())
    }

    /// Asks again for what was asked for last: the answer was lost.
    pub fn retry(&mut self) -> Option<Vec<Node>> {
        self.open.splice(0..0, self.asked.drain(..));
        self.next_request()
    }

    /// The answer: for each node asked for, in that order, the hashes of its children.
    ///
    /// # Errors
    /// The walk is over then: compare roots again.
    pub fn on_answer(&mut self, answer: &[Vec<u128>]) -> Result<(), WalkError> {
        if answer.len() != self.asked.len() {
            return Err(WalkError::Unexpected);
        }
        for ((node, remote), children) in std::mem::take(&mut self.asked).into_iter().zip(answer) {
            let own = self.mine.children(node).ok_or(WalkError::Unexpected)?;
            if own.len() != children.len() {
                return Err(WalkError::Unexpected);
            }
            if hash_of_node(children) != remote {
                return Err(WalkError::Changed);
            }
            self.cost.hashes += children.len() as u64;
            self.cost.bytes += children.len() as u64 * HASH_BYTES;
            for (number, theirs) in children.iter().enumerate() {
                let child = node.child(number);
                if self.mine.hash(child) == *theirs {
                    continue;
                }
                if usize::from(child.level) == self.mine.depth() {
                    self.differing.push(child.index);
                } else {
                    self.open.push((child, *theirs));
                }
            }
        }
        Ok(())
    }

    /// Whether all differing leaves are known.
    pub fn is_over(&self) -> bool {
        self.open.is_empty() && self.asked.is_empty()
    }

    /// The leaves that differ, as far as known.
    pub fn differing(&self) -> &[u16] {
        &self.differing
    }

    /// What it has cost so far.
    pub fn cost(&self) -> WalkCost {
        self.cost
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn leaf(row: u64) -> Leaf {
        Leaf {
            hash: u128::from(row),
            rows: u64::from(row > 0),
        }
    }

    fn answer(theirs: &Tree, nodes: &[Node]) -> Vec<Vec<u128>> {
        let children = nodes
            .iter()
            .map(|node| theirs.children(*node).unwrap().to_vec());
        children.collect()
    }

    fn walk(mine: &Tree, theirs: &Tree) -> Walk {
        let mut walk = Walk::new(mine.clone(), theirs.root());
        while let Some(nodes) = walk.next_request() {
            walk.on_answer(&answer(theirs, &nodes)).unwrap();
        }
        assert!(walk.is_over());
        walk
    }

    #[test]
    fn equal_trees_need_no_walk() {
        for leaves in [0, 1, 8, 64, 100, 4096] {
            let tree = Tree::new(&vec![leaf(7); leaves]);
            assert_eq!(walk(&tree, &tree).cost(), WalkCost::default());
            assert_eq!(tree.leaves(), leaves.max(1));
        }
    }

    #[test]
    fn one_differing_bucket_of_64_costs_16_hashes_and_all_cost_72() {
        let mut leaves = vec![leaf(7); LEAVES_DEFAULT];
        let mine = Tree::new(&leaves);
        leaves[41] = leaf(8);
        let one = walk(&mine, &Tree::new(&leaves));
        assert_eq!(one.differing(), [41]);
        assert_eq!((one.cost().messages, one.cost().hashes), (2, 16));
        let all = walk(&mine, &Tree::new(&vec![leaf(9); LEAVES_DEFAULT]));
        assert_eq!(all.differing().len(), 64);
        assert_eq!((all.cost().messages, all.cost().hashes), (2, 72));
    }

    /// Two buckets may have the same sum by chance, but not with another number of rows.
    #[test]
    fn the_number_of_rows_counts() {
        let (none, some) = (Leaf { hash: 0, rows: 0 }, Leaf { hash: 0, rows: 2 });
        assert_ne!(Tree::new(&[none]).root(), Tree::new(&[some]).root());
    }

    #[test]
    fn a_lost_answer_is_asked_for_again_and_a_changed_tree_is_noticed() {
        let mine = Tree::new(&[leaf(1); 64]);
        let theirs = Tree::new(&[leaf(2); 64]);
        let mut walk = Walk::new(mine.clone(), theirs.root());
        let asked = walk.next_request();
        assert_eq!(walk.next_request(), None, "one question at a time");
        assert_eq!(walk.retry(), asked);
        walk.on_answer(&answer(&theirs, &asked.unwrap())).unwrap();
        let asked = walk.next_request().unwrap();
        let later = Tree::new(&[leaf(3); 64]);
        assert_eq!(
            walk.on_answer(&answer(&later, &asked)),
            Err(WalkError::Changed)
        );
        let mut walk = Walk::new(mine, theirs.root());
        walk.next_request();
        assert_eq!(walk.on_answer(&[]), Err(WalkError::Unexpected));
        let other_shape = Tree::new(&[leaf(2); 9]);
        let mut walk = Walk::new(other_shape, theirs.root());
        let asked = walk.next_request().unwrap();
        assert_eq!(
            walk.on_answer(&answer(&theirs, &asked)),
            Err(WalkError::Unexpected)
        );
    }

    /// A change of how trees are hashed is a change of what nodes say to each other.
    #[test]
    fn roots_are_what_they_were() {
        let leaves: Vec<Leaf> = (0..64).map(leaf).collect();
        assert_eq!(Tree::new(&leaves).root(), ROOT_OF_64);
        assert_eq!(Tree::new(&[]).root(), ROOT_OF_NONE);
    }

    const ROOT_OF_64: u128 = 0xa823_b2fd_865f_c3d0_5f86_c821_65c5_1f28;
    const ROOT_OF_NONE: u128 = 0xec85_fa47_f438_f536_55c0_d8b0_d6b1_ae1f;

    proptest! {
        #[test]
        fn a_walk_finds_exactly_what_differs_and_asks_for_little(
            size in 1usize..600, changes in prop::collection::btree_map(0usize..600, 1u64..9, 0..40),
        ) {
            let mut leaves = vec![leaf(100); size];
            let mine = Tree::new(&leaves);
            let mut expected = BTreeSet::new();
            for (at, row) in changes {
                if at < size {
                    leaves[at] = leaf(row);
                    expected.insert(at as u16);
                }
            }
            let walk = walk(&mine, &Tree::new(&leaves));
            let found: BTreeSet<u16> = walk.differing().iter().copied().collect();
            prop_assert_eq!(walk.differing().len(), found.len());
            // Inner nodes above what differs, level by level.
            let mut above = 0;
            let mut level = found.clone();
            for _ in 0..mine.depth() {
                level = level.iter().map(|index| index / FANOUT as u16).collect();
                above += level.len() as u64;
            }
            prop_assert!(walk.cost().hashes <= FANOUT as u64 * above);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn any_answer_is_survived(
            answers in prop::collection::vec(
                prop::collection::vec(prop::collection::vec(any::<u128>(), 0..10), 0..4), 0..5,
            ),
        ) {
            let mut walk = Walk::new(Tree::new(&[leaf(1); 64]), 5);
            for answer in answers {
                walk.next_request();
                let _ = walk.on_answer(&answer);
            }
        }
    }
}
