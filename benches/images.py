#!/usr/bin/env python3
"""What it takes to restore a disk as an image of each format, beside qemu-img convert of the raw disk.

benches/images.py --diskvault target/release/diskvault --work /var/tmp/images [--gib 2] [--runs 3]

A disk of half data, of which a quarter does not compress, in the page cache as its repository is. `restore --format` reads,
opens, decompresses and verifies every byte and ends with the image on the medium; `qemu-img convert` reads the raw file,
and sync follows. Both take turns, and each image is compared with the disk by qemu-img. Takes four times half the disk
in --work. Python's standard library and qemu-img only."""

import os
import random
import statistics
import subprocess
import sys
import time

import ways_back
from ways_back import fill

# A name, options of restore, and of qemu-img convert.
FORMATS = [
    ("raw", [], ["-O", "raw"]),
    ("qcow2", ["--format", "qcow2"], ["-O", "qcow2"]),
    ("qcow2 --compress", ["--format", "qcow2", "--compress"], ["-c", "-O", "qcow2"]),
    ("qcow2 --compress=zstd", ["--format", "qcow2", "--compress=zstd"],
     ["-c", "-O", "qcow2", "-o", "compression_type=zstd"]),
    ("vmdk", ["--format", "vmdk"], ["-O", "vmdk"]),
    ("vmdk-stream", ["--format", "vmdk-stream"], ["-O", "vmdk", "-o", "subformat=streamOptimized"]),
    ("vhd", ["--format", "vhd"], ["-O", "vpc", "-o", "force_size=on"]),
    ("vhdx", ["--format", "vhdx"], ["-O", "vhdx"]),
]


class Bench(ways_back.Bench):
    def seconds(self, *command):
        """Until what it wrote is on the medium."""
        os.sync()
        began = time.monotonic()
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{command}: {done.returncode}: {done.stderr}")
        os.sync()
        return time.monotonic() - began

    def kept(self, image, kind):
        """MiB of storage of an image that is the disk; it goes then."""
        subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", kind, self.path("disk"), image], check=True)
        mib = os.stat(image).st_blocks * 512 / 2**20
        os.unlink(image)
        return mib

    def measure(self):
        program = [self.options.diskvault, "--quiet"]
        self.seconds(*program, "init", "--no-recovery-key")
        fill(self.path("disk"), random.Random(7), self.options.gib << 30)
        self.seconds(*program, "backup", "--name", "vm", "--disk", f"vda={self.path('disk')}")
        rows = {name: [] for name, *_ in FORMATS}
        image = self.path("image")
        for _ in range(self.options.runs):
            for name, restore, convert in FORMATS:
                kind = convert[convert.index("-O") + 1]
                ours = self.seconds(*program, "restore", "vm", image, *restore)
                our_mib = self.kept(image, kind)
                theirs = self.seconds("qemu-img", "convert", "-f", "raw", *convert, self.path("disk"), image)
                rows[name].append((ours, our_mib, theirs, self.kept(image, kind)))
        print("| | restore s | MiB | `qemu-img convert` s | MiB | times as fast |\n|---|---|---|---|---|---|")
        for name, found in rows.items():
            ours, our_mib, theirs, their_mib = (statistics.median(column) for column in zip(*found))
            ratio = statistics.median(theirs / ours for ours, _, theirs, _ in found)
            print(f"| `{name}` | {ours:.2f} | {our_mib:.0f} | {theirs:.2f} | {their_mib:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    ways_back.main(__doc__, Bench, gib=2, runs=3)
