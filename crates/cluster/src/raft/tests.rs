//! The log and the state machine against openraft's own suite, and against crashes.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;

use mds_storage::datadir::RAFT_DIR;
use mds_storage::{Disk, FaultyDisk};
use mds_types::{Epoch, NodeId};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, IOFlushed, RaftLogStorage, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::vote::RaftLeaderId;
use openraft::{
    EntryPayload, LogState, OptionalSend, RaftLogReader, RaftSnapshotBuilder, StorageError,
};
use openraft_rt::AsyncRuntime;
use proptest::prelude::*;

use super::{Chain, Entry, LogId, LogStore, Machine, OpenMode, TypeConfig, Vote};
use crate::rt::Rt;
use crate::state::Command;

const SALT: u64 = 7;

fn disk(seed: u64) -> FaultyDisk {
    let disk = FaultyDisk::new(seed);
    disk.create_dir(RAFT_DIR).unwrap();
    disk.sync_dir("").unwrap();
    disk
}

fn open(disk: &FaultyDisk) -> io::Result<LogStore> {
    LogStore::open(Arc::new(disk.clone()), SALT, OpenMode::Create)
}

/// The log as the suite wants it: it waits for each append's callback.
struct Synced(LogStore);

impl RaftLogReader<TypeConfig> for Synced {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.0.try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.0.read_vote().await
    }
}

impl RaftLogStorage<TypeConfig> for Synced {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        self.0.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.0.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.0.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.0.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        self.0.read_committed().await
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.0.append(entries, callback).await?;
        self.0.sync()
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.0.truncate_after(last_log_id).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.0.purge(log_id).await
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, Synced, Machine> for Builder {
    async fn build(&self) -> Result<((), Synced, Machine), StorageError<TypeConfig>> {
        let disk = disk(1);
        let log = open(&disk).expect("a fresh disk does not fail");
        Ok(((), Synced(log), Machine::new(Arc::new(disk))))
    }
}

#[test]
fn passes_the_storage_suite_of_openraft() {
    Rt::run(Suite::test_all(Builder)).unwrap();
}

fn log_id(term: u64, index: u64) -> LogId {
    LogId {
        leader_id: openraft::alias::LeaderIdOf::<TypeConfig>::new(term, NodeId(1)).to_committed(),
        index,
    }
}

fn entry(term: u64, index: u64) -> Entry {
    let payload = EntryPayload::Normal(Command::AdvanceEpoch { to: Epoch(index) });
    Entry::new(log_id(term, index), payload)
}

/// What a log holds, as far as promises go.
#[derive(Clone, PartialEq, Debug, Default)]
struct Content {
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    entries: Vec<Entry>,
}

impl Content {
    fn next_index(&self) -> u64 {
        let last = self.entries.last().map(|entry| entry.log_id.index);
        last.or(self.purged.map(|purged| purged.index))
            .map_or(0, |last| last + 1)
    }
}

fn content(log: &mut LogStore) -> Content {
    Rt::run(async {
        Content {
            vote: log.read_vote().await.unwrap(),
            purged: log.get_log_state().await.unwrap().last_purged_log_id,
            committed: log.read_committed().await.unwrap(),
            entries: log.try_get_log_entries(..).await.unwrap(),
        }
    })
}

#[derive(Clone, Debug)]
enum Step {
    Append { term: u64, count: u64 },
    Truncate { keep: u64 },
    Vote { term: u64 },
    Commit,
    Purge { upto: u64 },
    Sync,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..4, 1u64..4).prop_map(|(term, count)| Step::Append { term, count }),
        1 => (0u64..5).prop_map(|keep| Step::Truncate { keep }),
        1 => (1u64..9).prop_map(|term| Step::Vote { term }),
        1 => Just(Step::Commit),
        1 => (0u64..5).prop_map(|upto| Step::Purge { upto }),
        1 => Just(Step::Sync),
    ]
}

/// Does a step on the model. Returns the step as the log is asked for it, and whether everything is
/// durable after it.
fn advance(model: &mut Content, step: &Step) -> Option<bool> {
    match step {
        Step::Append { term, count } => {
            for _ in 0..*count {
                let index = model.next_index();
                model.entries.push(entry(*term, index));
            }
            Some(false)
        }
        Step::Truncate { keep } => {
            let keep = (*keep as usize).min(model.entries.len());
            model.entries.truncate(keep);
            Some(false)
        }
        Step::Vote { term } => {
            model.vote = Some(Vote::new(*term, NodeId(1)));
            Some(true)
        }
        Step::Commit => {
            model.committed = model.entries.last().map(|entry| entry.log_id);
            Some(false)
        }
        Step::Purge { upto } => {
            let at = (*upto as usize).min(model.entries.len().checked_sub(1)?);
            model.purged = Some(model.entries[at].log_id);
            model.entries.drain(..=at);
            Some(true)
        }
        Step::Sync => Some(true),
    }
}

fn perform(log: &mut LogStore, step: &Step, before: &Content, after: &Content) -> io::Result<()> {
    Rt::run(async {
        match step {
            Step::Append { .. } => {
                let new = after.entries[before.entries.len()..].to_vec();
                log.append(new, IOFlushed::noop()).await
            }
            Step::Truncate { .. } => {
                let last = after
                    .entries
                    .last()
                    .map(|entry| entry.log_id)
                    .or(after.purged);
                log.truncate_after(last).await
            }
            Step::Vote { .. } => log.save_vote(&after.vote.unwrap()).await,
            Step::Commit => log.save_committed(after.committed).await,
            Step::Purge { .. } => log.purge(after.purged.unwrap()).await,
            Step::Sync => log.sync(),
        }
    })
}

proptest! {
    /// However a run ends, what is found is the log as it was at some moment since the last promise.
    #[test]
    fn a_crash_loses_only_what_was_not_promised(
        seed: u64,
        script in prop::collection::vec(steps(), 1..30),
        ops in 1u64..80,
        lose_power: bool,
    ) {
        let disk = disk(seed);
        let mut log = open(&disk).unwrap();
        disk.fail_after_ops(ops);
        let mut history = vec![Content::default()];
        let mut promised = 0;
        for step in &script {
            let before = history.last().unwrap().clone();
            let mut after = before.clone();
            let Some(durable) = advance(&mut after, step) else { continue };
            let done = perform(&mut log, step, &before, &after);
            history.push(after);
            match done {
                Ok(()) if durable => promised = history.len() - 1,
                Ok(()) => {}
                Err(_) => break,
            }
        }
        drop(log);
        if lose_power { disk.crash() } else { disk.process_crash() }
        let found = content(&mut open(&disk).unwrap());
        // A batch of appended entries may be cut anywhere.
        let possible = history[promised..].windows(2).any(|pair| is_between(&found, pair))
            || history.last() == Some(&found);
        prop_assert!(possible, "found {:?}\nof {:?}", found, &history[promised..]);
        // And what was found stays.
        disk.crash();
        prop_assert_eq!(content(&mut open(&disk).unwrap()), found);
    }
}

fn is_between(found: &Content, pair: &[Content]) -> bool {
    let (before, after) = (&pair[0], &pair[1]);
    let same_marks = |content: &Content| {
        (content.vote, content.purged, content.committed)
            == (found.vote, found.purged, found.committed)
    };
    (same_marks(before) || same_marks(after))
        && (found.entries == before.entries
            || found.entries == after.entries
            || (after.entries.starts_with(&found.entries)
                && found.entries.starts_with(&before.entries)))
}

#[test]
fn after_a_failed_sync_nothing_more_is_taken() {
    let disk = disk(3);
    let mut log = open(&disk).unwrap();
    disk.fail_sync_in(0);
    Rt::run(async {
        log.append([entry(1, 0)], IOFlushed::noop()).await.unwrap();
        assert!(log.sync().is_err());
        assert!(log.append([entry(1, 1)], IOFlushed::noop()).await.is_err());
        assert!(log.save_vote(&Vote::new(1, NodeId(1))).await.is_err());
    });
    assert!(!log.wants_sync());
}

#[test]
fn what_a_failed_sync_left_in_memory_only_is_not_relied_upon() {
    for seed in 0..32 {
        let disk = disk(seed);
        let mut log = open(&disk).unwrap();
        Rt::run(async {
            log.save_vote(&Vote::new(1, NodeId(1))).await.unwrap();
            log.append([entry(1, 0)], IOFlushed::noop()).await.unwrap();
            // The system may think the pages written from now on, and they are not.
            disk.fail_sync_in(0);
            assert!(log.save_vote(&Vote::new(2, NodeId(1))).await.is_err());
        });
        disk.process_crash();
        let found = content(&mut open(&disk).unwrap());
        disk.crash();
        let after = open(&disk).map(|mut log| content(&mut log));
        assert_eq!(after.unwrap(), found, "disk {seed}");
    }
}

#[test]
fn an_append_is_readable_at_once_and_told_only_after_the_sync() {
    let mut log = open(&disk(4)).unwrap();
    let mut runtime = Rt::new(1);
    runtime.block_on(async {
        let (sender, mut receiver) =
            <openraft_rt_tokio::TokioOneshot as openraft_rt::Oneshot>::channel();
        log.append([entry(1, 0)], IOFlushed::signal(sender))
            .await
            .unwrap();
        assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 1);
        assert!(log.wants_sync());
        assert!(receiver.try_recv().is_err());
        log.sync().unwrap();
        assert!(receiver.try_recv().unwrap().is_ok());
        assert!(!log.wants_sync());
    });
}

#[test]
fn votes_without_commits_do_not_grow_the_file_for_ever() {
    let disk = disk(5);
    let mut log = open(&disk).unwrap();
    Rt::run(async {
        for term in 0..400_000 {
            log.save_vote(&Vote::new(term, NodeId(1))).await.unwrap();
        }
    });
    assert!(
        disk.used_bytes() < 9 * 1024 * 1024,
        "{} bytes",
        disk.used_bytes()
    );
    let found = content(&mut open(&disk).unwrap());
    assert_eq!(found.vote, Some(Vote::new(399_999, NodeId(1))));
}

/// Entries on their way to the state machine, with nobody who waits for them.
struct Committed(std::vec::IntoIter<Entry>);

impl futures_core::Stream for Committed {
    type Item = Result<EntryResponder<TypeConfig>, io::Error>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(self.0.next().map(|entry| Ok((entry, None))))
    }
}

fn apply(machine: &mut Machine, entries: Vec<Entry>) -> Option<Chain> {
    let committed = Committed(entries.into_iter());
    Rt::run(async { machine.apply(committed).await.unwrap() });
    let applied = machine.applied();
    applied.lock().unwrap().chain
}

#[test]
fn the_chain_tells_apart_what_was_applied_and_survives_a_snapshot() {
    let machine = || Machine::new(Arc::new(disk(6)));
    let (mut one, mut same, mut other) = (machine(), machine(), machine());
    let first = apply(&mut one, vec![entry(1, 0), entry(1, 1)]);
    assert_eq!(apply(&mut same, vec![entry(1, 0), entry(1, 1)]), first);
    assert_ne!(first, Some(Chain::default()));
    // Another command at index 1, and the same again behind it.
    let payload = EntryPayload::Normal(Command::AdvanceEpoch { to: Epoch(9) });
    let swapped = Entry::new(log_id(1, 1), payload);
    assert_ne!(apply(&mut other, vec![entry(1, 0), swapped]), first);

    let mut restored = machine();
    Rt::run(async {
        let snapshot = one.build_snapshot().await.unwrap();
        let (meta, data) = (snapshot.meta, snapshot.snapshot);
        restored.install_snapshot(&meta, data).await.unwrap();
    });
    let second = apply(&mut one, vec![entry(2, 2)]);
    assert_ne!(second, first);
    assert_eq!(apply(&mut restored, vec![entry(2, 2)]), second);
    assert_ne!(
        apply(&mut other, vec![entry(2, 2)]),
        second,
        "parted is parted"
    );
}

#[test]
fn a_snapshot_without_a_chain_is_read_and_leaves_it_unknown() {
    let mut machine = Machine::new(Arc::new(disk(7)));
    let meta = super::SnapshotMeta {
        last_log_id: Some(log_id(1, 4)),
        ..super::SnapshotMeta::default()
    };
    let state = crate::state::ClusterState {
        epoch: Epoch(3),
        ..crate::state::ClusterState::default()
    };
    let data = state.encode().unwrap();
    Rt::run(async { machine.install_snapshot(&meta, data).await.unwrap() });
    assert_eq!(machine.applied().lock().unwrap().state, state);
    assert_eq!(apply(&mut machine, vec![entry(1, 5)]), None);
    let cut = Rt::run(async { machine.install_snapshot(&meta, vec![0xc1, 0, 0]).await });
    assert!(
        cut.unwrap_err()
            .to_string()
            .contains("ends within its chain")
    );
}
