"""Devices of one machine, and accelerator types of a cluster's workers."""

from __future__ import annotations

import pytest
from cohorts import MakeRecipe

from kdcl_dist.errors import RecipeError
from kdcl_dist.launch.devices import assign_accelerators, assign_devices
from kdcl_dist.launch.preflight.placement import Need


@pytest.mark.parametrize(
    ("shares", "count", "devices"),
    [
        ((0, 0), 0, ["cpu", "cpu"]),
        ((0, 1), 1, ["cpu", "cuda:0"]),
        ((1, 1), 2, ["cuda:0", "cuda:1"]),
        ((0.5, 0.5), 2, ["cuda:0", "cuda:0"]),
        ((0.6, 0.5), 2, ["cuda:0", "cuda:1"]),
    ],
)
def test_shares_of_a_gpu(
    shares: tuple[float, float], count: int, devices: list[str], make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe(*(f"students.{n}.resources.gpu={s}" for n, s in zip("ab", shares, strict=True)))
    assert assign_devices(recipe, count) == devices


def test_ten_tenths_fill_one_gpu(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("students.a.resources.gpu=0.1", "students.a.replicas=10", "batch_size=20")
    assert assign_devices(recipe, 1) == ["cuda:0"] * 10 + ["cpu"]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_gpus(count: int, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("students.a.resources.gpu=0.7", "students.b.resources.gpu=0.7")
    with pytest.raises(RecipeError, match=f"this machine has {count} GPUs") as caught:
        assign_devices(recipe, count)
    assert f"students.{'ab'[count]}.resources.gpu: 0.7 of a GPU" in str(caught.value)


def test_each_worker_gets_its_accelerator_type() -> None:
    needs = [Need("any", 4, 1), Need("t4", 4, 1, "T4"), Need("a100", 4, 1, "A100")]
    assert assign_accelerators(needs, ["A100", None, "T4"]) == [2, 0, 1]
    assert assign_accelerators(needs, ["T4", "A100", "A100"]) == [1, 2, 0]
    assert assign_accelerators(needs[:1], [None]) == [0]


def test_a_missing_accelerator_type() -> None:
    with pytest.raises(RecipeError, match=r"students\.b\.accelerator: no worker has a 'T4' .*A100, None"):
        assign_accelerators([Need("a", 1), Need("b", 1, 0, "T4")], ["A100", None])
