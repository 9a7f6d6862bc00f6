//! The replica's side: taking records and answering reads, for any coordinator, this node's own
//! included.
//!
//! A replica refuses before it begins (not serving, not its partition, too much to do, a stamp from
//! the future), so that a refusal always means *nothing was done*; and it acknowledges only what the
//! store has made durable.

use bytes::Bytes;
use mds_types::limits::KEY_BYTES_MAX;
use mds_types::{PartitionId, Record};

use super::{Core, Direction, LinkId};
use crate::api::Now;
use crate::store_io::{MergeResult, ReadAnswer, ReadQuery, ReplyTo, Ticket};
use crate::wire::{GetReply, Message, Pong, PutReply, ScanReply, Status};

/// A request to a replica, from a peer or from this node's own coordinator.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum ReplicaRequest {
    Put {
        record: Record,
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
    Get(Status, Option<Record>),
    Page(Status, Vec<Record>, bool),
    Count(Status, u64),
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
        match message {
            Message::Put(put) => match Record::decode(put.record) {
                Ok(record) => self.serve(now, reply_to, put.id, ReplicaRequest::Put { record }),
                Err(_) => self.answer(now, reply_to, put.id, ReplicaReply::Put(Status::Malformed)),
            },
            Message::Get(get) => {
                self.serve(now, reply_to, get.id, ReplicaRequest::Get { key: get.key });
            }
            Message::Scan(scan) => {
                let Some(partition) = u16::try_from(scan.partition).ok().map(PartitionId) else {
                    let reply = ReplicaReply::Page(Status::Malformed, Vec::new(), false);
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
                self.serve(now, reply_to, scan.id, request);
            }
            Message::Ping(ping) => self.links.reply(link, &Message::Pong(Pong { id: ping.id })),
            // Replies belong on the link that we dialled; here they answer nothing.
            Message::PutReply(_) | Message::GetReply(_) | Message::ScanReply(_) => {}
            Message::Pong(_) => {}
        }
    }

    /// Does a request, as a replica.
    pub(super) fn serve(&mut self, now: Now, reply_to: ReplyTo, id: u64, request: ReplicaRequest) {
        if let Err(status) = self.may_serve(now, &request) {
            self.stats.replica_refusals += 1;
            let reply = match request {
                ReplicaRequest::Put { .. } => ReplicaReply::Put(status),
                ReplicaRequest::Get { .. } => ReplicaReply::Get(status, None),
                ReplicaRequest::Page { .. } => ReplicaReply::Page(status, Vec::new(), false),
                ReplicaRequest::Count { .. } => ReplicaReply::Count(status, 0),
            };
            return self.answer(now, reply_to, id, reply);
        }
        let bytes = match &request {
            ReplicaRequest::Put { record } => record.encoded_len(),
            _ => 0,
        };
        let ticket = Ticket {
            reply_to,
            id,
            bytes,
        };
        let query = match request {
            ReplicaRequest::Put { record } => {
                self.stats.replica_puts += 1;
                self.store_backlog += 1;
                self.store_backlog_bytes += bytes;
                self.batch.tickets.push(ticket);
                self.batch.merges.push(record);
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
    fn may_serve(&mut self, now: Now, request: &ReplicaRequest) -> Result<(), Status> {
        if !self.is_replica_serving() {
            return Err(Status::NotServing);
        }
        let partition = match request {
            ReplicaRequest::Put { record } => self.partition_of(&record.key),
            ReplicaRequest::Get { key } if key.is_empty() || key.len() > KEY_BYTES_MAX => {
                return Err(Status::Malformed);
            }
            ReplicaRequest::Get { key } => self.partition_of(key),
            ReplicaRequest::Page { partition, .. } | ReplicaRequest::Count { partition } => {
                if partition.0 >= self.ring.partition_count() {
                    return Err(Status::Malformed);
                }
                *partition
            }
        };
        if !self.ring.replicas(partition).contains(&self.view.me) {
            return Err(Status::NotReplica);
        }
        if let ReplicaRequest::Put { record } = request {
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

    /// Takes what became of merges.
    pub(super) fn on_merged(&mut self, now: Now, merges: Vec<(Ticket, MergeResult)>) {
        for (ticket, result) in merges {
            let status = match result {
                MergeResult::Durable => Status::Ok,
                MergeResult::Refused => Status::Overloaded,
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
        let reply = match (query, answer) {
            (_, Some(ReadAnswer::Record(record))) => ReplicaReply::Get(Status::Ok, record),
            (_, Some(ReadAnswer::Page { records, more })) => {
                ReplicaReply::Page(Status::Ok, records, more)
            }
            (_, Some(ReadAnswer::Count(count))) => ReplicaReply::Count(Status::Ok, count),
            (ReadQuery::Get { .. }, None) => ReplicaReply::Get(Status::StorageFailed, None),
            (ReadQuery::Page { .. }, None) => {
                ReplicaReply::Page(Status::StorageFailed, Vec::new(), false)
            }
            (ReadQuery::Count { .. }, None) => ReplicaReply::Count(Status::StorageFailed, 0),
        };
        self.answer(now, ticket.reply_to, ticket.id, reply);
    }

    /// Sends a replica's answer where it belongs.
    fn answer(&mut self, _now: Now, reply_to: ReplyTo, id: u64, reply: ReplicaReply) {
        match reply_to {
            ReplyTo::Me => self.local_replies.push_back((id, reply)),
            ReplyTo::Link(link) => self.links.reply(link, &to_wire(id, reply)),
        }
    }

    /// Takes a message that came on a link we dialled: an answer to this node's own request.
    pub(super) fn on_peer_reply(&mut self, now: Now, link: LinkId, message: Message) {
        let Some((peer, Direction::Dialled)) = self.links.peer(link) else {
            return;
        };
        let record = |bytes: Bytes| Record::decode(bytes).ok();
        let (id, reply) = match message {
            Message::PutReply(reply) => (reply.id, ReplicaReply::Put(status_of(reply.status))),
            Message::GetReply(reply) => match reply.record {
                None => (reply.id, ReplicaReply::Get(status_of(reply.status), None)),
                Some(bytes) => match record(bytes) {
                    Some(record) => (reply.id, ReplicaReply::Get(Status::Ok, Some(record))),
                    None => (reply.id, ReplicaReply::Get(Status::StorageFailed, None)),
                },
            },
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
                    (reply.id, ReplicaReply::Page(status, records, reply.more))
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

fn encode(record: &Record) -> Bytes {
    let mut bytes = Vec::with_capacity(record.encoded_len());
    record.encode(&mut bytes);
    Bytes::from(bytes)
}

fn to_wire(id: u64, reply: ReplicaReply) -> Message {
    match reply {
        ReplicaReply::Put(status) => Message::PutReply(PutReply {
            id,
            status: status as i32,
        }),
        ReplicaReply::Get(status, record) => Message::GetReply(GetReply {
            id,
            status: status as i32,
            record: record.as_ref().map(encode),
        }),
        ReplicaReply::Page(status, records, more) => Message::ScanReply(ScanReply {
            id,
            status: status as i32,
            records: records.iter().map(encode).collect(),
            more,
            count: 0,
        }),
        ReplicaReply::Count(status, count) => Message::ScanReply(ScanReply {
            id,
            status: status as i32,
            records: Vec::new(),
            more: false,
            count,
        }),
    }
}
