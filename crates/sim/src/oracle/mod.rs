//! The oracle: it sees all replicas at once and all that clients heard, and holds both against what
//! is promised. One file per invariant, each beginning with the sentence that it proves.
//!
//! Some invariants are watched at every step ([`Watch`]), the others looked at when the world has
//! healed and come to rest ([`examine`]).

mod acknowledged_is_durable;
mod failed_means_nothing;
mod monotonic_reads;
mod nothing_invented;
mod one_record_per_version;
mod regular_reads;
mod replicas_converge;
#[cfg(test)]
mod tests_support;
mod versions_grow;

use mds_cluster::{AdminError, AdminReply};
use mds_types::Record;

use crate::history::History;
use one_record_per_version::OneRecordPerVersion;
use versions_grow::VersionsGrow;

pub(crate) use replicas_converge::difference;

/// An invariant that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// When it was seen, simulated nanoseconds.
    pub at_ns: u64,
    /// The sentence that is not true.
    pub invariant: &'static str,
    /// What was seen instead.
    pub detail: String,
}

/// The sentence that is not true, and what was seen instead.
pub(crate) type Broken = (&'static str, String);

/// What is watched at every step.
#[derive(Default)]
pub(crate) struct Watch {
    versions: VersionsGrow,
    records: OneRecordPerVersion,
    /// The answer to the last `init`.
    pub(crate) init: Option<Result<AdminReply, AdminError>>,
}

impl Watch {
    /// A record that a replica shows.
    pub(crate) fn visible(&mut self, node: usize, record: &Record) -> Option<Broken> {
        self.versions
            .visible(node, record)
            .or_else(|| self.records.visible(node, record))
    }

    /// All that a replica shows when its store is opened.
    pub(crate) fn node_recovered(
        &mut self,
        node: usize,
        life: u64,
        records: &[Record],
    ) -> Vec<Broken> {
        let lost = self.versions.recovered(node, life, records);
        lost.into_iter()
            .chain(records.iter().filter_map(|r| self.visible(node, r)))
            .collect()
    }
}

/// Looks at everything when the world has come to rest: all records of each replica, and the whole
/// history.
pub(crate) fn examine(replicas: &[Vec<Record>], history: &History, n: u8) -> Vec<Broken> {
    let mut broken = Vec::new();
    broken.extend(acknowledged_is_durable::check(replicas, history));
    broken.extend(nothing_invented::check(replicas, history));
    broken.extend(failed_means_nothing::check(replicas, history));
    broken.extend(regular_reads::check(history, n));
    broken.extend(monotonic_reads::check(history, n));
    broken
}
