//! Planted bugs: how we know that the simulator would find real ones.
//!
//! Each [`Mutation`] is a well-known mistake of databases like this one, planted behind a switch where
//! it would be made. Without the feature `mutations`, which the server never has, [`is_on`] is a
//! constant false and nothing of them is compiled. With it, one mutation at a time can be switched
//! on, for the whole process, by the simulator's `mutations` command.

/// A planted bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Mutation {
    /// Writes are stamped with whole seconds of the wall clock.
    StampInSeconds = 1,
    /// A started clock begins at the wall clock, not at its durable mark.
    ClockMarkForgotten,
    /// What arrives last wins, whatever its version.
    MergeByArrival,
    /// A write is acknowledged before it is synced.
    AckBeforeSync,
    /// A write is acknowledged by one replica fewer than W.
    WriteQuorumShort,
    /// A read asks one replica fewer than R.
    ReadQuorumShort,
    /// A read answers before what it saw is on a write quorum.
    NoBlockingRepair,
    /// A write that may have been done is reported as not done.
    ClaimsUndone,
    /// A hint for an absent replica counts as its acknowledgement.
    HintCounts,
    /// A retry gets a new stamp although it carries the first one.
    RetryRestamped,
    /// A retry keeps its version, and gets the epoch of the day.
    RetryOtherEpoch,
    /// An old copy of a directory is let in again.
    CopyAccepted,
    /// A restarted leader leads on without an election.
    LeaderRestored,
    /// The epoch of a record counts before its version.
    EpochInOrder,
    /// Deletions are forgotten when they reach the engine.
    TombstoneDropped,
    /// A new member is on the ring at once, with an empty disk.
    FreshOnRing,
    /// A vote is given before it is durable.
    VoteNotSynced,
    /// An entry of Raft's log counts as stored before it is.
    RaftAckBeforeSync,
    /// A hint is delivered under a stamp of its own.
    HintRestamped,
    /// A read's repair writes the record back under a new stamp.
    RepairRestamped,
    /// Replicas that cannot be reached are taken out of the quorum.
    DeadLeaveQuorum,
    /// A node that has waited for a cluster for a second forms its own.
    SelfBootstrap,
    /// "Absent" does not count as an answer.
    NotFoundIsFailure,
    /// A replica that cannot read says "absent".
    FailureIsNotFound,
    /// A key ends at the first separator within it.
    KeyDelimited,
    /// A torn tail of the log is kept, and the log goes on behind it.
    TornTailKept,
    /// A log segment is removed before its records are in the engine.
    SegmentDroppedFirst,
    /// Of several log segments the newest goes to the engine first.
    FlushNewestFirst,
    /// A sync that failed is tried again, and believed.
    FailedSyncRetried,
    /// What a start reads of Raft's log is taken for durable once the file is synced.
    ReadBackBelieved,
    /// The token of a client's session is ignored.
    SessionIgnored,

    // Rings in transition, and verification.
    /// With two rings, W and R are counted over the union of their replicas.
    UnionQuorum,
    /// A stage is left before everybody has acknowledged it.
    StageWithoutAcks,
    /// A member that is silent does not hold up verification.
    VerifiedWithoutOne,
    /// A member that differs is taken for verified.
    ValidByDisagreeing,
    /// An answer of another topology version counts for verification.
    VerifiedAcrossTopologies,

    // The node's core.
    /// What one replica has collected is read from another, and written back (trap T14).
    DismissesNothing,
    /// Versions are stamped below the floor of their epoch (trap T9).
    FloorIgnored,
    /// A replica serves requests that were routed by a ring of long ago (trap T5).
    StaleRingServed,

    // Epochs, verification, collection.
    /// A row's hash is of its key alone: trees are equal over different data (trap T3).
    RowHashOfKeyOnly,
    /// Clients' writes and hints still come into a closed epoch (trap T8).
    ClosedEpochOpen,
    /// A tombstone is collected although something older than it may still come (trap T9).
    CollectsAboveFloor,
    /// A tombstone is collected before its epoch is verified (trap T9).
    CollectsUnsettled,
    /// What the watermark has passed is merged all the same (traps T10, T11).
    MergesBelowWatermark,
    /// A row goes when its record is overwritten in a later epoch (trap T13).
    RowGoesWithRecord,
    /// A version that comes after a greater one leaves no row (trap T13).
    SupersededNotLogged,
    /// What this replica seems to have lost below the watermark is taken from a replica with another past
    /// (trap T11).
    RebuildResurrects,
    /// The scrub takes every page of settled records for equal.
    ScrubComparesNothing,
    /// A record in the cache stays when a newer one of its key reaches the engine.
    CacheKeepsOld,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Mutation; 49] = [
        Mutation::StampInSeconds,
        Mutation::ClockMarkForgotten,
        Mutation::MergeByArrival,
        Mutation::AckBeforeSync,
        Mutation::WriteQuorumShort,
        Mutation::ReadQuorumShort,
        Mutation::NoBlockingRepair,
        Mutation::ClaimsUndone,
        Mutation::HintCounts,
        Mutation::RetryRestamped,
        Mutation::RetryOtherEpoch,
        Mutation::CopyAccepted,
        Mutation::LeaderRestored,
        Mutation::EpochInOrder,
        Mutation::TombstoneDropped,
        Mutation::FreshOnRing,
        Mutation::VoteNotSynced,
        Mutation::RaftAckBeforeSync,
        Mutation::HintRestamped,
        Mutation::RepairRestamped,
        Mutation::DeadLeaveQuorum,
        Mutation::SelfBootstrap,
        Mutation::NotFoundIsFailure,
        Mutation::FailureIsNotFound,
        Mutation::KeyDelimited,
        Mutation::TornTailKept,
        Mutation::SegmentDroppedFirst,
        Mutation::FlushNewestFirst,
        Mutation::FailedSyncRetried,
        Mutation::ReadBackBelieved,
        Mutation::SessionIgnored,
        Mutation::UnionQuorum,
        Mutation::StageWithoutAcks,
        Mutation::VerifiedWithoutOne,
        Mutation::ValidByDisagreeing,
        Mutation::VerifiedAcrossTopologies,
        Mutation::DismissesNothing,
        Mutation::FloorIgnored,
        Mutation::StaleRingServed,
        Mutation::RowHashOfKeyOnly,
        Mutation::ClosedEpochOpen,
        Mutation::CollectsAboveFloor,
        Mutation::CollectsUnsettled,
        Mutation::MergesBelowWatermark,
        Mutation::RowGoesWithRecord,
        Mutation::SupersededNotLogged,
        Mutation::RebuildResurrects,
        Mutation::ScrubComparesNothing,
        Mutation::CacheKeepsOld,
    ];

    /// Whether a run of the simulator can show it. What cannot be shown there is caught by a test beside the part
    /// that it is planted in.
    pub fn shows_in_runs(self) -> bool {
        // It takes a replica that shows an old version in the place of a collected tombstone, which no simulated
        // disk does: `crates/storage/tests/planted_bugs.rs`.
        self != Mutation::RebuildResurrects
    }

    /// The trap that this is a case of, as `docs/simulation.md` numbers them; none for mistakes with
    /// quorums and retries in general.
    pub fn trap(self) -> Option<u8> {
        match self {
            Mutation::StampInSeconds | Mutation::ClockMarkForgotten => Some(1),
            Mutation::MergeByArrival | Mutation::EpochInOrder => Some(2),
            Mutation::RowHashOfKeyOnly => Some(3),
            Mutation::TombstoneDropped => Some(4),
            Mutation::UnionQuorum | Mutation::StageWithoutAcks | Mutation::StaleRingServed => {
                Some(5)
            }
            Mutation::VerifiedWithoutOne
            | Mutation::ValidByDisagreeing
            | Mutation::VerifiedAcrossTopologies => Some(6),
            Mutation::FreshOnRing
            | Mutation::LeaderRestored
            | Mutation::VoteNotSynced
            | Mutation::RaftAckBeforeSync => Some(7),
            Mutation::RetryOtherEpoch | Mutation::ClosedEpochOpen => Some(8),
            Mutation::CollectsAboveFloor | Mutation::CollectsUnsettled | Mutation::FloorIgnored => {
                Some(9)
            }
            Mutation::HintRestamped | Mutation::MergesBelowWatermark => Some(10),
            Mutation::CopyAccepted | Mutation::RebuildResurrects => Some(11),
            Mutation::RowGoesWithRecord | Mutation::SupersededNotLogged => Some(13),
            Mutation::NoBlockingRepair | Mutation::RepairRestamped | Mutation::DismissesNothing => {
                Some(14)
            }
            Mutation::DeadLeaveQuorum => Some(16),
            Mutation::SelfBootstrap => Some(17),
            Mutation::ClaimsUndone | Mutation::NotFoundIsFailure | Mutation::FailureIsNotFound => {
                Some(19)
            }
            Mutation::KeyDelimited => Some(20),
            Mutation::AckBeforeSync
            | Mutation::TornTailKept
            | Mutation::SegmentDroppedFirst
            | Mutation::FlushNewestFirst
            | Mutation::FailedSyncRetried
            | Mutation::ReadBackBelieved => Some(21),
            Mutation::WriteQuorumShort
            | Mutation::ReadQuorumShort
            | Mutation::HintCounts
            | Mutation::RetryRestamped
            | Mutation::SessionIgnored
            | Mutation::ScrubComparesNothing
            | Mutation::CacheKeepsOld => None,
        }
    }
}

#[cfg(feature = "mutations")]
static ON: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Whether this bug is switched on.
#[cfg(feature = "mutations")]
pub fn is_on(mutation: Mutation) -> bool {
    ON.load(std::sync::atomic::Ordering::Relaxed) == mutation as u8
}

/// Never: planted bugs are not part of this build.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub const fn is_on(_mutation: Mutation) -> bool {
    false
}

/// Switches one bug on, for the whole process, or all off.
#[cfg(feature = "mutations")]
pub fn switch(mutation: Option<Mutation>) {
    let number = mutation.map_or(0, |mutation| mutation as u8);
    ON.store(number, std::sync::atomic::Ordering::Relaxed);
}
