//! Runs the planted bugs: for each, how many seeds it takes until an invariant breaks.
//!
//! A seed counts only if it passes without the bug, so that nothing else is mistaken for it.

use mds_types::mutation::{Mutation, switch};

use crate::faults::{Action, SECOND_NS, Schedule, Traffic};
use crate::run::{Settings, run};

/// What became of one planted bug.
#[derive(Clone, Debug)]
pub struct Caught {
    /// The bug.
    pub mutation: Mutation,
    /// The seed that caught it, and the invariant that it broke.
    pub by: Option<(u64, &'static str)>,
    /// Seeds that were run with it.
    pub seeds: u64,
}

/// How the runs of a bug are made. Those of the changes of the ring are drawn with such changes.
pub fn settings_for(mutation: Mutation) -> Settings {
    let is_of_rings = matches!(
        mutation,
        Mutation::UnionQuorum
            | Mutation::StageWithoutAcks
            | Mutation::StaleRingServed
            | Mutation::VerifiedAcrossTopologies
    );
    match mutation {
        Mutation::FloorIgnored => Settings {
            schedule: Some(slow_clocks_out_of_sight()),
            faults_ns: SLOW_CLOCK_EVERY_NS * SLOW_CLOCKS as u64,
            ..Settings::default()
        },
        _ if is_of_rings => Settings {
            rings: None,
            ..Settings::default()
        },
        _ => Settings::default(),
    }
}

/// How often a clock goes wrong where nobody hears of it, and how far apart, nanoseconds.
const SLOW_CLOCKS: usize = 3;
const SLOW_CLOCK_EVERY_NS: u64 = 15 * SECOND_NS;

/// A floor follows the slowest clock that the leader has heard of lately. So only who was cut off for long, with a clock
/// that went back meanwhile, may know of an epoch the floor of which lies ahead of its own time, and must not stamp below
/// it. That is too rare to wait for: the schedule is written by hand. The seed draws all the rest.
fn slow_clocks_out_of_sight() -> Schedule {
    let episode = |number: usize| {
        let node = number % 3;
        let at_ns = number as u64 * SLOW_CLOCK_EVERY_NS;
        let others = (0..5).filter(move |other| *other != node);
        let cut = Action::Cut {
            name: "node cut off",
            traffic: Traffic::Everything,
            pairs: others
                .flat_map(|other| [(node, other), (other, node)])
                .collect(),
            for_ns: 11 * SECOND_NS,
        };
        let jump = Action::ClockJump {
            node,
            by_us: -2_500_000,
            for_ns: 14 * SECOND_NS,
        };
        [(at_ns, cut), (at_ns, jump)]
    };
    (0..SLOW_CLOCKS).flat_map(episode).collect()
}

/// Looks for a seed that catches the bug, `seeds` of them from `start` on.
pub fn hunt(mutation: Mutation, start: u64, seeds: u64, settings: &Settings) -> Caught {
    let mut caught = Caught {
        mutation,
        by: None,
        seeds: 0,
    };
    for seed in start..start + seeds {
        switch(Some(mutation));
        let report = run(seed, settings);
        switch(None);
        caught.seeds += 1;
        if let Some(violation) = report.violations.first()
            && run(seed, settings).violations.is_empty()
        {
            caught.by = Some((seed, violation.invariant));
            break;
        }
    }
    caught
}
