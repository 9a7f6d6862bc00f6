//! The cost of giving a partition to a member: weighted rendezvous hashing without floating point.
//!
//! With `u` uniform in (0, 1), `-log2(u) / weight` is exponentially distributed with a rate
//! proportional to the weight, and the least of several such numbers is each one's with a
//! probability proportional to its weight. The logarithm is computed bit by bit in integers, so
//! that every machine and compiler gets the same.

use mds_types::NodeId;
use xxhash_rust::xxh3::xxh3_64;

/// Bits after the point of the fixed-point logarithm.
const FRACTION_BITS: u32 = 24;

/// The cost of `partition` at `node`; lower is better. `weight` is at least 1.
pub(super) fn cost(partition: u16, node: NodeId, weight: u32) -> u64 {
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&partition.to_le_bytes());
    bytes[2..].copy_from_slice(&node.0.to_le_bytes());
    let hash = xxh3_64(&bytes).max(1);
    let surprise = (64 << FRACTION_BITS) - log2_fixed(hash);
    (surprise << 32) / u64::from(weight.max(1))
}

/// `floor(log2(x) * 2^FRACTION_BITS)`, up to an error in the last bits that is the same everywhere.
/// `x` is at least 1.
fn log2_fixed(x: u64) -> u64 {
    let whole = x.ilog2();
    // The mantissa in [1, 2) with 31 bits after the point; squaring it doubles its logarithm, whose
    // whole part is the next bit.
    let mut mantissa = (x << (63 - whole)) >> 32;
    let mut result = u64::from(whole);
    for _ in 0..FRACTION_BITS {
        mantissa = (mantissa * mantissa) >> 31;
        let bit = mantissa >> 32;
        mantissa >>= bit;
        result = result << 1 | bit;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn powers_of_two_are_exact() {
        for bits in 0..64 {
            assert_eq!(log2_fixed(1 << bits), bits << FRACTION_BITS);
        }
        assert!(log2_fixed(u64::MAX) < 64 << FRACTION_BITS);
    }

    proptest! {
        #[test]
        fn the_logarithm_is_right(x in 1u64..) {
            let got = log2_fixed(x) as f64 / f64::from(1u32 << FRACTION_BITS);
            prop_assert!((got - (x as f64).log2()).abs() < 1e-5);
        }

        #[test]
        fn more_weight_never_costs_more(partition: u16, node: u64, weight in 1u32..1_000_000) {
            let node = NodeId(node);
            prop_assert!(cost(partition, node, weight + 1) <= cost(partition, node, weight));
        }
    }
}
