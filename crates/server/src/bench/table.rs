//! The report for people.

use super::report::{CpuBody, LatencyBody, Report, ResultBody, StallsBody};
use crate::cli::{Failure, output};

/// Servers that are listed one by one.
const SERVERS_SHOWN_MAX: usize = 16;

/// Prints it.
///
/// # Errors
/// When standard output cannot be written.
pub(crate) fn print(report: &Report) -> Result<(), Failure> {
    let plan = &report.plan;
    let values = match plan.value_bytes_min == plan.value_bytes_max {
        true => plan.value_bytes_min.to_string(),
        false => format!("{} to {}", plan.value_bytes_min, plan.value_bytes_max),
    };
    let pace = match plan.rate {
        Some(rate) => format!("open loop, {rate} requests/s"),
        None => "closed loop".to_owned(),
    };
    output::line(format!(
        "workload {} on {} keys ({}), values of {values} bytes; {} connections, pipeline {}, {pace}, seed {}",
        plan.workload, plan.keys, plan.distribution, plan.connections, plan.pipeline, plan.seed
    ))?;
    if let Some(load) = &report.load {
        output::line(format!(
            "loaded {} keys in {:.1} s, {:.0}/s",
            load.keys, load.seconds, load.rate
        ))?;
    }
    let Some(result) = &report.result else {
        return Ok(());
    };
    if report.interrupted {
        output::line("interrupted: this is what was measured until then")?;
    }
    output::line(latencies(result))?;
    for line in notes(result) {
        output::line(line)?;
    }
    Ok(())
}

fn latencies(result: &ResultBody) -> comfy_table::Table {
    let heads = [
        "", "ops/s", "errors", "mean ms", "p50", "p90", "p99", "p99.9", "p99.99", "max",
    ];
    let mut table = output::table(&heads);
    // One kind is all there is.
    let is_one = result.latency.len() == 2;
    for latency in result
        .latency
        .iter()
        .filter(|latency| !(is_one && latency.kind == "all"))
    {
        table.add_row(row(latency, result.window_s));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    table
}

fn row(latency: &LatencyBody, window_s: f64) -> Vec<String> {
    let of = &latency.percentiles;
    let times = [
        of.mean_us,
        of.p50_us,
        of.p90_us,
        of.p99_us,
        of.p99_9_us,
        of.p99_99_us,
        of.max_us,
    ];
    let mut row = vec![
        latency.kind.replace('_', "-"),
        format!("{:.0}", latency.ops as f64 / window_s.max(1e-9)),
        latency.errors.to_string(),
    ];
    row.extend(times.map(ms));
    row
}

/// Microseconds as milliseconds, with as many digits as say something.
fn ms(us: f64) -> String {
    match us {
        us if us < 10_000.0 => format!("{:.3}", us / 1e3),
        us if us < 1_000_000.0 => format!("{:.1}", us / 1e3),
        us => format!("{:.0}", us / 1e3),
    }
}

fn notes(result: &ResultBody) -> Vec<String> {
    let mut notes = vec![format!(
        "{} requests in {:.1} s",
        result.ops, result.window_s
    )];
    if let Some(open) = &result.open_loop {
        notes.push(format!(
            "open loop: {} requests/s intended, {:.0} achieved; sent {} ms late at p99",
            open.intended_rate,
            open.achieved_rate,
            ms(open.send_delay.p99_us)
        ));
        if open.unsent > 0 {
            notes.push(format!(
                "BEHIND: {} requests were due and never sent; the percentiles lack them, and would be worse with them",
                open.unsent
            ));
        }
    }
    if result.misses > 0 {
        notes.push(format!(
            "{} reads found no such key (--load fills all keys first)",
            result.misses
        ));
    }
    notes.extend(cpu(&result.cpu));
    notes.extend(trouble(result));
    if let Some(verify) = &result.verify {
        let word = match verify.violations {
            0 => output::good_or_bad(true, "no violation"),
            count => output::good_or_bad(false, &format!("{count} VIOLATIONS")),
        };
        notes.push(format!("verified {} reads: {word}", verify.reads));
        let shown = verify
            .examples
            .iter()
            .map(|one| format!("  {}: {} {}", one.what, one.key, one.text));
        notes.extend(shown);
    }
    notes
}

fn cpu(cpu: &CpuBody) -> Vec<String> {
    let generator = format!("the generator {:.1}", cpu.generator_us_per_op);
    let Some(servers) = cpu.servers_us_per_op else {
        return vec![format!(
            "CPU us per request: {generator}; no process on this machine listens on the targets (--servers names some)"
        )];
    };
    let mut lines = vec![format!(
        "CPU us per request: {servers:.1} of {} server processes, {generator}",
        cpu.servers.len()
    )];
    for server in cpu.servers.iter().take(SERVERS_SHOWN_MAX) {
        let ended = if server.ended {
            " (ended meanwhile)"
        } else {
            ""
        };
        let us = (server.user_us + server.system_us).max(1);
        let user_percent = 100 * server.user_us / us;
        lines.push(format!(
            "  {:>6.1} by {} {}, {user_percent} % of it user{ended}",
            server.us_per_op,
            server.pid,
            short(&server.command)
        ));
    }
    lines
}

/// The beginning of a command line.
fn short(command: &str) -> String {
    let words = command.split(' ').take(2).collect::<Vec<_>>().join(" ");
    words.rsplit('/').next().unwrap_or_default().to_owned()
}

fn trouble(result: &ResultBody) -> Vec<String> {
    let mut lines = Vec::new();
    let StallsBody {
        overall_ms,
        overall_from_s,
        connection_ms,
        connection_from_s,
        ref connection_target,
    } = result.stalls;
    lines.push(format!(
        "longest stall: {overall_ms:.1} ms of all connections (at {overall_from_s:.1} s), {connection_ms:.1} ms of \
         one (to {connection_target}, at {connection_from_s:.1} s)"
    ));
    let connections = result.connections;
    if connections.broken > 0 {
        lines.push(format!(
            "{} connections broke, {} were made again, {} tries failed, {} were given up",
            connections.broken,
            connections.reconnected,
            connections.failed_tries,
            connections.given_up
        ));
    }
    for error in &result.errors_by_kind {
        lines.push(format!("{} errors {}", error.count, error.kind));
        lines.extend(error.examples.iter().map(|example| format!("  {example}")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_digits_that_say_something() {
        assert_eq!(ms(0.0), "0.000");
        assert_eq!(ms(512.3), "0.512");
        assert_eq!(ms(12_345.0), "12.3");
        assert_eq!(ms(2_345_678.0), "2346");
        assert_eq!(
            short("/a/b/mydatastore serve --config x"),
            "mydatastore serve"
        );
        assert_eq!(short(""), "");
    }
}
