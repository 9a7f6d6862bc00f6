//! The state machine as Raft drives it: in memory, with durable snapshots.
//!
//! After a restart Raft installs the newest snapshot and applies the committed entries behind it
//! again; so nothing has to be written when an entry is applied.
//!
//! A snapshot carries the [`Chain`] of what was applied before it:
//!
//! ```text
//! with it:    0xc1 | chain 16, little-endian | state, which begins with its own format
//! without it: the state alone: its chain is not known, nor is any after it
//! ```

use std::io;
use std::sync::{Arc, Mutex};

use mds_storage::Disk;
use mds_storage::datadir::RAFT_DIR;
use openraft::entry::RaftPayload;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use serde::{Deserialize, Serialize};

use super::{Chain, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::exec::lock;
use crate::state::{ClusterState, Response};
use crate::whole_file;

const SNAPSHOT_FILE: &str = "snapshot";
const SNAPSHOT_FORMAT_1: u8 = 1;

// First byte of what a snapshot holds, on disk and on the wire. Where it is none of these, it is the
// state's own.
const DATA_WITH_CHAIN: u8 = 0xc1;
const CHAIN_BYTES: usize = 16;

/// What Raft has applied so far.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    /// The agreed state.
    pub(crate) state: ClusterState,
    /// The last entry in it.
    pub(crate) last: Option<LogId>,
    /// All entries up to that one. Unknown behind a snapshot that does not say.
    pub(crate) chain: Option<Chain>,
    /// Who votes and who learns, as of that entry.
    pub(crate) membership: StoredMembership,
    /// Grows with every change of `state`.
    pub(crate) revision: u64,
}

impl Default for Applied {
    fn default() -> Applied {
        Applied {
            state: ClusterState::default(),
            last: None,
            chain: Some(Chain::default()),
            membership: StoredMembership::default(),
            revision: 0,
        }
    }
}

/// The state machine that is handed to Raft.
#[derive(Clone)]
pub(crate) struct Machine {
    disk: Arc<dyn Disk>,
    applied: Arc<Mutex<Applied>>,
}

#[derive(Serialize, Deserialize)]
struct StoredSnapshot {
    meta: SnapshotMeta,
    state: Vec<u8>,
}

fn invalid(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{RAFT_DIR}/{SNAPSHOT_FILE}: {error}"),
    )
}

fn encode(state: &ClusterState, chain: Option<Chain>) -> io::Result<Vec<u8>> {
    let state = state.encode().map_err(invalid)?;
    let Some(chain) = chain else {
        return Ok(state);
    };
    let mut data = Vec::with_capacity(1 + CHAIN_BYTES + state.len());
    data.push(DATA_WITH_CHAIN);
    data.extend_from_slice(&chain.0.to_le_bytes());
    data.extend_from_slice(&state);
    Ok(data)
}

fn decode(data: &[u8]) -> io::Result<(ClusterState, Option<Chain>)> {
    let (chain, state) = match data.split_first() {
        Some((&DATA_WITH_CHAIN, rest)) => {
            let (chain, state) = rest
                .split_first_chunk::<CHAIN_BYTES>()
                .ok_or_else(|| invalid("it ends within its chain"))?;
            (Some(Chain(u128::from_le_bytes(*chain))), state)
        }
        // Empty, unknown or of a later version: the state says so.
        _ => (None, data),
    };
    Ok((ClusterState::decode(state).map_err(invalid)?, chain))
}

impl Machine {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Machine {
        Machine {
            disk,
            applied: Arc::default(),
        }
    }

    /// What is applied, shared with whoever shows it.
    pub(crate) fn applied(&self) -> Arc<Mutex<Applied>> {
        self.applied.clone()
    }

    fn store(&self, snapshot: &Snapshot) -> io::Result<()> {
        let stored = StoredSnapshot {
            meta: snapshot.meta.clone(),
            state: snapshot.snapshot.clone(),
        };
        let bytes = postcard::to_extend(&stored, vec![SNAPSHOT_FORMAT_1]).map_err(invalid)?;
        whole_file::write(self.disk.as_ref(), RAFT_DIR, SNAPSHOT_FILE, &bytes)
    }

    fn load(&self) -> io::Result<Option<Snapshot>> {
        let Some(bytes) = whole_file::read(self.disk.as_ref(), RAFT_DIR, SNAPSHOT_FILE)? else {
            return Ok(None);
        };
        match bytes.split_first() {
            Some((&SNAPSHOT_FORMAT_1, rest)) => {
                let stored: StoredSnapshot = postcard::from_bytes(rest).map_err(invalid)?;
                Ok(Some(Snapshot {
                    meta: stored.meta,
                    snapshot: stored.state,
                }))
            }
            Some((format, _)) => Err(invalid(format!("format {format} is unknown"))),
            None => Err(invalid("it is empty")),
        }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let snapshot = {
            let applied = lock(&self.applied);
            Snapshot {
                meta: SnapshotMeta {
                    last_log_id: applied.last,
                    last_membership: applied.membership.clone(),
                },
                snapshot: encode(&applied.state, applied.chain)?,
            }
        };
        self.store(&snapshot)?;
        Ok(snapshot)
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = Machine;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = lock(&self.applied);
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: futures_core::Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>>
            + Unpin
            + OptionalSend,
    {
        let mut entries = entries;
        loop {
            let next =
                std::future::poll_fn(|context| std::pin::Pin::new(&mut entries).poll_next(context));
            let Some(item) = next.await else {
                return Ok(());
            };
            let (entry, responder) = item?;
            let response = {
                let mut applied = lock(&self.applied);
                if let Some(membership) = entry.payload.get_membership() {
                    applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
                applied.last = Some(entry.log_id);
                applied.chain = match applied.chain {
                    Some(chain) => Some(chain.next(&entry).map_err(invalid)?),
                    None => None,
                };
                applied.revision += 1;
                match &entry.payload {
                    EntryPayload::Normal(command) => applied.state.apply(command),
                    EntryPayload::Blank | EntryPayload::Membership(_) => Response::Done,
                }
            };
            if let Some(responder) = responder {
                responder.send(response);
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Vec<u8>,
    ) -> Result<(), io::Error> {
        let (state, chain) = decode(&snapshot)?;
        // At start Raft installs what the file holds already: writing it again changes nothing.
        self.store(&Snapshot {
            meta: meta.clone(),
            snapshot,
        })?;
        let mut applied = lock(&self.applied);
        applied.state = state;
        applied.last = meta.last_log_id;
        applied.chain = chain;
        applied.membership = meta.last_membership.clone();
        applied.revision += 1;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        self.load()
    }
}
