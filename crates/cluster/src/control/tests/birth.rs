//! How clusters are born, and that there is only ever one.

use mds_types::{ClusterId, TopologyVersion};

use super::sim::{SECOND, World, born, gather};
use crate::control::{AdminError, AdminReply};
use crate::view::{MemberStage, Standing};

#[test]
fn nothing_is_born_by_waiting() {
    let mut world = World::new(1, 3);
    world.run_for(60 * SECOND);
    assert!(world.clusters().is_empty());
    assert!(world.standing_is(&Standing::Unborn, &[0, 1, 2]));
}

#[test]
fn three_nodes_form_a_cluster() {
    let world = born(2, 3);
    let view = world.view(1);
    assert_eq!(view.topology.version, TopologyVersion(1));
    assert_eq!(view.topology.members.len(), 3);
    assert_eq!(view.raft.voters.len(), 3);
    assert!(
        view.members
            .values()
            .all(|member| member.stage == MemberStage::Active)
    );
    let [Ok(AdminReply::Born { cluster, members })] = &world.nodes[0].admin[..] else {
        panic!("{:?}", world.nodes[0].admin);
    };
    assert_eq!((*cluster, members.len()), (view.cluster, 3));
}

#[test]
fn of_seven_nodes_five_vote_and_two_learn() {
    let mut world = born(3, 7);
    world.run_until(5 * SECOND, |world| {
        (0..7).all(|node| world.view(node).raft.voters.len() == 5)
    });
    let zones_of_voters = |zone: usize| {
        let voters = &world.view(0).raft.voters;
        (0..7)
            .filter(|node| node % 3 == zone && voters.contains(&world.id(*node)))
            .count()
    };
    let mut spread = [0, 1, 2].map(zones_of_voters);
    spread.sort_unstable();
    assert_eq!(spread, [1, 2, 2], "voters spread over the zones");
}

#[test]
fn whoever_founds_a_large_cluster_votes_in_it() {
    for founder in 0..9 {
        let mut world = World::new(30 + founder as u64, 9);
        gather(&mut world);
        world.init(founder, 9);
        world.run_until(10 * SECOND, |world| {
            world.standing_is(&Standing::Active, &[0, 1, 2, 3, 4, 5, 6, 7, 8]) && world.agree()
        });
        let voters = &world.view(founder).raft.voters;
        assert!(voters.contains(&world.id(founder)), "{founder}: {voters:?}");
    }
}

#[test]
fn a_single_node_is_a_cluster_too() {
    let world = born(4, 1);
    assert_eq!(world.view(0).raft.voters.len(), 1);
}

#[test]
fn init_says_why_not() {
    let mut world = World::new(5, 3);
    gather(&mut world);
    world.init(1, 4);
    let Some(Err(AdminError::TooFewNodes { expected: 4, seen })) = world.nodes[1].admin.pop()
    else {
        panic!("{:?}", world.nodes[1].admin);
    };
    assert_eq!(seen.len(), 3);
    assert!(seen.contains(&"node-2 (node-2:1)".to_owned()), "{seen:?}");

    world.init(1, 3);
    world.init(1, 3);
    let cluster = world.view(1).cluster;
    assert_eq!(
        world.nodes[1].admin.pop(),
        Some(Err(AdminError::AlreadyFormed(cluster)))
    );
}

/// Whoever crashes whenever, with or without its power: there is one cluster in the end, and it has
/// everybody.
#[test]
fn a_birth_survives_crashes_at_any_point() {
    for seed in 0..24 {
        let mut world = World::new(100 + seed, 3);
        gather(&mut world);
        world.init(0, 3);
        let ops = world.between(0, 14);
        let victim = (seed % 3) as usize;
        world.nodes[victim].disk.fail_after_ops(ops);
        let wait = world.between(SECOND / 100, 2 * SECOND);
        world.run_for(wait);
        // The founder, the victim of the disk, and one more at random lose their power.
        let more = world.between(0, 3) as usize;
        for node in [0, victim, more] {
            world.crash(node, seed % 2 == 0);
            if world.nodes[node].control.is_none() {
                world.start(node);
            }
        }
        if world.clusters().is_empty() {
            // Nothing durable had happened: the operator tries again.
            gather(&mut world);
            world.init(0, 3);
        }
        world.run_until(20 * SECOND, |world| {
            world.standing_is(&Standing::Active, &[0, 1, 2]) && world.agree()
        });
        assert_eq!(world.clusters().len(), 1, "seed {seed}");
        assert_eq!(world.view(0).topology.members.len(), 3, "seed {seed}");
    }
}

#[test]
fn two_inits_at_once_do_not_make_two_clusters_that_live() {
    for seed in 0..8 {
        let mut world = World::new(200 + seed, 3);
        gather(&mut world);
        world.init(0, 3);
        world.init(1, 3);
        world.run_for(20 * SECOND);
        // One founder gets most voters; the other one is told that its cluster cannot come about.
        let active: Vec<usize> = (0..3)
            .filter(|node| world.view(*node).standing == Standing::Active)
            .collect();
        assert_eq!(active.len(), 2, "seed {seed}: {}", world.describe());
        let refused = (0..3).find(|node| !active.contains(node)).unwrap();
        let Standing::Refused(reason) = &world.view(refused).standing else {
            panic!("seed {seed}: {}", world.describe());
        };
        assert!(reason.contains("cannot come about"), "{reason}");
        assert_eq!(world.view(active[0]).cluster, world.view(active[1]).cluster);
        assert_ne!(world.view(active[0]).cluster, ClusterId::NONE);
    }
}
