//! Messages in and out: what is accepted from whom, and where to send.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use mds_types::NodeId;
use openraft_rt::AsyncRuntime;

use super::Control;
use super::lead::propose;
use crate::raft::answer;
use crate::rt::Rt;
use crate::state::{Command, Response};
use crate::wire::{Body, Envelope, Proposed};

/// Questions of others that are being answered at a time; more are dropped, and asked again.
const ANSWERING_MAX: usize = 1024;

/// Addresses remembered from messages, for nodes that gossip does not know yet.
const ROUTES_MAX: usize = 2 * mds_types::limits::MEMBERS_MAX;

/// Where messages came from.
#[derive(Default)]
pub(super) struct Routes(BTreeMap<NodeId, String>);

impl Routes {
    fn learn(&mut self, node: NodeId, addr: String) {
        if self.0.len() < ROUTES_MAX || self.0.contains_key(&node) {
            self.0.insert(node, addr);
        }
    }
}

/// Counts a question for as long as it is being answered.
struct Answering(Arc<AtomicUsize>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Control {
    /// Takes a control message. It is judged by its own words; what it came through does not
    /// matter.
    pub fn on_message(&mut self, mono_ns: u64, bytes: Bytes) {
        self.advance(mono_ns);
        if !self.is_running() {
            return;
        }
        let envelope = match Envelope::decode(&bytes) {
            Some(envelope) if envelope.to == self.me && envelope.from != self.me => envelope,
            _ => {
                self.counters.malformed_messages += 1;
                return;
            }
        };
        let (from, cluster) = (envelope.from, envelope.cluster);
        match envelope.body {
            // These two are how nodes find out that they are of different clusters.
            Body::Invite { plan } => {
                self.routes.learn(from, envelope.reply_addr);
                self.on_invite(from, cluster, plan);
            }
            Body::Invited { cluster } => self.on_invited(from, cluster),
            _ if cluster != self.cluster() || cluster.is_none() => {
                self.counters.foreign_messages += 1;
                tracing::debug!(%from, %cluster, "dropped a message of another cluster");
            }
            // The state machine judges an announcement, and its sender has to hear the verdict.
            Body::Propose { id, command } => {
                let own = matches!(
                    &command,
                    Command::Announce { member, boot, nonce }
                        if member.incarnation.node_id() == from
                            && *boot == envelope.from_boot
                            && *nonce == envelope.from_nonce
                );
                self.routes.learn(from, envelope.reply_addr);
                if own {
                    self.on_propose(from, id, command);
                } else {
                    let reason = "a node may only announce its own start".to_owned();
                    let outcome = Proposed::Applied(Response::Refused(reason));
                    self.outbox.send(from, Body::Proposed { id, outcome });
                }
            }
            Body::Proposed { id, outcome } => {
                if id == self.announce_id {
                    self.on_announced(outcome);
                }
            }
            Body::SupersededStart => self.doubt = true,
            _ if self.is_superseded(from, envelope.from_boot, envelope.from_nonce) => {
                self.counters.stale_messages += 1;
                self.routes.learn(from, envelope.reply_addr.clone());
                self.reply_superseded(from, envelope.reply_addr);
            }
            Body::RaftRequest { id, rpc } => {
                self.routes.learn(from, envelope.reply_addr);
                self.answer_question(from, id, rpc);
            }
            Body::RaftReply { id, reply } => {
                let outbox = self.outbox.clone();
                self.exec.enter(|| outbox.answered(from, id, reply));
            }
        }
    }

    /// Whether this start of `from` is known to be over.
    fn is_superseded(&self, from: NodeId, boot: u64, nonce: u64) -> bool {
        let superseded = self.with_state(|state| {
            state.members.get(&from).is_some_and(|member| {
                boot < member.boot || (boot == member.boot && nonce != member.boot_nonce)
            })
        });
        superseded.unwrap_or(false)
    }

    fn answer_question(&mut self, from: NodeId, id: u64, rpc: crate::raft::RaftRpc) {
        let Some((raft, counted)) = self.begin_answer() else { return };
        let outbox = self.outbox.clone();
        self.exec.enter(|| {
            drop(Rt::spawn(async move {
                let reply = answer(&raft, rpc).await;
                outbox.send(from, Body::RaftReply { id, reply });
                drop(counted);
            }));
        });
    }

    fn on_propose(&mut self, from: NodeId, id: u64, command: Command) {
        let Some((raft, counted)) = self.begin_answer() else { return };
        let outbox = self.outbox.clone();
        self.exec.enter(|| {
            drop(Rt::spawn(async move {
                let outcome = propose(raft, command).await;
                outbox.send(from, Body::Proposed { id, outcome });
                drop(counted);
            }));
        });
    }

    fn begin_answer(&mut self) -> Option<(crate::raft::Raft, Answering)> {
        let parts = self.raft.as_ref()?;
        if self.answering.load(Ordering::Relaxed) >= ANSWERING_MAX {
            self.counters.shed_messages += 1;
            return None;
        }
        self.answering.fetch_add(1, Ordering::Relaxed);
        Some((parts.raft.clone(), Answering(self.answering.clone())))
    }

    /// Tells a start that is over to have itself judged. Gossip may know another address, of the
    /// start that goes on, so the answer goes where the message came from.
    fn reply_superseded(&mut self, to: NodeId, addr: String) {
        if let Some(bytes) = self.envelope(to, Body::SupersededStart) {
            self.direct.push((to, addr, bytes));
        }
    }

    pub(super) fn outgoing_messages(&mut self) -> Vec<(NodeId, String, Bytes)> {
        let mut messages = std::mem::take(&mut self.direct);
        let queued = self.outbox.take();
        if !self.is_running() {
            return Vec::new();
        }
        for (to, body) in queued {
            let Some(addr) = self.address(to) else {
                self.counters.shed_messages += 1;
                continue;
            };
            if let Some(bytes) = self.envelope(to, body) {
                messages.push((to, addr, bytes));
            }
        }
        messages
    }

    fn envelope(&self, to: NodeId, body: Body) -> Option<Bytes> {
        let envelope = Envelope {
            cluster: self.cluster(),
            from: self.me,
            from_boot: self.boot,
            from_nonce: self.nonce,
            reply_addr: self.config.info.peer_addr.clone(),
            to,
            body,
        };
        match envelope.encode() {
            Ok(bytes) => Some(bytes.into()),
            Err(error) => {
                tracing::error!(%error, "a control message could not be encoded");
                None
            }
        }
    }

    /// How to reach a node: as gossip says, else Raft, else the plan, else where it wrote from.
    fn address(&self, node: NodeId) -> Option<String> {
        let by_gossip = self.gossip.peers().get(&node).map(|peer| peer.id.info.peer_addr.clone());
        by_gossip
            .or_else(|| {
                let known = self.with_state(|state| {
                    state.members.get(&node).map(|member| member.info.peer_addr.clone())
                });
                known.flatten()
            })
            .or_else(|| self.plan.as_ref()?.peer_addr(node).map(str::to_owned))
            .or_else(|| self.routes.0.get(&node).cloned())
            .filter(|addr| !addr.is_empty())
    }
}
