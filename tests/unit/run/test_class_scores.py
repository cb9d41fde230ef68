"""Results class by class, against scikit-learn and against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import confusion_matrix, recall_score

from kdcl_dist.run.class_scores import ClassScores


def draw(seed: int, samples: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_p_BC = (3 * torch.randn(samples, classes, generator=generator)).log_softmax(dim=1)
    return log_p_BC, torch.randint(classes, (samples,), generator=generator)


def scores(log_p_BC: torch.Tensor, labels_B: torch.Tensor, parts: int = 3) -> ClassScores:
    found = ClassScores(log_p_BC.shape[1])
    for batch in torch.arange(len(labels_B)).chunk(parts):
        found.add(log_p_BC[batch], labels_B[batch])
    return found


@pytest.mark.parametrize("seed", range(5))
def test_equals_scikit_learn(seed: int) -> None:
    log_p_BC, labels_B = draw(seed, 300, 7)
    found, answers_B = scores(log_p_BC, labels_B), log_p_BC.argmax(dim=1)
    expected = confusion_matrix(labels_B.numpy(), answers_B.numpy(), labels=range(7))
    assert found.confusion_CC.tolist() == expected.tolist()
    assert found.accuracies == pytest.approx(
        recall_score(labels_B.numpy(), answers_B.numpy(), labels=range(7), average=None).tolist()
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_calibration_error_equals_a_loop(seed: int) -> None:
    log_p_BC, labels_B = draw(seed, 200, 5)
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(log_p_BC.double().exp().tolist(), labels_B.tolist(), strict=True):
        confidence = max(row)
        bins.setdefault(math.ceil(confidence * 15) - 1, []).append(
            (confidence, row.index(confidence) == label)
        )
    gaps = [abs(sum(right for _, right in own) - sum(c for c, _ in own)) for own in bins.values()]
    assert scores(log_p_BC, labels_B).calibration_error == pytest.approx(sum(gaps) / 200, abs=1e-12)


def test_certain_and_right_is_calibrated_certain_and_wrong_is_not() -> None:
    labels_B = torch.tensor([0, 1, 2])
    certain_BC = torch.eye(3).clamp(min=1e-30).log()
    assert scores(certain_BC, labels_B).calibration_error == pytest.approx(0)
    assert scores(certain_BC, labels_B.flip(0) % 2).calibration_error == pytest.approx(1 / 3)


def test_a_class_without_samples_has_no_accuracy_and_mistakes_are_in_order() -> None:
    answers = torch.tensor([1, 1, 1, 0, 0, 1])
    found = scores(torch.eye(3).clamp(min=1e-30).log()[answers], torch.tensor([0, 0, 0, 1, 1, 1]))
    assert found.accuracies == [0.0, 1 / 3, None]
    assert found.most_confused(5) == [(0, 1, 3), (1, 0, 2)]
    assert found.as_dict(["a", "b", "c"])["class_top1"] == {"a": 0.0, "b": 1 / 3, "c": None}


def test_nothing_is_no_error() -> None:
    assert ClassScores(3).calibration_error == 0
    assert ClassScores(3).most_confused(3) == []
