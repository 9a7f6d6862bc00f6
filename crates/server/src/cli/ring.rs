//! Changes of the ring: `join`, `leave`, `replace`, `remove`, `reweigh`, `quorums`, `exclude`, `transition`.
//!
//! Each request has a name, drawn here unless given by `--request`. If an answer is lost, the same command
//! with the same name is the same request, through any node; a failure prints it. Following a change to its
//! end is in [`progress`](super::progress).

use std::collections::BTreeMap;
use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use ureq::http::{Method, StatusCode};

use super::NodeArgs;
use super::client::{Call, Client};
use super::output::{self, Failure, good_or_bad};
use super::progress::{self, Waiting};
use crate::http::bodies::{RingAskBody, TransitionBody};

/// A node tries for 30 s to have a request taken up, and answers for 10 s more.
const ASK_PATIENCE: Duration = Duration::from_secs(45);

/// How a change is asked for.
#[derive(Args, Debug)]
pub(super) struct AskArgs {
    /// Stay until the change has ended, and print what it does
    #[arg(long)]
    wait: bool,
    /// Names the request, up to 32 hexadecimal digits: repeated with it, it is the same request
    /// [default: drawn at random]
    #[arg(long, value_name = "ID")]
    request: Option<String>,
    #[command(flatten)]
    node: NodeArgs,
}

/// Arguments of `join` and `leave`.
#[derive(Args, Debug)]
pub(super) struct NodesArgs {
    /// Nodes, by name or id
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    #[command(flatten)]
    ask: AskArgs,
}

/// Arguments of `remove` and `exclude`.
#[derive(Args, Debug)]
pub(super) struct DeadArgs {
    /// The dead node, by name or id
    #[arg(value_name = "NODE")]
    dead: String,
    /// Even if it seems to live, or data may be lost with it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    ask: AskArgs,
}

/// Arguments of `replace`.
#[derive(Args, Debug)]
pub(super) struct ReplaceArgs {
    /// The dead node, by name or id
    #[arg(value_name = "NODE")]
    dead: String,
    /// The waiting node that takes its place
    #[arg(long, value_name = "NODE")]
    with: String,
    /// Even if the dead node seems to live, or data may be lost with it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    ask: AskArgs,
}

/// Arguments of `reweigh`.
#[derive(Args, Debug)]
pub(super) struct ReweighArgs {
    /// The new weight of each node
    #[arg(required = true, value_name = "NODE=WEIGHT", value_parser = weight_of)]
    weights: Vec<(String, u32)>,
    #[command(flatten)]
    ask: AskArgs,
}

/// Arguments of `quorums`.
#[derive(Args, Debug)]
pub(super) struct QuorumArgs {
    /// Replicas of each key (N) [default: as now]
    #[arg(long, value_name = "N")]
    n: Option<u8>,
    /// Replicas that must answer a read (R) [default: as now]
    #[arg(long, value_name = "R")]
    r: Option<u8>,
    /// Replicas that must have a write on disk (W) [default: as now]
    #[arg(long, value_name = "W")]
    w: Option<u8>,
    #[command(flatten)]
    ask: AskArgs,
}

/// Arguments of `transition`.
#[derive(Args, Debug)]
pub(super) struct TransitionArgs {
    #[command(subcommand)]
    action: Option<TransitionAction>,
    #[command(flatten)]
    status: TransitionStatusArgs,
}

/// Arguments of `transition status`, which is what `transition` does.
#[derive(Args, Debug)]
struct TransitionStatusArgs {
    /// Stay until the change under way has ended, and print what it does
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Subcommand, Debug)]
enum TransitionAction {
    /// How far the change under way is, and whom it waits for: the same as without a word
    Status(TransitionStatusArgs),
    /// Call the change under way off, while it is not past the point of no return
    Abort(AskArgs),
}

fn weight_of(text: &str) -> Result<(String, u32), String> {
    let (node, weight) = text
        .split_once('=')
        .ok_or("not NODE=WEIGHT, such as node-1=200")?;
    let weight = weight
        .parse()
        .map_err(|_| format!("the weight `{weight}` is not a whole number"))?;
    Ok((node.to_owned(), weight))
}

pub(super) fn join(args: &NodesArgs) -> Result<ExitCode, Failure> {
    of_nodes("join", args)
}

pub(super) fn leave(args: &NodesArgs) -> Result<ExitCode, Failure> {
    of_nodes("leave", args)
}

fn of_nodes(action: &str, args: &NodesArgs) -> Result<ExitCode, Failure> {
    let body = RingAskBody {
        nodes: args.nodes.clone(),
        ..asking(action)
    };
    run(body, &args.ask)
}

pub(super) fn remove(args: &DeadArgs) -> Result<ExitCode, Failure> {
    of_the_dead("remove", args)
}

pub(super) fn exclude(args: &DeadArgs) -> Result<ExitCode, Failure> {
    of_the_dead("exclude", args)
}

fn of_the_dead(action: &str, args: &DeadArgs) -> Result<ExitCode, Failure> {
    let body = RingAskBody {
        nodes: vec![args.dead.clone()],
        force: args.force,
        ..asking(action)
    };
    run(body, &args.ask)
}

pub(super) fn replace(args: &ReplaceArgs) -> Result<ExitCode, Failure> {
    let body = RingAskBody {
        nodes: vec![args.dead.clone()],
        with: Some(args.with.clone()),
        force: args.force,
        ..asking("replace")
    };
    run(body, &args.ask)
}

pub(super) fn reweigh(args: &ReweighArgs) -> Result<ExitCode, Failure> {
    let weights: BTreeMap<String, u32> = args.weights.iter().cloned().collect();
    let body = RingAskBody {
        weights,
        ..asking("reweigh")
    };
    run(body, &args.ask)
}

pub(super) fn quorums(args: &QuorumArgs) -> Result<ExitCode, Failure> {
    let body = RingAskBody {
        n: args.n,
        r: args.r,
        w: args.w,
        ..asking("quorums")
    };
    run(body, &args.ask)
}

pub(super) fn transition(args: &TransitionArgs) -> Result<ExitCode, Failure> {
    let args = match &args.action {
        Some(TransitionAction::Abort(ask)) => return run(asking("abort"), ask),
        Some(TransitionAction::Status(status)) => status,
        None => &args.status,
    };
    let client = args.node.client()?;
    let mut now: TransitionBody = client.get("/v1/transition")?;
    if args.wait
        && let Some(request) = now.request.clone()
    {
        now = Waiting::new(&client, &request, !args.node.json).until_ended(None)?;
    }
    progress::ask_blockers(&client, &mut now);
    show(&now, args.node.json)?;
    Ok(ExitCode::SUCCESS)
}

/// A request that asks for nothing yet.
fn asking(action: &str) -> RingAskBody {
    RingAskBody {
        action: action.to_owned(),
        ..RingAskBody::default()
    }
}

fn run(mut body: RingAskBody, args: &AskArgs) -> Result<ExitCode, Failure> {
    let client = args.node.client()?;
    body.request = match (&args.request, body.action.as_str()) {
        (Some(request), _) => Some(request.clone()),
        // The node knows which change is under way.
        (None, "abort" | "exclude") => None,
        (None, _) => Some(fresh_request()?),
    };
    let mut now = change_ring(&client, &body)?;
    let request = body.request.clone().or_else(|| now.request.clone());
    if args.wait
        && let Some(request) = &request
        && fate_in(&now, request) == Some("running")
    {
        now = Waiting::new(&client, request, !args.node.json).until_ended(None)?;
    }
    show(&now, args.node.json)?;
    if !args.node.json && now.stage != "stable" {
        output::line("it goes on by itself: `mydatastore transition --wait` follows it")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A name for a request.
fn fresh_request() -> Result<String, Failure> {
    let mut bytes = [0u8; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| {
            Failure::unavailable(format!(
                "no randomness from /dev/urandom: {error}; give --request"
            ))
        })?;
    Ok(format!("{:032x}", u128::from_le_bytes(bytes)))
}

/// Has a change of the ring taken up; how the rings stand then. Draws the request's name if it needs one
/// and has none.
pub(crate) fn change_ring(client: &Client, body: &RingAskBody) -> Result<TransitionBody, Failure> {
    let mut body = body.clone();
    if body.request.is_none() && !matches!(body.action.as_str(), "abort" | "exclude") {
        body.request = Some(fresh_request()?);
    }
    let text = serde_json::to_vec(&body).map_err(|error| Failure::usage(error.to_string()))?;
    let call = Call::new(Method::POST, "/v1/transition")
        .body(&text)
        .timeout(ASK_PATIENCE);
    let again = match &body.request {
        Some(request) => format!("\nto ask again for the same: --request {request}"),
        None => String::new(),
    };
    let reply = client
        .call(&call)
        .map_err(|error| Failure::unavailable(format!("{error}{again}")))?;
    match reply.status {
        status if status.is_success() => Ok(reply.json()?),
        StatusCode::GATEWAY_TIMEOUT => {
            Err(Failure::unknown(format!("{}{again}", reply.error().error)))
        }
        _ => Err(reply.failure()),
    }
}

/// What has become of a request, as far as a node knows.
pub(super) fn fate_in<'a>(transition: &'a TransitionBody, request: &str) -> Option<&'a str> {
    let name = |text: &str| u128::from_str_radix(text, 16).ok();
    let known = transition.requests.iter().rev();
    let mut known = known.filter(|known| name(&known.request) == name(request));
    known.next().map(|known| known.fate.as_str())
}

fn show(now: &TransitionBody, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(now);
    }
    if now.stage == "stable" {
        output::line(format!(
            "ring version {}: stable, no change under way",
            now.version
        ))?;
    } else {
        output::line(format!("ring version {}: {}", now.version, now.stage))?;
        output::line(format!("change   {}", now.change))?;
        output::line(format!(
            "request  {}",
            now.request.as_deref().unwrap_or("?")
        ))?;
    }
    if !now.excluded.is_empty() {
        let names: Vec<&str> = now.excluded.iter().map(|node| node.name.as_str()).collect();
        output::line(format!("without  {}", names.join(", ")))?;
    }
    if !now.blocked_by.is_empty() {
        let heads = ["blocked by", "id", "alive", "since", "because it"];
        let mut table = output::table(&heads);
        for blocker in &now.blocked_by {
            table.add_row([
                blocker.name.clone(),
                blocker.id.clone(),
                good_or_bad(blocker.alive, if blocker.alive { "yes" } else { "no" }),
                blocker.since_ms.map(output::ago).unwrap_or_default(),
                progress::missing(blocker, None),
            ]);
        }
        output::line(table)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::bodies::RequestBody;

    #[test]
    fn weights_and_names_are_read() {
        assert_eq!(weight_of("a=200"), Ok(("a".to_owned(), 200)));
        assert!(weight_of("a").is_err() && weight_of("a=x").is_err());
        assert_ne!(fresh_request().unwrap(), fresh_request().unwrap());
        let known = TransitionBody {
            requests: vec![RequestBody {
                request: format!("{:032x}", 0xab),
                fate: "finished".to_owned(),
            }],
            ..TransitionBody::default()
        };
        assert_eq!(fate_in(&known, "AB"), Some("finished"));
        assert_eq!(fate_in(&known, "ac"), None);
    }
}
