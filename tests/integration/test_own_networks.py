"""A network with lazy layers and a lock: trained by replicas, resumed, evaluated and exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cohorts import Cohort, MakeRecipe, assert_same, weights
from nets import Lazy

from kdcl_dist.evaluation import evaluate
from kdcl_dist.export.prediction import Export
from kdcl_dist.export.preprocessing import Kind
from kdcl_dist.export.source import Source
from kdcl_dist.export.writing import export
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

MakeRun = Callable[..., Run]
LAZY = ["epochs=2", "students.a.model=nets:Lazy", "students.a.replicas=2"]
ALLOWED = ["nets"]


def test_a_network_without_sizes_lives_as_any_other(
    make_recipe: MakeRecipe, make_run: MakeRun, tmp_path: Path
) -> None:
    recipe = make_recipe(*LAZY)
    whole, part = make_run(recipe), make_run(recipe, "part")
    assert not Cohort(whole).train().errors
    placement = read_record(whole.folder)["placement"]
    assert placement["a/0"]["parameters"] == 64 * 8 + 8 + 8 * 4 + 4 + 8 + 1
    assert placement["a/0"]["peak_memory"] > 1e6
    steps = iter(range(100))
    assert not Cohort(part).train(stop=lambda: next(steps) == 3).errors
    again = make_run(recipe, "part", resume=True)
    assert again.step == 4
    assert not Cohort(again).train().errors
    trained = weights(whole.folder, 6, "a")
    assert_same(weights(again.folder, 6, "a"), trained)

    uri = str(whole.folder.local)
    results = evaluate(uri, device="cpu", warn=print, allow_imports=ALLOWED).results
    recorded = read_record(whole.folder)["results"]
    assert results["a"]["loss"] == pytest.approx(recorded["a"]["loss"], rel=1e-5)

    source = Source.load(uri, "a", warn=print, allow_imports=ALLOWED)
    images = source.example.inputs
    with torch.no_grad():
        expected = source.network(images)
    kinds: tuple[Kind, ...] = ("state_dict", "torch_export")
    for kind in kinds:
        folder = tmp_path / kind
        export(uri, "a", kind, to=folder, allow_imports=ALLOWED)
        assert torch.allclose(Export.read(folder, ALLOWED).logits(images), expected, atol=1e-5)
    alone = Lazy(4)
    alone.load_state_dict(torch.load(tmp_path / "state_dict" / "model.pt", weights_only=True))
    assert torch.equal(alone.eval()(images), expected)
