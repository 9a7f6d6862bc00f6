//! What a member reports to the cluster: versions of the ring that it has acknowledged, that it is ready,
//! and its clock.
//!
//! Reports are repeated until the agreed state shows them: messages get lost and leaders change. The clock
//! comes with every control message; a leader hears a member's at each heartbeat.

use std::collections::BTreeMap;

use mds_types::{Hlc, NodeId, RingStage, TopologyVersion};
use openraft_rt::{AsyncRuntime, WatchReceiver};

use super::Control;
use super::lead::propose;
use crate::rt::Rt;
use crate::state::{ClusterState, Command};
use crate::view::Standing;
use crate::wire::Body;

/// A report that the agreed state does not show yet is sent again this often, nanoseconds.
const REPORT_EVERY_NS: u64 = 300_000_000;

/// A member whose clock was not heard for this long does not hold a floor back, nanoseconds: it may be
/// dead. If it lives, its stamps begin above the floor all the same, when it learns of the epoch.
const CLOCK_HEARD_NS: u64 = 10_000_000_000;

/// What this node has to report.
#[derive(Default)]
pub(super) struct Reports {
    acked: TopologyVersion,
    ready: TopologyVersion,
    next_ns: u64,
}

impl Reports {
    pub(super) fn acked(&mut self, version: TopologyVersion) {
        if version > self.acked {
            self.acked = version;
            self.next_ns = 0;
        }
    }

    pub(super) fn ready(&mut self, version: TopologyVersion) {
        if version > self.ready {
            self.ready = version;
            self.next_ns = 0;
        }
    }

    /// What the agreed state does not show yet.
    fn missing(&self, state: &ClusterState, me: NodeId) -> Vec<Command> {
        let mut commands = Vec::new();
        // A version that this node's own state has not reached is not asked about: it would be refused.
        let acked = self.acked.min(state.topology.version);
        if state.acked.get(&me).copied().unwrap_or_default() < acked {
            commands.push(Command::Ack {
                member: me,
                version: acked,
            });
        }
        if let Some(open) = &state.transition
            && open.stage == RingStage::Stream
            && self.ready >= open.entered
            && open.topology.member(me).is_some()
            && !open.ready.contains(&me)
        {
            commands.push(Command::Ready {
                member: me,
                version: self.ready.min(state.topology.version),
            });
        }
        commands
    }
}

/// The physical clocks of this node and of those that it has heard of lately.
#[derive(Default)]
pub(super) struct Clocks {
    own_us: u64,
    /// When a member's clock was heard, by this node's monotonic one, and what it said. Bounded by the
    /// member list.
    heard: BTreeMap<NodeId, (u64, u64)>,
}

impl Clocks {
    pub(super) fn set_own(&mut self, wall_us: u64) {
        self.own_us = wall_us;
    }

    pub(super) fn own_us(&self) -> u64 {
        self.own_us
    }

    pub(super) fn heard(&mut self, node: NodeId, now_ns: u64, clock_us: u64) {
        self.heard.insert(node, (now_ns, clock_us));
    }

    /// A floor for an epoch that begins now: the smallest clock of this node and of those heard lately. A
    /// single fast clock then does nothing, and a single slow one only delays collection.
    pub(super) fn floor(&mut self, now_ns: u64) -> Hlc {
        self.heard
            .retain(|_, (at_ns, _)| at_ns.saturating_add(CLOCK_HEARD_NS) > now_ns);
        let others = self.heard.values().map(|(_, clock_us)| *clock_us);
        Hlc::from_physical_us(others.chain([self.own_us]).min().unwrap_or(0))
    }
}

impl Control {
    /// Reports what the agreed state does not show yet.
    pub(super) fn report(&mut self) {
        if self.now_ns < self.reports.next_ns
            || !matches!(self.standing(), Standing::Active | Standing::Waiting)
        {
            return;
        }
        let me = self.me;
        let missing = self.with_state(|state| self.reports.missing(state, me));
        let (Some(missing), Some(parts)) = (missing, &self.raft) else {
            return;
        };
        if missing.is_empty() {
            return;
        }
        self.reports.next_ns = self.now_ns + REPORT_EVERY_NS;
        let leader = self
            .exec
            .enter(|| parts.raft.metrics().borrow_watched().current_leader);
        for command in missing {
            if leader == Some(self.me) {
                let raft = parts.raft.clone();
                self.exec.enter(|| {
                    drop(Rt::spawn(async move {
                        // What came of it shows in the agreed state.
                        propose(raft, command).await;
                    }));
                });
            } else if let Some(leader) = leader {
                let id = self.rng.draw();
                self.outbox.send(leader, Body::Propose { id, command });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_clock_heard_lately_is_the_floor() {
        let mut clocks = Clocks::default();
        clocks.set_own(5_000);
        assert_eq!(clocks.floor(0), Hlc::from_physical_us(5_000));
        clocks.heard(NodeId(1), 0, 9_000);
        clocks.heard(NodeId(2), 1, 3_000);
        assert_eq!(clocks.floor(2), Hlc::from_physical_us(3_000));
        // Who has not been heard of for long holds nothing back.
        assert_eq!(
            clocks.floor(CLOCK_HEARD_NS + 1),
            Hlc::from_physical_us(5_000)
        );
    }
}
