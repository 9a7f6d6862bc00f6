//! Coordinating pages of a partition.
//!
//! R replicas are asked for the same page; per key the newest record wins. A replica's page ends
//! somewhere, and beyond that key nothing is known of it, so the merged page ends at the earliest
//! end. What a page shows of a key is what a read with the same R would have found at that moment; the
//! page as a whole is no snapshot, and nothing is repaired.
//!
//! Counting asks one replica only and is an estimate by nature.

use std::collections::BTreeMap;

use bytes::Bytes;
use mds_protocol::quorum::{Outcome as Quorum, ReadQuorum, ReplicaSet, check_quorum};
use mds_types::{ClusterConfig, NodeId, PartitionId, Record, TopologyVersion};

use super::replica::{PAGE_RECORDS_MAX, ReplicaRequest};
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
    pages: Vec<(Vec<Record>, bool)>,
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
        records: Vec<Record>,
        more: bool,
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
            op.pages.push((records, more));
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
        self.on_page_reply(now, id, from, status, Vec::new(), false);
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

/// Merges the replicas' pages of one stretch: the newest record per key, up to the first key beyond
/// which some replica has not said what it has.
fn merge_pages(pages: Vec<(Vec<Record>, bool)>, limit: usize, now: Now) -> Outcome {
    let ends = pages
        .iter()
        .filter(|(_, more)| *more)
        .filter_map(|(records, _)| records.last());
    let end = ends.map(|record| record.key.clone()).min();
    let mut newest: BTreeMap<Bytes, Record> = BTreeMap::new();
    for record in pages.into_iter().flat_map(|(records, _)| records) {
        if end.as_ref().is_some_and(|end| record.key > *end) {
            continue;
        }
        let merged = match newest.remove(&record.key) {
            Some(other) => record.merge(other),
            None => record,
        };
        newest.insert(merged.key.clone(), merged);
    }
    let is_cut = newest.len() > limit;
    let mut records: Vec<Record> = newest.into_values().take(limit).collect();
    let next = if is_cut {
        records.last().map(|record| record.key.clone())
    } else {
        end
    };
    records.retain(|record| record.visible_value(now.wall_ms()).is_some());
    Outcome::Page { records, next }
}
