"""The students of a cohort whose logits lie in files: the coordinator reads the rows of each step.

Shapes: S students, B samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.rounds import Kind
from kdcl_dist.coordinator.aligned_logits import Aligned
from kdcl_dist.data.stored_fit import check_stored_data
from kdcl_dist.data.stored_logits import TEST_VIEW, StoredLogits
from kdcl_dist.errors import DataError, KdclError
from kdcl_dist.exchange.message import Contribution, Message

__all__ = ["StoredMembers"]


class StoredMembers:
    """The stored members of a recipe.

    Args:
        names: of all students.
        files: by the members' indices in the cohort.
        of_split: whether validation samples are training samples that were taken out.
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        files: Mapping[int, StoredLogits] | None = None,
        *,
        of_split: bool = False,
    ) -> None:
        self.names, self.files, self.of_split = names, dict(files or {}), of_split

    @classmethod
    def open(cls, recipe: Recipe) -> StoredMembers:
        """Open all files of a recipe.

        Raises:
            DataError: as `StoredLogits`.
        """
        files = {index: StoredLogits(path) for index, path in recipe.stored.items()}
        return cls(recipe.names, files, of_split=recipe.data.val is None)

    def check(self, recipe: Recipe, data: str, classes: int) -> None:
        """See that this host's files are of the data set that the students read; as `check_stored_data`."""
        for index, file in self.files.items():
            check_stored_data(recipe.students[index], file.info, data, classes)

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the files, by the members' names."""
        return {self.names[index]: file.fingerprint for index, file in self.files.items()}

    def with_training_rows(self, aligned: Aligned, epoch: int) -> Aligned:
        """The logits of a training step with those of the files, which have the epoch's view of each sample.

        Args:
            aligned: of the other students; its tensors are changed.
            epoch: from 0.

        Raises:
            DataError: as `StoredLogits.rows`, or a sample has no row.
        """
        for index, file in self.files.items():
            view = file.info.view_of(epoch)
            found_B = self._add(index, aligned, view)
            if not bool(found_B.all()):
                sample = int(aligned.ids[~found_B][0])
                raise DataError(f"{file.path} lacks sample {sample}, view {view}", student=self.names[index])
        return aligned

    def with_test_rows(self, aligned: Aligned, kind: Kind) -> Aligned:
        """The logits of held-out or validation samples with those that the files have of their test view.

        Test samples, and those of a validation set of its own, are of another data set than the files.

        Args:
            aligned: as of `with_training_rows`.
            kind: of the round.

        Raises:
            DataError: as `StoredLogits.rows`.
        """
        if kind is Kind.HOLDOUT or (kind is Kind.VALIDATE and self.of_split):
            for index in self.files:
                self._add(index, aligned, TEST_VIEW)
        return aligned

    def parts(self, parts: Sequence[Contribution], aligned: Aligned) -> list[Contribution]:
        """Each student's rows of a training round, with those of the files in the order of `aligned`."""
        ids_B, labels_B, logits_SBC = aligned.ids, aligned.labels, aligned.logits
        return [
            Contribution(ids_B, labels_B, logits_SBC[index]) if index in self.files else part
            for index, part in enumerate(parts)
        ]

    def write_rows(self, aligned: Aligned, outgoing: Message) -> None:
        """Write the files' rows into the answer to students that learn from their peers' own logits."""
        logits = [aligned.logits[index] for index in self.files]
        largest = torch.finfo(outgoing.layout.dtype).max  # a file may have logits that half precision has not
        outgoing.write_rows(aligned.ids.repeat(len(logits)), torch.cat(logits).clamp(-largest, largest))

    def _add(self, index: int, aligned: Aligned, view: int) -> Tensor:
        """Add the rows of one file; returns which samples have one, bool (B,)."""
        try:
            logits_BC, found_B = self.files[index].rows(aligned.ids.numpy(), view)
        except KdclError as error:
            raise error.at(student=self.names[index]) from None
        assert aligned.age is not None, "a member without a message has ages"
        aligned.logits[index] = logits_BC
        aligned.age[index, found_B] = 0
        return found_B
