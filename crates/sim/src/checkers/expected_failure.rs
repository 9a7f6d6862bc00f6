//! **Last write wins with strict quorums is regular in version order, and its reads never go back; it
//! is not linearizable.**
//!
//! Shown on the smallest example. Two coordinators, and the clock of the second is behind. A writes
//! through the first and is acknowledged. Then B, a stranger who has seen nothing of A's, writes
//! through the second and is acknowledged too, with a *smaller* version. Everybody reads A's value from
//! then on. Seen in version order nothing is wrong, and the oracle has nothing to say. Seen in time,
//! B's write was overwritten by one that was over before it began.
//!
//! The replicas' law is the real one (`Record::supersedes`), and so are the clocks (`HlcClock`); the
//! rest is by hand, so that every stamp can be followed. Clocks that agree cure this history, and so
//! does a token that B carries from A; quorums do not, not even of all replicas.

use bytes::Bytes;
use mds_types::{Body, ClusterConfig, Epoch, Hlc, HlcClock, NodeId, Record, Version};

use super::linearizable::{EFFORT_DEFAULT, Verdict, check};
use super::ops_of;
use crate::history::{Ending, History, Kind, Operation};
use crate::oracle;

/// Replicas of the key.
const N: u8 = 3;

/// By how much the second coordinator's clock is behind, microseconds. Far less than nodes refuse.
const BEHIND_US: u64 = 100_000;

/// What nodes refuse, microseconds.
const SKEW_US_MAX: u64 = 5_000_000;

/// Every operation takes this long, and the next begins as long after it, nanoseconds.
const STEP_NS: u64 = 10_000_000;

/// A node that stamps.
struct Coordinator {
    node: NodeId,
    clock: HlcClock,
    behind_us: u64,
}

impl Coordinator {
    fn new(node: u64, behind_us: u64) -> Coordinator {
        let mut clock = HlcClock::new(Hlc(0), SKEW_US_MAX);
        clock.mark_persisted(Hlc(u64::MAX));
        Coordinator {
            node: NodeId(node),
            clock,
            behind_us,
        }
    }

    fn physical_us(&self, now_ns: u64) -> u64 {
        1_000_000_000 + now_ns / 1_000 - self.behind_us
    }

    /// The version of a write, later than what its client carries a token of.
    fn stamp(&mut self, now_ns: u64, seen: Option<Version>) -> Version {
        let physical_us = self.physical_us(now_ns);
        if let Some(seen) = seen {
            self.clock.observe(physical_us, seen.hlc).unwrap();
        }
        Version {
            hlc: self.clock.now(physical_us).unwrap(),
            node: self.node,
        }
    }
}

/// One key, its replicas, and what clients did: one thing after another.
#[derive(Default)]
struct Store {
    replicas: [Option<Record>; N as usize],
    /// Everything that a replica ever showed.
    shown: Vec<(usize, Record)>,
    history: History,
    now_ns: u64,
}

fn key() -> Bytes {
    Bytes::from_static(b"key")
}

impl Store {
    /// Writes through a coordinator to these replicas, all of which acknowledge.
    fn write(&mut self, through: &mut Coordinator, to: &[usize], seen: Option<Version>) -> Version {
        // A value says which operation writes it.
        let number = self.history.operations.len() as u64;
        let value = Bytes::copy_from_slice(&number.to_le_bytes());
        let version = through.stamp(self.now_ns, seen);
        let record = Record {
            key: key(),
            version,
            epoch: Epoch(1),
            expires_at_ms: None,
            body: Body::Value(value.clone()),
        };
        self.merge(&record, to);
        self.done(Kind::Put { value }, to, Ending::Written { version });
        version
    }

    /// Reads from these replicas, and repairs them before it answers.
    fn read(&mut self, from: &[usize]) -> Option<Version> {
        let held = from
            .iter()
            .filter_map(|&index| self.replicas[index].clone());
        let newest = held.reduce(Record::merge);
        if let Some(record) = &newest {
            self.merge(record, from);
        }
        let version = newest.as_ref().map(|record| record.version);
        let value = newest.and_then(|record| record.value().cloned());
        self.done(Kind::Get, from, Ending::Read { version, value });
        version
    }

    fn merge(&mut self, record: &Record, to: &[usize]) {
        for &index in to {
            let held = &mut self.replicas[index];
            if held.as_ref().is_none_or(|held| record.supersedes(held)) {
                *held = Some(record.clone());
                self.shown.push((index, record.clone()));
            }
        }
    }

    fn done(&mut self, kind: Kind, replicas: &[usize], ending: Ending) {
        let number = self.history.begin(Operation {
            // Every operation is a stranger's.
            client: self.history.operations.len() as u64,
            is_session: false,
            key: key(),
            kind,
            expires_at_ms: None,
            read_quorum: replicas.len() as u8,
            write_quorum: replicas.len() as u8,
            invoked_ns: self.now_ns,
            returned_ns: None,
            is_clock_trusted: true,
            ending: Ending::Pending,
        });
        self.history.end(number, self.now_ns + STEP_NS, ending);
        self.now_ns += 2 * STEP_NS;
    }

    /// What the oracle says, which knows what is promised.
    fn broken_promises(&self) -> Vec<&'static str> {
        let replicas = self
            .replicas
            .iter()
            .map(|held| held.iter().cloned().collect());
        let replicas: Vec<Vec<Record>> = replicas.collect();
        let mut watch = oracle::Watch::default();
        for (node, record) in &self.shown {
            assert_eq!(watch.visible(*node, record), None);
        }
        let config = ClusterConfig::default();
        assert_eq!(config.replicas, N);
        let broken = oracle::examine(&replicas, &self.history, &watch, &config, |_| 0);
        broken.into_iter().map(|(invariant, _)| invariant).collect()
    }

    /// Whether the clients could have told these replicas from one register.
    fn verdict(&self) -> Verdict {
        let ops = ops_of(&self.history);
        check(&ops, EFFORT_DEFAULT)
    }
}

#[test]
fn skewed_clocks_keep_every_promise_and_are_not_linearizable() {
    for quorums in [[&[0, 1][..], &[1, 2], &[0, 2]], [&[0, 1, 2][..]; 3]] {
        let (mut first, mut second) = (Coordinator::new(1, 0), Coordinator::new(2, BEHIND_US));
        let mut store = Store::default();
        let a = store.write(&mut first, quorums[0], None);
        let b = store.write(&mut second, quorums[1], None);
        assert!(b < a, "the later write has the smaller version");
        assert_eq!(store.read(quorums[2]), Some(a));

        assert_eq!(store.broken_promises(), Vec::<&str>::new());
        let Verdict::NotLinearizable(counterexample) = store.verdict() else {
            panic!("last write wins became linearizable: docs/guarantees.md promises too little");
        };
        assert_eq!(counterexample.culprit, 2, "the read");
        assert_eq!(counterexample.explained, [0, 1]);
        let text = counterexample.to_string();
        assert!(
            text.contains("> #2 client 2 [40000000 ns, 50000000 ns] reads"),
            "{text}"
        );
    }
}

#[test]
fn clocks_that_agree_cure_this_history() {
    let (mut first, mut second) = (Coordinator::new(1, 0), Coordinator::new(2, 0));
    let mut store = Store::default();
    store.write(&mut first, &[0, 1], None);
    let b = store.write(&mut second, &[1, 2], None);
    assert_eq!(store.read(&[0, 2]), Some(b));
    assert_eq!(store.broken_promises(), Vec::<&str>::new());
    assert_eq!(store.verdict(), Verdict::Linearizable);
}

#[test]
fn a_token_from_the_first_writer_cures_it_too() {
    let (mut first, mut second) = (Coordinator::new(1, 0), Coordinator::new(2, BEHIND_US));
    let mut store = Store::default();
    let a = store.write(&mut first, &[0, 1], None);
    let b = store.write(&mut second, &[1, 2], Some(a));
    assert_eq!(store.read(&[0, 2]), Some(b));
    assert_eq!(store.broken_promises(), Vec::<&str>::new());
    assert_eq!(store.verdict(), Verdict::Linearizable);
}

#[test]
fn without_meeting_quorums_not_even_the_order_of_versions_is_kept() {
    // The same store with R + W <= N: the oracle is not deaf, there was nothing for it to hear.
    let mut first = Coordinator::new(1, 0);
    let mut store = Store::default();
    let a = store.write(&mut first, &[0, 1], None);
    assert_eq!(store.read(&[2]), None);
    assert_eq!(
        store.broken_promises(),
        Vec::<&str>::new(),
        "R = 1 promises nothing"
    );
    assert_ne!(store.verdict(), Verdict::Linearizable);
    assert_eq!(store.read(&[0, 2]), Some(a));
    store.replicas = [None, None, None];
    assert_eq!(
        store.read(&[0, 2]),
        None,
        "a quorum that has lost the write"
    );
    let broken = store.broken_promises();
    assert!(
        broken.contains(&"a quorum read sees what was acknowledged before"),
        "{broken:?}"
    );
    assert!(broken.contains(&"quorum reads never go back"), "{broken:?}");
}
