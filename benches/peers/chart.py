"""The chart, as SVG: bytes after each day as lines, costs of the jobs as bars."""

from xml.sax.saxutils import escape

WIDTH = 1120
MARGIN = 30
FONT = "font-family='Helvetica, Arial, sans-serif'"
COLOURS = [
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
]
MINE = "#d62728"
MB = 1e6


class Chart:
    """SVG elements, top to bottom."""

    def __init__(self, figures):
        self.f = figures
        self.parts = []
        rivals = [n for n in figures.peers if figures.peers[n]["program"] != "diskvault"]
        self.colours = dict(zip(rivals, COLOURS * 3, strict=False))

    def colour(self, name):
        """Each row keeps its colour in all parts of the chart."""
        return self.colours.get(name, MINE)

    def text(self, x, y, words, size=13, anchor="start", weight="normal", fill="#222"):
        """Words at a place."""
        self.parts.append(
            f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' {FONT} text-anchor='{anchor}' "
            f"font-weight='{weight}' fill='{fill}'>{escape(words)}</text>"
        )

    def line(self, x1, y1, x2, y2, colour="#ddd", width=1.0):
        """A straight line."""
        self.parts.append(
            f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' "
            f"stroke='{colour}' stroke-width='{width}'/>"
        )

    def bars(self, x, y, width, title, unit, values, digits=1):
        """Horizontal bars, the shortest first, with their figures; returns the height."""
        label, row = 150, 22
        known = sorted((v, n) for n, v in values.items() if v is not None)
        self.text(x, y, title, 15, weight="bold")
        self.text(x, y + 18, f"{unit}; shorter is better", 12, fill="#555")
        top = y + 30
        room = width - label - 60
        largest = known[-1][0] if known else 1
        step = nice_step(largest, 4)
        bottom = top + row * max(len(known), 1) + 4
        tick = 0
        while tick <= largest * 1.001:
            at = x + label + room * tick / largest
            self.line(at, top, at, bottom)
            self.text(at, bottom + 15, f"{tick:g}", 11, "middle", fill="#555")
            tick = round(tick + step, 6)
        self.line(x + label, top, x + label, bottom, "#555")
        for number, (value, name) in enumerate(known):
            middle = top + row * number + row / 2 + 2
            mine = name not in self.colours
            self.text(x + label - 8, middle + 4, name, 12, "end", "bold" if mine else "normal")
            length = max(room * value / largest, 1)
            self.parts.append(
                f"<rect x='{x + label}' y='{middle - 7:.1f}' width='{length:.1f}' height='14' "
                f"fill='{self.colour(name)}'/>"
            )
            self.text(x + label + length + 5, middle + 4, f"{value:.{digits}f}", 12)
        return bottom + 24 - y

    def lines(self, x, y, width, height, title, unit, labels, series):
        """Lines over the days with their names at the right end."""
        self.text(x, y, title, 15, weight="bold")
        self.text(x, y + 18, f"{unit}; lower is better", 12, fill="#555")
        left, top, right, bottom = x + 52, y + 34, x + width - 170, y + height - 26
        largest = max(
            (v for values in series.values() for v in values if v is not None), default=1
        )
        step = nice_step(largest, 6)
        tick = 0
        while tick <= largest * 1.001:
            at = bottom - (bottom - top) * tick / largest
            self.line(left, at, right, at)
            self.text(left - 8, at + 4, f"{tick:g}", 11, "end", fill="#555")
            tick = round(tick + step, 6)
        apart = (right - left) / max(len(labels) - 1, 1)
        for number, label in enumerate(labels):
            self.text(left + apart * number, bottom + 18, label, 12, "middle", fill="#555")
        self.line(left, bottom, right, bottom, "#555")
        ends = []
        # diskvault is drawn last, above the others.
        for name, values in sorted(series.items(), key=lambda item: item[0] not in self.colours):
            points = [
                (left + apart * i, bottom - (bottom - top) * v / largest)
                for i, v in enumerate(values)
                if v is not None
            ]
            if not points:
                continue
            thick = 3.5 if name not in self.colours else 1.8
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
            self.parts.append(
                f"<polyline points='{path}' fill='none' stroke='{self.colour(name)}' "
                f"stroke-width='{thick}'/>"
            )
            ends.append((points[-1][1], name, [v for v in values if v is not None][-1]))
        self.name_ends(right, ends)

    def name_ends(self, right, ends):
        """The names at the ends of the lines, moved apart where they would overlap."""
        ends.sort()
        places = [at for at, _, _ in ends]
        for _ in range(60):
            for i in range(len(places) - 1):
                overlap = 16 - (places[i + 1] - places[i])
                if overlap > 0:
                    places[i] -= overlap / 2
                    places[i + 1] += overlap / 2
        for place, (at, name, value) in zip(places, ends, strict=True):
            self.line(right + 2, at, right + 16, place, self.colour(name))
            weight = "bold" if name not in self.colours else "normal"
            self.text(
                right + 20,
                place + 4,
                f"{name}  {value:.0f}",
                12,
                weight=weight,
                fill=self.colour(name),
            )

    def svg(self, height):
        """The whole picture."""
        head = (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0f}' "
            f"width='{WIDTH}' height='{height:.0f}'>\n"
            "<rect width='100%' height='100%' fill='white'/>\n"
        )
        return head + "\n".join(self.parts) + "\n</svg>\n"


def nice_step(largest, count):
    """A round distance between marks."""
    rough = largest / count
    power = 10.0 ** (len(f"{int(rough)}") - 1) if rough >= 1 else 0.1
    while power > rough:
        power /= 10
    for factor in (1, 2, 5, 10):
        if power * factor >= rough:
            return power * factor
    return power * 10


def draw(figures):
    """The chart of a run file."""
    names = list(figures.peers)
    days = figures.history("main")
    chart = Chart(figures)
    y = 44
    chart.text(MARGIN, y - 8, "diskvault and its peers on the same disks", 20, weight="bold")
    machine = figures.machine
    chart.text(
        MARGIN,
        y + 12,
        f"{machine['cpu']}, {machine['cores']} cores; medians of "
        f"{len(figures.runs)} run{'s' if len(figures.runs) > 1 else ''}; casync does not encrypt",
        12,
        fill="#555",
    )
    y += 48
    if days:
        sizes = {
            name: [
                None
                if (v := figures.median("repository.bytes", "backup", "main", day, name)) is None
                else v / MB
                for day in days
            ]
            for name in names
        }
        chart.lines(
            MARGIN, y, WIDTH - 2 * MARGIN, 330, "Repository after each day", "MB", days, sizes
        )
        y += 370
    column = (WIDTH - 3 * MARGIN) / 2
    panels = bar_panels(figures, names, days)
    for number in range(0, len(panels), 2):
        heights = [
            chart.bars(MARGIN + (column + MARGIN) * i, y, column, *panel)
            for i, panel in enumerate(panels[number : number + 2])
        ]
        y += max(heights) + 22
    return chart.svg(y)


def bar_panels(figures, names, days):
    """The jobs shown as bars: title, unit, figures, digits."""

    def of(key, stage, history, item, scale=1.0):
        found = {n: figures.median(key, stage, history, item, n) for n in names}
        return {n: None if v is None else v / scale for n, v in found.items()}

    def increments(key):
        found = {}
        for name in names:
            values = [figures.median(key, "backup", "main", day, name) for day in days[1:]]
            known = [v for v in values if v is not None]
            found[name] = sum(known) / len(known) if known else None
        return found

    panels = []
    if days:
        panels += [
            ("First backup", "CPU seconds", of("cpu", "backup", "main", days[0])),
            ("Daily increment, mean of the days", "CPU seconds", increments("cpu")),
            ("Unchanged image again", "CPU seconds", of("cpu", "repeat", "main", None)),
            (
                "Restore of the newest day",
                "wall seconds",
                of("wall", "restore newest", "main", days[-1]),
            ),
            ("Verification of all data", "CPU seconds", of("cpu", "verify", "main", None)),
            (
                "Peak memory of the first backup",
                "MiB",
                of("peak_bytes", "backup", "main", days[0], 1 << 20),
                0,
            ),
        ]
    clones = figures.history("clones")
    if clones:
        sizes = of("repository.bytes", "backup", "clones", clones[-1], MB)
        panels.append(("Three clones of one template", "MB of repository", sizes, 0))
    sparse = of("wall", "sparse", "sparse", None)
    if any(value is not None for value in sparse.values()):
        title = "Sparse disk; who is missing was stopped or failed"
        panels.append((title, "wall seconds", sparse))
    return [panel for panel in panels if any(v is not None for v in panel[2].values())]
