use std::sync::Arc;

use mds_types::{ClusterConfig, ClusterId, IncarnationId, MemberInfo, RingStage};

use super::*;
use crate::gossip::Id;
use crate::state::{Command, Response, RingChange};

const OURS: ClusterId = ClusterId(7);

struct World {
    state: ClusterState,
    voters: BTreeSet<NodeId>,
    learners: BTreeSet<NodeId>,
    caught_up: BTreeSet<NodeId>,
    peers: BTreeMap<NodeId, Peer>,
    epoch_due: bool,
    mode: RingMode,
    long_dead: BTreeSet<NodeId>,
    unheard: BTreeSet<NodeId>,
}

fn nodes(ids: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
    ids.into_iter().map(NodeId).collect()
}

fn new_member(node: u64) -> NewMember {
    NewMember {
        incarnation: IncarnationId(u128::from(node)),
        info: MemberInfo {
            weight: 100,
            ..MemberInfo::default()
        },
    }
}

fn world(members: u64, voters: u64) -> World {
    let mut state = ClusterState::default();
    let born = Command::Born {
        cluster: OURS,
        config: ClusterConfig::default(),
        members: (1..=members).map(new_member).collect(),
    };
    assert_eq!(state.apply(&born), Response::Done);
    World {
        state,
        voters: nodes(1..=voters),
        learners: nodes(voters + 1..=members),
        caught_up: nodes(voters + 1..=members),
        peers: (1..=members)
            .map(|node| (NodeId(node), peer(node, OURS, true)))
            .collect(),
        epoch_due: false,
        mode: RingMode::Operator,
        long_dead: BTreeSet::new(),
        unheard: BTreeSet::new(),
    }
}

fn peer(node: u64, cluster: ClusterId, alive: bool) -> Peer {
    let id = Id {
        incarnation: IncarnationId(u128::from(node)),
        boot: 1,
        generation: 0,
        cluster,
        info: Arc::new(new_member(node).info),
    };
    Peer { id, alive }
}

fn decide(world: &World, auto_add_members: bool) -> Option<Duty> {
    next(&Situation {
        me: NodeId(1),
        state: &world.state,
        plan: None,
        voters: &world.voters,
        learners: &world.learners,
        caught_up: &world.caught_up,
        peers: &world.peers,
        auto_add_members,
        epoch_due: world.epoch_due,
        floor: Hlc(77),
        mode: world.mode,
        long_dead: &world.long_dead,
        unheard: &world.unheard,
        looks_after_ring: true,
        joiners_settled: true,
        request: RequestId(5),
    })
}

#[test]
fn voters_are_odd_and_at_most_five() {
    let wanted: Vec<usize> = (0..9).map(voters_wanted).collect();
    assert_eq!(wanted, [0, 1, 1, 3, 3, 5, 5, 5, 5]);
}

#[test]
fn voters_spread_over_zones() {
    let candidates: Vec<(NodeId, &str)> =
        [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "c"), (6, "c")]
            .map(|(node, zone)| (NodeId(node), zone))
            .to_vec();
    assert_eq!(choose_voters(&[], &candidates, 3), [1, 4, 5].map(NodeId));
    assert_eq!(
        choose_voters(&[], &candidates, 5),
        [1, 2, 4, 5, 6].map(NodeId)
    );
    assert_eq!(choose_voters(&["b", "c", "c"], &candidates, 1), [NodeId(1)]);
    assert_eq!(choose_voters(&[], &candidates, 9).len(), 6);
}

#[test]
fn two_learners_at_a_time_get_a_vote() {
    assert_eq!(
        decide(&world(2, 1), true),
        None,
        "two voters are worse than one"
    );
    assert_eq!(
        decide(&world(3, 1), true),
        Some(Duty::Promote(nodes([2, 3])))
    );
    assert_eq!(decide(&world(7, 5), true), None);
    let mut dead = world(3, 1);
    dead.peers.insert(NodeId(3), peer(3, OURS, false));
    assert_eq!(decide(&dead, true), None, "a dead learner gets no vote");
    let mut behind = world(3, 1);
    behind.caught_up.remove(&NodeId(2));
    assert_eq!(decide(&behind, true), None, "one without the log neither");
}

#[test]
fn a_joiner_becomes_member_then_learner() {
    let mut world = world(3, 3);
    world
        .peers
        .insert(NodeId(8), peer(8, ClusterId::NONE, true));
    world.peers.insert(NodeId(9), peer(9, OURS, true));
    assert_eq!(decide(&world, false), None);
    assert_eq!(decide(&world, true), Some(Duty::AddMember(new_member(9))));
    let _ = world.state.apply(&Command::AddMember {
        member: new_member(9),
    });
    assert_eq!(decide(&world, false), Some(Duty::AddLearners(nodes([9]))));
    world.learners.insert(NodeId(9));
    assert_eq!(decide(&world, true), None);
}

#[test]
fn the_epoch_waits_for_nobody_but_birth() {
    let mut world = world(3, 1);
    world.epoch_due = true;
    assert_eq!(
        decide(&world, true),
        Some(Duty::AdvanceEpoch(Epoch(2), Hlc(77)))
    );
    world.state = ClusterState::default();
    assert_eq!(decide(&world, true), None);
}

/// Carries out what the state machine is told.
fn apply(world: &mut World, command: &Command) {
    assert_eq!(world.state.apply(command), Response::Done, "{command}");
}

fn acknowledge(world: &mut World, except: u64) {
    let version = world.state.topology.version;
    for member in world.state.members.clone().into_keys() {
        if member != NodeId(except) {
            apply(world, &Command::Ack { member, version });
        }
    }
}

fn begin(world: &mut World, change: RingChange) {
    acknowledge(world, 0);
    let request = RequestId(9);
    apply(world, &Command::BeginTransition { request, change });
}

fn step(world: &mut World) {
    acknowledge(world, 0);
    let (from, floor) = (world.state.topology.version, Hlc(77));
    apply(world, &Command::StepTransition { from, floor });
}

#[test]
fn who_has_left_goes_also_if_this_leader_never_heard_of_it() {
    let mut world = world(4, 3);
    world.learners.clear();
    let leave = nodes([4]);
    let change = RingChange {
        leave,
        ..RingChange::default()
    };
    begin(&mut world, change);
    while world.state.transition.is_some() {
        step(&mut world);
        let (open, version) = (world.state.transition.clone(), world.state.topology.version);
        if open.is_some_and(|open| open.stage == RingStage::Stream) {
            for member in (1..=3).map(NodeId) {
                apply(&mut world, &Command::Ready { member, version });
            }
            let (to, floor) = (Epoch(world.state.epoch.0 + 1), Hlc(78));
            apply(&mut world, &Command::AdvanceEpochWithFloor { to, floor });
        }
    }
    world.learners = nodes([4]);
    world.peers.remove(&NodeId(4));
    let removes = |world: &World| decide(world, false) == Some(Duty::RemoveMember(NodeId(4)));
    assert!(!removes(&world), "it may be about to say hello");
    world.unheard = nodes([4]);
    assert!(removes(&world));
}

/// A member that waits and has started, at an address.
fn wait_at(world: &mut World, node: u64, addr: &str) {
    let mut member = new_member(node);
    member.info.peer_addr = addr.to_owned();
    let (boot, nonce, earlier) = (1, node, Vec::new());
    let add = Command::AddMember {
        member: member.clone(),
    };
    let announce = Command::Announce {
        member,
        boot,
        nonce,
        earlier,
    };
    apply(world, &add);
    apply(world, &announce);
    world.learners.insert(NodeId(node));
    let alive = peer(node, OURS, true);
    world.peers.insert(NodeId(node), alive);
}

fn settle_at(world: &mut World, node: u64, addr: &str) {
    let member = world.state.members.get_mut(&NodeId(node));
    member.expect("a member").info.peer_addr = addr.to_owned();
}

#[test]
fn a_wiped_node_takes_the_place_of_its_former_self_in_one_change() {
    let mut world = world(3, 3);
    world.mode = RingMode::Auto {
        remove_after_ms: None,
    };
    settle_at(&mut world, 3, "c:1");
    wait_at(&mut world, 4, "c:1");
    wait_at(&mut world, 5, "e:1");
    acknowledge(&mut world, 0);
    let begins = |world: &World| match decide(world, false) {
        Some(Duty::Begin(_, change)) => (change.join, change.remove_dead),
        other => panic!("{other:?}"),
    };
    let join = nodes([5]);
    assert_eq!(begins(&world), (join, nodes([])), "3 may only have moved");
    world.long_dead = nodes([3]);
    assert_eq!(begins(&world), (nodes([4, 5]), nodes([3])));
}

#[test]
fn who_is_succeeded_at_its_address_is_gone_at_once_and_others_after_their_time() {
    let mut world = world(3, 3);
    settle_at(&mut world, 2, "b:1");
    settle_at(&mut world, 3, "c:1");
    wait_at(&mut world, 4, "c:1");
    let auto = |remove_after_ms| RingMode::Auto { remove_after_ms };
    let mut watch = crate::control::ring::RingWatch::default();
    let mut look = |world: &World, now_ms: u64, mode| {
        watch.look(
            now_ms * 1_000_000,
            NodeId(1),
            &world.state,
            &world.peers,
            mode,
        )
    };
    assert_eq!(look(&world, 0, auto(None)), nodes([]), "3 is not dead");
    world.peers.remove(&NodeId(3));
    let early = look(&world, 1, auto(None));
    assert_eq!(early, nodes([]), "3 may be about to say hello");
    for node in [2, 3] {
        let dead = peer(node, OURS, false);
        world.peers.insert(NodeId(node), dead);
    }
    assert_eq!(look(&world, 2, auto(None)), nodes([3]));
    assert_eq!(look(&world, 3, RingMode::Operator), nodes([]));
    assert_eq!(look(&world, 8_001, auto(Some(8_000))), nodes([3]));
    assert_eq!(look(&world, 8_002, auto(Some(8_000))), nodes([2, 3]));
    let dead = peer(4, OURS, false);
    world.peers.insert(NodeId(4), dead);
    let nobody_there = look(&world, 8_003, auto(None));
    assert_eq!(nobody_there, nodes([]), "and its successor lives");
}

/// An epoch that is due at the very moments at which the ring is to be looked after kept joiners out for ever.
#[test]
fn what_is_more_urgent_does_not_take_the_turn_of_the_ring() {
    let mut world = world(3, 3);
    world.mode = RingMode::Auto {
        remove_after_ms: None,
    };
    wait_at(&mut world, 4, "d:1");
    acknowledge(&mut world, 0);
    world.epoch_due = true;
    let mut watch = crate::control::ring::RingWatch::default();
    let mut turn = |world: &World, now_ms: u64| {
        let now_ns = now_ms * 1_000_000;
        assert!(watch.is_due(now_ns));
        let duty = decide(world, false).expect("something to do");
        if duty.comes_after_ring() {
            watch.looked(now_ns);
        }
        (matches!(duty, Duty::Begin(..)), watch.is_due(now_ns))
    };
    assert_eq!(
        turn(&world, 0),
        (false, true),
        "an epoch, and the ring is due still"
    );
    world.epoch_due = false;
    assert_eq!(turn(&world, 1), (true, false));
    let later_ms = 1 + 1_000;
    world.epoch_due = true;
    assert_eq!(turn(&world, later_ms), (false, true));
}

/// N = 3, R = W = 2: of two replicas only one may be left out. The other was, and is back.
#[test]
fn a_change_that_leaves_out_who_is_back_makes_way_for_one_that_leaves_out_the_dead() {
    let mut world = world(4, 3);
    world.learners = nodes([4]);
    world.mode = RingMode::Auto {
        remove_after_ms: Some(1),
    };
    begin(
        &mut world,
        RingChange {
            remove_dead: nodes([4]),
            ..RingChange::default()
        },
    );
    world.long_dead = nodes([3, 4]);
    for node in [3, 4] {
        let dead = peer(node, OURS, false);
        world.peers.insert(NodeId(node), dead);
    }
    world.state.acked.remove(&NodeId(3));
    assert_eq!(
        decide(&world, false),
        None,
        "both are dead: nothing can be done"
    );
    world.long_dead = nodes([3]);
    let alive = peer(4, OURS, true);
    world.peers.insert(NodeId(4), alive);
    assert_eq!(decide(&world, false), Some(Duty::Abort(RequestId(9))));
}

#[test]
fn who_was_ready_and_died_blocks_without_being_named() {
    let mut world = world(3, 3);
    world.mode = RingMode::Auto {
        remove_after_ms: Some(1),
    };
    let member = new_member(4);
    apply(
        &mut world,
        &Command::AddMember {
            member: member.clone(),
        },
    );
    let (boot, nonce, earlier) = (1, 5, Vec::new());
    apply(
        &mut world,
        &Command::Announce {
            member,
            boot,
            nonce,
            earlier,
        },
    );
    world.learners = nodes([4]);
    let join = nodes([4]);
    begin(
        &mut world,
        RingChange {
            join,
            ..RingChange::default()
        },
    );
    step(&mut world);
    step(&mut world);
    acknowledge(&mut world, 0);
    let version = world.state.topology.version;
    apply(
        &mut world,
        &Command::Ready {
            member: NodeId(4),
            version,
        },
    );
    let (to, floor) = (Epoch(world.state.epoch.0 + 1), Hlc(78));
    apply(&mut world, &Command::AdvanceEpochWithFloor { to, floor });
    assert!(
        world
            .state
            .blocked_by()
            .iter()
            .all(|blocker| blocker.node != NodeId(4))
    );
    assert_eq!(decide(&world, false), None, "the others verify");
    world.long_dead = nodes([4]);
    assert_eq!(decide(&world, false), Some(Duty::Abort(RequestId(9))));
}
