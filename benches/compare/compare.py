#!/usr/bin/env python3
"""This database, Redis and etcd on the same machine, in the same minutes: CPU time per operation, and its ratio to Redis'.

    cargo build --release
    benches/compare/compare.py                            # all that is installed, three rounds; some ten minutes
    benches/compare/compare.py --systems mydatastore,redis --rounds 1 --seconds 3
    benches/compare/compare.py --json > comparison.json

Each system has three replicas, 100,000 keys of 16 bytes with values of 100, and 50 clients in a closed loop at one server,
one request on its way for each, or 16. In a round one system after the other is started, loaded, measured and stopped, so
that what else happens on the machine hits all of them alike; the table has the median of the rounds.

CPU time is user + system of all server processes of a system, from the kernel's accounting, and of writes also what
they still do after the last request, until they are calm: nobody can put off work until the clock has stopped. Throughput is that of a machine
that runs the servers and the client; it says less.

What each system promises is listed below the tables: they do not promise the same. Needs python3; the systems
that are not installed are left out, and named. A further one is one file in `systems/`.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.normpath(os.path.join(HERE, "..")))

from measure import generator, machine, processes, table  # noqa: E402
from systems import ALL  # noqa: E402

TESTS = [("write", 1), ("read", 1), ("weak-read", 1), ("write", 16), ("read", 16), ("weak-read", 16)]
# What the others are held against.
REFERENCE = "Redis"
# A weak read costs no more than the reference's only kind of read does.
REFERENCE_OF = {"weak-read": "read"}
# After the last request of a test, servers may take so long to become calm.
AFTER_S_MAX = 30


def measure(system, seconds):
    """One system in one round: a row for each test that it can do."""
    rows = []
    try:
        system.start()
        system.load()
        processes.wait_calm(system.pids(), at_most_s=AFTER_S_MAX)
        for what, pipeline in TESTS:
            if what == "weak-read" and system.weak_read is None:
                continue
            system.drive(what, pipeline, min(1, seconds))  # Warm-up.
            processes.wait_calm(system.pids(), at_most_s=AFTER_S_MAX)
            before, pids = processes.cpu_us(system.pids()), system.pids()
            got = system.drive(what, pipeline, seconds)
            during = processes.cpu_us(pids) - before
            is_calm = processes.wait_calm(pids, at_most_s=AFTER_S_MAX)
            used = processes.cpu_us(pids) - before if what == "write" else during
            if got.errors or not got.ops:
                raise generator.Failed(f"{system.name}: {got.errors} of {got.ops + got.errors} requests failed")
            rows.append({
                "system": system.name, "test": what, "pipeline": pipeline, "ops": got.ops,
                "ops_per_s": got.ops / got.seconds, "cpu_us_per_op": used / got.ops,
                "cpu_us_per_op_during": during / got.ops, "became_calm": is_calm, "p50_ms": got.p50_ms,
                "p99_ms": got.p99_ms, "driver_us_per_op": got.driver_us / got.ops,
            })
    finally:
        system.stop()
        system.remove()
    return rows


def say(text):
    print(text, file=sys.stderr, flush=True)


def summary(rows):
    """The medians of the rounds, and the ratio to the reference, round by round."""
    def of(row, name):
        return row["system"] == name and row["pipeline"] == pipeline

    found = []
    for system, what, pipeline in dict.fromkeys((row["system"], row["test"], row["pipeline"]) for row in rows):
        mine = [row for row in rows if of(row, system) and row["test"] == what]
        reference = {row["round"]: row["cpu_us_per_op"] for row in rows
                     if of(row, REFERENCE) and row["test"] == REFERENCE_OF.get(what, what)}
        ratios = [row["cpu_us_per_op"] / reference[row["round"]] for row in mine if reference.get(row["round"])]
        median = lambda name: statistics.median(row[name] for row in mine)
        found.append({
            "system": system, "test": what, "pipeline": pipeline, "rounds": len(mine),
            "ratio_to_reference": statistics.median(ratios) if ratios else None,
            "cpu_us_per_op_least": min(row["cpu_us_per_op"] for row in mine),
            "cpu_us_per_op_most": max(row["cpu_us_per_op"] for row in mine),
            **{name: median(name) for name in ("ops_per_s", "cpu_us_per_op", "p50_ms", "p99_ms", "driver_us_per_op")},
        })
    return found


def print_tables(document):
    print(f"{document['machine']}; {document['rounds']} rounds of {document['seconds']:g} s a test\n")
    by_name = {kind.name: kind for kind in ALL}
    order = [kind.name for kind in ALL]
    for what, pipeline in TESTS:
        rows = [row for row in document["summary"] if (row["test"], row["pipeline"]) == (what, pipeline)]
        if not rows:
            continue
        print(f"**{what}, {pipeline} on the way on each of 50 connections**\n")
        cells = []
        for row in sorted(rows, key=lambda row: order.index(row["system"])):
            weak = f" ({by_name[row['system']].weak_read})" if what == "weak-read" else ""
            spread = f"{row['cpu_us_per_op_least']:.1f} to {row['cpu_us_per_op_most']:.1f}"
            cells.append([row["system"] + weak, row["cpu_us_per_op"], spread, row["ratio_to_reference"], int(row["ops_per_s"]),
                          row["p50_ms"], row["p99_ms"], row["driver_us_per_op"]])
        print(table.markdown(["system", "CPU us/op", "rounds", f"ratio to {REFERENCE}", "ops/s", "p50 ms", "p99 ms",
                              "driver's CPU us/op"], cells), end="\n\n")
    for name, version in document["versions"].items():
        print(f"- {name}: {by_name[name].promises}. {version}, driven by {by_name[name].driver}.")
    for name, command in document["left_out"].items():
        print(f"- {name} was left out: {command} is not installed")


def chosen(text):
    names = text.lower().split(",")
    unknown = [name for name in names if name not in [kind.name.lower() for kind in ALL]]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such system: {unknown[0]}")
    return [kind for kind in ALL if kind.name.lower() in names]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", type=chosen, default=ALL,
                        help="with commas, of: " + ", ".join(kind.name.lower() for kind in ALL))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of each test (default 5)")
    parser.add_argument("--port-offset", type=int, default=3000, help="added to all ports (default 3000)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    args = parser.parse_args()
    # So that servers do not outlive the bench.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    systems = [kind for kind in args.systems if kind.missing() is None]
    document = {
        "machine": machine.describe(), "rounds": args.rounds, "seconds": args.seconds, "versions": {},
        "left_out": {kind.name: kind.missing() for kind in args.systems if kind.missing()}, "measured": [],
    }
    for number in range(1, args.rounds + 1):
        for kind in systems:
            began, system = time.monotonic(), kind(args.port_offset)
            document["versions"].setdefault(kind.name, system.version())
            rows = measure(system, args.seconds)
            document["measured"] += [{"round": number, **row} for row in rows]
            text = ", ".join(f"{row['test']} -P {row['pipeline']} {row['cpu_us_per_op']:.1f}" for row in rows)
            say(f"round {number}: {kind.name} in {time.monotonic() - began:.0f} s; CPU us/op: {text}")
    document["summary"] = summary(document["measured"])
    document["load_average_at_the_end"] = os.getloadavg()[0]
    if args.json:
        print(json.dumps(document, indent=2))
    else:
        print_tables(document)


if __name__ == "__main__":
    try:
        main()
    except generator.Failed as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
