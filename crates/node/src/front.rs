//! What a front-end on client connections has to offer, so that the shell can drive it in the core's
//! own turns.
//!
//! The shell reads bytes and hands them over; the front-end parses all commands in them, submits
//! requests, and later puts the answers into one output buffer per connection. Neither knows the
//! other's business: the shell no protocol, the front-end no sockets.

use bytes::BytesMut;

use crate::api::{Now, Outcome, RequestError, Submit, Tag};

/// A protocol for clients.
pub trait Frontend {
    /// A client has connected; `peer` is its address, for people.
    fn open(&mut self, conn: u64, peer: String);

    /// Bytes from a client: takes whole commands off the front of `input`.
    fn on_bytes(&mut self, now: Now, conn: u64, input: &mut BytesMut, core: &mut dyn Submit);

    /// An answer to one of this front-end's requests.
    fn on_done(
        &mut self,
        now: Now,
        tag: Tag,
        result: Result<Outcome, RequestError>,
        core: &mut dyn Submit,
    );

    /// Connections that have got output since the last call.
    fn take_dirty(&mut self) -> Vec<u64>;

    /// Output for a client, in order. The shell owns what it took.
    fn take_output(&mut self, conn: u64) -> Option<BytesMut>;

    /// Says how many bytes of a connection's output its client has not taken yet.
    fn set_backlog(&mut self, conn: u64, bytes: usize);

    /// Whether no more bytes of this client should be read now: it has too much in flight, or takes too
    /// little of its output. Once it is over, the shell says so by [`Frontend::on_bytes`], if need be
    /// without bytes: what was sent before may hold further commands.
    fn is_paused(&self, conn: u64) -> bool;

    /// Whether the connection is to be closed once its output is written.
    fn wants_close(&self, conn: u64) -> bool;

    /// Whether the connection is to be closed now, its output unwritten: its client does not read.
    fn must_close_now(&self, conn: u64) -> bool;

    /// The connection is gone.
    fn close(&mut self, conn: u64);
}
