//! Many seeds on all cores of this machine, reported in the order of the seeds.
//!
//! A run stays on the thread that began it, and what is global to a run (the executor of the moment, the
//! count of panics) is kept per thread; so runs beside each other do not see each other. A planted bug is
//! the exception: it is switched on for the whole process, and its hunt runs one seed at a time.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Has `make` called for each seed on `jobs` threads, and hands what it made to `take`, on this thread
/// and in the order of the seeds.
pub fn for_each_seed<R: Send>(
    seeds: Range<u64>,
    jobs: NonZeroUsize,
    make: impl Fn(u64) -> R + Sync,
    mut take: impl FnMut(R),
) {
    let next = AtomicU64::new(seeds.start);
    let (made, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs.get() {
            let (made, make, next, end) = (made.clone(), &make, &next, seeds.end);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || made.send((seed, make(seed))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(made);
        let mut early = BTreeMap::new();
        let mut due = seeds.start;
        for (seed, result) in results {
            early.insert(seed, result);
            while let Some(result) = early.remove(&due) {
                take(result);
                due += 1;
            }
        }
    });
}

/// Threads that this machine can run at a time.
pub fn cores() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Measures what a batch costs, on the wall and in CPU time of this process.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch {
    began: Instant,
    cpu_before: Duration,
}

impl Stopwatch {
    /// Starts now.
    pub fn start() -> Stopwatch {
        Stopwatch {
            began: Instant::now(),
            cpu_before: cpu_time(),
        }
    }

    /// Since the start: wall-clock seconds, and CPU seconds of all threads together.
    pub fn elapsed_s(&self) -> (f64, f64) {
        let cpu = cpu_time().saturating_sub(self.cpu_before);
        (self.began.elapsed().as_secs_f64(), cpu.as_secs_f64())
    }
}

/// What this process has used of the machine's cores.
fn cpu_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result, and lives through the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    if result != 0 {
        return Duration::ZERO;
    }
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_once_each_on_any_number_of_threads() {
        for jobs in [1, 2, 7] {
            let jobs = NonZeroUsize::new(jobs).unwrap();
            let mut taken = Vec::new();
            for_each_seed(5..105, jobs, |seed| seed * 2, |result| taken.push(result));
            let expected: Vec<u64> = (5..105).map(|seed| seed * 2).collect();
            assert_eq!(taken, expected);
        }
    }

    #[test]
    fn no_seeds_are_no_work() {
        for_each_seed(3..3, cores(), |_| panic!("called"), |(): ()| {});
    }
}
