#!/usr/bin/env python3
"""What goes over an SSH line: bytes and time of backups with diskvault, borg and rsync, of a disk of which nothing
changed and of one of which 1 % did, with and without a change list.

benches/line.py --diskvault target/release/diskvault --work /var/tmp/line [--gib 10] [--mbit 10] [--milliseconds 100]

An sshd of its own listens on loopback; between it and the clients is a relay that counts. The first backup of the disk
goes through it without limits. Then nothing changes; then 1 % does, in runs of 2 MiB and in scattered writes of 4 KiB;
each state is backed up by each program, with the bytes of both directions told. At last 1 % changes once more and the
relay becomes a line of so many Mbit/s and milliseconds of round trip: the time is told beside bytes over rate.

Needs sshd, and borg and rsync for their rows. Takes three times the disk, in --work."""

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time

from hints import change, fill
from relay import Relay

PASSWORD = "a long passphrase"
MIB = 1 << 20


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Sshd:
    """An sshd with a key of its own, for the user who runs this."""

    def __init__(self, folder):
        os.makedirs(folder, mode=0o700)
        self.folder = folder
        self.port = free_port()
        for name in ("host", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.path(name)], check=True)
        shutil.copy(self.path("key.pub"), self.path("authorized"))
        os.makedirs("/run/sshd", exist_ok=True)
        with open(self.path("config"), "w") as file:
            file.write(f"""Port {self.port}
ListenAddress 127.0.0.1
HostKey {self.path("host")}
PidFile {self.path("pid")}
AuthorizedKeysFile {self.path("authorized")}
StrictModes no
PasswordAuthentication no
UsePAM no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
""")
        self.process = subprocess.Popen([shutil.which("sshd", path="/usr/sbin:/usr/bin"), "-D", "-f", self.path("config"),
                                         "-E", self.path("log")])
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                time.sleep(0.05)
        sys.exit("sshd does not start")

    def path(self, name):
        return os.path.join(self.folder, name)

    def command(self, port):
        """How it is reached through a relay."""
        return (f"ssh -p {port} -i {self.path('key')} -o IdentitiesOnly=yes -o BatchMode=yes "
                f"-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR")

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Bench:
    def __init__(self, options):
        self.options = options
        self.disk = self.path("disk")
        self.sshd = Sshd(self.path("ssh"))
        self.line = None
        for name in ("home", "far"):
            os.makedirs(self.path(name))

    def path(self, name):
        return os.path.join(self.options.work, name)

    def environment(self):
        command = self.sshd.command(self.line.port)
        return {
            "PATH": os.environ["PATH"], "HOME": self.path("home"),
            "DISKVAULT_REPOSITORY": f"ssh://127.0.0.1{self.path('far/vault')}",
            "DISKVAULT_PASSWORD": PASSWORD, "DISKVAULT_CACHE_DIR": self.path("home/cache"),
            "DISKVAULT_SSH_COMMAND": command, "DISKVAULT_REMOTE_PROGRAM": self.options.diskvault,
            "BORG_RSH": command, "BORG_REPO": f"ssh://127.0.0.1{self.path('far/borg')}", "BORG_PASSPHRASE": PASSWORD,
            "BORG_BASE_DIR": self.path("home/borg"), "RSYNC_RSH": command,
        }

    def run(self, title, command):
        """Runs a command; what it printed, with the bytes up and down and the seconds it took told."""
        before, began = self.line.count(), time.monotonic()
        done = subprocess.run(command, env=self.environment(), stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.monotonic() - began
        up, down = (after - first for after, first in zip(self.line.count(), before))
        print(f"  {title:34} {up / MIB:10.2f} up {down / MIB:9.2f} down MiB {seconds:9.2f} s", flush=True)
        return done.stdout, up, down, seconds

    def diskvault(self, title, *more):
        text, up, down, seconds = self.run(title, [self.options.diskvault, "backup", "--json", "--name", "vm", *more,
                                                   f"--disk=vda={self.disk}"])
        return json.loads(text.splitlines()[-1])["point_id"], up, down, seconds

    def each(self, what, listed, base):
        """A backup of the present state by each program; the new point."""
        print(what)
        point = base
        if listed is not None:
            with open(self.path("list"), "w") as file:
                file.write(listed)
            point, *_ = self.diskvault("diskvault, with a list", "--base", base, "--changed", self.path("list"))
            # The same state once more, from the same base: nothing may be known of it.
            self.forget(point)
        point, *_ = self.diskvault("diskvault, reading all", "--full")
        if shutil.which("borg"):
            self.run("borg", ["borg", "create", "--chunker-params", "fixed,65536", f"::{time.monotonic_ns()}", self.disk])
        if shutil.which("rsync"):
            self.run("rsync --inplace", ["rsync", "--inplace", "--ignore-times", "--no-whole-file", self.disk, f"127.0.0.1:{self.path('far/copy')}"])
        return point

    def forget(self, point):
        quiet = {"stdout": subprocess.DEVNULL, "check": True, "env": self.environment()}
        for command in (["forget", "--force", point], ["prune", "--keep-forgotten", "0d"]):
            subprocess.run([self.options.diskvault, *command], **quiet)

    def measure(self):
        options, generator = self.options, random.Random(1)
        size = options.gib << 30
        with open(self.disk, "wb") as file:
            file.truncate(size)
        fill(self.disk, generator, 0, size)
        self.line = Relay(self.sshd.port)
        quiet = {"stdout": subprocess.DEVNULL, "check": True, "env": self.environment()}
        subprocess.run([options.diskvault, "init", "--no-recovery-key"], **quiet)
        if shutil.which("borg"):
            subprocess.run(["borg", "init", "-e", "repokey-blake2"], **quiet)
        print(f"disk of {options.gib} GiB, all data")
        point = self.each("first", None, None)
        empty = self.each("unchanged", "", point)
        runs = self.each("1 % changed, runs of 2 MiB", change(self.disk, generator, size, 0.01, 2 * MIB), empty)
        small = self.each("1 % changed, 4 KiB scattered", change(self.disk, generator, size, 0.01, 4 << 10), runs)
        rate = options.mbit * 1_000_000 // 8
        self.line = Relay(self.sshd.port, rate, options.milliseconds / 1000)
        print(f"a line of {options.mbit} Mbit/s and {options.milliseconds} ms")
        with open(self.path("list"), "w") as file:
            file.write(change(self.disk, generator, size, 0.01, 2 * MIB))
        for title, more in (("diskvault, with a list", ["--base", small, "--changed", self.path("list")]),
                            ("diskvault, unchanged", ["--full"])):
            _, up, down, seconds = self.diskvault(title, *more)
            print(f"    {seconds / (max(up, down) / rate):.3f} of bytes over rate")

    def end(self):
        self.sshd.stop()


def main():
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--diskvault", required=True)
    parser.add_argument("--work", required=True)
    for name, default in (("gib", 10), ("mbit", 10), ("milliseconds", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    options.diskvault = os.path.abspath(options.diskvault)
    if os.path.exists(options.work):
        sys.exit(f"{options.work} exists")
    os.makedirs(options.work)
    bench = Bench(options)
    try:
        bench.measure()
    finally:
        bench.end()
        shutil.rmtree(options.work)


if __name__ == "__main__":
    main()
