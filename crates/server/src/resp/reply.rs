//! Replies, and their two encodings.
//!
//! A [`Reply`] is what a command says, in the richer words of RESP 3. A connection that speaks RESP
//! 2 hears the nearest thing: a map as a flat array, a null as a null bulk string.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};

/// The protocol version of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Protocol {
    /// What every connection starts with.
    #[default]
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

/// What a command says.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    /// A short word such as `OK`.
    Simple(&'static str),
    /// An error: its code, such as `ERR`, and a text. Line breaks in it become spaces.
    Error(Cow<'static, str>),
    /// A number.
    Integer(i64),
    /// Bytes.
    Bulk(Bytes),
    /// Nothing: an absent value.
    Null,
    /// A list.
    Array(Vec<Reply>),
    /// Pairs, in order.
    Map(Vec<(Reply, Reply)>),
    /// A list in which order means nothing.
    Set(Vec<Reply>),
    /// A floating-point number.
    Double(f64),
    /// Yes or no.
    Boolean(bool),
    /// Text that is meant for people.
    Verbatim(Bytes),
}

impl Reply {
    /// `+OK`.
    pub const OK: Reply = Reply::Simple("OK");

    /// A bulk string of text.
    pub fn text(text: &'static str) -> Reply {
        Reply::Bulk(Bytes::from_static(text.as_bytes()))
    }

    /// A bulk string of text that was made up just now.
    pub fn string(text: String) -> Reply {
        Reply::Bulk(Bytes::from(text))
    }

    /// Appends the encoding of this reply.
    pub fn encode(&self, protocol: Protocol, out: &mut BytesMut) {
        let resp3 = protocol == Protocol::Resp3;
        match self {
            Reply::Simple(word) => put_line(out, b'+', word.as_bytes()),
            Reply::Error(text) => put_error(out, text),
            Reply::Integer(number) => put_number(out, b':', *number),
            Reply::Bulk(bytes) => put_bulk(out, b'$', bytes),
            Reply::Null if resp3 => out.put_slice(b"_\r\n"),
            Reply::Null => out.put_slice(b"$-1\r\n"),
            Reply::Array(items) => put_items(out, protocol, b'*', items),
            Reply::Set(items) => {
                put_items(out, protocol, if resp3 { b'~' } else { b'*' }, items);
            }
            Reply::Map(pairs) => {
                let (sign, count) = if resp3 { (b'%', 1) } else { (b'*', 2) };
                put_number(out, sign, (pairs.len() * count) as i64);
                for (key, value) in pairs {
                    key.encode(protocol, out);
                    value.encode(protocol, out);
                }
            }
            Reply::Double(number) => {
                let text = double_text(*number);
                match protocol {
                    Protocol::Resp3 => put_line(out, b',', text.as_bytes()),
                    Protocol::Resp2 => put_bulk(out, b'$', text.as_bytes()),
                }
            }
            Reply::Boolean(yes) if resp3 => put_line(out, b'#', if *yes { b"t" } else { b"f" }),
            Reply::Boolean(yes) => put_number(out, b':', i64::from(*yes)),
            Reply::Verbatim(text) if resp3 => {
                put_number(out, b'=', (text.len() + 4) as i64);
                out.put_slice(b"txt:");
                out.put_slice(text);
                out.put_slice(b"\r\n");
            }
            Reply::Verbatim(text) => put_bulk(out, b'$', text),
        }
    }
}

fn put_line(out: &mut BytesMut, sign: u8, text: &[u8]) {
    out.reserve(text.len() + 3);
    out.put_u8(sign);
    out.put_slice(text);
    out.put_slice(b"\r\n");
}

fn put_error(out: &mut BytesMut, text: &str) {
    out.put_u8(b'-');
    out.extend(text.bytes().map(|byte| match byte {
        b'\r' | b'\n' => b' ',
        other => other,
    }));
    out.put_slice(b"\r\n");
}

fn put_items(out: &mut BytesMut, protocol: Protocol, sign: u8, items: &[Reply]) {
    put_number(out, sign, items.len() as i64);
    for item in items {
        item.encode(protocol, out);
    }
}

fn put_bulk(out: &mut BytesMut, sign: u8, bytes: &[u8]) {
    out.reserve(bytes.len() + 24);
    put_number(out, sign, bytes.len() as i64);
    out.put_slice(bytes);
    out.put_slice(b"\r\n");
}

/// A sign, a number in decimal, and a line break. On every reply's path, so without formatting.
fn put_number(out: &mut BytesMut, sign: u8, number: i64) {
    // A sign, a minus, 19 digits, two for the line break.
    let mut text = [0u8; 23];
    let mut at = text.len() - 2;
    text[at..].copy_from_slice(b"\r\n");
    let mut rest = number.unsigned_abs();
    loop {
        at -= 1;
        text[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        text[at] = b'-';
    }
    at -= 1;
    text[at] = sign;
    out.put_slice(&text[at..]);
}

fn double_text(number: f64) -> String {
    if number.is_nan() {
        "nan".to_owned()
    } else if number.is_infinite() {
        if number > 0.0 { "inf" } else { "-inf" }.to_owned()
    } else {
        number.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(reply: &Reply, protocol: Protocol) -> String {
        let mut out = BytesMut::new();
        reply.encode(protocol, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn each_kind_in_both_protocols() {
        let pair = (Reply::text("k"), Reply::Null);
        for (reply, resp2, resp3) in [
            (Reply::OK, "+OK\r\n", "+OK\r\n"),
            (
                Reply::Integer(i64::MIN),
                ":-9223372036854775808\r\n",
                ":-9223372036854775808\r\n",
            ),
            (Reply::Integer(0), ":0\r\n", ":0\r\n"),
            (Reply::text(""), "$0\r\n\r\n", "$0\r\n\r\n"),
            (Reply::Null, "$-1\r\n", "_\r\n"),
            (
                Reply::Error("ERR a\r\nb".into()),
                "-ERR a  b\r\n",
                "-ERR a  b\r\n",
            ),
            (
                Reply::Map(vec![pair]),
                "*2\r\n$1\r\nk\r\n$-1\r\n",
                "%1\r\n$1\r\nk\r\n_\r\n",
            ),
            (
                Reply::Set(vec![Reply::Integer(1)]),
                "*1\r\n:1\r\n",
                "~1\r\n:1\r\n",
            ),
            (Reply::Double(1.5), "$3\r\n1.5\r\n", ",1.5\r\n"),
            (
                Reply::Double(f64::NEG_INFINITY),
                "$4\r\n-inf\r\n",
                ",-inf\r\n",
            ),
            (Reply::Boolean(true), ":1\r\n", "#t\r\n"),
            (
                Reply::Verbatim("hi".into()),
                "$2\r\nhi\r\n",
                "=6\r\ntxt:hi\r\n",
            ),
        ] {
            assert_eq!(encoded(&reply, Protocol::Resp2), resp2);
            assert_eq!(encoded(&reply, Protocol::Resp3), resp3);
        }
    }
}
