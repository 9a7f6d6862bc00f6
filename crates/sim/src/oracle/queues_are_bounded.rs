//! **What waits in a node is bounded: operations, bytes of writes, merges for the store, hints for it,
//! and bytes for each peer, whoever is slow or away.**
//!
//! Each queue has a limit with a name in the core. Simulated nodes have small limits for operations and
//! bytes of writes, so that these are reached and refusals happen; the others are the real ones.

use mds_node::core::{
    CoreConfig, CoreStats, HINT_BACKLOG_BYTES_MAX, LINK_BACKLOG_BYTES_MAX, STORE_BACKLOG_MAX,
};
use mds_types::limits::KEY_BYTES_MAX;

use super::Broken;
use crate::under_hood::SCRUB_INTERVAL_MS;

const INVARIANT: &str = "queues stay within their limits";

/// Requests that a simulated node takes at a time.
pub(crate) const PENDING_MAX: usize = 32;

/// And bytes of writes among them.
pub(crate) const PENDING_BYTES_MAX: usize = 192 * 1024;

/// Deliveries of hints come on top of what clients asked: one for each other node, at most.
const DELIVERIES_MAX: u64 = 8;

/// What a record has besides its key and value, bytes; and some to spare.
const RECORD_HEADER_BYTES: usize = 64;

/// The limits of simulated nodes.
pub(crate) fn limits() -> CoreConfig {
    CoreConfig {
        pending_max: PENDING_MAX,
        pending_bytes_max: PENDING_BYTES_MAX,
        scrub_interval_ms: SCRUB_INTERVAL_MS,
        ..CoreConfig::default()
    }
}

/// Looks at what waits in a node.
pub(crate) fn check(node: usize, stats: &CoreStats) -> Option<Broken> {
    let pending_max = PENDING_MAX as u64 + DELIVERIES_MAX;
    // A write is admitted by its value; what is kept of it is a little longer.
    let pending_bytes_max = PENDING_BYTES_MAX + KEY_BYTES_MAX + RECORD_HEADER_BYTES;
    // A reply that is short passes a full link until it is twice as full.
    let link_bytes_max = 2 * LINK_BACKLOG_BYTES_MAX as u64;
    let gauges = [
        ("operations", stats.pending, pending_max),
        (
            "bytes of writes",
            stats.pending_bytes,
            pending_bytes_max as u64,
        ),
        (
            "merges for the store",
            stats.store_backlog,
            STORE_BACKLOG_MAX as u64,
        ),
        (
            "bytes of hints",
            stats.hint_backlog_bytes,
            HINT_BACKLOG_BYTES_MAX as u64,
        ),
        ("bytes for a peer", stats.link_backlog_bytes, link_bytes_max),
    ];
    let (what, is, most) = gauges.into_iter().find(|(_, is, most)| is > most)?;
    let detail = format!("{is} {what} wait in node {}, and {most} may", node + 1);
    Some((INVARIANT, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_beyond_its_limit_is_seen() {
        let mut stats = CoreStats::default();
        assert_eq!(check(0, &stats), None);
        stats.pending = PENDING_MAX as u64;
        assert_eq!(check(0, &stats), None);
        stats.pending = 2 * PENDING_MAX as u64;
        let (_, detail) = check(0, &stats).unwrap();
        assert_eq!(detail, "64 operations wait in node 1, and 40 may");
        stats.pending = 0;
        stats.link_backlog_bytes = u64::MAX;
        assert!(check(0, &stats).is_some());
    }
}
