//! **A read shows what a replica held: a value until it expires, nothing from then on, and nothing
//! else in its place.**
//!
//! Whether a value has expired is decided by the wall clock of the node that answers, at some moment
//! between question and answer. So a read is judged only if it is certain, by the clocks' greatest
//! error, on which side of the expiry it lies, and only if no fault has touched that clock. That makes
//! expiry monotone per key but for the clocks' error, and promises no more.

use mds_types::{Body, Record};

use super::{Broken, Watch};
use crate::clock::{true_wall_us, wall_error_us_max};
use crate::history::{Ending, History};

const INVARIANT: &str = "a read shows what is held, until it expires";

/// Whether a record can be visible to somebody who looks between these times: not, if it is deleted or
/// surely expired.
pub(super) fn can_be_seen(record: &Record, from_ns: u64) -> bool {
    let earliest_ms = (true_wall_us(from_ns) - wall_error_us_max(from_ns)) / 1_000;
    record.visible_value(earliest_ms).is_some()
}

/// Whether a record can look absent: deleted, or perhaps expired.
pub(super) fn can_be_missed(record: &Record, until_ns: u64) -> bool {
    let latest_ms = (true_wall_us(until_ns) + wall_error_us_max(until_ns)) / 1_000;
    record.visible_value(latest_ms).is_none()
}

pub(super) fn check(history: &History, watch: &Watch) -> Vec<Broken> {
    let mut broken = Vec::new();
    for (number, read) in history.operations.iter().enumerate() {
        let (
            Ending::Read {
                version: Some(version),
                value,
            },
            Some(returned_ns),
        ) = (&read.ending, read.returned_ns)
        else {
            continue;
        };
        let what = match watch.record(&read.key, *version) {
            None => "which no replica ever showed",
            Some(record) => match (value, &record.body) {
                (Some(_), Body::Tombstone) => "a value, but that version is a deletion",
                (Some(shown), Body::Value(held)) if shown != held => "another value",
                (Some(_), _) if read.is_clock_trusted && !can_be_seen(record, read.invoked_ns) => {
                    "a value that had expired"
                }
                (None, Body::Value(_)) if record.expires_at_ms.is_none() => {
                    "nothing, but that version is a value that does not expire"
                }
                (None, Body::Value(_))
                    if read.is_clock_trusted && !can_be_missed(record, returned_ns) =>
                {
                    "nothing, but that version had not expired yet"
                }
                _ => continue,
            },
        };
        let key = &read.key;
        let detail = format!("read #{number} of {key:?} showed {version}: {what}");
        broken.push((INVARIANT, detail));
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{get, put, record_of, version};
    use super::*;

    /// What is broken when a value that expires so many milliseconds after the run's beginning is read
    /// in its first microsecond.
    fn broken(expires_in_ms: i64, is_shown: bool) -> usize {
        let mut history = History::default();
        let value = put(&mut history, 1, 2, Some(version(5)));
        get(&mut history, 1, 2, Some((5, &value)));
        if !is_shown {
            history.operations[1].ending = Ending::Read {
                version: Some(version(5)),
                value: None,
            };
        }
        let expires_at_ms = (true_wall_us(0) as i64 / 1_000 + expires_in_ms) as u64;
        let mut watch = Watch::default();
        let record = Record {
            expires_at_ms: Some(expires_at_ms),
            ..record_of(1, 5, &value)
        };
        assert_eq!(watch.visible(0, &record), None);
        check(&history, &watch).len()
    }

    #[test]
    fn only_what_is_certain_is_judged() {
        for is_shown in [true, false] {
            assert_eq!(broken(0, is_shown), 0, "the clocks' error");
            assert_eq!(broken(200, is_shown), 0);
            assert_eq!(broken(-200, is_shown), 0);
        }
        assert_eq!((broken(1_000, true), broken(1_000, false)), (0, 1));
        assert_eq!((broken(-1_000, true), broken(-1_000, false)), (1, 0));
    }

    #[test]
    fn a_version_names_what_is_read() {
        let mut history = History::default();
        let value = put(&mut history, 1, 2, Some(version(5)));
        get(&mut history, 1, 2, Some((5, &value)));
        let mut watch = Watch::default();
        assert_eq!(check(&history, &watch).len(), 1, "nobody held it");
        let other = record_of(1, 5, &bytes::Bytes::from_static(b"other"));
        assert_eq!(watch.visible(0, &other), None);
        assert_eq!(check(&history, &watch).len(), 1, "somebody held another");
    }
}
