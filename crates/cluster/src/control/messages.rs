//! Messages in and out: what is accepted from whom, and where to send.
//!
//! Answers go to the address that the question names, not to the one that gossip knows: of a
//! directory and its copy each has to hear its own verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use mds_types::NodeId;
use mds_types::mutation::{Mutation, is_on};
use openraft_rt::AsyncRuntime;

use super::Control;
use super::lead::propose;
use crate::exec::lock;
use crate::raft::{RaftRpc, Sender, answer};
use crate::rt::Rt;
use crate::state::{Command, REMOVED, follows, start_number_used};
use crate::wire::{Body, Envelope};

/// Questions of others that are being answered at a time; more are dropped, and asked again.
const ANSWERING_MAX: usize = 1024;

/// Counts a question for as long as it is being answered.
pub(super) struct Answering(Arc<AtomicUsize>);

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
        let clock_us = envelope.clock_us;
        if self.is_present_start(from, envelope.from_boot, envelope.from_nonce) {
            self.clocks.heard(from, self.now_ns, clock_us);
        }
        // A copy from before its original learnt of the cluster belongs to none, and is not invited again.
        let is_ours = cluster == self.cluster() || self.cluster().is_none();
        if is_ours && !self.remembers_start(envelope.to_nonce) {
            return self.refuse(start_number_used(self.boot));
        }
        match envelope.body {
            // These two are how nodes find out that they are of different clusters.
            Body::Invite { plan } => self.on_invite(from, envelope.reply_addr, cluster, plan),
            Body::Invited { cluster } => self.on_invited(from, cluster),
            Body::WhichStart
                if self.is_superseded(from, envelope.from_boot, envelope.from_nonce) =>
            {
                self.outbox
                    .send_to_start(from, envelope.reply_addr, Body::SupersededStart);
            }
            _ if cluster != self.cluster() || cluster.is_none() => {
                self.counters.foreign_messages += 1;
                tracing::debug!(%from, %cluster, "dropped a message of another cluster");
            }
            Body::Removed { incarnation } => {
                if incarnation == self.home.identity().incarnation {
                    self.refuse(REMOVED.to_owned());
                }
            }
            _ if self.with_state(|state| state.is_removed(from)) == Some(true) => {
                self.counters.stale_messages += 1;
                self.tell_removed(from, Some(envelope.reply_addr));
            }
            // The state machine judges an announcement, and its sender has to hear the verdict.
            Body::Propose { id, command } => {
                let own = matches!(
                    &command,
                    Command::Announce { member, boot, nonce, .. }
                        if member.incarnation.node_id() == from
                            && *boot == envelope.from_boot
                            && *nonce == envelope.from_nonce
                );
                let reported = matches!(
                    &command,
                    Command::Ack { member, .. } | Command::Ready { member, .. } if *member == from
                ) && self.is_present_start(
                    from,
                    envelope.from_boot,
                    envelope.from_nonce,
                );
                if own || reported {
                    self.on_propose(from, envelope.reply_addr, id, command);
                } else {
                    self.counters.malformed_messages += 1;
                }
            }
            Body::Proposed { id, outcome } => {
                if id == self.announce_id {
                    self.on_announced(outcome);
                }
            }
            Body::SupersededStart => self.doubt = true,
            Body::LogReverted { boot, nonce, index } => {
                if (boot, nonce) == (self.boot, self.nonce) {
                    self.refuse(format!(
                        "this data directory is a copy or was restored from a backup: its log \
                         lacks entries up to {index} that this node had acknowledged. Start this \
                         node with an empty directory: it joins as a new member"
                    ));
                }
            }
            _ if self.is_superseded(from, envelope.from_boot, envelope.from_nonce) => {
                self.counters.stale_messages += 1;
                self.outbox
                    .send_to_start(from, envelope.reply_addr, Body::SupersededStart);
            }
            // It is not over: what its sender waits for will come.
            Body::WhichStart => {}
            Body::Ask { id, request, ask } => {
                self.answer_ask(from, envelope.reply_addr, id, request, ask);
            }
            Body::Asked { id, outcome } => self.on_asked(id, outcome),
            Body::RaftRequest { id, rpc } => {
                self.answer_question(from, envelope.reply_addr, id, rpc);
            }
            Body::RaftReply { id, reply } => {
                let outbox = self.outbox.clone();
                let start = Sender {
                    boot: envelope.from_boot,
                    nonce: envelope.from_nonce,
                    addr: envelope.reply_addr,
                };
                self.exec.enter(|| outbox.answered(from, start, id, reply));
            }
        }
    }

    /// Whether a start of this node that somebody knows to be agreed on is this one, or one that its
    /// directory remembers. If not, the directory is a copy that was taken before that start.
    fn remembers_start(&self, nonce: u64) -> bool {
        let remembers = nonce == self.nonce || self.earlier_starts.contains(&nonce);
        nonce == 0 || remembers || is_on(Mutation::CopyAccepted)
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

    /// Whether this is the start of `from` that the cluster has agreed on last.
    fn is_present_start(&self, from: NodeId, boot: u64, nonce: u64) -> bool {
        let present = self.with_state(|state| {
            let member = state.members.get(&from);
            member.is_some_and(|member| (member.boot, member.boot_nonce) == (boot, nonce))
        });
        present.unwrap_or(false)
    }

    /// Tells a node that its directory was removed, so that it stops.
    pub(super) fn tell_removed(&self, node: NodeId, addr: Option<String>) {
        let gone = self.with_state(|state| {
            let mut removed = state.removed.iter().rev();
            removed.find(|gone| gone.node_id() == node).copied()
        });
        if let Some(Some(incarnation)) = gone {
            let body = Body::Removed { incarnation };
            match addr {
                Some(addr) => self.outbox.send_to_start(node, addr, body),
                None => self.outbox.send(node, body),
            }
        }
    }

    fn answer_question(&mut self, from: NodeId, addr: String, id: u64, rpc: RaftRpc) {
        let Some((raft, counted)) = self.begin_answer() else {
            return;
        };
        let outbox = self.outbox.clone();
        let log_confirmed = self.log_confirmed.clone();
        self.exec.enter(|| {
            drop(Rt::spawn(async move {
                let reply = answer(&raft, rpc).await;
                if reply.confirms_log() {
                    log_confirmed.store(true, Ordering::Relaxed);
                }
                outbox.send_to_start(from, addr, Body::RaftReply { id, reply });
                drop(counted);
            }));
        });
    }

    fn on_propose(&mut self, from: NodeId, addr: String, id: u64, command: Command) {
        let Some((raft, counted)) = self.begin_answer() else {
            return;
        };
        let outbox = self.outbox.clone();
        self.exec.enter(|| {
            drop(Rt::spawn(async move {
                let outcome = propose(raft, command).await;
                outbox.send_to_start(from, addr, Body::Proposed { id, outcome });
                drop(counted);
            }));
        });
    }

    pub(super) fn begin_answer(&mut self) -> Option<(crate::raft::Raft, Answering)> {
        let parts = self.raft.as_ref()?;
        if self.answering.load(Ordering::Relaxed) >= ANSWERING_MAX {
            self.counters.shed_messages += 1;
            return None;
        }
        self.answering.fetch_add(1, Ordering::Relaxed);
        Some((parts.raft.clone(), Answering(self.answering.clone())))
    }

    pub(super) fn outgoing_messages(&mut self) -> Vec<(NodeId, String, Bytes)> {
        let queued = self.outbox.take();
        if !self.is_running() {
            return Vec::new();
        }
        let mut messages = Vec::with_capacity(queued.len());
        for message in queued {
            let Some(addr) = message.addr.or_else(|| self.address(message.to)) else {
                self.counters.shed_messages += 1;
                continue;
            };
            if let Some(bytes) = self.envelope(message.to, message.body) {
                messages.push((message.to, addr, bytes));
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
            clock_us: self.clocks.own_us(),
            to,
            to_nonce: self.agreed_start(to),
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

    /// The number of a node's start that is agreed on, as far as this node's log says; 0 if none is. What
    /// is in the log counts before it is applied: after a restart a leader has applied little, and all
    /// that was ever agreed on is in its log.
    fn agreed_start(&self, node: NodeId) -> u64 {
        let Some(parts) = &self.raft else { return 0 };
        let (known, applied) = {
            let applied = lock(&parts.applied);
            let member = applied.state.members.get(&node);
            (
                member.map(|member| (member.boot, member.boot_nonce)),
                applied.last.as_ref().map_or(0, |last| last.index),
            )
        };
        let (mut boot, mut nonce) = known.unwrap_or_default();
        for (next, drawn, earlier) in parts.log.starts_after(applied, node) {
            if follows(boot, nonce, next, &earlier) {
                (boot, nonce) = (next, drawn);
            }
        }
        nonce
    }

    /// How to reach a node: as gossip says of who is alive, else Raft, else gossip all the same, else the
    /// plan. Of a node that gossip holds for dead it may know the address of a refused copy only.
    fn address(&self, node: NodeId) -> Option<String> {
        let peer = self.gossip.peers().get(&node);
        let by_gossip = peer.map(|peer| peer.id.info.peer_addr.clone());
        by_gossip
            .clone()
            .filter(|_| peer.is_some_and(|peer| peer.alive))
            .or_else(|| {
                let known = self.with_state(|state| {
                    state
                        .members
                        .get(&node)
                        .map(|member| member.info.peer_addr.clone())
                });
                known.flatten()
            })
            .or(by_gossip)
            .or_else(|| self.plan.as_ref()?.peer_addr(node).map(str::to_owned))
            .filter(|addr| !addr.is_empty())
    }
}
