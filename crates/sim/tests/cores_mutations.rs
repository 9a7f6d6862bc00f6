//! Three cores alone find the planted bugs of the protocol between coordinator and replica. In a process
//! of its own, because a bug is switched on for the whole process.
#![cfg(feature = "mutations")]

use mds_sim::cores::run;
use mds_types::mutation::{Mutation, switch};

/// Seeds for each bug, at most.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=2_000;

#[test]
fn planted_bugs_of_the_protocol_are_caught() {
    let mut missed = Vec::new();
    for mutation in [
        Mutation::WriteQuorumShort,
        Mutation::ReadQuorumShort,
        Mutation::ClaimsUndone,
        Mutation::HintCounts,
        Mutation::RetryRestamped,
        Mutation::RetryOtherEpoch,
    ] {
        switch(Some(mutation));
        let caught = SEEDS.map(run).find(|report| !report.broken.is_empty());
        switch(None);
        match caught {
            Some(report) => {
                println!("{mutation:?}: seed {}, {}", report.seed, report.broken[0].0);
                assert_eq!(run(report.seed).broken, [], "it fails without the bug");
            }
            None => missed.push(mutation),
        }
    }
    assert_eq!(missed, []);
}
