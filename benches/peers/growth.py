#!/usr/bin/env python3
"""How diskvault's costs grow: with the size of a disk, and with the number of points.

`growth.py --diskvault target/release/diskvault --work DIR [--gib 1,4,16] [--points 10,100]
[--into docs/performance.md] [--chart docs/growth.svg]`. Makes an image of each size in DIR, backs
it up, again unchanged, again with one byte in a hundred changed in runs of 2 MiB, lists, checks,
restores and compares, drops all but the newest point, prunes and compares again; then the smallest again for many points, of which each changes as much. What
is not needed any more is removed on the way: the largest image, its repository and its copy need
about 2.6 times its size. Half of an image compresses, half does not; nothing is twice in it.
"""

import argparse
import os
import shutil
import subprocess
import tempfile

import measure
from chart import Chart
from content import generator
from report import replace_between
from tables import table

GIB = 1 << 30
PIECE = 64 << 10
RUN = 2 << 20
CAP = 3600.0
BEGIN, END = "<!-- growth:begin -->", "<!-- growth:end -->"


class Vault:
    """A repository with a cache of its own."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        self.environment = {
            **os.environ,
            "DISKVAULT_REPOSITORY": os.path.join(folder, "repo"),
            "DISKVAULT_CACHE_DIR": os.path.join(folder, "cache"),
            "DISKVAULT_PASSWORD": "the same for all",
            "PEERS_LOG": os.path.join(folder, "log"),
        }
        os.makedirs(folder)
        self.run("init", "--no-recovery-key")

    def run(self, *arguments):
        """One command and its costs; what goes wrong ends the program."""
        costs = measure.run([self.program, *arguments], self.folder, self.environment, CAP)
        if "error" in costs:
            raise SystemExit(f"growth.py: {costs['command']}: {costs['error']}")
        return costs

    def sizes(self):
        """Bytes of the repository and of the index."""
        repo = measure.folder_bytes(os.path.join(self.folder, "repo"))["bytes"]
        index = 0
        for base, folders, _ in os.walk(os.path.join(self.folder, "cache")):
            for folder in folders:
                if folder == "index":
                    path = os.path.join(base, folder)
                    index += measure.folder_bytes(path)["allocated_bytes"]
        return repo, index

    def remove(self):
        """Frees its room."""
        shutil.rmtree(self.folder)


def write_pieces(file, numbers, count):
    """Pieces of the file, in turn one that does not compress and one that does by about four."""
    for number in range(count):
        piece = numbers.randbytes(PIECE)
        if number % 2:
            piece = bytes(piece[: PIECE // 8]).hex().encode() * 4
        file.write(piece)


def make_image(path, size):
    """An image of this many bytes, all of them data."""
    with open(path, "wb") as file:
        write_pieces(file, generator("growth", size), size // PIECE)


def change(path, day):
    """Changes a hundredth of the image, in runs of 2 MiB."""
    size = os.path.getsize(path)
    numbers = generator("change", size, day)
    with open(path, "r+b") as file:
        for _ in range(max(size // 100 // RUN, 1)):
            file.seek(numbers.randrange(size // RUN) * RUN)
            write_pieces(file, numbers, RUN // PIECE)


def read(path):
    """Reads a file, so that it comes from memory as far as it fits."""
    with open(path, "rb", buffering=0) as file:
        while file.read(16 << 20):
            pass
    os.sync()


def measure_size(program, work, gib):
    """All figures of one size, by name."""
    folder = tempfile.mkdtemp(dir=work)
    image = os.path.join(folder, "disk.raw")
    make_image(image, gib * GIB)
    vault = Vault(program, os.path.join(folder, "vault"))
    found = {}

    def job(name, *arguments):
        read(image)
        found[name] = vault.run(*arguments)

    job("first backup", "backup", "--name", "a", image)
    job("unchanged", "backup", "--full", "--name", "a", image)
    change(image, 1)
    job("1 % changed", "backup", "--name", "a", image)
    found["repository"], found["index"] = vault.sizes()
    found["chunks"] = gib * GIB // (32 << 10)
    job("list", "list")
    job("check", "check")
    job("check --read-data", "check", "--read-data")
    copy = os.path.join(folder, "copy.raw")
    job("restore", "restore", "a", copy)
    subprocess.run(["cmp", image, copy], check=True)
    os.remove(copy)
    vault.run("forget", "--keep-last", "1")
    found["prune"] = vault.run("prune", "--max-unused", "0%")
    vault.run("restore", "a", copy)
    subprocess.run(["cmp", image, copy], check=True)
    shutil.rmtree(folder)
    return found


def measure_points(program, work, gib, counts):
    """The costs of the last backup, of looking and of the newest point, after so many points."""
    folder = tempfile.mkdtemp(dir=work)
    image = os.path.join(folder, "disk.raw")
    make_image(image, gib * GIB)
    vault = Vault(program, os.path.join(folder, "vault"))
    found = {}
    for point in range(1, max(counts) + 1):
        change(image, point)
        last = vault.run("backup", "--name", "a", image)
        if point in counts:
            costs = {"1 % changed": last, "list": vault.run("list"), "check": vault.run("check")}
            copy = os.path.join(folder, "copy.raw")
            costs["restore"] = vault.run("restore", "a", copy)
            subprocess.run(["cmp", image, copy], check=True)
            os.remove(copy)
            costs["prune --dry-run"] = vault.run("prune", "--dry-run")
            costs["repository"], costs["index"] = vault.sizes()
            found[point] = costs
    shutil.rmtree(folder)
    return found


def per_gib(costs, gib):
    """Wall and CPU seconds for each GiB, and the peak."""
    peak = costs["peak_bytes"] / (1 << 20)
    return f"{costs['wall'] / gib:.2f} / {costs['cpu'] / gib:.2f} / {peak:.0f}"


def plain(costs):
    """Wall and CPU seconds and the peak."""
    peak = costs["peak_bytes"] / (1 << 20)
    return f"{costs['wall']:.2f} / {costs['cpu']:.2f} / {peak:.0f}"


def size_rows(sizes):
    """The table by size."""
    rows = []
    for name in ("first backup", "unchanged", "1 % changed", "check --read-data", "restore"):
        rows.append([name, *(per_gib(found[name], gib) for gib, found in sizes.items())])
    for name in ("list", "check", "prune"):
        rows.append([f"{name} (in all)", *(plain(found[name]) for found in sizes.values())])
    ratios = (found["repository"] / gib / GIB for gib, found in sizes.items())
    rows.append(["repository, of the image", *(f"{ratio:.3f}" for ratio in ratios)])
    each = (found["index"] / found["chunks"] for found in sizes.values())
    rows.append(["index, bytes for each chunk", *(f"{value:.1f}" for value in each)])
    return rows


def point_rows(points):
    """The table by number of points."""
    rows = []
    for name in ("1 % changed", "restore", "check", "prune --dry-run", "list"):
        rows.append([name, *(plain(found[name]) for found in points.values())])
    each = (found["repository"] / 1e6 for found in points.values())
    rows.append(["repository, MB", *(f"{value:.0f}" for value in each)])
    each = (found["index"] / 1e6 for found in points.values())
    rows.append(["index, MB", *(f"{value:.1f}" for value in each)])
    return rows


def draw(sizes):
    """Seconds for each GiB by size: flat lines are what is wanted."""
    drawing = Chart(type("Nobody", (), {"peers": {}})())
    names = {"first backup": "#d62728", "restore": "#1f77b4", "check --read-data": "#2ca02c",
             "1 % changed": "#9467bd", "unchanged": "#ff7f0e"}
    drawing.colours = names
    series = {
        name: [1000 * found[name]["wall"] / gib for gib, found in sizes.items()] for name in names
    }
    labels = [f"{gib} GiB" for gib in sizes]
    title = "Wall time for each GiB of the image"
    drawing.lines(30, 40, 1060, 360, title, "milliseconds", labels, series)
    return drawing.svg(420)


def section(arguments, sizes, points):
    """The text between the markers."""
    runs = f"{min(sizes)} GiB"
    return "\n".join(
        [
            "## Growth",
            "",
            "Measured by `benches/peers/growth.py` on the same machine: images that are all data, half "
            "of it compressible; wall seconds / CPU seconds / peak MiB, of which the seconds are for "
            "each GiB of the image. Images up to the size of the page cache come from memory. Each "
            "restore was compared.",
            "",
            f"![Wall time for each GiB]({os.path.basename(arguments.chart)})" if arguments.chart else "",
            "",
            table(["", *(f"{gib} GiB" for gib in sizes)], size_rows(sizes)),
            "",
            f"With the number of points, of an image of {runs} of which each point changes 1 %:",
            "",
            table(["", *(f"{count} points" for count in points)], point_rows(points)),
        ]
    )


def main():
    """Measures and writes the section and the chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--diskvault", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--gib", default="1,4,16")
    parser.add_argument("--points", default="10,100")
    parser.add_argument("--into")
    parser.add_argument("--chart")
    arguments = parser.parse_args()
    program = os.path.abspath(arguments.diskvault)
    os.makedirs(arguments.work, exist_ok=True)
    gibs = [int(text) for text in arguments.gib.split(",")]
    counts = [int(text) for text in arguments.points.split(",")]
    sizes = {gib: measure_size(program, arguments.work, gib) for gib in gibs}
    points = measure_points(program, arguments.work, gibs[0], counts)
    text = section(arguments, sizes, points)
    print(text)
    if arguments.chart:
        with open(arguments.chart, "w", encoding="utf-8") as file:
            file.write(draw(sizes))
    if arguments.into:
        replace_between(arguments.into, BEGIN, END, text)


if __name__ == "__main__":
    main()
