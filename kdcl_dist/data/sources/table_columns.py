"""Which column of a table is the label, and what a sample is made of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from kdcl_dist.errors import DataError

__all__ = ["NUMBERS", "Columns", "choose_columns", "is_image"]

#: The names of label columns that need not be given.
LABELS = ("label", "target", "class")
#: Columns that pandas writes for its index.
INDEX = re.compile(r"|Unnamed: 0|__index_level_\d+__")
#: The name of the vector of all columns of numbers, where a sample has other tensors too.
NUMBERS = "numbers"
#: More columns than any table of features has.
MAX_COLUMNS = 10_000


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are for.

    Attributes:
        label: the label.
        image: the images, which are the samples; None: a sample is made of the numbers and lists.
        numbers: columns of one number a row, together one vector.
        lists: columns of a list of numbers a row, each a tensor of its own, by whether the numbers are whole.
        ignored: columns that are not used.
    """

    label: str
    image: str | None
    numbers: tuple[str, ...]
    lists: dict[str, bool]
    ignored: tuple[str, ...]

    @property
    def used(self) -> list[str]:
        """All columns that are read, the label first."""
        return [self.label, *([self.image] if self.image else [*self.numbers, *self.lists])]

    @property
    def tensors(self) -> list[str]:
        """The names of a sample's tensors."""
        return [*([NUMBERS] if self.numbers else []), *self.lists]

    def __str__(self) -> str:
        """What a sample is, for people."""
        if self.image:
            return f"images in column {self.image!r}"
        parts = [f"{len(self.numbers)} numbers ({_named(self.numbers)}) as one vector"] * bool(self.numbers)
        parts += [
            f"{'whole numbers' * whole or 'numbers'} of list {name!r}" for name, whole in self.lists.items()
        ]
        return ", ".join(parts)

    def check(self, schema: pa.Schema, where: str, *, labelled: bool = True) -> None:
        """See that another table has these columns, of types that fit.

        Args:
            schema, where: of the other table.
            labelled: whether it needs the label's too.

        Raises:
            DataError: it has not.
        """
        _check_names(schema, where)
        kinds = {name: _kind(schema.field(name).type) for name in schema.names}
        for name in self.used[not labelled :]:
            if name not in kinds:
                raise DataError(
                    f"{where}: no column {name!r}, which data.train has; it has {_named(schema.names)}"
                )
            wanted = _wanted(self, name)
            if kinds[name] not in wanted:
                raise DataError(
                    f"{where}: column {name!r} is {schema.field(name).type}; in data.train it is {wanted[0]}"
                )


def choose_columns(schema: pa.Schema, where: str, label: str | None = None) -> Columns:
    """The use of each column of a training set.

    A column of images makes all other columns but the label unused. Else all columns of numbers are one
    vector, and each column of lists of numbers is a tensor. Columns of pandas' index are not used.

    Args:
        schema: the columns.
        where: the table, for messages.
        label: the label's column; None: the one of `LABELS` that is there.

    Raises:
        DataError: there is no such column, no other column, or one that is neither numbers nor images.
    """
    _check_names(schema, where)
    label = _label(schema, where, label)
    kinds = {name: _kind(schema.field(name).type) for name in schema.names if name != label}
    index = tuple(name for name in kinds if INDEX.fullmatch(name))
    kinds = {name: kind for name, kind in kinds.items() if name not in index}
    if images := [name for name, kind in kinds.items() if kind == "images"]:
        if len(images) > 1:
            raise DataError(f"{where}: columns {_named(images)} hold images: leave one of them")
        others = tuple(name for name in kinds if name != images[0])
        return Columns(label, images[0], (), {}, (*index, *others))
    for name, kind in kinds.items():
        if kind is None:
            raise DataError(_unusable(where, name, schema.field(name).type))
    if not kinds:
        raise DataError(f"{where}: no column but {_named((label, *index))}: there is nothing to learn from")
    lists = {
        name: kind == "lists of whole numbers" for name, kind in kinds.items() if str(kind)[:5] == "lists"
    }
    return Columns(label, None, tuple(name for name in kinds if name not in lists), lists, index)


def is_image(kind: pa.DataType) -> bool:
    """Whether a column holds bytes of image files: binary, or a struct with a field `bytes`."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and is_image(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _check_names(schema: pa.Schema, where: str) -> None:
    if len(schema.names) > MAX_COLUMNS:
        raise DataError(f"{where}: {len(schema.names):,} columns, where {MAX_COLUMNS:,} are the most")
    if twice := sorted(name for name, times in Counter(schema.names).items() if times > 1):
        raise DataError(f"{where}: column {twice[0]!r} is there more than once")


def _label(schema: pa.Schema, where: str, given: str | None) -> str:
    found = [name for name in ((given,) if given is not None else LABELS) if name in schema.names]
    if not found:
        wanted = repr(given) if given is not None else f"{', '.join(LABELS[:-1])} or {LABELS[-1]}"
        raise DataError(
            f"{where}: no column {wanted} for the label; it has {_named(schema.names)}: name one in "
            "data.label, or with --label"
        )
    if len(found) > 1:
        raise DataError(
            f"{where}: columns {_named(found)} may both be the label: name one in data.label, or with --label"
        )
    kind = schema.field(found[0]).type
    if pa.types.is_null(kind):
        raise DataError(f"{where}: column {found[0]!r} has no value: the table has no rows, or no labels")
    if not is_label(kind):
        raise DataError(
            f"{where}: column {found[0]!r} is {kind}; a label must be a whole number, text or a bool"
        )
    return found[0]


def is_label(kind: pa.DataType) -> bool:
    """Whether values of a type can be labels."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view
    return any(test(kind) for test in (pa.types.is_integer, pa.types.is_boolean, *texts))


def _kind(kind: pa.DataType) -> str | None:
    """What a column holds, for people; None if it is of no use."""
    if is_image(kind):
        return "images"
    if _is_number(kind):
        return "numbers"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = kind.value_type
        if pa.types.is_floating(inner):
            return "lists of numbers"
        return "lists of whole numbers" if _is_number(inner) else None
    return None


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _wanted(columns: Columns, name: str) -> tuple[str, ...]:
    if name == columns.image:
        return ("images",)
    if name in columns.lists:
        whole, either = "lists of whole numbers", "lists of numbers"
        return (whole,) if columns.lists[name] else (either, whole)
    return ("numbers",) if name in columns.numbers else ("numbers", None)  # type: ignore[return-value]


def _unusable(where: str, name: str, kind: pa.DataType) -> str:
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
    if texts:
        return (
            f"{where}: column {name!r} is text ({kind}), which a network cannot take: make token ids "
            "of it (a list of whole numbers a row) or numbers, or leave it out"
        )
    return (
        f"{where}: column {name!r} is {kind}, which is neither a number, a list of numbers nor an image: "
        "leave it out"
    )


def _named(names: Iterable[str], most: int = 20) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")
