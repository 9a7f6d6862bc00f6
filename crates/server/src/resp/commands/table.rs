//! The list of all commands, in order of their names, and of those that are refused.

use super::{Call, Planned, cluster, connection, keyspace, server, strings};

/// One command.
pub(super) struct Spec {
    pub(super) name: &'static str,
    /// Arguments, the name included; a negative number is a minimum.
    pub(super) arity: i64,
    pub(super) flags: &'static [&'static str],
    /// First key, last key (negative: from the end), step. Zeros: no keys.
    pub(super) keys: (i64, i64, i64),
    pub(super) group: &'static str,
    pub(super) summary: &'static str,
    pub(super) run: fn(&mut Call<'_>) -> Planned,
}

impl Spec {
    pub(super) fn takes(&self, len: usize) -> bool {
        let least = self.arity.unsigned_abs() as usize;
        len == least || self.arity < 0 && len > least
    }
}

/// What a name stands for.
pub(super) enum Found {
    /// A command.
    Known(&'static Spec),
    /// A command of Redis that would have to be atomic.
    Refused(&'static str),
}

/// Longest name of a command.
const NAME_BYTES_MAX: usize = 32;

/// Finds a command by its name, in any case.
pub(super) fn find(name: &[u8]) -> Option<Found> {
    let mut upper = [0; NAME_BYTES_MAX];
    let upper = upper.get_mut(..name.len())?;
    upper.copy_from_slice(name);
    upper.make_ascii_uppercase();
    let upper = &*upper;
    if let Ok(index) = HEADS.binary_search(&head(upper)) {
        let spec = &COMMANDS[index];
        return (spec.name.as_bytes() == upper).then_some(Found::Known(spec));
    }
    let index = REFUSED
        .binary_search_by(|name| name.as_bytes().cmp(upper))
        .ok()?;
    Some(Found::Refused(REFUSED[index]))
}

/// The first eight bytes of each name, as numbers of the same order: this is searched for every
/// command, and numbers compare faster than text. No two commands share a head, and none shares one
/// with a refused name; a test says so.
const HEADS: [u64; COMMANDS.len()] = {
    let mut heads = [0; COMMANDS.len()];
    let mut index = 0;
    while index < heads.len() {
        heads[index] = head(COMMANDS[index].name.as_bytes());
        index += 1;
    }
    heads
};

const fn head(name: &[u8]) -> u64 {
    let mut number = 0;
    let mut index = 0;
    while index < 8 {
        let byte = if index < name.len() { name[index] } else { 0 };
        number = number << 8 | byte as u64;
        index += 1;
    }
    number
}

const READ: &[&str] = &["readonly", "fast"];
const READ_SLOW: &[&str] = &["readonly"];
const WRITE: &[&str] = &["write", "denyoom"];
const DELETE: &[&str] = &["write"];
const CONNECTION: &[&str] = &["noscript", "loading", "stale", "fast"];
const ADMIN: &[&str] = &["loading", "stale"];

const NO_KEY: (i64, i64, i64) = (0, 0, 0);
const ONE_KEY: (i64, i64, i64) = (1, 1, 1);
const ALL_KEYS: (i64, i64, i64) = (1, -1, 1);

macro_rules! commands {
    ($($name:literal $arity:literal $flags:ident $keys:expr, $group:literal, $run:path: $summary:literal;)*) => {
        &[$(Spec {
            name: $name,
            arity: $arity,
            flags: $flags,
            keys: $keys,
            group: $group,
            summary: $summary,
            run: $run,
        }),*]
    };
}

/// All commands, sorted by name.
pub(super) const COMMANDS: &[Spec] = commands! {
    "AUTH" -2 CONNECTION NO_KEY, "connection", connection::auth: "Always fails: there are no passwords";
    "CLIENT" -2 CONNECTION NO_KEY, "connection", connection::client: "About this connection and others";
    "CLUSTER" -2 ADMIN NO_KEY, "cluster", cluster::cluster: "Nodes, and which slots they hold";
    "COMMAND" -1 ADMIN NO_KEY, "server", server::command: "The commands of this server";
    "CONFIG" -2 ADMIN NO_KEY, "server", server::config: "Settings, as far as Redis clients ask";
    "DBSIZE" 1 READ_SLOW NO_KEY, "server", keyspace::dbsize: "Counts the keys, reading every partition";
    "DEL" -2 DELETE ALL_KEYS, "generic", keyspace::del: "Deletes keys, each by itself";
    "ECHO" 2 CONNECTION NO_KEY, "connection", connection::echo: "Returns its argument";
    "EXISTS" -2 READ ALL_KEYS, "generic", keyspace::exists: "Counts which of the keys exist";
    "EXPIRETIME" 2 READ ONE_KEY, "generic", keyspace::expiretime: "When a key expires, in seconds since 1970";
    "FLUSHALL" -1 DELETE NO_KEY, "server", keyspace::flush: "Deletes every key that it sees; not atomic";
    "FLUSHDB" -1 DELETE NO_KEY, "server", keyspace::flush: "Deletes every key that it sees; not atomic";
    "GET" 2 READ ONE_KEY, "string", strings::get: "The value of a key";
    "GETRANGE" 4 READ_SLOW ONE_KEY, "string", strings::getrange: "A part of a value";
    "HELLO" -1 CONNECTION NO_KEY, "connection", connection::hello: "Greets, and chooses RESP 2 or 3";
    "INFO" -1 ADMIN NO_KEY, "server", server::info: "Facts about this node";
    "KEYS" 2 READ_SLOW NO_KEY, "generic", keyspace::keys: "Keys that match a pattern, reading every partition";
    "MDS.CONSISTENCY" -1 CONNECTION NO_KEY, "connection", connection::consistency: "[R n] [W n] [TIMEOUT ms] [SESSION yes|no] | DEFAULT: quorums and deadline of this connection";
    "MGET" -2 READ ALL_KEYS, "string", strings::mget: "The values of keys, each read by itself";
    "MSET" -3 WRITE (1, -1, 2), "string", strings::mset: "Sets keys, each by itself: not atomic";
    "PEXPIRETIME" 2 READ ONE_KEY, "generic", keyspace::pexpiretime: "When a key expires, in milliseconds since 1970";
    "PING" -1 CONNECTION NO_KEY, "connection", connection::ping: "Answers";
    "PSETEX" 4 WRITE ONE_KEY, "string", strings::psetex: "Sets a key for some milliseconds";
    "PTTL" 2 READ ONE_KEY, "generic", keyspace::pttl: "Milliseconds until a key expires";
    "QUIT" -1 CONNECTION NO_KEY, "connection", connection::quit: "Closes the connection";
    "RANDOMKEY" 1 READ_SLOW NO_KEY, "generic", keyspace::randomkey: "Some key; not all are equally likely";
    "READONLY" 1 CONNECTION NO_KEY, "cluster", connection::readonly: "Accepted: any node serves any read";
    "READWRITE" 1 CONNECTION NO_KEY, "cluster", connection::readonly: "Accepted: any node serves any request";
    "RESET" 1 CONNECTION NO_KEY, "connection", connection::reset: "Makes the connection as new";
    "SCAN" -2 READ_SLOW NO_KEY, "generic", keyspace::scan: "Some keys, and a cursor to go on from";
    "SELECT" 2 CONNECTION NO_KEY, "connection", connection::select: "Accepts database 0, the only one";
    "SET" -3 WRITE ONE_KEY, "string", strings::set: "Sets a key, with EX, PX, EXAT or PXAT for a time";
    "SETEX" 4 WRITE ONE_KEY, "string", strings::setex: "Sets a key for some seconds";
    "STRLEN" 2 READ ONE_KEY, "string", strings::strlen: "Length of a value";
    "TIME" 1 CONNECTION NO_KEY, "server", server::time: "Seconds and microseconds since 1970";
    "TTL" 2 READ ONE_KEY, "generic", keyspace::ttl: "Seconds until a key expires";
    "TYPE" 2 READ ONE_KEY, "generic", keyspace::type_of: "string or none";
    "UNLINK" -2 DELETE ALL_KEYS, "generic", keyspace::del: "Deletes keys, each by itself";
    "WAIT" 3 CONNECTION NO_KEY, "generic", connection::wait: "Replicas beyond the first known to hold this connection's last write: a lower bound";
};

/// Commands of Redis that read, decide and write, or promise several at once; sorted.
pub(super) const REFUSED: &[&str] = &[
    "APPEND",
    "BITFIELD",
    "BITOP",
    "COPY",
    "DECR",
    "DECRBY",
    "DISCARD",
    "EVAL",
    "EVALSHA",
    "EVALSHA_RO",
    "EVAL_RO",
    "EXEC",
    "EXPIRE",
    "EXPIREAT",
    "FCALL",
    "FCALL_RO",
    "FUNCTION",
    "GETDEL",
    "GETEX",
    "GETSET",
    "INCR",
    "INCRBY",
    "INCRBYFLOAT",
    "MOVE",
    "MSETNX",
    "MULTI",
    "PERSIST",
    "PEXPIRE",
    "PEXPIREAT",
    "PFADD",
    "PFMERGE",
    "RENAME",
    "RENAMENX",
    "SCRIPT",
    "SETBIT",
    "SETNX",
    "SETRANGE",
    "UNWATCH",
    "WATCH",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_sorted_so_that_names_are_found() {
        assert!(HEADS.is_sorted_by(|a, b| a < b));
        assert!(REFUSED.is_sorted_by(|a, b| a < b));
        for spec in COMMANDS {
            let lower = spec.name.to_lowercase();
            assert!(
                matches!(find(lower.as_bytes()), Some(Found::Known(found)) if found.name == spec.name)
            );
        }
        for name in REFUSED {
            assert!(matches!(find(name.as_bytes()), Some(Found::Refused(_))));
        }
        assert!(find(b"").is_none());
        assert!(find(&[b'x'; 100]).is_none());
    }
}
