//! One connection: its socket, its buffers, and the requests on their way.
//!
//! It moves bytes and knows its state; what is sent and what an answer means for the counts is decided by
//! [`Phase`](super::phase::Phase). Buffers are kept for the connection's life and grow to the largest answer.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::epoll::{Epoll, Interest};
use super::wire::{Answer, Strange, Wire};

/// Bytes that are read at a time, at least.
const READ_BYTES: usize = 16 * 1024;

/// A connection that is not made and greeted by then has failed.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// What is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    Read,
    Update,
    Insert,
    /// The read of a read-modify-write; the write follows.
    ReadOfRmw,
    /// That write.
    WriteOfRmw,
}

/// A request on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) what: What,
    pub(super) key: u64,
    /// From when its latency counts: when it was due.
    pub(super) begun_ns: u64,
    /// When it was sent.
    pub(super) sent_ns: u64,
    /// From when the whole read-modify-write counts.
    pub(super) whole_ns: u64,
    /// Verification: of a read, what it has to return at least; of a read-modify-write, the sequence to write.
    pub(super) mark: u32,
}

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Being made, until then at most.
    Connecting { until_ns: u64 },
    /// Made; so many answers to the greeting are awaited, until then at most.
    Greeting { left: usize, until_ns: u64 },
    /// In use.
    Up,
    /// Broken; the next try is then.
    Down { retry_ns: u64 },
    /// Tried too often.
    GivenUp,
}

/// A connection to a target.
#[derive(Debug)]
pub(super) struct Connection {
    /// Its number among this thread's.
    token: usize,
    /// Its number among all.
    pub(super) number: usize,
    /// The number of its target.
    pub(super) target: usize,
    addr: SocketAddr,
    pub(super) wire: Wire,
    stream: Option<TcpStream>,
    interest: Interest,
    pub(super) state: State,
    input: Vec<u8>,
    /// The part of the input that was read and not yet understood.
    input_start: usize,
    input_end: usize,
    pub(super) output: Vec<u8>,
    written: usize,
    pub(super) pending: VecDeque<Pending>,
    /// Since when it has owed an answer, or been broken, without completing anything.
    pub(super) since_ns: u64,
    /// Tries to connect, one after the other, that failed.
    pub(super) tries: u32,
    /// It waits for a request, open loop only.
    pub(super) is_queued: bool,
}

impl Connection {
    pub(super) fn new(
        token: usize,
        number: usize,
        target: (usize, SocketAddr),
        wire: Wire,
        pipeline: usize,
    ) -> Connection {
        Connection {
            token,
            number,
            target: target.0,
            addr: target.1,
            wire,
            stream: None,
            interest: Interest::ReadWrite,
            state: State::Down { retry_ns: 0 },
            input: vec![0; READ_BYTES],
            input_start: 0,
            input_end: 0,
            output: Vec::with_capacity(READ_BYTES),
            written: 0,
            pending: VecDeque::with_capacity(pipeline),
            since_ns: 0,
            tries: 0,
            is_queued: false,
        }
    }

    /// Begins to connect.
    pub(super) fn open(&mut self, epoll: &Epoll, now_ns: u64) -> io::Result<()> {
        self.close();
        let socket = Socket::new(
            Domain::for_address(self.addr),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&self.addr.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let stream = TcpStream::from(socket);
        self.interest = Interest::ReadWrite;
        epoll.add(stream.as_raw_fd(), self.token, self.interest)?;
        self.stream = Some(stream);
        let until_ns = now_ns + CONNECT_PATIENCE.as_nanos() as u64;
        self.state = State::Connecting { until_ns };
        Ok(())
    }

    /// After connecting has ended: fails if it ended badly, else greets.
    pub(super) fn connected(&mut self, epoll: &Epoll) -> io::Result<()> {
        let State::Connecting { until_ns } = self.state else {
            return Ok(());
        };
        if let Some(error) = self.stream()?.take_error()? {
            return Err(error);
        }
        let left = self.wire.greet(&mut self.output);
        self.state = match left {
            0 => State::Up,
            left => State::Greeting { left, until_ns },
        };
        self.flush(epoll)
    }

    /// Whether a time that it was given is over.
    pub(super) fn is_overdue(&self, now_ns: u64, timeout_ns: u64) -> bool {
        match self.state {
            State::Connecting { until_ns } | State::Greeting { until_ns, .. } => now_ns > until_ns,
            State::Up => {
                let oldest = self.pending.front();
                oldest.is_some_and(|oldest| now_ns.saturating_sub(oldest.sent_ns) > timeout_ns)
            }
            State::Down { .. } | State::GivenUp => false,
        }
    }

    /// Forgets the socket and all that was in the buffers.
    pub(super) fn close(&mut self) {
        self.stream = None;
        self.input_start = 0;
        self.input_end = 0;
        self.output.clear();
        self.written = 0;
    }

    /// Reads once; whether there may be more to read.
    pub(super) fn read(&mut self) -> io::Result<bool> {
        if self.input_end == self.input.len() {
            if self.input_start > 0 {
                self.input.copy_within(self.input_start..self.input_end, 0);
                self.input_end -= self.input_start;
                self.input_start = 0;
            } else {
                let doubled = self.input.len() * 2;
                self.input.resize(doubled, 0);
            }
        }
        let Connection {
            stream,
            input,
            input_end,
            ..
        } = self;
        let stream = stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let room = &mut input[*input_end..];
        let room_bytes = room.len();
        match stream.read(room) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                *input_end += count;
                Ok(count == room_bytes)
            }
            Err(error) if is_later(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The next whole answer in what was read: how many bytes it takes, which [`take`](Connection::take) has to be told.
    ///
    /// It borrows only the input, so that requests can be written meanwhile.
    pub(super) fn parts(&mut self) -> (Result<Option<(usize, Answer<'_>)>, Strange>, Outgoing<'_>) {
        let input = &self.input[self.input_start..self.input_end];
        let answer = self.wire.answer(input);
        let outgoing = Outgoing {
            wire: &mut self.wire,
            output: &mut self.output,
            pending: &mut self.pending,
            since_ns: &mut self.since_ns,
            number: self.number,
            target: self.target,
        };
        (answer, outgoing)
    }

    /// The half that requests go out by.
    pub(super) fn outgoing(&mut self) -> Outgoing<'_> {
        Outgoing {
            wire: &mut self.wire,
            output: &mut self.output,
            pending: &mut self.pending,
            since_ns: &mut self.since_ns,
            number: self.number,
            target: self.target,
        }
    }

    /// Takes an answer off the input.
    pub(super) fn take(&mut self, bytes: usize) {
        self.input_start += bytes;
        if self.input_start == self.input_end {
            self.input_start = 0;
            self.input_end = 0;
        }
    }

    /// Writes what there is to write, as far as there is room.
    pub(super) fn flush(&mut self, epoll: &Epoll) -> io::Result<()> {
        while self.written < self.output.len() {
            let Connection {
                stream,
                output,
                written,
                ..
            } = self;
            let stream = stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
            match stream.write(&output[*written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => *written += count,
                Err(error) if is_later(&error) => break,
                Err(error) => return Err(error),
            }
        }
        let wanted = if self.written == self.output.len() {
            self.output.clear();
            self.written = 0;
            Interest::Read
        } else {
            Interest::ReadWrite
        };
        if wanted != self.interest {
            self.interest = wanted;
            epoll.change(self.stream()?.as_raw_fd(), self.token, wanted)?;
        }
        Ok(())
    }

    fn stream(&self) -> io::Result<&TcpStream> {
        self.stream
            .as_ref()
            .ok_or(io::ErrorKind::NotConnected.into())
    }
}

/// The half of a connection that requests go out by.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) wire: &'a mut Wire,
    pub(super) output: &'a mut Vec<u8>,
    pub(super) pending: &'a mut VecDeque<Pending>,
    pub(super) since_ns: &'a mut u64,
    pub(super) number: usize,
    pub(super) target: usize,
}

fn is_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
