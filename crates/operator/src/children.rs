//! The objects that a `MyDataStore` consists of, as plain documents.
//!
//! All are applied by server-side apply, with the operator as the manager of the fields that it sets: others may set
//! further ones. All but the volumes are owned by the resource and go with it.
//!
//! The StatefulSet's update strategy is `OnDelete`: Kubernetes restarts no pod by itself, because it knows pods to be
//! ready, not data to be safe. The headless Service also publishes nodes that are not ready, since they have to find
//! each other before they can be.

use kube::ResourceExt;
use kube::api::ApiResource;
use serde_json::{Value, json};

use crate::crd::{MyDataStore, Retention};

/// Where Redis clients connect.
pub const RESP_PORT: u16 = 7101;
/// Where HTTP clients and the operator connect.
pub const HTTP_PORT: u16 = 8101;
/// Where nodes connect to each other.
pub const PEER_PORT: u16 = 9101;

/// Nodes that others look for first. The ones with the lowest numbers are there as long as the cluster is.
const SEEDS: u32 = 5;

/// Longest name: names and addresses of pods are made from it, and are bounded themselves.
const NAME_BYTES_MAX: usize = 40;
/// Longest address of a node that the database takes, bytes.
const ADDRESS_BYTES_MAX: usize = 128;

/// A child object.
#[derive(Clone, Debug)]
pub struct Child {
    /// Its kind.
    pub resource: ApiResource,
    /// Its name.
    pub name: String,
    /// The document.
    pub body: Value,
}

/// Why no objects can be made from a resource.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// Too long for what is made from it.
    #[error(
        "the name `{0}` is too long together with its namespace: choose one of at most 20 characters"
    )]
    Name(String),
    /// No duration that fits.
    #[error("epochInterval `{0}` is no duration, such as 15m")]
    EpochInterval(String),
    /// Set by the operator.
    #[error("config.{0} is set by the operator and cannot be chosen")]
    Reserved(String),
}

/// Settings that follow from the resource and the pod.
const RESERVED: [&str; 16] = [
    "name",
    "data_dir",
    "zone",
    "resp_listen",
    "http_listen",
    "peer_listen",
    "resp_advertise",
    "http_advertise",
    "peer_advertise",
    "seeds",
    "ring_mode",
    "remove_after_ms",
    "fsync",
    "epoch_interval_ms",
    "weight",
    "log_format",
];

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    let api_version = match group.is_empty() {
        true => version.to_owned(),
        false => format!("{group}/{version}"),
    };
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version,
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

/// Labels that select the pods of a resource.
pub fn selector(name: &str) -> Value {
    json!({"app.kubernetes.io/name": "mydatastore", "app.kubernetes.io/instance": name})
}

/// The same as text, for `/scale`.
pub fn selector_text(name: &str) -> String {
    format!("app.kubernetes.io/name=mydatastore,app.kubernetes.io/instance={name}")
}

/// All children. `replicas` is how many pods are to be kept, None to leave the StatefulSet out; `with_monitor` says
/// whether the cluster knows ServiceMonitors.
///
/// # Errors
/// [`Invalid`], in words for the person who made the resource.
pub fn children(
    store: &MyDataStore,
    replicas: Option<u32>,
    with_monitor: bool,
) -> Result<Vec<Child>, Invalid> {
    let name = store.name_any();
    let namespace = store.namespace().unwrap_or_default();
    let address = address(&format!("{name}-999"), &name, &namespace, PEER_PORT);
    if name.len() > NAME_BYTES_MAX || address.len() > ADDRESS_BYTES_MAX {
        return Err(Invalid::Name(name));
    }
    let config = config(store, &namespace)?;
    let mut all = vec![
        account(&name),
        config_map(&name, &config),
        peers_service(&name),
        client_service(&name),
        disruption_budget(&name),
        network_policy(&name),
    ];
    if with_monitor {
        all.push(monitor(&name));
    }
    if let Some(replicas) = replicas {
        all.push(stateful_set(store, replicas, &namespace, &config));
    }
    let owner = json!([{
        "apiVersion": "mydatastore.dev/v1alpha1", "kind": "MyDataStore", "name": name,
        "uid": store.uid().unwrap_or_default(), "controller": true, "blockOwnerDeletion": true,
    }]);
    for child in &mut all {
        let metadata = &mut child.body["metadata"];
        metadata["name"] = json!(child.name);
        metadata["namespace"] = json!(namespace);
        metadata["labels"] = selector(&name);
        metadata["labels"]["app.kubernetes.io/managed-by"] = json!("mds-operator");
        metadata["ownerReferences"] = owner.clone();
        child.body["apiVersion"] = json!(child.resource.api_version);
        child.body["kind"] = json!(child.resource.kind);
    }
    Ok(all)
}

fn child(resource: ApiResource, name: String, body: Value) -> Child {
    Child {
        resource,
        name,
        body,
    }
}

/// A pod's address: a name, since its IP changes with each start.
fn address(pod: &str, name: &str, namespace: &str, port: u16) -> String {
    format!("{pod}.{name}-peers.{namespace}.svc:{port}")
}

/// The nodes' configuration file.
fn config(store: &MyDataStore, namespace: &str) -> Result<String, Invalid> {
    let (name, spec) = (store.name_any(), &store.spec);
    let epoch_interval_ms = spec
        .epoch_interval_ms()
        .ok_or_else(|| Invalid::EpochInterval(spec.epoch_interval.clone()))?;
    let seeds: Vec<String> = (0..SEEDS)
        .map(|ordinal| address(&format!("{name}-{ordinal}"), &name, namespace, PEER_PORT))
        .collect();
    let mut text = format!(
        "data_dir = \"/data/store\"\nring_mode = \"operator\"\nfsync = \"{}\"\nepoch_interval_ms = {epoch_interval_ms}\nseeds = {}\n\
         resp_listen = \"0.0.0.0:{RESP_PORT}\"\nhttp_listen = \"0.0.0.0:{HTTP_PORT}\"\npeer_listen = \"0.0.0.0:{PEER_PORT}\"\n",
        spec.fsync,
        json!(seeds)
    );
    for (field, value) in &spec.config {
        if RESERVED.contains(&field.as_str()) {
            return Err(Invalid::Reserved(field.clone()));
        }
        let is_plain = value.parse::<i64>().is_ok() || value == "true" || value == "false";
        let value = match is_plain {
            true => value.clone(),
            false => json!(value).to_string(),
        };
        text.push_str(&format!("{field} = {value}\n"));
    }
    Ok(text)
}

fn account(name: &str) -> Child {
    // The nodes ask nothing of Kubernetes.
    let body = json!({"automountServiceAccountToken": false});
    child(
        resource("", "v1", "ServiceAccount", "serviceaccounts"),
        name.to_owned(),
        body,
    )
}

fn config_map(name: &str, config: &str) -> Child {
    let body = json!({"data": {"mydatastore.toml": config}});
    child(
        resource("", "v1", "ConfigMap", "configmaps"),
        format!("{name}-config"),
        body,
    )
}

fn port(name: &str, number: u16) -> Value {
    json!({"name": name, "port": number, "targetPort": name, "protocol": "TCP"})
}

fn peers_service(name: &str) -> Child {
    let body = json!({"spec": {
        "clusterIP": "None", "publishNotReadyAddresses": true, "selector": selector(name),
        "ports": [port("peer", PEER_PORT), port("http", HTTP_PORT), port("resp", RESP_PORT)],
    }});
    child(
        resource("", "v1", "Service", "services"),
        format!("{name}-peers"),
        body,
    )
}

fn client_service(name: &str) -> Child {
    let body = json!({"spec": {
        "selector": selector(name), "ports": [port("resp", RESP_PORT), port("http", HTTP_PORT)],
    }});
    child(
        resource("", "v1", "Service", "services"),
        name.to_owned(),
        body,
    )
}

fn disruption_budget(name: &str) -> Child {
    let body = json!({"spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(name)}}});
    child(
        resource(
            "policy",
            "v1",
            "PodDisruptionBudget",
            "poddisruptionbudgets",
        ),
        name.to_owned(),
        body,
    )
}

/// Clients may come from everywhere, peers only from among the nodes.
fn network_policy(name: &str) -> Child {
    let own = json!({"podSelector": {"matchLabels": selector(name)}});
    let body = json!({"spec": {
        "podSelector": {"matchLabels": selector(name)}, "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": [{"port": "resp", "protocol": "TCP"}, {"port": "http", "protocol": "TCP"}]},
            {"from": [own], "ports": [{"port": "peer", "protocol": "TCP"}, {"port": "gossip", "protocol": "UDP"}]},
        ],
    }});
    child(
        resource(
            "networking.k8s.io",
            "v1",
            "NetworkPolicy",
            "networkpolicies",
        ),
        name.to_owned(),
        body,
    )
}

fn monitor(name: &str) -> Child {
    let body = json!({"spec": {
        "selector": {"matchLabels": selector(name)}, "endpoints": [{"port": "http", "path": "/metrics"}],
    }});
    child(
        resource(
            "monitoring.coreos.com",
            "v1",
            "ServiceMonitor",
            "servicemonitors",
        ),
        name.to_owned(),
        body,
    )
}

/// The StatefulSet's kind.
pub fn stateful_sets() -> ApiResource {
    resource("apps", "v1", "StatefulSet", "statefulsets")
}

fn stateful_set(store: &MyDataStore, replicas: u32, namespace: &str, config: &str) -> Child {
    let (name, spec) = (store.name_any(), &store.spec);
    let retention = match spec.volume_retention.when_deleted {
        Retention::Retain => "Retain",
        Retention::Delete => "Delete",
    };
    let config_hash = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(config.as_bytes()));
    let mut claim = json!({
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": spec.storage.size}}},
    });
    if let Some(class) = &spec.storage.class_name {
        claim["spec"]["storageClassName"] = json!(class);
    }
    let body = json!({"spec": {
        "replicas": replicas,
        "serviceName": format!("{name}-peers"),
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "OnDelete"},
        // Volumes of scaled nodes are the operator's to delete: it knows when nobody lives on them.
        "persistentVolumeClaimRetentionPolicy": {"whenScaled": "Retain", "whenDeleted": retention},
        "selector": {"matchLabels": selector(&name)},
        "volumeClaimTemplates": [claim],
        "template": {
            "metadata": {"labels": selector(&name), "annotations": {"mydatastore.dev/config": config_hash}},
            "spec": pod(store, &name, namespace),
        },
    }});
    child(stateful_sets(), name, body)
}

fn pod(store: &MyDataStore, name: &str, namespace: &str) -> Value {
    let spec = &store.spec;
    let spread = match spec.topology_spread.is_empty() {
        false => json!(spec.topology_spread),
        true => json!(
            ["topology.kubernetes.io/zone", "kubernetes.io/hostname"].map(|key| json!({
                "topologyKey": key, "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(name)},
            }))
        ),
    };
    let mut body = json!({
        "serviceAccountName": name,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 30,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": spread,
        "containers": [container(store, name, namespace)],
        "volumes": [{"name": "config", "configMap": {"name": format!("{name}-config")}}],
    });
    let mut set = |field: &str, value: Value, is_set: bool| {
        if is_set {
            body[field] = value;
        }
    };
    set(
        "nodeSelector",
        json!(spec.node_selector),
        !spec.node_selector.is_empty(),
    );
    set(
        "tolerations",
        json!(spec.tolerations),
        !spec.tolerations.is_empty(),
    );
    set("affinity", spec.affinity.clone(), !spec.affinity.is_null());
    set(
        "priorityClassName",
        json!(spec.priority_class_name),
        spec.priority_class_name.is_some(),
    );
    let secrets: Vec<Value> = spec
        .image_pull_secrets
        .iter()
        .map(|one| json!({"name": one}))
        .collect();
    set("imagePullSecrets", json!(secrets), !secrets.is_empty());
    body
}

fn container(store: &MyDataStore, name: &str, namespace: &str) -> Value {
    let spec = &store.spec;
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let advertised = |name_of_env: &str, port: u16| json!({"name": name_of_env, "value": address("$(MYDATASTORE_NAME)", name, namespace, port)});
    let probe = |path: &str, period_s: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": "http"}, "periodSeconds": period_s, "timeoutSeconds": 2,
            "failureThreshold": failures,
        })
    };
    let mut body = json!({
        "name": "mydatastore",
        "image": spec.image,
        "args": ["serve", "--config", "/etc/mydatastore/mydatastore.toml"],
        "env": [
            field("MYDATASTORE_NAME", "metadata.name"),
            // Kubernetes 1.35 and newer copy the host's zone here; before, the zone is empty, the same for all.
            field("MYDATASTORE_ZONE", "metadata.labels['topology.kubernetes.io/zone']"),
            advertised("MYDATASTORE_PEER_ADVERTISE", PEER_PORT),
            advertised("MYDATASTORE_HTTP_ADVERTISE", HTTP_PORT),
            advertised("MYDATASTORE_RESP_ADVERTISE", RESP_PORT),
        ],
        "ports": [
            {"name": "resp", "containerPort": RESP_PORT, "protocol": "TCP"},
            {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "peer", "containerPort": PEER_PORT, "protocol": "TCP"},
            {"name": "gossip", "containerPort": PEER_PORT, "protocol": "UDP"},
        ],
        "startupProbe": probe("/health", 1, 300),
        "livenessProbe": probe("/health", 10, 6),
        "readinessProbe": probe("/ready", 2, 2),
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "config", "mountPath": "/etc/mydatastore", "readOnly": true},
        ],
    });
    if !spec.resources.is_null() {
        body["resources"] = spec.resources.clone();
    }
    if let Some(policy) = &spec.image_pull_policy {
        body["imagePullPolicy"] = json!(policy);
    }
    body
}
