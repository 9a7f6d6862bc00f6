#!/usr/bin/env python3
"""The target table: what the database has to reach, and what it does reach on this machine.

    cargo build --release
    benches/targets.py                          # all of it but `growth`: some ten minutes
    benches/targets.py cost sync                # only these parts
    benches/targets.py growth --minutes 30      # memory under load for so long
    benches/targets.py open-loop --dir /dev/shm # without a disk: what of the latency is the processors'

Parts, each with a cluster of three nodes of its own (N=3, R=W=2, fsync `always`, 100-byte values):

    cost         CPU time per operation with 50 clients, of all three nodes, with 1 and 16 requests on the way
    sync         one client's SET against the time of one fdatasync
    open-loop    latency at half of the maximum, through flushes, compactions, epochs of 10 s and their verification
    kill         the same while one node is killed (SIGKILL) and comes back: requests at the others
    ring-changes the same while nodes join and leave: 3, 4, 5, 4, 3
    memory       resident memory of each node with 1 M keys, and the time of a restart
    floor        no target, but what no database can be cheaper than: a server that only answers, a sync of the disk
                 (cargo build --release --examples)
    growth       resident memory, minute by minute, under writes at a quarter of the maximum

CPU time is user + system of all nodes' processes, from the kernel's accounting. A clear machine is assumed: the load average is
printed at both ends. Needs python3 and nothing else.
"""

import argparse
import os
import signal
import sys
import tempfile
import time

from measure import generator, machine, processes, table
from measure.lab import Lab

KEYS = 100_000
EPOCH_MS = 10_000
# Users of an open loop do not wait for each other: enough of them that a pause of some 20 ms keeps no request from being sent.
OPEN_CLIENTS = 200
# Before a ring change: it takes some seconds, of which the first moment of a load that begins would be more than a hundredth.
WARMUP_S = 2
HEADS = ["what", "must", "reach for", "measured", "is"]


class Rows:
    """The table as it grows; each row is told when it is there."""

    def __init__(self):
        self.rows, self.notes = [], []

    def add(self, what, must, reach, measured, text=None):
        """Limits and figures are numbers, the smaller the better; `text` shows more than the figure."""
        is_what = "reached" if measured <= reach else "ok" if measured <= must else "MISSED"
        row = [what, f"<= {must:g}", f"<= {reach:g}", text or table.number(measured), is_what]
        self.rows.append(row)
        self.say(" | ".join(map(str, row)))

    def note(self, text):
        self.notes.append(text)
        self.say(text)

    @staticmethod
    def say(text):
        print(text, file=sys.stderr, flush=True)


def cluster(args, **options):
    """Three nodes, their data where it was said."""
    return Lab(parent=args.dir, **options)


def cpu_of(lab, arguments, seconds):
    """CPU us for each operation, and operations a second. What writes leave to be done afterwards is included."""
    lab.bench("--warmup", 0, "--seconds", 1, *arguments)
    processes.wait_calm(lab.pids())
    pids = lab.pids()
    before = processes.cpu_us(pids)
    got = lab.bench("--warmup", 0, "--seconds", seconds, *arguments)
    if "set" in arguments:
        processes.wait_calm(pids)
    used_us = processes.cpu_us(pids) - before
    if got["result"]["errors"]:
        raise generator.Failed(f"{generator.errors(got)} requests failed")
    return used_us / got["result"]["ops"], got["result"]["rate"]


def cost(args, rows):
    """CPU per operation."""
    def measure(lab, what, must, reach, *arguments):
        us, rate = cpu_of(lab, ["--keys", KEYS, *arguments], args.seconds)
        rows.add(f"{what}, us CPU", must, reach, us, f"{us:.1f} ({rate:,.0f}/s)")

    with cluster(args, fsync="os") as lab:
        lab.load(KEYS)
        measure(lab, "SET, fsync `os`", 36, 24, "--workload", "set")
    with cluster(args) as lab:
        lab.load(KEYS)
        measure(lab, "SET, fsync `always`", 52, 38, "--workload", "set")
        measure(lab, "GET, R=2", 28, 18, "--workload", "get")
        measure(lab, "GET, R=1, at a replica", 15, 10, "--workload", "get", "--read-quorum", 1)
        measure(lab, "SET -P 16, fsync `always`", 14, 6, "--workload", "set", "-P", 16)
        measure(lab, "GET -P 16, R=2", 8, 3, "--workload", "get", "-P", 16)
        measure(lab, "GET -P 16, R=1", 4, 1.5, "--workload", "get", "-P", 16, "--read-quorum", 1)
    # After an epoch has ended, its records are in the engine.
    with cluster(args, epoch_interval_ms=EPOCH_MS) as lab:
        lab.load(KEYS)
        time.sleep(3 * EPOCH_MS / 1e3)
        us, rate = cpu_of(lab, ["--keys", KEYS, "--workload", "get"], args.seconds)
        rows.note(f"GET, R=2, after the epoch of the writes has ended: {us:.1f} us CPU ({rate:,.0f}/s); no target of its own")


def floor(args, rows):
    """What a request costs if the server does nothing: the kernel's sockets."""
    echo = os.path.join(os.path.dirname(generator.BINARY), "examples", "echo")
    if not os.access(echo, os.X_OK):
        raise generator.Failed(f"{echo} is missing: cargo build --release --examples")
    target = "127.0.0.1:7999"
    with tempfile.TemporaryDirectory(prefix="mds-bench-") as directory:
        server = processes.start([echo, target], os.path.join(directory, "echo.log"))
        try:
            processes.wait_listening(target)
            for workload in ("set", "get"):
                for pipeline in (1, 16):
                    arguments = ["--workload", workload, "-P", pipeline, "--warmup", 1]
                    before = processes.cpu_us([server.pid])
                    got = generator.bench([target], *arguments, "--seconds", args.seconds)["result"]
                    # The warm-up's requests are not in `ops`: its share of the time is taken off.
                    used_us = (processes.cpu_us([server.pid]) - before) * args.seconds / (args.seconds + 1)
                    rows.note(f"floor: an echo of {workload.upper()} -P {pipeline}: {used_us / got['ops']:.1f} us CPU "
                              f"({got['rate']:,.0f}/s)")
        finally:
            processes.end(server)
        began, cpu = time.monotonic(), time.process_time()
        machine.sync_us(directory)
        rows.note(f"floor: an append and its fdatasync: {(time.process_time() - cpu) / 300 * 1e6:.0f} us CPU, "
                  f"{(time.monotonic() - began) / 300 * 1e6:.0f} us")


def sync(args, rows):
    """One client, no pipeline, against one sync of the disk."""
    with cluster(args) as lab:
        lab.load(KEYS)
        processes.wait_calm(lab.pids())
        median_us, p99_us = machine.sync_us(lab.directory)
        got = lab.bench("--keys", KEYS, "--workload", "set", "-c", 1, "--seconds", args.seconds)
        p50_us = generator.latency(got)["p50_us"]
        rows.note(f"one fdatasync of an append to the same disk: {median_us:.0f} us, p99 {p99_us:.0f} us")
        rows.add("one client, SET p50, us (3 syncs + 150 us)", 3 * median_us + 150, 3 * median_us + 150, p50_us)


def maximum(lab, args):
    """How many requests a second a closed loop of 50 clients gets done, half of them writes."""
    return lab.bench("--keys", KEYS, "--workload", "a", "--seconds", args.seconds)["result"]["rate"]


def ms(document, name):
    return generator.latency(document)[name] / 1e3


def open_loop(args, rows):
    """Half of the maximum, for some epochs."""
    with cluster(args, epoch_interval_ms=EPOCH_MS) as lab:
        lab.load(KEYS)
        rate = args.rate or round(maximum(lab, args) / 2)
        processes.wait_calm(lab.pids())
        before = lab.metrics(1)
        got = lab.bench("--keys", KEYS, "--workload", "a", "--rate", rate, "-c", OPEN_CLIENTS,
                        "--seconds", args.open_seconds)
        now = lab.metrics(1)
        risen = {name: now.get(name, 0) - before.get(name, 0) for name in ("epoch", "store_flushes_total")}
        for name, must, reach in (("p99_us", 5, 2), ("p99_9_us", 20, 10)):
            of_name = name.removesuffix("_us").replace("_", ".")
            rows.add(f"open loop at {rate:,}/s, {of_name}, ms", must, reach, ms(got, name))
        worst = max(got["result"]["timeline"], key=lambda second: second["p99_us"])
        us = got["result"]["cpu"]["servers_us_per_op"]
        rows.note(f"open loop, {args.open_seconds:g} s: {risen['epoch']:.0f} epochs began and node 1 flushed "
                  f"{risen['store_flushes_total']:.0f} times; the worst second's p99 is {worst['p99_us'] / 1e3:.1f} ms, the "
                  f"longest request {ms(got, 'max_us'):.1f} ms, errors {generator.errors(got)}, {us} us CPU a request, "
                  f"sent late at p99 by {got['result']['open_loop']['send_delay']['p99_us'] / 1e3:.2f} ms")


def kill(args, rows):
    """Half of the maximum at two nodes, while the third is killed and comes back."""
    with cluster(args, epoch_interval_ms=EPOCH_MS) as lab:
        lab.load(KEYS)
        rate, others = round(maximum(lab, args) / 2), lab.targets()[:2]
        running = generator.begin(others, "--keys", KEYS, "--workload", "a", "--rate", rate, "-c",
                                  OPEN_CLIENTS, "--seconds", args.open_seconds, "--verify", "--load")
        try:
            time.sleep(args.open_seconds / 3)
            lab.act("kill-node", 3)
            time.sleep(args.open_seconds / 3)
            lab.act("start-node", 3)
            got = generator.finish(running)
        finally:
            running.kill()
        result = got["result"]
        stalls = result["stalls"]
        rows.add(f"`kill -9` of one node at {rate:,}/s: failed requests at the others", 0, 0, result["errors"],
                 generator.errors(got))
        rows.add("... longest stall of one connection, ms", 300, 100, stalls["connection_ms"])
        rows.note(f"kill: longest time in which nothing was answered {stalls['overall_ms']:.1f} ms, longest request "
                  f"{ms(got, 'max_us'):.1f} ms, {result['verify']['violations']} wrong of {result['verify']['reads']} reads")


def ring_changes(args, rows):
    """The same load at rest and while nodes join and leave, one after the other: 3, 4, 5, 4, 3."""
    with cluster(args, epoch_interval_ms=EPOCH_MS) as lab:
        lab.load(KEYS)
        rate = args.rate or round(maximum(lab, args) / 2)
        load = ("--keys", KEYS, "--workload", "a", "--rate", rate, "-c", OPEN_CLIENTS, "--warmup", WARMUP_S)
        processes.wait_calm(lab.pids())

        def while_it(does):
            """Latencies while `does` runs, and how long that took."""
            running = generator.begin([lab.target()], *load, "--seconds", 600)
            try:
                time.sleep(WARMUP_S)
                began = time.monotonic()
                does()
                took_s = time.monotonic() - began
                running.send_signal(signal.SIGINT)
                return generator.finish(running), took_s
            finally:
                running.kill()

        def at_rest():
            # Longer than an epoch, so that one of them ends and is verified.
            return ms(while_it(lambda: time.sleep(1.5 * EPOCH_MS / 1e3))[0], "p99_us")

        before = at_rest()
        for what, act, node in (("3 to 4", "add-node", None), ("4 to 5", "add-node", None), ("5 to 4", "remove-node", 5),
                                ("4 to 3", "remove-node", 4)):
            got, took_s = while_it(lambda: lab.act(act, node))
            during, after = ms(got, "p99_us"), at_rest()
            rows.add(f"{what} nodes at {rate:,}/s: p99, times that before", 2, 1.3, during / before,
                     f"{during / before:.2f} ({before:.2f} -> {during:.2f}; then {after:.2f} ms)")
            rows.note(f"{what} nodes: {took_s:.1f} s, errors {generator.errors(got)}, p99.9 {ms(got, 'p99_9_us'):.1f} ms, "
                      f"longest request {ms(got, 'max_us'):.1f} ms")
            before = after
        rows.note(f"ring changes: up to five nodes and the client share {os.cpu_count()} cores")


def memory(args, rows):
    """1 M keys: resident memory and restart."""
    with cluster(args, epoch_interval_ms=EPOCH_MS) as lab:
        rate = lab.load(args.keys)
        peak = max(map(processes.rss_mb, lab.pids()))
        processes.wait_calm(lab.pids())
        time.sleep(2 * EPOCH_MS / 1e3)
        rss = max(map(processes.rss_mb, lab.pids()))
        rows.add(f"memory with {args.keys:,} keys, MB RSS a node", 400, 250, rss)
        disk = processes.disk_mb(lab.node_directory(1))
        rows.note(f"memory: loaded at {rate:,.0f}/s; {peak:.0f} MB just after it; {disk:.0f} MB on a node's disk")
        for how, words in (("kill-node", "SIGKILL"), ("stop-node", "SIGTERM")):
            took_s = lab.restart_s(2, how)
            rows.add(f"restart with {args.keys:,} keys after {words}, s until it serves", 2, 0.5, took_s)


def growth(args, rows):
    """Memory while values are overwritten."""
    with cluster(args, epoch_interval_ms=EPOCH_MS) as lab:
        lab.load(args.keys)
        rate = round(maximum(lab, args) / 4)
        running = generator.begin([lab.target()], "--keys", args.keys, "--workload", "a", "--distribution", "uniform", "--rate",
                                  rate, "--seconds", 60 * args.minutes)
        seen = []
        try:
            while running.poll() is None:
                seen.append([round(processes.rss_mb(pid)) for pid in lab.pids()])
                rows.say(f"minute {len(seen) - 1}: {seen[-1]} MB")
                time.sleep(60)
            got = generator.finish(running)
        finally:
            running.kill()
        # The first third fills caches and tables.
        settled, last = max(seen[len(seen) // 3]), max(seen[-1])
        rows.add(f"memory after {args.minutes:g} minutes at {rate:,}/s, times that of a third of it", 1.1, 1.02, last / settled,
                 f"{last / settled:.2f} ({max(seen[0])}, {settled}, {last} MB)")
        rows.note(f"growth: errors {generator.errors(got)}, p99 {ms(got, 'p99_us'):.2f} ms")


PARTS = {"cost": cost, "floor": floor, "sync": sync, "open-loop": open_loop, "kill": kill, "ring-changes": ring_changes, "memory": memory,
         "growth": growth}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="of: " + ", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=8, help="of a measurement in a closed loop (default 8)")
    parser.add_argument("--open-seconds", type=float, default=60, help="of one in an open loop (default 60)")
    parser.add_argument("--rate", type=int, help="requests a second of open-loop and ring-changes (default half of the maximum)")
    parser.add_argument("--dir", help="where the nodes keep their data (default: where temporary files are)")
    parser.add_argument("--keys", type=int, default=1_000_000, help="for memory and growth (default 1000000)")
    parser.add_argument("--minutes", type=float, default=30, help="for growth (default 30)")
    args = parser.parse_args()
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {unknown[0]}")
    # So that nodes do not outlive the bench.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    began, rows, failed = machine.describe(), Rows(), False
    for part in args.parts or [part for part in PARTS if part != "growth"]:
        try:
            PARTS[part](args, rows)
        except generator.Failed as failure:
            failed = True
            rows.note(f"{part} FAILED: {failure}")
    print(f"{began}; at the end {os.getloadavg()[0]:.1f}\n\n{table.markdown(HEADS, rows.rows)}\n")
    print("\n".join(f"- {note}" for note in rows.notes))
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
