//! **A session reads its own writes, and what it writes comes later than all it has seen, whatever R
//! and W its requests choose.**
//!
//! The checker is [`session`]; here is which quorums meet. A request that carries a token asks at least
//! as many replicas as meet a write of the W that the cluster is set to, or of the W that the read
//! itself names if that is smaller. A write that was content with fewer is not covered.

use mds_types::ClusterConfig;

use super::Broken;
use crate::checkers::{Op, ops_of, session};
use crate::history::History;

pub(super) fn check(history: &History, config: &ClusterConfig) -> Vec<Broken> {
    let mut ops = ops_of(history);
    ops.retain(|op| history.operations[op.number].is_session);
    let n = config.replicas;
    let meets = |write: &Op, read: &Op| {
        let (write, read) = (
            &history.operations[write.number],
            &history.operations[read.number],
        );
        let meeting = n - read.write_quorum.min(config.write_quorum) + 1;
        write.write_quorum + read.read_quorum.max(meeting) > n
    };
    let lapses = session::check(&ops, meets);
    lapses
        .into_iter()
        .map(|lapse| (lapse.promise, lapse.to_string()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{get, put, version};
    use super::*;

    #[test]
    fn a_session_is_held_to_its_token_and_strangers_are_not() {
        let mut history = History::default();
        let old = put(&mut history, 1, 2, Some(version(4)));
        put(&mut history, 1, 2, Some(version(5)));
        // R = 1 is raised to 2 by the token.
        get(&mut history, 1, 1, Some((4, &old)));
        let config = ClusterConfig::default();
        assert_eq!(check(&history, &config), []);
        for operation in &mut history.operations {
            operation.is_session = true;
        }
        let broken = check(&history, &config);
        assert_eq!(broken.len(), 1);
        assert_eq!(broken[0].0, session::READS_ITS_WRITES);
        history.operations[1].write_quorum = 1;
        assert_eq!(check(&history, &config), [], "W was too small");
    }
}
