//! A Redis client of thirty lines, so that a test sees exactly what went over the wire.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// One connection.
pub(crate) struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    /// Connects to a port of this machine.
    pub(crate) fn connect(port: u16) -> std::io::Result<Client> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Client {
            reader: BufReader::new(stream),
        })
    }

    /// Sends a command and reads its reply: status and error lines with their mark, bulk strings as they
    /// are, nil as `(nil)`.
    pub(crate) fn call(&mut self, words: &[&str]) -> std::io::Result<String> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.call_bytes(&words)
    }

    /// The same, of bytes.
    pub(crate) fn call_bytes(&mut self, words: &[&[u8]]) -> std::io::Result<String> {
        let mut command = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            command.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            command.extend_from_slice(word);
            command.extend_from_slice(b"\r\n");
        }
        self.reader.get_mut().write_all(&command)?;
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        match line.strip_prefix('$') {
            Some("-1") => Ok("(nil)".to_owned()),
            Some(length) => {
                let length: usize = length.parse().map_err(std::io::Error::other)?;
                let mut value = vec![0; length + 2];
                self.reader.read_exact(&mut value)?;
                value.truncate(length);
                String::from_utf8(value).map_err(std::io::Error::other)
            }
            None => Ok(line.to_owned()),
        }
    }
}

/// Commands on their way at a time.
const PIPELINED: usize = 500;

/// Sends a command for each number, many at a time, and checks that all answers are the same line.
pub(crate) fn pipeline(
    port: u16,
    numbers: impl IntoIterator<Item = usize>,
    command: impl Fn(usize) -> Vec<String>,
    answer: &str,
) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let answer = format!("{answer}\r\n");
    let mut numbers = numbers.into_iter().peekable();
    while numbers.peek().is_some() {
        let (mut commands, mut count) = (Vec::new(), 0);
        for number in numbers.by_ref().take(PIPELINED) {
            let words = command(number);
            write!(commands, "*{}\r\n", words.len()).unwrap();
            for word in words {
                write!(commands, "${}\r\n{word}\r\n", word.len()).unwrap();
            }
            count += 1;
        }
        stream.write_all(&commands).unwrap();
        let mut answers = vec![0; count * answer.len()];
        stream.read_exact(&mut answers).unwrap();
        assert_eq!(String::from_utf8_lossy(&answers), answer.repeat(count));
    }
}
