//! **A closed epoch takes no client's write and no hint: after a replica has closed an epoch, it says "done" of
//! one only if that very version is what it holds; or if the epoch is settled and it holds something newer.**
//!
//! Else a set could grow that others have compared already, and a version would be missing on replicas that were
//! proved equal (trap T8). Repairs and what anti-entropy fetches are not bound by it: they bring what some replica
//! of the partition has.

use mds_storage::store::Purpose;
use mds_types::Epoch;

use super::Broken;
use super::arrivals::{Arrival, taken_of_old};

const INVARIANT: &str = "a closed epoch takes no write and no hint";

/// Looks at a group of records, with the ledger's `closed` of when it came.
pub(crate) fn check(node: usize, closed: Epoch, arrivals: &[Arrival]) -> Option<Broken> {
    let is_closed = |arrival: &Arrival| {
        matches!(arrival.purpose, Purpose::Write | Purpose::Hint) && arrival.epoch <= closed
    };
    let taken = taken_of_old(arrivals, is_closed).into_iter();
    let mut wrongly = taken.filter(|(arrival, before)| {
        let is_it = *before == Some(arrival.version);
        let is_forgotten = arrival.epoch <= arrival.settled && *before > Some(arrival.version);
        !is_it && !is_forgotten
    });
    let (arrival, before) = wrongly.next()?;
    let detail = format!(
        "node {} has closed epoch {closed}, and {}",
        node + 1,
        arrival.told(before)
    );
    Some((INVARIANT, detail))
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{arrival, version};
    use super::*;

    fn is_broken(arrivals: &[Arrival]) -> bool {
        check(0, Epoch(3), arrivals).is_some()
    }

    #[test]
    fn a_write_of_a_closed_epoch_is_seen() {
        let late = arrival(1, 5, 3);
        assert!(is_broken(std::slice::from_ref(&late)));
        let hint = Arrival {
            purpose: Purpose::Hint,
            ..late.clone()
        };
        assert!(is_broken(&[hint]));
        let refused = Arrival {
            is_durable: false,
            ..late.clone()
        };
        assert!(!is_broken(&[refused]));
        assert!(!is_broken(&[arrival(1, 5, 4)]), "open");
        let repair = Arrival {
            purpose: Purpose::Repair,
            ..late.clone()
        };
        assert!(!is_broken(std::slice::from_ref(&repair)));
        assert!(!is_broken(&[repair, late.clone()]), "it is there by then");
        let same = Arrival {
            before: Some(Some(version(5))),
            ..late
        };
        assert!(!is_broken(&[same]));
    }

    /// Superseded is a new row, as long as the epoch is not settled.
    #[test]
    fn an_older_write_counts_as_done_only_where_the_epoch_is_settled() {
        let older = Arrival {
            before: Some(Some(version(6))),
            ..arrival(1, 5, 3)
        };
        assert!(is_broken(std::slice::from_ref(&older)));
        let settled = Arrival {
            settled: Epoch(3),
            ..older
        };
        assert!(!is_broken(&[settled]));
    }
}
