//! What has to hold between and within fields, beyond their types.

use std::net::SocketAddr;

use mds_types::limits::{CLOCK_SKEW_US_MAX, MEMBER_TEXT_BYTES_MAX, VALUE_BYTES_MAX};

use super::fields::NodeConfig;
use super::value::{EngineKind, RingModeKind};

/// The shortest time after which a dead member may be removed by itself, milliseconds.
const REMOVE_AFTER_MS_MIN: u64 = 10_000;

impl NodeConfig {
    /// Checks every field against its range and its neighbours.
    ///
    /// # Errors
    /// Every problem found, each one sentence that begins with the field's name.
    pub fn validate(&self) -> Result<(), Vec<String>> {
        let mut problems = Vec::new();
        self.check_texts(&mut problems);
        self.check_addresses(&mut problems);
        self.check_numbers(&mut problems);
        if self.engine == EngineKind::Leveldb && !cfg!(feature = "engine-leveldb") {
            problems.push(
                "engine is `leveldb`, but this binary was built without it: build it with \
                 `cargo build --release --features engine-leveldb` (needs libleveldb-dev)"
                    .to_owned(),
            );
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    fn check_texts(&self, problems: &mut Vec<String>) {
        let info = self.member_info();
        for (field, text) in [
            ("name", &info.name),
            ("zone", &info.zone),
            ("resp_advertise", &info.resp_addr),
            ("http_advertise", &info.http_addr),
            ("peer_advertise", &info.peer_addr),
        ] {
            if text.len() > MEMBER_TEXT_BYTES_MAX {
                problems.push(format!(
                    "{field} is {} bytes long: at most {MEMBER_TEXT_BYTES_MAX} are allowed",
                    text.len()
                ));
            }
            if text.chars().any(char::is_control) {
                problems.push(format!("{field} contains control characters"));
            }
        }
    }

    fn check_addresses(&self, problems: &mut Vec<String>) {
        let addresses = [
            ("resp", self.resp_listen, &self.resp_advertise),
            ("http", self.http_listen, &self.http_advertise),
            ("peer", self.peer_listen, &self.peer_advertise),
        ];
        for (which, listen, advertise) in addresses {
            if advertise.is_empty() && listen.ip().is_unspecified() {
                problems.push(format!(
                    "{which}_listen is {listen}, which nobody can connect to by that name: \
                     set {which}_advertise to this host's address"
                ));
            }
            if !advertise.is_empty() && !is_host_port(advertise) {
                problems.push(format!(
                    "{which}_advertise is `{advertise}`, not `host:port`"
                ));
            }
            if listen.port() == 0 && advertise.is_empty() {
                problems.push(format!("{which}_listen has port 0: choose a port"));
            }
        }
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            let (a, b): (SocketAddr, SocketAddr) = (addresses[one].1, addresses[other].1);
            if a == b && a.port() != 0 {
                problems.push(format!(
                    "{}_listen and {}_listen are both {a}: each needs a port of its own",
                    addresses[one].0, addresses[other].0
                ));
            }
        }
        for seed in &self.seeds {
            if !is_host_port(seed) {
                problems.push(format!("seeds has `{seed}`, which is not `host:port`"));
            }
        }
    }

    fn check_numbers(&self, problems: &mut Vec<String>) {
        let value_bytes_max = VALUE_BYTES_MAX as u64;
        let skew_ms_max = CLOCK_SKEW_US_MAX / 1_000;
        let ranges: &[(&str, u64, u64, u64)] = &[
            ("weight", self.weight.into(), 0, 10_000),
            (
                "request_timeout_ms",
                self.request_timeout_ms.into(),
                1,
                600_000,
            ),
            (
                "hedge_delay_max_ms",
                self.hedge_delay_max_ms.into(),
                1,
                600_000,
            ),
            ("value_bytes_max", self.value_bytes_max, 1, value_bytes_max),
            (
                "pending_requests_max",
                self.pending_requests_max.into(),
                1,
                1 << 20,
            ),
            (
                "pending_bytes_max",
                self.pending_bytes_max,
                1 << 20,
                1 << 40,
            ),
            (
                "resp_connections_max",
                self.resp_connections_max.into(),
                1,
                1 << 20,
            ),
            (
                "http_connections_max",
                self.http_connections_max.into(),
                1,
                1 << 20,
            ),
            (
                "http_requests_max",
                self.http_requests_max.into(),
                1,
                1 << 20,
            ),
            (
                "hint_age_max_ms",
                self.hint_age_max_ms,
                1_000,
                30 * 24 * 3_600_000,
            ),
            ("gossip_probe_ms", self.gossip_probe_ms.into(), 10, 60_000),
            (
                "gossip_suspect_ms",
                self.gossip_suspect_ms.into(),
                10,
                600_000,
            ),
            (
                "raft_heartbeat_ms",
                self.raft_heartbeat_ms.into(),
                10,
                60_000,
            ),
            (
                "raft_election_timeout_ms",
                self.raft_election_timeout_ms.into(),
                50,
                600_000,
            ),
            (
                "epoch_interval_ms",
                self.epoch_interval_ms,
                100,
                7 * 24 * 3_600_000,
            ),
            (
                "scrub_interval_ms",
                self.scrub_interval_ms,
                0,
                365 * 24 * 3_600_000,
            ),
            (
                "scrub_rows_per_s",
                self.scrub_rows_per_s.into(),
                1,
                u32::MAX.into(),
            ),
            (
                "remove_after_ms",
                self.remove_after_ms,
                0,
                365 * 24 * 3_600_000,
            ),
            (
                "leave_timeout_ms",
                self.leave_timeout_ms,
                1_000,
                24 * 3_600_000,
            ),
            (
                "max_clock_skew_ms",
                self.max_clock_skew_ms,
                100,
                skew_ms_max,
            ),
        ];
        for &(field, value, least, most) in ranges {
            if value < least || value > most {
                problems.push(format!(
                    "{field} is {value}: it has to be {least} to {most}"
                ));
            }
        }
        if (1..REMOVE_AFTER_MS_MIN).contains(&self.remove_after_ms) {
            problems.push(format!(
                "remove_after_ms is {}: it has to be 0 (never) or at least {REMOVE_AFTER_MS_MIN}, so \
                 that a restart does not cost a node its place",
                self.remove_after_ms
            ));
        }
        if self.remove_after_ms > 0 && self.ring_mode == RingModeKind::Operator {
            problems.push(
                "remove_after_ms is set, but ring_mode is `operator`, in which nothing is removed by \
                 itself: set ring_mode to `auto`, or leave remove_after_ms out"
                    .to_owned(),
            );
        }
        if u64::from(self.raft_heartbeat_ms) * 3 > self.raft_election_timeout_ms.into() {
            problems.push(format!(
                "raft_election_timeout_ms is {}: it has to be at least three times \
                 raft_heartbeat_ms, which is {}",
                self.raft_election_timeout_ms, self.raft_heartbeat_ms
            ));
        }
    }
}

/// Whether a text looks like `host:port` with a port from 1 to 65535.
fn is_host_port(text: &str) -> bool {
    match text.rsplit_once(':') {
        Some((host, port)) => {
            !host.is_empty()
                && !host.contains(char::is_whitespace)
                && port.parse::<u16>().is_ok_and(|port| port != 0)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(change: impl FnOnce(&mut NodeConfig)) -> String {
        let mut config = NodeConfig::default();
        change(&mut config);
        config.validate().err().unwrap_or_default().join("; ")
    }

    #[test]
    fn the_default_is_valid() {
        assert_eq!(problems(|_| ()), "");
    }

    #[test]
    fn problems_name_the_field_and_the_way_out() {
        assert_eq!(
            problems(|config| config.http_listen = "0.0.0.0:8101".parse().unwrap()),
            "http_listen is 0.0.0.0:8101, which nobody can connect to by that name: \
             set http_advertise to this host's address"
        );
        assert_eq!(
            problems(|config| config.peer_listen = config.resp_listen),
            "resp_listen and peer_listen are both 127.0.0.1:7101: each needs a port of its own"
        );
        assert_eq!(
            problems(|config| config.value_bytes_max = 1 << 30),
            "value_bytes_max is 1073741824: it has to be 1 to 16777216"
        );
        assert_eq!(
            problems(|config| config.seeds = vec!["nowhere".to_owned()]),
            "seeds has `nowhere`, which is not `host:port`"
        );
        assert!(problems(|config| config.raft_heartbeat_ms = 900).contains("three times"));
        assert!(
            problems(|config| config.remove_after_ms = 60_000).contains("set ring_mode to `auto`")
        );
        let hasty = problems(|config| {
            config.ring_mode = RingModeKind::Auto;
            config.remove_after_ms = 1;
        });
        assert!(hasty.contains("at least 10000"), "{hasty}");
        assert!(problems(|config| config.name = "x".repeat(129)).contains("at most 128"));
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let both = problems(|config| {
            config.weight = 10_001;
            config.zone = "a\nb".to_owned();
        });
        assert!(both.contains("weight") && both.contains("zone"), "{both}");
    }
}
