"""The global random generators."""

from __future__ import annotations

import pytest
import torch

from kdcl_dist.utils.random_state import seed_torch


def test_a_seed_for_the_cpu_is_that_of_torch_without_its_search_for_accelerators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(2**62 + 7)
    expected = torch.rand(5)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeds a GPU"))
    seed_torch(2**62 + 7, torch.device("cpu"))
    assert torch.equal(torch.rand(5), expected)


def test_a_seed_for_an_accelerator_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    seed_torch(5, torch.device("cuda"))
    assert seeds == [5]
