"""Which of the measured quantities goes with the gain: rank correlations over the arms of a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from examples.fashion.results import METHODS, BySeed, Results, markdown, marked, mean, minus

__all__ = ["predictor_table", "predictors_told", "quantities", "rank_correlation"]

#: Ends of the names of the arms of a cohort.
COHORTS = ("", "_views", "_twin", "_medium", "_nano", "_four")
#: The fewest arms of a seed that make a rank correlation: `dml` has no soft target.
MIN_ARMS = 5
OTHERS = ("small", "medium", "nano")
#: Method, arm and student.
Case = tuple[str, str, str]


def quantities(results: Results, method: str, arm: str, student: str) -> dict[str, BySeed]:
    """What was measured of one student in the runs of one arm: means over the run, by name and seed."""
    peers = sorted(results.cohort(arm) - {student})
    error = mean([results.measured(arm, peer, "error") for peer in peers])
    apart = mean([results.measured(arm, student, f"disagreement/{peer}") for peer in peers])
    return {
        "cosine of its two gradients": results.measured(arm, student, "gradient_cosine"),
        "its distillation gradient over its task gradient": results.measured(arm, student, "gradient_ratio"),
        "share of samples on which it is the best": results.measured(arm, student, "win_share"),
        "its weight in `linear`": results.measured(arm, student, "linear_weight"),
        "disagreement with its peers": apart,
        "error of its peers minus its own": minus(error, results.measured(arm, student, "error")),
        "cross-entropy of its soft target": results.measured(arm, "ensemble", f"{method}_loss"),
        "entropy of its soft target": results.measured(arm, "ensemble", f"{method}_entropy"),
        "share of samples on which its soft target is wrong": results.measured(
            arm, "ensemble", f"{method}_wrong"
        ),
    }


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Spearman's rank correlation; equal values share a mean rank. NaN if all of one kind are equal."""
    ranks = [
        [float(np.mean(np.flatnonzero(np.sort(column) == each))) for each in column]
        for column in np.array(pairs).T
    ]
    if any(len(set(column)) == 1 for column in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def predictor_table(results: Results) -> str:
    """How each quantity goes with the gain over the arms of a seed: the mean correlation over seeds."""
    found = _columns(results)
    names = list(dict.fromkeys(name for column in found.values() for name in column))
    texts = iter(marked([column.get(name, {}) for name in names for column in found.values()]))
    return markdown(
        ["mean over the run of", *found], [[name, *(next(texts) for _ in found)] for name in names]
    )


def predictors_told(results: Results) -> str:
    """The quantities whose correlations hold together, by their signs."""
    found = _columns(results)
    cells = [(head, name, each) for head, column in found.items() for name, each in column.items()]
    texts = marked([each for _, _, each in cells])
    lines = []
    for head in found:
        told = [
            f"{name} ({text.strip('*')})"
            for (at, name, _), text in zip(cells, texts, strict=True)
            if at == head and "*" in text
        ]
        lines.append(f"- {head}: " + ("; ".join(told) or "none") + ".")
    return "\n".join(lines)


def _columns(results: Results) -> dict[str, dict[str, dict[int, float]]]:
    """By the head of a column of the table, and by quantity and seed, the correlation with the gain."""
    large = [_cases("large", end) for end in COHORTS]
    groups = {
        "`large`, all arms": [[case for group in large for case in group]],
        "`large`, methods of a cohort": large,
        "the others, methods of a cohort": [_cases(who, end) for who in OTHERS for end in COHORTS],
    }
    return {head: _correlations(results, each) for head, each in groups.items()}


def _cases(student: str, end: str) -> list[Case]:
    """What a student may learn from in a cohort; a case without runs has no values."""
    return [(method, method + end, student) for method in METHODS]


def _correlations(results: Results, groups: Sequence[Sequence[Case]]) -> dict[str, dict[int, float]]:
    """By quantity and seed the rank correlation with the gain, as the mean over the groups that have one."""
    found: dict[str, dict[int, list[float]]] = {}
    for group in groups:
        for name, by_seed in _points(results, group).items():
            for seed, points in by_seed.items():
                if len(points) >= MIN_ARMS and not math.isnan(rank := rank_correlation(points)):
                    found.setdefault(name, {}).setdefault(seed, []).append(rank)
    return {
        name: {seed: float(np.mean(each)) for seed, each in by_seed.items()}
        for name, by_seed in found.items()
    }


def _points(results: Results, group: Sequence[Case]) -> dict[str, dict[int, list[tuple[float, float]]]]:
    """By quantity and seed its value and the gain, for each case."""
    points: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for method, arm, student in group:
        gain = results.gain(arm, student, "none")
        for name, values in quantities(results, method, arm, student).items():
            by_seed = points.setdefault(name, {})
            for seed in sorted(set(gain) & set(values)):
                by_seed.setdefault(seed, []).append((values[seed], gain[seed]))
    return points
