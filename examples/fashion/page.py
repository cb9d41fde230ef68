"""Write docs/results/fashion.md, its figures and the READMEs' table from what analysis.py collected.

    python -m examples.fashion.page docs/results

The text is that of page.txt. `[[name]]` in it stands for the part of that name; besides there are

- `[[gain STUDENT ARM]]` and `[[gain STUDENT ARM BASE]]`: a gain in words
- `[[verdicts STUDENT label]]` and `[[verdicts STUDENT others]]`: those of table A's methods that use
  the label, and of the others
- `[[measured STUDENT ARM NAME]]`: a figure of docs/analysis.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from examples.fashion.ensembles import (
    conflict_figure,
    course_figures,
    gradients_table,
    same_logits_table,
    targets_table,
)
from examples.fashion.findings import choice, conflict_answer, dml_answer, gain, measured, verdicts
from examples.fashion.intervals_chart import interval_chart
from examples.fashion.predictors import predictor_table, predictors_told
from examples.fashion.results import METHODS, PARTNERS, SIZES, Results, interval
from examples.fashion.run import HERE
from examples.fashion.tables import (
    TABLES,
    arms_table,
    gap_table,
    noise_table,
    progress,
    short_table,
    who_gains,
)

__all__ = ["figures", "page"]

#: The READMEs that have table A between these marks, with the heads of its first columns.
READMES = {"README.md": ("method", "seeds"), "README.zh.md": ("方法", "种子数")}
MARKS = "<!-- examples/fashion/page.py -->", "<!-- end -->"


INLINE: Mapping[str, Callable[..., str]] = {"gain": gain, "measured": measured, "verdicts": verdicts}


def gap_figure(results: Results) -> str:
    """Gain of the large network by the size of its partner."""
    series = {m: [interval(results.gain(m + p, "large", "none")) for p in PARTNERS] for m in METHODS}
    title = "Gain of the large network in top-1 points over training alone, by the size of the other network"
    unit, axis = "gain of the large network, points", "the other network"
    return interval_chart(title, unit, axis, [*PARTNERS.values()], series)


def size_figure(student: str, results: Results) -> str:
    """Gain of a network of table A's pair by the size of the training set."""
    series = {
        method: [interval(results.gain(method + end, student, "none" + end)) for end in SIZES.values()]
        for method in ("dml", "linear", "general")
    }
    title = f"Gain of the {student} network in top-1 points over training alone, by training images a class"
    unit = f"gain of the {student} network, points"
    return interval_chart(title, unit, "training images a class", [str(size) for size in SIZES], series)


def figures(results: Results) -> dict[str, str]:
    """The figures by the names of their files."""
    sizes = {f"size-{student}.svg": size_figure(student, results) for student in ("large", "small")}
    gaps = {"gap.svg": gap_figure(results), "gap-cosine.svg": conflict_figure(results)}
    return gaps | sizes | course_figures(results)


def parts(results: Results) -> Mapping[str, Callable[[], str]]:
    """What stands for `[[name]]` in page.txt."""
    tables = {f"table {name}": partial(arms_table, name, results) for name in TABLES}
    gains = {f"who gains {name}": partial(who_gains, name, results) for name in TABLES}
    others = {
        "progress": progress,
        "choice": choice,
        "conflict": conflict_answer,
        "dml": dml_answer,
        "gap": gap_table,
        "noise": noise_table,
        "same logits": same_logits_table,
        "targets": targets_table,
        "gradients": gradients_table,
        "predictors": predictor_table,
        "predictors told": predictors_told,
    }
    return tables | gains | {name: partial(part, results) for name, part in others.items()}


def page(results: Results) -> str:
    """The page's Markdown."""
    known = parts(results)

    def part(found: re.Match[str]) -> str:
        kind, *names = found[1].split()
        return INLINE[kind](results, *names) if kind in INLINE else known[found[1]]()

    return re.sub(r"\[\[(.+?)\]\]", part, (HERE / "page.txt").read_text(encoding="utf-8"))


def with_table(text: str, table: str) -> str:
    """A README with a new table between its marks."""
    before, _, rest = text.partition(MARKS[0])
    return f"{before}{MARKS[0]}\n\n{table}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"


def main(out: Path) -> None:
    """Write the page, its figures and the tables of the READMEs."""
    results = Results(out / "fashion")
    for name, heads in READMES.items():
        readme = HERE.parents[1] / name
        new = with_table(readme.read_text(encoding="utf-8"), short_table(heads, results))
        readme.write_text(new, encoding="utf-8")
    for name, picture in figures(results).items():
        (out / "fashion" / name).write_text(picture, encoding="utf-8")
    (out / "fashion.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
