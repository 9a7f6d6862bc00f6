//! By hand, against the naive checker, and at full size.

use std::collections::BTreeSet;

use super::super::independent::is_linearizable;
use super::super::tests_support::{Shape, disturb, of_registers, read, unknown, write};
use super::*;
use crate::random::Random;

fn verdict(ops: &[Op]) -> Verdict {
    check(ops, EFFORT_DEFAULT)
}

fn is_good(ops: &[Op]) -> bool {
    match verdict(ops) {
        Verdict::Linearizable => true,
        Verdict::NotLinearizable(_) => false,
        Verdict::Undecided { .. } => panic!("too much effort for {ops:#?}"),
    }
}

#[test]
fn a_stale_read_is_seen_and_a_concurrent_one_is_not_stale() {
    let (old, new) = (write(0, (0, 10), 1), write(1, (20, 30), 2));
    let reads = |begin_ns| read(2, (begin_ns, 40), 1);
    assert!(!is_good(&[old.clone(), new.clone(), reads(31)]));
    assert!(is_good(&[old.clone(), new.clone(), reads(30)]), "a tie");
    assert!(is_good(&[old, new, reads(25)]));
    assert!(is_good(&[]));
    assert!(is_good(&[read(0, (0, 1), 0)]), "nothing at first");
    assert!(!is_good(&[read(0, (0, 1), 7)]), "nobody wrote it");
}

#[test]
fn two_readers_do_not_disagree_about_the_order_of_writes() {
    let writes = [write(0, (0, 100), 1), write(1, (0, 100), 2)];
    let reads = |first, second| [read(2, (10, 20), first), read(3, (30, 40), second)];
    let history = |first, second| [writes.clone(), reads(first, second)].concat();
    assert!(is_good(&history(1, 2)));
    assert!(is_good(&history(2, 1)));
    let back_and_forth = [&history(1, 2)[..], &[read(4, (50, 60), 1)]].concat();
    assert!(!is_good(&back_and_forth));
}

#[test]
fn an_unknown_write_may_come_late_or_never_but_only_once() {
    let maybe = unknown(write(0, (0, 0), 1));
    let later = write(1, (10, 20), 2);
    let reads = |number, begin_ns, value| read(number, (begin_ns, begin_ns + 5), value);
    let with = |reads: &[Op]| is_good(&[&[maybe.clone(), later.clone()], reads].concat());
    assert!(with(&[reads(2, 30, 2)]), "never");
    assert!(with(&[reads(2, 30, 2), reads(3, 1_000, 1)]), "late");
    assert!(!with(&[reads(2, 30, 1), reads(3, 40, 2), reads(4, 50, 1)]));
    assert!(!is_good(&[
        read(1, (0, 5), 1),
        unknown(write(0, (6, 6), 1))
    ]));
}

#[test]
fn a_failed_write_never_takes_effect() {
    let failed = Op {
        outcome: Outcome::Failed,
        ..write(0, (0, 10), 1)
    };
    assert!(is_good(&[failed.clone(), read(1, (20, 30), 0)]));
    assert!(!is_good(&[failed, read(1, (20, 30), 1)]));
}

#[test]
fn the_counterexample_ends_where_the_history_first_cannot_be_explained() {
    let mut ops = vec![
        write(0, (0, 10), 1),
        write(1, (20, 30), 2),
        unknown(write(2, (25, 25), 3)),
        write(3, (35, 90), 4),
        read(4, (40, 50), 1),
        read(5, (45, 95), 4),
        read(6, (100, 110), 1),
    ];
    let mut elsewhere = read(7, (0, 1), 0);
    elsewhere.key = Bytes::from_static(b"elsewhere");
    ops.push(elsewhere);
    let Verdict::NotLinearizable(counterexample) = verdict(&ops) else {
        panic!("it is not linearizable");
    };
    assert_eq!(
        (counterexample.culprit, counterexample.is_shortest),
        (4, true)
    );
    assert_eq!(counterexample.explained, [0, 1]);
    let numbers: Vec<usize> = counterexample.ops.iter().map(|op| op.number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
    let text = counterexample.to_string();
    for line in [
        "\"key\" is no register: the answer to #4 cannot be explained",
        "  #3 client 3 [35 ns, ...] writes \"v4\", outcome unknown",
        "> #4 client 4 [40 ns, 50 ns] reads \"v1\"",
        "  #5 client 5 [45 ns, ...] reads, outcome unknown",
        "all before it can be, in this order: #0, #1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line:?} not in\n{text}");
    }
}

/// The last answer never came.
fn without_answer(ops: &[Op], number: usize) -> Vec<Op> {
    let forget = |op: &Op| match op.number == number {
        true => unknown(op.clone()),
        false => op.clone(),
    };
    ops.iter().map(forget).collect()
}

#[test]
fn it_agrees_with_the_naive_checker_on_small_histories() {
    const HISTORIES: usize = 40_000;
    let root = Random::new(1);
    let (mut good, mut bad, mut unknown_in_good, mut unknown_in_bad) = (0, 0, 0, 0);
    let (mut late_writes, mut two_keys) = (0, 0);
    for index in 0..HISTORIES {
        let mut random = root.part("history", index);
        let shape = Shape {
            ops: random.between(2, 6) as usize,
            keys: random.between(1, 2),
            values: random.between(2, 5),
            time_ns: random.between(4, 20),
            latency_ns_max: random.between(1, 12),
        };
        let mut ops = of_registers(&mut random, &shape);
        let disturbances = random.below(6);
        for _ in 0..disturbances {
            disturb(&mut random, &shape, &mut ops);
        }
        let expected = is_linearizable(&ops);
        assert!(expected || disturbances > 0, "naive on {ops:#?}");
        let is_unknown = |op: &Op| op.outcome == Outcome::Unknown;
        let has_unknown = usize::from(ops.iter().any(is_unknown));
        two_keys += usize::from(by_key(&ops).len() == 2);
        match verdict(&ops) {
            Verdict::Linearizable => {
                assert!(expected, "it finds an order for {ops:#?}");
                good += 1;
                unknown_in_good += has_unknown;
                let known: Vec<Op> = ops.into_iter().filter(|op| !is_unknown(op)).collect();
                late_writes += usize::from(!is_linearizable(&known));
            }
            Verdict::NotLinearizable(counterexample) => {
                assert!(!expected, "it finds no order for {ops:#?}");
                bad += 1;
                unknown_in_bad += has_unknown;
                assert!(counterexample.is_shortest);
                assert!(!is_linearizable(&counterexample.ops), "{counterexample}");
                let before = without_answer(&counterexample.ops, counterexample.culprit);
                assert!(is_linearizable(&before), "{counterexample}");
            }
            Verdict::Undecided { .. } => panic!("six operations are no effort: {ops:#?}"),
        }
    }
    println!(
        "{good} linearizable ({unknown_in_good} with unknown writes, {late_writes} only thanks to \
         them), {bad} not ({unknown_in_bad} with unknown writes); {two_keys} with two keys"
    );
    assert_eq!(good + bad, HISTORIES);
    assert!(good > HISTORIES / 4 && bad > HISTORIES / 4);
    assert!(unknown_in_good > HISTORIES / 20 && unknown_in_bad > HISTORIES / 20);
    assert!(late_writes > HISTORIES / 100 && two_keys > HISTORIES / 4);
}

/// A history of real size: thousands of operations on few keys, about five at a time.
fn large(seed: u64) -> Vec<Op> {
    let shape = Shape {
        ops: 6_000,
        keys: 3,
        values: 1_000_000,
        time_ns: 6_000_000,
        latency_ns_max: 10_000,
    };
    of_registers(&mut Random::new(seed), &shape)
}

#[test]
fn large_histories_are_decided_both_ways() {
    for seed in 0..3 {
        let mut ops = large(seed);
        assert!(is_good(&ops));
        // The last read of all finds the first value that was ever read there.
        let values = |op: &Op| match &op.kind {
            OpKind::Read { value } => Some(value.clone()),
            OpKind::Write { .. } => None,
        };
        let last = (0..ops.len())
            .filter(|&index| !ops[index].is_write())
            .max_by_key(|&index| ops[index].invoke_ns)
            .unwrap();
        let key = ops[last].key.clone();
        let mut reads: Vec<&Op> = ops.iter().filter(|op| op.key == key).collect();
        reads.sort_by_key(|op| op.invoke_ns);
        let first = reads
            .iter()
            .filter_map(|op| values(op))
            .find(Option::is_some);
        ops[last].kind = OpKind::Read {
            value: first.unwrap(),
        };
        let Verdict::NotLinearizable(counterexample) = verdict(&ops) else {
            panic!("a stale read went unseen");
        };
        assert_eq!(counterexample.culprit, ops[last].number);
        assert!(counterexample.is_shortest);
        assert_explains(&counterexample);
    }
}

/// The order that explains what came before does so: checked step by step.
fn assert_explains(counterexample: &Counterexample) {
    let ops: BTreeMap<usize, &Op> = counterexample
        .ops
        .iter()
        .map(|op| (op.number, op))
        .collect();
    let mut held = None;
    let mut latest_begin_ns = 0;
    let mut left: BTreeSet<usize> = counterexample
        .ops
        .iter()
        .filter(|op| op.answered_ns().is_some() && op.number != counterexample.culprit)
        .map(|op| op.number)
        .collect();
    for number in &counterexample.explained {
        let op = ops[number];
        assert!(latest_begin_ns <= op.answered_ns().unwrap_or(u64::MAX));
        latest_begin_ns = latest_begin_ns.max(op.invoke_ns);
        match &op.kind {
            OpKind::Write { value } => held = value.clone(),
            OpKind::Read { value } => assert_eq!(*value, held, "#{number}"),
        }
        left.remove(number);
    }
    assert!(left.is_empty(), "not explained: {left:?}");
}

#[test]
fn beyond_the_effort_nothing_is_claimed() {
    // Two values that are read in turns, among many writes whose order is open.
    let mut ops: Vec<Op> = (0..30)
        .map(|number| write(number, (0, 1_000), number as u64 + 1))
        .collect();
    ops.push(read(30, (10, 20), 1));
    ops.push(read(31, (30, 40), 2));
    ops.push(read(32, (50, 60), 1));
    let key = Bytes::from_static(b"key");
    assert_eq!(check(&ops, 1_000), Verdict::Undecided { key });
    // Guilt that is proven elsewhere counts all the same.
    let mut elsewhere = read(33, (0, 1), 5);
    elsewhere.key = Bytes::from_static(b"later key");
    let Verdict::NotLinearizable(found) = check(&[&ops[..], &[elsewhere]].concat(), 1_000) else {
        panic!("a value that nobody wrote went unseen");
    };
    assert_eq!((found.culprit, found.is_shortest), (33, true));
    // A beginning is not called the shortest when that is not known.
    ops.push(read(33, (2_000, 2_001), 99));
    let Verdict::NotLinearizable(found) = check(&ops, 1_000) else {
        panic!("a value that nobody wrote went unseen");
    };
    assert_eq!((found.culprit, found.is_shortest), (33, false));
    assert!(
        found
            .to_string()
            .ends_with("there may be a shorter beginning that cannot be explained")
    );
}
