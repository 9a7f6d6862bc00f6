//! Coordinating reads.
//!
//! R replicas are asked, this node's own first. A further one is asked as soon as one fails, and when
//! one is slow (**hedging**; Dean and Barroso, *The Tail at Scale*, 2013). If the answers agree, the
//! client hears them. If not, the newest is written back, and the client hears it once W replicas are
//! known to hold it (**blocking read repair**), while the repair of the rest goes on behind the reply.
//!
//! "Absent" is an answer. An expired or deleted key is a record like any other here; only the client
//! sees it as absent.

use bytes::Bytes;
use mds_protocol::quorum::{Outcome as Quorum, ReadQuorum, check_quorum};
use mds_types::mutation::{Mutation, is_on};
use mds_types::{NodeId, Record};

use super::replica::ReplicaRequest;
use super::write::Encoded;
use super::{Core, OpKind, Pending, Replicas};
use crate::api::{Now, Outcome, RequestError, RequestOptions, Tag};
use crate::wire::{Get, Message, Purpose, Status};

/// A read in flight.
pub(super) struct ReadOp {
    tag: Tag,
    key: Bytes,
    pub(super) replicas: Replicas,
    quorum: ReadQuorum,
    /// W: replicas that must hold a repaired record before the client hears it.
    write_quorum: u8,
    /// Replicas that were asked, by index.
    asked: u16,
    /// Set while the newest record is being written back: replicas it was sent to and that have not
    /// failed. From then on the newest record is settled, and later answers are ignored.
    repairing: Option<u16>,
    started_ns: u64,
    deadline_ns: u64,
}

impl Core {
    /// Begins a read.
    ///
    /// # Errors
    /// When it is refused at once; else the answer comes through [`Core::take_done`].
    pub(super) fn begin_read(
        &mut self,
        now: Now,
        key: &Bytes,
        options: &RequestOptions,
        tag: Tag,
        deadline_ns: u64,
    ) -> Result<(), RequestError> {
        self.check_key(key)?;
        let config = self.coordinating()?;
        let write_quorum = options.write_quorum.unwrap_or(config.write_quorum);
        let mut needed = options.read_quorum.unwrap_or(config.read_quorum);
        for (name, quorum) in [("r", needed), ("w", write_quorum)] {
            check_quorum(name, quorum, config.replicas)
                .map_err(|error| RequestError::BadRequest(error.to_string()))?;
        }
        let replicas = Replicas::of(&self.ring, self.partition_of(key));
        if options.seen.is_some() {
            // A client that has seen its own write must see it again: meet every quorum of W.
            let meeting = config.replicas - write_quorum.min(config.write_quorum) + 1;
            needed = needed.max(meeting.min(replicas.len));
        }
        if let Some(seen) = options.seen {
            self.observe_client(now, seen)?;
        }
        let quorum = self.admit_quorum(&replicas, needed)?;
        let op = ReadOp {
            tag,
            key: key.clone(),
            replicas,
            quorum,
            write_quorum,
            asked: 0,
            repairing: None,
            started_ns: now.mono_ns,
            deadline_ns,
        };
        let id = self.pending.insert(Pending::Read(op));
        self.deadlines.insert(deadline_ns, id);
        self.settle_read(now, id);
        self.schedule_hedge(now, id);
        Ok(())
    }

    /// A quorum of the replicas that can be asked now.
    ///
    /// # Errors
    /// When too few can: nothing is sent.
    pub(super) fn admit_quorum(
        &self,
        replicas: &Replicas,
        needed: u8,
    ) -> Result<ReadQuorum, RequestError> {
        let mut quorum = ReadQuorum::new(needed, replicas.len);
        for (index, &node) in replicas.nodes().iter().enumerate() {
            if !self.is_usable(node) {
                quorum.fail(index);
            }
        }
        if let Quorum::Impossible { needed, of, .. } = quorum.outcome() {
            let got = reachable(&quorum);
            return Err(RequestError::Unavailable { needed, got, of });
        }
        Ok(quorum)
    }

    /// Asks one more replica, if there is one: this node first, then in the order of the ring.
    fn ask_another(&mut self, now: Now, id: u64) -> bool {
        loop {
            let me = self.view.me;
            let Some(Pending::Read(op)) = self.pending.get_mut(id) else {
                return false;
            };
            let candidates = op.quorum.outstanding();
            let is_unasked = |&index: &usize| op.asked & 1 << index == 0;
            let own = op
                .replicas
                .index_of(me)
                .filter(|&index| candidates.contains(index));
            let Some(index) = own
                .filter(is_unasked)
                .or_else(|| candidates.iter().find(is_unasked))
            else {
                return false;
            };
            op.asked |= 1 << index;
            let node = op.replicas.nodes()[index];
            let (key, deadline_ns) = (op.key.clone(), op.deadline_ns);
            if self.send_get(now, node, id, key, deadline_ns) {
                return true;
            }
            if let Some(Pending::Read(op)) = self.pending.get_mut(id) {
                op.quorum.fail(index);
            }
        }
    }

    fn send_get(&mut self, now: Now, to: NodeId, id: u64, key: Bytes, deadline_ns: u64) -> bool {
        if !self.is_usable(to) {
            return false;
        }
        if to == self.view.me {
            self.local_requests
                .push_back((id, ReplicaRequest::Get { key }));
            return true;
        }
        let topology = self.view.topology.version.0;
        let timeout_ms = (deadline_ns.saturating_sub(now.mono_ns) / 1_000_000) as u32;
        self.links
            .send(
                to,
                &Message::Get(Get {
                    id,
                    topology,
                    timeout_ms,
                    key,
                }),
            )
            .is_ok()
    }

    fn schedule_hedge(&mut self, now: Now, id: u64) {
        let (latency_us, deviation_us) = self.read_latency_us;
        let hedge_us = (latency_us + 4 * deviation_us)
            .clamp(self.config.hedge_us_min, self.config.hedge_us_max);
        if let Some(Pending::Read(op)) = self.pending.get_mut(id)
            && op
                .quorum
                .outstanding()
                .iter()
                .any(|index| op.asked & 1 << index == 0)
        {
            self.hedges.insert(now.mono_ns + hedge_us * 1_000, id);
        }
    }

    /// A read has waited long enough: ask somebody else too.
    pub(super) fn on_hedge_due(&mut self, now: Now, id: u64) {
        let is_waiting = match self.pending.get_mut(id) {
            Some(Pending::Read(op)) => op.repairing.is_none(),
            _ => false,
        };
        if is_waiting && self.ask_another(now, id) {
            self.stats.hedges += 1;
            self.schedule_hedge(now, id);
        }
    }

    /// A replica's answer.
    pub(super) fn on_get_reply(
        &mut self,
        now: Now,
        id: u64,
        from: NodeId,
        status: Status,
        record: Option<Record>,
    ) {
        let me = self.view.me;
        let Some(Pending::Read(op)) = self.pending.get_mut(id) else {
            return;
        };
        let Some(index) = op.replicas.index_of(from) else {
            return;
        };
        let is_foreign = record.as_ref().is_some_and(|record| record.key != op.key);
        let is_unwelcome = is_on(Mutation::NotFoundIsFailure) && record.is_none();
        if status != Status::Ok || is_foreign || is_unwelcome {
            return self.on_read_failed(now, id, index);
        }
        if op.repairing.is_some() {
            return;
        }
        let latency_us = now.mono_ns.saturating_sub(op.started_ns) / 1_000;
        if let Some(record) = &record
            && self.clock.observe(now.wall_us, record.version.hlc).is_err()
        {
            // Readable all the same: it was accepted when the clocks stood otherwise.
            self.stats.clock_skew_refusals += 1;
        }
        op.quorum.answer(index, record);
        if from != me {
            let (mean_us, deviation_us) = self.read_latency_us;
            let off_us = latency_us.abs_diff(mean_us);
            self.read_latency_us = (
                (mean_us * 7 + latency_us) / 8,
                (deviation_us * 3 + off_us) / 4,
            );
        }
        self.settle_read(now, id);
    }

    /// A replica acknowledged (or refused) a write-back.
    pub(super) fn on_repair_reply(&mut self, now: Now, id: u64, from: NodeId, status: Status) {
        let Some(Pending::Read(op)) = self.pending.get_mut(id) else {
            return;
        };
        let Some(index) = op.replicas.index_of(from) else {
            return;
        };
        if status != Status::Ok {
            return self.on_read_failed(now, id, index);
        }
        if op.repairing.is_some()
            && let Some(version) = op.quorum.newest().map(|newest| newest.version)
        {
            op.quorum.repair_acked(index, version);
            self.settle_read(now, id);
        }
    }

    /// A replica failed this read: it could not be asked, refused, or was lost.
    pub(super) fn on_read_failed(&mut self, now: Now, id: u64, index: usize) {
        let Some(Pending::Read(op)) = self.pending.get_mut(id) else {
            return;
        };
        match &mut op.repairing {
            Some(sent) => *sent &= !(1 << index),
            None => {
                op.quorum.fail(index);
            }
        }
        self.settle_read(now, id);
    }

    pub(super) fn on_read_deadline(&mut self, now: Now, id: u64) {
        let Some(Pending::Read(op)) = self.pending.get_mut(id) else {
            return;
        };
        let of = op.quorum.of();
        let (needed, got) = match op.repairing {
            None => (op.quorum.needed(), op.quorum.answered_count()),
            Some(_) => (op.write_quorum, op.quorum.durable_on().len()),
        };
        self.end_read(now, id, Err(RequestError::TimedOut { needed, got, of }));
    }

    /// Does what the state of a read asks for: ask more replicas, repair, answer.
    fn settle_read(&mut self, now: Now, id: u64) {
        loop {
            let Some(Pending::Read(op)) = self.pending.get_mut(id) else {
                return;
            };
            match op.quorum.outcome() {
                Quorum::Pending => {
                    let asked = op
                        .quorum
                        .outstanding()
                        .iter()
                        .filter(|i| op.asked & 1 << i != 0);
                    let expected = asked.count() as u8 + op.quorum.answered_count();
                    if expected >= op.quorum.needed() {
                        return;
                    }
                    self.ask_another(now, id);
                }
                Quorum::Impossible { needed, of, .. } => {
                    let got = reachable(&op.quorum);
                    let error = RequestError::Unavailable { needed, got, of };
                    return self.end_read(now, id, Err(error));
                }
                Quorum::Met if op.quorum.may_answer(op.write_quorum) => {
                    let outcome = visible(op.quorum.newest(), now);
                    if op.repairing.is_none() && !op.quorum.stale().is_empty() {
                        // Enough replicas hold it: the repair of the rest goes on behind the reply.
                        self.begin_repair(now, id);
                    }
                    return self.end_read(now, id, Ok(outcome));
                }
                Quorum::Met => match op.repairing {
                    None => self.begin_repair(now, id),
                    Some(sent) => {
                        // The quorum can still be met by those that have it and those still asked.
                        let durable = op.quorum.durable_on();
                        let hoped = (0..16).filter(|&i| sent & 1 << i != 0 && !durable.contains(i));
                        let possible = durable.len() + hoped.count() as u8;
                        if possible >= op.write_quorum {
                            return;
                        }
                        let (needed, of) = (op.write_quorum, op.quorum.of());
                        let error = RequestError::Unavailable {
                            needed,
                            got: possible,
                            of,
                        };
                        return self.end_read(now, id, Err(error));
                    }
                },
            }
        }
    }

    /// The answers differ: writes the newest back to everybody who is not known to have it.
    fn begin_repair(&mut self, now: Now, id: u64) {
        let Some(Pending::Read(op)) = self.pending.get_mut(id) else {
            return;
        };
        op.repairing = Some(0);
        let Some(mut newest) = op.quorum.newest().cloned() else {
            return;
        };
        if is_on(Mutation::RepairRestamped) {
            newest.version.node = self.view.me;
            newest.version.hlc = self.clock.now(now.wall_us).unwrap_or(newest.version.hlc);
        }
        let (replicas, durable) = (op.replicas, op.quorum.durable_on());
        let timeout_ms = (op.deadline_ns.saturating_sub(now.mono_ns) / 1_000_000) as u32;
        self.stats.disagreements += 1;
        let mut encoded = Encoded::new(&newest);
        let mut sent = 0u16;
        for (index, &node) in replicas.nodes().iter().enumerate() {
            if !durable.contains(index)
                && self.is_usable(node)
                && self.send_put(node, id, &mut encoded, Purpose::Repair, timeout_ms)
            {
                sent |= 1 << index;
                self.stats.repairs += 1;
            }
        }
        if let Some(Pending::Read(op)) = self.pending.get_mut(id) {
            op.repairing = Some(sent);
        }
    }

    pub(super) fn end_read(&mut self, now: Now, id: u64, result: Result<Outcome, RequestError>) {
        if let Some(Pending::Read(op)) = self.pending.remove(id) {
            self.finish_kind(now, op.started_ns, OpKind::Get, op.tag, result);
        }
    }
}

/// Replicas that answered or still may.
pub(super) fn reachable(quorum: &ReadQuorum) -> u8 {
    quorum.answered_count() + quorum.outstanding().len()
}

/// What a client sees of a record.
fn visible(record: Option<&Record>, now: Now) -> Outcome {
    let value = record.and_then(|record| record.visible_value(now.wall_ms()).cloned());
    Outcome::Read {
        version: record.map(|record| record.version),
        expires_at_ms: record
            .filter(|_| value.is_some())
            .and_then(|record| record.expires_at_ms),
        value,
    }
}
