"""The examples of docs/models.md: each is a student whose network can be built and called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cohorts import ROOT
from commands import fences

from kdcl_dist import models
from kdcl_dist.config.model import Model, library_of
from kdcl_dist.config.recipe_file import parse_mapping
from kdcl_dist.config.student import Student
from kdcl_dist.models.pretrained import load_weights
from kdcl_dist.models.transfer import head_of
from kdcl_dist.student.optimizer import build_optimizer

EXAMPLES = [text for text in fences((ROOT / "docs/models.md").read_text()) if text.startswith("model:")]


def test_each_kind_has_an_example() -> None:
    libraries = {library_of(Model.of(student(text).model).name) for text in EXAMPLES}
    assert libraries == {None, "torchvision", "timm", "hf"}


def student(text: str) -> Student:
    """The student of an example."""
    return Student.model_validate({"name": "a", **parse_mapping(text)})


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_an_example_is_a_student(text: str, tmp_path: Path) -> None:
    spec = student(text)
    package = {"timm": "timm", "hf": "transformers"}.get(library_of(Model.of(spec.model).name) or "")
    if package:
        pytest.importorskip(package, reason=f"the extra `{package}` is not installed")
    of_words = "vocab_size" in text
    network = models.build(spec.model, 5, None if of_words else 3)
    if spec.weights is not None:  # such as those of ImageNet
        safetensors = pytest.importorskip("safetensors.torch")
        safetensors.save_model(models.build(spec.model, 1000, 3), str(tmp_path / spec.weights))
        load_weights(network, str(tmp_path / spec.weights), fresh=head_of(network, str(spec.model), 5))
    if of_words:
        words = torch.ones(2, 7, dtype=torch.int64)
        logits = network.eval()(input_ids=words, attention_mask=words)
    else:
        logits = network.eval()(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 5)
    build_optimizer(spec.optimizer, network)
