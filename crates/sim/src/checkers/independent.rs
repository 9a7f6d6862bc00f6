//! A second checker of linearizability, to check the first: so naive that it can be read in a minute,
//! and sharing nothing with it but the operations.
//!
//! It takes the definition by its word. For every choice of the unknown writes that happened, and for
//! every permutation of all that happened, it looks whether the permutation respects the order of time
//! and explains every read. Keys are not told apart: the whole store is one object, so that agreement
//! also shows that judging keys one by one loses nothing. Eight operations take seconds.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Op, OpKind, Outcome};

/// Whether a tiny history is linearizable.
pub(super) fn is_linearizable(ops: &[Op]) -> bool {
    let certain: Vec<&Op> = ops.iter().filter(|op| op.outcome == Outcome::Ok).collect();
    let is_open =
        |op: &&Op| op.outcome == Outcome::Unknown && matches!(op.kind, OpKind::Write { .. });
    let open: Vec<&Op> = ops.iter().filter(is_open).collect();
    (0..1_u32 << open.len()).any(|choice| {
        let mut happened = certain.clone();
        for (bit, &op) in open.iter().enumerate() {
            if choice >> bit & 1 == 1 {
                happened.push(op);
            }
        }
        some_permutation(&mut happened, 0, &|order| {
            respects_time(order) && explains_reads(order)
        })
    })
}

/// Whether some permutation of the operations from `fixed` on is good.
fn some_permutation(ops: &mut Vec<&Op>, fixed: usize, is_good: &dyn Fn(&[&Op]) -> bool) -> bool {
    if fixed == ops.len() {
        return is_good(ops);
    }
    for index in fixed..ops.len() {
        ops.swap(fixed, index);
        if some_permutation(ops, fixed + 1, is_good) {
            return true;
        }
        ops.swap(fixed, index);
    }
    false
}

/// Nothing stands after what began only when it was over.
fn respects_time(order: &[&Op]) -> bool {
    order.iter().enumerate().all(|(place, first)| {
        order[place..].iter().all(|later| {
            let end_ns = match later.outcome {
                Outcome::Ok => later.return_ns.unwrap(),
                _ => u64::MAX,
            };
            first.invoke_ns <= end_ns
        })
    })
}

/// Every read finds what was last written.
fn explains_reads(order: &[&Op]) -> bool {
    let mut store: BTreeMap<&Bytes, &Option<Bytes>> = BTreeMap::new();
    order.iter().all(|op| match &op.kind {
        OpKind::Write { value } => {
            store.insert(&op.key, value);
            true
        }
        OpKind::Read { value } => *store.get(&op.key).unwrap_or(&&None) == value,
    })
}
