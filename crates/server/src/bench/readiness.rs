//! Before keys are loaded: waits while a target says that it does not serve yet.
//!
//! A node that has just been started accepts connections before it knows its cluster, and a Redis server before it has
//! read its files; both answer `LOADING`, and `/v1/kv` a 503 with the code `not_ready`. To give up then would make
//! every script that starts a cluster and loads it wait by guessing.
//!
//! What it does not do: wait for a target that is not there, or for a quorum. Those are errors, and said at once.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::wire::{Answer, Kind, Wire};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Looks at a target, at most: a minute of them.
const LOOKS_MAX: u32 = 600;

/// A look that takes longer has failed.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);

/// Bytes that are read at a time.
const READ_BYTES: usize = 4096;

/// Waits until a target answers a read of this key with anything but that it does not serve yet. `on_wait` hears
/// what it says, before each pause; false ends the waiting.
///
/// # Errors
/// When it still does not after a minute: what it says.
pub(super) fn wait_until_served(
    addr: SocketAddr,
    wire: &mut Wire,
    key: &[u8],
    mut on_wait: impl FnMut(&str) -> bool,
) -> Result<(), String> {
    let mut said = String::new();
    for _ in 0..LOOKS_MAX {
        // Any other trouble is told, with its number of requests, by those who load.
        let Ok(Some(text)) = look(addr, wire, key) else {
            return Ok(());
        };
        said = text;
        if !on_wait(&said) {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
    let waited_s = LOOKS_MAX * PAUSE.as_millis() as u32 / 1_000;
    Err(format!(
        "it does not serve yet, after {waited_s} s of waiting: {said}"
    ))
}

/// What a target says if it does not serve yet.
fn look(addr: SocketAddr, wire: &mut Wire, key: &[u8]) -> io::Result<Option<String>> {
    let mut stream = TcpStream::connect_timeout(&addr, LOOK_PATIENCE)?;
    stream.set_read_timeout(Some(LOOK_PATIENCE))?;
    stream.set_write_timeout(Some(LOOK_PATIENCE))?;
    let mut request = Vec::new();
    let mut awaited = wire.greet(&mut request) + 1;
    wire.get(key, &mut request);
    stream.write_all(&request)?;
    let (mut input, mut start) = (Vec::new(), 0);
    let mut room = [0; READ_BYTES];
    while awaited > 0 {
        let answer = wire.answer(&input[start..]);
        match answer.map_err(|strange| io::Error::other(strange.0))? {
            Some((_, Answer::Failed { kind, text })) if is_not_yet(kind, text) => {
                return Ok(Some(String::from_utf8_lossy(text).into_owned()));
            }
            Some((bytes, _)) => {
                start += bytes;
                awaited -= 1;
            }
            None => match stream.read(&mut room)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => input.extend_from_slice(&room[..count]),
            },
        }
    }
    Ok(None)
}

fn is_not_yet(kind: Kind<'_>, text: &[u8]) -> bool {
    match kind {
        Kind::Word(word) => word == b"LOADING",
        Kind::Status(503) => text.windows(9).any(|bytes| bytes == b"not_ready"),
        Kind::Status(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::resp::Resp;
    use super::*;
    use std::net::TcpListener;

    /// A server that answers each connection with the next of these, and then is gone.
    fn server(answers: Vec<&'static str>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; READ_BYTES]);
                stream.write_all(answer.as_bytes()).unwrap();
                // Until the client has read it and gone.
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        addr
    }

    fn waits(answers: Vec<&'static str>) -> usize {
        let mut wire = Wire::Resp(Resp::new(3, None, None));
        let mut waits = 0;
        let waited = wait_until_served(server(answers), &mut wire, b"key", |said| {
            assert!(said.starts_with("LOADING "), "{said}");
            waits += 1;
            true
        });
        assert_eq!(waited, Ok(()));
        waits
    }

    #[test]
    fn it_waits_while_a_server_loads_and_for_nothing_else() {
        let loading = "+PONG\r\n-LOADING not ready: no cluster yet\r\n";
        assert_eq!(waits(vec![loading, loading, "+PONG\r\n$-1\r\n"]), 2);
        assert_eq!(
            waits(vec![
                "-LOADING Redis is loading\r\n",
                "+PONG\r\n$1\r\nv\r\n"
            ]),
            1
        );
        assert_eq!(waits(vec!["+PONG\r\n-QUORUM needed 2, got 1 of 3\r\n"]), 0);
        assert_eq!(waits(vec![]), 0, "nobody there");
    }

    #[test]
    fn a_person_need_not_wait() {
        let addr = server(vec!["-LOADING a lot\r\n"]);
        let mut wire = Wire::Resp(Resp::new(3, None, None));
        assert_eq!(
            wait_until_served(addr, &mut wire, b"key", |_| false),
            Ok(())
        );
    }

    #[test]
    fn both_protocols_say_that_they_are_not_ready() {
        assert!(is_not_yet(Kind::Word(b"LOADING"), b"LOADING x"));
        assert!(is_not_yet(Kind::Status(503), br#"{"code":"not_ready"}"#));
        assert!(!is_not_yet(Kind::Status(503), br#"{"code":"quorum"}"#));
        assert!(!is_not_yet(Kind::Status(500), b"not_ready"));
    }
}
