//! Looks for a smaller schedule that breaks the same invariant.
//!
//! Delta debugging (Zeller and Hildebrandt, *Simplifying and Isolating Failure-Inducing Input*, 2002)
//! on the list of large faults: leave out halves, then quarters, down to single ones, and keep every
//! omission that leaves the failure. A fault that is left out does not shift the draws of the others,
//! since each part of a run has a generator of its own; what the nodes do does shift, so a smaller
//! schedule may have to be looked for in another order than one expects. The result is the smallest
//! one found, not the smallest there is.

use std::collections::BTreeSet;

use crate::run::{Report, Settings, run};

/// A smaller run that fails as the seed does.
#[derive(Debug)]
pub struct Shrunk {
    /// The large faults that are needed, by their number in the schedule.
    pub keep: BTreeSet<usize>,
    /// The run with these alone.
    pub report: Report,
    /// Runs that were made.
    pub runs: u64,
}

/// Shrinks the run of a seed. None if it does not fail.
pub fn shrink(seed: u64, settings: &Settings) -> Option<Shrunk> {
    let whole = run(seed, settings);
    let invariant = whole.violations.first()?.invariant;
    let mut best = Shrunk {
        keep: (0..whole.scheduled).collect(),
        report: whole,
        runs: 1,
    };
    let mut chunk = best.keep.len().div_ceil(2).max(1);
    loop {
        let before = best.keep.len();
        let all: Vec<usize> = best.keep.iter().copied().collect();
        for left_out in all.chunks(chunk) {
            let keep: BTreeSet<usize> = best
                .keep
                .iter()
                .copied()
                .filter(|number| !left_out.contains(number))
                .collect();
            let smaller = Settings {
                keep: Some(keep.clone()),
                ..settings.clone()
            };
            let report = run(seed, &smaller);
            best.runs += 1;
            if report.violations.iter().any(|v| v.invariant == invariant) {
                best.keep = keep;
                best.report = report;
            }
        }
        if chunk == 1 && best.keep.len() == before {
            return Some(best);
        }
        chunk = chunk.div_ceil(2).max(1);
    }
}
