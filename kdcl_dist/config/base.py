"""The base of all parts of a recipe: unknown fields and conversions are errors, and values are frozen."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from kdcl_dist.utils.import_strings import IMPORT_STRING, is_import_string, load_object

__all__ = [
    "NAME_REQUIRED",
    "OWN",
    "ClassNames",
    "Name",
    "Own",
    "Precision",
    "Seed",
    "Strict",
    "kind_of",
    "named",
]

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
Precision = Literal["fp32", "bf16", "fp16"]


def _differ(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("class names must differ")
    return names


ClassNames = Annotated[list[str], Field(min_length=2), AfterValidator(_differ)]

#: The kind of a part that is named by an import string.
OWN = "import string"

#: For the JSON schema only: a part without a name is one of the default kind, so the other kinds need theirs.
NAME_REQUIRED = ConfigDict(json_schema_extra={"required": ["name"]})


class Strict(BaseModel):
    """Base of all parts of a recipe, and of tables of recipes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Own(Strict):
    """A part of the user's own, by its import string; further fields are its arguments."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(pattern=rf"^{IMPORT_STRING}$", description="Import string `package.module:name`.")

    @property
    def arguments(self) -> dict[str, Any]:
        """The fields that the recipe does not know."""
        return dict(self.model_extra or {})

    def load(self) -> Callable[..., Any]:
        """What the import string names, with its arguments.

        Raises:
            ImportError: it names nothing.
            TypeError: it names something that cannot be called.
        """
        found = load_object(self.name)
        if not callable(found):
            raise TypeError(f"{type(found).__name__} is not callable")
        return partial(found, **self.arguments)

    @model_validator(mode="after")
    def _arguments_are_plain(self) -> Own:
        for name, value in self.arguments.items():
            if not _is_plain(value):
                raise ValueError(
                    f"{name}: must be a finite number, text, true, false or null, or a list of these, or a "
                    f"mapping with names (got {value!r})"
                )
        return self


def _is_plain(value: Any) -> bool:
    """Whether a value is the same after it was stored."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError):
        return False


def named(default: str, *others: str) -> BeforeValidator:
    """See that the name of a part is known, or an import string; a part without a name is `default`."""

    known = tuple(dict.fromkeys((default, *others)))

    def check(part: Any) -> Any:
        name = part.get("name", default) if isinstance(part, dict) else part
        if isinstance(name, str) and name not in known and not is_import_string(name):
            raise ValueError(
                f"{name!r} is unknown: have {', '.join(known)}, or an import string `package.module:name`"
            )
        return {"name": default} | part if isinstance(part, dict) else part

    return BeforeValidator(check)


def kind_of(part: Any) -> str | None:
    """The kind of a part with a name, which decides on the model that checks it; None for other values."""
    name = part.get("name") if isinstance(part, dict) else getattr(part, "name", None)
    return OWN if isinstance(name, str) and is_import_string(name) else name
