use super::*;
use crate::disk::FaultyDisk;
use proptest::prelude::*;

const PARTITIONS: u16 = 4;

fn open(disk: &FaultyDisk, is_new: bool) -> Result<LedgerFile, StoreError> {
    LedgerFile::open(disk, PARTITIONS, is_new)
}

/// A change that touches everything, told apart by `number`.
fn change(ledger: &mut Ledger, number: u64) {
    ledger.closed = Epoch(number + 3);
    ledger.acked = TopologyVersion(number);
    ledger.unverifiable = Epoch(number + 1);
    let states = [
        PartitionState::Wiping,
        PartitionState::Absent,
        PartitionState::Streaming {
            after: Bytes::from(vec![7; number as usize % 9]),
            settled: Epoch(number + 5),
            chain: 8,
        },
    ];
    for (partition, state) in (0..).map(PartitionId).zip(states) {
        ledger.partition_mut(partition).unwrap().state = state;
    }
    *ledger.partition_mut(PartitionId(3)).unwrap() = PartitionLedger {
        settled: Epoch(number + 2),
        chain: u128::from(number) << 100,
        collected: Epoch(number + 1),
        wiped_at_segment: number,
        state: PartitionState::Held,
    };
}

#[test]
fn a_changed_ledger_comes_back_and_nothing_is_written_for_no_change() {
    let disk = FaultyDisk::new(1);
    let file = open(&disk, true).unwrap();
    assert_eq!(*file.get(), Ledger::new(PARTITIONS));
    file.change(&disk, |ledger| change(ledger, 7)).ok().unwrap();
    let appends = disk.counts().appends;
    file.change(&disk, |ledger| change(ledger, 7)).ok().unwrap();
    assert_eq!(disk.counts().appends, appends);
    disk.crash();
    let again = open(&disk, false).unwrap().get();
    assert_eq!(again, file.get());
    assert_eq!(
        again.free_from,
        Epoch(13),
        "what a stream's source had settled"
    );
    assert!(again.is_some_away);
    assert_eq!(
        again.collected_everywhere(),
        Some(Epoch(0)),
        "a stream holds back"
    );
    assert_eq!(
        again.partition(PartitionId(4)).state,
        PartitionState::Absent
    );
}

#[test]
fn a_ledger_that_is_missing_or_of_other_partitions_is_named() {
    let disk = FaultyDisk::new(1);
    let refusal = |result: Result<LedgerFile, StoreError>| match result {
        Err(StoreError::Corrupt { file, what, .. }) => {
            assert_eq!(file, LEDGER);
            what
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it opened"),
    };
    assert!(refusal(open(&disk, false)).contains("gone"));
    open(&disk, true).unwrap();
    assert!(refusal(LedgerFile::open(&disk, 8, false)).contains("4 partitions"));
}

#[test]
fn watermarks_of_zero_have_passed_nothing() {
    assert!(!has_passed(Epoch(0), Epoch(0)));
    assert!(has_passed(Epoch(2), Epoch(2)) && !has_passed(Epoch(2), Epoch(3)));
}

proptest! {
    /// Whatever the disk does in the middle of a change: the old ledger or the new one; and a
    /// failure that is not a full disk says that nobody knows.
    #[test]
    fn a_crash_leaves_the_old_ledger_or_the_new_one(seed: u64, ops in 0u64..12, power: bool) {
        let disk = FaultyDisk::new(seed);
        let file = open(&disk, true).unwrap();
        file.change(&disk, |ledger| change(ledger, 1)).ok().unwrap();
        let old = file.get();
        disk.fail_after_ops(ops);
        let changed = file.change(&disk, |ledger| change(ledger, 2));
        if changed.is_err() {
            prop_assert_eq!(file.get(), old.clone());
        }
        if power { disk.crash() } else { disk.process_crash() }
        let found = open(&disk, false).unwrap().get();
        prop_assert!(found == old || found.closed == Epoch(5));
        prop_assert!(changed.is_err() || found.closed == Epoch(5));
    }

    #[test]
    fn no_damage_passes(at: prop::sample::Index, flip in 1u8..) {
        let disk = FaultyDisk::new(1);
        let file = open(&disk, true).unwrap();
        file.change(&disk, |ledger| change(ledger, 1)).ok().unwrap();
        let len = disk.files()[0].1;
        prop_assert!(disk.rot(LEDGER, at.index(len as usize) as u64, flip));
        prop_assert!(open(&disk, false).is_err());
    }

    #[test]
    fn garbage_is_no_ledger(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Ledger::decode(Bytes::from(bytes));
    }
}
