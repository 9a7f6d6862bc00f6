//! Real processes on loopback, broken on purpose: what the simulator cannot show, because it has no kernel,
//! no real disk and no real engine.
//!
//! Each test starts a lab of its own on its own ports. They run one after the other: three nodes and a
//! writer at full speed are enough for a small machine. `MDS_CHAOS_SECONDS` makes the long ones longer.

#![allow(clippy::unwrap_used)]

mod cluster;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use cluster::client::Client;
use cluster::lab::{Lab, mydatastore};
use cluster::load::{Load, check_all};

/// How long a test that breaks things goes on.
fn chaos_time() -> Duration {
    let seconds = std::env::var("MDS_CHAOS_SECONDS")
        .ok()
        .and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(8))
}

#[test]
fn nothing_acknowledged_is_lost_and_nobody_waits_when_nodes_are_killed() {
    let lab = Lab::start("kill", 13000);
    let load = Load::start(&lab);
    load.wait_for(500);
    let began = Instant::now();
    let mut victim = 0;
    while began.elapsed() < chaos_time() {
        let node = victim % 3 + 1;
        victim += 1;
        load.set_up(node, false);
        lab.act("kill-node", node);
        load.wait_for(300);
        lab.act("start-node", node);
        lab.wait_ready(node);
        load.set_up(node, true);
        load.wait_for(300);
    }
    let acked = load.finish();
    assert!(acked.len() > 1_000);
    for node in 1..=3 {
        check_all(&lab, node, &acked);
    }
    lab.wait_equal();
    lab.stop();
}

#[test]
fn with_two_of_three_dead_requests_fail_fast_with_numbers_and_work_again_after_a_restart() {
    let lab = Lab::start("two-dead", 13010);
    let mut client = Client::connect(lab.resp_port(1)).unwrap();
    assert_eq!(client.call(&["SET", "k", "v"]).unwrap(), "+OK");
    lab.act("kill-node", 2);
    lab.act("kill-node", 3);
    for command in [&["SET", "k", "w"][..], &["GET", "k"], &["DEL", "k"]] {
        let began = Instant::now();
        let reply = client.call(command).unwrap();
        println!("{command:?}: {reply} after {:?}", began.elapsed());
        assert!(reply.contains("needed 2, got 1 of 3"), "{reply}");
    }
    let (status, body) = lab.http(1, "GET", "/v1/kv/k", b"");
    assert_eq!(status, 503);
    assert!(
        body.contains("\"needed\":2") && body.contains("\"got\":1"),
        "{body}"
    );
    lab.act("start-node", 2);
    let began = Instant::now();
    while client.call(&["GET", "k"]).unwrap() != "v" {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "two of three do not work again"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("works again {:?} after the restart", began.elapsed());
    assert_eq!(client.call(&["SET", "k", "w"]).unwrap(), "+OK");
    lab.stop();
}

#[test]
fn a_stopped_process_harms_nobody_and_catches_up_when_it_goes_on() {
    let lab = Lab::start("pause", 13020);
    let load = Load::start(&lab);
    load.wait_for(300);
    load.set_up(3, false);
    lab.act("pause-node", 3);
    let began = Instant::now();
    while began.elapsed() < chaos_time() {
        load.wait_for(200);
    }
    lab.act("resume-node", 3);
    // After so long the others have closed its connections; until it has dialled anew it refuses.
    lab.wait_writable(3);
    load.set_up(3, true);
    load.wait_for(300);
    let acked = load.finish();
    check_all(&lab, 3, &acked);
    lab.wait_equal();
    lab.stop();
}

#[test]
fn a_wiped_node_is_a_new_one_that_waits_and_answers_nothing_from_emptiness() {
    let lab = Lab::start("wipe", 13030);
    let mut client = Client::connect(lab.resp_port(1)).unwrap();
    for number in 0..50 {
        assert_eq!(
            client.call(&["SET", &format!("k{number}"), "v"]).unwrap(),
            "+OK"
        );
    }
    let before = lab.status(3)["node"]["id"].clone();
    lab.act("wipe-node", 3);
    lab.act("start-node", 3);
    lab.wait_standing(3, "waiting");
    assert_ne!(lab.status(3)["node"]["id"], before, "another node");
    let mut wiped = Client::connect(lab.resp_port(3)).unwrap();
    assert!(
        wiped
            .call(&["MDS.CONSISTENCY", "R", "1"])
            .unwrap()
            .starts_with('+')
    );
    for number in 0..50 {
        // Even at R=1: it asks those that have the data, never its own empty disk. While it is not
        // connected to them yet it says so; it never says "absent".
        let began = Instant::now();
        loop {
            let read = wiped.call(&["GET", &format!("k{number}")]).unwrap();
            if read == "v" {
                break;
            }
            assert!(
                read.starts_with("-QUORUM") || read.starts_with("-LOADING"),
                "{read}"
            );
            assert!(began.elapsed() < Duration::from_secs(30), "{read}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    lab.stop();
}

#[test]
fn hostile_input_gets_an_error_and_harms_nobody() {
    let lab = Lab::start("hostile", 13040);
    let mut client = Client::connect(lab.resp_port(1)).unwrap();
    assert_eq!(client.call(&["SET", "k", "v"]).unwrap(), "+OK");

    // Bytes that make no sense, at every port.
    for port in [lab.resp_port(1), lab.http_port(1), lab.peer_port(1)] {
        for garbage in [
            &[0u8; 64][..],
            &[0xff; 4096],
            b"*1000000000\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
        ] {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            let _ = stream.write_all(garbage);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
        }
    }
    let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for size in [0, 1, 100, 1_400, 60_000] {
        datagrams
            .send_to(&vec![0xa5; size], ("127.0.0.1", lab.peer_port(1)))
            .unwrap();
    }

    // Too large.
    let reply = client.call(&["SET", &"k".repeat(33 * 1024), "v"]).unwrap();
    assert!(
        reply.starts_with("-ERR") && reply.contains("32768"),
        "{reply}"
    );
    let big = vec![b'v'; 17 * 1024 * 1024];
    let (status, _) = lab.http(1, "PUT", "/v1/kv/big", &big);
    assert_eq!(status, 413);
    let mut other = Client::connect(lab.resp_port(1)).unwrap();
    let reply = other.call_bytes(&[b"SET", b"big", &big]);
    assert!(reply.is_err() || reply.unwrap().starts_with('-'));

    // A second process on the same directory, a port in use, a directory that is a file.
    let (code, said) = lab.serve_again(1, 500, &[]);
    assert_ne!(code, 0);
    assert!(said.contains("another process is using"), "{said}");
    let fresh = lab.dir().join("fresh");
    let (code, said) = lab.serve_again(1, 0, &["--data-dir", fresh.to_str().unwrap()]);
    assert_ne!(code, 0);
    assert!(said.contains("cannot listen on"), "{said}");
    let file = lab.dir().join("file");
    std::fs::write(&file, "not a directory").unwrap();
    let (code, said) = lab.serve_again(1, 500, &["--data-dir", file.to_str().unwrap()]);
    assert_ne!(code, 0);
    assert!(said.contains("data directory"), "{said}");
    assert!(!said.contains("panicked"), "{said}");

    assert_eq!(client.call(&["GET", "k"]).unwrap(), "v", "and all is well");
    for node in 1..=3 {
        assert!(!lab.log(node).contains("panicked"), "{}", lab.log(node));
    }
    lab.stop();
}

#[test]
fn a_full_cycle_of_stop_and_start_keeps_everything_and_sigterm_ends_a_node_in_time() {
    let lab = Lab::start("cycle", 13050);
    let mut client = Client::connect(lab.resp_port(2)).unwrap();
    for number in 0..200 {
        let (key, value) = (format!("k{number}"), "x".repeat(number * 50));
        assert_eq!(client.call(&["SET", &key, &value]).unwrap(), "+OK");
    }
    let began = Instant::now();
    lab.act("stop-node", 2);
    let took = began.elapsed();
    println!("a node stopped in {took:?}");
    assert!(took < Duration::from_secs(10), "draining is bounded");
    assert!(lab.log(2).contains("stopped"), "{}", lab.log(2));
    lab.act("start-node", 2);
    lab.wait_ready(2);
    let dir = lab.stop_and_keep();
    let lab = Lab::resume(dir, 13050);
    let mut client = Client::connect(lab.resp_port(3)).unwrap();
    for number in 0..200 {
        let value = "x".repeat(number * 50);
        assert_eq!(client.call(&["GET", &format!("k{number}")]).unwrap(), value);
    }
    lab.stop();
}

#[test]
fn the_command_line_talks_to_a_cluster() {
    let lab = Lab::start("cli", 13060);
    let node = format!("127.0.0.1:{}", lab.http_port(2));
    let run = |args: &[&str]| mydatastore(&[args, &["--node", &node]].concat());
    assert_eq!(run(&["put", "greeting", "hello"]).0, 0);
    assert_eq!(run(&["get", "greeting"]), (0, "hello".to_owned()));
    assert_eq!(run(&["get", "nothing"]).0, 1);
    let (code, said) = run(&["status"]);
    assert_eq!(code, 0);
    assert!(said.contains("node-1") && said.contains("node-3"), "{said}");
    let (code, said) = run(&["ring", "--json"]);
    assert_eq!(code, 0);
    assert!(
        serde_json::from_str::<serde_json::Value>(&said).is_ok(),
        "{said}"
    );
    assert_eq!(run(&["del", "greeting"]).0, 0);
    assert_eq!(run(&["get", "greeting"]).0, 1);
    // The original system's own endpoints.
    let (status, _) = lab.http(1, "GET", "/set?key=a&value=b", b"");
    assert_eq!(status, 200);
    let (status, body) = lab.http(3, "GET", "/get?key=a", b"");
    assert_eq!(status, 200);
    assert!(body.contains("\"Value\":\"b\""), "{body}");
    let (status, body) = lab.http(1, "GET", "/metrics", b"");
    assert_eq!(status, 200);
    assert!(body.contains("mydatastore_"), "{body}");
    lab.stop();
}
