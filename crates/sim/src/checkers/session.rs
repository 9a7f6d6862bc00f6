//! **A session that carries its token reads its own writes: a read returns a version at least that of
//! each write of the session on that key that was acknowledged before. And whatever it writes gets a
//! greater version than all that it had seen.**
//!
//! With R + W <= N this is all that is promised of reads. A session is one client whose every request
//! carries the greatest version it was told. Its read then asks as many replicas as meet every write
//! of the W that read and cluster are set to. A write that chose a smaller W than that need not be
//! seen: `meets` says which pairs of write and read are covered.
//!
//! It does not check operations of clients without a token: leave them out.

use std::collections::BTreeMap;
use std::fmt;

use mds_types::Version;

use super::{Op, Outcome};

/// The promise that a session's reads can break.
pub const READS_ITS_WRITES: &str = "a session reads its own writes";

/// The promise that a session's writes can break.
pub const WRITES_COME_LATER: &str = "a session's writes come later than all it has seen";

/// Two operations of a session that contradict a promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lapse {
    /// [`READS_ITS_WRITES`] or [`WRITES_COME_LATER`].
    pub promise: &'static str,
    /// What the session had been told before.
    pub earlier: Op,
    /// What it was told then.
    pub later: Op,
}

impl fmt::Display for Lapse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lapse {
            promise,
            earlier,
            later,
        } = self;
        write!(f, "broken: {promise}: first {earlier}; then {later}")
    }
}

/// Judges sessions. `meets(write, read)` says whether the read's quorum meets the write's. Each
/// operation is reported once at most, with the greatest version that it should have respected.
pub fn check(ops: &[Op], meets: impl Fn(&Op, &Op) -> bool) -> Vec<Lapse> {
    let mut sessions: BTreeMap<u64, Vec<&Op>> = BTreeMap::new();
    for op in ops.iter().filter(|op| op.outcome == Outcome::Ok) {
        sessions.entry(op.client).or_default().push(op);
    }
    let mut lapses = Vec::new();
    for session in sessions.values() {
        for &later in session {
            let told = session.iter().filter_map(|&earlier| {
                let version = told_before(earlier, later)?;
                let is_covered = later.is_write()
                    || earlier.is_write() && earlier.key == later.key && meets(earlier, later);
                is_covered.then_some((version, earlier))
            });
            let Some((version, earlier)) = told.max_by_key(|&(version, _)| version) else {
                continue;
            };
            let (promise, is_kept) = match later.is_write() {
                true => (WRITES_COME_LATER, later.version > Some(version)),
                false => (READS_ITS_WRITES, later.version >= Some(version)),
            };
            if !is_kept {
                lapses.push(Lapse {
                    promise,
                    earlier: earlier.clone(),
                    later: later.clone(),
                });
            }
        }
    }
    lapses
}

/// The version that the session was told by one operation before it began another.
fn told_before(earlier: &Op, later: &Op) -> Option<Version> {
    // The next question may be asked in the very nanosecond of the answer.
    let is_before = earlier.answered_ns()? <= later.invoke_ns && earlier.number < later.number;
    earlier.version.filter(|_| is_before)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mds_types::{Hlc, NodeId};

    use super::super::tests_support::{read, unknown, write};
    use super::*;

    fn of(client: u64, version: u64, op: Op) -> Op {
        let stamp = |hlc| Version {
            hlc: Hlc(hlc),
            node: NodeId(1),
        };
        Op {
            client,
            version: (version > 0).then(|| stamp(version)),
            ..op
        }
    }

    /// The promises that are broken, with the numbers of the two operations.
    fn lapses(ops: &[Op]) -> Vec<(&'static str, usize, usize)> {
        let lapses = check(ops, |_, _| true);
        let short = |lapse: &Lapse| (lapse.promise, lapse.earlier.number, lapse.later.number);
        lapses.iter().map(short).collect()
    }

    #[test]
    fn a_session_that_misses_its_own_write_is_seen() {
        let written = of(1, 5, write(0, (0, 10), 1));
        let sees = |client, version| {
            let read = of(client, version, read(1, (10, 20), 0));
            lapses(&[written.clone(), read])
        };
        assert_eq!(sees(1, 5), []);
        assert_eq!(sees(1, 6), [], "somebody's later one");
        assert_eq!(sees(1, 4), [(READS_ITS_WRITES, 0, 1)]);
        assert_eq!(sees(1, 0), [(READS_ITS_WRITES, 0, 1)], "nothing at all");
        assert_eq!(sees(2, 4), [], "another session");
    }

    #[test]
    fn only_what_was_acknowledged_before_on_that_key_and_is_met_binds_a_read() {
        let stale = of(1, 4, read(1, (10, 20), 0));
        let written = of(1, 5, write(0, (0, 10), 1));
        let mut elsewhere = written.clone();
        elsewhere.key = Bytes::from_static(b"elsewhere");
        assert_eq!(lapses(&[elsewhere, stale.clone()]), []);
        assert_eq!(lapses(&[unknown(written.clone()), stale.clone()]), []);
        let mut overlapping = written.clone();
        overlapping.return_ns = Some(11);
        assert_eq!(lapses(&[overlapping, stale.clone()]), []);
        let had_read = of(1, 5, read(0, (0, 10), 1));
        assert_eq!(lapses(&[had_read, stale.clone()]), [], "it only reads");
        let both = [written, stale];
        assert_eq!(check(&both, |_, _| false), [], "W was too small");
        assert_eq!(check(&both, |w, r| (w.number, r.number) == (0, 1)).len(), 1);
    }

    #[test]
    fn a_write_stamped_before_what_the_session_had_seen_is_seen() {
        let mut had_read = of(1, 9, read(0, (0, 10), 1));
        had_read.key = Bytes::from_static(b"elsewhere");
        let older = of(1, 5, write(1, (0, 10), 1));
        let writes = |client, version| {
            let written = of(client, version, write(2, (10, 20), 2));
            lapses(&[had_read.clone(), older.clone(), written])
        };
        assert_eq!(writes(1, 10), []);
        assert_eq!(
            writes(1, 9),
            [(WRITES_COME_LATER, 0, 2)],
            "greater, not equal"
        );
        assert_eq!(writes(1, 8), [(WRITES_COME_LATER, 0, 2)]);
        assert_eq!(writes(2, 8), [], "another session");
    }

    #[test]
    fn a_lapse_is_told_in_a_sentence() {
        let ops = [
            of(1, 5, write(0, (0, 10), 1)),
            of(1, 0, read(1, (10, 20), 0)),
        ];
        let text = check(&ops, |_, _| true)[0].to_string();
        assert!(
            text.starts_with("broken: a session reads its own writes: first #0"),
            "{text}"
        );
        assert!(
            text.ends_with("then #1 client 1 [10 ns, 20 ns] reads nothing"),
            "{text}"
        );
    }
}
