//! What moves by itself around the operator: the StatefulSet's controller, pods, volumes, and the database, each a step at a time.
//!
//! A node is its volume: another volume is another node. The world refuses to be harmed: it panics when a pod or a volume goes whose
//! node is on the ring, when two nodes of the ring are made to be away at once, or when a ring of fewer than N is asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use mds_operator::crd::MyDataStore;
use mds_operator::database::{Database, Report};
use serde_json::{Value, json};

use crate::api_server::{ApiServer, Fault};

pub(crate) const NAME: &str = "shop";
const N: usize = 3;
/// A change of the ring takes so many steps.
const CHANGE_STEPS: u32 = 3;

#[derive(Clone, Default)]
struct Member {
    name: String,
    stage: &'static str,
}

struct Change {
    words: String,
    steps_left: u32,
    joining: BTreeSet<String>,
    leaving: BTreeSet<String>,
}

/// The database.
#[derive(Default)]
struct Ring {
    is_born: bool,
    births: u32,
    members: BTreeMap<String, Member>,
    version: u64,
    change: Option<Change>,
    requests: BTreeSet<String>,
}

/// A pod's process.
#[derive(Clone)]
struct Process {
    node: String,
    steps_until_up: u32,
}

/// What there is besides the API server.
#[derive(Default)]
pub(crate) struct Inner {
    ring: Ring,
    /// By the pod's uid.
    processes: BTreeMap<String, Process>,
    /// The nodes' directories, by the volume's uid.
    nodes: BTreeMap<String, String>,
    /// Address to pod uid.
    addresses: BTreeMap<String, String>,
}

/// All of it. A clone is the same world.
#[derive(Clone, Default)]
pub(crate) struct World {
    pub(crate) server: ApiServer,
    inner: Arc<Mutex<Inner>>,
}

impl World {
    /// With a resource that has just been made.
    pub(crate) fn new(spec: Value) -> World {
        let world = World::default();
        let store = json!({
            "apiVersion": "mydatastore.dev/v1alpha1", "kind": "MyDataStore",
            "metadata": {"namespace": "shops", "generation": 1}, "spec": spec,
        });
        world.server.objects().put("mydatastores", NAME, store);
        world
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// The resource; None once it is gone.
    pub(crate) fn store(&self) -> Option<MyDataStore> {
        let objects = self.server.objects();
        let store = objects.get("mydatastores", NAME)?;
        Some(serde_json::from_value(store.clone()).unwrap())
    }

    /// Changes the resource as a person would.
    pub(crate) fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut objects = self.server.objects();
        let mut store = objects.get("mydatastores", NAME).unwrap().clone();
        change(&mut store);
        let generation = store["metadata"]["generation"].as_u64().unwrap();
        store["metadata"]["generation"] = json!(generation + 1);
        objects.put("mydatastores", NAME, store);
    }

    /// A machine fails: the pod is gone, and its volume with it if that was local.
    pub(crate) fn lose(&self, ordinal: u32, with_volume: bool) {
        let mut objects = self.server.objects();
        objects.remove("pods", &format!("{NAME}-{ordinal}"));
        if with_volume {
            objects.remove("persistentvolumeclaims", &format!("data-{NAME}-{ordinal}"));
        }
    }

    /// Everything moves a step.
    pub(crate) fn step(&self) {
        self.see_to_deletes();
        self.stateful_set();
        self.processes();
        self.database();
        self.readiness();
    }

    /// What the operator has deleted since the last step has to have been nobody's.
    fn see_to_deletes(&self) {
        let mut objects = self.server.objects();
        let inner = self.inner();
        let is_ending = objects
            .get("mydatastores", NAME)
            .is_none_or(|store| !store["metadata"]["deletionTimestamp"].is_null());
        for ((plural, name), object) in std::mem::take(&mut objects.deleted) {
            let uid = object["metadata"]["uid"].as_str().unwrap();
            if plural == "persistentvolumeclaims" && !is_ending {
                let node = inner.nodes.get(uid);
                let on_ring = node.filter(|node| inner.ring.is_on_ring(node));
                assert_eq!(
                    on_ring, None,
                    "{name} was deleted, and its node is on the ring"
                );
            }
            if plural == "pods" && !is_ending {
                let away = inner.away(Some(uid));
                assert!(
                    away.is_empty(),
                    "{name} was deleted while {away:?} were away"
                );
            }
        }
    }

    fn stateful_set(&self) {
        let mut objects = self.server.objects();
        let mut inner = self.inner();
        let Some(mut set) = objects.get("statefulsets", NAME).cloned() else {
            let pods: Vec<String> = objects
                .of("pods")
                .map(|(name, _)| name.to_owned())
                .collect();
            pods.iter().for_each(|pod| objects.remove("pods", pod));
            return;
        };
        let revision = format!("{:x}", hash(&set["spec"]["template"]));
        let generation = set["metadata"]["generation"].clone();
        let status =
            json!({"observedGeneration": generation, "updateRevision": revision, "replicas": 0});
        if set["status"] != status {
            set["status"] = status;
            objects.put("statefulsets", NAME, set.clone());
        }
        let replicas = set["spec"]["replicas"].as_u64().unwrap() as u32;
        for ordinal in 0..replicas {
            let (pod, volume) = (
                format!("{NAME}-{ordinal}"),
                format!("data-{NAME}-{ordinal}"),
            );
            let labels = set["spec"]["template"]["metadata"]["labels"].clone();
            if objects.get("persistentvolumeclaims", &volume).is_none() {
                let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"labels": labels}});
                objects.put("persistentvolumeclaims", &volume, claim);
            }
            if objects.get("pods", &pod).is_some() {
                continue;
            }
            let claim = objects.get("persistentvolumeclaims", &volume).unwrap();
            let claim = claim["metadata"]["uid"].as_str().unwrap().to_owned();
            let mut labels = labels;
            labels["controller-revision-hash"] = json!(revision);
            let address = format!("10.0.0.{}", inner.addresses.len() + 1);
            let object = json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"labels": labels, "ownerReferences": [
                    {"uid": set["metadata"]["uid"], "apiVersion": "apps/v1", "kind": "StatefulSet", "name": NAME},
                ]},
                "spec": set["spec"]["template"]["spec"], "status": {"podIP": address},
            });
            objects.put("pods", &pod, object);
            let uid = objects.get("pods", &pod).unwrap()["metadata"]["uid"].clone();
            let uid = uid.as_str().unwrap().to_owned();
            let fresh = format!("node{:02}", inner.nodes.len() + 1);
            let node = inner.nodes.entry(claim).or_insert(fresh).clone();
            inner
                .addresses
                .insert(format!("{address}:8101"), uid.clone());
            inner.processes.insert(
                uid,
                Process {
                    node,
                    steps_until_up: 2,
                },
            );
        }
        let pods: Vec<String> = objects
            .of("pods")
            .map(|(name, _)| name.to_owned())
            .collect();
        for pod in pods {
            let ordinal: u32 = pod.rsplit('-').next().unwrap().parse().unwrap();
            if ordinal >= replicas {
                let uid = objects.get("pods", &pod).unwrap()["metadata"]["uid"].clone();
                let node = &inner.processes[uid.as_str().unwrap()].node;
                assert!(
                    !inner.ring.is_on_ring(node),
                    "{pod} was scaled away, and its node is on the ring"
                );
                objects.remove("pods", &pod);
            }
        }
    }

    fn processes(&self) {
        let objects = self.server.objects();
        let mut inner = self.inner();
        let pods = objects
            .of("pods")
            .map(|(_, pod)| pod["metadata"]["uid"].as_str().unwrap());
        let pods: BTreeSet<String> = pods.map(str::to_owned).collect();
        inner.processes.retain(|uid, _| pods.contains(uid));
        for process in inner.processes.values_mut() {
            process.steps_until_up = process.steps_until_up.saturating_sub(1);
        }
    }

    fn database(&self) {
        let objects = self.server.objects();
        let mut inner = self.inner();
        if !inner.ring.is_born {
            return;
        }
        // A node that nobody knows waits to be taken in.
        for (pod, object) in objects.of("pods") {
            let uid = object["metadata"]["uid"].as_str().unwrap();
            if let Some(node) = inner.up(uid) {
                let member = || Member {
                    name: pod.to_owned(),
                    stage: "waiting",
                };
                inner.ring.members.entry(node).or_insert_with(member);
            }
        }
        let up = inner.all_up();
        let ring = &mut inner.ring;
        // Who has left, or never came in, is forgotten when it is gone.
        ring.members.retain(|node, member| {
            !matches!(member.stage, "left" | "waiting") || up.contains(node)
        });
        let Some(change) = &mut ring.change else {
            return;
        };
        // Every member that stays has to say that it knows each stage.
        let mut waited_for = ring.members.iter().filter(|(node, member)| {
            matches!(member.stage, "active" | "joining") && !change.leaving.contains(*node)
        });
        if !waited_for.all(|(node, _)| up.contains(node)) {
            return;
        }
        change.steps_left -= 1;
        ring.version += 1;
        if change.steps_left > 0 {
            return;
        }
        for node in &change.joining {
            if let Some(member) = ring.members.get_mut(node) {
                member.stage = "active";
            }
        }
        for node in &change.leaving {
            if let Some(member) = ring.members.get_mut(node) {
                member.stage = "left";
            }
        }
        ring.change = None;
    }

    fn readiness(&self) {
        let mut objects = self.server.objects();
        let inner = self.inner();
        let pods: Vec<(String, Value)> = objects
            .of("pods")
            .map(|(name, pod)| (name.to_owned(), pod.clone()))
            .collect();
        for (name, mut pod) in pods {
            let node = inner.up(pod["metadata"]["uid"].as_str().unwrap());
            let is_ready = node.is_some_and(|node| inner.ring.members.contains_key(&node));
            let status = if is_ready { "True" } else { "False" };
            let conditions = json!([{"type": "Ready", "status": status}]);
            if pod["status"]["conditions"] != conditions {
                pod["status"]["conditions"] = conditions;
                objects.put("pods", &name, pod);
            }
        }
    }

    /// What matters in the end, in one line.
    pub(crate) fn outcome(&self) -> String {
        let objects = self.server.objects();
        let inner = self.inner();
        let pods = objects.of("pods").map(|(name, pod)| {
            let image = pod["spec"]["containers"][0]["image"]
                .as_str()
                .unwrap_or("?");
            format!("{name} {image}")
        });
        let pods: Vec<String> = pods.collect();
        let volumes: Vec<&str> = objects
            .of("persistentvolumeclaims")
            .map(|(name, _)| name)
            .collect();
        let members = inner.ring.members.values();
        let mut members: Vec<String> = members
            .map(|member| format!("{} {}", member.name, member.stage))
            .collect();
        members.sort();
        let children: Vec<&str> = objects.of("statefulsets").map(|(name, _)| name).collect();
        format!(
            "pods {pods:?}, volumes {volumes:?}, members {members:?}, stateful sets {children:?}, births {}",
            inner.ring.births
        )
    }

    /// Nodes that have ever been.
    pub(crate) fn nodes(&self) -> usize {
        self.inner().nodes.len()
    }
}

impl Ring {
    fn is_on_ring(&self, node: &str) -> bool {
        let stage = self.members.get(node).map(|member| member.stage);
        matches!(stage, Some("active" | "joining" | "leaving"))
    }

    fn begin(&mut self, words: String, joining: BTreeSet<String>, leaving: BTreeSet<String>) {
        let active = self
            .members
            .iter()
            .filter(|(_, member)| member.stage == "active");
        let stays = active.filter(|(node, _)| !leaving.contains(*node)).count();
        assert!(
            stays + joining.len() >= N,
            "{words}: a ring of fewer than {N}"
        );
        for (nodes, stage) in [(&joining, "joining"), (&leaving, "leaving")] {
            for node in nodes {
                if let Some(member) = self.members.get_mut(node) {
                    member.stage = stage;
                }
            }
        }
        self.version += 1;
        let steps_left = CHANGE_STEPS;
        self.change = Some(Change {
            words,
            steps_left,
            joining,
            leaving,
        });
    }

    fn ask(&mut self, body: &Value) -> Result<(), String> {
        let request = body["request"].as_str().unwrap_or_default().to_owned();
        if !request.is_empty() && self.requests.contains(&request) {
            return Ok(());
        }
        if self.change.is_some() {
            return Err("a change is under way".to_owned());
        }
        let nodes = body["nodes"].as_array().into_iter().flatten();
        let nodes: BTreeSet<String> = nodes
            .map(|node| node.as_str().unwrap().to_owned())
            .collect();
        let stage_of = |node: &String| self.members.get(node).map(|member| member.stage);
        let all_are = |stage| nodes.iter().all(|node| stage_of(node) == Some(stage));
        match body["action"].as_str().unwrap() {
            "join" if all_are("waiting") => self.begin("join".to_owned(), nodes, BTreeSet::new()),
            "leave" if all_are("active") => self.begin("leave".to_owned(), BTreeSet::new(), nodes),
            "replace" if all_are("active") => {
                let with = body["with"].as_str().unwrap().to_owned();
                if stage_of(&with) != Some("waiting") {
                    return Err(format!("{with} does not wait"));
                }
                self.begin("replace".to_owned(), BTreeSet::from([with]), nodes);
            }
            "remove" => self.members.retain(|node, _| !nodes.contains(node)),
            action => return Err(format!("{action} of {nodes:?}: not now")),
        }
        self.requests.insert(request);
        Ok(())
    }
}

impl Inner {
    /// The node of a pod, if its process answers.
    fn up(&self, pod: &str) -> Option<String> {
        let process = self.processes.get(pod)?;
        (process.steps_until_up == 0).then(|| process.node.clone())
    }

    fn all_up(&self) -> BTreeSet<String> {
        let pods = self.processes.keys();
        pods.filter_map(|pod| self.up(pod)).collect()
    }

    /// Members of the ring that do not answer, not counting a pod's.
    fn away(&self, but: Option<&str>) -> Vec<&str> {
        let up = self.all_up();
        let own = but
            .and_then(|pod| self.processes.get(pod))
            .map(|process| &process.node);
        let members = self.ring.members.iter();
        let away = members.filter(|(node, member)| {
            matches!(member.stage, "active" | "leaving")
                && !up.contains(*node)
                && Some(*node) != own
        });
        away.map(|(node, _)| node.as_str()).collect()
    }

    fn report(&self, address: &str) -> Option<Report> {
        let node = self.up(self.addresses.get(address)?)?;
        let up = self.all_up();
        let ring = &self.ring;
        let name = |node: &String| {
            ring.members
                .get(node)
                .map_or("", |member| &member.name)
                .to_owned()
        };
        let members = ring.members.iter().map(|(id, member)| {
            json!({"id": id, "name": member.name, "stage": member.stage, "alive": up.contains(id)})
        });
        let members: Vec<Value> = members.collect();
        let change = ring.change.as_ref();
        let blocked_by = change.map(|change| {
            let on_ring = ring.members.keys().filter(|node| ring.is_on_ring(node));
            let silent =
                on_ring.filter(|node| !up.contains(*node) && !change.leaving.contains(*node));
            silent
                .map(|node| json!({"id": node, "name": name(node)}))
                .collect::<Vec<Value>>()
        });
        Some(Report {
            status: serde_json::from_value(json!({
                "node": {"id": node, "name": name(&node), "stage": "active", "alive": true},
                "cluster": if ring.is_born { "c1" } else { "0" },
                "config": ring.is_born.then(|| json!({"n": N, "r": 2, "w": 2})),
                "epoch": 1, "raft": {"role": "follower", "applied": ring.version}, "members": members, "numbers": {},
            }))
            .unwrap(),
            transition: serde_json::from_value(json!({
                "version": ring.version,
                "stage": if change.is_some() { "stream" } else { "stable" },
                "change": change.map_or("", |change| &change.words),
                "blocked_by": blocked_by.unwrap_or_default(), "excluded": [],
            }))
            .unwrap(),
            epochs: Some(serde_json::from_value(json!({"lag_epochs": 0, "blocked_by": []})).unwrap()),
        })
    }

    fn post(&mut self, address: &str, path: &str, body: &Value) -> Result<(), String> {
        let pod = self.addresses.get(address).ok_or("no such address")?;
        self.up(pod).ok_or("it does not answer")?;
        if path == "/v1/transition" {
            return self.ring.ask(body);
        }
        assert_eq!(path, "/v1/init");
        if self.ring.is_born {
            return Err("it is born already".to_owned());
        }
        self.ring.is_born = true;
        self.ring.births += 1;
        self.ring.version = 1;
        Ok(())
    }
}

impl Database for World {
    async fn report(&self, address: String) -> Option<Report> {
        self.inner().report(&address)
    }

    async fn post(&self, address: String, path: &'static str, body: Value) -> Result<(), String> {
        let fault = self.server.objects().count();
        if let Some(Fault::Refused | Fault::Conflict) = fault {
            return Err("refused".to_owned());
        }
        let objects = self.server.objects();
        let pods: Vec<(String, Value)> = objects
            .of("pods")
            .map(|(name, pod)| (name.to_owned(), pod.clone()))
            .collect();
        drop(objects);
        let mut inner = self.inner();
        let was_born = inner.ring.is_born;
        let done = inner.post(&address, path, &body);
        if !was_born && inner.ring.is_born {
            // The first ring is formed of those that are there.
            for (name, pod) in pods {
                if let Some(node) = inner.up(pod["metadata"]["uid"].as_str().unwrap()) {
                    inner.ring.members.insert(
                        node,
                        Member {
                            name,
                            stage: "active",
                        },
                    );
                }
            }
        }
        match fault {
            Some(Fault::Unanswered) => Err("no answer".to_owned()),
            _ => done,
        }
    }
}

fn hash(value: &Value) -> u64 {
    xxhash_rust::xxh3::xxh3_64(value.to_string().as_bytes())
}
