"""`Run`: any run folder from Python."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from kdcl_dist.api.build import DataSets, Network, Student, name_objects
from kdcl_dist.api.callbacks import Callback
from kdcl_dist.api.display import results_html
from kdcl_dist.api.session import run_session
from kdcl_dist.config.recipe import Recipe
from kdcl_dist.config.stored_imports import check_stored_imports, import_strings
from kdcl_dist.data.dataset import ImageDataset
from kdcl_dist.data.loader import normalise
from kdcl_dist.data.samples import Inputs, forward
from kdcl_dist.evaluation import Evaluation
from kdcl_dist.evaluation import evaluate as run_evaluation
from kdcl_dist.export.preprocessing import Kind
from kdcl_dist.export.source import Source, label_of
from kdcl_dist.export.writing import export as write_export
from kdcl_dist.report.writing import write_report
from kdcl_dist.run.events import Event, Values
from kdcl_dist.run.metrics import ENSEMBLE, read_metrics
from kdcl_dist.run.record import read_record, scores_of
from kdcl_dist.run.run import load_run
from kdcl_dist.run.uris import displayed
from kdcl_dist.training import Launcher
from kdcl_dist.utils.objects import MODULE, Given, carrying, pickled

__all__ = ["Report", "Run"]

#: An epoch from 1 on, the latest checkpoint, or each student's best epoch.
When = int | Literal["best", "last"]


class Report(str):
    """The path or URI of a report; in a notebook it shows the page, if that is on this machine."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        if not Path(self).is_file():
            return html.escape(self)
        page = html.escape(Path(self).read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" width="100%" height="700" frameborder="0"></iframe>'


class Run:
    """A run folder: finished, running, or ended before its time.

    Objects that the run was started with are not in its folder; `students` and `data`, as they were given to
    `train`, pass them again, and `objects` by the strings in the recipe.

    Args:
        path: path or URI of the run folder.
        students, data: as of `kdcl_dist.train`.
        objects: by their strings in the recipe, such as "object:small", for those of another name.
        allow_imports: modules outside this package whose code the recipe may run, and URLs of servers that
            may get the samples, as `--allow-imports`.

    Raises:
        RunFolderError: the folder is no run folder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        students: Mapping[str, Network | Student] | None = None,
        data: DataSets | None = None,
        objects: Mapping[str, Any] | None = None,
        allow_imports: Collection[str] = (),
    ) -> None:
        self.path = os.fspath(path)
        self.recipe, self._folder = load_run(self.path)
        self.allow_imports = [allow_imports] if isinstance(allow_imports, str) else list(allow_imports)
        self._objects = {**name_objects(students, data)[2], **(objects or {})}

    @property
    def state(self) -> str:
        """starting, running, interrupted, failed or finished; unknown without a record."""
        return str(read_record(self._folder).get("state", "unknown"))

    @property
    def results(self) -> Values:
        """Test results by student and for "ensemble": loss (nats), top1 and top5 (shares).

        They are those of the run's end; before it, of the last epoch that was tested. Empty before that.
        """
        return scores_of(read_record(self._folder)) or self._last_test()

    def _last_test(self) -> Values:
        table = read_metrics(self._folder).filter(pc.field("split") == "test")
        found: Values = {}
        if len(table):
            last = table.filter(pc.field("epoch") == pc.max(table["epoch"]))
            for row in last.to_pylist():
                found.setdefault(row["student"], {})[row["name"]] = row["value"]
        return found

    def metrics(self) -> Any:
        """All recorded figures: student, epoch (from 0), step, split, name, value.

        Returns:
            A DataFrame if pandas is installed, else a pyarrow Table.

        Raises:
            RunFolderError: a file is damaged.
        """
        table = read_metrics(self._folder)
        try:
            return table.to_pandas()
        except ImportError:  # no pandas
            return table

    def student(self, name: str = ENSEMBLE, epoch: When = "last") -> nn.Module:
        """A trained network in evaluation mode, on the CPU.

        Args:
            name: of the student, or "ensemble": the logarithms of the students' mean probabilities.
            epoch: its number from 1, "best" for the student's best, or "last" for the latest checkpoint.

        Raises:
            UserError: there is no such student or checkpoint, or the network cannot be built.
        """
        return self._source(name, epoch).network

    def predict(self, inputs: Inputs, student: str = ENSEMBLE, epoch: When = "last") -> Tensor:
        """The probabilities of the classes, (B, C) float32.

        Args:
            inputs: a batch as the network takes it, a tensor, or a tuple or dict of tensors; nothing is done
                to it. Only images of whole numbers, uint8 (B, C, H, W), are normalised as in training. No
                test view is applied.
            student, epoch: as of `student`.

        Raises:
            UserError: as `student`.
        """
        source = self._source(student, epoch)
        train = source.training_data.train
        if isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and isinstance(train, ImageDataset):
            inputs = normalise(inputs, train.mean, train.std)
        with torch.no_grad():
            logits_BC: Tensor = forward(source.network, inputs)
        return torch.softmax(logits_BC.float(), dim=1)

    @property
    def classes(self) -> list[str]:
        """The names of the classes in the order of the columns of `predict`."""
        first = next(iter(self.recipe.networks.values()))
        return list(self._source(first.name, "last").training_data.test.classes)

    def evaluate(self, data: Any = None, epoch: When = "last", device: str = "auto") -> Evaluation:
        """Test the students and the ensemble; as `kdcl evaluate`.

        Args:
            data: a test set in place of the recipe's: a path, an import string or an object.
            epoch: as of `student`.
            device: "cpu", "cuda", or "auto" for a GPU if there is one.

        Raises:
            UserError: the data, a network or a checkpoint cannot be used.
        """
        more = {}
        if data is not None and not isinstance(data, str | os.PathLike):
            more, data = {f"{MODULE}:evaluated_set": Given(data)}, f"{MODULE}:evaluated_set"
        with self._code(more):
            return run_evaluation(
                self.path,
                device=device,
                warn=_warn,
                allow_imports=self.allow_imports,
                data=None if data is None else os.fspath(data),
                epoch=None if epoch == "last" else epoch,
            )

    def export(
        self,
        student: str = ENSEMBLE,
        kind: Kind = "state_dict",
        *,
        epoch: When = "last",
        to: str | os.PathLike[str] | None = None,
    ) -> Path:
        """Write a student, or the ensemble, as a folder that does not need this package; as `kdcl export`.

        Raises:
            UserError: as `student`; or the folder exists, or the format cannot express the network.
        """
        with self._code():
            return write_export(
                self.path,
                student,
                kind,
                epoch=None if epoch == "last" else epoch,
                to=None if to is None else os.fspath(to),
                warn=_warn,
                allow_imports=self.allow_imports,
            )

    def report(self, out: str | os.PathLike[str] | None = None) -> Report:
        """Write the page of the run, by default report.html in its folder; a notebook shows it.

        Raises:
            RunFolderError: the page cannot be written, or there is nothing to report.
        """
        return Report(write_report([self.path], None if out is None else os.fspath(out)))

    def resume(
        self,
        epochs: int | None = None,
        *,
        launcher: Launcher = "ray",
        on_event: Callable[[Event], None] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Run:
        """Go on from the latest checkpoint.

        Args:
            epochs: how many in all, where no learning rate depends on them. None: those of the recipe.
            launcher, on_event, callbacks: as of `kdcl_dist.train`.

        Raises:
            UserError: the run cannot be resumed so.
            KdclError: the run failed.
        """
        recipe = self._recipe_for(epochs)
        run_session(
            recipe,
            pickled(self._objects),
            launcher=launcher,
            storage=self._folder.parent.uri,
            name=label_of(self._folder),
            resume=True,
            on_event=on_event,
            callbacks=callbacks,
            stop=None,
        )
        return Run(self.path, objects=self._objects, allow_imports=self.allow_imports)

    def _recipe_for(self, epochs: int | None) -> Recipe:
        """The stored recipe, of which the user has allowed all code, with a number of epochs."""
        with self._code():
            fields = {text.partition(":")[0]: text for text in import_strings(self.recipe)}
            check_stored_imports(fields, displayed(self.path), self.allow_imports)
        changes = {} if epochs is None else {"epochs": epochs}
        return Recipe.model_validate({**self.recipe.model_dump(), **changes})

    @contextmanager
    def _code(self, more: Mapping[str, Any] | None = None) -> Iterator[None]:
        """The objects of the run are known in the block."""
        with carrying(pickled({**self._objects, **(more or {})})):
            yield

    def _source(self, name: str, epoch: When) -> Source:
        with self._code():
            return Source.load(
                self.path,
                name,
                epoch=None if epoch == "last" else epoch,
                warn=_warn,
                allow_imports=self.allow_imports,
            )

    def __repr__(self) -> str:
        return f"Run({displayed(self.path)!r}): {self.state}, {', '.join(self.recipe.names)}"

    def _repr_html_(self) -> str:
        head = f"<b>{html.escape(displayed(self.path))}</b>: {html.escape(self.state)}"
        return f"<div>{head}</div>{results_html(self.results)}"


def _warn(text: str) -> None:
    import warnings

    warnings.warn(text, stacklevel=3)
