//! How what is brought here gives way to requests.
//!
//! Copies and repairs merge records by the hundred, through the same door as clients' writes. Done as fast as can be, that
//! is a second in which every write waits behind them; so they share a pace, and whoever would go on asks it first:
//!
//! - all together they bring no more than [`BYTES_PER_S`];
//! - while this node serves requests, each page is followed by a rest of [`REST_TIMES`] the time that merging it took: the busier the
//!   store, its disk and the processors are, the longer the rests.
//!
//! What it does not do: spare the node that the page comes from. That one reads on a thread that gives way by itself.

use crate::api::Now;

/// Bytes of records brought here in a second, at most.
pub(super) const BYTES_PER_S: u64 = 64 * 1024 * 1024;

/// A rest takes so many times as long as the merging before it: a third of the store's time, at most, is for what is brought.
const REST_TIMES: u64 = 2;

/// A rest, at most, nanoseconds.
const REST_NS_MAX: u64 = 100_000_000;

/// The pace of everything that is brought here.
#[derive(Debug, Default)]
pub(in super::super) struct Pacing {
    /// Nothing more is asked for before this.
    until_ns: u64,
    /// Somebody would have gone on but for that.
    is_waited_for: bool,
    /// Requests that this node had served as a replica when the last page was merged.
    served: u64,
}

impl Pacing {
    /// Whether the next page may be asked for now. If not, [`Pacing::due_ns`] says when.
    pub(super) fn may_go_on(&mut self, now: Now) -> bool {
        let may_go_on = now.mono_ns >= self.until_ns;
        self.is_waited_for |= !may_go_on;
        may_go_on
    }

    /// So many bytes have come.
    pub(super) fn note_bytes(&mut self, now: Now, bytes: usize) {
        self.rest(now, bytes as u64 * 1_000_000_000 / BYTES_PER_S);
    }

    /// Merging a page took so long, and this node has served so many requests ever.
    pub(super) fn note_merged(&mut self, now: Now, took_ns: u64, served: u64) {
        if std::mem::replace(&mut self.served, served) != served {
            self.rest(now, took_ns.saturating_mul(REST_TIMES).min(REST_NS_MAX));
        }
    }

    fn rest(&mut self, now: Now, rest_ns: u64) {
        self.until_ns = self.until_ns.max(now.mono_ns) + rest_ns;
    }

    /// When somebody who waits may go on.
    pub(in super::super) fn due_ns(&self) -> Option<u64> {
        self.is_waited_for.then_some(self.until_ns)
    }

    /// Whether somebody has waited and may go on now. Says so once.
    pub(in super::super) fn take_due(&mut self, now: Now) -> bool {
        let is_due = self.due_ns().is_some_and(|due_ns| due_ns <= now.mono_ns);
        self.is_waited_for &= !is_due;
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono_ns: u64) -> Now {
        Now {
            mono_ns,
            ..Now::default()
        }
    }

    #[test]
    fn a_page_is_followed_by_a_rest_only_if_requests_have_come_meanwhile() {
        let mut pacing = Pacing::default();
        pacing.note_merged(at(1_000), 500, 7);
        assert!(!pacing.may_go_on(at(1_999)));
        assert!(pacing.may_go_on(at(2_000)));
        pacing.note_merged(at(3_000), 500, 7);
        assert!(pacing.may_go_on(at(3_000)), "nobody but these pages came");
        pacing.note_merged(at(4_000), u64::MAX, 8);
        assert!(pacing.may_go_on(at(4_000 + REST_NS_MAX)));
    }

    #[test]
    fn rests_add_up_and_so_do_bytes() {
        let mut pacing = Pacing::default();
        pacing.note_merged(at(0), 10, 1);
        pacing.note_merged(at(0), 10, 2);
        assert!(!pacing.may_go_on(at(39)));
        assert!(pacing.may_go_on(at(40)));
        pacing.note_bytes(at(40), BYTES_PER_S as usize);
        assert!(!pacing.may_go_on(at(1_000_000_039)));
        assert!(pacing.may_go_on(at(1_000_000_040)));
    }

    #[test]
    fn who_waits_is_told_once_when_it_may_go_on() {
        let mut pacing = Pacing::default();
        pacing.note_merged(at(0), 10, 1);
        assert_eq!(pacing.due_ns(), None, "nobody has asked");
        assert!(!pacing.may_go_on(at(5)));
        assert_eq!(pacing.due_ns(), Some(20));
        assert!(!pacing.take_due(at(19)));
        assert!(pacing.take_due(at(20)));
        assert!(!pacing.take_due(at(21)));
        assert_eq!(pacing.due_ns(), None);
    }
}
