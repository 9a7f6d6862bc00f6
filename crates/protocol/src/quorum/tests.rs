//! Golden scripts (`testscripts/*.script`) and properties.
//!
//! A script is a list of blocks: commands, a line `---`, and the output recorded for them. Each block
//! begins with `write n=3 w=2` or `read n=3 r=2 w=2`, and every further line is one event.

use std::fmt::Write as _;

use bytes::Bytes;
use mds_types::{Body, Epoch, Hlc, NodeId, Record, Version};
use proptest::prelude::*;

use super::*;
use crate::golden;

mod rings;

/// The record that a test calls `v`: its version is `v`; versions divisible by 5 are tombstones.
fn record(v: u64) -> Record {
    Record {
        key: Bytes::from_static(b"k"),
        version: version(v),
        epoch: Epoch(1),
        expires_at_ms: None,
        body: match v % 5 {
            0 => Body::Tombstone,
            _ => Body::Value(Bytes::from(v.to_string())),
        },
    }
}

fn version(v: u64) -> Version {
    Version {
        hlc: Hlc(v),
        node: NodeId(1),
    }
}

/// What one block of a script drives.
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
enum Subject {
    None,
    Write(WriteQuorum),
    Read { quorum: ReadQuorum, w: u8 },
}

/// `name=number` among the words.
fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(words: &[&str], name: &str) -> T {
    let value = words
        .iter()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value
        .unwrap_or_else(|| panic!("no {name}= in {words:?}"))
        .parse()
        .unwrap()
}

fn run_line(subject: &mut Subject, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let replica = || words[1].parse::<usize>().unwrap();
    match (words[0], &mut *subject) {
        ("write", _) => {
            *subject = Subject::Write(WriteQuorum::new(number(&words, "w"), number(&words, "n")))
        }
        ("read", _) => {
            *subject = Subject::Read {
                quorum: ReadQuorum::new(number(&words, "r"), number(&words, "n")),
                w: number(&words, "w"),
            }
        }
        ("ack", Subject::Write(quorum)) => drop(quorum.ack(replica())),
        ("fail", Subject::Write(quorum)) => drop(quorum.fail(replica())),
        ("fail", Subject::Read { quorum, .. }) => drop(quorum.fail(replica())),
        ("answer", Subject::Read { quorum, .. }) => {
            let found = (words[2] != "none").then(|| record(words[2].parse().unwrap()));
            quorum.answer(replica(), found);
        }
        ("repaired", Subject::Read { quorum, .. }) => {
            quorum.repair_acked(replica(), version(words[2].parse().unwrap()));
        }
        _ => panic!("no such command: {line}"),
    }
    describe(subject)
}

fn describe(subject: &Subject) -> String {
    match subject {
        Subject::None => String::new(),
        Subject::Write(quorum) => format!(
            "{:?}: acked {:?}, hint {:?}, outstanding {:?}",
            quorum.outcome(),
            quorum.acked(),
            quorum.unacked(),
            quorum.outstanding(),
        ),
        Subject::Read { quorum, w } => format!(
            "{:?}: newest {}, on {:?}, stale {:?}, silent {:?}, repairs needed {}, answer: {}",
            quorum.outcome(),
            quorum
                .newest()
                .map_or("none".to_owned(), |record| record.version.hlc.0.to_string()),
            quorum.durable_on(),
            quorum.stale(),
            quorum.silent(),
            quorum.repair_acks_needed(*w),
            if quorum.may_answer(*w) { "yes" } else { "no" },
        ),
    }
}

/// Runs every block of a script and writes the script anew, with the output it gives now.
fn rerun(script: &str) -> String {
    let mut out = String::new();
    for block in script.trim().split("\n\n") {
        let mut subject = Subject::None;
        let mut outputs = Vec::new();
        for line in block.lines().take_while(|line| *line != "---") {
            writeln!(out, "{line}").unwrap();
            if !line.starts_with('#') {
                outputs.push(run_line(&mut subject, line));
            }
        }
        if !outputs.is_empty() {
            writeln!(out, "---\n{}", outputs.join("\n")).unwrap();
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len() + 1);
    out
}

#[test]
fn write_scripts() {
    let script = include_str!("../../testscripts/write.script");
    golden::check("testscripts/write.script", &rerun(script));
}

#[test]
fn read_scripts() {
    let script = include_str!("../../testscripts/read.script");
    golden::check("testscripts/read.script", &rerun(script));
}

#[test]
fn quorums_are_checked_before_anything_is_sent() {
    for quorum in 1..=3 {
        assert_eq!(check_quorum("w", quorum, 3), Ok(()));
    }
    assert!(check_quorum("w", 0, 3).is_err());
    assert_eq!(
        check_quorum("r", 4, 3).unwrap_err().to_string(),
        "r is 4: it has to be 1 to n, and n is 3"
    );
}

#[derive(Clone, Debug)]
enum Event {
    Answer(usize, Option<u64>),
    Fail(usize),
    Repaired(usize, u64),
}

/// Few versions, so that ties and disagreement are both common; replicas beyond the set too.
fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0usize..10, prop::option::weighted(0.8, 1u64..8))
            .prop_map(|(replica, v)| Event::Answer(replica, v)),
        2 => (0usize..10).prop_map(Event::Fail),
        2 => (0usize..10, 1u64..8).prop_map(|(replica, v)| Event::Repaired(replica, v)),
    ]
}

/// N, a quorum of it, and another.
fn any_quorums() -> impl Strategy<Value = (u8, u8, u8)> {
    (1u8..=REPLICAS_MAX).prop_flat_map(|n| (Just(n), 1..=n, 1..=n))
}

proptest! {
    #[test]
    fn a_write_counts_each_replica_once_and_never_changes_its_mind(
        (n, w, _) in any_quorums(), events in prop::collection::vec(any_event(), 0..40),
    ) {
        let mut quorum = WriteQuorum::new(w, n);
        let mut acked = [false; 10];
        let mut failed = [false; 10];
        let mut decided = None;
        for event in events {
            match event {
                Event::Answer(replica, _) => {
                    quorum.ack(replica);
                    acked[replica] |= replica < usize::from(n);
                }
                Event::Fail(replica) => {
                    quorum.fail(replica);
                    failed[replica] |= replica < usize::from(n);
                }
                Event::Repaired(..) => {}
            }
            let got = acked.iter().filter(|acked| **acked).count() as u8;
            let lost = (0..10).filter(|&replica| failed[replica] && !acked[replica]).count() as u8;
            prop_assert_eq!(quorum.acked_count(), got);
            prop_assert_eq!(quorum.unacked().len(), n - got);
            match (decided, quorum.outcome()) {
                (Some(before), now) => prop_assert_eq!(before, now),
                (None, Outcome::Pending) => prop_assert!(got < w && n - lost >= w),
                (None, Outcome::Met) => prop_assert_eq!(got, w),
                (None, Outcome::Impossible { needed, got: reachable, of }) => {
                    prop_assert_eq!((needed, reachable, of), (w, n - lost, n));
                    prop_assert!(reachable < w);
                }
            }
            decided = Some(quorum.outcome()).filter(|outcome| *outcome != Outcome::Pending);
        }
    }

    #[test]
    fn a_read_is_never_older_than_an_answer_it_counted(
        (n, r, w) in any_quorums(), events in prop::collection::vec(any_event(), 0..40),
    ) {
        let mut quorum = ReadQuorum::new(r, n);
        // What each replica answered first, and what it said to hold since.
        let mut answers: [Option<Option<u64>>; 10] = [None; 10];
        let mut repaired: Vec<(usize, u64)> = Vec::new();
        let mut decided = None;
        for event in events {
            let newest_before = quorum.newest().map(|newest| newest.version.hlc.0);
            match event {
                Event::Answer(replica, v) => {
                    quorum.answer(replica, v.map(record));
                    if replica < usize::from(n) && answers[replica].is_none() {
                        answers[replica] = Some(v);
                    }
                }
                Event::Fail(replica) => drop(quorum.fail(replica)),
                Event::Repaired(replica, v) => {
                    quorum.repair_acked(replica, version(v));
                    if replica < usize::from(n) && newest_before == Some(v) {
                        repaired.push((replica, v));
                    }
                }
            }
            let newest = answers.iter().flatten().flatten().max().copied();
            prop_assert_eq!(quorum.newest().cloned(), newest.map(record));

            let holds = |replica: usize| newest.is_some() && (
                answers[replica] == Some(newest)
                    || repaired.iter().any(|&(at, v)| at == replica && Some(v) == newest)
            );
            for (replica, answered) in answers.iter().map(Option::is_some).enumerate() {
                prop_assert_eq!(quorum.durable_on().contains(replica), holds(replica));
                let stale = newest.is_some() && answered && !holds(replica);
                prop_assert_eq!(quorum.stale().contains(replica), stale);
                let known = answered || holds(replica);
                prop_assert_eq!(
                    quorum.silent().contains(replica),
                    replica < usize::from(n) && !known
                );
            }
            let agree = answers.iter().flatten().all(|answer| *answer == newest);
            prop_assert_eq!(quorum.is_unanimous(), agree);
            if quorum.may_answer(w) {
                prop_assert_eq!(quorum.outcome(), Outcome::Met);
                let holders = (0..10).filter(|&replica| holds(replica)).count();
                prop_assert!(agree || holders >= usize::from(w));
            }
            if let Some(before) = decided {
                prop_assert_eq!(quorum.outcome(), before);
            }
            decided = Some(quorum.outcome()).filter(|outcome| *outcome != Outcome::Pending);
        }
    }

    /// Why strict quorums work: what W replicas acknowledged, R others cannot all have missed.
    #[test]
    fn a_read_quorum_meets_every_write_quorum(
        (n, r, w) in any_quorums(),
        write_order in Just((0..10usize).collect::<Vec<_>>()).prop_shuffle(),
        read_order in Just((0..10usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mut write = WriteQuorum::new(w, n);
        for replica in write_order {
            if write.outcome() == Outcome::Met {
                break;
            }
            write.ack(replica);
        }
        let mut read = ReadQuorum::new(r, n);
        for replica in read_order {
            if read.outcome() == Outcome::Met {
                break;
            }
            read.answer(replica, Some(record(if write.acked().contains(replica) { 2 } else { 1 })));
        }
        prop_assert_eq!(read.outcome(), Outcome::Met);
        if r + w > n {
            prop_assert_eq!(read.newest().cloned(), Some(record(2)));
        }
    }

    /// With blocking repair, reads of a majority never go back in time, wherever a value that was
    /// never acknowledged happens to be.
    #[test]
    fn reads_with_blocking_repair_are_monotonic(
        n in 1u8..=5, held in prop::collection::vec(prop::option::of(1u64..6), 5),
        orders in prop::collection::vec(Just((0..5usize).collect::<Vec<_>>()).prop_shuffle(), 2..6),
    ) {
        let quorum = n / 2 + 1;
        let mut stores = held;
        let mut seen = None;
        for order in orders {
            let mut read = ReadQuorum::new(quorum, n);
            let mut order: Vec<usize> =
                order.into_iter().filter(|replica| *replica < usize::from(n)).collect();
            for &replica in order.iter().take(usize::from(quorum)) {
                read.answer(replica, stores[replica].map(record));
            }
            // Repairs go out in another order than the answers came in, until the reader may know.
            order.reverse();
            for replica in order {
                if read.may_answer(quorum) {
                    break;
                }
                let newest = read.newest().unwrap().version;
                stores[replica] = stores[replica].max(Some(newest.hlc.0));
                read.repair_acked(replica, newest);
            }
            prop_assert!(read.may_answer(quorum));
            let answer = read.newest().map(|newest| newest.version.hlc.0);
            prop_assert!(answer >= seen, "saw {:?} after {:?}", answer, seen);
            seen = answer;
        }
    }
}
