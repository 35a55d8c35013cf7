"""The goals: what diskvault is to reach, what it reached in this file, and whether it is met.

Every ratio is of two figures of the same run, and the median over the runs is given.
"""

import statistics

from figures import divide

MIB = 1 << 20


class Goals:
    """The rows of the table of goals."""

    def __init__(self, figures):
        self.f = figures
        self.me = figures.mine()
        self.days = figures.history("main")
        self.rows = []

    def add(self, work, goal, value, show, met):
        """One row; without a value it is not measured."""
        if value is None:
            self.rows.append((work, goal, "not measured", "open"))
        else:
            self.rows.append((work, goal, show(value), "met" if met(value) else "**not met**"))

    def at_least(self, work, goal, value, bound):
        """A ratio that is to be large."""
        self.add(work, goal, value, lambda v: f"{v:.2f}x", lambda v: v >= bound)

    def at_most(self, work, goal, value, bound):
        """A ratio that is to be small."""
        self.add(work, goal, value, lambda v: f"{v:.2f}x", lambda v: v <= bound)

    def against_best(self, key, stage, history, item):
        """How many times less than the best encrypted peer, which is chosen in each run."""

        def ratio(run):
            best, _ = self.f.best(key, stage, history, item, run)
            return divide(best, self.f.median(key, stage, history, item, self.me, run))

        return self.f.median_of_ratios(ratio)

    def against_limit(self, key, limit, item, stage):
        """How many times the speed of a limit on the same image."""

        def ratio(run):
            limits = self.f.median(key, "limit", "main", item, limit, run)
            name = item if stage != "repeat" else None
            return divide(limits, self.f.median(key, stage, "main", name, self.me, run))

        return self.f.median_of_ratios(ratio)

    def all(self):
        """Every goal, in the order of the work."""
        if not self.days:
            return []
        self.sizes()
        self.first_backup()
        self.later_backups()
        self.sparse()
        self.restores()
        self.checks()
        self.footprint()
        return self.rows

    def sizes(self):
        """Bytes of the repository under those of the best encrypted peer."""
        for history, work in (
            ("main", "repository after the whole series"),
            ("clones", "repository after the clone family"),
            ("server", "repository after the second history"),
            ("home", "repository after the third history"),
        ):
            names = self.f.history(history)
            ratio = (
                self.against_best("repository.bytes", "backup", history, names[-1])
                if names
                else None
            )
            under = None if ratio is None else (1 - 1 / ratio) * 100
            goal = "at least 8 % under the best encrypted peer"
            if history in ("main", "clones"):
                self.add(work, goal, under, lambda v: f"{v:.1f} % under", lambda v: v >= 8)
            elif under is not None:
                self.rows.append((work, "none of its own", f"{under:.1f} % under the best", "-"))

    def first_backup(self):
        """Speed of zstd, and CPU seconds of those who are not larger."""
        day = self.days[0]
        self.at_least(
            "first backup",
            "at least the speed of `zstd -3 -T0`",
            self.against_limit("wall", "zstd -3 -T0", day, "backup"),
            1,
        )

        def ratio(run):
            size = self.f.median("repository.bytes", "backup", "main", day, self.me, run)
            small = [
                name
                for name in self.f.rivals(encrypted=False)
                if (self.f.median("repository.bytes", "backup", "main", day, name, run) or 1e18)
                <= (size or 0)
            ]
            best, _ = self.f.best("cpu", "backup", "main", day, run, small)
            return divide(best, self.f.median("cpu", "backup", "main", day, self.me, run))

        value = self.f.median_of_ratios(ratio)
        goal = "fewer CPU seconds than every peer of equal or smaller size"
        if value is None:
            self.rows.append(("first backup", goal, "no peer is as small", "met"))
        else:
            self.at_least("first backup", goal, value, 1)

    def later_backups(self):
        """An unchanged image, and the days."""
        threads = self.f.machine["cores"]
        self.at_least(
            "repeat of an unchanged image",
            f"at least 0.8 of the speed of `b3sum` with {threads} threads",
            self.against_limit("wall", f"b3sum, {threads} threads", self.days[-1], "repeat"),
            0.8,
        )
        self.at_least(
            "repeat of an unchanged image",
            "at least 3x less CPU than the best peer",
            self.against_best("cpu", "repeat", "main", None),
            3,
        )
        for key, word in (("wall", "wall"), ("cpu", "CPU")):
            ratios = [self.against_best(key, "backup", "main", day) for day in self.days[1:]]
            known = [ratio for ratio in ratios if ratio is not None]
            value = statistics.median(known) if known else None
            self.at_least("daily increment", f"at least 3x the best peer in {word} time", value, 3)
        reason = self.f.why_not("hinted", "main", None, self.me)
        self.rows.append(("hinted increment", "in runs of 2 MiB under 2 s", reason, "open"))

    def sparse(self):
        """A huge disk beside its data alone."""

        def ratio(run):
            wide = self.f.median("wall", "sparse", "sparse", None, self.me, run)
            return divide(wide, self.f.median("wall", "dense", "sparse", None, self.me, run))

        value = self.f.median_of_ratios(ratio)
        self.at_most("sparse disk", "within 1.3x of the time for its data alone", value, 1.3)

    def restores(self):
        """The newest and the oldest day."""
        newest, oldest = self.days[-1], self.days[0]
        pairs = (("newest", newest), ("oldest", oldest))
        for word, day in pairs:
            for key, name in (("wall", "wall"), ("cpu", "CPU")):
                value = self.against_best(key, f"restore {word}", "main", day)
                self.at_least(
                    f"restore, {word} point", f"less {name} than the best peer", value, 1
                )

        def per_byte(run, word, day):
            wall = self.f.median("wall", f"restore {word}", "main", day, self.me, run)
            return divide(wall, self.f.series[day]["allocated_bytes"])

        value = self.f.median_of_ratios(
            lambda run: divide(per_byte(run, "oldest", oldest), per_byte(run, "newest", newest))
        )
        self.at_most(
            "restore", "the oldest within 1.2x of the newest, for each allocated byte", value, 1.2
        )

        def of_limit(run):
            limit = self.f.median("wall", "restore limit", "main", newest, self.me, run)
            return divide(limit, self.f.median("wall", "restore newest", "main", newest, self.me, run))

        value = self.f.median_of_ratios(of_limit)
        self.at_least(
            "restore, newest point",
            "0.85 of the speed of decoding and writing the same segments without a repository",
            value,
            0.85,
        )

    def checks(self):
        """Verification and pruning."""
        for key, name in (("wall", "wall"), ("cpu", "CPU")):
            value = self.against_best(key, "verify", "main", None)
            self.at_least(
                "`check --read-data`", f"2x the best peer that verifies, {name}", value, 2
            )

        def keyless(run):
            limit = self.f.median("wall", "b3sum of the repository", "main", None, self.me, run)
            return divide(
                limit, self.f.median("wall", "verify without key", "main", None, self.me, run)
            )

        goal = "at least 0.8 of `b3sum` over the repository's bytes"
        self.if_there(
            "verify without key", "`check --no-key`", goal, self.f.median_of_ratios(keyless), 0.8
        )
        repacking = [
            name
            for name in self.f.rivals()
            if self.f.peers[name]["program"] in ("borg", "rustic", "restic")
        ]

        def pruning(run):
            best, _ = self.f.best("wall", "prune", "main", None, run, repacking)
            return divide(best, self.f.median("wall", "prune", "main", None, self.me, run))

        goal = "2x the best peer that repacks"
        self.if_there(
            "prune", "prune after dropping all but one", goal, self.f.median_of_ratios(pruning), 2
        )

        def left(run):
            kept = self.f.median("repository.bytes", "prune", "main", None, self.me, run)
            return divide(
                kept, self.f.median("repository.bytes", "alone", "main", None, self.me, run)
            )

        value = self.f.median_of_ratios(left)
        if value is not None:
            self.at_most(
                "prune after dropping all but one",
                "at most 1.05x of a fresh repository",
                value,
                1.05,
            )

    def if_there(self, stage, work, goal, value, bound):
        """A goal on something that may not exist yet."""
        if value is None:
            self.rows.append((work, goal, self.f.why_not(stage, "main", None, self.me), "open"))
        else:
            self.at_least(work, goal, value, bound)

    def footprint(self):
        """Memory, and the room the index takes."""
        peaks = [
            r["peak_bytes"] for r in self.f.records if r["peer"] == self.me and r.get("peak_bytes")
        ]
        self.add(
            "peak memory of all of this",
            "under 256 MiB",
            max(peaks, default=None),
            lambda v: f"{v / MIB:.0f} MiB",
            lambda v: v < 256 * MIB,
        )
        taken = self.f.median("index_bytes", "index", "main", None, self.me)
        value = divide(taken, self.f.median("entries", "index", "main", None, self.me))
        self.add(
            "index",
            "under 40 bytes of disk for each chunk",
            value,
            lambda v: f"{v:.0f} bytes for each chunk or page",
            lambda v: v < 40,
        )
