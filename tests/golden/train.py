"""Trains the golden cases and prints the hash of every student's weights as JSON.

    python tests/golden/train.py [--write] [--run-folder FOLDER] [CASE ...]

Without a CASE it trains all of them if this machine's weights can be compared with weights.json, and resumes
a copy of the run of version 0.1.0, which is made at FOLDER. `--write` replaces weights.json; README.md says
when that is allowed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
#: Makes PyTorch, MKL, oneDNN and numba choose the kernels that every x86-64 machine has, and hides its GPUs.
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default",
    "CUDA_VISIBLE_DEVICES": "",
    "MKL_CBWR": "COMPATIBLE",
    "NUMBA_CPU_NAME": "generic",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
}
CASES = {
    "none": ["distillation.method=none"],
    "naive": ["distillation.method=naive"],
    "linear": ["distillation.method=linear"],
    "min_logit": ["distillation.method=min_logit"],
    "general": ["distillation.method=general", "data.holdout_per_class=5", "epochs=2"],
    "mean": ["distillation.method=mean"],
    "dml": ["distillation.method=dml"],
    "teacher": ["distillation={method: teacher, teacher: large}", "students.large.weights=TEACHER"],
    "window": ["distillation={method: linear, window: 4}"],
    "half precision": ["distillation={method: mean, wire_precision: fp16}"],
    "replicas": [
        "distillation.method=min_logit",
        "students.small.replicas=2",
        "students.small.sync_batchnorm=true",
    ],
}
INTERRUPTED = HERE / "run-0.1.0"


def train_cases(names: list[str], scratch: Path) -> dict[str, dict[str, str]]:
    """The hashes of each case's students after its last step."""
    from kdcl_dist import load_recipe, train

    save_teacher(scratch / "teacher.pt")
    found = {}
    for name in names:
        overrides = [each.replace("TEACHER", str(scratch / "teacher.pt")) for each in CASES[name]]
        recipe = load_recipe(HERE / "recipe.yaml", overrides)
        result = train(recipe, launcher="local", storage=str(scratch), name=name.replace(" ", "-"))
        found[name] = hashes(Path(result.path))
    return found


def resume(folder: Path) -> dict[str, str]:
    """The hashes after the whole run, of which version 0.1.0 trained the first epoch."""
    from kdcl_dist import load_recipe, train

    shutil.copytree(INTERRUPTED, folder)
    recipe = load_recipe(folder / "recipe.yaml")
    train(recipe, launcher="local", storage=str(folder.parent), name=folder.name, resume=True)
    return hashes(folder)


def hashes(run_folder: Path) -> dict[str, str]:
    """The hash of each student's weights in the last checkpoint."""
    import torch

    files = sorted(max((run_folder / "checkpoints").iterdir()).glob("[!_]*.pt"))
    states = {path.stem: torch.load(path, weights_only=True) for path in files if path.stem != "coordinator"}
    return {name: digest(state["model"]) for name, state in states.items()}


def digest(state: dict[str, Any]) -> str:
    """SHA-256 of a state dict's names and values."""
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def save_teacher(path: Path) -> None:
    """Weights that depend on NumPy's generator only."""
    import torch

    from kdcl_dist import models

    given = {}
    draw = drawer(11)
    for name, value in models.build("cnn_medium", 10, 1).state_dict().items():
        given[name] = draw(*value.shape) * 0.1 if value.is_floating_point() else value
        if name.endswith("running_var"):
            given[name] = given[name].abs() + 0.5
    torch.save(given, path)


def drawer(seed: int) -> Any:
    """Draws tensors of a shape from NumPy's generator."""
    import numpy as np
    import torch

    generator = np.random.Generator(np.random.Philox(seed))
    return lambda *shape: torch.from_numpy(np.asarray(generator.standard_normal(shape, np.float32)))


def canary() -> str:
    """The hash of weights that PyTorch alone trained: it differs where the kernels differ."""
    import torch
    from torch import nn

    draw = drawer(7)
    torch.set_num_threads(1)
    network = nn.Sequential(
        *(nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 10)),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * draw(*parameter.shape))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(draw(48, 1, 8, 8)), torch.arange(48) % 10).backward()
        optimizer.step()
    return digest(network.state_dict())


def tells(found: dict[str, Any]) -> bool:
    """Whether this machine's weights can be those of weights.json: PyTorch alone gives the same with both."""
    known = json.loads((HERE / "weights.json").read_text())
    releases = {each["torch"].partition("+")[0] for each in (known, found)}
    return len(releases) == 1 and known["canary"] == found["canary"]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--run-folder", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    import torch

    from kdcl_dist.launch import forkserver

    forkserver.MODULES.append("preloaded")  # in tests, which have it on their path
    with tempfile.TemporaryDirectory() as scratch:
        found: dict[str, Any] = {"torch": torch.__version__, "canary": canary()}
        asked = arguments.cases or (list(CASES) if arguments.write or tells(found) else [])
        found["cases"] = train_cases(asked, Path(scratch))
        if not arguments.cases:
            found["interrupted"] = resume(arguments.run_folder or Path(scratch) / "interrupted")
    text = json.dumps(found, indent=1) + "\n"
    if arguments.write and not arguments.cases:
        (HERE / "weights.json").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    if os.environ.items() >= PORTABLE.items():
        os.chdir(ROOT)
        sys.path.insert(0, str(ROOT))
        main()
    else:  # the libraries read them as they are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | PORTABLE)
