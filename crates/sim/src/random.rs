//! The only source of randomness of a run.
//!
//! SplitMix64 (Steele, Lea, Flood: *Fast Splittable Pseudorandom Number Generators*, OOPSLA 2014),
//! written out here so that a seed means the same run after every upgrade of a dependency. Each
//! part of a run (a node, a client, the network, the schedule) draws from a generator of its own,
//! split off by a name, so that a further draw in one part does not shift all the others.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// One chance in this many: rates are given in parts per million.
const PPM: u32 = 1_000_000;

/// A seeded generator.
#[derive(Clone, Debug)]
pub struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    /// The generator of this seed.
    pub fn new(seed: u64) -> Random {
        Random { seed, state: seed }
    }

    /// A generator for a part of the run. Depends on the seed and the name alone, not on what was
    /// drawn before.
    pub fn part(&self, name: &str, index: usize) -> Random {
        let seed = xxh3_64_with_seed(name.as_bytes(), self.seed);
        Random::new(xxh3_64_with_seed(&index.to_le_bytes(), seed))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The next 128 bits.
    pub fn bits_128(&mut self) -> u128 {
        u128::from(self.bits()) << 64 | u128::from(self.bits())
    }

    /// A number in `0..bound`; zero if the bound is.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in `from..=to`.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from) + 1)
    }

    /// An index into something of this length, which is at least 1.
    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// True with this chance.
    pub fn chance(&mut self, ppm: u32) -> bool {
        // Rates of zero draw nothing, so that switching a fault off costs no randomness.
        ppm > 0 && self.below(u64::from(PPM)) < u64::from(ppm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_means_the_same_for_ever() {
        let mut random = Random::new(0);
        // The reference values of SplitMix64.
        assert_eq!(random.bits(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.bits(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn parts_do_not_depend_on_what_was_drawn() {
        let mut random = Random::new(7);
        let before = random.part("node", 1).bits();
        random.bits();
        assert_eq!(random.part("node", 1).bits(), before);
        assert_ne!(random.part("node", 2).bits(), before);
        assert_ne!(random.part("client", 1).bits(), before);
    }

    #[test]
    fn bounds_hold() {
        let mut random = Random::new(3);
        for _ in 0..1_000 {
            assert!((5..=9).contains(&random.between(5, 9)));
            assert!(!random.chance(0));
            assert!(random.chance(PPM));
        }
        assert_eq!(random.below(0), 0);
    }
}
