"""A relay between a client and a server on this machine, which counts bytes, delays them and lets so many a second
pass: a line of 10 Mbit/s and 100 ms without a kernel that can make one.

Each direction is one queue for all connections, as a line is: bytes wait for their turn (a token bucket without
bursts beyond 64 KiB) and then half of the round trip. It can be told to cut all connections after some bytes."""

import collections
import socket
import threading
import time

PIECE = 16 << 10
# What may wait in a direction: more than the line holds in a round trip, so that it is never idle.
QUEUE_BYTES_MAX = 512 << 10


class Direction:
    """One direction of the line."""

    def __init__(self, rate, delay):
        self.rate, self.delay = rate, delay
        self.bytes = 0
        self.free = time.monotonic()

    def leave(self, count):
        """When bytes that are ready now arrive at the other end."""
        self.bytes += count
        now = time.monotonic()
        self.free = max(self.free, now)
        if self.rate:
            self.free += count / self.rate
        return self.free + self.delay


class Relay(threading.Thread):
    """Listens on a port of its own, `self.port`, and relays to `target`; `rate` in bytes a second, 0 for no limit."""

    def __init__(self, target, rate=0, round_trip=0.0):
        super().__init__(daemon=True)
        self.target = target
        self.up, self.down = Direction(rate, round_trip / 2), Direction(rate, round_trip / 2)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.sockets = []
        self.start()

    def run(self):
        while True:
            client, _ = self.listener.accept()
            server = socket.create_connection(("127.0.0.1", self.target))
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.sockets += [client, server]
            for source, sink, direction in ((client, server, self.up), (server, client, self.down)):
                self.pump(source, sink, direction)

    def pump(self, source, sink, direction):
        waiting = collections.deque()
        changed = threading.Condition()

        def take():
            while True:
                try:
                    data = source.recv(PIECE)
                except OSError:
                    data = b""
                with changed:
                    changed.wait_for(lambda: sum(len(d) for _, d in waiting) < QUEUE_BYTES_MAX)
                    with self.lock:
                        when = direction.leave(len(data))
                    waiting.append((when, data))
                    changed.notify_all()
                if not data:
                    return

        def give():
            while True:
                with changed:
                    changed.wait_for(lambda: waiting)
                    when, data = waiting[0]
                time.sleep(max(0.0, when - time.monotonic()))
                try:
                    if data:
                        sink.sendall(data)
                    else:
                        sink.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
                with changed:
                    waiting.popleft()
                    changed.notify_all()
                if not data:
                    return

        for work in (take, give):
            threading.Thread(target=work, daemon=True).start()

    def count(self):
        """Bytes that went up and down so far."""
        with self.lock:
            return self.up.bytes, self.down.bytes

    def cut(self):
        """Cuts every connection."""
        with self.lock:
            sockets, self.sockets = self.sockets, []
        for one in sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
