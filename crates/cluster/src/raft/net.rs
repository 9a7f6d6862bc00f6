//! Raft's questions and answers as plain messages.
//!
//! A question gets a number and waits for the answer with that number, or for its time to be up.
//! What is to be sent collects in the [`Outbox`], which the control part empties after each turn;
//! nothing here knows an address or a socket.

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

use super::{Raft, Snapshot, SnapshotMeta, TypeConfig, Vote};
use crate::exec::lock;
use crate::rt::Rt;
use crate::wire::Body;

/// Messages that may wait to be sent. Beyond it new ones are dropped: Raft asks again.
const OUTBOX_MESSAGES_MAX: usize = 4096;

type ReplySender = <TokioOneshot as Oneshot>::Sender<RaftReply>;
type ReplyReceiver = <TokioOneshot as Oneshot>::Receiver<RaftReply>;

/// A question of one Raft node to another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum RaftRpc {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    Snapshot { vote: Vote, meta: SnapshotMeta, state: Vec<u8> },
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

/// What is to be sent, and who waits for an answer.
#[derive(Clone, Default)]
pub(crate) struct Outbox(Arc<Mutex<OutboxInner>>);

#[derive(Default)]
struct OutboxInner {
    messages: VecDeque<(NodeId, Body)>,
    dropped: u64,
    next_id: u64,
    /// Bounded by Raft: a few questions for each other node.
    waiting: BTreeMap<u64, (NodeId, ReplySender)>,
}

impl Outbox {
    /// Queues a message.
    pub(crate) fn send(&self, to: NodeId, body: Body) {
        let mut inner = lock(&self.0);
        if inner.messages.len() < OUTBOX_MESSAGES_MAX {
            inner.messages.push_back((to, body));
        } else {
            inner.dropped += 1;
        }
    }

    /// Takes what is to be sent.
    pub(crate) fn take(&self) -> VecDeque<(NodeId, Body)> {
        std::mem::take(&mut lock(&self.0).messages)
    }

    /// Messages dropped because too many waited.
    pub(crate) fn dropped(&self) -> u64 {
        lock(&self.0).dropped
    }

    /// Hands an answer to who waits for it. Answers that nobody waits for any more are forgotten.
    pub(crate) fn answered(&self, from: NodeId, id: u64, reply: RaftReply) {
        let sender = {
            let mut inner = lock(&self.0);
            match inner.waiting.get(&id) {
                Some((asked, _)) if *asked == from => inner.waiting.remove(&id),
                _ => None,
            }
        };
        if let Some((_, sender)) = sender {
            // The question may have been given up in this very turn.
            let _ = sender.send(reply);
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
        Question { outbox: self.clone(), id, receiver }
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
        Client { me: self.me, target, outbox: self.outbox.clone() }
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
    ) -> Result<RaftReply, RPCError<TypeConfig>> {
        let mut question = self.outbox.ask(self.target, rpc);
        match Rt::timeout(limit, &mut question.receiver).await {
            Ok(Ok(RaftReply::Failed(reason))) => {
                Err(RPCError::Unreachable(Unreachable::from_string(reason)))
            }
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(RPCError::Unreachable(Unreachable::from_string("shutting down"))),
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
    RPCError::Unreachable(Unreachable::from_string("the answer is of another kind than asked for"))
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let rpc = RaftRpc::Append(rpc);
        match self.ask(rpc, RPCTypes::AppendEntries, option.soft_ttl()).await? {
            RaftReply::Append(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(RaftRpc::Vote(rpc), RPCTypes::Vote, option.soft_ttl()).await? {
            RaftReply::Vote(response) => Ok(response),
            _ => Err(unexpected()),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(RaftRpc::PreVote(rpc), RPCTypes::Vote, option.soft_ttl()).await? {
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
        // The whole state is a few hundred bytes for each member: one message.
        let rpc = RaftRpc::Snapshot { vote, meta: snapshot.meta, state: snapshot.snapshot };
        let asked = self.ask(rpc, RPCTypes::InstallSnapshot, option.soft_ttl());
        match Rt::select2(cancel, asked).await {
            Select2::First(closed) => Err(StreamingError::Closed(closed)),
            Select2::Second(reply) => match reply? {
                RaftReply::Snapshot(response) => Ok(response),
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
        RaftRpc::Append(rpc) => {
            raft.append_entries(rpc).await.map_or_else(failed, RaftReply::Append)
        }
        RaftRpc::Vote(rpc) => raft.vote(rpc).await.map_or_else(failed, RaftReply::Vote),
        RaftRpc::PreVote(rpc) => raft.pre_vote(rpc).await.map_or_else(failed, RaftReply::PreVote),
        RaftRpc::Snapshot { vote, meta, state } => {
            let snapshot = Snapshot { meta, snapshot: state };
            let installed = raft.install_full_snapshot(vote, snapshot).await;
            installed.map_or_else(failed, RaftReply::Snapshot)
        }
    }
}
