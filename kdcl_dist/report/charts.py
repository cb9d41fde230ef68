"""The line charts of one run over its epochs."""

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

#: The methods whose soft targets the analysis compares.
ENSEMBLES = ("naive", "linear", "min_logit", "general", "mean")


class Chart(NamedTuple):
    """A quantity over the epochs, with a line for each student and for the ensemble.

    `factor` converts the recorded values into the unit; `log` allows a logarithmic axis.
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
        "val-top1",
        "Validation accuracy",
        "val",
        "top1",
        "top-1 %",
        "Share of validation samples whose class has the largest probability. ensemble: mean of the "
        "students' probabilities, weighted for the method general.",
        100.0,
    ),
    Chart(
        "val-loss",
        "Validation loss",
        "val",
        "loss",
        "nats",
        "Mean cross-entropy of the validation samples.",
    ),
    Chart(
        "test-top1",
        "Test accuracy",
        "test",
        "top1",
        "top-1 %",
        "Share of test samples whose class has the largest probability, after each epoch. ensemble: mean of "
        "the students' probabilities, weighted for the method general.",
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
        "Task loss + λ · distillation loss, which a student minimises: mean over the epoch's training steps. "
        "ensemble: cross-entropy of the soft target at T.",
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
        "T² · KL(soft target ‖ student), without the factor λ: mean over the epoch's training steps. For "
        "deep mutual learning: mean KL divergence from the peers at T = 1.",
    ),
    Chart(
        "lr",
        "Learning rate",
        "train",
        "lr",
        "learning rate",
        "Mean over the epoch's training steps. The axis is logarithmic if the rate changes by more than a "
        "factor of 30.",
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
        "Weight of each student's probabilities in the ensemble general. Each epoch ends with new weights, "
        "from the errors on the held-out samples. The weights add up to 1.",
    ),
    Chart(
        "wins",
        "Who wins",
        "analysis",
        "win_share",
        "% of samples",
        "Share of training samples on which a student has the smallest cross-entropy of all students; the "
        "ensemble naive takes its logits there. The shares add up to 100 %.",
        100.0,
    ),
    Chart(
        "linear-weights",
        "Weights of linear",
        "analysis",
        "linear_weight",
        "weight",
        "Mean weight of each student in the ensemble linear, the best convex combination of the logits on "
        "each sample. The weights add up to 1.",
    ),
)
CONFLICT = (
    Chart(
        "gradient-cosine",
        "Conflict of gradients",
        "analysis",
        "gradient_cosine",
        "cosine",
        "Cosine of the angle between the gradients of a student's cross-entropy and of its distillation "
        "loss, over all parameters. Below 0 the soft target opposes the labels.",
    ),
    Chart(
        "gradient-ratio",
        "Strength of the soft target",
        "analysis",
        "gradient_ratio",
        "ratio of norms",
        "λ times the norm of the distillation loss's gradient, divided by the norm of the cross-entropy's "
        "gradient. Above 1 the soft target is stronger than the labels.",
        log=True,
    ),
)
TARGETS = (
    Chart(
        "targets-loss",
        "Loss of the soft targets",
        "analysis",
        "loss",
        "nats",
        "Cross-entropy of each ensemble's soft target with the labels at T = 1, on training samples.",
    ),
    Chart(
        "targets-entropy",
        "Entropy of the soft targets",
        "analysis",
        "entropy",
        "nats",
        "Entropy of each ensemble's soft target at the recipe's T. An entropy of 0 is a single class; a "
        "larger one is a softer target.",
    ),
    Chart(
        "targets-wrong",
        "Error of the soft targets",
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
        "Share of a student's training samples that have a soft target, because the bank held logits of a "
        "peer. Other samples add nothing to the distillation loss.",
        100.0,
    ),
    Chart(
        "staleness",
        "Age of the peers' logits",
        "window",
        "staleness",
        "steps",
        "Mean age of the peers' logits behind a student's soft targets: steps since the peer computed them.",
    ),
)


def draw(run: RunData, charts: Iterable[Chart], prefix: str) -> list[Figure]:
    """The charts of a run as figures, without those of unrecorded quantities; ids begin with `prefix`."""
    return _figures(
        run, prefix, ((chart, [(who, who, chart.name) for who in run.cohort]) for chart in charts)
    )


def draw_targets(run: RunData, prefix: str) -> list[Figure]:
    """The charts of the five soft targets, with a line for each of them."""
    wanted = (
        (chart, [(which, ENSEMBLE, f"{which}_{chart.name}") for which in ENSEMBLES]) for chart in TARGETS
    )
    return _figures(run, prefix, wanted)


def _figures(
    run: RunData, prefix: str, wanted: Iterable[tuple[Chart, list[tuple[str, str, str]]]]
) -> list[Figure]:
    """A figure of each chart with a recorded line; `wanted` has each line's label, student and name."""
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
