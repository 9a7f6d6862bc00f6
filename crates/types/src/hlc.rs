//! The hybrid logical clock: physical microseconds with a counter, in one 64-bit number.
//!
//! A stamp is `physical << 12 | counter`. It is close to wall time, so that people can read it, and
//! it follows causality: a node that has seen a stamp only gives out larger ones (Kulkarni et al.,
//! *Logical Physical Clocks*, 2014). Milliseconds would be too coarse: a client that writes twice
//! within one through two coordinators could see its later write lose.
//!
//! **Invariants**
//!
//! 1. Stamps given out by one clock strictly grow, also over restarts: a *mark* above every stamp
//!    given out is made durable before they are ([`HlcClock::reserve`]), and a restarted clock
//!    begins at its mark.
//! 2. A stamp further ahead of the local physical clock than the skew bound is refused, never
//!    adopted: one bad clock must not drag the cluster into the future.
//!
//! What it does not do: order two writes of strangers who share no message. See
//! `docs/guarantees.md`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::mutation::{Mutation, is_on};

/// Bits of the counter below the physical microseconds.
const COUNTER_BITS: u32 = 12;

/// How far ahead of physical time a mark is reserved, in microseconds. A node that crashes and restarts
/// within this time stamps up to that far ahead of its physical clock, so it has to stay well below the
/// skew bound.
pub const MARK_LEAD_US: u64 = 2_000_000;

/// How far ahead of the last stamp a mark is reserved, in microseconds, when that is ahead of physical
/// time already. Such a clock moves by its counter only, and this is room for forty million stamps. It
/// is small because a crash gives it away: with the full lead, nodes that crash again and again would
/// push their common clock ever further into the future.
pub const MARK_LEAD_AHEAD_US: u64 = 10_000;

/// One stamp: physical microseconds since 1970 (52 bits, good until 2112) and a counter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Hlc(pub u64);

impl Hlc {
    /// The earliest stamp of this physical microsecond.
    pub fn from_physical_us(physical_us: u64) -> Hlc {
        Hlc(physical_us.min(u64::MAX >> COUNTER_BITS) << COUNTER_BITS)
    }

    /// The physical part, in microseconds since 1970.
    pub fn physical_us(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    /// The counter part.
    pub fn counter(self) -> u16 {
        (self.0 & ((1 << COUNTER_BITS) - 1)) as u16
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.physical_us(), self.counter())
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hlc({self})")
    }
}

/// Why a clock would not give or take a stamp.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HlcError {
    /// The stamp lies further in the future than the bound allows. One of the two clocks is wrong.
    #[error("stamp is {ahead_us} us ahead of this node's clock, more than {max_us} us: check NTP")]
    TooFarAhead {
        /// Distance to the local physical clock, microseconds.
        ahead_us: u64,
        /// The bound, microseconds.
        max_us: u64,
    },
    /// No durable mark covers the next stamp yet: persist [`HlcClock::reserve`] first.
    #[error("the clock's durable mark is used up; a new one is being written")]
    MarkExhausted,
}

/// The clock of one node. Physical time is an argument of every call.
#[derive(Clone, Debug)]
pub struct HlcClock {
    last: Hlc,
    mark: Hlc,
    skew_us_max: u64,
}

impl HlcClock {
    /// A clock that continues after `mark`, the mark that was last made durable (zero at first).
    pub fn new(mark: Hlc, skew_us_max: u64) -> HlcClock {
        let mark = if is_on(Mutation::ClockMarkForgotten) {
            Hlc(0)
        } else {
            mark
        };
        HlcClock {
            last: mark,
            mark,
            skew_us_max,
        }
    }

    /// The next stamp.
    ///
    /// # Errors
    /// [`HlcError::MarkExhausted`] until a mark above it is durable; [`HlcError::TooFarAhead`] when
    /// the local physical clock fell so far back that peers would refuse the stamp.
    pub fn now(&mut self, physical_us: u64) -> Result<Hlc, HlcError> {
        let next = Hlc::from_physical_us(physical_us).max(Hlc(self.last.0.saturating_add(1)));
        let next = match is_on(Mutation::StampInSeconds) {
            true => Hlc::from_physical_us(physical_us / 1_000_000 * 1_000_000),
            false => next,
        };
        self.check_skew(physical_us, next)?;
        if next > self.mark {
            return Err(HlcError::MarkExhausted);
        }
        self.last = next;
        Ok(next)
    }

    /// Takes note of a stamp that a message carried.
    ///
    /// # Errors
    /// [`HlcError::TooFarAhead`]; the clock is then unchanged and the message must be refused.
    pub fn observe(&mut self, physical_us: u64, stamp: Hlc) -> Result<(), HlcError> {
        if stamp > self.last {
            self.check_skew(physical_us, stamp)?;
            self.last = stamp;
        }
        Ok(())
    }

    /// The mark to make durable now, if the present one is used up or soon will be.
    pub fn reserve(&self, physical_us: u64) -> Option<Hlc> {
        let lead = |quarters: u64| {
            let by_time = Hlc::from_physical_us(physical_us + MARK_LEAD_US / 4 * quarters);
            let last_us = self.last.physical_us();
            by_time.max(Hlc::from_physical_us(
                last_us + MARK_LEAD_AHEAD_US / 4 * quarters,
            ))
        };
        // Renewed early, so that a busy clock goes on while the disk takes its time over the new mark.
        (self.mark < lead(3)).then(|| lead(4))
    }

    /// Says that `mark` is durable: stamps up to it may be given out.
    pub fn mark_persisted(&mut self, mark: Hlc) {
        self.mark = self.mark.max(mark);
    }

    /// The largest stamp given out or observed.
    pub fn last(&self) -> Hlc {
        self.last
    }

    fn check_skew(&self, physical_us: u64, stamp: Hlc) -> Result<(), HlcError> {
        let ahead_us = stamp.physical_us().saturating_sub(physical_us);
        if ahead_us > self.skew_us_max {
            return Err(HlcError::TooFarAhead {
                ahead_us,
                max_us: self.skew_us_max,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SKEW_US: u64 = 5_000_000;

    /// Gives a stamp, persisting a mark first when one is due, as a node does.
    fn stamp(clock: &mut HlcClock, physical_us: u64) -> Result<Hlc, HlcError> {
        if let Some(mark) = clock.reserve(physical_us) {
            clock.mark_persisted(mark);
        }
        clock.now(physical_us)
    }

    #[test]
    fn no_stamp_without_a_durable_mark() {
        let mut clock = HlcClock::new(Hlc(0), SKEW_US);
        assert_eq!(clock.now(1_000), Err(HlcError::MarkExhausted));
        let mark = clock.reserve(1_000).unwrap();
        clock.mark_persisted(mark);
        assert_eq!(clock.now(1_000).unwrap().physical_us(), 1_000);
        assert_eq!(clock.reserve(1_000), None);
    }

    #[test]
    fn a_stamp_from_the_far_future_is_refused_and_leaves_no_trace() {
        let mut clock = HlcClock::new(Hlc(0), SKEW_US);
        let silly = Hlc(u64::MAX);
        assert!(matches!(
            clock.observe(1_000, silly),
            Err(HlcError::TooFarAhead { .. })
        ));
        assert_eq!(clock.last(), Hlc(0));
    }

    #[test]
    fn nodes_that_crash_again_and_again_do_not_run_away_from_time() {
        // Three clocks that see each other's stamps; one of them restarts every 20 ms.
        let mut marks = [Hlc(0); 3];
        let mut clocks = [0, 1, 2].map(|_| HlcClock::new(Hlc(0), SKEW_US));
        let mut physical_us = 1_000_000_000;
        for round in 0..3_000 {
            physical_us += 20_000;
            clocks[round % 3] = HlcClock::new(marks[round % 3], SKEW_US);
            for writer in 0..3 {
                if let Some(mark) = clocks[writer].reserve(physical_us) {
                    marks[writer] = mark;
                    clocks[writer].mark_persisted(mark);
                }
                let seen = clocks[writer].now(physical_us).unwrap();
                for clock in &mut clocks {
                    clock.observe(physical_us, seen).unwrap();
                }
            }
            let ahead_us = clocks[0].last().physical_us().saturating_sub(physical_us);
            assert!(
                ahead_us <= MARK_LEAD_US + 2 * MARK_LEAD_AHEAD_US,
                "{ahead_us} us"
            );
        }
    }

    #[test]
    fn a_clock_that_fell_far_back_stops_stamping() {
        let mut clock = HlcClock::new(Hlc(0), SKEW_US);
        stamp(&mut clock, 100_000_000).unwrap();
        assert!(stamp(&mut clock, 99_000_000).is_ok());
        assert!(matches!(
            stamp(&mut clock, 1_000),
            Err(HlcError::TooFarAhead { .. })
        ));
    }

    proptest! {
        /// Whatever physical clock, messages and restarts do, stamps strictly grow.
        #[test]
        fn stamps_strictly_grow(steps in prop::collection::vec((0u8..4, 0u64..20_000_000), 1..200)) {
            let mut clock = HlcClock::new(Hlc(0), u64::MAX);
            let mut durable = Hlc(0);
            let mut largest = Hlc(0);
            for (what, physical_us) in steps {
                match what {
                    0 => clock = HlcClock::new(durable, u64::MAX),
                    1 => {
                        let seen = Hlc::from_physical_us(physical_us);
                        clock.observe(physical_us, seen).unwrap();
                    }
                    _ => {
                        if let Some(mark) = clock.reserve(physical_us) {
                            durable = mark.max(durable);
                            clock.mark_persisted(mark);
                        }
                        let next = clock.now(physical_us).unwrap();
                        prop_assert!(next > largest);
                        largest = next;
                    }
                }
            }
        }

        /// After observing a stamp, the next one is larger: causality.
        #[test]
        fn observed_stamps_are_exceeded(physical_us in 1u64..1 << 50, ahead in 0u64..SKEW_US) {
            let mut clock = HlcClock::new(Hlc(0), SKEW_US);
            let seen = Hlc::from_physical_us(physical_us + ahead);
            clock.observe(physical_us, seen).unwrap();
            // A stamp at the very edge of the bound leaves no room: then refusing is right.
            if let Ok(next) = stamp(&mut clock, physical_us) {
                prop_assert!(next > seen);
            }
        }
    }
}
