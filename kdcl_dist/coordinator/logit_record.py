"""The record of training logits (`distillation.record_logits`), with which a cohort teaches a later one.

Of each sample and view it has the logits of the last step that showed it, as they arrived here. It lies in
memory, goes with every checkpoint, and comes back from it: what a run that went back had recorded since is
gone. The end of the run writes a file of stored logits for each recorded student into the run folder.

Shapes: B rows, C classes, L kept logits of a row, N samples, V views: the test view, then those of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.coordinator.aggregator import Answer
from kdcl_dist.coordinator.aligned_logits import Aligned
from kdcl_dist.data.logits_columns import batch_of, columns_of
from kdcl_dist.data.sampling import student_seed
from kdcl_dist.data.stored_logits import TEST_VIEW, LogitsInfo
from kdcl_dist.run.metrics import ENSEMBLE
from kdcl_dist.run.record import read_record
from kdcl_dist.run.run import Run
from kdcl_dist.utils.text import shown

__all__ = ["RECORD_PREFIX", "LogitRecord", "record_bytes"]

#: Prefix of the record's parts of a checkpoint; no student's name can begin with it.
RECORD_PREFIX = "_logits-"
#: Bytes of one part of a checkpoint, and of a record batch of a file.
PART_BYTES = 64 << 20
#: Below the logarithm of the smallest float32 above 0. Stands for that of 0: files have finite numbers.
LOG_0 = -104.0

Array = npt.NDArray[Any]
Predict = Callable[[Aligned], Tensor]


class LogitRecord:
    """What is recorded of a run; nothing where the recipe does not ask for it.

    Args:
        recipe: the run.
        samples, classes: N, C.
    """

    def __init__(self, recipe: Recipe, samples: int, classes: int) -> None:
        self.recipe = recipe
        asked = recipe.distillation.record_logits
        names = [] if asked is None else asked.students
        self.rows = {name: _Rows(recipe, samples, classes) for name in names}

    def add(self, epoch: int, answer: Answer, predict: Predict) -> None:
        """Record a part of a training step; nothing of a student that is absent or has bad numbers.

        Args:
            epoch: from 0.
            answer: to the logits of the part.
            predict: gives the log-probabilities (B, C) of the ensemble, as `Aggregator.predict`.
        """
        view = self.recipe.data.view_of(epoch)
        for name, rows in self.rows.items():
            if name == ENSEMBLE:
                assert answer.known is not None, "all students have the samples of a step"
                rows.put(view, answer.known.ids, predict(answer.known).clamp(min=LOG_0))
            elif (index := self.recipe.names.index(name)) not in answer.bad:
                part = answer.parts[index]
                rows.put(view, part.ids, part.logits)

    def add_held_out(self, aligned: Aligned, senders: Sequence[int], predict: Predict) -> None:
        """Record the test view of held-out samples, by which `general` weighs a file.

        Args:
            aligned: the logits of a batch of them.
            senders: indices of the students that have sent theirs.
            predict: as of `add`.
        """
        for name, rows in self.rows.items():
            if name == ENSEMBLE:
                rows.put(TEST_VIEW, aligned.ids, predict(aligned).clamp(min=LOG_0))
            elif (index := self.recipe.names.index(name)) in senders:
                own = aligned.present(index)
                rows.put(TEST_VIEW, own.ids, own.logits[index])

    def parts(self, step: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """The content for a checkpoint before `step`, as named parts of about `PART_BYTES`."""
        blocks = ((name, *block) for name, rows in self.rows.items() for block in rows.blocks())
        for number, (name, view, ids, columns) in enumerate(blocks):
            tensors = {key: torch.from_numpy(values) for key, values in columns.items()}
            part = {"student": name, "view": view, "ids": torch.from_numpy(ids), **tensors}
            yield f"{RECORD_PREFIX}{number:05d}", part

    def load(self, part: Mapping[str, Any]) -> None:
        """Load one of `parts`."""
        rows = self.rows[part["student"]]
        columns = {name: part[name].numpy() for name in rows.fields}
        rows.put_columns(part["view"], part["ids"].numpy(), columns)

    def save(self, run: Run) -> list[str]:
        """Write the files, each whole or not at all, but none without rows; returns a line on each.

        Raises:
            StorageError: the storage refuses.
        """
        lines = []
        for name, rows in self.rows.items():
            if not len(rows):
                lines.append(f"{name} has taken part in no step, so it has no file")
                continue
            file, info = f"logits/{name}.arrow", self._info(name, run)
            run.folder.write(file, rows.arrow(info))
            lines.append(f"{run.folder}/{file}: {len(rows):,} rows of {info.seen}")
        return lines

    def _info(self, name: str, run: Run) -> LogitsInfo:
        asked, known = self.recipe.distillation.record_logits, read_record(run.folder)
        assert asked is not None
        seed, augment = _views(self.recipe, name)
        rows = self.rows[name]
        return LogitsInfo(
            tuple(known["class_names"]),
            known["data"]["train"],
            rows.there_VN.shape[1],
            source=shown(f"{name} of {run.folder}, as it trained"),
            views=len(rows.there_VN) - 1,
            seed=seed,
            augment=augment,
            top_k=rows.top_k,
            dtype=asked.number_format,
        )


class _Rows:
    """The rows of one student, or of the ensemble.

    Attributes:
        there_VN: which rows there are. fields: by column the numbers (V, N, ...).
    """

    def __init__(self, recipe: Recipe, samples: int, classes: int) -> None:
        self.top_k, self.dtype, views = _form(recipe, classes)
        self.there_VN = np.zeros((views + 1, samples), bool)
        sample = columns_of(torch.zeros(1, classes), self.top_k, self.dtype)
        # Zeros take no memory until they are written.
        self.fields = {
            name: np.zeros((views + 1, samples, *values.shape[1:]), values.dtype)
            for name, values in sample.items()
        }

    def __len__(self) -> int:
        return int(self.there_VN.sum())

    def put(self, view: int, ids_B: Tensor, logits_BC: Tensor) -> None:
        """Record the logits of a view of some samples in place of earlier ones."""
        if len(ids_B):
            columns = columns_of(logits_BC.float(), self.top_k, self.dtype)
            largest = np.finfo(self.dtype).max
            for name in columns.keys() - {"classes"}:
                columns[name] = columns[name].clip(-largest, largest)
            self.put_columns(view, ids_B.numpy(), columns)

    def put_columns(self, view: int, ids: Array, columns: Mapping[str, Array]) -> None:
        """As `put`, with the columns of the rows."""
        for name, values in columns.items():
            self.fields[name][view + 1, ids] = values
        self.there_VN[view + 1, ids] = True

    def blocks(self) -> Iterator[tuple[int, Array, dict[str, Array]]]:
        """All rows: the view, the ids, and the columns of up to `PART_BYTES` at a time."""
        most = max(1, PART_BYTES // sum(array[0, 0].nbytes for array in self.fields.values()))
        for view, there_N in enumerate(self.there_VN, TEST_VIEW):
            found = np.flatnonzero(there_N)
            for start in range(0, len(found), most):
                ids = found[start : start + most]
                yield view, ids, {name: array[view + 1, ids] for name, array in self.fields.items()}

    def arrow(self, info: LogitsInfo) -> bytes:
        """The content of a file of stored logits with these rows."""
        sink, schema = pa.BufferOutputStream(), info.schema()
        with pa.ipc.new_file(sink, schema) as writer:
            for view, ids, columns in self.blocks():
                writer.write_batch(batch_of(schema, ids, view, columns))
        return bytes(sink.getvalue())


def record_bytes(recipe: Recipe, samples: int, classes: int) -> int:
    """Bytes of all rows of a record; 0 without one."""
    if (asked := recipe.distillation.record_logits) is None:
        return 0
    top_k, dtype, views = _form(recipe, classes)
    sample = columns_of(torch.zeros(1, classes), top_k, dtype)
    row = 1 + sum(values.nbytes for values in sample.values())
    return len(asked.students) * views * samples * row


def _form(recipe: Recipe, classes: int) -> tuple[int | None, str, int]:
    """Kept logits of a row, None: those of all classes; their type; and the training views."""
    asked, views = recipe.distillation.record_logits, recipe.data.views
    assert asked is not None
    assert views is not None
    top_k = None if asked.top_k is None or asked.top_k >= classes else asked.top_k
    return top_k, asked.number_format, views


def _views(recipe: Recipe, name: str) -> tuple[int | None, tuple[dict[str, Any], ...]]:
    """The seed of the recorded training views, None: each student has its own; and their transforms."""
    common = tuple(item.item() for item in recipe.data.augment)
    if not recipe.distillation.invariant:
        return recipe.seed, common
    if name == ENSEMBLE:
        return None, common
    student = recipe.students[index := recipe.names.index(name)]
    return student_seed(recipe.seed, index, student.seed), tuple(recipe.augment_of(student))
