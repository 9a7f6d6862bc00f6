//! The store's side of a core that stands alone: a map in memory. It keeps what it is given, takes its
//! time, refuses now and then leaving no trace, and now and then fails for good, having done a part.
//!
//! Hints are taken and dropped, which a store may do at any time.

use std::collections::BTreeMap;

use bytes::Bytes;
use mds_node::store_io::{MergeResult, ReadAnswer, ReadQuery, StoreBatch, StoreDone};
use mds_types::{Epoch, Record};

use super::promises::Promises;
use crate::faults::{Counts, MILLISECOND_NS};
use crate::random::Random;

/// Merges that are refused, and reads that fail, parts per million at the worst.
const REFUSED_PPM_MAX: u64 = 40_000;

/// Batches during which the store stops for good, parts per million, in one run of so many.
const STOP_PPM: u32 = 20_000;
const STOPS_ONE_IN: u64 = 10;

/// A slow batch takes at most this long, nanoseconds.
const SLOW_NS_MAX: u64 = 300 * MILLISECOND_NS;

/// A store in memory.
pub(super) struct MapStore {
    records: BTreeMap<Bytes, Record>,
    random: Random,
    refused_ppm: u32,
    stop_ppm: u32,
    slow_ppm: u32,
    is_stopped: bool,
    /// Batches are carried out in the order they were handed over: no later one before this.
    busy_until_ns: u64,
}

impl MapStore {
    pub(super) fn new(mut random: Random) -> MapStore {
        MapStore {
            records: BTreeMap::new(),
            refused_ppm: random.below(REFUSED_PPM_MAX + 1) as u32,
            stop_ppm: match random.below(STOPS_ONE_IN) {
                0 => STOP_PPM,
                _ => 0,
            },
            slow_ppm: random.below(20_001) as u32,
            random,
            is_stopped: false,
            busy_until_ns: 0,
        }
    }

    /// How long one thing takes, nanoseconds.
    pub(super) fn delay_ns(&mut self, counts: &mut Counts) -> u64 {
        if self.random.chance(self.slow_ppm) {
            counts.count("store slow");
            return self.random.below(SLOW_NS_MAX);
        }
        self.random.between(50_000, 2_000_000)
    }

    /// When a batch that is handed over now will have been carried out.
    pub(super) fn begin(&mut self, now_ns: u64, counts: &mut Counts) -> u64 {
        let begins_ns = self.busy_until_ns.max(now_ns);
        self.busy_until_ns = begins_ns + self.delay_ns(counts);
        self.busy_until_ns
    }

    /// Carries a batch out, and lets the promises see what was merged.
    pub(super) fn execute(
        &mut self,
        node: usize,
        batch: StoreBatch,
        promises: &mut Promises,
        counts: &mut Counts,
    ) -> StoreDone {
        let mut done = StoreDone {
            hint_bytes_taken: batch.hints.iter().map(|(_, r)| r.encoded_len()).sum(),
            hints_dropped: batch.hints.len() as u64,
            ..StoreDone::default()
        };
        counts.add("hint kept", batch.hints.len() as u64);
        let stops_now = !self.is_stopped && self.random.chance(self.stop_ppm);
        for (ticket, (_, record)) in batch.tickets.into_iter().zip(batch.merges) {
            let result = self.merge(node, record, stops_now, promises, counts);
            done.merges.push((ticket, result));
        }
        if let Some(mark) = batch.mark {
            match self.is_stopped || self.random.chance(self.refused_ppm) {
                true => done.mark_refused = true,
                false => done.mark = Some(mark),
            }
        }
        if stops_now {
            counts.count("store stopped");
            self.is_stopped = true;
            done.failed = Some("a simulated failure".to_owned());
        }
        done
    }

    fn merge(
        &mut self,
        node: usize,
        record: Record,
        stops_now: bool,
        promises: &mut Promises,
        counts: &mut Counts,
    ) -> MergeResult {
        let is_lost = stops_now && self.random.below(2) == 0;
        if self.is_stopped || is_lost {
            counts.count("merge failed");
            return MergeResult::Failed;
        }
        if self.random.chance(self.refused_ppm) {
            counts.count("merge refused");
            return MergeResult::Refused;
        }
        promises.merged(node, &record);
        let held = self.records.get(&record.key);
        if held.is_none_or(|held| record.supersedes(held)) {
            self.records.insert(record.key.clone(), record);
        }
        match stops_now {
            // Done, and nobody can say so.
            true => MergeResult::Failed,
            false => MergeResult::Durable,
        }
    }

    /// Answers a question; nothing if the read fails.
    pub(super) fn read(&mut self, query: &ReadQuery, counts: &mut Counts) -> Option<ReadAnswer> {
        if self.is_stopped || self.random.chance(self.refused_ppm) {
            counts.count("read failed");
            return None;
        }
        match query {
            ReadQuery::Get { key } => {
                let record = self.records.get(key).cloned();
                Some(ReadAnswer::Record(record, Epoch(0)))
            }
            // Nobody asks.
            ReadQuery::Page { .. } | ReadQuery::Count { .. } | ReadQuery::Sync(_) => None,
        }
    }
}
