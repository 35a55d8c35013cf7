"""The state of one run of the comparison: where everyone works, and how a job becomes a record.

State of the page cache: before each timed job its input (the image, or the peer's repository) is
read once, so that it is in the page cache as far as memory reaches; then everything unwritten is
written out. What a job itself leaves unwritten is written by a `sync` that is timed apart.
"""

import json
import os
import shutil
import subprocess

import images
import measure
from peers import Place

READ_SIZE = 8 << 20


class Bench:
    """Folders, peers, limits and the records so far."""

    def __init__(self, series_folder, work_folder, out, peers, search_path):
        self.series_folder = series_folder
        self.work = work_folder
        self.out = out
        self.everyone = self.peers = peers
        self.search_path = search_path
        self.run = 1
        self.restore_limit = None
        self.records = []
        self.head = {}
        with open(os.path.join(series_folder, "manifest.json"), encoding="utf-8") as file:
            self.manifest = json.load(file)["images"]
        self.places = {}

    def image(self, name):
        """The path of an image of the series."""
        return os.path.join(self.series_folder, name + ".raw")

    def has(self, *names):
        """Whether images of these names were built."""
        return all(name in self.manifest and os.path.exists(self.image(name)) for name in names)

    def history(self, name):
        """The names of the images of a history, in order."""
        return [key for key, entry in self.manifest.items() if entry["history"] == name]

    def in_turn(self, shift):
        """The peers, beginning with another one each time."""
        shift = (shift + self.run) % len(self.peers)
        return self.peers[shift:] + self.peers[:shift]

    def record(self, stage, history, item, who, costs):
        """Keeps a record, shows it, and saves everything so far."""
        entry = {"run": self.run, "stage": stage, "history": history, "item": item, "peer": who}
        entry.update(costs)
        self.records.append(entry)
        text = (
            entry.get("error")
            or entry.get("not_available")
            or (
                f"{entry['wall']:.1f} s, {entry['cpu']:.1f} CPU s, {entry['peak_bytes'] >> 20} MiB"
            )
        )
        print(f"run {self.run}  {history} {stage} {item}  {who}: {text}", flush=True)
        self.save()
        return entry

    def save(self):
        """Writes the figures; an interrupted run leaves those it had."""
        with open(self.out + ".part", "w", encoding="utf-8") as file:
            json.dump({**self.head, "records": self.records}, file, indent=1)
        os.rename(self.out + ".part", self.out)

    def environment(self, more=()):
        """The environment of a job: nothing of the caller's but the search path."""
        return {
            "PATH": self.search_path,
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "HOME": self.work,
            "PEERS_LOG": os.path.join(self.work, "log"),
            **dict(more),
        }

    def do(self, peer, place, commands, folder, cap):
        """Runs a job of a peer at its place."""
        environment = self.environment(peer.environment(place))
        environment["HOME"] = place.home
        environment["XDG_CACHE_HOME"] = os.path.join(place.home, "cache")
        return measure.run_all(commands, folder, environment, cap)

    def new_place(self, peer, name):
        """A new repository for a peer; what was there goes."""
        folder = os.path.join(self.work, name, peer.name.replace(" ", "-"))
        shutil.rmtree(folder, ignore_errors=True)
        place = Place(folder)
        costs = self.do(peer, place, peer.init(place), folder, 600)
        if "error" in costs:
            self.record("init", name, "", peer.name, costs)
        self.places[name, peer.name] = place
        return place

    def place(self, peer, name):
        """The repository a peer has for a history."""
        return self.places[name, peer.name]

    def drop_places(self, name):
        """Removes all repositories of a history."""
        shutil.rmtree(os.path.join(self.work, name), ignore_errors=True)

    def backup(self, peer, place, stage, history, point, image, cap=7200):
        """One backup, with what it adds to the repository."""
        warm_file(image)
        before = measure.folder_bytes(place.repo)
        costs = self.do(peer, place, peer.backup(place, point, image), self.series_folder, cap)
        costs["repository"] = measure.folder_bytes(place.repo)
        costs["caches"] = measure.folder_bytes(place.home)
        costs["added_bytes"] = costs["repository"]["bytes"] - before["bytes"]
        return self.record(stage, history, point.name, peer.name, costs)

    def restore(self, peer, place, stage, history, point, image, cap=7200):
        """One restore, compared byte for byte with the image it was made of."""
        folder = os.path.join(self.work, "restored")
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder)
        target = os.path.join(folder, "target.raw")
        warm_folder(place.repo)
        job = peer.restore(place, point, target)
        costs = self.do(peer, place, job, folder, cap)
        if "error" not in costs:
            costs.update(compare(target, image))
        shutil.rmtree(folder, ignore_errors=True)
        return self.record(stage, history, point.name, peer.name, costs)

    def job(self, peer, place, stage, history, item, commands):
        """A job on the whole repository, or a record that the peer has no such job."""
        if commands is None:
            reason = "not yet" if peer.program == "diskvault" else "has no such command"
            return self.record(stage, history, item, peer.name, {"not_available": reason})
        warm_folder(place.repo)
        before = measure.folder_bytes(place.repo)
        costs = self.do(peer, place, commands, place.folder, 7200)
        costs["repository_before"] = before
        costs["repository"] = measure.folder_bytes(place.repo)
        return self.record(stage, history, item, peer.name, costs)

    def tool(self, stage, history, item, who, commands, cap, output=None):
        """A tool on plain files in the work folder; `output` is measured and stays."""
        costs = measure.run_all(commands, self.work, self.environment(), cap)
        if output and os.path.exists(output):
            costs["output"] = measure.folder_bytes(os.path.dirname(output))
            costs["output_bytes"] = os.path.getsize(output)
            costs["output_allocated_bytes"] = images.allocated_bytes(output)
        return self.record(stage, history, item, who, costs)


def warm_file(path):
    """Brings the data of a file into the page cache, and nothing unwritten stays in it."""
    with open(path, "rb") as file:
        for start, length in images.data_extents(path):
            while length > 0:
                piece = os.pread(file.fileno(), min(length, READ_SIZE), start)
                start += len(piece)
                length -= len(piece) or length
    os.sync()


def warm_folder(folder):
    """The same for all files of a folder."""
    for base, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(base, name), "rb") as file:
                while file.read(READ_SIZE):
                    pass
    os.sync()


def compare(target, image):
    """Whether a restored file is the image, and how its holes compare."""
    if os.path.getsize(image) > 64 * images.GIB:
        # A terabyte of zeros: the sizes, and every block that is not zero with its offset.
        same = os.path.getsize(target) == os.path.getsize(image)
        same = same and images.digest_of_data(target) == images.digest_of_data(image)
    else:
        same = subprocess.run(["cmp", "-s", target, image], check=False).returncode == 0
    result = {
        "identical": same,
        "target_allocated_bytes": images.allocated_bytes(target),
        "source_allocated_bytes": images.allocated_bytes(image),
    }
    if not same:
        result["error"] = "what was restored is not the source"
    return result
