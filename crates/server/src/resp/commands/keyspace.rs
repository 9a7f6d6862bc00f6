//! Keys: whether they are there, for how long, and which there are.

use std::collections::BTreeSet;

use bytes::Bytes;
use mds_types::PartitionId;

use super::{Action, Call, ExpiryForm, NOT_AN_INTEGER, Planned, SYNTAX_ERROR, Then, gather, read};
use crate::resp::codec::parse_i64;
use crate::resp::cursors::Position;
use crate::resp::jobs::{GatherKind, Job, RandomKey, Scan, ScanFrom, Walk, WalkKind};

/// Records that a `SCAN` without `COUNT` reads.
const SCAN_COUNT: usize = 10;

/// Deletes each key once, however often it is named: the number returned is that of keys deleted.
pub(super) fn del(call: &mut Call<'_>) -> Planned {
    let keys: BTreeSet<Bytes> = call
        .command
        .args_from(1)
        .map(Bytes::copy_from_slice)
        .collect();
    gather(GatherKind::Delete, keys.into_iter().collect())
}

/// Counts a key as often as it is named.
pub(super) fn exists(call: &mut Call<'_>) -> Planned {
    let keys = (1..call.len()).map(|index| call.command.share(index));
    gather(GatherKind::Exists, keys.collect())
}

fn expiry(call: &Call<'_>, absolute: bool, milliseconds: bool) -> Planned {
    let form = ExpiryForm {
        absolute,
        milliseconds,
    };
    read(call.command.share(1), Then::Expiry(form))
}

pub(super) fn ttl(call: &mut Call<'_>) -> Planned {
    expiry(call, false, false)
}

pub(super) fn pttl(call: &mut Call<'_>) -> Planned {
    expiry(call, false, true)
}

pub(super) fn expiretime(call: &mut Call<'_>) -> Planned {
    expiry(call, true, false)
}

pub(super) fn pexpiretime(call: &mut Call<'_>) -> Planned {
    expiry(call, true, true)
}

pub(super) fn type_of(call: &mut Call<'_>) -> Planned {
    read(call.command.share(1), Then::Type)
}

fn run(job: Job) -> Planned {
    Ok(Action::Run(Box::new(job)))
}

fn walk_all(call: &Call<'_>, kind: WalkKind) -> Planned {
    let partitions = u32::from(call.partition_count()?);
    run(Job::Walk(Walk::new(kind, 0, partitions)))
}

/// A walk over the one partition that a slot is in.
pub(super) fn walk_slot(kind: WalkKind, partition: PartitionId) -> Planned {
    let first = u32::from(partition.0);
    run(Job::Walk(Walk::new(kind, first, first + 1)))
}

pub(super) fn dbsize(call: &mut Call<'_>) -> Planned {
    walk_all(call, WalkKind::Size)
}

pub(super) fn keys(call: &mut Call<'_>) -> Planned {
    walk_all(call, WalkKind::Keys(Bytes::copy_from_slice(call.arg(1))))
}

/// With or without `ASYNC`, the reply comes when all deletions are done.
pub(super) fn flush(call: &mut Call<'_>) -> Planned {
    match call.len() {
        1 => {}
        2 if call.is(1, "ASYNC") || call.is(1, "SYNC") => {}
        _ => return Err(SYNTAX_ERROR.into()),
    }
    walk_all(call, WalkKind::Delete)
}

pub(super) fn randomkey(call: &mut Call<'_>) -> Planned {
    let partitions = call.partition_count()?;
    run(Job::RandomKey(RandomKey::new(
        partitions,
        call.shared.random(),
    )))
}

pub(super) fn scan(call: &mut Call<'_>) -> Planned {
    const INVALID_CURSOR: &str = "ERR invalid cursor";
    let digits = std::str::from_utf8(call.arg(1)).ok();
    let cursor: u64 = digits
        .filter(|digits| !digits.starts_with('+'))
        .and_then(|digits| digits.parse().ok())
        .ok_or(INVALID_CURSOR)?;
    let mut count = SCAN_COUNT;
    let (mut pattern, mut type_name) = (None, None);
    let mut index = 2;
    while index < call.len() {
        if index + 1 >= call.len() {
            return Err(SYNTAX_ERROR.into());
        }
        if call.is(index, "COUNT") {
            let number = parse_i64(call.arg(index + 1)).ok_or(NOT_AN_INTEGER)?;
            count = usize::try_from(number)
                .ok()
                .filter(|count| *count > 0)
                .ok_or(SYNTAX_ERROR)?;
        } else if call.is(index, "MATCH") {
            pattern = Some(Bytes::copy_from_slice(call.arg(index + 1)));
        } else if call.is(index, "TYPE") {
            type_name = Some(index + 1);
        } else {
            return Err(SYNTAX_ERROR.into());
        }
        index += 2;
    }

    let partition_count = call.partition_count()?;
    let position = Position::decode(cursor, partition_count).ok_or(INVALID_CURSOR)?;
    let from = match (position.key_hash, call.shared.cursors.key(cursor)) {
        (None, _) => ScanFrom::Key(None),
        (Some(_), Some(key)) => ScanFrom::Key(Some(key.clone())),
        (Some(hash), None) => ScanFrom::Hash(hash),
    };
    let mut scan = Scan::new(position.partition, partition_count, from, count);
    if let Some(pattern) = pattern {
        scan.set_pattern(pattern);
    }
    if let Some(index) = type_name {
        scan.set_type(call.arg(index));
    }
    run(Job::Scan(scan))
}
