//! How far a replica is with its epochs: from its ledger, for people and metrics.
//!
//! The ledger knows partitions, of which there may be 16,384; here they are counted, epoch by epoch, and only
//! the latest epochs are told of. Neither the ledger nor Raft knows the time of day, so each node notes by its
//! own clock when it saw an epoch begin. What began before this start of the node has no time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use mds_node::core::CLOSED_BEHIND;
use mds_node::shell::NodeHandle;
use mds_storage::RunInfo;
use mds_storage::store::{Ledger, PartitionLedger, PartitionState};
use mds_types::{Epoch, NodeId};

use super::blockers::now_ms;

/// Epochs whose beginning is remembered.
const TIMES_MAX: usize = 1_024;

/// How far one replica is with its epochs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EpochsReport {
    /// The epoch that was closed last here.
    pub closed: Epoch,
    /// Partitions by whether and how they are here.
    pub partitions: PartitionCounts,
    /// The lowest watermark of all held partitions; none if nothing is held.
    pub settled: Option<Epoch>,
    /// The highest one.
    pub settled_most: Option<Epoch>,
    /// The lowest watermark of collection.
    pub collected: Option<Epoch>,
    /// Rows of epochs up to this one were dropped for want of room, where they were not settled.
    pub unverifiable: Epoch,
    /// How long the oldest epoch that is closed and not settled everywhere here has been closed,
    /// milliseconds: at least, if that was before this start of the node. Zero: there is none.
    pub lag_ms: u64,
    /// Members without which something cannot be settled, and since when, milliseconds since 1970.
    pub blocked: Vec<(NodeId, u64)>,
    /// The latest epochs, the newest first.
    pub epochs: Vec<EpochCounts>,
}

/// Partitions by whether and how they are here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PartitionCounts {
    /// Held like any other replica's.
    pub held: u64,
    /// Being copied here.
    pub streaming: u64,
    /// Being removed.
    pub wiping: u64,
    /// Not here.
    pub absent: u64,
}

/// One epoch at one replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EpochCounts {
    /// The epoch.
    pub epoch: Epoch,
    /// When it began, milliseconds since 1970, as far as this node saw.
    pub began_at_ms: Option<u64>,
    /// When it was closed: when a later one began.
    pub closed_at_ms: Option<u64>,
    /// Held partitions that have settled it.
    pub settled: u64,
    /// Held partitions that have collected it.
    pub collected: u64,
    /// Bytes of its rows in files of the epoch index. Rows that were not flushed yet are not among them.
    pub index_bytes: u64,
}

impl EpochsReport {
    /// Epochs that are closed and not settled in all held partitions.
    pub fn lag_epochs(&self) -> u64 {
        let settled = self.settled.unwrap_or(self.closed);
        self.closed.0.saturating_sub(settled.0)
    }

    /// The same with those that are waited for. Where all that is closed is settled, nobody is: the core hears
    /// of that a moment later than the ledger's readers.
    pub(super) fn waiting_for(mut self, blocked: BTreeMap<NodeId, u64>) -> EpochsReport {
        if self.lag_epochs() > 0 {
            self.blocked = blocked.into_iter().collect();
        }
        self
    }

    /// The oldest epoch that is not settled in all held partitions, closed or not.
    pub fn oldest_unverified(&self) -> Epoch {
        Epoch(self.settled.unwrap_or(self.closed).0 + 1)
    }
}

/// Counts a ledger. `epoch` is the present one; of the latest epochs, `limit` are told of.
pub(super) fn report(
    ledger: &Ledger,
    epoch: Epoch,
    runs: &[RunInfo],
    times: &EpochTimes,
    now_ms: u64,
    limit: usize,
) -> EpochsReport {
    let entries = ledger.partitions().map(|(_, entry)| entry);
    let mut report = EpochsReport {
        closed: ledger.closed,
        unverifiable: ledger.unverifiable,
        ..count(entries, epoch, limit)
    };
    for counts in &mut report.epochs {
        counts.began_at_ms = times.began_ms(counts.epoch);
        counts.closed_at_ms = match counts.epoch <= ledger.closed {
            true => times.closed_ms(counts.epoch),
            false => None,
        };
        let of_epoch = runs.iter().filter(|info| info.epoch == counts.epoch);
        counts.index_bytes = of_epoch.map(|info| info.bytes).sum();
    }
    if report.lag_epochs() > 0 {
        let since_ms = times.closed_ms(report.oldest_unverified());
        let since_ms = since_ms.or_else(|| times.since_ms());
        report.lag_ms = since_ms.map_or(0, |since_ms| now_ms.saturating_sub(since_ms));
    }
    report
}

/// The part that goes through all partitions.
fn count<'a>(
    entries: impl Iterator<Item = &'a PartitionLedger>,
    epoch: Epoch,
    limit: usize,
) -> EpochsReport {
    let mut partitions = PartitionCounts::default();
    let (mut settled, mut collected) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry.state {
            PartitionState::Held => {
                partitions.held += 1;
                settled.push(entry.settled);
                collected.push(entry.collected);
            }
            PartitionState::Streaming { .. } => partitions.streaming += 1,
            PartitionState::Wiping => partitions.wiping += 1,
            PartitionState::Absent => partitions.absent += 1,
        }
    }
    settled.sort_unstable();
    collected.sort_unstable();
    let that_passed = |sorted: &[Epoch], epoch: Epoch| {
        (sorted.len() - sorted.partition_point(|watermark| *watermark < epoch)) as u64
    };
    let epochs = (1..=epoch.0).rev().take(limit).map(|epoch| EpochCounts {
        epoch: Epoch(epoch),
        settled: that_passed(&settled, Epoch(epoch)),
        collected: that_passed(&collected, Epoch(epoch)),
        ..EpochCounts::default()
    });
    EpochsReport {
        partitions,
        epochs: epochs.collect(),
        settled: settled.first().copied(),
        settled_most: settled.last().copied(),
        collected: collected.first().copied(),
        ..EpochsReport::default()
    }
}

/// When epochs were seen to begin, by this node's clock.
#[derive(Clone, Default)]
pub(super) struct EpochTimes(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    /// The present epoch, once one was seen, and since when anything is known.
    last: Option<(Epoch, u64)>,
    /// At most [`TIMES_MAX`].
    began_ms: BTreeMap<Epoch, u64>,
}

impl EpochTimes {
    fn note(&self, epoch: Epoch, now_ms: u64) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((last, since_ms)) = seen.last else {
            // It may have begun long ago.
            seen.last = (epoch > Epoch(0)).then_some((epoch, now_ms));
            return;
        };
        if epoch <= last {
            return;
        }
        seen.last = Some((epoch, since_ms));
        let first = epoch.0.saturating_sub(TIMES_MAX as u64).max(last.0) + 1;
        seen.began_ms
            .extend((first..=epoch.0).map(|began| (Epoch(began), now_ms)));
        while seen.began_ms.len() > TIMES_MAX {
            seen.began_ms.pop_first();
        }
    }

    fn began_ms(&self, epoch: Epoch) -> Option<u64> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.began_ms.get(&epoch).copied()
    }

    /// An epoch is closed when the one that is so far ahead of it begins.
    fn closed_ms(&self, epoch: Epoch) -> Option<u64> {
        self.began_ms(Epoch(epoch.0.saturating_add(CLOSED_BEHIND)))
    }

    /// Since when this node has seen epochs.
    fn since_ms(&self) -> Option<u64> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.last.map(|(_, since_ms)| since_ms)
    }

    /// Follows a node's view for as long as the node runs.
    pub(super) async fn follow(self, mut handle: NodeHandle) {
        loop {
            self.note(handle.view().epoch, now_ms());
            if !handle.view_changed().await {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(settled: u64, collected: u64, state: PartitionState) -> PartitionLedger {
        PartitionLedger {
            settled: Epoch(settled),
            chain: 0,
            collected: Epoch(collected),
            wiped_at_segment: 0,
            state,
        }
    }

    #[test]
    fn partitions_are_counted_epoch_by_epoch() {
        let entries = [
            entry(5, 4, PartitionState::Held),
            entry(3, 3, PartitionState::Held),
            entry(0, 0, PartitionState::Absent),
            entry(0, 0, PartitionState::Wiping),
        ];
        let report = count(entries.iter(), Epoch(7), 4);
        let counts: Vec<(u64, u64, u64)> = report
            .epochs
            .iter()
            .map(|counts| (counts.epoch.0, counts.settled, counts.collected))
            .collect();
        assert_eq!(counts, [(7, 0, 0), (6, 0, 0), (5, 1, 0), (4, 1, 1)]);
        assert_eq!(report.settled, Some(Epoch(3)));
        assert_eq!(report.settled_most, Some(Epoch(5)));
        assert_eq!(report.collected, Some(Epoch(3)));
        let partitions = report.partitions;
        assert_eq!(
            (partitions.held, partitions.absent, partitions.wiping),
            (2, 1, 1)
        );
        let report = EpochsReport {
            closed: Epoch(5),
            ..report
        };
        assert_eq!((report.lag_epochs(), report.oldest_unverified().0), (2, 4));
        let blocked = BTreeMap::from([(NodeId(3), 7)]);
        let nobody = EpochsReport::default().waiting_for(blocked.clone());
        assert_eq!(nobody.blocked, []);
        assert_eq!(report.waiting_for(blocked).blocked, [(NodeId(3), 7)]);
    }

    #[test]
    fn who_holds_nothing_lags_behind_nothing() {
        let report = count([].into_iter(), Epoch(9), 4);
        assert_eq!((report.settled, report.lag_epochs()), (None, 0));
        assert_eq!(count([].into_iter(), Epoch(0), 4).epochs, []);
    }

    #[test]
    fn the_lag_counts_from_when_the_epoch_was_closed_or_from_the_start() {
        let times = EpochTimes::default();
        let ledger = |closed| {
            let mut ledger = Ledger::new(4);
            ledger.closed = Epoch(closed);
            ledger
        };
        let lag_ms = |closed, now_ms| {
            let epoch = Epoch(closed + CLOSED_BEHIND);
            report(&ledger(closed), epoch, &[], &times, now_ms, 9).lag_ms
        };
        assert_eq!(lag_ms(0, 99), 0);
        times.note(Epoch(0), 100);
        times.note(Epoch(3), 200);
        assert_eq!(lag_ms(1, 250), 50, "closed at some time before the start");
        let times = EpochTimes::default();
        times.note(Epoch(2), 100);
        times.note(Epoch(3), 200);
        times.note(Epoch(5), 400);
        let shown = report(&ledger(3), Epoch(5), &[], &times, 500, 3);
        assert_eq!(shown.lag_ms, 300, "epoch 1 was closed at 200");
        let at = |index: usize| {
            (
                shown.epochs[index].began_at_ms,
                shown.epochs[index].closed_at_ms,
            )
        };
        assert_eq!(at(0), (Some(400), None));
        assert_eq!(at(2), (Some(200), Some(400)), "epoch 3");
    }

    #[test]
    fn times_are_bounded() {
        let times = EpochTimes::default();
        times.note(Epoch(1), 1);
        times.note(Epoch(1_000_000), 2);
        times.note(Epoch(1_000_001), 3);
        assert_eq!(times.0.lock().unwrap().began_ms.len(), TIMES_MAX);
        assert_eq!(times.began_ms(Epoch(1_000_001)), Some(3));
        assert_eq!(times.began_ms(Epoch(5)), None);
    }
}
