//! A socket that tasks of the data thread share: one reads, whoever ends a turn writes.
//!
//! Writing never waits: what the socket does not take stays with its owner, and a task of its own waits
//! until the socket takes more. An outlet that has ended wakes both tasks, so that nothing holds on to
//! the socket any longer and its descriptor is closed, however little the other side reads.

use std::cell::Cell;
use std::rc::Rc;

use bytes::{Buf, BytesMut};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::spawn_local;

use super::clock;

/// Bytes asked of a socket at a time.
const READ_BYTES: usize = 64 * 1024;

/// An output buffer that is empty again does not keep more memory than this.
const KEPT_BYTES_MAX: usize = 1024 * 1024;

/// A socket that is written to at the end of turns.
pub(super) struct Outlet {
    stream: TcpStream,
    /// A task waits until the socket takes bytes again.
    is_blocked: Cell<bool>,
    is_ended: Cell<bool>,
    /// When the other side last sent or took something, monotonic nanoseconds.
    alive_ns: Cell<u64>,
    /// Wakes the reading task: to go on reading, or to end.
    wake: Notify,
    /// Wakes the task that waits for the socket to take bytes: to end.
    gone: Notify,
}

impl Outlet {
    pub(super) fn new(stream: TcpStream) -> Outlet {
        // Fails only on a socket that is broken already; reading then says so.
        let _ = stream.set_nodelay(true);
        Outlet {
            stream,
            is_blocked: Cell::new(false),
            is_ended: Cell::new(false),
            alive_ns: Cell::new(clock::now().mono_ns),
            wake: Notify::new(),
            gone: Notify::new(),
        }
    }

    /// Makes both tasks end.
    pub(super) fn end(&self) {
        self.is_ended.set(true);
        self.wake.notify_one();
        self.gone.notify_one();
    }

    pub(super) fn is_ended(&self) -> bool {
        self.is_ended.get()
    }

    /// Makes the reading task look again whether it may read.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits for [`Outlet::wake`] or [`Outlet::end`].
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// When the other side last sent or took something, monotonic nanoseconds.
    pub(super) fn alive_ns(&self) -> u64 {
        self.alive_ns.get()
    }

    /// Holds the other side for alive now: it was this process that slept.
    pub(super) fn excuse(&self, now_ns: u64) {
        self.alive_ns.set(now_ns);
    }

    /// Writes what the socket takes; if that is not all, waits in a task of its own until it takes more
    /// and then calls `again`.
    pub(super) fn write(self: &Rc<Self>, out: &mut BytesMut, again: impl FnOnce() + 'static) {
        if self.is_blocked.get() || self.is_ended.get() {
            return;
        }
        let mut has_written = false;
        while !out.is_empty() {
            match self.stream.try_write(out) {
                Ok(0) => return self.end(),
                Ok(written) => {
                    out.advance(written);
                    has_written = true;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.is_blocked.set(true);
                    spawn_local(self.clone().await_room(again));
                    break;
                }
                Err(_) => return self.end(),
            }
        }
        if has_written {
            self.alive_ns.set(clock::now().mono_ns);
        }
        if out.is_empty() && out.capacity() > KEPT_BYTES_MAX {
            *out = BytesMut::new();
        }
    }

    async fn await_room(self: Rc<Self>, again: impl FnOnce()) {
        let is_writable = tokio::select! {
            biased;
            () = self.gone.notified() => false,
            writable = self.stream.writable() => writable.is_ok(),
        };
        self.is_blocked.set(false);
        if is_writable {
            again();
        }
    }

    /// Waits for bytes and appends them. False when the connection has ended or is to end.
    pub(super) async fn read(&self, input: &mut BytesMut) -> bool {
        loop {
            if self.is_ended.get() {
                return false;
            }
            tokio::select! {
                biased;
                readable = self.stream.readable() => if readable.is_err() { return false },
                () = self.wake.notified() => continue,
            }
            input.reserve(READ_BYTES);
            match self.stream.try_read_buf(input) {
                Ok(0) => return false,
                Ok(_) => {
                    self.alive_ns.set(clock::now().mono_ns);
                    return true;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    use super::*;

    fn on_a_thread_of_its_own(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let bounded = async { tokio::time::timeout(Duration::from_secs(20), test).await };
        LocalSet::new().block_on(&runtime, bounded).unwrap();
    }

    async fn pair() -> (Rc<Outlet>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (stream, _) = listener.accept().await.unwrap();
        (Rc::new(Outlet::new(stream)), other.unwrap())
    }

    /// More than the buffers of two sockets take.
    fn a_lot() -> BytesMut {
        BytesMut::from(&vec![b'x'; 64 * 1024 * 1024][..])
    }

    #[test]
    fn an_ended_outlet_closes_its_socket_though_nobody_reads_from_it() {
        on_a_thread_of_its_own(async {
            let (outlet, mut other) = pair().await;
            let mut out = a_lot();
            outlet.write(&mut out, || panic!("there is no room"));
            assert!(!out.is_empty() && outlet.is_blocked.get());
            let reader = spawn_local({
                let outlet = outlet.clone();
                async move { outlet.read(&mut BytesMut::new()).await }
            });
            outlet.end();
            assert!(!reader.await.unwrap(), "the reading task ends");
            drop(outlet);
            // What was written still comes, and then the end.
            let mut read = 0;
            let mut buffer = vec![0; 1024 * 1024];
            loop {
                match other.read(&mut buffer).await.unwrap() {
                    0 => break,
                    bytes => read += bytes,
                }
            }
            assert_eq!(read, 64 * 1024 * 1024 - out.len());
        });
    }

    #[test]
    fn writing_goes_on_when_there_is_room() {
        on_a_thread_of_its_own(async {
            let (outlet, mut other) = pair().await;
            let out = Rc::new(std::cell::RefCell::new(a_lot()));
            fn go_on(outlet: Rc<Outlet>, out: Rc<std::cell::RefCell<BytesMut>>) {
                let again = (outlet.clone(), out.clone());
                outlet.write(&mut out.borrow_mut(), move || go_on(again.0, again.1));
            }
            go_on(outlet.clone(), out.clone());
            let mut all = vec![0; 64 * 1024 * 1024];
            other.read_exact(&mut all).await.unwrap();
            assert!(out.borrow().is_empty());
            assert!(all.iter().all(|&byte| byte == b'x'));
        });
    }
}
