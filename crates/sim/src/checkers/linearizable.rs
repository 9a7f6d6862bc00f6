//! **Linearizability: every key behaves like one register that does one operation at a time, each at
//! some moment between its question and its answer.**
//!
//! Not promised by last write wins: see [the module](super). It is the promise of what may be built
//! later on consensus or on stamps taken from a quorum, and the yardstick that shows how far a
//! setting falls short.
//!
//! - **Keys** are judged one by one: a history is linearizable if and only if it is so for each
//!   object alone (Herlihy and Wing, 1990).
//! - **Unknown writes** may take effect at any time after the question, or never. An unknown read
//!   says nothing.
//! - **Failed writes** never take effect: a read of such a value condemns the history.
//! - **Ties**: an operation precedes another only if its answer came *before* the other's question. At
//!   the same nanosecond they are concurrent.
//! - **Bounded**: the problem is NP-complete, so the effort has a limit, and [`Verdict::Undecided`]
//!   is an answer.
//!
//! It does not look at versions at all, only at values.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

use super::search::{Call, Effect, Found, Held, NOTHING, search};
use super::{Op, OpKind, Outcome, by_key};

/// An effort that decides keys with thousands of operations by a handful of clients: placements of
/// an operation, per key. Beyond it the verdict is [`Verdict::Undecided`]. Memory is at most that
/// many times one bit per operation of the key and some fifty bytes.
pub const EFFORT_DEFAULT: u64 = 200_000;

/// What a history is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// There is an order that explains every answer.
    Linearizable,
    /// There is none.
    NotLinearizable(Box<Counterexample>),
    /// No key was found guilty, and for this one the effort did not suffice.
    Undecided {
        /// The first such key.
        key: Bytes,
    },
}

/// The shortest beginning of a key's history that cannot be explained.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counterexample {
    /// The key.
    pub key: Bytes,
    /// The operations that had begun, as they were then known, in the order of their beginnings. What
    /// had not been answered yet has no end, and its outcome is unknown.
    pub ops: Vec<Op>,
    /// The operation whose answer cannot be explained.
    pub culprit: usize,
    /// An order, by numbers, that explains all answers before that one.
    pub explained: Vec<usize>,
    /// Whether this is proven to be the shortest: the effort may not have sufficed for that.
    pub is_shortest: bool,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, culprit) = (self.key.escape_ascii(), self.culprit);
        writeln!(
            f,
            "\"{key}\" is no register: the answer to #{culprit} cannot be explained"
        )?;
        for op in &self.ops {
            let mark = if op.number == culprit { '>' } else { ' ' };
            writeln!(f, "{mark} {op}")?;
        }
        if self.is_shortest {
            let numbers: Vec<String> = self.explained.iter().map(|n| format!("#{n}")).collect();
            let order = numbers.join(", ");
            write!(f, "all before it can be, in this order: {order}")
        } else {
            write!(
                f,
                "there may be a shorter beginning that cannot be explained"
            )
        }
    }
}

/// Judges a history, with at most `effort_max` placements per key and attempt
/// ([`EFFORT_DEFAULT`]).
pub fn check(ops: &[Op], effort_max: u64) -> Verdict {
    let mut undecided = None;
    for (key, ops) in by_key(ops) {
        let register = Register::new(&ops);
        let answers = register.answers.len();
        match search(&register.calls(answers).0, effort_max) {
            Found::Order(_) => {}
            Found::None => {
                let counterexample = register.shorten(effort_max);
                return Verdict::NotLinearizable(Box::new(counterexample));
            }
            Found::Undecided => undecided = undecided.or(Some(key)),
        }
    }
    match undecided {
        Some(key) => Verdict::Undecided { key: key.clone() },
        None => Verdict::Linearizable,
    }
}

/// What concerns one key.
struct Register<'a> {
    /// By their beginnings.
    ops: Vec<&'a Op>,
    /// The answers that say something: when, and to whom. In the order of time.
    answers: Vec<(u64, usize)>,
    values: BTreeMap<&'a Bytes, Held>,
}

impl<'a> Register<'a> {
    fn new(ops: &[&'a Op]) -> Register<'a> {
        let mut ops = ops.to_vec();
        ops.sort_by_key(|op| (op.invoke_ns, op.number));
        let answer = |op: &&Op| Some((op.answered_ns()?, op.number));
        let mut answers: Vec<_> = ops.iter().filter_map(answer).collect();
        answers.sort_unstable();
        let mut values = BTreeMap::new();
        for op in &ops {
            if let OpKind::Write { value: Some(value) } | OpKind::Read { value: Some(value) } =
                &op.kind
            {
                let number = NOTHING + 1 + values.len();
                values.entry(value).or_insert(number);
            }
        }
        Register {
            ops,
            answers,
            values,
        }
    }

    /// The operations as they were known after so many answers. Nothing that began later can explain
    /// an answer.
    fn known(&self, answers: usize) -> impl Iterator<Item = (&'a Op, Option<u64>)> {
        let last = answers.checked_sub(1).map(|index| self.answers[index]);
        self.ops.iter().filter_map(move |&op| {
            let last = last?;
            let answered_ns = op.answered_ns().filter(|&ns| (ns, op.number) <= last);
            (op.invoke_ns <= last.0).then_some((op, answered_ns))
        })
    }

    /// The calls of the beginning that ends with so many answers, and their operations' numbers.
    fn calls(&self, answers: usize) -> (Vec<Call>, Vec<usize>) {
        let held = |value: &Option<Bytes>| match value {
            Some(value) => self.values[value],
            None => NOTHING,
        };
        let call = |(op, return_ns): (&Op, Option<u64>)| {
            let effect = match &op.kind {
                OpKind::Write { .. } if op.outcome == Outcome::Failed => return None,
                OpKind::Write { value } => Effect::Write(held(value)),
                OpKind::Read { .. } if return_ns.is_none() => return None,
                OpKind::Read { value } => Effect::Read(held(value)),
            };
            let invoke_ns = op.invoke_ns;
            let call = Call {
                effect,
                invoke_ns,
                return_ns,
            };
            Some((call, op.number))
        };
        self.known(answers).filter_map(call).unzip()
    }

    /// The shortest beginning that cannot be explained, of a history that cannot be. If a beginning
    /// can be explained, so can each shorter one: a binary search finds the border.
    fn shorten(&self, effort_max: u64) -> Counterexample {
        let (mut good, mut bad) = (0, self.answers.len());
        let (mut explained, mut is_shortest) = (Vec::new(), true);
        while good + 1 < bad {
            let middle = good.midpoint(bad);
            let (calls, numbers) = self.calls(middle);
            match search(&calls, effort_max) {
                Found::None => bad = middle,
                Found::Order(order) => {
                    good = middle;
                    is_shortest = true;
                    explained = order.into_iter().map(|index| numbers[index]).collect();
                }
                Found::Undecided => {
                    good = middle;
                    is_shortest = false;
                }
            }
        }
        let as_known = |(op, answered_ns): (&Op, Option<u64>)| {
            let mut op = op.clone();
            if op.outcome == Outcome::Ok && answered_ns.is_none() {
                (op.outcome, op.return_ns, op.version) = (Outcome::Unknown, None, None);
            }
            op
        };
        Counterexample {
            key: self.ops[0].key.clone(),
            ops: self.known(bad).map(as_known).collect(),
            culprit: self.answers[bad - 1].1,
            explained,
            is_shortest,
        }
    }
}

#[cfg(test)]
mod tests;
