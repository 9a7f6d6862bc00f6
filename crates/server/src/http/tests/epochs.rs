//! What is told about epochs.

use mds_node::epoch_set::{EpochSet, Found};

use super::*;
use crate::database::{EpochCounts, EpochsReport, PartitionCounts};

fn counts(epoch: u64, settled: u64, collected: u64) -> EpochCounts {
    EpochCounts {
        epoch: Epoch(epoch),
        settled,
        collected,
        index_bytes: 10 * epoch,
        closed_at_ms: (epoch < 8).then_some(epoch * 1_000),
        began_at_ms: None,
    }
}

#[test]
fn epochs_are_counted_and_named_by_their_state() {
    let served = Served::new();
    assert_eq!(served.get("/v1/epochs").status, 503, "no store is open");
    let mut view = three_members();
    view.epoch = Epoch(9);
    served.database.set_view(view);
    served.database.set_epochs(EpochsReport {
        closed: Epoch(7),
        partitions: PartitionCounts {
            held: 16,
            ..PartitionCounts::default()
        },
        settled: Some(Epoch(5)),
        settled_most: Some(Epoch(6)),
        collected: Some(Epoch(4)),
        lag_ms: 1_500,
        // One for longer than anybody waits; one that a comparison is under way with.
        blocked: vec![(NodeId(2), 1_000), (NodeId(3), u64::MAX)],
        epochs: vec![
            counts(9, 0, 0),
            counts(8, 0, 0),
            counts(7, 0, 0),
            counts(6, 9, 0),
            counts(5, 16, 3),
            counts(4, 16, 16),
        ],
        ..EpochsReport::default()
    });
    let shown = served.get("/v1/epochs").json();
    let states = shown["epochs"].as_array().unwrap().iter();
    let states: Vec<&str> = states
        .map(|epoch| epoch["state"].as_str().unwrap())
        .collect();
    assert_eq!(
        states,
        [
            "present",
            "open",
            "closed",
            "closed",
            "settled",
            "collected"
        ]
    );
    assert_eq!(
        shown["epochs"][3],
        json!({
            "epoch": 6, "state": "closed", "began_at_ms": null, "closed_at_ms": 6_000, "settled": 9,
            "collected": 0, "index_bytes": 60
        })
    );
    assert_eq!(
        (&shown["lag_epochs"], &shown["lag_ms"]),
        (&json!(2), &json!(1_500))
    );
    assert_eq!(shown["partitions"]["held"], 16);
    assert_eq!(
        shown["blocked_by"],
        json!([{"id": NodeId(2).to_string(), "name": "node-2", "alive": true, "since_ms": 1_000}])
    );
    let few = served.get("/v1/epochs?limit=2").json();
    assert_eq!(few["epochs"].as_array().unwrap().len(), 2);
    for wrong in ["limit=0", "limit=1001", "limits=3"] {
        assert_eq!(served.get(&format!("/v1/epochs?{wrong}")).status, 400);
    }
}

#[test]
fn a_replica_tells_the_root_and_leaves_of_a_closed_epoch_and_the_chain_of_a_settled_one() {
    let served = Served::new();
    let path = "/v1/verify?partition=3&epoch=7";
    assert_eq!(served.get(path).status, 503);
    let set = EpochSet {
        closed: Epoch(7),
        settled: Epoch(6),
        chain: 0xab,
        collected: Epoch(5),
        found: Found::Tree {
            rows: 3,
            root: 0xcd,
            leaves: vec![(0, 0), (0xef, 3)],
        },
    };
    served.database.set_epoch_set(set.clone());
    let hash = |hash: u128| format!("{hash:032x}");
    assert_eq!(
        served.get(path).json(),
        json!({
            "id": NodeId(1).to_string(), "name": "node-1", "partition": 3, "epoch": 7, "state": "closed",
            "closed": 7, "settled": 6, "chain": hash(0xab), "collected": 5, "root": hash(0xcd), "rows": 3,
            "leaves": [{"hash": hash(0), "rows": 0}, {"hash": hash(0xef), "rows": 3}]
        })
    );
    for (found, state) in [
        (Found::NotClosed, "not_closed"),
        (Found::Settled, "settled"),
        (Found::Copied, "copied"),
        (Found::Lost, "lost"),
        (Found::NotHere, "not_here"),
    ] {
        served.database.set_epoch_set(EpochSet {
            found,
            ..set.clone()
        });
        let shown = served.get(path).json();
        assert_eq!(shown["state"], state);
        assert!(shown.get("root").is_none() && shown.get("leaves").is_none());
    }
    for (wrong, words) in [
        ("epoch=7", "partition is missing"),
        ("partition=3", "epoch is missing"),
        ("partition=16&epoch=7", "from 0 to 15"),
        ("partition=3&epoch=0", "from 1 to"),
        ("partition=3&epoch=7&x=1", "unknown parameter"),
    ] {
        let answer = served.get(&format!("/v1/verify?{wrong}"));
        assert_eq!(answer.status, 400);
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(words), "{error}");
    }
}
