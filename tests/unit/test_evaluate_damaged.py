"""A damaged record or checkpoint under evaluation and export: one line with exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from cohorts import MakeRecipe
from damage import damaged
from hypothesis import given, settings

from kdcl_dist.cli import kdcl
from kdcl_dist.coordinator.aggregator import Aggregator
from kdcl_dist.errors import RunFolderError
from kdcl_dist.evaluation import evaluate
from kdcl_dist.run import checkpoint as C
from kdcl_dist.run.run import Run
from kdcl_dist.student.student import Student


@pytest.fixture
def run(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> Run:
    """A run with a checkpoint of untrained students after 3 steps."""
    made = make_run(make_recipe("epochs=1"), "r")
    states = {"coordinator": {"coordinator": Aggregator(made.recipe).state_dict()}}
    for index, name in enumerate(made.recipe.names):
        student = Student(made.recipe, index, classes=4, channels=1, device=torch.device("cpu"))
        states[name] = student.state_dict()
    commit(made, states)
    return made


def commit(run: Run, states: dict[str, dict[str, object]]) -> None:
    parts = {name: C.write_part(run.folder, 3, name, state) for name, state in states.items()}
    C.commit(run.folder, C.Manifest(3, parts))


@pytest.mark.parametrize("name", ["run.json", "checkpoints/step-00000003/manifest.json"])
def test_a_damaged_file_is_evaluated_or_refused(name: str, run: Run) -> None:
    whole = json.loads(run.folder.read(name))

    @given(content=damaged(whole))
    @settings(max_examples=40)
    def check(content: bytes) -> None:
        run.folder.write(name, content)
        try:
            assert evaluate(run.folder.uri, device="cpu", warn=lambda text: None).samples == 22
        except RunFolderError as error:
            text = str(error)
        else:
            text = ""
        assert "\n" not in text

    check()


def test_a_missing_student_is_named(run: Run) -> None:
    path = Path(run.folder.uri) / "checkpoints/step-00000003/manifest.json"
    data = json.loads(path.read_text())
    del data["parts"]["b"]
    path.write_text(json.dumps(data))
    for arguments, text in (
        (["evaluate", run.folder.uri], "checkpoints/step-00000003 has no student 'b'"),
        (["export", run.folder.uri, "--student", "b"], "checkpoints/step-00000003 has no part of 'b'"),
    ):
        result = CliRunner().invoke(kdcl, arguments)
        assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
        assert text in result.output


@pytest.mark.parametrize("state", [{}, {"model": 7}, {"model": {"x": 1}}, {"coordinator": []}])
@pytest.mark.parametrize("name", ["a", "coordinator"])
def test_a_part_of_another_shape(name: str, state: dict[str, object], run: Run) -> None:
    states = {
        each: C.read_part(run.folder, C.whole(run.folder, 3), each) for each in ("a", "b", "coordinator")
    }
    commit(run, states | {name: state})
    with pytest.raises(RunFolderError, match="does not fit the recipe") as caught:
        evaluate(run.folder.uri, device="cpu", warn=print)
    assert "\n" not in str(caught.value)
