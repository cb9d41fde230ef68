"""What can go wrong, as one tree of exceptions.

    KdclError                    exit code 1: the run failed
    |-- UserError                exit code 2: something to mend in what was asked for
    |   |-- RecipeError          a field of the recipe
    |   |-- DataError            a data set or an importer's source
    |   |-- ModelError           a model name, factory or its output
    |   |-- RunFolderError       the run folder: taken, missing, unwritable, of another recipe
    |   |-- PreflightError       the hosts are not ready; one line a failure
    |   `-- ExportError          an export cannot be written or read
    |-- StudentFailed            an exception inside one student
    |-- CoordinatorFailed        an exception inside the coordinator, or beside the students
    |-- ContributionError        one student's message is unusable
    |   |-- ForeignMessage       of another run, generation or protocol
    |   |-- StaleContribution    of another step or phase
    |   |-- ShapeMismatch        rows or classes differ from what was agreed
    |   |-- MisalignedIds        not the sample ids of the other students
    |   |-- LabelMismatch        other labels for the same samples
    |   `-- NonFiniteLogits      NaN or infinity
    |-- StudentLost              a student's process died or does not answer
    |-- CoordinatorLost          the coordinator died or does not answer
    |   `-- CoordinatorCutOff    it lives, but cannot reach its own store
    |-- StartupTimeout           the cohort did not come together in time
    |-- StorageError             the storage refuses, or does not answer after many tries
    `-- CheckpointError          a checkpoint cannot be written or read

Every error carries where it happened (student, step, phase, host), survives pickling, and rounds into
plain JSON and back, so that it can cross a process, a Ray actor or a key-value store unchanged.
"""

from __future__ import annotations

import traceback
from typing import Any, ClassVar

__all__ = [
    "CheckpointError",
    "ContributionError",
    "CoordinatorCutOff",
    "CoordinatorFailed",
    "CoordinatorLost",
    "DataError",
    "ExportError",
    "ForeignMessage",
    "KdclError",
    "LabelMismatch",
    "MisalignedIds",
    "ModelError",
    "NonFiniteLogits",
    "PreflightError",
    "RecipeError",
    "RunFolderError",
    "ShapeMismatch",
    "StaleContribution",
    "StartupTimeout",
    "StorageError",
    "StudentFailed",
    "StudentLost",
    "UserError",
    "one_line",
]


class KdclError(Exception):
    """Base of all errors of this package.

    Args:
        message: one sentence that names the value at fault and the field to change.
        student: name of the student concerned.
        step: global step (counted from 0 over the whole run).
        phase: what was being done ("data", "forward", "gather", ...).
        host: address of the host it happened on.
        detail: more lines for a log, such as a traceback; never printed as the message.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        student: str | None = None,
        step: int | None = None,
        phase: str | None = None,
        host: str | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.student = student
        self.step = step
        self.phase = phase
        self.host = host
        self.detail = detail

    @property
    def where(self) -> str:
        """The known part of "student 'a', step 7, phase forward, host 10.0.0.1"."""
        parts = (
            ("student", repr(self.student) if self.student is not None else None),
            ("step", self.step),
            ("phase", self.phase),
            ("host", self.host),
        )
        return ", ".join(f"{name} {value}" for name, value in parts if value is not None)

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return from_dict, (self.to_dict(),)

    def to_dict(self) -> dict[str, Any]:
        """The error as plain JSON data; `from_dict` is the inverse."""
        fields = ("message", "student", "step", "phase", "host", "detail")
        return {"error": type(self).__name__} | {name: getattr(self, name) for name in fields}

    def at(
        self,
        *,
        student: str | None = None,
        step: int | None = None,
        phase: str | None = None,
        host: str | None = None,
    ) -> KdclError:
        """Fill in what is not yet known of where it happened; returns the error itself."""
        self.student = self.student if self.student is not None else student
        self.step = self.step if self.step is not None else step
        self.phase = self.phase if self.phase is not None else phase
        self.host = self.host if self.host is not None else host
        return self


class UserError(KdclError):
    """Something the user asked for cannot be done as written."""

    exit_code: ClassVar[int] = 2


class RecipeError(UserError):
    """A field of the recipe is unknown, missing or has an impossible value."""


class DataError(UserError):
    """A data set is missing, damaged or does not fit the recipe."""


class ModelError(UserError):
    """A model cannot be built, or does not return the logits that the data asks for."""


class RunFolderError(UserError):
    """The run folder is taken, missing, unwritable, or belongs to another recipe."""


class PreflightError(UserError):
    """The hosts are not ready for the run; the message has one line for each thing to mend."""


class ExportError(UserError):
    """An export cannot be written, or is damaged, or something that it needs is not installed."""


class StudentFailed(KdclError):
    """An exception inside one student's process."""


class CoordinatorFailed(KdclError):
    """An exception inside the coordinator's process, or in the one that launched the run."""


class ContributionError(KdclError):
    """A student's message of a step cannot be used; it is refused, never averaged in."""


class ForeignMessage(ContributionError):
    """The message is of another run, generation or protocol version."""


class StaleContribution(ContributionError):
    """The message is of another step or phase than the others' messages."""


class ShapeMismatch(ContributionError):
    """The message has other rows or classes than was agreed at the start."""


class MisalignedIds(ContributionError):
    """The message is about other samples than the others' messages."""


class LabelMismatch(ContributionError):
    """The message has other labels for the same samples."""


class NonFiniteLogits(ContributionError):
    """The logits, or the gradient, contain NaN or infinity."""


class StudentLost(KdclError):
    """A student's process died or does not answer within the limit."""


class CoordinatorLost(KdclError):
    """The coordinator died or does not answer within the limit."""


class CoordinatorCutOff(CoordinatorLost):
    """The coordinator lives but cannot reach its own store: another one has to take its place."""


class ExchangeBroke(KdclError):
    """A connection of the exchange group broke, or a limit ended, though every process lives."""


class StartupTimeout(KdclError):
    """The cohort did not come together within `limits.startup_s`."""


class StorageError(KdclError):
    """The storage refuses, or does not answer after many tries."""


class CheckpointError(KdclError):
    """A checkpoint cannot be written, or is damaged."""


def from_dict(data: dict[str, Any]) -> KdclError:
    """Rebuild an error from `KdclError.to_dict`.

    Raises:
        ValueError: `data` names no class of this module.
    """
    fields = dict(data)
    name = fields.pop("error", None)
    cls = globals().get(name) if isinstance(name, str) else None
    if not (isinstance(cls, type) and issubclass(cls, KdclError)):
        raise ValueError(f"not an error of this package: {name!r}")
    return cls(**fields)


def wrap(error: BaseException, *, student: str | None, step: int | None, phase: str) -> KdclError:
    """Any exception as a KdclError: ours are completed, others become a failure of who raised them.

    Without a student that is the coordinator, or the launcher.
    """
    if isinstance(error, KdclError):
        return error.at(student=student, step=step, phase=phase)
    lines = "".join(traceback.format_exception(error))
    kind = CoordinatorFailed if student is None else StudentFailed
    return kind(one_line(error), student=student, step=step, phase=phase, detail=lines)


def one_line(error: BaseException) -> str:
    """`ValueError: the first line of the message`, whatever the message looks like."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
