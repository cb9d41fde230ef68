"""Cost of the exchange by the number of ranks: measured, fitted, and predicted beyond the fitted points.

    python -m benchmarks.scale --out docs/results/scale.md

Up to 65 processes of this machine form groups of 3 to 65 ranks, smaller groups within larger ones, and
exchange messages and answers in three ways. Each way has three costs, in seconds for a round, a message and a
byte. The costs are fitted to groups of up to 17 ranks with small and with large messages. Their predictions
for medium messages, for more ranks and for an answer larger than the messages are compared with measurements.
Each round measures all points; the figures are medians over the rounds. docs/scale.md describes the model and
its use.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from benchmarks.conditions import conditions
from benchmarks.figures import Figure
from kdcl_dist.config.rounds import Kind
from kdcl_dist.exchange.group import Exchange
from kdcl_dist.exchange.layout import ExchangeLayout
from kdcl_dist.exchange.message import MessageLayout
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.tcp_store import connect_store, host_store, scoped
from kdcl_dist.planning.collective_cost import Traffic, ring, star, tree
from kdcl_dist.planning.processes import run_in_processes

__all__ = ["LARGE", "MEDIUM", "WAYS", "Costs", "Point", "figures", "fit", "measure", "measure_from"]

HOST, LIMIT_S = "127.0.0.1", 100.0
ROUNDS = 5
GOAL = 1.3
#: Traffic of the messages to the coordinator, and of the answer back.
WAYS: dict[str, tuple[Callable[[int, int], Traffic], Callable[[int, int], Traffic]]] = {
    "star": (star, star),
    "ring + tree": (ring, tree),
    "gather + tree": (star, tree),
}
#: Steps of each way in one round; short steps need more of them to stand out from noise.
STEPS = {"star": 10, "ring + tree": 2, "gather + tree": 10}
#: Ranks of the groups; most ranks of a fitted point; fewest ranks of a point of kdcl's own exchange.
RANKS, MOST_FITTED, FEWEST_REAL = (3, 5, 9, 17, 33, 65), 17, 5
#: Rows and classes of a message and of the answer: (64, 10), (128, 100) and (256, 250).
SMALL, MEDIUM, LARGE = MessageLayout(64, 10), MessageLayout(128, 100), MessageLayout(256, 250)


class Point(NamedTuple):
    """One case.

    Attributes:
        way: name in `WAYS`.
        ranks: ranks of the group.
        message: layout of a message.
        answer: layout of the answer.
        fitted: whether the costs are fitted to the point.
        real: whether the point is kdcl's own exchange instead of gloo alone.
    """

    way: str
    ranks: int
    message: MessageLayout
    answer: MessageLayout
    fitted: bool = False
    real: bool = False

    @property
    def traffic(self) -> Traffic:
        """Traffic of one step."""
        gathered, answered = WAYS[self.way]
        return gathered(self.ranks, self.message.nbytes) + answered(self.ranks, self.answer.nbytes)


class Costs(NamedTuple):
    """Seconds of one round, one message and one byte on a machine that all ranks share."""

    round_s: float
    message_s: float
    byte_s: float

    def seconds(self, traffic: Traffic) -> float:
        """Predicted seconds of an exchange."""
        return sum(cost * count for cost, count in zip(self, _counts(traffic), strict=True))


def _counts(traffic: Traffic) -> tuple[int, int, int]:
    return traffic.rounds, traffic.messages, traffic.total


def fit(known: Sequence[tuple[Traffic, float]]) -> Costs:
    """The non-negative costs with the smallest sum of squared relative errors.

    The fit solves least squares for every choice of the costs that are not zero.
    """
    counts = torch.tensor([_counts(traffic) for traffic, _ in known], dtype=torch.float64)
    seconds = torch.tensor([seconds for _, seconds in known], dtype=torch.float64)
    scale = counts.amax(dim=0)
    relative = counts / scale / seconds[:, None]
    best, least = torch.zeros(3, dtype=torch.float64), float("inf")
    for chosen in (list(c) for size in (1, 2, 3) for c in combinations(range(3), size)):
        costs = torch.zeros(3, dtype=torch.float64)
        costs[chosen] = torch.linalg.lstsq(relative[:, chosen], torch.ones(len(known), 1).double()).solution[
            :, 0
        ]
        error = float(((relative @ costs - 1) ** 2).sum())
        if bool((costs >= 0).all()) and error < least:
            best, least = costs, error
    return Costs(*(best / scale).tolist())


def points(ranks: Sequence[int], most_fitted: int) -> list[Point]:
    """All ways with these ranks; more than `most_fitted` ranks are only predicted, without large messages."""
    found = []
    for way in WAYS:
        for number in ranks:
            known = number <= most_fitted
            found += [Point(way, number, size, size, fitted=known) for size in (SMALL, LARGE)[: 1 + known]]
            found += [Point(way, number, *sizes) for sizes in ((MEDIUM, MEDIUM), (SMALL, LARGE))]
            if way == "star" and number >= FEWEST_REAL:
                found.append(Point(way, number, MEDIUM, MEDIUM, real=True))
    return found


def measure(cases: Sequence[Point], rounds: int) -> list[float]:
    """Median seconds of a step of each point, measured by the coordinator."""
    store, endpoint = host_store(HOST)
    most = max(case.ranks for case in cases)
    by_process = run_in_processes(measure_from, [(endpoint, index, cases, rounds) for index in range(most)])
    del store
    return by_process[0]


# -- in the processes --------------------------------------------------------------------------------


def measure_from(
    endpoint: Endpoint, process: int, cases: Sequence[Point], rounds: int, host: str = HOST
) -> list[float]:
    """As `measure`, in one process: index 0 is the coordinator of all groups, the next are students."""
    torch.set_num_threads(1)
    store = connect_store(endpoint, LIMIT_S)
    own = [case for case in cases if process < case.ranks]
    bare = {ranks: _exchange(store, host, process, ranks) for ranks in sorted({case.ranks for case in own})}
    real = {case: _exchange(store, host, process, case.ranks, case) for case in own if case.real}
    found: dict[Point, list[float]] = {case: [] for case in own}
    for _ in range(rounds):
        for case in own:
            # The buffers of gloo alone exist one at a time: together they exceed the memory.
            step = _round_trip(real[case]) if case.real else _gloo(bare[case.ranks], case)
            step(0)  # all ranks begin together
            began = perf_counter()
            for number in range(1, STEPS[case.way] + 1):
                step(number)
            found[case].append((perf_counter() - began) / STEPS[case.way])
    for exchange in (*bare.values(), *real.values()):
        exchange.flush()
        exchange.close()
    return [median(found[case]) for case in own]


def _exchange(store: Any, host: str, process: int, ranks: int, case: Point | None = None) -> Exchange:
    """An exchange of `ranks` ranks; without a case the caller uses only its group."""
    message, answer = (case.message, case.answer) if case else (SMALL, SMALL)
    part = scoped(store, f"{ranks}/real" if case else str(ranks))
    monitor = Monitor(part, [str(student) for student in range(ranks - 1)], ranks - 1 - process)
    layout = ExchangeLayout(message, answer)
    return Exchange(monitor, part, host=host, layout=layout, run=0, generation=0, step_s=LIMIT_S)


def _round_trip(exchange: Exchange) -> Callable[[int], None]:
    """A step of kdcl's own exchange."""

    def step(number: int) -> None:
        exchange.outgoing.reset(Kind.TRAIN, number)
        exchange.gather()
        exchange.answer.reset(Kind.TRAIN, number)
        exchange.broadcast(with_rows=True)

    return step


def _gloo(exchange: Exchange, case: Point) -> Callable[[int], None]:
    """A step of gloo alone, on the group of an exchange."""
    group: Any = exchange._group
    root, is_root = exchange.root, exchange.rank == exchange.root
    message, answer = (torch.zeros(each.nbytes, dtype=torch.uint8) for each in (case.message, case.answer))
    reads = is_root or case.way == "ring + tree"
    parts = [torch.zeros_like(message) for _ in range(case.ranks)] if reads else []

    def wait(*works: Any) -> None:
        for work in works:
            work.wait()

    def stars(number: int) -> None:
        if is_root:
            wait(*(group.recv([parts[rank]], rank, 1) for rank in range(root)))
            wait(*(group.send([answer], rank, 2) for rank in range(root)))
        else:
            wait(group.send([message], root, 1))
            wait(group.recv([answer], root, 2))

    def collectives(number: int) -> None:
        if case.way == "ring + tree":
            wait(dist.all_gather(parts, message, group=group, async_op=True))
        else:
            wait(dist.gather(message, parts or None, group_dst=root, group=group, async_op=True))
        wait(dist.broadcast(answer, group_src=root, group=group, async_op=True))

    return stars if case.way == "star" else collectives


# -- results -----------------------------------------------------------------------------------------


class Result(NamedTuple):
    """A point with its measured and predicted seconds."""

    point: Point
    measured_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """The larger of the two over the smaller."""
        return max(self.measured_s / self.predicted_s, self.predicted_s / self.measured_s)


def run(ranks: Sequence[int], most_fitted: int, rounds: int) -> tuple[dict[str, Costs], list[Result]]:
    """The fitted costs of each way, and all points."""
    cases = points(ranks, most_fitted)
    timed = list(zip(cases, measure(cases, rounds), strict=True))
    costs = {
        way: fit([(case.traffic, seconds) for case, seconds in timed if case.fitted and case.way == way])
        for way in WAYS
    }
    return costs, [Result(case, seconds, costs[case.way].seconds(case.traffic)) for case, seconds in timed]


def figures(quick: bool = False) -> list[Figure]:
    """The median error of prediction at all points that were not fitted, and at those with the most ranks."""
    costs, results = run((3, 5, 7), 5, 3) if quick else run(RANKS, MOST_FITTED, ROUNDS)
    found = []
    for way in costs:
        held_out = [result for result in results if result.point.way == way and not result.point.fitted]
        most = max(result.point.ranks for result in held_out)
        far = [result.error for result in held_out if result.point.ranks == most]
        what = f"{way}, measured and predicted"
        found.append(Figure("scale", f"{what}, up to {most} ranks", median(r.error for r in held_out), GOAL))
        found.append(Figure("scale", f"{what}, at {most} ranks", median(far), GOAL))
    return found


def page(costs: dict[str, Costs], results: Sequence[Result], rounds: int) -> list[str]:
    """The results as Markdown."""
    lines = [
        "# Cost of the exchange by the number of ranks",
        "",
        *conditions("scale", f"{rounds} alternating rounds, medians; one thread for each process"),
        "",
        "| way | us a round | us a message | GB/s | median error | worst |",
        "| --- " + "| ---: " * 5 + "|",
    ]
    for way, (round_s, message_s, byte_s) in costs.items():
        errors = [r.error for r in results if r.point.way == way and not r.point.fitted]
        speed = f"{1e-9 / byte_s:.1f}" if byte_s else "-"
        cells = f"{1e6 * round_s:.0f} | {1e6 * message_s:.0f} | {speed}"
        lines.append(f"| {way} | {cells} | {median(errors):.2f} | {max(errors):.2f} |")
    lines += [
        "",
        "The errors are those of the points that were not fitted: the larger of measured and predicted",
        "divided by the smaller. Bytes are those of all messages; one machine transfers them all.",
        "",
        "| way | ranks | message KB | answer KB | measured ms | predicted ms | error | |",
        "| --- " + "| ---: " * 6 + "| --- |",
    ]
    for point, measured_s, predicted_s in results:
        sizes = f"{point.ranks} | {point.message.nbytes / 1e3:,.0f} | {point.answer.nbytes / 1e3:,.0f}"
        times = f"{1e3 * measured_s:.2f} | {1e3 * predicted_s:.2f} | {measured_s / predicted_s - 1:+.0%}"
        use = "fitted" if point.fitted else "kdcl's exchange" if point.real else "held out"
        lines.append(f"| {point.way} | {sizes} | {times} | {use} |")
    return lines


def main() -> None:
    """Measure, fit, compare, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = page(*run(RANKS, MOST_FITTED, arguments.rounds), arguments.rounds)
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
