//! Protocols: how a read and a write are said, and what an answer means.
//!
//! A wire belongs to one connection. It writes requests into the connection's output and takes answers off its
//! input, both without copying values or allocating.

use super::http::Http;
use super::resp::Resp;

/// An answer to one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer<'a> {
    /// The write is done.
    Done,
    /// The value that was read.
    Value(&'a [u8]),
    /// There is no such key.
    Absent,
    /// An error: its kind, by which it is counted, and its text.
    Failed {
        /// The first word of a RESP error, or the status of HTTP.
        kind: Kind<'a>,
        /// All of it, as it came.
        text: &'a [u8],
    },
}

/// The kind of an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind<'a> {
    /// A word.
    Word(&'a [u8]),
    /// An HTTP status.
    Status(u16),
}

/// What came is no answer of this protocol. The connection has to be closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Strange(pub(super) &'static str);

/// One of the protocols.
#[derive(Clone, Debug)]
pub(super) enum Wire {
    /// The Redis protocol.
    Resp(Resp),
    /// `/v1/kv`.
    Http(Http),
}

impl Wire {
    /// Writes what has to be said first on a connection; how many answers follow.
    pub(super) fn greet(&mut self, out: &mut Vec<u8>) -> usize {
        match self {
            Wire::Resp(resp) => resp.greet(out),
            Wire::Http(_) => 0,
        }
    }

    /// Writes a read.
    pub(super) fn get(&mut self, key: &[u8], out: &mut Vec<u8>) {
        match self {
            Wire::Resp(resp) => resp.get(key, out),
            Wire::Http(http) => http.get(key, out),
        }
    }

    /// Writes the head of a write. The value has to follow, and then [`end_of_set`](Wire::end_of_set).
    pub(super) fn set(&mut self, key: &[u8], value_bytes: usize, out: &mut Vec<u8>) {
        match self {
            Wire::Resp(resp) => resp.set(key, value_bytes, out),
            Wire::Http(http) => http.set(key, value_bytes, out),
        }
    }

    /// Writes what follows a written value.
    pub(super) fn end_of_set(&mut self, out: &mut Vec<u8>) {
        match self {
            Wire::Resp(_) => out.extend_from_slice(b"\r\n"),
            Wire::Http(_) => {}
        }
    }

    /// The next answer at the head of the input, and how many bytes it takes; `None` if it is not complete.
    ///
    /// # Errors
    /// When it is no answer.
    pub(super) fn answer<'a>(
        &mut self,
        input: &'a [u8],
    ) -> Result<Option<(usize, Answer<'a>)>, Strange> {
        match self {
            Wire::Resp(_) => super::resp::answer(input),
            Wire::Http(_) => super::http::answer(input),
        }
    }
}

/// Appends a number in decimal.
pub(super) fn put_decimal(number: usize, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// A decimal number without sign; none if it is none or does not fit.
pub(super) fn decimal(text: &[u8]) -> Option<usize> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0usize, |number, &byte| {
        let digit = byte.is_ascii_digit().then(|| usize::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_written_and_read() {
        for number in [0, 9, 10, 4_711, usize::MAX] {
            let mut text = Vec::new();
            put_decimal(number, &mut text);
            assert_eq!(text, number.to_string().into_bytes());
            assert_eq!(decimal(&text), Some(number));
        }
        for text in [&b""[..], b"-1", b"1x", b"99999999999999999999999"] {
            assert_eq!(decimal(text), None);
        }
    }
}
