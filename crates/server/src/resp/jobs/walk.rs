//! `DBSIZE`, `KEYS`, `FLUSHALL` and the keys of a slot: all partitions, a few at a time.
//!
//! A walk sees each partition at another moment. It is no snapshot.

use bytes::Bytes;
use mds_node::api::{Op, Outcome, RequestError};
use mds_types::slot::slot_of;
use mds_types::{PartitionId, Record};

use super::{failed, unexpected};
use crate::resp::glob;
use crate::resp::reply::Reply;

/// Partitions walked at the same time by one command. Small: a walk gives way to requests.
pub const WALK_IN_FLIGHT_MAX: u32 = 8;
/// Keys that `KEYS` returns; if there are more, it fails and names `SCAN`.
pub const KEYS_MAX: usize = 1_000_000;
/// Records asked for at once.
pub(super) const PAGE_RECORDS: u32 = 512;

/// What is done on the way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::resp) enum WalkKind {
    /// Count records.
    Size,
    /// Collect the keys that match a pattern.
    Keys(Bytes),
    /// Delete what is seen. What is written meanwhile may or may not be seen, as each deletion has
    /// its own stamp.
    Delete,
    /// Count the keys of a slot.
    CountInSlot(u16),
    /// Collect keys of a slot, at most this many.
    KeysInSlot(u16, usize),
}

/// One of the partitions under way.
#[derive(Clone, Default, Debug)]
struct Lane {
    partition: PartitionId,
    /// Where the next page begins.
    next: Option<Bytes>,
    deletions: u32,
}

/// A walk over partitions.
#[derive(Debug)]
pub(in crate::resp) struct Walk {
    kind: WalkKind,
    next_partition: u32,
    end: u32,
    lanes: Vec<Lane>,
    keys: Vec<Reply>,
    count: u64,
    error: Option<Reply>,
}

impl Walk {
    /// A walk over partitions `first..end`.
    pub(in crate::resp) fn new(kind: WalkKind, first: u32, end: u32) -> Walk {
        Walk {
            kind,
            next_partition: first,
            end,
            lanes: Vec::new(),
            keys: Vec::new(),
            count: 0,
            error: None,
        }
    }

    pub(super) fn start(&mut self, wanted: &mut Vec<(u32, Op)>) {
        let lanes = (self.end - self.next_partition).min(WALK_IN_FLIGHT_MAX);
        self.lanes = vec![Lane::default(); lanes as usize];
        for lane in 0..lanes {
            self.next_partition(lane, wanted);
        }
    }

    fn next_partition(&mut self, lane: u32, wanted: &mut Vec<(u32, Op)>) {
        if self.next_partition >= self.end || self.is_over() {
            return;
        }
        // Partitions are counted in 16 bits.
        let partition = PartitionId(self.next_partition as u16);
        self.next_partition += 1;
        self.lanes[lane as usize] = Lane {
            partition,
            ..Lane::default()
        };
        wanted.push((lane, self.question(lane)));
    }

    fn question(&mut self, lane: u32) -> Op {
        let lane = &mut self.lanes[lane as usize];
        match self.kind {
            WalkKind::Size => Op::Count {
                partition: lane.partition,
            },
            _ => Op::Scan {
                partition: lane.partition,
                after: lane.next.take(),
                limit: PAGE_RECORDS,
            },
        }
    }

    fn is_over(&self) -> bool {
        let enough = match self.kind {
            WalkKind::KeysInSlot(_, most) => self.keys.len() >= most,
            _ => false,
        };
        self.error.is_some() || enough
    }

    pub(super) fn on_done(
        &mut self,
        part: u32,
        result: Result<Outcome, RequestError>,
        wanted: &mut Vec<(u32, Op)>,
    ) {
        match result {
            Ok(Outcome::Count(count)) => self.count += count,
            Ok(Outcome::Page { records, next }) => {
                self.lanes[part as usize].next = next;
                self.take_page(part, records, wanted);
            }
            Ok(Outcome::Written { .. }) => {
                let lane = &mut self.lanes[part as usize];
                lane.deletions = lane.deletions.saturating_sub(1);
            }
            Ok(Outcome::Read { .. }) => {
                self.error.get_or_insert(failed(&unexpected()));
            }
            Err(error) => {
                self.error.get_or_insert(failed(&error));
            }
        }
        let lane = &self.lanes[part as usize];
        if self.is_over() || lane.deletions > 0 {
            return;
        }
        if lane.next.is_some() {
            wanted.push((part, self.question(part)));
        } else {
            self.next_partition(part, wanted);
        }
    }

    fn take_page(&mut self, part: u32, records: Vec<Record>, wanted: &mut Vec<(u32, Op)>) {
        for record in records {
            match &self.kind {
                WalkKind::Size => {}
                WalkKind::Keys(pattern) => {
                    if glob::matches(pattern, &record.key) {
                        self.keys.push(Reply::Bulk(record.key));
                    }
                }
                WalkKind::Delete => {
                    self.lanes[part as usize].deletions += 1;
                    wanted.push((part, Op::Delete { key: record.key }));
                }
                WalkKind::CountInSlot(slot) => {
                    self.count += u64::from(slot_of(&record.key) == *slot);
                }
                WalkKind::KeysInSlot(slot, most) => {
                    if slot_of(&record.key) == *slot && self.keys.len() < *most {
                        self.keys.push(Reply::Bulk(record.key));
                    }
                }
            }
        }
        if self.keys.len() > KEYS_MAX {
            let text = format!("ERR more than {KEYS_MAX} keys match: use SCAN");
            self.error.get_or_insert(Reply::Error(text.into()));
        }
    }

    pub(super) fn finish(self) -> Reply {
        match (self.error, self.kind) {
            (Some(error), _) => error,
            (None, WalkKind::Size | WalkKind::CountInSlot(_)) => {
                Reply::Integer(i64::try_from(self.count).unwrap_or(i64::MAX))
            }
            (None, WalkKind::Keys(_) | WalkKind::KeysInSlot(..)) => Reply::Array(self.keys),
            (None, WalkKind::Delete) => Reply::OK,
        }
    }
}
