//! Connections to other nodes, as the core sees them: buffers to fill, and whether somebody is there.
//!
//! Between two nodes there are two links, one dialled by each: a node's requests go out on the link
//! it dialled, and their replies come back on it. The shell owns the sockets; a link is the bytes still
//! to be written and what is known of the other side.
//!
//! **Health.** The data path judges for itself whether a peer can be asked *now*; gossip, which takes
//! seconds, only decides what to do about nodes that stay away. A dialled link that was closed is down
//! at once. A link that stays open while the other process is stopped is found by pings, which the
//! peer's core answers without touching its store: a slow disk is not a dead node.
//!
//! **Bounds.** A link holds at most [`LINK_BACKLOG_BYTES_MAX`] unsent bytes: beyond that a request is
//! refused to its sender (who sheds, hedges or hints), and a reply is dropped (its asker times out).

use std::collections::BTreeMap;

use bytes::BytesMut;
use mds_types::NodeId;

use crate::wire::{self, GetReply, Message, Ping, ScanReply, Status};

/// Names one connection for as long as it lives; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(pub u64);

/// Which side opened a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// We did: our requests go out on it.
    Dialled,
    /// The peer did: its requests come in on it.
    Accepted,
}

/// Unsent bytes of one link, at most.
pub const LINK_BACKLOG_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How often links are looked at.
pub(crate) const HEALTH_TICK_NS: u64 = 50_000_000;

/// A ping without an answer for this long makes a link unresponsive.
const UNRESPONSIVE_AFTER_NS: u64 = 300_000_000;

/// An unresponsive link is given up after this long.
const GIVE_UP_AFTER_NS: u64 = 2_000_000_000;

/// A link without traffic is pinged this often.
const IDLE_PING_EVERY_NS: u64 = 1_000_000_000;

/// Why a request could not be handed to a link. Nothing was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SendRefusal {
    /// No connection, or nobody answers on it.
    Down,
    /// Too much is waiting to be written already.
    Backlogged,
}

#[derive(Debug)]
struct Link {
    peer: NodeId,
    direction: Direction,
    out: BytesMut,
    is_dirty: bool,
    /// Requests went out since the last ping.
    is_busy: bool,
    last_heard_ns: u64,
    ping_sent_ns: Option<u64>,
    is_unresponsive: bool,
    /// Since when, for the link to be given up.
    unresponsive_since_ns: u64,
    is_given_up: bool,
    /// Bytes ever put into `out`, and how many of them had left at the last health tick: a peer that takes
    /// bytes is alive, however long its answer takes to come through behind large ones.
    appended: u64,
    left_at_tick: u64,
}

/// All links of this node.
#[derive(Debug, Default)]
pub(crate) struct Links {
    links: BTreeMap<LinkId, Link>,
    dialled: BTreeMap<NodeId, LinkId>,
    dirty: Vec<LinkId>,
    next_id: u64,
    last_tick_ns: u64,
    /// Links that the shell should close, so that it dials anew: the peer may be back on another way
    /// long before the old connection notices.
    given_up: Vec<LinkId>,
    pub(crate) replies_dropped: u64,
}

impl Links {
    pub(crate) fn open(&mut self, now_ns: u64, peer: NodeId, direction: Direction) -> LinkId {
        self.next_id += 1;
        let id = LinkId(self.next_id);
        let link = Link {
            peer,
            direction,
            out: BytesMut::new(),
            is_dirty: false,
            is_busy: false,
            last_heard_ns: now_ns,
            ping_sent_ns: None,
            is_unresponsive: false,
            unresponsive_since_ns: 0,
            is_given_up: false,
            appended: 0,
            left_at_tick: 0,
        };
        self.links.insert(id, link);
        if direction == Direction::Dialled {
            self.dialled.insert(peer, id);
        }
        id
    }

    /// Forgets a link; says whose requests can no longer be answered, if any.
    pub(crate) fn close(&mut self, id: LinkId) -> Option<NodeId> {
        let link = self.links.remove(&id)?;
        if link.direction == Direction::Dialled && self.dialled.get(&link.peer) == Some(&id) {
            self.dialled.remove(&link.peer);
            return Some(link.peer);
        }
        None
    }

    pub(crate) fn peer(&self, id: LinkId) -> Option<(NodeId, Direction)> {
        self.links.get(&id).map(|link| (link.peer, link.direction))
    }

    /// Whether a node can be asked now.
    pub(crate) fn is_usable(&self, peer: NodeId) -> bool {
        let link = self.dialled.get(&peer).and_then(|id| self.links.get(id));
        link.is_some_and(|link| !link.is_unresponsive)
    }

    /// Peers with a dialled link.
    pub(crate) fn connected(&self) -> impl Iterator<Item = NodeId> {
        self.dialled.keys().copied()
    }

    /// Puts a request on the link we dialled.
    pub(crate) fn send(&mut self, peer: NodeId, message: &Message) -> Result<(), SendRefusal> {
        let id = *self.dialled.get(&peer).ok_or(SendRefusal::Down)?;
        let link = self.links.get_mut(&id).ok_or(SendRefusal::Down)?;
        if link.is_unresponsive {
            return Err(SendRefusal::Down);
        }
        if link.out.len() >= LINK_BACKLOG_BYTES_MAX {
            return Err(SendRefusal::Backlogged);
        }
        link.is_busy = true;
        Self::append(&mut self.dirty, id, link, message);
        Ok(())
    }

    /// Puts a reply on the link that its request came by, if that still exists.
    pub(crate) fn reply(&mut self, id: LinkId, message: &Message) {
        let Some(link) = self.links.get_mut(&id) else {
            self.replies_dropped += 1;
            return;
        };
        if link.out.len() < LINK_BACKLOG_BYTES_MAX {
            return Self::append(&mut self.dirty, id, link, message);
        }
        // Too much waits already. A short word still fits, and keeps the asker from taking a slow
        // connection for a dead node; what would be long becomes a short refusal.
        let short = match message {
            Message::GetReply(reply) => Message::GetReply(GetReply {
                id: reply.id,
                status: Status::Overloaded as i32,
                ..GetReply::default()
            }),
            Message::ScanReply(reply) => Message::ScanReply(ScanReply {
                id: reply.id,
                status: Status::Overloaded as i32,
                ..ScanReply::default()
            }),
            short => short.clone(),
        };
        if link.out.len() < 2 * LINK_BACKLOG_BYTES_MAX {
            Self::append(&mut self.dirty, id, link, &short);
        } else {
            self.replies_dropped += 1;
        }
    }

    fn append(dirty: &mut Vec<LinkId>, id: LinkId, link: &mut Link, message: &Message) {
        let before = link.out.len();
        wire::encode(message, &mut link.out);
        link.appended += (link.out.len() - before) as u64;
        if !link.is_dirty {
            link.is_dirty = true;
            dirty.push(id);
        }
    }

    /// Takes note that a peer sent something on a link.
    pub(crate) fn heard(&mut self, now_ns: u64, id: LinkId) {
        if let Some(link) = self.links.get_mut(&id) {
            link.last_heard_ns = now_ns;
            link.ping_sent_ns = None;
            link.is_unresponsive = false;
        }
    }

    /// Looks after all dialled links; returns the peers that have just become unresponsive.
    pub(crate) fn tick(&mut self, now_ns: u64) -> Vec<NodeId> {
        // If this process itself was stopped or starved, silence says nothing about the others.
        let was_asleep = now_ns.saturating_sub(self.last_tick_ns) > 4 * HEALTH_TICK_NS;
        self.last_tick_ns = now_ns;
        let mut lost = Vec::new();
        for (&peer, &id) in &self.dialled {
            let Some(link) = self.links.get_mut(&id) else {
                continue;
            };
            let left = link.appended - link.out.len() as u64;
            let is_writing = !link.out.is_empty() && left > link.left_at_tick;
            link.left_at_tick = left;
            match link.ping_sent_ns {
                Some(_) if was_asleep || is_writing => link.ping_sent_ns = Some(now_ns),
                Some(sent_ns) => {
                    let is_late = now_ns.saturating_sub(sent_ns) >= UNRESPONSIVE_AFTER_NS;
                    if is_late && !link.is_unresponsive {
                        link.is_unresponsive = true;
                        link.unresponsive_since_ns = now_ns;
                        lost.push(peer);
                    }
                    let silent_ns = now_ns.saturating_sub(link.unresponsive_since_ns);
                    if link.is_unresponsive && !link.is_given_up && silent_ns >= GIVE_UP_AFTER_NS {
                        link.is_given_up = true;
                        self.given_up.push(id);
                    }
                    // Asked again now and then. A machine that lost its power after it had taken
                    // the ping owes no answer, and says that the connection is gone only when it
                    // is sent something.
                    let is_asked_long_ago = now_ns.saturating_sub(sent_ns) >= IDLE_PING_EVERY_NS;
                    if link.is_unresponsive && is_asked_long_ago && link.out.is_empty() {
                        link.ping_sent_ns = Some(now_ns);
                        Self::append(&mut self.dirty, id, link, &Message::Ping(Ping { id: 0 }));
                    }
                }
                None => {
                    let silent_ns = now_ns.saturating_sub(link.last_heard_ns);
                    let is_idle_due = silent_ns >= IDLE_PING_EVERY_NS;
                    if is_idle_due || (link.is_busy && silent_ns >= HEALTH_TICK_NS) {
                        link.ping_sent_ns = Some(now_ns);
                        link.is_busy = false;
                        Self::append(&mut self.dirty, id, link, &Message::Ping(Ping { id: 0 }));
                    }
                }
            }
        }
        lost
    }

    /// Links that have been silent for so long that a new connection is the better hope.
    pub(crate) fn take_given_up(&mut self) -> Vec<LinkId> {
        std::mem::take(&mut self.given_up)
    }

    /// Links that have got new bytes to write since the last call.
    pub(crate) fn take_dirty(&mut self) -> Vec<LinkId> {
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.retain(|id| self.links.contains_key(id));
        for id in &dirty {
            if let Some(link) = self.links.get_mut(id) {
                link.is_dirty = false;
            }
        }
        dirty
    }

    /// The unsent bytes of the link that has most of them.
    pub(crate) fn greatest_backlog(&self) -> usize {
        let unsent = self.links.values().map(|link| link.out.len());
        unsent.max().unwrap_or(0)
    }

    /// The bytes still to be written; the shell takes from the front what its socket takes.
    pub(crate) fn output(&mut self, id: LinkId) -> Option<&mut BytesMut> {
        self.links.get_mut(&id).map(|link| &mut link.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Pong;

    const PEER: NodeId = NodeId(7);

    fn pong() -> Message {
        Message::Pong(Pong { id: 1 })
    }

    #[test]
    fn a_peer_without_a_link_is_refused() {
        let mut links = Links::default();
        assert_eq!(links.send(PEER, &pong()), Err(SendRefusal::Down));
        let accepted = links.open(0, PEER, Direction::Accepted);
        assert_eq!(
            links.send(PEER, &pong()),
            Err(SendRefusal::Down),
            "not ours to ask on"
        );
        assert_eq!(links.close(accepted), None);
        let dialled = links.open(0, PEER, Direction::Dialled);
        assert_eq!(links.send(PEER, &pong()), Ok(()));
        assert_eq!(links.take_dirty(), [dialled]);
        assert_eq!(links.take_dirty(), []);
        assert_eq!(links.close(dialled), Some(PEER));
    }

    #[test]
    fn an_old_link_that_closes_late_does_not_take_the_new_one_down() {
        let mut links = Links::default();
        let old = links.open(0, PEER, Direction::Dialled);
        links.open(0, PEER, Direction::Dialled);
        assert_eq!(links.close(old), None);
        assert!(links.is_usable(PEER));
    }

    #[test]
    fn a_stopped_peer_is_found_by_pings_and_comes_back_when_heard() {
        let mut links = Links::default();
        let id = links.open(0, PEER, Direction::Dialled);
        let mut now_ns = 0;
        let mut lost_at_ns = None;
        while lost_at_ns.is_none() && now_ns < 10_000_000_000 {
            now_ns += HEALTH_TICK_NS;
            // Requests keep going out; nothing comes back.
            let _ = links.send(PEER, &pong());
            if links.tick(now_ns) == [PEER] {
                lost_at_ns = Some(now_ns);
            }
        }
        assert!(lost_at_ns.unwrap() <= 400_000_000 + HEALTH_TICK_NS);
        assert!(!links.is_usable(PEER));
        assert_eq!(links.send(PEER, &pong()), Err(SendRefusal::Down));
        assert_eq!(links.tick(now_ns + HEALTH_TICK_NS), [], "said once");
        links.heard(now_ns, id);
        assert!(links.is_usable(PEER));
    }

    #[test]
    fn a_silent_peer_is_asked_again_now_and_then() {
        let mut links = Links::default();
        let id = links.open(0, PEER, Direction::Dialled);
        let mut asked = 0;
        for now_ns in (0..10_000_000_000).step_by(HEALTH_TICK_NS as usize) {
            links.tick(now_ns);
            if links.take_dirty() == [id] {
                // The socket takes it, and nothing ever comes back.
                links.output(id).unwrap().clear();
                asked += 1;
            }
        }
        assert!(!links.is_usable(PEER));
        assert!((8..=10).contains(&asked), "{asked} pings in ten seconds");
    }

    #[test]
    fn a_peer_that_takes_bytes_is_alive_and_a_silent_one_is_given_up() {
        let mut links = Links::default();
        let id = links.open(0, PEER, Direction::Dialled);
        let mut now_ns = HEALTH_TICK_NS;
        links.tick(now_ns);
        for _ in 0..1_000 {
            links.send(PEER, &pong()).unwrap();
        }
        for _ in 0..100 {
            now_ns += HEALTH_TICK_NS;
            assert_eq!(links.tick(now_ns), [], "its socket still takes bytes");
            bytes::Buf::advance(links.output(id).unwrap(), 10);
        }
        let mut given_up_ns = None;
        let stalled_ns = now_ns;
        while given_up_ns.is_none() && now_ns < stalled_ns + 10_000_000_000 {
            now_ns += HEALTH_TICK_NS;
            links.tick(now_ns);
            given_up_ns = (links.take_given_up() == [id]).then_some(now_ns);
        }
        assert!(given_up_ns.unwrap() - stalled_ns < 3_000_000_000);
        assert_eq!(links.take_given_up(), [], "said once");
    }

    #[test]
    fn our_own_sleep_is_not_held_against_the_peer() {
        let mut links = Links::default();
        links.open(0, PEER, Direction::Dialled);
        links.tick(HEALTH_TICK_NS);
        let _ = links.send(PEER, &pong());
        links.tick(2 * HEALTH_TICK_NS);
        assert_eq!(links.tick(60_000_000_000), []);
        assert!(links.is_usable(PEER));
    }

    #[test]
    fn a_backlog_is_bounded() {
        let mut links = Links::default();
        let id = links.open(0, PEER, Direction::Dialled);
        links.output(id).unwrap().resize(LINK_BACKLOG_BYTES_MAX, 0);
        assert_eq!(links.send(PEER, &pong()), Err(SendRefusal::Backlogged));
        // A short word still passes, and a long one becomes a short refusal.
        links.reply(id, &pong());
        let record = Some(bytes::Bytes::from(vec![0; 4096]));
        let reply = GetReply {
            id: 1,
            record,
            ..GetReply::default()
        };
        links.reply(id, &Message::GetReply(reply));
        let out = links.output(id).unwrap();
        assert!(out.len() < LINK_BACKLOG_BYTES_MAX + 100, "{}", out.len());
        assert_eq!(links.replies_dropped, 0);
        links
            .output(id)
            .unwrap()
            .resize(2 * LINK_BACKLOG_BYTES_MAX, 0);
        links.reply(id, &pong());
        assert_eq!(links.replies_dropped, 1);
    }
}
