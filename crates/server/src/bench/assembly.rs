//! How a report is put together: from the plan, and from what was counted.
//!
//! Nothing is measured here, and nothing printed: counts and nanoseconds go in, figures with their units and digits come
//! out.

use hdrhistogram::Histogram;

use super::plan::{Pace, Plan, Protocol, Until};
use super::processes::Watched;
use super::report::{
    ConnectionsBody, CpuBody, ErrorBody, LatencyBody, OpenBody, PercentilesBody, PlanBody, Report,
    ResultBody, SecondBody, ServerBody, StallsBody, VerifyBody, ViolationBody,
};
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
