"""The coordinator's state, and how checkpoints save and restore it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdcl_dist.config.rounds import Round, RunSchedule
from kdcl_dist.config.student import Worker
from kdcl_dist.coordinator.aggregator import Aggregator
from kdcl_dist.coordinator.logit_bank import PREFIX, make_bank
from kdcl_dist.coordinator.metrics_collector import MetricsCollector
from kdcl_dist.coordinator.window_check import make_window_check
from kdcl_dist.exchange.message import Message
from kdcl_dist.membership.monitor import COORDINATOR
from kdcl_dist.run.checkpoint import Manifest, Part, commit, copy_part, read_part, write_part
from kdcl_dist.run.run import Run

__all__ = ["CoordinatorState", "save_checkpoint", "student_parts"]


@dataclass
class CoordinatorState:
    """What the coordinator keeps between rounds, and between generations that continue with it.

    Attributes:
        position: the next round.
        saved: the latest checkpoint.
    """

    aggregator: Aggregator
    metrics: MetricsCollector
    position: Round
    saved: Manifest | None

    @classmethod
    def of(cls, run: Run, schedule: RunSchedule, classes: int) -> CoordinatorState:
        """The state at the run's start: that of the checkpoint `run.start`, or a new one."""
        bank = make_bank(run.recipe, schedule.samples, classes)
        aggregator = Aggregator(run.recipe, bank, make_window_check(run.recipe, schedule))
        aggregator.load_method(classes)
        state = cls(aggregator, MetricsCollector(run, schedule), schedule.first(run.step), run.start)
        if run.start is not None:
            saved = read_part(run.folder, run.start, COORDINATOR)
            aggregator.load_state_dict(saved["coordinator"])
            state.metrics.load_state_dict(saved)
            if bank is not None:
                for name in (name for name in run.start.parts if name.startswith(PREFIX)):
                    bank.load(read_part(run.folder, run.start, name))
        return state

    def close(self) -> None:
        """Close the files of the state."""
        self.metrics.close()
        if self.aggregator.bank is not None:
            self.aggregator.bank.close()


def save_checkpoint(run: Run, state: CoordinatorState, step: int, parts: dict[str, Part]) -> None:
    """Write the coordinator's parts of a checkpoint, then the manifest, which completes it.

    The part of an absent student is copied from the checkpoint before.

    Args:
        run: the run.
        state: of the coordinator; `saved` becomes the new checkpoint.
        step: training steps before the checkpoint.
        parts: by name those that the present students have written.
    """
    folder = run.folder
    own_state = {"coordinator": state.aggregator.state_dict()} | state.metrics.state_dict()
    own = write_part(folder, step, COORDINATOR, own_state)
    if (earlier := state.saved) is not None:
        absent = [name for name in run.recipe.names if name not in parts and name in earlier.parts]
        parts = parts | {name: copy_part(folder, earlier, step, name) for name in absent}
    if (bank := state.aggregator.bank) is not None:
        parts = parts | {name: write_part(folder, step, name, part) for name, part in bank.parts(step)}
    manifest = Manifest(step, parts | {COORDINATOR: own})
    commit(folder, manifest)
    state.saved = manifest


def student_parts(
    names: Sequence[str], workers: Sequence[Worker], messages: Sequence[Message]
) -> dict[str, Part]:
    """The parts of a checkpoint that the students report, by name: each student's first replica writes one.

    Args:
        names: of all students.
        workers: the senders of the messages.
        messages: one of each worker.
    """
    return {
        names[worker.student]: Part(bytes(message.header["digest"]).hex(), int(message.header["bytes"]))
        for worker, message in zip(workers, messages, strict=True)
        if worker.replica == 0
    }
