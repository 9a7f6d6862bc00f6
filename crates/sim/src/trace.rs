//! What happened in a run: one number that says whether two runs were the same, and lines for
//! people.
//!
//! Every event that the world handles goes into the number with its time, its kind, its place and a
//! hash of all its bytes. The lines are only kept, never read: they cannot change a run. An ordinary run
//! keeps none, because a seed that fails can be run again with them.

use std::hash::{Hash, Hasher};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// What comes before kind and bytes of an event in the number: time, place, and the bytes' length.
const HEAD_BYTES: usize = 8 + 8 + 8;

/// How much is written down.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Detail {
    /// Only the number.
    Nothing,
    /// Lines about nodes, faults and requests.
    Whole,
    /// What nodes say to each other on data connections besides.
    Messages,
    /// Every single event besides.
    Everything,
}

/// The trace of one run.
pub(crate) struct Trace {
    /// Of the last event, seeded by the one of all before it: much cheaper for many small pieces than
    /// one hash over all of them.
    hash: u64,
    /// Used again and again for the fields of a value.
    fields: Fields,
    detail: Detail,
    lines: Vec<String>,
    pub(crate) events: u64,
}

impl Trace {
    pub(crate) fn new(detail: Detail) -> Trace {
        Trace {
            hash: 0,
            fields: Fields::default(),
            detail,
            lines: Vec::new(),
            events: 0,
        }
    }

    /// Takes note of an event. `place` is a node, a client or a connection, as the kind says.
    pub(crate) fn event(&mut self, at_ns: u64, kind: &'static str, place: u64, bytes: &[u8]) {
        self.events += 1;
        let length = bytes.len() as u64;
        let mut head = [0; HEAD_BYTES];
        for (part, number) in head.chunks_exact_mut(8).zip([at_ns, place, length]) {
            part.copy_from_slice(&number.to_le_bytes());
        }
        for part in [&head, kind.as_bytes(), bytes] {
            self.hash = xxh3_64_with_seed(part, self.hash);
        }
        if self.detail == Detail::Everything {
            let length = bytes.len();
            let digest = xxh3_64(bytes) as u32;
            self.line(at_ns, || {
                format!("  . {kind} {place} ({length} bytes, {digest:08x})")
            });
        }
    }

    /// Takes note of an event that comes with a value: all its fields count. Cheaper by far than the
    /// text that `Debug` makes of it, which once was half of what a run cost.
    pub(crate) fn value(&mut self, at_ns: u64, kind: &'static str, place: u64, value: &impl Hash) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.0.clear();
        value.hash(&mut fields);
        self.event(at_ns, kind, place, &fields.0);
        self.fields = fields;
    }

    /// Whether so much is written down.
    pub(crate) fn has(&self, detail: Detail) -> bool {
        self.detail >= detail
    }

    /// Writes a line for people.
    pub(crate) fn line(&mut self, at_ns: u64, text: impl FnOnce() -> String) {
        if self.detail == Detail::Nothing {
            return;
        }
        let (s, us) = (at_ns / 1_000_000_000, at_ns / 1_000 % 1_000_000);
        self.lines.push(format!("{s:>3}.{us:06} {}", text()));
    }

    /// The number of all events so far.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// The lines, oldest first.
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines
    }
}

/// The bytes that a value hands to a hasher: the same for equal values, and, the lengths being
/// among them, different for different ones. Numbers are written alike on every machine.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Hasher for Fields {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn write_u16(&mut self, number: u16) {
        self.write(&number.to_le_bytes());
    }

    fn write_u32(&mut self, number: u32) {
        self.write(&number.to_le_bytes());
    }

    fn write_u64(&mut self, number: u64) {
        self.write(&number.to_le_bytes());
    }

    fn write_u128(&mut self, number: u128) {
        self.write(&number.to_le_bytes());
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn finish(&self) -> u64 {
        xxh3_64(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_event_counts() {
        let hash = |at_ns, kind, place, bytes: &[u8]| {
            let mut trace = Trace::new(Detail::Nothing);
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
    fn every_field_of_a_value_counts() {
        let hash = |value: &(u64, Option<u8>, &[u8], &[u8])| {
            let mut trace = Trace::new(Detail::Nothing);
            trace.value(1, "request", 1, value);
            trace.hash()
        };
        let one = hash(&(1, None, b"ab", b"c"));
        assert_eq!(one, hash(&(1, None, b"ab", b"c")));
        for other in [
            hash(&(2, None, b"ab", b"c")),
            hash(&(1, Some(0), b"ab", b"c")),
            hash(&(1, None, b"a", b"bc")),
            hash(&(1, None, b"ab", b"")),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn lines_do_not_change_the_number() {
        let mut hashes = Vec::new();
        for (detail, count) in [
            (Detail::Nothing, 0),
            (Detail::Whole, 1),
            (Detail::Everything, 2),
        ] {
            let mut trace = Trace::new(detail);
            trace.line(0, || "a line".to_owned());
            trace.event(1, "turn", 1, b"a");
            hashes.push(trace.hash());
            assert_eq!(trace.into_lines().len(), count);
        }
        assert!(hashes.iter().all(|hash| *hash == hashes[0]));
    }
}
