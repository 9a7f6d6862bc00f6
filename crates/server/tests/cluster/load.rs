//! Writers that remember what was acknowledged to them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::client::Client;
use super::lab::Lab;

/// Writers with unique values at full speed, each through one node.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    /// Which nodes are up: a writer whose node is down waits.
    up: Arc<Mutex<[bool; 3]>>,
    /// How often a node was taken down or brought back: what spans such a moment promises nothing.
    turns: Arc<[AtomicU64; 3]>,
    acked: Arc<Mutex<BTreeMap<String, String>>>,
    failures: Arc<Mutex<Vec<String>>>,
    longest_us: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    /// Two writers through each node.
    pub(crate) fn start(lab: &Lab) -> Load {
        let mut load = Load {
            stop: Arc::default(),
            up: Arc::new(Mutex::new([true; 3])),
            turns: Arc::default(),
            acked: Arc::default(),
            failures: Arc::default(),
            longest_us: Arc::default(),
            threads: Vec::new(),
        };
        for writer in 0..6usize {
            let (port, node) = (lab.resp_port(writer % 3 + 1), writer % 3);
            let (stop, up) = (load.stop.clone(), load.up.clone());
            let (acked, failures) = (load.acked.clone(), load.failures.clone());
            let longest_us = load.longest_us.clone();
            let turns = load.turns.clone();
            let thread = std::thread::spawn(move || {
                let is_up = || up.lock().unwrap()[node];
                let mut number = 0u64;
                let mut client = None;
                while !stop.load(Ordering::Relaxed) {
                    if !is_up() {
                        client = None;
                        std::thread::sleep(Duration::from_millis(5));
                        continue;
                    }
                    let Some(connected) = client.as_mut() else {
                        client = Client::connect(port).ok();
                        continue;
                    };
                    number += 1;
                    let (key, value) =
                        (format!("w{writer}:{number}"), format!("{number}@{writer}"));
                    let turn = turns[node].load(Ordering::SeqCst);
                    let is_undisturbed = || is_up() && turns[node].load(Ordering::SeqCst) == turn;
                    let began = Instant::now();
                    let reply = connected.call(&["SET", &key, &value]);
                    let took_us = began.elapsed().as_micros() as u64;
                    match reply {
                        Ok(reply) if reply == "+OK" => {
                            longest_us.fetch_max(took_us, Ordering::Relaxed);
                            acked.lock().unwrap().insert(key, value);
                        }
                        // Its own node was killed in the middle: nobody promised anything.
                        other if !is_undisturbed() => {
                            drop(other);
                            client = None;
                        }
                        Ok(reply) => {
                            let failure = format!("{key}: {reply} after {} ms", took_us / 1_000);
                            failures.lock().unwrap().push(failure);
                        }
                        Err(error) => {
                            // The connection broke. Was that our node going down just now?
                            std::thread::sleep(Duration::from_millis(50));
                            if is_undisturbed() {
                                failures.lock().unwrap().push(format!("{key}: {error}"));
                            }
                            client = None;
                        }
                    }
                }
            });
            load.threads.push(thread);
        }
        load
    }

    pub(crate) fn set_up(&self, node: usize, is_up: bool) {
        self.turns[node - 1].fetch_add(1, Ordering::SeqCst);
        self.up.lock().unwrap()[node - 1] = is_up;
    }

    pub(crate) fn acked_count(&self) -> usize {
        self.acked.lock().unwrap().len()
    }

    /// Waits until `more` further writes were acknowledged.
    pub(crate) fn wait_for(&self, more: usize) {
        let goal = self.acked_count() + more;
        let began = Instant::now();
        while self.acked_count() < goal {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "no progress: {:?}",
                self.failures()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap().clone()
    }

    /// Ends the load; what was acknowledged.
    pub(crate) fn finish(self) -> BTreeMap<String, String> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a writer");
        }
        let failures = self.failures.lock().unwrap();
        assert!(
            failures.is_empty(),
            "requests through live nodes failed: {failures:?}"
        );
        let acked = std::mem::take(&mut *self.acked.lock().unwrap());
        let longest_ms = self.longest_us.load(Ordering::Relaxed) / 1_000;
        println!(
            "{} writes acknowledged, longest request {longest_ms} ms",
            acked.len()
        );
        acked
    }
}

/// Reads every acknowledged value back through a node.
pub(crate) fn check_all(lab: &Lab, node: usize, acked: &BTreeMap<String, String>) {
    let mut client = Client::connect(lab.resp_port(node)).expect("a live node");
    for (key, value) in acked {
        let read = client.call(&["GET", key]).expect("a live node answers");
        assert_eq!(
            read, *value,
            "{key}, acknowledged, reads otherwise through node {node}"
        );
    }
}
