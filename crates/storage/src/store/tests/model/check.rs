//! What a life's store shows, looked at from all sides.

use super::content::{Content, base, is_here, next_floor, partition};
use super::*;

impl Life {
    /// Everything that can be read.
    pub(super) fn content(&mut self, reader: &StoreReader) -> Content {
        let mut content = Content::default();
        let limit = 1 + self.random.below(5) as usize;
        for partition in 0..PARTITIONS {
            let mut after: Option<Bytes> = None;
            loop {
                let page = reader.scan(PartitionId(partition), after.as_deref(), limit);
                let page = page.unwrap();
                after = page.last().map(|record| record.key.clone());
                let ended = page.len() < limit;
                for record in page {
                    assert_eq!(partition_of(&record.key, PARTITIONS).0, partition);
                    let twice = content.records.insert(record.key.clone(), record);
                    assert_eq!(twice, None, "seed {}", self.seed);
                }
                if ended {
                    break;
                }
            }
        }
        for n in 0..KEYS {
            let key = Bytes::from(format!("key-{n}"));
            let got = reader.get(&key).unwrap();
            assert_eq!(
                got.as_ref(),
                content.records.get(&key),
                "seed {}",
                self.seed
            );
            if let Lookup::Found(record) = reader.get_in_memory(&key) {
                assert_eq!(Some(record), got);
            }
        }
        for epoch in (1..=EPOCH_MAX).map(Epoch) {
            let all = reader.index_rows(epoch, RowRange::All).unwrap();
            let parts = (0..PARTITIONS).flat_map(|partition| {
                let range = RowRange::Partition(PartitionId(partition));
                reader.index_rows(epoch, range).unwrap()
            });
            assert_eq!(parts.collect::<Vec<_>>(), all, "seed {}", self.seed);
            for row in all {
                let rank = row.rank();
                content.rows.insert((epoch, row.key), rank);
            }
        }
        content
    }

    pub(super) fn check(&mut self) {
        let Some(reader) = self.store.as_ref().map(Store::reader) else {
            return;
        };
        // A planned crash point does not stop reads of tables and engine, but those of run
        // files once it is reached.
        if self.bench.disk.is_stopped() {
            return;
        }
        let found = self.content(&reader);
        let ledger = reader.ledger();
        assert_eq!(
            found.comparable(&ledger),
            self.visible.comparable(&ledger),
            "seed {}",
            self.seed
        );
        for key in found.records.keys() {
            let entry = ledger.partition(partition(key));
            assert_ne!(entry.state, PartitionState::Absent, "seed {}", self.seed);
        }
        self.check_leaves(&reader);
        self.scrub(&reader);
    }

    /// The hashes are those of the rows, whatever way they came about.
    fn check_leaves(&mut self, reader: &StoreReader) {
        let options = &self.bench.options;
        for epoch in (1..=EPOCH_MAX).map(Epoch) {
            for place in (0..PARTITIONS).map(PartitionId) {
                let has_set = is_here(&self.promised, place) && epoch > base(&self.promised, place);
                let expected =
                    self.visible
                        .leaves(epoch, place, options.bucket_count, options.row_seed);
                let found = reader.leaves(epoch, place).unwrap();
                assert_eq!(found, has_set.then_some(expected), "seed {}", self.seed);
                if has_set {
                    let rebuilt = reader.rebuilt_leaves(epoch, place).unwrap();
                    assert_eq!(found, Some(rebuilt), "seed {}", self.seed);
                    self.seen.rebuilt += 1;
                }
            }
        }
    }

    /// A scrub finds nothing but what is dead, and the settled records sum up to what they are.
    fn scrub(&mut self, reader: &StoreReader) {
        let place = self.any_partition();
        let options = ScrubOptions {
            dead_by_ms: DEAD_BY_MS,
            left_out_ms: DEAD_BY_MS,
        };
        let mut scrub = Scrub::new(place, options);
        let mut dead = Vec::new();
        let mut rows = Vec::new();
        loop {
            let looks = 1 + self.random.below(9) as usize;
            let step = scrub.step(reader, looks).unwrap();
            for finding in step.findings {
                match finding {
                    ScrubFinding::Dead(found) => dead.push(found),
                    other => panic!("seed {}: {other:?}", self.seed),
                }
            }
            if let Some(range) = step.range {
                let summed = self.rows_of(reader, place, &range);
                assert_eq!(
                    reader.leaves_of(&summed),
                    range.leaves,
                    "seed {}",
                    self.seed
                );
                rows.extend(summed);
            }
            if step.is_done {
                break;
            }
        }
        let entry = self.promised.partition(place).clone();
        if entry.state != PartitionState::Held {
            return;
        }
        let is_live = |record: &&Record| {
            record.value().is_some() && record.expires_at_ms.is_none_or(|at| at > DEAD_BY_MS)
        };
        let live = self.visible.records.values().filter(is_live);
        let live = live.filter(|record| partition(&record.key) == place);
        let settled = live.filter(|record| record.epoch <= entry.settled && entry.settled.0 > 0);
        assert_eq!(rows.len(), settled.count(), "seed {}", self.seed);
        if let (Some(store), true) = (&mut self.store, self.random.coin()) {
            match store.collect_dead(&dead, next_floor(entry.settled), DEAD_BY_MS) {
                Ok(collected) => self.seen.collected += collected.removed,
                Err(StoreError::Behind { .. } | StoreError::Full | StoreError::Engine(_)) => {}
                Err(StoreError::Poisoned { .. }) => self.crash(),
                Err(error) => panic!("seed {}: {error}", self.seed),
            }
        }
    }

    /// The rows of a range, a few at a time and bucket by bucket.
    fn rows_of(
        &mut self,
        reader: &StoreReader,
        place: PartitionId,
        range: &SettledRange,
    ) -> Vec<IndexRow> {
        let mut rows = Vec::new();
        for bucket in 0..self.bench.options.bucket_count {
            let mut of = range.of.clone();
            loop {
                let page = reader.settled_rows(place, &of, &[bucket], 3).unwrap();
                let (page, next) = page.expect("nothing has been settled since");
                rows.extend(page);
                match next {
                    Some(next) => of.after = Some(next),
                    None => break,
                }
            }
        }
        rows
    }
}
