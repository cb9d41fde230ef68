"""Checks of the headers of all messages of a round, before the coordinator uses their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kdcl_dist.config.rounds import Round, share_of
from kdcl_dist.config.student import Worker
from kdcl_dist.errors import ForeignMessage, ShapeMismatch, StaleContribution
from kdcl_dist.exchange.message import MAGIC, PROTOCOL, Message

__all__ = ["check_messages"]


def check_messages(
    messages: Sequence[Message],
    workers: Sequence[Worker],
    round: Round,
    run: tuple[int, int],
    rows: int | None = None,
) -> None:
    """See that every message is of this run and this round, and that all students have as many rows.

    Args:
        messages: one of each worker, in the order of `workers`.
        workers: the workers that take part.
        round: that the coordinator is at.
        run: its 64-bit number, and the generation.
        rows: of each worker. None: as many for each student as most have, in even shares of its replicas.

    Raises:
        ForeignMessage: a message is of another run, generation or sender.
        StaleContribution: a message is of another round.
        ShapeMismatch: a student has another number of rows than most, or other classes.
    """
    counts = _expected_rows(messages, workers) if rows is None else [rows] * len(workers)
    common = {"magic": MAGIC, "protocol": PROTOCOL, "run": run[0], "generation": run[1]}
    position = {"kind": int(round.kind), "step": round.step, "part": round.part}
    for index, (message, count) in enumerate(zip(messages, counts, strict=True)):
        found = message.identity
        for error, expected in (
            (ForeignMessage, common | {"sender": index}),
            (StaleContribution, position),
            (ShapeMismatch, {"classes": message.layout.classes, "rows": count}),
        ):
            wrong = [field for field, value in expected.items() if found[field] != value]
            if wrong:
                named = ", ".join(f"{field} {found[field]} instead of {expected[field]}" for field in wrong)
                raise error(f"sends {named}", student=workers[index].name, step=round.step)


def _expected_rows(messages: Sequence[Message], workers: Sequence[Worker]) -> list[int]:
    """The rows of each worker if its student has as many as most students."""
    totals, replicas = Counter[int](), Counter(worker.student for worker in workers)
    for message, worker in zip(messages, workers, strict=True):
        totals[worker.student] += int(message.header["rows"])
    total = Counter(totals.values()).most_common(1)[0][0]
    return [share_of(total, worker.replica, replicas[worker.student]) for worker in workers]
