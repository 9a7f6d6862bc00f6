"""What the bench asks of a system."""

import os
import shutil
import tempfile

from measure import generator

KEYS = 100_000
KEY_BYTES = 16
VALUE_BYTES = 100
CLIENTS = 50


class Driven:
    """What a driver saw: operations in so many seconds, errors, latencies in milliseconds, its own CPU time."""

    def __init__(self, ops, seconds, errors, p50_ms, p99_ms, driver_us):
        self.ops, self.seconds, self.errors = ops, seconds, errors
        self.p50_ms, self.p99_ms, self.driver_us = p50_ms, p99_ms, driver_us


class System:
    """One system: three replicas on this machine, in a directory of their own, between `start` and `stop`."""

    name = ""
    # What a write waits for, and what a read is worth: for the reader of the table.
    promises = ""
    # What a person has to install, as a command that is looked for.
    needs = ()
    # What sends the requests.
    driver = "mydatastore bench"
    # A cheaper, weaker read besides the usual one: what it is.
    weak_read = None

    def __init__(self, offset):
        self.offset = offset
        self.directory = tempfile.mkdtemp(prefix=f"mds-compare-{self.name.split()[0].lower()}-")

    @classmethod
    def missing(cls):
        """The first command that is not installed, if any."""
        return next((command for command in cls.needs if shutil.which(command) is None), None)

    def start(self):
        """Starts all replicas; returns when they serve."""
        raise NotImplementedError

    def stop(self):
        """Stops all that runs."""
        raise NotImplementedError

    def pids(self):
        """All server processes."""
        raise NotImplementedError

    def version(self):
        """As it says itself."""
        raise NotImplementedError

    def load(self):
        """Writes all keys once."""
        raise NotImplementedError

    def drive(self, what, pipeline, seconds):
        """Sends `write`, `read` or `weak-read` for so long, so many on their way on each connection: a `Driven`."""
        raise NotImplementedError

    def remove(self):
        shutil.rmtree(self.directory, ignore_errors=True)

    def path(self, *parts):
        return os.path.join(self.directory, *parts)


class RespSystem(System):
    """One that speaks the Redis protocol."""

    def target(self):
        raise NotImplementedError

    def quorum(self, what):
        """Further arguments of the load generator for this kind of request."""
        del what
        return ()

    def load(self):
        generator.bench([self.target()], "--only-load", "--keys", KEYS)

    def drive(self, what, pipeline, seconds):
        got = generator.bench([self.target()], "--workload", "set" if what == "write" else "get", "--keys", KEYS,
                              "--key-bytes", KEY_BYTES, "--value-bytes", VALUE_BYTES, "-c", CLIENTS, "-P", pipeline,
                              "--warmup", 0, "--seconds", seconds, *self.quorum(what))
        result, latency = got["result"], generator.latency(got)
        if result["misses"]:
            raise generator.Failed(f"{self.name}: {result['misses']} reads found no such key")
        return Driven(result["ops"], result["window_s"], result["errors"], latency["p50_us"] / 1e3,
                      latency["p99_us"] / 1e3, result["cpu"]["generator_us"])
