//! The simulated network: datagrams and control messages, which may be lost, doubled and overtaken,
//! and data connections, which are streams.
//!
//! A stream behaves as TCP does towards its user: bytes arrive in order or not at all, cut into
//! other pieces than they were written in. While a direction is cut they wait and are sent again,
//! with growing pauses; so what was written before a partition may arrive seconds later. A process
//! that dies resets its streams. A machine without power says nothing; its peers hear of it when it
//! is up again and does not know their connections.
//!
//! The network only decides fates and keeps the connections; the world delivers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::event::Part;
use crate::faults::{Counts, FaultConfig, MILLISECOND_NS, Traffic};
use crate::random::Random;

/// Bytes that the kernels on both sides take before the writer has to wait.
const SOCKET_BYTES: usize = 256 * 1024;

/// And so many if the reader does not read.
const FULL_SOCKET_BYTES: usize = 2 * 1024;

/// What was not acknowledged is first sent again after this long, nanoseconds.
const RESEND_NS_MIN: u64 = 200 * MILLISECOND_NS;

/// And never later than this, nanoseconds.
const RESEND_NS_MAX: u64 = 1_600 * MILLISECOND_NS;

/// Names a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ConnId(pub(crate) u64);

/// One of the two ends of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Side {
    Dialler,
    Acceptor,
}

impl Side {
    pub(crate) fn other(self) -> Side {
        match self {
            Side::Dialler => Side::Acceptor,
            Side::Acceptor => Side::Dialler,
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// Who stands at an end: a certain start of a node, or nobody any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) node: usize,
    pub(crate) life: u64,
    pub(crate) is_gone: bool,
}

/// What flows in one direction.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// Nothing arrives before this.
    next_at_ns: u64,
    /// Bytes written and not yet delivered.
    pub(crate) in_flight: usize,
    /// What did not get through and will be sent again, in order.
    pub(crate) waiting: VecDeque<Part>,
    resend_ns: u64,
    /// The writer has more than the sockets take.
    pub(crate) is_blocked: bool,
}

/// A data connection.
#[derive(Debug)]
pub(crate) struct Conn {
    ends: [End; 2],
    flows: [Flow; 2],
}

impl Conn {
    pub(crate) fn end(&self, side: Side) -> &End {
        &self.ends[side.index()]
    }

    pub(crate) fn end_mut(&mut self, side: Side) -> &mut End {
        &mut self.ends[side.index()]
    }

    /// What flows towards `side`.
    pub(crate) fn flow_to(&mut self, side: Side) -> &mut Flow {
        &mut self.flows[side.index()]
    }

    /// The pause before what waits is sent again; longer each time.
    pub(crate) fn next_resend_ns(&mut self, to: Side) -> u64 {
        let flow = self.flow_to(to);
        flow.resend_ns = (flow.resend_ns * 2).clamp(RESEND_NS_MIN, RESEND_NS_MAX);
        flow.resend_ns
    }

    /// Something got through: the next pause is short again.
    pub(crate) fn has_got_through(&mut self, to: Side) {
        self.flow_to(to).resend_ns = 0;
    }
}

/// The network between the nodes of a run.
pub(crate) struct Network {
    pub(crate) faults: FaultConfig,
    random: Random,
    /// How many actions cut each kind of traffic of each ordered pair at present.
    cuts: BTreeMap<(Traffic, (usize, usize)), u32>,
    /// By how much ordered pairs are slower at present, nanoseconds.
    slow_links: BTreeMap<(usize, usize), u64>,
    /// How many actions keep the second of each ordered pair from reading what the first sends.
    unread: BTreeMap<(usize, usize), u32>,
    /// By how much the syncs of machines take longer at present, nanoseconds.
    slow_disks: BTreeMap<usize, u64>,
    conns: BTreeMap<ConnId, Conn>,
    next_conn: u64,
}

impl Network {
    pub(crate) fn new(random: Random, faults: FaultConfig) -> Network {
        Network {
            faults,
            random,
            cuts: BTreeMap::new(),
            slow_links: BTreeMap::new(),
            unread: BTreeMap::new(),
            slow_disks: BTreeMap::new(),
            conns: BTreeMap::new(),
            next_conn: 0,
        }
    }

    pub(crate) fn cut(&mut self, traffic: Traffic, pairs: &[(usize, usize)]) {
        for &pair in pairs {
            *self.cuts.entry((traffic, pair)).or_default() += 1;
        }
    }

    pub(crate) fn mend(&mut self, traffic: Traffic, pairs: &[(usize, usize)]) {
        for &pair in pairs {
            if let Some(count) = self.cuts.get_mut(&(traffic, pair)) {
                *count -= 1;
                if *count == 0 {
                    self.cuts.remove(&(traffic, pair));
                }
            }
        }
    }

    /// Makes a link slower; by nothing: as fast as the others again.
    pub(crate) fn slow_link(&mut self, pair: (usize, usize), by_ns: u64) {
        self.slow_links.insert(pair, by_ns);
    }

    /// Makes the syncs of a machine's disk slower; by nothing: as fast as others again.
    pub(crate) fn slow_disk(&mut self, node: usize, by_ns: u64) {
        self.slow_disks.insert(node, by_ns);
    }

    /// The second of a pair does not read any more what the first sends it on data connections.
    pub(crate) fn stop_reading(&mut self, pair: (usize, usize)) {
        *self.unread.entry(pair).or_default() += 1;
    }

    pub(crate) fn read_again(&mut self, pair: (usize, usize)) {
        if let Some(count) = self.unread.get_mut(&pair) {
            *count -= 1;
            if *count == 0 {
                self.unread.remove(&pair);
            }
        }
    }

    pub(crate) fn is_read(&self, pair: (usize, usize)) -> bool {
        !self.unread.contains_key(&pair)
    }

    /// Bytes that the kernels take from the first for the second before the writer has to wait.
    pub(crate) fn socket_bytes(&self, pair: (usize, usize)) -> usize {
        match self.is_read(pair) {
            true => SOCKET_BYTES,
            false => FULL_SOCKET_BYTES,
        }
    }

    /// All cuts end, and the network is good from now on.
    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
        self.slow_links.clear();
        self.slow_disks.clear();
        self.unread.clear();
        self.faults = FaultConfig::none();
    }

    pub(crate) fn is_cut(&self, traffic: Traffic, pair: (usize, usize)) -> bool {
        [traffic, Traffic::Everything]
            .iter()
            .any(|&traffic| self.cuts.contains_key(&(traffic, pair)))
    }

    fn slower_ns(&self, pair: (usize, usize)) -> u64 {
        self.slow_links.get(&pair).copied().unwrap_or(0)
    }

    /// How long one packet takes.
    pub(crate) fn delay_ns(&mut self, counts: &mut Counts) -> u64 {
        let faults = &self.faults;
        if self.random.chance(faults.late_ppm) {
            counts.count("late packet");
            return self.random.below(faults.late_ms_max * MILLISECOND_NS);
        }
        self.random
            .between(faults.delay_us_min * 1_000, faults.delay_us_max * 1_000)
    }

    /// How long one datagram or message takes: it may even arrive when nobody thinks of it any more.
    fn packet_ns(&mut self, counts: &mut Counts) -> u64 {
        if self.random.chance(self.faults.very_late_ppm) {
            counts.count("very late packet");
            return self
                .random
                .below(self.faults.very_late_ms_max * MILLISECOND_NS);
        }
        self.delay_ns(counts)
    }

    /// When the copies of a packet arrive, counted from now: none if it is lost.
    pub(crate) fn fate(
        &mut self,
        traffic: Traffic,
        pair: (usize, usize),
        (drop_ppm, duplicate_ppm): (u32, u32),
        counts: &mut Counts,
    ) -> Vec<u64> {
        if self.is_cut(traffic, pair) {
            counts.count("packet cut off");
            return Vec::new();
        }
        if self.random.chance(drop_ppm) {
            counts.count("packet lost");
            return Vec::new();
        }
        let slower_ns = self.slower_ns(pair);
        let mut copies = vec![self.packet_ns(counts) + slower_ns];
        if self.random.chance(duplicate_ppm) {
            counts.count("packet doubled");
            copies.push(self.packet_ns(counts) + slower_ns);
        }
        copies
    }

    // ---- connections --------------------------------------------------------------------------

    pub(crate) fn dial(&mut self, from: (usize, u64), to: usize) -> ConnId {
        self.next_conn += 1;
        let id = ConnId(self.next_conn);
        let end = |node, life| End {
            node,
            life,
            is_gone: false,
        };
        // The life at the other end is filled in when it accepts.
        let conn = Conn {
            ends: [end(from.0, from.1), end(to, 0)],
            flows: Default::default(),
        };
        self.conns.insert(id, conn);
        id
    }

    pub(crate) fn conn(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.conns.get_mut(&id)
    }

    /// An end leaves; the connection is forgotten when both have.
    pub(crate) fn leave(&mut self, id: ConnId, side: Side) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.end_mut(side).is_gone = true;
            if conn.ends.iter().all(|end| end.is_gone) {
                self.conns.remove(&id);
            }
        }
    }

    /// Connections at which this start of a node stands, with its side.
    pub(crate) fn conns_of(&self, node: usize, life: u64) -> Vec<(ConnId, Side)> {
        let mut found = Vec::new();
        for (&id, conn) in &self.conns {
            for side in [Side::Dialler, Side::Acceptor] {
                let end = conn.end(side);
                if end.node == node && end.life == life && !end.is_gone {
                    found.push((id, side));
                }
            }
        }
        found
    }

    /// Connections between two nodes.
    pub(crate) fn conns_between(&self, one: usize, other: usize) -> Vec<ConnId> {
        let pair = BTreeSet::from([one, other]);
        let between = |conn: &Conn| BTreeSet::from(conn.ends.each_ref().map(|e| e.node)) == pair;
        self.conns
            .iter()
            .filter(|(_, conn)| between(conn))
            .map(|(&id, _)| id)
            .collect()
    }

    /// When the next thing sent towards an end may arrive: never before what was sent earlier.
    pub(crate) fn stream_arrival_ns(
        &mut self,
        now_ns: u64,
        id: ConnId,
        to: Side,
        counts: &mut Counts,
    ) -> u64 {
        let slower_ns = self.conns.get(&id).map_or(0, |conn| {
            let pair = (conn.end(to.other()).node, conn.end(to).node);
            self.slower_ns(pair)
        });
        let at_ns = now_ns + self.delay_ns(counts) + slower_ns;
        match self.conns.get_mut(&id) {
            Some(conn) => {
                let flow = conn.flow_to(to);
                flow.next_at_ns = flow.next_at_ns.max(at_ns);
                flow.next_at_ns
            }
            None => at_ns,
        }
    }

    /// Cuts one write into the pieces it arrives in. The flag says that the connection is reset
    /// behind them; a rest is lost then.
    pub(crate) fn pieces(&mut self, bytes: Bytes, counts: &mut Counts) -> (Vec<Bytes>, bool) {
        let (most, reset_ppm) = (self.faults.stream_pieces_max, self.faults.stream_reset_ppm);
        let is_reset = self.random.chance(reset_ppm);
        let mut rest = bytes;
        if is_reset {
            counts.count("stream reset in the middle");
            rest.truncate(self.random.below(rest.len() as u64) as usize);
        }
        let mut pieces = Vec::new();
        for _ in 1..self.random.between(1, most) {
            if rest.len() > 1 {
                let at = self.random.between(1, rest.len() as u64 - 1) as usize;
                pieces.push(rest.split_to(at));
            }
        }
        if !rest.is_empty() {
            pieces.push(rest);
        }
        (pieces, is_reset)
    }

    /// How long the coming sync of a machine's disk takes.
    pub(crate) fn sync_ns(&mut self, node: usize, counts: &mut Counts) -> u64 {
        let slower_ns = self.slow_disks.get(&node).copied().unwrap_or(0);
        let faults = &self.faults;
        if self.random.chance(faults.slow_sync_ppm) {
            counts.count("slow sync");
            return slower_ns + self.random.below(faults.slow_sync_ms_max * MILLISECOND_NS);
        }
        let (from_us, to_us) = (faults.sync_us_min, faults.sync_us_max);
        slower_ns + self.random.between(from_us * 1_000, to_us * 1_000)
    }
}
