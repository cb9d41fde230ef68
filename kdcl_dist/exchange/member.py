"""A process that takes part in one generation after another, as its coordinator announces them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import Round
from kdcl_dist.errors import CoordinatorLost, KdclError, NonFiniteLogits, from_dict
from kdcl_dist.exchange.message import Flag
from kdcl_dist.membership.endpoint import Endpoint
from kdcl_dist.membership.generation_spec import GenerationSpec
from kdcl_dist.membership.monitor import Monitor
from kdcl_dist.membership.rendezvous import Rendezvous, RunCompleted, WorkerInfo
from kdcl_dist.membership.tcp_store import connect_store, scoped
from kdcl_dist.run.run import Run

__all__ = ["Find", "Member", "follow"]

#: Finds the store of the first coordinator, or of the coordinator after the one whose store was lost.
Find = Callable[[Endpoint | None], Endpoint]


def follow(run: Run, find: Find, participate: Callable[[Endpoint, KdclError | None], bool]) -> bool:
    """Take part in a run under one coordinator after another.

    Args:
        run: the run.
        find: returns the endpoint of the coordinator's store; given the endpoint of a lost store, that of
            the next coordinator. Raises `CoordinatorLost` when there is none.
        participate: takes part under the coordinator of an endpoint, and is told how the one before was lost.

    Returns:
        True at the end of the run, False when it was stopped before, after a checkpoint.

    Raises:
        RunFailed: the coordinator ended the run; the error has the cause.
        KdclError: this process's own failure, or the loss of the coordinator where the run ends with it.
    """
    lost: Endpoint | None = None
    last_loss: KdclError | None = None
    while True:
        endpoint = find(lost)
        try:
            return participate(endpoint, last_loss)
        except CoordinatorLost as error:
            error.at(host=endpoint.host)
            if not run.recipe.failure.allowed:
                raise
            # A copy: the error's frames hold what this process had, such as a network.
            lost, last_loss = endpoint, from_dict(error.to_dict())


class Member(ABC):
    """A process under one coordinator.

    Args:
        run: the run.
        rank: index in `run.recipe.members`.
        endpoint: of the coordinator's store.
        host: this process's address.
        last_loss: how this process lost the coordinator before this one, if there was one.

    Attributes:
        position: the next round; None before the first generation.
        cohort: the number of the recipe that `run` has; None before the first generation.
    """

    def __init__(
        self, run: Run, rank: int, endpoint: Endpoint, host: str, last_loss: KdclError | None
    ) -> None:
        self.run, self.host, self.last_loss, self.limits = run, host, last_loss, run.recipe.limits
        self.store = scoped(connect_store(endpoint, self.limits.startup_s), run.id)
        self.monitor = Monitor(self.store, run.recipe.members, rank, generation=-1)  # of no generation yet
        self.rendezvous = Rendezvous(self.monitor)
        self.position: Round | None = None
        self.cohort: int | None = None

    def is_over(self, epoch: int) -> bool:
        """Whether this process takes part no more in an epoch, from 0, nor later."""
        return False

    @abstractmethod
    def prepare(self) -> None:
        """Do what comes before the first generation; a failure is reported to the coordinator."""

    def adopt(self, recipe: Recipe) -> None:
        """Take over a recipe whose cohort has changed; this process belongs to it as before."""
        self.run = replace(self.run, recipe=recipe)
        self.monitor.adopt(recipe.members)

    @abstractmethod
    def describe(self) -> WorkerInfo:
        """What the coordinator is told of this process."""

    @abstractmethod
    def run_generation(self, spec: GenerationSpec) -> Flag:
        """Run the rounds of one generation: to its end, or to the first failure."""

    def participate(self) -> bool:
        """Take part until the run's end; result and errors as of `follow`."""
        try:
            self.monitor.start_heartbeat(self.host, slow_s=self.limits.step_s / 2)
            if self.is_over(self.run.epoch):
                return True
            self.prepare()
            while True:
                spec = self.rendezvous.join(
                    self.describe(), self.position, self.limits.startup_s, self.last_loss, self._has_left
                )
                self._follow(spec)
                try:
                    flags = self.run_generation(spec)
                except KdclError as error:
                    if not self._survives(error):
                        raise
                else:
                    if Flag.REFORM not in flags or self._leaves():
                        return Flag.STOP not in flags
        except RunCompleted as completed:
            return completed.finished
        finally:
            self.monitor.report_departure()
            self.monitor.close()

    def _follow(self, spec: GenerationSpec) -> None:
        """Take over the recipe of a generation, unless this process is no member of its cohort yet."""
        if spec.cohort == self.cohort:
            return
        self.cohort, recipe = spec.cohort, Recipe.model_validate(self.rendezvous.cohort(spec.cohort))
        if recipe != self.run.recipe and self.monitor.name in recipe.members:
            self.adopt(recipe)

    def _has_left(self, spec: GenerationSpec) -> bool:
        """Whether this process takes part no more in a generation that others are called to."""
        self._follow(spec)
        return self.is_over(spec.epoch)

    def _leaves(self) -> bool:
        return self.position is not None and self.is_over(self.position.epoch)

    def _survives(self, error: KdclError) -> bool:
        """Whether this process can join the next generation.

        It can if the first failure is another process's, or bad numbers, which leave this process intact.
        """
        if error is not self.monitor.cause or isinstance(error, CoordinatorLost):
            return False
        return error.student != self.monitor.name or isinstance(error, NonFiniteLogits)
