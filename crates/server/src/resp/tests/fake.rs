//! A database of one map. Requests wait until the test has them answered, in any order.
//!
//! It behaves as the real one in what the front-end relies on: a write is stamped when it is
//! submitted and takes effect, newest stamp first, when it is answered.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use mds_cluster::{ClusterView, MemberStage, MemberView, PeerView, Standing};
use mds_node::api::{Now, Op, Outcome, Request, RequestError, Submit, Tag};
use mds_types::slot::partition_of;
use mds_types::{
    Body, ClusterConfig, ClusterId, Epoch, Hlc, IncarnationId, MemberInfo, NodeId, Record,
    Topology, TopologyMember, TopologyVersion, Version,
};

pub(super) struct FakeCore {
    pub(super) view: Arc<ClusterView>,
    pub(super) records: BTreeMap<Bytes, Record>,
    pub(super) waiting: VecDeque<(Tag, Request, Version)>,
    /// Every request ever submitted.
    pub(super) log: Vec<Request>,
    /// What the next requests come to instead.
    pub(super) failures: VecDeque<RequestError>,
    stamp: u64,
}

const PARTITIONS: u16 = 16;

fn member(index: u64) -> (NodeId, MemberInfo) {
    let info = MemberInfo {
        name: format!("node-{index}"),
        resp_addr: format!("127.0.0.1:710{index}"),
        zone: format!("zone-{index}"),
        weight: 100,
        ..MemberInfo::default()
    };
    (NodeId(index), info)
}

/// Three nodes, of which this is the first.
pub(super) fn view() -> ClusterView {
    let mut view = ClusterView::unborn(NodeId(1), member(1).1, 1);
    view.standing = Standing::Active;
    view.cluster = ClusterId(1);
    view.config = Some(ClusterConfig {
        partition_count: PARTITIONS,
        ..ClusterConfig::default()
    });
    view.epoch = Epoch(5);
    let mut topology = Topology {
        version: TopologyVersion(3),
        members: Vec::new(),
    };
    for (node, info) in (1..=3).map(member) {
        topology.members.push(TopologyMember {
            node,
            zone: info.zone.clone(),
            weight: info.weight,
        });
        let member = MemberView {
            incarnation: IncarnationId(u128::from(node.0)),
            boot: 1,
            boot_nonce: 1,
            info: info.clone(),
            stage: MemberStage::Active,
        };
        view.members.insert(node, member);
        let peer = PeerView {
            alive: true,
            boot: 1,
            cluster: ClusterId(1),
            info,
        };
        view.peers.insert(node, peer);
    }
    view.topology = Arc::new(topology);
    view
}

impl FakeCore {
    pub(super) fn new() -> FakeCore {
        FakeCore {
            view: Arc::new(view()),
            records: BTreeMap::new(),
            waiting: VecDeque::new(),
            log: Vec::new(),
            failures: VecDeque::new(),
            stamp: 0,
        }
    }

    /// Answers the `pick`th waiting request, counted modulo how many there are.
    pub(super) fn complete(
        &mut self,
        pick: usize,
        now: Now,
    ) -> Option<(Tag, Result<Outcome, RequestError>)> {
        let pick = pick % self.waiting.len().max(1);
        let (tag, request, version) = self.waiting.remove(pick)?;
        let result = match self.failures.pop_front() {
            Some(error) => Err(error),
            None => self.execute(request.op, version, now),
        };
        Some((tag, result))
    }

    fn execute(&mut self, op: Op, version: Version, now: Now) -> Result<Outcome, RequestError> {
        let now_ms = now.wall_ms();
        match op {
            Op::Get { key } => {
                let record = self.records.get(&key);
                let value = record
                    .and_then(|record| record.visible_value(now_ms))
                    .cloned();
                let expires_at_ms = record.and_then(|record| record.expires_at_ms);
                Ok(Outcome::Read {
                    version: record.map(|record| record.version),
                    expires_at_ms: expires_at_ms.filter(|_| value.is_some()),
                    value,
                })
            }
            Op::Put { key, .. } if key.is_empty() => Err(RequestError::BadRequest(
                "key is empty: it has to be 1 to 32768 bytes".into(),
            )),
            Op::Put {
                key,
                value,
                expires_at_ms,
            } => self.merge(key, version, expires_at_ms, Body::Value(value)),
            Op::Delete { key } => self.merge(key, version, None, Body::Tombstone),
            Op::Scan {
                partition,
                after,
                limit,
            } => {
                let mut page: Vec<Record> = self
                    .records
                    .values()
                    .filter(|record| partition_of(&record.key, PARTITIONS) == partition)
                    .filter(|record| after.as_ref().is_none_or(|after| record.key > *after))
                    .take(limit as usize + 1)
                    .cloned()
                    .collect();
                let more = page.len() > limit as usize;
                page.truncate(limit as usize);
                let last = page.last().map(|record| record.key.clone());
                page.retain(|record| record.visible_value(now_ms).is_some());
                Ok(Outcome::Page {
                    records: page,
                    next: last.filter(|_| more),
                })
            }
            Op::Count { partition } => {
                let live = self.records.values().filter(|record| {
                    partition_of(&record.key, PARTITIONS) == partition
                        && record.visible_value(now_ms).is_some()
                });
                Ok(Outcome::Count(live.count() as u64))
            }
        }
    }

    fn merge(
        &mut self,
        key: Bytes,
        version: Version,
        expires_at_ms: Option<u64>,
        body: Body,
    ) -> Result<Outcome, RequestError> {
        let record = Record {
            key: key.clone(),
            version,
            epoch: Epoch(5),
            expires_at_ms,
            body,
        };
        let merged = match self.records.remove(&key) {
            Some(present) => present.merge(record),
            None => record,
        };
        self.records.insert(key, merged);
        Ok(Outcome::Written { version, acked: 3 })
    }
}

impl Submit for FakeCore {
    fn submit(&mut self, _: Now, request: Request, tag: Tag) {
        self.stamp += 1;
        let version = Version {
            hlc: Hlc(self.stamp),
            node: NodeId(1),
        };
        self.log.push(request.clone());
        self.waiting.push_back((tag, request, version));
    }

    fn view(&self) -> &Arc<ClusterView> {
        &self.view
    }
}
