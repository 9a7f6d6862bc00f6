//! **A dead record is collected only where its epoch is settled, and only when it is not above the floor of the first
//! epoch that is not.**
//!
//! Settled: no replica can bring back what it hides. Not above that floor: whatever may still come in is newer, so
//! none of it depends on losing to it (trap T9).

use mds_types::{Epoch, Hlc, Record};

use super::Broken;

const INVARIANT: &str = "what is collected is settled, and below the floor";

/// A replica has collected a record. `settled`: its watermark there; `floor`: that of the epoch behind it.
pub(super) fn check(node: usize, record: &Record, settled: Epoch, floor: Hlc) -> Option<Broken> {
    let is_due = record.epoch <= settled && record.version.hlc <= floor;
    (!is_due).then(|| {
        let (key, version, epoch) = (&record.key, record.version, record.epoch);
        let detail = format!(
            "node {} has collected {key:?} at {version} of epoch {epoch}; it has settled epoch {settled}, and the \
             floor behind it is {}",
            node + 1,
            floor.0
        );
        (INVARIANT, detail)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::record;
    use super::*;

    #[test]
    fn what_goes_too_early_is_seen() {
        let dead = record(1, 5);
        let is_broken = |settled, floor| check(0, &dead, Epoch(settled), Hlc(floor)).is_some();
        assert!(!is_broken(1, 5));
        assert!(is_broken(0, 5), "its epoch is not settled");
        assert!(is_broken(1, 4), "something older may come still");
    }
}
