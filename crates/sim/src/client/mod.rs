//! Simulated clients: each does one thing after another, through any node, and remembers what it
//! heard.
//!
//! A client is as careful as a client can be. What was refused before anything was done, it may ask
//! again. What ended unknown, it repeats as the *same* write: with the version it was told, through
//! any node, or, if it was told none, under its own request id through the same node, which knows it
//! unless it was restarted. When it gives up, the write's fate stays unknown.

mod plan;
mod walk;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mds_node::api::{Op, Outcome, Request, RequestError, RequestOptions, Stamp};
use mds_types::{ClusterConfig, Record, Version};

use crate::env::Env;
use crate::event::{Asker, ClientEvent, Event};
use crate::faults::MILLISECOND_NS;
use crate::history::{Ending, History, Kind, Operation};
use crate::random::Random;
use walk::Walk;

/// Keys that the clients fight over.
const KEYS: u64 = 24;

/// Attempts at one operation, at most.
const ATTEMPTS_MAX: u32 = 4;

/// And in a retry storm.
const STORM_ATTEMPTS_MAX: u32 = 12;

/// How long a client lets a node try in a retry storm, milliseconds.
const STORM_TIMEOUT_MS: u32 = 20;

/// A client waits this much longer for an answer than it told the node, nanoseconds.
const PATIENCE_NS: u64 = 500 * MILLISECOND_NS;

/// What a client does.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Task {
    /// Nothing any more.
    Rest,
    /// Whatever comes to its mind.
    Work,
    /// Reads these keys, last one first, of so many replicas, through one node.
    Sweep { node: usize, keys: Vec<(Bytes, u8)> },
    /// Walks through and counts the partitions below this one, through one node.
    Census { node: usize, below: u16 },
}

/// How clients share the keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    /// Everybody writes everything, as it comes.
    Anybody,
    /// Each key has one client that writes it, carries its token, and does one thing after another.
    /// With quorums that meet and blocking repair each key is then an atomic register (Attiya,
    /// Bar-Noy and Dolev, *Sharing Memory Robustly in Message-Passing Systems*, 1995), as long as the
    /// writer knows what it wrote: a key whose last write may have been done, or done twice, is never
    /// written again. Nothing expires.
    OneWriterPerKey,
}

/// A client.
struct Client {
    random: Random,
    task: Task,
    /// Carries version tokens, as a connection of the real server does.
    is_session: bool,
    /// Repeats an unknown write anywhere as a new one, under another stamp.
    is_careless: bool,
    seen: Option<Version>,
    current: Option<Attempt>,
    /// A walk through a partition, or the count of one, that is on its way.
    walk: Option<Walk>,
    next_attempt: u64,
    /// Successes since the last look.
    successes: u64,
}

/// What a client waits for.
struct Attempt {
    number: u64,
    operation: usize,
    node: usize,
    tries: u32,
    /// The stamp that an earlier try was told.
    stamp: Option<Stamp>,
    /// An earlier try may have had an effect.
    may_be_done: bool,
}

/// What one try came to.
enum Heard {
    Ended(Ending),
    /// Records of a partition in the order of keys, and the key behind which more follow.
    Page(Vec<Record>, Option<Bytes>),
    /// Live records of a partition.
    Count(u64),
    /// Nothing was done.
    Refused,
    /// Nobody knows; perhaps the stamp is known.
    Unknown(Option<Stamp>),
    /// The database says that the client is wrong, which it is not.
    Wrong(String),
}

impl Heard {
    /// What a person wants to read of an answer that settles nothing.
    fn bad_news(&self) -> Option<String> {
        match self {
            Heard::Refused => Some("was refused, nothing was done".to_owned()),
            Heard::Unknown(Some(stamp)) => Some(format!("may be done, under {}", stamp.version)),
            Heard::Unknown(None) => Some("has no answer: it may be done".to_owned()),
            Heard::Wrong(what) => Some(format!("is wrong: {what}")),
            Heard::Ended(_) | Heard::Page(..) | Heard::Count(_) => None,
        }
    }
}

/// All clients and what they heard.
pub(crate) struct Clients {
    clients: Vec<Client>,
    pub(crate) history: History,
    nodes: usize,
    replicas: u8,
    quorums: (u8, u8),
    partitions: u16,
    workload: Workload,
    /// With one writer per key: keys that are not written any more.
    retired: BTreeSet<Bytes>,
    storm_until_ns: u64,
}

impl Clients {
    pub(crate) fn new(
        random: &Random,
        nodes: usize,
        clients: usize,
        config: &ClusterConfig,
        workload: Workload,
    ) -> Clients {
        let is_shared = workload == Workload::Anybody;
        let client = |index| Client {
            random: random.part("client", index),
            task: Task::Rest,
            is_session: index % 2 == 0 || !is_shared,
            is_careless: index % 5 == 4 && is_shared,
            seen: None,
            current: None,
            walk: None,
            next_attempt: 0,
            successes: 0,
        };
        Clients {
            // The last one only sweeps.
            clients: (0..=clients).map(client).collect(),
            history: History::default(),
            nodes,
            replicas: config.replicas,
            quorums: (config.read_quorum, config.write_quorum),
            partitions: config.partition_count,
            workload,
            retired: BTreeSet::new(),
            storm_until_ns: 0,
        }
    }

    /// How the keys are shared.
    pub(crate) fn workload(&self) -> Workload {
        self.workload
    }

    /// All but the last begin to work.
    pub(crate) fn work(&mut self, env: &mut Env) {
        let workers = self.clients.len() - 1;
        for (index, client) in self.clients.iter_mut().take(workers).enumerate() {
            client.task = Task::Work;
            let delay_ns = client.random.below(50 * MILLISECOND_NS);
            env.after(
                delay_ns,
                Event::Client {
                    client: index,
                    event: ClientEvent::Next,
                },
            );
        }
    }

    /// Nobody begins anything new.
    pub(crate) fn rest(&mut self) {
        for client in &mut self.clients {
            client.task = Task::Rest;
        }
    }

    /// Whether nobody waits for anything.
    pub(crate) fn are_idle(&self) -> bool {
        self.clients
            .iter()
            .all(|client| client.current.is_none() && client.walk.is_none())
    }

    /// Everything that is written to, and one key that nobody writes: it can be read all the same.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Bytes> + use<> {
        (0..=KEYS).map(key)
    }

    /// All clients lose patience until then, simulated nanoseconds.
    pub(crate) fn storm_until(&mut self, until_ns: u64) {
        self.storm_until_ns = until_ns;
    }

    /// Has the last client read every key of all replicas, through one node.
    /// `replicas`: for each of [`Clients::keys`], how many there are.
    pub(crate) fn sweep(&mut self, node: usize, replicas: &[u8], env: &mut Env) {
        let keys = self.keys().zip(replicas.iter().copied()).collect();
        let sweeper = self.clients.len() - 1;
        self.clients[sweeper].task = Task::Sweep { node, keys };
        env.after(
            0,
            Event::Client {
                client: sweeper,
                event: ClientEvent::Next,
            },
        );
    }

    /// Whether the last client has not seen everything yet.
    pub(crate) fn is_sweeping(&self) -> bool {
        let is_at_it = |task: &Task| matches!(task, Task::Sweep { .. } | Task::Census { .. });
        self.clients.iter().any(|client| is_at_it(&client.task))
    }

    /// The least number of successes of a working client since [`Clients::forget_successes`].
    pub(crate) fn least_successes(&self) -> u64 {
        let working = self
            .clients
            .iter()
            .filter(|client| client.task == Task::Work);
        working.map(|client| client.successes).min().unwrap_or(0)
    }

    pub(crate) fn forget_successes(&mut self) {
        for client in &mut self.clients {
            client.successes = 0;
        }
    }

    pub(crate) fn on_event(&mut self, index: usize, event: ClientEvent, env: &mut Env) {
        let heard = match event {
            ClientEvent::Next => return self.begin(index, env),
            ClientEvent::Reply { attempt, result } => (attempt, heard(*result)),
            ClientEvent::Refused { attempt } => (attempt, Heard::Refused),
            ClientEvent::Broken { attempt } | ClientEvent::Timeout { attempt } => {
                (attempt, Heard::Unknown(None))
            }
        };
        let (number, heard) = heard;
        let client = &self.clients[index];
        let is_of = |attempt: &Attempt| attempt.number == number;
        if client.current.as_ref().is_some_and(is_of) {
            self.on_heard(index, heard, env);
        } else if client.walk.as_ref().is_some_and(|walk| walk.is_of(number)) {
            self.on_walk_heard(index, heard, env);
        }
    }

    /// Sends the current attempt on its way.
    fn send(&mut self, index: usize, env: &mut Env) {
        let is_storm = env.now_ns < self.storm_until_ns;
        let client = &mut self.clients[index];
        let timeout_ms = client.timeout_ms(is_storm);
        let Some(attempt) = &client.current else {
            return;
        };
        let operation = &self.history.operations[attempt.operation];
        let key = operation.key.clone();
        let op = match &operation.kind {
            Kind::Get => Op::Get { key },
            Kind::Put { value } => Op::Put {
                key,
                value: value.clone(),
                expires_at_ms: operation.expires_at_ms,
            },
            Kind::Delete => Op::Delete { key },
        };
        let is_read = operation.kind == Kind::Get;
        let options = RequestOptions {
            read_quorum: Some(operation.read_quorum),
            write_quorum: Some(operation.write_quorum),
            timeout_ms: Some(timeout_ms),
            seen: client.seen.filter(|_| client.is_session),
            stamp: attempt.stamp.filter(|_| !is_read),
            request_id: (!is_read && !client.is_careless).then_some(attempt.operation as u128),
        };
        let (node, number, tries) = (attempt.node, attempt.number, attempt.tries);
        env.line(|| {
            let (what, key) = (operation.kind.name(), operation.key.escape_ascii());
            let quorums = (operation.read_quorum, operation.write_quorum);
            let again = match (tries, attempt.stamp.is_some() && !is_read) {
                (1, _) => String::new(),
                (_, true) => format!(", try {tries}, by its token"),
                (_, false) => format!(", try {tries}"),
            };
            let (number, node) = (attempt.operation, node + 1);
            let (r, w) = quorums;
            format!(
                "client {index} -> node {node}: #{number} {what} {key}, R = {r}, W = {w}{again}"
            )
        });
        self.ask(index, node, number, Request { op, options }, env);
    }

    /// Hands a request to a node, and waits for an answer for a while.
    fn ask(&mut self, index: usize, node: usize, attempt: u64, request: Request, env: &mut Env) {
        let timeout_ms = request.options.timeout_ms.unwrap_or(0);
        let delay_ns = self.clients[index].random.between(20_000, 200_000);
        let from = Asker {
            client: index,
            attempt,
        };
        env.after(
            delay_ns,
            Event::Request {
                node,
                from,
                request: Box::new(request),
            },
        );
        let patience_ns = u64::from(timeout_ms) * MILLISECOND_NS + PATIENCE_NS;
        let event = ClientEvent::Timeout { attempt };
        let client = index;
        env.after(patience_ns, Event::Client { client, event });
    }

    fn on_heard(&mut self, index: usize, heard: Heard, env: &mut Env) {
        let client = &mut self.clients[index];
        let Some(mut attempt) = client.current.take() else {
            return;
        };
        if let Some(why) = heard.bad_news() {
            let (number, node) = (attempt.operation, attempt.node + 1);
            env.line(|| format!("client {index} <- node {node}: #{number} {why}"));
        }
        let is_read = self.history.operations[attempt.operation].kind == Kind::Get;
        let is_storm = env.now_ns < self.storm_until_ns;
        let attempts_max = if is_storm {
            STORM_ATTEMPTS_MAX
        } else {
            ATTEMPTS_MAX
        };
        let heard = match heard {
            // A clock that is wrong cannot tell a token of today from one of next week. Nor can a right one,
            // if the token comes from a node whose clock was ahead and that stamps, after a quick restart,
            // by a mark that leads even that.
            Heard::Wrong(what)
                if what.contains("version token refused") && !env.wrong_clocks.is_empty() =>
            {
                env.reached.count("token refused by a wrong clock");
                Heard::Refused
            }
            heard => heard,
        };
        let ending = match heard {
            Heard::Ended(ending) => ending,
            Heard::Wrong(what) => {
                let operation = &self.history.operations[attempt.operation];
                let detail = format!("{operation:?} was refused as wrong: {what}");
                env.violated("a correct request is never refused as wrong", detail);
                Ending::Failed
            }
            Heard::Page(..) | Heard::Count(_) => {
                let detail = "a read or write was answered by a page or a count".to_owned();
                env.violated("an answer fits its question", detail);
                Ending::Failed
            }
            Heard::Refused | Heard::Unknown(_) if is_read => Ending::Failed,
            Heard::Refused | Heard::Unknown(_) => {
                let is_same_node = match heard {
                    Heard::Unknown(stamp) => {
                        attempt.may_be_done = true;
                        if client.is_careless {
                            env.counts.count("write repeated as another");
                        } else {
                            attempt.stamp = attempt.stamp.or(stamp);
                        }
                        attempt.stamp.is_none() && !client.is_careless
                    }
                    // Nothing was done this time; before, perhaps.
                    _ => attempt.may_be_done && attempt.stamp.is_none() && !client.is_careless,
                };
                if attempt.tries < attempts_max && client.random.below(4) > 0 {
                    attempt.tries += 1;
                    // The node may have been started again and not know the request's name.
                    if attempt.may_be_done && attempt.stamp.is_none() {
                        env.watch.repeated_as_another(attempt.operation);
                        self.retire(attempt.operation, env);
                    }
                    let client = &mut self.clients[index];
                    attempt.number = client.next_attempt();
                    if !is_same_node {
                        attempt.node = client.random.index(self.nodes);
                    }
                    client.current = Some(attempt);
                    return self.send(index, env);
                }
                match attempt.may_be_done {
                    true => Ending::Unknown,
                    false => Ending::Failed,
                }
            }
        };
        self.end(index, &attempt, ending, env);
    }

    fn end(&mut self, index: usize, attempt: &Attempt, ending: Ending, env: &mut Env) {
        let client = &mut self.clients[index];
        let version = match &ending {
            Ending::Read { version, .. } => *version,
            Ending::Written { version } => Some(*version),
            _ => None,
        };
        client.successes += u64::from(matches!(
            ending,
            Ending::Read { .. } | Ending::Written { .. }
        ));
        client.seen = client.seen.max(version);
        env.trace.line(env.now_ns, || {
            let operation = &self.history.operations[attempt.operation];
            let key = String::from_utf8_lossy(&operation.key).into_owned();
            let what = operation.kind.name();
            let how = match &ending {
                Ending::Read {
                    version: Some(version),
                    value: Some(_),
                } => format!("{version}"),
                Ending::Read {
                    version: Some(version),
                    ..
                } => format!("deleted {version}"),
                Ending::Read { version: None, .. } => "absent".to_owned(),
                Ending::Written { version } => format!("written {version}"),
                other => format!("{other:?}"),
            };
            let (number, node) = (attempt.operation, attempt.node + 1);
            format!("client {index} <- node {node}: #{number} {what} {key}: {how}")
        });
        if ending == Ending::Unknown {
            env.reached.count("write ended unknown");
            self.retire(attempt.operation, env);
        }
        self.history.end(attempt.operation, env.now_ns, ending);
        self.history.operations[attempt.operation].is_clock_trusted =
            !env.wrong_clocks.contains(&attempt.node);
        self.think(index, env);
    }

    /// With one writer per key: a write that may be done later, or under two versions, is the last
    /// one of its key.
    fn retire(&mut self, operation: usize, env: &mut Env) {
        if self.workload == Workload::OneWriterPerKey {
            let key = self.history.operations[operation].key.clone();
            if self.retired.insert(key) {
                env.reached.count("key written no more");
            }
        }
    }

    /// A pause before the next thing.
    fn think(&mut self, index: usize, env: &mut Env) {
        let client = &mut self.clients[index];
        let think_ns = match env.now_ns < self.storm_until_ns {
            true => client.random.below(MILLISECOND_NS),
            false => client.random.between(MILLISECOND_NS, 60 * MILLISECOND_NS),
        };
        env.after(
            think_ns,
            Event::Client {
                client: index,
                event: ClientEvent::Next,
            },
        );
    }

    /// How many writes were acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        let written = |o: &&Operation| matches!(o.ending, Ending::Written { .. });
        self.history.operations.iter().filter(written).count()
    }

    /// How many operations ended each way.
    pub(crate) fn endings(&self) -> BTreeMap<&'static str, usize> {
        let mut endings = BTreeMap::new();
        for operation in &self.history.operations {
            let name = match operation.ending {
                Ending::Pending => "pending",
                Ending::Read { .. } => "read",
                Ending::Written { .. } => "written",
                Ending::Failed => "failed",
                Ending::Unknown => "unknown",
            };
            *endings.entry(name).or_default() += 1;
        }
        endings
    }
}

impl Client {
    fn next_attempt(&mut self) -> u64 {
        self.next_attempt += 1;
        self.next_attempt
    }

    /// How long it lets a node try, milliseconds.
    fn timeout_ms(&mut self, is_storm: bool) -> u32 {
        match is_storm {
            true => STORM_TIMEOUT_MS,
            false => self.random.between(200, 2_000) as u32,
        }
    }
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number}"))
}

fn heard(result: Result<Outcome, RequestError>) -> Heard {
    match result {
        Ok(Outcome::Read { version, value, .. }) => Heard::Ended(Ending::Read { version, value }),
        Ok(Outcome::Written { version, .. }) => Heard::Ended(Ending::Written { version }),
        Ok(Outcome::Page { records, next }) => Heard::Page(records, next),
        Ok(Outcome::Count(count)) => Heard::Count(count),
        Err(RequestError::Unknown { stamp, .. }) => Heard::Unknown(Some(stamp)),
        Err(
            RequestError::Unavailable { .. }
            | RequestError::Overloaded(_)
            | RequestError::NotReady(_),
        ) => Heard::Refused,
        Err(RequestError::TimedOut { .. }) => Heard::Unknown(None),
        Err(error @ (RequestError::BadRequest(_) | RequestError::TooLarge { .. })) => {
            Heard::Wrong(error.to_string())
        }
    }
}
