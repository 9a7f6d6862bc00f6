//! The ring of real processes changes while clients write and read: nodes come and go, and one is replaced.

// A test's helpers may fail like the test itself.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster::client::Client;
use cluster::lab::{Lab, mydatastore};
use cluster::load::check_all;

/// Pause between two writes of the load: it is to be there, not to be heavy.
const WRITE_PAUSE: Duration = Duration::from_millis(2);

/// How long the load runs before the ring changes.
const STEADY: Duration = Duration::from_secs(5);

/// What a writer has seen.
#[derive(Default)]
struct Seen {
    acked: BTreeMap<String, String>,
    /// Requests that were refused, failed, or of unknown outcome, and reads of something else than what was written.
    failures: Vec<String>,
    /// When each pair of requests began, and how long it took.
    took: Vec<(Instant, Duration)>,
}

/// Writes unique values through one node, which stays, and reads back what it wrote before: R + W > N, so each
/// read has to find it, whatever the ring is just then.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Seen>,
}

impl Writer {
    fn start(lab: &Lab, node: usize) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let (port, stopped) = (lab.resp_port(node), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut client = Client::connect(port).unwrap();
            let mut seen = Seen::default();
            let key_of = |number: u64| format!("n{node}:{number}");
            for number in 0u64.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (key, value) = (key_of(number), format!("value {number}"));
                let began = Instant::now();
                match client.call(&["SET", &key, &value]).unwrap().as_str() {
                    "+OK" => drop(seen.acked.insert(key, value)),
                    other => {
                        let took_ms = began.elapsed().as_millis();
                        let at = std::time::SystemTime::now();
                        seen.failures
                            .push(format!("{at:?} SET {key}, {took_ms} ms: {other}"));
                    }
                }
                // One of those that were written long ago, or just now.
                let earlier = key_of(number * 7 % (number + 1));
                let read = client.call(&["GET", &earlier]).unwrap();
                if seen.acked.get(&earlier).is_some_and(|value| *value != read) {
                    seen.failures.push(format!("GET {earlier}: {read}"));
                }
                seen.took.push((began, began.elapsed()));
                std::thread::sleep(WRITE_PAUSE);
            }
            seen
        });
        Writer { stop, thread }
    }

    fn finish(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// So many of a hundred are shorter.
fn percentile_ms(took: &mut [Duration], percent: usize) -> f64 {
    took.sort_unstable();
    let at = took.len() * percent / 100;
    took.get(at.min(took.len().saturating_sub(1)))
        .map_or(0.0, |took| took.as_secs_f64() * 1e3)
}

/// Parts of the load, each with its name and when it began, in order.
type Parts<'a> = [(&'a str, Instant)];

/// Ends the load: no request may have failed. What was acknowledged. Says how long requests took in each of the
/// parts.
fn finish(writers: impl IntoIterator<Item = Writer>, parts: &Parts) -> BTreeMap<String, String> {
    let mut acked = BTreeMap::new();
    let mut took: Vec<Vec<Duration>> = vec![Vec::new(); parts.len()];
    for writer in writers {
        let seen = writer.finish();
        assert_eq!(seen.failures, [""; 0], "of {}", seen.acked.len());
        println!("{} writes acknowledged and none failed", seen.acked.len());
        for (began, lasted) in seen.took {
            let begun = parts.iter().filter(|(_, since)| *since <= began).count();
            took[begun.saturating_sub(1)].push(lasted);
        }
        acked.extend(seen.acked);
    }
    for ((name, _), took) in parts.iter().zip(&mut took) {
        println!(
            "a write and a read {name}, ms: p50 {:.1}, p99 {:.1}, longest {:.1}",
            percentile_ms(took, 50),
            percentile_ms(took, 99),
            percentile_ms(took, 100),
        );
    }
    assert!(acked.len() > 100);
    acked
}

/// A command of the lab that takes no node, or one; what it printed.
fn act(lab: &Lab, words: &[&str]) -> String {
    let dir = lab.dir().to_str().unwrap();
    let output = lab.client(&[1], &[&["lab"], words, &["--dir", dir]].concat());
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn partitions_of(lab: &Lab, name: &str) -> u64 {
    let (status, body) = lab.http(1, "GET", "/v1/ring", b"");
    assert_eq!(status, 200);
    let ring: serde_json::Value = serde_json::from_str(&body).unwrap();
    let members = ring["members"].as_array().unwrap();
    let member = members.iter().find(|member| member["name"] == name);
    member.map_or(0, |member| member["partitions"].as_u64().unwrap())
}

#[test]
fn three_nodes_become_five_and_three_again_under_load_and_no_request_fails() {
    let lab = Lab::start("ring", 20_400);
    let writers = [Writer::start(&lab, 1), Writer::start(&lab, 3)];
    // Some of an ordinary life, to compare with.
    let mut parts = vec![("before the changes", Instant::now())];
    std::thread::sleep(STEADY);
    parts.push(("while three become five", Instant::now()));

    let said = act(&lab, &["add-node"]);
    assert!(said.contains("node 4 has joined"), "{said}");
    assert!(said.contains("stream") || said.contains("stable"), "{said}");
    // 256 partitions on three of four nodes each: 192 are its fair share.
    assert!((150..=240).contains(&partitions_of(&lab, "node-4")));
    lab.wait_ready(4);
    // What it gained was copied whole, and nothing is left to copy.
    assert!(lab.metric(4, "copied_partitions_total") >= 150.0);
    assert_eq!(lab.metric(4, "copy_partitions_left"), 0.0);
    assert_eq!(lab.metric(4, "transition_stage"), 1.0, "it is in one stage");
    let said = act(&lab, &["add-node"]);
    assert!(said.contains("node 5 has joined"), "{said}");
    parts.push(("of five, at rest", Instant::now()));
    std::thread::sleep(STEADY);

    parts.push(("while five become three", Instant::now()));
    for gone in ["2", "4"] {
        let said = act(&lab, &["remove-node", gone]);
        let words = format!("node {gone} has left the ring");
        assert!(said.contains(&words), "{said}");
        lab.says(&words);
    }
    assert_eq!(partitions_of(&lab, "node-2"), 0);
    assert_eq!(partitions_of(&lab, "node-4"), 0);
    assert_eq!(partitions_of(&lab, "node-5"), 256);

    let acked = finish(writers, &parts);
    for node in [1, 3, 5] {
        check_all(&lab, node, &acked);
    }
    lab.wait_equal();
    let dir = lab.stop_and_keep();

    // The lab goes on with those that are left.
    let lab = Lab::resume(dir, 20_400);
    let said = act(&lab, &["status"]);
    assert!(said.contains("left"), "{said}");
    check_all(&lab, 5, &acked);
    lab.stop();
}

#[test]
fn a_killed_and_wiped_node_is_replaced_under_load_and_no_other_request_fails() {
    let lab = Lab::start("replace", 20_600);
    // The third node coordinates nothing: what it would take along is not looked at.
    let writers = [Writer::start(&lab, 1), Writer::start(&lab, 2)];
    let mut parts = vec![("before the change", Instant::now())];
    std::thread::sleep(STEADY);
    parts.push(("while one is replaced", Instant::now()));
    let dead = lab.status(3)["node"]["id"].as_str().unwrap().to_owned();
    lab.act("wipe-node", 3);
    lab.act("start-node", 3);
    lab.wait_standing(3, "waiting");
    let fresh = lab.status(3)["node"]["id"].as_str().unwrap().to_owned();
    assert_ne!(dead, fresh);

    // The name is both of theirs: it is not guessed who is meant.
    let refused = lab.client(&[1], &["replace", "node-3", "--with", &fresh]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    // Refused as long as gossip has not given the dead one up.
    lab.eventually(&[1], &["replace", &dead, "--with", &fresh]);
    let ended = lab.client(&[1], &["transition", "status", "--wait"]);
    assert!(ended.status.success(), "{ended:?}");
    lab.wait_standing(3, "active");
    assert_eq!(partitions_of(&lab, "node-3"), 256);

    let acked = finish(writers, &parts);
    for node in 1..=3 {
        check_all(&lab, node, &acked);
    }
    lab.wait_equal();
    lab.stop();
}

#[test]
fn a_change_that_cannot_be_is_refused_with_its_reason_and_repeats_are_the_same_request() {
    let lab = Lab::start("refused", 20_500);
    let node = format!("127.0.0.1:{}", lab.http_port(1));
    // N is 3, and there are three.
    let refused = lab.client(&[1], &["leave", "node-2"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    let refused = lab.client(&[1], &["remove", "node-3"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("is alive"), "{said}");
    let refused = lab.client(&[1], &["transition", "abort"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");

    let reweigh = [
        "reweigh",
        "node-1=150",
        "--request",
        "ab",
        "--wait",
        "--node",
        &node,
    ];
    let (code, said) = mydatastore(&reweigh);
    assert_eq!(code, 0, "{said}");
    let (code, said) = mydatastore(&[&reweigh[..], &["--json"]].concat());
    assert_eq!(code, 0, "{said}");
    let now: serde_json::Value = serde_json::from_str(&said).unwrap();
    let request = format!("{:032x}", 0xab);
    let finished = serde_json::json!([{"request": request, "fate": "finished"}]);
    assert_eq!(now["requests"], finished, "begun once, not twice");
    let other = lab.client(&[2], &["reweigh", "node-1=50", "--request", "ab"]);
    assert_eq!(other.status.code(), Some(2), "{other:?}");
    lab.stop();
}
