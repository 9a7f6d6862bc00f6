//! Whatever arrives in whatever pieces, and whatever completes in whatever order.

use bytes::{Bytes, BytesMut};
use mds_node::api::Op;
use mds_node::front::Frontend;
use mds_types::limits::VALUE_BYTES_MAX;
use mds_types::{Hlc, NodeId, Version};
use proptest::prelude::*;

use super::{CONN, Client};
use crate::resp::codec::{Command, Parser};
use crate::resp::conn::{OUTPUT_BYTES_MAX, OUTPUT_BYTES_PAUSE, PIPELINE_MAX};
use crate::resp::jobs::GATHER_IN_FLIGHT_MAX;

fn encode(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Commands over few keys, so that they meet each other; deterministic ones only.
fn any_command() -> impl Strategy<Value = Vec<String>> {
    let key = || prop::sample::select(vec!["a", "b", "c", "{a}d"]).prop_map(str::to_owned);
    let words = |name: &'static str| {
        move |rest: Vec<String>| {
            std::iter::once(name.to_owned())
                .chain(rest)
                .collect::<Vec<_>>()
        }
    };
    let keys = || prop::collection::vec(key(), 1..4);
    let pairs = prop::collection::vec((key(), "[0-9]{0,3}"), 1..4).prop_map(|pairs| {
        pairs
            .into_iter()
            .flat_map(|(key, value)| [key, value])
            .collect()
    });
    prop_oneof![
        4 => (key(), "[ -~]{0,9}").prop_map(|(key, value)| vec!["SET".to_owned(), key, value]),
        4 => key().prop_map(|key| vec!["GET".to_owned(), key]),
        2 => keys().prop_map(words("DEL")),
        1 => keys().prop_map(words("EXISTS")),
        1 => keys().prop_map(words("MGET")),
        1 => pairs.prop_map(words("MSET")),
        1 => key().prop_map(|key| vec!["STRLEN".to_owned(), key]),
        1 => Just(vec!["DBSIZE".to_owned()]),
        1 => Just(vec!["PING".to_owned()]),
        1 => Just(vec!["WAIT".to_owned(), "1".to_owned(), "0".to_owned()]),
        1 => prop::sample::select(vec!["2", "3"]).prop_map(|v| vec!["HELLO".to_owned(), v.to_owned()]),
        1 => Just(vec!["NOSUCH".to_owned(), "x".to_owned()]),
        1 => Just(vec!["FLUSHALL".to_owned()]),
    ]
}

fn encode_all(commands: &[Vec<String>]) -> Vec<Vec<u8>> {
    let encode_one =
        |words: &Vec<String>| encode(&words.iter().map(String::as_bytes).collect::<Vec<_>>());
    commands.iter().map(encode_one).collect()
}

/// What the commands say if each waits for the one before.
fn one_by_one(commands: &[Vec<u8>]) -> Vec<u8> {
    let mut client = Client::new();
    commands
        .iter()
        .flat_map(|command| client.roundtrip(command))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// A pipeline cut anywhere, answered in any order, says what its commands say one by one.
    #[test]
    fn a_pipeline_behaves_as_if_its_commands_ran_in_turn(
        commands in prop::collection::vec(any_command(), 1..40),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        picks in prop::collection::vec((any::<usize>(), 0usize..4), 0..200),
    ) {
        let commands = encode_all(&commands);
        let expected = one_by_one(&commands);
        let bytes = commands.concat();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut client = Client::new();
        let mut output = Vec::new();
        let mut picks = picks.into_iter();
        for piece in cuts.windows(2) {
            client.send(&bytes[piece[0]..piece[1]]);
            // Some are answered before more bytes come.
            if let Some((pick, count)) = picks.next() {
                for extra in 0..count {
                    client.answer_one(pick.wrapping_add(extra));
                }
                output.extend(client.output());
            }
        }
        loop {
            let (pick, _) = picks.next().unwrap_or((0, 0));
            if !client.answer_one(pick) {
                break;
            }
        }
        output.extend(client.output());
        prop_assert_eq!(
            String::from_utf8_lossy(&output).into_owned(),
            String::from_utf8_lossy(&expected).into_owned()
        );
        prop_assert_eq!(client.front.in_flight(), 0);
        prop_assert!(!client.front.is_paused(CONN));
    }

    #[test]
    fn no_bytes_panic(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6),
        picks in prop::collection::vec(any::<usize>(), 0..20),
    ) {
        let mut client = Client::new();
        for piece in pieces {
            client.send(&piece);
        }
        for pick in picks {
            client.answer_one(pick);
        }
    }

    /// Commands with a few bytes changed: nearer to the parser's heart than noise.
    #[test]
    fn no_damaged_command_panics(
        commands in prop::collection::vec(any_command(), 1..6),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = encode_all(&commands).concat();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let mut client = Client::new();
        client.roundtrip(&bytes);
    }

    /// Any arguments at all to any command name at all.
    #[test]
    fn no_arguments_panic(
        name in prop::sample::select(vec![
            "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "HELLO", "INFO", "KEYS", "SCAN", "SET",
            "SETEX", "GETRANGE", "MDS.CONSISTENCY", "MSET", "WAIT", "SELECT", "FLUSHALL",
        ]),
        words in prop::collection::vec(prop_oneof![
            prop::sample::select(vec![
                "0", "-1", "9223372036854775807", "-9223372036854775808", "EX", "PXAT", "MATCH",
                "COUNT", "TYPE", "GETKEYSINSLOT", "SETINFO", "GET", "R", "W", "TIMEOUT", "SETNAME",
            ]).prop_map(|word| word.as_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 0..12),
        ], 0..6),
    ) {
        let mut command: Vec<&[u8]> = vec![name.as_bytes()];
        command.extend(words.iter().map(Vec::as_slice));
        let mut client = Client::new();
        let output = client.roundtrip(&encode(&command));
        prop_assert!(output.ends_with(b"\r\n"));
    }

    /// The parser takes back what was encoded, cut anywhere.
    #[test]
    fn the_parser_reads_what_clients_write(
        words in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = encode(&words.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let cut = cut.index(bytes.len());
        let (mut parser, mut command) = (Parser::default(), Command::default());
        let mut input = BytesMut::from(&bytes[..cut]);
        prop_assert_eq!(parser.next(&mut input, &mut command), Ok(false));
        input.extend_from_slice(&bytes[cut..]);
        prop_assert_eq!(parser.next(&mut input, &mut command), Ok(true));
        let read: Vec<Vec<u8>> = command.args_from(0).map(<[u8]>::to_vec).collect();
        prop_assert_eq!(read, words);
        prop_assert!(input.is_empty());
    }
}

#[test]
fn a_long_pipeline_is_bounded_and_loses_nothing() {
    let mut client = Client::new();
    let total = 5 * PIPELINE_MAX;
    for index in 0..total {
        client.send(&encode(&[b"GET", format!("key{index}").as_bytes()]));
    }
    assert_eq!(client.front.in_flight(), PIPELINE_MAX);
    assert!(client.front.is_paused(CONN));
    client.answer_all();
    assert_eq!(client.output(), b"$-1\r\n".repeat(total));
    assert!(!client.front.is_paused(CONN));
}

#[test]
fn a_command_of_many_keys_is_bounded_too() {
    let mut client = Client::new();
    let keys: Vec<String> = (0..2_000).map(|index| format!("key{index}")).collect();
    let mut words: Vec<&[u8]> = vec![b"MGET"];
    words.extend(keys.iter().map(|key| key.as_bytes()));
    client.send(&encode(&words));
    assert_eq!(client.front.in_flight(), GATHER_IN_FLIGHT_MAX as usize);
    client.answer_all();
    let expected = format!("*2000\r\n{}", "$-1\r\n".repeat(2_000));
    assert_eq!(String::from_utf8(client.output()).unwrap(), expected);
}

#[test]
fn a_client_that_does_not_read_is_paused_and_then_closed() {
    let mut client = Client::new();
    client.core.records.clear();
    let value = vec![b'v'; VALUE_BYTES_MAX];
    client.roundtrip(&encode(&[b"SET", b"k", &value]));
    assert!(!client.front.is_paused(CONN));
    client.send(&encode(&[b"GET", b"k"]));
    client.answer_all();
    assert!(
        client.front.is_paused(CONN),
        "more than {OUTPUT_BYTES_PAUSE} bytes wait"
    );
    // What is sent now is not even started.
    client.send(&encode(&[b"GET", b"k"]));
    assert_eq!(client.front.in_flight(), 0);
    client.output();
    client.send(b"");
    assert_eq!(client.front.in_flight(), 1);
    client.answer_all();
    client.output();

    // What was in flight before there was any output is answered, up to the limit.
    let many = OUTPUT_BYTES_MAX / VALUE_BYTES_MAX + 2;
    client.send(&encode(&[b"GET", b"k"]).repeat(many));
    assert_eq!(client.front.in_flight(), many);
    assert!(!client.front.must_close_now(CONN));
    client.answer_all();
    assert!(client.front.must_close_now(CONN));
    assert!(client.front.wants_close(CONN));
    assert_eq!(client.front.take_output(CONN), None);
    assert!(client.front.take_dirty().contains(&CONN));
}

#[test]
fn a_stalled_command_goes_on_when_the_output_is_taken() {
    let mut client = Client::new();
    // The second waits for the first, which is answered while a lot of output waits.
    client.send(&[encode(&[b"SET", b"k", b"v"]), encode(&[b"GET", b"k"])].concat());
    assert_eq!(client.front.in_flight(), 1);
    client.front.set_backlog(CONN, OUTPUT_BYTES_PAUSE + 1);
    client.answer_all();
    assert!(client.front.is_paused(CONN));
    assert_eq!(client.front.in_flight(), 0);
    client.front.set_backlog(CONN, 0);
    assert!(!client.front.is_paused(CONN), "or nobody would start it");
    assert_eq!(client.roundtrip(b""), b"+OK\r\n$1\r\nv\r\n");
}

#[test]
fn the_backlog_counts_as_output() {
    let mut client = Client::new();
    client.front.set_backlog(CONN, OUTPUT_BYTES_PAUSE + 1);
    assert!(client.front.is_paused(CONN));
    client.front.set_backlog(CONN, 0);
    assert!(!client.front.is_paused(CONN));
}

#[test]
fn answers_for_a_closed_connection_reach_nobody_else() {
    let mut client = Client::new();
    client.send(&encode(&[b"SET", b"k", b"v"]));
    client.send(&encode(&[b"MGET", b"a", b"b"]));
    client.send(&encode(&[b"DBSIZE"]));
    client.front.close(CONN);
    client.front.open(CONN, "192.0.2.2:1".to_owned());
    client.send(&encode(&[b"PING"]));
    client.answer_all();
    assert_eq!(client.output(), b"+PONG\r\n");
    assert_eq!(client.front.in_flight(), 0);
    assert_eq!(client.text("get k"), "$1\r\nv\r\n");
}

#[test]
fn quit_lets_earlier_commands_finish_and_ignores_later_ones() {
    let mut client = Client::new();
    client.send(b"get k\r\nquit\r\nping\r\n");
    assert!(!client.front.wants_close(CONN));
    client.answer_all();
    assert!(client.front.wants_close(CONN));
    assert_eq!(client.output(), b"$-1\r\n+OK\r\n");
}

#[test]
fn connections_with_output_are_named_once() {
    let mut client = Client::new();
    client.send(b"get a\r\nget b\r\n");
    client.front.take_dirty();
    client.answer_all();
    assert_eq!(client.front.take_dirty(), [CONN]);
    assert_eq!(client.front.take_dirty(), [] as [u64; 0]);
}

#[test]
fn requests_carry_the_greatest_version_seen_and_the_chosen_quorums() {
    let mut client = Client::new();
    client.text("set k v");
    client.text("mds.consistency r 3 w 1 timeout 250");
    client.text("get k");
    let options = &client.core.log.last().unwrap().options;
    let first_stamp = Version {
        hlc: Hlc(1),
        node: NodeId(1),
    };
    assert_eq!(options.seen, Some(first_stamp));
    assert_eq!(options.read_quorum, Some(3));
    assert_eq!(options.write_quorum, Some(1));
    assert_eq!(options.timeout_ms, Some(250));
}

#[test]
fn without_a_session_reads_carry_no_token_and_writes_still_do() {
    let mut client = Client::new();
    client.text("set k v");
    assert_eq!(client.text("mds.consistency r 1 session no"), "+OK\r\n");
    client.text("get k");
    assert_eq!(client.core.log.last().unwrap().options.seen, None);
    client.text("set k w");
    assert!(client.core.log.last().unwrap().options.seen.is_some());
    assert!(
        client
            .text("mds.consistency")
            .contains("session\r\n$2\r\nno")
    );
    assert!(
        client
            .text("mds.consistency session perhaps")
            .starts_with("-ERR SESSION")
    );
    client.text("mds.consistency default");
    client.text("get k");
    assert!(client.core.log.last().unwrap().options.seen.is_some());
}

#[test]
fn a_deletion_reads_first_and_writes_even_if_nothing_was_there() {
    let mut client = Client::new();
    assert_eq!(client.text("del k k"), ":0\r\n");
    let ops: Vec<Op> = client
        .core
        .log
        .drain(..)
        .map(|request| request.op)
        .collect();
    let key = Bytes::from_static(b"k");
    assert_eq!(ops, [Op::Get { key: key.clone() }, Op::Delete { key }]);
}

#[test]
fn small_values_do_not_hold_on_to_the_input() {
    let mut client = Client::new();
    let padding = vec![b'x'; 100_000];
    let mut bytes = encode(&[b"SET", b"k", b"v"]);
    bytes.extend(encode(&[b"ECHO", &padding]));
    client.roundtrip(&bytes);
    client.core.log.clear();
    let record = client.core.records.remove(b"k".as_slice()).unwrap();
    let value = record.value().unwrap().clone();
    drop(record);
    // Key and value lie together in an allocation of their own.
    assert!(value.is_unique() && value.try_into_mut().unwrap().capacity() < 100);
}
