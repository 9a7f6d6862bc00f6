"""A load generator for etcd in a closed loop: as much of HTTP/2, gRPC and etcd's messages as Put and Range need.

    etcd_client.py PORT load|write|read|weak-read CONNECTIONS STREAMS SECONDS KEYS KEY_BYTES VALUE_BYTES

Each connection sends so many requests at once, one in a stream each, and the next when all are answered, as
`mydatastore bench -P` does. It prints one line of JSON.

What it leaves out: compressed headers (a request's take some 150 bytes), flow control beyond a window that is opened wide at
the start, and the text of errors: a request whose answer carries no message has failed.
"""

import json
import os
import random
import select
import socket
import struct
import sys
import time

DATA, HEADERS, RESET, SETTINGS, PING, GO_AWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
WINDOW = (1 << 31) - 1 - 65_535
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, body):
    return struct.pack(">I", len(body))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + body


def header(name, value):
    """A header as HPACK writes one that is to be remembered by nobody."""
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


def headers(path):
    # :method POST and :scheme http stand in HPACK's own table.
    return (b"\x83\x86" + header(b":path", path) + header(b":authority", b"127.0.0.1")
            + header(b"content-type", b"application/grpc") + header(b"te", b"trailers"))


PUT, RANGE = headers(b"/etcdserverpb.KV/Put"), headers(b"/etcdserverpb.KV/Range")


def field(number, value):
    """A field of bytes, shorter than 16 KiB."""
    length = len(value)
    size = bytes((length,)) if length < 128 else bytes((length & 127 | 128, length >> 7))
    return bytes((number << 3 | 2,)) + size + value


def request(stream, what, key, value):
    if what in ("load", "write"):
        head, message = PUT, field(1, key) + field(2, value)
    else:
        # Field 7, serializable: the member answers alone.
        head, message = RANGE, field(1, key) + (b"\x38\x01" if what == "weak-read" else b"")
    body = b"\x00" + struct.pack(">I", len(message)) + message
    return frame(HEADERS, END_HEADERS, stream, head) + frame(DATA, END_STREAM, stream, body)


class Connection:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # No server push, no remembered headers, streams as wide as the connection.
        settings = b"".join(struct.pack(">HI", *setting) for setting in ((1, 0), (2, 0), (4, (1 << 31) - 1)))
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, settings)
                            + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", WINDOW)))
        self.input, self.stream, self.left, self.sent = b"", 1, 0, 0.0
        self.with_message = set()

    def send(self, requests):
        """(what, key, value) each."""
        out = []
        for what, key, value in requests:
            out.append(request(self.stream, what, key, value))
            self.stream += 2
        self.left, self.sent = len(out), time.perf_counter()
        self.socket.sendall(b"".join(out))

    def receive(self):
        """How many requests were answered well, and how many were not."""
        self.input += self.socket.recv(262_144) or sys.exit("etcd closed the connection")
        at, good, bad = 0, 0, 0
        while len(self.input) - at >= 9:
            size = int.from_bytes(self.input[at:at + 3], "big")
            if len(self.input) - at < 9 + size:
                break
            kind, flags = self.input[at + 3], self.input[at + 4]
            stream = int.from_bytes(self.input[at + 5:at + 9], "big")
            if kind == DATA and size > 5:
                self.with_message.add(stream)
            elif kind == SETTINGS and not flags & ACK:
                self.socket.sendall(frame(SETTINGS, ACK, 0, b""))
            elif kind == PING and not flags & ACK:
                self.socket.sendall(frame(PING, ACK, 0, self.input[at + 9:at + 17]))
            elif kind == GO_AWAY:
                sys.exit("etcd sent the connection away")
            if kind == RESET or (kind in (HEADERS, DATA) and flags & END_STREAM):
                good += stream in self.with_message
                bad += stream not in self.with_message
                self.with_message.discard(stream)
            at += 9 + size
        self.input = self.input[at:]
        self.left -= good + bad
        return good, bad


def main():
    port, what = int(sys.argv[1]), sys.argv[2]
    connections, streams, seconds = int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
    keys, key_bytes, value_bytes = map(int, sys.argv[6:9])
    value = os.urandom(value_bytes)
    chosen, loaded = random.Random(1), iter(range(keys))
    prefix = b"key:"

    def requests():
        for _ in range(streams):
            number = next(loaded, None) if what == "load" else chosen.randrange(keys)
            if number is not None:
                yield what, prefix + str(number).zfill(key_bytes - len(prefix)).encode(), value

    all_connections, epoll = {}, select.epoll()
    for _ in range(connections):
        connection = Connection(port)
        all_connections[connection.socket.fileno()] = connection
        epoll.register(connection.socket, select.EPOLLIN)
    before, began = time.process_time(), time.perf_counter()
    took_ms, errors, busy = [], 0, connections
    for connection in all_connections.values():
        connection.send(requests())
    while busy:
        for fd, _ in epoll.poll(30) or sys.exit("etcd has not answered for 30 s"):
            connection = all_connections[fd]
            good, bad = connection.receive()
            now = time.perf_counter()
            took_ms.extend([(now - connection.sent) * 1e3] * good)
            errors += bad
            if connection.left == 0 and (good or bad):
                following = list(requests()) if what == "load" or now - began < seconds else []
                if following:
                    connection.send(following)
                else:
                    busy -= 1
    took_s = time.perf_counter() - began
    took_ms.sort()
    at = lambda share: took_ms[int(share * (len(took_ms) - 1))] if took_ms else 0
    print(json.dumps({"ops": len(took_ms), "seconds": took_s, "errors": errors, "p50_ms": at(0.5), "p99_ms": at(0.99),
                      "driver_us": int((time.process_time() - before) * 1e6)}))


if __name__ == "__main__":
    main()
