//! What every part of the simulated world shares: the time, the queue of what is to happen, the
//! network, the trace, and the all-seeing watch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use mds_cluster::ClusterView;
use mds_node::sync_io::RootOf;
use mds_types::{Epoch, NodeId, PartitionId, TopologyVersion};

use crate::event::{ClientEvent, Event, NodeEvent, Part, Undo};
use crate::faults::{Counts, Traffic};
use crate::network::{ConnId, Network, Side};
use crate::oracle::{Violation, Watch};
use crate::queue::Queue;
use crate::random::Random;
use crate::trace::Trace;
use crate::under_hood::Loss;

/// The shared part of the world.
pub(crate) struct Env {
    /// Simulated time, nanoseconds since the run began.
    pub(crate) now_ns: u64,
    queue: Queue<Event>,
    /// For the small delays between the threads of a machine.
    random: Random,
    pub(crate) network: Network,
    /// Which machine has which peer address.
    pub(crate) machines: BTreeMap<String, usize>,
    /// Faults that happened.
    pub(crate) counts: Counts,
    /// What the nodes came to do.
    pub(crate) reached: Counts,
    pub(crate) trace: Trace,
    pub(crate) watch: Watch,
    pub(crate) violations: Vec<Violation>,
    /// Machines whose disk may be to blame when the node on them stops.
    pub(crate) sick: BTreeSet<usize>,
    /// Machines whose wall clock was ever made wrong: they may refuse tokens.
    pub(crate) wrong_clocks: BTreeSet<usize>,
    /// The next leader that has sent entries which it has not synced loses its power, for so long,
    /// nanoseconds.
    pub(crate) leader_loss: Option<u64>,
    /// Directories that are gone for good.
    pub(crate) lost: BTreeSet<NodeId>,
    /// Nodes that the administrator has asked to let onto the ring, or to let go.
    pub(crate) welcome: BTreeSet<NodeId>,
    /// The leader looks after the ring by itself.
    pub(crate) is_auto: bool,
    /// In auto mode: nodes that have been members that wait, and so may come onto the ring.
    pub(crate) newcomers: BTreeSet<NodeId>,
    /// In auto mode: nodes that were members and are none any more.
    pub(crate) struck_out: BTreeSet<NodeId>,
    /// The newest agreed ring that any node has shown.
    pub(crate) newest_ring: Option<Arc<ClusterView>>,
    /// Nodes that say they cannot go on, with the start that says so: the world's to handle.
    pub(crate) failures: Vec<((usize, u64), String)>,
    /// Keys of which a replica shows nothing any more: the world's to look at, with all replicas in view.
    pub(crate) gone: Vec<(usize, Bytes)>,
    /// Partitions that a replica has settled up to an epoch, likewise.
    pub(crate) settled: Vec<(usize, PartitionId, Epoch)>,
    /// Questions about sets that are on the way: by connection and number, who will answer, the version of the rings
    /// that they go by, and the roots.
    pub(crate) compared: BTreeMap<(ConnId, u64), (NodeId, TopologyVersion, Vec<RootOf>)>,
    /// A record that a disk has lost, and that has not been found yet.
    pub(crate) lost_record: Option<Loss>,
}

impl Env {
    pub(crate) fn new(random: Random, network: Network, trace: Trace) -> Env {
        Env {
            now_ns: 0,
            queue: Queue::default(),
            random,
            network,
            machines: BTreeMap::new(),
            counts: Counts::default(),
            reached: Counts::default(),
            trace,
            watch: Watch::default(),
            violations: Vec::new(),
            sick: BTreeSet::new(),
            wrong_clocks: BTreeSet::new(),
            leader_loss: None,
            lost: BTreeSet::new(),
            welcome: BTreeSet::new(),
            is_auto: false,
            newcomers: BTreeSet::new(),
            struck_out: BTreeSet::new(),
            newest_ring: None,
            failures: Vec::new(),
            gone: Vec::new(),
            settled: Vec::new(),
            compared: BTreeMap::new(),
            lost_record: None,
        }
    }

    /// Plans an event. What lies in the past happens now.
    pub(crate) fn at(&mut self, at_ns: u64, event: Event) {
        self.queue.push(at_ns.max(self.now_ns), event);
    }

    pub(crate) fn after(&mut self, delay_ns: u64, event: Event) {
        self.at(self.now_ns + delay_ns, event);
    }

    pub(crate) fn node_after(
        &mut self,
        delay_ns: u64,
        (node, life): (usize, u64),
        event: NodeEvent,
    ) {
        self.after(delay_ns, Event::Node { node, life, event });
    }

    /// Takes the next event off the queue, if it is due by `until_ns`, and moves the time there.
    pub(crate) fn next(&mut self, until_ns: u64) -> Option<Event> {
        let (at_ns, event) = self.queue.pop(until_ns)?;
        self.now_ns = at_ns;
        event.note(at_ns, &mut self.trace);
        Some(event)
    }

    /// Forgets the large faults that are still to come, and their ends.
    pub(crate) fn drop_planned_faults(&mut self) {
        self.leader_loss = None;
        self.queue
            .retain(|event| !matches!(event, Event::Act(_) | Event::Undo(_)));
    }

    /// Whether a fault of this machine's disk is still to end.
    pub(crate) fn is_disk_faulty(&self, node: usize) -> bool {
        let ends = [Undo::DiskFull(node), Undo::ReadError(node)];
        self.queue
            .events()
            .any(|event| matches!(event, Event::Undo(undo) if ends.contains(undo)))
    }

    /// How long one thread takes to wake up for another, nanoseconds.
    pub(crate) fn hop_ns(&mut self) -> u64 {
        self.random.between(500, 30_000)
    }

    /// A number of nanoseconds in this range.
    pub(crate) fn some_ns(&mut self, from_ns: u64, to_ns: u64) -> u64 {
        self.random.between(from_ns, to_ns)
    }

    pub(crate) fn line(&mut self, text: impl FnOnce() -> String) {
        self.trace.line(self.now_ns, text);
    }

    /// A node says that it cannot go on. That is right if its disk is to blame.
    pub(crate) fn node_failed(&mut self, name: (usize, u64), reason: String) {
        self.failures.push((name, reason));
    }

    /// Takes note that an invariant is broken.
    pub(crate) fn violated(&mut self, invariant: &'static str, detail: String) {
        self.trace
            .line(self.now_ns, || format!("VIOLATED: {invariant}: {detail}"));
        self.violations.push(Violation {
            at_ns: self.now_ns,
            invariant,
            detail,
        });
    }

    // ---- the network --------------------------------------------------------------------------

    pub(crate) fn send_datagram(&mut self, from: usize, to: &str, bytes: Bytes) {
        let faults = &self.network.faults;
        let rates = (faults.datagram_drop_ppm, faults.datagram_duplicate_ppm);
        let Some(&to) = self.machines.get(to) else {
            return;
        };
        for delay_ns in self
            .network
            .fate(Traffic::Gossip, (from, to), rates, &mut self.counts)
        {
            self.after(
                delay_ns,
                Event::Datagram {
                    to,
                    bytes: bytes.clone(),
                },
            );
        }
    }

    pub(crate) fn send_message(&mut self, from: usize, to: &str, bytes: Bytes) {
        let faults = &self.network.faults;
        let rates = (faults.message_drop_ppm, faults.message_duplicate_ppm);
        let Some(&to) = self.machines.get(to) else {
            return;
        };
        for delay_ns in self
            .network
            .fate(Traffic::Control, (from, to), rates, &mut self.counts)
        {
            self.after(
                delay_ns,
                Event::Message {
                    to,
                    bytes: bytes.clone(),
                },
            );
        }
    }

    /// Sends a part of a stream; it arrives behind all that was sent before.
    pub(crate) fn send_part(&mut self, conn: ConnId, to: Side, part: Part) {
        let at_ns = self
            .network
            .stream_arrival_ns(self.now_ns, conn, to, &mut self.counts);
        self.at(at_ns, Event::Stream { conn, to, part });
    }

    /// Writes data to a stream.
    pub(crate) fn write(&mut self, conn: ConnId, to: Side, bytes: Bytes) {
        let (pieces, is_reset) = self.network.pieces(bytes, &mut self.counts);
        for piece in pieces {
            self.send_part(conn, to, Part::Bytes(piece));
        }
        if is_reset {
            self.send_part(conn, to, Part::Reset);
            self.send_part(conn, to.other(), Part::Reset);
        }
    }

    /// Clients are not part of the faulty network: their way is short and safe.
    pub(crate) fn tell_client(&mut self, client: usize, event: ClientEvent) {
        let delay_ns = self.random.between(20_000, 200_000);
        self.after(delay_ns, Event::Client { client, event });
    }
}
