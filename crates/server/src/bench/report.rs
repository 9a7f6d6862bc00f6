//! What a run found, as one document: `--json` prints it, tables and plots are made of it. `assembly` fills it.
//!
//! The schema is described in `docs/bench.md`. Times are microseconds where a name ends with `_us`, milliseconds with
//! `_ms`, seconds with `_s`; rates are a second. Fields may be added; those that are there keep their meaning while
//! `format` stays the same.

use serde::Serialize;

use super::processes::Why;

/// The whole document.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(super) format: u32,
    pub(super) version: &'static str,
    pub(super) began_at_ms: u64,
    pub(super) interrupted: bool,
    pub(super) plan: PlanBody,
    /// None if nothing was loaded.
    pub(super) load: Option<LoadBody>,
    /// None if there was nothing but the load phase.
    pub(super) result: Option<ResultBody>,
}

/// What was asked for.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PlanBody {
    pub(super) protocol: &'static str,
    pub(super) targets: Vec<String>,
    pub(super) connections: usize,
    pub(super) threads: usize,
    pub(super) pipeline: usize,
    /// `closed` or `open`.
    pub(super) pace: &'static str,
    /// Open loop only.
    pub(super) rate: Option<f64>,
    pub(super) workload: String,
    pub(super) distribution: String,
    pub(super) keys: u64,
    pub(super) key_bytes: usize,
    pub(super) value_bytes_min: usize,
    pub(super) value_bytes_max: usize,
    pub(super) read_quorum: Option<u8>,
    pub(super) write_quorum: Option<u8>,
    pub(super) warmup_s: f64,
    pub(super) seconds: Option<f64>,
    pub(super) requests: Option<u64>,
    pub(super) verify: bool,
    pub(super) seed: u64,
}

/// The load phase.
#[derive(Clone, Debug, Serialize)]
pub(super) struct LoadBody {
    pub(super) keys: u64,
    pub(super) seconds: f64,
    pub(super) rate: f64,
}

/// The measured window.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ResultBody {
    pub(super) window_s: f64,
    /// Requests that succeeded; a read-modify-write is two.
    pub(super) ops: u64,
    pub(super) rate: f64,
    pub(super) errors: u64,
    /// Reads that found no such key.
    pub(super) misses: u64,
    pub(super) open_loop: Option<OpenBody>,
    /// `all` first, then those kinds that occurred.
    pub(super) latency: Vec<LatencyBody>,
    pub(super) timeline: Vec<SecondBody>,
    pub(super) errors_by_kind: Vec<ErrorBody>,
    pub(super) connections: ConnectionsBody,
    pub(super) stalls: StallsBody,
    pub(super) cpu: CpuBody,
    pub(super) verify: Option<VerifyBody>,
}

/// How an open loop was kept.
#[derive(Clone, Debug, Serialize)]
pub(super) struct OpenBody {
    pub(super) intended_rate: f64,
    pub(super) achieved_rate: f64,
    /// Requests that were due in the window and never sent, as no connection was free.
    pub(super) unsent: u64,
    /// How long after it was due a request was sent.
    pub(super) send_delay: PercentilesBody,
}

/// Latencies of one kind of operation.
#[derive(Clone, Debug, Serialize)]
pub(super) struct LatencyBody {
    /// `all`, `read`, `update`, `insert`, `read_modify_write`.
    pub(super) kind: &'static str,
    pub(super) ops: u64,
    pub(super) errors: u64,
    pub(super) misses: u64,
    #[serde(flatten)]
    pub(super) percentiles: PercentilesBody,
    /// (percentile, microseconds), for plots.
    pub(super) curve: Vec<(f64, f64)>,
}

/// The usual percentiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct PercentilesBody {
    pub(super) mean_us: f64,
    pub(super) p50_us: f64,
    pub(super) p90_us: f64,
    pub(super) p99_us: f64,
    pub(super) p99_9_us: f64,
    pub(super) p99_99_us: f64,
    pub(super) max_us: f64,
}

/// A second of the run, warm-up included, by the time of answers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct SecondBody {
    pub(super) second: u64,
    /// 1, but for the last.
    pub(super) span_s: f64,
    pub(super) warmup: bool,
    pub(super) ops: u64,
    pub(super) errors: u64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) max_us: f64,
}

/// Errors of a kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ErrorBody {
    /// The first word of a RESP error, `HTTP` and a status; `DISCONNECTED`, `NO-ANSWER`, `STRANGE`.
    pub(super) kind: String,
    pub(super) count: u64,
    pub(super) examples: Vec<String>,
}

/// Connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ConnectionsBody {
    pub(super) broken: u64,
    pub(super) reconnected: u64,
    pub(super) failed_tries: u64,
    pub(super) given_up: u64,
}

/// How long nothing was completed, at most.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct StallsBody {
    /// By any connection.
    pub(super) overall_ms: f64,
    pub(super) overall_from_s: f64,
    /// By one that owed an answer or was broken.
    pub(super) connection_ms: f64,
    pub(super) connection_from_s: f64,
    pub(super) connection_target: String,
}

/// Processor time.
#[derive(Clone, Debug, Serialize)]
pub(super) struct CpuBody {
    /// User + system of all servers found on this machine, for each request answered. None: none was found.
    pub(super) servers_us_per_op: Option<f64>,
    /// The same of the generator itself.
    pub(super) generator_us_per_op: f64,
    pub(super) generator_us: u64,
    pub(super) servers: Vec<ServerBody>,
}

/// One server.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ServerBody {
    pub(super) pid: u32,
    pub(super) command: String,
    pub(super) why: Why,
    pub(super) user_us: u64,
    pub(super) system_us: u64,
    pub(super) us_per_op: f64,
    /// It ended in the window.
    pub(super) ended: bool,
}

/// What `--verify` found.
#[derive(Clone, Debug, Serialize)]
pub(super) struct VerifyBody {
    pub(super) reads: u64,
    pub(super) violations: u64,
    pub(super) examples: Vec<ViolationBody>,
}

/// One violation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ViolationBody {
    pub(super) key: String,
    /// `stale`, `lost`, `foreign`, `of_another_key`, `never_written`, `damaged`.
    pub(super) what: &'static str,
    /// The number of the write that was read.
    pub(super) found: Option<u32>,
    /// The number of the last write acknowledged before the read began.
    pub(super) expected: u32,
    pub(super) text: String,
}

impl Report {
    /// Violations that were found; 0 if none was looked for.
    pub(crate) fn violations(&self) -> u64 {
        let verify = self
            .result
            .as_ref()
            .and_then(|result| result.verify.as_ref());
        verify.map_or(0, |verify| verify.violations)
    }

    /// Requests were sent, and not one succeeded.
    pub(crate) fn has_failed(&self) -> bool {
        self.result
            .as_ref()
            .is_some_and(|result| result.ops == 0 && result.errors > 0)
    }
}
