//! Reading a partition in key order: the tables and the engine, merged.
//!
//! A key may be in several places. The newest record is in the first of these that has it: the
//! active table, the frozen ones from new to old, the engine, because a record enters the active
//! table only if it wins over all of them. So losers are told by where they are and are never
//! decoded.
//!
//! **Bounds.** Each place is asked for its first few entries only. What one place gave ends at some
//! key; if it has more, nothing can be said about keys beyond, for it may have the newest record of
//! one of them. The least of these ends is the *horizon* of a page: up to it everything is known.
//! Every place gives one entry at least, so the horizon is never before the first key, and a page
//! never empty unless it is the last.
//!
//! **Order.** Tables are looked at before the engine: what is flushed in between is then seen twice,
//! not never. No page is a snapshot, but no record in it is older than one that was visible when the
//! call began.

use std::collections::BTreeMap;

use bytes::Bytes;
use mds_types::{PartitionId, Record};

use super::{StoreError, StoreReader};
use crate::keys::{ENGINE_KEY_PREFIX_BYTES, Keyspace, engine_range};
use crate::table::Entry;

/// Bytes of records that [`StoreReader::scan`] reads at a time.
const SCAN_STEP_BYTES: usize = 64 * 1024 * 1024;

/// Records of each table and of the engine that [`StoreReader::count_live`] looks at in one step. More
/// make fewer passes over the tables, and take more memory (about 100 bytes each, without values) and
/// longer locks.
const COUNT_STEP_RECORDS: usize = 4096;

/// Bytes that a step of [`StoreReader::count_live`] reads from the engine, one record more at most. It
/// bounds how long a step keeps the engine from being closed.
const COUNT_STEP_BYTES: usize = 64 * 1024 * 1024;

/// The first entries behind some key in the tables: of each key the newest.
struct TablePart {
    newest: BTreeMap<Bytes, Entry>,
    /// Beyond this key a table has entries that are not here.
    horizon: Option<Bytes>,
}

/// A record that was not decoded yet.
enum Found {
    InTable(Entry),
    InEngine(Bytes),
}

impl Found {
    fn encoded_len(&self) -> usize {
        match self {
            Found::InTable(entry) => entry.encoded.len(),
            Found::InEngine(value) => value.len(),
        }
    }
}

impl StoreReader {
    /// A page of a partition: the first records behind the key `after`, in key order, the newest of
    /// each key, tombstones included; and whether more follow.
    ///
    /// A page has up to `limit` records (0 is taken as 1) of up to `bytes_max` bytes in their binary
    /// form together, or one record that is longer. It may be shorter than both bounds allow although
    /// more follow, because records that newer ones replaced count too while it is made. An empty
    /// page is the last. In memory are at most `bytes_max` and one record from the engine; records of
    /// tables are shared, not copied.
    ///
    /// Not a snapshot: a record that is written meanwhile may be seen or not.
    ///
    /// # Errors
    /// As [`StoreReader::get`].
    pub fn scan_page(
        &self,
        partition: PartitionId,
        after: Option<&[u8]>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Record>, bool), StoreError> {
        let mut behind: Option<Bytes> = None;
        loop {
            let after = behind.as_deref().or(after);
            let (records, end) = self.scan_step(partition, after, limit.max(1), bytes_max)?;
            // Records that are gone were all there was on the way: an empty page would be the last.
            match end {
                Some(end) if records.is_empty() => behind = Some(end),
                end => return Ok((records, end.is_some())),
            }
        }
    }

    /// The records of one step behind `after`; the key up to which it came, unless that was the partition's
    /// end.
    fn scan_step(
        &self,
        partition: PartitionId,
        after: Option<&[u8]>,
        limit: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Record>, Option<Bytes>), StoreError> {
        self.shared.check_sound()?;
        let tables = self.table_part(partition, after, limit, bytes_max);
        let (from, to) = range_up_to(partition, after, tables.horizon.as_deref());
        let page = self.shared.engine.scan(&from, &to, limit, bytes_max)?;
        let engine_end = match page.pairs.last() {
            Some((key, _)) if page.more => Some(user_key(key)),
            _ => None,
        };
        // The engine was asked for nothing beyond the tables' horizon.
        let mut more = tables.horizon.is_some() || page.more;
        let mut newest: BTreeMap<Bytes, Found> = tables
            .newest
            .into_iter()
            .map(|(key, entry)| (key, Found::InTable(entry)))
            .collect();
        for (key, value) in page.pairs {
            newest
                .entry(user_key(&key))
                .or_insert(Found::InEngine(value));
        }
        let mut records = Vec::new();
        let mut bytes = 0usize;
        let mut last = None;
        for (key, found) in newest {
            bytes = bytes.saturating_add(found.encoded_len());
            let is_full = records.len() == limit || (bytes > bytes_max && !records.is_empty());
            if is_full || engine_end.as_ref().is_some_and(|end| key > *end) {
                more = true;
                break;
            }
            match found {
                Found::InTable(entry) if entry.gone => {}
                Found::InTable(entry) => records.push(self.shared.decode(&entry)?),
                Found::InEngine(value) => records.push(self.shared.decode_engine(&key, value)?),
            }
            last = Some(key);
        }
        Ok((records, last.filter(|_| more)))
    }

    /// The first `limit` records of a partition behind the key `after`, as
    /// [`StoreReader::scan_page`] gives them, however long they are: for callers that know that
    /// their records are short. Fewer than `limit` means that the partition ends there.
    ///
    /// # Errors
    /// As [`StoreReader::get`].
    pub fn scan(
        &self,
        partition: PartitionId,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let mut records: Vec<Record> = Vec::new();
        let mut more = true;
        self.shared.check_sound()?;
        while more && records.len() < limit {
            let after = records.last().map_or(after, |record| Some(&record.key[..]));
            let left = limit - records.len();
            let (page, goes_on) = self.scan_page(partition, after, left, SCAN_STEP_BYTES)?;
            records.extend(page);
            more = goes_on;
        }
        Ok(records)
    }

    /// The number of keys of a partition with a value that is visible at `wall_ms`, milliseconds
    /// since 1970: not deleted, not expired. Reads the whole partition, one value at a time, and
    /// holds no locks for longer than a bounded step.
    ///
    /// Not a snapshot: what is written meanwhile may count or not.
    ///
    /// # Errors
    /// As [`StoreReader::get`].
    pub fn count_live(&self, partition: PartitionId, wall_ms: u64) -> Result<u64, StoreError> {
        let mut live = 0;
        let mut after: Option<Bytes> = None;
        loop {
            let (counted, end) = self.count_step(partition, after.as_deref(), wall_ms)?;
            live += counted;
            match end {
                Some(end) => after = Some(end),
                None => return Ok(live),
            }
        }
    }

    /// Counts a part of the keys behind `after`; the key up to which it counted, unless that was the
    /// partition's end.
    fn count_step(
        &self,
        partition: PartitionId,
        after: Option<&[u8]>,
        wall_ms: u64,
    ) -> Result<(u64, Option<Bytes>), StoreError> {
        self.shared.check_sound()?;
        let tables = self.table_part(partition, after, COUNT_STEP_RECORDS, usize::MAX);
        let (from, to) = range_up_to(partition, after, tables.horizon.as_deref());
        let mut live = 0;
        let mut seen = 0;
        let mut bytes = 0;
        let mut last = Bytes::new();
        let mut damage = None;
        let engine_has_more = self.shared.engine.visit(&from, &to, &mut |key, value| {
            let key = key.get(ENGINE_KEY_PREFIX_BYTES..).unwrap_or_default();
            seen += 1;
            bytes += key.len() + value.len();
            if !tables.newest.contains_key(key) {
                match self.shared.decode_engine(key, value) {
                    Ok(record) => live += u64::from(record.visible_value(wall_ms).is_some()),
                    Err(error) => damage = Some(error),
                }
            }
            let goes_on = seen < COUNT_STEP_RECORDS && bytes < COUNT_STEP_BYTES;
            if !goes_on {
                last = Bytes::copy_from_slice(key);
            }
            goes_on && damage.is_none()
        })?;
        if let Some(damage) = damage {
            return Err(damage);
        }
        let end = if engine_has_more {
            Some(last)
        } else {
            tables.horizon
        };
        for (key, entry) in &tables.newest {
            if end.as_ref().is_some_and(|end| key > end) {
                break;
            }
            if entry.gone {
                continue;
            }
            let record = self.shared.decode(entry)?;
            live += u64::from(record.visible_value(wall_ms).is_some());
        }
        Ok((live, end))
    }

    /// Of each table the first entries behind `after`: up to `limit`, and no further than the one
    /// with which they come to `bytes_max` bytes.
    fn table_part(
        &self,
        partition: PartitionId,
        after: Option<&[u8]>,
        limit: usize,
        bytes_max: usize,
    ) -> TablePart {
        let (active, frozen) = {
            let tables = self.shared.tables.read();
            let active = tables.active.first(partition, after, limit);
            (active, tables.frozen.clone())
        };
        let frozen = frozen
            .iter()
            .map(|table| table.first(partition, after, limit));
        let mut newest = BTreeMap::new();
        let mut horizon: Option<Bytes> = None;
        // From old to new, so that what is newer replaces what is older.
        for (mut entries, mut more) in frozen.chain([active]) {
            entries.sort_unstable_by(|a, b| a.key().cmp(b.key()));
            let kept = count_up_to(&entries, bytes_max);
            more |= kept < entries.len();
            entries.truncate(kept);
            if let Some(last) = entries.last().filter(|_| more) {
                let last = last.key_bytes();
                horizon = Some(horizon.map_or(last.clone(), |horizon| horizon.min(last)));
            }
            newest.extend(entries.into_iter().map(|entry| (entry.key_bytes(), entry)));
        }
        if let Some(horizon) = &horizon {
            newest.retain(|key, _| key <= horizon);
        }
        TablePart { newest, horizon }
    }
}

/// How many of these entries there are up to the one with which they come to `bytes_max` bytes.
fn count_up_to(entries: &[Entry], bytes_max: usize) -> usize {
    let mut bytes = 0;
    for (index, entry) in entries.iter().enumerate() {
        bytes += entry.encoded.len();
        if bytes >= bytes_max {
            return index + 1;
        }
    }
    entries.len()
}

/// The engine's range behind `after`, up to and including `last` if there is one.
fn range_up_to(
    partition: PartitionId,
    after: Option<&[u8]>,
    last: Option<&[u8]>,
) -> (Bytes, Bytes) {
    let (from, to) = engine_range(partition, Keyspace::Eventual, after);
    match last {
        // The first key behind `last` is where the range behind it begins.
        Some(_) => (from, engine_range(partition, Keyspace::Eventual, last).0),
        None => (from, to),
    }
}

/// The user's key in an engine key.
fn user_key(key: &Bytes) -> Bytes {
    key.slice(ENGINE_KEY_PREFIX_BYTES.min(key.len())..)
}
