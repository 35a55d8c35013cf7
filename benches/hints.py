#!/usr/bin/env python3
"""What a change list saves: bytes read and wall time of a backup with it, without it, and of b3sum.

benches/hints.py --diskvault target/release/diskvault --work /var/tmp/hints [--gib 20] [--runs 3]

Two things are measured. First a disk that is all data, of which 1 % changes between points, in runs of 2 MiB and in
scattered writes of 4 KiB; each state is backed up with a list of what has changed into one repository and without into
another. Then sparse disks of 1, 10 and 100 GiB with the same data and the same change, with a list.

Every command starts with empty caches of the kernel, which needs root. Takes three times the disk, in --work.
Python's standard library and b3sum only."""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time

PIECE = 64 << 10
PASSWORD = "a long passphrase"


def drop_caches():
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


def fill(disk, generator, start, end):
    """Data of which a quarter does not compress."""
    with open(disk, "r+b") as file:
        file.seek(start)
        for _ in range(start, end, PIECE):
            noise = generator.randbytes(PIECE // 4)
            file.write(noise + noise[:4096] * 12)


def change(disk, generator, extent, share, step):
    """Overwrites a share of the first `extent` bytes in steps; what it has written, as a change list."""
    count = max(1, int(extent * share / step))
    places = sorted(generator.sample(range(extent // step), count))
    with open(disk, "r+b") as file:
        for place in places:
            file.seek(place * step)
            file.write(generator.randbytes(step))
        os.fsync(file.fileno())
    return "".join(f"{place * step} {step}\n" for place in places)


class Vault:
    def __init__(self, options, name):
        self.program = options.diskvault
        self.folder = os.path.join(options.work, name)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": options.work,
            "DISKVAULT_REPOSITORY": self.folder,
            "DISKVAULT_PASSWORD": PASSWORD,
            "DISKVAULT_CACHE_DIR": os.path.join(options.work, name + "-cache"),
        }
        self.run("init", "--no-recovery-key")

    def run(self, *arguments):
        done = subprocess.run([self.program, "--quiet", "--json", *arguments], env=self.environment,
                              capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{arguments}: {done.returncode}: {done.stderr}")
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}

    def backup(self, disk, *further):
        drop_caches()
        began = time.monotonic()
        summary = self.run("backup", "--name", "disk", "--disk", f"disk={disk}", *further)
        return time.monotonic() - began, summary["read_bytes"]


def b3sum(disk):
    drop_caches()
    began = time.monotonic()
    subprocess.run(["b3sum", "--no-mmap", disk], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def median(pairs):
    return [statistics.median(column) for column in zip(*pairs)]


def changed_percent(options):
    disk, size = os.path.join(options.work, "disk.raw"), options.gib << 30
    generator = random.Random(1)
    with open(disk, "wb") as file:
        file.truncate(size)
    fill(disk, generator, 0, size)
    by_list, in_full = Vault(options, "by-list"), Vault(options, "in-full")
    for vault in (by_list, in_full):
        vault.backup(disk)
    print(f"\n{options.gib} GiB of data, 1 % changed, medians of {options.runs} rounds\n")
    print("| change | | wall s | of b3sum | GiB read |\n|---|---|---|---|---|")
    for name, step in (("runs of 2 MiB", 2 << 20), ("scattered 4 KiB", 4 << 10)):
        hinted, brief, full, sums = [], [], [], []
        for _ in range(options.runs):
            changes = os.path.join(options.work, "changes")
            for times, further in ((brief, ["--reread", "1/100"]), (hinted, [])):
                with open(changes, "w") as file:
                    file.write(change(disk, generator, size, 0.01, step))
                times.append(by_list.backup(disk, "--base", "disk", "--changed", changes, *further))
                if times is brief:
                    in_full.backup(disk, "--full")
            full.append(in_full.backup(disk, "--full"))
            sums.append((b3sum(disk), size))
        yardstick = median(sums)
        rows = {
            "with a list": median(hinted),
            "with a list, `--reread 1/100`": median(brief),
            "without": median(full),
            "b3sum": yardstick,
        }
        for what, (wall, read) in rows.items():
            print(f"| {name} | {what} | {wall:.2f} | {wall / yardstick[0]:.2f} | {read / 2**30:.2f} |")
            sys.stdout.flush()
    os.remove(disk)
    for name in ("by-list", "in-full"):
        shutil.rmtree(os.path.join(options.work, name))


def growing_disks(options):
    print("\nSparse disks with 512 MiB of data, 16 MiB of it changed in runs of 64 KiB\n")
    print("| disk | wall s | MiB read |\n|---|---|---|")
    for gib in (1, 10, 100):
        disk, data = os.path.join(options.work, "sparse.raw"), 512 << 20
        generator = random.Random(2)
        with open(disk, "wb") as file:
            file.truncate(gib << 30)
        fill(disk, generator, 0, data)
        vault = Vault(options, f"sparse-{gib}")
        vault.backup(disk)
        rounds = []
        for _ in range(options.runs):
            changes = os.path.join(options.work, "changes")
            with open(changes, "w") as file:
                file.write(change(disk, generator, data, 1 / 32, 64 << 10))
            rounds.append(vault.backup(disk, "--base", "disk", "--changed", changes))
        wall, read = median(rounds)
        print(f"| {gib} GiB | {wall:.2f} | {read / 2**20:.0f} |")
        sys.stdout.flush()
        os.remove(disk)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diskvault", required=True)
    parser.add_argument("--work", required=True, help="a new folder")
    parser.add_argument("--gib", type=int, default=20)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    options.diskvault = os.path.abspath(options.diskvault)
    os.makedirs(options.work)
    growing_disks(options)
    changed_percent(options)
    shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
