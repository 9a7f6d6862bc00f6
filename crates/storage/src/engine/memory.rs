//! The engine in memory: the reference that the others are compared with, and the simulator's.
//!
//! A map behind a lock, deterministic, with the contract's *crash* behaviour and faults on demand: an
//! ingestion can be made to fail after any number of its items, which leaves that part visible, and
//! reads can be made to fail. The content belongs to all clones of a handle, so a simulator keeps a
//! clone over a simulated crash of the process and opens the node's store on it again: what an
//! ingestion made visible is durable, as the contract says. Closing concerns one handle only.
//!
//! On a real node its content dies with the process while the node's log has forgotten the records
//! that it handed over. [`MemoryEngine::open`] therefore refuses a directory that an earlier process
//! has used: a node that forgot everything must come back as a *new* node.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes};
use parking_lot::{Mutex, RwLock};
use xxhash_rust::xxh3::xxh3_64;

use super::copy::{sync_directory, sync_parent};
use super::{Engine, EngineError, KeyRange, RunItem, RunOrder};

/// Says that a process has used the directory: whatever it held is gone.
const USED_MARKER: &str = "MEMORY-ENGINE-WAS-HERE";

/// The name of a checkpoint's one file. Format: magic, then for each pair key length (4), value
/// length (4), key, value; then the xxh3-64 of all that. Little-endian.
const CHECKPOINT_FILE: &str = "memory.checkpoint";

/// First bytes of a checkpoint; the digit is its format.
const CHECKPOINT_MAGIC: &[u8; 8] = b"MDSMEM\x001";

#[derive(Default)]
struct Content {
    map: RwLock<BTreeMap<Bytes, Bytes>>,
    /// Sum of key and value lengths, in bytes.
    bytes: AtomicU64,
    faults: Mutex<Faults>,
    behind: AtomicBool,
}

#[derive(Default)]
struct Faults {
    /// Items that the next ingestion takes before it fails.
    ingest_fails_after: Option<usize>,
    /// Reads that are still to fail.
    failing_reads: usize,
    /// Runs find no room.
    is_full: bool,
}

/// An ordered map in memory. A clone is another open handle on the same content.
pub struct MemoryEngine {
    content: Arc<Content>,
    closed: AtomicBool,
}

impl Clone for MemoryEngine {
    fn clone(&self) -> MemoryEngine {
        MemoryEngine::on(Arc::clone(&self.content))
    }
}

impl Default for MemoryEngine {
    fn default() -> MemoryEngine {
        MemoryEngine::new()
    }
}

impl MemoryEngine {
    /// An empty engine that touches no file.
    pub fn new() -> MemoryEngine {
        MemoryEngine::on(Arc::default())
    }

    fn on(content: Arc<Content>) -> MemoryEngine {
        MemoryEngine {
            content,
            closed: AtomicBool::new(false),
        }
    }

    /// An engine for a process: it begins with the checkpoint in the directory if there is one, and
    /// else empty.
    ///
    /// # Errors
    /// If an earlier process has used the directory (its content is lost), and if the directory or
    /// the checkpoint cannot be read.
    pub fn open(directory: &Path) -> Result<MemoryEngine, EngineError> {
        fs::create_dir_all(directory)?;
        let marker = directory.join(USED_MARKER);
        if marker.try_exists()? {
            return Err(EngineError::Stopped(format!(
                "the memory engine loses its content when the process ends, and {} was used \
                 before; remove the node's data directory and let it join as a new node",
                directory.display()
            )));
        }
        let engine = MemoryEngine::new();
        let checkpoint = directory.join(CHECKPOINT_FILE);
        match fs::read(&checkpoint) {
            Ok(bytes) => {
                let pairs = decode_checkpoint(bytes).ok_or_else(|| {
                    EngineError::Corrupt(format!("{} is damaged", checkpoint.display()))
                })?;
                for (key, value) in pairs {
                    engine
                        .content
                        .put(&mut engine.content.map.write(), key, Some(value));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        fs::File::create_new(&marker)?.sync_all()?;
        sync_directory(directory)?;
        Ok(engine)
    }

    /// Fault: the next ingestion fails after `items` of its items, which stay visible.
    pub fn fail_next_ingest_after(&self, items: usize) {
        self.content.faults.lock().ingest_fails_after = Some(items);
    }

    /// Fault: whether runs find no room from now on. Nothing of them becomes visible.
    pub fn set_full(&self, is_full: bool) {
        self.content.faults.lock().is_full = is_full;
    }

    /// Fault: the next `reads` gets and scans fail.
    pub fn fail_next_reads(&self, reads: usize) {
        self.content.faults.lock().failing_reads = reads;
    }

    /// Fault: what [`Engine::is_behind`] says from now on.
    pub fn set_behind(&self, behind: bool) {
        self.content.behind.store(behind, Ordering::SeqCst);
    }

    fn check_open(&self) -> Result<(), EngineError> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(EngineError::closed());
        }
        Ok(())
    }

    fn check_read(&self) -> Result<(), EngineError> {
        self.check_open()?;
        let mut faults = self.content.faults.lock();
        if faults.failing_reads > 0 {
            faults.failing_reads -= 1;
            return Err(EngineError::Io(io::Error::other("injected read error")));
        }
        Ok(())
    }
}

impl Content {
    fn put(&self, map: &mut BTreeMap<Bytes, Bytes>, key: Bytes, value: Option<Bytes>) {
        let key_bytes = key.len() as u64;
        let old = match value {
            Some(value) => {
                self.bytes
                    .fetch_add(key_bytes + value.len() as u64, Ordering::Relaxed);
                map.insert(key, value)
            }
            None => map.remove(&key),
        };
        if let Some(old) = old {
            self.bytes
                .fetch_sub(key_bytes + old.len() as u64, Ordering::Relaxed);
        }
    }
}

impl Engine for MemoryEngine {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn ingest(&self, run: &mut dyn Iterator<Item = RunItem>) -> Result<(), EngineError> {
        self.check_open()?;
        let fails_after = {
            let mut faults = self.content.faults.lock();
            if faults.is_full {
                return Err(EngineError::Io(io::Error::new(
                    io::ErrorKind::StorageFull,
                    "injected full disk",
                )));
            }
            faults.ingest_fails_after.take()
        };
        // The run is taken out of the iterator before the lock is, so that a run may be read from
        // anywhere, this engine included.
        let mut items = Vec::new();
        let mut order = RunOrder::default();
        let mut refused = None;
        for (key, value) in run {
            if let Err(error) = order.check(&key) {
                refused = Some(error);
                break;
            }
            items.push((key, value));
        }
        if let Some(error) = refused {
            return Err(error);
        }
        if let Some(after) = fails_after {
            items.truncate(after);
        }
        let mut map = self.content.map.write();
        for (key, value) in items {
            self.content.put(&mut map, key, value);
        }
        match fails_after {
            Some(_) => Err(EngineError::Io(io::Error::other(
                "injected ingestion error",
            ))),
            None => Ok(()),
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.check_read()?;
        Ok(self.content.map.read().get(key).cloned())
    }

    fn visit(
        &self,
        from: &[u8],
        to: &[u8],
        visitor: &mut dyn FnMut(&[u8], Bytes) -> bool,
    ) -> Result<bool, EngineError> {
        self.check_read()?;
        if from >= to {
            return Ok(false);
        }
        let map = self.content.map.read();
        let mut pairs = map.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
        for (key, value) in &mut pairs {
            if !visitor(key, value.clone()) {
                return Ok(pairs.next().is_some());
            }
        }
        Ok(false)
    }

    fn drop_ranges(&self, ranges: &[KeyRange]) -> Result<(), EngineError> {
        self.check_open()?;
        let mut map = self.content.map.write();
        for (from, to) in ranges.iter().filter(|(from, to)| from < to) {
            let keys: Vec<Bytes> = map
                .range::<[u8], _>((Bound::Included(&from[..]), Bound::Excluded(&to[..])))
                .map(|(key, _)| key.clone())
                .collect();
            for key in keys {
                self.content.put(&mut map, key, None);
            }
        }
        Ok(())
    }

    fn is_behind(&self) -> bool {
        self.content.behind.load(Ordering::SeqCst)
    }

    fn disk_bytes(&self) -> u64 {
        self.content.bytes.load(Ordering::Relaxed)
    }

    fn checkpoint(&self, to: &Path) -> Result<(), EngineError> {
        self.check_read()?;
        fs::create_dir_all(to)?;
        if fs::read_dir(to)?.next().is_some() {
            return Err(EngineError::Io(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!(
                    "{} is not empty; choose a new directory for the copy",
                    to.display()
                ),
            )));
        }
        let bytes = encode_checkpoint(&self.content.map.read());
        // A copy that was cut short fails its checksum, so it needs no rename.
        let mut file = fs::File::create_new(to.join(CHECKPOINT_FILE))?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        sync_directory(to)?;
        sync_parent(to)?;
        Ok(())
    }

    fn close(&self) -> Result<(), EngineError> {
        self.closed.store(true, Ordering::SeqCst);
        Ok(())
    }
}

fn encode_checkpoint(map: &BTreeMap<Bytes, Bytes>) -> Vec<u8> {
    let mut out = CHECKPOINT_MAGIC.to_vec();
    for (key, value) in map {
        out.put_u32_le(key.len() as u32);
        out.put_u32_le(value.len() as u32);
        out.put_slice(key);
        out.put_slice(value);
    }
    let checksum = xxh3_64(&out);
    out.put_u64_le(checksum);
    out
}

/// The pairs of a checkpoint, or `None` for bytes that no [`encode_checkpoint`] wrote.
fn decode_checkpoint(bytes: Vec<u8>) -> Option<Vec<(Bytes, Bytes)>> {
    let content_bytes = bytes.len().checked_sub(8)?;
    let (content, mut checksum) = bytes.split_at(content_bytes);
    if checksum.get_u64_le() != xxh3_64(content) || !content.starts_with(CHECKPOINT_MAGIC) {
        return None;
    }
    let mut rest = Bytes::from(bytes);
    rest.truncate(content_bytes);
    rest.advance(CHECKPOINT_MAGIC.len());
    let mut pairs = Vec::new();
    while rest.has_remaining() {
        if rest.len() < 8 {
            return None;
        }
        let key_bytes = rest.get_u32_le() as usize;
        let value_bytes = rest.get_u32_le() as usize;
        if rest.len() < key_bytes.checked_add(value_bytes)? {
            return None;
        }
        let key = rest.split_to(key_bytes);
        pairs.push((key, rest.split_to(value_bytes)));
    }
    Some(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(keys: &[&'static str]) -> Vec<RunItem> {
        keys.iter()
            .map(|key| (Bytes::from(*key), Some(Bytes::from("v"))))
            .collect()
    }

    #[test]
    fn a_failed_ingestion_leaves_a_part_and_is_repaired_by_the_next() {
        let engine = MemoryEngine::new();
        engine.fail_next_ingest_after(2);
        let error = engine
            .ingest(&mut run(&["a", "b", "c"]).into_iter())
            .unwrap_err();
        assert!(matches!(error, EngineError::Io(_)));
        assert!(engine.get(b"b").unwrap().is_some());
        assert!(engine.get(b"c").unwrap().is_none());
        engine
            .ingest(&mut run(&["a", "b", "c"]).into_iter())
            .unwrap();
        assert!(engine.get(b"c").unwrap().is_some());
    }

    #[test]
    fn failed_reads_are_errors_and_stop_after_their_count() {
        let engine = MemoryEngine::new();
        engine.ingest(&mut run(&["a"]).into_iter()).unwrap();
        engine.fail_next_reads(2);
        assert!(engine.get(b"a").is_err());
        assert!(engine.scan(b"a", b"z", 10, 10).is_err());
        assert!(engine.get(b"a").unwrap().is_some());
    }

    #[test]
    fn a_clone_is_an_open_handle_on_the_same_content() {
        let engine = MemoryEngine::new();
        engine.ingest(&mut run(&["a"]).into_iter()).unwrap();
        engine.close().unwrap();
        assert!(engine.get(b"a").is_err());
        assert!(engine.clone().get(b"a").unwrap().is_some());
    }

    #[test]
    fn bytes_are_those_that_are_there() {
        let engine = MemoryEngine::new();
        engine.ingest(&mut run(&["a", "bb"]).into_iter()).unwrap();
        engine.ingest(&mut run(&["a"]).into_iter()).unwrap();
        assert_eq!(engine.disk_bytes(), 5);
        engine.drop_ranges(&[("a".into(), "b".into())]).unwrap();
        assert_eq!(engine.disk_bytes(), 3);
    }

    #[test]
    fn a_directory_that_lost_its_content_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        MemoryEngine::open(directory.path()).unwrap();
        let Err(error) = MemoryEngine::open(directory.path()) else {
            panic!("opened a directory whose content is lost");
        };
        assert!(error.to_string().contains("new node"), "{error}");
    }

    proptest! {
        #[test]
        fn checkpoints_round_trip_and_no_damage_passes(
            pairs in prop::collection::btree_map(
                prop::collection::vec(any::<u8>(), 1..8),
                prop::collection::vec(any::<u8>(), 0..8),
                0..8,
            ),
            at: prop::sample::Index,
            flip in 1u8..,
            cut: prop::sample::Index,
        ) {
            let map: BTreeMap<Bytes, Bytes> = pairs
                .into_iter()
                .map(|(key, value)| (Bytes::from(key), Bytes::from(value)))
                .collect();
            let bytes = encode_checkpoint(&map);
            let back = decode_checkpoint(bytes.clone()).unwrap();
            prop_assert_eq!(back.into_iter().collect::<BTreeMap<_, _>>(), map);
            let mut damaged = bytes.clone();
            damaged[at.index(bytes.len())] ^= flip;
            prop_assert!(decode_checkpoint(damaged).is_none());
            prop_assert!(decode_checkpoint(bytes[..cut.index(bytes.len())].to_vec()).is_none());
        }

        #[test]
        fn garbage_is_no_checkpoint(mut bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            bytes.splice(0..0, *CHECKPOINT_MAGIC);
            let checksum = xxh3_64(&bytes);
            bytes.extend_from_slice(&checksum.to_le_bytes());
            // Any answer but a panic: the checksum is right, the content is not ours.
            let _ = decode_checkpoint(bytes);
        }
    }
}
