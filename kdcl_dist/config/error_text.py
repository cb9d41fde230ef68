"""Validation errors as one line of text."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from kdcl_dist.config.base import OWN
from kdcl_dist.config.model import TAGS
from kdcl_dist.config.tracking import NAMED
from kdcl_dist.distillation.divergences import LOSSES

__all__ = ["describe_errors"]

#: Parts of pydantic's paths that name a branch of a union; no field of a recipe has such a name.
UNION_BRANCHES = (
    *("sgd", "rmsprop", "adam", "adamw", "nadamw", "lamb", "lion"),
    *("constant", "multistep", "cosine", "poly", "onecycle"),
    *LOSSES,
    OWN,
    *TAGS,
    *(NAMED, "wandb", "mlflow"),
    *("constrained-int", "literal['epoch']"),
    *("constrained-float", "literal['auto']"),
)


def describe_errors(error: ValidationError, model: type[BaseModel]) -> str:
    """All errors in one line: the path, the message and the value of each."""
    return "; ".join(_descriptions(error, model))


def _descriptions(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    # A union reports an error for each of its branches; they share path and value.
    found: dict[tuple[str, str], list[str]] = {}
    for item in error.errors(include_url=False):
        path = ".".join(str(part) for part in item["loc"] if part not in UNION_BRANCHES)
        message, value = item["msg"].removeprefix("Value error, "), item["input"]
        if item["type"] == "extra_forbidden":
            message = f"unknown field here{_suggestion(str(item['loc'][-1]), model)}"
        shown = f" (got {_short(value)})" if item["type"] != "missing" and not _is_section(value) else ""
        found.setdefault((path, shown), []).append(message)
    for (path, shown), messages in found.items():
        text = " or ".join([messages[0], *(each.removeprefix("Input should be ") for each in messages[1:])])
        yield f"{path}: {text}{shown}" if path else f"{text}{shown}"


def _is_section(value: Any) -> bool:
    return isinstance(value, (dict, BaseModel))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _suggestion(field: str, model: type[BaseModel]) -> str:
    close = difflib.get_close_matches(field, sorted(_field_names(model)), n=1)
    return f", did you mean {close[0]!r}?" if close and close[0] != field else ""


def _field_names(model: type[BaseModel]) -> set[str]:
    """The names of all fields of a model and of the models inside it."""
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return {name for part in parts for name in part.get("properties", {})}
