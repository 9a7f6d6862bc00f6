//! How background threads give way to requests.
//!
//! Flushing, verification, copying and searching come in bursts of a tenth of a second and more. On a machine with processors
//! to spare they disturb nobody and should be quick. Where processors are scarce, each of a request's many short steps
//! queues behind them: with three to five nodes on two processors a change of the ring made some requests 50 ms late.
//!
//! So a thread in the background looks at itself after every [`SLICE`] of work: if it had to queue for a processor for a
//! notable share of that time, then so did others, and it pauses for [`PAUSE_SLICES`] times as long as it has worked. The
//! kernel tells how long a thread has queued (`schedstat`); where it does not, nobody pauses.
//!
//! Priorities would be simpler, and were tried: a thread that has made itself idle may not come back without privileges, so
//! that a busy machine would starve its flusher; and niceness changes too little.
//!
//! What it does not do: pace what somebody waits for. The flusher does not pause when a second table waits.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use mds_storage::pace::Pace;
use parking_lot::Mutex;

/// Work between two looks.
const SLICE: Duration = Duration::from_micros(800);

/// Pauses are so many times the work before them.
const PAUSE_SLICES: u32 = 4;

/// One pause at most, whatever took so long before it.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// Time in the queue that is notable: one part in so many.
const QUEUED_PART: u32 = 8;

/// The pace of one thread, which alone may use it.
#[derive(Debug, Default)]
pub(super) struct Courtesy {
    slice: Mutex<Option<Slice>>,
}

#[derive(Debug)]
struct Slice {
    began: Instant,
    queued: Duration,
    /// Where the kernel tells how long this thread has queued.
    schedstat: Option<File>,
}

impl Pace for Courtesy {
    fn step(&self) {
        let mut slice = self.slice.lock();
        let slice = slice.get_or_insert_with(|| Slice::begin(schedstat()));
        let worked = slice.began.elapsed();
        if worked < SLICE {
            return;
        }
        let queued = queued(slice.schedstat.as_ref());
        let pause = pause_after(worked, queued.saturating_sub(slice.queued));
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        // What is waited for after a pause is the scheduler's answer to it, not a reason for another.
        *slice = Slice::begin(slice.schedstat.take());
    }
}

impl Slice {
    fn begin(schedstat: Option<File>) -> Slice {
        Slice {
            began: Instant::now(),
            queued: queued(schedstat.as_ref()),
            schedstat,
        }
    }
}

/// How long to pause after so much work, of which so much was spent in the queue.
fn pause_after(worked: Duration, queued: Duration) -> Duration {
    match queued * QUEUED_PART >= worked {
        true => (worked * PAUSE_SLICES).min(PAUSE_MAX),
        false => Duration::ZERO,
    }
}

/// The calling thread's own statistics.
fn schedstat() -> Option<File> {
    // It stays that thread's, whoever reads it.
    File::open("/proc/thread-self/schedstat").ok()
}

/// How long this thread has ever waited for a processor.
fn queued(schedstat: Option<&File>) -> Duration {
    let mut text = [0; 64];
    let read = schedstat.and_then(|file| file.read_at(&mut text, 0).ok());
    let text = std::str::from_utf8(&text[..read.unwrap_or(0)]).unwrap_or("");
    let waited = text.split_whitespace().nth(1);
    let waited_ns = waited.and_then(|nanoseconds| nanoseconds.parse().ok());
    Duration::from_nanos(waited_ns.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_pauses_only_if_it_had_to_queue_and_never_for_long() {
        let ms = Duration::from_millis;
        assert_eq!(pause_after(ms(8), ms(0)), ms(0));
        assert_eq!(pause_after(ms(8), Duration::from_micros(999)), ms(0));
        assert_eq!(pause_after(ms(2), ms(1)), ms(8));
        assert_eq!(pause_after(ms(900), ms(800)), PAUSE_MAX);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn time_in_the_queue_only_grows() {
        let stat = schedstat();
        let before = queued(stat.as_ref());
        std::thread::yield_now();
        assert!(queued(stat.as_ref()) >= before);
    }
}
