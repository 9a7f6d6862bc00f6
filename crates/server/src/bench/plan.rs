//! What is measured, checked as a whole before anything is sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::http::Http;
use super::keys::{Distribution, KeyForm};
use super::phase::{Parts, Phase, Source, Window};
use super::random::Random;
use super::resp::Resp;
use super::schedule::{Arrivals, Schedule};
use super::value::{STAMP_BYTES, Values};
use super::verify::Ledger;
use super::wire::Wire;
use super::workload::{Mix, Operations};

/// The protocol that the targets speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protocol {
    /// Redis'.
    Resp,
    /// `/v1/kv`.
    Http,
}

/// Where requests go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Target {
    /// As it was given: `127.0.0.1:7101`.
    pub(crate) name: String,
    /// What it resolved to.
    pub(crate) addr: SocketAddr,
}

/// How fast requests are sent.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Pace {
    /// The next when the last is answered.
    Closed,
    /// So many a second, over all connections, whatever the target does.
    Open { rate: f64, arrivals: Arrivals },
}

/// When the measured window ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Until {
    /// After so long.
    Span(Duration),
    /// After so many operations.
    Operations(u64),
}

/// What `--verify` checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Verify {
    /// Content, origin and age: for quorums that overlap
    Fresh,
    /// Content and origin only: for quorums that do not
    Content,
}

/// A whole plan.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) protocol: Protocol,
    pub(crate) targets: Vec<Target>,
    pub(crate) connections: usize,
    pub(crate) threads: usize,
    pub(crate) pipeline: usize,
    pub(crate) pace: Pace,
    /// For reports.
    pub(crate) workload: String,
    pub(crate) mix: Mix,
    pub(crate) distribution: Distribution,
    pub(crate) keys: u64,
    pub(crate) key_bytes: usize,
    pub(crate) key_prefix: String,
    pub(crate) value_bytes: (usize, usize),
    pub(crate) r: Option<u8>,
    pub(crate) w: Option<u8>,
    /// Fill all keys first.
    pub(crate) loads: bool,
    pub(crate) warmup: Duration,
    /// None: nothing but the load phase.
    pub(crate) until: Option<Until>,
    pub(crate) verify: Option<Verify>,
    pub(crate) seed: u64,
    /// A random number that the run's values carry.
    pub(crate) run: u64,
    pub(crate) timeout: Duration,
    pub(crate) reconnects: u32,
}

/// Requests on their way on each connection while keys are loaded, if their values are small: nobody measures that.
const LOAD_PIPELINE: usize = 16;

/// Bytes of values on their way on all connections while keys are loaded, unless one request on each takes more. More would
/// only wait in the servers' queues.
const LOAD_BYTES: usize = 8 << 20;

/// Keys that a ledger is kept for, at most: 8 GiB.
const VERIFIED_KEYS_MAX: u64 = 1 << 30;

impl Plan {
    /// Checks what the parts alone cannot know.
    ///
    /// # Errors
    /// What to mend, in words.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.key_form()?;
        let in_flight = self.in_flight();
        if self.connections < self.threads || self.connections < self.targets.len() {
            return Err(format!(
                "{} connections are too few for {} threads and {} targets: raise --connections",
                self.connections,
                self.threads,
                self.targets.len()
            ));
        }
        if self.verify.is_none() {
            return Ok(());
        }
        let needed = ((in_flight + 1) * self.targets.len()) as u64;
        if self.keys < needed {
            return Err(format!(
                "--verify lets one write at a time touch a key, so {} connections with a pipeline of {} \
                 need {needed} keys: raise --keys",
                self.connections, self.pipeline
            ));
        }
        if self.numbers() > VERIFIED_KEYS_MAX {
            return Err(format!(
                "--verify remembers 8 bytes for each key, for {VERIFIED_KEYS_MAX} keys at most: lower --keys"
            ));
        }
        if self.value_bytes.0 < STAMP_BYTES {
            return Err(format!(
                "--verify puts {STAMP_BYTES} bytes into each value that say who wrote it: \
                 raise --value-bytes to that at least"
            ));
        }
        Ok(())
    }

    /// Operations that can be on their way at once.
    fn in_flight(&self) -> usize {
        self.connections * self.pipeline
    }

    fn numbers(&self) -> u64 {
        Operations::numbers(self.keys, &self.mix)
    }

    /// How keys look.
    pub(super) fn key_form(&self) -> Result<KeyForm, String> {
        KeyForm::new(&self.key_prefix, self.key_bytes, self.numbers())
    }

    /// The requests of a connection to a target.
    pub(super) fn wire(&self, target: usize) -> Wire {
        match self.protocol {
            Protocol::Resp => Wire::Resp(Resp::new(self.key_bytes, self.r, self.w)),
            Protocol::Http => Wire::Http(Http::new(&self.targets[target].name, self.r, self.w)),
        }
    }

    /// What `--verify` keeps.
    pub(super) fn ledger(&self) -> Option<Arc<Ledger>> {
        let verify = self.verify?;
        let checks_age = verify == Verify::Fresh;
        let ledger = Ledger::new(
            self.numbers(),
            self.keys,
            self.run,
            self.targets.len(),
            checks_age,
        );
        Some(Arc::new(ledger))
    }

    /// Requests on their way on a connection while keys are loaded.
    pub(super) fn load_pipeline(&self) -> usize {
        let each = LOAD_BYTES / (self.connections * self.value_bytes.1.max(1));
        self.pipeline.max(each.min(LOAD_PIPELINE))
    }

    /// The load phase of a thread.
    pub(super) fn load_phase(&self, thread: usize, key_form: KeyForm, start_ns: u64) -> Phase {
        let window = Window {
            start_ns,
            measure_from_ns: start_ns,
            end_ns: u64::MAX,
            operations: u64::MAX,
        };
        let source = Source::Load {
            next: thread as u64,
            step: self.threads as u64,
            end: self.keys,
        };
        self.phase(thread, key_form, window, source, None, None)
    }

    /// The measured phase of a thread, after its warm-up.
    pub(super) fn measured_phase(
        &self,
        thread: usize,
        key_form: KeyForm,
        ledger: Option<Arc<Ledger>>,
        start_ns: u64,
    ) -> Phase {
        let measure_from_ns = start_ns + self.warmup.as_nanos() as u64;
        let (end_ns, operations) = match self.until {
            Some(Until::Span(span)) => (measure_from_ns + span.as_nanos() as u64, u64::MAX),
            Some(Until::Operations(all)) => (u64::MAX, share(all, thread, self.threads)),
            None => (start_ns, 0),
        };
        let window = Window {
            start_ns,
            measure_from_ns,
            end_ns,
            operations,
        };
        let lane = (thread, self.threads);
        let operations = Operations::new(
            self.mix,
            self.distribution,
            self.keys,
            self.seed,
            lane,
            self.in_flight(),
        );
        let schedule = match self.pace {
            Pace::Closed => None,
            Pace::Open { rate, arrivals } => {
                // A stream of its own: what is done does not depend on when.
                let random = Random::new(self.seed, 2 << 32 | thread as u64);
                Some(Schedule::new(arrivals, rate, start_ns, lane, random))
            }
        };
        self.phase(
            thread,
            key_form,
            window,
            Source::Mix(operations),
            schedule,
            ledger,
        )
    }

    fn phase(
        &self,
        thread: usize,
        key_form: KeyForm,
        window: Window,
        source: Source,
        schedule: Option<Schedule>,
        ledger: Option<Arc<Ledger>>,
    ) -> Phase {
        let (bytes_min, bytes_max) = self.value_bytes;
        Phase::new(Parts {
            window,
            source,
            schedule,
            values: Values::new(bytes_min, bytes_max, self.seed, thread),
            ledger,
            run: self.run,
            key_form,
        })
    }
}

/// A thread's share of a number of things.
fn share(all: u64, thread: usize, threads: usize) -> u64 {
    let (thread, threads) = (thread as u64, threads as u64);
    all / threads + u64::from(thread < all % threads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        for (all, threads) in [(10, 3), (2, 3), (0, 2), (7, 1)] {
            let sum: u64 = (0..threads).map(|thread| share(all, thread, threads)).sum();
            assert_eq!(sum, all);
        }
    }
}
