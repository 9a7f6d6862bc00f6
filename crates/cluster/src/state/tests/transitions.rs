//! Ring changes: a script that shows a whole one, and that no order of commands breaks an invariant.

use mds_types::{Hlc, RequestId};

use super::*;

fn node(n: u64) -> NodeId {
    NodeId(n)
}

fn nodes(ids: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
    ids.into_iter().map(NodeId).collect()
}

fn begin(request: u128, change: RingChange) -> Command {
    Command::BeginTransition {
        request: RequestId(request),
        change,
    }
}

fn join(ids: impl IntoIterator<Item = u64>) -> RingChange {
    RingChange {
        join: nodes(ids),
        ..RingChange::default()
    }
}

fn ack(n: u64, version: u64) -> Command {
    Command::Ack {
        member: node(n),
        version: TopologyVersion(version),
    }
}

fn ready(n: u64, version: u64) -> Command {
    Command::Ready {
        member: node(n),
        version: TopologyVersion(version),
    }
}

fn step(from: u64, floor: u64) -> Command {
    Command::StepTransition {
        from: TopologyVersion(from),
        floor: Hlc(floor),
    }
}

/// Members 1 to `ring` on the ring, `ring + 1` to `all` waiting, all started and the ring acknowledged.
fn settled(ring: u64, all: u64) -> ClusterState {
    let mut state = ClusterState::default();
    assert_eq!(
        state.apply(&born(0xc, 1..=u128::from(ring))),
        Response::Done
    );
    for n in 1..=all {
        let member = member(u128::from(n));
        assert_eq!(state.apply(&Command::AddMember { member }), Response::Done);
        assert_eq!(state.apply(&announce(u128::from(n), 1, n)), Response::Done);
    }
    acknowledge(&mut state);
    assert!(state.is_settled());
    state
}

/// Everybody but the excluded acknowledges the present version.
fn acknowledge(state: &mut ClusterState) {
    let version = state.topology.version;
    for member in state.members.keys().copied().collect::<Vec<_>>() {
        let _ = state.apply(&Command::Ack { member, version });
    }
}

/// Lets a change that has begun go on to its end.
fn finish(state: &mut ClusterState) {
    while let Some(open) = state.transition.clone() {
        acknowledge(state);
        for member in &open.topology.members {
            let version = state.topology.version;
            let member = member.node;
            let _ = state.apply(&Command::Ready { member, version });
        }
        let from = state.topology.version;
        let floor = Hlc(0);
        if state.transition_wants_epoch() {
            let to = Epoch(state.epoch.0 + 1);
            let advance = Command::AdvanceEpochWithFloor { to, floor };
            assert_eq!(state.apply(&advance), Response::Done);
        }
        assert_eq!(
            state.apply(&Command::StepTransition { from, floor }),
            Response::Done
        );
    }
    acknowledge(state);
}

#[track_caller]
fn refusal(state: &mut ClusterState, change: RingChange) -> String {
    let before = state.clone();
    let response = state.apply(&begin(999, change));
    assert_eq!(*state, before);
    match response {
        Response::Refused(reason) => reason,
        response => panic!("{response:?}"),
    }
}

fn show(state: &ClusterState) -> String {
    let ring = |topology: &Topology| {
        let members = topology
            .members
            .iter()
            .map(|member| member.node.0.to_string());
        members.collect::<Vec<_>>().join(",")
    };
    let open = match &state.transition {
        None if state.is_settled() => " settled".to_owned(),
        None => String::new(),
        Some(open) => format!(
            " to {} entered {} e1 {}",
            ring(&open.topology),
            open.entered,
            open.first_epoch
                .map_or("-".to_owned(), |epoch| epoch.to_string())
        ),
    };
    format!(
        "{} v{} from {} e{} floor {} ring {}{open}",
        state
            .transition
            .as_ref()
            .map_or(RingStage::Stable, |open| open.stage),
        state.topology.version,
        state.accepted_from,
        state.epoch,
        state.floors.latest().0,
        ring(&state.topology),
    )
}

#[test]
fn golden_script_of_a_change() {
    let mut state = settled(3, 4);
    let mut script = String::new();
    for command in [
        begin(1, join([4])),
        begin(1, join([4])),
        begin(2, join([4])),
        step(2, 50),
        ack(1, 2),
        ack(2, 2),
        ack(3, 2),
        ack(3, 9),
        step(2, 50),
        ack(4, 2),
        step(2, 50),
        ack(1, 3),
        ack(2, 3),
        ack(3, 3),
        ack(4, 3),
        step(1, 50),
        step(3, 50),
        ready(4, 3),
        ack(1, 4),
        ack(2, 4),
        ack(3, 4),
        ack(4, 4),
        step(4, 60),
        ready(1, 4),
        ready(2, 4),
        ready(3, 4),
        ready(4, 4),
        step(4, 60),
        Command::AdvanceEpochWithFloor {
            to: Epoch(3),
            floor: Hlc(40),
        },
        step(4, 60),
        Command::AbortTransition {
            request: RequestId(1),
        },
        ack(1, 5),
        ack(2, 5),
        ack(3, 5),
        ack(4, 5),
        step(5, 70),
        ack(1, 6),
        ack(2, 6),
        ack(3, 6),
        ack(4, 6),
        step(6, 80),
        ack(1, 7),
        ack(2, 7),
        ack(3, 7),
        ack(4, 7),
        step(7, 90),
        step(8, 90),
        ack(1, 8),
        ack(2, 8),
        ack(3, 8),
        ack(4, 8),
        begin(1, join([4])),
    ] {
        let response = match state.apply(&command) {
            Response::Done => "done".to_owned(),
            Response::NotYet(reason) => format!("not yet: {reason}"),
            Response::Refused(reason) => format!("refused: {reason}"),
        };
        script += &format!("{command} -> {response}\n    {}\n", show(&state));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testscripts/change.script");
    if std::env::var_os("MDS_UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &script).unwrap();
    }
    let recorded = include_str!("../../../testscripts/change.script");
    assert!(
        script == recorded,
        "the script has changed; if that is meant, run with MDS_UPDATE_GOLDEN=1:\n{script}"
    );
}

#[test]
fn a_ring_keeps_n_members_unless_n_changes() {
    let mut state = settled(3, 4);
    let leave = |n| RingChange {
        leave: nodes([n]),
        ..RingChange::default()
    };
    assert!(refusal(&mut state, leave(1)).contains("n is 3"));
    let fewer = RingChange {
        quorums: Some(Quorums {
            replicas: 2,
            read: 1,
            write: 2,
        }),
        ..leave(1)
    };
    assert_eq!(state.apply(&begin(1, fewer)), Response::Done);
    finish(&mut state);
    assert_eq!(state.topology.members.len(), 2);
    assert_eq!(state.config.as_ref().unwrap().replicas, 2);
    let more = RingChange {
        quorums: Some(Quorums {
            replicas: 3,
            read: 2,
            write: 2,
        }),
        ..RingChange::default()
    };
    assert!(refusal(&mut state, more.clone()).contains("n is 3"));
    let weightless = RingChange {
        reweigh: [(node(2), 0)].into(),
        ..RingChange::default()
    };
    assert!(refusal(&mut state, weightless).contains("n is 2"));
    // Whoever has left may come again.
    let back = RingChange {
        join: nodes([1]),
        ..more
    };
    assert_eq!(state.apply(&begin(2, back)), Response::Done);
    finish(&mut state);
    assert_eq!(state.topology.members.len(), 3);
    assert_eq!(state.members[&node(1)].stage, MemberStage::Active);
}

/// A cluster that was formed with fewer nodes than N grows towards it.
#[test]
fn a_small_ring_may_grow() {
    let mut state = settled(1, 3);
    assert_eq!(state.apply(&begin(1, join([2]))), Response::Done);
    finish(&mut state);
    assert_eq!(state.apply(&begin(2, join([3]))), Response::Done);
    finish(&mut state);
    assert_eq!(state.topology.members.len(), 3);
}

#[test]
fn two_replicas_of_a_partition_are_not_given_up_unless_forced() {
    let mut state = settled(4, 6);
    let replace = |dead: [u64; 2], forced| RingChange {
        join: nodes([5, 6]),
        remove_dead: nodes(dead),
        forced,
        ..RingChange::default()
    };
    let reason = refusal(&mut state, replace([1, 2], false));
    assert!(reason.contains("without 2 of its replicas"), "{reason}");
    assert_eq!(
        state.apply(&begin(1, replace([1, 2], true))),
        Response::Done
    );
    finish(&mut state);
    assert!(!state.members.contains_key(&node(1)) && state.is_removed(node(1)));

    // The same two, the second one during the change.
    let mut state = settled(4, 6);
    let one = RingChange {
        remove_dead: nodes([1]),
        ..join([5, 6])
    };
    assert_eq!(state.apply(&begin(1, one)), Response::Done);
    let exclude = |forced| Command::Exclude {
        request: RequestId(1),
        node: node(2),
        forced,
    };
    assert!(matches!(state.apply(&exclude(false)), Response::Refused(_)));
    assert_eq!(state.apply(&exclude(true)), Response::Done);
    finish(&mut state);
    assert!(
        state.members.contains_key(&node(2)),
        "excluded, not removed"
    );
}

/// Replicas in one zone have no partition in common: the whole zone may be given up.
#[test]
fn a_whole_zone_may_be_given_up() {
    let mut state = ClusterState::default();
    let zoned = |n: u128| {
        let mut member = member(n);
        member.info.zone = format!("zone-{}", n % 3);
        member
    };
    let born = Command::Born {
        cluster: ClusterId(1),
        config: ClusterConfig::default(),
        members: (1..=6).map(zoned).collect(),
    };
    assert_eq!(state.apply(&born), Response::Done);
    acknowledge(&mut state);
    let change = RingChange {
        remove_dead: nodes([1, 4]),
        ..RingChange::default()
    };
    assert_eq!(state.apply(&begin(1, change)), Response::Done);
}

#[test]
fn removed_directories_do_not_come_back() {
    let mut state = settled(3, 5);
    let remove = |n| Command::RemoveMember { node: node(n) };
    assert!(matches!(state.apply(&remove(1)), Response::Refused(_)));
    assert_eq!(state.apply(&remove(5)), Response::Done);
    assert_eq!(state.apply(&remove(5)), Response::Done, "said again");
    for command in [Command::AddMember { member: member(5) }, announce(5, 2, 55)] {
        match state.apply(&command) {
            Response::Refused(reason) => assert!(reason.contains("empty directory"), "{reason}"),
            response => panic!("{response:?}"),
        }
    }
    let replaced = RingChange {
        remove_dead: nodes([2]),
        ..join([4])
    };
    assert_eq!(state.apply(&begin(1, replaced)), Response::Done);
    finish(&mut state);
    assert!(matches!(
        state.apply(&announce(2, 9, 99)),
        Response::Refused(_)
    ));
}

/// Excluding somebody is a new version, so that nobody mixes what was verified with and without it.
#[test]
fn an_exclusion_is_a_new_version_of_the_same_stage() {
    let mut state = settled(4, 5);
    assert_eq!(state.apply(&begin(1, join([5]))), Response::Done);
    acknowledge(&mut state);
    let exclude = Command::Exclude {
        request: RequestId(1),
        node: node(2),
        forced: false,
    };
    assert_eq!(state.apply(&exclude), Response::Done);
    let rings = state.rings();
    assert_eq!(
        (rings.version, rings.stage),
        (TopologyVersion(3), RingStage::Prepare)
    );
    assert!(rings.excluded.contains(&node(2)));
    // What was acknowledged for the stage counts still.
    assert_eq!(state.apply(&step(3, 0)), Response::Done);
    assert_eq!(state.rings().stage, RingStage::WriteBoth);
}

/// A log and a snapshot of a version that knew no transitions are read, and the rings can change.
#[test]
fn what_older_versions_wrote_is_read() {
    let mut state = settled(3, 4);
    state.acked.clear();
    state.floors = EpochFloors::default();
    let old = encoding::StateFormat1 {
        cluster: state.cluster,
        config: state.config.clone(),
        epoch: state.epoch,
        topology: state.topology.clone(),
        members: state.members.clone(),
    };
    let bytes = postcard::to_extend(&old, vec![1]).unwrap();
    let mut read = ClusterState::decode(&bytes).unwrap();
    assert_eq!(read, state);
    // Command 3, epoch 2: as it lies in old logs.
    let advance: Command = postcard::from_bytes(&[3, 2]).unwrap();
    assert_eq!(advance, Command::AdvanceEpoch { to: Epoch(2) });
    assert_eq!(read.apply(&advance), Response::Done);
    assert_eq!(read.floors.floor(Epoch(2)), Hlc(0));
    acknowledge(&mut read);
    assert_eq!(read.apply(&begin(1, join([4]))), Response::Done);
    finish(&mut read);
    assert_eq!(read.topology.members.len(), 4);
}

#[test]
fn the_memory_of_requests_is_bounded() {
    let mut state = settled(3, 4);
    for request in 1..=2 * REQUESTS_MAX as u128 {
        assert_eq!(state.apply(&begin(request, join([4]))), Response::Done);
        let request = RequestId(request);
        assert_eq!(
            state.apply(&Command::AbortTransition { request }),
            Response::Done
        );
        acknowledge(&mut state);
        assert!(state.requests.len() <= REQUESTS_MAX);
    }
}

fn any_change() -> impl Strategy<Value = RingChange> {
    let some = || prop::collection::btree_set(1u64..8, 0..3);
    let weights = prop::collection::btree_map(1u64..8, prop::sample::select(vec![0u32, 50]), 0..2);
    let quorums = prop::option::weighted(0.2, (0u8..5, 0u8..4, 0u8..4));
    (some(), some(), some(), weights, quorums, any::<bool>()).prop_map(
        |(join, leave, remove, weights, quorums, forced)| RingChange {
            join: nodes(join),
            leave: nodes(leave),
            remove_dead: nodes(remove),
            reweigh: weights
                .into_iter()
                .map(|(n, weight)| (node(n), weight))
                .collect(),
            quorums: quorums.map(|(replicas, read, write)| Quorums {
                replicas,
                read,
                write,
            }),
            forced,
        },
    )
}

/// A command whose versions and requests are relative to what the state has, so that many come through.
#[derive(Clone, Debug)]
enum Act {
    Begin(u128, RingChange),
    AckAll,
    AckOne(u64, u64),
    ReadyAll,
    ReadyOne(u64, u64),
    Step(u64, u64),
    Abort(u128),
    Exclude(u128, u64, bool),
    Remove(u64),
    Add(u128),
    Announce(u128, u64),
    Advance(u64, u64),
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0u128..4, any_change()).prop_map(|(request, change)| Act::Begin(request, change)),
        6 => Just(Act::AckAll),
        2 => (1u64..8, 0u64..3).prop_map(|(n, behind)| Act::AckOne(n, behind)),
        3 => Just(Act::ReadyAll),
        1 => (1u64..8, 0u64..3).prop_map(|(n, behind)| Act::ReadyOne(n, behind)),
        8 => (0u64..2, 0u64..100).prop_map(|(behind, floor)| Act::Step(behind, floor)),
        1 => (0u128..4).prop_map(Act::Abort),
        1 => (0u128..4, 1u64..8, any::<bool>())
            .prop_map(|(request, n, forced)| Act::Exclude(request, n, forced)),
        1 => (1u64..8).prop_map(Act::Remove),
        1 => (1u128..8).prop_map(Act::Add),
        1 => (1u128..8, 1u64..4).prop_map(|(n, boot)| Act::Announce(n, boot)),
        1 => (0u64..3, 0u64..100).prop_map(|(by, floor)| Act::Advance(by, floor)),
    ]
}

fn commands_of(state: &ClusterState, act: Act) -> Vec<Command> {
    let version = state.topology.version.0;
    let behind = |by: u64| version.saturating_sub(by);
    let request = RequestId;
    match act {
        Act::Begin(name, change) => vec![begin(name, change)],
        Act::AckAll => state.members.keys().map(|n| ack(n.0, version)).collect(),
        Act::AckOne(n, by) => vec![ack(n, behind(by))],
        Act::ReadyAll => state.members.keys().map(|n| ready(n.0, version)).collect(),
        Act::ReadyOne(n, by) => vec![ready(n, behind(by))],
        Act::Step(by, floor) => vec![step(behind(by), floor)],
        Act::Abort(name) => vec![Command::AbortTransition {
            request: request(name),
        }],
        Act::Exclude(name, n, forced) => vec![Command::Exclude {
            request: request(name),
            node: node(n),
            forced,
        }],
        Act::Remove(n) => vec![Command::RemoveMember { node: node(n) }],
        Act::Add(n) => vec![Command::AddMember { member: member(n) }],
        Act::Announce(n, boot) => vec![announce(n, boot, boot)],
        Act::Advance(by, floor) => vec![Command::AdvanceEpochWithFloor {
            to: Epoch(state.epoch.0 + by),
            floor: Hlc(floor),
        }],
    }
}

/// What must hold between a state and the next, whatever the command was.
fn check_step(
    old: &ClusterState,
    new: &ClusterState,
    command: &Command,
) -> Result<(), TestCaseError> {
    prop_assert!(new.epoch >= old.epoch && new.accepted_from >= old.accepted_from);
    for epoch in 0..=new.epoch.0 {
        let (before, after) = (
            old.floors.floor(Epoch(epoch)),
            new.floors.floor(Epoch(epoch)),
        );
        prop_assert!(
            epoch > old.epoch.0 || before == after,
            "an agreed floor changed"
        );
        prop_assert!(new.floors.floor(Epoch(epoch + 1)) >= after);
    }
    // One version more with every change of ring, stage or exclusion, and otherwise none.
    let (from, to) = (old.rings(), new.rings());
    let moved = |rings: &Rings| {
        let mut rings = rings.clone();
        let ring = |ring: &Ring| (ring.topology.members.clone(), ring.config.clone());
        let members = (ring(&rings.current), rings.next.as_ref().map(ring));
        rings.version = TopologyVersion(0);
        (members, rings.stage, rings.excluded.clone())
    };
    let raised = u64::from(moved(&from) != moved(&to));
    prop_assert_eq!(to.version.0, from.version.0 + raised);
    if let Some(next) = &to.next {
        prop_assert_eq!(next.topology.version, to.version);
    }
    prop_assert!(to.accepted_from < to.version);
    // The order of stages.
    let aborts = matches!(command, Command::AbortTransition { .. });
    let follows = from.stage == to.stage
        || from.stage.following() == Some(to.stage)
        || (from.stage == RingStage::Stable && to.stage == RingStage::Prepare)
        || (aborts && from.stage.may_abort() && to.stage == RingStage::Stable);
    prop_assert!(follows, "{} to {}", from.stage, to.stage);
    if from.stage != to.stage && !aborts {
        // No stage is left without the acknowledgements of all that count.
        let entered = old
            .transition
            .as_ref()
            .map_or(from.version, |open| open.entered);
        for member in old
            .members
            .keys()
            .filter(|node| !to_exclude(old, new).contains(node))
        {
            let acked = old.acked.get(member).copied().unwrap_or_default();
            prop_assert!(acked >= entered, "{member} has not acknowledged {entered}");
        }
        prop_assert_eq!(to.accepted_from, entered);
        if from.stage == RingStage::Stream {
            let open = old.transition.as_ref().unwrap();
            let mut next = open.topology.members.iter().map(|member| member.node);
            prop_assert!(next.all(|n| open.excluded.contains(&n) || open.ready.contains(&n)));
            prop_assert!(
                Some(old.epoch) > open.first_epoch,
                "what is before E1 is not closed"
            );
        }
        prop_assert_eq!(to.stage == RingStage::Stream, new.epoch > old.epoch);
    }
    prop_assert_eq!(
        to.first_epoch.is_some(),
        !matches!(
            to.stage,
            RingStage::Stable | RingStage::Prepare | RingStage::WriteBoth
        )
    );
    check_members(old, new)
}

fn to_exclude(old: &ClusterState, new: &ClusterState) -> BTreeSet<NodeId> {
    let open = old.transition.as_ref().or(new.transition.as_ref());
    open.map(|open| open.excluded.clone()).unwrap_or_default()
}

/// Rings consist of members, are as large as they have to be, and stages say who is where.
fn check_members(old: &ClusterState, new: &ClusterState) -> Result<(), TestCaseError> {
    let holders = |topology: &Topology| {
        topology
            .members
            .iter()
            .filter(|member| member.weight > 0)
            .count()
    };
    let config = new.config.as_ref().unwrap();
    let wanted = usize::from(config.replicas);
    prop_assert!(config.validate().is_ok());
    prop_assert!(holders(&new.topology) >= wanted.min(holders(&old.topology)));
    prop_assert!(new.topology.members.is_sorted_by_key(|member| member.node));
    for (node, member) in &new.members {
        let on = |topology: &Topology| topology.member(*node).is_some();
        let next = new.transition.as_ref().map(|open| on(&open.topology));
        let removed_now = new
            .transition
            .as_ref()
            .is_some_and(|open| open.change.remove_dead.contains(node));
        let expected = match (on(&new.topology), next) {
            (true, None | Some(true)) => vec![MemberStage::Active],
            (true, Some(false)) if removed_now => vec![MemberStage::Active],
            (true, Some(false)) => vec![MemberStage::Leaving],
            (false, Some(true)) => vec![MemberStage::Joining],
            (false, None | Some(false)) => vec![MemberStage::Waiting, MemberStage::Left],
        };
        prop_assert!(
            expected.contains(&member.stage),
            "{node} is {:?}",
            member.stage
        );
        prop_assert!(!new.removed.contains(&member.incarnation));
    }
    let rings = new.rings();
    for ring in [Some(&rings.current), rings.next.as_ref()]
        .into_iter()
        .flatten()
    {
        let mut members = ring.topology.members.iter();
        prop_assert!(members.all(|member| new.members.contains_key(&member.node)));
    }
    prop_assert!(new.requests.len() <= REQUESTS_MAX && new.removed.len() <= REMOVED_MAX);
    prop_assert!(old.removed.iter().all(|gone| new.removed.contains(gone)));
    let running = new
        .requests
        .iter()
        .filter(|known| known.fate == RequestFate::Running);
    prop_assert_eq!(running.count(), usize::from(new.transition.is_some()));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn no_order_of_commands_breaks_an_invariant(acts in prop::collection::vec(any_act(), 0..80)) {
        let mut state = settled(3, 6);
        for act in acts {
            for command in commands_of(&state, act) {
                let before = state.clone();
                let response = state.apply(&command);
                check_step(&before, &state, &command)?;
                if response != Response::Done {
                    prop_assert_eq!(&state, &before, "{}", command);
                }
                prop_assert_eq!(
                    state.is_settled(),
                    state.transition.is_none() && state.blocked_by().is_empty()
                );
            }
        }
        let bytes = state.encode().unwrap();
        prop_assert_eq!(ClusterState::decode(&bytes), Ok(state.clone()));
        // Whatever came before, a change that everybody answers to comes to its end.
        finish(&mut state);
        prop_assert!(state.is_settled());
    }
}
