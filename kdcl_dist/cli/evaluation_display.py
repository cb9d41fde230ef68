"""An evaluation on the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from kdcl_dist.evaluation import Evaluation
from kdcl_dist.utils.text import NAME, shown

__all__ = ["class_table", "mistakes_table", "scores_table"]

#: Rows of the table of frequent mistakes, for each student.
MISTAKES = 5


def scores_table(found: Evaluation) -> Table:
    """A row for each student, and one for the ensemble."""
    columns = ("student", "loss", "top-1 %", "top-5 %", "ECE %", *(["epoch"] if found.epochs else []))
    table = _table(f"step {found.step}, {found.samples} test samples", *columns)
    for name, values in found.results.items():
        shares = (values["top1"], values["top5"], found.details[name].calibration_error)
        cells = [f"{values['loss']:.4f}", *(f"{100 * share:.2f}" for share in shares)]
        if found.epochs:
            cells.append(str(found.epochs.get(name.partition("/")[0], "")))
        table.add_row(_name(name), *cells)
    return table


def class_table(found: Evaluation) -> Table:
    """The accuracy of each class: a row for each class, a column for each student."""
    table = _table("top-1 % of each class", "class", "samples", *found.details)
    confusion_CC = next(iter(found.details.values())).confusion_CC
    accuracies = [details.accuracies for details in found.details.values()]
    for name, count, *own in zip(found.classes, confusion_CC.sum(dim=1).tolist(), *accuracies, strict=True):
        cells = ("-" if share is None else f"{100 * share:.2f}" for share in own)
        table.add_row(_name(name), str(count), *cells)
    return table


def mistakes_table(found: Evaluation) -> Table:
    """The most frequent mistakes of each student."""
    table = _table("most frequent mistakes", "student", "class", "taken for", "samples")
    for student, details in found.details.items():
        for true, answer, number in details.most_confused(MISTAKES):
            names = (student, found.classes[true], found.classes[answer])
            table.add_row(*map(_name, names), str(number))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(
            _name(name), justify="left" if name in ("student", "class", "taken for") else "right"
        )
    return table


def _name(name: str) -> Text:
    """A name that may come from elsewhere."""
    return Text(shown(name, NAME))
