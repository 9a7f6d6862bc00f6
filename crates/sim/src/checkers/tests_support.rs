//! Small histories, drawn at random, for the tests of the checkers.

use bytes::Bytes;

use super::{Op, OpKind, Outcome};
use crate::random::Random;

pub(super) fn value(number: u64) -> Option<Bytes> {
    (number > 0).then(|| Bytes::from(format!("v{number}")))
}

pub(super) fn write(number: usize, time_ns: (u64, u64), value_number: u64) -> Op {
    let kind = OpKind::Write {
        value: value(value_number),
    };
    op(number, time_ns, kind)
}

pub(super) fn read(number: usize, time_ns: (u64, u64), value_number: u64) -> Op {
    let kind = OpKind::Read {
        value: value(value_number),
    };
    op(number, time_ns, kind)
}

/// An operation that ended well, on a key that is the same for all.
fn op(number: usize, (invoke_ns, return_ns): (u64, u64), kind: OpKind) -> Op {
    Op {
        number,
        client: number as u64,
        key: Bytes::from_static(b"key"),
        kind,
        version: None,
        invoke_ns,
        return_ns: Some(return_ns),
        outcome: Outcome::Ok,
    }
}

/// The same with an unknown end: nobody heard an answer.
pub(super) fn unknown(op: Op) -> Op {
    Op {
        return_ns: None,
        outcome: Outcome::Unknown,
        ..op
    }
}

/// How a random history is drawn.
pub(super) struct Shape {
    pub(super) ops: usize,
    pub(super) keys: u64,
    /// Values are `0..values`, 0 being none: few of them make few reads unique.
    pub(super) values: u64,
    /// Questions are asked within so many nanoseconds: few make many ties.
    pub(super) time_ns: u64,
    /// An operation takes this long at most.
    pub(super) latency_ns_max: u64,
}

/// A history of real registers: each operation takes effect at one moment of its time. One write in
/// four has an unknown end, and takes effect late or never; one in eight fails.
pub(super) fn of_registers(random: &mut Random, shape: &Shape) -> Vec<Op> {
    let mut moments = Vec::new();
    for number in 0..shape.ops {
        let invoke_ns = random.below(shape.time_ns);
        let return_ns = invoke_ns + random.below(shape.latency_ns_max + 1);
        let time_ns = (invoke_ns, return_ns);
        let mut op = match random.below(2) {
            0 => read(number, time_ns, 0),
            _ => write(number, time_ns, random.below(shape.values)),
        };
        op.key = Bytes::from(format!("key-{}", random.below(shape.keys)));
        let mut moment_ns = Some(random.between(invoke_ns, return_ns));
        if op.is_write() {
            match random.below(8) {
                0 => (op.outcome, moment_ns) = (Outcome::Failed, None),
                1 | 2 => {
                    op = unknown(op);
                    let late_ns = invoke_ns + random.below(2 * shape.time_ns);
                    moment_ns = (random.below(3) > 0).then_some(late_ns);
                }
                _ => {}
            }
        }
        moments.push((moment_ns, op));
    }
    moments.sort_by_key(|(moment_ns, op)| (*moment_ns, op.number));
    let mut registers = std::collections::BTreeMap::new();
    for (moment_ns, op) in &mut moments {
        match &mut op.kind {
            OpKind::Write { value } if moment_ns.is_some() => {
                registers.insert(op.key.clone(), value.clone());
            }
            OpKind::Write { .. } => {}
            OpKind::Read { value } => *value = registers.get(&op.key).cloned().flatten(),
        }
    }
    let mut ops: Vec<Op> = moments.into_iter().map(|(_, op)| op).collect();
    ops.sort_by_key(|op| op.number);
    ops
}

/// Changes one thing about a history: what a read found, or when an operation took place.
pub(super) fn disturb(random: &mut Random, shape: &Shape, ops: &mut [Op]) {
    let index = random.index(ops.len());
    let op = &mut ops[index];
    match &mut op.kind {
        OpKind::Read { value: found } if random.below(3) > 0 => {
            *found = value(random.below(shape.values));
        }
        _ => {
            let took_ns = op.return_ns.map(|ns| ns - op.invoke_ns);
            op.invoke_ns = random.below(shape.time_ns);
            op.return_ns = took_ns.map(|ns| op.invoke_ns + ns);
        }
    }
}
