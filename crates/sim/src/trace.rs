//! What happened in a run: one number that says whether two runs were the same, and lines for
//! people.
//!
//! Every event that the world handles goes into the number with its time, its kind, its place and a
//! hash of all its bytes. The lines are few and only kept, never read: they cannot change a run.

use std::collections::VecDeque;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Lines kept for a failure; older ones are forgotten.
const LINES_MAX: usize = 400;

/// How much is written down.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Detail {
    /// The last lines about nodes, faults and requests, in memory.
    Recent,
    /// All of them, in memory.
    Whole,
    /// What nodes say to each other on data connections besides.
    Messages,
    /// Every single event besides.
    Everything,
}

/// The trace of one run.
pub(crate) struct Trace {
    hash: Xxh3,
    detail: Detail,
    lines: VecDeque<String>,
    forgotten: u64,
    pub(crate) events: u64,
}

impl Trace {
    pub(crate) fn new(detail: Detail) -> Trace {
        Trace {
            hash: Xxh3::new(),
            detail,
            lines: VecDeque::new(),
            forgotten: 0,
            events: 0,
        }
    }

    /// Takes note of an event. `place` is a node, a client or a connection, as the kind says.
    pub(crate) fn event(&mut self, at_ns: u64, kind: &'static str, place: u64, bytes: &[u8]) {
        self.events += 1;
        self.hash.update(&at_ns.to_le_bytes());
        self.hash.update(kind.as_bytes());
        self.hash.update(&place.to_le_bytes());
        self.hash.update(&(bytes.len() as u64).to_le_bytes());
        self.hash.update(bytes);
        if self.detail == Detail::Everything {
            let length = bytes.len();
            let digest = xxh3_64(bytes) as u32;
            self.line(at_ns, || {
                format!("  . {kind} {place} ({length} bytes, {digest:08x})")
            });
        }
    }

    /// Whether so much is written down.
    pub(crate) fn has(&self, detail: Detail) -> bool {
        self.detail >= detail
    }

    /// Writes a line for people.
    pub(crate) fn line(&mut self, at_ns: u64, text: impl FnOnce() -> String) {
        if self.detail == Detail::Recent && self.lines.len() >= LINES_MAX {
            self.lines.pop_front();
            self.forgotten += 1;
        }
        let (s, us) = (at_ns / 1_000_000_000, at_ns / 1_000 % 1_000_000);
        self.lines.push_back(format!("{s:>3}.{us:06} {}", text()));
    }

    /// The number of all events so far.
    pub(crate) fn hash(&self) -> u64 {
        self.hash.digest()
    }

    /// The lines, oldest first.
    pub(crate) fn into_lines(self) -> Vec<String> {
        let forgotten = self.forgotten;
        let head = (forgotten > 0).then(|| format!("... {forgotten} earlier lines"));
        head.into_iter().chain(self.lines).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_event_counts() {
        let hash = |at_ns, kind, place, bytes: &[u8]| {
            let mut trace = Trace::new(Detail::Recent);
            trace.event(at_ns, kind, place, bytes);
            trace.hash()
        };
        let one = hash(1, "turn", 1, b"a");
        assert_eq!(one, hash(1, "turn", 1, b"a"));
        for other in [
            hash(2, "turn", 1, b"a"),
            hash(1, "timer", 1, b"a"),
            hash(1, "turn", 2, b"a"),
            hash(1, "turn", 1, b"b"),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn lines_are_bounded_and_do_not_change_the_number() {
        let mut trace = Trace::new(Detail::Recent);
        let before = trace.hash();
        for number in 0..LINES_MAX + 5 {
            trace.line(0, || number.to_string());
        }
        assert_eq!(trace.hash(), before);
        let lines = trace.into_lines();
        assert_eq!(lines.len(), LINES_MAX + 1);
        assert!(lines[0].contains("5 earlier"));
    }
}
