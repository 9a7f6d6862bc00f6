//! A seed is a run: three whole nodes, with crashes and partitions, come out the same to the last
//! byte in another process, and keep their promises.

use std::process::Command;

use mds_sim::{Settings, run};

/// The seeds of the ordinary test run. Longer batches are for the binary.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=16;

/// Runs a seed in a process of its own; says what it printed, and whether all invariants held.
fn trace(seed: u64) -> (String, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_mds-sim"))
        .args(["trace", &seed.to_string()])
        .output()
        .expect("the simulator's binary runs");
    let text = String::from_utf8(output.stdout).expect("the simulator prints text");
    (text, output.status.success())
}

#[test]
fn each_seed_is_the_same_run_in_every_process_and_passes() {
    let mut hashes = Vec::new();
    for seed in SEEDS {
        let (first, is_good) = trace(seed);
        let (second, _) = trace(seed);
        assert_eq!(first, second, "seed {seed} was two different runs");
        assert!(is_good, "seed {seed}: {first}");
        hashes.push(first);
    }
    hashes.sort();
    hashes.dedup();
    assert_eq!(
        hashes.len(),
        SEEDS.count(),
        "different seeds are different runs"
    );
}

#[test]
fn the_seeds_together_reach_what_they_are_there_for() {
    let reports: Vec<_> = SEEDS.map(|seed| run(seed, &Settings::default())).collect();
    for name in [
        "power lost",
        "power lost inside the disk",
        "process killed",
        "process paused",
        "disk full",
        "bit rot refused",
        "packet cut off",
        "packet lost",
        "packet doubled",
        "late packet",
        "stream reset",
        "stream reset in the middle",
        "stream sent again after a silence",
        "slow sync",
    ] {
        let times: u64 = reports
            .iter()
            .filter_map(|report| report.faults.0.get(name))
            .sum();
        assert!(times > 0, "no seed had this fault: {name}");
    }
    for name in [
        "leader elected",
        "epoch learnt",
        "read hedged",
        "read found a difference",
        "record repaired",
        "hint stored",
        "hint delivered",
        "record superseded",
        "segment flushed",
    ] {
        let times: u64 = reports
            .iter()
            .filter_map(|report| report.reached.0.get(name))
            .sum();
        assert!(times > 0, "no seed came to this: {name}");
    }
    for report in reports {
        assert!(
            report.acknowledged > 50,
            "seed {} hardly wrote anything",
            report.seed
        );
    }
}
