"""What this machine can do at best: the limits that figures are held against."""

import os
import platform
import socket
import tempfile
import threading
import time


def describe():
    """The machine in a line, with how busy it is already."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, load average {os.getloadavg()[0]:.1f}"


def sync_us(directory, count=300, size=256):
    """How long an append of so many bytes and an fdatasync take: median and 99th percentile, microseconds."""
    block, took = b"x" * size, []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(count):
            began = time.perf_counter()
            os.write(file.fileno(), block)
            os.fdatasync(file.fileno())
            took.append((time.perf_counter() - began) * 1e6)
    took.sort()
    return took[count // 2], took[count * 99 // 100]


def disk_write_mb_s(directory, size_mb=256, block_kb=1024):
    """Sequential writing with one sync at the end, megabytes a second."""
    block = os.urandom(block_kb * 1024)
    with tempfile.TemporaryFile(dir=directory) as file:
        began = time.perf_counter()
        for _ in range(size_mb * 1024 // block_kb):
            file.write(block)
        file.flush()
        os.fdatasync(file.fileno())
        return size_mb * 1.048576 / (time.perf_counter() - began)


def loopback_mb_s(size_mb=1024, block_kb=256):
    """One stream over the loopback interface, megabytes a second."""
    listener = socket.create_server(("127.0.0.1", 0))
    block, left = b"x" * (block_kb * 1024), size_mb * 1024 // block_kb

    def send():
        with socket.create_connection(listener.getsockname()) as stream:
            for _ in range(left):
                stream.sendall(block)

    sender = threading.Thread(target=send)
    sender.start()
    stream, _ = listener.accept()
    got, room, began = 0, bytearray(1 << 20), time.perf_counter()
    while count := stream.recv_into(room):
        got += count
    took_s = time.perf_counter() - began
    sender.join()
    stream.close()
    listener.close()
    return got / 1e6 / took_s
