"""What a rank says in one collective: a header, sample ids, labels and logits in one buffer of bytes.

Every message of a run has the same size, fixed when the cohort comes together, and says in its header how
many rows it uses. So no two ranks can ever disagree about the size of a collective, which would corrupt
data silently; a disagreement is always one about the header, which is checked.

Shapes: B rows used, R rows of capacity, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdcl_dist.config.rounds import Kind
from kdcl_dist.errors import ShapeMismatch

__all__ = [
    "HEADER",
    "MAGIC",
    "MAX_STUDENTS",
    "PROTOCOL",
    "Contribution",
    "Flag",
    "Message",
    "MessageLayout",
    "StepMetrics",
    "by_student",
]

MAGIC = 0x4B44434C
PROTOCOL = 4
#: Students of one cohort, each of which has a bit in the coordinator's answer.
MAX_STUDENTS = 256


class Flag(IntFlag):
    """Requests and diagnoses beside the payload."""

    NONE = 0
    #: A student asks to stop; in the coordinator's answer: all take a checkpoint and stop.
    STOP = 1
    #: The coordinator refuses the step; the reason lies with the other failures.
    REFUSED = 2
    #: In the coordinator's answer: the cohort forms anew after this round, and goes on.
    REFORM = 4
    #: In the coordinator's answer: all take a checkpoint after this round, and go on.
    SAVE = 8


class StepMetrics(NamedTuple):
    """A student's own figures of one training step, sent with the next message. Seconds end in _s.

    skipped: 1 if it learned nothing, since its gradient was not finite. The last two are those of
    `kdcl_dist.distillation.diagnostics.Conflict`, NaN where they were not measured.
    """

    step: float = -1.0
    loss: float = 0.0
    task_loss: float = 0.0
    distillation_loss: float = 0.0
    lr: float = 0.0
    data_s: float = 0.0
    forward_s: float = 0.0
    wait_s: float = 0.0
    exchange_s: float = 0.0
    backward_s: float = 0.0
    step_s: float = 0.0
    skipped: float = 0.0
    gradient_cosine: float = math.nan
    gradient_ratio: float = math.nan


HEADER = np.dtype(
    [
        ("magic", "<u4"),
        ("protocol", "<u4"),
        ("run", "<u8"),
        ("generation", "<u4"),
        ("sender", "<i4"),
        ("kind", "<u4"),
        ("flags", "<u4"),
        ("step", "<i8"),
        ("part", "<i8"),
        ("rows", "<i4"),
        ("classes", "<i4"),
        ("busy_s", "<f8"),
        ("bytes", "<i8"),
        ("digest", "u1", (32,)),
        ("excluded", "u1", (MAX_STUDENTS // 8,)),
        ("metrics", "<f8", (len(StepMetrics._fields),)),
    ]
)


class Contribution(NamedTuple):
    """The used part of a training or evaluation message.

    Shapes: ids_B int64, labels_B int64, logits_BC float32, or of the 16 bits in which they were sent.
    """

    ids: Tensor
    labels: Tensor
    logits: Tensor


def by_student(messages: Sequence[Message], students: Sequence[int], count: int) -> list[Contribution]:
    """The used rows of each student, those of its replicas one after another; none of one that is absent.

    Args:
        messages: of all workers that are present, in the order of the cohort.
        students: the student of each of these workers.
        count: students of the cohort.
    """
    parts: list[list[Contribution]] = [[] for _ in range(count)]
    for message, student in zip(messages, students, strict=True):
        parts[student].append(message.contribution())
    return [_joined(own) if len(own) > 1 else own[0] if own else _nothing(messages[0]) for own in parts]


def _nothing(message: Message) -> Contribution:
    return Contribution(message.ids[:0], message.labels[:0], message.logits[:0])


def _joined(parts: Sequence[Contribution]) -> Contribution:
    return Contribution(*(torch.cat(column) for column in zip(*parts, strict=True)))


@dataclass(frozen=True)
class MessageLayout:
    """Where the parts lie in the buffer: `rows` is the capacity R, `classes` C, `dtype` that of logits."""

    rows: int
    classes: int
    dtype: torch.dtype = torch.float32

    @property
    def nbytes(self) -> int:
        """Size of a whole message; a multiple of 8, so that messages in a row stay aligned."""
        logits = self.rows * self.classes * self.dtype.itemsize
        return HEADER.itemsize + self.rows * 16 + (logits + 7) // 8 * 8


class Message:
    """Typed views over one buffer; nothing is copied.

    Args:
        layout: of the buffer.
        buffer: where the message lies; None makes it one.
        pinned: whether a buffer is made that a GPU reads and writes without a copy in between.

    Attributes:
        buffer: uint8, (layout.nbytes,).
        header: zero-dimensional record of `HEADER`.
        ids: int64 (R,); labels: int64 (R,); logits: `layout.dtype` (R, C).
    """

    def __init__(self, layout: MessageLayout, buffer: Tensor | None = None, *, pinned: bool = False) -> None:
        self.layout = layout
        if buffer is None:
            buffer = torch.zeros(layout.nbytes, dtype=torch.uint8, pin_memory=pinned)
        self.buffer = buffer
        rows, start = layout.rows, HEADER.itemsize
        self.header: Any = self.buffer[:start].numpy().view(HEADER).reshape(())
        self.ids = self.buffer[start : start + rows * 8].view(torch.int64)
        self.labels = self.buffer[start + rows * 8 : start + rows * 16].view(torch.int64)
        end = start + rows * 16 + rows * layout.classes * layout.dtype.itemsize
        self.logits = self.buffer[start + rows * 16 : end].view(layout.dtype).view(rows, layout.classes)

    def set_identity(self, *, run: int, generation: int, sender: int) -> None:
        """Write what stays the same in all messages of one rank."""
        self.header["magic"], self.header["protocol"] = MAGIC, PROTOCOL
        self.header["run"], self.header["generation"], self.header["sender"] = run, generation, sender
        self.header["classes"] = self.layout.classes

    def reset(self, kind: Kind, step: int, part: int = 0, flags: Flag = Flag.NONE) -> None:
        """Start a new message without rows."""
        self.header["kind"], self.header["step"], self.header["part"] = kind, step, part
        self.header["flags"] = flags
        self.header["rows"], self.header["bytes"], self.header["digest"] = 0, 0, 0
        self.header["metrics"][:] = StepMetrics()
        self.header["excluded"] = 0

    def write_rows(self, ids: Tensor, logits: Tensor, labels: Tensor | None = None) -> None:
        """Write the rows: ids_B, logits_BC of any floating type and device, labels_B.

        Raises:
            ShapeMismatch: more rows than the capacity, or another number of classes.
        """
        rows = len(ids)
        if logits.shape != (rows, self.layout.classes) or rows > self.layout.rows:
            raise ShapeMismatch(
                f"logits have shape {tuple(logits.shape)} for {rows} samples; the cohort agreed on at most "
                f"{self.layout.rows} rows of {self.layout.classes} classes"
            )
        self.header["rows"] = rows
        self.ids[:rows].copy_(ids)
        self.logits[:rows].copy_(logits)
        if labels is not None:
            self.labels[:rows].copy_(labels)

    def exclude(self, students: Sequence[int]) -> None:
        """Say in the coordinator's answer which students, by place, the step is without."""
        bits = np.zeros(MAX_STUDENTS, np.uint8)
        bits[list(students)] = 1
        self.header["excluded"][:] = np.packbits(bits)

    def excludes(self, student: int) -> bool:
        """Whether the step is without a student."""
        return bool(np.unpackbits(self.header["excluded"])[student])

    @property
    def kind(self) -> int:
        """A `Kind`, or whatever number a foreign message has there."""
        return int(self.header["kind"])

    @property
    def flags(self) -> Flag:
        """The message's flags."""
        return Flag(int(self.header["flags"]))

    @property
    def step_metrics(self) -> StepMetrics:
        """The sender's figures of its last training step; `step` is -1 if it has none."""
        return StepMetrics(*self.header["metrics"].tolist())

    def contribution(self) -> Contribution:
        """The used rows, as views."""
        rows = int(self.header["rows"])
        return Contribution(self.ids[:rows], self.labels[:rows], self.logits[:rows])
