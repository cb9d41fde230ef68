"""The duration of a cohort's step, predicted from the measured step of each student alone.

The formula, its symbols and its limits are in docs/planning.md. This module measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from kdcl_dist.exchange.message import MessageLayout
from kdcl_dist.planning.collective_cost import star

__all__ = ["Cost", "Link", "Prediction", "StepModel", "StudentCosts", "fit_link"]


class Cost(NamedTuple):
    """Seconds of one worker's step, alone on its device: loading, and forward, backward and optimiser."""

    data_s: float
    compute_s: float

    @property
    def total_s(self) -> float:
        """Both, in seconds."""
        return self.data_s + self.compute_s


@dataclass(frozen=True)
class Link:
    """The cost of messages between processes: seconds per message, and bytes per second."""

    latency_s: float
    bandwidth: float

    def exchange_s(self, workers: int, message_bytes: int, answer_bytes: int, coordinators: int = 1) -> float:
        """Seconds in which each coordinator receives a message from each worker and answers it."""
        rounds, volume = exchange_volume(workers, message_bytes, answer_bytes, coordinators)
        return rounds * self.latency_s + volume / self.bandwidth

    def average_s(self, replicas: int, gradient_bytes: int) -> float:
        """Seconds to average gradients around a ring of replicas, without overlap with the backward pass."""
        rounds = 2 * (replicas - 1)
        return rounds * (self.latency_s + gradient_bytes / replicas / self.bandwidth)


def exchange_volume(
    workers: int, message_bytes: int, answer_bytes: int, coordinators: int = 1
) -> tuple[int, int]:
    """Messages and bytes that pass a coordinator in sequence: for each worker one in and one out.

    Where there are more coordinators than workers, they are those that pass a worker.
    """
    ranks = workers + coordinators
    traffic = star(ranks, message_bytes, coordinators) + star(ranks, answer_bytes, coordinators)
    return traffic.passages, traffic.volume


def fit_link(workers: int, timed: Sequence[tuple[int, int, float]]) -> Link:
    """The link from two timed exchanges, each (bytes of a message, bytes of the answer, seconds).

    If noise makes the larger exchange the faster one, the bandwidth is infinite.
    """
    (rounds, less), (_, more) = (exchange_volume(workers, *sizes) for *sizes, _ in timed)
    short_s, long_s = (seconds for *_, seconds in timed)
    bandwidth = (more - less) / (long_s - short_s) if long_s > short_s else math.inf
    return Link(max(short_s - less / bandwidth, 0.0) / rounds, bandwidth)


@dataclass(frozen=True)
class StudentCosts:
    """The costs of one student.

    Attributes:
        costs: cost of a step by the number of samples of one worker; at least one, all with samples.
        threads: CPU cores that one worker keeps busy; 0 if it computes on a GPU.
        gradient_bytes: size of the gradients that its replicas average; 0 for a frozen student.
        counts: numbers of replicas that may be proposed; each divides the batch size.
    """

    costs: Mapping[int, Cost]
    threads: int
    gradient_bytes: int
    counts: Sequence[int]

    def cost(self, rows: int) -> Cost:
        """The cost for `rows` samples: on the line through the two nearest costs, or proportional to one."""
        if rows in self.costs:
            return self.costs[rows]
        known = sorted(self.costs)
        if len(known) == 1:
            return Cost(*(part * rows / known[0] for part in self.costs[known[0]]))
        upper = next((index for index, size in enumerate(known) if size > rows), len(known) - 1)
        low, high = known[max(upper, 1) - 1], known[max(upper, 1)]
        share = (rows - low) / (high - low)
        pairs = zip(self.costs[low], self.costs[high], strict=True)
        return Cost(*(max(0.0, first + share * (last - first)) for first, last in pairs))


class Prediction(NamedTuple):
    """The prediction for one choice of replicas: seconds of the step, and busy seconds of each student."""

    replicas: tuple[int, ...]
    step_s: float
    busy_s: tuple[float, ...]

    @property
    def workers(self) -> int:
        """Number of workers of all students."""
        return sum(self.replicas)

    @property
    def idle(self) -> list[float]:
        """Share of the step in which each student waits for slower ones, the exchange or the ensemble."""
        return [1 - busy_s / self.step_s for busy_s in self.busy_s]

    @property
    def mean_idle(self) -> float:
        """Mean of the idle share over all workers."""
        parts = zip(self.replicas, self.idle, strict=True)
        return sum(count * idle for count, idle in parts) / self.workers

    @property
    def rank(self) -> tuple[float, int]:
        """Sort key of proposals: the step rounded to nanoseconds, then the workers."""
        return round(self.step_s, 9), self.workers


@dataclass(frozen=True)
class StepModel:
    """Predicts a cohort's step for any choice of replicas.

    Attributes:
        batch_size: samples of a step.
        classes: number of classes of the data.
        students: costs of each student, in the order of the cohort.
        link: cost of messages between all processes.
        ensemble_s: seconds from the end of the gather to the start of the broadcast, of one coordinator.
        answer_rows: from `kdcl_dist.exchange.layout.answer_rows`; None: as many as a step has samples.
        cores: CPU cores that all workers share; infinite if each worker has its own.
        dtype: type of logits in messages.
        coordinators: that share the samples of a step.
    """

    batch_size: int
    classes: int
    students: Sequence[StudentCosts]
    link: Link
    ensemble_s: float
    answer_rows: int | None = None
    cores: float = math.inf
    dtype: torch.dtype = torch.float32
    coordinators: int = 1

    def predict(self, replicas: Sequence[int]) -> Prediction:
        """The prediction for these numbers of replicas, one for each student."""
        alone_s = [
            self.alone_s(student, count) for student, count in zip(self.students, replicas, strict=True)
        ]
        threads = [student.threads * count for student, count in zip(self.students, replicas, strict=True)]
        busy_s = _ready_s(alone_s, threads, self.cores)
        return Prediction(
            tuple(replicas), max(busy_s) + self._between_s(sum(replicas), min(replicas)), tuple(busy_s)
        )

    def alone_s(self, student: StudentCosts, count: int) -> float:
        """Busy seconds of a student with `count` replicas, if no core is shared."""
        return student.cost(self.batch_size // count).total_s + self.link.average_s(
            count, student.gradient_bytes
        )

    def floor_s(self, replicas: Sequence[int], most: int) -> float:
        """A lower bound, in seconds, on the step of all choices that begin with `replicas`.

        Args:
            replicas: those of the first students.
            most: the largest number of replicas of any student.
        """
        alone_s = max(
            self.alone_s(student, count) for student, count in zip(self.students, replicas, strict=False)
        )
        return alone_s + self._between_s(sum(replicas) + len(self.students) - len(replicas), most)

    def _between_s(self, workers: int, fewest: int) -> float:
        """Seconds of exchange and ensemble; the fewest replicas of any student set the size of messages."""
        rows = self.batch_size if self.answer_rows is None else self.answer_rows
        message, answer = (
            MessageLayout(-(-count // self.coordinators), self.classes, self.dtype).nbytes
            for count in (self.batch_size // fewest, rows)
        )
        exchange_s = self.link.exchange_s(workers, message, answer, self.coordinators)
        return exchange_s + self.ensemble_s * max(1.0, self.coordinators / self.cores)


def _ready_s(alone_s: Sequence[float], threads: Sequence[int], cores: float) -> list[float]:
    """Seconds until each student is ready. Busy students share the cores: too few slow all equally."""
    ready_s, now_s, done_s, wanted = list(alone_s), 0.0, 0.0, sum(threads)
    for index in sorted(range(len(alone_s)), key=alone_s.__getitem__):
        if not threads[index]:
            continue  # on a GPU
        now_s += (alone_s[index] - done_s) * max(1.0, wanted / cores)
        ready_s[index], done_s, wanted = now_s, alone_s[index], wanted - threads[index]
    return ready_s
