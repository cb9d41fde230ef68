"""The table of methods is the only place that knows their names."""

from __future__ import annotations

import ast

import pytest
import torch
from cohorts import ROOT

from kdcl_dist.distillation.methods import METHODS, Context
from kdcl_dist.distillation.soft_target import log_soft_target

FILES = sorted((ROOT / "kdcl_dist").rglob("*.py"))
#: A mean is also a statistic.
NAMES = METHODS.keys() - {"mean"}


def test_no_other_file_asks_for_a_method_by_name() -> None:
    asks = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                texts = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}
                asks += [(path, text) for text in texts if text in NAMES]
    assert not asks


def test_a_method_has_one_function_at_most() -> None:
    functions = [(each.target is not None) + (each.peer_loss is not None) for each in METHODS.values()]
    assert functions == [name != "none" for name in METHODS]


def test_the_teacher_alone_gives_the_target() -> None:
    logits_SBC, labels_B = torch.randn(3, 5, 4), torch.arange(5) % 4
    present_SB = torch.ones(3, 5, dtype=torch.bool)
    present_SB[0, 2:] = False
    context = Context(students=("a", "b", "c"), teacher="b")
    for present in (None, present_SB):
        found_BC = log_soft_target("teacher", logits_SBC, labels_B, 3.0, None, present, context)
        assert torch.equal(found_BC, torch.log_softmax(logits_SBC[1] / 3.0, dim=1))
    both = Context(students=("a", "b", "c"), teacher={"a": 1.0, "b": 3.0})
    p_SBC = torch.softmax(logits_SBC / 3.0, dim=2)
    found_BC = log_soft_target("teacher", logits_SBC, labels_B, 3.0, None, present_SB, both)
    assert torch.allclose(found_BC[:2].exp(), (p_SBC[0] + 3 * p_SBC[1])[:2] / 4, atol=1e-6)
    assert torch.equal(found_BC[2:], torch.log_softmax(logits_SBC[1, 2:] / 3.0, dim=1))
    with pytest.raises(ValueError, match="teacher: None is none of nobody"):
        log_soft_target("teacher", logits_SBC, labels_B, 3.0)
