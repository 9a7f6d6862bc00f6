//! The bytes of a run file; see the format in [`super`].

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mds_types::limits::KEY_BYTES_MAX;
use mds_types::{Digest, Epoch, Hlc, Kind, NodeId, PartitionId, Version};

use crate::disk::DiskFile;
use crate::error::StoreError;
use crate::frame::{
    FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FileKind, Frame, FrameEncoder, frame_at,
};
use crate::row::{IndexRow, Place, RowRange};

/// A ROWS frame is closed when it reaches this many bytes. It then exceeds them by less than a row.
const BLOCK_BYTES: usize = 64 * 1024;

/// Frames are handed to the disk in pieces of about this many bytes.
const WRITE_BYTES: usize = 1024 * 1024;

const META: u8 = 1;
const ROWS: u8 = 2;
const FOOTER: u8 = 3;
const TRAILER: u8 = 4;

const META_BYTES: usize = 8 + 2 + 2 + 1;
const ROW_HEADER_BYTES: usize = 2 + 2 + 1 + 8 + 8 + 16 + 2;
const BLOCK_ENTRY_BYTES: usize = 2 + 2 + 8 + 4;
const TRAILER_FRAME_BYTES: usize = FRAME_HEADER_BYTES + 8;
const HEAD_BYTES: usize = FILE_HEADER_BYTES + FRAME_HEADER_BYTES + META_BYTES;

/// What a run file says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Meta {
    pub(super) epoch: Epoch,
    pub(super) partition_count: u16,
    pub(super) bucket_count: u16,
    pub(super) commits: bool,
}

/// Where a ROWS frame begins, and with which place.
#[derive(Clone, Copy, Debug)]
struct Block {
    first: Place,
    offset: u64,
    frame_len: u32,
}

/// Writes a run file's content, rows sorted, and returns its length in bytes.
pub(super) fn write(
    file: &mut dyn DiskFile,
    segment: u64,
    seed: u64,
    meta: &Meta,
    rows: &[IndexRow],
) -> io::Result<u64> {
    // The same segment gives runs for several epochs: the seed keeps their salts apart.
    let seed = seed ^ meta.epoch.0.rotate_left(32);
    let header = FileHeader::new(FileKind::EpochRun, segment, seed);
    file.append(&header.encode())?;
    let mut offset = FILE_HEADER_BYTES as u64;
    let mut encoder = FrameEncoder::new(header.salt);
    let mut blocks = Vec::new();
    push(&mut encoder, META, |out| {
        out.put_u64_le(meta.epoch.0);
        out.put_u16_le(meta.partition_count);
        out.put_u16_le(meta.bucket_count);
        out.put_u8(u8::from(meta.commits));
    })?;
    let mut rest = rows;
    while let Some(first) = rest.first() {
        let start = encoder.bytes().len();
        let mut count = 0;
        push(&mut encoder, ROWS, |out| {
            let begin = out.len();
            for row in rest {
                if out.len() - begin >= BLOCK_BYTES {
                    break;
                }
                put_row(row, out);
                count += 1;
            }
        })?;
        rest = &rest[count..];
        blocks.push(Block {
            first: first.place(),
            offset: offset + start as u64,
            frame_len: (encoder.bytes().len() - start) as u32,
        });
        if encoder.bytes().len() >= WRITE_BYTES {
            offset += hand_over(file, &mut encoder)?;
        }
    }
    let footer = offset + encoder.bytes().len() as u64;
    push(&mut encoder, FOOTER, |out| {
        out.put_u64_le(rows.len() as u64);
        for block in &blocks {
            out.put_u16_le(block.first.0.0);
            out.put_u16_le(block.first.1);
            out.put_u64_le(block.offset);
            out.put_u32_le(block.frame_len);
        }
    })?;
    push(&mut encoder, TRAILER, |out| out.put_u64_le(footer))?;
    Ok(offset + hand_over(file, &mut encoder)?)
}

fn push(encoder: &mut FrameEncoder, kind: u8, fill: impl FnOnce(&mut BytesMut)) -> io::Result<()> {
    encoder.push_with(kind, fill).map_err(io::Error::other)?;
    Ok(())
}

fn hand_over(file: &mut dyn DiskFile, encoder: &mut FrameEncoder) -> io::Result<u64> {
    file.append(encoder.bytes())?;
    let count = encoder.bytes().len() as u64;
    encoder.clear();
    Ok(count)
}

fn put_row(row: &IndexRow, out: &mut BytesMut) {
    out.put_u16_le(row.partition.0);
    out.put_u16_le(row.bucket);
    out.put_u8(row.kind as u8);
    out.put_u64_le(row.version.hlc.0);
    out.put_u64_le(row.version.node.0);
    out.put_u128_le(row.digest.0);
    // KEY_BYTES_MAX is below 64 Ki, and the store checks it before the first byte.
    out.put_u16_le(row.key.len() as u16);
    out.put_slice(&row.key);
}

/// Takes a row off the front, or `None` for bytes that no [`put_row`] wrote.
fn take_row(bytes: &mut Bytes) -> Option<IndexRow> {
    if bytes.len() < ROW_HEADER_BYTES {
        return None;
    }
    let partition = PartitionId(bytes.get_u16_le());
    let bucket = bytes.get_u16_le();
    let kind = Kind::try_from(bytes.get_u8()).ok()?;
    let version = Version {
        hlc: Hlc(bytes.get_u64_le()),
        node: NodeId(bytes.get_u64_le()),
    };
    let digest = Digest(bytes.get_u128_le());
    let key_len = usize::from(bytes.get_u16_le());
    if key_len == 0 || key_len > KEY_BYTES_MAX || key_len > bytes.len() {
        return None;
    }
    Some(IndexRow {
        partition,
        bucket,
        key: bytes.split_to(key_len),
        version,
        digest,
        kind,
    })
}

/// An open run file.
pub(super) struct RunReader {
    path: String,
    file: Box<dyn DiskFile>,
    len: u64,
    salt: u64,
    meta: Meta,
}

impl RunReader {
    /// Opens a run file and reads how it introduces itself.
    pub(super) fn open(
        path: String,
        file: Box<dyn DiskFile>,
        segment: u64,
    ) -> Result<RunReader, StoreError> {
        let len = file
            .len()
            .map_err(|error| StoreError::io(format!("read {path}"), error))?;
        let head = read_at(&*file, &path, 0, HEAD_BYTES)?;
        let header = FileHeader::decode(&head, FileKind::EpochRun)
            .map_err(|error| StoreError::header(&path, error))?;
        let meta = frame_at(&head, FILE_HEADER_BYTES, header.salt).and_then(decode_meta);
        match meta {
            Some(meta) if header.id == segment => Ok(RunReader {
                path,
                file,
                len,
                salt: header.salt,
                meta,
            }),
            Some(_) => {
                let what = format!("the file says that it is of segment {}", header.id);
                Err(StoreError::corrupt(path, 8, what))
            }
            None => {
                let what = "its first frame is damaged";
                Err(StoreError::corrupt(path, FILE_HEADER_BYTES, what))
            }
        }
    }

    pub(super) fn meta(&self) -> &Meta {
        &self.meta
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Appends the rows of a range that are `valid` to `rows`, in order.
    pub(super) fn read(
        &self,
        range: RowRange,
        valid: impl Fn(&IndexRow) -> bool,
        rows: &mut Vec<IndexRow>,
    ) -> Result<(), StoreError> {
        let (total, blocks) = self.footer()?;
        let (first, last) = range.bounds();
        // A block may begin before the range and reach into it.
        let from = blocks.partition_point(|block| block.first < first);
        let to = blocks.partition_point(|block| block.first <= last);
        let mut count = 0;
        for block in &blocks[from.saturating_sub(1)..to] {
            let bytes = self.frame(block.offset, block.frame_len as usize, ROWS)?;
            let mut bytes = Bytes::from(bytes).slice(FRAME_HEADER_BYTES..);
            while !bytes.is_empty() {
                let row = take_row(&mut bytes)
                    .ok_or_else(|| self.damaged(block.offset, "a row is malformed"))?;
                count += 1;
                if range.contains(&row) && valid(&row) {
                    rows.push(row);
                }
            }
        }
        if range == RowRange::All && count != total {
            let what = format!("{count} rows, but its footer says {total}");
            return Err(self.damaged(self.len, &what));
        }
        Ok(())
    }

    fn footer(&self) -> Result<(u64, Vec<Block>), StoreError> {
        let trailer_at = self
            .len
            .checked_sub(TRAILER_FRAME_BYTES as u64)
            .ok_or_else(|| self.damaged(self.len, "it ends early"))?;
        let trailer = self.frame(trailer_at, TRAILER_FRAME_BYTES, TRAILER)?;
        let footer_at = (&trailer[FRAME_HEADER_BYTES..]).get_u64_le();
        let footer_len = trailer_at
            .checked_sub(footer_at)
            .ok_or_else(|| self.damaged(trailer_at, "the footer lies behind its end"))?;
        let footer = self.frame(footer_at, footer_len as usize, FOOTER)?;
        let mut footer = &footer[FRAME_HEADER_BYTES..];
        if footer.len() < 8 || (footer.len() - 8) % BLOCK_ENTRY_BYTES != 0 {
            return Err(self.damaged(footer_at, "the footer is malformed"));
        }
        let rows = footer.get_u64_le();
        let mut blocks = Vec::with_capacity(footer.len() / BLOCK_ENTRY_BYTES);
        while footer.has_remaining() {
            let partition = PartitionId(footer.get_u16_le());
            blocks.push(Block {
                first: (partition, footer.get_u16_le()),
                offset: footer.get_u64_le(),
                frame_len: footer.get_u32_le(),
            });
        }
        Ok((rows, blocks))
    }

    /// Reads one frame that fills exactly these bytes.
    fn frame(&self, offset: u64, len: usize, kind: u8) -> Result<Vec<u8>, StoreError> {
        if offset
            .checked_add(len as u64)
            .is_none_or(|end| end > self.len)
        {
            return Err(self.damaged(offset, "a frame reaches beyond its end"));
        }
        let bytes = read_at(&*self.file, &self.path, offset, len)?;
        match frame_at(&bytes, 0, self.salt) {
            Some(frame) if frame.kind == kind && frame.end() == len => Ok(bytes),
            _ => Err(self.damaged(offset, "a frame is damaged")),
        }
    }

    fn damaged(&self, offset: u64, what: &str) -> StoreError {
        StoreError::corrupt(&self.path, offset as usize, what)
    }
}

fn decode_meta(frame: Frame<'_>) -> Option<Meta> {
    if frame.kind != META || frame.payload.len() != META_BYTES {
        return None;
    }
    let mut payload = frame.payload;
    Some(Meta {
        epoch: Epoch(payload.get_u64_le()),
        partition_count: payload.get_u16_le(),
        bucket_count: payload.get_u16_le(),
        commits: payload.get_u8() != 0,
    })
}

/// Reads `len` bytes, or fewer at the end of the file.
fn read_at(
    file: &dyn DiskFile,
    path: &str,
    offset: u64,
    len: usize,
) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![0; len];
    let count = file
        .read_at(offset, &mut bytes)
        .map_err(|error| StoreError::io(format!("read {path}"), error))?;
    bytes.truncate(count);
    Ok(bytes)
}
