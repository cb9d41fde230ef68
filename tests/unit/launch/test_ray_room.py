"""What Ray is asked to reserve for a cohort whose students ask for different amounts; Ray does not run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cohorts import MakeRecipe

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.launch.devices import devices_on_ray
from kdcl_dist.launch.preflight.placement import ACCELERATOR, Host, kinds_of, needs_of
from kdcl_dist.launch.ray import driver, rehearsal, trainers
from kdcl_dist.run.run import Run

HOST = Host("h", 9, 2, {ACCELERATOR: "A100"})


@pytest.fixture
def recipe(make_recipe: MakeRecipe) -> Recipe:
    """A cohort of workers c, g, h/0, h/1 and l, of which h is the one of `gpu: auto`."""
    resources = {"c": "{gpu: 0}", "g": "{gpu: 0.5}", "h": "{gpu: auto}", "l": "{cpu: 2, gpu: 0.5}"}
    more = {"g": "accelerator: A100", "h": "replicas: 2"}
    students = [
        f"{{name: {name}, model: mlp, resources: {each}, {more.get(name, 'seed: 1')}}}"
        for name, each in resources.items()
    ]
    return make_recipe(f"students=[{', '.join(students)}]")


def test_a_trainer_has_the_workers_of_one_kind(recipe: Recipe, make_run: Callable[..., Run]) -> None:
    run, needs = make_run(recipe), needs_of(recipe, [HOST])
    made = [trainers._trainer(run, needs, devices_on_ray(recipe, needs), kind) for kind in range(3)]
    assert kinds_of(needs) == [[1, 2, 3], [4], [0]]
    scalings = [trainer.scaling_config for trainer in made]
    assert [scaling.num_workers for scaling in scalings] == [3, 1, 1]
    assert [scaling.resources_per_worker for scaling in scalings] == [
        {"CPU": 1, "GPU": 0.5},
        {"CPU": 2, "GPU": 0.5},
        {"CPU": 1},
    ]
    assert [scaling.use_gpu for scaling in scalings] == [True, True, False]
    assert [scaling.label_selector for scaling in scalings] == [[{ACCELERATOR: "A100"}, {}, {}], None, None]
    assert [trainer.backend_config.workers for trainer in made] == [[1, 2, 3], [4], [0]]
    assert len({trainer.run_config.name for trainer in made}) == 3, "each has a folder for its notes"


def test_a_cohort_that_asks_for_the_same_has_one_trainer(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(make_recipe("students.a.replicas=2", "students.b.accelerator=A100"))
    monkeypatch.setattr(trainers, "Head", lambda: None)
    (trainer,) = trainers.Trainers(run, None, needs_of(run.recipe), print, None).trainers  # type: ignore[arg-type]
    made = trainer.make()
    assert made.run_config.name == "ray"
    assert made.scaling_config.label_selector == [{ACCELERATOR: "A100"}, {}, {}], "it chooses first"
    assert made.backend_config.workers == [2, 0, 1]
    assert made.scaling_config.num_workers == 3


def test_a_rehearsal_takes_what_its_student_does(recipe: Recipe) -> None:
    needs = needs_of(recipe, [HOST])
    assert rehearsal._by_device(recipe, needs, HOST) == {
        (0, "cpu"): [0],
        (0.5, "cuda"): [1, 3],
        (0.5, "auto"): [2],
    }
    other = rehearsal._by_device(recipe, needs, Host("other", 1, 1))
    assert other == {(0, "cpu"): [0], (0.5, "auto"): [2]}, "without an A100, and without two cores"


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        (["students.b=null", "students.a.resources={cpu: 1, gpu: 0.5}"], 4),
        (["students.b=null", "students.a.resources={cpu: 2, gpu: 0}"], 2),  # one each, not three
        (["students.a.resources.gpu=1", "students.b.resources.gpu=0.5"], 1),
        (["students.a.resources.gpu=0", "students.b.resources.gpu=0.5"], 3),
        (["students.a.resources.gpu=0.9", "students.b.resources.gpu=0.1"], 2),
        (["students.a.resources.gpu=1", "students.b.resources.gpu=1"], 1),
        (["students.a.resources.cpu=9"], 1),
        (
            [
                "failure={max_failures: 1, spares: 1}",
                "students.a.resources.gpu=0",
                "students.b.resources.gpu=0",
            ],
            2,
        ),
    ],
)
def test_as_many_runs_at_once_as_there_is_room_for(
    changes: list[str], count: int, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "hosts", lambda: [Host("x", 3, 1), Host("y", 3, 1)])
    assert driver.max_concurrent_runs(make_recipe(*changes)) == count
