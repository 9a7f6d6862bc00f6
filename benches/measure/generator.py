"""The load generator, `mydatastore bench`, as a function."""

import json
import os
import subprocess
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
BINARY = os.path.normpath(os.path.join(HERE, "..", "..", "target", "release", "mydatastore"))

# Beyond what was asked for: loading, waiting for what is still on its way.
SPARE_S = 900


class Failed(Exception):
    """Nothing could be measured; in words."""


def bench(targets, *arguments, binary=BINARY, prefix=(), patience_s=SPARE_S):
    """Runs it to its end and returns its document (docs/bench.md describes the fields)."""
    return finish(begin(targets, *arguments, binary=binary, prefix=prefix), patience_s)


def begin(targets, *arguments, binary=BINARY, prefix=()):
    """Begins to run it."""
    if not os.access(binary, os.X_OK):
        raise Failed(f"{binary} is missing: cargo build --release")
    command = [*prefix, binary, "bench", "--json", "--target", ",".join(targets), *map(str, arguments)]
    # Files, not pipes: the document of a long run is longer than a pipe takes while nobody reads it.
    said, complained = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=complained)
    process.said, process.complained = said, complained
    return process


def finish(process, patience_s=SPARE_S):
    """Waits for its end."""
    try:
        process.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        raise Failed(f"the generator did not end within {patience_s} s") from None
    finally:
        # Whatever happens, Ctrl-C too, it does not outlive the bench.
        process.kill()
    process.said.seek(0)
    process.complained.seek(0)
    with process.said as said, process.complained as complained:
        out = said.read()
        if not out.strip():
            raise Failed(f"the generator failed: {complained.read().strip()}")
    return json.loads(out)


def latency(document, kind="all"):
    """The percentiles of one kind of request: `all`, `read`, `update`, `insert`."""
    return next(of for of in document["result"]["latency"] if of["kind"] == kind)


def errors(document):
    """Failed requests, and of which kinds, in words."""
    result = document["result"]
    kinds = ", ".join(f"{of['count']} {of['kind']}" for of in result["errors_by_kind"])
    return f"{result['errors']} ({kinds})" if result["errors"] else "0"
