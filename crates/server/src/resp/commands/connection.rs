//! The connection itself: greeting, names, consistency.

use std::borrow::Cow;

use bytes::Bytes;
use mds_node::api::Now;

use super::{
    Action, Answer, Call, Conn, NOT_AN_INTEGER, Planned, REDIS_VERSION, SYNTAX_ERROR, ok, reply,
};
use crate::resp::codec::parse_i64;
use crate::resp::conn::Consistency;
use crate::resp::reply::{Protocol, Reply};

/// Longest name a client may give itself or its library, in bytes.
const NAME_BYTES_MAX: usize = 256;

const NO_PASSWORDS: &str = "ERR AUTH <password> called without any password configured for the \
                            default user. Are you sure your configuration is correct?";

pub(super) fn ping(call: &mut Call<'_>) -> Planned {
    match call.len() {
        1 => reply(Reply::Simple("PONG")),
        2 => reply(Reply::Bulk(call.command.share(1))),
        _ => Err("ERR wrong number of arguments for 'ping' command".into()),
    }
}

pub(super) fn echo(call: &mut Call<'_>) -> Planned {
    reply(Reply::Bulk(call.command.share(1)))
}

pub(super) fn quit(_: &mut Call<'_>) -> Planned {
    Ok(Action::Quit)
}

pub(super) fn reset(call: &mut Call<'_>) -> Planned {
    call.conn.reset();
    reply(Reply::Simple("RESET"))
}

pub(super) fn auth(_: &mut Call<'_>) -> Planned {
    Err(NO_PASSWORDS.into())
}

pub(super) fn select(call: &mut Call<'_>) -> Planned {
    match call.integer(1)? {
        0 => ok(),
        _ => Err("ERR DB index is out of range".into()),
    }
}

/// Every node serves every request, so there is nothing to change.
pub(super) fn readonly(_: &mut Call<'_>) -> Planned {
    ok()
}

/// Never waits: a write is answered when W replicas hold it, and how many do then is the answer.
pub(super) fn wait(call: &mut Call<'_>) -> Planned {
    call.integer(1)?;
    let timeout_ms =
        parse_i64(call.arg(2)).ok_or("ERR timeout is not an integer or out of range")?;
    if timeout_ms < 0 {
        return Err("ERR timeout is negative".into());
    }
    Ok(Action::Answer(Answer::AckedReplicas))
}

pub(super) fn hello(call: &mut Call<'_>) -> Planned {
    let mut protocol = call.conn.protocol;
    if call.len() > 1 {
        protocol = match parse_i64(call.arg(1)) {
            None => return Err("ERR Protocol version is not an integer or out of range".into()),
            Some(2) => Protocol::Resp2,
            Some(3) => Protocol::Resp3,
            Some(_) => return Err("NOPROTO unsupported protocol version".into()),
        };
    }
    let mut name = None;
    let mut index = 2;
    while index < call.len() {
        if call.is(index, "AUTH") && index + 2 < call.len() {
            return Err(NO_PASSWORDS.into());
        }
        if !call.is(index, "SETNAME") || index + 1 >= call.len() {
            let option = super::shown(call.arg(index));
            return Err(format!("ERR Syntax error in HELLO option '{option}'").into());
        }
        name = Some(checked_name(call.arg(index + 1))?);
        index += 2;
    }
    call.conn.protocol = protocol;
    if let Some(name) = name {
        call.conn.name = name;
    }
    let number = match protocol {
        Protocol::Resp2 => 2,
        Protocol::Resp3 => 3,
    };
    reply(Reply::Map(vec![
        (Reply::text("server"), Reply::text("redis")),
        (Reply::text("version"), Reply::text(REDIS_VERSION)),
        (Reply::text("proto"), Reply::Integer(number)),
        (Reply::text("id"), Reply::Integer(client_id(call.conn))),
        (Reply::text("mode"), Reply::text("cluster")),
        (Reply::text("role"), Reply::text("master")),
        (Reply::text("modules"), Reply::Array(Vec::new())),
    ]))
}

fn client_id(conn: &Conn) -> i64 {
    i64::try_from(conn.id).unwrap_or(i64::MAX)
}

fn checked_name(name: &[u8]) -> Result<Bytes, Cow<'static, str>> {
    if name.len() > NAME_BYTES_MAX || !name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
        return Err(
            "ERR Client names cannot contain spaces, newlines or special characters.".into(),
        );
    }
    Ok(Bytes::copy_from_slice(name))
}

pub(super) fn client(call: &mut Call<'_>) -> Planned {
    let sub = call.arg(1).to_ascii_uppercase();
    match sub.as_slice() {
        b"ID" => {
            call.expect_len(2..=2)?;
            reply(Reply::Integer(client_id(call.conn)))
        }
        b"GETNAME" => {
            call.expect_len(2..=2)?;
            reply(match call.conn.name.is_empty() {
                true => Reply::Null,
                false => Reply::Bulk(call.conn.name.clone()),
            })
        }
        b"SETNAME" => {
            call.expect_len(3..=3)?;
            call.conn.name = checked_name(call.arg(2))?;
            ok()
        }
        b"SETINFO" => set_info(call),
        b"INFO" => {
            call.expect_len(2..=2)?;
            reply(Reply::Verbatim(client_line(call.conn, call.now).into()))
        }
        b"LIST" => {
            call.expect_len(2..)?;
            match call.len() {
                2 => Ok(Action::ClientList),
                _ => Err(SYNTAX_ERROR.into()),
            }
        }
        // Nothing is evicted here, and no key has a last access: these are true already.
        b"NO-EVICT" | b"NO-TOUCH" => {
            call.expect_len(3..=3)?;
            match call.is(2, "ON") || call.is(2, "OFF") {
                true => ok(),
                false => Err(SYNTAX_ERROR.into()),
            }
        }
        b"REPLY" => {
            call.expect_len(3..=3)?;
            match call.is(2, "ON") {
                true => ok(),
                false if call.is(2, "OFF") || call.is(2, "SKIP") => {
                    Err("ERR only CLIENT REPLY ON is supported".into())
                }
                false => Err(SYNTAX_ERROR.into()),
            }
        }
        _ => call.unknown_subcommand(),
    }
}

fn set_info(call: &mut Call<'_>) -> Planned {
    call.expect_len(4..=4)?;
    let (is_name, is_version) = (call.is(2, "LIB-NAME"), call.is(2, "LIB-VER"));
    if !is_name && !is_version {
        let option = super::shown(call.arg(2));
        return Err(format!("ERR Unrecognized option '{option}'").into());
    }
    let value = checked_name(call.arg(3)).map_err(|_| {
        let option = if is_name { "lib-name" } else { "lib-ver" };
        format!("ERR {option} cannot contain spaces, newlines or special characters.")
    })?;
    match is_name {
        true => call.conn.library = value,
        false => call.conn.library_version = value,
    }
    ok()
}

/// A connection, as `CLIENT LIST` and `CLIENT INFO` show it.
pub(in crate::resp) fn client_line(conn: &Conn, now: Now) -> String {
    let (age, idle) = conn.age_and_idle(now);
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let protocol = match conn.protocol {
        Protocol::Resp2 => 2,
        Protocol::Resp3 => 3,
    };
    format!(
        "id={} addr={} name={} age={age} idle={idle} flags=N db=0 multi=-1 tot-mem={} cmd={} \
         user=default resp={protocol} lib-name={} lib-ver={}\n",
        conn.id,
        conn.peer,
        text(&conn.name),
        conn.buffered_bytes(),
        conn.last_command.to_lowercase(),
        text(&conn.library),
        text(&conn.library_version),
    )
}

/// `MDS.CONSISTENCY [R n] [W n] [TIMEOUT ms] [SESSION yes|no]`, or `DEFAULT`: what is named changes for the following
/// commands of this connection. Without arguments: what holds now.
pub(super) fn consistency(call: &mut Call<'_>) -> Planned {
    if call.len() == 1 {
        return show_consistency(call);
    }
    if call.len() == 2 && call.is(1, "DEFAULT") {
        call.conn.consistency = Consistency::default();
        return ok();
    }
    let config = call.view.config.as_ref();
    let replicas = config.map_or(mds_types::limits::REPLICAS_MAX, |config| config.replicas);
    let mut consistency = call.conn.consistency;
    let mut index = 1;
    while index < call.len() {
        if index + 1 >= call.len() {
            return Err(SYNTAX_ERROR.into());
        }
        if call.is(index, "SESSION") {
            consistency.session = match (call.is(index + 1, "YES"), call.is(index + 1, "NO")) {
                (true, _) => true,
                (_, true) => false,
                _ => return Err("ERR SESSION is YES or NO".into()),
            };
            index += 2;
            continue;
        }
        let number = call.integer(index + 1)?;
        let quorum = |name: &str| match u8::try_from(number) {
            Ok(quorum) if (1..=replicas).contains(&quorum) => Ok(Some(quorum)),
            _ => Err(format!(
                "ERR {name} is {number}: it has to be 1 to n, and n is {replicas}"
            )),
        };
        if call.is(index, "R") {
            consistency.read_quorum = quorum("r")?;
        } else if call.is(index, "W") {
            consistency.write_quorum = quorum("w")?;
        } else if call.is(index, "TIMEOUT") {
            let timeout_ms = u32::try_from(number)
                .ok()
                .filter(|timeout_ms| *timeout_ms > 0);
            consistency.timeout_ms = Some(timeout_ms.ok_or(NOT_AN_INTEGER)?);
        } else {
            return Err(SYNTAX_ERROR.into());
        }
        index += 2;
    }
    call.conn.consistency = consistency;
    ok()
}

/// Null where the node's default holds and is not known here.
fn show_consistency(call: &Call<'_>) -> Planned {
    let own = call.conn.consistency;
    let config = call.view.config.as_ref();
    let number = |number: Option<i64>| number.map_or(Reply::Null, Reply::Integer);
    let read = own.read_quorum.or(config.map(|config| config.read_quorum));
    let write = own
        .write_quorum
        .or(config.map(|config| config.write_quorum));
    reply(Reply::Map(vec![
        (Reply::text("r"), number(read.map(i64::from))),
        (Reply::text("w"), number(write.map(i64::from))),
        (
            Reply::text("timeout_ms"),
            number(own.timeout_ms.map(i64::from)),
        ),
        (
            Reply::text("session"),
            Reply::text(if own.session { "yes" } else { "no" }),
        ),
    ]))
}
