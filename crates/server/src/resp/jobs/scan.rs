//! `SCAN` and `RANDOMKEY`: a few pages, one after the other.

use bytes::Bytes;
use mds_node::api::{Op, Outcome, RequestError};
use mds_types::{PartitionId, Record};

use super::walk::PAGE_RECORDS;
use super::{JobReply, failed, reply_only, unexpected};
use crate::resp::conn::Answer;
use crate::resp::cursors::{Position, key_hash};
use crate::resp::glob;
use crate::resp::reply::Reply;

/// Pages that one `SCAN` reads at most: in an empty cluster it still returns soon, with a cursor.
pub const SCAN_PAGES_MAX: u32 = 64;
/// Records that one `SCAN` reads at most, whatever `COUNT` says.
const SCAN_RECORDS_MAX: usize = 10_000;

/// Where a `SCAN` begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::resp) enum ScanFrom {
    /// After this key, or at the partition's beginning.
    Key(Option<Bytes>),
    /// After the key with this hash, which has to be found first.
    Hash(u64),
}

/// One call of `SCAN`.
#[derive(Debug)]
pub(in crate::resp) struct Scan {
    partition: u16,
    partition_count: u16,
    from: ScanFrom,
    /// Where the next page begins while the key with the hash is searched.
    searched: Option<Bytes>,
    pattern: Option<Bytes>,
    /// Whether keys of the wanted type exist at all.
    type_exists: bool,
    count: usize,
    seen: usize,
    pages: u32,
    keys: Vec<Reply>,
    over: bool,
    error: Option<Reply>,
}

impl Scan {
    pub(in crate::resp) fn new(
        partition: PartitionId,
        partition_count: u16,
        from: ScanFrom,
        count: usize,
    ) -> Scan {
        Scan {
            partition: partition.0,
            partition_count,
            from,
            searched: None,
            pattern: None,
            type_exists: true,
            count: count.clamp(1, SCAN_RECORDS_MAX),
            seen: 0,
            pages: 0,
            keys: Vec::new(),
            over: false,
            error: None,
        }
    }

    /// Only keys that match.
    pub(in crate::resp) fn set_pattern(&mut self, pattern: Bytes) {
        self.pattern = Some(pattern);
    }

    /// Only keys of this type: all are strings.
    pub(in crate::resp) fn set_type(&mut self, name: &[u8]) {
        self.type_exists = name.eq_ignore_ascii_case(b"string");
    }

    pub(super) fn next_page(&mut self) -> Op {
        let (after, limit) = match &self.from {
            ScanFrom::Key(after) => {
                let missing = self.count.saturating_sub(self.seen).max(1);
                // At most `SCAN_RECORDS_MAX`, which fits.
                (after.clone(), (missing as u32).min(PAGE_RECORDS))
            }
            ScanFrom::Hash(_) => (self.searched.clone(), PAGE_RECORDS),
        };
        Op::Scan {
            partition: PartitionId(self.partition),
            after,
            limit,
        }
    }

    pub(super) fn on_done(&mut self, result: Result<Outcome, RequestError>) -> Option<Op> {
        match result {
            Ok(Outcome::Page { records, next }) => match self.from {
                ScanFrom::Hash(hash) => self.search(hash, &records, next),
                ScanFrom::Key(_) => {
                    self.take_page(records, next);
                    self.pages += 1;
                }
            },
            Ok(_) => self.error = Some(failed(&unexpected())),
            Err(error) => self.error = Some(failed(&error)),
        }
        let enough = self.seen >= self.count || self.pages >= SCAN_PAGES_MAX;
        (self.error.is_none() && !self.over && !enough).then(|| self.next_page())
    }

    /// Looks for the key of a forgotten cursor. If it is gone, the partition begins anew.
    fn search(&mut self, hash: u64, records: &[Record], next: Option<Bytes>) {
        let found = records.iter().find(|record| key_hash(&record.key) == hash);
        match (found, next) {
            (Some(record), _) => self.from = ScanFrom::Key(Some(record.key.clone())),
            (None, Some(next)) => self.searched = Some(next),
            (None, None) => self.from = ScanFrom::Key(None),
        }
    }

    fn take_page(&mut self, records: Vec<Record>, next: Option<Bytes>) {
        self.seen += records.len();
        let pattern = self.pattern.as_deref();
        let wanted = |record: &Record| pattern.is_none_or(|it| glob::matches(it, &record.key));
        if self.type_exists {
            let matching = records.into_iter().filter(wanted);
            self.keys
                .extend(matching.map(|record| Reply::Bulk(record.key)));
        }
        match next {
            Some(key) => self.from = ScanFrom::Key(Some(key)),
            None => {
                self.partition += 1;
                self.from = ScanFrom::Key(None);
                self.over = self.partition >= self.partition_count;
            }
        }
    }

    pub(super) fn finish(self) -> JobReply {
        if let Some(error) = self.error {
            return reply_only(Answer::Reply(error));
        }
        let mut cursor = (0, None);
        if !self.over {
            let (key_hash, after) = match self.from {
                ScanFrom::Key(Some(key)) => (Some(key_hash(&key)), Some(key)),
                ScanFrom::Key(None) => (None, None),
                ScanFrom::Hash(hash) => (Some(hash), None),
            };
            let position = Position {
                partition: PartitionId(self.partition),
                key_hash,
            };
            cursor = (position.encode(), after);
        }
        let (number, after) = cursor;
        JobReply {
            answer: Answer::Reply(Reply::Array(vec![
                Reply::string(number.to_string()),
                Reply::Array(self.keys),
            ])),
            cursor: after.map(|after| (number, after)),
        }
    }
}

/// `RANDOMKEY`: a key from the first page that holds any, beginning with a random partition. Not every
/// key is equally likely, and keys far down a partition never come.
#[derive(Debug)]
pub(in crate::resp) struct RandomKey {
    partition_count: u16,
    partition: u16,
    /// Where the partition's next page begins, if its first held nothing alive.
    after: Option<Bytes>,
    tried: u16,
    pick: u64,
    reply: Reply,
}

impl RandomKey {
    /// `random` decides where to begin and which key to take.
    pub(in crate::resp) fn new(partition_count: u16, random: u64) -> RandomKey {
        RandomKey {
            partition_count,
            partition: (random % u64::from(partition_count.max(1))) as u16,
            after: None,
            tried: 1,
            pick: random >> 16,
            reply: Reply::Null,
        }
    }

    pub(super) fn next_page(&self) -> Op {
        Op::Scan {
            partition: PartitionId(self.partition),
            after: self.after.clone(),
            limit: PAGE_RECORDS,
        }
    }

    pub(super) fn on_done(&mut self, result: Result<Outcome, RequestError>) -> Option<Op> {
        let (mut records, next) = match result {
            Ok(Outcome::Page { records, next }) => (records, next),
            Ok(_) => {
                self.reply = failed(&unexpected());
                return None;
            }
            Err(error) => {
                self.reply = failed(&error);
                return None;
            }
        };
        if !records.is_empty() {
            let index = (self.pick % records.len() as u64) as usize;
            self.reply = Reply::Bulk(records.swap_remove(index).key);
            return None;
        }
        if next.is_none() {
            if self.tried >= self.partition_count {
                return None;
            }
            self.tried += 1;
            self.partition = (self.partition + 1) % self.partition_count.max(1);
        }
        self.after = next;
        Some(self.next_page())
    }

    pub(super) fn finish(self) -> Reply {
        self.reply
    }
}
