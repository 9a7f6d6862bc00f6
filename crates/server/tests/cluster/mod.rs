//! A cluster of real processes for tests: the lab that runs it, clients and writers that check it.

// Each test program uses a part of it, and its helpers may fail like the test itself.
#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod client;
#[path = "../../../storage/tests/faulty_disk/mod.rs"]
pub(crate) mod faulty_disk;
pub(crate) mod lab;
pub(crate) mod load;
