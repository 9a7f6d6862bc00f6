//! An ordered map in memory that stands for the database in tests of the front-end.
//!
//! It answers as a node would and can be told to fail. It records what it was asked, so that tests
//! see how a URL was understood.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use mds_cluster::state::Blocker;
use mds_cluster::{
    ClusterView, MemberStage, MemberView, PeerView, RequestFate, RingRequest, Standing,
    TransitionView,
};
use mds_node::api::{Op, Outcome, Request, RequestError};
use mds_node::core::Copying;
use mds_node::epoch_set::EpochSet;
use mds_types::slot::partition_of;
use mds_types::{
    Body, ClusterConfig, ClusterId, Epoch, Hlc, IncarnationId, MemberInfo, NodeId, PartitionId,
    Record, RequestId, RingStage, Topology, TopologyMember, TopologyVersion, Version,
};

use super::{AdminError, Answer, Database, EpochsReport, Init, PartitionDigest, Sample};

/// The stand-in.
pub(crate) struct FakeDatabase {
    state: Mutex<State>,
}

struct State {
    view: Arc<ClusterView>,
    records: BTreeMap<Bytes, Record>,
    writes: u64,
    asked: Vec<Request>,
    failures: VecDeque<RequestError>,
    hang: bool,
    open: bool,
    ring_asked: Vec<(RequestId, RingRequest)>,
    epochs: Option<EpochsReport>,
    epoch_set: Option<EpochSet>,
}

fn info(number: u64) -> MemberInfo {
    MemberInfo {
        name: format!("node-{number}"),
        peer_addr: format!("127.0.0.1:{}", 9100 + number),
        resp_addr: format!("127.0.0.1:{}", 7100 + number),
        http_addr: format!("127.0.0.1:{}", 8100 + number),
        zone: "default".to_owned(),
        weight: 100,
    }
}

/// Three members, all alive, seen from the first.
pub(crate) fn three_members() -> ClusterView {
    let mut view = ClusterView::unborn(NodeId(1), info(1), 1);
    view.standing = Standing::Active;
    view.cluster = ClusterId(7);
    view.config = Some(ClusterConfig {
        partition_count: 16,
        ..ClusterConfig::default()
    });
    let members = (1..=3).map(|number| TopologyMember {
        node: NodeId(number),
        zone: "default".to_owned(),
        weight: 100,
    });
    view.topology = Arc::new(Topology {
        version: TopologyVersion(1),
        members: members.collect(),
    });
    for number in 1..=3u64 {
        let member = MemberView {
            incarnation: IncarnationId(number.into()),
            boot: 1,
            boot_nonce: number,
            info: info(number),
            stage: MemberStage::Active,
        };
        view.members.insert(NodeId(number), member);
        if number > 1 {
            let peer = PeerView {
                alive: true,
                boot: 1,
                cluster: view.cluster,
                info: info(number),
            };
            view.peers.insert(NodeId(number), peer);
        }
    }
    view
}

impl FakeDatabase {
    pub(crate) fn new() -> Arc<FakeDatabase> {
        Arc::new(FakeDatabase {
            state: Mutex::new(State {
                view: Arc::new(three_members()),
                records: BTreeMap::new(),
                writes: 0,
                asked: Vec::new(),
                failures: VecDeque::new(),
                hang: false,
                open: true,
                ring_asked: Vec::new(),
                epochs: None,
                epoch_set: None,
            }),
        })
    }

    pub(crate) fn set_view(&self, view: ClusterView) {
        self.state.lock().unwrap().view = Arc::new(view);
    }

    /// The next request fails in this way.
    pub(crate) fn fail_next(&self, error: RequestError) {
        self.state.lock().unwrap().failures.push_back(error);
    }

    /// Requests from now on are never answered.
    pub(crate) fn hang(&self) {
        self.state.lock().unwrap().hang = true;
    }

    /// Opens or closes the store.
    pub(crate) fn set_open(&self, open: bool) {
        self.state.lock().unwrap().open = open;
    }

    /// What is told of epochs from now on.
    pub(crate) fn set_epochs(&self, report: EpochsReport) {
        self.state.lock().unwrap().epochs = Some(report);
    }

    /// What is told of any epoch of any partition from now on.
    pub(crate) fn set_epoch_set(&self, set: EpochSet) {
        self.state.lock().unwrap().epoch_set = Some(set);
    }

    /// The latest request.
    pub(crate) fn last_asked(&self) -> Request {
        self.state.lock().unwrap().asked.last().unwrap().clone()
    }

    /// All requests about the ring.
    pub(crate) fn ring_asked(&self) -> Vec<(RequestId, RingRequest)> {
        self.state.lock().unwrap().ring_asked.clone()
    }

    /// How many requests there were.
    pub(crate) fn asked(&self) -> usize {
        self.state.lock().unwrap().asked.len()
    }
}

impl State {
    fn partition_count(&self) -> u16 {
        self.view
            .config
            .as_ref()
            .map_or(1, |config| config.partition_count)
    }

    fn write(
        &mut self,
        request: &Request,
        key: &Bytes,
        body: Body,
        expiry: Option<u64>,
    ) -> Outcome {
        self.writes += 1;
        let stamped = Version {
            hlc: Hlc::from_physical_us(self.writes),
            node: NodeId(1),
        };
        let stamp = request.options.stamp;
        let version = stamp.map_or(stamped, |stamp| stamp.version);
        let record = Record {
            key: key.clone(),
            version,
            epoch: Epoch(1),
            expires_at_ms: expiry,
            body,
        };
        self.records.insert(key.clone(), record);
        Outcome::Written { version, acked: 2 }
    }

    fn answer(&mut self, request: &Request) -> Outcome {
        match &request.op {
            Op::Get { key } => {
                let record = self.records.get(key);
                Outcome::Read {
                    version: record.map(|record| record.version),
                    value: record.and_then(|record| record.value().cloned()),
                    expires_at_ms: record.and_then(|record| record.expires_at_ms),
                }
            }
            Op::Put {
                key,
                value,
                expires_at_ms,
            } => self.write(request, key, Body::Value(value.clone()), *expires_at_ms),
            Op::Delete { key } => self.write(request, key, Body::Tombstone, None),
            Op::Scan {
                partition,
                after,
                limit,
            } => {
                let count = self.partition_count();
                let mut live: Vec<Record> = self
                    .records
                    .values()
                    .filter(|record| record.value().is_some())
                    .filter(|record| partition_of(&record.key, count) == *partition)
                    .filter(|record| after.as_ref().is_none_or(|after| record.key > *after))
                    .cloned()
                    .collect();
                let more = live.len() > *limit as usize;
                live.truncate(*limit as usize);
                let next = live
                    .last()
                    .filter(|_| more)
                    .map(|record| record.key.clone());
                Outcome::Page {
                    records: live,
                    next,
                }
            }
            Op::Count { partition } => {
                let count = self.partition_count();
                let held = self.records.keys();
                Outcome::Count(
                    held.filter(|key| partition_of(key, count) == *partition)
                        .count() as u64,
                )
            }
        }
    }
}

impl Database for FakeDatabase {
    fn request(&self, request: Request) -> Answer<'_, Result<Outcome, RequestError>> {
        Box::pin(async move {
            let (answer, hang) = {
                let mut state = self.state.lock().unwrap();
                state.asked.push(request.clone());
                let failure = state.failures.pop_front();
                let answer = match failure {
                    Some(error) => Err(error),
                    None => Ok(state.answer(&request)),
                };
                (answer, state.hang)
            };
            if hang {
                std::future::pending::<()>().await;
            }
            answer
        })
    }

    fn view(&self) -> Arc<ClusterView> {
        Arc::clone(&self.state.lock().unwrap().view)
    }

    fn hindrance(&self) -> Option<String> {
        let open = self.state.lock().unwrap().open;
        (!open).then(|| "the store is being opened".to_owned())
    }

    fn init(&self, init: Init) -> Answer<'_, Result<(), AdminError>> {
        Box::pin(async move {
            if self.view().standing != Standing::Unborn {
                return Err(AdminError::Conflict("the cluster lives already".to_owned()));
            }
            let mut view = three_members();
            view.config = Some(init.config);
            self.set_view(view);
            Ok(())
        })
    }

    fn change_ring(
        &self,
        request: RequestId,
        ask: RingRequest,
    ) -> Answer<'_, Result<TransitionView, AdminError>> {
        Box::pin(async move {
            let mut state = self.state.lock().unwrap();
            state.ring_asked.push((request, ask));
            let mut view = state.view.transition.clone();
            view.stage = RingStage::Prepare;
            view.request = Some(request);
            view.requests.push((request, RequestFate::Running));
            Ok(view)
        })
    }

    fn blocked_since_ms(&self, _: &Blocker) -> Option<u64> {
        Some(1_000)
    }

    fn epochs(&self, limit: usize) -> Option<EpochsReport> {
        let mut report = self.state.lock().unwrap().epochs.clone()?;
        report.epochs.truncate(limit);
        Some(report)
    }

    fn epoch_set(&self, _: PartitionId, _: Epoch) -> Answer<'_, Result<EpochSet, AdminError>> {
        let set = self.state.lock().unwrap().epoch_set.clone();
        Box::pin(async move {
            set.ok_or_else(|| AdminError::Unavailable("the store is not open yet".to_owned()))
        })
    }

    fn copying(&self) -> Copying {
        Copying {
            partitions: 5,
            left: 3,
            ..Copying::default()
        }
    }

    fn digest(&self) -> Answer<'_, Result<Vec<PartitionDigest>, AdminError>> {
        Box::pin(async move {
            let state = self.state.lock().unwrap();
            let tombstones = state
                .records
                .values()
                .filter(|record| record.value().is_none());
            Ok(vec![PartitionDigest {
                partition: mds_types::PartitionId(0),
                records: state.records.len() as u64,
                tombstones: tombstones.count() as u64,
                digest: format!("{:032x}", 42),
            }])
        })
    }

    fn samples(&self) -> Vec<Sample> {
        let state = self.state.lock().unwrap();
        vec![
            Sample::counter("writes", "Writes so far.", state.writes),
            Sample::gauge("records", "Records held.", state.records.len() as f64),
        ]
    }
}
