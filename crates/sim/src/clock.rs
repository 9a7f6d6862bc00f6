//! The clocks of one simulated machine.
//!
//! Simulated time is one number of nanoseconds that only the simulator knows. Each machine sees it
//! through crystals of its own: its monotonic clock runs a little fast or slow and begins anywhere,
//! its wall clock is wrong by some milliseconds besides.

use mds_node::api::Now;

use crate::random::Random;

/// What the simulated wall clocks show when a run begins, microseconds since 1970: 2030-01-01.
const WALL_START_US: i128 = 1_893_456_000_000_000;

/// A crystal is wrong by at most this much, parts per million. Real ones: 20 to 100.
const DRIFT_PPM_MAX: u64 = 200;

/// One crystal in so many is a bad one.
const BAD_CRYSTAL_ONE_IN: u64 = 8;

/// A bad one is wrong by at most this much, parts per million: under half a second in a run.
const BAD_DRIFT_PPM_MAX: u64 = 4_000;

/// A wall clock is wrong by at most this much, microseconds. Well below the skew that nodes refuse.
const WALL_ERROR_US_MAX: u64 = 250_000;

/// One in a million, as drift is given.
const PPM: i64 = 1_000_000;

/// What a wall clock would show that is right, microseconds since 1970.
pub(crate) fn true_wall_us(sim_ns: u64) -> u64 {
    WALL_START_US as u64 + sim_ns / 1_000
}

/// By how much a wall clock that no fault has touched can be wrong by then, microseconds.
pub(crate) fn wall_error_us_max(sim_ns: u64) -> u64 {
    // One more for each of the two roundings.
    WALL_ERROR_US_MAX + sim_ns / 1_000 * BAD_DRIFT_PPM_MAX / 1_000_000 + 2
}

/// The clocks of one machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    drift_ppm: i64,
    wall_error_us: i64,
    /// What the monotonic clock would have shown at the beginning of the run.
    mono_start_ns: u64,
    /// A fault: by how much the wall clock has jumped, microseconds.
    jump_us: i64,
    /// A fault: since when the wall clock stands still, simulated nanoseconds.
    frozen_ns: Option<u64>,
}

impl Clock {
    pub(crate) fn draw(random: &mut Random) -> Clock {
        let signed = |random: &mut Random, max: u64| random.below(2 * max + 1) as i64 - max as i64;
        Clock {
            drift_ppm: match random.below(BAD_CRYSTAL_ONE_IN) {
                0 => signed(random, BAD_DRIFT_PPM_MAX),
                _ => signed(random, DRIFT_PPM_MAX),
            },
            wall_error_us: signed(random, WALL_ERROR_US_MAX),
            mono_start_ns: random.below(1_000_000_000_000),
            jump_us: 0,
            frozen_ns: None,
        }
    }

    /// The wall clock jumps; the monotonic clock does not.
    pub(crate) fn jump(&mut self, by_us: i64) {
        self.jump_us = by_us;
    }

    /// The wall clock stands still from now on.
    pub(crate) fn freeze(&mut self, now_ns: u64) {
        self.frozen_ns = Some(now_ns);
    }

    /// The wall clock is as right as it was in the beginning.
    pub(crate) fn put_right(&mut self) {
        self.jump_us = 0;
        self.frozen_ns = None;
    }

    /// Both clocks at a moment of simulated time.
    pub(crate) fn at(&self, sim_ns: u64) -> Now {
        let elapsed_ns = self.elapsed_ns(sim_ns);
        let shown_ns = self.frozen_ns.map_or(elapsed_ns, |ns| self.elapsed_ns(ns));
        let error_us = i128::from(self.wall_error_us) + i128::from(self.jump_us);
        let wall_us = WALL_START_US + error_us + i128::from(shown_ns / 1_000);
        Now {
            mono_ns: self.mono_start_ns + elapsed_ns,
            wall_us: wall_us as u64,
        }
    }

    /// The first moment of simulated time at which the monotonic clock shows at least `mono_ns`.
    pub(crate) fn when(&self, mono_ns: u64) -> u64 {
        let elapsed_ns = mono_ns.saturating_sub(self.mono_start_ns);
        let rate = (PPM + self.drift_ppm) as u64;
        let mut sim_ns = match elapsed_ns.checked_mul(PPM as u64) {
            Some(product) => product / rate,
            // Hours away, or never: dear, and rare.
            None => {
                let near = u128::from(elapsed_ns) * PPM as u128 / u128::from(rate);
                u64::try_from(near).unwrap_or(u64::MAX)
            }
        };
        while sim_ns < u64::MAX && self.elapsed_ns(sim_ns) < elapsed_ns {
            sim_ns += 1;
        }
        sim_ns
    }

    fn elapsed_ns(&self, sim_ns: u64) -> u64 {
        // Whole millions first: all of it fits 64 bits, for ever, and rounds as the whole product would.
        let (millions, rest) = (sim_ns / PPM as u64, sim_ns % PPM as u64);
        let (millions, rest) = (millions as i64, rest as i64);
        let drift_ns = millions * self.drift_ppm + rest * self.drift_ppm / PPM;
        sim_ns.wrapping_add_signed(drift_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_early_and_hardly_late() {
        let mut random = Random::new(1);
        for _ in 0..1_000 {
            let clock = Clock::draw(&mut random);
            let sim_ns = random.below(100_000_000_000);
            let mono_ns = clock.at(sim_ns).mono_ns;
            let when_ns = clock.when(mono_ns);
            assert!(clock.at(when_ns).mono_ns >= mono_ns);
            assert!(
                when_ns <= sim_ns && sim_ns - when_ns <= 2,
                "{sim_ns} {when_ns}"
            );
        }
    }

    #[test]
    fn drift_is_as_exact_as_in_wide_arithmetic_and_never_overflows() {
        let mut random = Random::new(3);
        for _ in 0..1_000 {
            let clock = Clock::draw(&mut random);
            let sim_ns = random.bits() >> random.below(64);
            let drift_ns = i128::from(sim_ns) * i128::from(clock.drift_ppm) / i128::from(PPM);
            let elapsed_ns = i128::from(sim_ns) + drift_ns;
            assert_eq!(clock.elapsed_ns(sim_ns), elapsed_ns as u64);
        }
        // A deadline that means "never".
        let clock = Clock::draw(&mut random);
        assert!(clock.when(u64::MAX) > u64::MAX / 2);
    }

    #[test]
    fn a_jump_and_a_freeze_concern_the_wall_clock_only() {
        let mut clock = Clock::draw(&mut Random::new(2));
        let (before, after) = (clock.at(1_000_000), clock.at(2_000_000));
        clock.jump(-700);
        assert_eq!(clock.at(1_000_000).wall_us, before.wall_us - 700);
        assert_eq!(clock.at(1_000_000).mono_ns, before.mono_ns);
        clock.jump(0);
        clock.freeze(1_000_000);
        assert_eq!(clock.at(2_000_000).wall_us, before.wall_us);
        assert_eq!(clock.at(2_000_000).mono_ns, after.mono_ns);
        clock.put_right();
        assert_eq!(clock.at(2_000_000), after);
    }

    #[test]
    fn an_untouched_wall_clock_is_wrong_within_its_bound() {
        let mut random = Random::new(5);
        for _ in 0..1_000 {
            let clock = Clock::draw(&mut random);
            let sim_ns = random.below(100_000_000_000);
            let error_us = clock.at(sim_ns).wall_us.abs_diff(true_wall_us(sim_ns));
            assert!(error_us <= wall_error_us_max(sim_ns), "{error_us} us");
        }
    }

    #[test]
    fn clocks_never_go_back() {
        let clock = Clock::draw(&mut Random::new(2));
        let mut last = clock.at(0);
        for sim_ns in (0..10_000_000).step_by(997) {
            let now = clock.at(sim_ns);
            assert!(now.mono_ns >= last.mono_ns && now.wall_us >= last.wall_us);
            last = now;
        }
    }
}
