//! Raft's async runtime on top of [`Exec`]: everything openraft asks of a runtime, deterministic.
//!
//! Channels and locks are tokio's (they are plain data structures; no tokio runtime is started),
//! except for the watch channel: tokio's picks the order in which it wakes receivers at random, so
//! [`watch`] is our own.

mod watch;

use std::fmt;
use std::future::Future;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use openraft_rt::{AsyncRuntime, Oneshot, OneshotSender, OptionalSend};
use openraft_rt_tokio::{TokioMpsc, TokioMutex, TokioOneshot};

use crate::exec::{Clock, Exec, lock, panic_message};
pub use crate::random::SplitMix64;
pub use watch::Watch;

/// Where [`Rt::new`] starts its virtual clock: a while after zero.
const VIRTUAL_START_NS: u64 = 1_000_000_000;

/// The runtime. As a type it is what Raft is compiled against; as a value it is a runtime with a
/// virtual clock for tests ([`AsyncRuntime::block_on`] jumps to the next timer when idle).
#[derive(Debug)]
pub struct Rt {
    exec: Arc<Exec>,
}

/// A point on the executor's clock, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Instant(i64);

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_add(nanos(duration)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_sub(nanos(duration)))
    }
}

impl SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

impl Sub<Instant> for Instant {
    type Output = Duration;
    /// Zero if `earlier` is later, as the standard library's instants do.
    fn sub(self, earlier: Instant) -> Duration {
        let ns = self.0.saturating_sub(earlier.0);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
    }
}

impl openraft_rt::Instant for Instant {
    fn now() -> Instant {
        Instant(Exec::current().clock().now_ns())
    }
}

/// Resolves when its deadline has come. Dropping it forgets the timer.
pub struct Sleep {
    deadline: Instant,
    seq: u64,
    armed: bool,
    clock: Arc<Clock>,
}

impl Sleep {
    fn until(deadline: Instant) -> Sleep {
        let clock = Exec::current().clock().clone();
        Sleep {
            deadline,
            seq: clock.new_seq(),
            armed: false,
            clock,
        }
    }
}

impl Future for Sleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.clock.now_ns() >= self.deadline.0 {
            return Poll::Ready(());
        }
        self.clock
            .arm(self.deadline.0, self.seq, context.waker().clone());
        self.armed = true;
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if self.armed {
            self.clock.disarm(self.deadline.0, self.seq);
        }
    }
}

/// The deadline came before the future resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("deadline has passed")]
pub struct TimeoutError;

/// A future with a deadline.
pub struct Timeout<F> {
    future: Pin<Box<F>>,
    sleep: Sleep,
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, TimeoutError>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(value) = self.future.as_mut().poll(context) {
            return Poll::Ready(Ok(value));
        }
        Pin::new(&mut self.sleep)
            .poll(context)
            .map(|()| Err(TimeoutError))
    }
}

/// Why a task has no result.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JoinError {
    /// It panicked.
    #[error("task panicked: {0}")]
    Panic(String),
    /// It was dropped before it finished.
    #[error("task was dropped")]
    Cancelled,
}

type ResultReceiver<T> = <TokioOneshot as Oneshot>::Receiver<Result<T, JoinError>>;

/// Resolves to the task's result. Dropping it lets the task run on.
pub struct JoinHandle<T: OptionalSend + 'static> {
    result: ResultReceiver<T>,
}

impl<T: OptionalSend + 'static> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let received = Pin::new(&mut self.result).poll(context);
        received.map(|sent| sent.unwrap_or(Err(JoinError::Cancelled)))
    }
}

/// Runs a future and turns its panic into an error.
struct CatchPanic<F>(Pin<Box<F>>);

impl<F: Future> Future for CatchPanic<F> {
    type Output = Result<F::Output, JoinError>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let inner = &mut self.0;
        match catch_unwind(AssertUnwindSafe(|| inner.as_mut().poll(context))) {
            Ok(polled) => polled.map(Ok),
            Err(payload) => {
                let message = panic_message(payload.as_ref());
                Exec::current().note_panic(message.clone());
                Poll::Ready(Err(JoinError::Panic(message)))
            }
        }
    }
}

impl AsyncRuntime for Rt {
    type JoinError = JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = Instant;
    type TimeoutError = TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<T>;
    type ThreadLocalRng = SplitMix64;

    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        let (sender, result) = TokioOneshot::channel();
        let guarded = CatchPanic(Box::pin(future));
        Exec::current().spawn(async move {
            // Nobody may be waiting for the result: that is no error.
            let _ = sender.send(guarded.await);
        });
        JoinHandle { result }
    }

    fn sleep(duration: Duration) -> Sleep {
        Sleep::until(<Instant as openraft_rt::Instant>::now() + duration)
    }

    fn sleep_until(deadline: Instant) -> Sleep {
        Sleep::until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Timeout<F> {
        Timeout {
            future: Box::pin(future),
            sleep: Self::sleep(duration),
        }
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Instant,
        future: F,
    ) -> Timeout<F> {
        Timeout {
            future: Box::pin(future),
            sleep: Sleep::until(deadline),
        }
    }

    fn is_panic(join_error: &JoinError) -> bool {
        matches!(join_error, JoinError::Panic(_))
    }

    fn thread_rng() -> SplitMix64 {
        Exec::current().new_rng()
    }

    type Mpsc = TokioMpsc;
    type Watch = Watch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn new(_threads: usize) -> Rt {
        Rt {
            exec: Exec::new(0, VIRTUAL_START_NS),
        }
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        let mut future = std::pin::pin!(future);
        let woken = Arc::new(Flag(Mutex::new(true)));
        let waker = Waker::from(woken.clone());
        let mut now_ns = 0;
        loop {
            if std::mem::take(&mut *lock(&woken.0)) {
                let mut context = Context::from_waker(&waker);
                if let Poll::Ready(value) = self.exec.enter(|| future.as_mut().poll(&mut context)) {
                    return value;
                }
            }
            self.exec.turn(now_ns);
            if *lock(&woken.0) {
                continue;
            }
            now_ns = self
                .exec
                .next_deadline()
                // A test that waits for nothing would hang for ever in a real runtime.
                .expect("block_on: the future waits, but no task is ready and no timer is set");
        }
    }

    /// Runs it at once: there is no other thread, and nothing here may make one.
    fn spawn_blocking<F, T>(f: F) -> impl Future<Output = Result<T, std::io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        std::future::ready(Ok(f()))
    }
}

struct Flag(Mutex<bool>);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        *lock(&self.0) = true;
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep")
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_the_conformance_suite_of_openraft() {
        openraft_rt::testing::Suite::<Rt>::test_all();
    }
}
