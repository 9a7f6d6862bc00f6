//! What the core counts. Plain numbers, owned by the core and copied out whole: nothing on the data
//! path takes a lock or an atomic to count.

use super::ScrubStats;

/// Latency buckets: bucket `i` counts operations of less than `2^i * 16` microseconds; the last also
/// everything slower.
pub const LATENCY_BUCKETS: usize = 20;

/// A histogram of latencies with power-of-two bounds, from 16 us to 8 s.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LatencyHistogram {
    /// Operations per bucket (not cumulative).
    pub buckets: [u64; LATENCY_BUCKETS],
    /// Sum of all latencies, microseconds.
    pub sum_us: u64,
}

impl LatencyHistogram {
    pub(crate) fn record(&mut self, latency_ns: u64) {
        let latency_us = latency_ns / 1_000;
        let index = (64 - (latency_us / 16).leading_zeros()) as usize;
        self.buckets[index.min(LATENCY_BUCKETS - 1)] += 1;
        self.sum_us += latency_us;
    }

    /// Upper bound of a bucket, microseconds; none for the last.
    pub fn bound_us(index: usize) -> Option<u64> {
        (index + 1 < LATENCY_BUCKETS).then(|| 16 << index)
    }

    /// Operations recorded.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// Requests of one kind, by how they ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcomes {
    /// Succeeded.
    pub ok: u64,
    /// Refused as wrong or too large.
    pub refused: u64,
    /// Too few replicas; nothing done.
    pub unavailable: u64,
    /// Shed by this node or its replicas; nothing done.
    pub overloaded: u64,
    /// This node was not serving.
    pub not_ready: u64,
    /// Ended without certainty: outcome unknown, or a read that timed out.
    pub uncertain: u64,
    /// From request to answer, successes only.
    pub latency: LatencyHistogram,
}

/// Counters and gauges of the core.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CoreStats {
    /// Get requests.
    pub gets: Outcomes,
    /// Put requests.
    pub puts: Outcomes,
    /// Delete requests.
    pub deletes: Outcomes,
    /// Scan and count requests.
    pub scans: Outcomes,
    /// Operations in flight as coordinator.
    pub pending: u64,
    /// Bytes of records among them.
    pub pending_bytes: u64,
    /// Records this node was asked to store, as a replica.
    pub replica_puts: u64,
    /// Reads this node answered, as a replica.
    pub replica_gets: u64,
    /// Requests refused, as a replica.
    pub replica_refusals: u64,
    /// Reads that asked a further replica because one was slow.
    pub hedges: u64,
    /// Reads that found replicas to disagree.
    pub disagreements: u64,
    /// Records sent to replicas that were behind.
    pub repairs: u64,
    /// Writes kept for replicas that missed them.
    pub hints_stored: u64,
    /// Hints that no room was left for.
    pub hints_dropped: u64,
    /// Hints whose replica is on no ring any more.
    pub hints_obsolete: u64,
    /// Hints that their replica has acknowledged.
    pub hints_delivered: u64,
    /// Hints waiting on disk now.
    pub hints_pending: u64,
    /// Stamps refused because they lie too far in the future: somebody's clock is wrong.
    pub clock_skew_refusals: u64,
    /// Replies that found their link gone or full.
    pub replies_dropped: u64,
    /// Merges handed to the store and not answered yet.
    pub store_backlog: u64,
    /// Bytes of hints on their way to the store.
    pub hint_backlog_bytes: u64,
    /// Unsent bytes of the link that has most of them.
    pub link_backlog_bytes: u64,
    /// What the slow rebuild has looked at, found and cost.
    pub scrub: ScrubStats,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_their_bucket() {
        let mut histogram = LatencyHistogram::default();
        for (latency_us, bucket) in [
            (0, 0),
            (15, 0),
            (16, 1),
            (31, 1),
            (32, 2),
            (u64::MAX / 2_000, 19),
        ] {
            let before = histogram.buckets[bucket];
            histogram.record(latency_us * 1_000);
            assert_eq!(histogram.buckets[bucket], before + 1, "{latency_us} us");
            if let Some(bound_us) = LatencyHistogram::bound_us(bucket) {
                assert!(latency_us < bound_us);
            }
        }
        assert_eq!(histogram.count(), 6);
    }
}
