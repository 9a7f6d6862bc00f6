//! The verification against a world of replicas whose sets can be looked at: what is verified is equal,
//! and stays so; and in the end everything is verified.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const NODES: usize = 3;
const KEYS: u64 = 3;
const LAST_EPOCH: u64 = 4;

/// Of one epoch: the greatest version of each key.
type Set = BTreeMap<u64, u64>;

#[derive(Clone, Debug)]
struct Replica {
    sets: BTreeMap<Epoch, Set>,
    closed: Epoch,
    settled: Epoch,
    progress: Progress,
}

#[derive(Clone, Debug)]
enum Packet {
    /// A client's write, which may arrive late.
    Write {
        to: usize,
        epoch: Epoch,
        key: u64,
        version: u64,
    },
    /// A write-back of what a replica was seen to have.
    Repair {
        to: usize,
        epoch: Epoch,
        key: u64,
        version: u64,
    },
    Ask {
        from: usize,
        to: usize,
        epoch: Epoch,
        root: u128,
    },
    Answer {
        from: usize,
        to: usize,
        epoch: Epoch,
        root: u128,
        verdict: Verdict,
    },
    /// All rows of an epoch, for who asked.
    Rows { to: usize, epoch: Epoch, set: Set },
}

fn root(set: &Set) -> u128 {
    set.iter().fold(0, |sum, (&key, &version)| {
        sum + (u128::from(version) << 8 | u128::from(key)).pow(2)
    })
}

struct World {
    replicas: Vec<Replica>,
    packets: Vec<Packet>,
    next_version: u64,
    /// What was verified by somebody, for ever.
    verified: BTreeMap<Epoch, Set>,
}

fn node(index: usize) -> NodeId {
    NodeId(index as u64 + 1)
}

impl World {
    fn new() -> World {
        let replica = |me: usize| {
            let mut progress = Progress::default();
            let others = (0..NODES).filter(|&other| other != me).map(node);
            progress.regroup(TopologyVersion(1), others);
            Replica {
                sets: BTreeMap::new(),
                closed: Epoch(0),
                settled: Epoch(0),
                progress,
            }
        };
        World {
            replicas: (0..NODES).map(replica).collect(),
            packets: Vec::new(),
            next_version: 0,
            verified: BTreeMap::new(),
        }
    }

    fn merge(&mut self, to: usize, epoch: Epoch, key: u64, version: u64) {
        let replica = &mut self.replicas[to];
        if epoch <= replica.settled {
            return;
        }
        let held = replica
            .sets
            .entry(epoch)
            .or_default()
            .entry(key)
            .or_default();
        if version > *held {
            *held = version;
            replica.progress.changed(epoch);
        }
    }

    fn deliver(&mut self, packet: Packet) {
        match packet {
            Packet::Write {
                to,
                epoch,
                key,
                version,
            } => {
                if epoch > self.replicas[to].closed {
                    self.merge(to, epoch, key, version);
                }
            }
            Packet::Repair {
                to,
                epoch,
                key,
                version,
            } => self.merge(to, epoch, key, version),
            Packet::Ask {
                from,
                to,
                epoch,
                root: asked,
            } => {
                let replica = &self.replicas[to];
                let set = replica.sets.get(&epoch).cloned().unwrap_or_default();
                let verdict = match () {
                    () if epoch > replica.closed => Verdict::NotClosed,
                    () if root(&set) == asked => Verdict::Equal,
                    () => Verdict::Differs,
                };
                if verdict == Verdict::Differs {
                    self.packets.push(Packet::Rows {
                        to: from,
                        epoch,
                        set,
                    });
                }
                let (from, to) = (to, from);
                self.packets.push(Packet::Answer {
                    from,
                    to,
                    epoch,
                    root: asked,
                    verdict,
                });
            }
            Packet::Answer {
                from,
                to,
                epoch,
                root,
                verdict,
            } => {
                let replica = &mut self.replicas[to];
                let version = TopologyVersion(1);
                replica
                    .progress
                    .heard(version, node(from), epoch, root, verdict);
                self.settle(to);
            }
            Packet::Rows { to, epoch, set } => {
                for (key, version) in set {
                    self.merge(to, epoch, key, version);
                }
            }
        }
        self.check();
    }

    fn settle(&mut self, at: usize) {
        let replica = &mut self.replicas[at];
        for (epoch, seen) in replica.progress.verified(replica.settled, replica.closed) {
            let set = replica.sets.get(&epoch).cloned().unwrap_or_default();
            if root(&set) != seen {
                replica.progress.changed(epoch);
                return;
            }
            replica.settled = epoch;
            self.verified.entry(epoch).or_insert(set);
        }
        replica.progress.forget(replica.settled);
    }

    fn check(&self) {
        for (epoch, set) in &self.verified {
            for replica in &self.replicas {
                let held = replica.sets.get(epoch).cloned().unwrap_or_default();
                assert_eq!(held, *set, "epoch {epoch} was verified");
            }
        }
    }

    fn compare(&mut self, from: usize) {
        let replica = &self.replicas[from];
        for epoch in replica.progress.pending(replica.settled, replica.closed) {
            let set = replica.sets.get(&epoch).cloned().unwrap_or_default();
            let root = root(&set);
            for to in (0..NODES).filter(|&to| to != from) {
                if replica.progress.has_to_ask(node(to), epoch, root) {
                    self.packets.push(Packet::Ask {
                        from,
                        to,
                        epoch,
                        root,
                    });
                }
            }
        }
    }
}

fn act(world: &mut World, what: u8, a: usize, b: u64) {
    let (at, key) = (a % NODES, b % KEYS);
    match what {
        // A write to some replicas, each of which may get it at any time, or never.
        0..=2 => {
            world.next_version += 1;
            let (version, epoch) = (world.next_version, Epoch(1 + b % LAST_EPOCH));
            for to in (0..NODES).filter(|to| b >> (8 + to) & 1 == 1) {
                world.packets.push(Packet::Write {
                    to,
                    epoch,
                    key,
                    version,
                });
            }
        }
        3 => {
            let replica = &mut world.replicas[at];
            replica.closed = Epoch((replica.closed.0 + 1).min(LAST_EPOCH));
        }
        4 => {
            let epoch = Epoch(1 + b % LAST_EPOCH);
            let sets = &world.replicas[at].sets;
            let seen = sets.get(&epoch).and_then(|set| set.get(&key)).copied();
            if let Some(version) = seen {
                let to = (at + 1) % NODES;
                world.packets.push(Packet::Repair {
                    to,
                    epoch,
                    key,
                    version,
                });
            }
        }
        5 | 6 => world.compare(at),
        // Packets arrive in any order, are lost, and come twice.
        _ if world.packets.is_empty() => {}
        7 => drop(world.packets.swap_remove(b as usize % world.packets.len())),
        8 => {
            let packet = world.packets[b as usize % world.packets.len()].clone();
            world.deliver(packet);
        }
        _ => {
            let packet = world.packets.swap_remove(b as usize % world.packets.len());
            world.deliver(packet);
        }
    }
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]
    #[test]
    fn what_is_verified_is_equal_and_stays_so_and_all_is_verified_in_the_end(
        acts in prop::collection::vec((0u8..14, any::<usize>(), any::<u64>()), 1..250),
    ) {
        let mut world = World::new();
        for (what, a, b) in acts {
            act(&mut world, what, a, b);
        }
        for replica in &mut world.replicas {
            replica.closed = Epoch(LAST_EPOCH);
        }
        for _ in 0..4 * NODES {
            (0..NODES).for_each(|at| world.compare(at));
            while let Some(packet) = world.packets.pop() {
                world.deliver(packet);
            }
        }
        for replica in &world.replicas {
            prop_assert_eq!(replica.settled, Epoch(LAST_EPOCH));
        }
    }
}

#[test]
fn a_member_that_was_not_heard_blocks_and_is_named() {
    let mut progress = Progress::default();
    progress.regroup(TopologyVersion(1), [node(1), node(2)]);
    progress.heard(TopologyVersion(1), node(1), Epoch(1), 7, Verdict::Equal);
    assert_eq!(progress.verified(Epoch(0), Epoch(1)), []);
    assert!(progress.blocked_by(Epoch(0)).eq([node(2)]));
    progress.heard(TopologyVersion(1), node(2), Epoch(1), 8, Verdict::Equal);
    assert_eq!(
        progress.verified(Epoch(0), Epoch(1)),
        [],
        "equal, but to what was since changed"
    );
    progress.heard(TopologyVersion(1), node(2), Epoch(1), 7, Verdict::Equal);
    assert_eq!(progress.verified(Epoch(0), Epoch(1)), [(Epoch(1), 7)]);
    assert_eq!(progress.verified(Epoch(0), Epoch(0)), [], "not closed here");
}

#[test]
fn what_was_seen_under_another_ring_counts_no_more() {
    let mut progress = Progress::default();
    progress.regroup(TopologyVersion(1), [node(1)]);
    progress.heard(TopologyVersion(1), node(1), Epoch(1), 7, Verdict::Equal);
    progress.regroup(TopologyVersion(2), [node(1)]);
    assert_eq!(progress.verified(Epoch(0), Epoch(1)), []);
    progress.heard(TopologyVersion(1), node(1), Epoch(1), 7, Verdict::Equal);
    assert_eq!(
        progress.verified(Epoch(0), Epoch(1)),
        [],
        "an answer from before"
    );
}

#[test]
fn epochs_are_verified_in_their_order() {
    let mut progress = Progress::default();
    progress.regroup(TopologyVersion(1), [node(1)]);
    for epoch in [1, 3] {
        progress.heard(TopologyVersion(1), node(1), Epoch(epoch), 7, Verdict::Equal);
    }
    assert_eq!(progress.verified(Epoch(0), Epoch(9)), [(Epoch(1), 7)]);
    progress.forget(Epoch(1));
    assert_eq!(progress.verified(Epoch(1), Epoch(9)), []);
    assert_eq!(progress.pending(Epoch(1), Epoch(4)), [Epoch(2), Epoch(4)]);
    let ahead = Progress::open(Epoch(5), Epoch(10_000)).count() as u64;
    assert_eq!(ahead, EPOCHS_AHEAD_MAX);
}

#[test]
fn chains_tell_histories_apart() {
    let a = chain(chain(0, Epoch(1), 7), Epoch(2), 8);
    let b = chain(chain(0, Epoch(1), 8), Epoch(2), 7);
    assert_ne!(a, b);
    assert_ne!(chain(0, Epoch(1), 0), chain(0, Epoch(2), 0));
}
