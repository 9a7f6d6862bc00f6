//! Nothing that comes in from outside breaks a node.

use std::sync::Arc;

use bytes::Bytes;
use mds_storage::FaultyDisk;
use mds_storage::datadir::DataDir;
use mds_types::{ClusterConfig, IncarnationId, MemberInfo};
use proptest::prelude::*;

use super::sim::{MS, SECOND};
use crate::control::{AdminRequest, Control, ControlConfig, ControlError, RingMode};
use crate::gossip::GossipTiming;
use crate::raft::RaftTiming;
use crate::view::Standing;

fn config(info: MemberInfo) -> ControlConfig {
    ControlConfig {
        info,
        seeds: vec!["elsewhere:1".to_owned()],
        raft: RaftTiming::default(),
        gossip: GossipTiming::default(),
        epoch_interval_ms: None,
        seed: 5,
        auto_add_members: true,
        ring_mode: RingMode::Operator,
    }
}

fn open(info: MemberInfo) -> Result<Control, ControlError> {
    let disk = Arc::new(FaultyDisk::new(1));
    let home = DataDir::open_or_create(disk.clone(), "memory", IncarnationId(99)).unwrap();
    let boot = home.next_boot().unwrap();
    Control::open(disk, home, boot, config(info), 0)
}

fn at(addr: &str) -> MemberInfo {
    MemberInfo {
        name: "one".to_owned(),
        peer_addr: addr.to_owned(),
        ..MemberInfo::default()
    }
}

/// A cluster of one node, which leads it.
fn lone() -> (Control, u64) {
    let mut control = open(at("here:1")).unwrap();
    let mut now = 0;
    let init = AdminRequest::Init {
        config: ClusterConfig::default(),
        expected_nodes: 1,
    };
    control.on_admin(now, 1, init);
    while control.view().standing != Standing::Active {
        now = control.next_deadline().unwrap().max(now + MS);
        assert!(now < 10 * SECOND);
        control.turn(now, now / 1_000);
        control.sync_storage(now).unwrap();
    }
    (control, now)
}

#[test]
fn a_configuration_that_cannot_work_is_refused() {
    assert!(matches!(open(at("")), Err(ControlError::Config(_))));
    assert!(matches!(
        open(at(&"h".repeat(129))),
        Err(ControlError::Config(_))
    ));
    let long = "h".repeat(128);
    let too_much = MemberInfo {
        resp_addr: long.clone(),
        http_addr: long.clone(),
        zone: long.clone(),
        ..at(&long)
    };
    let Err(ControlError::Config(reason)) = open(too_much) else {
        panic!("accepted")
    };
    assert!(reason.contains("fit a datagram"), "{reason}");
}

/// The shell may run it on a thread of its own.
#[test]
fn a_control_part_can_be_moved_to_another_thread() {
    let (control, _) = lone();
    let leads = std::thread::spawn(move || control.view().raft.leader == Some(control.view().me));
    assert!(leads.join().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_are_survived(
        packets in prop::collection::vec(
            (0u8..3, 0u8..4, prop::collection::vec(any::<u8>(), 0..200)), 1..20,
        ),
    ) {
        let (mut control, mut now) = lone();
        for (form, kind, bytes) in packets {
            now += MS;
            let framed = match form {
                0 => bytes,
                1 => [b"MG\x01", &[kind][..], &bytes].concat(),
                _ => [&[1u8][..], &bytes].concat(),
            };
            control.on_datagram(now, &framed);
            control.on_message(now, Bytes::from(framed));
            control.turn(now, now / 1_000);
            prop_assert_eq!(control.outputs().fatal, None);
        }
        prop_assert_eq!(&control.view().standing, &Standing::Active);
    }
}
