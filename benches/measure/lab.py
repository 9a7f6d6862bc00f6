"""A cluster of this database on this machine: `mydatastore lab` in a directory of its own, as long as it is used.

Nodes run with a node's own defaults where the lab's are made for looking at: epochs of 15 minutes, a scrub a day.
A bench that wants short epochs says so.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

from . import generator, processes

START_S_MAX = 120
EPOCH_INTERVAL_MS = 900_000
SCRUB_INTERVAL_MS = 86_400_000


class Lab:
    """Used with `with`: it is stopped, and its directory removed, whatever happens."""

    def __init__(self, nodes=3, port_offset=3000, epoch_interval_ms=EPOCH_INTERVAL_MS, fsync="always", n=None, r=None,
                 w=None, scrub_interval_ms=SCRUB_INTERVAL_MS, binary=generator.BINARY, prefix=(), parent=None):
        if not os.access(binary, os.X_OK):
            raise generator.Failed(f"{binary} is missing: cargo build --release")
        self.nodes, self.port_offset, self.binary, self.prefix = nodes, port_offset, binary, list(prefix)
        self.directory = tempfile.mkdtemp(prefix="mds-bench-", dir=parent)
        self.home = os.path.join(self.directory, "lab")
        self.arguments = ["--nodes", nodes, "--port-offset", port_offset, "--epoch-interval-ms", epoch_interval_ms,
                          "--fsync", fsync]
        for name, value in (("--n", n), ("--r", r), ("--w", w)):
            self.arguments += [name, value] if value is not None else []
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("MYDATASTORE_")}
        self.environment["MYDATASTORE_SCRUB_INTERVAL_MS"] = str(scrub_interval_ms)
        self.process = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self):
        """Starts all nodes, the first time or again; returns when a quorum write works. How long that took, seconds."""
        began = time.monotonic()
        command = [*self.prefix, self.binary, "lab", "--dir", self.home, *map(str, self.arguments)]
        log = os.path.join(self.directory, "lab.log")
        said_before = os.path.getsize(log) if os.path.exists(log) else 0
        self.process = processes.start(command, log, env=self.environment)
        while True:
            with open(log) as file:
                file.seek(said_before)
                said = file.read()
            if "ready: " in said:
                return time.monotonic() - began
            if self.process.poll() is not None or time.monotonic() - began > START_S_MAX:
                raise generator.Failed(f"the lab did not start: {said.strip()}")
            time.sleep(0.01)

    def stop(self):
        """Stops all nodes in order; the data stays."""
        if self.process is not None:
            processes.end(self.process, signal.SIGINT)
            self.process = None

    def act(self, what, node=None):
        """`kill-node`, `start-node` and the like."""
        command = [self.binary, "lab", what, "--dir", self.home] + ([str(node)] if node is not None else [])
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            raise generator.Failed(f"lab {what}: {done.stderr.strip()}")

    def pids(self):
        """The nodes' processes, the first node's first."""
        with open(os.path.join(self.home, "lab.json")) as file:
            return [node["pid"] for node in json.load(file)["nodes"] if node["pid"]]

    def target(self, node=1):
        """Where Redis clients find a node."""
        return f"127.0.0.1:{7100 + self.port_offset + node}"

    def targets(self):
        return [self.target(node) for node in range(1, self.nodes + 1)]

    def get(self, node, path):
        """A page of a node's HTTP interface."""
        url = f"http://127.0.0.1:{8100 + self.port_offset + node}{path}"
        with urllib.request.urlopen(url, timeout=15) as reply:
            return reply.read().decode()

    def metrics(self, node):
        """A node's metrics: name with labels, without `mydatastore_`, and value."""
        found = {}
        for line in self.get(node, "/metrics").splitlines():
            if line.startswith("mydatastore_"):
                name, value = line.rsplit(" ", 1)
                found[name.removeprefix("mydatastore_")] = float(value)
        return found

    def bench(self, *arguments, targets=None, prefix=()):
        """Runs the load generator against the first node, or others."""
        return generator.bench(targets or [self.target()], *arguments, binary=self.binary, prefix=prefix)

    def load(self, keys, *arguments):
        """Writes keys of 16 bytes with values of 100; so many a second."""
        return self.bench("--only-load", "--keys", keys, *arguments)["load"]["rate"]

    def node_directory(self, node):
        return os.path.join(self.home, f"node-{node}")

    def restart_s(self, node, how="kill-node"):
        """Stops a node, starts it again, and waits until it answers a read with a quorum: seconds since its start."""
        self.act(how, node)
        began = time.monotonic()
        starter = subprocess.Popen([self.binary, "lab", "start-node", str(node), "--dir", self.home],
                                   env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            while not self.serves(node):
                if starter.poll():
                    raise generator.Failed(f"node {node} did not start: {starter.stderr.read().decode().strip()}")
                if time.monotonic() - began > START_S_MAX:
                    raise generator.Failed(f"node {node} does not serve {START_S_MAX} s after its start")
                time.sleep(0.002)
            return time.monotonic() - began
        finally:
            starter.wait()
            starter.stderr.close()

    def serves(self, node):
        """Whether a node answers a read."""
        host, port = self.target(node).split(":")
        try:
            with socket.create_connection((host, int(port)), timeout=5) as stream:
                stream.sendall(b"*2\r\n$3\r\nGET\r\n$5\r\nprobe\r\n")
                return stream.recv(64)[:1] in (b"$", b"_")
        except OSError:
            return False
