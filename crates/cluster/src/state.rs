//! What the cluster agrees on: the state machine that Raft's log drives.
//!
//! Small, pure, and the same on every node: no clock, no randomness, no I/O. Whoever is a member,
//! which data directory and which start of it, the ring, the epoch. A command that may not be
//! carried out is answered with a reason and changes nothing.
//!
//! **Invariants** (tested)
//!
//! 1. A cluster is born once: the first [`Command::Born`] counts, later ones change nothing.
//! 2. A member's start number only grows, and one start number belongs to one nonce: of two copies
//!    of a data directory at most one is the member.
//! 3. The epoch and the topology version only grow.
//!
//! The ring does not change yet after birth: later joiners wait (stage *Waiting*). The encoding is
//! versioned, so that the next ring and its stage can be added beside the present one.

use std::collections::BTreeMap;
use std::fmt;

use mds_types::limits::{MEMBER_TEXT_BYTES_MAX, MEMBERS_MAX};
use mds_types::mutation::{Mutation, is_on};
use mds_types::{
    ClusterConfig, ClusterId, Epoch, IncarnationId, MemberInfo, NodeId, Topology, TopologyMember,
    TopologyVersion,
};
use serde::{Deserialize, Serialize};

use crate::view::{MemberStage, MemberView};

/// First byte of an encoded state.
const STATE_FORMAT_1: u8 = 1;

/// The epoch a cluster is born in.
pub const FIRST_EPOCH: Epoch = Epoch(1);

/// A data directory and what its node says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewMember {
    /// The directory; the node id is cut from it.
    pub incarnation: IncarnationId,
    /// Addresses, zone, weight.
    pub info: MemberInfo,
}

/// An entry of Raft's log. New commands are added at the end: the position is the encoding.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Forms the ring of all `members`, version 1.
    Born {
        /// The identity drawn at `init`.
        cluster: ClusterId,
        /// Agreed for the cluster's life.
        config: ClusterConfig,
        /// The first members.
        members: Vec<NewMember>,
    },
    /// Makes a node a member that waits for a ring change. A known member stays as it is.
    AddMember {
        /// The node.
        member: NewMember,
    },
    /// A member has started.
    Announce {
        /// Its directory and what it says of itself from now on.
        member: NewMember,
        /// The directory's start number.
        boot: u64,
        /// Drawn at that start.
        nonce: u64,
        /// Drawn at the directory's starts before it. A directory that does not remember the start which
        /// the cluster acknowledged last is not the one that was started then.
        earlier: Vec<u64>,
    },
    /// Raises the epoch.
    AdvanceEpoch {
        /// To this; only one more than the present epoch is accepted.
        to: Epoch,
    },
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Born {
                cluster, members, ..
            } => {
                write!(f, "born {cluster} with {} members", members.len())
            }
            Command::AddMember { member } => {
                write!(f, "add member {}", member.incarnation.node_id())
            }
            Command::Announce { member, boot, .. } => {
                write!(f, "start {boot} of {}", member.incarnation.node_id())
            }
            Command::AdvanceEpoch { to } => write!(f, "epoch {to}"),
        }
    }
}

/// What a command came to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Response {
    /// Carried out, or nothing had to be done.
    Done,
    /// Not carried out, and never will be however often it is tried.
    Refused(String),
    /// Not carried out now: something else has to happen first.
    NotYet(String),
}

/// The agreed state.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ClusterState {
    /// [`ClusterId::NONE`] until the cluster is born.
    pub cluster: ClusterId,
    /// Agreed at birth.
    pub config: Option<ClusterConfig>,
    /// Zero until the cluster is born.
    pub epoch: Epoch,
    /// The ring.
    pub topology: Topology,
    /// Everyone who belongs to the cluster.
    pub members: BTreeMap<NodeId, MemberView>,
}

/// An encoded state that cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StateDecodeError {
    /// Written by a later version.
    #[error("cluster state format {0} is unknown: was it written by a newer version?")]
    UnknownFormat(u8),
    /// Damaged.
    #[error("cluster state is damaged: {0}")]
    Damaged(String),
}

impl ClusterState {
    /// Carries a command out.
    pub fn apply(&mut self, command: &Command) -> Response {
        match command {
            Command::Born {
                cluster,
                config,
                members,
            } => self.born(*cluster, config, members),
            _ if self.cluster.is_none() => {
                Response::NotYet("the cluster has not been formed yet".to_owned())
            }
            Command::AddMember { member } => self.add_member(member),
            Command::Announce {
                member,
                boot,
                nonce,
                earlier,
            } => self.announce(member, *boot, *nonce, earlier),
            Command::AdvanceEpoch { to } => self.advance_epoch(*to),
        }
    }

    fn born(
        &mut self,
        cluster: ClusterId,
        config: &ClusterConfig,
        members: &[NewMember],
    ) -> Response {
        if self.cluster == cluster && !cluster.is_none() {
            return Response::Done;
        }
        if !self.cluster.is_none() {
            return Response::Refused(format!("the cluster was born as {}", self.cluster));
        }
        if let Err(reason) = check_birth(cluster, config, members) {
            return Response::Refused(reason);
        }
        self.cluster = cluster;
        self.config = Some(config.clone());
        self.epoch = FIRST_EPOCH;
        self.members = members
            .iter()
            .map(|member| {
                (
                    member.incarnation.node_id(),
                    not_started(member, MemberStage::Active),
                )
            })
            .collect();
        let ring = self.members.iter().map(|(node, member)| TopologyMember {
            node: *node,
            zone: member.info.zone.clone(),
            weight: member.info.weight,
        });
        self.topology = Topology {
            version: TopologyVersion(1),
            members: ring.collect(),
        };
        Response::Done
    }

    fn add_member(&mut self, member: &NewMember) -> Response {
        let node = member.incarnation.node_id();
        if let Some(known) = self.members.get(&node) {
            return same_directory(known, member);
        }
        if self.members.len() >= MEMBERS_MAX {
            return Response::Refused(format!("the cluster has {MEMBERS_MAX} members, the most"));
        }
        if let Err(reason) = check_info(&member.info) {
            return Response::Refused(reason);
        }
        self.members
            .insert(node, not_started(member, MemberStage::Waiting));
        Response::Done
    }

    fn announce(&mut self, member: &NewMember, boot: u64, nonce: u64, earlier: &[u64]) -> Response {
        let Some(known) = self.members.get_mut(&member.incarnation.node_id()) else {
            return Response::NotYet("the node is not a member yet".to_owned());
        };
        if let refused @ Response::Refused(_) = same_directory(known, member) {
            return refused;
        }
        if let Err(reason) = check_info(&member.info) {
            return Response::Refused(reason);
        }
        if boot == known.boot && nonce == known.boot_nonce {
            return Response::Done;
        }
        if !follows(known.boot, known.boot_nonce, boot, earlier) && !is_on(Mutation::CopyAccepted) {
            return Response::Refused(start_number_used(boot));
        }
        known.boot = boot;
        known.boot_nonce = nonce;
        known.info = member.info.clone();
        Response::Done
    }

    fn advance_epoch(&mut self, to: Epoch) -> Response {
        if to <= self.epoch {
            return Response::Refused(format!("epoch {to} is over: the epoch is {}", self.epoch));
        }
        if to.0 != self.epoch.0 + 1 {
            return Response::Refused(format!("epoch {to} would skip some after {}", self.epoch));
        }
        self.epoch = to;
        Response::Done
    }

    /// The binary form, for snapshots.
    ///
    /// # Errors
    /// Never for a state that `apply` built; the encoder's type says otherwise.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_extend(self, vec![STATE_FORMAT_1])
    }

    /// Reads the binary form.
    ///
    /// # Errors
    /// If the bytes are damaged or of a later format.
    pub fn decode(bytes: &[u8]) -> Result<ClusterState, StateDecodeError> {
        let damaged = |text: &str| StateDecodeError::Damaged(text.to_owned());
        match bytes.split_first() {
            None => Err(damaged("no bytes")),
            Some((&STATE_FORMAT_1, rest)) => match postcard::take_from_bytes(rest) {
                Ok((state, [])) => Ok(state),
                Ok(_) => Err(damaged("bytes are left over")),
                Err(error) => Err(damaged(&error.to_string())),
            },
            Some((&format, _)) => Err(StateDecodeError::UnknownFormat(format)),
        }
    }
}

/// What a node is told whose start number has been used by another start.
pub(crate) fn start_number_used(boot: u64) -> String {
    format!(
        "this data directory is a copy or was restored from a backup: start number {boot} has \
         already been used, or a later start is missing from it. Start this node with an empty directory: it joins as a new member"
    )
}

/// Whether a start may take the place of the one that is agreed on: it counts further, and its directory
/// remembers that one.
pub(crate) fn follows(known_boot: u64, known_nonce: u64, boot: u64, earlier: &[u64]) -> bool {
    boot > known_boot && (known_boot == 0 || earlier.contains(&known_nonce))
}

fn not_started(member: &NewMember, stage: MemberStage) -> MemberView {
    MemberView {
        incarnation: member.incarnation,
        boot: 0,
        boot_nonce: 0,
        info: member.info.clone(),
        stage,
    }
}

fn same_directory(known: &MemberView, member: &NewMember) -> Response {
    if known.incarnation == member.incarnation {
        Response::Done
    } else {
        Response::Refused("another data directory has the same node id".to_owned())
    }
}

fn check_birth(
    cluster: ClusterId,
    config: &ClusterConfig,
    members: &[NewMember],
) -> Result<(), String> {
    if cluster.is_none() {
        return Err("a cluster cannot be born without an id".to_owned());
    }
    config.validate().map_err(|error| error.to_string())?;
    if members.is_empty() || members.len() > MEMBERS_MAX {
        return Err(format!("a cluster is born with 1 to {MEMBERS_MAX} members"));
    }
    let nodes: std::collections::BTreeSet<NodeId> = members
        .iter()
        .map(|member| member.incarnation.node_id())
        .collect();
    if nodes.len() != members.len() || nodes.contains(&NodeId(0)) {
        return Err("the first members are not distinct nodes".to_owned());
    }
    members
        .iter()
        .try_for_each(|member| check_info(&member.info))
}

/// Whether a node's words about itself are short enough to be kept by everybody.
///
/// # Errors
/// Says which one is too long.
pub fn check_info(info: &MemberInfo) -> Result<(), String> {
    let texts = [
        ("name", &info.name),
        ("peer address", &info.peer_addr),
        ("RESP address", &info.resp_addr),
        ("HTTP address", &info.http_addr),
        ("zone", &info.zone),
    ];
    for (what, text) in texts {
        if text.len() > MEMBER_TEXT_BYTES_MAX {
            return Err(format!(
                "the node's {what} has {} bytes: at most {MEMBER_TEXT_BYTES_MAX} are allowed",
                text.len()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn directory(n: u128) -> IncarnationId {
        IncarnationId((n << 64) | n)
    }

    fn member(n: u128) -> NewMember {
        let info = MemberInfo {
            name: format!("node-{n}"),
            weight: 100,
            ..MemberInfo::default()
        };
        NewMember {
            incarnation: directory(n),
            info,
        }
    }

    fn born(cluster: u128, members: impl IntoIterator<Item = u128>) -> Command {
        Command::Born {
            cluster: ClusterId(cluster),
            config: ClusterConfig::default(),
            members: members.into_iter().map(member).collect(),
        }
    }

    /// A start of a directory that remembers all its starts.
    fn announce(n: u128, boot: u64, nonce: u64) -> Command {
        announce_after(n, boot, nonce, (0..1_000).collect())
    }

    fn announce_after(n: u128, boot: u64, nonce: u64, earlier: Vec<u64>) -> Command {
        Command::Announce {
            member: member(n),
            boot,
            nonce,
            earlier,
        }
    }

    #[test]
    fn a_copy_is_refused_however_often_it_is_started() {
        let mut state = ClusterState::default();
        assert_eq!(state.apply(&born(9, [1, 2, 3])), Response::Done);
        // Copied during start 1; the original has gone on to start 2.
        assert_eq!(
            state.apply(&announce_after(1, 1, 11, vec![])),
            Response::Done
        );
        assert_eq!(
            state.apply(&announce_after(1, 2, 12, vec![11])),
            Response::Done
        );
        for boot in 2..10 {
            let mut earlier = vec![11];
            earlier.extend(100..100 + boot);
            let copy = state.apply(&announce_after(1, boot, 100 + boot, earlier));
            assert!(matches!(copy, Response::Refused(_)), "start {boot}");
        }
        // The original goes on, also past a start of its own that nobody heard of.
        let original = announce_after(1, 4, 14, vec![11, 12, 13]);
        assert_eq!(state.apply(&original), Response::Done);
    }

    /// One line per command: what it was, what it came to, what then stands.
    fn play(commands: &[Command]) -> String {
        let mut state = ClusterState::default();
        let mut script = String::new();
        for command in commands {
            let response = match state.apply(command) {
                Response::Done => "done".to_owned(),
                Response::NotYet(reason) => format!("not yet: {reason}"),
                Response::Refused(reason) => format!("refused: {reason}"),
            };
            let members = state.members.iter().map(|(node, member)| {
                format!(
                    "{}:{}/{}{}",
                    node.0,
                    member.boot,
                    member.boot_nonce,
                    match member.stage {
                        MemberStage::Active => "a",
                        MemberStage::Waiting => "w",
                    }
                )
            });
            let members = members.collect::<Vec<_>>().join(" ");
            script += &format!(
                "{command} -> {response} | e{} t{} [{members}]\n",
                state.epoch, state.topology.version
            );
        }
        script
    }

    #[test]
    fn golden_script_of_a_clusters_life() {
        let script = play(&[
            Command::AdvanceEpoch { to: Epoch(1) },
            born(0xc, [2, 1]),
            born(0xc, [3]),
            born(0xd, [3]),
            announce(1, 1, 11),
            announce(1, 1, 11),
            announce(1, 1, 12),
            announce(1, 3, 13),
            announce(1, 2, 14),
            announce(9, 1, 19),
            Command::AddMember { member: member(9) },
            Command::AddMember { member: member(9) },
            announce(9, 1, 19),
            Command::AdvanceEpoch { to: Epoch(2) },
            Command::AdvanceEpoch { to: Epoch(2) },
            Command::AdvanceEpoch { to: Epoch(4) },
        ]);
        let copy = "this data directory is a copy or was restored from a backup: start number";
        let advice = "has already been used, or a later start is missing from it. Start this node \
                      with an empty directory: it joins as a new member";
        let (c, d) = (ClusterId(0xc), ClusterId(0xd));
        let expected = format!(
            "epoch 1 -> not yet: the cluster has not been formed yet | e0 t0 []\n\
             born {c} with 2 members -> done | e1 t1 [1:0/0a 2:0/0a]\n\
             born {c} with 1 members -> done | e1 t1 [1:0/0a 2:0/0a]\n\
             born {d} with 1 members -> refused: the cluster was born as {c} | e1 t1 [1:0/0a 2:0/0a]\n\
             start 1 of 0000000000000001 -> done | e1 t1 [1:1/11a 2:0/0a]\n\
             start 1 of 0000000000000001 -> done | e1 t1 [1:1/11a 2:0/0a]\n\
             start 1 of 0000000000000001 -> refused: {copy} 1 {advice} | e1 t1 [1:1/11a 2:0/0a]\n\
             start 3 of 0000000000000001 -> done | e1 t1 [1:3/13a 2:0/0a]\n\
             start 2 of 0000000000000001 -> refused: {copy} 2 {advice} | e1 t1 [1:3/13a 2:0/0a]\n\
             start 1 of 0000000000000009 -> not yet: the node is not a member yet | e1 t1 [1:3/13a 2:0/0a]\n\
             add member 0000000000000009 -> done | e1 t1 [1:3/13a 2:0/0a 9:0/0w]\n\
             add member 0000000000000009 -> done | e1 t1 [1:3/13a 2:0/0a 9:0/0w]\n\
             start 1 of 0000000000000009 -> done | e1 t1 [1:3/13a 2:0/0a 9:1/19w]\n\
             epoch 2 -> done | e2 t1 [1:3/13a 2:0/0a 9:1/19w]\n\
             epoch 2 -> refused: epoch 2 is over: the epoch is 2 | e2 t1 [1:3/13a 2:0/0a 9:1/19w]\n\
             epoch 4 -> refused: epoch 4 would skip some after 2 | e2 t1 [1:3/13a 2:0/0a 9:1/19w]\n"
        );
        assert_eq!(script, expected);
    }

    #[test]
    fn the_ring_is_formed_of_the_first_members_in_order() {
        let mut state = ClusterState::default();
        assert_eq!(state.apply(&born(0xc, [5, 2, 9])), Response::Done);
        let ring: Vec<u64> = state
            .topology
            .members
            .iter()
            .map(|member| member.node.0)
            .collect();
        assert_eq!(ring, [2, 5, 9]);
        assert_eq!(
            state.apply(&Command::AddMember { member: member(7) }),
            Response::Done
        );
        assert_eq!(
            state.topology.members.len(),
            3,
            "a joiner does not move data"
        );
    }

    #[test]
    fn impossible_births_change_nothing() {
        let long = MemberInfo {
            zone: "z".repeat(129),
            ..MemberInfo::default()
        };
        let too_long = NewMember {
            incarnation: directory(1),
            info: long,
        };
        let bad_config = ClusterConfig {
            replicas: 0,
            ..ClusterConfig::default()
        };
        let (cluster, config) = (ClusterId(1), ClusterConfig::default());
        for command in [
            born(0, [1]),
            born(1, []),
            born(1, [1, 1]),
            born(1, [0]),
            Command::Born {
                cluster,
                config: bad_config,
                members: vec![member(1)],
            },
            Command::Born {
                cluster,
                config,
                members: vec![too_long],
            },
        ] {
            let mut state = ClusterState::default();
            assert!(
                matches!(state.apply(&command), Response::Refused(_)),
                "{command:?}"
            );
            assert_eq!(state, ClusterState::default());
        }
    }

    fn commands() -> impl Strategy<Value = Command> {
        prop_oneof![
            (1u128..3, 1u128..5).prop_map(|(cluster, count)| born(cluster, 1..=count)),
            (1u128..8).prop_map(|n| Command::AddMember { member: member(n) }),
            (1u128..8, 0u64..5, 0u64..3).prop_map(|(n, boot, nonce)| announce(n, boot, nonce)),
            (0u64..6).prop_map(|to| Command::AdvanceEpoch { to: Epoch(to) }),
        ]
    }

    proptest! {
        #[test]
        fn numbers_only_grow_and_the_encoding_is_faithful(
            script in prop::collection::vec(commands(), 0..40),
        ) {
            let mut state = ClusterState::default();
            for command in script {
                let before = state.clone();
                let response = state.apply(&command);
                prop_assert!(state.epoch >= before.epoch);
                prop_assert!(state.topology.version >= before.topology.version);
                prop_assert!(before.cluster.is_none() || state.cluster == before.cluster);
                for (node, old) in &before.members {
                    let new = &state.members[node];
                    prop_assert!(
                        new.boot > old.boot
                            || (new.boot, new.boot_nonce) == (old.boot, old.boot_nonce)
                    );
                }
                if response != Response::Done {
                    prop_assert_eq!(&state, &before);
                }
            }
            let bytes = state.encode().unwrap();
            prop_assert_eq!(ClusterState::decode(&bytes), Ok(state));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ClusterState::decode(&bytes);
            let mut framed = vec![STATE_FORMAT_1];
            framed.extend_from_slice(&bytes);
            let _ = ClusterState::decode(&framed);
        }
    }
}
