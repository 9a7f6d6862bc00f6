//! Checkers of histories: what clients did and heard, and nothing else.
//!
//! The oracle of the simulator looks inside: it sees every replica and knows each request's quorums.
//! A checker here sees only what a client of any database could see, so that it can also judge a
//! history of real processes. All of them are pure functions over [`Op`]s.
//!
//! One row of promises, one checker. Those in the oracle need more than clients see: the replicas, or
//! the quorums of each request.
//!
//! | Setting | What is promised | Checked by |
//! |---|---|---|
//! | any | no invented values; what failed was not done | the oracle: `nothing_invented`, `failed_means_nothing` |
//! | any | a replica's version of a key only grows; a version names one record, a write has one version | the oracle, at every step: `versions_grow`, `one_record_per_version`, `one_version_per_write` |
//! | any | replicas become equal, tombstones included | the oracle: `replicas_converge` |
//! | any | an acknowledged write survives the loss of W - 1 disks | the oracle: `acknowledged_is_durable`; with k disks lost for good, W - k copies are left |
//! | R + W <= N, with a token | a session reads its own writes, and its writes come later than all it saw | [`session`], on every run: `sessions_hold` |
//! | R + W > N | regularity in version order | the oracle: `regular_reads` |
//! | R + W > N, blocking repair | monotonic quorum reads for everybody | the oracle: `monotonic_reads` |
//! | the same, one writer per key that knows what it wrote | an atomic register | [`linearizable`], on the runs of that workload |
//! | a stamp from a quorum, or consensus | a linearizable register | [`linearizable`] |
//! | scans and counts | per key what a read would have found; no snapshot | the oracle: `pages_are_true`, `counts_are_true` |
//! | expiry | per key, once, within the clocks' error | the oracle: `expires_in_time` |
//!
//! Last write wins by the coordinators' clocks, so a linearizable register for several writers is *not*
//! promised, and every run of the free workload counts what its history came to; that this is no
//! mere caution is shown in `expected_failure`. The linearizability checker is itself checked against
//! a naive one, `independent`, on thousands of small histories.

pub mod linearizable;
pub mod session;

#[cfg(test)]
mod expected_failure;
#[cfg(test)]
mod independent;
mod search;
#[cfg(test)]
mod tests_support;

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use mds_types::Version;

use crate::history::{Ending, History, Kind, Operation};

/// One operation of a client on one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Op {
    /// Its place in the history: its name in messages. No two operations share one.
    pub number: usize,
    /// Who asked. A client does one thing after another.
    pub client: u64,
    /// The register that is written or read.
    pub key: Bytes,
    /// What was asked, and what a read heard.
    pub kind: OpKind,
    /// The version that was written, or read, as far as the client was told.
    pub version: Option<Version>,
    /// When it was asked, nanoseconds of a clock that all clients share.
    pub invoke_ns: u64,
    /// When the answer came, on the same clock. `None`: it has not.
    pub return_ns: Option<u64>,
    /// What the client knows in the end.
    pub outcome: Outcome,
}

/// What was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpKind {
    /// A write; of nothing if it is a deletion.
    Write {
        /// What is written.
        value: Option<Bytes>,
    },
    /// A read.
    Read {
        /// What was found, if the outcome is [`Outcome::Ok`].
        value: Option<Bytes>,
    },
}

/// What the client knows in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It took effect between question and answer.
    Ok,
    /// A write that may take effect at any time after the question, or never.
    Unknown,
    /// It took no effect and never will.
    Failed,
}

impl Op {
    /// When it was answered, if it was and the answer means something: the time before which it took
    /// effect.
    fn answered_ns(&self) -> Option<u64> {
        match self.outcome {
            // An answer cannot come before its question.
            Outcome::Ok => self.return_ns.map(|ns| ns.max(self.invoke_ns)),
            Outcome::Unknown | Outcome::Failed => None,
        }
    }

    fn is_write(&self) -> bool {
        matches!(self.kind, OpKind::Write { .. })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, client, begin) = (self.number, self.client, self.invoke_ns);
        write!(f, "#{number} client {client} [{begin} ns, ")?;
        match self.return_ns {
            Some(end) => write!(f, "{end} ns] ")?,
            None => write!(f, "...] ")?,
        }
        match (&self.kind, self.outcome) {
            (OpKind::Write { value }, _) => write!(f, "writes {}", Shown(value))?,
            (OpKind::Read { value }, Outcome::Ok) => write!(f, "reads {}", Shown(value))?,
            (OpKind::Read { .. }, _) => write!(f, "reads")?,
        }
        if let Some(version) = self.version {
            write!(f, " at {version}")?;
        }
        match self.outcome {
            Outcome::Ok => Ok(()),
            Outcome::Unknown => write!(f, ", outcome unknown"),
            Outcome::Failed => write!(f, ", failed"),
        }
    }
}

/// Bytes of a value that a message shows, at most.
const SHOWN_BYTES_MAX: usize = 24;

/// A value as people want to see it.
struct Shown<'a>(&'a Option<Bytes>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => write!(f, "nothing"),
            Some(value) if value.len() <= SHOWN_BYTES_MAX => {
                write!(f, "\"{}\"", value.escape_ascii())
            }
            Some(value) => {
                let (start, length) = (value[..SHOWN_BYTES_MAX].escape_ascii(), value.len());
                write!(f, "\"{start}\"... ({length} bytes)")
            }
        }
    }
}

/// The operations of each key, in their order.
fn by_key(ops: &[Op]) -> BTreeMap<&Bytes, Vec<&Op>> {
    let mut keys: BTreeMap<&Bytes, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        keys.entry(&op.key).or_default().push(op);
    }
    keys
}

/// A run's history for the checkers: its operations on keys.
pub(crate) fn ops_of(history: &History) -> Vec<Op> {
    let operations = history.operations.iter().enumerate();
    operations
        .map(|(number, operation)| op_of(number, operation))
        .collect()
}

fn op_of(number: usize, operation: &Operation) -> Op {
    let (outcome, version, found) = match &operation.ending {
        Ending::Read { version, value } => (Outcome::Ok, *version, value.clone()),
        Ending::Written { version } => (Outcome::Ok, Some(*version), None),
        Ending::Failed => (Outcome::Failed, None, None),
        Ending::Pending | Ending::Unknown => (Outcome::Unknown, None, None),
    };
    let kind = match &operation.kind {
        Kind::Get => OpKind::Read { value: found },
        Kind::Put { value } => OpKind::Write {
            value: Some(value.clone()),
        },
        Kind::Delete => OpKind::Write { value: None },
    };
    Op {
        number,
        client: operation.client,
        key: operation.key.clone(),
        kind,
        version,
        invoke_ns: operation.invoked_ns,
        return_ns: operation.returned_ns,
        outcome,
    }
}

#[cfg(test)]
mod tests {
    use mds_types::{Hlc, NodeId};

    use super::*;

    #[test]
    fn every_ending_of_a_run_has_its_outcome() {
        let version = Version {
            hlc: Hlc(7),
            node: NodeId(1),
        };
        let value = Bytes::from_static(b"v");
        let put = Kind::Put {
            value: value.clone(),
        };
        let written = OpKind::Write {
            value: Some(value.clone()),
        };
        let read = Ending::Read {
            version: Some(version),
            value: Some(value.clone()),
        };
        let found = OpKind::Read { value: Some(value) };
        let unread = OpKind::Read { value: None };
        let deleted = OpKind::Write { value: None };
        let done = Ending::Written { version };
        let at = Some(version);
        let cases = [
            (Kind::Get, read, found, at, Outcome::Ok),
            (Kind::Get, Ending::Failed, unread, None, Outcome::Failed),
            (put.clone(), done.clone(), written.clone(), at, Outcome::Ok),
            (Kind::Delete, done, deleted, at, Outcome::Ok),
            (
                put.clone(),
                Ending::Unknown,
                written.clone(),
                None,
                Outcome::Unknown,
            ),
            (put, Ending::Pending, written, None, Outcome::Unknown),
        ];
        let mut history = History::default();
        for (kind, ending, ..) in &cases {
            history.begin(Operation {
                client: history.operations.len() as u64 + 100,
                is_session: false,
                key: Bytes::from_static(b"key"),
                kind: kind.clone(),
                expires_at_ms: None,
                read_quorum: 2,
                write_quorum: 2,
                invoked_ns: 10,
                returned_ns: Some(20),
                is_clock_trusted: true,
                ending: ending.clone(),
            });
        }
        let ops = ops_of(&history);
        for (number, (op, (_, _, kind, version, outcome))) in ops.iter().zip(&cases).enumerate() {
            let got = (op.number, op.client, &op.kind, op.version, op.outcome);
            assert_eq!(got, (number, number as u64 + 100, kind, *version, *outcome));
            assert_eq!((op.invoke_ns, op.return_ns), (10, Some(20)));
        }
    }

    #[test]
    fn operations_are_shown_to_people() {
        let op = |kind, return_ns, outcome| Op {
            number: 3,
            client: 1,
            key: Bytes::from_static(b"key"),
            kind,
            version: None,
            invoke_ns: 10,
            return_ns,
            outcome,
        };
        let long = Some(Bytes::from(vec![b'x'; 100]));
        let text = op(OpKind::Write { value: long }, None, Outcome::Unknown).to_string();
        assert!(
            text.starts_with("#3 client 1 [10 ns, ...] writes \"xxx"),
            "{text}"
        );
        assert!(
            text.ends_with("\"... (100 bytes), outcome unknown"),
            "{text}"
        );
        assert_eq!(
            op(OpKind::Read { value: None }, Some(20), Outcome::Ok).to_string(),
            "#3 client 1 [10 ns, 20 ns] reads nothing"
        );
    }
}
