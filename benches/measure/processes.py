"""Processes as the kernel accounts for them: processor time, memory, disk; and how a bench ends those it started."""

import os
import resource
import signal
import socket
import subprocess
import time

HERTZ = os.sysconf("SC_CLK_TCK")

# A process that does not end by itself within this is killed.
END_S_MAX = 30


def cpu_us(pids):
    """User and system time of these processes together, microseconds. One that has ended counts nothing."""
    ticks = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rsplit(") ", 1)[1].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks * 1_000_000 // HERTZ


def rss_mb(pid):
    """Resident memory, megabytes."""
    with open(f"/proc/{pid}/status") as file:
        line = next(line for line in file if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e6


def disk_mb(directory):
    """What the files in a directory take on disk, megabytes."""
    total = 0
    for top, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(top, name)).st_blocks * 512
            except FileNotFoundError:
                pass  # Removed meanwhile.
    return total / 1e6


def wait_calm(pids, share=0.10, looks=3, look_s=0.5, at_most_s=60):
    """Waits until these processes together use less than this share of a core, so many looks in a row; whether they do."""
    until, calm = time.monotonic() + at_most_s, 0
    while calm < looks:
        before, began = cpu_us(pids), time.monotonic()
        time.sleep(look_s)
        used = (cpu_us(pids) - before) / 1e6 / (time.monotonic() - began)
        calm = calm + 1 if used < share else 0
        if time.monotonic() > until:
            return False
    return True


def start(command, log_path, **options):
    """Starts a server in a group of its own, so that Ctrl-C is the bench's alone to pass on."""
    with open(log_path, "ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                start_new_session=True, **options)


def wait_listening(target, at_most_s=10):
    """Waits until something takes connections at HOST:PORT."""
    host, port = target.rsplit(":", 1)
    until = time.monotonic() + at_most_s
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def end(process, how=signal.SIGTERM):
    """Ends a process that was started here."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(END_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def raise_file_limit():
    """Lets this process and those it starts have as many open files as the system allows; how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
