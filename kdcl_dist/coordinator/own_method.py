"""A soft target of the user's own: loaded by its import string, and what it gives checked.

Shapes: S students, B samples, C classes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from kdcl_dist.config.distillation import OwnMethod
from kdcl_dist.distillation.labels import two_hot
from kdcl_dist.distillation.methods import Context, Target
from kdcl_dist.errors import MethodError, of_user_code

__all__ = ["load_method", "try_method"]

#: How far the sum of a row's probabilities may be from 1.
TOLERANCE = 1e-3


def load_method(method: OwnMethod) -> Target:
    """The method as a function that raises MethodError for whatever is wrong with it.

    Raises:
        MethodError: the import string names nothing that can be called.
    """
    with of_user_code(MethodError, f"distillation.method {method.name!r} cannot be loaded"):
        function = method.load()
    return partial(_target, method.name, function)


def try_method(target: Target, students: tuple[str, ...], classes: int, *, mixed: bool = False) -> None:
    """Form a soft target of random logits, so that a mistake is found before the first step.

    Args:
        target: of `load_method`.
        students: their names.
        classes: of the data.
        mixed: whether labels are class probabilities.

    Raises:
        MethodError: as the function of `load_method`.
    """
    generator = torch.Generator().manual_seed(0)
    logits_SBC = torch.randn(len(students), classes + 1, classes, generator=generator)
    labels_B = torch.arange(classes + 1) % classes
    weights_S = torch.full((len(students),), 1 / len(students), dtype=torch.float64)
    if mixed:
        labels_B = two_hot(labels_B, labels_B.roll(1), 0.75, classes)
    try:
        target(logits_SBC, labels_B, 2.0, Context(students=students, weights_S=weights_S))
    except MethodError as error:
        if mixed:
            error.message += (
                " (its labels are class probabilities (B, C), as data.mixup or cutmix gives them)"
            )
        raise


def _target(
    name: str,
    function: Target,
    logits_SBC: Tensor,
    labels_B: Tensor,
    temperature: float,
    context: Context,
) -> Tensor:
    where = f"distillation.method {name!r}, step {context.step}"
    with of_user_code(MethodError, where), torch.no_grad():
        target_BC = function(logits_SBC, labels_B, temperature, context)
        _check(target_BC, tuple(logits_SBC.shape[1:]))
    return target_BC.float()


def _check(target_BC: object, shape: tuple[int, ...]) -> None:
    """See that the rows are log-probabilities; their smallest may be minus infinity."""
    if not isinstance(target_BC, Tensor):
        raise TypeError(f"log-probabilities of shape {shape} are needed (got {type(target_BC).__name__})")
    if not target_BC.is_floating_point() or target_BC.shape != shape:
        got = f"{target_BC.dtype} {tuple(target_BC.shape)}"
        raise ValueError(f"log-probabilities of shape {shape} are needed (got {got})")
    total_B = torch.logsumexp(target_BC.double(), dim=1).exp()
    wrong_B = ~((total_B - 1).abs() <= TOLERANCE)
    if bool(wrong_B.any()):
        row = int(wrong_B.nonzero()[0])
        raise ValueError(
            f"the probabilities of row {row} have the sum {float(total_B[row]):.6g}, not 1: return "
            "log-probabilities, such as those of log_softmax"
        )
