//! Numbers a node reports about itself, as data: `/metrics` and `/v1/status` show the same ones.

/// One number, with the name that metrics systems know it by.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// Without the `mydatastore_` before it, and without a counter's `_total` behind it. Samples of
    /// one name follow one another.
    pub name: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// Bounded in number: never a key, a client or an epoch.
    pub labels: Vec<(&'static str, String)>,
    /// The number.
    pub reading: Reading,
}

/// A number of some kind.
#[derive(Clone, PartialEq, Debug)]
pub enum Reading {
    /// Only grows.
    Counter(u64),
    /// Goes up and down.
    Gauge(f64),
    /// How many fell below which bound.
    Histogram {
        /// Upper bound and how many fell below it and not below the one before. The last bound is
        /// `f64::INFINITY`.
        buckets: Vec<(f64, u64)>,
        /// Sum of all.
        sum: f64,
    },
}

impl Sample {
    /// A counter without labels.
    pub fn counter(name: &'static str, help: &'static str, value: u64) -> Sample {
        Sample {
            name,
            help,
            labels: Vec::new(),
            reading: Reading::Counter(value),
        }
    }

    /// A gauge without labels.
    pub fn gauge(name: &'static str, help: &'static str, value: f64) -> Sample {
        Sample {
            name,
            help,
            labels: Vec::new(),
            reading: Reading::Gauge(value),
        }
    }

    /// The same with a label more.
    pub fn with(mut self, label: &'static str, value: impl Into<String>) -> Sample {
        self.labels.push((label, value.into()));
        self
    }
}
