"""Objects of a call in Python, by the strings that name them in its recipe: `object:small`.

They travel from the caller's process to the processes of its run as bytes of cloudpickle, which holds classes
and functions of a notebook or of `__main__` by their code. Nothing writes them to a run folder, and nothing
reads them from one: only objects of the very call are known, so what is unpickled is the caller's own code.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from kdcl_dist.errors import UserError, one_line
from kdcl_dist.utils.pickling import unpicklable_part

__all__ = [
    "MODULE",
    "Copied",
    "Given",
    "Objects",
    "carry",
    "carrying",
    "find_object",
    "known",
    "knows",
    "not_passed",
    "pickled",
]

#: The module of an import string that names an object.
MODULE = "object"


@dataclass(frozen=True)
class Given:
    """An object in place of a function that makes it, as import strings of data sets name one."""

    value: Any

    def __call__(self) -> Any:
        """The object itself."""
        return self.value


@dataclass(frozen=True)
class Copied:
    """A network in place of a factory: each call gives a copy with its very weights."""

    value: Any

    def __call__(self, num_classes: int) -> Any:
        """A copy; its number of classes is its own."""
        return copy.deepcopy(self.value)


@dataclass(frozen=True)
class Objects:
    """The objects of a call, by their strings.

    Attributes:
        data: their bytes.
        values: the objects themselves, as far as this process has needed them.
    """

    data: Mapping[str, bytes] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def only(self, *texts: str) -> Objects:
        """Those of some strings."""
        return Objects({text: data for text, data in self.data.items() if text in texts})

    def __reduce__(self) -> tuple[type[Objects], tuple[Mapping[str, bytes]]]:
        return Objects, (self.data,)


_known: ContextVar[Objects] = ContextVar("objects", default=Objects())  # noqa: B039 - nobody changes it


def pickled(objects: Mapping[str, Any]) -> Objects:
    """Objects by their strings, ready to travel.

    Raises:
        UserError: one cannot be pickled; the message names the part of it at fault.
    """
    import cloudpickle  # not at the top: `import kdcl_dist` is light

    data = {}
    for text, value in objects.items():
        try:
            data[text] = cloudpickle.dumps(value)
        except Exception as error:  # pickling runs a user's code
            inner = value.value if isinstance(value, Given | Copied) else value
            part = unpicklable_part(inner) or type(inner).__name__
            raise UserError(
                f"{text!r} cannot be handed to the processes of the run: {part} cannot be pickled "
                f"({one_line(error)}); leave it out in __getstate__, or give a function that makes the object"
            ) from error
    return Objects(data, dict(objects))


def carry(objects: Objects) -> None:
    """Know these objects, and no others, from now on: in a process of the run."""
    _known.set(objects)


@contextmanager
def carrying(objects: Objects) -> Iterator[None]:
    """Know these objects, and no others, in the block: in the caller's process."""
    token = _known.set(objects)
    try:
        yield
    finally:
        _known.reset(token)


def known() -> Objects:
    """The objects that are known here."""
    return _known.get()


def knows(text: str) -> bool:
    """Whether an import string names an object that is known here."""
    return text in known().data


def not_passed(text: str) -> str:
    """What to do about an object that is not known here, in one line."""
    return (
        f"{text!r} is an object of a call in Python, and only its name is stored: pass it in Python again, "
        "as in kdcl_dist.Run(path, students=..., data=...)"
    )


def find_object(text: str) -> Any:
    """The object of a string.

    Raises:
        ImportError: it is not known here, or cannot be rebuilt; the message is one line.
    """
    objects = known()
    if text not in objects.data:
        raise ImportError(not_passed(text))
    if text not in objects.values:
        try:
            objects.values[text] = pickle.loads(objects.data[text])
        except Exception as error:  # rebuilding runs a user's code
            raise ImportError(f"{text!r} cannot be rebuilt in this process: {one_line(error)}") from error
    return objects.values[text]
