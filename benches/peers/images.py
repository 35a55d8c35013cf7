"""Disk images as files: sparse creation, partitions, loop mounts, copies and digests.

Mounts live in a mount namespace of this program alone (see `enter_private_mounts`), and `mount -o
loop` takes its loop device back by itself. So no mount and no loop device outlives the program,
however it ends.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys

SECTOR = 512
MIB = 1 << 20
GIB = 1 << 30
NAMESPACE_MARK = "PEERS_PRIVATE_MOUNTS"


def enter_private_mounts():
    """Starts this program again inside a mount namespace of its own, once."""
    if os.environ.get(NAMESPACE_MARK) == "1":
        return
    os.environ[NAMESPACE_MARK] = "1"
    command = ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv]
    os.execvp(command[0], command)


def run(command, **options):
    """Runs a command; its output is shown only if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode != 0:
        tail = done.stdout.decode(errors="replace")[-4000:]
        raise RuntimeError(f"cannot run {command[0]}: exit code {done.returncode}\n{tail}")
    return done.stdout


def make_sparse(path, size):
    """A new file of nothing but a hole."""
    with open(path, "wb") as file:
        file.truncate(size)


def partition(path, table):
    """Writes a partition table given in the language of sfdisk."""
    run(["sfdisk", "--quiet", "--no-reread", path], input=table.encode())


def make_ext4(path, offset, length, uuid):
    """An ext4 file system in a part of the image, with a fixed id and no lazy initialisation.

    It comes before everything else in the image: mkfs.ext4 discards what lies before, too.
    """
    run(
        [
            "mkfs.ext4",
            "-q",
            "-F",
            "-b",
            "4096",
            "-U",
            uuid,
            "-E",
            f"offset={offset},hash_seed={uuid},lazy_itable_init=0,lazy_journal_init=0",
            path,
            f"{length // 1024}k",
        ]
    )


def make_fat32(path, offset, length):
    """A FAT32 file system in a part of the image, with a fixed id (`--invariant`)."""
    run(
        [
            "mkfs.vfat",
            "-F",
            "32",
            "-a",
            "-s",
            "1",
            "--invariant",
            "--offset",
            str(offset // SECTOR),
            path,
            str(length // 1024),
        ]
    )


@contextlib.contextmanager
def mounted(path, offset, length, at):
    """Mounts a part of the image as ext4 for the time of the block."""
    os.makedirs(at, exist_ok=True)
    options = f"loop,offset={offset},sizelimit={length},noatime,nodiscard"
    run(["mount", "-t", "ext4", "-o", options, path, at])
    try:
        yield at
    finally:
        run(["umount", at])
        os.rmdir(at)


def copy_into_fat(path, offset, files):
    """Copies files into the root of a FAT file system in the image, replacing older ones.

    With mtools, because not every kernel can mount FAT.
    """
    run(["mcopy", "-o", "-i", f"{path}@@{offset}", *files, "::/"])


def copy_sparse(source, target):
    """A copy with exactly the holes of the source, complete or not there at all."""
    part = target + ".part"
    with contextlib.suppress(FileNotFoundError):
        os.remove(part)
    extents = list(data_extents(source))
    with open(source, "rb") as reader, open(part, "wb") as writer:
        writer.truncate(os.path.getsize(source))
        for start, length in extents:
            copy_range(reader.fileno(), writer.fileno(), start, length)
    os.rename(part, target)


def copy_range(reader, writer, start, length):
    """Copies one range to the same place of another file."""
    while length > 0:
        piece = os.pread(reader, min(length, 8 * MIB), start)
        if not piece:
            raise RuntimeError("cannot copy a range: the source ends early")
        os.pwrite(writer, piece, start)
        start += len(piece)
        length -= len(piece)


def data_extents(path):
    """The ranges of a file that are not holes, as (start, length)."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        position = 0
        while position < size:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            yield start, end - start
            position = end


def allocated_bytes(path):
    """The bytes a file takes on its file system."""
    return os.stat(path).st_blocks * SECTOR


def describe(path):
    """What the manifest says of an image."""
    size = os.path.getsize(path)
    entry = {
        "bytes": size,
        "allocated_bytes": allocated_bytes(path),
        "sha256_of_data": digest_of_data(path),
    }
    # A terabyte of zeros would take minutes to hash and say nothing.
    b3sum = shutil.which("b3sum")
    if size <= 64 * GIB and b3sum:
        entry["b3sum"] = run([b3sum, "--no-names", path]).decode().strip()
    return entry


def digest_of_data(path):
    """SHA-256 over every 64 KiB block that is not all zeros, each after its offset.

    It does not depend on where a file system has put holes, and takes no time for holes.
    """
    block = 64 * 1024
    zeros = bytes(block)
    state = hashlib.sha256()
    next_block = 0
    with open(path, "rb") as file:
        for start, length in data_extents(path):
            position = max(start // block * block, next_block)
            end = start + length
            while position < end:
                data = os.pread(file.fileno(), block, position)
                if data != zeros[: len(data)]:
                    state.update(position.to_bytes(8, "little"))
                    state.update(data)
                position += block
            next_block = max(next_block, position)
    return state.hexdigest()
