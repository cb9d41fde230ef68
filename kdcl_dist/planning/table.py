"""A survey and its proposal as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.student import Resources
from kdcl_dist.planning.step_model import Prediction, StepModel
from kdcl_dist.planning.survey import Survey

__all__ = ["settings", "show"]


def show(found: Survey, best: Prediction, workers: int) -> str:
    """The costs, the prediction for the recipe as it is, and the proposal."""
    recipe, model = found.recipe, found.model
    now = model.predict([student.replicas for student in recipe.networks.values()])
    lines = [
        f"{recipe.name}: batch of {recipe.batch_size}; {note}" if not number else note
        for number, note in enumerate(found.notes)
    ]
    lines += [
        "",
        *_costs(recipe, model),
        "",
        f"as it is: {_summary(model, now)}",
        *_shares(recipe, now),
        "",
    ]
    if best.replicas == now.replicas:
        return "\n".join([*lines, f"proposal within {workers} workers: none is better"])
    lines.append(f"proposal within {workers} workers: {_summary(model, best)}")
    lines += [
        *_shares(recipe, best),
        "",
        f"{now.step_s / best.step_s:.2f} times as fast: {settings(recipe, best)}",
    ]
    return "\n".join(lines)


def settings(recipe: Recipe, best: Prediction) -> str:
    """The options of the command line that give a recipe the proposed replicas."""
    pairs = zip(recipe.networks.items(), best.replicas, strict=True)
    return " ".join(
        # A path of --set has dots between its parts, so a name with dots is no part of one.
        f"--set students.{index if '.' in student.name else student.name}.replicas={count}"
        for (index, student), count in pairs
        if count != student.replicas
    )


def _costs(recipe: Recipe, model: StepModel) -> list[str]:
    """Table of the costs of one worker, for the full batch or for the largest share that was measured."""
    rows = [("one worker alone", "device", "rows", "data ms", "compute ms")]
    for student, figures in zip(recipe.networks.values(), model.students, strict=True):
        samples = max(model.batch_size // count for count in figures.counts)
        cost, device = figures.cost(samples), _device(student.resources)
        rows.append((student.name, device, str(samples), _ms(cost.data_s), _ms(cost.compute_s)))
    return _aligned(rows)


def _shares(recipe: Recipe, choice: Prediction) -> list[str]:
    rows = [("student", "replicas", "rows each", "busy ms", "idle")]
    for index, student in enumerate(recipe.networks.values()):
        count, name = choice.replicas[index], student.name
        each = str(recipe.part_size // count)
        rows.append((name, str(count), each, _ms(choice.busy_s[index]), f"{choice.idle[index]:.1%}"))
    return _aligned(rows)


def _summary(model: StepModel, choice: Prediction) -> str:
    between_s = choice.step_s - max(choice.busy_s)
    text = (
        f"step {_ms(choice.step_s)} ms, of which exchange and ensemble {_ms(between_s)} ms; "
        f"{choice.workers} workers, idle {choice.mean_idle:.1%}"
    )
    threads = sum(count * s.threads for count, s in zip(choice.replicas, model.students, strict=True))
    if math.isfinite(model.cores) and threads > model.cores:
        text += f"; they ask for {threads} threads and share {model.cores:.3g} cores"
    return text


def _device(resources: Resources) -> str:
    gpu, cpu = resources.gpu_share(auto=0.0), resources.cpu
    if gpu:
        return "GPU" if gpu == 1 else f"{gpu:g} GPU"
    return f"{cpu} core" if cpu == 1 else f"{cpu} cores"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:>{width}}" if column else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
