//! `bench`.

use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use mds_types::limits::VALUE_BYTES_MAX;

use super::output::{self, Failure};
use crate::bench::keys::Distribution;
use crate::bench::plan::{Pace, Plan, Protocol, Target, Until, Verify};
use crate::bench::processes::Named;
use crate::bench::report::Report;
use crate::bench::schedule::Arrivals;
use crate::bench::workload::Workload;
use crate::bench::{svg, table};

pub(super) const LONG_ABOUT: &str = "\
Load a server and measure it: throughput, latency, processor time, and whether what is read is right.

The target is any server of the Redis protocol, or the HTTP interface of a node. In a closed loop (the default) each \
connection sends the next request when the last is answered: this finds out how much a server can do. In an open loop \
(--rate) requests are sent at their times whatever the server does, and latency counts from when a request was due: \
this finds out what users feel. docs/bench.md tells how to measure honestly.";

pub(super) const EXAMPLES: &str = "\
Workloads:
  a    half reads, half updates, zipfian        b    95 % reads, zipfian
  c    only reads, zipfian                      d    95 % reads of the latest keys, 5 % inserts
  f    half reads, half read-modify-writes      set, get   only that, uniform
  YCSB's e, range scans, is left out: keys are placed by hash, so there is no order to scan in.

Examples, with a lab running:
  mydatastore bench --load --workload a                       fill 100,000 keys, then measure for ten seconds
  mydatastore bench --workload b --rate 5000 --svg b.svg      what users feel at 5000 requests a second
  mydatastore bench --workload a --load --verify --target 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103
  mydatastore bench --workload set --pipeline 16 --json
  mydatastore bench --target http://127.0.0.1:8101 --workload get --read-quorum 1

CPU per request is that of all processes that listen on the targets and of the rest of their cluster on this machine: \
processes of the same program that listen and are connected to them. --pid and --servers add others.

Ctrl-C ends early, with the report of what was measured. The fields of --json are described in docs/bench.md.

Exit codes: 0 measured (errors of requests are in the report), 1 --verify found violations, 2 used wrongly, \
3 nothing could be measured: a target is not there, loading failed, or not one request succeeded.";

/// Connections at most: each has buffers, and a port of this machine.
const CONNECTIONS_MAX: usize = 50_000;
const THREADS_MAX: usize = 64;
const PIPELINE_MAX: usize = 1_024;
/// Keys at most.
const KEYS_MAX: u64 = 1 << 40;
/// Seconds at most: a week.
const SECONDS_MAX: f64 = 604_800.0;
/// Requests a second at most.
const RATE_MAX: f64 = 1e7;
/// Bytes of a key at most.
const KEY_BYTES_MAX: u64 = 32_768;

/// Arguments of `bench`.
#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    /// Where to: HOST:PORT of Redis servers, or http://HOST:PORT; several with commas, connections are dealt out
    #[arg(
        long,
        default_value = "127.0.0.1:7101",
        value_name = "TARGETS",
        value_delimiter = ','
    )]
    target: Vec<String>,
    /// What to do: a, b, c, d, f (of YCSB), set, get
    #[arg(long, default_value = "a", value_name = "NAME")]
    workload: String,
    /// Instead of a workload: this share of reads, from 0 to 1, else updates
    #[arg(long, value_name = "SHARE", conflicts_with = "workload")]
    read_share: Option<f64>,
    /// How keys are chosen: uniform, zipfian, latest, or hot:SHARE (that share of requests at one key) [default: the workload's]
    #[arg(long, value_name = "NAME")]
    distribution: Option<Distribution>,
    /// Number of keys
    #[arg(long, default_value_t = 100_000, value_name = "KEYS", value_parser = clap::value_parser!(u64).range(1..=KEYS_MAX))]
    keys: u64,
    /// Bytes of each key, the prefix included
    #[arg(long, default_value_t = 16, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..=KEY_BYTES_MAX))]
    key_bytes: u64,
    /// What keys begin with: letters, digits and :_.-
    #[arg(long, default_value = "key:", value_name = "TEXT")]
    key_prefix: String,
    /// Bytes of each value, or MIN-MAX for lengths between
    #[arg(long, default_value = "100", value_name = "BYTES")]
    value_bytes: ByteRange,
    /// Replicas that must answer a read (R), and no more, whatever the connection has seen; MyDataStore only
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u8).range(1..))]
    read_quorum: Option<u8>,
    /// Replicas that must have a write on disk (W); MyDataStore only
    #[arg(long, value_name = "W", value_parser = clap::value_parser!(u8).range(1..))]
    write_quorum: Option<u8>,
    /// Write all keys first
    #[arg(long)]
    load: bool,
    /// Write all keys, and nothing else
    #[arg(long, conflicts_with_all = ["load", "rate", "seconds", "requests", "verify", "svg"])]
    only_load: bool,
    /// Open loop: so many requests a second over all connections
    #[arg(long, value_name = "REQUESTS")]
    rate: Option<f64>,
    /// How requests of an open loop follow each other
    #[arg(long, value_enum, default_value_t = Arrivals::Even, requires = "rate")]
    arrivals: Arrivals,
    /// Connections
    #[arg(long, short = 'c', default_value_t = 50, value_name = "COUNT")]
    connections: usize,
    /// Requests on their way on each connection, at most; in a closed loop sent together
    #[arg(long, short = 'P', default_value_t = 1, value_name = "REQUESTS")]
    pipeline: usize,
    /// Threads of the generator
    #[arg(long, default_value_t = 1, value_name = "COUNT")]
    threads: usize,
    /// Seconds that are not counted, before those that are
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS")]
    warmup: f64,
    /// Seconds that are counted [default: 10]
    #[arg(long, value_name = "SECONDS", conflicts_with = "requests")]
    seconds: Option<f64>,
    /// Instead of seconds: operations that are counted
    #[arg(long, short = 'n', value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,
    /// Check every read: whole, written to that key by this run or a load, and (fresh) not older than the last write
    /// acknowledged before
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "fresh", value_name = "WHAT")]
    verify: Option<Verify>,
    /// The same seed gives the same operations
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    seed: u64,
    /// Wait so long for an answer; then the connection is made again
    #[arg(long, default_value_t = 10_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    timeout_ms: u64,
    /// Tries to make a broken connection again, up to a second apart, before it is given up
    #[arg(long, default_value_t = 120, value_name = "TRIES")]
    reconnects: u32,
    /// Processes whose processor time counts as well, with commas
    #[arg(long, value_name = "PIDS", value_delimiter = ',')]
    pid: Vec<u32>,
    /// The same by how their command lines begin, such as `mydatastore serve`; may be repeated
    #[arg(long, value_name = "COMMAND")]
    servers: Vec<String>,
    /// Write a plot of latency and throughput to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// `100` or `100-2000`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct ByteRange {
    min: usize,
    max: usize,
}

impl FromStr for ByteRange {
    type Err = String;

    fn from_str(text: &str) -> Result<ByteRange, String> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        let bytes = |text: &str| {
            text.parse::<usize>()
                .ok()
                .filter(|bytes| *bytes <= VALUE_BYTES_MAX)
        };
        match (bytes(min), bytes(max)) {
            (Some(min), Some(max)) if min <= max => Ok(ByteRange { min, max }),
            _ => Err(format!(
                "expected BYTES or MIN-MAX, up to {VALUE_BYTES_MAX}"
            )),
        }
    }
}

pub(super) fn bench(args: &BenchArgs) -> Result<ExitCode, Failure> {
    let plan = args.plan()?;
    let named = Named {
        pids: args.pid.clone(),
        commands: args
            .servers
            .iter()
            .map(|text| text.split_whitespace().map(str::to_owned).collect())
            .collect(),
    };
    let report = crate::bench::run(plan, named)?;
    match args.json {
        true => output::json(&report)?,
        false => table::print(&report)?,
    }
    if let Some(path) = &args.svg
        && let Some(plot) = svg::draw(&report)
    {
        std::fs::write(path, plot)
            .map_err(|error| Failure::usage(format!("cannot write {}: {error}", path.display())))?;
    }
    exit_code(&report)
}

fn exit_code(report: &Report) -> Result<ExitCode, Failure> {
    match report.violations() {
        0 if report.has_failed() => Err(Failure::unavailable("not one request succeeded")),
        0 => Ok(ExitCode::SUCCESS),
        count => Err(Failure::not_found(format!(
            "{count} reads returned what they must not: see the report"
        ))),
    }
}

impl BenchArgs {
    fn plan(&self) -> Result<Plan, Failure> {
        self.check_ranges().map_err(Failure::usage)?;
        let (protocol, targets) = targets(&self.target).map_err(Failure::usage)?;
        let (name, workload) = match self.read_share {
            Some(share) => (format!("read-share {share}"), Workload::of_reads(share)),
            None => {
                let workload = self.workload.parse::<Workload>();
                let workload =
                    workload.map_err(|why| Failure::usage(format!("--workload: {why}")))?;
                (self.workload.clone(), workload)
            }
        };
        let until = match (self.requests, self.seconds) {
            _ if self.only_load => None,
            (Some(requests), _) => Some(Until::Operations(requests)),
            (None, seconds) => Some(Until::Span(Duration::from_secs_f64(
                seconds.unwrap_or(10.0),
            ))),
        };
        let plan = Plan {
            protocol,
            targets,
            connections: self.connections,
            threads: self.threads,
            pipeline: self.pipeline,
            pace: match self.rate {
                None => Pace::Closed,
                Some(rate) => Pace::Open {
                    rate,
                    arrivals: self.arrivals,
                },
            },
            workload: name,
            mix: workload.mix,
            distribution: self.distribution.unwrap_or(workload.distribution),
            keys: self.keys,
            key_bytes: self.key_bytes as usize,
            key_prefix: self.key_prefix.clone(),
            value_bytes: (self.value_bytes.min, self.value_bytes.max),
            r: self.read_quorum,
            w: self.write_quorum,
            loads: self.load || self.only_load,
            warmup: Duration::from_secs_f64(self.warmup),
            until,
            verify: self.verify,
            seed: self.seed,
            run: unique(),
            timeout: Duration::from_millis(self.timeout_ms),
            reconnects: self.reconnects,
        };
        plan.check().map_err(Failure::usage)?;
        Ok(plan)
    }

    fn check_ranges(&self) -> Result<(), String> {
        let within = |name: &str, value: usize, max: usize| match (1..=max).contains(&value) {
            true => Ok(()),
            false => Err(format!("--{name} is {value}: it has to be from 1 to {max}")),
        };
        within("connections", self.connections, CONNECTIONS_MAX)?;
        within("threads", self.threads, THREADS_MAX)?;
        within("pipeline", self.pipeline, PIPELINE_MAX)?;
        let spans = [
            ("warmup", Some(self.warmup), 0.0),
            ("seconds", self.seconds, 0.001),
        ];
        for (name, span, min) in spans {
            if span.is_some_and(|span| !(min..=SECONDS_MAX).contains(&span)) {
                return Err(format!("--{name} has to be from {min} to {SECONDS_MAX}"));
            }
        }
        if self
            .rate
            .is_some_and(|rate| !(0.001..=RATE_MAX).contains(&rate))
        {
            return Err(format!("--rate has to be from 0.001 to {RATE_MAX}"));
        }
        if self
            .read_share
            .is_some_and(|share| !(0.0..=1.0).contains(&share))
        {
            return Err("--read-share has to be from 0 to 1".to_owned());
        }
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || ":_.-".contains(letter);
        match self.key_prefix.chars().all(is_plain) {
            true => Ok(()),
            false => Err("--key-prefix may have letters, digits and :_.- in it".to_owned()),
        }
    }
}

fn targets(texts: &[String]) -> Result<(Protocol, Vec<Target>), String> {
    let protocol = match texts
        .iter()
        .filter(|text| text.starts_with("http://"))
        .count()
    {
        0 => Protocol::Resp,
        count if count == texts.len() => Protocol::Http,
        _ => return Err("--target: either all are http://HOST:PORT, or none".to_owned()),
    };
    let targets = texts.iter().map(|text| {
        let name = text
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned();
        let addr = name
            .to_socket_addrs()
            .ok()
            .and_then(|mut addrs| addrs.next());
        match addr {
            Some(addr) => Ok(Target { name, addr }),
            None => Err(format!(
                "--target: `{text}` is not an address: expected HOST:PORT or http://HOST:PORT"
            )),
        }
    });
    Ok((protocol, targets.collect::<Result<_, _>>()?))
}

/// A number that no other run has: of the clock and this process.
fn unique() -> u64 {
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let text = format!("{} {}", since_1970.as_nanos(), std::process::id());
    xxhash_rust::xxh3::xxh3_64(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_a_length_or_a_range_of_them() {
        let range = |text: &str| {
            text.parse::<ByteRange>()
                .map(|range| (range.min, range.max))
        };
        assert_eq!(range("100"), Ok((100, 100)));
        assert_eq!(range("0-5"), Ok((0, 5)));
        for text in ["", "-", "5-", "6-5", "x", "-1", "99999999999"] {
            assert!(range(text).is_err(), "{text}");
        }
    }

    #[test]
    fn targets_speak_one_protocol() {
        let of = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
            targets(&texts)
        };
        let (protocol, found) = of(&["127.0.0.1:1", "127.0.0.1:2"]).unwrap();
        assert_eq!((protocol, found.len()), (Protocol::Resp, 2));
        let (protocol, found) = of(&["http://127.0.0.1:8101/"]).unwrap();
        assert_eq!(
            (protocol, found[0].name.as_str()),
            (Protocol::Http, "127.0.0.1:8101")
        );
        assert!(of(&["http://127.0.0.1:1", "127.0.0.1:2"]).is_err());
        assert!(of(&["nowhere"]).is_err());
    }
}
