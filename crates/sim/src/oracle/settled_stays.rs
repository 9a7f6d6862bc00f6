//! **At or below a partition's watermark nothing becomes visible anew: what a replica comes to show is of an epoch
//! above what it had settled before.**
//!
//! What is settled was seen equal on all replicas, and dead records of it are collected. A record of such an
//! epoch that came in later would be one that the others lack, or one that has risen from the dead (traps T10, T11).
//! A replica that fills a partition from another is no such replica yet: what it is sent is settled already.

use mds_types::{Epoch, Record};

use super::Broken;

const INVARIANT: &str = "what is settled takes nothing more";

/// `before`: what the replica showed of the key before; `settled`: its watermark then.
pub(crate) fn check(
    node: usize,
    settled: Epoch,
    before: Option<&Record>,
    now: &Record,
) -> Option<Broken> {
    let is_new = before.is_none_or(|before| before.version != now.version);
    (is_new && now.epoch <= settled).then(|| {
        let (key, version, epoch) = (&now.key, now.version, now.epoch);
        let detail = format!(
            "node {} shows {key:?} at {version} of epoch {epoch}, and had settled epoch {settled}",
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
    fn what_comes_late_is_seen() {
        let (old, new) = (record(1, 5), record(1, 7));
        let epoch = new.epoch;
        let below = Epoch(epoch.0 - 1);
        assert_eq!(check(0, below, Some(&old), &new), None);
        assert_eq!(check(0, epoch, Some(&new), &new), None, "it was there");
        assert!(check(0, epoch, Some(&old), &new).is_some());
        assert!(check(0, epoch, None, &new).is_some());
    }
}
