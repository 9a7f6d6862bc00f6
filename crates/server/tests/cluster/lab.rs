//! A lab of three real nodes, driven through the command line as a person would.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::faulty_disk::{self, FaultyDisk};

/// Labs run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Nothing that a healthy machine does takes this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running lab. Dropping it ends its processes.
pub(crate) struct Lab {
    child: Child,
    /// What it prints.
    lines: Receiver<String>,
    dir: PathBuf,
    kept: Option<tempfile::TempDir>,
    offset: u16,
    /// In the environment of its nodes, those too that are started later.
    settings: Vec<(String, String)>,
    _turn: MutexGuard<'static, ()>,
}

/// Runs the program to its end: exit code and standard output, without the last line break.
pub(crate) fn mydatastore(args: &[&str]) -> (i32, String) {
    let output = program().args(args).output().expect("the program runs");
    let said = String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned();
    (output.status.code().unwrap_or(-1), said)
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mydatastore"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MYDATASTORE_")) {
        command.env_remove(name);
    }
    command
}

fn directory(name: &str) -> tempfile::TempDir {
    let prefix = format!("mds-{name}-");
    tempfile::Builder::new().prefix(&prefix).tempdir().unwrap()
}

impl Lab {
    /// Starts three nodes whose ports are `offset` above the usual ones.
    pub(crate) fn start(name: &str, offset: u16) -> Lab {
        Lab::start_with(name, offset, &[])
    }

    /// The same with settings of all its nodes.
    pub(crate) fn start_set(
        name: &str,
        offset: u16,
        arguments: &[&str],
        settings: &[(&str, &str)],
    ) -> Lab {
        let temp = directory(name);
        let dir = temp.path().join("lab");
        let mut program = program();
        program.envs(settings.iter().copied());
        let mut lab = Lab::run(program, dir, Some(temp), offset, arguments);
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        lab.settings = settings.iter().map(owned).collect();
        lab
    }

    /// The same with further arguments for the lab.
    pub(crate) fn start_with(name: &str, offset: u16, arguments: &[&str]) -> Lab {
        let temp = directory(name);
        let dir = temp.path().join("lab");
        Lab::run(program(), dir, Some(temp), offset, arguments)
    }

    /// The same on disks that can be made full, slow or broken, node i's being the one at i-1. `None`
    /// where there are no such disks.
    pub(crate) fn start_on_faulty_disks(name: &str, offset: u16) -> Option<(Lab, Vec<FaultyDisk>)> {
        let temp = directory(name);
        let dir = temp.path().canonicalize().unwrap().join("lab");
        let homes = (1..=3).map(|node| FaultyDisk::new(&dir.join(format!("node-{node}"))));
        let disks: Vec<FaultyDisk> = homes.collect();
        let mut program = program();
        program.envs(faulty_disk::environment(&dir)?);
        Some((Lab::run(program, dir, Some(temp), offset, &[]), disks))
    }

    /// Starts the lab in a directory that a lab has left.
    pub(crate) fn resume(kept: tempfile::TempDir, offset: u16) -> Lab {
        let dir = kept.path().join("lab");
        Lab::run(program(), dir, Some(kept), offset, &[])
    }

    fn run(
        mut program: Command,
        dir: PathBuf,
        kept: Option<tempfile::TempDir>,
        offset: u16,
        arguments: &[&str],
    ) -> Lab {
        // A test that failed while it held its turn says nothing about the next one.
        let turn = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut child = program
            .args(["lab", "--port-offset", &offset.to_string(), "--dir"])
            .arg(&dir)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the lab starts");
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        // All that it says is read, so that its pipe never fills.
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let lab = Lab {
            child,
            lines,
            dir,
            kept,
            offset,
            settings: Vec::new(),
            _turn: turn,
        };
        // It says so when all of them are.
        lab.says("ready: ");
        lab
    }

    /// Waits until the lab prints a line with these words.
    pub(crate) fn says(&self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                panic!("the lab never said `{words}`\n{}", self.logs());
            };
            if line.contains(words) {
                return line;
            }
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn resp_port(&self, node: usize) -> u16 {
        7100 + self.offset + node as u16
    }

    pub(crate) fn http_port(&self, node: usize) -> u16 {
        8100 + self.offset + node as u16
    }

    pub(crate) fn peer_port(&self, node: usize) -> u16 {
        9100 + self.offset + node as u16
    }

    /// `kill-node`, `start-node` and the like.
    pub(crate) fn act(&self, what: &str, node: usize) {
        let (dir, node) = (self.dir.to_str().unwrap(), node.to_string());
        let output = program()
            .args(["lab", what, &node, "--dir", dir])
            .envs(self.settings.iter().cloned())
            .output()
            .unwrap();
        assert!(output.status.success(), "{what} {node}: {output:?}");
    }

    /// Runs a command against some of its nodes.
    pub(crate) fn client(&self, nodes: &[usize], arguments: &[&str]) -> Output {
        let addrs = nodes
            .iter()
            .map(|&node| format!("127.0.0.1:{}", self.http_port(node)));
        let addrs = addrs.collect::<Vec<_>>().join(",");
        let mut command = program();
        command.args(arguments).env("MYDATASTORE_NODE", addrs);
        command.output().unwrap()
    }

    pub(crate) fn put(&self, nodes: &[usize], key: &str, value: &str) {
        let output = self.client(nodes, &["put", key, value]);
        assert!(output.status.success(), "put {key}: {output:?}");
    }

    pub(crate) fn get(&self, nodes: &[usize], key: &str) -> String {
        let output = self.client(nodes, &["get", key]);
        assert!(output.status.success(), "get {key}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Repeats a command until it succeeds.
    pub(crate) fn eventually(&self, nodes: &[usize], arguments: &[&str]) {
        self.wait_until(&format!("{arguments:?} succeeds"), || {
            self.client(nodes, arguments).status.success()
        });
    }

    /// The process of a node, as `lab.json` says.
    pub(crate) fn pid(&self, node: usize) -> i32 {
        let text = std::fs::read(self.dir.join("lab.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&text).unwrap();
        i32::try_from(state["nodes"][node - 1]["pid"].as_i64().unwrap()).unwrap()
    }

    /// One HTTP request: status and body.
    pub(crate) fn http(&self, node: usize, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        self.try_http(node, method, path, body)
            .expect("a live node answers")
    }

    fn try_http(
        &self,
        node: usize,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http_port(node)))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        // A server that has seen enough may answer and close before it has read everything.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let body = answer
            .split_once("\r\n\r\n")
            .map_or("", |(_, body)| body)
            .to_owned();
        Ok((status.unwrap_or(0), body))
    }

    pub(crate) fn status(&self, node: usize) -> serde_json::Value {
        serde_json::from_str(&self.http(node, "GET", "/v1/status", b"").1).expect("JSON")
    }

    /// The sum of a metric over its labels.
    pub(crate) fn metric(&self, node: usize, name: &str) -> f64 {
        let (_, text) = self.http(node, "GET", "/metrics", b"");
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix("mydatastore_")?.strip_prefix(name)?;
            let is_whole_name = rest.starts_with(['{', ' ']);
            is_whole_name.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        let samples: Vec<f64> = samples.collect();
        assert!(!samples.is_empty(), "node {node} has no metric {name}");
        samples.iter().sum()
    }

    /// Waits until a node serves.
    pub(crate) fn wait_ready(&self, node: usize) {
        let is_ready = || matches!(self.try_http(node, "GET", "/ready", b""), Ok((200, _)));
        self.wait_until(&format!("node {node} is ready"), is_ready);
    }

    /// Waits until a write through a node succeeds.
    pub(crate) fn wait_writable(&self, node: usize) {
        self.wait_until(&format!("node {node} takes writes"), || {
            let written = self.try_http(node, "PUT", "/v1/kv/probe", b"v");
            matches!(written, Ok((200, _)))
        });
    }

    pub(crate) fn wait_standing(&self, node: usize, standing: &str) {
        self.wait_until(&format!("node {node} is {standing}"), || {
            self.status(node)["standing"] == standing
        });
    }

    /// Waits until all replicas hold the same, byte for byte.
    pub(crate) fn wait_equal(&self) {
        let node = format!("127.0.0.1:{}", self.http_port(1));
        self.wait_until("all replicas are equal", || {
            mydatastore(&["digest", "--node", &node]).0 == 0
        });
    }

    pub(crate) fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let began = Instant::now();
        while !is_so() {
            if began.elapsed() > PATIENCE {
                panic!("not so after {PATIENCE:?}: {what}\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts a further process with a node's configuration, on ports `shift` above the node's; it is
    /// expected to give up by itself.
    pub(crate) fn serve_again(&self, node: usize, shift: u16, args: &[&str]) -> (i32, String) {
        let config = self.dir.join(format!("node-{node}")).join("node.toml");
        let mut command = program();
        command
            .args(["serve", "--config", config.to_str().unwrap()])
            .args(args);
        let listen =
            |name: &str, port: u16| [name.to_owned(), format!("127.0.0.1:{}", port + shift)];
        command.args(listen("--resp-listen", self.resp_port(node)));
        command.args(listen("--http-listen", self.http_port(node)));
        command.args(listen("--peer-listen", self.peer_port(node)));
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&said).into_owned(),
        )
    }

    fn logs(&self) -> String {
        let logs = (1..=4).map(|n| format!("node {n}:\n{}\n", self.log(n)));
        logs.collect()
    }

    /// Whether a node has ever logged these words.
    pub(crate) fn has_logged(&self, node: usize, words: &str) -> bool {
        let path = self.dir.join(format!("node-{node}")).join("node.log");
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .contains(words)
    }

    /// The last lines of a node's log.
    pub(crate) fn log(&self, node: usize) -> String {
        let path = self.dir.join(format!("node-{node}")).join("node.log");
        let log = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Kills the supervisor alone; its nodes run on.
    pub(crate) fn kill_supervisor(mut self) -> tempfile::TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.kept.take().expect("kept until now")
    }

    /// Ctrl-C; everything has to end well.
    pub(crate) fn stop(self) {
        drop(self.stop_and_keep());
    }

    /// The same, and the data stays.
    pub(crate) fn stop_and_keep(mut self) -> tempfile::TempDir {
        interrupt(self.child.id());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the lab ended with {status}");
        self.kept.take().expect("kept until now")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            interrupt(self.child.id());
            let _ = self.child.wait();
        }
    }
}

/// SIGINT by the `kill` command, as a terminal would send it.
fn interrupt(pid: u32) {
    let _ = Command::new("kill")
        .args(["-INT", &pid.to_string()])
        .status();
}
