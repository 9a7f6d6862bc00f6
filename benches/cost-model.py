#!/usr/bin/env python3
"""The cost model: where the processor time of one request goes, on all nodes together. Prints a Markdown table.

    RUSTFLAGS="-C force-frame-pointers=yes" cargo build --release --target-dir target/frames
    benches/cost-model.py                       # five kinds of requests, 8 s each
    benches/cost-model.py --show "SET always"   # and the functions that each part of it is made of

Three nodes (N=3, W=2, 50 clients at the first one, 100-byte values) work twice: once as they are, and how much a request takes
in all comes from the kernel's accounting; and once sampled (`perf record`, on the processor's clock), which divides it. A sample is the
part's whose function is innermost in its stack: so what allocates, copies or hashes counts for whoever asked for it, and the
kernel's work for whoever made the system call. On the loopback interface the sender also pays for what the receiver's side
of the kernel does with a packet.

Needs python3 and perf (Debian: linux-perf), and the right to use it (root, or kernel.perf_event_paranoid <= 1).
"""

import argparse
import collections
import os
import re
import shutil
import subprocess
import sys
import tempfile

from measure import generator, machine, processes, table
from measure.lab import Lab

KEYS = 100_000
SAMPLES_HZ = 499
BINARY = os.path.normpath(os.path.join(os.path.dirname(generator.BINARY), "..", "frames", "release", "mydatastore"))

TESTS = {
    "SET always": ("always", ["--workload", "set"]),
    "SET os": ("os", ["--workload", "set"]),
    "SET -P 16": ("always", ["--workload", "set", "-P", 16]),
    "GET R=2": ("always", ["--workload", "get"]),
    "GET R=1": ("always", ["--workload", "get", "--read-quorum", 1]),
}

# Threads that work behind the requests: what they do is one part, whatever it is.
BACKGROUND = [
    (r"^mds-(flush|walk|read)", "behind: flushes, walks"),
    (r"^mds-(control|http|stop|open)", "behind: gossip, Raft, HTTP"),
]
FOREGROUND = r"^mds-(data|store)"
ENGINE = "behind: the engine's merges"

# The kernel's work, by the system call, innermost first.
CALLS = [
    (r"sys_(fdatasync|fsync|sync_file_range)", "log: the sync"),
    (r"sys_(sendto|sendmsg|writev|recvfrom|recvmsg|readv)\b", "sockets: reading and writing"),
    (r"sys_epoll_(p?wait2?|ctl)\b", "sockets: waiting for some to be ready"),
    (r"sys_futex\b|eventfd_(write|read)\b", "wake-ups between threads"),
    (r"sys_(write|pwrite64)\b", "log: the append"),
]

# Our functions, innermost first.
PARTS = [
    (r"mds_storage::(log|frame)\b|mds_storage::disk", "log: framing"),
    (r"mds_storage::|fjall::|lsm_tree::|mds_node::store_io|mds_types::record", "store: merge, table, index"),
    (r"mydatastore::resp", "RESP: parsing, replies"),
    (r"mds_node::wire|mds_node::shell::(transport|outlet)", "wire: frames of peers"),
    (r"mds_node::shell::(store_thread|data_loop|peers|courtesy)", "shell: buffers, queues"),
    (r"mds_node::|mds_protocol::|mds_cluster::|mds_types::", "core: coordinator, replica, quorum"),
    (r"tokio::|mio::", "runtime: tokio"),
]
IDLE = "kernel besides: scheduler, interrupts"
REST = "the C library, callers not seen: allocation"


def kernel_part(frames):
    """The part of a sample that was taken in the kernel."""
    for frame in frames:
        for pattern, part in CALLS:
            if re.search(pattern, frame):
                return part
    return IDLE


def part_of(comm, stack):
    """The part that a sample belongs to; `stack` is innermost first, of (name, is it the kernel's)."""
    for pattern, part in BACKGROUND:
        if re.search(pattern, comm):
            return part
    if not re.search(FOREGROUND, comm):
        return ENGINE
    user = [name for name, is_kernel in stack if not is_kernel]
    kernel = [name for name, is_kernel in stack if is_kernel]
    if kernel:
        return kernel_part(kernel)
    for name in user:
        for pattern, part in PARTS:
            if re.search(pattern, name):
                return part
    return REST


def samples(path):
    """Every sample of a recording: its thread, and its stack."""
    command = ["perf", "script", "-i", path, "--no-inline", "-F", "comm,ip,sym,dso"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    comm, stack = None, []
    for line in process.stdout:
        line = line.rstrip("\n")
        if not line:
            if comm is not None:
                yield comm, stack
            comm, stack = None, []
        elif comm is None:
            comm = line.strip()
        elif found := re.match(r"\s+[0-9a-f]+ (.*) \((.*)\)$", line):
            stack.append((found[1], found[2].startswith("[kernel") or found[2].endswith(".ko")))
    if comm is not None:
        yield comm, stack
    process.wait()


def profile(name, args, directory):
    """CPU us of a request by part, in all, operations a second, and the functions of each part."""
    fsync, arguments = TESTS[name]
    arguments = ["--keys", KEYS, *arguments]
    recording = os.path.join(directory, "perf.data")
    with Lab(fsync=fsync, binary=args.binary) as lab:
        lab.load(KEYS)
        lab.bench("--warmup", 0, "--seconds", 1, *arguments)
        processes.wait_calm(lab.pids())
        pids = lab.pids()
        before = processes.cpu_us(pids)
        got = lab.bench("--warmup", 0, "--seconds", args.seconds, *arguments)["result"]
        if "set" in arguments:
            processes.wait_calm(pids)
        used_us = processes.cpu_us(pids) - before
        recorder = subprocess.Popen(["perf", "record", "-e", "cpu-clock", "-F", str(SAMPLES_HZ), "-g", "-o", recording,
                                     "-p", ",".join(map(str, pids))], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        lab.bench("--warmup", 0, "--seconds", args.seconds, *arguments)
        if "set" in arguments:
            processes.wait_calm(pids)
        recorder.terminate()
        said = recorder.communicate()[1].decode()
    counts, functions = collections.Counter(), collections.defaultdict(collections.Counter)
    for comm, stack in samples(recording):
        part = part_of(comm, stack)
        counts[part] += 1
        if stack:
            functions[part][f"{comm}: {stack[0][0]} <- {next((of for of, kernel in stack if not kernel and '::' in of), '?')}"] += 1
    if not counts:
        raise generator.Failed(f"perf took no sample: {said.strip()}")
    total, us = sum(counts.values()), used_us / got["ops"]
    return {part: us * count / total for part, count in counts.items()}, us, got["rate"], functions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", metavar="TEST", help=f"of: {', '.join(TESTS)} (default all)")
    parser.add_argument("--seconds", type=int, default=8, help="of a measurement (default 8)")
    parser.add_argument("--binary", default=BINARY, help="built with frame pointers (default target/frames/release/mydatastore)")
    parser.add_argument("--show", metavar="TEST", help="the ten functions of each part of this test, too")
    args = parser.parse_args()
    names = args.tests or ([args.show] if args.show else list(TESTS))
    if unknown := [name for name in [*names, *([args.show] if args.show else [])] if name not in TESTS]:
        parser.error(f"no such test: {', '.join(unknown)}; there are {', '.join(TESTS)}")
    if not shutil.which("perf"):
        raise generator.Failed("perf is missing (Debian: linux-perf)")
    print(machine.describe())
    found = {}
    with tempfile.TemporaryDirectory(prefix="mds-bench-") as directory:
        for name in names:
            found[name] = profile(name, args, directory)
            print(f"{name}: {found[name][1]:.1f} us CPU, {found[name][2]:,.0f}/s", file=sys.stderr, flush=True)
    weight = collections.Counter()
    for parts, us, _, _ in found.values():
        for part, of_part in parts.items():
            weight[part] += of_part / us
    order = sorted(weight, key=lambda part: (part.startswith("behind"), part in (IDLE, REST), -weight[part]))
    rows = [[part, *(found[name][0].get(part, 0.0) for name in names)] for part in order]
    rows.append(["**all, us CPU**", *(found[name][1] for name in names)])
    rows.append(["requests a second", *(round(found[name][2]) for name in names)])
    print(table.markdown(["us CPU of a request", *names], rows))
    if args.show:
        for part in order:
            functions = found[args.show][3][part]
            print(f"\n{part}")
            for function, count in functions.most_common(10):
                print(f"  {count / max(1, sum(functions.values())):6.1%}  {function}")


if __name__ == "__main__":
    try:
        main()
    except generator.Failed as failed:
        sys.exit(f"cost-model.py: {failed}")
    except KeyboardInterrupt:
        sys.exit(130)
