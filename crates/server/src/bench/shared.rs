//! What the threads of a run share: one clock, the wish to end early, and when anybody last completed anything.
//!
//! The last is what the longest stall *of all connections* is made of: a thread alone cannot know it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::phase::Window;
use super::tally::Stall;

/// The clock of a run: nanoseconds since it was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn new() -> Clock {
        Clock(Instant::now())
    }

    pub(super) fn now_ns(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// What all threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) clock: Clock,
    /// End early.
    pub(super) stop: AtomicBool,
    /// When anything was last completed, by whichever thread.
    completed_ns: AtomicU64,
}

impl Shared {
    pub(super) fn new() -> Shared {
        Shared {
            clock: Clock::new(),
            stop: AtomicBool::new(false),
            completed_ns: AtomicU64::new(0),
        }
    }

    /// Whatever was completed before this moment does not count.
    pub(super) fn begin(&self, start_ns: u64) {
        self.completed_ns.store(start_ns, Ordering::Relaxed);
    }

    /// Something is completed now: how long nothing was, in the measured window.
    pub(super) fn completed(&self, window: &Window, now_ns: u64) -> Stall {
        let before_ns = self.completed_ns.fetch_max(now_ns, Ordering::Relaxed);
        between(window, before_ns, now_ns)
    }

    /// How long nothing has been completed, in the measured window, up to now.
    pub(super) fn pause(&self, window: &Window, now_ns: u64) -> Stall {
        between(window, self.completed_ns.load(Ordering::Relaxed), now_ns)
    }
}

fn between(window: &Window, before_ns: u64, now_ns: u64) -> Stall {
    let before_ns = before_ns.max(window.measure_from_ns);
    Stall {
        span_ns: now_ns.saturating_sub(before_ns),
        from_ns: before_ns.saturating_sub(window.start_ns),
        ..Stall::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_counts_from_the_last_answer_of_anybody_within_the_window() {
        let window = Window {
            start_ns: 1_000,
            measure_from_ns: 2_000,
            end_ns: u64::MAX,
            operations: u64::MAX,
        };
        let shared = Shared::new();
        shared.begin(window.start_ns);
        let spans = |stall: Stall| (stall.span_ns, stall.from_ns);
        assert_eq!(
            spans(shared.completed(&window, 1_500)),
            (0, 1_000),
            "warm-up"
        );
        assert_eq!(spans(shared.completed(&window, 2_300)), (300, 1_000));
        assert_eq!(spans(shared.completed(&window, 2_900)), (600, 1_300));
        // Another thread looked at its clock before.
        assert_eq!(shared.completed(&window, 2_800).span_ns, 0);
        assert_eq!(spans(shared.pause(&window, 3_000)), (100, 1_900));
    }
}
