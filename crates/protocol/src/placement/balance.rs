//! Replica sets by cost, then hand-overs until nobody is above a limit.
//!
//! A member above its limit looks for the shortest chain of hand-overs that ends at a member with
//! room: `a` gives partition p to `b`, `b` gives q to `c`, and so on. Mostly the chain has one step.
//! This is the augmenting path of a flow problem, so a chain exists whenever the limits can be met
//! at all. Within a step, partitions that fit the giver worst are tried first: a member keeps what
//! hashing says most clearly is its own, so a small change of limits moves little.
//!
//! The steps of one chain do not get in each other's way even if they touch one partition twice:
//! breadth-first, the first step out of a partition reaches everybody who may enter it by that way.

use std::collections::VecDeque;

use super::Ring;
use super::cost::cost;

/// Members of one partition, by index, in order.
pub(super) type ReplicaIndexes = Vec<u16>;

/// One hand-over.
#[derive(Clone, Copy)]
struct Step {
    from: u16,
    partition: u16,
    to: u16,
}

impl Ring {
    fn cost(&self, partition: u16, member: u16) -> u64 {
        let member = usize::from(member);
        cost(partition, self.nodes[member], self.weights[member])
    }

    fn members(&self) -> std::ops::Range<u16> {
        // At most `MEMBERS_MAX`, which fits.
        0..self.nodes.len() as u16
    }

    fn zone(&self, member: u16) -> u16 {
        self.zone_of[usize::from(member)]
    }

    /// Whether `to` may take the place of `from` in a replica set.
    fn may_replace(&self, set: &[u16], from: u16, to: u16) -> bool {
        if set.contains(&to) {
            return false;
        }
        if self.zone(from) == self.zone(to) {
            return true;
        }
        let has = |zone, except| {
            set.iter()
                .any(|&member| member != except && self.zone(member) == zone)
        };
        if self.zone_count >= self.replicas_each {
            !has(self.zone(to), from)
        } else {
            has(self.zone(from), from)
        }
    }
}

/// The replica set of every partition by cost and zones alone.
pub(super) fn rendezvous(ring: &Ring) -> Vec<ReplicaIndexes> {
    let mut ranked: Vec<(u64, u16)> = Vec::with_capacity(ring.nodes.len());
    let mut zone_used = vec![false; ring.zone_count];
    (0..ring.partition_count)
        .map(|partition| {
            ranked.clear();
            ranked.extend(
                ring.members()
                    .map(|member| (ring.cost(partition, member), member)),
            );
            ranked.sort_unstable();
            zone_used.fill(false);
            let mut zones_missing = ring.zones_each();
            let mut set = Vec::with_capacity(ring.replicas_each);
            for &(_, member) in &ranked {
                if set.len() == ring.replicas_each {
                    break;
                }
                let used = &mut zone_used[usize::from(ring.zone(member))];
                if !*used {
                    *used = true;
                    zones_missing -= usize::from(zones_missing > 0);
                    set.push(member);
                } else if ring.replicas_each - set.len() > zones_missing {
                    set.push(member);
                }
            }
            set
        })
        .collect()
}

/// Hands partitions over until no member holds more than its limit.
pub(super) fn bound_loads(ring: &Ring, limits: &[u32], sets: &mut [ReplicaIndexes]) {
    let mut held = vec![Vec::new(); ring.nodes.len()];
    for (partition, set) in (0..ring.partition_count).zip(&*sets) {
        for &member in set {
            held[usize::from(member)].push(partition);
        }
    }
    relieve(
        ring,
        limits,
        &mut held,
        sets,
        |set, from, to| ring.may_replace(set, from, to),
        |set, step| {
            for member in set.iter_mut().filter(|member| **member == step.from) {
                *member = step.to;
            }
        },
    );
}

/// Orders each set by cost, then changes who comes first until nobody does too often.
pub(super) fn bound_primaries(ring: &Ring, limits: &[u32], sets: &mut [ReplicaIndexes]) {
    let mut held = vec![Vec::new(); ring.nodes.len()];
    for (partition, set) in (0..ring.partition_count).zip(&mut *sets) {
        set.sort_by_key(|&member| (ring.cost(partition, member), member));
        if let Some(&first) = set.first() {
            held[usize::from(first)].push(partition);
        }
    }
    let replicas_each = ring.replicas_each.max(1) as u32;
    let limits: Vec<u32> = limits
        .iter()
        .map(|limit| limit.div_ceil(replicas_each))
        .collect();
    relieve(
        ring,
        &limits,
        &mut held,
        sets,
        |set, from, to| from != to && set.contains(&to),
        |set, step| {
            if let Some(place) = set.iter().position(|&member| member == step.to) {
                set[..=place].rotate_right(1);
            }
        },
    );
}

/// Applies chains of hand-overs until every member holds at most its limit.
fn relieve(
    ring: &Ring,
    limits: &[u32],
    held: &mut [Vec<u16>],
    sets: &mut [ReplicaIndexes],
    may: impl Fn(&[u16], u16, u16) -> bool,
    apply: impl Fn(&mut ReplicaIndexes, Step),
) {
    for member in ring.members() {
        while held[usize::from(member)].len() > limits[usize::from(member)] as usize {
            let Some(chain) = find_chain(ring, limits, held, sets, &may, member) else {
                // The limits are such that a chain exists; if they ever were not, an uneven
                // placement is still a correct one.
                debug_assert!(false, "no chain of hand-overs from {member}");
                break;
            };
            for step in chain {
                apply(&mut sets[usize::from(step.partition)], step);
                held[usize::from(step.from)].retain(|&partition| partition != step.partition);
                held[usize::from(step.to)].push(step.partition);
            }
        }
    }
}

/// The shortest chain of hand-overs from a member to one with room, breadth-first.
fn find_chain(
    ring: &Ring,
    limits: &[u32],
    held: &[Vec<u16>],
    sets: &[ReplicaIndexes],
    may: &impl Fn(&[u16], u16, u16) -> bool,
    start: u16,
) -> Option<Vec<Step>> {
    let has_room = |member: u16| {
        let member = usize::from(member);
        held[member].len() < limits[member] as usize
    };
    let mut reached_by: Vec<Option<Step>> = vec![None; ring.nodes.len()];
    let mut queue = VecDeque::from([start]);
    while let Some(from) = queue.pop_front() {
        let mut worst_first: Vec<(u64, u16)> = held[usize::from(from)]
            .iter()
            .map(|&partition| (ring.cost(partition, from), partition))
            .collect();
        worst_first.sort_unstable_by(|a, b| b.cmp(a));
        for (_, partition) in worst_first {
            let set = &sets[usize::from(partition)];
            let reachable = || {
                ring.members().filter(|&to| {
                    to != start && reached_by[usize::from(to)].is_none() && may(set, from, to)
                })
            };
            let best = reachable()
                .filter(|&to| has_room(to))
                .min_by_key(|&to| (ring.cost(partition, to), to));
            if let Some(to) = best {
                reached_by[usize::from(to)] = Some(Step {
                    from,
                    partition,
                    to,
                });
                return Some(walk_back(&reached_by, to));
            }
            let newly: Vec<u16> = reachable().collect();
            for to in newly {
                reached_by[usize::from(to)] = Some(Step {
                    from,
                    partition,
                    to,
                });
                queue.push_back(to);
            }
        }
    }
    None
}

/// The chain that ends at `last`, its last step first.
fn walk_back(reached_by: &[Option<Step>], last: u16) -> Vec<Step> {
    let mut chain = Vec::new();
    let mut next = reached_by[usize::from(last)];
    while let Some(step) = next {
        chain.push(step);
        next = reached_by[usize::from(step.from)];
    }
    chain
}
