//! Epochs of real processes are closed, verified and settled, and an operator sees it.

// A test's helpers may fail like the test itself.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::process::Output;

use cluster::lab::Lab;
use serde_json::Value;

/// Epochs are short, so that nobody waits.
const SHORT_EPOCHS: &[&str] = &["--epoch-interval-ms", "500"];

/// What a command said with `--json`.
fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// All epochs that are told of, as the command sees them through a node.
fn epochs(lab: &Lab, node: usize) -> Value {
    let output = lab.client(&[node], &["epochs", "--limit", "1000", "--json"]);
    assert!(output.status.success(), "{output:?}");
    json(&output)
}

/// What is told of one epoch.
fn epoch_in(whole: &Value, epoch: u64) -> &Value {
    let mut all = whole["epochs"].as_array().unwrap().iter();
    all.find(|one| one["epoch"] == epoch)
        .unwrap_or_else(|| panic!("epoch {epoch} is not in {whole}"))
}

fn present_epoch(lab: &Lab, node: usize) -> u64 {
    lab.status(node)["epoch"].as_u64().unwrap()
}

#[test]
fn what_was_written_is_verified_on_all_replicas_and_everybody_can_see_it() {
    let lab = Lab::start_with("epochs", 20_600, SHORT_EPOCHS);
    let first = present_epoch(&lab, 1);
    for number in 0..50 {
        lab.put(&[1], &format!("key:{number}"), "v");
    }
    lab.put(&[2], "greeting", "hello");
    let last = present_epoch(&lab, 1);
    lab.wait_until("all that was written is verified", || {
        epochs(&lab, 1)["verified"].as_u64() >= Some(last)
    });

    let whole = epochs(&lab, 2);
    assert_eq!(whole["silent"], serde_json::json!([]));
    assert_eq!(whole["nodes"].as_array().unwrap().len(), 3);
    for epoch in first..=last {
        let told = epoch_in(&whole, epoch);
        // 256 partitions with three replicas each.
        assert_eq!(told["replicas"], 768, "{told}");
        assert_eq!(told["settled"], 768, "{told}");
        assert!(
            told["state"] == "settled" || told["state"] == "collected",
            "{told}"
        );
        assert!(
            told["closed_at_ms"].as_u64().is_some() || epoch == first,
            "{told}"
        );
    }
    let table = lab.client(&[3], &["epochs"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("all nodes have verified"), "{table}");
    assert!(
        table.contains("node-3") && table.contains("100%"),
        "{table}"
    );

    for epoch in first..=last {
        let epoch = epoch.to_string();
        let verified = lab.client(&[1], &["verify", "key:greeting", &epoch, "--json"]);
        let found = json(&verified);
        assert!(verified.status.success(), "{found}");
        assert_eq!(found["verdict"], "settled");
        assert_eq!(found["replicas"].as_array().unwrap().len(), 3);
    }
    let said = lab.client(&[1], &["verify", "key:greeting", &last.to_string()]);
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(
        said.contains("equal:") && said.contains("settled and dropped"),
        "{said}"
    );
    let to_come = (last + 1_000_000).to_string();
    let verified = lab.client(&[1], &["verify", "0", &to_come, "--json"]);
    assert_eq!(verified.status.code(), Some(3));
    assert_eq!(json(&verified)["verdict"], "not_closed");
    let wrong = lab.client(&[1], &["verify", "256", "1"]);
    assert_eq!(wrong.status.code(), Some(2));

    for node in 1..=3 {
        assert!(lab.metric(node, "oldest_unverified_epoch") > last as f64);
        // Counts follow the ledger: when the store's whole batch is done, and at the next tick.
        lab.wait_until("each partition was settled once at least", || {
            lab.metric(node, "sync_settled_total") >= 256.0
        });
        lab.wait_until("it has talked about that", || {
            lab.metric(node, "sync_messages_total") > 0.0
        });
        assert_eq!(lab.metric(node, "partitions"), 256.0);
    }
    // One side of a pair asks, the other learns from its question: nobody has to ask all others.
    let comparisons = |node| lab.metric(node, "sync_comparisons_total");
    lab.wait_until("somebody has compared", || {
        (1..=3).map(comparisons).sum::<f64>() > 0.0
    });
    lab.stop();
}

#[test]
fn a_dead_replica_blocks_and_is_named_and_the_others_are_seen_equal() {
    let lab = Lab::start_with("blocked", 20_700, SHORT_EPOCHS);
    lab.act("kill-node", 3);
    lab.put(&[1], "missed", "v");
    // The epoch may have changed between the write and this look, but no write came since.
    let epoch = present_epoch(&lab, 1);
    let written = |epoch: u64| {
        let text = epoch.to_string();
        let found = json(&lab.client(&[1], &["verify", "key:missed", &text, "--json"]));
        let replicas = found["replicas"].as_array().unwrap();
        let rows: u64 = replicas.iter().filter_map(|one| one["rows"].as_u64()).sum();
        (rows > 0).then_some(found)
    };
    lab.wait_until(
        "what was written without node 3 is closed, and node 3 is named",
        || {
            let whole = epochs(&lab, 1);
            let nodes = whole["nodes"].as_array().unwrap().iter();
            let closed = nodes
                .clone()
                .all(|node| node["closed"].as_u64() >= Some(epoch));
            closed
                && nodes.clone().count() == 2
                && nodes
                    .clone()
                    .all(|node| node["blocked_by"][0]["name"] == "node-3")
        },
    );
    let whole = epochs(&lab, 1);
    assert_eq!(whole["silent"][0]["name"], "node-3");
    assert!(whole["lag_epochs"].as_u64().unwrap() > 0);
    assert!(lab.metric(1, "verification_blocked_seconds") > 0.0);
    assert!(lab.metric(1, "verified_lag_seconds") > 0.0);

    let found = (epoch.saturating_sub(2).max(1)..=epoch).find_map(written);
    let found = found.expect("the write is a row of its epoch");
    assert_eq!(found["verdict"], "undecided", "{found}");
    assert_eq!(found["silent"][0]["name"], "node-3");
    let replicas = found["replicas"].as_array().unwrap();
    assert_eq!(replicas.len(), 2);
    assert_eq!(replicas[0]["root"], replicas[1]["root"]);
    assert_eq!(replicas[0]["leaves"], replicas[1]["leaves"]);
    let sum = |replica: &Value| -> u64 {
        let leaves = replica["leaves"].as_array().unwrap().iter();
        leaves.map(|leaf| leaf["rows"].as_u64().unwrap()).sum()
    };
    assert_eq!(Some(sum(&replicas[0])), replicas[0]["rows"].as_u64());

    lab.act("start-node", 3);
    let epoch = found["epoch"].as_u64().unwrap().to_string();
    lab.eventually(&[1], &["verify", "key:missed", &epoch]);
    lab.wait_until("nobody is waited for", || {
        let whole = epochs(&lab, 1);
        let mut nodes = whole["nodes"].as_array().unwrap().iter();
        nodes.all(|node| node["blocked_by"] == serde_json::json!([]))
    });
    lab.stop();
}
