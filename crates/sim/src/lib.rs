//! Whole clusters in one deterministic process.
//!
//! The nodes are the real ones: the core with its coordinator, replicas, hints and repair; gossip
//! and Raft; the storage log, the data directory and the hints. What is ours is the world around
//! them: [`faults`], network, disks, clocks, clients, and one queue of events. Everything random
//! comes from one seed, so a run can be had again, exactly, from one number: [`run()`].
//!
//! Why it works: no part of a node reads a clock, draws a random number, owns a thread or a socket.
//! They are driven in turns, and the simulator is one more shell that drives them. There is no
//! `if simulated` in production code, and no production logic here.
//!
//! Not simulated: the real engines (the reference engine in memory stands in for them), the kernel,
//! the shell with its threads and sockets, and the protocols of clients.

pub mod batch;
pub mod checkers;
pub mod cores;
pub mod coverage;
pub mod faults;
#[cfg(feature = "mutations")]
pub mod mutations;
pub mod rings;
pub mod run;
pub mod shrink;

mod acts;
mod client;
mod clock;
mod env;
mod event;
mod history;
mod network;
mod node;
mod oracle;
mod promises;
mod queue;
mod random;
mod trace;
mod under_hood;
mod world;

pub use client::Workload;
pub use coverage::Coverage;
pub use oracle::Violation;
pub use run::{Report, Settings, run};
pub use shrink::shrink;
pub use trace::Detail;
