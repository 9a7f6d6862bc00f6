//! Which key an operation is about: the distributions of YCSB, and one hot key.
//!
//! A key is a number; its bytes are a prefix and the number in decimal, with leading zeros (`key:000000000042`, the
//! form that `redis-benchmark -r` uses). Numbers need no scrambling to spread hot keys: the database places keys by
//! a hash of their bytes.
//!
//! Zipfian numbers are drawn by rejection-inversion (Hörmann, Derflinger: *Rejection-inversion to generate variates
//! from monotone discrete distributions*, ACM TOMACS 1996): exact, no table, no set-up that grows with the number of
//! keys. YCSB's own generator approximates the same distribution.

use std::fmt;
use std::str::FromStr;

use super::random::Random;

/// The exponent of YCSB: key i gets a share in proportion to 1 / i^0.99.
pub(super) const ZIPF_EXPONENT: f64 = 0.99;

/// How keys are chosen.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Distribution {
    /// All keys alike.
    Uniform,
    /// A few keys often, most keys seldom; key 0 the most.
    Zipfian,
    /// The same, counted back from the newest key.
    Latest,
    /// This share of all operations at one single key, the others uniform.
    Hot(f64),
}

impl FromStr for Distribution {
    type Err = String;

    fn from_str(text: &str) -> Result<Distribution, String> {
        let hot = || {
            let share: f64 = text.strip_prefix("hot:")?.parse().ok()?;
            (0.0..=1.0)
                .contains(&share)
                .then_some(Distribution::Hot(share))
        };
        match text {
            "uniform" => Ok(Distribution::Uniform),
            "zipfian" => Ok(Distribution::Zipfian),
            "latest" => Ok(Distribution::Latest),
            _ => hot().ok_or_else(|| {
                "expected uniform, zipfian, latest, or hot:SHARE with a share from 0 to 1"
                    .to_owned()
            }),
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Distribution::Uniform => f.write_str("uniform"),
            Distribution::Zipfian => f.write_str("zipfian"),
            Distribution::Latest => f.write_str("latest"),
            Distribution::Hot(share) => write!(f, "hot:{share}"),
        }
    }
}

/// Draws keys.
#[derive(Clone, Debug)]
pub(super) struct Chooser {
    distribution: Distribution,
    keys: u64,
    zipf: Zipf,
}

impl Chooser {
    /// Among this many keys, at least 1.
    pub(super) fn new(distribution: Distribution, keys: u64) -> Chooser {
        Chooser {
            distribution,
            keys,
            zipf: Zipf::new(keys, ZIPF_EXPONENT),
        }
    }

    /// A key below the number of keys; for [`Distribution::Latest`], how many keys before the newest it is.
    pub(super) fn draw(&self, random: &mut Random) -> u64 {
        match self.distribution {
            Distribution::Uniform => random.below(self.keys),
            Distribution::Zipfian | Distribution::Latest => self.zipf.draw(random) - 1,
            Distribution::Hot(share) if random.fraction() < share => 0,
            Distribution::Hot(_) => random.below(self.keys),
        }
    }
}

/// Zipf's distribution over 1 to n.
#[derive(Clone, Debug)]
struct Zipf {
    n: f64,
    exponent: f64,
    /// The integral of the hat function up to 1.5, less the first rectangle.
    low: f64,
    /// The same up to n + 0.5.
    high: f64,
    /// Points so near below an integer are accepted without a further look.
    shortcut: f64,
}

impl Zipf {
    fn new(n: u64, exponent: f64) -> Zipf {
        let n = n as f64;
        let mut zipf = Zipf {
            n,
            exponent,
            low: 0.0,
            high: 0.0,
            shortcut: 0.0,
        };
        zipf.low = zipf.integral(1.5) - 1.0;
        zipf.high = zipf.integral(n + 0.5);
        zipf.shortcut = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.density(2.0));
        zipf
    }

    fn draw(&self, random: &mut Random) -> u64 {
        loop {
            let area = self.high + random.fraction() * (self.low - self.high);
            let point = self.inverse(area);
            let number = (point + 0.5).floor().clamp(1.0, self.n);
            if number - point <= self.shortcut
                || area >= self.integral(number + 0.5) - self.density(number)
            {
                return number as u64;
            }
        }
    }

    fn density(&self, x: f64) -> f64 {
        (-self.exponent * x.ln()).exp()
    }

    /// Of the density; the exponent is never 1 here.
    fn integral(&self, x: f64) -> f64 {
        let one_less = 1.0 - self.exponent;
        ((one_less * x.ln()).exp() - 1.0) / one_less
    }

    fn inverse(&self, area: f64) -> f64 {
        let one_less = 1.0 - self.exponent;
        // Rounding may take it a little below -1.
        let scaled = (area * one_less).max(-1.0);
        ((1.0 + scaled).ln() / one_less).exp()
    }
}

/// How a key's number becomes its bytes.
#[derive(Clone, Debug)]
pub(super) struct KeyForm {
    prefix: Vec<u8>,
    bytes: usize,
}

/// Digits of the largest number there is.
const DIGITS_MAX: usize = 20;

impl KeyForm {
    /// Keys of so many bytes, the prefix included, with numbers below `numbers`.
    ///
    /// # Errors
    /// When the numbers need more digits than there is room for.
    pub(super) fn new(prefix: &str, bytes: usize, numbers: u64) -> Result<KeyForm, String> {
        let digits = numbers.saturating_sub(1).to_string().len();
        if prefix.len() + digits > bytes {
            return Err(format!(
                "keys of {bytes} bytes have no room for the prefix `{prefix}` and {digits} digits: \
                 raise --key-bytes, or shorten --key-prefix"
            ));
        }
        Ok(KeyForm {
            prefix: prefix.as_bytes().to_vec(),
            bytes,
        })
    }

    /// Bytes of each key.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes a key's bytes over `key`, whose length is kept at [`bytes`](KeyForm::bytes).
    pub(super) fn write(&self, number: u64, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(&self.prefix);
        key.resize(self.bytes, b'0');
        let mut rest = number;
        let last_digits = key[self.prefix.len()..].iter_mut().rev().take(DIGITS_MAX);
        for digit in last_digits {
            if rest == 0 {
                break;
            }
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }

    /// A key for people.
    pub(super) fn text(&self, number: u64) -> String {
        let mut key = Vec::new();
        self.write(number, &mut key);
        String::from_utf8_lossy(&key).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: usize = 200_000;

    fn shares(distribution: Distribution, keys: u64) -> Vec<f64> {
        let chooser = Chooser::new(distribution, keys);
        let mut random = Random::new(11, 0);
        let mut counts = vec![0u32; keys as usize];
        for _ in 0..DRAWS {
            counts[chooser.draw(&mut random) as usize] += 1;
        }
        counts
            .iter()
            .map(|&count| f64::from(count) / DRAWS as f64)
            .collect()
    }

    #[test]
    fn uniform_is_flat() {
        for share in shares(Distribution::Uniform, 20) {
            assert!((share - 0.05).abs() < 0.003, "{share}");
        }
    }

    #[test]
    fn zipfian_shares_are_those_of_the_formula() {
        for keys in [1, 2, 10, 1_000] {
            let weights = (1..=keys).map(|rank| (rank as f64).powf(-ZIPF_EXPONENT));
            let sum: f64 = weights.clone().sum();
            let found = shares(Distribution::Zipfian, keys);
            for (rank, (weight, found)) in weights.zip(found).enumerate().take(20) {
                let expected = weight / sum;
                let error = (expected * (1.0 - expected) / DRAWS as f64).sqrt();
                let off = (found - expected).abs();
                assert!(
                    off <= 5.0 * error,
                    "{keys} keys, rank {rank}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn a_hot_key_gets_its_share() {
        let shares = shares(Distribution::Hot(0.5), 100);
        assert!((shares[0] - 0.505).abs() < 0.01, "{}", shares[0]);
        assert!((shares[1] - 0.005).abs() < 0.002, "{}", shares[1]);
    }

    #[test]
    fn huge_key_spaces_need_no_set_up_and_stay_in_bounds() {
        let chooser = Chooser::new(Distribution::Zipfian, 1 << 40);
        let mut random = Random::new(3, 0);
        assert!((0..10_000).all(|_| chooser.draw(&mut random) < 1 << 40));
    }

    #[test]
    fn distributions_are_named() {
        for text in ["uniform", "zipfian", "latest", "hot:0.25"] {
            let parsed: Distribution = text.parse().unwrap();
            assert_eq!(parsed.to_string(), text);
        }
        for text in ["", "zipf", "hot", "hot:", "hot:1.5", "hot:-1", "hot:NaN"] {
            assert!(text.parse::<Distribution>().is_err(), "{text}");
        }
    }

    #[test]
    fn keys_look_like_those_of_redis_benchmark() {
        let form = KeyForm::new("key:", 16, 1_000_000).unwrap();
        assert_eq!(form.text(42), "key:000000000042");
        assert_eq!(form.text(0), "key:000000000000");
        assert_eq!(form.bytes(), 16);
        let long = KeyForm::new("k", 40, u64::MAX).unwrap();
        assert_eq!(
            long.text(u64::MAX),
            format!("k{}{}", "0".repeat(19), u64::MAX)
        );
        assert!(KeyForm::new("key:", 6, 101).is_err());
        assert!(KeyForm::new("key:", 6, 100).is_ok());
    }
}
