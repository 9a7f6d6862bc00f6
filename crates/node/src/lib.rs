//! The running database.
//!
//! A node is a pure core (`core`) in a thin shell. The core takes requests, bytes from peers and what
//! the store has done, and fills outputs; it owns no socket, file, clock or task. The `shell` here
//! drives it with tokio; the simulator (crate `mds-sim`) is another shell around the same core.
//!
//! - [`api`]: what a front-end asks and hears;
//! - [`core`]: coordinator, replica, hints, repair;
//! - [`wire`]: what nodes say to each other about data;
//! - [`store_io`]: what the core asks of the disk, and how it is carried out;
//! - [`front`]: what a protocol for clients has to offer;
//! - [`digest`]: what a replica holds, in a few numbers;
//! - [`epoch_set`]: what a replica has of one epoch of a partition, to compare by eye;
//! - [`shell`]: threads, sockets and files around it all.

pub mod api;
pub mod core;
pub mod digest;
pub mod epoch_set;
pub mod front;
pub mod shell;
pub mod store_io;
pub mod sync_io;
pub mod wire;
