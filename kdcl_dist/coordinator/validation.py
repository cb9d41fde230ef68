"""Checks of the headers of all messages of a round, before the coordinator uses their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import mode

from kdcl_dist.config.rounds import Round, share_of
from kdcl_dist.config.student import Worker
from kdcl_dist.errors import ForeignMessage, KdclError, ShapeMismatch, StaleContribution
from kdcl_dist.exchange.message import MAGIC, PROTOCOL, Identity, Message

__all__ = ["check_messages"]

#: The errors by what is wrong, in the order in which they are looked for.
ERRORS: dict[type[KdclError], Sequence[str]] = {
    ForeignMessage: ("magic", "protocol", "run", "generation", "sender"),
    StaleContribution: ("kind", "step", "part"),
    ShapeMismatch: ("classes", "rows"),
}


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
    found = [message.identity for message in messages]
    counts = _expected_rows(found, workers) if rows is None else [rows] * len(workers)
    place, classes = (MAGIC, PROTOCOL, *run, round.step, round.part), messages[0].layout.classes
    for index, (identity, count) in enumerate(zip(found, counts, strict=True)):
        expected = Identity(*place, index, round.kind, count, classes)
        if identity != expected:
            raise _error(identity, expected).at(student=workers[index].name, step=round.step)


def _error(found: Identity, expected: Identity) -> KdclError:
    """What is wrong with a message, as the first of `ERRORS` that fits."""
    wrong = {
        field: f"{field} {value} instead of {right}"
        for field, value, right in zip(Identity._fields, found, expected, strict=True)
        if value != right
    }
    error = next(error for error, fields in ERRORS.items() if wrong.keys() & fields)
    return error(f"sends {', '.join(wrong[field] for field in ERRORS[error] if field in wrong)}")


def _expected_rows(found: Sequence[Identity], workers: Sequence[Worker]) -> list[int]:
    """The rows of each worker if its student has as many as most students."""
    totals, replicas = dict[int, int](), Counter(worker.student for worker in workers)
    for identity, worker in zip(found, workers, strict=True):
        totals[worker.student] = totals.get(worker.student, 0) + identity.rows
    total = mode(totals.values())
    return [share_of(total, worker.replica, replicas[worker.student]) for worker in workers]
