//! Golden scripts: what is sent, a line `---`, and the bytes that come back.
//!
//! Lines are sent as typed (`get k`), or byte for byte after `raw ` (with `\r`, `\n`, `\xNN`). Lines
//! that begin with `!` change the world: `!later 1500` lets milliseconds pass, `!fail quorum` makes
//! the next request fail, `!down 2` lets gossip lose a node, `!unborn` takes the cluster away,
//! `!reconnect` opens a new connection. Replies are shown with each CR LF as a line break.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use mds_cluster::{ClusterView, MemberView};
use mds_node::api::{RequestError, Stamp};
use mds_node::front::Frontend;
use mds_types::{Epoch, Hlc, MemberInfo, NodeId, Version};

use super::{CONN, Client};

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match bytes.next().unwrap() {
            b'r' => out.push(b'\r'),
            b'n' => out.push(b'\n'),
            b'x' => {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                let digits = std::str::from_utf8(&digits).unwrap();
                out.push(u8::from_str_radix(digits, 16).unwrap());
            }
            other => out.push(other),
        }
    }
    out
}

fn show(output: &[u8]) -> String {
    let mut text = String::new();
    for byte in output {
        match byte {
            b'\r' => {}
            b'\n' => text.push('\n'),
            b' '..=b'~' => text.push(char::from(*byte)),
            other => write!(text, "\\x{other:02x}").unwrap(),
        }
    }
    text
}

fn failure(name: &str) -> RequestError {
    let (needed, got, of) = (2, 1, 3);
    match name {
        "quorum" => RequestError::Unavailable { needed, got, of },
        "unknown" => RequestError::Unknown {
            needed,
            got,
            of,
            stamp: Stamp {
                version: Version {
                    hlc: Hlc(9),
                    node: NodeId(1),
                },
                epoch: Epoch(1),
                content: 0,
            },
        },
        "timeout" => RequestError::TimedOut { needed, got, of },
        "overload" => RequestError::Overloaded("too many requests in flight"),
        "large" => RequestError::TooLarge {
            what: "value",
            bytes: 99,
            limit: 9,
        },
        _ => panic!("no such failure: {name}"),
    }
}

fn change_world(client: &mut Client, line: &str) {
    let (what, argument) = line.split_once(' ').unwrap_or((line, ""));
    match what {
        "!later" => {
            let ms: u64 = argument.parse().unwrap();
            client.now.mono_ns += ms * 1_000_000;
            client.now.wall_us += ms * 1_000;
        }
        "!fail" => client.core.failures.push_back(failure(argument)),
        "!down" => {
            let view = Arc::make_mut(&mut client.core.view);
            let node = NodeId(argument.parse().unwrap());
            view.peers.get_mut(&node).unwrap().alive = false;
        }
        "!waiting" => {
            let view = Arc::make_mut(&mut client.core.view);
            let node = NodeId(argument.parse().unwrap());
            let like: MemberView = view.members[&NodeId(1)].clone();
            let info = MemberInfo {
                resp_addr: "[2001:db8::4]:7104".into(),
                ..like.info
            };
            view.members.insert(node, MemberView { info, ..like });
        }
        "!unborn" => {
            let info = client.core.view.my_info.clone();
            client.core.view = Arc::new(ClusterView::unborn(NodeId(1), info, 1));
        }
        "!reconnect" => {
            client.front.close(CONN);
            client.front.open(CONN, "192.0.2.1:5556".to_owned());
        }
        _ => panic!("no such change: {line}"),
    }
}

/// Runs a script and writes it anew, with the replies it gets now.
fn rerun(script: &str) -> String {
    let mut client = Client::new();
    let mut out = String::new();
    for block in script.trim().split("\n\n") {
        let mut replies = String::new();
        for line in block.lines().take_while(|line| *line != "---") {
            writeln!(out, "{line}").unwrap();
            if line.starts_with('!') {
                change_world(&mut client, line);
            } else if let Some(raw) = line.strip_prefix("raw ") {
                replies.push_str(&show(&client.roundtrip(&unescape(raw))));
            } else if !line.starts_with('#') {
                let line = format!("{line}\r\n");
                replies.push_str(&show(&client.roundtrip(line.as_bytes())));
            }
            if client.front.wants_close(CONN) {
                replies.push_str("(closed)\n");
                change_world(&mut client, "!reconnect");
            }
        }
        if !replies.is_empty() {
            out.push_str("---\n");
        }
        // A blank line would end the block when the script is read again.
        for line in replies.lines() {
            writeln!(out, "{}", if line.is_empty() { "(empty)" } else { line }).unwrap();
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len() + 1);
    out
}

fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testscripts")
        .join(name);
    let recorded = std::fs::read_to_string(&path).unwrap();
    let now = rerun(&recorded);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, now).unwrap();
        return;
    }
    assert!(
        recorded == now,
        "{name} differs. If that is meant, run again with UPDATE_GOLDEN=1. Now:\n{now}"
    );
}

#[test]
fn strings() {
    check("strings.script");
}

#[test]
fn keyspace() {
    check("keyspace.script");
}

#[test]
fn connection() {
    check("connection.script");
}

#[test]
fn cluster() {
    check("cluster.script");
}

#[test]
fn protocol_errors() {
    check("protocol.script");
}

#[test]
fn refusals_and_failures() {
    check("errors.script");
}
