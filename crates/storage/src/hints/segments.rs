//! The files behind the hints: appended to at the end, read and removed at the front.

use std::io;

use bytes::{Buf, BufMut, Bytes};
use mds_types::{NodeId, Record};

use super::{
    Active, HINT_FRAME, Hint, HintError, HintStore, HintToken, SEGMENT_BYTES, SEGMENT_SUFFIX,
    Segment, Target, parse_hex, segment_path, target_dir,
};
use crate::frame::{
    End, FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FileKind, FrameEncoder, HeaderError,
    frame_at, scan,
};

impl HintStore {
    /// Reads what an earlier process left for a target.
    pub(super) fn open_target(&mut self, node: NodeId) {
        let names = match self.disk.list(&target_dir(node)) {
            Ok(names) => names,
            Err(error) => {
                self.counters.damaged_segments += 1;
                tracing::warn!(%node, %error, "hints cannot be listed; left out");
                return;
            }
        };
        let mut target = Target::new(1);
        for name in names {
            let Some(id) = name.strip_suffix(SEGMENT_SUFFIX).and_then(parse_hex) else {
                tracing::warn!(%node, name, "not a segment of hints; ignored");
                continue;
            };
            // Also above what is left out below, whose file may still be there.
            target.next_id = target.next_id.max(id.saturating_add(1));
            match self.open_segment(node, id) {
                Ok(Some(segment)) => target.segments.push_back(segment),
                Ok(None) => self.remove_file(node, id),
                Err(why) => {
                    self.counters.damaged_segments += 1;
                    tracing::warn!(%node, segment = name, why, "hints left out");
                }
            }
        }
        self.targets.insert(node, target);
    }

    /// What a segment file holds; `None` if nothing that could ever be delivered.
    fn open_segment(&mut self, node: NodeId, id: u64) -> Result<Option<Segment>, String> {
        let path = segment_path(node, id);
        let bytes = self.disk.read(&path).map_err(|error| error.to_string())?;
        let expected = FileHeader::new(FileKind::HintLog, id, node.0);
        match FileHeader::decode(&bytes, FileKind::HintLog) {
            Ok(header) if header == expected => {}
            // Written by a newer version, which may come back for it.
            Err(error @ HeaderError::UnknownFormat(_)) => return Err(error.to_string()),
            Ok(_) | Err(_) => {
                // A crash right after its creation leaves the file empty or its header torn.
                if bytes.len() >= FILE_HEADER_BYTES {
                    self.counters.damaged_segments += 1;
                    tracing::warn!(path, "the header is damaged; hints lost");
                }
                return Ok(None);
            }
        }
        let (frames, end) = scan(&bytes, FILE_HEADER_BYTES, expected.salt);
        if let End::Corrupt { at } = end {
            self.counters.damaged_segments += 1;
            tracing::warn!(path, at, "damaged; the hints behind it are lost");
        }
        let created = |payload: &[u8]| payload.get(..8).map(|mut bytes| bytes.get_u64_le());
        let mut times = frames.iter().filter_map(|frame| created(frame.payload));
        let (Some(last), Some(first)) = (frames.last(), times.next()) else {
            return Ok(None);
        };
        Ok(Some(Segment {
            id,
            salt: expected.salt,
            bytes: last.end() as u64,
            count: frames.len() as u64,
            oldest_ms: times.clone().fold(first, u64::min),
            newest_ms: times.fold(first, u64::max),
        }))
    }

    /// Appends as many of `records` as one segment and the limit take, in one write, and says how
    /// many. 0: there is no room for the first of them.
    pub(super) fn append_to_segment(
        &mut self,
        node: NodeId,
        records: &[Record],
        now_ms: u64,
    ) -> Result<usize, HintError> {
        let room = self.room(node);
        if records
            .first()
            .is_none_or(|record| frame_bytes(record) > room)
        {
            return Ok(0);
        }
        if self.writable(node).is_none() {
            self.begin_segment(node)
                .map_err(|source| failed(node, source))?;
        }
        let Some((active, segment)) = self.writable(node) else {
            return Ok(0);
        };
        let mut frames = FrameEncoder::new(segment.salt);
        let mut count = 0;
        for record in records {
            let bytes = frames.bytes().len() as u64;
            let is_full = count > 0 && segment.bytes + bytes >= SEGMENT_BYTES;
            if is_full || bytes + frame_bytes(record) > room {
                break;
            }
            let pushed = frames.push_with(HINT_FRAME, |payload| {
                payload.put_u64_le(now_ms);
                record.encode(payload);
            });
            if pushed.is_err() {
                // Longer than any record may be: the same as no room.
                break;
            }
            count += 1;
        }
        let appended = active.file.append(frames.bytes());
        if appended.is_ok() {
            active.is_dirty = true;
            segment.oldest_ms = segment.oldest_ms.min(now_ms);
            segment.newest_ms = segment.newest_ms.max(now_ms);
            segment.bytes += frames.bytes().len() as u64;
            segment.count += count as u64;
        }
        if appended.is_err() || segment.count == 0 {
            // After a failure what came before stays; of what lies behind it nothing is known.
            self.close_active(node);
        }
        appended.map_err(|source| failed(node, source))?;
        Ok(count)
    }

    /// Bytes of frames that a target's hints may still grow by.
    fn room(&mut self, node: NodeId) -> u64 {
        let header_bytes = match self.writable(node) {
            Some(_) => 0,
            None => FILE_HEADER_BYTES as u64,
        };
        let used = self.targets.get(&node).map_or(0, Target::bytes);
        self.limits
            .bytes_per_target_max
            .saturating_sub(used + header_bytes)
    }

    /// A target's open last segment, if it has one that is not full.
    fn writable(&mut self, node: NodeId) -> Option<(&mut Active, &mut Segment)> {
        let target = self.targets.get_mut(&node)?;
        let segment = target.segments.back_mut()?;
        let active = target.active.as_mut()?;
        (segment.bytes < SEGMENT_BYTES).then_some((active, segment))
    }

    /// Begins a target's next segment.
    fn begin_segment(&mut self, node: NodeId) -> io::Result<()> {
        self.close_active(node);
        if !self.targets.contains_key(&node) {
            self.disk.create_dir(&target_dir(node))?;
            self.is_root_dirty = true;
        }
        let target = self.targets.entry(node).or_insert_with(|| Target::new(1));
        let id = target.next_id;
        // Used up even if what follows fails: a file may be there.
        target.next_id = target.next_id.saturating_add(1);
        let header = FileHeader::new(FileKind::HintLog, id, node.0);
        let mut file = self.disk.create(&segment_path(node, id))?;
        target.is_directory_dirty = true;
        if let Err(error) = file.append(&header.encode()) {
            self.remove_file(node, id);
            return Err(error);
        }
        target.segments.push_back(Segment {
            id,
            salt: header.salt,
            bytes: FILE_HEADER_BYTES as u64,
            count: 0,
            oldest_ms: u64::MAX,
            newest_ms: 0,
        });
        target.active = Some(Active {
            file,
            is_dirty: true,
        });
        Ok(())
    }

    /// Ends appending to a target's last segment. It is synced first, for no later sync reaches it;
    /// if that fails, the next [`HintStore::sync`] says so. One without a hint is removed.
    fn close_active(&mut self, node: NodeId) {
        if let Err(source) = self.sync_file(node) {
            self.unreported.get_or_insert(failed(node, source));
        }
        let Some(target) = self.targets.get_mut(&node) else {
            return;
        };
        if target.active.take().is_some()
            && let Some(last) = target.segments.pop_back()
        {
            if last.count > 0 {
                target.segments.push_back(last);
            } else {
                self.remove_file(node, last.id);
            }
        }
    }

    pub(super) fn sync_target(&mut self, node: NodeId) -> Result<(), HintError> {
        if let Err(source) = self.sync_file(node) {
            self.close_active(node);
            return Err(failed(node, source));
        }
        if let Some(target) = self.targets.get_mut(&node)
            && target.is_directory_dirty
        {
            let synced = self.disk.sync_dir(&target_dir(node));
            synced.map_err(|source| failed(node, source))?;
            target.is_directory_dirty = false;
        }
        Ok(())
    }

    /// Syncs the open segment of a target, once: a sync that failed must not be tried again, because
    /// it may succeed without the bytes that the first one lost.
    fn sync_file(&mut self, node: NodeId) -> io::Result<()> {
        let active = self
            .targets
            .get_mut(&node)
            .and_then(|target| target.active.as_mut());
        if let Some(active) = active
            && active.is_dirty
        {
            active.is_dirty = false;
            active.file.sync()?;
        }
        Ok(())
    }

    /// Reads the first undelivered hints of a target, and the place behind them: those of its first
    /// segment within `max_bytes`, or the first alone. `None` if there are none. A segment that is
    /// damaged where it has to be read is dropped, and the next one is tried.
    pub(super) fn read_front(
        &mut self,
        node: NodeId,
        max_bytes: usize,
    ) -> Result<Option<(Vec<Hint>, HintToken)>, HintError> {
        loop {
            let Some(target) = self.targets.get(&node) else {
                return Ok(None);
            };
            let Some(segment) = target.segments.front() else {
                return Ok(None);
            };
            let left = segment.bytes.saturating_sub(target.offset) as usize;
            let mut bytes = self
                .read_segment(node, segment.id, target.offset, left.min(max_bytes))
                .map_err(|source| failed(node, source))?;
            if left > max_bytes && frame_at(&bytes, 0, segment.salt).is_none() {
                // Perhaps the first hint alone is longer than that.
                bytes = self
                    .read_segment(node, segment.id, target.offset, left)
                    .map_err(|source| failed(node, source))?;
            }
            let mut token = HintToken {
                segment: segment.id,
                offset: target.offset,
                ..HintToken::NOWHERE
            };
            let mut hints = Vec::new();
            let mut at = 0;
            while let Some(frame) = frame_at(&bytes, at, segment.salt) {
                if at > 0 && frame.end() > max_bytes {
                    break;
                }
                at = frame.end();
                token.hints += 1;
                match decode_hint(frame.payload) {
                    Some(hint) => hints.push(hint),
                    None => tracing::warn!(target = %node, "a hint that cannot be read; left out"),
                }
            }
            if at > 0 {
                token.offset += at as u64;
                return Ok(Some((hints, token)));
            }
            self.counters.damaged_segments += 1;
            let path = segment_path(node, segment.id);
            tracing::warn!(
                path,
                at = target.offset,
                "damaged; the hints behind it are lost"
            );
            self.remove_front(node);
        }
    }

    /// Up to `bytes` bytes of a segment; none if the file is gone.
    fn read_segment(
        &self,
        node: NodeId,
        id: u64,
        offset: u64,
        bytes: usize,
    ) -> io::Result<Vec<u8>> {
        let file = match self.disk.open(&segment_path(node, id)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut buffer = vec![0; bytes];
        let count = file.read_at(offset, &mut buffer)?;
        buffer.truncate(count);
        Ok(buffer)
    }

    /// Moves a target's front to `token`, if that is further on.
    pub(super) fn advance(&mut self, node: NodeId, token: HintToken) {
        let Some(target) = self.targets.get_mut(&node) else {
            return;
        };
        let Some(front) = target.segments.front_mut() else {
            return;
        };
        if front.id != token.segment || token.offset <= target.offset {
            return;
        }
        let passed = token.hints.min(front.count);
        front.count -= passed;
        target.offset = token.offset;
        let is_passed = front.count == 0 || target.offset >= front.bytes;
        self.counters.expired += token.expired;
        self.counters.delivered += passed.saturating_sub(token.expired);
        if is_passed {
            self.remove_front(node);
        }
    }

    /// Drops first segments whose every hint is too old.
    pub(super) fn expire_front(&mut self, node: NodeId, now_ms: u64) {
        while let Some(front) = self
            .targets
            .get(&node)
            .and_then(|target| target.segments.front())
            && front.count > 0
            && self.is_expired(front.newest_ms, now_ms)
        {
            self.counters.expired += front.count;
            self.remove_front(node);
        }
    }

    /// Removes a target's first segment, whatever is in it. False if there is none.
    pub(super) fn remove_front(&mut self, node: NodeId) -> bool {
        let Some(target) = self.targets.get_mut(&node) else {
            return false;
        };
        let Some(front) = target.segments.pop_front() else {
            return false;
        };
        target.offset = FILE_HEADER_BYTES as u64;
        if target.segments.is_empty() {
            target.active = None;
        }
        self.remove_file(node, front.id);
        true
    }

    /// Removes a segment's file. Not synced: if it comes back, its hints are delivered again.
    fn remove_file(&mut self, node: NodeId, id: u64) {
        let path = segment_path(node, id);
        if let Err(error) = self.disk.remove(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path, %error, "a segment of hints could not be removed");
        }
    }
}

fn failed(node: NodeId, source: io::Error) -> HintError {
    HintError {
        path: target_dir(node),
        source,
    }
}

/// Bytes of the frame of a hint.
fn frame_bytes(record: &Record) -> u64 {
    (FRAME_HEADER_BYTES + 8 + record.encoded_len()) as u64
}

fn decode_hint(payload: &[u8]) -> Option<Hint> {
    let mut payload = Bytes::copy_from_slice(payload);
    if payload.len() < 8 {
        return None;
    }
    let created_at_ms = payload.get_u64_le();
    let record = Record::decode(payload).ok()?;
    Some(Hint {
        created_at_ms,
        record,
    })
}
