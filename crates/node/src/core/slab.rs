//! Pending operations by number, and their deadlines.
//!
//! An operation in flight is an entry of a slab, named by a 64-bit number that goes into every message
//! about it: the index in the low half, the entry's generation in the high half. A reply that comes
//! after its operation has ended finds another generation and is ignored; no map, no allocation and no
//! task per request.

use std::collections::{BTreeSet, VecDeque};

/// A slab with generations.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    len: usize,
}

#[derive(Debug)]
struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Slab<T> {
        Slab {
            entries: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn insert(&mut self, value: T) -> u64 {
        self.len += 1;
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry {
                generation: 1,
                value: None,
            });
            (self.entries.len() - 1) as u32
        });
        let entry = &mut self.entries[index as usize];
        entry.value = Some(value);
        u64::from(entry.generation) << 32 | u64::from(index)
    }

    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        let entry = self.entries.get(id as u32 as usize)?;
        (entry.generation == (id >> 32) as u32)
            .then_some(entry.value.as_ref())
            .flatten()
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let entry = self.entries.get_mut(id as u32 as usize)?;
        (entry.generation == (id >> 32) as u32)
            .then_some(entry.value.as_mut())
            .flatten()
    }

    pub(crate) fn contains(&self, id: u64) -> bool {
        let entry = self.entries.get(id as u32 as usize);
        entry.is_some_and(|entry| entry.generation == (id >> 32) as u32 && entry.value.is_some())
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        let index = id as u32;
        let entry = self.entries.get_mut(index as usize)?;
        if entry.generation != (id >> 32) as u32 {
            return None;
        }
        let value = entry.value.take()?;
        // Generation zero is never used, so that zero is never the number of an operation.
        entry.generation = entry.generation.wrapping_add(1).max(1);
        self.free.push(index);
        self.len -= 1;
        Some(value)
    }

    /// All entries, in index order.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().filter_map(|entry| entry.value.as_ref())
    }

    /// Numbers of all entries, in index order. For rare events that concern everything in flight.
    pub(crate) fn ids(&self) -> Vec<u64> {
        let live = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.value.is_some());
        live.map(|(index, entry)| u64::from(entry.generation) << 32 | index as u64)
            .collect()
    }
}

/// Deadlines of operations. Nearly all of them are "now plus the same timeout", so they arrive in order
/// and a queue holds them; the others go into an ordered set. Ended operations are not removed: their
/// numbers are found stale when they come up.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    in_order: VecDeque<(u64, u64)>,
    others: BTreeSet<(u64, u64)>,
}

impl Deadlines {
    pub(crate) fn insert(&mut self, at_ns: u64, id: u64) {
        if self
            .in_order
            .back()
            .is_none_or(|&(last_ns, _)| last_ns <= at_ns)
        {
            self.in_order.push_back((at_ns, id));
        } else {
            self.others.insert((at_ns, id));
        }
    }

    pub(crate) fn next_ns(&self) -> Option<u64> {
        let first = self.in_order.front().map(|&(at_ns, _)| at_ns);
        let other = self.others.first().map(|&(at_ns, _)| at_ns);
        [first, other].into_iter().flatten().min()
    }

    /// The number that came in order and is the oldest.
    pub(crate) fn front(&self) -> Option<u64> {
        self.in_order.front().map(|&(_, id)| id)
    }

    /// Forgets [`Deadlines::front`].
    pub(crate) fn pop_front(&mut self) {
        self.in_order.pop_front();
    }

    /// Takes one that is due.
    pub(crate) fn pop_due(&mut self, now_ns: u64) -> Option<u64> {
        if self
            .in_order
            .front()
            .is_some_and(|&(at_ns, _)| at_ns <= now_ns)
        {
            return self.in_order.pop_front().map(|(_, id)| id);
        }
        if self
            .others
            .first()
            .is_some_and(|&(at_ns, _)| at_ns <= now_ns)
        {
            return self.others.pop_first().map(|(_, id)| id);
        }
        None
    }

    /// Drops entries at the front that `is_live` no longer knows, so that they wake nobody.
    pub(crate) fn prune(&mut self, mut is_live: impl FnMut(u64) -> bool) {
        while self.in_order.front().is_some_and(|&(_, id)| !is_live(id)) {
            self.in_order.pop_front();
        }
        while self.others.first().is_some_and(|&(_, id)| !is_live(id)) {
            self.others.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_number_finds_nothing() {
        let mut slab = Slab::new();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_ne!(first, second);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut 'b'));
        assert_eq!((slab.len(), slab.ids()), (1, vec![second]));
        assert!(!slab.contains(0));
    }

    #[test]
    fn deadlines_come_due_in_order() {
        let mut deadlines = Deadlines::default();
        for (at_ns, id) in [(10, 1), (20, 2), (5, 3), (15, 4)] {
            deadlines.insert(at_ns, id);
        }
        assert_eq!(deadlines.next_ns(), Some(5));
        assert_eq!(deadlines.pop_due(4), None);
        let mut due: Vec<u64> = std::iter::from_fn(|| deadlines.pop_due(15)).collect();
        due.sort_unstable();
        assert_eq!(due, [1, 3, 4]);
        deadlines.prune(|_| false);
        assert_eq!(deadlines.next_ns(), None);
    }
}
