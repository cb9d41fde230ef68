"""Whether a gradient is finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdcl_dist.student.gradient import is_bad


def network(*gradients: Tensor) -> nn.Module:
    """A network with these gradients, and a parameter without one."""
    parameters = [nn.Parameter(torch.zeros_like(each.to_dense())) for each in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    return nn.ParameterList([*parameters, nn.Parameter(torch.zeros(2))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("sparse", [False, True])
def test_one_number_that_is_not_finite_is_found(dtype: torch.dtype, sparse: bool) -> None:
    for value in (1.0, float("nan"), float("inf"), -float("inf")):
        other = torch.zeros(3, 2, dtype=dtype)
        other[1, 1] = value
        found = is_bad(network(torch.ones(4, dtype=dtype), other.to_sparse() if sparse else other))
        assert (found.shape, found.dtype, bool(found)) == ((), torch.float32, value != 1)


def test_a_gradient_is_bad_whose_norm_overflows() -> None:
    """Clipping would make it 0, and with Adam the parameter would never move again."""
    for value, is_large in ((1e18, False), (1e30, True)):
        assert bool(is_bad(network(torch.ones(3), torch.tensor([value, 1.0])))) == is_large


def test_the_gradient_stays_as_it_is() -> None:
    gradient = torch.tensor([-0.0, 1e-42, 3e18, -1.1])
    one = network(gradient.clone())
    assert not is_bad(one)
    assert torch.equal(next(one.parameters()).grad.view(torch.int32), gradient.view(torch.int32))  # type: ignore[union-attr]
