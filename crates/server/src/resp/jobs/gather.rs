//! `MGET`, `MSET`, `DEL`, `EXISTS`: the same for each of many keys.

use bytes::Bytes;
use mds_node::api::{Op, Outcome, RequestError};

use super::{failed, unexpected};
use crate::resp::conn::{Access, Answer};
use crate::resp::reply::Reply;

/// Requests of one command in flight at a time; the others wait for their turn.
pub const GATHER_IN_FLIGHT_MAX: u32 = 256;

/// What is done with each key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::resp) enum GatherKind {
    /// Its value, or null.
    Values,
    /// Counted if it is there.
    Exists,
    /// Read to see whether it is there, then deleted, whether or not it was: a quorum that did not
    /// see it proves nothing about a write on its way.
    Delete,
    /// Written, in order: of two values for one key, the later one has the later stamp.
    Write(Vec<Bytes>),
}

/// Many keys, one command.
#[derive(Debug)]
pub(in crate::resp) struct Gather {
    kind: GatherKind,
    keys: Vec<Bytes>,
    next: u32,
    /// Keys that are begun and not done.
    running: u32,
    values: Vec<Reply>,
    count: i64,
    acked_min: Option<u8>,
    error: Option<(u32, RequestError)>,
}

impl Gather {
    pub(in crate::resp) fn new(kind: GatherKind, keys: Vec<Bytes>) -> Gather {
        let values = match kind {
            GatherKind::Values => vec![Reply::Null; keys.len()],
            _ => Vec::new(),
        };
        Gather {
            kind,
            keys,
            next: 0,
            running: 0,
            values,
            count: 0,
            acked_min: None,
            error: None,
        }
    }

    pub(super) fn keys(&self) -> &[Bytes] {
        &self.keys
    }

    pub(super) fn access(&self) -> Access {
        match self.kind {
            GatherKind::Values | GatherKind::Exists => Access::Read,
            GatherKind::Delete => Access::ReadWrite,
            GatherKind::Write(_) => Access::Write,
        }
    }

    /// Asks for as many keys as may be in flight.
    pub(super) fn want_more(&mut self, wanted: &mut Vec<(u32, Op)>) {
        while self.error.is_none() && self.running < GATHER_IN_FLIGHT_MAX {
            let index = self.next as usize;
            let Some(key) = self.keys.get(index).cloned() else {
                return;
            };
            let op = match &self.kind {
                GatherKind::Write(values) => Op::Put {
                    key,
                    value: values.get(index).cloned().unwrap_or_default(),
                    expires_at_ms: None,
                },
                _ => Op::Get { key },
            };
            wanted.push((self.next, op));
            self.next += 1;
            self.running += 1;
        }
    }

    pub(super) fn on_done(
        &mut self,
        part: u32,
        result: Result<Outcome, RequestError>,
        wanted: &mut Vec<(u32, Op)>,
    ) {
        match (&self.kind, result) {
            (GatherKind::Values, Ok(Outcome::Read { value, .. })) => {
                if let (Some(value), Some(place)) = (value, self.values.get_mut(part as usize)) {
                    *place = Reply::Bulk(value);
                }
            }
            (GatherKind::Exists, Ok(Outcome::Read { value, .. })) => {
                self.count += i64::from(value.is_some());
            }
            (GatherKind::Delete, Ok(Outcome::Read { value, .. })) => {
                self.count += i64::from(value.is_some());
                if self.error.is_none()
                    && let Some(key) = self.keys.get(part as usize).cloned()
                {
                    wanted.push((part, Op::Delete { key }));
                    return;
                }
            }
            (GatherKind::Delete | GatherKind::Write(_), Ok(Outcome::Written { acked, .. })) => {
                self.acked_min = Some(self.acked_min.map_or(acked, |least| least.min(acked)));
            }
            (_, result) => {
                let error = result.err().unwrap_or_else(unexpected);
                if self
                    .error
                    .as_ref()
                    .is_none_or(|(earliest, _)| part < *earliest)
                {
                    self.error = Some((part, error));
                }
            }
        }
        self.running -= 1;
        self.want_more(wanted);
    }

    pub(super) fn finish(self) -> Answer {
        let writes = self.access() != Access::Read;
        let reply = match (self.error, self.kind) {
            (Some((_, error)), _) if writes => return Answer::Written(failed(&error), 0),
            (Some((_, error)), _) => failed(&error),
            (None, GatherKind::Values) => Reply::Array(self.values),
            (None, GatherKind::Exists | GatherKind::Delete) => Reply::Integer(self.count),
            (None, GatherKind::Write(_)) => Reply::OK,
        };
        if writes {
            Answer::Written(reply, self.acked_min.unwrap_or(0))
        } else {
            Answer::Reply(reply)
        }
    }
}
