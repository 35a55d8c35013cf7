"""The peers and diskvault: for each one how it is found and the command line of every job.

A job is a list of commands that are run one after another and measured as one. `None` means that
the peer has no such job.
"""

import dataclasses
import datetime
import os
import shutil
import subprocess

PASSWORD = "the same for all of them"


@dataclasses.dataclass
class Point:
    """One backup: the machine, the name of the point, and its place in the order."""

    series: str
    name: str
    number: int

    @property
    def file(self):
        """The name of the file it was made of, which some peers ask for again."""
        return self.name + ".raw"


class Place:
    """The folder in which one peer works: its repository, its caches, its points."""

    def __init__(self, folder):
        self.folder = folder
        self.repo = os.path.join(folder, "repo")
        self.home = os.path.join(folder, "home")
        self.points = []
        os.makedirs(self.home)

    def next_point(self, series, name):
        """The next point, which is counted whether or not the backup succeeds."""
        point = Point(series, name, len(self.points))
        self.points.append(point)
        return point

    def find(self, name):
        """The point of this name."""
        return next(point for point in self.points if point.name == name)

    def age(self, point):
        """How many points of the same series are newer."""
        return sum(p.series == point.series and p.number > point.number for p in self.points)


class Peer:
    """What all peers share."""

    name = ""
    program = ""
    version_arguments = ["--version"]
    encrypted = True
    settings = ""

    def __init__(self, search_path):
        self.path = shutil.which(self.program, path=search_path)

    def missing(self):
        """Why the peer cannot be run, or None."""
        return None if self.path else f"{self.program} is not installed"

    def version(self):
        """The first line of what the program says of itself."""
        command = [self.path, *self.version_arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).strip().splitlines()
        return lines[0] if lines else "unknown"

    def environment(self, place):
        """Variables the program needs; HOME and the cache folder are set for every peer."""
        return {}

    def verify(self, place):
        """Reads and verifies all stored data."""
        return None

    def verify_without_key(self, place):
        """Verifies all stored data without opening it."""
        return None

    def forget(self, place):
        """Drops all points but the newest and frees the room."""
        return None


class Borg(Peer):
    """borg 1.4 with fixed blocks, which suit disks best, or with its default chunker."""

    program = "borg"

    def __init__(self, search_path, fixed):
        super().__init__(search_path)
        self.fixed = fixed
        self.name = "borg fixed 4 MiB" if fixed else "borg buzhash"
        chunker = ["--chunker-params", "fixed,4194304", "--sparse"] if fixed else []
        self.create = ["create", *chunker, "--compression", "zstd,3"]
        self.settings = " ".join(["init -e repokey-blake2;", *self.create])

    def environment(self, place):
        return {
            "BORG_PASSPHRASE": PASSWORD,
            "BORG_BASE_DIR": place.home,
            "BORG_REPO": place.repo,
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }

    def init(self, place):
        return [[self.path, "init", "-e", "repokey-blake2"]]

    def backup(self, place, point, image):
        return [[self.path, *self.create, f"::{point.name}", os.path.basename(image)]]

    def restore(self, place, point, target):
        # It writes below the current folder and under the name it was given.
        script = 'cd "$(dirname "$3")" && "$1" extract --sparse "::$2" && mv "$4" "$3"'
        return [["sh", "-c", script, "sh", self.path, point.name, target, point.file]]

    def verify(self, place):
        return [[self.path, "check", "--verify-data"]]

    def forget(self, place):
        return [
            [self.path, "prune", "--keep-last", "1"],
            [self.path, "compact", "--threshold", "1"],
        ]


class Restic(Peer):
    """restic with its defaults: repository version 2, compression auto."""

    name = "restic"
    program = "restic"
    version_arguments = ["version"]
    settings = "defaults; restore --sparse"

    def environment(self, place):
        return {"RESTIC_PASSWORD": PASSWORD, "RESTIC_REPOSITORY": place.repo}

    def init(self, place):
        return [[self.path, "init"]]

    def backup(self, place, point, image):
        host = ["--host", point.series, "--tag", point.name]
        return [[self.path, "backup", "-q", *host, os.path.basename(image)]]

    def restore(self, place, point, target):
        script = (
            '"$1" restore -q latest --tag "$2" --sparse --target "$3.d" && '
            'mv "$(find "$3.d" -type f)" "$3" && rm -r "$3.d"'
        )
        return [["sh", "-c", script, "sh", self.path, point.name, target]]

    def verify(self, place):
        return [[self.path, "check", "-q", "--read-data"]]

    def forget(self, place):
        keep = ["--group-by", "host", "--keep-last", "1", "--prune", "--max-unused", "0"]
        return [[self.path, "forget", "-q", *keep]]


class Rustic(Peer):
    """rustic with its default chunker, or with fixed chunks of 1 MiB."""

    program = "rustic"

    def __init__(self, search_path, fixed):
        super().__init__(search_path)
        self.fixed = fixed
        self.name = "rustic fixed 1 MiB" if fixed else "rustic"
        self.chunker = ["--set-chunker", "fixed_size", "--set-chunk-size", "1MiB"] if fixed else []
        self.settings = " ".join(["init", *self.chunker, "; restore --sparse by-content"])

    def environment(self, place):
        return {
            "RUSTIC_PASSWORD": PASSWORD,
            "RUSTIC_REPOSITORY": place.repo,
            "RUSTIC_NO_PROGRESS": "true",
        }

    def init(self, place):
        return [[self.path, "init", *self.chunker]]

    def backup(self, place, point, image):
        host = ["--host", point.series, "--tag", point.name]
        return [[self.path, "backup", *host, os.path.basename(image)]]

    def restore(self, place, point, target):
        what = f"latest:{point.file}"
        options = ["--sparse", "by-content", "--filter-tags", point.name]
        return [[self.path, "restore", *options, what, target]]

    def verify(self, place):
        return [[self.path, "check", "--read-data"]]

    def forget(self, place):
        keep = ["--group-by", "host", "--keep-last", "1", "--prune", "--instant-delete"]
        return [[self.path, "forget", *keep, "--max-unused", "0%"]]


class Bupstash(Peer):
    """bupstash; its output is a stream, so that dd has to make the holes again."""

    name = "bupstash"
    program = "bupstash"
    settings = "put; get | dd conv=sparse; it has no command that verifies"

    def environment(self, place):
        return {
            "BUPSTASH_REPOSITORY": place.repo,
            "BUPSTASH_KEY": os.path.join(place.home, "key"),
        }

    def init(self, place):
        key = os.path.join(place.home, "key")
        return [[self.path, "init"], [self.path, "new-key", "-o", key]]

    def backup(self, place, point, image):
        tags = [f"series={point.series}", f"point={point.name}", "::"]
        return [[self.path, "put", "-q", *tags, os.path.basename(image)]]

    def restore(self, place, point, target):
        script = '"$1" get -q "point=$2" | dd conv=sparse bs=1M of="$3" status=none'
        return [["sh", "-c", script, "sh", self.path, point.name, target]]

    def forget(self, place):
        old = [[self.path, "rm", "-q", f"point={point.name}"] for point in place.points[:-1]]
        return [*old, [self.path, "gc", "-q"]]


class Casync(Peer):
    """casync, which does not encrypt: a yardstick for what small chunks give."""

    name = "casync"
    program = "casync"
    encrypted = False
    settings = "make --store; not encrypted; it has no command that verifies"

    def store(self, place):
        """The option that names the chunk store."""
        return f"--store={os.path.join(place.repo, 'store.castr')}"

    def index(self, place, point):
        """The file that stands for a point."""
        return os.path.join(place.repo, f"{point.name}.caibx")

    def init(self, place):
        return [["mkdir", "-p", place.repo]]

    def backup(self, place, point, image):
        return [[self.path, "make", self.store(place), self.index(place, point), image]]

    def restore(self, place, point, target):
        return [[self.path, "extract", self.store(place), self.index(place, point), target]]

    def forget(self, place):
        old = [self.index(place, point) for point in place.points[:-1]]
        kept = self.index(place, place.points[-1])
        return [["rm", "-f", *old], [self.path, "gc", self.store(place), kept]]


class Diskvault(Peer):
    """diskvault itself, once with its defaults and once for each variant asked for."""

    program = "diskvault"
    version_arguments = ["--version", "-v"]

    def __init__(self, path, variant="", init_arguments=()):
        self.path = path if os.access(path, os.X_OK) else None
        self.name = f"diskvault {variant}".strip()
        self.init_arguments = list(init_arguments)
        self.settings = " ".join(["init", *self.init_arguments]) if init_arguments else "defaults"
        self.commands = self.help() if self.path else ""

    def help(self, *command):
        """The help text, by which the program finds what exists yet."""
        asked = [self.path, *command, "--help"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout

    def has_command(self, name):
        """Whether this version has the command."""
        return any(line.split()[:1] == [name] for line in self.commands.splitlines())

    def has_option(self, command, option):
        """Whether this version's command has the option."""
        return any(option in line.split() for line in self.help(command).splitlines())

    def environment(self, place):
        return {
            "DISKVAULT_PASSWORD": PASSWORD,
            "DISKVAULT_REPOSITORY": place.repo,
            "DISKVAULT_CACHE_DIR": os.path.join(place.home, "cache"),
        }

    def init(self, place):
        return [[self.path, "init", "-q", "--no-recovery-key", *self.init_arguments]]

    def backup(self, place, point, image):
        # Points are in the order of their times, so each gets a day of its own.
        day = datetime.date(2026, 1, 1) + datetime.timedelta(days=point.number)
        options = ["--name", point.series, "--time", f"{day}T00:00Z", "--disk", f"disk={image}"]
        # Everyone reads the disk, also where its times say that nothing has changed.
        if self.has_option("backup", "--full"):
            options.append("--full")
        return [[self.path, "backup", "-q", *options]]

    def restore(self, place, point, target):
        return [[self.path, "restore", "-q", f"{self.address(place, point)}/disk", target]]

    def address(self, place, point):
        """How a point is named."""
        return f"{point.series}@latest~{place.age(point)}"

    def verify(self, place):
        return [[self.path, "check", "-q", "--read-data"]]

    def verify_without_key(self, place):
        if not self.has_option("check", "--no-key"):
            return None
        return [[self.path, "check", "-q", "--read-data", "--no-key"]]

    def forget(self, place):
        if not (self.has_command("forget") and self.has_command("prune")):
            return None
        series = place.points[-1].series
        return [
            [self.path, "forget", "-q", "--keep-last", "1", "--series", series],
            [self.path, "prune", "-q"],
        ]

    def index_entries(self, place):
        """How to ask for the number of chunks and pages, as a line of JSON."""
        return [self.path, "--json", "check"]

    def index_bytes(self, place):
        """The room the index takes in the cache folder."""
        total = 0
        for base, _, names in os.walk(os.path.join(place.home, "cache")):
            if "index" in base.split(os.sep):
                total += sum(os.stat(os.path.join(base, name)).st_blocks * 512 for name in names)
        return total


def all_peers(diskvault, variants, search_path):
    """Everyone who takes part, diskvault first."""
    mine = [Diskvault(diskvault)]
    for variant in variants:
        name, _, arguments = variant.partition(":")
        mine.append(Diskvault(diskvault, name, arguments.split()))
    return [
        *mine,
        Borg(search_path, fixed=True),
        Borg(search_path, fixed=False),
        Restic(search_path),
        Rustic(search_path, fixed=False),
        Rustic(search_path, fixed=True),
        Bupstash(search_path),
        Casync(search_path),
    ]
