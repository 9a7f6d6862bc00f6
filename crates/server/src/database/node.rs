//! The running node as the database behind the HTTP front-end.

use std::sync::Arc;
use std::time::Duration;

use mds_cluster::control::{AdminError as ControlError, AdminReply, AdminRequest};
use mds_cluster::state::Blocker;
use mds_cluster::{ClusterView, MemberStage, RaftRole, RingRequest, Standing, TransitionView};
use mds_node::api::{Outcome, Request, RequestError};
use mds_node::core::{Copying, CoreStats, LatencyHistogram, Outcomes};
use mds_node::epoch_set::EpochSet;
use mds_node::shell::NodeHandle;
use mds_storage::store::StoreStats;
use mds_types::{Epoch, PartitionId, RequestId};

use super::blockers::{BlockedSince, now_ms};
use super::epoch_samples::{ledger_samples, sync_samples, transition_samples};
use super::epochs::{self, EpochTimes, EpochsReport};
use super::{AdminError, Answer, Database, Init, PartitionDigest, Reading, Sample};

/// How long `init` waits until gossip has found as many nodes as it is to form the ring of.
const GATHER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long `init`, once the cluster is born, waits for this node to serve.
const SERVING_TIMEOUT: Duration = Duration::from_secs(5);

/// A running node.
pub struct RunningNode {
    handle: NodeHandle,
    blocked_since: BlockedSince,
    epoch_times: EpochTimes,
}

impl RunningNode {
    /// The node behind this handle. Needs a runtime, on which the node is followed as long as it runs.
    pub fn new(handle: NodeHandle) -> RunningNode {
        let blocked_since = BlockedSince::default();
        drop(tokio::spawn(blocked_since.clone().follow(handle.clone())));
        let epoch_times = EpochTimes::default();
        drop(tokio::spawn(epoch_times.clone().follow(handle.clone())));
        RunningNode {
            handle,
            blocked_since,
            epoch_times,
        }
    }
}

impl Database for RunningNode {
    fn request(&self, request: Request) -> Answer<'_, Result<Outcome, RequestError>> {
        Box::pin(self.handle.request(request))
    }

    fn view(&self) -> Arc<ClusterView> {
        self.handle.view()
    }

    fn hindrance(&self) -> Option<String> {
        let opening = || "the store is being opened".to_owned();
        let is_open = self.handle.stats().store.is_some();
        let stopped = self.handle.stopped();
        let hindrance = stopped.or_else(|| self.handle.hindrance());
        hindrance.or_else(|| (!is_open).then(opening))
    }

    fn init(&self, init: Init) -> Answer<'_, Result<(), AdminError>> {
        Box::pin(async move {
            let gathered = gather(self.handle.clone(), init.nodes);
            // Too few in time: the control part refuses, and says whom it sees.
            let _ = tokio::time::timeout(GATHER_TIMEOUT, gathered).await;
            let request = AdminRequest::Init {
                config: init.config,
                expected_nodes: init.nodes as usize,
            };
            match self.handle.admin(request).await {
                Some(Ok(_)) => {
                    // Born is born; that this node serves at once is only a courtesy.
                    let serving = until_serving(self.handle.clone());
                    let _ = tokio::time::timeout(SERVING_TIMEOUT, serving).await;
                    Ok(())
                }
                Some(Err(error)) => Err(admin_error(&error)),
                None => Err(AdminError::Unavailable(
                    "this node is shutting down".to_owned(),
                )),
            }
        })
    }

    fn change_ring(
        &self,
        request: RequestId,
        ask: RingRequest,
    ) -> Answer<'_, Result<TransitionView, AdminError>> {
        Box::pin(async move {
            let answer = self.handle.admin(AdminRequest::Ring { request, ask }).await;
            match answer {
                Some(Ok(AdminReply::Accepted(view) | AdminReply::Status(view))) => Ok(view),
                // Not an answer to this request: how the rings stand here is all there is to say.
                Some(Ok(AdminReply::Born { .. })) => Ok(self.view().transition.clone()),
                Some(Err(error)) => Err(admin_error(&error)),
                None => Err(AdminError::Unavailable(
                    "this node is shutting down, or too many administration requests wait"
                        .to_owned(),
                )),
            }
        })
    }

    fn blocked_since_ms(&self, blocker: &Blocker) -> Option<u64> {
        self.blocked_since.of(blocker)
    }

    fn epochs(&self, limit: usize) -> Option<EpochsReport> {
        let ledger = self.handle.ledger()?;
        let (epoch, runs) = (self.handle.view().epoch, self.handle.runs());
        let report = epochs::report(&ledger, epoch, &runs, &self.epoch_times, now_ms(), limit);
        Some(report.waiting_for(self.handle.sync().blocked))
    }

    fn epoch_set(
        &self,
        partition: PartitionId,
        epoch: Epoch,
    ) -> Answer<'_, Result<EpochSet, AdminError>> {
        let handle = self.handle.clone();
        Box::pin(async move {
            let read = move || handle.epoch_set(partition, epoch);
            match tokio::task::spawn_blocking(read).await {
                Ok(set) => set.map_err(AdminError::Unavailable),
                Err(error) => Err(AdminError::Unavailable(error.to_string())),
            }
        })
    }

    fn copying(&self) -> Copying {
        self.handle.sync().copying
    }

    fn digest(&self) -> Answer<'_, Result<Vec<PartitionDigest>, AdminError>> {
        let handle = self.handle.clone();
        Box::pin(async move {
            let read = tokio::task::spawn_blocking(move || handle.digests()).await;
            let digests = match read {
                Ok(Ok(digests)) => digests,
                Ok(Err(reason)) => return Err(AdminError::Unavailable(reason)),
                Err(error) => return Err(AdminError::Unavailable(error.to_string())),
            };
            let digests = digests.into_iter().map(|digest| PartitionDigest {
                partition: digest.partition,
                records: digest.records,
                tombstones: digest.tombstones,
                digest: format!("{:032x}", digest.hash),
            });
            Ok(digests.collect())
        })
    }

    fn samples(&self) -> Vec<Sample> {
        let stats = self.handle.stats();
        let mut samples = core_samples(&stats.core);
        if let Some(store) = &stats.store {
            samples.extend(store_samples(store));
        }
        let view = self.handle.view();
        samples.extend(sync_samples(&self.handle.sync()));
        if let Some(report) = self.epochs(0) {
            samples.extend(ledger_samples(&report, &view, now_ms()));
        }
        samples.extend(transition_samples(&view));
        samples.extend(view_samples(&view));
        samples
    }
}

/// Waits until this node knows of so many nodes, itself included.
async fn gather(mut handle: NodeHandle, nodes: u32) {
    loop {
        let view = handle.view();
        let alive = view.peers.values().filter(|peer| peer.alive).count();
        if view.standing != Standing::Unborn || alive + 1 >= nodes as usize {
            return;
        }
        if !handle.view_changed().await {
            return;
        }
    }
}

/// Pause between two looks at whether the store is open.
const OPEN_POLL: Duration = Duration::from_millis(10);

/// Waits until this node serves.
async fn until_serving(mut handle: NodeHandle) {
    while !matches!(handle.view().standing, Standing::Active | Standing::Waiting) {
        if !handle.view_changed().await {
            return;
        }
    }
    while handle.stats().store.is_none() {
        tokio::time::sleep(OPEN_POLL).await;
    }
}

fn admin_error(error: &ControlError) -> AdminError {
    let words = error.to_string();
    match error {
        ControlError::AlreadyFormed(_)
        | ControlError::ClusterInReach { .. }
        | ControlError::NoCluster
        | ControlError::Refused(_) => AdminError::Conflict(words),
        ControlError::Invalid(_) => AdminError::BadRequest(words),
        ControlError::TooFewNodes { .. }
        | ControlError::StillForming(_)
        | ControlError::Stopped(_)
        | ControlError::NotYet(_)
        | ControlError::Busy => AdminError::Unavailable(words),
        ControlError::NoLeader => AdminError::Uncertain(words),
    }
}

fn core_samples(core: &CoreStats) -> Vec<Sample> {
    let operations = [
        ("get", &core.gets),
        ("put", &core.puts),
        ("delete", &core.deletes),
        ("scan", &core.scans),
    ];
    let mut samples = Vec::new();
    for (operation, outcomes) in operations {
        samples.extend(outcome_samples(operation, outcomes));
    }
    for (operation, outcomes) in operations {
        samples.push(latency_sample(operation, &outcomes.latency));
    }
    let counter = Sample::counter;
    let gauge = |name, help, value: u64| Sample::gauge(name, help, value as f64);
    samples.extend([
        gauge(
            "pending_requests",
            "Requests being coordinated now.",
            core.pending,
        ),
        counter(
            "replica_writes",
            "Records stored on behalf of coordinators.",
            core.replica_puts,
        ),
        counter(
            "replica_reads",
            "Reads answered on behalf of coordinators.",
            core.replica_gets,
        ),
        counter(
            "replica_refusals",
            "Requests refused as a replica.",
            core.replica_refusals,
        ),
        counter(
            "hedged_reads",
            "Reads that asked one replica more.",
            core.hedges,
        ),
        counter(
            "read_disagreements",
            "Reads whose replicas disagreed.",
            core.disagreements,
        ),
        counter(
            "read_repairs",
            "Records sent to replicas that were behind.",
            core.repairs,
        ),
        counter(
            "hints_stored",
            "Writes kept for unreachable replicas.",
            core.hints_stored,
        ),
        counter(
            "hints_dropped",
            "Hints there was no room for.",
            core.hints_dropped,
        ),
        counter(
            "hints_obsolete",
            "Hints whose replica has left the ring.",
            core.hints_obsolete,
        ),
        counter(
            "hints_delivered",
            "Hints acknowledged by their replica.",
            core.hints_delivered,
        ),
        gauge(
            "hints_pending",
            "Hints waiting on disk now.",
            core.hints_pending,
        ),
        counter(
            "scrub_passes",
            "Times that all data here was read and compared with the other replicas.",
            core.scrub.passes,
        ),
        counter(
            "scrub_rows",
            "Records and index rows read for that.",
            core.scrub.looked_at,
        ),
        counter(
            "scrub_bytes",
            "Bytes sent and received for it.",
            core.scrub.bytes,
        ),
        counter(
            "scrub_restored",
            "Lost records brought back from other replicas.",
            core.scrub.restored + core.scrub.rebuilt,
        ),
        counter(
            "scrub_hashes_rebuilt",
            "Epochs of partitions whose hashes were not those of their rows.",
            core.scrub.hashes_rebuilt,
        ),
        counter(
            "scrub_unresolved",
            "Findings that need a person: damaged bytes, records that nobody else has, or no majority.",
            core.scrub.damaged
                + core.scrub.unfound
                + core.scrub.unmatched
                + core.scrub.undecided,
        ),
        counter(
            "clock_skew_refusals",
            "Stamps refused as too far in the future: some clock is wrong.",
            core.clock_skew_refusals,
        ),
        counter(
            "peer_replies_dropped",
            "Replies without a way back.",
            core.replies_dropped,
        ),
        gauge(
            "store_backlog",
            "Merges handed to the store and not done yet.",
            core.store_backlog,
        ),
    ]);
    samples
}

fn outcome_samples(operation: &'static str, outcomes: &Outcomes) -> Vec<Sample> {
    let counts = [
        ("ok", outcomes.ok),
        ("refused", outcomes.refused),
        ("unavailable", outcomes.unavailable),
        ("overloaded", outcomes.overloaded),
        ("not_ready", outcomes.not_ready),
        ("uncertain", outcomes.uncertain),
    ];
    let samples = counts.map(|(outcome, count)| {
        Sample::counter(
            "requests",
            "Requests coordinated, by how they ended.",
            count,
        )
        .with("operation", operation)
        .with("outcome", outcome)
    });
    samples.into()
}

fn latency_sample(operation: &'static str, latency: &LatencyHistogram) -> Sample {
    let seconds = |us: u64| us as f64 / 1e6;
    let buckets = latency.buckets.iter().enumerate().map(|(index, &count)| {
        let bound = LatencyHistogram::bound_us(index).map_or(f64::INFINITY, seconds);
        (bound, count)
    });
    Sample {
        name: "request_duration_seconds",
        help: "From request to answer, successes only.",
        labels: vec![("operation", operation.to_owned())],
        reading: Reading::Histogram {
            buckets: buckets.collect(),
            sum: seconds(latency.sum_us),
        },
    }
}

fn store_samples(store: &StoreStats) -> Vec<Sample> {
    let merges = [
        ("applied", store.applied),
        ("superseded", store.superseded),
        ("same", store.same),
        ("epoch_closed", store.epoch_closed),
        ("settled", store.settled),
        ("not_here", store.not_here),
    ];
    let merges = merges.map(|(result, count)| {
        Sample::counter("store_merges", "Records merged, by what came of it.", count)
            .with("result", result)
    });
    let counter = Sample::counter;
    let gauge = |name, help, value: u64| Sample::gauge(name, help, value as f64);
    let mut samples = Vec::from(merges);
    samples.extend([
        counter(
            "store_rows_alone",
            "Superseded versions that left their row in the epoch index.",
            store.rows_alone,
        ),
        counter(
            "store_collected",
            "Dead records that were collected: tombstones of settled epochs, and expired values.",
            store.collected,
        ),
        counter(
            "store_cache_hits",
            "Lookups of single keys that were in no table, and in the cache of what the engine holds.",
            store.cache_hits,
        ),
        counter(
            "store_engine_gets",
            "Lookups of single keys that asked the engine.",
            store.engine_gets,
        ),
        gauge(
            "store_cache_bytes",
            "Bytes of the engine's records in memory, roughly.",
            store.cache_bytes,
        ),
        gauge(
            "store_index_bytes",
            "Bytes of bucket hashes in memory, roughly.",
            store.index_bytes,
        ),
        counter(
            "store_log_bytes",
            "Bytes appended to the log.",
            store.log_bytes,
        ),
        counter("store_log_syncs", "Syncs of the log.", store.syncs),
        counter(
            "store_flushes",
            "Segments flushed to the engine.",
            store.flushes,
        ),
        counter(
            "store_epochs_dropped",
            "Epochs whose index was dropped unverified, as there was too much of it.",
            store.epochs_dropped,
        ),
        gauge(
            "store_table_records",
            "Records not yet in the engine.",
            store.table_records,
        ),
        gauge(
            "store_table_bytes",
            "Bytes of records not yet in the engine.",
            store.table_bytes,
        ),
        gauge(
            "store_frozen_tables",
            "Tables waiting to be flushed.",
            store.frozen_tables,
        ),
        gauge(
            "store_run_files",
            "Files of the epoch index.",
            store.run_files,
        ),
        gauge(
            "store_run_bytes",
            "Bytes of the epoch index.",
            store.run_bytes,
        ),
        gauge(
            "store_engine_bytes",
            "Bytes of the engine on disk, roughly.",
            store.engine_bytes,
        ),
        gauge(
            "store_poisoned",
            "1 if the store stopped after a failure.",
            store.poisoned.into(),
        ),
    ]);
    samples
}

fn view_samples(view: &ClusterView) -> Vec<Sample> {
    let gauge = |name, help, value: u64| Sample::gauge(name, help, value as f64);
    let staged = |stage| {
        view.members
            .values()
            .filter(|member| member.stage == stage)
            .count()
    };
    let serving = matches!(view.standing, Standing::Active | Standing::Waiting);
    let members = "Members of the cluster, by stage.";
    vec![
        gauge(
            "ready",
            "1 if this node serves as it should.",
            serving.into(),
        ),
        gauge("members", members, staged(MemberStage::Active) as u64).with("stage", "active"),
        gauge("members", members, staged(MemberStage::Waiting) as u64).with("stage", "waiting"),
        gauge(
            "peers_alive",
            "Other nodes that gossip holds for alive.",
            view.peers.values().filter(|peer| peer.alive).count() as u64,
        ),
        gauge("epoch", "The epoch.", view.epoch.0),
        gauge(
            "ring_version",
            "Version of the ring.",
            view.topology.version.0,
        ),
        gauge("raft_term", "Raft's term.", view.raft.term),
        gauge(
            "raft_applied",
            "Index of the last applied entry.",
            view.raft.applied,
        ),
        gauge(
            "raft_leader",
            "1 if this node leads Raft.",
            (view.raft.role == RaftRole::Leader).into(),
        ),
    ]
}
