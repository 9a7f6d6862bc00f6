//! What is told about the node and its cluster.

use super::*;

#[test]
fn readiness_is_standing() {
    let served = Served::new();
    for (standing, status, words) in [
        (Standing::Active, 200, "ready"),
        (Standing::Waiting, 200, "holds no data"),
        (Standing::Unborn, 503, "mydatastore init"),
        (Standing::Joining, 503, "acknowledge"),
        (Standing::Refused("a clone".to_owned()), 503, "a clone"),
    ] {
        let mut view = three_members();
        view.standing = standing;
        served.database.set_view(view);
        let answer = served.get("/ready");
        assert_eq!(answer.status, status);
        assert!(
            String::from_utf8(answer.body).unwrap().contains(words),
            "{words}"
        );
        assert_eq!(served.get("/health").status, 200);
    }
    served.database.set_view(three_members());
    served.database.set_open(false);
    assert_eq!(served.get("/ready").status, 503);
    assert_eq!(served.get("/v1/status").json()["ready"], false);
}

#[test]
fn the_cluster_is_shown_as_it_is() {
    let served = Served::new();
    let status = served.get("/v1/status").json();
    assert_eq!(status["node"]["name"], "node-1");
    assert_eq!(status["standing"], "active");
    assert_eq!(
        status["config"],
        json!({"partition_count": 16, "n": 3, "r": 2, "w": 2})
    );
    assert_eq!(status["members"].as_array().unwrap().len(), 3);
    assert_eq!(status["numbers"]["records"], 0.0);
    let ring = served.get("/v1/ring").json();
    assert_eq!(ring["partitions"].as_array().unwrap().len(), 16);
    for replicas in ring["partitions"].as_array().unwrap() {
        assert_eq!(replicas.as_array().unwrap().len(), 3);
    }
    let primaries = ring["members"].as_array().unwrap().iter();
    assert_eq!(
        primaries
            .map(|member| member["primaries"].as_u64().unwrap())
            .sum::<u64>(),
        16
    );
    assert_eq!(
        served.get("/v1/members").json()["members"],
        status["members"]
    );
    let config = served.get("/v1/config").json();
    assert_eq!(config["node"].as_array().unwrap().len(), FIELDS.len());
    assert_eq!(config["cluster"]["n"], 3);
    assert_eq!(served.get("/v1/digest").json()["node"], "0000000000000001");
}

#[test]
fn a_cluster_is_born_once() {
    let served = Served::new();
    let mut unborn = three_members();
    unborn.standing = Standing::Unborn;
    unborn.config = None;
    served.database.set_view(unborn);
    assert_eq!(served.get("/v1/ring").status, 503);
    assert_eq!(served.get("/v1/list").status, 503);
    let answer = served.call(
        "POST",
        "/v1/init",
        &[],
        br#"{"nodes": 3, "partition_count": 64}"#,
    );
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["config"]["partition_count"], 64);
    assert_eq!(served.call("POST", "/v1/init", &[], b"").status, 409);
}

#[test]
fn metrics_have_conventional_names_and_bounded_labels() {
    let served = Served::new();
    served.put("/v1/kv/secret-key", b"v");
    served.get("/no/such/path-of-a-client");
    let answer = served.get("/metrics");
    assert!(
        answer
            .header("content-type")
            .starts_with("application/openmetrics-text")
    );
    let text = String::from_utf8(answer.body).unwrap();
    for line in [
        "# HELP mydatastore_http_requests HTTP requests answered.",
        "mydatastore_http_requests_total{route=\"/v1/kv\",method=\"PUT\",code=\"200\"} 1",
        "mydatastore_http_requests_total{route=\"other\",method=\"GET\",code=\"404\"} 1",
        "# TYPE mydatastore_writes counter",
        "mydatastore_writes_total 1",
        "mydatastore_records 1.0",
        "mydatastore_http_request_duration_seconds_count 2",
        "# EOF",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in:\n{text}"
        );
    }
    assert!(!text.contains("secret-key") && !text.contains("path-of-a-client"));
}
