#!/usr/bin/env python3
"""What it costs to bring a file that is there to a point: bytes read and written, and time.

benches/targets.py --diskvault target/release/diskvault --work /var/tmp/targets [--gib 4] [--runs 3]

A disk of half data has two points, 1 % apart in runs of 1 MiB. A target is brought to the second one when it is

  known      the first point, restored by this host and not touched since
  unknown    the same bytes, but nobody remembers
  other      quite another disk of the same size, as unknown
  equal      the second point already, as unknown

by `restore --in-place`, beside a full restore into a new file, `rsync --inplace` and `cp --sparse=always` of the second
disk. What is read and written is what the machine's disks count meanwhile, so nothing else should run. Every command
starts with empty caches, which needs root, and ends with what it wrote on the medium; after each run the target is
compared with the disk. Takes five times half the disk, in --work. Python's standard library and rsync only."""

import filecmp
import json
import os
import random
import statistics
import subprocess
import sys
import time

import ways_back
from ways_back import PIECE, drop_caches, fill


def change(path, generator, size, share):
    """Overwrites a share of the data in runs of 1 MiB."""
    pieces = [at for at in range(0, size, PIECE) if at % (128 << 20) < 64 << 20]
    with open(path, "r+b") as file:
        for at in generator.sample(pieces, max(1, int(len(pieces) * share))):
            file.seek(at)
            file.write(generator.randbytes(PIECE))


def measured(command, environment):
    """Seconds up to the medium, bytes read from it and written to it."""
    drop_caches()
    before = counted()
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command}: {done.returncode}: {done.stderr}")
    os.sync()
    seconds = time.monotonic() - began
    after = counted()
    return seconds, after[0] - before[0], after[1] - before[1]


def counted():
    """Sectors that all disks of this machine have read and written, as bytes."""
    read = written = 0
    for name in os.listdir("/sys/block"):
        if name.startswith(("loop", "ram", "dm-", "zram")):
            continue
        with open(f"/sys/block/{name}/stat") as file:
            numbers = file.read().split()
        read += int(numbers[2]) * 512
        written += int(numbers[6]) * 512
    return read, written


class Bench(ways_back.Bench):
    def __init__(self, options):
        super().__init__(options)
        self.size = options.gib << 30
        self.program = [options.diskvault, "--quiet", "--json"]
        self.rows = {}

    def run(self, *arguments):
        done = subprocess.run([*self.program, *arguments], env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{arguments}: {done.returncode}: {done.stderr}")
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}

    def note(self, row, result):
        self.rows.setdefault(row, []).append(result)
        if not filecmp.cmp(self.path("target"), self.path("new"), shallow=False):
            sys.exit(f"{row}: the target is not the disk")

    def prepare(self, what):
        """Makes the target what a row says."""
        if os.path.exists(self.path("target")):
            os.unlink(self.path("target"))
        if what == "new":
            return
        if what == "known":
            self.run("restore", "--in-place", self.first, self.path("target"))
            return
        source = {"unknown": "old", "equal": "new", "other": "other"}[what]
        subprocess.run(["cp", "--sparse=always", self.path(source), self.path("target")], check=True)
        for folder, _, names in os.walk(self.path("cache")):
            if os.path.basename(folder) == "targets":
                for name in names:
                    os.unlink(os.path.join(folder, name))

    def measure(self):
        generator = random.Random(1)
        fill(self.path("old"), generator, self.size)
        fill(self.path("other"), random.Random(2), self.size)
        self.run("init", "--no-recovery-key")
        disk = f"disk={self.path('old')}"
        self.first = self.run("backup", "--name", "vm", "--disk", disk)["point_id"]
        subprocess.run(["cp", "--sparse=always", self.path("old"), self.path("new")], check=True)
        change(self.path("new"), generator, self.size, 0.01)
        disk = f"disk={self.path('new')}"
        second = self.run("backup", "--name", "vm", "--disk", disk)["point_id"]
        new, target = self.path("new"), self.path("target")
        for _ in range(self.options.runs):
            self.prepare("new")
            self.note("full restore", measured([*self.program, "restore", second, target], self.environment))
            for what in ["known", "unknown", "equal", "other"]:
                self.prepare(what)
                command = [*self.program, "restore", "--in-place", second, target]
                self.note(f"in place, {what}", measured(command, self.environment))
            for what in ["unknown", "other"]:
                self.prepare(what)
                command = ["rsync", "--inplace", "--no-whole-file", new, target]
                self.note(f"rsync --inplace, {what}", measured(command, self.environment))
            self.prepare("new")
            self.note("cp --sparse=always", measured(["cp", "--sparse=always", new, target], self.environment))
        self.print()

    def print(self):
        print("| | time | read | written |\n|---|---|---|---|")
        for row, results in self.rows.items():
            seconds, read, written = (statistics.median(column) for column in zip(*results))
            print(f"| {row} | {seconds:.2f} s | {read / 2**20:.0f} MiB | {written / 2**20:.0f} MiB |")


if __name__ == "__main__":
    ways_back.main(__doc__, Bench, gib=4, runs=3)
