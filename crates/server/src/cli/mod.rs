//! The command line: every command of the binary.
//!
//! Commands about a running cluster speak HTTP to a node, so they work from anywhere and see what
//! any client sees. People get tables, programs `--json`; colours only on a terminal.
//!
//! Exit codes: 0 done, 1 not found (or: replicas differ), 2 used wrongly, 3 unavailable, 4 the outcome
//! of a write is unknown.

mod bench;
mod client;
mod cluster;
mod data;
mod epochs;
mod healthcheck;
mod members;
pub(crate) mod output;
mod profile;
mod progress;
mod ring;
mod settings;
mod verify;

use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::ConfigFlags;
use crate::lab::LabArgs;

pub use client::{Call, Client, ClientError, Reply};
pub(crate) use cluster::init_cluster;
pub use output::Failure;
pub(crate) use progress::Waiting;
pub(crate) use ring::change_ring;

const LONG_ABOUT: &str = "\
MyDataStore, a leaderless replicated key-value database.

Any node takes any request. A write is stored on N replicas and succeeds once W of them have it on \
disk; a read asks R of them and the newest version wins. Redis clients, curl and this command can \
all talk to it.";

const EXAMPLES: &str = "\
Start here:
  mydatastore lab                      three real nodes on this machine; leave it running
  mydatastore put greeting hello       in a second terminal: write, ...
  mydatastore get greeting             ... read through any node
  mydatastore status                   who is there, and how they are
  mydatastore lab kill-node 2          then read and write on: two of three are a quorum

Exit codes: 0 done, 1 not found, 2 used wrongly, 3 unavailable, 4 outcome of a write unknown.";

/// The command line as a whole.
#[derive(Parser, Debug)]
#[command(
    name = "mydatastore",
    version,
    about = "A leaderless replicated key-value database",
    long_about = LONG_ABOUT,
    after_help = EXAMPLES,
    max_term_width = 100
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a node until SIGTERM or Ctrl-C
    #[command(after_help = "\
Examples:
  mydatastore serve                                a node on the default ports, data in ./data
  mydatastore serve --config /etc/mydatastore.toml
  MYDATASTORE_FSYNC=interval:10 mydatastore serve --data-dir /var/lib/mydatastore

A flag is stronger than MYDATASTORE_* in the environment, that than the file, that than the default. \
`mydatastore config` prints what came of it.")]
    Serve(ConfigFlags),
    /// Give birth to a cluster: once, on one node, when all first nodes run
    #[command(long_about = "\
Give birth to a cluster: once, on one node, when all first nodes run.

The number of partitions holds for the cluster's life; N, R and W can be changed by `quorums`. Nodes find \
each other by their seeds; the ring is formed of as many as --nodes says, or of those known now.")]
    Init(cluster::InitArgs),
    /// Ask the node of this machine whether it serves; exit code 0 if so
    #[command(long_about = "\
Ask the node of this machine whether it serves; exit code 0 if so.

For the HEALTHCHECK of a container: started with the same flags, environment or file as the node, it asks its \
HTTP address, and needs no shell and no curl.")]
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Run a whole cluster of real processes on this machine, and break it on purpose
    Lab(LabArgs),
    /// Who is there, and how they are
    Status(NodeArgs),
    /// Where data lives: members, their load, replica sets
    Ring(cluster::RingArgs),
    /// Read a key; its bytes go to standard output as they are
    Get(data::GetArgs),
    /// Write a key, from an argument or standard input
    #[command(after_help = "\
Examples:
  mydatastore put greeting hello
  mydatastore put photo < photo.jpg
  mydatastore put session abc --ttl 30m
  mydatastore put greeting hello --w 3
After exit code 4 the outcome is unknown: send the same write again with the printed --retry-token.")]
    Put(data::PutArgs),
    /// Delete a key; deleting an absent one is a success
    Del(data::DelArgs),
    /// List keys
    Scan(data::ScanArgs),
    /// Load a server and measure it: throughput, latency, processor time, correctness
    #[command(long_about = bench::LONG_ABOUT, after_help = bench::EXAMPLES)]
    Bench(Box<bench::BenchArgs>),
    /// Print the effective configuration of a node, with meanings, defaults and origins
    Config(settings::ConfigArgs),
    /// Let waiting nodes come onto the ring
    #[command(after_help = "\
Start the new node first (`mydatastore serve`, with the peer address of a member among its seeds): it \
becomes a member that waits, and `mydatastore status` shows it. It coordinates requests from then on, and \
holds data once it has joined.

Examples:
  mydatastore join node-4 --wait
  mydatastore join node-4 node-5                     both in one change: data moves once
  mydatastore transition                             how far it is")]
    Join(ring::NodesArgs),
    /// Let nodes hand over what they hold, and leave the ring
    #[command(after_help = "\
Stop the node only when the change has ended. It then leaves the member list by itself, and its data \
directory cannot come back: delete it to use the machine as a new node.

Example:
  mydatastore leave node-2 --wait")]
    Leave(ring::NodesArgs),
    /// Put a waiting node in the place of one that is dead for good
    #[command(after_help = "\
The dead node is not waited for, and may never come back: its data is copied from the other replicas.

Example:
  mydatastore replace node-2 --with node-4 --wait")]
    Replace(ring::ReplaceArgs),
    /// Remove a node that is dead for good, without another in its place
    #[command(after_help = "\
A node that lives should `leave` instead: it hands over what it holds. Refused where fewer than N nodes \
would remain, or where a quorum of some partition's replicas would be gone (--force takes that risk).

Example:
  mydatastore remove node-2 --wait")]
    Remove(ring::DeadArgs),
    /// Change nodes' shares of the data
    #[command(after_help = "\
Example:
  mydatastore reweigh node-1=200 node-2=50 --wait    100 is the norm, 0 holds no data")]
    Reweigh(ring::ReweighArgs),
    /// Change N, R and W
    #[command(after_help = "\
Example:
  mydatastore quorums --n 5 --r 3 --w 3 --wait       what is left out stays as it is")]
    Quorums(ring::QuorumArgs),
    /// Wait for a member no more, while the ring changes: it died and does not come back
    #[command(after_help = "\
For a node that a change waits for (`mydatastore transition` says which) and that is dead for good. One \
that will come back is better waited for.

Example:
  mydatastore exclude node-3")]
    Exclude(ring::DeadArgs),
    /// How far a change of the ring is, and whom it waits for; or call it off
    #[command(after_help = "\
Stages: prepare, write-both, stream, read-both, read-next, cleanup, stable. Up to stream a change can be \
called off; later it finishes.

Examples:
  mydatastore transition                             the present state
  mydatastore transition --wait                      until it has ended
  mydatastore transition abort")]
    Transition(ring::TransitionArgs),
    /// How far the nodes have verified that all replicas have what was written
    #[command(
        long_about = "\
How far the nodes have verified that all replicas have what was written.

Time is cut into epochs. Once an epoch is closed, the replicas of each partition compare what was written in it; \
when all are equal it is verified (settled) there, its tombstones are collected and its index is dropped. Every \
node says this of the partitions it holds; this command asks all of them and adds up.",
        after_help = "\
Examples:
  mydatastore epochs                                 the latest ten epochs, and each node
  mydatastore epochs --limit 40 --json"
    )]
    Epochs(epochs::EpochsArgs),
    /// Compare what the replicas of one partition have of one epoch
    #[command(
        long_about = "\
Compare what the replicas of one partition have of one epoch.

Asks each replica of the present ring for the root of its Merkle tree over the rows of that epoch: of every key \
that was written in it, the greatest version. Equal roots are equal sets; of different ones the leaves that \
differ are named. A settled epoch's rows are dropped: what is left is the chain, a hash over the roots of all \
epochs up to the watermark; equal chains at equal watermarks mean that the sets were equal in every epoch up to \
there. It compares what was written, epoch by epoch, and not what lies on the disks now: that is `digest`.

Exit code: 0 equal, 1 different, 3 nothing certain: not closed yet, or a replica could not be asked.",
        after_help = "\
Examples:
  mydatastore verify 17 42                           partition 17, epoch 42 (`mydatastore epochs` lists epochs)
  mydatastore verify key:greeting 42                 the partition that a key belongs to"
    )]
    Verify(verify::VerifyArgs),
    /// Compare the contents of all replicas, partition by partition
    #[command(long_about = "\
Compare the contents of all replicas, partition by partition.

Each replica hashes all its records, tombstones included, in key order: equal digests are equal bytes. \
While writes go on, replicas differ for moments. Exit code 1 if any differ.")]
    Digest(NodeArgs),
    /// Where a node's processor time goes: a flame graph
    #[command(after_help = "\
Examples:
  mydatastore profile                              ten seconds of the node on the default port, as profile.svg
  mydatastore profile --node 127.0.0.1:8102 --seconds 30 --out node-2.svg
  mydatastore profile --collapsed --out -          stacks as text, for other tools

A node allows it if `profiling` is true in its configuration, as it is in the lab's. It costs the node some 1 % \
meanwhile. Threads that wait are not seen: a profile says what costs, not what takes long.")]
    Profile(profile::ProfileArgs),
}

/// Which node to talk to, and how to print.
#[derive(Args, Clone, Debug)]
struct NodeArgs {
    /// HTTP address of a node, or several with commas: the next is tried when one is not there
    #[arg(
        long,
        env = "MYDATASTORE_NODE",
        default_value = "127.0.0.1:8101",
        value_name = "HOST:PORT"
    )]
    node: String,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

impl NodeArgs {
    fn client(&self) -> Result<Client, Failure> {
        Client::new(&self.node).map_err(Failure::usage)
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            // Help and version also come this way, with exit code 0. Nothing can be done when even
            // this cannot be printed.
            let _ = error.print();
            return ExitCode::from(error.exit_code() as u8);
        }
    };
    let result = match Cli::from_arg_matches(&matches) {
        Ok(cli) => run(cli.command),
        Err(error) => Err(Failure::usage(error.to_string())),
    };
    match result {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Serve(flags) => {
            let effective = settings::load(&flags)?;
            crate::serve::main(effective).map_err(|error| Failure::unavailable(error.to_string()))
        }
        Command::Init(args) => cluster::init(&args),
        Command::Healthcheck(args) => healthcheck::healthcheck(&args),
        Command::Lab(args) => crate::lab::main(&args),
        Command::Status(args) => cluster::status(&args),
        Command::Ring(args) => cluster::ring(&args),
        Command::Get(args) => data::get(&args),
        Command::Put(args) => data::put(&args),
        Command::Del(args) => data::del(&args),
        Command::Scan(args) => data::scan(&args),
        Command::Bench(args) => bench::bench(&args),
        Command::Config(args) => settings::config(&args),
        Command::Join(args) => ring::join(&args),
        Command::Leave(args) => ring::leave(&args),
        Command::Replace(args) => ring::replace(&args),
        Command::Remove(args) => ring::remove(&args),
        Command::Reweigh(args) => ring::reweigh(&args),
        Command::Quorums(args) => ring::quorums(&args),
        Command::Exclude(args) => ring::exclude(&args),
        Command::Transition(args) => ring::transition(&args),
        Command::Epochs(args) => epochs::epochs(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Digest(args) => cluster::digest(&args),
        Command::Profile(args) => profile::profile(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                let (command, name) = (command.get_name(), argument.get_id());
                assert!(argument.get_help().is_some(), "{command} {name}");
            }
        }
    }

    #[test]
    fn commands_of_the_contract_parse() {
        for line in [
            "lab",
            "lab --nodes 5 --dir d --engine memory --n 3 --r 2 --w 2 --fsync interval:5",
            "lab kill-node 2 --dir d",
            "lab stop-node 1",
            "lab pause-node 1",
            "lab resume-node 1",
            "lab start-node 1",
            "lab wipe-node 3",
            "lab status --dir d",
            "serve --config x.toml --name a --seeds a:1,b:2",
            "healthcheck --live --http-listen 0.0.0.0:8101",
            "init --nodes 3 --if-unborn --wait-s 60",
            "init --nodes 3 --n 3 --r 2 --w 2 --partitions 64",
            "status --json --node a:1,b:2",
            "ring",
            "get k --r 1",
            "put k v --ttl 5s --w 3",
            "put k",
            "del k",
            "scan prefix --values --limit 10",
            "config --toml --data-dir x",
            "digest --json",
            "bench",
            "bench --load --workload f --verify --target a:1,b:2 --seed 7 --json",
            "bench --read-share 0.9 --distribution hot:0.5 --verify=content -c 10 -P 16 -n 1000",
            "bench --rate 5000 --arrivals poisson --seconds 2.5 --warmup 0 --svg x.svg",
            "bench --only-load --keys 10 --value-bytes 10-2000 --pid 1,2 --servers redis-server",
            "epochs --limit 3 --json",
            "verify 17 42 --node a:1",
            "verify key:greeting 42 --json",
            "join node-4 node-5 --wait",
            "leave 00000000000000ab --request ab12",
            "replace node-2 --with node-4 --force",
            "remove node-2 --json",
            "reweigh a=200 b=50",
            "quorums --n 5 --r 3 --w 3",
            "exclude node-3",
            "transition --wait",
            "transition abort",
            "lab add-node --dir d",
            "lab remove-node 4",
        ] {
            let words = std::iter::once("mydatastore").chain(line.split(' '));
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
    }
}
