//! Coordinating pages of a partition.
//!
//! R replicas are asked for the same page; per key the newest record wins. A replica's page ends
//! somewhere, and beyond that key nothing is known of it, so the merged page ends at the earliest
//! end. What a page shows of a key is what a read with the same R would have found at that moment; the
//! page as a whole is no snapshot, and nothing is repaired. As with a read, absence below a replica's watermark is
//! information: it dismisses what another one still showed.
//!
//! Counting asks one replica only and is an estimate by nature.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use bytes::Bytes;
use mds_protocol::quorum::{Outcome as Quorum, ReadQuorum, ReplicaSet, check_quorum};
use mds_types::mutation::{Mutation, is_on};
use mds_types::{ClusterConfig, Epoch, NodeId, PartitionId, Record, TopologyVersion};

use super::replica::{PAGE_RECORDS_MAX, ReplicaPage, ReplicaRequest};
use super::write::unavailable;
use super::{Core, OpKind, Pending, Replicas};
use crate::api::{Now, Outcome, RequestError, RequestOptions, Tag};
use crate::wire::{Message, Scan, Status};

/// A scan or count in flight.
pub(super) struct ScanOp {
    tag: Tag,
    partition: PartitionId,
    after: Option<Bytes>,
    /// Zero counts.
    limit: u32,
    pub(super) replicas: Replicas,
    /// Counts answers only; the records are in `pages`.
    quorum: ReadQuorum,
    asked: ReplicaSet,
    /// The version of the rings that it goes by.
    pub(super) ring: TopologyVersion,
    pages: Vec<ReplicaPage>,
    count: u64,
    started_ns: u64,
    deadline_ns: u64,
}

impl Core {
    #[expect(
        clippy::too_many_arguments,
        reason = "the request's fields, taken apart once"
    )]
    pub(super) fn begin_scan(
        &mut self,
        now: Now,
        partition: PartitionId,
        after: Option<Bytes>,
        limit: u32,
        options: &RequestOptions,
        tag: Tag,
        deadline_ns: u64,
    ) -> Result<(), RequestError> {
        self.coordinating()?;
        let config = self.rings.config();
        let needed = options.read_quorum.unwrap_or(config.read_quorum);
        check_quorum("r", needed, config.replicas)
            .map_err(|error| RequestError::BadRequest(error.to_string()))?;
        if limit == 0 {
            return Err(RequestError::BadRequest(
                "limit has to be at least 1".to_owned(),
            ));
        }
        let limit = limit.min(PAGE_RECORDS_MAX);
        let asked = options.read_quorum;
        self.begin_pages(now, partition, after, limit, asked, tag, deadline_ns)
    }

    pub(super) fn begin_count(
        &mut self,
        now: Now,
        partition: PartitionId,
        tag: Tag,
        deadline_ns: u64,
    ) -> Result<(), RequestError> {
        self.coordinating()?;
        self.begin_pages(now, partition, None, 0, Some(1), tag, deadline_ns)
    }

    #[expect(clippy::too_many_arguments, reason = "the operation's fields")]
    fn begin_pages(
        &mut self,
        now: Now,
        partition: PartitionId,
        after: Option<Bytes>,
        limit: u32,
        read_quorum: Option<u8>,
        tag: Tag,
        deadline_ns: u64,
    ) -> Result<(), RequestError> {
        if partition.0 >= self.rings.partition_count() {
            let count = self.rings.partition_count();
            let error = format!("partition {partition} does not exist: there are {count}");
            return Err(RequestError::BadRequest(error));
        }
        let reads = self.rings.stage().reads();
        let replicas = self.rings.replicas(partition, reads);
        let r = |config: &ClusterConfig| {
            let r = read_quorum.unwrap_or(config.read_quorum);
            r.min(config.replicas)
        };
        let quorum = self.rings.read_quorum(&replicas, r, None, None);
        let quorum = self.admit_quorum(&replicas, replicas.of(reads), quorum)?;
        let op = ScanOp {
            tag,
            partition,
            after,
            limit,
            replicas,
            quorum,
            asked: ReplicaSet::EMPTY,
            ring: self.rings.version(),
            pages: Vec::new(),
            count: 0,
            started_ns: now.mono_ns,
            deadline_ns,
        };
        let id = self.pending.insert(Pending::Scan(op));
        self.deadlines.insert(deadline_ns, id);
        self.settle_scan(now, id);
        Ok(())
    }

    pub(super) fn on_page_reply(
        &mut self,
        now: Now,
        id: u64,
        from: NodeId,
        status: Status,
        page: ReplicaPage,
    ) {
        let Some(Pending::Scan(op)) = self.pending.get_mut(id) else {
            return;
        };
        let Some(index) = op.replicas.index_of(from) else {
            return;
        };
        if status != Status::Ok {
            return self.on_scan_failed(now, id, index);
        }
        if op.quorum.outstanding().contains(index) {
            op.pages.push(page);
            op.quorum.answer(index, None);
        }
        self.settle_scan(now, id);
    }

    pub(super) fn on_count_reply(
        &mut self,
        now: Now,
        id: u64,
        from: NodeId,
        status: Status,
        count: u64,
    ) {
        let Some(Pending::Scan(op)) = self.pending.get_mut(id) else {
            return;
        };
        op.count = op.count.max(count);
        self.on_page_reply(now, id, from, status, ReplicaPage::default());
    }

    pub(super) fn on_scan_failed(&mut self, now: Now, id: u64, index: usize) {
        if let Some(Pending::Scan(op)) = self.pending.get_mut(id) {
            op.quorum.fail(index);
            self.settle_scan(now, id);
        }
    }

    pub(super) fn on_scan_deadline(&mut self, now: Now, id: u64) {
        let Some(Pending::Scan(op)) = self.pending.get_mut(id) else {
            return;
        };
        let short = op.quorum.shortfall();
        let error = RequestError::TimedOut {
            needed: short.needed,
            got: short.got,
            of: short.of,
        };
        self.end_scan(now, id, Err(error));
    }

    fn settle_scan(&mut self, now: Now, id: u64) {
        loop {
            let Some(Pending::Scan(op)) = self.pending.get_mut(id) else {
                return;
            };
            match op.quorum.outcome() {
                Quorum::Met => {
                    let outcome = match op.limit {
                        0 => Outcome::Count(op.count),
                        limit => merge_pages(std::mem::take(&mut op.pages), limit as usize, now),
                    };
                    return self.end_scan(now, id, Ok(outcome));
                }
                Quorum::Impossible { .. } => {
                    let short = op.quorum.hopeless().unwrap_or(op.quorum.shortfall());
                    return self.end_scan(now, id, Err(unavailable(short)));
                }
                Quorum::Pending => {}
            }
            let (among, replicas) = (op.quorum.to_ask(op.asked), op.replicas);
            let Some(index) = self.preferred(&replicas, among) else {
                return;
            };
            let topology = self.rings.version().0;
            let Some(Pending::Scan(op)) = self.pending.get_mut(id) else {
                return;
            };
            op.asked = op.asked.union(ReplicaSet::from_iter([index]));
            let node = op.replicas.nodes()[index];
            let scan = Scan {
                id,
                topology,
                timeout_ms: (op.deadline_ns.saturating_sub(now.mono_ns) / 1_000_000) as u32,
                partition: u32::from(op.partition.0),
                after: op.after.clone(),
                limit: op.limit,
            };
            if !self.send_scan(node, scan)
                && let Some(Pending::Scan(op)) = self.pending.get_mut(id)
            {
                op.quorum.fail(index);
            }
        }
    }

    fn send_scan(&mut self, to: NodeId, scan: Scan) -> bool {
        if !self.is_usable(to) {
            return false;
        }
        if to != self.view.me {
            return self.links.send(to, &Message::Scan(scan)).is_ok();
        }
        let partition = PartitionId(scan.partition as u16);
        let request = match scan.limit {
            0 => ReplicaRequest::Count { partition },
            limit => ReplicaRequest::Page {
                partition,
                after: scan.after,
                limit,
            },
        };
        self.local_requests.push_back((scan.id, request));
        true
    }

    pub(super) fn end_scan(&mut self, now: Now, id: u64, result: Result<Outcome, RequestError>) {
        if let Some(Pending::Scan(op)) = self.pending.remove(id) {
            self.finish_kind(now, op.started_ns, OpKind::Scan, op.tag, result);
        }
    }
}

/// Merges the replicas' pages of one stretch: the newest record per key that is not dismissed, up to the first
/// key beyond which some replica has not said what it has.
fn merge_pages(pages: Vec<ReplicaPage>, limit: usize, now: Now) -> Outcome {
    let ends = pages
        .iter()
        .filter(|page| page.more)
        .filter_map(|page| page.records.last());
    let end = ends.map(|record| record.key.clone()).min();
    let settled: Vec<Epoch> = pages.iter().map(|page| page.settled).collect();
    let mut held: BTreeMap<Bytes, Vec<(usize, Record)>> = BTreeMap::new();
    for (at, page) in pages.into_iter().enumerate() {
        for record in page.records {
            if end.as_ref().is_none_or(|end| record.key <= *end) {
                let of_key = held.entry(record.key.clone()).or_default();
                of_key.push((at, record));
            }
        }
    }
    let newest = held
        .into_values()
        .filter_map(|held| newest_of(held, &settled));
    let mut records: Vec<Record> = newest.take(limit + 1).collect();
    let is_cut = records.len() > limit;
    records.truncate(limit);
    let next = if is_cut {
        records.last().map(|record| record.key.clone())
    } else {
        end
    };
    records.retain(|record| record.visible_value(now.wall_ms()).is_some());
    Outcome::Page { records, next }
}

/// The newest of the records that pages have of one key. One that another page's replica has settled the epoch of,
/// and has nothing of, or something older, is *dismissed*: it was deleted or superseded on all replicas
/// (see [`ReadQuorum`]). Pages are not read at the same time, so an old value and its tombstone's collection may well
/// lie between them.
fn newest_of(mut held: Vec<(usize, Record)>, settled: &[Epoch]) -> Option<Record> {
    let mut is_asked = vec![true; settled.len()];
    loop {
        let newest = held.iter().max_by(|(_, a), (_, b)| a.merge_order(b))?;
        let newest = newest.1.clone();
        let is_newest = |record: &Record| record.merge_order(&newest) == Ordering::Equal;
        for (at, _) in held.iter().filter(|(_, record)| is_newest(record)) {
            is_asked[*at] = false;
        }
        let mut others = settled
            .iter()
            .zip(&is_asked)
            .filter(|(_, is_asked)| **is_asked);
        let is_dismissed = others.any(|(settled, _)| *settled >= newest.epoch);
        if !is_dismissed || is_on(Mutation::DismissesNothing) {
            return Some(newest);
        }
        held.retain(|(_, record)| !is_newest(record));
    }
}

#[cfg(test)]
mod tests {
    use mds_types::{Body, Hlc, Version};

    use super::*;

    fn record(key: &'static str, hlc: u64, epoch: u64, value: Option<&'static str>) -> Record {
        Record {
            key: Bytes::from_static(key.as_bytes()),
            version: Version {
                hlc: Hlc(hlc),
                node: NodeId(1),
            },
            epoch: Epoch(epoch),
            expires_at_ms: None,
            body: value.map_or(Body::Tombstone, |value| {
                Body::Value(Bytes::from_static(value.as_bytes()))
            }),
        }
    }

    fn shown(pages: &[(&[Record], u64)]) -> Vec<(Bytes, u64)> {
        let page = |(records, settled): &(&[Record], u64)| ReplicaPage {
            records: records.to_vec(),
            more: false,
            settled: Epoch(*settled),
        };
        let now = Now {
            mono_ns: 0,
            wall_us: 0,
        };
        match merge_pages(pages.iter().map(page).collect(), 10, now) {
            Outcome::Page { records, next } => {
                assert_eq!(next, None);
                let seen = |record: Record| (record.key, record.version.hlc.0);
                records.into_iter().map(seen).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    /// The first replica's page was read before it got the tombstone, the other's after it had collected it.
    #[test]
    fn a_value_does_not_rise_between_two_pages_because_its_tombstone_was_collected() {
        let old = [record("k", 5, 2, Some("old"))];
        assert_eq!(shown(&[(&old, 1), (&[], 3)]), []);
        assert_eq!(shown(&[(&[], 3), (&old, 1)]), []);
        let k = Bytes::from_static(b"k");
        assert_eq!(
            shown(&[(&old, 1), (&[], 1)]),
            [(k.clone(), 5)],
            "not settled"
        );
        let newer = [record("k", 6, 3, Some("newer"))];
        assert_eq!(shown(&[(&old, 1), (&newer, 3)]), [(k.clone(), 6)]);
        let zombie = [record("k", 9, 2, Some("zombie"))];
        assert_eq!(shown(&[(&zombie, 1), (&newer, 3)]), [(k, 6)]);
        let deleted = [record("k", 7, 4, None)];
        assert_eq!(shown(&[(&old, 1), (&deleted, 3)]), []);
    }
}
