//! A load generator: `mydatastore bench`.
//!
//! It sends reads and writes to any server of the Redis protocol, or to `/v1/kv`, and says how many a second were
//! answered, how long they took, what they cost in processor time, and, if asked, whether what was read was right.
//!
//! Rules it is built on:
//!
//! - **Latency counts from when a request should have been sent** (`schedule`), so that a stall is never left out.
//! - **Percentiles come from one histogram** of all values (`tally`), never from averages of percentiles.
//! - **Cost is the kernel's accounting** of all processes of the cluster (`processes`), not of the one that is asked.
//! - **It is cheap**: it shares a machine with what it measures. One thread, one epoll, one read and one write for
//!   each batch of a connection, and nothing is allocated for a request (`worker`, `connection`).
//! - **The same seed gives the same operations** (`random`, `workload`): in each thread, one sequence of kinds and
//!   keys. Which connection takes which of them, and so how they overlap, is the run's own.
//!
//! What it does not do: several machines at once; transactions and scans; a check for linearizability. Verification
//! (`verify`) checks what overlapping quorums promise.

mod assembly;
mod connection;
mod epoll;
mod http;
pub(crate) mod keys;
mod phase;
pub(crate) mod plan;
pub(crate) mod processes;
mod progress;
mod random;
mod readiness;
pub(crate) mod report;
mod resp;
mod run;
pub(crate) mod schedule;
mod shared;
mod sockets;
pub(crate) mod svg;
pub(crate) mod table;
mod tally;
mod value;
mod verify;
mod wire;
mod worker;
pub(crate) mod workload;

pub(crate) use run::run;
