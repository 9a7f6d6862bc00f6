//! Frames: the one checksummed append format of every log and run file.
//!
//! A file is a header and then frames, little-endian:
//!
//! ```text
//! file header   magic "MDSF" 4 | format 2 | file kind 1 | zero 1 | id 8 | salt 8 | checksum 4
//! frame         payload length 4 | checksum 4 | guard 2 | frame kind 1 | payload
//! ```
//!
//! The checksum is the low half of xxh3-64 over frame kind and payload (their length is part of the
//! hash), seeded with the file's **salt**: bytes of another file, of an earlier life of the same
//! disk block, or planted by a client inside a value, do not pass for a frame. The guard is a cheap
//! check of length and kind, so that searching a damaged file for its next frame takes one pass.
//! Frame kind 0 does not exist: zeroes are never a frame.
//!
//! **What a bad frame means** ([`End`]). Appends reach the disk in order, so a crash leaves whole
//! frames and at most one cut-off end: a bad frame with *no* valid one behind it is a **torn**
//! tail, and legal where something was being written. A bad frame with a valid one behind it is
//! damage to what had been written before: **corrupt**, never to be skipped. (The rule of most
//! write-ahead logs; see Pillai et al., *All File Systems Are Not Created Equal*, OSDI 2014, for
//! why guessing more is unwise.)
//!
//! What it does not do: tell rot in the very last frame from a torn tail. No log can.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes of a file header.
pub const FILE_HEADER_BYTES: usize = 28;

/// Bytes of a frame before its payload.
pub const FRAME_HEADER_BYTES: usize = 11;

/// Bytes of one payload; longer ones are refused when written and are damage when read.
pub const FRAME_PAYLOAD_BYTES_MAX: usize = 32 * 1024 * 1024;

const MAGIC: [u8; 4] = *b"MDSF";
const FORMAT_1: u16 = 1;
/// Frame kind and payload are hashed together; the kind is the last byte of the frame header.
const KIND_AT: usize = FRAME_HEADER_BYTES - 1;

/// What a file is: one byte of its header. The one list of framed files in a data directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FileKind {
    /// A segment of the data log; the id is the segment's number.
    DataLog = 1,
    /// A run of epoch index rows; the id is the segment's number that it was cut from.
    EpochRun = 2,
    /// Hints for one absent node.
    HintLog = 3,
    /// Raft's log.
    RaftLog = 4,
}

impl FileKind {
    fn from_byte(byte: u8) -> Option<FileKind> {
        match byte {
            1 => Some(FileKind::DataLog),
            2 => Some(FileKind::EpochRun),
            3 => Some(FileKind::HintLog),
            4 => Some(FileKind::RaftLog),
            _ => None,
        }
    }
}

/// How a file introduces itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileHeader {
    /// What the file is.
    pub kind: FileKind,
    /// Its number among files of its kind.
    pub id: u64,
    /// Seeds the checksums of its frames.
    pub salt: u64,
}

/// Why the start of a file is not the header that was expected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// Shorter than a header.
    #[error("the file ends inside its header")]
    Truncated,
    /// Not a file of ours, or damaged.
    #[error("the file header is damaged")]
    Damaged,
    /// A later format.
    #[error("file format {0} is unknown: written by a newer version?")]
    UnknownFormat(u16),
    /// Another kind of file than the name says.
    #[error("the file is of another kind than its name says")]
    WrongKind,
}

/// A payload beyond [`FRAME_PAYLOAD_BYTES_MAX`]; nothing was encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a frame of {0} bytes is longer than {FRAME_PAYLOAD_BYTES_MAX}")]
pub struct FrameTooLong(pub usize);

impl FileHeader {
    /// A header whose salt follows from `seed` (a secret of the data directory, such as its
    /// incarnation), the kind and the id, so that no two files share one.
    pub fn new(kind: FileKind, id: u64, seed: u64) -> FileHeader {
        let mut bytes = [0u8; 9];
        bytes[0] = kind as u8;
        bytes[1..].copy_from_slice(&id.to_le_bytes());
        FileHeader {
            kind,
            id,
            salt: xxh3_64_with_seed(&bytes, seed),
        }
    }

    /// The bytes that a file begins with.
    pub fn encode(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut bytes = [0u8; FILE_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&FORMAT_1.to_le_bytes());
        bytes[6] = self.kind as u8;
        bytes[8..16].copy_from_slice(&self.id.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.salt.to_le_bytes());
        let checksum = xxh3_64(&bytes[..24]) as u32;
        bytes[24..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the header of a file that should be of `kind`.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub fn decode(bytes: &[u8], kind: FileKind) -> Result<FileHeader, HeaderError> {
        if bytes.len() < FILE_HEADER_BYTES {
            return Err(HeaderError::Truncated);
        }
        if bytes[0..4] != MAGIC || u32_at(bytes, 24) != xxh3_64(&bytes[..24]) as u32 {
            return Err(HeaderError::Damaged);
        }
        let format = u16::from_le_bytes([bytes[4], bytes[5]]);
        if format != FORMAT_1 {
            return Err(HeaderError::UnknownFormat(format));
        }
        if FileKind::from_byte(bytes[6]) != Some(kind) {
            return Err(HeaderError::WrongKind);
        }
        Ok(FileHeader {
            kind,
            id: u64_at(bytes, 8),
            salt: u64_at(bytes, 16),
        })
    }
}

/// Encodes frames, one after another, into one buffer that is then appended in one write.
#[derive(Debug)]
pub struct FrameEncoder {
    salt: u64,
    buffer: BytesMut,
}

impl FrameEncoder {
    /// An empty buffer for frames of the file with this salt.
    pub fn new(salt: u64) -> FrameEncoder {
        FrameEncoder::with_capacity(salt, 0)
    }

    /// The same, with room for `capacity` bytes, frame headers included.
    pub fn with_capacity(salt: u64, capacity: usize) -> FrameEncoder {
        FrameEncoder {
            salt,
            buffer: BytesMut::with_capacity(capacity),
        }
    }

    /// Adds a frame; `kind` is 1 to 255.
    ///
    /// # Errors
    /// If the payload is too long.
    pub fn push(&mut self, kind: u8, payload: &[u8]) -> Result<Range<usize>, FrameTooLong> {
        self.push_with(kind, |buffer| buffer.put_slice(payload))
    }

    /// Adds a frame whose payload `fill` appends, and says where in the buffer the payload lies.
    ///
    /// # Errors
    /// If the payload is too long; the buffer is then as it was.
    pub fn push_with(
        &mut self,
        kind: u8,
        fill: impl FnOnce(&mut BytesMut),
    ) -> Result<Range<usize>, FrameTooLong> {
        debug_assert_ne!(kind, 0, "frame kind 0 does not exist");
        let start = self.buffer.len();
        self.buffer.put_slice(&[0; KIND_AT]);
        self.buffer.put_u8(kind);
        fill(&mut self.buffer);
        let length = self.buffer.len() - start - FRAME_HEADER_BYTES;
        if length > FRAME_PAYLOAD_BYTES_MAX {
            self.buffer.truncate(start);
            return Err(FrameTooLong(length));
        }
        let length = length as u32;
        let checksum = xxh3_64_with_seed(&self.buffer[start + KIND_AT..], self.salt) as u32;
        let guard = guard(self.salt, length, kind);
        let header = &mut self.buffer[start..start + KIND_AT];
        header[0..4].copy_from_slice(&length.to_le_bytes());
        header[4..8].copy_from_slice(&checksum.to_le_bytes());
        header[8..10].copy_from_slice(&guard.to_le_bytes());
        Ok(start + FRAME_HEADER_BYTES..self.buffer.len())
    }

    /// The frames so far.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    /// Forgets the frames so far; the memory is kept.
    pub fn clear(&mut self) {
        self.buffer.clear();
    }

    /// The frames, as bytes that can be shared and sliced.
    pub fn finish(self) -> Bytes {
        self.buffer.freeze()
    }
}

/// One frame of a scanned file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    /// Where in the scanned bytes the frame begins.
    pub offset: usize,
    /// What the payload is, to the owner of the file. Never 0.
    pub kind: u8,
    /// The checked payload.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Where in the scanned bytes the payload lies.
    pub fn payload_range(&self) -> Range<usize> {
        let start = self.offset + FRAME_HEADER_BYTES;
        start..start + self.payload.len()
    }

    /// Where in the scanned bytes the next frame begins.
    pub fn end(&self) -> usize {
        self.payload_range().end
    }
}

/// How a file ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// With its last frame.
    Clean,
    /// With something that is not a frame, at `at`; nothing valid lies behind it.
    Torn {
        /// Offset of the first byte that belongs to no frame: where to cut.
        at: usize,
    },
    /// The frame at `at` is bad, and valid ones lie behind it: written data was damaged.
    Corrupt {
        /// Offset of the bad frame.
        at: usize,
    },
}

/// The frames of `bytes` from offset `from` on (behind the file header, usually), up to the first
/// bad one, and what that one means.
pub fn scan(bytes: &[u8], from: usize, salt: u64) -> (Vec<Frame<'_>>, End) {
    let mut frames = Vec::new();
    let mut at = from;
    while at < bytes.len() {
        match frame_at(bytes, at, salt) {
            Some(frame) => {
                at = frame.end();
                frames.push(frame);
            }
            None => {
                let valid_behind =
                    (at + 1..bytes.len()).any(|later| frame_at(bytes, later, salt).is_some());
                let end = if valid_behind {
                    End::Corrupt { at }
                } else {
                    End::Torn { at }
                };
                return (frames, end);
            }
        }
    }
    (frames, End::Clean)
}

/// The frame that begins at `offset`, if a valid one does.
pub fn frame_at(bytes: &[u8], offset: usize, salt: u64) -> Option<Frame<'_>> {
    let frame = bytes.get(offset..)?;
    if frame.len() < FRAME_HEADER_BYTES {
        return None;
    }
    let kind = frame[KIND_AT];
    let length = u32_at(frame, 0);
    let guard_found = u16::from_le_bytes([frame[8], frame[9]]);
    if kind == 0 || guard_found != guard(salt, length, kind) {
        return None;
    }
    let length = length as usize;
    if length > FRAME_PAYLOAD_BYTES_MAX || length > frame.len() - FRAME_HEADER_BYTES {
        return None;
    }
    let hashed = &frame[KIND_AT..FRAME_HEADER_BYTES + length];
    if u32_at(frame, 4) != xxh3_64_with_seed(hashed, salt) as u32 {
        return None;
    }
    Some(Frame {
        offset,
        kind,
        payload: &hashed[1..],
    })
}

/// 16 bits that depend on length, kind and salt.
fn guard(salt: u64, length: u32, kind: u8) -> u16 {
    let mixed = salt ^ (u64::from(length) << 8 | u64::from(kind));
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 48) as u16
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SALT: u64 = 0x1234_5678_9abc_def0;

    fn encode(frames: &[(u8, Vec<u8>)], salt: u64) -> Vec<u8> {
        let mut encoder = FrameEncoder::new(salt);
        for (kind, payload) in frames {
            encoder.push(*kind, payload).unwrap();
        }
        encoder.bytes().to_vec()
    }

    fn decoded(bytes: &[u8], salt: u64) -> (Vec<(u8, Vec<u8>)>, End) {
        let (frames, end) = scan(bytes, 0, salt);
        let owned = frames
            .iter()
            .map(|frame| {
                assert_eq!(&bytes[frame.payload_range()], frame.payload);
                (frame.kind, frame.payload.to_vec())
            })
            .collect();
        (owned, end)
    }

    fn any_frames() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
        prop::collection::vec((1u8..=255, prop::collection::vec(any::<u8>(), 0..40)), 0..6)
    }

    /// Offset of each frame, and of the end.
    fn boundaries(frames: &[(u8, Vec<u8>)]) -> Vec<usize> {
        let mut at = 0;
        let mut all = vec![0];
        for (_, payload) in frames {
            at += FRAME_HEADER_BYTES + payload.len();
            all.push(at);
        }
        all
    }

    proptest! {
        #[test]
        fn frames_round_trip(frames in any_frames()) {
            let bytes = encode(&frames, SALT);
            prop_assert_eq!(decoded(&bytes, SALT), (frames, End::Clean));
        }

        /// Cut anywhere: the whole frames before the cut, and a torn tail unless cut between two.
        #[test]
        fn a_cut_file_keeps_its_whole_frames(frames in any_frames()) {
            let bytes = encode(&frames, SALT);
            let boundaries = boundaries(&frames);
            for cut in 0..bytes.len() {
                let whole = boundaries.iter().filter(|&&at| at <= cut).count() - 1;
                let end = if boundaries[whole] == cut {
                    End::Clean
                } else {
                    End::Torn { at: boundaries[whole] }
                };
                prop_assert_eq!(decoded(&bytes[..cut], SALT), (frames[..whole].to_vec(), end));
            }
        }

        /// One flipped bit anywhere is noticed, and named: torn in the last frame, else corrupt.
        #[test]
        fn a_flipped_bit_is_never_missed(frames in any_frames(), bit in 0u8..8) {
            let bytes = encode(&frames, SALT);
            let boundaries = boundaries(&frames);
            for at in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                let whole = boundaries.iter().filter(|&&start| start <= at).count() - 1;
                let start = boundaries[whole];
                let end = if whole + 1 == frames.len() {
                    End::Torn { at: start }
                } else {
                    End::Corrupt { at: start }
                };
                prop_assert_eq!(decoded(&damaged, SALT), (frames[..whole].to_vec(), end));
            }
        }

        /// Garbage behind the frames, or nothing but garbage, is a torn tail, not a panic.
        #[test]
        fn garbage_is_no_frame(
            frames in any_frames(),
            garbage in prop::collection::vec(any::<u8>(), 1..200),
        ) {
            let mut bytes = encode(&frames, SALT);
            let at = bytes.len();
            bytes.extend_from_slice(&garbage);
            prop_assert_eq!(decoded(&bytes, SALT), (frames, End::Torn { at }));
        }

        /// Frames of another file never pass, so stale bytes behind the end are a torn tail.
        #[test]
        fn frames_of_another_file_do_not_pass(ours in any_frames(), theirs in any_frames()) {
            prop_assume!(!theirs.is_empty());
            let mut bytes = encode(&ours, SALT);
            let at = bytes.len();
            bytes.extend_from_slice(&encode(&theirs, SALT + 1));
            prop_assert_eq!(decoded(&bytes, SALT), (ours, End::Torn { at }));
        }

        #[test]
        fn header_round_trips_and_notices_every_damage(id: u64, seed: u64, bit in 0u8..8) {
            let header = FileHeader::new(FileKind::HintLog, id, seed);
            let bytes = header.encode();
            prop_assert_eq!(FileHeader::decode(&bytes, FileKind::HintLog), Ok(header));
            prop_assert_eq!(
                FileHeader::decode(&bytes, FileKind::RaftLog),
                Err(HeaderError::WrongKind)
            );
            for at in 0..bytes.len() {
                let mut damaged = bytes;
                damaged[at] ^= 1 << bit;
                prop_assert!(FileHeader::decode(&damaged, FileKind::HintLog).is_err());
                prop_assert_eq!(
                    FileHeader::decode(&bytes[..at], FileKind::HintLog),
                    Err(HeaderError::Truncated)
                );
            }
        }
    }

    #[test]
    fn zeroes_are_a_torn_tail() {
        let mut bytes = encode(&[(1, b"one".to_vec())], 0);
        let at = bytes.len();
        bytes.extend_from_slice(&[0; 100]);
        assert_eq!(scan(&bytes, 0, 0).1, End::Torn { at });
    }

    #[test]
    fn a_payload_beyond_the_limit_is_refused_and_leaves_no_trace() {
        let mut encoder = FrameEncoder::new(SALT);
        encoder.push(1, b"kept").unwrap();
        let before = encoder.bytes().to_vec();
        let too_long = vec![0; FRAME_PAYLOAD_BYTES_MAX + 1];
        assert_eq!(
            encoder.push(1, &too_long),
            Err(FrameTooLong(FRAME_PAYLOAD_BYTES_MAX + 1))
        );
        assert_eq!(encoder.bytes(), before);
    }

    #[test]
    fn salts_differ_by_kind_id_and_seed() {
        let salt = |kind, id, seed| FileHeader::new(kind, id, seed).salt;
        let base = salt(FileKind::DataLog, 1, 1);
        assert_ne!(base, salt(FileKind::EpochRun, 1, 1));
        assert_ne!(base, salt(FileKind::DataLog, 2, 1));
        assert_ne!(base, salt(FileKind::DataLog, 1, 2));
    }
}
