"""The classes of a table's labels."""

from __future__ import annotations

from collections.abc import Sequence

from kdcl_dist.data.importers.label_values import LabelValues, Value, classes_of
from kdcl_dist.data.sources.table import Table
from kdcl_dist.errors import DataError

__all__ = ["classes_and_labels"]


def classes_and_labels(
    table: Table, label: str, values: LabelValues, known: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[Value, int]]:
    """Class names, and the class of each value of the label's column.

    Args:
        table: the table.
        label: the column.
        values: its values.
        known: the classes of the training set; None: this is the training set, whose classes are the class
            names of Hugging Face's metadata, or else the distinct values, sorted.

    Raises:
        DataError: a label is no class, or two names differ in their spelling only.
    """
    names, place = table.names_of(label), f"column {label!r}"
    if known is None:
        return classes_of({"training": values}, names, table.name, place, "; leave out rows without a label")
    label_of = {value: _class_of(value, names, known) for value in values.distinct}
    if unknown := sorted(str(value) for value, found in label_of.items() if found < 0):
        shown = ", ".join(map(repr, known[:10])) + (", ..." if len(known) > 10 else "")
        raise DataError(
            f"{table.name}: {place} has {unknown[0]!r}, which is not one of the {len(known)} classes of "
            f"data.train ({shown})"
        )
    return tuple(known), label_of


def _class_of(value: Value, names: Sequence[str], known: Sequence[str]) -> int:
    """The training set's class of a value: by its name, or else by its number; -1 if there is none."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    named = is_number and bool(names)
    if named and not 0 <= int(value) < len(names):
        return -1
    text = names[int(value)] if named else str(value)
    if text in known:
        return list(known).index(text)
    by_number = is_number and not named and not all(name.lstrip("-").isdecimal() for name in known)
    return int(value) if by_number and 0 <= int(value) < len(known) else -1
