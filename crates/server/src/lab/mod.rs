//! A whole cluster of real processes on one machine, to try out and to break on purpose.
//!
//! `mydatastore lab` starts nodes as processes `mydatastore serve ...` and supervises them until
//! Ctrl-C; `lab kill-node 2` and its like act on them from another terminal. There is no protocol
//! between the two: both read and write one small file, `DIR/lab.json`, under a lock, and tell each
//! other by a signal that it changed.
//!
//! **Invariants.** A process is only ever signalled through a *pidfd*, after its command line was
//! found to be that of the node in question: a number that the system gave to somebody else meanwhile
//! is never hit. Waiting for an end is waiting for the pidfd, not guessing. One supervisor a
//! directory, by a file lock that dies with it; nodes survive a supervisor that is killed, and the
//! next one takes them over.
//!
//! What it does not do: restart a node that died. To see that is what a lab is for.

mod act;
mod layout;
mod process;
mod ring;
mod run;
mod start;
mod state;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::cli::Failure;

const EXAMPLES: &str = "\
Examples:
  mydatastore lab                          three nodes; Ctrl-C stops them and keeps the data
  mydatastore lab                          ... again: the same cluster goes on
  mydatastore lab --nodes 5 --n 3 --dir /tmp/five

In a second terminal, while it runs:
  mydatastore lab kill-node 2              SIGKILL, as a crash; two of three still serve
  mydatastore lab start-node 2             it comes back and catches up
  mydatastore lab pause-node 3             SIGSTOP, as a hung machine; resume-node lets it go on
  mydatastore lab wipe-node 1              a lost disk: it comes back as a new node
  mydatastore lab add-node                 a fourth node joins, data moves to it
  mydatastore lab remove-node 4            it hands its data over, leaves and stops
  mydatastore lab status
  mydatastore digest                       are all replicas equal, byte for byte?

Node i (from 1) serves Redis clients on 127.0.0.1:7100+i, HTTP on 8100+i, other nodes on 9100+i.
Each has a directory DIR/node-I with its data, its configuration (node.toml) and its log (node.log).";

/// Arguments of `lab`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = false, after_help = EXAMPLES)]
pub struct LabArgs {
    /// Where the lab keeps everything
    #[arg(
        long,
        global = true,
        default_value = ".mydatastore/lab",
        value_name = "DIR"
    )]
    dir: PathBuf,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(subcommand)]
    action: Option<Action>,
}

/// What a new lab is made of; a resumed one goes on with what it was made of.
#[derive(Args, Debug, Default)]
pub(crate) struct SettingArgs {
    /// How many nodes [default: 3]
    #[arg(long, value_name = "NODES")]
    nodes: Option<u32>,
    /// Storage engine: fjall, leveldb or memory (whose nodes cannot be started again) [default: fjall]
    #[arg(long, value_name = "ENGINE")]
    engine: Option<String>,
    /// Replicas of each key (N) [default: 3, or as many as there are nodes]
    #[arg(long, value_name = "N")]
    n: Option<u8>,
    /// Replicas that must answer a read (R) [default: the majority of N]
    #[arg(long, value_name = "R")]
    r: Option<u8>,
    /// Replicas that must have a write on disk (W) [default: the majority of N]
    #[arg(long, value_name = "W")]
    w: Option<u8>,
    /// When a write is on disk: always, interval:MS or os; may change at each start [default: always]
    #[arg(long, value_name = "POLICY")]
    fsync: Option<String>,
    /// Added to all ports, so that a second lab can run beside the first [default: 0]
    #[arg(long, value_name = "PORTS")]
    port_offset: Option<u16>,
    /// How often the epoch advances; may change at each start [default: 10000; a real cluster's: 900000]
    #[arg(long, value_name = "MS")]
    epoch_interval_ms: Option<u64>,
    /// Who changes the ring: operator (only you do) or auto (waiting nodes join by themselves, and wiped ones come back);
    /// may change at each start [default: operator]
    #[arg(long, value_name = "MODE")]
    ring_mode: Option<String>,
    /// With --ring-mode auto: how long a node has to be dead before it is taken off the ring for good; 0: never; may
    /// change at each start [default: 0]
    #[arg(long, value_name = "MS")]
    remove_after_ms: Option<u64>,
}

/// What to do to a running lab.
#[derive(Subcommand, Clone, Copy, Debug)]
enum Action {
    /// Stop a node in order (SIGTERM)
    StopNode(NodeNumber),
    /// Kill a node (SIGKILL): a crash of the process
    KillNode(NodeNumber),
    /// Freeze a node (SIGSTOP): a machine that hangs
    PauseNode(NodeNumber),
    /// Let a frozen node go on (SIGCONT)
    ResumeNode(NodeNumber),
    /// Start a node that is not running
    StartNode(NodeNumber),
    /// Kill a node and delete its data: a lost disk
    WipeNode(NodeNumber),
    /// Start a further node and let it join the ring
    AddNode,
    /// Let a node hand over what it holds, leave the ring, and stop
    RemoveNode(NodeNumber),
    /// Which nodes run
    Status,
}

/// Which node.
#[derive(Args, Clone, Copy, Debug)]
struct NodeNumber {
    /// The node's number, from 1
    #[arg(value_name = "I")]
    number: u32,
}

/// Runs `lab` and its subcommands.
///
/// # Errors
/// A [`Failure`] that says what to do.
pub fn main(args: &LabArgs) -> Result<ExitCode, Failure> {
    let dir = &args.dir;
    match args.action {
        None => return run::run(dir, &args.settings),
        Some(Action::StopNode(node)) => act::stop(dir, node.number)?,
        Some(Action::KillNode(node)) => act::kill(dir, node.number)?,
        Some(Action::PauseNode(node)) => act::pause(dir, node.number)?,
        Some(Action::ResumeNode(node)) => act::resume(dir, node.number)?,
        Some(Action::StartNode(node)) => act::start(dir, node.number)?,
        Some(Action::WipeNode(node)) => act::wipe(dir, node.number)?,
        Some(Action::AddNode) => ring::add(dir)?,
        Some(Action::RemoveNode(node)) => ring::remove(dir, node.number)?,
        Some(Action::Status) => act::status(dir)?,
    }
    Ok(ExitCode::SUCCESS)
}
