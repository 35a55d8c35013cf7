#!/usr/bin/env python3
"""Builds the disk images that the comparison runs on. What is there already is not built again.

`series.py --folder DIR [--small] [--only main,server,clones,home,sparse]`. It needs root, because
it mounts images, and the packages named in README.md. `manifest.json` in the folder tells what was
built: sizes, digests, parameters.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time

import guest
import histories
import images
import userdisk
from images import GIB, MIB, SECTOR

HISTORIES = ["main", "server", "clones", "home", "sparse"]
ESP_OFFSET, ESP_LENGTH = 1 * MIB, 128 * MIB
GPT_ROOT = 129 * MIB
DOS_ROOT = 1 * MIB
GPT_IDS = "5ea1e500-0000-4000-8000-00000000000"
MAIN_TABLE = f"""label: gpt
label-id: {GPT_IDS}1
start={ESP_OFFSET // SECTOR}, size={ESP_LENGTH // SECTOR}, type=U, uuid={GPT_IDS}2
start={GPT_ROOT // SECTOR}, size={{sectors}}, type=L, uuid={GPT_IDS}3
"""
DOS_TABLE = f"""label: dos
label-id: 0x5ea1e500
start={DOS_ROOT // SECTOR}, size={{sectors}}, type=83, bootable
"""
ROOT_UUID = "5ea1e500-0000-4000-8000-00000000000{}"


class Series:
    """The folder of images and its manifest."""

    def __init__(self, folder, scale, name):
        self.folder, self.scale = folder, scale
        os.makedirs(folder, exist_ok=True)
        self.manifest_path = self.path("manifest.json")
        self.manifest = {"scale": name, "images": {}}
        if os.path.exists(self.manifest_path):
            with open(self.manifest_path, encoding="utf-8") as file:
                self.manifest = json.load(file)
        if self.manifest["scale"] != name:
            raise RuntimeError(f"cannot build here: {folder} holds a series of another size")

    def path(self, name):
        """A path in the folder."""
        return os.path.join(self.folder, name)

    def has(self, name):
        """Whether an image is there and complete."""
        return name in self.manifest["images"] and os.path.exists(self.path(name + ".raw"))

    @contextlib.contextmanager
    def building(self, name, history, story):
        """Gives a path to build at; at the end the image gets its name and its manifest entry."""
        work = self.path(name + ".work")
        began = time.monotonic()
        print(f"building {name}: {story}", flush=True)
        with contextlib.suppress(FileNotFoundError):
            os.remove(work)
        yield work
        os.rename(work, self.path(name + ".raw"))
        entry = {"history": history, "story": story, **images.describe(self.path(name + ".raw"))}
        self.manifest["images"][name] = entry
        self.save()
        print(
            f"built {name}: {entry['allocated_bytes'] / 1e6:.0f} MB allocated, "
            f"{time.monotonic() - began:.0f} s",
            flush=True,
        )

    def save(self):
        """Writes the manifest."""
        with open(self.manifest_path + ".part", "w", encoding="utf-8") as file:
            json.dump(self.manifest, file, indent=1)
        os.rename(self.manifest_path + ".part", self.manifest_path)


def first_line(step):
    """What a day is about."""
    return step.__doc__.strip().splitlines()[0]


def build_machine(series, history, days, known, new_disk, root_offset):
    """Builds the days of a machine, each from the day before."""
    base, previous = None, None
    for name, step in days:
        if not series.has(name):
            base = base or guest.base_archive(series.folder, known)
            with series.building(name, history, first_line(step)) as work:
                if previous:
                    images.copy_sparse(series.path(previous + ".raw"), work)
                else:
                    new_disk(work)
                live_a_day(series, work, name, step, known, base, root_offset)
        previous = name


def live_a_day(series, work, name, step, known, base, root_offset):
    """Mounts the root, does the work of the day, and brings the boot files up to date."""
    length = os.path.getsize(work) - root_offset - MIB
    at = series.path("mnt")
    with images.mounted(work, root_offset, length, at):
        machine = guest.Guest(at)
        step(histories.Day(machine, series.scale, known, base))
        with open(series.path(name + ".packages"), "wb") as file:
            file.write(machine.packages().encode())
        if root_offset == GPT_ROOT:
            # The newest kernel and its initial file system; an older pair stays beside them.
            images.copy_into_fat(work, ESP_OFFSET, newest_pair(machine.kernels()))
        else:
            install_grub(machine, work)


def newest_pair(paths):
    """The kernel and the initial file system that were written last."""
    kernels = [path for path in paths if "vmlinuz-" in path]
    initials = [path for path in paths if "initrd.img-" in path]
    return [kernels[-1], initials[-1]]


def install_grub(machine, work):
    """Puts the boot loader into the first sector and the gap behind it."""
    core = machine.path("/boot/grub/core.img")
    boot = machine.path("/usr/lib/grub/i386-pc/boot.img")
    with open(core, "rb") as file:
        core_bytes = file.read()
    with open(boot, "rb") as file:
        boot_bytes = file.read()[:440]
    with open(work, "r+b") as disk:
        os.pwrite(disk.fileno(), boot_bytes, 0)
        os.pwrite(disk.fileno(), core_bytes[: DOS_ROOT - SECTOR], SECTOR)


def new_main_disk(series):
    """How an empty disk of the main history is made."""

    def make(path):
        size = series.scale.main_gib * GIB
        length = size - GPT_ROOT - MIB
        images.make_sparse(path, size)
        images.make_ext4(path, GPT_ROOT, length, ROOT_UUID.format(4))
        images.partition(path, MAIN_TABLE.format(sectors=length // SECTOR))
        images.make_fat32(path, ESP_OFFSET, ESP_LENGTH)

    return make


def new_server_disk(series):
    """How an empty disk of the server history is made."""

    def make(path):
        size = series.scale.side_gib * GIB
        length = size - DOS_ROOT - MIB
        images.make_sparse(path, size)
        images.make_ext4(path, DOS_ROOT, length, ROOT_UUID.format(5))
        images.partition(path, DOS_TABLE.format(sectors=length // SECTOR))

    return make


def build_clones(series, known):
    """Three machines from one template: the first day of the server."""
    build_machine(series, "server", histories.SERVER[:1], known, new_server_disk(series), DOS_ROOT)
    for name, step in histories.CLONES:
        if not series.has(name):
            with series.building(name, "clones", first_line(step)) as work:
                images.copy_sparse(series.path("server1.raw"), work)
                live_a_day(series, work, name, step, known, None, DOS_ROOT)


def build_home(series):
    """The disk of a person."""
    previous = None
    for name, step in userdisk.HOME:
        if not series.has(name):
            with series.building(name, "home", first_line(step)) as work:
                if previous:
                    images.copy_sparse(series.path(previous + ".raw"), work)
                else:
                    images.make_sparse(work, series.scale.side_gib * GIB)
                    images.make_ext4(work, 0, series.scale.side_gib * GIB, ROOT_UUID.format(6))
                with images.mounted(work, 0, os.path.getsize(work), series.path("mnt")) as root:
                    step(root, series.scale)
        previous = name


def build_sparse(series):
    """A huge disk with little data, and the same data without the disk."""
    size, pieces = series.scale.sparse_gib * GIB, series.scale.sparse_pieces
    for name, spread in (("sparse", True), ("dense", False)):
        if not series.has(name):
            story = "pieces of 64 KiB all over a huge disk" if spread else "the same pieces alone"
            with series.building(name, "sparse", story) as work:
                userdisk.write_pieces(work, size, pieces, spread)


def main():
    """Reads the arguments and builds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="where the images are built")
    parser.add_argument("--small", action="store_true", help="a series for a trial in minutes")
    parser.add_argument(
        "--only", default=",".join(HISTORIES), help="histories, with commas between"
    )
    arguments = parser.parse_args()
    only = arguments.only.split(",")
    if unknown := set(only) - set(HISTORIES):
        parser.error(f"no such history: {', '.join(sorted(unknown))}")
    images.enter_private_mounts()
    # As an exception, so that what runs in the guest is ended and the image unmounted.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scale = histories.SMALL if arguments.small else histories.FULL
    folder = os.path.abspath(arguments.folder)
    series = Series(folder, scale, "small" if arguments.small else "full")
    known = guest.archives()
    if "main" in only:
        build_machine(series, "main", histories.MAIN, known, new_main_disk(series), GPT_ROOT)
    if "server" in only:
        build_machine(series, "server", histories.SERVER, known, new_server_disk(series), DOS_ROOT)
    if "clones" in only:
        build_clones(series, known)
    if "home" in only:
        build_home(series)
    if "sparse" in only:
        build_sparse(series)


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
