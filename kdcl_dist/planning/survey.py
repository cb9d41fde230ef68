"""The costs of a cohort: given ones, and measured ones for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kdcl_dist import models
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.dataset import channels_of
from kdcl_dist.data.probes import first_views
from kdcl_dist.data.sources.opening import DataSets
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.errors import DataError
from kdcl_dist.exchange.layout import DTYPES, answer_rows
from kdcl_dist.launch.preflight.placement import reserved, spares_in_words
from kdcl_dist.models.lazy import has_lazy_layers, initialise
from kdcl_dist.planning.given import ENSEMBLE
from kdcl_dist.planning.measure_cores import measure_cores
from kdcl_dist.planning.measure_exchange import measure_ensemble, measure_link
from kdcl_dist.planning.measure_students import measure_student
from kdcl_dist.planning.proposal import divisors
from kdcl_dist.planning.step_model import Cost, Link, StepModel, StudentCosts
from kdcl_dist.utils.devices import choose_device

__all__ = ["DEFAULT_ENSEMBLE_S", "DEFAULT_LINK", "Survey", "survey"]

#: Defaults if the costs of all students are given, so that nothing is measured; a network of 10 Gbit/s.
DEFAULT_LINK = Link(latency_s=100e-6, bandwidth=1e9)
DEFAULT_ENSEMBLE_S = 1e-3
#: Classes and channels, those of ImageNet, if all costs are given and the data is not on this machine.
DEFAULT_SHAPE = (1000, 3)

#: Costs by student and number of samples.
Given = Mapping[str, Mapping[int, Cost]]
#: The link, seconds of the ensemble, and the cores that all workers share.
Shared = tuple[Link, float, float]
OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Survey:
    """The model of a recipe's step, and the sources of its costs, one note for each line."""

    recipe: Recipe
    model: StepModel
    notes: list[str]


def survey(
    recipe: Recipe,
    workers: int,
    given: Given,
    *,
    link: Link | None = None,
    cores: float | None = None,
    device: str = "auto",
    on_progress: OnProgress = lambda text: None,
) -> Survey:
    """Collect the costs of a cohort; measures the students that are not given.

    Args:
        recipe: the run.
        workers: number of workers, which bounds the replicas of each student.
        given: costs from `parse_given`.
        link: between all processes. None: measured here; a usual one if nothing is measured.
        cores: CPU cores that all share. None: as many as this machine gives; no limit if
            nothing is measured.
        device: "cpu" or "cuda" for students of `resources.gpu: auto`; "auto": a GPU if there is one.
        on_progress: takes the name of each measurement before it begins.

    Raises:
        UserError: there is no such device.
        KdclError: something cannot be measured.
    """
    recipe = _on(recipe, choose_device(device).type)
    measured = [student.name for student in recipe.networks.values() if student.name not in given]
    classes, channels, notes = _shape(recipe, needed=bool(measured))
    replicas = [student.replicas for student in recipe.networks.values()]
    most = max(workers - len(replicas) + 1, *replicas)
    students = [
        _costs(recipe, index, most, given, (classes, channels), on_progress) for index in recipe.networks
    ]
    if measured:
        shared = _measure_shared(recipe, classes, link, cores, on_progress)
    else:
        shared = link or DEFAULT_LINK, DEFAULT_ENSEMBLE_S, cores or math.inf
    source = f"{', '.join(measured)} measured on this machine" if measured else "nothing measured here"
    notes = [f"{source}, the rest given or default", *notes, *_parts(recipe), *_spares(recipe)]
    return Survey(recipe, _model(recipe, classes, students, given, shared), notes)


def _parts(recipe: Recipe) -> list[str]:
    """A note on what a step is, if the run's steps have parts."""
    parts, samples = recipe.accumulate, recipe.part_size
    note = f"accumulate: a step here is one of the {parts} parts of the run's step, {samples} samples"
    return [note] if parts > 1 else []


def _spares(recipe: Recipe) -> list[str]:
    """A note on the spares of the run, if it has some."""
    return list(filter(None, [spares_in_words(reserved(recipe))]))


def _on(recipe: Recipe, device: str) -> Recipe:
    """The recipe with a number for each `resources.gpu: auto`: 1 on the device "cuda", else 0."""
    students = []
    for student in recipe.students:
        gpu = student.resources.gpu_share(auto=float(device == "cuda"))
        resources = student.resources.model_copy(update={"gpu": gpu})
        students.append(student.model_copy(update={"resources": resources}))
    return recipe.model_copy(update={"students": students})


def _measure_shared(
    recipe: Recipe, classes: int, link: Link | None, cores: float | None, on_progress: OnProgress
) -> Shared:
    on_progress("measuring the exchange, the ensemble and the cores")
    return link or measure_link(recipe), measure_ensemble(recipe, classes), cores or measure_cores(recipe)


def _model(
    recipe: Recipe, classes: int, students: list[StudentCosts], given: Given, shared: Shared
) -> StepModel:
    link, ensemble_s, cores = shared
    if ENSEMBLE in given:
        ensemble_s = next(iter(given[ENSEMBLE].values())).total_s
    return StepModel(
        recipe.part_size,
        classes,
        students,
        link,
        ensemble_s,
        answer_rows(recipe),
        cores,
        DTYPES[recipe.distillation.wire_precision],
        recipe.coordinators,
    )


def _shape(recipe: Recipe, *, needed: bool) -> tuple[int, int | None, list[str]]:
    """Classes, channels and notes; data that is missing on this machine is an error only if `needed`."""
    try:
        data = DataSets(recipe.data).open("train")
    except DataError:
        if needed:
            raise
        classes, channels = DEFAULT_SHAPE
        return classes, channels, [f"data.train cannot be opened here: {classes} classes are assumed"]
    return len(data.classes), channels_of(data), []


def _costs(
    recipe: Recipe,
    index: int,
    most: int,
    given: Given,
    shape: tuple[int, int | None],
    on_progress: OnProgress,
) -> StudentCosts:
    # Several coordinators go with one worker a student.
    most = most if recipe.coordinators == 1 else 1
    student, counts = recipe.students[index], divisors(recipe.part_size, most)
    if student.name in given:
        costs = given[student.name]
    else:
        on_progress(f"measuring {student.name}")
        # The recipe's own number goes first: it must fit the device, the others need not.
        costs = measure_student(recipe, index, sorted(counts, key=lambda count: count != student.replicas))
        counts = [count for count in counts if recipe.part_size // count in costs]
    threads = 0 if student.resources.gpu_share(auto=0.0) else student.resources.cpu
    return StudentCosts(costs, threads, _gradient_bytes(recipe, index, shape), counts)


def _gradient_bytes(recipe: Recipe, index: int, shape: tuple[int, int | None]) -> int:
    student = recipe.students[index]
    if recipe.is_frozen(student):
        return 0
    network = models.build(student.model, *shape)
    if has_lazy_layers(network):
        initialise(network, str(student.model), first_views(TrainingData.open(recipe), index, 2).inputs)
    return sum(4 * parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
