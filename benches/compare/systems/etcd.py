"""etcd: three members, all requests at the leader, where it is cheapest.

What drives it: `etcd_client.py` beside this file, over etcd's own gRPC interface. Its JSON gateway would make the
server translate each request, and its own load generator is in no package.
"""

import json
import os
import subprocess
import sys
import time

from measure import generator, processes

from .system import CLIENTS, KEY_BYTES, KEYS, VALUE_BYTES, Driven, System

CLIENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "etcd_client.py")
START_S_MAX = 60


class Etcd(System):
    name = "etcd"
    promises = "majority synced to disk, in one order; linearizable read"
    weak_read = "serializable"
    needs = ("etcd", "etcdctl")
    driver = "a client of its own in Python, gRPC"

    def __init__(self, offset):
        super().__init__(offset)
        self.members = []

    def client_port(self, number):
        return 2400 + self.offset + 2 * number

    def start(self):
        peers = [f"http://127.0.0.1:{self.client_port(number) + 1}" for number in range(3)]
        cluster = ",".join(f"m{number}={peer}" for number, peer in enumerate(peers))
        for number, peer in enumerate(peers):
            client = f"http://127.0.0.1:{self.client_port(number)}"
            command = ["etcd", "--name", f"m{number}", "--data-dir", self.path(f"member-{number}"),
                       "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
                       "--initial-advertise-peer-urls", peer, "--initial-cluster", cluster,
                       "--initial-cluster-state", "new", "--logger", "zap", "--log-level", "error"]
            self.members.append(processes.start(command, self.path("log")))
        until = time.monotonic() + START_S_MAX
        while self.leader() is None:
            if time.monotonic() > until:
                raise generator.Failed("the members of etcd elected no leader")
            time.sleep(0.2)

    def leader(self):
        """The port of the member that leads."""
        endpoints = ",".join(f"127.0.0.1:{self.client_port(number)}" for number in range(3))
        command = ["etcdctl", "--endpoints", endpoints, "endpoint", "status", "--write-out", "json"]
        environment = {**os.environ, "ETCDCTL_API": "3"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            return None
        for member in json.loads(done.stdout):
            if member["Status"]["header"]["member_id"] == member["Status"].get("leader"):
                return int(member["Endpoint"].rsplit(":", 1)[1])
        return None

    def stop(self):
        for member in self.members:
            processes.end(member)
        self.members = []

    def pids(self):
        return [member.pid for member in self.members]

    def load(self):
        self.client("load", 16, 0)

    def drive(self, what, pipeline, seconds):
        got = self.client(what, pipeline, seconds)
        return Driven(got["ops"], got["seconds"], got["errors"], got["p50_ms"], got["p99_ms"], got["driver_us"])

    def client(self, what, pipeline, seconds):
        command = [sys.executable, CLIENT, str(self.leader()), what, *map(str, (CLIENTS, pipeline, seconds, KEYS,
                                                                                 KEY_BYTES, VALUE_BYTES))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            raise generator.Failed(f"the client of etcd failed: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def version(self):
        return subprocess.run(["etcd", "--version"], capture_output=True, text=True).stdout.splitlines()[0]
