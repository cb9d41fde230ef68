"""Write docs/results/fashion.md and its figures from the CSV files of examples/fashion/analysis.py.

    python -m examples.fashion.page docs/results

The text is that of page.txt; a line `[[name]]` in it stands for the table or the figure of that name.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from examples.fashion.intervals_chart import interval_chart
from examples.fashion.run import HERE, NOISY, STAGES
from kdcl_dist.compare.experiment import Table, load_table
from kdcl_dist.utils.intervals import Interval, mean_interval

#: Value by seed.
BySeed = Mapping[int, float]
STUDENTS = ("large", "twin", "medium", "small", "nano", "one", "two", "three", "four", "five", "ensemble")
METHODS = ("dml", "mean", "naive", "linear", "min_logit", "general")
#: The other network of a pair with the large one: suffix of its arms, and its name along the axis.
PARTNERS = {"_twin": "3 M (twin)", "_medium": "1 M (medium)", "": "0.3 M (small)", "_nano": "0.05 M (nano)"}
#: The fewest arms of a seed that make a rank correlation.
MIN_ARMS = 6
TABLES = tuple(dict.fromkeys(name for name, _ in STAGES if name != "f"))
#: Training images a class: suffix of the arms.
SIZES = {50: "_50", 200: "", 1000: "_1000"}
CAPTION = (
    "Test top-1 in %, mean over seeds with the 95% interval (Student's t); in brackets the gain over `{}`, "
    "paired by seed."
)


class Results:
    """The CSV files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.top1: dict[tuple[str, str], dict[int, float]] = {}
        self.loss: dict[tuple[str, str], dict[int, float]] = {}
        for row in _rows(folder / "results.csv"):
            key, seed = (row["arm"], row["student"]), int(row["seed"])
            self.top1.setdefault(key, {})[seed] = float(row["top1"])
            self.loss.setdefault(key, {})[seed] = float(row["loss"])
        self.figures: dict[tuple[str, str, str], dict[int, float]] = {}
        for row in _rows(folder / "analysis.csv"):
            what = row["arm"], row["student"], row["name"]
            self.figures.setdefault(what, {})[int(row["seed"])] = float(row["value"])
        self.noise: dict[tuple[str, str, float], dict[int, float]] = {}
        for row in _rows(folder / "noise.csv"):
            at = row["arm"], row["student"], float(row["deviation"])
            self.noise.setdefault(at, {})[int(row["seed"])] = float(row["loss"])

    def of(self, arm: str, student: str) -> BySeed:
        """Top-1 in % by seed."""
        return self.top1.get((arm, student), {})

    def gain(self, arm: str, student: str, base: str) -> BySeed:
        """The gain in points over an arm, of the seeds that both have."""
        return minus(self.of(arm, student), self.of(base, student))


def minus(own: BySeed, base: BySeed) -> dict[int, float]:
    """Differences of the seeds that both have."""
    return {seed: own[seed] - base[seed] for seed in sorted(own) if seed in base}


def interval(values: BySeed) -> Interval | None:
    """The mean with its interval; None without any value."""
    return mean_interval(list(values.values())) if values else None


def shown(found: Interval | None, sign: str = "", digits: int = 2) -> str:
    """An interval as text."""
    if found is None:
        return ""
    value = f"{found.value:{sign}.{digits}f}"
    return value if np.isnan(found.low) else f"{value} ± {found.half_width:.{digits}f}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with numbers to the right."""
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _planned(name: str) -> Table:
    """A table of this folder with the seeds that `run.py` trains."""
    table = load_table(HERE / f"{name}.yaml")
    return table.model_copy(update={"seeds": table.seeds[: max(n for stage, n in STAGES if stage == name)]})


def arms_table(name: str, results: Results) -> str:
    """A table of `kdcl compare` from the CSV, with the number of its runs that are done."""
    table = _planned(name)
    arms, base = [arm.name for arm in table.arms], str(table.baseline)
    students = [student for student in STUDENTS if any(results.of(arm, student) for arm in arms)]
    rows, done = [], 0
    for arm in arms:
        seeds = max((len(results.of(arm, student)) for student in students), default=0)
        done += seeds
        cells = []
        for student in students:
            cell = shown(interval(results.of(arm, student)))
            if arm != base and (gain := interval(results.gain(arm, student, base))):
                cell += f" ({shown(gain, '+')})"
            cells.append(cell)
        rows.append([f"`{arm}`", f"{seeds} of {len(table.seeds)}", *cells])
    planned = len(arms) * len(table.seeds)
    state = "" if done == planned else f"**Incomplete: {done} of {planned} runs are done.** "
    command = f"`kdcl compare examples/fashion/{name}.yaml --launcher local`"
    return f"{state}{CAPTION.format(base)} {command}\n\n" + markdown(["arm", "seeds", *students], rows)


def gap_figure(results: Results) -> str:
    """Gain of the large network by the size of its partner."""
    series = {m: [interval(results.gain(m + p, "large", "none")) for p in PARTNERS] for m in METHODS}
    title = "Gain of the large network in top-1 points over training alone, by the size of the other network"
    unit, axis = "gain of the large network, points", "the other network"
    return interval_chart(title, unit, axis, [*PARTNERS.values()], series)


def gap_table(results: Results) -> str:
    """The numbers of `gap_figure`, each with its number of seeds."""
    rows = []
    for method in METHODS:
        gains = [results.gain(method + partner, "large", "none") for partner in PARTNERS]
        rows.append([f"`{method}`", *(f"{shown(interval(gain), '+')} ({len(gain)})" for gain in gains)])
    return markdown(["gain of the large (seeds)", *PARTNERS.values()], rows)


def size_figure(student: str, results: Results) -> str:
    """Gain of a network of table A's pair by the size of the training set."""
    series = {
        method: [interval(results.gain(method + end, student, "none" + end)) for end in SIZES.values()]
        for method in ("dml", "linear", "general")
    }
    title = f"Gain of the {student} network in top-1 points over training alone, by training images a class"
    unit = f"gain of the {student} network, points"
    return interval_chart(title, unit, "training images a class", [str(size) for size in SIZES], series)


def noise_table(results: Results) -> str:
    """Table F: the loss of the networks of table A's pair without noise, and under noise."""
    levels = sorted({level for _, _, level in results.noise})
    rows = []
    for student in ("large", "small"):
        for arm in NOISY:
            found = [results.noise.get((arm, student, level), {}) for level in levels]
            if any(found):
                clean = {seed: results.loss[arm, student][seed] for seed in found[0]}
                cells = [shown(interval(each), digits=3) for each in (clean, *found)]
                rows.append([f"`{arm}`, {student}", f"{len(found[0])} of 5", *cells])
    if not rows:
        return "**Not measured yet.**"
    return markdown(["arm, student", "seeds", "no noise", *(f"{level:g}" for level in levels)], rows)


def quantities(results: Results, arm: str, student: str) -> dict[str, BySeed]:
    """What was measured of one student in the runs of one arm: means over the run, by name and seed."""
    method = re.sub(r"_(views|twin|medium|nano|four)$", "", arm)
    peers = [other for name, other in results.top1 if name == arm and other not in (student, "ensemble")]
    error = _mean([results.figures.get((arm, peer, "error"), {}) for peer in peers])

    def of(who: str, name: str) -> BySeed:
        return results.figures.get((arm, who, name), {})

    return {
        "cosine of its two gradients": of(student, "gradient_cosine"),
        "its distillation gradient over its task gradient": of(student, "gradient_ratio"),
        "share of samples on which it is the best": of(student, "win_share"),
        "disagreement with its peers": _mean([of(student, f"disagreement/{peer}") for peer in peers]),
        "error of its peers minus its own": minus(error, of(student, "error")),
        "cross-entropy of its soft target": of("ensemble", f"{method}_loss"),
        "entropy of its soft target": of("ensemble", f"{method}_entropy"),
        "share of samples on which its soft target is wrong": of("ensemble", f"{method}_wrong"),
    }


def _mean(values: Sequence[BySeed]) -> dict[int, float]:
    """The mean of the seeds that all have."""
    shared = set.intersection(*(set(each) for each in values)) if values else set()
    return {seed: float(np.mean([each[seed] for each in values])) for seed in shared}


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's rank correlation of pairs without ties."""
    ranks = [np.argsort(np.argsort(column)) for column in np.array(pairs).T]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def predictor_table(results: Results) -> str:
    """How each quantity goes with the gain over the arms of a seed: the mean correlation over seeds."""
    arms = [m + end for m in METHODS for end in ("", "_views", "_twin", "_medium", "_nano", "_four")]
    students = [(arm, student) for arm, student in results.top1 if arm in arms and student != "ensemble"]
    large = _correlations(results, [pair for pair in students if pair[1] == "large"])
    others = _correlations(results, [pair for pair in students if pair[1] != "large"])
    rows = [
        [name, *(shown(interval(found.get(name, {})), "+") for found in (large, others))] for name in large
    ]
    return markdown(["mean over the run of", "the large network", "the other networks"], rows)


def _correlations(results: Results, pairs: Sequence[tuple[str, str]]) -> dict[str, dict[int, float]]:
    """By quantity and seed the rank correlation with the gain, over these arms and students."""
    points: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for arm, student in pairs:
        gain = results.gain(arm, student, "none")
        for name, values in quantities(results, arm, student).items():
            by_seed = points.setdefault(name, {})
            for seed in set(gain) & set(values):
                by_seed.setdefault(seed, []).append((values[seed], gain[seed]))
    return {
        name: {seed: rank_correlation(found) for seed, found in by_seed.items() if len(found) >= MIN_ARMS}
        for name, by_seed in points.items()
    }


def progress(results: Results) -> str:
    """How much of the experiment is done."""
    tables = [_planned(name) for name in TABLES]
    planned = {(arm.name, seed) for table in tables for arm in table.arms for seed in table.seeds}
    done = planned & {(arm, seed) for (arm, _), found in results.top1.items() for seed in found}
    if done == planned:
        return f"All {len(planned)} runs are done."
    return (
        f"**Incomplete: {len(done)} of {len(planned)} planned runs are done.** Each table says what it lacks."
    )


def parts(results: Results) -> Mapping[str, Callable[[], str]]:
    """What stands for `[[name]]` in page.txt."""
    tables = {f"table {name}": partial(arms_table, name, results) for name in TABLES}
    return tables | {
        "progress": partial(progress, results),
        "gap": partial(gap_table, results),
        "noise": partial(noise_table, results),
        "predictors": partial(predictor_table, results),
    }


def figures(results: Results) -> dict[str, str]:
    """The figures by the names of their files."""
    sizes = {f"size-{student}.svg": size_figure(student, results) for student in ("large", "small")}
    return {"gap.svg": gap_figure(results), **sizes}


def page(results: Results) -> str:
    """The page's Markdown."""
    known = parts(results)
    text = (HERE / "page.txt").read_text(encoding="utf-8")
    return re.sub(r"^\[\[(.+)\]\]$", lambda found: known[found[1]](), text, flags=re.MULTILINE)


def main(out: Path) -> None:
    """Write the page and its figures."""
    results = Results(out / "fashion")
    for name, picture in figures(results).items():
        (out / "fashion" / name).write_text(picture, encoding="utf-8")
    (out / "fashion.md").write_text(page(results), encoding="utf-8")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
