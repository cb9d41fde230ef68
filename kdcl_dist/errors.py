"""The exceptions of this package, as one tree.

    KdclError                    exit code 1: the run failed
    |-- UserError                exit code 2: the request cannot be met as written
    |   |-- RecipeError          a field of the recipe
    |   |-- DataError            a data set, or the source of an importer
    |   |-- ModelError           a model's name, factory or output
    |   |-- MethodError          a distillation method of the user's own
    |   |-- RunFolderError       a run folder that is taken, missing, unwritable or of another recipe
    |   |-- PreflightError       hosts that are not ready, one line for each failure
    |   |-- ExportError          an export that cannot be written or read
    |   `-- ImportRefused        stored text that would import code outside this package
    |-- StudentFailed            an exception inside a student
    |-- CoordinatorFailed        an exception inside the coordinator or the launcher
    |-- ContributionError        an unusable message of a student
    |   |-- ForeignMessage       of another run, generation or protocol version
    |   |-- StaleContribution    of another step or phase
    |   |-- ShapeMismatch        with other rows or classes than agreed
    |   |-- MisalignedIds        with other sample ids than the other students'
    |   |-- LabelMismatch        with other labels for the same samples
    |   `-- NonFiniteLogits      with NaN or infinity
    |-- StudentLost              a student that died or does not answer
    |-- CoordinatorLost          a coordinator that died or does not answer
    |   `-- CoordinatorCutOff    a coordinator that lives, but cannot reach its own store
    |-- ExchangeBroke            a broken connection between processes that live
    |-- SilentCorruption         bits other than those that were computed or sent
    |-- StartupTimeout           a cohort that is not complete in time
    |-- StorageError             a storage that refuses, or fails after all retries
    `-- CheckpointError          a checkpoint that cannot be written or read

Every error carries its location (student, step, phase, host). Every error survives pickling and converts to
plain JSON and back, so that it crosses a process, a Ray actor or a key-value store unchanged.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

__all__ = [
    "ASSISTANT",
    "CheckpointError",
    "ContributionError",
    "CoordinatorCutOff",
    "CoordinatorFailed",
    "CoordinatorLost",
    "DataError",
    "ExchangeBroke",
    "ExportError",
    "ForeignMessage",
    "ImportRefused",
    "KdclError",
    "LabelMismatch",
    "MethodError",
    "MisalignedIds",
    "ModelError",
    "NonFiniteLogits",
    "PreflightError",
    "RecipeError",
    "RunFolderError",
    "ShapeMismatch",
    "SilentCorruption",
    "StaleContribution",
    "StartupTimeout",
    "StorageError",
    "StudentFailed",
    "StudentLost",
    "UserError",
    "from_dict",
    "of_user_code",
    "one_line",
    "wrap",
]

#: How the names of the coordinator's assistants begin, where an error names a student.
ASSISTANT = "coordinator/"


class KdclError(Exception):
    """Base of all errors of this package.

    Args:
        message: one sentence that names the value at fault and the field to change.
        student: name of the student concerned, or of an assistant of the coordinator.
        step: global step, counted from 0 over the whole run.
        phase: phase of the step ("data", "forward", "gather", ...).
        host: address of the host.
        detail: lines for a log, such as a traceback; no part of the message.
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
        """The known parts of the location, such as "student 'a', step 7, phase forward, host 10.0.0.1"."""
        is_assistant = self.student is not None and self.student.startswith(ASSISTANT)
        parts = (
            ("process" if is_assistant else "student", None if self.student is None else repr(self.student)),
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
        """Fill in the unknown parts of the location; returns the error itself."""
        self.student = self.student if self.student is not None else student
        self.step = self.step if self.step is not None else step
        self.phase = self.phase if self.phase is not None else phase
        self.host = self.host if self.host is not None else host
        return self


class UserError(KdclError):
    """The user's request cannot be met as written."""

    exit_code: ClassVar[int] = 2


class RecipeError(UserError):
    """A field of the recipe is unknown, missing or has an impossible value."""


class DataError(UserError):
    """A data set is missing, damaged or does not fit the recipe."""


class ModelError(UserError):
    """A model cannot be built, or does not return logits that fit the data."""


class MethodError(UserError):
    """A distillation method of the user's own that fails, or gives no soft target or loss."""


class RunFolderError(UserError):
    """The run folder is taken, missing, unwritable, or belongs to another recipe."""


class PreflightError(UserError):
    """The hosts are not ready for the run; the message has one line for each failure."""


class ExportError(UserError):
    """An export cannot be written, is damaged, or needs a package that is not installed."""


class ImportRefused(UserError):
    """A run folder or an export names code outside this package that the user has not allowed."""


class StudentFailed(KdclError):
    """An exception inside one student's process."""


class CoordinatorFailed(KdclError):
    """An exception inside the coordinator's process, or inside the launcher's."""


class ContributionError(KdclError):
    """A student's message of a step is unusable; no ensemble contains it."""


class ForeignMessage(ContributionError):
    """The message is of another run, generation or protocol version."""


class StaleContribution(ContributionError):
    """The message is of another step or phase than the others' messages."""


class ShapeMismatch(ContributionError):
    """The message has other rows or classes than agreed at the start."""


class MisalignedIds(ContributionError):
    """The message has other sample ids than the others' messages."""


class LabelMismatch(ContributionError):
    """The message has other labels for the same samples."""


class NonFiniteLogits(ContributionError):
    """The logits, or the gradient, contain NaN or infinity."""


class StudentLost(KdclError):
    """A student's process died, or does not answer within the limit."""


class CoordinatorLost(KdclError):
    """The coordinator's process died, or does not answer within the limit."""


class CoordinatorCutOff(CoordinatorLost):
    """The coordinator lives but cannot reach its own store; a new coordinator must replace it."""


class ExchangeBroke(KdclError):
    """A connection of the exchange group broke, or a limit passed, while every process lives."""


class SilentCorruption(KdclError):
    """A number changed without an error: computed twice, or sent, it has other bits."""


class StartupTimeout(KdclError):
    """The cohort is not complete within `limits.startup_s`."""


class StorageError(KdclError):
    """The storage refuses, or fails after all retries."""


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
    """Any exception as a KdclError.

    A KdclError gets the missing parts of its location. Any other exception becomes `StudentFailed`, or
    `CoordinatorFailed` if `student` is None.
    """
    if isinstance(error, KdclError):
        return error.at(student=student, step=step, phase=phase)
    lines = "".join(traceback.format_exception(error))
    kind = CoordinatorFailed if student is None else StudentFailed
    return kind(one_line(error), student=student, step=step, phase=phase, detail=lines)


@contextmanager
def of_user_code(kind: type[UserError], message: str, student: str | None = None) -> Iterator[None]:
    """Whatever a user's code raises as a user's mistake: the message, and the exception in one line.

    A KdclError passes. So does a KeyboardInterrupt: it is the user's Ctrl-C.

    Raises:
        UserError: of the class `kind`, about the given student.
    """
    try:
        yield
    except KdclError:
        raise
    except (Exception, SystemExit) as error:
        raise kind(f"{message}: {one_line(error)}", student=student) from error


def one_line(error: BaseException) -> str:
    """The type and the first line of the message of any exception: `ValueError: ...`."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
