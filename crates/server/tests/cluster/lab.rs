//! A lab of three real nodes, driven through the command line as a person would.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Labs run one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Nothing that a healthy machine does takes this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running lab. Dropping it ends its processes.
pub(crate) struct Lab {
    child: Child,
    dir: PathBuf,
    kept: Option<tempfile::TempDir>,
    offset: u16,
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

impl Lab {
    /// Starts three nodes whose ports are `offset` above the usual ones.
    pub(crate) fn start(name: &str, offset: u16) -> Lab {
        let temp = tempfile::Builder::new()
            .prefix(&format!("mds-{name}-"))
            .tempdir()
            .unwrap();
        let dir = temp.path().join("lab");
        Lab::run(dir, Some(temp), offset)
    }

    /// Starts the lab in a directory that a lab has left.
    pub(crate) fn resume(kept: tempfile::TempDir, offset: u16) -> Lab {
        let dir = kept.path().join("lab");
        Lab::run(dir, Some(kept), offset)
    }

    fn run(dir: PathBuf, kept: Option<tempfile::TempDir>, offset: u16) -> Lab {
        // A test that failed while it held its turn says nothing about the next one.
        let turn = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut child = program()
            .args([
                "lab",
                "--dir",
                dir.to_str().unwrap(),
                "--port-offset",
                &offset.to_string(),
            ])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the lab starts");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines
            .by_ref()
            .map_while(Result::ok)
            .any(|l| l == "ready: 3 of 3 nodes");
        let lab = Lab {
            child,
            dir,
            kept,
            offset,
            _turn: turn,
        };
        if !ready {
            panic!(
                "the lab did not become ready:\n{}",
                (1..=3).map(|n| lab.log(n)).collect::<String>()
            );
        }
        // What it says later is read, so that its pipe never fills.
        std::thread::spawn(move || lines.for_each(drop));
        lab
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
            .output()
            .unwrap();
        assert!(output.status.success(), "{what} {node}: {output:?}");
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

    fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let began = Instant::now();
        while !is_so() {
            if began.elapsed() > PATIENCE {
                let logs: String = (1..=3)
                    .map(|n| format!("node {n}:\n{}\n", self.log(n)))
                    .collect();
                panic!("not so after {PATIENCE:?}: {what}\n{logs}");
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

    /// The last lines of a node's log.
    pub(crate) fn log(&self, node: usize) -> String {
        let path = self.dir.join(format!("node-{node}")).join("node.log");
        let log = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
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
