//! `init`, `status`, `ring`, `digest`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use ureq::http::Method;

use super::NodeArgs;
use super::client::{Call, Client};
use super::output::{self, Failure, good_or_bad};
use crate::database::PartitionDigest;
use crate::http::bodies::{DigestBody, InitBody, MembersBody, RingBody, StatusBody};

/// `init` waits for nodes to be found and for Raft to agree.
const INIT_PATIENCE: Duration = Duration::from_secs(65);

/// A digest reads all data of a node.
const DIGEST_PATIENCE: Duration = Duration::from_secs(305);

/// Arguments of `init`.
#[derive(Args, Debug)]
pub(super) struct InitArgs {
    /// Nodes that form the first ring, at least [default: those known now]
    #[arg(long, value_name = "NODES")]
    nodes: Option<u32>,
    /// Replicas of each key (N) [default: 3, or as many as there are nodes]
    #[arg(long, value_name = "N")]
    n: Option<u8>,
    /// Replicas that must answer a read (R) [default: the majority of N]
    #[arg(long, value_name = "R")]
    r: Option<u8>,
    /// Replicas that must have a write on disk (W) [default: the majority of N]
    #[arg(long, value_name = "W")]
    w: Option<u8>,
    /// Partitions, a power of two [default: 256]
    #[arg(long, value_name = "PARTITIONS")]
    partitions: Option<u16>,
    /// Succeed also if the node is part of a cluster already
    #[arg(long)]
    if_unborn: bool,
    /// Try again for so many seconds while nodes are missing
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait_s: u64,
    #[command(flatten)]
    node: NodeArgs,
}

/// Pause between two tries to give birth to a cluster.
const INIT_PAUSE: Duration = Duration::from_secs(1);

/// Arguments of `ring`.
#[derive(Args, Debug)]
pub(super) struct RingArgs {
    /// Also print the replica set of each partition
    #[arg(long)]
    partitions: bool,
    #[command(flatten)]
    node: NodeArgs,
}

pub(super) fn init(args: &InitArgs) -> Result<ExitCode, Failure> {
    let body = InitBody {
        nodes: args.nodes,
        n: args.n,
        r: args.r,
        w: args.w,
        partition_count: args.partitions,
    };
    let client = args.node.client()?;
    let until = Instant::now() + Duration::from_secs(args.wait_s);
    let status = loop {
        match init_cluster(&client, &body) {
            Ok(status) => break status,
            Err(failure) => {
                if args.if_unborn && is_born(&client) {
                    output::line("there is a cluster already: nothing to do")?;
                    return Ok(ExitCode::SUCCESS);
                }
                if failure.code() != Failure::unavailable("").code() || Instant::now() >= until {
                    return Err(failure);
                }
            }
        }
        std::thread::sleep(INIT_PAUSE);
    };
    match args.node.json {
        true => output::json(&status)?,
        false => output::line(format!(
            "the cluster {} is born: {}",
            status.cluster,
            agreed(&status)
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a node is part of a cluster.
fn is_born(client: &Client) -> bool {
    let status: Result<StatusBody, Failure> = client.get("/v1/status");
    status.is_ok_and(|status| status.config.is_some())
}

/// Gives birth to a cluster.
pub(crate) fn init_cluster(client: &Client, body: &InitBody) -> Result<StatusBody, Failure> {
    let body = serde_json::to_vec(body).map_err(|error| Failure::usage(error.to_string()))?;
    let call = Call::new(Method::POST, "/v1/init")
        .body(&body)
        .timeout(INIT_PATIENCE);
    let reply = client.call(&call)?;
    match reply.status.is_success() {
        true => Ok(reply.json()?),
        false => Err(reply.failure()),
    }
}

fn agreed(status: &StatusBody) -> String {
    match &status.config {
        Some(config) => format!(
            "N={} R={} W={}, {} partitions",
            config.n, config.r, config.w, config.partition_count
        ),
        None => "not born yet: run `mydatastore init`".to_owned(),
    }
}

pub(super) fn status(args: &NodeArgs) -> Result<ExitCode, Failure> {
    let status: StatusBody = args.client()?.get("/v1/status")?;
    if args.json {
        output::json(&status)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format!("cluster  {}  {}", status.cluster, agreed(&status)))?;
    output::line(format!(
        "node     {} ({}), {}",
        status.node.name,
        good_or_bad(status.ready, &status.standing),
        status.reason
    ))?;
    output::line(format!(
        "ring     version {}, epoch {}; raft term {}, {} here, {} voters, applied {}",
        status.ring_version,
        status.epoch,
        status.raft.term,
        status.raft.role,
        status.raft.voters.len(),
        status.raft.applied
    ))?;
    let heads = [
        "node", "id", "alive", "stage", "raft", "zone", "weight", "redis", "http", "starts",
    ];
    let mut table = output::table(&heads);
    for member in &status.members {
        let raft = match &status.raft.leader {
            Some(leader) if *leader == member.id => "leader",
            _ if status.raft.voters.contains(&member.id) => "voter",
            _ => "",
        };
        table.add_row([
            member.name.clone(),
            member.id.clone(),
            good_or_bad(member.alive, if member.alive { "yes" } else { "no" }),
            member.stage.clone(),
            raft.to_owned(),
            member.zone.clone(),
            member.weight.to_string(),
            member.resp.clone(),
            member.http.clone(),
            member.boot.to_string(),
        ]);
    }
    output::line(table)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn ring(args: &RingArgs) -> Result<ExitCode, Failure> {
    let ring: RingBody = args.node.client()?.get("/v1/ring")?;
    if args.node.json {
        output::json(&ring)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::line(format!(
        "ring version {}: {} partitions, {} replicas each",
        ring.version, ring.partition_count, ring.n
    ))?;
    let mut table = output::table(&[
        "node",
        "id",
        "zone",
        "weight",
        "partitions",
        "first in",
        "of fair share",
    ]);
    for member in &ring.members {
        table.add_row([
            member.name.clone(),
            member.id.clone(),
            member.zone.clone(),
            member.weight.to_string(),
            member.partitions.to_string(),
            member.primaries.to_string(),
            format!("{}.{}%", member.load_milli / 10, member.load_milli % 10),
        ]);
    }
    output::line(table)?;
    if args.partitions {
        let mut table = output::table(&["partition", "replicas, first one first"]);
        for (partition, replicas) in ring.partitions.iter().enumerate() {
            let names: Vec<&str> = replicas
                .iter()
                .map(|&index| name_of(&ring, index))
                .collect();
            table.add_row([partition.to_string(), names.join(" ")]);
        }
        output::line(table)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn name_of(ring: &RingBody, index: usize) -> &str {
    ring.members
        .get(index)
        .map_or("?", |member| member.name.as_str())
}

/// What `digest` found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Comparison {
    /// Partitions whose replicas all hold the same bytes.
    equal: usize,
    /// Records in them, tombstones included, counted once.
    records: u64,
    /// Tombstones among them.
    tombstones: u64,
    /// The others.
    different: Vec<Difference>,
    /// Replicas that could not be asked, and why.
    silent: BTreeMap<String, String>,
}

/// A partition whose replicas do not all hold the same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Difference {
    partition: usize,
    /// By node name; none where the replica could not be asked or does not know the partition.
    replicas: BTreeMap<String, Option<PartitionDigest>>,
}

pub(super) fn digest(args: &NodeArgs) -> Result<ExitCode, Failure> {
    let client = args.client()?;
    let ring: RingBody = client.get("/v1/ring")?;
    let members: MembersBody = client.get("/v1/members")?;
    let mut digests = BTreeMap::new();
    let mut silent = BTreeMap::new();
    for ringed in &ring.members {
        let member = members.members.iter().find(|member| member.id == ringed.id);
        let addr = member
            .map(|member| member.http.as_str())
            .unwrap_or_default();
        match digest_of(&client, addr, &ringed.id) {
            Ok(partitions) => {
                digests.insert(ringed.id.clone(), partitions);
            }
            Err(reason) => {
                silent.insert(ringed.name.clone(), reason);
            }
        }
    }
    let comparison = compare(&ring, &digests, silent);
    match args.json {
        true => output::json(&comparison)?,
        false => print_comparison(&comparison)?,
    }
    let same = comparison.different.is_empty() && comparison.silent.is_empty();
    Ok(ExitCode::from(u8::from(!same)))
}

fn digest_of(client: &Client, addr: &str, id: &str) -> Result<Vec<PartitionDigest>, String> {
    let call = Call::new(Method::GET, "/v1/digest").timeout(DIGEST_PATIENCE);
    let reply = client
        .call_at(addr, &call)
        .map_err(|error| error.to_string())?;
    if !reply.status.is_success() {
        return Err(reply.error().error);
    }
    let body: DigestBody = reply.json().map_err(|error| error.to_string())?;
    match body.node == id {
        true => Ok(body.partitions),
        false => Err(format!("{addr} is another node: {}", body.node)),
    }
}

/// Compares, by the ring, what each partition's replicas hold. A partition that a replica does not
/// mention is empty there.
fn compare(
    ring: &RingBody,
    digests: &BTreeMap<String, Vec<PartitionDigest>>,
    silent: BTreeMap<String, String>,
) -> Comparison {
    let mut comparison = Comparison {
        equal: 0,
        records: 0,
        tombstones: 0,
        different: Vec::new(),
        silent,
    };
    for (partition, replicas) in ring.partitions.iter().enumerate() {
        let held = |index: &usize| {
            let member = ring.members.get(*index)?;
            let digest = digests.get(&member.id).and_then(|held| {
                held.iter()
                    .find(|one| usize::from(one.partition.0) == partition)
            });
            Some((member, digest))
        };
        let held: Vec<_> = replicas.iter().filter_map(held).collect();
        let asked = held
            .iter()
            .filter(|(member, _)| digests.contains_key(&member.id));
        let mut contents: Vec<_> = asked
            .map(|(_, digest)| digest.filter(|one| one.records > 0))
            .collect();
        contents.dedup();
        if contents.len() <= 1 {
            comparison.equal += 1;
            let content = contents.first().copied().flatten();
            comparison.records += content.map_or(0, |one| one.records);
            comparison.tombstones += content.map_or(0, |one| one.tombstones);
        } else {
            let replicas = held
                .iter()
                .map(|(member, digest)| (member.name.clone(), digest.cloned()));
            comparison.different.push(Difference {
                partition,
                replicas: replicas.collect(),
            });
        }
    }
    comparison
}

fn print_comparison(comparison: &Comparison) -> Result<(), Failure> {
    if !comparison.different.is_empty() {
        let mut table = output::table(&["partition", "replica", "records", "tombstones", "digest"]);
        for difference in &comparison.different {
            for (name, digest) in &difference.replicas {
                let (records, tombstones, hash) = match digest {
                    Some(one) => (one.records, one.tombstones, one.digest.as_str()),
                    None => (0, 0, "nothing"),
                };
                table.add_row([
                    difference.partition.to_string(),
                    name.clone(),
                    records.to_string(),
                    tombstones.to_string(),
                    hash.to_owned(),
                ]);
            }
        }
        output::line(table)?;
    }
    for (name, reason) in &comparison.silent {
        output::line(format!(
            "{}: not compared: {reason}",
            good_or_bad(false, name)
        ))?;
    }
    let equal = comparison.different.is_empty();
    output::line(format!(
        "{}: {} partitions equal on all replicas asked ({} records, {} of them tombstones), {} different",
        good_or_bad(equal, if equal { "equal" } else { "different" }),
        comparison.equal,
        comparison.records,
        comparison.tombstones,
        comparison.different.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::bodies::RingMemberBody;
    use mds_types::PartitionId;

    fn ring() -> RingBody {
        let member = |name: &str| RingMemberBody {
            id: format!("id-{name}"),
            name: name.to_owned(),
            zone: String::new(),
            weight: 100,
            partitions: 2,
            primaries: 1,
            load_milli: 1000,
        };
        RingBody {
            version: 1,
            partition_count: 2,
            n: 2,
            members: vec![member("a"), member("b"), member("c")],
            partitions: vec![vec![0, 1], vec![1, 2]],
        }
    }

    fn digest(partition: u16, digest: &str, records: u64) -> PartitionDigest {
        PartitionDigest {
            partition: PartitionId(partition),
            records,
            tombstones: 0,
            digest: digest.to_owned(),
        }
    }

    #[test]
    fn only_replicas_of_a_partition_are_compared() {
        let mut digests = BTreeMap::from([
            (
                "id-a".to_owned(),
                vec![digest(0, "x", 1), digest(1, "no replica of it", 7)],
            ),
            ("id-b".to_owned(), vec![digest(0, "x", 1), digest(1, "", 0)]),
            ("id-c".to_owned(), vec![]),
        ]);
        let same = compare(&ring(), &digests, BTreeMap::new());
        assert_eq!((same.equal, same.records, same.different.len()), (2, 1, 0));

        digests.insert("id-c".to_owned(), vec![digest(1, "y", 1)]);
        let other = compare(&ring(), &digests, BTreeMap::new());
        assert_eq!((other.equal, other.different.len()), (1, 1));
        assert_eq!(other.different[0].partition, 1);
        assert_eq!(other.different[0].replicas["b"], Some(digest(1, "", 0)));

        digests.remove("id-c");
        assert_eq!(compare(&ring(), &digests, BTreeMap::new()).equal, 2);
    }
}
