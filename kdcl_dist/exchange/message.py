"""The message of one rank in one exchange: a header, sample ids, labels and logits in one buffer of bytes.

Every message of a run has the same size, and its header says how many rows are used. So ranks never disagree
about the size of a transfer, which would corrupt data silently. They can disagree about a header only, and
every header is checked.

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

from kdcl_dist.config.presence import MAX_STUDENTS
from kdcl_dist.config.rounds import Kind
from kdcl_dist.errors import ShapeMismatch

__all__ = [
    "HEADER",
    "MAGIC",
    "PROTOCOL",
    "Contribution",
    "Flag",
    "Identity",
    "Message",
    "MessageLayout",
    "StepMetrics",
    "by_student",
]

MAGIC = 0x4B44434C
PROTOCOL = 6


class Flag(IntFlag):
    """Requests and decisions in a header."""

    NONE = 0
    #: A student requests a stop; in the coordinator's answer: all save a checkpoint and stop.
    STOP = 1
    #: The coordinator refuses the step; the monitor holds the reason, as the failure of the generation.
    REFUSED = 2
    #: In the coordinator's answer: after this round the cohort forms a new generation and continues.
    REFORM = 4
    #: In the coordinator's answer: all save a checkpoint after this round and continue.
    SAVE = 8
    #: In the coordinator's answer: this epoch is the last of the run.
    LAST = 16
    #: A student's logits are not all finite; among several coordinators, some may have none of those.
    NOT_FINITE = 32
    #: In the coordinator's answer: all keep their state in memory after this step.
    KEEP = 64


class StepMetrics(NamedTuple):
    """A student's figures of one training step, which its next message carries. Seconds end in _s.

    `data_s` is how long the student waited for its batch, `load_s` how long some process took to make it.
    `skipped` is 1 if the student skipped its update, since the gradient was not finite. `paused` is 1 if its
    method let it learn nothing, and NaN with methods that never do. The last two are of
    `kdcl_dist.distillation.diagnostics.Conflict`, and NaN where they were not measured.
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
    load_s: float = 0.0
    skipped: float = 0.0
    paused: float = math.nan
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
        ("checksum", "<i8"),
        ("busy_s", "<f8"),
        ("bytes", "<i8"),
        ("digest", "u1", (32,)),
        ("excluded", "u1", (MAX_STUDENTS // 8,)),
        ("metrics", "<f8", (len(StepMetrics._fields),)),
    ]
)

#: The fields that `Message.reset` is given, and the bytes that it clears: those after `busy_s`.
POSITION = ["kind", "flags", "step", "part", "rows"]
CLEARED = HEADER.fields["bytes"][1]  # type: ignore[index]


class Identity(NamedTuple):
    """The fields of a header that say to what a message belongs, and its size; an answer repeats `place`."""

    magic: int
    protocol: int
    run: int
    generation: int
    step: int
    part: int
    sender: int
    kind: int
    rows: int
    classes: int

    @property
    def place(self) -> tuple[int, ...]:
        """The run, the generation and the part of a step: the fields before `sender`."""
        return self[:6]


class Contribution(NamedTuple):
    """The used rows of a message.

    Attributes:
        ids: int64 (B,).
        labels: int64 (B,).
        logits: (B, C), of the layout's dtype.
    """

    ids: Tensor
    labels: Tensor
    logits: Tensor

    def split(self, count: int) -> list[Contribution]:
        """The rows of so many students that have as many rows each, one student's after another's."""
        columns = (column.chunk(max(count, 1)) for column in self)
        return [Contribution(*part) for part in zip(*columns, strict=True)] if count else []

    @property
    def is_finite(self) -> bool:
        """Whether all logits are finite."""
        # A sum is finite unless a logit is not, or finite logits overflow: most steps need no second pass.
        total = float(self.logits.sum(dtype=torch.float32))
        return math.isfinite(total) or bool(torch.isfinite(self.logits).all())


def _blank() -> Any:
    """The cleared bytes of a message: no metrics, nobody excluded, no checkpoint."""
    header = np.zeros(1, HEADER)
    header["metrics"] = StepMetrics()
    return header.view(np.uint8)[CLEARED:]


BLANK = _blank()


def by_student(messages: Sequence[Message], students: Sequence[int], count: int) -> list[Contribution]:
    """The used rows of each student: those of its replicas in order, no rows for an absent student.

    Args:
        messages: of all workers that are present, in the order of the cohort.
        students: index of the student of each of these workers.
        count: number of students in the cohort.
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
    """The sizes of a message: capacity in rows R, classes C, and `dtype` of the logits."""

    rows: int
    classes: int
    dtype: torch.dtype = torch.float32

    @property
    def nbytes(self) -> int:
        """Size of a whole message: a multiple of 8, so that consecutive messages stay aligned."""
        logits = self.rows * self.classes * self.dtype.itemsize
        return HEADER.itemsize + self.rows * 16 + (logits + 7) // 8 * 8


class Message:
    """Typed views of one buffer, without copies.

    Args:
        layout: of the buffer.
        buffer: of an existing message; None allocates one.
        pinned: whether the new buffer is pinned: a GPU reads and writes it without another copy.

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
        # A step reads and writes several fields at once: each access of NumPy's costs microseconds.
        self._identity: Any = self.header[list(Identity._fields)]
        self._position: Any = self.header[POSITION]
        self._cleared = self.buffer[CLEARED:start].numpy()
        self.ids = self.buffer[start : start + rows * 8].view(torch.int64)
        self.labels = self.buffer[start + rows * 8 : start + rows * 16].view(torch.int64)
        end = start + rows * 16 + rows * layout.classes * layout.dtype.itemsize
        self.logits = self.buffer[start + rows * 16 : end].view(layout.dtype).view(rows, layout.classes)
        self._full = Contribution(self.ids, self.labels, self.logits)

    def set_identity(self, *, run: int, generation: int, sender: int) -> None:
        """Write the fields that are the same in all messages of one rank."""
        self.header["magic"], self.header["protocol"] = MAGIC, PROTOCOL
        self.header["run"], self.header["generation"], self.header["sender"] = run, generation, sender
        self.header["classes"] = self.layout.classes

    def reset(self, kind: Kind, step: int, part: int = 0, flags: Flag = Flag.NONE) -> None:
        """Start a new message without rows."""
        self._position[()] = (kind, flags, step, part, 0)
        self._cleared[:] = BLANK

    def write_rows(self, ids: Tensor, logits: Tensor, labels: Tensor | None = None) -> None:
        """Write rows into an empty message.

        Args:
            ids: int64 (B,).
            logits: (B, C), of any floating type and device.
            labels: int64 (B,); None keeps those of the buffer.

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
        own = self.contribution()
        own.ids.copy_(ids)
        own.logits.copy_(logits)
        if labels is not None:
            own.labels.copy_(labels)

    def exclude(self, students: Sequence[int]) -> None:
        """Mark, in the coordinator's answer, the students by index whose logits the step leaves out."""
        bits = np.zeros(MAX_STUDENTS, np.uint8)
        bits[list(students)] = 1
        self.header["excluded"][:] = np.packbits(bits)

    def excludes(self, student: int) -> bool:
        """Whether the step leaves out a student's logits."""
        return bool(self.header["excluded"][student // 8] & (128 >> student % 8))

    @property
    def identity(self) -> Identity:
        """The fields of `Identity`, all read at once."""
        return Identity._make(self._identity.item())

    @property
    def kind(self) -> int:
        """The number of a `Kind`; a foreign message can have any number."""
        return int(self.header["kind"])

    @property
    def flags(self) -> Flag:
        """The message's flags."""
        return Flag(int(self.header["flags"]))

    def has(self, flag: Flag) -> bool:
        """Whether a flag is set; an enumeration's own operations take several times as long."""
        return bool(self.header["flags"] & flag.value)

    @property
    def step_metrics(self) -> StepMetrics:
        """The sender's figures of its last training step; `step` is -1 without one."""
        return StepMetrics(*self.header["metrics"].tolist())

    def contribution(self) -> Contribution:
        """The used rows, as views."""
        rows = int(self.header["rows"])
        if rows == self.layout.rows:
            return self._full
        return Contribution(self.ids[:rows], self.labels[:rows], self.logits[:rows])
