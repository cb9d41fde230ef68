"""`train` of Python: a recipe, or networks and data sets as they are."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from kdcl_dist.api.build import DataSets, Network, Student, build_recipe
from kdcl_dist.api.callbacks import Callback
from kdcl_dist.api.run import Run
from kdcl_dist.api.session import run_session
from kdcl_dist.config.model import is_url
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import load_recipe
from kdcl_dist.config.stored_imports import import_strings
from kdcl_dist.errors import RecipeError
from kdcl_dist.run.events import Event
from kdcl_dist.training import Launcher, Result
from kdcl_dist.utils.import_strings import names_object
from kdcl_dist.utils.objects import pickled

__all__ = ["train"]


@overload
def train(
    recipe: Recipe | str | os.PathLike[str],
    *,
    launcher: Launcher = ...,
    storage: str = ...,
    name: str | None = ...,
    resume: bool = ...,
    on_event: Callable[[Event], None] | None = ...,
    callbacks: Sequence[Callback] = ...,
    stop: threading.Event | None = ...,
) -> Result: ...


@overload
def train(
    *,
    students: Mapping[str, Network | Student],
    data: DataSets,
    launcher: Launcher = ...,
    storage: str = ...,
    name: str | None = ...,
    resume: bool = ...,
    on_event: Callable[[Event], None] | None = ...,
    callbacks: Sequence[Callback] = ...,
    stop: threading.Event | None = ...,
    **fields: Any,
) -> Run: ...


def train(  # noqa: PLR0913 - what is no field of a recipe
    recipe: Recipe | str | os.PathLike[str] | None = None,
    *,
    students: Mapping[str, Network | Student] | None = None,
    data: DataSets | None = None,
    launcher: Launcher = "ray",
    storage: str = "runs",
    name: str | None = None,
    resume: bool = False,
    on_event: Callable[[Event], None] | None = None,
    callbacks: Sequence[Callback] = (),
    stop: threading.Event | None = None,
    **fields: Any,
) -> Result | Run:
    """Train a cohort: that of a recipe, or networks and data sets that are passed as they are.

    With `students` and `data` a recipe is built: `train(...).recipe` shows it. Fields that it leaves out have
    a recipe's defaults, but AdamW with a rate of 0.001 that falls by half a cosine; and with validation
    samples the best epoch by top-1 is kept.

    Args:
        recipe: what to train, or the path of a recipe file; without `students` and `data`.
        students: networks by the students' names; see `Student`, which also gives one fields of its own.
        data: (training set, test set), and a validation set as the third; or the section `data` as a mapping.
            A set is a path, an import string, an object, or a function that makes one.
        launcher: "ray" takes the cluster of RAY_ADDRESS or `ray start`, or its own; "local" works without it.
        storage: path or URI of the folder that holds runs.
        name: the run's folder within it; by default the recipe's name and the time.
        resume: continue the run from its latest checkpoint.
        on_event: called with each event of the run. None: a live table in IPython, one line in a script.
        callbacks: called after each epoch, in a thread of this process; see `Callback`.
        stop: set to ask for a checkpoint and an end after the step; by default Ctrl-C and SIGTERM ask.
        fields: fields of a recipe by their names, as `epochs=10`; of its section `distillation`, as
            `method="linear"`; of `data`, as `val_fraction=0.1`; and of all students, as `optimizer="sgd"`.

    Returns:
        Of `students` and `data` the run; of a recipe its result.

    Raises:
        UserError: what is given cannot be used as it is, or a callback failed; what was trained is saved.
        KdclError: the first cause of the run's failure; what was saved stays in the run folder.
    """
    chosen, objects = _recipe_of(recipe, students, data, fields)
    result = run_session(chosen, pickled(objects), launcher, storage, name, resume, on_event, callbacks, stop)
    if recipe is not None:
        return result
    # Named by this call, so its user allows them.
    named = [text for text in import_strings(chosen) if not names_object(text)]
    named = [text if is_url(text) else text.partition(":")[0] for text in named]
    return Run(result.path, allow_imports=named, objects=objects)


def _recipe_of(
    recipe: Recipe | str | os.PathLike[str] | None,
    students: Mapping[str, Network | Student] | None,
    data: DataSets | None,
    fields: Mapping[str, Any],
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a call, and its objects."""
    if recipe is None:
        if students is None or data is None:
            raise RecipeError("train() needs a recipe, or students={...} and data=(training set, test set)")
        return build_recipe(students, data, fields)
    if students is not None or data is not None or fields:
        given = ["students"] * (students is not None) + ["data"] * (data is not None) + [*fields]
        raise RecipeError(f"train() of a recipe takes no {', '.join(given)}: the recipe has these fields")
    return (recipe if isinstance(recipe, Recipe) else load_recipe(os.fspath(recipe))), {}
