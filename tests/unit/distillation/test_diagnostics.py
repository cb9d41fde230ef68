"""The analysis against direct computation, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cohorts import Cohort, MakeRecipe
from scipy import optimize
from scipy.special import log_softmax, softmax

from kdcl_dist.distillation.diagnostics import conflict, measure
from kdcl_dist.distillation.losses import kdcl_loss
from kdcl_dist.models import build
from kdcl_dist.run.metrics import read_metrics
from kdcl_dist.run.run import Run

NAMES = ["a", "b", "c"]
S, B, C, T = 3, 40, 5, 2.5


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(S, B, C, generator=torch.Generator().manual_seed(3)).double() * 2


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(0, C, (B,), generator=torch.Generator().manual_seed(4))


def cross_entropy(z: np.ndarray, label: int) -> float:
    return float(-log_softmax(z)[label])


def best_combination(z: np.ndarray, label: int) -> np.ndarray:
    """The weights of `linear` by a general-purpose solver."""
    found = optimize.minimize(
        lambda a: cross_entropy(a @ z, label),
        np.full(S, 1 / S),
        method="SLSQP",
        bounds=[(0, 1)] * S,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    return np.asarray(found.x)


def test_figures_of_the_ensembles(logits: torch.Tensor, labels: torch.Tensor) -> None:
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    found = measure(NAMES, logits, labels, T, weights).ensembles
    sums: dict[str, float] = {}
    for b in range(B):
        z, y = logits[:, b].numpy(), int(labels[b])
        combined = {
            "naive": z[int(np.argmin([cross_entropy(each, y) for each in z]))],
            "linear": best_combination(z, y) @ z,
            "min_logit": (z - z[:, [y]]).min(axis=0),
            "mean": z.mean(axis=0),
        }
        pairs = {name: (softmax(each), softmax(each / T)) for name, each in combined.items()}
        pairs["general"] = tuple(weights.numpy() @ softmax(z / t, axis=1) for t in (1, T))
        for name, (sharp, soft) in pairs.items():
            for key, value in (
                ("loss", -math.log(sharp[y])),
                ("entropy", -sum(p * math.log(p) for p in soft)),
                ("wrong", float(np.argmax(sharp) != y)),
            ):
                sums[f"{name}_{key}"] = sums.get(f"{name}_{key}", 0.0) + value / B
    assert found.keys() == sums.keys()
    assert found == pytest.approx(sums, abs=2e-5)


def test_figures_of_the_students(logits: torch.Tensor, labels: torch.Tensor) -> None:
    found = measure(NAMES, logits, labels, T, torch.full((S,), 1 / S)).students
    expected = {name: dict.fromkeys(found[name], 0.0) for name in NAMES}
    for b in range(B):
        z, y = logits[:, b].numpy(), int(labels[b])
        winner = int(np.argmin([cross_entropy(each, y) for each in z]))
        shares = best_combination(z, y)
        for i, name in enumerate(NAMES):
            expected[name]["win_share"] += (winner == i) / B
            expected[name]["linear_weight"] += shares[i] / B
            expected[name]["error"] += float(z[i].argmax() != y) / B
            for j, other in enumerate(NAMES):
                if i != j:
                    expected[name][f"disagreement/{other}"] += float(z[i].argmax() != z[j].argmax()) / B
    for name in NAMES:
        assert found[name] == pytest.approx(expected[name], abs=1e-3)
    assert sum(found[name]["win_share"] for name in NAMES) == pytest.approx(1)
    assert found["a"]["disagreement/b"] == found["b"]["disagreement/a"]


def test_one_student_alone_and_infinite_confidence() -> None:
    z = torch.tensor([[[1e4, 0.0], [0.0, 1e4]]])
    found = measure(["only"], z, torch.tensor([0, 0]), T, torch.ones(1))
    assert found.students == {"only": {"win_share": 1.0, "linear_weight": 1.0, "error": 0.5}}
    assert all(math.isfinite(value) for value in found.ensembles.values())
    assert found.ensembles["naive_loss"] == pytest.approx(5e3)
    assert found.ensembles["naive_entropy"] == pytest.approx(0)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_conflict_equals_the_gradients_taken_one_by_one(scale: float) -> None:
    torch.manual_seed(0)
    model, images = build("cnn_small", C, 1), torch.randn(B, 1, 8, 8)
    labels, target = torch.randint(0, C, (B,)), F.log_softmax(torch.randn(B, C), dim=1)
    losses = kdcl_loss(model(images), labels, target, T, 0.5)
    found = conflict(losses, 0.5, model, lambda loss: loss * scale)
    flat = []
    for part in (1, 2):
        model.zero_grad()
        kdcl_loss(model(images), labels, target, T, 0.5)[part].backward()
        flat.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
    assert found.cosine == pytest.approx(float(F.cosine_similarity(*flat, dim=0)), abs=1e-5)
    assert found.ratio == pytest.approx(float(0.5 * flat[1].norm() / flat[0].norm()), rel=1e-4)
    losses.total.backward()  # the graph is still there


def test_it_is_recorded_and_changes_nothing(make_recipe: MakeRecipe, make_run: Callable[..., Run]) -> None:
    runs = [make_run(make_recipe(f"analysis.every_steps={every}")) for every in (2, 0)]
    for run in runs:
        assert not Cohort(run).train().errors
    measured, plain = (read_metrics(run.folder).to_pylist() for run in runs)
    parts = [
        (runs[i].folder.local / "checkpoints/step-00000006/manifest.json").read_text().split('"a"')[1][:90]
        for i in (0, 1)
    ]
    assert parts[0] == parts[1]  # the hash of the student's part
    rows = [row for row in measured if row["split"] == "analysis"]
    assert {row["step"] for row in rows} == {0, 2, 4}
    assert {row["name"] for row in rows if row["student"] == "a"} == {
        "win_share",
        "linear_weight",
        "error",
        "disagreement/b",
        "gradient_cosine",
        "gradient_ratio",
    }
    assert all(math.isfinite(row["value"]) for row in rows)
    assert not [row for row in plain if row["split"] == "analysis"]
