//! **When a client was told that nothing was done, nothing was done: nobody ever sees that value.**
//!
//! A write is only counted as failed here if every node that was asked said so.

use mds_types::Record;

use super::Broken;
use crate::history::{Ending, History, Operation};

const INVARIANT: &str = "what failed was not done";

pub(super) fn check(replicas: &[Vec<Record>], history: &History) -> Vec<Broken> {
    let has_failed = |writer: &&Operation| writer.ending == Ending::Failed;
    let held = replicas.iter().flatten().filter_map(Record::value);
    let read = history
        .operations
        .iter()
        .filter_map(|operation| match &operation.ending {
            Ending::Read { value, .. } => value.as_ref(),
            _ => None,
        });
    let failed = held
        .chain(read)
        .filter_map(|value| history.writer_of(value).filter(has_failed));
    failed
        .map(|writer| {
            (
                INVARIANT,
                format!("the effect of this was seen: {writer:?}"),
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{fail, put, record_of, version};
    use super::*;

    #[test]
    fn the_effect_of_a_failed_write_is_seen() {
        let mut history = History::default();
        let done = put(&mut history, 1, 2, Some(version(5)));
        let unknown = put(&mut history, 1, 2, None);
        let failed = fail(&mut history, 1);
        assert_eq!(check(&[vec![record_of(1, 5, &done)]], &history).len(), 0);
        assert_eq!(check(&[vec![record_of(1, 5, &unknown)]], &history).len(), 0);
        assert_eq!(check(&[vec![record_of(1, 5, &failed)]], &history).len(), 1);
    }
}
