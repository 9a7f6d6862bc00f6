//! The commands: each turns its arguments into an [`Action`], and submits nothing itself.
//!
//! Errors are Redis' own, word for word, where Redis has one, as clients compare them. What Redis
//! cannot say has codes of its own: `QUORUM` (too few replicas: nothing was done), `UNKNOWN` (a write
//! may or may not take effect), `TIMEOUT` (a read got too few answers in time), `BUSY` (overload) and
//! `LOADING` (this node does not serve yet). None is `MOVED`, `ASK`, `TRYAGAIN` or `CLUSTERDOWN`, as
//! those make a client do something that does not help here.
//!
//! # What is refused, and why
//!
//! A command that reads a value and writes what follows from it (`INCR`, `APPEND`, `SET NX`,
//! `EXPIRE`) is atomic in Redis. On replicas where the last write wins it would not be: two `INCR` at
//! once would both succeed and count once. Emulating it would be wrong silently, so it is refused
//! loudly, until keys with consensus exist ([`needs_linearizable`]).

mod cluster;
mod connection;
mod keyspace;
mod server;
mod strings;
mod table;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use mds_cluster::ClusterView;
use mds_node::api::{Now, Op, Outcome, RequestError};
use mds_protocol::Placement;
use mds_types::TopologyVersion;

use super::codec::{Command, parse_i64};
use super::conn::{Access, Answer, Conn};
use super::cursors::Cursors;
use super::jobs::{Gather, GatherKind, Job};
use super::reply::Reply;

pub(super) use connection::client_line;

/// The Redis version whose behaviour and texts are followed; clients read it to know what they may
/// use.
pub const REDIS_VERSION: &str = "7.2.0";

/// What a command wants done.
#[derive(Debug)]
pub(super) enum Action {
    /// The answer is known.
    Answer(Answer),
    /// Say OK and close.
    Quit,
    /// List all connections.
    ClientList,
    /// One request.
    Ask {
        op: Op,
        key: Bytes,
        access: Access,
        then: Then,
    },
    /// Several requests.
    Run(Box<Job>),
}

/// What a command came to: what to do, or the text of an error.
type Planned = Result<Action, Cow<'static, str>>;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) cursors: Cursors,
    pub(super) commands: u64,
    pub(super) connections: u64,
    pub(super) open: usize,
    pub(super) started: Option<Now>,
    random: u64,
    placement: Option<(TopologyVersion, u64, Arc<Placement>)>,
}

impl Shared {
    pub(super) fn new(seed: u64) -> Shared {
        Shared {
            cursors: Cursors::default(),
            commands: 0,
            connections: 0,
            open: 0,
            started: None,
            random: seed,
            placement: None,
        }
    }

    /// A number from the seeded sequence (SplitMix64).
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// The placement of the view's ring, computed once per ring; none before there is one.
    fn placement(&mut self, view: &ClusterView) -> Option<Arc<Placement>> {
        let config = view.config.as_ref()?;
        let (version, fingerprint) = (view.topology.version, config.fingerprint());
        match &self.placement {
            Some((of, with, known)) if (*of, *with) == (version, fingerprint) => {
                Some(Arc::clone(known))
            }
            _ => {
                let placement = Arc::new(Placement::compute(&view.topology, config));
                self.placement = Some((version, fingerprint, Arc::clone(&placement)));
                Some(placement)
            }
        }
    }
}

/// One command being planned.
pub(super) struct Call<'a> {
    pub(super) now: Now,
    pub(super) command: &'a Command,
    pub(super) conn: &'a mut Conn,
    pub(super) shared: &'a mut Shared,
    pub(super) view: &'a Arc<ClusterView>,
}

impl Call<'_> {
    fn len(&self) -> usize {
        self.command.len()
    }

    fn arg(&self, index: usize) -> &[u8] {
        self.command.arg(index)
    }

    /// Whether an argument is this word, in any case.
    fn is(&self, index: usize, word: &str) -> bool {
        self.arg(index).eq_ignore_ascii_case(word.as_bytes())
    }

    fn integer(&self, index: usize) -> Result<i64, Cow<'static, str>> {
        parse_i64(self.arg(index)).ok_or(NOT_AN_INTEGER.into())
    }

    /// Partitions of the cluster, once this node is part of one.
    fn partition_count(&self) -> Result<u16, Cow<'static, str>> {
        let config = self.view.config.as_ref();
        config.map(|config| config.partition_count).ok_or(
            "LOADING not ready: this node is not part of a cluster yet: `mydatastore init` makes one"
                .into(),
        )
    }

    /// Refuses another number of arguments for the subcommand in hand.
    fn expect_len(
        &self,
        wanted: impl std::ops::RangeBounds<usize>,
    ) -> Result<(), Cow<'static, str>> {
        if wanted.contains(&self.len()) {
            return Ok(());
        }
        let name = String::from_utf8_lossy(self.arg(0)).to_lowercase();
        let sub = String::from_utf8_lossy(self.arg(1)).to_lowercase();
        Err(format!("ERR wrong number of arguments for '{name}|{sub}' command").into())
    }

    fn unknown_subcommand(&self) -> Planned {
        let name = String::from_utf8_lossy(self.arg(0)).to_uppercase();
        let sub = shown(self.arg(1));
        Err(format!("ERR unknown subcommand '{sub}'. Try {name} HELP.").into())
    }
}

const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
const SYNTAX_ERROR: &str = "ERR syntax error";

/// Bytes of a client in an error text: at most 128, as text.
fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(128)]).into_owned()
}

fn reply(reply: Reply) -> Planned {
    Ok(Action::Answer(Answer::Reply(reply)))
}

fn ok() -> Planned {
    reply(Reply::OK)
}

fn gather(kind: GatherKind, keys: Vec<Bytes>) -> Planned {
    Ok(Action::Run(Box::new(Job::Gather(Gather::new(kind, keys)))))
}

fn read(key: Bytes, then: Then) -> Planned {
    Ok(Action::Ask {
        op: Op::Get { key: key.clone() },
        key,
        access: Access::Read,
        then,
    })
}

/// Looks the command up and plans it.
pub(super) fn plan(call: &mut Call<'_>) -> Action {
    let planned = match table::find(call.arg(0)) {
        None => Err(unknown_command(call)),
        Some(table::Found::Refused(name)) => Err(needs_linearizable(name)),
        Some(table::Found::Known(spec)) => {
            call.conn.last_command = spec.name;
            if spec.takes(call.len()) {
                (spec.run)(call)
            } else {
                let name = spec.name.to_lowercase();
                Err(format!("ERR wrong number of arguments for '{name}' command").into())
            }
        }
    };
    planned.unwrap_or_else(|text| Action::Answer(Answer::Reply(Reply::Error(text))))
}

fn unknown_command(call: &Call<'_>) -> Cow<'static, str> {
    let mut text = format!(
        "ERR unknown command '{}', with args beginning with: ",
        shown(call.arg(0))
    );
    let start = text.len();
    for arg in call.command.args_from(1) {
        if text.len() - start >= 128 {
            break;
        }
        let room = 128 - (text.len() - start);
        let arg = String::from_utf8_lossy(&arg[..arg.len().min(room)]);
        text.push_str(&format!("'{arg}' "));
    }
    text.into()
}

/// The refusal of a command that reads, decides and writes.
fn needs_linearizable(name: &str) -> Cow<'static, str> {
    format!(
        "ERR {name} needs linearizable keys, which MyDataStore does not have yet. It is not emulated: \
         where the last write wins, of two concurrent calls one would be lost without a word"
    )
    .into()
}

/// How the answer to a single request becomes a reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Then {
    /// The value, or null.
    Value,
    /// OK.
    Written,
    /// Its length; zero if there is none.
    Length,
    /// A part of it, by first and last byte; negative ones count from the end.
    Range(i64, i64),
    /// What is left of its life, or when it ends.
    Expiry(ExpiryForm),
    /// `string` or `none`.
    Type,
}

/// How an expiry is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ExpiryForm {
    absolute: bool,
    milliseconds: bool,
}

impl Then {
    pub(super) fn answer(self, now: Now, result: Result<Outcome, RequestError>) -> Answer {
        match result {
            Ok(Outcome::Read {
                value,
                expires_at_ms,
                ..
            }) => Answer::Reply(self.read(now, value, expires_at_ms)),
            Ok(Outcome::Written { acked, .. }) => Answer::Written(Reply::OK, acked),
            Ok(_) => Answer::Reply(Reply::Error("ERR internal error: unexpected answer".into())),
            Err(error) if self == Then::Written => Answer::Written(error_reply(&error), 0),
            Err(error) => Answer::Reply(error_reply(&error)),
        }
    }

    fn read(self, now: Now, value: Option<Bytes>, expires_at_ms: Option<u64>) -> Reply {
        match (self, value) {
            (Then::Value, Some(value)) => Reply::Bulk(value),
            (Then::Value, None) => Reply::Null,
            (Then::Length, value) => Reply::Integer(value.map_or(0, |it| it.len() as i64)),
            (Then::Range(first, last), value) => {
                Reply::Bulk(strings::range(value.unwrap_or_default(), first, last))
            }
            (Then::Expiry(_), None) => Reply::Integer(-2),
            (Then::Expiry(form), Some(_)) => Reply::Integer(form.number(now, expires_at_ms)),
            (Then::Type, Some(_)) => Reply::Simple("string"),
            (Then::Type, None) => Reply::Simple("none"),
            (Then::Written, _) => Reply::OK,
        }
    }
}

impl ExpiryForm {
    fn number(self, now: Now, expires_at_ms: Option<u64>) -> i64 {
        let Some(at_ms) = expires_at_ms else {
            return -1;
        };
        let ms = match self.absolute {
            true => at_ms,
            false => at_ms.saturating_sub(now.wall_ms()),
        };
        let number = match self.milliseconds {
            true => ms,
            false => ms.saturating_add(500) / 1_000,
        };
        i64::try_from(number).unwrap_or(i64::MAX)
    }
}

/// The error that a client hears.
pub(super) fn error_reply(error: &RequestError) -> Reply {
    let code = match error {
        RequestError::BadRequest(_) | RequestError::TooLarge { .. } => "ERR",
        RequestError::Unavailable { .. } => "QUORUM",
        RequestError::Overloaded(_) => "BUSY",
        RequestError::NotReady(_) => "LOADING",
        RequestError::Unknown { .. } => "UNKNOWN",
        RequestError::TimedOut { .. } => "TIMEOUT",
    };
    Reply::Error(format!("{code} {error}").into())
}
