//! What a faulty disk holds: for each file and each name, what is there now (*live*) and what would
//! be there after a loss of power (*durable*, plus some of what is still *pending*).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;

use super::SplitMix64;

/// The bytes of one file. Changes become durable in order, as on a journalling file system.
#[derive(Debug, Default)]
pub(super) struct Inode {
    pub(super) live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Append(Vec<u8>),
    /// Bytes that a failed sync has dropped: a later sync thinks them written.
    Hole(usize),
    Truncate(usize),
}

impl Change {
    fn apply(self, durable: &mut Vec<u8>) {
        match self {
            Change::Append(bytes) => durable.extend_from_slice(&bytes),
            Change::Hole(len) => durable.resize(durable.len() + len, 0),
            Change::Truncate(len) => durable.truncate(len),
        }
    }
}

impl Inode {
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.live.extend_from_slice(bytes);
        self.pending.push(Change::Append(bytes.to_vec()));
    }

    pub(super) fn truncate(&mut self, len: usize) {
        self.live.truncate(len);
        self.pending.push(Change::Truncate(len));
    }

    pub(super) fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// A failed sync that dropped the dirty pages and marked them clean: they can still be read,
    /// and the next sync succeeds without writing them.
    pub(super) fn drop_dirty_pages(&mut self) {
        for change in &mut self.pending {
            if let Change::Append(bytes) = change {
                *change = Change::Hole(bytes.len());
            }
        }
    }

    /// Keeps a random number of the pending changes, and a part of the next one.
    pub(super) fn lose_power(&mut self, random: &mut SplitMix64) {
        let kept = random.below(self.pending.len() as u64 + 1) as usize;
        for (index, change) in self.pending.drain(..).enumerate() {
            match change {
                change if index < kept => change.apply(&mut self.durable),
                Change::Append(mut bytes) if index == kept && random.coin() => {
                    bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
                    self.durable.extend_from_slice(&bytes);
                }
                _ => {}
            }
        }
        self.live.clone_from(&self.durable);
    }

    /// Flips the bits of `mask` at `offset`, wherever that byte is kept.
    pub(super) fn rot(&mut self, offset: usize, mask: u8) -> bool {
        let Some(byte) = self.live.get_mut(offset) else {
            return false;
        };
        *byte ^= mask;
        let mut len = self.durable.len();
        // The byte that is live now is the last one that was written at this offset.
        let mut place = (offset < len).then(|| &mut self.durable[offset]);
        for change in &mut self.pending {
            match change {
                Change::Append(bytes) => {
                    let start = len;
                    len += bytes.len();
                    if (start..len).contains(&offset) {
                        place = Some(&mut bytes[offset - start]);
                    }
                }
                Change::Hole(bytes) => len += *bytes,
                Change::Truncate(to) => len = len.min(*to),
            }
        }
        if let Some(byte) = place {
            *byte ^= mask;
        }
        true
    }
}

/// What a name stands for.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Dir,
    File(Arc<Mutex<Inode>>),
}

#[derive(Debug)]
enum NameChange {
    Put { path: String, node: Node },
    Rename { from: String, to: String },
    Remove { path: String },
}

impl NameChange {
    fn names(&self) -> Vec<&String> {
        match self {
            NameChange::Put { path, .. } | NameChange::Remove { path } => vec![path],
            NameChange::Rename { from, to } => vec![from, to],
        }
    }

    fn apply(self, names: &mut BTreeMap<String, Node>) {
        match self {
            NameChange::Put { path, node } => {
                names.insert(path, node);
            }
            NameChange::Rename { from, to } => {
                if let Some(node) = names.remove(&from) {
                    names.insert(to, node);
                }
            }
            NameChange::Remove { path } => {
                names.remove(&path);
            }
        }
    }
}

/// All names of the disk.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) live: BTreeMap<String, Node>,
    durable: BTreeMap<String, Node>,
    pending: Vec<NameChange>,
}

/// The directory that holds `path`.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl Names {
    pub(super) fn has_dir(&self, dir: &str) -> bool {
        dir.is_empty() || matches!(self.live.get(dir), Some(Node::Dir))
    }

    pub(super) fn file(&self, path: &str) -> Option<Arc<Mutex<Inode>>> {
        match self.live.get(path) {
            Some(Node::File(inode)) => Some(inode.clone()),
            _ => None,
        }
    }

    pub(super) fn put(&mut self, path: &str, node: Node) {
        self.live.insert(path.to_owned(), node.clone());
        self.pending.push(NameChange::Put {
            path: path.to_owned(),
            node,
        });
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) {
        if let Some(node) = self.live.remove(from) {
            self.live.insert(to.to_owned(), node);
            self.pending.push(NameChange::Rename {
                from: from.to_owned(),
                to: to.to_owned(),
            });
        }
    }

    pub(super) fn remove(&mut self, path: &str) {
        self.live.remove(path);
        self.pending.push(NameChange::Remove {
            path: path.to_owned(),
        });
    }

    /// Makes the changes in `dir` durable, and what they build on.
    pub(super) fn sync(&mut self, dir: &str) {
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        let mut selected = vec![false; self.pending.len()];
        for (index, change) in self.pending.iter().enumerate().rev() {
            let names = change.names();
            if names
                .iter()
                .any(|name| parent(name) == dir || wanted.contains(*name))
            {
                selected[index] = true;
                wanted.extend(names.into_iter().cloned());
            }
        }
        let mut rest = Vec::new();
        for (change, selected) in self.pending.drain(..).zip(selected) {
            if selected {
                change.apply(&mut self.durable);
            } else {
                rest.push(change);
            }
        }
        self.pending = rest;
    }

    /// Keeps or loses each pending change by a coin. What builds on a lost change of the same name
    /// is lost with it, as no file system reorders those; what lies in a lost directory is lost
    /// too.
    pub(super) fn lose_power(&mut self, random: &mut SplitMix64) {
        let mut lost: BTreeSet<String> = BTreeSet::new();
        for change in self.pending.drain(..) {
            let names = change.names();
            if names.iter().any(|name| lost.contains(*name)) || random.coin() {
                lost.extend(names.into_iter().cloned());
            } else {
                change.apply(&mut self.durable);
            }
        }
        let mut kept: BTreeMap<String, Node> = BTreeMap::new();
        for (path, node) in &self.durable {
            // Sorted, so a directory comes before what it holds.
            let dir = parent(path);
            if dir.is_empty() || kept.contains_key(dir) {
                kept.insert(path.clone(), node.clone());
            }
        }
        self.durable = kept;
        self.live = self.durable.clone();
        for node in self.live.values() {
            if let Node::File(inode) = node {
                inode.lock().lose_power(random);
            }
        }
    }
}
