"""The logit bank: each student's latest logits of each sample, and their step.

The bank stores logits in half precision, relative to the sample's largest logit. No soft target changes,
since a constant added to all logits has no effect, and the precision is highest where the probability is.
Relative logits below -65504, the lowest number of half precision, are stored as -65504: their probability
is 0 either way.

With `top_k` the bank stores the K largest logits with their classes, and the total of the other classes.
Each of the other classes counts as an equal share of the total, so at T = 1 the probabilities of the stored
classes are exact.

Reading and writing a step's rows takes time in proportion to the rows, whatever the number of samples.

Shapes: S students, N samples, C classes, K kept classes, B rows.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.errors import RecipeError, one_line

__all__ = ["PREFIX", "LogitBank", "bank_bytes", "make_bank"]

#: Prefix of the bank's parts of a checkpoint; no student's name can begin with it.
PREFIX = "_bank-"
#: Bytes of one part: the memory that writing and reading a checkpoint takes besides the bank.
PART_BYTES = 256 << 20
#: The lowest number of half precision.
LOWEST = -65504.0

Array = npt.NDArray[Any]


class LogitBank:
    """All students' latest logits.

    Args:
        students, samples, classes: S, N, C.
        top_k: K; None stores all classes.
        folder: for a file that is mapped into memory. The file has no name, so it vanishes however the
            process ends. None: in memory.
        max_staleness: largest age in steps at which logits still count. None: no limit.

    Raises:
        OSError: no file can be made in the folder.
    """

    def __init__(
        self,
        students: int,
        samples: int,
        classes: int,
        *,
        top_k: int | None = None,
        folder: str | None = None,
        max_staleness: int | None = None,
    ) -> None:
        self.samples, self.classes, self.max_staleness = samples, classes, max_staleness
        self.folder = folder
        self.fields = {
            name: _zeros((students, samples, *shape), dtype, folder)
            for name, (shape, dtype) in _layout(classes, top_k).items()
        }
        #: By entry the step + 1, and by sample the label + 1; 0 is unknown, and takes no memory yet.
        self.steps = _zeros((students, samples), np.int32, folder)
        self.labels = _zeros((samples,), np.int32, folder)

    def extend(self, students: int) -> None:
        """Make room for students that come after those of the bank, to so many in all."""
        for name, array in self.fields.items():
            self.fields[name] = _extended(array, students, self.folder)
        self.steps = _extended(self.steps, students, self.folder)

    def put(self, student: int, ids_B: Tensor, logits_BC: Tensor, step: int) -> None:
        """Store a student's logits of a step in place of its earlier logits of these samples."""
        ids = ids_B.numpy()
        for name, rows in _packed(logits_BC, self.fields).items():
            self.fields[name][student, ids] = rows
        self.steps[student, ids] = step + 1

    def latest(self, ids_B: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """All students' latest logits of some samples, float32 (S, B, C), and their age in steps, (S, B).

        Age -1: there are no logits, or they are too old; the values at this place mean nothing.
        """
        ids = ids_B.numpy()
        found = {name: torch.from_numpy(np.asarray(array[:, ids])) for name, array in self.fields.items()}
        return _unpacked(found, self.classes), torch.from_numpy(self._ages(self.steps[:, ids], step))

    def contradicts(self, ids_B: Tensor, labels_B: Tensor) -> Tensor:
        """The rows, ascending, whose label differs from the stored one; the other labels are stored."""
        ids, labels = ids_B.numpy(), labels_B.numpy()
        known = self.labels[ids] - 1
        wrong = (known >= 0) & (known != labels)
        self.labels[ids[~wrong]] = labels[~wrong] + 1
        return torch.from_numpy(np.flatnonzero(wrong))

    def parts(self, step: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """The content for a checkpoint before `step`, as named parts of about `PART_BYTES`.

        Entries that will be too old at that step are left out.
        """
        per_entry = sum(array[0, 0].nbytes for array in self.fields.values()) + 8
        rows, number = max(1, PART_BYTES // per_entry), 0
        for student, steps in enumerate(self.steps):
            live = np.flatnonzero(self._ages(steps, step) >= 0)
            for start in range(0, len(live), rows):
                ids = live[start : start + rows]
                arrays = {name: array[student, ids] for name, array in self.fields.items()}
                arrays |= {"ids": ids.astype(np.int32), "steps": steps[ids]}
                tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
                yield f"{PREFIX}{number:05d}", {"student": student, **tensors}
                number += 1

    def load(self, part: Mapping[str, Any]) -> None:
        """Load one of `parts`."""
        student, ids = part["student"], part["ids"].numpy()
        for name, array in (*self.fields.items(), ("steps", self.steps)):
            array[student, ids] = part[name].numpy()

    def close(self) -> None:
        """Free the memory or the file, even if a stored traceback still refers to the bank."""
        self.fields, self.steps, self.labels = {}, np.empty((0, 0)), np.empty(0)

    def _ages(self, steps: Array, step: int) -> Array:
        ages: Array = np.where(steps > 0, step + 1 - steps, -1)
        if self.max_staleness is not None:
            ages[ages > self.max_staleness] = -1
        return ages


def bank_bytes(students: int, samples: int, classes: int, top_k: int | None = None) -> int:
    """Bytes of a bank: 2 C + 4 for each sample and student, less with `top_k`; plus 4 for each sample."""
    layout = _layout(classes, top_k).values()
    entry = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in layout)
    return students * samples * (entry + 4) + samples * 4


def _layout(classes: int, top_k: int | None) -> dict[str, tuple[tuple[int, ...], npt.DTypeLike]]:
    """Shape and type of the stored fields of one entry."""
    if top_k is None or top_k >= classes:
        return {"logits": ((classes,), np.float16)}
    return {
        "logits": ((top_k,), np.float16),
        "classes": ((top_k,), np.int16 if classes < 1 << 15 else np.int32),
        "rest": ((), np.float16),
    }


def _zeros(shape: tuple[int, ...], dtype: npt.DTypeLike, folder: str | None) -> Array:
    """Zeros that take memory, or space in a file, only once they are written."""
    if folder is None or not math.prod(shape):
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


def _extended(array: Array, students: int, folder: str | None) -> Array:
    """A copy with room for so many students."""
    larger = _zeros((students, *array.shape[1:]), array.dtype, folder)
    larger[: len(array)] = array
    return larger


def _packed(logits_BC: Tensor, fields: Mapping[str, Array]) -> dict[str, Array]:
    """Logits in the stored form, by field."""
    relative_BC = logits_BC.float() - logits_BC.float().amax(dim=1, keepdim=True)
    if "classes" not in fields:
        return {"logits": _half(relative_BC)}
    stored = fields["classes"]
    logits_BK, classes_BK = relative_BC.topk(stored.shape[2], dim=1)
    others_BC = relative_BC.scatter(1, classes_BK, -math.inf)
    rest_B = others_BC.logsumexp(dim=1) - math.log(relative_BC.shape[1] - stored.shape[2])
    classes = classes_BK.numpy().astype(stored.dtype)
    return {"logits": _half(logits_BK), "classes": classes, "rest": _half(rest_B)}


def _unpacked(found: Mapping[str, Tensor], classes: int) -> Tensor:
    """The logits (S, B, C) of entries in the stored form."""
    logits = found["logits"].float()
    if "classes" not in found:
        return logits
    rest_SBC = found["rest"].float()[:, :, None].expand(-1, -1, classes)
    return rest_SBC.scatter(2, found["classes"].long(), logits)


def _half(values: Tensor) -> Array:
    return values.clamp(min=LOWEST).half().numpy()


def make_bank(recipe: Recipe, samples: int, classes: int) -> LogitBank | None:
    """An empty bank for a recipe; None if the recipe needs no bank.

    Raises:
        RecipeError: no file can be made in its folder.
    """
    if not (distillation := recipe.distillation).keeps_logits:
        return None
    folder, top_k = distillation.bank.folder, distillation.bank.top_k
    try:
        return LogitBank(
            len(recipe.students),
            samples,
            classes,
            top_k=top_k,
            folder=folder,
            max_staleness=distillation.max_staleness,
        )
    except OSError as error:
        raise RecipeError(f"distillation.bank.folder: {folder!r} takes no file: {one_line(error)}") from error
