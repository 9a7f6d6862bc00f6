//! Gossip: who is reachable, and at which addresses. SWIM, by the sans-IO crate *foca*.
//!
//! Datagrams go in, datagrams and a table of peers come out; time is an argument. Gossip decides
//! nothing: it carries the word "alive", the start number and the addresses of each node, and which
//! cluster the node says it is part of. (Das, Gupta, Motivala: *SWIM*, DSN 2002.)
//!
//! ```text
//! datagram   "MG" 2 | format 1 | kind 1 | payload
//! kind       0 foca's message | 1 knock: who I am | 2 welcome: who I am
//! ```
//!
//! A knock goes to a *host and port* of the seed list, when no identity is known there yet; the
//! welcome tells the identity, and from then on foca speaks for itself.
//!
//! **Invariants**
//!
//! 1. A node of another cluster is never a peer: its datagrams are dropped, and news about it in
//!    others' datagrams are cut out. A node of no cluster yet is a peer to everybody.
//! 2. Of two starts of one directory others believe the one with the greater number, and have no way to
//!    know which is the copy. So a copy that is refused would keep its original out for as long as the
//!    dead are remembered. The original therefore **outbids** it, once the cluster has told it that it
//!    is the right one.
//! 3. The order of timers is (deadline, kind, age): two timers of one instant fire in the order
//!    that foca asks for.

mod identity;
mod timing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use foca::{Codec, Foca, NoCustomBroadcast, Notification, Runtime, Timer};
use mds_types::{ClusterId, IncarnationId, MemberInfo, NodeId};

use crate::random::SplitMix64;
use crate::view::PeerView;
use identity::{CodecError, IdCodec};
pub(crate) use identity::{INFO_BYTES_MAX, Id, info_bytes};
pub use timing::GossipTiming;

/// Bytes of a datagram at most: one Ethernet frame, less the headers of IPv6 and UDP and some more.
const DATAGRAM_BYTES_MAX: usize = 1400;

/// Nodes that are remembered, alive or not. Beyond it the ones that are down make room, and when
/// there are none, new ones are not taken up.
const PEERS_MAX: usize = 2 * mds_types::limits::MEMBERS_MAX;

/// Datagrams that may wait to be sent; beyond it new ones are dropped, as a network would.
const OUT_DATAGRAMS_MAX: usize = 4096;

/// Foreign clusters that are remembered as warned about.
const WARNED_CLUSTERS_MAX: usize = 64;

/// Who comes back under a new generation is believed at once. One that is held for dead again and again,
/// so many times, is up against a greater start number.
const REJOINS_SUSPICIOUS: u32 = 8;

/// Guesses at a rival's start number grow until after so many of them.
const OUTBIDS_DOUBLED_MAX: u32 = 16;

/// With company, a seed is knocked at this many times less often than without.
const SEED_SLOWDOWN: u64 = 10;

const MAGIC: [u8; 2] = *b"MG";
const FORMAT_1: u8 = 1;
const PREFIX_BYTES: usize = 4;
const KIND_FOCA: u8 = 0;
const KIND_KNOCK: u8 = 1;
const KIND_WELCOME: u8 = 2;

/// What gossip refused or dropped since this start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GossipCounters {
    /// Datagrams of nodes of another cluster, and news about such nodes.
    pub foreign: u64,
    /// Datagrams that are none of ours or could not be handled.
    pub malformed: u64,
    /// Datagrams that were not sent because too many waited or no address was known.
    pub unsent: u64,
}

/// A peer, as last heard.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) id: Id,
    pub(crate) alive: bool,
}

type TimerKey = (u64, u8, u64);

/// Gossip of one node.
pub(crate) struct Gossip {
    foca: Foca<Id, IdCodec, SplitMix64, NoCustomBroadcast>,
    seeds: Vec<String>,
    seed_every_ns: u64,
    next_knock_ns: u64,
    /// Which seed is knocked at next while there is company.
    next_seed: usize,
    left: bool,
    /// A sign that another start of this node's directory is about.
    double: bool,
    /// The greatest start number under which another start of it was seen.
    rival_boot: u64,
    /// How often this node has outbid others.
    outbids: u32,
    warned: BTreeSet<ClusterId>,
    effects: Effects,
}

/// What foca's callbacks fill.
#[derive(Default)]
struct Effects {
    now_ns: u64,
    next_seq: u64,
    timers: BTreeMap<TimerKey, Timer<Id>>,
    peers: BTreeMap<NodeId, Peer>,
    datagrams: VecDeque<(String, Bytes)>,
    counters: GossipCounters,
    /// Grows when `peers` changes.
    revision: u64,
    /// How often this node was held for dead and came back, since it last claimed a start number.
    rejoins: u32,
}

impl Effects {
    fn send(&mut self, addr: &str, kind: u8, payload: &[u8]) {
        if addr.is_empty() || self.datagrams.len() >= OUT_DATAGRAMS_MAX {
            self.counters.unsent += 1;
            return;
        }
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + payload.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[FORMAT_1, kind]);
        bytes.extend_from_slice(payload);
        self.datagrams.push_back((addr.to_owned(), bytes.into()));
    }

    fn put_peer(&mut self, id: &Id, alive: bool) {
        self.revision += 1;
        let known = self.peers.contains_key(&id.node());
        if !known && self.peers.len() >= PEERS_MAX {
            let down = self
                .peers
                .iter()
                .find(|(_, peer)| !peer.alive)
                .map(|(node, _)| *node);
            let Some(down) = down else { return };
            self.peers.remove(&down);
        }
        self.peers.insert(
            id.node(),
            Peer {
                id: id.clone(),
                alive,
            },
        );
    }
}

impl Runtime<Id> for &mut Effects {
    fn notify(&mut self, notification: Notification<'_, Id>) {
        match notification {
            Notification::MemberUp(id) => self.put_peer(id, true),
            Notification::MemberDown(id) => self.put_peer(id, false),
            // The old identity may still have been alive: then no "up" follows. What is new is
            // only the identity, so the peer stays as alive as it was.
            Notification::Rename(old, new) => {
                let alive = self.peers.get(&old.node()).is_some_and(|peer| peer.alive);
                self.put_peer(new, alive);
            }
            Notification::Rejoin(id) => {
                self.rejoins = self.rejoins.saturating_add(1);
                tracing::info!(generation = id.generation, "others held this node for dead");
            }
            Notification::Active | Notification::Idle | Notification::Defunct => {}
        }
    }

    fn send_to(&mut self, to: Id, data: &[u8]) {
        // A destination that came as a bare identity has no address of its own.
        let addr = match self.peers.get(&to.node()) {
            Some(peer) if to.info.peer_addr.is_empty() => peer.id.info.peer_addr.clone(),
            _ => to.info.peer_addr.clone(),
        };
        self.send(&addr, KIND_FOCA, data);
    }

    fn submit_after(&mut self, event: Timer<Id>, after: Duration) {
        let after_ns = u64::try_from(after.as_nanos()).unwrap_or(u64::MAX);
        self.next_seq += 1;
        let key = (
            self.now_ns.saturating_add(after_ns),
            timer_rank(&event),
            self.next_seq,
        );
        self.timers.insert(key, event);
    }
}

/// Of two timers of one instant the end of a probe comes before the start of the next.
fn timer_rank(timer: &Timer<Id>) -> u8 {
    match timer {
        Timer::SendIndirectProbe { .. } => 0,
        Timer::ProbeRandomMember(_) => 1,
        Timer::ChangeSuspectToDown { .. } => 2,
        Timer::PeriodicAnnounce(_) => 3,
        Timer::PeriodicGossip(_) => 4,
        Timer::RemoveDown(_) => 5,
        Timer::PeriodicAnnounceDown(_) => 6,
    }
}

/// Who this node is at this start.
#[derive(Clone, Debug)]
pub(crate) struct Me {
    pub(crate) incarnation: IncarnationId,
    pub(crate) boot: u64,
    pub(crate) cluster: ClusterId,
    pub(crate) info: Arc<MemberInfo>,
}

impl Gossip {
    pub(crate) fn new(
        me: Me,
        timing: &GossipTiming,
        seeds: Vec<String>,
        rng: SplitMix64,
        now_ns: u64,
    ) -> Gossip {
        let id = Id {
            incarnation: me.incarnation,
            boot: me.boot,
            generation: 0,
            cluster: me.cluster,
            info: me.info,
        };
        Gossip {
            foca: Foca::new(id, timing.config(), rng, IdCodec),
            seeds,
            seed_every_ns: timing.seed_ms.max(1) * 1_000_000,
            next_knock_ns: now_ns,
            next_seed: 0,
            left: false,
            double: false,
            rival_boot: 0,
            outbids: 0,
            warned: BTreeSet::new(),
            effects: Effects {
                now_ns,
                ..Effects::default()
            },
        }
    }

    /// Takes a datagram.
    pub(crate) fn on_datagram(&mut self, now_ns: u64, bytes: &[u8]) {
        self.effects.now_ns = now_ns;
        if self.left {
            return;
        }
        let Some((kind, payload)) = split_prefix(bytes) else {
            self.effects.counters.malformed += 1;
            return;
        };
        let handled = match kind {
            KIND_FOCA => self.on_foca(payload),
            KIND_KNOCK => self.on_knock(payload),
            KIND_WELCOME => self.on_welcome(payload),
            _ => Err("unknown kind".to_owned()),
        };
        if let Err(reason) = handled {
            tracing::debug!(reason, "dropped a gossip datagram");
            self.effects.counters.malformed += 1;
        }
    }

    fn on_foca(&mut self, payload: &[u8]) -> Result<(), String> {
        let Some(payload) = self
            .without_foreigners(payload)
            .map_err(|error| error.to_string())?
        else {
            return Ok(());
        };
        let handled = self.foca.handle_data(&payload, &mut self.effects);
        handled.map_err(|error| error.to_string())
    }

    /// The message without news of foreign nodes; nothing, if it is a foreign node's.
    fn without_foreigners(&mut self, payload: &[u8]) -> Result<Option<Vec<u8>>, CodecError> {
        let mut rest = payload;
        let header = IdCodec.decode_header(&mut rest)?;
        self.look_for_double(&header.src);
        if self.is_foreign(&header.src) {
            return Ok(None);
        }
        if rest.remaining() < 2 {
            return Ok(Some(payload.to_vec()));
        }
        let count = rest.get_u16();
        let mut kept = Vec::new();
        for _ in 0..count {
            let member = IdCodec.decode_member(&mut rest)?;
            self.look_for_double(member.id());
            if !self.is_foreign(member.id()) {
                kept.push(member);
            }
        }
        if kept.len() == usize::from(count) {
            return Ok(Some(payload.to_vec()));
        }
        let mut bytes = Vec::with_capacity(payload.len());
        IdCodec.encode_header(&header, &mut bytes)?;
        bytes.put_u16(kept.len() as u16);
        for member in &kept {
            IdCodec.encode_member(member, &mut bytes)?;
        }
        Ok(Some(bytes))
    }

    fn on_knock(&mut self, payload: &[u8]) -> Result<(), String> {
        let Some(from) = self.stranger(payload)? else {
            return Ok(());
        };
        if let Ok(me) = IdCodec::encode_id(self.foca.identity()) {
            self.effects.send(&from.info.peer_addr, KIND_WELCOME, &me);
        }
        Ok(())
    }

    fn on_welcome(&mut self, payload: &[u8]) -> Result<(), String> {
        let Some(from) = self.stranger(payload)? else {
            return Ok(());
        };
        self.foca
            .announce(from, &mut self.effects)
            .map_err(|error| error.to_string())
    }

    /// Who sent this, unless it is this node itself (its own address is often in the seed list) or a
    /// foreign one.
    fn stranger(&mut self, payload: &[u8]) -> Result<Option<Id>, String> {
        let from = IdCodec::decode_id(payload).map_err(|error| error.to_string())?;
        self.look_for_double(&from);
        let unwanted = from.node() == self.foca.identity().node() || self.is_foreign(&from);
        Ok((!unwanted).then_some(from))
    }

    /// Another start, or another place, of this node's own directory: news of an earlier start is
    /// normal after a restart, of a later one it is not.
    fn look_for_double(&mut self, id: &Id) {
        let me = self.foca.identity();
        // Known as a node of a cluster, of which this start knows nothing.
        let knows_less = me.cluster.is_none() && !id.cluster.is_none();
        let is_elsewhere = id.info.peer_addr != me.info.peer_addr;
        if id.node() == me.node()
            && (id.boot > me.boot || (id.boot == me.boot && (is_elsewhere || knows_less)))
        {
            self.double = true;
            self.rival_boot = self.rival_boot.max(id.boot);
        }
    }

    /// The start number that this node has to claim to be believed, if it is not its present one.
    pub(crate) fn outbidding_boot(&self) -> Option<u64> {
        let claimed = self.foca.identity().boot;
        let outbids = self.rival_boot.checked_add(1)?;
        (self.rival_boot >= claimed).then_some(outbids)
    }

    /// Claims a greater start number than it has. For a node that the cluster has confirmed, and whose
    /// directory has counted so far.
    pub(crate) fn outbid(&mut self, now_ns: u64, boot: u64) {
        self.effects.now_ns = now_ns;
        self.effects.rejoins = 0;
        self.outbids = self.outbids.saturating_add(1);
        let id = Id {
            boot,
            generation: 0,
            ..self.foca.identity().clone()
        };
        tracing::warn!(
            boot,
            "a copy of this node's data directory was started: outbidding it"
        );
        if let Err(error) = self.foca.change_identity(id, &mut self.effects) {
            tracing::warn!(%error, "gossip could not outbid a copy of this node");
        }
        self.effects.revision += 1;
    }

    /// Whether a sign of a copied directory has been seen since the last call.
    pub(crate) fn saw_double(&mut self) -> bool {
        if self.effects.rejoins >= REJOINS_SUSPICIOUS {
            // Nobody tells a node that is held for dead what it is up against: each guess goes twice as
            // far beyond its own number as the one before.
            self.effects.rejoins = 0;
            let further = (1_u64 << self.outbids.min(OUTBIDS_DOUBLED_MAX)) - 1;
            let guess = self.foca.identity().boot.saturating_add(further);
            self.rival_boot = self.rival_boot.max(guess);
            self.double = true;
        }
        std::mem::take(&mut self.double)
    }

    fn is_foreign(&mut self, id: &Id) -> bool {
        let mine = self.foca.identity().cluster;
        if mine.is_none() || id.cluster.is_none() || id.cluster == mine {
            return false;
        }
        self.effects.counters.foreign += 1;
        if self.warned.len() < WARNED_CLUSTERS_MAX && self.warned.insert(id.cluster) {
            tracing::warn!(
                node = %id.node(), addr = id.info.peer_addr, cluster = %id.cluster, ours = %mine,
                "ignoring a node of another cluster: is its address in the seed list by mistake?"
            );
        }
        true
    }

    /// Fires what is due.
    pub(crate) fn turn(&mut self, now_ns: u64) {
        self.effects.now_ns = now_ns;
        if self.left {
            return;
        }
        while let Some(first) = self.effects.timers.first_entry() {
            if first.key().0 > now_ns {
                break;
            }
            let timer = first.remove();
            if let Timer::RemoveDown(id) = &timer {
                self.forget(id);
            }
            if let Err(error) = self.foca.handle_timer(timer, &mut self.effects) {
                tracing::debug!(%error, "gossip timer");
            }
        }
        if now_ns >= self.next_knock_ns {
            self.next_knock_ns = now_ns + self.seed_every_ns;
            self.knock();
        }
    }

    fn forget(&mut self, id: &Id) {
        let peers = &mut self.effects.peers;
        if peers
            .get(&id.node())
            .is_some_and(|peer| !peer.alive && peer.id == *id)
        {
            peers.remove(&id.node());
            self.effects.revision += 1;
        }
    }

    /// Knocks at all seeds while alone; later at one now and then, which joins islands that never
    /// knew of each other.
    fn knock(&mut self) {
        let Ok(me) = IdCodec::encode_id(self.foca.identity()) else {
            return;
        };
        if self.foca.num_members() == 0 {
            for seed in &self.seeds {
                self.effects.send(seed, KIND_KNOCK, &me);
            }
        } else if !self.seeds.is_empty() {
            self.next_knock_ns += self.seed_every_ns * (SEED_SLOWDOWN - 1);
            let seed = &self.seeds[self.next_seed % self.seeds.len()];
            self.next_seed = self.next_seed.wrapping_add(1);
            self.effects.send(seed, KIND_KNOCK, &me);
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        if self.left {
            return None;
        }
        let timer = self.effects.timers.keys().next().map(|key| key.0);
        let knock = (!self.seeds.is_empty()).then_some(self.next_knock_ns);
        timer.into_iter().chain(knock).min()
    }

    /// From now on this node says that it is part of `cluster`, and ignores others.
    pub(crate) fn adopt(&mut self, now_ns: u64, cluster: ClusterId) {
        self.effects.now_ns = now_ns;
        let Some(renewed) = foca::Identity::renew(self.foca.identity()) else {
            return;
        };
        let changed = self
            .foca
            .change_identity(Id { cluster, ..renewed }, &mut self.effects);
        if let Err(error) = changed {
            tracing::warn!(%error, "gossip could not spread this node's cluster");
        }
        let foreign: Vec<Id> = self
            .effects
            .peers
            .values()
            .filter(|peer| !peer.id.cluster.is_none() && peer.id.cluster != cluster)
            .map(|peer| peer.id.clone())
            .collect();
        for id in foreign {
            let down = foca::Member::down(id.clone());
            if let Err(error) =
                self.foca
                    .apply_many(Some(down).into_iter(), false, &mut self.effects)
            {
                tracing::debug!(%error, "forgetting a foreign node");
            }
            self.effects.peers.remove(&id.node());
        }
        self.effects.revision += 1;
    }

    /// Tells the others that this node goes, so that they need not find out. Nothing is handled
    /// afterwards.
    pub(crate) fn leave(&mut self, now_ns: u64) {
        self.effects.now_ns = now_ns;
        if let Err(error) = self.foca.leave_cluster(&mut self.effects) {
            tracing::debug!(%error, "gossip leave");
        }
        self.left = true;
    }

    pub(crate) fn take_datagrams(&mut self) -> Vec<(String, Bytes)> {
        self.effects.datagrams.drain(..).collect()
    }

    pub(crate) fn peers(&self) -> &BTreeMap<NodeId, Peer> {
        &self.effects.peers
    }

    pub(crate) fn views(&self) -> BTreeMap<NodeId, PeerView> {
        let view = |peer: &Peer| PeerView {
            alive: peer.alive,
            boot: peer.id.boot,
            cluster: peer.id.cluster,
            info: (*peer.id.info).clone(),
        };
        self.effects
            .peers
            .iter()
            .map(|(node, peer)| (*node, view(peer)))
            .collect()
    }

    /// Grows when the peers change.
    pub(crate) fn revision(&self) -> u64 {
        self.effects.revision
    }

    pub(crate) fn counters(&self) -> GossipCounters {
        self.effects.counters
    }
}

fn split_prefix(bytes: &[u8]) -> Option<(u8, &[u8])> {
    if bytes.len() > DATAGRAM_BYTES_MAX || bytes.len() < PREFIX_BYTES {
        return None;
    }
    let (prefix, payload) = bytes.split_at(PREFIX_BYTES);
    (prefix[..2] == MAGIC && prefix[2] == FORMAT_1).then_some((prefix[3], payload))
}

#[cfg(test)]
mod tests;
