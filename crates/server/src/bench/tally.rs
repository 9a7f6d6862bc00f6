//! What one thread counts, and how the counts of several are put together.
//!
//! Latencies go into HDR histograms (three significant digits, from a nanosecond to an hour), so no percentile is an
//! average of percentiles. Only what begins within the measured window counts; the timeline shows all of it, the
//! warm-up too.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::verify::Violation;
use super::wire;
use super::workload::Kind;

/// The longest latency that is told apart, nanoseconds: an hour. Longer ones count as this.
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;

/// Kinds of errors that are told apart; further ones are counted as `OTHER`.
const ERROR_KINDS_MAX: usize = 32;

/// Texts of errors kept for each kind.
const ERROR_EXAMPLES_MAX: usize = 3;

/// Bytes kept of such a text.
const ERROR_EXAMPLE_BYTES_MAX: usize = 200;

/// Violations kept to be shown.
pub(super) const VIOLATION_EXAMPLES_MAX: usize = 10;

/// Latencies, in nanoseconds.
pub(super) fn latencies(digits: u8) -> Histogram<u64> {
    // Bounds and digits are constants that the library takes.
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, digits)
        .unwrap_or_else(|_| unreachable!("1 to an hour with {digits} digits"))
}

/// Of the whole run.
pub(super) const DIGITS: u8 = 3;
/// Of a second.
const DIGITS_OF_SECOND: u8 = 2;

/// Operations of one kind.
#[derive(Clone, Debug)]
pub(super) struct OfKind {
    /// Of those that succeeded.
    pub(super) latency: Histogram<u64>,
    pub(super) errors: u64,
    /// Reads that found no such key; they count as successes as well.
    pub(super) misses: u64,
}

/// One second of the timeline, of one thread.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    pub(super) errors: u64,
    pub(super) latency: Histogram<u64>,
}

impl Slice {
    pub(super) fn new() -> Slice {
        Slice {
            errors: 0,
            latency: latencies(DIGITS_OF_SECOND),
        }
    }

    /// Adds another thread's.
    pub(super) fn add(&mut self, other: &Slice) {
        self.errors += other.errors;
        // All slices have the same bounds.
        let _ = self.latency.add(&other.latency);
    }
}

/// How long nothing was completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Stall {
    pub(super) span_ns: u64,
    /// When it began, after the start of the run.
    pub(super) from_ns: u64,
    /// Which connection.
    pub(super) connection: usize,
    /// To which target.
    pub(super) target: usize,
}

impl Stall {
    /// Keeps the longer one.
    pub(super) fn or_longer(&mut self, other: Stall) {
        if other.span_ns > self.span_ns {
            *self = other;
        }
    }
}

/// Errors by kind.
#[derive(Clone, Default, Debug)]
pub(super) struct Errors {
    kinds: BTreeMap<String, OfError>,
}

/// Errors of one kind.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct OfError {
    pub(super) count: u64,
    pub(super) examples: Vec<String>,
}

impl Errors {
    /// Counts an error of a target.
    pub(super) fn answered(&mut self, kind: wire::Kind<'_>, text: &[u8]) {
        match kind {
            wire::Kind::Word(word) => match std::str::from_utf8(word) {
                Ok(word) => self.count(word, text),
                Err(_) => self.count("OTHER", text),
            },
            wire::Kind::Status(status) => self.count(&format!("HTTP {status}"), text),
        }
    }

    /// Counts an error of this kind.
    pub(super) fn count(&mut self, kind: &str, text: &[u8]) {
        if let Some(known) = self.kinds.get_mut(kind) {
            return known.add(1, text);
        }
        let kind = match self.kinds.len() < ERROR_KINDS_MAX {
            true => kind,
            false => "OTHER",
        };
        self.kinds.entry(kind.to_owned()).or_default().add(1, text);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &OfError)> {
        self.kinds.iter().map(|(kind, of)| (kind.as_str(), of))
    }

    fn add(&mut self, other: Errors) {
        for (kind, of) in other.kinds {
            let mine = self.kinds.entry(kind).or_default();
            mine.count += of.count;
            let room = ERROR_EXAMPLES_MAX.saturating_sub(mine.examples.len());
            for example in of.examples.into_iter().take(room) {
                if !mine.examples.contains(&example) {
                    mine.examples.push(example);
                }
            }
        }
    }
}

impl OfError {
    fn add(&mut self, count: u64, text: &[u8]) {
        self.count += count;
        if self.examples.len() < ERROR_EXAMPLES_MAX {
            let text = String::from_utf8_lossy(&text[..text.len().min(ERROR_EXAMPLE_BYTES_MAX)]);
            if !self.examples.iter().any(|example| *example == text) {
                self.examples.push(text.into_owned());
            }
        }
    }
}

/// What became of connections.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Connections {
    /// That ended or timed out.
    pub(super) broken: u64,
    /// That were made anew.
    pub(super) reconnected: u64,
    /// Tries to do so that failed.
    pub(super) failed_tries: u64,
    /// That are not tried any more.
    pub(super) given_up: u64,
}

/// What verification found.
#[derive(Clone, Default, Debug)]
pub(super) struct Checked {
    pub(super) reads: u64,
    pub(super) violations: u64,
    pub(super) examples: Vec<Violation>,
}

impl Checked {
    /// Counts a read and what was wrong with it.
    pub(super) fn count(&mut self, result: Result<(), Violation>) {
        self.reads += 1;
        if let Err(violation) = result {
            self.violations += 1;
            if self.examples.len() < VIOLATION_EXAMPLES_MAX {
                self.examples.push(violation);
            }
        }
    }
}

/// All that one thread counts in one phase.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    kinds: [OfKind; 4],
    pub(super) errors: Errors,
    /// How long after it was due a request was sent, open loop only.
    pub(super) send_delay: Histogram<u64>,
    /// Requests that were due and never sent.
    pub(super) unsent: u64,
    pub(super) connections: Connections,
    pub(super) checked: Checked,
    /// The longest of any connection.
    pub(super) stall: Stall,
    /// The longest in which no connection completed anything.
    pub(super) stall_overall: Stall,
    /// When the last answer came, or the phase ended.
    pub(super) ended_ns: u64,
}

impl Tally {
    pub(super) fn new() -> Tally {
        let of_kind = || OfKind {
            latency: latencies(DIGITS),
            errors: 0,
            misses: 0,
        };
        Tally {
            kinds: [of_kind(), of_kind(), of_kind(), of_kind()],
            errors: Errors::default(),
            send_delay: latencies(DIGITS),
            unsent: 0,
            connections: Connections::default(),
            checked: Checked::default(),
            stall: Stall::default(),
            stall_overall: Stall::default(),
            ended_ns: 0,
        }
    }

    pub(super) fn of(&self, kind: Kind) -> &OfKind {
        &self.kinds[kind as usize]
    }

    pub(super) fn of_mut(&mut self, kind: Kind) -> &mut OfKind {
        &mut self.kinds[kind as usize]
    }

    /// Requests of all kinds together. A read-modify-write is its read and its update.
    pub(super) fn all(&self) -> OfKind {
        let mut all = OfKind {
            latency: latencies(DIGITS),
            errors: 0,
            misses: 0,
        };
        for kind in [Kind::Read, Kind::Update, Kind::Insert] {
            let of = self.of(kind);
            // All have the same bounds.
            let _ = all.latency.add(&of.latency);
            all.errors += of.errors;
            all.misses += of.misses;
        }
        all
    }

    /// Adds another thread's.
    pub(super) fn add(&mut self, other: Tally) {
        for (mine, of) in self.kinds.iter_mut().zip(&other.kinds) {
            let _ = mine.latency.add(&of.latency);
            mine.errors += of.errors;
            mine.misses += of.misses;
        }
        let _ = self.send_delay.add(&other.send_delay);
        self.errors.add(other.errors);
        self.unsent += other.unsent;
        self.connections.broken += other.connections.broken;
        self.connections.reconnected += other.connections.reconnected;
        self.connections.failed_tries += other.connections.failed_tries;
        self.connections.given_up += other.connections.given_up;
        self.checked.reads += other.checked.reads;
        self.checked.violations += other.checked.violations;
        let room = VIOLATION_EXAMPLES_MAX.saturating_sub(self.checked.examples.len());
        let examples = other.checked.examples.into_iter().take(room);
        self.checked.examples.extend(examples);
        self.stall.or_longer(other.stall);
        self.stall_overall.or_longer(other.stall_overall);
        self.ended_ns = self.ended_ns.max(other.ended_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_threads_are_those_of_all_together() {
        let (mut first, mut second) = (Tally::new(), Tally::new());
        for latency in 1..=900 {
            first
                .of_mut(Kind::Read)
                .latency
                .saturating_record(latency * 1_000);
        }
        for latency in 901..=1_000 {
            second
                .of_mut(Kind::Update)
                .latency
                .saturating_record(latency * 1_000);
        }
        second.of_mut(Kind::Update).errors = 3;
        first.add(second);
        let all = first.all();
        assert_eq!(all.latency.len(), 1_000);
        assert_eq!(all.errors, 3);
        for (percentile, expected) in [
            (50.0, 500_000),
            (90.0, 900_000),
            (99.0, 990_000),
            (100.0, 1_000_000),
        ] {
            let found = all.latency.value_at_percentile(percentile);
            assert!(
                found.abs_diff(expected) <= expected / 1_000,
                "{percentile}: {found}"
            );
        }
    }

    #[test]
    fn a_latency_beyond_all_bounds_is_counted() {
        let mut latency = latencies(DIGITS);
        latency.saturating_record(u64::MAX);
        latency.saturating_record(0);
        assert_eq!(latency.len(), 2);
        assert!(latency.max() >= LATENCY_MAX_NS);
    }

    #[test]
    fn errors_are_counted_by_kind_and_a_few_are_kept() {
        let mut errors = Errors::default();
        for got in [1, 1, 0, 1] {
            let text = format!("QUORUM needed 2, got {got} of 3");
            errors.answered(wire::Kind::Word(b"QUORUM"), text.as_bytes());
        }
        errors.answered(wire::Kind::Status(503), b"{}");
        let mut others = Errors::default();
        others.count("QUORUM", b"QUORUM needed 2, got 1 of 3");
        for number in 0..100 {
            others.count(&format!("E{number}"), b"x");
        }
        errors.add(others);
        let of = |kind| errors.iter().find(|(name, _)| *name == kind).unwrap().1;
        assert_eq!(of("QUORUM").count, 5);
        assert_eq!(of("QUORUM").examples.len(), 2);
        assert_eq!(of("HTTP 503").count, 1);
        assert_eq!(of("OTHER").count, 100 - (ERROR_KINDS_MAX as u64 - 1));
    }
}
