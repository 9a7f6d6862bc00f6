//! The threads that read what is not in memory.
//!
//! The data thread answers what it finds in memory itself. Everything else may wait for the disk, so it
//! goes to a thread: single keys to one, clients' pages and counts to another, what verification and copying walk over to a third, so that
//! no key waits behind a page and no client behind a walk, and the walk can give way. The answers come back through a queue and are taken in with a later turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use mds_storage::pace::{Pace, Unpaced};
use mds_storage::store::StoreReader;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::courtesy::Courtesy;
use crate::store_io::{ReadAnswer, ReadQuery, Ticket, read};

/// Questions that wait for the threads, at most; further ones are refused, and their coordinators
/// ask another replica.
const READS_WAITING_MAX: usize = 16 * 1024;

/// The answer to another node may be later by this, so as not to disturb requests: far less than it waits.
const WALK_PATIENCE: Duration = Duration::from_secs(1);

/// A question and who asked it.
pub(super) type Question = (Ticket, ReadQuery);

/// Answers on their way back to the data loop. `None`: the read failed.
#[derive(Default)]
pub(super) struct AnswerQueue {
    answers: Mutex<Vec<(Question, Option<ReadAnswer>)>>,
    pub(super) notify: Notify,
}

impl AnswerQueue {
    fn push(&self, question: Question, answer: Option<ReadAnswer>) {
        self.answers.lock().push((question, answer));
        self.notify.notify_one();
    }

    fn take(&self) -> Vec<(Question, Option<ReadAnswer>)> {
        std::mem::take(&mut *self.answers.lock())
    }
}

/// The reading threads. Owned by the data thread.
pub(super) struct ReadThreads {
    keys: Lane,
    scans: Lane,
    walks: Lane,
    waiting: usize,
    answers: Arc<AnswerQueue>,
    is_stopping: Arc<AtomicBool>,
}

struct Lane {
    questions: Sender<Vec<Question>>,
    /// Filled during a turn.
    next: Vec<Question>,
    thread: JoinHandle<()>,
}

impl ReadThreads {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system gives no further threads.
    pub(super) fn spawn(
        reader: &StoreReader,
        answers: Arc<AnswerQueue>,
    ) -> std::io::Result<ReadThreads> {
        let is_stopping = Arc::new(AtomicBool::new(false));
        let courtesy = Courtesy::new(WALK_PATIENCE, is_stopping.clone());
        let lane = |name: &str, pace: Box<dyn Pace>| {
            let (questions, asked) = std::sync::mpsc::channel();
            let (reader, answers) = (reader.clone(), answers.clone());
            let is_stopping = is_stopping.clone();
            let thread = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || read_loop(&reader, &asked, &answers, &is_stopping, &*pace))?;
            Ok::<Lane, std::io::Error>(Lane {
                questions,
                next: Vec::new(),
                thread,
            })
        };
        Ok(ReadThreads {
            keys: lane("mds-read", Box::new(Unpaced))?,
            scans: lane("mds-scan", Box::new(Unpaced))?,
            walks: lane("mds-walk", Box::new(courtesy))?,
            waiting: 0,
            answers,
            is_stopping,
        })
    }

    /// Takes a question, to be sent with [`ReadThreads::send`].
    ///
    /// # Errors
    /// The question, when too many wait already.
    pub(super) fn ask(&mut self, question: Question) -> Result<(), Question> {
        if self.waiting >= READS_WAITING_MAX {
            return Err(question);
        }
        self.waiting += 1;
        match question.1 {
            ReadQuery::Get { .. } => self.keys.next.push(question),
            ReadQuery::Page { .. } | ReadQuery::Count { .. } => self.scans.next.push(question),
            ReadQuery::Sync(_) => self.walks.next.push(question),
        }
        Ok(())
    }

    /// Sends what a turn has asked. False: a thread has ended, which it never does by itself.
    pub(super) fn send(&mut self) -> bool {
        let mut is_running = true;
        for lane in [&mut self.keys, &mut self.scans, &mut self.walks] {
            if !lane.next.is_empty() {
                is_running &= lane.questions.send(std::mem::take(&mut lane.next)).is_ok();
            }
        }
        is_running
    }

    /// The answers that have come since the last call.
    pub(super) fn take_answers(&mut self) -> Vec<(Question, Option<ReadAnswer>)> {
        let answers = self.answers.take();
        self.waiting -= answers.len();
        answers
    }

    /// Ends the threads and waits for them: for the read that each has in hand, at most.
    pub(super) fn stop(self) {
        self.is_stopping.store(true, Ordering::Relaxed);
        for Lane {
            questions, thread, ..
        } in [self.keys, self.scans, self.walks]
        {
            drop(questions);
            if thread.join().is_err() {
                tracing::error!("a reading thread panicked");
            }
        }
    }
}

fn read_loop(
    reader: &StoreReader,
    asked: &Receiver<Vec<Question>>,
    answers: &AnswerQueue,
    is_stopping: &AtomicBool,
    pace: &dyn Pace,
) {
    while let Ok(questions) = asked.recv() {
        for question in questions {
            if is_stopping.load(Ordering::Relaxed) {
                return;
            }
            pace.begin();
            let answer = read(reader, &question.1, pace)
                .inspect_err(|error| tracing::error!(%error, "a read failed"))
                .ok();
            answers.push(question, answer);
            pace.step();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use mds_storage::disk::FaultyDisk;
    use mds_storage::engine::memory::MemoryEngine;
    use mds_storage::store::{Store, StoreOptions};
    use mds_types::PartitionId;

    use super::*;
    use crate::store_io::ReplyTo;

    fn question(id: u64, query: ReadQuery) -> Question {
        let ticket = Ticket {
            reply_to: ReplyTo::Me,
            id,
            bytes: 0,
        };
        (ticket, query)
    }

    fn get(id: u64) -> Question {
        let key = Bytes::from(format!("key{id}"));
        question(id, ReadQuery::Get { key })
    }

    fn threads() -> (ReadThreads, Store) {
        let disk = Arc::new(FaultyDisk::new(1));
        let engine = Arc::new(MemoryEngine::new());
        let store = Store::open(disk, engine, StoreOptions::default()).unwrap();
        let threads = ReadThreads::spawn(&store.reader(), Arc::default()).unwrap();
        (threads, store)
    }

    #[test]
    fn every_question_is_answered_once_and_makes_room_for_another() {
        let (mut threads, _store) = threads();
        let partition = PartitionId(0);
        let count = ReadQuery::Count {
            partition,
            wall_ms: 0,
        };
        threads.ask(question(0, count)).unwrap();
        for id in 1..READS_WAITING_MAX as u64 {
            threads.ask(get(id)).unwrap();
        }
        let refused = threads.ask(get(99_999)).unwrap_err();
        assert_eq!(refused, get(99_999));
        assert!(threads.send());

        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let queue = threads.answers.clone();
        let mut answered = Vec::new();
        while answered.len() < READS_WAITING_MAX {
            let notified = async {
                tokio::time::timeout(Duration::from_secs(20), queue.notify.notified()).await
            };
            runtime.block_on(notified).unwrap();
            for ((ticket, query), answer) in threads.take_answers() {
                let expected = match query {
                    ReadQuery::Get { .. } => ReadAnswer::Record(None, mds_types::Epoch(0)),
                    _ => ReadAnswer::Count(0),
                };
                assert_eq!(answer, Some(expected));
                answered.push(ticket.id);
            }
        }
        answered.sort_unstable();
        assert!(answered.into_iter().eq(0..READS_WAITING_MAX as u64));
        threads.ask(get(1)).unwrap();
        threads.stop();
    }
}
