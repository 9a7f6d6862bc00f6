//! Since when a change of the ring waits for whom.
//!
//! The agreed state knows no time, so each node notes by its own clock when it first saw the present stage
//! wait for a member. After a restart of the node the note begins anew: it says "since, at least".

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use mds_cluster::TransitionView;
use mds_cluster::state::Blocker;
use mds_node::shell::NodeHandle;

/// What was seen to be waited for, and since when. Bounded by the member list.
#[derive(Clone, Default)]
pub(super) struct BlockedSince(Arc<Mutex<BTreeMap<Blocker, u64>>>);

impl BlockedSince {
    /// Notes what a view of the rings waits for.
    fn note(&self, view: &TransitionView, now_ms: u64) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.retain(|blocker, _| view.blocked_by.contains(blocker));
        for blocker in &view.blocked_by {
            since.entry(*blocker).or_insert(now_ms);
        }
    }

    /// Since when this is waited for, milliseconds since 1970.
    pub(super) fn of(&self, blocker: &Blocker) -> Option<u64> {
        let since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.get(blocker).copied()
    }

    /// Follows a node's view for as long as the node runs.
    pub(super) async fn follow(self, mut handle: NodeHandle) {
        loop {
            self.note(&handle.view().transition, now_ms());
            if !handle.view_changed().await {
                return;
            }
        }
    }
}

/// The wall clock, milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use mds_cluster::state::WaitsFor;
    use mds_types::NodeId;

    use super::*;

    #[test]
    fn a_wait_begins_when_it_is_first_seen_and_anew_after_it_ended() {
        let ack = |node| Blocker {
            node: NodeId(node),
            waits_for: WaitsFor::Ack,
        };
        let view = |blocked_by| TransitionView {
            blocked_by,
            ..TransitionView::default()
        };
        let since = BlockedSince::default();
        since.note(&view(vec![ack(1)]), 10);
        since.note(&view(vec![ack(1), ack(2)]), 20);
        assert_eq!((since.of(&ack(1)), since.of(&ack(2))), (Some(10), Some(20)));
        since.note(&view(vec![ack(2)]), 30);
        assert_eq!((since.of(&ack(1)), since.of(&ack(2))), (None, Some(20)));
        since.note(&view(vec![ack(1)]), 40);
        assert_eq!(since.of(&ack(1)), Some(40));
    }
}
