//! The ring changes: nodes join, leave, die and are replaced, while leaders change and nodes restart.

use std::collections::{BTreeMap, BTreeSet};

use mds_types::{Epoch, Hlc, NodeId, RingStage, TopologyVersion};

use super::sim::{MS, SECOND, World, born, gather};
use crate::control::{AdminError, AdminReply, RingMode, RingRequest};
use crate::state::{Quorums, RequestFate, WaitsFor};
use crate::view::{MemberStage, Standing};

/// A cluster of `ring` nodes on the ring and `waiting` beside it.
fn grown(seed: u64, ring: usize, waiting: usize) -> World {
    let mut world = born(seed, ring);
    let joiners: Vec<usize> = (0..waiting).map(|_| world.add_node()).collect();
    world.run_until(20 * SECOND, |world| {
        world.standing_is(&Standing::Waiting, &joiners) && world.agree() && is_settled(world)
    });
    world
}

fn is_settled(world: &World) -> bool {
    let mut running = world.running().into_iter();
    running.all(|node| world.view(node).rings.settled)
}

fn ids(world: &World, nodes: impl IntoIterator<Item = usize>) -> BTreeSet<NodeId> {
    nodes.into_iter().map(|node| world.id(node)).collect()
}

fn ring(world: &World, node: usize) -> BTreeSet<NodeId> {
    let members = &world.view(node).topology.members;
    members.iter().map(|member| member.node).collect()
}

fn stage(world: &World, node: usize) -> RingStage {
    world.view(node).rings.stage
}

/// Whether all that run have the ring of these nodes, settled.
fn has_ring(world: &World, expected: &BTreeSet<NodeId>) -> bool {
    let mut running = world.running().into_iter();
    running.all(|node| ring(world, node) == *expected) && is_settled(world) && world.agree()
}

fn last_answer(world: &mut World, node: usize) -> Option<Result<AdminReply, AdminError>> {
    world.nodes[node].admin.pop()
}

#[track_caller]
fn accepted(world: &mut World, node: usize) {
    world.run_until(20 * SECOND, |world| !world.nodes[node].admin.is_empty());
    let answer = last_answer(world, node);
    assert!(
        matches!(answer, Some(Ok(AdminReply::Accepted(_)))),
        "{answer:?}"
    );
}

#[track_caller]
fn refused(world: &mut World, node: usize) -> String {
    world.run_until(20 * SECOND, |world| !world.nodes[node].admin.is_empty());
    match last_answer(world, node) {
        Some(Err(error)) => error.to_string(),
        answer => panic!("{answer:?}"),
    }
}

/// A node that does not lead.
fn follower(world: &World) -> usize {
    let leader = world.leader().expect("somebody leads");
    (0..3).find(|node| *node != leader).expect("three nodes")
}

#[test]
fn three_become_five_and_every_stage_is_passed() {
    let mut world = grown(500, 3, 2);
    world.nodes[0].admin.clear();
    let asked = follower(&world);
    let before = world.view(0).rings.version;
    let epoch = world.view(0).epoch;
    let nodes = ids(&world, [3, 4]);
    world.ask(asked, 1, RingRequest::Join { nodes });
    accepted(&mut world, asked);
    let all = ids(&world, 0..5);
    let mut seen = vec![RingStage::Stable];
    let mut version = before;
    while !has_ring(&world, &all) {
        world.run_for(5 * MS);
        let rings = world.view(0).rings.clone();
        assert!(rings.version >= version && rings.accepted_from < rings.version);
        version = rings.version;
        if seen.last() != Some(&rings.stage) {
            seen.push(rings.stage);
        }
        let is_before = matches!(
            rings.stage,
            RingStage::Stable | RingStage::Prepare | RingStage::WriteBoth
        );
        assert_eq!(rings.first_epoch.is_none(), is_before);
        assert!(world.now < 60 * SECOND, "{}", world.describe());
    }
    assert_eq!(seen.pop(), Some(RingStage::Stable));
    assert_eq!(seen, RingStage::ALL);
    assert_eq!(version, TopologyVersion(before.0 + 7));
    assert_eq!(
        world.view(0).epoch,
        Epoch(epoch.0 + 2),
        "E1, and the one that closes what is before it"
    );
    assert!(world.standing_is(&Standing::Active, &[0, 1, 2, 3, 4]));
    world.run_until(20 * SECOND, |world| world.view(0).raft.voters.len() == 5);
}

#[test]
fn one_leaves_and_is_forgotten_when_it_is_gone() {
    let mut world = grown(510, 3, 1);
    let leader = world.leader().unwrap();
    let other = follower(&world);
    let replacement = ids(&world, [3]);
    let gone = world.id(leader);
    let change = crate::state::RingChange {
        join: replacement,
        leave: [gone].into(),
        ..Default::default()
    };
    world.ask(other, 2, RingRequest::Change(change));
    let rest: Vec<usize> = (0..4).filter(|node| *node != leader).collect();
    let expected = ids(&world, rest.clone());
    world.run_until(60 * SECOND, |world| has_ring(world, &expected));
    assert_eq!(
        world.view(other).members[&gone].stage,
        MemberStage::Left,
        "it may be stopped now"
    );
    assert_eq!(world.view(leader).standing, Standing::Waiting);
    // It leads no more, and has no vote.
    world.run_until(20 * SECOND, |world| {
        let voters = &world.view(other).raft.voters;
        voters.len() == 3 && !voters.contains(&gone)
    });
    world.crash(leader, false);
    world.run_until(30 * SECOND, |world| {
        rest.iter()
            .all(|node| !world.view(*node).members.contains_key(&gone))
    });
    // Its directory may not come back.
    world.start(leader);
    world.run_until(20 * SECOND, |world| {
        matches!(&world.view(leader).standing, Standing::Refused(reason) if reason.contains("removed"))
    });
    assert!(world.standing_is(&Standing::Active, &rest));
}

#[test]
fn a_dead_node_is_replaced_and_may_not_come_back() {
    let mut world = grown(520, 3, 1);
    let other = follower(&world);
    let victim = (0..3)
        .find(|node| *node != other && Some(*node) != world.leader())
        .unwrap();
    let (dead, with) = (world.id(victim), world.id(3));
    let replace = RingRequest::Replace {
        dead,
        with,
        forced: false,
    };
    world.nodes[other].admin.clear();
    world.ask(other, 3, replace.clone());
    let reason = refused(&mut world, other);
    assert!(reason.contains("is alive"), "{reason}");

    world.crash(victim, true);
    world.run_until(15 * SECOND, |world| {
        let leader = world.leader().unwrap();
        !world.view(leader).peers[&dead].alive
    });
    world.ask(other, 3, replace);
    let rest: Vec<usize> = (0..4).filter(|node| *node != victim).collect();
    let expected = ids(&world, rest.clone());
    world.run_until(60 * SECOND, |world| {
        has_ring(world, &expected)
            && world.view(other).raft.voters.len() == 3
            && !world.view(other).raft.voters.contains(&dead)
    });
    assert!(!world.view(other).members.contains_key(&dead));
    world.start(victim);
    world.run_until(20 * SECOND, |world| {
        matches!(&world.view(victim).standing, Standing::Refused(reason) if reason.contains("removed"))
    });
    world.run_for(5 * SECOND);
    assert!(world.standing_is(&Standing::Active, &rest));
    assert!(has_ring_among(&world, &rest, &expected));
}

fn has_ring_among(world: &World, nodes: &[usize], expected: &BTreeSet<NodeId>) -> bool {
    nodes.iter().all(|node| ring(world, *node) == *expected)
}

#[test]
fn a_change_is_called_off_until_the_next_ring_is_read() {
    let mut world = grown(530, 3, 1);
    world.nodes[0].admin.clear();
    world.stuck.insert(3);
    let nodes = ids(&world, [3]);
    world.ask(
        0,
        4,
        RingRequest::Join {
            nodes: nodes.clone(),
        },
    );
    accepted(&mut world, 0);
    world.run_for(3 * SECOND);
    assert_eq!(stage(&world, 0), RingStage::Prepare);
    let view = &world.view(0).transition;
    assert_eq!(view.blocked_by.len(), 1, "{view:?}");
    assert_eq!(view.blocked_by[0].node, world.id(3));
    assert_eq!(view.blocked_by[0].waits_for, WaitsFor::Ack);
    world.ask(1, 4, RingRequest::Abort);
    world.run_until(10 * SECOND, |world| {
        (0..3).all(|node| stage(world, node) == RingStage::Stable)
    });
    world.unstick(3);
    let old = ids(&world, 0..3);
    world.run_until(10 * SECOND, |world| has_ring(world, &old));
    assert_eq!(world.view(3).standing, Standing::Waiting);
    assert_eq!(
        world.view(0).transition.requests.last().unwrap().1,
        RequestFate::Aborted
    );
    // The same request does not begin it again; another one does, and that can be undone no more.
    world.ask(
        0,
        4,
        RingRequest::Join {
            nodes: nodes.clone(),
        },
    );
    let reason = refused(&mut world, 0);
    assert!(reason.contains("new request id"), "{reason}");
    world.ask(0, 5, RingRequest::Join { nodes });
    accepted(&mut world, 0);
    world.run_until(20 * SECOND, |world| stage(world, 0) == RingStage::ReadBoth);
    world.ask(0, 5, RingRequest::Abort);
    let reason = refused(&mut world, 0);
    assert!(
        reason.contains("no return") || reason.contains("finished"),
        "{reason}"
    );
    let all = ids(&world, 0..4);
    world.run_until(30 * SECOND, |world| has_ring(world, &all));
}

/// Leaders change and nodes restart in every stage; the change goes on, and each stage is entered once.
#[test]
fn a_change_survives_new_leaders_and_restarts() {
    for seed in 0..6 {
        let mut world = grown(540 + seed, 3, 2);
        let nodes = ids(&world, [3, 4]);
        let all = ids(&world, 0..5);
        world.nodes[2].admin.clear();
        world.ask(2, 6, RingRequest::Join { nodes });
        // Not taken up, it would be gone with the node that was asked.
        accepted(&mut world, 2);
        let mut version = TopologyVersion(0);
        for round in 0..60 {
            let wait = world.between(50 * MS, 400 * MS);
            world.run_for(wait);
            if world.running().len() == 5 && has_ring(&world, &all) {
                break;
            }
            if round < 12 {
                let victim = match world.leader() {
                    Some(leader) if round % 2 == 0 => leader,
                    _ => world.between(0, 5) as usize,
                };
                world.restart(victim);
            }
            let newest = (0..5).map(|node| world.view(node).rings.version).max();
            assert!(newest >= Some(version), "seed {seed}");
            version = newest.unwrap();
        }
        world.run_until(60 * SECOND, |world| has_ring(world, &all));
        assert_eq!(
            world.view(0).rings.version,
            TopologyVersion(8),
            "seed {seed}"
        );
    }
}

#[test]
fn a_request_is_answered_by_whoever_is_asked_and_only_once_carried_out() {
    let mut world = grown(550, 3, 1);
    world.nodes[0].admin.clear();
    let nodes = ids(&world, [3]);
    for node in [0, 1, 2, 3, 0] {
        world.nodes[node].admin.clear();
        world.ask(
            node,
            7,
            RingRequest::Join {
                nodes: nodes.clone(),
            },
        );
        accepted(&mut world, node);
    }
    let all = ids(&world, 0..4);
    world.run_until(30 * SECOND, |world| has_ring(world, &all));
    let version = world.view(0).rings.version;
    world.ask(
        1,
        7,
        RingRequest::Join {
            nodes: nodes.clone(),
        },
    );
    accepted(&mut world, 1);
    world.run_for(2 * SECOND);
    assert_eq!(world.view(0).rings.version, version);
    assert_eq!(
        world.view(0).transition.requests,
        [(mds_types::RequestId(7), RequestFate::Finished)]
    );
    // The name of a request belongs to what it asked for.
    world.ask(1, 7, RingRequest::Leave { nodes });
    let reason = refused(&mut world, 1);
    assert!(reason.contains("something else"), "{reason}");
}

#[test]
fn without_a_leader_a_request_is_answered_in_the_end() {
    let mut world = born(560, 3);
    world.cut_off(0);
    world.run_for(5 * SECOND);
    world.nodes[0].admin.clear();
    let nodes = ids(&world, [2]);
    world.ask(0, 8, RingRequest::Leave { nodes });
    world.run_for(31 * SECOND);
    assert_eq!(last_answer(&mut world, 0), Some(Err(AdminError::NoLeader)));
}

#[test]
fn impossible_changes_are_refused_with_advice() {
    let mut world = grown(570, 3, 1);
    world.nodes[0].admin.clear();
    let (on_ring, waiting) = (world.id(1), world.id(3));
    let stranger = NodeId(77);
    let quorums = Quorums {
        replicas: 5,
        read: 3,
        write: 3,
    };
    let leave = |node| RingRequest::Leave {
        nodes: [node].into(),
    };
    let join = |node| RingRequest::Join {
        nodes: [node].into(),
    };
    let weigh = |node, weight| RingRequest::Reweigh {
        weights: BTreeMap::from([(node, weight)]),
    };
    for (ask, advice) in [
        (leave(on_ring), "let more nodes join in the same change"),
        (leave(waiting), "is not on the ring"),
        (join(stranger), "not known to the cluster"),
        (join(on_ring), "on the ring already"),
        (weigh(waiting, 5), "let it join first"),
        (weigh(on_ring, 100), "nothing would change"),
        (RingRequest::ChangeQuorums(quorums), "let more nodes join"),
    ] {
        world.ask(0, 100, ask.clone());
        let reason = refused(&mut world, 0);
        assert!(reason.contains(advice), "{ask:?}: {reason}");
    }
    assert_eq!(stage(&world, 0), RingStage::Stable);
}

/// Three nodes on the ring, in auto mode.
fn auto(seed: u64, remove_after_ms: Option<u64>) -> World {
    auto_with_epochs(seed, remove_after_ms, None)
}

fn auto_with_epochs(
    seed: u64,
    remove_after_ms: Option<u64>,
    epoch_interval_ms: Option<u64>,
) -> World {
    let mut world = World::new(seed, 3);
    world.epoch_interval_ms = epoch_interval_ms;
    world.ring_mode = RingMode::Auto { remove_after_ms };
    for node in 0..3 {
        world.restart(node);
    }
    gather(&mut world);
    world.init(0, 3);
    world.run_until(10 * SECOND, |world| {
        world.standing_is(&Standing::Active, &[0, 1, 2]) && is_settled(world)
    });
    world
}

/// The default is to remove nobody. A wiped node's former self is gone all the same: waiting for it would hold
/// every later change up for ever.
#[test]
fn in_auto_mode_a_wiped_node_comes_back_in_its_own_place() {
    for seed in 610..615 {
        let mut world = auto(seed, None);
        let victim = follower(&world);
        let former = world.id(victim);
        world.crash(victim, true);
        world.wipe(victim);
        assert_ne!(world.id(victim), former);
        world.run_until(60 * SECOND, |world| has_ring(world, &ids(world, 0..3)));
        assert!(!world.view(0).members.contains_key(&former));
        assert_eq!(world.view(0).transition.requests.len(), 1, "in one change");
        world.run_until(20 * SECOND, |world| world.view(0).raft.voters.len() == 3);
    }
}

/// The leader raises an epoch at the very moments at which it would look after the ring.
#[test]
fn in_auto_mode_epochs_do_not_keep_joiners_out() {
    for seed in 620..630 {
        let mut world = auto_with_epochs(seed, None, Some(1_000));
        world.add_node();
        world.run_until(40 * SECOND, |world| has_ring(world, &ids(world, 0..4)));
    }
}

#[test]
fn in_auto_mode_joiners_come_together_and_the_dead_go() {
    let mut world = auto(580, Some(8_000));
    for _ in 0..2 {
        world.add_node();
    }
    world.run_until(60 * SECOND, |world| has_ring(world, &ids(world, 0..5)));
    assert_eq!(
        world.view(0).transition.requests.len(),
        1,
        "both joined in one change"
    );
    let victim = (world.leader().unwrap() + 1) % 5;
    let dead = world.id(victim);
    world.crash(victim, true);
    let rest: Vec<usize> = (0..5).filter(|node| *node != victim).collect();
    let expected = ids(&world, rest.clone());
    world.run_until(90 * SECOND, |world| has_ring(world, &expected));
    assert!(!world.view(rest[0]).members.contains_key(&dead));
    world.run_until(20 * SECOND, |world| {
        world.view(rest[0]).raft.voters.len() == 3
    });
}

/// Who dies in the middle of a change holds it up, is named, and can be excluded.
#[test]
fn a_member_that_dies_during_a_change_is_excluded() {
    let mut world = grown(590, 4, 1);
    world.nodes[0].admin.clear();
    let victim = (0..4)
        .find(|node| *node != 0 && Some(*node) != world.leader())
        .unwrap();
    let dead = world.id(victim);
    world.stuck.insert(victim);
    let nodes = ids(&world, [4]);
    world.ask(0, 9, RingRequest::Join { nodes });
    accepted(&mut world, 0);
    world.crash(victim, true);
    world.run_for(10 * SECOND);
    let blocked: Vec<NodeId> = world
        .view(0)
        .transition
        .blocked_by
        .iter()
        .map(|blocker| blocker.node)
        .collect();
    assert_eq!(blocked, [dead]);
    let exclude = RingRequest::Exclude {
        node: dead,
        forced: false,
    };
    world.ask(0, 9, exclude);
    accepted(&mut world, 0);
    world.run_until(30 * SECOND, |world| {
        world.view(0).topology.members.len() == 5 && stage(world, 0) == RingStage::Stable
    });
    assert!(!is_settled(&world), "it has not acknowledged the ring");
    // It is a member still: back again, it acknowledges.
    world.stuck.clear();
    world.start(victim);
    world.run_until(30 * SECOND, is_settled);
}

/// One fast clock does not raise the floor, one slow clock holds it back; and it never falls.
#[test]
fn floors_follow_the_slowest_clock() {
    let mut world = World::new(600, 3);
    world.epoch_interval_ms = Some(500);
    for node in 0..3 {
        world.restart(node);
        world.nodes[node].clock_ahead_us = 1_000_000_000;
    }
    world.nodes[1].clock_ahead_us += 60_000_000;
    gather(&mut world);
    world.init(0, 3);
    world.run_until(20 * SECOND, |world| world.view(0).epoch >= Epoch(12));
    let view = world.view(0);
    let true_us = world.now / 1_000 + 1_000_000_000;
    let mut before = Hlc(0);
    for epoch in 1..=view.epoch.0 {
        let floor = view.floors.floor(Epoch(epoch));
        assert!(floor >= before && floor.physical_us() <= true_us, "{floor}");
        before = floor;
    }
    assert!(
        before.physical_us() + 5_000_000 > true_us,
        "it follows time"
    );
    world.nodes[2].clock_ahead_us = 0;
    let latest = world.view(0).floors.latest();
    world.run_for(5 * SECOND);
    let view = world.view(0);
    assert!(view.epoch > Epoch(16));
    assert!(
        view.floors.latest().physical_us() < latest.physical_us() + 1_000_000,
        "one slow clock holds it back"
    );
}
