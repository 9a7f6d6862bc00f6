//! Walks: a partition read page by page, or counted.
//!
//! A walk goes on through another node each time, as a client behind a balancer does. One that is not
//! answered is given up after a few tries. At rest, when all replicas are equal, the **census** walks
//! through and counts every partition through each node.

use bytes::Bytes;
use mds_node::api::{Op, Request, RequestOptions};
use mds_types::PartitionId;

use super::{Clients, Heard, Task};
use crate::env::Env;
use crate::event::{ClientEvent, Event};
use crate::history::{Count, Page};

/// Tries at one page, at most. The census does not give up: its time is bounded by the run.
const TRIES_MAX: u32 = 3;

/// Records asked for at a time, at most: few, so that a walk has several pages.
const LIMIT_MAX: u64 = 4;

/// What is asked of a partition.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Question {
    /// Records behind this key, so many at most.
    Page { after: Option<Bytes>, limit: u32 },
    /// How many there are.
    Count,
}

/// A walk on its way.
pub(super) struct Walk {
    /// The attempt that is waited for.
    number: u64,
    partition: u16,
    question: Question,
    read_quorum: u8,
    node: usize,
    invoked_ns: u64,
    tries: u32,
    is_census: bool,
}

impl Walk {
    /// Whether this attempt is the one that is waited for.
    pub(super) fn is_of(&self, number: u64) -> bool {
        self.number == number
    }
}

impl Clients {
    /// Has the last client walk through and count every partition, through one node.
    pub(crate) fn census(&mut self, node: usize, env: &mut Env) {
        let client = self.clients.len() - 1;
        let below = self.partitions;
        self.clients[client].task = Task::Census { node, below };
        let event = ClientEvent::Next;
        env.after(0, Event::Client { client, event });
    }

    /// The next partition of the census.
    pub(super) fn begin_census(&mut self, index: usize, env: &mut Env) {
        let client = &mut self.clients[index];
        let Task::Census { node, below } = &mut client.task else {
            return;
        };
        let Some(partition) = below.checked_sub(1) else {
            client.task = Task::Rest;
            return;
        };
        *below = partition;
        let node = *node;
        let limit = client.random.between(1, LIMIT_MAX) as u32;
        let question = Question::Page { after: None, limit };
        self.walk(index, partition, question, 1, node, true, env);
    }

    /// A client at work looks at a partition.
    pub(super) fn begin_walk(&mut self, index: usize, env: &mut Env) {
        let random = &mut self.clients[index].random;
        let partition = random.below(u64::from(self.partitions)) as u16;
        let node = random.index(self.nodes);
        let question = match random.below(4) {
            0 => Question::Count,
            _ => Question::Page {
                after: None,
                limit: random.between(1, LIMIT_MAX) as u32,
            },
        };
        let read_quorum = match random.below(5) {
            0 => random.between(1, u64::from(self.replicas)) as u8,
            _ => self.quorums.0,
        };
        self.walk(index, partition, question, read_quorum, node, false, env);
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a walk")]
    fn walk(
        &mut self,
        index: usize,
        partition: u16,
        question: Question,
        read_quorum: u8,
        node: usize,
        is_census: bool,
        env: &mut Env,
    ) {
        let client = &mut self.clients[index];
        client.walk = Some(Walk {
            number: client.next_attempt(),
            partition,
            question,
            read_quorum,
            node,
            invoked_ns: env.now_ns,
            tries: 1,
            is_census,
        });
        self.send_walk(index, env);
    }

    fn send_walk(&mut self, index: usize, env: &mut Env) {
        let is_storm = env.now_ns < self.storm_until_ns;
        let client = &mut self.clients[index];
        let timeout_ms = client.timeout_ms(is_storm);
        let Some(walk) = &client.walk else { return };
        let partition = PartitionId(walk.partition);
        let op = match &walk.question {
            Question::Page { after, limit } => Op::Scan {
                partition,
                after: after.clone(),
                limit: *limit,
            },
            Question::Count => Op::Count { partition },
        };
        let options = RequestOptions {
            read_quorum: Some(walk.read_quorum),
            timeout_ms: Some(timeout_ms),
            ..RequestOptions::default()
        };
        let (node, number) = (walk.node, walk.number);
        self.ask(index, node, number, Request { op, options }, env);
    }

    /// What a try at a page or a count came to.
    pub(super) fn on_walk_heard(&mut self, index: usize, heard: Heard, env: &mut Env) {
        let Some(mut walk) = self.clients[index].walk.take() else {
            return;
        };
        match (heard, walk.question.clone()) {
            (Heard::Page(records, next), Question::Page { after, limit }) => {
                self.say_page(index, &walk, records.len(), next.is_some(), env);
                self.history.pages.push(Page {
                    partition: walk.partition,
                    after,
                    limit,
                    read_quorum: walk.read_quorum,
                    invoked_ns: walk.invoked_ns,
                    returned_ns: env.now_ns,
                    is_clock_trusted: walk.is_census || !env.wrong_clocks.contains(&walk.node),
                    is_at_rest: walk.is_census,
                    records,
                    next: next.clone(),
                });
                env.reached.count("page read");
                self.turn_page(index, &walk, next, limit, env);
            }
            (Heard::Count(count), Question::Count) => {
                env.line(|| {
                    let (partition, node) = (walk.partition, walk.node + 1);
                    format!(
                        "client {index} counts partition {partition} through node {node}: {count}"
                    )
                });
                self.history.counts.push(Count {
                    partition: walk.partition,
                    invoked_ns: walk.invoked_ns,
                    returned_ns: env.now_ns,
                    is_at_rest: walk.is_census,
                    count,
                });
                env.reached.count("partition counted");
                self.think(index, env);
            }
            (Heard::Refused | Heard::Unknown(_), _) => {
                if walk.tries < TRIES_MAX || walk.is_census {
                    walk.tries += 1;
                    walk.invoked_ns = env.now_ns;
                    let client = &mut self.clients[index];
                    walk.number = client.next_attempt();
                    if !walk.is_census {
                        walk.node = client.random.index(self.nodes);
                    }
                    client.walk = Some(walk);
                    return self.send_walk(index, env);
                }
                env.reached.count("walk given up");
                self.think(index, env);
            }
            (Heard::Wrong(what), _) => {
                let detail = format!("a walk was refused as wrong: {what}");
                env.violated("a correct request is never refused as wrong", detail);
            }
            (Heard::Ended(_) | Heard::Page(..) | Heard::Count(_), question) => {
                let detail = format!("{question:?} was answered by something else");
                env.violated("an answer fits its question", detail);
            }
        }
    }

    /// Goes on to the next page; behind the last one a census counts what it has walked through.
    fn turn_page(
        &mut self,
        index: usize,
        walk: &Walk,
        next: Option<Bytes>,
        limit: u32,
        env: &mut Env,
    ) {
        let question = match next {
            Some(after) => Question::Page {
                after: Some(after),
                limit,
            },
            None if walk.is_census => Question::Count,
            None => {
                env.reached.count("partition walked through");
                return self.think(index, env);
            }
        };
        let node = match walk.is_census {
            true => walk.node,
            false => self.clients[index].random.index(self.nodes),
        };
        let (partition, quorum, is_census) = (walk.partition, walk.read_quorum, walk.is_census);
        self.walk(index, partition, question, quorum, node, is_census, env);
    }

    fn say_page(&self, index: usize, walk: &Walk, records: usize, is_more: bool, env: &mut Env) {
        env.line(|| {
            let (partition, node) = (walk.partition, walk.node + 1);
            let end = if is_more { "more follow" } else { "the end" };
            format!("client {index} scans partition {partition} through node {node}: {records} records, {end}")
        });
    }
}
