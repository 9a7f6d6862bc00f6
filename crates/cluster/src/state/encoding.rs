//! The binary form of the agreed state, for snapshots.
//!
//! One byte of format, then the fields in their order. A format that was written once stays readable.

use std::collections::BTreeMap;

use mds_types::{ClusterConfig, ClusterId, Epoch, NodeId, Topology};
use serde::{Deserialize, Serialize};

use super::ClusterState;
use crate::view::MemberView;

/// Before rings could change.
const STATE_FORMAT_1: u8 = 1;
/// With floors, transitions, acknowledgements, removed directories and requests.
pub(super) const STATE_FORMAT_2: u8 = 2;

/// What format 1 held.
#[derive(Serialize, Deserialize)]
pub(super) struct StateFormat1 {
    pub(super) cluster: ClusterId,
    pub(super) config: Option<ClusterConfig>,
    pub(super) epoch: Epoch,
    pub(super) topology: Topology,
    pub(super) members: BTreeMap<NodeId, MemberView>,
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
    /// The binary form, for snapshots.
    ///
    /// # Errors
    /// Never for a state that `apply` built; the encoder's type says otherwise.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_extend(self, vec![STATE_FORMAT_2])
    }

    /// Reads the binary form, of this format or an earlier one.
    ///
    /// # Errors
    /// If the bytes are damaged or of a later format.
    pub fn decode(bytes: &[u8]) -> Result<ClusterState, StateDecodeError> {
        match bytes.split_first() {
            None => Err(StateDecodeError::Damaged("no bytes".to_owned())),
            Some((&STATE_FORMAT_1, rest)) => whole::<StateFormat1>(rest).map(ClusterState::from),
            Some((&STATE_FORMAT_2, rest)) => {
                let state: ClusterState = whole(rest)?;
                match state.floors.is_sound() {
                    true => Ok(state),
                    false => Err(StateDecodeError::Damaged("its floors fall".to_owned())),
                }
            }
            Some((&format, _)) => Err(StateDecodeError::UnknownFormat(format)),
        }
    }
}

fn whole<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, StateDecodeError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(StateDecodeError::Damaged("bytes are left over".to_owned())),
        Err(error) => Err(StateDecodeError::Damaged(error.to_string())),
    }
}

impl From<StateFormat1> for ClusterState {
    fn from(old: StateFormat1) -> ClusterState {
        ClusterState {
            cluster: old.cluster,
            config: old.config,
            epoch: old.epoch,
            topology: old.topology,
            members: old.members,
            ..ClusterState::default()
        }
    }
}
