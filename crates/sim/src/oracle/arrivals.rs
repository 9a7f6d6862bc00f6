//! Records on their way into a replica's store, and what was there before: what the invariants of epochs
//! look at. It is seen from outside: what the store was handed, what it said, and what it showed.

use std::collections::BTreeMap;

use bytes::Bytes;
use mds_node::store_io::{MergeResult, StoreBatch, StoreDone};
use mds_storage::store::{Ledger, PartitionState, Purpose};
use mds_types::slot::partition_of;
use mds_types::{Epoch, PartitionId, Version};

/// A record that came to a replica.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) key: Bytes,
    pub(crate) version: Version,
    pub(crate) epoch: Epoch,
    pub(crate) purpose: Purpose,
    /// What was settled, for records that come for this purpose.
    pub(crate) settled: Epoch,
    /// What was there when its group came. None: it could not be read, or is of an epoch that is open.
    pub(crate) before: Option<Option<Version>>,
    /// The store has answered that it, or something newer, is durable.
    pub(crate) is_durable: bool,
}

impl Arrival {
    /// What was taken, for people; `before` is the version that was there.
    pub(super) fn told(&self, before: Option<Version>) -> String {
        let Arrival {
            key,
            version,
            epoch,
            purpose,
            ..
        } = self;
        format!("took the {purpose:?} of {key:?} at {version} of epoch {epoch}; it held {before:?}")
    }
}

/// A group of records, before the store has looked at it. `current` says what the replica has of a key, or
/// fails.
pub(crate) fn before(
    group: &StoreBatch,
    ledger: &Ledger,
    partitions: u16,
    current: impl Fn(&Bytes) -> Result<Option<Version>, ()>,
) -> Vec<Arrival> {
    let arrival = |(purpose, record): &(Purpose, mds_types::Record)| {
        let partition = partition_of(&record.key, partitions);
        let settled = settled_for(ledger, partition, *purpose);
        let is_old = record.epoch <= ledger.closed.max(settled);
        Arrival {
            key: record.key.clone(),
            version: record.version,
            epoch: record.epoch,
            purpose: *purpose,
            settled,
            before: is_old.then(|| current(&record.key).ok()).flatten(),
            is_durable: false,
        }
    };
    group.merges.iter().map(arrival).collect()
}

/// Takes down what became of the group.
pub(crate) fn after(arrivals: &mut [Arrival], done: &StoreDone) {
    for (arrival, (_, result)) in arrivals.iter_mut().zip(&done.merges) {
        arrival.is_durable = *result == MergeResult::Durable;
    }
}

/// Up to which epoch nothing new may come in for a purpose. A partition that is being filled takes what its
/// source had settled from the stream alone.
fn settled_for(ledger: &Ledger, partition: PartitionId, purpose: Purpose) -> Epoch {
    let entry = ledger.partition(partition);
    match (&entry.state, purpose) {
        (
            PartitionState::Streaming { settled, .. },
            Purpose::Write | Purpose::Hint | Purpose::Repair,
        ) => entry.settled.max(*settled),
        // Brings back what a disk has lost of the settled. That sound disks lose nothing is an invariant of its own.
        (_, Purpose::Rebuild { .. }) => Epoch(0),
        (_, Purpose::Write | Purpose::Hint | Purpose::Repair | Purpose::Sync) => entry.settled,
    }
}

/// The arrivals that the store has taken and whose epoch `is_old`, with the version that was there just before
/// each: when the group came, or from earlier in it.
pub(super) fn taken_of_old<'a>(
    arrivals: &'a [Arrival],
    is_old: impl Fn(&Arrival) -> bool + 'a,
) -> Vec<(&'a Arrival, Option<Version>)> {
    if !arrivals.iter().any(&is_old) {
        return Vec::new();
    }
    let mut came: BTreeMap<&Bytes, Version> = BTreeMap::new();
    let mut taken = Vec::new();
    for arrival in arrivals.iter().filter(|arrival| arrival.is_durable) {
        let earlier = came.get(&arrival.key).copied();
        if is_old(arrival)
            && let Some(before) = arrival.before
        {
            taken.push((arrival, before.max(earlier)));
        }
        came.insert(
            &arrival.key,
            arrival.version.max(earlier.unwrap_or(arrival.version)),
        );
    }
    taken
}
