"""What a run says of GPUs at its start: which students take them, and whether it leaves GPUs idle."""

from __future__ import annotations

from collections.abc import Sequence

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.launch.devices import devices_on_ray
from kdcl_dist.launch.preflight.placement import Host, Need, with_spares
from kdcl_dist.run.events import Event, Note, Started, Warned
from kdcl_dist.utils.gpu_names import gpu_name

__all__ = ["remarks", "remarks_on_ray", "unusable_gpus"]


def remarks(recipe: Recipe, devices: Sequence[str], count: int) -> list[Event]:
    """What a run says of this machine's GPUs at its start; nothing if there is none.

    Args:
        recipe: the run.
        devices: from `assign_devices`.
        count: GPUs of this machine.
    """
    if not count:
        return []
    found: list[Event] = []
    if any(student.resources.gpu == "auto" for student in recipe.students):
        titles = {f"cuda:{index}": gpu_name(index) for index in range(count)} | {"cpu": "CPU"}
        workers = {title: _names(recipe, devices, device) for device, title in titles.items()}
        places = [f"{title}: {', '.join(names)}" for title, names in workers.items() if names]
        found.append(Note(f"resources.gpu auto: {'; '.join(places)}"))
    return found + _idle(recipe, devices, count, len(set(devices) - {"cpu"}))


def remarks_on_ray(recipe: Recipe, needs: Sequence[Need], hosts: Sequence[Host]) -> list[Event]:
    """What a run says of the cluster's GPUs at its start; nothing if there is none.

    Args:
        recipe: the run.
        needs: what Ray reserves for each worker.
        hosts: of the cluster.
    """
    devices, count = devices_on_ray(recipe, needs), sum(int(host.gpu) for host in hosts)
    found: list[Event] = []
    if names := _names(recipe, devices, "auto"):
        gpu = needs[devices.index("auto")].gpu
        takes = "a GPU" if gpu == 1 else f"{gpu:g} of a GPU"
        found.append(Note(f"resources.gpu auto: {takes} each for {', '.join(names)}"))
    return found + _idle(recipe, devices, count, sum(need.gpu for need in with_spares(recipe, needs)))


def unusable_gpus(recipe: Recipe, devices: Sequence[str], started: Started) -> list[Event]:
    """A warning if workers train on the CPU although Ray reserves a GPU for each.

    Args:
        recipe: the run.
        devices: from `devices_on_ray`.
        started: where the workers train.
    """
    automatic = _names(recipe, devices, "auto")
    names = [name for name in automatic if started.placement.get(name, {}).get("device") == "cpu"]
    text = f"{', '.join(names)}: on the CPU, since PyTorch cannot use the GPU that Ray reserves"
    return [Warned(text)] if names else []


def _names(recipe: Recipe, devices: Sequence[str], device: str) -> list[str]:
    """The workers of a device."""
    return [worker.name for worker, own in zip(recipe.workers, devices, strict=True) if own == device]


def _idle(recipe: Recipe, devices: Sequence[str], count: int, taken: float) -> list[Event]:
    """A warning if workers train on the CPU beside GPUs that the run does not take."""
    names = ", ".join(_names(recipe, devices, "cpu"))
    if not names or count - taken < 1:
        return []
    why = "resources.gpu is 0; auto takes a GPU"
    students = [recipe.students[worker.student] for worker in recipe.workers]
    takers = {student.resources.gpu for student, own in zip(students, devices, strict=True) if own == "cpu"}
    if "auto" in takers:
        why = f"resources.gpu is auto, but the hosts with GPUs have no room for all {len(devices)} workers"
    return [Warned(f"{names}: on the CPU, while the run uses {taken:g} of {count} GPUs ({why})")]
