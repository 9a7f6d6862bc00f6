//! **When the faults have stopped and every key was read from all replicas, the replicas are equal,
//! byte for byte, tombstones included.**

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Bytes, BytesMut};
use mds_types::Record;

/// Where replicas differ, in words; none if they are equal. `holders` says which of them have to hold
/// a key; the others must not.
pub(crate) fn difference(
    replicas: &[Vec<Record>],
    holders: impl Fn(&Bytes) -> Vec<usize>,
) -> Option<String> {
    let held: Vec<BTreeMap<&Bytes, &Record>> = replicas
        .iter()
        .map(|records| records.iter().map(|record| (&record.key, record)).collect())
        .collect();
    let keys: BTreeSet<&Bytes> = held.iter().flat_map(|held| held.keys().copied()).collect();
    for key in keys {
        let holders = holders(key);
        let first = holders.first().map(|&node| held[node].get(key).copied());
        for (node, held) in held.iter().enumerate() {
            let is = held.get(key).copied();
            let should = first.flatten().filter(|_| holders.contains(&node));
            if is.map(encode) != should.map(encode) {
                let stamp = |record: &Record| (record.version, record.epoch);
                return Some(format!(
                    "{key:?} is {:?} at node {} and should be {:?}, as at node {:?}",
                    is.map(stamp),
                    node + 1,
                    should.map(stamp),
                    holders.first().map(|node| node + 1)
                ));
            }
        }
    }
    None
}

fn encode(record: &Record) -> BytesMut {
    let mut bytes = BytesMut::new();
    record.encode(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::record;
    use super::*;

    #[test]
    fn any_difference_is_seen() {
        let one = vec![record(1, 5), record(2, 7)];
        let difference = |replicas: &[Vec<Record>]| difference(replicas, |_| vec![0, 1, 2]);
        assert_eq!(difference(&[one.clone(), one.clone(), one.clone()]), None);
        assert!(difference(&[one.clone(), one.clone(), vec![record(1, 5)]]).is_some());
        assert!(difference(&[vec![record(1, 5)], one.clone(), one.clone()]).is_some());
        assert!(difference(&[one.clone(), vec![record(1, 5), record(2, 8)], one]).is_some());
    }

    #[test]
    fn who_is_no_replica_holds_nothing() {
        let one = vec![record(1, 5)];
        let holders = |_: &Bytes| vec![0, 2];
        assert_eq!(
            difference(&[one.clone(), vec![], one.clone()], holders),
            None
        );
        assert!(difference(&[one.clone(), one.clone(), one], holders).is_some());
    }
}
