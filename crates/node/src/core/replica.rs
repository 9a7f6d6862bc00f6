//! The replica's side: taking records and answering reads, for any coordinator, this node's own
//! included.
//!
//! A replica refuses before it begins (not serving, not its partition, a ring that is too old, too much
//! to do, a stamp from the future), so that a refusal always means *nothing was done*; and it
//! acknowledges only what the store has made durable.
//!
//! **Whose ring.** Every request carries the version of the rings that it was routed by. One from before
//! the last stage that may still be in force is refused (trap T5). One from a *later* version than this
//! node knows is served without asking whether this node is a replica: the sender knows more, and keeping
//! a record that one turns out not to own is harmless.

use std::sync::Arc;

use bytes::Bytes;
use mds_storage::store::{Ledger, PartitionState};
use mds_types::limits::KEY_BYTES_MAX;
use mds_types::mutation::{Mutation, is_on};
use mds_types::{Epoch, PartitionId, Record, RingUse, TopologyVersion};

use super::anti_entropy::failed_answer;
use super::{Core, Direction, LinkId};
use crate::api::Now;
use crate::store_io::{MergeResult, ReadAnswer, ReadQuery, ReplyTo, Ticket};
use crate::sync_io::{SyncAnswer, SyncQuery};
use crate::wire::{GetReply, Message, Pong, Purpose, PutReply, ScanReply, Status};

/// A request to a replica, from a peer or from this node's own coordinator.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum ReplicaRequest {
    Put {
        record: Record,
        purpose: Purpose,
    },
    Get {
        key: Bytes,
    },
    Page {
        partition: PartitionId,
        after: Option<Bytes>,
        limit: u32,
    },
    Count {
        partition: PartitionId,
    },
}

/// A replica's answer.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum ReplicaReply {
    Put(Status),
    /// With the watermark of the key's partition.
    Get(Status, Option<Record>, Epoch),
    Page(Status, ReplicaPage),
    Count(Status, u64),
    /// To a question of anti-entropy.
    Sync(Status, SyncAnswer),
}

/// A replica's page of a partition.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct ReplicaPage {
    /// In the order of keys, tombstones included.
    pub(super) records: Vec<Record>,
    /// Whether keys may follow after the last one.
    pub(super) more: bool,
    /// The replica's watermark of the partition, from before it read the page.
    pub(super) settled: Epoch,
}

/// Merges handed to the store and not answered yet, at most; further ones are refused.
pub const STORE_BACKLOG_MAX: usize = 64 * 1024;

/// Bytes of records among them, at most.
pub(crate) const STORE_BACKLOG_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Records of one page of a scan, at most.
pub(crate) const PAGE_RECORDS_MAX: u32 = 4096;

impl Core {
    /// Takes a message that came on an accepted link: a peer's request.
    pub(super) fn on_peer_request(&mut self, now: Now, link: LinkId, message: Message) {
        let reply_to = ReplyTo::Link(link);
        if self.on_sync_request(now, reply_to, &message) {
            self.sync.stats.note_received(&message);
            return;
        }
        match message {
            Message::Put(put) => {
                let version = TopologyVersion(put.topology);
                // A purpose of a newer node is none that a client's write may have.
                let purpose = Purpose::try_from(put.purpose).unwrap_or(Purpose::Repair);
                match Record::decode(put.record) {
                    Ok(record) => {
                        let request = ReplicaRequest::Put { record, purpose };
                        self.serve(now, reply_to, put.id, version, request);
                    }
                    Err(_) => {
                        self.answer(now, reply_to, put.id, ReplicaReply::Put(Status::Malformed));
                    }
                }
            }
            Message::Get(get) => {
                let version = TopologyVersion(get.topology);
                let request = ReplicaRequest::Get { key: get.key };
                self.serve(now, reply_to, get.id, version, request);
            }
            Message::Scan(scan) => {
                let Some(partition) = u16::try_from(scan.partition).ok().map(PartitionId) else {
                    let reply = ReplicaReply::Page(Status::Malformed, ReplicaPage::default());
                    return self.answer(now, reply_to, scan.id, reply);
                };
                let request = match scan.limit {
                    0 => ReplicaRequest::Count { partition },
                    limit => ReplicaRequest::Page {
                        partition,
                        after: scan.after,
                        limit,
                    },
                };
                let version = TopologyVersion(scan.topology);
                self.serve(now, reply_to, scan.id, version, request);
            }
            Message::Ping(ping) => self.links.reply(link, &Message::Pong(Pong { id: ping.id })),
            // Replies belong on the link that we dialled; here they answer nothing.
            _ => {}
        }
    }

    /// Does a request, as a replica. `version` is that of the rings it was routed by.
    pub(super) fn serve(
        &mut self,
        now: Now,
        reply_to: ReplyTo,
        id: u64,
        version: TopologyVersion,
        request: ReplicaRequest,
    ) {
        if let Err(status) = self.may_serve(now, version, &request) {
            self.stats.replica_refusals += 1;
            let reply = match request {
                ReplicaRequest::Put { .. } => ReplicaReply::Put(status),
                ReplicaRequest::Get { .. } => ReplicaReply::Get(status, None, Epoch(0)),
                ReplicaRequest::Page { .. } => ReplicaReply::Page(status, ReplicaPage::default()),
                ReplicaRequest::Count { .. } => ReplicaReply::Count(status, 0),
            };
            return self.answer(now, reply_to, id, reply);
        }
        let bytes = match &request {
            ReplicaRequest::Put { record, .. } => record.encoded_len(),
            _ => 0,
        };
        let ticket = Ticket {
            reply_to,
            id,
            bytes,
        };
        let query = match request {
            ReplicaRequest::Put { record, purpose } => {
                self.stats.replica_puts += 1;
                self.store_backlog += 1;
                self.store_backlog_bytes += bytes;
                self.batch.push(ticket, purpose_of(purpose), record);
                return;
            }
            ReplicaRequest::Get { key } => {
                self.stats.replica_gets += 1;
                ReadQuery::Get { key }
            }
            ReplicaRequest::Page {
                partition,
                after,
                limit,
            } => ReadQuery::Page {
                partition,
                after,
                limit: limit.min(PAGE_RECORDS_MAX),
            },
            ReplicaRequest::Count { partition } => ReadQuery::Count {
                partition,
                wall_ms: now.wall_ms(),
            },
        };
        self.reads.push((ticket, query));
    }

    /// Whether this node may do a request as a replica; the refusal that says why not.
    fn may_serve(
        &mut self,
        now: Now,
        version: TopologyVersion,
        request: &ReplicaRequest,
    ) -> Result<(), Status> {
        if !self.is_replica_serving() {
            return Err(Status::NotServing);
        }
        if version < self.rings.rings().accepted_from && !is_on(Mutation::StaleRingServed) {
            return Err(Status::StaleTopology);
        }
        let partition = match request {
            ReplicaRequest::Put { record, .. } => self.partition_of(&record.key),
            ReplicaRequest::Get { key } if key.is_empty() || key.len() > KEY_BYTES_MAX => {
                return Err(Status::Malformed);
            }
            ReplicaRequest::Get { key } => self.partition_of(key),
            ReplicaRequest::Page { partition, .. } | ReplicaRequest::Count { partition } => {
                if partition.0 >= self.rings.partition_count() {
                    return Err(Status::Malformed);
                }
                *partition
            }
        };
        // A neighbouring stage may write to, or read from, either ring.
        let is_known = self.rings.holds_in(RingUse::BOTH, partition, self.view.me);
        if !is_known && version <= self.rings.version() {
            return Err(Status::NotReplica);
        }
        let is_new = match request {
            ReplicaRequest::Put { purpose, .. } => *purpose != Purpose::Repair,
            _ => false,
        };
        if self.is_rebuilding(partition) && !is_new {
            return Err(Status::NotServing);
        }
        if let ReplicaRequest::Put { record, .. } = request {
            if self.store_backlog >= STORE_BACKLOG_MAX
                || self.store_backlog_bytes >= STORE_BACKLOG_BYTES_MAX
            {
                return Err(Status::Overloaded);
            }
            if record
                .value()
                .is_some_and(|value| value.len() > self.config.value_bytes_max)
            {
                return Err(Status::Malformed);
            }
            if self.clock.observe(now.wall_us, record.version.hlc).is_err() {
                self.stats.clock_skew_refusals += 1;
                return Err(Status::ClockSkew);
            }
        }
        Ok(())
    }

    /// Whether this node is a replica of a partition in the present ring and yet does not hold it whole: it was found
    /// wrong, as it is after it was left out of a change of the ring, and is being filled again. Until it is, it knows
    /// nothing of what is absent: a read that counted it might miss what was acknowledged. Nor may it answer a repair,
    /// for what its stream is to bring it refuses as settled, which would be taken for "it was deleted".
    fn is_rebuilding(&self, partition: PartitionId) -> bool {
        let ledger = self.sync.ledger.as_ref();
        let is_held =
            |ledger: &Arc<Ledger>| ledger.partition(partition).state == PartitionState::Held;
        self.rings
            .holds_in(RingUse::CURRENT, partition, self.view.me)
            && !ledger.is_none_or(is_held)
    }

    /// Takes what became of merges.
    pub(super) fn on_merged(&mut self, now: Now, merges: Vec<(Ticket, MergeResult)>) {
        for (ticket, result) in merges {
            let status = match result {
                MergeResult::Durable => Status::Ok,
                MergeResult::Refused => Status::Overloaded,
                MergeResult::EpochClosed => Status::EpochClosed,
                MergeResult::Settled => Status::Settled,
                MergeResult::Failed => Status::StorageFailed,
            };
            self.answer(now, ticket.reply_to, ticket.id, ReplicaReply::Put(status));
        }
    }

    /// Takes the answer to a read.
    pub(super) fn on_read_answer(
        &mut self,
        now: Now,
        ticket: Ticket,
        query: &ReadQuery,
        answer: Option<ReadAnswer>,
    ) {
        if let ReadQuery::Sync(question) = query {
            return self.on_sync_answer(now, ticket, question, answer);
        }
        let reply = match (query, answer) {
            (_, Some(ReadAnswer::Record(record, settled))) => {
                ReplicaReply::Get(Status::Ok, record, settled)
            }
            (
                _,
                Some(ReadAnswer::Page {
                    records,
                    more,
                    settled,
                }),
            ) => {
                let page = ReplicaPage {
                    records,
                    more,
                    settled,
                };
                ReplicaReply::Page(Status::Ok, page)
            }
            (_, Some(ReadAnswer::Count(count))) => ReplicaReply::Count(Status::Ok, count),
            (ReadQuery::Get { .. }, None) if is_on(Mutation::FailureIsNotFound) => {
                ReplicaReply::Get(Status::Ok, None, Epoch(0))
            }
            (ReadQuery::Get { .. }, None) => {
                ReplicaReply::Get(Status::StorageFailed, None, Epoch(0))
            }
            (ReadQuery::Page { .. }, None) => {
                ReplicaReply::Page(Status::StorageFailed, ReplicaPage::default())
            }
            (ReadQuery::Count { .. }, None) => ReplicaReply::Count(Status::StorageFailed, 0),
            // Dealt with above.
            (ReadQuery::Sync(_), _) | (_, Some(ReadAnswer::Sync(_))) => return,
        };
        self.answer(now, ticket.reply_to, ticket.id, reply);
    }

    /// Takes the answer to a question of anti-entropy: this node's own, or a peer's.
    fn on_sync_answer(
        &mut self,
        now: Now,
        ticket: Ticket,
        question: &SyncQuery,
        answer: Option<ReadAnswer>,
    ) {
        let answer = match answer {
            Some(ReadAnswer::Sync(answer)) => Some(answer),
            _ => None,
        };
        match (ticket.reply_to, answer) {
            (ReplyTo::Me, answer) => self.on_own_answer(now, ticket.id, answer),
            (reply_to, Some(answer)) => {
                let reply = ReplicaReply::Sync(Status::Ok, answer);
                self.answer(now, reply_to, ticket.id, reply);
            }
            (reply_to, None) => {
                let nothing = failed_answer(question);
                let reply = ReplicaReply::Sync(Status::StorageFailed, nothing);
                self.answer(now, reply_to, ticket.id, reply);
            }
        }
    }

    /// Sends a replica's answer where it belongs.
    pub(super) fn answer(&mut self, _now: Now, reply_to: ReplyTo, id: u64, reply: ReplicaReply) {
        let is_sync = matches!(reply, ReplicaReply::Sync(..));
        match reply_to {
            ReplyTo::Me => self.local_replies.push_back((id, reply)),
            ReplyTo::Link(link) => {
                let Some(message) = to_wire(id, reply) else {
                    return;
                };
                if is_sync {
                    self.sync.stats.note_sent(&message);
                }
                self.links.reply(link, &message);
            }
        }
    }

    /// Takes a message that came on a link we dialled: an answer to this node's own request.
    pub(super) fn on_peer_reply(&mut self, now: Now, link: LinkId, message: Message) {
        let Some((peer, Direction::Dialled)) = self.links.peer(link) else {
            return;
        };
        if self.on_sync_reply(now, peer, &message) {
            self.sync.stats.note_received(&message);
            return;
        }
        let record = |bytes: Bytes| Record::decode(bytes).ok();
        let (id, reply) = match message {
            Message::PutReply(reply) => (reply.id, ReplicaReply::Put(status_of(reply.status))),
            Message::GetReply(reply) => {
                let (status, settled) = (status_of(reply.status), Epoch(reply.settled));
                let reading = match reply.record {
                    None => ReplicaReply::Get(status, None, settled),
                    Some(bytes) => match record(bytes) {
                        Some(record) => ReplicaReply::Get(Status::Ok, Some(record), settled),
                        None => ReplicaReply::Get(Status::StorageFailed, None, settled),
                    },
                };
                (reply.id, reading)
            }
            Message::ScanReply(reply) => {
                let status = status_of(reply.status);
                let sent = reply.records.len();
                let records: Vec<Record> = reply.records.into_iter().filter_map(record).collect();
                let status = if records.len() == sent {
                    status
                } else {
                    Status::StorageFailed
                };
                // A count and a page differ by what was asked; the asker knows.
                if sent == 0 && reply.count > 0 {
                    (reply.id, ReplicaReply::Count(status, reply.count))
                } else {
                    let page = ReplicaPage {
                        records,
                        more: reply.more,
                        settled: Epoch(reply.settled),
                    };
                    (reply.id, ReplicaReply::Page(status, page))
                }
            }
            // A pong has done its work by being heard; requests do not come on this link.
            _ => return,
        };
        self.on_reply(now, peer, id, reply);
    }
}

fn status_of(number: i32) -> Status {
    // A status of a newer node: nothing is known of what it did.
    Status::try_from(number).unwrap_or(Status::StorageFailed)
}

pub(super) fn encode(record: &Record) -> Bytes {
    let mut bytes = Vec::with_capacity(record.encoded_len());
    record.encode(&mut bytes);
    Bytes::from(bytes)
}

/// A reply in the words of the wire. None for what is only for this node itself.
fn to_wire(id: u64, reply: ReplicaReply) -> Option<Message> {
    Some(match reply {
        ReplicaReply::Sync(status, answer) => {
            return super::anti_entropy::to_wire(id, status, answer);
        }
        ReplicaReply::Put(status) => Message::PutReply(PutReply {
            id,
            status: status as i32,
        }),
        ReplicaReply::Get(status, record, settled) => Message::GetReply(GetReply {
            id,
            status: status as i32,
            record: record.as_ref().map(encode),
            settled: settled.0,
        }),
        ReplicaReply::Page(status, page) => Message::ScanReply(ScanReply {
            id,
            status: status as i32,
            records: page.records.iter().map(encode).collect(),
            more: page.more,
            count: 0,
            settled: page.settled.0,
        }),
        ReplicaReply::Count(status, count) => Message::ScanReply(ScanReply {
            id,
            status: status as i32,
            records: Vec::new(),
            more: false,
            count,
            settled: 0,
        }),
    })
}

fn purpose_of(purpose: Purpose) -> mds_storage::store::Purpose {
    match purpose {
        Purpose::Write => mds_storage::store::Purpose::Write,
        Purpose::Hint => mds_storage::store::Purpose::Hint,
        Purpose::Repair => mds_storage::store::Purpose::Repair,
    }
}
