//! How background threads give way to requests.
//!
//! Flushing, verification, copying and searching come in bursts of a tenth of a second and more. On a machine with processors
//! to spare they disturb nobody and should be quick. Where processors are scarce, each of a request's many short steps
//! queues behind them: with three to five nodes on two processors a change of the ring made some requests 50 ms late.
//!
//! So a thread in the background looks at itself after every [`SLICE`] of work: if it had to queue for a processor for a
//! notable share of that time, then so did others, and it pauses for several times as long as it has worked. The
//! kernel tells how long a thread has queued (`schedstat`); where it does not, nobody pauses.
//!
//! **How long** depends on who waits. Each thing that a thread does has a patience: until it is used up the thread pauses for [`GENTLE`] times
//! its work, afterwards for [`FIRM`] times. Nobody waits for a flush as long as the log has room, so it has the patience of most of an epoch; another
//! node waits for a walk, which has that of a second. Work is what was spent neither in the queue nor in pauses: so a thread gets a
//! twenty-fifth of a processor at the least, however busy the machine, and what it does ends in a time that can be told.
//!
//! Priorities would be simpler, and were tried: a thread that has made itself idle may not come back without privileges, so
//! that a busy machine would starve its flusher; and niceness changes too little.
//!
//! What it does not do: pace what somebody waits for. The flusher does not pause when the log runs out of room, and nobody pauses once the
//! node is to stop.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mds_storage::pace::Pace;
use parking_lot::Mutex;

/// Work between two looks.
const SLICE: Duration = Duration::from_micros(800);

/// Who has patience left pauses for so many times its work.
const GENTLE: u32 = 24;

/// Who has none left, for so many.
const FIRM: u32 = 4;

/// One pause at most, whatever took so long before it.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Time in the queue that is notable: one part in so many.
const QUEUED_PART: u32 = 8;

/// The pace of one thread, which alone may use it.
#[derive(Debug)]
pub(super) struct Courtesy {
    /// Each thing that is done pauses gently for so long in all.
    patience: Duration,
    /// Set when the node is to stop: whoever ends it waits for this thread.
    is_stopping: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slice: Option<Slice>,
    /// For how long this piece of work has paused.
    paused: Duration,
}

#[derive(Debug)]
struct Slice {
    began: Instant,
    queued: Duration,
    /// Where the kernel tells how long this thread has queued.
    schedstat: Option<File>,
}

impl Courtesy {
    /// Of a thread that may pause gently for so long for each thing it does.
    pub(super) fn new(patience: Duration, is_stopping: Arc<AtomicBool>) -> Courtesy {
        Courtesy {
            patience,
            is_stopping,
            state: Mutex::default(),
        }
    }
}

impl Pace for Courtesy {
    fn begin(&self) {
        self.state.lock().paused = Duration::ZERO;
    }

    fn step(&self) {
        if self.is_stopping.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state.lock();
        let State { slice, paused } = &mut *state;
        let slice = slice.get_or_insert_with(|| Slice::begin(schedstat()));
        let passed = slice.began.elapsed();
        if passed < SLICE {
            return;
        }
        let queued = queued(slice.schedstat.as_ref()).saturating_sub(slice.queued);
        let worked = passed.saturating_sub(queued);
        let times = match *paused < self.patience {
            true => GENTLE,
            false => FIRM,
        };
        let pause = pause_after(worked, queued, times);
        if !pause.is_zero() {
            std::thread::sleep(pause);
            *paused += pause;
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

/// How long to pause after so much work, for which a thread had to queue for so long.
fn pause_after(worked: Duration, queued: Duration, times: u32) -> Duration {
    match queued * QUEUED_PART >= worked {
        true => (worked * times).min(PAUSE_MAX),
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
        assert_eq!(pause_after(ms(8), ms(0), 4), ms(0));
        assert_eq!(pause_after(ms(8), Duration::from_micros(999), 4), ms(0));
        assert_eq!(pause_after(ms(2), ms(1), 4), ms(8));
        assert_eq!(pause_after(ms(2), ms(1), 24), ms(48));
        assert_eq!(pause_after(ms(900), ms(800), 4), PAUSE_MAX);
    }

    #[test]
    fn nobody_pauses_once_the_node_is_to_stop() {
        let is_stopping = Arc::new(AtomicBool::new(true));
        let pace = Courtesy::new(Duration::MAX, is_stopping);
        pace.begin();
        pace.step();
        assert!(pace.state.lock().slice.is_none(), "it has not even looked");
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
