"""The stages of the comparison: which jobs are done on which history, in which order.

Within a stage the peers take turns, and each run begins with another one.
"""

import json
import os
import shutil
import subprocess

import measure
from bench import warm_file, warm_folder


def limits(bench, history, names):
    """What the machine can do with the same files: reading, hashing, compressing, copying."""
    threads = str(os.cpu_count())
    for name in names:
        image = bench.image(name)
        out = os.path.join(bench.work, "limit")
        shutil.rmtree(out, ignore_errors=True)
        os.makedirs(out)
        packed, copied = os.path.join(out, "packed"), os.path.join(out, "copied")
        read = ["dd", f"if={image}", "of=/dev/null", "bs=1M", "status=none"]
        jobs = [
            ("read", [read], None),
            (f"b3sum, {threads} threads", [["b3sum", "--num-threads", threads, image]], None),
            ("b3sum --no-mmap", [["b3sum", "--no-mmap", image]], None),
            ("zstd -3 -T0", [["zstd", "-q", "-f", "-3", "-T0", image, "-o", packed]], packed),
            ("zstd -d", [["zstd", "-q", "-f", "-d", packed, "-o", "/dev/null"]], None),
            ("cp --sparse=always", [["cp", "--sparse=always", image, copied]], copied),
        ]
        measure_limits(bench, history, name, jobs)
        shutil.rmtree(out, ignore_errors=True)


def measure_limits(bench, history, name, jobs):
    """Runs the limits of one image."""
    for who, commands, output in jobs:
        warm_file(bench.image(name))
        bench.tool("limit", history, name, who, commands, 3600, output)


def days(bench, history):
    """Every day into every repository, in turn."""
    for peer in bench.peers:
        bench.new_place(peer, history)
    for number, name in enumerate(bench.history(history)):
        for peer in bench.in_turn(number):
            place = bench.place(peer, history)
            point = place.next_point(history, name)
            bench.backup(peer, place, "backup", history, point, bench.image(name))


def repeat(bench, history):
    """The newest image once more under another name, so that no peer sees a file it knows."""
    newest = bench.image(bench.history(history)[-1])
    again = bench.image(f"again-{bench.run}")
    if os.path.exists(again):
        os.remove(again)
    os.link(newest, again)
    try:
        for peer in bench.in_turn(1):
            place = bench.place(peer, history)
            point = place.next_point(history, f"again-{bench.run}")
            bench.backup(peer, place, "repeat", history, point, again)
    finally:
        os.remove(again)


def restores(bench, history):
    """The newest and the oldest day back, compared with their images."""
    names = bench.history(history)
    for stage, name in (("restore newest", names[-1]), ("restore oldest", names[0])):
        for peer in bench.in_turn(2):
            place = bench.place(peer, history)
            bench.restore(peer, place, stage, history, place.find(name), bench.image(name))
    for peer in bench.peers:
        if peer.program == "diskvault" and bench.restore_limit:
            restore_limit(bench, peer, history, names[-1])


def restore_limit(bench, peer, history, name):
    """The limit of a restore: the same segments decoded and written without a repository."""
    place = bench.place(peer, history)
    target = os.path.join(bench.work, "limit.raw")
    warm_folder(place.repo)
    done = subprocess.run(
        [bench.restore_limit, place.repo, peer.address(place, place.find(name)), target],
        capture_output=True,
        text=True,
        check=True,
        env=bench.environment(peer.environment(place)),
    )
    costs = json.loads(done.stdout)
    # It counts its own time, after the preparations; the rest is not known.
    costs.update({"cpu": 0.0, "peak_bytes": 0})
    bench.record("restore limit", history, name, peer.name, costs)
    os.remove(target)


def verify(bench, history):
    """Every stored byte read and verified; without the key where that exists."""
    for peer in bench.in_turn(3):
        place = bench.place(peer, history)
        bench.job(peer, place, "verify", history, "", peer.verify(place))
    for peer in bench.peers:
        if peer.program == "diskvault":
            place = bench.place(peer, history)
            job = peer.verify_without_key(place)
            bench.job(peer, place, "verify without key", history, "", job)
            hash_repository(bench, peer, place, history)
            index(bench, peer, place, history)
            hinted(bench, peer, history)


def hash_repository(bench, peer, place, history):
    """The limit of verification without a key: b3sum over the same files."""
    hashing = ["find", place.repo, "-type", "f", "-exec", "b3sum", "{}", "+"]
    bench.job(peer, place, "b3sum of the repository", history, "", [hashing])


def index(bench, peer, place, history):
    """How large the index is, and what it counts."""
    costs = bench.do(peer, place, [peer.index_entries(place)], place.folder, 3600)
    if "error" not in costs:
        with open(os.path.join(bench.work, "log"), encoding="utf-8") as file:
            found = [json.loads(line) for line in file if '"entries"' in line]
        costs["entries"] = found[-1]["entries"] if found else 0
        costs["index_bytes"] = peer.index_bytes(place)
    bench.record("index", history, "", peer.name, costs)


def hinted(bench, peer, history):
    """The place of increments that read only what a hint names."""
    reason = "measured by benches/hints.py"
    bench.record("hinted", history, "", peer.name, {"not_available": reason})


def prune(bench, history):
    """All points but the newest go; beside it a fresh repository of that point alone."""
    name = bench.history(history)[-1]
    for peer in bench.in_turn(4):
        place = bench.place(peer, history)
        done = bench.job(peer, place, "prune", history, "", peer.forget(place))
        if "not_available" in done or "error" in done:
            continue
        image = bench.image(name)
        newest = place.points[-1]
        bench.restore(peer, place, "restore after prune", history, newest, image)
        alone = bench.new_place(peer, history + "-alone")
        bench.backup(peer, alone, "alone", history, alone.next_point(history, name), image)
        bench.drop_places(history + "-alone")


def clones(bench):
    """Three machines from one template into one repository."""
    for peer in bench.peers:
        bench.new_place(peer, "clones")
    for number, name in enumerate(bench.history("clones")):
        for peer in bench.in_turn(number):
            place = bench.place(peer, "clones")
            point = place.next_point(name, name)
            bench.backup(peer, place, "backup", "clones", point, bench.image(name))
    bench.drop_places("clones")


def sparse(bench, cap):
    """A huge disk with little data, beside the same data alone; stopped after a time.

    The peers that read every hole need many minutes and get one try, in the first run.
    """
    stopped = {r["peer"] for r in bench.records if r["stage"] == "sparse" and "error" in r}
    for peer in bench.in_turn(5):
        if peer.name in stopped:
            continue
        for stage, name in (("dense", "dense"), ("sparse", "sparse")):
            place = bench.new_place(peer, "sparse")
            point = place.next_point("sparse", name)
            done = bench.backup(peer, place, stage, "sparse", point, bench.image(name), cap)
        if "error" not in done:
            image = bench.image("sparse")
            bench.restore(peer, place, "restore sparse", "sparse", point, image, cap)
        bench.drop_places("sparse")


def tools(bench, cap):
    """Tools that know one pair of files, or no repository: the last two days."""
    older, newer = (bench.image(name) for name in bench.history("main")[-2:])
    out = os.path.join(bench.work, "tool")

    def job(who, script, output):
        target = os.path.join(out, output) if output else None
        command = ["sh", "-ec", script, "sh", older, newer, out]
        bench.tool("tool", "main", "", who, [command], cap, target)

    def fresh():
        shutil.rmtree(out, ignore_errors=True)
        os.makedirs(out)

    fresh()
    job("xdelta3 encode", 'xdelta3 -1 -B 1073741824 -e -f -s "$1" "$2" "$3/delta"', "delta")
    job("xdelta3 decode", 'xdelta3 -d -c -B 1073741824 -s "$1" "$3/delta" | cmp - "$2"', None)
    fresh()
    job("rdiff signature", 'rdiff -b 65536 signature "$1" "$3/signature"', "signature")
    job("rdiff delta", 'rdiff delta "$3/signature" "$2" "$3/delta"', "delta")
    job("rdiff patch", 'rdiff patch "$1" "$3/delta" - | cmp - "$2"', None)
    fresh()
    job(
        "qemu-img convert, qcow2 with zstd",
        'qemu-img convert -O qcow2 -c -o compression_type=zstd "$2" "$3/disk"',
        "disk",
    )
    job("qemu-img compare", 'qemu-img compare -q "$3/disk" "$2"', None)
    fresh()
    # From standard input: given a file, version 1.4 writes nothing and fails.
    zbackup = "zbackup --silent --non-encrypted"
    job(
        "zbackup, both days",
        f'{zbackup} init "$3/z"; {zbackup} backup "$3/z/backups/older" < "$1"; '
        f'{zbackup} backup "$3/z/backups/newer" < "$2"',
        "z/backups/newer",
    )
    size = measure.folder_bytes(out)
    bench.records[-1]["output"] = size
    bench.save()
    shutil.rmtree(out, ignore_errors=True)
