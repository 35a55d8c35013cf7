#!/usr/bin/env python3
"""How long a client of serve-nbd waits for 4 KiB anywhere on a disk, and how fast it copies all of it.

benches/nbd.py --diskvault target/release/diskvault --work /var/tmp/nbd [--gib 4] [--reads 1000] [--runs 3]

A disk of half data is backed up on two days, 1 % apart. The newer point is served on a Unix socket, and beside it the raw
file by qemu-nbd. One client reads 4 KiB at random places of the data, one read after the other: first with a server that
has just started and with empty page caches, which needs root; then at other places of the same disk; then at the first
places again. `nbdcopy` then copies all of the disk to nowhere, with its own number of connections. All of it is done
--runs times, with other places; the times of single reads are those of all runs together. Every byte read is compared.
Takes twice the disk in --work. Python's standard library, qemu-nbd and nbdcopy only."""

import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import time

import ways_back
from ways_back import PIECE, drop_caches, fill

BLOCK = 4096


class Client:
    """As little of the protocol as single reads need."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.take(18)
        self.socket.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 0))
        self.take(10)

    def take(self, count):
        taken = b""
        while len(taken) < count:
            more = self.socket.recv(count - len(taken))
            if not more:
                sys.exit("the server hung up")
            taken += more
        return taken

    def read(self, offset):
        """The block, and the seconds until it was there."""
        began = time.monotonic()
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, offset, BLOCK))
        error = struct.unpack(">I", self.take(16)[4:8])[0]
        data = self.take(BLOCK)
        if error:
            sys.exit(f"cannot read at {offset}: error {error}")
        return data, time.monotonic() - began


class Bench(ways_back.Bench):
    def __init__(self, options):
        super().__init__(options)
        self.reads, self.copies = {}, {}

    def run(self, *arguments):
        subprocess.run([self.options.diskvault, "--quiet", *arguments], env=self.environment, check=True,
                       stdout=subprocess.DEVNULL)

    def prepare(self):
        size, generator = self.options.gib << 30, random.Random(5)
        self.run("init", "--no-recovery-key")
        fill(self.path("disk"), generator, size)
        self.run("backup", "--name", "vm", "--disk", f"vda={self.path('disk')}")
        self.pieces = [at for at in range(0, size, PIECE) if at % (128 << 20) < 64 << 20]
        with open(self.path("disk"), "r+b") as file:
            for at in generator.sample(self.pieces, len(self.pieces) // 100):
                file.seek(at)
                file.write(generator.randbytes(PIECE))
        self.run("backup", "--name", "vm", "--disk", f"vda={self.path('disk')}")

    def places(self, generator):
        within = PIECE // BLOCK
        return [generator.choice(self.pieces) + generator.randrange(within) * BLOCK for _ in range(self.options.reads)]

    def started(self, server):
        """A server that takes clients, and the seconds until it did."""
        path = self.path("socket")
        commands = {
            "serve-nbd": [self.options.diskvault, "--quiet", "serve-nbd", "vm", "--socket", path],
            "qemu-nbd": ["qemu-nbd", "--read-only", "--persistent", "--shared", "16", "--format", "raw",
                         "--socket", path, self.path("disk")],
        }
        began = time.monotonic()
        process = subprocess.Popen(commands[server], env=self.environment, stdout=subprocess.DEVNULL)
        while True:
            try:
                socket.socket(socket.AF_UNIX).connect(path)
                return process, time.monotonic() - began
            except OSError:
                time.sleep(0.001)

    def measure(self):
        self.prepare()
        with open(self.path("disk"), "rb") as disk:
            for number in range(self.options.runs):
                for server in ["serve-nbd", "qemu-nbd"]:
                    generator = random.Random(100 + number)
                    first, others = self.places(generator), self.places(generator)
                    drop_caches()
                    process, seconds = self.started(server)
                    self.reads.setdefault((server, "until it takes clients"), []).append(seconds)
                    client = Client(self.path("socket"))
                    for name, places in [("just started", first), ("other places", others), ("the first again", first)]:
                        times = self.reads.setdefault((server, name), [])
                        for at in places:
                            data, seconds = client.read(at)
                            times.append(seconds)
                            if data != os.pread(disk.fileno(), BLOCK, at):
                                sys.exit(f"{server}: other bytes at {at}")
                            if name == "just started" and server == "qemu-nbd":
                                # What was compared must not be what the next read finds in memory.
                                os.posix_fadvise(disk.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    for name, is_cold in [("nbdcopy, caches empty", True), ("nbdcopy, caches full", False)]:
                        if is_cold:
                            drop_caches()
                        began = time.monotonic()
                        uri = f"nbd+unix:///?socket={self.path('socket')}"
                        subprocess.run(["nbdcopy", uri, "null:"], check=True)
                        self.copies.setdefault((server, name), []).append(time.monotonic() - began)
                    process.terminate()
                    process.wait()
                    if os.path.exists(self.path("socket")):
                        os.unlink(self.path("socket"))
        self.print()

    def print(self):
        print("| 4 KiB | serve-nbd: median | p99 | qemu-nbd on the raw file: median | p99 |\n|---|---|---|---|---|")
        for name in ["just started", "other places", "the first again"]:
            cells = []
            for server in ["serve-nbd", "qemu-nbd"]:
                times = sorted(self.reads[server, name])
                cells += [statistics.median(times), times[int(len(times) * 0.99)]]
            print(f"| {name} | " + " | ".join(f"{seconds * 1000:.2f} ms" for seconds in cells) + " |")
        print("\n| all of it | serve-nbd | qemu-nbd on the raw file |\n|---|---|---|")
        rows = {**{key: value for key, value in self.reads.items() if "until" in key[1]}, **self.copies}
        for name in dict.fromkeys(name for _, name in rows):
            cells = [statistics.median(rows[server, name]) for server in ["serve-nbd", "qemu-nbd"]]
            print(f"| {name} | " + " | ".join(f"{seconds:.2f} s" for seconds in cells) + " |")


if __name__ == "__main__":
    ways_back.main(__doc__, Bench, gib=4, reads=1000, runs=3)
