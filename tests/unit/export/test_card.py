"""The model card: the recorded test results, and the seeds of a table."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from exporting import run
from scipy import stats

from kdcl_dist.run.record import read_record, update_record
from kdcl_dist.run.run import Run
from kdcl_dist.run.storage import Folder


def test_the_card(trained: Run, exports: dict[str, Path]) -> None:
    card = (exports["onnx"] / "README.md").read_text()
    for name, values in read_record(trained.folder)["results"].items():
        line = next(line for line in card.splitlines() if line.replace("*", "").startswith(f"| {name} |"))
        interval = stats.binomtest(round(23 * values["top1"]), 23).proportion_ci(method="wilson")
        shown = f"{100 * values['top1']:.2f} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
        assert shown in line
        assert f"| {values['loss']:.4f} |" in line
    for words in (
        "epoch 2 of 2",
        "drawn here",
        "CC0",
        "CVPR 2020",
        "Resize(size=[12, 12])",
        "method: linear",
    ):
        assert words in card, words
    assert "Over the" not in card  # there is one seed


def test_the_card_has_the_seeds_of_a_table(trained: Run, tmp_path: Path) -> None:
    """Runs of `kdcl compare`: other seeds of the arm count; other arms or recipes, or failed runs, do not."""
    assert trained.folder.local is not None
    others = [("arm-seed0", 0, 0.5), ("arm-seed1", 1, 0.6), ("arm-seed2", 2, 0.7), ("else-seed3", 3, 0.1)]
    others += [("arm-seed4", 4, 0.1), ("arm-seed5", 5, 0.1), ("arm-seed6", 6, 0.1)]
    for name, seed, top1 in others:
        shutil.copytree(trained.folder.local, tmp_path / name)
        path = tmp_path / name / "recipe.yaml"
        text = path.read_text().replace("seed: 0\n", f"seed: {seed}\n", 1)
        path.write_text(text if seed != 4 else text.replace("temperature: 2.0", "temperature: 3.0"))
        state = "failed" if seed == 5 else "finished"
        student = "b" if seed == 6 else "a"  # at the end of that run a was absent
        results = {student: {"top1": top1, "top5": 1.0, "loss": 1.0}}
        update_record(Folder(str(tmp_path / name)), state=state, results=results)
    uri = (tmp_path / "arm-seed0").as_uri()  # a URI, as of other storage
    assert run("export", uri, "--student", "a", "--to", tmp_path / "out").exit_code == 0
    half = stats.t.ppf(0.975, 2) * 10 / np.sqrt(3)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Over the 3 seeds" in card
    assert f"top-1 of a is 60.00 ± {half:.2f} %" in card
