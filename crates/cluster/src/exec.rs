//! The executor of one node: a task set that runs only when it is given a turn.
//!
//! Raft is written as async tasks. Here those tasks live in an [`Exec`] that owns no thread and
//! reads no clock: a turn is handed the time, fires the timers that are due, polls woken tasks in
//! the order in which they were woken until none is left, and returns. So the whole of Raft becomes
//! a value that is called with inputs and has outputs, and one process can hold many nodes, each
//! with a clock of its own. The deployed node and the simulator run this same code.
//!
//! **Invariants**
//!
//! 1. Order is a function of the inputs: FIFO ready queue, timers by (deadline, sequence), tasks
//!    dropped in the order they were spawned.
//! 2. Every call into code that may spawn, sleep or ask the time happens inside [`Exec::enter`];
//!    the only global is the thread-local "executor of this call".
//! 3. After [`Exec::kill`] no task of this executor ever runs again: that is what a crash is.
//!
//! A panic in a task is caught, as any async runtime does, and remembered ([`Exec::panicked`]): the
//! control plane treats it as fatal.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crate::random::SplitMix64;

/// Polls in one turn, at most. A turn that reaches it returns with work left over, and
/// [`Exec::next_deadline`] then says "now", so that one node cannot keep a thread for ever.
const TURN_POLLS_MAX: usize = 100_000;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Exec>>> = const { RefCell::new(None) };
}

/// Takes a lock; a holder that panicked left the data valid (every critical section here is a few
/// moves), so poisoning is ignored.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The tasks, timers and clock of one node.
pub struct Exec {
    tasks: Mutex<Tasks>,
    ready: Arc<ReadyQueue>,
    clock: Arc<Clock>,
    rng: Mutex<SplitMix64>,
    panicked: Mutex<Option<String>>,
    dead: AtomicBool,
}

#[derive(Default)]
struct Tasks {
    next_id: u64,
    live: BTreeMap<u64, Entry>,
}

struct Entry {
    /// Absent while the task is being polled.
    future: Option<Task>,
    waker: Waker,
    wake: Arc<TaskWaker>,
}

#[derive(Default)]
struct ReadyQueue {
    ids: Mutex<VecDeque<u64>>,
}

struct TaskWaker {
    id: u64,
    /// Whether the task stands in the ready queue already.
    queued: AtomicBool,
    ready: Arc<ReadyQueue>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            lock(&self.ready.ids).push_back(self.id);
        }
    }
}

/// The clock of one executor and the timers that wait for it.
pub(crate) struct Clock {
    now_ns: AtomicI64,
    next_seq: AtomicU64,
    timers: Mutex<BTreeMap<(i64, u64), Waker>>,
}

impl Clock {
    pub(crate) fn now_ns(&self) -> i64 {
        self.now_ns.load(Ordering::Acquire)
    }

    pub(crate) fn new_seq(&self) -> u64 {
        self.next_seq.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn arm(&self, deadline_ns: i64, seq: u64, waker: Waker) {
        lock(&self.timers).insert((deadline_ns, seq), waker);
    }

    pub(crate) fn disarm(&self, deadline_ns: i64, seq: u64) {
        lock(&self.timers).remove(&(deadline_ns, seq));
    }
}

impl std::fmt::Debug for Exec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exec")
            .field("now_ns", &self.clock.now_ns())
            .field("tasks", &lock(&self.tasks).live.len())
            .finish_non_exhaustive()
    }
}

/// Restores the executor that was current before, also when the call unwinds.
struct Restore(Option<Arc<Exec>>);

impl Drop for Restore {
    fn drop(&mut self) {
        let before = self.0.take();
        CURRENT.with(|current| *current.borrow_mut() = before);
    }
}

impl Exec {
    /// An executor without tasks whose clock stands at `now_ns` (monotonic nanoseconds).
    pub fn new(seed: u64, now_ns: u64) -> Arc<Exec> {
        Arc::new(Exec {
            tasks: Mutex::new(Tasks::default()),
            ready: Arc::new(ReadyQueue::default()),
            clock: Arc::new(Clock {
                now_ns: AtomicI64::new(to_signed(now_ns)),
                next_seq: AtomicU64::new(0),
                timers: Mutex::new(BTreeMap::new()),
            }),
            rng: Mutex::new(SplitMix64::new(seed)),
            panicked: Mutex::new(None),
            dead: AtomicBool::new(false),
        })
    }

    /// Runs `f` with this executor as the current one.
    pub fn enter<R>(self: &Arc<Self>, f: impl FnOnce() -> R) -> R {
        let before = CURRENT.with(|current| current.borrow_mut().replace(self.clone()));
        let _restore = Restore(before);
        f()
    }

    /// Sets the clock (it never goes back), fires due timers and polls until no task is ready.
    pub fn turn(self: &Arc<Self>, now_ns: u64) {
        self.clock
            .now_ns
            .fetch_max(to_signed(now_ns), Ordering::AcqRel);
        self.enter(|| {
            self.fire_timers();
            for _ in 0..TURN_POLLS_MAX {
                let Some(id) = lock(&self.ready.ids).pop_front() else {
                    return;
                };
                self.poll_task(id);
            }
        });
    }

    /// When the next turn has something to do, if nothing comes from outside: monotonic
    /// nanoseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        if !lock(&self.ready.ids).is_empty() {
            return Some(to_unsigned(self.clock.now_ns()));
        }
        let timers = lock(&self.clock.timers);
        timers
            .keys()
            .next()
            .map(|(deadline_ns, _)| to_unsigned(*deadline_ns))
    }

    /// Drops every task, in the order they were spawned, and refuses new ones.
    pub fn kill(self: &Arc<Self>) {
        self.dead.store(true, Ordering::Release);
        self.enter(|| {
            loop {
                let first = lock(&self.tasks).live.pop_first();
                // The lock is free again while the task is dropped: dropping may spawn.
                let Some(task) = first else { return };
                drop(task);
            }
        });
    }

    /// What the first task that panicked said, if any did.
    pub fn panicked(&self) -> Option<String> {
        lock(&self.panicked).clone()
    }

    /// Tasks that have not finished.
    pub fn task_count(&self) -> usize {
        lock(&self.tasks).live.len()
    }

    /// Adds a task; it is polled in this turn or the next. On a killed executor it is dropped.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        if self.dead.load(Ordering::Acquire) {
            return;
        }
        let mut tasks = lock(&self.tasks);
        let id = tasks.next_id;
        tasks.next_id += 1;
        let wake = Arc::new(TaskWaker {
            id,
            queued: AtomicBool::new(false),
            ready: self.ready.clone(),
        });
        let waker = Waker::from(wake.clone());
        let future: Task = Box::pin(future);
        tasks.live.insert(
            id,
            Entry {
                future: Some(future),
                waker: waker.clone(),
                wake,
            },
        );
        drop(tasks);
        waker.wake();
    }

    /// The clock of the executor that runs the calling code.
    ///
    /// # Panics
    /// Outside of [`Exec::enter`]: a bug of the caller, whatever the input.
    pub(crate) fn current() -> Arc<Exec> {
        CURRENT
            .with(|current| current.borrow().clone())
            // Only code of this crate touches Raft, and it does so through `enter` (invariant 2).
            .expect("called outside of an executor: wrap the call in Exec::enter")
    }

    pub(crate) fn clock(&self) -> &Arc<Clock> {
        &self.clock
    }

    /// A generator of its own for each caller, all from this executor's seed.
    pub(crate) fn new_rng(&self) -> SplitMix64 {
        lock(&self.rng).split()
    }

    pub(crate) fn note_panic(&self, message: String) {
        lock(&self.panicked).get_or_insert(message);
    }

    fn fire_timers(&self) {
        let now = self.clock.now_ns();
        loop {
            let due = {
                let mut timers = lock(&self.clock.timers);
                match timers.first_entry() {
                    Some(first) if first.key().0 <= now => first.remove(),
                    _ => return,
                }
            };
            due.wake();
        }
    }

    fn poll_task(&self, id: u64) {
        let (mut future, waker) = {
            let mut tasks = lock(&self.tasks);
            let Some(entry) = tasks.live.get_mut(&id) else {
                return;
            };
            // Cleared before the poll: a wake from within it queues the task again.
            entry.wake.queued.store(false, Ordering::Release);
            let Some(future) = entry.future.take() else {
                return;
            };
            (future, entry.waker.clone())
        };
        let mut context = Context::from_waker(&waker);
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)));
        match polled {
            Ok(Poll::Pending) => {
                if let Some(entry) = lock(&self.tasks).live.get_mut(&id) {
                    entry.future = Some(future);
                }
            }
            Ok(Poll::Ready(())) => self.finish_task(id, future),
            Err(payload) => {
                self.note_panic(panic_message(payload.as_ref()));
                self.finish_task(id, future);
            }
        }
    }

    fn finish_task(&self, id: u64, future: Task) {
        let entry = lock(&self.tasks).live.remove(&id);
        // Both are dropped with the lock free: dropping may spawn or wake.
        drop(entry);
        drop(future);
    }
}

/// What a panic said, as far as it said anything printable.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "a task panicked without a message".to_owned()
    }
}

/// Instants are signed inside, so that "a while before the start" is a time too.
fn to_signed(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

fn to_unsigned(ns: i64) -> u64 {
    u64::try_from(ns).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use openraft_rt::AsyncRuntime;

    use super::*;
    use crate::rt::Rt;

    type Journal = Arc<Mutex<Vec<(u32, u64)>>>;

    fn note(journal: &Journal, who: u32) {
        let now = to_unsigned(Exec::current().clock().now_ns());
        lock(journal).push((who, now));
    }

    #[test]
    fn timers_fire_by_deadline_then_by_age() {
        let exec = Exec::new(1, 100);
        let journal = Journal::default();
        exec.enter(|| {
            for (who, wait_ns) in [(1, 50), (2, 20), (3, 50)] {
                let journal = journal.clone();
                drop(Rt::spawn(async move {
                    Rt::sleep(Duration::from_nanos(wait_ns)).await;
                    note(&journal, who);
                }));
            }
        });
        assert_eq!(
            exec.next_deadline(),
            Some(100),
            "three tasks wait for their first poll"
        );
        exec.turn(100);
        assert_eq!(exec.next_deadline(), Some(120));
        exec.turn(119);
        assert!(lock(&journal).is_empty());
        exec.turn(120);
        exec.turn(200);
        assert_eq!(*lock(&journal), [(2, 120), (1, 200), (3, 200)]);
        assert_eq!((exec.task_count(), exec.next_deadline()), (0, None));
    }

    #[test]
    fn a_killed_executor_runs_nothing_more() {
        struct Bell(Journal, u32);
        impl Drop for Bell {
            fn drop(&mut self) {
                lock(&self.0).push((self.1, 0));
                // A task that comes from a dying one must not live either.
                drop(Rt::spawn(async {}));
            }
        }
        let exec = Exec::new(1, 0);
        let journal = Journal::default();
        exec.enter(|| {
            for who in [1, 2, 3] {
                let bell = Bell(journal.clone(), who);
                drop(Rt::spawn(async move {
                    Rt::sleep(Duration::from_secs(1)).await;
                    lock(&bell.0).push((99, 99));
                }));
            }
        });
        exec.turn(1);
        exec.kill();
        exec.turn(5_000_000_000);
        assert_eq!(*lock(&journal), [(1, 0), (2, 0), (3, 0)]);
        assert_eq!(
            Arc::strong_count(&exec),
            1,
            "a dead executor is held by nobody else"
        );
    }

    #[test]
    fn a_panic_is_told_to_who_waits_and_to_the_owner() {
        let exec = Exec::new(1, 0);
        let told = Journal::default();
        exec.enter(|| {
            let told = told.clone();
            drop(Rt::spawn(async move {
                let inner = Rt::spawn(async { panic!("out of cheese") });
                let error: crate::rt::JoinError = inner.await.unwrap_err();
                assert!(Rt::is_panic(&error));
                lock(&told).push((1, 0));
            }));
        });
        exec.turn(0);
        assert_eq!(*lock(&told), [(1, 0)]);
        assert_eq!(exec.panicked().as_deref(), Some("out of cheese"));
    }
}
