//! The ledger of `--verify`: what may be read from a key, in 8 bytes for each.
//!
//! **The check.** A read of a key has to return a value that this run (or the load phase) wrote to that key, whole,
//! and not older than the last write of it that was acknowledged before the read began. That is what overlapping
//! quorums promise; it is not linearizability, and does not check it.
//!
//! **One writer at a time.** Which of two concurrent writes is the newer one only the database knows. So a key has
//! at most one write under way: where the workload chooses a key that is being written, the next free one is taken
//! instead. And all writes of a key go through the same target, so that their order does not hang on two machines'
//! clocks (see "Why this is not linearizable" in `docs/guarantees.md`): keys are dealt out among the targets by
//! their number.
//!
//! **Unknown outcomes.** A write that failed, or whose answer never came, may become visible now, later or never: it
//! may be read, and need not be, until a later write is acknowledged. From then on it is too old.
//!
//! What it does not do: compare with what other runs wrote. A value of another run is *foreign*, unless it is one of
//! a load phase and this run had none.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::value::{Damage, Stamp};

/// Writes to one key, at most; beyond, the key is not written any more.
const SEQUENCE_MAX: u64 = (1 << 31) - 2;

const BUSY: u64 = 1 << 63;
const ISSUED_SHIFT: u32 = 32;
const ACKED: u64 = (1 << 32) - 1;

/// What is known of all keys, shared by all threads.
///
/// An entry: the sequence of the last acknowledged write (32 bits), that of the last one sent (31 bits), and whether it is
/// under way.
#[derive(Debug)]
pub(super) struct Ledger {
    entries: Box<[AtomicU64]>,
    /// Keys below this were loaded, if [`is_loaded`](Ledger::is_loaded).
    loaded_keys: u64,
    is_loaded: AtomicBool,
    run: u64,
    targets: u64,
    checks_age: bool,
}

/// What a read returned that it must not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Violation {
    pub(super) key: u64,
    pub(super) what: Wrong,
    /// The sequence that was found, if the value has one.
    pub(super) found: Option<u32>,
    /// The least that it had to be: that of the last write acknowledged before the read began.
    pub(super) expected: u32,
}

/// In which way a value is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wrong {
    /// Older than a write that was acknowledged before the read began.
    Stale,
    /// Absent, although a write was acknowledged, or the key loaded.
    Lost,
    /// Written to that key by nobody: of another run.
    Foreign,
    /// Written to the key of this number.
    OfAnotherKey(u64),
    /// With a number that was not written yet.
    NeverWritten,
    /// Damaged.
    Damaged(Damage),
}

impl Wrong {
    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Wrong::Stale => "stale",
            Wrong::Lost => "lost",
            Wrong::Foreign => "foreign",
            Wrong::OfAnotherKey(_) => "of_another_key",
            Wrong::NeverWritten => "never_written",
            Wrong::Damaged(_) => "damaged",
        }
    }
}

impl Ledger {
    /// For keys with numbers below `numbers`, of which the first `loaded_keys` a load phase would write.
    pub(super) fn new(
        numbers: u64,
        loaded_keys: u64,
        run: u64,
        targets: usize,
        checks_age: bool,
    ) -> Ledger {
        Ledger {
            entries: (0..numbers).map(|_| AtomicU64::new(0)).collect(),
            loaded_keys,
            is_loaded: AtomicBool::new(false),
            run,
            targets: targets as u64,
            checks_age,
        }
    }

    /// This run has loaded all keys.
    pub(super) fn loaded(&self) {
        self.is_loaded.store(true, Ordering::Release);
    }

    /// Takes the key for a write through this target, or the next one that can be had. `None` if every
    /// key that this target writes is being written: there have to be more keys than writes under way.
    pub(super) fn claim(&self, key: u64, target: usize) -> Option<(u64, Stamp)> {
        let (target, targets) = (target as u64, self.targets);
        // The keys of this target: its number, and every so many after it.
        let size = (self.entries.len() as u64)
            .saturating_sub(target)
            .div_ceil(targets);
        let first = key / targets;
        let keys = (0..size).map(|step| target + (first + step) % size * targets);
        keys.into_iter().find_map(|key| self.try_claim(key))
    }

    fn try_claim(&self, key: u64) -> Option<(u64, Stamp)> {
        let entry = self.entries.get(key as usize)?;
        let taken = entry.fetch_update(Ordering::AcqRel, Ordering::Acquire, |entry| {
            let issued = (entry & !BUSY) >> ISSUED_SHIFT;
            let is_free = entry & BUSY == 0 && issued < SEQUENCE_MAX;
            is_free.then(|| BUSY | (issued + 1) << ISSUED_SHIFT | (entry & ACKED))
        });
        let before = taken.ok()?;
        let stamp = Stamp {
            run: self.run,
            key,
            sequence: (before >> ISSUED_SHIFT) as u32 + 1,
        };
        Some((key, stamp))
    }

    /// The write under way was acknowledged.
    pub(super) fn acknowledged(&self, key: u64) {
        self.settle(key, |issued, _| issued);
    }

    /// The write under way failed, or its outcome is not known.
    pub(super) fn not_acknowledged(&self, key: u64) {
        self.settle(key, |_, acked| acked);
    }

    fn settle(&self, key: u64, acked: impl Fn(u64, u64) -> u64) {
        let Some(entry) = self.entries.get(key as usize) else {
            return;
        };
        // Only the one who claimed it changes it.
        let before = entry.load(Ordering::Acquire);
        let issued = (before & !BUSY) >> ISSUED_SHIFT;
        let after = issued << ISSUED_SHIFT | acked(issued, before & ACKED);
        entry.store(after, Ordering::Release);
    }

    /// What a read that begins now must return at least.
    pub(super) fn floor(&self, key: u64) -> u32 {
        (self.entry(key) & ACKED) as u32
    }

    /// Checks what a read returned (`None`: absent) that began when [`floor`](Ledger::floor) was this.
    ///
    /// # Errors
    /// The violation.
    pub(super) fn check(
        &self,
        key: u64,
        floor: u32,
        value: Option<&[u8]>,
    ) -> Result<(), Violation> {
        let violation = |what, found| Violation {
            key,
            what,
            found,
            expected: floor,
        };
        let is_loaded = self.is_loaded.load(Ordering::Acquire);
        let Some(value) = value else {
            let was_there = floor > 0 || (is_loaded && key < self.loaded_keys);
            // Absent is a stale answer, too: where quorums need not overlap it is allowed.
            return match was_there && (self.checks_age || is_loaded) {
                true => Err(violation(Wrong::Lost, None)),
                false => Ok(()),
            };
        };
        let stamp = Stamp::read(value).map_err(|damage| violation(Wrong::Damaged(damage), None))?;
        let found = Some(stamp.sequence);
        if stamp.key != key {
            return Err(violation(Wrong::OfAnotherKey(stamp.key), found));
        }
        let is_of_other_load = stamp.sequence == 0 && !is_loaded;
        if stamp.run != self.run && !is_of_other_load {
            return Err(violation(Wrong::Foreign, found));
        }
        let issued = (self.entry(key) & !BUSY) >> ISSUED_SHIFT;
        if u64::from(stamp.sequence) > issued {
            return Err(violation(Wrong::NeverWritten, found));
        }
        match self.checks_age && stamp.sequence < floor {
            true => Err(violation(Wrong::Stale, found)),
            false => Ok(()),
        }
    }

    fn entry(&self, key: u64) -> u64 {
        let entry = self.entries.get(key as usize);
        entry.map_or(0, |entry| entry.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::super::value::Values;
    use super::*;

    const RUN: u64 = 99;

    fn ledger() -> Ledger {
        Ledger::new(10, 10, RUN, 1, true)
    }

    fn value(stamp: Stamp) -> Vec<u8> {
        let mut out = Vec::new();
        Values::new(50, 50, 1, 0).append(50, Some(stamp), &mut out);
        out
    }

    fn write(ledger: &Ledger, key: u64) -> Stamp {
        let (claimed, stamp) = ledger.claim(key, 0).unwrap();
        assert_eq!(claimed, key);
        ledger.acknowledged(key);
        stamp
    }

    /// The stamp of a value of this run's load phase.
    fn loaded(key: u64) -> Stamp {
        Stamp {
            run: RUN,
            key,
            sequence: 0,
        }
    }

    fn wrong(result: Result<(), Violation>) -> &'static str {
        result.unwrap_err().what.name()
    }

    #[test]
    fn a_stale_value_is_caught_and_named() {
        let ledger = ledger();
        let (first, second) = (write(&ledger, 3), write(&ledger, 3));
        let floor = ledger.floor(3);
        assert_eq!(ledger.check(3, floor, Some(&value(second))), Ok(()));
        let violation = ledger.check(3, floor, Some(&value(first))).unwrap_err();
        assert_eq!(violation.what, Wrong::Stale);
        assert_eq!(
            (violation.key, violation.found, violation.expected),
            (3, Some(1), 2)
        );
        assert_eq!(wrong(ledger.check(3, floor, None)), "lost");
    }

    #[test]
    fn a_write_that_ends_after_the_read_began_may_be_seen_or_not() {
        let ledger = ledger();
        let first = write(&ledger, 3);
        let floor = ledger.floor(3);
        let (_, second) = ledger.claim(3, 0).unwrap();
        assert_eq!(ledger.check(3, floor, Some(&value(second))), Ok(()));
        ledger.acknowledged(3);
        assert_eq!(ledger.check(3, floor, Some(&value(first))), Ok(()));
        assert_eq!(ledger.check(3, floor, Some(&value(second))), Ok(()));
    }

    #[test]
    fn an_unknown_write_may_be_seen_until_a_later_one_is_acknowledged() {
        let ledger = ledger();
        let first = write(&ledger, 3);
        let (_, unknown) = ledger.claim(3, 0).unwrap();
        ledger.not_acknowledged(3);
        for stamp in [first, unknown] {
            assert_eq!(
                ledger.check(3, ledger.floor(3), Some(&value(stamp))),
                Ok(())
            );
        }
        let third = write(&ledger, 3);
        assert_eq!(third.sequence, 3);
        assert_eq!(
            wrong(ledger.check(3, ledger.floor(3), Some(&value(unknown)))),
            "stale"
        );
    }

    #[test]
    fn values_that_nobody_wrote_there_are_caught() {
        let ledger = ledger();
        let stamp = write(&ledger, 3);
        let check = |stamp| wrong(ledger.check(3, 1, Some(&value(stamp))));
        assert_eq!(check(Stamp { run: 1, ..stamp }), "foreign");
        assert_eq!(check(Stamp { key: 4, ..stamp }), "of_another_key");
        assert_eq!(
            check(Stamp {
                sequence: 2,
                ..stamp
            }),
            "never_written"
        );
        assert_eq!(wrong(ledger.check(3, 1, Some(b"hello"))), "damaged");
        let mut damaged = value(stamp);
        damaged[49] ^= 1;
        assert_eq!(wrong(ledger.check(3, 1, Some(&damaged))), "damaged");
    }

    #[test]
    fn values_of_a_load_phase_are_known_until_the_first_write() {
        let ledger = ledger();
        let of_other_load = Stamp {
            run: 5,
            ..loaded(3)
        };
        assert_eq!(ledger.check(3, 0, Some(&value(of_other_load))), Ok(()));
        assert_eq!(ledger.check(3, 0, None), Ok(()), "never loaded, perhaps");
        ledger.loaded();
        assert_eq!(
            wrong(ledger.check(3, 0, Some(&value(of_other_load)))),
            "foreign"
        );
        assert_eq!(wrong(ledger.check(3, 0, None)), "lost");
        let own = loaded(3);
        assert_eq!(ledger.check(3, 0, Some(&value(own))), Ok(()));
        write(&ledger, 3);
        assert_eq!(wrong(ledger.check(3, 1, Some(&value(own)))), "stale");
    }

    #[test]
    fn where_quorums_do_not_overlap_only_age_is_forgiven() {
        let ledger = Ledger::new(10, 10, RUN, 1, false);
        let (first, second) = (write(&ledger, 3), write(&ledger, 3));
        assert_eq!(ledger.check(3, 2, Some(&value(first))), Ok(()));
        assert_eq!(ledger.check(3, 2, Some(&value(second))), Ok(()));
        assert_eq!(ledger.check(3, 2, None), Ok(()));
        let foreign = Stamp { run: 1, ..second };
        assert_eq!(wrong(ledger.check(3, 2, Some(&value(foreign)))), "foreign");
    }

    #[test]
    fn a_key_has_one_writer_and_one_target() {
        let ledger = Ledger::new(10, 10, RUN, 3, true);
        let claim = |key, target| ledger.claim(key, target).map(|(key, _)| key);
        assert_eq!(claim(4, 1), Some(4));
        assert_eq!(claim(4, 1), Some(7), "4 is being written");
        assert_eq!(claim(4, 1), Some(1), "round the end");
        assert_eq!(claim(4, 1), None);
        ledger.acknowledged(4);
        assert_eq!(claim(8, 1), Some(4));
        assert_eq!(claim(8, 0), Some(6), "target 0 writes 0, 3, 6, 9");
        assert_eq!(claim(9, 2), Some(2), "there is no 11");
    }
}
