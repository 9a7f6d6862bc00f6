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
}

impl Mutation {
    /// All of them.
    pub const ALL: [Mutation; 27] = [
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
        Mutation::UnionQuorum,
        Mutation::StageWithoutAcks,
        Mutation::VerifiedWithoutOne,
        Mutation::ValidByDisagreeing,
        Mutation::VerifiedAcrossTopologies,
        Mutation::DismissesNothing,
        Mutation::StaleRingServed,
        Mutation::RowHashOfKeyOnly,
        Mutation::ClosedEpochOpen,
        Mutation::CollectsAboveFloor,
        Mutation::CollectsUnsettled,
        Mutation::MergesBelowWatermark,
        Mutation::RowGoesWithRecord,
        Mutation::SupersededNotLogged,
    ];
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
