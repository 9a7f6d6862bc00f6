//! The load generator against real servers: what it reports, and that it tells what is wrong with them.

// A test's helpers may fail like the test itself.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cluster::lab::{Lab, PATIENCE};
use serde_json::Value;

/// Begins a run, whose output is to be read at its end.
fn begin(target: &str, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_mydatastore"))
        .args(["bench", "--json", "--target", target])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no document: {output:?}"))
}

/// Runs it to its end, which has to be a good one.
fn bench(target: &str, arguments: &[&str]) -> Value {
    let output = begin(target, arguments).wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    document(&output)
}

fn target(lab: &Lab, nodes: &[usize]) -> String {
    let targets = nodes
        .iter()
        .map(|&node| format!("127.0.0.1:{}", lab.resp_port(node)));
    targets.collect::<Vec<_>>().join(",")
}

/// What holds for every run without trouble.
fn assert_clean(report: &Value) {
    let result = &report["result"];
    assert!(result["ops"].as_u64().unwrap() > 0, "{result}");
    assert_eq!(result["errors"], 0, "{result}");
    assert_eq!(result["misses"], 0, "{result}");
    assert_eq!(result["latency"][0]["kind"], "all");
    assert_eq!(result["latency"][0]["ops"], result["ops"]);
    if report["plan"]["verify"] == true {
        assert!(result["verify"]["reads"].as_u64().unwrap() > 0);
        assert_eq!(result["verify"]["violations"], 0, "{result}");
    }
}

#[test]
fn a_cluster_is_loaded_measured_and_verified() {
    let lab = Lab::start("bench", 20_800);
    let all = target(&lab, &[1, 2, 3]);
    let plot = lab.dir().join("plot.svg");
    let small = ["--keys", "2000", "--warmup", "0.2", "--seconds", "1"];
    let closed = [&small[..], &["--load", "--workload", "a", "--verify"]].concat();
    let closed = bench(
        &all,
        &[&closed[..], &["--svg", plot.to_str().unwrap()]].concat(),
    );
    assert_clean(&closed);
    assert_eq!(closed["load"]["keys"], 2_000);
    let servers = closed["result"]["cpu"]["servers"].as_array().unwrap();
    let mut pids: Vec<i64> = servers
        .iter()
        .map(|one| one["pid"].as_i64().unwrap())
        .collect();
    pids.sort_unstable();
    let mut nodes: Vec<i64> = (1..=3).map(|node| i64::from(lab.pid(node))).collect();
    nodes.sort_unstable();
    assert_eq!(pids, nodes, "all nodes and nobody else");
    let drawn = std::fs::read_to_string(&plot).unwrap();
    assert!(drawn.starts_with("<svg ") && drawn.ends_with("</svg>\n"));

    // One node is asked, the others count as well. What was loaded is known to a run that did not load.
    let one = target(&lab, &[1]);
    let counted = bench(
        &one,
        &[
            "--keys",
            "2000",
            "--workload",
            "get",
            "-n",
            "3001",
            "-P",
            "8",
            "--warmup",
            "0",
        ],
    );
    assert_clean(&counted);
    assert_eq!(counted["result"]["ops"], 3_001);
    assert_eq!(
        counted["result"]["cpu"]["servers"]
            .as_array()
            .unwrap()
            .len(),
        3
    );

    let open = [
        &small[..],
        &["--workload", "f", "--rate", "200", "--arrivals", "poisson"],
    ]
    .concat();
    let open = bench(&one, &open);
    assert_clean(&open);
    assert_eq!(open["plan"]["pace"], "open");
    assert!(
        open["result"]["open_loop"]["achieved_rate"]
            .as_f64()
            .unwrap()
            > 0.0
    );

    let http = format!("http://127.0.0.1:{}", lab.http_port(2));
    let http = bench(
        &http,
        &[
            &small[..],
            &[
                "--load",
                "--workload",
                "b",
                "--verify",
                "--read-quorum",
                "2",
            ],
        ]
        .concat(),
    );
    assert_clean(&http);
    assert_eq!(http["plan"]["protocol"], "http");
    for report in [&closed, &counted, &open, &http] {
        assert_is_described(report);
    }
    lab.stop();
}

#[test]
fn a_wrong_answer_is_found_and_named() {
    let lab = Lab::start("bench-wrong", 20_850);
    let keys = 50;
    let keys_text = keys.to_string();
    let run = begin(
        &target(&lab, &[1]),
        &[
            "--keys",
            &keys_text,
            "--load",
            "--workload",
            "get",
            "-c",
            "4",
            "--warmup",
            "0",
            "--rate",
            "100",
            "--seconds",
            "3600",
            "--verify",
        ],
    );
    // The last key that is loaded is there: now every one gets a value that the run did not write.
    let key = |number: usize| format!("key:{number:012}");
    let path = |number: usize| format!("/v1/kv/{}", key(number));
    lab.wait_until("all keys are loaded", || {
        (0..keys).all(|number| lab.http(2, "GET", &path(number), b"").0 == 200)
    });
    for number in 0..keys {
        assert_eq!(lab.http(2, "PUT", &path(number), b"planted").0, 200);
    }
    serves_further(&lab, 1, 300.0);
    let output = interrupted(run);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = document(&output);
    assert_eq!(report["interrupted"], true);
    let verify = &report["result"]["verify"];
    assert!(verify["violations"].as_u64().unwrap() > 0, "{verify}");
    assert_eq!(verify["examples"][0]["what"], "damaged", "{verify}");
    let named = verify["examples"][0]["key"].as_str().unwrap();
    assert!((0..keys).any(|number| named == key(number)), "{named}");
    lab.stop();
}

/// Every field has its place in the documentation.
fn assert_is_described(report: &Value) {
    let documentation = include_str!("../../../docs/bench.md");
    match report {
        Value::Object(fields) => {
            for (name, value) in fields {
                assert!(documentation.contains(&format!("`{name}`")), "{name}");
                assert_is_described(value);
            }
        }
        Value::Array(values) => values.iter().for_each(assert_is_described),
        _ => {}
    }
}

/// Waits until a node has answered so many requests more.
fn serves_further(lab: &Lab, node: usize, requests: f64) {
    let before = lab.metric(node, "requests_total");
    let what = format!("node {node} answers {requests} requests");
    lab.wait_until(&what, || {
        lab.metric(node, "requests_total") > before + requests
    });
}

/// Ctrl-C, and what it reports then.
fn interrupted(run: Child) -> Output {
    // SAFETY: a signal to a child that was not waited for.
    assert_eq!(unsafe { libc::kill(run.id() as i32, libc::SIGINT) }, 0);
    run.wait_with_output().unwrap()
}

#[test]
fn a_killed_node_breaks_its_own_connections_only() {
    let lab = Lab::start("bench-kill", 20_900);
    let arguments = [
        "--keys",
        "1000",
        "--load",
        "--rate",
        "500",
        "--seconds",
        "3600",
        "--verify",
        "--warmup",
        "0",
        "-c",
        "20",
    ];
    let others = begin(&target(&lab, &[1, 2]), &arguments);
    let prefixed = [&arguments[..], &["--key-prefix", "its:"]].concat();
    let its_own = begin(&target(&lab, &[3]), &prefixed);
    // More than what is loaded.
    serves_further(&lab, 1, 1_500.0);
    serves_further(&lab, 3, 1_500.0);
    lab.act("kill-node", 3);
    lab.act("start-node", 3);
    lab.wait_ready(3);
    // Some seconds of them; the pause before a connection is made again is one at most.
    serves_further(&lab, 3, 1_500.0);
    let (others, its_own) = (interrupted(others), interrupted(its_own));
    assert!(others.status.success(), "{others:?}");
    assert_clean(&document(&others));
    assert_eq!(document(&others)["result"]["connections"]["broken"], 0);
    let result = document(&its_own)["result"].clone();
    assert_eq!(result["verify"]["violations"], 0, "{result}");
    assert_eq!(result["connections"]["broken"], 20, "{result}");
    assert_eq!(result["connections"]["reconnected"], 20, "{result}");
    assert!(result["stalls"]["connection_ms"].as_f64().unwrap() > 0.0);
    lab.stop();
}

#[test]
fn a_target_that_is_not_there_is_said_plainly() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    drop(listener);
    let output = begin(&addr, &["--load", "--seconds", "1"])
        .wait_with_output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains(&format!("cannot use {addr}: Connection refused")),
        "{said}"
    );
    let output = begin("here", &[]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// Where Redis is installed: it is measured by the same program.
#[test]
fn a_redis_server_is_measured_too() {
    let dir = tempfile::tempdir().unwrap();
    let started = Command::new("redis-server")
        .args([
            "--port",
            "28990",
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
        ])
        .arg(dir.path())
        .stdout(Stdio::null())
        .spawn();
    let Ok(mut server) = started else {
        eprintln!("not tried: redis-server is not installed");
        return;
    };
    let began = Instant::now();
    while TcpStream::connect("127.0.0.1:28990").is_err() && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
    }
    let arguments = [
        "--load",
        "--keys",
        "1000",
        "--workload",
        "a",
        "--verify",
        "--warmup",
        "0",
        "--seconds",
        "0.5",
    ];
    let output = begin("127.0.0.1:28990", &arguments)
        .wait_with_output()
        .unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_clean(&document(&output));
    let servers = document(&output)["result"]["cpu"]["servers"].clone();
    assert_eq!(servers[0]["pid"], server.id(), "{servers}");
}
