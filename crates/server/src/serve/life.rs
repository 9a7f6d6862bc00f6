//! Tells a node's life in the log: what changed between one view of the cluster and the next.
//!
//! Whatever the cause, a reader of the log sees in one place when this node became part of the
//! cluster, who came and went, who leads, and when the ring changed.

use mds_cluster::{ClusterView, Standing};
use mds_node::shell::NodeHandle;
use mds_types::NodeId;

/// Logs each change until the node ends.
pub(super) async fn tell(mut handle: NodeHandle) {
    let mut last = handle.view();
    tell_standing(&last);
    while handle.view_changed().await {
        let next = handle.view();
        for event in changes(&last, &next) {
            tracing::info!("{event}");
        }
        if last.standing != next.standing {
            tell_standing(&next);
        }
        last = next;
    }
}

fn tell_standing(view: &ClusterView) {
    match &view.standing {
        Standing::Unborn => tracing::info!(
            "not part of a cluster: `mydatastore init` forms one, or a member in reach takes this \
             node in"
        ),
        Standing::Joining => tracing::info!(
            cluster = %view.cluster,
            "part of a cluster, waiting for it to acknowledge this start; serving nothing yet"
        ),
        Standing::Waiting => tracing::info!(
            cluster = %view.cluster,
            "a member that holds no data: coordinates requests, waits for a ring change"
        ),
        Standing::Active => tracing::info!(cluster = %view.cluster, "on the ring: serving"),
        Standing::Refused(reason) => tracing::error!(reason, "refused by the cluster for good"),
    }
}

/// What changed, one sentence each.
fn changes(last: &ClusterView, next: &ClusterView) -> Vec<String> {
    let mut events = Vec::new();
    let name = |node: NodeId| match next.info(node).or(last.info(node)) {
        Some(info) if !info.name.is_empty() => format!("{} ({node})", info.name),
        _ => node.to_string(),
    };
    for (&node, member) in &next.members {
        match last.members.get(&node) {
            None => events.push(format!("{} is a member now", name(node))),
            Some(before) if before.stage != member.stage => {
                events.push(format!("{} is {:?} now", name(node), member.stage));
            }
            Some(_) => {}
        }
    }
    for &node in last
        .members
        .keys()
        .filter(|node| !next.members.contains_key(node))
    {
        events.push(format!("{} is a member no more", name(node)));
    }
    for (&node, peer) in &next.peers {
        let was_alive = last.peers.get(&node).is_some_and(|before| before.alive);
        if peer.alive != was_alive {
            let how = if peer.alive {
                "is alive"
            } else {
                "does not answer: held for dead"
            };
            events.push(format!("{} {how}", name(node)));
        }
    }
    if last.raft.leader != next.raft.leader {
        events.push(match next.raft.leader {
            Some(leader) => format!("{} leads raft, term {}", name(leader), next.raft.term),
            None => "raft has no leader; data requests do not wait for one".to_owned(),
        });
    }
    if last.topology.version != next.topology.version {
        let (version, count) = (next.topology.version, next.topology.members.len());
        events.push(format!("ring version {version}, {count} members"));
    }
    if last.epoch != next.epoch {
        events.push(format!("epoch {}", next.epoch));
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::fake::three_members;

    #[test]
    fn each_change_is_told_once() {
        let before = three_members();
        assert!(changes(&before, &before).is_empty());
        let mut after = before.clone();
        after.peers.get_mut(&NodeId(2)).unwrap().alive = false;
        after.members.remove(&NodeId(3));
        after.raft.leader = Some(NodeId(1));
        after.epoch.0 += 1;
        let told = changes(&before, &after);
        assert_eq!(
            told,
            [
                "node-3 (0000000000000003) is a member no more",
                "node-2 (0000000000000002) does not answer: held for dead",
                "node-1 (0000000000000001) leads raft, term 0",
                "epoch 1",
            ]
        );
        let back = changes(&after, &before);
        assert!(
            back.contains(&"node-2 (0000000000000002) is alive".to_owned()),
            "{back:?}"
        );
        assert!(back.contains(&"node-3 (0000000000000003) is a member now".to_owned()));
    }
}
