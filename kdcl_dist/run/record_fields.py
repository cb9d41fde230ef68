"""The fields of run.json, as a reader accepts them. Fields that are not listed are kept as they are."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, Required, TypedDict

from kdcl_dist.errors import from_dict

__all__ = ["parse_record"]


@with_config(ConfigDict(extra="forbid"))
class _CauseFields(TypedDict, total=False):
    """`KdclError.to_dict`."""

    error: Required[str]
    message: Required[str]
    student: str | None
    step: int | None
    phase: str | None
    host: str | None
    detail: str | None


def _known(cause: _CauseFields) -> _CauseFields:
    from_dict(dict(cause))
    return cause


_Cause = Annotated[_CauseFields, AfterValidator(_known)]


class _Failures(TypedDict):
    run: str
    causes: list[_Cause]


class _Generation(TypedDict):
    run: str
    number: int


class _Absence(TypedDict):
    student: str
    since: int
    until: int | None
    state_of: int | None


class _Cohort(TypedDict):
    step: int
    students: list[str]


class _Spare(TypedDict):
    student: str
    at: str
    host: str


class _Prolonged(TypedDict):
    step: int
    epochs_before: int
    epochs: int


class _Scores(TypedDict):
    loss: float
    top1: float
    top5: float
    epoch: NotRequired[int]


@with_config(ConfigDict(extra="allow"))
class _Precision(TypedDict):
    """Of a run of examples/detection: average precision in percent, and more figures of COCO."""

    AP: float


class _Place(TypedDict, total=False):
    host: str
    pid: int
    device: str
    parameters: int
    peak_memory: int
    cores: int


@with_config(ConfigDict(extra="allow"))
class _Record(TypedDict, total=False):
    state: str
    owner: str
    launcher: str
    root: str
    recipe_file: str
    recipe_of: str
    updated: str
    cause: _Cause | None
    failures: _Failures
    generation: _Generation
    absences: list[_Absence]
    cohort: list[_Cohort]
    spares: list[_Spare]
    prolonged: list[_Prolonged]
    stopped_early: str | None
    results: dict[str, _Scores] | dict[str, _Precision] | None
    versions: dict[str, str]
    data: dict[str, str]
    stored: dict[str, str]
    class_names: list[str]
    placement: dict[str, _Place]
    classes: int
    samples: int
    seconds: float


_RECORD = TypeAdapter(_Record)


def parse_record(data: bytes) -> dict[str, Any]:
    """The fields of a run.json.

    Raises:
        ValueError: the text is no JSON, or a field has another type; the message is one line.
    """
    try:
        return dict(_RECORD.validate_json(data, strict=True))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {first['msg']}" if path else first["msg"]) from None
