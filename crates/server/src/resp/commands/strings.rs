//! Values: `GET`, `SET` and their kin.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use mds_node::api::{Now, Op};

use super::{Access, Action, Call, Planned, SYNTAX_ERROR, Then, gather, needs_linearizable, read};
use crate::resp::codec::Command;
use crate::resp::jobs::GatherKind;

/// A key and value up to this size are copied out of what was read from the socket. A record may
/// stay in memory for long, and must not hold on to a buffer full of other commands.
const COPY_BYTES_MAX: usize = 16 * 1024;

pub(super) fn get(call: &mut Call<'_>) -> Planned {
    read(call.command.share(1), Then::Value)
}

pub(super) fn strlen(call: &mut Call<'_>) -> Planned {
    read(call.command.share(1), Then::Length)
}

pub(super) fn getrange(call: &mut Call<'_>) -> Planned {
    let range = Then::Range(call.integer(2)?, call.integer(3)?);
    read(call.command.share(1), range)
}

/// The bytes from `first` to `last`, both included; negative numbers count from the end.
pub(super) fn range(value: Bytes, first: i64, last: i64) -> Bytes {
    // A value is far below 2^63 bytes.
    let length = value.len() as i64;
    if first < 0 && last < 0 && first > last {
        return Bytes::new();
    }
    let from_end = |index: i64| match index < 0 {
        true => index.saturating_add(length).max(0),
        false => index,
    };
    let (first, last) = (from_end(first), from_end(last).min(length - 1));
    if first > last {
        return Bytes::new();
    }
    value.slice(first as usize..=last as usize)
}

pub(super) fn mget(call: &mut Call<'_>) -> Planned {
    let keys = (1..call.len()).map(|index| call.command.share(index));
    gather(GatherKind::Values, keys.collect())
}

pub(super) fn mset(call: &mut Call<'_>) -> Planned {
    if call.len().is_multiple_of(2) {
        return Err("ERR wrong number of arguments for 'mset' command".into());
    }
    let pairs = (1..call.len()).step_by(2);
    let (keys, values) = pairs
        .map(|index| own_pair(call.command, index, index + 1))
        .unzip();
    gather(GatherKind::Write(values), keys)
}

pub(super) fn setex(call: &mut Call<'_>) -> Planned {
    let expiry = Expiry::in_seconds(call.integer(2)?);
    put(call, 3, Some(expiry.at_ms(call.now, "setex")?))
}

pub(super) fn psetex(call: &mut Call<'_>) -> Planned {
    let expiry = Expiry::in_milliseconds(call.integer(2)?);
    put(call, 3, Some(expiry.at_ms(call.now, "psetex")?))
}

pub(super) fn set(call: &mut Call<'_>) -> Planned {
    if call.len() == 3 {
        return put(call, 2, None);
    }
    let mut options = SetOptions::default();
    let mut index = 3;
    while index < call.len() {
        index += options.take(call, index)?;
    }
    let expiry = match options.expiry {
        Some((unit, index)) => Some(unit(call.integer(index)?).at_ms(call.now, "set")?),
        None => None,
    };
    match options.conditional() {
        Some(option) => Err(needs_linearizable(&format!("SET with {option}"))),
        None => put(call, 2, expiry),
    }
}

/// Makes an expiry of a number.
type ExpiryUnit = fn(i64) -> Expiry;

/// The options of `SET`.
#[derive(Default)]
struct SetOptions {
    expiry: Option<(ExpiryUnit, usize)>,
    nx: bool,
    xx: bool,
    get: bool,
    keep_ttl: bool,
}

impl SetOptions {
    /// Takes the option at `index`; returns how many arguments it has, its name included.
    fn take(&mut self, call: &Call<'_>, index: usize) -> Result<usize, Cow<'static, str>> {
        let units: [(&str, ExpiryUnit); 4] = [
            ("EX", Expiry::in_seconds),
            ("PX", Expiry::in_milliseconds),
            ("EXAT", Expiry::at_second),
            ("PXAT", Expiry::at_millisecond),
        ];
        if let Some((_, unit)) = units.iter().find(|(name, _)| call.is(index, name)) {
            if self.expiry.is_some() || self.keep_ttl || index + 1 >= call.len() {
                return Err(SYNTAX_ERROR.into());
            }
            self.expiry = Some((*unit, index + 1));
            return Ok(2);
        }
        if call.is(index, "NX") && !self.xx {
            self.nx = true;
        } else if call.is(index, "XX") && !self.nx {
            self.xx = true;
        } else if call.is(index, "GET") {
            self.get = true;
        } else if call.is(index, "KEEPTTL") && self.expiry.is_none() {
            self.keep_ttl = true;
        } else {
            return Err(SYNTAX_ERROR.into());
        }
        Ok(1)
    }

    /// An option that makes the write depend on what is there.
    fn conditional(&self) -> Option<&'static str> {
        let options = [
            (self.nx, "NX"),
            (self.xx, "XX"),
            (self.get, "GET"),
            (self.keep_ttl, "KEEPTTL"),
        ];
        options
            .iter()
            .find(|(given, _)| *given)
            .map(|(_, name)| *name)
    }
}

/// A moment, as a client gives it.
struct Expiry {
    number: i64,
    ms_per_unit: i64,
    relative: bool,
}

impl Expiry {
    fn in_seconds(number: i64) -> Expiry {
        Expiry {
            number,
            ms_per_unit: 1_000,
            relative: true,
        }
    }

    fn in_milliseconds(number: i64) -> Expiry {
        Expiry {
            number,
            ms_per_unit: 1,
            relative: true,
        }
    }

    fn at_second(number: i64) -> Expiry {
        Expiry {
            number,
            ms_per_unit: 1_000,
            relative: false,
        }
    }

    fn at_millisecond(number: i64) -> Expiry {
        Expiry {
            number,
            ms_per_unit: 1,
            relative: false,
        }
    }

    /// Milliseconds since 1970. A moment in the past is allowed: the value is written, and absent.
    fn at_ms(self, now: Now, command: &str) -> Result<u64, Cow<'static, str>> {
        let now_ms = i64::try_from(now.wall_ms()).unwrap_or(i64::MAX);
        let start_ms = if self.relative { now_ms } else { 0 };
        Some(self.number)
            .filter(|number| *number > 0)
            .and_then(|number| number.checked_mul(self.ms_per_unit))
            .and_then(|ms| ms.checked_add(start_ms))
            .and_then(|ms| u64::try_from(ms).ok())
            .ok_or_else(|| format!("ERR invalid expire time in '{command}' command").into())
    }
}

fn put(call: &Call<'_>, value: usize, expires_at_ms: Option<u64>) -> Planned {
    let (key, value) = own_pair(call.command, 1, value);
    Ok(Action::Ask {
        op: Op::Put {
            key: key.clone(),
            value,
            expires_at_ms,
        },
        key,
        access: Access::Write,
        then: Then::Written,
    })
}

/// A key and a value that share one small allocation, or, if they are large, the input's memory.
fn own_pair(command: &Command, key: usize, value: usize) -> (Bytes, Bytes) {
    let (key_bytes, value_bytes) = (command.arg(key), command.arg(value));
    let length = key_bytes.len() + value_bytes.len();
    if length > COPY_BYTES_MAX {
        return (command.share(key), command.share(value));
    }
    let mut pair = BytesMut::with_capacity(length);
    pair.put_slice(key_bytes);
    pair.put_slice(value_bytes);
    let mut key = pair.freeze();
    let value = key.split_off(key_bytes.len());
    (key, value)
}
