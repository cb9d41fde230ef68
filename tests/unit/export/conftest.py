"""A trained run, and its exports in every format."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from cohorts import Cohort
from exporting import CLASSES, run
from PIL import Image

from kdcl_dist.cli.export import KINDS
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.data.dataset import Info
from kdcl_dist.data.writer import write_dataset
from kdcl_dist.run.prepare import prepare
from kdcl_dist.run.run import Run


def draw(rng: np.random.Generator, label: int) -> bytes:
    """A PNG of its own size, a class a colour."""
    height, width = rng.integers(10, 20, 2)
    pixels = rng.integers(0, 60, (height, width, 3)) + 60 * np.eye(3, dtype=int)[label % 3] * (1 + label // 3)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of PNG files of different sizes, and its test images as files beside."""
    folder = tmp_path_factory.mktemp("pictures")
    info = Info(CLASSES, "encoded", 3, None, (0.4, 0.45, 0.5), (0.2, 0.25, 0.3), "drawn here", "CC0")
    rng = np.random.default_rng(0)
    for part, count in (("train", 48), ("test", 23)):
        files = [(number % 4, draw(rng, number % 4)) for number in range(count)]
        write_dataset(folder / f"{part}.arrow", files, info)
    (folder / "files" / "more").mkdir(parents=True)
    for number, (_, data) in enumerate(files):
        (folder / "files" / ("more" if number > 20 else ".") / f"{number:02}.png").write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two epochs whose test view resizes and crops."""
    recipe = parse_recipe(f"""
        name: pictures
        epochs: 2
        batch_size: 16
        data:
          train: {pictures}/train.arrow
          test: {pictures}/test.arrow
          augment: [{{name: RandomResizedCrop, size: 8}}]
          test_view: [{{name: Resize, size: [12, 12]}}, {{name: CenterCrop, size: 8}}]
        students:
          - {{name: a, model: cnn_small}}
          - {{name: b, model: nets:Dropout}}
        limits: {{startup_s: 200, step_s: 30}}
    """)
    torch.set_num_threads(1)
    made = prepare(recipe, str(tmp_path_factory.mktemp("runs")), "arm-seed0", resume=False, warn=print)
    assert not Cohort(made).train().errors
    return made


@pytest.fixture(scope="session")
def exports(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Student a in each format."""
    folder = tmp_path_factory.mktemp("exports")
    for kind in KINDS:
        arguments = ("--student", "a", "--format", kind, "--to", folder / kind)
        result = run("export", trained.folder.local, *arguments)
        assert (result.exit_code, result.output) == (0, f"{folder / kind}\n")
    return {kind: folder / kind for kind in KINDS}
