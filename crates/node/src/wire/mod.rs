//! What two nodes say to each other about data, byte by byte.
//!
//! A connection carries frames in both directions; many leave in one write and arrive in one read:
//!
//! ```text
//! length 4 | checksum 4 | kind 1 | body
//! ```
//!
//! `length` counts kind and body; `checksum` is the low half of xxh3-64 over them, because TCP's own
//! sum is weak and a frame may hold somebody's only copy of a value. Bodies are protobuf, so fields
//! can be added: an old node skips what it does not know. A record travels in the one binary form it
//! also has on disk.
//!
//! Requests flow on the connection that the asking node dialled, replies come back on the same one.
//! Every request carries its asker's number, echoed in the reply, the topology version it was routed
//! by, and the time that is left for it.
//!
//! **Invariant**: whatever bytes arrive, decoding gives messages or a [`WireError`], never a panic,
//! and never allocates more than [`FRAME_BYTES_MAX`] for one frame.

mod sync;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mds_types::limits::FRAME_BYTES_MAX;
use prost::Message as _;
use xxhash_rust::xxh3::xxh3_64;

pub use sync::{
    Fetch, FetchReply, Hashes, HashesReply, Range, RangeReply, RootItem, RootReply, Roots,
    RootsReply, Row, Rows, RowsReply, Stream, StreamReply, Verdict,
};
pub(crate) use sync::{hash_bytes, hash_of};

/// Bytes before a frame's kind.
const FRAME_HEADER_BYTES: usize = 8;

/// Why a peer's bytes are not messages. The connection is of no more use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// A frame longer than the limit, or without room for its kind.
    #[error("frame of {0} bytes is out of bounds: is this a node of MyDataStore at all?")]
    Length(usize),
    /// The checksum does not match the bytes.
    #[error("frame checksum does not match: the connection is damaged")]
    Checksum,
    /// The body does not decode.
    #[error("frame of kind {0} does not decode")]
    Body(u8),
}

/// Why a replica writes this record: for its statistics, and for what it must refuse later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ::prost::Enumeration)]
#[repr(i32)]
pub enum Purpose {
    /// A client's write, now.
    Write = 0,
    /// A coordinator saw that this replica is behind.
    Repair = 1,
    /// A write that this replica missed, kept for it by a coordinator.
    Hint = 2,
}

/// How a replica answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ::prost::Enumeration)]
#[repr(i32)]
pub enum Status {
    /// Done: durable, or answered.
    Ok = 0,
    /// The replica has too much to do; nothing was done.
    Overloaded = 1,
    /// The node does not hold this partition, by its own topology; nothing was done.
    NotReplica = 2,
    /// The node is not serving (joining, refused, shutting down); nothing was done.
    NotServing = 3,
    /// The version lies too far in the future of the replica's clock; nothing was done.
    ClockSkew = 4,
    /// The replica's store failed. Whether the write was applied is not known.
    StorageFailed = 5,
    /// The request makes no sense to this replica; nothing was done.
    Malformed = 6,
    /// The record's epoch is closed here: no client's write of it is taken any more; nothing was done.
    EpochClosed = 7,
    /// The record's epoch is settled here, and that version is not part of it; nothing was done, and
    /// never will be.
    Settled = 8,
    /// The sender's ring is too old; nothing was done.
    StaleTopology = 9,
}

impl Status {
    /// Whether this answer proves that the request left no trace.
    pub fn is_definite_refusal(self) -> bool {
        !matches!(self, Status::Ok | Status::StorageFailed)
    }
}

/// Store this record.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Put {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Topology version it was routed by.
    #[prost(uint64, tag = "2")]
    pub topology: u64,
    /// Milliseconds left for it.
    #[prost(uint32, tag = "3")]
    pub timeout_ms: u32,
    /// A [`Purpose`].
    #[prost(enumeration = "Purpose", tag = "4")]
    pub purpose: i32,
    /// The record, in its binary form.
    #[prost(bytes = "bytes", tag = "5")]
    pub record: Bytes,
}

/// Answer to [`Put`]: the record, or something newer, is durable here.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct PutReply {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// A [`Status`].
    #[prost(enumeration = "Status", tag = "2")]
    pub status: i32,
}

/// What do you have for this key?
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Get {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Topology version it was routed by.
    #[prost(uint64, tag = "2")]
    pub topology: u64,
    /// Milliseconds left for it.
    #[prost(uint32, tag = "3")]
    pub timeout_ms: u32,
    /// The key.
    #[prost(bytes = "bytes", tag = "4")]
    pub key: Bytes,
}

/// Answer to [`Get`].
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct GetReply {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// A [`Status`].
    #[prost(enumeration = "Status", tag = "2")]
    pub status: i32,
    /// The record; absent if this replica has none. Tombstones are records.
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub record: Option<Bytes>,
    /// The watermark of the key's partition here: of the epochs up to it this replica lacks nothing, so
    /// what it does not show of them was deleted or superseded.
    #[prost(uint64, tag = "4")]
    pub settled: u64,
}

/// A page of a partition, or its count.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Scan {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Topology version it was routed by.
    #[prost(uint64, tag = "2")]
    pub topology: u64,
    /// Milliseconds left for it.
    #[prost(uint32, tag = "3")]
    pub timeout_ms: u32,
    /// The partition.
    #[prost(uint32, tag = "4")]
    pub partition: u32,
    /// Only keys after this one.
    #[prost(bytes = "bytes", optional, tag = "5")]
    pub after: Option<Bytes>,
    /// Records at most. Zero asks for the count of the whole partition instead.
    #[prost(uint32, tag = "6")]
    pub limit: u32,
}

/// Answer to [`Scan`].
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct ScanReply {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// A [`Status`].
    #[prost(enumeration = "Status", tag = "2")]
    pub status: i32,
    /// Records in key order, tombstones included.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub records: Vec<Bytes>,
    /// Whether keys may follow after the last one.
    #[prost(bool, tag = "4")]
    pub more: bool,
    /// Live records, if the count was asked for.
    #[prost(uint64, tag = "5")]
    pub count: u64,
    /// The epoch up to which the replica had settled the partition before it read the page.
    #[prost(uint64, tag = "6")]
    pub settled: u64,
}

/// Are you there? Answered by the core itself, without the store: it tells a slow disk from a dead
/// or stopped process.
#[derive(Clone, Copy, PartialEq, ::prost::Message)]
pub struct Ping {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
}

/// Answer to [`Ping`].
#[derive(Clone, Copy, PartialEq, ::prost::Message)]
pub struct Pong {
    /// The asker's number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
}

/// One message between two nodes.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "each variant is documented at its body")]
pub enum Message {
    Put(Put),
    PutReply(PutReply),
    Get(Get),
    GetReply(GetReply),
    Scan(Scan),
    ScanReply(ScanReply),
    Ping(Ping),
    Pong(Pong),
    Roots(Roots),
    RootsReply(RootsReply),
    Hashes(Hashes),
    HashesReply(HashesReply),
    Rows(Rows),
    RowsReply(RowsReply),
    Fetch(Fetch),
    FetchReply(FetchReply),
    Stream(Stream),
    StreamReply(StreamReply),
    Range(Range),
    RangeReply(RangeReply),
}

/// The kind of a frame that holds a [`Put`].
pub const KIND_PUT: u8 = 1;
const KIND_PUT_REPLY: u8 = 2;
/// The kind of a frame that holds a [`Get`].
pub const KIND_GET: u8 = 3;
const KIND_GET_REPLY: u8 = 4;
const KIND_SCAN: u8 = 5;
const KIND_SCAN_REPLY: u8 = 6;
const KIND_PING: u8 = 7;
const KIND_PONG: u8 = 8;
/// The kind of a frame that holds [`Roots`].
pub const KIND_ROOTS: u8 = 9;
/// The kind of a frame that holds a [`RootsReply`].
pub const KIND_ROOTS_REPLY: u8 = 10;
const KIND_HASHES: u8 = 11;
const KIND_HASHES_REPLY: u8 = 12;
const KIND_ROWS: u8 = 13;
const KIND_ROWS_REPLY: u8 = 14;
const KIND_FETCH: u8 = 15;
const KIND_FETCH_REPLY: u8 = 16;
const KIND_STREAM: u8 = 17;
const KIND_STREAM_REPLY: u8 = 18;
const KIND_RANGE: u8 = 19;
const KIND_RANGE_REPLY: u8 = 20;

/// Bytes of a message's frame.
pub fn encoded_len(message: &Message) -> usize {
    let body = match message {
        Message::Put(body) => body.encoded_len(),
        Message::PutReply(body) => body.encoded_len(),
        Message::Get(body) => body.encoded_len(),
        Message::GetReply(body) => body.encoded_len(),
        Message::Scan(body) => body.encoded_len(),
        Message::ScanReply(body) => body.encoded_len(),
        Message::Ping(body) => body.encoded_len(),
        Message::Pong(body) => body.encoded_len(),
        Message::Roots(body) => body.encoded_len(),
        Message::RootsReply(body) => body.encoded_len(),
        Message::Hashes(body) => body.encoded_len(),
        Message::HashesReply(body) => body.encoded_len(),
        Message::Rows(body) => body.encoded_len(),
        Message::RowsReply(body) => body.encoded_len(),
        Message::Fetch(body) => body.encoded_len(),
        Message::FetchReply(body) => body.encoded_len(),
        Message::Stream(body) => body.encoded_len(),
        Message::StreamReply(body) => body.encoded_len(),
        Message::Range(body) => body.encoded_len(),
        Message::RangeReply(body) => body.encoded_len(),
    };
    FRAME_HEADER_BYTES + 1 + body
}

/// Appends one message as a frame.
pub fn encode(message: &Message, out: &mut BytesMut) {
    let start = out.len();
    out.put_bytes(0, FRAME_HEADER_BYTES);
    // A `BytesMut` grows as needed, so that encoding into it cannot fail.
    macro_rules! body {
        ($kind:expr, $body:expr) => {{
            out.put_u8($kind);
            $body.encode_raw(out);
        }};
    }
    match message {
        Message::Put(body) => body!(KIND_PUT, body),
        Message::PutReply(body) => body!(KIND_PUT_REPLY, body),
        Message::Get(body) => body!(KIND_GET, body),
        Message::GetReply(body) => body!(KIND_GET_REPLY, body),
        Message::Scan(body) => body!(KIND_SCAN, body),
        Message::ScanReply(body) => body!(KIND_SCAN_REPLY, body),
        Message::Ping(body) => body!(KIND_PING, body),
        Message::Pong(body) => body!(KIND_PONG, body),
        Message::Roots(body) => body!(KIND_ROOTS, body),
        Message::RootsReply(body) => body!(KIND_ROOTS_REPLY, body),
        Message::Hashes(body) => body!(KIND_HASHES, body),
        Message::HashesReply(body) => body!(KIND_HASHES_REPLY, body),
        Message::Rows(body) => body!(KIND_ROWS, body),
        Message::RowsReply(body) => body!(KIND_ROWS_REPLY, body),
        Message::Fetch(body) => body!(KIND_FETCH, body),
        Message::FetchReply(body) => body!(KIND_FETCH_REPLY, body),
        Message::Stream(body) => body!(KIND_STREAM, body),
        Message::StreamReply(body) => body!(KIND_STREAM_REPLY, body),
        Message::Range(body) => body!(KIND_RANGE, body),
        Message::RangeReply(body) => body!(KIND_RANGE_REPLY, body),
    }
    let length = (out.len() - start - FRAME_HEADER_BYTES) as u32;
    let checksum = xxh3_64(&out[start + FRAME_HEADER_BYTES..]) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
}

/// Takes the next whole frame's payload off the front of `input`; `None` until all of it is there.
///
/// # Errors
/// [`WireError::Length`] and [`WireError::Checksum`]; the connection must then be closed.
pub fn next_frame(input: &mut BytesMut) -> Result<Option<Bytes>, WireError> {
    if input.len() < FRAME_HEADER_BYTES {
        return Ok(None);
    }
    let mut header = &input[..FRAME_HEADER_BYTES];
    let length = header.get_u32_le() as usize;
    let checksum = header.get_u32_le();
    if length == 0 || length > FRAME_BYTES_MAX {
        return Err(WireError::Length(length));
    }
    let frame_bytes = FRAME_HEADER_BYTES + length;
    if input.len() < frame_bytes {
        // Room for the rest of this frame: large values then arrive without repeated growth.
        input.reserve(frame_bytes - input.len());
        return Ok(None);
    }
    let mut frame = input.split_to(frame_bytes).freeze();
    frame.advance(FRAME_HEADER_BYTES);
    if xxh3_64(&frame) as u32 != checksum {
        return Err(WireError::Checksum);
    }
    Ok(Some(frame))
}

/// Appends a payload that is not a [`Message`] (the handshake's) as a frame.
pub fn encode_frame(payload: &[u8], out: &mut BytesMut) {
    out.put_u32_le(payload.len() as u32);
    out.put_u32_le(xxh3_64(payload) as u32);
    out.put_slice(payload);
}

/// Reads the message in a frame's payload. Bytes fields share the frame's memory. A message of a
/// kind that this build does not know is `None`: it comes from a newer node, which must not rely on
/// an answer.
///
/// # Errors
/// [`WireError::Body`] when the body is not protobuf of that kind.
pub fn decode(mut payload: Bytes) -> Result<Option<Message>, WireError> {
    if payload.is_empty() {
        return Err(WireError::Length(0));
    }
    let kind = payload.get_u8();
    let bad = |_| WireError::Body(kind);
    Ok(Some(match kind {
        KIND_PUT => Message::Put(Put::decode(payload).map_err(bad)?),
        KIND_PUT_REPLY => Message::PutReply(PutReply::decode(payload).map_err(bad)?),
        KIND_GET => Message::Get(Get::decode(payload).map_err(bad)?),
        KIND_GET_REPLY => Message::GetReply(GetReply::decode(payload).map_err(bad)?),
        KIND_SCAN => Message::Scan(Scan::decode(payload).map_err(bad)?),
        KIND_SCAN_REPLY => Message::ScanReply(ScanReply::decode(payload).map_err(bad)?),
        KIND_PING => Message::Ping(Ping::decode(payload).map_err(bad)?),
        KIND_PONG => Message::Pong(Pong::decode(payload).map_err(bad)?),
        KIND_ROOTS => Message::Roots(Roots::decode(payload).map_err(bad)?),
        KIND_ROOTS_REPLY => Message::RootsReply(RootsReply::decode(payload).map_err(bad)?),
        KIND_HASHES => Message::Hashes(Hashes::decode(payload).map_err(bad)?),
        KIND_HASHES_REPLY => Message::HashesReply(HashesReply::decode(payload).map_err(bad)?),
        KIND_ROWS => Message::Rows(Rows::decode(payload).map_err(bad)?),
        KIND_ROWS_REPLY => Message::RowsReply(RowsReply::decode(payload).map_err(bad)?),
        KIND_FETCH => Message::Fetch(Fetch::decode(payload).map_err(bad)?),
        KIND_FETCH_REPLY => Message::FetchReply(FetchReply::decode(payload).map_err(bad)?),
        KIND_STREAM => Message::Stream(Stream::decode(payload).map_err(bad)?),
        KIND_STREAM_REPLY => Message::StreamReply(StreamReply::decode(payload).map_err(bad)?),
        KIND_RANGE => Message::Range(Range::decode(payload).map_err(bad)?),
        KIND_RANGE_REPLY => Message::RangeReply(RangeReply::decode(payload).map_err(bad)?),
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_message() -> impl Strategy<Value = Message> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        prop_oneof![
            (any::<u64>(), any::<u64>(), any::<u32>(), 0i32..3, bytes()).prop_map(
                |(id, topology, timeout_ms, purpose, record)| Message::Put(Put {
                    id,
                    topology,
                    timeout_ms,
                    purpose,
                    record
                })
            ),
            (any::<u64>(), 0i32..7)
                .prop_map(|(id, status)| Message::PutReply(PutReply { id, status })),
            (any::<u64>(), any::<u64>(), any::<u32>(), bytes()).prop_map(
                |(id, topology, timeout_ms, key)| Message::Get(Get {
                    id,
                    topology,
                    timeout_ms,
                    key
                })
            ),
            (
                any::<u64>(),
                0i32..10,
                prop::option::of(bytes()),
                any::<u64>()
            )
                .prop_map(|(id, status, record, settled)| {
                    Message::GetReply(GetReply {
                        id,
                        status,
                        record,
                        settled,
                    })
                }),
            super::sync::tests::any_sync_message(),
            (
                any::<u64>(),
                prop::collection::vec(bytes(), 0..4),
                any::<bool>()
            )
                .prop_map(|(id, records, more)| Message::ScanReply(ScanReply {
                    id,
                    status: 0,
                    records,
                    more,
                    count: 7,
                    settled: id / 2,
                })),
            any::<u64>().prop_map(|id| Message::Ping(Ping { id })),
        ]
    }

    fn decode_all(input: &mut BytesMut) -> Result<Vec<Message>, WireError> {
        let mut messages = Vec::new();
        while let Some(frame) = next_frame(input)? {
            messages.extend(decode(frame)?);
        }
        Ok(messages)
    }

    proptest! {
        /// However a stream is cut into reads, the same messages come out.
        #[test]
        fn frames_survive_any_cut(
            messages in prop::collection::vec(any_message(), 1..8),
            cut in 1usize..64,
        ) {
            let mut stream = BytesMut::new();
            for message in &messages {
                encode(message, &mut stream);
            }
            let mut input = BytesMut::new();
            let mut decoded = Vec::new();
            for chunk in stream.chunks(cut) {
                input.extend_from_slice(chunk);
                decoded.extend(decode_all(&mut input).unwrap());
            }
            prop_assert_eq!(decoded, messages);
            prop_assert!(input.is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut input = BytesMut::from(&bytes[..]);
            let _ = decode_all(&mut input);
            let _ = decode(Bytes::from(bytes));
        }

        /// A flipped bit anywhere in a frame is noticed: nothing wrong is ever taken for a message.
        #[test]
        fn a_flipped_bit_is_noticed(message in any_message(), at in any::<prop::sample::Index>()) {
            let mut stream = BytesMut::new();
            encode(&message, &mut stream);
            let bit = at.index(stream.len() * 8);
            stream[bit / 8] ^= 1 << (bit % 8);
            let decoded = decode_all(&mut stream);
            // A larger length only waits for more bytes; everything else is an error.
            prop_assert!(decoded.is_err() || decoded == Ok(Vec::new()));
        }
    }

    #[test]
    fn a_message_of_a_newer_node_is_skipped() {
        let mut stream = BytesMut::new();
        encode_frame(&[200, 1, 2, 3], &mut stream);
        encode(&Message::Pong(Pong { id: 9 }), &mut stream);
        assert_eq!(
            decode_all(&mut stream).unwrap(),
            [Message::Pong(Pong { id: 9 })]
        );
    }
}
