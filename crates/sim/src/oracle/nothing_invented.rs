//! **Nobody ever sees a value that no client wrote to that key, nor before it was written.**

use mds_types::Record;

use super::Broken;
use crate::history::{Ending, History};

const INVARIANT: &str = "no value appears that nobody wrote";

pub(super) fn check(replicas: &[Vec<Record>], history: &History) -> Vec<Broken> {
    let mut broken = Vec::new();
    for (node, records) in replicas.iter().enumerate() {
        for record in records {
            let Some(value) = record.value() else {
                continue;
            };
            if history
                .writer_of(value)
                .is_none_or(|writer| writer.key != record.key)
            {
                let (key, node) = (&record.key, node + 1);
                broken.push((
                    INVARIANT,
                    format!("node {node} holds one at {key:?}: {value:?}"),
                ));
            }
        }
    }
    for (number, operation) in history.operations.iter().enumerate() {
        let Ending::Read {
            value: Some(value), ..
        } = &operation.ending
        else {
            continue;
        };
        let is_written = history.writer_of(value).is_some_and(|writer| {
            writer.key == operation.key && Some(writer.invoked_ns) < operation.returned_ns
        });
        if !is_written {
            broken.push((INVARIANT, format!("read #{number} saw one: {value:?}")));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::tests_support::{get, put, record_of, version};
    use super::*;

    #[test]
    fn an_invented_value_is_seen() {
        let mut history = History::default();
        let written = put(&mut history, 1, 2, Some(version(5)));
        let invented = Bytes::from_static(b"from nowhere");
        assert_eq!(check(&[vec![record_of(1, 5, &written)]], &history).len(), 0);
        assert_eq!(check(&[vec![record_of(2, 5, &written)]], &history).len(), 1);
        assert_eq!(
            check(&[vec![record_of(1, 5, &invented)]], &history).len(),
            1
        );
        get(&mut history, 1, 2, Some((5, &written)));
        assert_eq!(check(&[], &history).len(), 0);
        get(&mut history, 1, 2, Some((5, &invented)));
        assert_eq!(check(&[], &history).len(), 1);
    }
}
