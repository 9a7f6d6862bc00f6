//! **Every version that a replica shows lies above the floor of its record's epoch, as far as any node has shown
//! floors.**
//!
//! Collection relies on it: whatever may still come in of later epochs is newer than what is collected (trap T9).

use mds_types::{EpochFloors, Record};

use super::Broken;

const INVARIANT: &str = "versions lie above the floor of their epoch";

/// A record that a replica shows, and the floors as some node knows them.
pub(crate) fn check(node: usize, floors: &EpochFloors, record: &Record) -> Option<Broken> {
    let floor = floors.floor(record.epoch);
    (record.version.hlc <= floor).then(|| {
        let (key, version, epoch) = (&record.key, record.version, record.epoch);
        let detail = format!(
            "node {} shows {key:?} at {version} of epoch {epoch}, whose floor is {floor:?}",
            node + 1
        );
        (INVARIANT, detail)
    })
}

#[cfg(test)]
mod tests {
    use mds_types::Hlc;

    use super::super::tests_support::record;
    use super::*;

    #[test]
    fn a_stamp_at_the_floor_is_seen() {
        let record = record(1, 5);
        let mut floors = EpochFloors::default();
        floors.begin(record.epoch, Hlc(4));
        assert_eq!(check(0, &floors, &record), None);
        let mut floors = EpochFloors::default();
        floors.begin(record.epoch, Hlc(5));
        assert!(check(0, &floors, &record).is_some());
    }
}
