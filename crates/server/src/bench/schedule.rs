//! When requests are due in an open loop: by the clock alone, whatever the target does.
//!
//! A closed loop sends the next request when the last one is answered. A target that stalls for a second then delays
//! a handful of requests, where real users would have sent thousands: the stall vanishes from the percentiles. That
//! is *coordinated omission* (Tene: *How NOT to Measure Latency*). Here every request has a time at which it is due,
//! fixed beforehand, and its latency counts from there. A request that could not be sent in time has waited, and
//! that counts.

use super::random::Random;

/// How requests follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Arrivals {
    /// At equal distances
    Even,
    /// At random, as of many independent users (a Poisson process)
    Poisson,
}

const NS_PER_S: f64 = 1e9;

/// The moments at which requests are due.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    arrivals: Arrivals,
    /// Mean distance, nanoseconds.
    gap_ns: f64,
    start_ns: u64,
    /// Requests taken so far.
    taken: u64,
    /// When the next is due, after the start, nanoseconds: kept as a fraction, so that nothing drifts.
    next_ns: f64,
    random: Random,
}

impl Schedule {
    /// So many a second from a moment on. Of several threads, the one of this number: they take turns.
    pub(super) fn new(
        arrivals: Arrivals,
        rate: f64,
        start_ns: u64,
        thread: (usize, usize),
        random: Random,
    ) -> Schedule {
        let (number, threads) = thread;
        let gap_ns = NS_PER_S * threads as f64 / rate;
        let mut schedule = Schedule {
            arrivals,
            gap_ns,
            start_ns,
            taken: 0,
            next_ns: 0.0,
            random,
        };
        schedule.next_ns = match arrivals {
            Arrivals::Even => gap_ns * number as f64 / threads as f64,
            Arrivals::Poisson => schedule.random_gap_ns(),
        };
        schedule
    }

    /// When the next request is due.
    pub(super) fn next_due_ns(&self) -> u64 {
        self.start_ns + self.next_ns as u64
    }

    /// Takes the next request: when it was due.
    pub(super) fn take(&mut self) -> u64 {
        let due_ns = self.next_due_ns();
        self.taken += 1;
        self.next_ns += match self.arrivals {
            Arrivals::Even => self.gap_ns,
            Arrivals::Poisson => self.random_gap_ns(),
        };
        due_ns
    }

    /// How many requests are due by a moment and not taken; the schedule is used up.
    pub(super) fn due_and_not_taken(mut self, now_ns: u64) -> u64 {
        let before = self.taken;
        while self.next_due_ns() < now_ns {
            self.take();
        }
        self.taken - before
    }

    fn random_gap_ns(&mut self) -> f64 {
        // One less the fraction is above 0.
        -self.gap_ns * (1.0 - self.random.fraction()).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(arrivals: Arrivals, rate: f64, thread: (usize, usize)) -> Schedule {
        Schedule::new(arrivals, rate, 1_000, thread, Random::new(5, 0))
    }

    #[test]
    fn even_requests_are_due_at_equal_distances_and_do_not_drift() {
        let mut even = schedule(Arrivals::Even, 3_000.0, (0, 1));
        assert_eq!(even.take(), 1_000);
        assert_eq!(even.take(), 1_000 + 333_333);
        for _ in 2..3_000 {
            even.take();
        }
        let second = even.next_due_ns() - 1_000;
        assert!(
            second.abs_diff(1_000_000_000) <= 1,
            "after a second: {second}"
        );
    }

    #[test]
    fn threads_take_turns() {
        let mut all: Vec<u64> = (0..4)
            .flat_map(|number| {
                let mut mine = schedule(Arrivals::Even, 1_000.0, (number, 4));
                (0..3).map(move |_| mine.take()).collect::<Vec<_>>()
            })
            .collect();
        all.sort_unstable();
        let expected: Vec<u64> = (0..12).map(|n| 1_000 + n * 1_000_000).collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn random_requests_have_the_rate_and_the_spread_of_poisson() {
        let mut poisson = schedule(Arrivals::Poisson, 10_000.0, (0, 1));
        let mut gaps = Vec::new();
        let mut last = poisson.take();
        for _ in 0..50_000 {
            let due = poisson.take();
            gaps.push((due - last) as f64);
            last = due;
        }
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean / 100_000.0 - 1.0).abs() < 0.02, "{mean}");
        // Of exponential gaps the deviation is the mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.03);
    }

    #[test]
    fn what_a_stall_left_unsent_is_counted() {
        let mut even = schedule(Arrivals::Even, 1_000.0, (0, 1));
        for _ in 0..10 {
            even.take();
        }
        // A second later: 1000 were due, ten were sent.
        assert_eq!(even.due_and_not_taken(1_000 + 1_000_000_000), 990);
        let fresh = schedule(Arrivals::Even, 1_000.0, (0, 1));
        assert_eq!(fresh.due_and_not_taken(0), 0);
    }
}
