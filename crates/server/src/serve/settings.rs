//! From what a person configures to what the node is started with.

use mds_cluster::control::ControlConfig;
use mds_cluster::{GossipTiming, RaftTiming, RingMode};
use mds_node::core::CoreConfig;
use mds_node::shell;
use mds_storage::hints::HintLimits;
use mds_storage::store::{FsyncPolicy as StoreFsync, StoreOptions};

use crate::config::{FsyncPolicy, NodeConfig, RingModeKind};

/// Raft's election timeout is drawn from once to this many times the configured one.
const ELECTION_SPREAD: u64 = 2;

/// The node's settings. `seed` is entropy for gossip and Raft.
pub(super) fn of(config: &NodeConfig, seed: u64) -> shell::NodeConfig {
    let value_bytes_max = size(config.value_bytes_max);
    let hedge_us_max = u64::from(config.hedge_delay_max_ms) * 1_000;
    let core = CoreConfig::default();
    shell::NodeConfig {
        data_dir: config.data_dir.clone(),
        engine: config.engine.to_string(),
        store: StoreOptions {
            fsync: match config.fsync {
                FsyncPolicy::Always => StoreFsync::Always,
                FsyncPolicy::IntervalMs(ms) => StoreFsync::Interval { ms },
                FsyncPolicy::Os => StoreFsync::Os,
            },
            cache_bytes_max: size(config.cache_bytes_max),
            value_bytes_max,
            ..StoreOptions::default()
        },
        hints: HintLimits {
            bytes_per_target_max: config.hint_bytes_max,
            age_ms_max: config.hint_age_max_ms,
        },
        core: CoreConfig {
            request_timeout_ms: config.request_timeout_ms,
            hedge_us_min: core.hedge_us_min.min(hedge_us_max),
            hedge_us_max,
            pending_max: config.pending_requests_max as usize,
            pending_bytes_max: size(config.pending_bytes_max),
            value_bytes_max,
            clock_skew_us_max: config.max_clock_skew_ms * 1_000,
            scrub_interval_ms: config.scrub_interval_ms,
            scrub_rows_per_s: config.scrub_rows_per_s,
        },
        control: ControlConfig {
            info: config.member_info(),
            seeds: config.seeds.clone(),
            raft: RaftTiming {
                heartbeat_ms: config.raft_heartbeat_ms.into(),
                election_min_ms: config.raft_election_timeout_ms.into(),
                election_max_ms: u64::from(config.raft_election_timeout_ms) * ELECTION_SPREAD,
                ..RaftTiming::default()
            },
            gossip: GossipTiming {
                probe_ms: config.gossip_probe_ms.into(),
                suspect_ms: config.gossip_suspect_ms.into(),
                ..GossipTiming::default()
            },
            epoch_interval_ms: Some(config.epoch_interval_ms),
            seed,
            auto_add_members: true,
            ring_mode: ring_mode(config),
        },
        resp_listen: config.resp_listen.to_string(),
        peer_listen: config.peer_listen.to_string(),
        clients_max: config.resp_connections_max as usize,
    }
}

fn ring_mode(config: &NodeConfig) -> RingMode {
    match config.ring_mode {
        RingModeKind::Operator => RingMode::Operator,
        RingModeKind::Auto => RingMode::Auto {
            remove_after_ms: (config.remove_after_ms > 0).then_some(config.remove_after_ms),
        },
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_changes_the_ring_is_as_configured() {
        let mut config = NodeConfig::default();
        assert_eq!(of(&config, 1).control.ring_mode, RingMode::Operator);
        config.ring_mode = RingModeKind::Auto;
        let mode = |config: &NodeConfig| of(config, 1).control.ring_mode;
        let remove_after_ms = None;
        assert_eq!(mode(&config), RingMode::Auto { remove_after_ms });
        config.remove_after_ms = 60_000;
        let remove_after_ms = Some(60_000);
        assert_eq!(mode(&config), RingMode::Auto { remove_after_ms });
    }

    #[test]
    fn the_defaults_are_the_nodes_own() {
        let settings = of(&NodeConfig::default(), 1);
        let core = CoreConfig::default();
        assert_eq!(settings.core.request_timeout_ms, core.request_timeout_ms);
        assert_eq!(settings.core.hedge_us_max, core.hedge_us_max);
        assert_eq!(settings.core.pending_max, core.pending_max);
        assert_eq!(settings.core.pending_bytes_max, core.pending_bytes_max);
        assert_eq!(settings.core.clock_skew_us_max, core.clock_skew_us_max);
        assert_eq!(settings.core.scrub_interval_ms, core.scrub_interval_ms);
        assert_eq!(settings.core.scrub_rows_per_s, core.scrub_rows_per_s);
        let raft = RaftTiming::default();
        assert_eq!(settings.control.raft.heartbeat_ms, raft.heartbeat_ms);
        assert_eq!(settings.control.raft.election_min_ms, raft.election_min_ms);
        assert_eq!(settings.control.raft.election_max_ms, raft.election_max_ms);
        let gossip = GossipTiming::default();
        assert_eq!(settings.control.gossip.probe_ms, gossip.probe_ms);
        assert_eq!(settings.control.gossip.suspect_ms, gossip.suspect_ms);
        let hints = HintLimits::default();
        assert_eq!(
            settings.hints.bytes_per_target_max,
            hints.bytes_per_target_max
        );
        assert_eq!(settings.hints.age_ms_max, hints.age_ms_max);
    }
}
