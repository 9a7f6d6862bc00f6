//! One look at one `MyDataStore`, one decision, one action, and a status that says so.
//!
//! The order matters for crashes: children first, then the status (which remembers that there is a cluster *before* one could be
//! given birth to a second time), then the one action. Nothing is kept between two rounds; a crash anywhere is followed
//! by a round that looks again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod as KubePod};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
    Preconditions,
};
use kube::{Client, Resource, ResourceExt};
use serde_json::{Value, json};

use crate::children::{self, HTTP_PORT};
use crate::crd::{Condition, MemberStatus, MyDataStore, MyDataStoreStatus, Retention};
use crate::database::{Database, Report};
use crate::decide::{self, Action, Change, Decision, Observed, Pod, Quorums, Wanted};

/// The manager of the fields that the operator sets.
pub const MANAGER: &str = "mds-operator";

/// While the resource has it, its volumes can still be seen to.
const FINALIZER: &str = "mydatastore.dev/volumes";

/// How soon to look again when something is being done or waited for.
const SOON: Duration = Duration::from_secs(1);
/// How soon to look again when all is well.
const LATER: Duration = Duration::from_secs(10);

/// Why a round ended early. The next one begins anew.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kubernetes refused or did not answer.
    #[error("Kubernetes: {0}")]
    Kube(#[from] kube::Error),
    /// The resource has no namespace: it cannot be one that Kubernetes knows.
    #[error("the resource has no namespace")]
    NoNamespace,
}

/// What happens to a resource.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Round {
    /// What was decided, in words; empty if there was nothing to do.
    pub message: String,
    /// One word for it.
    pub reason: &'static str,
    /// Something went wrong.
    pub failed: bool,
    /// When to look again.
    pub again: Duration,
}

/// What the operator needs for its rounds.
#[derive(Clone)]
pub struct Context<D> {
    /// Kubernetes.
    pub client: Client,
    /// The database.
    pub database: D,
}

/// What was seen, with what only the status wants to know.
struct Seen {
    observed: Observed,
    /// `host:port` of the best informed node.
    address: Option<String>,
    epoch: u64,
    /// Of pods and volumes, by name: what is deleted has to be what was looked at.
    uids: BTreeMap<String, String>,
}

impl<D: Database> Context<D> {
    /// One round.
    ///
    /// # Errors
    /// [`Error`]; nothing is half done that the next round would not finish.
    pub async fn round(&self, store: &MyDataStore) -> Result<Round, Error> {
        let namespace = store.namespace().ok_or(Error::NoNamespace)?;
        if store.meta().deletion_timestamp.is_some() {
            return self.delete(store, &namespace).await;
        }
        if !store.finalizers().iter().any(|one| one == FINALIZER) {
            let mut finalizers = store.finalizers().to_vec();
            finalizers.push(FINALIZER.to_owned());
            self.set_finalizers(store, &namespace, &finalizers).await?;
        }
        let seen = self.look(store, &namespace).await?;
        let replicas = seen.observed.replicas;
        let mut template_pending = false;
        if !store.spec.paused {
            match self.apply_children(store, &namespace, replicas).await? {
                Ok(is_pending) => template_pending = is_pending,
                Err(invalid) => {
                    let round = Round {
                        message: invalid.to_string(),
                        reason: "Invalid",
                        failed: true,
                        again: LATER,
                    };
                    self.tell(store, &namespace, &seen, &round).await?;
                    return Ok(round);
                }
            }
        }
        let decision = match template_pending {
            true => Decision::Wait("waiting for the StatefulSet to be taken note of".to_owned()),
            false => decide::decide(&seen.observed),
        };
        let mut round = round_of(&decision);
        self.tell(store, &namespace, &seen, &round).await?;
        if let Decision::Act(action, _) = &decision
            && let Err(refusal) = self.act(store, &namespace, &seen, action).await?
        {
            round.message = format!("{}; refused: {refusal}", round.message);
            round.failed = true;
            self.tell(store, &namespace, &seen, &round).await?;
        }
        Ok(round)
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn any(&self, namespace: &str, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, resource)
    }

    async fn look(&self, store: &MyDataStore, namespace: &str) -> Result<Seen, Error> {
        let name = store.name_any();
        let own = ListParams::default().labels(&children::selector_text(&name));
        let stateful_set: Option<StatefulSet> = self.api(namespace).get_opt(&name).await?;
        let pods = self.api::<KubePod>(namespace).list(&own).await?;
        let volumes = self
            .api::<PersistentVolumeClaim>(namespace)
            .list(&own)
            .await?;

        let of_pods = pods.items.iter().map(|pod| &pod.metadata);
        let of_volumes = volumes.items.iter().map(|volume| &volume.metadata);
        let uids = of_pods.chain(of_volumes);
        let uids = uids.filter_map(|of| Some((of.name.clone()?, of.uid.clone()?)));
        let uids: BTreeMap<String, String> = uids.collect();
        let asked = pods.items.iter().filter_map(|pod| {
            let ordinal = ordinal(&name, &pod.name_any())?;
            let ip = pod.status.as_ref()?.pod_ip.clone()?;
            let address = match ip.contains(':') {
                true => format!("[{ip}]:{HTTP_PORT}"),
                false => format!("{ip}:{HTTP_PORT}"),
            };
            Some(async move {
                let report = self.database.report(address.clone()).await?;
                Some((ordinal, (address, report)))
            })
        });
        let reports: BTreeMap<u32, (String, Report)> =
            join_all(asked).await.into_iter().flatten().collect();
        let born = reports.values().filter_map(|(address, report)| {
            let cluster = report.cluster()?;
            Some((report.rank(), address, report, cluster))
        });
        let best = born.max_by_key(|(rank, ..)| *rank);

        let status = stateful_set.as_ref().and_then(|set| set.status.clone());
        let revision = status.and_then(|status| status.update_revision);
        let pods = pods.items.iter().filter_map(|pod| {
            let ordinal = ordinal(&name, &pod.name_any())?;
            let report = reports.get(&ordinal).map(|(_, report)| report);
            Some((ordinal, pod_seen(pod, report, revision.as_deref())))
        });
        let volumes = volumes.items.iter().filter_map(|volume| {
            let name_of_pod = volume.name_any().strip_prefix("data-")?.to_owned();
            ordinal(&name, &name_of_pod)
        });
        let observed = Observed {
            wanted: wanted(store),
            was_born: store
                .status
                .as_ref()
                .is_some_and(|status| status.cluster_id.is_some()),
            replicas: stateful_set.as_ref().map(|set| {
                set.spec
                    .as_ref()
                    .and_then(|spec| spec.replicas)
                    .unwrap_or(1) as u32
            }),
            pods: pods.collect(),
            volumes: volumes.collect::<BTreeSet<u32>>(),
            cluster: best.as_ref().map(|(.., cluster)| cluster.clone()),
            name,
        };
        let someone = || reports.values().next().map(|(address, _)| address.clone());
        Ok(Seen {
            address: best
                .as_ref()
                .map(|(_, address, ..)| (*address).clone())
                .or_else(someone),
            epoch: best.as_ref().map_or(0, |(_, _, report, _)| report.epoch()),
            observed,
            uids,
        })
    }

    /// Applies all children; the StatefulSet as well, if there is to be one. Whether its controller has still to take note of
    /// what it says now: until then nobody knows which pods are made from the present template.
    async fn apply_children(
        &self,
        store: &MyDataStore,
        namespace: &str,
        replicas: Option<u32>,
    ) -> Result<Result<bool, children::Invalid>, Error> {
        // Whether the kind exists is asked by applying: without it, that is answered 404.
        let all = match children::children(store, replicas, true) {
            Ok(all) => all,
            Err(invalid) => return Ok(Err(invalid)),
        };
        let mut is_pending = false;
        for child in all {
            let api = self.any(namespace, &child.resource);
            let params = PatchParams::apply(MANAGER).force();
            match api
                .patch(&child.name, &params, &Patch::Apply(&child.body))
                .await
            {
                Err(kube::Error::Api(status))
                    if status.code == 404 && child.resource.kind == "ServiceMonitor" => {}
                applied => {
                    let applied = applied?;
                    let observed = applied.data["status"]["observedGeneration"].as_i64();
                    is_pending |= child.resource.kind == "StatefulSet"
                        && observed != applied.metadata.generation;
                }
            }
        }
        Ok(Ok(is_pending))
    }

    /// Carries an action out. The inner error is a refusal in words.
    async fn act(
        &self,
        store: &MyDataStore,
        namespace: &str,
        seen: &Seen,
        action: &Action,
    ) -> Result<Result<(), String>, Error> {
        let name = store.name_any();
        match action {
            Action::SetReplicas(replicas) => {
                let applied = self
                    .apply_children(store, namespace, Some(*replicas))
                    .await?;
                return Ok(applied.map(drop).map_err(|invalid| invalid.to_string()));
            }
            Action::RestartPod(ordinal) => {
                let pods = self.api::<KubePod>(namespace);
                let pod = format!("{name}-{ordinal}");
                gone(pods.delete(&pod, &only(seen.uids.get(&pod))).await)?;
            }
            Action::DeleteVolume(ordinal) => {
                let volumes = self.api::<PersistentVolumeClaim>(namespace);
                let volume = format!("data-{name}-{ordinal}");
                gone(volumes.delete(&volume, &only(seen.uids.get(&volume))).await)?;
            }
            Action::Init => {
                let spec = &store.spec;
                let body = json!({
                    "nodes": spec.size, "n": spec.n, "r": spec.read_quorum(), "w": spec.write_quorum(),
                    "partition_count": spec.partition_count,
                });
                return Ok(self.post(seen, "/v1/init", body).await);
            }
            Action::Ring(change) => {
                let Some(cluster) = &seen.observed.cluster else {
                    return Ok(Err("no node answers".to_owned()));
                };
                let mut body = change_body(change);
                // An abort or exclusion is about the change under way, and is named by it.
                if !matches!(change, Change::Abort | Change::Exclude(_)) {
                    body["request"] = json!(decide::request_id(cluster, change));
                }
                return Ok(self.post(seen, "/v1/transition", body).await);
            }
        }
        Ok(Ok(()))
    }

    async fn post(&self, seen: &Seen, path: &'static str, body: Value) -> Result<(), String> {
        let address = seen.address.clone().ok_or("no node answers")?;
        self.database.post(address, path, body).await
    }

    /// Writes the status, if it has changed.
    async fn tell(
        &self,
        store: &MyDataStore,
        namespace: &str,
        seen: &Seen,
        round: &Round,
    ) -> Result<(), Error> {
        let status = status_of(store, seen, round);
        if store.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let body = json!({
            "apiVersion": "mydatastore.dev/v1alpha1", "kind": "MyDataStore",
            "metadata": {"name": store.name_any()}, "status": status,
        });
        let params = PatchParams::apply(MANAGER).force();
        let api = self.api::<MyDataStore>(namespace);
        api.patch_status(&store.name_any(), &params, &Patch::Apply(&body))
            .await?;
        Ok(())
    }

    async fn set_finalizers(
        &self,
        store: &MyDataStore,
        namespace: &str,
        finalizers: &[String],
    ) -> Result<(), Error> {
        // The version makes sure that nobody else's finalizer is lost.
        let body = json!({"metadata": {
            "finalizers": finalizers, "resourceVersion": store.resource_version(),
        }});
        let api = self.api::<MyDataStore>(namespace);
        api.patch(
            &store.name_any(),
            &PatchParams::default(),
            &Patch::Merge(&body),
        )
        .await?;
        Ok(())
    }

    /// The resource is being deleted: its children go by ownership; its volumes stay unless told otherwise.
    async fn delete(&self, store: &MyDataStore, namespace: &str) -> Result<Round, Error> {
        let name = store.name_any();
        let stays = store.spec.volume_retention.when_deleted == Retention::Retain;
        if !stays {
            let own = ListParams::default().labels(&children::selector_text(&name));
            let volumes = self.api::<PersistentVolumeClaim>(namespace);
            for volume in volumes.list(&own).await? {
                let this = only(volume.metadata.uid.as_ref());
                gone(volumes.delete(&volume.name_any(), &this).await)?;
            }
        }
        if store.finalizers().iter().any(|one| one == FINALIZER) {
            let mut finalizers = store.finalizers().to_vec();
            finalizers.retain(|one| one != FINALIZER);
            self.set_finalizers(store, namespace, &finalizers).await?;
        }
        let message = match stays {
            true => "deleted; the volumes stay",
            false => "deleted, with its volumes",
        };
        Ok(Round {
            message: message.to_owned(),
            reason: "Deleted",
            failed: false,
            again: LATER,
        })
    }

    /// Says in the resource's events what happens. That an event cannot be written is no reason to stop.
    pub async fn event(&self, store: &MyDataStore, round: &Round, now: &str) {
        let Some(namespace) = store.namespace() else {
            return;
        };
        let body = json!({
            "metadata": {"generateName": format!("{}-", store.name_any()), "namespace": namespace},
            "involvedObject": {
                "apiVersion": "mydatastore.dev/v1alpha1", "kind": "MyDataStore", "name": store.name_any(),
                "namespace": namespace, "uid": store.uid(), "resourceVersion": store.resource_version(),
            },
            "type": if round.failed { "Warning" } else { "Normal" },
            "reason": round.reason, "message": round.message, "source": {"component": MANAGER},
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        });
        let Ok(event) = serde_json::from_value::<k8s_openapi::api::core::v1::Event>(body) else {
            return;
        };
        let api = self.api::<k8s_openapi::api::core::v1::Event>(&namespace);
        if let Err(error) = api.create(&PostParams::default(), &event).await {
            tracing::warn!(%error, "an event could not be written");
        }
    }
}

/// Deletes this object only, and not another one that has its name by now.
fn only(uid: Option<&String>) -> DeleteParams {
    DeleteParams {
        preconditions: uid.map(|uid| Preconditions {
            uid: Some(uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    }
}

/// What is not there need not be deleted.
fn gone<T>(deleted: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match deleted {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        deleted => deleted.map(drop),
    }
}

/// The number in a pod's name.
fn ordinal(name: &str, pod: &str) -> Option<u32> {
    pod.strip_prefix(name)?.strip_prefix('-')?.parse().ok()
}

fn wanted(store: &MyDataStore) -> Wanted {
    let spec = &store.spec;
    Wanted {
        size: spec.size,
        quorums: Quorums {
            n: spec.n,
            r: spec.read_quorum(),
            w: spec.write_quorum(),
        },
        partition_count: spec.partition_count,
        paused: spec.paused,
        delete_scaled_volumes: spec.volume_retention.when_scaled == Retention::Delete,
    }
}

fn pod_seen(pod: &KubePod, report: Option<&Report>, revision: Option<&str>) -> Pod {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    let made_from = pod
        .labels()
        .get("controller-revision-hash")
        .map(String::as_str);
    Pod {
        ready: conditions.any(|one| one.type_ == "Ready" && one.status == "True"),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        up_to_date: revision.is_none() || made_from == revision,
        node: report.map(Report::node),
    }
}

fn change_body(change: &Change) -> Value {
    match change {
        Change::Join(nodes) => json!({"action": "join", "nodes": nodes}),
        Change::Leave(nodes) => json!({"action": "leave", "nodes": nodes}),
        Change::Replace { dead, with } => {
            json!({"action": "replace", "nodes": [dead], "with": with})
        }
        Change::Remove(node) => json!({"action": "remove", "nodes": [node]}),
        Change::Quorums(Quorums { n, r, w }) => {
            json!({"action": "quorums", "n": n, "r": r, "w": w})
        }
        Change::Abort => json!({"action": "abort"}),
        Change::Exclude(node) => json!({"action": "exclude", "nodes": [node]}),
    }
}

fn round_of(decision: &Decision) -> Round {
    let (message, reason, again) = match decision {
        Decision::Done => (String::new(), "Done", LATER),
        Decision::Wait(why) => (why.clone(), "Waiting", SOON),
        Decision::Act(action, why) => {
            let reason = match action {
                Action::SetReplicas(_) => "Pods",
                Action::Init => "Birth",
                Action::Ring(_) => "RingChange",
                Action::RestartPod(_) => "Restart",
                Action::DeleteVolume(_) => "Volume",
            };
            (why.clone(), reason, SOON)
        }
    };
    Round {
        message,
        reason,
        failed: false,
        again,
    }
}

fn status_of(store: &MyDataStore, seen: &Seen, round: &Round) -> MyDataStoreStatus {
    let before = store.status.clone().unwrap_or_default();
    let observed = &seen.observed;
    let generation = store.meta().generation.unwrap_or(0);
    let cluster = observed.cluster.as_ref();
    let ready = observed
        .pods
        .values()
        .filter(|pod| pod.ready && !pod.terminating)
        .count() as u32;
    let members = cluster.map(|cluster| {
        let members = cluster.members.iter().map(|(id, member)| MemberStatus {
            name: member.name.clone(),
            id: id.clone(),
            stage: member.stage.to_string(),
            alive: member.alive,
        });
        members.collect::<Vec<MemberStatus>>()
    });
    let on_ring = cluster.map_or(before.ring_members, |cluster| {
        let members = cluster.members.values();
        members.filter(|member| member.stage.is_on_ring()).count() as u32
    });
    let nodes = || observed.pods.values().filter_map(|pod| pod.node.as_ref());
    let mut blocked_by: BTreeSet<String> = nodes()
        .flat_map(|node| node.verification_blocked_by.iter().cloned())
        .collect();
    if let Some(cluster) = cluster {
        let name = |id: &String| {
            cluster
                .members
                .get(id)
                .map_or(id.clone(), |one| one.name.clone())
        };
        blocked_by.extend(cluster.blocked_by.iter().map(name));
    }
    let is_done = round.reason == "Done";
    let now = k8s_openapi::jiff::Timestamp::now();
    let condition = |type_: &str, is_true: bool| {
        let status = if is_true { "True" } else { "False" }.to_owned();
        let earlier = before
            .conditions
            .iter()
            .find(|one| one.type_ == type_ && one.status == status);
        let time = earlier.map(|one| one.last_transition_time.clone());
        Condition {
            type_: type_.to_owned(),
            reason: round.reason.to_owned(),
            message: round.message.clone(),
            observed_generation: generation,
            last_transition_time: time.unwrap_or_else(|| format!("{now:.0}")),
            status,
        }
    };
    MyDataStoreStatus {
        observed_generation: generation,
        replicas: observed.pods.len() as u32,
        ready_replicas: ready,
        ring_members: on_ring,
        selector: children::selector_text(&observed.name),
        cluster_id: cluster
            .map(|cluster| cluster.id.clone())
            .or(before.cluster_id),
        topology_version: cluster.map_or(before.topology_version, |cluster| cluster.version),
        stage: cluster.map_or("unknown".to_owned(), |cluster| cluster.stage.clone()),
        epoch: seen.epoch.max(before.epoch),
        watermark_lag_epochs: nodes().map(|node| node.lag_epochs).max().unwrap_or(0),
        blocked_by: blocked_by.into_iter().collect(),
        message: round.message.clone(),
        members: members.unwrap_or(before.members),
        conditions: vec![
            condition(
                "Ready",
                cluster.is_some() && ready >= store.spec.n.min(store.spec.size),
            ),
            condition("Progressing", !is_done && !round.failed),
            condition("Degraded", round.failed),
        ],
    }
}
