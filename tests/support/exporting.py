"""Sources of exports without a run behind them, and a process that has no kdcl_dist."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from kdcl_dist import models
from kdcl_dist.cli import kdcl
from kdcl_dist.config.model import Model
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.data.dataset import Info
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.data.writer import write_dataset
from kdcl_dist.export.source import Source
from kdcl_dist.run.storage import Folder

CLASSES = ("cat", "dog", "eel", "fox")

#: Runs the Python of each export's model card, in its folder, on images of the shape it names.
FRESH = """
import json, os, re, sys
sys.modules["kdcl_dist"] = None  # importing it raises ImportError
import torch
torch.set_num_threads(1)
logits = {}
for folder in sys.argv[2:]:
    os.chdir(folder)
    sys.modules.pop("model", None)
    sys.path[0] = folder
    shape = tuple(json.load(open("preprocessing.json"))["input_shape"])
    images = torch.load(sys.argv[1], weights_only=True)[shape]
    code = re.search(r"```python\\n(.*?)```", open("README.md").read(), re.DOTALL)[1]
    scope = {"images": images.numpy() if "onnx" in code else images}
    with torch.no_grad():
        exec(code, scope)
    logits[folder] = torch.as_tensor(scope["logits"]).detach()
torch.save(logits, sys.argv[1] + ".logits")
"""


def run(*arguments: object) -> Result:
    """The result of the command `kdcl` with these arguments."""
    return CliRunner().invoke(kdcl, [str(argument) for argument in arguments])


def random_network(model: str | Model, classes: int, channels: int, size: int) -> nn.Module:
    """A network in evaluation mode with random weights, and running statistics that it took of images."""
    torch.manual_seed(0)
    network = models.build(model, classes, channels)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(8, channels, size, size))
    return network.eval()


def source_of(model: str | Model, network: nn.Module, folder: Path, *, channels: int, size: int) -> Source:
    """A network as if a run had trained it on images of one size."""
    path = folder / f"images-{channels}-{size}.arrow"
    if not path.exists():
        names, scale = tuple(f"class {number}" for number in range(4)), (0.5,) * channels
        info = Info(names, "raw", channels, (channels, size, size), mean=scale, std=scale)
        rng = np.random.default_rng(0)
        write_dataset(path, ((number % 4, rng.bytes(channels * size * size)) for number in range(8)), info)
    data = {"train": str(path), "test": str(path)}
    students = [{"name": "a", "model": model if isinstance(model, str) else model.model_dump()}]
    recipe = Recipe.model_validate({"data": data, "batch_size": 4, "students": students})
    training_data = TrainingData.open(recipe)
    return Source(Folder(str(folder / "made")), recipe, recipe.students[0], 0, network, training_data, {}, {})


def in_a_fresh_process(
    folders: Sequence[Path], images: dict[tuple[int, ...], Tensor], scratch: Path
) -> dict[str, Tensor]:
    """What each export gives for the images of its shape, without this package."""
    path = scratch / "images.pt"
    torch.save(images, path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", FRESH, str(path), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=scratch, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    logits: dict[str, Tensor] = torch.load(f"{path}.logits", weights_only=True)
    return logits


def description(folder: Path) -> dict:
    """An export's preprocessing.json."""
    found: dict = json.loads((folder / "preprocessing.json").read_text())
    return found
