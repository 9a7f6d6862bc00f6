//! Seeds that once found a bug. A seed means another run once the code around it changes, so each bug
//! also has a test of its own beside the code; here the way is kept on which it was found.

use mds_sim::rings::RingConfig;
use mds_sim::{Settings, run};

/// As all runs were before the leader looked after the ring in some of them.
fn by_operator() -> Settings {
    Settings {
        is_auto: Some(false),
        ..Settings::default()
    }
}

/// In auto mode: an epoch that was due at the very moments of the look at the ring kept a joiner out for ever (52). A
/// node that was left out of a change came back, was found wrong and filled anew, and answered meanwhile: acknowledged
/// values were read as absent (66, 193, 286). What it still showed had been collected by the others (47, 69), which is
/// no harm: they have settled it, so no reader takes it for the newest.
#[test]
fn who_was_left_out_of_a_change_comes_back_without_harm() {
    let auto = Settings {
        is_auto: Some(true),
        ..Settings::default()
    };
    for seed in [47, 52, 66, 69, 193, 286] {
        let report = run(seed, &auto);
        assert_eq!(report.violations, [], "seed {seed}");
    }
}

/// A copy of a node's directory that was started often, refused each time, and removed: its original
/// stayed out of gossip for good (15, 342), or was refused for not having what the copy had acknowledged
/// to Raft (582).
#[test]
fn a_refused_copy_leaves_its_original_alone() {
    let steady = Settings {
        rings: Some(RingConfig::none()),
        ..Settings::default()
    };
    for seed in [15, 342, 582] {
        let report = run(seed, &steady);
        assert_eq!(report.violations, [], "seed {seed}");
    }
}

/// Changes of the ring that did not come to an end. A copy taken before its node knew its cluster waited for ever,
/// where it should have been refused (1410). A member had left and was switched off, the leader had been started
/// since and never heard of it, so it was never struck out and everything waited for its word (1773, 2287). Hints
/// waited for ever for a node whose joining was called off (52, 163).
#[test]
fn a_change_of_the_ring_ends_and_leaves_nothing_behind() {
    for seed in [52, 163, 1410, 1773, 2287] {
        let report = run(seed, &by_operator());
        assert_eq!(report.violations, [], "seed {seed}");
    }
}

/// A change of the ring was called off. Hints for the node that was to join waited for ever: it holds no data, so it
/// refused them, and its coordinators tried again.
#[test]
fn hints_for_who_did_not_join_after_all_are_given_up() {
    for seed in [52, 163] {
        let settings = by_operator();
        let report = run(seed, &settings);
        assert_eq!(report.violations, [], "seed {seed}");
    }
}

/// A page met a replica before it got a tombstone, and another one after it had collected it: the deleted value was
/// shown again.
#[test]
fn pages_do_not_show_what_was_collected_between_them() {
    let settings = by_operator();
    let report = run(397, &settings);
    assert_eq!(report.violations, [], "seed 397");
}

/// A copy that was taken before its original had learnt of the cluster was not refused: it belonged to no cluster, so what
/// the members said did not concern it, and they did not invite it, because they knew its original.
#[test]
fn a_copy_from_before_the_cluster_is_refused() {
    let settings = by_operator();
    let report = run(1410, &settings);
    assert_eq!(report.violations, [], "seed 1410");
}
