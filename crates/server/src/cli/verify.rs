//! `verify`: compares what the replicas of one partition have of one epoch.
//!
//! Each replica says what it has: the root and the leaves of its Merkle tree, over the rows of the epoch; or, once
//! the epoch is settled and its rows are dropped, how far its watermark is and the chain of all roots up to there.
//! Here they are held against each other, by eyes that are not the replicas' own.
//!
//! | verdict | what was seen | exit code |
//! |---|---|---|
//! | equal | all have closed the epoch and have the same root | 0 |
//! | settled | all have settled it, and have the same chain at the same watermark | 0 |
//! | different | two have closed it with different roots, or have different chains at one watermark | 1 |
//! | not closed | some replica takes writes of it still | 3 |
//! | undecided | a replica could not be asked or has nothing to compare, or they were seen on the move | 3 |
//!
//! Replicas are asked one after the other while they go on, so one may settle the epoch just after another was
//! asked. Such a view decides nothing, and they are asked again.
//!
//! A *different* verdict is no damage by itself: replicas that missed a write differ until they have compared
//! themselves and brought it over.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use mds_types::slot::partition_of;
use serde::Serialize;

use super::NodeArgs;
use super::client::Client;
use super::members::{Silent, ask_node};
use super::output::{self, Failure, good_or_bad};
use crate::http::bodies::{EpochSetBody, MembersBody, RingBody};

/// How long one replica may take to answer: it may read the rows.
const PATIENCE: Duration = Duration::from_secs(35);

/// Replicas that are seen on the move are asked so often in all...
const LOOKS_MAX: u32 = 10;

/// ...this long after one another.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// Leaves that are named to people, at most; JSON has all.
const LEAVES_SHOWN_MAX: usize = 16;

/// What stands before a key in the place of a partition.
const KEY_MARK: &str = "key:";

/// Arguments of `verify`.
#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    /// The partition, by number, or as `key:KEY`: the one that a key belongs to
    #[arg(value_name = "PARTITION")]
    partition: String,
    /// The epoch
    #[arg(value_name = "EPOCH", value_parser = clap::value_parser!(u64).range(1..))]
    epoch: u64,
    #[command(flatten)]
    node: NodeArgs,
}

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Comparison {
    partition: u16,
    epoch: u64,
    verdict: Verdict,
    /// Leaves that are not the same in all trees.
    leaves: Vec<usize>,
    /// What each replica that could be asked has.
    replicas: Vec<EpochSetBody>,
    /// The others.
    silent: Vec<Silent>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Equal,
    Settled,
    Different,
    NotClosed,
    Undecided,
}

pub(super) fn verify(args: &VerifyArgs) -> Result<ExitCode, Failure> {
    let client = args.node.client()?;
    let ring: RingBody = client.get("/v1/ring")?;
    let partition = partition_asked(&args.partition, ring.partition_count)?;
    let members: MembersBody = client.get("/v1/members")?;
    let mut looks = 1;
    let found = loop {
        let found = look(&client, &ring, &members, partition, args.epoch);
        if !is_on_the_move(&found) || looks >= LOOKS_MAX {
            break found;
        }
        looks += 1;
        std::thread::sleep(LOOK_PAUSE);
    };
    match args.node.json {
        true => output::json(&found)?,
        false => show(&found)?,
    }
    Ok(match found.verdict {
        Verdict::Equal | Verdict::Settled => ExitCode::SUCCESS,
        Verdict::Different => ExitCode::from(1),
        Verdict::NotClosed | Verdict::Undecided => ExitCode::from(3),
    })
}

fn partition_asked(text: &str, partition_count: u16) -> Result<u16, Failure> {
    if let Some(key) = text.strip_prefix(KEY_MARK) {
        return Ok(partition_of(key.as_bytes(), partition_count).0);
    }
    match text.parse() {
        Ok(partition) if partition < partition_count => Ok(partition),
        _ => Err(Failure::usage(format!(
            "the partition `{text}` is neither a number from 0 to {} nor {KEY_MARK}KEY",
            partition_count.saturating_sub(1)
        ))),
    }
}

fn look(
    client: &Client,
    ring: &RingBody,
    members: &MembersBody,
    partition: u16,
    epoch: u64,
) -> Comparison {
    let path = format!("/v1/verify?partition={partition}&epoch={epoch}");
    let indices = ring.partitions.get(usize::from(partition));
    let ringed = indices.into_iter().flatten();
    let (mut replicas, mut silent) = (Vec::new(), Vec::new());
    for one in ringed.filter_map(|&index| ring.members.get(index)) {
        let member = members.members.iter().find(|member| member.id == one.id);
        let addr = member.map_or("", |member| member.http.as_str());
        match ask_node::<EpochSetBody>(client, addr, &one.id, &path, PATIENCE) {
            Ok(body) => replicas.push(body),
            Err(reason) => silent.push(Silent {
                id: one.id.clone(),
                name: one.name.clone(),
                reason,
            }),
        }
    }
    compare(partition, epoch, replicas, silent)
}

fn compare(
    partition: u16,
    epoch: u64,
    replicas: Vec<EpochSetBody>,
    silent: Vec<Silent>,
) -> Comparison {
    let leaves = differing(&replicas);
    Comparison {
        partition,
        epoch,
        verdict: verdict(&replicas, silent.is_empty()),
        leaves,
        replicas,
        silent,
    }
}

fn verdict(replicas: &[EpochSetBody], are_all_here: bool) -> Verdict {
    let in_state = |state: &'static str| replicas.iter().filter(move |one| one.state == state);
    let roots: BTreeSet<_> = in_state("closed").map(|one| &one.root).collect();
    let settled: BTreeSet<_> = in_state("settled").map(|one| one.settled).collect();
    let chains: BTreeSet<_> = in_state("settled")
        .map(|one| (one.settled, &one.chain))
        .collect();
    // More chains than watermarks: at one watermark there are two of them.
    if roots.len() > 1 || chains.len() > settled.len() {
        return Verdict::Different;
    }
    if in_state("not_closed").next().is_some() {
        return Verdict::NotClosed;
    }
    if !are_all_here || replicas.is_empty() {
        return Verdict::Undecided;
    }
    if in_state("closed").count() == replicas.len() {
        return Verdict::Equal;
    }
    match in_state("settled").count() == replicas.len() && chains.len() == 1 {
        true => Verdict::Settled,
        false => Verdict::Undecided,
    }
}

/// Leaves that are not the same in all trees that there are.
fn differing(replicas: &[EpochSetBody]) -> Vec<usize> {
    let trees: Vec<_> = replicas.iter().filter(|one| one.root.is_some()).collect();
    let leaves = trees.iter().map(|one| one.leaves.len()).max().unwrap_or(0);
    let is_different = |leaf: &usize| {
        let mut all = trees.iter().map(|one| one.leaves.get(*leaf));
        let first = all.next();
        all.any(|one| Some(one) != first)
    };
    (0..leaves).filter(is_different).collect()
}

/// Whether another look may well see more: all are there, and each has closed or settled the epoch.
fn is_on_the_move(found: &Comparison) -> bool {
    let mut replicas = found.replicas.iter();
    found.verdict == Verdict::Undecided
        && found.silent.is_empty()
        && replicas.all(|one| matches!(one.state.as_str(), "closed" | "settled"))
}

fn show(found: &Comparison) -> Result<(), Failure> {
    let heads = [
        "replica",
        "state",
        "rows",
        "root or chain",
        "verified up to",
    ];
    let mut table = output::table(&heads);
    for replica in &found.replicas {
        let rows = replica.rows.map_or(String::new(), |rows| rows.to_string());
        let hash = match (&replica.root, replica.state.as_str()) {
            (Some(root), _) => format!("root  {root}"),
            (None, "settled") => format!("chain {}", replica.chain),
            (None, _) => String::new(),
        };
        table.add_row([
            replica.name.clone(),
            state_in_words(&replica.state).to_owned(),
            rows,
            hash,
            replica.settled.to_string(),
        ]);
    }
    output::line(table)?;
    for silent in &found.silent {
        let name = good_or_bad(false, &silent.name);
        output::line(format!("{name}: not compared: {}", silent.reason))?;
    }
    output::line(in_words(found))
}

fn state_in_words(state: &str) -> &str {
    match state {
        "not_closed" => "not closed yet",
        "closed" => "closed",
        "settled" => "settled and dropped",
        "copied" => "being copied",
        "lost" => "rows dropped unverified",
        "not_here" => "not here",
        other => other,
    }
}

/// The sentence below the table.
fn in_words(found: &Comparison) -> String {
    let Comparison {
        partition, epoch, ..
    } = found;
    let what = format!("partition {partition}, epoch {epoch}");
    match found.verdict {
        Verdict::Equal => format!(
            "{} {what}: all {} replicas have the same root",
            good_or_bad(true, "equal:"),
            found.replicas.len()
        ),
        Verdict::Settled => format!(
            "{} {what}: all {} replicas have settled it, with the same chain of roots",
            good_or_bad(true, "equal:"),
            found.replicas.len()
        ),
        Verdict::Different if found.leaves.is_empty() => format!(
            "{} {what}: replicas with the same watermark have different chains: their sets were not equal in \
             some epoch up to it",
            good_or_bad(false, "different:")
        ),
        Verdict::Different => format!(
            "{} {what}: in {}; replicas that missed a write differ until they have compared themselves",
            good_or_bad(false, "different:"),
            leaves_in_words(&found.leaves)
        ),
        Verdict::NotClosed => format!(
            "not closed yet: {what}: writes of it may come still, so there is nothing to compare"
        ),
        Verdict::Undecided => format!("undecided: {what}: {}", seen_in_words(found)),
    }
}

fn leaves_in_words(leaves: &[usize]) -> String {
    let shown = leaves.iter().take(LEAVES_SHOWN_MAX);
    let shown: Vec<String> = shown.map(usize::to_string).collect();
    let more = match leaves.len().saturating_sub(LEAVES_SHOWN_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let noun = if leaves.len() == 1 { "leaf" } else { "leaves" };
    format!("{noun} {}{more}", shown.join(", "))
}

/// What can be said when nothing is decided.
fn seen_in_words(found: &Comparison) -> String {
    let all = found.replicas.len() + found.silent.len();
    let count = |state: &str| {
        let replicas = found.replicas.iter();
        replicas.filter(|one| one.state == state).count()
    };
    let (closed, settled) = (count("closed"), count("settled"));
    match (closed, settled) {
        (0, 0) => "no replica has anything to compare".to_owned(),
        (closed, 0) => format!(
            "the same root at {closed} of {all} replicas, and nothing to compare with of the others"
        ),
        (closed, settled) => format!(
            "settled by {settled}, which a replica does only after it has seen all others equal, and not \
             yet by {closed}; chains say it again only at the same watermark"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::bodies::LeafBody;

    fn closed(name: &str, leaves: &[u32]) -> EpochSetBody {
        let leaf = |rows: &u32| LeafBody {
            hash: format!("{rows:032x}"),
            rows: *rows,
        };
        EpochSetBody {
            name: name.to_owned(),
            state: "closed".to_owned(),
            root: Some(format!("root of {leaves:?}")),
            rows: Some(leaves.iter().copied().map(u64::from).sum()),
            leaves: leaves.iter().map(leaf).collect(),
            ..EpochSetBody::default()
        }
    }

    fn settled(name: &str, settled: u64, chain: &str) -> EpochSetBody {
        EpochSetBody {
            name: name.to_owned(),
            state: "settled".to_owned(),
            settled,
            chain: chain.to_owned(),
            ..EpochSetBody::default()
        }
    }

    fn in_state(state: &str) -> EpochSetBody {
        EpochSetBody {
            state: state.to_owned(),
            ..EpochSetBody::default()
        }
    }

    fn found(replicas: &[EpochSetBody]) -> Comparison {
        compare(3, 7, replicas.to_vec(), Vec::new())
    }

    #[test]
    fn roots_are_compared_and_leaves_named_where_they_differ() {
        let equal = found(&[closed("a", &[1, 0, 2]), closed("b", &[1, 0, 2])]);
        assert_eq!((equal.verdict, equal.leaves.len()), (Verdict::Equal, 0));
        assert_eq!(
            in_words(&equal),
            "equal: partition 3, epoch 7: all 2 replicas have the same root"
        );
        let other = found(&[
            closed("a", &[1, 0, 2]),
            closed("b", &[1, 1, 2]),
            closed("c", &[1, 0, 3]),
        ]);
        assert_eq!(
            (other.verdict, &other.leaves[..]),
            (Verdict::Different, &[1, 2][..])
        );
        assert!(in_words(&other).starts_with("different: partition 3, epoch 7: in leaves 1, 2;"));
        let json = serde_json::to_value(&other).unwrap();
        assert_eq!(json["verdict"], "different");
        assert_eq!(json["leaves"], serde_json::json!([1, 2]));
        assert_eq!(json["replicas"][0]["leaves"][2]["rows"], 2);
        let many: Vec<usize> = (0..20).collect();
        assert!(leaves_in_words(&many).ends_with("15 and 4 more"));
        assert_eq!(leaves_in_words(&[5]), "leaf 5");
    }

    #[test]
    fn of_settled_epochs_the_chains_are_compared_at_one_watermark_only() {
        let same = found(&[settled("a", 9, "x"), settled("b", 9, "x")]);
        assert_eq!(same.verdict, Verdict::Settled);
        assert!(!is_on_the_move(&same));
        let other = found(&[settled("a", 9, "x"), settled("b", 9, "y")]);
        assert_eq!(other.verdict, Verdict::Different);
        assert!(in_words(&other).contains("different chains"));
        let moving = found(&[settled("a", 9, "x"), settled("b", 8, "y")]);
        assert_eq!(moving.verdict, Verdict::Undecided);
        assert!(is_on_the_move(&moving), "it is worth another look");
        let half = found(&[settled("a", 7, "x"), closed("b", &[1])]);
        assert_eq!(half.verdict, Verdict::Undecided);
        assert!(is_on_the_move(&half));
        assert!(in_words(&half).contains("settled by 1,"));
    }

    #[test]
    fn what_cannot_be_compared_is_never_called_equal() {
        for state in ["not_here", "lost", "copied", "something new"] {
            let one = found(&[closed("a", &[1]), in_state(state)]);
            assert_eq!(one.verdict, Verdict::Undecided, "{state}");
            assert!(!is_on_the_move(&one), "{state}");
        }
        let open = found(&[closed("a", &[1]), in_state("not_closed")]);
        assert_eq!(open.verdict, Verdict::NotClosed);
        assert_eq!(found(&[]).verdict, Verdict::Undecided);
        let silent = vec![Silent::default()];
        let alone = compare(
            3,
            7,
            vec![closed("a", &[1]), closed("b", &[1])],
            silent.clone(),
        );
        assert_eq!(alone.verdict, Verdict::Undecided, "one could not be asked");
        assert!(in_words(&alone).contains("the same root at 2 of 3"));
        let two = compare(3, 7, vec![closed("a", &[1]), closed("b", &[2])], silent);
        assert_eq!(two.verdict, Verdict::Different, "that is certain anyway");
    }

    #[test]
    fn a_partition_is_named_by_number_or_key() {
        assert_eq!(partition_asked("15", 16), Ok(15));
        let of_key = partition_of(b"greeting", 16).0;
        assert_eq!(partition_asked("key:greeting", 16), Ok(of_key));
        for wrong in ["16", "-1", "x", "greeting"] {
            assert!(partition_asked(wrong, 16).is_err(), "{wrong}");
        }
    }
}
