"""What the benches of the ways back share: a disk, a repository in a folder of their own, and a command line."""

import argparse
import os
import shutil
import sys

PIECE = 1 << 20


def fill(path, generator, size):
    """Every other 64 MiB are data, of which a quarter does not compress; the same for the same generator."""
    with open(path, "wb") as file:
        file.truncate(size)
        for start in range(0, size, 128 << 20):
            file.seek(start)
            for _ in range(min(64 << 20, size - start) // PIECE):
                noise = generator.randbytes(PIECE // 4)
                file.write(noise + noise[:4096] * (3 * PIECE // 4 // 4096))


def drop_caches():
    """Of the kernel; needs root."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as file:
        file.write("3")


class Bench:
    """A folder with a repository and its cache, which goes at the end."""

    def __init__(self, options):
        self.options = options
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": options.work,
            "DISKVAULT_REPOSITORY": self.path("repository"), "DISKVAULT_PASSWORD": "a long passphrase",
            "DISKVAULT_CACHE_DIR": self.path("cache"),
        }

    def path(self, name):
        return os.path.join(self.options.work, name)


def main(description, bench, programs=(), **numbers):
    """Runs `measure` of a bench; `programs` are further options with paths, `numbers` some with defaults."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=form)
    for name in ["diskvault", *programs, "work"]:
        parser.add_argument(f"--{name}", required=True)
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    for name in ["diskvault", *programs]:
        setattr(options, name, os.path.abspath(getattr(options, name)))
    if os.path.exists(options.work):
        sys.exit(f"{options.work} exists")
    os.makedirs(options.work)
    try:
        bench(options).measure()
    finally:
        shutil.rmtree(options.work)
