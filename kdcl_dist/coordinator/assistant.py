"""An assistant of the coordinator: a process that forms the soft targets of a share of each step's samples.

It keeps nothing from round to round. Each order of the coordinator says all that a round needs besides the
students' logits, so another process can replace an assistant at any time.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

import torch

from kdcl_dist.config.rounds import Kind, Round
from kdcl_dist.coordinator.aggregator import Aggregator, Answer
from kdcl_dist.coordinator.answering import answer_round, gather_rows
from kdcl_dist.coordinator.assistants import Order
from kdcl_dist.coordinator.preparation import prepare_coordinator
from kdcl_dist.coordinator.step_sums import StepSums
from kdcl_dist.coordinator.stored_members import StoredMembers
from kdcl_dist.coordinator.validation import check_messages
from kdcl_dist.distillation.solving import prepare_solver
from kdcl_dist.errors import KdclError
from kdcl_dist.exchange.generation import open_exchange
from kdcl_dist.exchange.member import Find, Member, follow
from kdcl_dist.exchange.message import Flag
from kdcl_dist.exchange.shared import SharedExchange
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.generation_spec import GenerationSpec
from kdcl_dist.membership.rendezvous import WorkerInfo
from kdcl_dist.run.run import Run, versions
from kdcl_dist.run.usage import write_usage

__all__ = ["run_assistant"]


def run_assistant(run: Run, rank: int, find: Find, *, host: str) -> bool:
    """Assist the coordinator of a run to the run's end.

    Args:
        run: the run.
        rank: index in `run.recipe.members`.
        find: of the coordinator's store; see `kdcl_dist.exchange.member.follow`, also for what is returned
            and raised.
        host: this process's address, by which the others reach it.
    """
    prepare_coordinator(run)

    def participate(endpoint: Endpoint, last_loss: KdclError | None) -> bool:
        """Take part under one coordinator."""
        finished = _AssistantRuntime(run, rank, endpoint, host, last_loss).participate()
        if run.dry_steps is not None:
            write_usage(run.folder, run.recipe.members[rank], host, torch.device("cpu"))
        return finished

    return follow(run, find, participate)


class _AssistantRuntime(Member):
    """An assistant's process under one coordinator."""

    def prepare(self) -> None:
        """Open this host's files of logits, and compile the solver, which takes seconds the first time."""
        try:
            self.stored = StoredMembers.open(self.run.recipe)
        except KdclError as error:
            self.rendezvous.report(error.at(student=self.monitor.name, phase="start", host=self.host))
            raise
        prepare_solver()

    def describe(self) -> WorkerInfo:
        """What the coordinator is told of this process; it has no network, and its data are stored logits."""
        return WorkerInfo(
            name=self.monitor.name,
            host=self.host,
            pid=os.getpid(),
            device="cpu",
            parameters=0,
            classes=0,
            schedule={},
            data=self.stored.fingerprints,
            versions=versions(),
        )

    def run_generation(self, spec: GenerationSpec) -> Flag:
        """Assist in one generation: to its end, or to the first failure."""
        run = replace(self.run, generation=spec.number)
        present = [rank for rank, each in enumerate(run.recipe.workers) if each.student in spec.students]
        self.monitor.enter(spec.number, [*present, *spec.assistants], step=spec.at.step)
        with open_exchange(run, self.monitor, host=self.host, classes=spec.classes) as exchange:
            assert isinstance(exchange, SharedExchange)
            return _AssistantLoop(run, spec, exchange, self.stored).run_rounds()


class _AssistantLoop:
    """An assistant's rounds in one generation."""

    def __init__(
        self, run: Run, spec: GenerationSpec, exchange: SharedExchange, stored: StoredMembers
    ) -> None:
        self.run, self.recipe, self.exchange = run, run.recipe, exchange
        self.aggregator = Aggregator(run.recipe)
        self.aggregator.present = list(spec.students)
        self.aggregator.stored = stored
        self.workers = [worker for worker in run.recipe.workers if worker.student in spec.students]
        limits = run.recipe.limits
        #: Seconds from one order to the next, if the rounds in between take as long as they may.
        self.patience_s = limits.startup_s + 2 * limits.step_s

    def run_rounds(self) -> Flag:
        """Take part in the training rounds to the generation's end; returns how it ended."""
        while (order := self._next_order()).round.kind is not Kind.END:
            if order.round.kind is Kind.TRAIN:
                self._train(order)
        return order.flags

    def _next_order(self) -> Order:
        self.exchange.monitor.heartbeat.enter("gather")
        tensor = torch.zeros(5 + len(self.recipe.students), dtype=torch.float64)
        self.exchange.receive_order(tensor, self.patience_s)
        return Order.of(tensor)

    def _train(self, order: Order) -> None:
        """Gather this share of the students' logits, answer, then report what the coordinator records."""
        exchange, heartbeat, round = self.exchange, self.exchange.monitor.heartbeat, order.round
        heartbeat.enter("gather", round.step)
        exchange.outgoing.reset(round.kind, round.step, round.part)
        messages, arrivals = gather_rows(exchange, self.recipe, self.workers)
        exchange.answer.reset(round.kind, round.step, round.part)  # the answer before has left by now
        heartbeat.enter("ensemble")
        started_s = time.perf_counter()
        try:
            identity = self.run.number, self.run.generation
            check_messages(messages, self.workers, round, identity, exchange.share_rows)
            self.aggregator.weights_S = order.weights_S
            answer = answer_round(self.aggregator, messages, round, exchange.answer, arrivals)
        except KdclError as error:
            exchange.monitor.report(error.at(step=round.step, phase="ensemble"))
            exchange.answer.header["flags"] = Flag.REFUSED
            exchange.broadcast(with_rows=True)
            raise
        ensemble_s = time.perf_counter() - started_s
        heartbeat.enter("broadcast")
        exchange.broadcast(with_rows=True)
        heartbeat.enter("record")
        self._report(answer, round, order, ensemble_s)

    def _report(self, answer: Answer, round: Round, order: Order, ensemble_s: float) -> None:
        sums = StepSums.of(self.recipe, answer, order.weights_S, ensemble_s, round.step)
        self.exchange.send_report(sums.vector())
