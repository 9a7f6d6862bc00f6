//! The data thread: requests, peers' bytes and the store's answers into the core; at the end of each
//! turn everything that came of them out of it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mds_cluster::ClusterView;
use mds_cluster::hello::{Hello, PROTOCOL_VERSION, check_hello};
use mds_node::api::{FRONT_HTTP, Op, Outcome, Request, Submit, Tag};
use mds_node::core::{Core, Direction, LinkId};
use mds_node::store_io::{ReadQuery, Ticket, read};
use mds_node::wire::{Message, RootReply, Status, Verdict, decode, next_frame};
use mds_storage::pace::Unpaced;
use mds_types::{ClusterConfig, NodeId};

use super::heard::Heard;
use super::{ControlInput, Origin, Process};
use crate::env::Env;
use crate::event::{Asker, ClientEvent, NodeEvent, Part};
use crate::faults::MILLISECOND_NS;
use crate::network::{ConnId, Side};
use crate::oracle::quorums_are_held::Told;
use crate::oracle::{old_rings_are_refused, queues_are_bounded};
use crate::trace::Detail;
use crate::under_hood;

/// What data connections are opened for, in the handshake.
const CHANNEL_DATA: u8 = 1;

/// A handshake that takes longer is given up, nanoseconds.
const HANDSHAKE_TIMEOUT_NS: u64 = 2_000 * MILLISECOND_NS;

/// Pauses between tries to reach a peer, nanoseconds.
const REDIAL_NS_MIN: u64 = 20 * MILLISECOND_NS;
const REDIAL_NS_MAX: u64 = 500 * MILLISECOND_NS;

/// The data thread's state.
pub(super) struct DataLane {
    pub(super) core: Core,
    view: Arc<ClusterView>,
    links: BTreeMap<LinkId, (ConnId, Side)>,
    /// What has arrived and is no whole frame yet, per connection past its handshake.
    inputs: BTreeMap<ConnId, (LinkId, BytesMut)>,
    dials: BTreeMap<NodeId, Dial>,
    calls: BTreeMap<u64, Call>,
    next_call: u64,
    is_turn_due: bool,
    /// When the timer that counts fires, simulated time; others are stale.
    timer_ns: u64,
}

/// A client that waits for an answer.
struct Call {
    asker: Asker,
    /// If it is about one key.
    asked: Option<Asked>,
}

/// What a request about one key says.
struct Asked {
    key: Bytes,
    r: Option<u8>,
    w: Option<u8>,
}

/// The care for a connection to one peer.
#[derive(Debug, Default)]
struct Dial {
    conn: Option<ConnId>,
    pause_ns: u64,
}

impl DataLane {
    pub(super) fn new(core: Core, view: Arc<ClusterView>) -> DataLane {
        DataLane {
            core,
            view,
            links: BTreeMap::new(),
            inputs: BTreeMap::new(),
            dials: BTreeMap::new(),
            calls: BTreeMap::new(),
            next_call: 0,
            is_turn_due: false,
            timer_ns: u64::MAX,
        }
    }

    /// Clients that wait for an answer.
    pub(super) fn askers(&self) -> impl Iterator<Item = Asker> {
        self.calls.values().map(|call| call.asker)
    }
}

impl Process {
    /// A client's request.
    pub(crate) fn on_request(&mut self, from: Asker, request: Request, env: &mut Env) {
        self.data.next_call += 1;
        let tag = Tag {
            front: FRONT_HTTP,
            id: self.data.next_call,
        };
        let (options, op) = (&request.options, &request.op);
        let asked = match op {
            Op::Put { key, .. } | Op::Delete { key } | Op::Get { key } => Some(Asked {
                key: key.clone(),
                r: options.read_quorum,
                w: options.write_quorum,
            }),
            Op::Scan { .. } | Op::Count { .. } => None,
        };
        self.data.calls.insert(tag.id, Call { asker: from, asked });
        self.data
            .core
            .submit(self.clock.at(env.now_ns), request, tag);
        self.schedule_end_of_turn(env);
    }

    pub(super) fn schedule_end_of_turn(&mut self, env: &mut Env) {
        if !self.data.is_turn_due {
            self.data.is_turn_due = true;
            let hop_ns = env.hop_ns();
            env.node_after(hop_ns, self.name(), NodeEvent::EndTurn);
        }
    }

    /// The end of a turn: everything that its inputs brought about leaves together.
    pub(super) fn end_turn(&mut self, env: &mut Env) {
        self.data.is_turn_due = false;
        let now = self.clock.at(env.now_ns);
        loop {
            self.data.core.settle(now);
            let reads = self.data.core.take_reads();
            let done = self.data.core.take_done();
            if reads.is_empty() && done.is_empty() {
                break;
            }
            for (ticket, query) in reads {
                if matches!(query, ReadQuery::Sync(_)) {
                    // Another thread answers, later.
                    let delay_ns = env.some_ns(10_000, 3 * MILLISECOND_NS);
                    let event = NodeEvent::Walk(Box::new((ticket, query)));
                    env.node_after(delay_ns, self.name(), event);
                    continue;
                }
                let store = self.store.as_ref();
                let answer = store.and_then(|store| read(&store.reader, &query, &Unpaced).ok());
                self.data.core.on_read_done(now, ticket, &query, answer);
            }
            for (tag, result) in done {
                if let Some(Call { asker, asked }) = self.data.calls.remove(&tag.id) {
                    if let (Some(asked), Ok(outcome)) = (asked, &result) {
                        self.note_told(asked, outcome, env);
                    }
                    let (attempt, result) = (asker.attempt, Box::new(result));
                    env.tell_client(asker.client, ClientEvent::Reply { attempt, result });
                }
            }
        }
        if self.store.is_some()
            && let Some(batch) = self.data.core.take_batch()
        {
            self.store_batch(batch, env);
        }
        for link in self.data.core.take_dirty_links() {
            self.write_link(link, env);
        }
        self.arm_data_timer(env);
    }

    /// Has the oracle look at what a client is told.
    fn note_told(&self, asked: Asked, outcome: &Outcome, env: &mut Env) {
        let (version, is_write) = match outcome {
            Outcome::Written { version, .. } => (*version, true),
            Outcome::Read {
                version: Some(version),
                ..
            } => (*version, false),
            _ => return,
        };
        let Asked { key, r, w } = asked;
        env.watch.told.push(Told {
            node: self.node,
            key,
            version,
            is_write,
            r,
            w,
        });
    }

    /// The thread that walks has found an answer.
    pub(super) fn walk(&mut self, ticket: Ticket, query: &ReadQuery, env: &mut Env) {
        let store = self.store.as_ref();
        let answer = store.and_then(|store| read(&store.reader, query, &Unpaced).ok());
        if self.disk.is_stopped() {
            return;
        }
        let now = self.clock.at(env.now_ns);
        self.data.core.on_read_done(now, ticket, query, answer);
        self.schedule_end_of_turn(env);
    }

    fn arm_data_timer(&mut self, env: &mut Env) {
        let deadline_ns = self.data.core.next_deadline_ns();
        let at_ns = self.clock.when(deadline_ns).max(env.now_ns);
        if at_ns < self.data.timer_ns || self.data.timer_ns <= env.now_ns {
            self.data.timer_ns = at_ns;
            env.node_after(at_ns - env.now_ns, self.name(), NodeEvent::DataTimer);
        }
    }

    pub(super) fn on_data_timer(&mut self, env: &mut Env) {
        if env.now_ns < self.data.timer_ns {
            // An earlier deadline has been armed and served since.
            return;
        }
        self.data.timer_ns = u64::MAX;
        let stats = self.data.core.stats();
        if let Some(broken) = queues_are_bounded::check(self.node, &stats) {
            env.violated(broken.0, broken.1);
        }
        let is_loss_planted = env.counts.0.contains_key("record lost under the hood");
        // What a disk that is damaged just now says is looked at elsewhere.
        let is_sound = self.origin == Origin::Itself;
        if let Some(broken) = under_hood::check(self.node, &stats.scrub, is_loss_planted)
            && is_sound
        {
            env.violated(broken.0, broken.1);
        }
        self.data.core.on_timer(self.clock.at(env.now_ns));
        if let Some(report) = self.data.core.take_ring_report() {
            self.control_input(ControlInput::Report(report), env);
        }
        self.schedule_end_of_turn(env);
    }

    pub(super) fn on_view(&mut self, view: Arc<ClusterView>, env: &mut Env) {
        self.data.view = view.clone();
        for &peer in view.members.keys().filter(|&&peer| peer != view.me) {
            if let Entry::Vacant(place) = self.data.dials.entry(peer) {
                place.insert(Dial::default());
                env.node_after(0, (self.node, self.life), NodeEvent::Dial(peer));
            }
        }
        self.data.core.on_view(view);
        self.schedule_end_of_turn(env);
    }

    // ---- connections --------------------------------------------------------------------------

    pub(super) fn dial(&mut self, peer: NodeId, env: &mut Env) {
        let view = &self.data.view;
        let machine = view
            .info(peer)
            .and_then(|info| env.machines.get(&info.peer_addr))
            .copied();
        let Some(machine) = machine else {
            return self.redial(peer, env);
        };
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            cluster: view.cluster,
            from: view.me,
            incarnation: self.incarnation,
            boot: view.my_boot,
            nonce: self.control.boot_nonce(),
            to: peer,
            fingerprint: view.config.as_ref().map_or(0, ClusterConfig::fingerprint),
            channel: CHANNEL_DATA,
        };
        let conn = env.network.dial((self.node, self.life), machine);
        self.data.dials.entry(peer).or_default().conn = Some(conn);
        let hello = Bytes::copy_from_slice(&hello.encode());
        env.send_part(conn, Side::Acceptor, Part::Hello(hello));
        env.node_after(
            HANDSHAKE_TIMEOUT_NS,
            self.name(),
            NodeEvent::DialTimeout(conn),
        );
    }

    fn redial(&mut self, peer: NodeId, env: &mut Env) {
        let name = self.name();
        let dial = self.data.dials.entry(peer).or_default();
        dial.conn = None;
        dial.pause_ns = (dial.pause_ns * 2).clamp(REDIAL_NS_MIN, REDIAL_NS_MAX);
        env.node_after(dial.pause_ns, name, NodeEvent::Dial(peer));
    }

    pub(super) fn on_dial_timeout(&mut self, conn: ConnId, env: &mut Env) {
        if self.dialled_peer(conn).is_some() && !self.data.inputs.contains_key(&conn) {
            self.on_conn_ended(conn, Side::Dialler, env);
            env.send_part(conn, Side::Acceptor, Part::Reset);
        }
    }

    fn dialled_peer(&self, conn: ConnId) -> Option<NodeId> {
        let mut dials = self.data.dials.iter();
        dials
            .find(|(_, dial)| dial.conn == Some(conn))
            .map(|(&peer, _)| peer)
    }

    /// Somebody dialled this node. Says whether it is welcome, as the real check decides.
    pub(crate) fn on_hello(&mut self, conn: ConnId, hello: &[u8], env: &mut Env) {
        let checked = Hello::decode(hello).and_then(|hello| {
            check_hello(&self.control.view(), &hello)?;
            Ok(hello)
        });
        match checked {
            Ok(hello) => {
                let name = self.name();
                if let Some(conn) = env.network.conn(conn) {
                    conn.end_mut(Side::Acceptor).life = name.1;
                }
                self.open_link(conn, hello.from, Side::Acceptor, env);
                env.send_part(conn, Side::Dialler, Part::Answer(Ok(())));
            }
            Err(refusal) => {
                let why = refusal.to_string();
                env.send_part(conn, Side::Dialler, Part::Answer(Err(why)));
                env.network.leave(conn, Side::Acceptor);
            }
        }
    }

    /// The other side has answered this node's hello.
    pub(crate) fn on_answer(&mut self, conn: ConnId, answer: Result<(), String>, env: &mut Env) {
        let Some(peer) = self.dialled_peer(conn) else {
            return;
        };
        match answer {
            Ok(()) => {
                if let Some(dial) = self.data.dials.get_mut(&peer) {
                    dial.pause_ns = 0;
                }
                self.open_link(conn, peer, Side::Dialler, env);
            }
            Err(why) => {
                env.line(|| format!("node {} was turned away by {peer}: {why}", self.node + 1));
                self.on_conn_ended(conn, Side::Dialler, env);
            }
        }
    }

    fn open_link(&mut self, conn: ConnId, peer: NodeId, side: Side, env: &mut Env) {
        let direction = match side {
            Side::Dialler => Direction::Dialled,
            Side::Acceptor => Direction::Accepted,
        };
        let link = self
            .data
            .core
            .on_link_open(self.clock.at(env.now_ns), peer, direction);
        self.data.links.insert(link, (conn, side));
        self.data.inputs.insert(conn, (link, BytesMut::new()));
        self.schedule_end_of_turn(env);
    }

    /// Bytes of a peer.
    pub(crate) fn on_bytes(&mut self, conn: ConnId, side: Side, bytes: &[u8], env: &mut Env) {
        let Some((link, input)) = self.data.inputs.get_mut(&conn) else {
            return;
        };
        input.extend_from_slice(bytes);
        if env.trace.has(Detail::Messages) {
            let from = env
                .network
                .conn(conn)
                .map(|conn| conn.end(side.other()).node);
            say_messages(from.unwrap_or_default(), self.node, input, env);
        }
        let now = self.clock.at(env.now_ns);
        let accepted_from = self.data.view.rings.accepted_from;
        let heard = Heard::of(input, accepted_from);
        let has_old = heard.has_old_requests(accepted_from);
        let before = has_old.then(|| self.data.core.stats());
        let understood = self.data.core.on_link_bytes(now, *link, input);
        if let Some(before) = before {
            let now = self.data.core.stats();
            let puts = now.replica_puts - before.replica_puts;
            let gets = now.replica_gets - before.replica_gets;
            let check = |routed: &[_], done| {
                old_rings_are_refused::check(self.node, accepted_from, routed, done)
            };
            let broken = check(&heard.puts, puts).or_else(|| check(&heard.gets, gets));
            if let Some(broken) = broken {
                env.violated(broken.0, broken.1);
            }
        }
        heard.note_comparisons(
            conn,
            (self.node, self.life),
            self.incarnation.node_id(),
            env,
        );
        if let Err(error) = understood {
            env.violated("what a node sends, a node understands", error.to_string());
            env.send_part(conn, side.other(), Part::Reset);
            self.on_conn_ended(conn, side, env);
        }
        self.schedule_end_of_turn(env);
    }

    /// A connection has come to its end on this side.
    pub(crate) fn on_conn_ended(&mut self, conn: ConnId, side: Side, env: &mut Env) {
        env.network.leave(conn, side);
        if let Some((link, _)) = self.data.inputs.remove(&conn) {
            self.data.links.remove(&link);
            self.data
                .core
                .on_link_closed(self.clock.at(env.now_ns), link);
            self.schedule_end_of_turn(env);
        }
        if let Some(peer) = self.dialled_peer(conn) {
            self.redial(peer, env);
        }
    }

    fn write_link(&mut self, link: LinkId, env: &mut Env) {
        let Some(&(conn, side)) = self.data.links.get(&link) else {
            return;
        };
        let Some(out) = self.data.core.link_output(link) else {
            return;
        };
        let to = side.other();
        let Some(ends) = env.network.conn(conn) else {
            return;
        };
        let pair = (ends.end(side).node, ends.end(to).node);
        let socket_bytes = env.network.socket_bytes(pair);
        let Some(flow) = env.network.conn(conn).map(|conn| conn.flow_to(to)) else {
            return;
        };
        let room = socket_bytes.saturating_sub(flow.in_flight);
        let bytes = out.split_to(out.len().min(room)).freeze();
        flow.in_flight += bytes.len();
        flow.is_blocked = !out.is_empty();
        if flow.is_blocked {
            env.reached.count("writer waited for a full socket");
        }
        if !bytes.is_empty() {
            env.write(conn, to, bytes);
        }
    }

    pub(super) fn on_writable(&mut self, conn: ConnId, env: &mut Env) {
        if let Some(&(link, _)) = self.data.inputs.get(&conn) {
            self.write_link(link, env);
        }
    }

    // ---- for the run --------------------------------------------------------------------------

    /// Peers that can be asked now.
    pub(crate) fn usable_peers(&self) -> Vec<NodeId> {
        self.data.core.usable_peers()
    }
}

/// Writes down the whole messages that have arrived, for people.
fn say_messages(from: usize, to: usize, input: &BytesMut, env: &mut Env) {
    let mut input = input.clone();
    while let Ok(Some(frame)) = next_frame(&mut input) {
        let what = match decode(frame) {
            Ok(Some(Message::Put(put))) => format!("put {} ({} bytes)", put.id, put.record.len()),
            Ok(Some(Message::PutReply(reply))) => {
                format!("put {}: {}", reply.id, status(reply.status))
            }
            Ok(Some(Message::Get(get))) => format!("get {} of {}", get.id, get.key.escape_ascii()),
            Ok(Some(Message::GetReply(reply))) => {
                let length = reply.record.map_or(0, |record| record.len());
                format!("get {}: {}, {length} bytes", reply.id, status(reply.status))
            }
            Ok(Some(Message::Scan(scan))) => {
                format!("scan {} of partition {}", scan.id, scan.partition)
            }
            Ok(Some(Message::ScanReply(reply))) => {
                format!("scan {}: {}", reply.id, status(reply.status))
            }
            // Health, not data.
            Ok(Some(Message::Ping(_) | Message::Pong(_))) => continue,
            Ok(Some(other)) => sync_words(&other),
            Ok(None) | Err(_) => "something that nobody understands".to_owned(),
        };
        env.line(|| format!("node {} -> node {}: {what}", from + 1, to + 1));
    }
}

/// A message of anti-entropy in words.
fn sync_words(message: &Message) -> String {
    match message {
        Message::Roots(roots) => format!("{} roots", roots.items.len()),
        Message::RootsReply(reply) => {
            let verdict = |answer: &RootReply| Verdict::try_from(answer.verdict);
            let is_equal = |answer: &&RootReply| verdict(answer) == Ok(Verdict::Equal);
            let equal = reply.answers.iter().filter(is_equal).count();
            format!("{equal} of {} roots are equal", reply.answers.len())
        }
        Message::Hashes(hashes) => format!(
            "hashes of partition {}, epoch {}, level {}",
            hashes.partition, hashes.epoch, hashes.level
        ),
        Message::HashesReply(reply) => format!("{} hashes", reply.hashes.len() / 16),
        Message::Rows(rows) => format!(
            "rows of partition {}, epoch {}, buckets {:?}",
            rows.partition, rows.epoch, rows.buckets
        ),
        Message::RowsReply(reply) => format!("{} rows", reply.rows.len()),
        Message::Fetch(fetch) => format!("records of {} keys", fetch.keys.len()),
        Message::FetchReply(reply) => format!("{} records", reply.records.len()),
        Message::Stream(stream) => format!("a page of partition {}", stream.partition),
        Message::StreamReply(reply) => format!(
            "a page: {}, {} records, settled {}",
            status(reply.status),
            reply.records.len(),
            reply.settled
        ),
        _ => "something".to_owned(),
    }
}

fn status(number: i32) -> String {
    let status = Status::try_from(number);
    status.map_or_else(|_| number.to_string(), |status| format!("{status:?}"))
}
