//! Changing what the replica has promised: closing epochs, settling them, holding and streaming partitions.
//!
//! Each of these is one durable write of the ledger, for any number of partitions. Whatever a promise rests
//! on is made durable *before* it: the log is synced first, whatever the policy, so that a loss of power
//! can take back neither a record that came in before its epoch was closed, nor one that was compared
//! before its epoch was settled.

use bytes::Bytes;
use mds_types::{Epoch, PartitionId, TopologyVersion};

use super::{Store, StoreError};
use crate::ledger::{Ledger, PartitionLedger, PartitionState, has_passed, kept_of};

/// A partition's new watermark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settlement {
    /// The partition.
    pub partition: PartitionId,
    /// All epochs up to and including this one were found equal on all replicas.
    pub epoch: Epoch,
    /// The chain up to there.
    pub chain: u128,
}

/// What became of a [`Settlement`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SettleOutcome {
    /// The watermark stands there now.
    Raised,
    /// It stood there already, or higher.
    Already,
    /// Refused: the epoch is not closed here.
    NotClosed,
    /// Refused: rows on the way were dropped for want of room. Compare records, then
    /// [`Store::settle_compared`].
    LacksRows,
    /// Refused: the partition is not held here; a stream ends by [`Store::finish_streams`].
    NotHeld,
}

impl Store {
    /// Takes no client's write and no hint of `up_to` and earlier epochs any more, durably. What was
    /// accepted before is durable when this returns.
    ///
    /// # Errors
    /// [`StoreError::Full`]: nothing has changed. Else the store is or becomes poisoned.
    pub fn close_epochs(&mut self, up_to: Epoch) -> Result<(), StoreError> {
        self.shared.check_sound()?;
        if up_to <= self.shared.ledger.get().closed {
            return Ok(());
        }
        self.change_ledger(|ledger| ledger.closed = ledger.closed.max(up_to))?;
        self.shared.tables.write().index.set_closed(up_to);
        Ok(())
    }

    /// Remembers the topology version that this node acknowledges, durably.
    ///
    /// # Errors
    /// As [`Store::close_epochs`].
    pub fn acknowledge_topology(&mut self, version: TopologyVersion) -> Result<(), StoreError> {
        self.change_ledger(|ledger| ledger.acked = ledger.acked.max(version))
    }

    /// Raises watermarks, durably: one write for all. From then on nothing that they have passed is merged.
    /// The outcomes are in the order of `settlements`.
    ///
    /// # Errors
    /// As [`Store::close_epochs`].
    pub fn settle(&mut self, settlements: &[Settlement]) -> Result<Vec<SettleOutcome>, StoreError> {
        self.settle_if(settlements, |ledger, partition| {
            !ledger.lacks_rows(partition)
        })
    }

    /// The same, after all records of these partitions were compared and not only rows.
    ///
    /// # Errors
    /// As [`Store::close_epochs`].
    pub fn settle_compared(
        &mut self,
        settlements: &[Settlement],
    ) -> Result<Vec<SettleOutcome>, StoreError> {
        self.settle_if(settlements, |_, _| true)
    }

    fn settle_if(
        &mut self,
        settlements: &[Settlement],
        has_rows: impl Fn(&Ledger, PartitionId) -> bool,
    ) -> Result<Vec<SettleOutcome>, StoreError> {
        let mut outcomes = Vec::with_capacity(settlements.len());
        self.change_ledger(|ledger| {
            for settlement in settlements {
                let Settlement {
                    partition, epoch, ..
                } = *settlement;
                let entry = ledger.partition(partition);
                let outcome = if entry.state != PartitionState::Held {
                    SettleOutcome::NotHeld
                } else if epoch <= entry.settled {
                    SettleOutcome::Already
                } else if !has_passed(ledger.closed, epoch) {
                    SettleOutcome::NotClosed
                } else if !has_rows(ledger, partition) {
                    SettleOutcome::LacksRows
                } else {
                    SettleOutcome::Raised
                };
                outcomes.push(outcome);
                if outcome == SettleOutcome::Raised
                    && let Some(entry) = ledger.partition_mut(partition)
                {
                    entry.settled = epoch;
                    entry.chain = settlement.chain;
                }
            }
        })?;
        let index = &mut self.shared.tables.write().index;
        for (settlement, outcome) in settlements.iter().zip(&outcomes) {
            if *outcome == SettleOutcome::Raised {
                index.clear(settlement.partition, settlement.epoch);
            }
        }
        Ok(outcomes)
    }

    /// Absent partitions are held from now on, durably, beginning with nothing. Others stay as they are.
    ///
    /// # Errors
    /// As [`Store::close_epochs`].
    pub fn hold(&mut self, partitions: &[PartitionId]) -> Result<(), StoreError> {
        self.change_entries(partitions, |entry| {
            if entry.state == PartitionState::Absent {
                entry.state = PartitionState::Held;
            }
        })
    }

    /// Absent partitions are to be filled from a replica that has settled `settled` with `chain`, durably.
    /// Others stay as they are: a partition that is here is wiped first. A stream that has begun may find
    /// that its source has gone on: it ends with what it began with.
    ///
    /// # Errors
    /// As [`Store::close_epochs`].
    pub fn begin_streams(&mut self, streams: &[Settlement]) -> Result<(), StoreError> {
        self.change_ledger(|ledger| {
            for stream in streams {
                if let Some(entry) = ledger.partition_mut(stream.partition)
                    && entry.state == PartitionState::Absent
                {
                    entry.state = PartitionState::Streaming {
                        after: Bytes::new(),
                        settled: stream.epoch,
                        chain: stream.chain,
                    };
                }
            }
        })
    }

    /// Remembers that these streams have come up to and including these keys, durably. Of a long key only
    /// its beginning is kept, so that a few records may come twice.
    ///
    /// # Errors
    /// As [`Store::close_epochs`].
    pub fn advance_streams(&mut self, progress: &[(PartitionId, Bytes)]) -> Result<(), StoreError> {
        self.change_ledger(|ledger| {
            for (partition, key) in progress {
                if let Some(entry) = ledger.partition_mut(*partition)
                    && let PartitionState::Streaming { after, .. } = &mut entry.state
                {
                    *after = kept_of(key);
                }
            }
        })
    }

    /// All records of these streams have come: their partitions take over the watermark and the chain of
    /// their sources, and are held, durably. Dead records that came along are left to the scrub.
    ///
    /// # Errors
    /// As [`Store::close_epochs`].
    pub fn finish_streams(&mut self, partitions: &[PartitionId]) -> Result<(), StoreError> {
        self.change_entries(partitions, |entry| {
            if let PartitionState::Streaming { settled, chain, .. } = entry.state {
                entry.settled = settled;
                entry.chain = chain;
                entry.collected = settled;
                entry.state = PartitionState::Held;
            }
        })
    }

    fn change_entries(
        &mut self,
        partitions: &[PartitionId],
        change: impl Fn(&mut PartitionLedger),
    ) -> Result<(), StoreError> {
        self.change_ledger(|ledger| {
            for partition in partitions {
                if let Some(entry) = ledger.partition_mut(*partition) {
                    change(entry);
                }
            }
        })
    }

    /// Changes the ledger after everything that came before is durable.
    pub(super) fn change_ledger(
        &mut self,
        change: impl FnOnce(&mut Ledger),
    ) -> Result<(), StoreError> {
        self.sync()?;
        self.shared.change_ledger(change)
    }
}
