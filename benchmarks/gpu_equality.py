"""A part of `gpu`: whether a deterministic fp32 run on a GPU equals sequential training there, bit for bit.

Each run is compared with a second run; with `InTurn`, this package's code in one process; and with a plain
loop that calls the package for data, networks and the solver alone. ResNet-20 twice, TF32 off by default.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_cohort import Pair, data_of
from benchmarks.gpu_networks import deterministic
from benchmarks.in_turn import InTurn
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.recipe_file import parse_recipe
from kdcl_dist.data.sampling import student_seed
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.distillation.ensembles import linear
from kdcl_dist.run.checkpoint import latest, read_part
from kdcl_dist.run.storage import Folder
from kdcl_dist.training import train
from kdcl_dist.utils.seeding import Purpose, derive

__all__ = ["rows"]

METHODS = ("linear", "dml", "none")
CIFAR = Pair(("", ""), (3, 32, 32), 100, 64, 20, 0, "")
QUICK = Pair(("", ""), (1, 8, 8), 10, 16, 6, 0, "")
#: The weights of all students, one after another.
Weights = list[dict[str, Tensor]]


def rows(device: torch.device, quick: bool) -> Iterator[dict[str, Any]]:
    """For each method, whether the final weights are equal, and the largest difference where they are not."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before any process uses the GPU
    pair = QUICK if quick else CIFAR
    with data_of(pair) as folder:
        for method in METHODS[:1] if quick else METHODS:
            recipe = recipe_of(pair, folder, device, method)
            run = trained(recipe)
            in_turn = InTurn(recipe, device)
            for step in range(pair.steps):
                in_turn.step(step)
            own = [student.model.state_dict() for student in in_turn.students]
            yield {
                "method": method,
                "steps": pair.steps,
                "a second run": compared(run, trained(recipe)),
                "in one process": compared(run, own),
                "plain loop": compared(run, plain_loop(recipe, device)),
            }


def recipe_of(pair: Pair, folder: Path, device: torch.device, method: str) -> Recipe:
    """Two students of the same kind, with different weights and an order of samples of their own."""
    share = 0.5 if device.type == "cuda" else 0
    student = f"model: 'benchmarks.gpu_networks:deterministic', resources: {{gpu: {share}}}"
    return parse_recipe(
        f"name: equality\nepochs: 1\nbatch_size: {pair.batch}\n"
        f"data: {{train: {folder}/train.arrow, test: {folder}/test.arrow}}\ntracking: []\n"
        f"distillation: {{method: {method}}}\nstudents: [{{name: a, {student}}}, {{name: b, {student}}}]"
    )


def trained(recipe: Recipe) -> Weights:
    """The final weights of a run with the local launcher."""
    with tempfile.TemporaryDirectory() as storage:
        folder = Folder(train(recipe, launcher="local", storage=storage).path)
        last = latest(folder, lambda text: None)
        assert last is not None
        return [read_part(folder, last, name)["model"] for name in recipe.names]


def compared(first: Weights, second: Weights) -> str:
    """ "equal", or the largest difference of a weight relative to the largest weight of its tensor."""
    worst = 0.0
    for one, other in zip(first, second, strict=True):
        for name, value in one.items():
            difference = (value.double() - other[name].cpu().double()).abs().max()
            worst = max(worst, float(difference / value.double().abs().max().clamp(min=1e-30)))
    return f"differs by {worst:.1e}" if worst else "equal"


def plain_loop(recipe: Recipe, device: torch.device) -> Weights:
    """The algorithm in its plainest form, for the methods of `METHODS`."""
    data, both = TrainingData.open(recipe), range(len(recipe.students))
    built = [student_of(recipe, data, index, device) for index in both]
    for batches in zip(*(data.training_batches(index, 0) for index in both), strict=True):
        logits = [built[i][0](batches[i].inputs.to(device)) for i in both]
        orders = [np.argsort(batch.ids.numpy()) for batch in batches]
        sent = torch.stack([logits[i].detach().cpu()[orders[i]] for i in both])
        labels = batches[0].labels[orders[0]]
        for i in both:
            rows = torch.from_numpy(np.argsort(orders[i]))
            loss = F.cross_entropy(logits[i], batches[i].labels.to(device))
            loss = loss + addition(recipe, logits[i], sent, labels, i, rows)
            built[i][1].zero_grad()
            torch.autograd.backward(loss)
            built[i][1].step()
    return [network.state_dict() for network, _ in built]


def student_of(
    recipe: Recipe, data: TrainingData, index: int, device: torch.device
) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A student's network with its initial weights, and its optimiser: one kernel on a GPU."""
    torch.manual_seed(derive(student_seed(recipe.seed, index, None), Purpose.INITIAL_WEIGHTS))
    assert data.channels is not None
    network = deterministic(len(data.train.classes), data.channels).to(device).train()
    o: Any = recipe.students[index].optimizer
    fused = True if device.type == "cuda" else None
    options = {"momentum": o.momentum, "weight_decay": o.weight_decay, "fused": fused}
    return network, torch.optim.SGD(network.parameters(), o.lr, **options)


def addition(
    recipe: Recipe, logits_BC: Tensor, sent_SBC: Tensor, labels_B: Tensor, student: int, rows_B: Tensor
) -> Tensor | float:
    """What the method adds to a student's loss; `sent_SBC` and `labels_B` are in order of the sample ids."""
    T, weight = recipe.distillation.temperature, recipe.distillation.weight
    if recipe.distillation.method == "linear":
        target_BC = F.log_softmax(linear(sent_SBC, labels_B).float() / T, dim=1)[rows_B].to(logits_BC.device)
        q_BC = F.log_softmax(logits_BC / T, dim=1)
        return weight * (T**2 * F.kl_div(q_BC, target_BC, reduction="batchmean", log_target=True))
    if recipe.distillation.method == "dml":
        q_BC = F.log_softmax(logits_BC, dim=1)
        (peer_BC,) = (sent for other, sent in enumerate(sent_SBC) if other != student)
        p_BC = F.log_softmax(peer_BC[rows_B].to(logits_BC.device), dim=1)
        return weight * F.kl_div(q_BC, p_BC, reduction="batchmean", log_target=True)
    return 0.0
