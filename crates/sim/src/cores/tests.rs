use super::*;

/// The seeds of the ordinary test run. Longer batches are for the binary.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=SEEDS_MIN;

#[test]
fn promises_hold_and_everything_is_reached() {
    let mut counts = Counts::default();
    for seed in SEEDS {
        let report = run(seed);
        assert_eq!(report.broken, [], "seed {seed}");
        for (name, times) in report.counts.0 {
            counts.add(name, times);
        }
    }
    for name in REACHED {
        assert!(counts.0.contains_key(name), "no seed came to this: {name}");
    }
}

#[test]
fn a_seed_is_the_same_run_again() {
    for seed in [1, 2, 3, u64::MAX] {
        let (one, other) = (run(seed), run(seed));
        assert_eq!(
            (one.events, one.sim_ns, one.counts),
            (other.events, other.sim_ns, other.counts)
        );
    }
}
