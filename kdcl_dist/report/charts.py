"""The figures of one run that are lines over its epochs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from kdcl_dist.report.blocks import Figure
from kdcl_dist.report.lines import Line, line_chart
from kdcl_dist.report.run_data import ENSEMBLE, RunData

__all__ = [
    "ANALYSIS",
    "CONFLICT",
    "CURVES",
    "ENSEMBLES",
    "TARGETS",
    "WINDOW",
    "Chart",
    "draw",
    "draw_targets",
]

#: The soft targets that the analysis compares.
ENSEMBLES = ("naive", "linear", "min_logit", "general", "mean")


class Chart(NamedTuple):
    """A quantity over the epochs, a line for each student and, if it has one, the ensemble.

    `factor` multiplies the recorded values into the unit; `log` allows a logarithmic axis.
    """

    ident: str
    title: str
    split: str
    name: str
    unit: str
    caption: str
    factor: float = 1.0
    log: bool = False


CURVES = (
    Chart(
        "test-top1",
        "Test accuracy",
        "test",
        "top1",
        "top-1 %",
        "Share of test samples whose class has the largest probability, after each epoch. The ensemble is "
        "the mean of the students' probabilities (weighted, for the method general).",
        100.0,
    ),
    Chart(
        "test-loss",
        "Test loss",
        "test",
        "loss",
        "nats",
        "Mean cross-entropy of the test samples after each epoch.",
    ),
    Chart(
        "train-loss",
        "Training loss",
        "train",
        "loss",
        "nats",
        "What a student minimises, task loss + λ · distillation loss: mean over the epoch's steps. For the "
        "ensemble: the cross-entropy of the soft target at T.",
    ),
    Chart(
        "task-loss",
        "Task loss",
        "train",
        "task_loss",
        "nats",
        "Cross-entropy with the labels, mean over the epoch's training steps.",
    ),
    Chart(
        "distillation-loss",
        "Distillation loss",
        "train",
        "distillation_loss",
        "nats",
        "T² · KL(soft target ‖ student), or for deep mutual learning the mean KL from its peers at T = 1, "
        "before it is multiplied by λ: mean over the epoch's training steps.",
    ),
    Chart(
        "lr",
        "Learning rate",
        "train",
        "lr",
        "learning rate",
        "Mean over the epoch's training steps; logarithmic where it changes by more than a factor of 30.",
        log=True,
    ),
)
ANALYSIS = (
    Chart(
        "weights",
        "Weights of general",
        "holdout",
        "weight",
        "weight",
        "The weight of each student's probabilities in the ensemble general, formed after each epoch from "
        "the errors on the held-out samples. The weights add up to 1.",
    ),
    Chart(
        "wins",
        "Who wins",
        "analysis",
        "win_share",
        "% of samples",
        "Share of training samples on which a student has the smallest cross-entropy of all, so that the "
        "ensemble naive takes its logits. The shares add up to 100 %.",
        100.0,
    ),
    Chart(
        "linear-weights",
        "Weights of linear",
        "analysis",
        "linear_weight",
        "weight",
        "The mean weight of each student in the ensemble linear, which solves for the best convex "
        "combination of the logits on each sample. The weights add up to 1.",
    ),
)
CONFLICT = (
    Chart(
        "gradient-cosine",
        "Conflict of gradients",
        "analysis",
        "gradient_cosine",
        "cosine",
        "Cosine between the gradients of a student's cross-entropy and of its distillation loss over all its "
        "parameters. Below 0 the soft target pulls against the labels.",
    ),
    Chart(
        "gradient-ratio",
        "Pull of the soft target",
        "analysis",
        "gradient_ratio",
        "ratio of norms",
        "Norm of the distillation loss's gradient, times λ, over the norm of the cross-entropy's. Above 1 "
        "the soft target pulls harder than the labels.",
        log=True,
    ),
)
TARGETS = (
    Chart(
        "targets-loss",
        "How right the soft targets are",
        "analysis",
        "loss",
        "nats",
        "Cross-entropy of each ensemble's soft target with the labels at T = 1, on training samples.",
    ),
    Chart(
        "targets-entropy",
        "How soft the soft targets are",
        "analysis",
        "entropy",
        "nats",
        "Entropy of each ensemble's soft target at the recipe's T: 0 is a single class, more is softer.",
    ),
    Chart(
        "targets-wrong",
        "How often the soft targets are wrong",
        "analysis",
        "wrong",
        "% of samples",
        "Share of training samples on which the largest class of the soft target is not the label.",
        100.0,
    ),
)
WINDOW = (
    Chart(
        "coverage",
        "Samples with a soft target",
        "window",
        "coverage",
        "% of samples",
        "Share of a student's training samples of which a peer's logits were there, so that it had a soft "
        "target. The others add nothing to its distillation loss.",
        100.0,
    ),
    Chart(
        "staleness",
        "Age of the peers' logits",
        "window",
        "staleness",
        "steps",
        "Mean age of the peers' logits behind a student's soft targets: steps since the peer gave them.",
    ),
)


def draw(run: RunData, charts: Iterable[Chart], prefix: str) -> list[Figure]:
    """The charts of a run of which anything was recorded, as figures; ids begin with `prefix`."""
    return _figures(
        run, prefix, ((chart, [(who, who, chart.name) for who in run.cohort]) for chart in charts)
    )


def draw_targets(run: RunData, prefix: str) -> list[Figure]:
    """The charts of the five soft targets, a line for each of them."""
    wanted = (
        (chart, [(which, ENSEMBLE, f"{which}_{chart.name}") for which in ENSEMBLES]) for chart in TARGETS
    )
    return _figures(run, prefix, wanted)


def _figures(
    run: RunData, prefix: str, wanted: Iterable[tuple[Chart, list[tuple[str, str, str]]]]
) -> list[Figure]:
    """A figure of each chart that has a line; with a chart come its lines' labels, students and names."""
    drawn = []
    for chart, keys in wanted:
        lines = []
        for index, (label, student, name) in enumerate(keys):
            if curve := run.curve(chart.split, student, name):
                points = [(float(epoch), chart.factor * mean) for epoch, mean in curve.points()]
                lines.append(Line(label, -1 if label == ENSEMBLE else index, points))
        if lines:
            ident = prefix + chart.ident
            svg = line_chart(f"{ident}-svg", chart.title, chart.unit, lines, log=chart.log)
            drawn.append(Figure(ident, chart.title, svg, chart.caption))
    return drawn
