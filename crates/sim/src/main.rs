//! Runs simulated clusters from the command line.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use mds_sim::coverage::SEEDS_MIN;
use mds_sim::faults::Counts;
use mds_sim::{Coverage, Detail, Report, Settings, run, shrink};
use tracing_subscriber::EnvFilter;

/// Whole clusters in one deterministic process: every fault, one seed to replay.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs many seeds. Exits with 1 if one fails.
    Run {
        /// How many.
        #[arg(long, default_value_t = 100)]
        seeds: u64,
        /// The first.
        #[arg(long, default_value_t = 1)]
        start: u64,
    },
    /// Runs one seed again and prints what happened.
    Replay {
        /// The seed.
        seed: u64,
        /// What nodes say to each other on data connections, too.
        #[arg(long)]
        messages: bool,
        /// Every single event, too.
        #[arg(long)]
        events: bool,
        /// Only what a smaller schedule needs to fail as this seed does: looks for one first.
        #[arg(long)]
        shrink: bool,
        /// The nodes' own logs, too: a filter such as `info` or `mds_cluster=debug`.
        #[arg(long)]
        logs: Option<String>,
    },
    /// Runs the planted bugs and says which seed caught each. Needs a build with the feature
    /// `mutations`. Exits with 1 if one is not caught.
    Mutations {
        /// Seeds for each, at most.
        #[arg(long, default_value_t = 300)]
        seeds: u64,
        /// The first.
        #[arg(long, default_value_t = 1)]
        start: u64,
    },
    /// Runs one seed and prints the hash of all that happened, the same for the same run.
    Trace {
        /// The seed.
        seed: u64,
    },
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Run { seeds, start } => run_many(start, seeds),
        Command::Mutations { seeds, start } => run_mutations(start, seeds),
        Command::Replay {
            seed,
            messages,
            events,
            shrink,
            logs,
        } => {
            if let Some(filter) = logs {
                let filter = EnvFilter::new(filter);
                tracing_subscriber::fmt()
                    .with_env_filter(filter)
                    .without_time()
                    .init();
            }
            let detail = match (events, messages) {
                (true, _) => Detail::Everything,
                (false, true) => Detail::Messages,
                (false, false) => Detail::Whole,
            };
            let settings = Settings {
                detail,
                ..Settings::default()
            };
            let report = match shrink {
                true => shrunk(seed, &settings),
                false => run(seed, &settings),
            };
            for line in &report.lines {
                println!("{line}");
            }
            println!();
            print_summary(&report);
            exit_code(report.violations.is_empty())
        }
        Command::Trace { seed } => {
            let report = run(seed, &Settings::default());
            println!("{:016x}", report.trace_hash);
            print_failure(&report);
            exit_code(report.violations.is_empty())
        }
    }
}

fn shrunk(seed: u64, settings: &Settings) -> Report {
    let Some(shrunk) = shrink(seed, settings) else {
        println!("seed {seed} does not fail: nothing to shrink");
        return run(seed, settings);
    };
    println!(
        "{} of {} large faults are needed, found in {} runs: {:?}",
        shrunk.keep.len(),
        shrunk.report.scheduled,
        shrunk.runs,
        shrunk.keep
    );
    shrunk.report
}

fn run_many(start: u64, seeds: u64) -> ExitCode {
    let began = Instant::now();
    let mut failed = 0;
    let mut sim_s = 0.0;
    let mut coverage = Coverage::default();
    for seed in start..start + seeds {
        let report = run(seed, &Settings::default());
        coverage.add(&report);
        sim_s += report.sim_ns as f64 / 1e9;
        if !report.violations.is_empty() {
            failed += 1;
            print_failure(&report);
        }
    }
    let wall_s = began.elapsed().as_secs_f64();
    println!(
        "{sim_s:.0} simulated seconds in {wall_s:.1} s: {:.0}x",
        sim_s / wall_s
    );
    print_counts("faults", &coverage.faults);
    print_counts("reached", &coverage.reached);
    let missing = coverage.missing();
    let is_covered = missing.is_empty() || seeds < SEEDS_MIN;
    if !missing.is_empty() {
        println!("never reached: {}", missing.join(", "));
    }
    println!("{seeds} seeds, {failed} failed");
    exit_code(failed == 0 && is_covered)
}

#[cfg(not(feature = "mutations"))]
fn run_mutations(_start: u64, _seeds: u64) -> ExitCode {
    println!("this build has no planted bugs; build one that has:");
    println!("  cargo run --release -p mds-sim --features mutations -- mutations");
    ExitCode::FAILURE
}

#[cfg(feature = "mutations")]
fn run_mutations(start: u64, seeds: u64) -> ExitCode {
    use mds_sim::mutations::hunt;
    use mds_types::mutation::Mutation;

    // A planted bug may panic, which is caught and counts; nobody needs to read it.
    std::panic::set_hook(Box::new(|_| {}));
    println!("{:<20} {:>6}  caught by", "planted bug", "seeds");
    let mut caught = 0;
    for mutation in Mutation::ALL {
        let result = hunt(mutation, start, seeds, &Settings::default());
        let by = match result.by {
            Some((seed, invariant)) => {
                caught += 1;
                format!("{invariant} (seed {seed})")
            }
            None => "NOT CAUGHT".to_owned(),
        };
        let name = format!("{mutation:?}");
        println!("{name:<20} {:>6}  {by}", result.seeds);
    }
    println!("{caught} of {} caught", Mutation::ALL.len());
    exit_code(caught == Mutation::ALL.len())
}

fn print_counts(title: &str, counts: &Counts) {
    let counts: Vec<String> = counts
        .0
        .iter()
        .map(|(name, times)| format!("{name} {times}"))
        .collect();
    println!("{title}: {}", counts.join(", "));
}

fn print_failure(report: &Report) {
    for violation in &report.violations {
        let at_s = violation.at_ns as f64 / 1e9;
        let (seed, invariant, detail) = (report.seed, violation.invariant, &violation.detail);
        println!("seed {seed}, {at_s:.6} s: broken: {invariant}: {detail}");
    }
    if !report.violations.is_empty() {
        println!(
            "  replay it: cargo run --release -p mds-sim -- replay {}",
            report.seed
        );
    }
}

fn print_summary(report: &Report) {
    println!("seed {}: trace {:016x}", report.seed, report.trace_hash);
    println!(
        "{} events in {:.3} simulated seconds",
        report.events,
        report.sim_ns as f64 / 1e9
    );
    println!("operations: {:?}", report.endings);
    println!("faults: {:?}", report.faults.0);
    println!("reached: {:?}", report.reached.0);
    match report.violations.is_empty() {
        true => println!("all invariants held"),
        false => print_failure(report),
    }
}

fn exit_code(is_good: bool) -> ExitCode {
    if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
