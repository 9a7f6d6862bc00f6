//! Chores: what the flusher does for the writer besides flushing.
//!
//! Everybody's records wait for the writer, so it does nothing long by itself. To empty a partition in the engine
//! costs a run and its syncs, and to find dead records is to read an epoch's rows from disk. The writer says
//! here what it wants, the flusher does some of it whenever no table waits, and the writer takes up what came of it when
//! it next comes by. Nothing here outlives the process: what it follows from is in the ledger.
//!
//! **Invariants**
//!
//! 1. What is decided is decided by the writer, from the ledger: the flusher removes keys only of partitions that
//!    the ledger says are being wiped, and it only *finds* what might be collected.
//! 2. A partition is here to be emptied only while nothing of it is in a table, and nothing may come in. Once it
//!    has been found empty it is not looked at again, because then it may be filled anew.
//! 3. One search's findings are taken up before the next step of a search begins.

use std::collections::BTreeMap;
use std::sync::Arc;

use mds_types::{Hlc, PartitionId};

use super::StoreError;
use super::collect::Found;

/// Partitions to be searched for dead records, each with the floor above which a tombstone may not go yet.
pub(super) type Floors = Arc<[(PartitionId, Hlc)]>;

/// What the writer and the flusher have to tell each other.
#[derive(Default)]
pub(super) struct Chores {
    /// Partitions to be emptied in the engine, ascending.
    to_empty: Vec<PartitionId>,
    /// Of these, the ones of which nothing is left.
    emptied: Vec<PartitionId>,
    to_search: Floors,
    /// Where in that list the search stands.
    searched: usize,
    found: Option<Result<Found, StoreError>>,
    /// How often each partition has been wiped in this life of the process: what was found before is of no use
    /// after it. Never wiped: not here.
    wipes: Arc<BTreeMap<PartitionId, u64>>,
}

impl Chores {
    /// Whether the flusher has anything to do here.
    pub(super) fn is_any_due(&self) -> bool {
        !self.to_empty.is_empty() || self.next_search().is_some()
    }

    /// For the writer: what has been emptied since it last asked. Until it wants something emptied again,
    /// nothing is.
    pub(super) fn take_emptied(&mut self) -> Vec<PartitionId> {
        self.to_empty.clear();
        std::mem::take(&mut self.emptied)
    }

    /// For the writer: empty these, of which nothing is in any table.
    pub(super) fn empty(&mut self, partitions: Vec<PartitionId>) {
        self.to_empty = partitions;
    }

    /// For the flusher.
    pub(super) fn to_empty(&self) -> &[PartitionId] {
        &self.to_empty
    }

    /// For the writer: these are wiped; said after the ledger has said so.
    pub(super) fn are_wiped(&mut self, partitions: &[PartitionId]) {
        let wipes = Arc::make_mut(&mut self.wipes);
        for partition in partitions {
            *wipes.entry(*partition).or_default() += 1;
        }
    }

    /// How often each partition has been wiped. To be asked for before the ledger: what is found in a ledger from
    /// before a wipe then never passes for something found after it.
    pub(super) fn wipes(&self) -> Arc<BTreeMap<PartitionId, u64>> {
        self.wipes.clone()
    }

    /// For the flusher: nothing is left of these.
    pub(super) fn are_empty(&mut self, partitions: Vec<PartitionId>) {
        self.to_empty.retain(|one| !partitions.contains(one));
        self.emptied.extend(partitions);
    }

    /// For the writer: search these for what may be collected, in order.
    pub(super) fn search(&mut self, partitions: Vec<(PartitionId, Hlc)>) {
        self.to_search = partitions.into();
        self.searched = 0;
    }

    /// Whether a search goes on, or its findings wait.
    pub(super) fn is_searching(&self) -> bool {
        self.found.is_some() || self.searched < self.to_search.len()
    }

    /// For the flusher: what to search, and from where in it; none while findings wait.
    pub(super) fn next_search(&self) -> Option<(Floors, usize)> {
        let is_due = self.found.is_none() && self.searched < self.to_search.len();
        is_due.then(|| (self.to_search.clone(), self.searched))
    }

    /// For the flusher: what a step of the search has found, and up to where it came.
    pub(super) fn have_found(&mut self, found: Result<Found, StoreError>, searched: usize) {
        self.found = Some(found);
        self.searched = searched;
    }

    /// For the writer: what was found.
    pub(super) fn take_found(&mut self) -> Option<Result<Found, StoreError>> {
        self.found.take()
    }

    /// For the writer: what is left of it.
    pub(super) fn keep_found(&mut self, found: Found) {
        self.found = Some(Ok(found));
    }
}
