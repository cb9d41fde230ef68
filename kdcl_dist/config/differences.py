"""The differences between two recipes: those that make another run, and those that change last bits only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from kdcl_dist.config.recipe import Recipe

__all__ = [
    "FREE_FIELDS",
    "ROUNDING_FIELDS",
    "are_of_one_arm",
    "changes",
    "differences",
    "forbidden_changes",
    "roundings",
]

#: Fields that may change between a run and its resumption, because no result depends on them.
FREE_FIELDS = (
    "name",
    "coordinators",
    "checkpoint.every_epochs",
    "checkpoint.in_memory_every_steps",
    "checkpoint.keep",
    "analysis",
    "tracking",
    "failure",
    "limits",
    "data.loader_workers",
    "distillation.bank.folder",
    "distillation.threads",
)

#: Fields that may change as well, but change the order of sums: results differ in the last bits.
ROUNDING_FIELDS = (
    "students.*.resources",
    "students.*.accelerator",
    "students.*.channels_last",
    "students.*.compile",
)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The changes that make `new` another run than `old`, one `path: old -> new` each.

    Changes of `FREE_FIELDS` and `ROUNDING_FIELDS` do not count.
    """
    return [line for path, line in _changes(old, new) if not _is_one_of(path, FREE_FIELDS + ROUNDING_FIELDS)]


def are_of_one_arm(left: Recipe, right: Recipe) -> bool:
    """Whether two recipes of a table are those of one arm: they differ in no more than their seeds.

    The arm may have written `{seed}` into any field, also into a part of a text (`teachers/{seed}.pt`): there
    each has its own.
    """
    return all(
        _is_one_of(path, FREE_FIELDS + ROUNDING_FIELDS) or _has_own(values, (left.seed, right.seed))
        for path, values in _changed(left, right)
    )


def _has_own(values: tuple[Any, Any], seeds: tuple[int, int]) -> bool:
    """Whether two values are equal but for the numbers in them that are the seeds."""
    left, right = (re.split(r"(\d+)", str(value)) for value in values)
    pairs = zip(left, right, strict=False)
    own = tuple(map(str, seeds))
    return len(left) == len(right) and all(one == other or (one, other) == own for one, other in pairs)


def forbidden_changes(old: Recipe, new: Recipe) -> list[str]:
    """The changes with which `new` cannot resume a run of `old`: as `differences`, but `epochs` may grow.

    They may where no learning rate depends on them; else the line says whose does. The end by
    `early_stopping` may change, and `checkpoint.best` be given up.
    """
    allowed: dict[str, Any] = {"epochs": old.epochs, "early_stopping": old.early_stopping}
    if new.checkpoint.best is None:
        allowed["checkpoint"] = old.checkpoint
    others = differences(old, new.model_copy(update=allowed))
    line = f"epochs: {old.epochs} -> {new.epochs}"
    if new.epochs < old.epochs:
        return [f"{line} (a run may go on for more epochs, not for fewer)", *others]
    bound = [f"{s.name} (schedule {s.schedule.name!r})" for s in old.students if old.ends_schedule(s)]
    if new.epochs > old.epochs and bound:
        why = f"the learning rate of {', '.join(bound)} depends on the epochs"
        remedy = "start a new run with the `weights` of its students"
        return [f"{line} ({why}: {remedy})", *others]
    return others


def changes(old: Recipe, new: Recipe) -> list[str]:
    """All changes, one `path: old -> new` each."""
    return [line for _, line in _changes(old, new)]


def roundings(old: Recipe, new: Recipe) -> list[str]:
    """The changes of `ROUNDING_FIELDS`, one `path: old -> new` each; of a GPU the coordinator tells.

    Whether another `resources.gpu` means another device is known once the run has its devices.
    """
    return [
        line
        for path, line in _changes(old, new)
        if _is_one_of(path, ROUNDING_FIELDS) and not path.endswith(".resources.gpu")
    ]


def _changes(old: Recipe, new: Recipe) -> list[tuple[str, str]]:
    return [(path, f"{path}: {left!r} -> {right!r}") for path, (left, right) in _changed(old, new)]


def _changed(old: Recipe, new: Recipe) -> list[tuple[str, tuple[Any, Any]]]:
    """The paths at which two recipes differ, with both values."""
    left, right = (dict(_leaves(recipe.model_dump(mode="json"))) for recipe in (old, new))
    values = {
        path: (left.get(path, "(absent)"), right.get(path, "(absent)"))
        for path in sorted(left.keys() | right.keys())
    }
    return [(path, both) for path, both in values.items() if both[0] != both[1]]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below the mappings and lists of a recipe, with its path."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    )
    if not children:
        yield path, value
        return
    for key, child in children:
        yield from _leaves(child, f"{path}.{key}" if path else str(key))


def _is_one_of(path: str, fields: Iterable[str]) -> bool:
    generic = re.sub(r"^students\.\d+\.", "students.*.", path)
    return any(generic == field or generic.startswith(field + ".") for field in fields)
