//! The client's half of HTTP/1.1, as far as `/v1/kv` needs it.
//!
//! Connections are kept, and requests may be pipelined. Answers need a `Content-Length`, which those of `/v1/kv`
//! have. Any status other than 200 and 404 is an error of that status.

use super::wire::{Answer, Kind, Strange, decimal, put_decimal};

/// The head of an answer is at most so long, bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// One connection's requests.
#[derive(Clone, Debug)]
pub(super) struct Http {
    get_tail: Vec<u8>,
    set_tail: Vec<u8>,
}

impl Http {
    /// To this host; with quorums of its own, if it is to choose some.
    pub(super) fn new(host: &str, r: Option<u8>, w: Option<u8>) -> Http {
        let query = |quorums: &[(&str, Option<u8>)]| {
            let chosen = quorums
                .iter()
                .filter_map(|(name, quorum)| quorum.map(|quorum| format!("{name}={quorum}")));
            let chosen: Vec<String> = chosen.collect();
            match chosen.is_empty() {
                true => String::new(),
                false => format!("?{}", chosen.join("&")),
            }
        };
        let head = format!(" HTTP/1.1\r\nHost: {host}\r\n");
        // A read takes W as well: how many must hold what it repaired.
        let get_query = query(&[("r", r), ("w", w)]);
        let set_query = query(&[("w", w)]);
        Http {
            get_tail: format!("{get_query}{head}\r\n").into_bytes(),
            set_tail: format!("{set_query}{head}Content-Length: ").into_bytes(),
        }
    }

    pub(super) fn get(&self, key: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(b"GET /v1/kv/");
        out.extend_from_slice(key);
        out.extend_from_slice(&self.get_tail);
    }

    pub(super) fn set(&self, key: &[u8], value_bytes: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(b"PUT /v1/kv/");
        out.extend_from_slice(key);
        out.extend_from_slice(&self.set_tail);
        put_decimal(value_bytes, out);
        out.extend_from_slice(b"\r\n\r\n");
    }
}

/// The next answer, as [`super::wire::Wire::answer`] says. The body of a write's 200 comes as a value.
pub(super) fn answer(input: &[u8]) -> Result<Option<(usize, Answer<'_>)>, Strange> {
    let window = &input[..input.len().min(HEAD_BYTES_MAX)];
    let Some(head_end) = window.windows(4).position(|four| four == b"\r\n\r\n") else {
        return match input.len() > HEAD_BYTES_MAX {
            true => Err(Strange("an HTTP head without end")),
            false => Ok(None),
        };
    };
    let mut lines = input[..head_end]
        .split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii);
    let status = lines
        .next()
        .and_then(status)
        .ok_or(Strange("no HTTP/1.1 status line"))?;
    let mut length = None;
    for line in lines {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else {
            continue;
        };
        if line[..colon].eq_ignore_ascii_case(b"content-length") {
            length = decimal(line[colon + 1..].trim_ascii());
        }
    }
    let length = match length {
        Some(length) => length,
        None if matches!(status, 204 | 304) => 0,
        None => return Err(Strange("an HTTP answer without Content-Length")),
    };
    let start = head_end + 4;
    let end = start
        .checked_add(length)
        .ok_or(Strange("an HTTP body without end"))?;
    let Some(body) = input.get(start..end) else {
        return Ok(None);
    };
    let answer = match status {
        200 => Answer::Value(body),
        404 => Answer::Absent,
        _ => Answer::Failed {
            kind: Kind::Status(status),
            text: body,
        },
    };
    Ok(Some((end, answer)))
}

/// `HTTP/1.1 200 OK`.
fn status(line: &[u8]) -> Option<u16> {
    let rest = line.strip_prefix(b"HTTP/1.")?;
    let code = decimal(rest.get(2..5)?)?;
    u16::try_from(code).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_name_key_quorums_and_length() {
        let mut out = Vec::new();
        Http::new("a:1", Some(1), None).get(b"key:1", &mut out);
        assert_eq!(out, b"GET /v1/kv/key:1?r=1 HTTP/1.1\r\nHost: a:1\r\n\r\n");
        out.clear();
        Http::new("a:1", Some(1), Some(3)).set(b"key:1", 100, &mut out);
        assert_eq!(
            out,
            b"PUT /v1/kv/key:1?w=3 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 100\r\n\r\n"
        );
        out.clear();
        Http::new("a:1", None, None).get(b"k", &mut out);
        assert_eq!(out, b"GET /v1/kv/k HTTP/1.1\r\nHost: a:1\r\n\r\n");
    }

    #[test]
    fn answers_are_understood_however_they_are_cut() {
        let unavailable = Answer::Failed {
            kind: Kind::Status(503),
            text: b"{}",
        };
        for (text, expected) in [
            (
                &b"HTTP/1.1 200 OK\r\nETag: x\r\ncontent-length: 5\r\n\r\nhello"[..],
                Answer::Value(b"hello"),
            ),
            (
                b"HTTP/1.1 404 Not Found\r\nContent-Length:0\r\n\r\n",
                Answer::Absent,
            ),
            (
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}",
                unavailable,
            ),
        ] {
            assert_eq!(answer(text), Ok(Some((text.len(), expected))));
            for end in 0..text.len() {
                assert_eq!(answer(&text[..end]), Ok(None), "{end}");
            }
            let twice = [text, text].concat();
            assert_eq!(answer(&twice), Ok(Some((text.len(), expected))));
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for text in [
            &b"+PONG\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            b"HTTP/1.1 xx\r\ncontent-length: 0\r\n\r\n",
        ] {
            assert!(answer(text).is_err(), "{text:?}");
        }
        assert!(answer(&vec![b'x'; HEAD_BYTES_MAX + 10]).is_err());
    }
}
