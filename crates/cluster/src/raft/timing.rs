//! How Raft is tuned.

use std::sync::Arc;

use mds_types::mutation::{Mutation, is_on};
use openraft::{Config, ConfigError, SnapshotPolicy};

/// Entries after which the state is written as a snapshot and the log before it is forgotten.
const SNAPSHOT_EVERY_ENTRIES: u64 = 512;

/// Entries kept behind a snapshot, so that a node that was away briefly needs no snapshot.
const LOG_KEPT_ENTRIES: u64 = 128;

/// Entries in one message at most; a command is at most some hundred kilobytes (the birth of a
/// cluster of 1024 nodes), normally some hundred bytes.
const APPEND_ENTRIES_MAX: u64 = 64;

/// How long one attempt to send and install a snapshot may take, in milliseconds.
const SNAPSHOT_TIMEOUT_MS: u64 = 2_000;

/// Raft's clocks. All nodes of a cluster should have the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RaftTiming {
    /// A leader says that it lives this often, in milliseconds.
    pub heartbeat_ms: u64,
    /// A follower that hears nothing for this long, at least, asks for votes, in milliseconds.
    pub election_min_ms: u64,
    /// At most, in milliseconds. Each node draws its own time in between.
    pub election_max_ms: u64,
    /// Entries between snapshots.
    pub snapshot_every_entries: u64,
}

impl Default for RaftTiming {
    fn default() -> Self {
        RaftTiming {
            heartbeat_ms: 100,
            election_min_ms: 400,
            election_max_ms: 800,
            snapshot_every_entries: SNAPSHOT_EVERY_ENTRIES,
        }
    }
}

impl RaftTiming {
    /// The configuration that Raft is started with.
    ///
    /// # Errors
    /// If the times contradict each other.
    pub(crate) fn config(&self) -> Result<Arc<Config>, ConfigError> {
        let config = Config {
            cluster_name: "mydatastore".to_owned(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
            max_payload_entries: APPEND_ENTRIES_MAX,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every_entries),
            max_in_snapshot_log_to_keep: LOG_KEPT_ENTRIES.min(self.snapshot_every_entries),
            // Safety: a leader sends entries before its own sync. Restored without an election
            // after a power loss, it would use the same (term, index) for other entries, which
            // followers could not tell apart.
            enable_leader_restore: Some(is_on(Mutation::LeaderRestored)),
            enable_pre_vote: Some(true),
            allow_log_reversion: Some(false),
            ..Config::default()
        };
        Ok(Arc::new(config.validate()?))
    }
}
