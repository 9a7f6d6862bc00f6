//! Placement against its own promises, over random rings; its stability, over known ones.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::RangeInclusive;

use mds_types::{ClusterConfig, NodeId, PartitionId, Topology, TopologyMember, TopologyVersion};
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::Placement;
use crate::golden;

/// A node id that looks like a real one: the `index`th of a family.
fn node(family: u64, index: u64) -> NodeId {
    let mut bytes = family.to_le_bytes().to_vec();
    bytes.extend_from_slice(&index.to_le_bytes());
    NodeId(xxh3_64(&bytes))
}

fn topology(members: impl IntoIterator<Item = (NodeId, String, u32)>) -> Topology {
    let mut members: Vec<TopologyMember> = members
        .into_iter()
        .map(|(node, zone, weight)| TopologyMember { node, zone, weight })
        .collect();
    members.sort_by_key(|member| member.node);
    Topology {
        version: TopologyVersion(7),
        members,
    }
}

/// `count` members of equal weight, dealt over `zones` zones.
fn even(family: u64, count: u64, zones: u64) -> Topology {
    topology((0..count).map(|index| {
        let zone = format!("zone-{}", index % zones);
        (node(family, index), zone, 100)
    }))
}

fn config(partition_count: u16, replicas: u8) -> ClusterConfig {
    ClusterConfig {
        partition_count,
        replicas,
        read_quorum: 1,
        write_quorum: 1,
        ..ClusterConfig::default()
    }
}

fn any_topology(members: RangeInclusive<usize>) -> impl Strategy<Value = Topology> {
    let weight = prop_oneof![6 => Just(100u32), 2 => 1u32..400, 1 => Just(0), 1 => Just(u32::MAX)];
    (
        any::<u64>(),
        prop::collection::vec((0u8..6, weight), members),
    )
        .prop_map(|(family, members)| {
            topology((0..).zip(members).map(|(index, (zone, weight))| {
                (node(family, index), format!("zone-{zone}"), weight)
            }))
        })
}

fn zone(topology: &Topology, node: NodeId) -> &str {
    &topology.member(node).unwrap().zone
}

/// Everything that the module's chapter guarantees of one placement.
fn check_guarantees(topology: &Topology, config: &ClusterConfig) -> Result<(), TestCaseError> {
    let placement = Placement::compute(topology, config);
    let live: Vec<_> = topology.members.iter().filter(|m| m.weight > 0).collect();
    let zones: BTreeSet<&str> = live.iter().map(|m| m.zone.as_str()).collect();
    let n = usize::from(config.replicas).min(live.len());
    prop_assert_eq!(placement.replicas_each(), n);
    for partition in (0..config.partition_count).map(PartitionId) {
        let set = placement.replicas(partition);
        let distinct: BTreeSet<_> = set.iter().collect();
        prop_assert_eq!(distinct.len(), n);
        let reached: BTreeSet<_> = set.iter().map(|&node| zone(topology, node)).collect();
        prop_assert_eq!(reached.len(), n.min(zones.len()));
    }

    let total_weight: u128 = live.iter().map(|m| u128::from(m.weight)).sum();
    let mut fair_milli = 0;
    for load in placement.loads() {
        let held = placement.partitions_of(load.node);
        prop_assert_eq!(held.len(), load.partitions as usize);
        for &partition in held {
            prop_assert!(placement.replica_index(partition, load.node).is_some());
        }
        // The promise, computed from the published numbers in another way than the limit is.
        let quarter_more = load.fair_share_milli * 5 / 4 / 1_000;
        let whole = load.fair_share_milli.div_ceil(1_000);
        prop_assert!(
            u64::from(load.partitions) <= quarter_more.max(whole),
            "{:?}",
            load
        );
        prop_assert!(load.partitions <= load.limit);
        prop_assert!(
            load.primaries <= load.limit.div_ceil(n as u32),
            "{:?}",
            load
        );
        prop_assert!(load.fair_share_milli <= u64::from(config.partition_count) * 1_000);
        fair_milli += load.fair_share_milli;
        if n == 1 && zones.len() == live.len() && live.iter().all(|m| m.weight <= 1_000_000) {
            // No bound binds: the fair share is the plain share by weight.
            let weight = u128::from(topology.member(load.node).unwrap().weight);
            let plain = u128::from(config.partition_count) * weight * 1_000 / total_weight;
            prop_assert!(u128::from(load.fair_share_milli).abs_diff(plain) <= 1);
        }
    }
    // Shares add up to everything there is, save for rounding up.
    let total_milli = u64::from(config.partition_count) * n as u64 * 1_000;
    prop_assert!((total_milli..=total_milli + live.len() as u64).contains(&fair_milli));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_guarantees_hold_on_any_ring(
        topology in any_topology(0..=24),
        partition_bits in 0u32..=9,
        replicas in 1u8..=9,
    ) {
        check_guarantees(&topology, &config(1 << partition_bits, replicas))?;
    }

    /// The order in which members are listed, a stray duplicate, and members without weight make
    /// no difference.
    #[test]
    fn only_the_set_of_members_counts(topology in any_topology(0..=12), seed: u64) {
        let config = config(64, 3);
        let expected = Placement::compute(&topology, &config);
        let mut shuffled = topology.clone();
        shuffled.members.sort_by_key(|member| xxh3_64(&(member.node.0 ^ seed).to_le_bytes()));
        if let Some(first) = shuffled.members.first().cloned() {
            shuffled.members.push(first);
        }
        shuffled.members.push(TopologyMember {
            node: NodeId(seed),
            zone: "zone-of-nobody".to_owned(),
            weight: 0,
        });
        prop_assert_eq!(Placement::compute(&shuffled, &config), expected);
    }
}

#[test]
fn the_guarantees_hold_where_members_outnumber_partitions() {
    for (members, zones, partitions, replicas) in [
        (40, 1, 16, 3),
        (40, 5, 16, 3),
        (100, 3, 64, 3),
        (9, 9, 1, 9),
        (30, 2, 4, 5),
    ] {
        check_guarantees(&even(1, members, zones), &config(partitions, replicas)).unwrap();
    }
}

#[test]
fn an_empty_ring_holds_nothing() {
    let placement = Placement::compute(&Topology::default(), &config(256, 3));
    assert_eq!(placement.replicas(PartitionId(0)), &[] as &[NodeId]);
    assert_eq!(placement.replicas_of_key(b"key"), &[] as &[NodeId]);
    assert_eq!(placement.partitions_of(NodeId(1)), &[] as &[PartitionId]);
    let placement = Placement::compute(&even(1, 3, 3), &config(256, 3));
    assert_eq!(placement.replicas(PartitionId(256)), &[] as &[NodeId]);
    assert_eq!(placement.replicas(PartitionId(u16::MAX)), &[] as &[NodeId]);
}

#[test]
fn keys_go_where_their_partition_is() {
    let placement = Placement::compute(&even(1, 5, 5), &config(256, 3));
    // Slot 12182 of 16384, 64 slots each.
    assert_eq!(
        placement.replicas_of_key(b"foo"),
        placement.replicas(PartitionId(12182 / 64))
    );
}

/// Replicas that `after` has and `before` has not: what has to be streamed.
fn moved(before: &Placement, after: &Placement) -> usize {
    (0..before.partition_count())
        .map(PartitionId)
        .map(|partition| {
            let old = before.replicas(partition);
            let new = after.replicas(partition).iter();
            new.filter(|node| !old.contains(node)).count()
        })
        .sum()
}

/// When one member joins or leaves, what it gains or loses must move. What moves beside it is
/// bounded by `percent` of that, and an addition for the limits of all others that change a little
/// together: one in a hundred of all replicas, plus eight.
fn movement_allowed(necessary: usize, placement: &Placement, percent: usize) -> usize {
    let replicas = usize::from(placement.partition_count()) * placement.replicas_each();
    necessary + necessary * percent / 100 + replicas / 100 + 8
}

fn check_movement(
    smaller: &Topology,
    larger: &Topology,
    changed: NodeId,
    config: &ClusterConfig,
    percent: usize,
) -> Result<(), TestCaseError> {
    let before = Placement::compute(smaller, config);
    let after = Placement::compute(larger, config);
    let necessary = after.partitions_of(changed).len();
    let allowed = movement_allowed(necessary, &after, percent);
    let (joining, leaving) = (moved(&before, &after), moved(&after, &before));
    prop_assert!(
        joining <= allowed,
        "{} moved on joining, {} necessary",
        joining,
        necessary
    );
    prop_assert!(
        leaving <= allowed,
        "{} moved on leaving, {} necessary",
        leaving,
        necessary
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_change_of_an_even_ring_moves_little(
        family: u64, members in 3u64..24, zones in 1u64..8, replicas in 1u8..=5,
    ) {
        let config = config(512, replicas);
        let (smaller, larger) = (even(family, members, zones), even(family, members + 1, zones));
        check_movement(&smaller, &larger, node(family, members), &config, 50)?;
    }

    #[test]
    fn a_change_of_any_ring_moves_not_much_more(
        larger in any_topology(2..=16), choice: prop::sample::Index, replicas in 1u8..=5,
    ) {
        let mut smaller = larger.clone();
        let changed = smaller.members.remove(choice.index(larger.members.len()));
        let placement = Placement::compute(&smaller, &config(512, replicas));
        if placement.replicas_each() < usize::from(replicas) {
            // Not a move: the ring is too small, and each member holds everything.
            return Ok(());
        }
        check_movement(&smaller, &larger, changed.node, &config(512, replicas), 100)?;
    }
}

/// What a change of the algorithm would move. If this fails, somebody's data is about to be looked
/// for in the wrong place: a new algorithm needs a new `placement_format`.
#[test]
fn placement_stays_what_it_was() {
    let uneven = topology((0..6).map(|index| {
        let zone = ["a", "b", "b", "c", "c", "c"][index as usize].to_owned();
        (node(4, index), zone, 100 + 50 * index as u32)
    }));
    let mut out = String::new();
    for (title, topology, replicas) in [
        ("three members in one zone, N=3", even(1, 3, 1), 3),
        ("five members in five zones, N=3", even(2, 5, 5), 3),
        ("six members in two zones, N=3", even(3, 6, 2), 3),
        (
            "six members of weights 100 to 350 in three zones, N=2",
            uneven,
            2,
        ),
        ("two members, N=3", even(5, 2, 2), 3),
    ] {
        let family_of = |wanted: NodeId| {
            let mut members = topology.members.iter();
            members.position(|member| member.node == wanted).unwrap()
        };
        writeln!(out, "{title}").unwrap();
        let placement = Placement::compute(&topology, &config(16, replicas));
        for partition in (0..16).map(PartitionId) {
            write!(out, "  {partition:>2}:").unwrap();
            for &replica in placement.replicas(partition) {
                write!(out, " {}", family_of(replica)).unwrap();
            }
            out.push('\n');
        }
        let placement = Placement::compute(&topology, &config(1024, replicas));
        let mut bytes = Vec::new();
        for partition in (0..1024).map(PartitionId) {
            for replica in placement.replicas(partition) {
                bytes.extend_from_slice(&replica.0.to_le_bytes());
            }
        }
        writeln!(out, "  1024 partitions: {:016x}", xxh3_64(&bytes)).unwrap();
        for load in placement.loads() {
            writeln!(
                out,
                "    {} ({}): {} partitions, {} first, fair {}.{:03}, limit {}",
                family_of(load.node),
                zone(&topology, load.node),
                load.partitions,
                load.primaries,
                load.fair_share_milli / 1_000,
                load.fair_share_milli % 1_000,
                load.limit,
            )
            .unwrap();
        }
    }
    golden::check("testdata/placement.golden", &out);
}
