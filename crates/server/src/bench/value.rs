//! What is written: bytes that do not compress, and, for verification, a stamp that says who wrote them.
//!
//! ```text
//! checksum 8 | run 8 | key 8 | sequence 4 | length 4 | filling ...
//! ```
//!
//! The checksum (XXH3, little-endian like all numbers here) covers everything behind it. A value that was cut,
//! mixed with another, or put under another key is told apart from every value that was written.

use xxhash_rust::xxh3::xxh3_64;

use super::random::Random;

/// Bytes of a stamp: the least that a verified value has.
pub(super) const STAMP_BYTES: usize = 32;

/// Values begin at so many different places of the filling.
const PLACES: usize = 4096;

/// Who wrote a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    /// The run that wrote it: a random number.
    pub(super) run: u64,
    /// The number of the key that it was written to.
    pub(super) key: u64,
    /// Counts the writes of a run to a key; 0 is the load phase.
    pub(super) sequence: u32,
}

/// What is wrong with a value by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Damage {
    /// It has no stamp: too short.
    Short(usize),
    /// Its checksum is not that of its bytes.
    Checksum,
    /// It is not as long as it was.
    Length { is: usize, was: u32 },
}

/// Makes values.
#[derive(Clone, Debug)]
pub(super) struct Values {
    filling: Vec<u8>,
    bytes_min: usize,
    bytes_max: usize,
    random: Random,
}

impl Values {
    /// Values of lengths from `bytes_min` to `bytes_max`, all alike often.
    pub(super) fn new(bytes_min: usize, bytes_max: usize, seed: u64, thread: usize) -> Values {
        // A stream of its own, far from those of the operations: they do not depend on lengths.
        let mut random = Random::new(seed, 1 << 32 | thread as u64);
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let filling = (0..bytes_max + PLACES).map(|_| letters[random.below(64) as usize]);
        Values {
            filling: filling.collect(),
            bytes_min,
            bytes_max,
            random,
        }
    }

    /// The length of the next value.
    pub(super) fn draw_bytes(&mut self) -> usize {
        match self.bytes_max - self.bytes_min {
            0 => self.bytes_min,
            span => self.bytes_min + self.random.below(span as u64 + 1) as usize,
        }
    }

    /// Appends a value of this length, with a stamp if there is one.
    pub(super) fn append(&mut self, bytes: usize, stamp: Option<Stamp>, out: &mut Vec<u8>) {
        let place = self.random.below(PLACES as u64) as usize;
        let start = out.len();
        out.extend_from_slice(&self.filling[place..place + bytes]);
        if let Some(stamp) = stamp {
            stamp.put(&mut out[start..]);
        }
    }
}

impl Stamp {
    /// Writes the stamp over the head of a value, which has room for it.
    fn put(self, value: &mut [u8]) {
        let length = value.len() as u32;
        value[8..16].copy_from_slice(&self.run.to_le_bytes());
        value[16..24].copy_from_slice(&self.key.to_le_bytes());
        value[24..28].copy_from_slice(&self.sequence.to_le_bytes());
        value[28..32].copy_from_slice(&length.to_le_bytes());
        let checksum = xxh3_64(&value[8..]);
        value[..8].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads a value's stamp.
    ///
    /// # Errors
    /// When the value is not one that was written, whoever wrote it.
    pub(super) fn read(value: &[u8]) -> Result<Stamp, Damage> {
        if value.len() < STAMP_BYTES {
            return Err(Damage::Short(value.len()));
        }
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&value[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let (sequence, was) = (number(24) as u32, (number(24) >> 32) as u32);
        if number(0) != xxh3_64(&value[8..]) {
            // A value that was cut or lengthened says so, if its head is whole.
            return Err(match was as usize == value.len() {
                true => Damage::Checksum,
                false => Damage::Length {
                    is: value.len(),
                    was,
                },
            });
        }
        if was as usize != value.len() {
            return Err(Damage::Length {
                is: value.len(),
                was,
            });
        }
        Ok(Stamp {
            run: number(8),
            key: number(16),
            sequence,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp {
        run: u64::MAX - 5,
        key: 77,
        sequence: 3,
    };

    fn value(bytes: usize) -> Vec<u8> {
        let mut out = Vec::new();
        Values::new(bytes, bytes, 1, 0).append(bytes, Some(STAMP), &mut out);
        out
    }

    #[test]
    fn a_stamp_comes_back() {
        for bytes in [STAMP_BYTES, 100, 5_000] {
            assert_eq!(value(bytes).len(), bytes);
            assert_eq!(Stamp::read(&value(bytes)), Ok(STAMP));
        }
    }

    #[test]
    fn every_damage_is_seen() {
        let whole = value(100);
        for at in 0..100 {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(Stamp::read(&damaged).is_err(), "byte {at}");
        }
        assert_eq!(Stamp::read(&whole[..10]), Err(Damage::Short(10)));
        assert_eq!(
            Stamp::read(&whole[..99]),
            Err(Damage::Length { is: 99, was: 100 })
        );
        let filling_only = vec![b'x'; 100];
        assert!(Stamp::read(&filling_only).is_err());
    }

    #[test]
    fn lengths_are_within_their_range() {
        let mut values = Values::new(10, 12, 1, 0);
        let mut seen = [0; 3];
        for _ in 0..3_000 {
            let bytes = values.draw_bytes();
            seen[bytes - 10] += 1;
            let mut out = b"before".to_vec();
            values.append(bytes, None, &mut out);
            assert_eq!(out.len(), 6 + bytes);
        }
        assert!(seen.iter().all(|&count| count > 800), "{seen:?}");
    }
}
