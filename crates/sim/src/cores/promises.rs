//! What three cores promise, held against what their stores did.
//!
//! - every request is answered once, and by its deadline;
//! - a write that is acknowledged by `acked` replicas was durable on so many, at least W;
//! - a write has one stamp, whoever repeats it, and a version names one record;
//! - "nothing was done" is true: no store ever merges such a write;
//! - a read shows what was written, as new as every write that was acknowledged before it by a quorum
//!   that meets its own.

use std::collections::BTreeMap;

use bytes::Bytes;
use mds_node::api::{Outcome, RequestError, Stamp};
use mds_types::{Record, Version};

use super::client::{Attempt, Clients, Kind, Operation};

/// The sentence that is not true, and what was seen instead.
pub(super) type Broken = (&'static str, String);

/// What an answer means to a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ending {
    Read,
    Absent,
    Written,
    /// Too few replicas, or too much to do: nothing was done.
    Unavailable,
    /// The node cannot serve: nothing was done.
    NotReady,
    TimedOut,
    Unknown(Stamp),
    /// The core says that the client is wrong, which it is not.
    Wrong,
}

impl Ending {
    /// What it is counted under.
    pub(super) fn name(self) -> &'static str {
        match self {
            Ending::Read => "ended: read",
            Ending::Absent => "ended: absent",
            Ending::Written => "ended: written",
            Ending::Unavailable => "ended: unavailable",
            Ending::NotReady => "ended: not ready",
            Ending::TimedOut => "ended: timed out",
            Ending::Unknown(_) => "ended: unknown",
            Ending::Wrong => "ended: wrong",
        }
    }
}

/// What became of one version.
struct Merged {
    record: Record,
    /// Stores that hold it, or something newer in its place.
    stores: Vec<bool>,
}

/// All that was seen, and what of it must not be.
pub(super) struct Promises {
    nodes: usize,
    merged: BTreeMap<Version, Merged>,
    /// The stamp of each value: no two writes of a run write the same.
    stamps: BTreeMap<Bytes, Version>,
    /// The newest version of each key that was acknowledged by exactly so many replicas or more asked
    /// for: by key and W.
    acknowledged: BTreeMap<(Bytes, u8), Version>,
    broken: Vec<Broken>,
}

impl Promises {
    pub(super) fn new(nodes: usize) -> Promises {
        Promises {
            nodes,
            merged: BTreeMap::new(),
            stamps: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            broken: Vec::new(),
        }
    }

    pub(super) fn broken(&self) -> &[Broken] {
        &self.broken
    }

    pub(super) fn into_broken(self) -> Vec<Broken> {
        self.broken
    }

    pub(super) fn add_broken(&mut self, sentence: &'static str, detail: String) {
        self.broken.push((sentence, detail));
    }

    /// The newest version of a key that a client has heard of.
    pub(super) fn newest_acknowledged(&self, key: &Bytes) -> Option<Version> {
        self.floor(key, self.nodes as u8)
    }

    /// The newest version of a key that a read of R replicas has to see: it was acknowledged by W of
    /// them, and R + W > N.
    pub(super) fn floor(&self, key: &Bytes, read_quorum: u8) -> Option<Version> {
        let meets = |&write_quorum: &u8| usize::from(read_quorum + write_quorum) > self.nodes;
        (1..=self.nodes as u8)
            .filter(meets)
            .filter_map(|write_quorum| self.acknowledged.get(&(key.clone(), write_quorum)))
            .max()
            .copied()
    }

    /// A store has merged a record.
    pub(super) fn merged(&mut self, node: usize, record: &Record) {
        let nodes = self.nodes;
        let version = record.version;
        let entry = self.merged.entry(version).or_insert_with(|| Merged {
            record: record.clone(),
            stores: vec![false; nodes],
        });
        entry.stores[node] = true;
        if entry.record != *record {
            let detail = format!("{:?} and {record:?}", entry.record);
            self.add_broken("a version names one record", detail);
        }
        if let Some(value) = record.value() {
            let first = *self.stamps.entry(value.clone()).or_insert(version);
            if first != version {
                let detail = format!("{value:?} was merged as {first} and as {version}");
                self.add_broken("a write has one stamp", detail);
            }
        }
    }

    /// An answer reaches its client.
    pub(super) fn on_answer(
        &mut self,
        attempt: &mut Attempt,
        operation: &Operation,
        result: &Result<Outcome, RequestError>,
        now_ns: u64,
    ) -> Ending {
        if std::mem::replace(&mut attempt.is_answered, true) {
            let detail = format!("{operation:?} was answered again: {result:?}");
            self.add_broken("a request is answered once", detail);
        }
        if now_ns > attempt.deadline_ns {
            let late_us = (now_ns - attempt.deadline_ns) / 1_000;
            let detail = format!("{operation:?} was answered {late_us} us late: {result:?}");
            self.add_broken("a request is answered by its deadline", detail);
        }
        let is_read = operation.kind == Kind::Get;
        match result {
            Ok(Outcome::Read { version, value, .. }) if is_read => {
                self.check_read(attempt, operation, *version, value.as_ref());
                match value {
                    Some(_) => Ending::Read,
                    None => Ending::Absent,
                }
            }
            Ok(Outcome::Written { version, acked }) if !is_read => {
                self.check_written(operation, *version, *acked);
                Ending::Written
            }
            Err(RequestError::Unavailable { .. } | RequestError::Overloaded(_)) => {
                Ending::Unavailable
            }
            Err(RequestError::NotReady(_)) => Ending::NotReady,
            Err(RequestError::TimedOut { .. }) if is_read => Ending::TimedOut,
            Err(RequestError::Unknown { stamp, .. }) if !is_read => {
                self.check_stamp(operation, stamp.version);
                Ending::Unknown(*stamp)
            }
            _ => {
                let detail = format!("{operation:?} heard {result:?}");
                self.add_broken("a correct request gets an answer of its kind", detail);
                Ending::Wrong
            }
        }
    }

    fn check_read(
        &mut self,
        attempt: &Attempt,
        operation: &Operation,
        version: Option<Version>,
        value: Option<&Bytes>,
    ) {
        let is_written = match version.and_then(|version| self.merged.get(&version)) {
            Some(merged) => merged.record.key == operation.key && merged.record.value() == value,
            None => version.is_none() && value.is_none(),
        };
        if !is_written {
            let detail = format!("{operation:?} read {version:?} with {value:?}");
            self.add_broken("a read shows what was written", detail);
        }
        if version < attempt.floor {
            let (version, floor) = (shown(version), shown(attempt.floor));
            let detail = format!("{operation:?} read {version}, acknowledged was {floor}");
            self.add_broken("a read sees what a meeting quorum acknowledged", detail);
        }
    }

    fn check_written(&mut self, operation: &Operation, version: Version, acked: u8) {
        self.check_stamp(operation, version);
        let durable = self.merged.get(&version).map_or(0, |merged| {
            merged.stores.iter().filter(|&&is_there| is_there).count()
        });
        if acked < operation.write_quorum || usize::from(acked) > durable {
            let detail = format!("{operation:?}: {acked} acknowledged, {durable} have it");
            self.add_broken("acknowledged by so many is durable on so many", detail);
        }
        let place = (operation.key.clone(), operation.write_quorum);
        let newest = self.acknowledged.entry(place).or_insert(version);
        *newest = version.max(*newest);
    }

    /// The client hears a version: it has to be the one it has heard before, and the one in the stores.
    fn check_stamp(&mut self, operation: &Operation, version: Version) {
        let before = operation.stamp.map(|stamp| stamp.version);
        let merged = match &operation.kind {
            Kind::Put(value) => self.stamps.get(value).copied(),
            _ => None,
        };
        for known in [before, merged].into_iter().flatten() {
            if known != version {
                let detail = format!("{operation:?} is {version} now and was {known}");
                self.add_broken("a write has one stamp", detail);
            }
        }
    }

    /// When all has come to rest: who never heard, and what was done although nothing was.
    pub(super) fn at_the_end(&mut self, clients: &Clients) {
        for attempt in clients.attempts.iter().filter(|a| !a.is_answered) {
            let operation = &clients.operations[attempt.operation];
            let detail = format!("{operation:?} never was");
            self.add_broken("every request is answered", detail);
        }
        for operation in &clients.operations {
            if let Kind::Put(value) = &operation.kind
                && operation.is_undone()
                && let Some(version) = self.stamps.get(value)
            {
                let detail = format!("{operation:?} was not done, and is {version}");
                self.add_broken("\"nothing was done\" is true", detail);
            }
        }
    }
}

fn shown(version: Option<Version>) -> String {
    version.map_or("nothing".to_owned(), |version| version.to_string())
}

#[cfg(test)]
mod tests {
    use mds_types::{Body, Epoch, Hlc, NodeId};

    use super::*;

    fn version(hlc: u64) -> Version {
        Version {
            hlc: Hlc(hlc),
            node: NodeId(1),
        }
    }

    fn record(hlc: u64, value: &'static str) -> Record {
        Record {
            key: Bytes::from_static(b"k"),
            version: version(hlc),
            epoch: Epoch(1),
            expires_at_ms: None,
            body: Body::Value(Bytes::from_static(value.as_bytes())),
        }
    }

    fn operation(kind: Kind) -> Operation {
        Operation::new(Bytes::from_static(b"k"), kind, 2, 2)
    }

    fn put(value: &'static str) -> Operation {
        operation(Kind::Put(Bytes::from_static(value.as_bytes())))
    }

    fn attempt(floor: Option<Version>) -> Attempt {
        Attempt {
            operation: 0,
            deadline_ns: 100,
            is_answered: false,
            floor,
        }
    }

    fn written(hlc: u64, acked: u8) -> Result<Outcome, RequestError> {
        Ok(Outcome::Written {
            version: version(hlc),
            acked,
        })
    }

    fn read(hlc: Option<u64>, value: Option<&'static str>) -> Result<Outcome, RequestError> {
        Ok(Outcome::Read {
            version: hlc.map(version),
            value: value.map(|value| Bytes::from_static(value.as_bytes())),
            expires_at_ms: None,
        })
    }

    fn sentences(promises: &Promises) -> Vec<&'static str> {
        promises.broken().iter().map(|broken| broken.0).collect()
    }

    /// Two stores hold "v" as version 5, and a client knows.
    fn after_a_write() -> Promises {
        let mut promises = Promises::new(3);
        promises.merged(0, &record(5, "v"));
        promises.merged(2, &record(5, "v"));
        promises.on_answer(&mut attempt(None), &put("v"), &written(5, 2), 100);
        assert_eq!(sentences(&promises), [""; 0]);
        promises
    }

    #[test]
    fn acknowledgements_are_counted_in_the_stores() {
        for (acked, is_right) in [(1, false), (2, true), (3, false)] {
            let mut promises = after_a_write();
            promises.on_answer(&mut attempt(None), &put("v"), &written(5, acked), 0);
            assert_eq!(promises.broken().is_empty(), is_right, "{acked}");
        }
    }

    #[test]
    fn an_answer_comes_once_and_in_time() {
        let mut promises = after_a_write();
        let mut asked = attempt(None);
        promises.on_answer(&mut asked, &put("v"), &written(5, 2), 100);
        promises.on_answer(&mut asked, &put("v"), &written(5, 2), 101);
        assert_eq!(
            sentences(&promises),
            [
                "a request is answered once",
                "a request is answered by its deadline"
            ]
        );
    }

    #[test]
    fn a_second_stamp_and_a_second_record_are_seen() {
        let mut promises = after_a_write();
        promises.merged(1, &record(6, "v"));
        assert_eq!(sentences(&promises), ["a write has one stamp"]);
        let mut promises = after_a_write();
        let other_epoch = Record {
            epoch: Epoch(2),
            ..record(5, "v")
        };
        promises.merged(1, &other_epoch);
        assert_eq!(sentences(&promises), ["a version names one record"]);
    }

    #[test]
    fn a_read_is_held_against_what_was_written_and_acknowledged() {
        let get = operation(Kind::Get);
        let floor = after_a_write().floor(&get.key, 2);
        assert_eq!(floor, Some(version(5)));
        assert_eq!(after_a_write().floor(&get.key, 1), None);
        for (answer, broken) in [
            (read(Some(5), Some("v")), 0),
            (read(Some(5), Some("w")), 1),
            (read(Some(7), Some("v")), 1),
            (read(None, None), 1),
            (read(None, Some("v")), 2),
        ] {
            let mut promises = after_a_write();
            promises.on_answer(&mut attempt(floor), &get, &answer, 0);
            assert_eq!(promises.broken().len(), broken, "{answer:?}");
        }
    }

    #[test]
    fn what_was_not_done_must_not_be_there() {
        let mut promises = after_a_write();
        let mut clients = Clients::new(crate::random::Random::new(1));
        clients.operations = vec![put("v")];
        clients.attempts = vec![attempt(None)];
        promises.at_the_end(&clients);
        assert_eq!(
            sentences(&promises),
            ["every request is answered", "\"nothing was done\" is true"]
        );
    }
}
