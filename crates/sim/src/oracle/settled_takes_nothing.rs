//! **Nothing new becomes visible at or below a replica's watermark of a partition, whatever way it comes; a
//! stream that fills a partition is the only exception.**
//!
//! What is not there of a settled epoch was deleted or superseded, on all replicas. Whatever brings it back brings
//! it back from the dead (traps T10, T11).

use super::Broken;
use super::arrivals::{Arrival, taken_of_old};

const INVARIANT: &str = "nothing comes in below a watermark";

/// Looks at a group of records.
pub(crate) fn check(node: usize, arrivals: &[Arrival]) -> Option<Broken> {
    let is_settled = |arrival: &Arrival| arrival.epoch <= arrival.settled;
    let taken = taken_of_old(arrivals, is_settled).into_iter();
    let mut wrongly = taken.filter(|(arrival, before)| *before < Some(arrival.version));
    let (arrival, before) = wrongly.next()?;
    let detail = format!(
        "node {} has settled epoch {}, and {}",
        node + 1,
        arrival.settled,
        arrival.told(before)
    );
    Some((INVARIANT, detail))
}

#[cfg(test)]
mod tests {
    use mds_storage::store::Purpose;
    use mds_types::Epoch;

    use super::super::tests_support::{arrival, version};
    use super::*;

    #[test]
    fn whatever_comes_in_below_the_watermark_is_seen() {
        for purpose in [
            Purpose::Write,
            Purpose::Hint,
            Purpose::Repair,
            Purpose::Sync,
        ] {
            let late = Arrival {
                purpose,
                settled: Epoch(3),
                ..arrival(1, 5, 3)
            };
            assert!(check(0, std::slice::from_ref(&late)).is_some());
            let known = Arrival {
                before: Some(Some(version(5))),
                ..late.clone()
            };
            assert_eq!(check(0, &[known]), None);
            let superseded = Arrival {
                before: Some(Some(version(6))),
                ..late.clone()
            };
            assert_eq!(check(0, &[superseded]), None);
            let refused = Arrival {
                is_durable: false,
                ..late.clone()
            };
            assert_eq!(check(0, &[refused]), None);
            let above = Arrival {
                settled: Epoch(2),
                ..late
            };
            assert_eq!(check(0, &[above]), None);
        }
    }
}
