//! `epochs`: how far all nodes have verified what was written.
//!
//! Each node speaks of the partitions that it holds itself, so all members are asked and their counts added up:
//! a partition with three replicas counts three times, because each replica settles by itself.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::NodeArgs;
use super::members::{Silent, ask_node};
use super::output::{self, Failure, good_or_bad};
use crate::http::bodies::{AwaitedBody, EpochBody, EpochsBody, MembersBody};

/// How long one node may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Arguments of `epochs`.
#[derive(Args, Debug)]
pub(super) struct EpochsArgs {
    /// How many epochs, the latest ones
    #[arg(long, value_name = "EPOCHS", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    #[command(flatten)]
    node: NodeArgs,
}

/// The cluster's epochs, as far as its nodes could be asked.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
struct ClusterEpochs {
    /// The present epoch.
    epoch: u64,
    /// All epochs up to this one are verified by all nodes asked. None if nobody holds anything.
    verified: Option<u64>,
    /// Epochs that are closed at some node and not verified there: the greatest such number of all nodes.
    lag_epochs: u64,
    /// How long the oldest of them has been closed, milliseconds.
    lag_ms: u64,
    /// The latest epochs, the newest first.
    epochs: Vec<ClusterEpoch>,
    /// What each node said.
    nodes: Vec<EpochsBody>,
    /// Nodes that could not be asked.
    silent: Vec<Silent>,
}

/// One epoch, over all nodes.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
struct ClusterEpoch {
    epoch: u64,
    /// The least that is true of all nodes: `present`, `open`, `closed`, `settled` or `collected`.
    state: String,
    /// When the first node that knows closed it, milliseconds since 1970.
    closed_at_ms: Option<u64>,
    /// Replicas of partitions that could settle it.
    replicas: u64,
    /// Those that have.
    settled: u64,
    /// Those that have collected it.
    collected: u64,
    /// Bytes of its index, all nodes together.
    index_bytes: u64,
}

pub(super) fn epochs(args: &EpochsArgs) -> Result<ExitCode, Failure> {
    let client = args.node.client()?;
    let members: MembersBody = client.get("/v1/members")?;
    let path = format!("/v1/epochs?limit={}", args.limit);
    let (mut nodes, mut silent) = (Vec::new(), Vec::new());
    let is_member = |stage: &str| !matches!(stage, "unknown" | "left");
    for member in members.members.iter().filter(|one| is_member(&one.stage)) {
        match ask_node::<EpochsBody>(&client, &member.http, &member.id, &path, PATIENCE) {
            Ok(body) => nodes.push(body),
            Err(reason) => silent.push(Silent {
                id: member.id.clone(),
                name: member.name.clone(),
                reason,
            }),
        }
    }
    nodes.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    nodes.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    let whole = added_up(nodes, silent);
    match args.node.json {
        true => output::json(&whole)?,
        false => show(&whole)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn added_up(nodes: Vec<EpochsBody>, silent: Vec<Silent>) -> ClusterEpochs {
    let epoch = nodes.iter().map(|node| node.epoch).max().unwrap_or(0);
    // Of older ones somebody has not told.
    let told_from = nodes
        .iter()
        .map(|node| node.epochs.last().map_or(0, |last| last.epoch))
        .max()
        .unwrap_or(0);
    let epochs = (told_from.max(1)..=epoch).rev();
    ClusterEpochs {
        epoch,
        verified: nodes.iter().filter_map(|node| node.settled).min(),
        lag_epochs: nodes.iter().map(|node| node.lag_epochs).max().unwrap_or(0),
        lag_ms: nodes.iter().map(|node| node.lag_ms).max().unwrap_or(0),
        epochs: epochs.map(|one| of_all(&nodes, one, epoch)).collect(),
        nodes,
        silent,
    }
}

fn of_all(nodes: &[EpochsBody], epoch: u64, present: u64) -> ClusterEpoch {
    // A node that lags has not heard of it: its replicas have not settled it either.
    let told: Vec<&EpochBody> = nodes
        .iter()
        .filter_map(|node| node.epochs.iter().find(|one| one.epoch == epoch))
        .collect();
    let states = ["present", "open", "closed", "settled", "collected"];
    let rank = |state: &str| states.iter().position(|one| *one == state).unwrap_or(0);
    let least = match told.len() == nodes.len() {
        true => told.iter().map(|one| rank(&one.state)).min().unwrap_or(0),
        false => 0,
    };
    // Only one epoch is the present one, whatever those say that lag.
    let least = least.max(usize::from(epoch < present));
    ClusterEpoch {
        epoch,
        state: states[least].to_owned(),
        closed_at_ms: told.iter().filter_map(|one| one.closed_at_ms).min(),
        replicas: nodes.iter().map(|node| node.partitions.held).sum(),
        settled: told.iter().map(|one| one.settled).sum(),
        collected: told.iter().map(|one| one.collected).sum(),
        index_bytes: told.iter().map(|one| one.index_bytes).sum(),
    }
}

fn show(whole: &ClusterEpochs) -> Result<(), Failure> {
    output::line(in_words(whole))?;
    let heads = [
        "epoch",
        "state",
        "closed",
        "verified",
        "collected",
        "index on disk",
    ];
    let mut table = output::table(&heads);
    for epoch in &whole.epochs {
        let is_closed = !matches!(epoch.state.as_str(), "present" | "open");
        let share = |part| match is_closed {
            true => share(part, epoch.replicas),
            false => String::new(),
        };
        table.add_row([
            epoch.epoch.to_string(),
            epoch.state.clone(),
            epoch.closed_at_ms.map(output::ago).unwrap_or_default(),
            share(epoch.settled),
            share(epoch.collected),
            output::bytes(epoch.index_bytes),
        ]);
    }
    output::line(table)?;
    let heads = [
        "node",
        "epoch",
        "closed",
        "verified",
        "lag",
        "partitions",
        "copying",
        "waits for",
    ];
    let mut table = output::table(&heads);
    for node in &whole.nodes {
        let up_to = |epoch: Option<u64>| epoch.map_or("-".to_owned(), |epoch| epoch.to_string());
        let waits_for: Vec<String> = node.blocked_by.iter().map(awaited).collect();
        table.add_row([
            node.name.clone(),
            node.epoch.to_string(),
            node.closed.to_string(),
            up_to(node.settled),
            lag(node),
            node.partitions.held.to_string(),
            node.partitions.streaming.to_string(),
            waits_for.join(", "),
        ]);
    }
    output::line(table)?;
    for silent in &whole.silent {
        let name = good_or_bad(false, &silent.name);
        output::line(format!("{name}: not asked: {}", silent.reason))?;
    }
    Ok(())
}

/// The sentence above the tables.
fn in_words(whole: &ClusterEpochs) -> String {
    let epoch = whole.epoch;
    let asked = match whole.silent.len() {
        0 => "all nodes".to_owned(),
        silent => format!("the nodes that answer ({silent} did not)"),
    };
    match (whole.verified, whole.lag_epochs) {
        (None, _) => format!("epoch {epoch}; no node that answers holds a partition"),
        (Some(verified), 0) => {
            format!(
                "epoch {epoch}; {asked} have verified all that is closed: every epoch up to {verified}"
            )
        }
        (Some(verified), _) => format!(
            "epoch {epoch}; {asked} have verified every epoch up to {verified}; the next one has been \
             closed for {}",
            output::for_long(whole.lag_ms)
        ),
    }
}

fn lag(node: &EpochsBody) -> String {
    match node.lag_epochs {
        0 => "none".to_owned(),
        1 => format!("1 epoch, {}", output::for_long(node.lag_ms)),
        epochs => format!("{epochs} epochs, {}", output::for_long(node.lag_ms)),
    }
}

fn awaited(member: &AwaitedBody) -> String {
    let name = match member.name.is_empty() {
        true => &member.id,
        false => &member.name,
    };
    let dead = if member.alive { "" } else { " (dead)" };
    let waited_ms = output::now_ms().saturating_sub(member.since_ms);
    format!("{name} for {}{dead}", output::for_long(waited_ms))
}

/// A share in per cent, never rounded up: 100% is all.
fn share(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        _ if part >= whole => "100%".to_owned(),
        _ => {
            let tenths = u128::from(part) * 1_000 / u128::from(whole);
            format!("{}.{}% ({part} of {whole})", tenths / 10, tenths % 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::bodies::PartitionCountsBody;

    fn node(name: &str, epoch: u64, settled: u64, epochs: &[(u64, &str, u64)]) -> EpochsBody {
        let epochs = epochs.iter().map(|(epoch, state, settled)| EpochBody {
            epoch: *epoch,
            state: (*state).to_owned(),
            settled: *settled,
            closed_at_ms: Some(1_000 * epoch),
            index_bytes: 100,
            ..EpochBody::default()
        });
        EpochsBody {
            id: format!("id-{name}"),
            name: name.to_owned(),
            epoch,
            settled: Some(settled),
            partitions: PartitionCountsBody {
                held: 10,
                ..PartitionCountsBody::default()
            },
            epochs: epochs.collect(),
            ..EpochsBody::default()
        }
    }

    #[test]
    fn the_counts_of_all_nodes_are_added_up_and_the_least_counts() {
        let a = [
            (9, "present", 0),
            (8, "open", 0),
            (7, "settled", 10),
            (6, "collected", 10),
        ];
        let b = [
            (8, "present", 0),
            (7, "closed", 4),
            (6, "collected", 10),
            (5, "collected", 10),
        ];
        let mut second = node("b", 8, 6, &b);
        (second.lag_epochs, second.lag_ms) = (1, 2_500);
        let whole = added_up(vec![node("a", 9, 7, &a), second], Vec::new());
        let rows: Vec<(u64, &str, u64, u64)> = whole
            .epochs
            .iter()
            .map(|one| (one.epoch, one.state.as_str(), one.settled, one.replicas))
            .collect();
        assert_eq!(
            rows,
            [
                (9, "present", 0, 20),
                (8, "open", 0, 20),
                (7, "closed", 14, 20),
                (6, "collected", 20, 20)
            ],
            "of epoch 5 one has not told"
        );
        assert_eq!((whole.epoch, whole.verified), (9, Some(6)));
        assert_eq!(whole.epochs[2].index_bytes, 200);
        assert_eq!(
            in_words(&whole),
            "epoch 9; all nodes have verified every epoch up to 6; the next one has been closed for 2 s"
        );
        let json = serde_json::to_value(&whole).unwrap();
        assert_eq!(json["epochs"][2]["state"], "closed");
        assert_eq!(json["nodes"][1]["lag_ms"], 2_500);
        assert_eq!(json["silent"], serde_json::json!([]));
    }

    #[test]
    fn who_could_not_be_asked_is_said() {
        let a = [(3, "present", 0), (2, "open", 0), (1, "settled", 10)];
        let whole = added_up(vec![node("a", 3, 1, &a)], vec![Silent::default()]);
        assert_eq!(
            in_words(&whole),
            "epoch 3; the nodes that answer (1 did not) have verified all that is closed: every epoch up to 1"
        );
        let nobody = added_up(Vec::new(), Vec::new());
        assert_eq!(
            in_words(&nobody),
            "epoch 0; no node that answers holds a partition"
        );
        assert!(nobody.epochs.is_empty());
    }

    #[test]
    fn a_share_is_never_rounded_up_to_all() {
        assert_eq!(share(9_999, 10_000), "99.9% (9999 of 10000)");
        assert_eq!(share(10, 10), "100%");
        assert_eq!(share(0, 0), "-");
        let awaited_body = AwaitedBody {
            name: "node-3".to_owned(),
            since_ms: u64::MAX,
            ..AwaitedBody::default()
        };
        assert_eq!(awaited(&awaited_body), "node-3 for 0 s (dead)");
        let one = EpochsBody {
            lag_epochs: 1,
            lag_ms: 1_000,
            ..EpochsBody::default()
        };
        assert_eq!(lag(&one), "1 epoch, 1 s");
    }
}
