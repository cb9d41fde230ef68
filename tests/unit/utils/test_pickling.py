"""The part of an object that cannot be pickled, by name."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from kdcl_dist.utils.pickling import unpicklable_part


class Holder:
    """Has attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Other(Holder):
    """Of another name."""


class WithoutLock(Holder):
    """Leaves its lock out."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock"}


class Made(Holder):
    """Is made again from other arguments than its attributes."""

    def __reduce__(self) -> Any:
        return Made, (), None, iter([self.lock])


LOOP = Holder(lock=threading.Lock())
LOOP.own = LOOP


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Holder(lock=threading.Lock()), "Holder.lock"),
        (Holder(fine=3, inner=Other(lock=threading.Lock())), "Other.lock"),
        (Holder(parts=[1, Other(file=open(__file__))]), "Other.file"),  # noqa: PTH123, SIM115
        (Holder(parts={"a": (lambda: 0,)}), "Holder.parts['a'][0]"),
        (LOOP, "Holder.lock"),
        (Holder(fine=WithoutLock(lock=threading.Lock(), image=lambda: 0)), "WithoutLock.image"),
        (Made(lock=threading.Lock()), "Made.lock"),
        (threading.Lock(), "lock"),
        (Holder(fine=[{"a": 1}]), None),
        (WithoutLock(lock=threading.Lock()), None),
    ],
)
def test_it_is_named(value: Any, name: str | None) -> None:
    assert unpicklable_part(value) == name
