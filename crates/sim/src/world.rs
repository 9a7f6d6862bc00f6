//! The simulated world: machines, clients and network around one queue of events.
//!
//! The world takes the next event, moves the time to it, and hands it to whom it concerns. Nothing
//! else makes anything happen, and nothing here reads a clock, a hash order or a random number that
//! does not come from the seed: so a seed is a run.

use mds_cluster::AdminRequest;
use mds_types::slot::partition_of;
use mds_types::{ClusterConfig, NodeId, Record, Version};

use crate::client::{Clients, Workload};
use crate::env::Env;
use crate::event::{ClientEvent, Event, NodeEvent, Part};
use crate::faults::{FaultConfig, MILLISECOND_NS, SECOND_NS, Traffic};
use crate::network::{ConnId, Network, Side};
use crate::node::{ControlInput, Machines, Origin, Power, Process, peer_addr};
use crate::oracle::Watch;
use crate::oracle::settled_is_equal::{self, Held};
use crate::random::Random;
use crate::rings::{Administrator, RingConfig};
use crate::trace::{Detail, Trace};

/// Partitions of the simulated cluster: few, so that each holds several keys.
const PARTITION_COUNT: u16 = 8;

/// An `init` that came too early is repeated after this long, nanoseconds.
pub(crate) const INIT_AGAIN_NS: u64 = 500 * MILLISECOND_NS;

/// A copy beside its original that was refused is started again after this long, nanoseconds.
const CLONE_AGAIN_NS: u64 = SECOND_NS;

/// The world.
pub(crate) struct World {
    pub(crate) env: Env,
    pub(crate) machines: Machines,
    pub(crate) clients: Clients,
    pub(crate) config: ClusterConfig,
    /// Large faults in the schedule.
    pub(crate) scheduled: usize,
    /// Machines that were there when the cluster was born: the first ones.
    pub(crate) founders: usize,
    pub(crate) administrator: Administrator,
}

impl World {
    /// A world of machines that nothing runs on yet.
    pub(crate) fn new(
        random: &Random,
        nodes: usize,
        rings: &RingConfig,
        clients: usize,
        workload: Workload,
        faults: FaultConfig,
        detail: Detail,
    ) -> World {
        let network = Network::new(random.part("network", 0), faults);
        let mut env = Env::new(random.part("threads", 0), network, Trace::new(detail));
        env.machines = (0..=nodes + rings.late)
            .map(|node| (peer_addr(node, 0), node))
            .collect();
        env.is_auto = rings.is_auto();
        let config = ClusterConfig {
            partition_count: PARTITION_COUNT,
            ..ClusterConfig::default()
        };
        World {
            env,
            machines: Machines::new(nodes, rings, random),
            clients: Clients::new(random, nodes, clients, &config, workload),
            config,
            scheduled: 0,
            founders: nodes,
            administrator: Administrator::new(rings),
        }
    }

    /// Lets things happen until `until_ns`, or `is_enough`, or an invariant is broken. True if it
    /// was enough.
    pub(crate) fn run(&mut self, until_ns: u64, is_enough: impl Fn(&World) -> bool) -> bool {
        while self.env.violations.is_empty() {
            if is_enough(self) {
                return true;
            }
            let Some(event) = self.env.next(until_ns) else {
                self.env.now_ns = until_ns;
                return is_enough(self);
            };
            self.handle(event);
        }
        false
    }

    fn handle(&mut self, event: Event) {
        let Some(event) = self.hold_back(event) else {
            return;
        };
        match event {
            Event::Node { node, life, event } => {
                if let Some(process) = self.machines[node].running(life) {
                    process.on_event(event, &mut self.env);
                    self.look_at_power(node);
                }
            }
            Event::Datagram { to, bytes } => self.control(to, ControlInput::Datagram(bytes)),
            Event::Message { to, bytes } => self.control(to, ControlInput::Message(bytes)),
            Event::Init { node } => {
                let (config, expected_nodes) = (self.config.clone(), self.founders);
                let request = AdminRequest::Init {
                    config,
                    expected_nodes,
                };
                self.control(node, ControlInput::Admin(request));
            }
            Event::Stream { conn, to, part } => self.on_stream(conn, to, part),
            Event::Resend { conn, to } => self.on_resend(conn, to),
            Event::Request {
                node,
                from,
                request,
            } => {
                let machine = &mut self.machines[node];
                match &mut machine.process {
                    Some(process) => process.on_request(from, *request, &mut self.env),
                    None if machine.power == Power::On => {
                        let refused = ClientEvent::Refused {
                            attempt: from.attempt,
                        };
                        self.env.tell_client(from.client, refused);
                    }
                    // Nobody answers; the client's own patience ends it.
                    None => {}
                }
            }
            Event::Client { client, event } => self.clients.on_event(client, event, &mut self.env),
            Event::Start { node } => self.start(node),
            Event::Resume { node, life } => self.resume(node, life),
            Event::Administer => self.administer(),
            Event::Act(action) => self.act(action),
            Event::Undo(undo) => self.undo(undo),
        }
        while let Some(((node, life), reason)) = self.env.failures.pop() {
            self.on_node_failed(node, life, &reason);
        }
        self.look_at_gone();
        self.look_at_settled();
        self.look_at_told();
    }

    /// What a replica has collected must have been dead, and older than what all others hold.
    fn look_at_gone(&mut self) {
        for (node, key) in std::mem::take(&mut self.env.gone) {
            let ring = self.ring_of(node, &key);
            let settled = self.settled_of(node, &key);
            let others: Vec<(usize, Version)> = self
                .replicas_of(node)
                .filter(|(_, process)| ring.contains(&process.node_id()))
                .filter(|(other, process)| {
                    let theirs = self.settled_of(*other, &key);
                    let watch = &self.env.watch;
                    !watch.may_be_behind(process.node_id(), theirs, settled)
                })
                .filter_map(|(other, process)| Some((other, process.record(&key)?.version)))
                .collect();
            let now_ns = self.env.now_ns;
            if let Some(broken) = self.env.watch.gone(now_ns, node, &key, settled, &others) {
                self.env.violated(broken.0, broken.1);
            }
        }
    }

    /// What a replica has settled must be the same on all others.
    fn look_at_settled(&mut self) {
        for (node, partition, epoch) in std::mem::take(&mut self.env.settled) {
            // Of the partition in which a disk has lost something this is not so, just now.
            let lost = self.env.lost_record.as_ref();
            if lost.is_some_and(|lost| partition_of(&lost.key, PARTITION_COUNT) == partition) {
                continue;
            }
            let process = self.machines[node].process.as_ref();
            let Some(first) = process.and_then(|process| process.held(partition)) else {
                continue;
            };
            let ring = process.map(|process| process.replicas(partition));
            let ring = ring.unwrap_or_default();
            let others: Vec<Held> = self
                .replicas_of(node)
                .filter(|(_, process)| ring.contains(&process.node_id()))
                .filter_map(|(_, process)| Some((process.node_id(), process.held(partition)?)))
                .filter(|(id, held)| !self.env.watch.may_be_behind(*id, held.settled, epoch))
                .map(|(_, held)| held)
                .collect();
            let now_ns = self.env.now_ns;
            let is_dead = |record: &Record| Watch::is_dead(record, now_ns);
            if let Some(broken) =
                settled_is_equal::check(partition, epoch, &first, &others, is_dead)
            {
                self.env.violated(broken.0, broken.1);
            }
        }
    }

    /// The replicas of a key, as a running node knows the ring.
    fn ring_of(&self, node: usize, key: &[u8]) -> Vec<NodeId> {
        let process = self.machines[node].process.as_ref();
        process
            .map(|process| process.holders(key))
            .unwrap_or_default()
    }

    /// The running nodes beside one, those on copies of directories left out.
    fn replicas_of(&self, node: usize) -> impl Iterator<Item = (usize, &Process)> {
        let machines = self.machines.iter().enumerate();
        machines
            .filter(move |(other, machine)| *other != node && machine.origin == Origin::Itself)
            .filter_map(|(other, machine)| Some((other, machine.process.as_ref()?)))
    }

    /// A node stops itself. It may if its disk is to blame; somebody sees to the disk and starts it
    /// again. A refused copy is removed.
    fn on_node_failed(&mut self, node: usize, life: u64, reason: &str) {
        let machine = &mut self.machines[node];
        if machine.running(life).is_none() {
            return;
        }
        if node == self.machines.spare() {
            return self.copy_stopped(node, reason);
        }
        let machine = &mut self.machines[node];
        let is_copy = machine.origin == Origin::Copy;
        if !is_copy
            && machine
                .id
                .is_some_and(|id| self.env.struck_out.contains(&id))
        {
            return self.follow_advice(node, reason);
        }
        if !is_copy && !self.env.sick.contains(&node) {
            let detail = format!("node {} stopped: {reason}", node + 1);
            let invariant = "a node that nothing is wrong with goes on";
            return self.env.violated(invariant, detail);
        }
        self.env
            .line(|| format!("node {} stops: {reason}", node + 1));
        machine.kill(&mut self.env);
        if is_copy {
            machine.wipe(&mut self.env);
        } else {
            self.env.counts.count("node stopped by its disk");
        }
        machine.start_after(machine.down_ns, &mut self.env);
    }

    /// A node that was away for too long has been refused, and says that it may come back with an empty directory: it
    /// does.
    fn follow_advice(&mut self, node: usize, reason: &str) {
        self.env.counts.count("removed node refused");
        self.env
            .line(|| format!("node {} is refused, and rightly: {reason}", node + 1));
        let machine = &mut self.machines[node];
        machine.kill(&mut self.env);
        machine.wipe(&mut self.env);
        machine.start_after(machine.down_ns, &mut self.env);
    }

    /// A copy beside its original has been refused, and is started again, until somebody removes it.
    fn copy_stopped(&mut self, spare: usize, reason: &str) {
        self.env.counts.count("clone refused");
        self.env
            .line(|| format!("the copy beside its original stops: {reason}"));
        self.machines[spare].kill(&mut self.env);
        self.machines[spare].start_after(CLONE_AGAIN_NS, &mut self.env);
    }

    /// What concerns a process that stands still waits in the kernel until it goes on.
    fn hold_back(&mut self, event: Event) -> Option<Event> {
        let node = match &event {
            Event::Node { node, .. } | Event::Request { node, .. } | Event::Init { node } => *node,
            Event::Datagram { to, .. } | Event::Message { to, .. } => *to,
            Event::Stream { conn, to, .. } => self.env.network.conn(*conn)?.end(*to).node,
            _ => return Some(event),
        };
        match &mut self.machines[node].held_back {
            Some(held_back) => {
                held_back.push(event);
                None
            }
            None => Some(event),
        }
    }

    pub(crate) fn control(&mut self, node: usize, input: ControlInput) {
        if let Some(process) = &mut self.machines[node].process {
            process.control_input(input, &mut self.env);
        }
    }

    // ---- streams ------------------------------------------------------------------------------

    fn on_stream(&mut self, id: ConnId, to: Side, part: Part) {
        let Some(conn) = self.env.network.conn(id) else {
            return;
        };
        let (from_node, to_node) = (conn.end(to.other()).node, conn.end(to).node);
        let is_queueing = !conn.flow_to(to).waiting.is_empty();
        // Handshakes are the business of the kernel and of whoever accepts.
        let is_data = matches!(part, Part::Bytes(_));
        let is_read = !is_data || self.env.network.is_read((from_node, to_node));
        if is_queueing || !is_read || !self.gets_through(from_node, to_node) {
            let Some(conn) = self.env.network.conn(id) else {
                return;
            };
            conn.flow_to(to).waiting.push_back(part);
            if !is_queueing {
                let resend_ns = conn.next_resend_ns(to);
                self.env.after(resend_ns, Event::Resend { conn: id, to });
            }
            return;
        }
        if let Some(conn) = self.env.network.conn(id) {
            conn.has_got_through(to);
        }
        self.deliver(id, to, part);
    }

    fn on_resend(&mut self, id: ConnId, to: Side) {
        let Some(conn) = self.env.network.conn(id) else {
            return;
        };
        let (from_node, to_node) = (conn.end(to.other()).node, conn.end(to).node);
        let is_read = self.env.network.is_read((from_node, to_node));
        if !is_read || !self.gets_through(from_node, to_node) {
            let Some(conn) = self.env.network.conn(id) else {
                return;
            };
            let resend_ns = conn.next_resend_ns(to);
            return self.env.after(resend_ns, Event::Resend { conn: id, to });
        }
        self.env.counts.count("stream sent again after a silence");
        let Some(conn) = self.env.network.conn(id) else {
            return;
        };
        conn.has_got_through(to);
        // At once: what is still under way was sent later and must not overtake it.
        for part in std::mem::take(&mut conn.flow_to(to).waiting) {
            self.deliver(id, to, part);
        }
    }

    fn gets_through(&self, from: usize, to: usize) -> bool {
        let is_cut = self.env.network.is_cut(Traffic::Data, (from, to));
        self.machines[to].power == Power::On && !is_cut
    }

    fn deliver(&mut self, id: ConnId, to: Side, part: Part) {
        let Some(conn) = self.env.network.conn(id) else {
            return;
        };
        let end = *conn.end(to);
        if let Part::Bytes(bytes) = &part {
            let flow = conn.flow_to(to);
            flow.in_flight = flow.in_flight.saturating_sub(bytes.len());
            if std::mem::take(&mut flow.is_blocked) {
                let writer = conn.end(to.other());
                let name = (writer.node, writer.life);
                self.env.node_after(0, name, NodeEvent::Writable(id));
            }
        }
        let machine = &mut self.machines[end.node];
        let process = match &part {
            // Whoever listens there now.
            Part::Hello(_) => machine.process.as_mut(),
            _ => machine.running(end.life).filter(|_| !end.is_gone),
        };
        match (process, part) {
            (Some(process), Part::Hello(hello)) => process.on_hello(id, &hello, &mut self.env),
            (Some(process), Part::Answer(answer)) => {
                process.on_answer(id, answer, &mut self.env);
            }
            (Some(process), Part::Bytes(bytes)) => process.on_bytes(id, to, &bytes, &mut self.env),
            (Some(process), Part::Reset) => process.on_conn_ended(id, to, &mut self.env),
            (None, Part::Reset) => self.env.network.leave(id, to),
            // The kernel knows of no such connection and says so.
            (None, _) => {
                self.env.network.leave(id, to);
                self.env.send_part(id, to.other(), Part::Reset);
            }
        }
    }

    // ---- starts and faults --------------------------------------------------------------------

    pub(crate) fn start(&mut self, node: usize) {
        let is_spare = node == self.machines.spare();
        let machine = &mut self.machines[node];
        if machine.process.is_some() || machine.is_bare() {
            return;
        }
        if !self.env.is_disk_faulty(node) {
            self.env.sick.remove(&node);
        }
        let started = machine.start(&mut self.env);
        if machine.disk().is_stopped() {
            self.env.counts.count("power lost while starting");
            return self.look_at_power(node);
        }
        if machine.examine_rot(&started, &mut self.env) {
            machine.start_after(machine.down_ns, &mut self.env);
            return;
        }
        match started {
            Ok(()) => {}
            Err(error) if is_spare => self.copy_stopped(node, &error),
            Err(error) if machine.origin == Origin::Copy => {
                // A copy that was taken in the middle of something may be refused at once.
                self.env.counts.count("restored copy refused");
                self.env
                    .line(|| format!("node {} does not start: {error}", node + 1));
                machine.wipe(&mut self.env);
                machine.start_after(machine.down_ns, &mut self.env);
            }
            Err(error) if self.env.sick.contains(&node) => {
                self.env.counts.count("start refused by the disk");
                self.env
                    .line(|| format!("node {} does not start: {error}", node + 1));
                machine.start_after(SECOND_NS, &mut self.env);
            }
            Err(error) => {
                let detail = format!("node {} does not start: {error}", node + 1);
                let invariant = "a node that nothing is wrong with starts";
                self.env.violated(invariant, detail);
            }
        }
    }

    /// If the disk has come to its planned end, so has the machine's power.
    fn look_at_power(&mut self, node: usize) {
        let machine = &mut self.machines[node];
        if machine.disk().is_stopped() {
            self.env.counts.count("power lost inside the disk");
            machine.lose_power(&mut self.env);
            machine.start_after(machine.down_ns, &mut self.env);
        }
    }

    /// A process goes on. What its kernel has taken meanwhile comes first, in order.
    fn resume(&mut self, node: usize, life: u64) {
        let machine = &mut self.machines[node];
        if machine.life != life {
            return;
        }
        if let Some(held_back) = machine.held_back.take() {
            self.env.line(|| format!("node {} goes on", node + 1));
            for event in held_back {
                self.handle(event);
            }
        }
    }

    // ---- questions ----------------------------------------------------------------------------

    /// All running nodes.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &Process> {
        self.machines
            .iter()
            .filter_map(|machine| machine.process.as_ref())
    }
}
