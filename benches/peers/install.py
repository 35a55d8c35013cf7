#!/usr/bin/env python3
"""Installs the peers from the package registries, each one as far as it goes.

`install.py --into DIR`: programs are linked into DIR/bin, which is for `run.py --bin`. It needs
root for apt. What cannot be installed is named at the end and left out of the comparison.
"""

import argparse
import os
import subprocess
import sys

APT_TOOLS = (
    "debootstrap dosfstools mtools fdisk e2fsprogs zstd rdiff xdelta3 casync zbackup qemu-utils "
    "pkg-config libsodium-dev libacl1-dev liblz4-dev libzstd-dev libxxhash-dev libssl-dev "
    "python3-venv python3-dev build-essential"
)
CRATES = {"b3sum": "b3sum@1.8.7", "bupstash": "bupstash@0.12.0", "rustic": "rustic-rs@0.11.4"}
BORG = "borgbackup==1.4.5"
# The restic of Debian 12 is too old to restore with holes.
RESTIC_SUITE = "trixie"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def run(command, **options):
    """Runs a command in the open."""
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True, **options)


def apt(folder):
    """The tools Debian has."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-qq", "-y", "--no-install-recommends"]
    run(["apt-get", "update", "-qq"])
    run([*install, *APT_TOOLS.split()], env=environment)


def borg(folder):
    """borg in a virtual environment of its own."""
    venv = os.path.join(folder, "borg-venv")
    run([sys.executable, "-m", "venv", venv])
    run([os.path.join(venv, "bin", "pip"), "install", "-q", BORG])
    link(os.path.join(venv, "bin", "borg"), folder)


def restic(folder):
    """restic from a newer suite, unpacked beside the system; apt's settings stay as they are."""
    work = os.path.join(folder, "restic")
    for part in ("lists/partial", "cache/archives/partial"):
        os.makedirs(os.path.join(work, part), exist_ok=True)
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Codename: bookworm"]
    known = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    signed = f"[signed-by={KEYRING}] " if os.path.exists(KEYRING) else ""
    sources = os.path.join(work, "sources.list")
    with open(sources, "w", encoding="utf-8") as file:
        file.write(f"deb {signed}{known[0]} {RESTIC_SUITE} main\n")
    settings = [
        "-o",
        f"Dir::Etc::sourcelist={sources}",
        "-o",
        "Dir::Etc::sourceparts=/dev/null",
        "-o",
        f"Dir::State::Lists={work}/lists",
        "-o",
        f"Dir::Cache={work}/cache",
    ]
    run(["apt-get", *settings, "update", "-qq"])
    run(["apt-get", *settings, "download", "-qq", "restic"], cwd=work)
    for name in os.listdir(work):
        if name.endswith(".deb"):
            run(["dpkg", "-x", os.path.join(work, name), work])
    link(os.path.join(work, "usr", "bin", "restic"), folder)


def crate(package):
    """A program from the crates registry, built with its own release profile and lock file."""

    def install(folder):
        environment = {**os.environ, "CARGO_TARGET_DIR": os.path.join(folder, "build")}
        run(["cargo", "install", "--locked", "--root", folder, package], env=environment)

    return install


def link(program, folder):
    """Makes a program known in the folder's bin."""
    os.makedirs(os.path.join(folder, "bin"), exist_ok=True)
    target = os.path.join(folder, "bin", os.path.basename(program))
    if os.path.lexists(target):
        os.remove(target)
    os.symlink(program, target)


def main():
    """Installs everything that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", required=True, help="the folder of the peers")
    parser.add_argument("--only", help="only these, with commas between")
    options = parser.parse_args()
    folder = os.path.abspath(options.into)
    os.makedirs(folder, exist_ok=True)
    steps = {"apt": apt, "borg": borg, "restic": restic}
    steps.update({name: crate(package) for name, package in CRATES.items()})
    failed = []
    for name, step in steps.items():
        if options.only and name not in options.only.split(","):
            continue
        if os.path.exists(os.path.join(folder, "bin", name)):
            print(f"{name} is there already")
            continue
        try:
            step(folder)
        except (OSError, subprocess.CalledProcessError) as error:
            failed.append(f"{name}: {error}")
    for reason in failed:
        print(f"not installed: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
