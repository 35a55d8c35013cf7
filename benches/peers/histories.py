"""The days of the two Debian machines and of the clone family.

A history is a list of (name, what happens) in order; each day works on the disk of the day before.
All sizes come from a `Scale`, all random content from its seed.
"""

import dataclasses
import gzip
import os

import content
from guest import RELEASE, Guest, unpack_base
from images import MIB

UPDATES = [RELEASE, f"{RELEASE}-updates", f"{RELEASE}-security"]
POSTGRES = """
install -d -o postgres -g postgres /run/postgresql
pg_ctlcluster 15 main start
su postgres -c "{work}"
pg_ctlcluster 15 main stop
"""
MARIADB = """
install -d -o mysql -g mysql /run/mysqld
mariadbd-safe --user=mysql --skip-networking --innodb-flush-log-at-trx-commit=0 >/dev/null 2>&1 &
for i in $(seq 100); do mariadb-admin ping >/dev/null 2>&1 && break; sleep 0.2; done
mariadb -e "{work}"
mariadb-admin shutdown
wait
"""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large a series is."""

    main_gib: int
    side_gib: int
    kernel: str
    web: str
    media_mib: int
    log_mib: int
    pgbench_scale: int
    transactions: int
    rows: int
    tools: str
    photos: int
    mails: int
    sparse_gib: int
    sparse_pieces: int


FULL = Scale(
    main_gib=12,
    side_gib=4,
    kernel="linux-image-amd64",
    web="nginx openssh-server git ca-certificates cron logrotate rsyslog man-db less vim-tiny "
    "python3 locales",
    media_mib=160,
    log_mib=100,
    pgbench_scale=30,
    transactions=24_000,
    rows=800_000,
    tools="build-essential python3-pip python3-numpy cmake gdb",
    photos=130,
    mails=12_000,
    sparse_gib=1024,
    sparse_pieces=32_768,
)
SMALL = Scale(
    main_gib=3,
    side_gib=2,
    kernel="linux-image-cloud-amd64",
    web="nginx-light cron",
    media_mib=10,
    log_mib=5,
    pgbench_scale=1,
    transactions=500,
    rows=20_000,
    tools="python3-numpy",
    photos=6,
    mails=300,
    sparse_gib=64,
    sparse_pieces=1024,
)


@dataclasses.dataclass
class Day:
    """What the steps of a day work with."""

    guest: Guest
    scale: Scale
    archives: dict
    base: str


def write_media(day, name, mib):
    """A file that does not compress."""
    os.makedirs(day.guest.path("/srv/media"), exist_ok=True)
    content.write_random(day.guest.path(f"/srv/media/{name}"), mib * MIB, name)


def write_logs(day, name, number, mib):
    """More lines in a text log."""
    os.makedirs(day.guest.path("/var/log/site"), exist_ok=True)
    content.write_log(day.guest.path(f"/var/log/site/{name}.log"), mib * MIB, number, name)


def rotate_logs(day, name, generation):
    """Compresses a text log as logrotate does and begins a new one."""
    path = day.guest.path(f"/var/log/site/{name}.log")
    with (
        open(path, "rb") as plain,
        gzip.GzipFile(f"{path}.{generation}.gz", "wb", 6, mtime=0) as z,
    ):
        while piece := plain.read(MIB):
            z.write(piece)
    open(path, "wb").close()


def pgbench(day, transactions, seed):
    """Scattered updates of 8 KiB pages and a write-ahead log."""
    work = f"pgbench -n -c 1 -t {transactions} --random-seed={seed} bench"
    day.guest.sh(POSTGRES.format(work=work))


def main_1(day):
    """A web server as it is set up."""
    unpack_base(day.base, day.guest, "main", keep_packages=True)
    day.guest.use_suites([RELEASE], day.archives)
    day.guest.install(f"{day.scale.kernel} initramfs-tools {day.scale.web}")
    write_media(day, "film", day.scale.media_mib)
    write_media(day, "trailer", day.scale.media_mib // 4)
    write_logs(day, "access", 11, day.scale.log_mib)


def main_2(day):
    """The updates of the release and of its security team, and a new initial file system."""
    day.guest.use_suites(UPDATES, day.archives)
    day.guest.sh("apt-get dist-upgrade -qq -y && update-initramfs -u")
    write_logs(day, "access", 12, day.scale.log_mib // 4)
    write_media(day, "clip-2", day.scale.media_mib // 8)


def main_3(day):
    """A database is installed and filled."""
    day.guest.install("postgresql-15")
    day.guest.write(
        "/etc/postgresql/15/main/conf.d/series.conf", "fsync = off\nsynchronous_commit = off\n"
    )
    work = f"createdb bench && pgbench -q -i -s {day.scale.pgbench_scale} bench"
    day.guest.sh(POSTGRES.format(work=work))
    write_logs(day, "access", 13, day.scale.log_mib // 4)
    write_media(day, "clip-3", day.scale.media_mib // 8)


def main_4(day):
    """The database works; the logs are rotated."""
    pgbench(day, day.scale.transactions, 4)
    rotate_logs(day, "access", 1)
    write_logs(day, "access", 14, day.scale.log_mib // 4)


def main_5(day):
    """Tools to build software with come in."""
    day.guest.install(day.scale.tools)
    pgbench(day, day.scale.transactions // 4, 5)
    write_logs(day, "access", 15, day.scale.log_mib // 4)


def main_6(day):
    """Software and files are deleted; nothing is trimmed."""
    doomed = [name for name in day.scale.tools.split() if name != "build-essential"]
    day.guest.sh(
        f"apt-get purge -qq -y {' '.join(doomed)} git && apt-get autoremove -qq -y --purge"
    )
    day.guest.sh("apt-get clean")
    os.remove(day.guest.path("/srv/media/trailer"))
    os.remove(day.guest.path("/srv/media/clip-2"))
    pgbench(day, day.scale.transactions, 6)
    rotate_logs(day, "access", 2)


def server_1(day):
    """A smaller server that boots through GRUB from its root and keeps no packages."""
    unpack_base(day.base, day.guest, "server", keep_packages=False)
    day.guest.use_suites([RELEASE], day.archives)
    day.guest.install(
        "linux-image-cloud-amd64 initramfs-tools grub-pc-bin grub2-common apache2 "
        "openssh-server rsync python3 rsyslog cron"
    )
    day.guest.sh(
        "mkdir -p /boot/grub/i386-pc && cp /usr/lib/grub/i386-pc/*.mod /boot/grub/i386-pc/ && "
        "grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -o /boot/grub/core.img "
        "biosdisk part_msdos ext2 normal linux"
    )
    write_logs(day, "intranet", 11, day.scale.log_mib // 2)


def server_2(day):
    """The updates of the release and of its security team."""
    day.guest.use_suites(UPDATES, day.archives)
    day.guest.sh("apt-get dist-upgrade -qq -y && update-initramfs -u")
    write_logs(day, "intranet", 12, day.scale.log_mib // 4)


def server_3(day):
    """A database with pages of 16 KiB is installed and filled."""
    day.guest.install("mariadb-server")
    work = (
        "CREATE DATABASE shop; USE shop; CREATE TABLE items (id INT PRIMARY KEY, owner CHAR(32), "
        "stock INT, note VARCHAR(200), KEY (owner)); INSERT INTO items SELECT seq, md5(seq), "
        "seq % 1000, concat('item ', seq, ' of lot ', seq DIV 64, ' kept in hall ', seq % 17, "
        f"' shelf ', md5(seq DIV 7)) FROM seq_1_to_{day.scale.rows};"
    )
    day.guest.sh(MARIADB.format(work=work))
    write_logs(day, "intranet", 13, day.scale.log_mib // 4)


def server_4(day):
    """Rows change all over the table, the oldest go; the logs are rotated."""
    work = (
        "USE shop; UPDATE items SET stock = stock + 1 WHERE rand(7) < 0.002; "
        f"DELETE FROM items WHERE id < {day.scale.rows // 40}; "
        "INSERT INTO items SELECT seq, md5(seq), 0, concat('new item ', seq) FROM "
        f"seq_{day.scale.rows + 1}_to_{day.scale.rows + day.scale.rows // 40};"
    )
    day.guest.sh(MARIADB.format(work=work))
    rotate_logs(day, "intranet", 1)
    day.guest.sh("rm -rf /usr/share/doc/* /usr/share/man/*")


def personalise(day, name, packages, number):
    """Makes a machine of its own out of a copy of the template."""
    day.guest.write("/etc/hostname", name + "\n")
    day.guest.write("/etc/machine-id", content.generator(name).randbytes(16).hex() + "\n")
    day.guest.sh("rm -f /etc/ssh/ssh_host_*; ssh-keygen -q -A")
    day.guest.sh("apt-get update -qq")
    day.guest.install(packages)
    write_logs(day, name, number, max(1, day.scale.log_mib // 10))


def clone_a(day):
    """A web server."""
    personalise(day, "clone-a", "nginx php-fpm", 11)


def clone_b(day):
    """A database server."""
    personalise(day, "clone-b", "postgresql-15", 12)


def clone_c(day):
    """A developer's machine."""
    personalise(day, "clone-c", "git gcc libc6-dev make", 13)


MAIN = [
    (f"day{i}", step) for i, step in enumerate([main_1, main_2, main_3, main_4, main_5, main_6], 1)
]
SERVER = [
    (f"server{i}", step) for i, step in enumerate([server_1, server_2, server_3, server_4], 1)
]
CLONES = [("clone-a", clone_a), ("clone-b", clone_b), ("clone-c", clone_c)]
