//! Everything durable: the log in front of the engine, the engines, and the one door to user data.
//!
//! This is the only crate that opens files. It is blocking and knows no tasks: the node runs it on
//! threads of its own, the simulator in turns.

pub mod cell;
pub mod datadir;
pub mod disk;
pub mod engine;
pub mod frame;
pub mod hints;
pub mod keys;
pub mod pace;
pub mod runs;
pub mod store;

mod cache;
mod epoch_index;
mod error;
mod ledger;
mod log;
mod row;
mod table;

pub use disk::{Disk, DiskFile, FaultyDisk, RealDisk};
pub use engine::{Engine, EngineError, EnginePage};
pub use runs::{IndexRow, RowRange, RunInfo};
pub use store::{
    Flusher, FsyncPolicy, Lookup, Merged, Store, StoreError, StoreOptions, StoreReader, StoreStats,
};
