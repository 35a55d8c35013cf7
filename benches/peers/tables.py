"""The tables of the report, as Markdown. Each figure is a median over the runs."""

from figures import divide

MB, MIB = 1e6, 1 << 20


def table(head, rows):
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(plain(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def plain(cell):
    """A cell that does not end at a bar of its own."""
    return str(cell).replace("|", "\\|")


def number(value, digits=1, unit=""):
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}{unit}"


class Tables:
    """Everything the report shows but the goals."""

    def __init__(self, figures):
        self.f = figures
        self.names = list(figures.peers)

    def label(self, name):
        """A row's first cell: diskvault stands out, and who does not encrypt is marked."""
        if self.f.peers[name]["program"] == "diskvault":
            return f"**{name}**"
        return name if self.f.peers[name]["encrypted"] else f"{name} (not encrypted)"

    def costs(self, stage, history, item, name, peak=True):
        """Wall seconds, CPU seconds and peak MiB in one cell."""
        wall = self.f.median("wall", stage, history, item, name)
        if wall is None:
            reason = self.f.why_not(stage, history, item, name)
            return reason if len(reason) < 60 else reason[:57] + "..."
        text = f"{wall:.1f} / {self.f.median('cpu', stage, history, item, name):.1f}"
        if peak:
            text += f" / {self.f.median('peak_bytes', stage, history, item, name) / MIB:.0f}"
        return text

    def size(self, stage, history, item, name, key="repository.bytes"):
        """Megabytes."""
        value = self.f.median(key, stage, history, item, name)
        return number(None if value is None else value / MB, 0)

    def who(self):
        """Versions and settings."""
        rows = [
            (self.label(name), peer["version"], peer["settings"])
            for name, peer in self.f.peers.items()
        ]
        rows += [(name, "left out", reason) for name, reason in self.f.absent.items()]
        return table(["row", "version", "settings"], rows)

    def images(self):
        """The images."""
        rows = [
            (
                name,
                entry["history"],
                f"{entry['bytes'] / (1 << 30):.0f}",
                number(entry["allocated_bytes"] / MB, 0),
                entry["story"],
            )
            for name, entry in self.f.series.items()
        ]
        return table(["image", "history", "virtual GiB", "allocated MB", "what happened"], rows)

    def sizes(self, history):
        """Repository megabytes after each image, and what the later ones added."""
        images = self.f.history(history)
        rows = []
        for name in self.names:
            cells = [self.size("backup", history, image, name) for image in images]
            added = [self.f.median("added_bytes", "backup", history, i, name) for i in images[1:]]
            known = [value for value in added if value is not None]
            last = self.f.median("repository.bytes", "backup", history, images[-1], name)
            rows.append((last or 1e18, (self.label(name), *cells, number(sum(known) / MB, 0))))
        rows = [row for _, row in sorted(rows, key=lambda row: row[0])]
        return table(["MB", *images, "added after the first"], rows)

    def backups(self, history):
        """What each backup costs."""
        images = self.f.history(history)
        rows = [
            (self.label(name), *(self.costs("backup", history, i, name) for i in images))
            for name in self.names
        ]
        return table(["wall s / CPU s / peak MiB", *images], rows)

    def repeat(self, history):
        """The newest image again."""
        rows = []
        for name in self.names:
            added = self.f.median("added_bytes", "repeat", history, None, name)
            shown = number(None if added is None else added / 1e3, 0)
            rows.append((self.label(name), self.costs("repeat", history, None, name), shown))
        return table(["", "wall s / CPU s / peak MiB", "added kB"], rows)

    def restores(self, history):
        """Restores, compared and with their holes."""
        images = self.f.history(history)
        pairs = [("restore newest", images[-1]), ("restore oldest", images[0])]
        rows = []
        for name in self.names:
            row = [self.label(name)]
            for stage, item in pairs:
                row.append(self.costs(stage, history, item, name))
                target = self.f.median("target_allocated_bytes", stage, history, item, name)
                row.append(number(divide(target, self.f.series[item]["allocated_bytes"]), 3))
            same = [
                r.get("identical")
                for r in self.f.records
                if r["stage"].startswith("restore")
                and r["peer"] == name
                and r["history"] == history
                and "identical" in r
            ]
            row.append(f"{sum(same)} of {len(same)}")
            rows.append(row)
        head = [
            "wall s / CPU s / peak MiB",
            f"newest ({images[-1]})",
            "allocated, of the source's",
            f"oldest ({images[0]})",
            "allocated, of the source's",
            "byte for byte the same",
        ]
        return table(head, rows)

    def verify(self, history):
        """Verification, and what pruning frees."""
        rows = []
        for name in self.names:
            left = self.f.median("repository.bytes", "prune", history, None, name)
            alone = self.f.median("repository.bytes", "alone", history, None, name)
            rows.append(
                (
                    self.label(name),
                    self.costs("verify", history, None, name),
                    self.costs("prune", history, None, name),
                    self.size("prune", history, None, name, "repository_before.bytes"),
                    self.size("prune", history, None, name),
                    number(divide(left, alone), 3),
                )
            )
            if self.f.peers[name]["program"] == "diskvault":
                cell = self.costs("verify without key", history, None, name)
                rows.append((f"{self.label(name)}, without the key", cell, "", "", "", ""))
        head = [
            "wall s / CPU s / peak MiB",
            "verify all data",
            "drop all but the newest, free the room",
            "MB before",
            "MB left",
            "left, of a fresh repository",
        ]
        return table(head, rows)

    def sparse(self):
        """The huge disk and its data alone."""
        rows = [
            (
                self.label(name),
                self.costs("dense", "sparse", None, name),
                self.costs("sparse", "sparse", None, name),
                self.size("sparse", "sparse", None, name),
                self.costs("restore sparse", "sparse", None, name),
            )
            for name in self.names
        ]
        head = [
            "wall s / CPU s / peak MiB",
            "its data alone",
            "the disk",
            "repository MB",
            "restore of the disk",
        ]
        return table(head, rows)

    def limits(self, history):
        """What the machine can do."""
        images = self.f.history(history)
        pair = [images[0], images[-1]]
        names = dict.fromkeys(
            r["peer"] for r in self.f.records if r["stage"] == "limit" and r["history"] == history
        )
        rows = []
        for name in names:
            row = [f"`{name}`"]
            for item in pair:
                row.append(self.costs("limit", history, item, name))
                out = self.f.median("output_allocated_bytes", "limit", history, item, name)
                row.append(number(None if out is None else out / MB, 0))
            rows.append(row)
        return table(["wall s / CPU s / peak MiB", pair[0], "MB", pair[1], "MB"], rows)

    def one_pair(self):
        """Tools that know one pair of files."""
        rows = []
        for record in self.f.records:
            if record["stage"] == "tool":
                size = record.get("output", {}).get("bytes")
                cell = self.costs("tool", "main", "", record["peer"])
                rows.append((record["peer"], cell, number(None if size is None else size / MB, 0)))
        return table(["tool", "wall s / CPU s / peak MiB", "MB of all output"], rows)
