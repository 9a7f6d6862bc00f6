//! The Redis front-end: RESP 2 and 3 on a port of its own.
//!
//! A Redis client, a Redis *Cluster* client and `redis-cli` talk to any node as they talk to Redis.
//! This part turns bytes into requests and answers into bytes. It owns no socket, clock or task: the
//! node's shell drives it in turns ([`RespFront`] is a [`Frontend`](mds_node::front::Frontend)), and a
//! test or the simulator can as well.
//!
//! - [`codec`]: bytes to commands;
//! - [`reply`]: replies to bytes;
//! - [`front`]: connections, order, bounds;
//! - `commands`: what each command means;
//! - `jobs`: commands that need several requests.
//!
//! # What is like Redis, and what is not
//!
//! Replies and error texts are those of Redis wherever it has one. A pipeline behaves as if its
//! commands ran one after the other. Beyond that the promises are the database's own:
//! `docs/guarantees.md`. In short: one key at a time; `MSET`, `DEL` of several keys and `FLUSHALL` are
//! not atomic; `SCAN`, `KEYS` and `DBSIZE` see no snapshot; what would have to read and write as one
//! step is refused.
//!
//! Every node answers for the whole cluster, `SCAN`, `KEYS` and `DBSIZE` included. A cluster client that
//! asks each node and adds up counts every key once per node; asking any one of them is enough.
//!
//! One command is ours: `MDS.CONSISTENCY [R n] [W n] [TIMEOUT ms] [SESSION yes|no]` chooses, for the commands that
//! follow on this connection, how many replicas must answer a read, how many must hold a write, and
//! how long to wait for them. Without arguments it shows what holds; `DEFAULT` undoes it.
//!
//! A connection carries the greatest version that it has seen along with its requests, so that its
//! later writes get later stamps through any coordinator.

pub mod codec;
mod commands;
mod conn;
mod cursors;
pub mod front;
mod glob;
mod jobs;
pub mod reply;
mod slab;
#[cfg(test)]
mod tests;

pub use commands::REDIS_VERSION;
pub use conn::{OUTPUT_BYTES_MAX, OUTPUT_BYTES_PAUSE, PIPELINE_MAX};
pub use cursors::CURSORS_MAX;
pub use front::RespFront;
pub use jobs::{GATHER_IN_FLIGHT_MAX, KEYS_MAX, SCAN_PAGES_MAX, WALK_IN_FLIGHT_MAX};
