#!/usr/bin/env python3
"""How near a restore comes to what it costs at least: the newest and the oldest point of a long history, and one disk of
a machine with five.

benches/restores.py --diskvault target/release/diskvault --limit target/release/examples/restore_limit \\
    --work /var/tmp/restores [--gib 2] [--days 60] [--runs 3]

The limit reads, opens, decompresses and hashes the same segments on all cores and writes a sparse file, without a
repository; what it needs to know is gathered before its clock starts, while a restore's time has everything, from the
key slot (0.1 s of Argon2id) to the last fsync. On each day 1 % of the disk's data changes: half of it in a tenth of
the disk, as databases do, in runs of 16 KiB to 1 MiB. Both take turns, the page cache holds the repository, and each
restored file is compared. Takes six times --gib in --work. Python's standard library only."""

import filecmp
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time

import ways_back
from ways_back import PIECE, fill


def change(path, generator, size):
    left = size // 2 // 100
    with open(path, "r+b") as file:
        while left > 0:
            bytes_ = 16384 << generator.randrange(7)
            area = size // 10 if generator.random() < 0.5 else size
            block = generator.randrange(area // PIECE)
            if block * PIECE % (128 << 20) >= 64 << 20:
                continue
            file.seek(block * PIECE + generator.randrange((PIECE - bytes_) // 4096 + 1) * 4096)
            noise = generator.randbytes(bytes_ // 4)
            file.write(noise + noise[:4096] * (3 * bytes_ // 4 // 4096) if bytes_ > 16384 else noise * 4)
            left -= bytes_


class Bench(ways_back.Bench):
    def output(self, command):
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{command}: {done.returncode}: {done.stderr}")
        return done.stdout

    def run(self, *arguments):
        return self.output([self.options.diskvault, "--quiet", "--json", *arguments])

    def backup(self, name, *disks):
        arguments = [part for disk in disks for part in ("--disk", f"{disk}={self.path(disk)}")]
        return json.loads(self.run("backup", "--name", name, *arguments).splitlines()[-1])["point_id"]

    def pair(self, point, disk, original):
        """Seconds of a restore and of the limit."""
        target, address = self.path("target"), f"{point}/{disk}"
        began = time.monotonic()
        self.run("restore", address, target)
        seconds = time.monotonic() - began
        if not filecmp.cmp(target, self.path(original), shallow=False):
            sys.exit(f"{address}: the target is not the disk")
        os.unlink(target)
        os.sync()
        limit = json.loads(self.output([self.options.limit, self.path("repository"), address, target]))
        os.unlink(target)
        os.sync()
        return seconds, limit["wall"], limit["segments"], limit["written_bytes"]

    def measure(self):
        size = self.options.gib << 30
        generator = random.Random(3)
        self.run("init", "--no-recovery-key")
        fill(self.path("disk"), generator, size)
        shutil.copy(self.path("disk"), self.path("first"))
        points = []
        for _ in range(self.options.days):
            points.append(self.backup("history", "disk"))
            change(self.path("disk"), generator, size)
        points.append(self.backup("history", "disk"))
        for number in range(5):
            fill(self.path(f"disk{number}"), random.Random(10 + number), size // 2)
        five = self.backup("five", *[f"disk{number}" for number in range(5)])
        rows = [
            (f"newest of {len(points)} points", points[-1], "disk", "disk"),
            ("oldest of them", points[0], "disk", "first"),
            ("one disk of five", five, "disk3", "disk3"),
        ]
        results = {row: [] for row, *_ in rows}
        for _ in range(self.options.runs):
            for row, point, disk, original in rows:
                results[row].append(self.pair(point, disk, original))
        print("| | restore | limit | ratio | segments | data |\n|---|---|---|---|---|---|")
        for row, found in results.items():
            seconds, limit, segments, written = (statistics.median(column) for column in zip(*found))
            print(f"| {row} | {seconds:.2f} s | {limit:.2f} s | {limit / seconds:.2f} "
                  f"| {segments:.0f} | {written / 2**20:.0f} MiB |")


if __name__ == "__main__":
    ways_back.main(__doc__, Bench, programs=["limit"], gib=2, days=60, runs=3)
