//! The client's half of the Redis protocol, as far as `GET` and `SET` need it.
//!
//! Requests are arrays of bulk strings; the parts that are always the same are made once. Of answers, simple strings,
//! errors, numbers, bulk strings and both forms of nil are understood. Whoever answers anything else is no key-value store.

use super::wire::{Answer, Kind, Strange, decimal, put_decimal};

/// A line of an answer is at most so long, bytes.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// One connection's requests.
#[derive(Clone, Debug)]
pub(super) struct Resp {
    get_head: Vec<u8>,
    set_head: Vec<u8>,
    greeting: Option<Vec<u8>>,
}

impl Resp {
    /// For keys of this length; with quorums of its own, if it is to choose some.
    pub(super) fn new(key_bytes: usize, r: Option<u8>, w: Option<u8>) -> Resp {
        let mut words = vec!["MDS.CONSISTENCY".to_owned()];
        for (name, quorum) in [("R", r), ("W", w)] {
            words.extend(
                quorum
                    .map(|quorum| [name.to_owned(), quorum.to_string()])
                    .into_iter()
                    .flatten(),
            );
        }
        if r.is_some() {
            // So many replicas, and not more because of what the connection has seen.
            words.extend(["SESSION".to_owned(), "NO".to_owned()]);
        }
        let greeting = (words.len() > 1).then(|| {
            let head = format!("*{}\r\n", words.len());
            let bulks = words
                .iter()
                .map(|word| format!("${}\r\n{word}\r\n", word.len()));
            (head + &bulks.collect::<String>()).into_bytes()
        });
        Resp {
            get_head: format!("*2\r\n$3\r\nGET\r\n${key_bytes}\r\n").into_bytes(),
            set_head: format!("*3\r\n$3\r\nSET\r\n${key_bytes}\r\n").into_bytes(),
            greeting,
        }
    }

    pub(super) fn greet(&self, out: &mut Vec<u8>) -> usize {
        // Without quorums to choose, a PING: whoever answers it has accepted the connection.
        out.extend_from_slice(self.greeting.as_deref().unwrap_or(b"*1\r\n$4\r\nPING\r\n"));
        1
    }

    pub(super) fn get(&self, key: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&self.get_head);
        out.extend_from_slice(key);
        out.extend_from_slice(b"\r\n");
    }

    pub(super) fn set(&self, key: &[u8], value_bytes: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.set_head);
        out.extend_from_slice(key);
        out.extend_from_slice(b"\r\n$");
        put_decimal(value_bytes, out);
        out.extend_from_slice(b"\r\n");
    }
}

/// The next answer, as [`super::wire::Wire::answer`] says.
pub(super) fn answer(input: &[u8]) -> Result<Option<(usize, Answer<'_>)>, Strange> {
    // What most answers are.
    if input.starts_with(b"+OK\r\n") {
        return Ok(Some((5, Answer::Done)));
    }
    let Some((&mark, rest)) = input.split_first() else {
        return Ok(None);
    };
    let Some(length) = line_length(rest)? else {
        return Ok(None);
    };
    let (line, after) = (&rest[..length], 1 + length + 2);
    match mark {
        b'+' | b':' => Ok(Some((after, Answer::Done))),
        b'_' => Ok(Some((after, Answer::Absent))),
        b'-' => {
            let end = line.iter().position(|&byte| byte == b' ');
            let kind = Kind::Word(&line[..end.unwrap_or(line.len())]);
            Ok(Some((after, Answer::Failed { kind, text: line })))
        }
        b'$' if line == b"-1" => Ok(Some((after, Answer::Absent))),
        b'$' => {
            let bytes = decimal(line).ok_or(Strange("a bulk string without a length"))?;
            let end = after
                .checked_add(bytes)
                .ok_or(Strange("a bulk string without end"))?;
            match input.get(end..end + 2) {
                None => Ok(None),
                Some(b"\r\n") => Ok(Some((end + 2, Answer::Value(&input[after..end])))),
                Some(_) => Err(Strange("a bulk string that does not end where it said")),
            }
        }
        _ => Err(Strange(
            "an answer that is not one of the Redis protocol to GET or SET",
        )),
    }
}

/// The length of the line at the head, without CR LF; `None` if its end is not there yet.
fn line_length(rest: &[u8]) -> Result<Option<usize>, Strange> {
    match rest
        .windows(2)
        .take(LINE_BYTES_MAX)
        .position(|pair| pair == b"\r\n")
    {
        None if rest.len() > LINE_BYTES_MAX => Err(Strange("a line without end")),
        found => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::codec::{Command, Parser};
    use bytes::BytesMut;

    fn parsed(out: &[u8]) -> Vec<Vec<Vec<u8>>> {
        let (mut input, mut parser) = (BytesMut::from(out), Parser::default());
        let (mut command, mut all) = (Command::default(), Vec::new());
        while parser.next(&mut input, &mut command).unwrap() {
            all.push(command.args_from(0).map(<[u8]>::to_vec).collect());
        }
        assert!(input.is_empty());
        all
    }

    #[test]
    fn the_server_understands_what_is_sent() {
        let mut out = Vec::new();
        let resp = Resp::new(3, Some(1), Some(3));
        assert_eq!(resp.greet(&mut out), 1);
        resp.get(b"key", &mut out);
        resp.set(b"key", 12, &mut out);
        out.extend_from_slice(b"hello\r\nworld\r\n");
        Resp::new(3, None, None).greet(&mut out);
        let words = |text: &str| {
            text.split(' ')
                .map(|word| word.as_bytes().to_vec())
                .collect::<Vec<_>>()
        };
        let set = [&b"SET"[..], b"key", b"hello\r\nworld"]
            .map(<[u8]>::to_vec)
            .to_vec();
        assert_eq!(
            parsed(&out),
            [
                words("MDS.CONSISTENCY R 1 W 3 SESSION NO"),
                words("GET key"),
                set,
                words("PING")
            ]
        );
    }

    #[test]
    fn answers_are_understood_however_they_are_cut() {
        let quorum = Answer::Failed {
            kind: Kind::Word(b"QUORUM"),
            text: b"QUORUM needed 2, got 1 of 3",
        };
        let alone = Answer::Failed {
            kind: Kind::Word(b"BUSY"),
            text: b"BUSY",
        };
        for (text, expected) in [
            (&b"+OK\r\n"[..], Answer::Done),
            (b"+PONG\r\n", Answer::Done),
            (b":12\r\n", Answer::Done),
            (b"$-1\r\n", Answer::Absent),
            (b"_\r\n", Answer::Absent),
            (b"$0\r\n\r\n", Answer::Value(b"")),
            (b"$4\r\n\r\n\r\n\r\n", Answer::Value(b"\r\n\r\n")),
            (b"-QUORUM needed 2, got 1 of 3\r\n", quorum),
            (b"-BUSY\r\n", alone),
        ] {
            assert_eq!(answer(text), Ok(Some((text.len(), expected))));
            for end in 0..text.len() {
                assert_eq!(answer(&text[..end]), Ok(None), "{end} of {text:?}");
            }
            let followed = [text, b"+OK\r\n"].concat();
            assert_eq!(answer(&followed), Ok(Some((text.len(), expected))));
        }
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for text in [
            &b"*1\r\n$1\r\na\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\n",
            b"$x\r\n",
            b"$-2\r\n",
            b"$1\r\nabc",
        ] {
            assert!(answer(text).is_err(), "{text:?}");
        }
        let endless = [b"+".to_vec(), vec![b'x'; LINE_BYTES_MAX + 10]].concat();
        assert!(answer(&endless).is_err());
        assert!(answer(format!("${}\r\n", usize::MAX).as_bytes()).is_err());
    }
}
