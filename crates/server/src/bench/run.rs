//! A run from beginning to end: threads, phases, the timeline, processor time, the report.
//!
//! Threads do the work; this one gives them phases, hears of each second from them, looks at the servers' processor
//! time once a second, and ends early on a signal. A second signal ends it without a report.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::assembly::Cpu;
use super::connection::Connection;
use super::epoll;
use super::plan::{Plan, Until};
use super::processes::{Named, Watch, own_us};
use super::progress::Progress;
use super::readiness;
use super::report::{LoadBody, Report, ResultBody, SecondBody};
use super::shared::Shared;
use super::tally::{Slice, Tally};
use super::verify::Ledger;
use super::worker::{Manners, SECOND_NS, Worker};
use crate::cli::{Failure, output};

/// What threads said and was not heard yet, at most: each says something once a second.
const SAID_MAX: usize = 4_096;

/// Phases that a thread is told of beforehand.
const ORDERS_MAX: usize = 2;

/// Between the order to begin and the beginning, nanoseconds: so that all threads begin together.
const RUN_UP_NS: u64 = 2_000_000;

/// The exit code after a second signal: 128 and the number of SIGINT, as shells have it.
const INTERRUPTED: i32 = 130;

/// What a thread is to do next.
#[derive(Debug)]
enum Order {
    Load { start_ns: u64 },
    Measure { start_ns: u64 },
}

/// What a thread says.
#[derive(Debug)]
enum Said {
    /// A target does not serve yet, in its words.
    Waits(String),
    Ready,
    Second(u64, Slice),
    Done(Box<Tally>),
    Failed(String),
}

/// Carries out a plan.
///
/// # Errors
/// When nothing can be measured: a target is not there, the load phase failed.
pub(crate) fn run(plan: Plan, named: Named) -> Result<Report, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut run = Run::start(plan, named)?;
        let result = run.all().await;
        run.progress.clear();
        result
    })
}

struct Run {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    ledger: Option<Arc<Ledger>>,
    orders: Vec<std::sync::mpsc::SyncSender<Order>>,
    said: mpsc::Receiver<Said>,
    interrupt: Signal,
    terminate: Signal,
    named: Named,
    progress: Progress,
}

impl Run {
    fn start(plan: Plan, named: Named) -> Result<Run, Failure> {
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        let plan = Arc::new(plan);
        let shared = Arc::new(Shared::new());
        let ledger = plan.ledger();
        let (say, said) = mpsc::channel(SAID_MAX);
        let mut orders = Vec::new();
        for number in 0..plan.threads {
            let (order, ordered) = std::sync::mpsc::sync_channel(ORDERS_MAX);
            orders.push(order);
            let thread = Thread {
                number,
                plan: plan.clone(),
                shared: shared.clone(),
                ledger: ledger.clone(),
                say: say.clone(),
            };
            let name = format!("bench-{number}");
            std::thread::Builder::new()
                .name(name)
                .spawn(move || thread.main(&ordered))?;
        }
        Ok(Run {
            progress: Progress::new(),
            plan,
            shared,
            ledger,
            orders,
            said,
            interrupt,
            terminate,
            named,
        })
    }

    async fn all(&mut self) -> Result<Report, Failure> {
        let mut report = Report::new(&self.plan, output::now_ms());
        self.connect().await?;
        if self.plan.loads {
            report.load = Some(self.load().await?);
        }
        if self.plan.until.is_some() {
            report.result = Some(self.measure().await?);
        }
        report.interrupted = self.shared.stop.load(Ordering::Relaxed);
        Ok(report)
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        let mut ready = 0;
        while ready < self.plan.threads {
            match self.hear().await? {
                Some(Said::Ready) => ready += 1,
                Some(Said::Waits(text)) => self.progress.waiting(&text),
                _ => return Err(Failure::unavailable("interrupted")),
            }
        }
        self.progress.clear();
        Ok(())
    }

    async fn load(&mut self) -> Result<LoadBody, Failure> {
        let start_ns = self.order(|start_ns| Order::Load { start_ns });
        let keys = self.plan.keys;
        let mut loaded = 0;
        let tally = self.until_done(|run, said| {
            if let Said::Second(_, slice) = said {
                loaded += slice.latency.len();
                run.progress
                    .loading(loaded, keys, run.shared.clock.now_ns() - start_ns);
            }
        });
        let tally = tally.await?;
        let all = tally.all();
        if let Some((kind, of)) = tally.errors.iter().next() {
            let example = of.examples.first().map_or("", |example| example.as_str());
            return Err(Failure::unavailable(format!(
                "{} of {keys} keys could not be loaded, among them {} of {kind}: {example}",
                all.errors, of.count
            )));
        }
        if all.latency.len() < keys {
            let said = format!(
                "interrupted when {} of {keys} keys were loaded",
                all.latency.len()
            );
            return Err(Failure::unavailable(said));
        }
        if let Some(ledger) = &self.ledger {
            ledger.loaded();
        }
        let seconds = (tally.ended_ns - start_ns) as f64 / 1e9;
        self.progress.clear();
        Ok(LoadBody {
            keys,
            seconds: (seconds * 1e3).round() / 1e3,
            rate: (keys as f64 / seconds.max(1e-9)).round(),
        })
    }

    async fn measure(&mut self) -> Result<ResultBody, Failure> {
        let addrs = self.plan.targets.iter().map(|target| target.addr).collect();
        let mut watch = Watch::begin(addrs, std::mem::take(&mut self.named));
        let start_ns = self.order(|start_ns| Order::Measure { start_ns });
        let measure_from_ns = start_ns + self.plan.warmup.as_nanos() as u64;
        let mut timeline = Timeline::new(&self.plan, start_ns, measure_from_ns);
        // The warm-up's use does not count.
        let shared = self.shared.clone();
        let restart = async {
            let wait_ns = measure_from_ns.saturating_sub(shared.clock.now_ns());
            tokio::time::sleep(Duration::from_nanos(wait_ns)).await;
        };
        let mut own_before_us = 0;
        let mut done = Vec::new();
        tokio::pin!(restart);
        let mut is_restarted = false;
        while done.len() < self.plan.threads {
            let said = tokio::select! {
                () = &mut restart, if !is_restarted => {
                    is_restarted = true;
                    watch.restart();
                    own_before_us = sum(own_us());
                    continue;
                }
                said = self.hear() => said?,
            };
            match said {
                Some(Said::Second(second, slice)) => {
                    if let Some(whole) = timeline.add(second, &slice) {
                        watch.look();
                        self.progress.measuring(&whole);
                    }
                }
                Some(Said::Done(tally)) => done.push(*tally),
                Some(Said::Waits(_) | Said::Ready | Said::Failed(_)) | None => {}
            }
        }
        let generator_us = match is_restarted {
            true => sum(own_us()) - own_before_us,
            false => 0,
        };
        let tally = merged(done);
        let cpu = Cpu {
            servers: watch.end(),
            generator_us,
        };
        let end_ns = match self.plan.until {
            Some(Until::Span(span)) => tally.ended_ns.min(measure_from_ns + span.as_nanos() as u64),
            _ => tally.ended_ns,
        };
        let window_s = end_ns.saturating_sub(measure_from_ns) as f64 / 1e9;
        Ok(ResultBody::new(
            &self.plan,
            &tally,
            window_s,
            timeline.seconds(end_ns),
            cpu,
        ))
    }

    /// Tells all threads to begin together; when that is.
    fn order(&self, order: impl Fn(u64) -> Order) -> u64 {
        let start_ns = self.shared.clock.now_ns() + RUN_UP_NS;
        self.shared.begin(start_ns);
        for thread in &self.orders {
            // One that has gone has said why.
            let _ = thread.send(order(start_ns));
        }
        start_ns
    }

    async fn until_done(
        &mut self,
        mut on_said: impl FnMut(&mut Run, &Said),
    ) -> Result<Tally, Failure> {
        let mut done = Vec::new();
        while done.len() < self.plan.threads {
            let Some(said) = self.hear().await? else {
                continue;
            };
            on_said(self, &said);
            if let Said::Done(tally) = said {
                done.push(*tally);
            }
        }
        Ok(merged(done))
    }

    /// The next thing that a thread says; `None` after the first signal.
    async fn hear(&mut self) -> Result<Option<Said>, Failure> {
        tokio::select! {
            said = self.said.recv() => match said {
                Some(Said::Failed(why)) => Err(Failure::unavailable(why)),
                Some(said) => Ok(Some(said)),
                None => Err(Failure::unavailable("the threads of the bench have ended")),
            },
            _ = self.interrupt.recv() => Ok(self.end_early()),
            _ = self.terminate.recv() => Ok(self.end_early()),
        }
    }

    fn end_early(&mut self) -> Option<Said> {
        if self.shared.stop.swap(true, Ordering::Relaxed) {
            self.progress.clear();
            std::process::exit(INTERRUPTED);
        }
        None
    }
}

fn sum((user_us, system_us): (u64, u64)) -> u64 {
    user_us + system_us
}

fn merged(tallies: Vec<Tally>) -> Tally {
    let mut merged = Tally::new();
    for tally in tallies {
        merged.add(tally);
    }
    merged
}

/// A thread of the generator.
struct Thread {
    number: usize,
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    ledger: Option<Arc<Ledger>>,
    say: mpsc::Sender<Said>,
}

impl Thread {
    fn main(self, orders: &std::sync::mpsc::Receiver<Order>) {
        epoll::wake_on_time();
        if let Err(why) = self.serve(orders) {
            let _ = self.say.blocking_send(Said::Failed(why));
        }
    }

    fn serve(&self, orders: &std::sync::mpsc::Receiver<Order>) -> Result<(), String> {
        let plan = &self.plan;
        let manners = |pipeline| Manners {
            pipeline,
            timeout: plan.timeout,
            reconnects: plan.reconnects,
        };
        let of_thread = (0..plan.connections).filter(|number| number % plan.threads == self.number);
        let connections = of_thread.enumerate().map(|(token, number)| {
            // Each thread has connections to all targets, if it has enough.
            let target = number / plan.threads % plan.targets.len();
            let addr = plan.targets[target].addr;
            Connection::new(
                token,
                number,
                (target, addr),
                plan.wire(target),
                plan.load_pipeline(),
            )
        });
        let connections = connections.collect();
        let worker = Worker::new(self.shared.clone(), manners(plan.pipeline), connections);
        let mut worker = worker.map_err(|error| format!("cannot wait for sockets: {error}"))?;
        if plan.loads {
            self.wait_until_served()?;
        }
        worker
            .connect()
            .map_err(|(target, why)| self.cannot_use(target, &why))?;
        let _ = self.say.blocking_send(Said::Ready);
        while let Ok(order) = orders.recv() {
            let key_form = plan.key_form()?;
            let (mut phase, pipeline) = match order {
                Order::Load { start_ns } => (
                    plan.load_phase(self.number, key_form, start_ns),
                    plan.load_pipeline(),
                ),
                Order::Measure { start_ns } => {
                    let ledger = self.ledger.clone();
                    (
                        plan.measured_phase(self.number, key_form, ledger, start_ns),
                        plan.pipeline,
                    )
                }
            };
            worker.behave(manners(pipeline));
            let mut tell = |second, slice| {
                let _ = self.say.blocking_send(Said::Second(second, slice));
            };
            let done = worker.run(&mut phase, &mut tell);
            done.map_err(|error| format!("cannot wait for sockets: {error}"))?;
            let _ = self.say.blocking_send(Said::Done(Box::new(phase.tally)));
        }
        Ok(())
    }
}

impl Thread {
    /// Waits for all targets. Some refuse even the greeting until they serve.
    fn wait_until_served(&self) -> Result<(), String> {
        let mut key = Vec::new();
        self.plan.key_form()?.write(0, &mut key);
        for (number, target) in self.plan.targets.iter().enumerate() {
            let on_wait = |said: &str| {
                let text = format!("{} does not serve yet: {said}", target.name);
                let _ = self.say.blocking_send(Said::Waits(text));
                !self.shared.stop.load(Ordering::Relaxed)
            };
            let mut wire = self.plan.wire(number);
            readiness::wait_until_served(target.addr, &mut wire, &key, on_wait)
                .map_err(|why| self.cannot_use(number, &why))?;
        }
        Ok(())
    }

    fn cannot_use(&self, target: usize, why: &str) -> String {
        let target = self.plan.targets.get(target);
        let name = target.map_or("?", |target| target.name.as_str());
        format!("cannot use {name}: {why}. Is it running? (`mydatastore lab` starts a cluster)")
    }
}

/// Seconds, put together from all threads.
struct Timeline {
    threads: usize,
    start_ns: u64,
    measure_from_ns: u64,
    slices: BTreeMap<u64, (Slice, usize)>,
    whole: Vec<SecondBody>,
}

impl Timeline {
    fn new(plan: &Plan, start_ns: u64, measure_from_ns: u64) -> Timeline {
        Timeline {
            threads: plan.threads,
            start_ns,
            measure_from_ns,
            slices: BTreeMap::new(),
            whole: Vec::new(),
        }
    }

    /// Adds a thread's; the second, if all threads have told of it.
    fn add(&mut self, second: u64, slice: &Slice) -> Option<SecondBody> {
        let (all, told) = self
            .slices
            .entry(second)
            .or_insert_with(|| (Slice::new(), 0));
        all.add(slice);
        *told += 1;
        if *told < self.threads {
            return None;
        }
        let (slice, _) = self.slices.remove(&second)?;
        let body = self.body(second, 1.0, &slice);
        self.whole.push(body);
        Some(body)
    }

    fn body(&self, second: u64, span_s: f64, slice: &Slice) -> SecondBody {
        let is_warmup = self.start_ns + second * SECOND_NS < self.measure_from_ns;
        SecondBody::new(second, span_s, is_warmup, slice)
    }

    /// All seconds of a run that ended then.
    fn seconds(self, end_ns: u64) -> Vec<SecondBody> {
        self.whole
            .into_iter()
            .filter_map(|mut body| {
                let from_ns = self.start_ns + body.second * SECOND_NS;
                let span_ns = end_ns.saturating_sub(from_ns).min(SECOND_NS);
                body.span_s = (span_ns as f64 / 1e6).round() / 1e3;
                // Answers that came after the end, to requests before it: too few for a second of their own.
                (body.span_s > 0.0).then_some(body)
            })
            .collect()
    }
}
