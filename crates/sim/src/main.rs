//! Runs simulated clusters from the command line.

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{Args as ClapArgs, Parser, Subcommand};
use mds_sim::batch::{Stopwatch, cores as machine_cores, for_each_seed};
use mds_sim::coverage::SEEDS_MIN;
use mds_sim::faults::{Counts, SECOND_NS};
use mds_sim::rings::RingConfig;
use mds_sim::{Coverage, Detail, Report, Settings, cores, run, shrink};
use tracing_subscriber::EnvFilter;

/// Nodes of a cluster, at least: below it no quorum survives the loss of one.
const NODES_MIN: u64 = 3;

/// At most. What is exchanged at birth grows with their square: two hundred take minutes.
const NODES_MAX: u64 = 200;

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
        /// Seeds at a time. Default: as many as the machine has cores.
        #[arg(long)]
        jobs: Option<NonZeroUsize>,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Runs many seeds of three cores alone: what coordinators and replicas say to each other, without
    /// Raft, gossip and disks. Exits with 1 if one fails.
    Cores {
        /// How many.
        #[arg(long, default_value_t = 10_000)]
        seeds: u64,
        /// The first.
        #[arg(long, default_value_t = 1)]
        start: u64,
        /// Seeds at a time. Default: as many as the machine has cores.
        #[arg(long)]
        jobs: Option<NonZeroUsize>,
    },
    /// Measures how fast the simulator is: five nodes under the load of five clients, first in peace,
    /// then under faults, one seed at a time.
    Speed {
        /// Seeds of each kind.
        #[arg(long, default_value_t = 5)]
        seeds: u64,
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
        /// With this bug planted, by its name. Needs a build with the feature `mutations`.
        #[arg(long)]
        bug: Option<String>,
        /// The nodes' own logs, too: a filter such as `info` or `mds_cluster=debug`.
        #[arg(long)]
        logs: Option<String>,
        #[command(flatten)]
        cluster: ClusterArgs,
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
        /// Only these, by their names. Default: all.
        #[arg(long)]
        bug: Vec<String>,
    },
    /// Runs one seed and prints the hash of all that happened, the same for the same run.
    Trace {
        /// The seed.
        seed: u64,
    },
}

/// What the cluster of each seed is like.
#[derive(ClapArgs)]
struct ClusterArgs {
    /// Without changes of the ring.
    #[arg(long)]
    steady: bool,
    /// The ring is always looked after by the leader itself, where it changes. Default: in a share of the seeds.
    #[arg(long, conflicts_with_all = ["steady", "operator"])]
    auto: bool,
    /// The ring is never looked after by the leader itself.
    #[arg(long)]
    operator: bool,
    /// Nodes that the cluster is born with, 3 to 200. Default: three, or five in a share of the seeds.
    #[arg(long, value_parser = clap::value_parser!(u64).range(NODES_MIN..=NODES_MAX))]
    nodes: Option<u64>,
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::Run {
            seeds,
            start,
            jobs,
            cluster,
        } => run_many(start, seeds, jobs, &settings(&cluster)),
        Command::Cores { seeds, start, jobs } => run_cores(start, seeds, jobs),
        Command::Speed { seeds } => run_speed(seeds),
        Command::Mutations { seeds, start, bug } => run_mutations(start, seeds, &bug),
        Command::Replay {
            seed,
            messages,
            events,
            shrink,
            bug,
            logs,
            cluster,
        } => {
            if let Some(name) = bug
                && let Err(error) = plant(&name)
            {
                println!("{error}");
                return ExitCode::FAILURE;
            }
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
                ..settings(&cluster)
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

/// Everything is drawn from the seed; changes of the ring can be left out, who looks after it and the number of nodes
/// can be said.
fn settings(cluster: &ClusterArgs) -> Settings {
    let is_auto = (cluster.auto || cluster.operator).then_some(cluster.auto);
    Settings {
        nodes: cluster.nodes.map(|nodes| nodes as usize),
        rings: cluster.steady.then(RingConfig::none),
        is_auto,
        ..Settings::default()
    }
}

fn run_many(start: u64, seeds: u64, jobs: Option<NonZeroUsize>, settings: &Settings) -> ExitCode {
    let watch = Stopwatch::start();
    let mut failed = 0;
    let mut sim_s = 0.0;
    let mut coverage = Coverage::default();
    let make = |seed| run(seed, settings);
    let jobs = jobs.unwrap_or_else(machine_cores);
    for_each_seed(start..start + seeds, jobs, make, |report| {
        coverage.add(&report);
        sim_s += report.sim_ns as f64 / 1e9;
        if !report.violations.is_empty() {
            failed += 1;
            print_failure(&report);
        }
    });
    print_speed(sim_s, &watch);
    print_counts("faults", &coverage.faults);
    print_counts("reached", &coverage.reached);
    let missing = coverage.missing(settings);
    let is_covered = missing.is_empty() || seeds < SEEDS_MIN;
    if !missing.is_empty() {
        println!("never reached: {}", missing.join(", "));
    }
    println!("{seeds} seeds, {failed} failed");
    exit_code(failed == 0 && is_covered)
}

/// Prints what a batch cost. A cluster-hour is an hour of one cluster, whatever its size.
fn print_speed(sim_s: f64, watch: &Stopwatch) {
    let (wall_s, cpu_s) = watch.elapsed_s();
    println!(
        "{sim_s:.0} simulated seconds in {wall_s:.1} s: {:.0}x",
        sim_s / wall_s
    );
    println!(
        "{cpu_s:.1} CPU seconds: {:.0} simulated cluster-hours per CPU-hour",
        sim_s / cpu_s
    );
}

fn run_cores(start: u64, seeds: u64, jobs: Option<NonZeroUsize>) -> ExitCode {
    let watch = Stopwatch::start();
    let mut failed = 0;
    let mut counts = Counts::default();
    let mut events = 0;
    let jobs = jobs.unwrap_or_else(machine_cores);
    for_each_seed(start..start + seeds, jobs, cores::run, |report| {
        events += report.events;
        for (name, times) in &report.counts.0 {
            counts.add(name, *times);
        }
        if let Some((sentence, detail)) = report.broken.first() {
            failed += 1;
            println!("seed {}: broken: {sentence}: {detail}", report.seed);
        }
    });
    let (wall_s, cpu_s) = watch.elapsed_s();
    println!(
        "{:.0} seeds a second, {:.0} a CPU second; {:.0} events in each",
        seeds as f64 / wall_s,
        seeds as f64 / cpu_s,
        events as f64 / seeds.max(1) as f64
    );
    print_counts("reached", &counts);
    let missing: Vec<&str> = cores::REACHED
        .into_iter()
        .filter(|name| !counts.0.contains_key(name))
        .collect();
    if !missing.is_empty() {
        println!("never reached: {}", missing.join(", "));
    }
    let is_covered = missing.is_empty() || seeds < cores::SEEDS_MIN;
    println!("{seeds} seeds, {failed} failed");
    exit_code(failed == 0 && is_covered)
}

/// The same configuration and the same seeds at all times, so that figures can be compared.
fn run_speed(seeds: u64) -> ExitCode {
    let mut failed = 0;
    for with_faults in [false, true] {
        let drawn = match with_faults {
            true => Settings::default(),
            false => Settings::in_peace(),
        };
        let settings = Settings {
            nodes: Some(5),
            faults_ns: 60 * SECOND_NS,
            rings: Some(RingConfig::none()),
            ..drawn
        };
        let watch = Stopwatch::start();
        let (mut sim_s, mut events, mut operations) = (0.0, 0, 0);
        for seed in 1..=seeds {
            let report = run(seed, &settings);
            sim_s += report.sim_ns as f64 / 1e9;
            events += report.events;
            operations += report.endings.values().sum::<usize>();
            if !report.violations.is_empty() {
                failed += 1;
                print_failure(&report);
            }
        }
        println!(
            "{}: {:.0} operations and {:.0} events a simulated second",
            if with_faults { "faults" } else { "peace" },
            operations as f64 / sim_s,
            events as f64 / sim_s
        );
        print_speed(sim_s, &watch);
    }
    exit_code(failed == 0)
}

#[cfg(not(feature = "mutations"))]
fn plant(_name: &str) -> Result<(), String> {
    Err("this build has no planted bugs: build one with --features mutations".to_owned())
}

/// Switches a bug on for as long as the process lives.
#[cfg(feature = "mutations")]
fn plant(name: &str) -> Result<(), String> {
    use mds_types::mutation::{Mutation, switch};

    let named = |mutation: &Mutation| format!("{mutation:?}") == name;
    let Some(mutation) = Mutation::ALL.into_iter().find(named) else {
        return Err(format!(
            "no planted bug is called {name}; there are {:?}",
            Mutation::ALL
        ));
    };
    switch(Some(mutation));
    Ok(())
}

#[cfg(not(feature = "mutations"))]
fn run_mutations(_start: u64, _seeds: u64, _only: &[String]) -> ExitCode {
    println!("this build has no planted bugs; build one that has:");
    println!("  cargo run --release -p mds-sim --features mutations -- mutations");
    ExitCode::FAILURE
}

#[cfg(feature = "mutations")]
fn run_mutations(start: u64, seeds: u64, only: &[String]) -> ExitCode {
    use mds_sim::mutations::{hunt, settings_for};
    use mds_types::mutation::Mutation;

    // A planted bug may panic, which is caught and counts; nobody needs to read it.
    std::panic::set_hook(Box::new(|_| {}));
    println!("trap  {:<20} {:>6}  caught by", "planted bug", "seeds");
    let name = |mutation: &Mutation| format!("{mutation:?}");
    let is_asked_for = |mutation: &Mutation| match only.is_empty() {
        true => mutation.shows_in_runs(),
        false => only.contains(&name(mutation)),
    };
    let asked: Vec<Mutation> = Mutation::ALL.into_iter().filter(is_asked_for).collect();
    let mut caught = 0;
    for &mutation in &asked {
        let result = hunt(mutation, start, seeds, &settings_for(mutation));
        let by = match result.by {
            Some((seed, invariant)) => {
                caught += 1;
                format!("{invariant} (seed {seed})")
            }
            None => "NOT CAUGHT".to_owned(),
        };
        let name = name(&mutation);
        let trap = mutation
            .trap()
            .map_or_else(String::new, |number| format!("T{number}"));
        println!("{trap:<4}  {name:<20} {:>6}  {by}", result.seeds);
    }
    println!("{caught} of {} caught", asked.len());
    exit_code(caught == asked.len() && caught > 0)
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
