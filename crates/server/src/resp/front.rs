//! The front-end itself: connections in, requests out, replies back in order.
//!
//! It is driven by a shell (sockets) and a core (the database), and does nothing by itself: see
//! [`Frontend`]. All commands of one read are parsed and submitted in one go, all replies of a turn
//! leave in one buffer.
//!
//! # Order
//!
//! Requests complete in any order; replies leave in the order of the commands. Each command has a
//! slot in its connection; a reply that comes early waits in it. A command that would race with one
//! before it (same key, one of them writes) waits until that is done, and the commands behind it
//! too ([`Hazards`](super::conn)).
//!
//! # Bounds
//!
//! Commands in flight per connection: `PIPELINE_MAX`. Requests in flight per command:
//! `GATHER_IN_FLIGHT_MAX` and `WALK_IN_FLIGHT_MAX`. Input per connection: what one read gave plus
//! one unfinished command (`COMMAND_BYTES_MAX`). Output: `OUTPUT_BYTES_MAX`; beyond it the connection
//! must be closed at once, and what its client has not read yet is lost to it.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use mds_node::api::{
    FRONT_RESP, Now, Op, Outcome, Request, RequestError, RequestOptions, Submit, Tag,
};
use mds_node::front::Frontend;

use super::codec::Command;
use super::commands::{self, Action, Call, Shared, Then};
use super::conn::{Access, Answer, Conn};
use super::jobs::{Job, JobReply};
use super::reply::Reply;
use super::slab::{Key, Slab};

/// The Redis front-end of one node.
#[derive(Debug)]
pub struct RespFront {
    conns: Slab<Conn>,
    by_id: BTreeMap<u64, Key>,
    pending: Slab<Pending>,
    jobs: Slab<RunningJob>,
    dirty: Vec<u64>,
    /// The command in hand; kept for its memory.
    command: Command,
    /// Requests that a job wants to submit; kept for its memory.
    wanted: Vec<(u32, Op)>,
    shared: Shared,
}

/// A request in flight.
#[derive(Debug)]
enum Pending {
    /// All that a command asked.
    Single {
        conn: Key,
        slot: u64,
        key: Bytes,
        access: Access,
        then: Then,
    },
    /// A part of what a job asked.
    Part { job: Key, part: u32 },
}

/// A command that needs several requests.
#[derive(Debug)]
struct RunningJob {
    conn: Key,
    slot: u64,
    in_flight: usize,
    job: Job,
}

impl RespFront {
    /// A front-end without connections. `seed` feeds `RANDOMKEY`, and nothing else.
    pub fn new(seed: u64) -> RespFront {
        RespFront {
            conns: Slab::new(),
            by_id: BTreeMap::new(),
            pending: Slab::new(),
            jobs: Slab::new(),
            dirty: Vec::new(),
            command: Command::default(),
            wanted: Vec::new(),
            shared: Shared::new(seed),
        }
    }

    /// Open connections.
    pub fn connection_count(&self) -> usize {
        self.conns.len()
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Commands executed since the start.
    pub fn command_count(&self) -> u64 {
        self.shared.commands
    }

    /// As if this node had been restarted, or the next call went to another.
    #[cfg(test)]
    pub(super) fn forget_cursors(&mut self) {
        self.shared.cursors.forget_all();
    }

    fn conn_of(&self, id: u64) -> Option<&Conn> {
        self.conns.get(*self.by_id.get(&id)?)
    }

    /// Runs a connection's commands until there are no more, or one has to wait.
    fn advance(&mut self, now: Now, key: Key, core: &mut dyn Submit) {
        while let Some(action) = self.next_action(now, key, core) {
            let Some(conn) = self.conns.get_mut(key) else {
                return;
            };
            if may_start(conn, &action) {
                self.start(now, key, action, core);
            } else {
                conn.stalled = Some(action);
                break;
            }
        }
        self.command.clear();
        self.mark_dirty(key);
    }

    /// What the next command of a connection wants done.
    fn next_action(&mut self, now: Now, key: Key, core: &dyn Submit) -> Option<Action> {
        let conn = self.conns.get_mut(key)?;
        if conn.ending || conn.is_full() || conn.is_output_high() {
            return None;
        }
        if let Some(action) = conn.stalled.take() {
            return Some(action);
        }
        match conn.parser.next(&mut conn.input, &mut self.command) {
            Ok(true) => {
                self.shared.commands += 1;
                conn.active = now;
                let mut call = Call {
                    now,
                    command: &self.command,
                    conn,
                    shared: &mut self.shared,
                    view: core.view(),
                };
                Some(commands::plan(&mut call))
            }
            Ok(false) => None,
            Err(error) => {
                conn.ending = true;
                conn.input = BytesMut::new();
                conn.answer_now(Answer::Reply(Reply::Error(error.to_string().into())));
                None
            }
        }
    }

    fn start(&mut self, now: Now, key: Key, action: Action, core: &mut dyn Submit) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        match action {
            Action::Answer(answer) => conn.answer_now(answer),
            Action::Quit => {
                conn.ending = true;
                conn.input = BytesMut::new();
                conn.answer_now(Answer::Reply(Reply::OK));
            }
            Action::ClientList => {
                let list = Reply::Verbatim(self.client_list(now).into());
                if let Some(conn) = self.conns.get_mut(key) {
                    conn.answer_now(Answer::Reply(list));
                }
            }
            Action::Ask {
                op,
                access,
                key: name,
                then,
            } => {
                conn.hazards.enter(std::slice::from_ref(&name), access);
                let pending = Pending::Single {
                    conn: key,
                    slot: conn.reserve_slot(),
                    key: name,
                    access,
                    then,
                };
                let options = conn.options(&op);
                submit(&mut self.pending, now, op, options, pending, core);
            }
            Action::Run(job) => {
                match job.keys() {
                    Some((keys, access)) => conn.hazards.enter(keys, access),
                    None => conn.hazards.enter_everything(),
                }
                let running = RunningJob {
                    conn: key,
                    slot: conn.reserve_slot(),
                    in_flight: 0,
                    job: *job,
                };
                let job = self.jobs.insert(running);
                let mut wanted = std::mem::take(&mut self.wanted);
                if let Some(running) = self.jobs.get_mut(job) {
                    running.job.start(&mut wanted);
                }
                self.go_on(now, job, wanted, core);
            }
        }
    }

    /// Submits what a job wants next, or ends it if nothing is left to wait for.
    fn go_on(&mut self, now: Now, key: Key, mut wanted: Vec<(u32, Op)>, core: &mut dyn Submit) {
        if let Some(running) = self.jobs.get_mut(key) {
            match self.conns.get(running.conn) {
                Some(conn) => {
                    running.in_flight += wanted.len();
                    for (part, op) in wanted.drain(..) {
                        let pending = Pending::Part { job: key, part };
                        let options = conn.options(&op);
                        submit(&mut self.pending, now, op, options, pending, core);
                    }
                }
                // Nobody waits for it any more: it ends when what is in flight has come back.
                None => wanted.clear(),
            }
            if running.in_flight == 0 {
                self.end_job(key);
            }
        }
        self.wanted = wanted;
    }

    fn end_job(&mut self, key: Key) {
        let Some(running) = self.jobs.remove(key) else {
            return;
        };
        let Some(conn) = self.conns.get_mut(running.conn) else {
            return;
        };
        match running.job.keys() {
            Some((keys, access)) => conn.hazards.leave(keys, access),
            None => conn.hazards.leave_everything(),
        }
        let JobReply { answer, cursor } = running.job.finish();
        if let Some((cursor, after)) = cursor {
            self.shared.cursors.remember(cursor, after);
        }
        conn.answer(running.slot, answer);
    }

    fn mark_dirty(&mut self, key: Key) {
        if let Some(conn) = self.conns.get_mut(key)
            && !conn.dirty
        {
            conn.dirty = true;
            self.dirty.push(conn.id);
        }
    }

    /// What `CLIENT LIST` says: one line per connection, in order of their numbers.
    fn client_list(&self, now: Now) -> String {
        self.by_id
            .values()
            .filter_map(|&key| self.conns.get(key))
            .map(|conn| commands::client_line(conn, now))
            .collect()
    }
}

/// Whether a command may start beside those of its connection that are in flight.
fn may_start(conn: &Conn, action: &Action) -> bool {
    match action {
        Action::Answer(_) | Action::Quit | Action::ClientList => true,
        Action::Ask { key, access, .. } => {
            conn.hazards.allows_all(std::slice::from_ref(key), *access)
        }
        Action::Run(job) => match job.keys() {
            Some((keys, access)) => conn.hazards.allows_all(keys, access),
            None => conn.hazards.allows_everything(),
        },
    }
}

fn submit(
    all: &mut Slab<Pending>,
    now: Now,
    op: Op,
    options: RequestOptions,
    pending: Pending,
    core: &mut dyn Submit,
) {
    let tag = Tag {
        front: FRONT_RESP,
        id: all.insert(pending).to_u64(),
    };
    core.submit(now, Request { op, options }, tag);
}

/// The version that an answer lets the client know of.
fn version_of(result: &Result<Outcome, RequestError>) -> Option<mds_types::Version> {
    match result {
        Ok(Outcome::Read { version, .. }) => *version,
        Ok(Outcome::Written { version, .. }) => Some(*version),
        Err(RequestError::Unknown { stamp, .. }) => Some(stamp.version),
        _ => None,
    }
}

impl Frontend for RespFront {
    fn open(&mut self, conn: u64, peer: String) {
        let key = self.conns.insert(Conn::new(conn, peer));
        if let Some(old) = self.by_id.insert(conn, key) {
            self.conns.remove(old);
        }
        self.shared.connections += 1;
    }

    /// Takes all of `input`: what is not a whole command yet is kept here.
    fn on_bytes(&mut self, now: Now, conn: u64, input: &mut BytesMut, core: &mut dyn Submit) {
        let Some(&key) = self.by_id.get(&conn) else {
            input.clear();
            return;
        };
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        self.shared.started.get_or_insert(now);
        conn.opened.get_or_insert(now);
        if conn.ending {
            input.clear();
            return;
        }
        conn.input.unsplit(input.split());
        self.shared.open = self.conns.len();
        self.advance(now, key, core);
    }

    fn on_done(
        &mut self,
        now: Now,
        tag: Tag,
        result: Result<Outcome, RequestError>,
        core: &mut dyn Submit,
    ) {
        let Some(pending) = self.pending.remove(Key::from_u64(tag.id)) else {
            return;
        };
        match pending {
            Pending::Single {
                conn: key,
                slot,
                key: name,
                access,
                then,
            } => {
                let Some(conn) = self.conns.get_mut(key) else {
                    return;
                };
                conn.saw(version_of(&result));
                conn.hazards.leave(std::slice::from_ref(&name), access);
                conn.answer(slot, then.answer(now, result));
                self.resume(now, key, core);
            }
            Pending::Part { job, part } => {
                let Some(running) = self.jobs.get_mut(job) else {
                    return;
                };
                let key = running.conn;
                running.in_flight -= 1;
                if let Some(conn) = self.conns.get_mut(key) {
                    conn.saw(version_of(&result));
                }
                let mut wanted = std::mem::take(&mut self.wanted);
                running.job.on_done(part, result, &mut wanted);
                self.go_on(now, job, wanted, core);
                self.resume(now, key, core);
            }
        }
    }

    fn take_dirty(&mut self) -> Vec<u64> {
        let dirty = std::mem::take(&mut self.dirty);
        for id in &dirty {
            if let Some(conn) = self.by_id.get(id).and_then(|&key| self.conns.get_mut(key)) {
                conn.dirty = false;
            }
        }
        dirty
    }

    fn take_output(&mut self, conn: u64) -> Option<BytesMut> {
        self.conns.get_mut(*self.by_id.get(&conn)?)?.take_output()
    }

    fn set_backlog(&mut self, conn: u64, bytes: usize) {
        if let Some(conn) = self
            .by_id
            .get(&conn)
            .and_then(|&key| self.conns.get_mut(key))
        {
            conn.backlog = bytes;
        }
    }

    fn is_paused(&self, conn: u64) -> bool {
        self.conn_of(conn).is_none_or(Conn::is_paused)
    }

    fn wants_close(&self, conn: u64) -> bool {
        self.conn_of(conn).is_none_or(Conn::wants_close)
    }

    fn must_close_now(&self, conn: u64) -> bool {
        self.conn_of(conn).is_none_or(Conn::must_close_now)
    }

    /// Answers to requests of this connection that still come are dropped; writes that were
    /// submitted are not undone.
    fn close(&mut self, conn: u64) {
        if let Some(key) = self.by_id.remove(&conn) {
            self.conns.remove(key);
        }
    }
}

impl RespFront {
    /// After an answer: says that there is output, and runs commands that had to wait.
    fn resume(&mut self, now: Now, key: Key, core: &mut dyn Submit) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        if conn.stalled.is_some() || !conn.input.is_empty() {
            self.advance(now, key, core);
        } else if conn.has_output() || conn.ending {
            self.mark_dirty(key);
        }
    }
}
