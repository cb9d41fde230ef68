"""The four ensembles of KDCL (Guo et al., CVPR 2020, section 3.1) and the plain mean of the logits.

Each ensemble is formed per sample, never per batch. At T = 1, for every sample,
CE(min_logit) <= CE(linear) <= CE(naive) <= CE(each student).

Logits of any floating type are computed in float32 at least. Results are float32, or float64 for float64, and
carry no gradient: a soft target is a constant.

Labels are classes (B,), or class probabilities (B, C) where samples are mixed. Cross-entropies are then those
with the probabilities; min_logit, which is relative to one true class, refuses them.

All students wait for the coordinator's answer, so the functions make few operations and few passes over the
logits: in place, with powers of 2, which cost half as much as powers of e, and with one check of arguments.

Shapes: S students, B batch, C classes, N held-out samples.
"""

from __future__ import annotations

import math
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcl_dist.distillation.labels import check_labels, is_mixed, logit_of_label
from kdcl_dist.distillation.quadratic import minimise_quadratic
from kdcl_dist.distillation.simplex import minimise_logsumexp
from kdcl_dist.distillation.solving import solve_linear

__all__ = [
    "checked",
    "combine",
    "general",
    "general_log",
    "general_weights",
    "linear",
    "linear_weights",
    "mean",
    "min_logit",
    "naive",
    "naive_choice",
]


def naive(logits_SBC: Tensor, labels_B: Tensor) -> Tensor:
    """The logits (B, C) of the student with the smallest cross-entropy at T = 1 (eq. 4).

    Of students with equal cross-entropies, the first in the order of the cohort counts.

    Raises:
        ValueError: shapes, types or labels do not fit.
    """
    return _naive(checked(logits_SBC, labels_B), labels_B)


def naive_choice(logits_SBC: Tensor, labels_B: Tensor) -> Tensor:
    """The index of the student that `naive` chooses for each sample, int64 (B,). Raises as `naive`."""
    return _choice(checked(logits_SBC, labels_B), labels_B)


def linear(logits_SBC: Tensor, labels_B: Tensor) -> Tensor:
    """The convex combination of the students' logits (B, C) with the smallest cross-entropy (eq. 5).

    The paper names no solver; see `linear_weights`. Raises as `naive`.
    """
    logits_SBC = checked(logits_SBC, labels_B)
    if logits_SBC.is_cpu:
        return solve_linear(logits_SBC, labels_B)[0]
    return _combine(logits_SBC, labels_B, _linear_weights(logits_SBC, labels_B))


def linear_weights(logits_SBC: Tensor, labels_B: Tensor) -> Tensor:
    """The weights (S, B) of `linear`: argmin over the simplex of CE(sum_i a_i z_i, y), float64.

    The KKT gap is at most 1e-6, in float64, for any number of students and for logits up to 6e4 (the range of
    half precision). Raises as `naive`.
    """
    return _linear_weights(checked(logits_SBC, labels_B), labels_B)


def _linear_weights(logits_SBC: Tensor, labels_B: Tensor) -> Tensor:
    if logits_SBC.is_cpu:
        return solve_linear(logits_SBC, labels_B)[1]
    # The logits relative to <p, z_i>: CE(sum_i a_i z_i, p) is the log-sum-exp of their convex combination.
    true_SB1 = logit_of_label(logits_SBC, labels_B).double()
    logits_BSC = logits_SBC.transpose(0, 1).to(
        torch.float64, memory_format=torch.contiguous_format, copy=True
    )
    return minimise_logsumexp(logits_BSC.sub_(true_SB1.transpose(0, 1))).T


def combine(logits_SBC: Tensor, labels_B: Tensor, weights_SB: Tensor) -> Tensor:
    """sum_i a_i z_i (B, C), or the logits of `naive` where these have the smaller cross-entropy.

    Only the rounding of huge logits can make `naive` the better one; its use keeps CE(linear) <= CE(naive)
    exact. Raises as `naive`.
    """
    return _combine(checked(logits_SBC, labels_B), labels_B, weights_SB)


def _combine(logits_SBC: Tensor, labels_B: Tensor, weights_SB: Tensor) -> Tensor:
    sum_BC = torch.einsum("sb,sbc->bc", weights_SB.to(logits_SBC.dtype), logits_SBC)
    naive_BC = _naive(logits_SBC, labels_B)
    sum_loss_B, naive_loss_B = _losses(torch.stack([sum_BC, naive_BC]).double(), labels_B)
    return torch.where((sum_loss_B <= naive_loss_B)[:, None], sum_BC, naive_BC)


def min_logit(logits_SBC: Tensor, labels_B: Tensor) -> Tensor:
    """The smallest of the students' logits class by class (B, C), relative to the true class (eq. 6-7).

    Each student's logits are first shifted so that its true class has 0. Raises as `naive`, and for class
    probabilities: minima relative to several classes can have a larger cross-entropy than a student.
    """
    logits_SBC = checked(logits_SBC, labels_B)
    if is_mixed(labels_B):
        raise ValueError("labels_B: min_logit needs one true class a sample (got class probabilities)")
    true_SB1 = logit_of_label(logits_SBC, labels_B)
    # Student by student: the last result is still in the cache.
    return reduce(torch.minimum, map(torch.sub, logits_SBC.unbind(), true_SB1.unbind()))


def mean(logits_SBC: Tensor, labels_B: Tensor) -> Tensor:
    """The mean of the logits (B, C): often run as KDCL, but not in the paper. Raises as `naive`."""
    logits_SBC = checked(logits_SBC, labels_B)
    return reduce(torch.add, logits_SBC.unbind()) / len(logits_SBC)


def general(logits_SBC: Tensor, weights_S: Tensor, temperature: float) -> Tensor:
    """sum_i w_i softmax(z_i / T), probabilities (B, C) (eq. 8); arguments as `general_log`."""
    return general_log(logits_SBC, weights_S, temperature).exp()


def general_log(logits_SBC: Tensor, weights_S: Tensor, temperature: float) -> Tensor:
    """The logarithm of `general`, (B, C), exact where a probability underflows.

    Args:
        logits_SBC: the students' logits.
        weights_S: non-negative, with sum 1, of any floating type; a weight may be exactly 0.
        temperature: T > 0.

    Raises:
        ValueError: shapes, types or weights do not fit, or T is not positive and finite.
    """
    return _general_log(checked(logits_SBC), weights_S, temperature)


def _general_log(logits_SBC: Tensor, weights_S: Tensor, temperature: float) -> Tensor:
    _check_temperature(temperature)
    _check_weights(weights_S, len(logits_SBC))
    weights_S11 = weights_S.detach().to(logits_SBC.device).view(-1, 1, 1)
    if logits_SBC.is_cpu:
        mixed_BC = _mixed(logits_SBC, weights_S11.to(logits_SBC), temperature)
        # Above this limit, terms that underflow are less than the rounding of the sum. On an accelerator the
        # comparison would wait for the device.
        limits = torch.finfo(mixed_BC.dtype)
        if mixed_BC.numel() and float(mixed_BC.amin()) > limits.tiny / limits.eps:
            # NumPy's logarithm takes less than half the time of PyTorch's.
            return torch.from_numpy(np.log(mixed_BC.numpy()))
    log_p_SBC = F.log_softmax(logits_SBC / temperature, dim=2)
    return torch.logsumexp(log_p_SBC + weights_S11.double().log().to(log_p_SBC.dtype), dim=0)


def _mixed(logits_SBC: Tensor, weights_S11: Tensor, temperature: float) -> Tensor:
    """`general`, (B, C), in which the smallest probabilities may underflow to 0.

    `softmax`, unlike powers of 2, gives last bits that do not depend on a sample's row in the batch.
    """
    weighted_SBC = F.softmax(logits_SBC / temperature, dim=2).mul_(weights_S11)
    return reduce(Tensor.add_, weighted_SBC.unbind())


def general_weights(residuals_SN: Tensor) -> Tensor:
    """The weights (S,) of `general`, float64: argmin of w'Cw on the simplex (eq. 9-11).

    C_ij is the mean of r_i r_j over held-out samples, with r_i = p_i(true class) - 1. The paper's closed form
    C^-1 1 / (1'C^-1 1) can leave [0, 1], against the paper's text, and does not exist for identical students.
    This function minimises on the simplex instead, with a ridge of 1e-8 of C's mean diagonal. Unusable
    residuals (none, not finite, or all zero) give 1/S.

    Raises:
        ValueError: `residuals_SN` is not a floating-point matrix of at least one row.
    """
    if residuals_SN.ndim != 2 or not len(residuals_SN) or not residuals_SN.is_floating_point():
        got = f"{residuals_SN.dtype} {tuple(residuals_SN.shape)}"
        raise ValueError(f"residuals_SN: floating point of shape (S, N) is needed (got {got})")
    students = len(residuals_SN)
    residuals_SN = residuals_SN.detach().double()
    uniform_S = residuals_SN.new_full((students,), 1 / students)
    covariance_SS = residuals_SN @ residuals_SN.T / max(residuals_SN.shape[1], 1)
    scale = float(covariance_SS.diagonal().mean())
    if not 0 < scale < float("inf") or not bool(torch.isfinite(covariance_SS).all()):
        return uniform_S
    # The division by the scale makes tiny residuals, late in training, as exact as large ones.
    ridge_SS = 1e-8 * torch.eye(students, dtype=torch.float64, device=residuals_SN.device)
    hessian_SS = covariance_SS / scale + ridge_SS
    return minimise_quadratic(hessian_SS[None], (hessian_SS @ uniform_S)[None], uniform_S[None])[0]


def checked(logits_SBC: Tensor, labels_B: Tensor | None = None) -> Tensor:
    """The logits without gradient, in float32 at least; raises ValueError for arguments that do not fit."""
    shape = logits_SBC.shape
    if len(shape) != 3 or not shape[0] or not shape[2] or not logits_SBC.is_floating_point():
        got = f"{logits_SBC.dtype} {tuple(shape)}"
        raise ValueError(f"logits_SBC: floating point of shape (S, B, C) is needed (got {got})")
    if labels_B is not None:
        check_labels(labels_B, *shape[1:])
    logits_SBC = logits_SBC.detach()
    return logits_SBC if logits_SBC.dtype == torch.float64 else logits_SBC.float()


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: must be above 0 and finite (got {temperature})")


def _check_weights(weights_S: Tensor, students: int) -> None:
    if tuple(weights_S.shape) != (students,) or not weights_S.is_floating_point():
        got = f"{weights_S.dtype} {tuple(weights_S.shape)}"
        raise ValueError(f"weights_S: floating point of shape ({students},) is needed (got {got})")
    if weights_S.is_cpu:
        # As Python's numbers, since a tensor's operations on few numbers cost more. 1e-2 allows for sums in
        # half precision.
        values = weights_S.tolist()
        if not (min(values) >= 0 and abs(sum(values) - 1) <= 1e-2):
            raise ValueError(f"weights_S: must be non-negative with sum 1 (got {values})")


def _losses(logits_SBC: Tensor, labels_B: Tensor) -> Tensor:
    """The cross-entropy of each student on each sample at T = 1, (S, B)."""
    peak_SB1 = logits_SBC.amax(dim=2, keepdim=True)
    total_SB1 = (logits_SBC - peak_SB1).mul_(1 / math.log(2)).exp2_().sum(dim=2, keepdim=True)
    return total_SB1.log_().add_(peak_SB1).sub_(logit_of_label(logits_SBC, labels_B))[:, :, 0]


def _choice(logits_SBC: Tensor, labels_B: Tensor) -> Tensor:
    """`naive_choice`; `min` gives the first of equal values in less time than `argmin`."""
    return _losses(logits_SBC, labels_B).min(dim=0).indices


def _naive(logits_SBC: Tensor, labels_B: Tensor) -> Tensor:
    students, batch, classes = logits_SBC.shape
    row_B = torch.arange(batch, device=labels_B.device).add_(_choice(logits_SBC, labels_B), alpha=batch)
    return logits_SBC.reshape(students * batch, classes).index_select(0, row_B)
