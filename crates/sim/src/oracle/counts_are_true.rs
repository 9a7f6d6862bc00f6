//! **A count never exceeds what the partition has keys for; at rest it is the number of live records.**
//!
//! A count asks one replica, which may be behind. So while writes go on, nothing more is promised.
//! What expires at that very time may be counted or not.

use std::collections::BTreeMap;

use bytes::Bytes;
use mds_types::slot::partition_of;
use mds_types::{ClusterConfig, Record};

use super::Broken;
use super::expires_in_time::{can_be_missed, can_be_seen};
use crate::history::History;

const INVARIANT: &str = "a count is the number of live records";

pub(super) fn check(
    replicas: &[Vec<Record>],
    history: &History,
    config: &ClusterConfig,
) -> Vec<Broken> {
    let mut newest: BTreeMap<&Bytes, &Record> = BTreeMap::new();
    for record in replicas.iter().flatten() {
        let held = newest.entry(&record.key).or_insert(record);
        if record.version > held.version {
            *held = record;
        }
    }
    let mut broken = Vec::new();
    for count in &history.counts {
        let of_partition = newest
            .values()
            .filter(|r| partition_of(&r.key, config.partition_count).0 == count.partition);
        let (mut least, mut most) = (0, 0);
        for record in of_partition {
            let is_live = !can_be_missed(record, count.returned_ns);
            let may_be_live = can_be_seen(record, count.invoked_ns);
            least += u64::from(count.is_at_rest && is_live);
            most += u64::from(!count.is_at_rest || may_be_live);
        }
        if !(least..=most).contains(&count.count) {
            let (partition, is, at_ns) = (count.partition, count.count, count.returned_ns);
            let when = if count.is_at_rest { ", at rest" } else { "" };
            let detail = format!(
                "partition {partition} was counted as {is} at {at_ns} ns{when}, and has {least} to {most}"
            );
            broken.push((INVARIANT, detail));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use mds_types::Body;

    use super::super::tests_support::record;
    use super::*;
    use crate::history::Count;

    #[test]
    fn a_wrong_count_is_seen() {
        let config = ClusterConfig {
            partition_count: 1,
            ..ClusterConfig::default()
        };
        let deleted = Record {
            body: Body::Tombstone,
            ..record(2, 5)
        };
        let replicas = [vec![record(1, 5), deleted], vec![record(2, 4)]];
        let is_broken = |count, is_at_rest| {
            let mut history = History::default();
            history.counts.push(Count {
                partition: 0,
                invoked_ns: 10,
                returned_ns: 20,
                is_at_rest,
                count,
            });
            !check(&replicas, &history, &config).is_empty()
        };
        assert!(!is_broken(1, true));
        assert!(is_broken(0, true) && is_broken(2, true));
        assert!(!is_broken(0, false) && !is_broken(2, false));
        assert!(is_broken(3, false), "more than there are keys");
    }
}
