//! The search for an order: Wing and Gong's, with Lowe's memory.
//!
//! Calls on one register are put into an order one by one. The next may be any call that no other
//! call, not yet placed, wholly precedes. If none can be next, the last one placed is taken back
//! (Wing and Gong, *Testing and Verifying Concurrent Objects*, 1993). What remains to be done depends
//! only on which calls have been placed and on what the register then holds; a pair that was met
//! before leads nowhere (Lowe, *Testing for Linearizability*, 2017).
//!
//! Three rules cut the search without losing an order:
//!
//! 1. A read that may be next and finds what the register holds is placed at once, and nothing else
//!    is tried in its place: in any order of the rest it can be moved to the front, for a read
//!    changes nothing.
//! 2. A write that need not have happened is only placed when a read of its value may be next: nothing
//!    but such a read can stand right behind it, or else it is overwritten unread, and the order is as
//!    good without it.
//! 3. What the register holds is not overwritten while it is still to be read and no other write would
//!    bring it back.

use std::collections::HashSet;

/// What a register holds, by number. [`NOTHING`] is what it holds at first.
pub(super) type Held = usize;

/// A register that was never written, or deleted.
pub(super) const NOTHING: Held = 0;

/// One call on the register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Call {
    pub(super) effect: Effect,
    pub(super) invoke_ns: u64,
    /// When it had been done; `None` for a write that may be done at any later time, or never.
    pub(super) return_ns: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    Write(Held),
    Read(Held),
}

impl Effect {
    fn held(self) -> Held {
        let (Effect::Write(held) | Effect::Read(held)) = self;
        held
    }
}

/// What the search came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// The calls can be done one at a time, in this order (indexes).
    Order(Vec<usize>),
    /// There is no such order.
    None,
    /// The effort was not enough to tell.
    Undecided,
}

/// Looks for an order of calls, which have to be sorted by their beginnings. At most `effort_max`
/// placements are tried; each may be remembered in one bit per call and some fifty bytes.
pub(super) fn search(calls: &[Call], effort_max: u64) -> Found {
    debug_assert!(calls.is_sorted_by_key(|call| call.invoke_ns));
    let mut search = Search::new(calls);
    if search.is_hopeless() {
        return Found::None;
    }
    let mut seen = HashSet::new();
    let mut placed: Vec<Placed> = Vec::new();
    let mut look = Look::Afresh;
    let mut effort = 0;
    while search.required_left > 0 {
        let Some((call, is_certain)) = search.candidate(look) else {
            let Some(last) = placed.pop() else {
                return Found::None;
            };
            look = search.take_back(&last);
            continue;
        };
        if effort == effort_max {
            return Found::Undecided;
        }
        effort += 1;
        let last = search.place(call, is_certain);
        look = match seen.insert((search.done.clone(), search.held)) {
            true => {
                placed.push(last);
                Look::Afresh
            }
            false => search.take_back(&last),
        };
    }
    Found::Order(placed.iter().map(|placed| placed.call).collect())
}

/// Where to look for the next call.
#[derive(Clone, Copy)]
enum Look {
    /// Nothing has been tried here yet.
    Afresh,
    /// All up to this call have been tried.
    After(usize),
    /// What was tried was the only choice.
    Nowhere,
}

/// A call that has been placed, and how to take it back.
struct Placed {
    call: usize,
    held_before: Held,
    is_certain: bool,
}

struct Search<'a> {
    calls: &'a [Call],
    /// The calls not yet placed, a ring in the order of their beginnings. The last index is the
    /// ring's fixed point, not a call.
    next: Vec<usize>,
    previous: Vec<usize>,
    /// The calls placed, one bit each.
    done: Box<[u64]>,
    held: Held,
    /// Calls not yet placed that have to be.
    required_left: usize,
    /// Reads not yet placed, by what they found.
    reads_left: Vec<usize>,
    /// Writes not yet placed, by what they wrote.
    writes_left: Vec<usize>,
}

impl Search<'_> {
    fn new(calls: &[Call]) -> Search<'_> {
        let n = calls.len();
        let held_max = calls.iter().map(|call| call.effect.held()).max();
        let values = held_max.unwrap_or(NOTHING) + 1;
        let (mut reads_left, mut writes_left) = (vec![0; values], vec![0; values]);
        for call in calls {
            match call.effect {
                Effect::Read(held) => reads_left[held] += 1,
                Effect::Write(held) => writes_left[held] += 1,
            }
        }
        Search {
            calls,
            next: (0..=n).map(|i| (i + 1) % (n + 1)).collect(),
            previous: (0..=n).map(|i| (i + n) % (n + 1)).collect(),
            done: vec![0; n.div_ceil(64)].into(),
            held: NOTHING,
            required_left: calls.iter().filter(|call| call.return_ns.is_some()).count(),
            reads_left,
            writes_left,
        }
    }

    /// Whether something was read that nobody wrote.
    fn is_hopeless(&self) -> bool {
        (0..self.reads_left.len()).any(|held| held != self.held && self.is_lost(held))
    }

    /// Whether a value is still to be read, and no write is left to bring it.
    fn is_lost(&self, held: Held) -> bool {
        self.reads_left[held] > 0 && self.writes_left[held] == 0
    }

    /// The calls not yet placed, after this index of the ring.
    fn left_after(&self, index: usize) -> impl Iterator<Item = (usize, &Call)> {
        let mut at = index;
        std::iter::from_fn(move || {
            at = self.next[at];
            self.calls.get(at).map(|call| (at, call))
        })
    }

    /// The end of the call, of those that have to be placed, that ends first. What begins later
    /// cannot be next.
    fn horizon_ns(&self) -> u64 {
        let mut horizon_ns = u64::MAX;
        for (_, call) in self.left_after(self.calls.len()) {
            if call.invoke_ns > horizon_ns {
                break;
            }
            horizon_ns = horizon_ns.min(call.return_ns.unwrap_or(u64::MAX));
        }
        horizon_ns
    }

    /// A call that may be next, and whether nothing else needs to be tried in its place.
    fn candidate(&self, look: Look) -> Option<(usize, bool)> {
        let horizon_ns = self.horizon_ns();
        let may_be_next = |(_, call): &(usize, &Call)| call.invoke_ns <= horizon_ns;
        let start = self.calls.len();
        let may_be_read_next = |value: Held| {
            let mut calls = self.left_after(start).take_while(may_be_next);
            calls.find(|(_, call)| call.effect == Effect::Read(value))
        };
        let from = match look {
            Look::Nowhere => return None,
            Look::After(call) => call,
            Look::Afresh => {
                if let Some((read, _)) = may_be_read_next(self.held) {
                    return Some((read, true));
                }
                if self.is_lost(self.held) {
                    return None;
                }
                start
            }
        };
        // Only writes are left to try: a read that finds what is held would have been certain.
        let mut calls = self.left_after(from).take_while(may_be_next);
        let write = calls.find(|(_, call)| match call.effect {
            Effect::Read(_) => false,
            Effect::Write(value) => {
                call.return_ns.is_some()
                    || self.reads_left[value] > 0 && may_be_read_next(value).is_some()
            }
        });
        write.map(|(index, _)| (index, false))
    }

    fn place(&mut self, call: usize, is_certain: bool) -> Placed {
        let placed = Placed {
            call,
            held_before: self.held,
            is_certain,
        };
        match self.calls[call].effect {
            Effect::Read(held) => self.reads_left[held] -= 1,
            Effect::Write(held) => {
                self.writes_left[held] -= 1;
                self.held = held;
            }
        }
        self.required_left -= usize::from(self.calls[call].return_ns.is_some());
        self.done[call / 64] |= 1 << (call % 64);
        let (before, after) = (self.previous[call], self.next[call]);
        self.next[before] = after;
        self.previous[after] = before;
        placed
    }

    /// Undoes the last placement. Says where to look for another call in its place.
    fn take_back(&mut self, placed: &Placed) -> Look {
        let call = placed.call;
        // The call still knows its neighbours: what was placed later has been taken back by now.
        let (before, after) = (self.previous[call], self.next[call]);
        self.next[before] = call;
        self.previous[after] = call;
        self.done[call / 64] &= !(1 << (call % 64));
        self.required_left += usize::from(self.calls[call].return_ns.is_some());
        match self.calls[call].effect {
            Effect::Read(held) => self.reads_left[held] += 1,
            Effect::Write(held) => self.writes_left[held] += 1,
        }
        self.held = placed.held_before;
        match placed.is_certain {
            true => Look::Nowhere,
            false => Look::After(call),
        }
    }
}
