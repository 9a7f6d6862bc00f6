//! Gossip by itself: its datagrams, and who is let in.

use std::collections::BTreeMap;

use foca::{Header, Member, Message};
use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;

fn info(addr: &str) -> MemberInfo {
    MemberInfo {
        peer_addr: addr.to_owned(),
        weight: 100,
        ..MemberInfo::default()
    }
}

fn gossip(number: u64, cluster: ClusterId, seeds: &[&str]) -> Gossip {
    let me = Me {
        incarnation: IncarnationId(u128::from(number)),
        boot: 1,
        cluster,
        info: Arc::new(info(&format!("host-{number}:1"))),
    };
    let seeds = seeds.iter().map(|seed| (*seed).to_owned()).collect();
    Gossip::new(
        me,
        &GossipTiming::default(),
        seeds,
        SplitMix64::new(number),
        0,
    )
}

/// Delivers everything at once, for a while.
fn run(nodes: &mut BTreeMap<String, Gossip>, from_ms: u64, to_ms: u64) {
    for ms in from_ms..to_ms {
        let now = ms * MS;
        let mut sent = Vec::new();
        for node in nodes.values_mut() {
            node.turn(now);
            sent.extend(node.take_datagrams());
        }
        for (addr, bytes) in sent {
            assert!(bytes.len() <= DATAGRAM_BYTES_MAX);
            if let Some(node) = nodes.get_mut(&addr) {
                node.on_datagram(now, &bytes);
            }
        }
    }
}

fn knows(nodes: &BTreeMap<String, Gossip>, who: u64, whom: u64) -> bool {
    let peer = nodes[&format!("host-{who}:1")].peers().get(&NodeId(whom));
    peer.is_some_and(|peer| peer.alive)
}

#[test]
fn a_node_without_a_cluster_is_no_bridge_between_two() {
    let (ours, theirs) = (ClusterId(1), ClusterId(2));
    let mut nodes: BTreeMap<String, Gossip> = [
        gossip(1, ours, &["host-3:1"]),
        gossip(2, theirs, &["host-3:1"]),
        gossip(3, ClusterId::NONE, &["host-1:1", "host-2:1"]),
    ]
    .into_iter()
    .map(|node| (node.foca.identity().info.peer_addr.clone(), node))
    .collect();
    run(&mut nodes, 0, 10_000);
    assert!(knows(&nodes, 3, 1) && knows(&nodes, 3, 2));
    assert!(knows(&nodes, 1, 3) && knows(&nodes, 2, 3));
    assert!(!knows(&nodes, 1, 2) && !knows(&nodes, 2, 1));
    assert!(nodes["host-1:1"].counters().foreign > 0);
    assert_eq!(nodes["host-1:1"].counters().malformed, 0);

    // Taken in by one of them, it forgets the other and is forgotten by it.
    nodes.get_mut("host-3:1").unwrap().adopt(10_000 * MS, ours);
    run(&mut nodes, 10_000, 30_000);
    assert!(knows(&nodes, 3, 1) && knows(&nodes, 1, 3));
    assert!(!knows(&nodes, 3, 2) && !knows(&nodes, 2, 3));
    assert_eq!(nodes["host-1:1"].peers()[&NodeId(3)].id.cluster, ours);
}

#[test]
fn a_copy_of_this_nodes_directory_is_noticed() {
    let mut node = gossip(1, ClusterId::NONE, &[]);
    let mut knock = |boot: u64, addr: &str| {
        let id = Id {
            boot,
            info: Arc::new(info(addr)),
            ..node.foca.identity().clone()
        };
        let knock = [b"MG\x01\x01", &IdCodec::encode_id(&id).unwrap()[..]].concat();
        node.on_datagram(0, &knock);
        (node.saw_double(), node.take_datagrams().len())
    };
    assert_eq!(
        knock(1, "host-1:1"),
        (false, 0),
        "its own, through the seed list"
    );
    assert_eq!(
        knock(0, "host-1:1"),
        (false, 0),
        "its own, of an earlier start"
    );
    assert_eq!(knock(1, "host-2:1"), (true, 0));
    assert_eq!(knock(2, "host-1:1"), (true, 0));
}

/// The longest that a node may say of itself.
fn longest(number: u128) -> Id {
    let text = "x".repeat((INFO_BYTES_MAX - 5 - 5 * 2) / 5);
    let info = MemberInfo {
        name: text.clone(),
        peer_addr: text.clone(),
        resp_addr: text.clone(),
        http_addr: text.clone(),
        zone: text,
        weight: u32::MAX,
    };
    assert_eq!(info_bytes(&info), INFO_BYTES_MAX);
    Id {
        incarnation: IncarnationId(u128::MAX - number),
        boot: u64::MAX,
        generation: u32::MAX,
        cluster: ClusterId(u128::MAX),
        info: Arc::new(info),
    }
}

#[test]
fn the_longest_message_with_two_news_fits_a_datagram() {
    let header = Header {
        src: longest(1),
        src_incarnation: u16::MAX,
        dst: longest(2),
        message: Message::PingReq {
            target: longest(3),
            probe_number: u8::MAX,
        },
    };
    let mut bytes = Vec::new();
    IdCodec.encode_header(&header, &mut bytes).unwrap();
    let member = Member::new(longest(4), u16::MAX, foca::State::Suspect);
    IdCodec.encode_member(&member, &mut bytes).unwrap();
    IdCodec.encode_member(&member, &mut bytes).unwrap();
    assert!(
        PREFIX_BYTES + 2 + bytes.len() <= DATAGRAM_BYTES_MAX,
        "{} bytes",
        bytes.len()
    );

    let mut rest = &bytes[..];
    let read = IdCodec.decode_header(&mut rest).unwrap();
    assert_eq!(
        (&read.src, &read.dst, &read.message),
        (&header.src, &header.dst, &header.message)
    );
    assert_eq!(read.src.info, header.src.info, "a sender says everything");
    let read = IdCodec.decode_member(&mut rest).unwrap();
    assert_eq!(
        (read.id(), &read.id().info),
        (member.id(), &member.id().info)
    );
}

#[test]
fn an_encoder_leaves_no_half_message() {
    let member = Member::alive(longest(1));
    let mut full = Vec::new();
    IdCodec.encode_member(&member, &mut full).unwrap();
    let mut narrow = Vec::new().limit(full.len() - 1);
    assert_eq!(
        IdCodec.encode_member(&member, &mut narrow),
        Err(CodecError::Full)
    );
    assert!(narrow.get_ref().is_empty());
}

#[test]
fn a_later_start_wins_over_any_generation() {
    let first = Id {
        boot: 1,
        generation: 9,
        ..longest(1)
    };
    let second = Id {
        boot: 2,
        generation: 0,
        ..longest(1)
    };
    use foca::Identity;
    assert!(second.win_addr_conflict(&first) && !first.win_addr_conflict(&second));
    let renewed = first.renew().unwrap();
    assert!(renewed.win_addr_conflict(&first) && !renewed.win_addr_conflict(&second));
    assert_eq!(
        longest(1).renew().map(|id| id.generation),
        None,
        "and never wraps around"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(
        kind in 0u8..4, bytes in prop::collection::vec(any::<u8>(), 0..1500),
    ) {
        let mut node = gossip(1, ClusterId(1), &[]);
        node.on_datagram(0, &bytes);
        node.on_datagram(0, &[b"MG\x01", &[kind][..], &bytes].concat());
        let _ = IdCodec::decode_id(&bytes);
        let _ = IdCodec.decode_header(&bytes[..]);
        let _ = IdCodec.decode_member(&bytes[..]);
    }

    /// A real message with some bytes changed or cut off.
    #[test]
    fn damaged_messages_are_survived(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut sender = gossip(2, ClusterId(1), &["host-1:1"]);
        sender.turn(0);
        let (_, knock) = sender.take_datagrams().remove(0);
        let mut bytes = knock.to_vec();
        for (at, flip) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        let mut node = gossip(1, ClusterId(1), &[]);
        node.on_datagram(0, &bytes);
        node.turn(MS);
    }
}
