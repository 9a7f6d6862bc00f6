//! The threads of the store: one that merges and syncs, one that flushes.
//!
//! The data loop sends a batch a turn. Whatever waits when the store thread gets to it is joined and
//! carried out with one sync: that is the group commit, and it needs no timer: when idle, a batch of one
//! goes at once; under load, batches grow by themselves.
//!
//! **Orders about epochs and partitions stand back.** Each takes some milliseconds (a ledger that is written and
//! synced, a page of rows that is compared), and a change of the ring brings many at once. No client waits for one;
//! so whatever is to be merged goes first, and between two groups of merges one order is carried out. They stay in
//! order among themselves. That merges overtake them is nothing new to anybody: a promise holds from when it is
//! reported to be durable, not from when it is asked for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mds_storage::store::{Flusher, StoreError, StoreReader};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::clock;
use super::courtesy::Courtesy;
use crate::store_io::{
    HINT_SYNC_EVERY_MS, LedgerOrder, StoreBatch, StoreDone, StoreIo, next_order,
};

/// How long a merge waits for the flusher to make room before it is refused.
const FLUSH_WAIT_MAX: Duration = Duration::from_millis(1_500);

/// Between two steps of wiping and collecting, while nothing else comes in: small, so that they get done, and
/// not nothing, because a step may have to wait for the flusher.
const TIDY_PAUSE: Duration = Duration::from_millis(5);

/// The flusher looks for work at least this often.
const FLUSH_LOOK_EVERY: Duration = Duration::from_secs(1);

/// Records merged as one group at the most: bounds how long the first of them waits.
const GROUP_RECORDS_MAX: usize = 4_096;

/// Orders that stand back, at most: more than so many are carried out, whoever waits.
const ORDERS_WAITING_MAX: usize = 64;

/// A flush may be longer by this, so as not to disturb requests: less than the time between two epochs, in which most flushes
/// come.
const FLUSH_PATIENCE: Duration = Duration::from_secs(8);

/// How long the flusher leaves a full disk alone before it looks for room again.
const FULL_LOOK_EVERY: Duration = Duration::from_secs(1);

/// What readiness says while the disk is full.
const DISK_FULL: &str = "the disk is full: this node reads, and refuses writes that find no room; free some \
                         space, and it goes on by itself";

/// Finished work on its way back to the data loop.
#[derive(Default)]
pub(super) struct DoneQueue {
    finished: Mutex<Vec<StoreDone>>,
    full: Mutex<Full>,
    pub(super) notify: Notify,
}

/// Who has found the disk full last, and not yet found room since.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Full {
    /// A merge, for the log.
    log: bool,
    /// The flusher, for the engine or the run files.
    flush: bool,
}

impl DoneQueue {
    /// The first half of what is being carried out.
    fn push_merged(&self, done: StoreDone) {
        if let Some(is_full) = done.found_disk_full {
            self.set_full(|full| full.log = is_full);
        }
        self.push(done);
    }

    fn push(&self, done: StoreDone) {
        self.finished.lock().push(done);
        self.notify.notify_one();
    }

    fn full(&self) -> Full {
        *self.full.lock()
    }

    /// Takes note of a disk that is full, or is no longer.
    fn set_full(&self, change: impl FnOnce(&mut Full)) {
        let (before, now) = {
            let mut full = self.full.lock();
            let before = *full;
            change(&mut full);
            (before, *full)
        };
        if before == now {
            return;
        }
        let nobody = Full::default();
        if before == nobody {
            tracing::error!(
                "the disk is full: what is in the log stays there and is read from there; writes that \
                 find no room are refused. Free some space, and this node goes on by itself"
            );
        } else if now == nobody {
            tracing::info!("the disk has room again");
        }
        self.notify.notify_one();
    }

    /// What the store cannot do, though it reads.
    pub(super) fn hindrance(&self) -> Option<String> {
        (self.full() != Full::default()).then(|| DISK_FULL.to_owned())
    }

    pub(super) fn take(&self) -> Vec<StoreDone> {
        std::mem::take(&mut *self.finished.lock())
    }
}

/// Starts both threads. Dropping every sender of batches ends them: the store is then synced and closed.
pub(super) fn spawn(
    mut io: StoreIo,
    mut flusher: Flusher,
    batches: Receiver<StoreBatch>,
    done: Arc<DoneQueue>,
) -> std::io::Result<JoinHandle<Result<(), StoreError>>> {
    let (poke, pokes) = std::sync::mpsc::sync_channel(1);
    let (flushed_tx, flushed) = std::sync::mpsc::sync_channel(1);
    let is_stopping = Arc::new(AtomicBool::new(false));
    // Nobody waits as long as the log has room: the flusher sees to that by itself.
    let courtesy = Courtesy::new(FLUSH_PATIENCE, is_stopping.clone());
    flusher.set_pace(Arc::new(courtesy));
    let (flush_done, reader) = (done.clone(), io.store().reader());
    let flush_thread = std::thread::Builder::new()
        .name("mds-flush".to_owned())
        .spawn(move || flush_loop(&flusher, &reader, &pokes, &flushed_tx, &flush_done))?;
    std::thread::Builder::new()
        .name("mds-store".to_owned())
        .spawn(move || {
            let (waiting_poke, waiting_done) = (poke.clone(), done.clone());
            io.set_wait_for_flusher(Box::new(move || {
                // A flusher that waits for room is not waited for.
                if waiting_done.full().flush {
                    return false;
                }
                poke_flusher(&waiting_poke);
                flushed.recv_timeout(FLUSH_WAIT_MAX).is_ok()
            }));
            let mut io = merge_loop(io, &batches, &done, &poke);
            // Both ends of the flusher's bell go, and with them the flusher, as soon as it can.
            is_stopping.store(true, Ordering::Relaxed);
            io.set_wait_for_flusher(Box::new(|| false));
            drop(poke);
            if flush_thread.join().is_err() {
                tracing::error!("the flusher panicked");
            }
            io.close()
        })
}

fn merge_loop(
    mut io: StoreIo,
    batches: &Receiver<StoreBatch>,
    done: &DoneQueue,
    poke: &SyncSender<()>,
) -> StoreIo {
    let idle = Duration::from_millis(HINT_SYNC_EVERY_MS);
    let mut orders: VecDeque<LedgerOrder> = VecDeque::new();
    loop {
        let wait = if !orders.is_empty() {
            Duration::ZERO
        } else if io.has_more_to_do() {
            TIDY_PAUSE
        } else {
            idle
        };
        let mut batch = match batches.recv_timeout(wait) {
            Ok(batch) => batch,
            Err(RecvTimeoutError::Disconnected) if orders.is_empty() => return io,
            // Nothing to do but what has become due meanwhile.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let now = clock::now();
                StoreBatch {
                    wall_ms: now.wall_ms(),
                    mono_ns: now.mono_ns,
                    ..Default::default()
                }
            }
        };
        while batch.merges.len() < GROUP_RECORDS_MAX
            && let Ok(later) = batches.try_recv()
        {
            batch.append(later);
        }
        let is_idle = batch.is_empty() && orders.is_empty();
        orders.extend(batch.orders.drain(..));
        let mut finished = io.execute_merges(&mut batch);
        let removals_max = finished.removals_max();
        batch.orders.extend(next_order(&mut orders));
        while orders.len() > ORDERS_WAITING_MAX {
            batch.orders.extend(next_order(&mut orders));
        }
        if !batch.orders.is_empty() && !finished.merges.is_empty() {
            // Promises about epochs and partitions are synced by themselves: no writer waits for them.
            done.push_merged(std::mem::take(&mut finished));
        }
        io.execute_rest(batch, removals_max, &mut finished);
        if let Some(is_full) = finished.found_disk_full {
            done.set_full(|full| full.log = is_full);
        }
        if io.store().wants_flush() {
            poke_flusher(poke);
        }
        if !is_idle || finished.is_news() {
            done.push(finished);
        }
    }
}

fn poke_flusher(poke: &SyncSender<()>) {
    match poke.try_send(()) {
        // Full: it has been poked already and will look again.
        Ok(()) | Err(TrySendError::Full(())) => {}
        Err(TrySendError::Disconnected(())) => {}
    }
}

fn flush_loop(
    flusher: &Flusher,
    reader: &StoreReader,
    pokes: &Receiver<()>,
    flushed: &SyncSender<()>,
    done: &DoneQueue,
) {
    loop {
        // What is flushed may bring back rows of epochs that are collected: they go when all is flushed.
        let worked = flusher.work().and_then(|is_flushed| {
            if !is_flushed {
                reader.drop_collected_index()?;
            }
            Ok(is_flushed)
        });
        match worked {
            Ok(is_flushed) => {
                // Nobody may be writing, so that merges would never find out.
                let log_has_room = done.full().log && flusher.has_room(0);
                done.set_full(|full| {
                    full.flush = false;
                    full.log &= !log_has_room;
                });
                if is_flushed {
                    // Full: whoever waits will see the earlier one.
                    let _ = flushed.try_send(());
                    continue;
                }
                match pokes.recv_timeout(FLUSH_LOOK_EVERY) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
            // What is to be flushed stays in the log and in memory; the next attempt looks for room.
            Err(StoreError::Full) => {
                done.set_full(|full| full.flush = true);
                if !pause(pokes, FULL_LOOK_EVERY) {
                    return;
                }
            }
            Err(error) => {
                let failed = Some(format!("flushing failed: {error}"));
                tracing::error!(%error, "flushing failed: this node stops serving");
                return done.push(StoreDone {
                    failed,
                    ..StoreDone::default()
                });
            }
        }
    }
}

/// Lets time pass, whoever pokes. False when nobody is left to poke: the node is stopping.
fn pause(pokes: &Receiver<()>, time: Duration) -> bool {
    let end = Instant::now() + time;
    loop {
        match pokes.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => return true,
            Err(RecvTimeoutError::Disconnected) => return false,
        }
    }
}
