//! Schedules written by hand: a story that is known beforehand, and whether it goes as told.

use mds_sim::faults::{Action, FaultConfig, SECOND_NS, Schedule, Traffic};
use mds_sim::rings::RingConfig;
use mds_sim::{Detail, Report, Settings, run};

/// Three nodes, a good network and good disks, and only these large faults.
fn tell(schedule: Schedule) -> Report {
    let settings = Settings {
        nodes: Some(3),
        schedule: Some(schedule),
        faults: Some(FaultConfig::none()),
        rings: Some(RingConfig::none()),
        is_birth_hard: false,
        detail: Detail::Whole,
        ..Settings::default()
    };
    let report = run(7, &settings);
    assert_eq!(report.violations, [], "{}", report.lines.join("\n"));
    report
}

/// When a line was written, seconds.
fn at_s(line: &str) -> Option<f64> {
    line.split_whitespace().next()?.parse().ok()
}

/// When the first line with these words was written, seconds.
fn when(report: &Report, words: &str) -> f64 {
    let line = report.lines.iter().find(|line| line.contains(words));
    line.and_then(|line| at_s(line))
        .unwrap_or_else(|| panic!("no line says {words:?}"))
}

/// The minority is cut off, the majority goes on writing and keeps hints, and after the cut all are
/// equal: that the run passed says so.
#[test]
fn a_majority_writes_through_a_partition_and_the_rest_catches_up() {
    let pairs = vec![(0, 1), (1, 0), (0, 2), (2, 0)];
    let cut = Action::Cut {
        name: "node cut off",
        traffic: Traffic::Everything,
        pairs,
        for_ns: 6 * SECOND_NS,
    };
    let report = tell(vec![(2 * SECOND_NS, cut)]);
    assert_eq!(report.faults.0.get("node cut off"), Some(&1));
    assert!(!report.faults.0.contains_key("packet lost"), "nothing else");
    let (cut_s, mended_s) = (
        when(&report, "Everything is cut, nodes 1 -> 2"),
        when(&report, "Everything flows again"),
    );
    assert_eq!((mended_s - cut_s).round(), 6.0);
    // The majority acknowledged writes in the middle of it.
    let is_within = |line: &&String| {
        let is_time = at_s(line).is_some_and(|at_s| at_s > cut_s + 1.0 && at_s < mended_s);
        is_time && line.contains("written")
    };
    assert!(report.lines.iter().filter(is_within).count() > 20);
    assert!(report.reached.0["hint stored"] > 20);
    assert!(report.reached.0["hint delivered"] > 20);
}

/// Without faults nothing is repaired for want of anything, and nobody is refused anything.
#[test]
fn without_faults_every_write_is_acknowledged() {
    let report = tell(Vec::new());
    for ending in ["unknown", "failed"] {
        assert_eq!(report.endings.get(ending), None, "{:?}", report.endings);
    }
    assert!(report.acknowledged > 500);
}
