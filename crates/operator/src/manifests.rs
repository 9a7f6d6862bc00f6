//! The operator's own manifests, kustomize and Helm, from one source: this file. A test compares them with `deploy/`.

use std::path::Path;

use kube::CustomResourceExt;
use serde_json::{Value, json};

use crate::crd::MyDataStore;

const NAME: &str = "mds-operator";
const NAMESPACE: &str = "mydatastore-system";
const IMAGE: &str = "mydatastore-operator:0.1.0";

/// The custom resource definition, as YAML.
pub fn crd() -> String {
    yaml(&json!(MyDataStore::crd()))
}

fn yaml(document: &Value) -> String {
    // Values that came from JSON can always be written.
    serde_norway::to_string(document).unwrap_or_default()
}

fn documents(all: &[Value]) -> String {
    let all: Vec<String> = all.iter().map(yaml).collect();
    all.join("---\n")
}

/// What the operator may do, and no more.
fn rules() -> Value {
    let all = json!(["get", "list", "create", "patch", "update"]);
    json!([
        {"apiGroups": ["mydatastore.dev"], "resources": ["mydatastores"], "verbs": ["get", "list", "patch"]},
        {"apiGroups": ["mydatastore.dev"], "resources": ["mydatastores/status", "mydatastores/finalizers"], "verbs": ["get", "patch", "update"]},
        {"apiGroups": ["apps"], "resources": ["statefulsets"], "verbs": all},
        {"apiGroups": [""], "resources": ["services", "configmaps", "serviceaccounts"], "verbs": all},
        {"apiGroups": [""], "resources": ["pods", "persistentvolumeclaims"], "verbs": ["get", "list", "delete"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
        {"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"], "verbs": all},
        {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": all},
        {"apiGroups": ["monitoring.coreos.com"], "resources": ["servicemonitors"], "verbs": all},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
    ])
}

/// All objects but the definition, for a namespace and an image.
fn objects(namespace: &str, image: &str) -> Vec<Value> {
    let labels = json!({"app.kubernetes.io/name": NAME});
    let role =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME});
    let env = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let container = json!({
        "name": "operator", "image": image, "imagePullPolicy": "IfNotPresent", "args": ["run"],
        "env": [env("POD_NAME", "metadata.name"), env("POD_NAMESPACE", "metadata.namespace")],
        "ports": [{"name": "metrics", "containerPort": 8080}],
        "livenessProbe": {"httpGet": {"path": "/health", "port": "metrics"}, "periodSeconds": 10},
        "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        },
    });
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "namespace": namespace, "labels": labels}}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": NAME, "labels": labels}, "rules": rules(),
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": NAME, "labels": labels}, "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": namespace}],
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": NAME, "namespace": namespace, "labels": labels},
            "spec": {
                "replicas": 1, "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "serviceAccountName": NAME,
                        "securityContext": {
                            "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"},
                        },
                        "containers": [container],
                    },
                },
            },
        }),
    ]
}

/// All files, by their path below `deploy/`.
pub fn files() -> Vec<(&'static str, String)> {
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": ["namespace.yaml", "crd.yaml", "operator.yaml"],
    });
    let chart = json!({
        "apiVersion": "v2", "name": "mydatastore-operator", "type": "application",
        "description": "The Kubernetes operator of MyDataStore", "version": "0.1.0", "appVersion": "0.1.0",
    });
    let helm = documents(&objects("{{ .Release.Namespace }}", "{{ .Values.image }}"));
    vec![
        ("kubernetes/namespace.yaml", yaml(&namespace)),
        ("kubernetes/crd.yaml", crd()),
        (
            "kubernetes/operator.yaml",
            documents(&objects(NAMESPACE, IMAGE)),
        ),
        ("kubernetes/kustomization.yaml", yaml(&kustomization)),
        ("helm/mydatastore-operator/Chart.yaml", yaml(&chart)),
        (
            "helm/mydatastore-operator/values.yaml",
            yaml(&json!({"image": IMAGE})),
        ),
        ("helm/mydatastore-operator/crds/crd.yaml", crd()),
        ("helm/mydatastore-operator/templates/operator.yaml", helm),
    ]
}

/// Writes them.
///
/// # Errors
/// Why a file could not be written.
pub fn write(directory: &Path) -> Result<(), Box<dyn std::error::Error>> {
    for (path, text) in files() {
        let path = directory.join(path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_in_deploy_are_what_the_binary_writes() {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
        for (path, text) in files() {
            let there = std::fs::read_to_string(deploy.join(path)).unwrap_or_default();
            assert!(
                there == text,
                "{path} differs: run `cargo run -p mds-operator -- manifests deploy`"
            );
        }
    }

    #[test]
    fn the_definition_has_scale_columns_and_rules() {
        let crd = crd();
        for part in [
            "specReplicasPath: .spec.size",
            "labelSelectorPath: .status.selector",
            "x-kubernetes-validations",
            "size is below n",
            "name: Stage",
        ] {
            assert!(crd.contains(part), "{part}");
        }
    }
}
