"""The seconds that each fault of a soak took, as an SVG.

    python docs/images/time_lost.py > docs/images/time-lost.svg

The times are those of docs/results/soak.csv, which `python -m benchmarks.soak` writes.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

TABLE = Path(__file__).parent.parent / "results/soak.csv"
Fault = Mapping[str, str]
ROLES = ("student", "replica", "coordinator", "launcher")
#: How a fault happened, as the table has it, and in words.
HOWS = {
    "nan": "NaN",
    "exception": "exception",
    "cut": "connections reset",
    "torn": "killed while it writes",
    "kill": "killed",
    "cut off": "store's reset too",
    "launcher killed": "launcher killed",
    "disk full": "disk full",
    "stop": "stopped",
}
PHASES = ("data", "forward", "gather", "ensemble", "broadcast", "backward", "record", "checkpoint")
#: Seconds at the ends of the axis, and at its lines.
LOW, HIGH, TICKS = 0.05, 30.0, (0.1, 0.3, 1, 3, 10)
WIDTH, TOP, LANE, GAP, FOOT = 880, 108, 9, 10, 42
#: The panels: left end of the labels, of the axis, and its right end.
PANELS = ((16, 172, 480), (500, 588, 864))
COLOURS = ("#0072b2", "#009e73", "#d55e00", "#7b3f8c")
STYLE = """
text { fill: #1e293b; font-size: 14px }
.name { font-weight: bold; font-size: 17px } .small { font-size: 12.5px; fill: #475569 }
.end { text-anchor: end } .mid { text-anchor: middle }
.grid { stroke: #cbd5e1; stroke-width: 1 } .median { stroke: #0f172a; stroke-width: 2.5 }
.fault { stroke-width: 1; stroke-opacity: .3; fill: none }
"""


def figure() -> str:
    """The SVG: on the left who and how, on the right who and when."""
    faults = [row for row in csv.DictReader(TABLE.read_text().splitlines()) if row["on_s"]]
    kills = [fault for fault in faults if fault["how"] == "kill"]
    rows = max(len(HOWS), len(PHASES))
    height = TOP + rows * (len(ROLES) * LANE + GAP) + FOOT
    legend = [
        f'<path d="M{16 + 130 * n} 66h18" stroke="{colour}" stroke-width="5"/>'
        f'<text x="{40 + 130 * n}" y="71">{role}</text>'
        for n, (role, colour) in enumerate(zip(ROLES, COLOURS, strict=True))
    ]
    return "\n".join(
        [
            *head(height, len(faults)),
            *legend,
            *panel(0, "Who and how", faults, {HOWS[how]: of("how", how) for how in HOWS}),
            *panel(
                1, "Who and when: the killed ones", kills, {phase: of("phase", phase) for phase in PHASES}
            ),
            "</svg>",
        ]
    )


def head(height: float, count: int) -> tuple[str, ...]:
    """The beginning of the SVG, with its title."""
    title = f"Seconds from a fault until the cohort goes on: {count} faults of one run"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" font-family="Helvetica, Arial, sans-serif" '
        'aria-labelledby="title desc">',
        f'<title id="title">{title}</title>',
        '<desc id="desc">A line for each fault, on a logarithmic axis of seconds; results/soak.csv has the '
        "values.</desc>",
        f"<style>{STYLE}</style>",
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="14" fill="#f8fafc" '
        'stroke="#cbd5e1" stroke-width="2"/>',
        f'<text class="name" x="16" y="30">{title}</text>',
        '<text class="small" x="16" y="50">A line is a fault, the black one the median of its row and '
        "colour. Local launcher, two CPU cores.</text>",
    )


def of(column: str, value: str) -> Callable[[Fault], bool]:
    """Whether a fault has a value."""
    return lambda fault: fault[column] == value


def panel(
    number: int, title: str, faults: Sequence[Fault], rows: Mapping[str, Callable[[Fault], bool]]
) -> list[str]:
    """The rows of a panel, with a lane for each role, above its axis."""
    left, begin, end = PANELS[number]
    floor = TOP + len(rows) * (len(ROLES) * LANE + GAP)
    parts = [f'<text class="name" x="{left}" y="{TOP - 12}">{title}</text>']
    for tick in TICKS:
        x = across(tick, begin, end)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{floor}"/>')
        parts.append(f'<text class="small mid" x="{x:.1f}" y="{floor + 16}">{tick:g} s</text>')
    for index, (name, belongs) in enumerate(rows.items()):
        y = TOP + index * (len(ROLES) * LANE + GAP)
        middle = y + len(ROLES) * LANE / 2 + 5
        parts.append(f'<text class="end" x="{begin - 10}" y="{middle}">{name}</text>')
        own = [fault for fault in faults if belongs(fault)]
        for lane, (role, colour) in enumerate(zip(ROLES, COLOURS, strict=True)):
            times = [across(float(fault["on_s"]), begin, end) for fault in own if fault["role"] == role]
            parts += lines(sorted(times), y + lane * LANE, colour)
    return parts


def lines(places: Sequence[float], y: float, colour: str) -> list[str]:
    """The faults of one role in one row, and their median."""
    if not places:
        return []
    marks = "".join(f"M{x:.1f} {y}v{LANE - 1}" for x in places)
    return [
        f'<path class="fault" stroke="{colour}" d="{marks}"/>',
        f'<path class="median" d="M{median(places):.1f} {y}v{LANE - 1}"/>',
    ]


def across(seconds: float, begin: float, end: float) -> float:
    """The place of a time on the logarithmic axis."""
    share = math.log(seconds / LOW) / math.log(HIGH / LOW)
    return begin + min(max(share, 0.0), 1.0) * (end - begin)


if __name__ == "__main__":
    print(figure())
