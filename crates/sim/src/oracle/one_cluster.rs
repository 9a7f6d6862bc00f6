//! **A cluster is born once: all nodes that belong to one belong to the same, whatever becomes of
//! their disks.**
//!
//! A node that founds a cluster of its own, because it has waited long enough or has lost its directory,
//! would meet the others with a second ring and a second epoch.

use mds_cluster::ClusterView;
use mds_types::ClusterId;

use super::Broken;

const INVARIANT: &str = "a cluster is born once";

/// The cluster that was shown first, and by whom.
#[derive(Default)]
pub(super) struct OneCluster {
    first: Option<(ClusterId, usize)>,
}

impl OneCluster {
    /// What a node shows.
    pub(super) fn shown(&mut self, node: usize, view: &ClusterView) -> Option<Broken> {
        if view.cluster.is_none() {
            return None;
        }
        let &mut (first, by) = self.first.get_or_insert((view.cluster, node));
        if first == view.cluster {
            return None;
        }
        let (is, node, by) = (view.cluster, node + 1, by + 1);
        let detail = format!("node {node} is part of cluster {is}, node {by} of {first}");
        Some((INVARIANT, detail))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::view;
    use super::*;

    #[test]
    fn a_second_cluster_is_seen() {
        let mut watch = OneCluster::default();
        let (unborn, mut born) = (view(1), view(2));
        born.cluster = ClusterId(7);
        assert_eq!(watch.shown(0, &unborn), None);
        assert_eq!(watch.shown(1, &born), None);
        assert_eq!(watch.shown(1, &born), None);
        born.cluster = ClusterId(8);
        assert!(watch.shown(0, &born).is_some());
    }
}
