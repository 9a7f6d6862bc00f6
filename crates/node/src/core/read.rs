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
use mds_protocol::quorum::{Outcome as Quorum, ReadQuorum, ReplicaSet, check_quorum};
use mds_types::mutation::{Mutation, is_on};
use mds_types::{ClusterConfig, Epoch, NodeId, Record, TopologyVersion};

use super::replica::ReplicaRequest;
use super::write::{Encoded, unavailable};
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
    /// Replicas of the rings that are read.
    readable: ReplicaSet,
    /// Replicas that were asked, by index.
    asked: ReplicaSet,
    /// Set while the newest record is being written back: replicas it was sent to and that have not
    /// failed. From then on the newest record is settled, and later answers are ignored.
    repairing: Option<ReplicaSet>,
    /// The version of the rings that it goes by.
    pub(super) ring: TopologyVersion,
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
        self.coordinating()?;
        let config = self.rings.config();
        let write_quorum = options.write_quorum.unwrap_or(config.write_quorum);
        let needed = options.read_quorum.unwrap_or(config.read_quorum);
        for (name, quorum) in [("r", needed), ("w", write_quorum)] {
            check_quorum(name, quorum, config.replicas)
                .map_err(|error| RequestError::BadRequest(error.to_string()))?;
        }
        if let Some(seen) = options.seen {
            self.observe_client(now, seen)?;
        }
        // What is read may have to be written back to replicas that are not read: they are on the list.
        let replicas = self.rings.write_replicas(self.partition_of(key));
        let readable = replicas.of(self.rings.stage().reads());
        let has_token = options.seen.is_some();
        let r = |config: &ClusterConfig| {
            let r = options.read_quorum.unwrap_or(config.read_quorum);
            if !has_token {
                return r.min(config.replicas);
            }
            // A client that has seen its own write must see it again: meet every quorum of W.
            let w = options.write_quorum.unwrap_or(config.write_quorum);
            let meeting = config.replicas - w.min(config.write_quorum).min(config.replicas) + 1;
            r.max(meeting).min(config.replicas)
        };
        let shown_from = self.rings.rings().shown_after_write_back_from(self.epoch());
        let quorum = self
            .rings
            .read_quorum(&replicas, r, options.write_quorum, shown_from);
        let quorum = self.admit_quorum(&replicas, readable, quorum)?;
        let op = ReadOp {
            tag,
            key: key.clone(),
            replicas,
            quorum,
            write_quorum,
            readable,
            asked: ReplicaSet::EMPTY,
            repairing: None,
            ring: self.rings.version(),
            started_ns: now.mono_ns,
            deadline_ns,
        };
        let id = self.pending.insert(Pending::Read(op));
        self.deadlines.insert(deadline_ns, id);
        self.settle_read(now, id);
        self.schedule_hedge(now, id);
        Ok(())
    }

    /// Takes out of a quorum the replicas that cannot be asked now.
    ///
    /// # Errors
    /// When too few can: nothing is sent.
    pub(super) fn admit_quorum(
        &self,
        replicas: &Replicas,
        readable: ReplicaSet,
        mut quorum: ReadQuorum,
    ) -> Result<ReadQuorum, RequestError> {
        for index in readable.iter() {
            if replicas
                .node(index)
                .is_none_or(|node| !self.is_usable(node))
            {
                quorum.fail(index);
            }
        }
        match quorum.hopeless() {
            Some(short) => Err(unavailable(short)),
            None => Ok(quorum),
        }
    }

    /// Which of these replicas to ask next: this node's own first, then in the order of the ring.
    pub(super) fn preferred(&self, replicas: &Replicas, among: ReplicaSet) -> Option<usize> {
        let own = replicas.index_of(self.view.me);
        own.filter(|&index| among.contains(index))
            .or_else(|| among.iter().next())
    }

    /// Asks one more replica, if there is one.
    fn ask_another(&mut self, now: Now, id: u64) -> bool {
        loop {
            let Some(Pending::Read(op)) = self.pending.get(id) else {
                return false;
            };
            let needed = op.quorum.to_ask(op.asked);
            let unasked = op.quorum.outstanding().without(op.asked);
            let spare = unasked.intersection(op.readable);
            let among = if needed.is_empty() { spare } else { needed };
            let replicas = op.replicas;
            let Some(index) = self.preferred(&replicas, among) else {
                return false;
            };
            let Some(Pending::Read(op)) = self.pending.get_mut(id) else {
                return false;
            };
            op.asked = op.asked.union(ReplicaSet::from_iter([index]));
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
        let topology = self.rings.version().0;
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
            && !op
                .quorum
                .outstanding()
                .without(op.asked)
                .intersection(op.readable)
                .is_empty()
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
        settled: Epoch,
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
        op.quorum.answer_settled(index, record, settled);
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
        if status == Status::Settled
            && op.repairing.is_some()
            && let Some(version) = op.quorum.newest().map(|newest| newest.version)
        {
            // It was deleted or overwritten everywhere, and that was proved and forgotten meanwhile.
            op.quorum.refused_as_settled(version);
            op.repairing = None;
            return self.settle_read(now, id);
        }
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
            Some(sent) => *sent = sent.without(ReplicaSet::from_iter([index])),
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
        let short = match op.repairing {
            None => op.quorum.shortfall(),
            Some(_) => {
                let short = op
                    .quorum
                    .repair_shortfall(op.write_quorum, ReplicaSet::EMPTY);
                short.unwrap_or(op.quorum.shortfall())
            }
        };
        let error = RequestError::TimedOut {
            needed: short.needed,
            got: short.got,
            of: short.of,
        };
        self.end_read(now, id, Err(error));
    }

    /// Does what the state of a read asks for: ask more replicas, repair, answer.
    fn settle_read(&mut self, now: Now, id: u64) {
        loop {
            let Some(Pending::Read(op)) = self.pending.get_mut(id) else {
                return;
            };
            match op.quorum.outcome() {
                Quorum::Pending => {
                    if op.quorum.to_ask(op.asked).is_empty() {
                        return;
                    }
                    self.ask_another(now, id);
                }
                Quorum::Impossible { .. } => {
                    let short = op.quorum.hopeless().unwrap_or(op.quorum.shortfall());
                    return self.end_read(now, id, Err(unavailable(short)));
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
                        let short = op.quorum.repair_shortfall(op.write_quorum, sent);
                        let Some(short) = short else {
                            return;
                        };
                        return self.end_read(now, id, Err(unavailable(short)));
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
        op.repairing = Some(ReplicaSet::EMPTY);
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
        let mut sent = ReplicaSet::EMPTY;
        for (index, &node) in replicas.nodes().iter().enumerate() {
            if !durable.contains(index)
                && self.is_usable(node)
                && self.send_put(node, id, &mut encoded, Purpose::Repair, timeout_ms)
            {
                sent = sent.union(ReplicaSet::from_iter([index]));
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
