"""Redis: a primary and two replicas, all requests at the primary. Nothing waits for a replica."""

import os
import socket
import subprocess
import time

from measure import generator, processes

from .system import RespSystem

START_S_MAX = 30


class Redis(RespSystem):
    name = "Redis"
    promises = "in the primary's memory, replicas later; read of the primary"
    needs = ("redis-server",)
    persistence = ("--save", "", "--appendonly", "no")

    def __init__(self, offset):
        super().__init__(offset)
        self.servers = []

    def port(self, number):
        return 6400 + self.offset + number

    def start(self):
        for number in range(3):
            home = self.path(f"server-{number}")
            os.makedirs(home, exist_ok=True)
            command = ["redis-server", "--port", str(self.port(number)), "--bind", "127.0.0.1", "--dir", home,
                       *self.persistence]
            if number > 0:
                # Without a child that writes a snapshot to disk first.
                command += ["--replicaof", "127.0.0.1", str(self.port(0)), "--repl-diskless-sync-delay", "0"]
            self.servers.append(processes.start(command, self.path("log")))
        until = time.monotonic() + START_S_MAX
        while "master_link_status:up" not in self.replication(1) or "master_link_status:up" not in self.replication(2):
            if time.monotonic() > until:
                raise generator.Failed("the replicas of Redis did not find their primary")
            time.sleep(0.1)

    def replication(self, number):
        try:
            with socket.create_connection(("127.0.0.1", self.port(number)), timeout=5) as stream:
                stream.sendall(b"INFO replication\r\n")
                return stream.recv(65536).decode()
        except OSError:
            return ""

    def stop(self):
        for server in self.servers:
            processes.end(server)
        self.servers = []

    def pids(self):
        return [server.pid for server in self.servers]

    def target(self):
        return f"127.0.0.1:{self.port(0)}"

    def version(self):
        return subprocess.run(["redis-server", "--version"], capture_output=True, text=True).stdout.strip()


class RedisSynced(Redis):
    name = "Redis-aof"
    promises = "synced to the primary's disk, replicas later; read of the primary"
    persistence = ("--save", "", "--appendonly", "yes", "--appendfsync", "always")
