#!/usr/bin/env python3
"""What goes over an SSH line when the first backup did not: the repository was made here and carried to the far side, or
an old image that lay there was adopted. Both by a host that has no cache.

benches/seeding.py --diskvault target/release/diskvault --work /var/tmp/seeding [--gib 10]

An sshd of its own listens on loopback, and a relay counts. Takes four times the disk, in --work."""

import argparse
import os
import random
import shutil
import subprocess
import sys

from hints import change, fill
from line import MIB, Bench
from relay import Relay


class Seeding(Bench):
    def local(self, repository, *arguments):
        """Runs the program on a repository of this machine, with another cache than the host's."""
        environment = {**self.environment(), "DISKVAULT_REPOSITORY": self.path(repository),
                       "DISKVAULT_CACHE_DIR": self.path("far/cache")}
        subprocess.run([self.options.diskvault, *arguments], env=environment, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, check=True)

    def far(self, title):
        """Two backups over the line by a host without a cache."""
        shutil.rmtree(self.path("home/cache"), ignore_errors=True)
        for name in (f"{title}, first over the line", f"{title}, next"):
            self.diskvault(name, "--full")

    def measure(self):
        generator, size = random.Random(1), self.options.gib << 30
        with open(self.disk, "wb") as file:
            file.truncate(size)
        fill(self.disk, generator, 0, size)
        self.line = Relay(self.sshd.port)
        self.local("carried", "init", "--no-recovery-key")
        self.local("carried", "backup", "--name", "vm", f"--disk=vda={self.disk}")
        subprocess.run(["cp", "-a", self.path("carried"), self.path("far/vault")], check=True)
        subprocess.run(["cp", "--sparse=always", self.disk, self.path("far/old")], check=True)
        change(self.disk, generator, size, 0.01, 2 * MIB)
        print(f"disk of {self.options.gib} GiB, all data, 1 % changed in runs of 2 MiB")
        self.far("carried")
        shutil.rmtree(self.path("far/vault"))
        self.local("far/vault", "init", "--no-recovery-key")
        self.local("far/vault", "adopt", "--name", "vm", f"--disk=vda={self.path('far/old')}")
        self.far("adopted")


def main():
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--diskvault", required=True, type=os.path.abspath)
    parser.add_argument("--work", required=True, type=os.path.abspath)
    parser.add_argument("--gib", type=int, default=10)
    options = parser.parse_args()
    if os.path.exists(options.work):
        sys.exit(f"{options.work} exists")
    os.makedirs(options.work)
    bench = Seeding(options)
    try:
        bench.measure()
    finally:
        bench.end()
        shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
