"""What run.html shows of one run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdcl_dist.report.analysis import targets_table, teaching_figures, window_figures
from kdcl_dist.report.axis import number
from kdcl_dist.report.bars import stacked_bars
from kdcl_dist.report.blocks import Figure, Table
from kdcl_dist.report.charts import CURVES, draw, draw_targets
from kdcl_dist.report.run_data import ENSEMBLE, RunData
from kdcl_dist.run.metrics import BEST
from kdcl_dist.run.uris import displayed

__all__ = ["RunView", "run_view"]

#: Recorded name of each phase of a training step, and its name in the report.
PHASES = {
    "data_s": "data",
    "forward_s": "forward",
    "wait_s": "wait",
    "exchange_s": "exchange",
    "backward_s": "backward",
}


@dataclass(frozen=True)
class RunView:
    """The parts of a run's report, in their order on the page; an empty part is left out.

    Attributes:
        summary: the run in one line.
        failure: the first cause of the run's failure.
        traceback: the traceback of that cause.
        facts: terms and their values.
        survived: failures that the run survived, absences of students, who took part from when on, and the
            spare workers that took over.
        not_finite: number of recorded values that are NaN or infinite.
        results: test results.
        recorded: whether any metric was recorded.
        curves: metrics over the epochs.
        window: coverage and staleness of the soft targets.
        analysed: whether any step was analysed.
        teaching: weights, wins, disagreement and conflicts.
        targets: charts of the five soft targets.
        targets_table: the five soft targets in numbers.
        times: bars of the phases of a step.
        times_table: the phases in numbers.
        data_wait: the students whose data hold up the steps, and the remedy; empty where no student's do.
        placement: host, device and process of each student.
    """

    summary: str
    failure: str
    traceback: str
    facts: Mapping[str, str]
    survived: list[Table]
    not_finite: int
    results: Table | None
    recorded: bool
    curves: list[Figure]
    window: list[Figure]
    analysed: bool
    teaching: list[Figure]
    targets: list[Figure]
    targets_table: Table | None
    times: Figure | None
    times_table: Table | None
    data_wait: str
    placement: Table | None


def run_view(run: RunData, prefix: str = "") -> RunView:
    """The report on one run; ids of its figures begin with `prefix`."""
    cause = run.record.get("cause") or {}
    times, times_table = _times(run, prefix)
    return RunView(
        summary=f"{run.label}: {run.recipe.name}, seed {run.recipe.seed}, {run.state}",
        failure=_failure(cause),
        traceback=str(cause.get("detail") or ""),
        facts=_facts(run),
        survived=_survived(run.record),
        not_finite=run.not_finite,
        results=_results(run),
        recorded=bool(run.curves),
        curves=draw(run, CURVES, prefix),
        window=window_figures(run, prefix),
        analysed=any(key.split == "analysis" for key in run.curves),
        teaching=teaching_figures(run, prefix),
        targets=draw_targets(run, prefix),
        targets_table=targets_table(run),
        times=times,
        times_table=times_table,
        data_wait=run.data_wait,
        placement=_placement(run),
    )


def _facts(run: RunData) -> dict[str, str]:
    recipe, record = run.recipe, run.record
    distillation = recipe.distillation
    return {
        "State": run.state,
        "Stopped early": _plain(record.get("stopped_early")),
        "Trained for": f"{run.epochs} of {recipe.epochs} epochs",
        "Batch size": str(recipe.batch_size),
        "Seed": str(recipe.seed),
        "Method": distillation.method_name,
        "Temperature T": f"{distillation.temperature:g}",
        "Weight λ": f"{distillation.weight:g}",
        "Training data": recipe.data.train,
        "Test data": recipe.data.test,
        "Validation data": recipe.data.val or _plain(recipe.data.val_fraction),
        "Classes": _plain(record.get("classes")),
        "Samples": _plain(record.get("samples")),
        "Held out per class": str(recipe.data.holdout_per_class or ""),
        "Students": ", ".join(f"{each.name} ({each.logits or each.model})" for each in recipe.students),
        "Versions": _plain(record.get("versions")),
        "Data fingerprints": _plain(record.get("data")),
        "Run folder": displayed(run.uri),
    }


def _plain(value: Any) -> str:
    """A recorded value in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text[:16] + "…" if len(text) == 64 else text  # a SHA-256 is cut off


def _failure(cause: Mapping[str, Any]) -> str:
    """The first cause of a failure in one line; empty for a run that did not fail."""
    if not cause:
        return ""
    where = ", ".join(
        f"{name} {cause[name]}"
        for name in ("student", "step", "phase", "host")
        if cause.get(name) is not None
    )
    return f"The run failed: {cause.get('error')}: {cause.get('message')}" + (f" ({where})" if where else "")


def _survived(record: Mapping[str, Any]) -> list[Table]:
    """The failures that the run survived, the absences of students, who took part, and the spares used."""
    causes = (record.get("failures") or {}).get("causes") or []
    absences = record.get("absences") or []
    found = []
    if causes:
        heads = ["error", "student", "step", "phase", "host", "message"]
        rows = [[_plain(cause.get(key)) for key in heads] for cause in causes]
        found.append(Table("Failures that the run survived.", heads, rows))
    if absences:
        keys = ("student", "since", "until", "state_of")
        rows = [[_plain(absence.get(key)) for key in keys] for absence in absences]
        caption = "Absences of students. A student came back with the state of the given step."
        found.append(Table(caption, ["student", "from step", "to step", "state of step"], rows))
    if cohort := record.get("cohort"):
        rows = [[_plain(entry.get("step")), ", ".join(entry.get("students") or ())] for entry in cohort]
        found.append(Table("Who took part, from which step on.", ["from step", "students"], rows))
    if spares := record.get("spares"):
        heads = ["student", "at", "host"]
        rows = [[_plain(spare.get(key)) for key in heads] for spare in spares]
        found.append(Table("Spare workers of Ray that took over for one that died.", heads, rows))
    return found


def _results(run: RunData) -> Table | None:
    results = run.results()
    if not results:
        return None
    others = [name for name in results if name not in run.cohort]
    names = [*(name for name in run.cohort if name in results), *others]
    when = f"after epoch {run.tested} of {run.recipe.epochs}" if run.curves else "as recorded"
    caption = (
        f"Test results {when}. loss: mean cross-entropy in nats. ensemble: mean of the students' "
        "probabilities, weighted for the method general."
    )
    rows = [[name, *_result_cells(results[name])] for name in names]
    heads = ["student", "loss", "top-1 %", "top-5 %"]
    if any(name.endswith(BEST) for name in names):
        metric = run.recipe.checkpoint.best
        caption += f" {BEST}: with the weights of the epoch whose {metric} on validation samples was best."
        heads.append("epoch")
        for name, row in zip(names, rows, strict=True):
            row.append(str(results[name].get("epoch", "")) if name.endswith(BEST) else str(run.tested))
    return Table(caption, heads, rows)


def _result_cells(values: Mapping[str, float]) -> list[str]:
    """Loss, top-1 % and top-5 % as text."""
    percents = (number(100 * values.get(name, math.nan), 2) for name in ("top1", "top5"))
    return [number(values.get("loss", math.nan), 4), *percents]


def _times(run: RunData, prefix: str) -> tuple[Figure | None, Table | None]:
    bars = {
        name: [1000 * run.mean("train", name, phase) for phase in PHASES] + [math.nan]
        for name in run.recipe.names
        if run.curve("train", name, "forward_s")
    }
    ensemble = 1000 * run.mean("train", ENSEMBLE, "ensemble_s")
    if not bars:
        return None, None
    parts = [*PHASES.values(), "ensemble"]
    rows = [
        [name, *(number(v, 2) for v in (*values[:-1], sum(values[:-1])))] for name, values in bars.items()
    ]
    if math.isfinite(ensemble):
        bars["coordinator"] = [math.nan] * len(PHASES) + [ensemble]
        rows.append(["coordinator", *["–"] * len(PHASES), number(ensemble, 2)])
    caption = (
        "Mean time of a training step in ms. data: loading and augmenting. forward: forward pass, and copy "
        "of the logits to the host. wait: waiting for the slowest student. exchange: sending logits and "
        "receiving the soft target, including the coordinator's time. backward: loss, gradients, update. "
        "coordinator: forming the soft target."
    )
    title, ident = "Phases of a step", prefix + "time"
    svg = stacked_bars(f"{ident}-svg", title, "ms a step", parts, bars)
    heads = ["student", *PHASES.values(), "all"]
    short = "The same phases in numbers: mean ms of a training step."
    return Figure(ident, title, svg, caption), Table(short, heads, rows)


def _placement(run: RunData) -> Table | None:
    placement = run.record.get("placement") or {}
    fields = {"host": "host", "device": "device", "pid": "process"}
    rows = [
        [name, *(_plain(where.get(key)) for key in fields), f"{where.get('parameters', 0):,}"]
        for name, where in placement.items()
    ]
    heads = ["student", *fields.values(), "parameters"]
    return Table("Host, device and process of each student.", heads, rows) if rows else None
