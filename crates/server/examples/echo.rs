//! The floor under a request: a server that reads commands, does nothing, and answers.
//!
//! One thread, one turn for whatever is readable, one write for each connection and turn, as in the database; no keys, no
//! peers, no disk. What a SET or a GET costs here in processor time is what the kernel's sockets cost, and nothing that a
//! database does can be cheaper. `benches/targets.py floor` measures it with the same clients as the database.
//!
//! ```sh
//! cargo run --release -p mydatastore --example echo -- 127.0.0.1:7999
//! ```
//!
//! `GET` is answered by 100 bytes, anything else by `+OK`. It trusts its clients: it is for benches.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Room for what is read at once.
const READ_BYTES: usize = 16 * 1024;

/// A command's bytes and its name, if the first one in `input` is whole.
fn command(input: &[u8]) -> Option<(usize, &[u8])> {
    let line = |from: usize| {
        let end = input
            .get(from..)?
            .windows(2)
            .position(|two| two == b"\r\n")?
            + from;
        let digits = std::str::from_utf8(input.get(from + 1..end)?).ok()?;
        Some((digits.parse::<usize>().ok()?, end + 2))
    };
    let (words, mut at) = line(0)?;
    let mut name = &input[..0];
    for word in 0..words {
        let (length, from) = line(at)?;
        let bytes = input.get(from..from + length)?;
        if word == 0 {
            name = bytes;
        }
        at = from + length + 2;
    }
    (at <= input.len()).then_some((at, name))
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let (mut input, mut output) = (BytesMut::new(), Vec::new());
    let value = [b"$100\r\n".as_slice(), &[b'x'; 100], b"\r\n"].concat();
    loop {
        input.reserve(READ_BYTES);
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        while let Some((length, name)) = command(&input) {
            output.extend_from_slice(match name {
                b"GET" => &value,
                _ => b"+OK\r\n",
            });
            input.advance(length);
        }
        stream.write_all(&output).await?;
        output.clear();
    }
}

fn main() -> io::Result<()> {
    let at = std::env::args().nth(1);
    let at = at.unwrap_or_else(|| "127.0.0.1:7999".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let serving = async {
        let listener = TcpListener::bind(&at).await?;
        println!("ready: {at}");
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::task::spawn_local(serve(stream));
        }
    };
    tokio::task::LocalSet::new().block_on(&runtime, serving)
}
