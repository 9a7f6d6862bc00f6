//! What is done to which key: the workloads of YCSB, as one deterministic sequence for each thread.
//!
//! (Cooper, Silberstein, Tam, Ramakrishnan, Sears: *Benchmarking Cloud Serving Systems with YCSB*, SoCC 2010.)
//!
//! Workload E, short range scans, is left out: keys are placed by hash, so there is no order in which neighbours
//! could be read together, and a benchmark of something else under that name would mislead.
//!
//! Inserts go on after the loaded keys, in a ring of twice as many: when it is full they overwrite the oldest. So the
//! numbers of keys are bounded however long a run is.

use std::str::FromStr;

use super::keys::{Chooser, Distribution};
use super::random::Random;

/// What an operation does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Reads a key.
    Read,
    /// Writes a key that was loaded.
    Update,
    /// Writes a key that was not.
    Insert,
    /// Reads a key and writes it then: two requests.
    ReadModifyWrite,
}

impl Kind {
    /// All kinds, in the order of reports.
    pub(super) const ALL: [Kind; 4] = [
        Kind::Read,
        Kind::Update,
        Kind::Insert,
        Kind::ReadModifyWrite,
    ];

    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Read => "read",
            Kind::Update => "update",
            Kind::Insert => "insert",
            Kind::ReadModifyWrite => "read_modify_write",
        }
    }
}

/// Shares of the kinds, each from 0 to 1; together 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Mix {
    pub(crate) read: f64,
    pub(crate) update: f64,
    pub(crate) insert: f64,
    pub(crate) read_modify_write: f64,
}

/// A workload by name.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Workload {
    pub(crate) mix: Mix,
    /// How it chooses keys, unless told otherwise.
    pub(crate) distribution: Distribution,
}

impl Workload {
    /// So many reads, else updates; keys uniform.
    pub(crate) fn of_reads(read: f64) -> Workload {
        let mix = Mix {
            read,
            update: 1.0 - read,
            insert: 0.0,
            read_modify_write: 0.0,
        };
        Workload {
            mix,
            distribution: Distribution::Uniform,
        }
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(name: &str) -> Result<Workload, String> {
        let zipfian = |read| Workload {
            distribution: Distribution::Zipfian,
            ..Workload::of_reads(read)
        };
        let with = |mix, distribution| Workload { mix, distribution };
        let reads_and = Workload::of_reads(1.0).mix;
        match name {
            "a" => Ok(zipfian(0.5)),
            "b" => Ok(zipfian(0.95)),
            "c" => Ok(zipfian(1.0)),
            "d" => {
                let mix = Mix {
                    read: 0.95,
                    insert: 0.05,
                    ..reads_and
                };
                Ok(with(mix, Distribution::Latest))
            }
            "e" => Err(
                "workload e, range scans, is left out: keys are placed by hash, so there is no \
                 order to scan in"
                    .to_owned(),
            ),
            "f" => {
                let mix = Mix {
                    read: 0.5,
                    read_modify_write: 0.5,
                    ..reads_and
                };
                Ok(with(mix, Distribution::Zipfian))
            }
            "set" => Ok(Workload::of_reads(0.0)),
            "get" => Ok(Workload::of_reads(1.0)),
            _ => Err("expected a, b, c, d, f, set or get".to_owned()),
        }
    }
}

/// The operations of one thread, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Operations {
    random: Random,
    mix: Mix,
    chooser: Chooser,
    distribution: Distribution,
    keys: u64,
    /// This thread's number, and how many there are.
    thread: (u64, u64),
    /// Keys inserted by this thread.
    inserted: u64,
    /// Inserts that may be under way: so many of the newest keys are not read yet.
    unsettled: u64,
}

impl Operations {
    /// Those of a seed. `in_flight` is how many operations of this thread can be under way at once.
    pub(super) fn new(
        mix: Mix,
        distribution: Distribution,
        keys: u64,
        seed: u64,
        thread: (usize, usize),
        in_flight: usize,
    ) -> Operations {
        Operations {
            random: Random::new(seed, thread.0 as u64),
            mix,
            chooser: Chooser::new(distribution, keys),
            distribution,
            keys,
            thread: (thread.0 as u64, thread.1 as u64),
            inserted: 0,
            unsettled: in_flight as u64,
        }
    }

    /// The next operation and the number of its key.
    pub(super) fn next(&mut self) -> (Kind, u64) {
        let mix = self.mix;
        // Without a choice nothing is drawn: such workloads are the ones that are to be as fast as can be.
        let at = if mix.read >= 1.0 {
            0.0
        } else {
            self.random.fraction()
        };
        let kind = if at < mix.read {
            Kind::Read
        } else if at < mix.read + mix.update {
            Kind::Update
        } else if at < mix.read + mix.update + mix.insert {
            Kind::Insert
        } else if mix.read_modify_write > 0.0 {
            Kind::ReadModifyWrite
        } else {
            // Where shares add up to a little less than 1.
            Kind::Update
        };
        if kind == Kind::Insert {
            let number = self.inserted_key(self.inserted);
            self.inserted += 1;
            return (kind, number);
        }
        let drawn = self.chooser.draw(&mut self.random);
        (
            kind,
            match self.distribution {
                Distribution::Latest => self.before_newest(drawn),
                _ => drawn,
            },
        )
    }

    /// Numbers that keys can have, when so many were loaded.
    pub(super) fn numbers(keys: u64, mix: &Mix) -> u64 {
        match mix.insert > 0.0 {
            true => keys.saturating_mul(2),
            false => keys,
        }
    }

    fn inserted_key(&self, index: u64) -> u64 {
        let (number, threads) = self.thread;
        (self.keys + index * threads + number) % (2 * self.keys)
    }

    fn before_newest(&self, back: u64) -> u64 {
        let settled = self.inserted.saturating_sub(self.unsettled);
        let newest = self.keys - 1 + settled * self.thread.1;
        // `back` is below the number of keys, so this is not below 0.
        (newest - back) % (2 * self.keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operations(name: &str, thread: (usize, usize)) -> Operations {
        let workload: Workload = name.parse().unwrap();
        Operations::new(workload.mix, workload.distribution, 100, 9, thread, 4)
    }

    #[test]
    fn the_sequence_is_that_of_the_seed() {
        let take = |seed| {
            let workload: Workload = "a".parse().unwrap();
            let mut operations =
                Operations::new(workload.mix, workload.distribution, 1_000, seed, (0, 1), 50);
            (0..100).map(|_| operations.next()).collect::<Vec<_>>()
        };
        assert_eq!(take(1), take(1));
        assert_ne!(take(1), take(2));
    }

    #[test]
    fn kinds_have_their_shares() {
        for (name, expected) in [
            ("a", [0.5, 0.5, 0.0, 0.0]),
            ("b", [0.95, 0.05, 0.0, 0.0]),
            ("c", [1.0, 0.0, 0.0, 0.0]),
            ("d", [0.95, 0.0, 0.05, 0.0]),
            ("f", [0.5, 0.0, 0.0, 0.5]),
            ("set", [0.0, 1.0, 0.0, 0.0]),
            ("get", [1.0, 0.0, 0.0, 0.0]),
        ] {
            let mut operations = operations(name, (0, 1));
            let mut counts = [0u32; 4];
            for _ in 0..20_000 {
                counts[operations.next().0 as usize] += 1;
            }
            for (count, share) in counts.iter().zip(expected) {
                let found = f64::from(*count) / 20_000.0;
                assert!((found - share).abs() < 0.015, "{name}: {counts:?}");
            }
        }
        assert!("e".parse::<Workload>().unwrap_err().contains("left out"));
        assert!("x".parse::<Workload>().is_err());
    }

    #[test]
    fn inserts_go_round_a_ring_and_the_latest_keys_exist() {
        let mut exists: Vec<bool> = (0..200).map(|key| key < 100).collect();
        let mut under_way = std::collections::VecDeque::new();
        let mut operations = operations("d", (0, 1));
        let mut newest_read = false;
        for _ in 0..20_000 {
            match operations.next() {
                (Kind::Insert, key) => {
                    under_way.push_back(key);
                    if under_way.len() > 4 {
                        let done = under_way.pop_front().unwrap();
                        exists[done as usize] = true;
                    }
                }
                (_, key) => {
                    assert!(exists[key as usize], "{key} is read before it is there");
                    newest_read |= key >= 100;
                }
            }
        }
        assert!(newest_read);
        assert!(exists.iter().all(|exists| *exists));
    }

    #[test]
    fn threads_insert_different_keys() {
        let inserted = |thread| {
            let mut operations = operations("d", (thread, 2));
            let all = (0..400).map(|_| operations.next());
            let keys = all.filter(|(kind, _)| *kind == Kind::Insert);
            keys.map(|(_, key)| key).collect::<Vec<_>>()
        };
        let (first, second) = (inserted(0), inserted(1));
        assert!(first.iter().all(|key| key % 2 == 0));
        assert!(second.iter().all(|key| key % 2 == 1));
    }
}
