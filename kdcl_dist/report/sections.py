"""The sections of one run's report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from kdcl_dist.report.analysis_section import analysis_sections
from kdcl_dist.report.axis import number
from kdcl_dist.report.bars import stacked_bars
from kdcl_dist.report.charts import CURVES, draw
from kdcl_dist.report.markup import beside, details, facts, figure, figures, note, section, table, verbatim
from kdcl_dist.report.run_data import ENSEMBLE, RunData
from kdcl_dist.report.window_section import window_section

__all__ = ["run_sections"]

#: What a training step consists of, as recorded, and as it is called in the report.
PHASES = {
    "data_s": "data",
    "forward_s": "forward",
    "wait_s": "wait",
    "exchange_s": "exchange",
    "backward_s": "backward",
}


def run_sections(run: RunData, prefix: str = "") -> str:
    """Everything about one run as HTML; ids of its figures begin with `prefix`."""
    parts = [_head(run), _results(run)]
    if run.curves:
        parts += [
            section("Curves", figures(draw(run, CURVES, prefix))),
            window_section(run, prefix),
            analysis_sections(run, prefix),
            _times(run, prefix),
        ]
    else:
        parts.append(note("No metrics were recorded: the run ended before the end of its first epoch."))
    return "\n".join([*parts, _placement(run)])


def _result_cells(values: Mapping[str, float]) -> list[str]:
    """Loss, top-1 % and top-5 % as text."""
    percents = (number(100 * values.get(name, math.nan), 2) for name in ("top1", "top5"))
    return [number(values.get("loss", math.nan), 4), *percents]


def _head(run: RunData) -> str:
    recipe, record = run.recipe, run.record
    distillation = recipe.distillation
    items = {
        "State": run.state,
        "Trained for": f"{run.epochs} of {recipe.epochs} epochs",
        "Batch size": str(recipe.batch_size),
        "Seed": str(recipe.seed),
        "Method": distillation.method,
        "Temperature T": f"{distillation.temperature:g}",
        "Weight λ": f"{distillation.weight:g}",
        "Training data": recipe.data.train,
        "Test data": recipe.data.test,
        "Classes": _plain(record.get("classes")),
        "Samples": _plain(record.get("samples")),
        "CoordinatorState out per class": str(recipe.data.holdout_per_class or ""),
        "Students": ", ".join(f"{student.name} ({student.model})" for student in recipe.students),
        "Versions": _plain(record.get("versions")),
        "Data fingerprints": _plain(record.get("data")),
        "Run folder": run.uri,
    }
    parts = [_cause(record.get("cause")), facts(items), *_survived(record)]
    if run.not_finite:
        parts.append(
            note(f"{run.not_finite:,} recorded values are NaN or infinite; no mean includes them.", "warn")
        )
    return "\n".join(part for part in parts if part)


def _plain(value: Any) -> str:
    """Whatever was recorded, in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text[:16] + "…" if len(text) == 64 else text  # a SHA-256 by its beginning


def _cause(cause: Mapping[str, Any] | None) -> str:
    """The first cause of a failure, with its traceback to open."""
    if not cause:
        return ""
    where = ", ".join(
        f"{name} {cause[name]}"
        for name in ("student", "step", "phase", "host")
        if cause.get(name) is not None
    )
    text = f"The run failed: {cause.get('error')}: {cause.get('message')}" + (f" ({where})" if where else "")
    detail = cause.get("detail")
    return note(text, "warn") + (details("Traceback", verbatim(str(detail))) if detail else "")


def _survived(record: Mapping[str, Any]) -> list[str]:
    """The failures after which the run went on, and who missed steps for it."""
    causes = (record.get("failures") or {}).get("causes") or []
    absences = record.get("absences") or []
    found = []
    if causes:
        heads = ["error", "student", "step", "phase", "host", "message"]
        rows = [[_plain(cause.get(key)) for key in heads] for cause in causes]
        found.append(table("Failures after which the run went on.", heads, rows))
    if absences:
        keys = ("student", "since", "until", "state_of")
        rows = [[_plain(absence.get(key)) for key in keys] for absence in absences]
        caption = "Students that were away, and the step of the state with which they came back."
        found.append(table(caption, ["student", "from step", "to step", "state of step"], rows))
    return found


def _results(run: RunData) -> str:
    results = run.results()
    if not results:
        return ""
    names = [*(name for name in run.cohort if name in results), *sorted(results.keys() - set(run.cohort))]
    when = f"after epoch {run.epochs} of {run.recipe.epochs}" if run.curves else "as recorded"
    caption = (
        f"Test results {when}. loss: mean cross-entropy in nats. ensemble: the mean of the students' "
        "probabilities, weighted for the method general."
    )
    rows = [[name, *_result_cells(results[name])] for name in names]
    return section("Test results", table(caption, ["student", "loss", "top-1 %", "top-5 %"], rows))


def _times(run: RunData, prefix: str) -> str:
    bars = {
        name: [1000 * run.mean("train", name, phase) for phase in PHASES] + [math.nan]
        for name in run.recipe.names
        if run.curve("train", name, "forward_s")
    }
    ensemble = 1000 * run.mean("train", ENSEMBLE, "ensemble_s")
    if not bars:
        return ""
    parts = [*PHASES.values(), "ensemble"]
    rows = [
        [name, *(number(v, 2) for v in (*values[:-1], sum(values[:-1])))] for name, values in bars.items()
    ]
    if math.isfinite(ensemble):
        bars["coordinator"] = [math.nan] * len(PHASES) + [ensemble]
        rows.append(["coordinator", *["–"] * len(PHASES), number(ensemble, 2)])
    caption = (
        "Mean time of a training step in ms. data: loading and augmenting; forward: to the logits on the "
        "host; wait: for the slowest student; exchange: sending logits and receiving the soft target, which "
        "includes the coordinator's time; backward: loss, gradients, update. coordinator: forming the "
        "soft target."
    )
    title, ident = "Time of a step", prefix + "time"
    svg = stacked_bars(f"{ident}-svg", title, "ms a step", parts, bars)
    heads = ["student", *PHASES.values(), "all"]
    short = "The same in numbers: mean ms of a training step."
    drawn = figure(ident, title, svg, caption)
    return section("Where the time went", beside(drawn, table(short, heads, rows)))


def _placement(run: RunData) -> str:
    placement = run.record.get("placement") or {}
    fields = {"host": "host", "device": "device", "pid": "process"}
    rows = [
        [name, *(_plain(place.get(key)) for key in fields), f"{place.get('parameters', 0):,}"]
        for name, place in placement.items()
    ]
    heads = ["student", *fields.values(), "parameters"]
    if not rows:
        return note("Where the students ran was not recorded.")
    return section("Placement", table("Where each student ran.", heads, rows))
