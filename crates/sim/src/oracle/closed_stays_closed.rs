//! **A closed epoch takes no client's write and no hint: what becomes visible by them is of an epoch above the one
//! that the replica had closed before.**
//!
//! Were it otherwise, the sets of a closed epoch would go on growing from outside, and no comparison of them
//! would ever be the last (trap T8). What replicas send each other is no such thing: it was inside already.

use mds_storage::store::Purpose;
use mds_types::{Epoch, Record};

use super::Broken;

const INVARIANT: &str = "a closed epoch takes no client's write";

/// `before`: what the replica showed of the key before; `closed`: what it had closed then.
pub(crate) fn check(
    node: usize,
    purpose: Purpose,
    closed: Epoch,
    before: Option<&Record>,
    now: &Record,
) -> Option<Broken> {
    let is_from_outside = matches!(purpose, Purpose::Write | Purpose::Hint);
    let is_new = before.is_none_or(|before| before.version != now.version);
    (is_from_outside && is_new && now.epoch <= closed).then(|| {
        let (key, version, epoch) = (&now.key, now.version, now.epoch);
        let detail = format!(
            "node {} has taken {key:?} at {version} of epoch {epoch}, and had closed epoch {closed}",
            node + 1
        );
        (INVARIANT, detail)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::record;
    use super::*;

    #[test]
    fn a_write_into_a_closed_epoch_is_seen() {
        let (old, new) = (record(1, 5), record(1, 7));
        let check = |purpose, closed, before| check(0, purpose, closed, Some(before), &new);
        let (epoch, below) = (new.epoch, Epoch(new.epoch.0 - 1));
        assert!(check(Purpose::Write, epoch, &old).is_some());
        assert!(check(Purpose::Hint, epoch, &old).is_some());
        assert_eq!(check(Purpose::Write, below, &old), None);
        assert_eq!(check(Purpose::Sync, epoch, &old), None);
        assert_eq!(check(Purpose::Write, epoch, &new), None, "it was there");
    }
}
