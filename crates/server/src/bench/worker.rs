//! One thread of the load generator: its connections, one epoll, and no task, lock or allocation for a request.
//!
//! It connects, then carries out phases that it is given. In a closed loop each connection sends `pipeline` requests
//! at once, and the next so many when all of them are answered. In an open loop requests are sent when they are due,
//! by the connection that has waited longest among those with less than `pipeline` on their way; while there is
//! none, what is due waits, and that counts.
//!
//! A broken connection fails what was on its way, and is made again, after a pause that doubles, so often at most.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::connection::{Connection, State};
use super::epoll::{Epoll, Event};
use super::phase::Phase;
use super::shared::Shared;
use super::tally::Slice;
use super::wire::Answer;

/// The first pause before a broken connection is made again, nanoseconds; it doubles.
const RETRY_PAUSE_NS: u64 = 50_000_000;
/// The longest such pause.
const RETRY_PAUSE_MAX_NS: u64 = 1_000_000_000;

/// How often time-outs and reconnects are looked at, nanoseconds.
const LOOK_NS: u64 = 20_000_000;

/// A second of the timeline, nanoseconds.
pub(super) const SECOND_NS: u64 = 1_000_000_000;

/// How a thread treats its connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manners {
    /// Requests on their way on one connection, at most.
    pub(super) pipeline: usize,
    /// An answer that takes longer is not awaited.
    pub(super) timeout: Duration,
    /// Tries to make a broken connection again, one after the other.
    pub(super) reconnects: u32,
}

/// A thread of the load generator.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    manners: Manners,
    epoll: Epoll,
    connections: Vec<Connection>,
    /// Connections that could take a request, open loop only.
    free: VecDeque<usize>,
    /// Connections with something to write, open loop only.
    dirty: Vec<usize>,
    second: u64,
    looked_ns: u64,
}

impl Worker {
    pub(super) fn new(
        shared: Arc<Shared>,
        manners: Manners,
        connections: Vec<Connection>,
    ) -> io::Result<Worker> {
        Ok(Worker {
            shared,
            manners,
            epoll: Epoll::new()?,
            free: VecDeque::with_capacity(connections.len()),
            dirty: Vec::with_capacity(connections.len()),
            connections,
            second: 0,
            looked_ns: 0,
        })
    }

    /// Makes and greets all connections.
    ///
    /// # Errors
    /// The first failure: which target, and why.
    pub(super) fn connect(&mut self) -> Result<(), (usize, String)> {
        let now_ns = self.shared.clock.now_ns();
        for connection in &mut self.connections {
            let opened = connection.open(&self.epoll, now_ns);
            opened.map_err(|error| (connection.target, error.to_string()))?;
        }
        while self
            .connections
            .iter()
            .any(|connection| connection.state != State::Up)
        {
            let failed = |error: io::Error| (0, error.to_string());
            let count = self
                .epoll
                .wait(Duration::from_nanos(LOOK_NS))
                .map_err(failed)?;
            for index in 0..count {
                let event = self.epoll.event(index);
                let connection = &mut self.connections[event.token];
                greet(connection, &self.epoll, event).map_err(|why| (connection.target, why))?;
            }
            let now_ns = self.shared.clock.now_ns();
            if let Some(slow) = self
                .connections
                .iter()
                .find(|one| one.is_overdue(now_ns, u64::MAX))
            {
                return Err((slow.target, "it does not answer".to_owned()));
            }
            if self.shared.stop.load(Ordering::Relaxed) {
                return Err((0, "interrupted".to_owned()));
            }
        }
        Ok(())
    }

    /// Treats its connections in another way from now on.
    pub(super) fn behave(&mut self, manners: Manners) {
        self.manners = manners;
    }

    /// Carries out a phase, from the start of its window on. `tell` hears of each second, when it is over.
    pub(super) fn run(
        &mut self,
        phase: &mut Phase,
        tell: &mut impl FnMut(u64, Slice),
    ) -> io::Result<()> {
        // What is begun before the window would not count.
        let early_ns = phase
            .window
            .start_ns
            .saturating_sub(self.shared.clock.now_ns());
        std::thread::sleep(Duration::from_nanos(early_ns));
        self.begin_phase(phase);
        let mut ended_sending_ns = None;
        loop {
            let now_ns = self.shared.clock.now_ns();
            let stopped = self.shared.stop.load(Ordering::Relaxed);
            if now_ns >= phase.window.end_ns || stopped {
                phase.is_sending = false;
            }
            if !phase.is_sending {
                let since_ns = *ended_sending_ns.get_or_insert(now_ns);
                if self.is_drained() || now_ns - since_ns > self.manners.timeout.as_nanos() as u64 {
                    break;
                }
            }
            self.tell_seconds(phase, now_ns, tell);
            if now_ns - self.looked_ns >= LOOK_NS {
                self.looked_ns = now_ns;
                self.look_after(phase, now_ns);
            }
            if phase.schedule.is_some() {
                self.send_due(phase, now_ns);
            }
            let timeout_ns = self.until_next(phase, self.shared.clock.now_ns());
            let count = self.epoll.wait(Duration::from_nanos(timeout_ns))?;
            for index in 0..count {
                let event = self.epoll.event(index);
                self.on_event(phase, event);
            }
        }
        let ended_ns = ended_sending_ns.unwrap_or_else(|| self.shared.clock.now_ns());
        self.end_phase(phase, ended_ns, tell);
        Ok(())
    }

    fn begin_phase(&mut self, phase: &mut Phase) {
        let now_ns = self.shared.clock.now_ns();
        self.second = 0;
        self.free.clear();
        for token in 0..self.connections.len() {
            let connection = &mut self.connections[token];
            connection.since_ns = now_ns;
            connection.is_queued = false;
            if connection.state == State::Up {
                self.is_up(phase, token, now_ns);
            }
        }
    }

    fn end_phase(&mut self, phase: &mut Phase, ended_ns: u64, tell: &mut impl FnMut(u64, Slice)) {
        let is_open = phase.schedule.is_some();
        let last_ns = self.shared.clock.now_ns();
        for connection in &mut self.connections {
            let owes = !connection.pending.is_empty();
            let is_up = connection.state == State::Up;
            if owes || !is_up {
                phase.close_gap(&connection.outgoing(), ended_ns);
            }
            if owes {
                // Whatever it answers later belongs to no phase.
                connection.close();
                connection.state = State::Down { retry_ns: 0 };
                phase.lost(
                    &mut connection.outgoing(),
                    "NO-ANSWER",
                    "no answer when the run ended",
                );
            }
        }
        if is_open && let Some(schedule) = phase.schedule.take() {
            let until_ns = ended_ns.min(phase.window.end_ns);
            phase.tally.unsent = match phase.window.operations {
                0 => 0,
                _ => schedule.due_and_not_taken(until_ns),
            };
        }
        let pause = self.shared.pause(&phase.window, ended_ns);
        phase.tally.stall_overall.or_longer(pause);
        phase.tally.ended_ns = last_ns;
        let slice = std::mem::replace(&mut phase.slice, Slice::new());
        tell(self.second, slice);
    }

    fn is_drained(&self) -> bool {
        self.connections
            .iter()
            .all(|connection| connection.pending.is_empty())
    }

    fn tell_seconds(&mut self, phase: &mut Phase, now_ns: u64, tell: &mut impl FnMut(u64, Slice)) {
        while now_ns >= phase.window.start_ns + (self.second + 1) * SECOND_NS {
            let slice = std::mem::replace(&mut phase.slice, Slice::new());
            tell(self.second, slice);
            self.second += 1;
        }
    }

    /// How long nothing has to be done, nanoseconds.
    fn until_next(&self, phase: &Phase, now_ns: u64) -> u64 {
        let mut next_ns = now_ns + LOOK_NS;
        if phase.is_sending {
            next_ns = next_ns.min(phase.window.end_ns);
            if let Some(schedule) = &phase.schedule
                && !self.free.is_empty()
            {
                next_ns = next_ns.min(schedule.next_due_ns());
            }
        }
        next_ns.saturating_sub(now_ns)
    }

    /// Time-outs and reconnects.
    fn look_after(&mut self, phase: &mut Phase, now_ns: u64) {
        let timeout_ns = self.manners.timeout.as_nanos() as u64;
        for token in 0..self.connections.len() {
            let connection = &mut self.connections[token];
            if connection.is_overdue(now_ns, timeout_ns) {
                let why = format!("no answer within {} ms", self.manners.timeout.as_millis());
                self.broke(phase, token, "NO-ANSWER", &why);
                continue;
            }
            if let State::Down { retry_ns } = connection.state
                && retry_ns <= now_ns
                && phase.is_sending
                && let Err(error) = connection.open(&self.epoll, now_ns)
            {
                self.broke(phase, token, "DISCONNECTED", &error.to_string());
            }
        }
        if self
            .connections
            .iter()
            .all(|connection| connection.state == State::GivenUp)
        {
            phase.is_sending = false;
        }
    }

    fn on_event(&mut self, phase: &mut Phase, event: Event) {
        let connection = &mut self.connections[event.token];
        match connection.state {
            State::Up => {
                let served = self.serve(phase, event);
                if let Err((kind, why)) = served {
                    self.broke(phase, event.token, kind, &why);
                }
            }
            State::Connecting { .. } | State::Greeting { .. } => {
                match greet(connection, &self.epoll, event) {
                    Err(why) => self.broke(phase, event.token, "DISCONNECTED", &why),
                    Ok(()) if connection.state == State::Up => {
                        connection.tries = 0;
                        phase.tally.connections.reconnected += 1;
                        let now_ns = self.shared.clock.now_ns();
                        self.is_up(phase, event.token, now_ns);
                    }
                    Ok(()) => {}
                }
            }
            State::Down { .. } | State::GivenUp => {}
        }
    }

    /// A connection can take requests.
    fn is_up(&mut self, phase: &mut Phase, token: usize, now_ns: u64) {
        if phase.schedule.is_some() {
            self.queue(token);
            return;
        }
        self.fill(phase, token, now_ns);
        if let Err(error) = self.connections[token].flush(&self.epoll) {
            self.broke(phase, token, "DISCONNECTED", &error.to_string());
        }
    }

    /// Reads answers, and in a closed loop sends the next requests.
    fn serve(&mut self, phase: &mut Phase, event: Event) -> Result<(), (&'static str, String)> {
        let disconnected = |error: io::Error| {
            let text = match error.kind() {
                io::ErrorKind::UnexpectedEof => "the target closed the connection".to_owned(),
                _ => error.to_string(),
            };
            ("DISCONNECTED", text)
        };
        let token = event.token;
        let connection = &mut self.connections[token];
        let mut is_more = event.is_readable;
        while is_more {
            is_more = connection.read().map_err(disconnected)?;
            let now_ns = self.shared.clock.now_ns();
            let mut has_completed = false;
            loop {
                let (answer, mut outgoing) = connection.parts();
                let answer = answer.map_err(|strange| ("STRANGE", strange.0.to_owned()))?;
                let Some((bytes, answer)) = answer else {
                    break;
                };
                let completed = phase.complete(answer, &mut outgoing, now_ns);
                has_completed |= completed.map_err(|strange| ("STRANGE", strange.0.to_owned()))?;
                connection.take(bytes);
            }
            if has_completed {
                let pause = self.shared.completed(&phase.window, now_ns);
                phase.tally.stall_overall.or_longer(pause);
            }
            if phase.schedule.is_none() && connection.pending.is_empty() {
                fill(phase, connection, self.manners.pipeline, now_ns);
            }
        }
        connection.flush(&self.epoll).map_err(disconnected)?;
        if phase.schedule.is_some() && connection.pending.len() < self.manners.pipeline {
            self.queue(token);
        }
        Ok(())
    }

    fn fill(&mut self, phase: &mut Phase, token: usize, now_ns: u64) {
        fill(
            phase,
            &mut self.connections[token],
            self.manners.pipeline,
            now_ns,
        );
    }

    fn queue(&mut self, token: usize) {
        let connection = &mut self.connections[token];
        if !connection.is_queued {
            connection.is_queued = true;
            self.free.push_back(token);
        }
    }

    /// Sends all that is due and finds a connection.
    fn send_due(&mut self, phase: &mut Phase, now_ns: u64) {
        while phase.is_sending
            && let Some(schedule) = &mut phase.schedule
            && schedule.next_due_ns() <= now_ns
            && let Some(token) = self.free.pop_front()
        {
            let connection = &mut self.connections[token];
            connection.is_queued = false;
            if connection.state != State::Up {
                continue;
            }
            let due_ns = schedule.take();
            if !phase.begin(&mut connection.outgoing(), due_ns, now_ns) {
                break;
            }
            if self.dirty.last() != Some(&token) {
                self.dirty.push(token);
            }
            if connection.pending.len() < self.manners.pipeline {
                connection.is_queued = true;
                self.free.push_back(token);
            }
        }
        while let Some(token) = self.dirty.pop() {
            if let Err(error) = self.connections[token].flush(&self.epoll) {
                self.broke(phase, token, "DISCONNECTED", &error.to_string());
            }
        }
    }

    /// A connection is of no use any more.
    fn broke(&mut self, phase: &mut Phase, token: usize, kind: &str, why: &str) {
        let now_ns = self.shared.clock.now_ns();
        let connection = &mut self.connections[token];
        match connection.state {
            State::Up => {
                phase.tally.connections.broken += 1;
                if connection.pending.is_empty() {
                    connection.since_ns = now_ns;
                }
            }
            _ => phase.tally.connections.failed_tries += 1,
        }
        connection.close();
        phase.lost(&mut connection.outgoing(), kind, why);
        connection.tries += 1;
        connection.state = match connection.tries > self.manners.reconnects {
            true => {
                phase.tally.connections.given_up += 1;
                State::GivenUp
            }
            false => {
                let doublings = (connection.tries - 1).min(16);
                let pause_ns = (RETRY_PAUSE_NS << doublings).min(RETRY_PAUSE_MAX_NS);
                State::Down {
                    retry_ns: now_ns + pause_ns,
                }
            }
        };
    }
}

/// Sends as many requests as a closed loop has on its way.
fn fill(phase: &mut Phase, connection: &mut Connection, pipeline: usize, now_ns: u64) {
    let mut outgoing = connection.outgoing();
    while outgoing.pending.len() < pipeline && phase.begin(&mut outgoing, now_ns, now_ns) {}
}

/// Brings a connection that is being made a step further.
fn greet(connection: &mut Connection, epoll: &Epoll, event: Event) -> Result<(), String> {
    let in_words = |error: io::Error| error.to_string();
    if matches!(connection.state, State::Connecting { .. }) && event.is_writable {
        return connection.connected(epoll).map_err(in_words);
    }
    if event.is_readable {
        connection.read().map_err(in_words)?;
    }
    while let State::Greeting { left, until_ns } = connection.state {
        let (answer, _) = connection.parts();
        let Some((bytes, answer)) = answer.map_err(|strange| strange.0.to_owned())? else {
            break;
        };
        if let Answer::Failed { text, .. } = answer {
            return Err(String::from_utf8_lossy(text).into_owned());
        }
        connection.take(bytes);
        connection.state = match left - 1 {
            0 => State::Up,
            left => State::Greeting { left, until_ns },
        };
    }
    connection.flush(epoll).map_err(in_words)
}
