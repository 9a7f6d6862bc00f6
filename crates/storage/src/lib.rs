//! Everything durable: the log in front of the engine, the engines, and the one door to user data.
//!
//! This is the only crate that opens files. It is blocking and knows no tasks: the node runs it on
//! threads of its own, the simulator in turns.

pub mod disk;
pub mod engine;

pub use disk::{Disk, DiskFile};
pub use engine::{Engine, EngineError};
