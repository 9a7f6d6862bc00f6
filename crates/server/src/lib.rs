//! The binary's parts: front-ends, configuration, command line and lab.
//!
//! A node is the database of `mds-node` with two front-ends before it: [`resp`] for Redis clients
//! and [`http`] for everything else. [`serve`] starts one; [`cli`] is every command of the binary
//! `mydatastore`; [`lab`] runs a whole cluster of real processes on one machine; `bench` loads one and measures.
//!
//! Nothing here decides about data. The HTTP front-end, the one most easily tested apart, knows the
//! database only as [`database::Database`].

mod bench;
pub mod cli;
pub mod config;
pub mod database;
pub mod http;
pub mod lab;
mod profile;
pub mod resp;
pub mod serve;
