//! How gossip is tuned.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::PeriodicParams;

use super::{DATAGRAM_BYTES_MAX, PREFIX_BYTES};

/// Gossip's clocks, in milliseconds. All nodes of a cluster should have the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GossipTiming {
    /// One random peer is probed this often.
    pub probe_ms: u64,
    /// A probe without an answer for this long is repeated through others.
    pub probe_rtt_ms: u64,
    /// A suspected peer is held for dead after this long.
    pub suspect_ms: u64,
    /// News is spread this often, while there is any.
    pub spread_ms: u64,
    /// Peers that are down are tried this often: that heals partitions.
    pub retry_down_ms: u64,
    /// Seeds are knocked at this often while nobody is known.
    pub seed_ms: u64,
    /// A dead peer is forgotten after this long.
    pub forget_ms: u64,
}

impl Default for GossipTiming {
    fn default() -> Self {
        GossipTiming {
            probe_ms: 1_000,
            probe_rtt_ms: 300,
            suspect_ms: 2_500,
            spread_ms: 200,
            retry_down_ms: 3_000,
            seed_ms: 1_000,
            forget_ms: 24 * 60 * 60 * 1_000,
        }
    }
}

impl GossipTiming {
    pub(super) fn config(&self) -> foca::Config {
        let ms = Duration::from_millis;
        let count = |n: usize| NonZeroUsize::new(n).unwrap_or(NonZeroUsize::MIN);
        let every = |frequency_ms: u64, members: usize| {
            Some(PeriodicParams {
                frequency: ms(frequency_ms),
                num_members: count(members),
            })
        };
        foca::Config {
            probe_period: ms(self.probe_ms),
            // Foca needs the indirect probe to come before the next direct one.
            probe_rtt: ms(self.probe_rtt_ms.min(self.probe_ms / 2)),
            num_indirect_probes: count(3),
            max_transmissions: NonZeroU8::new(10).unwrap_or(NonZeroU8::MIN),
            suspect_to_down_after: ms(self.suspect_ms),
            remove_down_after: Some(ms(self.forget_ms)),
            max_packet_size: count(DATAGRAM_BYTES_MAX - PREFIX_BYTES),
            notify_down_members: true,
            periodic_announce: every(30 * self.probe_ms, 1),
            periodic_announce_to_down_members: every(self.retry_down_ms, 3),
            periodic_gossip: every(self.spread_ms, 3),
        }
    }
}
