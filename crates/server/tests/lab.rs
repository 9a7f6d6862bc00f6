//! The lab with real processes: what scripts rely on, and what must never be lost.

// A test's helpers may fail like the test itself.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_mydatastore");

/// However busy the machine: nothing here takes as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A lab of three nodes on ports of its own, in a directory of its own.
struct Lab<'a> {
    dir: &'a Path,
    http: u16,
    process: Child,
    lines: Receiver<String>,
}

impl<'a> Lab<'a> {
    /// Starts one and waits until it is ready. Labs that run at the same time need different offsets.
    fn start(dir: &'a Path, offset: u16, more: &[&str]) -> Lab<'a> {
        let mut command = Command::new(PROGRAM);
        command
            .args(["lab", "--port-offset", &offset.to_string(), "--dir"])
            .arg(dir)
            .args(more);
        command.stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = command.spawn().unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let lab = Lab {
            dir,
            http: 8100 + offset,
            process,
            lines,
        };
        lab.says("ready: 3 of 3 nodes");
        lab
    }

    /// Waits until the lab prints a line with these words.
    fn says(&self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("the lab never said `{words}`"));
            if line.contains(words) {
                return line;
            }
        }
    }

    /// Does something to it from another terminal.
    fn act(&self, action: &str, node: u32) {
        let output = Command::new(PROGRAM)
            .args(["lab", action, &node.to_string(), "--dir"])
            .arg(self.dir)
            .output()
            .unwrap();
        assert!(output.status.success(), "{action} {node}: {output:?}");
    }

    /// Runs a command against some of its nodes.
    fn client(&self, nodes: &[u16], arguments: &[&str]) -> Output {
        let addrs = nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", self.http + node));
        let addrs = addrs.collect::<Vec<_>>().join(",");
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .env("MYDATASTORE_NODE", addrs)
            .output()
            .unwrap()
    }

    fn put(&self, nodes: &[u16], key: &str, value: &str) {
        let output = self.client(nodes, &["put", key, value]);
        assert!(output.status.success(), "put {key}: {output:?}");
    }

    fn get(&self, nodes: &[u16], key: &str) -> String {
        let output = self.client(nodes, &["get", key]);
        assert!(output.status.success(), "get {key}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Repeats a command until it succeeds.
    fn eventually(&self, nodes: &[u16], arguments: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.client(nodes, arguments);
            if output.status.success() {
                return;
            }
            assert!(Instant::now() < deadline, "{arguments:?}: {output:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a signal to our own child, which was not waited for yet.
        assert_eq!(unsafe { libc::kill(self.process.id() as i32, signal) }, 0);
    }

    /// The process of a node, as `lab.json` says.
    fn pid(&self, node: usize) -> i32 {
        let text = std::fs::read(self.dir.join("lab.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&text).unwrap();
        i32::try_from(state["nodes"][node - 1]["pid"].as_i64().unwrap()).unwrap()
    }

    fn stop(mut self) {
        self.signal(libc::SIGINT);
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        // After a failed test: nothing may go on running. An orderly end, as it reaches all nodes.
        if matches!(self.process.try_wait(), Ok(None)) {
            self.signal(libc::SIGTERM);
            let _ = self.process.wait();
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_whatever_happens_to_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(dir.path(), 20_100, &[]);
    lab.put(&[1], "first", "1");
    assert_eq!(lab.get(&[3], "first"), "1");

    lab.act("kill-node", 2);
    lab.says("node 2 was killed, as asked");
    lab.put(&[1], "while 2 is dead", "2");
    assert_eq!(lab.get(&[3], "while 2 is dead"), "2");
    // A client that knows several nodes goes to one that lives.
    lab.put(&[2, 1], "by way of the next", "3");

    lab.act("kill-node", 3);
    let start = Instant::now();
    let failed = lab.client(&[1], &["get", "first"]);
    assert_eq!(failed.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("needed 2, got 1 of 3"));
    assert!(start.elapsed() < PATIENCE / 4);

    lab.act("start-node", 2);
    lab.says("node 2 was started");
    lab.eventually(&[1], &["get", "first"]);
    lab.act("start-node", 3);
    lab.act("pause-node", 3);
    lab.eventually(&[1], &["put", "while 3 is frozen", "4"]);
    lab.act("resume-node", 3);
    lab.eventually(&[1], &["digest"]);
    for (key, value) in [
        ("first", "1"),
        ("while 2 is dead", "2"),
        ("while 3 is frozen", "4"),
    ] {
        for node in 1..=3 {
            assert_eq!(lab.get(&[node], key), value);
        }
    }
    // A frozen node hears of the end as well.
    lab.act("pause-node", 1);
    lab.stop();
    let lab = Lab::start(dir.path(), 20_100, &[]);
    assert_eq!(lab.get(&[2], "by way of the next"), "3");
    lab.stop();
}

#[test]
fn a_death_is_told_and_a_lost_supervisor_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let mut lab = Lab::start(dir.path(), 20_200, &[]);
    lab.put(&[1], "key", "value");
    // SAFETY: a signal to a process that the lab has just told us.
    assert_eq!(unsafe { libc::kill(lab.pid(2), libc::SIGKILL) }, 0);
    let told = lab.says("DIED unexpectedly");
    assert!(
        told.contains("node 2") && told.contains("signal 9"),
        "{told}"
    );

    let second = Command::new(PROGRAM)
        .args(["lab", "--dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&second.stderr).contains("already running"));

    lab.signal(libc::SIGKILL);
    lab.process.wait().unwrap();
    let survivor = lab.pid(1);
    let lab = Lab::start(dir.path(), 20_200, &[]);
    assert_eq!(
        lab.pid(1),
        survivor,
        "a running node is taken over, not started again"
    );
    assert_eq!(lab.get(&[2], "key"), "value");

    lab.act("wipe-node", 3);
    assert!(!dir.path().join("node-3/data").exists());
    lab.act("start-node", 3);
    // It coordinates, but does not answer from its emptiness.
    lab.eventually(&[3], &["get", "key"]);
    assert_eq!(lab.get(&[3], "key"), "value");
    lab.stop();
}

#[test]
fn a_port_in_use_and_a_missing_lab_are_said_plainly() {
    let dir = tempfile::tempdir().unwrap();
    let _taken = std::net::TcpListener::bind("127.0.0.1:28402").unwrap();
    let output = Command::new(PROGRAM)
        .args(["lab", "--port-offset", "20300", "--dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("port 28402 on 127.0.0.1, which node 2 needs for HTTP"),
        "{said}"
    );

    let output = Command::new(PROGRAM)
        .args(["lab", "kill-node", "1", "--dir", "/no/such/lab"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no lab in /no/such/lab"));
}
