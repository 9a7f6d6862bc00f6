//! What a client does next.

use bytes::Bytes;

use super::{Attempt, Clients, KEYS, Task, Workload, key};
use crate::clock::true_wall_us;
use crate::env::Env;
use crate::history::{Ending, Kind, Operation};

/// The key that everybody wants when there is a hot one.
const HOT_KEY: u64 = 6;

/// Every so many keys one holds values that expire within the run. On the others a value that is
/// read as absent was deleted.
const EXPIRING_KEY_EVERY: u64 = 4;

/// A value that expires within the run lives at most this long, milliseconds.
const LIFETIME_MS_MAX: u64 = 6_000;

/// When other values that expire do so, simulated wall clock, milliseconds: after every run.
const EXPIRES_AT_MS: u64 = 1_893_459_600_000;

/// A value above this is counted as huge, bytes: more than a segment of the simulated log holds.
const HUGE_BYTES: usize = 24 * 1024;

/// A client at work walks through a partition, or counts one, in one of so many cases.
const WALK_ONE_IN: u64 = 16;

/// What a client has decided to do.
struct Plan {
    key: Bytes,
    kind: Kind,
    node: usize,
    quorums: (u8, u8),
    expires_at_ms: Option<u64>,
}

impl Clients {
    /// A client begins something, if it is to.
    pub(super) fn begin(&mut self, index: usize, env: &mut Env) {
        let client = &mut self.clients[index];
        if client.current.is_some() || client.walk.is_some() {
            return;
        }
        let plan = match &mut client.task {
            Task::Rest => return,
            Task::Census { .. } => return self.begin_census(index, env),
            Task::Sweep { node, keys } => {
                let Some((key, replicas)) = keys.pop() else {
                    client.task = Task::Rest;
                    return;
                };
                Plan {
                    key,
                    kind: Kind::Get,
                    node: *node,
                    quorums: (replicas, self.quorums.1),
                    expires_at_ms: None,
                }
            }
            Task::Work => {
                if client.random.below(WALK_ONE_IN) == 0 {
                    return self.begin_walk(index, env);
                }
                match self.workload {
                    Workload::Anybody => self.plan(index, env),
                    Workload::OneWriterPerKey => self.plan_on_registers(index, env),
                }
            }
        };
        let client = &mut self.clients[index];
        if matches!(&plan.kind, Kind::Put { value } if value.len() > HUGE_BYTES) {
            env.counts.count("huge value");
        }
        let operation = self.history.begin(Operation {
            client: index as u64,
            is_session: client.is_session,
            key: plan.key,
            kind: plan.kind,
            expires_at_ms: plan.expires_at_ms,
            read_quorum: plan.quorums.0,
            write_quorum: plan.quorums.1,
            invoked_ns: env.now_ns,
            returned_ns: None,
            is_clock_trusted: false,
            ending: Ending::Pending,
        });
        client.current = Some(Attempt {
            number: client.next_attempt(),
            operation,
            node: plan.node,
            tries: 1,
            stamp: None,
            may_be_done: false,
        });
        self.send(index, env);
    }

    /// Anything, on any key.
    fn plan(&mut self, index: usize, env: &mut Env) -> Plan {
        let random = &mut self.clients[index].random;
        let faults = &env.network.faults;
        let mut quorums = self.quorums;
        // Now and then other quorums than the cluster's.
        for quorum in [&mut quorums.0, &mut quorums.1] {
            if random.below(5) == 0 {
                *quorum = random.between(1, u64::from(self.replicas)) as u8;
            }
        }
        let kind = match random.below(20) {
            0..9 => Kind::Get,
            9..18 => Kind::Put {
                value: self.history.next_value(random, faults),
            },
            _ => Kind::Delete,
        };
        let number = match random.chance(faults.hot_key_ppm) {
            true => {
                env.counts.count("hot key");
                HOT_KEY
            }
            false => random.below(KEYS),
        };
        let is_put = matches!(kind, Kind::Put { .. });
        let expires_at_ms = match random.below(10) {
            _ if !is_put => None,
            0 => Some(EXPIRES_AT_MS),
            1..7 if number % EXPIRING_KEY_EVERY == EXPIRING_KEY_EVERY - 1 => {
                env.reached.count("value expires within the run");
                let wall_ms = true_wall_us(env.now_ns) / 1_000;
                Some(wall_ms + random.below(LIFETIME_MS_MAX))
            }
            _ => None,
        };
        Plan {
            key: key(number),
            kind,
            node: random.index(self.nodes),
            quorums,
            expires_at_ms,
        }
    }

    /// A read of any key, or a write of one of this client's own.
    fn plan_on_registers(&mut self, index: usize, env: &mut Env) -> Plan {
        let writers = self.clients.len() as u64 - 1;
        let is_own = |number: &u64| number % writers == index as u64;
        let is_written = |number: &u64| !self.retired.contains(&key(*number));
        let own: Vec<u64> = (0..KEYS).filter(is_own).filter(is_written).collect();
        let random = &mut self.clients[index].random;
        let faults = &env.network.faults;
        let (number, kind) = match random.below(20) {
            9..18 if !own.is_empty() => {
                let value = self.history.next_value(random, faults);
                (own[random.index(own.len())], Kind::Put { value })
            }
            18.. if !own.is_empty() => (own[random.index(own.len())], Kind::Delete),
            _ => (random.below(KEYS), Kind::Get),
        };
        Plan {
            key: key(number),
            kind,
            node: random.index(self.nodes),
            quorums: self.quorums,
            expires_at_ms: None,
        }
    }
}
