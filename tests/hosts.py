#!/usr/bin/env python3
"""Many hosts at once on one repository, killed and cut off at random: afterwards everything that was reported restores.

tests/hosts.py --diskvault target/release/diskvault --work /var/tmp/hosts --over ssh [--seconds 600] [--seed 1]
tests/hosts.py ... --over s3 [--server moto|PROGRAM]

Five hosts, each in a network namespace with a cache of its own: three write, each its own series and all of them one
more; one forgets and prunes; one restores and compares. Now and then one of them is killed, or its line is cut for some
seconds. The server is an sshd, moto_server, or a Garage (`--server` names its program), on the other side of a bridge.

At the end the lines are mended, and then `check --read-data` has to be clean and every point that was reported as done,
and not forgotten since, has to come back with the bytes that it was made of. Needs root, for the namespaces."""

import argparse
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

BRIDGE, SERVER = "dvault0", "10.213.7.1"
WRITERS, PRUNER, RESTORER = (1, 2, 3), 4, 5
HOSTS = (*WRITERS, PRUNER, RESTORER)
PASSWORD = "a long passphrase"
DISK_BYTES = 12 << 20
PIECE = 64 << 10


def ip(*arguments, check=True):
    subprocess.run(["ip", *arguments], check=check, stderr=None if check else subprocess.DEVNULL)


class Network:
    """A bridge, and a namespace for each host."""

    def __init__(self):
        # Its names are the same in every run, so that what one left behind is taken away by the next.
        self.lock = open(os.path.join(tempfile.gettempdir(), f"{BRIDGE}.lock"), "w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.end()
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{SERVER}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for host in HOSTS:
            space, outside, inside = f"dvault{host}", f"dvo{host}", f"dvi{host}"
            ip("netns", "add", space)
            ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", space)
            ip("link", "set", outside, "master", BRIDGE, "up")
            ip("-n", space, "addr", "add", f"10.213.7.{10 + host}/24", "dev", inside)
            ip("-n", space, "link", "set", inside, "up")
            ip("-n", space, "link", "set", "lo", "up")

    def line(self, host, state):
        ip("link", "set", f"dvo{host}", state)

    def end(self):
        for host in HOSTS:
            ip("link", "del", f"dvo{host}", check=False)
            ip("netns", "del", f"dvault{host}", check=False)
        ip("link", "del", BRIDGE, check=False)


def wait_for(port):
    for _ in range(200):
        try:
            socket.create_connection((SERVER, port)).close()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit("the server does not start")


class Ssh:
    def __init__(self, work, program):
        self.folder = os.path.join(work, "ssh")
        os.makedirs(self.folder, mode=0o700)
        path = lambda name: os.path.join(self.folder, name)
        for name in ("host", "key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path(name)], check=True)
        shutil.copy(path("key.pub"), path("authorized"))
        os.makedirs("/run/sshd", exist_ok=True)
        with open(path("config"), "w") as file:
            file.write(f"Port 2222\nListenAddress {SERVER}\nHostKey {path('host')}\nPidFile none\nStrictModes no\n"
                       f"AuthorizedKeysFile {path('authorized')}\nPasswordAuthentication no\nUsePAM no\n"
                       f"PermitRootLogin prohibit-password\nMaxStartups 100\n")
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin")
        self.process = subprocess.Popen([sshd, "-D", "-f", path("config"), "-E", path("log")])
        wait_for(2222)
        options = f"-i {path('key')} -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=no"
        self.environment = {
            "DISKVAULT_REPOSITORY": f"ssh://{SERVER}:2222{os.path.join(work, 'repository')}",
            "DISKVAULT_SSH_COMMAND": f"ssh {options} -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            "DISKVAULT_REMOTE_PROGRAM": program,
        }


class S3:
    def __init__(self, work, server):
        self.folder = os.path.join(work, "s3")
        os.makedirs(self.folder)
        key, secret, region = "testing", "testing", "us-east-1"
        if server == "moto":
            log = open(os.path.join(self.folder, "log"), "w")
            self.process = subprocess.Popen(["moto_server", "-H", SERVER, "-p", "3900"], stdout=log, stderr=log)
            wait_for(3900)
            urllib.request.urlopen(urllib.request.Request(f"http://{SERVER}:3900/vaults", method="PUT")).close()
        else:
            self.process, key, secret = self.garage(server)
            region = "garage"
        self.environment = {
            "DISKVAULT_REPOSITORY": "s3://vaults/many", "AWS_ENDPOINT_URL": f"http://{SERVER}:3900",
            "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": region,
        }

    def garage(self, program):
        path = lambda name: os.path.join(self.folder, name)
        with open(path("config"), "w") as file:
            file.write(f"""metadata_dir = "{path('meta')}"
data_dir = "{path('data')}"
db_engine = "sqlite"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:3901"
rpc_public_addr = "127.0.0.1:3901"
rpc_secret = "{'11' * 32}"
[s3_api]
s3_region = "garage"
api_bind_addr = "{SERVER}:3900"
""")
        log = open(path("log"), "w")
        process = subprocess.Popen([program, "-c", path("config"), "server"], stdout=log, stderr=log)
        wait_for(3900)
        tell = lambda *a: subprocess.run([program, "-c", path("config"), *a], check=True, text=True,
                                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        node = tell("node", "id", "-q").split("@")[0]
        tell("layout", "assign", "-z", "one", "-c", "10G", node)
        tell("layout", "apply", "--version", "1")
        words = {line.split(":")[0].strip(): line.split(":")[1].strip()
                 for line in tell("key", "create", "many").splitlines() if ":" in line}
        tell("bucket", "create", "vaults")
        tell("bucket", "allow", "--read", "--write", "--owner", "vaults", "--key", words["Key ID"])
        return process, words["Key ID"], words["Secret key"]


class Run:
    def __init__(self, options):
        self.options = options
        self.random = random.Random(options.seed)
        self.network = Network()
        path = self.path("hosts")
        os.makedirs(path)
        server = Ssh(options.work, options.diskvault) if options.over == "ssh" else S3(options.work, options.server)
        self.server = server
        self.lock = threading.Lock()
        # Digest by point of everything that was reported, and what was taken away by its id.
        self.reported, self.forgotten = {}, set()
        self.running, self.counts = {}, {}
        self.wrong = []
        self.over = threading.Event()

    def path(self, name):
        return os.path.join(self.options.work, name)

    def count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def diskvault(self, host, *arguments, patience=120):
        """Runs the program on a host; its exit code, what it printed and what it complained of."""
        home = self.path(f"hosts/{host}")
        os.makedirs(home, exist_ok=True)
        environment = {"PATH": os.environ["PATH"], "HOME": home, "DISKVAULT_PASSWORD": PASSWORD,
                       "DISKVAULT_CACHE_DIR": f"{home}/cache", **self.server.environment}
        command = ["ip", "netns", "exec", f"dvault{host}", self.options.diskvault, *arguments]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   start_new_session=True)
        with self.lock:
            self.running[host] = process
        try:
            out, complaints = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, complaints = process.communicate()
            self.count("ended for taking too long")
        with self.lock:
            self.running.pop(host, None)
        return process.returncode, out, complaints.decode(errors="replace")

    def write(self, host):
        """One writer: its disk changes, is backed up, and what was reported is remembered."""
        chance = random.Random(self.options.seed * 100 + host)
        disk = bytearray(DISK_BYTES)
        image = self.path(f"hosts/{host}.image")
        while not self.over.is_set():
            for _ in range(chance.randrange(1, 40)):
                at = chance.randrange(DISK_BYTES // PIECE) * PIECE
                disk[at:at + PIECE] = chance.randbytes(PIECE)
            with open(image, "wb") as file:
                file.write(disk)
            series = "shared" if chance.random() < 0.3 else f"host{host}"
            code, out, complaints = self.diskvault(host, "backup", "--json", "--name", series, f"--disk=vda={image}")
            lines = out.splitlines()
            if code in (0, 4) and lines:
                point = json.loads(lines[-1])["point_id"]
                with self.lock:
                    self.reported[point] = hashlib.sha256(disk).hexdigest()
                self.count("backups")
            else:
                self.count("backups that failed")
                self.judge("backup", code, complaints)

    def judge(self, what, code, complaints):
        """A host that is killed or cut off may fail; nothing else may be wrong."""
        if code in (5, 10, 12, 13, 101) or "panicked" in complaints:
            with self.lock:
                self.wrong.append(f"{what}: exit code {code}: {complaints.strip()}")

    def prune(self):
        chance = random.Random(self.options.seed * 100 + PRUNER)
        while not self.over.is_set():
            with self.lock:
                known = [point for point in self.reported if point not in self.forgotten]
                going = known[:max(0, len(known) - 12)]
                going = chance.sample(going, min(len(going), 4))
                # From here on nobody counts on them, however far the forget comes.
                self.forgotten.update(going)
            if going:
                ids = [f"id:{point}" for point in going]
                code, _, complaints = self.diskvault(PRUNER, "forget", "--force", *ids)
                self.judge("forget", code, complaints)
            code, _, complaints = self.diskvault(PRUNER, "prune", "--keep-forgotten", "0d", "--max-unused", "0%",
                                                 "--lease-timeout", "3min", patience=900)
            self.count("prunes" if code in (0, 4) else "prunes that failed")
            self.judge("prune", code, complaints)

    def restore(self):
        chance = random.Random(self.options.seed * 100 + RESTORER)
        while not self.over.is_set():
            with self.lock:
                known = [point for point in self.reported if point not in self.forgotten]
            if not known:
                time.sleep(0.2)
                continue
            point = chance.choice(known)
            code, out, complaints = self.diskvault(RESTORER, "dump", f"id:{point}/vda")
            with self.lock:
                is_forgotten = point in self.forgotten
            if code in (0, 4):
                self.count("restores")
                if hashlib.sha256(out).hexdigest() != self.reported[point]:
                    self.wrong.append(f"point {point} came back with wrong bytes")
            else:
                self.count("restores that failed")
                if not is_forgotten:
                    self.judge(f"restore of {point}", code, complaints)

    def trouble(self):
        """Kills hosts and cuts lines until it is over."""
        while not self.over.wait(self.random.uniform(0.5, 3)):
            # Who prunes waits for those who were killed, for three minutes: it is left in peace more often.
            host = self.random.choice((*WRITERS, *WRITERS, RESTORER, RESTORER, PRUNER))
            if self.random.random() < 0.5:
                with self.lock:
                    process = self.running.get(host)
                if process:
                    try:
                        os.killpg(process.pid, signal.SIGKILL)
                        self.count("kills")
                    except ProcessLookupError:
                        pass
            else:
                self.network.line(host, "down")
                self.count("cuts")
                self.over.wait(self.random.uniform(0.5, 8))
                self.network.line(host, "up")

    def judge_end(self):
        for host in HOSTS:
            self.network.line(host, "up")
        code, out, complaints = self.diskvault(RESTORER, "check", "--read-data", patience=600)
        if code != 0:
            self.wrong.append(f"check: exit code {code}: {out.decode()}{complaints}")
        left = [point for point in self.reported if point not in self.forgotten]
        for point in left:
            code, out, complaints = self.diskvault(RESTORER, "dump", f"id:{point}/vda", patience=600)
            if code != 0 or hashlib.sha256(out).hexdigest() != self.reported[point]:
                self.wrong.append(f"point {point}: exit code {code}: {complaints.strip()}")
        return len(left)

    def run(self):
        code, _, complaints = self.diskvault(WRITERS[0], "init", "--no-recovery-key")
        if code != 0:
            sys.exit(complaints)
        works = [lambda host=host: self.write(host) for host in WRITERS] + [self.prune, self.restore, self.trouble]
        threads = [threading.Thread(target=work) for work in works]
        for thread in threads:
            thread.start()
        time.sleep(self.options.seconds)
        self.over.set()
        with self.lock:
            waiting = self.running.get(PRUNER)
        if waiting:
            os.killpg(waiting.pid, signal.SIGKILL)
        for thread in threads:
            thread.join()
        left = self.judge_end()
        for what, number in sorted(self.counts.items()):
            print(f"{number:6} {what}")
        print(f"{len(self.reported):6} points reported, {left} not forgotten: all of these restored"
              if not self.wrong else f"{len(self.wrong)} things are wrong")
        for text in self.wrong:
            print(f"WRONG: {text}")
        return not self.wrong

    def end(self):
        self.server.process.terminate()
        self.server.process.wait()
        self.network.end()


def main():
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--diskvault", required=True, type=os.path.abspath)
    parser.add_argument("--work", required=True, type=os.path.abspath)
    parser.add_argument("--over", required=True, choices=("ssh", "s3"))
    parser.add_argument("--server", default="moto")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if os.path.exists(options.work):
        sys.exit(f"{options.work} exists")
    os.makedirs(options.work)
    run = Run(options)
    try:
        is_right = run.run()
    finally:
        run.end()
    if is_right:
        shutil.rmtree(options.work)
    sys.exit(not is_right)


if __name__ == "__main__":
    main()
