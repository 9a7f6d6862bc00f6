//! What happens to nodes of a cluster that lives.

use mds_storage::FaultyDisk;
use mds_types::Epoch;

use super::sim::{MS, SECOND, World, born, gather};
use crate::control::AdminError;
use crate::hello::{Hello, HelloRefusal, PROTOCOL_VERSION, check_hello};
use crate::view::{MemberStage, Standing};

#[test]
fn a_dead_leader_is_replaced_within_three_seconds() {
    for seed in 0..4 {
        let mut world = born(300 + seed, 5);
        let leader = world.leader().unwrap();
        world.crash(leader, true);
        let took = world.run_until(3 * SECOND, |world| world.leader().is_some());
        world.start(leader);
        world.run_until(10 * SECOND, |world| {
            world.standing_is(&Standing::Active, &[0, 1, 2, 3, 4]) && world.agree()
        });
        assert!(took <= 3 * SECOND, "{} ms", took / MS);
    }
}

#[test]
fn a_restart_keeps_the_identity_and_counts() {
    let mut world = born(310, 3);
    let (id, cluster) = (world.id(2), world.view(2).cluster);
    let nonce = world.control(2).boot_nonce();
    for boot in 2..5 {
        world.restart(2);
        assert_eq!(
            world.view(2).standing,
            Standing::Joining,
            "nothing is served yet"
        );
        world.run_until(10 * SECOND, |world| {
            world.standing_is(&Standing::Active, &[2])
                && world.view(0).members[&id].boot == boot
                && world.view(0).peers[&id].alive
                && world.view(0).peers[&id].boot == boot
        });
        assert_eq!((world.id(2), world.view(2).my_boot), (id, boot));
        assert_eq!(world.view(2).cluster, cluster);
        assert_ne!(world.control(2).boot_nonce(), nonce);
    }
    assert_eq!(world.view(0).members.len(), 3);
}

#[test]
fn a_whole_cluster_comes_back_from_a_loss_of_power() {
    let mut world = born(320, 5);
    let before = world.view(0).members.keys().copied().collect::<Vec<_>>();
    for node in 0..5 {
        world.crash(node, true);
    }
    for node in 0..5 {
        world.start(node);
    }
    world.run_until(10 * SECOND, |world| {
        world.standing_is(&Standing::Active, &[0, 1, 2, 3, 4]) && world.agree()
    });
    assert_eq!(
        world.view(0).members.keys().copied().collect::<Vec<_>>(),
        before
    );
}

#[test]
fn a_wiped_directory_is_a_new_member_that_waits() {
    let mut world = born(330, 3);
    let old = world.id(2);
    world.crash(2, true);
    world.nodes[2].disk = FaultyDisk::new(1);
    world.start(2);
    let new = world.id(2);
    assert_ne!(new, old);
    world.run_until(20 * SECOND, |world| {
        world.standing_is(&Standing::Waiting, &[2])
    });
    world.run_until(5 * SECOND, World::agree);
    let members = &world.view(0).members;
    assert_eq!(members.len(), 4);
    assert_eq!(
        members[&old].stage,
        MemberStage::Active,
        "who is dead keeps its place"
    );
    assert_eq!(members[&new].stage, MemberStage::Waiting);
    assert_eq!(
        world.view(0).topology.members.len(),
        3,
        "no data moves by itself"
    );
    assert!(
        !world.view(0).raft.voters.contains(&new),
        "a vote is not passed on"
    );
}

#[test]
fn joiners_get_votes_two_at_a_time() {
    let mut world = born(340, 1);
    world.add_node();
    world.run_until(20 * SECOND, |world| {
        world.standing_is(&Standing::Waiting, &[1])
    });
    world.run_for(5 * SECOND);
    assert_eq!(
        world.view(0).raft.voters.len(),
        1,
        "an even number of voters helps nobody"
    );
    world.add_node();
    world.run_until(20 * SECOND, |world| {
        world.standing_is(&Standing::Waiting, &[2]) && world.view(0).raft.voters.len() == 3
    });
    // The view shows the configuration that is in force, perhaps not committed yet.
    world.run_for(SECOND);
    world.crash(0, true);
    world.run_until(5 * SECOND, |world| world.leader().is_some());
}

/// The copy has the start number of the original, or a later one but less of the log: either way
/// it is the copy that has to go, and the leader that notices lives on.
#[test]
fn a_copied_directory_is_refused() {
    let mut world = born(350, 3);
    world.crash(2, false);
    let copy = copy_of(&world.nodes[2].disk);
    world.start(2);
    world.run_until(10 * SECOND, |world| {
        world.standing_is(&Standing::Active, &[2])
    });
    let clone = world.add_stopped(copy);
    for boot in 2..4 {
        world.start(clone);
        assert_eq!(
            (world.id(clone), world.view(clone).my_boot),
            (world.id(2), boot)
        );
        world.run_until(20 * SECOND, |world| refusal(world, clone).is_some());
        let reason = refusal(&world, clone).unwrap();
        assert!(reason.contains("copy"), "{reason}");
        world.run_for(5 * SECOND);
        assert!(
            world.standing_is(&Standing::Active, &[0, 1, 2]),
            "{}",
            world.describe()
        );
        world.crash(clone, true);
    }
}

/// It belongs to no cluster, and nobody invites it, because its original is known.
#[test]
fn a_copy_from_before_its_original_learnt_of_the_cluster_is_refused() {
    let mut world = born(351, 3);
    let node = world.add_node();
    world.crash(node, false);
    let copy = copy_of(&world.nodes[node].disk);
    world.start(node);
    world.run_until(20 * SECOND, |world| {
        world.standing_is(&Standing::Waiting, &[node])
    });
    let me = world.id(node);
    world.crash(node, false);
    world.nodes[node].disk = copy;
    world.start(node);
    assert_eq!(world.id(node), me);
    world.run_until(20 * SECOND, |world| refusal(world, node).is_some());
}

/// A copy that was started often has a later start number than its original. The others go by that in
/// gossip; once it is refused, they must not take the original for dead because of it, nor keep out its
/// next start.
#[test]
fn a_refused_copy_does_not_keep_its_original_out() {
    let mut world = born(352, 3);
    world.crash(2, false);
    let copy = copy_of(&world.nodes[2].disk);
    world.start(2);
    world.run_until(10 * SECOND, |world| {
        world.standing_is(&Standing::Active, &[2])
    });
    let clone = world.add_stopped(copy);
    for _ in 0..3 {
        world.start(clone);
        world.run_until(20 * SECOND, |world| refusal(world, clone).is_some());
        world.crash(clone, true);
    }
    let me = world.id(2);
    let sees_original = |world: &World, node: usize| {
        let peer = &world.view(node).peers[&me];
        peer.alive && peer.info == world.view(2).members[&me].info
    };
    world.run_until(20 * SECOND, |world| {
        sees_original(world, 0) && sees_original(world, 1)
    });
    // A start that was not seen while the copy was about is no worse off.
    world.crash(2, false);
    for _ in 0..3 {
        world.start(clone);
        world.run_until(20 * SECOND, |world| refusal(world, clone).is_some());
        world.crash(clone, true);
    }
    world.start(2);
    world.run_until(20 * SECOND, |world| {
        world.standing_is(&Standing::Active, &[2])
            && sees_original(world, 0)
            && sees_original(world, 1)
    });
}

/// Nobody remembers what the original had: all start again, and the copy is first. It must not answer
/// Raft in the original's name meanwhile, or the original would be refused for what the copy acknowledged.
#[test]
fn a_copy_that_has_counted_past_its_original_is_refused_all_the_same() {
    let mut world = born(351, 3);
    world.crash(2, false);
    let copy = copy_of(&world.nodes[2].disk);
    world.start(2);
    world.run_until(10 * SECOND, |world| {
        world.standing_is(&Standing::Active, &[2])
    });
    world.cut_off(2);
    let clone = world.add_stopped(copy);
    world.start(clone);
    world.crash(clone, true);
    for node in [0, 1, clone] {
        world.crash(node, true);
        world.start(node);
    }
    assert_eq!(world.view(clone).my_boot, 3);
    world.run_until(20 * SECOND, |world| refusal(world, clone).is_some());
    assert!(
        refusal(&world, clone)
            .unwrap()
            .contains("a later start is missing")
    );
    world.heal();
    world.run_until(20 * SECOND, |world| {
        world.standing_is(&Standing::Active, &[0, 1, 2])
    });
}

#[test]
fn a_directory_restored_from_a_backup_is_refused() {
    let mut world = born(360, 3);
    world.crash(1, false);
    let backup = copy_of(&world.nodes[1].disk);
    for _ in 0..3 {
        world.start(1);
        world.run_until(10 * SECOND, |world| {
            world.standing_is(&Standing::Active, &[1])
        });
        world.crash(1, true);
    }
    world.nodes[1].disk = backup;
    world.start(1);
    world.run_until(10 * SECOND, |world| refusal(world, 1).is_some());
    assert_eq!(
        world.view(0).members[&world.id(1)].boot,
        4,
        "the refused start counts nothing"
    );
}

#[test]
fn another_clusters_node_is_ignored() {
    let mut other = born(370, 3);
    let foreign_id = other.id(2);
    other.crash(2, false);
    let foreign_disk = copy_of(&other.nodes[2].disk);

    let mut world = born(371, 3);
    let ours = world.view(0).cluster;
    let foreigner = world.add_stopped(foreign_disk);
    world.start(foreigner);
    world.run_for(20 * SECOND);
    assert_ne!(world.view(foreigner).cluster, ours);
    assert_eq!(world.view(foreigner).standing, Standing::Joining);
    for node in 0..3 {
        let view = world.view(node);
        assert!(!view.members.contains_key(&foreign_id));
        assert!(!view.peers.contains_key(&foreign_id));
        assert_eq!(view.standing, Standing::Active);
    }
    let noticed: u64 = (0..3)
        .map(|node| world.control(node).counters().gossip.foreign)
        .sum();
    assert!(noticed > 0);
    let seen = &world.view(foreigner).peers;
    assert!((0..3).all(|node| !seen.contains_key(&world.id(node))));
}

#[test]
fn a_node_in_reach_of_a_cluster_joins_it_and_forms_none() {
    let mut world = born(380, 3);
    world.cut_off(2);
    let joiner = world.add_node();
    world.run_until(5 * SECOND, |world| {
        world
            .view(joiner)
            .peers
            .values()
            .any(|peer| peer.alive && !peer.cluster.is_none())
            || !world.view(joiner).cluster.is_none()
    });
    world.init(joiner, 1);
    let cluster = world.view(0).cluster;
    assert!(matches!(
        world.nodes[joiner].admin.pop(),
        Some(Err(AdminError::ClusterInReach { cluster: c, .. } | AdminError::AlreadyFormed(c)))
            if c == cluster
    ));
    world.heal();
    world.run_until(20 * SECOND, |world| {
        world.standing_is(&Standing::Waiting, &[joiner])
    });
    assert_eq!(world.clusters().len(), 1);
}

#[test]
fn gossip_notices_death_leave_and_return() {
    let mut world = born(390, 5);
    let (dead, gone) = (world.id(3), world.id(4));
    let alive =
        |world: &World, id| world.view(0).peers[&id].alive && world.view(1).peers[&id].alive;
    let now = world.now;
    world.nodes[4].control.as_mut().unwrap().leave(now);
    world.run_for(MS);
    world.crash(4, false);
    let took = world.run_until(3 * SECOND, |world| !world.view(0).peers[&gone].alive);
    assert!(
        took < SECOND,
        "who says goodbye need not be missed first: {} ms",
        took / MS
    );
    world.crash(3, true);
    world.run_until(10 * SECOND, |world| {
        !world.view(0).peers[&dead].alive && !world.view(1).peers[&dead].alive
    });
    world.start(3);
    world.start(4);
    world.run_until(10 * SECOND, |world| {
        alive(world, dead) && alive(world, gone)
    });
    assert_eq!(world.view(0).members.len(), 5, "gossip removes nobody");
}

#[test]
fn a_partition_heals() {
    let mut world = born(400, 5);
    let cut = world.leader().unwrap();
    world.cut_off(cut);
    let id = world.id(cut);
    let other = (cut + 1) % 5;
    world.run_until(15 * SECOND, |world| {
        !world.view(other).peers[&id].alive
            && world.view(cut).peers.values().all(|peer| !peer.alive)
            && world.leader().is_some_and(|leader| leader != cut)
    });
    world.heal();
    world.run_until(20 * SECOND, |world| {
        world.agree() && world.view(cut).raft.leader == world.view(other).raft.leader
    });
    gather(&mut world);
    assert!(world.standing_is(&Standing::Active, &[0, 1, 2, 3, 4]));
}

#[test]
fn the_leader_advances_the_epoch_and_snapshots_follow() {
    let mut world = World::new(410, 3);
    world.epoch_interval_ms = Some(200);
    for node in 0..3 {
        world.restart(node);
    }
    gather(&mut world);
    world.init(0, 3);
    world.run_until(60 * SECOND, |world| world.view(1).epoch >= Epoch(120));
    // The log has been cut by now, so this one is brought up by a snapshot.
    let joiner = world.add_node();
    world.run_until(20 * SECOND, |world| {
        world.standing_is(&Standing::Waiting, &[joiner])
    });
    let before = world.view(joiner).epoch;
    world.restart(joiner);
    world.run_until(20 * SECOND, |world| {
        world.standing_is(&Standing::Waiting, &[joiner])
    });
    assert!(
        world.view(joiner).epoch >= before,
        "an applied state does not go back"
    );
    for (path, bytes) in world.nodes[0].disk.files() {
        assert!(bytes < 64 * 1024, "{path} has {bytes} bytes");
    }
}

#[test]
fn a_failing_disk_stops_the_node_and_not_the_cluster() {
    let mut world = born(420, 3);
    let leader = world.leader().unwrap();
    world.nodes[leader].disk.fail_sync_in(0);
    let joiner = world.add_node();
    world.run_until(20 * SECOND, |world| {
        world.standing_is(&Standing::Waiting, &[joiner])
    });
    let reason = world.nodes[leader]
        .died_of
        .clone()
        .expect("its disk has failed");
    assert!(
        reason.contains("could not be made durable") || reason.contains("stopped"),
        "{reason}"
    );
}

#[test]
fn a_lost_raft_log_is_not_taken_for_a_new_one() {
    let mut world = born(430, 3);
    world.crash(0, false);
    for (path, _) in world.nodes[0].disk.files() {
        if path.starts_with("raft/log-") {
            mds_storage::Disk::remove(&world.nodes[0].disk, &path).unwrap();
        }
    }
    world.start(0);
    let reason = world.nodes[0].died_of.clone().expect("it must not start");
    assert!(reason.contains("votes are lost"), "{reason}");
}

#[test]
fn rot_in_the_raft_log_is_named() {
    let mut world = born(440, 3);
    world.crash(0, false);
    let files = world.nodes[0].disk.files();
    let (path, _) = files
        .iter()
        .find(|(path, _)| path.starts_with("raft/log-"))
        .unwrap();
    assert!(world.nodes[0].disk.rot(path, 60, 0x10));
    world.start(0);
    let reason = world.nodes[0].died_of.clone().expect("it must not start");
    assert!(
        reason.contains(path.as_str()) && reason.contains("damaged"),
        "{reason}"
    );
}

#[test]
fn hellos_between_members_are_accepted() {
    let world = born(450, 3);
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        cluster: world.view(1).cluster,
        from: world.id(1),
        incarnation: world.view(0).members[&world.id(1)].incarnation,
        boot: world.view(1).my_boot,
        nonce: world.control(1).boot_nonce(),
        to: world.id(0),
        fingerprint: world.view(1).config.as_ref().unwrap().fingerprint(),
        channel: 0,
    };
    assert_eq!(check_hello(world.view(0), &hello), Ok(()));
    let copied = Hello {
        nonce: hello.nonce ^ 1,
        ..hello
    };
    assert!(matches!(
        check_hello(world.view(0), &copied),
        Err(HelloRefusal::Superseded { .. })
    ));
}

fn refusal(world: &World, node: usize) -> Option<String> {
    match &world.view(node).standing {
        Standing::Refused(reason) => Some(reason.clone()),
        _ => None,
    }
}

/// The same bytes on another disk.
fn copy_of(disk: &FaultyDisk) -> FaultyDisk {
    use mds_storage::Disk;
    let copy = FaultyDisk::new(77);
    for (path, _) in disk.files() {
        if let Some((dir, _)) = path.rsplit_once('/') {
            copy.create_dir(dir).unwrap();
            copy.sync_dir("").unwrap();
        }
        let mut file = copy.create(&path).unwrap();
        file.append(&disk.read(&path).unwrap()).unwrap();
        file.sync().unwrap();
        copy.sync_dir(path.rsplit_once('/').map_or("", |(dir, _)| dir))
            .unwrap();
    }
    copy
}
