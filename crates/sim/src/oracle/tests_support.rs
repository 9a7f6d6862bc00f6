//! Small histories, replicas and views for the tests of the checkers.

use bytes::Bytes;
use mds_cluster::ClusterView;
use mds_cluster::view::{MemberStage, MemberView};
use mds_storage::store::Purpose;
use mds_types::{Body, Epoch, Hlc, IncarnationId, MemberInfo, NodeId, Record, Version};

use crate::faults::FaultConfig;
use crate::history::{Ending, History, Kind, Operation};
use crate::random::Random;

use super::arrivals::Arrival;

pub(super) fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number}"))
}

pub(super) fn version(hlc: u64) -> Version {
    Version {
        hlc: Hlc(hlc),
        node: NodeId(1),
    }
}

pub(super) fn record(key_number: u64, hlc: u64) -> Record {
    record_of(key_number, hlc, &Bytes::from_static(b"value"))
}

pub(super) fn record_of(key_number: u64, hlc: u64, value: &Bytes) -> Record {
    Record {
        key: key(key_number),
        version: version(hlc),
        epoch: Epoch(1),
        expires_at_ms: None,
        body: Body::Value(value.clone()),
    }
}

/// One operation after the other, each taking ten nanoseconds.
fn operation(history: &mut History, key_number: u64, kind: Kind, (r, w): (u8, u8), ending: Ending) {
    let invoked_ns = history.operations.len() as u64 * 20;
    let operation = Operation {
        client: 0,
        is_session: false,
        key: key(key_number),
        kind,
        expires_at_ms: None,
        read_quorum: r,
        write_quorum: w,
        invoked_ns,
        returned_ns: None,
        is_clock_trusted: true,
        ending: Ending::Pending,
    };
    let index = history.begin(operation);
    history.end(index, invoked_ns + 10, ending);
}

/// A write; without a version its end is unknown. Returns the value.
pub(super) fn put(history: &mut History, key: u64, w: u8, version: Option<Version>) -> Bytes {
    let value = history.next_value(&mut Random::new(0), &FaultConfig::none());
    let ending = version.map_or(Ending::Unknown, |version| Ending::Written { version });
    operation(
        history,
        key,
        Kind::Put {
            value: value.clone(),
        },
        (2, w),
        ending,
    );
    value
}

/// A write that failed. Returns the value.
pub(super) fn fail(history: &mut History, key: u64) -> Bytes {
    let value = history.next_value(&mut Random::new(0), &FaultConfig::none());
    operation(
        history,
        key,
        Kind::Put {
            value: value.clone(),
        },
        (2, 2),
        Ending::Failed,
    );
    value
}

/// A read of a version and value, or of nothing.
pub(super) fn get(history: &mut History, key: u64, r: u8, found: Option<(u64, &Bytes)>) {
    let ending = Ending::Read {
        version: found.map(|(hlc, _)| version(hlc)),
        value: found.map(|(_, value)| value.clone()),
    };
    operation(history, key, Kind::Get, (r, 2), ending);
}

/// What a node shows that is part of nothing yet.
pub(super) fn view(node: u64) -> ClusterView {
    ClusterView::unborn(NodeId(node), MemberInfo::default(), 1)
}

/// A member on the ring.
pub(super) fn member() -> MemberView {
    MemberView {
        incarnation: IncarnationId(1),
        boot: 1,
        boot_nonce: 1,
        info: MemberInfo::default(),
        stage: MemberStage::Active,
    }
}

/// A client's write that a replica has taken, where there was nothing and nothing is settled.
pub(super) fn arrival(key_number: u64, hlc: u64, epoch: u64) -> Arrival {
    Arrival {
        key: key(key_number),
        version: version(hlc),
        epoch: Epoch(epoch),
        purpose: Purpose::Write,
        settled: Epoch(0),
        before: Some(None),
        is_durable: true,
    }
}
