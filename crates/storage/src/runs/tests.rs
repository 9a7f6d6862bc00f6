use super::*;
use crate::disk::FaultyDisk;
use crate::keys::bucket_of;
use bytes::Bytes;
use mds_types::{Digest, Hlc, Kind, NodeId, PartitionId, Version};
use proptest::prelude::*;

const SEED: u64 = 5;

fn runs_on(disk: &FaultyDisk) -> Runs {
    disk.create_dir(RUNS_DIR).unwrap();
    disk.sync_dir("").unwrap();
    Runs::open(Arc::new(disk.clone()), SEED, 8, 64).unwrap()
}

/// Nothing is void.
fn ledger() -> Ledger {
    Ledger::new(8)
}

fn row(partition: u16, key: &[u8], hlc: u64) -> IndexRow {
    IndexRow {
        partition: PartitionId(partition),
        bucket: bucket_of(key, 64),
        key: Bytes::copy_from_slice(key),
        version: Version {
            hlc: Hlc(hlc),
            node: NodeId(3),
        },
        digest: Digest(u128::from(hlc) << 70),
        kind: if hlc.is_multiple_of(2) {
            Kind::Value
        } else {
            Kind::Tombstone
        },
    }
}

fn write(runs: &Runs, segment: u64, epochs: &[(u64, Vec<IndexRow>)]) {
    let epochs = epochs.iter().map(|(e, rows)| (Epoch(*e), rows.clone()));
    runs.write_segment(segment, epochs.collect()).unwrap();
}

/// Enough rows for several blocks.
fn many_rows() -> Vec<IndexRow> {
    (0..5000u32)
        .map(|n| row((n % 8) as u16, &n.to_be_bytes(), u64::from(n)))
        .collect()
}

#[test]
fn rows_come_back_sorted_by_range() {
    let disk = FaultyDisk::new(1);
    let runs = runs_on(&disk);
    write(&runs, 1, &[(7, many_rows())]);
    let mut expected = many_rows();
    sort_rows(&mut expected);
    assert_eq!(
        runs.rows(&ledger(), Epoch(7), RowRange::All).unwrap(),
        expected
    );
    assert_eq!(runs.rows(&ledger(), Epoch(8), RowRange::All).unwrap(), []);
    for range in [
        RowRange::Partition(PartitionId(0)),
        RowRange::Partition(PartitionId(7)),
        RowRange::Partition(PartitionId(9)),
        RowRange::Bucket(PartitionId(3), 17),
        RowRange::Bucket(PartitionId(0), 0),
    ] {
        let part: Vec<_> = expected
            .iter()
            .filter(|row| range.contains(row))
            .cloned()
            .collect();
        assert_eq!(
            runs.rows(&ledger(), Epoch(7), range).unwrap(),
            part,
            "{range:?}"
        );
    }
}

#[test]
fn the_greatest_version_of_each_key_is_kept_over_all_runs_of_an_epoch() {
    let disk = FaultyDisk::new(1);
    let runs = runs_on(&disk);
    write(
        &runs,
        1,
        &[(7, vec![row(1, b"a", 1), row(1, b"a", 5), row(1, b"b", 1)])],
    );
    write(
        &runs,
        2,
        &[
            (7, vec![row(1, b"a", 3), row(1, b"b", 2)]),
            (8, vec![row(1, b"c", 9)]),
        ],
    );
    let rows = runs.rows(&ledger(), Epoch(7), RowRange::All).unwrap();
    let mut found: Vec<_> = rows
        .iter()
        .map(|row| (&row.key[..], row.version.hlc.0))
        .collect();
    found.sort_unstable();
    assert_eq!(found, [(&b"a"[..], 5), (&b"b"[..], 2)]);
}

#[test]
fn only_the_last_epoch_of_a_segment_commits_it_and_all_are_found_again() {
    let disk = FaultyDisk::new(1);
    let runs = runs_on(&disk);
    let epochs = [(3, vec![row(1, b"a", 1)]), (5, vec![row(1, b"b", 2)])];
    write(&runs, 9, &epochs);
    disk.crash();
    let again = runs_on(&disk);
    assert_eq!(again.list(), runs.list());
    let commits: Vec<_> = again
        .list()
        .iter()
        .map(|info| (info.epoch.0, info.commits))
        .collect();
    assert_eq!(commits, [(3, false), (5, true)]);
    assert_eq!(again.remove(|info| info.epoch == Epoch(3)).unwrap(), 1);
    disk.crash();
    assert_eq!(runs_on(&disk).list().len(), 1);
}

/// Whenever the power goes, a run that commits is never there without the others.
#[test]
fn the_commit_point_is_last() {
    let epochs: Vec<_> = (1..4).map(|e| (e, vec![row(1, b"a", e)])).collect();
    let mut committed = 0;
    for ops in 0..40 {
        for seed in 0..20 {
            let disk = FaultyDisk::new(seed);
            let runs = runs_on(&disk);
            disk.fail_after_ops(ops);
            let rows = epochs.iter().map(|(e, rows)| (Epoch(*e), rows.clone()));
            let result = runs.write_segment(1, rows.collect());
            disk.crash();
            let list = runs_on(&disk).list();
            if list.iter().any(|info| info.commits) {
                committed += 1;
                assert_eq!(list.len(), 3);
            } else {
                assert!(result.is_err(), "done, but not committed");
            }
        }
    }
    assert!(committed > 100);
}

#[test]
fn limits_drop_the_oldest_closed_epochs_only() {
    let disk = FaultyDisk::new(1);
    let runs = runs_on(&disk);
    for epoch in 1..=6 {
        write(&runs, epoch, &[(epoch, vec![row(1, b"a", epoch)])]);
    }
    let limits = RunLimits {
        bytes_max: u64::MAX,
        files_max: 4,
    };
    assert_eq!(runs.excess(limits, Epoch(0)), None, "none is closed");
    let drop_excess = |limits, closed| {
        while let Some(epoch) = runs.excess(limits, closed) {
            runs.remove(|info| info.epoch == epoch).unwrap();
        }
    };
    drop_excess(limits, Epoch(4));
    assert_eq!(runs.list()[0].epoch, Epoch(3));
    let limits = RunLimits {
        bytes_max: 0,
        files_max: 100,
    };
    drop_excess(limits, Epoch(4));
    assert_eq!(runs.list()[0].epoch, Epoch(5));
}

#[test]
fn a_run_of_other_counts_or_another_name_is_refused() {
    let disk = FaultyDisk::new(1);
    write(&runs_on(&disk), 1, &[(7, vec![row(1, b"a", 1)])]);
    let open = |count| Runs::open(Arc::new(disk.clone()), SEED, count, 64).map(drop);
    assert!(open(8).is_ok());
    assert!(matches!(open(16), Err(StoreError::Corrupt { .. })));
    let (old, new) = (run_path(Epoch(7), 1), run_path(Epoch(7), 2));
    disk.rename(&old, &new).unwrap();
    assert!(matches!(open(8), Err(StoreError::Corrupt { file, .. }) if file == new));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_rows_round_trip(
        rows in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..6), 0u64..9), 1..80),
    ) {
        let disk = FaultyDisk::new(1);
        let runs = runs_on(&disk);
        // A key has one partition.
        let rows = rows.iter().map(|(key, hlc)| row(u16::from(key[0] % 8), key, *hlc));
        let rows: Vec<_> = rows.collect();
        write(&runs, 1, &[(7, rows.clone())]);
        let mut expected = rows;
        sort_rows(&mut expected);
        prop_assert_eq!(runs.rows(&ledger(), Epoch(7), RowRange::All).unwrap(), expected);
    }

    /// One flipped bit anywhere, or a cut, is an error that names the file: at opening or reading.
    #[test]
    fn damage_is_named(at: prop::sample::Index, bit in 0u8..8, cut: bool) {
        let disk = FaultyDisk::new(1);
        let rows = (0..20u32).map(|n| row(1, &n.to_be_bytes(), u64::from(n))).collect();
        write(&runs_on(&disk), 1, &[(7, rows)]);
        let (path, len) = disk.files()[0].clone();
        let at = at.index(len as usize) as u64;
        if cut {
            disk.open(&path).unwrap().truncate(at).unwrap();
        } else {
            disk.rot(&path, at, 1 << bit);
        }
        let read = Runs::open(Arc::new(disk.clone()), SEED, 8, 64)
            .and_then(|runs| runs.rows(&ledger(), Epoch(7), RowRange::All));
        let named = matches!(read, Err(StoreError::Corrupt { file, .. }) if file == path);
        prop_assert!(named);
    }
}
