//! **When the faults have stopped and every key was read from all replicas, the replicas are equal,
//! byte for byte, tombstones included.**

use bytes::BytesMut;
use mds_types::Record;

/// Where replicas differ, in words; none if they are equal.
pub(crate) fn difference(replicas: &[Vec<Record>]) -> Option<String> {
    let encoded: Vec<BytesMut> = replicas.iter().map(|records| encode(records)).collect();
    let (first, others) = encoded.split_first()?;
    let node = 1 + others.iter().position(|other| other != first)?;
    let (one, other) = (&replicas[0], &replicas[node]);
    let unlike = one.iter().find(|record| !other.contains(record));
    let unlike = unlike.or_else(|| other.iter().find(|record| !one.contains(record)))?;
    let there = |records: &[Record]| {
        let found = records.iter().find(|record| record.key == unlike.key);
        found.map(|record| (record.version, record.epoch))
    };
    Some(format!(
        "{:?} is {:?} at node 1 and {:?} at node {}",
        unlike.key,
        there(one),
        there(other),
        node + 1
    ))
}

fn encode(records: &[Record]) -> BytesMut {
    let mut bytes = BytesMut::new();
    for record in records {
        record.encode(&mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::record;
    use super::*;

    #[test]
    fn any_difference_is_seen() {
        let one = vec![record(1, 5), record(2, 7)];
        assert_eq!(difference(&[one.clone(), one.clone(), one.clone()]), None);
        assert!(difference(&[one.clone(), one.clone(), vec![record(1, 5)]]).is_some());
        assert!(difference(&[vec![record(1, 5)], one.clone()]).is_some());
        assert!(difference(&[one, vec![record(1, 5), record(2, 8)]]).is_some());
    }
}
