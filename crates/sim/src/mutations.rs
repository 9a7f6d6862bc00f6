//! Runs the planted bugs: for each, how many seeds it takes until an invariant breaks.
//!
//! A seed counts only if it passes without the bug, so that nothing else is mistaken for it.

use mds_types::mutation::{Mutation, switch};

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
    match is_of_rings {
        true => Settings {
            rings: None,
            ..Settings::default()
        },
        false => Settings::default(),
    }
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
