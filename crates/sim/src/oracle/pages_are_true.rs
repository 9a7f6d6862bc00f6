//! **A page of a partition shows, key by key, what a read with its R would have found: nothing
//! invented, nothing older than what was acknowledged before it was asked for, nothing deleted or
//! expired, in the order of keys, and every live key of its stretch.**
//!
//! A walk's pages follow each other without gap or overlap, so the walk has every key that was live
//! and untouched meanwhile, and none twice. It is no snapshot: keys are judged one by one. Where
//! quorums do not meet, only what is *shown* is judged. At rest all replicas are equal, so that any
//! page has to be as good as one of all replicas.

use std::collections::BTreeMap;

use bytes::Bytes;
use mds_types::slot::partition_of;
use mds_types::{ClusterConfig, PartitionId, Version};

use super::expires_in_time::{can_be_missed, can_be_seen};
use super::{Broken, Watch};
use crate::history::{Ending, History, Operation, Page};

const INVARIANT: &str = "a page shows what reads of its keys would have found";

/// `lost` says how many of a key's replicas have lost their disks.
pub(super) fn check(
    history: &History,
    watch: &Watch,
    config: &ClusterConfig,
    lost: impl Fn(&Bytes) -> usize,
) -> Vec<Broken> {
    let n = config.replicas;
    // At rest any page is as good as one of all replicas that are left.
    let quorum = |page: &Page, key: &Bytes| match page.is_at_rest {
        true => n - lost(key) as u8,
        false => page.read_quorum,
    };
    let mut by_partition: BTreeMap<PartitionId, BTreeMap<&Bytes, Vec<&Operation>>> =
        BTreeMap::new();
    for operation in &history.operations {
        let partition = partition_of(&operation.key, config.partition_count);
        let keys = by_partition.entry(partition).or_default();
        keys.entry(&operation.key).or_default().push(operation);
    }
    let none = BTreeMap::new();
    let mut broken = Vec::new();
    for (number, page) in history.pages.iter().enumerate() {
        let keys = by_partition
            .get(&PartitionId(page.partition))
            .unwrap_or(&none);
        let shown = shape(page, config)
            .and_then(|()| shown_is_true(page, watch))
            .and_then(|()| nothing_is_missed(page, keys, watch, n, &quorum));
        if let Err(what) = shown {
            let (partition, after, r) = (page.partition, &page.after, page.read_quorum);
            let at_ns = page.invoked_ns;
            let detail = format!(
                "page {number}, of partition {partition} behind {after:?}, of {r} replicas, asked for at \
                 {at_ns} ns: {what}"
            );
            broken.push((INVARIANT, detail));
        }
    }
    broken
}

/// The page has the form that was asked for.
fn shape(page: &Page, config: &ClusterConfig) -> Result<(), String> {
    if page.records.len() > page.limit as usize {
        let (got, limit) = (page.records.len(), page.limit);
        return Err(format!("{got} records, and {limit} were asked for"));
    }
    let mut last = page.after.as_ref();
    for record in &page.records {
        if last.is_some_and(|last| record.key <= *last) {
            return Err(format!("{:?} comes behind {last:?}", record.key));
        }
        if partition_of(&record.key, config.partition_count).0 != page.partition {
            return Err(format!("{:?} is of another partition", record.key));
        }
        last = Some(&record.key);
    }
    match &page.next {
        Some(next) if Some(next) < last || Some(next) == page.after.as_ref() => Err(format!(
            "it goes on behind {next:?}, which is behind its end"
        )),
        _ => Ok(()),
    }
}

/// What the page shows was held, and could be seen.
fn shown_is_true(page: &Page, watch: &Watch) -> Result<(), String> {
    for record in &page.records {
        let (key, version) = (&record.key, record.version);
        if watch.record(key, version) != Some(record) {
            return Err(format!("{key:?} at {version}: no replica ever showed that"));
        }
        // A wrong clock may take an expired value for a live one, but not a deletion.
        if record.value().is_none()
            || (page.is_clock_trusted && !can_be_seen(record, page.invoked_ns))
        {
            return Err(format!("{key:?} at {version} was deleted or had expired"));
        }
    }
    Ok(())
}

/// Each key of the stretch is there as it was acknowledged before, or newer, or deleted or expired
/// since.
fn nothing_is_missed(
    page: &Page,
    keys: &BTreeMap<&Bytes, Vec<&Operation>>,
    watch: &Watch,
    n: u8,
    quorum: &impl Fn(&Page, &Bytes) -> u8,
) -> Result<(), String> {
    let shown: BTreeMap<&Bytes, Version> = page
        .records
        .iter()
        .map(|record| (&record.key, record.version))
        .collect();
    let is_in_stretch = |key: &Bytes| {
        page.after.as_ref().is_none_or(|after| key > after)
            && page.next.as_ref().is_none_or(|next| key <= next)
    };
    for (&key, operations) in keys.iter().filter(|(key, _)| is_in_stretch(key)) {
        let r = quorum(page, key);
        let left_out = u8::try_from(watch.left_out()).unwrap_or(u8::MAX);
        let settled = |op: &&Operation| settled_before(op, page.invoked_ns, r, n, left_out);
        let bound = operations.iter().filter_map(settled);
        let Some(bound) = bound.max() else { continue };
        match shown.get(key) {
            Some(version) if *version >= bound => {}
            Some(version) => {
                return Err(format!(
                    "{key:?} at {version}, but {bound} was settled before"
                ));
            }
            None => {
                let is_excused = |record| !page.is_clock_trusted && is_expiring(record);
                let mut later = watch.records_from(key, bound);
                if !later.any(|r| can_be_missed(r, page.returned_ns) || is_excused(r)) {
                    return Err(format!(
                        "{key:?} is missing, but {bound} was settled before"
                    ));
                }
            }
        }
    }
    Ok(())
}

fn is_expiring(record: &mds_types::Record) -> bool {
    record.expires_at_ms.is_some()
}

/// The version that so many replicas are known to have held before the page was asked for that its
/// quorum meets them: of an acknowledged write, or of a read that was repaired.
/// `left_out`: so many of these may have been emptied since.
fn settled_before(
    operation: &Operation,
    asked_ns: u64,
    r: u8,
    n: u8,
    left_out: u8,
) -> Option<Version> {
    let (version, holders) = match operation.ending {
        Ending::Written { version } => (version, operation.write_quorum),
        Ending::Read { version, .. } => {
            (version?, operation.read_quorum.min(operation.write_quorum))
        }
        _ => return None,
    };
    let is_before = operation.returned_ns? < asked_ns;
    (is_before && holders.saturating_sub(left_out) + r > n).then_some(version)
}

#[cfg(test)]
mod tests {
    use mds_types::{Body, Record};

    use super::super::tests_support::{key, put, record_of, version};
    use super::*;

    /// Three keys of one partition, each written once, and what replicas showed of them.
    fn world() -> (History, Watch, Vec<Record>) {
        let (mut history, mut watch) = (History::default(), Watch::default());
        let mut records = Vec::new();
        for number in 1..=3 {
            let value = put(&mut history, number, 2, Some(version(number)));
            let record = record_of(number, number, &value);
            assert_eq!(watch.visible(0, &record), None);
            records.push(record);
        }
        (history, watch, records)
    }

    fn config() -> ClusterConfig {
        ClusterConfig {
            partition_count: 1,
            ..ClusterConfig::default()
        }
    }

    /// Whether the last word on this page is that it is broken.
    fn is_broken(
        records: &[Record],
        r: u8,
        next: Option<u64>,
        change: impl Fn(&mut Watch),
    ) -> bool {
        let (mut history, mut watch, _) = world();
        change(&mut watch);
        history.pages.push(Page {
            partition: 0,
            after: None,
            limit: 3,
            read_quorum: r,
            invoked_ns: 1_000,
            returned_ns: 2_000,
            is_clock_trusted: true,
            is_at_rest: false,
            records: records.to_vec(),
            next: next.map(key),
        });
        !check(&history, &watch, &config(), |_| 0).is_empty()
    }

    #[test]
    fn a_page_must_be_whole_and_in_order() {
        let (_, _, all) = world();
        let same = |_: &mut Watch| {};
        assert!(!is_broken(&all, 2, None, same));
        let disordered = [all[1].clone(), all[0].clone(), all[2].clone()];
        assert!(is_broken(&disordered, 2, None, same));
        let doubled = [all[0].clone(), all[0].clone(), all[1].clone()];
        assert!(is_broken(&doubled, 1, None, same));
        assert!(is_broken(&all[..2], 2, None, same), "the third is missing");
        assert!(
            !is_broken(&all[..2], 2, Some(2), same),
            "the next page has it"
        );
        assert!(
            !is_broken(&all[..2], 1, None, same),
            "R = 1 promises nothing"
        );
        assert!(
            is_broken(&all, 2, Some(2), same),
            "it begins behind what was shown"
        );
    }

    #[test]
    fn what_a_page_shows_must_be_true() {
        let (_, _, all) = world();
        let mut newer = all[2].clone();
        newer.version = version(9);
        let mut page = all.clone();
        page[2] = newer.clone();
        assert!(is_broken(&page, 2, None, |_| {}), "nobody held it");
        let held = newer.clone();
        let shows = move |watch: &mut Watch| drop(watch.visible(0, &held));
        assert!(!is_broken(&page, 2, None, shows));
        let deleted = Record {
            body: Body::Tombstone,
            ..newer
        };
        page[2] = deleted.clone();
        let shows = move |watch: &mut Watch| drop(watch.visible(0, &deleted));
        assert!(is_broken(&page, 1, None, &shows), "a tombstone is shown");
        assert!(!is_broken(&all[..2], 2, None, &shows), "deleted since");
    }
}
