//! The queue of what is to happen: by time, then by the order in which it was planned.
//!
//! A heap orders small keys only; the events, which are large, lie still in slots beside it. That
//! halves what a run pays for its queue compared with an ordered map that moves them about.
//!
//! **Invariant.** Keys are unique, because each planning has a number of its own: so the order is one
//! order, however the heap is built inside.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What is to happen.
pub(crate) struct Queue<E> {
    /// Time, number of the planning, slot.
    heap: BinaryHeap<Reverse<(u64, u64, usize)>>,
    /// An event that was dropped leaves its slot empty until its time comes.
    slots: Vec<Option<E>>,
    free: Vec<usize>,
    planned: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Queue<E> {
        Queue {
            heap: BinaryHeap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            planned: 0,
        }
    }
}

impl<E> Queue<E> {
    /// Plans an event, behind all that was planned for the same time before.
    pub(crate) fn push(&mut self, at_ns: u64, event: E) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(event);
                slot
            }
            None => {
                self.slots.push(Some(event));
                self.slots.len() - 1
            }
        };
        self.planned += 1;
        self.heap.push(Reverse((at_ns, self.planned, slot)));
    }

    /// Takes the next event and its time, if it is due by `until_ns`.
    pub(crate) fn pop(&mut self, until_ns: u64) -> Option<(u64, E)> {
        while let Some(&Reverse((at_ns, _, slot))) = self.heap.peek() {
            let is_dropped = self.slots[slot].is_none();
            if at_ns > until_ns && !is_dropped {
                return None;
            }
            self.heap.pop();
            self.free.push(slot);
            if let Some(event) = self.slots[slot].take() {
                return Some((at_ns, event));
            }
        }
        None
    }

    /// Drops all events that `is_kept` does not want. Looks at every one: for rare occasions.
    pub(crate) fn retain(&mut self, is_kept: impl Fn(&E) -> bool) {
        for slot in &mut self.slots {
            slot.take_if(|event| !is_kept(event));
        }
    }

    /// All that is planned, in no meaningful order.
    pub(crate) fn events(&self) -> impl Iterator<Item = &E> {
        self.slots.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(queue: &mut Queue<u32>, until_ns: u64) -> Vec<(u64, u32)> {
        std::iter::from_fn(|| queue.pop(until_ns)).collect()
    }

    #[test]
    fn events_come_by_time_then_as_they_were_planned() {
        let mut queue = Queue::default();
        for (at_ns, event) in [(20, 1), (10, 2), (20, 3), (10, 4), (30, 5)] {
            queue.push(at_ns, event);
        }
        assert_eq!(taken(&mut queue, 20), [(10, 2), (10, 4), (20, 1), (20, 3)]);
        // Slots are used again; the order stays.
        queue.push(30, 6);
        queue.push(25, 7);
        assert_eq!(taken(&mut queue, 30), [(25, 7), (30, 5), (30, 6)]);
    }

    #[test]
    fn what_is_dropped_does_not_happen() {
        let mut queue = Queue::default();
        for event in 0..6 {
            queue.push(10, event);
        }
        queue.retain(|event| event % 2 == 1);
        assert_eq!(queue.events().count(), 3);
        queue.push(5, 8);
        assert_eq!(taken(&mut queue, 10), [(5, 8), (10, 1), (10, 3), (10, 5)]);
        assert_eq!(queue.events().count(), 0);
    }
}
