//! The only place that reads the real clocks.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::api::Now;

static START: OnceLock<Instant> = OnceLock::new();

/// Both clocks, now. Monotonic time counts from the first call.
pub fn now() -> Now {
    let start = START.get_or_init(Instant::now);
    // A system clock before 1970 reads as 1970; peers then refuse the stamps, which is the right alarm.
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Now {
        mono_ns: start.elapsed().as_nanos() as u64,
        wall_us: wall.as_micros() as u64,
    }
}

/// When monotonic time will read `mono_ns`.
pub(super) fn instant_at(mono_ns: u64) -> Instant {
    let start = *START.get_or_init(Instant::now);
    // Deadlines beyond any uptime are capped at a day: the sleeper looks again then.
    let elapsed_ns = start.elapsed().as_nanos() as u64;
    const DAY_NS: u64 = 86_400_000_000_000;
    start + std::time::Duration::from_nanos(mono_ns.min(elapsed_ns + DAY_NS))
}
