"""What was measured of the ensembles: targets, each student's part in them, and the conflict of losses."""

from __future__ import annotations

from examples.fashion.intervals_chart import interval_chart
from examples.fashion.results import METHODS, PARTNERS, BySeed, Results, interval, markdown, shown
from kdcl_dist.utils.intervals import Interval

__all__ = ["conflict_figure", "course_figures", "gradients_table", "same_logits_table", "targets_table"]

ENSEMBLES = ("naive", "linear", "min_logit", "mean", "general")
#: Ends of the names of an ensemble's figures, and heads of their columns.
FIGURES = {"loss": "cross-entropy, nats", "entropy": "entropy, nats", "wrong": "share wrong"}
HEADS = {"gradient_cosine": "cosine", "gradient_ratio": "ratio"}
#: Epochs that a point of a course has the mean of: their names, and each part's end.
PARTS = {"1 to 5": 5, "6 to 10": 10, "11 to 15": 15, "16 to 20": 20}


def same_logits_table(results: Results) -> str:
    """The five ensembles of the same logits: those of the four networks that learn alone."""
    rows = [
        [
            f"`{name}`",
            *(_cell(results.measured("none", "ensemble", f"{name}_{figure}")) for figure in FIGURES),
        ]
        for name in ENSEMBLES
    ]
    return markdown(["ensemble", *FIGURES.values()], rows)


def targets_table(results: Results) -> str:
    """The soft target of each method where the students of table A's pair learn from it."""
    rows = []
    for method in METHODS:
        figures = [results.measured(method, "ensemble", f"{method}_{figure}") for figure in FIGURES]
        parts = [
            results.measured(method, "large", name)
            for name in ("disagreement/small", "win_share", "linear_weight")
        ]
        rows.append([f"`{method}`", *map(_cell, [*figures, *parts])])
    heads = ["disagreement", "`large` is the best", "weight of `large` in `linear`"]
    return markdown(["method", *FIGURES.values(), *heads], rows)


def gradients_table(results: Results) -> str:
    """How the two gradients of each student of table A's pair lie to each other."""
    at = [(student, name) for name in ("gradient_cosine", "gradient_ratio") for student in ("large", "small")]
    rows = [[f"`{method}`", *(_cell(results.measured(method, *where)) for where in at)] for method in METHODS]
    return markdown(["method", *(f"{HEADS[name]}, `{student}`" for student, name in at)], rows)


def conflict_figure(results: Results) -> str:
    """The cosine of the large network's two gradients by the size of its partner."""
    series = {
        method: [interval(results.measured(method + end, "large", "gradient_cosine")) for end in PARTNERS]
        for method in METHODS
    }
    title = "Cosine between the large network's two gradients, by the size of the other network"
    return interval_chart(
        title, "cosine, the large network", "the other network", [*PARTNERS.values()], series
    )


def course_figures(results: Results) -> dict[str, str]:
    """Figures of what was measured over the epochs of table A's runs, by the names of their files."""
    names = {
        "course-loss.svg": ("cross-entropy of the soft target, nats", "ensemble", "{}_loss"),
        "course-entropy.svg": ("entropy of the soft target, nats", "ensemble", "{}_entropy"),
        "course-cosine-large.svg": ("cosine, the large network", "large", "gradient_cosine"),
        "course-cosine-small.svg": ("cosine, the small network", "small", "gradient_cosine"),
    }
    return {
        file: interval_chart(f"{unit}, by epochs, for each method", unit, "epochs", [*PARTS], series)
        for file, (unit, student, name) in names.items()
        for series in [_courses(results, student, name)]
    }


def _courses(results: Results, student: str, name: str) -> dict[str, list[Interval | None]]:
    return {
        method: [
            interval(part) for part in results.course(method, student, name.format(method), [*PARTS.values()])
        ]
        for method in METHODS
    }


def _cell(values: BySeed) -> str:
    return shown(interval(values), digits=3)
