//! Raft's questions and answers as plain messages.
//!
//! A question gets a number and waits for the answer with that number, or for its time to be up.
//! What is to be sent collects in the [`Outbox`], which the control part empties after each turn;
//! nothing here knows a socket.
//!
//! **Reverted logs.** A leader remembers what each follower has acknowledged in its term. A follower
//! that then lacks an entry it had acknowledged before it was even asked runs on another directory
//! than it did: a copy, or a backup. Raft has no answer to that (openraft asserts that it does not
//! happen), so it is found out here: the answer is kept from Raft, and that start is told to stop.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mds_types::NodeId;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, OptionalSend, RPCTypes};
use openraft_rt::{AsyncRuntime, Oneshot, OneshotSender, Select2};
use openraft_rt_tokio::TokioOneshot;
use serde::{Deserialize, Serialize};

use super::{LogId, Raft, Snapshot, SnapshotMeta, TypeConfig, Vote};
use crate::exec::lock;
use crate::rt::Rt;
use crate::wire::Body;

/// Messages that may wait to be sent. Beyond it new ones are dropped: Raft asks again.
const OUTBOX_MESSAGES_MAX: usize = 4096;

type Reply = (RaftReply, Sender);
type ReplySender = <TokioOneshot as Oneshot>::Sender<Reply>;
type ReplyReceiver = <TokioOneshot as Oneshot>::Receiver<Reply>;

/// Which start of a node has answered, and where it lives.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    pub(crate) boot: u64,
    pub(crate) nonce: u64,
    pub(crate) addr: String,
}

/// A message to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) to: NodeId,
    /// Where to, if it is for the start of `to` that lives there and no other.
    pub(crate) addr: Option<String>,
    pub(crate) body: Body,
}

/// A question of one Raft node to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum RaftRpc {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    Snapshot {
        vote: Vote,
        meta: SnapshotMeta,
        state: Vec<u8>,
    },
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum RaftReply {
    Append(AppendEntriesResponse<TypeConfig>),
    Vote(VoteResponse<TypeConfig>),
    PreVote(VoteResponse<TypeConfig>),
    Snapshot(SnapshotResponse<TypeConfig>),
    /// The asked node cannot answer; the text is for its log.
    Failed(String),
}

impl RaftReply {
    /// Whether the answering node turned out to have the log that the leader thinks it has.
    pub(crate) fn confirms_log(&self) -> bool {
        match self {
            RaftReply::Append(response) => matches!(
                response,
                AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_)
            ),
            RaftReply::Snapshot(_) => true,
            RaftReply::Vote(_) | RaftReply::PreVote(_) | RaftReply::Failed(_) => false,
        }
    }
}

/// What is to be sent, and who waits for an answer.
#[derive(Clone, Default)]
pub(crate) struct Outbox(Arc<Mutex<OutboxInner>>);

#[derive(Default)]
struct OutboxInner {
    messages: VecDeque<Outgoing>,
    dropped: u64,
    next_id: u64,
    /// Bounded by Raft: a few questions for each other node.
    waiting: BTreeMap<u64, (NodeId, ReplySender)>,
    /// The last entry that each node has acknowledged to this node as the leader of this vote.
    acknowledged: BTreeMap<NodeId, (Vote, LogId)>,
}

impl Outbox {
    /// Queues a message.
    pub(crate) fn send(&self, to: NodeId, body: Body) {
        self.push(Outgoing {
            to,
            addr: None,
            body,
        });
    }

    /// Queues a message for the start of a node that lives at an address. Gossip may know another
    /// one, of another start.
    pub(crate) fn send_to_start(&self, to: NodeId, addr: String, body: Body) {
        self.push(Outgoing {
            to,
            addr: Some(addr),
            body,
        });
    }

    fn push(&self, message: Outgoing) {
        let mut inner = lock(&self.0);
        if inner.messages.len() < OUTBOX_MESSAGES_MAX {
            inner.messages.push_back(message);
        } else {
            inner.dropped += 1;
        }
    }

    fn acknowledged(&self, node: NodeId, vote: &Vote) -> Option<LogId> {
        let inner = lock(&self.0);
        inner
            .acknowledged
            .get(&node)
            .filter(|(of, _)| of == vote)
            .map(|(_, last)| *last)
    }

    fn note_acknowledged(&self, node: NodeId, vote: &Vote, last: Option<LogId>) {
        let Some(last) = last else { return };
        let mut inner = lock(&self.0);
        match inner.acknowledged.get(&node) {
            Some((of, known)) if of == vote && *known >= last => {}
            _ => {
                inner.acknowledged.insert(node, (*vote, last));
            }
        }
    }

    /// Takes what is to be sent.
    pub(crate) fn take(&self) -> VecDeque<Outgoing> {
        std::mem::take(&mut lock(&self.0).messages)
    }

    /// Messages dropped because too many waited.
    pub(crate) fn dropped(&self) -> u64 {
        lock(&self.0).dropped
    }

    /// Hands an answer to who waits for it. Answers that nobody waits for any more are forgotten.
    pub(crate) fn answered(&self, from: NodeId, start: Sender, id: u64, reply: RaftReply) {
        let sender = {
            let mut inner = lock(&self.0);
            match inner.waiting.get(&id) {
                Some((asked, _)) if *asked == from => inner.waiting.remove(&id),
                _ => None,
            }
        };
        if let Some((_, sender)) = sender {
            // The question may have been given up in this very turn.
            let _ = sender.send((reply, start));
        }
    }

    fn ask(&self, to: NodeId, rpc: RaftRpc) -> Question {
        let (sender, receiver) = TokioOneshot::channel();
        let id = {
            let mut inner = lock(&self.0);
            inner.next_id += 1;
            let id = inner.next_id;
            inner.waiting.insert(id, (to, sender));
            id
        };
        self.send(to, Body::RaftRequest { id, rpc });
        Question {
            outbox: self.clone(),
            id,
            receiver,
        }
    }
}

/// A question under way. Dropping it gives it up.
struct Question {
    outbox: Outbox,
    id: u64,
    receiver: ReplyReceiver,
}

impl Drop for Question {
    fn drop(&mut self) {
        lock(&self.outbox.0).waiting.remove(&self.id);
    }
}

/// Makes a client for each other node.
#[derive(Clone)]
pub(crate) struct Net {
    me: NodeId,
    outbox: Outbox,
}

impl Net {
    pub(crate) fn new(me: NodeId, outbox: Outbox) -> Net {
        Net { me, outbox }
    }
}

impl RaftNetworkFactory<TypeConfig> for Net {
    type Network = Client;

    async fn new_client(&mut self, target: NodeId, _node: &EmptyNode) -> Client {
        Client {
            me: self.me,
            target,
            outbox: self.outbox.clone(),
        }
    }
}

/// Asks one other node.
pub(crate) struct Client {
    me: NodeId,
    target: NodeId,
    outbox: Outbox,
}

impl Client {
    async fn ask(
        &self,
        rpc: RaftRpc,
        action: RPCTypes,
        limit: Duration,
    ) -> Result<Reply, RPCError<TypeConfig>> {
        let mut question = self.outbox.ask(self.target, rpc);
        match Rt::timeout(limit, &mut question.receiver).await {
            Ok(Ok((RaftReply::Failed(reason), _))) => {
                Err(RPCError::Unreachable(Unreachable::from_string(reason)))
            }
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(RPCError::Unreachable(Unreachable::from_string(
                "shutting down",
            ))),
            Err(_) => Err(RPCError::Timeout(Timeout {
                action,
                id: self.me,
                target: self.target,
                timeout: limit,
            })),
        }
    }
}

fn unexpected() -> RPCError<TypeConfig> {
    RPCError::Unreachable(Unreachable::from_string(
        "the answer is of another kind than asked for",
    ))
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let (vote, before) = (rpc.vote, rpc.prev_log_id);
        let last = rpc.entries.last().map(|entry| entry.log_id).or(before);
        let had = self.outbox.acknowledged(self.target, &vote);
        let rpc = RaftRpc::Append(rpc);
        let asked = self.ask(rpc, RPCTypes::AppendEntries, option.soft_ttl());
        let (RaftReply::Append(response), start) = asked.await? else {
            return Err(unexpected());
        };
        match &response {
            AppendEntriesResponse::Success => {
                self.outbox.note_acknowledged(self.target, &vote, last);
            }
            AppendEntriesResponse::PartialSuccess(upto) => {
                self.outbox.note_acknowledged(self.target, &vote, *upto);
            }
            AppendEntriesResponse::Conflict if before <= had => {
                let index = had.map_or(0, |had| had.index);
                let Sender { boot, nonce, addr } = start;
                tracing::error!(
                    node = %self.target, boot, addr, index,
                    "a follower has lost entries that it had acknowledged: its directory is a copy"
                );
                let body = Body::LogReverted { boot, nonce, index };
                self.outbox.send_to_start(self.target, addr, body);
                let reason = "its log has lost entries that it had acknowledged";
                return Err(RPCError::Unreachable(Unreachable::from_string(reason)));
            }
            AppendEntriesResponse::Conflict | AppendEntriesResponse::HigherVote(_) => {}
        }
        Ok(response)
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self
            .ask(RaftRpc::Vote(rpc), RPCTypes::Vote, option.soft_ttl())
            .await?
            .0
        {
            RaftReply::Vote(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self
            .ask(RaftRpc::PreVote(rpc), RPCTypes::Vote, option.soft_ttl())
            .await?
            .0
        {
            RaftReply::PreVote(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let last = snapshot.meta.last_log_id;
        // The whole state is a few hundred bytes for each member: one message.
        let rpc = RaftRpc::Snapshot {
            vote,
            meta: snapshot.meta,
            state: snapshot.snapshot,
        };
        let asked = self.ask(rpc, RPCTypes::InstallSnapshot, option.soft_ttl());
        match Rt::select2(cancel, asked).await {
            Select2::First(closed) => Err(StreamingError::Closed(closed)),
            Select2::Second(reply) => match reply?.0 {
                RaftReply::Snapshot(response) => {
                    if response.vote == vote {
                        self.outbox.note_acknowledged(self.target, &vote, last);
                    }
                    Ok(response)
                }
                _ => Err(unexpected().into()),
            },
        }
    }
}

/// Answers another node's question.
pub(crate) async fn answer(raft: &Raft, rpc: RaftRpc) -> RaftReply {
    fn failed(error: impl std::fmt::Display) -> RaftReply {
        RaftReply::Failed(error.to_string())
    }
    match rpc {
        RaftRpc::Append(rpc) => raft
            .append_entries(rpc)
            .await
            .map_or_else(failed, RaftReply::Append),
        RaftRpc::Vote(rpc) => raft.vote(rpc).await.map_or_else(failed, RaftReply::Vote),
        RaftRpc::PreVote(rpc) => raft
            .pre_vote(rpc)
            .await
            .map_or_else(failed, RaftReply::PreVote),
        RaftRpc::Snapshot { vote, meta, state } => {
            let snapshot = Snapshot {
                meta,
                snapshot: state,
            };
            let installed = raft.install_full_snapshot(vote, snapshot).await;
            installed.map_or_else(failed, RaftReply::Snapshot)
        }
    }
}
