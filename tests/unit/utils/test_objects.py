"""Objects of a call in Python, on their way to the processes of a run."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cohorts import Cohort, MakeRecipe, assert_same, weights
from nets import Plain
from torch import nn

from kdcl_dist.config.stored_imports import check_recipe_imports
from kdcl_dist.data.dataset import ArrowDataset
from kdcl_dist.data.sources.opening import open_dataset
from kdcl_dist.errors import ImportRefused, ModelError, RecipeError, UserError
from kdcl_dist.models.registry import build
from kdcl_dist.run.run import Run
from kdcl_dist.training import train
from kdcl_dist.utils.import_strings import load_object
from kdcl_dist.utils.objects import Copied, Given, Objects, carry, carrying, known, knows, pickled


def elsewhere(objects: Objects) -> Objects:
    """The objects as another process has them."""
    return pickle.loads(pickle.dumps(objects))


def test_objects_are_known_in_the_block_only_and_rebuilt_elsewhere() -> None:
    class Local:
        number = 3

    given = Local()
    objects = pickled({"object:local": given, "object:list": [1]})
    assert not knows("object:local")
    with carrying(objects):
        assert load_object("object:local") is given
    with carrying(elsewhere(objects)):
        found = load_object("object:local")
        assert found is not given
        assert found.number == 3
        assert load_object("object:local") is found
        assert not knows("object:other")
    with pytest.raises(
        ImportError, match=r"'object:local' is an object of a call in Python.* pass it in Python"
    ):
        load_object("object:local")
    assert objects.only("object:list", "x").data.keys() == {"object:list"}


def test_each_thread_knows_its_own() -> None:
    found: list[bool] = []

    def work() -> None:
        found.append(knows("object:a"))
        carry(pickled({"object:b": 2}))
        found.append(knows("object:b"))

    with carrying(pickled({"object:a": 1})):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found == [False, True]
        assert known().data.keys() == {"object:a"}


class Holder:
    """Has a part that no process can get."""

    def __init__(self) -> None:
        self.inner = {"key": [threading.Lock()]}


class BreaksInOtherProcess:
    """Raises when it is rebuilt."""

    def __reduce__(self) -> tuple[Callable[[str], float], tuple[str]]:
        return float, ("no number",)


def test_what_cannot_travel_is_named() -> None:
    with pytest.raises(
        UserError, match=r"'object:x' cannot be handed .*Holder.inner.*cannot be pickled"
    ) as error:
        pickled({"object:x": Given(Holder())})
    assert "\n" not in str(error.value)
    with (
        carrying(elsewhere(pickled({"object:x": BreaksInOtherProcess()}))),
        pytest.raises(ImportError, match="'object:x' cannot be rebuilt in this process: ValueError"),
    ):
        load_object("object:x")


def test_a_network_begins_with_its_very_weights_and_stays_as_it_is() -> None:
    network = nn.Linear(3, 4)
    with carrying(elsewhere(pickled({"object:net": Copied(network)}))):
        first, second = (build("object:net", 4, 1) for _ in range(2))
    assert torch.equal(first.weight, network.weight)
    assert first.weight.data_ptr() != second.weight.data_ptr()


def test_a_factory_may_take_no_arguments() -> None:
    with carrying(pickled({"object:net": lambda: nn.Linear(3, 4), "object:wrong": lambda size: None})):
        assert isinstance(build("object:net", 4, 1), nn.Linear)
        with pytest.raises(ModelError, match=r"'object:wrong' cannot be built: TypeError: .*'size'"):
            build("object:wrong", 4, 1)


def test_a_data_set_is_opened_as_it_is(data: dict[str, str]) -> None:
    given = ArrowDataset(data["train"])
    with carrying(pickled({"object:train_set": Given(given)})):
        assert open_dataset("object:train_set") is given


def test_a_stored_recipe_names_objects_that_only_python_passes(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("students.a.model=object:net")
    for allowed in ([], ["object"]):
        with pytest.raises(
            ImportRefused, match=r"^run: students.a.model: 'object:net' .*kdcl_dist.Run\(path"
        ):
            check_recipe_imports(recipe, "run", allowed)
    with carrying(pickled({"object:net": Plain})):
        check_recipe_imports(recipe, "run", [])
    with pytest.raises(RecipeError, match="'object:net' is an object of a call in Python"):
        train(recipe, launcher="local")


def test_an_object_trains_as_its_import_string_does(
    make_recipe: MakeRecipe, make_run: Callable[..., Run]
) -> None:
    named = make_run(make_recipe("epochs=1", "students.a.model=nets:Plain"))
    passed = make_run(make_recipe("epochs=1", "students.a.model=object:net"))
    passed = replace(passed, objects=elsewhere(pickled({"object:net": Plain})))
    for run in (named, passed):
        assert not Cohort(run).train().errors
    assert_same(weights(passed.folder, 3, "a"), weights(named.folder, 3, "a"))
    assert b"object:net" in passed.folder.read("recipe.yaml")
