//! Four replicas with real sets: a group of three, of which one is then replaced by the fourth. The fourth
//! takes writes from the start, and streams when all of its group go by the new rings, as in stage `Stream`.
//!
//! Writes reach anybody as long as the epoch is open there; messages are lost, repeated and reordered;
//! replicas learn of the new group at different times, lose rows, and stream anew. After every step the
//! invariants are checked against the sets themselves. At the end everything gets through, and all have to
//! settle everything.

use super::*;

const EPOCHS: u64 = 3;

/// Rounds in which everything gets through, after which all must have settled.
const ROUNDS: usize = 60;

fn group(version: TopologyVersion) -> BTreeSet<NodeId> {
    match version {
        V1 => nodes([1, 2, 3]),
        _ => nodes([1, 2, 4]),
    }
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
}

type Set = BTreeSet<u32>;

struct Replica {
    ledger: Ledger,
    version: TopologyVersion,
    closed: Epoch,
    sets: BTreeMap<Epoch, Set>,
    /// Wiped or damaged by the test: what it held before does not bind it.
    excused: bool,
}

enum Message {
    Question(Question),
    Answer(Question, Answer),
    /// The rows of an epoch, for who asked under this version.
    Rows(Epoch, Set, TopologyVersion),
}

struct Model {
    choices: Choices,
    replicas: BTreeMap<NodeId, Replica>,
    /// From, to, what.
    sent: Vec<(NodeId, NodeId, Message)>,
    /// What each epoch was settled with, and under which version first.
    settled: BTreeMap<Epoch, (Set, TopologyVersion)>,
    next_row: u32,
    lossy: bool,
    /// Rows rot. Then a set may shrink, which the lemma excludes: a row that was sent before it rotted may
    /// still come in somewhere. Whoever has not settled yet may differ for a while, and is rebuilt.
    damage: bool,
}

fn root(set: &Set) -> u128 {
    let bytes: Vec<u8> = set.iter().flat_map(|row| row.to_le_bytes()).collect();
    xxh3_128(&bytes)
}

impl Model {
    fn new(seed: u64, flaw: Option<Mutation>, damage: bool) -> Model {
        let replica = |node: u64| {
            let me = NodeId(node);
            let version = if node == 4 { TopologyVersion(2) } else { V1 };
            let mut others = group(version);
            others.remove(&me);
            let mut ledger = Ledger::new(version, others, Epoch(0), 0);
            ledger.flaw = flaw;
            if node == 4 {
                ledger.rebuild();
            }
            let replica = Replica {
                ledger,
                version,
                closed: Epoch(0),
                sets: (1..=EPOCHS)
                    .map(|epoch| (Epoch(epoch), Set::new()))
                    .collect(),
                excused: false,
            };
            (me, replica)
        };
        Model {
            choices: Choices(seed),
            replicas: (1..=4).map(replica).collect(),
            sent: Vec::new(),
            settled: BTreeMap::new(),
            next_row: 0,
            lossy: true,
            damage,
        }
    }

    fn at(&mut self, node: NodeId) -> &mut Replica {
        self.replicas.get_mut(&node).unwrap()
    }

    fn pick(&mut self) -> NodeId {
        NodeId(1 + self.choices.below(4) as u64)
    }

    fn tell_roots(&mut self, node: NodeId) {
        let replica = self.at(node);
        for (epoch, set) in &replica.sets {
            replica.ledger.set_root(*epoch, root(set));
        }
    }

    fn write(&mut self) {
        self.next_row += 1;
        let (row, epoch) = (
            self.next_row,
            Epoch(1 + self.choices.below(EPOCHS as usize) as u64),
        );
        for node in 1..=4 {
            let reached = self.choices.below(3) > 0;
            let replica = self.at(NodeId(node));
            // The fence.
            if reached && epoch > replica.closed {
                replica.sets.get_mut(&epoch).unwrap().insert(row);
            }
        }
    }

    fn close(&mut self, node: NodeId) {
        let replica = self.at(node);
        replica.closed = Epoch((replica.closed.0 + 1).min(EPOCHS));
        replica.ledger.close(replica.closed);
        self.tell_roots(node);
    }

    fn learn(&mut self, node: NodeId) {
        // The third is out, and never hears of it.
        if node != NodeId(3) {
            let mut others = group(TopologyVersion(2));
            others.remove(&node);
            let replica = self.at(node);
            replica.version = TopologyVersion(2);
            replica.ledger.set_group(TopologyVersion(2), others);
        }
    }

    fn stream_to_the_new(&mut self) {
        let new = NodeId(4);
        let group = group(TopologyVersion(2));
        let all_know = group.iter().all(|node| self.replicas[node].version != V1);
        if all_know && !self.replicas[&new].ledger.is_complete {
            self.rebuild(new);
        }
    }

    fn ask(&mut self, node: NodeId) {
        let others = group(self.at(node).version);
        for other in others {
            if let Some(question) = self.at(node).ledger.question_for(other) {
                self.sent.push((node, other, Message::Question(question)));
            }
        }
    }

    fn deliver(&mut self) {
        if self.sent.is_empty() {
            return;
        }
        let index = self.choices.below(self.sent.len());
        let repeated = self.lossy && self.choices.below(8) == 0;
        let (from, to, message) = match repeated {
            false => self.sent.swap_remove(index),
            true => {
                let (from, to, message) = &self.sent[index];
                let again = match message {
                    Message::Question(question) => Message::Question(*question),
                    Message::Answer(question, answer) => Message::Answer(*question, *answer),
                    Message::Rows(epoch, set, version) => {
                        Message::Rows(*epoch, set.clone(), *version)
                    }
                };
                (*from, *to, again)
            }
        };
        if self.lossy && self.choices.below(4) == 0 {
            return;
        }
        match message {
            Message::Question(question) => {
                let answer = self.at(to).ledger.answer(&question);
                self.sent
                    .push((to, from, Message::Answer(question, answer)));
            }
            Message::Answer(question, answer) => {
                let version = self.at(to).version;
                let follow = self.at(to).ledger.on_answer(from, &question, answer);
                if let Follow::Walk { epoch, .. } = follow {
                    // The walk and the exchange in one: what the other has by now.
                    let rows = self.at(from).sets[&epoch].clone();
                    self.sent
                        .push((from, to, Message::Rows(epoch, rows, version)));
                }
            }
            Message::Rows(epoch, rows, version) => {
                let replica = self.at(to);
                let counts = version == replica.version && epoch > replica.ledger.settled();
                if counts {
                    replica.sets.get_mut(&epoch).unwrap().extend(rows);
                    self.tell_roots(to);
                }
            }
        }
    }

    fn settle(&mut self, node: NodeId) -> Result<(), String> {
        while let Some(epoch) = self.at(node).ledger.verified(false) {
            let replica = self.at(node);
            if replica.ledger.chain_with(epoch).is_none() {
                return Err("a verified epoch without a chain".to_owned());
            }
            replica.ledger.settle(epoch);
            let (set, version) = (replica.sets[&epoch].clone(), replica.version);
            // What was settled by the one that goes, and by nobody else, binds nobody who stays.
            if node == NodeId(3) {
                continue;
            }
            let known = self.settled.entry(epoch).or_insert((set.clone(), version));
            if known.0 != set {
                return Err(format!("{node} has settled {epoch} with another set"));
            }
        }
        let lost = self.at(node).ledger.needs_rebuild();
        if lost {
            self.rebuild(node);
        }
        Ok(())
    }

    /// Streams from the member that has settled most.
    fn rebuild(&mut self, node: NodeId) {
        let group = group(self.at(node).version);
        let sources = group.into_iter().filter(|source| *source != node);
        let source = sources
            .max_by_key(|source| self.replicas[source].ledger.settled())
            .unwrap();
        let (sets, settled, chain) = {
            let source = &self.replicas[&source];
            (
                source.sets.clone(),
                source.ledger.settled(),
                source.ledger.chain(),
            )
        };
        let replica = self.at(node);
        replica.ledger.rebuild();
        replica.excused = true;
        // Writes that came in meanwhile stay.
        for (epoch, set) in sets {
            let own = replica.sets.get_mut(&epoch).unwrap();
            match epoch <= settled {
                true => *own = set,
                false => own.extend(set),
            }
        }
        replica.closed = replica.closed.max(settled);
        replica.ledger.rebuilt(settled, chain);
        replica.ledger.close(replica.closed);
        self.tell_roots(node);
    }

    /// What was settled is the same everywhere, for ever.
    fn check(&self) -> Result<(), String> {
        for (epoch, (set, version)) in &self.settled {
            for node in group(*version) {
                let replica = &self.replicas[&node];
                let may_differ =
                    replica.excused || (self.damage && replica.ledger.settled() < *epoch);
                if replica.sets[epoch] != *set && !may_differ {
                    return Err(format!("epoch {epoch} was settled, but {node} differs"));
                }
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), String> {
        let node = self.pick();
        match self.choices.below(24) {
            0..=3 => self.write(),
            4..=6 => self.close(node),
            7 if self.choices.below(2) == 0 => self.stream_to_the_new(),
            7 => self.learn(node),
            8..=11 => self.ask(node),
            12..=14 => self.settle(node)?,
            15 if self.damage && self.choices.below(6) == 0 => {
                // A row rots away before anybody has settled it.
                let replica = self.at(node);
                let epoch = Epoch(replica.ledger.settled().0 + 1);
                if let Some(set) = replica.sets.get_mut(&epoch)
                    && set.pop_first().is_some()
                {
                    replica.excused = true;
                    self.tell_roots(node);
                }
            }
            _ => self.deliver(),
        }
        self.check()
    }

    /// Everybody knows everything, and nothing is lost.
    fn calm(&mut self) -> Result<(), String> {
        self.lossy = false;
        let present = group(TopologyVersion(2));
        for node in &present {
            self.learn(*node);
            for _ in 0..EPOCHS {
                self.close(*node);
            }
        }
        self.stream_to_the_new();
        for _ in 0..ROUNDS {
            for node in &present {
                self.ask(*node);
            }
            while !self.sent.is_empty() {
                self.deliver();
                self.check()?;
            }
            for node in &present {
                self.settle(*node)?;
                self.check()?;
            }
        }
        for node in &present {
            let ledger = &self.replicas[node].ledger;
            if ledger.settled() != Epoch(EPOCHS) {
                let blocked = ledger.blocked_by();
                return Err(format!(
                    "{node} has settled {} only: {blocked:?}",
                    ledger.settled()
                ));
            }
            for (epoch, (set, _)) in &self.settled {
                if self.replicas[node].sets[epoch] != *set {
                    return Err(format!("{node} ends with another set of {epoch}"));
                }
            }
        }
        Ok(())
    }
}

/// The first of so many histories that breaks an invariant.
fn broken(flaw: Option<Mutation>, damage: bool, histories: u64) -> Option<String> {
    (0..histories).find_map(|seed| {
        let mut model = Model::new(seed, flaw, damage);
        let steps = 20 + model.choices.below(200);
        let mut result = Ok(());
        for _ in 0..steps {
            result = result.and_then(|()| model.step());
        }
        let error = result.and_then(|()| model.calm()).err()?;
        Some(format!("seed {seed}: {error}"))
    })
}

#[test]
fn what_is_settled_is_equal_everywhere_and_everything_is_settled_in_the_end() {
    assert_eq!(broken(None, false, 4_000), None);
}

#[test]
fn damaged_replicas_are_rebuilt() {
    assert_eq!(broken(None, true, 4_000), None);
}

#[test]
fn each_planted_bug_is_noticed() {
    for flaw in [
        Mutation::ValidByDisagreeing,
        Mutation::VerifiedWithoutOne,
        Mutation::VerifiedAcrossTopologies,
    ] {
        let caught = broken(Some(flaw), false, 4_000);
        assert!(caught.is_some(), "{flaw:?}");
    }
}
