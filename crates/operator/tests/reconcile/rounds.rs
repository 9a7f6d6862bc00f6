//! Many resources at once.

use std::time::Duration;

use mds_operator::database::{Database, Report};
use mds_operator::reconcile::Context;
use mds_operator::rounds::{Counts, all_rounds};
use serde_json::{Value, json};

use crate::api_server::ApiServer;

/// A database of which no node ever answers, nor says that it does not.
#[derive(Clone)]
struct Hanging;

impl Database for Hanging {
    async fn report(&self, _: String) -> Option<Report> {
        std::future::pending().await
    }

    async fn post(&self, _: String, _: &'static str, _: Value) -> Result<(), String> {
        std::future::pending().await
    }
}

fn message(server: &ApiServer, name: &str) -> Option<String> {
    let objects = server.objects();
    let store = objects.get("mydatastores", name).unwrap();
    store["status"]["message"].as_str().map(str::to_owned)
}

#[tokio::test(start_paused = true)]
async fn a_resource_whose_database_hangs_keeps_no_other_one_waiting() {
    let server = ApiServer::default();
    for name in ["a", "b"] {
        let store = json!({
            "apiVersion": "mydatastore.dev/v1alpha1", "kind": "MyDataStore",
            "metadata": {"namespace": "shops", "generation": 1},
            "spec": {"size": 3, "image": "mds:1", "storage": {"size": "1Gi"}},
        });
        server.objects().put("mydatastores", name, store);
    }
    // Only the first has a pod that could be asked.
    let labels =
        json!({"app.kubernetes.io/name": "mydatastore", "app.kubernetes.io/instance": "a"});
    let pod = json!({"metadata": {"labels": labels}, "status": {"podIP": "10.0.0.1"}});
    server.objects().put("pods", "a-0", pod);
    let context = Context {
        client: server.client(),
        database: Hanging,
    };
    let counts = Counts::default();
    let ends = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(message(&server, "a"), None);
        let said = message(&server, "b").unwrap();
        assert!(said.contains("StatefulSet"), "{said}");
        // The one that hangs is given up in time, and tried again.
        let errors = || counts.errors.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(errors(), 0);
        tokio::time::sleep(Duration::from_secs(90)).await;
        assert_eq!(errors(), 1);
    };
    tokio::select! {
        () = all_rounds(&context, Some("shops"), &counts) => {}
        () = ends => {}
    }
}
