//! What one node is told: addresses, paths, limits, timings.
//!
//! There are two configurations. The *cluster's* (partitions, N, R, W) is agreed once by
//! `mydatastore init` and the same everywhere; it is not here. The *node's* is this one, and free to
//! differ from node to node.
//!
//! Every field is declared once, in [`NodeConfig`]'s table, with its meaning, unit, default and what
//! breaks when it is wrong. From that one line come the command-line flag (`--data-dir`), the
//! environment variable (`MYDATASTORE_DATA_DIR`), the TOML key (`data_dir`) and the line that
//! `mydatastore config` prints. A flag is stronger than the environment, that than the file, that
//! than the default. Unknown TOML keys are errors: a typo must not silently become a default.

mod fields;
mod flags;
mod sources;
mod validate;
mod value;

pub use fields::{FIELDS, Field, NodeConfig};
pub use flags::ConfigFlags;
pub use sources::{ConfigError, Effective, Origin};
pub use value::{ConfigValue, EngineKind, FsyncPolicy, LogFormat, OnRemoved, OnStop, RingModeKind};

/// What the environment variable of a field begins with.
pub const ENV_PREFIX: &str = "MYDATASTORE_";

/// Names the TOML file when no `--config` does.
pub const ENV_CONFIG_FILE: &str = "MYDATASTORE_CONFIG";
