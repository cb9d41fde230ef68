"""The coordinator computes the students' labels of mixed samples from their rows alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cohorts import MakeRecipe
from torch import Tensor

from kdcl_dist.coordinator.aggregator import Aggregator
from kdcl_dist.data.training_data import TrainingData
from kdcl_dist.ensembles import Context
from kdcl_dist.errors import MethodError
from kdcl_dist.exchange.message import Contribution

MIXED = "data.mixup={probability: 0.5}", "data.cutmix={probability: 0.3}"


@pytest.mark.parametrize("method", ["linear", "naive", "mean", "dml", "none"])
@pytest.mark.parametrize("present", [[0, 1], [1]])
def test_labels_are_those_of_the_students(method: str, present: list[int], make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(*MIXED, f"distillation.method={method}")
    training_data, aggregator = TrainingData.open(recipe), Aggregator(recipe)
    aggregator.present = present
    streams = [training_data.training_batches(index, 0) for index in range(2)]
    for step, batches in enumerate(zip(*streams, strict=True)):
        logits = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(step))
        parts = [Contribution(b.ids, b.labels, z) for b, z in zip(batches, logits, strict=True)]
        parts = [
            part if i in present else Contribution(*(x[:0] for x in part)) for i, part in enumerate(parts)
        ]
        answer = aggregator.answer(parts, step)
        assert answer.known is not None
        for index in present:
            row = torch.searchsorted(answer.known.ids, batches[index].ids)
            assert torch.equal(answer.known.labels[row], batches[index].loss_labels)
            assert torch.equal(answer.parts[index].labels, batches[index].loss_labels.argmax(dim=1))
        if answer.target is not None:
            assert torch.equal(answer.target.labels, answer.known.labels.argmax(dim=1))


def test_a_method_of_ones_own_gets_class_probabilities(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Tensor] = []

    def method(logits_SBC: Tensor, labels: Tensor, temperature: float, context: Context) -> Tensor:
        given.append(labels)
        return F.log_softmax(logits_SBC[0], dim=1)

    monkeypatch.setattr("nets.sharpened", method)
    aggregator = Aggregator(make_recipe(*MIXED, "distillation.method='nets:sharpened'"))
    aggregator.load_method(4)
    assert [labels.shape for labels in given] == [(5, 4)]
    assert torch.allclose(given[0].sum(dim=1), torch.ones(5))


def test_a_method_that_needs_classes_is_found_before_the_first_step(make_recipe: MakeRecipe) -> None:
    aggregator = Aggregator(make_recipe(*MIXED, "distillation.method='examples.custom.recent:target'"))
    words = r"distillation\.method 'examples.custom.recent:target'.*labels are class probabilities"
    with pytest.raises(MethodError, match=words) as caught:
        aggregator.load_method(4)
    assert "\n" not in str(caught.value)
