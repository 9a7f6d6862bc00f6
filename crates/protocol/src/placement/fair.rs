//! The fair share of each member: how many partitions it would hold if they could be cut at will.
//!
//! Shares are proportional to weights within bounds: a member holds a partition at most once; with
//! at least N zones a zone holds it at most once, with fewer at least once. The shares are found by
//! raising one water level until everything is placed: a member holds `level x weight`, cut at its
//! bound, and a zone that runs into one of its bounds gets a level of its own.
//!
//! Levels have 64 bits after the point. Every exact share is a fraction whose denominator is a sum
//! of weights, below 2^30 (`WEIGHT_MAX` times the most members), while rounding is far below 2^-40:
//! so whether a share is whole can be told exactly.

use super::Ring;

/// Bits after the point.
const POINT: u32 = 64;
/// A share this little above a whole number is that number.
const ROUNDING: u128 = 1 << (POINT - 31);

/// A number of partitions, in fixed point.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Share {
    fixed: u128,
    /// The partition count: nobody can hold more.
    most: u32,
}

impl Share {
    fn ceil(self) -> u32 {
        // At most the partition count, so it fits.
        ((self.fixed.saturating_sub(ROUNDING) + ((1 << POINT) - 1)) >> POINT) as u32
    }

    /// The most partitions a member with this share is given: an eighth more than is fair. A
    /// tighter limit moves more when the ring changes (at 1/20, up to half as much again; at 1/8,
    /// up to a quarter), a looser one makes the busiest member the cluster's bottleneck.
    pub(super) fn limit(self) -> u32 {
        let eighth_more = (((self.fixed + ROUNDING) * 9 / 8) >> POINT) as u32;
        eighth_more.max(self.ceil()).min(self.most)
    }

    /// In thousandths of a partition, rounded up.
    pub(super) fn milli(self) -> u64 {
        ((self.fixed.saturating_sub(ROUNDING) * 1_000 + ((1 << POINT) - 1)) >> POINT) as u64
    }
}

/// What the members of a zone hold at a water level.
fn held_at(level: u128, weights: &[u32], most: u128) -> u128 {
    weights
        .iter()
        .map(|&weight| (level * u128::from(weight)).min(most))
        .sum()
}

/// The lowest level at which `holds_enough`; it is monotone, and true at `highest`.
fn lowest_level(highest: u128, holds_enough: impl Fn(u128) -> bool) -> u128 {
    let (mut low, mut high) = (0, highest);
    while low < high {
        let middle = low + (high - low) / 2;
        if holds_enough(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

/// The fair share of every member of the ring.
pub(super) fn shares(ring: &Ring) -> Vec<Share> {
    let most = u128::from(ring.partition_count) << POINT;
    let total = most * ring.replicas_each as u128;
    let (zone_least, zone_most) = if ring.zone_count >= ring.replicas_each {
        (0, most)
    } else {
        (
            most,
            most * (ring.replicas_each - ring.zone_count + 1) as u128,
        )
    };
    let mut zones: Vec<Vec<u32>> = vec![Vec::new(); ring.zone_count];
    for (&weight, &zone) in ring.weights.iter().zip(&ring.zone_of) {
        zones[usize::from(zone)].push(weight);
    }

    let quota = |level, weights: &[u32]| held_at(level, weights, most).clamp(zone_least, zone_most);
    // At the highest level everybody holds everything that the bounds allow, which is enough: with
    // Z < N zones, one zone of N - Z + 1 members suffices beside one member in each other, and
    // without such a zone all members together are too few for N anyway.
    let level = lowest_level(most, |level| {
        zones.iter().map(|zone| quota(level, zone)).sum::<u128>() >= total
    });
    let zone_levels: Vec<u128> = zones
        .iter()
        .map(|zone| {
            let held = held_at(level, zone, most);
            let target = quota(level, zone);
            if held == target {
                return level;
            }
            lowest_level(most, |own| held_at(own, zone, most) >= target)
        })
        .collect();
    ring.weights
        .iter()
        .zip(&ring.zone_of)
        .map(|(&weight, &zone)| Share {
            fixed: (zone_levels[usize::from(zone)] * u128::from(weight)).min(most),
            most: u32::from(ring.partition_count),
        })
        .collect()
}
