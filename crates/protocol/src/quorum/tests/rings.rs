//! The proof of the table of stages: by enumeration for what was acknowledged, by random histories for
//! what was read; and that both would notice if the table, or the way of counting, were wrong.

use mds_types::{RingStage, RingUse};

use super::*;

/// Two rings over few nodes: the first `current` nodes are the current ring, the last `next` of `nodes` the
/// next one.
#[derive(Clone, Copy, Debug)]
struct Shape {
    nodes: usize,
    current: usize,
    next: usize,
    r: [u8; 2],
    w: [u8; 2],
}

impl Shape {
    /// All shapes with up to three replicas in each ring, any overlap, and quorums that intersect.
    fn all() -> Vec<Shape> {
        let mut shapes = Vec::new();
        for (current, next) in pairs(1..=3, 1..=3) {
            for overlap in 0..=current.min(next) {
                let nodes = current + next - overlap;
                for (r0, w0) in pairs(1..=current, 1..=current) {
                    for (r1, w1) in pairs(1..=next, 1..=next) {
                        if r0 + w0 > current && r1 + w1 > next {
                            shapes.push(Shape {
                                nodes,
                                current,
                                next,
                                r: [r0 as u8, r1 as u8],
                                w: [w0 as u8, w1 as u8],
                            });
                        }
                    }
                }
            }
        }
        shapes
    }

    fn needs(&self, by: RingUse, quorum: [u8; 2]) -> Needs {
        let current = (0..self.current).collect();
        let next = (self.nodes - self.next..self.nodes).collect();
        let need = |needed, replicas| Need { needed, replicas };
        Needs::used(by, need(quorum[0], current), need(quorum[1], next))
    }

    fn writes(&self, stage: RingStage) -> Needs {
        self.needs(stage.writes(), self.w)
    }

    fn reads(&self, stage: RingStage) -> Needs {
        self.needs(stage.reads(), self.r)
    }
}

fn pairs(
    a: std::ops::RangeInclusive<usize>,
    b: std::ops::RangeInclusive<usize>,
) -> Vec<(usize, usize)> {
    a.flat_map(|x| b.clone().map(move |y| (x, y))).collect()
}

/// The stages of a change, and the stable ring after it: requests at a distance of one may overlap.
const WALK: [RingStage; 8] = [
    RingStage::Stable,
    RingStage::Prepare,
    RingStage::WriteBoth,
    RingStage::Stream,
    RingStage::ReadBoth,
    RingStage::ReadNext,
    RingStage::Cleanup,
    // The next ring as the stable one: the same needs as in cleanup.
    RingStage::Cleanup,
];

/// The sets of replicas that meet these needs, by the real bookkeeping.
fn meeting(shape: &Shape, needs: Needs) -> Vec<u32> {
    let sets = 0u32..1 << shape.nodes;
    sets.filter(|set| {
        let mut write = WriteQuorum::joint(needs, shape.nodes as u8);
        for replica in 0..shape.nodes {
            match set & 1 << replica {
                0 => write.fail(replica),
                _ => write.ack(replica),
            };
        }
        write.outcome() == Outcome::Met
    })
    .collect()
}

/// A read that misses a write which was acknowledged in its own or a neighbouring stage.
fn missed(count: impl Fn(Needs) -> Needs) -> Option<String> {
    for shape in Shape::all() {
        let sets = |needs| meeting(&shape, count(needs));
        let writes = WALK.map(|stage| sets(shape.writes(stage)));
        let reads = WALK.map(|stage| sets(shape.reads(stage)));
        for (at, readers) in reads.iter().enumerate() {
            for near in at.saturating_sub(1)..=(at + 1).min(WALK.len() - 1) {
                for (read, write) in readers
                    .iter()
                    .flat_map(|read| writes[near].iter().map(move |write| (read, write)))
                {
                    if read & write == 0 {
                        let (reader, writer) = (WALK[at], WALK[near]);
                        return Some(format!(
                            "{shape:?}: written to {write:b} in {writer}, read from {read:b} in {reader}"
                        ));
                    }
                }
            }
        }
    }
    None
}

#[test]
fn what_was_acknowledged_is_met_by_the_reads_of_neighbouring_stages() {
    assert_eq!(missed(|needs| needs), None);
}

#[test]
fn counting_over_the_union_of_two_rings_is_noticed() {
    assert!(missed(Needs::over_the_union).is_some());
}

/// From `Stream` on a write is met by every later read of the change, whatever the distance.
#[test]
fn what_is_written_to_both_rings_is_met_by_all_later_stages() {
    for shape in Shape::all() {
        for (at, writer) in WALK.iter().enumerate().skip(2) {
            for reader in &WALK[at..] {
                for write in meeting(&shape, shape.writes(*writer)) {
                    let mut reads = meeting(&shape, shape.reads(*reader)).into_iter();
                    assert!(reads.all(|read| read & write != 0), "{writer} {reader}");
                }
            }
        }
    }
}

#[test]
fn the_numbers_are_those_of_the_ring_that_failed() {
    let shape = Shape {
        nodes: 5,
        current: 3,
        next: 3,
        r: [2, 2],
        w: [2, 3],
    };
    let mut write = WriteQuorum::joint(shape.writes(RingStage::Stream), 5);
    assert_eq!(write.ack(0), Outcome::Pending);
    assert_eq!(write.ack(1), Outcome::Pending);
    let short = write.shortfall();
    assert_eq!(
        (short.ring, short.needed, short.got, short.of),
        (RingSide::Next, 3, 0, 3)
    );
    let failed = Outcome::Impossible {
        needed: 3,
        got: 2,
        of: 3,
    };
    assert_eq!(write.fail(4), failed);
    assert_eq!(write.failed_ring(), Some(RingSide::Next));
}

#[test]
fn a_read_asks_only_the_rings_that_it_needs() {
    let shape = Shape {
        nodes: 5,
        current: 3,
        next: 3,
        r: [2, 2],
        w: [2, 2],
    };
    let read = |stage| {
        let (reads, writes) = (shape.reads(stage), shape.writes(stage));
        ReadQuorum::joint(reads, writes, 5, None)
    };
    let asked = |stage, asked: &[usize]| -> Vec<usize> {
        let asked = asked.iter().copied().collect();
        read(stage).to_ask(asked).iter().collect()
    };
    assert_eq!(asked(RingStage::Stream, &[0]), [1, 2]);
    assert_eq!(asked(RingStage::Stream, &[0, 1]), [0usize; 0]);
    assert_eq!(asked(RingStage::ReadBoth, &[0, 1]), [2, 3, 4]);
    assert_eq!(asked(RingStage::ReadBoth, &[1, 2]), [3, 4]);
    assert_eq!(asked(RingStage::ReadBoth, &[1, 2, 3]), [0usize; 0]);
    assert_eq!(asked(RingStage::ReadNext, &[3]), [2, 4]);
}

/// A source of choices that is the same each time.
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % bound as u64) as usize
    }

    fn order(&mut self, of: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..of).collect();
        for at in (1..of).rev() {
            order.swap(at, self.below(at + 1));
        }
        order
    }
}

/// E1, in the histories below.
const FIRST: u64 = 10;

/// One key on a ring in change: writes that reach anybody or nobody, and quorum reads, each by a
/// coordinator that knows the present stage or the one before.
struct History {
    shape: Shape,
    choices: Choices,
    /// What each node holds: (version, epoch).
    held: Vec<Option<(u64, u64)>>,
    /// The greatest version of an epoch before E1 that each node was ever given, superseded or not.
    rows: Vec<u64>,
    next_version: u64,
    /// The greatest version that was acknowledged or shown to a reader.
    seen: u64,
    /// Whether fresh records are written back although answers agree.
    careful: bool,
}

impl History {
    fn of(&self, (v, epoch): (u64, u64)) -> Record {
        Record {
            epoch: Epoch(epoch),
            body: Body::Value(Bytes::from(v.to_string())),
            ..record(v)
        }
    }

    fn give(&mut self, node: usize, given: (u64, u64)) {
        self.held[node] = self.held[node].max(Some(given));
        if given.1 < FIRST {
            self.rows[node] = self.rows[node].max(given.0);
        }
    }

    fn write(&mut self, stage: RingStage) {
        self.next_version += 1;
        // A coordinator that knows of `Stream` knows E1.
        let epoch = match stage {
            RingStage::Stable | RingStage::Prepare | RingStage::WriteBoth => FIRST - 1,
            _ => FIRST,
        };
        let written = (self.next_version, epoch);
        let needs = self.shape.writes(stage);
        let mut quorum = WriteQuorum::joint(needs, self.shape.nodes as u8);
        let reached = self.choices.below(self.shape.nodes + 1);
        for replica in self
            .choices
            .order(self.shape.nodes)
            .into_iter()
            .take(reached)
        {
            let targets = needs.current.replicas.union(needs.next.replicas);
            if targets.contains(replica) {
                self.give(replica, written);
                quorum.ack(replica);
            }
        }
        if quorum.outcome() == Outcome::Met {
            self.seen = self.seen.max(self.next_version);
        }
    }

    /// Whether the read went back behind what was acknowledged or shown before.
    fn read(&mut self, stage: RingStage) -> bool {
        let (reads, writes) = (self.shape.reads(stage), self.shape.writes(stage));
        let fresh = match stage {
            RingStage::WriteBoth | RingStage::Stream if self.careful => Some(Epoch(FIRST)),
            _ => None,
        };
        let mut read = ReadQuorum::joint(reads, writes, self.shape.nodes as u8, fresh);
        let must_see = self.seen;
        for replica in self.choices.order(self.shape.nodes) {
            let useful = read.to_ask(ReplicaSet::EMPTY);
            if useful.contains(replica) {
                let answer = self.held[replica].map(|held| self.of(held));
                read.answer(replica, answer);
            }
        }
        let gives_up_after = self.choices.below(self.shape.nodes + 1);
        for replica in self
            .choices
            .order(self.shape.nodes)
            .into_iter()
            .take(gives_up_after)
        {
            if read.may_answer(9) {
                break;
            }
            let newest = read.newest().unwrap().clone();
            let held = (newest.version.hlc.0, newest.epoch.0);
            self.give(replica, held);
            read.repair_acked(replica, newest.version);
        }
        if !read.may_answer(9) {
            return false;
        }
        let shown = read.newest().map_or(0, |newest| newest.version.hlc.0);
        self.seen = self.seen.max(shown);
        shown < must_see
    }

    /// All replicas of both rings have the same rows of the epochs before E1: whoever lacks one is given
    /// the record that a holder has by now.
    fn verify(&mut self) {
        let newest = self.rows.iter().copied().max().unwrap_or(0);
        let Some(holder) = (0..self.rows.len()).find(|node| self.rows[*node] == newest) else {
            return;
        };
        for node in 0..self.rows.len() {
            if self.rows[node] < newest
                && let Some(record) = self.held[holder]
            {
                self.give(node, record);
                self.rows[node] = newest;
            }
        }
    }

    /// Walks through the whole change; whether any read went back.
    fn play(&mut self) -> bool {
        for at in 0..WALK.len() {
            if WALK[at] == RingStage::ReadBoth {
                self.verify();
            }
            for _ in 0..self.choices.below(5) {
                // Requests under way may be of the stage before.
                let stage = WALK[at.saturating_sub(self.choices.below(2))];
                let went_back = match self.choices.below(2) {
                    0 => {
                        self.write(stage);
                        false
                    }
                    _ => self.read(stage),
                };
                if went_back {
                    return true;
                }
            }
        }
        false
    }
}

/// The first history in which a read goes back.
fn goes_back(careful: bool, histories: u64) -> Option<u64> {
    let shapes: Vec<Shape> = Shape::all()
        .into_iter()
        .filter(|shape| {
            2 * usize::from(shape.r[0]) > shape.current && 2 * usize::from(shape.r[1]) > shape.next
        })
        .collect();
    (0..histories).find(|seed| {
        let mut choices = Choices(*seed);
        let shape = shapes[choices.below(shapes.len())];
        let mut history = History {
            shape,
            choices,
            held: vec![None; shape.nodes],
            rows: vec![0; shape.nodes],
            next_version: 0,
            seen: 0,
            careful,
        };
        history.play()
    })
}

#[test]
fn reads_are_monotonic_over_a_whole_change() {
    assert_eq!(goes_back(true, 200_000), None);
}

/// Why records stamped during the change are written back although answers agree: R replicas of the
/// current ring may be the only ones that hold such a record.
#[test]
fn showing_a_fresh_record_without_a_write_back_is_noticed() {
    assert!(goes_back(false, 200_000).is_some());
}
