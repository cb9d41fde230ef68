"""Whole runs on data as people have it: a table, and a torch data set with random transforms of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import run, train

SETS = ("--set", "data.train=nets:noisy_train", "--set", "data.test=nets:noisy_test")
RECIPE = """
    epochs: 2
    batch_size: 16
    data: {train: train.csv, test: test.csv, label: kind, normalise: true}
    students:
      - {name: a, model: "nets:Vector"}
      - {name: b, model: "nets:Vector"}
"""


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    part = torch.load(folder / f"checkpoints/step-{step:08d}/a.pt", weights_only=True)
    found: dict[str, torch.Tensor] = part["model"]
    return found


def check_predictions(folder: Path) -> None:
    """An export finds the columns of a table by their names, and needs no label."""
    imports = ("--allow-imports", "nets")
    export = run("export", "runs/table", "--student", "a", "--format", "state_dict", "--to", "ex", *imports)
    assert export.exit_code == 0, export.output
    rows = [line.split(",") for line in (folder / "test.csv").read_text().splitlines()[1:]]
    turned = "".join(f"{two},0,{one}\n" for one, two, _ in rows)
    (folder / "turned.csv").write_text(f"two,more,one\n{turned}")
    found = [run("predict", "ex", name, "--csv", *imports) for name in ("test.csv", "turned.csv")]
    assert [each.exit_code for each in found] == [0, 0], [each.output for each in found]
    assert found[0].output == found[1].output
    assert len({line.split(",")[2] for line in found[0].output.splitlines()[1:]}) > 1
    (folder / "less.csv").write_text("one,kind\n1,w\n")
    refused = run("predict", "ex", "less.csv", *imports)
    assert refused.exit_code == 2
    assert "no column 'two', which data.train has" in refused.output


def test_a_table_and_a_noisy_torch_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, count in (("train", 48), ("test", 16)):
        rows = "".join(f"{row % 4},{row},{'wxyz'[row % 4]}\n" for row in range(count))
        (tmp_path / f"{name}.csv").write_text(f"one,two,kind\n{rows}")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = str(tmp_path / "recipe.yaml")

    table = train(recipe, tmp_path, "--name", "table")
    assert table.exit_code == 0, table.output
    assert "4 classes (w, x, y, z) in column 'kind'; found in" in table.output

    check_predictions(tmp_path)

    normal = (*SETS, "--set", "data.normalise=false", "--set", "data.label=null")
    whole = train(recipe, tmp_path, "--name", "whole", *normal)
    assert whole.exit_code == 0, whole.output
    assert "48 images of 1 channels; 4 classes (0, 1, 2, 3); found from all samples" in whole.output
    part = train(recipe, tmp_path, "--name", "part", *normal, "--set", "epochs=1")
    assert part.exit_code == 0, part.output
    more = ("--set", "epochs=2", "--set", "data.loader_workers=1")
    resumed = train(recipe, tmp_path, "--name", "part", "--resume", *normal, *more)
    assert resumed.exit_code == 0, resumed.output
    expected = weights(tmp_path / "runs/whole", 6)
    for name, tensor in weights(tmp_path / "runs/part", 6).items():
        assert torch.equal(tensor, expected[name])
