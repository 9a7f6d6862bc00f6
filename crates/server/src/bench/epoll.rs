//! Waiting for sockets: epoll, with time-outs as fine as the clock's.
//!
//! An open loop sends thousands of requests a second, each at its moment. `epoll_wait` counts milliseconds, so it
//! would send them in heaps; `epoll_pwait2` (Linux 5.11) counts nanoseconds. Events are level-triggered: what was not
//! read is told again.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Events taken at a time, at most.
const EVENTS_MAX: usize = 1024;

/// What to wait for on a socket. Errors and hang-ups are always told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Interest {
    /// Bytes to read.
    Read,
    /// Bytes to read, or room to write; also the end of connecting.
    ReadWrite,
}

impl Interest {
    fn bits(self) -> u32 {
        let bits = match self {
            Interest::Read => libc::EPOLLIN,
            Interest::ReadWrite => libc::EPOLLIN | libc::EPOLLOUT,
        };
        bits as u32
    }
}

/// What happened on a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Event {
    /// The number that the socket was added with.
    pub(super) token: usize,
    /// There is something to read, or the connection has failed or ended, which reading tells.
    pub(super) is_readable: bool,
    /// There is room to write, or connecting has ended, well or not.
    pub(super) is_writable: bool,
}

/// A set of sockets. One that is closed leaves it by itself.
#[derive(Debug)]
pub(super) struct Epoll {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
    /// The system knows `epoll_pwait2`.
    is_fine: bool,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Epoll> {
        // SAFETY: a number in, a descriptor or an error out.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Epoll {
            // SAFETY: the system has just given us this descriptor; nobody else owns it.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
            events: Vec::with_capacity(EVENTS_MAX),
            is_fine: true,
        })
    }

    /// Adds a socket under a number.
    pub(super) fn add(&self, socket: RawFd, token: usize, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, socket, token, interest)
    }

    /// Waits for something else on a socket.
    pub(super) fn change(&self, socket: RawFd, token: usize, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, socket, token, interest)
    }

    fn control(
        &self,
        what: i32,
        socket: RawFd,
        token: usize,
        interest: Interest,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: interest.bits(),
            u64: token as u64,
        };
        // SAFETY: both descriptors are open; the event lives throughout the call.
        match unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), what, socket, &raw mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits until something happens, so long at most; how many events there are. A signal may end it early.
    pub(super) fn wait(&mut self, timeout: Duration) -> io::Result<usize> {
        self.events.clear();
        let count = match self.is_fine {
            true => self.wait_fine(timeout),
            false => self.wait_coarse(timeout),
        };
        if count >= 0 {
            // SAFETY: the system has filled so many, and no more than there is room for.
            unsafe { self.events.set_len(count as usize) };
            return Ok(count as usize);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => Ok(0),
            Some(libc::ENOSYS) if self.is_fine => {
                self.is_fine = false;
                self.wait(timeout)
            }
            _ => Err(error),
        }
    }

    fn wait_fine(&mut self, timeout: Duration) -> i64 {
        let span = libc::timespec {
            // Waits are far below the largest number of seconds.
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos() as libc::c_long,
        };
        // SAFETY: the buffer has room for so many events; the span lives throughout the call; no signal mask.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS_MAX as libc::c_int,
                &raw const span,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        count as i64
    }

    fn wait_coarse(&mut self, timeout: Duration) -> i64 {
        let ms = i32::try_from(timeout.as_micros().div_ceil(1_000)).unwrap_or(i32::MAX);
        // SAFETY: the buffer has room for so many events.
        let count = unsafe {
            libc::epoll_wait(
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS_MAX as i32,
                ms,
            )
        };
        i64::from(count)
    }

    /// An event of the last wait.
    pub(super) fn event(&self, index: usize) -> Event {
        let event = self.events[index];
        let bits = event.events as i32;
        let ended = libc::EPOLLERR | libc::EPOLLHUP;
        Event {
            token: event.u64 as usize,
            is_readable: bits & (libc::EPOLLIN | ended) != 0,
            is_writable: bits & (libc::EPOLLOUT | ended) != 0,
        }
    }
}

/// Lets this thread be woken at the moment it asked for: by default the system may be 50 us late.
pub(super) fn wake_on_time() {
    // SAFETY: numbers only. Where it fails, requests are sent a little later, which is measured.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong, 0, 0, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_is_readable_is_told_until_it_is_read() {
        let (mut here, there) = UnixStream::pair().unwrap();
        let mut epoll = Epoll::new().unwrap();
        epoll.add(there.as_raw_fd(), 7, Interest::Read).unwrap();
        assert_eq!(epoll.wait(Duration::ZERO).unwrap(), 0);
        here.write_all(b"x").unwrap();
        for _ in 0..2 {
            assert_eq!(epoll.wait(Duration::from_secs(10)).unwrap(), 1);
            let event = epoll.event(0);
            assert_eq!(
                (event.token, event.is_readable, event.is_writable),
                (7, true, false)
            );
        }
        epoll
            .change(there.as_raw_fd(), 8, Interest::ReadWrite)
            .unwrap();
        epoll.is_fine = false;
        assert_eq!(epoll.wait(Duration::from_secs(10)).unwrap(), 1);
        assert_eq!(
            (epoll.event(0).token, epoll.event(0).is_writable),
            (8, true)
        );
        drop(there);
        assert_eq!(
            epoll.wait(Duration::ZERO).unwrap(),
            0,
            "a closed one has left"
        );
    }
}
