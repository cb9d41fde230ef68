"""The rehearsal of a student on one host: its data opened, its network built, and the dry run made there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import KdclError
from kdcl_dist.launch.preflight.checks import Check
from kdcl_dist.launch.preflight.own_process import run_apart
from kdcl_dist.run.process import set_determinism
from kdcl_dist.student.dry_run import dry_run
from kdcl_dist.student.student import Student
from kdcl_dist.utils.devices import choose_device

__all__ = ["Rehearsal", "opens_data", "rehearsal", "rehearse"]


@dataclass(frozen=True)
class Rehearsal:
    """How the rehearsal of one student on one host ended.

    Attributes:
        student: its name.
        host: the host's address.
        problem: why the student cannot train there; None if it can.
        skipped: why the student could not be rehearsed there, which is no reason not to train.
    """

    student: str
    host: str
    problem: str | None = None
    skipped: str | None = None


def rehearse(recipe: Recipe, index: int, device: str, address: str) -> Rehearsal:
    """Rehearse one student on this host, in a process of its own, for `limits.startup_s` at most.

    Args:
        recipe: the run.
        index: of the student in the recipe.
        device: "cpu", "cuda" with or without a number, or "auto" for a GPU if PyTorch can use one.
        address: the host's, for the report.
    """
    name = recipe.students[index].name
    try:
        run_apart(recipe.limits.startup_s, name, _rehearse, recipe, index, device)
    except KdclError as error:
        return Rehearsal(name, address, problem=error.message)
    return Rehearsal(name, address)


def _rehearse(recipe: Recipe, index: int, device: str) -> None:
    """Runs in the process of the rehearsal."""
    torch.set_num_threads(recipe.students[index].resources.cpu)
    set_determinism(recipe.deterministic)
    training_data = TrainingData.open(recipe)
    student = Student.of(training_data, index, device=choose_device(device))
    dry_run(student, training_data, index)


def opens_data(checks: Sequence[Check]) -> bool:
    """Whether a host has the data, which every rehearsal needs, from the checks of that host."""
    return not any(check.failures for check in checks if check.name in ("answers", "data"))


def rehearsal(found: Sequence[Rehearsal]) -> Check:
    """Students that can train wherever they may be placed; a line for each student and its problem."""
    if not found:
        return Check("rehearsal", "not made", warnings=["mend the failures above first"])
    done = [one for one in found if one.skipped is None]
    hosts = len({one.host for one in done})
    return Check(
        "rehearsal",
        f"{len(done)} made on {hosts} host{'s' * (hosts != 1)}",
        failures=_lines([(one.student, one.host, one.problem) for one in found]),
        warnings=_lines([(one.student, one.host, one.skipped) for one in found]),
    )


def _lines(found: Sequence[tuple[str, str, str | None]]) -> list[str]:
    """A line for each student and text, with all hosts for which the text holds."""
    hosts: dict[tuple[str, str], list[str]] = {}
    for student, host, text in found:
        if text is not None:
            hosts.setdefault((student, text), []).append(host)
    return [
        f"student {student!r}, host{'s' * (len(where) > 1)} {', '.join(where)}: {text}"
        for (student, text), where in hosts.items()
    ]
