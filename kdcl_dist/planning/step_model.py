"""How long a step of a cohort takes, predicted from each student's step alone.

The formula, its symbols and its limits are in docs/planning.md. Nothing is measured here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from kdcl_dist.exchange.message import MessageLayout
from kdcl_dist.planning.collective_cost import star

__all__ = ["Cohort", "Cost", "Figures", "Link", "Prediction", "fit_link"]


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
    """What messages cost between processes: seconds for each, and bytes a second."""

    latency_s: float
    bandwidth: float

    def exchange_s(self, workers: int, message_bytes: int, answer_bytes: int) -> float:
        """Seconds in which the coordinator gets a message from each worker and answers it."""
        rounds, volume = exchange_volume(workers, message_bytes, answer_bytes)
        return rounds * self.latency_s + volume / self.bandwidth

    def average_s(self, replicas: int, gradient_bytes: int) -> float:
        """Seconds to average gradients around a ring of replicas, none hidden by the backward pass."""
        rounds = 2 * (replicas - 1)
        return rounds * (self.latency_s + gradient_bytes / replicas / self.bandwidth)


def exchange_volume(workers: int, message_bytes: int, answer_bytes: int) -> tuple[int, int]:
    """Messages, and their bytes, that pass the coordinator one after another: one in and one out a worker."""
    traffic = star(workers + 1, message_bytes) + star(workers + 1, answer_bytes)
    return traffic.passages, traffic.volume


def fit_link(workers: int, timed: Sequence[tuple[int, int, float]]) -> Link:
    """The link from two timed exchanges, each (bytes of a message, bytes of the answer, seconds).

    Noise can make the larger one look the faster: then the bytes count as free.
    """
    (rounds, less), (_, more) = (exchange_volume(workers, *sizes) for *sizes, _ in timed)
    short_s, long_s = (seconds for *_, seconds in timed)
    bandwidth = (more - less) / (long_s - short_s) if long_s > short_s else math.inf
    return Link(max(short_s - less / bandwidth, 0.0) / rounds, bandwidth)


@dataclass(frozen=True)
class Figures:
    """What is known of one student.

    Attributes:
        costs: by the number of samples that one worker takes; at least one, none with 0 samples.
        threads: CPU cores that one worker keeps busy; 0 if it computes on a GPU.
        gradient_bytes: what its replicas average at a step; 0 if it does not learn.
        counts: how many replicas may be proposed; each divides the batch.
    """

    costs: Mapping[int, Cost]
    threads: int
    gradient_bytes: int
    counts: Sequence[int]

    def cost(self, rows: int) -> Cost:
        """The cost of so many samples: on the line through the nearest two known, or in proportion to one."""
        if rows in self.costs:
            return self.costs[rows]
        known = sorted(self.costs)
        if len(known) == 1:
            return Cost(*(part * rows / known[0] for part in self.costs[known[0]]))
        upper = next((place for place, size in enumerate(known) if size > rows), len(known) - 1)
        low, high = known[max(upper, 1) - 1], known[max(upper, 1)]
        share = (rows - low) / (high - low)
        pairs = zip(self.costs[low], self.costs[high], strict=True)
        return Cost(*(max(0.0, first + share * (last - first)) for first, last in pairs))


class Prediction(NamedTuple):
    """One choice of replicas: the cohort's step in seconds, and each student's own busy part of it."""

    replicas: tuple[int, ...]
    step_s: float
    busy_s: tuple[float, ...]

    @property
    def workers(self) -> int:
        """Workers of all students."""
        return sum(self.replicas)

    @property
    def idle(self) -> list[float]:
        """Share of the step in which each student waits: for slower ones, the exchange or the ensemble."""
        return [1 - busy_s / self.step_s for busy_s in self.busy_s]

    @property
    def cast_idle(self) -> float:
        """The mean of the idle shares over all workers."""
        parts = zip(self.replicas, self.idle, strict=True)
        return sum(count * idle for count, idle in parts) / self.workers

    @property
    def rank(self) -> tuple[float, int]:
        """By what proposals are compared: the step to the nanosecond, then the workers."""
        return round(self.step_s, 9), self.workers


@dataclass(frozen=True)
class Cohort:
    """All that decides how long a step takes, but for the replicas.

    Attributes:
        batch_size: samples of a step.
        classes: of the data.
        students: in the order of the cohort.
        link: between all processes.
        ensemble_s: seconds from the gather's end to the broadcast's start.
        answer_rows: of `kdcl_dist.exchange.layout.answer_rows`; None as many as a step has samples.
        cores: CPU cores that all workers share; infinite if each has its own.
        dtype: of logits on their way.
    """

    batch_size: int
    classes: int
    students: Sequence[Figures]
    link: Link
    ensemble_s: float
    answer_rows: int | None = None
    cores: float = math.inf
    dtype: torch.dtype = torch.float32

    def predict(self, replicas: Sequence[int]) -> Prediction:
        """The step with so many replicas of each student."""
        alone_s = [
            self.alone_s(student, count) for student, count in zip(self.students, replicas, strict=True)
        ]
        threads = [student.threads * count for student, count in zip(self.students, replicas, strict=True)]
        busy_s = _shared(alone_s, threads, self.cores)
        return Prediction(
            tuple(replicas), max(busy_s) + self._between_s(sum(replicas), min(replicas)), tuple(busy_s)
        )

    def alone_s(self, student: Figures, count: int) -> float:
        """Busy seconds of a student with so many replicas, if it had all cores for itself."""
        return student.cost(self.batch_size // count).total_s + self.link.average_s(
            count, student.gradient_bytes
        )

    def floor_s(self, replicas: Sequence[int], most: int) -> float:
        """No choice that begins with these replicas, and has at most `most` anywhere, has a shorter step."""
        alone_s = max(
            self.alone_s(student, count) for student, count in zip(self.students, replicas, strict=False)
        )
        return alone_s + self._between_s(sum(replicas) + len(self.students) - len(replicas), most)

    def _between_s(self, workers: int, fewest: int) -> float:
        """Exchange and ensemble; the student with the fewest replicas decides the size of all messages."""
        message = MessageLayout(self.batch_size // fewest, self.classes, self.dtype).nbytes
        rows = self.batch_size if self.answer_rows is None else self.answer_rows
        answer = MessageLayout(rows, self.classes, self.dtype).nbytes
        return self.link.exchange_s(workers, message, answer) + self.ensemble_s


def _shared(alone_s: Sequence[float], threads: Sequence[int], cores: float) -> list[float]:
    """When each is ready, if those still busy share the cores: all are slower alike while too few."""
    ready_s, now_s, done_s, wanted = list(alone_s), 0.0, 0.0, sum(threads)
    for place in sorted(range(len(alone_s)), key=alone_s.__getitem__):
        if not threads[place]:
            continue  # on a GPU
        now_s += (alone_s[place] - done_s) * max(1.0, wanted / cores)
        ready_s[place], done_s, wanted = now_s, alone_s[place], wanted - threads[place]
    return ready_s
