//! How a node gets its cluster: by founding one, by being planned for one, by being invited to one.
//!
//! The order of the durable steps is what makes a crash harmless:
//!
//! 1. the **plan** (cluster id, configuration, members, voters), for founder and planned members;
//! 2. an empty Raft log, so that a missing one later means damage;
//! 3. the **cluster id** in the directory's identity. From here on the directory belongs to it.
//!
//! At the next start a plan without a cluster id is simply carried on. The founder alone gives Raft
//! its first configuration; whoever leads first has the birth agreed on, from its own copy of the
//! plan; the state machine counts only the first.

use std::collections::BTreeMap;

use mds_storage::Disk;
use mds_storage::datadir::RAFT_DIR;
use mds_types::limits::MEMBERS_MAX;
use mds_types::{ClusterConfig, ClusterId, NodeId};
use openraft::EmptyNode;
use openraft_rt::AsyncRuntime;

use super::duties::{choose_voters, voters_wanted};
use super::{ADMIN_WAITING_MAX, AdminError, Control, ControlError};
use crate::raft::{LogStore, OpenMode};
use crate::rt::Rt;
use crate::state::NewMember;
use crate::whole_file;
use crate::wire::{BirthPlan, Body};

const PLAN_FILE: &str = "birth";
const PLAN_FORMAT_1: u8 = 1;

/// Whoever should become part of the cluster and has not yet is asked this often, nanoseconds.
const INVITE_EVERY_NS: u64 = 500_000_000;

fn invalid(text: impl std::fmt::Display) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, text.to_string())
}

fn read_plan(disk: &dyn Disk) -> std::io::Result<Option<BirthPlan>> {
    let Some(bytes) = whole_file::read(disk, RAFT_DIR, PLAN_FILE)? else {
        return Ok(None);
    };
    match bytes.split_first() {
        Some((&PLAN_FORMAT_1, rest)) => postcard::from_bytes(rest)
            .map(Some)
            .map_err(|error| invalid(format!("{RAFT_DIR}/{PLAN_FILE} is damaged: {error}"))),
        _ => Err(invalid(format!(
            "{RAFT_DIR}/{PLAN_FILE} has an unknown format: was it written by a newer version?"
        ))),
    }
}

fn write_plan(disk: &dyn Disk, plan: &BirthPlan) -> std::io::Result<()> {
    let bytes = postcard::to_extend(plan, vec![PLAN_FORMAT_1]).map_err(invalid)?;
    whole_file::write(disk, RAFT_DIR, PLAN_FILE, &bytes)
}

impl Control {
    /// Goes on where the last start ended.
    pub(super) fn resume(&mut self) -> Result<(), ControlError> {
        self.plan = read_plan(self.disk.as_ref())?;
        match &self.plan {
            Some(plan) if self.cluster().is_none() => self.belong_to(plan.cluster),
            Some(plan) if plan.cluster != self.cluster() => {
                let (planned, is) = (plan.cluster, self.cluster());
                Err(invalid(format!(
                    "the data directory belongs to cluster {is} but was planned for {planned}: it \
                     has been put together from two"
                ))
                .into())
            }
            _ if self.cluster().is_none() => Ok(()),
            _ => {
                self.start_raft(OpenMode::MustExist)?;
                self.found();
                Ok(())
            }
        }
    }

    /// Steps 2 and 3, and Raft.
    fn belong_to(&mut self, cluster: ClusterId) -> Result<(), ControlError> {
        let salt_seed = self.home.identity().incarnation.0 as u64;
        let log = LogStore::open(self.disk.clone(), salt_seed, OpenMode::Create)?;
        if !log.is_pristine() {
            return Err(invalid(format!(
                "{RAFT_DIR}/ holds votes or entries but the data directory belongs to no cluster: \
                 start the node with an empty data directory"
            ))
            .into());
        }
        drop(log);
        self.home.adopt_cluster(cluster)?;
        tracing::info!(%cluster, "this node is part of a cluster now");
        self.gossip.adopt(self.now_ns, cluster);
        self.start_raft(OpenMode::MustExist)?;
        self.found();
        Ok(())
    }

    /// Gives Raft its first configuration, if that is this node's part and not done yet.
    fn found(&mut self) {
        let (Some(plan), Some(parts)) = (&self.plan, &self.raft) else {
            return;
        };
        if plan.founder != self.me || !parts.log.is_pristine() {
            return;
        }
        let voters: BTreeMap<NodeId, EmptyNode> = plan
            .voters
            .iter()
            .map(|node| (*node, EmptyNode::new()))
            .collect();
        let raft = parts.raft.clone();
        self.exec.enter(|| {
            drop(Rt::spawn(async move {
                if let Err(error) = raft.initialize(voters).await {
                    // Refused when it has been done before, which is as good.
                    tracing::info!(%error, "raft was not initialised");
                }
            }));
        });
    }

    /// Forms a cluster.
    pub(super) fn init(
        &mut self,
        config: ClusterConfig,
        expected_nodes: usize,
    ) -> Result<(), AdminError> {
        if let Some(reason) = &self.fatal {
            return Err(AdminError::Stopped(reason.clone()));
        }
        if !self.is_running() {
            return Err(AdminError::Stopped("it has been refused".to_owned()));
        }
        if !self.cluster().is_none() {
            return Err(AdminError::AlreadyFormed(self.cluster()));
        }
        if self.waiting.len() >= ADMIN_WAITING_MAX {
            return Err(AdminError::Busy);
        }
        config
            .validate()
            .map_err(|error| AdminError::Invalid(error.to_string()))?;
        let members = self.founders(expected_nodes)?;
        let zones: Vec<(NodeId, &str)> = members
            .iter()
            .map(|member| (member.incarnation.node_id(), member.info.zone.as_str()))
            .collect();
        let plan = BirthPlan {
            cluster: ClusterId(self.rng.next_u128().max(1)),
            config,
            founder: self.me,
            voters: first_voters(self.me, &zones),
            members,
        };
        if let Err(error) = self.take_up(plan) {
            let reason = error.to_string();
            self.fail(reason.clone());
            return Err(AdminError::Stopped(reason));
        }
        self.next_invite_ns = self.now_ns;
        Ok(())
    }

    /// Writes the plan down (step 1) and goes on.
    fn take_up(&mut self, plan: BirthPlan) -> Result<(), ControlError> {
        write_plan(self.disk.as_ref(), &plan)?;
        let cluster = plan.cluster;
        self.plan = Some(plan);
        self.belong_to(cluster)
    }

    /// This node and all others that are alive and without a cluster.
    fn founders(&self, expected: usize) -> Result<Vec<NewMember>, AdminError> {
        let alive = self.gossip.peers().values().filter(|peer| peer.alive);
        let mut members = vec![NewMember {
            incarnation: self.home.identity().incarnation,
            info: self.config.info.clone(),
        }];
        for peer in alive {
            if !peer.id.cluster.is_none() {
                let (cluster, node) = (peer.id.cluster, describe(&peer.id.info));
                return Err(AdminError::ClusterInReach { cluster, node });
            }
            let info = (*peer.id.info).clone();
            members.push(NewMember {
                incarnation: peer.id.incarnation,
                info,
            });
        }
        members.sort_by_key(|member| member.incarnation.node_id());
        if members.len() < expected.max(1) {
            let seen = members
                .iter()
                .map(|member| describe(&member.info))
                .collect();
            return Err(AdminError::TooFewNodes { expected, seen });
        }
        if members.len() > MEMBERS_MAX {
            return Err(AdminError::Invalid(format!(
                "{} nodes are in reach: a cluster has at most {MEMBERS_MAX}",
                members.len()
            )));
        }
        Ok(members)
    }

    /// Invites whoever should be part of this cluster and is of none yet.
    pub(super) fn invite(&mut self) {
        if self.cluster().is_none() || self.now_ns < self.next_invite_ns {
            return;
        }
        self.next_invite_ns = self.now_ns + INVITE_EVERY_NS;
        let leads = self.is_leader();
        if leads {
            self.tell_the_removed();
        }
        let cluster = self.cluster();
        if let Some(plan) = &self.plan
            && (leads || plan.founder == self.me)
        {
            for node in plan.nodes() {
                let arrived = self.gossip.peers().get(&node).map(|peer| peer.id.cluster);
                if node != self.me
                    && arrived != Some(cluster)
                    && !self.lost_to_others.contains(&node)
                    && !self
                        .with_state(|state| started(state, node))
                        .unwrap_or(false)
                {
                    self.outbox.send(
                        node,
                        Body::Invite {
                            plan: Some(plan.clone()),
                        },
                    );
                }
            }
        }
        let born = self
            .with_state(|state| !state.cluster.is_none())
            .unwrap_or(false);
        if !leads || !born || !self.config.auto_add_members {
            return;
        }
        for (node, peer) in self.gossip.peers() {
            let planned = self.plan.as_ref().is_some_and(|plan| plan.includes(*node));
            if peer.alive && peer.id.cluster.is_none() && !planned {
                self.outbox.send(*node, Body::Invite { plan: None });
            }
        }
    }

    /// Another node invites this one to its cluster.
    pub(super) fn on_invite(
        &mut self,
        from: NodeId,
        addr: String,
        cluster: ClusterId,
        plan: Option<BirthPlan>,
    ) {
        if self.cluster().is_none() && !cluster.is_none() {
            let adopted = match plan {
                Some(plan) if plan.cluster != cluster || !plan.includes(self.me) => return,
                Some(plan) => self.take_up(plan),
                None => self.belong_to(cluster),
            };
            if let Err(error) = adopted {
                self.fail(error.to_string());
                return;
            }
        }
        self.outbox.send_to_start(
            from,
            addr,
            Body::Invited {
                cluster: self.cluster(),
            },
        );
    }

    /// An invited node says which cluster it is part of.
    pub(super) fn on_invited(&mut self, from: NodeId, cluster: ClusterId) {
        let Some(plan) = &self.plan else { return };
        if cluster == self.cluster() || cluster.is_none() || !plan.includes(from) {
            return;
        }
        self.lost_to_others.insert(from);
        tracing::warn!(node = %from, %cluster, "a planned member is part of another cluster");
        let left = plan
            .voters
            .iter()
            .filter(|node| !self.lost_to_others.contains(node))
            .count();
        let born = self
            .with_state(|state| !state.cluster.is_none())
            .unwrap_or(false);
        if !born && left <= plan.voters.len() / 2 {
            self.refuse(format!(
                "the cluster {} that this node was to form cannot come about: most of its first \
                 voters are part of cluster {cluster}. Start this node with an empty data \
                 directory: it joins that cluster",
                plan.cluster
            ));
        }
    }
}

/// Who votes first, sorted. The founder is one of them: Raft takes its first configuration from a voter only.
fn first_voters(founder: NodeId, members: &[(NodeId, &str)]) -> Vec<NodeId> {
    let (own, others): (Vec<_>, Vec<_>) = members.iter().partition(|(node, _)| *node == founder);
    let zones: Vec<&str> = own.iter().map(|(_, zone)| *zone).collect();
    let missing = voters_wanted(members.len()).saturating_sub(own.len());
    let mut voters = choose_voters(&zones, &others, missing);
    voters.extend(own.iter().map(|(node, _)| *node));
    voters.sort_unstable();
    voters
}

fn started(state: &crate::state::ClusterState, node: NodeId) -> bool {
    state
        .members
        .get(&node)
        .is_some_and(|member| member.boot > 0)
}

fn describe(info: &mds_types::MemberInfo) -> String {
    if info.name.is_empty() {
        info.peer_addr.clone()
    } else {
        format!("{} ({})", info.name, info.peer_addr)
    }
}
