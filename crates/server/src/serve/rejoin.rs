//! A node that is off the ring for good begins anew, if it is to.
//!
//! With `on_removed = "rejoin"` a node ends its life as a member in two cases: the cluster has removed it, or it had left before
//! it was started and its cluster has not forgotten it yet. The process then puts its data aside ([`mds_storage::datadir`]) and serves on as
//! another node.
//!
//! **Invariants.** Whoever leaves *while* it runs stays off the ring until it is started again: an administrator who has a node leave
//! does not see it come back, unless the others have lost sight of it and forgotten it meanwhile. A node that is refused for any other reason (a copied directory, a foreign cluster) never begins anew:
//! its data may be somebody's only copy.

use mds_cluster::{ClusterView, MemberStage, Standing};

use crate::config::OnRemoved;

/// Judges whether one start of a node is to make room for another node.
#[derive(Debug)]
pub(super) struct Rejoin {
    is_wanted: bool,
    /// Whether this start's place among the members was seen: what it does later is its own doing.
    is_settled: bool,
}

impl Rejoin {
    pub(super) fn of(on_removed: OnRemoved) -> Rejoin {
        Rejoin {
            is_wanted: on_removed == OnRemoved::Rejoin,
            is_settled: false,
        }
    }

    /// Whether it is time to begin anew. To be asked with each view of the cluster, or now and then.
    pub(super) fn is_due(&mut self, view: &ClusterView) -> bool {
        if !self.is_wanted {
            return false;
        }
        if view.standing.is_removed() {
            return true;
        }
        let is_acknowledged = matches!(view.standing, Standing::Waiting | Standing::Active);
        if self.is_settled || !is_acknowledged {
            return false;
        }
        let Some(me) = view.members.get(&view.me) else {
            return false;
        };
        self.is_settled = true;
        me.stage == MemberStage::Left
    }
}

#[cfg(test)]
mod tests {
    use mds_cluster::MemberView;
    use mds_types::{IncarnationId, MemberInfo};

    use super::*;

    fn view(standing: Standing, stage: Option<MemberStage>) -> ClusterView {
        let incarnation = IncarnationId(7 << 64 | 1);
        let me = incarnation.node_id();
        let mut view = ClusterView::unborn(me, MemberInfo::default(), 2);
        view.standing = standing;
        view.members.extend(stage.map(|stage| {
            let member = MemberView {
                incarnation,
                boot: 2,
                boot_nonce: 3,
                info: MemberInfo::default(),
                stage,
            };
            (me, member)
        }));
        view
    }

    #[test]
    fn who_had_left_before_its_start_begins_anew_and_who_leaves_later_does_not() {
        let waiting = |stage| view(Standing::Waiting, Some(stage));
        let mut rejoin = Rejoin::of(OnRemoved::Rejoin);
        assert!(!rejoin.is_due(&view(Standing::Joining, Some(MemberStage::Left))));
        assert!(rejoin.is_due(&waiting(MemberStage::Left)));

        let mut rejoin = Rejoin::of(OnRemoved::Rejoin);
        assert!(!rejoin.is_due(&view(Standing::Active, None)));
        assert!(!rejoin.is_due(&view(Standing::Active, Some(MemberStage::Leaving))));
        assert!(!rejoin.is_due(&waiting(MemberStage::Left)));
    }

    #[test]
    fn nobody_begins_anew_unasked_or_for_another_refusal() {
        let left = view(Standing::Waiting, Some(MemberStage::Left));
        assert!(!Rejoin::of(OnRemoved::Stop).is_due(&left));
        let copied = Standing::Refused("another copy of this directory runs".to_owned());
        assert!(!Rejoin::of(OnRemoved::Rejoin).is_due(&view(copied, None)));
    }
}
