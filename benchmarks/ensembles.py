"""Cost of the ensembles: closed forms relative to a softmax, `linear` relative to its own gradient.

    python -m benchmarks.ensembles --out docs/results/ensembles.md

One thread, logits on the CPU. Measurements of both sides of a ratio alternate; the ratio is that of their
minima, to which other processes add least.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from torch import Tensor

from benchmarks.figures import Figure
from kdcl_dist import ensembles
from kdcl_dist.distillation.solving import set_threads
from kdcl_dist.utils.process import keep_freed_memory

__all__ = ["figures"]

TEMPERATURE = 2.0
CLOSED_FORMS = ("naive", "min_logit", "mean", "general")
#: Students, batch, classes.
SIZES = (
    (2, 64, 10),
    (3, 128, 10),
    (2, 128, 100),
    (4, 256, 100),
    (2, 256, 1000),
    (4, 256, 1000),
    (8, 256, 1000),
)
LINEAR_SIZES = (
    (2, 64, 10),
    (3, 64, 10),
    (2, 128, 100),
    (3, 192, 100),
    (4, 128, 100),
    (4, 256, 1000),
    (8, 256, 1000),
    (64, 128, 1000),
)
#: The size for which the solver has goals.
GOAL_SIZE = (4, 256, 1000)
SLSQP_SAMPLES = 8


def drawn(size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Logits (S, B, C) with a standard deviation of 3, and labels."""
    generator = torch.Generator().manual_seed(sum(size))
    return 3 * torch.randn(*size, generator=generator), torch.randint(size[2], size[1:2], generator=generator)


def alternate(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Least seconds of each call; every round times all calls, the first warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(times[1:]) for name, times in seconds.items()}


def closed_forms(size: tuple[int, int, int], rounds: int) -> dict[str, float]:
    """Seconds of one softmax over the logits, and of each closed form's soft target."""
    keep_freed_memory()  # as the coordinator does
    logits_SBC, labels_B = drawn(size)
    weights_S = torch.full((size[0],), 1 / size[0], dtype=torch.float64)
    calls: dict[str, Callable[[], object]] = {"softmax": partial(F.softmax, logits_SBC, dim=2)}
    for method in CLOSED_FORMS:
        calls[method] = partial(
            ensembles.log_soft_target, method, logits_SBC, labels_B, TEMPERATURE, weights_S
        )
    return alternate(calls, rounds)


def linear_and_gradient(size: tuple[int, int, int], rounds: int) -> dict[str, float]:
    """Seconds of the weights of `linear`, of its whole soft target, and of one gradient in float64."""
    keep_freed_memory()  # as the coordinator does
    logits_SBC, labels_B = drawn(size)
    relative_SBC = logits_SBC.double()
    relative_SBC -= relative_SBC.gather(2, labels_B.expand(size[0], -1)[:, :, None])
    weights_SB = torch.full(size[:2], 1 / size[0], dtype=torch.float64)

    def gradient() -> Tensor:
        p_BC = torch.einsum("sb,sbc->bc", weights_SB, relative_SBC).softmax(dim=1)
        slope_SB: Tensor = torch.linalg.vecdot(relative_SBC, p_BC)
        return slope_SB

    return alternate(
        {
            "gradient": gradient,
            "weights": partial(ensembles.linear_weights, logits_SBC, labels_B),
            "target": partial(ensembles.log_soft_target, "linear", logits_SBC, labels_B, TEMPERATURE),
        },
        rounds,
    )


def slsqp(size: tuple[int, int, int]) -> float:
    """Least seconds for a sample of SciPy's SLSQP with the analytic gradient, to an accuracy of 1e-6."""
    logits_SBC, labels_B = drawn(size)
    seconds = []
    for b, label in enumerate(labels_B[:SLSQP_SAMPLES].tolist()):
        z_SC = logits_SBC[:, b].double().numpy()
        z_SC = z_SC - z_SC[:, [label]]
        start = time.perf_counter()
        minimize(
            lambda a, z=z_SC: (logsumexp(a @ z), z @ softmax(a @ z)),
            np.full(size[0], 1 / size[0]),
            jac=True,
            method="SLSQP",
            bounds=[(0, 1)] * size[0],
            constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like},
            options={"ftol": 1e-6},
        )
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def figures(quick: bool = False) -> list[Figure]:
    """The ratios of the speed table; `quick` measures few rounds of the solver's goal and of one size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    set_threads(1)
    try:
        rounds = 5 if quick else 21
        found = []
        for size in (GOAL_SIZE,) if quick else SIZES:
            times = closed_forms(size, rounds)
            for method in CLOSED_FORMS:
                if quick and method in ("naive", "general"):
                    continue  # known to be above the goal: each has an exponential for every logit, too
                ratio = times[method] / times["softmax"]
                found.append(Figure("ensembles", f"{method} over a softmax, {_named(size)}", ratio, 1.0))
        times = linear_and_gradient(GOAL_SIZE, rounds)
        ratio = times["weights"] / times["gradient"]
        found.append(Figure("ensembles", f"linear over its gradient, {_named(GOAL_SIZE)}", ratio, 10.0))
        ratio = slsqp(GOAL_SIZE) * GOAL_SIZE[1] / times["weights"]
        found.append(Figure("ensembles", f"SLSQP over linear, {_named(GOAL_SIZE)}", ratio, 8.0, True))
        return found
    finally:
        torch.set_num_threads(threads)
        set_threads(None)


def _named(size: tuple[int, int, int]) -> str:
    return "S={}, B={}, C={}".format(*size)


def _page(rounds: int) -> list[str]:
    load = f"{os.getloadavg()[0]:.1f}"
    lines = [
        "# Cost of the ensembles",
        "",
        f"Minima of {rounds} alternating rounds, one thread of {os.cpu_count()} cores,",
        f"PyTorch {torch.__version__}, load average {load} at the start, normal logits in float32,",
        "standard deviation 3, T = 2.",
        "Made by `python -m benchmarks.ensembles`.",
        "",
        "Soft target of a closed form over one softmax of all the logits:",
        "",
        "| S | B | C | softmax us | " + " | ".join(CLOSED_FORMS) + " |",
        "| ---: | ---: | ---: | ---: |" + " ---: |" * len(CLOSED_FORMS),
    ]
    for size in SIZES:
        times = closed_forms(size, rounds)
        ratios = " | ".join(f"{times[method] / times['softmax']:.2f}" for method in CLOSED_FORMS)
        lines.append("| {} | {} | {} | ".format(*size) + f"{1e6 * times['softmax']:.0f} | {ratios} |")
    lines += [
        "",
        "`linear` to a KKT gap of 1e-6. A gradient is a softmax of the combination and S dot products,",
        f"in the solver's float64. SLSQP: analytic gradient, ftol 1e-6, least of {SLSQP_SAMPLES} samples:",
        "",
        "| S | B | C | gradient us | weights ms | in gradients | SLSQP over it | soft target ms |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for size in LINEAR_SIZES:
        times = linear_and_gradient(size, rounds)
        gradient, weights, target = times["gradient"], times["weights"], times["target"]
        lines.append(
            "| {} | {} | {} | ".format(*size)
            + f"{1e6 * gradient:.0f} | {1e3 * weights:.2f} | {weights / gradient:.1f} | "
            + f"{slsqp(size) * size[1] / weights:.0f} | {1e3 * target:.2f} |"
        )
    return lines


def main() -> None:
    """Measure all sizes and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_threads(1)
    page = "\n".join(_page(arguments.rounds)) + "\n"
    print(page, end="")
    if arguments.out:
        arguments.out.write_text(page)


if __name__ == "__main__":
    main()
