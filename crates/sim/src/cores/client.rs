//! Who asks the cores: operations at random times, repeated as a careful client repeats them.

use bytes::Bytes;
use mds_node::api::{Op, Outcome, Request, RequestError, RequestOptions, Stamp};

use super::NODES;
use super::promises::{Ending, Promises};
use crate::faults::{Counts, MILLISECOND_NS};
use crate::random::Random;

/// Operations of a run.
const OPERATIONS: usize = 40;

/// They are first sent within this time, nanoseconds.
pub(super) const BUSY_NS: u64 = 400 * MILLISECOND_NS;

/// Keys they fight over.
const KEYS: u64 = 5;

/// Attempts at one operation, at most.
const TRIES_MAX: u32 = 3;

/// How long a node may try, milliseconds.
const TIMEOUT_MS_MIN: u64 = 10;
pub(super) const TIMEOUT_MS_MAX: u64 = 200;

/// What an operation does. Every value is another one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Get,
    Put(Bytes),
    Delete,
}

/// An operation, over all its attempts.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) key: Bytes,
    pub(super) kind: Kind,
    pub(super) read_quorum: u8,
    pub(super) write_quorum: u8,
    /// What an earlier attempt was told.
    pub(super) stamp: Option<Stamp>,
    /// An earlier attempt may have had an effect.
    may_be_done: bool,
    tries: u32,
}

impl Operation {
    pub(super) fn new(key: Bytes, kind: Kind, read_quorum: u8, write_quorum: u8) -> Operation {
        Operation {
            key,
            kind,
            read_quorum,
            write_quorum,
            stamp: None,
            may_be_done: false,
            tries: 0,
        }
    }

    /// Whether its client was told each time that nothing was done.
    pub(super) fn is_undone(&self) -> bool {
        !self.may_be_done
    }
}

/// One question to one core.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) operation: usize,
    pub(super) deadline_ns: u64,
    pub(super) is_answered: bool,
    /// For reads: the newest version that it has to see.
    pub(super) floor: Option<mds_types::Version>,
}

/// All operations of a run and what came of them.
pub(super) struct Clients {
    random: Random,
    pub(super) operations: Vec<Operation>,
    pub(super) attempts: Vec<Attempt>,
    open: usize,
}

impl Clients {
    pub(super) fn new(mut random: Random) -> Clients {
        let operations = (0..OPERATIONS)
            .map(|number| draw_operation(&mut random, number))
            .collect();
        Clients {
            random,
            operations,
            attempts: Vec::new(),
            open: OPERATIONS,
        }
    }

    /// When each operation is first sent.
    pub(super) fn first_submits(&mut self) -> Vec<(u64, usize)> {
        let random = &mut self.random;
        (0..OPERATIONS)
            .map(|operation| (random.below(BUSY_NS), operation))
            .collect()
    }

    /// Whether nothing is asked any more.
    pub(super) fn are_done(&self) -> bool {
        self.open == 0
    }

    /// The next attempt at an operation: its number, the node it goes to, and what is asked.
    pub(super) fn attempt(
        &mut self,
        number: usize,
        now_ns: u64,
        promises: &Promises,
    ) -> (usize, usize, Request) {
        let random = &mut self.random;
        let operation = &mut self.operations[number];
        operation.tries += 1;
        let timeout_ms = random.between(TIMEOUT_MS_MIN, TIMEOUT_MS_MAX);
        let key = operation.key.clone();
        let op = match &operation.kind {
            Kind::Get => Op::Get { key },
            Kind::Put(value) => Op::Put {
                key,
                value: value.clone(),
                expires_at_ms: None,
            },
            Kind::Delete => Op::Delete { key },
        };
        let options = RequestOptions {
            read_quorum: Some(operation.read_quorum),
            write_quorum: Some(operation.write_quorum),
            timeout_ms: Some(timeout_ms as u32),
            seen: match random.below(4) {
                0 => promises.newest_acknowledged(&operation.key),
                _ => None,
            },
            stamp: operation.stamp,
            request_id: None,
        };
        let floor = promises.floor(&operation.key, operation.read_quorum);
        let node = random.index(NODES);
        self.attempts.push(Attempt {
            operation: number,
            deadline_ns: now_ns + timeout_ms * MILLISECOND_NS,
            is_answered: false,
            floor,
        });
        (self.attempts.len() - 1, node, Request { op, options })
    }

    /// Takes an answer, and has it looked at. Says when to repeat the operation, if it is to be.
    pub(super) fn on_answer(
        &mut self,
        number: usize,
        result: Result<Outcome, RequestError>,
        now_ns: u64,
        promises: &mut Promises,
        counts: &mut Counts,
    ) -> Option<(u64, usize)> {
        let attempt = &mut self.attempts[number];
        let operation_number = attempt.operation;
        let operation = &mut self.operations[operation_number];
        let ending = promises.on_answer(attempt, operation, &result, now_ns);
        counts.count(ending.name());
        let wants_more = match ending {
            Ending::Read | Ending::Absent | Ending::TimedOut | Ending::Wrong => false,
            Ending::Written => {
                operation.may_be_done = true;
                false
            }
            Ending::Unknown(stamp) => {
                operation.may_be_done = true;
                operation.stamp = Some(stamp);
                self.random.below(4) > 0
            }
            // Nothing was done, this time.
            Ending::Unavailable | Ending::NotReady => self.random.below(2) == 0,
        };
        if wants_more && operation.tries < TRIES_MAX {
            let pause_ns = self.random.below(100 * MILLISECOND_NS);
            return Some((now_ns + pause_ns, operation_number));
        }
        self.open = self.open.saturating_sub(1);
        None
    }
}

fn draw_operation(random: &mut Random, number: usize) -> Operation {
    // Mostly the usual quorums, now and then others.
    let mut quorum = || match random.below(3) {
        0 => random.between(1, NODES as u64) as u8,
        _ => 2,
    };
    let (read_quorum, write_quorum) = (quorum(), quorum());
    let key = random.below(KEYS);
    let kind = match random.below(10) {
        0..4 => Kind::Get,
        4..9 => {
            let mut value = format!("value {number} ").into_bytes();
            value.resize(value.len() + random.below(200) as usize, b'.');
            Kind::Put(Bytes::from(value))
        }
        _ => Kind::Delete,
    };
    let key = Bytes::from(format!("key-{key}"));
    Operation::new(key, kind, read_quorum, write_quorum)
}
