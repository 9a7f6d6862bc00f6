//! A plot of a report: one self-contained SVG file, light or dark as the reader's system is.
//!
//! Above, latency by percentile. The axis of percentiles is logarithmic in what is *left*: 90 %, 99 %, 99.9 % stand at
//! equal distances, so that the tail, which is what users feel, has as much room as the rest. Below, the run second by
//! second: throughput as an area, p99 as a line, errors as marks at the foot; the warm-up is shaded.

use std::fmt::Write;

use super::report::{LatencyBody, Report, ResultBody, SecondBody};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 76.0;
/// The plot of percentiles: top and height.
const CURVES: (f64, f64) = (84.0, 300.0);
/// The timeline.
const TIMELINE: (f64, f64) = (446.0, 170.0);
const HEIGHT: f64 = 664.0;
const PLOT_WIDTH: f64 = WIDTH - LEFT - RIGHT;

/// Seconds that the timeline tells apart; of longer runs several are one.
const STEPS_MAX: usize = 480;

const STYLE: &str = "\
svg{--ground:#fff;--ink:#1f2933;--soft:#6b7785;--grid:#e4e8ec;--a:#2563eb;--b:#d97706;--c:#059669;--d:#9333ea;\
--all:#1f2933;--area:#bfdbfe;--bad:#dc2626;font:12px system-ui,sans-serif}\
@media(prefers-color-scheme:dark){svg{--ground:#12181f;--ink:#e6eaee;--soft:#93a1b0;--grid:#2a333d;--a:#60a5fa;\
--b:#fbbf24;--c:#34d399;--d:#c084fc;--all:#e6eaee;--area:#1e3a5f;--bad:#f87171}}\
text{fill:var(--ink)}.soft{fill:var(--soft)}.title{font-size:16px;font-weight:600}\
.grid{stroke:var(--grid);stroke-width:1}.line{fill:none;stroke-width:2;stroke-linejoin:round}\
.end{text-anchor:end}.middle{text-anchor:middle}";

/// Draws it; `None` if nothing was measured.
pub(crate) fn draw(report: &Report) -> Option<String> {
    let result = report.result.as_ref()?;
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"latency by percentile and over time\">\n<style>{STYLE}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"var(--ground)\"/>\n"
    );
    head(&mut svg, report, result);
    curves(&mut svg, result);
    timeline(&mut svg, result);
    svg.push_str("</svg>\n");
    Some(svg)
}

fn head(svg: &mut String, report: &Report, result: &ResultBody) {
    let plan = &report.plan;
    let pace = match plan.rate {
        Some(rate) => format!("open loop at {rate}/s"),
        None => "closed loop".to_owned(),
    };
    let title = format!("workload {}: {:.0} requests/s", plan.workload, result.rate);
    text(svg, LEFT, 30.0, "title", &title);
    let cpu = match result.cpu.servers_us_per_op {
        Some(us) => format!(
            ", {us:.1} us CPU a request in {} servers",
            result.cpu.servers.len()
        ),
        None => String::new(),
    };
    let detail = format!(
        "{pace}, {} connections, pipeline {}, {} keys {}, {} errors{cpu}",
        plan.connections, plan.pipeline, plan.keys, plan.distribution, result.errors
    );
    text(svg, LEFT, 50.0, "soft", &detail);
}

/// A logarithmic axis upwards, of latencies in microseconds.
struct LogAxis {
    low: f64,
    high: f64,
    top: f64,
    height: f64,
}

impl LogAxis {
    /// Whole decades around all values.
    fn new(values: impl Iterator<Item = f64>, (top, height): (f64, f64)) -> LogAxis {
        let (mut low, mut high) = (f64::MAX, f64::MIN);
        for value in values.filter(|value| *value > 0.0) {
            low = low.min(value.log10().floor());
            high = high.max(value.log10().ceil());
        }
        if low > high {
            (low, high) = (2.0, 3.0);
        }
        LogAxis {
            low,
            high: high.max(low + 1.0),
            top,
            height,
        }
    }

    fn y(&self, us: f64) -> f64 {
        let share = (us.max(1e-3).log10() - self.low) / (self.high - self.low);
        self.top + self.height * (1.0 - share.clamp(0.0, 1.0))
    }

    fn decades(&self) -> impl Iterator<Item = f64> {
        (self.low as i32..=self.high as i32).map(|power| 10f64.powi(power))
    }
}

fn curves(svg: &mut String, result: &ResultBody) {
    let (top, height) = CURVES;
    // One kind is all there is.
    let is_one = result.latency.len() == 2;
    let shown = result
        .latency
        .iter()
        .filter(|one| one.ops > 0 && !(is_one && one.kind == "all"));
    let shown: Vec<&LatencyBody> = shown.collect();
    let points = shown.iter().flat_map(|one| one.curve.iter());
    let axis = LogAxis::new(points.clone().map(|(_, us)| *us), CURVES);
    let nines = points
        .filter(|(percentile, _)| *percentile < 100.0)
        .map(|(percentile, _)| nines_of(*percentile));
    let nines_max = nines.fold(1.0, f64::max).ceil() + 0.25;
    let x = |nines: f64| LEFT + PLOT_WIDTH * (nines / nines_max).min(1.0);
    for us in axis.decades() {
        grid(svg, (LEFT, axis.y(us)), (LEFT + PLOT_WIDTH, axis.y(us)));
        text(svg, LEFT - 8.0, axis.y(us) + 4.0, "soft end", &span(us));
    }
    for nine in 0..=nines_max as u32 {
        let at = x(f64::from(nine));
        grid(svg, (at, top), (at, top + height));
        text(
            svg,
            at,
            top + height + 18.0,
            "soft middle",
            &percentile_label(nine),
        );
    }
    text(svg, LEFT, top - 10.0, "soft", "latency by percentile");
    for (index, one) in shown.iter().enumerate() {
        let colour = colour_of(one.kind);
        let line = one
            .curve
            .iter()
            .map(|(percentile, us)| match *percentile < 100.0 {
                true => (x(nines_of(*percentile)), axis.y(*us)),
                false => (x(nines_max), axis.y(*us)),
            });
        polyline(svg, line, colour);
        let at = LEFT + 12.0 + 200.0 * index as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{at:.1}\" y=\"{:.1}\" width=\"14\" height=\"3\" fill=\"var({colour})\"/>",
            top + 14.0
        );
        let label = format!(
            "{} (max {})",
            one.kind.replace('_', "-"),
            span(one.percentiles.max_us)
        );
        text(svg, at + 20.0, top + 19.0, "", &label);
    }
}

/// Some neighbouring seconds as one: from when, for how long, a rate, the worst p99, errors.
struct Step {
    from_s: f64,
    span_s: f64,
    rate: f64,
    p99_us: f64,
    errors: u64,
    warmup: bool,
}

fn steps(seconds: &[SecondBody]) -> Vec<Step> {
    let together = seconds.len().div_ceil(STEPS_MAX).max(1);
    let steps = seconds.chunks(together).map(|some| {
        let span_s: f64 = some.iter().map(|second| second.span_s).sum();
        let ops: u64 = some.iter().map(|second| second.ops).sum();
        Step {
            from_s: some.first().map_or(0.0, |second| second.second as f64),
            span_s,
            rate: ops as f64 / span_s.max(1e-3),
            p99_us: some.iter().map(|second| second.p99_us).fold(0.0, f64::max),
            errors: some.iter().map(|second| second.errors).sum(),
            warmup: some.iter().all(|second| second.warmup),
        }
    });
    steps.collect()
}

fn timeline(svg: &mut String, result: &ResultBody) {
    let (top, height) = TIMELINE;
    let steps = steps(&result.timeline);
    let end_s = steps
        .last()
        .map_or(1.0, |step| step.from_s + step.span_s)
        .max(1e-3);
    let rate_max = round_up(steps.iter().map(|step| step.rate).fold(1.0, f64::max));
    let axis = LogAxis::new(steps.iter().map(|step| step.p99_us), TIMELINE);
    let x = |s: f64| LEFT + PLOT_WIDTH * s / end_s;
    let y = |rate: f64| top + height * (1.0 - rate / rate_max);
    let warm_s: f64 = steps
        .iter()
        .filter(|step| step.warmup)
        .map(|step| step.span_s)
        .sum();
    if warm_s > 0.0 {
        let _ = writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{top}\" width=\"{:.1}\" height=\"{height}\" fill=\"var(--grid)\" opacity=\".6\"/>",
            x(warm_s) - LEFT
        );
    }
    let mut area = format!("M{LEFT},{:.1}", top + height);
    for step in &steps {
        let at = y(step.rate);
        let _ = write!(
            area,
            " L{:.1},{at:.1} L{:.1},{at:.1}",
            x(step.from_s),
            x(step.from_s + step.span_s)
        );
    }
    let _ = writeln!(
        svg,
        "<path d=\"{area} L{:.1},{:.1} Z\" fill=\"var(--area)\"/>",
        x(end_s),
        top + height
    );
    for share in [0.0, 0.5, 1.0] {
        grid(
            svg,
            (LEFT, y(rate_max * share)),
            (LEFT + PLOT_WIDTH, y(rate_max * share)),
        );
        text(
            svg,
            LEFT - 8.0,
            y(rate_max * share) + 4.0,
            "soft end",
            &count(rate_max * share),
        );
    }
    for us in axis.decades() {
        text(
            svg,
            LEFT + PLOT_WIDTH + 8.0,
            axis.y(us) + 4.0,
            "soft",
            &span(us),
        );
    }
    let line = steps.iter().filter(|step| step.p99_us > 0.0);
    polyline(
        svg,
        line.map(|step| (x(step.from_s + step.span_s / 2.0), axis.y(step.p99_us))),
        "--b",
    );
    for step in steps.iter().filter(|step| step.errors > 0) {
        let _ = writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"6\" fill=\"var(--bad)\"><title>{} errors</title></rect>",
            x(step.from_s),
            top + height - 6.0,
            (x(step.span_s) - LEFT).max(2.0),
            step.errors
        );
    }
    text(
        svg,
        LEFT,
        top - 10.0,
        "soft",
        "requests/s (area, left) and p99 (line, right) by second; errors red at the foot",
    );
    for share in 0..=4 {
        let s = end_s * f64::from(share) / 4.0;
        text(
            svg,
            x(s),
            top + height + 18.0,
            "soft middle",
            &format!("{} s", plain(s)),
        );
    }
}

fn nines_of(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).max(1e-12).log10()
}

fn percentile_label(nines: u32) -> String {
    match nines {
        0 => "0 %".to_owned(),
        1 => "90 %".to_owned(),
        2 => "99 %".to_owned(),
        more => format!("99.{} %", "9".repeat(more as usize - 2)),
    }
}

fn colour_of(kind: &str) -> &'static str {
    match kind {
        "read" => "--a",
        "update" => "--b",
        "insert" => "--c",
        "read_modify_write" => "--d",
        _ => "--all",
    }
}

/// A span of time with its unit.
fn span(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{} us", plain(us)),
        us if us < 1e6 => format!("{} ms", plain(us / 1e3)),
        us => format!("{} s", plain(us / 1e6)),
    }
}

fn count(number: f64) -> String {
    match number {
        number if number < 1e3 => plain(number),
        number if number < 1e6 => format!("{}k", plain(number / 1e3)),
        number => format!("{}M", plain(number / 1e6)),
    }
}

/// Three digits, without zeros at the end.
fn plain(number: f64) -> String {
    let text = match number {
        number if number >= 100.0 => format!("{number:.0}"),
        number if number >= 10.0 => format!("{number:.1}"),
        number => format!("{number:.2}"),
    };
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// The next of 1, 2, 5, 10, 20, ...
fn round_up(number: f64) -> f64 {
    let power = 10f64.powf(number.log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0].into_iter();
    factors
        .map(|factor| factor * power)
        .find(|round| *round >= number)
        .unwrap_or(number)
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{words}</text>"
    );
}

fn grid(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" class=\"grid\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn polyline(svg: &mut String, points: impl Iterator<Item = (f64, f64)>, colour: &str) {
    let points = points
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect::<Vec<_>>()
        .join(" ");
    let _ = writeln!(
        svg,
        "<polyline class=\"line\" stroke=\"var({colour})\" points=\"{points}\"/>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_short_and_have_units() {
        assert_eq!(span(100.0), "100 us");
        assert_eq!(span(1_000.0), "1 ms");
        assert_eq!(span(12_340.0), "12.3 ms");
        assert_eq!(span(2_500_000.0), "2.5 s");
        assert_eq!(count(50_000.0), "50k");
        assert_eq!(count(1_500_000.0), "1.5M");
        assert_eq!(percentile_label(4), "99.99 %");
        assert_eq!(round_up(3.0), 5.0);
        assert_eq!(round_up(42_000.0), 50_000.0);
        assert_eq!(round_up(1_000.0), 1_000.0);
        assert!((nines_of(99.9) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn long_runs_are_drawn_in_so_many_steps() {
        let second = |second| SecondBody {
            second,
            span_s: 1.0,
            warmup: second < 10,
            ops: 100,
            errors: u64::from(second == 999),
            p50_us: 1.0,
            p99_us: second as f64,
            max_us: 1.0,
        };
        let seconds: Vec<SecondBody> = (0..1_000).map(second).collect();
        let steps = steps(&seconds);
        assert!(steps.len() <= STEPS_MAX);
        let last = steps.last().unwrap();
        assert_eq!((last.errors, last.p99_us, last.rate), (1, 999.0, 100.0));
        assert!(steps[0].warmup && !last.warmup);
    }
}
