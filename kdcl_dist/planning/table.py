"""A survey and its proposal as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.planning.step_model import Cohort, Prediction
from kdcl_dist.planning.survey import Survey

__all__ = ["settings", "show"]


def show(found: Survey, best: Prediction, workers: int) -> str:
    """What is known, what is predicted of the recipe as it is, and what is proposed."""
    recipe, cohort = found.recipe, found.cohort
    now = cohort.predict([student.replicas for student in recipe.students])
    lines = [
        f"{recipe.name}: batch of {recipe.batch_size}; {note}" if not place else note
        for place, note in enumerate(found.notes)
    ]
    lines += [
        "",
        *_costs(recipe, cohort),
        "",
        f"as it is: {_summary(cohort, now)}",
        *_shares(recipe, now),
        "",
    ]
    if best.replicas == now.replicas:
        return "\n".join([*lines, f"proposal within {workers} workers: none is better"])
    lines.append(f"proposal within {workers} workers: {_summary(cohort, best)}")
    lines += [
        *_shares(recipe, best),
        "",
        f"{now.step_s / best.step_s:.2f} times as fast: {settings(recipe, best)}",
    ]
    return "\n".join(lines)


def settings(recipe: Recipe, best: Prediction) -> str:
    """The options that make a recipe the proposed one."""
    pairs = zip(recipe.students, best.replicas, strict=True)
    return " ".join(
        f"--set students.{student.name}.replicas={count}"
        for student, count in pairs
        if count != student.replicas
    )


def _costs(recipe: Recipe, cohort: Cohort) -> list[str]:
    """One worker alone: for the full batch, or for the largest share that was measured."""
    rows = [("one worker alone", "device", "rows", "data ms", "compute ms")]
    for student, figures in zip(recipe.students, cohort.students, strict=True):
        samples = max(cohort.batch_size // count for count in figures.counts)
        cost, device = figures.cost(samples), _device(student.resources.gpu, student.resources.cpu)
        rows.append((student.name, device, str(samples), _ms(cost.data_s), _ms(cost.compute_s)))
    return _aligned(rows)


def _shares(recipe: Recipe, choice: Prediction) -> list[str]:
    rows = [("student", "replicas", "rows each", "busy ms", "idle")]
    for place, name in enumerate(recipe.names):
        count = choice.replicas[place]
        each = str(recipe.batch_size // count)
        rows.append((name, str(count), each, _ms(choice.busy_s[place]), f"{choice.idle[place]:.1%}"))
    return _aligned(rows)


def _summary(cohort: Cohort, choice: Prediction) -> str:
    between_s = choice.step_s - max(choice.busy_s)
    text = (
        f"step {_ms(choice.step_s)} ms, of which exchange and ensemble {_ms(between_s)} ms; "
        f"{choice.workers} workers, idle {choice.cast_idle:.1%}"
    )
    threads = sum(count * s.threads for count, s in zip(choice.replicas, cohort.students, strict=True))
    if math.isfinite(cohort.cores) and threads > cohort.cores:
        text += f"; they ask for {threads} threads and share {cohort.cores:.3g} cores"
    return text


def _device(gpu: float, cpu: int) -> str:
    if gpu:
        return "GPU" if gpu == 1 else f"{gpu:g} GPU"
    return f"{cpu} core" if cpu == 1 else f"{cpu} cores"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they need: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:>{width}}" if place else f"{cell:<{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
