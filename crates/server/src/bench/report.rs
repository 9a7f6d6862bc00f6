//! What a run found, as one document: `--json` prints it, tables and plots are made of it.
//!
//! The schema is described in `docs/bench.md`. Times are microseconds where a name ends with `_us`, milliseconds with
//! `_ms`, seconds with `_s`; rates are a second. Fields may be added; those that are there keep their meaning while
//! `format` stays the same.

use hdrhistogram::Histogram;
use serde::Serialize;

use super::plan::{Pace, Plan, Protocol, Until};
use super::processes::{Watched, Why};
use super::tally::{Errors, OfKind, Slice, Stall, Tally};
use super::value::Damage;
use super::verify::{Violation, Wrong};
use super::workload::Kind;

/// Of the document; grows when a field changes its meaning.
const FORMAT: u32 = 1;

/// Points of a percentile curve for each nine.
const POINTS_PER_NINE: u32 = 16;
/// Nines that a curve shows, at most.
const NINES_MAX: u32 = 6;

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

/// Processor time of a window.
#[derive(Clone, Debug, Default)]
pub(super) struct Cpu {
    pub(super) servers: Vec<Watched>,
    pub(super) generator_us: u64,
}

impl PlanBody {
    pub(super) fn new(plan: &Plan) -> PlanBody {
        let (pace, rate) = match plan.pace {
            Pace::Closed => ("closed", None),
            Pace::Open { rate, .. } => ("open", Some(rate)),
        };
        let (seconds, requests) = match plan.until {
            Some(Until::Span(span)) => (Some(span.as_secs_f64()), None),
            Some(Until::Operations(all)) => (None, Some(all)),
            None => (None, None),
        };
        PlanBody {
            protocol: match plan.protocol {
                Protocol::Resp => "resp",
                Protocol::Http => "http",
            },
            targets: plan
                .targets
                .iter()
                .map(|target| target.name.clone())
                .collect(),
            connections: plan.connections,
            threads: plan.threads,
            pipeline: plan.pipeline,
            pace,
            rate,
            workload: plan.workload.clone(),
            distribution: plan.distribution.to_string(),
            keys: plan.keys,
            key_bytes: plan.key_bytes,
            value_bytes_min: plan.value_bytes.0,
            value_bytes_max: plan.value_bytes.1,
            read_quorum: plan.r,
            write_quorum: plan.w,
            warmup_s: plan.warmup.as_secs_f64(),
            seconds,
            requests,
            verify: plan.verify.is_some(),
            seed: plan.seed,
        }
    }
}

impl Report {
    pub(super) fn new(plan: &Plan, began_at_ms: u64) -> Report {
        Report {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION"),
            began_at_ms,
            interrupted: false,
            plan: PlanBody::new(plan),
            load: None,
            result: None,
        }
    }

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

impl ResultBody {
    /// Puts together what was counted in a window of so long.
    pub(super) fn new(
        plan: &Plan,
        tally: &Tally,
        window_s: f64,
        timeline: Vec<SecondBody>,
        cpu: Cpu,
    ) -> ResultBody {
        let all = tally.all();
        let ops = all.latency.len();
        let rate = |count: u64| rounded(count as f64 / window_s.max(1e-9), 1);
        let kinds = Kind::ALL.map(|kind| (kind.name(), tally.of(kind)));
        let occurred = kinds
            .into_iter()
            .filter(|(_, of)| of.latency.len() + of.errors > 0);
        let latency = std::iter::once(("all", &all)).chain(occurred);
        let open_loop = match plan.pace {
            Pace::Closed => None,
            Pace::Open { rate: intended, .. } => Some(OpenBody {
                intended_rate: intended,
                achieved_rate: rate(tally.send_delay.len()),
                unsent: tally.unsent,
                send_delay: PercentilesBody::new(&tally.send_delay),
            }),
        };
        ResultBody {
            window_s: rounded(window_s, 3),
            ops,
            rate: rate(ops),
            errors: all.errors,
            misses: all.misses,
            open_loop,
            latency: latency
                .map(|(kind, of)| LatencyBody::new(kind, of))
                .collect(),
            timeline,
            errors_by_kind: error_bodies(&tally.errors),
            connections: ConnectionsBody {
                broken: tally.connections.broken,
                reconnected: tally.connections.reconnected,
                failed_tries: tally.connections.failed_tries,
                given_up: tally.connections.given_up,
            },
            stalls: StallsBody::new(plan, tally.stall_overall, tally.stall),
            cpu: CpuBody::new(&cpu, ops + all.errors),
            verify: plan.verify.map(|_| VerifyBody {
                reads: tally.checked.reads,
                violations: tally.checked.violations,
                examples: tally
                    .checked
                    .examples
                    .iter()
                    .map(|one| violation_body(plan, one))
                    .collect(),
            }),
        }
    }
}

impl LatencyBody {
    fn new(kind: &'static str, of: &OfKind) -> LatencyBody {
        LatencyBody {
            kind,
            ops: of.latency.len(),
            errors: of.errors,
            misses: of.misses,
            percentiles: PercentilesBody::new(&of.latency),
            curve: curve(&of.latency),
        }
    }
}

impl PercentilesBody {
    pub(super) fn new(latency: &Histogram<u64>) -> PercentilesBody {
        if latency.is_empty() {
            return PercentilesBody::default();
        }
        let at = |percentile| us(latency.value_at_percentile(percentile).min(latency.max()));
        PercentilesBody {
            mean_us: rounded(latency.mean() / 1e3, 1),
            p50_us: at(50.0),
            p90_us: at(90.0),
            p99_us: at(99.0),
            p99_9_us: at(99.9),
            p99_99_us: at(99.99),
            max_us: us(latency.max()),
        }
    }
}

impl SecondBody {
    /// Of all threads' slices together.
    pub(super) fn new(second: u64, span_s: f64, warmup: bool, slice: &Slice) -> SecondBody {
        let at = |percentile| {
            us(slice
                .latency
                .value_at_percentile(percentile)
                .min(slice.latency.max()))
        };
        SecondBody {
            second,
            span_s: rounded(span_s, 3),
            warmup,
            ops: slice.latency.len(),
            errors: slice.errors,
            p50_us: at(50.0),
            p99_us: at(99.0),
            max_us: at(100.0),
        }
    }
}

impl StallsBody {
    fn new(plan: &Plan, overall: Stall, of_connection: Stall) -> StallsBody {
        let target = plan.targets.get(of_connection.target);
        let ms = |ns: u64| rounded(ns as f64 / 1e6, 1);
        let s = |ns: u64| rounded(ns as f64 / 1e9, 3);
        StallsBody {
            overall_ms: ms(overall.span_ns),
            overall_from_s: s(overall.from_ns),
            connection_ms: ms(of_connection.span_ns),
            connection_from_s: s(of_connection.from_ns),
            connection_target: target.map_or_else(String::new, |target| target.name.clone()),
        }
    }
}

impl CpuBody {
    fn new(cpu: &Cpu, answered: u64) -> CpuBody {
        let per_op = |us: u64| rounded(us as f64 / answered.max(1) as f64, 2);
        let servers: Vec<ServerBody> = cpu
            .servers
            .iter()
            .map(|watched| {
                let used = watched.used();
                ServerBody {
                    pid: watched.pid,
                    command: watched.command.clone(),
                    why: watched.why,
                    user_us: used.user_us,
                    system_us: used.system_us,
                    us_per_op: per_op(used.user_us + used.system_us),
                    ended: watched.ended,
                }
            })
            .collect();
        let sum = servers
            .iter()
            .map(|server| server.user_us + server.system_us)
            .sum();
        CpuBody {
            servers_us_per_op: (!servers.is_empty()).then(|| per_op(sum)),
            generator_us_per_op: per_op(cpu.generator_us),
            generator_us: cpu.generator_us,
            servers,
        }
    }
}

fn error_bodies(errors: &Errors) -> Vec<ErrorBody> {
    let bodies = errors.iter().map(|(kind, of)| ErrorBody {
        kind: kind.to_owned(),
        count: of.count,
        examples: of.examples.clone(),
    });
    let mut bodies: Vec<ErrorBody> = bodies.collect();
    bodies.sort_by_key(|body| std::cmp::Reverse(body.count));
    bodies
}

fn violation_body(plan: &Plan, violation: &Violation) -> ViolationBody {
    let text_of = |key| match plan.key_form() {
        Ok(form) => form.text(key),
        Err(_) => key.to_string(),
    };
    let Violation {
        key,
        what,
        found,
        expected,
    } = *violation;
    let found_text = found.map_or_else(|| "nothing".to_owned(), |found| format!("write {found}"));
    let text = match what {
        Wrong::Stale => {
            format!("read {found_text}, although write {expected} was acknowledged before")
        }
        Wrong::Lost if expected == 0 => "is absent, although it was loaded".to_owned(),
        Wrong::Lost => format!("is absent, although write {expected} was acknowledged before"),
        Wrong::Foreign => {
            "has a value of another run: is anybody else writing, or was it loaded?".to_owned()
        }
        Wrong::OfAnotherKey(other) => format!("has the value of {}", text_of(other)),
        Wrong::NeverWritten => format!("read {found_text}, which was never sent"),
        Wrong::Damaged(Damage::Short(bytes)) => {
            format!("has a value of {bytes} bytes without a stamp")
        }
        Wrong::Damaged(Damage::Checksum) => {
            "has a value whose checksum is wrong, or that was written without --verify".to_owned()
        }
        Wrong::Damaged(Damage::Length { is, was }) => {
            format!(
                "has {is} bytes of a value whose head says {was}, or that was written without --verify"
            )
        }
    };
    ViolationBody {
        key: text_of(key),
        what: what.name(),
        found,
        expected,
        text,
    }
}

/// Percentiles at equal distances on an axis of nines: 0, ..., 90, ..., 99, ..., as far as there are values; 100 last.
fn curve(latency: &Histogram<u64>) -> Vec<(f64, f64)> {
    let count = latency.len();
    if count == 0 {
        return Vec::new();
    }
    let mut points = Vec::new();
    for step in 0..=NINES_MAX * POINTS_PER_NINE {
        let above = 10f64.powf(-f64::from(step) / f64::from(POINTS_PER_NINE));
        if above * (count as f64) < 1.0 && step > 0 {
            break;
        }
        let percentile = 100.0 * (1.0 - above);
        let value = latency.value_at_percentile(percentile).min(latency.max());
        points.push((rounded(percentile, 6), us(value)));
    }
    points.push((100.0, us(latency.max())));
    points
}

fn us(ns: u64) -> f64 {
    rounded(ns as f64 / 1e3, 1)
}

fn rounded(number: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (number * factor).round() / factor
}

#[cfg(test)]
mod tests {
    use super::super::tally::latencies;
    use super::*;

    #[test]
    fn percentiles_and_curve_are_those_of_the_values() {
        let mut latency = latencies(3);
        for value in 1..=10_000u64 {
            latency.saturating_record(value * 1_000);
        }
        let found = PercentilesBody::new(&latency);
        let expected = [
            5_000.5, 5_000.0, 9_000.0, 9_900.0, 9_990.0, 9_999.0, 10_000.0,
        ];
        let found_all = [
            found.mean_us,
            found.p50_us,
            found.p90_us,
            found.p99_us,
            found.p99_9_us,
            found.p99_99_us,
            found.max_us,
        ];
        for (found, expected) in found_all.into_iter().zip(expected) {
            assert!(
                (found - expected).abs() <= expected / 1_000.0,
                "{found_all:?}"
            );
        }
        let points = curve(&latency);
        assert_eq!(points[0].0, 0.0);
        assert_eq!(points[16].0, 90.0);
        assert_eq!(points[64].0, 99.99);
        assert_eq!(
            points.len(),
            66,
            "as many nines as there are values, and the end"
        );
        assert_eq!(points[65].0, 100.0);
        assert!(points.windows(2).all(|pair| pair[0].1 <= pair[1].1));
        assert!(curve(&latencies(3)).is_empty());
        assert_eq!(PercentilesBody::new(&latencies(3)).max_us, 0.0);
    }
}
