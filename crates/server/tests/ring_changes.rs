//! The ring of real processes changes while clients write: a fourth node comes, and one goes.

// A test's helpers may fail like the test itself.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::client::Client;
use cluster::lab::{Lab, mydatastore};
use cluster::load::check_all;

/// Pause between two writes of the load: it is to be there, not to be heavy.
const WRITE_PAUSE: Duration = Duration::from_millis(2);

/// One writer through one node, which stays; what was acknowledged to it.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<BTreeMap<String, String>>,
}

impl Writer {
    fn start(lab: &Lab, node: usize) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let (port, stopped) = (lab.resp_port(node), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut client = Client::connect(port).unwrap();
            let mut acked = BTreeMap::new();
            for number in 0u64.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let (key, value) = (format!("n{node}:{number}"), format!("value {number}"));
                // What is refused, or of unknown outcome, promises nothing.
                if client.call(&["SET", &key, &value]).unwrap() == "+OK" {
                    acked.insert(key, value);
                }
                std::thread::sleep(WRITE_PAUSE);
            }
            acked
        });
        Writer { stop, thread }
    }

    fn finish(self) -> BTreeMap<String, String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
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
fn a_node_joins_and_another_leaves_while_clients_write_and_nothing_is_lost() {
    let lab = Lab::start("ring", 20_400);
    let writers = [Writer::start(&lab, 1), Writer::start(&lab, 3)];

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

    let said = act(&lab, &["remove-node", "2"]);
    assert!(said.contains("node 2 has left the ring"), "{said}");
    lab.says("node 2 has left the ring");
    assert_eq!(partitions_of(&lab, "node-2"), 0);
    assert_eq!(partitions_of(&lab, "node-4"), 256);

    let mut acked = BTreeMap::new();
    for writer in writers {
        acked.extend(writer.finish());
    }
    println!("{} writes acknowledged", acked.len());
    assert!(acked.len() > 100);
    for node in [1, 3, 4] {
        check_all(&lab, node, &acked);
    }
    lab.wait_equal();
    let dir = lab.stop_and_keep();

    // The lab goes on with those that are left.
    let lab = Lab::resume(dir, 20_400);
    let said = act(&lab, &["status"]);
    assert!(said.contains("left"), "{said}");
    check_all(&lab, 4, &acked);
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
