#!/usr/bin/env python3
"""Scaling: what changes with cores, nodes, keys, sizes of values, and connections. Each part prints a Markdown table.

    cargo build --release
    benches/scaling.py                              # all of it; some twenty minutes, most of them for 10 M keys
    benches/scaling.py cores connections            # only these parts
    benches/scaling.py keys --keys 1000,1000000     # only these numbers of keys

    cores        one node on 1, 2, 4 and 8 cores, as many as there are (taskset): throughput and CPU per operation
    nodes        3 to 9 nodes, N=3: CPU per operation of all of them, and at rest
    keys         1 k to 10 M keys: load rate, CPU of a read, memory, disk, restart
    values       16 B to 1 MiB: megabytes a second, against what the disk and the loopback interface can do
    connections  1 to 5,000: throughput, CPU per operation, latency

CPU time is user + system of all nodes' processes, from the kernel's accounting. Nodes and load generator share the machine, so
throughput is that of all of them together. Needs python3, and taskset for `cores`.
"""

import argparse
import os
import signal
import sys
import time

from measure import generator, machine, processes, table
from measure.lab import Lab

KEYS = 100_000
# With more nodes there are more clients: else a node would get its requests one by one, which costs each of them a wake-up.
CLIENTS_A_NODE = 17
# Values of all sizes take so much together, at most.
VALUES_MB = 128


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(lab, seconds, *arguments, targets=None, prefix=(), allow_errors=False):
    """A measured window: its document, and the CPU us for each operation.

    What writes leave to be done afterwards is included; what goes on anyhow, such as the engine's merging of what was loaded, is
    no read's cost. Without `allow_errors` a failed request ends the part.
    """
    lab.bench("--warmup", 0, "--seconds", 1, *arguments, targets=targets, prefix=prefix)
    processes.wait_calm(lab.pids(), at_most_s=30)
    pids = lab.pids()
    before = processes.cpu_us(pids)
    got = lab.bench("--warmup", 0, "--seconds", seconds, *arguments, targets=targets, prefix=prefix)
    during_us = processes.cpu_us(pids) - before
    processes.wait_calm(pids, at_most_s=30)
    if got["result"]["errors"] and not allow_errors:
        raise generator.Failed(f"{generator.errors(got)} requests failed")
    got["during_us"] = during_us
    used_us = during_us if "get" in arguments else processes.cpu_us(pids) - before
    return got, used_us / max(1, got["result"]["ops"])


def cores(args):
    """One node, pinned; the generator on the other cores if there are any."""
    usable = sorted(os.sched_getaffinity(0))
    rows, first = [], {}
    for count in [count for count in (1, 2, 4, 8) if count <= len(usable)]:
        mine, others = usable[:count], usable[count:] or usable
        pinned = lambda some: ("taskset", "-c", ",".join(map(str, some)))
        with Lab(nodes=1, prefix=pinned(mine)) as lab:
            lab.load(KEYS)
            for workload in ("set", "get"):
                got, us = run(lab, args.seconds, "--keys", KEYS, "--workload", workload, "-P", 16, prefix=pinned(others))
                rate = got["result"]["rate"]
                first.setdefault(workload, rate)
                shared = "of its own" if usable[count:] else "the same cores"
                rows.append([f"{workload.upper()} -P 16, {count} cores", int(rate), rate / first[workload], us,
                             got["during_us"] / 1e6 / got["result"]["window_s"], shared])
                say(rows[-1])
    print(table.markdown(["one node", "ops/s", "times 1 core", "CPU us/op", "cores used by the node", "generator runs on"],
                         rows))


def nodes(args):
    """N=3 on more and more nodes, all asked alike, each by as many clients."""
    rows = []
    for count in args.nodes:
        with Lab(nodes=count, n=3) as lab:
            lab.load(KEYS)
            processes.wait_calm(lab.pids())
            pids, before, began = lab.pids(), processes.cpu_us(lab.pids()), time.monotonic()
            time.sleep(args.seconds)
            idle = (processes.cpu_us(pids) - before) / 1e4 / (time.monotonic() - began) / count
            figures = []
            for arguments in (("set", 1), ("get", 1), ("set", 16), ("get", 16)):
                got, us = run(lab, args.seconds, "--keys", KEYS, "--workload", arguments[0], "-P", arguments[1], "-c",
                              CLIENTS_A_NODE * count, targets=lab.targets())
                figures += [us, int(got["result"]["rate"])]
            rows.append([f"{count}", f"{idle:.2f} %", *figures])
            say(rows[-1])
    kinds = ("SET", "GET", "SET -P 16", "GET -P 16")
    heads = ["nodes", "at rest, of a core a node"] + [text for kind in kinds for text in (f"{kind} us/op", "ops/s")]
    print(table.markdown(heads, rows))


def keys(args):
    """More and more keys."""
    rows = []
    for count in args.keys:
        # Epochs as in the lab, so that the data is where it is in the long run: in the engine.
        with Lab(epoch_interval_ms=10_000) as lab:
            rate = lab.load(count)
            began = time.monotonic()
            processes.wait_calm(lab.pids(), share=0.15, at_most_s=300)
            calm_s = time.monotonic() - began
            time.sleep(max(0, 25 - calm_s))  # Two epochs.
            rss = max(map(processes.rss_mb, lab.pids()))
            disk = processes.disk_mb(lab.node_directory(1))
            got, read_us = run(lab, args.seconds, "--keys", count, "--workload", "get")
            if got["result"]["misses"]:
                raise generator.Failed(f"{got['result']['misses']} of the loaded keys were not found")
            after = max(map(processes.rss_mb, lab.pids()))
            killed_s = lab.restart_s(2, "kill-node")
            stopped_s = lab.restart_s(3, "stop-node")
            rows.append([f"{count:,}", int(rate), calm_s, read_us, generator.latency(got)["p99_us"] / 1e3, int(rss), int(after),
                         int(disk), killed_s, stopped_s])
            say(rows[-1])
    print(table.markdown(["keys", "loaded/s", "calm after s", "GET us/op", "p99 ms", "RSS MB a node", "after reading",
                          "disk MB a node", "restart s after SIGKILL", "after SIGTERM"], rows))


def values(args):
    """Longer and longer values."""
    rows = []
    for size in (16, 128, 1024, 8 * 1024, 64 * 1024, 1024 * 1024):
        count = min(KEYS, VALUES_MB * 1024 * 1024 // size)
        with Lab() as lab:
            disk = machine.disk_write_mb_s(lab.directory)
            # Few at once: it is the measured part that is to find out what many big values do.
            lab.load(count, "--value-bytes", size, "-c", 4)
            row = [f"{size:,} B", count]
            for workload in ("set", "get"):
                got, us = run(lab, args.seconds, "--keys", count, "--value-bytes", size, "--workload", workload,
                              allow_errors=True)
                mb_s = got["result"]["rate"] * size / 1e6
                row += [int(got["result"]["rate"]), mb_s, us, generator.latency(got)["p99_us"] / 1e3,
                        generator.errors(got)]
                if workload == "set":
                    # Each of three replicas writes it to its log.
                    row.append(f"{100 * 3 * mb_s / disk:.0f} %")
            rows.append([*row, int(max(map(processes.rss_mb, lab.pids()))), int(disk)])
            say(rows[-1])
    print(table.markdown(["value", "keys", "SET/s", "MB/s", "us/op", "p99 ms", "errors", "3 x MB/s of raw disk", "GET/s", "MB/s",
                          "us/op", "p99 ms", "errors", "RSS MB a node", "raw disk MB/s"], rows))
    print(f"\nOne stream over the loopback interface: {machine.loopback_mb_s():,.0f} MB/s.")


def connections(args):
    """More and more clients."""
    limit, rows = processes.raise_file_limit(), []
    with Lab() as lab:
        lab.load(KEYS)
        for count in (1, 10, 50, 200, 1_000, 5_000):
            if count + 1_000 > limit:
                say(f"{count} connections are left out: the limit of open files is {limit}")
                continue
            row = [f"{count:,}"]
            for workload in ("set", "get"):
                got, us = run(lab, args.seconds, "--keys", KEYS, "--workload", workload, "-c", count)
                of = generator.latency(got)
                row += [int(got["result"]["rate"]), us, of["p50_us"] / 1e3, of["p99_us"] / 1e3]
            rows.append([*row, int(processes.rss_mb(lab.pids()[0]))])
            say(rows[-1])
    print(table.markdown(["connections", "SET/s", "us/op", "p50 ms", "p99 ms", "GET/s", "us/op", "p50 ms", "p99 ms",
                          "RSS MB of the node"], rows))


PARTS = {"cores": cores, "nodes": nodes, "connections": connections, "values": values, "keys": keys}


def numbers(text):
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="of: " + ", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=5, help="of a measurement (default 5)")
    parser.add_argument("--nodes", type=numbers, default=[3, 5, 7, 9], help="with commas (default 3,5,7,9)")
    parser.add_argument("--keys", type=numbers, default=[1_000, 10_000, 100_000, 1_000_000, 10_000_000],
                        help="with commas (default 1000 to 10000000)")
    args = parser.parse_args()
    unknown = [part for part in args.parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {unknown[0]}")
    # So that nodes do not outlive the bench.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    failed = False
    print(machine.describe())
    for part in args.parts or PARTS:
        print(f"\n**{part}**\n", flush=True)
        try:
            PARTS[part](args)
        except generator.Failed as failure:
            failed = True
            print(f"FAILED: {failure}")
    print(f"\nload average at the end {os.getloadavg()[0]:.1f}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
