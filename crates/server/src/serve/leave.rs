//! Leaving the ring when the process is told to stop, for nodes that do not come back.
//!
//! With `on_stop = "leave"` a node that gets SIGTERM asks the cluster to take it off the ring, serves on until that
//! has been done and every member has acknowledged it, and stops then. So containers can be scaled down without
//! loss. It stays on the ring, and only stops, where leaving is not possible: no ring, as few members as N, no
//! leader in reach, or no end within `leave_timeout_ms`. Nothing is lost by that either, as long as its data
//! directory is kept.
//!
//! This does not decide how a ring changes: it sends the same request as `mydatastore leave`.

use std::collections::BTreeSet;
use std::time::Duration;

use mds_cluster::{AdminError, AdminRequest, ClusterView, RingRequest};
use mds_node::shell::NodeHandle;
use mds_types::{RequestId, RingStage};
use tokio::time::Instant;

/// Pause between two looks, and between two requests.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// How often in a row a stable ring may refuse before its refusal is taken for an answer. More than once, because
/// another change may have begun and ended between this node's look and the leader's.
const REFUSALS_MAX: u32 = 3;

/// Asks to leave and waits for the end, `timeout` at most. `name` is this request's own.
///
/// # Errors
/// Why this node stays on the ring, in words.
pub(super) async fn leave(
    handle: &NodeHandle,
    name: u128,
    timeout: Duration,
) -> Result<(), String> {
    let until = Instant::now() + timeout;
    let too_late = |what: &str| format!("{what} within {} s", timeout.as_secs());
    tokio::time::timeout_at(until, ask(handle, RequestId(name)))
        .await
        .map_err(|_| too_late("the cluster did not take the request up"))??;
    tokio::time::timeout_at(until, async {
        while !has_left(&handle.view()) && handle.fatal().is_none() {
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    })
    .await
    .map_err(|_| too_late("the ring did not change"))
}

/// Asks until the cluster has taken the request up.
async fn ask(handle: &NodeHandle, request: RequestId) -> Result<(), String> {
    let mut refusals = 0;
    loop {
        let view = handle.view();
        if let Some(reason) = hindrance(&view) {
            return Err(reason);
        }
        let leave = RingRequest::Leave {
            nodes: BTreeSet::from([view.me]),
        };
        let ask = AdminRequest::Ring {
            request,
            ask: leave,
        };
        match handle.admin(ask).await {
            Some(Ok(_)) => return Ok(()),
            Some(Err(AdminError::Refused(reason))) if view.rings.stage == RingStage::Stable => {
                refusals += 1;
                if refusals == REFUSALS_MAX {
                    return Err(reason);
                }
            }
            // Another change is under way, or there is no leader at the moment.
            Some(Err(_)) | None => refusals = 0,
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Why there is no point in asking.
fn hindrance(view: &ClusterView) -> Option<String> {
    let Some(config) = &view.config else {
        return Some("this node is part of no cluster".to_owned());
    };
    let members = view.topology.members.len();
    if !is_on_ring(view) {
        return Some("this node holds no data".to_owned());
    }
    (members <= usize::from(config.replicas)).then(|| {
        format!(
            "the ring has {members} members and N is {}: none can leave",
            config.replicas
        )
    })
}

fn is_on_ring(view: &ClusterView) -> bool {
    let mut members = view.topology.members.iter();
    members.any(|member| member.node == view.me)
}

/// Whether the change has ended, and nobody still asks this node.
fn has_left(view: &ClusterView) -> bool {
    let is_settled = view.rings.stage == RingStage::Stable && view.transition.blocked_by.is_empty();
    !view.members.contains_key(&view.me) || (is_settled && !is_on_ring(view))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::fake::three_members;

    #[test]
    fn a_ring_as_small_as_n_is_not_left() {
        let view = three_members();
        let reason = hindrance(&view).unwrap_or_default();
        assert!(reason.contains("none can leave"), "{reason}");
        let mut larger = view.clone();
        larger.config.as_mut().unwrap().replicas = 2;
        assert_eq!(hindrance(&larger), None);
        assert!(!has_left(&larger));
    }

    #[test]
    fn one_that_is_no_member_has_left() {
        let mut view = three_members();
        view.members.remove(&view.me);
        assert!(has_left(&view));
    }
}
