//! The front-end over a real socket, before the stand-in database.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mds_cluster::Standing;
use mds_node::api::{Op, RequestError};
use mds_types::{Hlc, NodeId, Version};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::bodies::PageBody;
use super::{App, router, server};
use crate::config::{Effective, FIELDS, NodeConfig, Origin};
use crate::database::Database;
use crate::database::fake::{FakeDatabase, three_members};
use crate::http::percent_encode;

/// A front-end on a port of its own, on a thread of its own, as in a node.
struct Served {
    addr: SocketAddr,
    database: Arc<FakeDatabase>,
    agent: ureq::Agent,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Served {
    fn new() -> Served {
        Served::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut NodeConfig)) -> Served {
        let mut config = NodeConfig::default();
        change(&mut config);
        let connections_max = config.http_connections_max;
        let effective = Effective {
            config,
            origins: vec![Origin::Default; FIELDS.len()],
        };
        let database = FakeDatabase::new();
        let app = App::new(Arc::clone(&database) as Arc<dyn Database>, effective);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let shutdown = async { drop(stopped.await) };
                server::serve(listener, router(app), connections_max, shutdown).await;
            });
        });
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(20)))
            .build();
        Served {
            addr,
            database,
            agent: agent.into(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.addr));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = match body.is_empty() && method != "PUT" && method != "POST" {
            true => self.agent.run(request.body(()).unwrap()),
            false => self.agent.run(request.body(body).unwrap()),
        };
        let mut response = response.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.body_mut().read_to_vec().unwrap(),
        }
    }

    fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], &[])
    }

    fn put(&self, path: &str, body: &[u8]) -> Answer {
        self.call("PUT", path, &[], body)
    }

    /// Sends bytes as they are and reads until the server closes.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The server may close while we still send: what it answered counts.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

struct Answer {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

const TOKEN: &str = "0000000001000000-0000000000000002";

fn token() -> Version {
    Version {
        hlc: Hlc(0x0100_0000),
        node: NodeId(2),
    }
}

#[test]
fn a_key_is_written_read_and_deleted() {
    let served = Served::new();
    let absent = served.get("/v1/kv/a");
    assert_eq!(absent.status, 404);
    assert_eq!(absent.json(), json!({"error": "no such key"}));

    let written = served.put("/v1/kv/a", b"\x00\xffvalue");
    assert_eq!(written.status, 200);
    let version = written.header("x-mds-version").to_owned();
    assert_eq!(written.json(), json!({"version": version, "acked": 2}));
    assert_eq!(written.header("etag"), format!("\"{version}\""));

    let read = served.get("/v1/kv/a");
    assert_eq!((read.status, read.body.as_slice()), (200, &b"\x00\xffvalue"[..]));
    assert_eq!(read.header("content-type"), "application/octet-stream");
    assert_eq!(read.header("x-mds-version"), version);

    let head = served.call("HEAD", "/v1/kv/a", &[], &[]);
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), "7");
    assert_eq!(head.header("x-mds-version"), version);

    assert_eq!(served.call("DELETE", "/v1/kv/a", &[], &[]).status, 200);
    let gone = served.get("/v1/kv/a");
    assert_eq!(gone.status, 404);
    assert!(gone.header("x-mds-version") > version.as_str());
    assert_eq!(served.put("/v1/kv/empty", b"").status, 200);
    let empty = served.get("/v1/kv/empty");
    assert_eq!((empty.status, empty.body.len()), (200, 0));
}

#[test]
fn options_reach_the_database() {
    let served = Served::new();
    served.call(
        "PUT",
        "/v1/kv/a?w=3&timeout_ms=77&expires_at_ms=4102444800000",
        &[("Idempotency-Key", TOKEN), ("X-MDS-Seen", TOKEN)],
        b"v",
    );
    let asked = served.database.last_asked();
    assert_eq!(asked.options.write_quorum, Some(3));
    assert_eq!(asked.options.timeout_ms, Some(77));
    assert_eq!(asked.options.stamp, Some(token()));
    assert_eq!(asked.options.seen, Some(token()));
    assert_eq!(asked.options.request_id, None);
    assert!(matches!(
        asked.op,
        Op::Put { expires_at_ms: Some(4_102_444_800_000), .. }
    ));

    served.call("DELETE", "/v1/kv/a", &[("Idempotency-Key", "order-42")], b"");
    let one = served.database.last_asked().options;
    assert_eq!(one.stamp, None);
    served.call("DELETE", "/v1/kv/a", &[("Idempotency-Key", "order-43")], b"");
    assert!(one.request_id.is_some());
    assert_ne!(one.request_id, served.database.last_asked().options.request_id);

    served.get("/v1/kv/a?r=1");
    assert_eq!(served.database.last_asked().options.read_quorum, Some(1));
    let before_ms = 1_000 * std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let answer = served.put("/v1/kv/a?ttl_ms=60000", b"v");
    let expires_at_ms: u64 = answer.header("x-mds-expires-at-ms").parse().unwrap();
    assert!((before_ms + 60_000..before_ms + 90_000).contains(&expires_at_ms));
    assert_eq!(
        served.get("/v1/kv/a").header("x-mds-expires-at-ms"),
        expires_at_ms.to_string()
    );
}

#[test]
fn mistakes_are_400_and_never_reach_the_database() {
    let served = Served::new();
    for (method, path, headers, words) in [
        ("GET", "/v1/kv/", &[][..], "the key is empty"),
        ("GET", "/v1/kv/%zz", &[], "percent-encoding"),
        ("GET", "/v1/kv/a?ttl=5", &[], "unknown parameter `ttl`"),
        ("GET", "/v1/kv/a?r=0", &[], "r is `0`: it has to be a number from 1 to 9"),
        ("GET", "/v1/kv/a?timeout_ms=-1", &[], "timeout_ms"),
        ("PUT", "/v1/kv/a?ttl_ms=0", &[], "ttl_ms"),
        ("PUT", "/v1/kv/a?ttl_ms=18446744073709551615", &[], "too far"),
        ("PUT", "/v1/kv/a?ttl_ms=1&expires_at_ms=1", &[], "not both"),
        ("PUT", "/v1/kv/a?ttl_ms=1", &[("Idempotency-Key", TOKEN)], "expires_at_ms"),
        ("PUT", "/v1/kv/a", &[("X-MDS-Seen", "yesterday")], "not a version"),
        ("DELETE", "/v1/kv/a", &[("Idempotency-Key", "")], "Idempotency-Key is empty"),
        ("GET", "/v1/scan", &[], "partition is missing"),
        ("GET", "/v1/scan?partition=16", &[], "from 0 to 15"),
        ("GET", "/v1/list?cursor=x", &[], "cursor"),
        ("GET", "/v1/list?limit=1001", &[], "limit"),
        ("POST", "/v1/init", &[], "nothing"),
    ] {
        let body: &[u8] = if method == "POST" { b"{\"nothing\":1}" } else { b"" };
        let answer = served.call(method, path, headers, body);
        assert_eq!(answer.status, 400, "{method} {path}");
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(words), "{method} {path}: {error}");
    }
    let conditional = served.call("PUT", "/v1/kv/a", &[("If-Match", "\"x\"")], b"v");
    assert_eq!(conditional.status, 501);
    assert_eq!(served.get("/v2").status, 404);
    assert_eq!(served.call("POST", "/v1/kv/a", &[], b"v").status, 405);
    assert_eq!(served.database.asked(), 0);
}

#[test]
fn failures_say_what_a_client_may_do() {
    let served = Served::new();
    let unknown = RequestError::Unknown {
        needed: 2,
        got: 1,
        of: 3,
        version: token(),
    };
    let (needed, got, of) = (2, 1, 3);
    for (error, status, body) in [
        (
            RequestError::Unavailable { needed, got, of },
            503,
            json!({"error": "needed 2, got 1 of 3", "needed": 2, "got": 1, "of": 3}),
        ),
        (
            RequestError::TimedOut { needed, got, of },
            504,
            json!({"error": "timed out: needed 2, got 1 of 3", "needed": 2, "got": 1, "of": 3}),
        ),
        (
            unknown,
            504,
            json!({"error": "outcome unknown: needed 2, got 1 of 3", "needed": 2, "got": 1,
                   "of": 3, "retry_token": TOKEN}),
        ),
        (
            RequestError::NotReady("joining".to_owned()),
            503,
            json!({"error": "not ready: joining"}),
        ),
        (
            RequestError::BadRequest("no".to_owned()),
            400,
            json!({"error": "no"}),
        ),
        (
            RequestError::Overloaded("queue full"),
            503,
            json!({"error": "overloaded: queue full"}),
        ),
    ] {
        served.database.fail_next(error);
        let answer = served.put("/v1/kv/a", b"v");
        assert_eq!((answer.status, answer.json()), (status, body));
    }
}

#[test]
fn too_large_is_413_at_once() {
    let served = Served::with(|config| config.value_bytes_max = 1_000);
    assert_eq!(served.put("/v1/kv/a", &[7; 1_000]).status, 200);
    let answer = served.put("/v1/kv/a", &[7; 1_001]);
    assert_eq!(answer.status, 413);
    assert_eq!(
        answer.json()["error"],
        "value is 1001 bytes, more than the limit of 1000"
    );
    // Announced and never sent: refused before it is.
    let head = "PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n";
    assert!(served.raw(head.as_bytes()).starts_with("HTTP/1.1 413"));
    // Not announced: refused once it is too large.
    let mut chunked =
        "PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
    for _ in 0..3 {
        chunked.push_str(&format!("190\r\n{}\r\n", "x".repeat(0x190)));
    }
    assert!(served.raw(chunked.as_bytes()).starts_with("HTTP/1.1 413"));
    let long_key = format!("/v1/kv/{}", "k".repeat(33 * 1024));
    let answer = served.put(&long_key, b"v");
    assert_eq!(answer.status, 413);
    assert_eq!(
        answer.json()["error"],
        "key is 33792 bytes, more than the limit of 32768"
    );
    assert_eq!(served.put(&format!("/v1/kv/{}", "k".repeat(32 * 1024)), b"v").status, 200);
    assert_eq!(served.database.asked(), 2);
}

#[test]
fn garbage_is_refused_and_harms_nobody() {
    let served = Served::new();
    for garbage in [
        &b"\x00\x01\x02\r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"GET /v1/kv/a HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    ] {
        let answer = served.raw(garbage);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let huge_head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "h".repeat(200_000));
    let answer = served.raw(huge_head.as_bytes());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(served.get("/health").status, 200);
}

#[test]
fn overload_is_shed_at_once_and_health_does_not_care() {
    let served = Served::with(|config| {
        config.http_requests_max = 1;
        config.request_timeout_ms = 100;
    });
    served.database.hang();
    std::thread::scope(|scope| {
        let hanging = scope.spawn(|| served.get("/v1/kv/a"));
        while served.database.asked() == 0 {
            std::thread::yield_now();
        }
        let start = Instant::now();
        let shed = served.get("/v1/kv/a");
        assert_eq!(shed.status, 503);
        assert_eq!(shed.header("retry-after"), "1");
        assert_eq!(served.get("/health").status, 200);
        assert_eq!(served.get("/ready").status, 200);
        assert!(start.elapsed() < Duration::from_secs(4));
        // And what the database never answers is given up in the end.
        assert_eq!(hanging.join().unwrap().status, 504);
    });
    let metrics = String::from_utf8(served.get("/metrics").body).unwrap();
    assert!(metrics.contains("mydatastore_http_requests_shed_total 1"), "{metrics}");
}

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
        assert!(String::from_utf8(answer.body).unwrap().contains(words), "{words}");
        assert_eq!(served.get("/health").status, 200);
    }
}

#[test]
fn the_originals_own_interface() {
    let served = Served::new();
    let mut view = three_members();
    view.peers.get_mut(&NodeId(3)).unwrap().alive = false;
    served.database.set_view(view);
    let sorted = |answer: &Answer| {
        let mut body = answer.json();
        let members = body["Members"].as_array_mut().unwrap();
        members.sort_by_key(|name| name.as_str().unwrap().to_owned());
        body
    };
    let members = json!(["node-1", "node-2", "node-3"]);
    let answer = served.get("/set?key=a%20b&value=hello+world");
    assert_eq!(answer.status, 200);
    let expected = json!({"Value": "hello world", "Error": "", "Members": members,
                          "Failed_members": ["node-3"]});
    assert_eq!(sorted(&answer), expected);
    let answer = served.get("/get?key=a+b");
    assert_eq!((answer.status, sorted(&answer)), (200, expected));
    let answer = served.get("/get?key=absent");
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["Error"], "key not found");
    served.database.fail_next(RequestError::Unavailable { needed: 2, got: 1, of: 3 });
    let answer = served.get("/get?key=a+b");
    assert_eq!((answer.status, &answer.json()["Error"]), (503, &json!("needed 2, got 1 of 3")));
    assert_eq!(served.get("/get").status, 400);
    assert_eq!(served.get("/set?key=a").status, 400);
}

#[test]
fn listing_goes_through_all_pages() {
    let served = Served::new();
    for number in 0..50 {
        served.put(&format!("/v1/kv/user/{number}"), number.to_string().as_bytes());
    }
    served.put("/v1/kv/user", b"not below it");
    served.put("/v1/kv/z%00%FF", b"\xfe");
    let list = |prefix: &str, limit: u32| {
        let mut keys = Vec::new();
        let mut cursor = None;
        loop {
            let from = cursor.map(|text: String| format!("&cursor={}", percent_encode(text.as_bytes())));
            let path = format!("/v1/list?prefix={prefix}&limit={limit}{}", from.unwrap_or_default());
            let page: PageBody = serde_json::from_slice(&served.get(&path).body).unwrap();
            assert!(page.records.len() <= limit as usize);
            keys.extend(page.records.into_iter().map(|record| record.key));
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        keys.sort();
        keys
    };
    for limit in [1, 7, 1_000] {
        assert_eq!(list("user/", limit).len(), 50, "limit {limit}");
        assert_eq!(list("user", limit).len(), 51);
        assert_eq!(list("", limit).len(), 52);
        assert_eq!(list("z%00", limit), ["z%00%FF"]);
        assert_eq!(list("nothing", limit).len(), 0);
    }
    let values = served.get("/v1/list?prefix=z&values=true").json();
    assert_eq!(values["records"][0]["value"], "%FE");
    assert_eq!(values["records"][0]["value_bytes"], 1);
    let found: usize = (0..16)
        .map(|partition| {
            let page = served.get(&format!("/v1/scan?partition={partition}&limit=1000")).json();
            page["records"].as_array().unwrap().len()
        })
        .sum();
    assert_eq!(found, 52);
}

#[test]
fn the_cluster_is_shown_as_it_is() {
    let served = Served::new();
    let status = served.get("/v1/status").json();
    assert_eq!(status["node"]["name"], "node-1");
    assert_eq!(status["standing"], "active");
    assert_eq!(status["config"], json!({"partition_count": 16, "n": 3, "r": 2, "w": 2}));
    assert_eq!(status["members"].as_array().unwrap().len(), 3);
    assert_eq!(status["numbers"]["records"], 0.0);
    let ring = served.get("/v1/ring").json();
    assert_eq!(ring["partitions"].as_array().unwrap().len(), 16);
    for replicas in ring["partitions"].as_array().unwrap() {
        assert_eq!(replicas.as_array().unwrap().len(), 3);
    }
    let primaries = ring["members"].as_array().unwrap().iter();
    assert_eq!(primaries.map(|member| member["primaries"].as_u64().unwrap()).sum::<u64>(), 16);
    assert_eq!(served.get("/v1/members").json()["members"], status["members"]);
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
    let answer = served.call("POST", "/v1/init", &[], br#"{"nodes": 3, "partition_count": 64}"#);
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
    assert!(answer.header("content-type").starts_with("application/openmetrics-text"));
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
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
    assert!(!text.contains("secret-key") && !text.contains("path-of-a-client"));
}

#[test]
fn shutdown_waits_for_the_request_in_progress_only() {
    let mut served = Served::with(|config| config.request_timeout_ms = 600_000);
    let mut idle = TcpStream::connect(served.addr).unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let start = Instant::now();
    drop(served.stop.take());
    served.thread.take().unwrap().join().unwrap();
    assert!(start.elapsed() < super::limits::DRAIN_TIMEOUT, "an idle client held it up");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// Any bytes can be a key: what is written under one is read under it, and only under it.
    #[test]
    fn any_bytes_can_be_a_key(
        keys in prop::collection::btree_set(prop::collection::vec(any::<u8>(), 1..60), 1..12),
    ) {
        let served = Served::new();
        for key in &keys {
            let answer = served.put(&format!("/v1/kv/{}", percent_encode(key)), key);
            prop_assert_eq!(answer.status, 200);
        }
        for key in &keys {
            let answer = served.get(&format!("/v1/kv/{}", percent_encode(key)));
            prop_assert_eq!((answer.status, &answer.body), (200, key));
        }
    }

    /// No path, query or header brings the server down, and nothing is answered 500.
    #[test]
    fn no_request_line_is_an_internal_error(
        paths in prop::collection::vec("(/v1/(kv|list|scan|init|x)?/?|/set|/get|/)[!-~]{0,30}", 1..12),
    ) {
        let served = Served::new();
        for path in paths {
            let answer = served.raw(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
            prop_assert!(!answer.starts_with("HTTP/1.1 500"), "{}: {}", path, answer);
        }
        prop_assert_eq!(served.get("/health").status, 200);
    }
}
