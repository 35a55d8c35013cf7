#!/usr/bin/env python3
"""Runs diskvault and its peers on the same images, in turn, and writes all figures to one file.

`run.py --series DIR --work DIR --diskvault PATH [--runs N]`. See README.md for what is measured.
"""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import time

import bench as state
import peers as rows
import stages

STAGES = ["main", "server", "home", "clones", "sparse", "tools"]
# What the repositories of all peers take together, as a part of the last image's allocated size.
ROOM_FOR_EACH_PEER = 0.6
ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", required=True, help="the folder series.py has filled")
    parser.add_argument(
        "--work", required=True, help="a folder for repositories, on one disk with the series"
    )
    parser.add_argument(
        "--diskvault", default="target/release/diskvault", help="the release binary"
    )
    parser.add_argument(
        "--restore-limit",
        default="target/release/examples/restore_limit",
        help="the program that restores without a repository; left out if it is not built",
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME:ARGUMENTS",
        help="one more diskvault with these arguments of init; may be repeated",
    )
    parser.add_argument("--bin", help="the folder install.py has filled, searched before PATH")
    parser.add_argument(
        "--runs", type=int, default=3, help="runs of the main history and the sparse disk"
    )
    parser.add_argument("--side-runs", type=int, default=1, help="runs of the other histories")
    parser.add_argument(
        "--peers", help="only rows whose name holds one of these, with commas between"
    )
    parser.add_argument(
        "--together",
        type=int,
        metavar="N",
        help="repositories of N peers at most at the same time, where the disk is small",
    )
    parser.add_argument("--stages", default=",".join(STAGES), help="stages, with commas between")
    parser.add_argument(
        "--cap",
        type=float,
        default=120,
        help="seconds until a backup of the sparse disk is stopped",
    )
    parser.add_argument("--tool-cap", type=float, default=600, help="the same for each tool")
    parser.add_argument("--out", default="peers.json", help="the file of all figures")
    found = parser.parse_args()
    found.stages = found.stages.split(",")
    if unknown := set(found.stages) - set(STAGES):
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    return found


def output_of(command):
    """What a command prints, or nothing."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def first_value(path, key):
    """A value of a file of /proc."""
    with open(path, encoding="utf-8") as file:
        return next((line.split(":", 1)[1].strip() for line in file if line.startswith(key)), "")


def machine(work):
    """What the figures depend on."""
    return {
        "cpu": first_value("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory": first_value("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "file_system": output_of(["findmnt", "-n", "-o", "FSTYPE,OPTIONS", "-T", work]),
        "load_at_start": os.getloadavg(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "page_cache": "inputs read once and everything written out before each timed job",
    }


def tool_versions(search_path):
    """The versions of the tools that give limits."""
    asked = {
        "b3sum": ["--version"],
        "zstd": ["--version"],
        "cp": ["--version"],
        "xdelta3": ["-V"],
        "rdiff": ["--version"],
        "qemu-img": ["--version"],
        "zbackup": ["--help"],
    }
    found = {}
    for name, options in asked.items():
        path = shutil.which(name, path=search_path)
        if not path:
            found[name] = None
            continue
        done = subprocess.run([path, *options], capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).strip().splitlines()
        named = [line for line in lines if "version" in line.lower() or name in line.lower()]
        found[name] = (named or lines or ["unknown"])[0].strip("* ")
    return found


def choose(options, search_path):
    """The peers that take part, and why the others do not."""
    everyone = rows.all_peers(os.path.abspath(options.diskvault), options.variant, search_path)
    wanted = options.peers.split(",") if options.peers else [""]
    chosen, absent = [], {}
    for peer in everyone:
        if not any(part in peer.name for part in wanted):
            absent[peer.name] = "left out by --peers"
        elif reason := peer.missing():
            absent[peer.name] = reason
        else:
            chosen.append(peer)
    for name, reason in absent.items():
        print(f"without {name}: {reason}", flush=True)
    if not chosen:
        raise RuntimeError("cannot compare: nobody is installed")
    return chosen, absent


def check_room(bench, wanted, together):
    """Fails early if the repositories and a restored image will not fit."""
    sizes = [
        bench.manifest[name]["allocated_bytes"]
        for history in wanted
        for name in bench.history(history)
    ]
    last = max(sizes, default=0)
    # And a restored image, which may be larger than its source, and one more repository.
    needed = int(last * (ROOM_FOR_EACH_PEER * together + 2))
    free = shutil.disk_usage(bench.work).free
    if free < needed:
        raise RuntimeError(
            f"cannot start: {bench.work} has {free / 1e9:.0f} GB free, about {needed / 1e9:.0f} "
            "are needed; with --together 3 it is less"
        )


def one_run(bench, options):
    """All stages once."""
    wanted = set(options.stages)
    if bench.run > options.side_runs:
        wanted -= {"server", "home", "clones"}
    if bench.run > 1:
        wanted.discard("tools")
    for history in ("main", "server", "home"):
        if history in wanted and bench.history(history):
            names = bench.history(history)
            stages.limits(bench, history, [names[0], names[-1]])
            in_groups(bench, options.together, lambda h=history: whole_history(bench, h))
    if "clones" in wanted and bench.history("clones"):
        in_groups(bench, options.together, lambda: stages.clones(bench))
    if "sparse" in wanted and bench.has("sparse", "dense"):
        stages.sparse(bench, options.cap)
    if "tools" in wanted and bench.history("main"):
        stages.tools(bench, options.tool_cap)


def in_groups(bench, together, work):
    """Does some work with all peers, or with so many of them at a time."""
    everyone = bench.in_turn(0)
    size = together or len(everyone)
    try:
        for first in range(0, len(everyone), size):
            bench.peers = everyone[first : first + size]
            work()
    finally:
        bench.peers = bench.everyone


def whole_history(bench, history):
    """Backups, repeat, restores, verification and pruning on one history."""
    stages.days(bench, history)
    stages.repeat(bench, history)
    stages.restores(bench, history)
    stages.verify(bench, history)
    stages.prune(bench, history)
    bench.drop_places(history)


def end(number, _):
    """Ends the program once: a second signal must not end the cleaning up."""
    for ending in ENDING:
        signal.signal(ending, signal.SIG_IGN)
    sys.exit(128 + number)


def main():
    """Prepares, runs, and leaves nothing behind but the figures."""
    options = arguments()
    for number in ENDING:
        signal.signal(number, end)
    search_path = os.environ["PATH"]
    if options.bin:
        search_path = os.path.abspath(options.bin) + os.pathsep + search_path
    chosen, absent = choose(options, search_path)
    # A folder of its own, so that cleaning up can remove all of it.
    work = os.path.join(os.path.abspath(options.work), f"peers-{os.getpid()}")
    os.makedirs(work)
    try:
        bench = state.Bench(
            os.path.abspath(options.series),
            work,
            os.path.abspath(options.out),
            chosen,
            search_path,
        )
        if os.access(options.restore_limit, os.X_OK):
            bench.restore_limit = os.path.abspath(options.restore_limit)
        together = options.together or len(chosen)
        check_room(bench, options.stages, min(together, len(chosen)))
        bench.head = {
            "machine": machine(work),
            "arguments": {
                "runs": options.runs,
                "side_runs": options.side_runs,
                "cap": options.cap,
            },
            "peers": {
                peer.name: {
                    "version": peer.version(),
                    "encrypted": peer.encrypted,
                    "settings": peer.settings,
                    "program": peer.program,
                }
                for peer in chosen
            },
            "absent": absent,
            "tools": tool_versions(search_path),
            "series": bench.manifest,
        }
        for number in range(1, options.runs + 1):
            bench.run = number
            one_run(bench, options)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"figures are in {options.out}")


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
