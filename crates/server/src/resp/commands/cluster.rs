//! `CLUSTER`: which node holds which slots, in the words of Redis Cluster.
//!
//! Redis has one master per slot; here all replicas are equal, and any node takes any request. So
//! that a cluster client goes straight to a node that holds the key, the first replica of a partition
//! that gossip holds for alive is called its master, and the others its replicas. A client that
//! guesses wrong is still served: `MOVED` is never sent.

use std::fmt::Write as _;

use mds_cluster::{ClusterView, Standing};
use mds_protocol::Placement;
use mds_types::limits::SLOT_COUNT;
use mds_types::slot::{partition_of_slot, slot_of, slots_of};
use mds_types::{NodeId, PartitionId};

use super::{Call, Planned, keyspace, reply};
use crate::resp::jobs::WalkKind;
use crate::resp::reply::Reply;

pub(super) fn cluster(call: &mut Call<'_>) -> Planned {
    let sub = call.arg(1).to_ascii_uppercase();
    match sub.as_slice() {
        b"INFO" => {
            call.expect_len(2..=2)?;
            info(call)
        }
        b"NODES" => {
            call.expect_len(2..=2)?;
            nodes(call)
        }
        b"SLOTS" => {
            call.expect_len(2..=2)?;
            slots(call)
        }
        b"SHARDS" => {
            call.expect_len(2..=2)?;
            shards(call)
        }
        b"MYID" => {
            call.expect_len(2..=2)?;
            reply(Reply::string(long_id(call.view.me)))
        }
        b"KEYSLOT" => {
            call.expect_len(3..=3)?;
            reply(Reply::Integer(i64::from(slot_of(call.arg(2)))))
        }
        b"COUNTKEYSINSLOT" => {
            call.expect_len(3..=3)?;
            let slot = checked_slot(call.integer(2)?).ok_or("ERR Invalid slot")?;
            let partition = partition_of_slot(slot, call.partition_count()?);
            keyspace::walk_slot(WalkKind::CountInSlot(slot), partition)
        }
        b"GETKEYSINSLOT" => {
            call.expect_len(4..=4)?;
            let (slot, most) = (call.integer(2)?, call.integer(3)?);
            let invalid = "ERR Invalid slot or number of keys";
            let slot = checked_slot(slot).ok_or(invalid)?;
            let most = usize::try_from(most).map_err(|_| invalid)?;
            let partition = partition_of_slot(slot, call.partition_count()?);
            keyspace::walk_slot(WalkKind::KeysInSlot(slot, most), partition)
        }
        _ => call.unknown_subcommand(),
    }
}

fn checked_slot(slot: i64) -> Option<u16> {
    u16::try_from(slot).ok().filter(|slot| *slot < SLOT_COUNT)
}

/// A node id in the 40 digits that Redis clients expect.
pub(super) fn long_id(node: NodeId) -> String {
    format!("{node}{:024}", 0)
}

/// Splits `host:port`. A host that means "any" becomes empty: clients then use the one they are
/// connected to.
pub(super) fn host_and_port(addr: &str) -> (&str, u16) {
    let (host, port) = addr.rsplit_once(':').unwrap_or((addr, ""));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = if matches!(host, "0.0.0.0" | "::") {
        ""
    } else {
        host
    };
    (host, port.parse().unwrap_or(0))
}

/// Adjacent slots with the same nodes.
struct Range {
    first: u16,
    last: u16,
    /// All replicas, living ones first.
    nodes: Vec<NodeId>,
    /// How many of them to send clients to: those alive, or all if none seems to be.
    serving: usize,
}

fn ranges(view: &ClusterView, placement: &Placement) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for partition in (0..placement.partition_count()).map(PartitionId) {
        let mut nodes = placement.replicas(partition).to_vec();
        nodes.sort_by_key(|&node| !view.is_alive(node));
        let alive = nodes.partition_point(|&node| view.is_alive(node));
        let (first, last) = slots_of(partition, placement.partition_count());
        match ranges.last_mut() {
            _ if nodes.is_empty() => {}
            Some(range) if range.nodes == nodes => range.last = last,
            _ => ranges.push(Range {
                first,
                last,
                serving: if alive == 0 { nodes.len() } else { alive },
                nodes,
            }),
        }
    }
    ranges
}

fn ranges_now(call: &mut Call<'_>) -> Vec<Range> {
    match call.shared.placement(call.view) {
        Some(placement) => ranges(call.view, &placement),
        None => Vec::new(),
    }
}

fn address(view: &ClusterView, node: NodeId) -> (String, u16) {
    let addr = view.info(node).map_or("", |info| info.resp_addr.as_str());
    let (host, port) = host_and_port(addr);
    (host.to_owned(), port)
}

fn slots(call: &mut Call<'_>) -> Planned {
    let ranges = ranges_now(call);
    let node = |&node: &NodeId| {
        let (host, port) = address(call.view, node);
        Reply::Array(vec![
            Reply::string(host),
            Reply::Integer(i64::from(port)),
            Reply::string(long_id(node)),
            Reply::Array(Vec::new()),
        ])
    };
    let ranges = ranges.iter().map(|range| {
        let mut fields = vec![
            Reply::Integer(i64::from(range.first)),
            Reply::Integer(i64::from(range.last)),
        ];
        fields.extend(range.nodes.iter().take(range.serving).map(node));
        Reply::Array(fields)
    });
    reply(Reply::Array(ranges.collect()))
}

/// One shard for each list of nodes that occurs, in the order of their first slots.
fn shards(call: &mut Call<'_>) -> Planned {
    let mut shards: Vec<(Vec<NodeId>, Vec<Reply>)> = Vec::new();
    for range in ranges_now(call) {
        let bounds = [range.first, range.last].map(|slot| Reply::Integer(i64::from(slot)));
        match shards.iter_mut().find(|(nodes, _)| *nodes == range.nodes) {
            Some((_, slots)) => slots.extend(bounds),
            None => shards.push((range.nodes, bounds.to_vec())),
        }
    }
    let shards = shards.into_iter().map(|(nodes, slots)| {
        let nodes = nodes.iter().enumerate();
        let nodes = nodes.map(|(place, &node)| shard_node(call.view, node, place == 0));
        Reply::Map(vec![
            (Reply::text("slots"), Reply::Array(slots)),
            (Reply::text("nodes"), Reply::Array(nodes.collect())),
        ])
    });
    reply(Reply::Array(shards.collect()))
}

fn shard_node(view: &ClusterView, node: NodeId, first: bool) -> Reply {
    let (host, port) = address(view, node);
    let role = if first { "master" } else { "replica" };
    let health = if view.is_alive(node) {
        "online"
    } else {
        "fail"
    };
    Reply::Map(vec![
        (Reply::text("id"), Reply::string(long_id(node))),
        (Reply::text("port"), Reply::Integer(i64::from(port))),
        (Reply::text("ip"), Reply::string(host.clone())),
        (Reply::text("endpoint"), Reply::string(host)),
        (Reply::text("role"), Reply::text(role)),
        (Reply::text("replication-offset"), Reply::Integer(0)),
        (Reply::text("health"), Reply::text(health)),
    ])
}

/// The slots that a node comes first for, adjacent ones merged.
fn slots_first_served_by(node: NodeId, ranges: &[Range]) -> Vec<(u16, u16)> {
    let mut slots: Vec<(u16, u16)> = Vec::new();
    for range in ranges
        .iter()
        .filter(|range| range.nodes.first() == Some(&node))
    {
        match slots.last_mut() {
            Some((_, last)) if *last + 1 == range.first => *last = range.last,
            _ => slots.push((range.first, range.last)),
        }
    }
    slots
}

/// One line per member, all of them masters, each of the slots that it comes first for.
fn nodes(call: &mut Call<'_>) -> Planned {
    let ranges = ranges_now(call);
    let view = call.view;
    let mut nodes: Vec<NodeId> = view.members.keys().copied().collect();
    nodes.extend(view.topology.members.iter().map(|member| member.node));
    nodes.push(view.me);
    nodes.sort_unstable();
    nodes.dedup();
    let mut text = String::new();
    for node in nodes {
        let (host, port) = address(view, node);
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        let alive = view.is_alive(node);
        let flags = match (node == view.me, alive) {
            (true, _) => "myself,master",
            (false, true) => "master",
            (false, false) => "master,fail?",
        };
        let link = if alive { "connected" } else { "disconnected" };
        let _ = write!(
            text,
            "{} {host}:{port}@{port} {flags} - 0 0 {} {link}",
            long_id(node),
            view.topology.version,
        );
        for (first, last) in slots_first_served_by(node, &ranges) {
            let _ = match first == last {
                true => write!(text, " {first}"),
                false => write!(text, " {first}-{last}"),
            };
        }
        text.push('\n');
    }
    reply(Reply::Verbatim(text.into()))
}

fn info(call: &mut Call<'_>) -> Planned {
    let slots_served: u32 = ranges_now(call)
        .iter()
        .map(|range| u32::from(range.last - range.first) + 1)
        .sum();
    let view = call.view;
    let serves = matches!(view.standing, Standing::Active | Standing::Waiting);
    let state = if serves && slots_served > 0 {
        "ok"
    } else {
        "fail"
    };
    let version = view.topology.version;
    let text = format!(
        "cluster_state:{state}\ncluster_slots_assigned:{slots_served}\n\
         cluster_slots_ok:{slots_served}\ncluster_slots_pfail:0\ncluster_slots_fail:0\n\
         cluster_known_nodes:{}\ncluster_size:{}\ncluster_current_epoch:{version}\n\
         cluster_my_epoch:{version}\n",
        view.members.len().max(1),
        view.topology.members.len(),
    );
    reply(Reply::Verbatim(text.replace('\n', "\r\n").into()))
}
