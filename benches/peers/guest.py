"""A Debian guest in a mounted root: debootstrap, and commands inside of it.

Each command runs in a process namespace of its own: whatever it started ends with it.
"""

import os
import shutil

from images import run

RELEASE = "bookworm"
# The device nodes, /proc and the rest of a booted machine, only while a command runs.
ENTER = """
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
mount -t tmpfs tmpfs "$1/run"
mount -t tmpfs tmpfs "$1/tmp"
exec chroot "$1" /bin/sh -euc "$2"
"""
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "DEBIAN_FRONTEND": "noninteractive",
    "LC_ALL": "C",
    "HOME": "/root",
    "TZ": "UTC",
}


def archives():
    """The package archives of this machine, as {suite: address}."""
    listed = run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(RELEASE) $(COMPONENT) $(REPO_URI)",
            "Created-By: Packages",
        ]
    )
    found = {}
    for line in listed.decode().splitlines():
        suite, component, address = line.split(" ", 2)
        if component == "main" and suite.startswith(RELEASE):
            found[suite] = address
    return found


class Guest:
    """The root of a mounted image."""

    def __init__(self, root):
        self.root = root

    def path(self, inside):
        """Where a path of the guest is seen from here."""
        return os.path.join(self.root, inside.lstrip("/"))

    def write(self, inside, text, mode=0o644):
        """Writes a small file."""
        path = self.path(inside)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, mode)

    def sh(self, script):
        """Runs a shell script inside."""
        return run(
            [
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--propagation",
                "private",
                "/bin/sh",
                "-euc",
                ENTER,
                "sh",
                self.root,
                script,
            ],
            env=ENVIRONMENT,
            stdin=open(os.devnull, "rb"),
        )

    def install(self, packages):
        """Installs packages without their recommendations."""
        self.sh(f"apt-get install -qq -y --no-install-recommends {packages}")

    def use_suites(self, suites, known):
        """Writes the list of archives and reads it in."""
        missing = [suite for suite in suites if suite not in known]
        if missing:
            raise RuntimeError(
                f"cannot build the series: this machine's apt does not know {', '.join(missing)}"
            )
        lines = [f"deb {known[suite]} {suite} main" for suite in suites]
        self.write("/etc/apt/sources.list", "\n".join(lines) + "\n")
        self.sh("apt-get update -qq")

    def packages(self):
        """Name and version of every installed package, one a line."""
        return self.sh("dpkg-query -W").decode()

    def kernels(self):
        """The kernels and their initial file systems, newest last."""
        boot = self.path("/boot")
        names = [n for n in os.listdir(boot) if n.startswith(("vmlinuz-", "initrd.img-"))]
        return sorted((os.path.join(boot, name) for name in names), key=os.path.getmtime)


def base_archive(folder, known):
    """A tar file of a fresh minimal root, made once for all histories."""
    target = os.path.join(folder, "base.tar")
    if os.path.exists(target):
        return target
    root = os.path.join(folder, "base")
    shutil.rmtree(root, ignore_errors=True)
    mirror = [known[RELEASE]] if RELEASE in known else []
    run(["debootstrap", "--variant=minbase", RELEASE, root, *mirror])
    run(["tar", "-C", root, "--numeric-owner", "--xattrs", "-cf", target + ".part", "."])
    os.rename(target + ".part", target)
    shutil.rmtree(root)
    return target


def unpack_base(archive, guest, hostname, keep_packages):
    """Turns an empty file system into a guest that can install packages."""
    run(["tar", "-C", guest.root, "--numeric-owner", "--xattrs", "-xpf", archive])
    guest.write("/etc/hostname", hostname + "\n")
    guest.write("/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n")
    shutil.copy("/etc/resolv.conf", guest.path("/etc/resolv.conf"))
    # No service starts while packages are installed: there is no init to start it.
    guest.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
    # Waiting for the disk after every package changes nothing in the image but the time it takes.
    guest.write("/etc/dpkg/dpkg.cfg.d/series", "force-unsafe-io\n")
    # A series is built from what the archive has, even if this machine's clock is off.
    keep = "true" if keep_packages else "false"
    guest.write(
        "/etc/apt/apt.conf.d/99series",
        'Acquire::Check-Valid-Until "false";\nAcquire::Check-Date "false";\n'
        f'APT::Keep-Downloaded-Packages "{keep}";\n',
    )
    if not keep_packages:
        guest.sh("apt-get clean")
