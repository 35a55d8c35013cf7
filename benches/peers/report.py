#!/usr/bin/env python3
"""Writes the figures of a run into a document, as tables, and draws the chart.

`report.py FIGURES.json [--into docs/performance.md] [--chart docs/peers.svg]`. Only what
is between the two markers of the document is replaced; without them they are put at its end.
"""

import argparse
import os
import sys

import chart
from figures import Figures
from goals import Goals
from tables import Tables, table

BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"
TITLES = {
    "main": "A web server with a database, six days",
    "server": "A second history: an intranet server that boots through GRUB, four days",
    "home": "A third history: a person's mail, photos and documents, four days",
}


def introduction(figures, picture):
    """Where and how it was measured."""
    machine = figures.machine
    counts = {history: runs_of(figures, history) for history in (*TITLES, "clones", "sparse")}
    runs = ", ".join(f"{history} {count}" for history, count in counts.items() if count)
    load = ", ".join(f"{value:.1f}" for value in machine["load_at_start"])
    kib = int(machine["memory"].split()[0])
    file_system = (machine["file_system"].split() or ["unknown file system"])[0]
    return "\n".join(
        [
            "## Beside its peers",
            "",
            f"Measured by `benches/peers` on {machine['date']}: {machine['cpu']}, "
            f"{machine['cores']} cores, {kib / (1 << 20):.0f} GiB of memory, "
            f"{machine['system']}, kernel {machine['kernel']}, {file_system}; load before the "
            f"start {load}. Everyone works on the same files in turn, in the same run; figures "
            f"are medians (runs: {runs}). Page cache: {machine['page_cache']}. MB are 10^6 bytes. "
            "How to repeat it: [benches/peers](../benches/peers/README.md).",
            "",
            f"![Bytes and CPU seconds of diskvault and its peers]({picture})",
        ]
    )


def runs_of(figures, history):
    """How many runs a history had."""
    return len({r["run"] for r in figures.records if r["history"] == history})


def goal_section(figures):
    """The table of goals."""
    rows = Goals(figures).all()
    if not rows:
        return ""
    return "### Goals\n\nMedians of ratios within one run.\n\n" + table(
        ["work", "goal", "reached", ""], rows
    )


def history_section(figures, tables, history):
    """All tables of one history."""
    if not figures.history(history) or not runs_of(figures, history):
        return ""
    parts = [
        f"### {TITLES[history]}",
        "Repository bytes after each day:",
        tables.sizes(history),
        "Backup of each day; every allocated byte is read:",
        tables.backups(history),
        "The last day once more, unchanged, under another name:",
        tables.repeat(history),
        "Restore:",
        tables.restores(history),
        "Verification of all stored data, and pruning:",
        tables.verify(history),
        "Limits, on the same files in the same runs:",
        tables.limits(history),
    ]
    return "\n\n".join(parts)


def other_sections(figures, tables):
    """Clones, the sparse disk, tools, versions."""
    parts = []
    if runs_of(figures, "clones"):
        parts += [
            "### Three machines from one template",
            tables.sizes("clones"),
            tables.backups("clones"),
        ]
    if runs_of(figures, "sparse"):
        cap = figures.arguments["cap"]
        parts += [
            "### A huge sparse disk",
            f"Stopped after {cap:.0f} s at most; who was stopped has one try.",
            tables.sparse(),
        ]
    if any(record["stage"] == "tool" for record in figures.records):
        parts += ["### Tools for one pair of files: the last two days", tables.one_pair()]
    parts += ["### Images", tables.images(), "### Versions and settings", tables.who()]
    return "\n\n".join(parts)


def replace_between(path, begin, end, text):
    """Puts the text between two markers of a document, at its end if they are not there yet."""
    document = ""
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            document = file.read()
    if begin not in document:
        document = document.rstrip("\n") + f"\n\n{begin}\n{end}\n"
    if end not in document.split(begin, 1)[1]:
        raise RuntimeError(f"cannot write {path}: {begin} has no {end} behind it")
    before, rest = document.split(begin, 1)
    after = rest.split(end, 1)[1]
    with open(path + ".part", "w", encoding="utf-8") as file:
        file.write(f"{before}{begin}\n{text}\n{end}{after}")
    os.rename(path + ".part", path)


def main():
    """Reads the figures, writes the tables and the chart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", help="the file run.py has written")
    parser.add_argument("--into", default="docs/performance.md", help="the document")
    parser.add_argument("--chart", default="docs/peers.svg", help="the chart")
    options = parser.parse_args()
    figures = Figures(options.figures)
    tables = Tables(figures)
    picture = os.path.relpath(options.chart, os.path.dirname(os.path.abspath(options.into)))
    sections = [introduction(figures, picture), goal_section(figures)]
    sections += [history_section(figures, tables, history) for history in TITLES]
    sections.append(other_sections(figures, tables))
    text = "\n\n".join(part for part in sections if part)
    replace_between(options.into, BEGIN, END, text)
    with open(options.chart, "w", encoding="utf-8") as file:
        file.write(chart.draw(figures))


if __name__ == "__main__":
    try:
        main()
    except (RuntimeError, OSError, KeyError) as error:
        sys.exit(f"error: {error}")
