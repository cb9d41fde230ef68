"""`resources.gpu: auto`, turned into devices: never more than there is, always placeable, numbers first."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from cohorts import Cohort, MakeRecipe
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.errors import RecipeError
from kdcl_dist.launch import local
from kdcl_dist.launch.devices import assign_devices, devices_on_ray
from kdcl_dist.launch.gpu_remarks import remarks, remarks_on_ray, unusable_gpus
from kdcl_dist.launch.preflight.placement import ACCELERATOR, RAY_UNITS, Host, assign, lacks, needs_of
from kdcl_dist.run.events import Event, Note, Started, Warned
from kdcl_dist.run.run import Run

Gpu = float | str
#: What each student takes of a GPU, and its number of replicas.
COHORTS = st.lists(
    st.tuples(st.sampled_from(["auto", "auto", 0, 0.1, 0.3, 0.5, 1]), st.integers(1, 3)),
    min_size=1,
    max_size=5,
)
HOSTS = st.lists(st.builds(Host, st.just("h"), st.integers(0, 9), st.integers(0, 4)), max_size=4)


def cohort(*students: tuple[Gpu, int], accelerator: Sequence[str | None] = ()) -> Recipe:
    kinds = [*accelerator, *[None] * (len(students) - len(accelerator))]
    items = [
        f"{{name: s{number}, model: mlp, replicas: {replicas}, resources: {{gpu: {gpu}}}, "
        f"accelerator: {kind or 'null'}}}"
        for number, ((gpu, replicas), kind) in enumerate(zip(students, kinds, strict=True))
    ]
    text = f"{{batch_size: 6, data: {{train: a, test: b}}, students: [{', '.join(items)}]}}"
    return parse_recipe(text)


def autos(*replicas: int) -> Recipe:
    return cohort(*(("auto", number) for number in replicas))


def shares(recipe: Recipe) -> list[Gpu]:
    """What each worker takes."""
    return [recipe.students[worker.student].resources.gpu for worker in recipe.workers]


def texts(events: Sequence[Event], kind: type[Note] | type[Warned]) -> list[str]:
    return [event.text for event in events if isinstance(event, kind)]


@pytest.mark.parametrize(
    ("workers", "count", "devices"),
    [
        (1, 1, [0]),
        (2, 1, [0, 0]),
        (2, 2, [0, 1]),
        (2, 4, [0, 1]),
        (4, 3, [0, 1, 2, 0]),
        (5, 2, [0, 1, 0, 1, 0]),
    ],
)
def test_workers_spread_over_the_gpus(workers: int, count: int, devices: list[int]) -> None:
    assert assign_devices(autos(*[1] * workers), count) == [f"cuda:{index}" for index in devices]


def test_without_a_gpu_all_are_on_the_cpu() -> None:
    assert assign_devices(autos(1, 2), 0) == ["cpu"] * 3
    assert devices_on_ray(autos(1, 2), needs_of(autos(1, 2), [Host("h", 8)])) == ["cpu"] * 3


def test_replicas_get_gpus_of_their_own_where_there_are_as_many() -> None:
    assert assign_devices(autos(1, 2), 2)[1:] == ["cuda:1", "cuda:0"]


@pytest.mark.parametrize(
    ("students", "count", "devices"),
    [
        ([("auto", 1), (1, 1)], 1, ["cpu", "cuda:0"]),
        ([("auto", 1), (1, 1)], 2, ["cuda:1", "cuda:0"]),
        ([("auto", 2), (0.5, 1)], 1, ["cuda:0", "cuda:0", "cuda:0"]),
        ([("auto", 2), (0.5, 1)], 2, ["cuda:1", "cuda:0", "cuda:0"]),
        ([("auto", 1), (0, 1)], 2, ["cuda:0", "cpu"]),
    ],
)
def test_numbers_come_first(students: list[tuple[Gpu, int]], count: int, devices: list[str]) -> None:
    assert assign_devices(cohort(*students), count) == devices


@settings(max_examples=60)
@given(COHORTS, st.integers(0, 6))
def test_this_machines_gpus_are_never_overbooked(students: list[tuple[Gpu, int]], count: int) -> None:
    recipe = cohort(*students)
    try:
        devices = assign_devices(recipe, count)
    except RecipeError:
        assume(False)
    assert devices == assign_devices(recipe, count)
    stated = [0 if gpu == "auto" else gpu for gpu in shares(recipe)]
    alone = assign_devices(cohort(*((0 if gpu == "auto" else gpu, n) for gpu, n in students)), count)
    taken, guests = Counter[str](), Counter[str]()
    for gpu, device, without in zip(shares(recipe), devices, alone, strict=True):
        if gpu == "auto":
            guests[device] += 1
        else:
            assert device == without, "a number means what it means without auto"
            taken[device] += gpu
    free = {f"cuda:{index}": 1 - taken[f"cuda:{index}"] for index in range(count)}
    assert all(share > -1e-9 for share in free.values()), stated
    usable = [device for device, share in free.items() if share > 1e-6]
    assert set(guests) <= set(usable or ["cpu"])
    whole = [guests[device] for device in usable if free[device] == 1]
    if whole:
        assert max(whole) - min(whole) <= 1
        assert max(whole) <= math.ceil(sum(guests.values()) / len(whole))


@settings(max_examples=60)
@given(COHORTS, HOSTS)
def test_what_ray_reserves_finds_a_place(students: list[tuple[Gpu, int]], hosts: list[Host]) -> None:
    recipe = cohort(*students)
    needs = needs_of(recipe, hosts)
    assert needs == needs_of(recipe, hosts)
    asked = list(zip(shares(recipe), needs, strict=True))
    assert all(need.gpu == gpu for gpu, need in asked if gpu != "auto"), "a number means what it says"
    automatic = {need.gpu for gpu, need in asked if gpu == "auto"}
    if not any(automatic):
        assert needs == needs_of(recipe)
        return
    assert len(automatic) == 1
    assert lacks(needs, hosts) == []
    used = Counter[tuple[int, int | None]]()
    for slot, need in zip(assign(needs, hosts), needs, strict=True):
        if slot is not None and need.gpu:
            used[slot.host, slot.gpu] += round(need.gpu * RAY_UNITS)
    assert all(units <= RAY_UNITS for units in used.values())


@settings(max_examples=60)
@given(st.integers(1, 9), st.integers(1, 9))
def test_on_one_host_ray_gives_the_largest_share(workers: int, count: int) -> None:
    (gpu,) = {need.gpu for need in needs_of(autos(*[1] * workers), [Host("h", 99, count)])}
    sharing = max(1, math.ceil(workers / count))
    assert gpu == pytest.approx(1 / sharing, abs=1 / RAY_UNITS)
    assert gpu <= 1 / sharing


@pytest.mark.parametrize(
    ("hosts", "gpu"),
    [
        ([Host("x", 8, 1), Host("y", 8, 1)], 0.5),  # three workers
        ([Host("x", 8, 1), Host("y", 8, 2)], 1),
        ([Host("x", 1, 1), Host("y", 8, 1)], 0.5),
        ([Host("x", 2, 4), Host("y", 8)], 0),  # the host with GPUs has cores for two
        ([Host("x", 2, 4), Host("y", 1, 1)], 1),
        ([Host("x", 8)], 0),
        ([], 0),
    ],
)
def test_hosts_with_different_numbers_of_gpus(hosts: list[Host], gpu: float) -> None:
    assert {need.gpu for need in needs_of(autos(1, 1, 1), hosts)} == {gpu}


def test_accelerator_types_count() -> None:
    a100, t4 = (Host(kind, 8, 2, {ACCELERATOR: kind}) for kind in ("A100", "T4"))
    recipe = cohort(("auto", 1), ("auto", 1), ("auto", 1), accelerator=["T4", "T4", "T4"])
    assert needs_of(recipe, [a100, t4])[0].gpu == 0.5
    assert needs_of(recipe, [a100])[0].gpu == 0
    assert needs_of(cohort(("auto", 1), ("auto", 1), accelerator=["A100", "T4"]), [a100, t4])[0].gpu == 1


def test_on_ray_a_number_counts_for_its_student() -> None:
    recipe = cohort(("auto", 1), (0.5, 1), (0, 1))

    def reserved(*hosts: Host) -> list[float]:
        return [need.gpu for need in needs_of(recipe, hosts)]

    assert reserved(Host("h", 8, 3)) == [1, 0.5, 0]
    assert reserved(Host("h", 8, 1)) == [0.5, 0.5, 0]
    assert reserved(Host("h", 8)) == [0, 0.5, 0], "the checks then name the student that lacks it"
    assert devices_on_ray(recipe, needs_of(recipe, [Host("h", 8, 1)])) == ["auto", "cuda", "cpu"]
    assert devices_on_ray(recipe, needs_of(recipe, [Host("h", 8)])) == ["cpu", "cuda", "cpu"]


def test_the_run_says_which_student_has_which_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    recipe = cohort(("auto", 2), ("auto", 1), (0, 1))
    assert remarks(recipe, ["cuda:0", "cuda:1", "cuda:0", "cpu"], 2) == [
        Note("resources.gpu auto: GPU 4: s0/0, s1; GPU 6: s0/1; CPU: s2")
    ]
    assert remarks(recipe, ["cpu"] * 4, 0) == []
    assert on_ray(cohort(("auto", 2), ("auto", 1), (0.3, 1)), Host("h", 8, 2))[0] == Note(
        "resources.gpu auto: 0.5 of a GPU each for s0/0, s0/1, s1"
    )
    assert on_ray(recipe, Host("h", 8, 4))[0] == Note("resources.gpu auto: a GPU each for s0/0, s0/1, s1")
    assert on_ray(recipe, Host("h", 8)) == []


def on_ray(recipe: Recipe, *hosts: Host) -> list[Event]:
    return remarks_on_ray(recipe, needs_of(recipe, hosts), hosts)


def test_idle_gpus_are_warned_about() -> None:
    recipe = cohort((0, 1), (0, 1))
    (line,) = texts(remarks(recipe, assign_devices(recipe, 2), 2), Warned)
    assert line == "s0, s1: on the CPU, while the run uses 0 of 2 GPUs (resources.gpu is 0; auto takes a GPU)"
    assert texts(on_ray(recipe, Host("x", 8, 1), Host("y", 8, 1)), Warned) == [line]
    mixed = cohort((1, 1), (0, 1))
    assert remarks(mixed, assign_devices(mixed, 1), 1) == [], "the one GPU is taken"
    assert len(remarks(mixed, assign_devices(mixed, 2), 2)) == 1
    assert on_ray(mixed, Host("x", 8, 1)) == []
    failure = mixed.failure.model_copy(update={"spares": 1})
    assert on_ray(mixed.model_copy(update={"failure": failure}), Host("x", 8, 2)) == [], "a spare takes it"
    for beside in ([], [(1, 1)]):
        automatic = cohort(*[("auto", 1)] * 3, *beside)
        (line,) = texts(on_ray(automatic, Host("x", 2, 4), Host("y", 8)), Warned)
        assert f"no room for all {3 + len(beside)} workers" in line


def test_a_gpu_that_pytorch_cannot_use_is_warned_about() -> None:
    recipe, devices = cohort(("auto", 1), (0, 1), ("auto", 1)), ["auto", "cpu", "auto"]
    places: dict[str, dict[str, str | int]] = {
        "s0": {"device": "NVIDIA T4 (GPU 0)"},
        "s1": {"device": "cpu"},
        "s2": {"device": "cpu"},
    }
    started = Started(recipe.names, places, 1, 1, 0)
    (line,) = texts(unusable_gpus(recipe, devices, started), Warned)
    assert line.startswith("s2: on the CPU")
    assert unusable_gpus(recipe, ["cpu"] * 3, started) == []


def test_a_number_whose_gpu_pytorch_cannot_use_is_a_mistake(
    make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    run = make_run(make_recipe("students.a.resources.gpu=1", "students.b.resources.gpu=0.5"))
    errors = Cohort(run, device="cuda").train().errors
    cause = errors["coordinator"]
    assert isinstance(cause, RecipeError)
    assert f"students.{cause.student}.resources.gpu: " in cause.message
    assert "set it to auto or 0" in cause.message
    assert "\n" not in str(cause)


def test_the_local_launcher_takes_what_pytorch_can_use(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "usable_gpus", lambda: 1)
    told: list[Event] = []
    launched = local._Cohort(make_run(make_recipe()), told.append, threading.Event())
    assert launched.devices == {"a": "cuda:0", "b": "cuda:0"}
    assert told == [Note("resources.gpu auto: GPU 0: a, b")]
    stated = make_recipe("students.a.resources.gpu=0", "students.b.resources.gpu=0")
    launched = local._Cohort(make_run(stated), told.append, threading.Event())
    assert launched.devices == {"a": "cpu", "b": "cpu"}
    assert texts(told[1:], Warned) == [
        "a, b: on the CPU, while the run uses 0 of 1 GPUs (resources.gpu is 0; auto takes a GPU)"
    ]
