"""The exception tree: as drawn, with locations, one-line texts and the wrapping of foreign exceptions."""

from __future__ import annotations

import re

import pytest

from kdcl_dist import errors
from kdcl_dist.errors import KdclError, RecipeError, StudentFailed, UserError, one_line, wrap

CLASSES = {cls.__name__: cls for cls in vars(errors).values() if isinstance(cls, type)}
KINDS = {name: cls for name, cls in CLASSES.items() if issubclass(cls, KdclError)}


def drawn() -> dict[str, str]:
    """The parent of each exception in the drawing of the module's docstring."""
    parents, above = {}, ["Exception"]
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ((?:\|   |    )*(?:[|`]-- )?)([A-Z]\w+)  +\S", line):
            depth = len(found[1]) // 4
            del above[depth + 1 :]
            parents[found[2]] = above[-1]
            above.append(found[2])
    return parents


def test_the_drawing_is_the_tree() -> None:
    assert drawn() == {name: cls.__bases__[0].__name__ for name, cls in KINDS.items()}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_public_documented_and_has_an_exit_code(name: str) -> None:
    assert name in errors.__all__
    assert KINDS[name].__doc__
    assert KINDS[name].exit_code == (2 if issubclass(KINDS[name], UserError) else 1)


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ({}, "what"),
        ({"student": "a"}, "student 'a': what"),
        ({"step": 0}, "step 0: what"),
        ({"phase": "data", "host": "h"}, "phase data, host h: what"),
        ({"student": "", "step": 7}, "student '', step 7: what"),
    ],
)
def test_the_text_begins_with_the_known_location(known: dict[str, object], text: str) -> None:
    assert str(KdclError("what", **known, detail="more")) == text  # type: ignore[arg-type]


def test_at_fills_in_what_is_unknown() -> None:
    error = KdclError("what", student="a", step=0)
    assert error.at(student="b", step=5, phase="gather", host="h") is error
    assert error.where == "student 'a', step 0, phase gather, host h"


def test_wrap_completes_our_errors() -> None:
    error = RecipeError("what")
    assert wrap(error, student="a", step=3, phase="data") is error
    assert error.where == "student 'a', step 3, phase data"


@pytest.mark.parametrize(("student", "kind"), [("a", "StudentFailed"), (None, "CoordinatorFailed")])
def test_wrap_keeps_the_traceback_of_foreign_exceptions(student: str | None, kind: str) -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        wrapped = wrap(error, student=student, step=3, phase="forward")
    assert type(wrapped).__name__ == kind
    assert wrapped.message == "ValueError: first"
    assert "Traceback" in (wrapped.detail or "")
    assert "second" in (wrapped.detail or "")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("a\nb"), "ValueError: a"),
        (ValueError("\n  a\nb"), "ValueError: a"),
        (ValueError(), "ValueError"),
        (KeyError("a"), "KeyError: 'a'"),
        (StudentFailed("a", step=1), "StudentFailed: step 1: a"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_one_line(error: BaseException, text: str) -> None:
    assert one_line(error) == text


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"error": None, "message": ""},
        {"error": "Exception", "message": ""},
        {"error": "Any", "message": ""},
        {"error": "wrap", "message": ""},
    ],
)
def test_only_our_errors_are_rebuilt(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not an error of this package"):
        errors.from_dict(data)
