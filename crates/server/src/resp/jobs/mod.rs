//! Commands that need several requests: gather the answers for many keys, or walk over partitions.
//!
//! A job says which requests it wants, hears their answers one by one, and makes a reply when none
//! is in flight any more. It submits nothing itself, so each is a plain value that a test can drive.
//!
//! None of these is atomic, and none pretends to be: every key is read and written by itself. If one
//! request fails, no new ones are wanted, and the reply is the error of the earliest part that
//! failed; what was written stays written.

mod gather;
mod scan;
mod walk;

use bytes::Bytes;
use mds_node::api::{Op, Outcome, RequestError};

use super::commands::error_reply;
use super::conn::{Access, Answer};
use super::reply::Reply;

pub use gather::GATHER_IN_FLIGHT_MAX;
pub(super) use gather::{Gather, GatherKind};
pub use scan::SCAN_PAGES_MAX;
pub(super) use scan::{RandomKey, Scan, ScanFrom};
pub use walk::{KEYS_MAX, WALK_IN_FLIGHT_MAX};
pub(super) use walk::{Walk, WalkKind};

/// A command that needs several requests.
#[derive(Debug)]
pub(super) enum Job {
    /// One or two requests for each of some keys.
    Gather(Gather),
    /// All partitions, several at a time.
    Walk(Walk),
    /// A few pages from a cursor on.
    Scan(Scan),
    /// Any key.
    RandomKey(RandomKey),
}

/// What a job came to.
pub(super) struct JobReply {
    /// For the client.
    pub(super) answer: Answer,
    /// A cursor and the key it stands for, to be remembered.
    pub(super) cursor: Option<(u64, Bytes)>,
}

impl Job {
    /// The keys that it touches, and how; none if it may touch any.
    pub(super) fn keys(&self) -> Option<(&[Bytes], Access)> {
        match self {
            Job::Gather(gather) => Some((gather.keys(), gather.access())),
            Job::Walk(_) | Job::Scan(_) | Job::RandomKey(_) => None,
        }
    }

    /// Asks for the first requests, each with a number that comes back with its answer.
    pub(super) fn start(&mut self, wanted: &mut Vec<(u32, Op)>) {
        match self {
            Job::Gather(gather) => gather.want_more(wanted),
            Job::Walk(walk) => walk.start(wanted),
            Job::Scan(scan) => wanted.push((0, scan.next_page())),
            Job::RandomKey(random) => wanted.push((0, random.next_page())),
        }
    }

    /// Takes an answer, and asks for what follows from it.
    pub(super) fn on_done(
        &mut self,
        part: u32,
        result: Result<Outcome, RequestError>,
        wanted: &mut Vec<(u32, Op)>,
    ) {
        match self {
            Job::Gather(gather) => gather.on_done(part, result, wanted),
            Job::Walk(walk) => walk.on_done(part, result, wanted),
            Job::Scan(scan) => wanted.extend(scan.on_done(result).map(|op| (0, op))),
            Job::RandomKey(random) => wanted.extend(random.on_done(result).map(|op| (0, op))),
        }
    }

    /// The reply, once nothing is in flight.
    pub(super) fn finish(self) -> JobReply {
        match self {
            Job::Gather(gather) => reply_only(gather.finish()),
            Job::Walk(walk) => reply_only(Answer::Reply(walk.finish())),
            Job::Scan(scan) => scan.finish(),
            Job::RandomKey(random) => reply_only(Answer::Reply(random.finish())),
        }
    }
}

fn reply_only(answer: Answer) -> JobReply {
    JobReply {
        answer,
        cursor: None,
    }
}

/// The reply to an answer of the wrong kind. The core never gives one; saying so beats a panic.
fn unexpected() -> RequestError {
    RequestError::NotReady("internal error: the answer does not fit the question".to_owned())
}

fn failed(error: &RequestError) -> Reply {
    error_reply(error)
}
