//! What anti-entropy asks of a replica's store: roots, hashes, rows and records, as plain values.
//!
//! The core asks for itself and on behalf of peers; the answers are found by [`answer`] on the thread
//! that walks (or, in the simulator, in line). Everything here only reads. Bounds: an answer holds at most
//! [`ROWS_MAX`] rows or [`BYTES_MAX`] bytes of records and one record.

use bytes::Bytes;
use mds_protocol::merkle::Tree;
use mds_protocol::verification;
use mds_storage::pace::Pace;
use mds_storage::store::{
    Leaves, PartitionState, RangeOf, Scrub, ScrubStep, StoreError, StoreReader,
};
use mds_storage::{IndexRow, RowRange};
use mds_types::{Epoch, PartitionId, Record};

/// Rows of one answer, at most.
pub const ROWS_MAX: usize = 4_096;

/// Bytes of records in one answer, at most, but always one record.
pub const BYTES_MAX: usize = 1024 * 1024;

/// Records of a page of a stream, at most: its receiver decodes and merges them in one go, and requests wait for
/// that.
const STREAM_RECORDS_MAX: usize = 256;

/// Bytes of such a page, at most, but always one record.
const STREAM_BYTES_MAX: usize = 128 * 1024;

/// Records or rows that one step of a scrub looks at, roughly.
pub const SCRUB_LOOKS_MAX: usize = 2_048;

/// Records that are looked at for an answer about a range, which is a page of somebody else's scrub: he may have
/// lost some of it.
const RANGE_LOOKS_MAX: usize = 4 * SCRUB_LOOKS_MAX;

/// One (partition, epoch) and a root of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RootOf {
    /// The partition.
    pub partition: PartitionId,
    /// A closed epoch.
    pub epoch: Epoch,
    /// The root of its tree.
    pub root: u128,
}

/// How this replica's set stands to a root that it was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compared {
    /// The same, closed.
    Equal,
    /// Another, closed.
    Differs,
    /// The epoch is not closed here; this one is the last that is.
    NotClosed(Epoch),
    /// Settled here already, up to this epoch and with this chain.
    Ahead(Epoch, u128),
    /// The partition is not here, or not yet; or its rows were lost.
    NotHere,
}

/// A question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SyncQuery {
    /// The roots of these closed epochs.
    Roots(Vec<(PartitionId, Epoch)>),
    /// How do these roots of another replica compare?
    Compare(Vec<RootOf>),
    /// The tree of one closed epoch.
    Tree(PartitionId, Epoch),
    /// Hashes of nodes of that tree.
    Hashes {
        /// The partition.
        partition: PartitionId,
        /// The epoch.
        epoch: Epoch,
        /// Level of the nodes, 0 the root's.
        level: u32,
        /// Their places in it.
        nodes: Vec<u32>,
    },
    /// Rows of some buckets.
    Rows {
        /// The partition.
        partition: PartitionId,
        /// The epoch.
        epoch: Epoch,
        /// The buckets, growing.
        buckets: Vec<u16>,
        /// Of the first bucket only keys after this one.
        after: Option<Bytes>,
    },
    /// The current records of these keys.
    Records(Vec<Bytes>),
    /// The next records of a partition, for a replica that is to hold it.
    Stream {
        /// The partition.
        partition: PartitionId,
        /// Only keys after this one.
        after: Option<Bytes>,
        /// Only how far this replica has settled, no records.
        is_probe: bool,
    },
    /// The next step of a scrub of what is here.
    Scrub(Box<Scrub>),
    /// What is here of a range of settled records?
    Range(Box<RangeQuery>),
}

/// A question about a range of settled records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeQuery {
    /// The partition.
    pub partition: PartitionId,
    /// Which records, of which past.
    pub of: RangeOf,
    /// What is asked.
    pub ask: RangeAsk,
}

/// What is asked about a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RangeAsk {
    /// Is this its root?
    Root(u128),
    /// The rows of these buckets; none stands for all.
    Rows(Vec<u16>),
}

/// The answer to a [`RangeQuery`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RangeAnswer {
    /// This replica has another past, or not the partition.
    OtherPast,
    /// That is its root.
    Equal,
    /// It is not: the hashes of all buckets; empty if there is too much to sum up.
    Differs(Vec<u128>),
    /// Rows in key order, and the key to go on after, unless these were all.
    Rows(Vec<IndexRow>, Option<Bytes>),
}

/// The answer to a [`SyncQuery`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SyncAnswer {
    /// To `Roots`: those that there are.
    Roots(Vec<RootOf>),
    /// To `Compare`: one for each.
    Compared(Vec<Compared>),
    /// To `Tree`. None if there is no such set.
    Tree(Option<Tree>),
    /// To `Hashes`. None if there is no such set, or no such nodes.
    Hashes(Option<Vec<u128>>),
    /// To `Rows`.
    Rows {
        /// Bucket by bucket, in each in key order.
        rows: Vec<IndexRow>,
        /// Whether some may follow.
        more: bool,
    },
    /// To `Records`.
    Records {
        /// In the order of the keys; what is absent is left out.
        records: Vec<Record>,
        /// Keys that were looked at: the first so many.
        taken: usize,
    },
    /// To `Stream`. None if the partition is not held here.
    Stream(Option<StreamPage>),
    /// To `Scrub`: where it stands now, and what it found.
    Scrub(Box<(Scrub, ScrubStep)>),
    /// To `Range`.
    Range(RangeAnswer),
}

/// A page of a partition, and how far its source has settled.
#[derive(Default, Clone, PartialEq, Eq, Debug)]
pub struct StreamPage {
    /// In key order, tombstones included.
    pub records: Vec<Record>,
    /// Whether keys may follow.
    pub more: bool,
    /// The source's watermark.
    pub settled: Epoch,
    /// Its chain up to there.
    pub chain: u128,
}

/// Answers a question. Blocking: may read run files and the engine, and pauses as `pace` says.
///
/// # Errors
/// The store's: a failed read is an error, never "absent".
pub fn answer(
    reader: &StoreReader,
    query: &SyncQuery,
    pace: &dyn Pace,
) -> Result<SyncAnswer, StoreError> {
    Ok(match query {
        SyncQuery::Roots(asked) => {
            let mut roots = Vec::with_capacity(asked.len());
            for &(partition, epoch) in asked {
                pace.step();
                if let Some(tree) = closed_tree(reader, partition, epoch)? {
                    let root = tree.root();
                    roots.push(RootOf {
                        partition,
                        epoch,
                        root,
                    });
                }
            }
            SyncAnswer::Roots(roots)
        }
        SyncQuery::Compare(theirs) => {
            let compared = theirs.iter().map(|theirs| {
                pace.step();
                compare(reader, theirs)
            });
            SyncAnswer::Compared(compared.collect::<Result<_, _>>()?)
        }
        SyncQuery::Tree(partition, epoch) => {
            SyncAnswer::Tree(closed_tree(reader, *partition, *epoch)?)
        }
        SyncQuery::Hashes {
            partition,
            epoch,
            level,
            nodes,
        } => {
            let tree = closed_tree(reader, *partition, *epoch)?;
            SyncAnswer::Hashes(tree.and_then(|tree| tree.hashes(*level, nodes)))
        }
        SyncQuery::Rows {
            partition,
            epoch,
            buckets,
            after,
        } => {
            let (Some(first), Some(last)) = (buckets.first(), buckets.last()) else {
                return Ok(SyncAnswer::Rows {
                    rows: Vec::new(),
                    more: false,
                });
            };
            let range = RowRange::Buckets(*partition, *first, *last);
            let mut rows = reader.index_rows(*epoch, range)?;
            let is_asked_for = |row: &IndexRow| {
                let at = buckets.binary_search(&row.bucket);
                let is_told = |after: &Bytes| at == Ok(0) && row.key <= *after;
                at.is_ok() && !after.as_ref().is_some_and(is_told)
            };
            rows.retain(is_asked_for);
            let more = rows.len() > ROWS_MAX;
            rows.truncate(ROWS_MAX);
            SyncAnswer::Rows { rows, more }
        }
        SyncQuery::Records(keys) => records(reader, keys)?,
        SyncQuery::Stream {
            partition,
            after,
            is_probe,
        } => {
            let limit = if *is_probe { 0 } else { STREAM_RECORDS_MAX };
            SyncAnswer::Stream(stream_page(reader, *partition, after.as_deref(), limit)?)
        }
        SyncQuery::Scrub(scrub) => {
            let mut scrub = (**scrub).clone();
            let step = scrub.step(reader, SCRUB_LOOKS_MAX)?;
            SyncAnswer::Scrub(Box::new((scrub, step)))
        }
        SyncQuery::Range(query) => SyncAnswer::Range(range(reader, query)?),
    })
}

/// The root of such leaves.
pub fn root_of(leaves: &Leaves) -> u128 {
    Tree::new(&leaves.hashes, &leaves.rows).root()
}

fn range(reader: &StoreReader, query: &RangeQuery) -> Result<RangeAnswer, StoreError> {
    let buckets: &[u16] = match &query.ask {
        RangeAsk::Root(_) => &[],
        RangeAsk::Rows(buckets) => buckets,
    };
    let found = reader.settled_rows(query.partition, &query.of, buckets, RANGE_LOOKS_MAX)?;
    Ok(match (&query.ask, found) {
        (_, None) => RangeAnswer::OtherPast,
        (RangeAsk::Rows(_), Some((rows, next))) => RangeAnswer::Rows(rows, next),
        (RangeAsk::Root(_), Some((_, Some(_)))) => RangeAnswer::Differs(Vec::new()),
        (RangeAsk::Root(theirs), Some((rows, None))) => {
            let leaves = reader.leaves_of(&rows);
            match root_of(&leaves) == *theirs {
                true => RangeAnswer::Equal,
                false => RangeAnswer::Differs(leaves.hashes.into_vec()),
            }
        }
    })
}

/// The tree of an epoch that nothing new comes into any more.
fn closed_tree(
    reader: &StoreReader,
    partition: PartitionId,
    epoch: Epoch,
) -> Result<Option<Tree>, StoreError> {
    if epoch > reader.ledger().closed {
        return Ok(None);
    }
    let leaves = reader.leaves(epoch, partition)?;
    Ok(leaves.map(|leaves| Tree::new(&leaves.hashes, &leaves.rows)))
}

fn compare(reader: &StoreReader, theirs: &RootOf) -> Result<Compared, StoreError> {
    let ledger = reader.ledger();
    let mine = ledger.partition(theirs.partition);
    // What is being streamed is compared when it is whole: the stream brings most of what would be found missing.
    if mine.state != PartitionState::Held {
        return Ok(Compared::NotHere);
    }
    if theirs.epoch <= mine.settled {
        return Ok(Compared::Ahead(mine.settled, mine.chain));
    }
    if theirs.epoch > ledger.closed {
        return Ok(Compared::NotClosed(ledger.closed));
    }
    Ok(match closed_tree(reader, theirs.partition, theirs.epoch)? {
        Some(tree) if tree.root() == theirs.root => Compared::Equal,
        Some(_) => Compared::Differs,
        None => Compared::NotHere,
    })
}

fn records(reader: &StoreReader, keys: &[Bytes]) -> Result<SyncAnswer, StoreError> {
    let mut records = Vec::new();
    let (mut bytes, mut taken) = (0, 0);
    for key in keys {
        if bytes >= BYTES_MAX {
            break;
        }
        taken += 1;
        if let Some(record) = reader.get(key)? {
            bytes += record.encoded_len();
            records.push(record);
        }
    }
    Ok(SyncAnswer::Records { records, taken })
}

fn stream_page(
    reader: &StoreReader,
    partition: PartitionId,
    after: Option<&[u8]>,
    limit: usize,
) -> Result<Option<StreamPage>, StoreError> {
    // Before the records: what they lack has not been settled then.
    let ledger = reader.ledger();
    let source = ledger.partition(partition);
    if source.state != PartitionState::Held {
        return Ok(None);
    }
    let (records, more) = match limit {
        0 => (Vec::new(), true),
        limit => reader.scan_page(partition, after, limit, STREAM_BYTES_MAX)?,
    };
    Ok(Some(StreamPage {
        records,
        more,
        settled: source.settled,
        chain: source.chain,
    }))
}

/// This replica's own chain if it settled up to `epoch`: from its roots. None if it has not closed or does
/// not have all of them.
///
/// # Errors
/// The store's.
pub fn chain_up_to(
    reader: &StoreReader,
    partition: PartitionId,
    epoch: Epoch,
) -> Result<Option<u128>, StoreError> {
    let ledger = reader.ledger();
    let mine = ledger.partition(partition);
    let mut chain = mine.chain;
    for epoch in (mine.settled.0 + 1..=epoch.0).map(Epoch) {
        let Some(tree) = closed_tree(reader, partition, epoch)? else {
            return Ok(None);
        };
        chain = verification::chain(chain, epoch, tree.root());
    }
    Ok(Some(chain))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mds_storage::engine::MemoryEngine;
    use mds_storage::pace::Unpaced;
    use mds_storage::store::{Settlement, Store, StoreOptions, WipeProgress};
    use mds_storage::{Disk, FaultyDisk};

    use super::*;

    /// What a copy will bring would be found missing, and be fetched a second time.
    #[test]
    fn what_is_being_copied_is_not_compared_before_it_is_whole() {
        let disk: Arc<dyn Disk> = Arc::new(FaultyDisk::new(7));
        let options = StoreOptions {
            partition_count: 1,
            ..StoreOptions::default()
        };
        let mut store = Store::open(disk, Arc::new(MemoryEngine::new()), options).unwrap();
        let partition = PartitionId(0);
        store.close_epochs(Epoch(3)).unwrap();
        let compared = |store: &Store| {
            let theirs = RootOf {
                partition,
                epoch: Epoch(3),
                root: 1,
            };
            let query = SyncQuery::Compare(vec![theirs]);
            answer(&store.reader(), &query, &Unpaced).unwrap()
        };
        assert_eq!(
            compared(&store),
            SyncAnswer::Compared(vec![Compared::Differs])
        );

        store.begin_wipe(&[partition]).unwrap();
        while store.continue_wipe().unwrap() != WipeProgress::Done {
            store.flusher().work().unwrap();
        }
        let stream = Settlement {
            partition,
            epoch: Epoch(2),
            chain: 5,
        };
        store.begin_streams(&[stream]).unwrap();
        assert_eq!(
            compared(&store),
            SyncAnswer::Compared(vec![Compared::NotHere])
        );

        store.finish_streams(&[partition]).unwrap();
        assert_eq!(
            compared(&store),
            SyncAnswer::Compared(vec![Compared::Differs])
        );
    }
}
