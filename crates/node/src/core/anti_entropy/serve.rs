//! Answering other replicas' questions of anti-entropy: from the wire to the store's reader, and back.
//!
//! Whoever asks is answered as long as this node serves as a replica; comparing needs the same rings on both
//! sides besides, because a group is a group under one version only.

use mds_storage::IndexRow;
use mds_storage::store::{RangeOf, ScrubStep};
use mds_types::{Epoch, NodeId, PartitionId};

use super::super::Core;
use super::super::replica::ReplicaReply;
use crate::api::Now;
use crate::store_io::{ReadQuery, ReplyTo, Ticket};
use crate::sync_io::{Compared, RangeAnswer, RangeAsk, RangeQuery, RootOf, SyncAnswer, SyncQuery};
use crate::wire::{
    FetchReply, HashesReply, Message, Range, RangeReply, RootReply, Roots, RootsReply, Row,
    RowsReply, Status, StreamReply, Verdict, hash_bytes, hash_of,
};

impl Core {
    /// Takes a question of anti-entropy. False: it is none.
    pub(in super::super) fn on_sync_request(
        &mut self,
        now: Now,
        reply_to: ReplyTo,
        message: &Message,
    ) -> bool {
        let (id, query) = match message {
            Message::Roots(roots) => {
                if roots.topology != self.rings.version().0 {
                    let message = other_topology(roots);
                    self.answer_sync(reply_to, &message);
                    return true;
                }
                self.note_asked_by(now, reply_to, roots);
                (roots.id, compare_query(roots))
            }
            Message::Hashes(hashes) => {
                let query = SyncQuery::Hashes {
                    partition: partition(hashes.partition),
                    epoch: Epoch(hashes.epoch),
                    level: hashes.level,
                    nodes: hashes.nodes.clone(),
                };
                (hashes.id, Some(query))
            }
            Message::Rows(rows) => {
                let buckets = rows
                    .buckets
                    .iter()
                    .map(|bucket| u16::try_from(*bucket).ok());
                let buckets: Option<Vec<u16>> = buckets.collect();
                let buckets = buckets.filter(|buckets| buckets.is_sorted());
                let query = buckets.map(|buckets| SyncQuery::Rows {
                    partition: partition(rows.partition),
                    epoch: Epoch(rows.epoch),
                    buckets,
                    after: rows.after.clone(),
                });
                (rows.id, query)
            }
            Message::Fetch(fetch) => (fetch.id, Some(SyncQuery::Records(fetch.keys.clone()))),
            // A group is a group under one version of the rings.
            Message::Range(range) if range.topology != self.rings.version().0 => {
                let answer = SyncAnswer::Range(RangeAnswer::OtherPast);
                let reply = ReplicaReply::Sync(Status::StaleTopology, answer);
                self.answer(now, reply_to, range.id, reply);
                return true;
            }
            Message::Range(range) => (range.id, range_query(range)),
            Message::Stream(stream) => {
                let query = SyncQuery::Stream {
                    partition: partition(stream.partition),
                    after: stream.after.clone(),
                    is_probe: stream.is_probe,
                };
                (stream.id, Some(query))
            }
            _ => return false,
        };
        let ticket = Ticket {
            reply_to,
            id,
            bytes: 0,
        };
        let status = match &query {
            _ if !self.is_replica_serving() => Status::NotServing,
            None => Status::Malformed,
            Some(_) => Status::Ok,
        };
        match query {
            Some(query) if status == Status::Ok => {
                self.reads.push((ticket, ReadQuery::Sync(query)));
            }
            query => {
                let query = query.unwrap_or(SyncQuery::Records(Vec::new()));
                let reply = ReplicaReply::Sync(status, refusal_of(message, query));
                self.answer(now, reply_to, id, reply);
            }
        }
        true
    }

    fn note_asked_by(&mut self, now: Now, reply_to: ReplyTo, roots: &Roots) {
        let ReplyTo::Link(link) = reply_to else {
            return;
        };
        if let Some((member, _)) = self.links.peer(link) {
            let items = roots.items.iter();
            let partitions: Vec<_> = items.map(|item| partition(item.partition)).collect();
            self.note_asked(now, member, &partitions);
        }
    }

    fn answer_sync(&mut self, reply_to: ReplyTo, message: &Message) {
        if let ReplyTo::Link(link) = reply_to {
            self.sync.stats.note_sent(message);
            self.links.reply(link, message);
        }
    }

    /// A member's answer to a question of anti-entropy. False: it is none.
    pub(in super::super) fn on_sync_reply(
        &mut self,
        now: Now,
        from: NodeId,
        message: &Message,
    ) -> bool {
        match message {
            Message::RootsReply(reply) => {
                let is_ok = reply.status == Status::Ok as i32;
                match is_ok {
                    true => self.on_roots_reply(now, reply.id, &reply.answers),
                    false => self.on_compare_failed(now, reply.id),
                }
            }
            Message::HashesReply(reply) => self.on_hashes_reply(now, reply.id, reply),
            Message::RowsReply(reply) => self.on_rows_reply(now, reply.id, reply.clone()),
            Message::FetchReply(reply) => {
                self.on_fetch_reply(now, reply.id, reply);
                self.on_scrub_fetched(now, reply.id, reply);
            }
            Message::RangeReply(reply) => self.on_range_reply(now, reply.id, from, reply),
            Message::StreamReply(reply) => self.on_stream_reply(now, reply.id, from, reply),
            _ => return false,
        }
        true
    }
}

/// A partition that does not exist has no tree and no records: the answer says so.
fn partition(number: u32) -> PartitionId {
    PartitionId(u16::try_from(number).unwrap_or(u16::MAX))
}

fn compare_query(roots: &Roots) -> Option<SyncQuery> {
    let items = roots.items.iter().map(|item| {
        Some(RootOf {
            partition: partition(item.partition),
            epoch: Epoch(item.epoch),
            root: hash_of(&item.root)?,
        })
    });
    let items: Option<Vec<RootOf>> = items.collect();
    items.map(SyncQuery::Compare)
}

fn range_query(range: &Range) -> Option<SyncQuery> {
    let ask = match &range.root {
        Some(root) => RangeAsk::Root(hash_of(root)?),
        None => {
            let buckets = range
                .buckets
                .iter()
                .map(|bucket| u16::try_from(*bucket).ok());
            RangeAsk::Rows(buckets.collect::<Option<_>>()?)
        }
    };
    let of = RangeOf {
        settled: Epoch(range.settled),
        chain: hash_of(&range.chain)?,
        left_out_ms: range.left_out_ms,
        after: range.after.clone(),
        up_to: range.up_to.clone(),
    };
    Some(SyncQuery::Range(Box::new(RangeQuery {
        partition: partition(range.partition),
        of,
        ask,
    })))
}

fn other_topology(roots: &Roots) -> Message {
    let answer = RootReply {
        verdict: Verdict::OtherTopology as i32,
        ..RootReply::default()
    };
    Message::RootsReply(RootsReply {
        id: roots.id,
        status: Status::Ok as i32,
        answers: vec![answer; roots.items.len()],
    })
}

/// An empty answer of the kind that a question asks for, to carry a refusal.
fn refusal_of(message: &Message, query: SyncQuery) -> SyncAnswer {
    match (message, query) {
        (Message::Roots(_), _) => SyncAnswer::Compared(Vec::new()),
        (Message::Hashes(_), _) => SyncAnswer::Hashes(None),
        (Message::Rows(_), _) => SyncAnswer::Rows {
            rows: Vec::new(),
            more: false,
        },
        (Message::Stream(_), _) => SyncAnswer::Stream(None),
        (Message::Range(_), _) => SyncAnswer::Range(RangeAnswer::OtherPast),
        _ => SyncAnswer::Records {
            records: Vec::new(),
            taken: 0,
        },
    }
}

/// An empty answer to a question whose reading failed.
pub(in super::super) fn failed_answer(query: &SyncQuery) -> SyncAnswer {
    match query {
        SyncQuery::Roots(_) => SyncAnswer::Roots(Vec::new()),
        SyncQuery::Compare(_) => SyncAnswer::Compared(Vec::new()),
        SyncQuery::Tree(..) => SyncAnswer::Tree(None),
        SyncQuery::Hashes { .. } => SyncAnswer::Hashes(None),
        SyncQuery::Rows { .. } => SyncAnswer::Rows {
            rows: Vec::new(),
            more: false,
        },
        SyncQuery::Records(_) => SyncAnswer::Records {
            records: Vec::new(),
            taken: 0,
        },
        SyncQuery::Stream { .. } => SyncAnswer::Stream(None),
        // Only this node asks itself.
        SyncQuery::Scrub(scrub) => {
            SyncAnswer::Scrub(Box::new(((**scrub).clone(), ScrubStep::default())))
        }
        SyncQuery::Range(_) => SyncAnswer::Range(RangeAnswer::OtherPast),
    }
}

/// An answer in the words of the wire. None for answers that are only for this node itself.
pub(in super::super) fn to_wire(id: u64, status: Status, answer: SyncAnswer) -> Option<Message> {
    Some(match answer {
        SyncAnswer::Compared(compared) => Message::RootsReply(RootsReply {
            id,
            status: status as i32,
            answers: compared.into_iter().map(root_reply).collect(),
        }),
        SyncAnswer::Hashes(hashes) => {
            // Settled meanwhile, or never there: the asker compares anew.
            let status = match hashes {
                None if status == Status::Ok => Status::Settled,
                _ => status,
            };
            let hashes = hashes.unwrap_or_default();
            let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
            Message::HashesReply(HashesReply {
                id,
                status: status as i32,
                hashes: bytes.into(),
            })
        }
        SyncAnswer::Rows { rows, more } => Message::RowsReply(RowsReply {
            id,
            status: status as i32,
            rows: rows.into_iter().map(row_to_wire).collect(),
            more,
        }),
        SyncAnswer::Records { records, taken } => Message::FetchReply(FetchReply {
            id,
            status: status as i32,
            records: records.iter().map(super::super::replica::encode).collect(),
            taken: taken as u32,
        }),
        SyncAnswer::Stream(page) => {
            let status = match page {
                None if status == Status::Ok => Status::NotReplica,
                _ => status,
            };
            let page = page.unwrap_or_default();
            Message::StreamReply(StreamReply {
                id,
                status: status as i32,
                records: page
                    .records
                    .iter()
                    .map(super::super::replica::encode)
                    .collect(),
                more: page.more,
                settled: page.settled.0,
                chain: hash_bytes(page.chain),
            })
        }
        SyncAnswer::Range(answer) => Message::RangeReply(range_reply(id, status, answer)),
        SyncAnswer::Roots(_) | SyncAnswer::Tree(_) | SyncAnswer::Scrub(_) => return None,
    })
}

fn row_to_wire(row: IndexRow) -> Row {
    Row {
        hlc: row.version.hlc.0,
        node: row.version.node.0,
        digest: hash_bytes(row.digest.0),
        kind: row.kind as u32,
        bucket: u32::from(row.bucket),
        key: row.key,
    }
}

fn range_reply(id: u64, status: Status, answer: RangeAnswer) -> RangeReply {
    let mut reply = RangeReply {
        id,
        status: status as i32,
        ..RangeReply::default()
    };
    let verdict = match answer {
        RangeAnswer::OtherPast => Verdict::NotHere,
        RangeAnswer::Equal => Verdict::Equal,
        RangeAnswer::Differs(hashes) => {
            let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
            reply.hashes = bytes.into();
            Verdict::Differs
        }
        RangeAnswer::Rows(rows, next) => {
            reply.rows = rows.into_iter().map(row_to_wire).collect();
            reply.next = next;
            Verdict::Differs
        }
    };
    reply.verdict = verdict as i32;
    reply
}

fn root_reply(compared: Compared) -> RootReply {
    let (verdict, epoch, chain) = match compared {
        Compared::Equal => (Verdict::Equal, Epoch(0), 0),
        Compared::Differs => (Verdict::Differs, Epoch(0), 0),
        Compared::NotClosed(closed) => (Verdict::NotClosed, closed, 0),
        Compared::Ahead(settled, chain) => (Verdict::Ahead, settled, chain),
        Compared::NotHere => (Verdict::NotHere, Epoch(0), 0),
    };
    RootReply {
        verdict: verdict as i32,
        epoch: epoch.0,
        chain: hash_bytes(chain),
    }
}
