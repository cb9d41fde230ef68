"""A trial build of a student, before a job with it is uploaded: on the meta device, which holds no numbers.

The data, the weights and some packages may be on the cluster's hosts only. What therefore cannot be known
here is a warning.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from kdcl_dist.config.model import Model, library_of
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.stored_imports import import_strings
from kdcl_dist.data.probes import first_views
from kdcl_dist.data.samples import Inputs
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.data.views import Transforms
from kdcl_dist.errors import KdclError, RecipeError, StartupTimeout, StudentLost, UserError, of_user_code
from kdcl_dist.launch.preflight.own_process import run_apart
from kdcl_dist.models.registry import BUILT_IN
from kdcl_dist.run.process import use_root
from kdcl_dist.student.student import Student
from kdcl_dist.utils.data_specs import data_path
from kdcl_dist.utils.import_strings import is_import_string, load_object

__all__ = ["TrialBuild", "trial_build"]

#: Classes and channels, those of ImageNet, where the data is on the hosts only.
ASSUMED = (1000, 3)


@dataclass
class TrialBuild:
    """What the trial build of one student found.

    Attributes:
        problem: why the student cannot be built; None if it can, or if this machine cannot know.
        warning: what this machine cannot know.
        modules: by the names of the user's own modules that were imported, the folder of PYTHONPATH and the
            like in which Python found the module, and the module's file relative to that folder.
    """

    problem: str | None = None
    warning: str | None = None
    modules: dict[str, tuple[str, str]] = field(default_factory=dict)


def trial_build(recipe: Recipe, index: int, root: str) -> TrialBuild:
    """Build one student in a process of its own, for `limits.startup_s` at most.

    Args:
        recipe: the run.
        index: of the student in the recipe.
        root: the folder in which the job will look up paths and import strings.
    """
    name = recipe.students[index].name
    try:
        return run_apart(recipe.limits.startup_s, name, _try, recipe, index, root)
    except (StartupTimeout, StudentLost) as error:  # the hosts may be faster, or have more memory
        return TrialBuild(warning=f"student {name!r} was not built here: {error.message}")
    except KdclError as error:
        return TrialBuild(problem=f"student {name!r}: {error.message}")


# -- in the process ------------------------------------------------------------------------------


def _try(recipe: Recipe, index: int, root: str) -> TrialBuild:
    folders = {root, str(Path.cwd()), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))}
    before = set(sys.modules)
    use_root(root)
    found = TrialBuild()
    try:
        found.warning = _build(recipe, index)
        _import_all(recipe)
    except UserError as error:
        if missing := _missing_package(error, recipe):
            found.warning = f"{error.message}: students were not built here, which lacks {missing!r}"
        else:
            found.problem = error.message
    found.modules = _modules(set(sys.modules) - before, {str(Path(each).resolve()) for each in folders})
    return found


def _build(recipe: Recipe, index: int) -> str | None:
    """Open the data and build a student; returns a warning, or raises `UserError`."""
    try:
        training_data = TrainingData.open(recipe)
    except UserError as error:
        if _has_data(recipe) or _cannot_import(error):
            raise
        return _build_without_data(recipe, index, error)
    classes, example = len(training_data.train.classes), partial(first_views, training_data, index, 2)
    _build_student(recipe, index, classes, training_data.channels, lambda: example().inputs)
    return None


def _import_all(recipe: Recipe) -> None:
    """Import also what no student needs to be built, such as the method and schedules."""
    for text in sorted(
        import_strings(recipe) - {Model.of(each.model).name for each in recipe.networks.values()}
    ):
        with of_user_code(RecipeError, f"{text!r} cannot be loaded"):
            load_object(text)


def _has_data(recipe: Recipe) -> bool:
    """Whether the data is here as it is on the hosts, so that an error of it is one there too."""
    return all(Path(data_path(spec)).exists() for spec in recipe.data.sets.values())


def _build_without_data(recipe: Recipe, index: int, error: UserError) -> str:
    classes, channels = len(recipe.data.classes or ()) or ASSUMED[0], ASSUMED[1]
    assumed = f"students were built for {classes} classes and {channels} channels, since {error.message}"
    spec = recipe.students[index]
    try:
        for items in (recipe.augment_of(spec), recipe.data.test_items):
            Transforms(items, (0.5,) * channels)
        _build_student(recipe, index, classes, channels)
    except UserError as found:
        name = Model.of(spec.model).name
        is_known = name in BUILT_IN or library_of(name) is not None or is_import_string(name)
        if not is_known or _cannot_import(found):
            raise
        return f"{found.message}; {assumed}"
    return assumed


def _build_student(
    recipe: Recipe,
    index: int,
    classes: int,
    channels: int | None,
    example: Callable[[], Inputs] | None = None,
) -> None:
    """Build a student; `example` gives samples, for networks whose layers take their sizes from these."""
    spec = recipe.students[index]
    changes: dict[str, object] = {"compile": False, "precision": "fp32"}  # neither changes what is built
    if spec.weights is not None and not Path(spec.weights).exists():
        changes["weights"] = None
    students = [*recipe.students]
    students[index] = spec.model_copy(update=changes)
    recipe = recipe.model_copy(update={"students": students})
    try:
        _on_some_device(partial(Student, recipe, index, classes=classes, channels=channels, example=example))
    except UserError as error:
        raise type(error)(f"student {spec.name!r}: {error.message}") from error


def _on_some_device(build: Callable[..., Student]) -> None:
    meta = torch.device("meta")
    try:
        with meta:
            build(device=meta)
    except Exception as error:
        if isinstance(error, UserError) and error.__cause__ is None:
            raise
        # A user's factory may need numbers, which the meta device lacks.
        build(device=torch.device("cpu"))


def _missing_package(error: BaseException, recipe: Recipe) -> str | None:
    """The package whose absence here caused an error; None for another error, or a module of the recipe's."""
    own = {text.partition(":")[0].partition(".")[0] for text in import_strings(recipe)}
    for cause in _causes(error):
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            top = cause.name.partition(".")[0]
            return None if top in own else top
    return None


def _cannot_import(error: BaseException) -> bool:
    return any(isinstance(cause, ImportError) for cause in _causes(error))


def _causes(error: BaseException) -> Iterable[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _modules(names: Iterable[str], folders: set[str]) -> dict[str, tuple[str, str]]:
    """Of the modules that Python found in some folders, but for this package's, the folder and the file."""
    found = {}
    for name in sorted(names):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None or name.partition(".")[0] == "kdcl_dist":
            continue
        path = Path(file).absolute()
        above = name.count(".") + (path.stem == "__init__")
        above_all = path.parents[min(above, len(path.parents) - 1)]
        if (folder := str(above_all.resolve())) in folders:
            found[name] = folder, str(path.relative_to(above_all))
    return found
