use std::collections::BTreeSet;

use mds_types::{ClusterId, IncarnationId};
use proptest::prelude::*;

use super::*;

mod transitions;

fn directory(n: u128) -> IncarnationId {
    IncarnationId((n << 64) | n)
}

fn member(n: u128) -> NewMember {
    let info = MemberInfo {
        name: format!("node-{n}"),
        weight: 100,
        ..MemberInfo::default()
    };
    NewMember {
        incarnation: directory(n),
        info,
    }
}

fn born(cluster: u128, members: impl IntoIterator<Item = u128>) -> Command {
    Command::Born {
        cluster: ClusterId(cluster),
        config: ClusterConfig::default(),
        members: members.into_iter().map(member).collect(),
    }
}

/// A start of a directory that remembers all its starts.
fn announce(n: u128, boot: u64, nonce: u64) -> Command {
    announce_after(n, boot, nonce, (0..1_000).collect())
}

fn announce_after(n: u128, boot: u64, nonce: u64, earlier: Vec<u64>) -> Command {
    Command::Announce {
        member: member(n),
        boot,
        nonce,
        earlier,
    }
}

#[test]
fn a_copy_is_refused_however_often_it_is_started() {
    let mut state = ClusterState::default();
    assert_eq!(state.apply(&born(9, [1, 2, 3])), Response::Done);
    // Copied during start 1; the original has gone on to start 2.
    assert_eq!(
        state.apply(&announce_after(1, 1, 11, vec![])),
        Response::Done
    );
    assert_eq!(
        state.apply(&announce_after(1, 2, 12, vec![11])),
        Response::Done
    );
    for boot in 2..10 {
        let mut earlier = vec![11];
        earlier.extend(100..100 + boot);
        let copy = state.apply(&announce_after(1, boot, 100 + boot, earlier));
        assert!(matches!(copy, Response::Refused(_)), "start {boot}");
    }
    // The original goes on, also past a start of its own that nobody heard of.
    let original = announce_after(1, 4, 14, vec![11, 12, 13]);
    assert_eq!(state.apply(&original), Response::Done);
}

/// One line per command: what it was, what it came to, what then stands.
fn play(commands: &[Command]) -> String {
    let mut state = ClusterState::default();
    let mut script = String::new();
    for command in commands {
        let response = match state.apply(command) {
            Response::Done => "done".to_owned(),
            Response::NotYet(reason) => format!("not yet: {reason}"),
            Response::Refused(reason) => format!("refused: {reason}"),
        };
        let members = state.members.iter().map(|(node, member)| {
            format!(
                "{}:{}/{}{}",
                node.0,
                member.boot,
                member.boot_nonce,
                match member.stage {
                    MemberStage::Active => "a",
                    MemberStage::Waiting => "w",
                    MemberStage::Joining => "j",
                    MemberStage::Leaving => "l",
                    MemberStage::Left => "x",
                }
            )
        });
        let members = members.collect::<Vec<_>>().join(" ");
        script += &format!(
            "{command} -> {response} | e{} t{} [{members}]\n",
            state.epoch, state.topology.version
        );
    }
    script
}

#[test]
fn golden_script_of_a_clusters_life() {
    let script = play(&[
        Command::AdvanceEpoch { to: Epoch(1) },
        born(0xc, [2, 1]),
        born(0xc, [3]),
        born(0xd, [3]),
        announce(1, 1, 11),
        announce(1, 1, 11),
        announce(1, 1, 12),
        announce(1, 3, 13),
        announce(1, 2, 14),
        announce(9, 1, 19),
        Command::AddMember { member: member(9) },
        Command::AddMember { member: member(9) },
        announce(9, 1, 19),
        Command::AdvanceEpoch { to: Epoch(2) },
        Command::AdvanceEpoch { to: Epoch(2) },
        Command::AdvanceEpoch { to: Epoch(4) },
    ]);
    let copy = "this data directory is a copy or was restored from a backup: start number";
    let advice = "has already been used, or a later start is missing from it. Start this node \
                  with an empty directory: it joins as a new member";
    let (c, d) = (ClusterId(0xc), ClusterId(0xd));
    let expected = format!(
        "epoch 1 -> not yet: the cluster has not been formed yet | e0 t0 []\n\
         born {c} with 2 members -> done | e1 t1 [1:0/0a 2:0/0a]\n\
         born {c} with 1 members -> done | e1 t1 [1:0/0a 2:0/0a]\n\
         born {d} with 1 members -> refused: the cluster was born as {c} | e1 t1 [1:0/0a 2:0/0a]\n\
         start 1 of 0000000000000001 -> done | e1 t1 [1:1/11a 2:0/0a]\n\
         start 1 of 0000000000000001 -> done | e1 t1 [1:1/11a 2:0/0a]\n\
         start 1 of 0000000000000001 -> refused: {copy} 1 {advice} | e1 t1 [1:1/11a 2:0/0a]\n\
         start 3 of 0000000000000001 -> done | e1 t1 [1:3/13a 2:0/0a]\n\
         start 2 of 0000000000000001 -> refused: {copy} 2 {advice} | e1 t1 [1:3/13a 2:0/0a]\n\
         start 1 of 0000000000000009 -> not yet: the node is not a member yet | e1 t1 [1:3/13a 2:0/0a]\n\
         add member 0000000000000009 -> done | e1 t1 [1:3/13a 2:0/0a 9:0/0w]\n\
         add member 0000000000000009 -> done | e1 t1 [1:3/13a 2:0/0a 9:0/0w]\n\
         start 1 of 0000000000000009 -> done | e1 t1 [1:3/13a 2:0/0a 9:1/19w]\n\
         epoch 2 -> done | e2 t1 [1:3/13a 2:0/0a 9:1/19w]\n\
         epoch 2 -> refused: epoch 2 is over: the epoch is 2 | e2 t1 [1:3/13a 2:0/0a 9:1/19w]\n\
         epoch 4 -> refused: epoch 4 would skip some after 2 | e2 t1 [1:3/13a 2:0/0a 9:1/19w]\n"
    );
    assert_eq!(script, expected);
}

#[test]
fn the_ring_is_formed_of_the_first_members_in_order() {
    let mut state = ClusterState::default();
    assert_eq!(state.apply(&born(0xc, [5, 2, 9])), Response::Done);
    let ring: Vec<u64> = state
        .topology
        .members
        .iter()
        .map(|member| member.node.0)
        .collect();
    assert_eq!(ring, [2, 5, 9]);
    assert_eq!(
        state.apply(&Command::AddMember { member: member(7) }),
        Response::Done
    );
    assert_eq!(
        state.topology.members.len(),
        3,
        "a joiner does not move data"
    );
}

#[test]
fn impossible_births_change_nothing() {
    let long = MemberInfo {
        zone: "z".repeat(129),
        ..MemberInfo::default()
    };
    let too_long = NewMember {
        incarnation: directory(1),
        info: long,
    };
    let bad_config = ClusterConfig {
        replicas: 0,
        ..ClusterConfig::default()
    };
    let (cluster, config) = (ClusterId(1), ClusterConfig::default());
    for command in [
        born(0, [1]),
        born(1, []),
        born(1, [1, 1]),
        born(1, [0]),
        Command::Born {
            cluster,
            config: bad_config,
            members: vec![member(1)],
        },
        Command::Born {
            cluster,
            config,
            members: vec![too_long],
        },
    ] {
        let mut state = ClusterState::default();
        assert!(
            matches!(state.apply(&command), Response::Refused(_)),
            "{command:?}"
        );
        assert_eq!(state, ClusterState::default());
    }
}

fn commands() -> impl Strategy<Value = Command> {
    prop_oneof![
        (1u128..3, 1u128..5).prop_map(|(cluster, count)| born(cluster, 1..=count)),
        (1u128..8).prop_map(|n| Command::AddMember { member: member(n) }),
        (1u128..8, 0u64..5, 0u64..3).prop_map(|(n, boot, nonce)| announce(n, boot, nonce)),
        (0u64..6).prop_map(|to| Command::AdvanceEpoch { to: Epoch(to) }),
    ]
}

proptest! {
    #[test]
    fn numbers_only_grow_and_the_encoding_is_faithful(
        script in prop::collection::vec(commands(), 0..40),
    ) {
        let mut state = ClusterState::default();
        for command in script {
            let before = state.clone();
            let response = state.apply(&command);
            prop_assert!(state.epoch >= before.epoch);
            prop_assert!(state.topology.version >= before.topology.version);
            prop_assert!(before.cluster.is_none() || state.cluster == before.cluster);
            for (node, old) in &before.members {
                let new = &state.members[node];
                prop_assert!(
                    new.boot > old.boot
                        || (new.boot, new.boot_nonce) == (old.boot, old.boot_nonce)
                );
            }
            if response != Response::Done {
                prop_assert_eq!(&state, &before);
            }
        }
        let bytes = state.encode().unwrap();
        prop_assert_eq!(ClusterState::decode(&bytes), Ok(state));
    }

    #[test]
    fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = ClusterState::decode(&bytes);
        let mut framed = vec![encoding::STATE_FORMAT_2];
        framed.extend_from_slice(&bytes);
        let _ = ClusterState::decode(&framed);
    }
}
