#!/usr/bin/env python3
"""What epochs cost: processor time, messages and bytes for each node, idle and with writes.

Starts a cluster of its own, loads keys of 100-byte values, waits until everything is verified and compaction has
calmed down, and measures windows of time in which each epoch gets so many writes, or none. All of it is done
twice on the same data: with short epochs, and with epochs so long that none is closed in a window. The
difference is what epochs cost: closing, comparing, settling, and dropping the index.

    cargo build --release -p mydatastore
    benches/idle-cost.py                                   # 100,000 and 1,000,000 keys; half an hour
    benches/idle-cost.py --keys 1000000 --writes 0         # only the idle cost
    benches/idle-cost.py --nodes 9 --keys 1000 --writes 0  # how control traffic grows with nodes

Processor time is user + system of each node's process, from the kernel's accounting: what else runs on the
machine disturbs it least. Packets of the loopback interface are counted too; those are everybody's, unless the
bench has a network of its own:

    unshare -rn sh -c 'ip link set lo up && benches/idle-cost.py'

Needs python3 and nothing else.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERTZ = os.sysconf("SC_CLK_TCK")
VALUE = b"v" * 100
PIPELINE = 500
# The engine's thread, as the kernel cuts its name: what it does follows from flushes, and grows with the data.
COMPACTION = "mds-fjall-compa"
SETTLE_S_MAX = 300
START_S_MAX = 120
# A node that uses less than this share of a core for so many looks in a row has calmed down.
CALM_SHARE, CALM_LOOKS, LOOK_S = 0.05, 3, 5


class Cluster:
    """Nodes on this machine, as long as they run: processes of `mydatastore serve` in one directory."""

    def __init__(self, args, directory, interval_ms):
        self.args, self.directory = args, directory
        self.processes = [self.start(node, interval_ms) for node in self.nodes()]
        self.pids = [process.pid for process in self.processes]
        try:
            self.wait(lambda: all(self.get(node, "/health") for node in self.nodes()))
            if json.loads(self.get(1, "/v1/status"))["config"] is None:
                wanted = {"nodes": args.nodes, "partition_count": args.partitions}
                self.wait(lambda: self.get(1, "/v1/init", json.dumps(wanted).encode()))
            self.wait(lambda: all(self.get(node, "/ready") for node in self.nodes()))
        except BaseException:
            self.stop()
            raise

    def address(self, base, node):
        return f"127.0.0.1:{base + self.args.port_offset + node}"

    def start(self, node, interval_ms):
        home = os.path.join(self.directory, f"node-{node}")
        os.makedirs(home, exist_ok=True)
        flags = {
            "name": f"node-{node}", "data-dir": os.path.join(home, "data"), "epoch-interval-ms": interval_ms,
            "resp-listen": self.address(7100, node), "http-listen": self.address(8100, node),
            "peer-listen": self.address(9100, node),
            "seeds": ",".join(self.address(9100, other) for other in self.nodes() if other != node),
        }
        command = [self.args.binary, "serve", *shlex.split(self.args.serve)]
        for name, value in flags.items():
            command += [f"--{name}", str(value)]
        with open(os.path.join(home, "node.log"), "ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self, is_done):
        until = time.monotonic() + START_S_MAX
        while True:
            try:
                if is_done():
                    return
            except OSError as error:
                problem = error
            if time.monotonic() > until or any(process.poll() is not None for process in self.processes):
                sys.exit(f"the nodes did not start: {problem}; see node.log in {self.directory} (with --keep)")
            time.sleep(0.3)

    def nodes(self):
        return range(1, self.args.nodes + 1)

    def get(self, node, path, body=None):
        url = f"http://{self.address(8100, node)}{path}"
        with urllib.request.urlopen(url, body, timeout=15) as reply:
            return reply.read().decode()

    def metrics(self):
        """The metrics of all nodes: added up, and the greatest of each."""
        total, greatest = {}, {}
        for node in self.nodes():
            for line in self.get(node, "/metrics").splitlines():
                if line.startswith("mydatastore_"):
                    name, value = line.rsplit(" ", 1)
                    name = name.removeprefix("mydatastore_")
                    total[name] = total.get(name, 0) + float(value)
                    greatest[name] = max(greatest.get(name, 0), float(value))
        return total, greatest

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(60)


class Client:
    """One Redis connection that sets keys, many at a time."""

    def __init__(self, cluster):
        self.socket = socket.create_connection(("127.0.0.1", 7101 + cluster.args.port_offset))

    def set(self, numbers):
        numbers = list(numbers)
        for at in range(0, len(numbers), PIPELINE):
            part = numbers[at:at + PIPELINE]
            head = b"*3\r\n$3\r\nSET\r\n$16\r\nkey:%012d\r\n$100\r\n%s\r\n"
            self.socket.sendall(b"".join(head % (number, VALUE) for number in part))
            left = len(part) * len(b"+OK\r\n")
            while left > 0:
                got = self.socket.recv(65536)
                if not got or got[:1] == b"-" or b"\n-" in got:
                    sys.exit(f"a write failed: {got[:200]!r}")
                left -= len(got)


def cpu_s(pid):
    """User and system time of a process, in seconds: of all of it, and of each kind of thread."""
    def of(path):
        with open(path) as file:
            fields = file.read().rsplit(") ", 1)
        ticks = fields[1].split()
        return fields[0].split("(", 1)[1], (int(ticks[11]) + int(ticks[12])) / HERTZ

    threads = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            name, spent = of(f"/proc/{pid}/task/{thread}/stat")
        except OSError:
            continue
        threads[name] = threads.get(name, 0) + spent
    return of(f"/proc/{pid}/stat")[1], threads


def loopback():
    """Packets and bytes on the loopback interface, and UDP datagrams sent."""
    with open("/proc/self/net/dev") as file:
        fields = next(line for line in file if line.strip().startswith("lo:")).split()
    with open("/proc/self/net/snmp") as file:
        names, values = [line.split() for line in file if line.startswith("Udp:")]
    udp = int(values[names.index("OutDatagrams")])
    return {"packets": int(fields[2]), "bytes": int(fields[1]), "datagrams": udp}


def wait_until_calm(cluster):
    """Until everything closed is verified, nothing waits to be flushed, and no node works much."""
    began, calm = time.monotonic(), 0
    while calm < CALM_LOOKS:
        before = [cpu_s(pid)[0] for pid in cluster.pids]
        time.sleep(LOOK_S)
        share = max((cpu_s(pid)[0] - b) / LOOK_S for pid, b in zip(cluster.pids, before))
        total, greatest = cluster.metrics()
        is_calm = (greatest["watermark_lag_epochs"] <= 1 and total["store_frozen_tables"] == 0
                   and share < CALM_SHARE)
        calm = calm + 1 if is_calm else 0
        if time.monotonic() - began > SETTLE_S_MAX:
            print(f"  (not calm after {SETTLE_S_MAX} s: {share:.3f} of a core)", flush=True)
            return
    print(f"  calm after {time.monotonic() - began:.0f} s", flush=True)


def window(cluster, client, keys, writes, chosen, is_long):
    """Measures a window of whole intervals, each with so many writes at its beginning."""
    interval_s = cluster.args.interval_ms / 1000
    intervals = -(-cluster.args.seconds // max(1, int(interval_s)))

    def interval():
        until = time.monotonic() + interval_s
        if writes:
            client.set(chosen.randrange(keys) for _ in range(writes))
        time.sleep(max(0, until - time.monotonic()))

    # What was written two epochs ago is verified now: the first ones are not measured.
    for _ in range(3 if writes and not is_long else 1):
        interval()
    metrics, net = cluster.metrics()[0], loopback()
    cpu, began = [cpu_s(pid) for pid in cluster.pids], time.monotonic()
    for _ in range(intervals):
        interval()
    took_s = time.monotonic() - began
    after = [cpu_s(pid) for pid in cluster.pids]
    net = {name: value - net[name] for name, value in loopback().items()}
    now = cluster.metrics()[0]
    threads = {}
    for (_, old), (_, new) in zip(cpu, after):
        for name, spent in new.items():
            threads[name] = threads.get(name, 0) + spent - old.get(name, 0)
    return {
        "took_s": took_s, "epochs": (now["epoch"] - metrics["epoch"]) / cluster.args.nodes,
        "cpu_s": [a - b for (a, _), (b, _) in zip(after, cpu)],
        "threads": {name: spent / cluster.args.nodes for name, spent in threads.items()},
        "net": net, "metrics": {name: now[name] - metrics.get(name, 0) for name in now},
    }


def print_window(cluster, name, got):
    shares = [spent / got["took_s"] for spent in got["cpu_s"]]
    text = ", ".join(f"{100 * share:.2f} %" for share in shares)
    print(f"  {name}: {got['took_s']:.0f} s, {got['epochs']:.0f} epochs; of a core, by node: {text}")
    worst = sorted(got["threads"].items(), key=lambda item: -item[1])[:6]
    text = ", ".join(f"{thread} {1000 * spent / got['took_s']:.2f}" for thread, spent in worst if spent)
    print(f"    by thread, ms a second and node: {text}")
    per = got["took_s"] * cluster.args.nodes
    net = {name: value / per for name, value in got["net"].items()}
    print(f"    loopback, a second and node: {net['packets']:.1f} packets, {net['bytes']:.0f} bytes, "
          f"of them {net['datagrams']:.1f} UDP datagrams", flush=True)


def disk_bytes(directory):
    files = (os.path.join(top, name) for top, _, names in os.walk(directory) for name in names)
    return sum(os.stat(file).st_blocks * 512 for file in files)


def measure(args, keys, directory):
    results = {}
    for what, interval_ms in (("short", args.interval_ms), ("long", args.long_interval_ms)):
        cluster = Cluster(args, directory, interval_ms)
        try:
            client = Client(cluster)
            if what == "short":
                print(f"{keys} keys: loading", flush=True)
                client.set(range(keys))
            wait_until_calm(cluster)
            chosen = random.Random(7)
            for writes in args.writes:
                results[what, writes] = got = window(cluster, client, keys, writes, chosen, what == "long")
                print_window(cluster, f"epochs of {interval_ms / 1000:g} s, {writes} writes in "
                             f"{args.interval_ms / 1000:g} s", got)
        finally:
            cluster.stop()
        if args.only_short:
            break
    print(f"  on disk: {disk_bytes(directory) / 1e6:.0f} MB in all", flush=True)
    return results


def print_table(args, rows):
    print(f"\n{args.nodes} nodes, {args.partitions} partitions; for each node and epoch of {args.interval_ms / 1000:g} s:\n")
    print("| keys | writes | whole node, % of a core | the same with long epochs | an epoch's share, ms CPU "
          "| the engine's compactions besides, ms | messages sent | bytes sent | roots compared | rows received "
          "| log syncs | flushes |")
    print("|" + "---|" * 12)
    for keys, results in rows:
        for writes in args.writes:
            short, long = results["short", writes], results.get(("long", writes))
            whole = lambda got: sum(got["cpu_s"]) / got["took_s"] / args.nodes
            compacts = lambda got: got["threads"].get(COMPACTION, 0) / got["took_s"]
            per = max(1, short["epochs"]) * args.nodes
            of = lambda name: short["metrics"].get(name, 0) / per
            sent = lambda name: of(name + '_total{direction="sent"}')
            received = lambda name: of(name + '_total{direction="received"}')
            texts = ["", "", ""]
            if long:
                own = lambda got: whole(got) - compacts(got)
                texts = [f"{100 * whole(long):.2f}", f"{(own(short) - own(long)) * args.interval_ms:.0f}",
                         f"{(compacts(short) - compacts(long)) * args.interval_ms:.0f}"]
            print(f"| {keys:,} | {writes:,} | {100 * whole(short):.2f} | {' | '.join(texts)} "
                  f"| {sent('sync_messages'):.1f} | {sent('sync_bytes'):,.0f} "
                  f"| {of('sync_comparisons_total'):.0f} | {received('sync_rows'):.1f} "
                  f"| {of('store_log_syncs_total'):.1f} | {of('store_flushes_total'):.2f} |")


def numbers(text):
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=numbers, default=[100_000, 1_000_000])
    parser.add_argument("--writes", type=numbers, default=[0, 1_000, 10_000], help="in each epoch")
    parser.add_argument("--seconds", type=int, default=60, help="of a window")
    parser.add_argument("--interval-ms", type=int, default=10_000, help="of short epochs")
    parser.add_argument("--long-interval-ms", type=int, default=900_000, help="of long epochs: the default of a node")
    parser.add_argument("--only-short", action="store_true", help="without the second run")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=256)
    parser.add_argument("--port-offset", type=int, default=2000)
    parser.add_argument("--serve", default="", help="further flags of the nodes, as one text")
    parser.add_argument("--binary", default="target/release/mydatastore")
    parser.add_argument("--keep", action="store_true", help="keep the data directories")
    args = parser.parse_args()
    # So that nodes do not outlive the bench.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}", flush=True)
    rows = []
    for keys in args.keys:
        directory = tempfile.mkdtemp(prefix="mds-idle-cost-")
        try:
            rows.append((keys, measure(args, keys, directory)))
        finally:
            if args.keep:
                print(f"kept: {directory}")
            else:
                shutil.rmtree(directory, ignore_errors=True)
    print_table(args, rows)
    print(f"\nload average at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
