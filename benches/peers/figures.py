"""The figures of a run file: medians, and ratios within one run."""

import json
import statistics


class Figures:
    """All records of a run file and ways to ask for them."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        self.machine, self.arguments = data["machine"], data["arguments"]
        self.peers, self.absent, self.tools = data["peers"], data["absent"], data["tools"]
        self.series, self.records = data["series"], data["records"]
        self.runs = sorted({record["run"] for record in self.records})

    def mine(self):
        """The row of diskvault with its defaults."""
        return "diskvault"

    def rivals(self, encrypted=True):
        """The peers diskvault is compared with."""
        return [
            name
            for name, peer in self.peers.items()
            if peer["program"] != "diskvault" and (peer["encrypted"] or not encrypted)
        ]

    def history(self, name):
        """The images of a history, in order."""
        return [key for key, entry in self.series.items() if entry["history"] == name]

    def find(self, stage, history, item, who, run=None):
        """The records of a job, failed ones included. An item of None is any."""
        return [
            r
            for r in self.records
            if (r["stage"], r["history"], r["peer"]) == (stage, history, who)
            and item in (None, r["item"])
            and run in (None, r["run"])
        ]

    def values(self, key, stage, history, item, who, run=None):
        """One figure of all good records of a job; `repository.bytes` reaches into a record."""
        found = []
        for record in self.find(stage, history, item, who, run):
            if "error" in record or "not_available" in record:
                continue
            value = record
            for part in key.split("."):
                value = value.get(part) if value is not None else None
            if value is not None:
                found.append(value)
        return found

    def median(self, key, stage, history, item, who, run=None):
        """The median of `values`, or None."""
        found = self.values(key, stage, history, item, who, run)
        return statistics.median(found) if found else None

    def why_not(self, stage, history, item, who):
        """Why there is no figure."""
        for record in self.find(stage, history, item, who):
            if reason := record.get("error") or record.get("not_available"):
                return reason
        return "-"

    def best(self, key, stage, history, item, run, names=None):
        """The smallest figure of the encrypted peers in one run and whose it is."""
        found = []
        for name in self.rivals() if names is None else names:
            value = self.median(key, stage, history, item, name, run)
            if value is not None:
                found.append((value, name))
        return min(found) if found else (None, None)

    def median_of_ratios(self, ratio):
        """The median over the runs of a ratio within each run; `ratio(run)` may be None."""
        found = [value for run in self.runs if (value := ratio(run)) is not None]
        return statistics.median(found) if found else None


def divide(above, below):
    """A ratio, or None where a figure is missing."""
    return above / below if above is not None and below else None
