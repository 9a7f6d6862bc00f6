//! Auto mode with real processes: nobody asks for a change of the ring, and yet a wiped node comes back, and one that
//! stays away is taken off the ring, while clients write and every value that was acknowledged is looked at.

// A test's helpers may fail like the test itself.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::collections::BTreeSet;

use cluster::lab::Lab;
use cluster::load::{Load, check_all};

/// 256 partitions on three of four nodes each: a fair share is 192 of them, and none is far from it.
const SHARE: std::ops::RangeInclusive<u64> = 150..=240;

/// All partitions: what each of three nodes holds.
const ALL: u64 = 256;

/// The identities of those on the ring, as a node knows them, once nothing changes any more and all have said so.
fn settled_ring(lab: &Lab, node: usize) -> Option<BTreeSet<String>> {
    let (status, body) = lab.http(node, "GET", "/v1/transition", b"");
    assert_eq!(status, 200);
    let change: serde_json::Value = serde_json::from_str(&body).unwrap();
    let is_settled =
        change["stage"] == "stable" && change["blocked_by"].as_array().unwrap().is_empty();
    is_settled.then(|| members(lab, node).into_keys().collect())
}

/// Who is on the ring, and how many partitions each holds.
fn members(lab: &Lab, node: usize) -> std::collections::BTreeMap<String, u64> {
    let (status, body) = lab.http(node, "GET", "/v1/ring", b"");
    assert_eq!(status, 200);
    let ring: serde_json::Value = serde_json::from_str(&body).unwrap();
    let members = ring["members"].as_array().unwrap().iter();
    let held = members.map(|member| {
        let id = member["id"].as_str().unwrap().to_owned();
        (id, member["partitions"].as_u64().unwrap())
    });
    held.filter(|(_, partitions)| *partitions > 0).collect()
}

fn id(lab: &Lab, node: usize) -> String {
    lab.status(node)["node"]["id"].as_str().unwrap().to_owned()
}

fn ids(lab: &Lab, nodes: impl IntoIterator<Item = usize>) -> BTreeSet<String> {
    nodes.into_iter().map(|node| id(lab, node)).collect()
}

/// Removing nobody for being away is the default: the former self of a wiped node is gone all the same.
#[test]
fn a_killed_and_wiped_node_comes_back_by_itself_under_load() {
    let lab = Lab::start_with("auto", 20_700, &["--nodes", "4", "--ring-mode", "auto"]);
    let load = Load::start(&lab);
    load.wait_for(300);
    let former = id(&lab, 2);

    load.set_up(2, false);
    lab.act("wipe-node", 2);
    lab.act("start-node", 2);
    assert_ne!(id(&lab, 2), former, "an empty directory is another node");
    lab.wait_standing(2, "active");
    let expected = ids(&lab, 1..=4);
    lab.wait_until("its former self is off the ring", || {
        settled_ring(&lab, 1).as_ref() == Some(&expected)
    });
    assert!(!expected.contains(&former));
    let known = lab.status(1)["members"].clone();
    // Gossip may remember it; the cluster does not.
    let is_member = |member: &serde_json::Value| {
        member["id"] == former.as_str() && member["stage"] != "unknown"
    };
    assert!(!known.as_array().unwrap().iter().any(is_member), "{known}");
    assert!(SHARE.contains(&members(&lab, 1)[&id(&lab, 2)]));
    assert!(lab.metric(2, "copied_partitions_total") >= 150.0);

    lab.wait_ready(2);
    load.set_up(2, true);
    load.wait_for(300);
    let acked = load.finish();
    for node in [1, 2] {
        check_all(&lab, node, &acked);
    }
    lab.wait_equal();
    lab.stop();
}

#[test]
fn a_node_that_stays_away_is_taken_off_the_ring_by_itself_and_told_so_when_it_returns() {
    let after = ["--ring-mode", "auto", "--remove-after-ms", "10000"];
    let arguments = [&["--nodes", "4"], &after[..]].concat();
    let lab = Lab::start_with("away", 20_900, &arguments);
    let load = Load::start(&lab);
    load.wait_for(300);

    // The load goes through the other three.
    lab.act("kill-node", 4);
    let rest = ids(&lab, 1..=3);
    lab.wait_until("the node that is away is off the ring", || {
        settled_ring(&lab, 1).as_ref() == Some(&rest)
    });
    assert!(members(&lab, 1).values().all(|held| *held == ALL));
    load.wait_for(300);

    // With its old directory it may not come back: it says why, and what to do, and ends.
    lab.act("start-node", 4);
    lab.wait_until("it is refused", || {
        lab.has_logged(
            4,
            "refused by the cluster: this node was removed from the cluster",
        )
    });
    assert!(lab.has_logged(4, "Start it with an empty directory"));
    // And the others have not taken it in again.
    assert_eq!(settled_ring(&lab, 1), Some(rest));

    // As it says.
    lab.act("wipe-node", 4);
    lab.act("start-node", 4);
    lab.wait_standing(4, "active");
    let expected = ids(&lab, 1..=4);
    lab.wait_until("it is on the ring as a new member", || {
        settled_ring(&lab, 1).as_ref() == Some(&expected)
    });
    assert!(SHARE.contains(&members(&lab, 1)[&id(&lab, 4)]));
    load.wait_for(300);
    let acked = load.finish();
    for node in [1, 4] {
        check_all(&lab, node, &acked);
    }
    lab.wait_equal();
    lab.stop();
}

fn tell_to_stop(lab: &Lab, node: usize) {
    let pid = lab.pid(node);
    // SAFETY: a signal to a process that this test's lab has started.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    lab.wait_until("it has ended", || {
        !std::path::Path::new(&format!("/proc/{pid}/exe")).exists()
    });
}

/// As a container that is scaled away is told.
#[test]
fn a_node_that_is_told_to_stop_leaves_if_it_is_to_and_can_and_begins_anew_when_started_again() {
    let set = [
        ("MYDATASTORE_ON_STOP", "leave"),
        ("MYDATASTORE_ON_REMOVED", "rejoin"),
    ];
    let auto = ["--nodes", "4", "--ring-mode", "auto"];
    let lab = Lab::start_set("leave", 21_300, &auto, &set);
    let load = Load::start(&lab);
    load.wait_for(300);

    let (rest, former) = (ids(&lab, 1..=3), id(&lab, 4));
    tell_to_stop(&lab, 4);
    assert!(lab.has_logged(4, "left the ring"), "{}", lab.log(4));
    // It has waited for the end: nothing is left to be awaited.
    assert_eq!(settled_ring(&lab, 1), Some(rest.clone()));
    assert!(members(&lab, 1).values().all(|held| *held == ALL));

    // Three are as few as N: the next one keeps its place, and may come back.
    load.set_up(3, false);
    tell_to_stop(&lab, 3);
    assert!(lab.has_logged(3, "none can leave"), "{}", lab.log(3));
    assert_eq!(settled_ring(&lab, 1), Some(rest));
    lab.act("start-node", 3);
    lab.wait_ready(3);
    load.set_up(3, true);
    load.wait_for(300);

    // The one that has left may not come back: another begins in its directory, and what it held is kept.
    lab.act("start-node", 4);
    let kept = lab
        .dir()
        .join(format!("node-4/data/removed-{former}/IDENTITY"));
    lab.wait_until("its data is put aside", || kept.is_file());
    lab.wait_standing(4, "active");
    assert_ne!(id(&lab, 4), former);
    let expected = ids(&lab, 1..=4);
    lab.wait_until("the others agree", || {
        settled_ring(&lab, 1).as_ref() == Some(&expected)
    });
    load.wait_for(300);

    let acked = load.finish();
    for node in [1, 4] {
        check_all(&lab, node, &acked);
    }
    lab.wait_equal();
    // Told to stop, one of the four would begin to leave, and nobody be left to agree.
    (1..=4).for_each(|node| lab.act("kill-node", node));
    lab.stop();
}
