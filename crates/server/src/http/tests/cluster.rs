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

#[test]
fn a_change_of_the_ring_is_asked_for_by_name_and_shown() {
    let served = Served::new();
    let post = |body: Value| {
        let body = body.to_string();
        served.call("POST", "/v1/transition", &[], body.as_bytes())
    };
    let answer = post(json!({"action": "join", "nodes": ["node-3"], "request": "ab"}));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["stage"], "prepare");
    assert_eq!(
        answer.json()["requests"],
        json!([{"request": format!("{:032x}", 0xab), "fate": "running"}])
    );
    post(
        json!({"action": "replace", "nodes": ["0000000000000002"], "with": "node-3", "force": true, "request": "2"}),
    );
    post(json!({"action": "quorums", "w": 3, "request": "3"}));
    let asked = served.database.ring_asked();
    let expected = [
        RingRequest::Join {
            nodes: [NodeId(3)].into(),
        },
        RingRequest::Replace {
            dead: NodeId(2),
            with: NodeId(3),
            forced: true,
        },
        RingRequest::ChangeQuorums(Quorums {
            replicas: 3,
            read: 2,
            write: 3,
        }),
    ];
    assert_eq!(
        asked.iter().map(|(_, ask)| ask.clone()).collect::<Vec<_>>(),
        expected
    );
    assert_eq!(asked[0].0, RequestId(0xab));
    for (body, words) in [
        (json!({"action": "join", "request": "1"}), "one or more"),
        (
            json!({"action": "join", "nodes": ["x"], "request": "1"}),
            "`x` is no member",
        ),
        (
            json!({"action": "join", "nodes": ["node-1"]}),
            "request is missing",
        ),
        (
            json!({"action": "join", "nodes": ["node-1"], "request": "z"}),
            "hexadecimal",
        ),
        (
            json!({"action": "leave", "nodes": ["node-1"], "force": true, "request": "1"}),
            "takes no force",
        ),
        (
            json!({"action": "dance", "request": "1"}),
            "action is `dance`",
        ),
        (json!({"action": "join", "node": "node-1"}), "unknown field"),
    ] {
        let answer = post(body);
        assert_eq!(answer.status, 400);
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(post(json!({"action": "abort"})).status, 409);

    let mut view = three_members();
    view.transition = TransitionView {
        stage: RingStage::Stream,
        request: Some(RequestId(9)),
        change: format!("leave {}", NodeId(2)),
        blocked_by: vec![Blocker {
            node: NodeId(3),
            waits_for: WaitsFor::Ready,
        }],
        ..TransitionView::default()
    };
    served.database.set_view(view);
    let shown = served.get("/v1/transition").json();
    assert_eq!(shown["stage"], "stream");
    assert_eq!(shown["change"], "leave node-2");
    assert_eq!(
        shown["blocked_by"][0],
        json!({"id": NodeId(3).to_string(), "name": "node-3", "waits_for": "ready", "alive": true, "since_ms": 1000, "http": "127.0.0.1:8103"})
    );
    assert_eq!(
        shown["copying"],
        json!({"partitions": 5, "left": 3, "unverified": 0, "records": 0, "bytes": 0})
    );
    assert_eq!(post(json!({"action": "abort"})).status, 200);
    assert_eq!(
        served.database.ring_asked().last(),
        Some(&(RequestId(9), RingRequest::Abort))
    );
}
