//! Bytes to commands: an incremental parser for both request forms of the Redis protocol.
//!
//! A command is an array of bulk strings (`*2\r\n$3\r\nGET\r\n$1\r\nk\r\n`), what clients send, or one
//! line of text (`GET k`), what people type. Bytes may arrive cut anywhere: the parser remembers how
//! far it came in a command that is not complete, so that a large value in a thousand pieces is
//! parsed once, not a thousand times.
//!
//! Nothing is copied: a command's bytes are split off the input, and its arguments are places in
//! them. Only a line with quotes is rewritten.
//!
//! After an error nothing in the input can be trusted: the connection is told, in Redis' words, and
//! closed. Where Redis skips the two bytes after a bulk string unread, this insists on CR LF.

use std::fmt;

use bytes::{Buf, Bytes, BytesMut};
use mds_types::limits::VALUE_BYTES_MAX;

/// One argument. Larger ones than a value may be are still taken up to this, so that the client
/// hears which limit it met and keeps its connection; beyond, the connection is closed.
pub const BULK_BYTES_MAX: usize = 2 * VALUE_BYTES_MAX;
/// Arguments of one command; more close the connection.
pub const ARGS_MAX: usize = 1024 * 1024;
/// Bytes of one command with all its arguments; more close the connection.
pub const COMMAND_BYTES_MAX: usize = 128 * 1024 * 1024;
/// Bytes of one line, whether a command or a length; longer ones close the connection.
pub const LINE_BYTES_MAX: usize = 64 * 1024;
/// Arguments whose places are kept allocated between commands.
const PLACES_KEPT: usize = 1024;

/// One command: its bytes and where its arguments are in them.
#[derive(Default, Debug)]
pub struct Command {
    frame: Bytes,
    places: Vec<(u32, u32)>,
}

impl Command {
    /// Number of arguments, the name included. At least 1.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is not even a name: before the first command.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// An argument; empty if there is none.
    pub fn arg(&self, index: usize) -> &[u8] {
        self.places.get(index).map_or(&[], |&(start, end)| {
            &self.frame[start as usize..end as usize]
        })
    }

    /// An argument that shares the memory of what was read from the socket.
    pub fn share(&self, index: usize) -> Bytes {
        self.places
            .get(index)
            .map_or_else(Bytes::new, |&(start, end)| {
                self.frame.slice(start as usize..end as usize)
            })
    }

    /// The arguments from `first` on.
    pub fn args_from(&self, first: usize) -> impl Iterator<Item = &[u8]> {
        (first..self.len()).map(|index| self.arg(index))
    }

    /// Lets go of the memory of the last command.
    pub fn clear(&mut self) {
        self.frame = Bytes::new();
        self.places.clear();
        self.places.shrink_to(PLACES_KEPT);
    }
}

/// Why the input is no command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProtocolError {
    /// `*` with no number, or one out of range.
    MultibulkLength,
    /// `$` with no number, or one out of range.
    BulkLength,
    /// A line that should have been a length but has no end.
    LongLength(&'static str),
    /// Something else than `$` where an argument should begin.
    ExpectedBulk(u8),
    /// A bulk string that does not end where it said.
    BulkEnd,
    /// A line without end.
    LongLine,
    /// A quote that is not closed, or closed in the middle of a word.
    Quotes,
    /// More bytes in one command than is allowed.
    LongCommand,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ERR Protocol error: ")?;
        match *self {
            ProtocolError::MultibulkLength => f.write_str("invalid multibulk length"),
            ProtocolError::BulkLength => f.write_str("invalid bulk length"),
            ProtocolError::LongLength(what) => write!(f, "too big {what} count string"),
            ProtocolError::ExpectedBulk(got) => {
                // As Redis prints a character, but never a line break into a line.
                let got = if got.is_ascii_control() { b'?' } else { got };
                write!(f, "expected '$', got '{}'", char::from(got))
            }
            ProtocolError::BulkEnd => f.write_str("no CR LF after a bulk string"),
            ProtocolError::LongLine => f.write_str("too big inline request"),
            ProtocolError::Quotes => f.write_str("unbalanced quotes in request"),
            ProtocolError::LongCommand => {
                write!(f, "command longer than {COMMAND_BYTES_MAX} bytes")
            }
        }
    }
}

impl std::error::Error for ProtocolError {}

/// How far the parser came in the command at the head of the input.
#[derive(Default, Debug)]
pub struct Parser {
    /// Bytes of the input that are understood.
    at: usize,
    /// Arguments still to come, inside an array.
    missing: usize,
    /// Length of the argument whose bytes are awaited.
    bulk: Option<usize>,
    places: Vec<(u32, u32)>,
    /// Bytes of an unfinished line that hold no line break.
    searched: usize,
}

impl Parser {
    /// Takes the next whole command off the input into `command`; false if there is none yet.
    ///
    /// # Errors
    /// When the input is no command. The connection has to be closed.
    pub fn next(
        &mut self,
        input: &mut BytesMut,
        command: &mut Command,
    ) -> Result<bool, ProtocolError> {
        command.clear();
        while self.missing == 0 {
            match input.first() {
                None => return Ok(false),
                Some(b'*') => match self.length(input, "mbulk", ProtocolError::MultibulkLength)? {
                    None => return Ok(false),
                    Some(count) if count > ARGS_MAX as i64 => {
                        return Err(ProtocolError::MultibulkLength);
                    }
                    Some(count) if count > 0 => self.missing = count as usize,
                    // An empty array is no command, and no mistake either.
                    Some(_) => {
                        input.advance(self.at);
                        self.at = 0;
                    }
                },
                Some(_) => {
                    let Some(end) = self.line_end(input)? else {
                        return Ok(false);
                    };
                    let line = input.split_to(end + 1).freeze();
                    if split_line(line, command)? {
                        return Ok(true);
                    }
                }
            }
        }
        while self.missing > 0 {
            if !self.argument(input)? {
                return Ok(false);
            }
            self.missing -= 1;
        }
        command.frame = input.split_to(self.at).freeze();
        std::mem::swap(&mut command.places, &mut self.places);
        self.at = 0;
        Ok(true)
    }

    /// Reads one argument of an array; false if it is not complete.
    fn argument(&mut self, input: &BytesMut) -> Result<bool, ProtocolError> {
        let length = match self.bulk {
            Some(length) => length,
            None => {
                match input.get(self.at) {
                    None => return Ok(false),
                    Some(b'$') => {}
                    Some(&other) => return Err(ProtocolError::ExpectedBulk(other)),
                }
                let Some(length) = self.length(input, "bulk", ProtocolError::BulkLength)? else {
                    return Ok(false);
                };
                let length = usize::try_from(length).map_err(|_| ProtocolError::BulkLength)?;
                if length > BULK_BYTES_MAX {
                    return Err(ProtocolError::BulkLength);
                }
                if self.at + length > COMMAND_BYTES_MAX {
                    return Err(ProtocolError::LongCommand);
                }
                self.bulk = Some(length);
                length
            }
        };
        let end = self.at + length;
        let Some(line_break) = input.get(end..end + 2) else {
            return Ok(false);
        };
        if line_break != b"\r\n" {
            return Err(ProtocolError::BulkEnd);
        }
        // Both fit: they are below `COMMAND_BYTES_MAX`.
        self.places.push((self.at as u32, end as u32));
        self.at = end + 2;
        self.bulk = None;
        Ok(true)
    }

    /// Reads `?123\r\n` at the present place, whatever its first character is.
    fn length(
        &mut self,
        input: &[u8],
        what: &'static str,
        bad: ProtocolError,
    ) -> Result<Option<i64>, ProtocolError> {
        let text = &input[self.at + 1..];
        // A length in range is shorter than this.
        let window = &text[..text.len().min(24)];
        let Some(length) = window.iter().position(|&byte| byte == b'\r') else {
            if window.len() < 24 {
                return Ok(None);
            }
            return match text.iter().take(LINE_BYTES_MAX).any(|&byte| byte == b'\r') {
                true => Err(bad),
                false if text.len() < LINE_BYTES_MAX => Ok(None),
                false => Err(ProtocolError::LongLength(what)),
            };
        };
        match text.get(length + 1) {
            None => Ok(None),
            Some(b'\n') => {
                let number = parse_i64(&text[..length]).ok_or(bad)?;
                self.at += 1 + length + 2;
                Ok(Some(number))
            }
            Some(_) => Err(bad),
        }
    }

    /// Where the line at the head of the input ends, at its line feed.
    fn line_end(&mut self, input: &[u8]) -> Result<Option<usize>, ProtocolError> {
        let rest = &input[self.searched..];
        if let Some(found) = rest.iter().position(|&byte| byte == b'\n') {
            let end = self.searched + found;
            self.searched = 0;
            if end > LINE_BYTES_MAX {
                return Err(ProtocolError::LongLine);
            }
            return Ok(Some(end));
        }
        if input.len() > LINE_BYTES_MAX {
            return Err(ProtocolError::LongLine);
        }
        self.searched = input.len();
        Ok(None)
    }
}

/// A decimal number as Redis reads one: no plus sign, no leading zeros, no spaces.
pub fn parse_i64(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut number: i64 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        // Downwards, as there is one more negative number.
        number = number
            .checked_mul(10)?
            .checked_sub(i64::from(digit - b'0'))?;
    }
    if negative {
        Some(number)
    } else {
        number.checked_neg()
    }
}

/// Splits a line into arguments; false if it is blank.
fn split_line(line: Bytes, command: &mut Command) -> Result<bool, ProtocolError> {
    let quoted = line.iter().any(|byte| matches!(byte, b'"' | b'\''));
    if quoted {
        split_quoted_line(&line, command)?;
    } else {
        let mut start = None;
        for (at, byte) in line.iter().enumerate() {
            match (start, is_space(*byte)) {
                (None, false) => start = Some(at),
                (Some(from), true) => {
                    command.places.push((from as u32, at as u32));
                    start = None;
                }
                _ => {}
            }
        }
        // A line ends with a line feed, which ends its last word.
        command.frame = line;
    }
    Ok(!command.places.is_empty())
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c | 0)
}

/// Splits a line with quotes, as a shell would: `"..."` with escapes, `'...'` with only `\'`.
fn split_quoted_line(line: &[u8], command: &mut Command) -> Result<(), ProtocolError> {
    let mut words = Vec::with_capacity(line.len());
    let mut rest = line;
    loop {
        while let [first, tail @ ..] = rest
            && is_space(*first)
        {
            rest = tail;
        }
        if rest.is_empty() {
            break;
        }
        let start = words.len();
        rest = take_word(rest, &mut words)?;
        command.places.push((start as u32, words.len() as u32));
    }
    command.frame = Bytes::from(words);
    Ok(())
}

/// Appends the word at the head of `rest` to `words` and returns what follows it.
fn take_word<'a>(mut rest: &'a [u8], words: &mut Vec<u8>) -> Result<&'a [u8], ProtocolError> {
    loop {
        match rest {
            [b'"', tail @ ..] => return end_of_word(take_double_quoted(tail, words)?),
            [b'\'', tail @ ..] => return end_of_word(take_single_quoted(tail, words)?),
            [byte, tail @ ..] if !is_space(*byte) => {
                words.push(*byte);
                rest = tail;
            }
            _ => return Ok(rest),
        }
    }
}

/// A closing quote has to be followed by a space.
fn end_of_word(rest: &[u8]) -> Result<&[u8], ProtocolError> {
    match rest.first() {
        Some(byte) if !is_space(*byte) => Err(ProtocolError::Quotes),
        _ => Ok(rest),
    }
}

fn take_double_quoted<'a>(
    mut rest: &'a [u8],
    words: &mut Vec<u8>,
) -> Result<&'a [u8], ProtocolError> {
    let hex = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
    loop {
        match rest {
            [] => return Err(ProtocolError::Quotes),
            [b'"', tail @ ..] => return Ok(tail),
            [b'\\', b'x', high, low, tail @ ..] if hex(*high).is_some() && hex(*low).is_some() => {
                let (high, low) = (hex(*high).unwrap_or(0), hex(*low).unwrap_or(0));
                words.push(high << 4 | low);
                rest = tail;
            }
            [b'\\', escaped, tail @ ..] => {
                words.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => *other,
                });
                rest = tail;
            }
            [byte, tail @ ..] => {
                words.push(*byte);
                rest = tail;
            }
        }
    }
}

fn take_single_quoted<'a>(
    mut rest: &'a [u8],
    words: &mut Vec<u8>,
) -> Result<&'a [u8], ProtocolError> {
    loop {
        match rest {
            [] => return Err(ProtocolError::Quotes),
            [b'\'', tail @ ..] => return Ok(tail),
            [b'\\', b'\'', tail @ ..] => {
                words.push(b'\'');
                rest = tail;
            }
            [byte, tail @ ..] => {
                words.push(*byte);
                rest = tail;
            }
        }
    }
}
