"""The tracker `csv`: one line for each epoch and student, in a file that a spreadsheet opens."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from kdcl_dist.run.storage import Folder
from kdcl_dist.tracking.tracker import Point, Status, TrackedRun
from kdcl_dist.utils.text import csv_cell

__all__ = ["FILE", "CsvFile"]

#: Its name in the run folder.
FILE = "metrics.csv"
#: The columns before those of the metrics.
KEYS = ["epoch", "step", "student"]
#: Bytes of the largest file that is continued.
MAX_BYTES = 100_000_000


class CsvFile:
    """Writes means over each epoch, and the number of skipped steps; columns are `split/name`.

    An epoch that a resumed run repeats replaces its lines. The file is written whole each time, so that it is
    whole on every storage: it has a line an epoch and student, not a line a step.
    """

    folder: Folder
    lines: dict[tuple[int, str], dict[str, str]]

    def start(self, run: TrackedRun) -> None:
        """Go on with the lines that are there."""
        self.folder, self.lines = run.folder, {}
        try:
            text = self.folder.read(FILE, MAX_BYTES).decode()
            for line in csv.DictReader(io.StringIO(text)):
                self.lines[int(line["epoch"]), line["student"]] = {k: v for k, v in line.items() if v}
        except (FileNotFoundError, ValueError, KeyError, TypeError, csv.Error):  # none, or not as we write it
            self.lines = {}

    def log(self, points: Sequence[Point]) -> None:
        """Add an epoch's lines."""
        values: dict[tuple[int, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for point in points:
            values[point.epoch, csv_cell(point.student)][f"{point.split}/{point.name}"].append(point.value)
        step = str(max((point.step for point in points), default=0))
        for (epoch, student), metrics in values.items():
            keys = {"epoch": str(epoch), "step": step, "student": student}
            means = {csv_cell(name): f"{_total(name, found):.9g}" for name, found in metrics.items()}
            self.lines[epoch, student] = keys | means
        self.folder.write(FILE, self._text().encode())

    def finish(self, status: Status) -> None:
        """Nothing: the file is whole."""

    def _text(self) -> str:
        names = sorted({name for line in self.lines.values() for name in line} - set(KEYS))
        out = io.StringIO()
        writer = csv.DictWriter(out, KEYS + names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(line for _, line in sorted(self.lines.items()))
        return out.getvalue()


def _total(name: str, values: Sequence[float]) -> float:
    """What stands for an epoch's values: of `skipped`, which only skipped steps have, the sum."""
    return sum(values) if name.endswith("/skipped") else fmean(values)
