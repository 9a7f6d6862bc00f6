//! What clients did and heard, for the checkers.

use bytes::{BufMut, Bytes, BytesMut};
use mds_types::{Record, Version};

use crate::faults::FaultConfig;
use crate::random::Random;

/// One operation of a client, with all its attempts.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// Who asked. A client does one thing after another.
    pub(crate) client: u64,
    /// Its requests carry the greatest version that it was told.
    pub(crate) is_session: bool,
    pub(crate) key: Bytes,
    pub(crate) kind: Kind,
    /// When the value that is written expires, milliseconds since 1970.
    pub(crate) expires_at_ms: Option<u64>,
    /// Replicas that a read asked for, or else N.
    pub(crate) read_quorum: u8,
    /// Replicas that a write, or the repair of a read, asked for.
    pub(crate) write_quorum: u8,
    pub(crate) invoked_ns: u64,
    pub(crate) returned_ns: Option<u64>,
    /// No fault has touched the wall clock of the node that answered: it is as right as clocks are.
    pub(crate) is_clock_trusted: bool,
    pub(crate) ending: Ending,
}

/// What was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Get,
    Put { value: Bytes },
    Delete,
}

impl Kind {
    /// In one word, for people.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Kind::Get => "get",
            Kind::Put { .. } => "put",
            Kind::Delete => "delete",
        }
    }
}

/// What the client knows in the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    /// It still waits.
    Pending,
    /// Read: this.
    Read {
        version: Option<Version>,
        value: Option<Bytes>,
    },
    /// Written, by so many replicas at least.
    Written { version: Version },
    /// Nothing was done, said every node that was asked.
    Failed,
    /// A write that may have been done, or may yet be.
    Unknown,
}

/// A page of a partition that a client was shown.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) partition: u16,
    /// It was asked for what is behind this key.
    pub(crate) after: Option<Bytes>,
    pub(crate) limit: u32,
    pub(crate) read_quorum: u8,
    pub(crate) invoked_ns: u64,
    pub(crate) returned_ns: u64,
    /// As in [`Operation`].
    pub(crate) is_clock_trusted: bool,
    /// All replicas were equal, and nobody wrote.
    pub(crate) is_at_rest: bool,
    pub(crate) records: Vec<Record>,
    /// More may follow behind this key.
    pub(crate) next: Option<Bytes>,
}

/// The number of live records in a partition, as a client was told.
#[derive(Clone, Debug)]
pub(crate) struct Count {
    pub(crate) partition: u16,
    pub(crate) invoked_ns: u64,
    pub(crate) returned_ns: u64,
    /// As in [`Page`].
    pub(crate) is_at_rest: bool,
    pub(crate) count: u64,
}

/// What clients did in a run: operations in the order in which they began, pages and counts in the
/// order of their answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) operations: Vec<Operation>,
    pub(crate) pages: Vec<Page>,
    pub(crate) counts: Vec<Count>,
}

impl History {
    pub(crate) fn begin(&mut self, operation: Operation) -> usize {
        self.operations.push(operation);
        self.operations.len() - 1
    }

    pub(crate) fn end(&mut self, index: usize, now_ns: u64, ending: Ending) {
        let operation = &mut self.operations[index];
        operation.returned_ns = Some(now_ns);
        operation.ending = ending;
    }

    /// Who wrote a value: it says so itself.
    pub(crate) fn writer_of(&self, value: &Bytes) -> Option<&Operation> {
        let index = u64::from_le_bytes(value.get(..8)?.try_into().ok()?);
        let operation = self.operations.get(usize::try_from(index).ok()?)?;
        matches!(&operation.kind, Kind::Put { value: written } if written == value)
            .then_some(operation)
    }

    /// A value that nobody else writes: the operation's number, and something to give it a size.
    pub(crate) fn next_value(&self, random: &mut Random, faults: &FaultConfig) -> Bytes {
        let mut value = BytesMut::new();
        value.put_u64_le(self.operations.len() as u64);
        let filler = match random.below(20) {
            _ if random.chance(faults.huge_value_ppm) => faults.huge_value_bytes_max,
            0 => random.below(6_000),
            _ => random.below(150),
        };
        value.put_bytes(b'.', filler as usize);
        value.freeze()
    }
}
