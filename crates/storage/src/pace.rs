//! Giving way: how work that nobody waits for is spread over time.
//!
//! A flush, a verification or a copy is processor time in one piece, a tenth of a second and more. Where processors are
//! scarce, requests queue behind it, and a scheduler that is fair to all threads makes that worse, not better:
//! what is asked rarely and answered at once has no claim to be first. So such work says after each small piece of it that
//! here it could pause, and whoever owns the thread decides whether and for how long.
//!
//! What it does not do: know threads or clocks. A store without an owner who cares is never slowed down ([`Unpaced`]), and
//! neither is work that somebody waits for.

use std::fmt::Debug;

/// What background work calls after each small piece, some microseconds long. May take its time.
pub trait Pace: Debug + Send + Sync {
    /// Something begins that is done piece by piece, and that it may take its time for.
    fn begin(&self);

    /// A piece is done.
    fn step(&self);
}

/// Never waits.
#[derive(Clone, Copy, Debug)]
pub struct Unpaced;

impl Pace for Unpaced {
    fn begin(&self) {}

    fn step(&self) {}
}
