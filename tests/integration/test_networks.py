"""Students of a factory with arguments, of timm and of an output with logits: trained, resumed, exported."""

from __future__ import annotations

import itertools
import runpy
from collections.abc import Callable
from pathlib import Path

import exporting
import pytest
import torch
from cohorts import Cohort, MakeRecipe
from equality import check

from kdcl_dist.evaluation import evaluate
from kdcl_dist.export.prediction import Export
from kdcl_dist.export.preprocessing import Kind
from kdcl_dist.export.source import Source
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run

DEEP = "{name: 'nets:Deep', depth: 2, width: 4}"
VIT = "{name: 'timm:vit_tiny_patch16_224', img_size: 8, patch_size: 4, depth: 2, embed_dim: 24, num_heads: 2}"
STUDENTS = f"""students=[
    {{name: a, model: {DEEP}, optimizer: {{layer_decay: 0.5, weight_decay: 0.1}}}},
    {{name: b, model: 'nets:Entry'}},
    {{name: c, model: {VIT}, schedule: {{name: cosine}},
      optimizer: {{name: adamw, lr: 1e-3, layer_decay: 0.7, decay_norm_and_bias: false}}}}]"""
EXPORTS: list[tuple[str, Kind]] = [
    ("ensemble", "state_dict"),
    ("a", "state_dict"), ("b", "state_dict"), ("b", "torch_export"), ("b", "onnx"), ("c", "safetensors"),
]  # fmt: skip


def test_networks_from_elsewhere_live_as_the_built_in_ones(
    make_recipe: MakeRecipe, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    pytest.importorskip("timm")
    recipe, asked = make_recipe(STUDENTS), itertools.count()
    stopped = Cohort(make_run(recipe, "r")).train(stop=lambda: next(asked) + 1 >= 4)
    assert not stopped.errors
    run = make_run(recipe, "r", resume=True)
    assert not Cohort(run).train().errors
    check(run)

    uri = str(run.folder.local)
    results = evaluate(uri, device="cpu", warn=print, allow_imports=["nets"]).results
    recorded = read_record(run.folder)["results"]
    assert all(results[name]["loss"] == pytest.approx(recorded[name]["loss"], rel=1e-5) for name in "abc")
    for student, kind in EXPORTS:
        folder = tmp_path / f"{student}-{kind}"
        arguments = (
            "--format",
            kind,
            "--to",
            folder,
            *(() if student == "c" else ("--allow-imports", "nets")),
        )
        made = exporting.run("export", uri, "--student", student, *arguments)
        assert made.exit_code == 0, made.output
        source = Source.load(uri, student, warn=print, allow_imports=["nets"])
        images = source.example.inputs
        with torch.no_grad():
            expected = source.network(images)
        assert torch.allclose(Export.read(folder, ["nets"]).logits(images), expected, atol=1e-5)
    folder = tmp_path / "ensemble-state_dict"
    built = runpy.run_path(str(folder / "model.py"))["build"]()
    built.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    with torch.no_grad():
        expected = Export.read(folder, ["nets"]).logits(images)
        assert torch.allclose(built.eval()(images), expected, atol=1e-6)
    for student, code in (
        ("a", "network = Deep(num_classes=4, in_channels=1, depth=2, width=4)"),
        ("b", 'logits = network(images)["logits"]'),
        ("c", "network = timm.create_model('vit_tiny_patch16_224', num_classes=4, in_chans=1, img_size=8"),
    ):
        assert code in next(tmp_path.glob(f"{student}-s*/README.md")).read_text()
