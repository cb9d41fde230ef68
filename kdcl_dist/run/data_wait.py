"""Which students hold up a run by waiting for their data, and how many loader processes would do."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import KdclError
from kdcl_dist.run.metrics import read_epoch, recorded_epochs
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import load_run

__all__ = ["TIMES", "data_wait", "last_times", "read_data_wait"]

#: The figures of a student that count, in seconds a step.
TIMES = ("step_s", "wait_s", "data_s", "load_s")
#: What a figure may be, and the shortest step: metrics of a run folder may have any numbers.
MAX_S, LEAST_S = 1e6, 1e-6
#: The share of a step from which on a wait is worth a line.
WORTH = 0.1
#: Loader processes do if together they make batches this much faster than the student takes them.
RESERVE = 1.1


class _Host(NamedTuple):
    """A host's cores, those that computing keeps busy, those that loading would, and its workers."""

    name: str
    cores: int
    computing: int
    loading: float
    workers: int

    @property
    def busy(self) -> float:
        """Cores that are busy where no student waits for its data."""
        return self.computing + self.loading

    @property
    def room(self) -> int:
        """Loader processes of each worker for which there are cores."""
        return max(0, self.cores - self.computing) // self.workers


def read_data_wait(uri: str) -> str | None:
    """`data_wait` of a run's last recorded epoch.

    None also where the run folder at `uri` cannot be read: what was trained counts more.
    """
    try:
        recipe, run = load_run(uri)
        if not (epochs := recorded_epochs(run)):
            return None
        times = last_times(read_epoch(run, epochs[-1]))
        return data_wait(recipe, read_record(run).get("placement") or {}, times)
    except KdclError:
        return None


def last_times(metrics: pa.Table) -> dict[str, dict[str, float]]:
    """The means of `TIMES` by student, over the last epoch without its first step, which has the warm-up."""
    rows = metrics.filter(pc.is_in(metrics["name"], pa.array(TIMES)))
    rows = rows.filter(pc.equal(rows["split"], "train"))
    rows = rows.filter(pc.equal(rows["epoch"], pc.max(rows["epoch"])))
    rows = rows.filter(pc.greater(rows["step"], pc.min(rows["step"])))
    times: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows.group_by(["student", "name"]).aggregate([("value", "mean")]).to_pylist():
        times[row["student"]][row["name"]] = row["value_mean"]
    return times


def data_wait(
    recipe: Recipe, placement: Mapping[str, Mapping[str, Any]], times: Mapping[str, Mapping[str, float]]
) -> str | None:
    """A line on the students whose data hold up the steps, with the remedy; None: no student's do.

    Without waits for data a step takes as long as the student that needs most besides. So a student whose
    peers are slower than its data holds up nothing. Loader processes must keep up with such a step.

    Args:
        recipe: of the run.
        placement: of run.json: host, device and cores of each worker.
        times: of each student the means of `TIMES`; a student that lacks one does not count.
    """
    times = {name: own for name, own in times.items() if _are_known(own)}
    now = recipe.data.loader_workers
    floor_s = max((own["step_s"] - own["wait_s"] - own["data_s"] for own in times.values()), default=0.0)
    held_s = {name: _with_data(own, now) - floor_s for name, own in times.items()}
    late = [name for name, own in times.items() if held_s[name] >= WORTH * own["step_s"]]
    if floor_s < LEAST_S or not late:
        return None
    waits = ", ".join(f"{name} {_share(held_s[name], floor_s)}" for name in late)
    wanted = max(now + 1, *(math.ceil(RESERVE * times[name]["load_s"] / floor_s) for name in late))
    return f"waiting for data: {waits}; {_remedy(wanted, now, _hosts(recipe, placement, times, floor_s))}"


def _are_known(own: Mapping[str, float]) -> bool:
    return all(0 <= own.get(name, math.nan) <= MAX_S for name in TIMES)


def _share(held_s: float, floor_s: float) -> str:
    step_s = floor_s + held_s
    return f"{held_s / step_s:.0%} of a step ({1000 * held_s:.3g} of {1000 * step_s:.3g} ms)"


def _with_data(own: Mapping[str, float], workers: int) -> float:
    """Seconds of a step that waits for this student alone: measured, or once no batch lies ready."""
    return max(own["step_s"] - own["wait_s"], own["load_s"] / workers if workers else 0.0)


def _hosts(
    recipe: Recipe,
    placement: Mapping[str, Mapping[str, Any]],
    times: Mapping[str, Mapping[str, float]],
    floor_s: float,
) -> list[_Host]:
    """The hosts whose cores are known, with the work of all their workers if a step takes `floor_s`."""
    found: dict[str, _Host] = {}
    for worker in recipe.workers:
        student, where = recipe.students[worker.student], placement.get(worker.name, {})
        if student.name not in times or not where.get("cores"):
            continue
        host = found.setdefault(where["host"], _Host(where["host"], where["cores"], 0, 0.0, 0))
        found[host.name] = host._replace(
            computing=host.computing + (student.resources.cpu if where["device"] == "cpu" else 1),
            loading=host.loading + times[student.name]["load_s"] / floor_s,
            workers=host.workers + 1,
        )
    return list(found.values())


def _remedy(wanted: int, now: int, hosts: list[_Host]) -> str:
    """What to set; or that the cores of a host do not suffice."""
    would_do = f"data.loader_workers: {wanted} would do (now {now})"
    lacking = [host for host in hosts if host.busy > host.cores]
    if not lacking:
        return would_do
    host = min(lacking, key=lambda host: host.room)
    if host.room > now:
        return f"{would_do}, but the {host.cores} cores of {host.name} have room for {host.room}"
    return (
        f"more loader processes do not help: loading and computing take {math.ceil(host.busy)} cores, and "
        f"{host.name} has {host.cores}"
    )
